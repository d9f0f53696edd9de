"""``--auth oauth:`` against an authorization server, and against issuers that misbehave."""

from __future__ import annotations

import base64
import json
import poplib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs, formatEvent
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from mailsvc.checkers.arguments import BadArguments
from mailsvc.credentials import Token
from tests.checkers import ATTEMPT, described, made, outcome, pause
from tests.daemons import PATIENCE
from tests.issuer import CLIENT_ID, CLIENT_SECRET, Issuer
from tests.twistd import ACCOUNT, TWISTD, Twistd, add_account

# Twisted speaks to pyOpenSSL by its old names.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


@pytest_twisted.async_yield_fixture
async def issuer() -> AsyncIterator[Issuer]:
    server = Issuer()
    yield server
    await maybeDeferred(server.stop)


@pytest.fixture
def arguments(issuer: Issuer, tmp_path: Path) -> dict[str, Any]:
    """What makes a checker that works."""
    issuer.authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    (tmp_path / "secret").write_text(CLIENT_SECRET + "\n")
    return {"url": issuer.url, "client_id": CLIENT_ID, "client_secret_file": tmp_path / "secret",
            "ca": tmp_path / "ca.pem", "scope": "mail", "claim": "email"}


async def show(checker: Any, token: str, name: str = "") -> str:
    return await outcome(checker.requestAvatarId(Token(name.encode(), token, ATTEMPT)))


async def issued(issuer: Issuer, user: str, scope: str = "mail openid") -> str:
    return await deferToThread(issuer.token, user, scope)


@pytest_twisted.ensureDeferred
async def test_tokens(arguments: dict[str, Any], issuer: Issuer) -> None:
    checker = made("oauth", **arguments)
    token = await issued(issuer, "alice")
    assert await show(checker, token) == ACCOUNT
    assert await show(checker, token, ACCOUNT) == ACCOUNT
    assert await show(checker, token, "Alice@Example.ORG") == ACCOUNT
    assert await show(checker, token, "bob@example.org") == "no", "somebody else's"
    assert await show(checker, token, "alice") == "no"
    assert await show(checker, "not-a-token") == "no"
    assert await show(checker, await issued(issuer, "bob")) == "bob@example.org"


@pytest.mark.parametrize(("claim", "name"), [
    ("username", "alice@example.org"), ("sub", "id-alice@example.org"), ("email", ACCOUNT)])
@pytest_twisted.ensureDeferred
async def test_claims(claim: str, name: str, arguments: dict[str, Any], issuer: Issuer) -> None:
    checker = made("oauth", **{**arguments, "claim": claim, "domain": "example.org"})
    token = await issued(issuer, "alice")
    assert await show(checker, token, name) == name
    assert await show(checker, token, name.partition("@")[0]) == name


@pytest.mark.parametrize(("values", "claims"), [
    ({"scope": "mail admin"}, {}), ({"scope": "mai"}, {}), ({}, {"scope": ["mail"]}),
    ({"audience": "web"}, {}), ({"audience": "mai"}, {"aud": "mail"}),
    ({"audience": "mail"}, {"aud": None}),
    ({"issuer": "https://other.example"}, {}),
    ({"claim": "nickname"}, {}), ({}, {"email": ["a"]}), ({}, {"email": ""}),
    ({}, {"email": "alice@example.org\0"}), ({}, {"email_verified": False}),
    ({}, {"exp": time.time() - 1}), ({}, {"exp": "tomorrow"}), ({}, {"exp": True}),
    ({}, {"exp": float("nan")}), ({}, {"exp": 10 ** 400}), ({}, {"email": "\ud800"}),
    ({}, {"nbf": time.time() + 86_400}), ({}, {"active": False}),
])
@pytest_twisted.ensureDeferred
async def test_what_makes_a_token_no_good(
    values: dict[str, Any], claims: dict[str, Any], arguments: dict[str, Any], issuer: Issuer,
) -> None:
    token = await issued(issuer, "alice")
    checker = made("oauth", **{**arguments, **values})
    issuer.claims = claims
    with capturedLogs() as events:
        assert await show(checker, token) == "no"
    assert any("a token was refused" in (formatEvent(event) or "") for event in events)
    assert not any(token in (formatEvent(event) or "") for event in events)
    issuer.claims = {}
    assert await show(made("oauth", **arguments, audience="mail", issuer=issuer.base),
                      token) == ACCOUNT


