"""Which events are told, and what is said of each: the [webhooks] section, and JSON.

An event is something that is logged with a field ``event``, its type; what is told of it are fields
of that line, by the same names.  So a new one is a field at a line of log, and a row in
:data:`EVENTS`.  The body follows Standard Webhooks 1.0: ``type``, ``timestamp`` (when it happened,
RFC 3339), and ``data``.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from mailsvc.settings import at_least, setting

#: The type of an event -> the fields that are told of it; a line may lack some.
EVENTS: dict[str, tuple[str, ...]] = {
    "message.received": ("id", "sender", "recipients", "accounts", "queued", "held_until", "size",
                         "user", "client", "hello", "connection"),
    "message.relayed": ("id", "sender", "recipient", "host", "attempt", "reply"),
    "message.delivered": ("id", "sender", "recipient", "attempt"),
    "message.deferred": ("id", "sender", "recipient", "host", "attempt", "reply"),
    "message.bounced": ("id", "sender", "recipient", "host", "status", "reply"),
    "mailbox.fetched": ("user", "retrieved", "deleted", "client", "connection"),
    "login.abuse": ("network", "seconds", "times", "failures"),
    "queue.old": ("id", "seconds"),
    "certificate.old": ("certificate", "days"),
}
#: What `mailsvc webhook test` sends.
TEST = "test"


def _events(values: list[str]) -> str | None:
    return None if set(values) <= set(EVENTS) else "some of " + ", ".join(EVENTS)


def _urls(values: list[str]) -> str | None:
    return None if all(map(_acceptable, values)) else (
        "URLs that begin with https://, or http:// for this machine itself (127.0.0.1, [::1], "
        "localhost), in ASCII and without #")


def _acceptable(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    if not (host and url.isascii() and url.isprintable() and " " not in url and "#" not in url
            and parts.username is None):
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and _own(host))


def _own(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _place(value: str) -> str | None:
    scheme, _, rest = value.partition(":")
    return None if not value or (scheme in ("file", "env") and rest) else (
        "file:PATH or env:NAME, or nothing")


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """``[webhooks]``."""

    urls: list[str] = setting(
        [], "Where events are told of, each of them to each URL; [] for nowhere.  Any address may "
        "be meant, private ones too; redirects are not followed.", check=_urls,
        shown=lambda urls: list(map(shown, urls)))
    events: list[str] = setting(
        [each for each in EVENTS if each != "message.deferred"],
        "Which events: some of " + ", ".join(EVENTS) + ".", check=_events)
    secret: str = setting(
        "", "What requests are signed with: file:PATH, which the service's user may read, or "
        "env:NAME for a variable of its environment.  It holds what `mailsvc webhook secret` "
        "prints; of several, one a line, each signs.", check=_place)
    authorities: str = setting(
        "", "PEM file of the authorities that may vouch for https URLs; empty for the system's.")
    timeout_seconds: float = setting(
        15, "How long a request may take.", unit="seconds", check=at_least(0.1))
    retry_first_seconds: float = setting(
        5, "How long after the first attempt to tell of an event the second is made; each further "
        "wait is three times as long.", unit="seconds", check=at_least(0.1))
    retry_most_seconds: float = setting(
        14_400, "The longest wait between two attempts.", unit="seconds", check=at_least(0.1))
    lifetime_seconds: float = setting(
        86_400, "How long an event is tried before it is given up.", unit="seconds",
        check=at_least(0))
    most_waiting: int = setting(
        10_000, "How many events may wait for one URL; beyond them the oldest are dropped.",
        check=at_least(1))


def body(kind: str, moment: float, fields: Mapping[str, Any]) -> bytes:
    """What is told of an event that happened at *moment*, seconds since the epoch."""
    when = datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat(timespec="milliseconds")
    data = {name: fields[name] for name in EVENTS.get(kind, fields) if name in fields}
    return json.dumps({"type": kind, "timestamp": when.replace("+00:00", "Z"),
                       "data": data}, default=str).encode("ascii")


def shown(url: str) -> str:
    """*url* for a log and for pages: its path and query may hold what nobody else shall know."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/"
