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
from twisted.logger import capturedLogs

from mailsvc.mail import Address, Envelope, Recipient, Remote
from mailsvc.names import DirectoryError
from mailsvc.queue.attempts import After
from mailsvc.queue.limits import QueueSettings
from mailsvc.queue.runner import Runner
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

    def compare(self, ids: Collection[str]) -> tuple[list[str], list[str]]:
        return list(ids), []

    def missed(self, ids: Collection[str], gone: Collection[str]) -> None:
        self.take(ids)

    def abort(self) -> None:
        pass


class Trying:
    """Attempts that end when the test says so, by ``under_way``.

    :ivar ended: how it was told to end.
    """

    def __init__(self) -> None:
        self.under_way: dict[str, Deferred[After]] = {}
        self.ended: list[str] = []

    def __len__(self) -> int:
        return sum(not each.called for each in self.under_way.values())

    def start(self, *, leading: bool) -> None:
        self.leading = leading

    def begin(self, id: str) -> Deferred[After]:
        done = self.under_way[id] = Deferred()
        return done

    def stop(self) -> Deferred[None]:
        self.ended.append("stop")
        return succeed(None)

    def abort(self) -> None:
        self.ended.append("abort")


def a_queue(root: Path) -> tuple[Queue, Noting]:
    noting: Any = Noting()
    queue = Queue(Spool(root), Threads(reactor, 2, "queue"), reactor)  # type: ignore[arg-type]
    queue.make_runner = lambda: noting
    queue.startService()
    return queue, noting


def one_of_several(root: Path, senders: int = 2) -> tuple[Queue, list[Any]]:
    """A queue that sends and helps; what tries in it, one for each time that it began to."""
    made: list[Any] = []
    queue = Queue(Spool(root), Threads(reactor, 2, "queue"), reactor)  # type: ignore[arg-type]

    def attempts() -> Any:
        made.append(Trying())
        return made[-1]

    queue.make_runner = lambda: Runner(queue.spool, queue.threads, attempts(), reactor, senders)
    queue.make_attempts = attempts if senders > 1 else None
    queue.startService()
    return queue, made


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


@pytest_twisted.ensureDeferred
async def test_another_helps_when_there_is_much_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailsvc.queue.runner._ALONE", 2)
    first, (own,) = one_of_several(tmp_path / "queue")
    other, helping = one_of_several(tmp_path / "queue")
    runner = first.runner
    assert runner is not None and own.leading
    await until(lambda: runner._helpers)
    runner.take(["0A", "0B"])
    assert set(own.under_way) == {"0A", "0B"}
    # Whoever has less to do; this one has as much at most.
    runner.take(["0C", "0D", "0E", "0F"])
    await until(lambda: helping and len(helping[0].under_way) == 3)
    assert not helping[0].leading and len(own) == 3 and len(runner) == 6
    theirs = sorted(helping[0].under_way)
    for id, after in zip(theirs, (After(None), After(None, held=True), After(5e9, priority=3)),
                         strict=True):
        helping[0].under_way[id].callback(after)
    await until(lambda: len(runner) == 4)
    # The last is due later, the held one nobody waits for.
    assert runner._due == {theirs[2]: 5e9} and runner._priorities == {theirs[2]: 3}
    assert runner._held == {theirs[1]}
    for done in own.under_way.values():
        done.callback(After(None))
    assert len(runner) == 1
    await first.stopService()
    await other.stopService()
    assert own.ended == ["stop"] and helping[0].ended[-1] == "abort"


@pytest_twisted.ensureDeferred
async def test_what_a_helper_had_is_tried_again_when_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailsvc.queue.runner._ALONE", 0)
    first, (own,) = one_of_several(tmp_path / "queue")
    other, helping = one_of_several(tmp_path / "queue")
    runner = first.runner
    assert runner is not None
    await until(lambda: runner._helpers)
    runner.take(["0A", "0B"])
    await until(lambda: helping and helping[0].under_way)
    (id,) = helping[0].under_way
    other._teller._transport.abortConnection()
    await until(lambda: id in own.under_way)
    # And it has stopped, lest it go twice.
    assert helping[0].ended == ["abort"]
    # It helps again, with what it has begun since.
    await until(lambda: runner._helpers)
    runner.take(["0C", "0D"])
    # Each is begun by a line of its own.
    await until(lambda: len(helping) == 2 and (
        len(own.under_way) + len(helping[1].under_way)) == 4)
    assert helping[1].under_way
    for trying in own, helping[1]:
        for done in trying.under_way.values():
            done.callback(After(None))
    await until(lambda: not len(runner))
    await first.stopService()
    await other.stopService()


