"""What is said on a connection of ours, as somebody else may read it.

A transcript is told the octets that pass, either way, and says lines.  It knows the two protocols
just well enough to tell a command from a secret and from a message, and errs on the safe side:

* secrets are masked: all of an AUTH exchange but the name of its mechanism (RFC 4954, RFC 5034),
  the argument of PASS and the digest of APOP (RFC 1939);
* of a line only what begins as a command or a reply is shown, of any other the number of octets;
* messages are counted, or shown as far as :data:`TEXT_OCTETS`.

It may begin in the middle.  Then what the client says is left out until it has all its answers,
which is when its next words are sure to begin a command; and at each such moment the transcript
begins anew, so a misunderstanding does not last.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from enum import Enum

#: What stands for a secret, as in the transcripts of our clients.
MASK = "********"
#: How much of one message or listing is shown, octets, and how much of one line, characters.
TEXT_OCTETS, LINE = 65_536, 1000
#: How many octets are held back for an answer.
_HELD_BACK = 65_536

_VERB = re.compile(rb"([A-Za-z0-9]+)(?:[ \t]+|$)")
_MECHANISM = re.compile(rb"PLAIN|LOGIN|EXTERNAL|ANONYMOUS|GSSAPI|NTLM|XOAUTH2|OAUTHBEARER|"
                        rb"(?:CRAM|DIGEST)-MD5|SCRAM-SHA-[0-9]{1,3}(?:-PLUS)?")

#: Says a line: whose it is ("C" or "S"), and the line.
Say = Callable[[str, str], None]


class _Client(Enum):
    """What the client's next octets are."""

    COMMANDS = "commands"
    HELD = "held back until a command has its answer"
    SECRET = "a line of an AUTH exchange"
    DOTS = "a message that ends with a dot"
    CHUNK = "a message's chunk of so many octets"
    UNKNOWN = "whatever they are, until the client has its answers"


class _Text:
    """A message or a listing as it passes, CRLF "." CRLF behind it or not."""

    def __init__(self, whose: str, say: Say, shown: bool, what: str = "of a message") -> None:
        self._whose, self._say, self._what = whose, say, what
        self._octets = 0
        self._left = TEXT_OCTETS if shown else 0
        self._line = b""
        #: The last octets, in which the end may have begun; the line before ended with CRLF.
        self._tail = b"\r\n"

    def until_dot(self, data: bytes) -> int | None:
        """Take *data*; how many octets of it belong to it, or None for all, and it goes on."""
        both = self._tail + data
        end = both.find(b"\r\n.\r\n")
        if end < 0:
            self.take(data)
            self._tail = both[-4:]
            return None
        used = end + 5 - len(self._tail)
        self.take(data[:used])
        self._octets -= 3
        return used

    def take(self, data: bytes) -> None:
        """Take *data*, all of which belongs to it."""
        self._octets += len(data)
        if self._left <= 0:
            return
        *lines, self._line = (self._line + data[:self._left]).split(b"\n")
        self._left -= len(data)
        for line in lines:
            if line != b".\r":
                self._say(self._whose, readable(line))

    def ends(self) -> None:
        """Say how long it was, if not all was shown."""
        if self._line:
            self._say(self._whose, readable(self._line))
        self._line = b""
        if self._octets > 0 and self._left <= 0:
            self._say(self._whose, f"({self._octets} octets {self._what})")


