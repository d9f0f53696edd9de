"""Messages of a maildir that would have one unique-id: parted for good, none lost from sight."""

from __future__ import annotations

import ctypes
import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailsvc.errors import TemporaryFailure
from mailsvc.store import filenames, namesakes
from mailsvc.store.contents import Box
from mailsvc.store.listing import Listing, SizeCache
from mailsvc.store.maildir import MaildirStore
from mailsvc.store.namesakes import Namesakes, rename_new
from tests.stores import ALICE, age, files, home, maildir_store, put, read
from tests.system_calls import SystemCalls

ELDER = b"Subject: elder\n\nbody\n"
YOUNGER = b"Subject: younger\n\nbody\n"

#: Names that make one unique-id, and that.
NAMESAKES = {
    "new and cur": ("new/1.a.h", "cur/1.a.h:2,S", b"1.a.h"),
    "new and cur, both without flags": ("new/1.a.h", "cur/1.a.h", b"1.a.h"),
    "other flags": ("cur/1.a.h,S=5:2,", "cur/1.a.h,S=5:2,RS", b"1.a.h"),
    "sizes in one": ("new/1.a.h,S=999", "new/1.a.h", b"1.a.h"),
    "other sizes": ("new/1.a.h,S=24,W=27", "cur/1.a.h,S=21,W=24:2,S", b"1.a.h"),
    "a name that is no unique-id": ("new/1.a b", "cur/1.a b:2,S",
                                    filenames.unique_id(b"1.a b")),
    "both came with it": ("new/1.a.h,UIDL=eA", "cur/2.a.h,UIDL=eA:2,S", b"x"),
    "one came with what the other is called": ("new/x", "new/2.a.h,UIDL=eA", b"x"),
}


def put_later(directory: Path, name: str, content: bytes) -> Path:
    """As :func:`put`, at a later moment by the file system's clock than all that is there."""
    before = max((path.stat().st_ctime_ns for path in files(directory)), default=0)
    for _ in range(1000):
        path = put(directory, name, content)
        if path.stat().st_ctime_ns > before:
            return path
        path.unlink()
        time.sleep(0.002)
    raise AssertionError("the file system's clock stands")


def crlf(content: bytes) -> bytes:
    return content.replace(b"\n", b"\r\n")


async def listed(store: MaildirStore) -> dict[bytes, bytes]:
    """What a session is told: unique-id -> message."""
    maildrop = await store.open_maildrop(ALICE)
    count = len(maildrop.sizes)
    found = {maildrop.uidl(number): await read(maildrop, number) for number in range(1, count + 1)}
    maildrop.release()
    assert len(found) == count
    return found


async def delete(store: MaildirStore, unique_id: bytes) -> None:
    maildrop = await store.open_maildrop(ALICE)
    await maildrop.update([maildrop.uidls(1, len(maildrop.sizes) + 1).index(unique_id) + 1])


@pytest.mark.parametrize("deleted", ["elder", "younger"])
@pytest.mark.parametrize("turned", [False, True], ids=["", "turned"])
@pytest.mark.parametrize("names", NAMESAKES)
@pytest_twisted.ensureDeferred
async def test_both_are_shown_and_keep_their_ids(
    store: MaildirStore, tmp_path: Path, names: str, turned: bool, deleted: str
) -> None:
    *places, shared = NAMESAKES[names]
    one, other = reversed(places) if turned else places
    directory = home(tmp_path)
    put_later(directory, "new/0.a.h", b"another\n")
    put_later(directory, one, ELDER)
    put_later(directory, other, YOUNGER)
    first = await listed(store)
    assert sorted(first.values()) == sorted(map(crlf, (b"another\n", ELDER, YOUNGER)))
    assert first[shared] == crlf(ELDER)
    assert (directory / one).read_bytes() == ELDER
    [renamed] = [path for path in files(directory) if path.read_bytes() == YOUNGER]
    assert renamed.parent == (directory / other).parent
    assert renamed.name.partition(":")[1:] == Path(other).name.partition(":")[1:]
    assert filenames.stored_octets(renamed.name.encode()) == filenames.stored_octets(
        other.encode())
    before = [path.name for path in files(directory)]
    assert await listed(store) == first
    assert [path.name for path in files(directory)] == before
    [gone] = [id for id, content in first.items()
              if content == crlf(ELDER if deleted == "elder" else YOUNGER)]
    await delete(store, gone)
    del first[gone]
    assert await listed(store) == first


