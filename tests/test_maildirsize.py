"""The Maildir++ quota file."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.logger import globalLogPublisher

from mailsvc.errors import MailboxFull, SomeNotRemoved, StorageFull, TemporaryFailure
from mailsvc.mail import Account
from mailsvc.store import maildirsize
from mailsvc.store.maildir import MaildirStore
from mailsvc.store.maildirsize import Amount, has_room, recalculate, record
from tests.stores import ALICE, contents, deliver
from tests.system_calls import SystemCalls

QUOTA = Account("alice", "example.org", quota_octets=1000, quota_messages=50)
MESSAGE = b"x" * 98 + b"\r\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Alice's maildir."""
    path = tmp_path / "example.org/alice"
    for name in ("tmp", "new", "cur"):
        (path / name).mkdir(parents=True)
    return path


def sums(home: Path) -> list[str]:
    """The lines of maildirsize, without padding."""
    return [" ".join(line.split()) for line in (home / "maildirsize").read_text().splitlines()]


def room(home: Path, octets: int, quota: Amount = Amount(1000, 50)) -> bool:  # noqa: B008
    return has_room(os.fsencode(home), quota, octets)


def put(home: Path, name: str, octets: int) -> None:
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, octets)


# ---- what the store does with it --------------------------------------------


@pytest_twisted.ensureDeferred
async def test_without_a_quota_there_is_no_file(
    store: MaildirStore, home: Path, calls: SystemCalls
) -> None:
    assert store.room(ALICE, 10**9) is None
    assert calls.calls == []
    await deliver(store, MESSAGE)
    assert store.room(ALICE, 10**9) is None
    maildrop = await store.open_maildrop(ALICE)
    await maildrop.update([1])
    assert not (home / "maildirsize").exists()


@pytest_twisted.ensureDeferred
async def test_the_file_is_made_and_kept(store: MaildirStore, home: Path) -> None:
    await deliver(store, MESSAGE)
    assert await store.room(QUOTA, 100) is None  # type: ignore[misc]
    assert sums(home) == ["1000S,50C", "100 1"]
    await deliver(store, MESSAGE, QUOTA)
    await deliver(store, MESSAGE * 2 + b"no line end", QUOTA)
    assert sums(home) == ["1000S,50C", "100 1", "100 1", "211 1"]
    maildrop = await store.open_maildrop(QUOTA)
    await maildrop.update([1, 3])
    assert sums(home) == ["1000S,50C", "100 1", "100 1", "211 1", "-311 -2"]
    # Lines are padded to 14 octets, so that appending them tears none.
    lines = (home / "maildirsize").read_bytes().split(b"\n")
    assert [len(line) for line in lines[1:-1]] == [13] * 4
    assert await store.room(QUOTA, 900) is None  # type: ignore[misc]
    with pytest.raises(MailboxFull):
        await store.room(QUOTA, 901)  # type: ignore[misc]
    assert sums(home) == ["1000S,50C", "100 1"]
    assert (home / "maildirsize").stat().st_mode & 0o777 == 0o600


@pytest_twisted.ensureDeferred
async def test_a_file_that_another_program_keeps_is_kept_up(
    store: MaildirStore, home: Path
) -> None:
    """Also for an account that has no quota here."""
    (home / "maildirsize").write_text("5000S\n20 1\n")
    put(home, "cur/1.a.h:2,S", 20)
    await deliver(store, MESSAGE)
    assert sums(home) == ["5000S", "20 1", "100 1"]
    maildrop = await store.open_maildrop(ALICE)
    await maildrop.update([1])
    assert sums(home) == ["5000S", "20 1", "100 1", "-20 -1"]


@pytest.mark.parametrize(("kept", "sent"), [("1.a.h", "2.a.h"), ("2.a.h", "1.a.h")])
@pytest_twisted.ensureDeferred
async def test_what_cannot_be_removed_still_counts(
    store: MaildirStore, home: Path, calls: SystemCalls, kept: str, sent: str
) -> None:
    (home / "maildirsize").write_text("5000S\n300 2\n")
    put(home, f"new/{kept},S=200,W=200", 200)
    put(home, f"new/{sent},S=100,W=100", 100)
    calls.fault = lambda _, call: errno.EIO if call.name == "unlink" and kept in call.path else None
    maildrop = await store.open_maildrop(ALICE)
    with pytest.raises(SomeNotRemoved) as caught:
        await maildrop.update([1, 2])
    assert caught.value.numbers == (int(kept[0]),)
    assert sums(home) == ["5000S", "300 2", "-100 -1"]


