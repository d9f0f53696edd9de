"""AUTH in the sessions of both protocols, where an exchange has more than one question.

PLAIN, LOGIN and what is malformed are in the dialogues.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from scramp import ScramClient

from mailsvc.credentials import ProvenName
from mailsvc.errors import EnhancedStatus, MaildropInUse, PermanentFailure, TemporaryFailure
from mailsvc.mail import NULL_PATH, Address
from mailsvc.pop3.limits import POP3Settings
from mailsvc.pop3.session import Session as POP3Session
from mailsvc.sasl.context import AuthSettings, Context
from mailsvc.sasl.grammar import decode_base64
from mailsvc.sasl.scram import scram_keys
from mailsvc.sasl.steps import Guessed, LogIn, Lookup
from mailsvc.smtp.events import Connected, Hello, MailFrom
from mailsvc.smtp.limits import SMTPSettings
from mailsvc.smtp.mode import SUBMISSION
from mailsvc.smtp.session import Session as SMTPSession
from tests.maildrops import FakeMaildrop
from tests.sasl import b64

KEYS = scram_keys(b"secret", 4096)
BUSY = TemporaryFailure("Come back later", EnhancedStatus(4, 7, 0))


def context(protocol: str) -> Context:
    return Context(protocol=protocol, hostname="mx.example.org", settings=AuthSettings(),
                   usable=frozenset({"PLAIN", "SCRAM-SHA-256"}), cleartext_allowed=True)


class SMTP:
    """A submission session behind its EHLO."""

    wrong, cannot, right = b"535 5.7.8", b"454 4.7.0", b"235 2.7.0"
    prompt, too_many = b"334 ", b"421 4.7.0"

    def __init__(self, **limits: Any) -> None:
        self.session = SMTPSession("mx.example.org", SMTPSettings(**limits), SUBMISSION,
                                   sasl=lambda: context("submission"))
        assert isinstance(self.session.next_event(), Connected)
        self.session.reply(self.session.greeting)
        self.session.receive(b"EHLO client.example.net\r\n")
        question = self.session.next_event()
        assert isinstance(question, Hello)
        self.session.reply(self.session.hello_reply(question))
        self.session.data_to_send()

    def succeed(self) -> None:
        self.session.logged_in("alice@example.org")


class POP3:
    """A session behind its banner."""

    wrong, cannot, right = b"-ERR [AUTH]", b"-ERR [SYS/TEMP] Come", b"+OK 0 messages"
    prompt, too_many = b"+ ", b""

    def __init__(self, **limits: Any) -> None:
        self.session = POP3Session("mx.example.org", POP3Settings(**limits),
                                   sasl=lambda: context("pop3"))
        self.session.greet()
        self.session.data_to_send()

    def succeed(self) -> None:
        self.session.logged_in(FakeMaildrop([]))


Side = SMTP | POP3
either = pytest.mark.parametrize("make", [SMTP, POP3])


def say(side: Side, line: bytes) -> tuple[Any, bytes]:
    """Say a line: the next event, and what the session says."""
    side.session.receive(line + b"\r\n")
    return side.session.next_event(), side.session.data_to_send()


def scram(side: Side, password: str) -> tuple[Any, bytes]:
    """An exchange up to the client's proof: the event that follows, and what is said."""
    client = ScramClient(["SCRAM-SHA-256"], "alice@example.org", password)
    event, _ = say(side, b"AUTH SCRAM-SHA-256 " + b64(client.get_client_first().encode()))
    assert event == Lookup(b"alice@example.org")
    assert side.session.waiting
    side.session.keys(KEYS)
    challenge = side.session.data_to_send()
    assert challenge.startswith(side.prompt)
    client.set_server_first(decode_base64(challenge[len(side.prompt):-2]).decode())
    return say(side, b64(client.get_client_final().encode()))


@either
def test_scram(make: Callable[[], Side]) -> None:
    side = make()
    event, said = scram(side, "secret")
    assert event is None
    assert said.startswith(side.prompt)
    event, said = say(side, b"")
    assert isinstance(event, LogIn)
    assert isinstance(event.credentials, ProvenName)
    assert said == b""
    side.succeed()
    assert side.session.data_to_send().startswith(side.right)


@either
def test_a_wrong_proof_is_counted_before_it_is_answered(make: Callable[[], Side]) -> None:
    side = make()
    event, said = scram(side, "wrong")
    assert event == Guessed(b"alice@example.org")
    assert said == b""
    assert side.session.waiting
    side.session.login_refused()
    assert side.session.data_to_send().startswith(side.wrong)
    assert not side.session.waiting


