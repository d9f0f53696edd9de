"""Messages that not every server takes, made so that each does (RFC 6409 §8.7, RFC 6152 §3).

A part of a message needs repair when it has a line of more than 998 octets (RFC 5322 §2.1.1), or
8-bit octets that the client did not announce with BODY=8BITMIME.  Its body is then encoded: text as
quoted-printable, any other as base64, and its Content-Transfer-Encoding says so.  What it decodes
to is the same to the octet.  A message without MIME gets the fields for it; its text is taken for
UTF-8 when it can be that, else for unknown-8bit (RFC 1428 §3).

Left as they are: every part that needs no repair; what is signed or encrypted (DKIM-Signature,
multipart/signed, multipart/encrypted); header fields; parts whose encoding is known to be another;
what lies deeper than 20 multiparts, or behind the thousandth part; parts whose header is longer
than 256 KiB or whose type is longer than 2,000 characters; preamble and epilogue.
"""

from __future__ import annotations

import binascii
import re
from email.message import Message
from email.parser import BytesHeaderParser

_LINE_OCTETS = 998
# Tried at the beginnings of lines alone, so that each octet is looked at once.
_LONG = re.compile(rb"(?:\A|\n)[^\r\n]{%d}" % (_LINE_OCTETS + 1))
_EIGHT_BIT = re.compile(rb"[\x80-\xff]")
_END_OF_HEADER = re.compile(rb"(?:\A|\r\n)\r\n")
_ENCODING_FIELD = re.compile(
    rb"^content-transfer-encoding[ \t]*:.*?\r\n(?![ \t])", re.IGNORECASE | re.MULTILINE | re.DOTALL)
_SIGNATURE_FIELD = re.compile(rb"^dkim-signature[ \t]*:", re.IGNORECASE | re.MULTILINE)

_DEPTH = 20
_PARTS = 1000
# The standard library's work on the parameters of a type grows with the square of their length.
_HEADER_OCTETS = 262_144
_TYPE_LENGTH = 2000


class Repair:
    """One message: ``feed`` its blocks, cut anywhere, then ``finish``; each returns what to keep.

    :param eight_bit: whether BODY=8BITMIME was given.
    :param octets: the longest message that is repaired.  So much is held; as soon as a message is
        longer, it passes as it is.
    """

    __slots__ = ("_eight_bit", "_held", "_octets", "_passing")

    def __init__(self, octets: int, *, eight_bit: bool) -> None:
        self._octets = octets
        self._eight_bit = eight_bit
        self._held = bytearray()
        self._passing = False

    def feed(self, block: bytes) -> bytes:
        """Take a block of the message and return a block of it, perhaps empty."""
        if self._passing:
            return block
        self._held += block
        if len(self._held) <= self._octets:
            return b""
        self._passing = True
        return self._take()

    def finish(self) -> bytes:
        """The message has ended: what is still held, repaired.  Call once."""
        return repaired(self._take(), eight_bit=self._eight_bit)

    def _take(self) -> bytes:
        held = bytes(self._held)
        self._held.clear()
        return held


def repaired(message: bytes, *, eight_bit: bool) -> bytes:
    """*message*, whose lines end in CRLF, with what needs it encoded.

    :param eight_bit: whether 8-bit octets may stay.
    """
    if not _needs_repair(message, eight_bit):
        return message
    header, _ = _divided(message)
    if _SIGNATURE_FIELD.search(header):
        return message
    return _Mending(eight_bit).part(message, 0, top=True)


def _needs_repair(text: bytes, eight_bit: bool) -> bool:
    return bool(_LONG.search(text) or (not eight_bit and _EIGHT_BIT.search(text)))


def _divided(part: bytes) -> tuple[bytes, bytes]:
    """Header, and body with the empty line before it; without that line all is header."""
    end = _END_OF_HEADER.search(part)
    if end is None:
        return part, b""
    return part[: end.end() - 2], part[end.end() - 2 :]


