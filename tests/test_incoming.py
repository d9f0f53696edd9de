"""A message on its way from a session to the store, through filters."""

from __future__ import annotations

import pytest
from twisted.internet.defer import Deferred, succeed

from mailsvc.errors import PermanentFailure
from mailsvc.mail import NULL_PATH, Account, Address, Envelope, Recipient
from mailsvc.smtp.incoming import Incoming

BOB, ACCOUNTS = Address("bob", "example.org"), (Account("bob", "example.org"),)


class Delivery:
    """Keeps what it is given; *pause* is what its writes return."""

    def __init__(self) -> None:
        self.blocks: list[bytes] = []
        self.pause: Deferred[None] | None = None
        self.outcome = "open"

    def write(self, block: bytes) -> Deferred[None] | None:
        self.blocks.append(block)
        return self.pause

    def commit(self) -> Deferred[None]:
        self.outcome = "committed"
        return succeed(None)

    def abort(self) -> None:
        self.outcome = "aborted"


class Holding:
    """Holds everything until the end, which it may give late."""

    def __init__(self, mark: bytes, late: bool = False) -> None:
        self._mark = mark
        self._held = b""
        self.end: Deferred[bytes] | None = Deferred() if late else None

    def feed(self, block: bytes) -> bytes:
        self._held += block
        return b""

    def finish(self) -> bytes | Deferred[bytes]:
        return self._mark + self._held if self.end is None else self.end


class Doubling:
    """Lets through each block twice."""

    def feed(self, block: bytes) -> bytes:
        return block * 2

    def finish(self) -> bytes:
        return b"."


def incoming(*filters: object) -> tuple[Incoming, Delivery]:
    delivery = Delivery()
    return Incoming(Envelope("ID", NULL_PATH), delivery, filters), delivery  # type: ignore[arg-type]


def test_blocks_pass_the_filters_in_order() -> None:
    message, delivery = incoming(Doubling(), Holding(b">"))
    assert message.put(b"header") is None
    assert message.write(b"a") is None
    assert message.write(b"b") is None
    assert delivery.blocks == [b"header"]
    done = Deferred.fromCoroutine(message.finish())
    assert done.called
    # What the first still had passes the second before that one ends.
    assert delivery.blocks == [b"header", b">aabb."]
    message.commit()
    assert delivery.outcome == "committed"


def test_an_end_that_comes_late_is_waited_for_and_so_is_a_pause() -> None:
    late = Holding(b">", late=True)
    message, delivery = incoming(late, Doubling())
    message.write(b"a")
    delivery.pause = Deferred()
    done = Deferred.fromCoroutine(message.finish())
    assert not done.called
    assert late.end is not None
    late.end.callback(b"x")
    assert delivery.blocks == [b"xx"]
    assert not done.called
    pause, delivery.pause = delivery.pause, None
    pause.callback(None)
    assert done.called
    assert delivery.blocks == [b"xx", b"."]


def test_a_filter_that_refuses() -> None:
    late = Holding(b"", late=True)
    message, delivery = incoming(late)
    done = Deferred.fromCoroutine(message.finish())
    assert late.end is not None
    late.end.errback(PermanentFailure("Not so"))
    caught: list[BaseException] = []
    done.addErrback(lambda failure: caught.append(failure.value))
    assert [str(error) for error in caught] == ["Not so"]
    message.abort()
    assert delivery.outcome == "aborted"


def test_without_filters_a_pause_is_handed_on() -> None:
    message, delivery = incoming()
    delivery.pause = Deferred()
    assert message.write(b"a") is delivery.pause


