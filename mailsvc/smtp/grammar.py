"""The arguments of SMTP commands (RFC 5321 §4.1): bytes in, values out.

Syntax only: whether an address exists or a size is too large is for others to say.  Announced
leniency: spaces after ``FROM:`` and ``TO:``, trailing white space, an underscore in a domain; and
in HELO and EHLO, which only serve to tell who came, a final dot and ``[::1]`` for ``[IPv6:::1]``.

Each parser raises :class:`SyntaxFault`, whose text tells the client what was expected.
"""

from __future__ import annotations

import functools
import ipaddress
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

import idna

from mailsvc.mail import NULL_PATH, Address

# RFC 5321 §4.5.3.1: octets, angle brackets counted in a path.
LOCAL_PART_OCTETS = 64
DOMAIN_OCTETS = 255
PATH_OCTETS = 256


class SyntaxFault(ValueError):
    """An argument that does not follow the grammar; its text is for the client.

    :ivar code: 501; or when the syntax will do, 553 if the mailbox name will not, 555 if what a
        parameter asks for cannot be done.
    """

    def __init__(self, text: str, code: int = 501) -> None:
        super().__init__(text)
        self.code = code


class AddressFault(SyntaxFault):
    """The address in an argument is at fault (RFC 3463 §3.2: X.1.3, X.1.7)."""


@dataclass(frozen=True, slots=True)
class PathArgument:
    """What MAIL and RCPT were given.

    :ivar path: the mailbox, source route removed (RFC 5321 §3.6.1, appendix C).
    :ivar parameters: ESMTP parameters, keywords in upper case; a value is None when there was no
        "=".
    :ivar internationalized: whether it was written with more than ASCII (RFC 6531 §3.3), even if
        only in a source route, or meaning an ASCII name.
    """

    path: Address
    parameters: Mapping[str, str | None]
    internationalized: bool = False


_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u0080-\U0010ffff-]+"
_LET_DIG = r"[A-Za-z0-9_\u0080-\U0010ffff]"
_SUB_DOMAIN = rf"{_LET_DIG}(?:(?:{_LET_DIG}|-)*{_LET_DIG})?"
_DOMAIN = rf"{_SUB_DOMAIN}(?:\.{_SUB_DOMAIN})*"
_DOT_STRING = rf"{_ATEXT}(?:\.{_ATEXT})*"
_QUOTED = r'"(?:[\x20\x21\x23-\x5b\x5d-\x7e\u0080-\U0010ffff]|\\[\x20-\x7e])*"'
# Letters, digits, ":" and "." alone: RFC 5321 §4.1.3 has no zone (fe80::1%eth0), but the ipaddress
# module takes one, with whatever stands in it.
_LITERAL = r"\[[A-Za-z0-9:.]+\]"

_MAILBOX = re.compile(rf"(?P<local>{_DOT_STRING}|{_QUOTED})@(?P<domain>{_DOMAIN}|{_LITERAL})")
_LOCAL_PART = re.compile(rf"(?P<local>{_DOT_STRING}|{_QUOTED})")
# A mailbox must follow: a route that leads nowhere is not the null path.
_SOURCE_ROUTE = re.compile(rf"@{_DOMAIN}(?:,@{_DOMAIN})*:(?=.)")
_DOMAIN_ONLY = re.compile(_DOMAIN)
_PARAMETER = re.compile(
    r"(?P<keyword>[A-Za-z0-9][A-Za-z0-9-]*)(?:=(?P<value>[!-<>-~\u0080-\U0010ffff]+))?"
)
# A path ends at the first ">" that is not inside a quoted local-part.
_BRACKETED = re.compile(rf"<(?P<path>(?:{_QUOTED}|[^\"<> ])*)>(?P<tail>(?:[ \t].*)?)", re.DOTALL)


def text(argument: bytes) -> str:
    """Decode an argument: ASCII, or UTF-8 as RFC 6531 §3.3 allows.

    Not normalized here: NFC makes the Kelvin sign a K, which no keyword may be spelt with.
    """
    try:
        return argument.decode()
    except UnicodeDecodeError:
        raise SyntaxFault("Neither ASCII nor UTF-8") from None


