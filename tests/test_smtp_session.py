"""The receiving SMTP session by itself: the message, the limits, the end, STARTTLS."""

from __future__ import annotations

from typing import Any

import pytest

from mailsvc.smtp import replies
from mailsvc.smtp.dialogue import CHUNKS, CLOSED, GREETING, MAIL, RCPT, READY, START
from mailsvc.smtp.events import (
    Aborted,
    Closed,
    Connected,
    DataBegins,
    Expand,
    Hello,
    MailFrom,
    MessageBlock,
    MessageEnds,
    Proxied,
    RcptTo,
    TLSBegins,
    Verify,
)
from mailsvc.smtp.limits import SMTPSettings
from mailsvc.smtp.mode import LMTP, TRANSPORT
from mailsvc.smtp.replies import Reply
from mailsvc.smtp.session import Session
from tests.smtp_talk import (
    ACCEPTED,
    BUSY,
    GOING_DOWN,
    HELO,
    NO,
    RECIPIENT,
    SENDER,
    WAYS,
    Talk,
    codes,
    last,
    talk_in,
)

# ---- what the owner may look at ------------------------------------------------------------------


@pytest.mark.parametrize(("hello", "parameters", "tls", "name"), [
    (b"HELO", b"", False, "SMTP"),
    (b"HELO", b" SMTPUTF8", True, "SMTP"),
    (b"EHLO", b"", False, "ESMTP"),
    (b"EHLO", b"", True, "ESMTPS"),
    (b"EHLO", b" SMTPUTF8", False, "UTF8SMTP"),
    (b"EHLO", b" SMTPUTF8", True, "UTF8SMTPS"),
    (b"LHLO", b"", False, "LMTP"),
    (b"LHLO", b"", True, "LMTPS"),
    (b"LHLO", b" SMTPUTF8", False, "UTF8LMTP"),
    (b"LHLO", b" SMTPUTF8", True, "UTF8LMTPS"),
])
def test_transmission_types(hello: bytes, parameters: bytes, tls: bool, name: str) -> None:
    talk = Talk(mode=LMTP if hello == b"LHLO" else TRANSPORT, tls_active=tls)
    talk.say(hello + b" client.example.net\r\n")
    before = name.replace("UTF8SMTP", "ESMTP").replace("UTF8LMTP", "LMTP")
    assert talk.session.transactions.transmission_type == before
    talk.say(b"MAIL FROM:<a@example.net>" + parameters + b"\r\n")
    assert talk.session.transactions.transmission_type == name
    talk.session.authenticated = "a@example.net"
    assert talk.session.transactions.transmission_type == (name if hello == b"HELO" else name + "A")


def test_a_new_session() -> None:
    session = Session("mx.example.org", SMTPSettings(), tls_available=True)
    assert (session.phase, session.hello, session.extended) == (GREETING, "", False)
    mail = session.transactions
    assert (mail.envelope, mail.intake, mail.refused_recipient) == (None, None, False)
    assert (session.tls_available, session.tls_active) == (True, False)
    assert (session.waiting, mail.receiving, session.buffered) == (False, False, 0)
    assert session.data_to_send() == b""
    assert not session.transactions.exhausted
    assert (session.authenticated, session.known, session.trusted) == ("", False, False)
    assert not Session("mx.example.org", SMTPSettings()).tls_available


def test_waiting_receiving_buffered() -> None:
    talk = talk_in(RCPT)
    session = talk.session
    assert (session.waiting, session.transactions.receiving, session.buffered) == (False, False, 0)
    session.receive(b"DA")
    assert session.next_event() is None
    assert (session.waiting, session.transactions.receiving, session.buffered) == (False, False, 2)
    session.receive(b"TA\r\ntext\r\n.\r\nNOOP\r\n")
    assert session.next_event() == DataBegins()
    assert (session.waiting, session.transactions.receiving, session.buffered) == (True, False, 15)
    session.reply(replies.START_DATA)
    assert (session.waiting, session.transactions.receiving, session.buffered) == (False, True, 15)
    assert session.next_event() == MessageBlock(b"text\r\n")
    # The question is there already, but was not handed out yet.
    assert (session.waiting, session.transactions.receiving, session.buffered) == (False, True, 6)
    assert session.next_event() == MessageEnds(6)
    assert session.waiting
    session.reply(ACCEPTED)
    assert (session.waiting, session.transactions.receiving, session.buffered) == (False, False, 6)
    assert session.next_event() is None
    assert session.data_to_send() == (
        replies.START_DATA.wire + ACCEPTED.wire + replies.NOOP_OK.wire)
    assert session.data_to_send() == b""


