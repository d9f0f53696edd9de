"""Mail brought from Dovecot, by POP3 and IMAP, while clients go on to use it.

MAILSVC_IMPORT=10000 makes it so many messages.
"""

from __future__ import annotations

import json
import os
import poplib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import absent
from tests.daemons import Dovecot, free_port, own
from tests.messages import CORPUS, RAW, large, long_line
from tests.service import Service, difference, fetch, login
from tests.stores import files

NUMBER = int(os.environ.get("MAILSVC_IMPORT", "500"))
NAMES = ("pop@example.org", "imap@example.org", "broken@example.org", "two@example.org")
MESSAGES = [*CORPUS.values(), *RAW.values(), long_line(10_000), large(300_000)]
MESSAGES.remove(b"")
# Dovecot (2.3.19) does not stuff a dot that a message begins with.
MESSAGES.remove(RAW["one-dot"])


def message(number: int) -> bytes:
    if number < len(MESSAGES):
        return MESSAGES[number]
    return (b"Received: from a by b; Fri, 20 Nov 2026 09:30:00 +0000\r\nSubject: %d\r\n\r\n"
            % number + b"line\r\n" * (number % 40))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("import") / "data",
                 tuple(f"{name}:secret" for name in NAMES)) as running:
        yield running


@pytest.fixture(scope="module")
def dovecot(program: Callable[[str], str]) -> Iterator[Dovecot]:
    port = free_port()
    if not Path("/usr/lib/dovecot/imap").exists():
        with Dovecot(program) as running:
            yield running
        return
    with Dovecot(program, f"""
protocols = pop3 lmtp imap
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
""") as running:
        running.imap = ("127.0.0.1", port)  # type: ignore[attr-defined]
        yield running


def fill(dovecot: Dovecot, account: str, first: int, end: int) -> None:
    """Put messages into the mailbox as a delivery agent that leaves LF does, and flags some."""
    home = dovecot.maildir(account)
    for part in ("tmp", "new", "cur"):
        (home / part).mkdir(parents=True, exist_ok=True)
    for number in range(first, end):
        path = home / "cur" / f"{1_600_000_000 + number}.M1P{number}.old:2,{'S' * (number % 2)}"
        path.write_bytes(message(number))
        os.utime(path, (1_600_000_000 + number, 1_600_000_000 + number))
    own(home)


def run(service: Service, account: str, source: str, *options: str, status: int = 0,
        timeout: float = 600) -> Any:
    result = subprocess.run(
        [sys.executable, "-c", "from mailsvc.cli import main; main()", "--dir",
         str(service.directory), "import", account, source, "--tls", "no", "--password-stdin",
         "--json", *options],
        input="secret\n", capture_output=True, text=True, timeout=timeout, check=False)
    assert result.returncode == status, result.stderr
    return json.loads(result.stdout)


# It refuses lines of more than 2,048 octets.
poplib._MAXLINE = 1 << 20


class Client:
    """A mail program that leaves mail on the server, and gets what it has not got yet."""

    def __init__(self, account: str, password: str = "secret") -> None:
        self.got: dict[bytes, bytes] = {}
        self._account = account
        self._password = password

    def look(self, address: tuple[str, int]) -> int:
        """Get what is new; how much that was."""
        connection = poplib.POP3(*address)
        connection.user(self._account)
        connection.pass_(self._password)
        new = 0
        for line in connection.uidl()[1]:
            number, unique_id = line.split()
            if unique_id not in self.got:
                self.got[unique_id] = b"\r\n".join(connection.retr(int(number))[1])
                new += 1
        connection.quit()
        return new


def test_by_pop3_no_client_sees_a_message_twice(service: Service, dovecot: Dovecot) -> None:
    account = NAMES[0]
    fill(dovecot, account, 0, NUMBER)
    client = Client(account)
    assert client.look(dovecot.pop3) == NUMBER
    before = dict(client.got)
    source = f"pop3://{account}@127.0.0.1:{dovecot.pop3[1]}"
    told = run(service, account, source)
    assert (told["imported"], told["before"], told["renamed"]) == (NUMBER, 0, 0)
    assert client.look(service.pop3) == 0
    assert client.got == before
    # Between import and move some more came, and some was deleted here.
    with login(service, account) as pop3:
        deleted = pop3.ask(b"UIDL 1").split()[2]
        pop3.ask(b"DELE 1")
        pop3.ask(b"QUIT")
    fill(dovecot, account, NUMBER, NUMBER + 5)
    told = run(service, account, source)
    assert (told["imported"], told["before"]) == (5, NUMBER)
    assert client.look(service.pop3) == 5
    assert client.look(dovecot.pop3) == 0
    del client.got[deleted]
    assert difference(sorted(fetch(service, account)), sorted(
        text + b"\r\n" for text in client.got.values())) == ""


