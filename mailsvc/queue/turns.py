"""Hosts that fetch their mail over a connection that they opened (ATRN, RFC 2645).

The process that has the connection, and has let its client log in, asks the one that sends, over
a connection to the Unix socket ``queue/turn``: one line, ``{"domains": […], "connection": id,
"account": name}``.  The answer is one line too: ``{}``, or ``{"refused": "nothing"}`` (no mail
waits) or ``"in-use"`` (another connection fetches it).  After ``{}`` the octets of the customer,
who has become a server, pass over the same connection, and the end of either is the other's.  So
one process sends all there is, TLS is no matter to it, and nothing is left over if it dies.

Messages go out one by one, the most urgent first and of equals the oldest; what comes meanwhile
goes with them.  What a customer does not take it may fetch another time: all is as with other next
hosts, only that nobody else is asked.  Of two that want mail of one domain at a time the second is
refused: the first may have taken what it has not yet said that it has.

The socket belongs to the service's user, and nobody else may connect.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from mailsvc.dialing import Line
from mailsvc.errors import MailFailure, NothingWaits, TemporaryFailure, TurnInUse
from mailsvc.names import fold_domain
from mailsvc.queue.attempts import Fetching
from mailsvc.queue.connection import Connection
from mailsvc.queue.job import Job, Result
from mailsvc.queue.message import FAILED, RELAYED, WAITING, QueuedMessage, Unreadable
from mailsvc.queue.runner import Runner
from mailsvc.queue.spool import Spool
from mailsvc.smtp.failures import SendingFailure
from mailsvc.store.threads import Threads

_log = Logger("mailsvc.queue")

#: How long the answer is waited for, seconds: the whole queue is looked through for it.  RFC 2645
#: §5.2.1 has customers wait for ten minutes.
_PATIENCE = 300.0
#: How long messages are waited for that are being worked on, seconds: one time after the other.
_PAUSES = (0.1, 0.3, 0.9)
#: Whatever an account may fetch fits into a request.
_MOST_OCTETS = 1 << 20

_REFUSALS: dict[str, type[MailFailure]] = {"nothing": NothingWaits, "in-use": TurnInUse}


# ---- for the process that has the customer ----


def ask(reactor: Any, path: str, domains: Collection[str], connection: str, account: str,
        protocol: Protocol) -> Deferred[None]:
    """As ``IQueue.turn``, of the process that listens at *path*."""
    request = {"domains": list(domains), "connection": connection, "account": account}
    asking = _Asking(json.dumps(request).encode("ascii") + b"\n", protocol)
    connecting = UNIXClientEndpoint(reactor, path, timeout=5).connect(
        Factory.forProtocol(lambda: asking))

    def unreached(failure: Failure) -> None:
        raise TemporaryFailure(f"nobody sends now: {failure.getErrorMessage()}")

    def too_late(_: object, seconds: float) -> None:
        asking.give_up()
        raise TemporaryFailure(f"who sends did not answer within {seconds:g} seconds")

    connecting.addCallbacks(lambda _: asking.answered, unreached)
    return connecting.addTimeout(_PATIENCE, reactor, too_late)


class _Asking(Protocol):
    """Asks; then *protocol* has the connection."""

    transport: Any

    def __init__(self, request: bytes, protocol: Protocol) -> None:
        self.answered: Deferred[None] = Deferred()
        self._request = request
        self._protocol = protocol
        self._data = b""

    def connectionMade(self) -> None:
        self.transport.write(self._request)

    def give_up(self) -> None:
        """The answer comes too late."""
        if self.transport is not None:
            self.transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        line, end, rest = self._data.partition(b"\n")
        if not end or self.answered.called:
            return
        refused = json.loads(line).get("refused")
        if refused is not None:
            self.transport.loseConnection()
            kind = _REFUSALS.get(refused, TemporaryFailure)
            self.answered.errback(kind(f"who sends refused: {refused}"))
            return
        self.transport.protocol = self._protocol
        self._protocol.makeConnection(self.transport)
        if rest:
            self._protocol.dataReceived(rest)
        self.answered.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.answered.called:
            self.answered.errback(TemporaryFailure("who sends has ended"))


# ---- for the process that sends ----


class Waiting:
    """Which messages in *spool* wait for domains that somebody has asked for.

    To whom a message goes never changes, so each is read once for that, and of the others only is
    remembered that they were.  Whoever is the first to ask for a domain has all of them read.
    Everything here blocks, and is for threads.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._lock = threading.Lock()
        self._domains: set[str] = set()
        #: What was read; and of that, what is for one of these domains.
        self._read: set[str] = set()
        self._theirs: set[str] = set()

    def find(self, fetching: Fetching) -> list[str]:
        """What there is to fetch now, in the order in which it goes."""
        found = []
        for id in self._candidates(fetching.domains):
            with suppress(FileNotFoundError, Unreadable):
                message = self._spool.load(id)
                if fetching.recipients(message):
                    found.append((-message.priority, id))
        return [id for _, id in sorted(found)]

    def _candidates(self, domains: Collection[str]) -> set[str]:
        with self._lock:
            if not self._domains.issuperset(domains):
                self._domains.update(domains)
                self._read.clear()
            there = self._spool.ids()
            self._read &= there
            self._theirs &= there
            for id in there - self._read:
                with suppress(FileNotFoundError, Unreadable):
                    self._look(self._spool.load(id))
                self._read.add(id)
            return self._theirs.copy()

    def _look(self, message: QueuedMessage) -> None:
        if any(fold_domain(each.address.domain) in self._domains for each in message.recipients):
            self._theirs.add(message.id)


