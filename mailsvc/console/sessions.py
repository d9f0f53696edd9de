"""Who is logged in to the console: random tokens in cookies, and their hashes in ``state.sqlite``.

A cookie holds 256 random bits; the file holds their SHA-256, so that whoever reads the file cannot
be anybody.  A session ends with a logout, ``idle_minutes`` after the last page, ``login_hours``
after the login, and as soon as one of the passwords that the account had at the login is gone:
whoever changes a stolen password throws the thief out, wherever and however it is changed.

The token that each form carries (against cross-site requests) is derived from the cookie.  So it
needs no place, and somebody who is not logged in yet has one too.

A look-up is one indexed query of some 10 µs, for the reactor's thread.  Whatever changes the table
may wait, and is for threads.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from mailsvc.console.limits import ConsoleSettings
from mailsvc.state import State

_TABLE = (
    """CREATE TABLE IF NOT EXISTS console_sessions (
        token BLOB PRIMARY KEY, account TEXT NOT NULL, passwords TEXT NOT NULL,
        client TEXT NOT NULL, began REAL NOT NULL, used REAL NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS console_sessions_account ON console_sessions (account)",
)
#: How exactly it is noted when a session was last used, seconds.
_NOTED = 60.0
#: Most sessions of one account; beyond them the oldest end.
MOST = 20


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody's cookie.

    :ivar secret: what the cookie holds.
    :ivar account: the name of the account that is logged in, or "".
    :ivar passwords: the ids of the passwords that it had then.
    :ivar client: the address that it logged in from.
    :ivar began: when, in seconds since the epoch.
    :ivar used: when it was last used, to the minute.
    """

    secret: str = field(repr=False)
    account: str = ""
    passwords: frozenset[int] = frozenset()
    client: str = ""
    began: float = 0.0
    used: float = 0.0

    @property
    def form_token(self) -> str:
        """What a form has to carry."""
        return hashlib.sha256(b"form\0" + self.secret.encode()).hexdigest()

    def sent(self, form_token: str) -> bool:
        """Whether *form_token* is of a form that this session was shown."""
        return hmac.compare_digest(self.form_token.encode(), form_token.encode())


def stranger(cookie: str = "") -> Session:
    """The session of somebody who is not logged in, with the cookie there is or a new one."""
    usable = 20 <= len(cookie) <= 100 and cookie.isascii()
    return Session(cookie if usable else secrets.token_urlsafe(32))


class Sessions:
    """The sessions in the file *path*, which all processes see; :meth:`find` is for one thread.

    :param now: Unix time.
    :raises DirectoryError: when the file cannot be used.
    """

    def __init__(self, path: Path, settings: ConsoleSettings,
                 now: Callable[[], float] = time.time) -> None:
        self._state = State(path)
        self._state.table(*_TABLE)
        self._idle = 60 * settings.idle_minutes
        self._longest = 3600 * settings.login_hours
        self._now = now

    def find(self, cookie: str) -> Session | None:
        """The session of that cookie, unless it has ended; raises TemporaryFailure."""
        now = self._now()
        for account, passwords, client, began, used in self._state.rows(
                "SELECT account, passwords, client, began, used FROM console_sessions "
                "WHERE token = ? AND used > ? AND began > ?",
                _hashed(cookie), now - self._idle, now - self._longest):
            return Session(cookie, account, frozenset(map(int, passwords.split())), client, began,
                           used)
        return None

    def is_stale(self, session: Session) -> bool:
        """Whether it is to be noted that *session* was used."""
        return self._now() - session.used > _NOTED

    # ---- in any thread; these raise TemporaryFailure ----

    def begin(self, account: str, passwords: Collection[int], client: str) -> Session:
        """Log *account* in."""
        now = self._now()
        session = Session(secrets.token_urlsafe(32), account, frozenset(passwords), client, now,
                          now)
        self._state.update("DELETE FROM console_sessions WHERE used <= ? OR began <= ?",
                           now - self._idle, now - self._longest)
        self._state.update(
            "INSERT INTO console_sessions (token, account, passwords, client, began, used) "
            "VALUES (?, ?, ?, ?, ?, ?)", _hashed(session.secret), account,
            " ".join(map(str, sorted(passwords))), client, now, now)
        self._state.update(
            "DELETE FROM console_sessions WHERE account = ? AND token NOT IN (SELECT token FROM "
            "console_sessions WHERE account = ? ORDER BY began DESC LIMIT ?)", account, account,
            MOST)
        return session

    def note_use(self, session: Session) -> None:
        """*session* is used at this moment."""
        self._state.update("UPDATE console_sessions SET used = ? WHERE token = ?", self._now(),
                           _hashed(session.secret))

    def end(self, session: Session) -> None:
        """Log *session* out."""
        self._state.update("DELETE FROM console_sessions WHERE token = ?", _hashed(session.secret))

    def close(self) -> None:
        """Let go of the file."""
        self._state.close()


def _hashed(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode("utf-8", "surrogateescape")).digest()
