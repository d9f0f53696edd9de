"""What the journals of processes that are gone say, taken together.

A removal counts wherever it stands in whichever process' journal, because no name is used twice.
So all journals are read at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from twisted.logger import Logger

from mailsvc.journal import Orphan
from mailsvc.store import entries

_log = Logger()


@dataclass(slots=True)
class Replay:
    """What they say.

    :ivar entries: how many they have.
    :ivar rebooted: whether the machine was started anew since any of them was written.
    :ivar places: all that they name.
    :ivar delivered: where messages were put that were not removed.
    :ivar lost: what a power loss may have undone: place -> content, or None for what was removed.
    """

    entries: int = 0
    rebooted: bool = False
    places: set[bytes] = field(default_factory=set)
    delivered: set[bytes] = field(default_factory=set)
    lost: dict[bytes, bytes | None] = field(default_factory=dict)


def read(orphans: Sequence[Orphan], check: Callable[[bytes], object]) -> Replay:
    """What *orphans* say; an entry that makes no sense is logged and left out.

    :param check: raises ValueError where a place is none.
    """
    found = [(orphan, entry) for orphan in orphans for record in orphan.payloads
             if (entry := _parsed(orphan, record, check)) is not None]
    # What a settled segment delivered is durable; its removals may be of others' deliveries.
    every = [(orphan.rebooted, entry) for orphan, entry in found
             if not (orphan.settled and entry.message is not None)]
    gone = {place for _, entry in every if entry.message is None for place in entry.places}
    replay = Replay(len(every), any(orphan.rebooted for orphan in orphans))
    for rebooted, entry in every:
        replay.places.update(entry.places)
        if entry.message is not None:
            replay.delivered |= set(entry.places) - gone
        if rebooted:
            replay.lost.update((place, None if place in gone else entry.message)
                               for place in entry.places)
    return replay


def content_of(path: bytes) -> bytes | None:
    """What is in the file *path*; None where there is none."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _parsed(orphan: Orphan, record: bytes, check: Callable[[bytes], object]
            ) -> entries.Entry | None:
    try:
        entry = entries.parse(record)
        for place in entry.places:
            check(place)
    except ValueError as error:
        _log.error("{path!r} has an entry that is left out: {error}",
                   path=orphan.path, error=error)
        return None
    return entry
