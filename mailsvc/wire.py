"""Bytes on the wire, common to SMTP and POP3: command lines, dot-stuffing, proof of line ends.

Everything here works on blocks with a fixed handful of ``bytes`` calls each, never line by line,
and gives the same result however the input was cut (``tests/test_wire.py`` compares each class with
a line-at-a-time reference on random input and random cuts).

Only CRLF ends a line, and only CRLF "." CRLF ends data (RFC 5321 §2.3.8, §4.1.1.4).  What takes LF
for a line end finds a second message where a stricter neighbour saw none: SMTP smuggling,
CVE-2023-51764 and its kin.

The readers of data share one trick.  They hold back the longest tail that may be the beginning of
the pattern they look for, and nothing else; so no pattern is ever cut by a seam, no further state
is needed, and memory does not grow with the length of a line.  (Cutting blocks at their last CRLF
does the same at the price of a longest line.)
"""

from __future__ import annotations

import re

CRLF = b"\r\n"
#: The end of data and of a POP3 multi-line response.
END_OF_DATA = b"\r\n.\r\n"
_DOT = b"\r\n."
_DOT_FOUND = re.compile(rb"\r\n\.")

#: How long a text must be, and how far apart its dots, for it to be the faster way to look at
#: each of them.
_LONG, _APART = 8192, 2048

_DATA_TAILS = tuple(END_OF_DATA[:n] for n in (4, 3, 2, 1))


#: How much of a line that is too long is told.
_HEAD_OCTETS = 16


class LineTooLong(Exception):
    """A command line exceeded its limit; it has been skipped up to and including its CRLF.

    :ivar head: how it began.
    """

    def __init__(self, head: bytes) -> None:
        super().__init__(head)
        self.head = head


class LineReader:
    """Input that is read as command lines and, in between, as raw octets.

    *limit* is the longest line accepted, in octets with its CRLF.  A longer one is discarded as it
    arrives, so at most *limit* octets and one received chunk are ever held.
    """

    __slots__ = ("_data", "_discarding", "_limit", "_position")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = b""
        self._position = 0
        #: How the line began that is being skipped; empty when none is.
        self._discarding = b""

    def __len__(self) -> int:
        """Octets received and not yet taken."""
        return len(self._data) - self._position

    def feed(self, data: bytes) -> None:
        """Add received octets."""
        if self._position < len(self._data):
            self._data = self._data[self._position :] + data
        else:
            self._data = data
        self._position = 0

    def line(self) -> bytes | None:
        """Take the next line, without its CRLF; None when it is not complete yet.

        :raises LineTooLong: once for each line over the limit, when its end has arrived.
        """
        data, start = self._data, self._position
        end = data.find(CRLF, start)
        if end >= 0:
            self._position = end + 2
            if self._discarding or end + 2 - start > self._limit:
                head, self._discarding = self._discarding or data[start:start + _HEAD_OCTETS], b""
                raise LineTooLong(head)
            return data[start:end]
        # A line of which `limit` octets came without CRLF is too long already.  Its last octet
        # stays: it may be the CR of the CRLF.
        if self._discarding or len(data) - start >= self._limit:
            self._discarding = self._discarding or data[start:start + _HEAD_OCTETS]
            self._position = max(start, len(data) - 1)
        return None

    def take(self) -> bytes:
        """Take all that was received, as it is."""
        data = self._data[self._position :]
        self._data = b""
        self._position = 0
        return data

    def unread(self, data: bytes) -> None:
        """Put back *data*, the end of what was just taken."""
        self._data = data

    def clear(self) -> None:
        """Forget everything received, a half line included (RFC 3207 §4.2)."""
        self._data = b""
        self._position = 0
        self._discarding = b""


class DotReader:
    """The text of DATA: dot-stuffed lines up to CRLF "." CRLF (RFC 5321 §4.5.2).

    ``feed`` until ``rest`` is not None.  The blocks it returns, joined, are the message: dots
    unstuffed, its last CRLF kept, never cut between a CR and its LF.
    """

    __slots__ = ("_held", "_started", "rest")

    def __init__(self) -> None:
        # The CRLF that ended the DATA command begins the first line: a lone dot right after it is
        # an empty message (RFC 5321 §4.1.1.4).
        self._held = CRLF
        self._started = False
        #: What came behind the end of data; None before the end was seen.
        self.rest: bytes | None = None

    def feed(self, data: bytes) -> bytes:
        """Take a block of input and return a block of the message, perhaps empty."""
        data = self._held + data
        # RFC 5321 §4.5.2: behind each CRLF "." there is the end of data, or text that it stuffs.
        # One split finds both; a search for each would take three times as long.
        parts = data.split(_DOT)
        last = len(parts) - 1
        # Where a part is empty, the CRLF that ends the data has begun the next one's CRLF ".".
        end = next((n for n, part in enumerate(parts)
                    if n and (part.startswith(CRLF) or (not part and n < last))), 0)
        if end:
            self.rest = _DOT.join(parts[end:])[2:]
            data = CRLF.join(parts[:end]) + CRLF
        else:
            self._held = next((tail for tail in _DATA_TAILS if data.endswith(tail)), b"")
            data = CRLF.join(parts)
            if self._held:
                # What is held back of it has lost its dot, if it had one.
                data = data[: -len(self._held.replace(_DOT, CRLF))]
        if data and not self._started:
            self._started = True
            return data[2:]
        return data