@pytest_twisted.ensureDeferred
async def test_a_flag_makes_nobody_younger(store: MaildirStore, tmp_path: Path) -> None:
    """A rename changes the inode, and not when it was made."""
    directory = home(tmp_path)
    original = put(directory, "new/1.a.h", b"original\r\n")
    (id, content), = (await listed(store)).items()
    assert content == b"original\r\n"
    put_later(directory, "new/1.a.h,S=99", b"copy\r\n")
    while time.time_ns() < max(each.stat().st_ctime_ns for each in files(directory)) + 20_000_000:
        time.sleep(0.01)
    flagged = original.rename(directory / "cur" / "1.a.h:2,S")
    seen = namesakes.File(os.fsencode(flagged.parent), os.fsencode(flagged.name), flagged.stat())
    if namesakes._made(seen) == seen.status.st_ctime_ns:
        pytest.skip("this file system does not tell when a file was made")
    found = await listed(store)
    assert len(found) == 2 and found[id] == b"original\r\n"


@pytest_twisted.ensureDeferred
async def test_any_number_of_them(store: MaildirStore, tmp_path: Path) -> None:
    directory = home(tmp_path)
    names = ["new/1.a.h", "cur/1.a.h", "cur/1.a.h:2,", "cur/1.a.h:2,S", "new/1.a.h,S=3",
             "cur/1.a.h,W=4,S=3:2,S"]
    for number, name in enumerate(names):
        put_later(directory, name, b"%d\n" % number)
    found = await listed(store)
    assert sorted(found.values()) == [b"%d\r\n" % number for number in range(len(names))]
    assert found[b"1.a.h"] == b"0\r\n"
    assert await listed(store) == found


names = st.builds(
    lambda part, head, fields, info: f"{part}/{head}{fields}{info}" if part == "cur" else
    f"{part}/{head}{fields}",
    st.sampled_from(["new", "cur"]), st.sampled_from(["1.a.h", "2.a.h", "x", "a b"]),
    st.sampled_from(["", ",S=2,W=3", ",S=2", ",W=3,S=2", ",U=1,S=2", ",UIDL=eA", ",UIDL=MS5hLmg"]),
    st.sampled_from(["", ":2,", ":2,S"]))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(names, unique=True, max_size=12), st.data())
def test_whatever_they_are_called(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], data: st.DataObject
) -> None:
    """Every message has one number and an id that no other has, whichever others go."""
    directory = home(tmp_path_factory.mktemp("mail"))
    for number, name in enumerate(names):
        put(directory, name, b"%x\n" % number)

    def ids() -> dict[bytes, bytes]:
        found = Listing(os.fsencode(directory), SizeCache(1),
                        lambda _, shared: Namesakes("mail.example.org").part(shared))
        assert len(set(found.uidls(1, len(found) + 1))) == len(found)
        ids = {}
        for number in range(1, len(found) + 1):
            with os.fdopen(found.open(number), "rb") as file:
                ids[file.read()] = found.uidl(number)
        return ids

    first = ids()
    assert sorted(first) == sorted(b"%x\n" % number for number in range(len(names)))
    for path in files(directory):
        if data.draw(st.booleans()):
            del first[path.read_bytes()]
            path.unlink()
    assert ids() == first


@pytest.mark.parametrize("more", [False, True], ids=["alone", "beside another message"])
@pytest_twisted.ensureDeferred
async def test_links_to_one_file_are_one_message(
    store: MaildirStore, tmp_path: Path, more: bool
) -> None:
    """As a move by link(2) and unlink(2) leaves them that was cut short."""
    directory = home(tmp_path)
    if more:
        put_later(directory, "cur/1.a.h:2,R", ELDER)
    path = put_later(directory, "new/1.a.h", YOUNGER)
    os.link(path, directory / "cur/1.a.h:2,S")
    found = await listed(store)
    assert sorted(found.values()) == sorted(map(crlf, [ELDER, YOUNGER] if more else [YOUNGER]))
    assert await listed(store) == found
    [id] = [id for id, content in found.items() if content == crlf(YOUNGER)]
    await delete(store, id)
    assert list((await listed(store)).values()) == ([crlf(ELDER)] if more else [])
    assert len(files(directory)) == more


