"""mailsvc.state: one file in which several parts and processes keep their tables."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mailsvc import database
from mailsvc.errors import TemporaryFailure
from mailsvc.names import DirectoryError
from mailsvc.state import State

COLOURS = ("CREATE TABLE IF NOT EXISTS colour (name TEXT PRIMARY KEY) WITHOUT ROWID",
           "CREATE INDEX IF NOT EXISTS colour_by_name ON colour (name)")
SHAPES = "CREATE TABLE IF NOT EXISTS shape (name TEXT)"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "state.sqlite"


def test_each_part_makes_its_own_tables(path: Path) -> None:
    first, second = State(path), State(path)
    first.table(*COLOURS)
    second.table(SHAPES)
    with first.transaction():
        first.change("INSERT INTO colour VALUES ('red')")
        first.change("INSERT INTO shape VALUES ('round')")
    second.table(*COLOURS)  # again, and nothing is lost
    assert second.rows("SELECT name FROM colour") == [("red",)]
    assert second.rows("SELECT name FROM shape") == [("round",)]
    first.close()
    second.close()
    again = State(path)
    assert again.rows("SELECT name FROM colour") == [("red",)]
    again.close()


def test_tables_appear_together_or_not_at_all(path: Path) -> None:
    state = State(path)
    with pytest.raises(TemporaryFailure):
        state.table(SHAPES, "CREATE TABLE IF NOT EXISTS ( wrong")
    assert state.rows("SELECT name FROM sqlite_master") == []
    state.close()


def test_a_statement_may_be_its_own_transaction(path: Path) -> None:
    one, other = State(path), State(path)
    one.table(SHAPES)
    assert one.rows("INSERT INTO shape VALUES (?) RETURNING name", "round") == [("round",)]
    other.update("INSERT INTO shape VALUES (?)", "square")
    assert one.rows("SELECT name FROM shape ORDER BY name") == [("round",), ("square",)]
    one.close()
    other.close()


def test_no_wait_for_the_disk_at_each_change(path: Path) -> None:
    state = State(path)
    assert state.rows("PRAGMA synchronous") == [(1,)]
    assert state.rows("PRAGMA journal_mode") == [("wal",)]
    state.close()


def test_what_cannot_be_done_now_is_a_temporary_failure(
        path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "CHANGE_TIMEOUT", 0.05)
    state = State(path)
    state.table(SHAPES)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    for attempt in (
            lambda: state.rows("INSERT INTO shape VALUES ('round')"),
            lambda: state.update("INSERT INTO shape VALUES ('round')"),
            lambda: state.table(*COLOURS)):
        with pytest.raises(TemporaryFailure, match="records cannot be used now") as failure:
            attempt()
        assert "accounts" not in failure.value.text  # that is another file
    assert state.rows("SELECT name FROM shape") == []  # a query waits for nobody
    other.execute("ROLLBACK")
    other.close()
    state.rows("INSERT INTO shape VALUES ('round')")
    assert state.rows("SELECT name FROM shape") == [("round",)]
    state.close()


def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    sqlite3.connect(path).execute("CREATE TABLE theirs (x)").connection.close()
    with pytest.raises(DirectoryError, match="not a file of mailsvc"):
        State(path)


def test_a_thread_opens_its_own(path: Path) -> None:
    state = State(path)
    state.table(SHAPES)

    def work() -> None:
        own = State(path)
        with own.transaction():
            own.change("INSERT INTO shape VALUES ('round')")
        own.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert state.rows("SELECT name FROM shape") == [("round",)]
    state.close()


def test_processes_make_it_and_its_tables_at_once(path: Path) -> None:
    code = ("import sys; from pathlib import Path; from mailsvc.state import State\n"
            "state = State(Path(sys.argv[1])); state.table(*sys.argv[2:])\n"
            "for _ in range(20): state.rows(\"INSERT INTO shape VALUES ('round')\")\n")
    running = [subprocess.Popen([sys.executable, "-c", code, str(path), SHAPES, *COLOURS])
               for _ in range(4)]
    assert [process.wait(30) for process in running] == [0, 0, 0, 0]
    state = State(path)
    assert state.rows("SELECT count(*) FROM shape") == [(80,)]
    state.close()
