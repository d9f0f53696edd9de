"""Which domains were reached by TLS, so that they are not sent to in the clear later.

Without DANE and MTA-STS nothing tells that an exchanger which offers no STARTTLS would, were it
not for somebody in between.  But what it did last time is known.  An operator lets a domain go by
``mailsvc queue tls forget``.
"""

from __future__ import annotations

from dataclasses import dataclass

from mailsvc.state import State

_TABLE = """CREATE TABLE IF NOT EXISTS tls_seen (
    domain TEXT PRIMARY KEY, since REAL NOT NULL, latest REAL NOT NULL,
    verified INTEGER NOT NULL, version TEXT NOT NULL, host TEXT NOT NULL) WITHOUT ROWID"""

#: How often what was seen again is written, seconds.
RENEW = 86_400.0


@dataclass(frozen=True, slots=True)
class Seen:
    """A domain that was reached by TLS.

    :ivar since: when it was first, in seconds since the epoch; *latest*: to the day.
    :ivar verified: whether an exchanger of it has proven its name since then.
    :ivar version: of TLS, the latest; *host*: the exchanger that it was.
    """

    domain: str
    since: float
    latest: float
    verified: bool
    version: str
    host: str


class Levels:
    """The domains in *state*."""

    def __init__(self, state: State) -> None:
        self._state = state
        state.table(_TABLE)

    def get(self, domain: str) -> Seen | None:
        """What is known of *domain*; raises TemporaryFailure, as all here."""
        rows = self._state.rows("SELECT * FROM tls_seen WHERE domain = ?", domain)
        return _seen(rows[0]) if rows else None

    def all(self) -> list[Seen]:
        """All domains, by name."""
        return [_seen(row) for row in self._state.rows("SELECT * FROM tls_seen ORDER BY domain")]

    def note(self, seen: Seen) -> None:
        """*seen* was reached; in any thread.  What was verified once stays so."""
        self._state.update(
            """INSERT INTO tls_seen VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (domain) DO UPDATE SET
            latest = excluded.latest, verified = max(verified, excluded.verified),
            version = excluded.version, host = excluded.host""",
            seen.domain, seen.since, seen.latest, seen.verified, seen.version, seen.host)

    def forget(self, domain: str) -> bool:
        """Let *domain* be sent to in the clear again; whether it was known."""
        return bool(self._state.rows("DELETE FROM tls_seen WHERE domain = ? RETURNING 1", domain))


def _seen(row: tuple[str, float, float, int, str, str]) -> Seen:
    return Seen(row[0], row[1], row[2], bool(row[3]), row[4], row[5])
