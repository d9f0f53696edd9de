"""mailsvc.queue.race: whichever address answers first."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock

from mailsvc.queue.race import START, Race


class Connected:
    """A protocol whose connection may be aborted."""

    def __init__(self) -> None:
        self.transport = self
        self.aborted = False

    def abortConnection(self) -> None:
        self.aborted = True


class Runner:
    """An endpoint that connects when it is told to."""

    def __init__(self) -> None:
        self.cancelled = False
        self.connects_when_cancelled: Connected | None = None
        self.connecting: Deferred[Any] = Deferred(self._cancel)

    def _cancel(self, _: object) -> None:
        self.cancelled = True
        if self.connects_when_cancelled is not None:
            self.connecting.callback(self.connects_when_cancelled)

    def connect(self, _: object) -> Deferred[Any]:
        return self.connecting


class World:
    def __init__(self, *addresses: str) -> None:
        self.clock = Clock()
        self.runners: dict[str, Runner] = {}
        self.race = Race(addresses, self._endpoint, self.clock)
        self.done = self.race.connect(Factory())

    def _endpoint(self, address: str) -> Any:
        self.runners[address] = Runner()
        return self.runners[address]


def test_the_next_starts_a_moment_later_and_the_first_to_connect_wins() -> None:
    world = World("a", "b", "c")
    assert list(world.runners) == ["a"]
    world.clock.advance(START)
    assert list(world.runners) == ["a", "b"]
    won = Connected()
    world.runners["b"].connecting.callback(won)
    assert world.done.result is won and world.race.winner == "b"
    assert world.runners["a"].cancelled
    world.clock.advance(10 * START)
    assert list(world.runners) == ["a", "b"] and not world.clock.getDelayedCalls()


def test_one_that_fails_lets_the_next_start_at_once() -> None:
    world = World("a", "b")
    world.runners["a"].connecting.errback(ConnectError())
    assert list(world.runners) == ["a", "b"]
    world.runners["b"].connecting.callback(Connected())
    assert world.race.winner == "b" and not world.clock.getDelayedCalls()


def test_when_all_fail_it_fails() -> None:
    world = World("a", "b")
    world.clock.advance(START)
    world.runners["b"].connecting.errback(ConnectError(string="b"))
    assert not world.done.called
    world.runners["a"].connecting.errback(ConnectError(string="a"))
    failed: list[Any] = []
    world.done.addErrback(failed.append)
    assert failed[0].value.args == ("a",) or "a" in str(failed[0].value)
    assert world.race.winner is None


def test_a_loser_that_connects_all_the_same_is_closed() -> None:
    world = World("a", "b")
    world.clock.advance(START)
    won, loser = Connected(), Connected()
    world.runners["b"].connects_when_cancelled = loser
    world.runners["a"].connecting.callback(won)
    assert loser.aborted and not won.aborted and world.race.winner == "a"


def test_it_stays_with_the_winner() -> None:
    world = World("a", "b")
    world.runners["a"].connecting.errback(ConnectError())
    world.runners["b"].connecting.callback(Connected())
    world.runners.clear()
    world.race.connect(Factory())
    assert list(world.runners) == ["b"]


def test_giving_up_ends_all() -> None:
    world = World("a", "b", "c")
    world.clock.advance(START)
    world.done.addErrback(lambda _: None)
    world.done.cancel()
    assert world.runners["a"].cancelled and world.runners["b"].cancelled
    world.clock.advance(START)
    assert "c" not in world.runners
