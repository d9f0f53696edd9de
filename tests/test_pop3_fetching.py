"""The client's side of POP3 without I/O: scripts of ``tests/dialogues/fetching``, answers cut
anywhere, and servers that misbehave."""

from __future__ import annotations

import pytest

from mailsvc.pop3 import fetching
from mailsvc.pop3.fetching import (
    Answer,
    Answered,
    BadCommand,
    Block,
    Event,
    FetchFailure,
    FetchingSession,
    Over,
    Request,
    Unanswered,
)
from tests.dialogue import CUTS, Cut, scripts
from tests.play import Play

SCRIPTS = {path.stem: path for path in scripts("fetching")}

every_cut = pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)


def words(event: Event) -> str:
    """*event* as ``E:`` lines have it."""
    match event:
        case Answered(request, answer):
            code = f" ({answer.code})" if answer.code else ""
            body = ", " + " ".join(answer.body.decode().split("\r\n")) if answer.body else ""
            return (f"{request.shown or 'greeting'} {'+OK' if answer.ok else '-ERR'}{code} "
                    f"{answer.text}{body}").rstrip()
        case Block(request, data):
            return f"{request.shown} block {data!r}"
        case Unanswered(request, failure):
            return f"{request.shown} unanswered {failure.text}"
        case Over(failure):
            return f"over {failure.kind} {failure.text}"


@every_cut
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_dialogue(name: str, cut: Cut) -> None:
    Play(SCRIPTS[name], cut, FetchingSession(), words).run()


class Line:
    """A session, and what came of it."""

    def __init__(self, *capabilities: str) -> None:
        self.session = FetchingSession()
        self.answers: dict[Request, Answer] = {}
        self.blocks: dict[Request, bytes] = {}
        self.failed: list[Request] = []
        self.over: str | None = None
        self.session.capabilities = dict.fromkeys(capabilities, "")

    def hear(self, data: bytes, cut: Cut = CUTS["whole"]) -> None:
        for piece in cut(data):
            self.session.receive(piece)
            while (event := self.session.next_event()) is not None:
                match event:
                    case Answered(request, answer):
                        self.answers[request] = answer
                    case Block(request, data):
                        self.blocks[request] = self.blocks.get(request, b"") + data
                    case Unanswered(request, _):
                        self.failed.append(request)
                    case Over(failure):
                        self.over = failure.kind


@every_cut
def test_texts_come_unstuffed_and_in_order(cut: Cut) -> None:
    line = Line("PIPELINING")
    line.hear(b"+OK hello\r\n", cut)
    listed = line.session.say("UIDL", lines=True)
    first = line.session.say("RETR 1", lines="stream")
    second = line.session.say("RETR 2", lines="stream")
    third = line.session.say("RETR 3", lines="stream")
    assert line.session.data_to_send() == b"UIDL\r\nRETR 1\r\nRETR 2\r\nRETR 3\r\n"
    line.hear(b"+OK\r\n1 a\r\n2 b\r\n.\r\n+OK 5 octets\r\n..\r\n...x\r\n\r\n.\r\n"
              b"-ERR [SYS/TEMP] gone\r\n+OK\r\n.\r\n", cut)
    assert line.answers[listed].body == b"1 a\r\n2 b\r\n"
    assert line.blocks == {first: b".\r\n..x\r\n\r\n"}
    assert line.answers[second] == Answer(False, "gone", "SYS/TEMP")
    assert line.answers[third].ok and line.over is None


def test_without_pipelining_one_at_a_time() -> None:
    line = Line()
    noop = line.session.say("NOOP")
    line.session.say("STAT")
    assert line.session.data_to_send() == b""
    line.hear(b"+OK hello\r\n")
    assert line.session.data_to_send() == b"NOOP\r\n"
    line.hear(b"+OK\r\n")
    assert line.session.data_to_send() == b"STAT\r\n" and line.answers[noop].ok


@every_cut
@pytest.mark.parametrize("said", [
    b"220 mx ESMTP\r\n", b"+OKAY\r\n", b"+ \r\n", b"\r\n", b"+OK hi\r\n+OK again\r\n",
    b"+OK " + b"x" * 20_000 + b"\r\n", b"HTTP/1.1 400 Bad\r\n"])
def test_what_is_no_pop3_ends_the_session(said: bytes, cut: Cut) -> None:
    line = Line()
    line.hear(said, cut)
    assert line.over == "protocol"
    assert line.session.say("NOOP") is not None
    line.hear(b"")
    assert line.session.data_to_send() == b""


@pytest.mark.parametrize("bad", ["USER a\r\nDELE 1", "NOOP\n", "PASS \0"])
def test_no_argument_becomes_a_command(bad: str) -> None:
    line = Line()
    line.hear(b"+OK\r\n")
    with pytest.raises(BadCommand):
        line.session.say(bad)
    assert line.session.data_to_send() == b""


def test_an_answer_without_end_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "ANSWER_OCTETS", 100)
    line = Line()
    line.hear(b"+OK\r\n")
    listed = line.session.say("UIDL", lines=True)
    line.hear(b"+OK\r\n" + b"1 a\r\n" * 20)
    assert line.over is None
    line.hear(b"1 a\r\n")
    assert line.over == "protocol" and line.failed == [listed]


def test_a_message_may_be_as_long_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "ANSWER_OCTETS", 100)
    line = Line()
    line.hear(b"+OK\r\n")
    message = line.session.say("RETR 1", lines="stream")
    line.hear(b"+OK\r\n" + b"x\r\n" * 100)
    line.hear(b".\r\n")
    assert line.blocks[message] == b"x\r\n" * 100 and line.answers[message].body == b""


def test_what_came_before_tls_is_seen() -> None:
    """The owner, who starts TLS, must not take it for the server's within TLS."""
    line = Line()
    line.hear(b"+OK\r\n")
    line.session.say("STLS", ends_group=True)
    line.session.receive(b"+OK\r\n+OK ")
    assert isinstance(line.session.next_event(), Answered)
    assert line.session.clear_in_buffer()
    line = Line()
    line.hear(b"+OK\r\n")
    line.session.say("STLS", ends_group=True)
    line.hear(b"+OK\r\n")
    assert not line.session.clear_in_buffer()


def test_a_session_ends_once() -> None:
    line = Line()
    line.hear(b"+OK\r\n")
    assert line.session.awaiting is None
    noop = line.session.say("NOOP")
    assert line.session.awaiting is noop
    first = FetchFailure("the server closed the connection", "lost")
    line.session.end(first)
    line.session.end(FetchFailure("we closed the connection", "time"))
    line.hear(b"+OK\r\n")
    assert (line.over, line.failed, line.answers.get(noop)) == ("lost", [noop], None)
    assert line.session.ended is first and line.session.awaiting is None
