"""Trace header fields (RFC 5321 §4.4) and the loop detection that reads them (§6.3).

One Return-Path and one Received are added to each message, whatever the number of recipients, so
that one file can serve all of them.
"""

from __future__ import annotations

import functools
import re
import time

from mailsvc.mail import Envelope

# White space before the colon is obsolete (RFC 5322 §4.5); this much of it fits HopCount's carry.
_RECEIVED = re.compile(rb"(?i)\r\nreceived[ \t]{0,50}:")


@functools.lru_cache(maxsize=4)
def date(seconds: int) -> str:
    """*seconds* since the epoch as an RFC 5322 §3.3 date-time, in UTC."""
    # Not strftime, whose names follow the locale.
    year, month, day, hour, minute, second, weekday, *_ = time.gmtime(seconds)
    return (
        f"{('Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat', 'Sun')[weekday]}, {day} "
        f"{_MONTHS[month - 1]} {year} {hour:02}:{minute:02}:{second:02} +0000"
    )


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def address_literal(ip: str) -> str:
    """An IP address as RFC 5321 §4.1.3 writes it, ``[192.0.2.1]`` or ``[IPv6:2001:db8::1]``."""
    return f"[IPv6:{ip}]" if ":" in ip else f"[{ip}]"


def trace_header(
    envelope: Envelope, *, client: str, hello: str, protocol: str, hostname: str, seconds: int,
    tls: str = "", user: str = "",
) -> bytes:
    """The Return-Path and Received fields for *envelope*, received at *seconds*.

    :param client: the peer's IP address, or "" when it has none (a Unix socket).
    :param hello: what the peer called itself in HELO or EHLO; a Domain or address literal.
    :param protocol: the transmission type of RFC 3848 or RFC 6531 §4.3, such as "ESMTP".
    :param tls: the clause of RFC 8314 §4.3, or "".
    :param user: the user of this machine who sends it, or "".
    """
    if user:
        source = f"{hello} (user {_comment(user)})"
    else:
        source = f"{hello} ({address_literal(client)})" if client else hello
    # RFC 5321 §7.6: naming one recipient to the others would disclose it.
    only = envelope.recipients[0].forward_path if len(envelope.recipients) == 1 else None
    target = f"\r\n\tfor <{only}>" if only else ""
    secured = f"\r\n\t{tls}" if tls else ""
    # RFC 6710 registers the clause.
    priority = f"\r\n\tpriority {envelope.priority}" if envelope.priority else ""
    return (
        f"Return-Path: <{envelope.reverse_path}>\r\n"
        f"Received: from {source}\r\n"
        f"\tby {hostname} with {protocol} id {envelope.id}{target}{secured}{priority};\r\n"
        f"\t{date(seconds)}\r\n"
    ).encode()


def _comment(text: str) -> str:
    """*text* inside a comment (RFC 5322 §3.2.2), with "?" for what cannot be there."""
    return re.sub(r"([\\()])", r"\\\1", re.sub(r"[^ -~]", "?", text))


class HopCount:
    """Counts the Received fields in the header of a message that arrives in blocks.

    A message that went through a hundred hosts is going in circles (RFC 5321 §6.3).
    """

    __slots__ = ("_carry", "_in_header", "hops")

    def __init__(self) -> None:
        self._carry = b"\r\n"
        self._in_header = True
        #: Received fields seen so far.
        self.hops = 0

    def feed(self, block: bytes) -> None:
        """Look at one block of the message, lines ending in CRLF, no CRLF cut in two."""
        if not self._in_header:
            return
        text = self._carry + block
        end = text.find(b"\r\n\r\n")
        if end >= 0:
            self._in_header = False
        else:
            end = text.rfind(b"\r\n")
            # The beginning of the line that is still open is all that a match needs.
            self._carry = text[end : end + 64]
        self.hops += len(_RECEIVED.findall(text, 0, end))
