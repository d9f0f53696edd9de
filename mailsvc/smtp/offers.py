"""The extensions that a server offers, and what of a MAIL command it understands by them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mailsvc.errors import EnhancedStatus
from mailsvc.mail import Address
from mailsvc.smtp import writing
from mailsvc.smtp.failures import NotOffered, Stage
from mailsvc.smtp.replies import Reply
from mailsvc.smtp.requests import Parameters

_EXTENSION = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:[ =](.*))?")


def extensions_of(reply: Reply) -> dict[str, str]:
    """What the reply to EHLO offers (RFC 5321 §4.1.1.1): keyword in capitals -> parameters.

    A line that is no keyword is skipped.
    """
    found: dict[str, str] = {}
    for line in reply.lines[1:]:
        match = _EXTENSION.fullmatch(line.strip())
        if match is None:
            continue
        keyword, parameters = match[1].upper(), (match[2] or "").strip()
        # "AUTH=LOGIN PLAIN" is how it was spelt before RFC 2554; many servers say both.
        if keyword == "AUTH" and keyword in found:
            known = found[keyword].split()
            parameters = " ".join([*known, *(each for each in parameters.split()
                                             if each not in known)])
        found[keyword] = parameters
    return found


def most(offered: Mapping[str, str], what: str) -> int:
    """What the server limits *what* to, such as RCPTMAX (LIMITS, RFC 9422); 0 if it does not say.

    :param offered: as for :func:`understood`.
    """
    for word in offered.get("LIMITS", "").split():
        name, _, value = word.partition("=")
        if name.upper() == what and value.isdecimal():
            return int(value[:9])
    return 0


def understood(path: Address, wanted: Parameters, offered: Mapping[str, str],
               tls_active: bool) -> Parameters:
    """What to say of *wanted*: all but what is not offered and may be left out.

    :param offered: the extensions, by keyword in capitals, with their parameters.
    :raises NotOffered: the message needs what the server does not offer.
    """
    utf8 = writing.needs_smtputf8(path) if wanted.smtputf8 is None else wanted.smtputf8
    if utf8 and "SMTPUTF8" not in offered:
        raise NotOffered(f"{path} or the header is not ASCII, and the server does not offer "
                         "SMTPUTF8", Stage.MAIL, EnhancedStatus(5, 6, 7))
    if wanted.body.upper() == "8BITMIME" and "8BITMIME" not in offered:
        raise NotOffered("the message has octets beyond ASCII, and the server does not offer "
                         "8BITMIME", Stage.MAIL, EnhancedStatus(5, 6, 3))
    if wanted.requiretls and not (tls_active and "REQUIRETLS" in offered):
        raise NotOffered("the message may only go where REQUIRETLS is offered within TLS",
                         Stage.MAIL, EnhancedStatus(5, 7, 30))
    _check_time(wanted, offered)
    _check_hold(wanted, offered)
    most = offered.get("SIZE", "")
    if most.isdecimal() and 0 < int(most[:20]) < wanted.size:
        raise NotOffered(f"the message has {wanted.size} octets and the server takes {most} at "
                         "most", Stage.MAIL, EnhancedStatus(5, 3, 4))
    dsn = "DSN" in offered
    return wanted._replace(
        smtputf8=utf8,
        size=wanted.size if "SIZE" in offered else 0,
        body=(wanted.body or "8BITMIME") if "8BITMIME" in offered else "",
        ret=wanted.ret if dsn else "", envid=wanted.envid if dsn else "",
        auth=wanted.auth if "AUTH" in offered else None,
        by=wanted.by if "DELIVERBY" in offered else None,
        priority=wanted.priority if "MT-PRIORITY" in offered else None)


def _check_time(wanted: Parameters, offered: Mapping[str, str]) -> None:
    """RFC 2852 §4.1: what is to be returned when its time is over goes only where it will be."""
    by, least = wanted.by, offered.get("DELIVERBY")
    if by is None or by.mode != "R":
        return
    if least is None:
        raise NotOffered("the message may only go where DELIVERBY is offered", Stage.MAIL,
                         EnhancedStatus(5, 3, 3))
    # §2: further options may follow behind a comma.
    least = least.partition(",")[0]
    if least.isdecimal() and by.seconds < int(least[:20]):
        raise NotOffered(f"the message is to be there in {by.seconds} seconds and the server "
                         f"promises {least} at least", Stage.MAIL, EnhancedStatus(5, 4, 7))


def _check_hold(wanted: Parameters, offered: Mapping[str, str]) -> None:
    """RFC 4865: to be sent later is not to be sent now."""
    if not wanted.hold_for:
        return
    if "FUTURERELEASE" not in offered:
        raise NotOffered("the message is to be held and the server does not offer FUTURERELEASE",
                         Stage.MAIL, EnhancedStatus(5, 3, 3))
    most = offered["FUTURERELEASE"].partition(" ")[0]
    if most.isdecimal() and int(most[:20]) < wanted.hold_for:
        raise NotOffered(f"the message is to be held for {wanted.hold_for} seconds and the server "
                         f"holds {most} at most", Stage.MAIL, EnhancedStatus(5, 3, 3))
