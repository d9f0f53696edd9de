"""A connection whose roles have turned (ATRN, RFC 2645 §5.3): octets pass between it and the queue.

The client has become a server, and what sends the mail that waits for it is the queue, in another
process as a rule.  TLS ends here, and stays as it was.  Each side is read as fast as the other
takes it; when either is gone, the other is closed.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from mailsvc.conversation import Conversation
from mailsvc.transport import notice_absence


class Passage(Protocol):
    """The end of the connection to what sends, and who has the customer's once that has turned."""

    transport: Any
    _customer: Conversation | None = None
    _over = False

    def connectionMade(self) -> None:
        # Until there is somebody to hear it.
        self.transport.pauseProducing()

    def join(self, customer: Conversation, data: bytes) -> None:
        """Be *customer*'s heir, of whom *data* has come already."""
        self._customer = customer
        customer.bequeath(self)
        if self._over:
            return
        # As long as it is taken to be there nobody else can fetch this mail.
        notice_absence(customer.transport)
        customer.transport.registerProducer(self.transport, True)
        self.transport.registerProducer(customer.transport, True)
        if data:
            self.transport.write(data)
        self.transport.resumeProducing()

    def received(self, data: bytes) -> None:
        """From the customer."""
        if not self._over:
            self.transport.write(data)

    def lost(self) -> None:
        """The customer is gone, or says no more; or nobody has come to be one."""
        if not self._over:
            self._over = True
            self.transport.unregisterProducer()
            # Softly: the last that the customer said may be that it has taken a message.
            self.transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        if self._customer is not None and not self._over:
            self._customer.transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._over = True
        if self._customer is not None:
            self._customer.close()
