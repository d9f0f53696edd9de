"""What every server under test has in common, and the two that need little: mailsvc, aiosmtpd.

A :class:`Peer` knows whether it is there, its version, and how to start on loopback from a private
directory with a :class:`Site`'s accounts.  Nothing of the host's own configuration is read or
changed.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mailsvc.passwords import PasswordSettings
from tests.bench import maildirs
from tests.bench.maildirs import Owner
from tests.bench.process import ServerProcess, free_port

if TYPE_CHECKING:
    from tests.bench.disk import Loop

DOMAIN = "bench.test"
PASSWORD = "correct-horse"

#: What an idle connection costs is measured with this many.
IDLE_CONNECTIONS = 2000

#: For servers that limit sessions or processes: room for them, and for the clients.
SESSION_LIMIT = IDLE_CONNECTIONS + 200


@dataclass(frozen=True)
class Site:
    """Where a server under test lives, and whom it serves.

    :ivar directory: its own, new and empty.
    :ivar local_parts: the accounts in :data:`DOMAIN`; all have :data:`PASSWORD`.
    """

    directory: Path
    local_parts: tuple[str, ...]

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        """Write a file of configuration."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def maildir(self, local_part: str) -> Path:
        """The layout all servers are configured to."""
        return self.directory / "mail" / DOMAIN / local_part

    def make_maildirs(self, owner: Owner | None) -> None:
        """Make every account's maildir, and those above it that *owner* must pass through."""
        for local_part in self.local_parts:
            maildirs.make(self.maildir(local_part), owner)
        if owner is not None:
            for path in (self.directory / "mail", self.directory / "mail" / DOMAIN):
                os.chown(path, owner.uid, owner.gid)


@dataclass
class Server:
    """A running server.

    :ivar smtp: where it takes mail, if it does; :attr:`lmtp` says that it speaks LMTP there.
    :ivar pop3: where it gives mail out, if it does.
    :ivar single: the one maildir all mail goes to, for servers without accounts.
    """

    process: ServerProcess | Loop
    site: Site
    owner: Owner | None = None
    smtp: tuple[str, int] | None = None
    lmtp: bool = False
    pop3: tuple[str, int] | None = None
    single: Path | None = None

    def maildir(self, local_part: str) -> Path:
        """Where mail to an account is found."""
        return self.single or self.site.maildir(local_part)

    def wait_until_ready(self) -> Server:
        """Return when every listener greets.

        :raises tests.bench.process.ServerFailed: when one does not; the server is stopped then.
        """
        assert isinstance(self.process, ServerProcess)
        try:
            if self.smtp:
                self.process.wait_for(self.smtp, b"220")
            if self.pop3:
                self.process.wait_for(self.pop3, b"+OK")
        except BaseException:
            self.process.stop()
            raise
        return self


@dataclass
class Peer(ABC):
    """One kind of server.

    :ivar name: as ``--peers`` takes it, and as the tables show it.
    :ivar receives: whether it takes part in the SMTP measurements.
    :ivar fetched: whether it takes part in the POP3 measurements.
    :ivar copies: whether each recipient gets a copy of its own.
    :ivar crowds: whether it is asked to hold very many idle connections: those with a process for
        each are not.
    :ivar limit: whether it is no server but what a server is held against.
    :ivar unpacked: a directory of unpacked packages (``fetch.py``) to look in first.
    """

    name: str = ""
    receives: bool = True
    fetched: bool = False
    copies: bool = True
    crowds: bool = False
    limit: bool = False
    unpacked: Path = field(default_factory=Path)

    @abstractmethod
    def missing(self) -> str:
        """Why it cannot take part; empty when it can."""

    @abstractmethod
    def version(self) -> str:
        """Its name and version, as people write them."""

    @abstractmethod
    def start(self, site: Site) -> Server:
        """Start it; returns when it greets.

        :raises tests.bench.process.ServerFailed: when it does not.
        """

    def find(self, path: str) -> Path | None:
        """A program by its usual absolute path, unpacked or installed."""
        for candidate in (self.unpacked / path.lstrip("/"), Path(path)):
            if candidate.is_file() and os.access(candidate, os.X_OK):
                return candidate
        return None

    def needs(self, path: str) -> str:
        """What is missing to run a program that must be started by root."""
        if self.find(path) is None:
            return "not installed"
        return "" if os.geteuid() == 0 else "needs root"