@pytest_twisted.ensureDeferred
async def test_memory(arguments: dict[str, Any], issuer: Issuer) -> None:
    checker = made("oauth", **arguments)
    token = await issued(issuer, "alice")
    for _ in range(5):
        assert await show(checker, token) == ACCOUNT
        assert await show(checker, token, "bob@example.org") == "no"
    assert issuer.asked == 1
    issuer.tokens[token].revoked = True
    assert await show(checker, token) == ACCOUNT, "for as long as it is remembered"
    assert await show(made("oauth", **arguments), token) == "no"
    forgetful = made("oauth", **arguments, cache_seconds=0)
    other = await issued(issuer, "bob")
    assert await show(forgetful, other) == "bob@example.org"
    issuer.tokens[other].revoked = True
    assert await show(forgetful, other) == "no"
    # What expires is not remembered for longer than that.
    issuer.seconds = 2.0
    short = await issued(issuer, "bob")
    assert await show(checker, short) == "bob@example.org"
    await pause(2.1)
    assert await show(checker, short) == "no"


@pytest_twisted.ensureDeferred
async def test_outage(arguments: dict[str, Any], issuer: Issuer, tmp_path: Path) -> None:
    token = await issued(issuer, "alice")
    (tmp_path / "wrong").write_text("wrong")
    for values, expected in (
            ({"client_secret_file": tmp_path / "wrong"}, "HTTP status 401, expected client_id"),
            ({"url": issuer.url.replace("localhost", "127.0.0.1")}, "127.0.0.1"),
            ({"ca": ""}, "certificate verify failed")):
        with capturedLogs() as events:
            assert await show(made("oauth", **{**arguments, **values}), token) == "later"
        texts = [formatEvent(event) or "" for event in events]
        assert any(expected in text for text in texts), texts
    checker = made("oauth", **arguments)
    await issuer.stop()
    assert await show(checker, token) == "later"


class Misbehaving(Resource):
    """An issuer that gives the answer that it is told to."""

    isLeaf = True

    def __init__(self, answer: Callable[[Request], bytes | int]) -> None:
        super().__init__()
        self.answer = answer
        self.heard: list[tuple[bytes | None, bytes]] = []

    def render_POST(self, request: Request) -> bytes | int:
        assert request.content is not None
        self.heard.append((request.getHeader(b"authorization"), request.content.read()))
        return self.answer(request)


def _status(code: int) -> Callable[[Request], bytes]:
    def answer(request: Request) -> bytes:
        request.setResponseCode(code)
        return b'{"active": true, "username": "alice"}'
    return answer


def _moved(request: Request) -> bytes:
    request.redirect(b"/elsewhere")
    return b""


def _cut(request: Request) -> int:
    request.setHeader(b"content-length", b"100")
    request.write(b'{"active": true')
    request.transport.abortConnection()  # type: ignore[union-attr]
    return NOT_DONE_YET


def _endless(request: Request) -> int:
    request.write(b"[" * 70_000)
    return NOT_DONE_YET


@pytest.mark.parametrize("answer", [
    _status(500), _status(204), _status(404), _moved, _cut, _endless,
    lambda _: b"", lambda _: b"[]", lambda _: b"{}", lambda _: b"\xff",
    lambda _: b'{"active": "yes"}', lambda _: NOT_DONE_YET,
    lambda _: b'{"a":' * 2000])
@pytest_twisted.ensureDeferred
async def test_answers_that_are_none(answer: Callable[[Request], bytes | int],
                                     tmp_path: Path) -> None:
    resource = Misbehaving(answer)
    port = reactor.listenTCP(  # type: ignore[attr-defined]
        0, Site(resource), interface="127.0.0.1")
    (tmp_path / "secret").write_text("a:b c/ü")
    checker = made("oauth", url=f"http://127.0.0.1:{port.getHost().port}/x", client_id="a:b",
                   client_secret_file=tmp_path / "secret", timeout=0.5)
    try:
        assert await show(checker, "t=&+/") == "later"
    finally:
        await port.stopListening()
    assert resource.heard == [(
        b"Basic " + base64.b64encode(b"a%3Ab:a%3Ab%20c%2F%C3%BC"),
        b"token=t%3D%26%2B%2F&token_type_hint=access_token")]