class Turns(Factory):
    """Hears the others, and serves the customers that they have."""

    noisy = False

    def __init__(self, runner: Runner, spool: Spool, threads: Threads, reactor: Any) -> None:
        self.reactor = reactor
        self._runner = runner
        self._threads = threads
        #: The domains whose mail is being fetched.
        self._fetched: set[str] = set()
        self._waiting = Waiting(spool)
        self._stopped = False

    def buildProtocol(self, addr: Any) -> _Turning:
        return _Turning(self)

    def stop(self) -> None:
        """Begin with no further message: each customer is let go after the present one."""
        self._stopped = True

    async def serve(self, domains: Collection[str], connection: str, account: str,
                    turning: _Turning) -> None:
        """Send what waits for *domains*, if anything does, over the connection of *turning*."""
        if self._stopped:
            turning.refuse("stopping")
        elif not self._fetched.isdisjoint(domains):
            turning.refuse("in-use")
        else:
            self._fetched.update(domains)
            try:
                await _Turn(self, frozenset(domains), connection, account).run(turning)
            finally:
                self._fetched.difference_update(domains)

    async def waiting(self, fetching: Fetching) -> list[str]:
        """The messages that there are to fetch, in the order in which they go."""
        return await self._threads.run(self._waiting.find, fetching)

    @property
    def stopped(self) -> bool:
        """Whether no further message is to be begun with."""
        return self._stopped

    async def fetch(self, id: str, fetching: Fetching) -> bool:
        """As :meth:`Runner.fetch`."""
        return await self._runner.fetch(id, fetching)

    async def meet(self, line: Line) -> Connection:
        """As :meth:`Carrier.take_over`."""
        return await self._runner.attempts.carrier.take_over(line)

    async def hand(self, connection: Connection, job: Job) -> list[Result]:
        """As :meth:`Carrier.hand`."""
        return await self._runner.attempts.carrier.hand(connection, job)


class _Turn:
    """One customer's."""

    def __init__(self, turns: Turns, domains: Collection[str], connection: str,
                 account: str) -> None:
        self._turns = turns
        self._about = {"domains": sorted(domains), "connection": connection, "user": account}
        self._fetching = Fetching(domains, self._carry)
        self._host: Connection | None = None
        self._states: Counter[str] = Counter()

    async def run(self, turning: _Turning) -> None:
        """Look what there is, and send it."""
        ids = await self._turns.waiting(self._fetching)
        if not turning.connected:
            return
        if not ids:
            turning.refuse("nothing")
            return
        try:
            host = self._host = await self._turns.meet(turning.accept())
        except SendingFailure as failure:
            self._tell(failure.text)
            return
        await self._send_all(host, ids)
        self._tell(host.end or "done")
        host.quit()

    async def _send_all(self, host: Connection, ids: Sequence[str]) -> None:
        """Send *ids* and what comes meanwhile, each once, for as long as the customer is there.

        One whose attempt is about to end, as when its state is being synced, is waited for; but not
        for long: its other recipients may take what time they like.
        """
        tried: set[str] = set()
        pauses = iter(_PAUSES)
        while ids:
            busy: set[str] = set()
            for id in ids:
                if host.closed or self._turns.stopped:
                    return
                (tried if await self._turns.fetch(id, self._fetching) else busy).add(id)
            ids = [id for id in await self._turns.waiting(self._fetching) if id not in tried]
            if ids and busy.issuperset(ids):
                pause = next(pauses, None)
                if pause is None:
                    return
                await deferLater(self._turns.reactor, pause)

    async def _carry(self, job: Job) -> list[Result]:
        assert self._host is not None
        results = await self._turns.hand(self._host, job)
        self._states.update(each.state for each in results)
        return results

    def _tell(self, reason: str) -> None:
        states = self._states
        host = self._host.host if self._host is not None else ""
        _log.info("{connection} fetched its mail domains={domains} user={user} host={host} "
                  "relayed={relayed} failed={failed} deferred={deferred}: {reason}",
                  host=host, relayed=states[RELAYED], failed=states[FAILED],
                  deferred=states[WAITING], reason=reason, **self._about)


class _Turning(LineOnlyReceiver):
    """A connection from a process that has a customer."""

    delimiter = b"\n"
    MAX_LENGTH = _MOST_OCTETS
    transport: Any

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.connected = 0

    def lineReceived(self, line: bytes) -> None:
        asked = json.loads(line)
        serving = Deferred.fromCoroutine(self._turns.serve(
            asked["domains"], asked["connection"], asked["account"], self))
        serving.addErrback(self._bug)

    def refuse(self, why: str) -> None:
        """Say no."""
        self.sendLine(json.dumps({"refused": why}).encode("ascii"))
        self.transport.loseConnection()

    def accept(self) -> Line:
        """Say yes; the line to the customer, which has this connection from now on."""
        self.sendLine(b"{}")
        line = Line("the customer", self._turns.reactor)
        self.transport.protocol = line
        line.makeConnection(self.transport)
        return line

    def _bug(self, failure: Failure) -> None:
        _log.failure("mail could not be fetched", failure)
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.connected = 0
