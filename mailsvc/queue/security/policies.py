"""The MTA-STS policies of domains (RFC 8461): found, fetched, kept on disk, kept fresh.

A policy that was fetched holds until its ``max_age`` is over, whatever becomes of the record and of
the policy host meanwhile: else who can block either could take the protection away.  It is fetched
anew when the id in the DNS is another, and once a day, so that it does not end while it is in use.
A fetch that failed is tried again no sooner than after five minutes (§3.3).
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from mailsvc.errors import MailFailure
from mailsvc.queue.security.https import HTTPFailure
from mailsvc.queue.security.lookup import LookupFailed
from mailsvc.queue.security.sts import (
    POLICY_OCTETS,
    Policy,
    Unusable,
    parse_policy,
    parse_record,
)
from mailsvc.state import State
from mailsvc.store.threads import Threads

_log = Logger("mailsvc.queue")

#: When a policy is fetched anew though its id is the same; how often that is looked for; when no
#: mail went to its domain for how long it is let go of.  Seconds.
_REFRESH = 86_400.0
_LOOK_EVERY = 3600.0
_UNUSED = 30 * 86_400.0

#: How long after a failed fetch the next one is made, seconds.
_AGAIN = 300.0

#: How many failures are remembered.
_FAILURES = 10_000

_TABLE = """CREATE TABLE IF NOT EXISTS sts_policies (
    domain TEXT PRIMARY KEY, id TEXT NOT NULL, text BLOB NOT NULL, fetched REAL NOT NULL,
    expires REAL NOT NULL, used REAL NOT NULL) WITHOUT ROWID"""


@dataclass(frozen=True, slots=True)
class Kept:
    """A policy with its id, when it was fetched and until when it holds; seconds since the epoch.

    :ivar used: when mail went to its domain last, give or take an hour.
    """

    domain: str
    id: str
    policy: Policy
    fetched: float
    expires: float
    used: float


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of a domain now.

    :ivar policy: what to obey; None if there is nothing.
    :ivar reason: a result type of RFC 8460 §4.3.2.2 if its policy could not be had; or empty.
    :ivar text: the same for people.
    """

    policy: Policy | None = None
    reason: str = ""
    text: str = ""


class Shelf:
    """The policies on disk.  Read in the reactor's thread, written in another."""

    def __init__(self, state: State) -> None:
        self._state = state
        state.table(_TABLE)

    def get(self, domain: str, now: float) -> Kept | None:
        """The policy of *domain*, unless it has expired."""
        found = self._rows("WHERE domain = ? AND expires > ?", domain, now)
        return found[0] if found else None

    def stale(self, now: float) -> list[Kept]:
        """Those in use that should be fetched anew."""
        return self._rows("WHERE expires > ? AND fetched < ? AND used > ?",
                          now, now - _REFRESH, now - _UNUSED)

    def all(self) -> list[Kept]:
        """All that there is, by domain."""
        return self._rows("ORDER BY domain")

    def put(self, kept: Kept) -> None:
        """Keep *kept*, in any thread."""
        self._state.update(
            "INSERT OR REPLACE INTO sts_policies VALUES (?, ?, ?, ?, ?, ?)", kept.domain, kept.id,
            kept.policy.text.encode(), kept.fetched, kept.expires, kept.used)

    def use(self, domain: str, now: float) -> None:
        """Mail goes to *domain*; in any thread."""
        self._state.update("UPDATE sts_policies SET used = ? WHERE domain = ?", now, domain)

    def sweep(self, now: float) -> None:
        """Forget what has expired; in any thread."""
        self._state.update("DELETE FROM sts_policies WHERE expires <= ?", now)

    def forget(self, domain: str) -> bool:
        """Let the policy of *domain* go; whether there was one."""
        return bool(self._state.rows(
            "DELETE FROM sts_policies WHERE domain = ? RETURNING 1", domain))

    def _rows(self, condition: str, *parameters: Any) -> list[Kept]:
        kept = []
        for domain, id, text, fetched, expires, used in self._state.rows(
                "SELECT domain, id, text, fetched, expires, used FROM sts_policies " + condition,
                *parameters):
            try:
                kept.append(Kept(domain, id, parse_policy(text), fetched, expires, used))
            except Unusable:
                continue  # written by a version that knew more
        return kept


class Texts(Protocol):
    """As :class:`mailsvc.queue.security.lookup.Lookup`."""

    def texts(self, name: str) -> Awaitable[list[str]]: ...


class Web(Protocol):
    """As :class:`mailsvc.queue.security.https.HTTPS`."""

    def get(self, url: str, kind: str, most: int) -> Awaitable[bytes]: ...


