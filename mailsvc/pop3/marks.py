"""An open maildrop less the messages marked as deleted: what STAT, LIST and UIDL speak of.

Marks cost an octet a message, and nothing before the first one is made.  No operation but the
listings and ``deleted`` takes longer in a larger maildrop; those come in blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from typing import Protocol, TypeVar

#: Lines in a block of a listing: 8 to 80 KiB.
BLOCK_LINES = 1024

_Item = TypeVar("_Item")


class Maildrop(Protocol):
    """The part of :class:`mailsvc.interfaces.IMaildrop` that is used here."""

    sizes: Sequence[int]
    octets: int

    def uidl(self, number: int) -> bytes:
        """The unique-id of a message."""

    def uidls(self, first: int, end: int) -> list[bytes]:
        """The unique-ids of the messages from *first* up to before *end*."""

    def text(self, number: int) -> bytes | None:
        """A message that is short and at hand, or None."""


class MarkedMaildrop:
    """*maildrop* with deletion marks; messages are numbered from 1 (RFC 1939 §5).

    :ivar total: how many messages there are, marked ones counted.
    """

    __slots__ = ("_maildrop", "_marked", "_marked_octets", "_unmarked", "total")

    def __init__(self, maildrop: Maildrop) -> None:
        self.total = len(maildrop.sizes)
        self._maildrop = maildrop
        #: One octet a message, 0 for a marked one; None while none is.
        self._unmarked: bytearray | None = None
        self._marked = 0
        self._marked_octets = 0

    @property
    def count(self) -> int:
        """How many messages are not marked."""
        return self.total - self._marked

    @property
    def octets(self) -> int:
        """The sizes of the unmarked messages, summed."""
        return self._maildrop.octets - self._marked_octets

    @property
    def deleted(self) -> frozenset[int]:
        """The numbers of the marked messages."""
        if self._unmarked is None:
            return frozenset()
        return frozenset(n for n, unmarked in enumerate(self._unmarked, 1) if not unmarked)

    def is_marked(self, number: int) -> bool:
        """Whether message *number*, 1 to *total*, is marked."""
        return self._unmarked is not None and not self._unmarked[number - 1]

    def mark(self, number: int) -> None:
        """Mark message *number*, which is not marked."""
        if self._unmarked is None:
            self._unmarked = bytearray(b"\1") * self.total
        self._unmarked[number - 1] = 0
        self._marked += 1
        self._marked_octets += self._maildrop.sizes[number - 1]

    def unmark_all(self) -> None:
        """Forget all marks."""
        self._unmarked = None
        self._marked = self._marked_octets = 0

    def size(self, number: int) -> int:
        """The size of message *number* in octets."""
        return self._maildrop.sizes[number - 1]

    def uidl(self, number: int) -> bytes:
        """The unique-id of message *number*."""
        return self._maildrop.uidl(number)

    def text(self, number: int) -> bytes | None:
        """Message *number*, if it is short and at hand: CRLF lines, not dot-stuffed."""
        return self._maildrop.text(number)

    def sizes(self) -> Iterator[bytes]:
        """The lines of LIST, in blocks that are made one by one."""
        for numbers in self._blocks():
            sizes = self._maildrop.sizes[numbers.start - 1 : numbers.stop - 1]
            pairs = self._only_unmarked(numbers, zip(numbers, sizes, strict=True))
            yield "".join(map("%d %d\r\n".__mod__, pairs)).encode("ascii")

    def unique_ids(self) -> Iterator[bytes]:
        """The lines of UIDL, in blocks that are made one by one."""
        for numbers in self._blocks():
            ids = self._maildrop.uidls(numbers.start, numbers.stop)
            pairs = self._only_unmarked(numbers, zip(numbers, ids, strict=True))
            yield b"".join(map(b"%d %b\r\n".__mod__, pairs))

    def _blocks(self) -> Iterator[range]:
        for first in range(1, self.total + 1, BLOCK_LINES):
            yield range(first, min(first + BLOCK_LINES, self.total + 1))

    def _only_unmarked(self, numbers: range, items: Iterable[_Item]) -> Iterable[_Item]:
        """Those of *items*, one for each of *numbers*, whose message is not marked."""
        if self._unmarked is None:
            return items
        return compress(items, self._unmarked[numbers.start - 1 : numbers.stop - 1])
