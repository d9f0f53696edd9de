"""Sender rewriting (SRS): the reverse-path of mail that is forwarded, and the way back.

Mail that an alias sends on to another host comes from us, and not from a host that the sender's
domain allows (SPF, RFC 7208 §D.1).  So it gets a reverse-path at the alias's domain that holds the
sender's, and a report to that path is forwarded back::

    alice@sender.example           -> SRS0=HASH=DAY=sender.example=alice@ours
    SRS0=…=sender.example=bob@fwd  -> SRS1=HASH=fwd==…=sender.example=bob@ours

What another forwarder made (SRS0, SRS1) is not nested but wrapped once: SRS1 leads back to the
first forwarder alone, so the path does not grow with each hop.

The hash is keyed, so that nobody can make us send to whom he likes; the day makes it worthless
after :data:`DAYS`.  Local-parts lose their case on the way here and there, so hash and day are
base 32 in any case.  A rewritten local-part that exceeds the 64 octets of RFC 5321 §4.5.3.1.1
could be refused by the next host: such a sender is left as it is.
"""

from __future__ import annotations

import base64
import hmac
import re
import time
from collections.abc import Callable

from mailsvc.mail import NULL_PATH, Address

#: For how many days a report may come back; a queue gives up after five.
DAYS = 21

_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
#: No case but that of ASCII: "K" (Kelvin) is no digit.
_FLAGS = re.IGNORECASE | re.ASCII | re.DOTALL
_SRS0 = re.compile(r"SRS0[=+-](?P<hash>[A-Z2-7]{6})=(?P<day>[A-Z2-7]{2})"
                   r"=(?P<domain>[^=]+)=(?P<local>.+)", _FLAGS)
_SRS1 = re.compile(r"SRS1[=+-](?P<hash>[A-Z2-7]{6})=(?P<domain>[^=]+)=(?P<rest>[=+-].+)", _FLAGS)
_FOREIGN = re.compile(r"SRS0(?P<rest>[=+-].+)", _FLAGS)
_FOREIGN_1 = re.compile(r"SRS1[=+-][^=]*=(?P<domain>[^=]+)=(?P<rest>[=+-].+)", _FLAGS)


class SRS:
    """Rewrites senders, and finds them again.

    :param keyed: an HMAC of a value under a key that never changes.
    :param clock: seconds since the epoch.
    """

    def __init__(self, keyed: Callable[[bytes], bytes],
                 clock: Callable[[], float] = time.time) -> None:
        self._keyed = keyed
        self._clock = clock

    def forward(self, sender: Address, domain: str) -> Address:
        """The reverse-path for mail of *sender* that is forwarded by an alias at *domain*.

        The null reverse-path stays null (RFC 5321 §6.1), and a sender of *domain* itself is right
        already.
        """
        if sender == NULL_PATH or sender.domain == domain or sender.domain.startswith("["):
            return sender
        first = _FOREIGN.fullmatch(sender.local_part)
        later = _FOREIGN_1.fullmatch(sender.local_part)
        if later is not None:
            content = f"{later['domain']}={later['rest']}"
            local_part = f"SRS1={self._hash(content)}={content}"
        elif first is not None:
            content = f"{sender.domain}={first['rest']}"
            local_part = f"SRS1={self._hash(content)}={content}"
        else:
            day = int(self._clock() // 86_400) % 1024
            content = f"{_DIGITS[day >> 5]}{_DIGITS[day & 31]}={sender.domain}={sender.local_part}"
            local_part = f"SRS0={self._hash(content)}={content}"
        return Address(local_part, domain) if len(local_part.encode()) <= 64 else sender

    def reverse(self, local_part: str) -> Address | None:
        """Whom mail to *local_part* at a domain of ours is for, or None when we did not make it."""
        if local_part[:3].upper() != "SRS":
            return None
        match = _SRS0.fullmatch(local_part)
        if match is not None:
            day = match["day"].upper()
            content = f"{day}={match['domain']}={match['local']}"
            made = _DIGITS.index(day[0]) << 5 | _DIGITS.index(day[1])
            age = (int(self._clock() // 86_400) - made) % 1024
            if age <= DAYS and self._is(match["hash"], content):
                return Address(match["local"], match["domain"].lower())
            return None
        match = _SRS1.fullmatch(local_part)
        if match is not None and self._is(match["hash"], f"{match['domain']}={match['rest']}"):
            return Address("SRS0" + match["rest"], match["domain"].lower())
        return None

    def _hash(self, content: str) -> str:
        return base64.b32encode(self._keyed(content.lower().encode()))[:6].decode()

    def _is(self, said: str, content: str) -> bool:
        return hmac.compare_digest(said.upper(), self._hash(content))
