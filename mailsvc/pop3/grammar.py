"""The arguments of POP3 commands (RFC 1939 §3, RFC 2449 §3, RFC 6856 §2.2).

Each function takes what follows the verb and one space, and returns the arguments of the command's
handler as a tuple, or raises :class:`Malformed`.  Line ends and control characters but the tab were
refused before.

Leniency: spaces around and between arguments may be any number.  Not so for PASS, whose argument is
all that follows, spaces included (RFC 1939 §7).
"""

from __future__ import annotations

import re
import unicodedata

_DIGEST = re.compile(rb"[0-9a-f]{32}\Z")
#: Numbers with more digits need not be told apart: there are never so many messages or lines.
_DIGITS = 20


class Malformed(Exception):
    """The argument is not what the command's syntax says."""


def nothing(argument: bytes) -> tuple[()]:
    """No argument."""
    _words(argument, 0, 0)
    return ()


def perhaps_mechanism(argument: bytes) -> tuple[bytes, bytes | None]:
    """A SASL mechanism, or b"", and its initial response, or None (RFC 5034 §4)."""
    words = _words(argument, 0, 2)
    return (words[0] if words else b"", words[1] if len(words) > 1 else None)


def message(argument: bytes) -> tuple[int]:
    """A message number, which may be any: whether there is such a message is not asked here."""
    # Short, and without a space around it, nearly always.
    if argument.isdigit() and len(argument) <= _DIGITS:
        return (int(argument),)
    return (_decimal(_words(argument, 1, 1)[0]),)


def perhaps_message(argument: bytes) -> tuple[int | None]:
    """A message number, or None when there is no argument."""
    words = _words(argument, 0, 1)
    return (_decimal(words[0]) if words else None,)


def message_and_lines(argument: bytes) -> tuple[int, int]:
    """A message number and a number of lines."""
    number, lines = _words(argument, 2, 2)
    return _decimal(number), _decimal(lines)


def name(argument: bytes) -> tuple[str]:
    """A user's name in UTF-8; it may hold spaces.  NFC, so that one name has one spelling."""
    argument = argument.strip(b" ")
    if not argument:
        raise Malformed
    return (unicodedata.normalize("NFC", _decoded(argument)),)


def password(argument: bytes) -> tuple[bytes]:
    """A password in UTF-8, as it stands."""
    if not argument:
        raise Malformed
    _decoded(argument)
    return (argument,)


def name_and_digest(argument: bytes) -> tuple[str, bytes]:
    """A user's name and an MD5 digest in lower-case hexadecimal (RFC 1939 §7, APOP)."""
    user, _, digest = argument.strip(b" ").rpartition(b" ")
    if not _DIGEST.match(digest):
        raise Malformed
    return (*name(user), digest)


def perhaps_language(argument: bytes) -> tuple[str]:
    """A language range in lower case (RFC 4647 §2.1), or "" when there is no argument."""
    words = _words(argument, 0, 1)
    return (words[0].decode("ascii", "replace").lower() if words else "",)


def _words(argument: bytes, least: int, most: int) -> list[bytes]:
    words = [word for word in argument.split(b" ") if word] if argument else []
    if not least <= len(words) <= most:
        raise Malformed
    return words


def _decimal(word: bytes) -> int:
    # bytes.isdigit() knows ASCII digits only.
    if not word.isdigit():
        raise Malformed
    return int(word.lstrip(b"0")[:_DIGITS] or b"0")


def _decoded(argument: bytes) -> str:
    # RFC 6856 §2.2: what is not valid UTF-8 must be rejected.
    try:
        return argument.decode()
    except UnicodeDecodeError:
        raise Malformed from None
