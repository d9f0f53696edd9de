"""The last minutes of a few figures, for graphs: kept in memory by whoever watches the service.

Every :data:`EVERY` seconds one row is taken of the figures of all processes.  Of what is counted a
row has how much it grew since the one before, so that a graph shows what went on; of what goes up
and down it has the level.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.application.service import Service
from twisted.internet.task import LoopingCall

from mailsvc import figures
from mailsvc.figures import Figure, Figures, Reading

#: How often a row is taken, seconds, and how many are kept: a quarter of an hour.
EVERY, ROWS = 10.0, 90


@dataclass(frozen=True, slots=True)
class Curve:
    """What one graph shows.

    :ivar counted: whether its figures only grow.
    :ivar outcomes: which series count, by their last label; all of them if there is none.
    """

    name: str
    figures: tuple[Figure, ...]
    counted: bool = True
    outcomes: tuple[str, ...] = ()


CURVES = (
    Curve("sessions", (figures.SESSIONS,)),
    Curve("accepted", (figures.ACCEPTED,)),
    Curve("refused", (figures.REFUSED_RECIPIENTS,)),
    Curve("fetched", (figures.FETCHED,)),
    Curve("relayed", (figures.DELIVERIES,), outcomes=("relayed", "delivered")),
    Curve("logins", (figures.LOGINS,), outcomes=("succeeded",)),
    Curve("logins_failed", (figures.LOGINS,), outcomes=("failed",)),
    Curve("connections", (figures.CONNECTIONS,), counted=False),
    Curve("queue", (figures.QUEUE,), counted=False),
)

class History(Service):
    """The last rows of *memory*."""

    def __init__(self, memory: Figures, reactor: Any,
                 now: Callable[[], float] = time.time) -> None:
        self._memory = memory
        self._now = now
        self._before: dict[str, float] | None = None
        self._rows: deque[list[float]] = deque(maxlen=ROWS)
        self._taken = 0.0
        self._call = LoopingCall(self.take)
        self._call.clock = reactor

    def startService(self) -> None:
        super().startService()
        self._call.start(EVERY)

    def stopService(self) -> None:
        super().stopService()
        if self._call.running:
            self._call.stop()

    def take(self) -> None:
        """Take a row now."""
        reading = self._memory.read()
        found = {curve.name: _total(curve, reading) for curve in CURVES}
        if self._before is not None:
            self._rows.append([
                max(0.0, found[curve.name] - self._before[curve.name]) if curve.counted
                else found[curve.name] for curve in CURVES])
        self._before, self._taken = found, self._now()

    def described(self) -> dict[str, Any]:
        """As JSON can hold it: ``every``, ``taken`` (when the last row was), and ``curves``, of
        each name its values, the oldest first."""
        return {"every": EVERY, "taken": self._taken, "curves": {
            curve.name: [row[place] for row in self._rows]
            for place, curve in enumerate(CURVES)}}


def _total(curve: Curve, reading: Reading) -> float:
    total = 0.0
    for figure in curve.figures:
        for values in figure.values:
            if not curve.outcomes or values[-1] in curve.outcomes:
                value = reading.total(figure, *values)
                assert isinstance(value, float | int)
                total += value
    return total
