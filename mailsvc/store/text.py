"""The text of a stored message as POP3 sends it: lines end in CRLF, and TOP cuts after some.

What SMTP delivered has CRLF already; what other programs put into a maildir mostly ends its lines
in LF.  :class:`CanonicalText` turns either into what RETR sends and counts it, so that the sizes of
STAT and LIST and the octets of RETR come from one rule:

* LF that does not follow CR becomes CRLF; CRLF stays; a CR elsewhere is data;
* a text that does not end in a line end gets one; an empty text stays empty.

Both classes take blocks cut anywhere, work with a fixed handful of ``bytes`` calls on each, and
hold back at most one octet.  A block that needs no change is passed on as the same object.
"""

from __future__ import annotations

_CR = 13


class CanonicalText:
    """Gives the lines of a text CRLF ends.

    :param unchanged: whether its size tells that there is nothing to do; then one look, at the
        first block, is enough to see that it tells the truth.
    :ivar octets: how many have been given out so far; after :meth:`end`, the size of the message.
    """

    __slots__ = ("_held", "_open", "_unchanged", "octets")

    def __init__(self, unchanged: bool = False) -> None:
        self.octets = 0
        self._unchanged = unchanged
        self._held = b""  # a CR that ended a block: the next block says whether an LF follows
        self._open = False  # whether the last octet given out was not a line end

    def feed(self, block: bytes) -> bytes:
        """Take a block; return what of the text is settled by it."""
        if self._unchanged and self.octets and block:
            self._open = not block.endswith(b"\n")
            self.octets += len(block) + len(self._held)
            block, self._held = self._held + block, b""
            return block
        if self._held:
            block = self._held + block
        if block.endswith(b"\r"):
            self._held = b"\r"
            block = block[:-1]
        else:
            self._held = b""
        if block.count(b"\n") != block.count(b"\r\n"):
            block = block.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
            self._unchanged = False
        if block:
            self._open = not block.endswith(b"\n")
            self.octets += len(block)
        return block

    def end(self) -> bytes:
        """Return what is missing at the end of the text; nothing may be fed afterwards."""
        rest = self._held + b"\r\n" if self._held or self._open else b""
        self.octets += len(rest)
        return rest


def canonical(text: bytes, unchanged: bool = False) -> bytes:
    """The whole *text* as :class:`CanonicalText` gives it out.

    :param unchanged: as there; the look is at the first line's end and the last's.
    """
    if text.endswith(b"\r\n"):
        if unchanged:
            if text[text.find(b"\n") - 1] == _CR:
                return text
        elif text.count(b"\n") == text.count(b"\r\n"):
            return text
    lines = CanonicalText()
    return lines.feed(text) + lines.end()


class Top:
    """Cuts canonical text as TOP does (RFC 1939 §7): header, empty line, some lines of the body.

    A text without an empty line is all header.

    :param lines: how many lines of the body, 0 or more.
    :ivar complete: whether all that TOP wants has been given out.
    """

    __slots__ = ("_lines", "_seen", "complete")

    def __init__(self, lines: int) -> None:
        self.complete = False
        self._lines = lines
        # The last octets of the header so far, as many as may belong to the CRLF CRLF at its end.
        # At first the line end that is thought before the text: a text may begin with the empty
        # line.  Empty from the end of the header on.
        self._seen = b"\r\n"

    def cut(self, block: bytes) -> bytes:
        """Return what of *block* belongs to the answer; nothing once :attr:`complete`."""
        if self.complete:
            return b""
        start = 0
        if self._seen:
            joined = self._seen + block
            at = joined.find(b"\r\n\r\n")
            if at < 0:
                self._seen = joined[-3:]
                return block
            start = at + 4 - len(self._seen)
            self._seen = b""
        count = block.count(b"\n", start)
        if count < self._lines:
            self._lines -= count
            return block
        self.complete = True
        for _ in range(self._lines):
            start = block.index(b"\n", start) + 1
        return block[:start]
