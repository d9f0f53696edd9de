"""Hands messages to the next host: connections, kept within bounds and used again.

Mail for one :class:`~mailsvc.queue.routes.Hop` shares its connections: while one is open its next
message takes it, and it is kept for some seconds after the last.  What another host put off (4yz),
and did not perhaps take all the same, goes to the next address at once (RFC 5321 §5.1); what it
refused (5yz) is refused.  When no address of a hop could be reached, all that waits for it is put
off together, instead of running into as many time-outs.

Where more mail waits, and the host takes commands ahead and answers quickly, the envelope of the
next message leaves with the end of the one before: a message takes one round trip (RFC 2920 §3.1).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
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
from twisted.python.failure import Failure

from mailsvc.client import Client, Timeouts
from mailsvc.dialing import Line
from mailsvc.errors import EnhancedStatus
from mailsvc.queue import pipe
from mailsvc.queue.connection import Connection, reply_text
from mailsvc.queue.exchangers import Exchangers, Place, Unroutable
from mailsvc.queue.job import Job, Result, line_up
from mailsvc.queue.limits import QueueSettings
from mailsvc.queue.message import FAILED, RELAYED, WAITING
from mailsvc.queue.race import Race
from mailsvc.queue.routes import Hop, RelaySettings
from mailsvc.queue.security.terms import Security, Terms
from mailsvc.queue.slots import Slots
from mailsvc.smtp.failures import SendingFailure, TLSFailed
from mailsvc.transport import Dialling

_log = Logger("mailsvc.queue")


#: Of how many hops it is remembered which of their addresses lost a message.
_LOSSY = 1000


@dataclass(slots=True)
class _Destination:
    """What goes on with one hop."""

    jobs: deque[Job] = field(default_factory=deque)
    workers: int = 0
    idle: list[Connection] = field(default_factory=list)
    not_before: float = 0.0
    #: Whether it takes what is sent ahead of its answers.
    ahead: bool = True

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
        self._dialling = Dialling(reactor)
        self._slots = Slots(queue.connections)
        self._destinations: dict[Hop, _Destination] = {}
        self._open: set[Connection] = set()
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

        :returns: a result for each recipient that was tried: for all, unless :meth:`stop`,
            :meth:`abort` or :meth:`Job.withdraw` came between.
        """
        if self._stopped:
            return succeed([])
        destination = self._destinations.setdefault(hop, _Destination())
        line_up(destination.jobs, job)
        if destination.workers < self._queue.connections_per_destination:
            destination.workers += 1
            working = Deferred.fromCoroutine(self._work(hop, destination))
            working.addErrback(self._bug, destination)
            working.addBoth(self._ended, hop, destination)
        return job.done

    async def take_over(self, line: Line) -> Connection:
        """Speak to the next host, which has become the server of *line* (ATRN).

        :raises SendingFailure: it is none; the connection is over.
        """
        client = await Client.over(line, hello=self._hello, timeouts=self._timeouts,
                                   clock=self._reactor)
        connection = self._opened(client)
        try:
            await client.ready()
        except SendingFailure:
            self._quit(connection)
            raise
        return connection

    async def hand(self, connection: Connection, job: Job) -> list[Result]:
        """Hand *job* over *connection*, of :meth:`take_over`; as :meth:`carry`."""
        if self._stopped:
            return []
        if await self._send(connection, job):
            # There is no other host to ask.
            job.give_up()
            self._finish(job)
        return await job.done

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
        for each in tuple(self._open):
            each.close()

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
        connection: Connection | None = None
        job: Job | None = None
        try:
            while True:
                if not destination.jobs:
                    if connection is None or connection.unanswered is None:
                        break
                    # It may be for another connection then; or there are others.
                    await connection.settled()
                    continue
                await self._pace(destination)
                if self._slots.wanted_by_more_than(destination.urgency()):
                    self._slots.release()
                    await self._slots.acquire(destination.urgency)
                if not destination.jobs:
                    continue
                job = destination.jobs.popleft()
                connection = await self._carry(hop, destination, job, connection)
                if not job.done.called and not _is_ahead(job, connection):
                    self._finish(job, "not sent", EnhancedStatus(4, 4, 0))
        finally:
            self._slots.release()
            if job is not None and not job.done.called and not _is_ahead(job, connection):
                self._finish(job, "internal error", EnhancedStatus(4, 3, 0))
            if connection is not None:
                self._keep(hop, destination, connection)

    async def _pace(self, destination: _Destination) -> None:
        """Wait until a further message may go to *destination*."""
        if self._queue.messages_per_minute:
            now = self._reactor.seconds()
            begin = max(now, destination.not_before)
            destination.not_before = begin + 60 / self._queue.messages_per_minute
            if begin > now:
                await deferLater(self._reactor, begin - now)

    # ---- connections ----

    def _keep(self, hop: Hop, destination: _Destination, connection: Connection) -> None:
        """Keep a connection for a while, for whoever comes."""
        if (connection.closed or not self._queue.idle_seconds or self._worn(connection)
                or connection.unanswered is not None):
            self._quit(connection)
            return
        destination.idle.append(connection)

        def end() -> None:
            if connection in destination.idle:
                destination.idle.remove(connection)
                self._quit(connection)
                if not destination.workers and not destination.idle:
                    self._destinations.pop(hop, None)

        self._reactor.callLater(self._queue.idle_seconds, end)

    def _worn(self, connection: Connection) -> bool:
        return (connection.exhausted
                or connection.transactions >= self._queue.messages_per_connection)

    def _quit(self, connection: Connection) -> None:
        self._open.discard(connection)
        connection.quit()

    async def _carry(self, hop: Hop, destination: _Destination, job: Job,
                     connection: Connection | None) -> Connection | None:
        """Carry one job, over *connection* if it is still good; the connection that it left."""
        if hop.command:
            await self._pipe(hop, job)
            return None
        if connection is None and destination.idle:
            connection = destination.idle.pop()
        if connection is not None:
            if not connection.closed and not self._worn(connection) and (
                    connection.lacking(job) is None):
                behind = connection.unanswered is not None
                again = await (self._send_ahead(destination, connection, job)
                               if destination.ahead and destination.jobs and connection.is_quick
                               else self._send(connection, job))
                if behind and connection.timed_out:
                    # Some throw away what comes behind a message, whatever they offer.
                    destination.ahead = False
                    _log.info("{host} does not answer; to {hop} nothing is sent ahead of an answer "
                              "for now", host=connection.host, hop=str(hop))
                if connection.unanswered is job:
                    return connection
                if not again or not (connection.closed or connection.exhausted):
                    # What this host put off it would put off again over a new connection.
                    self._finish(job)
                    return connection
            await connection.settled()
            self._quit(connection)
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
        # Should it be withdrawn meanwhile, the connection is for the next one.
        while left and not self._aborted and (destination.jobs or not job.done.called):
            place = left[0]
            race = self._race(hop, [each.address for each in left if each.name == place.name])
            try:
                connection = await self._connect(hop, place, race, terms)
            except SendingFailure as failure:
                left = _without(left, place, race)
                failed = failure if failed is None else _weightier(failed, failure)
                _log.info("{id} not connected host={host} address={address}: {reason}",
                              id=job.message.id, host=place.name, address=place.address,
                              reason=failure.text)
                # A host that says that it takes no mail at all may have a colleague who does.
                continue
            left = _without(left, place, race)
            reached = True
            again = not job.done.called and await self._send(connection, job)
            if job.in_flight:
                # The next attempt begins with another, should there be one.
                self._lossy[hop] = race.winner or place.address
                if len(self._lossy) > _LOSSY:
                    del self._lossy[next(iter(self._lossy))]
            if not again:
                return connection
            self._quit(connection)
        if not left and (failed is None or not failed.temporary):
            # Every host was asked, and what they lack they will lack tomorrow.
            job.give_up()
        if failed is not None and not reached:
            self._all(destination, job, _said(failed), failed.status,
                      places[-1].name if failed.reply else "")
        else:
            self._finish(job)
        return None

    async def _send_ahead(self, destination: _Destination, connection: Connection, job: Job
                          ) -> bool:
        """As :meth:`_send`, unless *job* is unanswered then: what becomes of it is seen to."""
        either: Deferred[bool] = Deferred()

        def sent() -> None:
            connection.unanswered = job
            either.callback(False)

        def ended(again: bool | Failure) -> None:
            if connection.unanswered is not job:
                either.callback(again)
                return
            if isinstance(again, Failure):
                _log.failure("the queue could not send", again)
                self._finish(job, "internal error", EnhancedStatus(4, 3, 0))
            elif again and connection.closed and destination.workers and not self._stopped:
                destination.jobs.appendleft(job)  # for another connection
            else:
                self._finish(job)
            connection.answered()

        Deferred.fromCoroutine(self._send(connection, job, sent)).addBoth(ended)
        return await either

    async def _send(self, connection: Connection, job: Job,
                    sent: Callable[[], object] | None = None) -> bool:
        """Send *job*; whether another host may do better.  Without, the job is done.

        :param sent: as of :meth:`Connection.send`.
        """
        again = await connection.send(job, sent)
        if connection.closed:
            self._open.discard(connection)
        if not again:
            self._finish(job)
        return again

    def _opened(self, client: Client) -> Connection:
        """The connection of *client*, which is closed with the others."""
        connection = Connection(client, self._reactor)
        self._open.add(connection)
        if self._aborted:
            connection.close()
        return connection

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
                self._dialling, address, port, timeout=seconds,
                bindAddress=(bind, 0) if bind else None)

        return Race(addresses, endpoint, self._reactor)

    async def _connect(self, hop: Hop, place: Place, race: Race, terms: Terms
                       ) -> Connection:
        demand = await terms.demand(place)
        try:
            client: Client = await self._dial(
                place.name.strip("[]"), hop.port or self._relay.port, endpoint=race,
                tls=demand.tls, trust=demand.trust, hello=self._hello, lmtp=hop.lmtp,
                timeouts=self._timeouts, reactor=self._reactor)
        except TLSFailed as failure:
            raise terms.missed(_reached(place, race), demand, failure) from None
        terms.reached(_reached(place, race), demand, client)
        connection = self._opened(client)
        try:
            # What the host offers decides what it may be given.
            await client.ready()
            connection.inward = place.name.startswith("/")
            connection.sealed = await terms.seals(place, client)
            if hop.user:
                await client.auth(hop.user, hop.password)
        except SendingFailure:
            self._quit(connection)
            raise
        return connection

    async def _pipe(self, hop: Hop, job: Job) -> None:
        """Hand a job to a program, once for each recipient."""
        job.begun = True
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
            job.conclude([Result(
                each, RELAYED if status == done else FAILED if status.class_ == 5 else WAITING,
                status, text, timely=True)])
        if self._stopped:
            job.done.callback(job.results)
        else:
            self._finish(job)

    # ---- results ----

    def _finish(self, job: Job, text: str = "", status: EnhancedStatus | None = None,
                host: str = "") -> None:
        """Give out the results; *status* is that of the recipients that have none."""
        if self._aborted:
            job.interrupt()
        else:
            job.finish(text, status, host)

    def _all(self, destination: _Destination, job: Job, text: str, status: EnhancedStatus,
             host: str = "") -> None:
        """Nothing can be sent by this hop now: that is the result for all that waits for it."""
        waiting = [job, *destination.jobs]
        destination.jobs.clear()
        for each in waiting:
            self._finish(each, text, status, host)


def _is_ahead(job: Job, connection: Connection | None) -> bool:
    """Whether *job* has been sent over *connection* and is to be answered yet."""
    return connection is not None and connection.unanswered is job


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


def _weightier(first: SendingFailure, later: SendingFailure) -> SendingFailure:
    """Which of the failures of two hosts counts: only if both are for good is all lost."""
    if first.temporary != later.temporary:
        return first if first.temporary else later
    # What a host did not prove says more than that another was not there.
    return first if isinstance(first, TLSFailed) else later


def _said(failure: SendingFailure) -> str:
    return reply_text(failure.reply) or failure.text
