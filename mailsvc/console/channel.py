"""HTTP connections of browsers and programs: how many there may be, and how they end."""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, HTTPFactory, Request

from mailsvc.connections import Connections, client_address
from mailsvc.errors import MailFailure

_log = Logger("mailsvc.console")

#: How long, in seconds, a client may be silent.
_PATIENCE = 60
#: How much of a body is thrown away, so that its sender hears why, before the connection is cut,
#: octets.
THROWN = 33_554_432


class Exchange(Protocol):
    """One request, and the answer to it."""

    def begin(self, length: int | None) -> None:
        """Its header is there; of its body so many octets come, or nobody knows how many."""

    def feed(self, data: bytes) -> None:
        """A block of its body."""

    def end(self) -> None:
        """It is there as a whole: answer it."""

    def lost(self) -> None:
        """Nobody waits for the answer any more."""


class WebFactory(HTTPFactory):
    """Makes the connections; of their requests, *request*.

    :param connections: how many there may be.
    """

    noisy = False

    def __init__(self, request: type[Request], connections: Connections, reactor: Any) -> None:
        super().__init__(timeout=_PATIENCE, reactor=reactor)
        self.request = request
        self.connections = connections
        #: Octets of bodies that are held now.
        self.held = 0

    def protocol(self) -> Any:
        """The channel itself: Twisted's own would choose between it and HTTP/2."""
        return Channel(self.request)

    def buildProtocol(self, addr: IAddress | None) -> Any:
        client = "" if addr is None else client_address(addr)
        return None if self.connections.admit(client) else super().buildProtocol(addr)

    def log(self, request: Any) -> None:
        """Nothing: a line for each request would hide those that matter."""


class Channel(HTTPChannel):
    """One connection.

    :ivar client: the other end's IP address, or "" on a Unix socket.
    """

    factory: WebFactory
    transport: Any
    requestFactory: Any
    client = ""
    #: Whether no further request is answered.
    _leaving = False

    def __init__(self, request: type[Request]) -> None:
        super().__init__()
        self.requestFactory = request

    @property
    def method(self) -> bytes:
        """That of the request whose body comes."""
        return self._command

    @property
    def path(self) -> bytes:
        """What the request whose body comes is about, with all that is behind "?"."""
        return self._path

    def connectionMade(self) -> None:
        super().connectionMade()
        self.client = client_address(self.transport.getPeer())
        try:
            self.factory.connections.add(self, self.client)
        except MailFailure as failure:
            _log.warn("refused client={client}: {reason}", client=self.client,
                      reason=failure.text)
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        super().connectionLost(reason)
        self.factory.connections.remove(self)

    def requestDone(self, request: Request) -> None:
        self.persistent = self.persistent and not self._leaving
        super().requestDone(request)

    def finish(self) -> None:
        """The service is stopping."""
        self._leaving = True
        if not self.requests:
            self.loseConnection()

    def abort(self) -> None:
        """The same, at once."""
        self.transport.abortConnection()