def test_receiving_a_chunk_and_waiting_between_chunks() -> None:
    talk = talk_in(CHUNKS)
    session = talk.session
    assert not session.transactions.receiving
    assert talk.say(b"BDAT 5\r\n") == b""
    assert session.transactions.receiving
    talk.say(b"12345")
    assert not session.transactions.receiving
    assert session.phase is CHUNKS


def test_a_chunk_that_waits_for_admission_is_not_looked_at() -> None:
    talk = talk_in(RCPT)
    assert talk.ask(b"BDAT 2 LAST\r\nx\n") == DataBegins()
    assert talk.session.buffered == 2
    talk.session.reply(replies.START_DATA)
    # 354 has no place with BDAT.
    assert talk.session.data_to_send() == b""
    assert talk.run() == replies.STRAY_LINE_END.wire


# ---- the message ---------------------------------------------------------------------------------


def test_a_message_comes_in_blocks_and_then_ends() -> None:
    talk = talk_in(RCPT)
    talk.say(b"DATA\r\n")
    for piece in (b"one\r\n", b"..two\r", b"\n", b"three\r\n.", b"\r\nNOOP\r\n"):
        talk.say(piece)
    assert talk.text == b"one\r\n.two\r\nthree\r\n"
    assert all(block.data for block in talk.of(MessageBlock))
    assert talk.of(MessageEnds) == [MessageEnds(len(talk.text))]
    assert not talk.of(Aborted)
    assert talk.session.phase is READY


def test_a_refused_message_is_swallowed_without_blocks() -> None:
    talk = talk_in(RCPT)
    talk.say(b"DATA\r\nfirst\r\nx")
    talk.session.transactions.refuse(BUSY)
    talk.session.transactions.refuse(NO)
    assert talk.say(b"second\r\n") == b""
    assert talk.say(b".\r\nNOOP\r\n") == BUSY.wire + replies.NOOP_OK.wire
    assert talk.text == b"first\r\nx"
    assert talk.events[-1] == Aborted("Busy")
    assert not talk.of(MessageEnds)
    assert (talk.session.phase, talk.session.transactions.envelope) == (READY, None)


@pytest.mark.parametrize("way", [b"DATA\r\ntext\r\n.\r\n", b"BDAT 4 LAST\r\ntext"])
def test_a_message_refused_at_its_last_block_is_not_asked_about(way: bytes) -> None:
    talk = talk_in(RCPT)
    session = talk.session
    session.receive(way + b"NOOP\r\n")
    assert session.next_event() == DataBegins()
    session.reply(replies.START_DATA)
    assert isinstance(session.next_event(), MessageBlock)
    session.transactions.refuse(BUSY)
    assert talk.run().endswith(BUSY.wire + replies.NOOP_OK.wire)
    assert talk.events == [Aborted("Busy")]
    assert (session.phase, session.transactions.envelope) == (READY, None)


def test_a_message_refused_amid_its_chunks() -> None:
    talk = talk_in(CHUNKS)
    talk.session.transactions.refuse(BUSY)
    assert talk.say(b"BDAT 4\r\nRSET") == BUSY.wire
    assert talk.events == [Aborted("Busy")]
    assert talk.session.phase is READY


