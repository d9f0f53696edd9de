"""How many connections there are, counted by one process or by several together.

A :class:`Counts` is of one process and exact.  A :class:`Headcount` is memory that a supervisor
makes before its workers: each worker counts in a row of its own (:class:`SharedCounts`) and sees
the sum of all.  So no count needs a lock, and when a worker dies its row is cleared and what it had
is gone.  A :class:`Crew` is all that workers share: the headcount of each protocol, and when each
worker last showed that it is at work.

**How.**  What is counted by address stands in the cells of a :class:`mailsvc.pace.Sketch`: an
address has two, and its count is the smaller.  So a count is never too small, and it is too large
only when both cells are shared with somebody else who is connected: with 1,000 addresses connected,
for one address in 300.

**Limits.**  Needs Linux, for memfd_create(2).  Nothing here survives the supervisor.
"""

from __future__ import annotations

import mmap
import time
from collections import Counter
from typing import Protocol

from mailsvc.pace import Levels, Sketch

_SLOTS = 16_384


class Counting(Protocol):
    """Counts of connections: in all, and by their *source*, which is "" for no count of its own.

    :ivar connections: what the pace of connections is shared in, if it is.
    :ivar commands: the same of commands.
    """

    connections: Levels | None
    commands: Levels | None

    def enter(self, source: str) -> tuple[int, int]:
        """Count a connection; how many there are now, and how many of its source (0 for "")."""

    def leave(self, source: str) -> None:
        """A connection that was counted is gone."""


class Counts:
    """The counts of one process."""

    connections = commands = None

    def __init__(self) -> None:
        self._total = 0
        self._sources: Counter[str] = Counter()

    def enter(self, source: str) -> tuple[int, int]:
        """See :class:`Counting`."""
        self._total += 1
        if not source:
            return self._total, 0
        self._sources[source] += 1
        return self._total, self._sources[source]

    def leave(self, source: str) -> None:
        """See :class:`Counting`."""
        self._total -= 1
        if source:
            self._sources[source] -= 1
            if not self._sources[source]:
                del self._sources[source]


class Headcount:
    """Memory for the counts of so many processes (*rows*); to be made before these are forked.

    :ivar totals: how many connections each process has.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._sketch = Sketch(_SLOTS)
        self.connections, self.commands = Levels(), Levels()
        self.totals = memoryview(mmap.mmap(-1, 4 * rows)).cast("I")
        #: Those of one cell lie side by side, a row each.
        self._cells = memoryview(mmap.mmap(-1, 4 * rows * self._sketch.cells)).cast("I")

    def share(self, row: int) -> SharedCounts:
        """The counts of the process that has this row."""
        return SharedCounts(self, row)

    def total(self) -> int:
        """How many connections all processes have."""
        return sum(self.totals)

    def clear(self, row: int) -> None:
        """The process that had this row is gone, and its connections with it."""
        self.totals[row] = 0
        self._cells[row::self._rows] = memoryview(bytes(4 * self._sketch.cells)).cast("I")

    def change(self, row: int, source: str, step: int) -> tuple[int, int]:
        """Count *step* connections more in a row; the sums over all rows."""
        self.totals[row] += step
        if not source:
            return self.total(), 0
        rows, cells, found = self._rows, self._cells, []
        for cell in self._sketch.find(source):
            start = cell * rows
            cells[start + row] += step
            found.append(sum(cells[start:start + rows]))
        return self.total(), min(found)


class SharedCounts:
    """The counts of one process among several: it counts for itself and sees all."""

    def __init__(self, headcount: Headcount, row: int) -> None:
        self._headcount = headcount
        self._row = row
        self.connections: Levels | None = headcount.connections
        self.commands: Levels | None = headcount.commands

    def enter(self, source: str) -> tuple[int, int]:
        """See :class:`Counting`."""
        return self._headcount.change(self._row, source, 1)

    def leave(self, source: str) -> None:
        """See :class:`Counting`."""
        self._headcount.change(self._row, source, -1)


#: After so many seconds without a sign of life, a worker takes no connections from the others.
_SILENT = 3.0


class Crew:
    """What so many workers (*rows*) share; a worker is a row of it."""

    def __init__(self, rows: int) -> None:
        self.counts = {protocol: Headcount(rows) for protocol in ("smtp", "pop3")}
        #: When each was last at work, by time.monotonic(); 0 for one that takes no connections.
        self._beats = memoryview(mmap.mmap(-1, 8 * rows)).cast("d")

    def clear(self, row: int) -> None:
        """Nobody has this row any more."""
        self._beats[row] = 0
        for headcount in self.counts.values():
            headcount.clear(row)

    def beat(self, row: int) -> None:
        """The worker is at work."""
        self._beats[row] = time.monotonic()

    def rest(self, row: int) -> None:
        """The worker takes no more connections."""
        self._beats[row] = 0

    def silence(self, row: int) -> float:
        """For how many seconds a worker that takes connections has not been at work."""
        beat = self._beats[row]
        return time.monotonic() - beat if beat else 0.0

    def leads(self, row: int) -> bool:
        """Whether a worker has clearly more connections than the one at work that has the fewest.

        By a quarter, and one: closer than that is no matter, and waiting would cost more.
        """
        since, loads = time.monotonic() - _SILENT, [each.totals for each in self.counts.values()]
        own = sum(load[row] for load in loads)
        fewest = min((sum(load[other] for load in loads)
                      for other, beat in enumerate(self._beats) if beat > since), default=own)
        return own - fewest > own // 4
