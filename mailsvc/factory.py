"""What becomes of a client that connects: a conversation, or a refusal."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from typing import Any, ClassVar

from twisted.internet.interfaces import IAddress, IOpenSSLServerConnectionCreator, IReactorTime
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger

from mailsvc import figures
from mailsvc.authentication import Authenticator
from mailsvc.connections import Connections, client_address
from mailsvc.errors import MailFailure
from mailsvc.figures import Share
from mailsvc.log import Log

#: How often, in seconds, to tell of one client that it may not connect; and of how many to know.
_TELL_AGAIN = 60.0
_REFUSED = 1000


class Refusal(Protocol):
    """A connection that is told *reason*, and no more: nothing is kept of it."""

    def __init__(self, reason: bytes) -> None:
        self._reason = reason

    def connectionMade(self) -> None:
        self.transport.write(self._reason)  # type: ignore[union-attr]
        self.transport.loseConnection()  # type: ignore[union-attr]


class ConversationFactory(Factory):
    """Builds the conversations of one service's listeners for one protocol; holds their limits.

    :param settings: the protocol's section; has the limits on connections.
    :param clock: the reactor, or a Clock.
    :param tls: the context for STARTTLS or STLS, or None not to offer it.
    :param connections: those of its protocol, when several factories share a limit.
    :param authenticator: logs clients in.
    :param share: where is counted.
    :param protocol: what it is called there.
    :cvar login_protocol: what a login is for, as in :class:`mailsvc.credentials.Attempt`.
    :cvar namespace: what the log lines of its connections begin with.
    """

    noisy = False
    namespace: ClassVar[str]
    login_protocol: ClassVar[str]

    def __init__(
        self,
        settings: Any,
        hostname: str,
        clock: IReactorTime,
        tls: IOpenSSLServerConnectionCreator | None = None,
        connections: Connections | None = None,
        authenticator: Authenticator | None = None,
        *, share: Share, protocol: str,
    ) -> None:
        self.authenticator = authenticator
        self.protocol_name = protocol
        self.sessions = share.count(figures.SESSIONS, protocol)
        self.turned_away = share.count(figures.TURNED_AWAY, protocol)
        self.open = share.level(figures.CONNECTIONS, protocol)
        self.settings = settings
        self.hostname = hostname
        self.clock = clock
        self.tls = tls
        self.log: Logger = Log(self.namespace)
        #: When it was last told of clients that may not connect.
        self._refused: OrderedDict[str, float] = OrderedDict()
        self.connections = connections if connections is not None else Connections(
            settings.connections, settings.connections_per_address, settings.exempt_networks, clock
        )

    @abstractmethod
    def refuse(self, failure: MailFailure) -> bytes:
        """How a client that may not connect is told so."""

    def buildProtocol(self, addr: IAddress | None) -> Any:
        # Whoever is banned may come a thousand times a second.
        client = client_address(addr) if addr is not None else ""
        failure = self.connections.admit(client)
        if failure is None:
            return super().buildProtocol(addr)
        self.turned_away.add()
        self._log_refusal(client, failure)
        return Refusal(self.refuse(failure))

    def _log_refusal(self, client: str, failure: MailFailure) -> None:
        """Tell once a minute for each client."""
        now = self.clock.seconds()
        if now - self._refused.get(client, float("-inf")) < _TELL_AGAIN:
            return
        self._refused[client] = now
        self._refused.move_to_end(client)
        if len(self._refused) > _REFUSED:
            self._refused.popitem(last=False)
        self.log.warn("refused client={client}: {reason}", client=client, reason=failure.text)
