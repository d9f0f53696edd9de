"""Mail programs send to the service; what each said on the wire is what POP3 gives back.

A :class:`tests.tap.Tap` between the program and the service records the message as it was sent, so
programs that compose their own are held to the octet like those that pass a message through.
"""

from __future__ import annotations

import os
import smtplib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import absent
from tests.daemons import Postfix
from tests.messages import CORPUS, RAW, UTF8_HEADER, large, long_line
from tests.service import Dialogue, Service, below_trace, difference, fetch, stuffed, submit
from tests.tap import Tap

SENDER = "sender@example.net"
INTEROP = Path(__file__).parent / "interop"
FIFTY = tuple(f"r{number:02}@example.org" for number in range(50))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    accounts = tuple(f"{name}:secret" for name in ("b@example.org", "c@example.org", *FIFTY))
    with Service(tmp_path_factory.mktemp("interop") / "data", accounts) as running:
        yield running


def received(service: Service, account: str = "b@example.org") -> list[bytes]:
    """What POP3 gives of *account*'s mail, without our trace headers; it is deleted."""
    return [below_trace(message) for message in fetch(service, account)]


@dataclass(frozen=True)
class Mailing:
    """One message to be sent by a program.

    :ivar message: with CRLF.
    :ivar work: an empty directory, the program's HOME as well.
    """

    address: tuple[str, int]
    recipients: tuple[str, ...]
    message: bytes
    work: Path
    program: Callable[[str], str]

    @property
    def host(self) -> str:
        return self.address[0]

    @property
    def port(self) -> str:
        return str(self.address[1])

    def run(self, *command: str, given: bytes = b"", **environment: str) -> None:
        """Run a program with *given* on its standard input; it must succeed within a minute."""
        result = subprocess.run(
            command, input=given, capture_output=True, timeout=60, cwd=self.work, check=False,
            env={**os.environ, "HOME": str(self.work), "LC_ALL": "C.UTF-8", **environment})
        assert result.returncode == 0, (command, result.stdout, result.stderr)

    def lf(self) -> bytes:
        """The message as programs take it from a file."""
        return self.message.replace(b"\r\n", b"\n")


def smtplib_sendmail(mailing: Mailing) -> None:
    with smtplib.SMTP(*mailing.address) as client:
        client.sendmail(SENDER, mailing.recipients, mailing.message)


def swaks(mailing: Mailing, *options: str) -> None:
    # Without --no-data-fixup swaks adds an empty line, and takes a last line of one dot for the
    # terminator.  It sends a CRLF behind the file.
    file = mailing.work / "message"
    file.write_bytes(stuffed(mailing.message).removesuffix(b"\r\n"))
    swaks_composing(mailing, "--data", f"@{file}", "--no-data-fixup", *options)


def swaks_composing(mailing: Mailing, *options: str) -> None:
    mailing.run(mailing.program("swaks"), "--server", mailing.host, "--port", mailing.port,
                "--from", SENDER, "--to", ",".join(mailing.recipients), *options)


def swaks_pipelined(mailing: Mailing) -> None:
    swaks(mailing, "--pipeline")


def swaks_helo(mailing: Mailing) -> None:
    swaks(mailing, "--protocol", "SMTP")


def curl(mailing: Mailing) -> None:
    file = mailing.work / "message"
    file.write_bytes(mailing.message)
    recipients = [word for name in mailing.recipients for word in ("--mail-rcpt", name)]
    mailing.run(mailing.program("curl"), "--silent", "--show-error",
                f"smtp://{mailing.host}:{mailing.port}/client.example.net",
                "--mail-from", SENDER, *recipients, "--upload-file", str(file))


def msmtp(mailing: Mailing) -> None:
    mailing.run(mailing.program("msmtp"), f"--host={mailing.host}", f"--port={mailing.port}",
                f"--from={SENDER}", "--auth=off", "--tls=off", "--domain=client.example.net",
                *mailing.recipients, given=mailing.lf())


def nodemailer(mailing: Mailing, mode: str = "raw") -> None:
    modules = Path(sys.prefix, "node_modules")
    node = mailing.program("node")
    if not (modules / "nodemailer").is_dir():
        absent("nodemailer is not installed; make nodemailer does it")
    mailing.run(node, str(INTEROP / "sendmail.js"), mode, mailing.host, mailing.port, SENDER,
                ",".join(mailing.recipients), given=mailing.message, NODE_PATH=str(modules))


def nodemailer_composing(mailing: Mailing) -> None:
    nodemailer(mailing, "compose")


