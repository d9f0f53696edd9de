"""Delivery into maildirs with a sync of each message, while each system call fails in turn."""

from __future__ import annotations

import errno
import itertools
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted

from mailsvc.errors import (
    MailFailure,
    StorageFull,
    TemporaryFailure,
)
from mailsvc.mail import Account, new_id
from mailsvc.store.maildir import MaildirStore
from tests.stores import (
    ALICE,
    BOB,
    blocks_of,
    contents,
    deliver,
    descriptors,
    files,
    home,
    maildir_store,
)
from tests.system_calls import Call, SystemCalls

MESSAGE = b"Subject: test\r\n\r\nbody\r\n"


@pytest_twisted.async_yield_fixture
async def store(tmp_path: Path) -> AsyncIterator[MaildirStore]:
    """A store of maildirs under tmp_path that syncs each message."""
    it = maildir_store(tmp_path, durability="fsync")
    it.start()
    yield it
    await it.stop()


FAILURES = {errno.ENOSPC: StorageFull, errno.EDQUOT: StorageFull, errno.EIO: TemporaryFailure}


@pytest.mark.parametrize(("error", "small", "links", "found"), [
    (errno.EIO, 100_000, True, False), (errno.ENOSPC, 100_000, True, True),
    (errno.EDQUOT, 100_000, False, True), (errno.ENOSPC, 300, True, True),
    (errno.EIO, 300, False, False)])
@pytest_twisted.ensureDeferred
async def test_each_system_call_fails_in_turn(
    tmp_path: Path, calls: SystemCalls, error: int, small: int, links: bool, found: bool
) -> None:
    """All accounts get a message once or none does, nothing stays behind, and a retry works."""
    message = MESSAGE + b"x" * 998 + b"\r\n"
    failed = set()
    for failing in itertools.count():
        root = tmp_path / str(failing)
        root.mkdir()
        store = maildir_store(root, durability="fsync", small_message_octets=small, threads=1)
        store.start()
        if found:
            await deliver(store, b"first", ALICE, BOB)
        before = descriptors()
        hit: list[Call] = []

        def fault(
            index: int, call: Call, failing: int = failing, hit: list[Call] = hit
        ) -> int | None:
            if index == failing:
                hit.append(call)
                return error
            return None if links or call.name != "link" else errno.EXDEV

        calls.calls.clear()
        calls.fault = fault
        outcome = None
        try:
            await deliver(store, blocks_of(message, 350), ALICE, BOB)
        except MailFailure as failure:
            outcome = failure
        calls.fault = lambda index, call: None
        if not hit:
            break
        mail = [path.read_bytes() for path in files(root) if path.read_bytes() != b"first"]
        # Nothing else may go wrong unnoticed.
        harmless = hit[0].name == "unlink" or hit[0].path.endswith("/maildirsize")
        assert (outcome is None) == harmless, hit
        if outcome is None:
            assert mail == [message, message], hit
        else:
            assert mail == [], hit
            assert type(outcome) is FAILURES[error], hit
            assert str(tmp_path) not in outcome.text
            failed.add(hit[0].name)
        left = list(root.rglob("tmp/*"))
        # What could not be removed from tmp/ is swept one day.
        assert len(left) == (hit[0].name == "unlink" and "/tmp/" in hit[0].path), hit
        assert descriptors() <= before, hit
        await deliver(store, message, ALICE, BOB)
        mail = [path.read_bytes() for path in files(root) if path.read_bytes() != b"first"]
        assert mail == [message] * (4 if outcome is None else 2), hit
        await store.stop()
    await store.stop()
    assert failed >= {"open", "write", "fsync", "close"} | ({"link"} if links else {"rename"})
    assert failing > 10


@pytest.mark.parametrize("small", [100_000, 300])
@pytest_twisted.ensureDeferred
async def test_a_disk_that_dies(tmp_path: Path, calls: SystemCalls, small: int) -> None:
    """From some call on all fail: what is in new/ may not be withdrawn, but is whole."""
    message = MESSAGE + b"x" * 998 + b"\r\n"
    for failing in range(60):
        root = tmp_path / str(failing)
        root.mkdir()
        store = maildir_store(root, durability="fsync", small_message_octets=small, threads=1)
        store.start()
        calls.calls.clear()
        calls.fault = lambda index, call, at=failing: errno.EIO if index >= at else None
        try:
            await deliver(store, blocks_of(message, 350), ALICE, BOB)
            mail = [message, message]
        except TemporaryFailure:
            mail = [message for path in files(root)]
        calls.fault = lambda index, call: None
        assert [path.read_bytes() for path in files(root)] == mail
        await store.stop()


@pytest_twisted.ensureDeferred
async def test_what_was_taken_away_meanwhile_cannot_be_withdrawn(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls, logged: list[dict[str, Any]]
) -> None:
    """Another program moved the message to cur/ before the delivery failed for the next account."""
    def fault(_: int, call: Call) -> int | None:
        if call.name != "link" or "/bob/" not in call.path:
            return None
        [path] = files(tmp_path)
        path.rename(path.parent.parent / "cur" / f"{path.name}:2,S")
        return errno.EIO

    calls.fault = fault
    with pytest.raises(TemporaryFailure):
        await deliver(store, MESSAGE, ALICE, BOB)
    assert await contents(store) == [MESSAGE]
    assert await contents(store, BOB) == []
    assert not [event for event in logged if "cannot remove" in (event["log_format"] or "")]


