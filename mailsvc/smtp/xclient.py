"""The argument of XCLIENT: a trusted proxy tells for whom it speaks (Postfix's XCLIENT_README).

Syntax only: :func:`parse` makes a value of it.  Whether the client may say so, and that the session
then begins anew with a greeting, is for others.

Values are xtext (RFC 3461 §4).  ``[UNAVAILABLE]`` says that there is none, ``[TEMPUNAVAIL]`` that
it is not known now; both are "" or 0 here.  What was not given is None and leaves things as they
are.

Stricter than Postfix: an attribute that is not listed here, or comes twice, is refused.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mailsvc.networks import address_of
from mailsvc.smtp import grammar, xtext
from mailsvc.smtp.grammar import SyntaxFault

#: What EHLO lists behind XCLIENT.
ATTRIBUTES = ("NAME", "ADDR", "PORT", "PROTO", "HELO", "LOGIN", "DESTADDR", "DESTPORT")

#: The longest argument.  Postfix takes command lines of 512 octets.
MOST_OCTETS = 1024

_ABSENT = ("[UNAVAILABLE]", "[TEMPUNAVAIL]")


@dataclass(frozen=True, slots=True)
class XClient:
    """What XCLIENT says.

    :ivar name: the client's host name, A-labels in lower case.
    :ivar addr: its IP address.
    :ivar port: its port.
    :ivar proto: "SMTP" or "ESMTP".
    :ivar helo: what it said in HELO or EHLO, as :func:`grammar.hello` returns it.
    :ivar login: the name it logged in as.
    :ivar destaddr: the IP address it connected to.
    :ivar destport: the port.
    """

    name: str | None = None
    addr: str | None = None
    port: int | None = None
    proto: str | None = None
    helo: str | None = None
    login: str | None = None
    destaddr: str | None = None
    destport: int | None = None


def parse(argument: bytes) -> XClient:
    """The argument of XCLIENT: ``NAME=… ADDR=… …``, in any order.

    :raises SyntaxFault: it is malformed.
    """
    if len(argument) > MOST_OCTETS:
        raise SyntaxFault("Too long")
    if not argument.isascii():
        # Letters beyond it may be ASCII in the other case.
        raise SyntaxFault("Not xtext: write what is not ASCII as +XX, in hex")
    values: dict[str, Any] = {}
    for word in argument.decode("ascii").split(" "):
        if not word:
            continue
        keyword, equals, value = word.partition("=")
        attribute = keyword.lower()
        if attribute.upper() not in ATTRIBUTES or not equals:
            raise SyntaxFault("Syntax: XCLIENT attribute=value, of " + ", ".join(ATTRIBUTES))
        if attribute in values:
            raise SyntaxFault(f"{attribute.upper()} is given twice")
        values[attribute] = _value(attribute, value)
    if not values:
        raise SyntaxFault("Syntax: XCLIENT attribute=value, of " + ", ".join(ATTRIBUTES))
    return XClient(**values)


def _value(attribute: str, value: str) -> str | int:
    if value.upper() in _ABSENT:
        return 0 if attribute.endswith("port") else ""
    text = xtext.decode(value)
    try:
        if not text:
            raise ValueError
        return _PARSERS[attribute](text)
    except ValueError:
        raise SyntaxFault(f"Malformed {attribute.upper()}") from None


def _address(text: str) -> str:
    if text[:5].upper() == "IPV6:":
        text = text[5:]
        if "%" in text:  # a zone, which the ipaddress module takes
            raise ValueError
        return str(address_of(ipaddress.IPv6Address(text).packed))
    return str(ipaddress.IPv4Address(text))


def _port(text: str) -> int:
    if not re.fullmatch(r"0|[1-9][0-9]{0,4}", text) or int(text) > 65_535:
        raise ValueError
    return int(text)


def _protocol(text: str) -> str:
    if not text.isascii() or text.upper() not in ("SMTP", "ESMTP"):
        raise ValueError
    return text.upper()


def _hello(text: str) -> str:
    return grammar.hello(text.encode())


def _host_name(text: str) -> str:
    if text.startswith("["):
        raise ValueError
    return grammar.hello(text.encode())


def _login(text: str) -> str:
    if not text.isprintable():
        raise ValueError
    return text


_PARSERS: dict[str, Callable[[str], str | int]] = {
    "name": _host_name,
    "addr": _address,
    "port": _port,
    "proto": _protocol,
    "helo": _hello,
    "login": _login,
    "destaddr": _address,
    "destport": _port,
}
