"""Settings of which each will do by itself, and that do not go together: a service cannot start.

Commands need none of this, for they start nothing; so it is not asked when a file is read, but by
``mailsvc config check`` and by whatever starts or reloads a service.
"""

from __future__ import annotations

from collections.abc import Iterator

from mailsvc import endpoints
from mailsvc.acme.limits import CHALLENGES
from mailsvc.config import KEYS, ConfigurationError, Settings
from mailsvc.toml import literal


def refuse(settings: Settings) -> None:
    """Do not go on with settings that contradict each other.

    :raises ConfigurationError: with every contradiction.
    """
    if problems := list(contradictions(settings)):
        raise ConfigurationError(problems)


def contradictions(settings: Settings) -> Iterator[str]:
    """All that does not go together in *settings*, a line each."""
    listeners = {key.name: value for key, value in settings.entries() if key.section == "listeners"}
    if not any(value for name, value in listeners.items() if name not in ("http", "acme")):
        yield settings.mistake("listeners.smtp", (
            "expected an endpoint here or in another key of [listeners], such as "
            f"{literal(KEYS['listeners.smtp'].default)}; there would be nothing to do"))
    yield from _taken_twice(settings, listeners)
    acme = settings.acme
    if acme.names and not acme.agreed:
        yield settings.mistake("acme.names", (
            f"expected acme.agreed = true beside it, when you have read the terms of service of "
            f"{acme.directory}; or take acme.names out"))
    if acme.names and settings.tls.certificates:
        yield settings.mistake("tls.certificates", (
            "expected no acme.names beside it, which is set as well; take one of them out"))


def _taken_twice(settings: Settings, listeners: dict[str, list[str]]) -> Iterator[str]:
    # What is given comes last, for that is what can be changed.
    keys = sorted(listeners, key=lambda name: f"listeners.{name}" in settings.given)
    pairs = [(f"listeners.{name}", each) for name in keys for each in listeners[name]]
    for (key, endpoint), (other, first) in endpoints.collisions(pairs):
        yield settings.mistake(key, (
            f"expected another port than that of {other} = {literal(first)} "
            f"({settings.given.get(other, 'the default')}), which has it already"), endpoint)


def unanswered(settings: Settings) -> str | None:
    """Why no certificate would ever come, or None.

    The endpoint may also be named where the service is started (``twistd mailsvc --acme``), so it
    is no mistake of a file yet.
    """
    listeners, kind = settings.listeners, settings.acme.challenge
    if not settings.acme.names or listeners.acme or (
            kind == "tls-alpn-01" and (listeners.console or listeners.api)):
        return None
    return settings.mistake("acme.names", (
        "the authority would find nobody to answer: give listeners.acme an endpoint, as "
        f'["tcp:{CHALLENGES[kind]}"], or take acme.names out'))
