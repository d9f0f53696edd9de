"""When a message is handled, and before which others: what MAIL may say of it.

FUTURERELEASE (RFC 4865) holds it until later, DELIVERBY (RFC 2852) limits the time it may take, and
MT-PRIORITY (RFC 6710) is its place among those that wait.
"""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Mapping

from mailsvc.mail import DeliverBy, Envelope
from mailsvc.smtp.grammar import SyntaxFault
from mailsvc.smtp.limits import SMTPSettings

#: MT-PRIORITY (RFC 6710).
LOWEST, HIGHEST = -9, 9

_DATE_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(\.[0-9]+)?Z",
    re.IGNORECASE)


def hold_for(value: str | None) -> float:
    """The value of HOLDFOR: 1 to 999999999 seconds (RFC 4865)."""
    if value is None or not re.fullmatch(r"[1-9][0-9]{0,8}", value):
        raise SyntaxFault("HOLDFOR takes seconds, from 1 to 999999999")
    return float(value)


def hold_until(value: str | None) -> float:
    """The value of HOLDUNTIL: a date and time in UTC (RFC 4865, RFC 3339 §5.6).

    :returns: seconds since the epoch.
    """
    match = _DATE_TIME.fullmatch(value or "")
    if match is not None:
        fields = tuple(map(int, match.groups()[:6]))
        # A leap second, 60, is the next minute's first.
        if 1 <= fields[1] <= 12 and 1 <= fields[2] <= calendar.monthrange(*fields[:2])[1] and (
                fields[3] <= 23 and fields[4] <= 59 and fields[5] <= 60 and fields[0] >= 1970):
            return calendar.timegm(fields) + float(match[7] or 0)
    raise SyntaxFault("HOLDUNTIL takes a date and time in UTC, such as 2027-01-31T08:30:00Z")


def deliver_by(value: str | None) -> DeliverBy:
    """The value of BY: seconds, ";", R or N, and perhaps T (RFC 2852 §4)."""
    match = re.fullmatch(r"([+-]?[0-9]{1,9});([RN])(T?)", value or "", re.IGNORECASE | re.ASCII)
    if match is None:
        raise SyntaxFault("BY takes seconds;R or seconds;N, and T behind it, such as BY=3600;RT")
    by = DeliverBy(int(match[1]), match[2].upper(), bool(match[3]))
    if by.mode == "R" and by.seconds <= 0:
        raise SyntaxFault("BY with R takes 1 second or more")
    return by


def priority(value: str | None) -> int:
    """The value of MT-PRIORITY: -9 to 9 (RFC 6710)."""
    if value is None or not re.fullmatch(r"-?[1-9]|0", value):
        raise SyntaxFault(f"MT-PRIORITY takes a number from {LOWEST} to {HIGHEST}")
    return int(value)


def future_release(limits: SMTPSettings, now: float) -> str:
    """The EHLO keyword FUTURERELEASE with how far ahead it goes (RFC 4865); or empty."""
    most = limits.hold_most_seconds
    return f"FUTURERELEASE {most} {date_time(now + most)}" if most else ""


def delivery_by(limits: SMTPSettings) -> str:
    """The EHLO keyword DELIVERBY with the least that mode R may say (RFC 2852 §3)."""
    return f"DELIVERBY {limits.deliver_by_least_seconds or ''}".rstrip()


def date_time(seconds: float) -> str:
    """*seconds* since the epoch as RFC 3339 §5.6 writes them, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def check(envelope: Envelope, said: Mapping[str, str | None], limits: SMTPSettings,
          now: float) -> None:
    """Hold what MAIL *said* in these parameters, which *envelope* has, against each other.

    ``envelope.release`` is made absolute, and 0 when that time is over; ``envelope.hold`` is set.

    :raises SyntaxFault: they contradict each other or a limit.
    """
    if "HOLDFOR" in said and "HOLDUNTIL" in said:
        raise SyntaxFault("Only one of HOLDFOR and HOLDUNTIL, please")
    if "HOLDFOR" in said:
        envelope.release += now
    envelope.hold = next((f"{keyword[4:].lower()};{said[keyword]}"
                          for keyword in ("HOLDFOR", "HOLDUNTIL") if keyword in said), "")
    if envelope.release > now + limits.hold_most_seconds:
        raise SyntaxFault(f"Messages are held for {limits.hold_most_seconds} seconds at most")
    if envelope.release <= now:
        envelope.release = 0.0
    by = envelope.by
    if by is None:
        return
    if by.mode == "R" and by.seconds < limits.deliver_by_least_seconds:
        raise SyntaxFault(
            f"BY with R takes {limits.deliver_by_least_seconds} seconds or more here", 555)
    # RFC 4865 §5.2.2, whichever mode.
    if envelope.release > now + by.seconds:
        raise SyntaxFault("The time of BY is over before the message is to be released")
