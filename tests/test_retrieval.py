"""Messages on their way out of the maildir store: pace, failures, RETR's and TOP's text."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred

from mailsvc.errors import TemporaryFailure
from mailsvc.store.maildir import MaildirStore
from mailsvc.store.retrieval import AT_ONCE, BLOCK, MemoryBlocks, Retrieval
from mailsvc.store.text import CanonicalText, Top, canonical
from tests.stores import ALICE, Sink, descriptors, home, pause, put, read
from tests.system_calls import SystemCalls

MESSAGE = b"Subject: test\r\n\r\nbody\r\n"
LARGE = b"Subject: large\r\n\r\n" + b"".join(b"%07d %s\r\n" % (n, b"x" * (n % 90))
                                           for n in range(12_000))
LF = b"Subject: a\n\nbody\n"


# ---- reading ----------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", LF, LARGE, LARGE + b"end\r", b"x" * (AT_ONCE + 1)],
                         ids=["empty", "short", "long", "long, CR at the end", "one line"])
@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EOPNOTSUPP], ids=errno.errorcode.get)
@pytest_twisted.ensureDeferred
async def test_what_is_not_in_the_kernels_cache_is_read_in_a_thread(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls, content: bytes, error: int
) -> None:
    put(home(tmp_path), "new/1.a.h", content)
    sent = content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    if content and not content.endswith(b"\n"):
        sent += b"\r\n"
    calls.fault = lambda _, call: error if call.name == "preadv" else None
    maildrop = await store.open_maildrop(ALICE)
    before = descriptors()
    assert await read(maildrop, 1) == sent
    assert descriptors() == before
    assert list(maildrop.sizes) == [len(sent)]
    maildrop.release()


@pytest.mark.parametrize("size", [AT_ONCE, 2 * AT_ONCE + 1])
@pytest_twisted.ensureDeferred
async def test_what_is_read_at_once(
    store: MaildirStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    # As if everything were in the kernel's cache, which not every file system can tell.
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at, flags: real(fd, buffers, at))
    content = b"x" * size
    put(home(tmp_path), f"new/1.a.h,W={size}", content)
    maildrop = await store.open_maildrop(ALICE)
    sink = Sink(patient=True)
    reading = maildrop.read(1, sink)
    if size == AT_ONCE:
        assert reading.called
        assert sink.blocks == [content + b"\r\n"]
        assert sink.registrations == 0
    else:
        assert sink.registrations == 1
        assert sink.blocks == []
        while not reading.called:
            sink.ask()
            await pause()
        assert [len(block) for block in sink.blocks] == [BLOCK, BLOCK, 3]
    maildrop.release()


def test_blocks_in_memory() -> None:
    whole = MemoryBlocks(b"x" * AT_ONCE)
    assert (len(whole.read()), whole.left, whole.read()) == (AT_ONCE, 0, b"")
    cut = MemoryBlocks(bytes(range(256)) * 1025)
    blocks = [cut.read() for _ in range(4)]
    assert [len(block) for block in blocks] == [BLOCK] * 2 + [256, 0]
    assert b"".join(blocks) == bytes(range(256)) * 1025
    assert len(MemoryBlocks(b"x" * (AT_ONCE + 1)).read()) == BLOCK


@pytest_twisted.ensureDeferred
async def test_top_reads_no_more_than_it_sends(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls
) -> None:
    put(home(tmp_path), "new/1.a.h,W=5", LARGE)
    maildrop = await store.open_maildrop(ALICE)
    assert await read(maildrop, 1, 3) == LARGE[: LARGE.index(b"0000003")]
    assert len(calls.of("preadv")) == 1
    maildrop.release()


@pytest_twisted.ensureDeferred
async def test_what_is_at_hand(store: MaildirStore, tmp_path: Path,
                               monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (
            ("1.a.h,S=6,W=6", b"one\n\r\n"), ("2.a.h,S=4,W=6", b"a\nb\n"), ("3.a.h,W=4", b"ab\r\n"),
            ("4.a.h,S=9,W=9", b"shorter"), ("5.a.h,S=2,W=2", b"longer"), ("6.a.h,S=1,W=1", b"x"),
            ("7.a.h,S=131070,W=131072", b"x" * 131070), ("8.a.h,S=131071,W=131073", b"")):
        path = put(home(tmp_path), "new/" + name, content)
        if name.startswith("6"):
            gone = path
    maildrop = await store.open_maildrop(ALICE)
    os.unlink(gone)
    real = os.preadv
    # As if everything were in the kernel's cache, which not every file system can tell.
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at, flags: real(fd, buffers, at))
    descriptors = len(os.listdir("/proc/self/fd"))
    assert list(map(maildrop.text, range(1, 9))) == [
        b"one\r\n\r\n", b"a\r\nb\r\n", b"ab\r\n", None, None, None, b"x" * 131070 + b"\r\n",
        None]

    def not_cached(*_: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr(os, "preadv", not_cached)
    assert maildrop.text(1) is None
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert await read(maildrop, 1) == b"one\r\n\r\n"
    maildrop.release()


@pytest.mark.parametrize("thread", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_file_cut_short_meanwhile(
    store: MaildirStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thread: bool
) -> None:
    path = put(home(tmp_path), f"new/1.a.h,W={len(LARGE)}", LARGE)
    maildrop = await store.open_maildrop(ALICE)
    sink = Sink(patient=True)
    reading = maildrop.read(1, sink)
    sink.ask()
    os.truncate(path, BLOCK + 100)
    while not reading.called:
        sink.ask()
        await pause()
    # As if it were whole nobody may have it.
    with pytest.raises(TemporaryFailure):
        await reading
    assert LARGE.startswith(sink.data) and len(sink.data) < BLOCK + 100 + len(LARGE)
    assert sink.producer is None
    if thread:
        real = os.fstat
        monkeypatch.setattr(os, "fstat", lambda fd: os.stat_result(
            [*real(fd)[:6], 50_000, *real(fd)[7:]]))
        os.truncate(path, 100)
        with pytest.raises(TemporaryFailure):
            await read(maildrop, 1)
    maildrop.release()


@pytest.mark.parametrize("size", [100, 500_000])
@pytest_twisted.ensureDeferred
async def test_a_read_error(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls, monkeypatch: pytest.MonkeyPatch,
    size: int, logged: list[dict[str, Any]],
) -> None:
    put(home(tmp_path), f"new/1.a.h,W={size}", b"x" * size)
    maildrop = await store.open_maildrop(ALICE)
    before = descriptors()
    calls.fault = lambda _, call: errno.EAGAIN if call.name == "preadv" else None

    def pread(fd: int, size: int, position: int) -> bytes:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "pread", pread)
    sink = Sink()
    with pytest.raises(TemporaryFailure):
        await maildrop.read(1, sink)
    assert sink.blocks == []
    assert sink.producer is None
    assert descriptors() == before
    assert [event for event in logged if event.get("errno") == "EIO"]
    maildrop.release()


@pytest_twisted.ensureDeferred
async def test_a_reading_cancelled_while_a_thread_reads(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls
) -> None:
    """The descriptor is closed, but not under the thread's hands."""
    put(home(tmp_path), f"new/1.a.h,W={len(LARGE)}", LARGE)
    maildrop = await store.open_maildrop(ALICE)
    before = descriptors()
    calls.fault = lambda _, call: errno.EAGAIN if call.name == "preadv" else None
    sink = Sink(patient=True)
    reading = maildrop.read(1, sink)
    sink.ask()
    sink.ask()
    reading.cancel()
    assert descriptors() == before + 1
    with pytest.raises(CancelledError):
        await reading
    for _ in range(100):
        if descriptors() == before:
            break
        await pause(0.01)
    assert descriptors() == before
    assert sink.blocks == []
    maildrop.release()


