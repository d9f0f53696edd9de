"""``mailsvc.sasl.scram``: the exchange, channel binding, the keys.

The other side is scramp, a client that others wrote; it knows no tls-exporter, so the client for
that one is ours (``proof``).
"""

from __future__ import annotations

import base64
import hashlib
import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scramp import ScramClient

from mailsvc.credentials import ProvenName
from mailsvc.sasl import scram
from mailsvc.sasl.context import AuthSettings, Context
from mailsvc.sasl.scram import NAME, PLUS, decode_keys, decoy_keys, encode_keys, scram_keys
from mailsvc.sasl.steps import Challenge, Failed, Kind, LogIn, Lookup, Succeeded
from tests.sasl import BINDINGS, OPEN, PENCIL, Play, attempt, b64, context

PENCIL_TEXT = ("SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLm"
               "tbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=")


# ---- the exchange ----

def test_example_of_rfc_7677(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scram, "_new_nonce", lambda: b"%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0")
    play = Play(context(settings=AuthSettings([NAME])))
    play.start(NAME, b64(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"))
    play.say(b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
             b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    assert play.line(b"") == Succeeded()
    assert play.steps == [
        Lookup(b"user"),
        Challenge(b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
                  b"s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"),
        Challenge(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="),
        LogIn(ProvenName(b"user", attempt(NAME))),
        Succeeded(),
    ]


def converse(client: ScramClient, play: Play, *, initial: bool = True) -> None:
    """Let *client* log in.  It raises what it does not like, a wrong server signature for one."""
    first = client.get_client_first().encode()
    if initial:
        step = play.start(client.mechanism_name, b64(first))
    else:
        assert play.start(client.mechanism_name) == Challenge(b"")
        step = play.say(first)
    assert isinstance(step, Challenge)
    client.set_server_first(step.data.decode())
    step = play.say(client.get_client_final().encode())
    if isinstance(step, Challenge):
        client.set_server_final(step.data.decode())
        play.line(b"")


@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("right", [True, False])
def test_another_client(right: bool, initial: bool) -> None:
    play = Play(context(channel_bindings={}), right=right)
    converse(ScramClient([NAME], "us=er,", "pencil"), play, initial=initial)
    assert play.logins == [LogIn(ProvenName(b"us=er,", attempt(NAME)))]
    assert play.last == (Succeeded() if right else Failed(Kind.WRONG, "wrong credentials"))


@pytest.mark.parametrize("kind", ["tls-server-end-point", "tls-unique"])
def test_another_client_binds_the_channel(kind: str) -> None:
    play = Play(context(channel_bindings={kind: b"data"}))
    converse(ScramClient([PLUS], "user", "pencil", channel_binding=(kind, b"data")), play)
    assert play.logins == [LogIn(ProvenName(b"user", attempt(PLUS)))]
    assert play.last == Succeeded()


def test_another_channel_is_noticed() -> None:
    play = Play(context(channel_bindings={"tls-server-end-point": b"ours"}))
    converse(ScramClient([PLUS], "user", "pencil",
                         channel_binding=("tls-server-end-point", b"the middle's")), play)
    assert play.last == Failed(Kind.WRONG, "channel bindings do not match")
    assert not play.logins


def test_a_downgrade_is_noticed() -> None:
    # The client could have bound the channel and was shown a list without -PLUS.
    client = ScramClient([NAME], "user", "pencil", channel_binding=("tls-unique", b"x"))
    step = Play().start(NAME, b64(client.get_client_first().encode()))
    assert step == Failed(Kind.WRONG, "downgrade: the client did not see that -PLUS is offered")


@pytest.mark.parametrize("changes", [
    {"channel_bindings": {}}, {"settings": AuthSettings([NAME])}, {"usable": frozenset([NAME])},
], ids=lambda changes: next(iter(changes)))
def test_what_is_not_offered_was_not_cut_out(changes: dict[str, object]) -> None:
    client = ScramClient([NAME], "user", "pencil", channel_binding=("tls-unique", b"x"))
    play = Play(context(**changes))
    converse(client, play)
    assert play.last == Succeeded()


@pytest.mark.parametrize("password", ["pencil ", "Pencil", "x", "péncil"])
def test_a_wrong_password_is_told_with_its_name(password: str) -> None:
    play = Play()
    converse(ScramClient([NAME], "user", password), play)
    assert play.last == Failed(Kind.WRONG, "wrong proof", b"user")
    assert not play.logins


def test_nobody_tells_a_decoy_from_a_wrong_password() -> None:
    told = []
    for keys in (PENCIL, decoy_keys("user", b"secret of ours", 4096)):
        play = Play(keys=keys)
        converse(ScramClient([NAME], "user", "wrong", c_nonce="abc"), play)
        told.append([(type(step), len(getattr(step, "data", b""))) for step in play.steps])
        assert play.last == Failed(Kind.WRONG, "wrong proof", b"user")
    assert told[0] == told[1]


# ---- a client of our own ----

def proof(server_first: bytes, bare: bytes, final_bare: bytes) -> bytes:
    """The ClientProof of the password "pencil" (RFC 5802 §3)."""
    parts = dict(part.split(b"=", 1) for part in server_first.split(b","))
    salted = hashlib.pbkdf2_hmac("sha256", b"pencil", base64.b64decode(parts[b"s"]),
                                 int(parts[b"i"]))
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    message = b",".join((bare, server_first, final_bare))
    signature = hmac.digest(hashlib.sha256(client_key).digest(), message, "sha256")
    return b64(bytes(a ^ b for a, b in zip(client_key, signature, strict=True)))


def log_in(play: Play, mechanism: str, header: bytes, channel: bytes = b"", *,
           bare: bytes = b"n=user,r=abc", more: bytes = b"", proven: bytes | None = None,
           c: bytes | None = None, nonce: bytes | None = None) -> None:
    """Log in by our own client, with the parts given in place of the right ones."""
    step = play.start(mechanism, b64(header + bare))
    assert isinstance(step, Challenge), step
    c = b64(header + channel) if c is None else c
    nonce = step.data.split(b",")[0].removeprefix(b"r=") if nonce is None else nonce
    final = b"c=" + c + b",r=" + nonce + more
    given = proof(step.data, bare, final) if proven is None else proven
    if isinstance(play.say(final + b",p=" + given), Challenge):
        play.line(b"")


@pytest.mark.parametrize("kind", BINDINGS)
def test_channel_binding(kind: str) -> None:
    play = Play()
    log_in(play, PLUS, b"p=%s,," % kind.encode(), BINDINGS[kind])
    assert play.last == Succeeded()


@pytest.mark.parametrize(("authzid", "authorize_as"), [
    (b"", None), (b"a=user", None), (b"a=o=2Cth=3Der", b"o,th=er"),
])
def test_whom_else_the_client_wants_to_be(authzid: bytes, authorize_as: bytes | None) -> None:
    play = Play()
    log_in(play, NAME, b"n," + authzid + b",")
    assert play.logins == [LogIn(ProvenName(b"user", attempt(NAME)), authorize_as)]


def test_extensions_are_passed_over() -> None:
    play = Play()
    log_in(play, NAME, b"n,,", bare=b"n=user,r=abc,x=1,y=a=b", more=b",z=2,Z=3")
    assert play.last == Succeeded()


@pytest.mark.parametrize("name", [b"n", b"\xc3\xbc", b"=3D", b"=2C=3D2C", b" ", b"a b\n"])
def test_names(name: bytes) -> None:
    play = Play()
    log_in(play, NAME, b"n,,", bare=b"n=" + name + b",r=abc")
    decoded = name.replace(b"=2C", b",").replace(b"=3D", b"=")
    assert play.logins == [LogIn(ProvenName(decoded, attempt(NAME)))]


@pytest.mark.parametrize(("mechanism", "message", "kind"), [
    (mechanism, message, kind)
    for kind, mechanism, messages in (
        (Kind.MALFORMED, NAME, (
            b"", b"n", b"n,,", b"n,,n=user", b"n,,r=abc", b"n,,n=,r=abc", b"n,,n=user,r=",
            b"n,,r=abc,n=user", b"n,,n=user,r=a c", b"n,,n=user,r=a\xff", b"n,,n=us\0er,r=abc",
            b"n,,n=us=er,r=abc", b"n,,n=us=2cer,r=abc", b"n,,n=user=,r=abc", b"n,,n=\xff,r=abc",
            b"n,a=,n=user,r=abc", b"n,b=x,n=user,r=abc", b"n,a=\xff,n=user,r=abc",
            b"N,,n=user,r=abc", b",,n=user,r=abc", b"x,,n=user,r=abc", b"n=user,r=abc",
            b"n,,m=1,n=user,r=abc", b"n,,n=user,r=abc,", b"n,,n=user,r=abc,x",
            b"n,,n=user,r=abc,x=", b"n,,n=user,r=abc,1=x", b"n,,n=user,r=abc\n",
            # RFC 5802 §6: this flag goes with -PLUS, the others do not.
            b"p=tls-exporter,,n=user,r=abc", b"p=,,n=user,r=abc", b"p,,n=user,r=abc")),
        (Kind.MALFORMED, PLUS, (b"n,,n=user,r=abc", b"y,,n=user,r=abc", b"", b"p=,,n=user,r=abc",
                                b"p=tls exporter,,n=user,r=abc")),
        (Kind.WRONG, PLUS, (b"p=tls-unique,,n=user,r=abc", b"p=TLS-exporter,,n=user,r=abc")),
        (Kind.WRONG, NAME, (b"y,,n=user,r=abc",)),
    ) for message in messages
], ids=repr)
def test_client_first_refused(mechanism: str, message: bytes, kind: Kind) -> None:
    play = Play()
    step = play.start(mechanism, b64(message) or b"=")
    assert isinstance(step, Failed)
    assert (step.kind, step.username) == (kind, b"")
    assert play.steps == [step], "nothing was looked up"


@pytest.mark.parametrize(("changes", "kind", "username"), [
    ({"nonce": b"abc"}, Kind.MALFORMED, b""),
    ({"nonce": b"abcdefghijklmnopqrstuvwxyz0"}, Kind.MALFORMED, b""),
    ({"c": b"biw"}, Kind.MALFORMED, b""),
    ({"c": b"bi ws"}, Kind.MALFORMED, b""),
    ({"c": b64(b"y,,")}, Kind.WRONG, b""),
    ({"c": b64(b"n,,x")}, Kind.WRONG, b""),
    ({"more": b",x"}, Kind.MALFORMED, b""),
    ({"more": b",x=\0"}, Kind.MALFORMED, b""),
    ({"proven": b""}, Kind.MALFORMED, b""),
    ({"proven": b"x"}, Kind.MALFORMED, b""),
    ({"proven": b64(bytes(31))}, Kind.MALFORMED, b""),
    ({"proven": b64(bytes(33))}, Kind.MALFORMED, b""),
    ({"proven": b64(bytes(32)) + b",x=1"}, Kind.MALFORMED, b""),
    ({"proven": b64(bytes(32))}, Kind.WRONG, b"user"),
], ids=repr)
def test_client_final_refused(changes: dict[str, bytes], kind: Kind, username: bytes) -> None:
    play = Play()
    log_in(play, NAME, b"n,,", **changes)
    assert isinstance(play.last, Failed)
    assert (play.last.kind, play.last.username) == (kind, username)
    assert not play.logins


@pytest.mark.parametrize("line", [b"AQ==", b"*"])
def test_the_maildrop_is_not_opened_before_the_client_has_said_all(line: bytes) -> None:
    play = Play()
    step = play.start(NAME, b64(b"n,,n=user,r=abc"))
    assert isinstance(step, Challenge)
    final = b"c=biws,r=" + step.data.split(b",")[0].removeprefix(b"r=")
    assert isinstance(
        play.say(final + b",p=" + proof(step.data, b"n=user,r=abc", final)), Challenge)
    assert isinstance(play.line(line), Failed)
    assert not play.logins


def test_proof_and_binding_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    compare_digest = hmac.compare_digest

    def noting(a: bytes, b: bytes) -> bool:
        compared.extend((a, b))
        return compare_digest(a, b)

    monkeypatch.setattr("mailsvc.sasl.scram.hmac.compare_digest", noting)
    play = Play()
    log_in(play, PLUS, b"p=tls-exporter,,", BINDINGS["tls-exporter"])
    assert PENCIL.stored_key in compared
    assert b"p=tls-exporter,,exported" in compared


def test_nonces_are_long_and_never_the_same() -> None:
    nonces = set()
    for _ in range(100):
        step = Play().start(NAME, b64(b"n,,n=user,r=abc"))
        assert isinstance(step, Challenge)
        nonce = step.data.split(b",")[0].removeprefix(b"r=abc")
        assert len(nonce) == 24
        nonces.add(nonce)
    assert len(nonces) == 100


@pytest.mark.parametrize("where", [OPEN, context(tls_active=False, cleartext_allowed=True)])
def test_scram_without_tls_where_that_is_allowed(where: Context) -> None:
    play = Play(where)
    log_in(play, NAME, b"n,,")
    assert play.last == Succeeded()


# ---- the keys ----

@pytest.mark.parametrize(("password", "stored", "server"), [
    # Made by another implementation (GNU SASL 2.2.0, gsasl --mkpasswd).
    ("pencil", "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=",
     "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="),
    # A ligature, and a no-break space.
    ("ﬁpen\u00a0cil", "LZvkOCWH08JTNzCf8YR7J0/Zl70Y+/pm3/FOddLr6Ck=",
     "MeE0YaY1Igv7bgm4lssjVjio3YaBDxIJaFU/gJ1c2K8="),
    # RFC 4013 §3, examples 1 and 4.
    ("I\u00adX", "jm4XkHvFe7q0xZ4vmAKJUiTKPr1F+7MXnYyksTUVeBE=",
     "EqXM4c5+I7lQ5vHl5Ngu2rY8DBMM1XjG0dY6GEjwLx0="),
    ("\u00aa", "E8zpCvF22sapFfLPkfuQJ8tfVp88i6HlTv/teSJ+tHY=",
     "tjZ601sWcQ5IlqDGSaSXLGpRDBSgt6vLof1lq3c6Nps="),
    ("a\u200bb", "XOy+aNogXQVyJeaGZa7wab3xltmM/loxEYYzoRCDlg4=",
     "Quj1YswXpPWSBZzM1ofxmTeHS/PJ1sFplINhz8r1xIQ="),
])
def test_keys_as_others_make_them(password: str, stored: str, server: str) -> None:
    keys = scram_keys(password.encode(), 4096, PENCIL.salt)
    assert encode_keys(keys) == (
        f"SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==${stored}:{server}")


def same(first: bytes, second: bytes) -> bool:
    return scram_keys(first, 1, b"salt") == scram_keys(second, 1, b"salt")


@pytest.mark.parametrize(("first", "second"), [
    ("e\u0301", "é"), ("Ａ", "A"), ("\u3000", " "), ("x\ufe00", "x"), ("\u2168", "IX"),
    ("\u0627", "\ufe8d"),
], ids=ascii)
def test_forms_of_one_password(first: str, second: str) -> None:
    assert same(first.encode(), second.encode())


@pytest.mark.parametrize("password", [
    "ﬁ\a",           # a control character
    "ﬁ\u00a0\x7f",   # another
    "ﬁ\u0221",       # unassigned in Unicode 3.2
    "ﬁ\U0001f600",   # likewise
    "ﬁ\ue000",       # private use
    "ﬁ\ufffd",       # inappropriate for plain text
    "ﬁ\u2ff0",       # inappropriate for canonical representation
    "ﬁ\u200e",       # changes display
    "ﬁ\U000e0041",   # a tag
    "ﬁ\u0627",       # both directions
    "\u06271\ufe8d1",  # right to left, and ends otherwise
    "1\ufe8d",       # or begins
    "\u00ad",        # nothing is left
], ids=ascii)
def test_what_saslprep_prohibits_is_taken_as_it_is(password: str) -> None:
    folded = (password.replace("ﬁ", "fi").replace("\u00a0", " ").replace("\ufe8d", "\u0627")
              .replace("\u00ad", ""))
    assert folded != password
    keys = scram_keys(password.encode(), 1, b"salt")
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), b"salt", 1)
    assert keys.server_key == hmac.digest(salted, b"Server Key", "sha256")
    assert not same(password.encode(), folded.encode())


def test_octets_that_are_no_text_have_keys_too() -> None:
    assert not same(b"\xff", b"\xfe")


def test_every_salt_is_new() -> None:
    salts = {scram_keys(b"x", 1).salt for _ in range(50)}
    assert len(salts) == 50
    assert {len(salt) for salt in salts} == {16}


def test_keys_as_text() -> None:
    assert encode_keys(PENCIL) == PENCIL_TEXT
    assert decode_keys(PENCIL_TEXT) == PENCIL


@settings(max_examples=50)
@given(st.integers(1, 999_999_999), st.binary(min_size=1, max_size=40),
       st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_keys_survive_being_written(iterations: int, salt: bytes, stored: bytes,
                                    server: bytes) -> None:
    keys = type(PENCIL)(iterations, salt, stored, server)
    assert decode_keys(encode_keys(keys)) == keys


@pytest.mark.parametrize("text", [
    "", "pencil", PENCIL_TEXT[1:], PENCIL_TEXT[:-1], PENCIL_TEXT + "\n", PENCIL_TEXT + ":",
    PENCIL_TEXT.replace("SHA-256", "SHA-1"), PENCIL_TEXT.replace("4096", "0"),
    PENCIL_TEXT.replace("4096", "-1"), PENCIL_TEXT.replace("4096", "9" * 10),
    PENCIL_TEXT.replace("4096", "٤"), PENCIL_TEXT.replace("W22Z", "W2 Z"),
    PENCIL_TEXT.replace("W22Z", "W2é"),
    PENCIL_TEXT.replace("WG5d", ""), PENCIL_TEXT.replace("wfPL", ""),
    PENCIL_TEXT.replace("W22ZaJ0SNY7soEsUEjb6gQ==", ""),
], ids=ascii)
def test_what_is_not_keys_is_not_quoted(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not SCRAM-SHA-256 keys") as raised:
        decode_keys(text)
    assert "gQ" not in str(raised.value)


def test_decoys_are_stable_and_fit_nothing() -> None:
    first, second = (decoy_keys("nobody@example.com", b"secret", 15_000) for _ in range(2))
    assert (first.salt, first.iterations) == (second.salt, second.iterations)
    assert first.stored_key != second.stored_key
    assert first.server_key != second.server_key
    assert [len(part) for part in (first.salt, first.stored_key, first.server_key)] == [16, 32, 32]
    assert decoy_keys("other@example.com", b"secret", 15_000).salt != first.salt
    assert decoy_keys("nobody@example.com", b"another", 15_000).salt != first.salt
    assert decoy_keys("\udcff", b"secret", 15_000).salt != first.salt


def test_keys_show_neither_key() -> None:
    shown = repr(PENCIL)
    for key in (PENCIL.stored_key, PENCIL.server_key):
        assert repr(key)[2:10] not in shown
        assert b64(key).decode() not in shown
