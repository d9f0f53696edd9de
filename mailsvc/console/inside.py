"""The way of somebody who is logged in to the console into the submission server of this process.

It is a connection as any, over a pair of sockets, to a server as any other listener for submission
has: so who may send as whom, how much, what is added to a message, and what is logged, is the same
by whatever way it is sent.  The browser's login stands for theirs: the client shows a password that
was made up for this one connection.
"""

from __future__ import annotations

import hmac
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.portal import Portal
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from zope.interface import implementer

from mailsvc.authentication import Authenticator
from mailsvc.client import Client, Outcome, Said, Timeouts
from mailsvc.console.call import Backend
from mailsvc.sasl.context import AuthSettings

#: How long, in seconds, a server may take to answer.
PATIENCE = Timeouts(connect=30, tls=30, greeting=60, hello=60, auth=60, mail=60, rcpt=60, data=60,
                    block=60, end=180, other=60, quit=5)


@implementer(ICredentialsChecker)
class OneLogin:
    """Lets one account log in, once."""

    credentialInterfaces = (IUsernamePassword,)

    def __init__(self, account: str) -> None:
        self.account = account
        self.password = secrets.token_urlsafe(32)
        self._used = False

    def requestAvatarId(self, credentials: Any) -> Deferred[bytes | tuple[()]]:
        right = hmac.compare_digest(credentials.password, self.password.encode())
        if self._used or not right or credentials.username != self.account.encode():
            return fail(UnauthorizedLogin("Authentication failed"))
        self._used = True
        return succeed(self.account.encode())


@implementer(IStreamClientEndpoint)
class Inside:
    """Connects to the submission server here.

    :param account: the name of who is logged in.
    :param client: the browser's IP address, which is what the server is told.
    """

    def __init__(self, backend: Backend, account: str, client: str) -> None:
        self.login = OneLogin(account)
        authenticator = Authenticator(
            Portal(backend.realm, [self.login]), backend.directory,
            replace(AuthSettings(), mechanisms=["PLAIN"]),
            hostname=backend.settings.service.hostname)
        self._server = _Seen(backend.submission(authenticator), _address(client))
        self._reactor = backend.reactor

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """As ``IStreamClientEndpoint.connect``."""
        protocol = factory.buildProtocol(UNIXAddress(None))
        assert protocol is not None
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for end, made in (theirs, self._server), (ours, _Given(protocol)):
                end.setblocking(False)
                self._reactor.adoptStreamConnection(end.fileno(), socket.AF_UNIX, made)
        return succeed(protocol)


async def submit(
    backend: Backend, account: str, client: str, sender: str, recipients: Sequence[str],
    message: bytes, *, transcript: Callable[[Said], None] | None = None,
) -> tuple[Outcome, ...]:
    """Send *message* as somebody who is logged in as *account*; what became of each recipient.

    :param client: the IP address that it comes from, or "".
    :raises SendingFailure: it did not come to a transaction.
    :raises BadArgument: something cannot be said.
    """
    hostname, inside = backend.settings.service.hostname, Inside(backend, account, client)
    connected = await Client.dial(hostname, endpoint=inside, hello=hostname, timeouts=PATIENCE,
                                  transcript=transcript, reactor=backend.reactor)
    try:
        await connected.auth(inside.login.account, inside.login.password, cleartext=True)
        outcomes = await connected.send(sender, recipients, message, normalize=True)
        await connected.quit()
    finally:
        connected.close()
    return outcomes


def _address(client: str) -> IAddress:
    if not client:
        return UNIXAddress(None)
    return (IPv6Address if ":" in client else IPv4Address)("TCP", client, 0)


class _Given(Factory):
    """For a protocol that there is."""

    noisy = False

    def __init__(self, protocol: IProtocol) -> None:
        self._protocol = protocol

    def buildProtocol(self, addr: IAddress | None) -> Any:
        return self._protocol


class _SeenProtocol(ProtocolWrapper):
    factory: _Seen

    def getPeer(self) -> IAddress:
        return self.factory.client


class _Seen(WrappingFactory):
    """Makes a server see a client elsewhere at the other end; and no user of this machine, whom it
    would let send as anybody."""

    noisy = False
    protocol = _SeenProtocol

    def __init__(self, wrapped: Any, client: IAddress) -> None:
        super().__init__(wrapped)
        self.client = client

    def buildProtocol(self, addr: IAddress | None) -> Any:
        return super().buildProtocol(self.client)