def go(mailing: Mailing, *options: str) -> None:
    binary = mailing.work.parent / "sendmail-go"
    if not binary.exists():
        subprocess.run([mailing.program("go"), "build", "-o", str(binary),
                        str(INTEROP / "sendmail.go")], check=True, timeout=300)
    mailing.run(str(binary), *options, f"{mailing.host}:{mailing.port}", SENDER,
                *mailing.recipients, given=mailing.message)


def go_calls(mailing: Mailing) -> None:
    go(mailing, "-calls")


def s_nail(mailing: Mailing) -> None:
    mailing.run(mailing.program("s-nail"), "-:/", "-S", "v15-compat",
                "-S", f"mta=smtp://{mailing.host}:{mailing.port}", "-S", "smtp-auth=none",
                "-S", f"from={SENDER}", "-S", "hostname=client.example.net",
                "-s", "Grüße", *mailing.recipients,
                given=".\n..\nŁukasz\nFrom here\n".encode())


def mutt(mailing: Mailing) -> None:
    configuration = mailing.work / "muttrc"
    configuration.write_text(f'set smtp_url="smtp://{mailing.host}:{mailing.port}/"\n'
                             "set ssl_starttls=no ssl_force_tls=no hostname=client.example.net\n"
                             f'set from="{SENDER}" use_envelope_from=yes record="" copy=no\n')
    mailing.run(mailing.program("mutt"), "-n", "-F", str(configuration), "-s", "Grüße",
                "--", *mailing.recipients, given=".\n..\nŁukasz\nFrom here\n".encode())


#: Pass a message through as they are given it.
PASSING = (smtplib_sendmail, swaks, swaks_pipelined, swaks_helo, curl, msmtp, nodemailer, go,
           go_calls)
#: Make one up.
COMPOSING = (swaks_composing, nodemailer_composing, s_nail, mutt)


@pytest.fixture
def send(service: Service, tmp_path: Path, program: Callable[[str], str]
         ) -> Callable[..., list[bytes]]:
    """``send(client, message, recipients)``: the messages as the client put them on the wire."""
    def run(client: Callable[[Mailing], None], message: bytes = b"",
            recipients: tuple[str, ...] = ("b@example.org",)) -> list[bytes]:
        work = tmp_path / "work"
        work.mkdir()
        with Tap(service.smtp) as tap:
            client(Mailing(tap.address, recipients, message, work, program))
        return tap.messages()

    return run


@pytest.mark.parametrize("message", CORPUS.values(), ids=CORPUS)
@pytest.mark.parametrize("client", PASSING, ids=lambda client: client.__name__)
def test_a_message_passes_unchanged(client: Callable[[Mailing], None], message: bytes,
                                    send: Callable[..., list[bytes]], service: Service) -> None:
    sent = send(client, message)
    assert difference(sent, [message]) == ""
    assert difference(received(service), [message]) == ""


@pytest.mark.parametrize("client", COMPOSING, ids=lambda client: client.__name__)
def test_a_composed_message_arrives_as_sent(client: Callable[[Mailing], None],
                                            send: Callable[..., list[bytes]], service: Service
                                            ) -> None:
    [message] = sent = send(client)
    assert b"\r\nSubject: " in message
    assert difference(received(service), sent) == ""


def test_postfix_relays_to_us(service: Service, program: Callable[[str], str]) -> None:
    """Postfix as the upstream, mail handed to it by its sendmail command."""
    with Tap(service.smtp) as tap:
        with Postfix(program, relayhost="[{}]:{}".format(*tap.address),
                     smtp_line_length_limit="0") as postfix:
            for message in CORPUS.values():
                postfix.sendmail(message.replace(b"\r\n", b"\n"), ["b@example.org"])
            postfix.until_sent(len(CORPUS))
        sent = tap.messages()
    # Postfix sends on several connections at once.
    assert difference(sorted(received(service)), sorted(sent)) == ""
    # It puts its own Received on top and leaves the rest alone.
    for message in CORPUS.values():
        body = message.partition(b"\r\n\r\n")[2]
        assert [text for text in sent if text.partition(b"\r\n\r\n")[2] == body]


def test_postfix_relays_to_fifty_in_one_transaction(service: Service,
                                                    program: Callable[[str], str]) -> None:
    with Tap(service.smtp) as tap:
        with Postfix(program, relayhost="[{}]:{}".format(*tap.address)) as postfix:
            postfix.sendmail(b"Subject: fifty\n\nHello.\n", FIFTY)
            postfix.until_sent(len(FIFTY))
        [sent] = tap.messages()
    for recipient in FIFTY:
        assert difference(received(service, recipient), [sent]) == ""


