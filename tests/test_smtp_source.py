"""A message to send, whatever it is given as: what it looks like, and its blocks."""

from __future__ import annotations

import io
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from mailsvc.smtp import source
from mailsvc.smtp.source import Form, Source

MESSAGES = [
    b"", b"a", b"a\r\n", b"\r\n", b"\r\n\xff\r\n", b"\n\xff", "Subject: é\r\n\r\nx".encode(),
    "a: b\r\n\r\né".encode(), b"a\nb", b"a\r", b"\r", b"a: b\r\nc: d\r\n", b"a\n\n\xff", b"a\r\r\n",
    b"x" * 70_000 + b"\r\n\r\n\xff", b"a: b\r\n" * 15_000 + b"c: \xc3\xa9\r\n\r\nbody\r\n",
]

#: Lines and their ends, in any order.
texts = st.lists(st.sampled_from([b"\r\n", b"\n", b"\r", b"a", b"\xc3\xa9", b"a: b\r\n", b"."]),
                 max_size=12).map(b"".join)


class Pipe(io.BytesIO):
    """A file that cannot be read twice, and gives little at a time."""

    def seekable(self) -> bool:
        return False

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size or 1, 7))


def reference(message: bytes) -> Form:
    """The form of *message*, found out the simple way."""
    header = re.split(rb"(?:\r?\n|\A)\r?\n", message, maxsplit=1)[0]
    ended = not message or message.endswith(b"\r\n")
    return Form(len(message) + (0 if ended else 2), not message.isascii(),
                not header.isascii(), bool(re.search(rb"(?<!\r)\n|\r(?!\n)", message)))


def blocks_of(it: Source) -> list[bytes]:
    """All of its blocks."""
    async def collect() -> list[bytes]:
        return [block async for block in it.blocks()]

    return now(collect())


def now(coroutine: Any) -> Any:
    """What comes of a coroutine that waits for nothing."""
    results: list[Any] = []
    Deferred.fromCoroutine(coroutine).addBoth(results.append)
    return results[0]


def iterated(message: bytes) -> Iterator[bytes]:
    yield b""
    yield message[:3]
    yield message[3:]


async def later(message: bytes) -> AsyncIterator[bytes]:
    for block in iterated(message):
        yield block


#: Ways to give a message, and whether its form can be known beforehand.
WAYS: dict[str, tuple[Callable[[bytes], Any], bool]] = {
    "bytes": (bytes, True), "bytearray": (bytearray, True), "memoryview": (memoryview, True),
    "file": (io.BytesIO, True), "pipe": (Pipe, False), "iterator": (iterated, False),
    "asynchronous": (later, False),
}


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("way", WAYS)
def test_a_message_is_the_same_whatever_it_is_given_as(way: str, message: bytes) -> None:
    give, known = WAYS[way]
    it = Source(give(message))
    assert it.look() == (reference(message) if known else None)
    assert it.repeatable == known
    for _ in range(2 if known else 1):
        blocks = blocks_of(it)
        assert b"".join(blocks) == message
        assert b"" not in blocks


@given(texts, st.integers(1, 9))
def test_its_form_does_not_depend_on_its_blocks(message: bytes, octets: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "BLOCK_OCTETS", octets)
        assert Source(message).look() == reference(message)
        assert Source(io.BytesIO(message)).look() == reference(message)


@given(st.sampled_from(sorted(WAYS)), texts)
@example("asynchronous", b"a\r")
@example("pipe", b"a\r")
def test_line_ends_are_mended_in_whatever_it_is_given_as(way: str, message: bytes) -> None:
    it = Source(WAYS[way][0](message), normalize=True)
    form = it.look()
    assert form is None or not form.stray
    mended = b"".join(blocks_of(it))
    assert mended == re.sub(rb"\r\n|\r|\n", b"\r\n", message)
    assert form is None or form == reference(mended)


@given(texts, st.integers(1, 9))
def test_chunks_end_in_a_whole_line(message: bytes, octets: int) -> None:
    async def collect() -> list[tuple[bytes, bool]]:
        return [chunk async for chunk in Source(iter([message[n:n + 2] for n in range(
            0, len(message), 2)])).whole_lines(octets)]

    chunks = now(collect())
    assert [last for _, last in chunks] == [False] * (len(chunks) - 1) + [True]
    end = b"" if not message or message.endswith(b"\r\n") else b"\r\n"
    assert b"".join(chunk for chunk, _ in chunks) == message + end
    assert all(octets <= len(chunk) <= octets + 1 for chunk, _ in chunks[:-1])


def test_a_file_is_sent_from_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "message"
    path.write_bytes(b"From alice\na: b\r\n\r\nbody\r\n")
    with path.open("rb") as file:
        file.readline()
        it = Source(file)
        assert it.look() == reference(b"a: b\r\n\r\nbody\r\n")
        assert [b"".join(blocks_of(it)) for _ in range(2)] == [b"a: b\r\n\r\nbody\r\n"] * 2


def test_text_is_no_message() -> None:
    with pytest.raises(TypeError, match="encode it first"):
        Source("Subject: hello\r\n\r\n")
