"""``mailsvc.pop3.server``: logging in through the portal, and what is logged."""

from __future__ import annotations

import re
from typing import Any

import pytest
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import LoginDenied, UnauthorizedLogin
from twisted.cred.portal import Portal
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from zope.interface import implementer

from mailsvc.authentication import Authenticator
from mailsvc.credentials import Attempt, IProvenName, Password, ScramKeys
from mailsvc.errors import MaildropInUse
from mailsvc.interfaces import IMaildrop
from mailsvc.pop3.server import POP3Factory
from mailsvc.sasl.client import ClientExchange, Login
from mailsvc.sasl.context import AuthSettings
from mailsvc.sasl.scram import scram_keys
from tests.pop3 import (
    HOSTNAME,
    SECRET,
    TIMESTAMP,
    USER,
    Client,
    NoDirectory,
    Realm,
    authenticator,
    log,
    settings,
    two,
)


def test_a_login_under_way_holds_commands_back() -> None:
    client = Client()
    client.realm.late = True
    client.ask(f"USER {USER}")
    assert client.ask(f"PASS {SECRET}", "STAT") == []
    # One chunk waits in the session, and the transport is not read: a flood stays in the kernel.
    assert not client.reading
    client.say(b"NOOP\r\n")
    assert client.unread
    client.realm.go_on()
    client.flow()
    assert client.news() == ["+OK 2 messages (320 octets)", "+OK 2 320", "+OK Nothing done"]
    assert client.reading
    client.hang_up()
    assert client.realm.open == 0


def test_input_is_read_while_nothing_waits() -> None:
    # So that a connection lost during a slow login is noticed.
    client = Client()
    client.realm.late = True
    client.ask(f"USER {USER}", f"PASS {SECRET}")
    assert client.reading


def test_a_login_that_comes_too_late_is_given_back() -> None:
    client = Client()
    client.realm.late = True
    client.ask(f"USER {USER}", f"PASS {SECRET}")
    client.hang_up()
    with log() as lines:
        client.realm.go_on()
    assert client.realm.open == 0
    assert lines == []
    assert client.maildrop.happened == []


def test_a_login_refused_too_late() -> None:
    client = Client()
    client.realm.late = True
    client.realm.failure = MaildropInUse("In use")
    client.ask(f"USER {USER}", f"PASS {SECRET}")
    client.hang_up()
    client.news()
    client.realm.go_on()
    assert client.news() == []


WRONG = ("login failed user=mrose client=198.51.100.7 protocol=pop3 "
         "reason=wrong name or password")


@pytest.mark.parametrize(("failure", "answer", "line"), [
    (MaildropInUse("In use"), "-ERR [IN-USE] In use",
     "login refused user='mrose' client=198.51.100.7: In use"),
    (UnauthorizedLogin(), "-ERR [AUTH] Wrong name or password", WRONG),
    (LoginDenied("not today"), "-ERR [AUTH] Wrong name or password", WRONG),
])
def test_logins_refused(failure: Exception, answer: str, line: str) -> None:
    client = Client()
    client.realm.failure = failure
    with log() as lines:
        assert client.ask(f"USER {USER}", f"PASS {SECRET}") == ["+OK Send the password", answer]
    assert lines == [line]
    assert client.realm.open == 0


def test_wrong_password_and_unknown_user_look_the_same() -> None:
    answers = []
    for user, password in ((USER, "wrong"), ("nobody", SECRET)):
        client = Client()
        answers.append(client.ask(f"USER {user}", f"PASS {password}"))
    assert answers[0] == answers[1]
    assert answers[0][1] == "-ERR [AUTH] Wrong name or password"


def test_a_bug_behind_the_portal() -> None:
    client = Client()
    client.realm.failure = ZeroDivisionError("a bug")
    with log() as lines:
        answers = client.ask(f"USER {USER}", f"PASS {SECRET}", "CAPA")
    assert answers[1] == "-ERR [SYS/TEMP] Local error; try again later"
    assert answers[2] == "+OK Capabilities follow"
    assert lines[0] == "could not answer"
    assert len(lines) == 2


