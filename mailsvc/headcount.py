"""How many connections there are, counted by one process or by several together.

A :class:`Counts` is of one process and exact.  A :class:`Headcount` is memory that a supervisor
makes before its workers: each worker counts in a row of its own (:class:`SharedCounts`) and sees
the sum of all.  So no count needs a lock, and when a worker dies its row is cleared and what it had
is gone.  Only the rate of connections is one sum that all of them change, under a lock.  A
:class:`Crew` is all that they share: the headcount of each protocol, and when each worker last
showed that it is at work.

**How.**  What is counted by address is kept in two tables of :data:`SLOTS` cells; an address has
one cell in each, found by a keyed hash that nobody outside can compute, and its count is the
smaller of the two (a count-min sketch).  So a count is never too small, and it is too large only
when both cells are shared with somebody else who is connected: with 1,000 addresses connected, for
one address in 300.

**Limits.**  Needs Linux, for memfd_create(2).  Nothing here survives the supervisor.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import secrets
import struct
import time
from collections import Counter, OrderedDict
from typing import Protocol

#: Of how many addresses that connected lately the rate is known; the quietest are forgotten.
_RATES = 10_000
#: Some tolerance, for a sum of many fractions.
_TOLERANCE = 1e-6

SLOTS = 16_384


class Counting(Protocol):
    """Counts of connections: in all, and by their *source*, which is "" for no count of its own."""

    def enter(self, source: str) -> tuple[int, int]:
        """Count a connection; how many there are now, and how many of its source (0 for "")."""

    def leave(self, source: str) -> None:
        """A connection that was counted is gone."""

    def is_too_soon(self, source: str, now: float, per_minute: int) -> bool:
        """Whether a connection from *source* is over its rate; if not, it counts for it."""


class Counts:
    """The counts of one process."""

    def __init__(self) -> None:
        self._total = 0
        self._sources: Counter[str] = Counter()
        #: How many connections were made lately, and when that was; the last to come at the end.
        self._rates: OrderedDict[str, tuple[float, float]] = OrderedDict()

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

    def is_too_soon(self, source: str, now: float, per_minute: int) -> bool:
        """See :class:`Counting`."""
        level, since = self._rates.get(source, (0.0, now))
        # No less than nothing has passed when the clock was set back.
        level = max(0.0, level - max(0.0, now - since) * per_minute / 60)
        too_soon = level + 1 > per_minute + _TOLERANCE
        self._rates[source] = level + (not too_soon), now
        self._rates.move_to_end(source)
        if len(self._rates) > _RATES:
            self._rates.popitem(last=False)
        return too_soon


class Headcount:
    """Memory for the counts of so many processes (*rows*); to be made before these are forked.

    :ivar totals: how many connections each process has.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._key = secrets.token_bytes(16)
        # The lock is on this file; it is of a process, and gone with it (fcntl(2)).
        self._file = os.memfd_create("mailsvc-headcount")
        totals, cells, rates = 4 * rows, 2 * 4 * rows * SLOTS, 2 * 8 * SLOTS
        align = -totals % 8
        os.ftruncate(self._file, totals + align + cells + rates)
        memory = memoryview(mmap.mmap(self._file, 0))
        self.totals = memory[:totals].cast("I")
        #: Those of one slot lie side by side, a row each.
        self._cells = memory[totals + align:][:cells].cast("I")
        #: Until when each cell is busy, in seconds: a level that runs down by itself.
        self._busy = memory[totals + align + cells:].cast("d")

    def share(self, row: int) -> SharedCounts:
        """The counts of the process that has this row."""
        return SharedCounts(self, row)

    def total(self) -> int:
        """How many connections all processes have."""
        return sum(self.totals)

    def clear(self, row: int) -> None:
        """The process that had this row is gone, and its connections with it."""
        self.totals[row] = 0
        self._cells[row::self._rows] = memoryview(bytes(8 * SLOTS)).cast("I")

    def change(self, row: int, source: str, step: int) -> tuple[int, int]:
        """Count *step* connections more in a row; the sums over all rows."""
        self.totals[row] += step
        if not source:
            return self.total(), 0
        rows, cells, found = self._rows, self._cells, []
        for slot in self._slots(source):
            start = slot * rows
            cells[start + row] += step
            found.append(sum(cells[start:start + rows]))
        return self.total(), min(found)

    def is_too_soon(self, source: str, now: float, per_minute: int) -> bool:
        """See :class:`Counting`."""
        each = 60 / per_minute
        slots = self._slots(source)
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            # No more than a minute is left when the clock was set back.
            until = [min(max(self._busy[slot], now), now + 60) for slot in slots]
            too_soon = min(until) - now + each > 60 + _TOLERANCE
            for slot, busy in zip(slots, until, strict=True):
                self._busy[slot] = busy + each * (not too_soon)
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
        return too_soon

    def _slots(self, source: str) -> tuple[int, int]:
        digest = hashlib.blake2b(source.encode(), digest_size=8, key=self._key).digest()
        first, second = struct.unpack("=II", digest)
        return first % SLOTS, SLOTS + second % SLOTS


class SharedCounts:
    """The counts of one process among several: it counts for itself and sees all."""

    def __init__(self, headcount: Headcount, row: int) -> None:
        self._headcount = headcount
        self._row = row

    def enter(self, source: str) -> tuple[int, int]:
        """See :class:`Counting`."""
        return self._headcount.change(self._row, source, 1)

    def leave(self, source: str) -> None:
        """See :class:`Counting`."""
        self._headcount.change(self._row, source, -1)

    def is_too_soon(self, source: str, now: float, per_minute: int) -> bool:
        """See :class:`Counting`."""
        return self._headcount.is_too_soon(source, now, per_minute)


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

    def lead(self, row: int) -> int:
        """How many connections a worker has more than the one at work that has the fewest."""
        since, loads = time.monotonic() - _SILENT, [each.totals for each in self.counts.values()]
        own = sum(load[row] for load in loads)
        return own - min((sum(load[other] for load in loads)
                          for other, beat in enumerate(self._beats) if beat > since), default=own)
