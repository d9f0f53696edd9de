"""``mailsvc.pop3.session`` and its command table, without I/O; see also test_pop3_dialogues.py."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailsvc import __version__
from mailsvc.errors import MaildropInUse, SomeNotRemoved, TemporaryFailure
from mailsvc.pop3 import events
from mailsvc.pop3.commands import COMMANDS, State
from mailsvc.pop3.limits import POP3Settings
from mailsvc.pop3.marks import BLOCK_LINES
from mailsvc.pop3.session import GATHER, Session
from tests.maildrops import FakeMaildrop, Sizes, message
from tests.pop3 import HOSTNAME, TIMESTAMP, TWO, ask, event, session, tell

# ---- the command table ----

A, T = State.AUTHORIZATION, State.TRANSACTION
TOO_LATE = "-ERR You are logged in already"
TOO_SOON = "-ERR Log in first"
DIGEST = "c4c9334bac560ecc979e58001b3e22fb"
CHALLENGE = TIMESTAMP.encode()

#: verb -> what is said, and what follows before login and after: a reply's first line, or an event.
PAIRS: dict[str, tuple[str, Any, Any]] = {
    "CAPA": ("CAPA", "+OK Capabilities follow", "+OK Capabilities follow"),
    "USER": ("USER mrose", "+OK Send the password", TOO_LATE),
    "PASS": ("PASS x", "-ERR USER first", TOO_LATE),
    "APOP": (f"APOP mrose {DIGEST}", events.ApopLogin("mrose", CHALLENGE, DIGEST.encode()),
             TOO_LATE),
    "AUTH": ("AUTH PLAIN", "-ERR AUTH is not offered; use USER and PASS", TOO_LATE),
    "STLS": ("STLS", events.StartTLS(), TOO_LATE),
    "UTF8": ("UTF8", "+OK UTF-8 enabled", TOO_LATE),
    "LANG": ("LANG", "+OK Languages follow", "+OK Languages follow"),
    "STAT": ("STAT", TOO_SOON, "+OK 2 320"),
    "LIST": ("LIST", TOO_SOON, "+OK 2 messages (320 octets)"),
    "UIDL": ("UIDL", TOO_SOON, "+OK Unique-ids follow"),
    "RETR": ("RETR 1", TOO_SOON, events.Retrieve(1, None)),
    "TOP": ("TOP 2 7", TOO_SOON, events.Retrieve(2, 7)),
    "DELE": ("DELE 1", TOO_SOON, "+OK Message 1 deleted"),
    "NOOP": ("NOOP", TOO_SOON, "+OK Nothing done"),
    "RSET": ("RSET", TOO_SOON, "+OK 2 messages (320 octets)"),
    "QUIT": ("QUIT", events.Closed("quit", asked=True), events.Update(frozenset())),
}


def test_the_table_has_every_command() -> None:
    assert [row.verb for row in COMMANDS.values()] == list(PAIRS)
    assert list(COMMANDS) == [verb.encode() for verb in PAIRS]


@pytest.mark.parametrize("state", [A, T])
@pytest.mark.parametrize("verb", PAIRS)
def test_each_command_in_each_state(verb: str, state: State) -> None:
    said, before, after = PAIRS[verb]
    expected = before if state is A else after
    subject = session(state, timestamp=TIMESTAMP, tls_available=True)
    happened = event(subject, said)
    if not isinstance(expected, str):
        assert happened == expected
        return
    assert happened is None
    assert subject.data_to_send().decode().splitlines()[0] == expected
    assert subject.state is state


@pytest.mark.parametrize("state", [State.UPDATE, State.CLOSED])
@pytest.mark.parametrize("verb", PAIRS)
def test_no_command_is_taken_in_the_end(verb: str, state: State) -> None:
    subject = session(state)
    tell(subject, PAIRS[verb][0])
    assert subject.buffered == 0
    if state is State.UPDATE:
        subject.updated()
        assert subject.next_event() == events.Closed("quit", asked=True)
        tell(subject, PAIRS[verb][0])
    assert subject.next_event() is None
    assert subject.data_to_send().count(b"\r\n") == (state is State.UPDATE)


@pytest.mark.parametrize("row", COMMANDS.values(), ids=lambda row: row.verb)
def test_a_malformed_argument_is_answered_with_the_syntax(row: Any) -> None:
    subject = session(A if A in row.legal else T)
    if row.verb == "AUTH":
        return
    # Not UTF-8, not a number, and too much of it.
    subject.receive(row.verb.encode() + b" \xff \xff \xff\r\n")
    assert subject.next_event() is None
    assert subject.data_to_send() == f"-ERR Syntax: {row.syntax}\r\n".encode()
    assert row.syntax.split()[0] == row.verb


@pytest.mark.parametrize(("state", "lines"), [
    (A, []), (T, [f"IMPLEMENTATION mailsvc-{__version__}"]),
])
def test_strangers_are_not_told_the_version(state: State, lines: list[str]) -> None:
    capabilities = ask(session(state), "CAPA").splitlines()
    assert [line for line in capabilities if "mailsvc" in line] == lines


# ---- questions and answers ----


def test_the_banner() -> None:
    plain = Session(HOSTNAME, POP3Settings())
    assert plain.owed == 0
    plain.greet()
    assert plain.owed == 40
    assert plain.data_to_send() == b"+OK dbc.mtview.ca.us POP3 server ready\r\n"
    assert plain.data_to_send() == b""


def test_a_login() -> None:
    subject = session()
    login = event(subject, "USER mrose", "PASS tan staaf ")
    assert login == events.Login("mrose", b"tan staaf ")
    assert subject.waiting
    assert subject.data_to_send() == b"+OK Send the password\r\n"
    assert subject.state is A
    subject.logged_in(TWO)
    assert not subject.waiting
    assert subject.state is T
    assert subject.data_to_send() == b"+OK 2 messages (320 octets)\r\n"


@pytest.mark.parametrize("name", ["X", "Xavier X", "0 0", "\tx\t"])
def test_names_are_only_stripped_of_spaces(name: str) -> None:
    subject = session(timestamp=TIMESTAMP)
    assert event(subject, f"USER  {name} ", "PASS x") == events.Login(name, b"x")
    subject.login_refused()
    apop = event(subject, f"APOP  {name}  {DIGEST} ")
    assert apop == events.ApopLogin(name, CHALLENGE, DIGEST.encode())


def test_credentials_are_not_shown() -> None:
    assert "secret" not in repr(events.Login("u", b"secret"))
    assert "secret" not in repr(events.ApopLogin("u", b"<1@h>", b"secret"))


def test_pipelined_commands_wait_for_the_answer() -> None:
    subject = session()
    login = event(subject, "USER mrose", "PASS x", "STAT", "DELE 1", "STAT", "RETR 2", "NOOP",
                  "QUIT")
    assert login == events.Login("mrose", b"x")
    assert subject.buffered
    with pytest.raises(RuntimeError, match="has not been answered"):
        subject.next_event()
    subject.receive(b"NOOP\r\n")
    with pytest.raises(RuntimeError, match="has not been answered"):
        subject.next_event()
    subject.logged_in(TWO)
    assert subject.next_event() == events.Retrieve(2, None)
    assert subject.data_to_send() == (b"+OK Send the password\r\n+OK 2 messages (320 octets)\r\n"
                                      b"+OK 2 320\r\n+OK Message 1 deleted\r\n+OK 1 200\r\n")
    subject.message_block(b"x\r\n")
    subject.retrieved()
    assert subject.next_event() == events.Update(frozenset({1}))
    assert subject.data_to_send() == b"+OK 200 octets\r\nx\r\n.\r\n+OK Nothing done\r\n"
    assert subject.state is State.UPDATE
    assert subject.buffered == 0
    subject.updated()
    assert subject.data_to_send() == b"+OK dbc.mtview.ca.us signing off (1 message left)\r\n"
    assert subject.next_event() == events.Closed("quit", asked=True)
    assert subject.next_event() is None
    assert subject.state is State.CLOSED


@pytest.mark.parametrize("wrong", [
    lambda subject: subject.logged_in(TWO),
    lambda subject: subject.login_refused(),
    lambda subject: subject.login_failed(TemporaryFailure("x")),
    lambda subject: subject.message_block(b"x"),
    lambda subject: subject.retrieved(),
    lambda subject: subject.retrieve_failed(TemporaryFailure("x")),
    lambda subject: subject.listed(),
    lambda subject: subject.updated(),
    lambda subject: subject.tls_started(),
])
@pytest.mark.parametrize("open_question", [None, "question"])
def test_an_answer_must_fit_its_question(wrong: Any, open_question: str | None) -> None:
    subject = session(T)
    if open_question:
        subject.ask(events.Gathered())  # no question at all, so no answer fits
        subject.next_event()
    with pytest.raises(RuntimeError):
        wrong(subject)
    assert subject.state is T
    assert subject.data_to_send() == b""
    assert subject.waiting == bool(open_question)


def test_the_password_is_forgotten_with_the_name() -> None:
    subject = session()
    event(subject, "USER mrose", "PASS one")
    subject.login_refused()
    assert ask(subject, "PASS two").endswith("-ERR USER first\r\n")


def test_the_last_login_failure_ends_the_session() -> None:
    subject = session(login_failures=2)
    tell(subject, "USER a", "PASS b", "USER a", "PASS c", "USER a", "PASS d")
    assert subject.next_event() == events.Login("a", b"b")
    subject.login_failed(MaildropInUse("In use"))
    assert subject.next_event() == events.Login("a", b"c")
    subject.login_refused()
    assert subject.next_event() == events.Closed("too many failed logins", asked=False)
    assert subject.next_event() is None
    assert subject.data_to_send().decode().splitlines() == [
        "+OK Send the password", "-ERR [IN-USE] In use", "+OK Send the password",
        "-ERR [AUTH] Wrong name or password"]


# ---- messages ----


def test_a_message_goes_out_block_by_block() -> None:
    subject = session(T, FakeMaildrop([message(120), message(200)]))
    assert event(subject, "RETR 1", "STAT") == events.Retrieve(1, None)
    subject.message_block(b"")
    assert subject.owed == 0
    subject.message_block(b"Subject: x\r\n")
    # The line's end is held back, because a dot may follow it.
    assert subject.data_to_send() == b"+OK 120 octets\r\nSubject: x"
    subject.message_block(b"\r")
    subject.message_block(b"\n.")
    subject.message_block(b"\r\n")
    subject.message_block(b".\r\n")
    subject.retrieved()
    assert subject.next_event() is None
    assert subject.data_to_send() == b"\r\n\r\n..\r\n..\r\n.\r\n+OK 2 320\r\n"
    # The next message begins afresh.
    assert event(subject, "TOP 2 0") == events.Retrieve(2, 0)
    subject.message_block(b".\r\n")
    subject.retrieved()
    assert subject.data_to_send() == b"+OK Top of message follows\r\n..\r\n.\r\n"


def test_an_empty_message() -> None:
    subject = session(T, Sizes([0]))
    event(subject, "RETR 1")
    subject.retrieved()
    assert subject.data_to_send() == b"+OK 0 octets\r\n.\r\n"
    assert ask(subject, "STAT") == "+OK 1 0\r\n"


def test_a_message_that_cannot_be_read() -> None:
    subject = session(T)
    event(subject, "RETR 1")
    subject.message_block(b"")
    subject.retrieve_failed(TemporaryFailure("Try again"))
    assert ask(subject, "STAT") == "-ERR [SYS/TEMP] Try again\r\n+OK 2 320\r\n"


def test_a_message_that_is_cut_short_ends_the_session_without_a_dot() -> None:
    subject = session(T)
    event(subject, "DELE 2", "RETR 1", "QUIT")
    subject.data_to_send()
    subject.message_block(b"some\r\nof it")
    subject.retrieve_failed(TemporaryFailure("Try again"))
    assert subject.next_event() == events.Closed("message cut short", asked=False)
    assert subject.data_to_send() == b"+OK 120 octets\r\nsome\r\nof it"
    assert subject.next_event() is None


def test_an_update_that_fails() -> None:
    subject = session(T)
    assert event(subject, "DELE 2", "DELE 1", "QUIT") == events.Update(frozenset({1, 2}))
    subject.data_to_send()
    subject.updated(SomeNotRemoved("Some deleted messages not removed", (2,)))
    assert subject.data_to_send() == b"-ERR [SYS/TEMP] Some deleted messages not removed\r\n"
    assert subject.next_event() == events.Closed("quit", asked=True)


# ---- the end from our side ----


def test_closing_from_our_side() -> None:
    subject = session(T)
    tell(subject, "DELE 1")
    subject.next_event()
    tell(subject, "QUIT")
    subject.close(TemporaryFailure("Shutting down"))
    assert subject.next_event() == events.Closed("Shutting down", asked=False)
    assert subject.next_event() is None
    assert subject.data_to_send() == (
        b"+OK Message 1 deleted\r\n-ERR [SYS/TEMP] Shutting down\r\n")
    subject.close(TemporaryFailure("Again"))
    assert subject.next_event() is None
    assert subject.data_to_send() == b""


def test_closing_must_wait_for_an_answer() -> None:
    subject = session(T)
    event(subject, "RETR 1")
    with pytest.raises(RuntimeError, match="has not been answered"):
        subject.close(TemporaryFailure("Shutting down"))
    subject.retrieved()
    subject.close(TemporaryFailure("Shutting down"))
    assert subject.state is State.CLOSED


@pytest.mark.parametrize("method", ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST",
                                    "PUT", "TRACE"])
def test_http_is_cut_off(method: str) -> None:
    subject = session()
    assert event(subject, f"{method} / HTTP/1.1") == events.Closed("HTTP request", asked=False)
    assert subject.data_to_send() == b"-ERR This is POP3, not HTTP\r\n"


def test_nothing_received_is_no_first_octet() -> None:
    subject = session()
    subject.receive(b"")
    subject.receive(b"\x16")
    assert subject.next_event() == events.Closed("TLS handshake", asked=False)


# ---- STLS ----


@pytest.mark.parametrize("behind", [b"", b"USER mrose\r\nPASS x\r\n", b"USER mrose\r\nPA", b"US"])
def test_what_comes_behind_stls_is_dropped(behind: bytes) -> None:
    # CVE-2011-0411: what an attacker puts behind STLS in the clear must not run inside TLS.
    subject = session(tls_available=True)
    subject.receive(b"USER mallory\r\nSTLS\r\n" + behind)
    assert subject.next_event() == events.StartTLS()
    assert subject.data_to_send() == b"+OK Send the password\r\n+OK Begin TLS\r\n"
    assert subject.buffered == 0
    subject.receive(b"USER eve\r\nPA")
    subject.tls_started()
    assert subject.tls_active
    subject.receive(b"SS x\r\nER y\r\nPASS z\r\n")
    assert subject.next_event() is None
    assert subject.data_to_send().decode().splitlines() == [
        "-ERR Unknown command", "-ERR Unknown command", "-ERR USER first"]


def test_no_split_lets_anything_through_the_handshake() -> None:
    """However what is said before it arrives."""
    said = b"CAPA\r\nSTLS\r\nUSER mallory\r\nPASS x\r\nDELE 1\r\nQUIT\r\n"
    for first in range(len(said) + 1):
        for second in (first, min(len(said), first + 1), len(said)):
            subject, happened = session(tls_available=True), []
            for part in (said[:first], said[first:second], said[second:]):
                subject.receive(part)
                # The question of TLS waits for its answer, and nothing is asked for meanwhile.
                if not happened and (event := subject.next_event()) is not None:
                    happened.append(event)
            assert happened == [events.StartTLS()]
            subject.data_to_send()
            subject.tls_started()
            assert subject.buffered == 0 and subject.next_event() is None
            assert subject.data_to_send() == b""
            subject.receive(b"PASS x\r\n")
            assert subject.next_event() is None
            assert subject.data_to_send() == b"-ERR USER first\r\n"


def test_stls_without_a_certificate() -> None:
    subject = session()
    assert ask(subject, "STLS") == "-ERR STLS is not offered\r\n"
    assert "STLS" not in ask(subject, "CAPA")


def test_stls_with_tls_from_the_first_octet() -> None:
    subject = session(tls_available=True, tls_active=True)
    assert ask(subject, "STLS") == "-ERR TLS is active already\r\n"
    assert "STLS" not in ask(subject, "CAPA")


# ---- limits ----


@pytest.mark.parametrize(("octets", "answer"), [(400, "+OK"), (401, "-ERR Line too long")])
def test_the_longest_line(octets: int, answer: str) -> None:
    subject = session(command_octets=400)
    assert ask(subject, "USER " + "x" * (octets - 7)).startswith(answer)


def test_endless_input_takes_no_memory() -> None:
    subject = session(errors=5)
    for _ in range(1000):
        subject.receive(b"x" * 10_000)
        assert subject.next_event() is None
        assert subject.buffered <= 1024
    assert ask(subject, "", "CAPA").startswith("-ERR Line too long\r\n+OK Capabilities")


def test_the_last_error_ends_the_session() -> None:
    subject = session(errors=3)
    tell(subject, "A", "B")
    assert subject.next_event() is None
    assert event(subject, "C", "D") == events.Closed("too many errors", asked=False)
    assert subject.next_event() is None
    assert subject.data_to_send().decode().splitlines() == [
        "-ERR Unknown command", "-ERR Unknown command",
        "-ERR Too many malformed commands; connect again"]


def test_what_is_at_hand_is_sent_without_a_question() -> None:
    maildrop = FakeMaildrop([b".a\r\n", b"b\r\n.\r\n"])
    subject = session(T, maildrop)
    maildrop.way = "at hand"
    assert ask(subject, "RETR 2", "RETR 1", "DELE 1", "RETR 1", "RETR 2") == (
        "+OK 6 octets\r\nb\r\n..\r\n.\r\n+OK 4 octets\r\n..a\r\n.\r\n+OK Message 1 deleted\r\n"
        "-ERR Message 1 is marked as deleted\r\n+OK 6 octets\r\nb\r\n..\r\n.\r\n")
    assert subject.take_retrieved() == [2, 1, 2]
    assert subject.take_retrieved() == []
    maildrop.way = "at once"
    assert event(subject, "RETR 2") == events.Retrieve(2, None)
    subject.message_block(b"b\r\n.\r\n")
    assert subject.take_retrieved() == []
    subject.retrieved()
    assert subject.take_retrieved() == [2]
    assert event(subject, "TOP 2 0") == events.Retrieve(2, 0)
    subject.retrieved()
    assert subject.take_retrieved() == []


def test_short_commands_with_long_answers_are_not_answered_all_at_once() -> None:
    subject = session(T, Sizes([10**9] * BLOCK_LINES))
    subject.receive(b"UIDL\r\n" * 500)
    answers = most = 0
    while (happened := subject.next_event()) is not None:
        assert happened == events.Gathered()
        # Asked again before anything was sent, it says the same.
        assert subject.next_event() == events.Gathered()
        most = max(most, subject.owed)
        data = subject.data_to_send()
        assert subject.owed == 0
        answers += data.count(b"\r\n.\r\n")
    assert answers + subject.data_to_send().count(b"\r\n.\r\n") == 500
    assert GATHER <= most < GATHER + 100_000


def test_gathering_begins_at_its_limit() -> None:
    subject = session(T)
    subject.send(b"x" * (64 * 1024 - 1))
    assert subject.next_event() is None
    subject.send(b"x")
    assert subject.owed == GATHER == 64 * 1024
    assert subject.next_event() == events.Gathered()


# ---- whatever comes in ----

WORD = st.sampled_from([b"USER", b"PASS", b"APOP", b"CAPA", b"LANG", b"UTF8", b"STLS", b"AUTH",
                        b"STAT", b"LIST", b"UIDL", b"RETR", b"TOP", b"DELE", b"NOOP", b"RSET",
                        b"list", b"GET", b""])
ARGUMENT = st.one_of(st.sampled_from([b"", b"1", b"2", b"3", b"-1", b"*", b"en", b"99999999999"]),
                     st.binary(max_size=6))
LINE = st.one_of(
    st.binary(max_size=40),
    st.builds(lambda *words: b" ".join(words), WORD, ARGUMENT),
    st.builds(lambda *words: b" ".join(words), WORD, ARGUMENT, ARGUMENT),
    st.just(b"x" * 300),
)


def answered(of: Session) -> Iterator[bytes]:
    """Answer every question; what is sent."""
    while (happened := of.next_event()) is not None:
        match happened:
            case events.Login(_, password) if len(password) % 2:
                of.login_refused()
            case events.Login() | events.ApopLogin():
                of.logged_in(TWO)
            case events.Retrieve(number, _):
                of.message_block(b".%d\r\n" % number)
                of.retrieved()
            case events.StartTLS():
                of.tls_started()
            case events.Update():
                of.updated()
            case events.Closed() | events.Gathered():
                pass
            case _:
                pytest.fail(f"{happened} was not expected")
        yield of.data_to_send()
    yield of.data_to_send()


@settings(max_examples=400)
@given(st.lists(LINE, max_size=15), st.booleans(), st.data())
def test_one_reply_for_each_line(lines: list[bytes], logged_in: bool, data: Any) -> None:
    """Whatever comes, each line has one reply, and they do not depend on how the lines were cut."""
    sent = b"".join(line + b"\r\n" for line in lines)
    # A line may hold CRLF itself.
    lines = sent.split(b"\r\n")[:-1]
    options: dict[str, Any] = {"command_octets": 255, "timestamp": TIMESTAMP, "errors": 8}
    subject = session(T if logged_in else A, **options)
    replies = []
    for line in lines:
        subject.receive(line + b"\r\n")
        reply = b"".join(answered(subject))
        if not reply:
            assert subject.state is State.CLOSED
            continue
        assert re.fullmatch(rb"(\+OK|-ERR) [ -~]*\r\n|\+OK [ -~]*\r\n(([^.\r\n]|\.\.)[^\r\n]*\r\n)*"
                            rb"\.\r\n", reply), (line, reply)
        replies.append(reply)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=8)))
    again = session(T if logged_in else A, **options)
    said = b""
    for start, end in itertools.pairwise([0, *cuts, len(sent)]):
        again.receive(sent[start:end])
        said += b"".join(answered(again))
    assert said == b"".join(replies)
