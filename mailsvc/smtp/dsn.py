"""The parameters of the DSN extension (RFC 3461 §4): what a sender wants to be told.

Values come decoded.  ENVID and the address of ORCPT are printable ASCII without spaces at either
end once decoded (§4.2, §4.4), or for the type ``utf-8`` what RFC 6533 §3 writes; nothing that a
client can code there ends a line or a field of a report.
"""

from __future__ import annotations

import re

from mailsvc.smtp import xtext
from mailsvc.smtp.grammar import SyntaxFault

#: RFC 3461 §4.4 and §4.2: octets, as coded.
_ENVID_OCTETS = 100
_ORCPT_OCTETS = 500

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_PRINTABLE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")


def ret(value: str | None) -> str:
    """The value of RET: FULL or HDRS (§4.3)."""
    if value is None or not value.isascii() or value.upper() not in ("FULL", "HDRS"):
        raise SyntaxFault("RET is FULL or HDRS")
    return value.upper()


def envid(value: str | None) -> str:
    """The value of ENVID (§4.4)."""
    if value is None or len(value) > _ENVID_OCTETS:
        raise SyntaxFault(f"ENVID takes an xtext of 1 to {_ENVID_OCTETS} characters")
    meant = xtext.decode(value)
    if not _PRINTABLE.fullmatch(meant):
        raise SyntaxFault("ENVID takes printable ASCII, as an xtext")
    return meant


def notify(value: str | None) -> tuple[str, ...]:
    """The value of NOTIFY: NEVER, or some of SUCCESS, FAILURE, DELAY (§4.1)."""
    words = tuple((value or "").upper().split(",")) if (value or "").isascii() else ()
    if words == ("NEVER",):
        return words
    if not words or len(set(words)) != len(words) or not (
            set(words) <= {"SUCCESS", "FAILURE", "DELAY"}):
        raise SyntaxFault("NOTIFY is NEVER, or SUCCESS, FAILURE and DELAY with commas between")
    return words


def orcpt(value: str | None) -> str:
    """The value of ORCPT: ``type;address`` (§4.2), the address decoded."""
    if value is None or len(value.encode()) > _ORCPT_OCTETS:
        raise SyntaxFault(f"ORCPT takes type;address of at most {_ORCPT_OCTETS} octets")
    kind, semicolon, address = value.partition(";")
    if not semicolon or not re.fullmatch(_ATOM, kind):
        raise SyntaxFault("ORCPT is type;address, such as rfc822;bob@example.org")
    if kind.lower() == "utf-8" and not address.isascii():
        # RFC 6533 §3: utf-8-addr-unitext.  Beyond ASCII too there are controls and line ends.
        if not address.isprintable():
            raise SyntaxFault("The address of ORCPT has no control characters")
        return f"{kind};{address}"
    meant = xtext.decode(address)
    if not _PRINTABLE.fullmatch(meant):
        raise SyntaxFault("The address of ORCPT is printable ASCII, as an xtext")
    return f"{kind};{meant}"
