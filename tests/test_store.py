"""Around the stores: opening them, their threads, the sweep."""

from __future__ import annotations

import errno
import itertools
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError
from twisted.logger import formatEvent

from mailsvc.errors import MailFailure, StorageFull, TemporaryFailure
from mailsvc.store import STORES, StoreUnusable, open_store
from mailsvc.store.failures import mail_failure
from mailsvc.store.maildir import MaildirSettings, MaildirStore
from mailsvc.store.memory import MemoryStore
from mailsvc.store.threads import Threads
from tests.stores import ALICE, BOB, CAROL, descriptors, home, maildir_store, pause, put
from tests.system_calls import Call, SystemCalls

# ---- opening a store --------------------------------------------------------


def test_stores_are_opened_by_their_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = MaildirSettings()
    assert set(STORES) == {"maildir", "memory"}
    assert isinstance(open_store(f"maildir:{tmp_path}", settings, "h", reactor), MaildirStore)
    assert isinstance(open_store("memory:", settings, "h", reactor), MemoryStore)
    monkeypatch.chdir(tmp_path.parent)
    relative = open_store(f"maildir:{tmp_path.name}", settings, "h", reactor)
    assert isinstance(relative, MaildirStore)
    assert relative._tree.home(ALICE) == os.fsencode(tmp_path / "example.org/alice")


@pytest.mark.parametrize(("uri", "words"), [
    ("", "maildir:, memory:"), ("maildir", "maildir:, memory:"), ("mbox:/x", "'mbox:/x'"),
    ("/srv/mail", "maildir:, memory:"), ("maildir:", "needs a directory"),
    ("memory:x", "takes nothing"),
    ("maildir:{}/none", "(mkdir -p {}/none) and give it to the user that runs mailsvc "
     "(chown USER {}/none)"),
    ("maildir:{}/file", "{}/file is not a directory"),
])
def test_stores_that_cannot_be_opened(uri: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreUnusable, match=re.escape(words.replace("{}", str(tmp_path)))):
        open_store(uri.format(tmp_path), MaildirSettings(), "h", reactor)


@pytest.mark.parametrize("key", ["small_message_octets", "threads", "sweep_hours"])
def test_settings_are_one_or_more(key: str) -> None:
    check = MaildirSettings.__dataclass_fields__[key].metadata["check"]
    assert check(0) == check(0.9) == "1 or more"
    assert check(1) is None


def test_a_directory_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append(mode))
    with pytest.raises(StoreUnusable, match="run as the user that owns it, or chown") as caught:
        open_store(f"maildir:{tmp_path}", MaildirSettings(), "h", reactor)
    assert str(caught.value).startswith(
        f"user {os.geteuid()} may not write in {tmp_path}, which belongs to user "
        f"{tmp_path.stat().st_uid};")
    assert asked == [os.R_OK | os.W_OK | os.X_OK]


# ---- what an error is called ------------------------------------------------


@pytest.mark.parametrize(("error", "failure", "code", "line"), [
    (OSError(errno.EIO, "x", "/m/1.a"), TemporaryFailure, "EIO", "Input/output error (/m/1.a)"),
    (OSError(errno.EIO, "x", b"/m/\xff"), TemporaryFailure, "EIO",
     "Input/output error (/m/\udcff)"),
    (OSError(errno.ENOSPC, "x"), StorageFull, "ENOSPC", "No space left on device ()"),
    (OSError("no number"), TemporaryFailure, "", "Success ()"),
])
def test_an_error_is_logged_for_the_operator(
    logged: list[dict[str, Any]], error: OSError, failure: type[MailFailure], code: str, line: str
) -> None:
    assert type(mail_failure(error, "do it", id="ID1")) is failure
    [event] = logged
    assert formatEvent(event) == f"the store could not do it: {line}"
    assert (event["errno"], event["id"]) == (code, "ID1")


# ---- threads ----------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_threads_are_bounded_and_waited_for() -> None:
    threads = Threads(reactor, 2, "test")  # type: ignore[arg-type]
    running: list[int] = []
    most: list[int] = []

    def work(number: int) -> int:
        running.append(number)
        most.append(len(running))
        time.sleep(0.01)
        running.remove(number)
        return number

    first = threads.run(work, 0)
    threads.start()
    rest = [threads.run(work, number) for number in range(1, 8)]
    follow = rest[-1].addCallback(lambda number: threads.run(work, 10 + number))
    stopped = threads.stop()
    assert not stopped.called
    assert await threads.stop() is None
    assert stopped.called
    assert max(most) == 2
    assert first.result == 0
    assert follow.result == 17
    with pytest.raises(TemporaryFailure):
        await threads.run(work, 99)
    await threads.stop()


@pytest_twisted.ensureDeferred
async def test_abandoned_work(logged: list[dict[str, Any]]) -> None:
    threads = Threads(reactor, 2, "test")  # type: ignore[arg-type]
    unwanted: list[object] = []

    def fails() -> None:
        raise ZeroDivisionError

    given = [threads.run(int, "7", unwanted=unwanted.append), threads.run(int, "8"),
             threads.run(fails, unwanted=unwanted.append)]
    kept = threads.run(int, "9", unwanted=unwanted.append)
    for each in given:
        each.cancel()
        with pytest.raises(CancelledError):
            await each
    threads.start()
    await threads.stop()
    assert unwanted == [7]
    assert await kept == 9
    assert len([event for event in logged if event.get("log_failure") is not None]) == 1


