"""The brakes of several processes and after restarts, and a file that cannot be used."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.defer import fail as fail_with
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs

from mailsvc.brakes import Brakes, BrakeSettings
from mailsvc.errors import TemporaryFailure
from mailsvc.names import DirectoryError
from mailsvc.state import State
from tests.brakes import BOB, World, fail, refused


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "state.sqlite")
    yield world
    for brakes in list(world.brakes):
        world.stop(brakes)
    assert world.clock.getDelayedCalls() == []


def test_processes_count_together(world: World) -> None:
    one, other = world.process(), world.process()
    for _ in range(10):
        fail(one, "192.0.2.1")
        fail(other, "192.0.2.1")
        world.wait(1.5)
    fail(one, "192.0.2.1")  # the last of the other may not be known yet
    world.wait(1)
    assert refused(one, "192.0.2.1")
    assert refused(other, "192.0.2.1")
    assert world.rows("SELECT network, times FROM bans") == [("192.0.2.1/32", 1)]


def test_a_ban_counts_in_other_processes_within_a_second(world: World) -> None:
    one, other = world.process(), world.process()
    fail(one, "192.0.2.1", 20)
    assert not refused(other, "192.0.2.1")
    world.wait(1)
    assert refused(other, "192.0.2.1")


def test_counts_and_bans_survive_a_restart(world: World) -> None:
    brakes = world.process()
    fail(brakes, "192.0.2.1", 20)
    fail(brakes, "192.0.2.2", 8, "alice@example.org")
    world.stop(brakes)
    brakes = world.process()
    assert refused(brakes, "192.0.2.1")
    assert brakes.delay("192.0.2.2", "alice@example.org") == 4
    world.wait(600)
    fail(brakes, "192.0.2.1", 20)
    world.wait(1199)
    assert refused(brakes, "192.0.2.1"), "it is his second"


def test_what_fails_while_it_is_written_counts_once(world: World) -> None:
    brakes = world.process(ban_failures=0)
    jobs: list[Callable[[], object]] = []

    def later(job: Callable[..., Any], *rest: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        jobs.append(lambda: maybeDeferred(job, *rest).chainDeferred(done))
        return done

    world.in_thread = later
    fail(brakes, "192.0.2.1", 3)
    world.wait(1)
    fail(brakes, "192.0.2.1", 3)
    world.wait(3)
    assert brakes.delay("192.0.2.1", BOB) == 1, "6 failures"
    assert len(jobs) == 1, "one write at a time"
    jobs.pop()()
    assert brakes.delay("192.0.2.1", BOB) == 1
    world.wait(3)
    jobs.pop()()
    world.wait(3)
    assert brakes.delay("192.0.2.1", BOB) == 1
    assert world.rows("SELECT round(level) FROM failed_logins WHERE key = '192.0.2.1/32'") == [
        (6.0,)]
    world.in_thread = maybeDeferred


def test_stopping_waits_for_what_is_being_written(world: World) -> None:
    brakes = world.process()
    waiting: Deferred[Any] = Deferred()
    world.in_thread = lambda job, *rest: waiting.addCallback(lambda _: job(*rest))
    fail(brakes, "192.0.2.1")
    world.wait(1)
    fail(brakes, "192.0.2.1")
    world.brakes.remove(brakes)
    fired: list[None] = []
    brakes.stop().addCallback(fired.append)
    assert fired == []
    world.in_thread = maybeDeferred
    waiting.callback(None)
    assert fired == [None]
    assert world.rows("SELECT round(level) FROM failed_logins WHERE key = '192.0.2.1/32'") == [
        (2.0,)]


def test_stopping_what_never_started_is_nothing(tmp_path: Path) -> None:
    fired: list[None] = []
    Brakes(BrakeSettings(), tmp_path / "state.sqlite", Clock(), maybeDeferred).stop().addCallback(
        fired.append)
    assert fired == [None]


def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE x (y)")
    with pytest.raises(DirectoryError):
        Brakes(BrakeSettings(), path, Clock(), maybeDeferred).start()


def test_without_the_file_each_process_counts_for_itself(world: World) -> None:
    brakes = world.process()


    world.in_thread = lambda *_: fail_with(TemporaryFailure("the disk is full"))
    with capturedLogs() as logs:
        fail(brakes, "192.0.2.1", 10)
        world.wait(5)
        fail(brakes, "192.0.2.1", 10)
        world.wait(5)
    assert refused(brakes, "192.0.2.1")
    errors = [entry for entry in logs if entry["log_level"] is LogLevel.error]
    assert len(errors) == 1, "said once"
    assert "the disk is full" in errors[0]["problem"]
    world.in_thread = maybeDeferred
    world.wait(1)
    assert world.rows("SELECT network FROM bans") == [("192.0.2.1/32",)], "written later"


def test_failures_are_forgotten_while_the_file_cannot_be_written(world: World) -> None:
    brakes = world.process()
    world.in_thread = lambda *_: fail_with(TemporaryFailure("the disk is full"))
    fail(brakes, "192.0.2.1", 8)
    world.wait(1)
    world.clock.advance(1800)
    world.in_thread = maybeDeferred
    assert brakes.delay("192.0.2.1", BOB) == 0.5
    world.wait(2)
    assert brakes.delay("192.0.2.1", BOB) == 0.5


def test_a_file_that_cannot_be_read_bars_nobody(world: World,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    brakes = world.process()
    fail(brakes, "192.0.2.1", 7)
    world.wait(2)

    def unreadable(*_: object) -> None:
        raise TemporaryFailure("an input/output error")

    monkeypatch.setattr(State, "rows", unreadable)
    world.wait(2)
    assert brakes.delay("192.0.2.1", BOB) == 2, "what was known"
    assert brakes.delay("192.0.2.9", BOB) == 0
    assert brakes.admit("192.0.2.9") is None
    fail(brakes, "192.0.2.1", 13)
    assert refused(brakes, "192.0.2.1")
    monkeypatch.undo()


@pytest_twisted.ensureDeferred
async def test_in_real_threads(tmp_path: Path) -> None:
    brakes = Brakes(BrakeSettings(), tmp_path / "state.sqlite", reactor)
    threads: set[int] = set()
    store = brakes._ledger._store

    def noted(*job: Any) -> None:
        threads.add(threading.get_ident())
        store(*job)

    brakes._ledger._store = noted  # type: ignore[method-assign, assignment]
    brakes.start()
    fail(brakes, "192.0.2.1", 20)
    await brakes.stop()
    assert threads and threading.get_ident() not in threads
    with sqlite3.connect(tmp_path / "state.sqlite") as db:
        assert db.execute("SELECT network FROM bans").fetchall() == [("192.0.2.1/32",)]