@pytest.mark.parametrize("answers", [[ACCEPTED, NO], [NO, ACCEPTED], [NO, BUSY]])
def test_a_message_with_an_outcome_for_each_recipient_has_come_to_its_end(
    answers: list[Reply]
) -> None:
    talk = Talk(mode=LMTP)
    talk.answers[MessageEnds] = answers
    talk.say(b"LHLO client.example.net\r\n" + SENDER + RECIPIENT * 2)
    said = talk.say(b"DATA\r\nx\r\n.\r\nNOOP\r\n")
    assert codes(said) == [354, *(answer.code for answer in answers), 250]
    assert (talk.session.transactions.intake, talk.session.transactions.envelope) == (None, None)
    # The owner knows how it ended, and is told of no other end.
    assert not talk.of(Aborted)


def test_there_may_be_no_message_to_refuse() -> None:
    talk = talk_in(RCPT)
    talk.session.transactions.refuse(NO)
    assert codes(talk.say(b"DATA\r\n.\r\n")) == [354, 250]


def test_a_refused_recipient_is_forgotten_with_its_transaction() -> None:
    talk = talk_in(MAIL)
    talk.answers[RcptTo] = NO
    assert codes(talk.say(RECIPIENT + b"DATA\r\nBDAT 0\r\n")) == [550, 554, 554]
    assert talk.session.transactions.refused_recipient
    for end in (b"RSET\r\n", HELO):
        talk.say(end)
        assert not talk.session.transactions.refused_recipient
        assert codes(talk.say(SENDER + b"DATA\r\n" + RECIPIENT)) == [250, 503, 550]


# RFC 5321 §2.3.8 and CVE-2023-51764 and its kin: what other servers took for the end of data.
SMUGGLED = b"MAIL FROM:<evil@example.net>\r\nRCPT TO:<alice@example.org>\r\nDATA\r\nx\r\n"
FALSE_ENDS = [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r", b"\r.\r\n", b"\n.\r",
              b"\r.\n", b"\n\n.\n\n", b"\r\r\n.\r\r\n", b"\r\n.\r\r\n", b"\r\n\x00.\r\n",
              b"\r\n.\x00\r\n", b"\r\x00\n.\r\n", b"\r\n.\r\x00\n", b"\r\n. \r\n", b"\r\n .\r\n",
              b"\r\n..\r\n"]


@pytest.mark.parametrize("false_end", FALSE_ENDS, ids=repr)
def test_no_false_end_makes_two_messages(false_end: bytes) -> None:
    stream = b"DATA\r\none" + false_end + SMUGGLED + b"\r\n.\r\nNOOP\r\n"
    outcome = None
    for cut in range(len(stream) + 1):
        talk = talk_in(RCPT)
        said = talk.say(stream[:cut]) + talk.say(stream[cut:])
        assert codes(said) in ([354, 250, 250], [354, 550, 250])
        assert not talk.of(MailFrom)
        assert outcome in (None, said)
        outcome = said
        if codes(said)[1] == 250:
            assert talk.text == (b"one" + false_end.replace(b"\r\n.", b"\r\n") + SMUGGLED + b"\r\n")


def test_a_line_that_is_too_long_throws_nothing_back_into_command_state() -> None:
    talk = talk_in(RCPT, text_line_octets=1000)
    talk.say(b"DATA\r\n")
    for piece in (b"x" * 20_000, b"\r\n", SENDER, RECIPIENT, b"DATA\r\n", b"RSET\r\nQUIT\r\n"):
        assert talk.say(piece) == b""
    assert talk.say(b".\r\n") == replies.TEXT_LINE_TOO_LONG.wire
    assert not talk.of(MailFrom)


def test_a_command_without_end_is_not_kept() -> None:
    talk = Talk(command_octets=512)
    for _ in range(160):
        assert talk.say(b"x" * 65_536) == b""
        assert talk.session.buffered <= 512
    assert talk.say(b"\r\nNOOP\r\n") == replies.LINE_TOO_LONG.wire + replies.NOOP_OK.wire


def test_a_chunk_without_end_is_not_kept() -> None:
    talk = Talk()
    talk.say(b"BDAT 99999999999999999999\r\n")
    for _ in range(160):
        assert talk.say(b"QUIT\r\n" * 10_000) == b""
        assert talk.session.buffered == 0


