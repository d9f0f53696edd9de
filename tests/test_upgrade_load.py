"""Reload, renewed certificates and upgrades, under the load of clients that notice nothing."""

from __future__ import annotations

import poplib
import re
import smtplib
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from mailsvc import control
from mailsvc.directory import SqliteDirectory
from mailsvc.names import parse_address
from tests.exchanger import Exchanger
from tests.service import PATIENCE
from tests.test_workers import alive, until
from tests.upgrading import FETCHED, FIRST, KEPT, RENEWED, Program, begin, logged_in, talking

MESSAGE = b"Subject: hello\r\n\r\nHello.\r\n"


class Load:
    """Clients that run until told to stop: what each thread does fails the test when it raises.

    :ivar sent: how many messages smtp-source has had acknowledged, by recipient.
    :ivar fetched: how many POP3 sessions have been.
    """

    def __init__(self, program: Program, smtp_source: str) -> None:
        self.sent: Counter[str] = Counter()
        self.fetched = 0
        self.problems: list[BaseException] = []
        self._over = threading.Event()
        smtp, pop3, pop3s = map(program.address, ("smtp", "pop3", "pop3s"))
        self._threads = [threading.Thread(target=self._run, args=each) for each in (
            # Sessions of many messages, a session for each message, and what is relayed.
            (self._send, smtp_source, smtp, KEPT, "-d", "-m", "60", "-l", "3000"),
            (self._send, smtp_source, smtp, KEPT, "-m", "25"),
            (self._send, smtp_source, smtp, "forwarded@example.org", "-m", "5"),
            (self._fetch, poplib.POP3, pop3, FETCHED[0]),
            (self._fetch, _unverified, pop3s, FETCHED[1]))]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        assert not self.problems, self.problems

    def goes_on(self) -> None:
        """Wait until every kind of client has done something more."""
        kept, relayed, fetched = self.sent[KEPT], self.sent.total(), self.fetched
        until(lambda: bool(self.problems) or (
            self.sent[KEPT] >= kept + 85 and self.sent.total() > relayed + 85
            and self.fetched >= fetched + 10))
        assert not self.problems, self.problems

    def _run(self, act: Callable[..., None], *arguments: Any) -> None:
        try:
            while not self._over.is_set():
                act(*arguments)
        except BaseException as problem:
            self.problems.append(problem)

    def _send(self, smtp_source: str, address: tuple[str, int], recipient: str,
              *options: str) -> None:
        done = subprocess.run(
            [smtp_source, "-s", "3", *options, "-f", "s@example.net", "-t", recipient,
             "{}:{}".format(*address)], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done
        self.sent[recipient] += int(options[options.index("-m") + 1])

    def _fetch(self, connect: Callable[..., poplib.POP3], address: tuple[str, int],
               account: str) -> None:
        pop3 = connect(*address, timeout=PATIENCE)
        pop3.user(account)
        pop3.pass_("secret")
        assert pop3.stat()[0] == 1
        assert pop3.retr(1)[1][-1] == b"Hello."
        pop3.quit()
        self.fetched += 1


def _unverified(host: str, port: int, timeout: float) -> poplib.POP3:
    return poplib.POP3_SSL(host, port, timeout=timeout, context=ssl._create_unverified_context())


def serial(address: tuple[str, int]) -> int:
    """The serial number of the certificate that is shown."""
    with closing(_unverified(*address, timeout=PATIENCE)) as pop3:
        assert isinstance(pop3.sock, ssl.SSLSocket)
        shown = pop3.sock.getpeercert(binary_form=True)
        assert shown is not None
        return x509.load_der_x509_certificate(shown).serial_number


@pytest.mark.parametrize("workers", [1, 2])
def test_reload_renewal_and_upgrades_under_load(
    tmp_path: Path, program: Callable[[str], str], workers: int
) -> None:
    smtp_source = program("smtp-source")
    with Exchanger("127.0.0.1", 0, "") as there, ExitStack() as stack:
        service = stack.enter_context(Program(
            tmp_path, workers, f'[relay]\nsmarthost = "127.0.0.1:{there.port}"\n'
            "[smtp]\nconnections_per_minute = 0\n[pop3]\nconnections_per_minute = 0\n"))
        with SqliteDirectory(service.data / "accounts.sqlite") as directory:
            directory.add_alias(parse_address("forwarded@example.org"),
                                [parse_address("them@far.example")])
        smtp, pop3, pop3s = map(service.address, ("smtp", "pop3", "pop3s"))
        for account in FETCHED:
            with smtplib.SMTP(*smtp, timeout=PATIENCE) as sender:
                sender.sendmail("s@example.net", [account], MESSAGE)
        load = stack.enter_context(Load(service, smtp_source))
        load.goes_on()
        held = stack.enter_context(talking(smtp))
        begin(held)
        # It sees what was there when it began, whoever serves when it ends.
        reading = logged_in(pop3, KEPT)
        marked = reading.retr(1)[1]
        reading.dele(1)
        reading.noop()

        if workers > 1:
            assert control.reload(service.data) == workers
            load.goes_on()

        assert serial(pop3s) == FIRST.serial
        RENEWED.write(tmp_path / "certificate")
        until(lambda: serial(pop3s) == RENEWED.serial)
        load.goes_on()

        former = [service.upgrade("2.0")]
        until(lambda: re.search(r"its last \d+ sessions$", service.status) is not None)
        load.goes_on()
        former.append(service.upgrade("3.0"))
        load.goes_on()
        assert serial(pop3s) == RENEWED.serial
        # Both wait for the sessions that the first has.
        assert all(map(alive, former))

        held.send(b"\r\nHello.\r\n.\r\n")
        assert held.reply().startswith(b"250")
        assert held.say(b"QUIT").startswith(b"221")
        assert reading.quit().startswith(b"+OK")
        until(lambda: not any(map(alive, former)))
        until(lambda: service.status.startswith("serving")
              and "former" not in service.status)
        assert len(service.processes()) == (1 if workers == 1 else 1 + workers)
        load.goes_on()
        load.__exit__()

        kept = [_id(message) for message in service.messages(KEPT)]
        # One came by the held session, and one was deleted.
        assert len(set(kept)) == len(kept) == load.sent[KEPT] + 1 - 1
        assert b"<held@client.example>" in kept
        assert _id(b"\r\n".join(marked)) not in kept
        until(lambda: not list((service.data / "queue" / "message").iterdir()))
        relayed = [_id(text) for _, _, text, _ in there.messages]
        assert len(set(relayed)) == len(relayed) == load.sent["forwarded@example.org"]
        service.stop()
        assert "Traceback" not in service.text()


def _id(message: bytes) -> bytes:
    found = re.search(rb"^Message-Id: (<[^>\r\n]+>)", message, re.MULTILINE)
    assert found, message
    return found[1]
