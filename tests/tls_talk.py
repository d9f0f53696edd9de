"""Talk with a ServerTLS through memory: clients of Python's ssl and of pyOpenSSL."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from OpenSSL import SSL
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from mailsvc import tls
from mailsvc.handshake import TLSState, describe
from mailsvc.tls import ServerTLS, TLSSettings
from tests.authority import Authority, Issued, pem

AUTHORITY = Authority()
MX = AUTHORITY.issue("mx.example.org")
RENEWED = AUTHORITY.issue("mx.example.org")
OTHER = AUTHORITY.issue("mail.example.net", "*.example.net")
CLIENTS = Authority("clients")
HOSTNAME = "mx.example.org"


@implementer(IHandshakeListener)
class Echo(Protocol):
    """Sends back what it gets; keeps the protocol that a factory built."""

    factory: Any
    state: TLSState | None = None
    lost = False
    early: TLSState | None = None

    def connectionMade(self) -> None:
        self.factory.built.append(self)
        self.early = describe(self.transport)

    def handshakeCompleted(self) -> None:
        self.state = describe(self.transport)

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = True


class EchoFactory(Factory):
    noisy = False
    protocol = Echo
    #: What the protocol may begin TLS with.
    tls: ServerTLS

    def __init__(self) -> None:
        self.built: list[Echo] = []


class World:
    """A ServerTLS on a clock, its files below one directory, and its log.

    :ivar events: what was logged.
    """

    def __init__(self, directory: Path, events: Any) -> None:
        self.directory = directory
        self.events = events
        self.clock = Clock()
        self.tls: ServerTLS = None  # type: ignore[assignment]

    def start(self, *places: object, **settings: Any) -> ServerTLS:
        self.tls = ServerTLS(
            TLSSettings(certificates=[str(place) for place in places], **settings),
            str(self.directory / "data" / "tls"), HOSTNAME, self.clock)
        (self.directory / "data").mkdir(exist_ok=True)
        self.tls.load()
        self.tls.startService()
        return self.tls

    def said(self, level: LogLevel) -> list[str]:
        """The log lines of *level* so far; they are forgotten."""
        lines = [formatEvent(event) for event in self.events if event["log_level"] is level]
        self.events[:] = [event for event in self.events if event["log_level"] is not level]
        return lines

    def pass_time(self, seconds: float, step: float = 0.25) -> None:
        self.clock.pump([step] * int(seconds / step))


def trusting(*, version: ssl.TLSVersion | None = None, roots: bytes = b"") -> ssl.SSLContext:
    """A client that trusts our authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=(roots or pem(AUTHORITY.root)).decode())
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


class Session:
    """A client of Python's ssl and our server, joined in memory, after their handshake."""

    def __init__(self, server: ServerTLS, context: ssl.SSLContext | None = None,
                 name: str = HOSTNAME, session: Any = None) -> None:
        factory = EchoFactory()
        self._clock = Clock()
        self.server: Any = TLSMemoryBIOFactory(
            server, False, factory, self._clock).buildProtocol(None)
        self._wire = StringTransport()
        self._inward, self._outward = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = (context or trusting()).wrap_bio(
            self._inward, self._outward, server_hostname=name or None, session=session)
        self.server.makeConnection(self._wire)
        self.echo = factory.built[0]
        self.until(self.client.do_handshake)
        self.carry()

    def until(self, action: Callable[[], Any]) -> Any:
        """What *action* returns, once all it waits for has come."""
        for _ in range(10):
            try:
                return action()
            except ssl.SSLWantReadError:
                self.carry()
        raise AssertionError("the other side does not answer")

    def carry(self) -> None:
        """Bring octets from each side to the other."""
        if self._outward.pending:
            self.server.dataReceived(self._outward.read())
        self._inward.write(self._wire.value())
        self._wire.clear()

    def talks(self) -> bool:
        """Whether what the client says comes back to it."""
        self.client.write(b"hello")
        # The server's transport sends what was written in the reactor's next turn.
        self.carry()
        self._clock.advance(0)
        return self.until(lambda: self.client.read(5)) == b"hello"

    @property
    def serial(self) -> int:
        """The serial number of the certificate that the client was shown."""
        shown = self.client.getpeercert(binary_form=True)
        assert shown is not None
        return x509.load_der_x509_certificate(shown).serial_number

    @property
    def state(self) -> TLSState:
        assert self.echo.state is not None
        return self.echo.state


def careless(ciphers: str = "DEFAULT") -> ssl.SSLContext:
    """A client that trusts anybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers(ciphers)
    return context


def pyopenssl_session(
    server: ServerTLS, *, groups: bytes = b"", name: bytes = b"mx.example.org",
    identity: Issued | None = None, context: SSL.Context | None = None,
    version: int = SSL.TLS1_3_VERSION,
) -> tuple[SSL.Connection, Echo]:
    """A client of pyOpenSSL's, which can do what Python's ssl cannot."""
    if context is None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_max_proto_version(version)
        if groups:
            assert tls.Binding.lib.SSL_CTX_set1_curves_list(
                context._context, groups) == 1
        if identity is not None:
            context.use_certificate(identity.certificate)
            context.add_extra_chain_cert(identity.between)
            context.use_privatekey(identity.key)
    client = SSL.Connection(context, None)
    if name:
        client.set_tlsext_host_name(name)
    client.set_connect_state()
    factory = EchoFactory()
    protocol: Any = TLSMemoryBIOFactory(server, False, factory, Clock()).buildProtocol(None)
    wire = StringTransport()
    protocol.makeConnection(wire)
    for _ in range(10):
        done = False
        try:
            client.do_handshake()
            done = True
        except SSL.WantReadError:
            pass
        with suppress(SSL.WantReadError):
            protocol.dataReceived(client.bio_read(1 << 16))
        if wire.value():
            client.bio_write(wire.value())
            wire.clear()
        if done and factory.built[0].state is not None:
            # Tickets, and in TLS 1.3 what the server thinks of the client's certificate.
            with suppress(SSL.WantReadError):
                client.recv(1)
            return client, factory.built[0]
    raise AssertionError("the handshake does not end")


def resumed(server: ServerTLS, version: ssl.TLSVersion) -> tuple[Session, Session]:
    """A session, and another that the same client would rather resume."""
    context = trusting(version=version)
    first = Session(server, context)
    assert first.talks()
    return first, Session(server, context, session=first.client.session)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with capturedLogs() as events:
        world = World(tmp_path, events)
        yield world
        if world.tls is not None and world.tls.running:
            world.tls.stopService()


@pytest.fixture
def live(tmp_path: Path) -> Path:
    return MX.write(tmp_path / "live")
