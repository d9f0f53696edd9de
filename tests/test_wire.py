"""``mailsvc.wire`` against slow references, whatever the input and wherever it is cut."""

from __future__ import annotations

import itertools
import re
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailsvc.wire import (
    CRLF,
    END_OF_DATA,
    ChunkReader,
    DotReader,
    DotStuffer,
    LineEnds,
    LineProof,
    LineReader,
    LineTooLong,
)
from tests import fuzz_scanner
from tests.fuzz_scanner import (
    check_chunk_reader,
    check_dot_reader,
    check_dot_stuffer,
    check_line_proof,
    check_line_reader,
    cut,
    every_cut,
    faults,
    text_of_data,
)

ALPHABET = (b"\r", b"\n", b".", b"a")

octets = st.sampled_from([*fuzz_scanner.PIECES, b"Z", b"\xff"])
streams = st.lists(octets, max_size=40).map(b"".join)
places = st.lists(st.integers(0, 120), max_size=12)
pieces = st.builds(cut, streams, places)


def strings(longest: int, shortest: int = 0) -> Iterator[bytes]:
    """Every string over the alphabet of *shortest* to *longest* octets."""
    for length in range(shortest, longest + 1):
        yield from map(b"".join, itertools.product(ALPHABET, repeat=length))


def cuts_of(data: bytes, short: int = 5) -> Iterator[list[bytes]]:
    """*data* in pieces: every way when it is *short*, else whole, octet by octet, and once each."""
    if len(data) <= short:
        yield from every_cut(data)
        return
    yield [data]
    yield cut(data, range(1, len(data)))
    for place in range(1, len(data)):
        yield cut(data, [place])


def lines_of(reader: LineReader) -> list[bytes | None]:
    """All complete lines that *reader* has; None for one too long."""
    found: list[bytes | None] = []
    for _ in range(len(reader) + 1):
        try:
            line = reader.line()
        except LineTooLong:
            found.append(None)
            continue
        if line is None:
            return found
        found.append(line)
    raise AssertionError("more lines than octets")


# ---- the references themselves, by example, so that they cannot be wrong in the same way ----


@pytest.mark.parametrize(("stream", "message", "rest"), [
    (b".\r\n", b"", b""),
    (b".\r\nQUIT\r\n", b"", b"QUIT\r\n"),
    (b"\r\n.\r\n", b"\r\n", b""),
    (b"a\r\n.\r\n.\r\n", b"a\r\n", b".\r\n"),
    (b"..\r\n.\r\n", b".\r\n", b""),
    (b"...a\r\n.b\r\n.\r\n", b"..a\r\nb\r\n", b""),
    (b"a\n.\nb\n.\r\nc\r.\r\n.\r\n", b"a\n.\nb\n.\r\nc\r.\r\n", b""),
    (b"a\r\n.\r\r\n.\r\n", b"a\r\n\r\r\n", b""),
    (b"a\r\n.\n\r\n.\r\n", b"a\r\n\n\r\n", b""),
    (b"a\r\r\n.\r\nb", b"a\r\r\n", b"b"),
    (b"a\r\n.\0\r\n.\r\n", b"a\r\n\0\r\n", b""),
    (b"no end\r\n", b"no end\r\n", None),
    (b"no end\r\n.\r", b"no end\r\n\r", None),
    (b"", b"", None),
])
def test_only_crlf_dot_crlf_ends_data(stream: bytes, message: bytes, rest: bytes | None) -> None:
    assert text_of_data(stream) == (message, rest)
    for parts in ([stream], cut(stream, range(1, len(stream)))):
        check_dot_reader(parts)


@pytest.mark.parametrize(("message", "wire"), [
    (b"", b".\r\n"),
    (b"\r\n", b"\r\n.\r\n"),
    (b".", b"..\r\n.\r\n"),
    (b".\r\n.", b"..\r\n..\r\n.\r\n"),
    (b"a", b"a\r\n.\r\n"),
    (b"a.b\r\n", b"a.b\r\n.\r\n"),
    (b"a\r", b"a\r\r\n.\r\n"),
    (b"\r", b"\r\r\n.\r\n"),
    (b"a\n.b\r\n", b"a\n.b\r\n.\r\n"),
    (b"a\r.b\r\n", b"a\r.b\r\n.\r\n"),
    (b"..a\r\n", b"...a\r\n.\r\n"),
])
def test_dots_are_stuffed_at_the_beginning_of_lines_alone(message: bytes, wire: bytes) -> None:
    for parts in cuts_of(message):
        assert check_dot_stuffer(parts) == wire


