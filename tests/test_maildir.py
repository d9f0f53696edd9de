"""The maildir store as a whole: the lock, deletions, crashes, other programs."""

from __future__ import annotations

import errno
import fcntl
import itertools
import mailbox
import os
import random
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.logger import formatEvent

from mailsvc.errors import (
    MaildropInUse,
    SomeNotRemoved,
    TemporaryFailure,
)
from mailsvc.store.maildir import MaildirStore
from tests.stores import (
    ALICE,
    contents,
    deliver,
    descriptors,
    files,
    home,
    maildir_store,
    pause,
    put,
    read,
)
from tests.system_calls import Call, SystemCalls

MESSAGE = b"Subject: test\r\n\r\nbody\r\n"
LARGE = b"Subject: large\r\n\r\n" + b"".join(b"%07d %s\r\n" % (n, b"x" * (n % 90))
                                           for n in range(12_000))
LF = b"Subject: a\n\nbody\n"
CRLF = b"Subject: a\r\n\r\nbody\r\n"
REACTOR_THREAD = threading.get_ident()


# ---- the lock ---------------------------------------------------------------


HOLDER = """
import sys
from pathlib import Path
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from mailsvc.mail import Account
from mailsvc.store.maildir import MaildirSettings, MaildirStore
store = MaildirStore(Path(sys.argv[1]), MaildirSettings(), "h", reactor)
store.start()
def opened(maildrop):
    global held
    held = maildrop
    print("locked", flush=True)
store.open_maildrop(Account("alice", "example.org")).addCallback(opened)
reactor.run()
"""