def mail_owner() -> Owner:
    """Who owns the maildirs of servers that deliver as another user: ``mail``, which Debian has."""
    user = pwd.getpwnam("mail")
    return Owner(user.pw_uid, user.pw_gid)


def said_by(command: list[str], environment: dict[str, str] | None = None) -> str:
    """The first line that a program prints when asked for its version."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False,
                          env={**os.environ, **(environment or {})})
    return (done.stdout.strip() or done.stderr.strip() or "?").splitlines()[0]


@dataclass
class Mailsvc(Peer):
    """The service itself, as ``mailsvc dev`` starts it, but with passwords hashed in earnest.

    :ivar command: the command line up to ``dev``.
    :ivar options: further options of ``dev``.
    """

    name: str = "mailsvc"
    crowds: bool = True
    fetched: bool = True
    command: tuple[str, ...] = (sys.executable, "-c", "from mailsvc.cli import main; main()")
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        earnest = PasswordSettings()
        self.options = (f"--set=passwords.memory_kib={earnest.memory_kib}",
                        f"--set=passwords.passes={earnest.passes}", *self.options)

    def missing(self) -> str:
        done = subprocess.run([*self.command, "dev", "--help"], capture_output=True, text=True,
                              timeout=20, check=False)
        if done.returncode == 0:
            return ""
        last_words = done.stderr.strip().splitlines()[-1:]
        return f"its dev command fails: {' '.join(last_words)}"

    def version(self) -> str:
        return "mailsvc " + said_by([*self.command, "--version"]).split()[-1]

    def start(self, site: Site) -> Server:
        accounts = site.write("accounts", "".join(
            f"{local_part}@{DOMAIN}:{PASSWORD}\n" for local_part in site.local_parts), 0o600)
        site.make_maildirs(None)
        smtp, pop3 = free_port(), free_port()
        process = ServerProcess([*self.command, "dev", "--dir", str(site.directory), "--domain",
                                 DOMAIN, "--accounts", str(accounts), "--smtp",
                                 f"127.0.0.1:{smtp}", "--pop3", f"127.0.0.1:{pop3}",
                                 *self.options], site.directory / "log")
        return Server(process, site, smtp=("127.0.0.1", smtp),
                      pop3=("127.0.0.1", pop3)).wait_until_ready()


@dataclass
class Aiosmtpd(Peer):
    """aiosmtpd with its Mailbox handler: everything into one maildir, one copy a message."""

    name: str = "aiosmtpd"
    crowds: bool = True
    copies: bool = False

    def _environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.unpacked / "python")}

    def missing(self) -> str:
        done = subprocess.run([sys.executable, "-c", "import aiosmtpd"], capture_output=True,
                              env={**os.environ, **self._environment()}, check=False)
        return "" if done.returncode == 0 else "not installed"

    def version(self) -> str:
        program = "import aiosmtpd; print(aiosmtpd.__version__)"
        return "aiosmtpd " + said_by([sys.executable, "-c", program], self._environment())

    def start(self, site: Site) -> Server:
        site.directory.mkdir(parents=True, exist_ok=True)
        single = site.directory / "maildir"
        maildirs.make(single)
        port = free_port()
        process = ServerProcess([sys.executable, "-m", "aiosmtpd", "-n", "-l", f"127.0.0.1:{port}",
                                 "-c", "aiosmtpd.handlers.Mailbox", str(single)],
                                site.directory / "log", self._environment())
        return Server(process, site, smtp=("127.0.0.1", port), single=single).wait_until_ready()
