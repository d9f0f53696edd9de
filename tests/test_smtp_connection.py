"""What an SMTP connection bears and how long it waits: back-pressure and time."""

from __future__ import annotations

import pytest
from twisted.internet.defer import succeed
from twisted.logger import formatEvent

from tests.postoffice import Line, Wire
from tests.test_smtp_server import MESSAGE, RECIPIENT, SENDER, TRANSACTION, line, logged

TIMED_OUT = ["421 4.4.2"]
#: The settings' own times, seconds.
COMMAND, DATA, WHOLE, LINGER = 300, 180, 3600, 10


# ---- back-pressure -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["route", "room", "verify", "expand", "commit"])
def test_reading_stops_when_input_waits_for_an_answer(kind: str) -> None:
    one = line(kind, disclose_mailboxes=True)
    one.say({"verify": b"VRFY a\r\n", "expand": b"EXPN a\r\n", "commit": TRANSACTION}.get(
        kind, SENDER + RECIPIENT))
    assert one.answers.held == [kind]
    # Nothing waits yet: a chunk may come, and one only.
    assert not one.paused
    one.say(b"NO")
    assert one.paused
    one.say(b"OP\r\n" + b"NOOP\r\n" * 100)
    assert one.protocol.session.buffered == 2
    one.release_all()
    assert not one.paused
    assert one.news().endswith(b"250 2.0.0 Nothing done\r\n")
    one.hang_up()


def test_input_waits_while_the_store_asks_for_a_pause() -> None:
    one = line("write")
    one.say(SENDER + RECIPIENT + b"DATA\r\n")
    # The trace header's pause: 354 is out, and one chunk is taken, but not looked at.
    assert one.codes() == ["250 2.1.0", "250 2.1.5", "354"]
    assert not one.paused
    one.say(b"first\r\n")
    assert one.paused
    assert one.protocol.session.buffered == 7
    assert one.store.deliveries[0].message.endswith(b" +0000\r\n")
    one.release()
    # The first block's pause.
    assert not one.paused
    assert one.store.deliveries[0].message.endswith(b"\r\nfirst")
    one.say(b"second\r\n.\r\nNOOP\r\n")
    assert one.paused
    one.say(b"QUIT\r\n")
    assert one.unread
    one.release()
    assert one.store.deliveries[0].message.endswith(b"\r\nfirst\r\nsecond\r\n")
    assert one.paused
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
    assert not one.paused


def test_nothing_is_done_for_a_peer_that_does_not_read() -> None:
    one = line()
    one.protocol.pauseProducing()
    # As long as nothing waits a chunk may come: it may be the handshake of TLS, which has to read
    # before it can write.
    assert not one.paused
    one.say(b"NOOP\r\n" * 3)
    assert one.paused
    assert one.codes() == []
    one.protocol.resumeProducing()
    assert one.codes() == ["250 2.0.0"] * 3
    assert not one.paused
    one.hang_up()


def test_a_chunk_that_waits_already_is_the_last_for_a_peer_that_does_not_read() -> None:
    one = line()
    one.say(b"NO")
    assert not one.paused
    one.protocol.pauseProducing()
    assert one.paused
    one.protocol.resumeProducing()
    assert not one.paused
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
    assert one.paused
    one.protocol.resumeProducing()
    assert one.codes() == ["250 2.0.0"]
    assert not one.paused
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
