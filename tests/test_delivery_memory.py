"""How much of the messages on their way is in memory, on a committer that the test holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed

from mailsvc.errors import MailFailure
from mailsvc.mail import new_id
from mailsvc.store.delivery import Buffers, Delivery
from mailsvc.store.maildir import MaildirSettings
from tests.stores import ALICE, blocks_of, contents, maildir_store, pause


@dataclasses.dataclass
class Message:
    """Blocks in memory."""

    id: str = "1"
    blocks: list[bytes] = dataclasses.field(default_factory=list)

    def add(self, block: bytes) -> None:
        self.blocks.append(block)

    def take(self) -> bytes:
        data = b"".join(self.blocks)
        self.blocks.clear()
        return data


class Disk:
    """Takes its time: *writing* is what is under way.

    :ivar spooled: octets that went to files before their message was complete.
    """

    def __init__(self) -> None:
        self.writing: list[tuple[int, Deferred[None]]] = []
        self.spooled = 0

    def spool(self, message: Message) -> Deferred[None]:
        self.spooled += sum(map(len, message.blocks))
        return self.commit(message)

    def commit(self, message: Message) -> Deferred[None]:
        self.writing.append((len(message.take()), Deferred()))
        return self.writing[-1][1]

    def discard(self, message: Message) -> Deferred[None]:
        assert not message.blocks
        return succeed(None)

    def advance(self, which: int, fails: bool = False) -> None:
        """One of the writings under way ends."""
        if self.writing:
            _, waiting = self.writing.pop(which % len(self.writing))
            if fails:
                waiting.errback(OSError(5, "broken"))
            else:
                waiting.callback(None)


def delivery(disk: Disk, buffers: Buffers) -> tuple[Message, Delivery]:
    message = Message()
    return message, Delivery(message, disk, buffers)


STEPS = st.lists(st.tuples(
    st.sampled_from(["write", "write", "write", "commit", "abort", "advance", "fail"]),
    st.integers(0, 4), st.integers(0, 20_000)), max_size=60)


@given(STEPS)
def test_what_is_counted_is_what_is_in_memory(steps: list[tuple[str, int, int]]) -> None:
    disk, buffers = Disk(), Buffers(10_000, 30_000)
    open_ = [delivery(disk, buffers) for _ in range(5)]
    begun = list(open_)
    committed: list[Deferred[None]] = []
    for step, which, octets in steps:
        if step == "write" and open_:
            room = open_[which % len(open_)][1].write(bytes(octets))
            if room is not None:
                room.addErrback(lambda failure: failure.trap(MailFailure) and None)
        elif step in ("commit", "abort") and open_:
            _, each = open_.pop(which % len(open_))
            if step == "commit":
                committed.append(each.commit().addErrback(
                    lambda failure: failure.trap(MailFailure) and None))
            else:
                each.abort()
        elif step in ("advance", "fail"):
            disk.advance(which, step == "fail")
        assert buffers.octets == sum(len(block) for message, _ in begun for block in message.blocks
                                     ) + sum(octets for octets, _ in disk.writing)
    for _, each in open_:
        each.abort()
    while disk.writing:
        disk.advance(0)
    assert buffers.octets == 0
    assert all(each.called for each in committed)


def test_a_message_goes_to_its_file_when_it_is_large() -> None:
    disk = Disk()
    _, one = delivery(disk, Buffers(10_000, 1_000_000))
    assert one.write(bytes(10_000)) is None
    assert disk.spooled == 0
    assert one.write(b"x") is None
    assert disk.spooled == 10_001
    # So much again while that is being written, and then the sender waits.
    assert one.write(bytes(10_000)) is None
    room = one.write(b"x")
    assert room is not None
    disk.advance(0)
    assert room.called
    assert disk.spooled == 20_002


def test_each_message_goes_to_its_file_when_there_is_too_much_of_all() -> None:
    disk, buffers = Disk(), Buffers(10_000, 30_000)
    others = [delivery(disk, buffers)[1] for _ in range(4)]
    for each in others[:3]:
        assert each.write(bytes(10_000)) is None
    assert disk.spooled == 0
    # What would hardly fill a block of the disk stays.
    assert others[3].write(bytes(4096)) is None
    assert disk.spooled == 0
    assert others[3].write(b"x") is None
    assert disk.spooled == 4097
    # Its sender waits for every further block until there is room.
    room = others[3].write(bytes(5000))
    assert room is not None
    assert others[0].write(b"") is None
    assert disk.spooled == 14_097
    for _ in range(3):
        disk.advance(0)
    assert room.called
    assert buffers.octets == 20_000


def test_a_commit_that_fails_leaves_nothing() -> None:
    buffers = Buffers(10_000, 30_000)

    class Broken(Disk):
        def commit(self, message: Message) -> Deferred[None]:
            return fail(OSError(28, "full"))

    _, one = delivery(Broken(), buffers)
    one.write(bytes(100))
    outcome = one.commit()
    assert buffers.octets == 0
    with pytest.raises(MailFailure):
        outcome.result.raiseException()  # type: ignore[attr-defined]
    outcome.addErrback(lambda _: None)


@pytest_twisted.ensureDeferred
async def test_a_store_without_memory_stores_all_the_same(tmp_path: Path) -> None:
    """Each by its file, those that are small as well."""
    store = maildir_store(tmp_path, memory_octets=0, durability="journal")
    store.start()
    sent = [b"Subject: %d\r\n\r\n" % n + b"text\r\n" * n * 400 for n in range(5)]
    try:
        opened = [store.begin((ALICE,), new_id()) for _ in sent]
        for each, message in zip(opened, sent, strict=True):
            for block in blocks_of(message, 1000):
                room = each.write(block)
                if room is not None:
                    await room
        for _ in range(100):
            if len(list(tmp_path.rglob("tmp/*"))) == 3:
                break
            await pause(0.05)
        assert len(list(tmp_path.rglob("tmp/*"))) == 3
        for each in opened:
            await each.commit()
        assert sorted(await contents(store)) == sorted(sent)
    finally:
        await store.stop()
    assert MaildirSettings().memory_octets >= 2**20
