"""The service's memory while much is asked of it, read from /proc."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.messages import large
from tests.service import Dialogue, Service, login, stuffed, submit

MIB = 1 << 20
ACCOUNT = "b@example.org"
CLIENTS = 20
MESSAGES = 100_000
IDLE = 2_000


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A fresh one for each test: memory that one test made it take hides what the next needs."""
    with Service(tmp_path / "data", (f"{ACCOUNT}:secret",)) as running:
        yield running


@pytest.fixture
def idle(service: Service) -> int:
    """Octets resident when it has nothing to do, having done a little of everything once."""
    submit(service, large(3 * MIB), (ACCOUNT,))
    with login(service, ACCOUNT) as pop3:
        for command in (b"LIST", b"UIDL", b"RETR 1"):
            pop3.ask(command)
            assert list(pop3.multiline())
        pop3.ask(b"DELE 1")
        pop3.ask(b"QUIT")
    return service.resident()


def above(idle: int, peak: int) -> int:
    """*peak* less *idle*; printed, to be read with ``pytest -s``."""
    print(f"{(peak - idle) / MIB:.1f} MiB above the {idle / MIB:.1f} MiB when idle")
    return peak - idle


class Watch:
    """Samples what the service holds resident until the block ends; ``peak`` is the most."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(0.02):
            self.peak = max(self.peak, self.service.resident())


@pytest.mark.slow
def test_twenty_clients_send_25_mib_at_once(service: Service, idle: int) -> None:
    message = large(25 * MIB)
    wire = stuffed(message)
    ready = threading.Barrier(CLIENTS)
    answers: list[bytes] = []

    def send() -> None:
        with Dialogue(service.smtp) as smtp:
            smtp.reply()
            smtp.say(b"EHLO client.example.net")
            smtp.say(b"MAIL FROM:<s@example.net>")
            smtp.say(b"RCPT TO:<%s>" % ACCOUNT.encode())
            assert smtp.say(b"DATA").startswith(b"354")
            ready.wait(30)
            smtp.send(wire)
            smtp.socket.settimeout(120)
            answers.append(smtp.reply())

    with Watch(service) as watch:
        clients = [threading.Thread(target=send) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    assert [answer[:3] for answer in answers] == [b"250"] * CLIENTS
    sizes = [path.stat().st_size for path in (service.maildir(ACCOUNT) / "new").iterdir()]
    assert len(sizes) == CLIENTS
    assert all(size > len(message) for size in sizes)
    assert above(idle, watch.peak) <= 20 * MIB
    # And out again, by a client that reads slowly.
    with Watch(service) as watch, login(service, ACCOUNT) as pop3:
        pop3.send(b"".join(b"RETR %d\r\n" % number for number in range(1, CLIENTS + 1)))
        time.sleep(1)
        octets = 0
        for _ in range(CLIENTS):
            assert pop3.line().startswith(b"+OK")
            while (line := pop3.file.readline()) != b".\r\n":
                octets += len(line) - line.startswith(b".")
        pop3.send(b"".join(b"DELE %d\r\n" % number for number in range(1, CLIENTS + 1)))
        pop3.send(b"QUIT\r\n")
        assert pop3.file.read().count(b"+OK") == CLIENTS + 1
    assert octets == sum(sizes)
    assert above(idle, watch.peak) <= 20 * MIB


def fill(maildir: Path, count: int) -> None:
    """*count* messages in cur/, hard links of a few files, named as another program would."""
    message = b"Subject: one of many\r\n\r\n" + b"text\r\n" * 100
    cur = maildir / "cur"
    original = maildir / "tmp" / "original"
    for number in range(count):
        # ext4 allows 65,000 links of a file.
        if number % 30_000 == 0:
            original.unlink(missing_ok=True)
            original.write_bytes(message)
        name = f"1700000000.M{number:06}P1234.host.example.org,S={len(message)}:2,S"
        os.link(original, cur / name)
    original.unlink()


@pytest.mark.slow
def test_a_client_lists_100_000_messages(service: Service, idle: int) -> None:
    fill(service.maildir(ACCOUNT), MESSAGES)
    with Watch(service) as watch, login(service, ACCOUNT) as pop3:
        assert int(pop3.ask(b"STAT").split()[1]) == MESSAGES
        # The client does not read for a while: the listings wait in the service, or should not.
        pop3.send(b"UIDL\r\nLIST\r\n" * 5)
        time.sleep(1)
        for _ in range(5):
            for command in (b"UIDL", b"LIST"):
                assert pop3.line().startswith(b"+OK"), command
                assert sum(1 for _ in pop3.multiline()) == MESSAGES
        pop3.ask(b"QUIT")
    assert above(idle, watch.peak) <= 20 * MIB


def test_an_idle_connection_costs_at_most_10_kib(service: Service, idle: int) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert limits[1] == resource.RLIM_INFINITY or limits[1] > IDLE + 100, "raise `ulimit -Hn`"
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits[1], 3 * IDLE), limits[1]))
    try:
        with ExitStack() as stack:
            for number in range(IDLE):
                if number % 2:
                    smtp = stack.enter_context(Dialogue(service.smtp))
                    assert smtp.reply().startswith(b"220")
                    assert smtp.say(b"EHLO client.example.net").startswith(b"250")
                else:
                    pop3 = stack.enter_context(Dialogue(service.pop3))
                    assert pop3.line().startswith(b"+OK")
                    pop3.ask(b"CAPA")
                    assert list(pop3.multiline())
            cost = (service.resident() - idle) / IDLE
            print(f"{cost / 1024:.1f} KiB a connection")
            assert cost <= 10 * 1024
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
