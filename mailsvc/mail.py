"""The values that mail is made of: addresses, domains, accounts, aliases, envelopes, ids.

All are immutable except :class:`Envelope`, which one SMTP transaction fills.  Nothing here does I/O
or knows a protocol's wire form beyond the address syntax of RFC 5321 §4.1.2.
"""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

#: dot-string of RFC 5321 §4.1.2, with the UTF-8 of RFC 6531 §3.3.
_DOT_STRING = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u0080-\U0010ffff-]+"
                         r"(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u0080-\U0010ffff-]+)*\Z")


@dataclass(frozen=True, slots=True)
class Address:
    """A Mailbox of RFC 5321 §4.1.2, or one of the two paths that have no domain.

    :ivar local_part: as meant, not as quoted: ``"a b"@c`` has the local-part ``a b``.  NFC.
    :ivar domain: lower case, NFC, without a final dot; an address literal keeps its brackets.
        Empty for the null reverse-path and for ``<postmaster>``.
    """

    local_part: str
    domain: str

    def __str__(self) -> str:
        local = self.local_part
        # An empty local-part has to be quoted too, unless the domain is empty with it.
        if (local or self.domain) and not _DOT_STRING.match(local):
            local = '"' + re.sub(r'(["\\])', r"\\\1", local) + '"'
        return f"{local}@{self.domain}" if self.domain else local

    @property
    def is_ascii(self) -> bool:
        """Whether it can be written without SMTPUTF8."""
        return self.local_part.isascii() and self.domain.isascii()


#: The null reverse-path ``<>`` (RFC 5321 §4.5.5).
NULL_PATH = Address("", "")


#: An account may both get and send mail, or do one of them.
ROLES = ("both", "receive", "send")


