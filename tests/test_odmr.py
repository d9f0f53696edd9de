"""Mail that customers fetch (ATRN, RFC 2645): mailsvc dev, and customers on sockets."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import smtplib
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import CommandLine
from tests.relay import (
    MESSAGE,
    below_trace,
    mail,
    queued,
    relaying,
    statuses,
    until,
    unverified,
)
from tests.service import PATIENCE, Dialogue, Service
from tests.test_queue_workers import owner_of
from tests.test_workers import workers_of

#: Who may fetch what.
TURNS = ('routing.atrn_domains={"carol@a.example"="far.example branch.example",'
         '"dave@a.example"="other.example"}')
#: A message that no buffer on the way holds.
LINES = 300_000
LARGE = b"Subject: large\r\n\r\n" + (b"x" * 70 + b"\r\n") * LINES
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
        self.file.close()
        self.socket = unverified().wrap_socket(self.socket)
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
                content = []
                while (line := self.file.readline()) not in (b".\r\n", b""):
                    content.append(line.removeprefix(b"."))
                    if "content" in self.answers:
                        return []
                if not line:
                    break
                answer = self.answers.get("end", "")
                if answer == "drop":
                    break
                if not answer or answer == "lose":
                    self.messages.append((sender, recipients, b"".join(content)))
                if answer == "lose":
                    break
            elif text.startswith("MAIL"):
                sender, recipients = text, []
            elif text.startswith("RCPT") and not answer:
                recipients = [*recipients, text.split("<")[1].split(">")[0]]
            ok = "250 mail.far.example" if text.startswith("EHLO") else "250 2.0.0 ok"
            self.send((answer or ok).encode() + b"\r\n")
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


# ---- customers that fail -------------------------------------------------------------------------

#: What a customer does: its greeting, its answers (as ``Customer.answers``); whom it then has taken
#: mail for, who of the others has it returned, and what is said of those that are kept.
CASES: dict[str, tuple[bytes, dict[str, str], set[str], set[str], str]] = {
    "garbage": (b"\x16\x03\x01\x00\xff no reply\r\n", {}, set(), set(), ""),
    "http": (b"HTTP/1.1 400 Bad Request\r\n", {}, set(), set(), ""),
    "refuses": (b"554 5.3.2 not now\r\n", {}, set(), set(), ""),
    "later": (b"421 4.3.2 not now\r\n", {}, set(), set(), ""),
    "says-nothing": (b"", {}, set(), set(), ""),
    "ehlo-5xx": (b"220 x\r\n", {"EHLO": "550 5.7.1 no", "HELO": "550 5.7.1 no"}, set(), set(), ""),
    "drop-at-ehlo": (b"220 x\r\n", {"EHLO": "drop"}, set(), set(), ""),
    "drop-at-mail": (b"220 x\r\n", {"MAIL": "drop"}, set(), set(), "closed the connection"),
    "drop-at-rcpt": (b"220 x\r\n", {"RCPT": "drop"}, set(), set(), "closed the connection"),
    "drop-at-data": (b"220 x\r\n", {"DATA": "drop"}, set(), set(), "closed the connection"),
    "drop-amid-content": (b"220 x\r\n", {"content": "drop"}, set(), set(),
                          "closed the connection"),
    "drop-at-end": (b"220 x\r\n", {"end": "drop"}, set(), set(), "closed the connection"),
    "4xx-mail": (b"220 x\r\n", {"MAIL": "451 4.3.0 busy"}, set(), set(), "451 4.3.0 busy"),
    "4xx-data": (b"220 x\r\n", {"DATA": "451 4.3.0 busy"}, set(), set(), "451 4.3.0 busy"),
    "4xx-end": (b"220 x\r\n", {"end": "452 4.3.1 full"}, set(), set(), "452 4.3.1 full"),
    "4xx-one": (b"220 x\r\n", {"RCPT TO:<bob": "450 4.2.1 busy"}, {"eve", "zoe"}, set(),
                "450 4.2.1 busy"),
    "5xx-one": (b"220 x\r\n", {"RCPT TO:<bob": "550 5.1.1 nobody"}, {"eve", "zoe"}, {"bob"}, ""),
    "5xx-and-4xx": (b"220 x\r\n", {"RCPT TO:<bob": "550 5.1.1 nobody",
                                   "RCPT TO:<eve": "450 4.2.1 busy"}, {"zoe"}, {"bob"},
                    "450 4.2.1 busy"),
    "5xx-end": (b"220 x\r\n", {"end": "554 5.6.0 spam"}, set(), {"bob", "eve", "zoe"}, ""),
}


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with providing(tmp_path_factory.mktemp("odmr") / "a", "relay.reply_seconds=1",
                   workers=2) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


@pytest.mark.parametrize("name", CASES)
def test_a_customer_that_fails_loses_nothing(provider: Service, name: str) -> None:
    greeting, answers, taken, returned, reason = CASES[name]
    send_as_alice(provider, "bob@far.example", "eve@far.example")
    send_as_alice(provider, "zoe@branch.example")
    kept(provider, 2)
    before = len(mail(provider))
    with Customer(provider) as customer:
        customer.log_in()
        customer.answers = answers
        assert customer.turn().startswith(b"250")
        got = customer.serve(greeting)
        assert {each.split("@")[0] for each in got} == taken
        customer.socket.shutdown(socket.SHUT_WR)
        customer.file.read()
    left = {"bob", "eve", "zoe"} - taken - returned
    until(lambda: waiting(provider) == left, provider)
    until(lambda: len(mail(provider)) - before == len({"zoe"} & returned) + (
        bool({"bob", "eve"} & returned)), provider)
    until(lambda: not reason or any(
        reason in each["reply"] for message in listed(provider) for each in message["recipients"]),
        provider)
    if not left:
        assert not queued(provider)
        return
    # The next one gets the rest, and each once.
    assert sorted(each.split("@")[0] for each in fetched(provider)) == sorted(left)
    until(lambda: not queued(provider), provider)


def fetched(service: Service, *domains: str, name: str = "carol@a.example") -> list[str]:
    """A customer fetches what there is, once it is let; the recipients."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with Customer(service) as customer:
            customer.log_in(name)
            answer = customer.turn(*domains)
            if answer.startswith(b"250"):
                return customer.serve()
        # The one before may not be over yet, or the process that sends be gone.
        assert answer[:3] in (b"450", b"451") and time.monotonic() < deadline, answer
        time.sleep(0.05)