@pytest.mark.parametrize("what", ["/alice/tmp/", "/alice/new", "/bob/new", "/example.org"])
@pytest_twisted.ensureDeferred
async def test_what_cannot_be_synced_is_not_acknowledged(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls, logged: list[dict[str, Any]], what: str
) -> None:
    calls.fault = lambda _, call: errno.EIO if (
        call.name == "fsync" and what in call.path
        and (what != "/example.org" or call.path.endswith(what))) else None
    with pytest.raises(TemporaryFailure):
        await deliver(store, MESSAGE, ALICE, BOB)
    assert files(tmp_path) == []
    [event] = [event for event in logged if event.get("errno")]
    assert what in event["path"]


@pytest_twisted.ensureDeferred
async def test_what_cannot_be_removed_is_logged(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls, logged: list[dict[str, Any]]
) -> None:
    calls.fault = lambda _, call: errno.EIO if call.name == "unlink" else None
    await deliver(store, MESSAGE)
    [left] = tmp_path.rglob("alice/tmp/*")
    assert [event["path"] for event in logged if "path" in event] == [os.fsencode(left)]


@pytest_twisted.ensureDeferred
async def test_short_writes_are_continued(
    store: MaildirStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def short(fd: int, data: Any) -> int:
        ours = sys._getframe(1).f_globals["__name__"].startswith("mailsvc.store")
        return real(fd, bytes(data)[:7] if ours else data)

    monkeypatch.setattr(os, "write", short)
    await deliver(store, MESSAGE)
    assert await contents(store) == [MESSAGE]


@pytest_twisted.ensureDeferred
async def test_a_failed_write_is_told_to_the_waiting_sender(
    tmp_path: Path, calls: SystemCalls, logged: list[dict[str, Any]]
) -> None:
    store = maildir_store(tmp_path, durability="fsync", small_message_octets=1000)
    store.start()
    calls.fault = lambda _, call: errno.ENOSPC if call.name == "write" else None
    delivery = store.begin((ALICE,), "ID7")
    delivery.write(b"x" * 1001)
    room = delivery.write(b"x" * 1001)
    assert room is not None
    with pytest.raises(StorageFull):
        await room
    assert delivery.write(b"more" * 1000) is None
    with pytest.raises(StorageFull):
        await delivery.commit()
    assert list(tmp_path.rglob("tmp/*")) == []
    assert calls.of("write") == [f"{home(tmp_path)}/tmp/{Path(calls.of('write')[0]).name}"]
    [event] = [event for event in logged if event.get("errno")]
    assert event["errno"] == "ENOSPC"
    assert event["id"] == "ID7"
    assert event["path"] == calls.of("write")[0]
    await store.stop()


@pytest.mark.parametrize("ending", ["commit", "abort"])
@pytest_twisted.ensureDeferred
async def test_a_write_that_fails_when_nobody_waits(
    tmp_path: Path, calls: SystemCalls, ending: str
) -> None:
    store = maildir_store(tmp_path, durability="fsync", small_message_octets=1000)
    store.start()
    calls.fault = lambda _, call: errno.EIO if call.name == "write" else None
    delivery = store.begin((ALICE,), new_id())
    assert delivery.write(b"x" * 1001) is None
    if ending == "commit":
        with pytest.raises(TemporaryFailure):
            await delivery.commit()
    else:
        delivery.abort()
    await store.stop()
    assert list(tmp_path.rglob("tmp/*")) == []
    assert files(tmp_path) == []


@pytest_twisted.ensureDeferred
async def test_a_maildir_that_was_removed_is_made_again(
    store: MaildirStore, tmp_path: Path
) -> None:
    await deliver(store, MESSAGE, ALICE, BOB)
    (tmp_path / "example.org").rename(tmp_path / "elsewhere")
    await deliver(store, MESSAGE, ALICE, BOB)
    assert await contents(store) == [MESSAGE]
    assert await contents(store, BOB) == [MESSAGE]
    (tmp_path / "example.org/alice").rename(tmp_path / "elsewhere/again")
    assert await contents(store) == []
    (tmp_path / "example.org/alice/cur").rmdir()
    assert await contents(store) == []
    (tmp_path / "example.org/alice/new").rmdir()
    await deliver(store, MESSAGE)
    assert await contents(store) == [MESSAGE]


@pytest_twisted.ensureDeferred
async def test_a_root_that_was_removed(store: MaildirStore, tmp_path: Path) -> None:
    tmp_path.rename(tmp_path.with_name("gone"))
    with pytest.raises(TemporaryFailure):
        await deliver(store, MESSAGE)
    with pytest.raises(TemporaryFailure):
        await store.open_maildrop(ALICE)
    assert await store.sweep() == 0
    assert not tmp_path.exists()


@pytest_twisted.ensureDeferred
async def test_once_stopped_it_refuses(tmp_path: Path) -> None:
    store = maildir_store(tmp_path, durability="fsync", small_message_octets=100)
    store.start()
    delivery = store.begin((ALICE,), new_id())
    await store.stop()
    delivery.write(b"x" * 101)
    with pytest.raises(TemporaryFailure):
        await delivery.commit()
    delivery = store.begin((ALICE,), new_id())
    delivery.abort()
    with pytest.raises(TemporaryFailure):
        await store.open_maildrop(ALICE)
    with pytest.raises(TemporaryFailure):
        await store.room(Account("q", "example.org", quota_octets=1), 1)  # type: ignore[misc]


@pytest_twisted.ensureDeferred
async def test_stopping_between_begin_and_abort_leaves_the_file_to_the_sweep(
    tmp_path: Path
) -> None:
    store = maildir_store(tmp_path, durability="fsync", small_message_octets=100)
    store.start()
    delivery = store.begin((ALICE,), new_id())
    delivery.write(b"x" * 101)
    await store.stop()
    delivery.abort()
    assert len(list(tmp_path.rglob("tmp/*"))) == 1
