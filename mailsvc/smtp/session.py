"""The receiving side of SMTP as a state machine without I/O (RFC 5321).

Octets go in by :meth:`Session.receive`; events come out of :meth:`Session.next_event`; replies to
send are in :meth:`Session.data_to_send`.  It knows no reactor, clock, file, directory or store.

Some events are *questions* (their classes say so).  A question must be answered by
:meth:`Session.reply` before the next event is asked for; until then nothing more is handed out, so
pipelined commands (RFC 2920) wait in place and replies cannot come out of order, however late an
answer is.  A positive reply makes the transition that the command asks for, a negative one none.

Extensions: PIPELINING (2920), SIZE (1870), 8BITMIME (6152), SMTPUTF8 (6531), CHUNKING (3030),
ENHANCEDSTATUSCODES (2034), LIMITS (9422), STARTTLS (3207) where the listener has a certificate;
DELIVERBY (2852), MT-PRIORITY (6710) and FUTURERELEASE (4865) where there is a queue.
AUTH (4954) on the listeners for submission and ODMR, by the mechanisms of :mod:`mailsvc.sasl`.
ETRN (1985) and ATRN (2645) where they are configured.  TURN and XEXCH50 are recognized and answered
502.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from mailsvc.credentials import ScramKeys
from mailsvc.errors import MailFailure
from mailsvc.mail import Envelope
from mailsvc.sasl.context import Context
from mailsvc.sasl.exchange import LINE_OCTETS
from mailsvc.sasl.steps import Guessed, Kind, LogIn, Lookup
from mailsvc.smtp import replies
from mailsvc.smtp.auth import Auth
from mailsvc.smtp.commands import (
    CHUNKS,
    CLOSED,
    COMMANDS,
    EXTENSIONS,
    GREETING,
    MAIL,
    RCPT,
    READY,
    START,
    out_of_order,
)
from mailsvc.smtp.events import (
    Aborted,
    Closed,
    Connected,
    DataBegins,
    Event,
    Hello,
    MailFrom,
    MessageBlock,
    MessageEnds,
    Proxied,
    RcptTo,
    Turn,
    Turned,
)
from mailsvc.smtp.grammar import AddressFault, SyntaxFault
from mailsvc.smtp.intake import Intake
from mailsvc.smtp.limits import SMTPSettings
from mailsvc.smtp.mode import TRANSPORT, Mode
from mailsvc.smtp.replies import Reply, from_failure, printable, reply
from mailsvc.wire import LineReader, LineTooLong

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# What a web page can be made to send here (ALPACA), in HTTP or in TLS.  RFC 5321 §3.8 asks for
# patience with unknown commands, but not with these as the first thing said.
_HTTP = frozenset((b"CONNECT", b"DELETE", b"GET", b"HEAD", b"OPTIONS", b"PATCH", b"POST", b"PUT"))
_TLS_HANDSHAKE = b"\x16"


class Session:
    """One SMTP connection, seen from the server.

    :param hostname: what the server calls itself.
    :param limits: the [smtp] section.
    :param mode: what the listener is for.
    :param sasl: describes the connection as it is now, for AUTH; None where nobody can log in.
    :param known: whether the client may submit without a login.
    :param trusted: whether the client may say for whom it speaks (XCLIENT, AUTH= of MAIL).
    :param tls_available: whether STARTTLS may be offered.
    :param tls_active: whether TLS runs from the first octet.
    :param turns: whether ATRN is offered.
    :param clock: the time, in seconds since the epoch; None where mail does not wait in a queue.
    """

    __slots__ = (
        "_auth", "_idle", "_input", "_messages", "_opening", "_output", "_pending", "_question",
        "authenticated", "clock", "commands", "envelope", "errors",
        "extended", "hello", "hostname", "intake", "known", "limits", "mode", "phase",
        "refused_recipient", "sasl", "tls_active", "tls_available", "trusted", "turns",
    )  # fmt: skip

    def __init__(
        self,
        hostname: str,
        limits: SMTPSettings,
        mode: Mode = TRANSPORT,
        *,
        sasl: Callable[[], Context] | None = None,
        known: bool = False,
        trusted: bool = False,
        tls_available: bool = False,
        tls_active: bool = False,
        turns: bool = False,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.clock: Callable[[], float] | None = clock
        self.hostname: str = hostname
        self.limits: SMTPSettings = limits
        self.mode: Mode = mode
        self.sasl: Callable[[], Context] | None = sasl
        self.known: bool = known
        self.trusted: bool = trusted
        self.tls_available: bool = tls_available
        self.tls_active: bool = tls_active
        self.turns: bool = turns
        self.phase = GREETING
        #: What the client called itself; empty before HELO or EHLO.
        self.hello = ""
        #: Whether it said EHLO.
        self.extended = False
        #: The name of the account that has logged in, or empty (RFC 4954).
        self.authenticated = ""
        #: The open transaction, or None.
        self.envelope: Envelope | None = None
        #: Whether the open transaction had a recipient that was refused.
        self.refused_recipient = False
        #: The message that is arriving, or None.
        self.intake: Intake | None = None
        self._input = LineReader(
            max(limits.command_octets, LINE_OCTETS) if sasl else limits.command_octets)
        self._auth = Auth(self) if sasl else None
        #: The first octet of all.
        self._opening = b""
        self._output: list[bytes] = []
        self._question: Event | None = None
        #: Events not handed out yet; the open question, if any, is the last of them.
        self._pending: list[Event] = []
        #: Command lines received.
        self.commands = 0
        #: Commands refused since the last accepted message.
        self.errors = 0
        # Likewise; the number of messages is that of the connection.
        self._idle = 0
        self._messages = 0
        self.ask(Connected())

    # ---- for the owner: in and out ----

    def receive(self, data: bytes) -> None:
        """Take octets from the peer; after the end of the session they are ignored."""
        if self.phase is not CLOSED:
            self._opening = self._opening or data[:1]
            self._input.feed(data)

    def data_to_send(self) -> bytes:
        """The octets owed to the peer, which are thereby forgotten here."""
        if not self._output:
            return b""
        output, self._output = b"".join(self._output), []
        return output

    def next_event(self) -> Event | None:
        """The next event, or None when more input is needed.

        :raises RuntimeError: a question is open.
        """
        pending, read = self._pending, self._input
        while not pending:
            if self._question is not None:
                raise RuntimeError(f"{self._question!r} has not been answered")
            if not read or self.phase is CLOSED:
                return None
            if self.intake is not None and self.intake.chunk != 0:
                self._read_message()
            elif not self._read_command():
                return None
        return pending.pop(0)

    @property
    def waiting(self) -> bool:
        """Whether a question was handed out and has no answer yet."""
        return self._question is not None and not self._pending

    @property
    def receiving(self) -> bool:
        """Whether the next octets belong to a message, not to a command."""
        return self.intake is not None and self.intake.chunk != 0

    @property
    def exchanging(self) -> bool:
        """Whether an AUTH exchange is under way."""
        return self._auth is not None and self._auth.under_way

    @property
    def messages(self) -> int:
        """How many messages were accepted on the connection."""
        return self._messages

    @property
    def buffered(self) -> int:
        """Octets received and not yet looked at."""
        return len(self._input)

    @property
    def transmission_type(self) -> str:
        """How the open transaction arrives, for Received (RFC 3848; RFC 6531 §4.3)."""
        if not self.extended:
            return "SMTP"
        utf8 = self.envelope is not None and self.envelope.smtputf8
        if self.mode.lmtp:
            name = "UTF8LMTP" if utf8 else "LMTP"
        else:
            name = "UTF8SMTP" if utf8 else "ESMTP"
        return name + ("S" if self.tls_active else "") + ("A" if self.authenticated else "")

    # ---- for the owner: answers ----

    @property
    def greeting(self) -> Reply:
        """The 220 to answer Connected with."""
        return reply(220, "", f"{self.hostname} {self.mode.protocol} mailsvc")

    def hello_reply(self, question: Hello) -> Reply:
        """The 250 to answer Hello with: for EHLO, the extensions offered (RFC 5321 §4.1.1.1)."""
        lines = [f"{self.hostname} greets {printable(question.name)}"]
        if question.extended:
            lines += filter(None, (offer(self) for offer in EXTENSIONS))
        return reply(250, "", *lines)

    def reply(self, answer: Reply | list[Reply]) -> None:
        """Answer the open question; a positive reply makes its transition, 421 ends the session.

        :param answer: a list, for MessageEnds in LMTP, has a reply for each recipient.
        :raises RuntimeError: no question is open.
        """
        question, self._question = self._question, None
        if question is None:
            raise RuntimeError("no question is open")
        transition = _TRANSITIONS.get(type(question))
        if isinstance(answer, list):
            self._message_answered(answer)
        elif answer.code == 421:
            self.close(answer)
        elif transition is not None:
            transition(self, question, answer)
        elif isinstance(question, Lookup | LogIn | Guessed):
            # Neither right nor wrong: it could not be found out.
            assert self._auth is not None
            self._auth.drop()
            self.refuse(answer)
        elif answer.positive:
            self.say(answer)
        else:
            self.refuse(answer)

    def keys(self, keys: ScramKeys) -> None:
        """Answer Lookup."""
        self._auth_answered().answer(keys)

    def logged_in(self, name: str) -> None:
        """Answer LogIn: the client is who it says, and *name* the account's."""
        self.authenticated = name
        self._auth_answered().answer(True)

    def login_refused(self) -> None:
        """Answer LogIn or Guessed: the login is wrong; whether by name or password is not told."""
        self._auth_answered().refused()

    def login_failed(self, failure: MailFailure) -> None:
        """Answer Lookup, LogIn or Guessed: it could not be found out (RFC 4954 §6)."""
        answer = from_failure(failure)
        temporary = answer.code < 500
        self.reply(Reply(454 if temporary else 534, answer.status, answer.lines))

    def _auth_answered(self) -> Auth:
        self._question = None
        assert self._auth is not None
        return self._auth

    def refuse_message(self, answer: Reply) -> None:
        """Decide amid a message how it will end: the rest is swallowed, then *answer* sent."""
        if self.intake is not None and self.intake.refusal is None:
            self.intake.refusal = answer
            if self._pending:
                # Its end had come with its last block, and will not be asked about.
                self._question = None
                self._pending.clear()
                self._end_of_message()

    def tls_started(self) -> None:
        """Answer TLSBegins: what was said in the clear is forgotten (RFC 3207 §4.2)."""
        self._question = None
        # CVE-2011-0411: text sent behind STARTTLS must not run inside TLS.
        self._input.clear()
        self.tls_active = True
        self.phase = START
        self.hello, self.extended, self.authenticated = "", False, ""

    def close(self, answer: Reply) -> None:
        """Say *answer* and end the session, dropping what is under way.

        221 and 421 get the name of the host in front.
        """
        if self.phase is CLOSED:
            return
        if self._question is not None and self._pending:
            # Made and not handed out yet: nobody will be able to answer it.
            self._pending.pop()
        self.end_transaction("connection closed")
        self.say(answer.by(self.hostname) if answer.code in (221, 421) else answer)
        self.phase = CLOSED
        self._question = None
        self._input.clear()
        self._pending.append(Closed(asked=answer is replies.BYE))

    # ---- for commands ----

    def ask(self, question: Event) -> None:
        """Hand a question to the owner."""
        self._question = question
        self._pending.append(question)

    def say(self, answer: Reply) -> None:
        """Send a reply."""
        self._output.append(answer.wire)

    def send(self, octets: bytes) -> None:
        """Send what is no reply."""
        self._output.append(octets)

    def refuse(self, answer: Reply) -> None:
        """Send a negative reply; too many of them end the session."""
        self.say(answer)
        self.errors += 1
        if self.errors >= self.limits.errors:
            self.close(replies.TOO_MANY_ERRORS)

    def authenticate(self, mechanism: bytes, initial: bytes | None) -> None:
        """Begin an AUTH exchange."""
        assert self._auth is not None
        self._auth.begin(mechanism, initial)

    def end_transaction(self, reason: str) -> None:
        """Forget the transaction; the owner of a message that has begun is told *reason*."""
        if self.intake is not None:
            self.intake = None
            self._pending.append(Aborted(reason))
        self.envelope = None
        self.refused_recipient = False
        if self.phase in (MAIL, RCPT, CHUNKS):
            self.phase = READY

    @property
    def exhausted(self) -> bool:
        """Whether the connection has brought as many messages as one may."""
        return 0 < self.limits.messages <= self._messages

    def chunk_begins(self, octets: int, last: bool) -> None:
        """A BDAT command announces *octets*; ``intake`` is there to take them."""
        assert self.intake is not None
        self.intake.expect(octets, last)
        # When the message is still to be admitted, the admission goes on from here.
        if octets == 0 and self._question is None:
            self._end_of_chunk()

    # ---- input ----

    def _read_command(self) -> bool:
        """Act on one command line; False when none is complete."""
        if self._opening == _TLS_HANDSHAKE:
            self.close(replies.NOT_TLS)
            return True
        try:
            line = self._input.line()
        except LineTooLong as fault:
            answer = replies.LINE_TOO_LONG
            if self._auth is not None and (
                    self._auth.under_way or fault.head[:5].upper() == b"AUTH "):
                # RFC 4954 §6, of an initial response (§4) as of any other.
                answer = replies.FAILED_AUTH[Kind.TOO_LONG]
                self._auth.drop()
            self.refuse(answer)
            return True
        if line is None:
            return False
        self.commands += 1
        if self._auth is not None and self._auth.under_way:
            self._auth.receive(line)
            return True
        if _CONTROL.search(line):
            self.refuse(replies.BAD_CHARACTERS)
            return True
        if len(line) + 2 > self.limits.command_octets and line[:5].upper() != b"AUTH ":
            self.refuse(replies.LINE_TOO_LONG)
            return True
        # bytes.upper() changes ASCII letters only, so no look-alike passes for a letter.
        words = line.rstrip(b" \t").split(None, 1)
        # In front of a verb there is no space.
        verb = words[0].upper() if words and line.startswith(words[0]) else b""
        command = COMMANDS.get(verb)
        if command is None or not command.known(self.mode):
            if self.phase is START and verb in _HTTP:
                self.close(replies.NOT_HTTP)
            else:
                self.refuse(replies.UNRECOGNIZED)
            return True
        if command.idle:
            self._idle += 1
            if self._idle > self.limits.idle_commands:
                self.close(replies.TOO_MANY_COMMANDS)
                return True
        if self.mode.odmr and not command.odmr:
            # RFC 2645 §5.4: 502.
            self.refuse(replies.NOT_IMPLEMENTED)
            return True
        if self.phase not in command.legal:
            self.refuse(out_of_order(command.verb, self))
            return True
        try:
            command.act(self, words[1] if len(words) > 1 else b"")
        except SyntaxFault as fault:
            status = command.fault if isinstance(fault, AddressFault) else "5.5.4"
            self.refuse(reply(fault.code, status, printable(str(fault))))
        return True

    def _read_message(self) -> None:
        intake = self.intake
        assert intake is not None
        block, rest = intake.feed(self._input.take())
        self._input.unread(rest)
        if block:
            self._pending.append(MessageBlock(block))
        if intake.dots_ended:
            self._end_of_message()
        elif intake.chunk == 0:
            self._end_of_chunk()

    def _end_of_chunk(self) -> None:
        intake = self.intake
        assert intake is not None
        if intake.last:
            block = intake.finish()
            if block:
                self._pending.append(MessageBlock(block))
            self._end_of_message()
        elif intake.refusal:
            # RFC 3030 §2: after a failed chunk the transaction is over; further ones get 503.
            self._end_of_message()
        else:
            self.phase = CHUNKS
            self.say(reply(250, "2.0.0", f"{intake.announced} octets received so far"))

    def _end_of_message(self) -> None:
        intake = self.intake
        assert intake is not None
        if not intake.refusal:
            self.ask(MessageEnds(intake.size))
            return
        if self.phase in (RCPT, CHUNKS) and (intake.dots_ended or intake.last):
            self._message_refused(intake.refusal)
        elif self.phase in (RCPT, CHUNKS):
            # A chunk that is not the last has one reply, in LMTP too.
            self.end_transaction(intake.refusal.lines[0])
            self.refuse(intake.refusal)
        else:
            # BDAT out of order: no message had begun, and a transaction without recipients goes on.
            self.intake = None
            self.refuse(intake.refusal)

    def _message_refused(self, answer: Reply) -> None:
        self._refuse_each(self._for_each_recipient(answer), answer.lines[0])

    def _refuse_each(self, answers: list[Reply], reason: str) -> None:
        """Nobody gets the message: one error, however many are told."""
        self.end_transaction(reason)
        for each in answers[:-1]:
            self.say(each)
        self.refuse(answers[-1])

    def _for_each_recipient(self, answer: Reply) -> list[Reply]:
        """What is said of a message: *answer*, or for LMTP one for each RCPT (RFC 2033 §4.2)."""
        if not self.mode.lmtp or self.envelope is None:
            return [answer]
        return self._named([answer] * len(self.envelope.recipients))

    def _named(self, answers: list[Reply]) -> list[Reply]:
        """*answers*, one for each recipient, with whom each is for."""
        assert self.envelope is not None
        return [Reply(answer.code, answer.status,
                      (printable(f"<{recipient.forward_path}> {answer.lines[0]}"),))
                for recipient, answer in zip(self.envelope.recipients, answers, strict=True)]

    # ---- transitions ----

    def _connected(self, question: Connected, answer: Reply) -> None:
        if answer.positive:
            self.phase = START
            self.say(answer)
        else:
            # RFC 5321 §3.1 lets the client of a 554 say QUIT; to close at once is as good.
            self.close(answer)

    def _greeted(self, question: Hello, answer: Reply) -> None:
        if not answer.positive:
            self.refuse(answer)
            return
        # RFC 5321 §4.1.4: EHLO within a session is RSET and a new introduction.
        self.end_transaction("EHLO" if question.extended else "HELO")
        self.phase = READY
        self.hello, self.extended = question.name, question.extended
        self.say(answer)

    def _proxied(self, question: Proxied, answer: Reply) -> None:
        if not answer.positive:
            self.refuse(answer)
            return
        self.phase = START
        self.hello, self.extended = "", False
        self.authenticated = question.client.login or "" if self.sasl is not None else ""
        self.trusted = False
        self.say(answer)

    def _sender(self, question: MailFrom, answer: Reply) -> None:
        if not answer.positive:
            self.refuse(answer)
            return
        self.envelope = question.envelope
        self.phase = MAIL
        self.say(answer)

    def _recipient(self, question: RcptTo, answer: Reply) -> None:
        if answer.positive:
            self.phase = RCPT
            self.say(answer)
            return
        self.refused_recipient = True
        if answer.code < 500:
            # Not the client's fault, so not counted against it.
            self.say(answer)
        else:
            self.refuse(answer)

    def _turned(self, question: Turn, answer: Reply) -> None:
        # A negative one is no error of the client's: to have no mail is everyday business.
        self.say(answer)
        if answer.positive:
            self.phase = CLOSED
            self._pending.append(Turned(self._input.take()))

    def _data_begins(self, question: DataBegins, answer: Reply) -> None:
        if self.intake is not None:
            # BDAT: the octets come unasked; 354 has no place, and a refusal waits for their end.
            if not answer.positive:
                self.refuse_message(answer)
            if self.intake.chunk == 0:
                self._end_of_chunk()
        elif answer.positive:
            self.intake = Intake(self.limits, chunked=False)
            self.say(answer)
        else:
            self.end_transaction(answer.lines[0])
            self.refuse(answer)

    def _message_ends(self, question: MessageEnds, answer: Reply) -> None:
        self.intake = None
        if not answer.positive:
            self._message_refused(answer)
        else:
            self._message_taken(self._for_each_recipient(answer))

    def _message_answered(self, answers: list[Reply]) -> None:
        """A message that had an outcome for each recipient has come to its end."""
        self.intake = None
        answers = self._named(answers)
        if any(answer.positive for answer in answers):
            self._message_taken(answers)
        else:
            self._refuse_each(answers, answers[0].lines[0])

    def _message_taken(self, answers: list[Reply]) -> None:
        self.end_transaction("")
        self._messages += 1
        self.errors = self._idle = 0
        for each in answers:
            self.say(each)


_TRANSITIONS: dict[type, Callable[[Session, Any, Reply], None]] = {
    Connected: Session._connected,
    Hello: Session._greeted,
    Proxied: Session._proxied,
    MailFrom: Session._sender,
    RcptTo: Session._recipient,
    Turn: Session._turned,
    DataBegins: Session._data_begins,
    MessageEnds: Session._message_ends,
}

