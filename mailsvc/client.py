"""An SMTP and LMTP client on Twisted, in the shape of Go's net/smtp.

From a coroutine::

    client = await Client.dial("mx.example.org", 25, tls="starttls")
    await client.mail("alice@example.com")
    await client.rcpt("bob@example.org")
    await client.data(b"Subject: hello\\r\\n\\r\\nIt works.\\r\\n")
    await client.quit()

What asks the server something returns a Deferred, which can be awaited, and whose failures are
:class:`mailsvc.smtp.failures.SendingFailure`.  From plain blocking code see
:mod:`mailsvc.blocking`.

**Pipelining.**  A command is queued when its method is called, and its Deferred fires with its
reply.  Whoever calls the next method without waiting lets the commands go out in one packet, where
the server offers PIPELINING (RFC 2920), and one after the other where it does not.
:meth:`Client.send` does so.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IStreamClientEndpoint

from mailsvc import transaction
from mailsvc.dialing import Line, NoConnection, dial
from mailsvc.mail import Address, DeliverBy
from mailsvc.sasl.client import Abandoned, ClientExchange, Login, choose
from mailsvc.smtp import writing
from mailsvc.smtp.failures import (
    BadArgument,
    BadMessage,
    BadReply,
    CannotConnect,
    CannotLogIn,
    Disconnected,
    LoginRefused,
    NotOffered,
    NotSent,
    Refused,
    SendingFailure,
    Stage,
    TimedOut,
    TLSFailed,
)
from mailsvc.smtp.outcome import Outcome, Recipient, Tally
from mailsvc.smtp.outgoing import Outgoing
from mailsvc.smtp.replies import Reply
from mailsvc.smtp.requests import Command, Parameters
from mailsvc.smtp.sending import SendingSession
from mailsvc.smtp.source import Message, Source
from mailsvc.smtp.timeouts import Timeouts
from mailsvc.trust import UNVERIFIED, Secured, Trust, Untrusted

#: How TLS is used: not at all; by STARTTLS, or fail; by STARTTLS if offered, unverified, and in the
#: clear (by a second connection if the handshake broke the first) if not; from the first octet.
TLS = Literal["no", "starttls", "opportunistic", "implicit"]


@dataclass(frozen=True, slots=True)
class Said:
    """One line of a dialogue, for :func:`Client.dial`'s *transcript*.

    :ivar sent: whether it is ours.
    :ivar line: without CRLF, secrets masked.
    :ivar tls: whether it was encrypted.
    :ivar seconds: since the connection began.
    """

    sent: bool
    line: str
    tls: bool
    seconds: float

class Client:
    """One connection to a server, from the greeting on.  Made by :meth:`dial`.

    :ivar tls_failure: why an "opportunistic" connection is in the clear, or None.
    """

    def __init__(
        self, line: Line, *, lmtp: bool = False, hello: str = "",
        timeouts: Timeouts | None = None, transcript: Callable[[Said], None] | None = None,
        clock: Any = None, port: int = 0,
    ) -> None:
        self.tls_failure: TLSFailed | None = None
        self._clock = clock
        self._began = clock.seconds()
        self._transcript = transcript
        self._name = hello
        self._port = port
        #: Whether a secret may be sent inside TLS as it was asked for.
        self._private = True
        self._line = line
        self._out = Outgoing(line, self.hello, lmtp=lmtp, timeouts=timeouts or Timeouts(),
                             transcript=self._note if transcript is not None else None)
        self._session = self._out.session

    @classmethod
    def dial(
        cls, host: str, port: int = 25, *, endpoint: IStreamClientEndpoint | None = None,
        tls: TLS = "no", trust: Trust | None = None, hello: str = "", bind: str = "",
        lmtp: bool = False, timeouts: Timeouts | None = None,
        transcript: Callable[[Said], None] | None = None, reactor: Any = None,
    ) -> Deferred[Client]:
        """Connect, read the greeting, and with "starttls" and "opportunistic" start TLS.

        :param host: a name, an IP address, or the path of a Unix socket; the name to verify.
        :param endpoint: connects in the place of *host* and *port*.
        :param trust: what the certificate has to prove; by default that it is *host*'s, and nothing
            for "opportunistic".
        :param hello: what to call ourselves; by default this host's name, or its address in
            brackets if that has no dot (RFC 5321 §4.1.4).
        :param bind: the local address to connect from.
        :param transcript: told of each line of the dialogue.
        :raises SendingFailure: (in the Deferred) CannotConnect, TimedOut, Refused, TLSFailed,
            BadReply, Disconnected.
        :raises BadArgument: *tls* or *hello* is none.
        """
        if reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415 - importing it installs it
        if hello:
            hello = writing.hello(hello)
        if tls not in get_args(TLS):
            # Not "no": a mistake must not send in the clear what was to be secret.
            raise BadArgument(f"tls is {tls!r}; expected one of {', '.join(get_args(TLS))}")

        async def connect(use: TLS) -> Client:
            return await _connect(
                cls, reactor, host, port, endpoint, use, trust, bind, timeouts or Timeouts(),
                {"lmtp": lmtp, "hello": hello, "timeouts": timeouts, "transcript": transcript})

        async def try_both() -> Client:
            try:
                return await connect(tls)
            except TLSFailed as failure:
                if tls != "opportunistic":
                    raise
                # RFC 7435 §3: no worse off than without TLS.
                client = await connect("no")
                client.tls_failure = failure
                return client

        return Deferred.fromCoroutine(try_both())

    @classmethod
    def over(cls, line: Line, *, hello: str, timeouts: Timeouts | None = None,
             clock: Any) -> Deferred[Client]:
        """Read the greeting of who has become the server of *line*, a connection that is there.

        :param clock: the reactor, or a Clock; the rest as for :meth:`dial`.
        :raises SendingFailure: (in the Deferred) as :meth:`dial`; the connection is over.
        """
        async def greeted() -> Client:
            client = cls(line, hello=writing.hello(hello), timeouts=timeouts, clock=clock)
            try:
                await client._out.greeted
            except BaseException:
                client.close()
                raise
            return client

        return Deferred.fromCoroutine(greeted())

    # ---- what is known ----

    @property
    def greeting(self) -> Reply | None:
        """The 220; None before it came."""
        return self._out.greeting

    @property
    def closed(self) -> SendingFailure | None:
        """Why the connection has ended; None while it has not."""
        return self._out.closed

    @property
    def transactions(self) -> int:
        """How many messages were accepted on it."""
        return self._out.transactions

    @property
    def exhausted(self) -> bool:
        """Whether the server takes no more messages over it, as it announced (RFC 9422)."""
        return self._session.exhausted

    @property
    def host(self) -> str:
        """What the server calls itself; "" before EHLO."""
        return self._session.host

    @property
    def extensions(self) -> dict[str, str]:
        """What the server offers, by keyword in capitals; empty before EHLO."""
        return dict(self._session.extensions)

    @property
    def lmtp(self) -> bool:
        """Whether it speaks LMTP, to a host that delivers."""
        return self._session.lmtp

    @property
    def tls_active(self) -> bool:
        """Whether what is said now is said inside TLS."""
        return self._session.tls_active

    def extension(self, name: str) -> str | None:
        """The parameters of an extension, "" if it has none; None if it is not offered."""
        return self._session.extensions.get(name.upper())

    @property
    def secured(self) -> Secured | None:
        """What was agreed in TLS, or None in the clear."""
        return self._line.secured

    @property
    def peer(self) -> Any:
        """The server's address, as Twisted has it."""
        return self._line.transport.getPeer()

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """Of the present or last transaction, in the order of RCPT."""
        return self._out.tally.outcomes

    @property
    def pipeline(self) -> bool:
        """Whether commands are sent ahead where the server offers it; may be set."""
        return self._session.commands.ahead

    @pipeline.setter
    def pipeline(self, wanted: bool) -> None:
        self._session.commands.ahead = wanted

    # ---- commands ----

    def ready(self) -> Deferred[Any]:
        """Fires when EHLO has been answered, which it says unless it has: what is offered is known.
        """
        return self._out.ready()

    def hello(self, name: str = "") -> Deferred[Reply]:
        """Say EHLO (LHLO), or HELO to a server without extensions.

        It need not be called: what needs it says it.
        """
        if not name:
            name = self._name or _own_name(self._line)
        self._name = name
        return self._do(lambda session: session.hello(name))

    def start_tls(self, trust: Trust | None = None) -> Deferred[Reply]:
        """STARTTLS, verify, and EHLO again (RFC 3207); its reply.

        :raises TLSFailed: the connection is over, unless its reason is "starttls-not-supported".
        """
        return Deferred.fromCoroutine(self._out.start_tls(trust or Trust()))

    def auth(
        self, name: str = "", password: str = "", *, mechanism: str = "", token: str = "",
        authorize_as: str = "", cleartext: bool = False,
    ) -> Deferred[Reply]:
        """Log in (RFC 4954).

        :param mechanism: SCRAM-SHA-256-PLUS, SCRAM-SHA-256, CRAM-MD5, PLAIN, LOGIN, OAUTHBEARER,
            XOAUTH2 or EXTERNAL; by default the best that is offered and possible.
        :param token: an OAuth bearer token, in the place of *password*.
        :param cleartext: whether a secret may cross the network unencrypted.  It may not, but to
            this machine itself; nor inside TLS that proves nothing ("opportunistic").
        :raises LoginRefused: name or secret is wrong, or the server cannot tell now.
        :raises CannotLogIn: nothing offered can be used, and nothing was sent; or the server did
            not prove itself.
        """
        return Deferred.fromCoroutine(self._auth(
            name, password, mechanism, token, authorize_as, cleartext))

    def mail(
        self, reverse_path: Address | str, *, size: int = 0, body: str = "",
        smtputf8: bool | None = None, ret: str = "", envid: str = "", requiretls: bool = False,
        auth: Address | None = None, by: DeliverBy | None = None, priority: int | None = None,
        hold_for: int = 0,
    ) -> Deferred[Reply]:
        """Begin a transaction.

        SIZE, AUTH, RET, ENVID, MT-PRIORITY and BY with mode "N" are left out where the server does
        not offer them.

        :param reverse_path: "" or NULL_PATH for ``<>``.
        :param size: octets of the message; 0 if not known.
        :param body: "7BIT" or "8BITMIME"; "" for the latter where it is offered.
        :param smtputf8: None to say it if the address needs it.
        :param ret: "FULL" or "HDRS" (RFC 3461).
        :param envid: as meant (not xtext).
        :param auth: who submitted the message first (RFC 4954 §5).
        :param by: within how much time it is to be delivered (RFC 2852).
        :param priority: -9 to 9 (RFC 6710); None to say nothing of it.
        :param hold_for: how long the server is to hold the message, in seconds (RFC 4865).
        :raises NotOffered: 8BITMIME, SMTPUTF8, REQUIRETLS, DELIVERBY, FUTURERELEASE or the size;
            nothing was sent.
        """
        self._out.tally = Tally()
        said = Parameters(size, body, smtputf8, ret, envid, requiretls, auth, by, priority,
                          hold_for)
        return self._ready_to(lambda session: session.mail(reverse_path, said))

    def rcpt(self, forward_path: Address | str, *, notify: Sequence[str] = (),
             orcpt: str = "") -> Deferred[Reply]:
        """Add a recipient; a refusal leaves the transaction open.

        NOTIFY and ORCPT are left out where the server does not offer DSN (RFC 3461).

        :raises NotOffered: the address needs SMTPUTF8, and MAIL did not say it.
        """
        return self._ready_to(lambda session: self._out.recipient(forward_path, notify, orcpt))

    def data(self, message: Message, *, normalize: bool = False) -> Deferred[Reply]:
        """Send the message by DATA.

        :param normalize: make every bare CR and LF a CRLF; without it they are BadMessage, and the
            connection is over if some of the message was sent.
        :returns: the final reply; with LMTP the last of those that ``outcomes`` has, and a failure
            only if no recipient got the message.
        """
        return self.content(Source(message, normalize=normalize))

    def content(self, source: Source) -> Deferred[Reply]:
        """As :meth:`data`."""
        return self._ready_to(lambda session: self._out.content(source))

    def bdat(self, block: bytes, last: bool = False) -> Deferred[Reply]:
        """Send a chunk (RFC 3030); call again without waiting to pipeline.

        :raises NotOffered: CHUNKING; nothing was sent.
        """
        return self._ready_to(lambda session: session.bdat(block, last))

    def send(
        self, reverse_path: Address | str, recipients: Sequence[Address | str | Recipient],
        message: Message, *, size: int = 0, body: str = "", smtputf8: bool | None = None,
        ret: str = "", envid: str = "", requiretls: bool = False, auth: Address | None = None,
        by: DeliverBy | None = None, priority: int | None = None, hold_for: int = 0,
        normalize: bool = False, chunk: bool = True, sent: Callable[[], object] | None = None,
    ) -> Deferred[tuple[Outcome, ...]]:
        """One message to all *recipients*, in as few round trips as the server allows.

        May be called again on the same connection, when the outcomes are there; or, once, from when
        *sent* was called.

        :param size: in octets; found out for bytes and files.
        :param body: "8BITMIME" or "7BIT"; found out for bytes and files.
        :param smtputf8: None to find out, from the addresses and, for bytes and files, the header.
        :param chunk: whether CHUNKING may be used where it is offered.
        :param sent: called when all of the message has left and the server, whose answer is still
            to come, takes what follows ahead of that (PIPELINING, RFC 2920 §3.1): the next message
            then saves a round trip.  Not where CHUNKING is used, nor for a large message, nor
            where a recipient was refused.
        :returns: an outcome for each recipient, in order, also if the connection broke or the
            server refused the sender: their ``failure`` says so.
        :raises BadArgument: (in the Deferred) something cannot be said; nothing was sent.
        """
        parameters = Parameters(size, body, smtputf8, ret, envid, requiretls, auth, by, priority,
                                hold_for)
        return Deferred.fromCoroutine(transaction.send(
            self._out, reverse_path, recipients, message, parameters, normalize=normalize,
            chunk=chunk, sent=sent))

    def verify(self, text: str) -> Deferred[Reply]:
        """VRFY; 252 counts as positive."""
        return self._ready_to(lambda session: session.verify(text))

    def expand(self, text: str) -> Deferred[Reply]:
        """EXPN."""
        return self._ready_to(lambda session: session.expand(text))

    def reset(self) -> Deferred[Reply]:
        """RSET: forget the transaction, keep the connection."""
        return self._do(lambda session: session.reset())

    def noop(self) -> Deferred[Reply]:
        """NOOP."""
        return self._do(lambda session: session.noop())

    def quit(self) -> Deferred[Reply | None]:
        """QUIT, and close whatever the server answers: None if it did not.  Never fails."""
        async def leave() -> Reply | None:
            try:
                return await self._do(lambda session: session.quit())
            except SendingFailure as failure:
                return failure.reply
            finally:
                self._out.end(Disconnected("we closed the connection", Stage.QUIT))

        return Deferred.fromCoroutine(leave())

    def close(self) -> None:
        """Close at once; what is under way fails with Disconnected.  May be called again."""
        self._out.end(Disconnected("we closed the connection"))
        self._line.abort()

    def when_closed(self) -> Deferred[SendingFailure]:
        """Fires when the connection has ended, with why."""
        return self._out.when_closed()

    def _do(self, make: Callable[[SendingSession], Command]) -> Deferred[Reply]:
        """As ``issue``; what it raises is in the Deferred."""
        try:
            return self._out.issue(make)
        except (SendingFailure, BadArgument):
            return fail()

    def _ready_to(self, make: Callable[[SendingSession], Command]) -> Deferred[Reply]:
        """``_do``, after EHLO."""
        if self._session.extended is not None:
            return self._do(make)
        return self._out.ready().addCallback(lambda _: self._do(make))

    async def _auth(self, name: str, password: str, mechanism: str, token: str,
                    authorize_as: str, cleartext: bool) -> Reply:
        await self._out.ready()
        offered = (self.extension("AUTH") or "").split()
        secured = self._line.secured
        private = cleartext or self._line.local or (
            secured is not None and (secured.verified or self._private))
        try:
            login = Login(
                name=name, password=password, token=token, authorize_as=authorize_as,
                host=self._line.host, port=self._port,
                channel_bindings=secured.channel_bindings if secured is not None else {})
            chosen = choose(offered, login, private=private, wanted=mechanism)
            exchange = ClientExchange(chosen, login, offered)
        except (Abandoned, ValueError) as problem:
            raise CannotLogIn(str(problem), Stage.AUTH) from None
        return await self._out.issue(lambda session: session.authenticate(exchange))

    def _note(self, sent: bool, line: str) -> None:
        assert self._transcript is not None
        self._transcript(Said(sent, line, self._session.tls_active,
                              self._clock.seconds() - self._began))


