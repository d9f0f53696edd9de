"""The open connections of one protocol: how many there may be, and how they end together.

Each protocol's factory owns one :class:`Connections`.  It counts connections in all and by client
address (:mod:`mailsvc.headcount`), refuses those over the limit or too soon after one another, and
at the end of the service lets the transactions in flight finish within a time limit.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.unix import Server as UnixServer

from mailsvc.errors import EnhancedStatus, MailFailure, TemporaryFailure
from mailsvc.headcount import Counting, Counts
from mailsvc.networks import address_of, network_of
from mailsvc.pace import Pace


class Connection(Protocol):
    """What is asked of a connection."""

    def finish(self) -> None:
        """Take no new transaction, and end when the present one has."""

    def abort(self) -> None:
        """End now."""


def client_address(peer: IAddress) -> str:
    """The IP address of *peer* as text, or "" when it has none (a Unix socket).

    An IPv4 client of an IPv6 socket gets its IPv4 address; a zone (``%eth0``) is left out.
    """
    host = getattr(peer, "host", "")
    if not isinstance(host, str):
        return ""
    host = host.partition("%")[0]
    if host.lower().startswith("::ffff:") and "." in host:
        return host[7:]
    return host


def peer_uid(transport: object) -> int | None:
    """The user on the other end of a Unix socket (SO_PEERCRED), or None when it is not one.

    Nor is it known behind a proxy or inside TLS: there the other end speaks for somebody else.
    In a user namespace, users that it does not map are all "nobody" (user_namespaces(7)).
    """
    if not isinstance(transport, UnixServer):
        return None
    credentials = transport.getHandle().getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(credentials)
    return int(uid)


#: pid, uid and gid (struct ucred of unix(7)).
_CREDENTIALS = struct.Struct("=iII")


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the kernel knows of a TCP connection, with the octets of TLS.

    :ivar received: octets that came in.
    :ivar sent: octets that the peer has acknowledged.
    :ivar idle: seconds since the last octet came in.
    """

    received: int
    sent: int
    idle: float


def traffic(transport: Any) -> Traffic | None:
    """What has passed by *transport*; None when that is no TCP connection."""
    try:
        info = transport.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    except (AttributeError, OSError):
        return None
    # struct tcp_info of linux/tcp.h: tcpi_last_data_recv, tcpi_bytes_acked, tcpi_bytes_received.
    if len(info) < 136:
        return None
    (idle,) = struct.unpack_from("=I", info, 52)
    sent, received = struct.unpack_from("=QQ", info, 120)
    return Traffic(received, sent, idle / 1000)


#: Of how many clients it is remembered how they are counted.
_KNOWN_SOURCES = 1024


class Connections:
    """The open connections of one protocol.

    :param most: how many there may be at once.
    :param most_per_address: how many from one IPv4 address or one IPv6 /64.
    :param exempt: networks in CIDR form whose clients only *most* binds.
    :param per_minute: how many may come from one address in a minute; as many may come at once.
        What is refused for this does not count.  0 for no limit.
    :param commands_per_minute: the same of commands, over all connections of an address.
    :param counts: the counts that the limits are held against; those of this process without.
    :ivar admit: why else a client may not connect, or None; to be asked first.
    :ivar look: is told of a connection when something is known of whose it is, while somebody
        watches (:mod:`mailsvc.watching`); None while nobody does.
    """

    look: Callable[..., object] | None = None

    def __init__(
        self, most: int, most_per_address: int, exempt: Iterable[str], clock: IReactorTime,
        per_minute: int = 0, admit: Callable[[str], MailFailure | None] = lambda client: None,
        commands_per_minute: int = 0,
        counts: Counting | None = None,
    ) -> None:
        self.admit = admit
        self._most = most
        self._most_per_address = most_per_address
        self._counts = counts or Counts()
        self._pace = Pace(per_minute, clock, self._counts.connections)
        self._commands = Pace(commands_per_minute, clock, self._counts.commands)
        self._exempt = [network_of(network) for network in exempt]
        self._source = lru_cache(_KNOWN_SOURCES)(self._source_of)
        self._clock = clock
        self._open: dict[Connection, str] = {}
        self._waiting: list[Deferred[None]] = []

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, connection: object) -> bool:
        return connection in self._open

    def __iter__(self) -> Iterator[Connection]:
        """Those that are open now."""
        return iter(list(self._open))

    def add(self, connection: Connection, client: str) -> None:
        """Count a new connection from *client*, an IP address or "".

        It is counted, and to be removed, even if this fails.

        :raises TemporaryFailure: there are too many, or too many from its address, at once or
            lately.
        """
        source = self._source(client)
        self._open[connection] = source
        total, of_source = self._counts.enter(source)
        if total > self._most:
            raise TemporaryFailure(
                "Too many connections; try again later", EnhancedStatus(4, 3, 2)
            )
        if of_source > self._most_per_address:
            raise TemporaryFailure(
                "Too many connections from your address; try again later", EnhancedStatus(4, 7, 0)
            )
        if source and self._pace.exceeds(source):
            raise TemporaryFailure(
                "Too many connections from your address within a minute; try again later",
                EnhancedStatus(4, 7, 0),
            )

    def exempts(self, client: str) -> bool:
        """Whether *client* is in an exempt network, or on a Unix socket."""
        return not self._source(client)

    def count_commands(self, client: str, commands: int) -> None:
        """*client*, which is not exempt, has given so many commands more.

        :raises TemporaryFailure: they are too many within a minute.
        """
        if self._commands.exceeds(self._source(client), commands):
            raise TemporaryFailure(
                "Too many commands from your address within a minute; try again later",
                EnhancedStatus(4, 7, 0),
            )

    def remove(self, connection: Connection) -> None:
        """The connection is lost.  Harmless when it was removed already."""
        if connection in self._open:
            self._counts.leave(self._open.pop(connection))
        if not self._open:
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                each.callback(None)

    def emptied(self) -> Deferred[None]:
        """Fires when there is none left."""
        emptied: Deferred[None] = Deferred()
        if self._open:
            self._waiting.append(emptied)
        else:
            emptied.callback(None)
        return emptied

    def shut_down(self, seconds: float) -> Deferred[None]:
        """Let every connection finish; abort what is left after *seconds*.

        :returns: a Deferred that fires when none is left.
        """
        emptied = self.emptied()
        if not self._open:
            return emptied
        deadline = self._clock.callLater(seconds, self.abort)

        def done(_: object) -> None:
            if deadline.active():
                deadline.cancel()

        emptied.addCallback(done)
        for connection in list(self._open):
            connection.finish()
        return emptied

    def abort(self) -> None:
        """Cut off every connection."""
        for connection in list(self._open):
            connection.abort()

    def _source_of(self, client: str) -> str:
        """What connections are counted by: an IPv4 address, an IPv6 /64, or "" for no count."""
        if not client:
            return ""
        address = address_of(client)
        if any(address in network for network in self._exempt):
            return ""
        if address.version == 6:
            # One host is given a whole /64 (RFC 6177), so counting addresses would count nothing.
            return str(ipaddress.ip_network((address, 64), strict=False))
        return client
