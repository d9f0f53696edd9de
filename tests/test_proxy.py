"""The PROXY protocol: headers octet by octet, and connections that are handed on whole."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogLevel, capturedLogs
from twisted.protocols.tls import TLSMemoryBIOFactory

from mailsvc.proxy import (
    MOST_OCTETS,
    Header,
    HeaderFault,
    ProxiedFactory,
    ProxySettings,
    crc32c,
    parse,
)
from tests.postoffice import HOSTNAME
from tests.test_smtp_tcp import (
    ENVELOPE,
    HELO,
    MESSAGE,
    Client,
    Office,
    certificate,
    in_thread,
    start_tls,
)

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V1 = b"PROXY TCP4 192.0.2.7 198.51.100.25 56324 25\r\n"
FOUR = ("192.0.2.7", 56_324), ("198.51.100.25", 25)
SIX = ("2001:db8::7", 56_324), ("2001:db8::25", 25)
FOUR_OCTETS = bytes([192, 0, 2, 7, 198, 51, 100, 25]) + struct.pack("!HH", 56_324, 25)
SIX_OCTETS = (socket.inet_pton(socket.AF_INET6, "2001:db8::7")
              + socket.inet_pton(socket.AF_INET6, "2001:db8::25") + struct.pack("!HH", 56_324, 25))


def v2(addresses: bytes = FOUR_OCTETS, *, command: int = 0x21, family: int = 0x11,
       vectors: Iterable[tuple[int, bytes]] = (), length: int | None = None) -> bytes:
    body = addresses + b"".join(
        struct.pack("!BH", kind, len(value)) + value for kind, value in vectors)
    return SIGNATURE + struct.pack(
        "!BBH", command, family, len(body) if length is None else length) + body


def checked(header: bytes) -> bytes:
    """*header* with its checksum filled in, which stands at the end as zeros."""
    assert header.endswith(b"\x03\x00\x04" + bytes(4))
    return header[:-4] + crc32c(header).to_bytes(4, "big")


HEADERS = {
    "v1 TCP4": (V1, *FOUR),
    "v1 TCP6": (b"PROXY TCP6 2001:db8::7 2001:DB8:0:0::25 56324 25\r\n", *SIX),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", None, None),
    "v1 unknown and more": (b"PROXY UNKNOWN ffff::1 what ever\r\n", None, None),
    "v1 longest": (b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n", None, None),
    "v2 IPv4": (v2(), *FOUR),
    "v2 IPv6": (v2(SIX_OCTETS, family=0x21), *SIX),
    "v2 Unix": (v2(b"/run/x".ljust(108, b"\0") * 2, family=0x31), None, None),
    "v2 unspecified": (v2(b"", family=0), None, None),
    "v2 local": (v2(b"", command=0x20, family=0), None, None),
    "v2 local with addresses": (v2(command=0x20), None, None),
    "v2 local with nonsense": (v2(b"\xff" * 9, command=0x20, family=0xff), None, None),
    "v2 with vectors": (v2(vectors=[(1, b"h2"), (4, bytes(100)), (0xEA, b""), (0x30, b"ns")]),
                        *FOUR),
    "v2 with a checksum": (checked(v2(vectors=[(2, b"mx"), (3, bytes(4))])), *FOUR),
    "v2 longest": (v2(vectors=[(4, bytes(4096 - 12 - 3))]), *FOUR),
}


@pytest.mark.parametrize(("header", "client", "server"), HEADERS.values(), ids=HEADERS)
def test_a_header(header: bytes, client: Any, server: Any) -> None:
    for place in range(len(header)):
        assert parse(header[:place]) is None
    expected = Header(client, server, len(header))
    assert parse(header) == expected
    assert parse(header + b"EHLO x\r\n") == expected
    assert parse(header + header) == expected


FAULTS = {
    "text": b"EHLO client.example\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01",
    "HTTP": b"GET / HTTP/1.1\r\n",
    "lower case": b"proxy TCP4 192.0.2.7 198.51.100.25 56324 25\r\n",
    "no CR": V1.replace(b"\r", b""),
    "a CR inside": V1.replace(b" 25\r", b"\r 25\r"),
    "two spaces": V1.replace(b"TCP4 ", b"TCP4  "),
    "a space behind": V1.replace(b"\r", b" \r"),
    "a tab": V1.replace(b"TCP4 ", b"TCP4\t"),
    "a missing port": V1.replace(b" 25\r", b"\r"),
    "one more": V1.replace(b"\r", b" 1\r"),
    "UDP": V1.replace(b"TCP4", b"UDP4"),
    "IPv6 as TCP4": b"PROXY TCP4 ::1 ::1 1 25\r\n",
    "IPv4 as TCP6": V1.replace(b"TCP4", b"TCP6"),
    "a zone": b"PROXY TCP6 fe80::1%eth0 ::1 1 25\r\n",
    "octal": V1.replace(b"192.0.2.7", b"192.0.02.7"),
    "short address": V1.replace(b"192.0.2.7", b"192.0.2"),
    "a name": V1.replace(b"192.0.2.7", b"localhost"),
    "a port too high": V1.replace(b"56324", b"65536"),
    "a negative port": V1.replace(b"56324", b"-1"),
    "a port with a zero": V1.replace(b"56324", b"056"),
    "a port in other digits": V1.replace(b"56324", "٣".encode()),
    "an endless line": b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    "no end": b"PROXY UNKNOWN " + b"x" * 100,
    "version 1 in binary": v2(command=0x11),
    "version 3": v2(command=0x31),
    "an unknown command": v2(command=0x22),
    "an unknown family": v2(family=0x41),
    "an unknown transport": v2(family=0x13),
    "datagrams": v2(family=0x12),
    "IPv4 without transport": v2(family=0x10),
    "a stream without family": v2(b"", family=0x01),
    "IPv6 too short": v2(family=0x21),
    "IPv4 too short": v2(FOUR_OCTETS[:-1]),
    "no addresses": v2(b""),
    "a vector cut short": v2(FOUR_OCTETS + b"\x04\x00\x05abcd"),
    "a vector's head cut short": v2(FOUR_OCTETS + b"\x04\x00"),
    "oversize": v2(length=4097),
    "the most oversize": v2(length=65_535),
    "a wrong checksum": v2(vectors=[(3, b"\x01\x02\x03\x04")]),
    "a checksum too short": v2(vectors=[(3, b"\x01\x02\x03")]),
    "a signature with a typing error": v2().replace(b"QUIT", b"QUIP"),
}


@pytest.mark.parametrize("data", FAULTS.values(), ids=FAULTS)
def test_a_fault(data: bytes) -> None:
    with pytest.raises(HeaderFault):
        parse(data)


def test_what_is_too_long_is_refused_before_it_has_come() -> None:
    with pytest.raises(HeaderFault, match="4113 octets"):
        parse(v2(length=4097)[:16])
    assert MOST_OCTETS == 4112


@pytest.mark.parametrize(("data", "checksum"), [
    # RFC 3720 appendix B.4, and the check value of the catalogue of CRCs.
    (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E),
    (b"123456789", 0xE3069283), (b"", 0)])
def test_crc32c(data: bytes, checksum: int) -> None:
    assert crc32c(data) == checksum


@given(st.binary(max_size=64), st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE,
                                                SIGNATURE + b"\x21\x11\x00"]))
def test_any_octets_are_a_header_or_not(data: bytes, beginning: bytes) -> None:
    try:
        header = parse(beginning + data)
    except HeaderFault:
        return
    assert header is None or 0 < header.octets <= len(beginning + data)


# ---- connections ----


class Noted(Factory):
    """Builds nothing; notes for whom it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def buildProtocol(self, addr: Any) -> None:
        self.asked.append(addr)


