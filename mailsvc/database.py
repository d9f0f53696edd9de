"""One SQLite file that several processes read and change.

**Promises.**  A change is seen by the next query, in every process, without a signal or a restart.
Transactions are atomic, and durable when they end (WAL, ``synchronous=FULL``); no query waits for
one.  The file is made with mode 0600, missing directories above it with 0700, and what root makes
belongs to the owner of the place it was made in.  A file that may not be used is named with the
user who may.  A file of an older version is brought to this one when it is opened, in one
transaction: whatever happens meanwhile, it is of the one version or of the other.

**Limits.**  WAL needs shared memory: the file must lie on a local disk.  A connection must not be
carried over ``fork`` and belongs to one thread, except for :meth:`Database.update`.  It is not
noticed when another file takes the open one's place.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mailsvc.errors import TemporaryFailure
from mailsvc.names import DirectoryError
from mailsvc.ownership import give_to_owner_of, make_folders, remedy_for

#: Seconds that a change waits for another process's change to end, and that a query waits in the
#: rare moments (recovery after a crash, say) when SQLite keeps readers out.
CHANGE_TIMEOUT = 5.0
QUERY_TIMEOUT = 0.25


class OtherVersion(DirectoryError):
    """A file is of another version of mailsvc, or of another program."""


class Database:
    """The file *path*, whose tables *schema* makes and whose ``user_version`` is *version*.

    :param create: make the file when it is missing.
    :param migrations: for older versions, the statements that make a file of the next out of one
        of that; there is a semicolon behind each of them and nowhere else.
    :raises DirectoryError: when it is missing, not of that version, or not permitted.
    """

    def __init__(self, path: Path, schema: str, version: int, *, create: bool,
                 migrations: Mapping[int, str] | None = None) -> None:
        self.path = path.absolute()
        self._version = version
        self._changing = False  # whether a transaction is open
        self._changes = 0  # how often something was changed over this connection
        try:
            _require_access(self.path, create)
            if not self.path.exists():
                if not create:
                    raise DirectoryError(f"there is no {self.path} yet",
                                         "begin with `mailsvc domain add DOMAIN`, or name the "
                                         "right place: service.data of the configuration, or "
                                         "`mailsvc --dir DIR`")
                _create(self.path, f"{schema}; PRAGMA user_version = {version}")
            elif migrations:
                _migrate(self.path, migrations)
            self._db = self._connect(QUERY_TIMEOUT)
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error

    def close(self) -> None:
        """Let go of the file; may be called again."""
        self._db.close()

    def _connect(self, timeout: float) -> sqlite3.Connection:
        db = _opened(self.path, timeout)
        try:
            version = _version(db)
            if version != self._version:
                raise OtherVersion(
                    f"{self.path} has schema version {version}, not {self._version}",
                    "upgrade mailsvc" if version > self._version else
                    "it is of an older mailsvc: move it away to begin anew" if version else
                    "it is not a file of mailsvc: move it away")
            db.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            db.close()
            raise
        return db

    def _unusable(self, error: Exception) -> DirectoryError:
        return DirectoryError(f"{self.path} cannot be used ({error})",
                              "see that the disk has room and that no other program holds a lock "
                              "on the file")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Make the changes inside visible together, or none of them if the block raises.

        May be nested: the outermost counts.  Raises :class:`DirectoryError` when the file cannot be
        changed, for instance because another transaction does not end.
        """
        if self._changing:
            yield
            return
        db = self._db
        self._changing = True
        try:
            db.execute(f"PRAGMA busy_timeout = {CHANGE_TIMEOUT * 1000:.0f}")
            db.execute("BEGIN IMMEDIATE")
            yield
            db.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        finally:
            self._changing = False
            self._changes += 1
            if db.in_transaction:
                db.execute("ROLLBACK")
            db.execute(f"PRAGMA busy_timeout = {QUERY_TIMEOUT * 1000:.0f}")

    def change(self, statement: str, *parameters: Any) -> int | None:
        """Run a statement inside a transaction; returns the id of the row it inserted, if any."""
        self._changes += 1
        return self._db.execute(statement, parameters).lastrowid

    def change_all(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement inside a transaction for each of *rows* of parameters."""
        self._changes += 1
        self._db.executemany(statement, rows)

    def version(self) -> tuple[int, int]:
        """What is another value after any change, by whatever process; the cheapest query.

        Raises as :meth:`rows` does.
        """
        # SQLite's own version tells of all connections but this.
        ((others,),) = self.rows("PRAGMA data_version")
        return self._changes, others

    def rows(self, query: str, *parameters: Any) -> list[Any]:
        """All rows of a query; text that is not Unicode (a lone surrogate) finds none.

        Raises :class:`TemporaryFailure` outside of a transaction.
        """
        try:
            # fetchall, not fetchone: a statement left open would hold on to an old state.
            return self._db.execute(query, parameters).fetchall()
        except UnicodeEncodeError:
            return []
        except sqlite3.Error as error:
            if self._changing:
                raise
            raise TemporaryFailure("The directory of accounts cannot be read now") from error

    def copy_to(self, target: sqlite3.Connection) -> None:
        """Copy the whole file, as it is now, into another database."""
        try:
            self._db.backup(target)
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def update(self, statement: str, *parameters: Any) -> None:
        """Run one statement over a connection of its own, in any thread.

        Raises :class:`TemporaryFailure`.
        """
        self.update_all(statement, [parameters])

    def update_all(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """The same for each of *rows* of parameters, in one transaction."""
        try:
            with contextlib.closing(self._connect(CHANGE_TIMEOUT)) as db:
                db.execute("BEGIN IMMEDIATE")
                db.executemany(statement, rows)
                db.execute("COMMIT")
        except sqlite3.Error as error:
            raise TemporaryFailure("The directory of accounts cannot be changed now") from error


def copy(source: Path, target: Path) -> None:
    """Write what the SQLite file *source* holds at one moment to the new file *target*, mode 0600.

    Nobody who uses *source* waits, or is waited for; *target* is one file, without a -wal beside
    it.

    :raises sqlite3.Error: it cannot be read, or what was read is not sound.
    """
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        with (contextlib.closing(_opened(source, CHANGE_TIMEOUT)) as there,
              contextlib.closing(sqlite3.connect(target, isolation_level=None)) as here):
            # In one step: who writes to the file between two would have it begun anew for ever.
            there.backup(here, pages=-1)
            here.execute("PRAGMA journal_mode = DELETE")
            problem = unsoundness(here)
    except sqlite3.Error as error:
        problem = str(error)
    if problem:
        raise sqlite3.DatabaseError(f"{source} cannot be copied: {problem}")


def unsoundness(db: sqlite3.Connection) -> str:
    """What is wrong with the file's structure, in one line; empty when nothing is."""
    found = [str(row[0]) for row in db.execute("PRAGMA integrity_check(5)")]
    return "" if found == ["ok"] else "; ".join(found)


def damage(path: Path) -> str:
    """What is wrong with the SQLite file *path*, which may be in use; empty when nothing is.

    :raises DirectoryError: this user may not use it, and cannot tell.
    """
    _require_access(path.absolute(), create=False)
    try:
        with contextlib.closing(_opened(path, CHANGE_TIMEOUT)) as db:
            return unsoundness(db)
    except sqlite3.Error as error:
        return str(error)


def restored(source: Path, target: Path) -> None:
    """Make the new file *target* of a copy that :func:`copy` made."""
    copy(source, target)
    with contextlib.closing(sqlite3.connect(target, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")


def _opened(path: Path, timeout: float) -> sqlite3.Connection:
    # mode=rw: never make a file.  isolation_level None: no transactions but our own, so that each
    # query sees the newest state.
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=timeout,
                           isolation_level=None)


def _version(db: sqlite3.Connection) -> int:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    return int(version)


def _migrate(path: Path, migrations: Mapping[int, str]) -> None:
    """Bring a file of an older version to the newest that *migrations* lead to."""
    with contextlib.closing(_opened(path, CHANGE_TIMEOUT)) as db:
        if _version(db) not in migrations:
            return
        db.execute("BEGIN IMMEDIATE")  # closing without COMMIT takes back what was done
        while (version := _version(db)) in migrations:  # another process may have been as quick
            for statement in migrations[version].split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {version + 1}")
        db.execute("COMMIT")


def _create(path: Path, script: str) -> None:
    """Make the file; it appears under its name when it is complete."""
    make_folders(path.parent)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(script)
        give_to_owner_of(path.parent, draft)
        with contextlib.suppress(FileExistsError):  # another process was as quick
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    folder_fd = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder_fd)
    finally:
        os.close(folder_fd)


def _require_access(path: Path, create: bool) -> None:
    """Refuse *path*, naming the first thing on the way to it that this user may not use.

    :param create: whether what is missing will be made.
    """
    # The directory must be writable as well: SQLite keeps the -wal and -shm files there.
    modes = {path.parent: os.R_OK | os.W_OK | os.X_OK, path: os.R_OK | os.W_OK}
    nearest = path
    for place in (*reversed(path.parents), path):
        if not place.exists():
            if create:
                _require(nearest, os.W_OK | os.X_OK)
            break
        if place != path and not place.is_dir():
            raise DirectoryError(f"{place} is not a directory", "move it away, or name another "
                                 "place: service.data of the configuration, or `mailsvc --dir DIR`")
        _require(place, modes.get(place, os.X_OK))
        nearest = place


def _require(place: Path, mode: int) -> None:
    if not os.access(place, mode):
        raise DirectoryError(f"permission denied on {place}", remedy_for(place))
