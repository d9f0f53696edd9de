"""The sending side of SMTP without I/O: scripts of ``tests/dialogues/sending``, cut anywhere."""

from __future__ import annotations

from typing import Any

import pytest

from mailsvc.errors import EnhancedStatus
from mailsvc.mail import Address, DeliverBy
from mailsvc.smtp.failures import BadArgument, BadMessage, NotOffered, SendingFailure, said
from mailsvc.smtp.requests import (
    ContentWanted,
    Ended,
    Event,
    Failed,
    Parameters,
    Replied,
    TLSWanted,
)
from mailsvc.smtp.sending import SendingSession
from tests.dialogue import CUTS, Cut, scripts
from tests.play import Play, lines_of

SCRIPTS = {path.stem: path for path in scripts("sending")}


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
    session = SendingSession(lmtp="= lmtp yes" in lines_of(SCRIPTS[name]))
    Play(SCRIPTS[name], cut, session, words).run()


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


@pytest.mark.parametrize("bad", ["x\r\nRSET", "x\n", "\0", "", " ", "\ud800"])
def test_no_other_argument_holds_a_line_end(bad: str) -> None:
    session = greeted()
    for say in (session.hello, session.verify, session.expand):
        with pytest.raises(BadArgument):
            say(bad)
    assert session.data_to_send() == b""


@pytest.mark.parametrize("options", [
    {"body": "BINARYMIME X"}, {"ret": "FULL\r\n"}, {"ret": "half"}, {"envid": "a\r\nb"},
    {"envid": "é"}, {"envid": "x" * 101}, {"auth": Address("a\r\n", "b")},
    {"by": DeliverBy(1, "R\r\n")}, {"by": DeliverBy(10 ** 9, "N")}, {"priority": 10},
    {"hold_for": -1}, {"hold_for": 10 ** 9}])
def test_no_parameter_of_mail_becomes_another(options: dict[str, Any]) -> None:
    session = greeted("8BITMIME", "DSN", "AUTH PLAIN", "DELIVERBY", "MT-PRIORITY", "FUTURERELEASE")
    with pytest.raises(BadArgument):
        session.mail("a@example.com", Parameters(**options))
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
        session.mail("a@example.com", Parameters(ret="HDRS", envid="a+b"))
        session.rcpt("b@example.org", notify=("FAILURE", "DELAY"), orcpt="rfc822;x+y@z")
        assert session.data_to_send() == (
            b"MAIL FROM:<a@example.com>%s\r\nRCPT TO:<b@example.org>%s\r\n" % (sender, recipient))


@pytest.mark.parametrize(("extensions", "options", "status"), [
    ((), {"body": "8BITMIME"}, (5, 6, 3)),
    (("8BITMIME",), {"smtputf8": True}, (5, 6, 7)),
    (("REQUIRETLS",), {"requiretls": True}, (5, 7, 30)),
    (("SIZE 100",), {"size": 101}, (5, 3, 4)),
    ((), {"by": DeliverBy(60, "R")}, (5, 3, 3)),
    (("DELIVERBY 61",), {"by": DeliverBy(60, "R")}, (5, 4, 7)),
    ((), {"hold_for": 60}, (5, 3, 3)),
    (("FUTURERELEASE 59 2026-11-22T09:30:00Z",), {"hold_for": 60}, (5, 3, 3)),
])
def test_what_is_not_offered_is_not_sent(extensions: tuple[str, ...], options: dict[str, Any],
                                         status: tuple[int, int, int]) -> None:
    session = greeted(*extensions)
    with pytest.raises(NotOffered) as caught:
        session.mail("a@example.com", Parameters(**options))
    assert caught.value.status == EnhancedStatus(*status)
    assert session.data_to_send() == b""


def test_a_recipient_is_not_empty() -> None:
    session = greeted()
    session.mail("a@example.com")
    for empty in ("", "<>"):
        with pytest.raises(BadArgument):
            session.rcpt(empty)
    assert session.data_to_send() == b"MAIL FROM:<a@example.com>\r\n"


def test_chunks_are_sent_only_where_they_are_offered() -> None:
    session = greeted("PIPELINING")
    session.mail("a@example.com")
    session.data_to_send()
    with pytest.raises(NotOffered):
        session.bdat(b"x\r\n", last=True)
    assert session.data_to_send() == b""


def test_names_outside_ascii_are_asked_for_only_where_they_may() -> None:
    session = greeted()
    with pytest.raises(NotOffered) as caught:
        session.verify("jörg")
    assert caught.value.status == EnhancedStatus(5, 6, 7)
    session.expand("liste")
    assert session.data_to_send() == b"EXPN liste\r\n"
    session = greeted("SMTPUTF8")
    session.verify("jörg")
    assert session.data_to_send() == "VRFY jörg SMTPUTF8\r\n".encode()


