"""Listings of maildirs: other programs' files and renames, sizes and unique-ids."""

from __future__ import annotations

import errno
import os
import random
import re
import stat
import sys
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from mailsvc.errors import MessageVanished, TemporaryFailure
from mailsvc.store import filenames, listing, marked
from mailsvc.store.listing import Listing, SizeCache
from mailsvc.store.maildir import MaildirStore
from tests.stores import ALICE, Sink, age, deliver, files, home, put, read
from tests.system_calls import SystemCalls

LF = b"Subject: a\n\nbody\n"
CRLF = b"Subject: a\r\n\r\nbody\r\n"


# ---- files of other programs ------------------------------------------------

#: name -> what the file holds, what RETR sends.
FOREIGN: dict[str | bytes, tuple[bytes, bytes]] = {
    "new/1700000001.M1P1.host": (LF, CRLF),
    "new/1700000002.M1P1.host": (CRLF, CRLF),
    "new/1700000003.M1P1.host,S=17": (LF, CRLF),
    "new/1700000004.M1P1.host,S=20": (CRLF, CRLF),
    "new/1700000005.M1P1.host,S=17,W=20": (LF, CRLF),
    "new/1700000006.M1P1.host,W=20,S=20": (CRLF, CRLF),
    "cur/1700000007.M1P1.host:2,": (LF, CRLF),
    "cur/1700000008.M1P1.host,S=17,W=20:2,RS": (LF, CRLF),
    "cur/1700000009.M1P1.host:2,STab": (LF, CRLF),
    "cur/1700000010.M1P1.host:1,odd,W=5": (LF, CRLF),
    "cur/1700000011.M1P1.host": (LF, CRLF),
    "cur/1700000012.M1P1.host,U=7,FMD5=0a1b,S=17:2,S": (LF, CRLF),
    "new/1700000013.M1P1.host,W=99999999999999999999": (LF, CRLF),
    "new/1700000014.M1P1.host,W=20x": (LF, CRLF),
    "new/1700000015.M1P1.host,W=": (LF, CRLF),
    "new/1700000016.M1P1.host,W=-5": (LF, CRLF),
    "new/1700000017.M1P1.host": (b"", b""),
    "new/1700000018.M1P1.host": (b"no line end", b"no line end\r\n"),
    "new/1700000019.M1P1.host": (b"a\nb\r\nc\rd\r\r\n\n", b"a\r\nb\r\nc\rd\r\r\n\r\n"),
    "new/1700000020.M1P1.host": (b"ends in CR\r", b"ends in CR\r\r\n"),
    "new/1700000021.M1P1.host name, with: blanks": (LF, CRLF),
    "new/1700000022.M1P1.\nhost\t\x7f": (LF, CRLF),
    b"new/1700000023.M1P1.\xe4\xff": (LF, CRLF),
    "new/1700000024." + "x" * 230: (LF, CRLF),
    "new/odd": (LF, CRLF),
    "new/:2,S": (LF, CRLF),
    "new/,S=17,W=20": (LF, CRLF),
    "new/1700000025.M1P1.host": (b"A: b\n\n" + b"x" * 300_000 + b"\n" + b"y\n" * 100_000,
                                 b"A: b\r\n\r\n" + b"x" * 300_000 + b"\r\n" + b"y\r\n" * 100_000),
}


@pytest_twisted.ensureDeferred
async def test_foreign_files_are_read_right_and_left_alone(
    store: MaildirStore, tmp_path: Path
) -> None:
    directory = home(tmp_path)
    for name, (content, _) in FOREIGN.items():
        put(directory, name, content)
    put(directory, "new/.hidden", LF)
    (directory / "new/directory").mkdir()
    (directory / "cur/link").symlink_to(directory / "new/odd")
    os.mkfifo(directory / "new/fifo")
    (directory / ".Folder/cur").mkdir(parents=True)
    put(directory, ".Folder/cur/1700000099.M1P1.host:2,S", LF)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino)
              for path in directory.rglob("*") if path.is_file()}
    maildrop = await store.open_maildrop(ALICE)
    assert len(maildrop.sizes) == len(FOREIGN)
    in_order = sorted(FOREIGN, key=lambda name: re.split(
        rb"[,:]", os.fsencode(name)[4:], maxsplit=1)[0])
    ids = []
    for number, name in enumerate(in_order, 1):
        sent = FOREIGN[name][1]
        assert await read(maildrop, number) == sent, name
        assert maildrop.sizes[number - 1] == len(sent), name
        ids.append(maildrop.uidl(number))
        assert re.fullmatch(rb"[!-~]{1,70}", ids[-1]), name
    assert len(set(ids)) == len(ids)
    maildrop.release()
    (directory / "mailsvc.lock").unlink()
    after = {path: (path.stat().st_mtime_ns, path.stat().st_ino)
             for path in directory.rglob("*") if path.is_file()}
    assert after == before