@pytest.mark.parametrize(("message", "longest", "expected"), [
    (b"", 3, (False, False, True)),
    (b"a\r\n", 3, (False, False, True)),
    (b"ab\r\n", 3, (False, True, True)),
    (b"a", 3, (False, False, False)),
    (b"ab", 3, (False, True, False)),
    (b"ab\r\n", 0, (False, False, True)),
    (b"\r\n\r\n", 2, (False, False, True)),
    (b"a\r\n", 2, (False, True, True)),
    (b"a\n", 9, (True, False, False)),
    (b"a\r", 9, (True, False, False)),
    (b"a\rb\n\r\n", 9, (True, False, True)),
    (b"\n\r", 9, (True, False, False)),
    (b"\r\r\n", 9, (True, False, True)),
    (b"\r\n\n", 9, (True, False, False)),
])
def test_lines_are_proved(message: bytes, longest: int, expected: tuple[bool, bool, bool]) -> None:
    assert faults(message, longest) == expected
    for parts in cuts_of(message):
        check_line_proof(check_chunk_reader(parts), longest)


# ---- DotReader ----


def test_what_is_behind_the_end_is_left_as_it_is() -> None:
    reader = DotReader()
    assert reader.rest is None
    assert reader.feed(b"a\r\n.\r\n.\r\n..\r\nb\r") == b"a\r\n"
    assert reader.rest == b".\r\n..\r\nb\r"


def test_a_message_of_dots_alone() -> None:
    reader = DotReader()
    assert reader.feed(b"..\r\n...\r\n..\r\n.\r\n") == b".\r\n..\r\n.\r\n"
    assert reader.rest == b""


# ---- memory ----


def peak(feed: Iterator[object]) -> int:
    """The most octets that were allocated at once while *feed* was exhausted."""
    tracemalloc.start()
    try:
        for _ in feed:
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


BLOCK = b"x" * 65536


def test_ten_mebibytes_without_a_line_end_are_not_held() -> None:
    dots, chunks, stuffer, proof = DotReader(), ChunkReader(), DotStuffer(), LineProof(1000)
    readers = [dots.feed, chunks.feed, stuffer.feed, proof.feed]
    for feed in readers:
        assert peak(feed(BLOCK) for _ in range(160)) < 8 * len(BLOCK)
    assert proof.too_long


def test_a_command_line_of_ten_mebibytes_is_not_held() -> None:
    reader = LineReader(512)

    def feed() -> Iterator[None]:
        for _ in range(160):
            reader.feed(BLOCK)
            assert reader.line() is None
            assert len(reader) <= 1
            yield

    assert peak(feed()) < 4 * len(BLOCK)
    reader.feed(b"\r\nNOOP\r\n")
    assert lines_of(reader) == [None, b"NOOP"]


# ---- LineProof ----


def test_every_short_text_is_given_line_ends_at_every_cut() -> None:
    for text in strings(5):
        expected = re.sub(rb"\r\n|\r|\n", CRLF, text)
        for parts in cuts_of(text):
            ends = LineEnds()
            assert b"".join([*map(ends.feed, parts), ends.finish()]) == expected


def test_a_proof_stays_failed() -> None:
    proof = LineProof(5)
    proof.feed(b"abcd\n")
    assert (proof.stray, proof.too_long) == (True, True)
    proof.feed(b"\r\nab\r\n")
    assert (proof.stray, proof.too_long, proof.ends_in_crlf) == (True, True, True)


def test_lines_may_be_of_any_length_unless_a_limit_is_given() -> None:
    for proof in (LineProof(), LineProof(0)):
        proof.feed(b"\r\n" + b"x" * 100_000 + b"\r\n")
        assert (proof.stray, proof.too_long, proof.ends_in_crlf) == (False, False, True)


