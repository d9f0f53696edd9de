"""The sending side of SMTP and LMTP as a state machine without I/O (RFC 5321, RFC 2033).

The twin of :class:`mailsvc.smtp.session.Session`.  Commands go in by methods, which return a
:class:`Command` each; octets for the server are in :meth:`SendingSession.data_to_send`; what the
server says goes in by :meth:`SendingSession.receive`; events come out of
:meth:`SendingSession.next_event`.  It knows no reactor and no clock.

**Groups.**  When a command goes out is for :mod:`mailsvc.smtp.pipeline`.  When DATA went out with
its group, and is answered 354 although no recipient was accepted, the session ends the message with
a lone dot itself (RFC 2920 §3.1).

**Ends.**  421 in any place, anything that is no reply, a reply to nothing, octets in the clear
behind the reply to STARTTLS (CVE-2021-38371): each open command fails, and :class:`Ended` says why;
the owner hangs up.  Every failure tells whether the message was in flight.

**Content.**  Only CRLF ends a line of a message on the wire: a bare CR or LF raises BadMessage
before it is sent (SMTP smuggling), eight bits where the server has not offered 8BITMIME raise
NotOffered.  Dots are stuffed in bulk; nothing is held but a block's last octet.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from mailsvc.errors import EnhancedStatus
from mailsvc.mail import NULL_PATH, Address
from mailsvc.sasl.client import Abandoned, ClientExchange
from mailsvc.smtp import writing
from mailsvc.smtp.failures import (
    BadArgument,
    BadReply,
    CannotLogIn,
    Disconnected,
    NotOffered,
    Stage,
    refusal,
    said,
)
from mailsvc.smtp.offers import extensions_of, most, understood
from mailsvc.smtp.pipeline import Pipeline
from mailsvc.smtp.reading import Malformed, ReplyReader
from mailsvc.smtp.replies import Reply
from mailsvc.smtp.requests import (
    Command,
    ContentWanted,
    Event,
    Parameters,
    Replied,
    TLSWanted,
    Transaction,
)
from mailsvc.wire import DotStuffer, dot_stuffed

#: The longest command line, CRLF counted, whose AUTH may carry an initial response (RFC 4954 §4).
COMMAND_OCTETS = 512
#: Codes with which a server that does not know EHLO answers it (RFC 5321 §3.2, §4.2.4); RFC 1869
#: §4.5 has HELO follow on 501, too.
_NO_EHLO = (500, 501, 502, 504)
#: LMTP answers LAST once, not for each recipient, when the command itself was wrong.
_NO_COMMAND = (500, 501, 502, 503)
#: MAIL without parameters.
_NOTHING = Parameters()


class SendingSession:
    """One connection, seen from the client.

    :param lmtp: whether to speak LMTP.
    :param tls_active: whether TLS runs from the first octet.
    :param transcript: told of each line: whether it is ours, and what may be shown of it.
    :ivar commands: those that wait to go out or to be answered.
    :ivar opening: stands for the greeting, as if that were the reply to a command.
    :ivar host: what the server calls itself.
    :ivar extensions: what it offers, keyword in capitals -> parameters; empty after HELO.
    :ivar extended: whether it knows EHLO (or LHLO); None before it was asked.
    """

    def __init__(self, *, lmtp: bool = False, tls_active: bool = False,
                 transcript: Callable[[bool, str], None] | None = None) -> None:
        self.lmtp = lmtp
        self.tls_active = tls_active
        self.opening = Command(Stage.GREETING, b"", ends_group=True, act=_on_greeting)
        self.host = ""
        self.extensions: dict[str, str] = {}
        self.extended: bool | None = None
        self.authenticated = False
        self.commands = Pipeline(self.opening, transcript or (lambda sent, line: None))
        self._reader = ReplyReader(None if transcript is None else partial(transcript, False))
        self._transaction: Transaction | None = None
        #: How often MAIL was said.
        self._transactions = 0
        #: The dots of the message that is being sent, and how much of it was.
        self._stuffer = DotStuffer()
        self._octets = 0
        self._name = ""
        self._exchange: ClientExchange | None = None

    # ---- for the owner: in and out ----

    def receive(self, data: bytes) -> None:
        """Take octets from the server; after the end they are ignored."""
        if self.commands.ended is None:
            self._reader.feed(data)

    def data_to_send(self) -> bytes:
        """The octets owed to the server, which are thereby forgotten here."""
        return self.commands.take()

    def next_event(self) -> Event | None:
        """The next event, or None when more input is needed."""
        commands = self.commands
        while not commands.events:
            if commands.ended is not None:
                return None
            try:
                reply = self._reader.reply()
            except Malformed as fault:
                self._broken(f"the server does not speak {self.protocol}: {fault}")
                continue
            if reply is None:
                return None
            self._replied(reply)
        return commands.events.popleft()

    @property
    def protocol(self) -> str:
        return "LMTP" if self.lmtp else "SMTP"

    @property
    def exhausted(self) -> bool:
        """Whether it takes no further MAIL, as it has said beforehand (MAILMAX, RFC 9422)."""
        return 0 < most(self.extensions, "MAILMAX") <= self._transactions

    def lost(self, why: str = "the server closed the connection") -> None:
        """The connection is gone."""
        self.commands.end(Disconnected(why, self.commands.stage))

    # ---- commands ----

    def hello(self, name: str) -> Command:
        """EHLO or LHLO; HELO if the server does not know EHLO."""
        self._name = writing.hello(name)
        verb = "LHLO" if self.lmtp else "EHLO"
        return self._say(Stage.HELLO, f"{verb} {self._name}", ends_group=True, act=_on_hello)

    def start_tls(self) -> Command:
        """STARTTLS; look at ``extensions`` first."""
        return self._say(Stage.TLS, "STARTTLS", ends_group=True, act=_on_start_tls)

    def tls_started(self) -> None:
        """TLS runs: what the server said in the clear is forgotten (RFC 3207 §4.2)."""
        self.tls_active = True
        self.extensions, self.extended, self.authenticated = {}, None, False
        self.commands.offered = False

    def authenticate(self, exchange: ClientExchange) -> Command:
        """AUTH, and whatever the exchange takes."""
        line = f"AUTH {exchange.mechanism}"
        shown, initial = line, exchange.initial_response
        if initial is not None and len(line) + len(initial) + 3 <= COMMAND_OCTETS:
            line, shown = f"{line} {initial}", f"{line} ********"
            exchange.initial_sent()
        self._exchange = exchange
        return self._say(Stage.AUTH, line, shown=shown, ends_group=True, act=_on_auth)

    def mail(self, reverse_path: Address | str, said: Parameters = _NOTHING) -> Command:
        """MAIL.  After EHLO: what it says depends on what was offered.

        :raises BadArgument: an argument cannot be said.
        :raises NotOffered: the message needs what the server does not offer.
        """
        assert self.extended is not None, "hello comes first"
        path = writing.address(reverse_path)
        parameters = understood(path, said, self.extensions, self.tls_active)
        line = writing.mail(path, parameters)
        self._transactions += 1
        self._transaction = Transaction(
            eight_bit=parameters.body.upper() == "8BITMIME", smtputf8=bool(parameters.smtputf8))
        return self.commands.put(
            Command(Stage.MAIL, line, transaction=self._transaction, act=_on_mail))

    def rcpt(self, forward_path: Address | str, *, notify: tuple[str, ...] = (),
             orcpt: str = "") -> Command:
        """RCPT; NOTIFY and ORCPT are left out where DSN is not offered.

        :raises BadArgument: an argument cannot be said.
        :raises NotOffered: the address needs SMTPUTF8, and MAIL did not say that.
        """
        path = writing.address(forward_path)
        if path == NULL_PATH:
            raise BadArgument("a recipient cannot be empty")
        utf8 = self._transaction is not None and self._transaction.smtputf8
        if writing.needs_smtputf8(path) and not utf8:
            raise NotOffered(f"{path} is not ASCII, and MAIL did not say SMTPUTF8", Stage.RCPT,
                             EnhancedStatus(5, 6, 7))
        if "DSN" in self.extensions:
            line = writing.rcpt(path, smtputf8=utf8, notify=notify, orcpt=orcpt)
        else:
            line = writing.rcpt(path, smtputf8=utf8)
        return self.commands.put(
            Command(Stage.RCPT, line, transaction=self._transaction, act=_on_rcpt))

    def data(self) -> Command:
        """DATA; ContentWanted follows, or the command ends without."""
        return self._say(Stage.DATA, "DATA", ends_group=True, act=_on_data,
                         transaction=self._transaction)

    def content(self, block: bytes) -> None:
        """A block of the message that DATA announced.

        :raises BadMessage: a bare CR or LF.
        :raises NotOffered: eight bits that cannot be sent.
        """
        self.commands.send(self._stuffer.feed(self._on_its_way.check(block)))
        self._octets += len(block)

    def whole(self, message: bytes, proven: bool = False) -> None:
        """The message that DATA announced, at once.

        :param proven: whether it is known to have no bare CR or LF.
        :raises BadMessage: it has.
        :raises NotOffered: eight bits that cannot be sent.
        """
        self._on_its_way.check_whole(message, proven)
        self._octets = len(message)
        self._end_content(dot_stuffed(message))

    def finish(self) -> None:
        """The message is whole.

        :raises BadMessage: it ends in a bare CR.
        """
        rest = self._on_its_way.check(b"", last=True)
        self._end_content(self._stuffer.feed(rest) + self._stuffer.finish())

    @property
    def _on_its_way(self) -> Transaction:
        """That of the message that is being sent."""
        command = self.commands.sending
        assert command is not None and command.transaction is not None
        return command.transaction

    def _end_content(self, last: bytes) -> None:
        self.commands.send(last, f"({self._octets} octets of message)")
        _end_message(self, b"")
        self.commands.release()

    def bdat(self, block: bytes, last: bool = False) -> Command:
        """A chunk, exactly as it is (RFC 3030).

        :raises BadMessage: a bare CR or LF.
        :raises NotOffered: CHUNKING, or eight bits that cannot be sent.
        """
        if "CHUNKING" not in self.extensions:
            raise NotOffered("the server does not offer CHUNKING", Stage.CONTENT)
        if self._transaction is not None:
            self._transaction.check(block, last)
        line = f"BDAT {len(block)}{' LAST' if last else ''}"
        return self.commands.put(Command(
            Stage.END if last else Stage.CONTENT, line.encode() + b"\r\n" + block, shown=line,
            transaction=self._transaction, last_chunk=last, act=_on_chunk))

    def reset(self) -> Command:
        """RSET."""
        self._transaction = None
        return self._say(Stage.IDLE, "RSET")

    def noop(self) -> Command:
        """NOOP."""
        return self._say(Stage.IDLE, "NOOP", ends_group=True)

    def verify(self, text: str) -> Command:
        """VRFY (RFC 5321 §3.5); SMTPUTF8 is said where it is needed (RFC 6531 §3.7.4.2)."""
        return self._ask("VRFY", text)

    def expand(self, text: str) -> Command:
        """EXPN."""
        return self._ask("EXPN", text)

    def quit(self) -> Command:
        """QUIT."""
        return self._say(Stage.QUIT, "QUIT", ends_group=True)

    def _ask(self, verb: str, text: str) -> Command:
        line = f"{verb} {writing.argument(text)}"
        if not line.isascii():
            if "SMTPUTF8" not in self.extensions:
                raise NotOffered(f"{text} is not ASCII, and the server does not offer SMTPUTF8",
                                 Stage.IDLE, EnhancedStatus(5, 6, 7))
            line += " SMTPUTF8"
        return self._say(Stage.IDLE, line, ends_group=True)

    def _say(
        self, stage: Stage, line: str, *, shown: str = "", ends_group: bool = False,
        transaction: Transaction | None = None,
        act: Callable[[SendingSession, Command, Reply], None] | None = None,
    ) -> Command:
        return self.commands.put(Command(stage, line.encode() + b"\r\n", shown or line, ends_group,
                                 transaction, act=act))

    # ---- replies ----

    def _broken(self, text: str, status: EnhancedStatus | None = None) -> None:
        self.commands.end(BadReply(text, self.commands.stage, status))

    def _replied(self, reply: Reply) -> None:
        commands = self.commands
        command = commands.awaiting
        if commands.sending is not None:
            self._cut_short(commands.sending, reply)
        elif command is None:
            if reply.code == 421:
                commands.end(refusal(reply, Stage.IDLE))
            else:
                self._broken(f"the server spoke out of turn: {said(reply)}")
        else:
            # 334 and 354 belong to AUTH and DATA, which look for themselves.
            if 300 <= reply.code < 400 and command.act not in (_on_auth, _on_data):
                self._broken(f"the server answered {command.stage} with {said(reply)}")
                return
            if reply.code == 421:
                commands.answered(reply)
                commands.end(refusal(reply, command.stage))
            elif command.act is None:
                commands.answered(reply)
            else:
                command.act(self, command, reply)
        if commands.ended is None:
            commands.release()

    def _cut_short(self, command: Command, reply: Reply) -> None:
        """The server answers before it has heard the whole message of *command*."""
        if reply.positive:
            self._broken(f"the server answered amid the message: {said(reply)}")
            return
        # The message cannot be called off, and its end would be an end: only hanging up helps.
        self.commands.sending = None
        command.stage = Stage.CONTENT
        self.commands.events.append(Replied(command, reply))
        self.commands.end(refusal(reply, Stage.CONTENT))


# ---- what replies do ----------------------------------------------------------------------------


def _on_greeting(session: SendingSession, command: Command, reply: Reply) -> None:
    session.commands.answered(reply)
    if not reply.positive:
        session.commands.end(refusal(reply, Stage.GREETING))


def _on_hello(session: SendingSession, command: Command, reply: Reply) -> None:
    if not reply.positive:
        if (reply.code in _NO_EHLO and command.wire.startswith(b"EHLO")):
            # RFC 5321 §3.2: a server without extensions.
            command.wire = f"HELO {session._name}\r\n".encode()
            command.shown = ""
            session.commands.send(command.wire, f"HELO {session._name}")
            return
        session.commands.answered(reply)
        return
    session.host = reply.lines[0].partition(" ")[0]
    session.extended = not command.wire.startswith(b"HELO")
    session.extensions = extensions_of(reply) if session.extended else {}
    session.commands.offered = "PIPELINING" in session.extensions
    session.commands.answered(reply)


def _on_start_tls(session: SendingSession, command: Command, reply: Reply) -> None:
    if not reply.positive:
        session.commands.answered(reply)
    elif len(session._reader):
        # Whoever sits between us put it there, to be taken for the server's once TLS runs.
        session._broken("the server sent something in the clear behind its answer to STARTTLS",
                        EnhancedStatus(4, 7, 0))
    else:
        session.commands.answered(reply)
        session.commands.events.append(TLSWanted(command))


def _on_auth(session: SendingSession, command: Command, reply: Reply) -> None:
    exchange = session._exchange
    assert exchange is not None
    try:
        if 300 <= reply.code < 400:
            if exchange.abandoned:
                raise Abandoned("the server asks on although the login was called off")
            response = exchange.respond("".join(reply.lines))
        elif exchange.abandoned:
            session.commands.failed(CannotLogIn(exchange.abandoned, Stage.AUTH,
                                                EnhancedStatus(5, 7, 0)))
            return
        else:
            if reply.positive:
                exchange.succeeded()
                session.authenticated = True
            session.commands.answered(reply)
            return
    except Abandoned as why:
        if exchange.abandoned or reply.code < 300:
            # Who says that we are logged in, without having proven that it knows us, is another.
            session.commands.end(CannotLogIn(str(why), Stage.AUTH, EnhancedStatus(5, 7, 0)))
            return
        exchange.abandoned = str(why)
        session.commands.send(b"*\r\n", "*")
        return
    session.commands.send(response.encode() + b"\r\n", "********" if response else "")


def _on_mail(session: SendingSession, command: Command, reply: Reply) -> None:
    assert command.transaction is not None
    command.transaction.sender_reply = reply
    session.commands.answered(reply)


def _on_rcpt(session: SendingSession, command: Command, reply: Reply) -> None:
    transaction = command.transaction
    if transaction is not None:
        sender_ok = transaction.sender_reply is not None and transaction.sender_reply.positive
        if not reply.positive:
            transaction.refused = reply
        elif sender_ok:
            transaction.accepted += 1
        else:
            # As much as a refusal; unless it wants to see the message, too.
            transaction.confused = True
            obstacle = transaction.sender_reply
            assert obstacle is not None
            session.commands.failed(refusal(obstacle, Stage.RCPT))
            return
    session.commands.answered(reply)


def _on_data(session: SendingSession, command: Command, reply: Reply) -> None:
    if not 300 <= reply.code < 400:
        if reply.positive:
            session._broken(f"the server answered DATA with {said(reply)}")
        else:
            session.commands.answered(reply)
        return
    if reply.code != 354:
        session._broken(f"the server answered DATA with {said(reply)}")
        return
    transaction = command.transaction
    if transaction is None:
        transaction = command.transaction = Transaction(eight_bit=False, smtputf8=False)
    if transaction.confused:
        session._broken("the server took recipients of a sender that it had refused")
        return
    session.commands.begin()
    if transaction.obstacle is not None:
        # RFC 2920 §3.1: nobody is to get it, so it has no octets.
        _end_message(session, b".\r\n")
        return
    session._stuffer, session._octets = DotStuffer(), 0
    session.commands.events.append(ContentWanted(command))


def _end_message(session: SendingSession, dot: bytes) -> None:
    """The message that DATA began ends with *dot*."""
    command = session.commands.sending
    assert command is not None
    session.commands.send(dot, ".")
    command.act = _on_end
    session.commands.whole()


def _on_end(session: SendingSession, command: Command, reply: Reply) -> None:
    transaction = command.transaction
    assert transaction is not None
    # RFC 2033 §4.2: LMTP has a reply for each recipient that was accepted.
    if session.lmtp:
        transaction.due = max(0, (transaction.due or transaction.accepted) - 1)
    more = transaction.due > 0
    if command.last_chunk and reply.code in _NO_COMMAND:
        more = False
    command.in_flight = more
    session.commands.answered(reply, more=more)


def _on_chunk(session: SendingSession, command: Command, reply: Reply) -> None:
    if command.last_chunk and command.transaction is not None:
        _on_end(session, command, reply)
    else:
        session.commands.answered(reply)
