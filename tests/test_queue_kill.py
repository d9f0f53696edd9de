"""kill -9 of any process under load: what was submitted is relayed, and nothing twice but what the
next host had taken and not been heard about.

In each round one of the processes is killed: the worker that sends, another worker, or the
supervisor, with which all end, so that the service is started again.  ``python -m
tests.test_queue_kill 50`` does fifty rounds and tells what it counted.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import smtplib
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mailsvc.mail import Address, new_id
from mailsvc.queue.message import QueuedMessage, QueuedRecipient, envelope_line
from mailsvc.queue.spool import Spool
from tests.exchanger import Exchanger
from tests.relay import MESSAGE, QUICK, queued
from tests.service import PATIENCE, Service
from tests.test_queue_workers import owner_of, sent_to, together
from tests.test_workers import alive, workers_of

ROUNDS = 6
SENDERS = 6
#: How many messages wait before the first round, which make the others help to send.
BACKLOG = 1500
#: How many connections may be amid a message when a process is killed.
CONNECTIONS = 10


@dataclass
class Counted:
    """What the clients were told, and what came of it."""

    acknowledged: set[str] = field(default_factory=set)
    sent: set[str] = field(default_factory=set)
    killed: Counter[str] = field(default_factory=Counter)
    #: Duplicates of messages whose first 250 was not read, and of those where it was.
    unread: int = 0
    read: int = 0


class Load:
    """Clients that submit without end, wherever the service is at the time."""

    def __init__(self, counted: Counted) -> None:
        self.service: Service | None = None
        self._counted = counted
        self._over = threading.Event()
        self._clients = [threading.Thread(target=self._client, args=(number,))
                         for number in range(SENDERS)]
        for client in self._clients:
            client.start()

    def _client(self, number: int) -> None:
        count = 0
        while not self._over.is_set():
            service = self.service
            if service is None:
                time.sleep(0.02)
                continue
            # A process may be killed in any moment, and its connections with it.
            with contextlib.suppress(OSError, smtplib.SMTPException), smtplib.SMTP(
                    *service.listeners["submission"], timeout=PATIENCE) as smtp:
                while not self._over.is_set():
                    count += 1
                    name = f"m{number}-{count}@far.example"
                    self._counted.sent.add(name)
                    smtp.sendmail("alice@a.example", [name], MESSAGE)
                    self._counted.acknowledged.add(name)
            time.sleep(0.01)

    def join(self) -> None:
        self._over.set()
        for client in self._clients:
            client.join(PATIENCE)
            assert not client.is_alive()


def rounds(directory: Path, number: int) -> Counted:
    """Kill *number* times, let the queue run empty, and hold the exchanger against the clients."""
    counted = Counted()
    with Exchanger("127.0.0.1", 0, "") as there:
        settings = (f"relay.smarthost=127.0.0.1:{there.port}", *QUICK[:2],
                    'submission.trusted_networks=["127.0.0.0/8"]',
                    "submission.messages_per_hour=0", "submission.recipients_per_hour=0")
        counted.acknowledged |= backlog(directory, BACKLOG)
        counted.sent |= counted.acknowledged
        load, service = Load(counted), together(directory, 3, *settings)
        try:
            load.service = service
            for _ in range(number):
                time.sleep(random.uniform(0.05, 0.8))
                service = kill_one(service, counted, load, directory, settings)
        finally:
            load.join()
            if service.process.poll() is None and sys.exc_info()[0] is not None:
                service.kill()
        with service:
            empties(service)
        seen: dict[str, int] = {}
        for place, name in enumerate(sent_to(there)):
            first = seen.setdefault(name, place)
            if first != place and first in there.read:
                counted.read += 1
            elif first != place:
                counted.unread += 1
        assert seen.keys() <= counted.sent
        assert not counted.acknowledged - seen.keys(), "acknowledged, and lost"
    return counted


def empties(service: Service) -> None:
    """Wait until its queue is empty, as long as messages leave it; ten minutes at most.

    The exchanger takes a few hundred a second, and many rounds leave thousands.
    """
    end = time.monotonic() + 600
    left, deadline = len(queued(service)), time.monotonic() + 60
    while left:
        time.sleep(0.05)
        before, left = left, len(queued(service))
        now = time.monotonic()
        deadline = now + 60 if left < before else deadline
        assert now < min(deadline, end), service.log.read_text()[-4000:]


def backlog(directory: Path, messages: int) -> set[str]:
    """Put so many messages into the queue; their recipients."""
    directory.mkdir()
    spool = Spool(directory / "queue")
    spool.make()
    recipients = [Address(f"b{number}", "far.example") for number in range(messages)]
    for each in recipients:
        message = QueuedMessage(new_id(), time.time(), Address("alice", "a.example"),
                                [QueuedRecipient(each, each)])
        (spool.root / "message" / message.id).write_bytes(
            envelope_line(message) + MESSAGE)
    return {str(each) for each in recipients}


def kill_one(service: Service, counted: Counted, load: Load, directory: Path,
             settings: tuple[str, ...]) -> Service:
    """kill -9 one process; the service that there is then."""
    which = random.choice(("sending", "other", "supervisor"))
    owner = owner_of(service)
    others = sorted(workers_of(service) - {owner})
    counted.killed[which] += 1
    if which == "supervisor":
        load.service = None
        pids = service.pids()
        os.kill(service.pid, signal.SIGKILL)
        service.process.wait(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while any(map(alive, pids)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        service.stop()
        load.service = service = together(directory, 3, *settings)
    else:
        pid = owner if which == "sending" else random.choice(others or [owner])
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return service


@pytest.mark.slow
def test_what_was_submitted_survives_kill_9_of_any_process(tmp_path: Path) -> None:
    counted = rounds(tmp_path / "a", ROUNDS)
    assert len(counted.acknowledged) > 10 * ROUNDS, "the service was loaded"
    assert counted.read == 0, "sent again although the 250 had been read"
    # A duplicate needs a kill amid a message.
    assert counted.unread <= CONNECTIONS * ROUNDS


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="mailsvc-test-") as place:
        told = rounds(Path(place) / "a", int(sys.argv[1]) if sys.argv[1:] else 50)
    print(f"{sum(told.killed.values())} kills {dict(told.killed)}; "
          f"{len(told.acknowledged)} messages acknowledged, none lost; "
          f"{told.unread} duplicates whose 250 was not read, {told.read} whose 250 was")