def waiting(service: Service) -> set[str]:
    """The local-parts of who waits for mail."""
    return {each["address"].split("@")[0] for message in listed(service)
            for each in message["recipients"] if each["state"] == "waiting"}


def send_as_alice(service: Service, *recipients: str) -> None:
    with smtplib.SMTP(*service.smtp, timeout=PATIENCE) as smtp:
        assert smtp.sendmail("alice@a.example", list(recipients), MESSAGE) == {}


@contextlib.contextmanager
def amid(service: Service, stage: str, *domains: str, listener: str = "odmr"
         ) -> Iterator[Customer]:
    """A customer that has come to *stage*, a command or "content", and says nothing for now."""
    with Customer(service, listener) as customer:
        customer.log_in()
        assert customer.turn(*domains).startswith(b"250")
        customer.send(b"220 x\r\n")
        while line := customer.line():
            if line.startswith(stage.encode()):
                break
            customer.send(b"354 go\r\n" if line == b"DATA" else b"250 x\r\n")
            if line == b"DATA" and stage == "content":
                customer.line()
                break
        yield customer


def test_one_connection_at_a_time_fetches_a_domain(tmp_path: Path) -> None:
    with providing(tmp_path / "a", workers=2) as here:
        send(here, "bob@far.example", "dan@other.example")
        kept(here)
        with amid(here, "MAIL", "far.example"):
            for domains in (), ("branch.example", "far.example"):
                with Customer(here) as second:
                    second.log_in()
                    assert second.turn(*domains).startswith(b"450 4.7.0 Another connection")
                    assert second.say(b"QUIT").startswith(b"221")
            # Other domains are other people's.
            with Customer(here) as other:
                other.log_in()
                assert other.turn("branch.example").startswith(b"453")
            # The same message, which is under way, is to be had a moment later.
            assert fetched(here, name="dave@a.example") == []
        assert fetched(here, "far.example") == ["bob@far.example"]
        assert fetched(here, name="dave@a.example") == ["dan@other.example"]
        until(lambda: not queued(here), here)


