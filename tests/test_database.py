"""mailsvc.database: one file, several processes."""

from __future__ import annotations

import os
import pwd
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mailsvc import database
from mailsvc.database import Database
from mailsvc.errors import TemporaryFailure
from mailsvc.names import DirectoryError

SCHEMA = "CREATE TABLE t (v TEXT UNIQUE)"

def open_(path: Path, *, create: bool = True, version: int = 7) -> Database:
    return Database(path, SCHEMA, version, create=create)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_made_on_first_use_and_private(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        path = tmp_path / "a" / "b" / "t.sqlite"
        db = open_(path)
        with db.transaction():
            db.change("INSERT INTO t VALUES (?)", "x")
    finally:
        os.umask(previous)
    assert mode(path) == 0o600
    assert mode(tmp_path / "a") == mode(tmp_path / "a" / "b") == 0o700
    # What SQLite keeps beside it is as private; nothing is left of making it.
    assert {mode(file) for file in path.parent.iterdir()} == {0o600}
    assert {file.name for file in path.parent.iterdir()} == {"t.sqlite", "t.sqlite-wal",
                                                             "t.sqlite-shm"}
    db.close()
    db.close()
    again = open_(path, create=False)
    assert again.rows("SELECT v FROM t") == [("x",)]
    again.close()


def test_not_made_when_not_asked(tmp_path: Path) -> None:
    with pytest.raises(DirectoryError, match=r"there is no .*t\.sqlite yet; begin with"):
        open_(tmp_path / "a" / "t.sqlite", create=False)
    assert not any(tmp_path.iterdir())


def test_a_relative_path_stays_where_it_was(tmp_path: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    db = open_(Path("t.sqlite"))
    monkeypatch.chdir("/")
    db.update("INSERT INTO t VALUES ('x')")
    assert db.rows("SELECT v FROM t") == [("x",)]
    db.close()


def test_a_path_with_special_characters(tmp_path: Path) -> None:
    path = tmp_path / "a?mode=memory#%41 b" / "t.sqlite"
    open_(path).close()
    assert path.exists()
    open_(path, create=False).close()


def test_many_processes_make_it_at_once(tmp_path: Path) -> None:
    script = ("import sys; from pathlib import Path; from mailsvc.database import Database;"
              "sys.stdin.read();"
              f"db = Database(Path(sys.argv[1]), {SCHEMA!r}, 7, create=True);"
              "db.update('INSERT INTO t VALUES (?)', sys.argv[2])")
    children = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "d" / "t.sqlite"), str(n)],
                         stdin=subprocess.PIPE) for n in range(6)]
    for child in children:
        assert child.stdin is not None
        child.stdin.close()
    assert [child.wait(60) for child in children] == [0] * 6
    db = open_(tmp_path / "d" / "t.sqlite", create=False)
    assert len(db.rows("SELECT v FROM t")) == 6
    db.close()


@pytest.mark.parametrize(("version", "remedy"), [
    (8, "upgrade mailsvc"), (6, "older mailsvc: move it away to begin anew"), (0, "move it away")])
def test_another_schema(tmp_path: Path, version: int, remedy: str) -> None:
    path = tmp_path / "t.sqlite"
    open_(path, version=version).close()
    with pytest.raises(DirectoryError, match=f"has schema version {version}, not 7; .*{remedy}"):
        open_(path)