# ---- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 2, 5])
def test_so_many_errors_end_the_session(most: int) -> None:
    talk = Talk(errors=most)
    said = talk.say(b"WHAT\r\n" * (most + 3))
    assert said == replies.UNRECOGNIZED.wire * most + last(replies.TOO_MANY_ERRORS)
    assert talk.events[-1] == Closed(asked=False)


@pytest.mark.parametrize("error", [
    b"\x00\r\n", b"x" * 600 + b"\r\n", b"WHAT\r\n", b"MAIL\r\n", b"RCPT TO:<>\r\n", b"AUTH\r\n",
    b"HELP ME\r\n", b"EXPN a\r\n", b"STARTTLS\r\n", b"BDAT 1\r\nx", b"DATA\r\n",
    b"MAIL FROM:<a@example.net> X\r\n", b"MAIL FROM:<a@example.net> SIZE=99999999999\r\n",
    "MAIL FROM:<ä@example.net>\r\n".encode(),
])
def test_what_counts_as_an_error(error: bytes) -> None:
    talk = talk_in(READY, errors=2, command_octets=512)
    assert len(codes(talk.say(error))) == 1
    assert codes(talk.say(error))[1:] == [421]


@pytest.mark.parametrize("line", [b"VRFY a\r\n", b"EXPN a\r\n"])
def test_what_vrfy_and_expn_find_out_counts_too(line: bytes) -> None:
    talk = talk_in(READY, errors=2, disclose_mailboxes=True)
    assert codes(talk.say(line * 3)) == [250] * 3
    talk.answers = {Verify: BUSY, Expand: NO}
    assert codes(talk.say(line * 2))[2:] == [421]


def test_temporary_refusals_of_recipients_are_no_errors_and_permanent_ones_are() -> None:
    talk = talk_in(MAIL, errors=2)
    talk.answers[RcptTo] = BUSY
    assert codes(talk.say(RECIPIENT * 3)) == [450] * 3
    talk.answers[RcptTo] = NO
    assert codes(talk.say(RECIPIENT * 3)) == [550, 550, 421]


def test_recipients_are_counted_up_to_their_limit() -> None:
    talk = talk_in(MAIL, recipients=3)
    assert codes(talk.say(RECIPIENT * 4)) == [250, 250, 250, 452]
    assert len(talk.of(RcptTo)) == 3


@pytest.mark.parametrize("most", [1, 3])
def test_messages_are_counted_up_to_their_limit(most: int) -> None:
    talk = Talk(messages=most)
    message = SENDER + RECIPIENT + b"DATA\r\nx\r\n.\r\n"
    assert talk.say(HELO + message * most).count(ACCEPTED.wire) == most
    assert talk.session.transactions.exhausted
    # What is no new message may still come.
    assert codes(talk.say(b"NOOP\r\nMAIL\r\n")) == [250, 501]
    assert talk.say(SENDER) == last(replies.TOO_MANY_MESSAGES)
    assert talk.events[-1] == Closed(asked=False)


def test_messages_without_a_limit() -> None:
    talk = Talk(messages=0)
    message = SENDER + RECIPIENT + b"BDAT 3 LAST\r\nx\r\n"
    assert codes(talk.say(HELO + message * 20)).count(250) == 1 + 3 * 20
    assert not talk.session.transactions.exhausted


def test_a_refused_message_does_not_count_as_one() -> None:
    talk = Talk(messages=1)
    talk.answers[MessageEnds] = NO
    message = SENDER + RECIPIENT + b"DATA\r\nx\r\n.\r\n"
    assert codes(talk.say(HELO + message * 3)) == [250] + [250, 250, 354, 550] * 3


def test_the_size_declared_may_be_the_limit_itself() -> None:
    talk = talk_in(READY, message_octets=1000)
    assert codes(talk.say(b"MAIL FROM:<a@example.net> SIZE=1001\r\n")) == [552]
    assert codes(talk.say(b"MAIL FROM:<a@example.net> SIZE=1000\r\n")) == [250]


