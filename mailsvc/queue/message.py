"""A message in the queue: its envelope, what became of each recipient, and both as JSON.

The envelope never changes once the message is accepted; the *state* does with each attempt.  Each
is one JSON object in ASCII on one line, so no octet that a parameter brought along can end a field
or a line: in a queue file everything is either inside a string or not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mailsvc.mail import Address, Envelope

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
    size: int = field(default=0, compare=False)

    @property
    def waiting(self) -> list[QueuedRecipient]:
        """The recipients that are still to be tried."""
        return [each for each in self.recipients if each.state == WAITING]


def queued(envelope: Envelope, arrived: float) -> QueuedMessage:
    """The message of *envelope*, for its recipients elsewhere, each once."""
    recipients: dict[Address, QueuedRecipient] = {}
    for each in envelope.recipients:
        notify = each.notify
        if each.reports_here:
            # RFC 3461 §5.2.7.3: "expanded" was the last that is said of success.
            notify = tuple(word for word in notify if word != "SUCCESS") or ("NEVER",)
        for remote in each.remotes:
            recipients.setdefault(remote.address, QueuedRecipient(
                remote.address, each.forward_path, remote.alias, notify, each.orcpt))
    return QueuedMessage(
        envelope.id, arrived, envelope.reverse_path, list(recipients.values()), envelope.body,
        envelope.smtputf8, envelope.requiretls, envelope.ret, envelope.envid, envelope.account,
        due=arrived)


# ---- as JSON ------------------------------------------------------------------------------------


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


def _path(address: Address | None) -> list[str] | None:
    return None if address is None else [address.local_part, address.domain]


def envelope_line(message: QueuedMessage) -> bytes:
    """The envelope, one line."""
    return _line({
        "version": VERSION, "id": message.id, "arrived": message.arrived,
        "reverse_path": _path(message.reverse_path), "body": message.body,
        "smtputf8": message.smtputf8, "requiretls": message.requiretls, "ret": message.ret,
        "envid": message.envid, "account": message.account,
        "recipients": [{"address": _path(each.address), "original": _path(each.original),
                        "alias": _path(each.alias), "notify": list(each.notify),
                        "orcpt": each.orcpt} for each in message.recipients]})


def state_line(message: QueuedMessage) -> bytes:
    """What has become of it, one line."""
    return _line({
        "version": VERSION, "attempts": message.attempts, "due": message.due, "held": message.held,
        "warned": message.warned, "route": message.route,
        "recipients": [{"state": each.state, "status": each.status, "reply": each.reply,
                        "host": each.host, "tried": each.tried, "reported": each.reported}
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
            envid=_text(said["envid"]), account=_text(said["account"]))
        message.due = message.arrived
        if state is not None:
            _take_state(message, _object(state))
    except Unreadable:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Unreadable(f"a field is missing or of another kind: {error}") from error
    return message


def _take_state(message: QueuedMessage, said: dict[str, Any]) -> None:
    message.attempts, message.due = int(said["attempts"]), _number(said["due"])
    message.held, message.warned = bool(said["held"]), bool(said["warned"])
    message.route = _text(said["route"])
    if len(said["recipients"]) != len(message.recipients):
        raise Unreadable("envelope and state have not as many recipients")
    for recipient, each in zip(message.recipients, said["recipients"], strict=True):
        if each["state"] not in STATES:
            raise Unreadable(f"no such state: {each['state']!r}")
        recipient.state, recipient.status = each["state"], _text(each["status"])
        recipient.reply, recipient.host = _text(each["reply"]), _text(each["host"])
        recipient.tried, recipient.reported = _number(each["tried"]), bool(each["reported"])


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
        _text(said["orcpt"]))


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
