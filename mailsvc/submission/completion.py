"""A submitted message on its way in: its header completed, its authors checked (RFC 6409 §8).

What is missing is added on top: Date; Message-ID, of the envelope's id and our host name, which
together are unique (RFC 5322 §3.6.4: the sender's domain may be served by several hosts); From,
naming the sender; Sender, where From alone does not tell who submitted the message.  Bcc and
Resent-Bcc are removed with their folded lines, for they are not for the recipients (§3.6.3).  Not
another octet is touched, so signatures hold.

**The header** ends at the first empty line, or before the first line that is neither a field nor
folded; then an empty line is put in, so that no reader can take for a field what was not looked at
here.  It is held until its end has come; a longer one than allowed is refused.  The body passes
through.

**Authors** (§3.6.2).  With ``check_from`` one mailbox at least that From names must be the
submitter's (:mod:`mailsvc.submission.senders`), and so must that of Sender; a message with several
From fields, or with one that cannot be understood, is refused.  Of a message that is sent on
unchanged (§3.6.6) Resent-From and Resent-Sender count instead, those of the topmost block, which is
the latest; all others are history.

**Not done.**  Fields that are there are not looked into otherwise: an ill-formed Date stays.
Nothing is done for Resent-Date and Resent-Message-ID, nor for a "From " line of an mbox file, which
ends the header as said above.
"""

from __future__ import annotations

import re
from itertools import pairwise

from mailsvc.errors import EnhancedStatus, PermanentFailure
from mailsvc.mail import NULL_PATH, Address
from mailsvc.submission.limits import SubmissionSettings
from mailsvc.submission.mailboxes import mailboxes
from mailsvc.submission.senders import Submitter
from mailsvc.trace import date

#: White space before the colon is obsolete (RFC 5322 §4.5); a line has at most 998 octets (§2.1.1).
_FIELD = re.compile(rb"([!-9;-~]{1,998})[ \t]{0,998}:")
#: What may yet become a field, or the empty line.
_UNDECIDED = re.compile(rb"(?:[!-9;-~]{1,998}[ \t]{0,998})?\r?")

_REMOVED = frozenset({b"bcc", b"resent-bcc"})
#: What a block of them is made of (RFC 5322 §3.6.6, §4.5.6), each once.
_RESENT = frozenset({b"resent-date", b"resent-from", b"resent-sender", b"resent-to", b"resent-cc",
                     b"resent-bcc", b"resent-message-id", b"resent-reply-to"})
#: Of these the body is looked at, or where they are.
_KNOWN = _REMOVED | _RESENT | {b"date", b"message-id", b"from", b"sender"}

#: RFC 3463 §3.7: X.6.0, other or undefined media error.
_BAD_CONTENT = EnhancedStatus(5, 6, 0)


