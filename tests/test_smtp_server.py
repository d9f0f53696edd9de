"""The SMTP adaptor between session, router and store: late answers, failures, trace, log lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, LogLevel, capturedLogs, formatEvent
from twisted.python.failure import Failure

from mailsvc.errors import (
    MailboxFull,
    MailFailure,
    MessageTooLarge,
    PermanentFailure,
    StorageFull,
    TemporaryFailure,
    UnknownMailbox,
)
from mailsvc.log import LogSettings, json_line, text_line
from mailsvc.mail import Address, Remote
from mailsvc.smtp.mode import SUBMISSION
from tests.postoffice import Line, Unlimited, Wire

HELO = b"HELO client.example.net\r\n"
EHLO = b"EHLO client.example.net\r\n"
SENDER = b"MAIL FROM:<a@example.net>\r\n"
RECIPIENT = b"RCPT TO:<alice@example.org>\r\n"
MESSAGE = b"DATA\r\nSubject: x\r\n\r\ntext\r\n.\r\n"
TRANSACTION = SENDER + RECIPIENT + MESSAGE
TAKEN = ["250 2.1.0", "250 2.1.5", "354", "250 2.0.0"]

#: What the log says of a message that is given up.
ABOUT = "sender=a@example.net recipients=['alice@example.org'] client=198.51.100.7"


def line(*late: str, **how: Any) -> Line:
    """A line that has said HELO, on which answers of the kinds *late* are held back."""
    one = Line(**how)
    one.say(HELO)
    one.news()
    one.answers.late = set(late)
    return one


@contextmanager
def logged() -> Iterator[Sequence[LogEvent]]:
    """The events that the adaptor logs meanwhile; there must be no others."""
    with capturedLogs() as events:
        yield events
    assert {event["log_namespace"] for event in events} <= {"mailsvc.smtp"}


def texts(events: Sequence[LogEvent]) -> list[str]:
    """The events as a person reads them, without ids and tracebacks."""
    return [re.sub(r"\b[0-9A-Z]{16}\b", "ID", formatEvent(event)) for event in events]


# ---- answers that come late (PITFALLS, SMTP row 20) ----------------------------------------------


def test_replies_stay_in_order_however_late_an_answer_is() -> None:
    one = line("route", "room", "verify", "expand", "commit", disclose_mailboxes=True)
    one.say(b"VRFY alice\r\n" + SENDER + RECIPIENT + b"RCPT TO:<nobody@example.org>\r\n"
            b"RSET\r\nEXPN friends\r\n" + TRANSACTION + b"NOOP\r\nQUIT\r\n")
    steps = [
        ("verify", ["250 2.1.5", "250 2.1.0"]),
        ("route", []), ("room", ["250 2.1.5"]),
        ("route", ["550 5.1.1", "250 2.0.0"]),
        ("expand", ["250 2.1.5", "250 2.1.0"]),
        ("route", []), ("room", ["250 2.1.5", "354"]),
        ("commit", ["250 2.0.0", "250 2.0.0", "221 2.0.0"]),
    ]
    assert one.codes() == []
    for kind, codes in steps:
        assert one.answers.held == [kind]
        # Time passes and nothing happens.
        one.clock.advance(1)
        assert one.news() == b""
        assert one.release() == kind
        assert one.codes() == codes
    assert one.closed
    assert [delivery.outcome for delivery in one.store.deliveries] == ["committed"]
    one.hang_up()


@pytest.mark.parametrize("kind", ["route", "room", "verify", "expand", "write", "commit"])
def test_what_comes_in_while_an_answer_is_awaited_waits(kind: str) -> None:
    one = line(kind, disclose_mailboxes=True)
    script = (b"VRFY alice\r\nEXPN team\r\n" + SENDER + RECIPIENT + b"NOOP\r\n" + MESSAGE
              + b"RSET\r\n")
    for n in range(len(script)):
        one.say(script[n : n + 1])
    one.release_all()
    assert one.codes() == ["250 2.1.5", "250 2.1.5", "250 2.1.0", "250 2.1.5", "250 2.0.0", "354",
                           "250 2.0.0", "250 2.0.0"]
    (delivery,) = one.store.mail
    assert delivery.message.endswith(b" +0000\r\nSubject: x\r\n\r\ntext\r\n")
    one.hang_up()


def test_the_quota_of_each_account_of_an_alias_is_asked() -> None:
    one = line("room")
    one.say(SENDER + b"RCPT TO:<friends@example.org>\r\n")
    assert one.codes() == ["250 2.1.0"]
    assert one.release() == "room"
    assert one.codes() == []
    assert one.release() == "room"
    assert one.codes() == ["250 2.1.5"]


# ---- answers that fail ---------------------------------------------------------------------------

FULL = StorageFull("The disk is full; try again later")
REFUSED = PermanentFailure("Not here, not ever")
#: A kind of answer, what fails, how it is said at RCPT and VRFY, and after DATA.
FAILURES: list[tuple[MailFailure, str, str]] = [
    (FULL, "452 4.3.1", "452 4.3.1"),
    (TemporaryFailure("Later"), "451 4.3.0", "451 4.3.0"),
    (REFUSED, "550 5.3.0", "554 5.3.0"),
    (UnknownMailbox("No such mailbox here"), "550 5.1.1", "554 5.1.1"),
]
QUESTIONS = {
    "route": SENDER + RECIPIENT,
    "room": SENDER + RECIPIENT,
    "verify": b"VRFY alice\r\n",
    "expand": b"EXPN team\r\n",
    "begin": SENDER + RECIPIENT + b"DATA\r\n",
    "commit": TRANSACTION,
}
AFTER_RCPT = {"begin", "commit"}


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize("kind", QUESTIONS)
@pytest.mark.parametrize(("failure", "at_rcpt", "after"), FAILURES)
def test_a_failure_is_a_reply(kind: str, late: bool, failure: MailFailure, at_rcpt: str,
                              after: str) -> None:
    one = line(*({kind} - {"begin"} if late else ()), disclose_mailboxes=True)
    one.answers.spoilt[kind] = failure
    one.say(QUESTIONS[kind])
    one.release_all()
    assert one.codes()[-1] == (after if kind in AFTER_RCPT else at_rcpt)
    # The connection is as good as before.
    one.answers.spoilt.clear()
    one.say(b"RSET\r\n" + TRANSACTION)
    one.release_all()
    assert one.codes() == ["250 2.0.0", *TAKEN]
    one.hang_up()


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
@pytest.mark.parametrize("kind", QUESTIONS)
def test_a_bug_is_a_local_error_and_a_traceback(kind: str, late: bool) -> None:
    one = line(*({kind} - {"begin"} if late else ()), disclose_mailboxes=True)
    one.answers.spoilt[kind] = ZeroDivisionError("a bug")
    with logged() as events:
        one.say(QUESTIONS[kind])
        one.release_all()
    assert one.codes()[-1] == "451 4.3.0"
    (bug,) = [event for event in events if "log_failure" in event]
    assert bug["log_level"] is LogLevel.critical
    assert bug["log_failure"].type is ZeroDivisionError
    assert bug["connection"] == one.protocol.id
    one.answers.spoilt.clear()
    one.say(b"RSET\r\n" + TRANSACTION)
    one.release_all()
    assert one.codes() == ["250 2.0.0", *TAKEN]
    assert [delivery.outcome for delivery in one.store.deliveries][-1] == "committed"
    one.hang_up()


def test_answers_that_come_at_once_do_not_nest() -> None:
    # Nor would they fit the stack.
    one = line()
    one.answers.spoilt["route"] = ZeroDivisionError("a bug")
    with logged() as events:
        one.say(SENDER + RECIPIENT * 500)
    assert one.codes() == ["250 2.1.0"] + ["451 4.3.0"] * 500
    assert len(events) == 500


@pytest.mark.parametrize(("failure", "code"), [(FULL, "452 4.3.1"), (REFUSED, "554 5.3.0"),
                                               (ZeroDivisionError("a bug"), "451 4.3.0")])
def test_a_write_that_raises(failure: Exception, code: str) -> None:
    # The first write is the trace header's: DATA is refused.
    one = line()
    one.answers.spoilt["write"] = failure
    with logged() as events:
        one.say(SENDER + RECIPIENT + b"DATA\r\n")
    assert one.codes() == ["250 2.1.0", "250 2.1.5", code]
    assert one.store.deliveries[0].outcome == "aborted"
    # A later one: the rest is swallowed, and then refused, once.
    one.answers.spoilt.clear()
    with logged() as more:
        one.say(SENDER + RECIPIENT + b"DATA\r\nfirst\r\n")
        assert one.codes() == ["250 2.1.0", "250 2.1.5", "354"]
        one.answers.spoilt["write"] = failure
        one.say(b"second\r\n")
        one.answers.spoilt.clear()
        one.say(b"third\r\nQUIT\r\n")
        assert one.codes() == []
        one.say(b".\r\nNOOP\r\n")
    assert one.codes() == [code, "250 2.0.0"]
    assert [delivery.outcome for delivery in one.store.deliveries] == ["aborted", "aborted"]
    why = failure.text if isinstance(failure, MailFailure) else "internal error"
    assert f"ID dropped {ABOUT} connection=ID: {why}" in texts(events)
    for found in (events, more):
        assert len([event for event in found if "log_failure" in event]) == (
            not isinstance(failure, MailFailure))
        assert len([text for text in texts(found) if text.startswith("ID dropped")]) == 1
    one.hang_up()


@pytest.mark.parametrize("failure", [FULL, ZeroDivisionError("a bug")])
@pytest.mark.parametrize("begin", [b"DATA\r\n", b"BDAT 11 LAST\r\n"])
def test_a_write_that_raises_at_the_very_end(begin: bytes, failure: Exception) -> None:
    # The end came in with the block, so the session knows of it already; but commit must not be
    # trusted to know what write did not take.
    one = line()
    one.say(SENDER + RECIPIENT + begin)
    one.answers.spoilt["write"] = failure
    one.news()
    with logged() as events:
        one.say(b"some text\r\n" + (b".\r\n" if begin == b"DATA\r\n" else b"") + b"NOOP\r\n")
    assert one.codes() == ["452 4.3.1" if failure is FULL else "451 4.3.0", "250 2.0.0"]
    assert one.store.deliveries[0].outcome == "aborted"
    assert [text for text in texts(events) if text.startswith("ID dropped")]
    one.hang_up()


def test_blocks_of_a_message_that_could_not_begin_are_dropped() -> None:
    one = line()
    one.answers.spoilt["begin"] = FULL
    one.say(SENDER + RECIPIENT + b"BDAT 6\r\none\r\n\r\n")
    assert one.codes() == ["250 2.1.0", "250 2.1.5", "452 4.3.1"]
    assert one.store.deliveries == []


@pytest.mark.parametrize("kind", ["commit", ""])
def test_a_write_whose_deferred_fails_is_answered_by_commit(kind: str) -> None:
    # As IDelivery says: a failure through the Deferred of write is repeated by commit.
    one = line("write")
    one.answers.spoilt = {"write": FULL}
    if kind:
        one.answers.spoilt[kind] = FULL
    with logged() as events:
        one.say(TRANSACTION)
        assert one.codes() == ["250 2.1.0", "250 2.1.5", "354"]
        one.release_all()
    assert one.codes() == ["452 4.3.1" if kind else "250 2.0.0"]
    assert not [event for event in events if "log_failure" in event]
    one.hang_up()


def test_a_commit_that_fails_by_raising_is_answered_all_the_same(
        monkeypatch: pytest.MonkeyPatch) -> None:
    one = line()

    def commit(self: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("tests.postoffice.FakeDelivery.commit", commit)
    with logged() as events:
        one.say(TRANSACTION)
    assert one.codes()[-1] == "451 4.3.0"
    assert [event["log_failure"].type for event in events] == [ZeroDivisionError]
    one.hang_up()


# ---- what the store is given ---------------------------------------------------------------------


def test_the_store_is_told_the_accounts_the_id_and_the_size() -> None:
    one = line()
    one.say(b"MAIL FROM:<a@example.net> SIZE=77\r\nRCPT TO:<friends@example.org>\r\n" + RECIPIENT
            + MESSAGE)
    (delivery,) = one.store.mail
    assert [account.name for account in delivery.accounts] == ["alice@example.org",
                                                               "bob@example.org"]
    assert delivery.size_hint == 77
    assert one.news().endswith(f"250 2.0.0 Message accepted as {delivery.id}\r\n".encode())
    one.say(TRANSACTION)
    assert one.store.mail[1].size_hint == 0
    assert one.store.mail[1].id > delivery.id


@pytest.mark.parametrize(("peer", "source"), [
    (IPv4Address("TCP", "203.0.113.9", 1), b"client.example.net ([203.0.113.9])"),
    (IPv6Address("TCP", "2001:db8::1", 1), b"client.example.net ([IPv6:2001:db8::1])"),
    (IPv6Address("TCP", "::ffff:203.0.113.9", 1), b"client.example.net ([203.0.113.9])"),
    (IPv6Address("TCP", "fe80::1%eth0", 1), b"client.example.net ([IPv6:fe80::1])"),
    (UNIXAddress("/run/mailsvc"), b"client.example.net"),
])
def test_the_trace_header(peer: Any, source: bytes) -> None:
    one = Line(transport=Wire(peerAddress=peer))
    one.say(EHLO + SENDER + RECIPIENT + b"DATA\r\n")
    one.clock.advance(100)
    one.say(b"Received: from elsewhere\r\n.\r\n")
    (delivery,) = one.store.mail
    # The time is that of the beginning; both fields stand on top, once.
    assert delivery.message == (
        b"Return-Path: <a@example.net>\r\n"
        b"Received: from " + source + b"\r\n"
        b"\tby mx.example.org with ESMTP id " + delivery.id.encode() + b"\r\n"
        b"\tfor <alice@example.org>;\r\n"
        b"\tSat, 21 Nov 2026 09:30:00 +0000\r\n"
        b"Received: from elsewhere\r\n")


def test_a_transport_without_tcp_options_will_do() -> None:
    one = Line(transport=StringTransport())
    one.say(HELO + TRANSACTION + b"QUIT\r\n")
    assert one.codes() == ["220", "250", *TAKEN, "221 2.0.0"]
    assert one.transport.disconnecting
    assert line().transport.no_delay  # type: ignore[attr-defined]


# ---- log lines -----------------------------------------------------------------------------------


def test_an_accepted_message_is_one_line() -> None:
    one = line()
    with logged() as events:
        one.say(b"MAIL FROM:<>\r\n" + RECIPIENT + b"RCPT TO:<bob@example.org>\r\n" + MESSAGE)
    (event,) = events
    (delivery,) = one.store.mail
    assert event["log_level"] is LogLevel.info
    assert formatEvent(event) == (
        f"{delivery.id} accepted sender= recipients=['alice@example.org', 'bob@example.org'] "
        f"size=20 client=198.51.100.7 hello=client.example.net connection={one.protocol.id} "
        "accounts=['alice@example.org', 'bob@example.org']")
    assert delivery.id.encode() in one.news()
    one.hang_up()


def test_a_refused_recipient_is_one_line_with_the_reply() -> None:
    one = line()
    with logged() as events:
        one.say(SENDER + b"RCPT TO:<nobody@example.org>\r\n" + RECIPIENT + MESSAGE)
    refused, accepted = events
    assert refused["id"] == accepted["id"] == one.store.mail[0].id
    assert formatEvent(refused) == (
        f"{refused['id']} refused recipient=nobody@example.org sender=a@example.net "
        f"client=198.51.100.7 connection={one.protocol.id}: 550 5.1.1 No such mailbox here")


#: What ends a message that has begun, and the reason that the log gives.
ENDINGS = {
    "RSET": (b"BDAT 3\r\nx\r\nRSET\r\n", "RSET"),
    "HELO": (b"BDAT 3\r\nx\r\n" + HELO, "HELO"),
    "EHLO": (b"BDAT 3\r\nx\r\n" + EHLO, "EHLO"),
    "QUIT": (b"BDAT 3\r\nx\r\nQUIT\r\n", "connection closed"),
    "bare LF": (b"DATA\r\nx\n.\r\n.\r\n",
                "Bare CR or LF in the message; end every line with CRLF (RFC 5321 2.3.8)"),
    "too big": (b"BDAT 11 LAST\r\n" + b"x" * 11,
                "Message exceeds the size limit announced by EHLO"),
}


@pytest.mark.parametrize(("data", "reason"), ENDINGS.values(), ids=ENDINGS)
def test_a_message_that_has_begun_and_is_not_taken_is_one_line(data: bytes, reason: str) -> None:
    one = line(message_octets=10)
    with logged() as events:
        one.say(SENDER + RECIPIENT + data)
    (event,) = events
    (delivery,) = one.store.deliveries
    assert delivery.outcome == "aborted"
    assert formatEvent(event) == (f"{delivery.id} dropped {ABOUT} "
                                  f"connection={one.protocol.id}: {reason}")


@pytest.mark.parametrize("data", [b"DATA\r\n", b"BDAT 3 LAST\r\nx\r\n"])
def test_a_message_that_could_not_begin_is_one_line(data: bytes) -> None:
    one = line()
    one.answers.spoilt["begin"] = FULL
    with logged() as events:
        one.say(SENDER + RECIPIENT + data)
        one.hang_up()
    assert texts(events) == [f"ID dropped {ABOUT} connection=ID: {FULL.text}"]


@pytest.mark.parametrize("sender, recipients, codes", [
    ("a@example.net", ["small"], ["552 5.2.3"]),
    ("a@example.net", ["small", "alice"], ["250 2.0.0"]),
    ("", ["small"], ["250 2.0.0"])],
    ids=["for one", "for others as well", "a report"])
def test_one_full_mailbox_keeps_no_message_from_others(
    sender: str, recipients: list[str], codes: list[str]
) -> None:
    one = line()
    one.say(b"MAIL FROM:<%b>\r\n" % sender.encode())
    for each in recipients:
        one.say(b"RCPT TO:<%b@example.org>\r\n" % each.encode())
    one.say(b"DATA\r\n" + b"x" * 900 + b"\r\n" + b"x" * 900 + b"\r\n.\r\n")
    assert one.codes()[-1:] == codes


@pytest.mark.parametrize("failure", [MailboxFull("No room"), MessageTooLarge("No room")])
def test_a_mailbox_that_took_no_more_is_no_fault_here(failure: MailFailure) -> None:
    one = line("commit")
    one.answers.spoilt["commit"] = failure
    with logged() as events:
        one.say(TRANSACTION)
        one.release()
    assert texts(events) == [
        "ID dropped sender=a@example.net recipients=['alice@example.org'] client=198.51.100.7 "
        "connection=ID: No room"]
    assert events[0]["log_level"] is LogLevel.info
    assert one.codes()[-1] == ("452 4.2.2" if failure.status.class_ == 4 else "552 5.2.3")


def test_a_message_that_could_not_be_stored_is_one_line() -> None:
    one = line("commit")
    one.answers.spoilt["commit"] = FULL
    with logged() as events:
        one.say(TRANSACTION)
        one.release()
    assert texts(events) == [
        "ID not stored: The disk is full; try again later sender=a@example.net "
        "recipients=['alice@example.org'] size=20 client=198.51.100.7 hello=client.example.net "
        "connection=ID"]
    assert events[0]["log_level"] is LogLevel.error
    assert events[0]["id"] == one.store.deliveries[0].id


def test_a_session_without_mail_is_no_line() -> None:
    one = line()
    with logged() as events:
        one.say(b"NOOP\r\nWHAT\r\n" + SENDER + RECIPIENT + b"RSET\r\nQUIT\r\n")
        one.hang_up()
    assert events == []


def test_no_control_character_gets_into_a_line() -> None:
    # PITFALLS, SMTP row 18.
    one = Line()
    nasty = b"\x1b[31m\x00\x07\x85\xe2\x80\xa8\xc2\x85"
    with logged() as events:
        one.say(b"EHLO " + nasty + b"\r\nEHLO client.example.net\r\n"
                b"MAIL FROM:<" + nasty + b"@example.net>\r\n"
                b'MAIL FROM:<"a\xc2\x85\xe2\x80\xae"@example.net> SMTPUTF8\r\n'
                b"RCPT TO:<" + nasty + b"@example.org>\r\n"
                b'RCPT TO:<"nobody\xe2\x80\xa8"@example.org>\r\n' + RECIPIENT + MESSAGE)
    assert len(one.store.mail) == 1
    assert len(events) == 2
    for event in events:
        assert not any(ord(c) < 32 or ord(c) == 127 for c in formatEvent(event))
        for written in (text_line(event), json_line(event)):
            assert written is not None
            assert written.endswith("\n") and written[:-1].isprintable()


def test_the_id_is_a_field_of_its_own_in_json() -> None:
    one = line()
    with logged() as events:
        one.say(TRANSACTION)
    assert f'"id": "{one.store.mail[0].id}"' in json_line(events[0])
    assert LogSettings().format == "text"


def test_a_late_answer_to_a_lost_connection_is_no_line() -> None:
    one = line("route")
    with logged() as events:
        one.say(SENDER + RECIPIENT)
        one.hang_up(Failure(ConnectionResetError()))
        one.answers.release()
    assert events == []


# ---- the queue, and submission -------------------------------------------------------------------


@pytest.mark.parametrize("notify", ["SUCCESS", "FAILURE,SUCCESS", "FAILURE", "NEVER", None])
def test_success_is_reported_where_it_was_asked_for(notify: str | None) -> None:
    one = line(queue=True)
    one.say(EHLO + SENDER + RECIPIENT.rstrip()
            + (f" NOTIFY={notify}".encode() if notify else b"") + b"\r\n" + MESSAGE)
    assert one.codes()[1:] == TAKEN
    sent = one.store.mail[0]
    assert one.factory.queue.reported == (
        [(sent.id, b"Subject: x\r\n\r\ntext\r\n")] if notify and "SUCCESS" in notify else [])


def test_success_is_reported_only_of_what_was_stored() -> None:
    one = line(queue=True)
    one.answers.spoilt["commit"] = StorageFull("The disk is full")
    one.say(EHLO + SENDER + RECIPIENT.rstrip() + b" NOTIFY=SUCCESS\r\n" + MESSAGE)
    assert one.codes()[-1] == "452 4.3.1"
    assert one.factory.queue.reported == []


def test_an_alias_that_leads_elsewhere_needs_a_queue() -> None:
    one = line()
    elsewhere = (Remote(Address("alice", "elsewhere.example")),)
    one.factory.router._places["away", "example.org"] = elsewhere  # type: ignore[attr-defined]
    with logged() as events:
        one.say(SENDER + b"RCPT TO:<away@example.org>\r\n")
    assert one.codes() == ["250 2.1.0", "550 5.7.1"]
    assert "Relaying denied" in texts(events)[0]


class Counting(Unlimited):
    """Takes its time to count."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: list[Deferred[None]] = []

    def count(self, account: str, recipients: int) -> Deferred[None]:
        self.counts.append(Deferred())
        return self.counts[-1]


