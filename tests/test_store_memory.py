"""The stores for tests: in memory, and the one that fails where it is told to."""

from __future__ import annotations

import pytest
import pytest_twisted

from mailsvc.errors import (
    MailboxFull,
    MessageVanished,
    TemporaryFailure,
)
from mailsvc.mail import Account
from mailsvc.store.memory import POINTS, FailingStore, MemoryStore
from tests.stores import (
    ALICE,
    Sink,
    contents,
    deliver,
    read,
)

MESSAGE = b"Subject: test\r\n\r\none\r\ntwo\r\n"
OTHER = b"Subject: other\r\n\r\n" + b"x\r\n" * 30_000


@pytest_twisted.ensureDeferred
async def test_memory_tells_messages_of_one_id_apart() -> None:
    store = MemoryStore()
    for _ in range(2):
        await deliver(store, MESSAGE, id="SAME")
    assert await contents(store) == [MESSAGE, MESSAGE]
    maildrop = await store.open_maildrop(ALICE)
    await maildrop.update([1])
    await deliver(store, MESSAGE, id="SAME")
    assert await contents(store) == [MESSAGE, MESSAGE]


@pytest_twisted.ensureDeferred
async def test_a_message_taken_from_memory() -> None:
    store = MemoryStore()
    await deliver(store, MESSAGE)
    await deliver(store, OTHER)
    maildrop = await store.open_maildrop(ALICE)
    del store.mailboxes[ALICE.name].messages[maildrop.uidl(1)]
    sink = Sink()
    with pytest.raises(MessageVanished):
        await maildrop.read(1, sink)
    assert sink.blocks == []
    assert await read(maildrop, 2) == OTHER
    await maildrop.update([1, 2])
    assert await contents(store) == []


# ---- the store that fails ---------------------------------------------------


@pytest.mark.parametrize("point", POINTS)
@pytest_twisted.ensureDeferred
async def test_the_failing_store_fails_where_told(point: str) -> None:
    store = FailingStore(TemporaryFailure("no"), point)
    reached = []

    async def use() -> None:
        store.room(ALICE, 1)
        reached.append("room")
        delivery = store.begin((ALICE,), "ID1")
        reached.append("begin")
        try:
            delivery.write(MESSAGE)
            reached.append("write")
        finally:
            if point == "write":
                with pytest.raises(TemporaryFailure):
                    await delivery.commit()
        await delivery.commit()
        reached.append("commit")
        maildrop = await store.open_maildrop(ALICE)
        reached.append("open")
        try:
            await read(maildrop, 1)
            reached.append("read")
        finally:
            if point == "read":
                maildrop.release()
        await maildrop.update([1])
        reached.append("update")

    with pytest.raises(TemporaryFailure) as caught:
        await use()
    assert caught.value is store.failure
    assert reached == list(POINTS[: POINTS.index(point)])
    mailbox = store.mailboxes[ALICE.name]
    assert len(mailbox.messages) == (point in ("open", "read", "update"))
    assert not mailbox.locked


@pytest_twisted.ensureDeferred
async def test_the_failing_store_works_up_to_there() -> None:
    assert await contents(FailingStore(TemporaryFailure("no"), "room")) == []
    store = FailingStore(TemporaryFailure("no"), "update")
    await deliver(store, MESSAGE)
    assert await contents(store) == [MESSAGE]
    with pytest.raises(MailboxFull):
        store.room(Account("alice", "example.org", quota_messages=1), 1)
    store = FailingStore(TemporaryFailure("no"), "read")
    await deliver(store, MESSAGE)
    maildrop = await store.open_maildrop(ALICE)
    await maildrop.update([1])
    assert store.mailboxes[ALICE.name].messages == {}


def test_the_failing_store_knows_its_points() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        FailingStore(TemporaryFailure("no"), "nowhere")
