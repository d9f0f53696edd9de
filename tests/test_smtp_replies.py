"""``mailsvc.smtp.replies``: the form of every reply, and what a failure is answered."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailsvc.errors import (
    EnhancedStatus,
    LoginTooSoon,
    MailboxFull,
    MailboxMoved,
    MaildropInUse,
    MailFailure,
    MessageTooLarge,
    PermanentFailure,
    RelayDenied,
    RoutingLoop,
    StorageFull,
    TemporaryFailure,
    UnknownMailbox,
)
from mailsvc.mail import Address
from mailsvc.smtp import replies
from mailsvc.smtp.replies import Reply, accepted, from_failure, printable, reply, verified

CONSTANTS = {
    name: value for name, value in vars(replies).items()
    if isinstance(value, Reply) and name.isupper()
}

#: RFC 5321 §4.2.3, with 555 of §4.1.1.11 and 211 to 554.
CODES = {211, 214, 220, 221, 250, 251, 252, 354, 421, 450, 451, 452, 455, 500, 501, 502, 503, 504,
         550, 551, 552, 553, 554, 555,
         # RFC 4954 §6
         235, 334, 432, 454, 530, 534, 535, 538,
         # RFC 1985 §6
         458, 459,
         # RFC 2645 §7
         453}

#: A reply as RFC 5321 §4.2 has it, each line with its enhanced status code (RFC 2034 §4).
LINE = re.compile(rb"([2-5][0-5][0-9])([ -])(?:([245])\.([0-9]{1,3})\.([0-9]{1,3}) )?"
                  rb"([\x20-\x7e]*)\r\n")


def well_formed(wire: bytes) -> None:
    """Whether *wire* is one reply of one or more lines, and nothing else."""
    lines = wire.split(b"\r\n")
    assert lines.pop() == b""
    matches = [LINE.fullmatch(line + b"\r\n") for line in lines]
    assert all(matches), wire
    found = [match for match in matches if match]
    assert {match[1] for match in found} == {found[0][1]}
    assert [match[2] for match in found] == [b"-"] * (len(found) - 1) + [b" "]
    for match in found:
        # RFC 5321 §4.5.3.1.5: 512 octets, code and CRLF counted.
        assert len(match[0]) <= 512
        # RFC 2034 §4: the class is the first digit of the code; 3yz has no enhanced status code.
        assert match[3] in (None, match[1][:1])
        assert (match[3] is None) == (found[0][3] is None)


# ---- the constant ones ----


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_reply_is_well_formed(name: str) -> None:
    constant = CONSTANTS[name]
    well_formed(constant.wire)
    assert constant.code in CODES
    if constant.code // 100 == 3:
        assert constant.status is None
    else:
        assert constant.status is not None
        assert constant.status.class_ == constant.code // 100
        assert f"{constant.code} {constant.status} ".encode() in constant.wire
    # A person reads it: it says something and is not cut off.
    assert len(constant.lines[0]) > 2
    assert constant.wire.decode().endswith(f"{constant.lines[-1]}\r\n")


def test_each_constant_reply_has_a_text_of_its_own() -> None:
    texts = [constant.lines for constant in CONSTANTS.values()]
    assert len(set(texts)) == len(texts)


#: What each constant reply must be; a new one needs its row.
EXPECTED = {
    "BYE": (221, "2.0.0"),
    "RESET_OK": (250, "2.0.0"),
    "NOOP_OK": (250, "2.0.0"),
    "SENDER_OK": (250, "2.1.0"),
    "RECIPIENT_OK": (250, "2.1.5"),
    "CANNOT_VERIFY": (252, "2.5.0"),
    "TURNED": (250, "2.0.0"),
    "NOT_YOURS": (450, "4.7.0"),
    "TURN_IN_USE": (450, "4.7.0"),
    "CANNOT_TURN": (451, "4.3.0"),
    "NO_MAIL": (453, "4.0.0"),
    "LOG_IN_TO_TURN": (530, "5.7.0"),
    "START_TLS": (220, "2.0.0"),
    "SHUTTING_DOWN": (421, "4.3.2"),
    "TIMED_OUT": (421, "4.4.2"),
    "TOO_MANY_ERRORS": (421, "4.7.0"),
    "TOO_MANY_COMMANDS": (421, "4.7.0"),
    "TOO_MANY_MESSAGES": (421, "4.7.0"),
    "UNKNOWN_CHUNK": (421, "4.5.2"),
    "NOT_HTTP": (421, "4.7.0"),
    "NOT_TLS": (421, "4.7.0"),
    "LOCAL_ERROR": (451, "4.3.0"),
    "TOO_MANY_RECIPIENTS": (452, "4.5.3"),
    "BAD_CHARACTERS": (500, "5.5.2"),
    "LINE_TOO_LONG": (500, "5.5.2"),
    "UNRECOGNIZED": (500, "5.5.1"),
    "NO_ARGUMENT": (501, "5.5.4"),
    "QUEUE_RUN": (250, "2.0.0"),
    "NO_QUEUE": (458, "4.3.0"),
    "NOT_QUEUED": (459, "4.7.1"),
    "NOT_IMPLEMENTED": (502, "5.5.1"),
    "EXPN_DISABLED": (502, "5.7.1"),
    "UNKNOWN_TOPIC": (504, "5.5.4"),
    "HELLO_FIRST": (503, "5.5.1"),
    "NOT_TRUSTED": (550, "5.7.0"),
    "NO_SUCH_LOGIN": (550, "5.7.8"),
    "LHLO_FIRST": (503, "5.5.1"),
    "LOG_IN_FIRST": (530, "5.7.0"),
    "TLS_FIRST": (530, "5.7.0"),
    "LOGGED_IN": (235, "2.7.0"),
    "LOGGED_IN_ALREADY": (503, "5.5.1"),
    "TOO_MANY_LOGINS": (421, "4.7.0"),
    "MAIL_FIRST": (503, "5.5.1"),
    "NESTED_MAIL": (503, "5.5.1"),
    "RECIPIENT_FIRST": (503, "5.5.1"),
    "MID_CHUNKS": (503, "5.5.1"),
    "TLS_ACTIVE": (503, "5.5.1"),
    "NO_VALID_RECIPIENTS": (554, "5.5.1"),
    "TOO_EARLY": (554, "5.5.1"),
    "STRAY_LINE_END": (550, "5.6.11"),
    "TEXT_LINE_TOO_LONG": (554, "5.6.0"),
    "MESSAGE_TOO_BIG": (552, "5.3.4"),
    "LOOP": (554, "5.4.6"),
    "NEEDS_SMTPUTF8": (553, "5.6.7"),
    "START_DATA": (354, ""),
}


def test_every_constant_reply_has_its_row() -> None:
    assert set(EXPECTED) == set(CONSTANTS)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_code_of_a_constant_reply(name: str) -> None:
    constant = CONSTANTS[name]
    assert (constant.code, str(constant.status or "")) == EXPECTED[name]


# ---- the form ----


def test_lines_are_joined_by_hyphens() -> None:
    assert reply(250, "", "mx.example.org greets you", "PIPELINING", "SIZE 0").wire == (
        b"250-mx.example.org greets you\r\n250-PIPELINING\r\n250 SIZE 0\r\n")
    assert reply(214, "2.0.0", "one", "two").wire == b"214-2.0.0 one\r\n214 2.0.0 two\r\n"
    assert reply(221, "2.0.0", "Bye").wire == b"221 2.0.0 Bye\r\n"


def test_a_status_is_read() -> None:
    assert reply(550, "5.6.11", "x").status == EnhancedStatus(5, 6, 11)
    assert reply(354, "", "x").status is None


@pytest.mark.parametrize(("code", "positive"), [
    (211, True), (250, True), (354, True), (399, True), (400, False), (421, False), (550, False),
])
def test_positive_replies(code: int, positive: bool) -> None:
    assert reply(code, "", "x").positive is positive


def test_replies_with_the_same_text_are_equal() -> None:
    assert reply(250, "2.0.0", "x") == reply(250, "2.0.0", "x")
    assert reply(250, "2.0.0", "x") != reply(250, "2.0.0", "y")
    assert "wire" not in repr(reply(250, "2.0.0", "x"))


@pytest.mark.parametrize("status", ["", "2.0.0", "2.255.255"])
@pytest.mark.parametrize("octets", [479, 480, 481, 2000])
def test_a_long_line_is_cut(octets: int, status: str) -> None:
    made = reply(250, status, "x" * octets, "y" * octets)
    well_formed(made.wire)
    assert made.wire.count(b"x") == made.wire.count(b"y") == min(octets, 480)


def test_a_line_that_is_not_ascii_is_made_so() -> None:
    assert reply(250, "2.1.5", "<пётр@example.org>").wire == b"250 2.1.5 <????@example.org>\r\n"


def test_a_message_is_accepted_by_its_id() -> None:
    assert accepted("01HXAMPLE0000001").wire == (
        b"250 2.0.0 Message accepted as 01HXAMPLE0000001\r\n")


@pytest.mark.parametrize(("asked", "found", "wire"), [
    ("ann@example.org", ["ann@example.org"], "250 2.1.5 <ann@example.org>\r\n"),
    ("ann@", ["ann@example.org"], "250 2.1.5 <ann@example.org>\r\n"),
    ("ann@example.org", ["ann.b@example.org"], "250 2.1.5 <ann.b@example.org>\r\n"),
    ("ann@example.org", ["ann@example.net"],
     "251 2.1.5 User not local; will forward to <ann@example.net>\r\n"),
    ("all@example.org", ["ann@example.net", "a b@example.org"],
     '250-2.1.5 <ann@example.net>\r\n250 2.1.5 <"a b"@example.org>\r\n'),
    ("ann@example.org", ["пётр@example.org"], replies.CANNOT_VERIFY.wire.decode()),
    ("all@example.org", ["ann@example.org", "ann@bücher.example"],
     replies.CANNOT_VERIFY.wire.decode()),
])
def test_what_vrfy_and_expn_find(asked: str, found: list[str], wire: str) -> None:
    addresses = [Address(*address.split("@")) for address in (asked, *found)]
    made = verified(addresses[0], iter(addresses[1:]))
    assert made.wire.decode() == wire
    well_formed(made.wire)


# ---- what is echoed ----


@pytest.mark.parametrize(("text", "echoed"), [
    ("plain text ~", "plain text ~"),
    ("\x1b[31mred\x07", "?[31mred?"),
    ("a\r\n250 OK", "a??250 OK"),
    ("\0\t\x7f\x80\x9b", "?????"),
    ("line\u2028separator\u0085", "line?separator?"),
    ("K\u212a", "K?"),
    ("\ud800", "?"),
    ("x" * 500, "x" * 400),
    ("", ""),
])
def test_what_is_echoed_is_printable(text: str, echoed: str) -> None:
    assert printable(text) == echoed


@settings(deadline=None)
@given(st.text(max_size=600))
def test_whatever_is_echoed_the_reply_is_well_formed(text: str) -> None:
    assert re.fullmatch(r"[\x20-\x7e]{0,400}", printable(text))
    well_formed(reply(501, "5.5.4", printable(text)).wire)
    well_formed(from_failure(PermanentFailure(text)).wire)
    well_formed(from_failure(MailboxMoved(text, text)).wire)


# ---- failures ----


def test_a_failure_of_the_whole_address_is_not_cut() -> None:
    # RFC 5321 §4.5.3.1.3: a path has at most 256 octets.
    path = "a" * 64 + "@" + "b" * 189
    made = from_failure(MailboxMoved("Moved", path), rcpt=True)
    assert made.wire == f"551 5.1.6 User not local; please try <{path}>\r\n".encode()


@pytest.mark.parametrize(("failure", "at_rcpt", "after_data"), [
    (TemporaryFailure("x"), "451 4.3.0", "451 4.3.0"),
    (PermanentFailure("x"), "550 5.3.0", "554 5.3.0"),
    (StorageFull("x"), "452 4.3.1", "452 4.3.1"),
    (PermanentFailure("x", EnhancedStatus(5, 3, 1)), "552 5.3.1", "552 5.3.1"),
    (MailboxFull("x"), "452 4.2.2", "452 4.2.2"),
    (PermanentFailure("x", EnhancedStatus(5, 2, 2)), "552 5.2.2", "552 5.2.2"),
    (MessageTooLarge("x"), "552 5.2.3", "552 5.2.3"),
    (MaildropInUse("x"), "450 4.2.1", "451 4.2.1"),
    (TemporaryFailure("x", EnhancedStatus(4, 2, 0)), "450 4.2.0", "451 4.2.0"),
    (TemporaryFailure("x", EnhancedStatus(4, 3, 2)), "451 4.3.2", "451 4.3.2"),
    (TemporaryFailure("x", EnhancedStatus(4, 4, 3)), "451 4.4.3", "451 4.4.3"),
    (TemporaryFailure("x", EnhancedStatus(4, 1, 2)), "451 4.1.2", "451 4.1.2"),
    (LoginTooSoon("x"), "451 4.7.0", "451 4.7.0"),
    (UnknownMailbox("x"), "550 5.1.1", "554 5.1.1"),
    (RelayDenied("x"), "550 5.7.1", "550 5.7.1"),
    (TemporaryFailure("x", EnhancedStatus(4, 7, 1)), "450 4.7.1", "450 4.7.1"),
    (RoutingLoop("x"), "550 5.4.6", "554 5.4.6"),
    (MailFailure("x"), "451 4.3.0", "451 4.3.0"),
], ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value)
def test_a_failure_becomes_a_reply(failure: MailFailure, at_rcpt: str, after_data: str) -> None:
    assert from_failure(failure, rcpt=True).wire == f"{at_rcpt} x\r\n".encode()
    assert from_failure(failure).wire == f"{after_data} x\r\n".encode()


def test_a_mailbox_that_moved_says_where() -> None:
    failure = MailboxMoved("not this text", "new\x1b@example.net")
    for rcpt in (False, True):
        assert from_failure(failure, rcpt=rcpt).wire == (
            b"551 5.1.6 User not local; please try <new?@example.net>\r\n")
