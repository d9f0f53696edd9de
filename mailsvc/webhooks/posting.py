"""One request that tells of an event, and a trial of the receivers.

TLS is verified; nothing is redirected; a request has a time limit, and of the answer no more is
read than a person would.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from io import BytesIO
from typing import Any, NamedTuple, cast

from cryptography import x509
from OpenSSL import SSL
from OpenSSL.crypto import X509
from service_identity import CertificateError, VerificationError
from twisted.internet.defer import Deferred, TimeoutError, gatherResults
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.ssl import Certificate, trustRootFromCertificates
from twisted.python.failure import Failure
from twisted.web.client import (
    Agent,
    BrowserLikePolicyForHTTPS,
    FileBodyProducer,
    HTTPConnectionPool,
)
from twisted.web.http_headers import Headers

from mailsvc import __version__
from mailsvc.trust import Untrusted, tls_text
from mailsvc.webhooks.events import TEST, WebhookSettings, body
from mailsvc.webhooks.signing import secrets_at, signature
from mailsvc.webhooks.spool import Event

#: So much of an answer is read, octets.
_EXCERPT = 2048
#: How long a connection is kept for the next request, seconds; less than servers do.
_KEPT = 3.0


class NotTold(Exception):
    """The receiver did not take it; the text says why.

    :ivar gone: whether it says that it never will (410).
    """

    def __init__(self, text: str, *, gone: bool = False) -> None:
        super().__init__(text)
        self.gone = gone


class Answer(NamedTuple):
    """What the receiver said.

    :ivar text: how its body begins.
    """

    code: int
    text: str


class Poster:
    """Makes requests as *settings* say.

    :raises SecretUnusable: there is nothing to sign with.
    :raises Untrusted: the authorities cannot be used.
    """

    def __init__(self, settings: WebhookSettings, reactor: Any) -> None:
        self._keys = secrets_at(settings.secret)
        self._timeout = settings.timeout_seconds
        self._reactor = reactor
        self._pool = HTTPConnectionPool(reactor)
        self._pool.cachedConnectionTimeout = cast(Any, _KEPT)
        self._agent = Agent(reactor, BrowserLikePolicyForHTTPS(_authorities(settings.authorities)),
                            connectTimeout=settings.timeout_seconds, pool=self._pool)

    async def post(self, url: str, event: Event) -> Answer:
        """Tell *url* of *event*.

        :raises NotTold: the answer is not 2xx, or there is none.
        """
        try:
            answer = await Deferred.fromCoroutine(self._exchange(url, event)).addTimeout(
                self._timeout, self._reactor)
        except TimeoutError:
            raise NotTold(f"no answer within {self._timeout:g} seconds") from None
        except Exception as error:
            raise NotTold(_explained(error)) from None
        if not 200 <= answer.code < 300:
            raise NotTold(f"the answer is {answer.code}, expected 2xx"
                          + ("; redirects are not followed" if 300 <= answer.code < 400 else "")
                          + (f": {answer.text[:200]}" if answer.text else ""),
                          gone=answer.code == 410)
        return answer

    async def _exchange(self, url: str, event: Event) -> Answer:
        # When it is sent, not when it happened: receivers refuse what is old, lest it be replayed.
        timestamp = int(self._reactor.seconds())
        response: Any = await self._agent.request(b"POST", url.encode("ascii"), Headers({
            "Content-Type": ["application/json"],
            "User-Agent": [f"mailsvc/{__version__}"],
            "webhook-id": [event.id],
            "webhook-timestamp": [str(timestamp)],
            "webhook-signature": [signature(self._keys, event.id, timestamp, event.body)],
        }), cast(Any, FileBodyProducer(BytesIO(event.body))))
        excerpt = _Excerpt()
        response.deliverBody(excerpt)
        text = (await excerpt.read).decode("utf-8", "replace")
        return Answer(response.code, "".join(
            each if each.isprintable() else " " for each in text).strip())

    def close(self) -> Deferred[Any]:
        """Close the connections that were kept."""
        return self._pool.closeCachedConnections()


class Tried(NamedTuple):
    """What came of a test event.

    :ivar code: of the answer, and how its *text* begins; None when it was not taken.
    :ivar problem: why it was not, or None.
    :ivar seconds: how long it took.
    """

    url: str
    code: int | None
    text: str | None
    problem: str | None
    seconds: float


async def tried(poster: Poster, urls: Sequence[str], by: str) -> list[Tried]:
    """Send a test event to each of *urls*, at once and once, and close *poster*.

    :param by: what it says to be sent by.
    """
    async def post(number: int, url: str) -> Tried:
        now, began = time.time(), time.monotonic()
        event = Event(f"msg_test_{time.time_ns()}_{number}", TEST,
                      body(TEST, now, {"text": f"sent by {by}"}), now)
        code, text, problem = None, None, None
        try:
            code, text = await poster.post(url, event)
        except NotTold as failure:
            problem = str(failure)
        return Tried(url, code, text, problem, round(time.monotonic() - began, 3))

    try:
        return list(await gatherResults([
            Deferred.fromCoroutine(post(number, url)) for number, url in enumerate(urls)]))
    finally:
        await poster.close()


class _Excerpt(Protocol):
    """How an answer begins; *read* fires with that."""

    def __init__(self) -> None:
        self._found = b""
        self.read: Deferred[bytes] = Deferred(lambda _: self._abort())

    def dataReceived(self, data: bytes) -> None:
        self._found += data
        if len(self._found) > _EXCERPT:
            self._abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.read.called:
            self.read.callback(self._found[:_EXCERPT])

    def _abort(self) -> None:
        transport: Any = self.transport
        if transport is not None:
            getattr(transport, "abortConnection", transport.loseConnection)()


def _authorities(path: str) -> Any:
    if not path:
        return None
    try:
        with open(path, "rb") as stream:
            found = x509.load_pem_x509_certificates(stream.read())
    except (OSError, ValueError) as error:
        raise Untrusted(f"{path}: expected a PEM file with certificates, which it is not or cannot "
                        f"be read ({error})", "validation-failure") from None
    return trustRootFromCertificates([Certificate(X509.from_cryptography(each)) for each in found])


def _explained(error: BaseException) -> str:
    """What a person should know of *error*."""
    for cause in [*(failure.value for failure in getattr(error, "reasons", ())), error]:
        if isinstance(cause, VerificationError | CertificateError):
            return "the certificate is not for this host"
        if isinstance(cause, SSL.Error):
            return f"TLS failed: {tls_text(cause) or 'no reason given'}"
    causes = [failure.value for failure in getattr(error, "reasons", ())] or [error]
    return str(causes[-1]) or type(causes[-1]).__name__