def test_a_portal_that_raises() -> None:
    client = Client()
    client.factory.authenticator.portal.login = None  # type: ignore[method-assign,assignment]
    with log():
        answers = client.ask(f"USER {USER}", f"PASS {SECRET}")
    assert answers[1] == "-ERR [SYS/TEMP] Local error; try again later"


def test_a_portal_without_a_checker() -> None:
    factory = POP3Factory(authenticator(Portal(Realm(two()))), settings(), HOSTNAME, Clock())
    with log() as lines:
        answers = Client(factory=factory).ask(f"USER {USER}", f"PASS {SECRET}")
    assert answers[1] == "-ERR [SYS/PERM] This way of logging in is not set up here"
    assert lines == [f"login refused user='{USER}' client=198.51.100.7: This way of logging in is "
                     "not set up here"]


def test_the_credentials_that_the_portal_gets() -> None:
    client = Client(accounts={"grå@example.org": "p äss "})
    seen = []
    login = client.factory.authenticator.portal.login

    def spy(credentials: Any, mind: Any, *interfaces: Any) -> Any:
        seen.append((credentials, mind, interfaces))
        return login(credentials, mind, *interfaces)

    client.factory.authenticator.portal.login = spy  # type: ignore[method-assign]
    assert client.ask("USER gra\N{COMBINING RING ABOVE}@example.org", "PASS p äss ")[1][:3] == "+OK"
    ((credentials, mind, interfaces),) = seen
    assert isinstance(credentials, Password)
    assert credentials.attempt == Attempt("pop3", "198.51.100.7", "USER")
    assert credentials.username == "grå@example.org".encode()
    assert credentials.password == "p äss ".encode()
    assert mind is None
    assert interfaces == (IMaildrop,)


def test_stls_is_offered_where_there_is_a_certificate() -> None:
    assert "STLS" not in Client().ask("CAPA")
    context = object()
    client = Client(tls=context)
    assert "STLS" in client.ask("CAPA")
    assert client.ask("STLS") == ["+OK Begin TLS"]
    assert client.transport.tls is context
    assert "STLS" not in client.ask("CAPA")


def test_apop_digests() -> None:
    # The example of RFC 1939 §7.
    client = Client(apop=True)
    client.factory.timestamp = lambda: TIMESTAMP  # type: ignore[method-assign]
    client = Client(factory=client.factory)
    seen: list[Any] = []

    def spy(credentials: Any, mind: Any, *interfaces: Any) -> Any:
        seen.append(credentials)
        raise UnauthorizedLogin

    client.factory.authenticator.portal.login = spy  # type: ignore[method-assign]
    client.ask("APOP mrose c4c9334bac560ecc979e58001b3e22fb")
    (credentials,) = seen
    assert credentials.username == b"mrose"
    assert credentials.attempt == Attempt("pop3", "198.51.100.7", "APOP")
    assert credentials.checkPassword(b"tanstaaf")
    assert credentials.checkPassword("tanstaaf")
    assert not credentials.checkPassword(b"tanstaag")


def test_apop_is_refused_where_no_login_crosses_the_network_unencrypted() -> None:
    client = Client(apop=True, allow_cleartext_auth="no")
    assert client.ask(f"APOP {USER} {'0' * 32}") == [
        "-ERR Use STLS first; nobody logs in unencrypted here"]


def test_apop_is_offered_only_where_somebody_could_use_it() -> None:
    assert "<" not in Client().news()[0]
    banners = [Client(apop=True).news()[0] for _ in range(3)]
    assert len(set(banners)) == 3
    # What follows the dot are 64 bits of chance.
    assert all(re.search(rf" <[0-9A-Za-z]+\.[0-9a-f]{{16}}@{re.escape(HOSTNAME)}>$", banner)
               for banner in banners)
    without = POP3Factory(authenticator(Portal(Realm(two()))), settings(apop=True), HOSTNAME,
                          Clock())
    client = Client(factory=without)
    assert client.news() == Client().news()
    assert client.ask(f"APOP {USER} {'0' * 32}") == [
        "-ERR APOP is not offered; use USER and PASS"]


