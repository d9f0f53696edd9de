"""What mail is imported from: the contract of a source.

A source names what it has (:meth:`Source.offers`), and then gives those messages that are wanted,
in that order.  The *key* of a message names it in its source for good, so that an import that was
broken off, or is run again a week later, knows what it has brought already.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from email import policy
from email.parser import BytesHeaderParser
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

#: What is thought to be at most the header of a message, in octets.
HEAD = 65_536

_DAY = 86_400


class SourceFailure(Exception):
    """A source cannot be used, or not any more; the text says why."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A message that a source has.

    :ivar octets: how large about; 0 when that is not known.
    :ivar when: when it arrived, in seconds since 1970; None when only its header can tell.
    :ivar flags: as maildirs have them.
    :ivar unique_id: what POP3 clients know it by.
    :ivar place: where the source finds it.
    """

    key: str
    octets: int = 0
    when: float | None = None
    flags: str = ""
    unique_id: bytes | None = None
    place: Any = None


class Source(Protocol):
    """Where messages come from.

    :ivar name: tells it from every other source; without secrets.
    :ivar notes: what :meth:`offers` found and leaves out, a line each.
    """

    name: str
    notes: list[str]

    def offers(self) -> Sequence[Offer]:
        """What is there; raises SourceFailure or OSError, as do all."""

    def fetch(self, offers: Iterable[Offer]) -> Iterator[tuple[Offer, Iterable[bytes] | None]]:
        """Each of *offers* in turn, with its octets; None when it has gone meanwhile.

        The octets are to be read before the next is asked for.  Lines may end in LF or CRLF.
        """

    def close(self) -> None:
        """End, whatever was done; may be called again."""


def keyed(ids: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """A key for each of *ids*, and whether it is the first with that id."""
    seen: dict[str, int] = {}
    for id in ids:
        seen[id] = seen.get(id, 0) + 1
        yield (id if seen[id] == 1 else f"{id} #{seen[id]}"), seen[id] == 1


def arrival(head: bytes) -> float:
    """When a message arrived, by its newest Received field, or else by its Date; else now.

    :param head: its first octets.
    """
    now = time.time()
    # Nothing here may fail on what strangers wrote.
    header = re.split(rb"\r?\n\r?\n", head, maxsplit=1)[0]
    fields = BytesHeaderParser(policy=policy.compat32).parsebytes(header)
    received = [str(value).rpartition(";")[2] for value in fields.get_all("Received", [])[:1]]
    for text in (*received, *map(str, fields.get_all("Date", [])[:1])):
        try:
            when = parsedate_to_datetime(text.strip()).timestamp()
        except (ValueError, TypeError, IndexError, OverflowError):
            continue
        if 0 < when < now + _DAY:
            return when
    return now