@dataclass(frozen=True, slots=True)
class Account:
    """A mailbox that mail is delivered to and fetched from.

    :ivar local_part: its name in its domain, in the directory's own spelling.
    :ivar domain: A-label form, lower case.
    :ivar quota_octets: most octets its maildrop may hold; 0 for no limit.
    :ivar quota_messages: most messages its maildrop may hold; 0 for no limit.
    :ivar role: one of :data:`ROLES`: what it is for.
    """

    local_part: str
    domain: str
    quota_octets: int = 0
    quota_messages: int = 0
    role: str = "both"

    @property
    def receives(self) -> bool:
        """Whether it gets mail, which its owner may fetch."""
        return self.role != "send"

    @property
    def sends(self) -> bool:
        """Whether its owner may submit mail."""
        return self.role != "receive"

    @property
    def name(self) -> str:
        """The login and display name, ``local-part@domain``."""
        return f"{self.local_part}@{self.domain}"


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain whose mail is ours.

    :ivar name: A-label form, lower case.
    :ivar catch_all: who gets the mail for unknown local-parts; None to refuse it.
    :ivar separators: the characters that each part a subaddress's tag from its mailbox; empty for
        no subaddresses, None for the service's own.
    """

    name: str
    catch_all: Address | None = None
    separators: str | None = None


@dataclass(frozen=True, slots=True)
class Alias:
    """A name whose mail goes elsewhere.

    :ivar targets: where to, at least one; one of the alias's own name means the account.
    :ivar moved: nothing is delivered; the sender is told the one target instead.
    """

    local_part: str
    domain: str
    targets: tuple[Address, ...]
    moved: bool = False

    @property
    def name(self) -> str:
        """``local-part@domain``, as :attr:`Account.name`."""
        return f"{self.local_part}@{self.domain}"


@dataclass(frozen=True, slots=True)
class Remote:
    """A mailbox of another host, to which mail is relayed.

    :ivar address: the forward-path to use there.
    :ivar alias: the address of ours that led there, whose mail is forwarded; or None.
    """

    address: Address
    alias: Address | None = None

    @property
    def name(self) -> str:
        """As :attr:`Account.name`."""
        return str(self.address)


@dataclass(frozen=True, slots=True)
class Recipient:
    """One accepted RCPT: the forward-path as given, and where it led.

    :ivar accounts: the accounts here, each once.
    :ivar remotes: the mailboxes elsewhere, each once.
    :ivar notify: of what its sender wants reports, NOTIFY (RFC 3461 §4.1): "NEVER", or of
        "SUCCESS", "FAILURE" and "DELAY"; empty when it was not said.
    :ivar orcpt: the original recipient, ORCPT (§4.2), ``type;address`` decoded; or empty.
    """

    forward_path: Address
    accounts: tuple[Account, ...]
    remotes: tuple[Remote, ...] = ()
    notify: tuple[str, ...] = ()
    orcpt: str = ""

    @property
    def expanded(self) -> bool:
        """Whether it led to several mailboxes."""
        return len(self.accounts) + len(self.remotes) > 1

    @property
    def reports_here(self) -> bool:
        """Whether its sender is to be told of success, and by us (RFC 3461 §5.2.7)."""
        return "SUCCESS" in self.notify and (bool(self.accounts) or self.expanded)


@dataclass(frozen=True, slots=True)
class DeliverBy:
    """Within how much time a message is to be delivered: BY of MAIL (RFC 2852 §4).

    :ivar seconds: from when MAIL was said; 0 and less, in mode "N" alone, when they are over.
    :ivar mode: what is done when they are over: "R", it is returned to its sender; "N", its sender
        is told of the delay.
    :ivar trace: whether its sender is told of each host that it is handed to.
    """

    seconds: int
    mode: str
    trace: bool = False


@dataclass(slots=True)
class Envelope:
    """One mail transaction (RFC 5321 §2.3.1): what MAIL and RCPT said.

    :ivar id: names the message in the 250 reply, in Received, in logs and in the store.
    :ivar size: octets declared by SIZE=, or 0 when not declared.
    :ivar body: BODY=, "7BIT" or "8BITMIME".
    :ivar smtputf8: whether SMTPUTF8 was given.
    :ivar submitter: AUTH=, who submitted the message first, as a trusted client says (RFC 4954 §5).
    :ivar requiretls: whether REQUIRETLS was given (RFC 8689).
    :ivar ret: how much of the message a report returns, RET (RFC 3461 §4.3): "FULL", "HDRS" or
        empty.
    :ivar envid: what its sender calls the transaction, ENVID (§4.4), decoded; or empty.
    :ivar account: the name of who submitted it here, or empty.
    :ivar release: until when it is held, HOLDFOR and HOLDUNTIL (RFC 4865), in seconds since the
        epoch; 0 for not at all.
    :ivar hold: the same as it was said: "for;3600" or "until;" and a date and time; or empty.
    :ivar by: BY, or None.
    :ivar priority: MT-PRIORITY (RFC 6710), -9 to 9.
    :ivar message_id: what the message itself says it is called, ``<…>``, once its header has come;
        or empty.
    """

    id: str
    reverse_path: Address
    size: int = 0
    body: str = "7BIT"
    smtputf8: bool = False
    submitter: Address = NULL_PATH
    requiretls: bool = False
    ret: str = ""
    envid: str = ""
    account: str = ""
    recipients: list[Recipient] = field(default_factory=list)
    release: float = 0.0
    hold: str = ""
    by: DeliverBy | None = None
    priority: int = 0
    message_id: str = ""

    def accounts(self) -> tuple[Account, ...]:
        """Every account to deliver to, each once, in the order first named."""
        if len(self.recipients) == 1:
            return self.recipients[0].accounts
        return tuple(dict.fromkeys(a for r in self.recipients for a in r.accounts))

    def remotes(self) -> tuple[Remote, ...]:
        """Every mailbox to relay to, each once, in the order first named."""
        if len(self.recipients) == 1:
            return self.recipients[0].remotes
        return tuple(dict.fromkeys(a for r in self.recipients for a in r.remotes))


#: Crockford's base 32: no I, L, O, U, so that an id can be read aloud.
_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [high + low for high in _DIGITS for low in _DIGITS]


def _base32(number: int, width: int) -> str:
    return "".join(_DIGITS[number >> shift & 31] for shift in range(5 * (width - 1), -1, -5))


def _ids() -> Iterator[str]:
    last = second = pid = 0
    head = tail = ""
    while True:
        last = max(last + 1, time.time_ns() // 1000)
        # 55 bits of microseconds reach the year 3111; Linux pids have at most 22 bits.
        if last >> 20 != second:
            second = last >> 20
            head = _base32(second, 7)
        if os.getpid() != pid:
            pid = os.getpid()
            tail = _base32(pid, 5)
        yield head + _PAIRS[last >> 10 & 1023] + _PAIRS[last & 1023] + tail


_next_id = _ids()


def new_id() -> str:
    """A 16-character id, unique on this host: microseconds (strictly rising here) and pid.

    Ids of one process sort by time.
    """
    return next(_next_id)


def time_of(id: str) -> float:
    """When an id of :func:`new_id` was made, in seconds since the epoch.

    :raises ValueError: it is none.
    """
    return functools.reduce(
        lambda number, digit: number << 5 | _DIGITS.index(digit), id[:11], 0) / 1e6
