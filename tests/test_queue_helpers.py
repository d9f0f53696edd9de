"""Another process that tries messages, asked to let go of what it has not begun to send."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from mailsvc.queue import runner
from mailsvc.queue.attempts import Attempts
from mailsvc.queue.routes import RelaySettings, Routes
from mailsvc.queue.runner import Runner
from mailsvc.queue.schedule import Schedule
from mailsvc.queue.spool import Spool
from mailsvc.queue.wake import Teller, WakeFactory
from mailsvc.srs import SRS
from tests.queue_clock import Here, World
from tests.undecided import Pending, taken, unclaimed

Acted = tuple[list[str], list[str]]


class Wire:
    """One end of a connection between processes: what was written waits until it is taken."""

    disconnecting = False

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def take(self) -> bytes:
        data, self.written = self.written, b""
        return data

    def loseConnection(self) -> None:
        pass

    abortConnection = loseConnection


class Pair:
    """A process that sends, with *messages* under way, every second of them in one that helps.

    :ivar here: what the one carries, *there*: the other.
    """

    def __init__(self, directory: Path, messages: int = 4) -> None:
        self.world = World(directory)
        self.world.runner.stop()
        clock = self.world.clock
        self.here, self.there = Pending(clock), Pending(clock)
        self.runner = Runner(self.world.spool, Here(),  # type: ignore[arg-type]
                             self._attempts(self.world.spool, self.here), clock, senders=2)
        self.world.runner = self.runner
        self.runner.start()
        wake = WakeFactory(self.runner, lambda: None, clock)
        self._hearing: Any = wake.buildProtocol(None)
        self._to_helper, self._from_helper = Wire(), Wire()
        self._hearing.makeConnection(self._to_helper)
        self._teller = Teller(clock, lambda: None)
        other = Spool(directory / "queue")
        self._teller.make_attempts = lambda: self._attempts(other, self.there)
        self._teller.made(self._from_helper)
        self.flow()
        self.ids = [self.world.put(f"{name}@{name}.example") for name in "abcdef"[:messages]]
        self.flow()
        assert len(self.here.pending) == len(self.there.pending) == messages / 2

    def _attempts(self, spool: Spool, carrying: Pending) -> Attempts:
        return Attempts(spool, Here(), carrying, Routes(RelaySettings()),  # type: ignore[arg-type]
                        Schedule(self.world.settings), self.world.told,  # type: ignore[arg-type]
                        SRS(lambda value: value.ljust(8, b".")), self.world.clock)

    def flow(self, *, back: bool = True) -> None:
        """What was written arrives; of what the helper says only if *back*."""
        for _ in range(10):
            for line in self._to_helper.take().splitlines():
                self._teller.heard(self._from_helper, line)
            if back:
                self._hearing.dataReceived(self._from_helper.take())

    def lose(self) -> None:
        """The helper is gone."""
        self._teller.ended(self._from_helper)
        self._hearing.connectionLost(Failure(ConnectionDone()))

    def ask(self, action: str) -> list[Acted]:
        """Ask for *action* with all; the answer, when it is there."""
        answer: list[Acted] = []
        Deferred.fromCoroutine(self.runner.act(action, [], "")).addCallback(answer.append)
        return answer


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    monkeypatch.setattr(runner, "_ALONE", 0)
    return Pair(tmp_path)


@pytest.mark.parametrize("action", ["hold", "drop"])
def test_another_process_lets_go_of_what_it_has_not_begun(pair: Pair, action: str) -> None:
    answer = pair.ask(action)
    assert answer == []  # not before it has said so
    pair.flow()
    assert answer == [(pair.ids, [])] and unclaimed(pair.world.spool, pair.ids)
    assert pair.runner.standing(0)[:3] == (0, 0, 4 if action == "hold" else 0)
    assert all(not each.attempts for each in pair.world.spool.messages())


def test_what_another_process_is_sending_is_busy(pair: Pair) -> None:
    pair.there.pending[1].begun = True
    busy = pair.there.pending[1].message.id
    answer = pair.ask("drop")
    pair.flow()
    assert answer == [([id for id in pair.ids if id != busy], [busy])]
    answer = pair.ask("drop")
    pair.flow()
    assert answer == [([], [busy])]
    taken(pair.there.pending[1])
    pair.flow()
    assert pair.world.spool.ids() == set() and pair.runner.standing(0)[:3] == (0, 0, 0)


def test_what_another_process_has_sent_meanwhile_is_gone(pair: Pair) -> None:
    answer = pair.ask("hold")
    gone = pair.there.pending[0].message.id
    taken(pair.there.pending[0])
    pair.flow()
    held = [id for id in pair.ids if id != gone]
    assert answer == [(held, [])] and pair.world.spool.ids() == set(held)
    # It is told that it may have the rest; nothing of the former question is left.
    pair.ask("release")
    pair.flow()
    for job in (*pair.here.pending, *pair.there.pending):
        if not job.done.called:
            taken(job)
    pair.flow()
    assert pair.world.spool.ids() == set() and pair.runner.standing(0)[:3] == (0, 0, 0)


def test_a_process_that_ends_when_asked_has_let_go(pair: Pair) -> None:
    answer = pair.ask("drop")
    pair.lose()
    assert answer == [(pair.ids, [])] and pair.world.spool.ids() == set()
    assert pair.runner.standing(0)[:3] == (0, 0, 0)


def test_a_process_that_does_not_answer_keeps_what_it_has(pair: Pair) -> None:
    answer = pair.ask("drop")
    pair.flow(back=False)
    pair.world.clock.advance(5)
    theirs = [job.message.id for job in pair.there.pending]
    assert answer == [([id for id in pair.ids if id not in theirs], theirs)]
    # They are tried again as soon as it does.
    pair.flow()
    again = [job for job in (*pair.here.pending, *pair.there.pending) if not job.done.called]
    assert sorted(job.message.id for job in again) == sorted(theirs)
    for job in again:
        taken(job)
    pair.flow()
    assert pair.world.spool.ids() == set() and pair.runner.standing(0)[:3] == (0, 0, 0)


@pytest.mark.parametrize("second", ["retry", "drop"])
def test_two_that_ask_at_once(pair: Pair, second: str) -> None:
    first, then = pair.ask("retry"), pair.ask(second)
    for _ in range(4):
        pair.flow()
    assert first == [(pair.ids, [])] and then == [(pair.ids, [])]
    for job in (*pair.here.pending, *pair.there.pending):
        if not job.done.called:
            taken(job)
    pair.flow()
    assert pair.world.spool.ids() == set() and pair.runner.standing(0)[:3] == (0, 0, 0)
