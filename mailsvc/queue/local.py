"""Delivering here what was held in the queue until its release.

Nobody waits for an answer any more: what cannot be delivered is tried again, or returned, as if
another host had said so.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mailsvc import fanout
from mailsvc.errors import EnhancedStatus, MailFailure, PermanentFailure
from mailsvc.interfaces import IMailboxStore, IQueue, IRouter
from mailsvc.mail import Account, Envelope, Recipient, Remote, new_id
from mailsvc.queue.job import Job, Result
from mailsvc.queue.message import FAILED, RELAYED, WAITING, QueuedRecipient

_log = Logger("mailsvc.queue")


class Local:
    """Delivers to the mailboxes of one service.

    :param queue: where mail goes for a mailbox that has become an alias of one elsewhere.
    """

    def __init__(self, router: IRouter, store: IMailboxStore, queue: IQueue) -> None:
        self._router: Any = router
        self._store: Any = store
        self._queue = queue

    async def deliver(self, job: Job) -> list[Result]:
        """Deliver *job*; a result for each recipient."""
        job.begun = True
        for each in job.recipients:
            job.conclude([await self._deliver(each, job)])
        job.finish()
        return job.results

    async def _deliver(self, recipient: QueuedRecipient, job: Job) -> Result:
        try:
            await self._put(recipient, job)
        except MailFailure as failure:
            return Result(recipient, FAILED if isinstance(failure, PermanentFailure) else WAITING,
                          failure.status, failure.text)
        return Result(recipient, RELAYED, EnhancedStatus(2, 0, 0), "delivered here")

    async def _put(self, recipient: QueuedRecipient, job: Job) -> None:
        found = await _settled(self._router.route(recipient.address))
        envelope = Envelope(
            # Its own, for the store takes each once, and an attempt may follow another.
            new_id(), job.reverse_path, size=job.content.size, body=job.message.body,
            smtputf8=job.message.smtputf8, requiretls=job.message.requiretls,
            ret=job.message.ret, envid=job.message.envid, priority=job.message.priority)
        envelope.recipients.append(Recipient(
            recipient.address, tuple(each for each in found if isinstance(each, Account)),
            tuple(each for each in found if isinstance(each, Remote)), recipient.notify,
            recipient.orcpt))
        for account in envelope.accounts():
            await _settled(self._store.room(account, envelope.size))
        delivery: Any = fanout.begin(self._store, self._queue, envelope)
        try:
            # RFC 5321 §4.4: the queue keeps it off, and here the message's way ends.
            await _settled(delivery.write(f"Return-Path: <{job.reverse_path}>\r\n".encode()))
            content = job.content.message(b"")
            for block in (content,) if isinstance(content, bytes) else content:
                await _settled(delivery.write(block))
        except BaseException:
            delivery.abort()
            raise
        await delivery.commit()
        _log.info("{id} delivered here as {delivered} recipient={recipient} accounts={accounts}",
                  id=job.message.id, delivered=envelope.id, recipient=str(recipient.address),
                  accounts=[account.name for account in envelope.accounts()])


async def _settled(answer: Any) -> Any:
    return await answer if isinstance(answer, Deferred) else answer
