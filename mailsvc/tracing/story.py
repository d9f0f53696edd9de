"""What happened to a message or on a connection, in order: entries made into a story for people.

A message's story is what names it: how it came in, what was said of its recipients, each attempt
to send it on, who fetched it and removed it; with what became of a message that followed from it (a
report of its failure, its delivery after it had been held), and the login of its connection.  That
a connection was made, or MAIL said, is not logged by itself: their ids hold the time.

What an entry says that nothing here knows is told as the log has it.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from mailsvc.mail import time_of
from mailsvc.tracing.archive import Reader
from mailsvc.tracing.events import Entry, alone, is_id

#: How many messages that follow from each other make one story.
_LINKED = 20


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened.

    :ivar time: in seconds since the epoch.
    :ivar phase: "came in", "checks", "accepted", "refused", "queue", "delivered", "fetched",
        "deleted", "restored", "report", "login" or "note".
    :ivar message: the id of the message that it happened to, or empty.
    """

    time: float
    phase: str
    text: str
    message: str = ""


@dataclass(slots=True)
class Story:
    """What is known of one message or connection.

    :ivar kind: "message" or "connection".
    :ivar steps: in order of time.
    :ivar facts: of a message: sender, recipients, message_id, size, client, user, connection; of a
        connection: client, user, messages.
    """

    id: str
    kind: str
    steps: list[Step] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def story_of(reader: Reader, id: str) -> Story | None:
    """The story of the message or connection *id*; None when nothing is known of it."""
    entries = reader.find(id)
    if not entries:
        return None
    if any(entry.fields.get("connection") == id for entry in entries):
        return _of_connection(id, entries)
    return _of_message(reader, id, entries)


def told_of(entries: Iterable[Entry], most: int) -> list[str]:
    """The ids of up to *most* messages that *entries*, the newest first, are about, in that order;
    and of connections about which there is nothing else to tell.
    """
    found: dict[str, None] = {}
    seen: set[str] = set()
    for entry in entries:
        connection = entry.fields.get("connection", "")
        messages = entry.messages
        found.update(dict.fromkeys(messages))
        if messages:
            found.pop(connection, None)
            seen.add(connection)
        elif connection and connection not in seen:
            found[connection] = None
        # One more: it may be of the connection that was told of last.
        if len(found) > most:
            break
    return list(found)[:most]


# ---- of a message -------------------------------------------------------------------------------


def _of_message(reader: Reader, id: str, entries: list[Entry]) -> Story:
    story = Story(id, "message")
    waiting, known = [id], {id: entries}
    told = set()
    while waiting:
        message = waiting.pop()
        for entry in known[message]:
            if (entry.time, entry.text) not in told:  # what is about two is found twice
                told.add((entry.time, entry.text))
                story.steps += _steps(entry, message)
            for other in _linked(entry, message):
                if other not in known and len(known) < _LINKED:
                    known[other] = reader.find(other)
                    waiting.append(other)
    story.facts = _facts(entries)
    connection = story.facts.get("connection", "")
    if connection:
        story.steps += _beginning(connection, story.facts, id)
        for entry in reader.find(alone(connection)):
            story.steps += _steps(entry, "")
    story.steps = _in_order(story.steps)
    return story


def _linked(entry: Entry, message: str) -> Iterator[str]:
    """The messages that follow from *message*, by *entry*."""
    fields = entry.fields
    if fields.get("about") == message:
        yield fields["id"]
    elif fields.get("id") == message and "delivered" in fields:
        yield fields["delivered"]


#: Where that is logged what is done with mail that has come.
_OF_READERS = ("mailsvc.pop3", "mailsvc.console", "mailsvc.api")
_FACTS = ("sender", "message_id", "size", "client", "hello", "tls", "user", "connection")


