"""Clients without manners: who speaks too early, errs again and again, or commands too much."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.logger import capturedLogs, formatEvent

from mailsvc.connections import Connections
from mailsvc.mail import Address
from mailsvc.smtp.mode import LMTP, SUBMISSION
from tests.pop3 import Client
from tests.postoffice import Answers, Line

BOB = Address("bob", "example.org")
EXEMPT = "127.0.0.1"


# ---- early talkers -------------------------------------------------------------------------------


def early(**how: Any) -> Line:
    return Line(greeting_delay_seconds=3, **how)


def test_the_greeting_comes_late_and_whoever_waits_is_served() -> None:
    one = early()
    one.clock.advance(2.9)
    assert one.heard() == b""
    one.clock.advance(0.1)
    assert one.codes() == ["220"]
    one.say(b"EHLO client.example\r\n")
    assert one.codes() == ["250"]
    one.hang_up()


@pytest.mark.parametrize("said", [b"EHLO bot.example\r\nMAIL FROM:<>\r\n", b"E", b"\x16\x03\x01",
                                  b"GET / HTTP/1.1\r\n\r\n"])
def test_whoever_speaks_before_it_is_refused(said: bytes) -> None:
    one = early()
    one.clock.advance(1)
    one.say(said)
    assert one.heard() == b"", "it is not told sooner that it was found out"
    assert one.paused, "nothing more is read"
    with capturedLogs() as caught:
        one.clock.advance(2)
    assert one.codes() == ["554 5.5.1"]
    assert one.closed
    assert [formatEvent(event).partition(" ")[2] for event in caught] == [
        "spoke before the greeting client=198.51.100.7"]
    one.hang_up()


@pytest.mark.parametrize("how", [
    {"host": EXEMPT}, {"mode": SUBMISSION}, {"mode": LMTP}], ids=["exempt", "submission", "lmtp"])
def test_who_need_not_wait(how: dict[str, Any]) -> None:
    one = early(**how)
    assert one.codes() == ["220"]
    one.hang_up()


def test_without_the_setting_nobody_waits() -> None:
    one = Line()
    assert one.codes() == ["220"]
    one.hang_up()


def test_one_connection_too_many_is_told_at_once() -> None:
    one = early(connections=1)
    other = Line(factory=one.factory)
    assert other.codes() == ["421 4.3.2"]
    other.protocol.connectionLost()
    one.hang_up()


def test_who_leaves_before_the_greeting_leaves_nothing_behind() -> None:
    one = early()
    one.hang_up()
    two = early()
    two.say(b"EHLO x\r\n")
    two.protocol.readConnectionLost()
    two.clock.advance(3)
    assert two.codes() == ["554 5.5.1"]
    two.hang_up()


def test_a_service_that_stops_does_not_wait_for_the_greeting() -> None:
    one = early()
    one.factory.connections.shut_down(10)
    one.clock.advance(3)
    assert one.codes() == ["220", "421 4.3.2"]
    one.hang_up()
    two = early()
    two.factory.connections.shut_down(1)
    two.clock.advance(1)
    assert two.transport.disconnected
    two.hang_up()


# ---- the tarpit ----------------------------------------------------------------------------------


def tarpit(**how: Any) -> Line:
    one = Line(free_errors=2, error_delay_seconds=1, **how)
    one.say(b"EHLO client.example\r\n")
    one.news()
    return one


def seconds_to_answer(one: Any, data: bytes) -> float:
    """How long what *data* asks for takes to be answered, in half seconds."""
    one.news()
    one.say(data)
    for halves in range(40):
        if one.news():
            return halves / 2
        one.clock.advance(0.5)
    raise AssertionError("no answer")


def test_errors_wait_longer_each_time_up_to_a_limit() -> None:
    one = tarpit()
    assert [seconds_to_answer(one, b"WHAT\r\n") for _ in range(10)] == [
        0, 0, 1, 2, 3, 4, 5, 5, 5, 5]
    assert seconds_to_answer(one, b"NOOP\r\n") == 0, "what is no error does not wait"
    one.hang_up()


def test_an_accepted_message_wipes_the_slate_clean() -> None:
    one = tarpit(accounts=[BOB])
    for _ in range(4):
        seconds_to_answer(one, b"WHAT\r\n")
    one.say(f"MAIL FROM:<>\r\nRCPT TO:<{BOB}>\r\nDATA\r\n".encode())
    one.say(b"Subject: x\r\n\r\nx\r\n.\r\n")
    assert [seconds_to_answer(one, b"WHAT\r\n") for _ in range(4)] == [0, 0, 1, 2]
    one.hang_up()


def test_unknown_recipients_are_errors_and_each_waits_however_they_come() -> None:
    one = tarpit()
    one.say(b"MAIL FROM:<>\r\n" + b"".join(
        b"RCPT TO:<nobody%d@example.org>\r\n" % n for n in range(5)))
    counts = []
    for _ in range(8):
        counts.append(one.heard().count(b"\r\n550 "))
        one.clock.advance(1)
    # The third error a second late, the fourth two more, the fifth three more; the first two are of
    # the same turn as the third.
    assert counts == [0, 3, 3, 4, 4, 4, 5, 5]
    one.hang_up()


def test_an_answer_that_comes_late_waits_all_the_same() -> None:
    answers = Answers()
    answers.late = {"route"}
    one = tarpit(answers=answers)
    one.say(b"MAIL FROM:<>\r\n")
    for wait in (0, 0, 1, 2):
        one.news()
        one.say(b"RCPT TO:<nobody@example.org>\r\n")
        one.release()
        one.clock.advance(max(0.0, wait - 0.5))
        assert bool(one.codes()) is (wait == 0)
        one.clock.advance(0.5)
    one.hang_up()


def test_nothing_is_read_meanwhile_and_no_time_runs() -> None:
    one = tarpit(command_seconds=1)
    one.say(b"WHAT\r\nWHAT\r\nWHAT\r\nWHAT\r\nWHAT\r\n")
    assert one.news() == b""
    one.say(b"NOOP\r\n")
    assert one.paused
    one.clock.advance(2.9)
    assert one.news() == b""
    one.clock.advance(0.1)
    assert one.codes() == ["500 5.5.1"] * 5 + ["250 2.0.0"]
    one.flow()
    one.clock.advance(0.9)
    assert not one.closed
    one.hang_up()


def test_the_last_error_is_not_waited_for() -> None:
    one = tarpit(errors=4)
    one.say(b"WHAT\r\n" * 9)
    assert one.codes() == ["500 5.5.1"] * 4 + ["421 4.7.0"]
    assert one.closed
    one.hang_up()


def test_exempt_clients_do_not_wait() -> None:
    one = tarpit(host=EXEMPT)
    assert [seconds_to_answer(one, b"WHAT\r\n") for _ in range(10)] == [0] * 10
    one.hang_up()


@pytest.mark.parametrize("leave", [True, False], ids=["the client", "the service"])
def test_it_can_be_left(leave: bool) -> None:
    one = tarpit()
    one.say(b"WHAT\r\n" * 3)
    if not leave:
        one.factory.connections.shut_down(0)
        one.clock.advance(0)
        assert one.transport.disconnected
    one.hang_up()


def test_a_client_that_has_closed_its_side_still_gets_its_answers() -> None:
    one = tarpit()
    one.say(b"WHAT\r\n" * 3)
    one.protocol.readConnectionLost()
    assert not one.closed
    one.clock.advance(1)
    assert one.codes() == ["500 5.5.1"] * 3
    assert one.closed
    one.hang_up()


def test_pop3_has_one_too() -> None:
    one = Client(free_errors=2, error_delay_seconds=1, errors=99)
    assert [seconds_to_answer(one, b"WHAT\r\n") for _ in range(9)] == [0, 0, 1, 2, 3, 4, 5, 5, 5]
    one.log_in()
    assert seconds_to_answer(one, b"STAT\r\n") == 0
    assert seconds_to_answer(one, b"RETR\r\n") == 5
    one.hang_up()


def test_by_default_ten_errors_are_free() -> None:
    for make in (Line, Client):
        one: Any = make(error_delay_seconds=0.5)
        assert [seconds_to_answer(one, b"WHAT\r\n") for _ in range(12)] == [0] * 10 + [0.5, 1]
        one.hang_up()


# ---- commands -----------------------------------------------------------------------------------


def paced(factory: Any, per_minute: int) -> None:
    factory.connections = Connections(100, 100, ("127.0.0.0/8",), factory.clock,
                                      commands_per_minute=per_minute)


def smtp(per_minute: int, host: str = "192.0.2.1", factory: Any = None, **how: Any) -> Line:
    if factory is None:
        first = Line(**how)
        first.hang_up()
        factory = first.factory
        paced(factory, per_minute)
    return Line(factory=factory, host=host)


def test_who_commands_too_much_is_dismissed_and_comes_back_in_vain() -> None:
    one = smtp(60)
    one.say(b"NOOP\r\n" * 60)
    assert one.codes() == ["220"] + ["250 2.0.0"] * 60
    with capturedLogs() as caught:
        one.say(b"NOOP\r\n")
    assert one.codes() == ["250 2.0.0", "421 4.7.0"]
    assert one.closed
    assert [formatEvent(event).partition(" ")[2] for event in caught] == [
        "dismissed client=192.0.2.1: Too many commands from your address within a minute; "
        "try again later"]
    one.protocol.connectionLost()
    again = smtp(60, factory=one.factory)
    again.say(b"NOOP\r\n")
    assert again.codes() == ["220", "250 2.0.0", "421 4.7.0"]
    again.protocol.connectionLost()
    other = smtp(60, factory=one.factory, host="192.0.2.2")
    other.say(b"NOOP\r\n")
    assert other.codes() == ["220", "250 2.0.0"]
    other.protocol.connectionLost()
    one.clock.advance(1)
    patient = smtp(60, factory=one.factory)
    patient.say(b"NOOP\r\n")
    assert patient.codes() == ["220", "250 2.0.0"]
    patient.hang_up()


def test_a_message_under_way_may_end() -> None:
    one = smtp(4, accounts=[BOB])
    one.say(b"EHLO x\r\nMAIL FROM:<>\r\n" + f"RCPT TO:<{BOB}>\r\n".encode())
    one.say(b"BDAT 3\r\nabc")
    one.say(b"BDAT 2 LAST\r\nde")
    assert one.codes() == ["220", "250", "250 2.1.0", "250 2.1.5", "250 2.0.0", "250 2.0.0"]
    one.say(b"NOOP\r\n")
    assert one.codes() == ["250 2.0.0", "421 4.7.0"]
    assert one.closed
    one.hang_up()


def test_exempt_clients_command_as_they_like() -> None:
    one = smtp(1, host=EXEMPT)
    one.say(b"NOOP\r\n" * 50)
    assert one.codes() == ["220"] + ["250 2.0.0"] * 50
    one.hang_up()


def test_in_pop3_it_is_told_likewise() -> None:
    first = Client()
    first.hang_up()
    paced(first.factory, 4)
    one = Client(factory=first.factory)
    one.log_in()
    assert one.ask("NOOP", "NOOP") == ["+OK Nothing done"] * 2
    assert one.ask("DELE 1") == [
        "+OK Message 1 deleted",
        "-ERR [SYS/TEMP] Too many commands from your address within a minute; try again later"]
    assert one.closed
    assert one.maildrop.happened == [], "nothing is deleted without QUIT"
    one.hang_up()


