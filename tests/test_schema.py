"""mailsvc.schema: a file of an older version becomes one of this, and nothing is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailsvc import schema
from mailsvc.directory import SqliteDirectory
from mailsvc.logins import Credentials, StoredPassword
from mailsvc.mail import Account, Alias, Domain
from mailsvc.names import DirectoryError, parse_address

at = parse_address

#: What the program of version 1 made, word for word.
VERSION_1 = """
CREATE TABLE domain (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    separators TEXT,
    catch_all_local_part TEXT,
    catch_all_domain TEXT
);
CREATE TABLE account (
    id INTEGER PRIMARY KEY,
    domain TEXT NOT NULL REFERENCES domain (name),
    key TEXT NOT NULL,
    local_part TEXT NOT NULL,
    verifier TEXT,
    secret TEXT,
    quota_octets INTEGER NOT NULL,
    quota_messages INTEGER NOT NULL,
    UNIQUE (domain, key)
);
CREATE INDEX account_by_age ON account (domain, id);
CREATE TABLE alias (
    id INTEGER PRIMARY KEY,
    domain TEXT NOT NULL REFERENCES domain (name),
    key TEXT NOT NULL,
    local_part TEXT NOT NULL,
    moved INTEGER NOT NULL,
    UNIQUE (domain, key)
);
CREATE TABLE target (
    alias INTEGER NOT NULL REFERENCES alias (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    domain TEXT NOT NULL,
    key TEXT NOT NULL,
    local_part TEXT NOT NULL,
    PRIMARY KEY (alias, position)
) WITHOUT ROWID;
CREATE INDEX target_by_name ON target (domain, key);
INSERT INTO domain VALUES (3, 'example.org', NULL, 'alice', 'example.org'),
    (1, 'example.net', '-', NULL, NULL);
INSERT INTO account VALUES (9, 'example.org', 'bob', 'Bob', '$verifier', 'secret', 10, 2),
    (4, 'example.org', 'alice', 'alice', NULL, NULL, 0, 0),
    (12, 'example.net', 'jürgen', 'Jürgen', '$other', NULL, 0, 7),
    (2, 'example.net', 'apop', 'apop', NULL, 'only; a secret', 0, 0);
INSERT INTO alias VALUES (5, 'example.org', 'team', 'Team', 0),
    (1, 'example.org', 'gone', 'gone', 1);
INSERT INTO target VALUES (5, 0, 'example.org', 'bob', 'bob'),
    (5, 1, 'example.org', 'alice', 'alice'), (1, 0, 'elsewhere.example', 'x', 'x');
PRAGMA user_version = 1;
"""

#: What that program asks of the file while it serves.
ITS_CREDENTIALS = ("SELECT local_part, domain, quota_octets, quota_messages, verifier, secret "
                   "FROM account WHERE domain = ? AND key = ?")
ITS_OLDEST = ("SELECT local_part, domain, quota_octets, quota_messages FROM account "
              "WHERE domain = ? ORDER BY id LIMIT 1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of version 1."""
    path = tmp_path / "accounts.sqlite"
    path.touch(0o600)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(VERSION_1)
    return path


@pytest.fixture
def old_process(path: Path) -> Iterator[sqlite3.Connection]:
    """The connection of a process of the old program that has the file open."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(ITS_CREDENTIALS, ("example.org", "bob")).fetchall()
        yield db


def version(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as db:
        found: int = db.execute("PRAGMA user_version").fetchone()[0]
        return found


def dump(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return list(db.iterdump())


BOB = Account("Bob", "example.org", 10, 2)
EVERYBODY = [
    Credentials(Account("apop", "example.net"), (StoredPassword(secret="only; a secret"),)),
    Credentials(Account("alice", "example.org")),
    Credentials(BOB, (StoredPassword("", "$verifier", None, "secret"),)),
    Credentials(Account("Jürgen", "example.net", 0, 7), (StoredPassword("", "$other"),))]


def test_nothing_is_lost(path: Path) -> None:
    for _ in range(2):  # and nothing changes the second time
        with SqliteDirectory(path, create=False) as directory:
            assert list(directory.domains()) == [
                Domain("example.net", None, "-"), Domain("example.org", at("alice@example.org"))]
            assert [directory.credentials(each.name) for each in directory.accounts()] == EVERYBODY
            assert list(directory.aliases()) == [
                Alias("gone", "example.org", (at("x@elsewhere.example"),), True),
                Alias("Team", "example.org", (at("bob@example.org"), at("alice@example.org")))]
            assert directory.oldest_account("example.org") == Account("alice", "example.org")
            key = directory.keyed("x", b"y")
        with SqliteDirectory(path) as directory:
            assert directory.keyed("x", b"y") == key
    assert version(path) == schema.VERSION == 3


def test_what_was_migrated_can_be_changed(path: Path) -> None:
    with SqliteDirectory(path) as directory:
        directory.set_password(at("bob@example.org"), "$new")
        directory.passwords.add(BOB, StoredPassword("phone", "$app"))
        directory.add_account(at("new@example.org"), verifier="$v", role="receive")
        directory.set_role(at("alice@example.org"), "send")
        directory.remove_account(at("apop@example.net"))
        assert len(list(directory.accounts())) == 4
        found = directory.credentials("bob@example.org")
        assert found and [each.verifier for each in found.passwords] == ["$new", "$app"]
        # Foreign keys hold between the new tables.
        assert directory._rows("PRAGMA foreign_key_check") == []
        assert directory._rows("SELECT count(*) FROM password") == [(4,)]


def test_a_migrated_file_and_a_new_one_have_the_same_tables(path: Path, tmp_path: Path) -> None:
    SqliteDirectory(path).close()
    SqliteDirectory(tmp_path / "new.sqlite").close()

    def tables(path: Path) -> set[tuple[str, str]]:
        with contextlib.closing(sqlite3.connect(path)) as db:
            return set(db.execute("SELECT name, sql FROM sqlite_schema WHERE type != 'view'"))

    assert tables(path) == tables(tmp_path / "new.sqlite")


def test_a_process_of_the_old_program_goes_on(path: Path, old_process: sqlite3.Connection) -> None:
    with SqliteDirectory(path) as directory:
        assert old_process.execute(ITS_CREDENTIALS, ("example.org", "bob")).fetchall() == [
            ("Bob", "example.org", 10, 2, "$verifier", "secret")]
        assert old_process.execute(ITS_CREDENTIALS, ("example.org", "alice")).fetchall() == [
            ("alice", "example.org", 0, 0, None, None)]
        assert old_process.execute(ITS_OLDEST, ("example.net",)).fetchall() == [
            ("apop", "example.net", 0, 0)]
        # It hears of changes, app passwords are not for it, and it keeps to roles it cannot know.
        directory.set_password(at("bob@example.org"), "$new")
        directory.passwords.add(BOB, StoredPassword("phone", "$app"))
        assert old_process.execute(ITS_CREDENTIALS, ("example.org", "bob")).fetchall() == [
            ("Bob", "example.org", 10, 2, "$new", None)]
        directory.set_role(at("bob@example.org"), "send")
        assert old_process.execute(ITS_CREDENTIALS, ("example.org", "bob")).fetchall() == []
        # It changes nothing: what it asks for is a table no more.
        with pytest.raises(sqlite3.OperationalError, match="cannot modify account"):
            old_process.execute("UPDATE account SET verifier = 'x'")


def test_an_old_program_that_opens_it_is_told(path: Path) -> None:
    SqliteDirectory(path).close()
    # As every version says it: the version it finds, the one it knows, and what to do.
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 4")
    with pytest.raises(DirectoryError, match="has schema version 4, not 3; upgrade mailsvc"):
        SqliteDirectory(path)


def test_a_migration_that_fails_leaves_the_file_as_it_was(
        path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = dump(path)
    script = schema.migrations()[1] + "INSERT INTO nowhere VALUES (1);"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "migrations", lambda: {1: script})
        with pytest.raises(DirectoryError, match=r"cannot be used \(no such table: .*nowhere"):
            SqliteDirectory(path)
    assert dump(path) == before
    assert version(path) == 1
    with SqliteDirectory(path) as directory:
        assert directory.credentials("bob@example.org") == EVERYBODY[2]


@pytest.mark.parametrize("statements", [1, 5, 8, 10])
def test_a_process_killed_amid_a_migration_leaves_the_file_as_it_was(path: Path,
                                                                     statements: int) -> None:
    before = dump(path)
    child = subprocess.run([sys.executable, "-c", f"""
import os, signal, sqlite3, sys
from mailsvc import database
from mailsvc.directory import SqliteDirectory
opened = database._opened
class Killed:
    left = {statements}
    def __init__(self, db):
        self.db = db
    def execute(self, statement, *rest):
        if not statement.startswith(("PRAGMA", "BEGIN")):
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.db.execute(statement, *rest)
    def __getattr__(self, name):
        return getattr(self.db, name)
database._opened = lambda *rest: Killed(opened(*rest))
SqliteDirectory({str(path)!r})
"""], check=False, timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert dump(path) == before
    with SqliteDirectory(path) as directory:
        assert [directory.credentials(each.name) for each in directory.accounts()] == EVERYBODY


def test_many_processes_migrate_it_at_once(path: Path) -> None:
    script = ("import sys; from mailsvc.directory import SqliteDirectory;"
              "sys.stdin.read(); directory = SqliteDirectory(sys.argv[1]);"
              "print(len(list(directory.accounts())), directory.keyed('x', b'y').hex())")
    children = [subprocess.Popen([sys.executable, "-c", script, str(path)], text=True,
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(4)]
    for child in children:
        assert child.stdin is not None
        child.stdin.close()
        child.stdin = None
    said = {child.communicate(timeout=60)[0] for child in children}
    assert len(said) == 1 and said.pop().startswith("4 ")


def test_what_may_not_be_used_is_not_migrated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.access
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != path and real(place, mode))
    with pytest.raises(DirectoryError, match=r"permission denied on .*accounts\.sqlite"):
        SqliteDirectory(path)
    assert version(path) == 1


def test_version_2_has_no_administrators(tmp_path: Path) -> None:
    """What version 3 adds is added; all else stays as it was."""
    path = tmp_path / "accounts.sqlite"
    with SqliteDirectory(path) as directory:
        directory.add_domain("example.org")
        directory.add_account(at("alice@example.org"), verifier="$verifier", quota_octets=7)
    before = dump(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript("DROP TABLE administrator; PRAGMA user_version = 2")
    with SqliteDirectory(path) as directory:
        assert directory.administrators() == []
    assert version(path) == 3
    assert dump(path) == before
