"""When patience with a peer ends: a deadline that moves with every command, at next to no cost."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

#: A deadline while no time runs.
FOREVER = float("inf")
#: How often, in seconds, to look at the clock while no time runs.
_LOOK = 300.0


class Deadline:
    """The deadline of one connection; tells when it has passed, and again until it is moved.

    Its timer is not moved for a later deadline, which comes with every command, but finds out when
    it fires.

    :param clock: the reactor, or a Clock.
    :param passed: told the time by *clock* once the deadline has passed.
    :ivar at: when that is, by *clock*.
    """

    __slots__ = ("_alarm", "_clock", "_passed", "_timer", "at")

    def __init__(self, clock: IReactorTime, passed: Callable[[float], None]) -> None:
        self._clock = clock
        #: None once it is over: nothing shall keep the connection in memory then.
        self._passed: Callable[[float], None] | None = passed
        self._timer: IDelayedCall | None = None
        #: When the clock is looked at next.
        self._alarm = FOREVER
        self.at = FOREVER

    def move(self, at: float) -> None:
        """Let it be *at* that time; the first time starts the timer."""
        self.at = at
        if at < self._alarm and self._passed is not None:
            self._set()

    def stop(self) -> None:
        """Tell nothing more.  May be called again."""
        self._passed = None
        self._cancel()

    def _set(self) -> None:
        # Not reset(), which looks for it among the timers of all connections.
        self._cancel()
        now = self._clock.seconds()
        wait = min(max(0.0, self.at - now), _LOOK)
        self._alarm = now + wait
        self._timer = self._clock.callLater(wait, self._look)

    def _cancel(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _look(self) -> None:
        now = self._clock.seconds()
        if now >= self.at and self._passed is not None:
            self._passed(now)
        if self._passed is not None:
            self._set()
