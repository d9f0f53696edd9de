"""The client's side of SASL: against the server's, and against servers that cheat."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from mailsvc.credentials import Digest, Password, Token
from mailsvc.sasl.client import MECHANISMS, Abandoned, ClientExchange, Login, choose
from mailsvc.sasl.context import AuthSettings, Context
from mailsvc.sasl.exchange import Exchange
from mailsvc.sasl.scram import scram_keys
from mailsvc.sasl.steps import Challenge, Failed, LogIn, Lookup, Succeeded

BINDINGS = {"tls-exporter": b"x" * 32}
NAME, PASSWORD, TOKEN = "jörg=,", "pass wörd", "abc.def"
LOGIN = Login(name=NAME, password=PASSWORD, channel_bindings=BINDINGS, host="mx", port=587)
BEARER = Login(name=NAME, token=TOKEN, host="mx", port=587)


def right(step: LogIn) -> bool:
    """Whether the server would let these in."""
    match step.credentials:
        case Password(username, password):
            return (username, password) == (NAME.encode(), PASSWORD.encode())
        case Token(username, token):
            return (username, token) == (NAME.encode(), TOKEN)
        case Digest() as digest:
            return digest.username == NAME.encode() and digest.checkPassword(PASSWORD.encode())
    return step.credentials.username == NAME.encode()


def converse(mechanism: str, login: Login, password: str = PASSWORD,
             offered: tuple[str, ...] = ()) -> tuple[ClientExchange, Any]:
    """Let the two talk; the client, and the server's last step."""
    settings = AuthSettings(mechanisms=[*AuthSettings().mechanisms, "CRAM-MD5"])
    server = Exchange(Context(
        protocol="submission", hostname="mx", settings=settings, tls_active=True,
        usable=frozenset(settings.mechanisms), channel_bindings=BINDINGS,
        certificate_names=(NAME,)))
    client = ClientExchange(mechanism, login, offered)
    initial = client.initial_response
    if initial is not None:
        client.initial_sent()
    step = server.start(mechanism.encode(), initial.encode() if initial is not None else None)
    while not isinstance(step, Succeeded | Failed):
        match step:
            case Challenge(data):
                challenge = base64.b64encode(data).decode()
                step = server.receive(client.respond(challenge).encode())
            case Lookup():
                step = server.answer(scram_keys(password.encode(), 4_096))
            case LogIn():
                step = server.answer(right(step))
    return client, step


@pytest.mark.parametrize("mechanism", [each for each in MECHANISMS if each != "EXTERNAL"])
def test_the_two_sides_agree(mechanism: str) -> None:
    login = BEARER if mechanism in ("OAUTHBEARER", "XOAUTH2") else LOGIN
    client, step = converse(mechanism, login, offered=("SCRAM-SHA-256-PLUS",))
    assert isinstance(step, Succeeded), step
    client.succeeded()


@pytest.mark.parametrize("mechanism", [each for each in MECHANISMS if each != "EXTERNAL"])
def test_a_wrong_secret_is_refused(mechanism: str) -> None:
    wrong = Login(name=NAME, password="x", token="x", channel_bindings=BINDINGS)
    _, step = converse(mechanism, wrong, offered=("SCRAM-SHA-256-PLUS",))
    assert isinstance(step, Failed)


def test_a_server_that_cut_plus_out_is_found_out() -> None:
    """The client says "y": it could have bound, and was not offered to (RFC 5802 §6)."""
    _, step = converse("SCRAM-SHA-256", LOGIN, offered=("SCRAM-SHA-256",))
    assert isinstance(step, Failed)


def b64(text: bytes) -> str:
    return base64.b64encode(text).decode()


def scram() -> tuple[ClientExchange, bytes]:
    client = ClientExchange("SCRAM-SHA-256", Login(name="u", password="p"))
    assert client.initial_response is not None
    nonce = base64.b64decode(client.initial_response).rpartition(b"r=")[2]
    client.initial_sent()
    return client, nonce


@pytest.mark.parametrize("first", [
    b"r=%s,s=c2FsdA==,i=4096", b"r=%sx,s=c2FsdA==,i=4095", b"r=%sx,s=c2FsdA==,i=99999999",
    b"r=x%s,s=c2FsdA==,i=4096", b"m=1,r=%sx,s=c2FsdA==,i=4096", b"r=%sx,s=!,i=4096", b"%s", ])
def test_scram_takes_nothing_odd(first: bytes) -> None:
    client, nonce = scram()
    with pytest.raises(Abandoned):
        client.respond(b64(first % nonce))


@pytest.mark.parametrize("final", [b"v=AAAA", b"e=other-error", b""])
def test_scram_wants_the_server_to_prove_itself(final: bytes) -> None:
    client, nonce = scram()
    client.respond(b64(b"r=%sx,s=c2FsdA==,i=4096" % nonce))
    with pytest.raises(Abandoned):
        client.respond(b64(final))
    for steps in (0, 1):
        client, nonce = scram()
        if steps:
            client.respond(b64(b"r=%sx,s=c2FsdA==,i=4096" % nonce))
        with pytest.raises(Abandoned):
            client.succeeded()


