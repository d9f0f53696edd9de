"""POP3 on Twisted transports: joins :class:`mailsvc.pop3.session.Session` to portal and maildrop.

One :class:`POP3Protocol` per connection.  A login asks the portal for an ``IMaildrop``; the avatar
is the locked maildrop, and logging out gives it back, which happens exactly once: after the update
of QUIT, at autologout, when the connection or the lock is lost, or when a login is answered too
late.

Back-pressure goes both ways.  A message or a long listing is produced only as fast as the peer
takes it.  Once a chunk of input waits for the answer to a question, or for the peer to take what it
was sent, no more is read.  So a connection holds one received chunk, one block and one transport
buffer.

Limits of time: ``login_seconds`` from connecting to being logged in, however the client spends
them.  From then on ``autologout_seconds`` without a whole command end the session, silently (RFC
1939 §3).  A peer that takes what it is sent, however slowly, is not idle, and one that takes
nothing is.  While the server itself is at work no session ends.
"""

from __future__ import annotations

import fcntl
import secrets
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import md5
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import (
    IOpenSSLServerConnectionCreator,
    IReactorTime,
)
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from mailsvc import figures
from mailsvc.authentication import Authenticator
from mailsvc.connections import Connections
from mailsvc.conversation import Conversation
from mailsvc.credentials import Attempt, Digest, Password
from mailsvc.errors import MailFailure, SomeNotRemoved, TemporaryFailure
from mailsvc.factory import ConversationFactory
from mailsvc.figures import Share
from mailsvc.interfaces import IMaildrop
from mailsvc.mail import new_id
from mailsvc.pop3 import events
from mailsvc.pop3.commands import State
from mailsvc.pop3.limits import POP3Settings
from mailsvc.pop3.replies import from_failure
from mailsvc.pop3.retrieval import Retrieval
from mailsvc.pop3.session import GATHER, Session
from mailsvc.sasl.steps import Guessed, LogIn, Lookup

#: How soon to look again, in seconds, when time is up but the server is still at work.
_AT_WORK = 5.0
#: How many messages the log is told of at once, and how long, in seconds, it may wait for more.
_TOLD, _TELL_AFTER = 100, 1.0
#: How many it is told of in one turn of the reactor.
_TOLD_A_TURN = 2000
#: How soon to look again, in seconds, when time is up but the peer still takes what it is sent.
_TAKING = 60.0

_SHUTTING_DOWN = TemporaryFailure("Service shutting down; come back soon")
_LOCAL_ERROR = TemporaryFailure("Local error; try again later")


