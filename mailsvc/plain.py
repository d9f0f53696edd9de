"""What there is, as JSON has it: in the ``--json`` of commands, and in the API.

Times are as people here write them, with their zone (RFC 3339).
"""

from __future__ import annotations

import datetime
import json
import time
from email import policy
from email.parser import BytesHeaderParser
from typing import Any

from mailsvc.bans import Ban
from mailsvc.directory import SqliteDirectory
from mailsvc.logins import StoredPassword
from mailsvc.mail import Account, Alias, Domain
from mailsvc.queue.filter import status
from mailsvc.queue.message import QueuedMessage
from mailsvc.settings import Key
from mailsvc.store.undeletion import Deleted
from mailsvc.tracing.story import Story
from mailsvc.webhooks.spool import Waiting
from mailsvc.zone import Zone

Plain = dict[str, Any]

#: Most octets of a header that are looked at.
_HEAD = 65_536


def local_time(seconds: float) -> str:
    """*seconds* since the epoch."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def account(directory: SqliteDirectory, account: Account) -> Plain:
    """What an account is for, what it may hold, and how it logs in."""
    credentials = directory.credentials(account.name)
    return {
        "name": account.name,
        "role": account.role,
        "administrator": directory.administers(account),
        "quota_octets": account.quota_octets,
        "quota_messages": account.quota_messages,
        "password": credentials is not None and credentials.verifier is not None,
        "apop": credentials is not None and credentials.secret is not None,
        "app_passwords": len(credentials.app_passwords) if credentials else 0,
    }


def app_password(password: StoredPassword) -> Plain:
    """What an app password is good for, and when it was used; never itself."""
    return {
        "label": password.label, "protocols": sorted(password.protocols),
        "networks": list(password.networks), "expires": _utc(password.expires),
        "made": _utc(password.made), "used": _utc(password.used),
        "used_from": password.used_from or None, "expired": is_over(password),
        "apop": password.secret is not None}


def is_over(password: StoredPassword) -> bool:
    """Whether it has expired."""
    return password.expires is not None and password.expires < time.time()


def _utc(seconds: int | None) -> str | None:
    return None if seconds is None else datetime.datetime.fromtimestamp(
        seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def alias(alias: Alias) -> Plain:
    """Where an alias leads."""
    return {"name": alias.name, "targets": list(map(str, alias.targets)), "moved": alias.moved}


def domain(domain: Domain) -> Plain:
    """A domain that is served here."""
    return {"name": domain.name, "catch_all": domain.catch_all and str(domain.catch_all),
            "separators": domain.separators}


def deleted(message: Deleted) -> Plain:
    """A deleted message that can be had back; it is read.

    :raises FileNotFoundError: it is kept no longer.
    """
    octets, _, head = message.head(_HEAD)
    fields = BytesHeaderParser(policy=policy.compat32).parsebytes(head)
    sender, subject, message_id = (
        " ".join("".join(c if c.isprintable() else " " for c in str(fields.get(name, ""))).split())
        for name in ("From", "Subject", "Message-ID"))
    return {"deleted": message.day, "unique_id": message.unique_id, "octets": octets,
            "from": sender, "subject": subject, "message_id": message_id.strip("<>")}


def queued(message: QueuedMessage) -> Plain:
    """A message that waits, and what became of each recipient."""
    return {
        "id": message.id, "status": status(message), "arrived": local_time(message.arrived),
        "size": message.size, "from": str(message.reverse_path), "account": message.account,
        "attempts": message.attempts,
        "next": None if message.held else local_time(message.due),
        "release": local_time(message.release) if message.release else None,
        "deliver_by": None if message.deadline is None else local_time(message.deadline),
        "priority": message.priority, "route": message.route,
        "recipients": [{
            "address": str(each.address), "original": str(each.original), "state": each.state,
            "status": each.status, "reply": each.reply, "host": each.host,
            "tried": local_time(each.tried) if each.tried else None}
            for each in message.recipients]}


def ban(ban: Ban) -> Plain:
    """A network that may not connect."""
    return {"network": str(ban.network), "since": local_time(ban.since),
            "until": local_time(ban.until), "times": ban.times, "origin": ban.origin,
            "reason": ban.reason}


def session(session: Plain) -> Plain:
    """A connection, of which :mod:`mailsvc.live` tells."""
    return {**session, "since": local_time(session["since"])}


def zone(zone: Zone) -> Plain:
    """What the DNS has to say of a domain, and the policy to publish by HTTPS, if any."""
    return {
        "records": [{"name": each.name, "type": each.kind, "value": each.value,
                     "meaning": " ".join(each.sentence.split())} for each in zone.records()],
        "policy": {"url": zone.policy_url, "text": zone.policy} if zone.receives else None}


def setting(key: Key, value: Any, where: str | None) -> Plain:
    """A key of the configuration, its *value*, and *where* that was given, None for a default."""
    return {"key": str(key), "value": value, "where": where, "default": key.default,
            "unit": key.unit, "meaning": key.sentence, "expected": key.type}


def waiting(waiting: Waiting) -> Plain:
    """An event that waits to be told to a URL."""
    event = waiting.event
    return {"id": event.id, "type": event.kind, "url": waiting.url,
            "since": local_time(event.since), "due": local_time(waiting.due),
            "attempts": waiting.attempts, "problem": waiting.problem,
            "event": json.loads(event.body)}


def receiver(url: str, waiting: int, since: float | None, problem: str) -> Plain:
    """A URL that is told of events, how many wait for it, since when, and why."""
    return {"url": url, "waiting": waiting, "since": None if since is None else local_time(since),
            "problem": problem}


def story(story: Story) -> Plain:
    """What happened to a message, or on a connection."""
    first = story.steps[0].time
    return {"id": story.id, "kind": story.kind, "facts": story.facts, "steps": [
        {"time": datetime.datetime.fromtimestamp(step.time, datetime.UTC).isoformat(
            timespec="milliseconds"),
         "elapsed": round(step.time - first, 3), "phase": step.phase, "text": step.text,
         "message": step.message} for step in story.steps]}
