"""A TCP transport whose answers leave at the end of the reactor's turn that made them.

Twisted's transports put what is written into a buffer, ask epoll to tell when the socket takes
octets, send when it does, and take the question back: two system calls and a turn of the reactor
beside each ``send``.  The socket of a conversation is empty nearly always when its answer is ready.
So :class:`TurnServer` sends when all that came in this turn has been read, and leaves to Twisted
what the socket does not take then.

Not sooner: who is sent an answer wakes up, and on a busy machine takes the processor from the one
that has more to read.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar

from twisted.internet import tcp
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

_log = Logger()


class TurnServer(tcp.Server):
    """One accepted connection."""

    reactor: Any  # IReactorFDSet, and IReactorTime
    #: The connections that have something to send at the end of this turn.
    _due: ClassVar[list[TurnServer]] = []
    _is_due = False

    def startWriting(self) -> None:
        """Have :meth:`doWrite` called, at the end of the turn or when the socket takes octets."""
        if self.dataBuffer or self.disconnecting or self._writeDisconnecting:
            super().startWriting()
        elif not self._is_due:
            self._is_due = True
            if not self._due:
                self.reactor.callLater(0, _send_all)
            self._due.append(self)

    def send(self) -> None:
        """Send what was written in this turn."""
        self._is_due = False
        if not self.connected:
            return
        # An end, and a failure, the reactor is to find, which knows what follows from it.
        ends = self.disconnecting or self._writeDisconnecting
        if ends or self.doWrite() is not None or self.dataBuffer:
            super().startWriting()


def _send_all() -> None:
    due = TurnServer._due.copy()
    TurnServer._due.clear()
    for each in due:
        try:
            each.send()
        except Exception:  # as the reactor has it: a fault of one is not to be felt by the others
            _log.failure("a connection is cut off")
            each.abortConnection()


# A worker is forked amid a turn of its supervisor, whose connections are not the worker's: with any
# of them left here, no end of a turn would be asked for, and nothing sent, ever.
os.register_at_fork(after_in_child=TurnServer._due.clear)


def send_by_turns(port: IListeningPort) -> None:
    """Have *port* give its connections a :class:`TurnServer`, where it is one for TCP."""
    # Not one for Unix sockets, which is a kind of it with another transport.
    if isinstance(port, tcp.Port) and port.transport is tcp.Server:
        port.transport = TurnServer
