"""The demonstration programs of the old tutorials, as dialogues with a running service.

They show how little a client may know of the protocol and still be served.
"""

from __future__ import annotations

import smtplib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.service import Dialogue, Service, below_trace, fetch

ACCOUNT = "bob@example.org"
MESSAGE = (b"From: alice@example.net\r\nTo: bob@example.org\r\nSubject: demonstration\r\n\r\n"
           b"Hello Bob.\r\n.one dot\r\n")
STUFFED = MESSAGE.replace(b"\r\n.one", b"\r\n..one") + b".\r\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("tutorials") / "data", (f"{ACCOUNT}:secret",)) as running:
        yield running


@pytest.fixture
def delivered(service: Service) -> Callable[[], None]:
    """Assert that Bob has got the message, as it is, and nothing else."""
    def check() -> None:
        assert [below_trace(message) for message in fetch(service, ACCOUNT)] == [MESSAGE]

    return check


def test_the_bare_client_that_waits_for_each_reply(service: Service,
                                                   delivered: Callable[[], None]) -> None:
    with Dialogue(service.smtp) as smtp:
        assert smtp.line()[:4] == b"220 "
        for said, code in ((b"HELO client.example.net\r\n", b"250 "),
                           (b"MAIL FROM:<alice@example.net>\r\n", b"250 "),
                           (b"RCPT TO:<bob@example.org>\r\n", b"250 "),
                           (b"DATA\r\n", b"354 "),
                           (STUFFED, b"250 "),
                           (b"QUIT\r\n", b"221 ")):
            smtp.send(said)
            # One line each: such a client reads no continuation.
            assert smtp.line()[:4] == code, said
        assert smtp.file.read() == b"", "the service closes after QUIT"
    delivered()


@pytest.mark.parametrize("hello", [b"HELO", b"EHLO"])
def test_the_client_that_sends_everything_at_once(service: Service, hello: bytes,
                                                  delivered: Callable[[], None]) -> None:
    """It does not even wait for the greeting."""
    with Dialogue(service.smtp) as smtp:
        smtp.send(hello + b" client.example.net\r\n"
                  b"MAIL FROM:<alice@example.net>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\n"
                  + STUFFED + b"QUIT\r\n")
        replies = [line for line in smtp.file.read().split(b"\r\n") if line[3:4] == b" "]
    assert [reply[:3] for reply in replies] == [b"220", b"250", b"250", b"250", b"354", b"250",
                                                b"221"]
    delivered()


def test_a_session_typed_into_telnet(service: Service, program: Callable[[str], str],
                                     delivered: Callable[[], None]) -> None:
    """Lower-case verbs, each line typed after the answer to the last; telnet adds CR to LF."""
    host, port = service.smtp
    with subprocess.Popen([program("telnet"), host, str(port)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as telnet:
        assert telnet.stdin is not None
        screen = telnet.stdout
        assert screen is not None

        def shown(code: bytes) -> None:
            while not (line := screen.readline()).startswith(code + b" "):
                assert line, f"telnet ended before {code!r}"

        shown(b"220")
        for typed, code in ((b"helo client.example.net\n", b"250"),
                            (b"mail from:<alice@example.net>\n", b"250"),
                            (b"rcpt to:<bob@example.org>\n", b"250"),
                            (b"data\n", b"354"),
                            (STUFFED.replace(b"\r\n", b"\n"), b"250"),
                            (b"quit\n", b"221")):
            telnet.stdin.write(typed)
            telnet.stdin.flush()
            shown(code)
        telnet.stdin.close()
        telnet.wait(30)
    delivered()


def test_telnet_octets(service: Service, delivered: Callable[[], None]) -> None:
    """The same as a terminal sends it, in dribs: a character at a time, and then line by line."""
    with Dialogue(service.smtp) as smtp:
        smtp.reply()
        for character in b"ehlo client.example.net\r\n":
            smtp.send(bytes((character,)))
        assert smtp.reply()[:3] == b"250"
        for line in (b"mail from:<alice@example.net>", b"rcpt to:<bob@example.org>"):
            assert smtp.say(line)[:3] == b"250"
        assert smtp.say(b"data")[:3] == b"354"
        for text in STUFFED.splitlines(keepends=True):
            smtp.send(text)
        assert smtp.reply()[:3] == b"250"
        assert smtp.say(b"quit")[:3] == b"221"
    delivered()


def test_smtplib_call_by_call(service: Service, delivered: Callable[[], None]) -> None:
    client = smtplib.SMTP()
    assert client.connect(*service.smtp)[0] == 220
    assert client.ehlo("client.example.net")[0] == 250
    assert client.does_esmtp
    for extension in ("pipelining", "size", "8bitmime", "enhancedstatuscodes", "chunking",
                      "smtputf8"):
        assert client.has_extn(extension)
    assert client.mail("alice@example.net", ["size=200", "body=8bitmime"])[0] == 250
    assert client.rcpt(ACCOUNT)[0] == 250
    assert client.data(MESSAGE)[0] == 250
    assert client.quit()[0] == 221
    delivered()


def test_the_id_in_the_250_is_in_received(service: Service) -> None:
    with smtplib.SMTP(*service.smtp) as client:
        client.ehlo()
        client.mail("alice@example.net")
        client.rcpt(ACCOUNT)
        answer = client.data(MESSAGE)[1].decode()
    [stored] = fetch(service, ACCOUNT)
    received = stored.decode().split("\r\nFrom:")[0]
    identifier = received.partition(" id ")[2].split()[0].rstrip(";")
    assert identifier in answer


def test_the_order_of_calls_of_go(service: Service, delivered: Callable[[], None]) -> None:
    """net/smtp: EHLO first, BODY and SMTPUTF8 as soon as they are offered, dots stuffed."""
    with Dialogue(service.smtp) as smtp:
        assert smtp.reply()[:3] == b"220"
        smtp.send(b"EHLO localhost\r\n")
        offered = []
        while (line := smtp.line())[3:4] == b"-":
            offered.append(line[4:].split()[0])
        offered.append(line[4:].split()[0])
        assert {b"8BITMIME", b"SMTPUTF8"} <= set(offered)
        assert smtp.say(b"MAIL FROM:<alice@example.net> BODY=8BITMIME SMTPUTF8")[:3] == b"250"
        assert smtp.say(b"RCPT TO:<bob@example.org>")[:3] == b"250"
        assert smtp.say(b"DATA")[:3] == b"354"
        smtp.send(STUFFED)
        assert smtp.reply()[:3] == b"250"
        assert smtp.say(b"QUIT")[:3] == b"221"
    delivered()


def test_go_itself(service: Service, program: Callable[[str], str],
                   tmp_path_factory: pytest.TempPathFactory,
                   delivered: Callable[[], None]) -> None:
    binary = tmp_path_factory.mktemp("go") / "sendmail"
    subprocess.run([program("go"), "build", "-o", str(binary),
                    str(Path(__file__).parent / "interop" / "sendmail.go")],
                   check=True, timeout=300)
    subprocess.run([str(binary), "-calls", "{}:{}".format(*service.smtp), "alice@example.net",
                    ACCOUNT], input=MESSAGE, check=True, timeout=60)
    delivered()
