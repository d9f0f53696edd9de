"""A message in the queue: its envelope, what became of each recipient, and both as JSON.

The envelope never changes once the message is accepted; the *state* does with each attempt.  Each
is one JSON object in ASCII on one line, so no octet that a parameter brought along can end a field
or a line: in a queue file everything is either inside a string or not there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mailsvc.mail import Address, DeliverBy, Envelope

#: The format of the files; another is left alone.
VERSION = 1

WAITING = "waiting"  # to be tried
RELAYED = "relayed"  # the next host took it
FAILED = "failed"  # it did not, and never will

STATES = (WAITING, RELAYED, FAILED)


class Unreadable(ValueError):
    """A queue file that does not hold what it should."""


@dataclass(slots=True)
class QueuedRecipient:
    """One recipient of a message in the queue.

    :ivar address: the forward-path to use.
    :ivar original: the forward-path that the message came with.
    :ivar alias: the alias of ours that forwards it, or None.
    :ivar notify: as :attr:`mailsvc.mail.Recipient.notify`; and ``orcpt`` likewise.
    :ivar state: one of :data:`STATES`.
    :ivar status: the last enhanced status code, "4.4.1"; or empty.
    :ivar reply: what the next host, or we ourselves, said last; or empty.
    :ivar host: who said it, or empty when it was ourselves.
    :ivar tried: when it was last tried, in seconds since the epoch; 0 for never.
    :ivar reported: whether all that its sender wants to know of its end has been told.
    :ivar local: whether it is a mailbox here.
    :ivar kept: whether it is for the next host to fetch (ATRN).
    """

    address: Address
    original: Address
    alias: Address | None = None
    notify: tuple[str, ...] = ()
    orcpt: str = ""
    state: str = WAITING
    status: str = ""
    reply: str = ""
    host: str = ""
    tried: float = 0.0
    reported: bool = False
    local: bool = False
    kept: bool = False

    def wants(self, report: str) -> bool:
        """Whether its sender wants a report of "SUCCESS", "FAILURE" or "DELAY" (RFC 3461 §4.1)."""
        # §4.1: without NOTIFY, of failures, and perhaps of delays.
        return report in (self.notify or ("FAILURE", "DELAY"))


@dataclass(slots=True)
class QueuedMessage:
    """One message in the queue.

    :ivar arrived: when it was accepted, in seconds since the epoch.
    :ivar account: the name of who submitted it here, or empty.
    :ivar attempts: how often it has been tried.
    :ivar due: when it is tried next, in seconds since the epoch.
    :ivar held: whether it waits until an operator releases it.
    :ivar warned: whether its sender was told of the delay.
    :ivar route: where an operator sends it instead, as in ``relay.routes``; or empty.
    :ivar release: until when its sender wants it held (RFC 4865), in seconds since the epoch; 0 for
        not at all.
    :ivar hold: as :attr:`mailsvc.mail.Envelope.hold`.
    :ivar released: when an operator let it go before that; 0 for not.
    :ivar by: within how much time from *arrived* it is to be delivered (RFC 2852), or None.
    :ivar priority: its place among those that are due (RFC 6710), -9 to 9.
    :ivar saved: whether its state has been, or is to be, on disk.
    :ivar tls_optional: whether its header says that it may go without TLS (RFC 8689 §3).
    """

    id: str
    arrived: float
    reverse_path: Address
    recipients: list[QueuedRecipient]
    body: str = "7BIT"
    smtputf8: bool = False
    requiretls: bool = False
    ret: str = ""
    envid: str = ""
    account: str = ""
    attempts: int = 0
    due: float = 0.0
    held: bool = False
    warned: bool = False
    route: str = ""
    release: float = 0.0
    hold: str = ""
    released: float = 0.0
    by: DeliverBy | None = None
    priority: int = 0
    size: int = field(default=0, compare=False)
    saved: bool = field(default=False, compare=False)
    tls_optional: bool = field(default=False, compare=False)

    @property
    def scheduled(self) -> bool:
        """Whether it waits for its release."""
        return 0 < self.release <= self.due and not (self.released or self.attempts)

    @property
    def kept(self) -> bool:
        """Whether all that is left of it is for others to fetch."""
        waiting = self.waiting
        return bool(waiting) and all(each.kept for each in waiting)

    @property
    def is_ascii(self) -> bool:
        """Whether all of the envelope is."""
        return self.reverse_path.is_ascii and all(
            each.address.is_ascii and each.original.is_ascii and each.orcpt.isascii()
            for each in self.recipients)

    @property
    def began(self) -> float:
        """From when its time in the queue counts."""
        return max(self.arrived, self.released or self.release)

    @property
    def deadline(self) -> float | None:
        """When the time that its sender gave it is over; None when it gave none."""
        return None if self.by is None else self.arrived + self.by.seconds

    def in_time(self, now: float) -> bool:
        """Whether its sender gave it a time, which is not over."""
        return self.deadline is not None and now < self.deadline

    @property
    def returns_by(self) -> float | None:
        """Its deadline, if it is returned then; or None."""
        return self.deadline if self.by is not None and self.by.mode == "R" else None

    @property
    def waiting(self) -> list[QueuedRecipient]:
        """The recipients that are still to be tried."""
        return [each for each in self.recipients if each.state == WAITING]


def queued(envelope: Envelope, arrived: float) -> QueuedMessage:
    """The message of *envelope*, for its recipients elsewhere, each once.

    One that is held is for those here too.
    """
    recipients: dict[Address, QueuedRecipient] = {}
    for each in envelope.recipients:
        notify = each.notify
        if each.reports_here and (each.expanded or not envelope.release):
            # RFC 3461 §5.2.7.3: "expanded" was the last that is said of success.
            notify = tuple(word for word in notify if word != "SUCCESS") or ("NEVER",)
        for remote in each.remotes:
            recipients.setdefault(remote.address, QueuedRecipient(
                remote.address, each.forward_path, remote.alias, notify, each.orcpt))
        for account in each.accounts if envelope.release else ():
            address = Address(account.local_part, account.domain)
            recipients.setdefault(address, QueuedRecipient(
                address, each.forward_path, None, notify, each.orcpt, local=True))
    return QueuedMessage(
        envelope.id, arrived, envelope.reverse_path, list(recipients.values()), envelope.body,
        envelope.smtputf8, envelope.requiretls, envelope.ret, envelope.envid, envelope.account,
        due=max(arrived, envelope.release), release=envelope.release, hold=envelope.hold,
        by=envelope.by,
        priority=envelope.priority)


# ---- as JSON ------------------------------------------------------------------------------------


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


def _path(address: Address | None) -> list[str] | None:
    return None if address is None else [address.local_part, address.domain]


def envelope_line(message: QueuedMessage) -> bytes:
    """The envelope, one line."""
    return _line({
        # The first two are what priority_of looks for.
        "version": VERSION, "priority": message.priority, "id": message.id,
        "arrived": message.arrived, "reverse_path": _path(message.reverse_path),
        "body": message.body,
        "smtputf8": message.smtputf8, "requiretls": message.requiretls, "ret": message.ret,
        "envid": message.envid, "account": message.account, "release": message.release,
        "hold": message.hold,
        "by": _by(message.by),
        "recipients": [{"address": _path(each.address), "original": _path(each.original),
                        "alias": _path(each.alias), "notify": list(each.notify),
                        "orcpt": each.orcpt, "local": each.local} for each in message.recipients]})


#: How much of a message's file :func:`priority_of` has to see.
HEAD_OCTETS = 64

_PRIORITY = re.compile(rb'\{"version":[0-9]+,"priority":(-?[0-9])[,}]')


def priority_of(head: bytes) -> int:
    """The priority of the message whose file begins with *head*; 0 where none is found."""
    match = _PRIORITY.match(head)
    return int(match[1]) if match else 0


def state_line(message: QueuedMessage) -> bytes:
    """What has become of it, one line."""
    return _line({
        "version": VERSION, "attempts": message.attempts, "due": message.due, "held": message.held,
        "released": message.released, "warned": message.warned, "route": message.route,
        "recipients": [{"state": each.state, "status": each.status, "reply": each.reply,
                        "host": each.host, "tried": each.tried, "reported": each.reported,
                        "kept": each.kept}
                       for each in message.recipients]})


def parse(envelope: bytes, state: bytes | None) -> QueuedMessage:
    """The message that the two lines describe.

    :param state: None for a message that has not been tried yet.
    :raises Unreadable: they are not what this module wrote.
    """
    said = _object(envelope)
    try:
        message = QueuedMessage(
            _text(said["id"]), _number(said["arrived"]), _address(said["reverse_path"]),
            [_recipient(each) for each in said["recipients"]],
            body=_text(said["body"]), smtputf8=bool(said["smtputf8"]),
            requiretls=bool(said["requiretls"]), ret=_text(said["ret"]),
            envid=_text(said["envid"]), account=_text(said["account"]),
            # Files of older versions do not have these.
            release=_number(said.get("release", 0)), hold=_text(said.get("hold", "")),
            by=_deliver_by(said.get("by")),
            priority=int(_number(said.get("priority", 0))))
        message.due = message.began
        if state is not None:
            _take_state(message, _object(state))
            message.saved = True
    except Unreadable:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Unreadable(f"a field is missing or of another kind: {error}") from error
    return message


def _take_state(message: QueuedMessage, said: dict[str, Any]) -> None:
    message.attempts, message.due = int(said["attempts"]), _number(said["due"])
    message.held, message.warned = bool(said["held"]), bool(said["warned"])
    message.route = _text(said["route"])
    message.released = _number(said.get("released", 0))
    if len(said["recipients"]) != len(message.recipients):
        raise Unreadable("envelope and state have not as many recipients")
    for recipient, each in zip(message.recipients, said["recipients"], strict=True):
        if each["state"] not in STATES:
            raise Unreadable(f"no such state: {each['state']!r}")
        recipient.state, recipient.status = each["state"], _text(each["status"])
        recipient.reply, recipient.host = _text(each["reply"]), _text(each["host"])
        recipient.tried, recipient.reported = _number(each["tried"]), bool(each["reported"])
        recipient.kept = bool(each.get("kept", False))


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not JSON: {error}") from error
    if not isinstance(value, dict) or value.get("version") != VERSION:
        raise Unreadable(f"not of version {VERSION}")
    return value


def _recipient(said: dict[str, Any]) -> QueuedRecipient:
    alias = said["alias"]
    return QueuedRecipient(
        _address(said["address"]), _address(said["original"]),
        None if alias is None else _address(alias), tuple(_texts(said["notify"])),
        _text(said["orcpt"]), local=bool(said.get("local", False)))


def _by(by: DeliverBy | None) -> dict[str, Any] | None:
    return None if by is None else {"seconds": by.seconds, "mode": by.mode, "trace": by.trace}


def _deliver_by(said: Any) -> DeliverBy | None:
    if said is None:
        return None
    seconds, mode, trace = said["seconds"], said["mode"], said["trace"]
    if mode not in ("R", "N"):
        raise TypeError(f"expected R or N, found {mode!r}")
    return DeliverBy(int(_number(seconds)), mode, bool(trace))


def _address(said: Any) -> Address:
    local_part, domain = _texts(said)
    return Address(local_part, domain)


def _texts(values: Iterable[Any]) -> list[str]:
    return [_text(value) for value in values]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a string, found {value!r}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected a number, found {value!r}")
    return float(value)
