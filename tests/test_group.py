"""The group commit: one flush for many, and what happens while the journal fails."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import formatEvent, globalLogPublisher

from mailsvc import journal
from mailsvc.errors import StorageFull, TemporaryFailure
from mailsvc.mail import Account, new_id
from mailsvc.store import committer
from mailsvc.store.maildir import MaildirStore
from tests.stores import ALICE, BOB, contents, deliver, files, home, maildir_store, pause
from tests.system_calls import Call, SystemCalls

MESSAGE = b"Subject: test\r\n\r\nbody\r\n"
OTHER_BOOT = b"some other boot "


@pytest_twisted.async_yield_fixture
async def store(tmp_path: Path) -> AsyncIterator[MaildirStore]:
    """A store with a journal that makes no checkpoint meanwhile."""
    it = maildir_store(tmp_path, checkpoint_seconds=3600)
    it.start()
    yield it
    await it.stop()


@pytest_twisted.async_yield_fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., MaildirStore]]:
    """Makes stores over tmp_path, and stops them, for threads would outlive a test that fails."""
    made: list[MaildirStore] = []

    def make(**settings: Any) -> MaildirStore:
        made.append(maildir_store(tmp_path, **settings))
        return made[-1]

    yield make
    for store in reversed(made):
        await store.stop()


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What is logged meanwhile."""
    lines: list[str] = []

    def note(event: dict[str, Any]) -> None:
        lines.append(formatEvent(event))

    globalLogPublisher.addObserver(note)
    yield lines
    globalLogPublisher.removeObserver(note)


@pytest.fixture
def flushes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The flushes of the journal so far; a negative errno put first fails them all."""
    done: list[int] = []
    real = os.fdatasync

    def fdatasync(fd: int) -> None:
        if done and done[0] < 0:
            raise OSError(-done[0], os.strerror(-done[0]))
        real(fd)
        done.append(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    return done


@pytest_twisted.ensureDeferred
async def test_many_messages_need_few_flushes_and_no_sync(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls, flushes: list[int]
) -> None:
    await gatherResults([
        Deferred.fromCoroutine(deliver(store, MESSAGE, ALICE, BOB)) for _ in range(50)])
    assert len(files(tmp_path)) == 100
    assert len(flushes) < 25
    assert calls.of("fsync") == []
    assert not list(tmp_path.rglob("tmp/*"))


@pytest_twisted.ensureDeferred
async def test_a_deletion_is_durable_by_a_record(
    store: MaildirStore, calls: SystemCalls, flushes: list[int]
) -> None:
    await deliver(store, MESSAGE)
    maildrop = await store.open_maildrop(ALICE)
    before = len(flushes)
    calls.calls.clear()
    await maildrop.update([1])
    assert len(flushes) == before + 1
    assert calls.of("fsync") == []


@pytest.mark.parametrize("reason", [errno.EIO, errno.ENOSPC, errno.EROFS])
@pytest_twisted.ensureDeferred
async def test_while_the_journal_fails_each_message_is_synced(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls, flushes: list[int],
    logged: list[str], reason: int
) -> None:
    flushes.insert(0, -reason)
    await deliver(store, MESSAGE, ALICE, BOB)
    await deliver(store, MESSAGE)
    assert f"{home(tmp_path)}/new" in calls.of("fsync")
    assert await contents(store) == [MESSAGE, MESSAGE]
    assert await contents(store, BOB) == [MESSAGE]
    assert len([line for line in logged if "the journal fails" in line]) == 1
    maildrop = await store.open_maildrop(ALICE)
    await maildrop.update([1, 2])
    flushes.clear()


@pytest_twisted.ensureDeferred
async def test_the_journal_is_tried_again(
    store: MaildirStore, flushes: list[int], logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailsvc.store.group._REST", 0.05)
    flushes.insert(0, -errno.EIO)
    await deliver(store, MESSAGE)
    flushes.clear()
    await pause(0.1)
    await deliver(store, MESSAGE)
    assert flushes
    assert "the journal works again" in logged


@pytest_twisted.ensureDeferred
async def test_what_cannot_be_placed_is_withdrawn(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls
) -> None:
    calls.fault = lambda _, call: errno.ENOSPC if (
        call.name == "link" and "/bob/" in call.path) else None
    with pytest.raises(StorageFull):
        await deliver(store, MESSAGE, ALICE, BOB)
    assert files(tmp_path) == []
    assert not list(tmp_path.rglob("tmp/*"))


@pytest_twisted.ensureDeferred
async def test_what_was_withdrawn_stays_so_though_the_journal_failed_meanwhile(
    make: Callable[..., MaildirStore], calls: SystemCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal has it as delivered, until a record says otherwise."""
    monkeypatch.setattr("mailsvc.store.group._REST", 0.05)
    monkeypatch.setattr("mailsvc.store.committer.checkpoint", failing_checkpoint)
    first = make()
    first._journal.boot = OTHER_BOOT
    first.start()
    calls.fault = lambda _, call: errno.ENOSPC if call.name == "link" else None
    with pytest.raises(StorageFull):
        await deliver(first, MESSAGE)
    calls.fault = lambda _, call: None
    with monkeypatch.context() as patch:
        patch.setattr("mailsvc.journal.write_at", failing_write)
        await deliver(first, MESSAGE, BOB)
    await pause(0.1)
    await deliver(first, MESSAGE, BOB)
    first._journal.close()  # as its process' end does
    monkeypatch.undo()
    second = make()
    second.start()
    assert await contents(second) == []
    assert await contents(second, BOB) == [MESSAGE, MESSAGE]


