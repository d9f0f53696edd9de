"""Maildrops for the tests of POP3: their answers are late, spoilt and produced as a test wants."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IConsumer
from zope.interface import implementer

from mailsvc.interfaces import IMaildrop


def message(octets: int, number: int = 1) -> bytes:
    """A message of so many octets, 30 or more; the *number* tells messages of one size apart."""
    head = b"Subject: %d\r\n\r\n" % number
    left = octets - len(head) - 2
    lines, rest = divmod(left, 40)
    body = b"".join(b"%038d\r\n" % n for n in range(lines)) + b"x" * rest
    return head + body + b"\r\n"


def top(text: bytes, lines: int) -> bytes:
    """What TOP asks for."""
    head, gap, body = text.partition(b"\r\n\r\n")
    return head + gap + b"".join(body.splitlines(keepends=True)[:lines])


class Sizes:
    """A maildrop of messages of so many octets, with no text."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sizes
        self.octets = sum(sizes)

    def uidl(self, number: int) -> bytes:
        return b"%070d" % number

    def uidls(self, first: int, end: int) -> list[bytes]:
        return list(map(self.uidl, range(first, end)))

    def text(self, number: int) -> None:
        return None


@implementer(IMaildrop)
class FakeMaildrop:
    """An open maildrop of *messages*.

    :ivar way: how ``read`` writes a message: "at once", "pull", "push", or "late pull" (a pull
        producer whose blocks come only when ``arrive`` is called); or "at hand", which ``text`` is.
    :ivar late: the operations ("read", "update") whose Deferred waits for ``release``.
    :ivar spoilt: what an operation fails with.
    :ivar happened: the operations, in order.
    """

    BLOCK = 1000

    def __init__(self, messages: Iterable[bytes] = ()) -> None:
        self.messages = list(messages)
        self.sizes = array("Q", map(len, self.messages))
        self.octets = sum(self.sizes)
        self.lost: Deferred[None] = Deferred()
        self.way = "at once"
        self.late: set[str] = set()
        self.spoilt: dict[str, Exception] = {}
        self.happened: list[Any] = []
        self.producers: list[FakeProducer] = []
        self._held: list[Callable[[], None]] = []

    def uidl(self, number: int) -> bytes:
        return b"uid-%d" % number

    def uidls(self, first: int, end: int) -> list[bytes]:
        return list(map(self.uidl, range(first, end)))

    def text(self, number: int) -> bytes | None:
        if self.way != "at hand":
            return None
        self.happened.append(("read", number, None))
        return self.messages[number - 1]

    def read(self, number: int, consumer: IConsumer, lines: int | None = None) -> Deferred[None]:
        self.happened.append(("read", number, lines))
        text = self.messages[number - 1]
        if lines is not None:
            text = top(text, lines)
        if self.way in ("at once", "at hand"):
            return self._answer("read", lambda: consumer.write(text))
        producer = FakeProducer(text, consumer, push=self.way == "push",
                                late=self.way == "late pull")
        self.producers.append(producer)
        consumer.registerProducer(producer, producer.push)
        return producer.done

    def update(self, deleted: Collection[int]) -> Deferred[None]:
        self.happened.append(("update", set(deleted)))
        return self._answer("update", lambda: None)

    def release(self) -> None:
        self.happened.append("release")

    def _answer(self, operation: str, work: Callable[[], None]) -> Deferred[None]:
        if operation not in self.late:
            failure = self.spoilt.get(operation)
            if failure is not None:
                return fail(failure)
            work()
            return succeed(None)
        done: Deferred[None] = Deferred(
            lambda _: self.happened.append(f"{operation} cancelled"))

        def finish() -> None:
            failure = self.spoilt.get(operation)
            if failure is not None:
                done.errback(failure)
            else:
                work()
                done.callback(None)

        self._held.append(finish)
        return done

    def go_on(self) -> None:
        """Give the oldest answer that is held back."""
        self._held.pop(0)()


class FakeProducer:
    """Writes *text* block by block.

    :ivar state: "producing", "paused" or "stopped".
    """

    def __init__(self, text: bytes, consumer: IConsumer, *, push: bool, late: bool) -> None:
        self.left = text
        self.consumer = consumer
        self.push = push
        self.late = late
        self.state = "producing"
        self.asked = 0
        self.done: Deferred[None] = Deferred(lambda _: self.stopProducing())

    def resumeProducing(self) -> None:
        self.state = "producing"
        self.asked += 1
        if not self.late and not self.push:
            self.arrive()

    def pauseProducing(self) -> None:
        self.state = "paused"

    def stopProducing(self) -> None:
        self.state = "stopped"

    def arrive(self, octets: int = FakeMaildrop.BLOCK) -> None:
        """Write the next block; after the last one, end."""
        block, self.left = self.left[:octets], self.left[octets:]
        self.consumer.write(block)
        if not self.left:
            self.consumer.unregisterProducer()
            self.done.callback(None)

    def fail(self, failure: Exception) -> None:
        """End amid the message."""
        self.consumer.unregisterProducer()
        self.done.errback(failure)
