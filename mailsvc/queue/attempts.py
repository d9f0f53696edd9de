"""One attempt to send a message, from its file to what became of it on disk.

The message is read, handed to the carrier for each way its recipients go, and what became of them
is on disk before anything else is begun with it; then it waits for the next attempt, is reported
on, or is gone (:mod:`mailsvc.queue.schedule`, :mod:`mailsvc.queue.reports`,
:mod:`mailsvc.queue.spool`).  When attempts are made, and in which process, is for
:mod:`mailsvc.queue.runner`.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, DeferredLock, succeed
from twisted.logger import Logger

from mailsvc import figures
from mailsvc.errors import EnhancedStatus, MailFailure
from mailsvc.figures import Share
from mailsvc.mail import Address
from mailsvc.names import DirectoryError, fold_domain
from mailsvc.queue.carrier import Carrier
from mailsvc.queue.content import Content
from mailsvc.queue.dsn import HEADER_OCTETS
from mailsvc.queue.job import Job, Result
from mailsvc.queue.local import Local
from mailsvc.queue.message import (
    FAILED,
    RELAYED,
    WAITING,
    QueuedMessage,
    QueuedRecipient,
    Unreadable,
)
from mailsvc.queue.reports import Reports
from mailsvc.queue.routes import Hop, Routes
from mailsvc.queue.schedule import Schedule
from mailsvc.queue.spool import Spool
from mailsvc.queue.together import Together
from mailsvc.srs import SRS
from mailsvc.store.threads import Threads

_log = Logger("mailsvc.queue")

#: After how long a message is looked at again that our own disk or directory failed, seconds; and
#: one that another process has not let go of.
_LATER, _CLAIMED = 60, 1

#: A message, what it says, and what is to be sent before that.
_Opened = tuple[QueuedMessage, Content, bytes]

#: RFC 8689 §3, within the header; the value may be folded.
_TLS_OPTIONAL = re.compile(
    rb"\A(?:(?!\r\n).*\r\n)*?TLS-Required:[ \t]*(?:\r\n[ \t]+)?No[ \t]*\r\n", re.IGNORECASE)

#: Signs the octets of a message from a domain: what to send before it.
Sign = Callable[[bytes, str], bytes]


class _Taken(Exception):
    """Another process works on the message."""


class _SetAside(Exception):
    """A message cannot be read, and is in *place* now."""

    def __init__(self, problem: Unreadable, place: Path) -> None:
        super().__init__(str(problem))
        self.place = place


@dataclass(frozen=True, slots=True)
class After:
    """What is known of a message after an attempt.

    :ivar when: when to look at it again, in seconds since the epoch; None for not by itself.
    :ivar held: whether that is because an operator holds it.
    :ivar priority: its place among those that are due.
    """

    when: float | None
    held: bool = False
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Fetching:
    """The next host fetches mail, over a connection that it opened (ATRN).

    :ivar domains: those whose mail it is.
    :ivar carry: hands it a job, of its recipients alone; as :meth:`Carrier.carry`.
    """

    domains: Collection[str]
    carry: Callable[[Job], Awaitable[list[Result]]]

    def recipients(self, message: QueuedMessage) -> list[QueuedRecipient]:
        """Those of *message* whose mail it may have now."""
        if message.held or message.scheduled or message.route:
            return []
        return [each for each in message.waiting
                if not each.local and fold_domain(each.address.domain) in self.domains]


@dataclass(slots=True)
class _Attempt:
    """One that is under way.

    :ivar jobs: what there is, or was, to carry.
    :ivar withdrawn: whether what has not begun is not to begin.
    """

    jobs: list[Job] = field(default_factory=list)
    withdrawn: bool = False

    def withdraw(self) -> bool:
        """As :meth:`Attempts.withdraw`: whether it ends at once, or is about to."""
        left = [job for job in self.jobs if not job.done.called]
        if left and any(job.begun for job in self.jobs):
            return False
        self.withdrawn = True
        for job in left:
            job.withdraw()
        return True


class Attempts:
    """The attempts that this process makes.

    :param srs: rewrites the sender of forwarded mail.
    :param signing: gives what makes the signatures of what our users send, for messages that are
        read at the same time, in a thread; or None.
    :param local: delivers what was held for mailboxes here; None where nothing is held.
    :param share: where attempts are counted.
    """

    def __init__(self, spool: Spool, threads: Threads, carrier: Carrier, routes: Routes,
                 schedule: Schedule, reports: Reports, srs: SRS, clock: Any,
                 signing: Callable[[], Sign] | None = None, local: Local | None = None,
                 share: Share | None = None) -> None:
        self._spool = spool
        self._threads = threads
        self.carrier = carrier
        self._routes = routes
        self._schedule = schedule
        self._reports = reports
        self._srs = srs
        self._clock = clock
        self._signing = signing
        self._local = local
        self._opening: Together[str, _Opened] = Together(threads, self._open_all, goes=2)
        self._saving: Together[QueuedMessage, None] = Together(threads, self._save_all)
        # None waits for the disk: a kill between a message's end and its removal would have it sent
        # again.
        self._ending: Together[QueuedMessage, None] = Together(threads, self._end_all)
        self._under_way: dict[str, _Attempt] = {}
        self._stopped = False
        self._idle: list[Deferred[None]] = []
        share = share or Share()
        self._outcomes = {outcome: share.count(figures.DELIVERIES, outcome)
                          for (outcome,) in figures.DELIVERIES.values}
        self._delay = share.spread(figures.DELIVERY_DELAY)

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._under_way)

    def start(self, *, leading: bool) -> None:
        """Begin with what is done beside them; that of all processes together if *leading*."""
        self.carrier.start(leading=leading)

    def begin(self, id: str, fetching: Fetching | None = None) -> Deferred[After]:
        """Try the message *id*, or only hand it to who fetches.  The Deferred does not fail."""
        self._under_way[id] = _Attempt()
        attempt = Deferred.fromCoroutine(self._claimed(id, fetching))
        attempt.addErrback(self._failed, id)
        return attempt.addCallback(self._ended, id)

    def withdraw(self, id: str, refused: Callable[[], object]) -> None:
        """End the attempt with the message *id*, as if it had not been made.

        Where some of it has been sent and the rest has not come to its end, *refused* is called
        instead, and nothing is done.  Where nothing is sent any more it comes to its end as ever.
        """
        attempt = self._under_way.get(id)
        if attempt is not None and not attempt.withdraw():
            refused()

    def stop(self) -> Deferred[None]:
        """Begin nothing more; fires when what was under way has come to its end."""
        self._stopped = True
        self.carrier.stop()
        if not self._under_way:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._idle.append(waiting)
        return waiting

    def abort(self) -> None:
        """Close every connection at once."""
        self._stopped = True
        self.carrier.abort()

    async def _claimed(self, id: str, fetching: Fetching | None) -> After:
        if self._stopped:
            return After(self._clock.seconds())
        try:
            opened = await self._opening.do(id)
        except _Taken:
            # It had it from the process that sent before this one.
            return After(self._clock.seconds() + _CLAIMED)
        except FileNotFoundError:
            return After(None)
        except _SetAside as problem:
            _log.error("{id} cannot be read and was moved to {place}: {problem}",
                       id=id, place=str(problem.place), problem=str(problem))
            return After(None)
        try:
            return await self._attempt(*opened, fetching)
        finally:
            opened[1].close()
            self._spool.claims.give_back(id)

    def _failed(self, failure: Any, id: str) -> After:
        if failure.check(MailFailure, OSError, DirectoryError) is None:
            _log.failure("{id} could not be worked on", failure, id=id)
        else:
            _log.error("{id} is put off: {reason}", id=id, reason=str(failure.value))
        return After(self._clock.seconds() + _LATER)

    def _ended(self, after: After, id: str) -> After:
        del self._under_way[id]
        if not self._under_way:
            idle, self._idle = self._idle, []
            for each in idle:
                if not each.called:
                    each.callback(None)
        return after

    async def _attempt(self, message: QueuedMessage, content: Content, prefix: bytes,
                       fetching: Fetching | None) -> After:
        attempt = self._under_way[message.id]
        if message.held:
            return After(None, held=True, priority=message.priority)
        if attempt.withdrawn:
            return After(message.due, priority=message.priority)
        if fetching is not None:
            return After(await self._hand(message, content, prefix, fetching),
                         priority=message.priority)
        now = self._clock.seconds()
        waiting = message.waiting
        if waiting and message.due > now + 0.001:
            return After(message.due, priority=message.priority)
        if waiting and not self._schedule.expired(message, now):
            message.attempts += 1
            ways = self._ways(message)
            saving = DeferredLock() if len(ways) > 1 else None
            going = [self._go(hop, self._job(message, recipients, path, content, prefix), saving)
                     for (hop, path), recipients in ways.items()]
            # Nearly all messages go one way.
            tried = [await going[0]] if saving is None else await _all(going)
            if (self._stopped or attempt.withdrawn) and sum(tried) < sum(map(len, ways.values())):
                await self._leave(message, any(tried))
                return After(message.due, priority=message.priority)
        return After(await self._settle(message, content), priority=message.priority)

    async def _hand(self, message: QueuedMessage, content: Content, prefix: bytes,
                    fetching: Fetching) -> float | None:
        """Hand to who fetches it what is theirs; when to look at *message* again.

        That is no attempt by the schedule, nor does it put off one for other recipients.
        """
        tried = 0
        if not self._schedule.expired(message, self._clock.seconds()):
            # One after the other: there is one connection.
            for (_, path), recipients in self._ways(message, fetching).items():
                tried += self._note_all(message, await fetching.carry(
                    self._job(message, recipients, path, content, prefix)))
        if not tried:
            return message.due
        return await self._settle(message, content, message.due)

    def _save_all(self, messages: Sequence[QueuedMessage]) -> list[None]:
        self._spool.save(*messages)
        return [None] * len(messages)

    def _end_all(self, messages: Sequence[QueuedMessage]) -> list[None]:
        self._spool.end(*messages)
        for each in messages:
            self._spool.claims.give_back(each.id)
        return [None] * len(messages)

    def _open_all(self, ids: Sequence[str]) -> list[_Opened | Exception]:
        found: list[_Opened | Exception] = []
        sign = self._signing() if self._signing is not None else None
        for id in ids:
            # What one of them fails by must not keep the others claimed.
            try:
                found.append(self._claim_and_open(id, sign))
            except Exception as problem:
                found.append(problem)
        return found

    def _claim_and_open(self, id: str, sign: Sign | None) -> _Opened:
        """As :meth:`_open`, and it is claimed, unless this raises.

        :raises _Taken, _SetAside: beside what that does.
        """
        if not self._spool.claims.take(id):
            raise _Taken
        try:
            return self._open(id, sign)
        except BaseException as problem:
            try:
                if isinstance(problem, Unreadable):
                    raise _SetAside(problem, self._spool.set_aside(id)) from None
                raise
            finally:
                self._spool.claims.give_back(id)

    def _open(self, id: str, sign: Sign | None) -> _Opened:
        """The message, and if it is our user's its signatures."""
        message, stream = self._spool.open(id)
        self._spool.receipts.recall(message)
        content = Content(stream)
        message.size = content.size
        if message.smtputf8 and message.is_ascii and content.has_ascii_headers():
            # RFC 6531 §3.2: some say it of all their mail, and the next host may not know it.
            message.smtputf8 = False
            if not content.is_ascii():
                # §3.6: it allowed a body in UTF-8 without a word on it.
                message.body = "8BITMIME"
        message.tls_optional = _TLS_OPTIONAL.search(content.head(HEADER_OCTETS)) is not None
        if sign is None or not message.account or message.held or not message.waiting:
            return message, content, b""
        return message, content, sign(content.whole(), message.reverse_path.domain)

    def _ways(self, message: QueuedMessage, fetching: Fetching | None = None
              ) -> dict[tuple[Hop | None, Address], list[QueuedRecipient]]:
        """The recipients by where they go next, None for here, and with which reverse-path.

        Those whose mail is fetched go where that is done, whatever their routes.
        """
        ways: dict[tuple[Hop | None, Address], list[QueuedRecipient]] = {}
        for each in message.waiting if fetching is None else fetching.recipients(message):
            path = message.reverse_path
            if each.alias is not None:
                path = self._srs.forward(path, each.alias.domain)
            hop = None if each.local or fetching is not None else self._routes.hop(
                message, each.address)
            ways.setdefault((hop, path), []).append(each)
        return ways

    def _job(self, message: QueuedMessage, recipients: list[QueuedRecipient], path: Address,
             content: Content, prefix: bytes) -> Job:
        job = Job(message, recipients, path, content, prefix, partial(self._heard, message))
        self._under_way[message.id].jobs.append(job)
        return job

    def _heard(self, message: QueuedMessage, results: Sequence[Result]) -> None:
        """Hosts have taken it: before anything else happens, nobody may send it there again."""
        now = self._clock.seconds()
        for each in results:
            _apply(message, each, now)
        self._spool.receipts.note(message, [each.recipient for each in results])

    async def _leave(self, message: QueuedMessage, changed: bool) -> None:
        """An attempt does not come to its end: it is still due, and made again."""
        if changed:
            message.attempts -= 1
            await self._save(message)

    async def _go(self, hop: Hop | None, job: Job, saving: DeferredLock | None) -> int:
        """Carry *job*, or deliver it here; for how many of its recipients there is a result."""
        if hop is None:
            assert self._local is not None, "a message was held that nobody can deliver"
            results = await self._local.deliver(job)
        elif hop.kept:
            results = [Result(each, WAITING, EnhancedStatus(4, 4, 0),
                              f"kept until {hop.host} fetches it (ATRN)", kept=True)
                       for each in job.recipients]
            job.conclude(results)
            job.finish()
        else:
            results = await self.carrier.carry(hop, job)
        self._note_all(job.message, results)
        if saving is not None and results:
            # What one host took is on disk before another's time-out has come.
            await saving.run(self._saving.do, job.message)
        return len(results)

    def _note_all(self, message: QueuedMessage, results: Sequence[Result]) -> int:
        """Keep *results*; how many there are."""
        now = self._clock.seconds()
        for result in results:
            self._note(message, result, now)
        return len(results)

    def _note(self, message: QueuedMessage, result: Result, now: float) -> None:
        each = result.recipient
        if each.state != RELAYED:  # else it has been heard
            _apply(message, result, now)
        took = result.state == RELAYED
        outcome = "kept" if result.kept else "deferred" if result.state == WAITING else (
            "delivered" if took and each.local else result.state)
        if not result.kept:  # which is no attempt
            self._outcomes[outcome].add()
        if took:
            self._delay.observe(max(0, round(1e9 * (now - message.arrived))))
        _log.info("{id} {state} recipient={recipient} sender={sender} host={host} "
                      "attempt={attempt}: {reply}", event=f"message.{outcome}",
                      id=message.id, state=result.state if took else outcome,
                      recipient=str(each.address), sender=str(message.reverse_path),
                      host=result.host, attempt=message.attempts, reply=result.reply,
                      status=str(result.status))

    async def _settle(self, message: QueuedMessage, content: Content,
                      due: float | None = None) -> float | None:
        """What follows from what the recipients' states are now; when to try again.

        :param due: when that is, if it was no attempt by the schedule.
        """
        now = self._clock.seconds()
        following: float | None = None
        warns = self._schedule.warns(message, now)
        message.warned = message.warned or warns
        if message.waiting:
            following = self._schedule.next_attempt(message, now)
            if following is None:
                for each in message.waiting:
                    each.state = FAILED
                    # RFC 3463 §3.5: delivery time expired; RFC 2852 §4.1: for good.
                    each.status = "4.4.7" if message.returns_by is None else "5.4.7"
                    each.reply = each.reply or "the time for its delivery is over"
        failed = [each for each in message.recipients
                  if each.state == FAILED and not each.reported]
        for each in failed:
            _log.info("{id} given up recipient={recipient} sender={sender} host={host} "
                      "status={status}: {reply}", event="message.bounced", id=message.id,
                      recipient=str(each.address), sender=str(message.reverse_path),
                      host=each.host, status=each.status, reply=each.reply)
        await self._report(message, content, "failed", failed)
        for action, local in ("relayed", False), ("delivered", True):
            await self._report(message, content, action, [
                each for each in message.recipients
                if each.state == RELAYED and each.local is local and not each.reported])
        if following is None:
            await self._ending.do(message)
            self._spool.receipts.settled(message.id)
            _log.info("{id} done attempts={attempts}", id=message.id,
                          attempts=message.attempts)
            return None
        message.due = following = following if due is None else due
        _log.debug("{id} waits until={until:.0f}", id=message.id, until=following)
        if warns:
            # Who fetches comes when it comes, so only who asked is told.
            late = [each for each in message.waiting if each.wants("DELAY")
                    and (not each.kept or "DELAY" in each.notify or message.by is not None)]
            if message.by is not None:
                late = [replace(each, status="4.4.7") for each in late]  # RFC 2852 §4.1
            await self._reports.send("delayed", message, late, content.head(HEADER_OCTETS),
                                     self._schedule.end(message))
        await self._save(message)
        return following

    async def _save(self, message: QueuedMessage) -> None:
        """Have on disk what became of it, so that it need not be noted beside that."""
        await self._saving.do(message)
        self._spool.receipts.settled(message.id)

    async def _report(self, message: QueuedMessage, content: Content, action: str,
                      recipients: list[QueuedRecipient]) -> None:
        # Whether success is to be told was found out when it came.
        wanted = [each for each in recipients if action != "failed" or each.wants("FAILURE")]
        if wanted:
            whole = (action == "failed" and message.ret == "FULL"
                     and not message.requiretls)
            await self._reports.send(action, message, wanted, await self._threads.run(
                content.whole) if whole else content.head(HEADER_OCTETS))
        for each in recipients:
            each.reported = True


def _apply(message: QueuedMessage, result: Result, now: float) -> None:
    """Have the state of *message* say what became of a recipient."""
    each = result.recipient
    each.tried, each.kept = now, result.kept
    if not (result.kept and each.host):  # what the host itself said last says more
        each.state, each.status, each.reply = result.state, str(result.status), result.reply
        each.host = result.host
    if result.state == RELAYED:
        # RFC 3461 §5.2.1: who knows DSN reports; else it is for us to say that it is gone.
        each.reported = (result.reports or not each.wants("SUCCESS")) and not (
            message.by is not None and not each.local and each.notify != ("NEVER",)
            # RFC 2852 §4.1.4: a trace is told of each host, and before its time is over of one
            # that does not mind it, by which the message is as good as gone.
            and (message.by.trace or (not result.timely and message.in_time(now))))


async def _all(going: Sequence[Coroutine[Any, Any, int]]) -> list[int]:
    """What each came to, when the last has: none may go on beside a further attempt.

    :raises Exception: what the first of those that failed raised.
    """
    ended: Any = await DeferredList([Deferred.fromCoroutine(each) for each in going],
                                    consumeErrors=True)
    for succeeded, result in ended:
        if not succeeded:
            result.raiseException()
    return [result for _, result in ended]
