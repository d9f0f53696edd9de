"""How much each account has sent lately, and whether it may send more.

A stolen password is worth as much mail as can be sent with it.  So each account may send so many
messages, to so many recipients, in a minute, an hour and a day (the section [submission]).

**Promises.**  A limit holds over all processes, and over restarts: the counts are in the file of
:mod:`mailsvc.state`, and a message is checked and counted in one transaction.  In no minute, hour
or day, wherever it begins, is more counted than allowed.  An account has at most 39 rows, whatever
it sends; old ones are removed.

**How.**  A period is divided into twelve slots; what is counted is the present slot and the twelve
before it, hence a little more than the period.  So an account that has used up a limit may have to
wait for a twelfth longer than its period.  After a power loss some of the latest counts may be
missing.  When the clock was set back, counts of the future more than a period away are forgotten.

:class:`Ledger` does this in one thread.  :class:`Rates` is for the reactor: it asks in the
reactor's thread, where a query waits for nobody, and counts in a thread of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from mailsvc.errors import EnhancedStatus, TemporaryFailure
from mailsvc.mail import Account
from mailsvc.names import fold_domain, fold_local_part
from mailsvc.state import State
from mailsvc.submission.limits import SubmissionSettings

#: The periods, in seconds, as the settings and people call them.
PERIODS = {"minute": 60, "hour": 3600, "day": 86_400}

#: What is limited, as a refusal calls it.
_WORDS = {"messages": "{} messages", "recipients": "to {} recipients"}

_SLOTS = 12

#: ``slot`` is the number of slots of ``period`` since the epoch.
_TABLE = """
CREATE TABLE IF NOT EXISTS sent (
    account TEXT NOT NULL,
    period INTEGER NOT NULL,
    slot INTEGER NOT NULL,
    messages INTEGER NOT NULL,
    recipients INTEGER NOT NULL,
    PRIMARY KEY (account, period, slot)
) WITHOUT ROWID
"""

#: Seconds between looking for what accounts that send no more have left behind.
_SWEEP_EVERY = 3600

#: The condition for rows that count at the time ``?``.
_COUNTS = f"abs(CAST(? AS INTEGER) * {_SLOTS} / period - slot) <= {_SLOTS}"


class TooMuchSent(TemporaryFailure):
    """An account has used up a limit; to be answered with 450.

    :ivar seconds: after how long it may try again.
    """

    default = EnhancedStatus(4, 7, 1)

    def __init__(self, text: str, seconds: int) -> None:
        super().__init__(text)
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Sent:
    """What one account has sent lately.

    :ivar account: its name, folded.
    :ivar messages: by period, as in :data:`PERIODS`.
    :ivar recipients: likewise.
    """

    account: str
    messages: dict[str, int]
    recipients: dict[str, int]


class Ledger:
    """The counts, for one thread.

    :param clock: seconds since the epoch.
    """

    def __init__(self, state: State, settings: SubmissionSettings,
                 clock: Callable[[], float] = time.time) -> None:
        self._state = state
        self._clock = clock
        self._limits = [
            (kind, name, limit) for kind in _WORDS for name in PERIODS
            if (limit := getattr(settings, f"{kind}_per_{name}"))]
        self._sweep_at = 0.0
        state.table(_TABLE)

    def check(self, account: Account | str, recipients: int = 1) -> None:
        """Whether *account* may send one more message, to so many *recipients*.

        It may be the name of another submitter, who is counted likewise.

        :raises TooMuchSent: not before some time has passed.
        """
        if self._limits:
            self._check(_key(account), recipients, self._clock())

    def count(self, account: Account | str, recipients: int) -> None:
        """Count one message to so many *recipients*, if it may be sent.

        :raises TooMuchSent: it may not, and was not counted.
        """
        if not self._limits:
            return
        key, now = _key(account), self._clock()
        # The clock may have been set back.
        sweep = not now < self._sweep_at <= now + _SWEEP_EVERY
        with self._state.transaction():
            self._check(key, recipients, now)
            for period in PERIODS.values():
                self._state.change(
                    "INSERT INTO sent VALUES (?, ?, ?, 1, ?) ON CONFLICT DO UPDATE SET "
                    "messages = messages + 1, recipients = recipients + excluded.recipients",
                    key, period, _slot(now, period), recipients)
            if sweep:
                self._state.change(f"DELETE FROM sent WHERE NOT {_COUNTS}", now)
            else:
                self._state.change(f"DELETE FROM sent WHERE account = ? AND NOT {_COUNTS}",
                                   key, now)
        if sweep:
            self._sweep_at = now + _SWEEP_EVERY

    def sent(self, account: Account | None = None) -> list[Sent]:
        """What counts now: of *account*, or of all that have sent anything, by name."""
        key = None if account is None else _key(account)
        rows = self._state.rows(
            "SELECT account, period, sum(messages), sum(recipients) FROM sent "
            f"WHERE (?1 IS NULL OR account = ?1) AND {_COUNTS.replace('?', '?2')} "
            "GROUP BY account, period ORDER BY account", key, self._clock())
        found: dict[str, Sent] = {}
        if key is not None:
            found[key] = _nothing(key)
        names = {period: name for name, period in PERIODS.items()}
        for name, period, messages, recipients in rows:
            entry = found.setdefault(name, _nothing(name))
            entry.messages[names[period]] = messages
            entry.recipients[names[period]] = recipients
        return list(found.values())

    def reset(self, account: Account) -> None:
        """Forget what *account* has sent, so that it may send again at once."""
        with self._state.transaction():
            self._state.change("DELETE FROM sent WHERE account = ?", _key(account))

    def close(self) -> None:
        """Let go of the file; may be called again."""
        self._state.close()

    def _check(self, key: str, recipients: int, now: float) -> None:
        rows = self._state.rows(
            "SELECT period, slot, messages, recipients FROM sent "
            f"WHERE account = ? AND {_COUNTS} ORDER BY slot", key, now)
        wait, reason = 0.0, ""
        for kind, name, limit in self._limits:
            period, new = PERIODS[name], recipients if kind == "recipients" else 1
            counts = [(row[1], row[3] if kind == "recipients" else row[2]) for row in rows
                      if row[0] == period]
            excess = sum(count for _, count in counts) + new - limit
            if excess <= 0:
                continue
            until = now
            for slot, count in counts:
                excess -= count
                # When the slot is thirteen behind the present one it counts no more.
                until = (slot + _SLOTS + 1) * period / _SLOTS
                if excess <= 0:
                    break
            else:
                # More than is ever allowed at once: what fits has to age first.
                until = now + period
            if until - now >= wait:
                wait, reason = until - now, f"{_WORDS[kind].format(limit)} per {name}"
        if reason:
            seconds = max(1, int(wait) + 1)
            raise TooMuchSent(
                f"You may send {reason}; try again in {_duration(seconds)}", seconds)


def _key(account: Account | str) -> str:
    name = account.name if isinstance(account, Account) else account
    local_part, at, domain = name.rpartition("@")
    return f"{fold_local_part(local_part)}@{fold_domain(domain)}" if at else name


def _slot(now: float, period: int) -> int:
    return int(now) * _SLOTS // period


def _nothing(name: str) -> Sent:
    return Sent(name, dict.fromkeys(PERIODS, 0), dict.fromkeys(PERIODS, 0))


def _duration(seconds: int) -> str:
    """For people, rounded up: "40 seconds", "25 minutes", "3 hours"."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{-(-seconds // size)} {unit}"
    return f"{seconds} second{'s' * (seconds > 1)}"


