"""The client's side of POP3 as a state machine without I/O (RFC 1939, 2449, 2595, 5034).

The twin of :class:`mailsvc.pop3.session.Session`, made as
:class:`mailsvc.smtp.sending.SendingSession` is: commands are queued by :meth:`say`, go out one at a
time or, where the server offers PIPELINING (RFC 2449 §6.6), together; events come back in order.
The text of RETR comes block by block, dots unstuffed, so that memory stays flat; other multi-line
answers come whole, up to :data:`ANSWER_OCTETS`.

What is no POP3, and anything in the clear behind the answer to STLS, ends the session.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from mailsvc.sasl.client import Abandoned, ClientExchange
from mailsvc.wire import DotReader, LineReader, LineTooLong

#: The longest status line, and the longest list (a million unique-ids).
LINE_OCTETS = 16_384
ANSWER_OCTETS = 128 * 1024 * 1024

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
_CODE = re.compile(r"\[([A-Za-z0-9/_-]+)\]\s*")


class BadCommand(ValueError):
    """Something that cannot be said: it holds a line end, or NUL."""


class FetchFailure(Exception):
    """Mail could not be fetched.

    :ivar kind: "refused", "login", "tls", "protocol", "lost", "time", "connect".
    :ivar temporary: whether it may work later.
    :ivar reason: what is wrong with the server's certificate, in a word of RFC 8460 §4.3, or "".
    """

    def __init__(self, text: str, kind: str, *, temporary: bool = True, reason: str = "") -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text
        self.kind = kind
        self.temporary = temporary


@dataclass(slots=True, eq=False)
class Request:
    """A command under way.

    :ivar shown: what a log may show of it.
    :ivar lines: whether a positive answer has text behind it; "stream" to get it in blocks.
    """

    wire: bytes
    shown: str
    lines: bool | str = False
    ends_group: bool = False
    exchange: ClientExchange | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server answered.

    :ivar code: a response code (RFC 2449 §8) in capitals, such as "IN-USE", or "".
    :ivar body: the text of a multi-line answer, its lines ending in CRLF; empty if streamed.
    """

    ok: bool
    text: str
    code: str = ""
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answered:
    request: Request
    answer: Answer


@dataclass(frozen=True, slots=True)
class Block:
    """A block of what RETR gives."""

    request: Request
    data: bytes


@dataclass(frozen=True, slots=True)
class Unanswered:
    request: Request
    failure: FetchFailure


@dataclass(frozen=True, slots=True)
class Over:
    """The connection is of no use any more: hang up."""

    failure: FetchFailure


Event = Answered | Block | Unanswered | Over