@pytest.mark.parametrize(("peer", "trusted"), [
    (IPv4Address("TCP", "192.0.2.1", 1), True),
    (IPv4Address("TCP", "192.0.3.1", 1), False),
    (IPv4Address("TCP", "::ffff:192.0.2.1", 1), True),
    (UNIXAddress(b"/run/mail"), False),
    (None, False)])
def test_whose_header_is_read(peer: Any, trusted: bool) -> None:
    wrapped = Noted()
    made = ProxiedFactory(wrapped, ProxySettings(networks=["192.0.2.0/24"]), Clock())
    assert (made.buildProtocol(peer) is not None) == trusted
    assert wrapped.asked == ([] if trusted else [peer])


def test_without_networks_nobody_is_trusted() -> None:
    wrapped = Noted()
    made = ProxiedFactory(wrapped, ProxySettings(), Clock())
    assert made.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1)) is None
    assert len(wrapped.asked) == 1


class Transport(StringTransport):
    protocol: Any = None


def begun(wrapped: Factory) -> tuple[ProxiedFactory, Clock, Transport]:
    clock = Clock()
    proxied = ProxiedFactory(wrapped, ProxySettings(networks=["192.168.1.0/24"]), clock)
    transport = Transport(peerAddress=IPv4Address("TCP", "192.168.1.1", 54_321))
    transport.protocol = proxied.buildProtocol(transport.getPeer())
    transport.protocol.makeConnection(transport)
    return proxied, clock, transport


