"""Mail that customers fetch (ATRN, RFC 2645): mailsvc dev, and customers on sockets of their own."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import smtplib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import CommandLine
from tests.service import PATIENCE, Dialogue, Service
from tests.test_queue_workers import owner_of
from tests.test_relay import MESSAGE, below_trace, mail, queued, relaying, statuses, until
from tests.test_workers import workers_of

#: Who may fetch what.
TURNS = ('routing.atrn_domains={"carol@a.example"="far.example branch.example",'
         '"dave@a.example"="other.example"}')
ACCOUNTS = ("alice@a.example:secret", "carol@a.example:secret", "dave@a.example:secret")


def providing(directory: Path, *settings: str, workers: int = 1,
              options: Sequence[str] = ()) -> Service:
    """A service that keeps mail for its customers."""
    return relaying(directory, TURNS, "smtp.allow_cleartext_auth=loopback", *settings,
                    accounts=ACCOUNTS,
                    options=("--odmr", "127.0.0.1:0", "--workers", str(workers), *options))


def send(service: Service, *recipients: str, message: bytes = MESSAGE) -> None:
    """Anybody sends mail to *recipients*."""
    with smtplib.SMTP(*service.smtp, timeout=PATIENCE) as smtp:
        assert smtp.sendmail("x@sender.example", list(recipients), message) == {}


class Customer(Dialogue):
    """A customer's host: a client, and a server once the roles have turned.

    :ivar messages: what it took: reverse-path and recipients as they stood in the commands, text.
    """

    def __init__(self, service: Service, listener: str = "odmr") -> None:
        super().__init__(service.listeners[listener])
        self.messages: list[tuple[str, list[str], bytes]] = []
        self.answers: dict[str, str] = {}
        if listener == "submissions":
            self._secure()
        assert self.reply().startswith(b"220")
        self.offers = self.ehlo()

    def _secure(self) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self.file.close()
        self.socket = context.wrap_socket(self.socket)
        self.file = self.socket.makefile("rb")

    def start_tls(self) -> None:
        assert self.say(b"STARTTLS").startswith(b"220")
        self._secure()
        self.offers = self.ehlo()

    def ehlo(self) -> list[str]:
        self.send(b"EHLO mail.far.example\r\n")
        lines = [self.line()]
        while lines[-1][3:4] == b"-":
            lines.append(self.line())
        return [line[4:].decode() for line in lines[1:]]

    def log_in(self, name: str = "carol@a.example") -> None:
        secret = base64.b64encode(b"\0" + name.encode() + b"\0secret")
        assert self.say(b"AUTH PLAIN " + secret).startswith(b"235")

    def turn(self, *domains: str) -> bytes:
        """Say ATRN; the answer."""
        return self.say(b" ".join([b"ATRN", *([",".join(domains).encode()] if domains else [])]))

    def serve(self, greeting: bytes = b"220 mail.far.example ESMTP\r\n") -> list[str]:
        """Take mail until QUIT, or the end of the connection; the recipients.

        What is to be said to a command is in ``answers``, by its first words, if it is not 250.
        """
        self.send(greeting)
        sender, recipients = "", []
        while line := self.file.readline():
            text = line.decode().rstrip("\r\n")
            answer = next((answer for words, answer in self.answers.items()
                           if text.startswith(words)), "")
            if answer == "drop":
                break
            if text.startswith("QUIT"):
                self.send(b"221 2.0.0 bye\r\n")
                break
            if text == "DATA" and not answer:
                self.send(b"354 go\r\n")
                content = b""
                while (line := self.file.readline()) not in (b".\r\n", b""):
                    content += line.removeprefix(b".")
                    if "content" in self.answers:
                        return []
                if not line:
                    break
                answer = self.answers.get("end", "")
                if answer == "drop":
                    break
                if not answer or answer == "lose":
                    self.messages.append((sender, recipients, content))
                if answer == "lose":
                    break
            elif text.startswith("MAIL"):
                sender, recipients = text, []
            elif text.startswith("RCPT") and not answer:
                recipients = [*recipients, text.split("<")[1].split(">")[0]]
            self.send((answer or "250 2.0.0 ok").encode() + b"\r\n")
        return [each for _, to, _ in self.messages for each in to]


def listed(service: Service) -> list[Any]:
    found: list[Any] = json.loads(CommandLine(service.directory)("queue", "list", "--json"))
    return found


def kept(service: Service, number: int = 1) -> None:
    """Wait until so many messages are kept."""
    until(lambda: [each["status"] for each in listed(service)] == ["kept"] * number, service)


@pytest.mark.parametrize("way", ["clear", "starttls", "submission", "submissions"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_customer_fetches_its_mail(tmp_path: Path, workers: int, way: str) -> None:
    with providing(tmp_path / "a", workers=workers,
                   options=("--submissions", "127.0.0.1:0")) as here:
        send(here, "bob@far.example", "eve@branch.example")
        send(here, "zoe@far.example", "dan@other.example")
        with smtplib.SMTP(*here.smtp, timeout=PATIENCE) as smtp:
            smtp.ehlo()
            smtp.mail("x@sender.example")
            assert smtp.rcpt("x@sub.far.example")[0] == 550
        kept(here, 2)
        assert "kept until far.example fetches it (ATRN)" in CommandLine(here.directory)(
            "queue", "list", "status:kept")
        for number in range(2 * workers):
            with Customer(here, way if way.startswith("sub") else "odmr") as customer:
                if way in ("starttls", "submission"):
                    customer.start_tls()
                assert "ATRN" in customer.offers
                customer.log_in()
                if number:
                    assert customer.turn() == b"453 4.0.0 You have no mail"
                    continue
                assert customer.turn().startswith(b"250 2.0.0")
                assert sorted(customer.serve()) == [
                    "bob@far.example", "eve@branch.example", "zoe@far.example"]
                assert [sender for sender, _, _ in customer.messages] == [
                    "MAIL FROM:<x@sender.example>"] * 2
                assert [below_trace(text) for _, _, text in customer.messages] == [MESSAGE] * 2
                assert customer.file.read() == b""
        until(lambda: len(listed(here)) == 1, here)
        message, = listed(here)
        assert [each["state"] for each in message["recipients"]] == ["relayed", "waiting"]
        assert message["status"] == "kept"
        with Customer(here) as customer:
            customer.log_in("dave@a.example")
            assert customer.turn("other.example").startswith(b"250")
            assert customer.serve() == ["dan@other.example"]
        until(lambda: not queued(here), here)
        log = here.log.read_text()
        assert "Traceback" not in log
        assert "host=mail.far.example relayed=3 failed=0 deferred=0: done" in log
