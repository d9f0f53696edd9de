"""Sending a stored message to a consumer: all of it, or what TOP asks for.

A short message is written at once.  A long one goes through a pull producer: each time the consumer
asks, one block is read, converted (:mod:`mailsvc.store.text`) and written, so memory stays flat
whatever the peer's pace, and TOP stops reading where it has enough.

Blocks come from a file (:class:`FileBlocks`) or from memory (:class:`MemoryBlocks`).  A file is
read in the reactor's thread where the kernel has the block in its cache, which it can tell
(RWF_NOWAIT); only a block that must come from the disk takes the way through a thread.
"""

from __future__ import annotations

import errno
import os
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IConsumer, IPullProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from mailsvc.store.text import CanonicalText, Top
from mailsvc.store.threads import Threads

#: Messages up to this many octets are written at once.
AT_ONCE = 128 * 1024

#: Octets read at a time from longer ones.
BLOCK = 128 * 1024


#: Where :func:`at_once` reads to: one octet more than it may, to see that there is none.
_scratch = memoryview(bytearray(AT_ONCE + 1))


def at_once(fd: int, octets: int) -> bytes | None:
    """What of the file *fd* is at hand, if not more than *octets*, which ``AT_ONCE`` is at most.

    All of it, or so much as the kernel has in its cache.  For the reactor's thread alone.
    """
    try:
        got = os.preadv(fd, [_scratch[: octets + 1]], 0, os.RWF_NOWAIT)
    except OSError:
        return None
    return bytes(_scratch[:got]) if got <= octets else None


class Blocks(Protocol):
    """A message as stored, block by block."""

    #: Octets not read yet.
    left: int

    def read(self) -> bytes | Deferred[bytes]:
        """The next block, all there is when it is short; b"" at the end.

        Not called again before it has answered.
        """

    def close(self) -> None:
        """Free what is held; may be called while a Deferred of :meth:`read` is pending."""


class MemoryBlocks:
    """The blocks of a message in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.left = len(data)

    def read(self) -> bytes:
        """The next block."""
        start = len(self._data) - self.left
        size = self.left if len(self._data) <= AT_ONCE else min(self.left, BLOCK)
        self.left -= size
        return self._data[start : start + size]

    def close(self) -> None:
        """Nothing is held that would have to be freed."""


class FileBlocks:
    """The blocks of the open file *fd*, which is closed in the end."""

    def __init__(self, fd: int, threads: Threads) -> None:
        self._fd = fd
        self._threads = threads
        self._position = 0
        self._waiting = False
        self._closed = False
        self.left = os.fstat(fd).st_size
        self._buffer = bytearray(self.left if self.left <= AT_ONCE else BLOCK)

    def read(self) -> bytes | Deferred[bytes]:
        """The next block; the Deferred may fail with OSError."""
        size = min(self.left, len(self._buffer))
        try:
            got = os.preadv(self._fd, [memoryview(self._buffer)[:size]], self._position,
                            os.RWF_NOWAIT)
        except OSError:
            got = -1
        # Part of a block means that the rest is on disk only, or that the file became shorter.
        if got == size:
            return self._took(bytes(memoryview(self._buffer)[:size]))
        self._waiting = True
        reading = self._threads.run(os.pread, self._fd, size, self._position)
        return reading.addBoth(self._waited)

    def _waited(self, outcome: bytes | Failure) -> bytes | Failure:
        self._waiting = False
        if self._closed:
            os.close(self._fd)
        if isinstance(outcome, Failure):
            return outcome
        if self.left and not outcome:
            # As if it were complete nobody may have it, and delete it then.
            return Failure(OSError(errno.EIO, "the file became shorter while it was read"))
        return self._took(outcome)

    def _took(self, block: bytes) -> bytes:
        self._position += len(block)
        self.left -= len(block)
        return block

    def close(self) -> None:
        """Close the file, or have it closed when the thread that reads it is back."""
        if not self._closed:
            self._closed = True
            if not self._waiting:
                os.close(self._fd)


@implementer(IPullProducer)
class Retrieval:
    """One message on its way to *consumer*; *lines* as in ``IMaildrop.read``.

    :param octets: how many it will send according to its name, when that is known.
    :ivar finished: fires with None when the last block was written; fails with OSError when a block
        cannot be read, and with CancelledError when it was cancelled or the consumer asked to stop.
    """

    def __init__(self, blocks: Blocks, consumer: IConsumer, lines: int | None,
                 octets: int = 0) -> None:
        self.finished: Deferred[None] = Deferred(lambda _: self._end())
        self._blocks = blocks
        self._consumer = consumer
        self._text = CanonicalText(unchanged=octets == blocks.left)
        self._top = None if lines is None else Top(lines)
        self._registered = False
        self._ended = False
        self._wanted = False  # the consumer asked for a block
        self._pumping = False  # a block is being read or written

    def start(self) -> Deferred[None]:
        """Begin; returns :attr:`finished`."""
        if self._blocks.left <= AT_ONCE:
            self._pump()
        else:
            self._registered = True
            self._consumer.registerProducer(self, False)
        return self.finished

    def resumeProducing(self) -> None:
        """Write one more block, now or when it has been read."""
        self._wanted = True
        if not self._pumping:
            self._pump()

    def stopProducing(self) -> None:
        """Stop for good: the consumer has no use for more."""
        self._registered = False
        self._end()
        if not self.finished.called:
            self.finished.errback(CancelledError())

    def _pump(self) -> None:
        self._pumping = True
        while not self._ended:
            self._wanted = False
            block = self._blocks.read()
            if isinstance(block, Deferred):
                block.addCallbacks(self._arrived, self._failed)
                return
            if not self._more(self._write(block)):
                break
        self._pumping = False

    def _arrived(self, block: bytes) -> None:
        # What was asked for meanwhile is this block.
        self._wanted = False
        more = not self._ended and self._more(self._write(block))
        self._pumping = False
        if more:
            self._pump()

    def _more(self, wrote: bool) -> bool:
        """Whether to go on now, after a block that gave something to write or (*wrote*) nothing."""
        # Nobody asks for more who is not registered with, or who was given nothing.
        return self._wanted or not wrote or not self._registered

    def _write(self, block: bytes) -> bool:
        """Write what *block* gives; return whether that was anything."""
        last = self._blocks.left == 0
        data = self._text.feed(block)
        if last:
            data += self._text.end()
        if self._top is not None:
            data = self._top.cut(data)
            last = last or self._top.complete
        if data:
            self._consumer.write(data)
        if last and not self._ended:
            self._end()
            self.finished.callback(None)
        return bool(data)

    def _failed(self, failure: Failure) -> None:
        if not self._ended:
            self._end()
            self.finished.errback(failure)

    def _end(self) -> None:
        self._ended = True
        self._blocks.close()
        if self._registered:
            self._consumer.unregisterProducer()
