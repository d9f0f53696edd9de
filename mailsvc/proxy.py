"""The PROXY protocol, versions 1 and 2: a proxy in front of us tells whose connection it passes on.

:func:`parse` reads a header from bytes, without I/O.  :class:`ProxiedFactory` stands before the
factory of a listener.  A connection from a trusted network must begin with one header, within a
time; then the connection is handed on as it is, with the client's address and the one it called in
the place of the proxy's.  Nothing lies between any more: STARTTLS, half-closes, producers and
socket options are the transport's own.

**Promises.**  Who is not trusted is not listened to: his header is input like any other, which the
protocol refuses.  A second header is input, too.  What is malformed, cut short, too long or late
closes the connection with a line of log.

**What is taken.**  TCP over IPv4 and IPv6.  For ``LOCAL`` and ``UNKNOWN``, with which a proxy
speaks for itself, and for Unix sockets behind it, the address stays the proxy's.  A checksum
(CRC32C) is checked where it is given; all else that version 2 may carry is skipped, up to
:data:`MOST_OCTETS`.

**Limits.**  The header is in the clear, so TLS has to begin behind it: a ``ssl:`` endpoint cannot
be wrapped, but a factory that is wrapped in TLS can.

See https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt (sections named below).
"""

from __future__ import annotations

import functools
import ipaddress
import re
import struct
from dataclasses import dataclass
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailsvc.connections import client_address
from mailsvc.networks import address_of, network_of
from mailsvc.settings import at_least, networks, setting


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """``[proxy]``."""

    networks: list[str] = setting(
        [], "Networks of proxies.  Every connection from them must begin with a header of the "
        "PROXY protocol (HAProxy's send-proxy or send-proxy-v2), which says who the client is.",
        check=networks)
    header_seconds: float = setting(
        5, "Time for that header to arrive.", unit="seconds", check=at_least(0.1))


# ---- the header ---------------------------------------------------------------------------------

#: The longest header that is taken: the fixed part of version 2, addresses and what follows them.
MOST_OCTETS = 16 + 4096

_V1_MOST = 107  # §2.1
_V1 = re.compile(rb"PROXY (?:UNKNOWN(?: [^\r\n]*)?|(TCP[46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) "
                 rb"(0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4}))\r\n")
_V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_FIXED = 16
_LOCAL, _PROXY = 0x20, 0x21
_UNSPEC, _STREAM = 0, 1
#: Address family -> octets of its two addresses, ports included (§2.2).
_FAMILIES = {0: 0, 1: 12, 2: 36, 3: 216}
_CRC32C = 0x03


class HeaderFault(ValueError):
    """Not a header of the PROXY protocol, or not one that we take; its text is for the log."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a header says.

    :ivar client: address and port of who connected to the proxy; None when the proxy speaks for
        itself.
    :ivar server: what that one connected to, likewise.
    :ivar octets: the length of the header.
    """

    client: tuple[str, int] | None
    server: tuple[str, int] | None
    octets: int


def parse(data: bytes) -> Header | None:
    """The header that *data* begins with, or None when more octets are needed to tell.

    :raises HeaderFault: *data* does not begin with one.
    """
    if data[:5] == b"PROXY":
        return _parse_v1(data)
    if data[:12] == _V2_SIGNATURE:
        return _parse_v2(data)
    if b"PROXY".startswith(data) or _V2_SIGNATURE.startswith(data):
        return None
    raise HeaderFault("no PROXY header")


def _parse_v1(data: bytes) -> Header | None:
    end = data.find(b"\n", 0, _V1_MOST) + 1
    if not end:
        if len(data) >= _V1_MOST:
            raise HeaderFault("the line is too long")
        return None
    match = _V1.fullmatch(data, 0, end)
    if match is None:
        raise HeaderFault("malformed line")
    if match[1] is None:
        return Header(None, None, end)
    family = ipaddress.IPv4Address if match[1] == b"TCP4" else ipaddress.IPv6Address
    try:
        client, server = (str(address_of(family(match[place].decode()).packed)) for place in (2, 3))
    except ValueError:
        raise HeaderFault("malformed address") from None
    ports = int(match[4]), int(match[5])
    if max(ports) > 65_535:
        raise HeaderFault("no such port")
    return Header((client, ports[0]), (server, ports[1]), end)


def _parse_v2(data: bytes) -> Header | None:
    if len(data) < _V2_FIXED:
        return None
    command, family, transport = data[12], data[13] >> 4, data[13] & 15
    octets = _V2_FIXED + int.from_bytes(data[14:16], "big")
    if command not in (_LOCAL, _PROXY):
        raise HeaderFault(f"unknown version or command {command:#04x}")
    if octets > MOST_OCTETS:
        raise HeaderFault(f"a header of {octets} octets")
    if command == _PROXY:
        if family not in _FAMILIES or transport > 2:
            raise HeaderFault(f"unknown family or transport {data[13]:#04x}")
        if (family == 0) != (transport == _UNSPEC) or transport not in (_UNSPEC, _STREAM):
            raise HeaderFault(f"not a stream: {data[13]:#04x}")
        if octets < _V2_FIXED + _FAMILIES[family]:
            raise HeaderFault("too short for its addresses")
    if len(data) < octets:
        return None
    # §2.2: the addresses of LOCAL are to be ignored, whatever they are, and what follows with them.
    if command == _LOCAL:
        return Header(None, None, octets)
    header = data[:octets]
    _check_vectors(header, _V2_FIXED + _FAMILIES[family])
    if family == 1:
        source, destination, *ports = struct.unpack_from("!4s4sHH", header, _V2_FIXED)
    elif family == 2:
        source, destination, *ports = struct.unpack_from("!16s16sHH", header, _V2_FIXED)
    else:
        return Header(None, None, octets)
    client, server = (str(address_of(address)) for address in (source, destination))
    return Header((client, ports[0]), (server, ports[1]), octets)


