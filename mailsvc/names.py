"""The names of domains and mailboxes: how they are folded for a look-up, and which may be made.

Domains are A-labels in lower case (UTS 46, then IDNA 2008).  Local-parts are NFC; RFC 5321 §2.4
leaves their case to us, and it does not matter: ``Bob``, ``bob`` and ``BOB`` are one mailbox.
Folding never fails on what a peer sent; it finds nothing.  Checking is for what a person asks to
be made, and raises :class:`DirectoryError` with what was expected.
"""

from __future__ import annotations

import re
import unicodedata

import idna

from mailsvc.mail import Address

#: Always reachable at every domain (RFC 5321 §4.5.1, RFC 2142 §4), and as whom reports are sent,
#: answers to which are to reach somebody (RFC 3464 §2).
RESERVED = frozenset({"postmaster", "abuse", "mailer-daemon"})

#: What may part a subaddress: the specials of an atom (RFC 5321 §4.1.2) and the dot.
SEPARATORS = frozenset("!#$%&'*+-/=?^_`{|}~.")

#: Unicode categories that no local-part may hold: controls, invisible format characters,
#: surrogates, private and unassigned code points, line and paragraph separators.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


class DirectoryError(Exception):
    """A name, change or file that the directory refuses; for the person who asked for it.

    :ivar problem: what is wrong, naming the value.
    :ivar remedy: what was expected, or what to do.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy


def fold_local_part(local_part: str) -> str:
    """The key that spellings of one local-part share (Unicode's canonical caseless matching)."""
    if local_part.isascii():
        return local_part.lower()
    caseless = unicodedata.normalize("NFD", local_part).casefold()
    return unicodedata.normalize("NFC", caseless)


def fold_domain(domain: str) -> str:
    """*domain* in A-labels, lower case, without a final dot; empty when it cannot be a domain."""
    if domain.isascii():
        name = domain.lower()
        return name if name.endswith("..") else name.removesuffix(".")
    try:
        return idna.encode(domain, uts46=True).decode("ascii").removesuffix(".")
    except UnicodeError:
        return ""


def check_domain(text: str) -> str:
    """The host name *text* as the directory keeps it."""
    try:
        name = idna.encode(text, uts46=True, std3_rules=True).decode("ascii").removesuffix(".")
    except UnicodeError:
        raise DirectoryError(f"{text!r} is not a domain name",
                             "expected letters, digits and hyphens between dots") from None
    if name.rpartition(".")[2].isdigit():
        raise DirectoryError(f"{text!r} is an IP address", "expected a domain name")
    return name


def check_address(address: Address) -> Address:
    """*address* as the directory keeps it: local-part in NFC, domain in A-labels.

    Refuses what no mail system could have as an address.
    """
    local_part = unicodedata.normalize("NFC", address.local_part)
    if not local_part:
        raise DirectoryError("the local-part is empty", "expected local-part@domain")
    if any(unicodedata.category(character) in _INVISIBLE for character in local_part):
        raise DirectoryError(f"{local_part!r} holds control or invisible characters",
                             "leave them out")
    if len(local_part.encode()) > 64:  # RFC 5321 §4.5.3.1.1
        raise DirectoryError(f"{local_part!r} is too long", "a local-part has at most 64 octets")
    return Address(local_part, check_domain(address.domain))


def parse_address(text: str) -> Address:
    """The checked address that a person wrote as ``local-part@domain``, perhaps quoted."""
    local_part, at, domain = text.rpartition("@")
    if not at:
        raise DirectoryError(f"{text!r} has no domain", "expected local-part@domain")
    if len(local_part) > 1 and local_part[0] == local_part[-1] == '"':
        local_part = re.sub(r"\\(.)", r"\1", local_part[1:-1])
    return check_address(Address(local_part, domain))


def check_maildir_name(local_part: str) -> None:
    """Refuse a checked *local_part* that cannot safely name a directory.

    It holds no slash; it begins neither with a dot (``.``, ``..``, hidden names) nor with a hyphen
    (options, to the programs an operator runs there); it has no outer spaces.  The same goes for
    the compatibility form (NFKC) that some file systems and programs make of a name.
    """
    for form in (local_part, unicodedata.normalize("NFKC", local_part)):
        if "/" in form or form[0] in ".-" or form != form.strip():
            raise DirectoryError(
                f"{local_part!r} cannot name a mail directory",
                "choose a name without '/' and outer spaces that does not begin with '.' or '-'")
