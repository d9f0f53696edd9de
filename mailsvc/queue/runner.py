"""The one process's worth of queue that sends: what is due when, and what follows an attempt.

Of a message that waits only its id and time are in memory.  When it is due it is read, handed to
the carrier for each way its recipients go, and what became of them is on disk before anything else
is begun with it; then it is tried again, reported on, or gone (:mod:`mailsvc.queue.schedule`,
:mod:`mailsvc.queue.reports`, :mod:`mailsvc.queue.spool`).
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, DeferredLock, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from mailsvc.errors import EnhancedStatus, MailFailure
from mailsvc.mail import Address
from mailsvc.names import DirectoryError, fold_domain
from mailsvc.queue import filter
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

#: How many messages are worked on at once; each has a file open.
_ACTIVE = 500
#: How many more of those that are more urgent than most.
_RESERVE = 50

#: After how long a message is looked at again that our own disk or directory failed, seconds.
_LATER = 60

#: A message, what it says, and what is to be sent before that.
_Opened = tuple[QueuedMessage, Content, bytes]

#: RFC 8689 §3, within the header; the value may be folded.
_TLS_OPTIONAL = re.compile(
    rb"\A(?:(?!\r\n).*\r\n)*?TLS-Required:[ \t]*(?:\r\n[ \t]+)?No[ \t]*\r\n", re.IGNORECASE)

#: Signs the octets of a message from a domain: what to send before it.
Sign = Callable[[bytes, str], bytes]


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


class Runner:
    """Sends what is in *spool*.

    :param srs: rewrites the sender of forwarded mail.
    :param sign: makes the signatures of what our users send, in a thread; or None.
    :param local: delivers what was held for mailboxes here; None where nothing is held.
    """

    def __init__(self, spool: Spool, threads: Threads, carrier: Carrier, routes: Routes,
                 schedule: Schedule, reports: Reports, srs: SRS, clock: Any,
                 sign: Sign | None = None, local: Local | None = None) -> None:
        self._spool = spool
        self._threads = threads
        self.carrier = carrier
        self._routes = routes
        self._schedule = schedule
        self._reports = reports
        self._srs = srs
        self._clock = clock
        self._sign = sign
        self._opening: Together[str, _Opened] = Together(threads, self._open_all, goes=4)
        self._saving: Together[QueuedMessage, None] = Together(threads, self._save_all)
        self._removing: Together[str, None] = Together(threads, self._remove_all)
        self._local = local
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        #: What is due and waits for room: the most urgent first, and of these the oldest.
        self._ready: list[tuple[int, float, str]] = []
        #: The priorities that are known, but for 0.
        self._priorities: dict[str, int] = {}
        self._active: set[str] = set()
        self._again: set[str] = set()
        self._held: set[str] = set()
        self._call: IDelayedCall | None = None
        self._stopped = False
        self._idle: list[Deferred[None]] = []

    def __len__(self) -> int:
        """How many messages are known."""
        return len(self._due) + len(self._active)

    # ---- what is due ----

    def start(self) -> Deferred[None]:
        """Take up what is in the spool."""
        def begin(due: dict[str, float]) -> None:
            for id, when in due.items():
                if id not in self._due and id not in self._active:
                    self._wait(id, when)
            self._look_for_urgent(due)
            if due:
                _log.info("the queue holds {messages} messages", messages=len(due))
            self._advance()

        self.carrier.start()
        return self._threads.run(self._spool.due).addCallback(begin)

    def take(self, ids: Collection[str]) -> None:
        """Messages are new in the spool, or have changed there: look at them now."""
        now = self._clock.seconds()
        for id in ids:
            if id in self._active:
                self._again.add(id)
            else:
                self._wait(id, min(now, self._due.get(id, now)))
        self._look_for_urgent(ids)
        self._advance()

    def _look_for_urgent(self, ids: Collection[str]) -> None:
        """Find out which of *ids* are to overtake others, where there is not room for all."""
        if len(self._active) + len(ids) > _ACTIVE:
            self._threads.run(self._spool.priorities, ids).addCallbacks(
                self._prefer, lambda failure: _log.failure("cannot look for urgent mail", failure))

    def _prefer(self, priorities: dict[str, int]) -> None:
        for id, priority in priorities.items():
            if id in self._due:
                self._priorities[id] = priority
                self._wait(id, self._due[id])
        self._advance()

    def missed(self, ids: Collection[str]) -> None:
        """These are in the spool: take those that nobody told of."""
        self._held.intersection_update(ids)
        self.take(set(ids) - self._due.keys() - self._active - self._held)

    def idle(self) -> Deferred[None]:
        """Fires when nothing is being worked on."""
        if not self._active:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._idle.append(waiting)
        return waiting

    async def fetch(self, id: str, fetching: Fetching) -> None:
        """Hand *id* over now, to its recipients whose mail is being fetched.

        Nothing is done with one that is being worked on, is held, or is to be sent later.
        """
        if id not in self._active:
            await self._begin(id, fetching)

    def is_active(self, id: str) -> bool:
        """Whether the message is being tried now."""
        return id in self._active

    async def act(self, action: str, words: Sequence[str], route: str
                  ) -> tuple[list[str], list[str]]:
        """Do what ``mailsvc queue`` asks for (:mod:`mailsvc.queue.filter`).

        :returns: the messages changed, and those that are being worked on.
        :raises FilterError: *words* mean nothing.
        """
        now, meant = self._clock.seconds(), filter.parse(words)

        def matching() -> list[str]:
            return [each.id for each in self._spool.messages() if meant(each, now)]

        def change(id: str) -> float | None:
            """When to look at it next, or None."""
            message = self._spool.load(id)
            if not filter.act(message, action, route, now):
                self._spool.remove(id)
                return None
            self._spool.save(message)
            return message.due  # a held one is found to be so then

        changed, busy = [], []
        for id in await self._threads.run(matching):
            if id in self._active:
                busy.append(id)
                continue
            # Nobody else works on it meanwhile.
            self._due.pop(id, None)
            self._active.add(id)
            when: float | None = None
            try:
                when = await self._threads.run(change, id)
                changed.append(id)
            except (FileNotFoundError, Unreadable):
                pass
            finally:
                self._ended(when, id)
        return changed, busy

    def stop(self) -> Deferred[None]:
        """Begin nothing more; fires when what was under way has come to its end."""
        self._stopped = True
        if self._call is not None and self._call.active():
            self._call.cancel()
        self.carrier.stop()
        return self.idle()

    def abort(self) -> None:
        """Close every connection at once."""
        self.carrier.abort()

    def _wait(self, id: str, when: float) -> None:
        self._due[id] = when
        heapq.heappush(self._heap, (when, id))

    def _advance(self) -> None:
        """Begin what is due, and come back when the next is."""
        if self._stopped:
            return
        now = self._clock.seconds()
        while self._heap:
            when, id = self._heap[0]
            if self._is_current(id, when):
                if when > now:
                    break
                heapq.heappush(self._ready, (-self._priorities.get(id, 0), when, id))
            heapq.heappop(self._heap)
        while self._ready and len(self._active) < _ACTIVE + _RESERVE * (self._ready[0][0] < 0):
            _, when, id = heapq.heappop(self._ready)
            if self._is_current(id, when):
                self._begin(id)
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None
        if self._heap:
            self._call = self._clock.callLater(max(0.0, self._heap[0][0] - now), self._advance)

    def _is_current(self, id: str, when: float) -> bool:
        """Whether *id* is still due at *when*: it may have been put off, have begun or be gone."""
        return self._due.get(id) == when and id not in self._active

    def _begin(self, id: str, fetching: Fetching | None = None) -> Deferred[None]:
        self._due.pop(id, None)
        self._active.add(id)
        attempt = Deferred.fromCoroutine(self._attempt(id, fetching))
        attempt.addErrback(self._failed, id)
        return attempt.addCallback(self._ended, id)

    def _failed(self, failure: Any, id: str) -> float:
        if failure.check(MailFailure, OSError, DirectoryError) is None:
            _log.failure("{id} could not be worked on", failure, id=id)
        else:
            _log.error("{id} is put off: {reason}", id=id, reason=str(failure.value))
        return float(self._clock.seconds() + _LATER)

    def _ended(self, when: float | None, id: str) -> None:
        """An attempt is over; look at *id* again at *when*, if not None."""
        self._active.discard(id)
        if id in self._again:
            self._again.discard(id)
            when = self._clock.seconds()
        if when is not None:
            self._wait(id, when)
        else:
            self._priorities.pop(id, None)
        if not self._active:
            idle, self._idle = self._idle, []
            for each in idle:
                if not each.called:
                    each.callback(None)
        self._advance()

    # ---- one attempt ----

    async def _attempt(self, id: str, fetching: Fetching | None) -> float | None:
        """Try *id*; when to look at it again."""
        try:
            message, content, prefix = await self._opening.do(id)
        except FileNotFoundError:
            return None
        except Unreadable as problem:
            place = await self._threads.run(self._spool.set_aside, id)
            _log.error("{id} cannot be read and was moved to {place}: {problem}",
                           id=id, place=str(place), problem=str(problem))
            return None
        try:
            if message.priority:
                self._priorities[id] = message.priority
            if message.held:
                self._held.add(id)
                return None
            self._held.discard(id)
            if fetching is not None:
                return await self._hand(message, content, prefix, fetching)
            now = self._clock.seconds()
            if message.waiting and message.due > now + 0.001:
                return message.due
            if message.waiting and not self._schedule.expired(message, now):
                message.attempts += 1
                ways = self._ways(message)
                saving = DeferredLock() if len(ways) > 1 else None
                going = [self._go(hop, Job(message, recipients, path, content, prefix), saving)
                         for (hop, path), recipients in ways.items()]
                # Nearly all messages go one way.
                tried = [await going[0]] if saving is None else await _all(going)
                if self._stopped and sum(tried) < sum(map(len, ways.values())):
                    await self._leave(message, any(tried))
                    return None
            return await self._settle(message, content)
        finally:
            content.close()

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
                    Job(message, recipients, path, content, prefix)))
        if not tried:
            return message.due
        return await self._settle(message, content, message.due)

    def _save_all(self, messages: Sequence[QueuedMessage]) -> list[None]:
        self._spool.save(*messages)
        return [None] * len(messages)

    def _remove_all(self, ids: Sequence[str]) -> list[None]:
        self._spool.remove(*ids)
        return [None] * len(ids)

    def _open_all(self, ids: Sequence[str]) -> list[_Opened | Exception]:
        found: list[_Opened | Exception] = []
        for id in ids:
            try:
                found.append(self._open(id))
            except Exception as problem:
                found.append(problem)
        return found

    def _open(self, id: str) -> _Opened:
        """The message, and if it is our user's its signatures."""
        message, stream = self._spool.open(id)
        content = Content(stream)
        message.size = content.size
        message.tls_optional = _TLS_OPTIONAL.search(content.head(HEADER_OCTETS)) is not None
        sign = (self._sign is not None and message.account and not message.held
                and message.waiting)
        prefix = self._sign(  # type: ignore[misc]
            content.whole(), message.reverse_path.domain) if sign else b""
        return message, content, prefix

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

    async def _leave(self, message: QueuedMessage, changed: bool) -> None:
        """We stop amid an attempt: whoever sends next makes it again, at once."""
        if changed:
            message.attempts -= 1
            message.due = self._clock.seconds()
            await self._saving.do(message)

    async def _go(self, hop: Hop | None, job: Job, saving: DeferredLock | None) -> int:
        """Carry *job*, or deliver it here; for how many of its recipients there is a result."""
        if hop is None:
            assert self._local is not None, "a message was held that nobody can deliver"
            results = await self._local.deliver(job)
        elif hop.kept:
            results = [Result(each, WAITING, EnhancedStatus(4, 4, 0),
                              f"kept until {hop.host} fetches it (ATRN)", kept=True)
                       for each in job.recipients]
        else:
            results = await self.carrier.carry(hop, job)
        self._note_all(job.message, results)
        if saving is not None:
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
        _log.info("{id} {state} recipient={recipient} sender={sender} host={host} "
                      "attempt={attempt}: {reply}",
                      id=message.id, state="kept" if result.kept else
                      "deferred" if result.state == WAITING else result.state,
                      recipient=str(each.address), sender=str(message.reverse_path),
                      host=result.host, attempt=message.attempts, reply=result.reply)

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
        await self._report(message, content, "failed", [
            each for each in message.recipients if each.state == FAILED and not each.reported])
        for action, local in ("relayed", False), ("delivered", True):
            await self._report(message, content, action, [
                each for each in message.recipients
                if each.state == RELAYED and each.local is local and not each.reported])
        if following is None:
            await self._removing.do(message.id)
            _log.info("{id} done attempts={attempts}", id=message.id,
                          attempts=message.attempts)
            return None
        message.due = following = following if due is None else due
        if warns:
            # Who fetches comes when it comes, so only who asked is told.
            late = [each for each in message.waiting if each.wants("DELAY")
                    and (not each.kept or "DELAY" in each.notify or message.by is not None)]
            if message.by is not None:
                late = [replace(each, status="4.4.7") for each in late]  # RFC 2852 §4.1
            await self._reports.send("delayed", message, late, content.head(HEADER_OCTETS),
                                     self._schedule.end(message))
        await self._saving.do(message)
        return following

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