def _check_vectors(header: bytes, place: int) -> None:
    """Walk over the type-length-value vectors from *place* on (§2.2.1 to 2.2.7)."""
    while place < len(header):
        if place + 3 > len(header):
            raise HeaderFault("a vector is cut short")
        kind, length = header[place], int.from_bytes(header[place + 1:place + 3], "big")
        value = place + 3
        place = value + length
        if place > len(header):
            raise HeaderFault("a vector is cut short")
        if kind == _CRC32C:
            if length != 4:
                raise HeaderFault("a checksum of a wrong length")
            # §2.2.4: over the whole header, with zeros where the checksum stands.
            if crc32c(header[:value] + bytes(4) + header[place:]) != int.from_bytes(
                    header[value:place], "big"):
                raise HeaderFault("the checksum is wrong")


@functools.cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for octet in range(256):
        value = octet
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


def crc32c(data: bytes) -> int:
    """The CRC-32C of *data* (RFC 3720 appendix B.4)."""
    table, value = _crc_table(), 0xFFFFFFFF
    for octet in data:
        value = value >> 8 ^ table[(value ^ octet) & 0xFF]
    return value ^ 0xFFFFFFFF


# ---- the connection -----------------------------------------------------------------------------


class _HeaderReader(Protocol):
    """The protocol of a proxy's connection until its header is whole."""

    factory: ProxiedFactory
    transport: Any
    _timer: IDelayedCall
    _data = b""

    def connectionMade(self) -> None:
        factory = self.factory
        self._timer = factory.clock.callLater(
            factory.settings.header_seconds, self.refuse, "time is up")
        factory.waiting.add(self)

    def dataReceived(self, data: bytes) -> None:
        if self not in self.factory.waiting:
            return
        self._data += data
        try:
            header = parse(self._data)
        except HeaderFault as fault:
            self.refuse(str(fault))
        else:
            if header is not None:
                self._end()
                self._hand_on(header)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self in self.factory.waiting:
            # A probe that says nothing at all is everyday business.
            level = self.factory.log.warn if self._data else self.factory.log.debug
            level("proxy {proxy} refused: {reason}", proxy=_text(self.transport.getPeer()),
                  reason="cut short")
        self._end()

    def refuse(self, reason: str) -> None:
        """Close the connection."""
        self._end()
        self.factory.log.warn("proxy {proxy} refused: {reason}",
                              proxy=_text(self.transport.getPeer()), reason=reason)
        self.transport.abortConnection()

    def _end(self) -> None:
        self.factory.waiting.discard(self)
        if self._timer.active():
            self._timer.cancel()

    def _hand_on(self, header: Header) -> None:
        transport, rest = self.transport, self._data[header.octets:]
        self._data = b""
        if header.client is not None and header.server is not None:
            client, server = _address(*header.client), _address(*header.server)
            # As startTLS does with getHandle: what asks the transport asks these.
            transport.getPeer = lambda: client
            transport.getHost = lambda: server
        protocol = self.factory.wrapped.buildProtocol(transport.getPeer())
        if protocol is None:
            transport.loseConnection()
            return
        transport.protocol = protocol
        protocol.makeConnection(transport)
        if rest:
            # Not to this protocol: TLS may have come between, or another may have taken over.
            transport.protocol.dataReceived(rest)


class ProxiedFactory(Factory):
    """Builds the protocols of *wrapped*, for connections of proxies once their header is read.

    :ivar waiting: the connections whose header is not whole.
    """

    noisy = False
    log = Logger("mailsvc.proxy")

    def __init__(self, wrapped: Factory, settings: ProxySettings, clock: IReactorTime) -> None:
        self.wrapped = wrapped
        self.settings = settings
        self.clock = clock
        self.waiting: set[_HeaderReader] = set()
        self._networks = [network_of(network) for network in settings.networks]

    def doStart(self) -> None:
        super().doStart()
        self.wrapped.doStart()

    def doStop(self) -> None:
        super().doStop()
        self.wrapped.doStop()

    def stopFactory(self) -> None:
        """No listener is left: nor do we wait for headers."""
        for reader in list(self.waiting):
            reader.refuse("service stopped")

    def buildProtocol(self, addr: IAddress | None) -> Any:
        if addr is None or not self._trusts(addr):
            return self.wrapped.buildProtocol(addr)
        reader = _HeaderReader()
        reader.factory = self
        return reader

    def _trusts(self, peer: IAddress) -> bool:
        client = client_address(peer)
        if not client:
            return False
        address = address_of(client)
        return any(address in network for network in self._networks)


def _address(host: str, port: int) -> IPv4Address | IPv6Address:
    return IPv6Address("TCP", host, port) if ":" in host else IPv4Address("TCP", host, port)


def _text(peer: IAddress) -> str:
    return f"{client_address(peer)} port {getattr(peer, 'port', 0)}"