@either
def test_another_channel_than_the_client_meant_is_a_wrong_login(make: Callable[[], Side]) -> None:
    """Nobody's password was guessed, so there is nothing to count."""
    side = make()
    say(side, b"AUTH SCRAM-SHA-256 " + b64(b"n,,n=alice@example.org,r=x"))
    side.session.keys(KEYS)
    challenge = decode_base64(side.session.data_to_send()[len(side.prompt):-2])
    nonce = challenge.partition(b",")[0]
    event, said = say(side, b64(b"c=%s,%s,p=%s" % (b64(b"y,,"), nonce, b64(b"x" * 32))))
    assert event is None
    assert said.startswith(side.wrong)
    event, said = say(side, b"AUTH PLAIN " + b64(b"\0alice@example.org\0secret"))
    assert isinstance(event, LogIn), said


@either
def test_what_cannot_be_found_out(make: Callable[[], Side]) -> None:
    side = make()
    event, _ = say(side, b"AUTH SCRAM-SHA-256 " + b64(b"n,,n=a@b.example,r=x"))
    assert isinstance(event, Lookup)
    side.session.login_failed(BUSY)
    assert side.session.data_to_send().startswith(side.cannot)
    event, _ = say(side, b"AUTH PLAIN " + b64(b"\0alice@example.org\0secret"))
    assert isinstance(event, LogIn)
    side.session.login_failed(BUSY)
    assert side.session.data_to_send().startswith(side.cannot)
    # The exchange is over: what follows is a command.
    assert say(side, b"NOOP")[1][:4] in (b"250 ", b"-ERR")


def test_what_will_never_be_right() -> None:
    side = SMTP()
    say(side, b"AUTH PLAIN " + b64(b"\0alice@example.org\0secret"))
    side.session.login_failed(PermanentFailure("Not set up here", EnhancedStatus(5, 7, 4)))
    assert side.session.data_to_send() == b"534 5.7.4 Not set up here\r\n"
    other = POP3()
    say(other, b"AUTH PLAIN " + b64(b"\0alice@example.org\0secret"))
    other.session.login_failed(MaildropInUse("In use"))
    assert other.session.data_to_send() == b"-ERR [IN-USE] In use\r\n"


@either
def test_failures_add_up(make: Callable[..., Side]) -> None:
    side = make(login_failures=2)
    for last in (False, True):
        say(side, b"AUTH PLAIN " + b64(b"\0alice@example.org\0wrong"))
        side.session.login_refused()
        said = side.session.data_to_send()
        assert said.startswith(side.wrong)
        assert (side.too_many in said.split(b"\r\n", 1)[1]) or not last
        assert (side.session.next_event() is not None) == last


@either
def test_only_auth_may_be_long(make: Callable[..., Side]) -> None:
    side = make(command_octets=600)
    assert b"Line too long" in say(side, b"NOOP " + b"x" * 600)[1]
    # No base64, but taken.
    said = say(side, b"AUTH PLAIN " + b"x" * 3001)[1]
    assert b"That is not what the mechanism expects" in said


def test_where_auth_is_offered_other_commands_are_no_longer() -> None:
    side = SMTP(command_octets=600, errors=10)
    for verb in (b"NOOP ", b"AUTHX ", b"XAUTH "):
        exact = verb + b"x" * (598 - len(verb))
        assert b"Line too long" not in say(side, exact)[1]
        too_long, following = say(side, exact + b"x\r\nNOOP")[1].splitlines()
        assert too_long.startswith(b"500 5.5.2 Line too long")
        assert following.startswith(b"250 2.0.0")
    assert b"Line too long" not in say(side, b"auth x" + b"x" * 600)[1]


def test_a_connection_cut_amid_an_exchange_leaves_nothing_to_answer() -> None:
    side = SMTP()
    say(side, b"AUTH PLAIN " + b64(b"\0alice@example.org\0secret"))
    side.session.tls_started()
    assert side.session.authenticated == ""
    assert not side.session.waiting


@pytest.mark.parametrize("trusted", [False, True])
def test_whom_auth_of_mail_names_counts_from_trusted_clients_alone(trusted: bool) -> None:
    """RFC 4954 §5: what anybody else says counts as nothing said."""
    side = SMTP()
    side.session.authenticated = "alice@example.org"
    side.session.trusted = trusted
    event, _ = say(side, b"MAIL FROM:<alice@example.org> AUTH=bob+2Bx@example.net")
    assert isinstance(event, MailFrom)
    assert event.envelope.submitter == (Address("bob+x", "example.net") if trusted else NULL_PATH)


def test_auth_of_mail_belongs_to_auth() -> None:
    side = SMTP()
    side.session.authenticated = "alice@example.org"
    side.session.sasl = None
    assert say(side, b"MAIL FROM:<alice@example.org> AUTH=<>")[1].startswith(b"555 5.5.4")