class POP3Protocol(Conversation):
    """One POP3 connection."""

    factory: POP3Factory
    avatar = IMaildrop
    session: Session
    #: The name last given to log in with.
    _maildrop: Any = None  # IMaildrop | None
    _logout: Callable[[], object] | None = None
    _retrieval: Retrieval | None = None
    _listing: Iterator[bytes] | None = None
    _retrieved = 0
    _deleted = 0
    #: The numbers of messages retrieved that the log has not been told of, and since when.
    _untold: list[int]
    _untold_since = 0.0
    #: When it began, by time.monotonic_ns().
    _since = 0
    #: What the peer had still to take when it was last asked, after time was up.
    _untaken = 0

    def open_session(self, tls_active: bool) -> Session:
        factory = self.factory
        self.deadline.move(factory.clock.seconds() + factory.settings.login_seconds)
        self._untold = []
        return Session(
            factory.hostname,
            factory.settings,
            timestamp=factory.timestamp(),
            sasl=self.sasl_context,
            tls_available=factory.tls is not None,
            tls_active=tls_active,
        )

    def begin(self, refusal: MailFailure | None) -> None:
        if refusal is None:
            self.session.greet()
        else:
            self.session.close(refusal)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._connected = False
        self._leave("connection lost")
        super().connectionLost(reason)

    def pauseProducing(self) -> None:
        """The transport's buffer is full: the peer does not take what it is sent."""
        super().pauseProducing()
        if self._retrieval is not None:
            self._retrieval.pause()

    def resumeProducing(self) -> None:
        """The transport's buffer has room again."""
        self.writable = True
        self._renew()
        if self._retrieval is not None:
            self._retrieval.resume()
        elif self._listing is not None:
            self._send_listing(self._listing)
        self._advance()

    def _flush(self) -> bool:
        said = super()._flush()
        self._count_retrieved()
        if said:
            # Each whole command has its answer, so to answer is to have seen a sign of life.
            self._renew()
        return said

    def _on_gathered(self, event: events.Gathered) -> None:
        self._flush()

    # ---- time ----

    def _renew(self) -> None:
        """Every whole command, and every buffer that the peer took, buys time once logged in."""
        if self.session.state is not State.AUTHORIZATION and not self._closing:
            settings = self.factory.settings
            self.deadline.move(self.factory.clock.seconds() + settings.autologout_seconds)

    def time_is_up(self, now: float) -> None:
        at_work = self.session
        if at_work.waiting and self.writable:
            self.deadline.move(now + _AT_WORK)
        elif at_work.state is not State.AUTHORIZATION and self._is_taking():
            self.deadline.move(now + _TAKING)
        elif self.writable and not self._closing:
            # RFC 1939 §3: the connection is closed without a word.
            at_work.end(b"", "time is up")
            self._advance()
        else:
            self._cut_off("time is up amid an answer")

    def _is_taking(self) -> bool:
        """Whether the peer has octets to take still, and not as many as when last asked."""
        before, self._untaken = self._untaken, _unacknowledged(self.transport)
        return self._untaken not in (0, before)

    # ---- the end ----

    def patience(self) -> float:
        # The messages it asked for before QUIT may still be on their way.
        return self.factory.settings.autologout_seconds

    def _on_closed(self, event: events.Closed) -> None:
        self._leave(event.reason)
        self._hang_up(event.asked)

    def _leave(self, reason: str) -> None:
        """Log out, unless an update is under way, which does so when it is done."""
        self._listing = None
        retrieval, self._retrieval = self._retrieval, None
        if retrieval is not None:
            retrieval.stop()
        if self._logout is None or self.session.state is State.UPDATE:
            return
        logout, self._logout = self._logout, None
        try:
            self._count_retrieved()
            self._tell_retrieved()
        finally:  # whatever happens, nobody else is locked out
            self._maildrop = None
            logout()
        self.factory.session.observe(time.monotonic_ns() - self._since)
        self.log.info(
            "{connection} logged out user={user!r} retrieved={retrieved} deleted={deleted} "
            "client={client}: {reason}",
            connection=self.id, user=self._user, retrieved=self._retrieved, deleted=self._deleted,
            client=self.client, reason=reason,
            **({"event": "mailbox.fetched"} if self._retrieved or self._deleted else {}),
        )

    def say_goodbye(self, now: bool) -> None:
        self.session.close(_SHUTTING_DOWN)

    def dismiss(self, failure: MailFailure) -> None:
        self.session.close(failure)

    def _cut_off(self, reason: str) -> None:
        self._connected = False
        self._leave(reason)
        super()._cut_off(reason)

    # ---- login ----

    def _on_login(self, event: events.Login) -> None:
        attempt = Attempt("pop3", self.client, "USER")
        self.log_in(LogIn(Password(event.user.encode(), event.password, attempt)))

    def _on_apop_login(self, event: events.ApopLogin) -> None:
        def digest_of(secret: bytes) -> bytes:
            digest = md5(event.challenge + secret, usedforsecurity=False)
            return digest.hexdigest().encode("ascii")

        attempt = Attempt("pop3", self.client, "APOP")
        self.log_in(LogIn(Digest(event.user.encode(), event.digest, digest_of, attempt)))

    def logged_in(self, avatar: Any, log_out: Callable[[], object]) -> None:
        self._maildrop, self._logout, self._since = avatar, log_out, time.monotonic_ns()
        self.session.logged_in(avatar)
        self._renew()
        self.log.info(
            "{connection} logged in user={user!r} messages={messages} octets={octets} "
            "client={client}",
            connection=self.id, user=self._user, messages=len(avatar.sizes),
            octets=avatar.octets, client=self.client,
        )
        avatar.lost.addBoth(self._lock_lost)

    def _lock_lost(self, _: object) -> None:
        if self._logout is not None and self.session.state is State.TRANSACTION:
            self._cut_off("the lock of the maildrop was lost")

    # ---- other questions ----

    def _on_retrieve(self, event: events.Retrieve) -> None:
        retrieval = self._retrieval = Retrieval(self)
        reading: Deferred[None] = maybeDeferred(
            self._maildrop.read, event.number, retrieval, event.lines
        )
        retrieval.reading = reading
        reading.addCallbacks(
            self._message_read, self._message_failed, (retrieval,), errbackArgs=(retrieval,)
        )
        reading.addCallback(self._go_on)
        reading.addErrback(self._bug)

    def pass_on(self, block: bytes) -> None:
        """Send a block of the message being retrieved."""
        self.session.message_block(block)
        # Amid the loop answers are gathered, so that pipelined commands are answered at once.
        if not self._advancing or self.session.owed >= GATHER:
            self._flush()

    def _message_read(self, _: object, retrieval: Retrieval) -> None:
        if not retrieval.stopped:
            self._retrieval = None
            self.session.retrieved()

    def _count_retrieved(self) -> None:
        """Count what has been retrieved since this was called last."""
        numbers = self.session.take_retrieved()
        if not numbers:
            return
        self._retrieved += len(numbers)
        self.factory.fetched.add(len(numbers))
        sizes = self._maildrop.sizes
        self.factory.fetched_octets.add(sum([sizes[number - 1] for number in numbers]))
        now = self.factory.clock.seconds()
        if now - self._untold_since > _TELL_AFTER:
            self._tell_retrieved()
        if not self._untold:
            self._untold_since = now
        self._untold += numbers
        if len(self._untold) >= _TOLD:
            self._tell_retrieved()

    def _tell_retrieved(self) -> None:
        """Name the messages; together, since one by one would cost more than to send them."""
        untold, self._untold = self._untold, []
        for start in range(0, len(untold), _TOLD):
            self.log.debug("{connection} retrieved {messages} user={user} client={client}",
                           connection=self.id, user=self._user, client=self.client,
                           since=self._untold_since,
                           messages=[self._maildrop.uidl(number)
                                     for number in untold[start:start + _TOLD]])

    def _tell_removed(self, maildrop: Any, numbers: Sequence[int]) -> None:
        for start in range(0, min(len(numbers), _TOLD_A_TURN), _TOLD):
            self.log.debug("{connection} removed {messages} user={user} client={client}",
                           connection=self.id, user=self._user, client=self.client,
                           messages=[maildrop.uidl(number)
                                     for number in numbers[start:start + _TOLD]])
        if len(numbers) > _TOLD_A_TURN:
            self.factory.clock.callLater(0, self._tell_removed, maildrop, numbers[_TOLD_A_TURN:])

    def _message_failed(self, failure: Failure, retrieval: Retrieval) -> None:
        if not retrieval.stopped:
            self._retrieval = None
            self.session.retrieve_failed(self._mail_failure(failure))

    def _on_listing(self, event: events.Listing) -> None:
        self._listing = event.blocks
        self._flush()
        self._send_listing(event.blocks)

    def _send_listing(self, blocks: Iterator[bytes]) -> None:
        while self.writable:
            block = next(blocks, None)
            if block is None:
                self._listing = None
                self.session.listed()
                return
            self.transport.write(block)

    def _on_update(self, event: events.Update) -> None:
        updating: Deferred[None] = maybeDeferred(self._maildrop.update, event.deleted)
        updating.addCallbacks(
            self._updated, self._update_failed, (event,), errbackArgs=(event,)
        )
        updating.addCallback(self._go_on)
        updating.addErrback(self._bug)

    def _updated(self, _: object, event: events.Update) -> None:
        self._count_deleted(sorted(event.deleted))
        self.session.updated()
        self._leave("quit")

    def _update_failed(self, failure: Failure, event: events.Update) -> None:
        found = self._mail_failure(failure)
        if isinstance(found, SomeNotRemoved):
            self._count_deleted(sorted(event.deleted.difference(found.numbers)))
        self.session.updated(found)
        self._leave(found.text)

    def _count_deleted(self, numbers: Sequence[int]) -> None:
        self._deleted = len(numbers)
        self.factory.deleted.add(len(numbers))
        self._count_retrieved()
        self._tell_retrieved()
        self._tell_removed(self._maildrop, numbers)

    # ---- for those who watch ----

    def described(self) -> dict[str, Any]:
        session = self.session
        known = session.state is not State.AUTHORIZATION
        state = ("auth" if session.exchanging else "message" if self._retrieval is not None
                 else "listing" if self._listing is not None else session.state.value)
        return {
            **super().described(), "login": self._user if known else "", "state": state,
            "messages": self._retrieved, "deleted": self._deleted,
        }

    # ---- failures ----

    def _mail_failure(self, failure: Failure) -> MailFailure:
        """*failure* as the client may be told; what is nobody's business is logged."""
        if isinstance(failure.value, MailFailure):
            return failure.value
        self.log.failure("{connection} could not answer", failure, connection=self.id)
        return _LOCAL_ERROR

    def _bug(self, failure: Failure) -> None:
        """The session is unsound."""
        self.log.failure("{connection} is cut off", failure, connection=self.id)
        self._cut_off("internal error")