def _facts(entries: list[Entry]) -> dict[str, Any]:
    """What is said of the message once, by whoever says it first."""
    facts: dict[str, Any] = {}
    recipients: dict[str, None] = {}
    for entry in entries:
        fields = entry.fields
        # Theirs are of who fetched or removed it, a report's of the report.
        if entry.kind.namespace not in _OF_READERS and "about" not in fields:
            for name in _FACTS:
                if name in fields:
                    facts[name] = facts.get(name) or fields[name]
        if "about" not in fields and entry.kind.namespace == "mailsvc.smtp":
            recipients.update(dict.fromkeys(
                [*fields.get("recipients", ()), *filter(None, [fields.get("recipient")])]))
        elif "recipient" in fields and not recipients:
            recipients[fields["recipient"]] = None
    facts["recipients"] = list(recipients)
    return facts


def _beginning(connection: str, facts: dict[str, Any], message: str) -> Iterator[Step]:
    who = facts.get("client") or "this machine"
    if facts.get("hello"):
        who += f" ({facts['hello']})"
    if is_id(connection):
        yield Step(time_of(connection), "came in", f"connection {connection} from {who}")
    text = f"MAIL FROM:<{facts.get('sender', '')}>"
    if facts.get("user"):
        text += f" by {facts['user']}"
    if facts.get("tls"):
        text += f", {facts['tls']}"
    if is_id(message):
        yield Step(time_of(message), "came in", text, message)


# ---- of a connection ----------------------------------------------------------------------------


def _of_connection(id: str, entries: list[Entry]) -> Story:
    story = Story(id, "connection")
    for name in "client", "user":
        story.facts[name] = next(
            (entry.fields[name] for entry in entries if entry.fields.get(name)), "")
    messages: dict[str, None] = {}
    for entry in entries:
        messages.update(dict.fromkeys(entry.messages))
        story.steps += _steps(entry, "")
    story.facts["messages"] = list(messages)
    if is_id(id):
        story.steps.append(Step(
            time_of(id), "came in", f"connection from {story.facts['client'] or 'this machine'}"))
    story.steps = _in_order(story.steps)
    return story


def _in_order(steps: list[Step]) -> list[Step]:
    return sorted(dict.fromkeys(steps), key=attrgetter("time"))


# ---- what an entry says -------------------------------------------------------------------------

Tell = Callable[[Entry], Iterator[tuple[str, str]]]


def _accepted(entry: Entry) -> Iterator[tuple[str, str]]:
    fields = entry.fields
    if fields.get("checks", 0) >= 1000:
        yield "checks", f"looked through in {_milliseconds(fields['checks'])}"
    times = ""
    if "storing" in fields:
        times = (f"; took {_milliseconds(fields['arriving'])} to arrive, "
                 f"{_milliseconds(fields['storing'])} to be safe on disk")
    yield "accepted", f"{fields['size']:,} octets for {_names(fields['recipients'])}{times}"
    if fields.get("accounts"):
        yield "delivered", f"into the mailbox of {_names(fields['accounts'])}"
    if fields.get("queued"):
        held = f", held until {fields['held_until']}" if fields.get("held_until") else ""
        yield "queue", f"to be sent to {_names(fields['queued'])}{held}"
    elif fields.get("held_until"):
        yield "queue", f"held until {fields['held_until']}"


def _refused(entry: Entry) -> Iterator[tuple[str, str]]:
    fields = entry.fields
    what = "recipient" if "recipient" in fields else "sender"
    yield "refused", f"{what} <{fields[what]}>: {fields['reply']}"


def _attempt(entry: Entry) -> Iterator[tuple[str, str]]:
    fields = entry.fields
    state = fields["state"]
    where = f" by {fields['host']}" if fields["host"] else ""
    did = {"relayed": "taken", "deferred": "put off", "failed": "refused", "kept": "kept"}
    yield "delivered" if state == "relayed" else "queue", (
        f"attempt {fields['attempt']} for <{fields['recipient']}>: {did.get(state, state)}{where}: "
        f"{fields['reply']}")


def _waits(entry: Entry) -> Iterator[tuple[str, str]]:
    until = datetime.datetime.fromtimestamp(entry.fields["until"]).astimezone()
    yield "queue", f"waits until {until.isoformat(timespec='seconds')}"


def _fetched(entry: Entry) -> Iterator[tuple[str, str]]:
    yield "fetched", _by_pop3(entry)