def failing_write(fd: int, data: bytes, at: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def failing_checkpoint(homes: Collection[bytes], paths: Collection[bytes]) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO), b"/dev/full")


@pytest_twisted.ensureDeferred
async def test_while_every_segment_waits_each_message_is_synced(
    make: Callable[..., MaildirStore], tmp_path: Path, calls: SystemCalls, logged: list[str],
    monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in ("_PATIENCE", 0.02), ("_REST", 0.3), ("_AGAIN", 0.02):
        monkeypatch.setattr(f"mailsvc.store.group.{name}", seconds)
    working = committer.checkpoint
    monkeypatch.setattr("mailsvc.store.committer.checkpoint", failing_checkpoint)
    store = make(checkpoint_seconds=3600)
    store._journal.most = 3 * journal.BLOCK
    store.start()
    for _ in range(20):
        await deliver(store, MESSAGE + b"x" * 3000)
    assert f"{home(tmp_path)}/new" in calls.of("fsync")
    assert any(line.startswith("every segment of the journal waits") for line in logged)
    assert any(line.startswith("cannot make durable what the journal holds: Input/output error "
                               "(/dev/full)") for line in logged)
    monkeypatch.setattr("mailsvc.store.committer.checkpoint", working)
    for _ in range(200):
        await deliver(store, MESSAGE)
        if "the journal works again" in logged:
            break
        await pause(0.02)
    assert "the journal works again" in logged


@pytest_twisted.ensureDeferred
async def test_a_bug_costs_nobody_mail(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls, logged: list[str],
    monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was with it in the batch is synced one by one, whole."""
    await deliver(store, MESSAGE)

    def bug(*args: object) -> bytes:
        raise struct.error("no such number")

    for name in "delivered", "removed":
        monkeypatch.setattr(f"mailsvc.store.group.entries.{name}", bug)
    await gatherResults([Deferred.fromCoroutine(deliver(store, MESSAGE, ALICE, BOB))
                         for _ in range(3)])
    assert await contents(store, BOB) == [MESSAGE] * 3
    assert "the group commit failed" in logged
    calls.calls.clear()
    maildrop = await store.open_maildrop(ALICE)
    await maildrop.update([1, 2])
    assert f"{home(tmp_path)}/new" in calls.of("fsync")
    assert await contents(store) == [MESSAGE] * 2
    assert not list(tmp_path.rglob("tmp/*"))


@pytest_twisted.ensureDeferred
async def test_a_message_for_more_than_a_record_can_name_is_synced_by_itself(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailsvc.store.group._PLACES", 1)
    await deliver(store, MESSAGE)
    assert calls.of("fsync") == []
    await deliver(store, MESSAGE, ALICE, BOB)
    assert {f"{home(tmp_path)}/new", f"{home(tmp_path, BOB)}/new"} < set(calls.of("fsync"))
    # So are many deletions, in as many records as it takes.
    calls.calls.clear()
    maildrop = await store.open_maildrop(ALICE)
    await maildrop.update([1, 2])
    assert calls.of("fsync") == []
    assert await contents(store) == []


@pytest_twisted.ensureDeferred
async def test_a_large_batch_is_not_waited_for(
    store: MaildirStore, tmp_path: Path, flushes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailsvc.store.group._BATCH", len(MESSAGE))
    await gatherResults([Deferred.fromCoroutine(deliver(store, MESSAGE)) for _ in range(10)])
    assert await contents(store) == [MESSAGE] * 10
    assert len(flushes) == 10


@pytest_twisted.ensureDeferred
async def test_a_deletion_waits_for_a_slow_disk(
    store: MaildirStore, calls: SystemCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailsvc.store.group._LOOK", 0.001)
    await deliver(store, MESSAGE)
    maildrop = await store.open_maildrop(ALICE)
    real = os.fdatasync

    def slow(fd: int) -> None:
        time.sleep(0.05)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", slow)
    calls.calls.clear()
    await maildrop.update([1])
    assert calls.of("fsync") == []


@pytest_twisted.ensureDeferred
async def test_a_journal_whose_directory_is_gone_is_done_without(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls, logged: list[str]
) -> None:
    shutil.rmtree(tmp_path / ".journal")
    await deliver(store, MESSAGE)
    assert await contents(store) == [MESSAGE]
    assert f"{home(tmp_path)}/new" in calls.of("fsync")
    assert any(line.startswith("the journal fails: No such file or directory") for line in logged)


@pytest_twisted.ensureDeferred
async def test_after_the_end_deletions_are_synced(
    make: Callable[..., MaildirStore], tmp_path: Path, calls: SystemCalls
) -> None:
    """A session that outlives the service's grace."""
    store = make()
    store.start()
    await deliver(store, MESSAGE)
    maildrop = await store.open_maildrop(ALICE)
    committer = store._committer
    await committer.stop()
    calls.calls.clear()
    await maildrop.update([1])
    assert f"{home(tmp_path)}/new" in calls.of("fsync")
    assert files(tmp_path) == []


@pytest_twisted.ensureDeferred
async def test_each_system_call_fails_in_turn(tmp_path: Path, calls: SystemCalls) -> None:
    """All accounts get a message once or none does, and nothing stays behind."""
    failing = 0
    while True:
        root = tmp_path / str(failing)
        root.mkdir()
        store = maildir_store(root, checkpoint_seconds=3600)
        store.start()
        hit: list[Call] = []
        calls.calls.clear()
        calls.fault = lambda index, call, at=failing, hit=hit: (
            hit.append(call) or errno.EIO if index == at else None)
        try:
            await deliver(store, MESSAGE, ALICE, BOB)
            expected = [MESSAGE, MESSAGE]
        except TemporaryFailure:
            expected = []
        calls.fault = lambda index, call: None
        assert [path.read_bytes() for path in files(root)] == expected, hit
        await store.stop()
        if not hit:
            break
        failing += 1
    assert failing > 8


@pytest_twisted.ensureDeferred
async def test_too_much_that_waits_is_refused(tmp_path: Path) -> None:
    store = maildir_store(tmp_path, backlog_octets=100)
    store.start()
    waiting = [Deferred.fromCoroutine(deliver(store, MESSAGE + b"x" * 60)) for _ in range(3)]
    assert await waiting[0]
    for each in waiting[1:]:
        with pytest.raises(StorageFull):
            await each
    await deliver(store, MESSAGE + b"x" * 60)
    await store.stop()
    assert len(files(tmp_path)) == 2


@pytest_twisted.ensureDeferred
async def test_a_checkpoint_frees_the_segment(tmp_path: Path) -> None:
    store = maildir_store(tmp_path, checkpoint_seconds=0.1)
    store.start()
    await deliver(store, MESSAGE)
    segment = tmp_path / ".journal" / "0.0"
    assert segment.read_bytes()[:7] == b"mailsvc"
    for _ in range(200):
        if segment.read_bytes()[:7] != b"mailsvc":
            break
        await pause(0.05)
    assert segment.read_bytes()[: journal.BLOCK] == bytes(journal.BLOCK)
    await store.stop()


@pytest_twisted.ensureDeferred
async def test_processes_that_delete_do_not_wait_for_each_other_for_ever(
    make: Callable[..., MaildirStore], logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each keeps a segment for the other's sake, and has another behind it that the other keeps."""
    for name, seconds in ("_PATIENCE", 0.5), ("_AGAIN", 0.02):
        monkeypatch.setattr(f"mailsvc.store.group.{name}", seconds)
    real = committer.checkpoint

    def slow(homes: Collection[bytes], paths: Collection[bytes]) -> None:
        time.sleep(0.04)
        real(homes, paths)

    monkeypatch.setattr("mailsvc.store.committer.checkpoint", slow)
    stores = [make(checkpoint_seconds=0.1) for _ in range(2)]
    for store in stores:
        store.start()

    async def use(store: MaildirStore, account: Account) -> None:
        until = time.monotonic() + 3
        while time.monotonic() < until:
            await deliver(store, MESSAGE, account)
            maildrop = await store.open_maildrop(account)
            await maildrop.update([1])
            maildrop.release()

    await gatherResults([Deferred.fromCoroutine(use(store, account))
                         for store, account in zip(stores, (ALICE, BOB), strict=True)])
    assert not [line for line in logged if line.startswith("every segment")]
    await pause(0.5)
    assert [store.backlog[1] for store in stores] == [0, 0]


@pytest.mark.parametrize("durability", ["journal", "fsync", "none"])
@pytest_twisted.ensureDeferred
async def test_what_a_power_loss_took_is_there_after_a_start(
    tmp_path: Path, logged: list[str], durability: str
) -> None:
    first = maildir_store(tmp_path, checkpoint_seconds=3600)
    first._journal.boot = OTHER_BOOT
    first.start()
    for _ in range(3):
        await deliver(first, MESSAGE + new_id().encode() + b"\r\n", ALICE)
    maildrop = await first.open_maildrop(ALICE)
    await maildrop.update([1])
    lost, halved = files(tmp_path)
    content = halved.read_bytes()
    lost_content = lost.read_bytes()
    lost.unlink()
    halved.write_bytes(b"")
    first._journal.close()  # as its process' end does
    second = maildir_store(tmp_path, durability=durability)
    second.start()
    assert sorted(await contents(second)) == sorted([content, lost_content])
    [line] = [line for line in logged if "recovered" in line]
    assert "whole 0, restored 1, repaired 1" in line
    await second.stop()
    await first.stop()
