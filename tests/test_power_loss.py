"""Power losses at every system call of delivery, deletion, checkpoint and recovery.

A workload runs once on a disk that keeps unsynced writes apart (``lying_disk.py``); then the power
fails behind each of its operations, several ways each, and a recovery looks at what is left.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults

from mailsvc.journal import Journal, this_boot
from mailsvc.mail import new_id
from mailsvc.store import checkpoint
from mailsvc.store.recovery import Recovery
from mailsvc.store.tree import MailTree
from tests.disk_log import Op
from tests.lying_disk import LyingDisk
from tests.stores import ALICE, BOB, files, home, maildir_store, pause

ACCOUNTS = {"alice": ALICE, "bob": BOB}
ANOTHER_BOOT = b"another boot    "
#: The root of the mail is there before any power loss.
START = 2
#: How many crashes at random beside one behind each call, for each way to be durable.
SCHEDULES = int(os.environ.get("MAILSVC_CRASHES", "500"))


def text(id: str, octets: int) -> bytes:
    return (id.encode() + b"\r\n") * (1 + octets // 18)


class Workload:
    """Two stores over one root: each delivers, each deletes what either delivered.

    :ivar sent: id -> content.
    """

    def __init__(self, disk: LyingDisk, root: Path, durability: str,
                 keep_deleted: int = 0) -> None:
        self.disk = disk
        self.root = root
        self.sent: dict[str, bytes] = {}
        self.stores = [maildir_store(root, durability=durability, checkpoint_seconds=0.1,
                                     threads=2, small_message_octets=20_000,
                                     keep_deleted_days=keep_deleted) for _ in range(2)]
        for store in self.stores:
            store._journal.most = 64 * 1024
            store.start()

    async def deliver(self, which: int, octets: int, *names: str) -> None:
        id = new_id()
        self.sent[id] = text(id, octets)
        delivery = self.stores[which].begin(tuple(ACCOUNTS[name] for name in names), id)
        room = delivery.write(self.sent[id])
        if room is not None:
            await room
        await delivery.commit()
        self.disk.mark(("delivered", id, names))

    async def delete(self, which: int, name: str, count: int) -> None:
        maildrop = await self.stores[which].open_maildrop(ACCOUNTS[name])
        numbers = list(range(1, len(maildrop.sizes) + 1))[:count]
        ids = tuple(maildrop.uidl(number).split(b".")[1].decode() for number in numbers)
        self.disk.mark(("deleting", ids, name))
        await maildrop.update(numbers)
        self.disk.mark(("deleted", ids, name))

    def flag(self, name: str) -> None:
        """Another program moves a message to cur/."""
        directory = home(self.root, ACCOUNTS[name])
        path = min((directory / "new").iterdir())
        self.disk.foreign_rename(path, directory / "cur" / f"{path.name}:2,S")

    async def run(self) -> None:
        chance = random.Random(7)
        for turn in range(6):
            await gatherResults([Deferred.fromCoroutine(self.deliver(
                chance.randrange(2), chance.choice([10, 600, 5000, 18_000]),
                *chance.choice([("alice",), ("bob",), ("alice", "bob")]))) for _ in range(5)])
            if turn == 2:
                await self.deliver(0, 50_000, "alice", "bob")
                self.flag("alice")
                await pause(0.3)
            await self.delete(turn % 2, "alice", 2)
            await self.delete(1 - turn % 2, "bob", 1)
        for store in self.stores:
            await store.stop()


def recover(root: Path, boot: bytes) -> None:
    """What a start does before it serves."""
    mail = os.fsencode(root / "mail")
    journal = Journal(mail + b"/.journal", most=64 * 1024, boot=boot)
    journal.open(Recovery(mail, MailTree(root / "mail", sync=False)).replay)
    journal.close()


def check(root: Path, sent: dict[str, bytes], marks: Iterable[Any], where: object) -> None:
    found = set()
    for path in files(root):
        id = path.name.split(".")[1]
        assert path.read_bytes() == sent[id], (where, "half visible", path)
        # Of a rename by another program, unsynced, nobody can promise more than its file system.
        again = (id, path.parent.parent.name) in found and ":" not in path.name
        assert not again, (where, "doubled", path)
        if path.parent.name == "new" or not any(
                other.name == path.name.partition(":")[0] for other in files(path.parent.parent)):
            found.add((id, path.parent.parent.name))
    delivered, deleting, deleted = set(), set(), set()
    for kind, what, *names in marks:
        if kind == "delivered":
            delivered |= {(what, name) for name in names[0]}
        else:
            (deleting if kind == "deleting" else deleted).update((id, names[0]) for id in what)
    lost = delivered - deleting - found
    assert not lost, (where, "lost", lost)
    assert not deleted & found, (where, "resurrected", deleted & found)


async def worked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, durability: str, syncfs: bool,
    keep_deleted: int = 0
) -> tuple[LyingDisk, Workload]:
    """A workload that is done, and all that it did to its disk."""
    (tmp_path / "mail").mkdir()
    with monkeypatch.context() as patch:
        disk = LyingDisk(patch, tmp_path, syncfs=syncfs)
        disk.log += [Op("mkdir", name="mail"), Op("sync directory")]
        assert len(disk.log) == START
        workload = Workload(disk, tmp_path / "mail", durability, keep_deleted)
        await workload.run()
    return disk, workload


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where what a crash left is made and recovered; in memory, as nobody needs that on disk."""
    for name in "fsync", "fdatasync":
        monkeypatch.setattr(os, name, lambda fd: None)
    monkeypatch.setattr(checkpoint, "sync_file_system", lambda path: True)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        yield Path(directory) / "crashed"


