"""mailsvc.submission.repair: what cannot be sent everywhere is encoded, and decodes to the same."""

from __future__ import annotations

import base64
import email
import random
import re
import time
from email.message import Message
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailsvc.submission.repair import Repair, repaired
from tests.messages import CORPUS, RAW, large, long_line

PLAIN = b"From: b@example.org\r\nSubject: x\r\n"
MIME = PLAIN + b"MIME-Version: 1.0\r\n"
TEXT = "Grüße, Привет\r\n".encode()
LONG = b"before\r\n" + b"x" * 999 + b"\r\nafter \t\r\n"


def leaves(message: bytes) -> list[tuple[str, bytes]]:
    """Type and decoded content of each leaf, by the standard library."""
    return [(part.get_content_type(), part.get_payload(decode=True))  # type: ignore[misc]
            for part in email.message_from_bytes(message).walk() if not part.is_multipart()]


def fits(message: bytes) -> bool:
    return message.isascii() and max(map(len, message.split(b"\r\n"))) <= 998


def mended(message: bytes, *, eight_bit: bool = False) -> Message:
    """*message* repaired, which must have been needed and have done no harm."""
    result = repaired(message, eight_bit=eight_bit)
    assert result != message
    assert eight_bit or fits(result)
    assert result.count(b"\r") == result.count(b"\n") == result.count(b"\r\n")
    assert [content for _, content in leaves(result)] == [content for _, content in leaves(message)]
    assert repaired(result, eight_bit=eight_bit) == result
    return email.message_from_bytes(result)


@pytest.mark.parametrize(("content", "charset"), [
    (TEXT, "utf-8"), (b"\xe4\xf6\xfc\r\n", "unknown-8bit"), (LONG, "us-ascii")])
def test_text_without_mime(content: bytes, charset: str) -> None:
    found = mended(PLAIN + b"\r\n" + content)
    assert found["MIME-Version"] == "1.0"
    assert found["Content-Type"] == f"text/plain; charset={charset}"
    assert found["Content-Transfer-Encoding"] == "quoted-printable"
    assert found.get_payload(decode=True) == content
    assert found["Subject"] == "x"


@pytest.mark.parametrize("encoding", [b"", b"Content-Transfer-Encoding: 8bit\r\n",
                                      b"CONTENT-TRANSFER-ENCODING :\r\n 7BIT\r\n",
                                      b"Content-Transfer-Encoding: binary\r\n"])
def test_the_encoding_is_named_once(encoding: bytes) -> None:
    header = b"Content-Type: text/html; charset=utf-8\r\n" + encoding + b"Subject: last\r\n"
    result = repaired(MIME + header + b"\r\n" + TEXT, eight_bit=False)
    assert len(re.findall(rb"(?i)content-transfer-encoding", result)) == 1
    assert result.endswith(base64.b16encode(TEXT[-3:-2]).join([b"=", b"\r\n"]))
    found = email.message_from_bytes(result)
    assert found["Content-Type"] == "text/html; charset=utf-8"
    assert found.get_all("Subject") == ["x", "last"]
    assert found.get_payload(decode=True) == TEXT


def test_what_is_no_text_becomes_base64() -> None:
    content = bytes(octet for octet in range(256) if octet not in b"\r\n") * 9
    header = MIME + b"Content-Type: image/png\r\nContent-Transfer-Encoding: binary\r\n"
    result = repaired(header + b"\r\n" + content, eight_bit=False)
    assert b"\r\nContent-Type: image/png\r\n" in result and fits(result)
    found = email.message_from_bytes(result)
    assert found["Content-Transfer-Encoding"] == "base64"
    assert found.get_payload(decode=True) == content


def test_announced_octets_may_stay() -> None:
    """RFC 6152 §3: BODY=8BITMIME."""
    message = PLAIN + b"\r\n" + TEXT
    assert repaired(message, eight_bit=True) == message
    mended(PLAIN + b"\r\n" + LONG + TEXT, eight_bit=True)


@pytest.mark.parametrize("octets", [997, 998, 999])
def test_how_long_a_line_may_be(octets: int) -> None:
    message = PLAIN + b"\r\n" + b"x" * octets + b"\r\n"
    assert (repaired(message, eight_bit=False) == message) == (octets <= 998)


def test_a_last_line_without_end() -> None:
    found = mended(PLAIN + b"\r\n" + b"x" * 3000)
    assert found.get_payload(decode=True) == b"x" * 3000