def _deleted(entry: Entry) -> Iterator[tuple[str, str]]:
    yield "deleted", _by_pop3(entry)


def _by_pop3(entry: Entry) -> str:
    fields = entry.fields
    return (f"by {fields['user']} from {fields['client'] or 'this machine'} over POP3, connection "
            f"{fields['connection']}")


def _beside(phase: str, way: str) -> Tell:
    """Tell of *phase*, done by another *way* than POP3."""
    def tell(entry: Entry) -> Iterator[tuple[str, str]]:
        fields = entry.fields
        yield phase, (f"by {fields.get('by', fields['user'])} from "
                      f"{fields['client'] or 'this machine'} {way}")

    return tell


def _as(phase: str, form: str) -> Tell:
    """Tell of *phase*, in the words of *form*."""
    def tell(entry: Entry) -> Iterator[tuple[str, str]]:
        yield phase, form.format_map(entry.fields)

    return tell


#: How an entry begins, behind the id -> what it says.
_TELLERS: dict[tuple[str, str], Tell] = {
    ("mailsvc.smtp", "accepted "): _accepted,
    ("mailsvc.smtp", "refused sender"): _refused,
    ("mailsvc.smtp", "refused recipient"): _refused,
    ("mailsvc.smtp", "dropped "): _as("refused", "given up: {reason}"),
    ("mailsvc.smtp", "not stored"): _as("refused", "could not be stored: {reason}"),
    ("mailsvc.smtp", "logged in"): _as("login", "logged in as {user}"),
    ("mailsvc.smtp", "login failed"): _as("login", "login as {user} failed: {reason}"),
    ("mailsvc.pop3", "login failed"): _as("login", "login as {user} failed: {reason}"),
    ("mailsvc.pop3", "retrieved "): _fetched,
    ("mailsvc.pop3", "removed "): _deleted,
    ("mailsvc.pop3", "logged out"): _as(
        "login", "{user} logged out after {retrieved} messages, {deleted} deleted: {reason}"),
    ("mailsvc.console", "deleted "): _beside("deleted", "in the console"),
    ("mailsvc.console", "restored "): _beside("restored", "in the console"),
    ("mailsvc.api", "deleted "): _beside("deleted", "by the API"),
    ("mailsvc.api", "restored "): _beside("restored", "by the API"),
    ("mailsvc.queue", "{state} recipient"): _attempt,
    ("mailsvc.queue", "not connected"): _as(
        "queue", "no connection to {host} [{address}]: {reason}"),
    ("mailsvc.queue", "delivered here as"): _as(
        "delivered", "into the mailbox of {accounts[0]}, as message {delivered}"),
    ("mailsvc.queue", "reported "): _as(
        "report", "message {id} tells <{sender}> that {about} {action}"),
    ("mailsvc.queue", "waits until"): _waits,
    ("mailsvc.queue", "done "): _as("queue", "done, attempts: {attempts}"),
    ("mailsvc.queue", "changed by"): _as("queue", "by an operator: mailsvc queue {action}"),
}


def _steps(entry: Entry, message: str) -> Iterator[Step]:
    """What *entry* says of *message*, or of its connection."""
    said = entry.kind.format.partition("} ")[2]
    tell = next((tell for (namespace, start), tell in _TELLERS.items()
                 if namespace == entry.kind.namespace and said.startswith(start)), _note)
    try:
        told = list(tell(entry))
    except (LookupError, TypeError, ValueError):  # it is of another version
        told = list(_note(entry))
    # Several that were fetched are told of together, a second after the first at the latest.
    when = entry.fields.get("since", entry.time)
    for phase, text in told:
        yield Step(when, phase, text,
                   entry.fields.get("id") or message or next(iter(entry.messages), ""))


def _note(entry: Entry) -> Iterator[tuple[str, str]]:
    yield "note", entry.text


def _names(names: list[str]) -> str:
    return ", ".join(names)


def _milliseconds(microseconds: int) -> str:
    return f"{microseconds / 1000:,.1f} ms"
