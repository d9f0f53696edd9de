"""POP3 sessions and connections under test, and what stands behind them.

:func:`session` makes a bare session.  :class:`Client` is a client of a POP3Protocol on a transport
without a network, behind which a :class:`Realm` opens one maildrop; :class:`Valve` is a transport
whose peer takes what it is sent only when told to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import IRealm, Portal
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from zope.interface import implementer

from mailsvc.authentication import Authenticator
from mailsvc.errors import TemporaryFailure
from mailsvc.interfaces import IMaildrop
from mailsvc.pop3 import events
from mailsvc.pop3.commands import State
from mailsvc.pop3.limits import POP3Settings
from mailsvc.pop3.server import POP3Factory, POP3Protocol
from mailsvc.pop3.session import Session
from mailsvc.sasl.context import AuthSettings
from tests.maildrops import FakeMaildrop, Sizes, message

HOSTNAME = "dbc.mtview.ca.us"
#: The user, the secret and the banner's timestamp of RFC 1939's examples.
USER, SECRET = "mrose", "tanstaaf"
TIMESTAMP = "<1896.697170952@dbc.mtview.ca.us>"

TWO = Sizes([120, 200])
LONG = message(300_000)


def session(state: State = State.AUTHORIZATION, maildrop: Any = TWO, **options: Any) -> Session:
    """A session in *state*, nothing owed; *options* are the session's or settings."""
    names = {field.name for field in dataclasses.fields(POP3Settings)}
    chosen = {name: options.pop(name) for name in names & options.keys()}
    made = Session(HOSTNAME, POP3Settings(**chosen), **options)
    made.greet()
    if state is not State.AUTHORIZATION:
        tell(made, "USER mrose", "PASS tanstaaf")
        made.next_event()
        made.logged_in(maildrop)
    if state is State.UPDATE:
        tell(made, "QUIT")
        made.next_event()
    if state is State.CLOSED:
        made.close(TemporaryFailure("test"))
        assert isinstance(made.next_event(), events.Closed)
    made.data_to_send()
    assert made.state is state
    return made


def tell(to: Session, *commands: str) -> None:
    to.receive("".join(f"{command}\r\n" for command in commands).encode())


def ask(of: Session, *commands: str) -> str:
    """Say commands that raise no event; what is answered."""
    tell(of, *commands)
    assert of.next_event() is None
    return of.data_to_send().decode()


def event(of: Session, *commands: str) -> events.Event | None:
    """Say commands; the event."""
    tell(of, *commands)
    return of.next_event()


def two() -> FakeMaildrop:
    return FakeMaildrop([message(120, 1), message(200, 2)])


def wire(text: bytes) -> str:
    """*text* as RETR sends it, but for the status line."""
    stuffed = text.replace(b"\r\n.", b"\r\n..")
    return ((b"." if text.startswith(b".") else b"") + stuffed + b".\r\n").decode()


@contextmanager
def log(*levels: str) -> Iterator[list[str]]:
    """The lines of these levels logged meanwhile, all but debug if none is named; connection ids
    left out.
    """
    lines: list[str] = []
    with capturedLogs() as caught:
        yield lines
    for event in caught:
        assert event["log_namespace"] == "mailsvc.pop3"
        level = event["log_level"].name
        if level not in levels if levels else level == "debug":
            continue
        line = formatEvent(event)
        if "connection" in event:
            assert line.startswith(event["connection"] + " ")
            line = line[len(event["connection"]) + 1:]
        lines.append(line)


@implementer(IRealm)
class Realm:
    """Opens *maildrop* for whoever logs in.

    :ivar late: whether a login waits for ``go_on``.
    :ivar failure: what a login fails with after the credentials were found right.
    :ivar open: how many maildrops are not given back.
    """

    def __init__(self, maildrop: Any) -> None:
        self.maildrop = maildrop
        self.late = False
        self.failure: Exception | None = None
        self.open = 0
        self._held: list[Deferred[Any]] = []

    def requestAvatar(self, avatarId: Any, mind: object, *interfaces: Any) -> Any:
        assert IMaildrop in interfaces
        if self.late:
            held: Deferred[Any] = Deferred()
            self._held.append(held)
            return held.addCallback(lambda _: self._avatar())
        return self._avatar()

    def _avatar(self) -> Any:
        if self.failure is not None:
            raise self.failure
        self.open += 1
        return IMaildrop, self.maildrop, self._log_out

    def _log_out(self) -> None:
        self.open -= 1

    def go_on(self) -> None:
        """Answer the oldest login that is held back."""
        self._held.pop(0).callback(None)