MULTIPART = (
    MIME + b'Content-Type: multipart/mixed; boundary="a b"\r\n\r\n'
    b"preamble\r\n"
    b"--a b\r\n\r\nplain ascii\r\n"
    b"--a b \t\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n" + TEXT +
    b"\r\n--a b\r\nContent-Type: multipart/alternative; boundary=inner\r\n\r\n"
    b"--inner\r\n\r\n" + LONG + b"--inner\r\nContent-Type: text/html\r\n\r\nascii\r\n--inner--\r\n"
    b"--a b\r\nContent-Type: application/pdf\r\nContent-Transfer-Encoding: base64\r\n\r\nAAAA\r\n"
    b"--a bc\r\n"
    b"--a b--\r\n"
    b"epilogue\r\n--a b\r\nnot a part\r\n")


def test_only_the_parts_that_need_it() -> None:
    result = repaired(MULTIPART, eight_bit=False)
    mended(MULTIPART)
    for kept in (b"preamble\r\n--a b\r\n\r\nplain ascii\r\n--a b \t\r\n",
                 b"\r\n--a b\r\nContent-Type: multipart/alternative; boundary=inner\r\n\r\n--inner",
                 b"--inner\r\nContent-Type: text/html\r\n\r\nascii\r\n--inner--\r\n",
                 MULTIPART[MULTIPART.index(b"--a b\r\nContent-Type: application/pdf"):]):
        assert kept in result
    assert result.count(b"quoted-printable") == 2
    assert result.startswith(MULTIPART[:MULTIPART.index(b"preamble")])


def test_the_epilogue_is_no_part() -> None:
    epilogue = b"--a b--\r\nepilogue\r\n--a b\r\n\r\n" + TEXT + b"--a b--\r\n"
    result = repaired(MULTIPART[: MULTIPART.index(b"--a b--")] + epilogue, eight_bit=False)
    assert result.endswith(epilogue) and b"quoted-printable" in result


