"""kill -9 at random moments under load: what was acknowledged is there, once and whole.

Fifty times a service is started over the same directory, loaded with mail in and mail out, and
killed.  After each kill the maildirs are held against what the clients were told.
"""

from __future__ import annotations

import hashlib
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from tests.service import Dialogue, Service, login, stuffed

ROUNDS = 50
SENDERS = 6
#: Mail for two of them is delivered at once, mail for the last is fetched while more comes in.
KEPT = ("kept@example.org", "twin@example.org")
DRAINED = "drained@example.org"

_TRAILER = re.compile(rb"\r\nname: (\S+) digest: ([0-9a-f]{40})\r\n\Z")


def compose(name: str, octets: int) -> bytes:
    """A message that names itself and proves itself whole in its last line."""
    body = (b"Subject: %s\r\n\r\n" % name.encode()) + (b"." * 71 + b"\r\n") * (octets // 73)
    return body + b"\r\nname: %s digest: %s\r\n" % (name.encode(), _digest(body))


def _digest(body: bytes) -> bytes:
    return hashlib.sha1(body).hexdigest().encode()


def identify(stored: bytes) -> str:
    """The name of a whole message, trace header on top; fails when it is not whole."""
    match = _TRAILER.search(stored)
    assert match, f"cut short: {stored[-100:]!r}"
    body = stored[stored.index(b"Subject: "):match.start()]
    assert _digest(body) == match[2], f"{match[1]!r} is not what was sent"
    return match[1].decode()


@dataclass
class Ledger:
    """What the clients were told; written by many threads (set.add is atomic)."""

    #: Acknowledged with 250, and sent at all.
    kept: set[str] = field(default_factory=set)
    drained: set[str] = field(default_factory=set)
    #: Named in a QUIT that was sent; and in one that was answered +OK.
    deleting: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)


def send(service: Service, ledger: Ledger, name: str) -> None:
    """Send without end on one connection, each third message to be drained, some large."""
    with Dialogue(service.smtp) as smtp:
        smtp.reply()
        smtp.say(b"EHLO client.example.net")
        for number in range(1_000_000):
            message = f"{name}-{number}"
            recipients, told = (((DRAINED,), ledger.drained) if number % 3 == 2
                                else (KEPT, ledger.kept))
            smtp.send(b"MAIL FROM:<s@example.net>\r\n"
                      + b"".join(b"RCPT TO:<%s>\r\n" % r.encode() for r in recipients)
                      + b"DATA\r\n")
            for _ in recipients:
                smtp.reply()
            assert smtp.reply().startswith(b"250")
            assert smtp.reply().startswith(b"354")
            smtp.send(stuffed(compose(message, 200_000 if number % 17 == 16 else 300)))
            answer = smtp.reply()
            assert answer.startswith(b"250"), answer
            told.add(message)


def drain(service: Service, ledger: Ledger) -> None:
    """Fetch and delete everything again and again."""
    while True:
        with login(service, DRAINED) as pop3:
            count = int(pop3.ask(b"STAT").split()[1])
            names = []
            for number in range(1, count + 1):
                pop3.ask(b"RETR %d" % number)
                names.append(identify(b"".join(line + b"\r\n" for line in pop3.multiline())))
                pop3.ask(b"DELE %d" % number)
            ledger.deleting.update(names)
            pop3.ask(b"QUIT")
            ledger.deleted.update(names)


class Load:
    """Clients that run until the service is gone.

    :ivar killing: to be set before the service is killed: from then on connections may end.
    :ivar problems: what ended a client before that.
    :ivar clients: the threads.
    """

    def __init__(self, service: Service, ledger: Ledger, name: str) -> None:
        self.killing = threading.Event()
        self.problems: list[BaseException] = []
        self.clients = [self._start(partial(send, service, ledger, f"{name}-{number}"))
                         for number in range(SENDERS)]
        self.clients.append(self._start(partial(drain, service, ledger)))

    def _start(self, client: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                client()
            except (OSError, AssertionError) as error:
                if not self.killing.is_set():
                    self.problems.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def join(self) -> None:
        for client in self.clients:
            client.join(30)
            assert not client.is_alive()
        assert not self.problems


class Maildirs:
    """The maildirs on disk between two rounds; each file is read once."""

    def __init__(self, service: Service) -> None:
        self._directories = {account: service.maildir(account) for account in (*KEPT, DRAINED)}
        self._read: dict[Path, str] = {}

    def names(self, account: str) -> Counter[str]:
        """How often each message is there; fails when one is not whole."""
        found: Counter[str] = Counter()
        for subdirectory in ("new", "cur"):
            for path in (self._directories[account] / subdirectory).iterdir():
                if path not in self._read:
                    self._read[path] = identify(path.read_bytes())
                found[self._read[path]] += 1
        return found


def check(maildirs: Maildirs, ledger: Ledger) -> None:
    for account in KEPT:
        found = maildirs.names(account)
        assert not ledger.kept - found.keys(), f"acknowledged and lost from {account}"
        assert not [name for name, count in found.items() if count > 1], "delivered twice"
    found = maildirs.names(DRAINED)
    assert not ledger.drained - ledger.deleting - found.keys(), "lost without being deleted"
    assert not ledger.deleted & found.keys(), "deleted, and there again"
    assert not [name for name, count in found.items() if count > 1], "delivered twice"


@pytest.mark.slow
def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    accounts = tuple(f"{account}:secret" for account in (*KEPT, DRAINED))
    ledger = Ledger()
    maildirs = None
    for number in range(ROUNDS):
        service = Service(tmp_path / "data", accounts)
        try:
            # No lock outlives its holder: every maildrop opens at once.
            for account in (*KEPT, DRAINED):
                with login(service, account) as pop3:
                    pop3.ask(b"QUIT")
            load = Load(service, ledger, str(number))
            time.sleep(random.uniform(0.01, 0.4))
            load.killing.set()
        finally:
            service.kill()
        load.join()
        maildirs = maildirs or Maildirs(service)
        check(maildirs, ledger)
    assert len(ledger.kept) > 10 * ROUNDS, "the service was loaded"
    assert ledger.deleted, "and drained"
