"""SMTP replies off the wire: octets in, replies out (RFC 5321 §4.2).

Strict, because a client that guesses where a reply ends, or which of two codes counts, can be led
to believe that a message was taken: lines end in CRLF alone, every line of a reply has the same
code, codes begin with 2 to 5.  What is something else raises :class:`Malformed` at once, not when
patience ends, and never takes more than its limits of memory.

**Leniency**, announced: any second digit (571 is common), a code without text, text in UTF-8, lines
longer than the 512 octets of §4.5.3.1.5.  Control characters in the text become "?".

The enhanced status code (RFC 2034) is taken out of the text where its class agrees with the code.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from mailsvc.errors import EnhancedStatus
from mailsvc.smtp.replies import Reply

#: The longest line, CRLF counted; the most lines of a reply, and octets in all.
LINE_OCTETS = 4_096
LINES = 200
REPLY_OCTETS = 65_536
#: Up to which length a line is remembered with the reply that it makes.
_USUAL = 128

_LINE = re.compile(rb"(?P<code>[2-5][0-9][0-9])(?P<more>[ -]|\Z)(?P<text>.*)", re.DOTALL)
_STATUS = re.compile(r"(?P<class>[245])\.(?P<subject>0|[1-9][0-9]{0,2})"
                     r"\.(?P<detail>0|[1-9][0-9]{0,2})(?:[ \t]+|\Z)")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


class Malformed(ValueError):
    """No reply; the text says what is wrong and quotes no more than a little of it."""


class ReplyReader:
    """Takes octets by :meth:`feed`, gives replies by :meth:`reply`.

    :param heard: told of each line, without its CRLF, as it is fit to be shown.
    """

    __slots__ = ("_data", "_heard", "_lines", "_octets", "_position")

    def __init__(self, heard: Callable[[str], None] | None = None) -> None:
        self._heard = heard
        self._data = b""
        self._position = 0
        #: The lines so far of a reply that has not ended, and their octets.
        self._lines: list[re.Match[bytes]] = []
        self._octets = 0

    def __len__(self) -> int:
        """Octets received of which no reply has been made."""
        return len(self._data) - self._position + self._octets

    def feed(self, data: bytes) -> None:
        """Add received octets."""
        self._data = self._data[self._position:] + data
        self._position = 0

    def reply(self) -> Reply | None:
        """The next reply, or None when it is not complete.

        :raises Malformed: what comes is none; nothing sensible can follow.
        """
        while (line := self._line()) is not None:
            if self._heard is not None:
                self._heard(_shown(line))
            if not self._lines and len(line) <= _USUAL and line[3:4] != b"-":
                return _one_line(line)
            match = _matched(line)
            if self._lines and match["code"] != self._lines[0]["code"]:
                raise Malformed(f"one reply with two codes: {_quote(self._lines[0][0])} and "
                                f"{_quote(line)}")
            self._lines.append(match)
            if match["more"] != b"-":
                lines, self._lines, self._octets = self._lines, [], 0
                return _reply(lines)
            self._octets += len(line) + 2
            if len(self._lines) >= LINES or self._octets > REPLY_OCTETS:
                raise Malformed(f"a reply without end: {_quote(line)} after "
                                f"{len(self._lines) - 1} lines")
        return None

    def _line(self) -> bytes | None:
        """The next line without its CRLF, or None."""
        end = self._data.find(b"\n", self._position)
        # Up to LF, or all there is; a CR is right just before the LF, or at the end so far.
        line = self._data[self._position : end if end >= 0 else len(self._data)]
        stray = line.find(b"\r")
        if (0 <= stray < len(line) - 1) or (end >= 0 and stray < 0):
            raise Malformed(f"a line that does not end in CRLF: {_quote(line)}")
        if len(line) >= LINE_OCTETS:
            raise Malformed(f"a line of more than {LINE_OCTETS} octets: {_quote(line)}")
        if end < 0:
            # What cannot become a reply is not waited for.
            if len(line) >= 3 and not re.match(rb"[2-5][0-9][0-9][\r -]?", line[:4]):
                raise Malformed(f"expected a three-digit code, got {_quote(line)}")
            return None
        self._position = end + 1
        return line[:-1]


@functools.lru_cache(256)
def _one_line(line: bytes) -> Reply:
    """A server says few different things, again and again."""
    return _reply([_matched(line)])


def _matched(line: bytes) -> re.Match[bytes]:
    match = _LINE.fullmatch(line)
    if match is None:
        raise Malformed(f"expected a three-digit code, got {_quote(line)}")
    return match


def _reply(lines: list[re.Match[bytes]]) -> Reply:
    code = int(lines[0]["code"])
    status: EnhancedStatus | None = None
    texts = []
    for line in lines:
        text = _shown(line["text"])
        match = _STATUS.match(text)
        if match is not None and int(match["class"]) == code // 100:
            status = status or EnhancedStatus(code // 100, int(match["subject"]),
                                              int(match["detail"]))
            text = text[match.end():]
        texts.append(text)
    return Reply(code, status, tuple(texts))


def _shown(line: bytes) -> str:
    return _CONTROL.sub("?", line.decode("utf-8", "replace"))


def _quote(line: bytes) -> str:
    return repr(line[:60])[1:]