def submitting() -> tuple[Line, Counting]:
    """A client of a trusted network that has said DATA, and whose message is being counted."""
    one, rates = Line(mode=SUBMISSION, known=True), Counting()
    assert one.factory.agent is not None
    one.factory.agent._rates = rates  # type: ignore[assignment]
    one.say(EHLO + b"MAIL FROM:<alice@example.org>\r\n" + RECIPIENT + b"DATA\r\n")
    assert one.codes() == ["220", "250", "250 2.1.0", "250 2.1.5"]
    return one, rates


def test_who_is_gone_when_its_message_was_counted_begins_none() -> None:
    one, rates = submitting()
    one.hang_up()
    rates.counts[0].callback(None)
    assert [delivery.outcome for delivery in one.store.deliveries] == ["aborted"]


def test_who_sends_too_much_meanwhile_begins_none() -> None:
    one, rates = submitting()
    with logged() as events:
        rates.counts[0].errback(TemporaryFailure("Too much for today"))
    assert one.codes() == ["451 4.3.0"]
    assert one.store.deliveries == []
    assert "dropped" in texts(events)[0] and "Too much for today" in texts(events)[0]
    one.hang_up()


def test_what_a_filter_refuses_at_the_end_is_not_stored() -> None:
    """Here a From of another domain, in a message that is nothing but its header."""
    one, rates = submitting()
    rates.counts[0].callback(None)
    with logged() as events:
        one.say(b"From: boss@elsewhere.example\r\n.\r\n")
    assert one.codes() == ["354", "550 5.7.1"]
    assert [delivery.outcome for delivery in one.store.deliveries] == ["aborted"]
    assert "dropped" in texts(events)[0]
    one.hang_up()


def test_a_bug_in_a_filter_at_the_end_stores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def feed(self, block: bytes) -> bytes:
            return block

        def finish(self) -> bytes:
            raise RuntimeError("a bug")

    one, rates = submitting()
    monkeypatch.setattr(one.factory.agent, "filters", lambda *_: [Broken()])
    rates.counts[0].callback(None)
    with capturedLogs() as events:
        one.say(b"From: alice@example.org\r\n\r\nhi\r\n.\r\n")
    assert one.codes() == ["354", "451 4.3.0"]
    assert [delivery.outcome for delivery in one.store.deliveries] == ["aborted"]
    assert "internal error" in texts(events)[0]
    one.hang_up()


@pytest.mark.parametrize(("asked", "answer"), [(b"0", "250 2.1.0"), (b"9", "250 2.3.6")])
def test_a_priority_is_held_to_what_the_sender_may_have(asked: bytes, answer: str) -> None:
    one = Line(queue=True)
    one.say(EHLO + b"MAIL FROM:<a@example.net> MT-PRIORITY=" + asked + b"\r\n")
    assert one.codes() == ["220", "250", answer]
    assert one.protocol.session.transactions.envelope is not None
    assert one.protocol.session.transactions.envelope.priority == 0
    one.hang_up()
