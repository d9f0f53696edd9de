"""XCLIENT: its argument, and whom a proxy has logged in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.cred.error import UnauthorizedLogin
from twisted.logger import capturedLogs, formatEvent

from mailsvc.credentials import IProvenName
from mailsvc.errors import EnhancedStatus, TemporaryFailure
from mailsvc.smtp.grammar import SyntaxFault
from mailsvc.smtp.mode import SUBMISSION
from mailsvc.smtp.xclient import ATTRIBUTES, XClient, parse
from tests.postoffice import Line
from tests.service import Dialogue, Service


@pytest.mark.parametrize(("argument", "meant"), [
    # The examples of Postfix's XCLIENT_README.
    ("NAME=spike.porcupine.org ADDR=168.100.189.2",
     XClient(name="spike.porcupine.org", addr="168.100.189.2")),
    ("NAME=[UNAVAILABLE] ADDR=168.100.189.2 PROTO=ESMTP HELO=spike.porcupine.org",
     XClient(name="", addr="168.100.189.2", proto="ESMTP", helo="spike.porcupine.org")),
    # As nginx says it.
    ("ADDR=192.0.2.7 LOGIN=bob@example.org NAME=[UNAVAILABLE]",
     XClient(addr="192.0.2.7", login="bob@example.org", name="")),
    ("ADDR=IPV6:2001:db8::7 PORT=56324", XClient(addr="2001:db8::7", port=56_324)),
    ("addr=ipv6:2001:DB8:0::7 proto=esmtp", XClient(addr="2001:db8::7", proto="ESMTP")),
    ("DESTADDR=198.51.100.25 DESTPORT=25", XClient(destaddr="198.51.100.25", destport=25)),
    ("NAME=[TEMPUNAVAIL] ADDR=[unavailable] PORT=[UNAVAILABLE] LOGIN=[UNAVAILABLE]",
     XClient(name="", addr="", port=0, login="")),
    ("HELO=[192.0.2.7]", XClient(helo="[192.0.2.7]")),
    ("HELO=[IPv6:2001:db8::7]", XClient(helo="[IPv6:2001:db8::7]")),
    ("LOGIN=b+C3+BCrger+2Bx+3D@example.org", XClient(login="bürger+x=@example.org")),
    ("LOGIN=two+20words", XClient(login="two words")),
    ("NAME=mail+2Eexample.org", XClient(name="mail.example.org")),
    (" PORT=1  PROTO=SMTP ", XClient(port=1, proto="SMTP")),
])
def test_an_argument(argument: str, meant: XClient) -> None:
    assert parse(argument.encode()) == meant


@pytest.mark.parametrize("argument", [
    b"", b" ", b"ADDR", b"=", b"=192.0.2.7", b"ADDR=", b"NAME=", b"LOGIN=", b"PORT=", b"HELO=",
    b"SIZE=1", b"SESSION=1", b"ADDR=192.0.2.7 ADDR=192.0.2.8", b"ADDR=192.0.2.7 addr=192.0.2.7",
    b"ADDR=192.0.2", b"ADDR=192.0.2.07", b"ADDR=2001:db8::7", b"ADDR=IPV6:192.0.2.7",
    b"ADDR=IPV6:fe80::1%eth0", b"ADDR=IPV6:fe80::1+25eth0", b"ADDR=localhost",
    b"ADDR=192.0.2.7+0D+0A", b"ADDR=[UNKNOWN]",
    b"PORT=65536", b"PORT=-1", b"PORT=025", b"PORT=+2B1", b"PORT=x", b"PORT=+D9+A3",
    b"PROTO=LMTP", b"PROTO=\xc5\xbfMTP",
    b"NAME=-x.example", b"NAME=a..b", b"NAME=[192.0.2.7]", b"NAME=a+20b",
    b"HELO=x+0D+0AX-Forged:+20yes", b"HELO=x+20y", b"HELO=x+0Ay", b"HELO=<x>",
    b"LOGIN=bob+0A", b"LOGIN=bob+00", b"LOGIN=bob+1B[2J", b"LOGIN=bob+E2+80+AEx", b"LOGIN=+C3",
    b"LOGIN=+", b"LOGIN=+0", b"LOGIN=+GG", b"LOGIN=a=b", "LOGIN=bürger".encode(),
    b"\xc5\xbfIZE=1", b"\xff\xfe", b"NAME=[UNAVA\xc4\xb1LABLE]", b"ADDR\t=192.0.2.7",
    b"LOGIN=" + b"x" * 1020,
])
def test_a_malformed_argument(argument: bytes) -> None:
    with pytest.raises(SyntaxFault) as fault:
        parse(argument)
    assert fault.value.code == 501
    assert str(fault.value).isprintable()


@given(st.binary(max_size=60) | st.builds(
    lambda attribute, value: f"{attribute}={value}".encode(),
    st.sampled_from(ATTRIBUTES), st.text(st.characters(max_codepoint=126), max_size=30)))
def test_no_octets_bring_control_characters_into_a_value(argument: bytes) -> None:
    # PITFALLS, SMTP row 7.
    try:
        meant = parse(argument)
    except SyntaxFault:
        return
    for value in (meant.name, meant.addr, meant.proto, meant.helo, meant.login, meant.destaddr):
        assert value is None or value.isprintable()
        assert value is None or value == meant.login or " " not in value


# ---- LOGIN ---------------------------------------------------------------------------------------

USER, SENDER = "alice@example.org", "printer@example.org"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    options = ("--submission", "127.0.0.1:0", "--set", 'smtp.xclient_networks=["127.0.0.1"]')
    with Service(tmp_path_factory.mktemp("xclient") / "data", (f"{USER}:x",), options) as running:
        yield running


def proxied(service: Service, listener: str, argument: str) -> tuple[Dialogue, bytes]:
    client = Dialogue(service.listeners[listener])
    client.reply()
    client.say(b"EHLO proxy.example.net")
    return client, client.say(b"XCLIENT " + argument.encode())


def test_whom_a_proxy_has_logged_in_may_submit_as_himself(service: Service) -> None:
    client, answer = proxied(service, "submission", f"ADDR=198.51.100.7 LOGIN={USER.upper()}")
    with client:
        assert answer.startswith(b"220 ")
        client.say(b"EHLO client.example.net")
        assert client.say(b"AUTH PLAIN").startswith(b"503 ")
        assert client.say(b"MAIL FROM:<boss@example.org>").startswith(b"550 5.7.1 ")
        assert client.say(f"MAIL FROM:<{USER}>".encode()).startswith(b"250 ")
        assert client.say(f"RCPT TO:<{USER}>".encode()).startswith(b"250 ")
        client.say(b"DATA")
        assert client.say(b"Subject: hello\r\n\r\nhello\r\n.").startswith(b"250 ")
    (path,) = (service.maildir(USER) / "new").iterdir()
    assert b"[198.51.100.7])" in path.read_bytes()
    assert b" with ESMTPA id " in path.read_bytes()


@pytest.mark.parametrize("login", ["nobody@example.org", "alice@example.net", "alice+20x", "@"])
def test_nobody_is_logged_in_who_is_not_there(service: Service, login: str) -> None:
    client, answer = proxied(service, "submission", f"ADDR=198.51.100.7 LOGIN={login}")
    with client:
        assert answer.startswith(b"550 5.7.8 ")
        assert client.say(f"MAIL FROM:<{USER}>".encode()).startswith(b"530 ")


@pytest.mark.parametrize("login", ["", " LOGIN=[UNAVAILABLE]", " LOGIN=[TEMPUNAVAIL]"])
def test_without_a_name_nobody_is_logged_in(service: Service, login: str) -> None:
    client, answer = proxied(service, "submission", f"ADDR=198.51.100.7{login}")
    with client:
        assert answer.startswith(b"220 ")
        client.say(b"EHLO client.example.net")
        assert client.say(f"MAIL FROM:<{USER}>".encode()).startswith(b"530 ")


def test_where_nobody_logs_in_a_login_is_nothing(service: Service) -> None:
    client, answer = proxied(service, "smtp", "ADDR=198.51.100.7 LOGIN=nobody@example.org")
    with client:
        assert answer.startswith(b"220 ")
        client.say(b"EHLO client.example.net")
        client.say(b"MAIL FROM:<a@example.net>")
        assert client.say(b"RCPT TO:<b@example.net>").startswith(b"550 5.7.1 ")


def test_a_stranger_logs_nobody_in() -> None:
    one = Line(mode=SUBMISSION)
    one.say(b"EHLO x\r\nXCLIENT LOGIN=alice@example.org\r\nMAIL FROM:<alice@example.org>\r\n")
    assert one.codes() == ["220", "250", "550 5.7.0", "530 5.7.0"]
    one.hang_up()


def test_that_it_cannot_be_found_out_is_said_and_logs_nobody_in() -> None:
    class Down:
        def requestAvatarId(self, credentials: Any) -> Any:
            raise TemporaryFailure("The directory cannot be read; try again later")

    one = Line(mode=SUBMISSION, xclient_networks=["198.51.100.0/24"])
    assert one.factory.authenticator is not None
    one.factory.authenticator.portal.checkers[IProvenName] = Down()
    one.say(b"EHLO x\r\nXCLIENT LOGIN=alice@example.org\r\nMAIL FROM:<alice@example.org>\r\n")
    assert one.codes()[2:] == ["451 4.3.0", "530 5.7.0"]
    one.hang_up()


def test_nobody_of_that_name_is_one_line_in_the_log() -> None:
    class Nobody:
        def requestAvatarId(self, credentials: Any) -> Any:
            raise UnauthorizedLogin

    one = Line(mode=SUBMISSION, xclient_networks=["198.51.100.0/24"])
    assert one.factory.authenticator is not None
    one.factory.authenticator.portal.checkers[IProvenName] = Nobody()
    with capturedLogs() as events:
        one.say(b"EHLO x\r\nXCLIENT ADDR=203.0.113.9 LOGIN=who@example.org\r\n"
                b"MAIL FROM:<who@example.org>\r\n")
    assert one.codes()[2:] == ["550 5.7.8", "530 5.7.0"]
    assert ["login refused user='who@example.org' client=203.0.113.9" in formatEvent(event)
            for event in events] == [False, True]
    one.hang_up()


def test_a_banned_client_is_sent_away_behind_a_proxy_too() -> None:
    banned = TemporaryFailure("Too many wrong passwords from your address", EnhancedStatus(4, 7, 0))
    one = Line(xclient_networks=["198.51.100.0/24"])
    one.factory.connections.admit = lambda client: banned if client == "203.0.113.9" else None
    one.say(b"EHLO x\r\nXCLIENT ADDR=203.0.113.9\r\nNOOP\r\n")
    assert one.codes()[2:] == ["421 4.7.0"]
    assert one.closed
    one.hang_up()