# ---- sweep ------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_abandoned_files_are_swept(
    store: MaildirStore, tmp_path: Path, logged: list[dict[str, Any]]
) -> None:
    hour = 3600.0
    now = time.time()
    alice, carol = home(tmp_path), home(tmp_path, CAROL)
    away = tmp_path.with_name("away")
    away.mkdir()

    def old(path: Path, accessed: float, modified: float) -> Path:
        path.write_bytes(b"x")
        os.utime(path, (now - accessed, now - modified))
        return path

    swept = [old(alice / "tmp/a", 36.1 * hour, 36.1 * hour),
             old(alice / "tmp/b", 100 * hour, 1000 * hour),
             old(carol / "tmp/c", 40 * hour, 40 * hour),
             old(carol / "tmp/.d", 40 * hour, 40 * hour)]
    kept = [old(alice / "tmp/read lately", 35.9 * hour, 100 * hour),
            old(alice / "tmp/written lately", 100 * hour, 35.9 * hour),
            old(alice / "new/1.a.h", 100 * hour, 100 * hour),
            old(alice / "cur/1.b.h:2,S", 100 * hour, 100 * hour),
            old(alice / "stray", 100 * hour, 100 * hour),
            old(tmp_path / "stray", 100 * hour, 100 * hour),
            old(tmp_path / "example.org/stray", 100 * hour, 100 * hour),
            old(away / "elsewhere", 100 * hour, 100 * hour)]
    (alice / "tmp/link").symlink_to(away / "elsewhere")
    os.utime(alice / "tmp/link", (0, 0), follow_symlinks=False)
    (alice / "tmp/directory").mkdir()
    os.utime(alice / "tmp/directory", (0, 0))
    # Links in the place of a domain, a maildir and a tmp/.
    (away / "x/tmp").mkdir(parents=True)
    kept.append(old(away / "x/tmp/far", 100 * hour, 100 * hour))
    (tmp_path / "example.com").symlink_to(away)
    (tmp_path / "example.org/link").symlink_to(away / "x")
    (tmp_path / "example.org/dave").mkdir()
    (tmp_path / "example.org/dave/tmp").symlink_to(away / "x/tmp")
    (tmp_path / "example.org/empty").mkdir()
    assert await store.sweep() == 4
    assert [path for path in swept if path.exists()] == []
    assert [path for path in kept if not path.exists()] == []
    assert (alice / "tmp/link").is_symlink()
    assert (alice / "tmp/directory").is_dir()
    # Other links are no maildirs, and nothing to tell of.
    [event] = [event for event in logged if "cannot sweep" in (event["log_format"] or "")]
    assert formatEvent(event) == (
        f"cannot sweep {tmp_path}/example.org/dave/tmp: {os.strerror(errno.ENOTDIR)}")
    assert await store.sweep() == 0


@pytest.mark.parametrize("name", ["unlink", "open", "scandir"])
@pytest_twisted.ensureDeferred
async def test_a_sweep_goes_on_past_what_it_cannot_remove(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls, logged: list[dict[str, Any]], name: str
) -> None:
    for account in (ALICE, BOB):
        os.utime(put(home(tmp_path, account), "tmp/old", b"x"), (0, 0))
    hits = itertools.count()

    def fault(_: int, call: Call) -> int | None:
        if name == "unlink":
            return errno.EACCES if call.name == name and next(hits) == 0 else None
        # Of alice's or bob's, whichever comes first.
        inner = call.path.endswith("/tmp") or call.path == "tmp"
        return errno.EACCES if call.name == name and inner and next(hits) == 0 else None

    calls.fault = fault
    before = descriptors()
    assert await store.sweep() == 1
    assert descriptors() == before
    [event] = [event for event in logged if "cannot sweep" in (event["log_format"] or "")]
    assert re.fullmatch(r"example\.org/(alice|bob)/tmp" + ("/old" if name == "unlink" else ""),
                        event["path"].removeprefix(f"{tmp_path}/"))
    calls.fault = lambda _, call: errno.ENOENT if call.name == "unlink" else None
    assert await store.sweep() == 0  # another sweep was faster


@pytest_twisted.ensureDeferred
async def test_a_sweep_waits_for_nobody_to_open_a_pipe(store: MaildirStore, tmp_path: Path) -> None:
    pipe = home(tmp_path) / "tmp"
    pipe.rmdir()
    os.mkfifo(pipe)
    swept = store.sweep()
    for _ in range(200):
        if swept.called:
            break
        await pause(0.01)
    waits = not swept.called
    if waits:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))  # so that this test can end
    assert await swept == 0
    assert not waits


@pytest_twisted.ensureDeferred
async def test_a_root_that_cannot_be_swept(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls, logged: list[dict[str, Any]]
) -> None:
    calls.fault = lambda _, call: errno.EACCES
    assert await store.sweep() == 0
    [event] = [event for event in logged if "cannot sweep" in (event["log_format"] or "")]
    assert event["path"] == str(tmp_path)


@pytest_twisted.ensureDeferred
async def test_a_sweep_hides_no_error_of_our_own(
    store: MaildirStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sweep(*arguments: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(store._tree, "sweep", sweep)
    with pytest.raises(ZeroDivisionError):
        await store.sweep()


@pytest_twisted.ensureDeferred
async def test_sweep_hours_is_obeyed(tmp_path: Path) -> None:
    store = maildir_store(tmp_path, sweep_hours=2)
    store.start()
    for name, hours in (("old", 2.1), ("young", 1.9)):
        when = time.time() - hours * 3600
        os.utime(put(home(tmp_path), f"tmp/{name}", b"x"), (when, when))
    assert await store.sweep() == 1
    assert os.listdir(home(tmp_path) / "tmp") == ["young"]
    await store.stop()
    assert await store.sweep() == 0
