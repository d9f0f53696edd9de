"""Which messages have more than ASCII in a header, be it that of a part."""

from __future__ import annotations

import email
import email.policy
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailsvc.headers import HeaderScan
from tests.messages import CORPUS, UTF8_HEADER


def is_ascii(message: bytes, *cuts: int) -> bool:
    """What a scan finds when *message* comes cut at *cuts*."""
    scan = HeaderScan()
    places = [0, *sorted(cut for cut in cuts if cut < len(message)), len(message)]
    for start, end in pairwise(places):
        assert scan.feed(message[start:end]) == scan.ascii
    return scan.ascii


def lines(*texts: str) -> bytes:
    return "".join(f"{text}\r\n" for text in texts).encode()


MIXED = "Content-Type: multipart/mixed; boundary=b"
NESTED = "Content-Type: message/rfc822"
#: A part whose header is not ASCII.
PART = ("--b", "Content-Type: text/plain; name=ä", "", "x")


@pytest.mark.parametrize("message", [
    b"", b"a: b", b"\r\n",
    lines("a: b", "", "ä"),
    lines("a: b", "", "ä: x", "", "--b", "ä: x"),
    lines(MIXED, "", "ä", "--b", "", "ä", "--b", "x: y", "", "ä", "--b--", "ä"),
    # No delimiter: of another, closing, amid a line, or longer.
    lines(MIXED, "", "--c", "ä: x"), lines(MIXED, "", "--b--", "ä: x"),
    lines(MIXED, "", "x --b", "ä: x"), lines(MIXED, "", "--bc", "ä: x"),
    lines(MIXED, "", "--" + "b" * 1000, "ä: x"), lines(MIXED, "", "\r--b", "ä: x"),
    lines(MIXED, "", "-- ", "ä: x"), lines(MIXED, "", "--b"),
    # A type that has no parts.
    lines("Content-Type: text/plain; boundary=b", "", *PART),
    lines("Content-Type: nonsense; boundary=b", "", *PART),
    lines("X-Content-Type: multipart/mixed; boundary=b", "", *PART),
    lines(NESTED, "", "a: b", "", "ä: x"),
    lines("Content-Type: message/global-headers", "", "ä: x"),
    lines(MIXED, "", "--b", NESTED, "", "a: b", "", "ä", "--b", "", "ä"),
    lines("x" * 70_000, "", "ä"),
    lines("CONTENT-TYPE: MULTIPART/MIXED; BOUNDARY=B", "", "--B", "", "ä"),
    lines(MIXED, "", "ä", "--" + "x" * 400, "ä"),
    lines(MIXED, "", "--b", NESTED, "--b", "", "ä"),
    "a: b\n\nä".encode(), f"{MIXED}\n\n--b\nx: y\n\nä".encode(),
    *CORPUS.values(),
])
def test_ascii_in_all_headers(message: bytes) -> None:
    assert is_ascii(message)
    assert is_ascii(message, *range(3000))
    assert all(is_ascii(message, cut) for cut in range(min(len(message), 1000)))


@pytest.mark.parametrize("message", [
    UTF8_HEADER, "ä".encode(), lines("ä: b"), lines("a: b", "c: d", " ä", ""),
    lines("x" * 70_000 + "ä"),
    lines(MIXED, "", *PART), lines(MIXED, "", "x", "--b", "", "", *PART),
    lines(MIXED, "", "x", "--" + "x" * 400, *PART), f"{MIXED}\n\n--b\nx: ä".encode(),
    lines(MIXED.upper(), "", *(line.upper() for line in PART)),
    lines("content-type : multipart/x; charset=y;", "\tBOUNDARY = b", "", *PART),
    lines('Content-Type: multipart/mixed; boundary="b"', "", *PART),
    lines('Content-Type: multipart/mixed; boundary="\\b"; x=y', "", *PART),
    lines('Content-Type: multipart/mixed; boundary="a: b;c"', "", "--a: b;c \t", "x: ä"),
    lines(MIXED + "--", "", "--b--", "x: ä"),
    # Parts of parts, whichever way they end.
    lines(MIXED, "", "--b", "Content-Type: multipart/x; boundary=c", "", "--c", "", "--b", "x: ä"),
    lines(MIXED, "", "--b", "Content-Type: multipart/x; boundary=c", "", "--c", "x: ä"),
    lines(MIXED, "", "--b", "x: y", "--b", "x: ä"),
    lines(MIXED, *PART),
    # Messages in messages.
    lines(NESTED, "", "ä: x"), lines(NESTED, "", NESTED, "", "ä: x"),
    lines("Content-Type: message/GLOBAL", "", "ä: x"),
    lines(NESTED, "", MIXED, "", *PART),
    lines("Content-Type: multipart/digest; boundary=b", "", "--b", "", "a: b", "", "x", "--b", "",
          "ä: x"),
    # What cannot be understood is not believed to be harmless.
    lines("Content-Type: multipart/mixed", "", "ä"),
    lines(MIXED + "b" * 300, "", "ä"), lines(MIXED + ";x=" + "y" * 9000, "", "ä"),
    lines(MIXED + ";", *[" x=y;"] * 3000, "", "ä"),
])
def test_more_than_ascii_in_a_header(message: bytes) -> None:
    assert not is_ascii(message)
    assert not is_ascii(message, *range(3000))
    assert not any(is_ascii(message, cut) for cut in range(min(len(message), 1000)))


def test_a_digest_names_what_it_holds() -> None:
    digest = ("Content-Type: multipart/digest; boundary=b", "", "--b")
    assert is_ascii(lines(*digest, "Content-Type: text/plain", "", "ä: x"))
    assert not is_ascii(lines(*digest, "X: y", "", "ä: x"))


_LINES = st.sampled_from([
    "", "", "x: y", "ä: x", " ä", "text", "ä", "--b", "--b--", "--c", "--c ", "-", "--", MIXED,
    "Content-Type: multipart/alternative;", ' boundary="c"', NESTED, "Content-Type: text/plain"])


@given(st.lists(_LINES, max_size=20), st.lists(st.integers(0, 300), max_size=8))
def test_cuts_make_no_difference(texts: list[str], cuts: list[int]) -> None:
    assert is_ascii(lines(*texts), *cuts) == is_ascii(lines(*texts))


@given(st.lists(_LINES, max_size=20))
def test_what_another_reader_finds(texts: list[str]) -> None:
    """By the standard library's parser, which knows nothing of ours."""
    message = lines("a: b", *texts)
    for part in email.message_from_bytes(message, policy=email.policy.compat32).walk():
        if any(not str(value).isascii() or not name.isascii() for name, value in part.raw_items()):
            assert not is_ascii(message)


def test_neither_lines_nor_parts_without_end_are_a_burden() -> None:
    for start, more in (
            (lines(MIXED, ""), b"--" + b"x" * 8000), (lines(MIXED, "", "--b"), b"x" * 8000),
            (b"", lines("Content-Type: multipart/x; boundary=" + "b" * 200 + "%d", "", "--b"))):
        scan = HeaderScan()
        assert scan.feed(start)
        tracemalloc.start()
        for number in range(2000):
            assert scan.feed(more.replace(b"%d", b"%d" % number))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()


@pytest.mark.parametrize(("start", "line"), [
    (lines(MIXED, ""), lines("--x")), (b"", lines("x: y"))], ids=["body", "header"])
def test_what_would_take_too_long_is_not_looked_into(start: bytes, line: bytes) -> None:
    scan = HeaderScan()
    scan.feed(start)
    for _ in range(300):
        assert scan.feed(line * 1000)
    assert not scan.feed(lines("", "ä"))
