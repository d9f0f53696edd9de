"""A delivery whose recipients are served one by one when they cannot be served together.

RFC 2033 §4.2: LMTP gives each recipient an outcome of its own, and one maildrop that fails must not
keep the others from their mail.  A store makes a message durable in all maildrops or fails, so what
fails for all is tried again for each: from a copy of the message, which stays in memory while it is
small.  It costs that copy, for messages with several recipients on listeners for LMTP alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from mailsvc.errors import MailFailure
from mailsvc.mail import Envelope, Recipient, new_id

#: How much of the copy is kept in memory, and read at once, in octets.
_SMALL, _BLOCK = 1 << 18, 1 << 16


class Severally:
    """An ``IDelivery`` but for ``commit``, which has an outcome for each recipient.

    :param begin: opens a delivery to all that an envelope is for.
    """

    def __init__(self, begin: Callable[[Envelope], Any], envelope: Envelope) -> None:
        self._begin = begin
        self._envelope = envelope
        self._together = begin(envelope)
        self._copy = tempfile.SpooledTemporaryFile(_SMALL)  # noqa: SIM115 - closed by its two ends

    def write(self, block: bytes) -> Deferred[None] | None:
        """As ``IDelivery.write``."""
        self._copy.write(block)
        pause: Deferred[None] | None = self._together.write(block)
        return pause

    def commit(self) -> Deferred[list[MailFailure | None]]:
        """Make the message durable for as many recipients as can be; never fails.

        :returns: for each recipient, None or why it does not have the message.
        """
        return Deferred.fromCoroutine(self._commit())

    def abort(self) -> None:
        """As ``IDelivery.abort``."""
        self._copy.close()
        self._together.abort()

    async def _commit(self) -> list[MailFailure | None]:
        recipients = self._envelope.recipients
        with self._copy:
            try:
                await self._together.commit()
            except MailFailure as failure:
                if len(recipients) == 1:
                    return [failure]
            else:
                return [None] * len(recipients)
            return [await self._deliver(recipient) for recipient in recipients]

    async def _deliver(self, recipient: Recipient) -> MailFailure | None:
        delivery = self._begin(
            dataclasses.replace(self._envelope, id=new_id(), recipients=[recipient]))
        self._copy.seek(0)
        try:
            while block := self._copy.read(_BLOCK):
                pause = delivery.write(block)
                if pause is not None:
                    # A failure is repeated by commit.
                    with contextlib.suppress(MailFailure):
                        await pause
            await delivery.commit()
        except MailFailure as failure:
            delivery.abort()
            return failure
        return None
