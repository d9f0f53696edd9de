"""Hands messages to the next host: connections, kept within bounds and used again.

Mail for one :class:`~mailsvc.queue.routes.Hop` shares its connections: while one is open its next
message takes it, and it is kept for some seconds after the last.  What another host put off (4yz),
and did not perhaps take all the same, goes to the next address at once (RFC 5321 §5.1); what it
refused (5yz) is refused.  When no address of a hop could be reached, all that waits for it is put
off together, instead of running into as many time-outs.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    UNIXClientEndpoint,
)
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import deferLater
from twisted.logger import Logger

from mailsvc.client import Client, Outcome, Recipient, Timeouts
from mailsvc.errors import EnhancedStatus
from mailsvc.mail import NULL_PATH, Address, DeliverBy
from mailsvc.queue import pipe
from mailsvc.queue.content import Content
from mailsvc.queue.exchangers import Exchangers, Place, Unroutable
from mailsvc.queue.limits import QueueSettings
from mailsvc.queue.message import FAILED, RELAYED, WAITING, QueuedMessage, QueuedRecipient
from mailsvc.queue.race import Race
from mailsvc.queue.routes import Hop, RelaySettings
from mailsvc.queue.security.terms import Security, Terms
from mailsvc.queue.slots import Slots
from mailsvc.smtp.failures import NotOffered, SendingFailure, TLSFailed
from mailsvc.smtp.offers import understood
from mailsvc.smtp.requests import Parameters

_log = Logger("mailsvc.queue")


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one recipient in one attempt.

    :ivar state: RELAYED, FAILED, or WAITING when it is to be tried again.
    :ivar reply: what was said, for people.
    :ivar host: who said it; empty when nobody did.
    :ivar reports: whether the next host has taken over to report of success (DSN).
    :ivar timely: whether it minds within how much time the message is to be delivered (DELIVERBY).
    """

    recipient: QueuedRecipient
    state: str
    status: EnhancedStatus
    reply: str
    host: str = ""
    reports: bool = False
    timely: bool = False


@dataclass(slots=True)
class Job:
    """One message for some recipients, all by one hop.

    :ivar reverse_path: the one to use, rewritten for mail that is forwarded.
    :ivar content: the message.
    :ivar prefix: what is sent before it: fields that were added on the way out.
    :ivar in_flight: whether a host was sent it and has not said whether it took it.
    """

    message: QueuedMessage
    recipients: list[QueuedRecipient]
    reverse_path: Address
    content: Content
    prefix: bytes = b""
    done: Deferred[list[Result]] = field(default_factory=Deferred)
    results: list[Result] = field(default_factory=list)
    in_flight: bool = False


#: Of how many hops it is remembered which of their addresses lost a message.
_LOSSY = 1000


@dataclass(slots=True)
class _Destination:
    """What goes on with one hop."""

    jobs: deque[Job] = field(default_factory=deque)
    workers: int = 0
    idle: list[Client] = field(default_factory=list)
    not_before: float = 0.0

    def urgency(self) -> int:
        """The priority of what is next."""
        return self.jobs[0].message.priority if self.jobs else -10


