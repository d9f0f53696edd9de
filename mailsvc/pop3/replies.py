"""POP3 status lines, and the one place where failures become response codes."""

from __future__ import annotations

import re

from mailsvc.errors import (
    LoginTooSoon,
    MaildropInUse,
    MailFailure,
    MessageVanished,
    PermanentFailure,
)

_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
#: Longest text of a status line: RFC 2449 §4 allows 512 octets with indicator and CRLF.
_TEXT_OCTETS = 500

#: The response codes of RFC 2449 §8.1 and RFC 3206 §4; the first row that fits counts.
_RESPONSE_CODES: tuple[tuple[type[MailFailure], str], ...] = (
    (MaildropInUse, "[IN-USE] "),
    (LoginTooSoon, "[LOGIN-DELAY] "),
    # Another program removed it, which is no fault of the system; there is no code for that.
    (MessageVanished, ""),
    (PermanentFailure, "[SYS/PERM] "),
    (MailFailure, "[SYS/TEMP] "),
)


def positive(text: str) -> bytes:
    """``+OK`` and *text*, made printable and short."""
    return _status_line("+OK", text)


def negative(text: str) -> bytes:
    """``-ERR`` and *text*, made printable and short."""
    return _status_line("-ERR", text)


def from_failure(failure: MailFailure) -> bytes:
    """The ``-ERR`` for a failure of the store or the realm."""
    code = next(code for kind, code in _RESPONSE_CODES if isinstance(failure, kind))
    return negative(code + failure.text)


def octets_follow(octets: int) -> bytes:
    """The ``+OK`` before a message of so many octets."""
    return b"+OK %d octet%b\r\n" % (octets, b"" if octets == 1 else b"s")


def plural(count: int, noun: str) -> str:
    """*count* and *noun*: ``1 message``, ``2 messages``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _status_line(indicator: str, text: str) -> bytes:
    text = text[:_TEXT_OCTETS]
    if not (text.isascii() and text.isprintable()):  # hardly ever
        text = _UNPRINTABLE.sub("?", text)
    return f"{indicator} {text}\r\n".encode("ascii")
