"""What each mechanism of ``mailsvc.sasl`` says and asks: the RFCs' examples, and what is malformed.

SCRAM has test_sasl_scram.py, the lines and their limits test_sasl_exchange.py.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass

import pytest

from mailsvc.credentials import Digest, Password, ProvenName, Token
from mailsvc.sasl import mechanisms
from mailsvc.sasl.context import NAMES, AuthSettings
from mailsvc.sasl.mechanisms import MECHANISMS
from mailsvc.sasl.steps import Challenge, Failed, Kind, LogIn, Succeeded
from tests.sasl import Play, attempt, b64, context

GOOGLE = AuthSettings(
    mechanisms=["XOAUTH2", "OAUTHBEARER"],
    oauth_scope="example_scope",
    openid_configuration="https://example.com/.well-known/openid-configuration",
)


@dataclass(frozen=True)
class Example:
    """An exchange that an RFC prints.

    :ivar initial: the initial response, as printed.
    :ivar turns: a challenge and the response to it, as printed, from base64.
    :ivar login: what is asked for in the end.
    """

    mechanism: str
    initial: bytes | None
    turns: tuple[tuple[bytes, bytes], ...]
    login: LogIn


def password(name: bytes, secret: bytes, mechanism: str = "PLAIN",
             authorize_as: bytes | None = None) -> LogIn:
    return LogIn(Password(name, secret, attempt(mechanism)), authorize_as)


def token(name: bytes, secret: str, mechanism: str = "OAUTHBEARER") -> LogIn:
    return LogIn(Token(name, secret, attempt(mechanism)))


EXAMPLES = {
    "RFC 4616 §4, first": Example(
        "PLAIN", None, ((b"", b64(b"\0tim\0tanstaaftanstaaf")),),
        password(b"tim", b"tanstaaftanstaaf")),
    "RFC 4616 §4, second": Example(
        "PLAIN", None, ((b"", b64(b"Ursel\0Kurt\0xipj3plmq")),),
        password(b"Kurt", b"xipj3plmq", authorize_as=b"Ursel")),
    "RFC 4954 §4.1, initial response": Example(
        "PLAIN", b"dGVzdAB0ZXN0ADEyMzQ=", (), password(b"test", b"1234")),
    "RFC 4954 §4.1, without": Example(
        "PLAIN", None, ((b"", b"dGVzdAB0ZXN0ADEyMzQ="),), password(b"test", b"1234")),
    "RFC 5034 §6": Example(
        "PLAIN", b"dGVzdAB0ZXN0AHRlc3Q=", (), password(b"test", b"test")),
    "RFC 5034 §6, EXTERNAL": Example(
        "EXTERNAL", b"=", (), LogIn(ProvenName(b"fred@example.com", attempt("EXTERNAL")))),
    "RFC 4422 App. A, identity wanted": Example(
        "EXTERNAL", None, ((b"", b64(b"fred@example.com")),),
        LogIn(ProvenName(b"fred@example.com", attempt("EXTERNAL")))),
    "draft-murchison-sasl-login": Example(
        "LOGIN", None, ((b"VXNlcm5hbWU6", b"dGlt"), (b"UGFzc3dvcmQ6", b"dGFuc3RhYWZ0YW5zdGFhZg==")),
        password(b"tim", b"tanstaaftanstaaf", "LOGIN")),
    "LOGIN with the name in the command": Example(
        "LOGIN", b"dGlt", ((b"UGFzc3dvcmQ6", b"dGFuc3RhYWZ0YW5zdGFhZg=="),),
        password(b"tim", b"tanstaaftanstaaf", "LOGIN")),
    "RFC 7628 §4.1": Example(
        "OAUTHBEARER",
        b"bixhPXVzZXJAZXhhbXBsZS5jb20sAWhvc3Q9c2VydmVyLmV4YW1wbGUuY29tAXBvcnQ9MTQzAWF1dGg9QmVhcmVy"
        b"IHZGOWRmdDRxbVRjMk52YjNSbGNrQmhiSFJoZG1semRHRXVZMjl0Q2c9PQEB",
        (), token(b"user@example.com", "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==")),
    "XOAUTH2 as Google shows it": Example(
        "XOAUTH2",
        b"dXNlcj1zb21ldXNlckBleGFtcGxlLmNvbQFhdXRoPUJlYXJlciB5YTI5LnZGOWRmdDRxbVRjMk52"
        b"YjNSbGNrQmhkSFJoZG1semRHRXVZMjl0Q2cBAQ==",
        (), token(b"someuser@example.com", "ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg",
                  "XOAUTH2")),
}


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
@pytest.mark.parametrize("right", [True, False])
def test_examples(example: Example, right: bool) -> None:
    play = Play(right=right)
    step = play.start(example.mechanism, example.initial)
    for challenge, response in example.turns:
        assert isinstance(step, Challenge)
        assert step.line == challenge
        step = play.line(response)
    assert play.logins == [example.login]
    if right:
        assert step == Succeeded()
    elif example.mechanism.endswith(("BEARER", "XOAUTH2")):
        assert isinstance(step, Challenge), "it says first where to get a better token"
    else:
        assert step == Failed(Kind.WRONG, "wrong credentials")


# ---- PLAIN and LOGIN ----

@pytest.mark.parametrize(("message", "authorize_as"), [
    (b"\0tim\0secret", None),
    (b"tim\0tim\0secret", None),
    (b"kurt\0tim\0secret", b"kurt"),
])
def test_plain_hands_on_whom_else_the_client_wants_to_be(
        message: bytes, authorize_as: bytes | None) -> None:
    play = Play()
    play.start("PLAIN", b64(message))
    assert play.logins == [password(b"tim", b"secret", authorize_as=authorize_as)]


def test_plain_takes_any_utf_8() -> None:
    name, secret = "Jürgen@bücher.example".encode(), "ένα δύο\t☃ 😀".encode()
    play = Play()
    assert play.start("PLAIN", b64(b"\0" + name + b"\0" + secret)) == Succeeded()
    assert play.logins == [password(name, secret)]


@pytest.mark.parametrize("message", [
    b"", b"\0", b"a", b"\0\0", b"\0\0\0", b"\0tim\0", b"\0\0secret", b"tim\0secret", b"tim\0\0",
    b"\0tim\0sec\0ret", b"\0t\0im\0secret", b"\0tim\0secret\0", b"\0\xff\0secret",
    b"\0tim\0\xe9", b"\xff\0tim\0secret", b"\0\xed\xa0\x80\0secret",
], ids=repr)
@pytest.mark.parametrize("initial", [True, False])
def test_plain_malformed(message: bytes, initial: bool) -> None:
    play = Play()
    if initial:
        step = play.start("PLAIN", b64(message) or b"=")
    else:
        play.start("PLAIN")
        step = play.say(message)
    assert isinstance(step, Failed)
    assert step.kind is Kind.MALFORMED
    assert not play.logins


@pytest.mark.parametrize("messages", [
    [b""], [b"t\0im"], [b"\xff"],
    [b"tim", b""], [b"tim", b"sec\0ret"], [b"tim", b"\xe9"],
], ids=repr)
def test_login_malformed(messages: list[bytes]) -> None:
    play = Play()
    step = play.start("LOGIN")
    for message in messages:
        assert isinstance(step, Challenge)
        step = play.say(message)
    assert isinstance(step, Failed)
    assert step.kind is Kind.MALFORMED
    assert not play.logins


# ---- CRAM-MD5 ----

def test_cram_md5_example_of_rfc_2195(monkeypatch: pytest.MonkeyPatch) -> None:
    challenge = b"<1896.697170952@postoffice.reston.mci.net>"
    monkeypatch.setattr(mechanisms, "_new_message_id", lambda hostname: challenge)
    play = Play()
    step = play.start("CRAM-MD5")
    assert isinstance(step, Challenge)
    assert step.line == b"PDE4OTYuNjk3MTcwOTUyQHBvc3RvZmZpY2UucmVzdG9uLm1jaS5uZXQ+"
    assert play.line(b"dGltIGI5MTNhNjAyYzdlZGE3YTQ5NWI0ZTZlNzMzNGQzODkw") == Succeeded()
    [question] = play.logins
    credentials = question.credentials
    assert isinstance(credentials, Digest)
    assert (credentials.username, credentials.attempt) == (b"tim", attempt("CRAM-MD5"))
    assert credentials.checkPassword(b"tanstaaftanstaaf")
    assert not credentials.checkPassword(b"tanstaaftanstaaF")


def test_cram_md5_challenges_are_message_ids_and_never_the_same() -> None:
    challenges = set()
    for _ in range(100):
        play = Play()
        play.start("CRAM-MD5")
        challenges.update(play.challenges)
    assert len(challenges) == 100
    assert all(c.startswith(b"<") and c.endswith(b"@mx.example.com>") for c in challenges)


@pytest.mark.parametrize("message", [
    b"", b"tim", b"tim ", b" " + b"0" * 32, b"tim " + b"0" * 31, b"tim " + b"0" * 33,
    b"tim " + b"A" * 32, b"tim " + b"g" * 32, b"t\0im " + b"0" * 32, b"\xff " + b"0" * 32,
    b"tim " + b"0" * 32 + b"\n",
], ids=repr)
def test_cram_md5_malformed(message: bytes) -> None:
    play = Play()
    play.start("CRAM-MD5")
    step = play.say(message)
    assert isinstance(step, Failed)
    assert step.kind is Kind.MALFORMED
    assert not play.logins


@pytest.mark.parametrize("name", [b"tim smith", b"tim\nsmith", b" tim"])
def test_cram_md5_names_may_hold_spaces(name: bytes) -> None:
    play = Play()
    play.start("CRAM-MD5")
    assert play.say(name + b" " + b"0" * 32) == Succeeded()
    assert play.logins[0].credentials.username == name


@pytest.mark.parametrize("initial", [b"=", b"dGlt"])
def test_cram_md5_has_no_initial_response(initial: bytes) -> None:
    step = Play().start("CRAM-MD5", initial)
    assert isinstance(step, Failed)
    assert step.kind is Kind.MALFORMED


# ---- EXTERNAL ----

@pytest.mark.parametrize(("wanted", "name", "authorize_as"), [
    (b"", b"fred@example.com", None),
    (b"fred@example.com", b"fred@example.com", None),
    (b"FRED@EXAMPLE.COM", b"fred@example.com", None),
    (b"fred@example.org", b"Fred@example.org", None),
    (b"root@example.com", b"fred@example.com", b"root@example.com"),
])
def test_external_is_whom_the_certificate_names(
        wanted: bytes, name: bytes, authorize_as: bytes | None) -> None:
    play = Play()
    play.start("EXTERNAL")
    assert play.say(wanted) == Succeeded()
    assert play.logins == [LogIn(ProvenName(name, attempt("EXTERNAL")), authorize_as)]


@pytest.mark.parametrize("wanted", [b"\0", b"fred\0", b"\xff"])
def test_external_malformed(wanted: bytes) -> None:
    play = Play()
    play.start("EXTERNAL")
    step = play.say(wanted)
    assert isinstance(step, Failed)
    assert step.kind is Kind.MALFORMED


# ---- OAUTHBEARER and XOAUTH2 ----

def test_oauthbearer_failure_example_of_rfc_7628() -> None:
    play = Play(context(settings=GOOGLE), right=False)
    message = (b"n,a=user@example.com,\x01host=server.example.com\x01port=143\x01"
               b"auth=Bearer vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==\x01\x01")
    step = play.start("OAUTHBEARER", b64(message))
    assert isinstance(step, Challenge)
    assert step.line == (
        b"eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIiwic2NvcGUiOiJleGFtcGxlX3Njb3BlIiwib3BlbmlkLWNvbmZpZ3Vy"
        b"YXRpb24iOiJodHRwczovL2V4YW1wbGUuY29tLy53ZWxsLWtub3duL29wZW5pZC1jb25maWd1cmF0aW9uIn0=")
    assert play.line(b"AQ==") == Failed(Kind.WRONG, "wrong token")


@pytest.mark.parametrize("dummy", [b"", b"\x01", b"n,,\x01\x01"])
@pytest.mark.parametrize(("settings", "expected"), [
    (AuthSettings(["XOAUTH2"]), {"status": "401", "schemes": "bearer"}),
    (GOOGLE, {"status": "401", "schemes": "bearer", "scope": "example_scope",
              "openid-configuration": GOOGLE.openid_configuration}),
], ids=["bare", "full"])
def test_xoauth2_failure(settings: AuthSettings, expected: dict[str, str], dummy: bytes) -> None:
    play = Play(context(settings=settings), right=False)
    play.start("XOAUTH2", b64(b"user=me\x01auth=Bearer x\x01\x01"))
    assert json.loads(play.challenges[-1]) == expected
    assert play.say(dummy) == Failed(Kind.WRONG, "wrong token")


def test_a_client_may_cancel_instead_of_acknowledging() -> None:
    play = Play(right=False)
    play.start("OAUTHBEARER", b64(b"n,,\x01auth=Bearer x\x01\x01"))
    step = play.line(b"*")
    assert isinstance(step, Failed)
    assert step.kind is Kind.CANCELLED


@pytest.mark.parametrize(("message", "name", "secret"), [
    (b"n,,\x01auth=Bearer abc\x01\x01", b"", "abc"),
    (b"y,,\x01auth=Bearer abc\x01\x01", b"", "abc"),
    (b"n,a=a=2Cb=3Dc,\x01auth=bearer  abc==\x01\x01", b"a,b=c", "abc=="),
    ("n,a=jürgen,\x01auth=BEARER a.b-c_d~e+f/g\x01\x01".encode(), "jürgen".encode(),
     "a.b-c_d~e+f/g"),
    (b"n,,\x01auth=Bearer abc\x01path=/a\tb\r\n\x01\x01", b"", "abc"),
])
def test_oauthbearer_forms(message: bytes, name: bytes, secret: str) -> None:
    play = Play()
    assert play.start("OAUTHBEARER", b64(message)) == Succeeded()
    assert play.logins == [token(name, secret)]


@pytest.mark.parametrize("message", [
    b"n,,\x01\x01", b"n,,\x01auth=\x01\x01", b"n,,\x01auth=Bearer\x01\x01",
    b"n,,\x01auth=Bearer \x01\x01", b"n,,\x01auth=Bearer a b\x01\x01",
    b"n,,\x01auth=MAC id=\"1\"\x01\x01", b"n,,\x01auth=Bearer a\r\n\x01\x01",
    b"n,,\x01auth=Bearer =\x01\x01", b"n,,\x01host=x\x01\x01",
], ids=repr)
def test_oauthbearer_without_a_token_tells_where_to_get_one(message: bytes) -> None:
    play = Play()
    step = play.start("OAUTHBEARER", b64(message))
    assert isinstance(step, Challenge)
    assert json.loads(step.data) == {"status": "invalid_token"}
    assert not play.logins
    assert play.line(b"AQ==") == Failed(Kind.WRONG, "no bearer token")


@pytest.mark.parametrize(("mechanism", "message"), [
    ("OAUTHBEARER", message) for message in (
        b"", b"\x01", b"n,,", b"n,,\x01", b"n,\x01auth=Bearer x\x01\x01",
        b"p=tls-unique,,\x01auth=Bearer x\x01\x01", b"N,,\x01auth=Bearer x\x01\x01",
        b"n,a=,\x01auth=Bearer x\x01\x01", b"n,a=x=2c,\x01auth=Bearer x\x01\x01",
        b"n,a=\xff,\x01auth=Bearer x\x01\x01", b"n,a=a\0,\x01auth=Bearer x\x01\x01",
        b"n,b=x,\x01auth=Bearer x\x01\x01", b"n,,\x01auth=Bearer x\x01",
        b"n,,\x01auth=Bearer x\x01\x01\x01", b"n,,\x01auth=Bearer \xff\x01\x01",
        b"n,,\x01auth=Bearer x\x01auth=Bearer y\x01\x01", b"n,,\x01=x\x01\x01",
        b"n,,\x01auth=Bearer \0\x01\x01", b"n,,\x01auth\x01\x01", b"n,,auth=Bearer x\x01\x01",
    )] + [("XOAUTH2", message) for message in (
        b"", b"\x01", b"user=me", b"user=me\x01\x01", b"user=\x01auth=Bearer x\x01\x01",
        b"auth=Bearer x\x01user=me\x01\x01", b"user=me\x01auth=Bearer x\x01",
        b"user=\xff\x01auth=Bearer x\x01\x01", b"user=a\0\x01auth=Bearer x\x01\x01",
        b"user=me\x01auth=Bearer \xff\x01\x01", b"USER=me\x01auth=Bearer x\x01\x01",
        b"user=me\x01auth=Bearer x\x01\x01\x01",
    )], ids=repr)
def test_oauth_malformed(mechanism: str, message: bytes) -> None:
    play = Play()
    step = play.start(mechanism, b64(message) or b"=")
    assert isinstance(step, Failed)
    assert step.kind is Kind.MALFORMED
    assert not play.logins


# ---- all of them ----

SECRET = "hunter2hunter2"
SHOWN = {
    "PLAIN": [f"\0tim\0{SECRET}"],
    "LOGIN": ["tim", SECRET],
    "OAUTHBEARER": [f"n,a=tim,\x01auth=Bearer {SECRET}\x01\x01"],
    "XOAUTH2": [f"user=tim\x01auth=Bearer {SECRET}\x01\x01"],
    "CRAM-MD5": ["tim 0123456789abcdef0123456789abcdef"],
}


@pytest.mark.parametrize("mechanism", SHOWN)
def test_no_secret_shows(mechanism: str) -> None:
    play = Play(right=False)
    play.start(mechanism)
    for message in SHOWN[mechanism]:
        play.say(message.encode())
    shown = repr(play.steps) + repr(play.exchange) + repr(vars(play))
    assert len(play.logins) == 1
    for secret in (SECRET, base64.b64encode(SECRET.encode()).decode(), "0123456789abcdef"):
        assert secret not in shown


def test_every_mechanism_has_an_example() -> None:
    asked = {example.mechanism for example in EXAMPLES.values()}
    # CRAM-MD5's stands above, SCRAM's in test_sasl_scram.py, GSSAPI's in test_sasl_gssapi.py.
    assert asked | {"CRAM-MD5", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "GSSAPI"} == set(
        MECHANISMS)


def test_the_section_knows_each_mechanism() -> None:
    assert tuple(MECHANISMS) == NAMES
