"""How an SMTP connection ends: closing, loss, the end of the service, one too many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pytest
from twisted.internet.address import IPv6Address
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, LogLevel, formatEvent
from twisted.python.failure import Failure

from mailsvc.errors import StorageFull
from mailsvc.smtp.limits import SMTPSettings
from mailsvc.smtp.server import SMTPFactory
from tests.postoffice import Line, Wire
from tests.test_smtp_server import HELO, MESSAGE, RECIPIENT, SENDER, TRANSACTION, line, logged

STOPPING = ["421 4.3.2"]
#: How long a connection that was closed may linger, seconds.
LINGER = 10


# ---- the end -------------------------------------------------------------------------------------


def test_after_quit_the_connection_is_closed_outright() -> None:
    one = line()
    one.say(b"QUIT\r\n")
    assert one.codes() == ["221 2.0.0"]
    assert one.transport.disconnecting
    assert not one.transport.half_closed  # type: ignore[attr-defined]
    one.clock.advance(LINGER - 1)
    assert not one.transport.disconnected
    one.clock.advance(1)
    assert one.transport.disconnected
    one.hang_up()


def test_a_connection_that_was_not_read_is_read_again_to_be_closed() -> None:
    # TLS wants to see the peer's end before it closes.
    one = line("commit")
    one.say(TRANSACTION + b"QUIT\r\n")
    assert one.paused
    one.release()
    assert one.transport.disconnecting
    assert not one.paused
    one.hang_up()


def test_an_error_that_ends_the_session_is_read_before_the_connection_goes() -> None:
    # Input that nobody reads would turn the close into a reset, which may overtake the 421.
    one = line(errors=2)
    one.say(b"WHAT\r\n" * 2)
    assert one.codes() == ["500 5.5.1", "500 5.5.1", "421 4.7.0"]
    assert one.transport.half_closed  # type: ignore[attr-defined]
    assert not one.transport.disconnecting
    one.say(b"NOOP\r\n" * 1000)
    assert one.unread == b""
    assert one.codes() == []
    one.hang_up()


def test_an_error_that_ends_the_session_while_it_does_not_read() -> None:
    one = line("route", errors=1)
    one.say(SENDER + b"RCPT TO:<nobody@example.org>\r\n")
    one.say(b"NOOP\r\n")
    assert one.paused
    one.release()
    assert one.codes() == ["250 2.1.0", "550 5.1.1", "421 4.7.0"]
    assert one.transport.half_closed  # type: ignore[attr-defined]
    assert not one.paused
    one.hang_up()


def test_a_transport_that_cannot_close_by_halves() -> None:
    one = Line(transport=StringTransport(), errors=1)
    one.say(b"WHAT\r\n")
    assert one.codes() == ["220", "500 5.5.1", "421 4.7.0"]
    assert one.transport.disconnecting
    one.hang_up()


def test_the_producer_goes_before_the_connection_does() -> None:
    # A transport with a producer would not close before it is done.
    one = line()
    assert one.transport.producer is one.protocol
    assert one.transport.streaming
    one.protocol.stopProducing()
    one.say(b"QUIT\r\n")
    assert one.transport.producer is None
    one.hang_up()


def test_a_connection_may_be_aborted() -> None:
    one = line("commit")
    one.say(TRANSACTION)
    one.protocol.abort()
    assert one.transport.disconnected
    one.hang_up()
    one.answers.release()
    assert one.store.deliveries[0].outcome == "committed"


def test_an_idle_connection_that_is_aborted_is_told_so_and_not_waited_for() -> None:
    one = line()
    one.protocol.abort()
    assert one.codes() == STOPPING
    assert one.transport.disconnecting
    assert not one.transport.half_closed  # type: ignore[attr-defined]
    one.clock.advance(1)
    assert one.transport.disconnected
    one.hang_up()


@pytest.mark.parametrize("kind", ["route", "room", "write", "commit"])
def test_who_closes_his_side_is_answered_first(kind: str) -> None:
    one = line(kind)
    one.say(SENDER + RECIPIENT + (MESSAGE if kind in ("write", "commit") else b""))
    one.protocol.readConnectionLost()
    assert not one.closed
    bothered = one.transport.bothered  # type: ignore[attr-defined]
    one.release_all()
    last = "250 2.0.0" if kind in ("write", "commit") else "250 2.1.5"
    assert one.codes()[-1] == last
    assert one.transport.disconnecting
    assert not one.transport.half_closed  # type: ignore[attr-defined]
    # There is nothing more to read.
    assert one.transport.bothered == bothered  # type: ignore[attr-defined]
    one.hang_up()


@pytest.mark.parametrize("said", [b"", b"NO", SENDER + RECIPIENT,
                                  SENDER + RECIPIENT + b"DATA\r\nx\r\n.\r"])
def test_who_closes_his_side_when_nothing_is_owed_is_left_at_once(said: bytes) -> None:
    one = line()
    one.say(said)
    one.protocol.readConnectionLost()
    assert one.transport.disconnecting
    one.hang_up()
    assert [delivery.outcome for delivery in one.store.deliveries] == ["aborted"] * said.count(
        b"DATA")


def test_who_closes_his_side_still_has_to_read() -> None:
    one = line()
    one.protocol.pauseProducing()
    one.say(TRANSACTION)
    one.protocol.readConnectionLost()
    assert not one.closed
    one.protocol.resumeProducing()
    assert one.codes() == ["250 2.1.0", "250 2.1.5", "354", "250 2.0.0"]
    assert one.transport.disconnecting
    one.hang_up()


def test_when_both_have_closed_their_sides_the_connection_goes() -> None:
    one = line(errors=1)
    one.say(b"WHAT\r\n")
    assert one.transport.half_closed  # type: ignore[attr-defined]
    one.protocol.writeConnectionLost()
    assert not one.transport.disconnecting
    one.protocol.readConnectionLost()
    assert one.transport.disconnecting
    one.hang_up()


# ---- loss (PITFALLS, SMTP row 21) ----------------------------------------------------------------

#: What was said when the connection is lost, and what becomes of the message.
LOST: dict[str, tuple[bytes, str]] = {
    "greeted": (b"", ""),
    "half a command": (b"NO", ""),
    "in a transaction": (SENDER, ""),
    "with a recipient": (SENDER + RECIPIENT, ""),
    "before the data": (SENDER + RECIPIENT + b"DATA\r\n", "aborted"),
    "amid the data": (SENDER + RECIPIENT + b"DATA\r\nfirst\r\n", "aborted"),
    "before the dot": (SENDER + RECIPIENT + b"DATA\r\nfirst\r\n.", "aborted"),
    "before the last LF": (SENDER + RECIPIENT + b"DATA\r\nfirst\r\n.\r", "aborted"),
    "amid refused data": (SENDER + RECIPIENT + b"DATA\r\na\nb\r\nc\r\n", "aborted"),
    "amid a chunk": (SENDER + RECIPIENT + b"BDAT 9 LAST\r\nx", "aborted"),
    "between chunks": (SENDER + RECIPIENT + b"BDAT 1\r\nx", "aborted"),
    "amid a chunk out of order": (b"BDAT 9 LAST\r\nx", ""),
    "after a message": (TRANSACTION, "committed"),
    "after QUIT": (b"QUIT\r\n", ""),
    "after 421": (b"WHAT\r\n" * 5, ""),
}


@pytest.mark.parametrize(("said", "outcome"), LOST.values(), ids=LOST)
@pytest.mark.parametrize("reason", [ConnectionDone(), ConnectionLost()], ids=["FIN", "RST"])
def test_a_connection_that_is_lost_leaves_nothing(said: bytes, outcome: str,
                                                  reason: Exception) -> None:
    with logged() as events:
        one = line(errors=5)
        one.say(said)
        one.hang_up(Failure(reason))
        one.clock.advance(10**6)
    assert [delivery.outcome for delivery in one.store.deliveries] == [outcome] * bool(outcome)
    check_outcomes(one, events)


@pytest.mark.parametrize("kind", ["route", "room", "verify", "expand", "write", "commit"])
@pytest.mark.parametrize("fails", [False, True], ids=["", "failing"])
@pytest.mark.parametrize("more", [b"", b"NOOP\r\nQUIT\r\n"], ids=["", "with input"])
def test_a_connection_that_is_lost_amid_a_question(kind: str, fails: bool, more: bytes) -> None:
    with logged() as events:
        one = line(kind, disclose_mailboxes=True)
        if fails:
            one.answers.spoilt[kind] = StorageFull("The disk is full; try again later")
        one.say({"verify": b"VRFY alice\r\n", "expand": b"EXPN team\r\n"}.get(kind, TRANSACTION)
                + more)
        assert one.answers.held == [kind]
        said = one.news()
        one.hang_up(Failure(ConnectionLost()))
        one.release_all()
        one.clock.advance(10**6)
    outcomes = [delivery.outcome for delivery in one.store.deliveries]
    # A commit under way is not taken back: the peer may have sent all it had (RFC 1047).
    assert outcomes == {"commit": ["failed" if fails else "committed"],
                        "write": ["aborted"]}.get(kind, [])
    assert one.news() == b"", said
    if kind in ("route", "room") and fails:
        assert [formatEvent(event).split()[1] for event in events] == ["refused"]
    else:
        check_outcomes(one, events)


def check_outcomes(one: Line, events: Sequence[LogEvent]) -> None:
    """Each message that began has one line with its id, and there is no traceback."""
    assert [event["id"] for event in events] == [d.id for d in one.store.deliveries]
    assert all("log_failure" not in event for event in events)
    words = {"aborted": "dropped", "committed": "accepted", "failed": "not"}
    lines = [formatEvent(event) for event in events]
    assert [line.split()[1] for line in lines] == [
        words[delivery.outcome] for delivery in one.store.deliveries]
    assert all(line.endswith(": connection lost") for line in lines if " dropped " in line)


# ---- the end of the service ----------------------------------------------------------------------


def stop(one: Line, seconds: float = 30) -> list[None]:
    """Shut the connections down; the list has an item once all are gone."""
    done: list[None] = []
    one.factory.connections.shut_down(seconds).addCallback(done.append)
    return done


@pytest.mark.parametrize("said", [b"", HELO, HELO + TRANSACTION, HELO + b"NO"],
                         ids=["greeted", "introduced", "after a message", "half a command"])
def test_who_has_no_transaction_is_sent_away_at_once(said: bytes) -> None:
    one = Line()
    one.say(said)
    one.news()
    done = stop(one)
    assert one.codes() == STOPPING
    assert one.closed
    assert not done
    one.hang_up()
    assert done == [None]


#: What ends a transaction.
LAST_WORDS: dict[str, tuple[bytes, list[str]]] = {
    "DATA": (MESSAGE, ["354", "250 2.0.0"]),
    "BDAT": (b"BDAT 3 LAST\r\nx\r\n", ["250 2.0.0"]),
    "RSET": (b"RSET\r\n", ["250 2.0.0"]),
    "HELO": (HELO, ["250"]),
    "QUIT": (b"QUIT\r\n", ["221 2.0.0"]),
    "a refused message": (b"DATA\r\na\nb\r\n.\r\n", ["354", "550 5.6.11"]),
    "a refused chunk": (b"BDAT 3\r\na\nb", ["550 5.6.11"]),
}


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize(("words", "codes"), LAST_WORDS.values(), ids=LAST_WORDS)
def test_a_transaction_in_flight_is_finished(words: bytes, codes: list[str], late: bool) -> None:
    one = line(*(["commit", "write"] if late else []))
    one.say(SENDER + RECIPIENT)
    done = stop(one)
    assert one.codes() == ["250 2.1.0", "250 2.1.5"]
    one.say(b"RCPT TO:<bob@example.org>\r\n")
    assert one.codes() == ["250 2.1.5"]
    # A new one behind it has no place.
    one.say(words + TRANSACTION)
    one.release_all()
    assert one.codes() == (codes if words == b"QUIT\r\n" else codes + STOPPING)
    assert one.closed
    assert len(one.store.mail) == (codes[-1] == "250 2.0.0" and words != b"RSET\r\n")
    one.hang_up()
    assert done == [None]


@pytest.mark.parametrize("kind", ["verify", "expand"])
@pytest.mark.parametrize("hello", [b"", HELO], ids=["greeted", "introduced"])
def test_a_question_outside_a_transaction_is_answered_first(kind: str, hello: bytes) -> None:
    one = Line(disclose_mailboxes=True)
    one.answers.late = {kind}
    one.say(hello + {"verify": b"VRFY alice\r\n", "expand": b"EXPN team\r\n"}[kind] + TRANSACTION)
    one.news()
    stop(one)
    assert one.codes() == []
    one.release()
    assert one.codes() == ["250 2.1.5", *STOPPING]
    one.hang_up()


def test_a_commit_under_way_is_finished() -> None:
    one = line("commit")
    one.say(TRANSACTION)
    done = stop(one)
    one.news()
    one.clock.advance(29)
    one.release()
    assert one.codes() == ["250 2.0.0", *STOPPING]
    one.hang_up()
    assert done == [None]


def test_who_takes_too_long_is_cut_off() -> None:
    one = line()
    one.say(SENDER + RECIPIENT + b"DATA\r\nfirst\r\n")
    done = stop(one, 30)
    one.clock.advance(29)
    assert not one.transport.disconnected
    one.news()
    one.clock.advance(1)
    assert one.codes() == STOPPING
    assert one.store.deliveries[0].outcome == "aborted"
    # Whoever does not take even that is not waited for.
    one.clock.advance(1)
    assert one.transport.disconnected
    assert not done
    one.hang_up()
    assert done == [None]


def test_who_does_not_read_is_cut_off_in_the_end() -> None:
    one = line()
    one.protocol.pauseProducing()
    done = stop(one, 30)
    one.clock.advance(30)
    assert one.transport.disconnected
    one.hang_up()
    assert done == [None]


def test_who_is_leaving_already_is_left_alone() -> None:
    one = line()
    one.say(b"QUIT\r\n")
    stop(one)
    assert one.codes() == ["221 2.0.0"]
    one.hang_up()


# ---- how many connections ------------------------------------------------------------------------


def another(factory: SMTPFactory, host: str) -> Line:
    return Line(factory=factory, host=host)


def test_too_many_connections_from_one_address() -> None:
    first = Line(connections_per_address=2, exempt_networks=["192.0.2.0/24"])
    factory = first.factory
    second = another(factory, "198.51.100.7")
    with logged() as events:
        third = another(factory, "198.51.100.7")
    assert third.news() == (
        b"421 4.7.0 mx.example.org Too many connections from your address; try again later\r\n")
    assert third.closed
    (event,) = events
    assert event["log_level"] is LogLevel.warn
    assert formatEvent(event) == (
        f"{third.protocol.id} refused client=198.51.100.7: Too many connections from your address; "
        "try again later")
    # A neighbour and a friend are not concerned.
    for host in ("198.51.100.8", "192.0.2.1", "192.0.2.1", "192.0.2.1"):
        assert another(factory, host).codes() == ["220"]
    for gone in (second, third):
        gone.protocol.connectionLost()
    assert another(factory, "198.51.100.7").codes() == ["220"]


def test_too_many_connections() -> None:
    lines = [Line(connections=3)]
    factory = lines[0].factory
    lines += [another(factory, f"198.51.100.{n}") for n in range(3)]
    assert [one.codes() for one in lines] == [["220"]] * 3 + [["421 4.3.2"]]
    for one in lines:
        one.protocol.connectionLost()
    assert len(factory.connections) == 0
    assert another(factory, "198.51.100.1").codes() == ["220"]


def test_a_refused_connection_hears_nothing_else() -> None:
    first = Line(connections=1)
    second = another(first.factory, "198.51.100.8")
    second.say(HELO + TRANSACTION)
    assert second.codes() == ["421 4.3.2"]
    second.clock.advance(LINGER)
    assert second.transport.disconnected
    second.protocol.connectionLost()
    first.hang_up()


def test_addresses_of_one_ipv6_network_are_one() -> None:
    def ipv6(host: str, **how: Any) -> Line:
        return Line(transport=Wire(peerAddress=IPv6Address("TCP", host, 1)), **how)

    first = ipv6("2001:db8::1", connections_per_address=1)
    assert ipv6("2001:db8::2", factory=first.factory).codes() == ["421 4.7.0"]
    assert ipv6("2001:db8:0:1::1", factory=first.factory).codes() == ["220"]


@pytest.mark.parametrize(("value", "expected"), [
    ([], None), (["192.0.2.1", "192.0.2.0/24", "192.0.2.1/24", "2001:db8::/32"], None),
    (["192.0.2.0/33"], 'networks like "192.0.2.0/24" and "2001:db8::/32"'),
    (["192.0.2.0/24", "friends"], 'networks like "192.0.2.0/24" and "2001:db8::/32"'),
])
def test_exempt_networks_are_checked_before_the_service_starts(value: list[str],
                                                               expected: str | None) -> None:
    (field,) = [field for field in fields(SMTPSettings) if field.name == "exempt_networks"]
    assert field.metadata["check"](value) == expected
    if expected is None:
        Line(exempt_networks=value)
