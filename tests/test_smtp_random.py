"""SMTP sessions under random input: always sound, and always what a naive model says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.logger import capturedLogs, formatEvent

from mailsvc.errors import StorageFull
from mailsvc.smtp import replies
from mailsvc.smtp.commands import COMMANDS
from mailsvc.smtp.dialogue import CLOSED, RCPT
from mailsvc.smtp.events import Aborted, DataBegins, Event, MessageBlock, MessageEnds, RcptTo
from mailsvc.smtp.replies import Reply
from tests.postoffice import Line
from tests.smtp_talk import BUSY, HELO, NO, RECIPIENT, SENDER, Talk, last, talk_in

_LINE = re.compile(rb"([2-5][0-5][0-9])([ -])(?:([245])\.[0-9]{1,3}\.[0-9]{1,3} )?[\x20-\x7e]*")


def replies_in(data: bytes) -> Iterator[int]:
    """The codes of the replies in *data*, each reply found well formed."""
    *lines, rest = data.split(b"\r\n")
    assert not rest
    open_code = None
    for line in lines:
        match = _LINE.fullmatch(line)
        assert match and len(line) <= 510, line
        code, mark, status = match.groups()
        assert open_code in (None, code)
        # RFC 2034 §4: the class of the status is that of the code.
        assert status in (None, code[:1])
        assert status or code in (b"220", b"250", b"354"), line
        open_code = code if mark == b"-" else None
        if mark == b" ":
            yield int(code)
    assert open_code is None


def cut_at(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return (data[a:b] for a, b in pairwise(places))


_TEXT = st.binary(max_size=40).map(lambda text: text.replace(b"\r\n", b"\r"))
_ANY_LINE = st.one_of(
    _TEXT,
    st.builds(lambda verb, text: verb + b" " + text,
              st.sampled_from(sorted(set(COMMANDS) - {b"QUIT", b"BDAT", b"STARTTLS"})), _TEXT),
    st.builds(lambda verb, path, tail: verb + b":<" + path + b">" + tail,
              st.sampled_from([b"MAIL FROM", b"RCPT TO"]), _TEXT, _TEXT),
    st.sampled_from([b"HELO a.example", b"EHLO a.example", b"MAIL FROM:<>", b"DATA",
                     b"MAIL FROM:<a@example.net> SIZE=1 BODY=7BIT"]),
)


@given(st.lists(_ANY_LINE, max_size=30), st.lists(st.integers(0, 5000), max_size=8))
@example([b"GET / HTTP/1.1"], [])
@settings(deadline=None)
def test_every_line_gets_one_reply(lines: list[bytes], cuts: list[int]) -> None:
    # A CR at the end of one line would make the CRLF that parts it from the next part of it.
    stream = b"".join(line.rstrip(b"\r") + b"\r\n" for line in lines)
    if stream.startswith(b"\x16"):
        stream = b" " + stream
    talk = Talk(errors=10_000, idle_commands=10_000)
    # So that no line is ever the text of a message.
    talk.answers[RcptTo] = NO
    said = b"".join(talk.say(piece) for piece in cut_at(stream, cuts))
    count = len(list(replies_in(said)))
    closed = talk.session.phase is CLOSED
    assert closed == (last(replies.NOT_HTTP) in said)
    assert closed or count == len(lines)


@given(st.lists(st.binary(max_size=300), max_size=20))
@example([b"\x16"])
@settings(deadline=None)
def test_no_octets_whatever_raise(pieces: list[bytes]) -> None:
    talk = talk_in(RCPT, errors=10_000)
    list(replies_in(b"".join(talk.say(piece) for piece in pieces)))
    talk = Talk(errors=10_000)
    list(replies_in(b"".join(talk.say(piece) for piece in pieces)))


class Model:
    """What a session does, written a line at a time and without a thought for speed or blocks.

    :ivar codes: of the replies.
    :ivar messages: the texts that were accepted.
    """

    def __init__(self, stream: bytes, *, errors: int, idle: int, recipients: int,
                 messages: int) -> None:
        self.phase = "start"
        self.codes: list[int] = []
        self.messages: list[bytes] = []
        self._stream = stream
        self._limits = (errors, idle, recipients, messages)
        self._errors = self._idle = self._recipients = 0
        self._refused = False
        self._chunks: bytes | None = None
        while self.phase != "closed" and b"\r\n" in self._stream:
            self._command(self._line())

    def _line(self) -> bytes:
        line, _, self._stream = self._stream.partition(b"\r\n")
        return line

    def _say(self, code: int) -> None:
        self.codes.append(code)
        if code in (221, 421):
            self.phase = "closed"

    def _refuse(self, code: int) -> None:
        self._say(code)
        self._errors += 1
        if self._errors == self._limits[0]:
            self._say(421)

    def _reset(self) -> None:
        if self.phase not in ("start", "closed"):
            self.phase = "ready"
        self._recipients, self._refused, self._chunks = 0, False, None

    def _message(self, text: bytes) -> None:
        self._reset()
        if text.count(b"\r\n") != text.count(b"\n"):
            self._refuse(550)
            return
        self.messages.append(text)
        self._errors = self._idle = 0
        self._say(250)

    def _command(self, line: bytes) -> None:
        verb, _, rest = line.partition(b" ")
        if verb in (b"HELO", b"EHLO", b"NOOP", b"RSET", b"VRFY"):
            self._idle += 1
            if self._idle > self._limits[1]:
                self._say(421)
                return
        if verb in (b"HELO", b"EHLO") and rest == b"?":
            self._refuse(501)
        elif verb in (b"HELO", b"EHLO"):
            self._reset()
            self.phase = "ready"
            self._say(250)
        elif verb == b"NOOP":
            self._say(250)
        elif verb == b"RSET":
            self._reset()
            self._say(250)
        elif verb == b"VRFY":
            self._say(252)
        elif verb == b"QUIT":
            self._say(221)
        elif verb == b"MAIL" and self.phase == "ready":
            self._mail()
        elif verb == b"RCPT" and self.phase in ("mail", "rcpt"):
            self._rcpt(rest)
        elif verb == b"DATA":
            self._data()
        elif verb == b"BDAT":
            self._bdat(rest)
        else:
            self._refuse(503 if verb in (b"MAIL", b"RCPT") else 500)

    def _mail(self) -> None:
        if len(self.messages) >= self._limits[3]:
            self._say(421)
        else:
            self.phase = "mail"
            self._say(250)

    def _rcpt(self, rest: bytes) -> None:
        if self._recipients == self._limits[2]:
            self._say(452)
        elif b"<no@" in rest:
            self._refused = True
            self._refuse(550)
        elif b"<busy@" in rest:
            self._refused = True
            self._say(450)
        else:
            self.phase = "rcpt"
            self._recipients += 1
            self._say(250)

    def _data(self) -> None:
        if self.phase == "rcpt":
            self._say(354)
            text = b""
            while True:
                if b"\r\n" not in self._stream:
                    self._stream = b""
                    return
                line = self._line()
                if line == b".":
                    break
                text += line.removeprefix(b".") + b"\r\n"
            self._message(text)
        else:
            self._refuse(554 if self.phase == "mail" and self._refused else 503)

    def _bdat(self, rest: bytes) -> None:
        count, _, last = rest.partition(b" ")
        octets, self._stream = self._stream[:int(count)], self._stream[int(count):]
        if len(octets) < int(count):
            # The chunk has not come whole, and neither has the reply to it.
            return
        if self.phase not in ("rcpt", "chunks"):
            self._refuse(554 if self.phase == "mail" and self._refused else 503)
            return
        self.phase = "chunks"
        self._chunks = (self._chunks or b"") + octets
        if last:
            self._message(self._chunks + (b"" if self._chunks.endswith(b"\r\n")
                                          or not self._chunks else b"\r\n"))
        elif self._chunks.count(b"\r\n") != self._chunks.count(b"\n"):
            self._reset()
            self._refuse(550)
        else:
            self._say(250)


_BODY = st.lists(st.sampled_from([b"text", b"..", b".x", b"", b"NOOP", b"RSET", b"QUIT", b"a\nb"]),
                 max_size=3).map(lambda lines: b"".join(line + b"\r\n" for line in lines))
_STEP = st.one_of(
    st.sampled_from([
        HELO, b"EHLO a.example\r\n", b"EHLO ?\r\n", SENDER, SENDER, RECIPIENT, RECIPIENT, RECIPIENT,
        b"RCPT TO:<no@example.org>\r\n", b"RCPT TO:<busy@example.org>\r\n", b"RSET\r\n",
        b"NOOP\r\n", b"WHAT\r\n", b"VRFY a\r\n", b"QUIT\r\n",
        HELO + SENDER, SENDER + RECIPIENT, HELO + SENDER + RECIPIENT,
    ]),
    _BODY.map(lambda body: b"DATA\r\n" + body + b".\r\n"),
    st.builds(lambda body, last: b"BDAT %d%b\r\n" % (len(body), last) + body,
              st.one_of(_BODY, _BODY.map(lambda body: body + b"end")),
              st.sampled_from([b"", b" LAST"])),
)


@given(st.lists(_STEP, max_size=25), st.lists(st.integers(0, 5000), max_size=8))
@example([HELO + SENDER + RECIPIENT, b"BDAT 3\r\nx\r\n", b"VRFY a\r\n"], [])
@settings(deadline=None, max_examples=400)
def test_the_session_does_what_the_model_does(steps: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(steps)
    model = Model(stream, errors=6, idle=8, recipients=2, messages=3)
    talk = Talk(errors=6, idle_commands=8, recipients=2, messages=3)
    assert talk.session.data_to_send() == b""
    refuse_some(talk)
    said = b"".join(talk.say(piece) for piece in cut_at(stream, cuts))
    assert list(replies_in(said)) == model.codes
    assert talk.session.phase == model.phase
    assert accepted_texts(talk.events) == model.messages


def refuse_some(talk: Talk) -> None:
    """Make the owner refuse the recipients no and busy."""
    yes = talk.yes

    def answer(event: Event) -> Reply:
        if isinstance(event, RcptTo) and event.forward_path.local_part in ("no", "busy"):
            return NO if event.forward_path.local_part == "no" else BUSY
        return yes(event)

    talk.yes = answer  # type: ignore[method-assign]


def accepted_texts(events: list[Event]) -> list[bytes]:
    """The texts that the events handed over whole."""
    texts, text = [], b""
    for event in events:
        match event:
            case DataBegins() | Aborted():
                text = b""
            case MessageBlock(data):
                text += data
            case MessageEnds(size):
                assert len(text) == size
                texts.append(text)
    return texts


# ---- the adaptor, in all weathers ----------------------------------------------------------------

_KINDS = ("route", "room", "verify", "expand", "write", "commit")
_FAULT = StorageFull("The disk is full; try again later")
_WEATHER = st.one_of(
    st.tuples(st.just("say"),
              _STEP | st.sampled_from([b"NO", b"DATA\r\n", b"x\r\n", b"\r\n.\r\n"])),
    st.tuples(st.just("release"), st.none()),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 9.9, 10, 170, 200, 300, 4000])),
    st.tuples(st.sampled_from(["pause", "resume", "finish"]), st.none()),
    st.tuples(st.sampled_from(["late", "prompt", "spoil", "mend"]), st.sampled_from(_KINDS)),
)


def brave(one: Line, action: str, what: Any) -> None:
    """Let one thing happen to a connection, if it can."""
    match action:
        case "say":
            one.say(what)
        case "release" if one.answers.held:
            one.release()
        case "wait":
            one.clock.advance(what)
        case "pause" | "resume" if one.transport.producer is not None:
            getattr(one.protocol, action + "Producing")()
            one.flow()
        case "finish":
            one.protocol.finish()
        case "late":
            one.answers.late.add(what)
        case "prompt":
            one.answers.late.discard(what)
        case "spoil":
            one.answers.spoilt[what] = _FAULT
        case "mend":
            one.answers.spoilt.pop(what, None)


@given(st.lists(_WEATHER, max_size=40))
@example([("late", "write"), ("say", HELO + SENDER + RECIPIENT + b"DATA\r\n"), ("release", None),
          ("say", b"x\r\n.\r\n"), ("pause", None), ("release", None), ("wait", 4000)])
@settings(deadline=None, max_examples=300)
def test_the_adaptor_weathers_it(actions: list[tuple[str, Any]]) -> None:
    with capturedLogs() as events:
        one = Line(errors=6, idle_commands=8, disclose_mailboxes=True)
        for action, what in actions:
            brave(one, action, what)
            if one.transport.disconnected:
                break
        said = one.heard()
        one.hang_up()
        one.release_all()
        one.clock.advance(10_000)
    list(replies_in(said))
    assert one.heard() == said, "something was said to a lost connection"
    outcomes = {delivery.id: delivery.outcome for delivery in one.store.deliveries}
    assert set(outcomes.values()) <= {"committed", "failed", "aborted"}
    # Each message has one line in the log, and no 250 unless it was taken.
    words = {"committed": "accepted", "failed": "not", "aborted": "dropped"}
    logged = [(event["id"], formatEvent(event).split()[1]) for event in events]
    assert sorted(line for line in logged if line[1] != "refused") == sorted(
        (id, words[outcome]) for id, outcome in outcomes.items())
    for id, outcome in outcomes.items():
        if f"Message accepted as {id}\r\n".encode() in said:
            assert outcome == "committed"
