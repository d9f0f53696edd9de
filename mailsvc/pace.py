"""How much each source may do in a minute: as much at once, and then as time gives it back.

A leaky bucket for each source, in memory and so of one process.  What is refused does not count:
who keeps to the pace from now on is served from now on.
"""

from __future__ import annotations

from collections import OrderedDict

from twisted.internet.interfaces import IReactorTime

#: Of how many sources the pace is known; those that were quiet the longest are forgotten.
SOURCES = 10_000


class Pace:
    """Holds sources to *per_minute*; 0 for no limit."""

    def __init__(self, per_minute: int, clock: IReactorTime) -> None:
        self.per_minute = per_minute
        self._clock = clock
        #: How much was done lately, and when that was; the last to come at the end.
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def exceeds(self, source: str, amount: int = 1) -> bool:
        """Whether *amount* more by *source* is too much; if not, it counts."""
        if not self.per_minute:
            return False
        now = self._clock.seconds()
        level, since = self._levels.get(source, (0.0, now))
        level = max(0.0, level - max(0.0, now - since) * self.per_minute / 60)
        # Some tolerance, for a sum of many fractions.
        if level + amount > self.per_minute + 1e-6:
            return True
        self._levels[source] = level + amount, now
        self._levels.move_to_end(source)
        if len(self._levels) > SOURCES:
            self._levels.popitem(last=False)
        return False
