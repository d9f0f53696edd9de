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
from mailsvc.sasl.context import Context
from mailsvc.sasl.exchange import LINE_OCTETS
from mailsvc.sasl.steps import Guessed, Kind, LogIn, Lookup
from mailsvc.smtp import replies
from mailsvc.smtp.auth import Auth
from mailsvc.smtp.commands import COMMANDS, EXTENSIONS
from mailsvc.smtp.dialogue import CLOSED, GREETING, READY, START
from mailsvc.smtp.events import Closed, Connected, Event, Hello, Proxied, Turn, Turned
from mailsvc.smtp.grammar import AddressFault, SyntaxFault
from mailsvc.smtp.limits import SMTPSettings
from mailsvc.smtp.mode import TRANSPORT, Mode
from mailsvc.smtp.replies import Reply, from_failure, printable, reply
from mailsvc.smtp.transactions import STEPS, Transactions
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
        "_auth", "_idle", "_input", "_opening", "_output", "_pending", "_question",
        "authenticated", "clock", "commands", "errors", "extended", "hello", "hostname", "known",
        "limits", "mode", "phase", "sasl", "tls_active", "tls_available", "transactions", "trusted",
        "turns",
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
        self.authenticated: str = ""
        self.transactions = Transactions(self)
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
        # Likewise those that brought no mail along.
        self._idle = 0
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
        pending, read, mail = self._pending, self._input, self.transactions
        while not pending:
            if self._question is not None:
                raise RuntimeError(f"{self._question!r} has not been answered")
            if not read or self.phase is CLOSED:
                return None
            if mail.intake is not None and mail.intake.chunk != 0:
                read.unread(mail.take(read.take()))
            elif not self._read_command():
                return None
        return pending.pop(0)

    @property
    def waiting(self) -> bool:
        """Whether a question was handed out and has no answer yet."""
        return self._question is not None and not self._pending

    @property
    def exchanging(self) -> bool:
        """Whether an AUTH exchange is under way."""
        return self._auth is not None and self._auth.under_way

    @property
    def buffered(self) -> int:
        """Octets received and not yet looked at."""
        return len(self._input)

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
        kind = type(question)
        step = STEPS.get(kind)
        if isinstance(answer, list):
            self.transactions.outcomes(answer)
        elif answer.code == 421:
            self.close(answer)
        elif step is not None:
            step(self.transactions, question, answer)
        elif kind in _TRANSITIONS:
            _TRANSITIONS[kind](self, question, answer)
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
        self.transactions.end("connection closed")
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

    def tell(self, event: Event) -> None:
        """Hand an event to the owner that is no question."""
        self._pending.append(event)

    def retract(self) -> bool:
        """Take back what has not been handed out yet, a question included; whether there was any.
        """
        if not self._pending:
            return False
        self._question = None
        self._pending.clear()
        return True

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

    def forgive(self) -> None:
        """A message was accepted: what did not bring one is no longer held against the client."""
        self.errors = self._idle = 0

    def authenticate(self, mechanism: bytes, initial: bytes | None) -> None:
        """Begin an AUTH exchange."""
        assert self._auth is not None
        self._auth.begin(mechanism, initial)

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
        if command is None or (
                command.lmtp is not None and command.lmtp is not self.mode.lmtp):
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
            self.refuse(self.transactions.out_of_order(command.verb))
            return True
        try:
            command.act(self, words[1] if len(words) > 1 else b"")
        except SyntaxFault as fault:
            status = command.fault if isinstance(fault, AddressFault) else "5.5.4"
            self.refuse(reply(fault.code, status, printable(str(fault))))
        return True

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
        self.transactions.end("EHLO" if question.extended else "HELO")
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

    def _turned(self, question: Turn, answer: Reply) -> None:
        # A negative one is no error of the client's: to have no mail is everyday business.
        self.say(answer)
        if answer.positive:
            self.phase = CLOSED
            self.tell(Turned(self._input.take()))


_TRANSITIONS: dict[type, Callable[[Session, Any, Reply], None]] = {
    Connected: Session._connected,
    Hello: Session._greeted,
    Proxied: Session._proxied,
    Turn: Session._turned,
}

