"""What stands behind an SMTP session under test: a router and a store in memory; and a client.

Each answer that router and store give can be held back until the test releases it, and spoilt; see
:class:`Answers`.  The cast of example.org is in :data:`CAST`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import IRealm, Portal
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from mailsvc.authentication import Authenticator
from mailsvc.errors import (
    EnhancedStatus,
    MailboxMoved,
    MailFailure,
    NothingWaits,
    PermanentFailure,
    RelayDenied,
    RoutingLoop,
    StorageFull,
    TemporaryFailure,
    TurnInUse,
    UnknownMailbox,
)
from mailsvc.interfaces import IDelivery, IMailboxStore, IRouter, ISubmitter
from mailsvc.mail import Account, Address, Envelope
from mailsvc.sasl.context import AuthSettings
from mailsvc.smtp.limits import SMTPSettings
from mailsvc.smtp.mode import TRANSPORT, Mode
from mailsvc.smtp.server import SMTPFactory, SMTPProtocol
from mailsvc.store.memory import MemoryDelivery, MemoryStore
from mailsvc.submission.agent import SubmissionAgent
from mailsvc.submission.limits import SubmissionSettings

HOSTNAME = "mx.example.org"
#: 2026-11-21 09:30:00 UTC.
NOW = 1_795_253_400.0


def _accounts(*local_parts: str) -> tuple[Account, ...]:
    return tuple(Account(local_part, "example.org") for local_part in local_parts)


#: Local-parts at example.org, folded, and where they lead.
CAST: dict[str, tuple[Account, ...] | Exception] = {
    **{name: _accounts(name)
       for name in ("alice", "bob", "carol", "postmaster", "two words", "a@b", 'quo"te', "müller",
                    "x" * 64)},
    # Lists.
    "friends": _accounts("alice", "bob"),
    "team": _accounts("carol"),
    # Mail for away goes to another domain; VRFY says so.
    "away": _accounts("carol"),
    "full": (Account("full", "example.org", quota_messages=1),),
    "small": (Account("small", "example.org", quota_octets=1000),),
    "moved": MailboxMoved("The mailbox has moved", "mona@elsewhere.example"),
    "busy": TemporaryFailure("The mailbox is locked; try again later", EnhancedStatus(4, 2, 1)),
    "down": TemporaryFailure("The directory cannot be read; try again later"),
    "diskless": StorageFull("The disk is full; try again later"),
    "archive": PermanentFailure("The mailbox takes no more mail", EnhancedStatus(5, 2, 2)),
    "loop": RoutingLoop("The alias leads back to itself"),
}


#: Who may submit, and by which password.
PASSWORDS = {"alice@example.org": "tanstaaf", "bob@example.org": "hunter2"}

#: The domains whose mail alice may fetch, and what becomes of it.
FETCHED: dict[str, type[MailFailure] | None] = {
    "far.example": None, "empty.example": NothingWaits, "busy.example": TurnInUse}


class FakeQueue:
    """Has mail for far.example.  Its answers are of the kind "turn".

    :ivar turned: the transports of who fetches mail.
    :ivar reported: the ids and headers of the deliveries that it was to report.
    """

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self.turned: list[StringTransport] = []
        self.reported: list[tuple[str, bytes]] = []

    def delivered(self, envelope: Envelope, header: bytes) -> None:
        """As ``IQueue.delivered``."""
        self.reported.append((envelope.id, header))

    def turn(self, domains: Sequence[str], connection: str, account: str, protocol: Any) -> Any:
        """As ``IQueue.turn``; it depends on the first of *domains*."""
        def connect(_: object) -> None:
            self.turned.append(StringTransport())
            protocol.makeConnection(self.turned[-1])

        refusal = FETCHED[domains[0]]
        return maybeDeferred(self._answers.give, "turn", refusal and refusal("no")).addCallback(
            connect)


@implementer(ISubmitter)
class Submitter:
    """Whoever logged in."""

    def __init__(self, name: str) -> None:
        self.account = Account(*name.split("@"))


@implementer(IRealm)
class Submitters:
    """Opens the door for whoever is let in."""

    def requestAvatar(self, name: bytes, mind: object, *interfaces: Any) -> Any:
        return ISubmitter, Submitter(name.decode()), lambda: None


class NoDirectory:
    """Has no accounts."""

    def credentials(self, name: str) -> None:
        return None


def authenticator() -> Authenticator:
    """Lets :data:`PASSWORDS` in."""
    checker = InMemoryUsernamePasswordDatabaseDontUse()
    for name, password in PASSWORDS.items():
        checker.addUser(name.encode(), password.encode())
    return Authenticator(Portal(Submitters(), [checker]), NoDirectory(),  # type: ignore[arg-type]
                         AuthSettings(), hostname=HOSTNAME)


class Answers:
    """Answers by their kind, given at once unless the test wants them otherwise.

    :ivar late: the kinds that are held back until ``release``.
    :ivar spoilt: what some kinds fail with, instead of their answer.
    """

    def __init__(self) -> None:
        self.late: set[str] = set()
        self.spoilt: dict[str, Exception] = {}
        self._held: deque[tuple[str, Deferred[Any], Any]] = deque()

    def give(self, kind: str, answer: Any) -> Any:
        """Return or raise *answer*, or return a Deferred that will."""
        answer = self.spoilt.get(kind, answer)
        if kind in self.late:
            deferred: Deferred[Any] = Deferred()
            self._held.append((kind, deferred, answer))
            return deferred
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def held(self) -> list[str]:
        """The kinds of the answers held back, the oldest first."""
        return [kind for kind, _, _ in self._held]

    def release(self) -> None:
        """Give the oldest answer that is held back."""
        _, deferred, answer = self._held.popleft()
        if isinstance(answer, Exception):
            deferred.errback(Failure(answer))
        else:
            deferred.callback(answer)


@implementer(IRouter)
class FakeRouter:
    """Knows :data:`CAST` at example.org, and *accounts*; relays nothing.

    Its answers are of the kinds "route", "verify" and "expand".
    """

    def __init__(self, answers: Answers, accounts: Iterable[Address] = (),
                 atrn: bool = False) -> None:
        self._answers = answers
        self._places: dict[tuple[str, str], tuple[Account, ...] | Exception] = {
            (local_part, "example.org"): place for local_part, place in CAST.items()}
        for address in accounts:
            account = Account(address.local_part, address.domain)
            self._places[address.local_part.lower(), address.domain] = (account,)
        self._domains = {domain for _, domain in self._places}
        #: Whether alice@example.org may fetch mail.
        self.fetched = atrn

    def _place(self, path: Address) -> tuple[Account, ...] | Exception:
        domain = path.domain
        if domain in ("", "[192.0.2.1]"):
            domain = "example.org"
        if domain not in self._domains:
            return RelayDenied("Relaying denied: the domain is not served here")
        unknown = UnknownMailbox("No such mailbox here")
        return self._places.get((path.local_part.lower(), domain), unknown)

    def route(self, forward_path: Address, relay: bool = False) -> Any:
        """As ``IRouter.route``."""
        return self._answers.give("route", self._place(forward_path))

    def serves(self, domain: str) -> bool:
        """As ``Router.serves``."""
        return domain in self._domains

    def relays(self, domain: str) -> bool:
        """As ``Router.relays``."""
        return domain == "backup.example"

    def runs(self, domain: str) -> bool:
        """As ``IRouter.runs``."""
        return domain == "backup.example"

    def turns(self, account: str) -> tuple[str, ...]:
        """As ``IRouter.turns``."""
        return tuple(FETCHED) if self.fetched and account == "alice@example.org" else ()

    def verify(self, name: Address) -> Any:
        """As ``IRouter.verify``."""
        place = self._place(name)
        if isinstance(place, Exception):
            return self._answers.give("verify", place)
        if name.local_part == "away":
            return self._answers.give("verify", Address("away", "elsewhere.example"))
        return self._answers.give("verify", Address(name.local_part, place[0].domain))

    def expand(self, name: Address) -> Any:
        """As ``IRouter.expand``."""
        place = self._place(name)
        if not isinstance(place, Exception):
            if name.local_part not in ("friends", "team"):
                place = UnknownMailbox("That is a user name, not a mailing list")
            else:
                addresses = tuple(Address(a.local_part, a.domain) for a in place)
                return self._answers.give("expand", addresses)
        return self._answers.give("expand", place)


@implementer(IMailboxStore)
class FakeStore(MemoryStore):
    """A store in memory whose mailbox ``full@example.org`` is full.

    Its answers are of the kinds "room", "begin", "write" and "commit"; "begin" is never late.

    :ivar deliveries: every delivery ever begun.
    """

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self.answers = answers
        self.deliveries: list[FakeDelivery] = []
        self.mailboxes["full@example.org"].messages[b"first"] = b"the only one\r\n"

    def room(self, account: Account, octets: int) -> Any:
        """As ``IMailboxStore.room``."""
        try:
            answer: Any = super().room(account, octets)
        except MailFailure as refused:
            answer = refused
        return self.answers.give("room", answer)

    def begin(self, accounts: tuple[Account, ...], id: str, size_hint: int = 0,
              within_quota: bool = True) -> FakeDelivery:
        """As ``IMailboxStore.begin``."""
        self.answers.give("begin", None)
        delivery = FakeDelivery(self, accounts, id, size_hint, within_quota)
        self.deliveries.append(delivery)
        return delivery

    @property
    def mail(self) -> list[FakeDelivery]:
        """The deliveries that were committed."""
        return [delivery for delivery in self.deliveries if delivery.outcome == "committed"]


@implementer(IDelivery)
class FakeDelivery(MemoryDelivery):
    """A delivery that remembers what became of it.

    :ivar outcome: "open", "committing", "committed", "failed" or "aborted".
    :ivar message: all that was written.
    """

    def __init__(self, store: FakeStore, accounts: tuple[Account, ...], id: str,
                 size_hint: int, within_quota: bool) -> None:
        super().__init__(
            [store.mailboxes[account.name] for account in accounts], id,
            lambda octets: [MemoryStore.room(store, account, octets) for account in accounts
                            if within_quota])
        self._answers = store.answers
        self.accounts = accounts
        self.id = id
        self.size_hint = size_hint
        self.outcome = "open"
        self.message = b""

    def write(self, block: bytes) -> Deferred[None] | None:
        """As ``IDelivery.write``."""
        assert self.outcome == "open", f"write after {self.outcome}"
        assert block, "an empty block"
        self.message += block
        super().write(block)
        pause: Deferred[None] | None = self._answers.give("write", None)
        return pause

    def commit(self) -> Deferred[None]:
        """As ``IDelivery.commit``."""
        assert self.outcome == "open", f"commit after {self.outcome}"
        self.outcome = "committing"
        done = maybeDeferred(self._answers.give, "commit", None)
        return done.addCallbacks(self._committed, self._failed)

    def _committed(self, _: object) -> Deferred[None]:
        return super().commit().addCallbacks(self._kept, self._failed)

    def _kept(self, _: None) -> None:
        self.outcome = "committed"

    def _failed(self, failure: Failure) -> Failure:
        self.outcome = "failed"
        return failure

    def abort(self) -> None:
        """As ``IDelivery.abort``."""
        if self.outcome == "open":
            self.outcome = "aborted"
            super().abort()


class Unlimited:
    """Rates that let everybody send.

    :ivar counted: under which names messages were counted.
    """

    def __init__(self) -> None:
        self.counted: list[str] = []

    def check(self, account: object, recipients: int = 1) -> None:
        """As ``Rates.check``."""

    def count(self, account: str, recipients: int) -> Deferred[None]:
        """As ``Rates.count``."""
        self.counted.append(account)
        return succeed(None)


class Wire(StringTransport):
    """A transport that has a buffer for the peer's octets too, as the kernel has.

    :ivar half_closed: whether loseWriteConnection was called.
    :ivar tls: what startTLS was called with.
    :ivar bothered: how often reading was stopped or begun again.
    """

    half_closed = False
    tls: Any = None
    bothered = 0

    def write(self, data: bytes) -> None:
        # A real transport loses what is written then, TLS at any rate.
        assert not self.half_closed and not self.disconnecting, f"written too late: {data!r}"
        super().write(data)

    def pauseProducing(self) -> None:
        self.bothered += 1
        super().pauseProducing()

    def resumeProducing(self) -> None:
        self.bothered += 1
        super().resumeProducing()
    no_delay: bool | None = None

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.no_delay = enabled

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    def startTLS(self, context: Any) -> None:
        self.tls = context


class Line:
    """One client's line to an SMTPProtocol, as ``tests.dialogue.Server`` wants it.

    What arrives while the protocol does not read waits here.  Shut down, the protocol may leak
    nothing: ``hang_up`` sees to that.  Errors cost no time unless the settings say so.
    """

    def __init__(self, answers: Answers | None = None, *, host: str = "198.51.100.7",
                 hostname: str = HOSTNAME, mode: Mode = TRANSPORT, known: bool = False,
                 accounts: Iterable[Address] = (), tls: Any = None, queue: bool = False,
                 atrn: bool = False, factory: SMTPFactory | None = None,
                 transport: StringTransport | None = None, **settings: Any) -> None:
        self.answers = answers or Answers()
        if factory is None:
            self.clock = Clock()
            self.clock.rightNow = NOW
            self.rates = Unlimited()
            router: Any = FakeRouter(self.answers, accounts, atrn)
            agent = SubmissionAgent(
                SubmissionSettings(trusted_networks=[f"{host}/24"]), router,
                self.rates,  # type: ignore[arg-type]
                hostname) if known else None
            factory = SMTPFactory(FakeStore(self.answers), router,
                                  SMTPSettings(**{"error_delay_seconds": 0, **settings}),
                                  hostname, self.clock, tls, mode,
                                  authenticator=authenticator() if mode.logs_in else None,
                                  agent=agent,
                                  queue=FakeQueue(self.answers)  # type: ignore[arg-type]
                                  if queue else None)
        self.factory = factory
        self.clock = factory.clock  # type: ignore[assignment]
        self.store: FakeStore = factory.store  # type: ignore[assignment]
        self.peer = IPv4Address("TCP", host, 40_000)
        self.transport = transport or Wire(peerAddress=self.peer)
        self.protocol: SMTPProtocol = factory.buildProtocol(self.peer)  # type: ignore[assignment]
        self.unread = b""
        self.protocol.makeConnection(self.transport)

    def say(self, data: bytes) -> None:
        """Octets arrive; those that the protocol does not read wait in ``unread``."""
        self.unread += data
        self.flow()

    def flow(self) -> None:
        """Let the protocol read what waits."""
        while self.unread and self.reading:
            data, self.unread = self.unread, b""
            self.protocol.dataReceived(data)

    @property
    def reading(self) -> bool:
        """Whether what arrives reaches the protocol."""
        return not self.paused and not self.transport.disconnecting

    @property
    def paused(self) -> bool:
        """Whether the protocol has asked not to be given any more for now."""
        return self.transport.producerState == "paused"

    def release(self) -> str:
        """Give the oldest late answer; its kind."""
        kind = self.answers.held[0]
        self.answers.release()
        self.flow()
        return kind

    def release_all(self) -> None:
        """Give late answers until none is held back."""
        while self.answers.held:
            self.release()

    def heard(self) -> bytes:
        """All that the server has sent since the beginning."""
        return self.transport.value()

    def news(self) -> bytes:
        """What the server has sent since the last call."""
        data = self.transport.value()
        self.transport.clear()
        return data

    def codes(self) -> list[str]:
        """The last lines of the replies since the last call, each cut to code and status."""
        return [" ".join(line.split(" ")[:2]) if line[4:9].replace(".", "").isdigit()
                else line[:3]
                for line in self.news().decode().splitlines() if line[3] == " "]

    @property
    def closed(self) -> bool:
        """Whether the server has closed the connection, or its half of it."""
        return self.transport.disconnecting or getattr(self.transport, "half_closed", False)

    def hang_up(self, reason: Failure | None = None) -> None:
        """The connection is lost; nothing may be left of it but a commit under way."""
        if reason is None:
            self.protocol.connectionLost()
        else:
            self.protocol.connectionLost(reason)
        assert not self.clock.getDelayedCalls()
        assert not len(self.factory.connections)
