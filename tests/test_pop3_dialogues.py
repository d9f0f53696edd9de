"""Every POP3 dialogue of ``tests/dialogues/pop3``, at every level.

Each runs against the bare session and against the protocol on a transport without a network, turn
by turn and all sent ahead, with the octets whole, one by one, and cut at random; and once over TCP.

The ``=`` lines: ``set NAME VALUE`` (a setting), ``messages SIZE …`` (what is in the maildrop, in
the place of 120 and 200 octets), ``message TEXT`` (one message, octet for octet), ``account NAME
SECRET``, ``tls`` (STLS is offered), ``login WHAT`` and ``read WHAT`` (how they fail), ``update
fails NUMBER``.  An ``M:`` line is the size of a message that is left in the end, or ``nothing``.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from mailsvc.credentials import Password
from mailsvc.errors import (
    LoginTooSoon,
    MaildropInUse,
    MailFailure,
    MessageVanished,
    PermanentFailure,
    SomeNotRemoved,
    TemporaryFailure,
)
from mailsvc.pop3 import events
from mailsvc.pop3.limits import POP3Settings
from mailsvc.pop3.server import POP3Factory
from mailsvc.pop3.session import Session
from mailsvc.sasl.context import AuthSettings, Context
from mailsvc.sasl.steps import LogIn
from tests.dialogue import (
    CUTS,
    Cut,
    Script,
    compare,
    read,
    replay_ahead,
    replay_in_turns,
    scripts,
)
from tests.maildrops import FakeMaildrop, message, top
from tests.pop3 import (
    HOSTNAME,
    SECRET,
    TIMESTAMP,
    USER,
    Client,
    Realm,
    authenticator,
    portal,
    settings,
)

FAILURES: dict[str, MailFailure] = {
    "in-use": MaildropInUse("The maildrop is in use"),
    "too-soon": LoginTooSoon("You logged in a moment ago"),
    "temporary": TemporaryFailure("Try again later"),
    "permanent": PermanentFailure("It is broken"),
    "vanished": MessageVanished("The message is gone"),
}


class World:
    """What a script's ``=`` lines say."""

    def __init__(self, script: Script) -> None:
        self.settings: dict[str, Any] = {}
        self.accounts = {USER: SECRET}
        self.tls = False
        self.private = True
        self.login: MailFailure | None = None
        self.read: MailFailure | None = None
        self.update: MailFailure | None = None
        self.messages: list[bytes] = []
        sizes: list[int] = [120, 200]
        for name, value in script.settings:
            match name:
                case "set":
                    setting, _, text = value.partition(" ")
                    kind = type(getattr(POP3Settings(), setting))
                    self.settings[setting] = text == "true" if kind is bool else kind(text)
                    self.private = self.settings.get("allow_cleartext_auth") != "no"
                case "messages":
                    sizes = [int(size) for size in value.split()]
                case "message":
                    sizes = []
                    self.messages.append(ast.literal_eval(f'b"{value}"'))
                case "account":
                    user, _, secret = value.rpartition(" ") if "@" in value else (
                        value.partition(" "))
                    self.accounts[user] = secret
                case "tls":
                    self.tls = True
                case "login":
                    self.login = FAILURES[value]
                case "read":
                    self.read = FAILURES[value]
                case "update":
                    numbers = (int(value.removeprefix("fails ")),)
                    self.update = SomeNotRemoved("Some deleted messages not removed", numbers)
                case "in":
                    assert value == "turns"
                case _:
                    raise ValueError(f"{script.path}: what is {name!r}?")
        self.messages += [message(size, number) for number, size in enumerate(sizes, 1)]

    def maildrop(self) -> FakeMaildrop:
        maildrop = FakeMaildrop(self.messages)
        if self.read is not None:
            maildrop.spoilt["read"] = self.read
        if self.update is not None:
            maildrop.spoilt["update"] = self.update
        return maildrop

    def factory(self, clock: Any) -> POP3Factory:
        realm = Realm(self.maildrop())
        realm.failure = self.login
        factory = POP3Factory(authenticator(portal(realm, self.accounts)),
                              settings(**self.settings), HOSTNAME, clock,
                              object() if self.tls else None)
        if self.settings.get("apop"):
            factory.timestamp = lambda: TIMESTAMP  # type: ignore[method-assign]
        return factory

    def check(self, script: Script, maildrop: FakeMaildrop) -> None:
        """Hold what is left against the ``M:`` lines."""
        deleted = {number for done in maildrop.happened if done[0] == "update"
                   for number in done[1]}
        left = [str(size) for number, size in enumerate(maildrop.sizes, 1)
                if number not in deleted]
        if script.mail:
            assert list(script.mail) == (left or ["nothing"])