def crashed(
    disk: LyingDisk, point: int, scratch: Path, chance: random.Random, keep: float
) -> list[Any]:
    """Make in *scratch* what is left after a crash behind *point*; return what was known."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    return disk.crash(point, scratch, chance, keep)


WAYS = [("journal", True), ("journal", False), ("fsync", False)]


@pytest.mark.slow
@pytest.mark.parametrize(("durability", "syncfs"), WAYS)
@pytest_twisted.ensureDeferred
async def test_the_power_fails_behind_each_system_call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scratch: Path, durability: str, syncfs: bool
) -> None:
    """Nothing unsynced is left, all of it, or some; and some, in thousands of ways."""
    disk, workload = await worked(monkeypatch, tmp_path, durability, syncfs)
    chance = random.Random()
    points = [(point, keep) for point in range(START, len(disk.log) + 1)
              for keep in (0.0, 1.0, 0.5)]
    points += [(chance.randrange(START, len(disk.log) + 1), chance.random())
               for _ in range(SCHEDULES)]
    for point, keep in points:
        seed = chance.randrange(2**32)
        marks = crashed(disk, point, scratch, random.Random(seed), keep)
        recover(scratch, ANOTHER_BOOT)
        check(scratch / "mail", workload.sent, marks,
              (point, keep, seed, [op[:5] for op in disk.log[point - 1 : point]]))


@pytest.mark.parametrize(("durability", "syncfs"), WAYS)
@pytest_twisted.ensureDeferred
async def test_deleted_mail_is_kept_whenever_the_power_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scratch: Path, durability: str, syncfs: bool
) -> None:
    """What was deleted for good is kept, whole, once; and all else is as without it."""
    disk, workload = await worked(monkeypatch, tmp_path, durability, syncfs, keep_deleted=1)
    chance = random.Random()
    for point in range(START + chance.randrange(3), len(disk.log) + 1, 3):
        seed, keep = chance.randrange(2**32), chance.choice([0.0, 0.5])
        marks = crashed(disk, point, scratch, random.Random(seed), keep)
        recover(scratch, ANOTHER_BOOT)
        where = (point, keep, seed, [op[:5] for op in disk.log[point - 1 : point]])
        check(scratch / "mail", workload.sent, marks, where)
        for kind, ids, *names in marks:
            if kind == "deleted":
                kept = {path.name.split(".")[1]: path for path in (
                    scratch / "mail/example.org" / names[0] / "deleted").glob("*/*")}
                for id in ids:
                    assert id in kept, (where, "not kept", id)
                    assert kept[id].read_bytes() == workload.sent[id], (where, "half kept", id)


@pytest_twisted.ensureDeferred
async def test_a_process_is_killed_behind_each_system_call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scratch: Path
) -> None:
    """The kernel has all that was done, so nothing is replayed."""
    disk, workload = await worked(monkeypatch, tmp_path, "journal", True)
    for point in range(START, len(disk.log) + 1):
        marks = crashed(disk, point, scratch, random.Random(), 1)
        before = files(scratch)
        recover(scratch, this_boot())
        assert files(scratch) == before
        check(scratch / "mail", workload.sent, marks, point)


@pytest_twisted.ensureDeferred
async def test_the_power_fails_during_recovery(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scratch: Path
) -> None:
    """And again, during the recovery from that."""
    disk, workload = await worked(monkeypatch, tmp_path, "journal", True)
    chance = random.Random()
    for _ in range(100):
        point, keep = chance.randrange(START, len(disk.log) + 1), chance.random()
        marks = crashed(disk, point, scratch, chance, keep)
        again = disk
        for boot in (b"a second boot   ", b"a third boot    "):
            with monkeypatch.context() as patch:
                again = LyingDisk(patch, scratch, syncfs=True)
                again.adopt(scratch)
                start = len(again.log)
                recover(scratch, boot)
            crashed(again, chance.randrange(start, len(again.log) + 1), scratch, chance, keep)
        recover(scratch, ANOTHER_BOOT)
        check(scratch / "mail", workload.sent, marks, (point, keep))


@pytest_twisted.ensureDeferred
async def test_without_syncs_the_disk_does_lose_mail(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scratch: Path
) -> None:
    """So the tests here can fail."""
    disk, workload = await worked(monkeypatch, tmp_path, "none", True)
    failed = 0
    for point in range(START, len(disk.log), 10):
        marks = crashed(disk, point, scratch, random.Random(point), 0.5)
        try:
            check(scratch / "mail", workload.sent, marks, point)
        except AssertionError:
            failed += 1
    assert failed > 5
