"""The way of one message from the maildrop to the peer, at the peer's pace.

The maildrop writes to a :class:`Retrieval`, which is its ``IConsumer``; a short message is written
at once, a longer one by a producer of either kind.  The transport's own producer is the connection,
so the transport's pace is passed on here.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer
from zope.interface import implementer


class Peer(Protocol):
    """What is asked of the connection.

    :ivar writable: whether the peer takes what it is sent.
    """

    writable: bool

    def pass_on(self, block: bytes) -> None:
        """Send *block* of the message; this may change *writable*."""


@implementer(IConsumer)
class Retrieval:
    """One message on its way from the maildrop to the peer, at the peer's pace.

    :ivar reading: what ``IMaildrop.read`` returned.
    :ivar stopped: whether nobody wants the message any more.
    """

    __slots__ = ("_asking", "_came", "_peer", "_producer", "_streaming", "reading", "stopped")

    def __init__(self, peer: Peer) -> None:
        self.reading: Deferred[None] | None = None
        self.stopped = False
        self._peer = peer
        self._producer: Any = None  # IPushProducer | IPullProducer | None
        self._streaming = False
        #: Amid _ask: that it is, and whether a block has come since it last asked.
        self._asking = False
        self._came = False

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self._producer is not None:
            raise RuntimeError("a producer is registered already")
        self._producer, self._streaming = producer, streaming
        if not streaming:
            self._ask()
        elif not self._peer.writable:
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        self._producer = None

    def write(self, data: bytes) -> None:
        if not self.stopped:
            self._peer.pass_on(data)
            self._came = True
            if not self._streaming:
                self._ask()

    def pause(self) -> None:
        """The peer has enough for now."""
        if self._producer is not None and self._streaming:
            self._producer.pauseProducing()

    def resume(self) -> None:
        """The peer takes more."""
        if not self._streaming:
            self._ask()
        elif self._producer is not None:
            self._producer.resumeProducing()

    def stop(self) -> None:
        """Nobody wants the message any more."""
        self.stopped = True
        if self.reading is not None:
            self.reading.cancel()

    def _ask(self) -> None:
        """Ask a pull producer for blocks, as long as they come at once and the peer takes them.

        A block that must first be read from a disk comes later; then ``write`` goes on asking.
        """
        if self._asking:
            return
        self._asking = self._came = True
        while self._came and self._producer is not None and self._peer.writable:
            self._came = False
            self._producer.resumeProducing()
        self._asking = False
