"""What a store's journal says: a message was put into maildirs, messages were removed from one.

A place is the path of a file below the root of the store; it stays true when the root is moved.

::

    "D", number of places (2), length (2) and octets of each, the message
    "R", number of places (2), length (2) and octets of each
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import NamedTuple

_COUNT = struct.Struct("<cH")
_LENGTH = struct.Struct("<H")


class Entry(NamedTuple):
    """One record.

    :ivar places: paths in new/ that the message was given, or whose base names were removed,
        wherever in the maildir they lay.
    :ivar message: what was delivered; None for a removal.
    """

    places: tuple[bytes, ...]
    message: bytes | None


def delivered(places: Collection[bytes], message: bytes) -> bytes:
    """The record of a delivery."""
    return _pack(b"D", places) + message


def removed(places: Collection[bytes]) -> bytes:
    """The record of a removal; at most 65,535 places."""
    return _pack(b"R", places)


def parse(record: bytes) -> Entry:
    """What *record* says.

    :raises ValueError: when it is none of ours.
    """
    try:
        kind, count = _COUNT.unpack_from(record)
        at = _COUNT.size
        places = []
        for _ in range(count):
            [length] = _LENGTH.unpack_from(record, at)
            at += _LENGTH.size + length
            places.append(record[at - length : at])
    except struct.error:
        raise ValueError("an entry that was cut short") from None
    if kind not in (b"D", b"R") or at > len(record):
        raise ValueError(f"not an entry: {record[:16]!r}")
    return Entry(tuple(places), record[at:] if kind == b"D" else None)


def _pack(kind: bytes, places: Collection[bytes]) -> bytes:
    return b"".join((_COUNT.pack(kind, len(places)),
                     *(_LENGTH.pack(len(place)) + place for place in places)))
