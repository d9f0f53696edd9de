"""Which messages of the queue are meant: the filter language of ``mailsvc queue``.

Words with spaces between, all of which have to hold; ``-`` before a word turns it round.  No word
at all means every message.

====================== =========================================================================
``to:@example.org``    a recipient that waits, of that domain
``to:bob@``            … of that local-part; ``to:bob@example.org`` of both
``from:…``             the sender, likewise; ``from:<>`` for reports
``account:alice@…``    who submitted it, likewise
``status:deferred``    ``new`` (never tried), ``deferred`` (to be tried again), ``held``,
                       ``scheduled`` (its sender wants it to be sent later), or ``kept`` (for the
                       next host to fetch it)
``age>4h``             since it came: s, m, h, d, w; also ``<``, ``>=``, ``<=``
``size>1M``            octets: K, M, G
``attempts>=3``        how often it was tried
``reason:text``        what was said last of a recipient that waits
``id:ID``, ``ID``      the message itself
====================== =========================================================================
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Sequence

from mailsvc.mail import NULL_PATH, Address
from mailsvc.names import fold_domain, fold_local_part
from mailsvc.queue.message import QueuedMessage

#: Whether a message is meant, at a time.
Test = Callable[[QueuedMessage, float], bool]

_COMPARE = {">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_OCTETS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


#: Where a message stands.
STATUSES = ("new", "deferred", "held", "scheduled", "kept")


class FilterError(ValueError):
    """A word that means nothing; the text says what was expected."""


def status(message: QueuedMessage) -> str:
    """One of :data:`STATUSES`."""
    if message.held:
        return "held"
    if message.scheduled:
        return "scheduled"
    if message.kept:
        return "kept"
    return "deferred" if message.attempts else "new"


def parse(words: Iterable[str]) -> Test:
    """What *words* mean, all together.

    :raises FilterError: one of them means nothing.
    """
    tests = [_word(word) for text in words for word in text.split()]
    return lambda message, now: all(test(message, now) for test in tests)


def _word(word: str) -> Test:
    if word.startswith("-"):
        test = _word(word[1:])
        return lambda message, now: not test(message, now)
    compared = re.fullmatch(r"(age|size|attempts)(>=|<=|>|<)([0-9]{1,15})([A-Za-z]?)", word)
    if compared:
        return _comparison(*compared.groups())
    name, colon, value = word.partition(":")
    # Ids begin with a digit until the year 2327; "held" is meant for something else.
    if not colon and word.isascii() and word.isalnum() and word[0].isdigit():
        return lambda message, now: message.id == word.upper()
    if name in _FIELDS and value:
        return _FIELDS[name](value)
    raise FilterError(f"{word!r} means nothing; expected to:, from:, account:, status:, reason:, "
                      "id:, a message's id, or age, size or attempts with > or <, such as "
                      "to:@example.org age>4h")


def _comparison(name: str, sign: str, number: str, unit: str) -> Test:
    compare, unit = _COMPARE[sign], unit.lower()
    units = {"age": _SECONDS, "size": _OCTETS, "attempts": {"": 1}}[name]
    if unit not in units:
        raise FilterError(f"{name}{sign}{number}{unit}: expected a number with one of "
                          + ", ".join(filter(None, units)))
    bound = int(number) * units[unit]
    if name == "age":
        return lambda message, now: compare(now - message.arrived, bound)
    if name == "size":
        return lambda message, now: compare(message.size, bound)
    return lambda message, now: compare(message.attempts, bound)


def _path(value: str) -> Callable[[Address], bool]:
    if value == "<>":
        return lambda address: address == NULL_PATH
    local_part, at, domain = value.rpartition("@")
    if not at:
        raise FilterError(f"{value!r}: expected local-part@domain, local-part@ or @domain")
    local_part, domain = fold_local_part(local_part), fold_domain(domain)
    return lambda address: (local_part in ("", fold_local_part(address.local_part))
                            and domain in ("", fold_domain(address.domain)))


def _to(value: str) -> Test:
    meant = _path(value)
    return lambda message, now: any(meant(each.address) for each in message.waiting)


def _from(value: str) -> Test:
    meant = _path(value)
    return lambda message, now: meant(message.reverse_path)


def _account(value: str) -> Test:
    meant = _path(value)

    def test(message: QueuedMessage, now: float) -> bool:
        local_part, _, domain = message.account.rpartition("@")
        return bool(message.account) and meant(Address(local_part, domain))

    return test


def _status(value: str) -> Test:
    if value not in STATUSES:
        raise FilterError(f"status:{value}: expected {', '.join(STATUSES)}")
    return lambda message, now: status(message) == value


def _reason(value: str) -> Test:
    folded = value.casefold()
    return lambda message, now: any(folded in each.reply.casefold() for each in message.waiting)


def _id(value: str) -> Test:
    return lambda message, now: message.id == value.upper()


_FIELDS: dict[str, Callable[[str], Test]] = {
    "to": _to, "from": _from, "account": _account, "status": _status, "reason": _reason, "id": _id}


# ---- acting on what is meant ----

ACTIONS = ("hold", "release", "retry", "reroute", "drop")


def act(message: QueuedMessage, action: str, route: str, now: float) -> bool:
    """Change *message* as *action*, one of :data:`ACTIONS`, says; whether it stays in the queue."""
    if action == "hold":
        message.held = True
    elif action == "drop":
        return False
    elif action == "reroute":
        message.route = route
        message.due = message.due if message.scheduled else now
    else:
        message.held = message.held and action != "release"
        if message.scheduled:
            message.released = now
        message.due = now
    return True


def summary(messages: Sequence[QueuedMessage]) -> dict[str, int]:
    """How many messages have each status, and all."""
    counts = {"messages": len(messages), **dict.fromkeys(STATUSES, 0)}
    for message in messages:
        counts[status(message)] += 1
    return counts