def test_not_a_database(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    path.write_text("To: bob\n" * 200)
    with pytest.raises(DirectoryError, match="cannot be used \\(file is not a database\\)"):
        open_(path)
    assert path.read_text().startswith("To: bob")
    path.write_text("")
    with pytest.raises(DirectoryError, match="schema version 0, not 7; it is not a file of"):
        open_(path)


def test_a_file_amid_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in ("file/t.sqlite", "file/d/t.sqlite"):
        with pytest.raises(DirectoryError, match="/file is not a directory; move it away"):
            open_(tmp_path / path)
    with pytest.raises(DirectoryError, match="cannot be used"):
        open_(tmp_path)


def test_older_files_are_brought_to_this_version(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    open_(path, version=5).close()
    steps = {5: "ALTER TABLE t ADD w; INSERT INTO t VALUES ('five', 1);",
             6: "INSERT INTO t\nVALUES ('six', 2);\n"}
    for _ in range(2):
        db = Database(path, "", 7, create=False, migrations=steps)
        assert db.rows("SELECT v, w FROM t ORDER BY w") == [("five", 1), ("six", 2)]
        db.close()
    # There is a way from those versions alone, and none back.
    for version, remedy in (4, "it is of an older"), (8, "upgrade mailsvc"):
        other = tmp_path / f"{version}.sqlite"
        open_(other, version=version).close()
        with pytest.raises(DirectoryError, match=f"schema version {version}, not 7; {remedy}"):
            Database(other, "", 7, create=False, migrations=steps)
    (tmp_path / "0.sqlite").touch()
    with pytest.raises(DirectoryError, match="schema version 0, not 7; it is not a file of"):
        Database(tmp_path / "0.sqlite", "", 7, create=False, migrations=steps)


def test_a_migration_waits_for_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.sqlite"
    theirs = open_(path, version=6)
    monkeypatch.setattr(database, "CHANGE_TIMEOUT", 0.05)
    with theirs.transaction(), pytest.raises(DirectoryError, match=r"locked\); see that "):
        Database(path, "", 7, create=False, migrations={6: "DROP TABLE t;"})
    assert theirs.rows("SELECT v FROM t") == []
    theirs.close()


# ---- who may -------------------------------------------------------------------------------------


def refuse(monkeypatch: pytest.MonkeyPatch, place: Path, refused: int) -> None:
    """Have the system say that *place* may not be used so; root may everything."""
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: (
        not mode & refused if Path(path) == place else real(path, mode)))


@pytest.mark.parametrize(("place", "refused"), [
    ("d", os.X_OK), ("d/data", os.W_OK), ("d/data", os.R_OK), ("d/data", os.X_OK),
    ("d/data/t.sqlite", os.R_OK), ("d/data/t.sqlite", os.W_OK)])
def test_the_user_to_run_as_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str,
                                     refused: int) -> None:
    path = tmp_path / "d" / "data" / "t.sqlite"
    open_(path).close()
    refuse(monkeypatch, tmp_path / place, refused)
    for create in (True, False):
        with pytest.raises(DirectoryError) as caught:
            open_(path, create=create)
        assert str(caught.value) == denied(tmp_path / place)


def denied(place: Path) -> str:
    """What is said of a place that belongs to whoever runs the tests."""
    text = (f"permission denied on {place}; run as the user who owns it: "
            f"sudo -u {pwd.getpwuid(os.geteuid()).pw_name} mailsvc …")
    if os.geteuid() == 0:
        text += f", or give it to the user that runs the service: chown -R USER {place}"
    return text


def test_where_there_is_nothing_nobody_needs_to_write(tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, tmp_path, os.W_OK)
    with pytest.raises(DirectoryError, match=f"there is no {tmp_path}/d/t.sqlite yet; begin with"):
        open_(tmp_path / "d" / "t.sqlite", create=False)


def test_nothing_is_made_where_one_may_not_write(tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, tmp_path, os.W_OK)
    with pytest.raises(DirectoryError, match=f"permission denied on {tmp_path};"):
        open_(tmp_path / "d" / "data" / "t.sqlite")


def test_an_owner_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_(tmp_path / "t.sqlite").close()
    refuse(monkeypatch, tmp_path / "t.sqlite", os.W_OK)

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(DirectoryError, match=f"sudo -u '#{os.geteuid()}' mailsvc"):
        open_(tmp_path / "t.sqlite")


def test_whom_the_system_refuses_is_told_whom_to_be(tmp_path: Path) -> None:
    path = tmp_path / "data" / "t.sqlite"
    open_(path).close()
    if os.geteuid() == 0:
        for parent in (*tmp_path.parents, tmp_path):
            if not parent.stat().st_mode & stat.S_IXOTH:
                parent.chmod(parent.stat().st_mode | stat.S_IXOTH)
    else:
        path.parent.chmod(0o500)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        if os.geteuid() == 0:
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
        try:
            open_(path)
        except DirectoryError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(child, 0)
    assert text == denied(path.parent)


def test_what_root_makes_belongs_to_the_owner_of_the_place(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", lambda path, *owner: given.update({Path(path).name: owner}))
    open_(tmp_path / "data" / "more" / "t.sqlite").close()
    # The file itself is still a draft then; of -wal and -shm SQLite takes care.
    here = tmp_path.stat()
    assert given == dict.fromkeys(("data", "more", f".t.sqlite.{os.getpid()}"),
                                  (here.st_uid, here.st_gid))


def test_others_need_no_chown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "chown", lambda *_: pytest.fail("only root may chown"))
    open_(tmp_path / "t.sqlite").close()


# ---- transactions --------------------------------------------------------------------------------


def test_changes_become_visible_together_or_not_at_all(tmp_path: Path) -> None:
    ours, theirs = open_(tmp_path / "t.sqlite"), open_(tmp_path / "t.sqlite")
    with ours.transaction():
        ours.change("INSERT INTO t VALUES (?)", "a")
        with ours.transaction():
            ours.change("INSERT INTO t VALUES (?)", "b")
        assert len(ours.rows("SELECT v FROM t")) == 2
        assert theirs.rows("SELECT v FROM t") == []
    assert len(theirs.rows("SELECT v FROM t")) == 2
    with pytest.raises(ZeroDivisionError), ours.transaction():
        ours.change("INSERT INTO t VALUES (?)", "c")
        raise ZeroDivisionError
    with pytest.raises(DirectoryError, match="UNIQUE"), ours.transaction():
        ours.change("INSERT INTO t VALUES (?)", "d")
        ours.change("INSERT INTO t VALUES (?)", "a")
    with pytest.raises(DirectoryError, match="no such table"), ours.transaction():
        ours.change("INSERT INTO t VALUES (?)", "e")
        ours.rows("SELECT v FROM nowhere")
    assert theirs.rows("SELECT v FROM t ORDER BY v") == [("a",), ("b",)]
    ours.close()
    theirs.close()


