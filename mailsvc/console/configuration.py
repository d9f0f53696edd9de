"""The configuration in effect, and why each key is what it is, for administrators.

:func:`entries` is what the API tells, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mailsvc.config import Settings
from mailsvc.console.call import Answer, Call, Page
from mailsvc.settings import Key
from mailsvc.toml import literal


async def show(call: Call) -> Answer:
    """Every key, or those in whose name, value or meaning stands what is looked for."""
    wanted, changed = call.query["q"], "changed" in call.query
    sections: dict[str, list[dict[str, Any]]] = {}
    found = list(entries(call.backend.settings, wanted, given=changed))
    for key, value, where in found:
        sections.setdefault(key.section, []).append({
            "name": key.name, "value": literal(value), "default": literal(key.default),
            "where": where, "sentence": key.sentence, "unit": key.unit, "expected": key.type})
    return Page("configuration.html", {"sections": sections, "count": len(found),
                                       "wanted": wanted, "changed": changed})


def entries(settings: Settings, wanted: str = "", *, given: bool = False
            ) -> Iterator[tuple[Key, Any, str | None]]:
    """The keys in whose name, value or meaning *wanted* stands, each with its value, without
    secrets, and where it was given: FILE:LINE, "--set", or None for a default.

    :param given: only those that are not left to their defaults.
    """
    wanted = wanted.casefold()
    for key, value in settings.entries():
        shown = without_secrets(value if key.shown is None else key.shown(value))
        where = settings.given.get(str(key))
        texts = (str(key), literal(shown), key.sentence)
        if (where is not None or not given) and any(wanted in each.casefold() for each in texts):
            yield key, shown, where


def without_secrets(value: Any) -> Any:
    """*value*, with the password of whatever is a URL masked."""
    match value:
        case dict():
            return {name: without_secrets(each) for name, each in value.items()}
        case list():
            return [without_secrets(each) for each in value]
        case str():
            return _masked(value)
    return value


def _masked(text: str) -> str:
    scheme, found, rest = text.partition("://")
    login, at, place = rest.rpartition("@")
    user, colon, _ = login.partition(":")
    return f"{scheme}://{user}:…@{place}" if found and at and colon else text
