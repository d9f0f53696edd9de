"""A message that is to be sent: bytes, a file, or whatever gives out blocks.

:class:`Source` hides which of them it is: it tells what of a message an envelope has to declare
(its size, whether it needs 8BITMIME or SMTPUTF8, whether its lines end as they should) where that
can be known beforehand, and gives out its blocks, once or again.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from mailsvc.headers import HeaderScan
from mailsvc.wire import CRLF, ChunkReader, LineEnds, LineProof

#: A message: lines ending in CRLF.  All but bytes are read as they are sent, so memory stays flat.
Message = bytes | BinaryIO | Iterable[bytes] | AsyncIterable[bytes]

#: How many octets are read, and sent, at a time.
BLOCK_OCTETS = 65_536


@dataclass(frozen=True, slots=True)
class Form:
    """What a message looks like.

    :ivar size: octets as they are sent, the CRLF counted that a last line may lack.
    :ivar eight_bit: whether there is more than ASCII in it.
    :ivar utf8_header: whether there is in its header or one of its parts', which needs SMTPUTF8
        (RFC 6532).
    :ivar stray: whether there is a bare CR or LF.
    """

    size: int
    eight_bit: bool
    utf8_header: bool
    stray: bool


class Source:
    """A message.

    :param message: a :data:`Message`.
    :param normalize: whether bare CR and LF are made CRLF.
    """

    def __init__(self, message: Any, *, normalize: bool = False) -> None:
        if isinstance(message, str):
            raise TypeError("a message is bytes; encode it first")
        if isinstance(message, bytearray | memoryview):
            message = bytes(message)
        self._message: Any = message
        self._normalize = normalize
        self._start = 0
        #: Whether :meth:`look` has found the lines of its one block to end as they should.
        self.proven = False
        #: Whether it can be read again.
        self.repeatable = isinstance(message, bytes)
        if hasattr(message, "read"):
            self.repeatable = self._message.seekable()
            if self.repeatable:
                self._start = self._message.tell()

    @property
    def block(self) -> bytes | None:
        """The whole message, if it is in memory, as it is to be sent, and no more than a block."""
        message = self._message
        if isinstance(message, bytes) and len(message) <= BLOCK_OCTETS and not self._normalize:
            return message
        return None

    def look(self) -> Form | None:
        """Its form; None if that is not known before it has been sent."""
        if not self.repeatable:
            return None
        block = self.block
        if block is not None and block.isascii():  # nearly always
            proof = LineProof()
            proof.feed(block)
            self.proven = not proof.stray
            return Form(len(block) + (0 if proof.ends_in_crlf else 2), False, False, proof.stray)
        size, eight_bit = 0, False
        proof, cut, headers = LineProof(), ChunkReader(), HeaderScan()
        for raw in self._synchronous():
            block = cut.feed(raw)
            size += len(block)
            proof.feed(block)
            headers.feed(block)
            eight_bit = eight_bit or not block.isascii()
        rest = cut.finish()
        proof.feed(rest)
        size += len(rest) + (0 if proof.ends_in_crlf else 2)
        return Form(size, eight_bit, not headers.ascii, proof.stray)

    async def blocks(self) -> AsyncIterator[bytes]:
        """The message, none of its blocks empty."""
        if isinstance(self._message, AsyncIterable):
            ends = LineEnds() if self._normalize else None
            async for raw in self._message:
                block = ends.feed(raw) if ends is not None else raw
                if block:
                    yield block
            if ends is not None and (rest := ends.finish()):
                yield rest
            return
        for block in self._synchronous():
            yield block

    async def whole_lines(self, octets: int) -> AsyncIterator[tuple[bytes, bool]]:
        """The message in chunks of about so many *octets*, and whether each is the last.

        Its last line ends in CRLF: what DATA does by itself, BDAT does not.
        """
        held: list[bytes] = []
        length, end = 0, CRLF
        async for block in self.blocks():
            if length >= octets:
                yield b"".join(held), False
                held, length = [], 0
            held.append(block)
            length += len(block)
            end = (end + block)[-2:]
        yield b"".join(held) + (b"" if end == CRLF else CRLF), True

    def _synchronous(self) -> Iterator[bytes]:
        assert not isinstance(self._message, AsyncIterable)
        ends = LineEnds() if self._normalize else None
        for raw in self._raw():
            block = ends.feed(raw) if ends is not None else raw
            if block:
                yield block
        if ends is not None and (rest := ends.finish()):
            yield rest

    def _raw(self) -> Iterator[bytes]:
        message = self._message
        if isinstance(message, bytes):
            for at in range(0, len(message), BLOCK_OCTETS):
                yield message[at:at + BLOCK_OCTETS]
        elif hasattr(message, "read"):
            if self.repeatable:
                message.seek(self._start)
            while block := message.read(BLOCK_OCTETS):
                yield block
        else:
            yield from message
