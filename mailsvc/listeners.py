"""Where the service listens: the kinds of listeners, and the endpoints of each.

An endpoint is bound first and opened when there is a factory to lead to, so that ports below 1024
can be taken while the process is still root.

Several processes may share what one of them has bound: that one pauses its listeners and forks, and
each child resumes them on a reactor of its own.  Each takes one connection at a time, and when it
has clearly more than another, leaves those that follow to the others for a moment: else a burst of
clients that stay could all be with the first that wakes up.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from mailsvc.transport import send_by_turns

_log = Logger("mailsvc")


class CannotStart(SystemExit, Exception):
    """The service cannot start; the text names the cause and the remedy.

    Left to itself it ends the process with that text and status 1, instead of a traceback.  That it
    is an Exception as well makes twistd remove its pid file and tell whoever waits for the daemon.
    """


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of listener.

    :ivar name: as in ``[listeners]``.
    :ivar protocol: "smtp", "pop3", "http" or "console".
    :ivar tls: whether TLS begins with the first octet (RFC 8314); endpoints name no certificate.
    """

    name: str
    protocol: str
    tls: bool = False


#: Every kind by its name, in the order of the configuration.
KINDS = {kind.name: kind for kind in (
    Kind("smtp", "smtp"),
    Kind("submission", "smtp"),
    Kind("submissions", "smtp", tls=True),
    Kind("lmtp", "smtp"),
    Kind("odmr", "smtp"),
    Kind("pop3", "pop3"),
    Kind("pop3s", "pop3", tls=True),
    Kind("http", "http"),
    Kind("acme", "http"),
    Kind("console", "console"),
    Kind("api", "console"),
)}


#: How many connections a process that listens alone takes at once, and up to 20 more.
_BATCH = 8
#: For how long, in seconds, connections are left to the others.
_TURN = 0.001


