"""The way to another server, for an administrator who tries it: held to where it may lead.

What a page connects to, it connects to from inside: it must not become a way for whoever has got at
an administrator's browser to reach what only this machine reaches.  So the port must be one of
``console.send_ports``, and the address one of the Internet or of ``console.send_networks``.  The
name is looked up once, and what was looked at is what is connected to.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from typing import Any

import idna
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.threads import deferToThreadPool
from zope.interface import implementer

from mailsvc.console.call import Problem
from mailsvc.console.limits import ConsoleSettings
from mailsvc.networks import network_of

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

#: How long, in seconds, one address may take to answer.
_SECONDS = 15


def place(text: str, default: int) -> tuple[str, int]:
    """Host and port of ``host``, ``host:port`` or ``[2001:db8::1]:port``; raises Problem."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/@\[\]]+)(?::([0-9]{1,5}))?", text)
    if match is None or not 0 < int(match[2] or default) < 65_536:
        raise Problem("A server such as mx.example.org or mx.example.org:587 was expected.")
    host = match[1].strip("[]")
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True).decode()
        except idna.IDNAError:
            raise Problem("A server such as mx.example.org or mx.example.org:587 was expected."
                          ) from None
    return host, int(match[2] or default)


def permitted(address: IPAddress, settings: ConsoleSettings) -> bool:
    """Whether a server may be there."""
    if isinstance(address, ipaddress.IPv6Address):
        # What leads to an IPv4 address is judged as that: mapped, 6to4, NAT64 (RFC 6052).
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            address = inner
    return (address.is_global and not address.is_multicast) or any(
        address in network_of(each) for each in settings.send_networks)


_NAT64 = ipaddress.ip_network("64:ff9b::/96")


async def endpoint(host: str, port: int, settings: ConsoleSettings, reactor: Any) -> Abroad:
    """Connects to *host*; raises Problem when it may not be connected to, or is not known."""
    if settings.send_ports and port not in settings.send_ports:
        raise Problem("Port {port} may not be connected to from here; console.send_ports of the "
                      "configuration names those that may.", port=port)
    try:
        found = await deferToThreadPool(reactor, reactor.getThreadPool(), socket.getaddrinfo, host,
                                        port, 0, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise Problem("There is no host {host}.", host=host) from None
    addresses = [ipaddress.ip_address(str(each[4][0]).partition("%")[0]) for each in found]
    for address in addresses:
        if not permitted(address, settings):
            raise Problem("{host} is at {address}, which is no address of the Internet; "
                          "console.send_networks of the configuration names other networks that "
                          "may be connected to.", host=host, address=address)
    return Abroad(addresses[:6], port, reactor)


@implementer(IStreamClientEndpoint)
class Abroad:
    """Connects to the first of *addresses* that answers."""

    def __init__(self, addresses: list[IPAddress], port: int, reactor: Any) -> None:
        self._endpoints = [
            (TCP4ClientEndpoint if each.version == 4 else TCP6ClientEndpoint)(
                reactor, str(each), port, timeout=_SECONDS) for each in addresses]

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """As ``IStreamClientEndpoint.connect``."""
        async def one_by_one() -> IProtocol:
            *first, last = self._endpoints
            for each in first:
                try:
                    return await each.connect(factory)
                except Exception:
                    continue  # the last one says why
            return await last.connect(factory)

        return Deferred.fromCoroutine(one_by_one())
