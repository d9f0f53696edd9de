"""A password hasher that is as cheap as can be, and counts what it is asked.

:func:`stop_hashers`, :func:`cheap_hasher` and :func:`logged_events` are made fixtures by the tests
that need them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest_twisted
from twisted.internet import reactor
from twisted.logger import globalLogPublisher

from mailsvc.passwords import PasswordHasher, PasswordSettings

#: As cheap as Argon2 and SCRAM get.
CHEAP = {"memory_kib": 64, "passes": 1, "scram_iterations": 4096}


class Counting:
    """Stands before the hasher's Argon2, counting what is asked of it and in which thread."""

    def __init__(self, hasher: PasswordHasher) -> None:
        self.real = hasher._argon2
        self.verified: list[str] = []
        self.threads: set[str] = set()
        self.hold: threading.Event | None = None

    def verify(self, verifier: str, password: bytes) -> bool:
        self.verified.append(verifier)
        self.threads.add(threading.current_thread().name)
        if self.hold is not None:
            assert self.hold.wait(30)
        return self.real.verify(verifier, password)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


#: The hashers at work.  Their threads would keep a run of the tests from ending.
_started: list[PasswordHasher] = []


def stop_hashers() -> Iterator[None]:
    """Stop, at the end, those that the test left at work, as a failing one does."""
    yield
    while _started:
        pytest_twisted.blockon(_started.pop().stopService())


def hasher_of(**options: Any) -> tuple[PasswordHasher, Counting]:
    """One at work, with other settings than the cheapest."""
    hasher = PasswordHasher(PasswordSettings(**{**CHEAP, **options}), reactor)
    counting = Counting(hasher)
    hasher._argon2 = counting  # type: ignore[assignment]
    hasher.startService()
    _started.append(hasher)
    return hasher, counting


def logged_events() -> Iterator[list[Any]]:
    """What is logged meanwhile."""
    events: list[Any] = []
    observer: Any = events.append
    globalLogPublisher.addObserver(observer)
    yield events
    globalLogPublisher.removeObserver(observer)


def cheap_hasher() -> Iterator[PasswordHasher]:
    """One that is at work meanwhile."""
    hasher, _ = hasher_of()
    yield hasher


def count(hasher: PasswordHasher) -> list[str]:
    """The verifiers that were checked so far."""
    return hasher._argon2.verified  # type: ignore[attr-defined]
