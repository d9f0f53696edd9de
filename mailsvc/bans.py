"""Networks that may not connect for a while: kept where all processes see them, found in memory.

A :class:`Ban` binds one network in CIDR form.  Its origin says who made it, and whom it spares:

* ``address``: failed logins of one IPv4 address or one IPv6 /64, which is what one host is given.
* ``network``: failed logins from all over an IPv4 /24 or IPv6 /48.  Addresses in it that logged in
  before are spared, for they are probably somebody else's.
* ``manual``: ``mailsvc ban add``; nobody is spared.

:class:`BanTable` keeps them in :class:`mailsvc.state.State`.  A ban that is over stays there for as
long as it makes the next one longer.  :class:`BanList` is what one process knows: it asks the table
for what changed, which costs some microseconds when nothing did, and answers from memory.

**Limits.**  :data:`MOST` bans of our own making; beyond these the oldest go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mailsvc.networks import Address, Network, network_of
from mailsvc.state import State

ADDRESS, NETWORK, MANUAL = "address", "network", "manual"

#: The most bans that are kept beside those made by hand.
MOST = 10_000

#: ``changed`` grows with each change of any row.
_TABLE = (
    """CREATE TABLE IF NOT EXISTS bans (
        network TEXT PRIMARY KEY, since REAL NOT NULL, until REAL NOT NULL,
        times INTEGER NOT NULL, origin TEXT NOT NULL, reason TEXT NOT NULL,
        changed INTEGER NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS bans_changed ON bans (changed)",
)
_COLUMNS = "network, since, until, times, origin, reason"
_NEXT = "(SELECT coalesce(max(changed), 0) + 1 FROM bans)"


@dataclass(frozen=True, slots=True)
class Ban:
    """One network that may not connect.

    :ivar since: when it began, in seconds since the epoch.
    :ivar until: when it ends; 0 when it was lifted.
    :ivar times: how many bans in a row this is.
    :ivar origin: ADDRESS, NETWORK or MANUAL.
    :ivar reason: why, in words.
    """

    network: Network
    since: float
    until: float
    times: int = 1
    origin: str = MANUAL
    reason: str = ""


def parse_network(text: str) -> Network:
    """The network that *text* names: in CIDR form, or a single address.

    :raises ValueError: it names none, or everybody; the text of the error says what to give.
    """
    try:
        if "%" in text:
            raise ValueError(text)  # a zone (RFC 4007 §11) is no part of a network
        network = network_of(text)
    except ValueError:
        raise ValueError(f"{text[:50]!r} is not a network; expected an address such as 192.0.2.7 "
                         "or a network such as 192.0.2.0/24 or 2001:db8::/32") from None
    if network.prefixlen == 0:
        raise ValueError(f"{text} is everybody; stop the service to take no connections")
    return network


def within(inner: Network, outer: Network) -> bool:
    """Whether all of *inner* is in *outer*."""
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]