class _Mending:
    """The way through the parts of one message.

    :ivar left: how many parts may still be looked at.
    """

    def __init__(self, eight_bit: bool) -> None:
        self.eight_bit = eight_bit
        self.left = _PARTS

    def part(self, part: bytes, depth: int, *, top: bool = False, digest: bool = False) -> bytes:
        """*part*, a header and a body, mended.

        :param top: whether it is the message itself, which may be one without MIME.
        :param digest: whether its type is message/rfc822 unless it says otherwise.
        """
        self.left -= 1
        header, body = _divided(part)
        if (depth > _DEPTH or self.left < 0 or len(header) > _HEADER_OCTETS
                or not _needs_repair(body, self.eight_bit)):
            return part
        fields = BytesHeaderParser().parsebytes(header)
        if len(str(fields.get("Content-Type", ""))) > _TYPE_LENGTH:
            return part
        if digest:
            fields.set_default_type("message/rfc822")
        kind, main = fields.get_content_type(), fields.get_content_maintype()
        if kind in ("multipart/signed", "multipart/encrypted"):
            return part
        if main == "multipart":
            boundary = fields.get_boundary()
            if not boundary:
                return part
            return header + self._multipart(body, boundary.encode("utf-8", "surrogateescape"),
                                            depth, digest=kind == "multipart/digest")
        if str(fields.get("Content-Transfer-Encoding", "7bit")).strip().lower() not in (
                "7bit", "8bit", "binary"):
            return part
        if main == "message":
            # RFC 2046 §5.2.1: it may not be encoded itself.
            if kind != "message/rfc822":
                return part
            return header + b"\r\n" + self.part(body[2:], depth + 1, top=True)
        return _encoded(header, fields, body[2:], top=top)

    def _multipart(self, body: bytes, boundary: bytes, depth: int, *, digest: bool) -> bytes:
        # RFC 2046 §5.1.1: the CRLF before a delimiter belongs to it.
        delimiter = re.compile(rb"\r\n--" + re.escape(boundary) + rb"(--)?[ \t]*(?=\r\n|\Z)")
        mended: list[bytes] = []
        start = 0  # of the present part; 0 amid the preamble
        for found in delimiter.finditer(body):
            text = body[start : found.start()]
            if start and text:
                # The CRLF of the delimiter line stands before the part.
                text = text[:2] + self.part(text[2:], depth + 1, digest=digest)
            mended += (text, found[0])
            start = found.end()
            if found[1]:
                break
        else:
            # The closing delimiter is missing.
            if start:
                text = body[start:]
                return b"".join((*mended, text[:2], self.part(text[2:], depth + 1, digest=digest)))
        return b"".join((*mended, body[start:]))


def _encoded(header: bytes, fields: Message, content: bytes, *, top: bool) -> bytes:
    """A leaf with that header and *content*, encoded."""
    added = []
    if top and "MIME-Version" not in fields:
        added.append("MIME-Version: 1.0")
    if top and "Content-Type" not in fields:
        added.append(f"Content-Type: text/plain; charset={_charset(content)}")
    if fields.get_content_maintype() == "text":
        encoding, body = "quoted-printable", _quoted_printable(content)
    else:
        encoding, body = "base64", _base64(content)
    added.append(f"Content-Transfer-Encoding: {encoding}")
    return b"".join(("\r\n".join((*added, "")).encode(), _ENCODING_FIELD.sub(b"", header),
                     b"\r\n", body))


def _charset(content: bytes) -> str:
    if content.isascii():
        return "us-ascii"
    try:
        content.decode()
    except UnicodeDecodeError:
        return "unknown-8bit"
    return "utf-8"


def _quoted_printable(content: bytes) -> bytes:
    # It breaks lines with CRLF when the first line ends so; hence one is lent to what has none.
    return binascii.b2a_qp(content + b"\r\n", istext=True).removesuffix(b"\r\n")


def _base64(content: bytes) -> bytes:
    # RFC 2045 §6.8: lines of at most 76 characters.
    lines = [binascii.b2a_base64(content[at : at + 57], newline=False)
             for at in range(0, len(content), 57)]
    return b"\r\n".join(lines) + b"\r\n"