class Transcript:
    """Of one connection.

    :param text: whether messages are shown.
    :param begun: whether the connection has said something already.
    """

    #: The commands whose lines are shown.
    verbs: frozenset[bytes]

    def __init__(self, say: Say, *, text: bool, begun: bool) -> None:
        self._say, self._shows_text = say, text
        self._client = _Client.UNKNOWN if begun else _Client.COMMANDS
        self._pending = b""
        #: Of what is left out: how much of the client, and of the server.
        self._hidden = {"C": 0, "S": 0}
        self._text: _Text | None = None
        self._chunk = 0
        #: What the server said last, if that was no whole line.
        self._said = b""

    def received(self, data: bytes, *, at_rest: bool) -> None:
        """The client says *data*.

        :param at_rest: whether it had said nothing that has not been answered.
        """
        if at_rest:
            self._begin_anew()
        if self._client is _Client.UNKNOWN:
            self._hidden["C"] += len(data)
            return
        self._pending += data
        self._read()

    @abstractmethod
    def sent(self, data: bytes) -> None:
        """The server says *data*."""

    def ended(self) -> None:
        """The connection is gone."""
        self._begin_anew()

    # ---- the client ----

    def _begin_anew(self) -> None:
        self._hide("C", len(self._pending))
        self._pending = b""
        if self._text is not None:
            self._text.ends()
            self._text = None
        self._client = _Client.COMMANDS
        self._tell_hidden()

    def _read(self) -> None:
        while self._pending:
            if self._client is _Client.DOTS:
                assert self._text is not None
                used = self._text.until_dot(self._pending)
                self._pending = b"" if used is None else self._pending[used:]
                if used is not None:
                    self._text_ends()
                    self._say("C", ".")
            elif self._client is _Client.CHUNK:
                assert self._text is not None
                block, self._pending = self._pending[:self._chunk], self._pending[self._chunk:]
                self._chunk -= len(block)
                self._text.take(block)
                if not self._chunk:
                    self._text_ends()
            elif self._client is _Client.HELD or b"\n" not in self._pending:
                if len(self._pending) > _HELD_BACK:
                    self._hide("C", len(self._pending))
                    self._pending, self._client = b"", _Client.UNKNOWN
                return
            else:
                line, _, self._pending = self._pending.partition(b"\n")
                self._line(line.removesuffix(b"\r"))

    def _text_begins(self, client: _Client, chunk: int = 0) -> None:
        self._text = _Text("C", self._say, self._shows_text)
        self._client, self._chunk = client, chunk

    def _text_ends(self) -> None:
        assert self._text is not None
        self._text.ends()
        self._text, self._client = None, _Client.COMMANDS

    def _line(self, line: bytes) -> None:
        if self._client is _Client.SECRET:
            # "*" gives up (RFC 4954 §4), an empty line says nothing.
            self._say("C", line.decode() if line in (b"", b"*") else MASK)
            self._client = _Client.HELD
            return
        match = _VERB.match(line)
        verb = match[1].upper() if match else b""
        if verb not in self.verbs:
            self._hide("C", len(line) + 2)
            self._tell_hidden()
        elif verb == b"AUTH":
            self._say("C", _auth(line))
        else:
            self._say("C", self._shown(verb, line))
        self._after(verb, line)

    def _shown(self, verb: bytes, line: bytes) -> str:
        return readable(line)

    @abstractmethod
    def _after(self, verb: bytes, line: bytes) -> None:
        """The client has said a line: what is to be expected."""

    # ---- the server ----

    def _lines(self, data: bytes) -> list[bytes]:
        """The whole lines that the server has said by now."""
        *lines, self._said = (self._said + data).split(b"\n")
        if len(self._said) > _HELD_BACK:
            self._hide("S", len(self._said))
            self._said = b""
        return [line.removesuffix(b"\r") for line in lines]

    def _challenged(self) -> None:
        """The server asks for a line of an AUTH exchange."""
        self._client = _Client.SECRET
        self._read()

    def _let_go(self) -> None:
        """The command that was waited for has its answer, and what follows is a command."""
        if self._client in (_Client.HELD, _Client.SECRET):
            self._client = _Client.COMMANDS
            self._read()

    # ---- what is left out ----

    def _hide(self, whose: str, octets: int) -> None:
        self._hidden[whose] += octets

    def _tell_hidden(self) -> None:
        for whose, octets in self._hidden.items():
            if octets:
                self._say(whose, f"({octets} octets not shown)")
                self._hidden[whose] = 0


class SMTPTranscript(Transcript):
    """Of SMTP, LMTP and ODMR."""

    verbs = frozenset(
        b"ATRN AUTH BDAT DATA EHLO ETRN EXPN HELO HELP LHLO MAIL NOOP QUIT RCPT RSET STARTTLS TURN "
        b"VRFY XCLIENT".split())
    #: How many commands have no answer yet.
    _due = 0

    def _after(self, verb: bytes, line: bytes) -> None:
        self._due += 1
        if verb in (b"AUTH", b"DATA", b"STARTTLS", b"ATRN"):
            self._client = _Client.HELD
        elif verb == b"BDAT":
            octets = line.split()[1:2]
            if octets and octets[0].isdigit() and len(octets[0]) < 20 and int(octets[0]):
                # They follow whatever the answer will be (RFC 3030 §2).
                self._text_begins(_Client.CHUNK, int(octets[0]))

    def _begin_anew(self) -> None:
        super()._begin_anew()
        self._due = 0

    def sent(self, data: bytes) -> None:
        for line in self._lines(data):
            code, last = line[:3], line[3:4] != b"-"
            if len(code) < 3 or not code.isdigit() or line[3:4] not in (b"", b" ", b"-"):
                self._hide("S", len(line) + 2)
                continue
            self._tell_hidden()
            if code == b"334":
                self._say("S", f"334 {MASK}" if line[4:] else "334")
                self._challenged()
                continue
            self._say("S", readable(line))
            if code == b"354":
                self._text_begins(_Client.DOTS)
                self._read()
            elif last:
                # LMTP has several for one message (RFC 2033 §4.2).
                self._due = max(0, self._due - 1)
                if not self._due:
                    self._let_go()


