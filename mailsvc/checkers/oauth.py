"""``--auth oauth:``: OAuth 2.0 bearer tokens, shown by OAUTHBEARER or XOAUTH2 (RFC 7628).

The token is shown to its issuer, by introspection (RFC 7662), over HTTPS, with this service's own
client id and secret.  It is good when the issuer says that it is active, its time has come and has
not run out (``nbf``, ``exp``), and it has every scope, the audience and the issuer that are asked
for.  One of its claims is the name of the account; the client may name that one and no other.

**Promises.**  An answer that is yes is remembered for a minute, or until the token expires if that
is sooner; no other is.  An issuer that does not answer, or not with what RFC 7662 says, is a
temporary failure.  Tokens go nowhere but to the issuer, and into no log; redirections are not
followed.

**Limits.**  A token that is revoked is good for as long as it is remembered.  Self-contained tokens
(RFC 9068) are introspected like any other, not verified here.

Twisted's own HTTP client does all of it: one form is sent, and a limited JSON object read.
"""

from __future__ import annotations

import base64
import io
import ipaddress
import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from zope.interface import implementer

from mailsvc.checkers.arguments import read, secret
from mailsvc.checkers.bounds import Turns
from mailsvc.checkers.successes import Successes
from mailsvc.checkers.trust import authorities
from mailsvc.credentials import IToken
from mailsvc.errors import TemporaryFailure
from mailsvc.settings import at_least, setting

HELP = """\
OAuth 2.0 tokens (OAUTHBEARER, XOAUTH2), shown to their issuer by introspection (RFC 7662).
Example: oauth:url=https\\://id.example.org/introspect:client_id=mail:client_secret_file=/etc/mailsvc/oauth.secret:claim=email:scope=mail
"""

#: The most octets of an issuer's answer.
_MOST = 65_536


def _url(value: str) -> str | None:
    expected = "an https:// URL, the issuer's introspection_endpoint (http:// on loopback only)"
    try:
        parts = urlsplit(value)
        if parts.scheme == "https" and parts.hostname and parts.port != 0:
            return None
        local = parts.hostname == "localhost" or ipaddress.ip_address(parts.hostname or "")\
            .is_loopback
    except ValueError:
        return expected
    return None if parts.scheme == "http" and local else expected


@dataclass(frozen=True, slots=True)
class Settings:
    """What may stand behind ``oauth:``."""

    url: str = setting("", "The issuer's introspection_endpoint.", check=_url)
    client_id: str = setting("", "The client id that the issuer knows this service by.",
                             check=lambda value: None if value else "a client id")
    client_secret_file: str = setting(
        "", "A file that holds its client secret, in one line.",
        check=lambda value: None if value else "the path of a file")
    claim: str = setting("username", "The claim that is the name of the account: username, email, "
                         "sub or another.",
                         check=lambda value: None if value else "the name of a claim")
    domain: str = setting("", "The domain of names that come without one; empty for the service's "
                          "own default.")
    scope: str = setting("", "Scopes that a token must have, with spaces between them.")
    audience: str = setting("", "The audience that a token must be for; empty for any.")
    issuer: str = setting("", "What the claim iss must be; empty for anything.")
    ca: str = setting("", "A PEM file of the authorities to trust; empty for the system's.")
    timeout: float = setting(10, "How long a login may take.", unit="seconds", check=at_least(0.1))
    connections: int = setting(8, "Requests at a time.", check=at_least(1))
    waiting: int = setting(100, "Logins that may wait for one.", check=at_least(0))
    cache_seconds: float = setting(
        60, "How long a token that was good is not shown again; 0 for never.", unit="seconds",
        check=at_least(0))


def checker(arguments: str) -> ICredentialsChecker:
    """The checker that *arguments* describe.

    :raises BadArguments: they cannot be used.
    """
    return IntrospectionChecker(read(Settings, arguments))


