"""Messages that clients get wrong, as their octets stand on the wire (CRLF, not dot-stuffed)."""

from __future__ import annotations

_HEADER = (b"From: Sender <sender@example.net>\r\n"
           b"To: b@example.org\r\n"
           b"Date: Sat, 21 Nov 2026 09:30:00 +0000\r\n"
           b"Message-ID: <corpus@example.net>\r\n"
           b"Subject: %s\r\n")

#: Fits any client: lines of at most 998 octets, no NUL, a header, CRLF at the end.
CORPUS = {
    "plain": _HEADER % b"plain" + b"\r\nHello.\r\n",
    "empty-body": _HEADER % b"empty body" + b"\r\n",
    "only-dots": _HEADER % b"only dots" + b"\r\n.\r\n..\r\n...\r\n.\r\n",
    "dots-within": _HEADER % b"dots" + b"\r\n.first\r\na .\r\n.. two\r\n.\r\nlast.\r\n",
    "blank-lines": _HEADER % b"blank lines" + b"\r\n\r\n\r\n \r\n\t\r\n\r\n\r\n",
    "from-lines": _HEADER % b"From lines" + b"\r\nFrom the start\r\n>From here\r\n",
    "8-bit": (_HEADER % b"8-bit" + b"MIME-Version: 1.0\r\n"
              b"Content-Type: text/plain; charset=iso-8859-1\r\n"
              b"Content-Transfer-Encoding: 8bit\r\n\r\n"
              + bytes(range(0xA0, 0x100)) + b"\r\n"),
    "utf-8": (_HEADER % b"utf-8" + b"MIME-Version: 1.0\r\n"
              b"Content-Type: text/plain; charset=utf-8\r\n"
              b"Content-Transfer-Encoding: 8bit\r\n\r\n"
              + "Grüße, Привет, 你好, \U0001f4ec\r\n".encode()),
    "line-of-998": _HEADER % b"998" + b"\r\n" + b"x" * 998 + b"\r\n." + b"y" * 997 + b"\r\n",
    "folded-header": _HEADER % b"folded\r\n once\r\n\ttwice" + b"\r\nHello.\r\n",
}

#: Needs SMTPUTF8 by the letter of RFC 6532: a header with UTF-8 in it.
UTF8_HEADER = (_HEADER % "Grüße aus Köln".encode()
               + "X-Name: Łukasz\r\n\r\nHello.\r\n".encode())

#: What only a raw client can be made to say.
RAW = {
    "nothing": b"",
    "no-header": b"\r\njust a body\r\n",
    "header-only": _HEADER % b"no empty line",
    "empty-field": _HEADER % b"empty field" + b"X-Empty:\r\nX-Blank: \r\n\r\nHello.\r\n",
    "one-dot": b".\r\n",
    "control-characters": _HEADER % b"controls" + b"\r\n\x01\x07\x08\x0b\x0c\x1a\x1b\x7f\r\n",
    "utf-8-header": UTF8_HEADER,
}


def long_line(octets: int) -> bytes:
    """A message with one body line of *octets*, CRLF not counted, of no short period."""
    block = b"".join(b"%08x" % (number * 2654435761 % 2**32) for number in range(997))
    return (_HEADER % b"long line" + b"\r\nbefore\r\n"
            + (block * (octets // len(block) + 1))[:octets] + b"\r\nafter\r\n")


def large(octets: int) -> bytes:
    """A message of at least *octets* in ordinary lines, some of which begin with dots."""
    lines = b"".join(b"%s%06d %s\r\n" % (b"." * (number % 3), number, b"abcdefghij" * (number % 7))
                     for number in range(2000))
    header = _HEADER % b"large" + b"\r\n"
    return header + lines * ((octets - len(header)) // len(lines) + 1)
