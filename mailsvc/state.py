"""What all processes share and what survives a restart, but is not accounts: one SQLite file.

Each part that keeps something here (how much an account has sent, failed logins, bans) owns tables
of its own and names them by :meth:`State.table`; no part reads another's.  Times in it are seconds
since the epoch, for processes have no other clock in common.

**Promises.**  Those of :mod:`mailsvc.database`, but for one: what was written last may be lost with
the power (not with the process), because waiting for the disk at each message and login would cost
more than a count is worth.  A transaction takes some 50 µs then; it waits for another process's, so
it is for threads, whereas queries and single indexed statements wait for nobody for long.

**Limits.**  A :class:`State` belongs to the thread that opened it: open one per thread.  A table
whose columns change in a later version needs a new name, since processes of both versions may run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mailsvc.database import Database
from mailsvc.errors import TemporaryFailure
from mailsvc.names import DirectoryError

#: PRAGMA user_version of the file; the tables have no common version.
_VERSION = 1


class State(Database):
    """The file *path*, made when it is missing.

    :raises DirectoryError: when it cannot be made, is not ours, or is not permitted.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "", _VERSION, create=True)
        self.change("PRAGMA synchronous = NORMAL")

    def table(self, *statements: str) -> None:
        """Make the tables of one part, unless they are there.

        :param statements: each one ``CREATE TABLE IF NOT EXISTS …`` or
            ``CREATE INDEX IF NOT EXISTS …``.
        """
        with self.transaction():
            for statement in statements:
                self.change(statement)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """As :meth:`Database.transaction`, but raises :class:`TemporaryFailure`."""
        try:
            with super().transaction():
                yield
        except DirectoryError as error:
            raise TemporaryFailure(_UNUSABLE) from error

    def rows(self, query: str, *parameters: Any) -> list[Any]:
        """All rows of a statement, which may change something and be its own transaction."""
        try:
            return super().rows(query, *parameters)
        except TemporaryFailure as error:
            raise TemporaryFailure(_UNUSABLE) from error

    def update(self, statement: str, *parameters: Any) -> None:
        """As :meth:`Database.update`: over a connection of its own, in any thread."""
        try:
            super().update(statement, *parameters)
        except (TemporaryFailure, DirectoryError) as error:
            raise TemporaryFailure(_UNUSABLE) from error


_UNUSABLE = "The service's own records cannot be used now; try again later"