def test_an_empty_block_proves_nothing() -> None:
    proof = LineProof(2)
    proof.feed(b"")
    assert proof.ends_in_crlf
    proof.feed(b"\r\nx")
    assert not proof.ends_in_crlf
    proof.feed(b"")
    assert not proof.ends_in_crlf


@pytest.mark.parametrize("octets", [997, 998, 999])
def test_a_long_line_is_measured_over_its_blocks(octets: int) -> None:
    message = b"\r\n" + b"x" * octets + b"\r\n"
    for place in (1, 3, 500, octets, octets + 1):
        parts = check_chunk_reader(cut(message, [place]))
        proof = LineProof(1000)
        for part in parts:
            proof.feed(part)
        assert proof.too_long == (octets > 998)


# ---- LineReader ----


@pytest.mark.parametrize("limit", [2, 3, 4, 512])
@pytest.mark.parametrize("over", [-1, 0, 1])
def test_the_limit_counts_the_line_and_its_crlf(limit: int, over: int) -> None:
    line = b"x" * (limit - 2 + over)
    stream = line + CRLF + b"Y" * (limit - 2) + CRLF
    if limit == 2 and over < 0:
        return
    expected = [None if over > 0 else line, b"Y" * (limit - 2)]
    for place in range(len(stream)):
        reader = LineReader(limit)
        found = []
        for piece in cut(stream, [place]):
            reader.feed(piece)
            found += lines_of(reader)
        assert found == expected
        assert not len(reader)


def test_a_line_too_long_is_skipped_to_its_end_wherever_it_is_cut() -> None:
    stream = b"MAIL " + b"x" * 40 + b"\rRSET\nRSET\r\nNOOP\r\n" + b"y" * 20 + b"\r\r\nQUIT\r\n"
    for first in range(len(stream) + 1):
        for second in range(first, len(stream) + 1):
            check_line_reader(cut(stream, [first, second]), 12)


def test_a_line_too_long_is_reported_when_its_end_has_come_and_once() -> None:
    reader = LineReader(8)
    reader.feed(b"x" * 30)
    assert reader.line() is None
    assert reader.line() is None
    reader.feed(b"x" * 30 + b"\r")
    assert reader.line() is None
    reader.feed(b"\n")
    with pytest.raises(LineTooLong):
        reader.line()
    assert reader.line() is None


def test_a_cr_amid_a_line_too_long_is_not_its_end() -> None:
    reader = LineReader(8)
    for piece in (b"x" * 9 + b"\r", b"x\n", b"RSET\r", b"x", b"\n", b"\r", b"\n", b"NOOP\r\n"):
        reader.feed(piece)
        found = lines_of(reader)
    assert found == [b"NOOP"]


def test_clearing_forgets_a_half_line_and_whole_ones() -> None:
    reader = LineReader(100)
    reader.feed(b"STARTTLS\r\nMAIL FROM:<a@b>\r\nRC")
    assert reader.line() == b"STARTTLS"
    reader.clear()
    assert len(reader) == 0
    assert reader.line() is None
    reader.feed(b"NOOP\r\n")
    assert lines_of(reader) == [b"NOOP"]


def test_clearing_forgets_that_a_line_was_too_long() -> None:
    reader = LineReader(8)
    reader.feed(b"x" * 9)
    assert reader.line() is None
    reader.clear()
    reader.feed(b"NOOP\r\n")
    assert lines_of(reader) == [b"NOOP"]


def test_clearing_begins_the_count_anew() -> None:
    reader = LineReader(8)
    reader.feed(b"NOOP\r\nNO")
    assert reader.line() == b"NOOP"
    reader.clear()
    reader.feed(b"QUIT\r\nRSET\r\n")
    assert lines_of(reader) == [b"QUIT", b"RSET"]


def test_raw_octets_between_lines() -> None:
    reader = LineReader(16)
    reader.feed(b"DATA\r\nraw\r\n.\r\nQUIT\r\nNO")
    assert reader.line() == b"DATA"
    assert len(reader) == 16
    raw = reader.take()
    assert raw == b"raw\r\n.\r\nQUIT\r\nNO"
    assert len(reader) == 0
    assert reader.take() == b""
    reader.unread(raw[8:])
    assert len(reader) == 8
    assert reader.line() == b"QUIT"
    reader.feed(b"OP\r\n")
    assert lines_of(reader) == [b"NOOP"]


