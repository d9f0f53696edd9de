"""GSSAPI (RFC 4752) with MIT's KDC, and a client of the same library."""

from __future__ import annotations

import base64
import poplib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailsvc.credentials import ProvenName
from mailsvc.sasl.context import AuthSettings, Context
from mailsvc.sasl.exchange import Exchange
from mailsvc.sasl.mechanisms import MECHANISMS, offered
from mailsvc.sasl.steps import Challenge, Failed, Kind, LogIn, Succeeded
from tests.conftest import absent
from tests.kerberos import Kerberos
from tests.sasl import attempt, context
from tests.twistd import TWISTD, Twistd, add_account

HOST = "mx.example.com"
NO_LAYER = b"\1\0\0\0"


@pytest.fixture(scope="module")
def kerberos(program: Callable[[str], str]) -> Iterator[Kerberos]:
    if find_spec("gssapi") is None:
        absent("the package gssapi is not installed; `make kerberos` does that")
    with Kerberos(program, "alice", f"smtp/{HOST}", f"pop/{HOST}", f"host/{HOST}",
                  "alice/admin") as kdc:
        yield kdc


@pytest.fixture
def server(kerberos: Kerberos, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A connection to a server with keys."""
    for name, value in kerberos.environment.items():
        monkeypatch.setenv(name, value)
    return with_keys(kerberos)


def with_keys(kerberos: Kerberos, **realms: str) -> Context:
    return context(settings=AuthSettings(
        mechanisms=list(MECHANISMS), gssapi_keytab=str(kerberos.keytab),
        gssapi_realms=realms or {"EXAMPLE.ORG": "example.org"}))


class Client:
    """The client's side, as far as the library does it."""

    def __init__(self, cache: str, service: str = "smtp", *, mutual: bool = True) -> None:
        import gssapi  # noqa: PLC0415 - not everybody has it

        self.security = gssapi.SecurityContext(
            name=gssapi.Name(f"{service}@{HOST}", gssapi.NameType.hostbased_service),
            usage="initiate", mech=gssapi.MechType.kerberos,
            creds=gssapi.Credentials(usage="initiate", store={"ccache": f"FILE:{cache}"}),
            flags=[gssapi.RequirementFlag.integrity]
            + [gssapi.RequirementFlag.mutual_authentication] * mutual)

    def converse(self, server: Context, choice: bytes = NO_LAYER, *, initial: bool = True) -> Any:
        """The step after the last message, which is *choice* wrapped."""
        exchange = Exchange(server)
        token: bytes = self.security.step() or b""
        if initial:
            step = exchange.start(b"GSSAPI", base64.b64encode(token))
        else:
            assert exchange.start(b"gssapi") == Challenge(b"")
            step = exchange.receive(base64.b64encode(token))
        while not self.security.complete:
            if not isinstance(step, Challenge):
                return exchange, step
            step = exchange.receive(base64.b64encode(self.security.step(step.data) or b""))
        if isinstance(step, Challenge):
            assert self.security.unwrap(step.data).message == NO_LAYER
            step = exchange.receive(base64.b64encode(self.security.wrap(choice, False).message))
        return exchange, step


@pytest.mark.parametrize("initial", [True, False])
def test_login(initial: bool, server: Context, kerberos: Kerberos) -> None:
    exchange, step = Client(kerberos.log_in("alice")).converse(server, initial=initial)
    assert step == LogIn(ProvenName(b"alice@example.org", attempt("GSSAPI")))
    assert exchange.answer(True) == Succeeded()


def test_a_client_that_does_not_ask_who_the_server_is(server: Context, kerberos: Kerberos) -> None:
    """Then the server's context is complete without an answer, and the layers come at once."""
    step = Client(kerberos.log_in("alice"), mutual=False).converse(server)[1]
    assert step == LogIn(ProvenName(b"alice@example.org", attempt("GSSAPI")))


def test_a_token_too_many(server: Context, kerberos: Kerberos) -> None:
    exchange = Exchange(server)
    token = base64.b64encode(Client(kerberos.log_in("alice")).security.step())
    assert isinstance(exchange.start(b"GSSAPI", token), Challenge)
    assert exchange.receive(b"eA==") == Failed(Kind.MALFORMED, "a token too many")


def test_authorization_identity(server: Context, kerberos: Kerberos) -> None:
    cache = kerberos.log_in("alice")
    step = Client(cache).converse(server, NO_LAYER + b"alice@example.org")[1]
    assert step == LogIn(ProvenName(b"alice@example.org", attempt("GSSAPI")))
    exchange, step = Client(cache).converse(server, NO_LAYER + b"bob@example.org")
    assert step.authorize_as == b"bob@example.org"
    assert exchange.answer(False) == Failed(Kind.WRONG, "wrong credentials")
    for bad in b"\xff", b"a\0b":
        assert Client(cache).converse(server, NO_LAYER + bad)[1].kind is Kind.MALFORMED


@pytest.mark.parametrize("choice", [
    b"", b"\0", b"\1", b"\0\0\0\0", b"\2\0\0\0", b"\4\0\xff\xff", b"\1\0\xff\xff", b"\7\0\0\0"])
def test_only_no_layer(choice: bytes, server: Context, kerberos: Kerberos) -> None:
    step = Client(kerberos.log_in("alice")).converse(server, choice)[1]
    assert step == Failed(Kind.MALFORMED, "a security layer that was not offered")


def test_the_service_has_its_own_key(server: Context, kerberos: Kerberos) -> None:
    cache = kerberos.log_in("alice")
    for other in "pop", "host":
        step = Client(cache, other).converse(server)[1]
        assert step == Failed(Kind.WRONG, f"GSSAPI: a ticket for {other}/{HOST}@EXAMPLE.ORG")
    pop3 = context(settings=server.settings, protocol="pop3")
    assert isinstance(Client(cache, "pop").converse(pop3)[1], LogIn)
    assert isinstance(Client(cache).converse(pop3)[1], Failed)


def test_who_is_nobody(server: Context, kerberos: Kerberos) -> None:
    other = with_keys(kerberos, **{"EXAMPLE.NET": "example.org", "example.org": "example.org"})
    step = Client(kerberos.log_in("alice")).converse(other)[1]
    assert step == Failed(Kind.WRONG, "GSSAPI: 'alice@EXAMPLE.ORG' is nobody here")


def test_a_principal_of_several_components(
    program: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, server: Context,
    kerberos: Kerberos,
) -> None:
    """alice/admin is not alice; its key is in the keytab, which kinit can use."""
    cache = kerberos.directory / "cache-admin"
    kerberos._run("kinit", "-k", "-t", str(kerberos.keytab), "-c", str(cache), "alice/admin")
    step = Client(str(cache)).converse(server)[1]
    assert step == Failed(Kind.WRONG, "GSSAPI: 'alice/admin@EXAMPLE.ORG' is nobody here")


def test_a_token_shown_twice(server: Context, kerberos: Kerberos) -> None:
    token = base64.b64encode(Client(kerberos.log_in("alice")).security.step())
    assert isinstance(Exchange(server).start(b"GSSAPI", token), Challenge)
    step = Exchange(server).start(b"GSSAPI", token)
    assert isinstance(step, Failed)
    assert step.kind is Kind.WRONG


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=1, max_size=200), st.binary(max_size=50))
def test_no_octets_raise_anything(kerberos: Kerberos, first: bytes, second: bytes) -> None:
    exchange = Exchange(with_keys(kerberos))
    step = exchange.start(b"GSSAPI", base64.b64encode(first))
    if isinstance(step, Challenge):
        step = exchange.receive(base64.b64encode(second))
    assert isinstance(step, Failed | Challenge)


