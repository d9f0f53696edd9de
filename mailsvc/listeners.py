"""Where the service listens: the kinds of listeners, and the endpoints of each.

An endpoint is bound first and opened when there is a factory to lead to, so that ports below 1024
can be taken while the process is still root.

Several processes may share what one of them has bound: that one pauses its listeners and forks, and
each child resumes them on a reactor of its own.  Each takes one connection at a time, and when it
has clearly more than another, leaves those that follow to the others for a moment: else a burst of
clients that stay could all be with the first that wakes up.

What another program has bound can be inherited (:mod:`mailsvc.succession`).  It belongs to both
then, until that one lets go of it: who closes it leaves the other's alone.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.protocol import Factory
from twisted.internet.unix import Port as UNIXPort
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.python.lockfile import FilesystemLock

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
    :ivar held: whether it takes no connection until :meth:`admit`; they wait.
    :param inherited: a descriptor of its socket, which another program has bound.
    """

    def __init__(self, kind: Kind, description: str, reactor: Any, *,
                 optional: bool = False, inherited: int | None = None) -> None:
        self.kind = kind
        self.description = description
        self.optional = optional
        self._entrance = _Entrance()
        self._port: Any = None  # IListeningPort, and what all of Twisted's have more
        self.held = False
        #: Whether others have the socket, too.
        self._shared = inherited is not None
        try:
            self._endpoint = serverFromString(reactor, description) if inherited is None else (
                serverFromString(_Adopting(reactor, inherited), _SYSTEMD.sub("tcp:0", description)))
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

    @property
    def socket(self) -> socket.socket | None:
        """Its socket, if it is bound."""
        return self._port.socket if self._port is not None else None

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

    def hold(self) -> None:
        """Take no connection in this process before :meth:`admit`."""
        self.held = True
        if self._port is not None:
            self._port.stopReading()

    def admit(self) -> None:
        """Take connections."""
        if self.held and self._port is not None:
            self._port.startReading()
        self.held = False

    def share(self) -> None:
        """Another program has the socket, too, and its name is that one's from now on."""
        self._shared = True
        if self._port is not None:
            self._port._shouldShutdown = False

    def own(self) -> None:
        """The name of the socket is ours, which the program that bound it leaves behind."""
        self._shared = False
        port = self._port
        if isinstance(port, UNIXPort) and port.wantPID and port.lockFile is None:
            # Whoever binds the name next must not find the pid of a process that is gone there, or
            # of one that has got the number since.
            lock = FilesystemLock(port._bindPath + b".lock")
            with suppress(FileNotFoundError):
                os.unlink(lock.name + b".new")
            os.symlink(str(os.getpid()), lock.name + b".new")
            os.rename(lock.name + b".new", lock.name)
            lock.locked, port.lockFile = True, lock

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
        port = self._port = (
            _adopt_unix(reactor, bound.fileno(), bound._bindPath, factory, bound.backlog,
                        bound.mode)
            if isinstance(bound, UNIXPort) else
            reactor.adoptStreamPort(bound.fileno(), bound.addressFamily, factory))
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
        self._shared = True

    def close(self) -> Deferred[None]:
        """Give the port back, if it is bound."""
        port, self._port = self._port, None
        if self._entrance.factory is not None:
            self._entrance.factory.stopFactory()
        if self._shared and port is not None and port.addressFamily == socket.AF_UNIX:
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
        if self.held:
            self.hold()

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
        remedy = _REMEDIES.get(code, "; choose another endpoint, or see to that")
        raise CannotStart(f"{self.kind.name} on {where}: {reason}{remedy}") from error


_REMEDIES = {
    errno.EADDRINUSE: "; another program has this port: `ss -ltnp` names it.  Stop it, or choose "
                      "another port",
    errno.EADDRNOTAVAIL: "; this machine has no such address: `ip address` lists those it has",
    errno.EACCES: "; ports below 1024 are for root: let systemd open them (etc/mailsvc.socket), "
                  "choose a port from 1024 up, or give Python the capability "
                  "(setcap cap_net_bind_service=+ep)",
}


#: What an endpoint that systemd passes is called, in an endpoint string.
_SYSTEMD = re.compile(r"\bsystemd(:(domain|index|name)=[^:]*)+")


class _Adopting:
    """A reactor for one endpoint, which adopts the socket *fd* where that would bind one."""

    def __init__(self, reactor: Any, fd: int) -> None:
        self._reactor = reactor
        self._fd = fd

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        bound = socket.socket(fileno=self._fd)
        try:
            return self._reactor.adoptStreamPort(self._fd, bound.family, factory)
        finally:
            bound.close()

    def listenSSL(self, port: int, factory: Any, context: Any, backlog: int = 50,
                  interface: str = "") -> Any:
        return self.listenTCP(port, TLSMemoryBIOFactory(context, False, factory))

    def listenUNIX(self, address: str, factory: Any, backlog: int = 50, mode: int = 0o666,
                   wantPID: bool = False) -> Any:
        try:
            port = _adopt_unix(self._reactor, self._fd, address, factory, backlog, mode)
        finally:
            os.close(self._fd)
        port.wantPID = wantPID
        return port


def _adopt_unix(reactor: Any, fd: int, path: Any, factory: Any, backlog: int, mode: int) -> Any:
    """As ``adoptStreamPort``, which would open the socket to everybody."""
    port = UNIXPort(path, factory, backlog, mode, reactor)
    port._preexistingSocket = socket.fromfd(fd, socket.AF_UNIX, socket.SOCK_STREAM)
    port.startListening()
    return port


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
