"""POP3 as a state machine without I/O (RFC 1939).

Octets go in by :meth:`Session.receive`; events come out of :meth:`Session.next_event`; what the
peer is owed is in :meth:`Session.data_to_send`.  It knows no reactor, clock, file or store.

Some events are *questions* (their classes say so, and how each is answered).  A question must be
answered before the next event is asked for; until then nothing more is handed out, so pipelined
commands (RFC 2449 §6.6) wait in place and answers cannot come out of order.  STAT, LIST, UIDL, DELE
and RSET are answered here, from the listing that the maildrop brought along at login, and so is
RETR where the maildrop has the message at hand.  Deletion marks are kept here too and leave as one
set in ``Update``, at QUIT alone: a session that ends in any other way deletes nothing (RFC 1939 §3,
§6).

Extensions: CAPA, response codes, PIPELINING, EXPIRE and LOGIN-DELAY (2449), [SYS/TEMP], [SYS/PERM]
and [AUTH] (3206), UTF8 and LANG (6856), STLS (2595) where the listener has a certificate, AUTH
(5034) by the mechanisms of :mod:`mailsvc.sasl`.

Leniency: the name given by USER stays until PASS, so that CAPA may come in between.  A message with
UTF-8 in its header is sent as it is even without UTF8, because nobody is served by mail that cannot
be fetched (RFC 6856 §2.1 leaves the choice to the server).

Limits: a command line has ``command_octets``; ``errors`` malformed commands or ``login_failures``
failed logins end the session.  However short the commands, little more than 64 KiB of answers
gather before they are sent.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from mailsvc.credentials import ScramKeys
from mailsvc.errors import MailFailure
from mailsvc.pop3 import grammar
from mailsvc.pop3.commands import COMMANDS, OUT_OF_ORDER, State, summary
from mailsvc.pop3.events import (
    ApopLogin,
    Closed,
    Event,
    Gathered,
    Listing,
    Login,
    Retrieve,
    StartTLS,
    Update,
)
from mailsvc.pop3.limits import POP3Settings
from mailsvc.pop3.marks import Maildrop, MarkedMaildrop
from mailsvc.pop3.replies import from_failure, negative, octets_follow, plural, positive
from mailsvc.sasl.context import Context
from mailsvc.sasl.exchange import LINE_OCTETS, Exchange
from mailsvc.sasl.steps import Challenge, Failed, Guessed, Kind, LogIn, Lookup, Step
from mailsvc.wire import DotStuffer, LineReader, LineTooLong, dot_stuffed

#: Octets owed from which ``next_event`` asks to send them.  LIST is six octets long and its answer
#: a thousand times that, so a received chunk is not answered all at once.
GATHER = 65_536

#: Clients of another protocol, led here by a form in a web page or by a wrong port.
_HTTP = frozenset(
    (b"CONNECT", b"DELETE", b"GET", b"HEAD", b"OPTIONS", b"PATCH", b"POST", b"PUT", b"TRACE")
)
#: The first octet of a TLS handshake (RFC 8446 §5.1).
_TLS_HANDSHAKE = b"\x16"
#: The states in which commands are taken.
_LISTENING = (State.AUTHORIZATION, State.TRANSACTION)
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


#: The answer to wrong credentials, whatever is wrong with them.
WRONG_LOGIN = negative("[AUTH] Wrong name or password")
#: Why an AUTH exchange failed otherwise.
_FAILED = {
    Kind.UNSUPPORTED: "No such mechanism here; CAPA lists them",
    Kind.ENCRYPTION_NEEDED: "Use STLS first; nobody logs in unencrypted here",
    Kind.MALFORMED: "That is not what the mechanism expects",
    Kind.TOO_LONG: "Line too long for an exchange",
    Kind.CANCELLED: "Cancelled, as you wished",
}


class Session:
    """One POP3 connection, seen from the server.

    :param hostname: what the server calls itself.
    :param settings: the [pop3] section.
    :param timestamp: the msg-id that ends the banner, never the same twice (RFC 1939 §7, APOP);
        empty when APOP is not offered.
    :param sasl: describes the connection as it is now, for AUTH; None not to offer it.
    :param tls_available: whether STLS may be offered.
    :param tls_active: whether TLS runs from the first octet.
    :ivar maildrop: the open maildrop, in the TRANSACTION state.
    """

    __slots__ = (
        "_event", "_exchange", "_heard_nothing", "_input", "_login_failures", "_output", "_owed",
        "_question", "_retrieved", "_stuffer", "commands", "errors", "hostname", "maildrop", "sasl",
        "settings", "state", "timestamp", "tls_active", "tls_available", "user", "utf8",
    )  # fmt: skip

    maildrop: MarkedMaildrop

    def __init__(
        self,
        hostname: str,
        settings: POP3Settings,
        *,
        timestamp: str = "",
        sasl: Callable[[], Context] | None = None,
        tls_available: bool = False,
        tls_active: bool = False,
    ) -> None:
        self.hostname: str = hostname
        self.settings: POP3Settings = settings
        self.timestamp: str = timestamp
        self.sasl: Callable[[], Context] | None = sasl
        self.tls_available: bool = tls_available
        self.tls_active: bool = tls_active
        self.state = State.AUTHORIZATION
        #: What USER said and no PASS has used yet.
        self.user: str | None = None
        #: Whether UTF8 was said (RFC 6856 §2.1).
        self.utf8 = False
        self._heard_nothing = True
        self._input = LineReader(
            max(settings.command_octets, LINE_OCTETS) if sasl else settings.command_octets)
        #: The AUTH command under way, or None.
        self._exchange: Exchange | None = None
        self._output: list[bytes] = []
        self._owed = 0
        #: What next_event hands out next; a question stays in `_question` until it is answered.
        self._event: Event | None = None
        self._question: Event | None = None
        self._retrieved: list[int] = []
        #: Stuffs the message being sent, from its first block on.
        self._stuffer: DotStuffer | None = None
        #: Command lines received.
        self.commands = 0
        #: Malformed commands, and those out of order.
        self.errors = 0
        self._login_failures = 0

    # ---- for the owner: in and out ----

    def greet(self) -> None:
        """Send the banner; once, before all else, unless the session is closed at once."""
        self.ok(f"{self.hostname} POP3 server ready {self.timestamp}".rstrip())

    def receive(self, data: bytes) -> None:
        """Take octets from the peer; after QUIT and after the end they are ignored."""
        if self._heard_nothing and data:
            self._heard_nothing = False
            if data.startswith(_TLS_HANDSHAKE):
                self.end(negative("This port does not begin with TLS"), "TLS handshake")
        if self.state in _LISTENING:
            self._input.feed(data)

    def data_to_send(self) -> bytes:
        """The octets owed to the peer, which are thereby forgotten here."""
        data = b"".join(self._output)
        self._output.clear()
        self._owed = 0
        return data

    def next_event(self) -> Event | None:
        """The next event, or None when more input is needed.

        :raises RuntimeError: a question is open.
        """
        while self._event is None:
            if self._question is not None:
                raise RuntimeError(f"{self._question!r} has not been answered")
            if self._owed >= GATHER:
                return Gathered()
            if not self._read_command():
                return None
        event, self._event = self._event, None
        return event

    @property
    def waiting(self) -> bool:
        """Whether a question was handed out and has no answer yet."""
        return self._question is not None and self._event is None

    @property
    def exchanging(self) -> bool:
        """Whether an AUTH exchange is under way."""
        return self._exchange is not None

    @property
    def buffered(self) -> int:
        """Octets received and not yet looked at."""
        return len(self._input)

    @property
    def private(self) -> bool:
        """Whether this client may log in: nobody listens, or the operator does not mind."""
        return self.sasl is None or self.sasl().private

    def take_retrieved(self) -> list[int]:
        """The messages that RETR was answered by since the last call."""
        numbers, self._retrieved = self._retrieved, []
        return numbers

    @property
    def owed(self) -> int:
        """How many octets ``data_to_send`` would return."""
        return self._owed

    # ---- for the owner: answers ----

    def logged_in(self, maildrop: Maildrop) -> None:
        """The credentials are right and *maildrop* is locked for this session."""
        self._answer(Login, ApopLogin, LogIn)
        self._exchange = None
        self.maildrop = MarkedMaildrop(maildrop)
        self.state = State.TRANSACTION
        self.ok(summary(self))

    def login_refused(self) -> None:
        """The name or the password is wrong; which of them is not told."""
        self._login_failed(WRONG_LOGIN)

    def login_failed(self, failure: MailFailure) -> None:
        """The maildrop cannot be opened."""
        self._login_failed(from_failure(failure))

    def keys(self, keys: ScramKeys) -> None:
        """Answer Lookup."""
        self._answer(Lookup)
        assert self._exchange is not None
        self._step(self._exchange.answer(keys))

    def _login_failed(self, answer: bytes) -> None:
        self._answer(Login, ApopLogin, LogIn, Lookup, Guessed)
        self._failed_login(answer)

    def _failed_login(self, answer: bytes) -> None:
        self._exchange = None
        self._login_failures += 1
        if self._login_failures < self.settings.login_failures:
            self.send(answer)
        else:
            self.end(answer, "too many failed logins")

    def message_block(self, block: bytes) -> None:
        """Send a block of the message asked for: CRLF lines, not dot-stuffed, cut anywhere."""
        question = self._question
        if not isinstance(question, Retrieve):
            raise RuntimeError("no message was asked for")
        if block:
            self.send(self._stuffed(question).feed(block))

    def retrieved(self) -> None:
        """The message has been handed over whole."""
        question = self._answer(Retrieve)
        self.send(self._stuffed(question).finish())
        self._stuffer = None
        if question.lines is None:
            self._retrieved.append(question.number)

    def _stuffed(self, question: Retrieve) -> DotStuffer:
        """The stuffer of the message asked for; the first call sends the status line."""
        if self._stuffer is None:
            # Not before: until the message's first octets are there, the answer may be -ERR.
            self._stuffer = DotStuffer()
            self._begin_message(question)
        return self._stuffer

    def _begin_message(self, question: Retrieve) -> None:
        if question.lines is None:
            self.send(octets_follow(self.maildrop.size(question.number)))
        else:
            self.ok("Top of message follows")

    def retrieve_failed(self, failure: MailFailure) -> None:
        """The message cannot be handed over, or not to its end."""
        self._answer(Retrieve)
        if self._stuffer is None:
            self.send(from_failure(failure))
        else:
            # What is said amid a message passes for its text; an end without the dot does not.
            self.end(b"", "message cut short")

    def listed(self) -> None:
        """All blocks have been sent."""
        self._answer(Listing)
        self.send(b".\r\n")

    def updated(self, failure: MailFailure | None = None) -> None:
        """The deleted messages are gone, or not (*failure*); the maildrop is released."""
        self._answer(Update)
        if failure is None:
            left = plural(self.maildrop.count, "message")
            answer = positive(f"{self.hostname} signing off ({left} left)")
        else:
            answer = from_failure(failure)
        self.end(answer, "quit", asked=True)

    def tls_started(self) -> None:
        """TLS runs, or its handshake does: forget what was said before (RFC 2595 §4)."""
        self._answer(StartTLS)
        self.forget_input()
        self.tls_active = True
        self.user = None
        self._exchange = None

    def close(self, failure: MailFailure) -> None:
        """End the session from our side, deleting nothing; not amid a question."""
        if self._question is not None:
            raise RuntimeError(f"{self._question!r} has not been answered")
        if self.state is not State.CLOSED:
            self.end(from_failure(failure), failure.text)

    def _answer(self, *kinds: type) -> Any:
        """Close the open question, which must be one of *kinds*, and return it."""
        question = self._question
        if not isinstance(question, kinds):
            raise RuntimeError(f"the open question is {question!r}")
        self._question = None
        return question

    # ---- for the commands ----

    def send(self, data: bytes) -> None:
        """Owe *data* to the peer."""
        self._output.append(data)
        self._owed += len(data)

    def ok(self, text: str) -> None:
        """Answer a command."""
        self.send(positive(text))

    def lines(self, first: str, *lines: str) -> None:
        """Answer a command with a few *lines*, none of which begins with a dot."""
        self.ok(first)
        self.send("".join(f"{line}\r\n" for line in (*lines, ".")).encode("ascii"))

    def message(self, number: int, text: bytes) -> None:
        """Answer RETR by the *text* of message *number*: CRLF lines, not dot-stuffed."""
        self.send(octets_follow(self.maildrop.size(number)))
        self.send(dot_stuffed(text))
        self._retrieved.append(number)

    def no(self, text: str) -> None:
        """Refuse a command that is well-formed."""
        self.send(negative(text))

    def refuse(self, text: str) -> None:
        """Refuse a command that is malformed or out of order; too many end the session."""
        self.errors += 1
        if self.errors < self.settings.errors:
            self.no(text)
        else:
            self.end(negative("Too many malformed commands; connect again"), "too many errors")

    def ask(self, question: Event) -> None:
        """Put *question* to the owner of the session."""
        self._event = self._question = question

    def end(self, answer: bytes, reason: str, *, asked: bool = False) -> None:
        """Send *answer* and close."""
        self.send(answer)
        self.state = State.CLOSED
        self.forget_input()
        self._event = Closed(reason, asked)

    def forget_input(self) -> None:
        """Drop what was received and not looked at."""
        self._input.clear()

    def authenticate(self, mechanism: bytes, initial: bytes | None) -> None:
        """Begin an AUTH exchange."""
        assert self.sasl is not None
        self._exchange = Exchange(self.sasl())
        self._step(self._exchange.start(mechanism, initial))

    def _step(self, step: Step) -> None:
        """Do what the AUTH exchange asks for (RFC 5034 §4)."""
        if isinstance(step, Challenge):
            self.send(b"+ " + step.line + b"\r\n")
        elif isinstance(step, Lookup | LogIn):
            self.ask(step)
        elif isinstance(step, Failed) and step.username:
            self._exchange = None
            self.ask(Guessed(step.username))
        elif isinstance(step, Failed) and step.kind is Kind.WRONG:
            self._failed_login(WRONG_LOGIN)
        else:
            # Only a login succeeds, which its owner answers.
            assert isinstance(step, Failed)
            self._exchange = None
            self.refuse(_FAILED[step.kind])

    def _read_command(self) -> bool:
        """Act on one command line; False when none is complete."""
        try:
            line = self._input.line()
        except LineTooLong:
            self._exchange = None
            self.refuse("Line too long")
            return True
        if line is None:
            return False
        self.commands += 1
        if self._exchange is not None:
            self._step(self._exchange.receive(line))
            return True
        if len(line) + 2 > self.settings.command_octets and line[:5].upper() != b"AUTH ":
            self.refuse("Line too long")
            return True
        if _CONTROL.search(line):
            self.refuse("Control character in the command; only CRLF ends a line")
            return True
        # bytes.upper() changes ASCII letters only, so no look-alike passes for a letter.
        word, _, argument = line.partition(b" ")
        command = COMMANDS.get(word.upper())
        if command is None and word in _HTTP:
            self.end(negative("This is POP3, not HTTP"), "HTTP request")
        elif command is None:
            self.refuse("Unknown command")
        elif self.state not in command.legal:
            self.refuse(OUT_OF_ORDER[self.state])
        else:
            try:
                arguments = command.parse(argument)
            except grammar.Malformed:
                self.refuse(f"Syntax: {command.syntax}")
            else:
                command.act(self, *arguments)
        return True
