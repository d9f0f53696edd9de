"""Power losses under a whole service: its processes, store, journal, queue and database.

It runs on a file system that logs what happens to it (``lying_mount.py``), with clients that send,
fetch and delete, and an exchanger that takes what is relayed.  Then the power fails behind some
thousand operations; each time the mail, the queue and the database are held against what had been
acknowledged by then, and a few times by starting the service on what is left.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from ctypes.util import find_library
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mailsvc.journal import Journal
from mailsvc.queue.recovery import recover as recover_queue
from mailsvc.queue.spool import Spool
from tests.bench.process import private_view
from tests.conftest import absent
from tests.disk_log import DiskLog
from tests.exchanger import Exchanger
from tests.lying_mount import LyingMount
from tests.relay import QUICK, until
from tests.service import Service, fetch, login, submit
from tests.stores import files
from tests.test_power_loss import ANOTHER_BOOT, recover

USERS = ("alice@a.example:secret", "bob@a.example:secret")
#: How many times the power fails, and how many of these the service is started again.
SCHEDULES = int(os.environ.get("MAILSVC_CRASHES", "300"))
STARTS = 4
#: What each client sends.
MESSAGES = 30

_NAME = re.compile(rb"\r\nSubject: (\S+)\r\n")


def text(name: str) -> bytes:
    """A message of its own, of some size."""
    lines = random.Random(name).choice([1, 10, 200, 4000])
    return (b"Subject: %s\r\n\r\n" % name.encode()
            + b"".join(b"%d of %s\r\n" % (n, name.encode()) for n in range(lines)) + b"end\r\n")


def name_of(message: bytes) -> str:
    match = _NAME.search(b"\r\n" + message)
    assert match, message[:300]
    return match[1].decode()


class Taken(list[Any]):
    """The messages of an exchanger: before each is acknowledged, that is marked."""

    def __init__(self, mark: Callable[[Any], None]) -> None:
        super().__init__()
        self._mark = mark

    def append(self, message: Any) -> None:
        self._mark(("taken", name_of(message[2]), ""))
        super().append(message)


def sends(service: Service, client: int, mark: Callable[[Any], None]) -> None:
    chance = random.Random(client)
    for number in range(MESSAGES):
        name = f"m{client}-{number}"
        to = chance.choice([("alice",), ("bob",), ("alice", "bob"), ("far",), ("bob", "far")])
        submit(service, text(name),
               tuple("x@far.example" if each == "far" else f"{each}@a.example" for each in to),
               reverse_path="alice@a.example")
        for each in to:
            mark(("queued" if each == "far" else "delivered", name, each))


def deletes(service: Service, user: str, mark: Callable[[Any], None],
            over: threading.Event) -> None:
    while not over.is_set():
        with login(service, f"{user}@a.example") as pop3:
            pop3.ask(b"LIST")
            numbers = [int(line.split()[0]) for line in pop3.multiline()][:5]
            names = []
            for number in numbers:
                pop3.ask(b"TOP %d 0" % number)
                names.append(name_of(b"\r\n".join(pop3.multiline())))
                pop3.ask(b"DELE %d" % number)
            for name in names:
                mark(("deleting", name, user))
            pop3.ask(b"QUIT")
            for name in names:
                mark(("deleted", name, user))
        over.wait(0.1)


def joined(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()


def ran(directory: Path, durability: str = "journal") -> DiskLog:
    """What a service under load did to its disk, until it was killed."""
    if os.geteuid() or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("a file system of one's own needs root and /dev/fuse")
    if not find_library("fuse3"):
        absent("libfuse3 is not installed; .ci/run names the package")
    with LyingMount(directory) as disk, Exchanger("127.0.0.1", 0) as there:
        there.messages = Taken(disk.mark)
        with serving(disk.mount / "data", there, durability=durability) as service:
            over = threading.Event()
            clients = [threading.Thread(target=sends, args=(service, n, disk.mark))
                       for n in range(6)]
            reader = threading.Thread(target=deletes, args=(service, "bob", disk.mark, over))
            for each in (*clients, reader):
                each.start()
            joined(clients)
            over.set()
            joined([reader])
            time.sleep(0.5)
            service.kill()
    return disk.disk


def serving(directory: Path, there: Exchanger, prefix: tuple[str, ...] = (),
            durability: str = "journal") -> Service:
    settings = (f"relay.smarthost=127.0.0.1:{there.port}", *QUICK[:2],
                "maildir.checkpoint_seconds=0.3", f"maildir.durability={durability}",
                'submission.trusted_networks=["127.0.0.0/8"]',
                "submission.messages_per_hour=0",
                "submission.recipients_per_hour=0")
    service = Service(
        directory, USERS,
        ("--workers", "2", "--submission", "127.0.0.1:0",
         *(argument for each in settings for argument in ("--set", each))), prefix=prefix)
    service.smtp = service.listeners["submission"]
    return service


class Known:
    """What was known when the power failed: name and user."""

    def __init__(self, marks: list[Any]) -> None:
        self.delivered, self.queued, self.taken, self.deleting, self.deleted = (
            {(name, user) for kind, name, user in marks if kind == which}
            for which in ("delivered", "queued", "taken", "deleting", "deleted"))

    def check_mail(self, found: list[tuple[str, str]], where: object) -> None:
        assert len(found) == len(set(found)), (where, "doubled")
        lost = self.delivered - self.deleting - set(found)
        assert not lost, (where, "lost", lost)
        assert not self.deleted & set(found), (where, "resurrected", self.deleted & set(found))

    def check_queue(self, found: set[str], where: object) -> None:
        lost = {name for name, _ in self.queued} - {name for name, _ in self.taken} - found
        assert not lost, (where, "lost from the queue", lost)


def whole(message: bytes) -> str:
    """The name of a message of which nothing is missing."""
    name = name_of(message)
    assert message.endswith(b"\r\n" + text(name)), ("half visible", name)
    return name


@pytest.fixture
def scratch() -> Iterator[Path]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        yield Path(directory) / "crashed"


def crashed(disk: DiskLog, point: int, scratch: Path, seed: int, keep: float) -> Known:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    return Known(disk.crash(point, scratch, random.Random(seed), keep))


def check(disk: DiskLog, point: int, scratch: Path, seed: int, keep: float) -> None:
    """What the power leaves that fails behind *point* is all that it is to be."""
    where = (point, seed, keep)
    known = crashed(disk, point, scratch, seed, keep)
    data = scratch / "data"
    recover(data, ANOTHER_BOOT)
    known.check_mail([(whole(path.read_bytes()), path.parent.parent.name)
                      for path in files(data / "mail")], where)
    spool = Spool(data / "queue")
    journal = Journal(spool.journal, boot=ANOTHER_BOOT)
    journal.open(partial(recover_queue, spool))
    journal.close()
    queued = set()
    for id in spool.ids():
        with spool.open(id) as (_, stream):
            queued.add(whole(stream.read()))
    known.check_queue(queued, where)
    for database in data.glob("*.sqlite"):
        with contextlib.closing(sqlite3.connect(database)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)], where


def first_mark(disk: DiskLog) -> int:
    return next(n for n, op in enumerate(disk.log) if op.kind == "mark")


@pytest.mark.slow
def test_the_power_fails_under_a_service(tmp_path: Path, scratch: Path) -> None:
    disk = ran(tmp_path)
    first, last, chance = first_mark(disk), len(disk.log), random.Random()
    for _ in range(SCHEDULES):
        check(disk, chance.randrange(first, last + 1), scratch, chance.randrange(2**32),
              chance.choice([0.0, 1.0, chance.random()]))

    boot = tmp_path / "boot_id"
    boot.write_text("11111111-2222-3333-4444-555555555555\n")
    for _ in range(STARTS):
        known = crashed(disk, chance.randrange(first, last + 1), scratch,
                        chance.randrange(2**32), chance.random())
        with Exchanger("127.0.0.1", 0) as there, serving(scratch / "data", there, tuple(
                private_view([], binds={"/proc/sys/kernel/random/boot_id": boot}))) as service:
            until(lambda: not Spool(scratch / "data/queue").ids(), service)
            known.check_queue({name_of(message[2]) for message in there.messages}, "started")
            known.check_mail([(whole(message), user) for user in ("alice", "bob")
                              for message in fetch(service, f"{user}@a.example")], "started")


@pytest.mark.slow
def test_without_syncs_a_service_does_lose_mail(tmp_path: Path, scratch: Path) -> None:
    """So the test above can fail."""
    disk = ran(tmp_path, "none")
    lost = 0
    for point in range(first_mark(disk), len(disk.log), max(1, len(disk.log) // 30)):
        try:
            check(disk, point, scratch, point, 0.5)
        except AssertionError:
            lost += 1
    assert lost > 5
