"""One message on its way from an SMTP session to the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from mailsvc.mail import Envelope

#: How much of a message a report of success may need.
_HEADER_OCTETS = 65_536


class Filter(Protocol):
    """What a message passes through, block by block."""

    def feed(self, block: bytes) -> bytes:
        """Take a block and return a block, perhaps empty."""

    def finish(self) -> bytes | Deferred[bytes]:
        """The message has ended: what is still held."""


class Incoming:
    """A message that has begun.

    :param delivery: the ``IDelivery`` that it goes to, or a ``Severally``.
    :param filters: what its blocks pass through on the way, in this order.
    :ivar envelope: whose message it is.
    :ivar header: its beginning, with the header, where its sender is to be told of success.
    """

    def __init__(self, envelope: Envelope, delivery: Any, filters: Sequence[Filter] = ()) -> None:
        self.envelope = envelope
        self._delivery = delivery
        self._filters = filters
        self._reports = any(each.reports_here for each in envelope.recipients)
        self.header = b""

    def _give(self, block: bytes) -> Deferred[None] | None:
        if self._reports and len(self.header) < _HEADER_OCTETS:
            self.header += block[:_HEADER_OCTETS]
        return self._delivery.write(block)

    def write(self, block: bytes) -> Deferred[None] | None:
        """Take a block; pause the sender until what is returned fires.

        :raises mailsvc.errors.MailFailure: the message is to be refused.
        """
        for each in self._filters:
            block = each.feed(block)
        return self._give(block) if block else None

    def put(self, block: bytes) -> Deferred[None] | None:
        """Take a block that no filter is to see, such as the trace header."""
        return self._delivery.write(block)

    async def finish(self) -> None:
        """The message is whole: let the filters give out what they hold.

        :raises mailsvc.errors.MailFailure: the message is to be refused; abort it.
        """
        for position, each in enumerate(self._filters):
            rest = each.finish()
            if isinstance(rest, Deferred):
                rest = await rest
            for later in self._filters[position + 1:]:
                rest = later.feed(rest)
            pause = self._give(rest) if rest else None
            if pause is not None:
                await pause

    def commit(self) -> Deferred[Any]:
        """As ``IDelivery.commit``, or as :meth:`mailsvc.smtp.severally.Severally.commit`."""
        return self._delivery.commit()

    def abort(self) -> None:
        """Forget the message."""
        self._delivery.abort()