def test_without_a_closing_delimiter() -> None:
    mended(MULTIPART[: MULTIPART.index(b"--a b--")])
    mended(MIME + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\n" + TEXT)


def test_a_message_in_a_message() -> None:
    inner = PLAIN + b"\r\n" + TEXT
    for header in (b"Content-Type: message/rfc822\r\n\r\n", b""):
        kind = b"digest" if not header else b"mixed"
        found = mended(MIME + b"Content-Type: multipart/" + kind + b"; boundary=b\r\n\r\n"
                       b"--b\r\n" + (header or b"\r\n") + inner + b"\r\n--b--\r\n")
        nested = found.get_payload(0).get_payload(0)  # type: ignore[union-attr]
        assert nested["MIME-Version"] == "1.0" and nested["Subject"] == "x"


@pytest.mark.parametrize("message", [
    b"DKIM-Signature: v=1\r\n" + PLAIN + b"\r\n" + TEXT,
    PLAIN + b"dkim-signature : v=1\r\n\r\n" + LONG,
    MIME + b"Content-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\n" + TEXT
    + b"\r\n--b--\r\n",
    MIME + b"Content-Type: multipart/mixed; boundary=o\r\n\r\n--o\r\n"
    b"Content-Type: multipart/encrypted; boundary=b\r\n\r\n--b\r\n\r\n" + TEXT
    + b"\r\n--b--\r\n--o--\r\n",
    MIME + b"Content-Type: text/plain\r\nContent-Transfer-Encoding: base64\r\n\r\n" + b"A" * 2000,
    MIME + b"Content-Type: text/plain\r\nContent-Transfer-Encoding: x-own\r\n\r\n" + TEXT,
    MIME + b"Content-Type: multipart/mixed\r\n\r\n" + TEXT,
    MIME + b"Content-Type: message/partial; id=x\r\n\r\n" + TEXT,
    PLAIN + b"Subject: \xc3\xbc\r\n\r\nascii\r\n",
    TEXT,
    b"",
])
def test_left_as_it_is(message: bytes) -> None:
    assert repaired(message, eight_bit=False) == message


@pytest.mark.parametrize("name", [*CORPUS, *RAW])
def test_the_corpus(name: str) -> None:
    message = {**CORPUS, **RAW}[name]
    result = repaired(message, eight_bit=False)
    if name in ("8-bit", "utf-8"):
        assert fits(result) and leaves(result) == leaves(message)
    else:
        assert result == message
    assert repaired(message, eight_bit=True) == message


_CONTENT = st.lists(st.sampled_from([
    b"", b".", b"From x", b"--b", b"--b--", b"=", b"=3D", b" ", b"\t ", b"\xff", b"\x00", b"ascii",
    "ü".encode() * 60, b"x" * 999, b"=" * 1200, b" " * 1000, b"--b ", b"--bb"]), max_size=8).map(
        lambda lines: b"".join(line + b"\r\n" for line in lines))
_PARTS = st.lists(st.tuples(st.sampled_from([
    b"", b"Content-Type: text/plain; charset=utf-8\r\n", b"Content-Type: image/png\r\n",
    b"Content-Type: text/html\r\nContent-Transfer-Encoding: 8bit\r\n",
    b"Content-Type: message/rfc822\r\n", b"Content-Type: multipart/mixed; boundary=b\r\n",
    b"Content-Type: multipart/signed; boundary=c\r\n", b"Content-Type: nonsense\r\n"]), _CONTENT),
    max_size=5)


@given(_PARTS, st.booleans(), st.lists(st.integers(0, 9000), max_size=6))
def test_any_parts(parts: list[tuple[bytes, bytes]], eight_bit: bool, cuts: list[int]) -> None:
    message = MIME + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"".join(
        b"--b\r\n" + header + b"\r\n" + content for header, content in parts) + b"--b--\r\n"
    result = repaired(message, eight_bit=eight_bit)
    assert repaired(result, eight_bit=eight_bit) == result
    assert [kind for kind, _ in leaves(result)] == [kind for kind, _ in leaves(message)]
    assert result.count(b"\r") == result.count(b"\n") == result.count(b"\r\n")
    one = Repair(100_000, eight_bit=eight_bit)
    places = [0, *sorted(cut for cut in cuts if cut < len(message)), len(message)]
    blocks = [one.feed(message[a:b]) for a, b in pairwise(places)]
    assert b"".join([*blocks, one.finish()]) == result


@given(_CONTENT)
def test_any_content(content: bytes) -> None:
    """To the octet; by the standard library's decoder."""
    message = PLAIN + b"\r\n" + content
    result = repaired(message, eight_bit=False)
    assert email.message_from_bytes(result).get_payload(decode=True) == content


def test_a_message_over_the_bound_passes() -> None:
    message = large(50_000) + TEXT
    one = Repair(20_000, eight_bit=False)
    blocks = [one.feed(message[at : at + 7000]) for at in range(0, len(message), 7000)]
    assert blocks[:2] == [b"", b""] and blocks[2] == message[:21_000]
    assert blocks[3] == message[21_000:28_000]
    assert b"".join([*blocks, one.finish()]) == message
    exact = PLAIN + b"\r\n" + TEXT
    for octets, repairs in ((len(exact), True), (len(exact) - 1, False)):
        one = Repair(octets, eight_bit=False)
        assert (one.feed(exact) + one.finish() != exact) == repairs


def _nested(depth: int) -> bytes:
    text = b"\r\n" + TEXT
    for level in range(depth):
        text = (b"Content-Type: multipart/mixed; boundary=b%d.\r\n\r\n--b%d.\r\n" % (level, level)
                + text + b"\r\n--b%d.--\r\n" % level)
    return MIME + text


@pytest.mark.parametrize("message", [
    _nested(5000),
    MIME + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + (b"--b\r\n\r\n" + TEXT) * 50_000,
    MIME + b'Content-Type: text/plain; a="' + b";" * 200_000 + b"\r\n\r\n" + TEXT,
    MIME + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: x/y;"
    + b'a="\\";' * 200_000 + b"\r\n\r\n" + TEXT,
    MIME + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b " * 300_000 + TEXT,
    MIME + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n\r\n--b" + b" " * 1_000_000 + TEXT,
    MIME + b"Content-Transfer-Encoding:" + b"\r\n " * 80_000 + b"\r\n\r\n" + TEXT,
    MIME + b"\r\n" + random.Random(3).randbytes(2_000_000).replace(b"\r", b"").replace(b"\n", b""),
    PLAIN + b"\r\n" + (b"x" * 998 + b"\r\n") * 2000,
], ids=["deep", "many", "parameters", "quotes", "delimiters", "spaces", "folded", "noise",
        "lines"])
def test_hostile_messages_take_no_time(message: bytes) -> None:
    """PITFALLS, SMTP row 17."""
    began = time.process_time()
    repaired(message, eight_bit=False)
    assert time.process_time() - began < 1


def test_depth_and_number_are_bounded() -> None:
    assert fits(repaired(_nested(20), eight_bit=False))
    deep = _nested(21)
    assert repaired(deep, eight_bit=False) == deep
    many = MIME + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + (
        b"--b\r\n\r\n" + TEXT) * 1100 + b"--b--\r\n"
    assert repaired(many, eight_bit=False).count(b"quoted-printable") == 999


def test_a_long_line_decodes_to_itself() -> None:
    message = long_line(50_000)
    assert mended(message).get_payload(decode=True) == message.partition(b"\r\n\r\n")[2]
