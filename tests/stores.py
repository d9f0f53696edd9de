"""What tests of stores share: the stores there are, a consumer, short ways to put and get mail."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IPullProducer
from zope.interface import implementer

from mailsvc.mail import Account, new_id
from mailsvc.store.maildir import MaildirSettings, MaildirStore
from mailsvc.store.memory import MemoryStore

ALICE = Account("alice", "example.org")
BOB = Account("bob", "example.org")
CAROL = Account("carol", "example.net")


def maildir_store(root: Path, **settings: Any) -> MaildirStore:
    """A store of maildirs on the real reactor."""
    return MaildirStore(root, MaildirSettings(**settings), "mail.example.org", reactor)


#: Every store that keeps the contract: name -> what makes an empty one, given an empty directory.
FACTORIES: dict[str, Callable[[Path], Any]] = {
    "maildir": maildir_store,
    "maildir, synced one by one":
        lambda directory: maildir_store(directory, durability="fsync"),
    "maildir, not synced": lambda directory: maildir_store(directory, durability="none"),
    "maildir, all but the shortest to disk at once":
        lambda directory: maildir_store(directory, small_message_octets=16, threads=1),
    "memory": lambda directory: MemoryStore(),
}


@pytest_twisted.async_yield_fixture(params=FACTORIES.values(), ids=FACTORIES.keys())
async def every_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """Each store in turn, empty and started."""
    it = request.param(tmp_path)
    it.start()
    yield it
    await it.stop()


@implementer(IConsumer)
class Sink:
    """A consumer that keeps what it is given.

    As a transport does, it asks a pull producer when it is registered and after each write; with
    *patient* it asks only when told (:meth:`ask`).
    """

    def __init__(self, patient: bool = False) -> None:
        self.blocks: list[bytes] = []
        self.producer: IPullProducer | None = None
        self.registrations = 0
        self._patient = patient

    @property
    def data(self) -> bytes:
        return b"".join(self.blocks)

    def registerProducer(self, producer: IPullProducer, streaming: bool) -> None:
        assert self.producer is None
        assert not streaming
        self.producer = producer
        self.registrations += 1
        if not self._patient:
            self.ask()

    def unregisterProducer(self) -> None:
        assert self.producer is not None
        self.producer = None

    def write(self, data: bytes) -> None:
        assert data
        assert type(data) is bytes
        self.blocks.append(data)
        if self.producer is not None and not self._patient:
            reactor.callLater(0, self.ask)

    def ask(self) -> None:
        if self.producer is not None:
            self.producer.resumeProducing()


def pause(seconds: float = 0) -> Deferred[None]:
    """Fires after *seconds*, or in the reactor's next turn."""
    later: Deferred[None] = Deferred()
    reactor.callLater(seconds, later.callback, None)
    return later


async def write(delivery: Any, blocks: Iterable[bytes]) -> None:
    """Write *blocks*, waiting where the store wants it."""
    for block in blocks:
        waiting = delivery.write(block)
        if waiting is not None:
            await waiting


async def deliver(
    store: Any, message: bytes | Iterable[bytes], *accounts: Account, id: str = ""
) -> str:
    """Deliver *message*, in one block or cut as given; return its id."""
    id = id or new_id()
    delivery = store.begin(accounts or (ALICE,), id)
    await write(delivery, [message] if isinstance(message, bytes) else message)
    await delivery.commit()
    return id


async def read(maildrop: Any, number: int, lines: int | None = None) -> bytes:
    """A message as RETR or TOP sends it."""
    sink = Sink()
    assert await maildrop.read(number, sink, lines) is None
    assert sink.producer is None
    return sink.data


async def contents(store: Any, account: Account = ALICE) -> list[bytes]:
    """All messages of an account, as RETR sends them."""
    maildrop = await store.open_maildrop(account)
    try:
        return [await read(maildrop, number + 1) for number in range(len(maildrop.sizes))]
    finally:
        maildrop.release()


def blocks_of(message: bytes, size: int) -> list[bytes]:
    """*message* cut into blocks of *size* octets."""
    return [message[at : at + size] for at in range(0, len(message), size)]


# ---- maildirs from outside -----------------------------------------------------


def home(root: Path, account: Account = ALICE) -> Path:
    """The maildir of *account*, made if need be."""
    path = root / account.domain / account.local_part
    for name in ("tmp", "new", "cur"):
        (path / name).mkdir(parents=True, exist_ok=True)
    return path


def files(directory: Path) -> list[Path]:
    """The files of new/ and cur/ under *directory*, or of it, sorted."""
    return sorted(path for name in ("new", "cur") for path in directory.rglob(f"{name}/*"))


def put(directory: Path, name: str | bytes, content: bytes) -> Path:
    """A file as another program leaves it."""
    path = directory / os.fsdecode(name)
    path.write_bytes(content)
    return path


def age(directory: Path, seconds: float = 60) -> None:
    """Make new/ and cur/ look unchanged for that long."""
    when = time.time() - seconds
    for name in ("new", "cur"):
        os.utime(directory / name, (when, when))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
