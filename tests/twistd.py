"""``twistd mailsvc`` as a child process, with sockets and variables such as systemd gives it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from mailsvc.directory import SqliteDirectory
from mailsvc.names import parse_address
from mailsvc.passwords import PasswordHasher, PasswordSettings
from tests.hashing import CHEAP
from tests.readable import readable
from tests.service import PATIENCE

ROOT = Path(__file__).parent.parent
#: The plugin is found from here, also when the project is not installed.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1",
               "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
#: Needs no script on the PATH.
TWISTD = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()")

#: Whether this machine has an IPv6 loopback.
IPV6 = Path("/proc/net/if_inet6").exists() and (
    "0" * 31 + "1 " in Path("/proc/net/if_inet6").read_text())

ACCOUNT = "alice@example.org"
ANY = "tcp:0:interface=127.0.0.1"


def add_account(data: Path, name: str = ACCOUNT, password: str = "secret") -> None:
    """An account of a service whose data are to be in *data*."""
    address = parse_address(name)
    hasher = PasswordHasher(PasswordSettings(**CHEAP), None)
    with SqliteDirectory(data / "accounts.sqlite") as directory:
        directory.add_domain(address.domain)
        directory.add_account(address, verifier=hasher.hash(password.encode()))


# Puts the descriptors that it is given where systemd would, and becomes the command.
_ACTIVATE = """
import fcntl, os, sys
count = int(sys.argv[1])
high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in sys.argv[2:2 + count]]
for position, fd in enumerate(high):
    os.dup2(fd, 3 + position)
os.closerange(3 + count, 200)
if count:
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(count),
                      LISTEN_FDNAMES=":".join(["mailsvc.socket"] * count))
os.execvp(sys.argv[2 + count], sys.argv[2 + count:])
"""


class Twistd:
    """A running command whose output is *output*; killed, if need be, when the block ends."""

    def __init__(
        self, command: Sequence[str], *, sockets: Sequence[socket.socket] = (),
        variables: Mapping[str, str] | None = None, directory: Path | None = None,
    ) -> None:
        descriptors = [sock.fileno() for sock in sockets]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ACTIVATE, str(len(descriptors)), *map(str, descriptors),
             *command],
            pass_fds=descriptors, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env={**ENVIRONMENT, **(variables or {})}, cwd=directory,
            start_new_session=True)
        self.output = ""

    def __enter__(self) -> Twistd:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def wait_for(self, pattern: str) -> list[str]:
        """Every match of *pattern*, once there is one, in what was written so far."""
        deadline = time.monotonic() + PATIENCE
        while not (found := re.findall(pattern, self.output, re.MULTILINE)):
            if not self._read(deadline):
                raise AssertionError(f"no {pattern!r} in the output:\n{self.output}")
        return found

    def port(self, protocol: str) -> int:
        """The port that *protocol* is bound to, as the log says."""
        return int(self.wait_for(rf"\b{protocol} listens on [^\s\"]*:(\d+)\b")[0])

    def stop(self) -> int:
        """End it by SIGTERM; its status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Its status, once it has ended by itself."""
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline):
            pass
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def _read(self, deadline: float) -> bool:
        """Whether there was more to read before *deadline*."""
        assert self.process.stdout is not None
        more = readable(self.process.stdout, deadline - time.monotonic())
        block = os.read(self.process.stdout.fileno(), 65_536) if more else b""
        self.output += block.decode()
        return bool(block)
