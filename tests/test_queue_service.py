"""mailsvc.queue.service: several processes on one queue, as two Queues with locks of their own."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import deferLater

from mailsvc.mail import Address, Envelope, Recipient, Remote
from mailsvc.queue.service import Queue
from mailsvc.queue.spool import Spool
from mailsvc.store.threads import Threads


class Noting:
    """A runner that sends nothing.

    :ivar taken: the messages it was told of.
    """

    def __init__(self) -> None:
        self.taken: list[str] = []

    def start(self) -> Deferred[None]:
        return succeed(None)

    def stop(self) -> Deferred[None]:
        return succeed(None)

    def take(self, ids: Collection[str]) -> None:
        self.taken += ids

    missed = take

    def abort(self) -> None:
        pass


def a_queue(root: Path) -> tuple[Queue, Noting]:
    noting: Any = Noting()
    queue = Queue(Spool(root), Threads(reactor, 2, "queue"), reactor)  # type: ignore[arg-type]
    queue.make_runner = lambda: noting
    queue.startService()
    return queue, noting


async def put(queue: Queue, id: str) -> None:
    to = Address("bob", "far.example")
    delivery = queue.begin(Envelope(id, Address("alice", "a.example"), recipients=[
        Recipient(to, (), (Remote(to),))]))
    delivery.write(b"Return-Path: <alice@a.example>\r\nReceived: x\r\n")
    delivery.write(b"Subject: x\r\n\r\n")
    await delivery.commit()


async def until(condition: Any) -> None:
    for _ in range(200):
        if condition():
            return
        await deferLater(reactor, 0.05)  # type: ignore[arg-type]
    pytest.fail("it did not come to be")


@pytest_twisted.ensureDeferred
async def test_one_sends_and_the_next_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailsvc.queue.service._LOOK_EVERY", 0.2)
    root = tmp_path / ("long" * 30) / "queue"
    root.parent.mkdir()
    first, sending = a_queue(root)
    other, waiting = a_queue(root)
    assert first.runner is not None and other.runner is None
    await put(other, "0A")
    await until(lambda: "0A" in sending.taken)
    assert first.spool.ids() == {"0A"} and waiting.taken == []
    with first.spool.open("0A") as (_, stream):
        # Return-Path is for who delivers in the end.
        assert stream.read() == b"Received: x\r\nSubject: x\r\n\r\n"
    await first.stopService()
    await until(lambda: other.runner is not None)
    await put(other, "0B")
    assert "0B" in waiting.taken
    await other.stopService()