# ---- other programs at the same time ---------------------------------------------


@pytest.mark.parametrize("what", ["flagged", "removed"])
@pytest_twisted.ensureDeferred
async def test_one_that_goes_before_it_is_renamed(
    store: MaildirStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    directory = home(tmp_path)
    put_later(directory, "new/1.a.h", ELDER)
    younger = put_later(directory, "cur/1.a.h:2,", YOUNGER)

    def rename(source: bytes, target: bytes) -> None:
        if younger.exists():
            if what == "removed":
                younger.unlink()
            else:
                younger.rename(younger.with_name("1.a.h:2,S"))
        rename_new(source, target)

    monkeypatch.setattr(namesakes, "rename_new", rename)
    assert await listed(store) == {b"1.a.h": crlf(ELDER)}
    found = await listed(store)
    assert found[b"1.a.h"] == crlf(ELDER)
    assert sorted(found.values()) == [crlf(ELDER), *([crlf(YOUNGER)] * (what == "flagged"))]


@pytest.mark.parametrize("what", ["flagged", "removed"])
@pytest_twisted.ensureDeferred
async def test_one_that_goes_once_it_is_renamed(
    store: MaildirStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    directory = home(tmp_path)
    put_later(directory, "new/1.a.h", ELDER)
    put_later(directory, "cur/1.a.h:2,", YOUNGER)

    def rename(source: bytes, target: bytes) -> None:
        rename_new(source, target)
        if what == "removed":
            os.unlink(target)
        else:
            os.rename(target, target + b"S")

    monkeypatch.setattr(namesakes, "rename_new", rename)
    found = await listed(store)
    assert sorted(found.values()) == [crlf(ELDER), *([crlf(YOUNGER)] * (what == "flagged"))]
    assert await listed(store) == found


@pytest_twisted.ensureDeferred
async def test_a_name_that_another_file_got_meanwhile(
    store: MaildirStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The younger is deleted, and the elder flagged as the younger was: it keeps its id."""
    directory = home(tmp_path)
    elder = put_later(directory, "cur/1.a.h:2,", ELDER)
    younger = put_later(directory, "cur/1.a.h:2,S", YOUNGER)

    def rename(source: bytes, target: bytes) -> None:
        if elder.exists():
            elder.rename(younger)
        rename_new(source, target)

    monkeypatch.setattr(namesakes, "rename_new", rename)
    assert await listed(store) == {b"1.a.h": crlf(ELDER)}
    assert files(directory) == [younger]


@pytest_twisted.ensureDeferred
async def test_one_that_cannot_be_renamed_waits(
    store: MaildirStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    logged: list[dict[str, Any]],
) -> None:
    """No id is given out for it that it could not keep; the others can be read."""
    directory = home(tmp_path)
    put_later(directory, "new/1.a.h", ELDER)
    younger = put_later(directory, "cur/1.a.h:2,S", YOUNGER)

    def refuse(source: bytes, target: bytes) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", source)

    with monkeypatch.context() as patch:
        patch.setattr(namesakes, "rename_new", refuse)
        assert await listed(store) == {b"1.a.h": crlf(ELDER)}
    told = [event for event in logged if event["log_namespace"] == namesakes.__name__]
    assert [event["path"] for event in told] == [os.fsencode(younger)]
    age(directory)
    found = await listed(store)
    assert sorted(found.values()) == [crlf(ELDER), crlf(YOUNGER)]
    assert found[b"1.a.h"] == crlf(ELDER)


# ---- for good --------------------------------------------------------------------


@pytest.mark.parametrize(("durability", "synced"), [("journal", True), ("fsync", True),
                                                    ("none", False)])
@pytest_twisted.ensureDeferred
async def test_no_id_is_given_out_before_it_is_durable(
    tmp_path: Path, calls: SystemCalls, durability: str, synced: bool
) -> None:
    store = maildir_store(tmp_path, durability=durability)
    store.start()
    try:
        await _durable_ids(store, home(tmp_path), calls, synced)
    finally:
        calls.fault = lambda _, call: None
        await store.stop()


async def _durable_ids(
    store: MaildirStore, directory: Path, calls: SystemCalls, synced: bool
) -> None:
    put_later(directory, "new/1.a.h", ELDER)
    put_later(directory, "cur/1.a.h:2,S", YOUNGER)
    (await store.open_maildrop(ALICE)).release()
    assert (str(directory / "cur") in calls.of("fsync")) == synced
    calls.calls.clear()
    (await store.open_maildrop(ALICE)).release()
    assert calls.of("fsync") == []
    put_later(directory, "cur/1.a.h:2,S", YOUNGER)
    calls.fault = lambda _, call: errno.EIO if call.name == "fsync" else None
    if synced:
        with pytest.raises(TemporaryFailure):
            await store.open_maildrop(ALICE)
    else:
        (await store.open_maildrop(ALICE)).release()
    calls.fault = lambda _, call: None
    assert len(await listed(store)) == 3


def _unable(*arguments: object) -> int:
    ctypes.set_errno(errno.EINVAL)
    return -1


@pytest.mark.parametrize("how", [namesakes._renameat2, _unable, None], ids=[
    "", "a file system that cannot promise it", "a C library without it"])
def test_a_rename_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Any
) -> None:
    if how is not namesakes._renameat2:
        monkeypatch.setattr(namesakes, "_renameat2", how)
    one, other, third = (os.fsencode(tmp_path / name) for name in ("one", "other", "third"))
    Path(os.fsdecode(one)).write_bytes(b"1")
    Path(os.fsdecode(other)).write_bytes(b"2")
    with pytest.raises(FileExistsError):
        rename_new(one, other)
    rename_new(one, third)
    with pytest.raises(FileNotFoundError):
        rename_new(one, b"%b-4" % one)
    assert sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir()) == [
        ("other", b"2"), ("third", b"1")]


# ---- without the lock ------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_who_only_looks_parts_them_when_no_session_has_the_lock(
    store: MaildirStore, tmp_path: Path
) -> None:
    directory = home(tmp_path)
    put_later(directory, "new/1.a.h", ELDER)
    session = await store.open_maildrop(ALICE)
    younger = put_later(directory, "cur/1.a.h:2,S", YOUNGER)
    age(directory)
    for _ in range(2):
        view = await store.view(ALICE)
        assert view.uidls(1, len(view.sizes) + 1) == [b"1.a.h"]
        assert await read(view, 1) == crlf(ELDER)
    assert younger.exists()
    session.release()
    view = await store.view(ALICE)
    assert len(view.sizes) == 2
    assert set(view.uidls(1, 3)) == set(await listed(store))


def test_a_box_has_both(tmp_path: Path) -> None:
    """What is copied, exported and imported, whichever of them is renamed meanwhile."""
    directory = home(tmp_path)
    one = put(directory, "new/1.a.h", ELDER)
    other = put(directory, "cur/1.a.h:2,", YOUNGER)
    put(directory, "new/2.a.h", b"another\n")
    os.link(put(directory, "new/3.a.h", b"linked\n"), directory / "cur/3.a.h:2,S")
    box = Box(os.fsencode(directory))
    assert len(box) == 4
    assert b"1.a.h" in box
    assert b"1.a" not in box
    keys = list(box)
    assert keys[2:] == [b"2.a.h", b"3.a.h"]
    other.rename(other.with_name("1.a.h:2,RS"))
    one.rename(directory / "cur/1.a.h:2,S")
    found = []
    for key in keys:
        fd = box.open(key)
        assert fd is not None
        with os.fdopen(fd, "rb") as file:
            found.append(file.read())
    assert sorted(found[:2]) == [ELDER, YOUNGER]
    assert found[2:] == [b"another\n", b"linked\n"]
    (directory / "cur/1.a.h:2,S").unlink()
    assert [key for key in keys if box.open(key) is None] == [keys[found.index(ELDER)]]