@pytest_twisted.ensureDeferred
async def test_each_account_has_its_own(store: MaildirStore, tmp_path: Path) -> None:
    other = Account("bob", "example.org", quota_messages=2)
    for account in (QUOTA, other):
        assert await store.room(account, 1) is None  # type: ignore[misc]
        await deliver(store, b"", account)
        assert await contents(store, account) == [b""]
    await deliver(store, MESSAGE, QUOTA, other)
    assert await store.room(QUOTA, 900) is None  # type: ignore[misc]
    with pytest.raises(MailboxFull):
        await store.room(QUOTA, 901)  # type: ignore[misc]
    with pytest.raises(MailboxFull):
        await store.room(other, 0)  # type: ignore[misc]
    assert sums(tmp_path / "example.org/bob") == ["2C", "100 2"]


@pytest_twisted.ensureDeferred
async def test_a_quota_that_cannot_be_checked(
    store: MaildirStore, home: Path, calls: SystemCalls
) -> None:
    for error, expected in ((errno.EIO, TemporaryFailure), (errno.ENOSPC, StorageFull)):
        calls.fault = lambda _, call, error=error: error if call.name == "open" else None
        with pytest.raises(expected) as caught:
            await store.room(QUOTA, 1)  # type: ignore[misc]
        assert not isinstance(caught.value, MailboxFull)


# ---- limits -----------------------------------------------------------------


@pytest.mark.parametrize(("quota", "octets", "fits"), [
    (Amount(1000, 0), 300, True), (Amount(1000, 0), 301, False),
    (Amount(0, 8), 10**15, True), (Amount(0, 7), 1, False),
    (Amount(1000, 8), 300, True), (Amount(1000, 7), 300, False), (Amount(999, 8), 300, False),
    (Amount(700, 0), 0, False), (Amount(701, 0), 0, True),
])
def test_limits(home: Path, quota: Amount, octets: int, fits: bool) -> None:
    for number in range(7):
        put(home, f"new/{number}.a.h", 100)
    for _ in range(2):
        assert room(home, octets, quota) is fits


# ---- the file believed or made anew -----------------------------------------


GOOD = "1000S,50C\n400 4\n"


@pytest.mark.parametrize("content", [
    GOOD, "50C,1000S\n400 4\n", "1000S,50C,7X\n400 4\n", "1000S,50C\n   400    4  \n",
    "1000S,50C\n500 5\n-100 -1\n", "1000S,50C\n-100 -1\n500 5\n",
    "1000S,50C\n400 0\n", "1000S,50C\n" + "0 0\n" * 1000 + "400 4" + " " * (5119 - 4016) + "\n",
])
def test_a_sound_file_is_believed(home: Path, content: str) -> None:
    """It says 400 octets; the maildir is empty."""
    assert len(content) < 5120
    (home / "maildirsize").write_text(content)
    def written() -> tuple[int, int, int]:
        found = (home / "maildirsize").stat()
        return found.st_ino, found.st_size, found.st_mtime_ns

    before = written()
    assert room(home, 600)
    assert written() == before


@pytest.mark.parametrize("content", [
    None, "", "\n", "1000S,50C", "1000S,50C\n", "1000S\n400 4\n", "50C\n400 4\n",
    "999S,50C\n400 4\n", "1000S,51C\n400 4\n", "1000s,50c\n400 4\n", "1000,50\n400 4\n",
    "1000S;50C\n400 4\n", "1000S,50C,\n400 4\n", "-1000S,50C\n400 4\n", "400 4\n",
    "1000S,50C\n400 4", "1000S,50C\n400\n", "1000S,50C\n400 4 4\n", "1000S,50C\n400 x\n",
    "1000S,50C\n400 4\n\n1 1\n", "1000S,50C\n4.0 4\n", "1000S,50C\n-1 4\n", "1000S,50C\n400 -1\n",
    "1000S,50C\n" + "0 0\n" * 1000 + "400 4" + " " * (5120 - 4016) + "\n",
    "1000S,50C\n" + "0 0\n" * 3000,
])
def test_any_other_is_made_anew(home: Path, content: str | None) -> None:
    """The maildir holds 990 octets."""
    if content is not None:
        (home / "maildirsize").write_text(content)
    put(home, "new/1.a.h", 990)
    assert room(home, 10)
    assert sums(home) == ["1000S,50C", "990 1"]
    assert not room(home, 11)
    assert list((home / "tmp").iterdir()) == []