def test_nothing_to_put_back() -> None:
    reader = LineReader(16)
    reader.feed(b"DATA\r\nraw")
    assert reader.line() == b"DATA"
    assert reader.take() == b"raw"
    reader.unread(b"")
    assert reader.line() is None
    reader.feed(b"NOOP\r\n")
    assert reader.line() == b"NOOP"


steps_of_a_session = st.lists(st.sampled_from(["line", "take", "feed", "clear"]), max_size=20)


@settings(deadline=None)
@given(streams, steps_of_a_session, st.data())
def test_lines_and_raw_octets_mixed(stream: bytes, steps: list[str], data: st.DataObject) -> None:
    # The model: all that was fed and not taken, as one string; no line is too long here.
    reader, model = LineReader(1000), b""
    for step in steps:
        if step == "feed":
            count = data.draw(st.integers(0, len(stream)))
            reader.feed(stream[:count])
            model += stream[:count]
            stream = stream[count:]
        elif step == "line":
            line, ended, behind = model.partition(CRLF)
            assert reader.line() == (line if ended else None)
            model = behind if ended else model
        elif step == "take":
            assert reader.take() == model
            kept = data.draw(st.integers(0, len(model)))
            model = model[kept:]
            reader.unread(model)
        else:
            reader.clear()
            model = b""
        assert len(reader) == len(model)


# ---- every short input ----


def test_every_short_stream_of_data_at_every_cut() -> None:
    for stream in strings(7):
        for parts in cuts_of(stream, short=6):
            check_dot_reader(parts)


def test_every_short_text_and_then_the_end_at_every_cut() -> None:
    for text in strings(3):
        for parts in every_cut(text + END_OF_DATA + b"N"):
            check_dot_reader(parts)


def test_every_short_message_for_the_wire_at_every_cut() -> None:
    for message in strings(6):
        for parts in cuts_of(message):
            check_dot_stuffer(parts)


def test_every_short_chunk_and_its_proof_at_every_cut() -> None:
    for message in strings(6):
        for parts in cuts_of(message):
            check_line_proof(check_chunk_reader(parts), 3)


def test_every_short_input_of_lines_at_every_cut() -> None:
    for stream in strings(6):
        for parts in cuts_of(stream):
            for limit in (2, 3, 4):
                check_line_reader(parts, limit)


# ---- long input, cut anywhere ----


@settings(deadline=None)
@given(pieces)
def test_data_is_read(parts: list[bytes]) -> None:
    check_dot_reader(parts)


@settings(deadline=None)
@given(pieces)
def test_a_message_goes_out_and_comes_back(parts: list[bytes]) -> None:
    check_dot_stuffer(parts)


@settings(deadline=None)
@given(pieces, st.integers(0, 30))
def test_chunks_are_read_and_proved(parts: list[bytes], longest: int) -> None:
    check_line_proof(check_chunk_reader(parts), longest)


@settings(deadline=None)
@given(pieces, st.integers(2, 30))
def test_lines_are_read(parts: list[bytes], limit: int) -> None:
    check_line_reader(parts, limit)


@settings(deadline=None)
@given(st.lists(st.integers(0, 20_000), max_size=40), st.lists(st.integers(0, 20_000), max_size=3),
       st.sampled_from([b"\r\n.", b".", b"\r\n..", b"\n.", b"\r."]))
def test_dots_few_or_many_in_a_long_message(dots: list[int], at: list[int], dot: bytes) -> None:
    check_dot_stuffer(cut(dot.join(cut(b"a" * 20_000, dots)), at))


@settings(deadline=None)
@given(st.binary(max_size=60), places)
def test_any_octets_go_out_and_come_back(message: bytes, at: list[int]) -> None:
    check_dot_stuffer(cut(message, at))


def test_twenty_thousand_random_splits() -> None:
    # A million of them: python -m tests.fuzz_scanner
    fuzz_scanner.fuzz(20_000, seed=5321)