@pytest.mark.parametrize("client", PASSING, ids=lambda client: client.__name__)
def test_fifty_recipients_get_one_copy_each(client: Callable[[Mailing], None],
                                            send: Callable[..., list[bytes]], service: Service
                                            ) -> None:
    message = CORPUS["dots-within"]
    assert difference(send(client, message, FIFTY), [message]) == ""
    for recipient in FIFTY:
        assert difference(received(service, recipient), [message]) == ""


def test_a_recipient_named_twice_gets_one_copy(service: Service) -> None:
    submit(service, CORPUS["plain"], ("b@example.org", "B@example.org", "b@EXAMPLE.ORG"))
    assert len(fetch(service, "b@example.org")) == 1


@pytest.mark.parametrize("message", (CORPUS | RAW).values(), ids=CORPUS | RAW)
def test_raw_data_comes_back(service: Service, message: bytes) -> None:
    submit(service, message, ("b@example.org",))
    assert difference(received(service), [message]) == ""


@pytest.mark.parametrize("octets", [998, 10_000, 1 << 20])
def test_a_long_line_comes_back(service: Service, octets: int) -> None:
    message = long_line(octets)
    submit(service, message, ("b@example.org",))
    assert difference(received(service), [message]) == ""


def test_25_mib_come_back(service: Service) -> None:
    message = large(25 << 20)
    submit(service, message, ("b@example.org", "c@example.org"))
    for recipient in ("b@example.org", "c@example.org"):
        assert difference(received(service, recipient), [message]) == ""


#: Sizes of chunks to cycle through; seams fall into CRLFs, before dots, into the header.
@pytest.mark.parametrize("sizes", [(1,), (1, 2, 3, 5, 7, 11), (997,), (65_537,)], ids=str)
@pytest.mark.parametrize("name", ["only-dots", "8-bit", "line-of-998", "large"])
def test_bdat_in_odd_chunks_comes_back(service: Service, sizes: tuple[int, ...], name: str) -> None:
    message = CORPUS[name] if name in CORPUS else large(200_000)
    if len(message) > 1000 * max(sizes):
        message = message[:1000 * max(sizes)]
        message = message[:message.rindex(b"\r\n") + 2]
    with Dialogue(service.smtp) as smtp:
        smtp.reply()
        smtp.say(b"EHLO client.example.net")
        smtp.say(b"MAIL FROM:<%s> BODY=8BITMIME" % SENDER.encode())
        smtp.say(b"RCPT TO:<b@example.org>")
        position = chunks = 0
        while position < len(message):
            chunk = message[position:position + sizes[chunks % len(sizes)]]
            smtp.send(b"BDAT %d\r\n" % len(chunk) + chunk)
            assert smtp.reply().startswith(b"250")
            position += len(chunk)
            chunks += 1
        assert smtp.say(b"BDAT 0 LAST").startswith(b"250")
        smtp.say(b"QUIT")
    assert difference(received(service), [message]) == ""


def test_bdat_without_a_final_crlf_gets_one(service: Service) -> None:
    """RFC 3030 lets a message end amid a line; RFC 1939 does not."""
    with Dialogue(service.smtp) as smtp:
        smtp.reply()
        smtp.say(b"EHLO client.example.net")
        smtp.say(b"MAIL FROM:<%s>" % SENDER.encode())
        smtp.say(b"RCPT TO:<b@example.org>")
        message = b"Subject: unended\r\n\r\n.no end"
        smtp.send(b"BDAT %d LAST\r\n" % len(message) + message)
        assert smtp.reply().startswith(b"250")
        smtp.say(b"QUIT")
    assert difference(received(service), [message + b"\r\n"]) == ""


def test_data_without_a_final_crlf_ends_where_the_client_ends_it(
        send: Callable[..., list[bytes]], service: Service) -> None:
    sent = send(smtplib_sendmail, b"Subject: unended\r\n\r\nno end")
    assert sent == [b"Subject: unended\r\n\r\nno end\r\n"]
    assert difference(received(service), sent) == ""


def test_smtplib_sends_an_internationalized_message(service: Service) -> None:
    with smtplib.SMTP(*service.smtp) as client:
        client.sendmail(SENDER, "b@example.org", UTF8_HEADER, mail_options=["SMTPUTF8",
                                                                            "BODY=8BITMIME"])
    with Dialogue(service.pop3) as pop3:
        pop3.line()
        for command in (b"UTF8", b"USER b@example.org", b"PASS secret", b"RETR 1"):
            pop3.ask(command)
        message = b"".join(line + b"\r\n" for line in pop3.multiline())
        pop3.ask(b"DELE 1")
        pop3.ask(b"QUIT")
    assert below_trace(message) == UTF8_HEADER
    assert b" with UTF8SMTP" in message