@pytest.mark.parametrize(("lines", "minutes", "counted"), [
    ("1001 1\n", 14.9, False), ("1001 1\n", 15.1, True), ("1000 1\n1 0\n", 0, True)])
def test_no_room_according_to_the_file(
    home: Path, lines: str, minutes: float, counted: bool
) -> None:
    """It is asked the maildir, which is empty, when the file may be wrong."""
    (home / "maildirsize").write_text(f"1000S,50C\n{lines}")
    when = time.time() - 60 * minutes
    os.utime(home / "maildirsize", (when, when))
    assert room(home, 1) is counted
    assert sums(home) == (["1000S,50C", "0 0"] if counted else ["1000S,50C", "1001 1"])


def test_a_quarter_of_an_hour_to_the_moment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "maildirsize").write_text("1000S,50C\n1001 1\n")
    os.utime(home / "maildirsize", (10_000, 10_000))
    monkeypatch.setattr(time, "time", lambda: 10_899.5)
    assert not room(home, 1)
    monkeypatch.setattr(time, "time", lambda: 10_900.0)
    assert room(home, 1)


@pytest.mark.parametrize(("quota", "content"), [
    (Amount(1000, 0), "1000S\n400 4\n"), (Amount(0, 50), "50C\n400 4\n"),
    (Amount(1000, 50), "1000S,50C\n0 4\n"), (Amount(1000, 50), "1000S,50C\n4 0\n"),
    (Amount(1000, 0), "0C,1000S\n400 4\n")])
def test_a_sound_file_for_any_quota(home: Path, quota: Amount, content: str) -> None:
    (home / "maildirsize").write_text(content)
    assert room(home, 1, quota)
    assert (home / "maildirsize").read_text() == content


def test_a_file_made_anew_says_the_last_word(home: Path) -> None:
    put(home, "new/1.a.h", 1001)
    (home / "maildirsize").write_text("1000S,50C\n0 0\n0 0\n999 1\n")
    assert not room(home, 2)
    assert sums(home) == ["1000S,50C", "1001 1"]


