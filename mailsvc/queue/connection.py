"""One connection to the next host: what of a job it can take, and what becomes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred

from mailsvc.client import Client, Outcome, Recipient
from mailsvc.errors import EnhancedStatus
from mailsvc.mail import NULL_PATH, DeliverBy
from mailsvc.queue.job import Job, Result
from mailsvc.queue.message import FAILED, RELAYED, WAITING, QueuedMessage, QueuedRecipient
from mailsvc.smtp.failures import BadArgument, NotOffered, TimedOut
from mailsvc.smtp.offers import understood
from mailsvc.smtp.requests import Parameters

#: An envelope with something in it for which SMTP has no words (RFC 3463 §3.6: X.5.4).
_CANNOT_BE_SAID = EnhancedStatus(5, 5, 4)
#: The least that BY can say (RFC 2852 §4).
_LONG_AGO = -999_999_999

#: How long a message may take, in seconds, for the next to be sent before it is answered.
_QUICK = 1.0


class Connection:
    """*client*, from when it is known what its host offers.

    :param clock: seconds since the epoch.
    :ivar sealed: whether REQUIRETLS may be said over it (RFC 8689 §2).
    :ivar inward: whether it leads to a socket of this machine.
    :ivar unanswered: the job whose message has been sent, and which is answered while the next is
        sent; or None.
    """

    def __init__(self, client: Client, clock: Any) -> None:
        self._client = client
        self._clock = clock
        self.sealed = self.inward = False
        self.unanswered: Job | None = None
        self._settled: list[Deferred[None]] = []
        #: How long the last message took, in seconds; None before there was one.
        self._took: float | None = None

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._client.closed is not None

    @property
    def timed_out(self) -> bool:
        """Whether it has ended because the host did not answer in time."""
        return isinstance(self._client.closed, TimedOut)

    @property
    def host(self) -> str:
        """What the other host calls itself."""
        return self._client.host

    @property
    def end(self) -> str:
        """Why it has ended, for people; empty if it has not."""
        return self._client.closed.text if self._client.closed is not None else ""

    @property
    def transactions(self) -> int:
        """How many messages were accepted over it, or may be yet."""
        return self._client.transactions + (self.unanswered is not None)

    @property
    def exhausted(self) -> bool:
        """Whether its host takes no more messages over it, as it announced."""
        return self._client.exhausted

    @property
    def is_quick(self) -> bool:
        """Whether its host answers at once.  Behind a message that is answered late the next would
        wait for nothing, while other connections are free.
        """
        return self._took is not None and self._took < _QUICK

    def answered(self) -> None:
        """The job that was unanswered is not any more."""
        self.unanswered = None
        settled, self._settled = self._settled, []
        for each in settled:
            each.callback(None)

    async def settled(self) -> None:
        """Wait until no job is unanswered."""
        if self.unanswered is not None:
            settled: Deferred[None] = Deferred()
            self._settled.append(settled)
            await settled

    def quit(self) -> None:
        """End it in the proper way.  May be called again."""
        if not self.closed:
            self._client.quit()

    def close(self) -> None:
        """End it at once.  May be called again."""
        self._client.close()

    def lacking(self, job: Job) -> NotOffered | None:
        """What the message has to be promised, and this host does not offer; another may."""
        client = self._client
        if not job.message.requiretls and job.message.by is None:
            return None  # nearly always
        # RFC 8689 §4.2.1, §5: a report need not be.
        sealed = job.message.requiretls and not self.inward and job.reverse_path != NULL_PATH
        promises = Parameters(requiretls=sealed, by=self._by(job.message))
        try:
            understood(NULL_PATH, promises, client.extensions, tls_active=self.sealed)
        except NotOffered as failure:
            return failure
        return None

    async def send(self, job: Job, sent: Callable[[], object] | None = None) -> bool:
        """Send to those of *job* who have no result yet; whether another host may do better.

        :param sent: called when the next may be sent before this one is answered.
        """
        client, message, left = self._client, job.message, job.left
        lacking = self.lacking(job)
        if lacking is not None:
            job.forget_waiting()
            job.results += [Result(each, WAITING, lacking.status, lacking.text, client.host)
                            for each in left]
            return True
        job.begun = True
        reports = client.extension("DSN") is not None
        began = self._clock.seconds()
        try:
            outcomes: Sequence[Outcome] = await client.send(
                job.reverse_path,
                [Recipient(each.address, self._notify(each, message) if reports else (),
                           _orcpt(each) if reports else "") for each in left],
                job.content.message(job.prefix), size=job.content.size + len(job.prefix),
                # Of 7BIT nobody can be sure: it is said by saying nothing, also by those who err.
                body="" if message.body == "7BIT" else message.body,
                smtputf8=message.smtputf8, ret=message.ret if reports else "",
                envid=message.envid if reports else "",
                requiretls=message.requiretls and self.sealed, by=self._by(message),
                # RFC 6710 §4.2: whatever it is.
                priority=message.priority, sent=sent)
        except BadArgument as fault:
            # Nothing was said, nor can it be tomorrow, to whatever host.
            job.forget_waiting()
            job.conclude([Result(each, FAILED, _CANNOT_BE_SAID, str(fault)) for each in left])
            return False
        self._took = self._clock.seconds() - began
        again = False
        # One that was refused over a connection that had ended unnoticed is not put off by anybody.
        job.forget_waiting()
        results = []
        for recipient, outcome in zip(left, outcomes, strict=True):
            state = (RELAYED if outcome.accepted else WAITING if outcome.temporary else FAILED)
            failure = outcome.failure
            text = reply_text(outcome.reply) or (failure.text if failure else "")
            results.append(Result(
                recipient, state, outcome.status, text, client.host or "", reports,
                self._timely))
            again = again or (state == WAITING and not outcome.in_flight)
        job.conclude(results)
        # Whoever may have it already must not get it from another host as well.
        job.in_flight = any(outcome.in_flight for outcome in outcomes)
        return again and not job.in_flight

    @property
    def _timely(self) -> bool:
        """Whether the host minds within how much time a message is to be delivered."""
        return self._client.lmtp or self._client.extension("DELIVERBY") is not None

    def _notify(self, recipient: QueuedRecipient, message: QueuedMessage) -> tuple[str, ...]:
        """The NOTIFY to pass on."""
        notify = recipient.notify
        if self._timely or not message.in_time(self._clock.seconds()) or "NEVER" in notify:
            return notify
        # RFC 2852 §4.1.4.2: who does not mind the time may at least tell of a delay.
        return tuple(dict.fromkeys((*(notify or ("FAILURE",)), "DELAY")))

    def _by(self, message: QueuedMessage) -> DeliverBy | None:
        """What is left of the time that its sender gave it (RFC 2852 §4.1).

        By LMTP it is delivered, in time.
        """
        if message.by is None or message.deadline is None or self._client.lmtp:
            return None
        left = math.floor(message.deadline - self._clock.seconds())
        return replace(message.by, seconds=max(left, 1 if message.by.mode == "R" else _LONG_AGO))


def _orcpt(recipient: QueuedRecipient) -> str:
    """The original recipient to pass on (RFC 3461 §5.2.1 (d))."""
    if recipient.orcpt:
        return recipient.orcpt
    return f"rfc822;{recipient.original}" if recipient.original.is_ascii else ""


def reply_text(reply: Any) -> str:
    """*reply* in one line, for people; empty if it is None."""
    if reply is None:
        return ""
    status = f"{reply.status} " if reply.status else ""
    return f"{reply.code} {status}" + " ".join(reply.lines)