@pytest_twisted.ensureDeferred
async def test_a_size_in_the_name_is_believed(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls
) -> None:
    directory = home(tmp_path)
    put(directory, "new/1.a.h,S=17,W=20", LF)
    put(directory, "new/2.a.h,W=9999999999999999999", LF)
    put(directory, "cur/3.a.h,W=0:2,S", LF)
    maildrop = await store.open_maildrop(ALICE)
    assert maildrop.sizes == array("Q", [20, 9_999_999_999_999_999_999, 0])
    assert [path for path in calls.of("open") if "/new/" in path or "/cur/" in path] == []
    maildrop.release()


@pytest_twisted.ensureDeferred
async def test_a_counted_size_is_remembered(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls
) -> None:
    directory = home(tmp_path)
    path = put(directory, "new/1.a.h,S=17", LF)

    async def sizes() -> tuple[list[int], int]:
        calls.calls.clear()
        maildrop = await store.open_maildrop(ALICE)
        maildrop.release()
        return list(maildrop.sizes), len([p for p in calls.of("open") if "1.a.h" in p])

    assert await sizes() == ([20], 1)
    assert await sizes() == ([20], 0)
    path = path.rename(directory / "cur/1.a.h,S=17:2,S")
    assert await sizes() == ([20], 0)
    path.write_bytes(b"Subject: abc\n\n\n\n\n")
    assert path.stat().st_size == 17
    assert await sizes() == ([22], 1)


def test_the_size_cache_is_bounded() -> None:
    cache = SizeCache(places=1)
    status = os.stat(__file__)
    assert cache.get(b"a", status) is None
    cache.put(b"a", status, 5)
    assert cache.get(b"a", status) == 5
    assert cache.get(b"a:2,S", status) == 5
    assert cache.get(b"b", status) is None
    cache.put(b"b", status, 0)
    assert cache.get(b"b", status) == 0
    assert cache.get(b"a", status) is None
    fields = list(status)
    for changed in (stat.ST_INO, stat.ST_SIZE):
        other = fields.copy()
        other[changed] += 1
        assert cache.get(b"b", os.stat_result(other)) is None


