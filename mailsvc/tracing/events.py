"""Which events of the log are kept, as what, and by which names they are found again.

The log is the source: each module tells every outcome there once, with the ids, addresses and
replies as fields (:mod:`mailsvc.log`).  What names a message or a connection is kept, be the level
that is written to the log what it may; what nobody would look for is not.

An :class:`Entry` is found by each of its *names*: ids in it, addresses, the client's IP address,
the Message-ID.  A POP3 unique-id counts as the id of its message, which it holds
(:mod:`mailsvc.store.filenames`); that of a file that another program delivered is no name.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from twisted.logger import LogEvent

from mailsvc.log import CREDENTIALS, LEGACY
from mailsvc.names import fold_domain, fold_local_part

_NAMESPACES = frozenset({"mailsvc.smtp", "mailsvc.pop3", "mailsvc.queue", "mailsvc.console",
                         "mailsvc.api"})

#: The fields whose values events are found by: as they are, as addresses, as lists of addresses;
#: and POP3's, whose values are unique-ids.
_IDS = frozenset({"connection", "id", "about", "delivered", "client", "message_id"})
_ADDRESSES = frozenset({"sender", "recipient", "user"})
_MANY_ADDRESSES = frozenset({"recipients", "accounts", "queued"})
_UNIQUE_IDS = "messages"

#: The digits of an id that tell its time in milliseconds, up to a year.
_INSTANT = slice(2, 9)

_IS_ID = re.compile(r"[0-9A-HJKMNP-TV-Z]{16}")
_IN_UNIQUE_ID = re.compile(r"[0-9]+\.([0-9A-HJKMNP-TV-Z]{16})(?:_[0-9])?\.")


class Kind:
    """What events have in common that are logged at one place.

    :ivar format: what they say, with the names of fields in braces.
    :ivar fields: the names of their fields.
    :ivar values: takes their values out of an event.
    :ivar ids: takes those out of the values that an event is found by as they are.
    :ivar addresses: … that are addresses.
    :ivar lists: the places of lists of addresses.
    :ivar unique_ids: the place of a list of unique-ids, or None.
    :ivar connection: the place of the connection, if it is all that they are about; or None.
    """

    __slots__ = ("addresses", "connection", "fields", "format", "ids", "level", "lists",
                 "namespace", "unique_ids", "values")

    def __init__(self, namespace: str, level: str, format: str, fields: Iterable[str]) -> None:
        self.namespace = namespace
        self.level = level
        self.format = format
        self.fields = fields = tuple(fields)
        self.values = _taker(fields)
        self.ids, self.addresses = (
            _taker([place for place, field in enumerate(fields) if field in names])
            for names in (_IDS, _ADDRESSES))
        self.lists = [place for place, field in enumerate(fields) if field in _MANY_ADDRESSES]
        self.unique_ids = fields.index(_UNIQUE_IDS) if _UNIQUE_IDS in fields else None
        self.connection = fields.index("connection") if "connection" in fields and not (
            "id" in fields or _UNIQUE_IDS in fields) else None


def _taker(keys: Sequence[Any]) -> Callable[[Any], Sequence[Any]]:
    """What takes the items *keys* out of a mapping or sequence."""
    if len(keys) > 1:
        return itemgetter(*keys)
    return lambda container: [container[key] for key in keys]


class Entry(NamedTuple):
    """One event as it is kept.

    :ivar time: when it was, in seconds since the epoch.
    :ivar values: of the fields of its kind; once it has been kept, as JSON has them.
    """

    time: float
    kind: Kind
    values: Sequence[Any]

    @property
    def fields(self) -> dict[str, Any]:
        """Its fields by their names."""
        return dict(zip(self.kind.fields, self.values, strict=True))

    @property
    def text(self) -> str:
        """What it says, as the log has it."""
        try:
            return self.kind.format.format_map(self.fields)
        except (LookupError, ValueError, AttributeError):  # a field of another version's event
            return f"{self.kind.format} {self.fields}"

    @property
    def messages(self) -> list[str]:
        """The ids of the messages that it is about."""
        fields = self.fields
        own = fields.get("id")
        found = [own] if own else map(message_of, fields.get(_UNIQUE_IDS, ()))
        return [id for id in found if id]

    def is_found_by(self, name: str) -> bool:
        """Whether *name* is one of its names."""
        _, kind, values = self
        # Most are not, of those that are looked at.
        return (
            name in kind.ids(values)
            or name in map(folded, filter(None, kind.addresses(values)))
            or any(name in map(folded, values[place]) for place in kind.lists)
            or (kind.unique_ids is not None and name in map(message_of, values[kind.unique_ids]))
            or (kind.connection is not None and name == alone(values[kind.connection]))
        ) and bool(name)


def alone(connection: str) -> str:
    """The name by which only that is found which is about *connection* and no message on it."""
    return f"@{connection}"


def numbers_of(entries: Iterable[Entry]) -> set[int]:
    """What stands for the names of *entries* in an index."""
    # By columns, so that most of it is done without a step of the interpreter for each.
    alike: dict[Kind, list[Sequence[Any]]] = {}
    for _, kind, values in entries:
        alike.setdefault(kind, []).append(values)
    ids: set[str] = set()
    addresses: set[str] = set()
    for kind, rows in alike.items():
        columns = list(zip(*rows, strict=True))
        ids.update(*kind.ids(columns))
        addresses.update(*kind.addresses(columns))
        for place in kind.lists:
            addresses.update(*columns[place])
        if kind.unique_ids is not None:
            ids.update(message_of(each) for some in columns[kind.unique_ids] for each in some)
        if kind.connection is not None:
            ids.update(map(alone, columns[kind.connection]))
    for found in ids, addresses:
        found.difference_update(("", None))
    return {*map(number_of, ids), *map(_number_of_address, addresses)}


@functools.lru_cache(8192)
def folded(address: str) -> str:
    """What spellings of one address share; for what is none, *address* in lower case."""
    local_part, at, domain = address.rpartition("@")
    if not at:
        return fold_local_part(address)
    return f"{fold_local_part(local_part)}@{fold_domain(domain)}"


def number_of(name: str) -> int:
    """What stands for *name* in an index: 37 bits and a sign; two names may have the same.

    All ids of one :data:`_INSTANT` do, so that an index has few of them where there are many.
    """
    if len(name) == 16:
        try:
            return _instant(name[_INSTANT])
        except ValueError:
            pass  # it is no id, but as long as one
    elif len(name) == 17 and name[0] == "@":  # alone() on its connection
        return -1 - number_of(name[1:])
    try:
        octets = name.encode()
    except UnicodeEncodeError:
        octets = name.encode("utf-8", "surrogatepass")
    return zlib.crc32(octets)


@functools.lru_cache(64)
def _instant(digits: str) -> int:
    return int(digits, 36)


def message_of(unique_id: str | bytes) -> str:
    """The id of the message with that POP3 unique-id, or "" if it is not one of ours."""
    text = unique_id if isinstance(unique_id, str) else unique_id.decode("latin-1")
    found = _IN_UNIQUE_ID.match(text)
    return found[1] if found else ""


@functools.lru_cache(8192)
def _number_of_address(address: str) -> int:
    return number_of(folded(address))


def is_kept(event: LogEvent) -> bool:
    """Whether *event* is kept; quick."""
    namespace = event.get("log_namespace")
    if namespace not in _NAMESPACES or not ("id" in event or "connection" in event):
        return False
    if namespace in ("mailsvc.console", "mailsvc.api"):
        return "id" in event  # what was done with a message
    if namespace == "mailsvc.pop3":
        # Mail programs look every minute, and nearly always for nothing: that would soon be all
        # that there is room for.
        return not ("octets" in event or event.get("retrieved") == event.get("deleted") == 0)
    return True


def entry_of(event: LogEvent) -> Entry:
    """*event* as it is kept."""
    namespace, level, form = event["log_namespace"], event["log_level"].name, event["log_format"]
    if "log_failure" in event:
        event = {**event, "reason": event["log_failure"].getErrorMessage()}
    like = namespace, level, form, len(event)
    try:
        kind = _KINDS[like]
        values = kind.values(event)
    except KeyError:  # the first of these, or it has other fields
        kind = _KINDS[like] = _kind(namespace, level, form, tuple(event))
        values = kind.values(event)
    return Entry(event["log_time"], kind, values)


#: The last kind of event that had this namespace, level, format and so many fields.
_KINDS: dict[tuple[str, str, str, int], Kind] = {}


@functools.lru_cache(512)
def _kind(namespace: str, level: str, form: str, names: tuple[str, ...]) -> Kind:
    return Kind(namespace, level, form, [
        name for name in names if not name.startswith("log_")
        and name not in LEGACY and name not in CREDENTIALS])


def is_id(text: str) -> bool:
    """Whether *text* may be an id of :func:`mailsvc.mail.new_id`."""
    return _IS_ID.fullmatch(text) is not None
