"""Every SMTP dialogue: against the bare session, against the adaptor, some over real sockets."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any, cast

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from mailsvc import fanout
from mailsvc.credentials import Password
from mailsvc.errors import MailFailure, NothingWaits, StorageFull, TurnInUse
from mailsvc.mail import Address, Recipient
from mailsvc.sasl.context import AuthSettings, Context
from mailsvc.sasl.steps import LogIn
from mailsvc.smtp import events, replies
from mailsvc.smtp.grammar import mailbox
from mailsvc.smtp.limits import SMTPSettings
from mailsvc.smtp.mode import LMTP, ODMR, SUBMISSION, TRANSPORT
from mailsvc.smtp.replies import LOCAL_ERROR, Reply, accepted, from_failure, verified
from mailsvc.smtp.server import SMTPFactory
from mailsvc.smtp.session import Session
from mailsvc.trace import trace_header
from tests.dialogue import (
    CUTS,
    Cut,
    Script,
    at_random,
    compare,
    read,
    replay_ahead,
    replay_in_turns,
    scripts,
)
from tests.postoffice import (
    FETCHED,
    HOSTNAME,
    NOW,
    PASSWORDS,
    Answers,
    FakeDelivery,
    FakeRouter,
    FakeStore,
    Line,
)

CLIENT = "198.51.100.7"
SCRIPTS = {path.stem: read(path) for path in scripts("smtp")}
AHEAD = {name: script for name, script in SCRIPTS.items() if not script.in_turns}

every_script = pytest.mark.parametrize("name", SCRIPTS)
every_script_sent_ahead = pytest.mark.parametrize("name", AHEAD)
every_cut = pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)


class World:
    """What a script's ``=`` lines describe.

    ``= hostname NAME``, ``= accounts ADDRESS…`` (besides the cast of example.org), ``= tls yes``,
    ``= mode NAME``, ``= known yes`` (may submit without a login), ``= spoilt KIND…`` (answers that
    fail with "disk full"), ``= queue yes`` (mail may wait), ``= atrn yes`` (alice may fetch mail),
    and any of the [smtp] section.
    """

    def __init__(self, script: Script) -> None:
        self.answers = Answers()
        self.hostname = HOSTNAME
        self.accounts: list[Address] = []
        self.tls = False
        self.known = False
        self.queue = self.atrn = False
        self.mode = TRANSPORT
        self.settings: dict[str, Any] = {}
        known = {field.name: type(field.default) for field in fields(SMTPSettings)}
        for name, value in script.settings:
            if name == "hostname":
                self.hostname = value
            elif name == "accounts":
                self.accounts += (mailbox(word.encode()) for word in value.split())
            elif name == "tls":
                self.tls = value == "yes"
            elif name == "trusted":
                self.settings["xclient_networks"] = [CLIENT]
            elif name == "known":
                self.known = value == "yes"
            elif name == "atrn":
                self.atrn = value == "yes"
            elif name == "queue":
                self.queue = value == "yes"
            elif name == "mode":
                self.mode = {mode.name: mode for mode in (
                    TRANSPORT, SUBMISSION, LMTP, ODMR)}[value]
            elif name == "spoilt":
                full = StorageFull("The disk is full; try again later")
                self.answers.spoilt.update(dict.fromkeys(value.split(), full))
            elif name != "in":
                kind = known[name]
                self.settings[name] = value == "yes" if kind is bool else kind(value)


def below_trace(message: bytes) -> bytes:
    """*message* without the fields that were put on top of it."""
    return message.partition(b" +0000\r\n")[2]


_MAIL = re.compile(r'(?P<addresses>(?:"(?:[^"\\]|\\.)*"|[^"<])+?)(?: < (?P<file>\S+))?')
_ADDRESS = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^"\s])+')


def check_mail(script: Script, store: FakeStore, *, trace: bool = True) -> None:
    """Hold what was delivered against the script's ``M:`` lines, ``M: ADDRESS… [< FILE]``.

    FILE has LF for CRLF, and ID where the message's id stands.
    """
    assert len(store.mail) == len(script.mail), script.path
    for delivery, line in zip(store.mail, script.mail, strict=True):
        match = _MAIL.fullmatch(line)
        assert match, f"{script.path}: M: {line}"
        wanted = [mailbox(found.encode()) for found in _ADDRESS.findall(match["addresses"])]
        assert [(a.local_part, a.domain) for a in delivery.accounts] == [
            (a.local_part, a.domain) for a in wanted]
        if match["file"]:
            expected = (script.path.parent / match["file"]).read_bytes().replace(b"\n", b"\r\n")
            message = delivery.message.replace(f" id {delivery.id}".encode(), b" id ID", 1)
            if not trace:
                message, expected = below_trace(message), below_trace(expected)
            assert message == expected
    assert all(delivery.outcome != "open" for delivery in store.deliveries if script.closes)


class Owner:
    """The owner of a bare session: answers its questions at once, from a router and a store."""

    def __init__(self, world: World) -> None:
        self.sasl = Context(
            protocol="submission", hostname=world.hostname, settings=AuthSettings(),
            usable=frozenset({"PLAIN", "LOGIN"}),
            cleartext_allowed=world.settings.get("allow_cleartext_auth") == "yes")
        self.session = Session(world.hostname, SMTPSettings(**world.settings), world.mode,
                               known=world.known, trusted="xclient_networks" in world.settings,
                               sasl=self.context if world.mode.logs_in else None,
                               tls_available=world.tls,
                               turns=world.mode.odmr or (world.mode.submission and world.atrn),
                               clock=(lambda: NOW) if world.queue else None)
        self.store = FakeStore(world.answers)
        self.router = FakeRouter(world.answers, world.accounts, world.atrn)
        self.queue = world.queue
        self.delivery: FakeDelivery | None = None
        self.closed = False
        self._heard = b""
        self._answer_questions()

    def context(self) -> Context:
        return dataclasses.replace(self.sasl, tls_active=self.session.tls_active)

    def say(self, data: bytes) -> None:
        self.session.receive(data)
        self._answer_questions()

    def heard(self) -> bytes:
        return self._heard

    def _answer_questions(self) -> None:
        while (event := self.session.next_event()) is not None:
            assert not self.closed, f"{event} after the end"
            try:
                answer = self._answer(event)
            except MailFailure as failure:
                answer = from_failure(failure, rcpt=not isinstance(
                    event, events.DataBegins | events.MessageEnds))
            except ZeroDivisionError:
                answer = LOCAL_ERROR
            if answer is not None:
                self.session.reply(answer)
        self._heard += self.session.data_to_send()

    def _turn(self, domains: tuple[str, ...]) -> Reply:
        own = self.router.turns(self.session.authenticated)
        if not own or not set(domains) <= set(own):
            return replies.NOT_YOURS
        if not self.queue:
            return replies.CANNOT_TURN
        return {NothingWaits: replies.NO_MAIL, TurnInUse: replies.TURN_IN_USE,
                None: replies.TURNED}[FETCHED[(domains or own)[0]]]

    def _answer(self, event: events.Event) -> Reply | None:
        session = self.session
        envelope = session.transactions.envelope
        match event:
            case LogIn(Password() as credentials, authorize_as):
                secret = PASSWORDS.get(credentials.username.decode(), "")
                if secret and credentials.checkPassword(secret) and authorize_as is None:
                    session.logged_in(credentials.username.decode())
                else:
                    session.login_refused()
                return None
            case events.TLSBegins():
                session.tls_started()
                return None
            case events.Connected():
                return session.greeting
            case events.Proxied():
                return session.greeting
            case events.Hello():
                return session.hello_reply(event)
            case events.MailFrom():
                return replies.SENDER_OK
            case events.RcptTo(forward_path):
                assert envelope is not None
                accounts = self.router.route(forward_path)
                for account in accounts:
                    self.store.room(account, envelope.size)
                envelope.recipients.append(Recipient(forward_path, accounts))
                return replies.RECIPIENT_OK
            case events.Verify(mailbox):
                return verified(mailbox, [self.router.verify(mailbox)])
            case events.Expand(mailbox):
                return verified(mailbox, self.router.expand(mailbox))
            case events.QueueRun(domain):
                return replies.NO_QUEUE if self.router.relays(domain) else replies.NOT_QUEUED
            case events.Turn(domains):
                return self._turn(domains)
            case events.DataBegins():
                assert envelope is not None
                self.delivery = cast(FakeDelivery, fanout.begin(self.store, None, envelope))
                self.delivery.write(trace_header(
                    envelope, client=CLIENT, hello=session.hello,
                    protocol=session.transactions.transmission_type, hostname=session.hostname,
                    seconds=int(NOW)))
                return replies.START_DATA
            case events.MessageBlock(data):
                assert self.delivery is not None
                self.delivery.write(data)
            case events.MessageEnds(size):
                assert envelope is not None and self.delivery is not None
                assert len(below_trace(self.delivery.message)) == size
                delivery, self.delivery = self.delivery, None
                failures: list[Failure] = []
                delivery.commit().addErrback(failures.append)
                if failures:
                    failures[0].raiseException()
                return accepted(envelope.id)
            case events.Aborted():
                if self.delivery is not None:
                    self.delivery.abort()
                    self.delivery = None
            case events.Closed(asked):
                self._heard += session.data_to_send()
                assert asked == self._heard.splitlines()[-1].startswith(b"221")
                self.closed = True
        return None


#: The replies of RFC 5321 §4.2.3, but for 455, which nothing here calls for; of RFC 4954 §6,
#: of RFC 1985 §6 and of RFC 2645 §7.
CODES = {211, 214, 220, 221, 250, 251, 252, 354, 421, 450, 451, 452, 500, 501, 502, 503, 504, 550,
         551, 552, 553, 554, 555, 235, 334, 530, 535, 538, 453, 458, 459}


def test_every_reply_of_the_rfc_is_in_some_dialogue() -> None:
    assert {int(line.pattern[:3]) for script in SCRIPTS.values() for turn in script.turns
            for line in turn.answer} == CODES


# ---- against the bare session --------------------------------------------------------------------


@every_script
@every_cut
def test_the_session_in_turns(name: str, cut: Cut) -> None:
    script = SCRIPTS[name]
    owner = Owner(World(script))
    replay_in_turns(script, owner, cut)
    check_mail(script, owner.store)


@every_script_sent_ahead
@every_cut
def test_the_session_with_all_sent_ahead(name: str, cut: Cut) -> None:
    script = AHEAD[name]
    owner = Owner(World(script))
    replay_ahead(script, owner, cut)
    check_mail(script, owner.store)


# ---- against the adaptor -------------------------------------------------------------------------


def line(script: Script) -> Line:
    world = World(script)
    return Line(world.answers, mode=world.mode, known=world.known, hostname=world.hostname,
                accounts=world.accounts, tls=object() if world.tls else None,
                queue=world.queue, atrn=world.atrn, **world.settings)


class LateLine(Line):
    """A line on which every answer comes late."""

    def say(self, data: bytes) -> None:
        super().say(data)
        self.release_all()


def late_line(script: Script) -> LateLine:
    world = World(script)
    world.answers.late = {"route", "room", "verify", "expand", "write", "commit", "turn"}
    return LateLine(world.answers, mode=world.mode, known=world.known,
                    hostname=world.hostname, accounts=world.accounts,
                    tls=object() if world.tls else None, queue=world.queue, atrn=world.atrn,
                    **world.settings)


@every_script
@pytest.mark.parametrize("make", [line, late_line])
def test_the_adaptor_in_turns(name: str, make: Callable[[Script], Line]) -> None:
    script = SCRIPTS[name]
    for cut in CUTS.values():
        one = make(script)
        replay_in_turns(script, one, cut)
        check_mail(script, one.store)
        one.hang_up()
        assert not one.answers.held


@every_script_sent_ahead
@pytest.mark.parametrize("make", [line, late_line])
def test_the_adaptor_with_all_sent_ahead(name: str, make: Callable[[Script], Line]) -> None:
    script = AHEAD[name]
    for cut in CUTS.values():
        one = make(script)
        replay_ahead(script, one, cut)
        check_mail(script, one.store)
        one.hang_up()


# ---- over real sockets ---------------------------------------------------------------------------


class Client(Protocol):
    """Collects what the server says."""

    transport: Any

    def __init__(self) -> None:
        self.heard = b""
        self.closed = False
        self._news: Deferred[None] | None = None

    def dataReceived(self, data: bytes) -> None:
        self.heard += data
        self._tell()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed = True
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, None
        if news is not None:
            news.callback(None)

    async def lines(self, number: int) -> None:
        """Wait until the server has said so many lines, or the connection is closed."""
        while self.heard.count(b"\r\n") < number and not self.closed:
            await self._something()

    async def end(self) -> None:
        """Wait until the connection is closed."""
        while not self.closed:
            await self._something()

    async def _something(self) -> None:
        self._news = Deferred()
        self._news.addTimeout(10, reactor)
        await self._news


OVER_TCP = ("rfc5321-d1-typical", "rfc2920-pipelining-1", "client-all-at-once", "bdat-chunks",
            "too-many-errors", "too-many-idle-commands", "quit-anywhere", "smuggling",
            "other-protocols", "rfc3030-pipelined")


@pytest.mark.parametrize("name", OVER_TCP)
@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
@pytest_twisted.ensureDeferred
async def test_over_tcp(name: str, late: bool) -> None:
    script = SCRIPTS[name]
    world = World(script)
    answers: Answers = SlowAnswers() if late else world.answers
    factory = SMTPFactory(FakeStore(answers), FakeRouter(answers, world.accounts),
                          SMTPSettings(**world.settings), world.hostname, reactor)
    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
    try:
        client = Client()
        await connectProtocol(
            TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port), client)
        expected: list[re.Pattern[bytes]] = []
        for turn in script.turns:
            for piece in at_random(1)(turn.sent):
                client.transport.write(piece)
            expected += turn.answer
            await client.lines(len(expected))
        if script.closes:
            await client.end()
        compare(script, expected, client.heard)
        assert client.closed == script.closes
        check_mail(script, factory.store, trace=False)  # type: ignore[arg-type]
        client.transport.loseConnection()
        await client.end()
    finally:
        await port.stopListening()
        await factory.connections.shut_down(1)


class SlowAnswers(Answers):
    """Every answer takes its time."""

    def give(self, kind: str, answer: Any) -> Any:
        if kind == "begin":
            return super().give(kind, answer)
        return deferLater(reactor, 0.001, super().give, kind, answer)
