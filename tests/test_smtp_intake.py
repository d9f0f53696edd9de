"""``mailsvc.smtp.intake`` and its limits: whatever a message contains, it has one end."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailsvc.settings import OneOf
from mailsvc.smtp import replies
from mailsvc.smtp.intake import Intake
from mailsvc.smtp.limits import SMTPSettings
from mailsvc.smtp.replies import Reply
from tests.fuzz_scanner import PIECES, cut, faults, received_fields, text_of_data

NO_LIMITS = SMTPSettings(message_octets=0)


def by_data(pieces: list[bytes], limits: SMTPSettings = NO_LIMITS) -> tuple[Intake, bytes, bytes]:
    """Give *pieces* to DATA until its end; returns the intake, the message and the rest."""
    intake = Intake(limits, chunked=False)
    message = b""
    for number, piece in enumerate(pieces):
        block, rest = intake.feed(piece)
        message += block
        if intake.dots_ended:
            return intake, message, rest + b"".join(pieces[number + 1 :])
        assert rest == b""
    return intake, message, b""


def by_chunks(chunks: list[bytes], limits: SMTPSettings = NO_LIMITS) -> tuple[Intake, bytes]:
    """Give *chunks* to BDAT, each announced and then sent; returns the intake and the message."""
    intake = Intake(limits, chunked=True)
    message = b""
    for number, chunk in enumerate(chunks, 1):
        intake.expect(len(chunk), number == len(chunks))
        block, rest = intake.feed(chunk + b"NOOP\r\n")
        assert rest == b"NOOP\r\n"
        assert intake.chunk == 0
        message += block
    assert intake.last
    return intake, message + intake.finish()


# ---- DATA ----


def test_a_message_by_data() -> None:
    intake, message, rest = by_data([b"Subject: x\r\n\r\n..a\r\n.\r\nQUIT\r\n"])
    assert message == b"Subject: x\r\n\r\n.a\r\n"
    assert rest == b"QUIT\r\n"
    assert (intake.size, intake.refusal, intake.chunk) == (len(message), None, None)


def test_the_end_of_data_is_known_only_when_it_came() -> None:
    intake = Intake(NO_LIMITS, chunked=False)
    assert not intake.dots_ended
    assert intake.feed(b"a\r\n.\r") == (b"a", b"")
    assert not intake.dots_ended
    assert intake.feed(b"\n") == (b"\r\n", b"")
    assert intake.dots_ended


def test_an_empty_message() -> None:
    intake, message, _ = by_data([b".\r\n"])
    assert (message, intake.size, intake.refusal) == (b"", 0, None)


@pytest.mark.parametrize(("most", "refusal"), [
    (11, None), (10, None), (9, replies.MESSAGE_TOO_BIG), (1, replies.MESSAGE_TOO_BIG), (0, None),
])
def test_the_size_limit_counts_octets_unstuffed(most: int, refusal: Reply | None) -> None:
    stream = b"..\r\n..\r\nab\r\n.\r\nRSET\r\n"
    for place in range(len(stream)):
        intake, message, rest = by_data(cut(stream, [place]), SMTPSettings(message_octets=most))
        assert intake.refusal == refusal
        assert rest == b"RSET\r\n"
        if refusal is None:
            assert (message, intake.size) == (b".\r\n.\r\nab\r\n", 10)
        else:
            # What came before the limit was passed is given out, and nothing behind it.
            assert b".\r\n.\r\nab\r\n".startswith(message)
            assert len(message) <= most


@pytest.mark.parametrize(("longest", "refusal"), [
    (6, None), (5, None), (4, replies.TEXT_LINE_TOO_LONG), (0, None),
])
def test_the_limit_of_a_line_counts_its_crlf(longest: int, refusal: Reply | None) -> None:
    limits = SMTPSettings(text_line_octets=longest)
    intake, _, rest = by_data([b"..bc\r\n.\r\nRSET\r\n"], limits)
    assert (intake.refusal, rest) == (refusal, b"RSET\r\n")


@pytest.mark.parametrize("stray", [b"\r", b"\n", b"\n\r", b"\r\r\n", b"\n\r\n", b"\r\n\n"])
def test_a_stray_line_end_is_refused_after_the_true_end(stray: bytes) -> None:
    stream = b"a" + stray + b"b\r\n.\r\nRSET\r\n"
    for place in range(len(stream)):
        intake, _, rest = by_data(cut(stream, [place]))
        assert (intake.refusal, rest) == (replies.STRAY_LINE_END, b"RSET\r\n")


@pytest.mark.parametrize(("fields", "refusal"), [
    (98, None), (99, None), (100, replies.LOOP), (101, replies.LOOP), (5000, replies.LOOP),
])
def test_a_hundred_received_fields_are_a_loop(fields: int, refusal: Reply | None) -> None:
    stream = b"Received: x\r\n" * fields + b"\r\nReceived: in the body\r\n.\r\n"
    assert by_data([stream])[0].refusal == refusal
    assert by_data(cut(stream, range(17, len(stream), 17)))[0].refusal == refusal


def test_the_first_fault_is_the_one_that_is_told() -> None:
    limits = SMTPSettings(message_octets=40, text_line_octets=10, hops=1)
    intake = Intake(limits, chunked=False)
    assert intake.feed(b"x" * 20 + b"\r\ny")[0] == b""
    assert intake.refusal == replies.TEXT_LINE_TOO_LONG
    intake.feed(b"a\nb\r\n" + b"Received: x\r\n\r\n" + b"x" * 100)
    assert intake.refusal == replies.TEXT_LINE_TOO_LONG


def test_of_faults_found_at_once_the_size_counts_most() -> None:
    whole = b"Received: x\r\n\r\n" + b"a\n" * 40 + b"\r\n.\r\n"
    rows = [
        (SMTPSettings(message_octets=40, text_line_octets=10, hops=1), replies.MESSAGE_TOO_BIG),
        (SMTPSettings(text_line_octets=10, hops=1), replies.STRAY_LINE_END),
    ]
    for limits, refusal in rows:
        assert by_data([whole], limits)[0].refusal == refusal
    clean = b"Received: x\r\n\r\n" + b"a" * 40 + b"\r\n.\r\n"
    limits = SMTPSettings(text_line_octets=10, hops=1)
    assert by_data([clean], limits)[0].refusal == replies.TEXT_LINE_TOO_LONG


def test_a_refused_message_gives_out_no_more_and_is_not_counted_on() -> None:
    intake = Intake(NO_LIMITS, chunked=False)
    assert intake.feed(b"abc\r\n") == (b"abc", b"")
    intake.refusal = replies.LOCAL_ERROR
    assert intake.feed(b"def\n" * 1000) == (b"", b"")
    assert intake.feed(b"\r\n.\r\nQUIT\r\n") == (b"", b"QUIT\r\n")
    assert intake.dots_ended
    assert (intake.size, intake.refusal) == (3, replies.LOCAL_ERROR)


# ---- BDAT ----


def test_a_message_by_chunks() -> None:
    intake, message = by_chunks([b"Subject: x\r", b"\n\r\n", b"", b".\r\n..\r\nMAIL FROM:<>\r\n"])
    assert message == b"Subject: x\r\n\r\n.\r\n..\r\nMAIL FROM:<>\r\n"
    assert (intake.size, intake.refusal) == (len(message), None)


def test_a_chunk_may_come_in_pieces() -> None:
    intake = Intake(NO_LIMITS, chunked=True)
    assert (intake.chunk, intake.last) == (0, False)
    intake.expect(6, True)
    assert (intake.chunk, intake.last) == (6, True)
    assert intake.feed(b"ab\r") == (b"ab", b"")
    assert intake.chunk == 3
    assert intake.feed(b"") == (b"", b"")
    assert intake.chunk == 3
    assert intake.feed(b"\ncdEF") == (b"\r\ncd", b"EF")
    assert intake.chunk == 0
    assert not intake.dots_ended


@pytest.mark.parametrize(("chunks", "message"), [
    ([b"a"], b"a\r\n"),
    ([b"a\r\n"], b"a\r\n"),
    ([b"a\r", b"\n"], b"a\r\n"),
    ([b""], b""),
    ([b"a\r\n", b""], b"a\r\n"),
    ([b"a", b""], b"a\r\n"),
])
def test_the_last_line_is_ended(chunks: list[bytes], message: bytes) -> None:
    intake, found = by_chunks(chunks)
    assert (found, intake.size, intake.refusal) == (message, len(message), None)


@pytest.mark.parametrize("chunks", [[b"a\r"], [b"\n"], [b"a\r", b"b"], [b"a\n\r\n"], [b"a\r", b""]])
def test_a_stray_line_end_in_chunks_is_refused(chunks: list[bytes]) -> None:
    intake, _ = by_chunks(chunks)
    assert intake.refusal == replies.STRAY_LINE_END


def test_dots_in_chunks_are_text() -> None:
    assert by_chunks([b"\r\n.\r\n", b".\r\n"])[1] == b"\r\n.\r\n.\r\n"


@pytest.mark.parametrize(("most", "refusal"), [
    (11, None), (10, None), (9, replies.MESSAGE_TOO_BIG), (0, None),
])
def test_a_chunk_too_big_is_refused_when_it_is_announced(most: int, refusal: Reply | None) -> None:
    intake = Intake(SMTPSettings(message_octets=most), chunked=True)
    intake.expect(4, False)
    assert intake.feed(b"ab\r\n") == (b"ab\r\n", b"")
    intake.expect(6, False)
    assert intake.refusal == refusal
    block, rest = intake.feed(b"cdef\r\nNOOP\r\n")
    assert rest == b"NOOP\r\n"
    assert block == (b"" if refusal else b"cdef\r\n")
    assert intake.size == (4 if refusal else 10)


def test_a_chunk_beyond_all_measure_is_swallowed() -> None:
    intake = Intake(SMTPSettings(), chunked=True)
    intake.expect(99_999_999_999_999_999_999, True)
    assert intake.refusal == replies.MESSAGE_TOO_BIG
    for _ in range(100):
        assert intake.feed(b"MAIL FROM:<a@b>\r\n" * 100) == (b"", b"")
    assert intake.chunk == 99_999_999_999_999_999_999 - 170_000


def test_a_refusal_is_not_replaced_when_a_chunk_is_too_big() -> None:
    intake = Intake(SMTPSettings(message_octets=10), chunked=True)
    intake.refusal = replies.MAIL_FIRST
    intake.expect(11, True)
    assert intake.refusal == replies.MAIL_FIRST


def test_a_refused_message_by_chunks_ends_without_more_text() -> None:
    intake = Intake(NO_LIMITS, chunked=True)
    intake.expect(2, True)
    intake.feed(b"a\r")
    intake.refusal = replies.LOCAL_ERROR
    assert intake.finish() == b""
    assert intake.refusal == replies.LOCAL_ERROR


@pytest.mark.parametrize(("most", "refusal"), [(5, None), (4, replies.MESSAGE_TOO_BIG)])
def test_the_crlf_that_is_added_counts(most: int, refusal: Reply | None) -> None:
    intake, message = by_chunks([b"abc"], SMTPSettings(message_octets=most))
    assert intake.refusal == refusal
    assert message == (b"abc" if refusal else b"abc\r\n")


def test_lines_too_long_and_loops_in_chunks() -> None:
    limits = SMTPSettings(text_line_octets=20, hops=2)
    intake, _ = by_chunks([b"Received: x\r\n", b"\r\nReceived: y\r\n"], limits)
    assert intake.refusal is None
    intake, _ = by_chunks([b"Received: x\r\nRecei", b"ved: y\r\n", b"\r\n"], limits)
    assert intake.refusal == replies.LOOP
    intake, _ = by_chunks([b"x" * 10, b"y" * 9, b"\r\n"], limits)
    assert intake.refusal == replies.TEXT_LINE_TOO_LONG


# ---- whatever comes ----

octets = st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join)
places = st.lists(st.integers(0, 100), max_size=8)
tight = st.builds(
    SMTPSettings,
    message_octets=st.sampled_from([0, 8, 30]),
    text_line_octets=st.sampled_from([0, 6, 20]),
    hops=st.sampled_from([1, 2, 100]),
)


def allowed(message: bytes, limits: SMTPSettings) -> bool:
    """Whether *message* has no fault, found by looking at the whole of it."""
    stray, too_long, _ = faults(message, limits.text_line_octets)
    too_big = 0 < limits.message_octets < len(message)
    return not (stray or too_long or too_big or received_fields(message) >= limits.hops)


@settings(deadline=None)
@given(octets, places, tight)
def test_data_of_any_kind(text: bytes, at: list[int], limits: SMTPSettings) -> None:
    stream = text + b"\r\n.\r\nMAIL FROM:<>\r\n"
    message, rest = text_of_data(stream)
    intake, found, behind = by_data(cut(stream, at), limits)
    assert behind == rest
    assert (intake.refusal is None) == allowed(message, limits)
    assert found == message if intake.refusal is None else message.startswith(found)


@settings(deadline=None)
@given(octets, places, tight)
def test_chunks_of_any_kind(text: bytes, at: list[int], limits: SMTPSettings) -> None:
    intake, found = by_chunks(cut(text, at), limits)
    message = text if not text or text.endswith(b"\r\n") else text + b"\r\n"
    assert (intake.refusal is None) == allowed(message, limits)
    assert found == message if intake.refusal is None else message.startswith(found)


# ---- the [smtp] section ----


def test_every_default_passes_its_own_check() -> None:
    defaults = SMTPSettings()
    for field in dataclasses.fields(SMTPSettings):
        check = field.metadata["check"]
        assert field.metadata["sentence"].endswith(".")
        assert check is None or check(getattr(defaults, field.name)) is None


@pytest.mark.parametrize(("name", "least"), [
    ("message_octets", 0), ("recipients", 1), ("command_octets", 512), ("text_line_octets", 0),
    ("hops", 1), ("errors", 1), ("idle_commands", 1), ("messages", 0), ("command_seconds", 1),
    ("data_seconds", 1), ("message_seconds", 1), ("connections", 1), ("connections_per_address", 1),
])
def test_the_least_value_of_a_limit(name: str, least: int) -> None:
    field = next(field for field in dataclasses.fields(SMTPSettings) if field.name == name)
    check = field.metadata["check"]
    assert check(least) is None
    assert check(least - 1) == f"{least} or more"


def test_networks_are_checked() -> None:
    field = next(f for f in dataclasses.fields(SMTPSettings) if f.name == "exempt_networks")
    check = field.metadata["check"]
    assert check([]) is None
    assert check(["192.0.2.0/24", "192.0.2.7/24", "192.0.2.1", "2001:db8::/32", "::1"]) is None
    for wrong in ("", "example.org", "192.0.2.0/33", "192.0.2", "2001:db8::/129"):
        assert check(["::1", wrong]) == 'networks like "192.0.2.0/24" and "2001:db8::/32"'


def test_a_choice_is_one_of_those_named() -> None:
    check = OneOf("text", "json")
    assert check("text") is None
    assert check("json") is None
    for wrong in ("", "TEXT", "tex", "text, json"):
        assert check(wrong) == "one of text, json"


def test_a_list_is_not_shared_between_sections() -> None:
    one, other = SMTPSettings(), SMTPSettings()
    one.exempt_networks.append("192.0.2.0/24")
    assert other.exempt_networks == SMTPSettings().exempt_networks == ["127.0.0.0/8", "::1/128"]


def test_the_limits_are_those_of_the_standard_or_wider() -> None:
    # RFC 5321 §4.5.3.1: 512 octets of a command, 100 recipients, 1,000 octets of text; §6.3: 100.
    limits = SMTPSettings()
    assert limits.command_octets >= 512
    assert limits.recipients >= 100
    assert limits.text_line_octets == 0
    assert limits.hops >= 100
    # §4.5.3.2.7: five minutes for a command; §4.5.3.2.5: three for a block of data.
    assert limits.command_seconds >= 300
    assert limits.data_seconds >= 180