@pytest_twisted.ensureDeferred
async def test_waiting_has_a_limit(tmp_path: Path) -> None:
    resource = Misbehaving(lambda _: NOT_DONE_YET)
    port = reactor.listenTCP(  # type: ignore[attr-defined]
        0, Site(resource), interface="127.0.0.1")
    (tmp_path / "secret").write_text("x")
    checker = made("oauth", url=f"http://127.0.0.1:{port.getHost().port}/x", client_id="a",
                   client_secret_file=tmp_path / "secret", timeout=1, connections=2, waiting=3)
    answers = [Deferred.fromCoroutine(show(checker, f"t{n}")) for n in range(7)]
    assert [answer.called for answer in answers] == [False] * 5 + [True] * 2
    await pause(0.5)
    assert len(resource.heard) == 2
    assert set(await gatherResults(answers)) == {"later"}
    await port.stopListening()


@pytest.mark.parametrize(("values", "expected"), [
    ({"url": "http://id.example.org/x"}, "expected an https:// URL"),
    ({"url": "id.example.org"}, "expected an https:// URL"),
    ({"client_id": ""}, "client_id=: expected a client id"),
    ({"client_secret_file": "/nonexistent"}, "client_secret_file=/nonexistent: cannot be read"),
    ({"claim": ""}, "claim=: expected the name of a claim"),
])
def test_bad_arguments(arguments: dict[str, Any], values: dict[str, Any], expected: str) -> None:
    with pytest.raises(BadArguments) as refused:
        made("oauth", **{**arguments, **values})
    assert expected in str(refused.value)


@pytest_twisted.ensureDeferred
async def test_pop3(arguments: dict[str, Any], issuer: Issuer, tmp_path: Path) -> None:
    """The whole service, by XOAUTH2 and OAUTHBEARER; passwords go on to work."""
    add_account(tmp_path)
    token = await issued(issuer, "alice")

    def talk() -> list[bytes]:
        with Twistd([*TWISTD, "--nodaemon", "--pidfile=", "mailsvc", "--set",
                     f"service.data={tmp_path}", "--set", "listeners.smtp=[]", "--pop3",
                     "tcp:0:interface=127.0.0.1", "--auth",
                     described("oauth", **arguments)]) as process:
            port = process.port("pop3")
            replies = [
                log_in(port, "XOAUTH2", f"user={ACCOUNT}\1auth=Bearer {token}\1\1"),
                log_in(port, "OAUTHBEARER", f"n,a={ACCOUNT},\1auth=Bearer {token}\1\1"),
                log_in(port, "OAUTHBEARER", f"n,a=bob@example.org,\1auth=Bearer {token}\1\1"),
                log_in(port, "XOAUTH2", f"user={ACCOUNT}\1auth=Bearer x{token}\1\1"),
            ]
            session = poplib.POP3("127.0.0.1", port, timeout=PATIENCE)
            assert "SCRAM-SHA-256" in session.capa()["SASL"]
            session.user(ACCOUNT)
            replies.append(session.pass_("secret"))
            session.close()
            process.stop()
            assert token not in process.output
            return replies

    replies = await deferToThread(talk)
    assert [reply[:3] for reply in replies] == [b"+OK", b"+OK", b"-ER", b"-ER", b"+OK"]


def log_in(port: int, mechanism: str, message: str) -> bytes:
    """The reply to AUTH, after the acknowledgement of what tells why it failed."""
    session = poplib.POP3("127.0.0.1", port, timeout=PATIENCE)
    try:
        session._putcmd(f"AUTH {mechanism} {base64.b64encode(message.encode()).decode()}")  # type: ignore[attr-defined]
        reply = session._getline()[0]  # type: ignore[attr-defined]
        if reply.startswith(b"+ "):
            assert json.loads(base64.b64decode(reply[2:]))["status"] in {"invalid_token", "401"}
            session._putcmd("AQ==")  # type: ignore[attr-defined]
            reply = session._getline()[0]  # type: ignore[attr-defined]
        return reply
    finally:
        session.close()
