"""How much each source may do in a minute: as much at once, and then as time gives it back.

A leaky bucket for each source.  What is refused does not count: who keeps to the pace from now on
is served from now on.  The buckets are in the memory of one process, or in :class:`Levels`, which
several share.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import secrets
import struct
import weakref
from collections import OrderedDict

from twisted.internet.interfaces import IReactorTime

#: Of how many sources the pace is known; those that were quiet the longest are forgotten.
SOURCES = 10_000
#: Some tolerance, for a sum of many fractions.
_TOLERANCE = 1e-6


class Pace:
    """Holds sources to *per_minute*; 0 for no limit.

    :param levels: what other processes count in as well.
    """

    def __init__(self, per_minute: int, clock: IReactorTime, levels: Levels | None = None) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._shared = levels
        #: How much was done lately, and when that was; the last to come at the end.
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def exceeds(self, source: str, amount: int = 1) -> bool:
        """Whether *amount* more by *source* is too much; if not, it counts."""
        if not self.per_minute:
            return False
        now = self._clock.seconds()
        if self._shared is not None:
            return self._shared.exceeds(source, amount, self.per_minute, now)
        level, since = self._levels.get(source, (0.0, now))
        # No less than nothing has passed when the clock was set back.
        level = max(0.0, level - max(0.0, now - since) * self.per_minute / 60)
        exceeds = level + amount > self.per_minute + _TOLERANCE
        self._levels[source] = level + (0 if exceeds else amount), now
        self._levels.move_to_end(source)
        if len(self._levels) > SOURCES:
            self._levels.popitem(last=False)
        return exceeds


class Sketch:
    """Where in two rows of *slots* cells something stands: one cell in each.

    The hash is keyed, so nobody outside can look for two names with the same cells (a count-min
    sketch).  To be made before the processes that share what is in the cells.
    """

    def __init__(self, slots: int) -> None:
        self.cells = 2 * slots
        self._slots = slots
        self._key = secrets.token_bytes(16)

    def find(self, name: str) -> tuple[int, int]:
        """The cells of *name*."""
        digest = hashlib.blake2b(name.encode(), digest_size=8, key=self._key).digest()
        first, second = struct.unpack("=II", digest)
        return first % self._slots, self._slots + second % self._slots


class Levels:
    """The buckets of all sources in shared memory; to be made before the processes that share it.

    A source is in two cells, and at most as full as the less full one.  So none ever does more than
    it may; less, only when others fill both its cells: with 1,000 sources, one in 300 may see that.
    """

    def __init__(self, slots: int = 16_384) -> None:
        self._sketch = Sketch(slots)
        # The lock is on this file; it is of a process, and gone with it (fcntl(2)).
        self._file = os.memfd_create("mailsvc-levels")
        weakref.finalize(self, os.close, self._file)
        os.ftruncate(self._file, 8 * self._sketch.cells)
        #: Until when, in seconds, each runs down.
        self._until = memoryview(mmap.mmap(self._file, 0)).cast("d")

    def exceeds(self, source: str, amount: int, per_minute: int, now: float) -> bool:
        """As :meth:`Pace.exceeds`."""
        cells, cost = self._sketch.find(source), 60 * amount / per_minute
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            # No more than a minute is left when the clock was set back.
            until = [min(max(self._until[cell], now), now + 60) for cell in cells]
            exceeds = min(until) - now + cost > 60 + _TOLERANCE
            for cell, before in zip(cells, until, strict=True):
                self._until[cell] = before + (0 if exceeds else cost)
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
        return exceeds
