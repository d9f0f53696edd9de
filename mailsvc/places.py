"""Where each process stands among the workers: the rows of what they share in memory.

A worker has a row of its own from its fork until it was waited for; then another may have it.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from mailsvc.figures import Figures
from mailsvc.headcount import Crew


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process stands among the workers.

    :ivar crew: what it shares with them.
    :ivar figures: where they count.
    :ivar row: which of them it is.
    :ivar first: whether it is the one that does what is to be done once.
    :ivar workers: how many of them serve at once.
    """

    crew: Crew
    figures: Figures
    row: int
    first: bool
    workers: int


class Places:
    """Places for so many processes (*rows*); to be made before these are forked.

    :ivar figures: its last row is nobody's place, but for who gives the places.
    """

    def __init__(self, rows: int) -> None:
        self.crew = Crew(rows)
        self.figures = Figures(rows + 1)
        #: The rows that are free, the first of which is taken.
        self._free = list(range(rows))

    def __len__(self) -> int:
        """How many are free."""
        return len(self._free)

    def take(self, first: bool, workers: int) -> Place:
        """One that was free, for a process that is at work from now on; as :class:`Place` has it.
        """
        row = self._free.pop(0)
        self.crew.beat(row)
        return Place(self.crew, self.figures, row, first, workers)

    def free(self, place: Place) -> None:
        """Its process is gone, or never came to be."""
        self.crew.clear(place.row)
        self.figures.clear(place.row)
        bisect.insort(self._free, place.row)