async def _connect(
    cls: type[Client], reactor: Any, host: str, port: int, endpoint: IStreamClientEndpoint | None,
    tls: TLS, trust: Trust | None, bind: str, timeouts: Timeouts, options: dict[str, Any],
) -> Client:
    """A client that has read the greeting, and has TLS if it should."""
    if trust is None:
        trust = UNVERIFIED if tls == "opportunistic" else Trust()
    try:
        line = await dial(reactor, host, port, seconds=timeouts.connect, bind=bind,
                          endpoint=endpoint)
    except NoConnection as problem:
        kind = TimedOut if problem.timed_out else CannotConnect
        raise kind(problem.text, Stage.CONNECT, CannotConnect.default) from None
    if tls == "implicit":
        line.set_deadline(timeouts.tls)
        try:
            await line.start_tls(trust)
        except Untrusted as problem:
            raise TLSFailed(problem.text, problem.reason) from None
    client = cls(line, clock=reactor, port=port, **options)
    client._private = tls != "opportunistic"
    try:
        await client._out.greeted
        if tls == "starttls" or (tls == "opportunistic" and await _offers_tls(client)):
            try:
                await client.start_tls(trust)
            except TLSFailed as failure:
                if tls == "starttls" or client.closed is not None:
                    raise
                client.tls_failure = failure
    except BaseException:
        client.close()
        raise
    return client


