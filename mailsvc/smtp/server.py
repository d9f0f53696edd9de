"""SMTP on Twisted transports: joins :class:`mailsvc.smtp.session.Session` to router and store.

One :class:`SMTPProtocol` per connection hands the session's questions to the router and the store,
and their answers back.  Answers may be Deferreds; what is answered at once costs no Deferred.

Back-pressure goes both ways.  While a question is open, the store asks for a pause, or the peer does
not take its replies, nothing is done and, once input waits, nothing is read; so at most one received
chunk, one block on its way to disk and one transport buffer are held per connection.

Limits of time: a command must arrive whole within ``command_seconds``, however it dribbles; amid a
message every octet buys ``data_seconds``, up to ``message_seconds`` in all.  While the server
itself is at work no time runs.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet import defer
from twisted.internet.interfaces import (
    IOpenSSLContextFactory,
    IPushProducer,
    IReactorTime,
    ISSLTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mailsvc.connections import Connections, client_address
from mailsvc.errors import MailFailure
from mailsvc.interfaces import IMailboxStore, IRouter
from mailsvc.mail import Address, Envelope, Recipient, new_id
from mailsvc.smtp import events, replies
from mailsvc.smtp.commands import CLOSED, READY, START
from mailsvc.smtp.limits import SMTPSettings
from mailsvc.smtp.replies import Reply, from_failure, reply
from mailsvc.smtp.session import Session
from mailsvc.trace import trace_header

#: How long a closed connection may take to swallow the last replies, in seconds.
_LINGER = 10.0
_FOREVER = float("inf")


@implementer(IPushProducer)
class SMTPProtocol(Protocol):
    """One SMTP connection.

    :ivar id: names the connection in log lines.
    :ivar client: the peer's IP address, or "" on a Unix socket.
    """

    log = Logger()
    factory: SMTPFactory
    # Any: a TCP, TLS or Unix transport, and each has more than ITransport.
    transport: Any
    #: The message on its way to the store, and its id, from DataBegins to the end of MessageEnds.
    _delivery: Any = None  # IDelivery | None
    _message = ""
    #: Whether the store asked to wait before the next block.
    _stalled = False
    #: Whether the peer takes its replies.
    _writable = True
    _reading = True
    _advancing = False
    _connected = True
    _closing = False
    #: Whether the end of the session was the client's wish.
    _asked = False
    #: Whether the service is stopping, so that this transaction is the last.
    _last = False
    #: The time at which patience ends, and at which the present message must be whole.
    _expires = _FOREVER
    _message_expires = _FOREVER

    # ---- transport ----

    def connectionMade(self) -> None:
        factory = self.factory
        self.id = new_id()
        self.client = client_address(self.transport.getPeer())
        # Replies are written whole, once a turn; Nagle would only add a delayed ACK to each.
        set_no_delay = getattr(self.transport, "setTcpNoDelay", None)
        if set_no_delay is not None:
            set_no_delay(True)
        self.session = Session(
            factory.hostname,
            factory.settings,
            tls_available=factory.tls is not None,
            # An endpoint may have brought TLS along.
            tls_active=ISSLTransport.providedBy(self.transport),
        )
        self.transport.registerProducer(self, True)
        self._expires = factory.clock.seconds() + factory.settings.command_seconds
        self._timer = factory.clock.callLater(factory.settings.command_seconds, self._time_is_up)
        self._advance()

    def dataReceived(self, data: bytes) -> None:
        self.session.receive(data)
        self._advance()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._connected = False
        if self._timer.active():
            self._timer.cancel()
        # A commit under way goes on: the peer may have sent all it had (RFC 1047 allows a copy).
        if not self.session.waiting:
            self._drop("connection lost")
        self.factory.connections.remove(self)

    def pauseProducing(self) -> None:
        """The transport's buffer is full: the peer does not read its replies."""
        self._writable = False
        self._pace()

    def resumeProducing(self) -> None:
        """The transport's buffer has room again."""
        self._writable = True
        self._advance()

    def stopProducing(self) -> None:
        """The transport takes nothing more; connectionLost follows."""

    # ---- the loop ----

    def _advance(self) -> None:
        """Handle events until input, an answer, the store or the peer must be waited for."""
        if self._advancing or not self._connected:
            return
        self._advancing = True
        at_work = self.session
        progress = False
        try:
            while self._writable and not self._stalled and not at_work.waiting:
                if self._last and at_work.phase in (START, READY):
                    at_work.close(replies.SHUTTING_DOWN)
                event = at_work.next_event()
                if event is None:
                    break
                progress = True
                _HANDLERS[type(event)](self, event)
        finally:
            self._advancing = False
        output = at_work.data_to_send()
        if output:
            progress = True
            self.transport.write(output)
        if at_work.phase is CLOSED:
            self._hang_up()
            return
        self._pace()
        self._set_deadline(progress)

    def _pace(self) -> None:
        """Read from the transport just when more input can be used."""
        at_work = self.session
        held_up = at_work.waiting or self._stalled or not self._writable
        # Not before input waits: TLS cannot write in its handshake, and has to read to get through.
        reading = not (held_up and at_work.buffered)
        if reading != self._reading and self._connected:
            self._reading = reading
            if reading:
                self.transport.resumeProducing()
            else:
                self.transport.pauseProducing()

    def _set_deadline(self, progress: bool) -> None:
        settings, now = self.factory.settings, self.factory.clock.seconds()
        if self.session.intake is None:
            self._message_expires = _FOREVER
        elif self._message_expires == _FOREVER:
            self._message_expires = now + settings.message_seconds
        if self._stalled or self.session.waiting:
            self._expires = _FOREVER
        elif self.session.receiving:
            self._expires = min(now + settings.data_seconds, self._message_expires)
        elif progress or self._expires == _FOREVER:
            # Only a whole command buys time, so that a client cannot live on an octet a minute.
            self._expires = min(now + settings.command_seconds, self._message_expires)
        # A timer set for later than this is moved; one set for earlier finds out when it fires.
        if self._timer.active() and self._timer.getTime() > self._expires:
            self._timer.reset(max(0.0, self._expires - now))

    def _time_is_up(self) -> None:
        clock = self.factory.clock
        settings = self.factory.settings
        if self._expires > clock.seconds():
            # Most deadlines were moved since the timer was set; moving the timer each time would
            # cost more than looking now and then.
            wait = min(self._expires - clock.seconds(), settings.command_seconds)
            self._timer = clock.callLater(wait, self._time_is_up)
        elif self.session.phase is CLOSED:
            self.transport.abortConnection()
        else:
            self._close(replies.TIMED_OUT)

    def _hang_up(self) -> None:
        """Close when the last replies are out; who does not take them is cut off after a while."""
        if self._closing:
            return
        self._closing = True
        self._expires = self.factory.clock.seconds() + _LINGER
        if self._timer.active():
            self._timer.reset(_LINGER)
        else:
            self._timer = self.factory.clock.callLater(_LINGER, self._time_is_up)
        self.transport.unregisterProducer()
        # TLS has to read to the end, too.
        self._reading = True
        self.transport.resumeProducing()
        half_close = getattr(self.transport, "loseWriteConnection", None)
        if half_close is None or self._asked or self.session.tls_active:
            self.transport.loseConnection()
        else:
            # Input that nobody read would turn the close into a reset, and a reset may overtake
            # the reply that says why.  So what still comes is read and dropped for a while.
            half_close()

    def _close(self, answer: Reply) -> None:
        """End the session from our side."""
        self.session.close(answer)
        self._writable = True
        self._advance()

    def finish(self) -> None:
        """End the session as soon as no transaction is open, answering 421."""
        self._last = True
        self._advance()

    def abort(self) -> None:
        """End the connection at once."""
        self.transport.abortConnection()

    # ---- questions ----

    def _settle(self, work: Coroutine[Any, Any, Reply]) -> None:
        """Let *work* find the answer to the open question, now or later."""
        answer = defer.ensureDeferred(work)
        if answer.called and not isinstance(answer.result, Failure) and not answer.paused:
            self.session.reply(answer.result)  # type: ignore[arg-type]
            return
        answer.addErrback(self._bug)
        answer.addCallback(self._resume)

    def _resume(self, answer: Any) -> None:
        self.session.reply(answer)
        self._advance()

    def _bug(self, failure: Failure) -> Any:
        self.log.failure("{connection} could not answer", failure, connection=self.id)
        return replies.LOCAL_ERROR

    def _on_connected(self, event: events.Connected) -> None:
        try:
            self.factory.connections.add(self, self.client)
        except MailFailure as failure:
            self.log.warn(
                "{connection} refused client={client}: {reason}",
                connection=self.id, client=self.client, reason=failure.text,
            )
            self.session.reply(Reply(421, failure.status, (failure.text,)))
        else:
            self.session.reply(self.session.greeting)

    def _on_hello(self, event: events.Hello) -> None:
        self.session.reply(self.session.hello_reply(event))

    def _on_mail_from(self, event: events.MailFrom) -> None:
        self.session.reply(replies.SHUTTING_DOWN if self._last else replies.SENDER_OK)

    def _on_rcpt_to(self, event: events.RcptTo) -> None:
        envelope = self.session.envelope
        assert envelope is not None
        self._settle(self._route(envelope, event.forward_path))

    async def _route(self, envelope: Envelope, forward_path: Address) -> Reply:
        try:
            accounts = self.factory.router.route(forward_path)
            if isinstance(accounts, defer.Deferred):
                accounts = await accounts
            for account in accounts:
                room = self.factory.store.room(account, envelope.size)
                if room is not None:
                    await room
        except MailFailure as failure:
            answer = from_failure(failure, rcpt=True)
            self.log.info(
                "{id} refused recipient={recipient} sender={sender} client={client} "
                "connection={connection}: {reply}",
                id=envelope.id, recipient=str(forward_path),
                sender=str(envelope.reverse_path), client=self.client, connection=self.id,
                reply=f"{answer.code} {answer.status} {answer.lines[0]}",
            )
            return answer
        envelope.recipients.append(Recipient(forward_path, accounts))
        return replies.RECIPIENT_OK

    def _on_verify(self, event: events.Verify) -> None:
        self._settle(self._look_up(event.mailbox, expand=False))

    def _on_expand(self, event: events.Expand) -> None:
        self._settle(self._look_up(event.mailbox, expand=True))

    async def _look_up(self, mailbox: Address, *, expand: bool) -> Reply:
        router = self.factory.router
        try:
            found = (router.expand if expand else router.verify)(mailbox)
            if isinstance(found, defer.Deferred):
                found = await found
        except MailFailure as failure:
            return from_failure(failure, rcpt=True)
        if isinstance(found, Address):
            if mailbox.domain and found.domain != mailbox.domain:
                # RFC 5321 §3.4: the server knows where the user is, and will forward.
                return reply(251, "2.1.5", f"User not local; will forward to <{found}>")
            return reply(250, "2.1.5", f"<{found}>")
        return reply(250, "2.1.5", *(f"<{address}>" for address in found))

    def _on_data_begins(self, event: events.DataBegins) -> None:
        factory, envelope = self.factory, self.session.envelope
        assert envelope is not None
        self._message = envelope.id
        # One message may follow another in the same chunk (BDAT), and has its own time.
        self._message_expires = _FOREVER
        try:
            self._delivery = factory.store.begin(envelope.accounts(), envelope.id, envelope.size)
            self._store(trace_header(
                envelope,
                client=self.client,
                hello=self.session.hello,
                protocol=self.session.transmission_type,
                hostname=factory.hostname,
                seconds=int(factory.clock.seconds()),
            ))
        except MailFailure as failure:
            self._drop(failure.text)
            self.session.reply(from_failure(failure))
        except Exception:
            self._drop("internal error")
            self.session.reply(self._bug(Failure()))
        else:
            self.session.reply(replies.START_DATA)

    def _on_message_block(self, event: events.MessageBlock) -> None:
        try:
            self._store(event.data)
        except MailFailure as failure:
            self.session.refuse_message(from_failure(failure))
        except Exception:
            self.session.refuse_message(self._bug(Failure()))

    def _store(self, block: bytes) -> None:
        pause = self._delivery.write(block)
        if pause is not None:
            self._stalled = True
            # A failure is repeated by commit, which is where it is answered.
            pause.addErrback(lambda failure: None)
            pause.addCallback(self._go_on)

    def _go_on(self, _: object) -> None:
        self._stalled = False
        self._advance()

    def _on_message_ends(self, event: events.MessageEnds) -> None:
        envelope = self.session.envelope
        assert envelope is not None
        self._settle(self._commit(envelope, event.size))

    async def _commit(self, envelope: Envelope, size: int) -> Reply:
        delivery, failure = self._delivery, None
        try:
            await delivery.commit()
        except MailFailure as found:
            failure = found
        finally:
            self._delivery, self._message = None, ""
        about = {
            "id": envelope.id,
            "sender": str(envelope.reverse_path),
            "recipients": [str(r.forward_path) for r in envelope.recipients],
            "size": size,
            "client": self.client,
            "hello": self.session.hello,
            "connection": self.id,
        }
        if failure is not None:
            self.log.error("{id} not stored: {reason} " + _ABOUT, reason=failure.text, **about)
            return from_failure(failure)
        self.log.info("{id} accepted " + _ABOUT, **about)
        return replies.accepted(envelope.id)

    def _on_aborted(self, event: events.Aborted) -> None:
        self._drop(event.reason)

    def _drop(self, reason: str) -> None:
        """Forget the message that had begun, if any."""
        delivery, self._delivery = self._delivery, None
        message, self._message = self._message, ""
        if delivery is not None:
            delivery.abort()
        if message:
            self.log.info(
                "{id} dropped client={client} connection={connection}: {reason}",
                id=message, client=self.client, connection=self.id, reason=reason,
            )

    def _on_tls_begins(self, event: events.TLSBegins) -> None:
        self.transport.write(self.session.data_to_send())
        self.transport.startTLS(self.factory.tls)
        self.session.tls_started()

    def _on_closed(self, event: events.Closed) -> None:
        # The end of _advance sends what is owed and hangs up.
        self._asked = event.asked


