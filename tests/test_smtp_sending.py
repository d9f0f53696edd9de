r"""The sending side of SMTP without I/O: scripts of ``tests/dialogues/sending``, cut anywhere.

Beside ``S:``, ``S<``, ``C:``, ``C<`` and ``=`` lines, as in :mod:`tests.dialogue` with the roles
turned round, a script has what the owner does (``> method argument keyword=value``) and the events
that it gets (``E:``, ``*`` for any text).
"""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Any

import pytest

from mailsvc.errors import EnhancedStatus
from mailsvc.mail import Address
from mailsvc.smtp.failures import BadArgument, BadMessage, NotOffered, SendingFailure, said
from mailsvc.smtp.requests import ContentWanted, Ended, Event, Failed, Replied, TLSWanted
from mailsvc.smtp.sending import SendingSession
from tests.dialogue import CUTS, Cut, _octets, scripts

SCRIPTS = {path.stem: path for path in scripts("sending")}


class Play:
    """A session in a script."""

    def __init__(self, path: Path, cut: Cut) -> None:
        self.lines = [line for line in path.read_text().splitlines()
                      if line and not line.startswith("#")]
        self.cut = CUTS["whole"] if "= whole yes" in self.lines else cut
        self.session = SendingSession(lmtp="= lmtp yes" in self.lines)
        self.sent = b""
        self.events: list[str] = []
        self.unsaid = b""

    def run(self) -> None:
        for line in self.lines:
            mark, text = line[:2], line[2:].removeprefix(" ")
            if mark in ("S:", "S<"):
                self.unsaid += _octets(text) + (b"\r\n" if mark == "S:" else b"")
                continue
            self.say()
            if mark == "> ":
                self.act(text)
            elif mark in ("C:", "C<"):
                self.expect(_octets(text) + (b"\r\n" if mark == "C:" else b""), line)
            elif mark == "E:":
                assert self.events, f"no event for {line!r}"
                event = self.events.pop(0)
                assert fnmatch.fnmatchcase(event, text), f"{event!r} is not {text!r}"
            else:
                assert mark == "= ", line
        self.say()
        assert self.events == []
        assert self.sent.strip(b"\r\n") == b""

    def say(self) -> None:
        data, self.unsaid = self.unsaid, b""
        for piece in self.cut(data):
            self.session.receive(piece)
            self.look()

    def act(self, text: str) -> None:
        name, *words = text.split(" ")
        arguments: list[Any] = []
        options: dict[str, Any] = {}
        for word in words:
            key, equals, value = word.partition("=")
            if equals:
                options[key] = int(value)
            elif word == "last":
                options["last"] = True
            else:
                arguments.append(_octets(word) if name in ("content", "bdat") else word)
        getattr(self.session, name)(*arguments, **options)
        self.look()

    def look(self) -> None:
        while (event := self.session.next_event()) is not None:
            self.events.append(words(event))
        self.sent += self.session.data_to_send()

    def expect(self, wanted: bytes, line: str) -> None:
        assert self.sent.startswith(wanted), f"{line!r}: sent was {self.sent!r}"
        self.sent = self.sent[len(wanted):]


def words(event: Event) -> str:
    match event:
        case Replied(command, reply, more):
            return f"{command.stage} {said(reply)}{' more' if more else ''}"
        case Failed(command, failure):
            assert failure.stage is command.stage
            return f"{command.stage} failed {failure_words(failure)}"
        case ContentWanted():
            return "content wanted"
        case TLSWanted():
            return "tls wanted"
        case Ended(failure):
            return f"ended {failure_words(failure)}"


def failure_words(failure: SendingFailure) -> str:
    return f"{type(failure).__name__} {'in flight ' if failure.in_flight else ''}{failure.text}"


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_a_dialogue(name: str, cut: Cut) -> None:
    Play(SCRIPTS[name], cut).run()


# ---- what cannot be said -------------------------------------------------------------------------


def greeted(*extensions: str) -> SendingSession:
    """A session after EHLO, with nothing more to send."""
    session = SendingSession()
    session.hello("client.example")
    lines = ["mx", *extensions]
    reply = "".join(f"250{' ' if n == len(lines) - 1 else '-'}{line}\r\n"
                    for n, line in enumerate(lines))
    session.receive(b"220 mx\r\n" + reply.encode())
    while session.next_event() is not None:
        pass
    session.data_to_send()
    return session


@pytest.mark.parametrize("bad", ["a\r\nb@example.com", "a@example.com\n", "a\0@example.com",
                                 "a@example.com> SIZE=1", "a b@example.com", "a@", "@b",
                                 Address("a", "b> X=1"), Address("a\r\nRSET\r\n", "b"),
                                 Address("a\x7f", "b")])
def test_no_address_leaves_its_path(bad: Address | str) -> None:
    session = greeted("SMTPUTF8")
    with pytest.raises(BadArgument):
        session.mail(bad)
    session.mail("")
    with pytest.raises(BadArgument):
        session.rcpt(bad)
    assert session.data_to_send() == b"MAIL FROM:<>\r\n"


@pytest.mark.parametrize("bad", ["x\r\nRSET", "x\n", "\0", "", " "])
def test_no_other_argument_holds_a_line_end(bad: str) -> None:
    session = greeted()
    for say in (session.hello, session.verify, session.expand):
        with pytest.raises(BadArgument):
            say(bad)
    assert session.data_to_send() == b""