def test_what_was_taken_comes_again_only_if_that_was_never_heard(tmp_path: Path) -> None:
    with providing(tmp_path / "a") as here:
        send(here, "bob@far.example")
        kept(here)
        with Customer(here) as customer:
            customer.log_in()
            customer.answers = {"end": "lose"}
            customer.turn()
            assert customer.serve() == ["bob@far.example"]
        assert fetched(here) == ["bob@far.example"]
        send(here, "eve@far.example")
        kept(here)
        with amid(here, "content") as customer:
            while customer.line() != b".":
                pass
            # 250 is the last that it says: it counts.
            customer.send(b"250 taken\r\n")
            customer.socket.shutdown(socket.SHUT_WR)
            customer.file.read()
        until(lambda: not queued(here), here)


@pytest.mark.parametrize("stage", ["EHLO", "MAIL", "content"])
@pytest.mark.parametrize("whom", ["owner", "all-but-owner"])
def test_kill_9_amid_a_turn(tmp_path: Path, stage: str, whom: str) -> None:
    with providing(tmp_path / "a", workers=3) as here:
        for name in "one", "two", "three":
            send(here, f"{name}@far.example", message=LARGE if stage == "content" else MESSAGE)
        kept(here, 3)
        with amid(here, stage, listener="submission" if stage == "EHLO" else "odmr") as customer:
            owner = owner_of(here)
            for pid in [owner] if whom == "owner" else workers_of(here) - {owner}:
                os.kill(pid, signal.SIGKILL)
            if whom == "owner":
                # Without the dot that would make half a message a whole one.
                rest = customer.file.read()
                assert b"\r\n.\r\n" not in rest and len(rest) < len(LARGE)
        assert sorted(fetched(here)) == ["one@far.example", "three@far.example", "two@far.example"]
        until(lambda: not queued(here), here)
        assert "Traceback" not in here.log.read_text()


def test_what_is_not_to_go_stays(tmp_path: Path) -> None:
    with providing(tmp_path / "a") as here:
        run = CommandLine(here.directory)
        send(here, "held@far.example")
        kept(here)
        run("queue", "hold", "to:held@")
        with smtplib.SMTP(*here.listeners["submission"], timeout=PATIENCE) as smtp:
            smtp.login("alice@a.example", "secret")
            smtp.sendmail("alice@a.example", ["later@far.example"], MESSAGE, ["HOLDFOR=3600"])
        with Customer(here) as customer:
            customer.log_in()
            assert customer.turn().startswith(b"453")
        send(here, "now@far.example")
        assert fetched(here) == ["now@far.example"]
        run("queue", "release", "--all")
        kept(here, 2)
        assert sorted(fetched(here)) == ["held@far.example", "later@far.example"]
        until(lambda: not queued(here), here)


def test_what_nobody_fetches_is_returned_when_its_time_is_over(tmp_path: Path) -> None:
    with providing(tmp_path / "a", "queue.retry_first_seconds=0.3", "queue.retry_factor=1",
                   "queue.lifetime_seconds=2", "queue.warning_seconds=0.5") as here:
        send_as_alice(here, "bob@far.example")
        until(lambda: mail(here), here)
        # No warning, which says nothing where mail always waits; but one who asked for it gets it.
        report, = mail(here)
        assert statuses(report) == [("bob@far.example", "failed", "4.4.7")]
        assert b"kept until far.example fetches it" in report
        until(lambda: not queued(here), here)
        with smtplib.SMTP(*here.smtp, timeout=PATIENCE) as smtp:
            smtp.ehlo()
            smtp.sendmail("alice@a.example", ["eve@far.example"], MESSAGE,
                          rcpt_options=["NOTIFY=DELAY"])
        until(lambda: len(mail(here)) == 2, here)
        assert statuses(mail(here)[1]) == [("eve@far.example", "delayed", "4.4.0")]
        until(lambda: not queued(here), here)