def test_a_changed_message(server: Context, kerberos: Kerberos) -> None:
    cache = kerberos.log_in("alice")
    token = bytearray(Client(cache).security.step())
    for place in 0, len(token) // 2, len(token) - 1:
        changed = bytes(token[:place]) + bytes([token[place] ^ 1]) + bytes(token[place + 1:])
        assert isinstance(Exchange(server).start(b"GSSAPI", base64.b64encode(changed)), Failed)


def test_offered_only_with_a_keytab_and_a_realm(
    kerberos: Kerberos, monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "GSSAPI" in offered(with_keys(kerberos))
    assert "GSSAPI" not in offered(context())
    for values in ({"gssapi_keytab": "/etc/krb5.keytab"},
                   {"gssapi_realms": {"EXAMPLE.ORG": "example.org"}}):
        bare = context(settings=AuthSettings(mechanisms=list(MECHANISMS), **values))  # type: ignore[arg-type]
        assert "GSSAPI" not in offered(bare)
        step = Exchange(bare).start(b"GSSAPI", b"eA==")
        assert isinstance(step, Failed) and step.kind is Kind.UNSUPPORTED
    monkeypatch.setattr("mailsvc.sasl.gssapi.find_spec", lambda name: None)
    assert "GSSAPI" not in offered(with_keys(kerberos)), "without the package"


def test_pop3(server: Context, kerberos: Kerberos, tmp_path: Path) -> None:
    """The whole service, also with passwords kept elsewhere."""
    add_account(tmp_path)
    (tmp_path / "passwords").write_text("")
    with Twistd([*TWISTD, "--nodaemon", "--pidfile=", "mailsvc", "--set",
                 f"service.data={tmp_path}", "--set", "listeners.smtp=[]", "--pop3",
                 "tcp:0:interface=127.0.0.1", "--auth", f"file:{tmp_path}/passwords",
                 "--set", f"auth.gssapi_keytab={kerberos.keytab}",
                 "--set", "auth.gssapi_realms={'EXAMPLE.ORG' = 'example.org'}"]) as process:
        session = poplib.POP3("127.0.0.1", process.port("pop3"), timeout=30)
        assert "GSSAPI" in session.capa()["SASL"]
        security = Client(kerberos.log_in("alice"), "pop").security
        reply = session._shortcmd(  # type: ignore[attr-defined]
            "AUTH GSSAPI " + base64.b64encode(security.step()).decode())
        security.step(base64.b64decode(reply[2:]))
        reply = session._shortcmd("")  # type: ignore[attr-defined]
        assert security.unwrap(base64.b64decode(reply[2:])).message == NO_LAYER
        choice = base64.b64encode(security.wrap(NO_LAYER, False).message).decode()
        assert session._shortcmd(choice).startswith(b"+OK 0 messages")  # type: ignore[attr-defined]
        session.close()
        process.stop()


def test_a_keytab_that_cannot_be_read(server: Context) -> None:
    bad = context(settings=AuthSettings(
        mechanisms=["GSSAPI"], gssapi_keytab="/nonexistent", gssapi_realms={"E": "e"}))
    step = Exchange(bad).start(b"GSSAPI", b"eA==")
    assert isinstance(step, Failed) and step.reason.startswith("GSSAPI: ")