def warnings(events: Iterable[Any]) -> list[str]:
    return [event["reason"] for event in events if event["log_level"] is LogLevel.warn]


@pytest.mark.parametrize("data", [b"", b"PROXY TCP4 192", SIGNATURE, v2()[:-1]])
def test_a_header_that_does_not_come_in_time(data: bytes) -> None:
    wrapped = Noted()
    proxied, clock, transport = begun(wrapped)
    with capturedLogs() as events:
        for octet in data:
            transport.protocol.dataReceived(bytes([octet]))
        clock.advance(4.9)
        assert not transport.disconnecting
        clock.advance(0.2)
    assert warnings(events) == ["time is up"]
    assert transport.disconnecting
    assert wrapped.asked == []
    assert proxied.waiting == set()


@pytest.mark.parametrize("data", FAULTS.values(), ids=FAULTS)
def test_a_header_that_is_none_closes_the_connection(data: bytes) -> None:
    wrapped = Noted()
    proxied, clock, transport = begun(wrapped)
    with capturedLogs() as events:
        transport.protocol.dataReceived(data)
        transport.protocol.dataReceived(V1)
    assert len(warnings(events)) == 1
    assert transport.disconnecting
    assert wrapped.asked == []
    assert (proxied.waiting, clock.getDelayedCalls()) == (set(), [])


@pytest.mark.parametrize(("data", "said"), [(b"", []), (v2()[:20], ["cut short"])])
def test_a_proxy_that_goes_away(data: bytes, said: list[str]) -> None:
    proxied, clock, transport = begun(Noted())
    with capturedLogs() as events:
        transport.protocol.dataReceived(data)
        transport.protocol.connectionLost()
    assert warnings(events) == said
    assert (proxied.waiting, clock.getDelayedCalls()) == (set(), [])


def test_a_client_that_the_factory_does_not_want() -> None:
    wrapped = Noted()
    _, clock, transport = begun(wrapped)
    transport.protocol.dataReceived(V1 + b"EHLO x\r\n")
    assert wrapped.asked == [IPv4Address("TCP", *FOUR[0])]
    assert transport.disconnecting
    assert clock.getDelayedCalls() == []


def test_when_the_last_listener_closes_nobody_is_waited_for() -> None:
    wrapped = Noted()
    proxied, clock, transport = begun(wrapped)
    proxied.doStart()
    assert wrapped.numPorts == 1
    proxied.doStop()
    assert wrapped.numPorts == 0
    assert transport.disconnecting
    assert clock.getDelayedCalls() == []


# ---- over sockets ----


