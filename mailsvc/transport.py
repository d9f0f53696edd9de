"""A TCP transport that sends an answer at once instead of in the reactor's next turn.

Twisted's transports put what is written into a buffer, ask epoll to tell when the socket takes
octets, send when it does, and take the question back: two system calls and a round of the reactor
beside each ``send``.  The socket of a conversation is empty nearly always when its answer is ready,
so :class:`PromptServer` tries ``send`` first, and leaves to Twisted what the socket does not take.

What is written while something is still owed goes behind it, and what a TLS layer writes goes
through its own methods, as ever.  A failure to send is left to be found again, and reported, by
the reactor: nothing is lost from inside ``write``.
"""

from __future__ import annotations

from twisted.internet import tcp
from twisted.internet.interfaces import IListeningPort


class PromptServer(tcp.Server):
    """One accepted connection."""

    def write(self, data: bytes) -> None:
        """As ``ITransport.write``."""
        if data and self.connected and not (
                self.TLS or self._tempDataLen or self.dataBuffer or self.disconnecting
                or self._writeDisconnected):
            sent = self.writeSomeData(data)
            if isinstance(sent, int):
                if sent == len(data):
                    return
                data = data[sent:]
        super().write(data)


def send_promptly(port: IListeningPort) -> None:
    """Have *port* give its connections a :class:`PromptServer`, where it is one for TCP."""
    # Not one for Unix sockets, which is a kind of it with another transport.
    if isinstance(port, tcp.Port) and port.transport is tcp.Server:
        port.transport = PromptServer