@pytest_twisted.ensureDeferred
async def test_who_leaves_ends_what_it_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailsvc.queue.runner._ALONE", 0)
    first, (own,) = one_of_several(tmp_path / "queue")
    other, helping = one_of_several(tmp_path / "queue")
    runner = first.runner
    assert runner is not None
    await until(lambda: runner._helpers)
    runner.take(["0A", "0B"])
    await until(lambda: helping and helping[0].under_way)
    other.hand_over()
    await until(lambda: not runner._helpers)
    assert helping[0].ended == ["stop"] and len(runner) == 2
    runner.take(["0C"])
    assert "0C" in own.under_way
    # It still tells what came of it, and of what is new.
    for done in helping[0].under_way.values():
        done.callback(After(None))
    await until(lambda: len(runner) == 2)
    await put(other, "0D")
    await until(lambda: "0D" in own.under_way)
    # The one that sends ends: who helps is told.
    third, more = one_of_several(tmp_path / "queue")
    await until(lambda: runner._helpers)
    runner.take(["0E", "0F", "0G", "0H", "0I"])
    await until(lambda: more and more[0].under_way)
    stopped = first.stopService()
    await until(lambda: more[0].ended == ["stop"])
    for trying in own, more[0]:
        for done in trying.under_way.values():
            done.called or done.callback(After(None))
    await stopped
    await until(lambda: third.runner is not None)
    await third.stopService()
    await other.stopService()


@pytest_twisted.ensureDeferred
async def test_no_more_than_may_send_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailsvc.queue.runner._ALONE", 0)
    first, (own,) = one_of_several(tmp_path / "queue")
    others = [one_of_several(tmp_path / "queue") for _ in range(2)]
    runner = first.runner
    assert runner is not None
    await until(lambda: len(runner._helpers) == 2)
    runner.take([f"0{letter}" for letter in "ABCDEF"])
    assert len(own) == 3
    await until(lambda: sorted(len(helping) for _, helping in others) == [0, 1])
    for trying in own, *(each for _, helping in others for each in helping):
        await until(lambda trying=trying: len(trying) == 3)
        for done in trying.under_way.values():
            done.callback(After(None))
    for each in first, *(other for other, _ in others):
        await each.stopService()


def test_bounds_are_divided_among_those_that_send() -> None:
    for processes, settings, senders in (
            (1, QueueSettings(), 1), (2, QueueSettings(), 2), (8, QueueSettings(), 5),
            (2, QueueSettings(connections_per_destination=3), 1),
            (4, QueueSettings(connections=7), 3), (2, QueueSettings(messages_per_minute=6), 1)):
        assert settings.senders(processes) == senders
        share = settings.share(senders)
        assert 1 <= share.connections * senders <= settings.connections
        assert 1 <= share.connections_per_destination * senders <= (
            settings.connections_per_destination)


@pytest_twisted.ensureDeferred
async def test_who_cannot_help_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailsvc.queue.runner._ALONE", 0)
    first, (own,) = one_of_several(tmp_path / "queue")
    runner = first.runner
    assert runner is not None
    other, _ = one_of_several(tmp_path / "queue")

    def broken() -> Any:
        raise DirectoryError("state.sqlite cannot be read")

    other._teller.make_attempts = broken
    with capturedLogs() as logged:
        await until(lambda: runner._helpers)
        runner.take(["0A", "0B"])
        await until(lambda: {"0A", "0B"} == own.under_way.keys())
    assert not runner._helpers
    assert [each["log_format"] for each in logged if "log_failure" in each] == [
        "this process cannot help to send"]
    for done in own.under_way.values():
        done.callback(After(None))
    await first.stopService()
    await other.stopService()
