"""Connections that we open, for SMTP, LMTP and POP3 alike.

:func:`dial` connects; the :class:`Line` that comes of it passes octets both ways, starts TLS on an
open connection, holds the writer back while the peer does not take what was written, and keeps the
one deadline that its owner has set.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from typing import Protocol as Interface

import idna
from twisted.internet import error
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IHandshakeListener, IPushProducer, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from mailsvc.networks import address_of
from mailsvc.trust import Secured, Trust, Untrusted, tls_text


class NoConnection(Exception):
    """Nobody could be reached; the text says why.

    :ivar timed_out: whether nobody answered at all.
    """

    def __init__(self, text: str, *, timed_out: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.timed_out = timed_out


class Owner(Interface):
    """Whom a line tells what happens."""

    def received(self, data: bytes) -> None:
        """Octets came."""

    def lost(self, why: str) -> None:
        """The connection is gone."""

    def overdue(self) -> None:
        """The deadline has passed."""


@implementer(IHandshakeListener, IPushProducer)
class Line(Protocol):
    """One connection.

    :ivar host: where it leads, as it was dialled.
    :ivar owner: whom it tells; to be set before anything comes.
    :ivar connected: whether something can be said.
    :ivar secured: what TLS agreed, or None.
    :ivar paused: whether the peer does not take what was written.
    """

    transport: Any

    def __init__(self, host: str, clock: Any) -> None:
        self.host = host
        self.owner: Owner | None = None
        self.connected = False
        self.secured: Secured | None = None
        self.paused = False
        self._clock = clock
        self._timer: Any = None
        self._room: Deferred[None] | None = None
        #: The handshake under way: whom to tell, and what it has to prove.
        self._handshake: tuple[Deferred[Secured], Trust] | None = None
        #: What came, or ended, before there was an owner.
        self._early: list[Callable[[Owner], None]] = []

    def attach(self, owner: Owner) -> None:
        """Make *owner* the owner, and tell it what has happened already."""
        self.owner = owner
        early, self._early = self._early, []
        for tell in early:
            tell(owner)

    # ---- for the owner ----

    @property
    def local(self) -> bool:
        """Whether it leads to this machine itself."""
        peer = getattr(self.transport.getPeer(), "host", None)
        return peer is None or address_of(peer.partition("%")[0]).is_loopback

    @property
    def own_literal(self) -> str:
        """Our own address as SMTP writes it (RFC 5321 §4.1.3)."""
        own = getattr(self.transport.getHost(), "host", "127.0.0.1").partition("%")[0]
        return f"[IPv6:{own}]" if ":" in own else f"[{own}]"

    def write(self, data: bytes) -> None:
        """Send *data*."""
        if self.connected:
            self.transport.write(data)

    def start_tls(self, trust: Trust) -> Deferred[Secured]:
        """Shake hands, and judge the server.

        :raises Untrusted: in the Deferred; the connection is over.
        """
        done: Deferred[Secured] = Deferred()
        try:
            creator = trust.connections(self.host)
        except (Untrusted, ValueError) as problem:
            self.abort()
            done.errback(problem if isinstance(problem, Untrusted)
                         else Untrusted(f"{self.host}: {problem}", "validation-failure"))
            return done
        self._handshake = done, trust
        self.transport.startTLS(creator)
        return done

    def wait_for_room(self) -> Deferred[None]:
        """Fires when the peer takes more, or the connection is gone."""
        room: Deferred[None] = Deferred()
        if self.paused and self.connected:
            self._room = room
        else:
            room.callback(None)
        return room

    def hold_back(self, wanted: bool) -> None:
        """Whether ``paused`` is to be kept; while it is, the connection cannot be closed softly."""
        if not self.connected:
            return
        if wanted:
            self.transport.registerProducer(self, True)
        else:
            self.paused = False
            self.transport.unregisterProducer()

    def set_deadline(self, seconds: float | None) -> None:
        """Tell the owner when so many seconds have passed from now, unless set anew."""
        if self._timer is not None and self._timer.active():
            if seconds is not None and self.connected:
                self._timer.reset(seconds)
                return
            self._timer.cancel()
        self._timer = None
        if seconds is not None and self.connected:
            self._timer = self._clock.callLater(seconds, self._overdue)

    def hang_up(self) -> None:
        """Close, once all that was written is sent."""
        if self.connected:
            self.transport.loseConnection()
            # A peer that takes nothing is not waited for.
            self.set_deadline(5.0)

    def abort(self) -> None:
        """Close at once."""
        if self.connected:
            self.transport.abortConnection()

    def _overdue(self) -> None:
        if self._handshake is not None:
            self._end_handshake(Untrusted("the TLS handshake took too long",
                                          "validation-failure"))
        elif self.owner is not None:
            self.owner.overdue()
        self.abort()

    # ---- for Twisted ----

    def connectionMade(self) -> None:
        self.connected = True
        set_no_delay = getattr(self.transport, "setTcpNoDelay", None)
        if set_no_delay is not None:
            set_no_delay(True)

    def dataReceived(self, data: bytes) -> None:
        if self.owner is not None:
            self.owner.received(data)
        else:
            self._early.append(lambda owner: owner.received(data))

    def handshakeCompleted(self) -> None:
        if self._handshake is None:
            return
        try:
            self.secured = self._handshake[1].examine(self.transport, self.host)
        except Untrusted as problem:
            self._end_handshake(problem)
            self.abort()
        else:
            self._end_handshake(self.secured)

    def _end_handshake(self, result: Secured | Untrusted) -> None:
        assert self._handshake is not None
        (done, _), self._handshake = self._handshake, None
        if isinstance(result, Untrusted):
            done.errback(result)
        else:
            done.callback(result)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.connected = False
        self.set_deadline(None)
        self._make_room()
        text = tls_text(reason.value)
        if self._handshake is not None:
            self._end_handshake(Untrusted(
                f"the TLS handshake failed: {text or 'the server broke it off'}",
                "validation-failure"))
        if text:
            why = f"TLS broke: {text}"
        elif reason.check(error.ConnectionDone):
            why = "the server closed the connection"
        elif reason.check(error.ConnectionAborted):
            why = "we closed the connection"
        else:
            why = f"the connection broke: {_words(reason.value)}"
        self._tell(lambda owner: owner.lost(why))

    def _tell(self, tell: Callable[[Owner], None]) -> None:
        if self.owner is not None:
            tell(self.owner)
        else:
            self._early.append(tell)

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False
        self._make_room()

    def stopProducing(self) -> None:
        self._make_room()

    def _make_room(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            room.callback(None)


async def dial(reactor: Any, host: str, port: int, *, seconds: float, bind: str = "",
               endpoint: IStreamClientEndpoint | None = None) -> Line:
    """Connect.

    :param host: a name, an IP address, or the path of a Unix socket.
    :param bind: the local address to connect from.
    :param endpoint: connects in the place of *host* and *port*.
    :raises NoConnection: nobody is there, or nobody answers within *seconds*.
    """
    if endpoint is None:
        try:
            endpoint = _endpoint(reactor, host, port, seconds, bind)
        except ValueError as problem:
            raise NoConnection(f"{host!r} is not a host: {problem}") from None
    where = host if host.startswith("/") else f"{host} port {port}"
    connecting = endpoint.connect(_Lines(host, reactor))
    connecting.addTimeout(seconds, reactor)
    try:
        line = await connecting
    except (error.TimeoutError, error.ConnectingCancelledError, CancelledError, TimeoutError):
        raise NoConnection(f"{where}: nobody answered within {seconds:g} seconds",
                           timed_out=True) from None
    except (error.ConnectError, error.DNSLookupError, OSError) as problem:
        raise NoConnection(f"{where}: {_words(problem)}") from None
    except ValueError as problem:  # such as an A-label that is none
        raise NoConnection(f"{host!r} is not a host: {problem}") from None
    assert isinstance(line, Line)
    return line


class _Lines(Factory):
    """Makes the one line."""

    noisy = False

    def __init__(self, host: str, clock: Any) -> None:
        self._host = host
        self._clock = clock

    def buildProtocol(self, addr: Any) -> Line:
        return Line(self._host, self._clock)


def _endpoint(reactor: Any, host: str, port: int, seconds: float,
              bind: str) -> IStreamClientEndpoint:
    if host.startswith("/"):
        return UNIXClientEndpoint(reactor, host, timeout=seconds)
    name = host.strip("[]").removeprefix("IPv6:")
    if not name or set(name) & set("\0\r\n /"):
        raise ValueError("expected a name or an address")
    if not name.isascii():
        # IDNAError is a ValueError.
        name = idna.encode(name, uts46=True).decode()
    if not all(0 < len(label) < 64 for label in name.removesuffix(".").split(".")):
        # Python's look-up would fail of them, and log how.
        raise ValueError("expected labels of 1 to 63 characters between the dots")
    return HostnameEndpoint(reactor, name.encode(), port, timeout=seconds,
                            bindAddress=bind or None)


def _words(problem: BaseException | None) -> str:
    """What went wrong, without Twisted's sentence around it."""
    number = getattr(problem, "osError", None)
    text = os.strerror(number) if isinstance(number, int) else str(problem)
    return text.strip().rstrip(".") or type(problem).__name__