class ChunkReader:
    """The text of BDAT chunks (RFC 3030 §2): as sent, but never cut between a CR and its LF."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Take a block of input and return a block of the message, perhaps empty."""
        data = self._held + data
        self._held = b""
        if data.endswith(b"\r"):
            self._held = b"\r"
            return data[:-1]
        return data

    def finish(self) -> bytes:
        """What is still held when the last chunk has ended: a stray CR, or nothing."""
        held, self._held = self._held, b""
        return held


class LineProof:
    """Proof that a message consists of lines: no CR without LF, no LF without CR, none too long.

    Feed it blocks that are never cut between a CR and its LF.  *longest* is the greatest number of
    octets in a line, CRLF counted; 0 for no limit.
    """

    __slots__ = ("_longest", "_open", "ends_in_crlf", "stray", "too_long")

    def __init__(self, longest: int = 0) -> None:
        self._longest = longest
        self._open = 0
        #: Whether a bare CR or LF was seen.
        self.stray = False
        #: Whether a line was longer than allowed.
        self.too_long = False
        #: Whether the message so far is empty or ends in CRLF.
        self.ends_in_crlf = True

    def feed(self, block: bytes) -> None:
        """Look at one block."""
        if not block:
            return
        # All CR and LF belong to a CRLF when there are twice as many as of these.
        if len(block) - len(block.translate(None, CRLF)) != 2 * block.count(CRLF):
            self.stray = True
        self.ends_in_crlf = block.endswith(CRLF)
        if self._longest:
            self._measure(block)

    def _measure(self, block: bytes) -> None:
        room = self._longest - 2
        first, *others = block.split(CRLF)
        self._open += len(first)
        if self._open > room or (others and max(map(len, others)) > room):
            self.too_long = True
        if others:
            self._open = len(others[-1])


class DotStuffer:
    """A message made ready for the wire: dots stuffed, terminated (RFC 5321 §4.5.2, RFC 1939 §3).

    The message comes in blocks cut anywhere, its lines ending in CRLF.
    """

    __slots__ = ("_held", "_started")

    def __init__(self) -> None:
        # The CRLF of the line before the message; a dot right behind it needs stuffing.
        self._held = CRLF
        self._started = False

    def feed(self, block: bytes) -> bytes:
        """Take a block of the message and return a block for the wire, perhaps empty."""
        if not block:
            return b""
        block = self._held + block
        self._held = CRLF if block.endswith(CRLF) else b"\r" if block.endswith(b"\r") else b""
        if self._held:
            block = block[: -len(self._held)]
        block = _stuffed(block)
        if block and not self._started:
            self._started = True
            return block[2:]
        return block

    def finish(self) -> bytes:
        """The end: CRLF if the message lacks one, then the dot.  Call once."""
        if not self._started:
            # An empty message: the CRLF held is not its own.
            return b".\r\n"
        return (self._held if self._held == CRLF else self._held + CRLF) + b".\r\n"


def dot_stuffed(text: bytes) -> bytes:
    """A whole message as :class:`DotStuffer` makes it ready, its end included."""
    end = b".\r\n" if text.endswith(CRLF) or not text else END_OF_DATA
    first = b"." if text.startswith(b".") else b""
    return b"".join((first, _stuffed(text), end))


def _stuffed(text: bytes) -> bytes:
    """*text* with another dot before each that follows a CRLF in it."""
    # One octet is found thirty times as fast as three together, and what is long has few dots:
    # base64 has none.
    parts = []
    start = at = 0
    for _ in range((len(text) - _LONG) // _APART):
        at = text.find(b".", at)
        if at < 0:
            break
        if text[at - 2 : at] == CRLF:
            parts.append(text[start:at])
            start = at
        at += 1
    rest = text[start:] if start else text
    parts.append(_DOT_FOUND.sub(b"\r\n..", rest) if at >= 0 else rest)
    return b".".join(parts)


class LineEnds:
    """Makes every bare CR and bare LF of a text a CRLF.  It comes in blocks cut anywhere."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def feed(self, block: bytes) -> bytes:
        """Take a block and return a block, perhaps empty."""
        block = self._held + block
        self._held = b""
        if block.endswith(b"\r"):
            self._held = b"\r"
            block = block[:-1]
        ends = block.count(CRLF)
        if block.count(b"\n") != ends or block.count(b"\r") != ends:
            block = block.replace(CRLF, b"\n").replace(b"\r", b"\n").replace(b"\n", CRLF)
        return block

    def finish(self) -> bytes:
        """What is still held when the text has ended."""
        held, self._held = self._held, b""
        return CRLF if held else b""
