"""The block scanners of ``mailsvc.wire`` and ``mailsvc.trace`` against slow references.

    python -m tests.fuzz_scanner [SPLITS [SEED]]

makes random messages rich in CR, LF and dots, cuts each one at random, gives the pieces to the
scanners, and stops at the first difference from a reference that takes one line at a time.  Without
SPLITS it makes a million of them; SEED, printed at the start, repeats a run.

``tests/test_wire.py`` imports the references and the comparisons from here.
"""

from __future__ import annotations

import itertools
import random
import sys
import time
from collections.abc import Iterable, Iterator

from mailsvc.trace import HopCount
from mailsvc.wire import (
    CRLF,
    ChunkReader,
    DotReader,
    DotStuffer,
    LineProof,
    LineReader,
    LineTooLong,
    dot_stuffed,
)

#: What messages are made of; pairs and patterns that matter come up often by themselves.
PIECES = (b"\r\n", b".", b"\r\n.", b"\r\nReceived:", b"\0", b"a", b"B:", b" ", b"\r", b"\n")
#: How many of them hold no stray CR or LF.
CLEAN = 8

# ---- the references: one line at a time, from the whole input ----


def text_of_data(stream: bytes) -> tuple[bytes, bytes | None]:
    """What DATA makes of *stream*: the message, and what lies behind its end (None: no end)."""
    message = b""
    while True:
        line, ended, stream = stream.partition(CRLF)
        if not ended:
            return message + line.removeprefix(b"."), None
        if line == b".":
            return message, stream
        message += line.removeprefix(b".") + CRLF


def text_for_the_wire(message: bytes) -> bytes:
    """*message* with its dots stuffed, its last line ended, and the terminator."""
    lines = message.split(CRLF)
    if not lines[-1]:
        del lines[-1]
    return b"".join((b"." + line if line[:1] == b"." else line) + CRLF for line in lines) + b".\r\n"


def faults(message: bytes, longest: int) -> tuple[bool, bool, bool]:
    """Of *message*: whether it has a stray CR or LF, a line too long, a last line that is ended."""
    lines = message.split(CRLF)
    stray = any(octet in line for line in lines for octet in (b"\r", b"\n"))
    # The last piece is empty if the message ends in CRLF, and then no line at all.
    ended = not lines[-1]
    too_long = longest > 0 and any(
        len(line) + 2 > longest for line in (lines[:-1] if ended else lines)
    )
    return stray, too_long, ended


def command_lines(stream: bytes, limit: int) -> list[bytes | None]:
    """The complete lines of *stream*; None for each one that is too long."""
    lines = stream.split(CRLF)[:-1]
    return [line if len(line) + 2 <= limit else None for line in lines]


def received_fields(message: bytes) -> int:
    """How many complete lines of the header of *message* begin a Received field."""
    count = 0
    for line in message.split(CRLF)[:-1]:
        if not line:
            break
        name, colon, _ = line.partition(b":")
        bare = name.rstrip(b" \t")
        count += colon == b":" and bare.lower() == b"received" and len(name) - len(bare) <= 50
    return count