def portal(realm: Realm, accounts: dict[str, str] | None = None) -> Portal:
    """Checks names and secrets, by default those of RFC 1939's examples."""
    checker = InMemoryUsernamePasswordDatabaseDontUse()
    for name, secret in (accounts or {USER: SECRET}).items():
        checker.addUser(name.encode(), secret.encode())
    return Portal(realm, [checker])


class NoDirectory:
    """Has no domains and accounts, so that a login name is what it is."""

    def domains(self, most: int = -1) -> list[Any]:
        return []

    def credentials(self, name: str) -> None:
        return None


def authenticator(portal: Portal) -> Authenticator:
    """What logs clients in, by *portal*."""
    return Authenticator(portal, NoDirectory(), AuthSettings(), hostname=HOSTNAME)  # type: ignore[arg-type]


def settings(**chosen: Any) -> POP3Settings:
    """The section, with logins in the clear from anywhere, and errors that cost no time."""
    return POP3Settings(**{"allow_cleartext_auth": "yes", "error_delay_seconds": 0, **chosen})


class Pipe(StringTransport):
    """A transport with what a TCP connection has more."""

    half_closed = False
    no_delay: bool | None = None
    tls: Any = None

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.no_delay = enabled

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    def startTLS(self, context: Any) -> None:
        self.tls = context


class Valve(Pipe):
    """A transport whose peer takes octets by ``take`` alone; its buffer is full beyond *room*."""

    def __init__(self, room: int = 65_536, **options: Any) -> None:
        super().__init__(**options)
        self.room = room
        self.taken = b""
        self._paused = False

    @property
    def held(self) -> int:
        return len(self.value()) - len(self.taken)

    def write(self, data: bytes) -> None:
        super().write(data)
        if self.held > self.room and self.producer is not None and not self._paused:
            self._paused = True
            self.producer.pauseProducing()

    def take(self, octets: int | None = None) -> None:
        """The peer takes so many octets, or all there are."""
        data = self.value()
        end = len(data) if octets is None else len(self.taken) + octets
        self.taken = data[:end]
        if not self.held and self._paused and self.producer is not None:
            self._paused = False
            self.producer.resumeProducing()

    def take_all(self) -> None:
        """The peer takes until no more comes."""
        while self.held:
            self.take()


class Client:
    """One client of a POP3Protocol, as ``tests.dialogue.Server`` wants it."""

    def __init__(self, maildrop: Any = None, *, factory: POP3Factory | None = None,
                 transport: Pipe | None = None, accounts: dict[str, str] | None = None,
                 host: str = "198.51.100.7", tls: Any = None, **chosen: Any) -> None:
        if factory is None:
            if maildrop is None:
                maildrop = FakeMaildrop([message(120, 1), message(200, 2)])
            factory = POP3Factory(authenticator(portal(Realm(maildrop), accounts)),
                                  settings(**chosen), HOSTNAME, Clock(), tls)
        self.factory = factory
        self.clock: Clock = factory.clock  # type: ignore[assignment]
        self.realm: Realm = factory.authenticator.portal.realm  # type: ignore[assignment]
        self.maildrop = self.realm.maildrop
        peer = IPv4Address("TCP", host, 40_000)
        self.transport = transport or Pipe(peerAddress=peer)
        self.transport.peerAddr = peer
        self.protocol: POP3Protocol = factory.buildProtocol(peer)  # type: ignore[assignment]
        self.unread = b""
        self._seen = 0
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
        return self.transport.producerState == "producing" and not self.transport.disconnecting

    def heard(self) -> bytes:
        """All that the server has sent since the beginning."""
        return self.transport.value()

    def news(self) -> list[str]:
        """The lines that the server has sent since the last call."""
        data = self.transport.value()
        lines = data[self._seen:].decode().split("\r\n")
        self._seen = len(data)
        assert lines.pop() == ""
        return lines

    def ask(self, *commands: str) -> list[str]:
        """Say commands; the lines that come back."""
        self.news()
        self.say("".join(f"{command}\r\n" for command in commands).encode())
        return self.news()

    def log_in(self) -> Client:
        """Log in as USER."""
        assert self.ask(f"USER {USER}", f"PASS {SECRET}")[-1].startswith("+OK ")
        return self

    @property
    def closed(self) -> bool:
        """Whether the server has closed the connection, or its half of it."""
        return self.transport.disconnecting or self.transport.half_closed

    def hang_up(self) -> None:
        """The connection is lost; nothing may be left of it."""
        if self.protocol in self.factory.connections._open:
            self.protocol.connectionLost(Failure(ConnectionError()))
        assert not self.clock.getDelayedCalls()
        assert not len(self.factory.connections)