_ABOUT = (
    "sender={sender} recipients={recipients} size={size} client={client} hello={hello} "
    "connection={connection}"
)

_HANDLERS: dict[type, Callable[[SMTPProtocol, Any], None]] = {
    events.Connected: SMTPProtocol._on_connected,
    events.Hello: SMTPProtocol._on_hello,
    events.MailFrom: SMTPProtocol._on_mail_from,
    events.RcptTo: SMTPProtocol._on_rcpt_to,
    events.Verify: SMTPProtocol._on_verify,
    events.Expand: SMTPProtocol._on_expand,
    events.DataBegins: SMTPProtocol._on_data_begins,
    events.MessageBlock: SMTPProtocol._on_message_block,
    events.MessageEnds: SMTPProtocol._on_message_ends,
    events.Aborted: SMTPProtocol._on_aborted,
    events.TLSBegins: SMTPProtocol._on_tls_begins,
    events.Closed: SMTPProtocol._on_closed,
}


class SMTPFactory(Factory):
    """Builds the protocols of one service's SMTP listeners, and holds them to its limits.

    :param store: where accepted mail goes.
    :param router: which recipients are accepted.
    :param clock: the reactor, or a Clock.
    :param tls: the context for STARTTLS, or None not to offer it.
    """

    protocol = SMTPProtocol  # type: ignore[assignment]
    noisy = False

    def __init__(
        self,
        store: IMailboxStore,
        router: IRouter,
        settings: SMTPSettings,
        hostname: str,
        clock: IReactorTime,
        tls: IOpenSSLContextFactory | None = None,
    ) -> None:
        self.store = store
        self.router = router
        self.settings = settings
        self.hostname = hostname
        self.clock = clock
        self.tls = tls
        self.connections = Connections(
            settings.connections, settings.connections_per_address, settings.exempt_networks, clock
        )