def test_a_change_waits_for_another(tmp_path: Path) -> None:
    path = tmp_path / "t.sqlite"
    ours = open_(path)
    begun, asked = threading.Event(), threading.Event()

    def change() -> None:
        theirs = open_(path)
        with theirs.transaction():
            theirs.change("INSERT INTO t VALUES ('theirs')")
            begun.set()
            assert asked.wait(30)
            time.sleep(2 * database.QUERY_TIMEOUT)
        theirs.close()

    thread = threading.Thread(target=change)
    thread.start()
    assert begun.wait(30)
    assert ours.rows("SELECT v FROM t") == []  # does not wait
    asked.set()
    with ours.transaction():
        ours.change("INSERT INTO t VALUES ('ours')")
    thread.join()
    assert len(ours.rows("SELECT v FROM t")) == 2
    ours.close()


def test_a_change_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "CHANGE_TIMEOUT", 0.05)
    ours, theirs = open_(tmp_path / "t.sqlite"), open_(tmp_path / "t.sqlite")
    with theirs.transaction():
        with pytest.raises(DirectoryError, match=r"locked\); see that .* no other program holds"), \
                ours.transaction():
            pytest.fail("a second transaction began")
        with pytest.raises(TemporaryFailure, match="cannot be changed now"):
            ours.update("INSERT INTO t VALUES ('x')")
    ours.update("INSERT INTO t VALUES ('x')")
    assert theirs.rows("SELECT v FROM t") == [("x",)]
    ours.close()
    theirs.close()


def test_update_may_come_from_any_thread(tmp_path: Path) -> None:
    db = open_(tmp_path / "t.sqlite")
    thread = threading.Thread(target=db.update, args=("INSERT INTO t VALUES (?)", "x"))
    thread.start()
    thread.join()
    assert db.rows("SELECT v FROM t") == [("x",)]
    db.close()


def test_many_updates_are_all_made_or_none(tmp_path: Path) -> None:
    db = open_(tmp_path / "t.sqlite")
    db.update_all("INSERT INTO t VALUES (?)", [("a",), ("b",)])
    db.update_all("INSERT INTO t VALUES (?)", [])
    with pytest.raises(TemporaryFailure):
        db.update_all("INSERT INTO t VALUES (?)", [("c",), ("a",)])
    assert db.rows("SELECT v FROM t ORDER BY v") == [("a",), ("b",)]
    db.close()


def test_update_makes_no_file(tmp_path: Path) -> None:
    db = open_(tmp_path / "t.sqlite")
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(TemporaryFailure, match="cannot be changed now"):
        db.update("INSERT INTO t VALUES ('x')")
    assert not any(tmp_path.iterdir())
    db.close()


def test_queries_that_cannot_be_answered(tmp_path: Path) -> None:
    db = open_(tmp_path / "t.sqlite")
    assert db.rows("SELECT v FROM t WHERE v = ?", "\udc80") == []
    with pytest.raises(TemporaryFailure) as caught:
        db.rows("SELECT v FROM nowhere")
    assert str(caught.value) == "The directory of accounts cannot be read now"
    assert isinstance(caught.value.__cause__, sqlite3.Error)
    db.close()
    with pytest.raises(TemporaryFailure):
        db.rows("SELECT v FROM t")


def test_a_failed_creation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(DirectoryError, match=r"cannot be used \(\[Errno 28\] No space left"):
        open_(tmp_path / "t.sqlite")
    assert not any(tmp_path.iterdir())


def test_another_process_was_as_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def beaten(draft: Path, path: Path) -> None:
        link(draft, path)
        link(draft, path)

    monkeypatch.setattr(os, "link", beaten)
    open_(tmp_path / "t.sqlite").close()
    assert [file.name for file in tmp_path.iterdir()] == ["t.sqlite"]


def test_a_copy_goes_back_by_whatever_path(tmp_path: Path,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """As somebody types it: from where he is."""
    open_(tmp_path / "a.sqlite").close()
    monkeypatch.chdir(tmp_path)
    database.copy(Path("a.sqlite"), Path("b.sqlite"))
    database.restored(Path("b.sqlite"), Path("c.sqlite"))
    open_(Path("c.sqlite"), create=False).close()
