"""Whether the headers in a message are ASCII: its own, and those of its parts.

What they hold beyond it is for hosts with SMTPUTF8 alone (RFC 6531 §3.2, RFC 6532 §3); a body that
is more than ASCII asks for 8BITMIME and nothing else.

A part begins behind a line that any multipart before it named as its delimiter (RFC 2046 §5.1.1),
be it nested wrongly; the text of message/rfc822 and message/global begins with a header.  Parts
that are encoded (base64) hide nothing beyond ASCII.

**Limits.**  So many lines are looked at, so many delimiters known, so long a type is understood,
and it has to name the boundary of a multipart.  Where one of these fails, all that follows is taken
for a header.
"""

from __future__ import annotations

import re

_LINES = 200_000
_DELIMITERS = 1000
_DELIMITER_OCTETS = 256
_FIELD_OCTETS = 8192

_TYPE_FIELD = re.compile(rb"content-type[ \t]*:", re.IGNORECASE)
_TYPE = re.compile(rb"\s*([a-z0-9!#$&^_.+-]+)\s*/\s*([a-z0-9!#$&^_.+-]+)", re.IGNORECASE)
_BOUNDARY = re.compile(rb';\s*boundary\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))',
                       re.IGNORECASE | re.DOTALL)
_MESSAGES = frozenset({b"message/rfc822", b"message/global"})


class HeaderScan:
    """One message: ``feed`` its blocks, cut anywhere, in order.

    :ivar ascii: whether all headers were, so far.
    """

    __slots__ = ("_delimiters", "_field", "_held", "_in_header", "_left", "_lost", "_nested",
                 "ascii")

    def __init__(self) -> None:
        self.ascii = True
        #: What was not looked at yet: a line whose end has not come.
        self._held = b""
        self._in_header = True
        #: The Content-Type field that is being read; empty when none is.
        self._field = b""
        #: Whether another header follows this one.
        self._nested = False
        #: The lines that begin a header, and whether that is a message's where no type is given
        #: (RFC 2046 §5.1.5, digest).
        self._delimiters: dict[bytes, bool] = {}
        self._left = _LINES
        self._lost = False

    def feed(self, block: bytes) -> bool:
        """Take a block; whether all headers were ASCII so far, after which nothing changes."""
        if not self.ascii:
            return False
        data, self._held = self._held + block, b""
        at = 0
        while at >= 0:
            if self._lost:
                self.ascii = data[at:].isascii()
                break
            at = self._line_of_header(data, at) if self._in_header else self._body(data, at)
        return self.ascii

    def _line_of_header(self, data: bytes, at: int) -> int:
        """Where to go on, or -1 where the data end."""
        end = data.find(b"\n", at) + 1
        line = data[at:end] if end else data[at:]
        if not line.isascii():
            self.ascii = False
            return -1
        if end:
            self._take(line[:-1].removesuffix(b"\r"))
            return end
        # More of it changes nothing.
        self._held = line[:_FIELD_OCTETS + 1]
        return -1

    def _body(self, data: bytes, at: int) -> int:
        """Likewise, for the text in front of the next delimiter, if there is one."""
        start = data.find(b"\n--", max(at - 1, 0))
        end = data.find(b"\n", start + 3) if start >= 0 else -1
        if end >= 0:
            self._delimits(data[start + 1:end])
            return end + 1
        if start < 0:
            self._held = next((tail for tail in (b"\n-", b"\n") if data.endswith(tail)), b"")
        elif len(data) - start > _DELIMITER_OCTETS + 4:
            # None of ours is as long, so the line may be forgotten.
            return start + 4
        else:
            self._held = data[start:]
        return -1

    def _take(self, line: bytes) -> None:
        """Do what a line of a header asks for."""
        if line.startswith(b"--") and self._delimits(line):
            return
        self._spend()
        if line[:1] in (b" ", b"\t"):
            if self._field and len(self._field) <= _FIELD_OCTETS:
                self._field += line
            return
        if self._field:
            self._typed(self._field)
            self._field = b""
        if not line:
            self._in_header, self._nested = self._nested, False
            return
        match = _TYPE_FIELD.match(line)
        if match is not None:
            self._field = b" " + line[match.end():]

    def _typed(self, field: bytes) -> None:
        """The type of what follows the header is that of *field*."""
        if len(field) > _FIELD_OCTETS:
            self._lost = True
            return
        match = _TYPE.match(field)
        if match is None:
            return
        main, kind = match[1].lower(), match[0].strip().lower()
        self._nested = kind in _MESSAGES
        if main != b"multipart":
            return
        found = _BOUNDARY.search(field)
        boundary = b"" if found is None else (
            found[2] or re.sub(rb"\\(.)", rb"\1", found[1], flags=re.DOTALL)).rstrip()
        if 0 < len(boundary) <= _DELIMITER_OCTETS and len(self._delimiters) < _DELIMITERS:
            self._delimiters[b"--" + boundary] = kind == b"multipart/digest"
        else:
            self._lost = True

    def _delimits(self, line: bytes) -> bool:
        """Whether *line* is a delimiter, behind which a header begins."""
        self._spend()
        nested = self._delimiters.get(line.rstrip())
        if nested is None:
            return False
        self._in_header, self._nested, self._field = True, nested, b""
        return True

    def _spend(self) -> None:
        self._left -= 1
        self._lost = self._lost or self._left < 0