class BanTable:
    """The bans in *state*, which all processes see; belongs to the thread of *state*.

    Its methods raise :class:`TemporaryFailure` when the file cannot be used.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        state.table(*_TABLE)

    def active(self, now: float) -> list[Ban]:
        """The bans that bind now, the newest first."""
        return _bans(self._state.rows(
            f"SELECT {_COLUMNS} FROM bans WHERE until > ? ORDER BY since DESC, network", now))

    def binding(self, network: Network, now: float) -> Ban | None:
        """The ban of exactly *network* that binds now."""
        found = _bans(self._state.rows(
            f"SELECT {_COLUMNS} FROM bans WHERE network = ? AND until > ?", str(network), now))
        return found[0] if found else None

    def around(self, network: Network, now: float) -> Ban | None:
        """A ban that binds now and has *network* in it."""
        return next((each for each in self.active(now) if within(network, each.network)), None)

    def changes(self, after: int) -> tuple[int, list[Ban]]:
        """What changed *after* a number that this returned before (0: everything), and the next.

        Bans that are over are among them.
        """
        # One query: what changes between two would be lost.
        rows = self._state.rows(
            f"SELECT changed, {_COLUMNS} FROM bans WHERE changed > ? ORDER BY changed", after)
        return (rows[-1][0] if rows else after), _bans([row[1:] for row in rows])

    def put(self, ban: Ban) -> None:
        """Make *ban*, or let the one of its network last longer.

        A ban made by hand replaces any other.  Another does not weaken one that still binds, and
        when two processes make one at once it is the same one.
        """
        self._state.change(
            f"""INSERT INTO bans ({_COLUMNS}, changed) VALUES (?, ?, ?, ?, ?, ?, {_NEXT})
            ON CONFLICT (network) DO UPDATE SET
                since = CASE WHEN until > excluded.since THEN since ELSE excluded.since END,
                times = max(times, excluded.times),
                until = CASE WHEN excluded.origin = '{MANUAL}' THEN excluded.until
                             ELSE max(until, excluded.until) END,
                reason = CASE WHEN until > excluded.since AND excluded.origin <> '{MANUAL}'
                              THEN reason ELSE excluded.reason END,
                origin = CASE WHEN until > excluded.since AND excluded.origin <> '{MANUAL}'
                              THEN origin ELSE excluded.origin END,
                changed = excluded.changed""",
            str(ban.network), ban.since, ban.until, ban.times, ban.origin, ban.reason)

    def lift(self, ban: Ban) -> None:
        """Let *ban* end now, and count for nothing later."""
        self._state.change(
            f"UPDATE bans SET until = 0, times = 0, changed = {_NEXT} WHERE network = ?",
            str(ban.network))

    def sweep(self, before: float) -> None:
        """Forget what ended *before*, and what is too much."""
        # Never the row that changed last, or its number would be given out twice.
        self._state.change(
            "DELETE FROM bans WHERE until < ? AND changed < (SELECT max(changed) FROM bans)",
            before)
        self._state.change(
            f"""DELETE FROM bans WHERE origin <> '{MANUAL}' AND changed <= (
                SELECT changed FROM bans WHERE origin <> '{MANUAL}'
                ORDER BY changed DESC LIMIT 1 OFFSET {MOST})""")


def _bans(rows: list[Any]) -> list[Ban]:
    return [Ban(network_of(row[0]), *row[1:]) for row in rows]


class BanList:
    """The bans as one process knows them, found by address.

    A ban that is over is kept, for its ``times``, until it is swept out.
    """

    def __init__(self) -> None:
        self._changed = 0
        #: Bans by network number, in tables by what a network has of an address.
        self._tables: dict[tuple[int, int], dict[int, Ban]] = {}
        self._bans = 0

    def __len__(self) -> int:
        return self._bans

    def refresh(self, table: BanTable) -> list[Ban]:
        """Learn what changed in *table*, and return it; raises :class:`TemporaryFailure`."""
        self._changed, changes = table.changes(self._changed)
        for ban in changes:
            self.put(ban)
        return changes

    def put(self, ban: Ban) -> None:
        """*ban* is what is known of its network from now on."""
        network = ban.network
        shift = network.max_prefixlen - network.prefixlen
        table = self._tables.setdefault((network.version, shift), {})
        number = int(network.network_address) >> shift
        self._bans += number not in table
        table[number] = ban

    def known(self, network: Network) -> Ban | None:
        """The last ban of exactly *network*, perhaps over."""
        shift = network.max_prefixlen - network.prefixlen
        table = self._tables.get((network.version, shift), {})
        return table.get(int(network.network_address) >> shift)

    def covering(self, address: Address, now: float) -> Iterator[Ban]:
        """The bans that bind *address* now."""
        number = int(address)
        for (version, shift), table in self._tables.items():
            if version == address.version:
                ban = table.get(number >> shift)
                if ban is not None and ban.until > now:
                    yield ban

    def active(self, now: float) -> int:
        """How many bind now."""
        return sum(ban.until > now for table in self._tables.values() for ban in table.values())

    def sweep(self, before: float) -> None:
        """Forget what ended *before*, and what is too much."""
        everything = [ban for table in self._tables.values() for ban in table.values()]
        kept = [ban for ban in everything if ban.until >= before]
        ours = sorted((ban for ban in kept if ban.origin != MANUAL), key=lambda ban: -ban.since)
        self._tables, self._bans = {}, 0
        for ban in [ban for ban in kept if ban.origin == MANUAL] + ours[:MOST]:
            self.put(ban)
