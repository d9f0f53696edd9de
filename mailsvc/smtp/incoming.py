"""One message on its way from an SMTP session to the store."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred

from mailsvc.mail import Envelope

#: How much of a message a report of success may need, and is looked through for its Message-ID.
_HEADER_OCTETS = 65_536

#: RFC 5322 §3.6.4; its line may be folded before what it says.
_MESSAGE_ID = re.compile(rb"(?im)^message-id[ \t]{0,50}:[ \t]*(?:\r\n[ \t]+)?(<[^<>\r\n]{1,996}>)")


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
    :ivar since: when it began, by time.monotonic_ns().
    """

    def __init__(self, envelope: Envelope, delivery: Any, filters: Sequence[Filter] = ()) -> None:
        self.envelope = envelope
        self._delivery = delivery
        self._filters = filters
        self._reports = any(each.reports_here for each in envelope.recipients)
        self._begun = False
        self._in_header = True
        self._looked_at = 0
        self.header = b""
        self.since = time.monotonic_ns()

    def _give(self, block: bytes) -> Deferred[None] | None:
        if not self._begun:
            self._begun = True
            if block.startswith((b" ", b"\t")):
                # Or a client could go on with the field that we have written above.
                block = b"\r\n" + block
        if self._in_header:
            self._look_for_message_id(block)
        if self._reports and len(self.header) < _HEADER_OCTETS:
            self.header += block[:_HEADER_OCTETS]
        return self._delivery.write(block)

    def _look_for_message_id(self, block: bytes) -> None:
        # Blocks are of whole lines.  A field that is folded between two of them is not found,
        # which only means that nobody will find the message by it.
        end = 0 if block.startswith(b"\r\n") else block.find(b"\r\n\r\n")
        self._looked_at += len(block)
        self._in_header = end < 0 and self._looked_at < _HEADER_OCTETS
        found = _MESSAGE_ID.search(block, 0, len(block) if end < 0 else end)
        if found is not None and not self.envelope.message_id:
            self.envelope.message_id = found[1].decode("utf-8", "replace")

    def write(self, block: bytes) -> Deferred[None] | None:
        """Take a block; pause the sender until what is returned fires.

        :raises mailsvc.errors.MailFailure: the message is to be refused.
        """
        for each in self._filters:
            block = each.feed(block)
        return self._give(block) if block else None

    def put(self, block: bytes) -> Deferred[None] | None:
        """Take a block that no filter is to see, such as the trace header.

        What is written below does not continue its last field, whatever it begins with.
        """
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