# ---- the comparisons: each fails with AssertionError ----


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """*data* in pieces, cut at *places*; places outside are ignored, empty pieces kept."""
    edges = [0, *sorted(place for place in places if 0 <= place <= len(data)), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def every_cut(data: bytes) -> Iterator[list[bytes]]:
    """*data* in pieces, cut in each of the 2**(n-1) ways."""
    for chosen in range(1 << max(len(data) - 1, 0)):
        yield cut(data, [place for place in range(1, len(data)) if chosen >> (place - 1) & 1])


def check_dot_reader(pieces: list[bytes]) -> list[bytes]:
    """The text of DATA from *pieces*; returns the blocks."""
    reader = DotReader()
    blocks = []
    taken = 0
    message, rest = text_of_data(b"".join(pieces))
    for number, piece in enumerate(pieces):
        blocks.append(reader.feed(piece))
        taken += len(piece)
        if reader.rest is not None:
            assert rest is not None, "an end that is none"
            assert reader.rest + b"".join(pieces[number + 1 :]) == rest
            assert b"".join(blocks) == message
            break
        so_far = text_of_data(b"".join(pieces[: number + 1]))[0]
        given = b"".join(blocks)
        # RFC 5321 §4.1.1.4: CRLF "." CR at the most may be the beginning of the end.
        assert so_far.startswith(given), "a block that was withdrawn"
        assert len(so_far) - len(given) <= 4, "more held back than the beginning of an end"
    else:
        assert rest is None, "the end was missed"
    assert_no_line_end_is_cut(blocks, message)
    return blocks


def assert_no_line_end_is_cut(blocks: list[bytes], whole: bytes) -> None:
    """Whether no block of *whole* ends between a CR and its LF."""
    place = 0
    for block in blocks:
        place += len(block)
        assert not (block[-1:] == b"\r" and whole[place : place + 1] == b"\n"), "a CRLF cut in two"


def check_chunk_reader(pieces: list[bytes]) -> list[bytes]:
    """The text of chunks from *pieces*; returns the blocks."""
    reader = ChunkReader()
    blocks = [reader.feed(piece) for piece in pieces]
    held = reader.finish()
    assert held in (b"", b"\r")
    blocks.append(held)
    whole = b"".join(pieces)
    assert b"".join(blocks) == whole
    assert_no_line_end_is_cut(blocks[:-1], whole)
    assert reader.finish() == b"", "finish gives what is held once"
    return blocks


def check_line_proof(blocks: list[bytes], longest: int) -> None:
    """Blocks that are never cut between a CR and its LF."""
    proof = LineProof(longest)
    for block in blocks:
        proof.feed(block)
    expected = faults(b"".join(blocks), longest)
    assert (proof.stray, proof.too_long, proof.ends_in_crlf) == expected


def check_hop_count(blocks: list[bytes]) -> None:
    """Blocks that are never cut between a CR and its LF, of a message without stray ones."""
    count = HopCount()
    for block in blocks:
        count.feed(block)
    assert count.hops == received_fields(b"".join(blocks))


def check_dot_stuffer(pieces: list[bytes]) -> bytes:
    """A message from *pieces*, made ready for the wire and read back; returns the wire's octets."""
    stuffer = DotStuffer()
    blocks = [stuffer.feed(piece) for piece in pieces]
    blocks.append(stuffer.finish())
    message, wire = b"".join(pieces), b"".join(blocks)
    assert wire == text_for_the_wire(message) == dot_stuffed(message)
    reader = DotReader()
    back = b"".join(reader.feed(block) for block in blocks)
    ended = not message or message.endswith(CRLF)
    assert back == (message if ended else message + CRLF)
    assert reader.rest == b""
    return wire


def check_line_reader(pieces: list[bytes], limit: int) -> None:
    """Command lines from *pieces*."""
    reader = LineReader(limit)
    found: list[bytes | None] = []
    for number, piece in enumerate(pieces):
        before = len(reader)
        reader.feed(piece)
        assert len(reader) == before + len(piece)
        for _ in range(len(reader) + 1):
            try:
                line = reader.line()
            except LineTooLong:
                found.append(None)
                continue
            if line is None:
                break
            found.append(line)
        assert found == command_lines(b"".join(pieces[: number + 1]), limit)
        assert len(reader) < limit, "an incomplete line is held beyond the limit"


def check(pieces: list[bytes], limit: int) -> None:
    """All scanners on *pieces*; *limit* is the longest line."""
    blocks = check_dot_reader(pieces)
    check_line_proof(blocks, limit)
    blocks = check_chunk_reader(pieces)
    # What the last chunk holds back goes to the proof together with nothing else.
    check_line_proof(blocks, 0)
    if not faults(b"".join(pieces), 0)[0]:
        check_hop_count(blocks)
    check_dot_stuffer(pieces)
    check_line_reader(pieces, limit)


def fuzz(splits: int, seed: int) -> None:
    """Check *splits* random messages, each cut at random."""
    chance = random.Random(seed)
    for _ in range(splits):
        kinds = PIECES if chance.random() < 0.7 else PIECES[:CLEAN]
        stream = b"".join(chance.choices(kinds, k=chance.randrange(14)))
        if chance.random() < 0.5:
            stream += b"\r\n.\r\n" + chance.choice(PIECES)
        places = [chance.randrange(len(stream) + 1) for _ in range(chance.randrange(6))]
        pieces, limit = cut(stream, places), chance.randrange(3, 12)
        try:
            check(pieces, limit)
        except AssertionError as error:
            error.add_note(f"pieces={pieces!r} limit={limit} seed={seed}")
            raise


def main() -> None:
    """Run as a program."""
    splits = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().getrandbits(32)
    print(f"{splits} splits, seed {seed}", flush=True)
    started = time.monotonic()
    fuzz(splits, seed)
    print(f"no difference in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
