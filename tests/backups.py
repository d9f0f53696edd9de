"""What tests of snapshots and of restoring share: two accounts, and a service that has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command_line import CommandLine, fresh_command_line
from tests.service import Service, fetch, login

ALICE, BOB = "alice@example.org", "bob@example.org"
ACCOUNTS = (f"{ALICE}:secret", f"{BOB}:secret")


def message(number: int) -> bytes:
    return (b"Subject: %d\r\nMessage-ID: <%d@example.net>\r\n\r\n" % (number, number)
            + b"line\r\n" * (number % 50))


def uidls(service: Service, account: str = ALICE) -> list[bytes]:
    """The unique-ids of the mailbox, in order."""
    with login(service, account) as pop3:
        pop3.ask(b"UIDL")
        found = [line.split()[1] for line in pop3.multiline()]
        pop3.ask(b"QUIT")
    return found


def subjects(service: Service, account: str) -> dict[int, int]:
    """How often each number is in the mailbox."""
    found: dict[int, int] = {}
    for text in fetch(service, account, delete=False):
        number = int(text.partition(b"Subject: ")[2].split(b"\r\n")[0])
        found[number] = found.get(number, 0) + 1
    return found


@pytest.fixture
def mailsvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return fresh_command_line(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("backup") / "data", ACCOUNTS) as service:
        yield service


@pytest.fixture
def service(running: Service, mailsvc: CommandLine) -> Service:
    """A running service without mail, which the command line is about."""
    for account in (ALICE, BOB):
        fetch(running, account)
    mailsvc.dir = running.directory
    return running
