"""The prompt transport: what is written is sent at once where it can be, and in order always."""

from __future__ import annotations

import socket

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread

from mailsvc.transport import PromptServer, send_promptly


class Kept(Factory):
    """Gives out its one connection when it is made."""

    noisy = False

    def __init__(self) -> None:
        self.made: Deferred[Protocol] = Deferred()
        self.lost: Deferred[None] = Deferred()

    def buildProtocol(self, addr: object) -> Protocol:
        kept = self

        class Connection(Protocol):
            def connectionMade(self) -> None:
                kept.made.callback(self)

            def connectionLost(self, reason: object = None) -> None:
                kept.lost.callback(None)

        return Connection()


@pytest.fixture
def connection():
    """A server's transport, its factory, and the client's socket."""
    factory = Kept()
    port = pytest_twisted.blockon(
        TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory))
    send_promptly(port)
    client = socket.create_connection(("127.0.0.1", port.getHost().port), timeout=20)
    protocol = pytest_twisted.blockon(factory.made)
    yield protocol.transport, factory, client
    client.close()
    if not factory.lost.called:
        protocol.transport.abortConnection()
    pytest_twisted.blockon(factory.lost)
    pytest_twisted.blockon(port.stopListening())


def read(client: socket.socket, octets: int) -> bytes:
    """All of *octets*, or what came before the end."""
    received = bytearray()
    while len(received) < octets and (block := client.recv(1 << 16)):
        received += block
    return bytes(received)


def test_what_is_written_is_there_before_the_reactor_turns(connection) -> None:
    transport, _, client = connection
    assert type(transport) is PromptServer
    transport.write(b"250 at once\r\n")
    assert client.recv(100) == b"250 at once\r\n"


@pytest_twisted.inlineCallbacks
def test_order_is_kept_over_what_the_socket_does_not_take(connection):
    transport, _, client = connection
    blocks = [bytes([65 + n % 26]) * 300_000 for n in range(40)]
    for block in blocks:
        transport.write(block)
        transport.write(b"")
    transport.write(b"the end")
    whole = b"".join(blocks) + b"the end"
    received = yield deferToThread(read, client, len(whole))
    assert received == whole


@pytest_twisted.inlineCallbacks
def test_all_is_sent_before_the_connection_is_closed(connection):
    transport, factory, client = connection
    transport.write(b"x" * 5_000_000)
    transport.loseConnection()
    received = yield deferToThread(read, client, 5_000_001)
    assert received == b"x" * 5_000_000
    yield factory.lost


@pytest_twisted.inlineCallbacks
def test_a_lost_connection_is_reported_by_the_reactor_not_from_inside_write(connection):
    transport, factory, client = connection
    transport.stopReading()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()  # a reset
    transport.write(b"250 to nobody\r\n")
    assert not factory.lost.called
    yield factory.lost
    transport.write(b"ignored")
