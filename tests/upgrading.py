"""A service whose program can be changed, and sessions with it."""

from __future__ import annotations

import json
import os
import poplib
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from click.testing import CliRunner

from mailsvc.cli import main
from mailsvc.directory import SqliteDirectory
from mailsvc.names import parse_address
from mailsvc.passwords import PasswordHasher, PasswordSettings
from tests.authority import Authority
from tests.hashing import CHEAP
from tests.service import PATIENCE, Dialogue
from tests.test_workers import alive, until
from tests.twistd import ENVIRONMENT, add_account

AUTHORITY = Authority()
FIRST, RENEWED = (AUTHORITY.issue("mx.example.org") for _ in range(2))
KEPT, FETCHED = "kept@example.org", ("one@example.org", "two@example.org")
VERIFIER = PasswordHasher(PasswordSettings(**CHEAP), None).hash(b"secret")

_PROGRAM = """\
#!{python}
import mailsvc
mailsvc.__version__ = "{version}"
{more}
from twisted.scripts.twistd import run
run()
"""

_CONFIGURATION = """\
[service]
data = "{data}"
hostname = "mx.example.org"
workers = {workers}
grace_seconds = 2
[passwords]
memory_kib = 64
passes = 1
[tls]
certificates = ["{certificate}"]
[listeners]
smtp = ["tcp:0:interface=127.0.0.1"]
pop3 = ["tcp:0:interface=127.0.0.1"]
pop3s = ["tcp:0:interface=127.0.0.1"]
"""


class Program:
    """twistd as a program in *directory*, watched as systemd would; ended with the block.

    :ivar told: what a NOTIFY_SOCKET has heard: the process that said it, and what.
    """

    def __init__(self, directory: Path, workers: int, more: str = "", *,
                 options: tuple[str, ...] = ("--nodaemon", "--pidfile=")) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.log = directory / "log"
        self.workers = workers
        self.configuration = directory / "mailsvc.toml"
        self.data.mkdir()
        add_account(self.data, KEPT)
        with SqliteDirectory(self.data / "accounts.sqlite") as accounts:
            for account in FETCHED:
                accounts.add_account(parse_address(account), verifier=VERIFIER)
        (directory / "certificate").mkdir()
        FIRST.write(directory / "certificate")
        self.write(more)
        self.install("1.0")
        self.told: list[tuple[int, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(f"\0{directory}")
        self._hearing = threading.Thread(target=self._hear)
        self._hearing.start()
        self.process = subprocess.Popen(
            [directory / "twistd", "--logfile", self.log, *options, "mailsvc", "--config",
             self.configuration], cwd=directory, start_new_session=True, stdin=subprocess.DEVNULL,
            env={**ENVIRONMENT, "NOTIFY_SOCKET": f"@{directory}"})

    def __enter__(self) -> Program:
        try:
            until(lambda: any("READY=1" in text for _, text in self.told))
        except AssertionError:
            print(self.text())
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(PATIENCE)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", f"\0{self.directory}")
        self._hearing.join(PATIENCE)
        self._socket.close()

    def _hear(self) -> None:
        while True:
            data, ancillary, _, _ = self._socket.recvmsg(4096, 100)
            if not data:
                return
            pid = int.from_bytes(ancillary[0][2][:4], sys.byteorder)
            self.told.append((pid, data.decode()))

    def install(self, version: str, more: str = "") -> None:
        """What is on disk from now on."""
        new = self.directory / "twistd.new"
        new.write_text(_PROGRAM.format(python=sys.executable, version=version, more=more))
        new.chmod(0o755)
        new.rename(self.directory / "twistd")

    def write(self, more: str = "") -> None:
        """The configuration from now on."""
        self.configuration.write_text(_CONFIGURATION.format(
            data=self.data, workers=self.workers, certificate=self.directory / "certificate")
            + more)

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def address(self, kind: str) -> tuple[str, int]:
        # What a turn logs is written at its end, and systemd may have heard before.
        pattern = rf"\b{kind} listens on 127\.0\.0\.1:(\d+)"
        until(lambda: re.search(pattern, self.text()) is not None)
        found = re.search(pattern, self.text())
        assert found is not None
        return "127.0.0.1", int(found[1])

    @property
    def main(self) -> int:
        """Which process systemd would take for the main one."""
        pid = self.process.pid
        for sender, text in list(self.told):
            # As NotifyAccess=main has it.
            if sender == pid and (found := re.search(r"^MAINPID=(\d+)$", text, re.MULTILINE)):
                pid = int(found[1])
        return pid

    @property
    def status(self) -> str:
        """What `systemctl status` would show."""
        pid, shown = self.process.pid, ""
        for sender, text in list(self.told):
            assert sender == pid, f"{sender} may not say {text!r}"
            for line in text.splitlines():
                name, _, value = line.partition("=")
                if name == "STATUS":
                    shown = value
                elif name == "MAINPID":
                    pid = int(value)
        return shown

    def processes(self) -> list[int]:
        """All processes of the service, those that are about to end left out."""
        found = []
        for entry in os.listdir("/proc"):
            with suppress(FileNotFoundError, ProcessLookupError):
                if (entry.isdigit() and str(self.configuration).encode()
                        in Path(f"/proc/{entry}/cmdline").read_bytes() and alive(int(entry))):
                    found.append(int(entry))
        return sorted(found)

    def upgrade(self, version: str) -> int:
        """Install *version* and upgrade to it; the pid of the program that served until then."""
        former = self.main
        self.install(version)
        done = run("upgrade", "--json", "--config", self.configuration)
        assert done.exit_code == 0, done.output
        told = json.loads(done.stdout)
        assert told["version"] == version
        until(lambda: self.main == told["pid"])
        assert self.main != former
        return former

    def stop(self) -> None:
        """SIGTERM to the main process; all are to end."""
        os.kill(self.main, signal.SIGTERM)
        until(lambda: not self.processes())

    def messages(self, account: str) -> list[bytes]:
        local_part, domain = account.split("@")
        return [path.read_bytes()
                for path in (self.data / "mail" / domain / local_part / "new").iterdir()]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(each) for each in arguments], prog_name="mailsvc")


def talking(address: tuple[str, int]) -> Dialogue:
    """An SMTP session before its first message."""
    smtp = Dialogue(address)
    assert smtp.reply().startswith(b"220 mx.example.org")
    assert smtp.say(b"EHLO client.example").startswith(b"250")
    return smtp


def begin(smtp: Dialogue, recipient: str = KEPT) -> None:
    """Begin a message, up to its first octets."""
    assert smtp.say(b"MAIL FROM:<s@example.net>").startswith(b"250")
    assert smtp.say(b"RCPT TO:<%s>" % recipient.encode()).startswith(b"250")
    assert smtp.say(b"DATA").startswith(b"354")
    smtp.send(b"Message-Id: <held@client.example>\r\n")


def logged_in(address: tuple[str, int], account: str) -> poplib.POP3:
    pop3 = poplib.POP3(*address, timeout=PATIENCE)
    pop3.user(account)
    pop3.pass_("secret")
    return pop3
