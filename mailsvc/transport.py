"""TCP transports whose writes leave at the end of the reactor's turn that made them.

Twisted's transports put what is written into a buffer, ask epoll to tell when the socket takes
octets, send when it does, and take the question back: two system calls and a turn of the reactor
beside each ``send``.  The socket of a conversation is empty nearly always when there is something
to say.  So :class:`TurnServer` and :class:`TurnClient` send when all that came in this turn has
been read (:mod:`mailsvc.turn`), and leave to Twisted what the socket does not take then.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

from twisted.internet import tcp
from twisted.internet.interfaces import IConnector, IListeningPort
from twisted.logger import Logger

from mailsvc.turn import at_end_of_turn

_log = Logger()

#: After how long without a word the peer is asked, how often, how many times; and how long what was
#: sent may go without being acknowledged.  tcp(7); seconds, but for the last.
_ABSENCE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 4,
            socket.TCP_USER_TIMEOUT: 30_000}


class _ByTurns(tcp.Connection):
    """What a connection does to send so."""

    reactor: Any  # IReactorFDSet, and IReactorTime
    #: Whether there is something to send at the end of this turn.
    _is_due = False

    def startWriting(self) -> None:
        """Have :meth:`doWrite` called, at the end of the turn or when the socket takes octets."""
        if (self.dataBuffer or self.disconnecting or self._writeDisconnecting
                or not self.connected):  # what is being connected waits to be writable
            super().startWriting()
        elif not self._is_due:
            self._is_due = True
            at_end_of_turn(self.reactor, self._end_turn)

    def _end_turn(self) -> None:
        try:
            self._send()
        except Exception:
            _log.failure("a connection is cut off")
            self.abortConnection()

    def _send(self) -> None:
        """Send what was written in this turn."""
        self._is_due = False
        if not self.connected:
            return
        # An end, and a failure, the reactor is to find, which knows what follows from it.
        ends = self.disconnecting or self._writeDisconnecting
        if ends or self.doWrite() is not None or self.dataBuffer:
            super().startWriting()


class TurnServer(_ByTurns, tcp.Server):
    """One accepted connection."""


class TurnClient(_ByTurns, tcp.Client):
    """One that we opened."""


class _Connector(tcp.Connector):
    def _makeTransport(self) -> TurnClient:
        return TurnClient(self.host, self.port, self.bindAddress, self, self.reactor)


class Dialling:
    """What of *reactor* an endpoint needs to open connections, which send by turns."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def connectTCP(self, host: str, port: int, factory: Any, timeout: float = 30,
                   bindAddress: tuple[str, int] | None = None) -> IConnector:
        """As ``IReactorTCP.connectTCP``."""
        connector = _Connector(host, port, factory, timeout, bindAddress, self._reactor)
        connector.connect()
        return connector


def notice_absence(transport: Any) -> None:
    """Have a TCP connection end within half a minute when its peer is there no more.

    The kernel asks the peer's kernel every few seconds, so one that only takes its time stays.
    Other transports stay as they are.
    """
    connection: Any = getattr(transport, "socket", None)
    with suppress(OSError, AttributeError):  # it is none of TCP, or gone already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _ABSENCE.items():
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


def send_by_turns(port: IListeningPort) -> None:
    """Have *port* give its connections a :class:`TurnServer`, where it is one for TCP."""
    # Not one for Unix sockets, which is a kind of it with another transport.
    if isinstance(port, tcp.Port) and port.transport is tcp.Server:
        port.transport = TurnServer