def hello(argument: bytes, verb: str = "EHLO") -> str:
    """The client's name for itself: a domain or an address literal (RFC 5321 §4.1.1.1).

    :param verb: the command that it is the argument of.
    """
    name = text(argument)
    if not name:
        raise SyntaxFault(f"Say who you are: {verb} your.host.name")
    try:
        if name.startswith("["):
            literal = re.sub(r"\A\[(?=[^.]*:)(?!IPv6:)", "[IPv6:", name, flags=re.IGNORECASE)
            return _address_literal(literal)
        domain = _domain(name.removesuffix("."))
    except SyntaxFault:
        raise SyntaxFault("Not a domain or an address literal") from None
    # RFC 6531 §3.7.1: U-labels have no place here; in Received they would be worse.
    return domain if domain.isascii() else idna.encode(domain).decode()


def domains(argument: bytes) -> tuple[str, ...]:
    """The domains that ATRN was given, each once, in A-labels (RFC 2645 §5.2.1); there may be none.

    Leniency: spaces around the commas.
    """
    found = []
    for word in text(argument).split(",") if argument else ():
        try:
            name = _domain(word.strip(" "))
        except SyntaxFault:
            raise SyntaxFault("Syntax: ATRN [domain,domain]") from None
        found.append(name if name.isascii() else idna.encode(name).decode())
    return tuple(dict.fromkeys(found))


def reverse_path(argument: bytes) -> PathArgument:
    """The argument of MAIL: ``FROM:<path> parameters`` (RFC 5321 §4.1.1.2)."""
    path, parameters = _path_argument(argument, "FROM", "MAIL FROM:<address>")
    inside = _without_route(path)
    return PathArgument(_mailbox(inside) if inside else NULL_PATH, parameters, not path.isascii())


def forward_path(argument: bytes) -> PathArgument:
    """The argument of RCPT: ``TO:<path> parameters`` (RFC 5321 §4.1.1.3).

    ``<postmaster>``, in any case, is the only path without a domain (§4.5.1).
    """
    path, parameters = _path_argument(argument, "TO", "RCPT TO:<address>")
    inside = _without_route(path)
    if not inside:
        raise AddressFault("A recipient cannot be empty")
    if inside.lower() == "postmaster":
        return PathArgument(Address("postmaster", ""), parameters, not path.isascii())
    return PathArgument(_mailbox(inside), parameters, not path.isascii())


def _path_argument(argument: bytes, word: str, usage: str) -> tuple[str, dict[str, str | None]]:
    """What stands in the angle brackets, and the parameters behind them."""
    decoded = text(argument)
    head, colon, tail = decoded.partition(":")
    # ASCII only: upper() would let U+017F and its kind pass for an S.
    if not colon or not head.isascii() or head.upper() != word:
        raise SyntaxFault(f"Syntax: {usage}")
    match = _BRACKETED.fullmatch(tail.lstrip(" "))
    if match is None:
        raise SyntaxFault(f"Syntax: {usage}")
    inside = match["path"]
    if len(inside.encode()) + 2 > PATH_OCTETS:
        raise AddressFault("Path too long")
    return inside, parameters(match["tail"])


def _without_route(path: str) -> str:
    route = _SOURCE_ROUTE.match(path)
    return path[route.end() :] if route else path


def parameters(tail: str) -> dict[str, str | None]:
    """ESMTP parameters, separated by white space (RFC 5321 §4.1.2, Mail-parameters)."""
    found: dict[str, str | None] = {}
    if not tail:
        return found
    for word in filter(None, re.split("[ \t]", tail)):
        match = _PARAMETER.fullmatch(word)
        if match is None:
            raise SyntaxFault("Malformed parameter; expected KEYWORD or KEYWORD=value")
        keyword = match["keyword"].upper()
        if keyword in found:
            raise SyntaxFault(f"Parameter {keyword} given twice")
        found[keyword] = match["value"]
    return found


