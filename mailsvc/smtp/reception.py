"""The mail transactions of a listener: who may send to whom, and what becomes of the message.

Each step ends in the reply to it and, where mail was turned away, dropped or taken, in a line of
log and a count.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mailsvc import fanout
from mailsvc.errors import MailboxFull, MailFailure, MessageTooLarge, RelayDenied
from mailsvc.figures import Share
from mailsvc.interfaces import IMailboxStore, IQueue, IRouter
from mailsvc.mail import Account, Envelope, Recipient, Remote
from mailsvc.smtp import replies
from mailsvc.smtp.events import RcptTo
from mailsvc.smtp.handling import date_time
from mailsvc.smtp.incoming import Filter, Incoming
from mailsvc.smtp.limits import SMTPSettings
from mailsvc.smtp.mode import SUBMISSION, Mode
from mailsvc.smtp.replies import Reply, from_failure
from mailsvc.smtp.severally import Severally
from mailsvc.smtp.tally import Tally
from mailsvc.submission.agent import SubmissionAgent
from mailsvc.submission.senders import Submitter

_REFUSED = " client={client} connection={connection}: {reply}"
_DROPPED = ("{id} dropped sender={sender} recipients={recipients} client={client} "
            "connection={connection}: {reason}")
#: A mailbox took no more, which is no fault here.
_NO_ROOM = (MailboxFull, MessageTooLarge)
_ABOUT = (
    "sender={sender} recipients={recipients} size={size} client={client} hello={hello} "
    "connection={connection}"
)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a transaction comes from.

    :ivar connection: the id of the connection.
    :ivar client: the peer's IP address, or "" on a Unix socket.
    :ivar hello: what it called itself.
    :ivar submitter: who submits mail there, or None where anybody may send.
    :ivar user: who that is, for the log.
    :ivar tls: what protects the connection, as Received tells it; or empty.
    """

    connection: str
    client: str
    hello: str
    submitter: Submitter | None
    user: str
    tls: str = ""


