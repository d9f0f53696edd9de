"""Delivery into maildirs: the file protocol with a sync of each message.

``test_delivery_failing.py`` lets it fail; ``test_group.py`` has the one with a journal.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import stat
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_twisted

from mailsvc.errors import (
    PermanentFailure,
    TemporaryFailure,
)
from mailsvc.mail import Account, new_id
from mailsvc.store import filenames, tree
from mailsvc.store.maildir import MaildirStore
from tests.stores import (
    ALICE,
    BOB,
    CAROL,
    blocks_of,
    contents,
    deliver,
    descriptors,
    files,
    home,
    maildir_store,
    pause,
    put,
)
from tests.system_calls import Call, SystemCalls

MESSAGE = b"Subject: test\r\n\r\nbody\r\n"
LARGE = b"Subject: large\r\n\r\n" + b"".join(b"%07d %s\r\n" % (n, b"x" * (n % 90))
                                           for n in range(12_000))
REACTOR_THREAD = threading.get_ident()


@pytest_twisted.async_yield_fixture
async def store(tmp_path: Path) -> AsyncIterator[MaildirStore]:
    """A store of maildirs under tmp_path that syncs each message."""
    it = maildir_store(tmp_path, durability="fsync")
    it.start()
    yield it
    await it.stop()


@pytest_twisted.ensureDeferred
async def test_layout_and_names(store: MaildirStore, tmp_path: Path) -> None:
    before = int(time.time())
    id = await deliver(store, MESSAGE + b"end", ALICE, CAROL)
    paths = files(tmp_path)
    assert [path.parent for path in paths] == [
        tmp_path / "example.net/carol/new", tmp_path / "example.org/alice/new"]
    for path in paths:
        match = re.fullmatch(r"(\d+)\.(\w+)\.mail\.example\.org,S=(\d+),W=(\d+)", path.name)
        assert match is not None
        assert before <= int(match[1]) <= time.time()
        assert match.groups()[1:] == (id, str(len(MESSAGE) + 3), str(len(MESSAGE) + 5))
        assert path.read_bytes() == MESSAGE + b"end"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_nlink == 2
        assert sorted(os.listdir(path.parent.parent)) == ["cur", "new", "tmp"]
        for directory in (path.parent.parent.parent, path.parent.parent,
                          *path.parent.parent.iterdir()):
            assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert paths[0].samefile(paths[1])
    assert not list(tmp_path.rglob("tmp/*"))


@pytest_twisted.ensureDeferred
async def test_bare_line_feeds_are_counted_as_they_will_be_sent(
    store: MaildirStore, tmp_path: Path
) -> None:
    """The servers refuse them; but whoever writes them, the name tells the truth."""
    await deliver(store, [b"a\n", b"b\r", b"\nc\n"])
    assert files(tmp_path)[0].name.endswith(",S=7,W=9")


def steps(calls: list[Call], root: Path) -> list[tuple[str, str]]:
    """What was done, with paths relative to *root* and file names as FILE."""
    done = []
    for call in calls:
        path = re.sub(r"\d{10}\.[^/]*", "FILE", call.path.removeprefix(f"{root}/"))
        if call.name in ("write", "fsync", "link", "unlink", "rename", "mkdir") or (
                call.name == "open" and "FILE" in path):
            done.append((call.name, path))
    return done


@pytest_twisted.ensureDeferred
async def test_the_steps_of_a_delivery(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls
) -> None:
    await deliver(store, MESSAGE, ALICE, BOB)
    for call in calls.calls:
        assert call.thread != REACTOR_THREAD, call

    def made(*accounts: str) -> list[tuple[str, str]]:
        result = []
        for name in accounts:
            mail = f"example.org/{name}"
            result += [("mkdir", path) for path in (
                "example.org", mail, f"{mail}/tmp", f"{mail}/new", f"{mail}/cur")]
            result += [("fsync", path) for path in (mail, "example.org", str(tmp_path))]
        return result

    tail = [("unlink", "example.org/alice/tmp/FILE"), ("fsync", "example.org/alice/new"),
            ("fsync", "example.org/bob/new")]
    head = [("open", "example.org/alice/tmp/FILE"), ("write", "example.org/alice/tmp/FILE"),
            ("fsync", "example.org/alice/tmp/FILE"), ("link", "example.org/alice/new/FILE")]
    link = [("link", "example.org/bob/new/FILE")]
    assert steps(calls.calls, tmp_path) == made("alice") + head + made("bob") + link + tail
    # From the second message on the maildirs are known to be there.
    calls.calls.clear()
    await deliver(store, MESSAGE, ALICE, BOB)
    assert steps(calls.calls, tmp_path) == head + link + tail


@pytest_twisted.ensureDeferred
async def test_a_maildir_found_is_made_durable_too(tmp_path: Path, calls: SystemCalls) -> None:
    """Whoever made it may have been stopped before syncing."""
    home(tmp_path)
    store = maildir_store(tmp_path, durability="fsync")
    store.start()
    maildrop = await store.open_maildrop(ALICE)
    maildrop.release()
    assert calls.of("fsync") == [
        f"{tmp_path}/example.org/alice", f"{tmp_path}/example.org", str(tmp_path)]
    await store.stop()


@pytest_twisted.ensureDeferred
async def test_a_maildir_that_could_not_be_made_again_is_not_taken_for_durable(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls
) -> None:
    await deliver(store, MESSAGE)
    (tmp_path / "example.org").rename(tmp_path / "elsewhere")
    calls.fault = lambda _, call: errno.EIO if (
        call.name == "fsync" and call.path.endswith("/example.org")) else None
    with pytest.raises(TemporaryFailure):
        await deliver(store, MESSAGE)
    calls.fault = lambda _, call: None
    calls.calls.clear()
    await deliver(store, MESSAGE)
    assert f"{tmp_path}/example.org" in calls.of("fsync")


@pytest_twisted.ensureDeferred
async def test_only_so_many_maildirs_are_remembered(
    store: MaildirStore, calls: SystemCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "_REMEMBERED", 2)
    for account in (ALICE, BOB, ALICE, BOB):
        await deliver(store, MESSAGE, account)
    assert len(calls.of("mkdir")) == 10
    await deliver(store, MESSAGE, CAROL)
    assert len(calls.of("mkdir")) == 15
    await deliver(store, MESSAGE, BOB)
    assert len(calls.of("mkdir")) == 20


@pytest_twisted.ensureDeferred
async def test_a_large_message_goes_to_its_file_as_it_comes(
    tmp_path: Path, calls: SystemCalls
) -> None:
    store = maildir_store(tmp_path, durability="fsync", small_message_octets=1000)
    store.start()
    delivery = store.begin((ALICE,), new_id())
    assert delivery.write(b"x" * 999) is None
    assert delivery.write(b"\n") is None
    await pause(0.02)
    assert calls.calls == []
    assert delivery.write(b"y") is None  # now the file is begun
    assert delivery.write(b"z" * 1000) is None
    room = delivery.write(b"z")
    assert room is not None  # the first block is still being written
    assert delivery.write(b"z") is room
    assert not room.called
    await room
    [path] = tmp_path.rglob("tmp/*")
    for _ in range(100):
        if path.stat().st_size == 2003:
            break
        await pause(0.01)
    assert path.read_bytes() == b"x" * 999 + b"\ny" + b"z" * 1002
    assert delivery.write(b"\n") is None
    await delivery.commit()
    assert not path.exists()
    [path] = files(tmp_path)
    assert path.name.endswith(",S=2004,W=2006")
    assert path.read_bytes() == b"x" * 999 + b"\ny" + b"z" * 1002 + b"\n"
    assert len(calls.of("write")) == 3
    for call in calls.calls:
        assert call.thread != REACTOR_THREAD, call
    await store.stop()


@pytest.mark.parametrize("waiting", [False, True])
@pytest_twisted.ensureDeferred
async def test_an_aborted_large_message_leaves_no_file(tmp_path: Path, waiting: bool) -> None:
    store = maildir_store(tmp_path, durability="fsync", small_message_octets=1000)
    store.start()
    before = descriptors()
    delivery = store.begin((ALICE,), new_id())
    delivery.write(b"x" * 1001)
    if waiting:
        await pause(0.05)
        assert len(list(tmp_path.rglob("tmp/*"))) == 1
    delivery.abort()
    assert delivery.write(b"more" * 1000) is None
    await store.stop()
    assert list(tmp_path.rglob("tmp/*")) == []
    assert files(tmp_path) == []
    assert descriptors() <= before


@pytest.mark.parametrize("reason", [
    errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
@pytest_twisted.ensureDeferred
async def test_where_no_link_can_be_made_the_file_is_copied(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls, reason: int
) -> None:
    calls.fault = lambda _, call: reason if call.name == "link" and "/bob/" in call.path else None
    await deliver(store, MESSAGE, ALICE, BOB, CAROL)
    carol, alice, bob = files(tmp_path)
    assert alice.samefile(carol)
    assert not alice.samefile(bob)
    assert bob.read_bytes() == MESSAGE
    assert not list(tmp_path.rglob("tmp/*"))
    done = steps(calls.calls, tmp_path)
    renamed = done.index(("rename", "example.org/bob/new/FILE"))
    assert done.index(("fsync", "example.org/bob/tmp/FILE")) < renamed
    assert renamed < done.index(("fsync", "example.org/bob/new"))
    # One for the file of alice and carol, one for that of bob.
    assert len([path for path in calls.of("fsync") if re.search(r"/tmp/\d{10}\.", path)]) == 2


@pytest_twisted.ensureDeferred
async def test_a_copy_replaces_nothing_either(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls
) -> None:
    """Another program takes the name at the last moment."""
    def fault(_: int, call: Call) -> int | None:
        if call.name != "link":
            return None
        Path(call.path).write_bytes(b"somebody's\r\n")
        return errno.EXDEV

    calls.fault = fault
    with pytest.raises(TemporaryFailure):
        await deliver(store, MESSAGE)
    assert [path.read_bytes() for path in files(tmp_path)] == [b"somebody's\r\n"]
    assert not list(tmp_path.rglob("tmp/*"))


@pytest_twisted.ensureDeferred
async def test_a_file_system_without_links(
    tmp_path: Path, calls: SystemCalls
) -> None:
    store = maildir_store(tmp_path, durability="fsync", small_message_octets=1000)
    store.start()
    calls.fault = lambda _, call: errno.EPERM if call.name == "link" else None
    await deliver(store, blocks_of(LARGE, 50_000), ALICE, BOB)
    await deliver(store, MESSAGE)
    assert await contents(store) == [LARGE, MESSAGE]
    assert await contents(store, BOB) == [LARGE]
    assert not list(tmp_path.rglob("tmp/*"))
    await store.stop()


def test_host_names_are_escaped() -> None:
    assert filenames.host_part("mail.example.org") == b"mail.example.org"
    assert filenames.host_part("a/b:c,d") == rb"a\057b\072c\054d"
    assert len(filenames.host_part("x" * 1000)) == 128


def test_names_and_their_variants() -> None:
    names = list(filenames.unique_parts(1_700_000_000, "ID", b"host"))
    assert names[:3] == [b"1700000000.ID.host", b"1700000000.ID_1.host", b"1700000000.ID_2.host"]
    assert len(set(names)) == len(names) == filenames.VARIANTS == 10


@pytest.mark.parametrize("copying", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_name_that_is_taken_is_not_taken_again(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls, monkeypatch: pytest.MonkeyPatch,
    copying: bool,
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.9)
    if copying:
        calls.fault = lambda _, call: errno.EXDEV if call.name == "link" else None
    put(home(tmp_path) / "tmp", "1700000000.ID1.mail.example.org", b"anothers")
    taken = f"1700000000.ID1.mail.example.org,S={len(MESSAGE)},W={len(MESSAGE)}"
    put(home(tmp_path) / "new", taken, b"anothers")
    await deliver(store, MESSAGE, ALICE, BOB, id="ID1")
    assert (home(tmp_path) / "new" / taken).read_bytes() == b"anothers"
    assert (home(tmp_path) / "new" / taken.replace("ID1", "ID1_1")).read_bytes() == MESSAGE
    assert (home(tmp_path, BOB) / "new" / taken).read_bytes() == MESSAGE
    assert len(files(tmp_path)) == 3
    assert [path.read_bytes() for path in tmp_path.rglob("tmp/*")] == [b"anothers"]


@pytest.mark.parametrize("directory", ["tmp", "new"])
@pytest_twisted.ensureDeferred
async def test_when_every_name_is_taken(
    store: MaildirStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: str
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.9)
    sizes = f",S={len(MESSAGE)},W={len(MESSAGE)}" if directory == "new" else ""
    for name in filenames.unique_parts(1_700_000_000, "ID1", b"mail.example.org"):
        put(home(tmp_path) / directory, name.decode() + sizes, b"anothers")
    with pytest.raises(TemporaryFailure):
        await deliver(store, MESSAGE, id="ID1")
    assert {path.read_bytes() for path in home(tmp_path).rglob("*/*")} == {b"anothers"}


@pytest.mark.parametrize("id", ["", "../x", "a.b", "a/b", "é", "a b", "a\n"])
@pytest_twisted.ensureDeferred
async def test_ids_that_are_none(store: MaildirStore, id: str) -> None:
    with pytest.raises(ValueError, match="not a message id"):
        store.begin((ALICE,), id)


@pytest.mark.parametrize("name", [
    "", ".", "..", "a/b", "/", "../x", "a\0b", "x" * 256, "é" * 128, "\ud800"])
@pytest.mark.parametrize("which", ["local_part", "domain"])
@pytest_twisted.ensureDeferred
async def test_names_that_would_lead_elsewhere(
    store: MaildirStore, tmp_path: Path, name: str, which: str
) -> None:
    account = dataclasses.replace(Account("a", "example.org", quota_octets=1), **{which: name})
    with pytest.raises(PermanentFailure):
        store.begin((ALICE, account), new_id())
    with pytest.raises(PermanentFailure):
        store.room(account, 1)
    with pytest.raises(PermanentFailure):
        await store.open_maildrop(account)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [
    "x" * 255, "é" * 127, "...", ".a", "a b", "-", "*", ";id", "$(x)", "tmp", "cur", "A"])
@pytest_twisted.ensureDeferred
async def test_odd_names_are_only_names(store: MaildirStore, tmp_path: Path, name: str) -> None:
    await deliver(store, MESSAGE, Account(name, "example.org"))
    assert await contents(store, Account(name, "example.org")) == [MESSAGE]
    assert os.listdir(tmp_path / "example.org") == [name]
