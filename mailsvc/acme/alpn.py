"""Answering the authority in a TLS handshake (TLS-ALPN-01, RFC 8737).

It connects to port 443 of a name, asks for that name (SNI), offers the protocol ``acme-tls/1`` and
no other (ALPN, RFC 7301), looks at the certificate that it gets, and goes.  :func:`answering`
answers nothing but that; :meth:`Answers.choose` lets other listeners do it besides: their clients,
who do not offer this protocol, notice nothing.

The certificates are in files, so that every process can answer for the one that asks.  Without one,
the handshake ends with the alert no_application_protocol.

TLS 1.3 is needed: before, OpenSSL has chosen the certificate by the time that it asks for the
protocol.  Authorities have it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IAddress, IOpenSSLServerConnectionCreator
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.policies import TimeoutMixin
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from mailsvc.acme.files import Files
from mailsvc.handshake import (
    TLS_1_3_CIPHERS,
    Contexts,
    ServerConnection,
    choose_context,
    server_name,
)

#: RFC 8737 §6.2.
PROTOCOL = b"acme-tls/1"

#: How long, in seconds, a handshake may take, and how many there may be.
_PATIENCE, _CLIENTS = 30, 50


class Answers:
    """Shows the authority what is in *files*."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def choose(self, connection: Any, protocols: list[bytes]) -> Any:
        """An ALPN callback: if it is the authority that connects, answer it.

        :param connection: a :class:`ServerConnection`.
        :raises SSL.Error: it is, and there is nothing to show it.
        """
        # RFC 8737 §3: it offers this one only.
        if protocols != [PROTOCOL]:
            return SSL.NO_OVERLAPPING_PROTOCOLS
        # After a HelloRetryRequest it is called again, and the context is set.
        if not connection.is_over:
            path = self._files.answer(server_name(connection))
            if path is None or connection.get_protocol_version() != SSL.TLS1_3_VERSION:
                # In the form of OpenSSL's own.
                raise SSL.Error([("", "", "nobody asks for a certificate for this name")])
            connection.set_context(self._context(path))
            connection.is_over = True
        return PROTOCOL

    def _context(self, path: Path) -> SSL.Context:
        context = _context()
        context.set_alpn_select_callback(self.choose)
        context.use_certificate_file(str(path))
        context.use_privatekey_file(str(path))
        return context


def _context() -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_options(SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    # As in the context before, for the cipher of a HelloRetryRequest stays (RFC 8446 §4.1.4).
    context.set_tls13_ciphersuites(":".join(TLS_1_3_CIPHERS).encode())
    return context


# ---- a listener for nothing else -----------------------------------------------------------------


def answering(files: Files, reactor: Any) -> Any:
    """The factory that answers by what is in *files*; everybody else gets an alert."""
    silent: Any = Factory.forProtocol(lambda: _Silent(reactor))
    silent.noisy = False
    return _Few(_Nobody(Answers(files)), False, silent, reactor)


@implementer(IOpenSSLServerConnectionCreator)
class _Nobody:
    """Has no certificate to show, so that whoever offers no protocol gets handshake_failure."""

    def __init__(self, answers: Answers) -> None:
        context = _context()
        context.set_alpn_select_callback(answers.choose)
        # Without one OpenSSL does not get as far as to ask for the protocol.
        context.set_tlsext_servername_callback(choose_context)
        self._contexts = Contexts(context, {})

    def serverConnectionForTLS(self, protocol: object) -> SSL.Connection:
        return ServerConnection(self._contexts)


class _Silent(Protocol, TimeoutMixin):
    """Waits for the end of the handshake, and with it the connection's."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def callLater(self, period: float, func: Callable[[], object]) -> Any:
        return self._reactor.callLater(period, func)

    def connectionMade(self) -> None:
        self.setTimeout(_PATIENCE)

    def timeoutConnection(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()

    def connectionLost(self, reason: Any = None) -> None:
        self.setTimeout(None)


class _Few(TLSMemoryBIOFactory):
    """Takes a connection while there are few."""

    noisy = False

    def buildProtocol(self, addr: IAddress | None) -> Any:
        return super().buildProtocol(addr) if len(self.protocols) < _CLIENTS else None