def mailbox(argument: bytes) -> Address:
    """A mailbox without brackets or with: what VRFY and EXPN may be given (RFC 5321 §4.1.1.6).

    A bare local-part has an empty domain.
    """
    inside = text(argument)
    if inside.startswith("<") and inside.endswith(">"):
        inside = inside[1:-1]
    if len(inside.encode()) + 2 > PATH_OCTETS:
        raise AddressFault("Path too long")
    # An empty local-part without a domain would be the null path.
    if inside != '""' and _LOCAL_PART.fullmatch(inside):
        return Address(_local_part(inside), "")
    return _mailbox(inside)


@functools.lru_cache(2048)  # the same people write to the same people
def _mailbox(inside: str) -> Address:
    match = _MAILBOX.fullmatch(inside)
    if match is None and _LOCAL_PART.fullmatch(inside):
        raise AddressFault("The mailbox needs a domain; expected local-part@domain", 553)
    if match is None:
        raise AddressFault("Not a mailbox; expected local-part@domain")
    domain = match["domain"]
    return Address(
        _local_part(match["local"]),
        _address_literal(domain) if domain.startswith("[") else _domain(domain),
    )


def _local_part(local: str) -> str:
    if local.startswith('"'):
        local = re.sub(r"\\(.)", r"\1", local[1:-1])
    local = unicodedata.normalize("NFC", local)
    if len(local.encode()) > LOCAL_PART_OCTETS:
        raise AddressFault("Local-part too long")
    return local


def _domain(name: str) -> str:
    try:
        # UTS 46 folds case and width, and makes the dots of other scripts into dots.
        name = name.lower() if name.isascii() else idna.uts46_remap(name, std3_rules=False)
        alabels = name if name.isascii() else idna.encode(name).decode()
    except idna.IDNAError:
        raise AddressFault("Malformed domain: not a valid internationalized name") from None
    if not _DOMAIN_ONLY.fullmatch(name):
        raise AddressFault("Malformed domain")
    if len(alabels) > DOMAIN_OCTETS:
        raise AddressFault("Domain too long")
    if any(len(label) > 63 for label in alabels.split(".")):
        raise AddressFault("Label of a domain too long")
    return name


def _address_literal(literal: str) -> str:
    """An IPv4 or IPv6 literal (RFC 5321 §4.1.3), brackets included; no other tag is registered."""
    if not re.fullmatch(_LITERAL, literal):
        raise AddressFault("Malformed address literal")
    inside = literal[1:-1]
    try:
        if inside[:5].upper() == "IPV6:":
            return f"[IPv6:{ipaddress.IPv6Address(inside[5:])}]"
        return f"[{ipaddress.IPv4Address(inside)}]"
    except ValueError:
        raise AddressFault("Malformed address literal") from None


def size(value: str | None) -> int:
    """The value of SIZE: one to twenty digits (RFC 1870 §3)."""
    if value is None or not re.fullmatch(r"[0-9]{1,20}", value):
        raise SyntaxFault("SIZE takes a number of octets")
    return int(value)


def body(value: str | None) -> str:
    """The value of BODY: 7BIT or 8BITMIME (RFC 6152 §3)."""
    said = value.upper() if value is not None and value.isascii() else ""
    if said == "BINARYMIME":
        # RFC 5321 §4.1.1.11: 555 for what is well-formed and cannot be done.
        raise SyntaxFault("BINARYMIME is not offered; encode the message", 555)
    if said not in ("7BIT", "8BITMIME"):
        raise SyntaxFault("BODY is 7BIT or 8BITMIME")
    return said


def flag(value: str | None) -> bool:
    """A parameter without a value, such as SMTPUTF8 (RFC 6531 §3.4)."""
    if value is not None:
        raise SyntaxFault("This parameter takes no value")
    return True


def chunk(argument: bytes) -> tuple[int, bool]:
    """The argument of BDAT: octets, and whether LAST was said (RFC 3030 §2)."""
    match = re.fullmatch(rb"([0-9]{1,20})(?:[ \t]+([Ll][Aa][Ss][Tt]))?", argument)
    if match is None:
        raise SyntaxFault("Syntax: BDAT octets [LAST]")
    return int(match[1]), match[2] is not None