class Carrier:
    """Carries jobs.

    :param security: knows what a host has to prove.
    :param hello: what we call ourselves.
    :param dial: opens a connection, as :meth:`mailsvc.client.Client.dial`.
    """

    def __init__(self, relay: RelaySettings, queue: QueueSettings, exchangers: Exchangers,
                 security: Security, hello: str, reactor: Any, dial: Any = Client.dial) -> None:
        self._relay = relay
        self._queue = queue
        self._exchangers = exchangers
        self._security = security
        self._hello = relay.hello or hello
        self._reactor = reactor
        self._dial = dial
        self._slots = Slots(queue.connections)
        self._destinations: dict[Hop, _Destination] = {}
        self._open: set[Client] = set()
        #: The address of each hop that last left open whether it had taken a message.
        self._lossy: dict[Hop, str] = {}
        self._stopped = self._aborted = False
        seconds = relay.reply_seconds
        self._timeouts = Timeouts(
            connect=relay.connect_seconds, tls=min(60.0, seconds), greeting=seconds, hello=seconds,
            auth=seconds, mail=seconds, rcpt=seconds, data=seconds, block=seconds,
            end=2 * seconds, other=seconds)

    def carry(self, hop: Hop, job: Job) -> Deferred[list[Result]]:
        """Try to hand *job* to *hop*; never fails.

        :returns: a result for each recipient that was tried: for all, unless :meth:`stop` or
            :meth:`abort` came between.
        """
        if self._stopped:
            return succeed([])
        destination = self._destinations.setdefault(hop, _Destination())
        _line_up(destination.jobs, job)
        if destination.workers < self._queue.connections_per_destination:
            destination.workers += 1
            working = Deferred.fromCoroutine(self._work(hop, destination))
            working.addErrback(self._bug, destination)
            working.addBoth(self._ended, hop, destination)
        return job.done

    def start(self, *, leading: bool) -> None:
        """Begin with what is done beside carrying; that of all processes together if *leading*."""
        self._security.start(leading=leading)

    def stop(self) -> None:
        """Begin with no further job."""
        self._stopped = True
        self._security.stop()
        for destination in self._destinations.values():
            while destination.jobs:
                destination.jobs.popleft().done.callback([])

    def abort(self) -> None:
        """Close every connection at once: what is under way has not been tried."""
        self.stop()
        self._aborted = True
        for client in tuple(self._open):
            client.close()

    def _bug(self, failure: Any, destination: _Destination) -> None:
        _log.failure("the queue could not send", failure)
        # Nobody may wait for ever because of it.
        while destination.jobs:
            self._finish(destination.jobs.popleft(), "internal error", EnhancedStatus(4, 3, 0))

    def _ended(self, _: object, hop: Hop, destination: _Destination) -> None:
        destination.workers -= 1
        if not destination.workers and not destination.idle:
            self._destinations.pop(hop, None)

    async def _work(self, hop: Hop, destination: _Destination) -> None:
        await self._slots.acquire(destination.urgency)
        client: Client | None = None
        job: Job | None = None
        try:
            while destination.jobs:
                await self._pace(destination)
                if self._slots.wanted_by_more_than(destination.urgency()):
                    self._slots.release()
                    await self._slots.acquire(destination.urgency)
                if not destination.jobs:
                    break
                job = destination.jobs.popleft()
                client = await self._carry(hop, destination, job, client)
                if not job.done.called:
                    self._finish(job, "not sent", EnhancedStatus(4, 4, 0))
        finally:
            self._slots.release()
            if job is not None and not job.done.called:
                self._finish(job, "internal error", EnhancedStatus(4, 3, 0))
            if client is not None:
                self._keep(hop, destination, client)

    async def _pace(self, destination: _Destination) -> None:
        """Wait until a further message may go to *destination*."""
        if self._queue.messages_per_minute:
            now = self._reactor.seconds()
            begin = max(now, destination.not_before)
            destination.not_before = begin + 60 / self._queue.messages_per_minute
            if begin > now:
                await deferLater(self._reactor, begin - now)

    # ---- connections ----

    def _keep(self, hop: Hop, destination: _Destination, client: Client) -> None:
        """Keep a connection for a while, for whoever comes."""
        if client.closed or not self._queue.idle_seconds or self._worn(client):
            self._quit(client)
            return
        destination.idle.append(client)

        def end() -> None:
            if client in destination.idle:
                destination.idle.remove(client)
                self._quit(client)
                if not destination.workers and not destination.idle:
                    self._destinations.pop(hop, None)

        self._reactor.callLater(self._queue.idle_seconds, end)

    def _worn(self, client: Client) -> bool:
        return client.transactions >= self._queue.messages_per_connection

    def _quit(self, client: Client) -> None:
        self._open.discard(client)
        if not client.closed:
            client.quit()

    async def _carry(self, hop: Hop, destination: _Destination, job: Job,
                     client: Client | None) -> Client | None:
        """Carry one job, over *client* if it is still good; the connection that it left."""
        if hop.command:
            await self._pipe(hop, job)
            return None
        if client is None and destination.idle:
            client = destination.idle.pop()
        if client is not None:
            if not client.closed and not self._worn(client) and self._lacking(client, job) is None:
                again = await self._send(client, job)
                if not again or not client.closed:
                    # What this host put off it would put off again over a new connection.
                    self._finish(job)
                    return client
            else:
                self._quit(client)
        try:
            places = sorted(await self._places(hop),
                            key=lambda place: place.address == self._lossy.get(hop))
        except Unroutable as failure:
            self._all(destination, job, failure.text, failure.status)
            return None
        terms = await self._security.terms(hop)
        failed: SendingFailure | None = None
        reached = False
        left = list(places)
        while left and not self._aborted:
            place = left[0]
            race = self._race(hop, [each.address for each in left if each.name == place.name])
            try:
                client = await self._connect(hop, place, race, terms)
            except SendingFailure as failure:
                left = _without(left, place, race)
                # What a host did not prove says more than that another was not there.
                failed = failed if isinstance(failed, TLSFailed) else failure
                _log.info("{id} not connected host={host} address={address}: {reason}",
                              id=job.message.id, host=place.name, address=place.address,
                              reason=failure.text)
                # A host that says that it takes no mail at all may have a colleague who does.
                continue
            left = _without(left, place, race)
            reached = True
            again = await self._send(client, job)
            if job.in_flight:
                # The next attempt begins with another, should there be one.
                self._lossy[hop] = race.winner or place.address
                if len(self._lossy) > _LOSSY:
                    del self._lossy[next(iter(self._lossy))]
            if not again:
                return client
            self._quit(client)
        if failed is None and not left:
            # Every host was asked, and what they lack they will lack tomorrow.
            job.results = [replace(each, state=FAILED) if each.status.class_ == 5 else each
                           for each in job.results]
        if failed is not None and not reached:
            self._all(destination, job, _said(failed), failed.status,
                      places[-1].name if failed.reply else "")
        else:
            self._finish(job)
        return None

    async def _places(self, hop: Hop) -> Sequence[Place]:
        if hop.exchangers:
            return await self._exchangers.find(hop.host)
        if hop.host.startswith("/"):
            return (Place(hop.host, hop.host),)
        return await self._exchangers.addresses(hop.host)

    def _race(self, hop: Hop, addresses: list[str]) -> Race:
        """An endpoint for whichever of one host's *addresses* answers first."""
        port, seconds = hop.port or self._relay.port, self._relay.connect_seconds

        def endpoint(address: str) -> IStreamClientEndpoint:
            if address.startswith("/"):
                return UNIXClientEndpoint(self._reactor, address, timeout=seconds)
            six = ":" in address
            bind = next((each for each in self._relay.bind if (":" in each) is six), None)
            return (TCP6ClientEndpoint if six else TCP4ClientEndpoint)(
                self._reactor, address, port, timeout=seconds,
                bindAddress=(bind, 0) if bind else None)

        return Race(addresses, endpoint, self._reactor)

    async def _connect(self, hop: Hop, place: Place, race: Race, terms: Terms) -> Client:
        demand = await terms.demand(place)
        try:
            client: Client = await self._dial(
                place.name.strip("[]"), hop.port or self._relay.port, endpoint=race,
                tls=demand.tls, trust=demand.trust, hello=self._hello, lmtp=hop.lmtp,
                timeouts=self._timeouts, reactor=self._reactor)
        except TLSFailed as failure:
            raise terms.missed(_reached(place, race), demand, failure) from None
        terms.reached(_reached(place, race), demand, client)
        self._open.add(client)
        if self._aborted:
            client.close()
        try:
            # What the host offers decides what it may be given.
            await client.ready()
        except SendingFailure:
            self._quit(client)
            raise
        if hop.user:
            try:
                await client.auth(hop.user, hop.password)
            except SendingFailure:
                self._quit(client)
                raise
        return client

    async def _pipe(self, hop: Hop, job: Job) -> None:
        """Hand a job to a program, once for each recipient."""
        sender, done = str(job.reverse_path), EnhancedStatus(2, 0, 0)
        for each in job.recipients:
            to = each.address
            if self._stopped:
                break
            if to.local_part.startswith("-"):
                status, text = EnhancedStatus(5, 1, 3), "the address begins with a hyphen"
            else:
                status, text = await pipe.run(
                    self._reactor, hop.words({
                        "recipient": str(to), "local_part": to.local_part, "domain": to.domain,
                        "sender": sender, "id": job.message.id}),
                    {"SENDER": sender, "RECIPIENT": str(to),
                     "ORIGINAL_RECIPIENT": str(each.original)},
                    _delivered(job), self._relay.pipe_seconds)
            job.results.append(Result(
                each, RELAYED if status == done else FAILED if status.class_ == 5 else WAITING,
                status, text, timely=True))
        if self._stopped:
            job.done.callback(job.results)
        else:
            self._finish(job)

    # ---- one transaction ----

    async def _send(self, client: Client, job: Job) -> bool:
        """Send to those of *job* who have no result yet; whether another host may do better.

        Without, the job is done.
        """
        message = job.message
        left = _left(job)
        lacking = self._lacking(client, job)
        if lacking is not None:
            job.results = [each for each in job.results if each.state != WAITING]
            job.results += [Result(each, WAITING, lacking.status, lacking.text, client.host)
                            for each in left]
            return True
        reports = client.extension("DSN") is not None
        outcomes: Sequence[Outcome] = await client.send(
            job.reverse_path,
            [Recipient(each.address, each.notify if reports else (),
                       _orcpt(each) if reports else "") for each in left],
            job.content.message(job.prefix), size=job.content.size + len(job.prefix),
            body=message.body, smtputf8=message.smtputf8, ret=message.ret if reports else "",
            envid=message.envid if reports else "", requiretls=message.requiretls,
            by=self._by(client, message), priority=message.priority)
        again = False
        # One that was refused over a connection that had ended unnoticed is not put off by anybody.
        job.results = [each for each in job.results if each.state != WAITING]
        for recipient, outcome in zip(left, outcomes, strict=True):
            state = (RELAYED if outcome.accepted else WAITING if outcome.temporary else FAILED)
            failure = outcome.failure
            text = _text(outcome.reply) or (failure.text if failure else "")
            job.results.append(Result(
                recipient, state, outcome.status, text, client.host or "", reports,
                client.lmtp or client.extension("DELIVERBY") is not None))
            again = again or (state == WAITING and not outcome.in_flight)
        if client.closed:
            self._open.discard(client)
        # Whoever may have it already must not get it from another host as well.
        job.in_flight = any(outcome.in_flight for outcome in outcomes)
        if again and not job.in_flight:
            return True
        self._finish(job)
        return False

    def _finish(self, job: Job, text: str = "", status: EnhancedStatus | None = None,
                host: str = "") -> None:
        """Give out the results; *status* is that of the recipients that have none."""
        if job.done.called:
            return
        if self._aborted:
            # It was ourselves who put them off.
            job.results = [each for each in job.results if each.state != WAITING]
            job.done.callback(job.results)
            return
        known = {id(each.recipient) for each in job.results}
        for recipient in job.recipients:
            if id(recipient) not in known:
                said = status or EnhancedStatus(4, 4, 1)
                job.results.append(Result(recipient, FAILED if said.class_ == 5 else WAITING, said,
                                          text, host))
        job.done.callback(job.results)

    def _by(self, client: Client, message: QueuedMessage) -> DeliverBy | None:
        """What is left of the time that its sender gave it (RFC 2852 §4.1).

        By LMTP it is delivered, in time.
        """
        if message.by is None or message.deadline is None or client.lmtp:
            return None
        left = math.floor(message.deadline - self._reactor.seconds())
        return replace(message.by, seconds=max(left, 1) if message.by.mode == "R" else left)

    def _lacking(self, client: Client, job: Job) -> NotOffered | None:
        """What the message has to be promised, and this host does not offer; another may."""
        if not job.message.requiretls and job.message.by is None:
            return None
        promises = Parameters(requiretls=job.message.requiretls, by=self._by(client, job.message))
        try:
            understood(NULL_PATH, promises, client.extensions, client.tls_active)
        except NotOffered as failure:
            return failure
        return None

    def _all(self, destination: _Destination, job: Job, text: str, status: EnhancedStatus,
             host: str = "") -> None:
        """Nothing can be sent by this hop now: that is the result for all that waits for it."""
        waiting = [job, *destination.jobs]
        destination.jobs.clear()
        for each in waiting:
            self._finish(each, text, status, host)