@asynccontextmanager
async def behind_a_proxy(*, trusted: str = "127.0.0.0/8", tls: Any = None, implicit: bool = False,
                         **settings: Any) -> AsyncIterator[Office]:
    """An SMTP service whose listener takes PROXY headers; no error may be logged."""
    one = Office(settings, None if implicit else tls)
    inner: Any = TLSMemoryBIOFactory(tls, False, one.factory) if implicit else one.factory
    proxied = ProxiedFactory(inner, ProxySettings(networks=[trusted]), reactor)
    with capturedLogs() as events:
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(proxied)
        one.port = port.getHost().port
        try:
            yield one
        finally:
            await port.stopListening()
            await one.factory.connections.shut_down(2)
    assert [e for e in events if e["log_level"] > LogLevel.warn or "log_failure" in e] == []


@pytest.mark.parametrize(("header", "client"), [
    (V1, "192.0.2.7"), (v2(), "192.0.2.7"), (v2(SIX_OCTETS, family=0x21), "IPv6:2001:db8::7"),
    (b"PROXY UNKNOWN\r\n", "127.0.0.1"), (v2(command=0x20), "127.0.0.1")])
@pytest.mark.parametrize("cut", ["whole", "in octets"])
@pytest_twisted.ensureDeferred
async def test_the_client_is_whom_the_proxy_names(header: bytes, client: str, cut: str) -> None:
    async with behind_a_proxy() as one:
        def talk() -> list[bytes]:
            peer = Client(one.port)
            peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            said = header + HELO + ENVELOPE + MESSAGE
            for octet in said if cut == "in octets" else ():
                peer.say(bytes([octet]))
            if cut == "whole":
                peer.say(said)
            # Half-closed: everything is still answered.
            peer.socket.shutdown(socket.SHUT_WR)
            return peer.hear_all()

        heard = await in_thread(talk)
        assert [line[:3] for line in heard] == [b"220", b"250", b"250", b"250", b"354", b"250"]
        (delivery,) = one.store.mail
        assert f"([{client}])\r\n".encode() in delivery.message
        await one.empty()


@pytest_twisted.ensureDeferred
async def test_what_the_transport_can_is_not_lost() -> None:
    async with behind_a_proxy() as one:
        peer = await in_thread(Client, one.port)
        await in_thread(peer.say, v2())
        await in_thread(peer.hear, 1)
        (protocol,) = one.protocols
        transport = protocol.transport
        assert transport.getTcpNoDelay()
        assert transport.getHandle().fileno() > 0
        assert (transport.getPeer(), transport.getHost()) == (
            IPv4Address("TCP", *FOUR[0]), IPv4Address("TCP", *FOUR[1]))
        assert transport.protocol is protocol, "nothing lies between"
        assert transport.producer is protocol
        await in_thread(peer.reset)
        await one.empty()


@pytest_twisted.ensureDeferred
async def test_a_refusal_is_not_overtaken_by_a_reset() -> None:
    async with behind_a_proxy(errors=2) as one:
        def talk() -> list[bytes]:
            peer = Client(one.port)
            peer.say(V1 + b"WHAT\r\n" * 500_000)
            return peer.hear_all()

        assert [line[:3] for line in await in_thread(talk)] == [b"220", b"500", b"500", b"421"]
        await one.empty()


@pytest_twisted.ensureDeferred
async def test_limits_are_those_of_the_client_not_of_the_proxy() -> None:
    async with behind_a_proxy(connections_per_address=1) as one:
        def talk(header: bytes) -> tuple[Client, bytes]:
            peer = Client(one.port)
            peer.say(header)
            return peer, peer.hear(1)[0][:3]

        talks = [await in_thread(talk, V1.replace(b"2.7", b"2.%d" % number))
                 for number in (1, 2, 1)]
        assert [code for _, code in talks] == [b"220", b"220", b"421"]
        for peer, _ in talks:
            await in_thread(peer.reset)
        await one.empty()