class FetchingSession:
    """One connection, seen from the client.

    :param transcript: told of each line: whether it is ours, and what may be shown of it.
    :ivar opening: stands for the greeting.
    :ivar capabilities: what CAPA said, keyword -> parameters.
    """

    def __init__(self, transcript: Callable[[bool, str], None] | None = None) -> None:
        self.opening = Request(b"", "", ends_group=True)
        self.capabilities: dict[str, str] = {}
        self.ended: FetchFailure | None = None
        self._transcript = transcript or (lambda sent, line: None)
        self._input = LineReader(LINE_OCTETS)
        self._output: list[bytes] = []
        self._queue: deque[Request] = deque()
        self._awaited: deque[Request] = deque([self.opening])
        self._events: deque[Event] = deque()
        #: The multi-line answer that is being read.
        self._text: DotReader | None = None
        self._status = Answer(True, "")
        self._blocks: list[bytes] = []
        self._octets = 0

    # ---- in and out ----

    def receive(self, data: bytes) -> None:
        """Take octets from the server; after the end they are ignored."""
        if self.ended is None:
            self._input.feed(data)

    def data_to_send(self) -> bytes:
        """The octets owed to the server, which are thereby forgotten here."""
        output = b"".join(self._output)
        self._output.clear()
        return output

    def next_event(self) -> Event | None:
        """The next event, or None when more input is needed."""
        while not self._events:
            if self.ended is not None or not len(self._input):
                return None
            if self._text is not None:
                self._read_text(self._text)
            elif not self._read_status():
                return None
        return self._events.popleft()

    @property
    def awaiting(self) -> Request | None:
        """What the server owes an answer to."""
        return self._awaited[0] if self._awaited else None

    def end(self, failure: FetchFailure) -> None:
        """Give up: every open command fails with *failure*."""
        if self.ended is not None:
            return
        self.ended = failure
        self._events.extend(Unanswered(each, failure) for each in (*self._awaited, *self._queue))
        self._events.append(Over(failure))
        self._awaited.clear()
        self._queue.clear()
        self._output.clear()

    # ---- commands ----

    def say(self, line: str, *, shown: str = "", lines: bool | str = False,
            ends_group: bool = False) -> Request:
        """Queue a command.

        :raises BadCommand: it would be more than one line.
        """
        if set(line) & {"\r", "\n", "\0"}:
            raise BadCommand(f"{shown or line!r} holds a line end or NUL; leave it out")
        return self._put(Request(line.encode() + b"\r\n", shown or line, lines, ends_group))

    def authenticate(self, exchange: ClientExchange) -> Request:
        """AUTH (RFC 5034), and whatever the exchange takes."""
        line = shown = f"AUTH {exchange.mechanism}"
        initial = exchange.initial_response
        # RFC 5034 §4: 255 octets for the command.
        if initial is not None and len(line) + len(initial) + 3 <= 255:
            line, shown = f"{line} {initial}", f"{line} ********"
            exchange.initial_sent()
        return self._put(Request(line.encode() + b"\r\n", shown, ends_group=True,
                                 exchange=exchange))

    def clear_in_buffer(self) -> bool:
        """Whether something came in the clear that nobody asked for, before TLS."""
        return bool(len(self._input))

    def _put(self, request: Request) -> Request:
        if self.ended is not None:
            self._events.append(Unanswered(request, self.ended))
        else:
            self._queue.append(request)
            self._release()
        return request

    def _release(self) -> None:
        while self._queue and not (self._awaited and (
                self._awaited[-1].ends_group or "PIPELINING" not in self.capabilities)):
            request = self._queue.popleft()
            self._awaited.append(request)
            self._output.append(request.wire)
            self._transcript(True, request.shown)

    # ---- answers ----

    def _broken(self, text: str) -> None:
        self.end(FetchFailure(text, "protocol"))

    def _read_status(self) -> bool:
        try:
            line = self._input.line()
        except LineTooLong:
            self._broken("the server sent a line without end")
            return True
        if line is None:
            return False
        text = _CONTROL.sub("?", line.decode("utf-8", "replace"))
        self._transcript(False, text)
        if not self._awaited:
            self._broken(f"the server spoke out of turn: {text[:200]}")
            return True
        request = self._awaited[0]
        if text == "+" or text.startswith("+ "):
            if request.exchange is None:
                self._broken("the server asked for more where nothing is")
            else:
                self._respond(request.exchange, text[2:])
            return True
        word, _, rest = text.partition(" ")
        if word not in ("+OK", "-ERR"):
            self._broken(f"the server does not speak POP3: {text[:60]!r}")
            return True
        code = _CODE.match(rest)
        answer = Answer(word == "+OK", rest[code.end():] if code else rest,
                        code[1].upper() if code else "")
        if answer.ok and request.lines:
            self._status, self._text = answer, DotReader()
            self._blocks, self._octets = [], 0
        elif self._prove(request, answer):
            self._answered(request, answer)
        return True

    def _read_text(self, text: DotReader) -> None:
        request = self._awaited[0]
        block = text.feed(self._input.take())
        self._octets += len(block)
        if request.lines == "stream":
            if block:
                self._events.append(Block(request, block))
        elif self._octets > ANSWER_OCTETS:
            self._broken("the server's answer has no end")
            return
        elif block:
            self._blocks.append(block)
        if text.rest is not None:
            self._input.unread(text.rest)
            self._text = None
            body, self._blocks = b"".join(self._blocks), []
            self._answered(request, Answer(True, self._status.text, self._status.code, body))

    def _answered(self, request: Request, answer: Answer) -> None:
        self._awaited.popleft()
        self._events.append(Answered(request, answer))
        self._release()

    def _respond(self, exchange: ClientExchange, challenge: str) -> None:
        if exchange.abandoned:
            # Nor would a second "*" make it stop.
            self.end(FetchFailure("the server asks on although the login was called off: "
                                  + exchange.abandoned, "login", temporary=False))
            return
        try:
            response = exchange.respond(challenge)
        except Abandoned as why:
            exchange.abandoned = str(why)
            response = "*"
        self._output.append(response.encode() + b"\r\n")
        self._transcript(True, "********" if response else "")

    def _prove(self, request: Request, answer: Answer) -> bool:
        """Whether *answer* may be taken as the end of its exchange."""
        exchange = request.exchange
        if exchange is None:
            return True
        try:
            if exchange.abandoned:
                raise Abandoned(exchange.abandoned)
            if answer.ok:
                exchange.succeeded()
        except Abandoned as why:
            self.end(FetchFailure(str(why), "login", temporary=False))
            return False
        return True
