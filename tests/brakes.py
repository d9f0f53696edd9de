"""What the tests of the brakes share: processes with one state file and one clock."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from mailsvc.brakes import Brakes, BrakeSettings

NOW = 1_800_000_000.0
BOB = "bob@example.org"


class World:
    """Processes that share a state file, and a clock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Clock()
        self.clock.advance(NOW)
        self.brakes: list[Brakes] = []
        self.in_thread: Callable[..., Deferred[Any]] = maybeDeferred

    def process(self, **values: Any) -> Brakes:
        def in_thread(*job: Any) -> Deferred[Any]:
            return self.in_thread(*job)

        brakes = Brakes(BrakeSettings(**values), self.path, self.clock, in_thread)
        brakes.start()
        self.brakes.append(brakes)
        return brakes

    def stop(self, brakes: Brakes) -> None:
        self.brakes.remove(brakes)
        fired: list[None] = []
        brakes.stop().addCallback(fired.append)
        assert fired == [None]

    def wait(self, seconds: float) -> None:
        """Let time pass, in turns while that is not too long."""
        if seconds <= 10:
            for _ in range(round(seconds * 2)):
                self.clock.advance(0.5)
        else:
            self.clock.advance(seconds)

    def rows(self, query: str) -> list[Any]:
        with sqlite3.connect(self.path) as db:
            return db.execute(query).fetchall()


def fail(brakes: Brakes, client: str, times: int = 1, name: str = BOB) -> None:
    for _ in range(times):
        brakes.failed(client, name)


def refused(brakes: Brakes, client: str) -> bool:
    return brakes.admit(client) is not None
