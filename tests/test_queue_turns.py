"""mailsvc.queue.turns: what is handed to who fetches its mail, while others work on it too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from mailsvc.mail import Address
from mailsvc.queue.attempts import Fetching
from mailsvc.queue.message import QueuedMessage, QueuedRecipient
from mailsvc.queue.spool import Draft, Spool
from mailsvc.queue.turns import Waiting as Found
from mailsvc.queue.turns import _Turn


class Waiting:
    """Turns whose messages are being worked on until some time.

    :ivar until: message -> when its attempt ends, on *reactor*.
    :ivar handed: what was handed over.
    """

    stopped = False

    def __init__(self, **until: float) -> None:
        self.reactor = Clock()
        self.until = until
        self.handed: list[str] = []

    async def waiting(self, fetching: Fetching) -> list[str]:
        return [id for id in self.until if id not in self.handed]

    async def fetch(self, id: str, fetching: Fetching) -> bool:
        if self.reactor.seconds() < self.until[id]:
            return False
        self.handed.append(id)
        return True


class Host:
    """A customer that is there."""

    closed = False


def turned(turns: Any) -> Deferred[None]:
    turn = _Turn(turns, ["far.example"], "C1", "far@a.example")
    sent: Any = turn._send_all(Host(), list(turns.until))  # type: ignore[arg-type]
    return Deferred.fromCoroutine(sent)


@pytest.mark.parametrize("ends", [0.05, 0.3, 1.0])
def test_an_attempt_that_is_about_to_end_is_waited_for(ends: float) -> None:
    """Its state is on disk, so it is found, before it is over."""
    turns = Waiting(one=0, two=ends)
    over = turned(turns)
    assert turns.handed == ["one"] and not over.called
    turns.reactor.pump([0.1] * 14)
    assert turns.handed == ["one", "two"] and over.called


def test_one_that_takes_long_is_not() -> None:
    turns = Waiting(one=0, two=60)
    over = turned(turns)
    turns.reactor.pump([0.1] * 14)
    assert turns.handed == ["one"] and over.called
    assert turns.reactor.getDelayedCalls() == []


def test_the_service_stops_while_one_is_waited_for() -> None:
    turns = Waiting(two=0.2)
    over = turned(turns)
    turns.stopped = True
    turns.reactor.pump([0.1] * 14)
    assert turns.handed == [] and over.called


class Reading(Spool):
    """Notes what is read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.loaded: list[str] = []
        self.make()

    def load(self, id: str) -> QueuedMessage:
        self.loaded.append(id)
        return super().load(id)

    def put(self, id: str, domain: str, priority: int = 0) -> None:
        to = Address("bob", domain)
        draft = Draft(QueuedMessage(id, 1.0, Address("alice", "example.org"),
                                    [QueuedRecipient(to, to)], priority=priority))
        draft.add(b"x\r\n")
        self.commit(draft)


def test_what_waits_for_a_domain_is_found_without_reading_the_whole_queue_again(
    tmp_path: Path
) -> None:
    async def carry(job: object) -> list[Any]:
        raise AssertionError

    spool = Reading(tmp_path / "queue")
    for id, domain, priority in (("1A", "far.example", 0), ("2B", "other.example", 0),
                                 ("3C", "FAR.example", 5)):
        spool.put(id, domain, priority)
    found, far = Found(spool), Fetching(frozenset(["far.example"]), carry)
    assert found.find(far) == ["3C", "1A"]
    spool.loaded.clear()
    spool.end(spool.load("1A"))
    spool.put("4D", "far.example")
    spool.put("5E", "other.example")
    spool.loaded.clear()
    assert found.find(far) == ["3C", "4D"]
    assert "2B" not in spool.loaded
    spool.loaded.clear()
    assert found.find(far) == ["3C", "4D"]
    assert sorted(spool.loaded) == ["3C", "4D"]
    # Of another domain nothing is known yet.
    assert found.find(Fetching(frozenset(["other.example"]), carry)) == ["2B", "5E"]