def test_a_link_in_its_place_is_not_followed(home: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text(GOOD)
    (home / "maildirsize").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        room(home, 1)
    record(os.fsencode(home), 5, 1)
    assert (tmp_path / "elsewhere").read_text() == GOOD
    assert room(home, 1)


# ---- counting ---------------------------------------------------------------


def test_what_counts(home: Path) -> None:
    put(home, "new/1.a.h", 3)
    put(home, "new/2.a.h,S=50000,W=7", 1)  # a size in the name is believed
    put(home, "new/3.a.h,S=x", 700)
    put(home, "cur/4.a.h:2,S", 20)
    put(home, "cur/5.a.h:2,FST", 9_000_000)
    put(home, "cur/.hidden", 9_000_000)
    put(home, "tmp/6.a.h", 9_000_000)
    put(home, "stray", 9_000_000)
    put(home, ".Archive/new/7.a.h", 100_000)
    put(home, ".Archive/cur/8.a.h,S=2000000:2,S", 1)
    put(home, ".Archive/tmp/9.a.h", 9_000_000)
    put(home, ".Archive.Sub/cur/10.a.h:2,", 0)
    put(home, ".Trash/cur/11.a.h:2,", 9_000_000)
    put(home, ".Trash.Sub/cur/12.a.h:2,", 30_000_000)
    put(home, "Folder/cur/13.a.h:2,", 9_000_000)
    put(home, ".Empty/maildirfolder", 0)
    (home / "new/directory").mkdir()
    (home / "new/link").symlink_to(home / "stray")
    (home / ".Link").symlink_to(home / ".Archive")
    assert recalculate(os.fsencode(home), Amount(1, 1)) == Amount(32_150_723, 8)
    assert sums(home) == ["1S,1C", "32150723 8"]


def test_there_is_nothing_where_there_is_no_maildir(tmp_path: Path) -> None:
    assert recalculate(os.fsencode(tmp_path / "none"), Amount(1, 0)) == Amount(0, 0)
    assert not (tmp_path / "none").exists()
    assert room(tmp_path / "none", 1000)
    assert not room(tmp_path / "none", 1001)


@pytest.mark.parametrize("change", ["message", "folder"])
def test_a_change_while_counting(
    home: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """What was counted answers the question, but is not kept."""
    put(home, ".Archive/cur/1.a.h:2,S", 5)
    os.utime(home / "new", (1, 1))
    real = os.rename

    def rename(source: Any, target: Any) -> None:
        if change == "message":
            put(home, "new/2.a.h", 7)
        else:
            put(home, ".Other/new/2.a.h", 7)
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    assert recalculate(os.fsencode(home), Amount(1000, 50)) == Amount(5, 1)
    assert not (home / "maildirsize").exists()
    monkeypatch.setattr(os, "rename", real)
    assert recalculate(os.fsencode(home), Amount(1000, 50)) == Amount(12, 2)
    assert sums(home) == ["1000S,50C", "12 2"]


def test_a_message_that_goes_while_counting(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(home, "new/1.a.h,S=5", 5)
    put(home, "new/2.a.h", 7)
    real = maildirsize.filenames.stored_octets

    def stored_octets(name: bytes) -> int | None:
        size = real(name)
        if size is None:
            (home / "new/2.a.h").unlink()
        return size

    monkeypatch.setattr(maildirsize.filenames, "stored_octets", stored_octets)
    assert recalculate(os.fsencode(home), Amount(1000, 0)) == Amount(5, 1)


@pytest.mark.parametrize("name", ["write", "rename", "open"])
def test_a_file_that_cannot_be_made(home: Path, calls: SystemCalls, name: str) -> None:
    put(home, "new/1.a.h", 5)
    (home / "maildirsize").write_text("old\n")
    calls.fault = lambda _, call: errno.ENOSPC if (
        call.name == name and call.path.endswith(".maildirsize" if name != "rename" else "e")
    ) else None
    with pytest.raises(OSError, match="No space"):
        recalculate(os.fsencode(home), Amount(1000, 0))
    assert (home / "maildirsize").read_text() == "old\n"
    assert list((home / "tmp").iterdir()) == []


# ---- recording --------------------------------------------------------------


def test_nothing_is_recorded_where_nothing_is_kept(home: Path) -> None:
    record(os.fsencode(home), 5, 1)
    assert not (home / "maildirsize").exists()


def test_a_change_that_cannot_be_recorded(
    home: Path, calls: SystemCalls, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """No file is better than a wrong one: it will be made anew."""
    logged: list[dict[str, Any]] = []
    globalLogPublisher.addObserver(logged.append)  # type: ignore[arg-type]
    request.addfinalizer(lambda: globalLogPublisher.removeObserver(
        logged.append))  # type: ignore[arg-type]
    for name in ("open", "write", "close"):
        (home / "maildirsize").write_text(GOOD)
        calls.fault = lambda _, call, name=name: errno.EIO if call.name == name else None
        record(os.fsencode(home), 5, 1)
        assert not (home / "maildirsize").exists()
    assert [event["path"] for event in logged] == [os.fsencode(home / "maildirsize")] * 3
    (home / "maildirsize").write_text(GOOD)
    calls.fault = lambda _, call: errno.EIO if call.name in ("open", "unlink") else None
    record(os.fsencode(home), 5, 1)
    assert (home / "maildirsize").read_text() == GOOD
    calls.fault = lambda _, call: None
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:-1]))
    record(os.fsencode(home), 5, 1)
    assert not (home / "maildirsize").exists()


def test_long_lines_are_recorded_whole(home: Path) -> None:
    (home / "maildirsize").write_text(GOOD)
    record(os.fsencode(home), -123_456_789_012, -1)
    assert sums(home) == ["1000S,50C", "400 4", "-123456789012 -1"]