ALL = ["GSSAPI", *reversed(MECHANISMS)]


@pytest.mark.parametrize(("offered", "login", "private", "chosen"), [
    (ALL, LOGIN, True, "SCRAM-SHA-256-PLUS"),
    (ALL, Login(name="u", password="p"), True, "SCRAM-SHA-256"),
    (["plain", "login"], LOGIN, True, "PLAIN"),
    (["PLAIN", "CRAM-MD5"], LOGIN, False, "CRAM-MD5"),
    (ALL, BEARER, True, "OAUTHBEARER"),
    (ALL, Login(name="u"), True, "EXTERNAL"),
    (["PLAIN", "LOGIN"], LOGIN, False, None), ([], LOGIN, True, None),
    (["EXTERNAL", "GSSAPI"], LOGIN, True, None), (["XOAUTH2"], BEARER, False, None)])
def test_the_best_is_chosen(offered: list[str], login: Login, private: bool,
                            chosen: str | None) -> None:
    if chosen is None:
        with pytest.raises(Abandoned):
            choose(offered, login, private=private)
    else:
        assert choose(offered, login, private=private) == chosen


@pytest.mark.parametrize(("wanted", "why"), [
    ("plain", None), ("login", "unencrypted"), ("XOAUTH2", "takes"),
    ("CRAM-MD5", "does not offer CRAM-MD5, but LOGIN"),
    ("DIGEST-MD5", "not a mechanism known here; there are SCRAM-SHA-256-PLUS"),
])
def test_one_that_is_asked_for_is_used_or_it_is_told_why_not(wanted: str, why: str | None) -> None:
    offered, private = ["LOGIN", "PLAIN", "XOAUTH2"], wanted != "login"
    if why is None:
        assert choose(offered, LOGIN, private=private, wanted=wanted) == wanted.upper()
    else:
        with pytest.raises(Abandoned, match=why):
            choose(offered, LOGIN, private=private, wanted=wanted)


@pytest.mark.parametrize(("login", "said"), [
    (Login(name="bob"), "bob"), (Login(authorize_as="carol"), "carol"),
    (Login(name="bob", authorize_as="carol"), "carol"), (Login(), "")])
def test_external_names_whom_to_act_as(login: Login, said: str) -> None:
    client = ClientExchange("EXTERNAL", login)
    assert client.initial_response == (b64(said.encode()) or "=")
    client.initial_sent()
    client.succeeded()


def test_the_two_sides_agree_on_external() -> None:
    client, step = converse("EXTERNAL", Login(name=NAME))
    assert isinstance(step, Succeeded), step
    client.succeeded()


def test_the_server_that_wants_to_begin_gets_the_initial_response_then() -> None:
    client = ClientExchange("PLAIN", Login(name="bob", password="secret"))
    assert client.respond("") == client.initial_response == b64(b"\0bob\0secret")
    client.succeeded()


@pytest.mark.parametrize(("mechanism", "challenges"), [
    ("PLAIN", 1), ("EXTERNAL", 1), ("LOGIN", 3), ("CRAM-MD5", 2), ("XOAUTH2", 2),
    ("OAUTHBEARER", 2)])
def test_more_than_a_mechanism_has_is_not_answered(mechanism: str, challenges: int) -> None:
    login = BEARER if "OAUTH" in mechanism or mechanism == "XOAUTH2" else Login(
        name="bob", password="" if mechanism == "EXTERNAL" else "secret")
    client = ClientExchange(mechanism, login)
    client.initial_sent()
    for _ in range(challenges - 1):
        client.respond(b64(b"more"))
    for _ in range(2):
        with pytest.raises(Abandoned, match="more than the mechanism has"):
            client.respond(b64(b"more"))


@pytest.mark.parametrize("mechanism", ["LOGIN", "CRAM-MD5"])
def test_success_before_the_secret_was_asked_for_is_not_believed(mechanism: str) -> None:
    client = ClientExchange(mechanism, Login(name="bob", password="secret"))
    with pytest.raises(Abandoned):
        client.succeeded()


def test_cram_md5_answers_no_empty_challenge() -> None:
    """What is the same each time could be replayed."""
    client = ClientExchange("CRAM-MD5", Login(name="bob", password="secret"))
    with pytest.raises(Abandoned):
        client.respond("")


@pytest.mark.parametrize("challenge", ["no base64", "====", "a", "bW9y\x01", "é"])
def test_a_challenge_that_is_no_base64_is_not_answered(challenge: str) -> None:
    client = ClientExchange("LOGIN", Login(name="bob", password="secret"))
    with pytest.raises(Abandoned):
        client.respond(challenge)


def test_a_secret_is_in_no_repr() -> None:
    assert PASSWORD not in repr(LOGIN) and TOKEN not in repr(BEARER)
    with pytest.raises(ValueError, match="NUL"):
        Login(name="a\0b", password="c")