class Listener:
    """One endpoint of one kind.

    :ivar kind: what it is for.
    :ivar description: the endpoint string.
    :ivar optional: whether it is left out, with a line in the log, when its port is taken.
    """

    def __init__(self, kind: Kind, description: str, reactor: Any, *,
                 optional: bool = False) -> None:
        self.kind = kind
        self.description = description
        self.optional = optional
        self._entrance = _Entrance()
        self._port: Any = None  # IListeningPort, and what all of Twisted's have more
        self._resumed = False
        try:
            self._endpoint = serverFromString(reactor, description)
        except Exception as error:
            remedy = ("systemd has passed no such socket; start the service by "
                      "`systemctl start mailsvc.socket mailsvc.service`, or name an endpoint such "
                      "as tcp:2525" if description.startswith("systemd:")
                      else f"not a Twisted endpoint string such as tcp:2525 ({error})")
            raise CannotStart(f"{kind.name} on {description}: {remedy}") from error

    def __str__(self) -> str:
        return f"{self.kind.name} {self.address}"

    @property
    def for_mail(self) -> bool:
        """Whether the workers serve it; else it belongs to the process that watches them."""
        return self.kind.protocol != "http"

    @property
    def bound(self) -> bool:
        """Whether it has its port."""
        return self._port is not None

    @property
    def address(self) -> str:
        """Where it really listens: ``127.0.0.1:25``, ``[::]:25`` or a path."""
        host = self._port.getHost() if self._port is not None else None
        if isinstance(host, IPv4Address):
            return f"{host.host}:{host.port}"
        if isinstance(host, IPv6Address):
            return f"[{host.host}]:{host.port}"
        if isinstance(host, UNIXAddress) and host.name:
            return os.fsdecode(host.name)
        return str(host)

    @property
    def host_and_port(self) -> tuple[str, int] | None:
        """Where it really listens, when that is an IP address."""
        host = self._port.getHost() if self._port is not None else None
        return (host.host, host.port) if isinstance(host, IPv4Address | IPv6Address) else None

    def bind(self) -> Deferred[None]:
        """Take the port; fails with a :class:`CannotStart`."""
        if self._port is not None:
            return succeed(None)
        bound = maybeDeferred(self._endpoint.listen, self._entrance)
        return bound.addCallbacks(self._keep, self._explain)

    def open(self, factory: Factory) -> None:
        """Lead connections to *factory*; they got none so far."""
        self._entrance.factory = factory

    def pause(self) -> None:
        """Take no connection in this process; they wait for those that it forks."""
        if self._port is not None:
            self._port.stopReading()
            # As Twisted has it of sockets that it adopts: shutdown(2) would be felt by all who
            # listen on this one, in the middle of their accept(2).
            self._port._shouldShutdown = False

    def resume(self, reactor: Any, leads: Callable[[], bool]) -> None:
        """Listen in this process, which was forked from the one that bound the port.

        :param leads: whether it has clearly more connections than another that listens.
        """
        if self._port is None:
            return
        bound = self._port
        factory = bound.factory
        if isinstance(factory, TLSMemoryBIOFactory):  # an endpoint such as ssl:
            factory._clock = reactor
        port = self._port = reactor.adoptStreamPort(
            bound.fileno(), bound.addressFamily, factory)
        bound.socket.close()
        send_by_turns(port)

        def take_turns() -> None:
            if leads():
                port.stopReading()
                reactor.callLater(_TURN, go_on)

        def go_on() -> None:
            if self._port is port:
                port.startReading()

        self._entrance.lead_to(port, 0)
        self._entrance.take_turns = take_turns
        self._resumed = True

    def close(self) -> Deferred[None]:
        """Give the port back, if it is bound."""
        port, self._port = self._port, None
        if self._entrance.factory is not None:
            self._entrance.factory.stopFactory()
        if self._resumed and port is not None and port.addressFamily == socket.AF_UNIX:
            # Not stopListening: it would remove the name of a socket that others listen on.
            port.stopReading()
            port.socket.close()
            return succeed(None)
        closed = port.stopListening() if port is not None else None
        return succeed(None) if closed is None else closed

    def _keep(self, port: IListeningPort) -> None:
        send_by_turns(port)
        self._port = port
        self._entrance.lead_to(port, _BATCH)

    def _explain(self, failure: Failure) -> None:
        error, where = failure.value, self.description
        if isinstance(error, CannotListenError):
            if isinstance(error.port, int):
                host = f"[{error.interface}]" if ":" in error.interface else error.interface
                where = f"{host}:{error.port}" if host else f"port {error.port}"
            error = error.socketError
        code = getattr(error, "errno", None) or 0
        if self.optional and code == errno.EADDRINUSE:
            _log.info("{kind} is left out: another program has {where}", kind=self.kind.name,
                      where=where)
            return
        reason = f"{errno.errorcode[code]}, {os.strerror(code)}" if code else str(error)
        remedy = _REMEDIES.get(code, "")
        raise CannotStart(f"{self.kind.name} on {where}: {reason}{remedy}") from error


_REMEDIES = {
    errno.EADDRINUSE: "; another program has this port: `ss -ltnp` names it.  Stop it, or choose "
                      "another port",
    errno.EADDRNOTAVAIL: "; this machine has no such address: `ip address` lists those it has",
    errno.EACCES: "; ports below 1024 are for root: let systemd open them (etc/mailsvc.socket), "
                  "choose a port from 1024 up, or give Python the capability "
                  "(setcap cap_net_bind_service=+ep)",
}


class _Entrance(Factory):
    """What is bound before there is a factory.  No connection is accepted before there is.

    :ivar take_turns: to be called for each connection, if other processes listen as well.
    """

    noisy = False
    factory: Factory | None = None
    take_turns: Callable[[], None] | None = None
    _port: Any = None
    _batch = 0

    def lead_to(self, port: Any, batch: int) -> None:
        """Take, from now on, connections of *port*, some *batch* at once; 0 for one by one."""
        self._port, self._batch = port, batch
        port.numberAccepts = batch or 1

    def buildProtocol(self, addr: IAddress | None) -> Any:
        # A port takes 20 more at once each time that it got as many as it would, without end.  Who
        # is refused has a descriptor until the batch is over, and others wait for that.
        self._port.numberAccepts = min(self._port.numberAccepts, self._batch)
        if self.take_turns is not None:
            self.take_turns()
        return self.factory.buildProtocol(addr) if self.factory is not None else None