def test_other_recipients_keep_their_times(tmp_path: Path) -> None:
    with providing(tmp_path / "a", "relay.smarthost=127.0.0.1:1",
                   "submission.trusted_networks=['127.0.0.0/8']") as here:
        with smtplib.SMTP(*here.listeners["submission"], timeout=PATIENCE) as smtp:
            smtp.sendmail("alice@a.example", ["bob@far.example", "x@elsewhere.example"], MESSAGE)
        # What one way came to is on disk before the attempt is over, and its next time is set.
        until(lambda: [each["next"] > each["arrived"] for each in listed(here)] == [True], here)
        before, = listed(here)
        assert before["attempts"] == 1
        assert before["status"] == "deferred"
        assert fetched(here) == ["bob@far.example"]
        until(lambda: waiting(here) == {"x"}, here)
        after, = listed(here)
        assert (after["next"], after["attempts"]) == (before["next"], 1)


def test_a_domain_may_be_sent_to_and_fetch(tmp_path: Path) -> None:
    with providing(tmp_path / "a", "relay.smarthost=127.0.0.1:1",
                   'routing.relay_domains=["far.example"]') as here:
        send(here, "bob@far.example", "eve@branch.example")
        until(lambda: [each["attempts"] for each in listed(here)] == [1], here)
        message, = listed(here)
        assert [each["reply"].startswith("kept") for each in message["recipients"]] == [
            False, True]
        assert sorted(fetched(here)) == ["bob@far.example", "eve@branch.example"]
        until(lambda: not queued(here), here)


def test_what_comes_meanwhile_is_sent_too(tmp_path: Path) -> None:
    with providing(tmp_path / "a", workers=2) as here:
        send(here, "first@far.example")
        kept(here)
        with Customer(here) as customer:
            customer.log_in()
            # Greeting and all in one packet, as one does who cannot wait.
            customer.send(b"ATRN\r\n220 x\r\n")
            assert customer.line().startswith(b"250")
            assert customer.line().startswith(b"EHLO")
            send(here, "second@far.example")
            until(lambda: "kept recipient=second@far.example" in here.log.read_text(), here)
            assert customer.serve(b"250 x\r\n") == ["first@far.example", "second@far.example"]
        until(lambda: not queued(here), here)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_service_stops_between_two_messages(tmp_path: Path, workers: int) -> None:
    with providing(tmp_path / "a", workers=workers) as here:
        for name in "one", "two":
            send(here, f"{name}@far.example")
        kept(here, 2)
        with amid(here, "content") as customer:
            while customer.line() != b".":
                pass
            here.process.send_signal(signal.SIGTERM)
            until(lambda: here.log.read_text().count("stopping; ") == workers, here)
            customer.send(b"250 taken\r\n")
            assert customer.line() == b"QUIT"
            customer.send(b"221 bye\r\n")
            assert customer.file.read() == b""
        assert here.process.wait(PATIENCE) == 0
        assert len(queued(here)) == 1


@pytest.mark.parametrize("listener", ["odmr", "submissions"])
def test_a_slow_customer_costs_no_memory(tmp_path: Path, listener: str) -> None:
    with providing(tmp_path / "a", workers=2, options=("--submissions", "127.0.0.1:0")) as here:
        send(here, "bob@far.example", message=LARGE)
        kept(here)
        with amid(here, "content", listener=listener) as customer:
            before = here.resident()
            time.sleep(1)
            assert here.resident() - before < len(LARGE) / 3
            lines = []
            while (line := customer.file.readline()) != b".\r\n":
                lines.append(line)
            customer.send(b"250 ok\r\n")
            assert lines[-LINES:] == [b"x" * 70 + b"\r\n"] * LINES
            assert customer.line() == b"QUIT"
        until(lambda: not queued(here), here)


def test_what_requires_tls_is_returned_for_nobody_has_proven_a_name(tmp_path: Path) -> None:
    with providing(tmp_path / "a") as here:
        with smtplib.SMTP(*here.listeners["submission"], timeout=PATIENCE) as smtp:
            smtp.starttls(context=unverified())
            smtp.login("alice@a.example", "secret")
            smtp.sendmail("alice@a.example", ["bob@far.example"], MESSAGE, ["REQUIRETLS"])
        kept(here)
        assert fetched(here) == []
        until(lambda: mail(here), here)
        assert statuses(mail(here)[0]) == [("bob@far.example", "failed", "5.7.30")]
        until(lambda: not queued(here), here)
