"""Sending delivery reports, durably, to whoever sent the message.

A report has the null reverse-path, and nothing is ever reported about mail that has it: a bounce
does not bounce (RFC 5321 §6.1).  A report is on its way, in a maildir here or in the queue, before
what it is about is forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mailsvc import fanout
from mailsvc.errors import MailFailure, TemporaryFailure
from mailsvc.interfaces import IMailboxStore, IQueue, IRouter
from mailsvc.mail import NULL_PATH, Account, Address, Envelope, Recipient, Remote, new_id
from mailsvc.queue.dsn import Report
from mailsvc.queue.message import RELAYED, QueuedMessage, QueuedRecipient, queued
from mailsvc.trace import date

_log = Logger("mailsvc.queue")

#: Signs the octets of a message from a domain: what to send before it.
Sign = Callable[[bytes, str], Deferred[bytes]]


class Reports:
    """Reports of one service.

    :param queue: where those to senders elsewhere go.
    :param clock: seconds since the epoch.
    :param sign: the signatures of a report, which is from the domain given.
    """

    def __init__(self, router: IRouter, store: IMailboxStore, queue: IQueue, hostname: str,
                 language: str, clock: Callable[[], float], sign: Sign) -> None:
        self._router = router
        self._store = store
        self._queue = queue
        self._hostname = hostname
        self._language = language
        self._clock = clock
        self._sign = sign

    async def delivered(self, envelope: Envelope, header: bytes) -> None:
        """Tell of success in the maildirs here; raises as :meth:`send`.

        Of what is held it is told later, but for what is "expanded" already.
        """
        message = queued(envelope, self._clock())
        for action, expanded in (("delivered", False), ("expanded", True)):
            await self.send(action, message, [
                QueuedRecipient(each.forward_path, each.forward_path, None, each.notify,
                                each.orcpt, RELAYED, "2.0.0")
                for each in envelope.recipients
                if each.reports_here and each.expanded is expanded
                and (expanded or not envelope.release)], header)

    async def send(self, action: str, message: QueuedMessage,
                   recipients: Sequence[QueuedRecipient], original: bytes,
                   until: float = 0.0) -> None:
        """Tell the sender of *message* that *action* befell *recipients*.

        :param original: as for :meth:`Report.write`.
        :raises TemporaryFailure: it cannot be sent now.
        """
        sender = message.reverse_path
        if sender == NULL_PATH or not recipients:
            if recipients and action == "failed":
                _log.info("{id} dropped: it has no sender to tell", id=message.id)
            return
        id = new_id()
        report = Report(action, message, recipients, self._hostname, self._clock(), until,
                        self._language)
        text = report.write(id, original)
        text = await self._signature(text) + text
        envelope = Envelope(id, NULL_PATH, size=len(text), smtputf8=report.smtputf8,
                            body="7BIT" if text.isascii() else "8BITMIME",
                            # RFC 8689 §5, RFC 6710: the way back is as the way there.
                            requiretls=message.requiretls, priority=message.priority)
        try:
            await self.post(envelope, sender, text)
        except TemporaryFailure:
            raise
        except MailFailure as failure:
            _log.info("{id} dropped: its sender {sender} cannot be told: {reason}",
                          id=message.id, sender=str(sender), reason=failure.text)
            return
        _log.info("{id} reported {action} of {about} to {sender}", id=id, action=action,
                      about=message.id, sender=str(sender))

    async def post(self, envelope: Envelope, to: Address, text: bytes) -> None:
        """Send a message of our own to *to*, here or elsewhere; it is on disk then.

        :param envelope: without recipients.
        :raises MailFailure: it cannot be sent, now (TemporaryFailure) or ever.
        """
        found: Any = self._router.route(to, relay=True)
        envelope.recipients.append(Recipient(
            to, tuple(each for each in found if isinstance(each, Account)),
            tuple(each for each in found if isinstance(each, Remote))))
        delivery: Any = fanout.begin(self._store, self._queue, envelope)
        try:
            pause = delivery.write(
                f"Return-Path: <{envelope.reverse_path}>\r\n"
                f"Received: by {self._hostname} id {envelope.id}\r\n"
                f"\tfor <{to}>; {date(int(self._clock()))}\r\n".encode() + text)
            if pause is not None:
                pause.addErrback(lambda _: None)  # which commit repeats
        except BaseException:
            delivery.abort()
            raise
        await delivery.commit()

    async def _signature(self, text: bytes) -> bytes:
        try:
            return await self._sign(text, self._hostname)
        except Exception:
            # Better a report without than none.
            _log.failure("a report could not be signed")
            return b""
