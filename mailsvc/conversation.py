"""A connection that holds a conversation: joins a session without I/O to a Twisted transport.

SMTP and POP3 differ in what is said.  What is the same is here: the loop that hands the session's
events to their handlers, back-pressure, the timer, and how a connection ends.

Back-pressure goes both ways.  The transport is not read while input waits that cannot be used: a
question is open, the subclass is stalled, or the peer does not take its answers.  So a connection
holds one received chunk, and a flood stays in the peer's kernel.

Who makes too many errors waits for its answers, longer each time (a tarpit), and who gives too many
commands is dismissed.  Neither holds up anything else: such a connection is not read, and a timer
takes it on.

Answers are gathered and written once a turn.  A connection that is ended for what the client did is
closed for writing first and read for a while: input that nobody reads would turn the close into a
reset, and a reset may overtake the answer that says why.  A client that closes its own side behind
its last command still gets all that it asked for: the end of input is not the end of the talk.
"""

from __future__ import annotations

import os
import typing
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, ClassVar

from twisted.cred.error import LoginFailed
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IPushProducer,
    ISSLTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import Interface, implementer

from mailsvc.authentication import Who
from mailsvc.connections import client_address, traffic
from mailsvc.deadline import FOREVER, Deadline
from mailsvc.errors import MailFailure, TemporaryFailure
from mailsvc.handshake import TLSState, describe
from mailsvc.mail import new_id, time_of
from mailsvc.sasl.context import Context
from mailsvc.sasl.steps import Guessed, LogIn, Lookup

#: How long a connection that was ended from our side may take to swallow the reason, in seconds.
LINGER = 10.0
#: The same when the service is stopping.
_LAST_WORD = 1.0
#: The longest that one turn waits for its answers in the tarpit, in seconds.
_MOST_DELAY = 5.0


class Heir(typing.Protocol):
    """Who has a connection after its conversation."""

    def received(self, data: bytes) -> None:
        """Octets came from the peer."""

    def lost(self) -> None:
        """The connection is gone, or the peer has closed its side.  May be called again."""