def test_a_maildrop_that_is_no_maildrop() -> None:
    client = Client(object())
    with log() as lines:
        client.ask(f"USER {USER}", f"PASS {SECRET}")
    assert lines[0] == "is cut off"
    assert client.transport.disconnected
    assert client.realm.open == 0
    client.hang_up()


# ---- SCRAM ----


class Keys:
    """A keyring with the keys of SECRET for every name."""

    def scram_keys(self, name: bytes, attempt: Attempt) -> ScramKeys:
        assert attempt == Attempt("pop3", "198.51.100.7", "SCRAM")
        return scram_keys(SECRET.encode(), 4096)


@implementer(ICredentialsChecker)
class Proven:
    """Knows everybody whose name is proven."""

    credentialInterfaces = (IProvenName,)

    def requestAvatarId(self, credentials: Any) -> Any:
        return credentials.username


class Counted:
    """Brakes that hold nobody up.

    :ivar failures: the names that were guessed at.
    """

    def __init__(self) -> None:
        self.failures: list[str] = []

    def permit(self, client: str, name: str) -> Deferred[None]:
        return succeed(None)

    def failed(self, client: str, name: str) -> None:
        self.failures.append(name)

    def succeeded(self, client: str, name: str) -> None:
        """Nothing to do."""


def by_scram(client: Client, password: str) -> list[str]:
    """Log in; the server's last answer."""
    exchange = ClientExchange("SCRAM-SHA-256", Login(name=USER, password=password))
    answer = client.ask(f"AUTH SCRAM-SHA-256 {exchange.initial_response}")
    exchange.initial_sent()
    while answer[0].startswith("+ "):
        answer = client.ask(exchange.respond(answer[0][2:]))
    if answer[0].startswith("+OK"):
        exchange.succeeded()
    return answer


def test_a_proof_logs_in_and_a_wrong_one_is_counted() -> None:
    brakes = Counted()
    there = Authenticator(
        Portal(Realm(two()), [Proven()]), NoDirectory(), AuthSettings(),  # type: ignore[arg-type]
        hostname=HOSTNAME, keyring=Keys(), brakes=brakes)  # type: ignore[arg-type]
    factory = POP3Factory(there, settings(), HOSTNAME, Clock())
    client = Client(factory=factory)
    with log() as lines:
        assert by_scram(client, "wrong") == ["-ERR [AUTH] Wrong name or password"]
        assert brakes.failures == [f"{USER}@"]  # and no default domain
        assert client.realm.open == 0
        assert by_scram(client, SECRET)[0].startswith("+OK 2 messages")
    assert brakes.failures == [f"{USER}@"]  # and no default domain
    assert client.realm.open == 1
    assert "wrong proof" in lines[0] and "logged in" in lines[1]
    client.hang_up()


# ---- logs ----


def test_a_session_is_two_lines() -> None:
    client = Client()
    with log() as lines:
        client.ask(f"USER {USER}", f"PASS {SECRET}", "STAT", "LIST", "RETR 1", "RETR 2", "TOP 1 1",
                   "RETR 1", "DELE 1", "QUIT")
    assert lines == [
        "logged in user='mrose' messages=2 octets=320 client=198.51.100.7",
        "logged out user='mrose' retrieved=3 deleted=1 client=198.51.100.7: quit",
    ]


def test_no_credential_is_logged_and_nothing_escapes() -> None:
    with capturedLogs() as caught:
        client = Client(apop=True)
        client.ask("USER mr\N{RIGHT-TO-LEFT OVERRIDE}\N{LINE SEPARATOR}\x85", "PASS hunter2",
                   f"USER {USER}", f"PASS {SECRET}", "QUIT")
        client = Client(apop=True)
        client.ask("APOP mrose 0123456789abcdef0123456789abcdef")
    assert len(caught) == 4
    for event in caught:
        line = formatEvent(event)
        assert line.isprintable()
        for secret in ("hunter2", SECRET, "0123456789abcdef"):
            assert secret not in line
            assert secret not in repr(event)


def test_a_session_that_never_logs_in_is_not_worth_a_line() -> None:
    with log() as lines:
        client = Client()
        client.ask("CAPA", "QUIT")
        client.hang_up()
    assert lines == []
