"""The messages that the benchmark sends: each names itself, and every octet of it is known.

A message's *ident* stands in its Message-ID, in the first line of its body and in the last, so that
a lost, doubled, cut, mixed or altered message is found by reading what came out.  All messages of a
:class:`Template` have the same size; building one costs a join.
"""

from __future__ import annotations

#: Octets of an ident: a tag of 8, a client of 3 digits, a number of 7, with dots between.
IDENT_LENGTH = 20

_OPENING = b"Message-ID: <"

#: Octets of a message up to the end of its ident.
NAMED_AFTER = len(_OPENING) + IDENT_LENGTH

_HEADER = (b"@bench.test>\r\n"
           b"Date: Sat, 21 Nov 2026 12:00:00 +0000\r\n"
           b"From: Load <load@client.test>\r\n"
           b"To: Someone <someone@bench.test>\r\n"
           b"Subject: A message of the benchmark\r\n"
           b"\r\n")

#: One line begins with a dot, so that dot-stuffing is seen to be undone and done.
_LINES = (b".The quick brown fox jumps over the lazy dog and comes back to it.\r\n"
          + 63 * b"Sphinx of black quartz, judge my vow; pack my box with five dozen jugs\r\n")


class AlteredMessage(Exception):
    """Bytes that are not the message they should be."""


def ident(tag: str, client: int, number: int) -> bytes:
    """The name of message *number* of *client* in the measurement *tag* (8 characters or less)."""
    return b"%s.%03d.%07d" % (tag.encode().ljust(8, b"x"), client, number)


class Template:
    """Messages of *size* octets, CRLF counted, without dot-stuffing and terminator."""

    def __init__(self, size: int) -> None:
        room = size - NAMED_AFTER - len(_HEADER) - 2 * (IDENT_LENGTH + 2) - 2
        if room < 1:
            raise ValueError(f"a message of {size} octets has no room for its names")
        text = (_LINES * (room // len(_LINES) + 1))[:room]
        if text.endswith(b"\r"):  # the cut fell between CR and LF
            text = text[:-1] + b"-"
        self.size = size
        self._filler = text + b"\r\n"
        self._stuffed = (b"\r\n" + self._filler).replace(b"\r\n.", b"\r\n..")[2:]

    def plain(self, ident: bytes) -> bytes:
        """The message as the author wrote it."""
        return b"".join((_OPENING, ident, _HEADER, ident, b"\r\n", self._filler, ident, b"\r\n"))

    def wire(self, ident: bytes) -> bytes:
        """The message as DATA and RETR carry it: dots stuffed, terminator included."""
        return b"".join((_OPENING, ident, _HEADER, ident, b"\r\n", self._stuffed, ident,
                         b"\r\n.\r\n"))

    def identify(self, stored: bytes) -> bytes:
        """The ident of a message as a server *stored* it, after comparing all of it.

        A server may end lines in CRLF or LF and may add header fields before or after ours.

        :raises AlteredMessage: when anything else differs.
        """
        if b"\r\n" in stored:
            stored = stored.replace(b"\r\n", b"\n")
        start = stored.find(_OPENING)
        if start < 0:
            raise AlteredMessage("the Message-ID is gone")
        name = stored[start + len(_OPENING):start + NAMED_AFTER]
        expected = self.plain(name).replace(b"\r\n", b"\n")
        if stored.endswith(expected) and len(stored) - len(expected) == start:
            return name
        header, _, body = expected.partition(b"\n\n")
        stored_header, _, stored_body = stored.partition(b"\n\n")
        if header not in stored_header or body != stored_body:
            raise AlteredMessage(f"{name.decode('ascii', 'replace')} differs from what was sent")
        return name


#: A short text without attachments.
SMALL = Template(4096)

#: A message with an attachment.
LARGE = Template(5 * 1024 * 1024)

#: As small as it gets: for maildrops where only the number of messages matters.
TINY = Template(1024)