@pytest.mark.parametrize("options", [
    {"body": "BINARYMIME X"}, {"ret": "FULL\r\n"}, {"ret": "half"}, {"envid": "a\r\nb"},
    {"envid": "é"}, {"envid": "x" * 101}, {"auth": Address("a\r\n", "b")}])
def test_no_parameter_of_mail_becomes_another(options: dict[str, Any]) -> None:
    session = greeted("8BITMIME", "DSN", "AUTH PLAIN")
    with pytest.raises(BadArgument):
        session.mail("a@example.com", **options)
    assert session.data_to_send() == b""


@pytest.mark.parametrize("options", [
    {"notify": ("NEVER", "FAILURE")}, {"notify": ("X",)}, {"notify": ("FAILURE", "FAILURE")},
    {"orcpt": "rfc822"}, {"orcpt": "rfc822;a\r\nb"}])
def test_no_parameter_of_rcpt_becomes_another(options: dict[str, Any]) -> None:
    session = greeted("DSN")
    session.mail("a@example.com")
    session.data_to_send()
    with pytest.raises(BadArgument):
        session.rcpt("b@example.com", **options)


def test_dsn_is_said_where_it_is_offered() -> None:
    for extensions, sender, recipient in (
            (("DSN", "PIPELINING"), b" RET=HDRS ENVID=a+2Bb", b" NOTIFY=FAILURE,DELAY "
             b"ORCPT=rfc822;x+2By@z"), (("PIPELINING",), b"", b"")):
        session = greeted(*extensions)
        session.mail("a@example.com", ret="HDRS", envid="a+b")
        session.rcpt("b@example.org", notify=("FAILURE", "DELAY"), orcpt="rfc822;x+y@z")
        assert session.data_to_send() == (
            b"MAIL FROM:<a@example.com>%s\r\nRCPT TO:<b@example.org>%s\r\n" % (sender, recipient))


@pytest.mark.parametrize(("extensions", "options", "status"), [
    ((), {"body": "8BITMIME"}, (5, 6, 3)),
    (("8BITMIME",), {"smtputf8": True}, (5, 6, 7)),
    (("REQUIRETLS",), {"requiretls": True}, (5, 7, 30)),
    (("SIZE 100",), {"size": 101}, (5, 3, 4)),
])
def test_what_is_not_offered_is_not_sent(extensions: tuple[str, ...], options: dict[str, Any],
                                         status: tuple[int, int, int]) -> None:
    session = greeted(*extensions)
    with pytest.raises(NotOffered) as caught:
        session.mail("a@example.com", **options)
    assert caught.value.status == EnhancedStatus(*status)
    assert session.data_to_send() == b""


def test_addresses_outside_ascii() -> None:
    session = greeted("PIPELINING")
    with pytest.raises(NotOffered):
        session.mail("jörg@example.com")
    # The domain alone can be written without SMTPUTF8.
    session.mail("a@bücher.example")
    assert session.data_to_send() == b"MAIL FROM:<a@xn--bcher-kva.example>\r\n"
    with pytest.raises(NotOffered):
        session.rcpt("jörg@example.com")
    session = greeted("PIPELINING", "SMTPUTF8")
    session.mail("jörg@bücher.example")
    assert session.data_to_send() == "MAIL FROM:<jörg@bücher.example> SMTPUTF8\r\n".encode()


# ---- content -------------------------------------------------------------------------------------


def asked_for_content(*extensions: str) -> SendingSession:
    session = greeted("PIPELINING", *extensions)
    session.mail("a@example.com")
    session.rcpt("b@example.org")
    session.data()
    session.receive(b"250 ok\r\n250 ok\r\n354 go\r\n")
    while session.next_event() is not None:
        pass
    session.data_to_send()
    return session


@pytest.mark.parametrize("message", [b"a\nb\r\n", b"a\rb\r\n", b"a\r\n.\n", b"a\r\n.\r", b"\n",
                                     b"a\r\r\n", b"a\r\n.\r\r\nMAIL FROM:<x@y>\r\n"])
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_a_bare_cr_or_lf_does_not_reach_the_wire(message: bytes, cut: Cut) -> None:
    session = asked_for_content()
    with pytest.raises(BadMessage):
        for piece in cut(message):
            session.content(piece)
        session.finish()
    sent = session.data_to_send()
    assert sent.count(b"\r\n") == sent.count(b"\n") and b"\r\n.\r\n" not in sent


def test_bdat_is_held_to_the_same() -> None:
    session = greeted("CHUNKING", "PIPELINING")
    session.mail("a@example.com")
    session.data_to_send()
    session.bdat(b"a\r")
    session.bdat(b"\nb\r\n")
    with pytest.raises(BadMessage):
        session.bdat(b"c\nd", last=True)
    assert session.data_to_send() == b"BDAT 2\r\na\rBDAT 4\r\n\nb\r\n"


def test_eight_bits_go_out_only_where_they_may() -> None:
    with pytest.raises(NotOffered):
        asked_for_content().content("é\r\n".encode())
    session = asked_for_content("8BITMIME")
    session.content("é\r\n".encode())
    session.finish()
    assert session.data_to_send() == "é\r\n.\r\n".encode()
