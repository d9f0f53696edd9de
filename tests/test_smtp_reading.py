"""Replies off the wire: against what made them, cut anywhere; and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailsvc.errors import EnhancedStatus
from mailsvc.smtp.reading import LINES, REPLY_OCTETS, Malformed, ReplyReader
from mailsvc.smtp.replies import Reply
from tests.dialogue import CUTS, Cut

texts = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S", "Zs")), max_size=60)
replies = st.builds(
    lambda code, status, lines: Reply(
        code, EnhancedStatus(code // 100, *status) if status and code // 100 != 3 else None,
        tuple("t " + line for line in lines)),
    st.integers(200, 599),
    st.none() | st.tuples(st.integers(0, 999), st.integers(0, 999)),
    st.lists(texts, min_size=1, max_size=5))


@given(st.lists(replies, max_size=5), st.randoms())
def test_what_a_server_says_is_what_is_read(said: list[Reply], random: object) -> None:
    wire = b"".join(reply.wire for reply in said)
    reader, found = ReplyReader(), []
    while wire:
        length = random.randint(1, len(wire))  # type: ignore[attr-defined]
        reader.feed(wire[:length])
        wire = wire[length:]
        while (reply := reader.reply()) is not None:
            found.append(reply)
    assert found == said
    assert len(reader) == 0


@given(st.binary(max_size=200), st.integers(0, 200))
def test_anything_is_read_alike_however_it_is_cut(data: bytes, at: int) -> None:
    def read(*pieces: bytes) -> tuple[list[Reply], bool]:
        reader, found = ReplyReader(), []
        try:
            for piece in pieces:
                reader.feed(piece)
                while (reply := reader.reply()) is not None:
                    found.append(reply)
        except Malformed:
            return found, True
        return found, False

    assert read(data) == read(data[:at], data[at:])


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("wire", [
    b"250_x\r\n", b"25\r\n", b"2500 x\r\n", b"\r\n", b" 250 x\r\n", b"150 x\r\n", b"600 x\r\n",
    b"250 x\n", b"250 x\ry\r\n", b"250-a\r\n251 b\r\n", b"250-a\r\nb\r\n", b"\x16\x03\x01\x02\x00",
    b"+OK\r\n", b"250-a\r\n" * (LINES + 1), b"250 " + b"x" * 5000,
    (b"250-" + b"x" * 4000 + b"\r\n") * (REPLY_OCTETS // 4000 + 2)])
def test_what_is_no_reply_is_told_at_once(wire: bytes, cut: Cut) -> None:
    reader = ReplyReader()
    with pytest.raises(Malformed):
        for piece in cut(wire):
            reader.feed(piece)
            assert reader.reply() is None


@pytest.mark.parametrize(("wire", "reply"), [
    (b"250\r\n", Reply(250, None, ("",))),
    (b"250 \r\n", Reply(250, None, ("",))),
    (b"550 5.1.1\r\n", Reply(550, EnhancedStatus(5, 1, 1), ("",))),
    (b"550-5.1.1 a\r\n550 5.1.1 b\r\n", Reply(550, EnhancedStatus(5, 1, 1), ("a", "b"))),
    (b"550-a\r\n550 5.1.1 b\r\n", Reply(550, EnhancedStatus(5, 1, 1), ("a", "b"))),
    (b"550 4.1.1 a\r\n", Reply(550, None, ("4.1.1 a",))),
    (b"550 5.01.1 a\r\n", Reply(550, None, ("5.01.1 a",))),
    (b"571 5.7.1 a\r\n", Reply(571, EnhancedStatus(5, 7, 1), ("a",))),
    (b"250 a\x1b[2Jb\r\n", Reply(250, None, ("a?[2Jb",))),
    ("250 é\r\n".encode(), Reply(250, None, ("é",))),
])
def test_a_reply(wire: bytes, reply: Reply) -> None:
    reader = ReplyReader()
    reader.feed(wire)
    assert reader.reply() == reply