def test_one_that_is_killed_goes_on(service: Service, dovecot: Dovecot) -> None:
    account = NAMES[2]
    fill(dovecot, account, 0, NUMBER)
    client = Client(account)
    client.look(dovecot.pop3)
    source = f"pop3://{account}@127.0.0.1:{dovecot.pop3[1]}"
    child = subprocess.Popen(
        [sys.executable, "-c", "from mailsvc.cli import main; main()", "--dir",
         str(service.directory), "import", account, source, "--tls", "no", "--password-stdin"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert child.stdin is not None
    child.stdin.write(b"secret\n")
    child.stdin.close()
    new = service.maildir(account) / "new"
    while not new.exists() or len(os.listdir(new)) < NUMBER // 4:
        assert child.poll() is None, "it was done sooner than killed"
        time.sleep(0.005)
    child.kill()
    child.wait()
    there = len(os.listdir(new))
    told = run(service, account, source)
    assert told["imported"] == NUMBER - there
    assert told["before"] == there
    assert client.look(service.pop3) == 0


def test_by_imap(service: Service, dovecot: Dovecot) -> None:
    if not hasattr(dovecot, "imap"):
        absent("dovecot-imapd is not installed; .ci/run names the package")
    account = NAMES[1]
    fill(dovecot, account, 0, 100)
    (dovecot.maildir(account) / ".Alt &- Gr&APYA3w-e/cur").mkdir(parents=True)
    deleted = next((dovecot.maildir(account) / "cur").glob("*P90.old*"))
    deleted.rename(deleted.with_name(deleted.name.partition(":")[0] + ":2,T"))
    own(dovecot.maildir(account))
    source = f"imap://{account}@127.0.0.1:{dovecot.imap[1]}"
    told = run(service, account, source)
    assert told["imported"] == 99
    assert told["notes"] == ["left out: 1 messages in INBOX that are flagged as deleted"]
    there = sorted((path.stat().st_mtime, path.name.partition(":2,")[2], path.read_bytes())
                   for path in files(service.maildir(account)))
    assert there == [(1_600_000_000 + number, "S" * (number % 2), message(number))
                     for number in range(100) if number != 90]
    fill(dovecot, account, 100, 103)
    assert run(service, account, source)["imported"] == 3
    told = run(service, account, source, "--folder", "Alt & Größe")
    assert (told["imported"], told["error"]) == (0, None)
    assert "folder None" in run(service, account, source, "--folder", "None", status=1)["error"]


def test_two_accounts_with_the_same_unique_ids_become_one(
    service: Service, dovecot: Dovecot
) -> None:
    account = NAMES[3]
    fill(dovecot, account, 0, 5)
    assert run(service, account, f"pop3://{account}@127.0.0.1:{dovecot.pop3[1]}")["imported"] == 5
    for path in (dovecot.maildir(account) / "cur").iterdir():
        path.write_bytes(b"Another: yes\r\n" + path.read_bytes())
    (dovecot.maildir(account) / "dovecot.index.cache").unlink(missing_ok=True)
    told = run(service, account, f"pop3://{account}@localhost:{dovecot.pop3[1]}")
    assert (told["imported"], told["renamed"]) == (5, 5)
    assert len(fetch(service, account, delete=False)) == 10


@pytest.mark.parametrize("scheme", ["pop3", "imap"])
def test_a_wrong_password(service: Service, dovecot: Dovecot, scheme: str) -> None:
    if not hasattr(dovecot, scheme):
        absent("dovecot-imapd is not installed; .ci/run names the package")
    port = getattr(dovecot, scheme)[1]
    result = subprocess.run(
        [sys.executable, "-c", "from mailsvc.cli import main; main()", "--dir",
         str(service.directory), "import", NAMES[0], f"{scheme}://x@127.0.0.1:{port}", "--tls",
         "no", "--password-stdin"], input="wrong\n", capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: ")
    assert "uthentication failed" in result.stderr
