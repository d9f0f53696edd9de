"""``mailsvc.pop3.server``: how long a session may take, with a clock of our own."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.ssl import CertificateOptions
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory

from mailsvc.errors import MaildropInUse
from mailsvc.pop3 import server
from tests.maildrops import FakeMaildrop, message
from tests.pop3 import LONG, SECRET, USER, Client, Valve, log


def test_logging_in_takes_only_so_long() -> None:
    client = Client(login_seconds=120)
    for _ in range(119):
        client.clock.advance(1)
        client.ask("CAPA")
    assert not client.closed
    client.clock.advance(0.5)
    assert not client.closed
    client.news()
    client.clock.advance(0.5)
    assert client.closed
    # RFC 1939 §3: without a word.
    assert client.news() == []
    client.hang_up()


def test_each_connection_has_its_own_time_to_log_in() -> None:
    first = Client(login_seconds=120)
    first.clock.advance(1000)
    second = Client(factory=first.factory)
    second.clock.advance(119)
    assert not second.closed
    second.clock.advance(1)
    assert second.closed


@pytest.mark.parametrize(("login", "autologout"), [(120, 600), (7200, 600), (600, 600)])
def test_autologout(login: float, autologout: float) -> None:
    client = Client(login_seconds=login, autologout_seconds=autologout)
    client.clock.advance(30)
    client.log_in()
    client.ask("DELE 1")
    client.clock.advance(autologout - 1)
    assert client.ask("NOOP") == ["+OK Nothing done"]
    client.clock.advance(autologout - 1)
    # Half a command is no sign of life.
    assert client.ask() == []
    client.say(b"NOO")
    assert not client.closed
    with log() as lines:
        client.clock.advance(1)
    assert client.closed
    assert client.news() == []
    assert lines == ["logged out user='mrose' retrieved=0 deleted=0 client=198.51.100.7: time is "
                     "up"]
    assert client.realm.open == 0
    assert client.maildrop.happened == []
    # A peer that does not close its half is cut off soon.
    client.clock.advance(9.9)
    assert not client.transport.disconnected
    client.clock.advance(0.1)
    assert client.transport.disconnected
    client.hang_up()


def test_a_refused_command_is_a_sign_of_life() -> None:
    client = Client().log_in()
    client.clock.advance(599)
    client.ask("XYZZY")
    client.clock.advance(599)
    assert not client.closed


def test_a_slow_login_is_not_the_clients_fault() -> None:
    client = Client(login_seconds=60)
    client.realm.late = True
    client.ask(f"USER {USER}", f"PASS {SECRET}")
    client.clock.advance(300)
    assert not client.closed
    client.realm.go_on()
    assert client.news() == ["+OK 2 messages (320 octets)"]
    client.clock.advance(599)
    assert not client.closed
    client.clock.advance(1)
    assert client.closed


def test_a_slow_login_that_fails_after_the_time() -> None:
    client = Client(login_seconds=60)
    client.realm.late = True
    client.realm.failure = MaildropInUse("In use")
    client.ask(f"USER {USER}", f"PASS {SECRET}")
    client.clock.advance(60)
    client.realm.go_on()
    assert client.news() == ["-ERR [IN-USE] In use"]
    client.clock.advance(5)
    assert client.closed


def test_a_slow_store_is_not_the_clients_fault() -> None:
    client = Client().log_in()
    client.maildrop.late = {"read", "update"}
    client.ask("RETR 1")
    client.clock.pump([100] * 20)
    assert not client.closed
    client.maildrop.go_on()
    assert client.news()[0] == "+OK 120 octets"
    client.clock.advance(599)
    client.ask("QUIT")
    client.clock.pump([100] * 20)
    assert client.realm.open == 1
    client.maildrop.go_on()
    assert client.realm.open == 0


@pytest.mark.parametrize("way", ["pull", "push"])
def test_a_slow_reader_is_not_cut_off_and_a_dead_one_is(way: str) -> None:
    maildrop = FakeMaildrop([LONG])
    maildrop.way = way
    valve = Valve()
    client = Client(maildrop, transport=valve).log_in()
    client.say(b"RETR 1\r\n")

    def produce() -> None:
        for producer in maildrop.producers:
            while way == "push" and producer.state == "producing" and producer.left:
                producer.arrive()

    produce()
    for _ in range(3):
        client.clock.advance(599)
        valve.take()
        produce()
        assert client.realm.open == 1
    client.clock.advance(599)
    assert not valve.disconnected
    with log() as lines:
        client.clock.advance(1)
    assert valve.disconnected
    assert client.realm.open == 0
    assert lines == ["logged out user='mrose' retrieved=0 deleted=0 client=198.51.100.7: time is "
                     "up amid an answer"]
    if way == "push":
        assert maildrop.producers[0].state == "stopped"
    client.hang_up()


def test_a_dead_reader_of_a_listing() -> None:
    valve = Valve()
    client = Client(FakeMaildrop([message(30)] * 30_000), transport=valve).log_in()
    client.say(b"UIDL\r\n")
    client.clock.advance(599)
    valve.take()
    client.clock.advance(599)
    assert client.realm.open == 1
    client.clock.advance(1)
    assert valve.disconnected
    assert client.realm.open == 0
    client.hang_up()


def test_a_reader_slower_than_the_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    # The transport tells only when its whole buffer is gone; the kernel tells more.
    held = iter([5000, 4000, 4000])
    monkeypatch.setattr(server, "_unacknowledged", lambda transport: next(held))
    valve = Valve()
    client = Client(FakeMaildrop([LONG]), transport=valve).log_in()
    client.say(b"RETR 1\r\n")
    client.clock.advance(600)
    client.clock.advance(59)
    assert not valve.disconnected
    client.clock.advance(1)
    client.clock.advance(59)
    assert not valve.disconnected
    client.clock.advance(1)
    assert valve.disconnected
    client.hang_up()


def test_the_kernel_is_asked_within_implicit_tls_too() -> None:
    wire: Any = StringTransport()
    wire.socket, peer = socket.socketpair()
    within: Any = TLSMemoryBIOFactory(
        CertificateOptions(), False, Factory.forProtocol(Protocol)).buildProtocol(None)
    within.makeConnection(wire)
    with wire.socket, peer:
        wire.socket.sendall(b"not taken yet")
        assert server._unacknowledged(within) > 0
        assert peer.recv(100) == b"not taken yet"
        assert server._unacknowledged(within) == 0


def test_the_last_octet_is_taken_too(monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter([1, 0])
    monkeypatch.setattr(server, "_unacknowledged", lambda transport: next(held))
    client = Client().log_in()
    client.clock.advance(600)
    client.clock.advance(59)
    assert not client.closed
    client.clock.advance(1)
    assert client.closed


def test_a_client_that_still_takes_a_message_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter([5000, 4000, 0])
    monkeypatch.setattr(server, "_unacknowledged", lambda transport: next(held))
    client = Client().log_in()
    client.ask("RETR 1")
    client.clock.advance(600)
    client.clock.advance(60)
    assert not client.closed
    assert client.ask("NOOP") == ["+OK Nothing done"]
    client.clock.advance(600)
    assert client.closed


def test_before_login_the_kernel_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    # Or a client could stay for ever by taking the banner an octet a minute.
    held = iter(range(100, 0, -1))
    monkeypatch.setattr(server, "_unacknowledged", lambda transport: next(held))
    client = Client(login_seconds=60)
    client.clock.advance(60)
    assert client.closed


@pytest.mark.parametrize("ending", ["QUIT", "half a close"])
def test_a_client_that_is_done_may_take_its_time_with_the_rest(ending: str) -> None:
    maildrop = FakeMaildrop([message(60_000)])
    valve = Valve()
    client = Client(maildrop, transport=valve).log_in()
    valve.take_all()
    client.say(b"RETR 1\r\nDELE 1\r\n")
    if ending == "QUIT":
        client.say(b"QUIT\r\n")
    else:
        client.protocol.readConnectionLost()
    assert client.closed
    client.clock.advance(599)
    assert not valve.disconnected
    client.clock.advance(1)
    assert valve.disconnected
    client.hang_up()
