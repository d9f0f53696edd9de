"""The few requests by HTTPS that mail needs: a policy to get, a report to post.

The certificate is verified for the host's name, nothing is redirected, and an answer has limits of
size and time.  Addresses come from the resolver that the relay uses.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast
from urllib.parse import urlsplit

from cryptography import x509
from OpenSSL import SSL
from OpenSSL.crypto import X509
from service_identity import CertificateError, VerificationError
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.client import Agent, ResponseDone
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer
from zope.interface import implementer

from mailsvc import __version__
from mailsvc.queue.exchangers import Place, Unroutable
from mailsvc.trust import tls_text

#: How long one address may take to answer a connection, and a request to be over, seconds.
_CONNECT = 15.0
_PATIENCE = 60.0

#: Most octets that come over one connection, with all that HTTP puts around a policy.
_OCTETS = 4 * 65_536


class HTTPFailure(Exception):
    """A request that did not succeed; the text says why.

    :ivar certificate: whether the host did not prove its name.
    """

    def __init__(self, text: str, *, certificate: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.certificate = certificate


class HTTPS:
    """Makes requests.

    :param find: the places of a host, as :meth:`mailsvc.queue.exchangers.Exchangers.addresses`.
    :param authorities: a PEM file of those who may vouch for hosts; empty for the system's.
    :param loopback: whether this machine itself may be asked.
    """

    def __init__(self, find: Callable[[str], Awaitable[Sequence[Place]]], authorities: str,
                 loopback: bool, reactor: Any) -> None:
        self._find = find
        self._authorities = authorities
        self._loopback = loopback
        self._reactor = reactor

    async def get(self, url: str, kind: str, most: int) -> bytes:
        """What is at *url*.

        :param kind: the media type that it must have.
        :param most: octets that it may have.
        :raises HTTPFailure: it cannot be had.
        """
        return await self._request(b"GET", url, {"Accept": kind}, b"", kind, most)

    async def post(self, url: str, kind: str, body: bytes) -> None:
        """Hand *body*, of media type *kind*, to *url*; raises as :meth:`get`."""
        await self._request(b"POST", url, {"Content-Type": kind}, body, "", 65_536)

    async def _request(self, method: bytes, url: str, fields: dict[str, str], body: bytes,
                       kind: str, most: int) -> bytes:
        host = urlsplit(url).hostname or ""
        try:
            places = [each for each in await self._find(host)
                      if self._loopback or not _is_own(each.address)]
        except Unroutable as failure:
            raise HTTPFailure(failure.text) from None
        problem = HTTPFailure(f"{host} has no address but this machine's own")
        headers = Headers({"User-Agent": [f"mailsvc/{__version__}"],
                           **{name: [value] for name, value in fields.items()}})
        end = self._reactor.seconds() + _PATIENCE
        for place in places[:4]:
            left = end - self._reactor.seconds()
            if left <= 0:
                break
            agent = Agent.usingEndpointFactory(
                self._reactor, cast(Any, _Endpoints(self._reactor, place, self._trust_root())))
            try:
                asked = Deferred.fromCoroutine(self._exchange(
                    agent, method, url, headers, body, kind, most))
                return await asked.addTimeout(left, self._reactor)
            except HTTPFailure as failure:
                raise failure from None
            except Exception as error:
                problem = _explained(host, error)
                if problem.certificate:
                    break
        raise problem

    async def _exchange(self, agent: Agent, method: bytes, url: str, headers: Headers,
                        body: bytes, kind: str, most: int) -> bytes:
        response: Any = await agent.request(
            method, url.encode("ascii"), headers, cast(Any, _Body(body)) if body else None)
        # RFC 8461 §3.3: a redirection is no success either.
        if not (response.code == 200 or (method == b"POST" and 200 <= response.code < 300)):
            _abandon(response)
            raise HTTPFailure(f"{url}: the answer is {response.code}, expected 200")
        found = (response.headers.getRawHeaders("Content-Type") or [""])[0]
        if kind and found.partition(";")[0].strip().lower() != kind:
            _abandon(response)
            raise HTTPFailure(f"{url}: the media type is {found[:80] or 'missing'}, "
                              f"expected {kind}")
        content = _Content(most)
        response.deliverBody(content)
        text = await content.done
        if text is None:
            raise HTTPFailure(f"{url}: more than {most} octets")
        return text

    def _trust_root(self) -> Any:
        if not self._authorities:
            return None
        try:
            with open(self._authorities, "rb") as stream:
                found = x509.load_pem_x509_certificates(stream.read())
        except (OSError, ValueError) as error:
            raise HTTPFailure(f"{self._authorities}: expected a PEM file of certificates "
                              f"({error})") from None
        return trustRootFromCertificates([Certificate(X509.from_cryptography(each))
                                          for each in found])


def _is_own(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return parsed.is_loopback or parsed.is_unspecified or parsed.is_link_local


@implementer(IAgentEndpointFactory)
class _Endpoints:
    """TLS to *place*, proven for the name in the URL."""

    def __init__(self, reactor: Any, place: Place, trust_root: Any) -> None:
        self._reactor = reactor
        self._place = place
        self._trust_root = trust_root

    def endpointForURI(self, uri: Any) -> Any:
        if uri.scheme != b"https":
            raise HTTPFailure("expected a URL with https")
        kind = TCP6ClientEndpoint if ":" in self._place.address else TCP4ClientEndpoint
        return _Bounded(wrapClientTLS(
            optionsForClientTLS(uri.host.decode("ascii"), trustRoot=self._trust_root),
            kind(self._reactor, self._place.address, uri.port, timeout=_CONNECT)))


@implementer(IStreamClientEndpoint)
class _Bounded:
    """Connections over which no more comes than an answer may be: a header has no end else."""

    def __init__(self, endpoint: Any) -> None:
        self._endpoint = endpoint

    def connect(self, protocolFactory: Any) -> Any:
        factory = WrappingFactory(protocolFactory)
        factory.protocol = _Bound
        factory.noisy = False
        connecting = self._endpoint.connect(factory)
        return connecting.addCallback(lambda bound: bound.wrappedProtocol)


class _Bound(ProtocolWrapper):
    left = _OCTETS

    def dataReceived(self, data: bytes) -> None:
        self.left -= len(data)
        if self.left < 0:
            cast(Any, self.transport).abortConnection()
        else:
            super().dataReceived(data)


class _Content(Protocol):
    """Reads an answer; *done* fires with it, or None when it is too long."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._blocks: list[bytes] = []
        self.done: Deferred[bytes | None] = Deferred(lambda _: self._stop())

    def dataReceived(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left >= 0:
            self._blocks.append(data)
        elif not self.done.called:
            self.done.callback(None)
            self._stop()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.done.called:
            # No length, and closed without close_notify: it may have been cut short.
            if reason.check(ResponseDone):
                self.done.callback(b"".join(self._blocks))
            else:
                self.done.errback(reason)

    def _stop(self) -> None:
        transport: Any = self.transport
        if transport is not None:
            getattr(transport, "abortConnection", transport.loseConnection)()


def _abandon(response: Any) -> None:
    content = _Content(0)
    content.done.addBoth(lambda _: None)
    response.deliverBody(content)
    content._stop()


@implementer(IBodyProducer)
class _Body:
    """Writes *body* at once; it is small."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: Any) -> Deferred[None]:
        consumer.write(self._body)
        done: Deferred[None] = Deferred()
        done.callback(None)
        return done

    def pauseProducing(self) -> None:
        """It is written already."""

    def resumeProducing(self) -> None:
        """It is written already."""

    def stopProducing(self) -> None:
        """It is written already."""


def _explained(host: str, error: Exception) -> HTTPFailure:
    """What a person should know of *error*."""
    causes: list[BaseException] = [error]
    for failure in getattr(error, "reasons", ()):
        causes.append(failure.value)
    for cause in causes:
        if isinstance(cause, VerificationError | CertificateError):
            return HTTPFailure(f"{host}: the certificate is not for it", certificate=True)
        if isinstance(cause, SSL.Error):
            return HTTPFailure(f"{host}: TLS failed: {tls_text(cause) or 'no reason given'}",
                               certificate="certificate" in tls_text(cause))
    return HTTPFailure(f"{host}: {str(causes[-1]) or type(causes[-1]).__name__}")