#: Anybody may log in, or nobody without TLS.
SASL = Context(protocol="pop3", hostname=HOSTNAME, settings=AuthSettings(),
               usable=frozenset({"PLAIN", "LOGIN"}), cleartext_allowed=True)
IN_THE_CLEAR = dataclasses.replace(SASL, cleartext_allowed=False)


class BareSession:
    """A session whose questions are answered at once, as ``tests.dialogue.Server``."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.maildrop = world.maildrop()
        self.session = Session(HOSTNAME, POP3Settings(**world.settings), tls_available=world.tls,
                               sasl=lambda: SASL if world.private or self.session.tls_active
                               else IN_THE_CLEAR,
                               timestamp=TIMESTAMP if world.settings.get("apop") else "")
        self.session.greet()
        self.sent = b""
        self.closed = False
        self.answer()

    def say(self, data: bytes) -> None:
        self.session.receive(data)
        self.answer()

    def heard(self) -> bytes:
        return self.sent

    def answer(self) -> None:
        session = self.session
        while (event := session.next_event()) is not None:
            match event:
                case events.Login(user, password):
                    right = self.world.accounts.get(user, "").encode() == password
                    self.log_in(user in self.world.accounts and right)
                case events.ApopLogin(user, challenge, digest):
                    secret = self.world.accounts.get(user, "").encode()
                    self.log_in(hashlib.md5(challenge + secret).hexdigest().encode() == digest)
                case LogIn(Password() as credentials, authorize_as):
                    secret = self.world.accounts.get(credentials.username.decode(), "")
                    self.log_in(bool(secret) and credentials.checkPassword(secret)
                                and authorize_as is None)
                case events.Retrieve(number, lines):
                    self.retrieve(number, lines)
                case events.Update(deleted):
                    self.maildrop.update(deleted).addErrback(lambda _: None)
                    session.updated(self.world.update)
                case events.StartTLS():
                    session.tls_started()
                case events.Closed():
                    self.closed = True
                case _:
                    pytest.fail(f"{event} was not expected")
        self.sent += session.data_to_send()

    def log_in(self, right: bool) -> None:
        if not right:
            self.session.login_refused()
        elif self.world.login is not None:
            self.session.login_failed(self.world.login)
        else:
            self.session.logged_in(self.maildrop)

    def retrieve(self, number: int, lines: int | None) -> None:
        if self.world.read is not None:
            self.session.retrieve_failed(self.world.read)
            return
        text = self.maildrop.messages[number - 1]
        for octet in text if lines is None else top(text, lines):
            self.session.message_block(bytes([octet]))
        self.session.retrieved()


REPLAYS = {"in turns": replay_in_turns, "ahead": replay_ahead}


@pytest.fixture(params=scripts("pop3"), ids=lambda path: path.stem)
def script(request: pytest.FixtureRequest) -> Script:
    path: Path = request.param
    return read(path)


@pytest.fixture(params=REPLAYS)
def replay(request: pytest.FixtureRequest, script: Script) -> Any:
    if request.param == "ahead" and script.in_turns:
        # Sent ahead it would be another dialogue, so it is held against itself in turns again.
        return replay_in_turns
    return REPLAYS[request.param]


@pytest.fixture(params=CUTS)
def cut(request: pytest.FixtureRequest) -> Cut:
    return CUTS[request.param]


def test_the_session(script: Script, replay: Any, cut: Cut) -> None:
    world = World(script)
    server = BareSession(world)
    replay(script, server, cut)
    world.check(script, server.maildrop)


def test_the_protocol(script: Script, replay: Any, cut: Cut) -> None:
    world = World(script)
    client = Client(factory=world.factory(Clock()))
    replay(script, client, cut)
    client.hang_up()
    world.check(script, client.maildrop)
    assert client.realm.open == 0


@pytest_twisted.inlineCallbacks
def test_over_tcp(script: Script) -> Iterator[Any]:
    world = World(script)
    # A real connection would want a real certificate; test_pop3_server.py has one.
    world.tls = False
    factory = world.factory(reactor)
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
    try:
        if not any(name == "tls" for name, _ in script.settings):
            yield deferToThread(converse, script, port.getHost().port)
            yield factory.connections.shut_down(5)
            world.check(script, factory.authenticator.portal.realm.maildrop)  # type: ignore[attr-defined]
            assert factory.authenticator.portal.realm.open == 0  # type: ignore[attr-defined]
    finally:
        yield port.stopListening()


def converse(script: Script, port: int) -> None:
    """Speak the client's part, waiting for each answer."""
    heard = b""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        lines = connection.makefile("rb")
        expected = []
        for turn in script.turns:
            connection.sendall(turn.sent)
            heard += b"".join(lines.readline() for _ in turn.answer)
            expected += turn.answer
            compare(script, expected, heard)
        if script.closes:
            assert lines.read() == b""
