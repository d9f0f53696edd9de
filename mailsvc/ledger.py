"""What the brakes remember: counts of failures, known addresses and bans; memory before a file.

The file is :class:`mailsvc.state.State`, so all processes have one ledger, which survives restarts.
What is asked is answered from memory, at most :data:`FRESH` seconds behind the file for a count and
:data:`ACQUAINTED` for a known address; what is older costs one indexed query.  Changes count at
once in this process.  Every :data:`TURN` seconds they are written, in a thread, and the bans that
other processes made are learned.

A *count* runs down by itself, by one in ``forget_seconds``.  It is written as what was added, never
as a sum, so processes do not undo each other's.

**Promises.**  Memory and file are bounded, whatever is counted: the oldest goes first.  While the
file cannot be used the ledger holds for this process, and an error is logged once.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailsvc.bans import MOST, Ban, BanList, BanTable, Network, within
from mailsvc.errors import MailFailure, TemporaryFailure
from mailsvc.names import DirectoryError
from mailsvc.state import State

#: How often, in seconds, changes are written and those of other processes are looked for.
TURN = 0.5
#: How old, in seconds, a count that was read may be, and whether an address is known.
FRESH = 1.0
ACQUAINTED = 60.0
#: How often, in seconds, a known address is written again, and the tables are swept.
_RENEW = 86_400.0
_SWEEP = 3600.0
#: The most counts and known addresses in memory, and of either that wait for being written.
ENTRIES = 10_000
#: The most addresses that one name is known by.
ADDRESSES = 50

_TABLES = (
    """CREATE TABLE IF NOT EXISTS failed_logins (
        key TEXT PRIMARY KEY, level REAL NOT NULL, at REAL NOT NULL) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS failed_logins_at ON failed_logins (at)",
    """CREATE TABLE IF NOT EXISTS known_addresses (
        name TEXT NOT NULL, host TEXT NOT NULL, around TEXT NOT NULL, at REAL NOT NULL,
        PRIMARY KEY (name, host)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS known_addresses_host ON known_addresses (host)",
)
#: Parameters: key, change, when, forget_seconds.
_COUNT = """INSERT INTO failed_logins VALUES (?1, max(0, ?2), ?3) ON CONFLICT (key) DO UPDATE SET
    level = max(0, max(0, level - max(0, ?3 - at) / ?4) + ?2), at = max(at, ?3)"""


@dataclass(slots=True)
class _Count:
    """A count as it was at the time *at*, and when it was *read* from the file."""

    level: float
    at: float
    read: float


@dataclass(slots=True)
class _Batch:
    """What is to be written.

    :ivar counts: key -> what was added, and when last.
    :ivar met: (name, host, around) -> when it logged in.
    """

    counts: dict[str, tuple[float, float]] = field(default_factory=dict)
    met: dict[tuple[str, str, str], float] = field(default_factory=dict)
    bans: dict[Network, Ban] = field(default_factory=dict)
    sweep: bool = False

    def __bool__(self) -> bool:
        return bool(self.counts or self.met or self.bans or self.sweep)

    def count(self, key: str, change: float, now: float) -> None:
        self.counts[key] = self.counts.get(key, (0.0, now))[0] + change, now

    def follow(self, later: _Batch) -> None:
        """Add what came *later*."""
        for key, (change, at) in later.counts.items():
            self.count(key, change, at)
        self.met |= later.met
        self.bans |= later.bans

    def cut(self) -> None:
        """Forget the oldest of what is too much."""
        tables: tuple[dict[Any, Any], ...] = (self.counts, self.met, self.bans)
        for table in tables:
            while len(table) > ENTRIES:
                del table[next(iter(table))]


class Ledger:
    """See the module.

    :param path: the state file.
    :param forget_seconds: time in which a count goes down by one.
    :param ban_memory: how long, in seconds, a ban that is over is remembered.
    :param known_memory: the same of a known address.
    :param most_counts: how many the file keeps.
    :param reactor: for its clock and its threads.
    :param in_thread: calls a function in a thread, as ``deferToThread`` does; for tests.
    """

    log = Logger()

    def __init__(self, path: Path, reactor: Any, *, forget_seconds: float, ban_memory: float,
                 known_memory: float, most_counts: int,
                 in_thread: Callable[..., Deferred[Any]] | None = None) -> None:
        self._path = path
        self._clock = reactor
        self._forget_seconds = forget_seconds
        self._ban_memory = ban_memory
        self._known_memory = known_memory
        self._most_counts = most_counts
        self._in_thread = in_thread
        self.bans = BanList()
        self._counts: OrderedDict[str, _Count] = OrderedDict()
        #: Answers of _recall, and when they were found out; and when whom it met was written.
        self._known: OrderedDict[object, tuple[bool, float]] = OrderedDict()
        self._pending = _Batch()
        self._written = _Batch()  # on its way to the file
        self._writing: Deferred[None] | None = None
        self._since_sweep = 0
        self._next_sweep = 0.0
        self._trouble = False
        self._state: State | None = None
        self._turns = LoopingCall(self._turn)
        self._turns.clock = reactor

    def start(self) -> None:
        """Open the file and begin to follow it.  Raises :class:`DirectoryError`."""
        if self._in_thread is None:
            self._in_thread = partial(deferToThreadPool, self._clock, self._clock.getThreadPool())
        state = State(self._path)
        try:
            state.table(*_TABLES)
            self._table = BanTable(state)
        except TemporaryFailure as error:
            state.close()
            raise DirectoryError(f"{self._path} cannot be written",
                                 "see that the disk has room and that no other program holds a "
                                 "lock on the file") from error
        self._state = state
        self._next_sweep = self._clock.seconds() + _SWEEP
        self._turns.start(TURN).addErrback(
            lambda failure: self.log.failure("failed logins are no longer shared", failure))

    def stop(self) -> Deferred[None]:
        """Write what is left and let go of the file."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        state, self._state = self._state, None
        if state is None:
            return
        if self._turns.running:
            self._turns.stop()
        if self._writing is not None:
            await self._writing
        await self._write()
        state.close()

    # ---- counts ----

    def levels(self, *keys: str) -> list[float]:
        """The counts of *keys* now."""
        now, counts = self._clock.seconds(), self._counts
        stale = [key for key in keys if key not in counts or (
            # What is being written is in the file, or not yet; the count in memory has it.
            now - counts[key].read >= FRESH and key not in self._written.counts)]
        if stale:
            marks = ", ".join("?" * len(stale))
            rows = self._rows(f"SELECT key, level, at FROM failed_logins WHERE key IN ({marks})",
                              *stale)
            found = None if rows is None else {key: (level, at) for key, level, at in rows}
            for key in stale:
                if found is None and key in counts:
                    continue  # what we know is better than nothing
                level, at = (found or {}).get(key, (0.0, now))
                change, changed = self._pending.counts.get(key, (0.0, now))
                if change > 0:
                    change = self._left(change, now - changed)
                counts[key] = _Count(max(0.0, self._left(level, now - at) + change), now, now)
                counts.move_to_end(key)
        levels = [self._left(counts[key].level, now - counts[key].at) for key in keys]
        while len(counts) > ENTRIES:
            counts.popitem(last=False)
        return levels

    def count(self, key: str, change: float) -> None:
        """Add *change* to a count; it does not fall below 0."""
        now = self._clock.seconds()
        count = self._counts.get(key)
        if count is not None:
            count.level = max(0.0, self._left(count.level, now - count.at) + change)
            count.at = now
            self._counts.move_to_end(key)
        self._pending.count(key, change, now)

    def _left(self, level: float, seconds: float) -> float:
        return max(0.0, level - max(0.0, seconds) / self._forget_seconds)

    # ---- known addresses ----

    def met(self, name: str, host: str, around: str) -> None:
        """*name* logged in from *host*, which lies in *around*."""
        now = self._clock.seconds()
        mark = "met", name, host
        last = self._known.get(mark)
        if last is None or now - last[1] >= _RENEW:
            self._remember(mark, True)
            self._pending.met[name, host, around] = now
        self._remember(host, True)
        self._remember((name, around), True)

    def knows(self, host: str) -> bool:
        """Whether anybody logged in from *host*."""
        return self._recall(
            host, "SELECT 1 FROM known_addresses WHERE host = ? AND at > ? LIMIT 1", host)

    def knows_near(self, name: str, around: str) -> bool:
        """Whether *name* logged in from anywhere in *around*."""
        return self._recall(
            (name, around), "SELECT 1 FROM known_addresses WHERE name = ? AND around = ? "
            "AND at > ? LIMIT 1", name, around)

    def _recall(self, mark: object, query: str, *parameters: str) -> bool:
        now = self._clock.seconds()
        known = self._known.get(mark)
        if known is not None and now - known[1] < ACQUAINTED:
            return known[0]
        rows = self._rows(query, *parameters, now - self._known_memory)
        if rows is None:
            return known is not None and known[0]
        self._remember(mark, bool(rows))
        return bool(rows)

    def _remember(self, mark: object, known: bool) -> None:
        self._known[mark] = known, self._clock.seconds()
        self._known.move_to_end(mark)
        while len(self._known) > ENTRIES:
            self._known.popitem(last=False)

    # ---- bans ----

    def ban(self, ban: Ban) -> None:
        """Make *ban*, here at once and elsewhere soon."""
        self.bans.put(ban)
        self._pending.bans[ban.network] = ban

    # ---- the file ----

    def _rows(self, query: str, *parameters: Any) -> list[Any] | None:
        """The rows of a query, or None when the file cannot be used."""
        if self._state is None:
            return None
        try:
            return self._state.rows(query, *parameters)
        except MailFailure as failure:
            self._report(failure)
            return None

    def _report(self, problem: object) -> None:
        if not self._trouble:
            self._trouble = True
            self.log.error("failed logins are counted by this process alone: {path}: {problem}",
                           path=str(self._path), problem=str(problem))

    def _turn(self) -> None:
        """Write what is new, and learn what others wrote."""
        now = self._clock.seconds()
        try:
            self.bans.refresh(self._table)
        except MailFailure as failure:
            self._report(failure)
        crowded = self._since_sweep > self._most_counts / 10 or len(self.bans) > 2 * MOST
        if now >= self._next_sweep or crowded:
            self._next_sweep = now + _SWEEP
            self._since_sweep = 0
            self._pending.sweep = True
            self.bans.sweep(now - self._ban_memory)
        if self._writing is None:
            self._write()

    def _write(self) -> Deferred[None]:
        """Write what waits; fires when that is done, or failed."""
        batch = self._pending
        if not batch:
            return succeed(None)
        self._pending, self._written = _Batch(), batch
        self._since_sweep += len(batch.counts)
        assert self._in_thread is not None
        done: Deferred[None] = Deferred()
        self._writing = done
        self._in_thread(self._store, batch, self._clock.seconds()).addCallbacks(
            self._stored, self._not_stored)
        return done

    def _stored(self, _: object) -> None:
        self._trouble = False
        self._end_writing()

    def _not_stored(self, failure: Failure) -> None:
        if failure.check(MailFailure, DirectoryError):
            self._report(failure.value)
            self._written.follow(self._pending)
            self._pending = self._written
            self._pending.cut()
        else:
            self.log.failure("failed logins are lost", failure)
        self._end_writing()

    def _end_writing(self) -> None:
        self._written = _Batch()
        done, self._writing = self._writing, None
        if done is not None:
            done.callback(None)

    def _store(self, batch: _Batch, now: float) -> None:
        """In a thread: write *batch*, over a connection of its own."""
        with contextlib.closing(State(self._path)) as state, state.transaction():
            state.table(*_TABLES)
            for key, (change, at) in batch.counts.items():
                if change:
                    state.change(_COUNT, key, change, at, self._forget_seconds)
            for (name, host, around), at in batch.met.items():
                state.change("INSERT OR REPLACE INTO known_addresses VALUES (?, ?, ?, ?)",
                             name, host, around, at)
                state.change("DELETE FROM known_addresses WHERE name = ? AND host IN (SELECT "
                             "host FROM known_addresses WHERE name = ? ORDER BY at DESC "
                             "LIMIT -1 OFFSET ?)", name, name, ADDRESSES)
            bans = BanTable(state)
            for ban in batch.bans.values():
                bans.put(ban)
            if batch.sweep:
                bans.sweep(now - self._ban_memory)
                state.change("DELETE FROM known_addresses WHERE at < ?", now - self._known_memory)
                state.change("DELETE FROM failed_logins WHERE at + level * ? <= ?",
                             self._forget_seconds, now)
                state.change("DELETE FROM failed_logins WHERE key IN (SELECT key FROM "
                             "failed_logins ORDER BY at DESC LIMIT -1 OFFSET ?)",
                             self._most_counts)


def lift(state: State, network: Network | None, now: float) -> list[Ban]:
    """Lift the bans of *network* and of those inside it, or all, and forgive what led to them.

    :returns: those that bound until *now*.
    """
    table = BanTable(state)
    state.table(*_TABLES)
    with state.transaction():
        lifted = [each for each in table.active(now)
                  if network is None or within(each.network, network)]
        for each in lifted:
            table.lift(each)
            state.change("DELETE FROM failed_logins WHERE key = ?", str(each.network))
        if network is None:
            state.change("DELETE FROM failed_logins")
    return lifted