@pytest_twisted.ensureDeferred
async def test_a_reading_cancelled_while_the_file_is_looked_for(
    store: MaildirStore, tmp_path: Path
) -> None:
    path = put(home(tmp_path), "new/1.a.h,S=17,W=20", LF)
    maildrop = await store.open_maildrop(ALICE)
    before = descriptors()
    path.rename(home(tmp_path) / "cur/1.a.h,S=17,W=20:2,S")
    sink = Sink()
    reading = maildrop.read(1, sink)
    assert not reading.called
    reading.cancel()
    with pytest.raises(CancelledError):
        await reading
    await store.stop()
    assert descriptors() <= before
    assert sink.blocks == []
    maildrop.release()


class Source:
    """Blocks that come when the test lets them."""

    def __init__(self, *blocks: bytes) -> None:
        self.waiting = list(blocks)
        self.answers: list[Deferred[bytes]] = []
        self.left = AT_ONCE + 1
        self.closed = 0

    def read(self) -> Deferred[bytes]:
        self.answers.append(Deferred())
        return self.answers[-1]

    def answer(self) -> None:
        block = self.waiting.pop(0)
        self.left = AT_ONCE if self.waiting else 0
        self.answers[-1].callback(block)

    def close(self) -> None:
        self.closed += 1


@pytest_twisted.ensureDeferred
async def test_asking_again_while_a_block_is_read_asks_for_no_more() -> None:
    """A TLS connection asks its pull producers over and over until it is full."""
    source = Source(b"one", b"two", b"three")
    sink = Sink(patient=True)
    finished = Retrieval(source, sink, None).start()
    assert source.answers == []
    for count, text in enumerate((b"one", b"two"), 1):
        for _ in range(3):
            sink.ask()
        assert len(source.answers) == count
        source.answer()
        assert sink.blocks[-1] == text
        assert len(source.answers) == count
    sink.ask()
    source.answer()
    await finished
    assert sink.blocks == [b"one", b"two", b"three\r\n"]
    assert source.closed == 1


