"""Power losses at every system call of the queue: messages come, are tried, end; and recovery.

As ``test_power_loss.py``, whose disk this is.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults

from mailsvc.journal import Journal, this_boot
from mailsvc.mail import Address, new_id
from mailsvc.queue import control
from mailsvc.queue.message import QueuedMessage, QueuedRecipient
from mailsvc.queue.recovery import recover
from mailsvc.queue.service import Writer
from mailsvc.queue.spool import Draft, Spool
from mailsvc.store import checkpoint
from mailsvc.store.group import GroupCommitter
from mailsvc.store.threads import Threads
from tests.lying_disk import LyingDisk
from tests.stores import pause
from tests.test_power_loss import ANOTHER_BOOT, SCHEDULES, crashed, scratch

__all__ = ["scratch"]

#: How much of a journal there is: so little that it goes round several times.
MOST = 32 * 1024


def a_spool(root: Path, boot: bytes) -> tuple[Spool, Journal]:
    """The queue, as it is after the start of the machine called *boot*."""
    spool = Spool(root / "queue")
    return spool, Journal(spool.journal, most=MOST, boot=boot)


class Process:
    """One process with the queue."""

    def __init__(self, root: Path, disk: LyingDisk) -> None:
        # pytest-twisted installs it.
        from twisted.internet import reactor  # noqa: PLC0415

        self.disk = disk
        self.spool, journal = a_spool(root, this_boot())
        self.threads = Threads(reactor, 2, "queue")  # type: ignore[arg-type]
        self.committer = GroupCommitter(
            self.spool.root, Writer(self.spool, self.threads), self.spool,
            reactor, journal, backlog=1 << 20, seconds=0.1)  # type: ignore[arg-type]

    def start(self) -> None:
        self.committer.start(partial(recover, self.spool))
        self.spool.removed = self._removed
        self.threads.start()

    async def stop(self) -> None:
        await self.committer.stop()
        await self.threads.stop()

    def _removed(self, homes: Collection[bytes], places: Sequence[bytes],
                 told: Callable[[bool], object]) -> None:
        def heard(recorded: bool) -> None:
            told(recorded)
            self.disk.mark(("ended", [os.path.basename(place).decode() for place in places]))

        self.committer.removed(homes, places, heard)


class Workload:
    """Two processes: each takes messages, each tries what either took.

    :ivar sent: id -> the content of its file.
    """

    def __init__(self, disk: LyingDisk, root: Path) -> None:
        self.disk = disk
        self.sent: dict[str, bytes] = {}
        self.waiting: list[str] = []
        self.processes = [Process(root, disk) for _ in range(2)]
        for each in self.processes:
            each.start()

    async def accept(self, which: Process, octets: int, *, spooled: bool) -> None:
        to = Address("bob", "far.example")
        draft = Draft(QueuedMessage(new_id(), 1000.0, Address("alice", "a.example"),
                                    [QueuedRecipient(to, to)]))
        draft.add(b"x" * octets)
        self.sent[draft.id] = b"".join(draft.blocks)
        if spooled:
            await which.committer.spool(draft)
        await which.committer.commit(draft)
        self.disk.mark(("accepted", [draft.id]))
        self.waiting.append(draft.id)

    async def put_off(self, which: Process, ids: Sequence[str]) -> None:
        def save() -> None:
            messages = [which.spool.load(id) for id in ids]
            for each in messages:
                each.attempts += 1
            which.spool.save(*messages)
            self.disk.mark(("tried", [(each.id, each.attempts) for each in messages]))

        await which.threads.run(save)

    async def end(self, which: Process, ids: Sequence[str]) -> None:
        def end() -> None:
            messages = [which.spool.load(id) for id in ids]
            self.disk.mark(("ending", list(ids)))
            which.spool.end(*messages)

        for id in ids:
            self.waiting.remove(id)
        await which.threads.run(end)

    async def run(self) -> None:
        chance = random.Random(7)
        for turn in range(8):
            await gatherResults([Deferred.fromCoroutine(self.accept(
                chance.choice(self.processes), chance.choice([10, 600, 5000]),
                spooled=turn == 3 and number == 0)) for number in range(5)])
            await self.put_off(chance.choice(self.processes), chance.sample(self.waiting, 2))
            for process in self.processes:
                await self.end(process, chance.sample(self.waiting, 2))
            if turn == 4:
                await pause(0.3)
        for process in self.processes:
            await process.stop()


def recovered(root: Path, boot: bytes) -> Spool:
    """The queue as a start has it before it serves."""
    spool, journal = a_spool(root, boot)
    spool.make()
    journal.open(partial(recover, spool))
    journal.close()
    return spool


def check(spool: Spool, sent: dict[str, bytes], marks: Iterable[Any], where: object) -> None:
    known: dict[str, set[Any]] = {"accepted": set(), "ending": set(), "ended": set()}
    tried: dict[str, int] = {}
    for kind, what in marks:
        if kind == "tried":
            tried.update(what)
        else:
            known[kind].update(what)
    there = spool.ids()
    for id in there:
        assert (spool.root / "message" / id).read_bytes() == sent[id], (where, "half there", id)
        assert spool.load(id).attempts >= tried.get(id, 0), (where, "an attempt is forgotten", id)
    lost = known["accepted"] - known["ending"] - there
    assert not lost, (where, "lost", lost)
    assert not known["ended"] & there, (where, "there again", known["ended"] & there)


async def worked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, syncfs: bool
                 ) -> tuple[LyingDisk, Workload, int]:
    """A workload that is done, what it did to its disk, and from where on that counts."""
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_FEW", 2)
        disk = LyingDisk(patch, tmp_path, syncfs=syncfs)
        Spool(tmp_path / "queue").make()
        start = len(disk.log)
        workload = Workload(disk, tmp_path)
        await workload.run()
    return disk, workload, start


@pytest.mark.slow
@pytest.mark.parametrize("syncfs", [True, False])
@pytest_twisted.ensureDeferred
async def test_the_power_fails_behind_each_system_call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scratch: Path, syncfs: bool
) -> None:
    """Nothing unsynced is left, all of it, or some; and some, in hundreds of ways."""
    disk, workload, start = await worked(monkeypatch, tmp_path, syncfs=syncfs)
    chance = random.Random()
    points = [(point, keep) for point in range(start, len(disk.log) + 1)
              for keep in (0.0, 1.0, 0.5)]
    points += [(chance.randrange(start, len(disk.log) + 1), chance.random())
               for _ in range(SCHEDULES)]
    for point, keep in points:
        seed = chance.randrange(2**32)
        marks = crashed(disk, point, scratch, random.Random(seed), keep)
        check(recovered(scratch, ANOTHER_BOOT), workload.sent, marks,
              (point, keep, seed, [op[:5] for op in disk.log[point - 1 : point]]))


@pytest_twisted.ensureDeferred
async def test_a_process_is_killed_behind_each_system_call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scratch: Path
) -> None:
    """The kernel has all that was done, so nothing is replayed."""
    disk, workload, start = await worked(monkeypatch, tmp_path, syncfs=True)
    for point in range(start, len(disk.log) + 1):
        marks = crashed(disk, point, scratch, random.Random(), 1)
        there = {path.name for path in (scratch / "queue" / "message").iterdir()}
        spool = recovered(scratch, this_boot())
        assert spool.ids() == there
        check(spool, workload.sent, marks, point)


@pytest_twisted.ensureDeferred
async def test_the_power_fails_during_recovery(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scratch: Path
) -> None:
    """And again, during the recovery from that."""
    disk, workload, start = await worked(monkeypatch, tmp_path, syncfs=True)
    chance = random.Random()
    for _ in range(100):
        point, keep = chance.randrange(start, len(disk.log) + 1), chance.random()
        marks = crashed(disk, point, scratch, chance, keep)
        for boot in (b"a second boot   ", b"a third boot    "):
            with monkeypatch.context() as patch:
                again = LyingDisk(patch, scratch, syncfs=True)
                again.adopt(scratch)
                begun = len(again.log)
                recovered(scratch, boot)
            crashed(again, chance.randrange(begun, len(again.log) + 1), scratch, chance, keep)
        check(recovered(scratch, ANOTHER_BOOT), workload.sent, marks, (point, keep))


@pytest_twisted.ensureDeferred
async def test_without_the_journal_the_disk_does_lose_mail(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scratch: Path
) -> None:
    """So the tests here can fail."""
    disk, workload, start = await worked(monkeypatch, tmp_path, syncfs=True)
    failed = 0
    for point in range(start, len(disk.log), 10):
        marks = crashed(disk, point, scratch, random.Random(point), 0.5)
        try:
            check(Spool(scratch / "queue"), workload.sent, marks, point)
        except (AssertionError, ValueError):
            failed += 1
    assert failed > 5


@pytest_twisted.ensureDeferred
async def test_many_messages_are_durable_by_few_flushes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        disk = LyingDisk(patch, tmp_path, syncfs=True)
        Spool(tmp_path / "queue").make()
        workload = Workload(disk, tmp_path)
        [process, other] = workload.processes
        process.committer._journal.most = 1 << 20
        process.committer._seconds = 60
        start = len(disk.log)
        await gatherResults([Deferred.fromCoroutine(workload.accept(process, 600, spooled=False))
                             for _ in range(50)])
        flushes = sum(op.kind.startswith("sync") for op in disk.log[start:])
        assert 1 <= flushes <= 10
        await process.stop()
        await other.stop()


@pytest_twisted.ensureDeferred
async def test_what_is_dropped_without_the_service_does_not_come_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scratch: Path
) -> None:
    """It stands in the journal of a process that is not yet gone, and sends nothing."""
    with monkeypatch.context() as patch:
        disk = LyingDisk(patch, tmp_path, syncfs=True)
        Spool(tmp_path / "queue").make()
        workload = Workload(disk, tmp_path)
        [process, other] = workload.processes
        process.committer._seconds = 60
        await gatherResults([Deferred.fromCoroutine(workload.accept(process, 10, spooled=False))
                             for _ in range(3)])
        dropped, *kept = workload.waiting
        assert control.request(tmp_path / "queue", "drop", [dropped], "", 2000.0) == ([dropped], [])
        point = len(disk.log)
        await process.stop()
        await other.stop()
    for keep in 0.0, 0.5, 1.0:
        crashed(disk, point, scratch, random.Random(3), keep)
        assert recovered(scratch, ANOTHER_BOOT).ids() == set(kept)
