"""xtext, the coding of values in ESMTP parameters (RFC 3461 §4), and the AUTH parameter made of it.

Coded and plain octets are told apart by "+": ``a+2Bb`` means ``a+b``.  What is decoded must be
UTF-8 without control characters: a CR, LF or NUL that was smuggled in coded can therefore leave a
parameter for no other line of a file or header (CVE-2020-28026).  ENVID and ORCPT are held to
printable ASCII by their own rules (RFC 3461 §4.2, §4.4), which their parsers have to see to.

Announced leniency: hexadecimal digits may be in lower case.
"""

from __future__ import annotations

import re
import unicodedata

from mailsvc.mail import NULL_PATH, Address
from mailsvc.smtp import grammar
from mailsvc.smtp.grammar import AddressFault, SyntaxFault

# "!" to "~" without "+" and "=".
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-Fa-f]{2})*")
_CODED = re.compile(rb"\+([0-9A-Fa-f]{2})")
_TO_CODE = re.compile(rb"[^!-*,-<>-~]")


def decode(text: str) -> str:
    """What the xtext *text* means.

    :raises SyntaxFault: it is not xtext, or means something with control characters.
    """
    if not _XTEXT.fullmatch(text):
        raise SyntaxFault('Not xtext: write "+", "=", spaces and what is not ASCII as +XX, in hex')
    octets = _CODED.sub(lambda match: bytes.fromhex(match[1].decode()), text.encode())
    try:
        meant = octets.decode()
    except UnicodeDecodeError:
        raise SyntaxFault("The +XX of an xtext are not UTF-8") from None
    if any(unicodedata.category(character) == "Cc" for character in meant):
        raise SyntaxFault("Control characters are not allowed in an xtext")
    return meant


def encode(text: str) -> str:
    """*text* as xtext."""
    return _TO_CODE.sub(lambda match: b"+%02X" % ord(match[0]), text.encode()).decode()


def auth_parameter(value: str | None) -> Address:
    """The value of AUTH in MAIL (RFC 4954 §5): who submitted the message first.

    :returns: a mailbox, or ``NULL_PATH`` for ``<>``, which says that it is not known or not told.
        It is a claim: of a client that is not trusted to make it, it counts as ``<>``.
    """
    if value is None:
        raise SyntaxFault("Syntax: AUTH=mailbox or AUTH=<>")
    meant = decode(value)
    if meant == "<>":
        return NULL_PATH
    mailbox = grammar.mailbox(meant.encode())
    if not mailbox.domain or meant.startswith("<"):
        raise AddressFault("AUTH takes local-part@domain without angle brackets, or <>")
    return mailbox