@pytest_twisted.ensureDeferred
async def test_a_block_that_gives_nothing_is_followed_by_the_next() -> None:
    """The consumer would wait for ever: it was given nothing and does not ask again."""
    source = Source(b"\r", b"\n", b"")
    sink = Sink(patient=True)
    finished = Retrieval(source, sink, None).start()
    sink.ask()
    source.answer()
    assert sink.blocks == []
    assert len(source.answers) == 2
    source.answer()
    assert sink.blocks == [b"\r\n"]
    assert len(source.answers) == 2
    sink.ask()
    source.answer()
    await finished
    assert sink.blocks == [b"\r\n"]


@pytest_twisted.ensureDeferred
async def test_a_consumer_that_asks_from_within_write() -> None:
    class Greedy(Sink):
        def write(self, data: bytes) -> None:
            super().write(data)
            self.ask()

    sink = Greedy(patient=True)
    finished = Retrieval(MemoryBlocks(LARGE), sink, None).start()
    sink.ask()
    await finished
    assert sink.data == LARGE
    source = Source(b"one", b"two")
    sink = Greedy(patient=True)
    finished = Retrieval(source, sink, None).start()
    sink.ask()
    source.answer()
    source.answer()
    await finished
    assert sink.data == b"onetwo\r\n"


@pytest_twisted.ensureDeferred
async def test_a_consumer_that_stops_from_within_write() -> None:
    class Fickle(Sink):
        def write(self, data: bytes) -> None:
            super().write(data)
            assert self.producer is not None
            self.producer.stopProducing()

    sink = Fickle(patient=True)
    finished = Retrieval(MemoryBlocks(LARGE), sink, None).start()
    sink.ask()
    with pytest.raises(CancelledError):
        await finished
    assert len(sink.blocks) == 1
    # A consumer that has ended it itself is not told to.
    assert sink.producer is not None


@pytest_twisted.ensureDeferred
async def test_a_block_that_comes_too_late_is_dropped() -> None:
    source = Source(b"one", b"two")
    sink = Sink(patient=True)
    finished = Retrieval(source, sink, None).start()
    sink.ask()
    assert sink.producer is not None
    sink.producer.stopProducing()
    source.answer()
    with pytest.raises(CancelledError):
        await finished
    assert sink.blocks == []
    assert len(source.answers) == 1
    source = Source(b"one")
    finished = Retrieval(source, Sink(), None).start()
    finished.cancel()
    source.answers[0].errback(OSError(errno.EIO, "broken"))
    with pytest.raises(CancelledError):
        await finished


# ---- text -------------------------------------------------------------------


def sent_by_line(content: bytes, lines: int | None) -> bytes:
    """A slow, plain statement of what RETR and TOP send."""
    result = []
    rest = content
    while rest:
        line, end, rest = rest.partition(b"\n")
        if end and line.endswith(b"\r"):
            line = line[:-1]
        result.append(line + b"\r\n")
    if lines is not None and b"\r\n" in result:
        result = result[: result.index(b"\r\n") + 1 + lines]
    return b"".join(result)


texts = st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"\r\n\r\n", b".", b"ab", b"\0"]),
                 max_size=24).map(b"".join)


@given(content=texts, cuts=st.lists(st.integers(0, 48), max_size=10),
       lines=st.none() | st.integers(0, 8))
