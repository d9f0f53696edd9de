"""SMTP on Twisted transports: joins :class:`mailsvc.smtp.session.Session` to router and store.

One :class:`SMTPProtocol` per connection hands the session's questions to the router and the store,
and their answers back.  Answers may be Deferreds; what is answered at once costs no wait.

While the store asks for a pause, no further block is handed to it and nothing is read; so at most
one received chunk and one block on its way to disk are held per connection.

Limits of time: a command must arrive whole within ``command_seconds``, however it dribbles; amid a
message every octet buys ``data_seconds``, up to ``message_seconds`` in all.  While the server
itself is at work no time runs.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.cred.error import LoginFailed
from twisted.internet import defer
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from mailsvc.authentication import Authenticator
from mailsvc.connections import Connections, peer_uid
from mailsvc.conversation import Conversation
from mailsvc.credentials import Attempt
from mailsvc.deadline import FOREVER
from mailsvc.errors import MailFailure, NothingWaits, TurnInUse
from mailsvc.factory import ConversationFactory
from mailsvc.figures import Share
from mailsvc.interfaces import IMailboxStore, IQueue, IRouter, ISubmitter
from mailsvc.mail import Address, Envelope
from mailsvc.networks import address_of, network_of
from mailsvc.sasl.steps import Guessed, LogIn, Lookup
from mailsvc.smtp import events, replies
from mailsvc.smtp.dialogue import READY, START
from mailsvc.smtp.incoming import Incoming
from mailsvc.smtp.limits import SMTPSettings
from mailsvc.smtp.mode import TRANSPORT, Mode
from mailsvc.smtp.passage import Passage
from mailsvc.smtp.reception import Origin, Reception
from mailsvc.smtp.replies import Reply, from_failure
from mailsvc.smtp.session import Session
from mailsvc.submission.agent import SubmissionAgent
from mailsvc.submission.senders import Submitter
from mailsvc.trace import trace_header


class SMTPProtocol(Conversation):
    """One SMTP connection."""

    factory: SMTPFactory
    session: Session
    avatar = ISubmitter
    #: Why this connection is one too many, or None.
    _refusal: MailFailure | None = None
    #: Where transactions come from; None until there is one after EHLO or a login.
    _from: Origin | None = None
    #: The message on its way to the store, from DataBegins to MessageEnds.
    _incoming: Incoming | None = None
    #: Who may submit without a login, or None.
    _known: Submitter | None = None
    #: Who logged in, or None.
    _login: Submitter | None = None
    #: The account's name, likewise; a login that has ended leaves it here.
    _account = ""
    #: The way to the queue, once the roles may turn.
    _passage: Passage | None = None
    #: When the present message must be whole.
    _message_deadline = FOREVER

    def open_session(self, tls_active: bool) -> Session:
        factory = self.factory
        self.deadline.move(factory.clock.seconds() + factory.settings.command_seconds)
        if factory.agent is not None:
            self._known = factory.agent.without_login(self.client, peer_uid(self.transport))
        return Session(
            factory.hostname,
            factory.settings,
            factory.mode,
            sasl=self.sasl_context if factory.authenticator and factory.mode.logs_in else None,
            known=self._known is not None,
            trusted=factory.trusts(self.client),
            tls_available=factory.tls is not None,
            tls_active=tls_active,
            turns=factory.mode.odmr or (factory.mode.submission and factory.router.fetched),
            clock=factory.clock.seconds if factory.queue is not None else None,
        )

    def begin(self, refusal: MailFailure | None) -> None:
        self._refusal = refusal

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        # A commit under way goes on: the peer may have sent all it had (RFC 1047 allows a copy).
        if not self.session.waiting:
            self._drop("connection lost")
        if self._passage is not None:
            self._passage.lost()
        super().connectionLost(reason)

    def say_goodbye(self, now: bool) -> None:
        if now or self.session.phase in (START, READY):
            self.session.close(replies.SHUTTING_DOWN)

    def dismiss(self, failure: MailFailure) -> None:
        # A message that is arriving may end; the next command is one too many as well.
        if self.session.transactions.intake is None:
            self.session.close(_refused(failure))

    def keep_time(self, said: bool, at_work: bool) -> None:
        settings, now = self.factory.settings, self.factory.clock.seconds()
        intake = self.session.transactions.intake
        if intake is None:
            self._message_deadline = FOREVER
        elif self._message_deadline == FOREVER:
            self._message_deadline = now + settings.message_seconds
        if at_work:
            self.deadline.move(FOREVER)
        elif intake is not None and intake.chunk != 0:
            self.deadline.move(min(now + settings.data_seconds, self._message_deadline))
        elif said or self.deadline.at == FOREVER:
            # Only a whole command buys time, so that a client cannot live on an octet a minute.
            self.deadline.move(min(now + settings.command_seconds, self._message_deadline))

    def time_is_up(self, now: float) -> None:
        if self._closing:
            self._cut_off("time is up")
        else:
            self.session.close(replies.TIMED_OUT)
            self.writable = True
            self._advance()

    # ---- for those who watch ----

    @property
    def at_rest(self) -> bool:
        return super().at_rest and not self.session.transactions.receiving

    @property
    def account(self) -> str:
        return self._account or self._user

    @property
    def recipients(self) -> list[str]:
        envelope = self.session.transactions.envelope
        return [str(each.forward_path) for each in envelope.recipients] if envelope else []

    def described(self) -> dict[str, Any]:
        session, mail = self.session, self.session.transactions
        state = ("turned" if self.turned else "auth" if session.exchanging
                 else "message" if mail.receiving else session.phase)
        return {
            **super().described(), "login": session.authenticated, "state": state,
            "messages": mail.messages, "hello": session.hello,
            "from": str(mail.envelope.reverse_path) if mail.envelope else None,
            "recipients": len(self.recipients),
        }

    # ---- questions ----

    def _settle(self, work: Coroutine[Any, Any, Reply | list[Reply]]) -> None:
        """Let *work* find the answer to the open question, now or later."""
        # Step by step: nearly always there is one, and a Deferred of all costs more than many an
        # answer.
        self._work_on(None, work)

    def _work_on(self, result: Any, work: Coroutine[Any, Any, Reply | list[Reply]]) -> None:
        """Let *work* go on with what it waited for, a Failure if it failed."""
        try:
            waiting = (work.throw(result.value)  # type: ignore[arg-type]  # it has one
                       if isinstance(result, Failure)
                       else work.send(result))
        except StopIteration as answered:
            answer = answered.value
        except Exception:
            answer = self._bug(Failure())
        else:
            waiting.addBoth(self._work_on, work)
            return
        self.session.reply(answer)
        self._advance()

    def _bug(self, failure: Failure) -> Any:
        self.log.failure("{connection} could not answer", failure, connection=self.id)
        return replies.LOCAL_ERROR

    def _on_connected(self, event: events.Connected) -> None:
        factory, refusal = self.factory, self._refusal
        seconds = factory.settings.greeting_delay_seconds
        if refusal is not None:
            self.session.reply(_refused(refusal))
        elif seconds and self._braked and factory.mode is TRANSPORT:
            self.hold(seconds, self._greet_late)
        else:
            self.session.reply(self.session.greeting)

    def _greet_late(self) -> None:
        """RFC 5321 §3.1: a client waits for the greeting; one that did not listens to nothing."""
        if self.session.buffered:
            self.log.info("{connection} spoke before the greeting client={client}",
                          connection=self.id, client=self.client)
            self.session.reply(replies.TOO_EARLY)
        else:
            self.session.reply(self.session.greeting)

    @property
    def _origin(self) -> Origin:
        """Where the transaction comes from."""
        if self._from is None:
            submitter = self._submitter
            self._from = Origin(self.id, self.client, self.session.hello, submitter,
                                submitter.name if submitter else self.session.authenticated,
                                self.tls.clause if self.tls else "")
        return self._from

    def _on_hello(self, event: events.Hello) -> None:
        self._from = None
        self.session.reply(self.session.hello_reply(event))

    def _on_proxied(self, event: events.Proxied) -> None:
        # RFC 5321 §3.1: the greeting again, for a client that is new.
        self.log.info("{connection} proxied client={client} proxy={proxy}", connection=self.id,
                      client=event.client.addr, proxy=self.client)
        # An address that the proxy cannot tell is nobody's; "" would be that of a Unix socket.
        addr = event.client.addr
        self.client = self.client if addr is None else addr or "0.0.0.0"
        agent = self.factory.agent
        self._known = agent.without_login(self.client, None) if agent is not None else None
        self.session.known = self._known is not None
        self._braked = not self.factory.connections.exempts(self.client)
        self.be_seen()
        self._settle(self._greet_proxied(event.client.login))

    async def _greet_proxied(self, login: str | None) -> Reply:
        refusal = self.factory.connections.admit(self.client)
        if refusal is not None:
            return _refused(refusal)
        authenticator = self.factory.authenticator
        if login and authenticator is not None and self.session.sasl is not None:
            # The proxy has checked it, by means of its own.
            attempt = Attempt(self.factory.login_protocol, self.client, "XCLIENT")
            try:
                self._welcome(*await authenticator.vouched_for(
                    login.encode(), attempt, self.avatar))
            except LoginFailed:
                self.log.info("{connection} login refused user={user!r} client={client}: {reason}",
                              connection=self.id, user=login, client=self.client,
                              reason=replies.NO_SUCH_LOGIN.lines[0])
                return replies.NO_SUCH_LOGIN
            except MailFailure as failure:
                return from_failure(failure)
        return self.session.greeting

    @property
    def _submitter(self) -> Submitter | None:
        """Who submits mail on this connection; None where anybody may send."""
        # STARTTLS and XCLIENT end a login, and the session tells.
        return self._login if self.session.authenticated else self._known

    def _on_mail_from(self, event: events.MailFrom) -> None:
        answer = self.factory.reception.admit_sender(self._origin, event.envelope)
        self.session.reply(replies.SHUTTING_DOWN if self._last and answer.positive else answer)

    def _on_rcpt_to(self, event: events.RcptTo) -> None:
        envelope = self.session.transactions.envelope
        assert envelope is not None
        if self.factory.connections.look is not None:
            self.be_seen(str(event.forward_path))
        self._settle(self.factory.reception.admit_recipient(self._origin, envelope, event))

    def _on_verify(self, event: events.Verify) -> None:
        self._settle(self._look_up(event.mailbox, expand=False))

    def _on_expand(self, event: events.Expand) -> None:
        self._settle(self._look_up(event.mailbox, expand=True))

    def _on_queue_run(self, event: events.QueueRun) -> None:
        queue, router = self.factory.queue, self.factory.router
        if not router.runs(event.domain):
            answer = replies.NOT_QUEUED
        elif queue is None:
            answer = replies.NO_QUEUE
        else:
            queue.hurry(event.domain)
            answer = replies.QUEUE_RUN
        self.log.info("{connection} asked for mail domain={domain} client={client}: {reply}",
                      connection=self.id, domain=event.domain, client=self.client,
                      reply=f"{answer.code} {answer.lines[0]}")
        self.session.reply(answer)

    def _on_turn(self, event: events.Turn) -> None:
        self._settle(self._turn(event.domains))

    async def _turn(self, asked: tuple[str, ...]) -> Reply:
        own = self.factory.router.turns(self._account)
        domains = asked or own
        answer = (await self._ask_for(domains) if own and set(domains) <= set(own)
                  else replies.NOT_YOURS)
        self.log.info("{connection} asked for mail domains={domains} user={user} client={client}: "
                      "{reply}", connection=self.id, domains=list(domains), user=self._account,
                      client=self.client, reply=f"{answer.code} {answer.lines[0]}")
        return answer

    async def _ask_for(self, domains: tuple[str, ...]) -> Reply:
        if self.factory.queue is None:
            return replies.CANNOT_TURN
        passage = Passage()
        try:
            await self.factory.queue.turn(domains, self.id, self._account, passage)
        except NothingWaits:
            return replies.NO_MAIL
        except TurnInUse:
            return replies.TURN_IN_USE
        except MailFailure as failure:
            self.log.error("{connection} cannot be sent its mail: {reason}", connection=self.id,
                           reason=failure.text)
            return replies.CANNOT_TURN
        self._passage = passage
        if not self._connected:
            passage.lost()
        return replies.TURNED

    def _on_turned(self, event: events.Turned) -> None:
        assert self._passage is not None
        self._passage.join(self, event.data)

    async def _look_up(self, mailbox: Address, *, expand: bool) -> Reply:
        router = self.factory.router
        try:
            found = (router.expand if expand else router.verify)(mailbox)
            if isinstance(found, defer.Deferred):
                found = await found
        except MailFailure as failure:
            return from_failure(failure, rcpt=True)
        return replies.verified(mailbox, [found] if isinstance(found, Address) else found)

    def logged_in(self, avatar: Any, log_out: Callable[[], object]) -> None:
        self._welcome(avatar, log_out)
        self.session.logged_in(avatar.account.name)

    def _welcome(self, avatar: Any, log_out: Callable[[], object]) -> None:
        self._account = avatar.account.name
        self._from = None
        self.be_seen()
        log_out()  # which there is no need to wait for: a submitter holds nothing
        if self.factory.agent is not None:
            self._login = self.factory.agent.logged_in(avatar.account)
        self.log.info("{connection} logged in user={user} client={client}", connection=self.id,
                      user=avatar.account.name, client=self.client)

    def _on_data_begins(self, event: events.DataBegins) -> None:
        envelope = self.session.transactions.envelope
        assert envelope is not None
        # One message may follow another in the same chunk (BDAT), and has its own time.
        self._message_deadline = FOREVER
        self._settle(self._begin(envelope))

    async def _begin(self, envelope: Envelope) -> Reply:
        factory, submitter = self.factory, self._origin.submitter
        seconds = int(factory.clock.seconds())
        try:
            incoming = await factory.reception.begin(self._origin, envelope, seconds)
        except MailFailure as failure:
            return from_failure(failure)
        if not self._connected or self.session.transactions.envelope is not envelope:
            incoming.abort()
            return replies.LOCAL_ERROR
        self._incoming = incoming
        try:
            self._pause(incoming.put(trace_header(
                envelope,
                client=self.client,
                hello=self.session.hello,
                protocol=self.session.transactions.transmission_type,
                hostname=factory.hostname,
                seconds=seconds,
                tls=self.tls.clause if self.tls else "",
                user=submitter.user if submitter else "",
            )))
        except MailFailure as failure:
            self._drop(failure.text)
            return from_failure(failure)
        except Exception:
            self._drop("internal error")
            raise
        return replies.START_DATA

    def _on_message_block(self, event: events.MessageBlock) -> None:
        assert self._incoming is not None
        try:
            self._pause(self._incoming.write(event.data))
        except MailFailure as failure:
            self.session.transactions.refuse(from_failure(failure))
        except Exception:
            self.session.transactions.refuse(self._bug(Failure()))

    def _pause(self, pause: defer.Deferred[None] | None) -> None:
        """Hand over nothing more until *pause* fires."""
        if pause is not None:
            self._stalled = True
            # A failure is repeated by commit, which is where it is answered.
            pause.addErrback(lambda failure: None)
            pause.addCallback(self._go_on)

    def _on_message_ends(self, event: events.MessageEnds) -> None:
        incoming, self._incoming = self._incoming, None
        assert incoming is not None
        self._settle(self.factory.reception.commit(self._origin, incoming, event.size))

    def _on_aborted(self, event: events.Aborted) -> None:
        self._drop(event.reason)

    def _drop(self, reason: str) -> None:
        """Forget the message that had begun, if any."""
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            self.factory.reception.drop(self._origin, incoming, reason)

    def _on_closed(self, event: events.Closed) -> None:
        self._hang_up(event.asked)


def _refused(failure: MailFailure) -> Reply:
    """How a client is told that it is not served now."""
    return Reply(421, failure.status, (failure.text,))


SMTPProtocol.handlers = {
    events.Connected: SMTPProtocol._on_connected,
    events.Hello: SMTPProtocol._on_hello,
    events.Proxied: SMTPProtocol._on_proxied,
    events.MailFrom: SMTPProtocol._on_mail_from,
    events.RcptTo: SMTPProtocol._on_rcpt_to,
    events.Verify: SMTPProtocol._on_verify,
    events.Expand: SMTPProtocol._on_expand,
    events.QueueRun: SMTPProtocol._on_queue_run,
    events.Turn: SMTPProtocol._on_turn,
    events.Turned: SMTPProtocol._on_turned,
    events.DataBegins: SMTPProtocol._on_data_begins,
    events.MessageBlock: SMTPProtocol._on_message_block,
    events.MessageEnds: SMTPProtocol._on_message_ends,
    events.Aborted: SMTPProtocol._on_aborted,
    Lookup: SMTPProtocol.look_up_keys,
    LogIn: SMTPProtocol.log_in,
    Guessed: SMTPProtocol.count_guess,
    events.TLSBegins: SMTPProtocol.start_tls,
    events.Closed: SMTPProtocol._on_closed,
}


class SMTPFactory(ConversationFactory):
    """Builds the protocols of one service's SMTP listeners, and holds them to its limits.

    :param store: where accepted mail goes.
    :param router: which recipients are accepted.
    :param mode: what its listeners are for.
    :param agent: holds submissions to what they may be.
    :param queue: where mail for other hosts goes; without one there is none.
    :param share: where is counted.
    """

    protocol = SMTPProtocol  # type: ignore[assignment]
    namespace = "mailsvc.smtp"
    login_protocol = "submission"
    settings: SMTPSettings

    def __init__(
        self,
        store: IMailboxStore,
        router: IRouter,
        settings: SMTPSettings,
        hostname: str,
        clock: IReactorTime,
        tls: IOpenSSLServerConnectionCreator | None = None,
        mode: Mode = TRANSPORT,
        connections: Connections | None = None,
        authenticator: Authenticator | None = None,
        agent: SubmissionAgent | None = None,
        queue: IQueue | None = None,
        share: Share | None = None,
    ) -> None:
        share = share or Share()
        super().__init__(settings, hostname, clock, tls, connections, authenticator,
                         share=share, protocol=mode.name)
        self.reception = Reception(
            store, router, settings, mode, agent, queue, share, self.log)
        self.mode = mode
        self.agent = agent
        self.queue = queue
        self.store = store
        self.router = router
        self._proxies = [network_of(each) for each in settings.xclient_networks]

    def refuse(self, failure: MailFailure) -> bytes:
        return _refused(failure).by(self.hostname).wire

    def trusts(self, client: str) -> bool:
        """Whether *client* may say for whom it speaks."""
        return bool(client and self._proxies) and any(
            address_of(client) in network for network in self._proxies)
