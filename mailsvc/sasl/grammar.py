"""The forms of which messages of SASL mechanisms are made."""

from __future__ import annotations

import base64
import binascii
import re

from mailsvc.sasl.steps import Kind, Refused

_STRAY_EQUALS_SIGN = re.compile(rb"=(?!2C|3D)")


def decode_base64(text: bytes) -> bytes:
    """The octets that *text* stands for (RFC 4648 §4).

    Only what an encoder makes is taken: no white space, no missing or superfluous padding, and no
    bits set that the padding leaves over (RFC 4648 §3.5 lets a decoder refuse them).  So a message
    has one encoding, and what a log or a proxy compared is what was meant.
    """
    try:
        data = base64.b64decode(text)
    except binascii.Error:
        data = None
    if data is None or base64.b64encode(data) != text:
        raise Refused(Kind.MALFORMED, "not base64")
    return data


def text(data: bytes) -> bytes:
    """*data*, which must be UTF-8, not empty, and without NUL (RFC 4616 §2)."""
    try:
        data.decode()
    except UnicodeDecodeError:
        raise Refused(Kind.MALFORMED, "not UTF-8") from None
    if not data or b"\0" in data:
        raise Refused(Kind.MALFORMED, "an empty part, or NUL in one")
    return data


def saslname(data: bytes) -> bytes:
    """The name that ``=2C`` and ``=3D`` stand in for comma and equals sign (RFC 5801 §4)."""
    if _STRAY_EQUALS_SIGN.search(data):
        raise Refused(Kind.MALFORMED, "not a saslname")
    return text(data.replace(b"=2C", b",").replace(b"=3D", b"="))