def test_text_agrees_with_a_line_at_a_time(
    content: bytes, cuts: list[int], lines: int | None
) -> None:
    text = CanonicalText()
    top = Top(lines) if lines is not None else None
    sent = b""
    edges = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    for start, end in itertools.pairwise(edges):
        block = text.feed(content[start:end])
        sent += top.cut(block) if top is not None else block
    block = text.end()
    sent += top.cut(block) if top is not None else block
    assert sent == sent_by_line(content, lines)
    assert text.octets == len(sent_by_line(content, None))


@pytest.mark.parametrize("content", [
    b"A: b\r\nC: d\r\n\r\nx\r\n\r\ny\r\n", b"\r\nx\r\ny\r\n", b"\r\n\r\nx", b"A: b\n\nx\n\ny",
    b"\n\nx\r\r\n\r", b"A\r\r\n\r\nx\n", b"A\r\n\r\rx\r\n\r\ny"])
@pytest.mark.parametrize("lines", [None, 0, 1, 2, 3])
def test_wherever_the_blocks_are_cut(content: bytes, lines: int | None) -> None:
    expected = sent_by_line(content, lines)
    whole = sent_by_line(content, None)
    for first, second in itertools.combinations_with_replacement(range(len(whole) + 1), 2):
        text = CanonicalText()
        top = Top(lines) if lines is not None else None
        sent = b""
        for block in (content[:first], content[first:second], content[second:], None):
            ready = text.end() if block is None else text.feed(block)
            sent += ready if top is None else top.cut(ready)
        assert sent == expected
        assert text.octets == len(whole)
        if lines is not None:
            # Whoever gave the lines their ends may cut them anywhere, too.
            top = Top(lines)
            blocks = (whole[:first], whole[first:second], whole[second:])
            assert b"".join(map(top.cut, blocks)) == expected
            assert not top.complete or expected.count(b"\n") >= lines + 1


@given(content=texts, first=st.integers(0, 48), second=st.integers(0, 48))
def test_text_whose_size_tells_that_it_is_right(content: bytes, first: int, second: int) -> None:
    whole = sent_by_line(content, None)
    first, second = sorted((min(first, len(whole)), min(second, len(whole))))
    text = CanonicalText(unchanged=True)
    blocks = whole[:first], whole[first:second], whole[second:]
    assert b"".join(map(text.feed, blocks)) + text.end() == whole
    assert text.octets == len(whole)


def test_text_whose_size_tells_a_lie() -> None:
    text = CanonicalText(unchanged=True)
    assert text.feed(b"a\nb") + text.feed(b"\nc\r") + text.feed(b"\nd") + text.end() == (
        b"a\r\nb\r\nc\r\nd\r\n")
    # One that shows later than in the first block is passed on.
    text = CanonicalText(unchanged=True)
    assert text.feed(b"a\r\n") + text.feed(b"b\nc") + text.end() == b"a\r\nb\nc\r\n"


@pytest.mark.parametrize(("content", "sent"), [
    (b"", b""), (b"a\r\n", b"a\r\n"), (b"\r\n", b"\r\n"), (b"a\n\r\n", b"a\r\n\r\n"),
    (b"\n\r\n", b"\r\n\r\n"), (b"a\r\nb", b"a\r\nb\r\n"), (b"a\r\nb\n", b"a\r\nb\r\n"),
    # Only the first line's end and the last's are looked at.
    (b"a\r\nb\nc\r\n", b"a\r\nb\nc\r\n")])
def test_a_whole_text_whose_size_tells_a_lie(content: bytes, sent: bytes) -> None:
    assert canonical(content, unchanged=True) == sent
    assert canonical(content) == sent_by_line(content, None)


def test_text_that_is_right_is_not_copied() -> None:
    text = CanonicalText()
    assert text.feed(MESSAGE) is MESSAGE
    assert text.end() == b""


def test_top_knows_when_it_has_enough() -> None:
    top = Top(1)
    assert top.cut(b"A: b\r\n") == b"A: b\r\n"
    assert not top.complete
    assert top.cut(b"\r\nbo") == b"\r\nbo"
    assert not top.complete
    assert top.cut(b"dy\r\nmore\r\n") == b"dy\r\n"
    assert top.complete
    assert top.cut(b"more\r\n") == b""
    top = Top(0)
    assert top.cut(b"A: b\r\n\r\nbody") == b"A: b\r\n\r\n"
    assert top.complete
