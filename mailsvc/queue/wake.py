"""How the process that sends hears of new messages from the others, and they of its end.

Each of the others keeps a connection to the Unix socket ``queue/wake`` and writes the id of every
message it has put into the queue there, one a line.  The kernel closes the connection when either
process ends, in whatever way: the others try for the queue's lock at once, and the one that sends
looks into the directory for what the other had no time to tell of.  A process that goes on while
another takes over, as after a reload, closes them itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure


class Teller:
    """Tells the process that sends.

    :param lost: called when that process, with which there was a connection, is gone.
    """

    def __init__(self, reactor: Any, lost: Callable[[], None]) -> None:
        self._reactor = reactor
        self._lost = lost
        self._transport: Any = None
        #: What nobody has been told of yet.
        self._untold: list[str] = []

    @property
    def connected(self) -> bool:
        """Whether there is somebody to tell."""
        return self._transport is not None

    def tell(self, id: str) -> None:
        """Tell of the message *id*, as soon as somebody hears."""
        if self._transport is not None:
            self._transport.write(id.encode("ascii") + b"\n")
        else:
            self._untold.append(id)

    def connect(self, path: str) -> None:
        """Look for somebody at *path*."""
        endpoint = UNIXClientEndpoint(self._reactor, path, timeout=5)
        endpoint.connect(Factory.forProtocol(lambda: _Telling(self))).addErrback(
            lambda _: None)

    def forget(self) -> None:
        """Nobody need be told any more of what there was to tell."""
        self._untold.clear()

    def close(self) -> None:
        """Tell nobody any more; what was told still arrives."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.loseConnection()

    def made(self, transport: Any) -> None:
        """For the connection."""
        if self._transport is not None:
            transport.loseConnection()
            return
        self._transport = transport
        untold, self._untold = self._untold, []
        for id in untold:
            self.tell(id)

    def ended(self, transport: Any) -> None:
        """For the connection."""
        if transport is self._transport:
            self._transport = None
            self._lost()


class _Telling(Protocol):
    def __init__(self, teller: Teller) -> None:
        self._teller = teller

    def connectionMade(self) -> None:
        self._teller.made(self.transport)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._teller.ended(self.transport)


class WakeFactory(Factory):
    """Hears the others.

    :param told: called with each id.
    :param gone: called when one of them has ended.
    """

    noisy = False

    def __init__(self, told: Callable[[str], None], gone: Callable[[], None]) -> None:
        self.told = told
        self.gone = gone
        self.heard: set[_Hearing] = set()

    def buildProtocol(self, addr: Any) -> _Hearing:
        return _Hearing(self)

    def hang_up(self) -> None:
        """Hear nobody any more: this process goes on, but another sends from now on."""
        for each in tuple(self.heard):
            each.transport.loseConnection()


class _Hearing(LineOnlyReceiver):
    delimiter = b"\n"
    MAX_LENGTH = 100
    transport: Any

    def __init__(self, wake: WakeFactory) -> None:
        self._wake = wake

    def connectionMade(self) -> None:
        self._wake.heard.add(self)

    def lineReceived(self, line: bytes) -> None:
        id = line.decode("ascii", "replace")
        if id.isascii() and id.isalnum():
            self._wake.told(id)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._wake.heard.discard(self)
        self._wake.gone()
