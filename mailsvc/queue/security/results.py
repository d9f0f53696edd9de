"""What became of TLS with each domain, by day, for reports (RFC 8460).

Each session is a success or a failure under the policy that was in force.  They are counted in
memory and added to the file every few seconds: with a crash some seconds of counts are lost, and
no mail waits for them.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from mailsvc.state import State
from mailsvc.store.threads import Threads

_log = Logger("mailsvc.queue")

#: How often counts are written, seconds, and how many different ones wait for that at most.
_WRITE_EVERY = 5.0
_WAITING = 10_000

#: How much of what somebody else said is kept.
_TEXT = 200

_TABLE = """CREATE TABLE IF NOT EXISTS tls_results (
    day TEXT NOT NULL, domain TEXT NOT NULL, policy TEXT NOT NULL, detail TEXT NOT NULL,
    sessions INTEGER NOT NULL, PRIMARY KEY (day, domain, policy, detail)) WITHOUT ROWID"""
_ADD = """INSERT INTO tls_results VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
    sessions = sessions + excluded.sessions"""


@dataclass(frozen=True, slots=True)
class Applied:
    """A policy that was in force (RFC 8460 §4.4).

    :ivar kind: the policy-type: "tlsa", "sts" or "no-policy-found".
    :ivar strings: the policy: its lines, or the TLSA records.
    :ivar patterns: the exchangers that it names.
    """

    kind: str
    strings: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Detail:
    """How a session failed.

    :ivar result: the result-type of §4.3.
    :ivar host: the exchanger; *address*: where it was; empty if it did not come to that.
    :ivar text: the reason, for people.
    """

    result: str
    host: str = ""
    address: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Count:
    """So many sessions ended alike; *detail* is None for those that succeeded."""

    policy: Applied
    detail: Detail | None
    sessions: int


class Results:
    """The counts in *state*: read in the reactor's thread, written by *threads*."""

    def __init__(self, state: State, threads: Threads, clock: Any) -> None:
        self._state = state
        self._threads = threads
        self._clock = clock
        self._waiting: Counter[tuple[str, str, str, str]] = Counter()
        state.table(_TABLE)
        self._writing = LoopingCall(self.write)
        self._writing.clock = clock

    def start(self) -> None:
        """Write now and then."""
        self._writing.start(_WRITE_EVERY, now=False)

    def stop(self) -> None:
        """Write the last."""
        if self._writing.running:
            self._writing.stop()
        self.write()

    def note(self, domain: str, policy: Applied, detail: Detail | None = None) -> None:
        """Count a session with *domain*."""
        day = time.strftime("%Y-%m-%d", time.gmtime(self._clock.seconds()))
        key = (day, domain, json.dumps([policy.kind, policy.strings, policy.patterns]),
               "" if detail is None else json.dumps(
                   [detail.result, detail.host, detail.address, detail.text[:_TEXT]]))
        if key in self._waiting or len(self._waiting) < _WAITING:
            self._waiting[key] += 1

    def write(self) -> Deferred[None]:
        """Add what was counted to the file."""
        waiting, self._waiting = self._waiting, Counter()
        if not waiting:
            return succeed(None)
        rows = [(*key, sessions) for key, sessions in waiting.items()]
        return self._threads.run(self._state.update_all, _ADD, rows).addErrback(
            lambda failure: _log.error("results of TLS cannot be kept: {reason}",
                                       reason=failure.getErrorMessage()))

    def before(self, day: str) -> list[tuple[str, str]]:
        """The days before *day* that have results, each with a domain."""
        return [(each[0], each[1]) for each in self._state.rows(
            "SELECT DISTINCT day, domain FROM tls_results WHERE day < ? ORDER BY day, domain",
            day)]

    def of(self, day: str, domain: str) -> list[Count]:
        """The results of *domain* on *day*, the most frequent first."""
        return [Count(_applied(policy), _detail(detail), sessions)
                for policy, detail, sessions in self._state.rows(
                    "SELECT policy, detail, sessions FROM tls_results WHERE day = ? AND domain = ? "
                    "ORDER BY sessions DESC, policy, detail", day, domain)]

    def remove(self, day: str, domain: str) -> None:
        """They were reported; in any thread."""
        self._state.update("DELETE FROM tls_results WHERE day = ? AND domain = ?", day, domain)


def _applied(text: str) -> Applied:
    kind, strings, patterns = json.loads(text)
    return Applied(kind, tuple(strings), tuple(patterns))


def _detail(text: str) -> Detail | None:
    return Detail(*json.loads(text)) if text else None