def _reached(place: Place, race: Race) -> Place:
    """*place* with the address that was connected to."""
    return place if race.winner is None else replace(place, address=race.winner)


def _without(places: list[Place], place: Place, race: Race) -> list[Place]:
    """What is left of *places* after a connection to *place* by *race*: what it did not try."""
    if race.winner is None:
        return [each for each in places if each.name != place.name]
    return [each for each in places if each.address != race.winner]


def _delivered(job: Job) -> Iterator[bytes]:
    """The message as it is at its end."""
    yield f"Return-Path: <{job.reverse_path}>\r\n".encode()
    message = job.content.message(job.prefix)
    yield from [message] if isinstance(message, bytes) else message


def _line_up(jobs: deque[Job], job: Job) -> None:
    """Put *job* behind all that are as urgent as it is, or more so (RFC 6710)."""
    place = len(jobs)
    while place and jobs[place - 1].message.priority < job.message.priority:
        place -= 1
    jobs.insert(place, job)


def _left(job: Job) -> list[QueuedRecipient]:
    """The recipients that no host has decided about yet."""
    decided = {id(each.recipient) for each in job.results if each.state != WAITING}
    return [each for each in job.recipients if id(each) not in decided]


def _orcpt(recipient: QueuedRecipient) -> str:
    """The original recipient to pass on (RFC 3461 §5.2.1 (d))."""
    if recipient.orcpt:
        return recipient.orcpt
    return f"rfc822;{recipient.original}" if recipient.original.is_ascii else ""


def _text(reply: Any) -> str:
    if reply is None:
        return ""
    status = f"{reply.status} " if reply.status else ""
    return f"{reply.code} {status}" + " ".join(reply.lines)


def _said(failure: SendingFailure) -> str:
    return _text(failure.reply) or failure.text
