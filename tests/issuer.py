"""An OAuth 2.0 authorization server on loopback, by authlib, over HTTPS.

It gives tokens for passwords (RFC 6749 §4.3) and answers introspection (RFC 7662).
"""

from __future__ import annotations

import base64
import json
import secrets
import ssl
import time
import urllib.request
from typing import Any
from urllib.parse import parse_qs, urlencode

import trustme
from authlib.oauth2.rfc6749 import AuthorizationServer, ClientMixin, OAuth2Request, TokenMixin
from authlib.oauth2.rfc6749.grants import ResourceOwnerPasswordCredentialsGrant
from authlib.oauth2.rfc6749.requests import BasicOAuth2Payload
from authlib.oauth2.rfc6750 import BearerTokenGenerator
from authlib.oauth2.rfc7662 import IntrospectionEndpoint
from twisted.internet import reactor
from twisted.internet.ssl import PrivateCertificate
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

CLIENT_ID, CLIENT_SECRET = "mailsvc", "the-clients-secret"
PEOPLE = {"alice": "s3cret", "bob": "builder"}


class Client(ClientMixin):
    """The one client there is: it asks for tokens and is asked to introspect them."""

    client_id = CLIENT_ID

    def get_client_id(self) -> str:
        return CLIENT_ID

    def get_allowed_scope(self, scope: str) -> str:
        return scope or ""

    def check_client_secret(self, client_secret: str) -> bool:
        return client_secret == CLIENT_SECRET

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        return method == "client_secret_basic"

    def check_grant_type(self, grant_type: str) -> bool:
        return grant_type == "password"


class Token(TokenMixin):
    """A token that was issued."""

    def __init__(self, user: str, scope: str, seconds: float) -> None:
        self.user = user
        self.scope = scope
        self.expires = time.time() + seconds
        self.revoked = False

    def is_expired(self) -> bool:
        return time.time() >= self.expires

    def is_revoked(self) -> bool:
        return self.revoked


class Passwords(ResourceOwnerPasswordCredentialsGrant):
    """The grant."""

    TOKEN_ENDPOINT_AUTH_METHODS = ("client_secret_basic",)

    def authenticate_user(self, username: str, password: str) -> str | None:
        return username if PEOPLE.get(username) == password else None


class _Request(OAuth2Request):
    def __init__(self, request: Request) -> None:
        super().__init__("POST", "https://localhost" + request.uri.decode(), headers={
            name.decode().title(): values[0].decode()
            for name, values in request.requestHeaders.getAllRawHeaders()})
        assert request.content is not None
        self._form = {name: values[0] for name, values in parse_qs(
            request.content.read().decode()).items()}
        self.payload = BasicOAuth2Payload(self._form)

    @property
    def form(self) -> dict[str, str]:
        return self._form

    @property
    def args(self) -> dict[str, str]:
        return {}


class Issuer(AuthorizationServer, Resource):
    """The server; *stop* ends it.

    :ivar url: of its introspection endpoint.
    :ivar asked: how often that was asked.
    :ivar claims: what it says of a token besides what the token says.
    """

    isLeaf = True

    def __init__(self) -> None:
        AuthorizationServer.__init__(self)
        Resource.__init__(self)
        self.tokens: dict[str, Token] = {}
        self.asked = 0
        self.claims: dict[str, Any] = {}
        self.seconds = 600.0
        self.authority = trustme.CA()
        issued = self.authority.issue_cert("localhost")
        pem = issued.private_key_pem.bytes()
        certificate = PrivateCertificate.loadPEM(issued.cert_chain_pems[0].bytes() + pem)
        self._port = reactor.listenSSL(  # type: ignore[attr-defined]
            0, Site(self), certificate.options(), interface="127.0.0.1")
        self.base = f"https://localhost:{self._port.getHost().port}"
        self.url = self.base + "/introspect"
        self.register_token_generator(
            "default", BearerTokenGenerator(lambda **_: secrets.token_urlsafe(32)))
        self.register_grant(Passwords)
        self.register_endpoint(_introspection(self))

    def stop(self) -> Any:
        return self._port.stopListening()

    def token(self, user: str, scope: str = "mail openid") -> str:
        """A token, asked for as a client does; blocks."""
        form = urlencode({"grant_type": "password", "username": user, "password": PEOPLE[user],
                          "scope": scope}).encode()
        pair = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        request = urllib.request.Request(
            self.base + "/token", form, {"Authorization": "Basic " + pair})
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        with urllib.request.urlopen(request, timeout=10, context=context) as response:
            return json.load(response)["access_token"]

    # What authlib asks of a framework.

    def render_POST(self, request: Request) -> bytes:
        if request.uri == b"/token":
            status, body, headers = self.create_token_response(request)
        else:
            self.asked += 1
            status, body, headers = self.create_endpoint_response("introspection", request)
        request.setResponseCode(status)
        for name, value in headers:
            request.setHeader(name, value)
        return json.dumps(body).encode()

    def query_client(self, client_id: str) -> Client | None:
        return Client() if client_id == CLIENT_ID else None

    def save_token(self, token: dict[str, str], request: OAuth2Request) -> None:
        self.tokens[token["access_token"]] = Token(
            str(request.user), token.get("scope", ""), self.seconds)

    def send_signal(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Nobody listens."""

    def create_oauth2_request(self, request: Request) -> OAuth2Request:
        return request if isinstance(request, OAuth2Request) else _Request(request)

    def handle_response(self, status: int, body: Any, headers: Any) -> tuple[int, Any, Any]:
        return status, body, headers


def _introspection(issuer: Issuer) -> type[IntrospectionEndpoint]:
    class Introspection(IntrospectionEndpoint):
        def check_permission(self, token: Token, client: Client, request: OAuth2Request) -> bool:
            return True

        def query_token(self, token_string: str, token_type_hint: str) -> Token | None:
            assert token_type_hint == "access_token"
            return issuer.tokens.get(token_string)

        def introspect_token(self, token: Token) -> dict[str, Any]:
            return {"active": True, "client_id": CLIENT_ID, "token_type": "Bearer",
                    "username": token.user, "email": f"{token.user}@example.org",
                    "sub": f"id-{token.user}", "scope": token.scope, "aud": ["mail", "calendar"],
                    "iss": issuer.base, "exp": int(token.expires), **issuer.claims}

    return Introspection