@implementer(IHalfCloseableProtocol, IPushProducer)
class Conversation(Protocol):
    """One connection.  A subclass knows what the events of its session mean.

    :ivar id: names the connection in log lines.
    :ivar client: the peer's IP address, or "" on a Unix socket.
    :ivar session: the state machine; has ``receive``, ``next_event``, ``data_to_send``,
        ``waiting``, ``buffered``, ``exchanging``, ``errors``, ``commands``, ``tls_active`` and
        ``tls_started``.
    :ivar writable: whether the peer takes what it is sent.
    :ivar deadline: when patience ends.
    :cvar handlers: event class -> method.
    :cvar avatar: what a login is for.
    """

    log: Logger
    handlers: ClassVar[Mapping[type, Callable[[Any, Any], None]]]
    factory: Any
    # Any: a TCP, TLS or Unix transport, and each has more than ITransport.
    transport: Any
    session: Any
    deadline: Deadline
    avatar: type[Interface]
    id = ""
    client = ""
    writable = True
    _reading = True
    _advancing = False
    #: Whether anything can still be said.
    _connected = True
    #: Whether the connection closes once all that was said is taken.
    _closing = False
    #: Whether the service is stopping, so that what is under way is the last.
    _last = False
    #: Whether the peer has closed its side.
    _input_ended = False
    #: Whether something else than the peer must be waited for before the next event.
    _stalled = False
    #: What goes on with a connection that is held back; while there is one, it is.
    _held: IDelayedCall | None = None
    #: Who has the connection now, the conversation being over; or None.
    _heir: Heir | None = None
    #: Whether errors and commands are looked at: not those of exempt networks.
    _braked = False
    #: How many errors and commands of the session were looked at.
    _errors = _commands = 0
    _tls: TLSState | None = None
    #: Who logs in, or has.
    _user = ""

    # ---- for the subclass to say ----

    @abstractmethod
    def open_session(self, tls_active: bool) -> Any:
        """Make the session; set the first deadline.  *tls_active*: the endpoint brought TLS."""

    def begin(self, refusal: MailFailure | None) -> None:
        """Greet, or refuse a connection too many."""

    def say_goodbye(self, now: bool) -> None:
        """The service is stopping: close the session, unless *now* is false and it is at work."""

    def dismiss(self, failure: MailFailure) -> None:
        """Close the session, in which no question is open, unless it is amid something."""

    def patience(self) -> float:
        """How long, in seconds, a client that is done may take to swallow what it asked for."""
        return LINGER

    def keep_time(self, said: bool, at_work: bool) -> None:
        """A turn is over, in which something was *said* or not: move the deadline.

        :param at_work: as the attribute of that name.
        """

    def time_is_up(self, now: float) -> None:
        """The deadline has passed: end the connection, or set another."""

    # ---- transport ----

    def connectionMade(self) -> None:
        factory = self.factory
        self.log = factory.log
        self.id = new_id()
        self.client = client_address(self.transport.getPeer())
        # Answers are written whole, once a turn; Nagle would only add a delayed ACK to each.
        set_no_delay = getattr(self.transport, "setTcpNoDelay", None)
        if set_no_delay is not None:
            set_no_delay(True)
        self._braked = not factory.connections.exempts(self.client)
        self.deadline = Deadline(factory.clock, self.time_is_up)
        self.session = self.open_session(ISSLTransport.providedBy(self.transport))
        self.transport.registerProducer(self, True)
        refusal = None
        factory.open.add(1)
        try:
            factory.connections.add(self, self.client)
            factory.sessions.add()
        except MailFailure as failure:
            refusal = failure
            factory.turned_away.add()
            self.log.warn(
                "{connection} refused client={client}: {reason}",
                connection=self.id, client=self.client, reason=failure.text,
            )
        if factory.connections.look is not None:
            factory.connections.look(self, begun=False)
        self.begin(refusal)
        self._advance()

    def dataReceived(self, data: bytes) -> None:
        if self._heir is not None:
            self._heir.received(data)
            return
        self.session.receive(data)
        self._advance()

    def readConnectionLost(self) -> None:
        """The peer has closed its side; what it asked for before is still answered."""
        self._input_ended = True
        if self._heir is not None:
            self._heir.lost()
        if self._closing:
            self.transport.loseConnection()
        self._advance()

    def writeConnectionLost(self) -> None:
        """Our side is closed, as was wished; the peer's is read to its end."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._connected = False
        if self._heir is not None:
            self._heir.lost()
        self.deadline.stop()
        if self._held is not None:
            self._held.cancel()
        self.factory.connections.remove(self)
        self.factory.open.add(-1)

    def pauseProducing(self) -> None:
        """The transport's buffer is full: the peer does not take its answers."""
        self.writable = False
        self._pace(self.at_work)

    def resumeProducing(self) -> None:
        """The transport's buffer has room again."""
        self.writable = True
        self._advance()

    def stopProducing(self) -> None:
        """The transport takes nothing more; connectionLost follows."""

    # ---- the loop ----

    @property
    def at_work(self) -> bool:
        """Whether it is not for the client to go on."""
        return self.session.waiting or self._stalled or self._held is not None

    @property
    def at_rest(self) -> bool:
        """Whether the client has all its answers, and a command comes next."""
        return not (self.at_work or self.session.buffered or self.session.exchanging)

    def _advance(self) -> None:
        """Handle events until input, an answer, the peer or something else must be waited for."""
        if self._advancing or not self._connected or self._heir is not None:
            return
        if self._held is not None:
            self._pace(at_work=True)
            return
        # This runs for each command of everybody: attributes rather than properties of ours.
        session, handlers = self.session, self.handlers
        self._advancing = True
        try:
            while self.writable and not (
                    session.waiting or self._stalled or self._held is not None):
                if self._last:
                    self.say_goodbye(now=False)
                event = session.next_event()
                if event is not None:
                    handlers[type(event)](self, event)
                    if self._heir is not None:
                        return
                if (self._braked and (session.commands != self._commands
                                      or session.errors != self._errors)
                        and not self.at_work and self._brake()):
                    continue
                if event is None:
                    break
        finally:
            self._advancing = False
        said = self._held is None and self._flush()
        if self._closing:
            return
        at_work = self.at_work
        if self._input_ended and not at_work and self.writable:
            self._hang_up(True)
            return
        self._pace(at_work)
        self.keep_time(said, at_work)

    def _go_on(self, _: object) -> None:
        """A callback: what was waited for is there."""
        self._stalled = False
        self._advance()

    def _flush(self) -> bool:
        """Write what is owed; return whether there was anything."""
        data = self.session.data_to_send()
        if data:
            self.transport.write(data)
        return bool(data)

    def _pace(self, at_work: bool) -> None:
        """Read from the transport just when more input can be used."""
        held_up = at_work or not self.writable
        # Not before input waits: TLS cannot write in its handshake, and has to read to get through.
        reading = not (held_up and self.session.buffered)
        if reading != self._reading and self._connected and not self._input_ended:
            self._reading = reading
            if reading:
                self.transport.resumeProducing()
            else:
                self.transport.pauseProducing()

    def start_tls(self, event: object) -> None:
        """The handler of the event that asks for TLS."""
        said = self._flush()
        self.transport.startTLS(self.factory.tls)
        self.session.tls_started()
        # What was flushed here is nothing to the end of the turn.
        self.keep_time(said, at_work=False)

    # ---- brakes ----

    def hold(self, seconds: float, then: Callable[[], object]) -> None:
        """Say and read nothing for so long; then do *then*, and go on."""
        self._held = self.factory.clock.callLater(seconds, self._let_go, then)

    def _let_go(self, then: Callable[[], object]) -> None:
        self._held = None
        then()
        self._advance()

    def _brake(self) -> bool:
        """Make errors wait for their answers; whether the session was ended, for its commands."""
        session, factory = self.session, self.factory
        more_errors = session.errors > self._errors
        more_commands = session.commands - self._commands
        self._errors, self._commands = session.errors, session.commands
        if self._closing or not self._connected:
            return False
        if more_commands:
            try:
                factory.connections.count_commands(self.client, more_commands)
            except MailFailure as failure:
                self.log.warn("{connection} dismissed client={client}: {reason}",
                              connection=self.id, client=self.client, reason=failure.text)
                self.dismiss(failure)
                return True
        if more_errors:
            seconds = factory.settings.error_delay_seconds * (
                session.errors - factory.settings.free_errors)
            if seconds > 0:
                self.hold(min(seconds, _MOST_DELAY), self._flush)
        return False

    # ---- logging in ----

    def sasl_context(self) -> Context:
        """The connection as SASL sees it now."""
        factory = self.factory
        return factory.authenticator.context(
            factory.login_protocol, self.client, tls_active=self.session.tls_active,
            cleartext=factory.settings.allow_cleartext_auth,
            channel_bindings=self.tls.channel_bindings if self.tls else {},
            certificate_names=self.tls.client_names if self.tls else ())

    @property
    def tls(self) -> TLSState | None:
        """What the TLS handshake agreed on, if there was one."""
        if self._tls is None and self.session.tls_active:
            self._tls = describe(self.transport)
        return self._tls

    @abstractmethod
    def logged_in(self, avatar: Any, log_out: Callable[[], object]) -> None:
        """A login succeeded: answer the session's question."""

    def look_up_keys(self, question: Lookup) -> None:
        """The handler of Lookup."""
        attempt = self.sasl_context().attempt("SCRAM")
        self._once(self.factory.authenticator.keys(question.name, attempt), self.session.keys)

    def log_in(self, question: LogIn) -> None:
        """The handler of LogIn."""
        self._user = question.credentials.username.decode("utf-8", "replace")
        self.be_seen()
        self._once(self.factory.authenticator.log_in(
            question.credentials, self.avatar, self.who, question.authorize_as), self._admit)

    def count_guess(self, question: Guessed) -> None:
        """The handler of Guessed."""
        self._user = question.username.decode("utf-8", "replace")
        self.be_seen()
        self.factory.authenticator.failed(
            question.username, self.sasl_context().attempt("SCRAM"), self.who, "wrong proof")
        self.session.login_refused()

    # ---- for those who watch ----

    def be_seen(self, recipient: str = "") -> None:
        """Something is known of whose connection this is: tell who watches, if anybody does.

        :param recipient: whom mail is for, as was said just now.
        """
        look = self.factory.connections.look
        if look is not None:
            look(self, recipient)

    @property
    def account(self) -> str:
        """Who has logged in, or tries to, as far as is known; or ""."""
        return self._user

    @property
    def recipients(self) -> list[str]:
        """Whom the mail under way is for."""
        return []

    @property
    def turned(self) -> bool:
        """Whether the conversation is over, and somebody else has the connection."""
        return self._heir is not None

    def described(self) -> dict[str, Any]:
        """What it is at this moment, as JSON can hold it; see :mod:`mailsvc.live`."""
        peer, here = self.transport.getPeer(), self.transport.getHost()
        passed = traffic(self.transport)
        return {
            "id": self.id, "protocol": self.factory.protocol_name, "listener": _place(here),
            "client": self.client, "port": getattr(peer, "port", None), "since": time_of(self.id),
            "tls": f"{self.tls.version} {self.tls.cipher}" if self.tls else "",
            "received": passed and passed.received, "sent": passed and passed.sent,
            "idle": passed and passed.idle,
        }

    @property
    def who(self) -> Who:
        """This client, for log lines."""
        return Who(self.id, self.log)

    def _admit(self, login: tuple[Any, Callable[[], object]]) -> None:
        avatar, log_out = login
        if self._connected:
            self.logged_in(avatar, log_out)
        else:
            log_out()

    def _once(self, work: Coroutine[Any, Any, Any], then: Callable[[Any], None]) -> None:
        """Do *then* with the outcome of *work*, and go on."""
        answered = Deferred.fromCoroutine(work)
        answered.addCallbacks(then, self._login_failed)
        answered.addCallback(self._go_on)
        answered.addErrback(self._cannot_go_on)

    def _login_failed(self, failure: Failure) -> None:
        found: Any = failure.value
        wrong = failure.check(LoginFailed) is not None
        if not wrong and not isinstance(found, MailFailure):
            self.log.failure("{connection} could not answer", failure, connection=self.id)
            found = TemporaryFailure("Local error; try again later")
        if not wrong:
            self.log.info("{connection} login refused user={user!r} client={client}: {reason}",
                          connection=self.id, user=self._user, client=self.client,
                          reason=found.text)
        if not self._connected:
            return
        if wrong:
            self.session.login_refused()
        else:
            self.session.login_failed(found)

    def _cannot_go_on(self, failure: Failure) -> None:
        """The session is unsound."""
        self.log.failure("{connection} is cut off", failure, connection=self.id)
        self._cut_off("internal error")

    # ---- the end ----

    def bequeath(self, heir: Heir) -> None:
        """End the conversation: its handler's last act.  The connection is *heir*'s from now on.

        *heir* may register a producer with the transport, and calls :meth:`close` in the end.
        Nothing of the time and of the brakes binds it; the count of connections does.
        """
        self._flush()
        self._heir = heir
        self.deadline.move(FOREVER)
        self.transport.unregisterProducer()
        if self._input_ended:
            heir.lost()
        elif not self._reading:
            self._reading = True
            self.transport.resumeProducing()

    def close(self) -> None:
        """For the heir: close the connection when all that was written is taken, or soon."""
        if self._connected and not self._closing:
            self._hang_up(True)

    def _hang_up(self, asked: bool) -> None:
        """Close when all that was said is taken, or when it takes too long.

        :param asked: whether the client wished it, and so sends nothing more.
        """
        self._flush()
        self._closing = True
        seconds = _LAST_WORD if self._last else self.patience() if asked else LINGER
        self.deadline.move(self.factory.clock.seconds() + seconds)
        self.transport.unregisterProducer()
        # TLS has to read to its end, too.
        if not self._reading and not self._input_ended:
            self._reading = True
            self.transport.resumeProducing()
        half_close = getattr(self.transport, "loseWriteConnection", None)
        done = asked or self._last or self._input_ended or self.session.tls_active
        if done or half_close is None:
            self.transport.loseConnection()
        else:
            half_close()

    def _cut_off(self, reason: str) -> None:
        """End the connection at once, for *reason*; nothing more is read, said or asked."""
        self._connected = False
        self.deadline.stop()
        self.transport.abortConnection()

    def finish(self) -> None:
        """Take no new work, and end when what is under way has."""
        self._last = True
        self._advance()

    def abort(self) -> None:
        """End now, with a word if one can be said."""
        if self._heir is not None or self._closing or self.at_work or not self.writable:
            self._cut_off("service stopped")
        else:
            self._last = True
            self.say_goodbye(now=True)
            self._advance()


def _place(address: IAddress) -> str:
    """An address of ours as people write it: ``127.0.0.1:25``, ``[::1]:25``, or a path."""
    host = getattr(address, "host", None)
    if host is None:
        name = getattr(address, "name", None)
        return os.fsdecode(name) if name else ""
    port = getattr(address, "port", 0)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
