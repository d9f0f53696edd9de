"""The transport of a turn: what is written leaves when the turn is over, and in order always."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from mailsvc import turn
from mailsvc.transport import TurnServer, notice_absence, send_by_turns


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
    send_by_turns(port)
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


def next_turn() -> Deferred[None]:
    """Fires when the reactor has done what it has to do now."""
    return deferLater(reactor, 0)


@pytest_twisted.inlineCallbacks
def test_what_is_written_leaves_when_the_turn_is_over(connection):
    transport, _, client = connection
    assert type(transport) is TurnServer
    client.setblocking(False)
    transport.write(b"250 not yet\r\n")
    transport.write(b"250 nor this\r\n")
    with pytest.raises(BlockingIOError):
        client.recv(100)
    assert transport not in reactor.getWriters()
    yield next_turn()
    assert client.recv(100) == b"250 not yet\r\n250 nor this\r\n"


@pytest_twisted.inlineCallbacks
def test_nothing_else_need_happen_after_a_turn_of_timers(connection):
    """No event of a socket or thread wakes the reactor for what a timer had to say."""
    transport, _, client = connection
    yield deferLater(reactor, 0.01, transport.write, b"421 time is up\r\n")
    assert (yield deferToThread(read, client, 16)) == b"421 time is up\r\n"


@pytest_twisted.inlineCallbacks
def test_a_fault_of_one_connection_is_not_felt_by_others(connection):
    transport, _, client = connection

    class Broken(TurnServer):
        aborted = False
        connected = True

        def __init__(self) -> None:
            self.reactor = reactor  # no socket is needed to fail

        def doWrite(self) -> None:
            raise ZeroDivisionError

        def abortConnection(self) -> None:
            self.aborted = True

    broken = Broken()
    broken.startWriting()
    transport.write(b"250 all the same\r\n")
    yield next_turn()
    assert broken.aborted
    assert client.recv(100) == b"250 all the same\r\n"


@pytest_twisted.inlineCallbacks
def test_what_is_lost_meanwhile_is_not_sent_to(connection):
    transport, factory, _ = connection
    transport.write(b"250 to nobody\r\n")
    transport.abortConnection()
    yield factory.lost
    yield next_turn()


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


def test_a_forked_process_sends_what_is_its_own() -> None:
    """A supervisor that answers in the turn in which it forks a worker."""
    left: Any = object()
    turn._due.append(left)
    try:
        if (pid := os.fork()) == 0:
            os._exit(len(turn._due))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert turn._due == [left]
    finally:
        turn._due.remove(left)


def test_a_peer_that_is_gone_is_noticed_within_half_a_minute() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(
            server.getsockname()) as client:
        notice_absence(SimpleNamespace(socket=client))
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        idle, every, times, unacknowledged = (
            client.getsockopt(socket.IPPROTO_TCP, option) for option in (
                socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT,
                socket.TCP_USER_TIMEOUT))
        assert idle + every * times <= 30 and unacknowledged <= 30_000
    one, other = socket.socketpair()
    with one, other:
        notice_absence(SimpleNamespace(socket=one))  # which is none of TCP
    notice_absence(SimpleNamespace())
