"""mailsvc.smtp.passage: octets between a customer whose role has turned and what sends its mail."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.testing import StringTransport

from mailsvc.conversation import Heir
from mailsvc.smtp.passage import Passage


class Line(StringTransport):
    """As those of sockets, which do not mind that nobody was registered."""

    def unregisterProducer(self) -> None:
        self.producer = None


class Customer:
    """A conversation that is over: its transport, and whose it is now.

    :ivar gone: whether the peer had closed its side before.
    """

    def __init__(self, *, gone: bool = False) -> None:
        self.transport = Line()
        self.heir: Heir | None = None
        self.closed = 0
        self.gone = gone

    def bequeath(self, heir: Heir) -> None:
        self.heir = heir
        if self.gone:
            heir.lost()

    def close(self) -> None:
        self.closed += 1


def joined(data: bytes = b"", *, gone: bool = False) -> tuple[Passage, Customer, Line]:
    passage, customer, queue = Passage(), Customer(gone=gone), Line()
    passage.makeConnection(queue)
    assert queue.producerState == "paused"
    conversation: Any = customer
    passage.join(conversation, data)
    return passage, customer, queue


def test_octets_pass_both_ways() -> None:
    passage, customer, queue = joined(b"220 far")
    passage.received(b".example\r\n")
    assert queue.value() == b"220 far.example\r\n"
    passage.dataReceived(b"EHLO us.example\r\n")
    assert customer.transport.value() == b"EHLO us.example\r\n"
    assert queue.producerState == "producing"


def test_each_side_is_read_as_fast_as_the_other_takes_it() -> None:
    _, customer, queue = joined()
    assert queue.producer is customer.transport and customer.transport.producer is queue


@pytest.mark.parametrize("times", [1, 2])
def test_a_customer_that_is_gone_ends_it_softly(times: int) -> None:
    passage, customer, queue = joined()
    passage.received(b"250 taken\r\n")
    for _ in range(times):
        passage.lost()
    assert queue.value() == b"250 taken\r\n" and queue.disconnecting and not queue.disconnected
    assert queue.producer is None
    # What comes after that is nobody's.
    passage.received(b"250 more\r\n")
    passage.dataReceived(b"MAIL FROM:<>\r\n")
    assert queue.value() == b"250 taken\r\n" and customer.transport.value() == b""


def test_a_customer_that_was_gone_already() -> None:
    _, customer, queue = joined(b"220 x\r\n", gone=True)
    assert queue.disconnecting and queue.value() == b"" and customer.transport.producer is None


def test_what_sends_is_gone() -> None:
    passage, customer, queue = joined()
    passage.connectionLost()
    assert customer.closed == 1
    passage.received(b"250 late\r\n")
    assert queue.value() == b""


def test_nobody_has_come() -> None:
    passage, queue = Passage(), Line()
    passage.makeConnection(queue)
    passage.dataReceived(b"EHLO\r\n")
    passage.connectionLost()
    passage.lost()
    assert queue.value() == b"" and not queue.disconnecting