async def _offers_tls(client: Client) -> bool:
    await client._out.ready()
    return client.extension("STARTTLS") is not None


def _own_name(line: Line) -> str:
    """What to call ourselves (RFC 5321 §4.1.4)."""
    name = socket.gethostname()
    if "." in name:
        try:
            return writing.hello(name)
        except BadArgument:
            pass
    return line.own_literal


def send_mail(
    host: str, reverse_path: Address | str, recipients: Sequence[Address | str | Recipient],
    message: Message, *, port: int = 0, tls: TLS | None = None, trust: Trust | None = None,
    user: str = "", password: str = "", token: str = "", mechanism: str = "", hello: str = "",
    bind: str = "", lmtp: bool = False, timeouts: Timeouts | None = None,
    transcript: Callable[[Said], None] | None = None, reactor: Any = None, **options: Any,
) -> Deferred[tuple[Outcome, ...]]:
    """Dial, log in if there is a *user*, send, quit.

    :param port: 0 for 465 with tls="implicit", 587 with a *user*, else 25.
    :param tls: by default "implicit" for port 465, "starttls" with a *user*, else "opportunistic".
    :param options: of :meth:`Client.send`.
    :returns: an outcome for each recipient, of whom at least one was accepted.
    :raises NotSent: none was; it has the outcomes.
    :raises SendingFailure: it did not come to a transaction.
    :raises BadArgument: something cannot be said.
    """
    if tls is None:
        tls = "implicit" if port == 465 else "starttls" if user else "opportunistic"
    port = port or (465 if tls == "implicit" else 587 if user else 25)

    async def do() -> tuple[Outcome, ...]:
        transaction.resolved(recipients)
        client = await Client.dial(
            host, port, tls=tls, trust=trust, hello=hello, bind=bind, lmtp=lmtp,
            timeouts=timeouts, transcript=transcript, reactor=reactor)
        try:
            if user or mechanism:
                await client.auth(user, password, token=token, mechanism=mechanism)
            outcomes = await client.send(reverse_path, recipients, message, **options)
            await client.quit()
        finally:
            client.close()
        if not any(each.accepted for each in outcomes):
            raise NotSent(outcomes)
        return outcomes

    return Deferred.fromCoroutine(do())


__all__ = [
    "TLS",
    "UNVERIFIED",
    "BadArgument",
    "BadMessage",
    "BadReply",
    "CannotConnect",
    "CannotLogIn",
    "Client",
    "Disconnected",
    "LoginRefused",
    "Message",
    "NotOffered",
    "NotSent",
    "Outcome",
    "Recipient",
    "Refused",
    "Reply",
    "Said",
    "SendingFailure",
    "Stage",
    "TLSFailed",
    "TimedOut",
    "Timeouts",
    "Trust",
    "send_mail",
]