class Rates(Service):
    """The counts of the file *path*, for the reactor.

    :param reactor: for its threads.
    """

    def __init__(self, path: Path, settings: SubmissionSettings, reactor: Any,
                 clock: Callable[[], float] = time.time) -> None:
        self._reactor = reactor
        self._open = lambda: Ledger(State(path), settings, clock)
        self._asked: Ledger | None = None  # in the reactor's thread
        self._counting: Ledger | None = None  # in the thread of the pool
        self._pool: ThreadPool | None = None

    def startService(self) -> None:
        """Open the file; raises :class:`mailsvc.names.DirectoryError` when that is refused."""
        self._asked = self._open()
        self._pool = ThreadPool(1, 1, "rates")
        self._pool.start()
        super().startService()

    def stopService(self) -> Deferred[None]:
        """End; fires when all has been counted that was to be."""
        super().stopService()
        pool, self._pool = self._pool, None
        asked, self._asked = self._asked, None
        if pool is None or asked is None:
            return succeed(None)
        asked.close()
        reactor = self._reactor
        # A connection is closed in its own thread; what is to be counted stands before that.
        closed = deferToThreadPool(reactor, pool, self._close)
        # Joining a thread is not for the reactor's own.
        return closed.addBoth(
            lambda _: deferToThreadPool(reactor, reactor.getThreadPool(), pool.stop))

    def check(self, account: Account | str, recipients: int = 1) -> None:
        """As :meth:`Ledger.check`; at once.  For MAIL and RCPT: a refusal here saves the data."""
        if self._asked is None:
            raise TemporaryFailure(_STOPPING)
        self._asked.check(account, recipients)

    def count(self, account: Account | str, recipients: int) -> Deferred[None]:
        """As :meth:`Ledger.count`, in a thread.  Once for each message, before its data."""
        if self._pool is None:
            return fail(TemporaryFailure(_STOPPING))
        return deferToThreadPool(self._reactor, self._pool, self._count, account, recipients)

    def _count(self, account: Account | str, recipients: int) -> None:
        if self._counting is None:
            self._counting = self._open()
        self._counting.count(account, recipients)

    def _close(self) -> None:
        if self._counting is not None:
            self._counting.close()
            self._counting = None


_STOPPING = "The service is stopping; try again later"