@pytest_twisted.ensureDeferred
async def test_a_lock_that_cannot_be_taken_leaves_no_descriptor(
    store: MaildirStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await deliver(store, MESSAGE)
    before = descriptors()

    def flock(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        with pytest.raises(TemporaryFailure):
            await store.open_maildrop(ALICE)
    assert descriptors() == before
    assert await contents(store) == [MESSAGE]


@pytest_twisted.ensureDeferred
async def test_the_lock_holds_across_processes_and_dies_with_its_holder(
    store: MaildirStore, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"locked\n"
            with pytest.raises(MaildropInUse):
                await store.open_maildrop(ALICE)
            await deliver(store, MESSAGE)
        finally:
            child.kill()
    assert await contents(store) == [MESSAGE]


@pytest_twisted.ensureDeferred
async def test_children_do_not_inherit_the_lock(store: MaildirStore) -> None:
    maildrop = await store.open_maildrop(ALICE)
    with subprocess.Popen(["sleep", "60"], close_fds=False) as child:
        try:
            maildrop.release()
            maildrop = await store.open_maildrop(ALICE)
            maildrop.release()
        finally:
            child.kill()


@pytest_twisted.ensureDeferred
async def test_one_descriptor_for_a_session(store: MaildirStore, tmp_path: Path) -> None:
    await deliver(store, MESSAGE)
    await deliver(store, LARGE)
    before = descriptors()
    maildrop = await store.open_maildrop(ALICE)
    assert descriptors() == before + 1
    await read(maildrop, 1)
    await read(maildrop, 2)
    await read(maildrop, 2, 1)
    assert descriptors() == before + 1
    with pytest.raises(MaildropInUse):
        await store.open_maildrop(ALICE)
    assert descriptors() == before + 1
    maildrop.release()
    assert descriptors() == before
    status = (home(tmp_path) / "mailsvc.lock").stat()
    assert (status.st_size, status.st_mode & 0o777) == (0, 0o600)


@pytest_twisted.ensureDeferred
async def test_a_lock_file_that_is_a_link_elsewhere(store: MaildirStore, tmp_path: Path) -> None:
    (home(tmp_path) / "mailsvc.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TemporaryFailure):
        await store.open_maildrop(ALICE)
    assert not (tmp_path / "elsewhere").exists()


@pytest_twisted.ensureDeferred
async def test_each_system_call_of_an_opening_fails_in_turn(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls
) -> None:
    put(home(tmp_path) / "new", "1.a.h", b"a\n")
    await deliver(store, MESSAGE)
    before = descriptors()
    failures = 0
    for failing in itertools.count():
        hit: list[Call] = []
        calls.calls.clear()
        calls.fault = lambda index, call, at=failing, hit=hit: (
            hit.append(call) or errno.EIO if index == at else None)
        maildrop = None
        try:
            maildrop = await store.open_maildrop(ALICE)
        except TemporaryFailure:
            failures += 1
        calls.fault = lambda index, call: None
        if maildrop is not None:
            # Only a message that cannot be read is no reason to show none.
            assert len(maildrop.sizes) == 2
            maildrop.release()
        assert descriptors() <= before, hit
        if not hit:
            break
    assert failures >= 4


@pytest_twisted.ensureDeferred
async def test_closing_the_lock_never_fails(store: MaildirStore, calls: SystemCalls) -> None:
    maildrop = await store.open_maildrop(ALICE)
    calls.fault = lambda _, call: errno.EIO if call.name == "close" else None
    maildrop.release()
    calls.fault = lambda _, call: None
    (await store.open_maildrop(ALICE)).release()


# ---- update -----------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_what_cannot_be_removed_is_named(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls, logged: list[dict[str, Any]]
) -> None:
    directory = home(tmp_path)
    for number in range(1, 6):
        put(directory, f"new/{number}.a.h,S=17,W=20", LF)
    maildrop = await store.open_maildrop(ALICE)
    calls.fault = lambda _, call: errno.EIO if (
        call.name == "unlink" and re.search(r"/[24]\.a\.h", call.path)) else None
    with pytest.raises(SomeNotRemoved) as caught:
        await maildrop.update([4, 3, 2, 1])
    assert caught.value.numbers == (2, 4)
    assert [path.name[0] for path in files(directory)] == ["2", "4", "5"]
    assert [formatEvent(event) for event in logged if "cannot" in (event["log_format"] or "")] == [
        f"cannot remove a message: Input/output error ({bytes(path)!r})"
        for path in files(directory)[:2]]
    (await store.open_maildrop(ALICE)).release()


@pytest_twisted.ensureDeferred
async def test_a_removal_that_is_not_durable_is_named_too(
    tmp_path: Path, calls: SystemCalls, logged: list[dict[str, Any]]
) -> None:
    store = maildir_store(tmp_path, durability="fsync")
    store.start()
    directory = home(tmp_path)
    for number, place in enumerate(["new", "cur", "new", "cur"], 1):
        put(directory, f"{place}/{number}.a.h,S=17,W=20", LF)
    maildrop = await store.open_maildrop(ALICE)
    calls.calls.clear()
    calls.fault = lambda _, call: errno.EIO if (
        call.name == "fsync" and call.path.endswith("/cur")) else None
    with pytest.raises(SomeNotRemoved) as caught:
        await maildrop.update([4, 3, 2, 1])
    assert caught.value.numbers == (2, 4)
    [event] = [event for event in logged if "cannot remove" in (event["log_format"] or "")]
    assert event["path"] == os.fsencode(directory / "cur")
    # One for each directory.
    assert sorted(calls.of("fsync")) == [f"{directory}/cur", f"{directory}/new"]
    for call in calls.calls:
        if call.name != "close":
            assert call.thread != REACTOR_THREAD, call
    (await store.open_maildrop(ALICE)).release()
    await store.stop()


@pytest_twisted.ensureDeferred
async def test_directories_that_nothing_was_removed_from_are_not_synced(
    tmp_path: Path, calls: SystemCalls
) -> None:
    store = maildir_store(tmp_path, durability="fsync")
    store.start()
    directory = home(tmp_path)
    path = put(directory, "new/1.a.h,S=17,W=20", LF)
    maildrop = await store.open_maildrop(ALICE)
    path.unlink()
    calls.calls.clear()
    await maildrop.update([1])
    assert calls.of("fsync") == []
    await store.stop()


@pytest_twisted.ensureDeferred
async def test_updating_twice_at_once(store: MaildirStore) -> None:
    await deliver(store, MESSAGE)
    await deliver(store, MESSAGE)
    maildrop = await store.open_maildrop(ALICE)
    first = maildrop.update([1])
    with pytest.raises(SomeNotRemoved):
        await maildrop.update([2])
    await first
    assert len(await contents(store)) == 1


@pytest_twisted.ensureDeferred
async def test_an_update_when_the_store_has_stopped(tmp_path: Path) -> None:
    store = maildir_store(tmp_path)
    store.start()
    await deliver(store, MESSAGE)
    before = descriptors()
    maildrop = await store.open_maildrop(ALICE)
    await store.stop()
    with pytest.raises(TemporaryFailure):
        await maildrop.update([1])
    assert len(files(tmp_path)) == 1
    assert descriptors() <= before


# ---- crashes ----------------------------------------------------------------


CRASHER = """
import random, sys
from pathlib import Path
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from mailsvc.mail import Account, new_id
from mailsvc.store.maildir import MaildirSettings, MaildirStore
store = MaildirStore(Path(sys.argv[1]), MaildirSettings(small_message_octets=4000), "h", reactor)
store.start()
accounts = [Account(name, "example.org") for name in ("alice", "bob", "carol")]
async def deliver():
    while True:
        id = new_id()
        chosen = random.sample(accounts, random.randint(1, 3))
        delivery = store.begin(tuple(chosen), id)
        text = (id.encode() + b"\\r\\n") * random.choice([1, 50, 2000])
        for at in range(0, len(text), 3000):
            room = delivery.write(text[at:at + 3000])
            if room is not None:
                await room
        await delivery.commit()
        print(id, len(text), *(account.local_part for account in chosen), flush=True)
store.open_maildrop(accounts[0]).addCallback(lambda maildrop: globals().update(held=maildrop))
for _ in range(4):
    Deferred.fromCoroutine(deliver()).addErrback(lambda failure: print(failure, flush=True))
reactor.run()
"""


@pytest.mark.slow
@pytest_twisted.ensureDeferred
async def test_killed_at_random_moments(store: MaildirStore, tmp_path: Path) -> None:
    """What was acknowledged is there once for each account; nothing is there in part."""
    chance = random.Random()
    acknowledged: dict[str, tuple[int, set[str]]] = {}
    for _ in range(20):
        with subprocess.Popen(
            [sys.executable, "-c", CRASHER, str(tmp_path)], stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parent.parent,
        ) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline()]
            await pause(chance.uniform(0, 0.1))
            child.send_signal(signal.SIGKILL)
            lines += child.stdout.readlines()
        for line in lines:
            if line.endswith("\n"):
                id, size, *names = line.split()
                acknowledged[id] = int(size), set(names)
        maildrop = await store.open_maildrop(ALICE)
        maildrop.release()
    assert len(acknowledged) > 100
    found: dict[str, list[str]] = {}
    for path in files(tmp_path):
        content = path.read_bytes()
        id = path.name.split(".")[1]
        assert f",S={len(content)},W={len(content)}" in path.name
        assert content == (id.encode() + b"\r\n") * (len(content) // 18)
        assert len(content) in (18, 900, 36_000)
        found.setdefault(id, []).append(path.parent.parent.name)
    for id, (_, names) in acknowledged.items():
        assert sorted(found[id]) == sorted(names), id
    maildrop = await store.open_maildrop(ALICE)
    assert len(maildrop.sizes) == sum("alice" in names for names in found.values())
    maildrop.release()


# ---- Python's mailbox module ------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_python_reads_ours(store: MaildirStore, tmp_path: Path) -> None:
    await deliver(store, MESSAGE)
    await deliver(store, LARGE)
    box = mailbox.Maildir(home(tmp_path), create=False)
    assert sorted(map(box.get_bytes, box.iterkeys())) == sorted([MESSAGE, LARGE])
    assert {message["Subject"] for message in box} == {"test", "large"}
    for key, message in list(box.iteritems()):
        message.set_subdir("cur")
        message.add_flag("S")
        box[key] = message
    assert len(await contents(store)) == 2


@pytest_twisted.ensureDeferred
async def test_ours_reads_pythons(store: MaildirStore, tmp_path: Path) -> None:
    home(tmp_path)
    box = mailbox.Maildir(home(tmp_path), create=False)
    first = mailbox.MaildirMessage(LF)
    second = mailbox.MaildirMessage(b"Subject: 2\n\nsecond\n")
    second.set_subdir("cur")
    second.set_flags("RS")
    third = mailbox.MaildirMessage(b"Subject: 3\n\n.\n")
    box.add(first)
    key = box.add(second)
    box.add(third)
    assert sorted(await contents(store)) == sorted(
        [CRLF, b"Subject: 2\r\n\r\nsecond\r\n", b"Subject: 3\r\n\r\n.\r\n"])
    maildrop = await store.open_maildrop(ALICE)
    [number] = [n for n in (1, 2, 3) if maildrop.uidl(n) == key.encode()]
    # Read and flagged elsewhere during the session.
    message = box[key]
    message.set_flags("F")
    box[key] = message
    assert await read(maildrop, number) == b"Subject: 2\r\n\r\nsecond\r\n"
    await maildrop.update([number])
    assert key not in box
    assert len(box) == 2