class Policies:
    """Finds the policies of domains.

    :param port: of policy hosts.
    """

    def __init__(self, shelf: Shelf, lookup: Texts, web: Web, threads: Threads, clock: Any,
                 port: int = 443) -> None:
        self._shelf = shelf
        self._lookup = lookup
        self._web = web
        self._threads = threads
        self._clock = clock
        self._port = port
        self._locks: dict[str, DeferredLock] = {}
        #: domain -> id of the policy that could not be had, when that was, and why.
        self._failed: dict[str, tuple[str, float, Finding]] = {}
        self._looking = LoopingCall(lambda: Deferred.fromCoroutine(self.refresh()))
        self._looking.clock = clock

    def start(self) -> None:
        """Keep what is in use fresh from now on."""
        self._looking.start(_LOOK_EVERY, now=False)

    def stop(self) -> None:
        """Do so no more."""
        if self._looking.running:
            self._looking.stop()

    async def find(self, domain: str) -> Finding:
        """What *domain* says of its exchangers; never fails."""
        lock = self._locks.setdefault(domain, DeferredLock())
        try:
            # Whoever comes while a policy is being fetched waits for it.
            return await lock.run(lambda: Deferred.fromCoroutine(self._find(domain)))
        finally:
            if not lock.locked and not lock.waiting:
                self._locks.pop(domain, None)

    async def refresh(self) -> None:
        """Fetch what is in use and has not been fetched for a day; forget what has expired."""
        try:
            for kept in self._shelf.stale(self._clock.seconds()):
                await self._find(kept.domain, used=False)
            await self._threads.run(self._shelf.sweep, self._clock.seconds())
        except (MailFailure, OSError) as failure:
            _log.error("MTA-STS policies cannot be kept fresh: {reason}", reason=str(failure))

    async def _find(self, domain: str, used: bool = True) -> Finding:
        now = self._clock.seconds()
        try:
            kept = self._shelf.get(domain, now)
            finding = await self._current(domain, kept, now)
            if kept is not None and used and kept.used < now - _LOOK_EVERY:
                await self._threads.run(self._shelf.use, domain, now)
        except MailFailure as failure:
            # Our own file: what cannot be read is not to let mail go unprotected for good, but
            # neither to keep it here.
            _log.error("the MTA-STS policy of {domain} cannot be kept: {reason}", domain=domain,
                       reason=failure.text)
            return Finding()
        return finding

    async def _current(self, domain: str, kept: Kept | None, now: float) -> Finding:
        policy = kept.policy if kept is not None else None
        try:
            id = parse_record(await self._lookup.texts(f"_mta-sts.{domain}"))
        except LookupFailed as failure:
            return Finding(policy, "" if policy else "sts-policy-fetch-error", str(failure))
        except Unusable as problem:
            return Finding(policy, "sts-policy-invalid", f"_mta-sts.{domain}: {problem}")
        if id is None:
            return Finding(policy)
        if kept is not None and kept.id == id and kept.fetched > now - _REFRESH:
            return Finding(policy)
        last = self._failed.get(domain)
        if last is not None and last[0] == id and last[1] > now - _AGAIN:
            return Finding(policy, last[2].reason, last[2].text)
        return await self._fetch(domain, id, kept, now)

    async def _fetch(self, domain: str, id: str, kept: Kept | None, now: float) -> Finding:
        port = "" if self._port == 443 else f":{self._port}"
        url = f"https://mta-sts.{domain}{port}/.well-known/mta-sts.txt"
        try:
            policy = parse_policy(await self._web.get(url, "text/plain", POLICY_OCTETS))
        except HTTPFailure as failure:
            reason = "sts-webpki-invalid" if failure.certificate else "sts-policy-fetch-error"
            finding = Finding(kept.policy if kept else None, reason, failure.text)
        except Unusable as problem:
            finding = Finding(kept.policy if kept else None, "sts-policy-invalid",
                              f"{url}: {problem}")
        else:
            self._failed.pop(domain, None)
            await self._threads.run(self._shelf.put, Kept(
                domain, id, policy, now, now + policy.max_age, kept.used if kept else now))
            _log.info("MTA-STS policy of {domain} fetched id={id} mode={mode} max_age={max_age}",
                      domain=domain, id=id, mode=policy.mode, max_age=policy.max_age)
            return Finding(policy)
        _log.warn("no MTA-STS policy of {domain} could be fetched{kept}: {reason}", domain=domain,
                  kept=", the one from before holds" if kept else "", reason=finding.text)
        if len(self._failed) >= _FAILURES:
            self._failed.pop(next(iter(self._failed)))
        self._failed[domain] = id, now, finding
        return finding
