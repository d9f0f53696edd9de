"""The life of an SMTP connection: back-pressure, time, loss, closing, the end of the service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pytest
from twisted.internet.address import IPv6Address
from twisted.internet.defer import succeed
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, LogLevel, formatEvent
from twisted.python.failure import Failure

from mailsvc.errors import StorageFull
from mailsvc.smtp.limits import SMTPSettings
from mailsvc.smtp.server import SMTPFactory
from tests.postoffice import Line, Wire
from tests.test_smtp_server import HELO, MESSAGE, RECIPIENT, SENDER, TRANSACTION, line, logged

TIMED_OUT = ["421 4.4.2"]
STOPPING = ["421 4.3.2"]
#: The settings' own times, seconds.
COMMAND, DATA, WHOLE, LINGER = 300, 180, 3600, 10


# ---- back-pressure -------------------------------------------------------------------------------


def paused(one: Line) -> bool:
    return one.transport.producerState == "paused"


@pytest.mark.parametrize("kind", ["route", "room", "verify", "expand", "commit"])
def test_reading_stops_when_input_waits_for_an_answer(kind: str) -> None:
    one = line(kind, disclose_mailboxes=True)
    one.say({"verify": b"VRFY a\r\n", "expand": b"EXPN a\r\n", "commit": TRANSACTION}.get(
        kind, SENDER + RECIPIENT))
    assert one.answers.held == [kind]
    # Nothing waits yet: a chunk may come, and one only.
    assert not paused(one)
    one.say(b"NO")
    assert paused(one)
    one.say(b"OP\r\n" + b"NOOP\r\n" * 100)
    assert one.protocol.session.buffered == 2
    one.release_all()
    assert not paused(one)
    assert one.news().endswith(b"250 2.0.0 Nothing done\r\n")
    one.hang_up()


def test_input_waits_while_the_store_asks_for_a_pause() -> None:
    one = line("write")
    one.say(SENDER + RECIPIENT + b"DATA\r\n")
    # The trace header's pause: 354 is out, and one chunk is taken, but not looked at.
    assert one.codes() == ["250 2.1.0", "250 2.1.5", "354"]
    assert not paused(one)
    one.say(b"first\r\n")
    assert paused(one)
    assert one.protocol.session.buffered == 7
    assert one.store.deliveries[0].message.endswith(b" +0000\r\n")
    one.release()
    # The first block's pause.
    assert not paused(one)
    assert one.store.deliveries[0].message.endswith(b"\r\nfirst")
    one.say(b"second\r\n.\r\nNOOP\r\n")
    assert paused(one)
    one.say(b"QUIT\r\n")
    assert one.unread
    one.release()
    assert one.store.deliveries[0].message.endswith(b"\r\nfirst\r\nsecond\r\n")
    assert paused(one)
    assert one.codes() == []
    one.release()
    assert one.codes() == ["250 2.0.0", "250 2.0.0", "221 2.0.0"]
    one.hang_up()


def test_a_pause_that_is_over_at_once_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.postoffice.FakeDelivery.write",
                        lambda self, block: succeed(None))
    one = line()
    one.say(TRANSACTION)
    assert one.codes() == ["250 2.1.0", "250 2.1.5", "354", "250 2.0.0"]
    assert not paused(one)


def test_nothing_is_done_for_a_peer_that_does_not_read() -> None:
    one = line()
    one.protocol.pauseProducing()
    # As long as nothing waits a chunk may come: it may be the handshake of TLS, which has to read
    # before it can write.
    assert not paused(one)
    one.say(b"NOOP\r\n" * 3)
    assert paused(one)
    assert one.codes() == []
    one.protocol.resumeProducing()
    assert one.codes() == ["250 2.0.0"] * 3
    assert not paused(one)
    one.hang_up()


class FullTransport(Wire):
    """Its buffer takes so many octets before the producer is paused, as that of a TCP transport."""

    room = 200

    def write(self, data: bytes) -> None:
        super().write(data)
        if self.producer is not None and len(self.value()) > self.room:
            self.producer.pauseProducing()


def test_a_flood_of_commands_waits_for_the_peer_to_read() -> None:
    one = Line(transport=FullTransport(), idle_commands=10_000)
    for _ in range(20):
        one.say(b"NOOP\r\n" * 10)
    # One chunk was answered beyond what fits, one waits, and the rest was not even read.
    assert len(one.codes()) == 11
    assert len(one.unread) == 18 * 60
    heard = 0
    while one.protocol.session.buffered:
        one.protocol.resumeProducing()
        one.flow()
        heard += len(one.codes())
    assert not one.unread
    assert heard == 190
    one.hang_up()


def test_an_answer_waits_for_the_peer_to_read_too() -> None:
    one = line("route")
    one.say(SENDER + RECIPIENT + b"NOOP\r\n")
    one.protocol.pauseProducing()
    one.release()
    # The reply is made and goes to the transport; the command behind it waits.
    assert one.codes() == ["250 2.1.0", "250 2.1.5"]
    assert paused(one)
    one.protocol.resumeProducing()
    assert one.codes() == ["250 2.0.0"]
    assert not paused(one)
    one.hang_up()


def test_the_transport_is_not_bothered_without_need() -> None:
    one = line("commit")
    for _ in range(10):
        one.say(b"NO")
        one.say(b"OP\r\n")
    one.say(TRANSACTION)
    assert one.transport.bothered == 0  # type: ignore[attr-defined]
    one.say(b"NOOP\r\n")
    one.release()
    assert one.transport.bothered == 2  # type: ignore[attr-defined]
    one.hang_up()


# ---- time ----------------------------------------------------------------------------------------


def test_who_says_nothing_is_told_and_cut_off() -> None:
    one = Line()
    one.clock.advance(COMMAND - 1)
    assert one.codes() == ["220"]
    one.clock.advance(1)
    assert one.codes() == TIMED_OUT
    assert one.closed
    assert not one.transport.disconnected
    # Whoever does not close then is cut off.
    one.clock.advance(LINGER - 1)
    assert not one.transport.disconnected
    one.clock.advance(1)
    assert one.transport.disconnected
    one.hang_up()


def test_a_command_that_dribbles_is_cut_off() -> None:
    one = line()
    for second in range(COMMAND):
        assert not one.closed, second
        one.say(b"x")
        one.clock.advance(1)
    assert one.codes() == TIMED_OUT
    one.hang_up()


def test_a_line_that_is_too_long_dribbles_no_longer() -> None:
    one = line(command_octets=512)
    for _ in range(COMMAND):
        assert not one.closed
        one.say(b"x" * 512)
        one.clock.advance(1)
    assert one.codes() == TIMED_OUT
    one.hang_up()


def test_each_whole_command_buys_time() -> None:
    one = line()
    for _ in range(20):
        one.say(b"NO")
        one.clock.advance(COMMAND - 1)
        one.say(b"OP\r\n")
        assert one.codes() == ["250 2.0.0"]
    one.clock.advance(COMMAND - 1)
    assert not one.closed
    one.clock.advance(1)
    assert one.codes() == TIMED_OUT
    one.hang_up()


def test_starttls_buys_time_and_tls_does_not_close_by_halves() -> None:
    context = object()
    one = line(tls=context, errors=1)
    one.clock.advance(COMMAND - 1)
    one.say(b"STARTTLS\r\nNOOP\r\n")
    assert one.codes() == ["220 2.0.0"]
    assert one.transport.tls is context  # type: ignore[attr-defined]
    one.clock.advance(COMMAND - 1)
    one.say(b"WHAT\r\n")
    assert one.codes() == ["500 5.5.1", "421 4.7.0"]
    assert one.transport.disconnecting
    one.hang_up()


def test_amid_a_message_each_octet_buys_time() -> None:
    one = line(message_seconds=10**9)
    one.say(SENDER + RECIPIENT + b"DATA\r\n")
    one.news()
    for _ in range(20):
        one.clock.advance(DATA - 1)
        one.say(b"x")
    one.clock.advance(DATA - 1)
    assert not one.closed
    one.clock.advance(1)
    assert one.codes() == TIMED_OUT
    assert one.store.deliveries[0].outcome == "aborted"
    one.hang_up()


@pytest.mark.parametrize("begin", [b"DATA\r\n", b"BDAT 999999\r\n"])
def test_but_not_for_ever(begin: bytes) -> None:
    one = line()
    one.say(SENDER + RECIPIENT + begin)
    one.news()
    for minute in range(WHOLE // 60):
        assert not one.closed, minute
        one.say(b"x")
        one.clock.advance(60)
    assert one.codes() == TIMED_OUT
    one.hang_up()


def test_a_message_in_many_chunks_has_no_more_time_than_another() -> None:
    one = line()
    one.say(SENDER + RECIPIENT)
    for _ in range(WHOLE // 60):
        assert not one.closed
        one.say(b"BDAT 1\r\nx")
        one.clock.advance(60)
    assert one.codes()[-1:] == TIMED_OUT
    one.hang_up()


def test_chunks_of_nothing_last_no_longer_either() -> None:
    one = line()
    one.say(SENDER + RECIPIENT)
    for _ in range(WHOLE // 60):
        assert not one.closed
        one.say(b"BDAT 0\r\n")
        one.clock.advance(60)
    assert one.closed
    one.hang_up()


def test_between_chunks_a_command_has_its_own_time() -> None:
    one = line()
    one.say(SENDER + RECIPIENT + b"BDAT 1\r\nx")
    one.clock.advance(COMMAND - 1)
    assert not one.closed
    one.clock.advance(1)
    assert one.codes()[-1:] == TIMED_OUT
    one.hang_up()


@pytest.mark.parametrize("late", [True, False], ids=["late", "at once"])
def test_each_message_has_its_own_time(late: bool) -> None:
    # BDAT may be pipelined (RFC 3030 §4.2), so there need never be a moment without a message.
    one = line(*(["commit"] if late else []))
    half = SENDER + RECIPIENT + b"BDAT 2 LAST\r\nx"
    one.say(half)
    for _ in range(2 * WHOLE // 60):
        one.clock.advance(60)
        one.say(b"x" + half)
        one.release_all()
        assert not one.closed
    assert len(one.store.mail) == 2 * WHOLE // 60
    one.hang_up()


@pytest.mark.parametrize("kind", ["route", "commit", "write"])
def test_no_time_runs_while_the_server_is_at_work(kind: str) -> None:
    one = line(kind)
    one.say(SENDER + RECIPIENT)
    if kind != "route":
        one.say(MESSAGE)
    one.clock.advance(10**6)
    assert not one.closed
    one.release_all()
    # From the answer on the client has all its time again.
    one.clock.advance(COMMAND - 1)
    assert not one.closed
    one.clock.advance(1)
    assert one.codes()[-1:] == TIMED_OUT
    one.hang_up()


def test_amid_a_message_no_time_runs_while_the_store_is_at_work() -> None:
    one = line("write")
    one.say(SENDER + RECIPIENT + b"DATA\r\n")
    one.release()
    one.say(b"first\r\nx")
    one.clock.advance(1000)
    one.release()
    one.clock.advance(DATA - 1)
    assert not one.closed
    one.clock.advance(1)
    assert one.closed
    one.hang_up()


def test_the_timer_is_not_moved_with_each_command() -> None:
    one = line()
    (timer,) = one.clock.getDelayedCalls()
    due = timer.getTime()
    one.clock.advance(100)
    one.say(b"NOOP\r\n" + TRANSACTION)
    assert one.clock.getDelayedCalls() == [timer]
    assert timer.getTime() == due
    one.hang_up()


def test_a_short_time_behind_a_long_one() -> None:
    # The timer set for the command is moved forward for the message, and back for the command.
    one = line(data_seconds=5)
    one.say(SENDER + RECIPIENT + b"DATA\r\n")
    one.clock.advance(4)
    one.say(b".\r\n")
    one.clock.advance(COMMAND - 1)
    assert not one.closed
    one.say(SENDER + RECIPIENT + b"DATA\r\n")
    one.clock.advance(5)
    assert one.codes()[-1:] == TIMED_OUT
    one.hang_up()


def test_a_long_time_behind_a_short_one() -> None:
    one = line(command_seconds=5)
    one.say(SENDER + RECIPIENT + b"DATA\r\n")
    one.clock.pump([1] * (DATA - 1))
    assert not one.closed
    one.clock.advance(1)
    assert one.codes()[-1:] == TIMED_OUT
    one.hang_up()


def test_a_peer_that_does_not_read_is_cut_off() -> None:
    one = line()
    one.protocol.pauseProducing()
    one.clock.advance(COMMAND)
    assert one.codes() == TIMED_OUT
    one.clock.advance(LINGER)
    assert one.transport.disconnected
    one.hang_up()


def test_a_peer_that_does_not_read_is_cut_off_with_its_message_in_the_store() -> None:
    # The store holds the last block back, so that the end of the message is found but not asked for
    # yet; meanwhile the peer stops reading.
    one = line("write")
    one.say(SENDER + RECIPIENT + b"DATA\r\n")
    one.release()
    one.say(b"text\r\n.\r\n")
    one.protocol.pauseProducing()
    one.release()
    with logged() as events:
        one.clock.advance(DATA)
    assert one.codes()[-1:] == TIMED_OUT
    assert one.store.deliveries[0].outcome == "aborted"
    assert [formatEvent(event)[16:24] for event in events] == [" dropped"]
    one.hang_up()


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
    assert paused(one)
    one.release()
    assert one.transport.disconnecting
    assert not paused(one)
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
    assert paused(one)
    one.release()
    assert one.codes() == ["250 2.1.0", "550 5.1.1", "421 4.7.0"]
    assert one.transport.half_closed  # type: ignore[attr-defined]
    assert not paused(one)
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
        b"421 4.7.0 Too many connections from your address; try again later\r\n")
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