class Reception:
    """Takes mail for a listener's connections.

    :param store: where accepted mail goes.
    :param router: which recipients are accepted.
    :param mode: what the listener is for.
    :param agent: holds submissions to what they may be.
    :param queue: where mail for other hosts goes; without one there is none.
    :param share: where is counted.
    :param log: where is told.
    """

    def __init__(
        self, store: IMailboxStore, router: IRouter, settings: SMTPSettings, mode: Mode,
        agent: SubmissionAgent | None, queue: IQueue | None, share: Share, log: Logger,
    ) -> None:
        self._store = store
        self._router = router
        self._priority_most = settings.priority_most
        self._lmtp = mode.lmtp
        self._agent = agent
        self._queue = queue
        # Where mail is fetched none is taken, and so nothing counted.
        self._tally = Tally(share, SUBMISSION.name if mode.odmr else mode.name)
        self._log = log

    # ---- the envelope ----

    def admit_sender(self, origin: Origin, envelope: Envelope) -> Reply:
        """The reply to MAIL; holds the priority of *envelope* to what its sender may have."""
        agent, submitter = self._agent, origin.submitter
        most = self._priority_most
        if agent is not None and submitter is not None:
            try:
                agent.admit_sender(submitter, envelope)
            except MailFailure as failure:
                answer = from_failure(failure, rcpt=True)
                self._tally.refused_sender()
                self._log.info(
                    "{id} refused sender={sender} user={user}" + _REFUSED, id=envelope.id,
                    sender=str(envelope.reverse_path), user=origin.user, client=origin.client,
                    connection=origin.connection, reply=_in_short(answer))
                return answer
            most = agent.priority_most(submitter)
        if envelope.priority <= most:
            return replies.SENDER_OK
        envelope.priority = most
        return replies.priority_changed(most)

    async def admit_recipient(self, origin: Origin, envelope: Envelope, asked: RcptTo) -> Reply:
        """The reply to RCPT; a recipient that is accepted joins *envelope*."""
        agent, queue, submitter = self._agent, self._queue, origin.submitter
        try:
            if agent is not None and submitter is not None:
                agent.admit_recipient(submitter, envelope)
            # Who submits may send to whatever host; everybody else only to what is served here.
            found = self._router.route(
                asked.forward_path, relay=submitter is not None and queue is not None)
            if isinstance(found, Deferred):
                found = await found
            accounts = tuple([each for each in found if isinstance(each, Account)])
            remotes = tuple([each for each in found if isinstance(each, Remote)])
            if remotes and queue is None:
                raise RelayDenied("Relaying denied: mail to other hosts is not sent from here")
            for account in accounts:
                room = self._store.room(account, envelope.size)
                if room is not None:
                    await room
        except MailFailure as failure:
            answer = from_failure(failure, rcpt=True)
            self._tally.refused(answer)
            self._log.info(
                "{id} refused recipient={recipient} sender={sender}"
                + (" user={user}" if origin.user else "") + _REFUSED, id=envelope.id,
                recipient=str(asked.forward_path), sender=str(envelope.reverse_path),
                user=origin.user, client=origin.client, connection=origin.connection,
                reply=_in_short(answer))
            return answer
        envelope.recipients.append(
            Recipient(asked.forward_path, accounts, remotes, asked.notify, asked.orcpt))
        return replies.RECIPIENT_OK

    # ---- the message ----

    async def begin(self, origin: Origin, envelope: Envelope, seconds: int) -> Incoming:
        """Open the way in for the message of *envelope*, which arrives at *seconds*.

        :raises mailsvc.errors.MailFailure: it cannot come in now.
        """
        agent, submitter = self._agent, origin.submitter
        filters: Sequence[Filter] = ()
        try:
            if agent is not None and submitter is not None:
                await agent.count(submitter, envelope)
                filters = agent.filters(submitter, envelope, seconds)
            envelope.account = submitter.name if submitter is not None else ""
            return Incoming(
                envelope,
                Severally(self._deliver, envelope) if self._lmtp else self._deliver(envelope),
                filters)
        except MailFailure as failure:
            self._dropped(origin, envelope, failure.text)
            raise

    def _deliver(self, envelope: Envelope) -> Any:
        return fanout.begin(self._store, self._queue, envelope)

    async def commit(
        self, origin: Origin, incoming: Incoming, size: int
    ) -> Reply | list[Reply]:
        """The message is whole, *size* octets as they came: the reply to it, or in LMTP one for
        each recipient.
        """
        envelope = incoming.envelope
        said = {"size": size, "hello": origin.hello, "user": origin.user, **_about(envelope),
                "client": origin.client, "connection": origin.connection, "tls": origin.tls}
        whole = time.monotonic_ns()
        try:
            await incoming.finish()
        except MailFailure as failure:
            self.drop(origin, incoming, failure.text)
            return from_failure(failure)
        except Exception:
            self.drop(origin, incoming, "internal error")
            raise
        began = time.monotonic_ns()
        try:
            outcomes = await incoming.commit()
        except _NO_ROOM as failure:
            self._dropped(origin, envelope, failure.text)
            return from_failure(failure)
        except MailFailure as failure:
            self._tally.not_stored()
            self._log.error("{id} not stored: {reason} " + _ABOUT, reason=failure.text, **said)
            return from_failure(failure)
        ended = time.monotonic_ns()
        self._tally.commit.observe(ended - began)
        # How long each took, in microseconds.
        said["arriving"] = (whole - incoming.since) // 1000
        said["checks"] = (began - whole) // 1000
        said["storing"] = (ended - began) // 1000
        if outcomes is not None and any(outcomes):
            return self._answer_each(envelope, outcomes, said)
        self._tally.accepted(size, len(envelope.recipients))
        if incoming.header and self._queue is not None:
            self._queue.delivered(envelope, incoming.header)
        by = " user={user}" if origin.user else ""
        remotes = [remote.name for remote in envelope.remotes()]
        queued = " queued={queued}" if remotes else ""
        if envelope.release:
            queued += " held_until={held_until}"
            said["held_until"] = date_time(envelope.release)
        self._log.info("{id} accepted " + _ABOUT + by + " accounts={accounts}" + queued,
                       event="message.received",
                       accounts=[account.name for account in envelope.accounts()],
                       queued=remotes, **said)
        return replies.accepted(envelope.id)

    def _answer_each(self, envelope: Envelope, outcomes: list[MailFailure | None],
                     said: dict[str, Any]) -> list[Reply]:
        """Of a message that not every recipient has: what each is told (RFC 2033 §4.2)."""
        answers = []
        taken = outcomes.count(None)
        if taken:
            self._tally.accepted(said["size"], taken)
        elif all(isinstance(failure, _NO_ROOM) for failure in outcomes):
            self._tally.dropped()
        else:
            self._tally.not_stored()
        for recipient, failure in zip(envelope.recipients, outcomes, strict=True):
            said["recipients"] = [str(recipient.forward_path)]
            if failure is None:
                self._log.info("{id} accepted " + _ABOUT + " accounts={accounts}",
                               event="message.received",
                               accounts=[account.name for account in recipient.accounts], **said)
                answers.append(replies.accepted(envelope.id))
            else:
                if isinstance(failure, _NO_ROOM):
                    self._log.info(_DROPPED, reason=failure.text, **said)
                else:
                    self._log.error(
                        "{id} not stored: {reason} " + _ABOUT, reason=failure.text, **said)
                answers.append(from_failure(failure))
        return answers

    def drop(self, origin: Origin, incoming: Incoming, reason: str) -> None:
        """Forget the message, which will not be whole or may not come in."""
        incoming.abort()
        self._dropped(origin, incoming.envelope, reason)

    def _dropped(self, origin: Origin, envelope: Envelope, reason: str) -> None:
        self._tally.dropped()
        self._log.info(_DROPPED, reason=reason, client=origin.client,
                       connection=origin.connection, **_about(envelope))


def _about(envelope: Envelope) -> dict[str, Any]:
    return {"id": envelope.id, "message_id": envelope.message_id,
            "sender": str(envelope.reverse_path),
            "recipients": [str(each.forward_path) for each in envelope.recipients]}


def _in_short(answer: Reply) -> str:
    return f"{answer.code} {answer.status} {answer.lines[0]}"