class POP3Transcript(Transcript):
    """Of POP3."""

    verbs = frozenset(b"APOP AUTH CAPA DELE HELP LANG LIST NOOP PASS QUIT RETR RSET STAT STLS TOP "
                      b"UIDL USER UTF8".split())

    def __init__(self, say: Say, *, text: bool, begun: bool) -> None:
        super().__init__(say, text=text, begun=begun)
        #: What the commands without an answer were: what follows a good answer.
        self._expected: deque[str] = deque()
        self._answer: _Text | None = None

    def _shown(self, verb: bytes, line: bytes) -> str:
        if verb == b"PASS":
            return f"{line[:4].decode()} {MASK}"
        if verb == b"APOP":
            # The name may have spaces; the digest is the last word.
            return f"{readable(line.rpartition(b' ')[0])} {MASK}" if line.count(b" ") > 1 else (
                f"{line[:4].decode()} {MASK}")
        return super()._shown(verb, line)

    def _after(self, verb: bytes, line: bytes) -> None:
        words = line.split()
        if verb in (b"RETR", b"TOP"):
            self._expected.append("message")
        elif verb == b"CAPA" or (verb in (b"LIST", b"UIDL", b"AUTH", b"LANG") and len(words) == 1):
            self._expected.append("listing")
        else:
            self._expected.append("")
            if verb in (b"AUTH", b"STLS"):
                self._client = _Client.HELD

    def _begin_anew(self) -> None:
        super()._begin_anew()
        self._expected.clear()
        self._answer_ends()

    def _answer_ends(self) -> None:
        if self._answer is not None:
            self._answer.ends()
            self._answer = None

    def sent(self, data: bytes) -> None:
        data, self._said = self._said + data, b""
        while data:
            if self._answer is not None:
                used = self._answer.until_dot(data)
                if used is None:
                    return
                data = data[used:]
                self._answer_ends()
                self._say("S", ".")
                continue
            if not data.startswith((b"+", b"-")):
                # In the middle of something: it cannot be told where that ends.
                self._hide("S", len(data))
                return
            if b"\n" not in data:
                if len(data) > _HELD_BACK:
                    self._hide("S", len(data))
                else:
                    self._said = data
                return
            line, _, data = data.partition(b"\n")
            self._status(line.removesuffix(b"\r"))

    def _status(self, line: bytes) -> None:
        word = line.partition(b" ")[0]
        if word not in (b"+OK", b"-ERR", b"+"):
            self._hide("S", len(line) + 2)
            return
        self._tell_hidden()
        if word == b"+":
            self._say("S", f"+ {MASK}" if line[2:] else "+")
            self._challenged()
            return
        self._say("S", readable(line))
        expected = self._expected.popleft() if self._expected else ""
        if word == b"+OK" and expected:
            self._answer = _Text("S", self._say, expected == "listing" or self._shows_text,
                                 f"of a {expected}")
        if not self._expected:
            self._let_go()


def _auth(line: bytes) -> str:
    """An AUTH command without what it may already tell."""
    verb, *words = line.split()
    shown = [verb.decode("ascii", "replace")]
    if words:
        mechanism = words[0].upper()
        shown.append(mechanism.decode("ascii") if _MECHANISM.fullmatch(mechanism) else MASK)
    if len(words) > 1:
        shown.append("=" if words[1:] == [b"="] else MASK)
    return " ".join(shown)


def readable(line: bytes) -> str:
    """*line* as text that no terminal takes for anything else, not too long."""
    text = line.removesuffix(b"\r").decode("utf-8", "backslashreplace")
    if len(text) > LINE:
        text = text[:LINE] + "…"
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode()
                   for each in text)