@pytest.mark.parametrize("header", [V1, v2()])
@pytest_twisted.ensureDeferred
async def test_a_stranger_is_not_believed(header: bytes) -> None:
    # PITFALLS, SMTP row 15.
    async with behind_a_proxy(trusted="192.0.2.0/24", errors=20) as one:
        def talk() -> list[bytes]:
            peer = Client(one.port)
            assert peer.hear(1)[0].startswith(b"220"), "who is not trusted is not waited for"
            peer.say(header + b"\r\n" + HELO + ENVELOPE + MESSAGE + b"QUIT\r\n")
            return peer.hear_all()

        heard = await in_thread(talk)
        assert heard[0].startswith(b"50")
        assert heard[-1].startswith(b"221")
        for delivery in one.store.mail:
            assert b"([127.0.0.1])\r\n" in delivery.message
        await one.empty()


@pytest.mark.parametrize("second", [V1.replace(b"192.0.2.7", b"203.0.113.9"),
                                    v2(bytes([203, 0, 113, 9]) + FOUR_OCTETS[4:])])
@pytest_twisted.ensureDeferred
async def test_a_second_header_is_not_taken(second: bytes) -> None:
    # PITFALLS, SMTP row 15.
    async with behind_a_proxy(errors=20) as one:
        def talk() -> list[bytes]:
            peer = Client(one.port)
            peer.say(V1 + second + b"\r\n" + HELO + ENVELOPE + MESSAGE + b"QUIT\r\n")
            return peer.hear_all()

        heard = await in_thread(talk)
        assert heard[0].startswith(b"220")
        assert heard[1].startswith(b"50")
        (delivery,) = one.store.mail
        assert b"([192.0.2.7])\r\n" in delivery.message
        await one.empty()


@pytest.mark.parametrize("data", [HELO, v2()[:-1], SIGNATURE[:5], b"\x16\x03\x01\x02\x00"])
@pytest_twisted.ensureDeferred
async def test_a_proxy_without_a_header_is_closed_without_a_word(data: bytes) -> None:
    # PITFALLS, SMTP row 15: cut short.
    async with behind_a_proxy() as one:
        def talk() -> bytes:
            peer = Client(one.port)
            peer.say(data)
            try:
                peer.socket.shutdown(socket.SHUT_WR)
                return peer.socket.recv(100)
            except OSError as error:
                # Closed already, which the kernel says in one of two ways.
                assert error.errno in (errno.ECONNRESET, errno.ENOTCONN)
                return b""

        assert await in_thread(talk) == b""
        assert len(one.factory.connections) == 0


@pytest_twisted.ensureDeferred
async def test_starttls_behind_a_header() -> None:
    async with behind_a_proxy(tls=certificate()) as one:
        def talk() -> None:
            peer = Client(one.port)
            peer.say(V1 + b"EHLO client.example.net\r\n")
            assert b"250-STARTTLS" in peer.hear(1 + 10)
            peer.say(b"STARTTLS\r\n")
            peer.hear(1)
            start_tls(peer)
            peer.say(b"EHLO client.example.net\r\n" + ENVELOPE + MESSAGE + b"QUIT\r\n")
            assert peer.hear_all()[-1].startswith(b"221")

        await in_thread(talk)
        (delivery,) = one.store.mail
        assert b"([192.0.2.7])\r\n" in delivery.message
        assert b" with ESMTPS id " in delivery.message
        await one.empty()


@pytest.mark.parametrize("together", [False, True])
@pytest_twisted.ensureDeferred
async def test_tls_from_the_first_octet_behind_the_header(together: bool) -> None:
    async with behind_a_proxy(tls=certificate(), implicit=True) as one:
        def talk() -> None:
            peer = Client(one.port)
            if together:  # header and ClientHello in one segment
                peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
            peer.say(v2())
            start_tls(peer)
            peer.say(b"EHLO client.example.net\r\n" + ENVELOPE + MESSAGE + b"QUIT\r\n")
            assert peer.hear_all()[-1].startswith(b"221")

        await in_thread(talk)
        (delivery,) = one.store.mail
        assert f"by {HOSTNAME}".encode() in delivery.message
        assert b"([192.0.2.7])\r\n" in delivery.message
        assert b" with ESMTPS id " in delivery.message
        await one.empty()
