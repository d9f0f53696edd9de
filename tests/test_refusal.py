"""Clients that may not connect: told so, and nothing is kept of them."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs, formatEvent

from mailsvc.errors import EnhancedStatus, MailFailure, TemporaryFailure
from mailsvc.factory import Refusal
from tests.pop3 import Client
from tests.postoffice import Line

BANNED = "198.51.100.7"


def admit(client: str) -> MailFailure | None:
    return TemporaryFailure("Banned", EnhancedStatus(4, 7, 0)) if client == BANNED else None


@pytest.fixture(params=[Line, Client], ids=["smtp", "pop3"])
def factory(request: pytest.FixtureRequest) -> Any:
    made = request.param(host="198.51.100.8").factory
    made.connections.admit = admit
    return made


def connect(factory: Any, host: str) -> tuple[Any, StringTransport]:
    peer = IPv4Address("TCP", host, 40_000)
    transport = StringTransport(peerAddress=peer)
    protocol = factory.buildProtocol(peer)
    protocol.makeConnection(transport)
    return protocol, transport


def test_whoever_is_banned_hears_so_and_no_more(factory: Any) -> None:
    before = len(factory.connections)
    protocol, transport = connect(factory, BANNED)
    assert isinstance(protocol, Refusal)
    assert transport.value() in (b"421 4.7.0 mx.example.org Banned\r\n",
                                 b"-ERR [SYS/TEMP] Banned\r\n")
    assert transport.disconnecting
    protocol.dataReceived(b"NOOP\r\n")
    assert len(factory.connections) == before


def test_nobody_else_is_touched(factory: Any) -> None:
    protocol, transport = connect(factory, "198.51.100.9")
    assert not isinstance(protocol, Refusal)
    assert not transport.disconnecting


def test_it_is_told_once_a_minute(factory: Any) -> None:
    def lines() -> list[str]:
        with capturedLogs() as caught:
            for _ in range(5):
                connect(factory, BANNED)
        return [formatEvent(event) for event in caught]

    assert lines() == [f"refused client={BANNED}: Banned"]
    factory.clock.advance(59)
    assert lines() == []
    factory.clock.advance(1)
    assert lines() == [f"refused client={BANNED}: Banned"]


def test_what_is_remembered_of_them_is_bounded(factory: Any) -> None:
    factory.connections.admit = lambda client: TemporaryFailure("Banned", EnhancedStatus(4, 7, 0))
    with capturedLogs() as caught:
        for number in range(1001):
            connect(factory, f"192.0.{number // 250}.{number % 250}")
        connect(factory, "192.0.0.0")
    assert len(caught) == 1002
    assert len(factory._refused) == 1000