class Completion:
    """One message: ``feed`` its blocks, cut anywhere, then ``finish``; each returns what to keep.

    :param submitter: who sends it.
    :param id: the envelope's.
    :param seconds: the time of submission, since the epoch.

    Both methods raise :class:`PermanentFailure` when the message must be refused, or what its
    ``owns`` raises; neither is to be called again then.
    """

    __slots__ = ("_fields", "_held", "_id", "_line", "_passing", "_seconds", "_sender",
                 "_settings", "_submitter")

    def __init__(self, settings: SubmissionSettings, submitter: Submitter, reverse_path: Address,
                 *, id: str, hostname: str, seconds: int) -> None:
        self._settings = settings
        self._submitter = submitter
        #: Whom From and Sender name where they are added.
        self._sender = submitter.address if reverse_path == NULL_PATH else reverse_path
        self._id = f"{id}@{hostname}"
        self._seconds = seconds
        self._passing = False
        # The header so far; where its last line begins; the known fields, and where each begins,
        # with an entry of no name at the end of each.
        self._held = bytearray()
        self._line = 0
        self._fields: list[tuple[bytes, int]] = []

    def feed(self, block: bytes) -> bytes:
        """Take a block of the message and return a block of the completed one, perhaps empty."""
        if self._passing:
            return block
        searched = max(self._line, len(self._held) - 1)
        self._held += block
        return self._read(searched)

    def finish(self) -> bytes:
        """The message has ended: what is still held.  Call once."""
        if self._passing:
            return b""
        # What is left is one line without its end: a field, a folded one, or text.
        if self._line < len(self._held) and not self._take_line():
            return self._complete(b"\r\n")
        self._line = len(self._held)
        return self._complete(b"")

    def _read(self, searched: int) -> bytes:
        """Look at the lines that are whole, and return what can be let go."""
        held, most = self._held, self._settings.header_octets
        while True:
            end = held.find(b"\r\n", searched)
            if end < 0:
                break
            if end == self._line:
                return self._complete(b"")
            if not self._take_line():
                return self._complete(b"\r\n")
            self._line = searched = end + 2
            if self._line > most:
                raise self._too_long()
        if _UNDECIDED.fullmatch(held, self._line):
            return b""
        # The beginning of a line tells what it is.  Text of which no end may come must not be held.
        fields = len(self._fields)
        if not self._take_line():
            return self._complete(b"\r\n")
        del self._fields[fields:]  # it will be taken when it is whole
        if len(held) > most:
            raise self._too_long()
        return b""

    def _take_line(self) -> bool:
        """Note what the present line is; False when it is not of a header."""
        line = self._line
        if self._held[line] in b" \t":
            return line > 0
        match = _FIELD.match(self._held, line)
        if match is None:
            return False
        name = match[1].lower()
        if name in _KNOWN:
            self._fields.append((name, line))
        elif self._fields and self._fields[-1][0]:
            self._fields.append((b"", line))
        return True

    def _too_long(self) -> PermanentFailure:
        self._held.clear()
        return PermanentFailure(
            f"The header of the message is longer than {self._settings.header_octets} octets; "
            "shorten it, and see that an empty line ends it", _BAD_CONTENT)

    def _complete(self, separator: bytes) -> bytes:
        """Let the header go, which ends where the present line begins, and what is behind it."""
        header, rest = bytes(self._held[: self._line]), bytes(self._held[self._line :])
        self._held.clear()
        self._passing = True
        kept: list[bytes] = []
        present: dict[bytes, list[bytes]] = {}
        position = 0
        for (name, start), (_, end) in pairwise((*self._fields, (b"", len(header)))):
            if name in _REMOVED:
                kept.append(header[position:start])
                position = end
            elif name:
                present.setdefault(name, []).append(header[start:end].partition(b":")[2])
        kept.append(header[position:])
        return b"".join((self._missing(present), *kept, separator, rest))

    def _missing(self, present: dict[bytes, list[bytes]]) -> bytes:
        """The fields to add to those that are *present*, once these have been found in order."""
        added = []
        if b"date" not in present:
            added.append(f"Date: {date(self._seconds)}\r\n")
        if b"from" not in present:
            added.append(f"From: <{self._sender}>\r\n")
        if name := self._missing_sender(present):
            added.append(f"{name}: <{self._sender}>\r\n")
        if b"message-id" not in present:
            added.append(f"Message-ID: <{self._id}>\r\n")
        return "".join(added).encode()

    def _missing_sender(self, present: dict[bytes, list[bytes]]) -> str:
        """The field to add that tells who sends it, Sender or Resent-Sender; empty for none.

        :raises PermanentFailure: it may not be sent so.
        """
        check = self._settings.check_from
        authors, senders = present.get(b"from", []), present.get(b"sender", [])
        resenders = self._latest_resenders(present)
        if check:
            for name, bodies in (("From", authors), ("Sender", senders),
                                 ("Resent-Sender", resenders)):
                if len(bodies) > 1:
                    raise PermanentFailure(
                        f"The message has several {name} fields; RFC 5322 3.6 allows one",
                        _BAD_CONTENT)
        resent = b"resent-from" in present
        if resent:
            authors, senders = present[b"resent-from"][:1], []
        if not authors:
            # The one that is added names the submitter.
            named = [self._sender]
        elif check:
            named = self._authors(authors[0], "Resent-From" if resent else "From")
            self._require(named)
        else:
            named = self._if_understood(authors)
        if check:
            for name, bodies in ("Sender", senders), ("Resent-Sender", resenders):
                if bodies:
                    self._require(self._authors(bodies[0], name)[:1])
        if (resenders if resent else senders) or (
                len(named) == 1 and (check or self._submitter.owns(named[0]))):
            return ""
        return "Resent-Sender" if resent else "Sender"

    def _latest_resenders(self, present: dict[bytes, list[bytes]]) -> list[bytes]:
        """The Resent-Sender fields, of which there should be one at most, of the latest block.

        Each block has one Resent-From.  Only where another block follows does the latest end: at a
        field of another kind, or at the second of a name.
        """
        resenders = present.get(b"resent-sender", [])
        if not resenders or len(present.get(b"resent-from", ())) < 2:
            return resenders
        block: set[bytes] = set()
        count = 0
        for name, _ in self._fields:
            if b"resent-from" in block and (name not in _RESENT or name in block):
                break
            block.add(name)
            count += name == b"resent-sender"
        return resenders[:count]

    def _require(self, authors: list[Address]) -> None:
        if not any(map(self._submitter.owns, authors)):
            raise self._submitter.refusal(*authors[:3])

    def _authors(self, body: bytes, name: str) -> list[Address]:
        try:
            authors = mailboxes(body)
            if not authors:
                raise ValueError("it names nobody")
        except ValueError as error:
            raise PermanentFailure(
                f"The {name} field cannot be understood: {error}; expected "
                "Name <local-part@domain>", _BAD_CONTENT) from None
        return authors

    def _if_understood(self, bodies: list[bytes]) -> list[Address]:
        try:
            return [author for body in bodies for author in mailboxes(body)]
        except ValueError:
            return []
