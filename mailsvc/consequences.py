"""What other settings would have answered to the envelopes that came lately.

Each envelope that a service was offered is in its trace (:mod:`mailsvc.tracing`), whatever became
of it.  Those that are alike are rehearsed once (:mod:`mailsvc.rehearsal`) by the settings in effect
and once by the others, both against the accounts, bans and counts of now: so what differs is due to
the settings alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from mailsvc.config import Settings
from mailsvc.networks import address_of
from mailsvc.rehearsal import Rehearsal, Verdict
from mailsvc.tracing.events import Entry

#: How many kinds of envelopes are rehearsed, those that came most often; each takes some
#: milliseconds.
MOST = 500


class Offered(NamedTuple):
    """An envelope to one recipient, as a client offered it.

    :ivar client: its IP address; the loopback address for one that came by a socket of this host.
    :ivar user: the login or, on a trusted network, the network's name; empty for mail from outside.
    """

    client: str
    user: str
    sender: str
    recipient: str

    def rehearsed(self, rehearsal: Rehearsal, size: int) -> Verdict:
        """What *rehearsal* answers to it."""
        login = self.user if "@" in self.user else ""
        return rehearsal.play(self.sender, self.recipient, size, client=self.client,
                              submission=bool(self.user), login=login)


@dataclass(frozen=True, slots=True)
class Change:
    """An envelope that would be answered otherwise.

    :ivar times: how often it came.
    """

    offered: Offered
    times: int
    now: Verdict
    then: Verdict


@dataclass(slots=True)
class Consequences:
    """What came of it.

    :ivar envelopes: how many came, each recipient for itself.
    :ivar kinds: how many of them were unlike.
    :ivar rehearsed: how many of these were rehearsed.
    """

    envelopes: int
    kinds: int
    rehearsed: int
    changes: list[Change]


def consequences(now: Settings, then: Settings, entries: Iterable[Entry],
                 tell: Callable[[int, int], None] = lambda done, of: None) -> Consequences:
    """Of the envelopes of *entries*, what settings *now* answer, and what *then* would.

    :param tell: called with how many have been rehearsed, of how many.
    :raises mailsvc.names.DirectoryError: the files of the service cannot be used.
    :raises mailsvc.errors.MailFailure: they cannot now.
    """
    times: Counter[Offered] = Counter()
    sizes: dict[Offered, int] = {}
    for offered, size in _envelopes(entries):
        times[offered] += 1
        sizes[offered] = max(size, sizes.get(offered, 0))
    chosen = times.most_common(MOST)
    found = Consequences(times.total(), len(times), len(chosen), [])
    with Rehearsal(now) as before, Rehearsal(then) as after:
        for done, (offered, often) in enumerate(chosen, 1):
            size = sizes[offered]
            was, would = (offered.rehearsed(each, size) for each in (before, after))
            if _outcome(was) != _outcome(would):
                found.changes.append(Change(offered, often, was, would))
            tell(done, len(chosen))
    return found


def _envelopes(entries: Iterable[Entry]) -> Iterator[tuple[Offered, int]]:
    """With the octets of the message, where it came so far; otherwise 0."""
    for entry in entries:
        if entry.kind.namespace != "mailsvc.smtp":
            continue
        fields = entry.fields
        recipients = fields.get("recipients") or [fields.get("recipient")]
        if "sender" not in fields or "client" not in fields or None in recipients:
            continue
        client, user = _address(fields["client"]), fields.get("user") or ""
        for recipient in recipients:
            yield Offered(client, user, fields["sender"], recipient), fields.get("size") or 0


def _address(client: str) -> str:
    try:
        return str(address_of(client))
    except ValueError:
        return "127.0.0.1"


def _outcome(verdict: Verdict) -> tuple[Any, ...]:
    """What of *verdict* somebody would notice."""
    return verdict.reply, verdict.accounts, [(address, hop) for address, hop, _ in verdict.onward]
