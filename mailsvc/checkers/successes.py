"""Logins that succeeded a moment ago, so that a client that polls costs next to nothing.

What was shown is remembered as an HMAC under a key of this process: nothing that is kept can be
turned back into a password or token.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict


class Successes:
    """At most *entries* of them, each for *seconds* at most."""

    def __init__(self, seconds: float, entries: int = 10_000) -> None:
        self._seconds = seconds
        self._entries = entries
        self._key = secrets.token_bytes(32)
        #: Mark -> until when it counts, and whom it proved.  The oldest first.
        self._known: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()

    def find(self, now: float, *shown: bytes) -> bytes | None:
        """Whom *shown* proved, or None when that must be asked again."""
        until, name = self._known.get(self._mark(shown), (now, b""))
        return name if until > now else None

    def add(self, now: float, name: bytes, *shown: bytes, until: float | None = None) -> None:
        """Remember that *shown* proves *name*, no longer than *until*."""
        mark = self._mark(shown)
        self._known.pop(mark, None)
        end = now + self._seconds
        self._known[mark] = (end if until is None else min(end, until), name)
        while self._known and (len(self._known) > self._entries
                               or next(iter(self._known.values()))[0] <= now):
            self._known.popitem(last=False)

    def __len__(self) -> int:
        return len(self._known)

    def _mark(self, shown: tuple[bytes, ...]) -> bytes:
        mark = hmac.new(self._key, digestmod=hashlib.sha256)
        for part in shown:
            mark.update(len(part).to_bytes(8, "big") + part)
        return mark.digest()