def test_the_beginning_is_kept_where_success_is_to_be_told() -> None:
    """As it is delivered, for the report (RFC 3461 §6.2), without our trace header."""
    envelope = Envelope("ID", NULL_PATH)
    for notify in ("FAILURE",), ("FAILURE", "SUCCESS"):
        envelope.recipients = [Recipient(BOB, ACCOUNTS, notify=notify)]
        message = Incoming(envelope, Delivery(), (Doubling(),))
        message.put(b"Received: x\r\n")
        message.write(b"a")
        message.write(b"b")
        assert Deferred.fromCoroutine(message.finish()).called
        assert message.header == (b"aabb." if "SUCCESS" in notify else b"")


def test_no_more_than_a_header_is_kept() -> None:
    envelope = Envelope("ID", NULL_PATH)
    envelope.recipients = [Recipient(BOB, ACCOUNTS, notify=("SUCCESS",))]
    message = Incoming(envelope, Delivery())
    for _ in range(100):
        message.write(b"x" * 65_536)
    assert 0 < len(message.header) < 2**20


@pytest.mark.parametrize(("blocks", "message_id"), [
    ([b"Message-ID: <1@x>\r\n\r\ntext\r\n"], "<1@x>"),
    ([b"Subject: x\r\nmessage-id :<1@x>\r\n\r\n"], "<1@x>"),
    ([b"Subject: x\r\nMESSAGE-ID:\r\n\t<1@x> (comment)\r\n\r\n"], "<1@x>"),
    ([b"Subject: x\r\n", b"Message-ID: <1@x>\r\n", b"\r\ntext\r\n"], "<1@x>"),
    ([b"Message-ID: <1@x>\r\nMessage-ID: <2@x>\r\n\r\n"], "<1@x>"),
    ([b"Message-ID: <\xff@x>\r\n\r\n"], "<\ufffd@x>"),
    # None, or not in the header.
    ([b"\r\nMessage-ID: <1@x>\r\n"], ""),
    ([b"Subject: x\r\n\r\nMessage-ID: <1@x>\r\n"], ""),
    ([b"Subject: x\r\n", b"\r\n", b"Message-ID: <1@x>\r\n"], ""),
    ([b"X-Message-ID: <1@x>\r\nSubject: Message-ID: <1@x>\r\n\r\n"], ""),
    ([b"Message-ID: 1@x\r\n\r\n"], ""),
    ([b"Message-ID: <" + b"1" * 2000 + b">\r\n\r\n"], ""),
    # No header is that long.
    ([b"X: " + b"x" * 70_000 + b"\r\n", b"Message-ID: <1@x>\r\n\r\n"], ""),
    ([], ""),
], ids=lambda value: repr(value)[:60])
def test_the_message_id_is_noted_in_passing(blocks: list[bytes], message_id: str) -> None:
    arriving, delivery = incoming()
    for block in blocks:
        arriving.write(block)
    assert arriving.envelope.message_id == message_id
    assert delivery.blocks == blocks


def test_a_message_id_that_a_filter_adds_is_noted_too() -> None:
    arriving, _ = incoming(Holding(b"Message-ID: <added@x>\r\n"))
    arriving.write(b"Subject: x\r\n\r\n")
    Deferred.fromCoroutine(arriving.finish())
    assert arriving.envelope.message_id == "<added@x>"


@pytest.mark.parametrize(("text", "below"), [
    (b" ; Thu, 1 Jan 1970 00:00:00 +0000\r\n", b"\r\n ; Thu, 1 Jan 1970 00:00:00 +0000\r\n"),
    (b"\tx\r\n", b"\r\n\tx\r\n"), (b"\r\n x\r\n", b"\r\n x\r\n"),
    (b"A: b\r\n c\r\n", b"A: b\r\n c\r\n"),
])
@pytest.mark.parametrize("octets", [1, 100])
def test_no_text_continues_the_field_above_it(text: bytes, below: bytes, octets: int) -> None:
    message, delivery = incoming()
    message.put(b"Received: x\r\n")
    for at in range(0, len(text), octets):
        message.write(text[at:at + octets])
    assert b"".join(delivery.blocks) == b"Received: x\r\n" + below