@implementer(ICredentialsChecker)
class IntrospectionChecker:
    """Asks the issuer of tokens; see the module."""

    credentialInterfaces = (IToken,)
    log = Logger()

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        password = secret("client_secret_file", settings.client_secret_file)
        # RFC 6749 §2.3.1: both are encoded as in a form.
        pair = f"{quote(settings.client_id, '')}:{quote(password, '')}".encode()
        self._authorization = "Basic " + base64.b64encode(pair).decode()
        self._authorities = authorities("ca", settings.ca)
        self._turns = Turns(settings.connections, settings.waiting, settings.timeout)
        self._successes = Successes(settings.cache_seconds)
        self._agent: Any = None

    def requestAvatarId(self, credentials: Any) -> Deferred[bytes | tuple[()]]:
        return Deferred.fromCoroutine(self._check(credentials.username, credentials.token))

    async def _check(self, wanted: bytes, token: str) -> bytes:
        now = time.time()
        name = self._successes.find(now, token.encode())
        if name is None:
            claims = await self._introspect(token)
            now = time.time()
            problem = self._problem(claims, now)
            if problem is not None:
                self.log.info("OAuth: a token was refused: {problem}", problem=problem)
                raise UnauthorizedLogin("Authentication failed")
            name = self._full(claims[self._settings.claim])
            if self._settings.cache_seconds:
                self._successes.add(now, name, token.encode(), until=claims.get("exp"))
        if wanted and self._full(wanted.decode("utf-8", "replace")).lower() != name.lower():
            self.log.info("OAuth: a token of {user} was shown for another name",
                          user=name.decode())
            raise UnauthorizedLogin("Authentication failed")
        return name

    def _full(self, name: str) -> bytes:
        domain = self._settings.domain
        return (f"{name}@{domain}" if domain and "@" not in name else name).encode()

    def _problem(self, claims: dict[str, Any], now: float) -> str | None:
        """Why a token of these *claims* is no good, or None."""
        settings = self._settings
        if claims.get("active") is not True:
            return "it is not active"
        if not _is_time(claims.get("exp", now + 1)) or claims.get("exp", now + 1) <= now:
            return "it has expired"
        if not _is_time(claims.get("nbf", now)) or claims.get("nbf", now) > now:
            return "it is not valid yet"
        scope = claims.get("scope", "")
        missing = set(settings.scope.split()) - set(
            scope.split() if isinstance(scope, str) else ())
        if missing:
            return f"it lacks the scope {' '.join(sorted(missing))}"
        audience = claims.get("aud")
        if settings.audience and settings.audience not in (
                audience if isinstance(audience, list) else [audience]):
            return "it is for another audience"
        if settings.issuer and claims.get("iss") != settings.issuer:
            return "it is of another issuer"
        name = claims.get(settings.claim)
        if not isinstance(name, str) or not name.isprintable() or not name:
            return f"it has no claim {settings.claim}"
        if settings.claim == "email" and claims.get("email_verified", True) not in (True, "true"):
            return "its email address is not verified"
        return None

    async def _introspect(self, token: str) -> dict[str, Any]:
        try:
            return await self._turns.run(lambda: self._ask(token))
        except TemporaryFailure:
            self.log.warn("OAuth: no answer from {url} in time", url=self._settings.url)
            raise
        except Exception as error:
            # Agent's failures hold the reasons of several attempts.
            reasons = [reason.value for reason in getattr(error, "reasons", None) or ()]
            self.log.error("OAuth: {url}: {problem}", url=self._settings.url,
                           problem="; ".join(map(str, reasons or [error])))
            raise TemporaryFailure("Logins cannot be checked now; try again later") from error

    async def _ask(self, token: str) -> dict[str, Any]:
        from twisted.web.client import FileBodyProducer  # noqa: PLC0415 - heavy
        from twisted.web.http_headers import Headers  # noqa: PLC0415

        if self._agent is None:
            self._agent = self._new_agent()
        form = urlencode({"token": token, "token_type_hint": "access_token"}).encode()
        response = await self._agent.request(b"POST", self._settings.url.encode(), Headers({
            "Authorization": [self._authorization], "Accept": ["application/json"],
            "Content-Type": ["application/x-www-form-urlencoded"],
            "User-Agent": ["mailsvc"]}), FileBodyProducer(io.BytesIO(form)))
        body = _Body()
        response.deliverBody(body)
        content = await body.whole
        if response.code != 200:
            raise ConnectionError(f"HTTP status {response.code}" + (
                ", expected client_id and client_secret_file as the issuer knows them"
                if response.code in {400, 401, 403} else ""))
        claims = json.loads(content)
        if not isinstance(claims, dict) or not isinstance(claims.get("active"), bool):
            raise ConnectionError("not an introspection response (RFC 7662 §2.2)")
        return claims

    def _new_agent(self) -> Any:
        from twisted.internet import reactor  # noqa: PLC0415
        from twisted.web.client import Agent, BrowserLikePolicyForHTTPS  # noqa: PLC0415

        return Agent(reactor, BrowserLikePolicyForHTTPS(self._authorities),
                     connectTimeout=self._settings.timeout)


def _is_time(value: object) -> bool:
    # Python reads NaN as a number of JSON's.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12


class _Body(Protocol):
    """Gathers a response's body, of which there may not be more than the limit.

    :ivar whole: fires with it; cancelling it ends the connection.
    """

    def __init__(self) -> None:
        self.whole: Deferred[bytes] = Deferred(lambda _: self._abort())
        self._content = b""

    def dataReceived(self, data: bytes) -> None:
        self._content += data
        if len(self._content) > _MOST and not self.whole.called:
            self.whole.errback(ConnectionError("an answer that is too long"))
            self._abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.whole.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.whole.callback(self._content)
        else:
            self.whole.errback(reason)

    def _abort(self) -> None:
        self.transport.stopProducing()  # type: ignore[union-attr]