# ---- the end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", WAYS)
def test_the_owner_may_close(phase: str) -> None:
    talk = talk_in(phase)
    talk.session.receive(b"NO")
    talk.session.close(replies.TIMED_OUT)
    assert talk.run() == last(replies.TIMED_OUT)
    ends = [Aborted("connection closed")] if phase is CHUNKS else []
    assert talk.events == [*ends, Closed(asked=False)]
    assert (talk.session.phase, talk.session.buffered) == (CLOSED, 0)
    assert talk.session.transactions.envelope is None
    talk.session.close(GOING_DOWN)
    assert talk.run() == b""


def test_the_owner_may_close_amid_a_message() -> None:
    talk = talk_in(RCPT)
    talk.say(b"DATA\r\nfirst\r\n")
    talk.session.close(replies.SHUTTING_DOWN)
    assert talk.say(b"second\r\n.\r\n") == last(replies.SHUTTING_DOWN)
    assert talk.events[-2:] == [Aborted("connection closed"), Closed(asked=False)]


def test_the_owner_may_close_instead_of_answering() -> None:
    talk = talk_in(READY)
    talk.ask(SENDER)
    talk.session.close(replies.SHUTTING_DOWN)
    assert talk.run() == last(replies.SHUTTING_DOWN)
    assert talk.events == [Closed(asked=False)]


def test_a_question_that_was_not_handed_out_is_not_asked_after_the_end() -> None:
    talk = talk_in(RCPT)
    session = talk.session
    session.receive(b"DATA\r\ntext\r\n.\r\n")
    assert session.next_event() == DataBegins()
    session.reply(replies.START_DATA)
    assert session.next_event() == MessageBlock(b"text\r\n")
    session.close(replies.TIMED_OUT)
    assert not session.waiting
    talk.run()
    assert talk.events == [Aborted("connection closed"), Closed(asked=False)]


def test_events_that_are_no_questions_are_still_handed_out_after_the_end() -> None:
    talk = talk_in(CHUNKS)
    session = talk.session
    session.receive(b"RSET\r\nQUIT\r\n")
    assert session.next_event() == Aborted("RSET")
    session.close(replies.TIMED_OUT)
    assert session.next_event() == Closed(asked=False)


@pytest.mark.parametrize("verb", [b"CONNECT", b"DELETE", b"GET", b"HEAD", b"OPTIONS", b"PATCH",
                                  b"POST", b"PUT", b"get"])
def test_http_is_not_talked_to(verb: bytes) -> None:
    talk = Talk()
    assert talk.say(verb + b" / HTTP/1.1\r\nHost: mx\r\n\r\n" + HELO) == last(replies.NOT_HTTP)
    assert talk.session.phase is CLOSED
    assert talk_in(READY).say(verb + b" / HTTP/1.1\r\n") == replies.UNRECOGNIZED.wire


def test_tls_without_starttls_is_not_talked_to() -> None:
    assert Talk().say(b"\x16") == last(replies.NOT_TLS)
    # It is what a connection begins with, or it is nothing but a control character.
    assert Talk().say(b"NOOP\r\n\x16\x03\r\n") == (
        replies.NOOP_OK.wire + replies.BAD_CHARACTERS.wire)


# ---- XCLIENT -------------------------------------------------------------------------------------


def introduced_by_a_proxy(**limits: Any) -> Talk:
    talk = Talk(**limits)
    talk.session.trusted = True
    talk.say(b"EHLO proxy.example.net\r\n")
    talk.session.authenticated = "proxy@example.net"
    return talk


def test_whoever_a_proxy_speaks_for_begins_anew() -> None:
    session = (talk := introduced_by_a_proxy()).session
    assert talk.say(b"XCLIENT ADDR=192.0.2.7\r\n") == session.greeting.wire
    assert (session.phase, session.hello, session.extended) == (START, "", False)
    assert (session.authenticated, session.trusted) == ("", False)


