"""How long ago each account logged in by POP3, over all processes (LOGIN-DELAY, RFC 2449 §6.5).

It is kept in the file of :mod:`mailsvc.state`, so it also survives a restart.  What is older than
the delay is removed.  A delay spares the service work and protects nothing: while the file cannot
be used, everybody may log in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred

from mailsvc.errors import LoginTooSoon, TemporaryFailure
from mailsvc.names import DirectoryError
from mailsvc.state import State

_TABLE = """
CREATE TABLE IF NOT EXISTS last_logins (
    account TEXT NOT NULL PRIMARY KEY,
    at REAL NOT NULL
) WITHOUT ROWID
"""
_INDEX = "CREATE INDEX IF NOT EXISTS last_logins_at ON last_logins (at)"


class LoginDelay:
    """The delay between two logins to one account.

    :param path: of the state file.
    :param seconds: the delay.
    :param clock: seconds since the epoch.
    :param in_thread: calls a function in a thread, as ``deferToThread`` does.
    """

    def __init__(self, path: Path, seconds: float, clock: Callable[[], float],
                 in_thread: Callable[..., Deferred[Any]]) -> None:
        self._path = path
        self._seconds = seconds
        self._clock = clock
        self._in_thread = in_thread

    async def check(self, account: str) -> None:
        """Whether the account of this name may log in.

        :raises LoginTooSoon: it did a moment ago.
        """
        await self._held_to(account, "SELECT 1 FROM last_logins WHERE account = ?1 "
                                     "AND at > ?2 - ?3 AND at <= ?2", False)

    async def note(self, account: str) -> None:
        """It logs in now; of two at once, in whatever process, one does.

        :raises LoginTooSoon: it did a moment ago.
        """
        # In the future is what another clock wrote, before it was set right.
        await self._held_to(account, "INSERT INTO last_logins VALUES (?1, ?2) ON CONFLICT DO "
                                     "UPDATE SET at = ?2 WHERE at <= ?2 - ?3 OR at > ?2 "
                                     "RETURNING 1", True)

    async def _held_to(self, account: str, statement: str, wanted: bool) -> None:
        try:
            found = await self._in_thread(self._run, account, statement)
        except (TemporaryFailure, DirectoryError):
            return
        if found is not wanted:
            raise LoginTooSoon(f"Wait {self._seconds:g} seconds between logins")

    def _run(self, account: str, statement: str) -> bool:
        now = self._clock()
        with contextlib.closing(State(self._path)) as state, state.transaction():
            state.change(_TABLE)
            state.change(_INDEX)
            state.change("DELETE FROM last_logins WHERE at <= ?", now - self._seconds)
            return bool(state.rows(statement, account, now, self._seconds))
