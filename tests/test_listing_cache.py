"""Listings that are kept for the next login, and what is read many names at a time."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_twisted

from mailsvc.errors import MaildropInUse, TemporaryFailure
from mailsvc.store import listing, marked
from mailsvc.store.listing import Listing, ListingCache, SizeCache
from mailsvc.store.maildir import MaildirStore
from mailsvc.store.namesakes import Namesakes
from tests.stores import ALICE, deliver, home, maildir_store
from tests.system_calls import SystemCalls

LONG_AGO = (1_700_000_000, 1_700_000_000)


@pytest_twisted.async_yield_fixture
async def store(tmp_path: Path) -> AsyncIterator[MaildirStore]:
    """A store of maildirs under tmp_path, with three messages for Alice, old enough."""
    it = maildir_store(tmp_path)
    it.start()
    for number in range(3):
        await deliver(it, b"Subject: %d\r\n\r\n" % number)
    settle(tmp_path)
    yield it
    await it.stop()


def settle(tmp_path: Path) -> None:
    """Make new/ and cur/ look as if nothing had happened there for long."""
    for part in "new", "cur":
        os.utime(home(tmp_path) / part, LONG_AGO)


async def ids(store: MaildirStore) -> list[bytes]:
    """A session that only looks."""
    maildrop = await store.open_maildrop(ALICE)
    try:
        assert maildrop.octets == sum(maildrop.sizes)
        return list(maildrop.uidls(1, len(maildrop.sizes) + 1))
    finally:
        maildrop.release()


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The directories that are read from now on."""
    read: list[bytes] = []
    scandir = os.scandir

    def counted(path: bytes) -> object:
        read.append(os.path.basename(path))
        return scandir(path)

    monkeypatch.setattr(listing.os, "scandir", counted)
    return read


@pytest_twisted.ensureDeferred
async def test_what_has_not_changed_is_not_read_again(
        store: MaildirStore, tmp_path: Path, scans: list[bytes]) -> None:
    first = await ids(store)
    assert scans == [b"new", b"cur"]
    assert await ids(store) == await ids(store) == first
    assert scans == [b"new", b"cur"]


@pytest_twisted.ensureDeferred
async def test_no_thread_is_needed_for_what_is_known(store: MaildirStore) -> None:
    known = await ids(store)
    opened = store.open_maildrop(ALICE)
    assert opened.called
    maildrop = await opened
    assert maildrop.uidls(1, 4) == known
    # The lock holds as ever, however the second session comes by it.
    with pytest.raises(MaildropInUse):
        await store.open_maildrop(ALICE)
    maildrop.release()
    assert await ids(store) == known


@pytest_twisted.ensureDeferred
async def test_every_change_is_seen(store: MaildirStore, tmp_path: Path) -> None:
    before = await ids(store)
    mail = home(tmp_path)
    await deliver(store, b"Subject: new\r\n\r\n")
    after = await ids(store)
    assert (len(after), set(before) - set(after)) == (4, set())
    settle(tmp_path)
    assert await ids(store) == after
    # Moved, flagged and removed by another program; each a moment after the listing was kept.
    one, two, *_ = sorted((mail / "new").iterdir())
    one.rename(mail / "cur" / f"{one.name}:2,S")
    assert await ids(store) == after
    two.unlink()
    assert await ids(store) == [after[0], *after[2:]]


@pytest_twisted.ensureDeferred
async def test_what_was_young_is_read_again(
        store: MaildirStore, tmp_path: Path, scans: list[bytes]) -> None:
    os.utime(home(tmp_path) / "new")
    await ids(store)
    scans.clear()
    await ids(store)
    assert b"new" in scans


@pytest_twisted.ensureDeferred
async def test_deletions_are_forgotten_with_the_messages(store: MaildirStore) -> None:
    before = await ids(store)
    maildrop = await store.open_maildrop(ALICE)
    await maildrop.update({2})
    assert await ids(store) == [before[0], before[2]]


@pytest_twisted.ensureDeferred
async def test_a_directory_that_cannot_be_looked_at_fails_the_login_and_keeps_no_lock(
        store: MaildirStore, monkeypatch: pytest.MonkeyPatch) -> None:
    before = await ids(store)
    calls = SystemCalls(monkeypatch)
    calls.fault = lambda index, call: errno.EIO if call.name == "stat" else None
    with pytest.raises(TemporaryFailure):
        await ids(store)
    monkeypatch.undo()
    assert await ids(store) == before


def test_the_cache_holds_so_many_messages_and_the_last_maildirs(tmp_path: Path) -> None:
    homes = []
    for number in range(4):
        mail = tmp_path / str(number)
        for part in "new", "cur":
            (mail / part).mkdir(parents=True)
        for message in range(3):
            (mail / "new" / f"{message}.a.b,S=1,W=1").write_bytes(b"x")
        for part in "new", "cur":
            os.utime(mail / part, LONG_AGO)
        homes.append(os.fsencode(mail))
    cache = ListingCache(SizeCache(1), 7)
    one, two, three, four = homes
    for each in one, two:
        assert cache.known(each) is None
        cache.read(each)
    assert cache.known(one) is cache.known(one) is not None
    cache.read(three)  # and the one that was used longest ago goes
    assert (one in cache, two in cache, three in cache) == (True, False, True)
    cache.read(three)  # again: it is counted once
    assert one in cache
    cache.read(four)
    assert [each in cache for each in homes] == [False, False, True, True]
    none = ListingCache(SizeCache(1), 0)
    none.read(one)
    assert one not in none


# ---- names taken many at a time ----------------------------------------------


@pytest.mark.parametrize("run", [2, 3, 4096])
def test_seams_between_runs_hide_nothing(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: int) -> None:
    monkeypatch.setattr(marked, "RUN", run)
    for part in "new", "cur":
        (tmp_path / part).mkdir()
    for number in range(7):
        (tmp_path / "new" / f"{number}.a.b,S=1,W=3").write_bytes(b"x")
    mail = os.fsencode(tmp_path)
    assert list(Listing(mail, SizeCache(1)).sizes) == [3] * 7
    assert Listing(mail, SizeCache(1)).uidls(1, 8) == [b"%d.a.b" % n for n in range(7)]
    # Two files with one unique part, on either side of some seam.
    (tmp_path / "cur" / "3.a.b,S=1,W=2:2,S").write_bytes(b"x")
    (tmp_path / "cur" / "3.a.b,U=1,S=1,W=2:2,S").write_bytes(b"x")
    found = Listing(mail, SizeCache(1))
    assert len(set(found.uidls(1, 9))) == len(found) == 8
    found = Listing(mail, SizeCache(1), lambda _, shared: Namesakes("host").part(shared))
    assert len(set(found.uidls(1, 10))) == len(found) == 9