def test_an_empty_place_of_the_size_cache_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor to the one name whose key looks like it."""
    monkeypatch.setattr(listing, "hash", lambda what: 0, raising=False)
    assert SizeCache(places=1).get(b"a", os.stat(__file__)) is None


@pytest_twisted.ensureDeferred
async def test_a_file_that_cannot_be_read_hides_no_other(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls, logged: list[dict[str, Any]]
) -> None:
    directory = home(tmp_path)
    put(directory, "new/1.a.h", LF)
    put(directory, "new/2.a.h", LF)
    calls.fault = lambda _, call: (
        errno.EACCES if call.name == "open" and "1.a.h" in call.path else None)
    maildrop = await store.open_maildrop(ALICE)
    assert list(maildrop.sizes) == [17, 20]
    assert [event for event in logged if b"1.a.h" in event.get("path", b"")]
    sink = Sink()
    with pytest.raises(TemporaryFailure) as caught:
        await maildrop.read(1, sink)
    assert not isinstance(caught.value, MessageVanished)
    assert sink.blocks == []
    assert await read(maildrop, 2) == CRLF
    maildrop.release()


@pytest.mark.parametrize(("name", "id"), [
    ("1700000000.M1P1.host", b"1700000000.M1P1.host"),
    ("1700000000.M1P1.host,S=5,W=6:2,S", b"1700000000.M1P1.host"),
    ("1700000000.M1P1.host,W=6,S=5", b"1700000000.M1P1.host"),
    ("1700000000.M1P1.host,S=5,U=9,W=6", b"1700000000.M1P1.host,U=9"),
    ("1700000000.M1P1.host,S=5x", b"1700000000.M1P1.host,S=5x"),
    ("1700000000.M1P1.host,S=", b"1700000000.M1P1.host,S="),
    ("!", b"!"), ("~", b"~"), ("x" * 70, b"x" * 70), ("x" * 70 + ",S=5", b"x" * 70),
    ("x" * 71, None), ("a b", None), ("a\x7f", None), ("é", None), (",S=5,W=5", None), ("", None),
])
def test_unique_ids(name: str, id: bytes | None) -> None:
    found = filenames.unique_id(name.encode())
    if id is not None:
        assert found == id
    else:
        assert re.fullmatch(rb"\.[A-Za-z0-9_-]{32}", found)
        assert filenames.unique_id(name.encode() + b":2,S") == found
        assert filenames.hashed_id(name.encode()) == found
        assert filenames.unique_id(name.encode() + b"x") != found


def test_hashed_ids_never_change() -> None:
    """They are in the memory of every client that leaves mail on the server."""
    assert filenames.unique_id(b"a b") == b".v4YdCmBfqh56w_hAzv5kJPoHxAJrK315"


@pytest.mark.parametrize(("names", "plain"), [
    (["1.a.h", "2.a.h,S=5", "2.a.h,U=1"], [0, 1, 2]),
    (["1.a.h", "1.a.h,S=5", "1.a.h,U=1"], [2]),
    (["1.a.h:2,S", "1.a.h:2,", "1.a.h"], []),
    (["1.a.h,UIDL=eA", "2.a.h,UIDL=eA:2,S", "2.a.h"], [2]),
    (["1.a.h,UIDL=eA", "x"], [1]),
    (["1.a.h,UIDL=eA,S=5", "1.a.h,UIDL=eA:2,S", "1.a.h,UIDL=eA"], []),
])
def test_unique_ids_of_a_maildir_that_is_only_read(names: list[str], plain: list[int]) -> None:
    encoded = [name.encode() for name in names]
    ids = filenames.unique_ids(encoded)
    assert len(set(ids)) == len(ids)
    assert [number for number, id in enumerate(ids) if not id.startswith(b".")] == plain
    assert [ids[number] for number in plain] == [
        filenames.unique_id(encoded[number]) for number in plain]


def test_fields_of_names() -> None:
    assert filenames.base(b"1.a.h,S=5:2,S") == b"1.a.h,S=5"
    assert filenames.unique_part(b"1.a.h,S=5:2,S") == b"1.a.h"
    assert filenames.unique_part(b"1.a.h:2,S") == b"1.a.h"
    assert filenames.stored_octets(b"1.a.h,S=5,W=6:2,S") == 5
    assert filenames.stored_octets(b"1.a.h,S=5") == 5
    assert filenames.stored_octets(b"1.a.h:2,S=5") is None
    assert filenames.stored_octets(b"1.a.h,S=5.5") is None
    assert filenames.sent_octets(b"1.a.h,S=5,W=6:2,S") == 6
    assert filenames.sent_octets(b"1.a.h,S=5") is None
    # What cannot be: fewer octets than the file has, or more than a CR for each and a last CRLF.
    assert [filenames.sent_octets(b"1.a.h,S=5,W=%d" % sent) for sent in (4, 5, 12, 13)] == [
        None, 5, 12, None]
    assert filenames.sent_octets(b"1.a.hW=6") is None
    assert filenames.is_trashed(b"1.a.h:2,ST")
    assert not filenames.is_trashed(b"1.a.hT:2,S")
    assert not filenames.is_trashed(b"1.a.h:1,T")


@pytest_twisted.ensureDeferred
async def test_what_took_the_place_of_a_message(store: MaildirStore, tmp_path: Path) -> None:
    """A link is not followed, and nobody waits for the other end of a pipe."""
    directory = home(tmp_path)
    put(directory, "elsewhere", LF)
    paths = [put(directory, f"new/{number}.a.h,W=20", LF) for number in range(3)]
    maildrop = await store.open_maildrop(ALICE)
    for path in paths:
        path.unlink()
    paths[0].symlink_to(directory / "elsewhere")
    os.mkfifo(paths[1])
    paths[2].mkdir()
    for number in (1, 2, 3):
        sink = Sink()
        with pytest.raises(TemporaryFailure):
            await maildrop.read(number, sink)
        assert sink.blocks == []
    maildrop.release()


@pytest_twisted.ensureDeferred
async def test_a_message_is_looked_for_where_it_is(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls
) -> None:
    directory = home(tmp_path)
    paths = [put(directory, "new/1.a.h,W=20", LF), put(directory, "cur/2.a.h,W=20:2,S", LF)]
    maildrop = await store.open_maildrop(ALICE)
    calls.calls.clear()
    for number in (1, 2):
        assert await read(maildrop, number) == CRLF
    assert calls.of("open") == [str(path) for path in paths]
    calls.calls.clear()
    await maildrop.update([1, 2])
    assert calls.of("unlink") == [str(path) for path in paths]


# ---- renames by other programs ----------------------------------------------


@pytest_twisted.ensureDeferred
async def test_messages_that_move_are_found_again(store: MaildirStore, tmp_path: Path) -> None:
    for number in range(6):
        await deliver(store, b"A: %d\r\n" % number)
    directory = home(tmp_path)
    maildrop = await store.open_maildrop(ALICE)
    paths = files(directory)
    ids = [maildrop.uidl(number) for number in range(1, 7)]
    paths[0].rename(directory / "cur" / f"{paths[0].name}:2,S")
    paths[1].rename(directory / "cur" / paths[1].name)
    paths[2].rename(directory / "cur" / f"{paths[2].name}:2,")
    paths[3].unlink()
    assert [await read(maildrop, n) for n in (2, 1, 3)] == [b"A: 1\r\n", b"A: 0\r\n", b"A: 2\r\n"]
    (directory / "cur" / f"{paths[0].name}:2,S").rename(
        directory / "cur" / f"{paths[0].name}:2,FS")
    (directory / "cur" / f"{paths[2].name}:2,").rename(directory / "new" / paths[2].name)
    assert [await read(maildrop, n) for n in (1, 3)] == [b"A: 0\r\n", b"A: 2\r\n"]
    for _ in range(2):
        sink = Sink()
        with pytest.raises(MessageVanished):
            await maildrop.read(4, sink)
        assert sink.blocks == []
        assert sink.registrations == 0
    assert await read(maildrop, 6) == b"A: 5\r\n"
    assert [maildrop.uidl(number) for number in range(1, 7)] == ids
    paths[4].rename(directory / "cur" / f"{paths[4].name}:2,S")
    # Renamed, vanished, renamed unseen, and where it was.
    await maildrop.update([1, 4, 5, 6])
    assert [path.read_bytes() for path in files(directory)] == [b"A: 1\r\n", b"A: 2\r\n"]
    maildrop = await store.open_maildrop(ALICE)
    assert [maildrop.uidl(number) for number in (1, 2)] == ids[1:3]
    maildrop.release()


@pytest_twisted.ensureDeferred
async def test_one_look_finds_all_that_moved(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls
) -> None:
    directory = home(tmp_path)
    for number in range(50):
        put(directory, f"new/{number:03}.a.h,S=17,W=20", LF)
    # Neighbours that share the unique part, and some that begin alike.
    for name in ("007.a.h,U=2", "007.a.h,U=1", "007.a.hx", "007.a.h+"):
        put(directory, f"new/{name},W=20", LF)
    maildrop = await store.open_maildrop(ALICE)
    for path in files(directory):
        path.rename(directory / "cur" / f"{path.name}:2,S")
    age(directory)
    calls.calls.clear()
    for number in range(1, 55):
        assert await read(maildrop, number) == CRLF
    assert calls.of("scandir") == [f"{directory}/new", f"{directory}/cur"]
    for number in range(7):
        (directory / f"cur/{number:03}.a.h,S=17,W=20:2,S").unlink()
    age(directory, 30)
    calls.calls.clear()
    for number in range(1, 8):
        with pytest.raises(MessageVanished):
            await maildrop.read(number, Sink())
    # Nothing changed since: the first look was enough.
    assert calls.of("scandir") == [f"{directory}/new", f"{directory}/cur"]
    await maildrop.update(range(1, 55))
    assert files(directory) == []


@pytest_twisted.ensureDeferred
async def test_what_changed_just_now_may_have_changed_again(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls
) -> None:
    directory = home(tmp_path)
    path = put(directory, "new/1.a.h,S=17,W=20", LF)
    maildrop = await store.open_maildrop(ALICE)
    path.unlink()

    async def looks() -> int:
        calls.calls.clear()
        with pytest.raises(MessageVanished):
            await maildrop.read(1, Sink())
        return calls.of("scandir").count(f"{directory}/new")

    age(directory, 2.5)
    assert [await looks() for _ in range(3)] == [1, 0, 0]
    age(directory, 1)
    assert [await looks() for _ in range(3)] == [1, 1, 1]
    age(directory, 2.5)
    os.utime(directory / "new")
    assert [await looks() for _ in range(2)] == [1, 1]
    maildrop.release()


class Scans:
    """Patches ``os.scandir``: *between* is called before each reading of new/ or cur/.

    It gets the directory's name and how often that has been read, and returns the names of files
    that this reading does not see.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, between: Callable[[str, int], set[bytes]]
    ) -> None:
        self.read: list[str] = []
        real = os.scandir

        class Reading:
            def __init__(self, entries: Any, hidden: set[bytes]) -> None:
                self.entries = entries
                self.hidden = hidden

            def __enter__(self) -> Iterator[Any]:
                return (entry for entry in list(self.entries) if entry.name not in self.hidden)

            def __exit__(self, *exception: object) -> None:
                self.entries.close()

        def scandir(path: bytes) -> Any:
            name = os.path.basename(path).decode()
            hidden = between(name, self.read.count(name))
            self.read.append(name)
            return Reading(real(path), hidden)

        monkeypatch.setattr(os, "scandir", scandir)


