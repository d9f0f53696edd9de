"""``mailsvc.pop3.server``: how many connections there may be, and how they end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mailsvc.errors import MaildropInUse
from tests.maildrops import FakeMaildrop, message
from tests.pop3 import LONG, SECRET, USER, Client, Valve, log, wire


def test_too_many_connections() -> None:
    first = Client(connections=1)
    with log() as lines:
        second = Client(factory=first.factory, host="2001:db8::1")
    assert second.news() == ["-ERR [SYS/TEMP] Too many connections; try again later"]
    assert second.closed
    assert lines == ["refused client=2001:db8::1: Too many connections; try again later"]
    second.say(b"USER mrose\r\n")
    assert second.news() == []
    second.protocol.connectionLost()
    assert not first.closed
    first.hang_up()
    third = Client(factory=first.factory)
    assert third.news()[0].startswith("+OK")


def test_too_many_connections_from_one_address() -> None:
    first = Client(connections_per_address=2, exempt_networks=["192.0.2.0/24"])
    others = [Client(factory=first.factory) for _ in range(2)]
    assert [other.closed for other in others] == [False, True]
    assert others[1].news() == [
        "-ERR [SYS/TEMP] Too many connections from your address; try again later"]
    assert not Client(factory=first.factory, host="203.0.113.1").closed
    exempt = [Client(factory=first.factory, host="192.0.2.1") for _ in range(9)]
    assert not any(client.closed for client in exempt)


def test_the_end_is_half_a_close_unless_the_client_asked_for_it() -> None:
    # A full close with input unread would be a reset, which may overtake the last answer.
    client = Client(errors=1)
    client.ask("x")
    assert client.transport.half_closed
    assert not client.transport.disconnecting
    assert client.reading
    client.say(b"more of it\r\n" * 100)
    assert client.news()[1:] == []
    client.clock.advance(10)
    assert client.transport.disconnected
    client.hang_up()


def test_the_end_is_read_to_even_when_reading_was_paused() -> None:
    client = Client(login_failures=1)
    client.realm.late = True
    client.realm.failure = MaildropInUse("In use")
    client.say(f"USER {USER}\r\nPASS {SECRET}\r\nQUIT\r\n".encode())
    client.say(b"and more")
    assert not client.reading
    client.realm.go_on()
    assert client.transport.half_closed
    assert client.reading


STOPPING = "-ERR [SYS/TEMP] Service shutting down; come back soon"


def test_shutting_down_closes_what_is_idle() -> None:
    first = Client()
    second = Client(factory=first.factory).log_in()
    second.ask("DELE 1")
    first.news()
    second.say(b"QUI")
    done = first.factory.connections.shut_down(30)
    for client in (first, second):
        assert client.news() == [STOPPING]
        assert client.closed
    assert first.realm.open == 0
    assert first.maildrop.happened == []
    assert not done.called
    first.protocol.connectionLost()
    second.protocol.connectionLost()
    assert done.called


def test_shutting_down_lets_a_message_finish() -> None:
    maildrop = FakeMaildrop([message(5000)])
    maildrop.way = "push"
    client = Client(maildrop).log_in()
    assert client.ask("RETR 1", "DELE 1", "QUIT") == []
    client.factory.connections.shut_down(30)
    assert not client.closed
    (producer,) = maildrop.producers
    while producer.left:
        producer.arrive()
    # What was pipelined behind is not done.
    assert "\r\n".join(client.news()) == f"+OK 5000 octets\r\n{wire(message(5000))}{STOPPING}"
    assert client.closed
    assert maildrop.happened == [("read", 1, None)]
    assert client.realm.open == 0


def test_shutting_down_lets_a_listing_finish() -> None:
    valve = Valve()
    client = Client(FakeMaildrop([message(30)] * 20_000), transport=valve).log_in()
    client.say(b"LIST\r\n")
    client.factory.connections.shut_down(30)
    assert not client.closed
    valve.take_all()
    assert client.news()[-2:] == [".", STOPPING]
    assert client.closed


def test_shutting_down_lets_an_update_finish() -> None:
    client = Client().log_in()
    client.maildrop.late = {"update"}
    client.ask("DELE 1", "QUIT")
    client.factory.connections.shut_down(30)
    assert not client.closed
    client.maildrop.go_on()
    assert client.news() == ["+OK dbc.mtview.ca.us signing off (1 message left)"]
    assert client.closed


def test_shutting_down_amid_a_login() -> None:
    client = Client()
    client.realm.late = True
    client.ask(f"USER {USER}", f"PASS {SECRET}")
    client.factory.connections.shut_down(30)
    assert not client.closed
    client.realm.go_on()
    assert client.news() == ["+OK 2 messages (320 octets)", STOPPING]
    assert client.realm.open == 0


def test_shutting_down_ends_in_time() -> None:
    maildrop = FakeMaildrop([LONG])
    maildrop.way = "push"
    client = Client(maildrop).log_in()
    client.ask("RETR 1")
    done = client.factory.connections.shut_down(30)
    with log() as lines:
        client.clock.advance(30)
    assert client.transport.disconnected
    assert client.realm.open == 0
    assert lines == ["logged out user='mrose' retrieved=0 deleted=0 client=198.51.100.7: service "
                     "stopped"]
    client.hang_up()
    assert done.called


def test_shutting_down_while_closing() -> None:
    client = Client(errors=1)
    client.ask("x")
    client.factory.connections.shut_down(30)
    assert client.news() == []


# ---- the lock ----


@pytest.mark.parametrize("fire", [lambda lost: lost.callback(None),
                                  lambda lost: lost.errback(OSError("lease"))])
def test_a_lost_lock_ends_the_session_without_an_update(fire: Callable[[Any], None]) -> None:
    client = Client().log_in()
    client.ask("DELE 1")
    with log() as lines:
        fire(client.maildrop.lost)
    assert client.transport.disconnected
    assert lines == ["logged out user='mrose' retrieved=0 deleted=0 client=198.51.100.7: the lock "
                     "of the maildrop was lost"]
    client.protocol.dataReceived(b"QUIT\r\n")
    assert client.maildrop.happened == []
    assert client.realm.open == 0
    client.hang_up()


def test_a_lock_lost_amid_an_update_is_the_updates_affair() -> None:
    client = Client().log_in()
    client.maildrop.late = {"update"}
    client.ask("QUIT")
    client.maildrop.lost.callback(None)
    assert not client.transport.disconnected
    client.maildrop.go_on()
    assert client.closed


def test_a_lock_given_up_after_logout_is_no_news() -> None:
    client = Client().log_in()
    client.ask("QUIT")
    with log() as lines:
        client.maildrop.lost.callback(None)
    assert lines == []
    assert not client.transport.disconnected