POP3Protocol.handlers = {
    events.Login: POP3Protocol._on_login,
    events.ApopLogin: POP3Protocol._on_apop_login,
    Lookup: POP3Protocol.look_up_keys,
    LogIn: POP3Protocol.log_in,
    Guessed: POP3Protocol.count_guess,
    events.Retrieve: POP3Protocol._on_retrieve,
    events.Listing: POP3Protocol._on_listing,
    events.Update: POP3Protocol._on_update,
    events.StartTLS: POP3Protocol.start_tls,
    events.Gathered: POP3Protocol._on_gathered,
    events.Closed: POP3Protocol._on_closed,
}


def _unacknowledged(transport: Any) -> int:
    """How many octets the kernel holds that the peer has not acknowledged; 0 if it cannot tell."""
    try:
        # Not by getHandle(), which within implicit TLS knows of TLS alone.
        held = fcntl.ioctl(transport.socket, termios.TIOCOUTQ, bytes(4))
        return int.from_bytes(held, sys.byteorder)
    except (AttributeError, OSError):
        return 0


class POP3Factory(ConversationFactory):
    """Builds the protocols of one service's POP3 listeners, and holds them to its limits.

    :param authenticator: its portal answers a login for ``IMaildrop`` with a maildrop and what
        gives it back.
    :param share: where is counted.
    """

    protocol = POP3Protocol  # type: ignore[assignment]
    namespace = "mailsvc.pop3"
    login_protocol = "pop3"
    authenticator: Authenticator
    settings: POP3Settings

    def __init__(
        self,
        authenticator: Authenticator,
        settings: POP3Settings,
        hostname: str,
        clock: IReactorTime,
        tls: IOpenSSLServerConnectionCreator | None = None,
        connections: Connections | None = None,
        share: Share | None = None,
    ) -> None:
        share = share or Share()
        super().__init__(settings, hostname, clock, tls, connections, authenticator,
                         share=share, protocol="pop3")
        self.session = share.spread(figures.POP3_SESSION)
        self.fetched = share.count(figures.FETCHED)
        self.fetched_octets = share.count(figures.FETCHED_BYTES)
        self.deleted = share.count(figures.DELETED)

    def refuse(self, failure: MailFailure) -> bytes:
        return from_failure(failure)

    def timestamp(self) -> str:
        """What the banner of a new connection ends with; "" when nobody could use APOP."""
        if not self.settings.apop:
            return ""
        if not self.authenticator.checks_digests:
            return ""
        return f"<{new_id()}.{secrets.token_hex(8)}@{self.hostname}>"