@pytest.mark.parametrize(("offered", "understood"), [
    (("SIZE 100", "8bitmime", "X-Any=thing"), {"SIZE": "100", "8BITMIME": "", "X-ANY": "thing"}),
    # As it was spelt before RFC 2554; many servers say both.
    (("AUTH LOGIN", "AUTH=LOGIN PLAIN"), {"AUTH": "LOGIN PLAIN"}),
    (("AUTH=LOGIN PLAIN",), {"AUTH": "LOGIN PLAIN"}),
    (("-x", "***", "what is this?", "", "PIPELINING"),
     {"WHAT": "is this?", "PIPELINING": ""}),
])
def test_what_a_server_offers(offered: tuple[str, ...], understood: dict[str, str]) -> None:
    assert greeted(*offered).extensions == understood


@pytest.mark.parametrize(("extensions", "options", "said"), [
    (("DELIVERBY",), {"by": DeliverBy(120, "R")}, b" BY=120;R"),
    (("DELIVERBY 60",), {"by": DeliverBy(60, "R", trace=True)}, b" BY=60;RT"),
    (("DELIVERBY ,NEW=1",), {"by": DeliverBy(60, "R")}, b" BY=60;R"),
    (("DELIVERBY 60",), {"by": DeliverBy(-5, "N")}, b" BY=-5;N"),
    ((), {"by": DeliverBy(60, "N")}, b""),
    (("MT-PRIORITY MIXER",), {"priority": -3}, b" MT-PRIORITY=-3"),
    ((), {"priority": 9}, b""), (("MT-PRIORITY",), {}, b""),
    (("MT-PRIORITY",), {"priority": 0}, b" MT-PRIORITY=0")])
def test_time_and_priority_are_said_where_they_are_offered(
        extensions: tuple[str, ...], options: dict[str, Any], said: bytes) -> None:
    session = greeted(*extensions)
    session.mail("a@example.com", Parameters(**options))
    assert session.data_to_send() == b"MAIL FROM:<a@example.com>%s\r\n" % said


@pytest.mark.parametrize(("extensions", "status"), [
    ((), (5, 3, 3)), (("DELIVERBY 61",), (5, 4, 7)), (("DELIVERBY 61,NEW=1",), (5, 4, 7))])
def test_what_is_to_be_returned_in_time_goes_only_where_it_will_be(
        extensions: tuple[str, ...], status: tuple[int, int, int]) -> None:
    """RFC 2852 §4.1."""
    session = greeted(*extensions)
    with pytest.raises(NotOffered) as caught:
        session.mail("a@example.com", Parameters(by=DeliverBy(60, "R")))
    assert caught.value.status == EnhancedStatus(*status)
    assert session.data_to_send() == b""


@pytest.mark.parametrize("options", [
    {"by": DeliverBy(0, "R")}, {"by": DeliverBy(10**9, "N")}, {"by": DeliverBy(60, "X")},
    {"by": DeliverBy(-(10**9), "N")}, {"priority": 10}, {"priority": -10}])
def test_no_time_and_no_priority_beyond_what_there_is(options: dict[str, Any]) -> None:
    session = greeted("DELIVERBY", "MT-PRIORITY")
    with pytest.raises(BadArgument):
        session.mail("a@example.com", Parameters(**options))
    assert session.data_to_send() == b""


def test_requiretls_is_said_within_tls() -> None:
    """RFC 8689 §2; in the clear its offer counts for nothing."""
    session = greeted("REQUIRETLS")
    with pytest.raises(NotOffered):
        session.mail("a@example.com", Parameters(requiretls=True))
    session.tls_active = True
    session.mail("a@example.com", Parameters(requiretls=True))
    assert session.data_to_send() == b"MAIL FROM:<a@example.com> REQUIRETLS\r\n"


def test_what_may_be_left_out_is_said_where_it_is_offered() -> None:
    options: dict[str, Any] = {"by": DeliverBy(-5, "N", True), "priority": -3}
    for extensions, words in ((), b""), (("DELIVERBY",), b" BY=-5;NT"), (
            ("MT-PRIORITY MIXER", "DELIVERBY 60"), b" BY=-5;NT MT-PRIORITY=-3"):
        session = greeted(*extensions)
        session.mail("a@example.com", Parameters(**options))
        assert session.data_to_send() == b"MAIL FROM:<a@example.com>" + words + b"\r\n"
    session = greeted("DELIVERBY 60", "FUTURERELEASE 86400 2026-11-22T09:30:00Z")
    session.mail("a@example.com", Parameters(by=DeliverBy(60, "R"), hold_for=30))
    assert session.data_to_send() == b"MAIL FROM:<a@example.com> BY=60;R HOLDFOR=30\r\n"


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