@pytest.mark.parametrize("moving", ["1.a.h", "1.a.h,W=20"])
@pytest_twisted.ensureDeferred
async def test_a_message_that_moves_while_the_maildir_is_read(
    store: MaildirStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moving: str
) -> None:
    directory = home(tmp_path)
    put(directory, f"new/{moving}", LF)
    put(directory, "new/2.a.h,W=20", LF)
    age(directory)

    def between(name: str, before: int) -> set[bytes]:
        if name == "cur" and before == 0:
            (directory / f"new/{moving}").rename(directory / f"cur/{moving}:2,S")
        return set()

    Scans(monkeypatch, between)
    maildrop = await store.open_maildrop(ALICE)
    assert list(maildrop.sizes) == [20, 20]
    assert [maildrop.uidl(number) for number in (1, 2)] == [b"1.a.h", b"2.a.h"]
    assert [await read(maildrop, number) for number in (1, 2)] == [CRLF, CRLF]
    maildrop.release()


@pytest.mark.parametrize("name", ["1.a.h", "1.a.h,W=20", "3.a.h,W=20"])
@pytest_twisted.ensureDeferred
async def test_a_rename_that_hides_a_file_from_the_reader(
    store: MaildirStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The old name is gone before its place is read, and the new one stands before that place."""
    directory = home(tmp_path)
    put(directory, f"cur/{name}:2,", LF)
    put(directory, "cur/2.a.h:2,", LF)
    age(directory)

    def between(which: str, before: int) -> set[bytes]:
        if which == "cur" and before == 0:
            (directory / f"cur/{name}:2,").rename(directory / f"cur/{name}:2,S")
            return {f"{name}:2,S".encode()}
        return set()

    scans = Scans(monkeypatch, between)
    maildrop = await store.open_maildrop(ALICE)
    assert list(maildrop.sizes) == [20, 20]
    assert [await read(maildrop, number) for number in (1, 2)] == [CRLF, CRLF]
    assert scans.read == ["new", "cur", "cur"]
    maildrop.release()


@pytest.mark.parametrize(("seconds", "readings"), [
    (1.0, ["new", "cur", "cur"]), (2.5, ["new", "cur"])])
@pytest_twisted.ensureDeferred
async def test_cur_is_read_twice_only_when_it_changed_just_now(
    store: MaildirStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float,
    readings: list[str],
) -> None:
    directory = home(tmp_path)
    for number in range(10):
        put(directory, f"cur/{number}.a.h,W=20:2,", LF)
    age(directory, seconds)
    os.utime(directory / "new")
    scans = Scans(monkeypatch, lambda name, before: set())
    maildrop = await store.open_maildrop(ALICE)
    assert list(maildrop.sizes) == [20] * 10
    assert scans.read == readings
    maildrop.release()


@pytest_twisted.ensureDeferred
async def test_a_file_renamed_before_it_is_counted(
    store: MaildirStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = home(tmp_path)
    put(directory, "cur/1.a.h:2,", LF)
    put(directory, "cur/2.a.h:2,", LF)
    age(directory)
    real = os.lstat
    moved = []

    def lstat(path: Any, **keywords: Any) -> os.stat_result:
        if os.fspath(path) == os.fsencode(directory / "cur/1.a.h:2,") and not moved:
            moved.append((directory / "cur/1.a.h:2,").rename(directory / "cur/1.a.h:2,S"))
        return real(path, **keywords)

    monkeypatch.setattr(os, "lstat", lstat)
    maildrop = await store.open_maildrop(ALICE)
    assert moved
    assert list(maildrop.sizes) == [20, 20]
    assert await read(maildrop, 1) == CRLF
    maildrop.release()


@pytest_twisted.ensureDeferred
async def test_a_file_removed_before_it_is_counted(
    store: MaildirStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listed by no number; also when another goes at the second look."""
    directory = home(tmp_path)
    for number in range(4):
        put(directory, f"new/{number}.a.h", LF)
    real = os.lstat

    def lstat(path: Any, **keywords: Any) -> os.stat_result:
        number = re.search(rb"/([12])\.a\.h$", os.fsencode(path))
        if number is not None:
            os.unlink(path)
            # The next one only at the second look.
            monkeypatch.setattr(os, "lstat", real if number[1] == b"2" else lstat)
        return real(path, **keywords)

    monkeypatch.setattr(os, "lstat", lstat)
    maildrop = await store.open_maildrop(ALICE)
    assert list(maildrop.sizes) == [20] * 2
    assert [maildrop.uidl(number) for number in (1, 2)] == [b"0.a.h", b"3.a.h"]
    maildrop.release()


# ---- size of a listing ------------------------------------------------------


def test_a_large_maildir(tmp_path: Path) -> None:
    """More names than are sorted at a time, in order; so many octets for each in memory."""
    directory = home(tmp_path)
    count = 3 * marked.RUN + 5
    names = [b"%d.%016dAB.mail.example.org,S=%d,W=%d" % (1_763_683_200 + n // 7, n, n, n)
             for n in range(count)]
    source = put(directory, "tmp/source", b"")
    shuffled = names.copy()
    random.Random(5).shuffle(shuffled)
    for n, name in enumerate(shuffled):
        target = b"cur/" + name + b":2,S" if n % 3 else b"new/" + name
        os.link(source, os.fsencode(directory) + b"/" + target)
    found = Listing(os.fsencode(directory), SizeCache(1))
    assert list(found.sizes) == list(range(count))
    assert [found.uidl(n + 1) for n in range(count)] == [name.partition(b",")[0] for name in names]
    used = sum(map(sys.getsizeof, [found._names, found.sizes, *found._names]))
    assert used / count < 15 * 2**20 / 100_000
    assert max(len(run) for run in marked.runs_of(os.fsencode(directory) + b"/new")) <= marked.RUN