def test_whoever_may_not_be_spoken_for_changes_nothing() -> None:
    session = (talk := introduced_by_a_proxy(errors=2)).session
    talk.answers[Proxied] = NO
    assert talk.say(b"XCLIENT ADDR=192.0.2.7\r\n") == NO.wire
    assert (session.phase, session.hello, session.extended) == (READY, "proxy.example.net", True)
    assert (session.authenticated, session.trusted) == ("proxy@example.net", True)
    assert codes(talk.say(b"XCLIENT ADDR=192.0.2.7\r\n")) == [550, 421]


# ---- STARTTLS (RFC 3207) -------------------------------------------------------------------------


@pytest.mark.parametrize("behind", [b"", b"NOOP\r\n", b"NO", b"EHLO evil.example\r\nMAIL FROM:<"])
def test_what_is_sent_behind_starttls_is_dropped(behind: bytes) -> None:
    talk = Talk(tls_available=True)
    talk.say(b"EHLO client.example.net\r\n" + SENDER + RECIPIENT)
    assert talk.say(b"STARTTLS\r\n" + behind) == replies.START_TLS.wire
    with pytest.raises(RuntimeError, match=r"TLSBegins.* has not been answered$"):
        talk.session.next_event()
    talk.session.tls_started()
    session = talk.session
    assert (session.phase, session.hello, session.extended, session.buffered) == (
        START, "", False, 0)
    assert session.transactions.envelope is None
    assert session.tls_active
    # The other half of a command arrives inside TLS, and is a command by itself.
    assert talk.say(b"OP\r\n") == replies.UNRECOGNIZED.wire
    assert talk.say(SENDER) == replies.HELLO_FIRST.wire
    said = talk.say(b"EHLO client.example.net\r\n")
    assert b"STARTTLS" not in said and b"250 HELP" in said
    assert session.transactions.transmission_type == "ESMTPS"
    assert talk.say(b"STARTTLS\r\n") == replies.TLS_ACTIVE.wire


def test_no_split_lets_anything_through_the_handshake() -> None:
    """However what is said before it arrives."""
    said = (b"EHLO a.example\r\nSTARTTLS\r\nEHLO evil.example\r\nMAIL FROM:<e@evil.example>\r\n"
            b"RCPT TO:<alice@example.org>\r\nDATA\r\nevil\r\n.\r\n")
    for first in range(len(said) + 1):
        for second in (first, min(len(said), first + 1), len(said)):
            talk = Talk(tls_available=True)
            for part in (said[:first], said[first:second], said[second:]):
                talk.session.receive(part)
                # The question of TLS waits for its answer, and nothing is asked for meanwhile.
                if not talk.of(TLSBegins):
                    talk.run()
            assert [type(event) for event in talk.events] == [Connected, Hello, TLSBegins]
            talk.session.tls_started()
            assert (talk.session.buffered, talk.session.hello) == (0, "")
            talk.events.clear()
            assert talk.say(SENDER) == replies.HELLO_FIRST.wire
            assert talk.events == []


def test_a_long_line_cut_off_by_starttls_leaves_nothing() -> None:
    talk = Talk(tls_available=True, command_octets=512)
    talk.say(b"STARTTLS\r\n" + b"x" * 2000)
    talk.session.tls_started()
    assert talk.say(b"NOOP\r\n") == replies.NOOP_OK.wire


def test_starttls_does_not_wipe_the_slate() -> None:
    talk = Talk(tls_available=True, errors=2)
    talk.say(b"WHAT\r\nSTARTTLS\r\n")
    talk.session.tls_started()
    assert codes(talk.say(b"WHAT\r\n")) == [500, 421]


def test_starttls_is_offered_where_there_is_a_certificate_and_no_tls_yet() -> None:
    ehlo = b"EHLO client.example.net\r\n"
    assert b"250-STARTTLS\r\n" in Talk(tls_available=True).say(ehlo)
    assert b"STARTTLS" not in Talk(tls_available=True, tls_active=True).say(ehlo)
    assert b"STARTTLS" not in Talk().say(ehlo)
    assert b"STARTTLS" not in Talk(tls_available=True).say(HELO)
