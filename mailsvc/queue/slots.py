"""So many at once, and the most urgent first."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, succeed

#: How urgent somebody is now; it may change while they wait.
Urgency = Callable[[], int]


class Slots:
    """*most* slots.  Who waits gets one by urgency, and of equals the one who came first."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting: list[tuple[Urgency, Deferred[None]]] = []

    def acquire(self, urgency: Urgency) -> Deferred[None]:
        """Fires when there is a slot, which is the caller's then."""
        if self._free:
            self._free -= 1
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._waiting.append((urgency, waiting))
        return waiting

    def release(self) -> None:
        """Give a slot back."""
        if not self._waiting:
            self._free += 1
            return
        first = max(range(len(self._waiting)), key=lambda place: self._waiting[place][0]())
        self._waiting.pop(first)[1].callback(None)

    def wanted_by_more_than(self, urgency: int) -> bool:
        """Whether somebody more urgent waits."""
        return any(each() > urgency for each, _ in self._waiting)
