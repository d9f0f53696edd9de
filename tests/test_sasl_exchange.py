"""``mailsvc.sasl.exchange``, and what is offered when: lines, limits, whatever a client sends."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailsvc.credentials import Attempt
from mailsvc.sasl import mechanisms
from mailsvc.sasl.context import AuthSettings, Context
from mailsvc.sasl.exchange import CHALLENGES, LINE_OCTETS, Exchange
from mailsvc.sasl.grammar import decode_base64
from mailsvc.sasl.mechanisms import MECHANISMS, Mechanism, offered
from mailsvc.sasl.scram import NAME, PLUS
from mailsvc.sasl.steps import (
    Challenge,
    Conversation,
    Failed,
    Kind,
    LogIn,
    Lookup,
    Refused,
    Step,
    Succeeded,
)
from mailsvc.wire import LineReader, LineTooLong
from tests.sasl import BINDINGS, OPEN, PENCIL, Play, b64, context

#: GSSAPI takes a key distribution center: test_sasl_gssapi.py.
PLAYED = [name for name in MECHANISMS if name != "GSSAPI"]
MECHANISM = st.sampled_from(PLAYED)


# ---- what is offered ----

DEFAULT = ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "PLAIN", "LOGIN", "EXTERNAL", "OAUTHBEARER",
           "XOAUTH2"]
USABLE = frozenset(("PLAIN", "LOGIN", NAME, PLUS, "EXTERNAL"))
TLS: dict[str, Any] = {"settings": AuthSettings(), "usable": USABLE, "tls_active": True}


@pytest.mark.parametrize(("changes", "expected"), [
    ({}, DEFAULT[:5]),
    ({"usable": frozenset(MECHANISMS)}, DEFAULT),
    ({"usable": frozenset()}, []),
    ({"certificate_names": ()}, DEFAULT[:4]),
    ({"channel_bindings": {}}, DEFAULT[1:5]),
    ({"settings": AuthSettings(["LOGIN", "CRAM-MD5", "PLAIN"])}, ["LOGIN", "PLAIN"]),
    ({"settings": AuthSettings(["CRAM-MD5"]), "usable": frozenset(["CRAM-MD5"])}, ["CRAM-MD5"]),
    ({"settings": AuthSettings([])}, []),
    ({"tls_active": False}, []),
    ({"tls_active": False, "cleartext_allowed": True, "channel_bindings": {},
      "certificate_names": ()}, DEFAULT[1:4]),
    ({"cleartext_allowed": True}, DEFAULT[:5]),
])
def test_what_is_offered(changes: dict[str, Any], expected: list[str]) -> None:
    where = context(**(TLS | changes))
    assert offered(where) == expected
    for name in MECHANISMS:
        step = Play(where).start(name)
        if name in expected:
            assert isinstance(step, Challenge)
        else:
            assert isinstance(step, Failed)
            listed = name in where.settings.mechanisms and name in where.usable
            assert step.kind is (
                Kind.ENCRYPTION_NEEDED if listed and not where.private else Kind.UNSUPPORTED)


@pytest.mark.parametrize("name", MECHANISMS)
def test_nothing_begins_in_the_clear(name: str) -> None:
    where = context(tls_active=False)
    assert offered(where) == []
    for initial in (None, b"=", b64(b"\0tim\0secret")):
        play = Play(where)
        step = play.start(name, initial)
        assert isinstance(step, Failed)
        assert step.kind is Kind.ENCRYPTION_NEEDED
        assert play.steps == [step]


def test_a_context_is_in_the_clear_unless_it_says_otherwise() -> None:
    where = Context(protocol="pop3", hostname="mx.example.com", settings=AuthSettings(),
                    usable=USABLE)
    assert not where.private
    assert offered(where) == []
    assert where.attempt("PLAIN") == Attempt("pop3", "", "PLAIN")


def test_the_defaults() -> None:
    # No mechanism that needs recoverable secrets; GSSAPI has no keytab yet.
    mechanisms = AuthSettings().mechanisms
    assert [name for name in mechanisms if name != "GSSAPI"] == DEFAULT
    assert "GSSAPI" in mechanisms
    # RFC 4954 §4.
    assert LINE_OCTETS == 12_288


@pytest.mark.parametrize(("field", "good", "bad"), [
    ("mechanisms", [[], ["PLAIN"], list(MECHANISMS)],
     [["plain"], ["PLAIN", "PLAIN"], ["GSSAPI-X"], [""]]),
    ("openid_configuration", ["", "https://id.example.com/.well-known/openid-configuration"],
     ["http://id.example.com/", "id.example.com"]),
])
def test_settings(field: str, good: list[Any], bad: list[Any]) -> None:
    check = AuthSettings.__dataclass_fields__[field].metadata["check"]
    assert check(getattr(AuthSettings(), field)) is None
    assert [check(value) for value in good] == [None] * len(good)
    assert all(check(value) for value in bad)


@pytest.mark.parametrize(("protocol", "service"), [("submission", "smtp"), ("pop3", "pop")])
def test_what_a_context_tells(protocol: str, service: str) -> None:
    where = context(protocol=protocol)
    assert where.service == service
    assert where.attempt("PLAIN").protocol == protocol
    assert "exported" not in repr(where)


# ---- names ----

@pytest.mark.parametrize("name", [b"PLAIN", b"plain", b"Plain"])
def test_names_in_any_case(name: bytes) -> None:
    assert Exchange(OPEN).start(name) == Challenge(b"")


@pytest.mark.parametrize("name", [
    b"", b"PLAI", b"PLAIN ", b"\xff", b"PLA\0IN", "PLAıN".encode(), "ſCRAM-SHA-256".encode(),
    "LOGIN\N{KELVIN SIGN}".encode(), b"DIGEST-MD5", b"__class__",
])
def test_names_that_we_do_not_know(name: bytes) -> None:
    step = Exchange(OPEN).start(name)
    assert isinstance(step, Failed)
    assert step.kind is Kind.UNSUPPORTED


# ---- lines ----

@pytest.mark.parametrize("name", [name for name in PLAYED if name != "CRAM-MD5"])
def test_an_equals_sign_is_an_empty_initial_response(name: str) -> None:
    first, second = Play(), Play()
    first.start(name, b"=")
    second.start(name)
    if name == "LOGIN":  # where the first challenge asks for the name already
        assert second.last == Challenge(b"Username:")
    else:
        assert second.last == Challenge(b"")
    second.line(b"")
    assert first.last == second.last


def test_an_equals_sign_means_nothing_later() -> None:
    play = Play()
    play.start("EXTERNAL")
    assert play.line(b"=") == Failed(Kind.MALFORMED, "not base64")


def test_an_empty_initial_response_is_not_written_as_nothing() -> None:
    step = Play().start("EXTERNAL", b"")
    assert isinstance(step, Failed)
    assert step.kind is Kind.MALFORMED


@pytest.mark.parametrize("name", PLAYED)
def test_a_star_cancels(name: str) -> None:
    play = Play()
    play.start(name)
    step = play.line(b"*")
    assert isinstance(step, Failed)
    assert step.kind is Kind.CANCELLED


def test_a_star_is_no_initial_response() -> None:
    assert Play().start("PLAIN", b"*") == Failed(Kind.MALFORMED, "not base64")


@pytest.mark.parametrize("line", [
    b"A", b"AA", b"AAA", b"AAAAA", b"A===", b"AA=", b"AAA==", b"AA===", b"====", b"=AAA", b"AA=A",
    b"AA==AA==", b"AAAA=", b"AAAA====", b"\0", b"\xff\xff\xff\xff", b"**", b"* ", b"AA-_",
    b" AAAA", b"AAAA ", b"AA AA", b"AA\tA", b"AAAA\n", b"AA\r\nAA", b"AA\0AA==",
    # What stands behind the last octet must be zero (RFC 4648 §3.5).
    b"AB==", b"AAB=", b"//==", b"//8=AAAA", "ＡＡＡＡ".encode(),
])
@pytest.mark.parametrize("initial", [True, False])
def test_what_is_not_base64(line: bytes, initial: bool) -> None:
    play = Play()
    if initial:
        step = play.start("EXTERNAL", line)
    else:
        play.start("EXTERNAL")
        step = play.line(line)
    assert step == Failed(Kind.MALFORMED, "not base64")


@given(st.binary(max_size=100))
def test_what_is_base64(data: bytes) -> None:
    assert decode_base64(b64(data)) == data


@given(st.binary(max_size=12) | st.text("AB/+=* ", max_size=12).map(str.encode))
def test_a_message_has_one_encoding(line: bytes) -> None:
    try:
        assert b64(decode_base64(line)) == line
    except Refused as refused:
        assert refused.kind is Kind.MALFORMED


@pytest.mark.parametrize("octets", [LINE_OCTETS - 1, LINE_OCTETS, LINE_OCTETS + 1, 65_536, 1 << 20])
@pytest.mark.parametrize("initial", [True, False])
def test_a_line_too_long(octets: int, initial: bool) -> None:
    # With its CRLF it has one octet too many, at least.
    play = Play()
    if initial:
        step = play.start("PLAIN", b"A" * octets)
    else:
        play.start("PLAIN")
        step = play.line(b"A" * octets)
    assert isinstance(step, Failed)
    assert step.kind is Kind.TOO_LONG


def test_the_longest_line() -> None:
    password = b"p" * ((LINE_OCTETS - 2) // 4 * 3 - 5)
    line = b64(b"\0tim\0" + password)
    assert LINE_OCTETS - 6 < len(line) + 2 <= LINE_OCTETS
    play = Play()
    assert play.start("PLAIN", line) == Succeeded()


def test_the_limit_is_that_of_a_line_reader() -> None:
    reader = LineReader(LINE_OCTETS)
    reader.feed(b"A" * (LINE_OCTETS - 2) + b"\r\n")
    longest = reader.line()
    assert longest is not None
    play = Play()
    play.start("PLAIN")
    step = play.line(longest)
    assert isinstance(step, Failed)
    assert step.kind is Kind.MALFORMED, "base64 of zeros, and not too long"
    reader.feed(b"A" * (LINE_OCTETS - 1) + b"\r\n")
    with pytest.raises(LineTooLong):
        reader.line()


@pytest.mark.parametrize("cut", range(1, 30))
def test_lines_that_come_in_pieces(cut: int) -> None:
    stream = b"dGlt\r\nc2VjcmV0c2VjcmV0\r\n"
    reader, play = LineReader(LINE_OCTETS), Play()
    play.start("LOGIN")
    for start in range(0, len(stream), cut):
        reader.feed(stream[start:start + cut])
        while (line := reader.line()) is not None:
            play.line(line)
    assert play.last == Succeeded()
    assert [login.credentials.username for login in play.logins] == [b"tim"]


def endless(context: Context, first: bytes | None) -> Conversation:
    while True:
        yield Challenge(b"more")


def test_an_exchange_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mechanisms.MECHANISMS, "PLAIN", Mechanism(endless))
    play = Play()
    step = play.start("PLAIN")
    for _ in range(CHALLENGES - 1):
        assert step == Challenge(b"more")
        step = play.line(b"")
    assert step == Challenge(b"more")
    assert play.line(b"") == Failed(Kind.MALFORMED, "too many challenges")


# ---- the owner's faults ----

def at_challenge(exchange: Exchange) -> None:
    assert isinstance(exchange.start(b"PLAIN"), Challenge)


def at_lookup(exchange: Exchange) -> None:
    assert isinstance(exchange.start(NAME.encode(), b64(b"n,,n=user,r=abc")), Lookup)


def at_login(exchange: Exchange) -> None:
    assert isinstance(exchange.start(b"PLAIN", b64(b"\0tim\0secret")), LogIn)


def at_the_end(exchange: Exchange) -> None:
    at_login(exchange)
    assert exchange.answer(True) == Succeeded()


def at_failure(exchange: Exchange) -> None:
    at_challenge(exchange)
    assert isinstance(exchange.receive(b"*"), Failed)


def at_the_beginning(exchange: Exchange) -> None:
    pass


@pytest.mark.parametrize(("reach", "allowed"), [
    (at_the_beginning, "start"), (at_challenge, "line"), (at_lookup, "keys"), (at_login, "bool"),
    (at_the_end, ""), (at_failure, ""),
])
@pytest.mark.parametrize("call", ["line", "keys", "bool"])
def test_only_the_open_question_can_be_answered(reach: Any, allowed: str, call: str) -> None:
    exchange = Exchange(OPEN)
    reach(exchange)
    act = {"line": lambda: exchange.receive(b"AA=="), "keys": lambda: exchange.answer(PENCIL),
           "bool": lambda: exchange.answer(False)}[call]
    if call == allowed:
        act()
        return
    with pytest.raises(RuntimeError) as raised:
        act()
    assert "secret" not in str(raised.value)


# ---- whatever a client sends ----

PARTS = st.sampled_from([
    b"\0", b",", b"=", b"\x01", b"n,,", b"y,,", b"p=tls-exporter,,", b"n=user", b"r=abc", b"c=biws",
    b"p=", b"a=", b"m=", b"tim", b"secret", b"user=", b"auth=Bearer ", b"host=", b"=2C", b"=3D",
    b"\xff", b"\xc3\xbc", b"\r\n", b" ", b"0" * 32, b"*",
])
MESSAGES = st.binary(max_size=40) | st.lists(PARTS, max_size=12).map(b"".join)
LINES = MESSAGES.map(b64) | MESSAGES | st.just(b"*") | st.just(b"=") | st.just(b"")


def outcomes(exchange: Exchange, mechanism: str, initial: bytes | None, lines: list[bytes],
             right: bool) -> Iterator[Step]:
    """All steps of an exchange, until it ends or *lines* do."""
    rest = iter(lines)
    step = exchange.start(mechanism.encode(), initial)
    while True:
        yield step
        if isinstance(step, Lookup):
            step = exchange.answer(PENCIL)
        elif isinstance(step, LogIn):
            step = exchange.answer(right)
        elif isinstance(step, Challenge):
            line = next(rest, None)
            if line is None:
                return
            step = exchange.receive(line)
        else:
            return


@given(MECHANISM, st.none() | LINES, st.lists(LINES, max_size=6), st.booleans())
def test_no_lines_leave_a_traceback(mechanism: str, initial: bytes | None, lines: list[bytes],
                                    right: bool) -> None:
    steps = list(outcomes(Exchange(OPEN), mechanism, initial, lines, right))
    for before, after in itertools.pairwise(steps):
        if isinstance(before, LogIn) and right:
            assert after == Succeeded()
        assert isinstance(before, Challenge | Lookup | LogIn)
    if steps[-1] == Succeeded():
        assert right
        assert isinstance(steps[-2], LogIn)
    assert sum(isinstance(step, LogIn) for step in steps) <= 1


#: What each mechanism's client says when all goes well, up to the first thing it must work out.
FLUENT = {
    "PLAIN": [b"\0tim\0secret"],
    "LOGIN": [b"tim", b"secret"],
    NAME: [b"n,,n=user,r=abc", b"c=biws,r=abc,p=" + b64(bytes(32))],
    PLUS: [b"p=tls-exporter,,n=user,r=abc", b"c=biws,r=abc,p=" + b64(bytes(32))],
    "EXTERNAL": [b"fred@example.com"],
    "OAUTHBEARER": [b"n,a=tim,\x01host=x\x01auth=Bearer abc\x01\x01", b"\x01"],
    "XOAUTH2": [b"user=tim\x01auth=Bearer abc\x01\x01", b""],
    "CRAM-MD5": [b"tim " + b"0" * 32],
}


@given(MECHANISM, st.data())
def test_no_flaw_in_a_fluent_client_leaves_a_traceback(mechanism: str, data: st.DataObject) -> None:
    lines = [b64(message) for message in FLUENT[mechanism]]
    which = data.draw(st.integers(0, len(lines) - 1))
    start = data.draw(st.integers(0, len(lines[which])))
    end = data.draw(st.integers(start, min(start + 4, len(lines[which]))))
    flaw = data.draw(st.binary(max_size=4) | st.sampled_from([b"=", b"==", b"A", b" ", b"*"]))
    lines[which] = lines[which][:start] + flaw + lines[which][end:]
    steps = list(outcomes(Exchange(OPEN), mechanism, None, lines, True))
    assert isinstance(steps[-1], Challenge | Succeeded | Failed)


@given(MECHANISM, st.none() | LINES, st.lists(LINES, max_size=4))
def test_one_exchange_does_not_touch_another(mechanism: str, initial: bytes | None,
                                             lines: list[bytes]) -> None:
    good = Play()
    good.start("LOGIN")
    noise = outcomes(Exchange(OPEN), mechanism, initial, lines, False)
    next(noise)
    good.say(b"tim")
    list(noise)
    assert good.say(b"secret") == Succeeded()
    assert [login.credentials.username for login in good.logins] == [b"tim"]


def test_fluent_clients_are_understood() -> None:
    assert set(FLUENT) == set(PLAYED)
    for mechanism, messages in FLUENT.items():
        steps = list(outcomes(Exchange(context(channel_bindings=BINDINGS)), mechanism, None,
                              [b64(message) for message in messages], True))
        assert any(isinstance(step, Lookup | LogIn) for step in steps), mechanism
