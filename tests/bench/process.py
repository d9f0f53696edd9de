"""A server as a tree of processes: started, measured, ended.

CPU seconds are user and system time of every process the server ever started, ended ones included;
memory is the proportional set size (PSS) of the living ones, as ``/proc`` has it.  Both leave out
the keeper (``keeper.py``), which is ours.

The CPU seconds come from a control group (version 2) made for the server.  Where none can be made,
as without root, they come from ``/proc``; then a process whose parent ignores SIGCHLD is lost when
it ends, and Exim, which delivers by such processes, looks several times cheaper than it is.
:data:`CPU_SOURCE` says which.
"""

from __future__ import annotations

import itertools
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bench import keeper

_numbers = itertools.count(1)
_TICKS = os.sysconf("SC_CLK_TCK")

#: Seconds within which a server must greet.
START_TIMEOUT = 30.0


def _control_groups() -> Path | None:
    """Where control groups of version 2 are mounted and may be made; None when nowhere."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, kind, *_ = line.split()
        if kind == "cgroup2" and os.access(target, os.W_OK):
            return Path(target)
    return None


_GROUPS = _control_groups()

#: What CPU seconds are read from.
CPU_SOURCE = "/proc" if _GROUPS is None else "cgroup"


class ServerFailed(Exception):
    """A server that did not start, or ended too early."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def private_view(command: Sequence[str], *, layers: Mapping[str, Path] | None = None,
                 binds: Mapping[str, Path] | None = None) -> list[str]:
    """*command* in a mount namespace of its own, for servers with compiled-in paths.

    Each directory of *layers* lies over its target, whose other files stay visible; each of *binds*
    takes its target's place.  The host's own files are not touched.  Needs root.
    """
    mounts = [f"mount -t overlay overlay -o 'lowerdir={source}:{target}' '{target}'"
              for target, source in (layers or {}).items()]
    mounts += [f"mount --bind '{source}' '{target}'" for target, source in (binds or {}).items()]
    return ["unshare", "--mount", "--propagation", "private", "sh", "-ec",
            "\n".join([*mounts, 'exec "$@"']), "sh", *command]


def with_users(directory: Path, users: Mapping[str, str]) -> Path:
    """Write a ``passwd`` and a ``group`` into *directory*: the host's, and the *users* it lacks.

    Each user (name, home) has a group of the same name.
    """
    directory.mkdir(parents=True, exist_ok=True)
    passwd = Path("/etc/passwd").read_text()
    group = Path("/etc/group").read_text()
    known = {user.pw_name for user in pwd.getpwall()}
    for number, (name, home) in enumerate(users.items(), start=64901):
        if name not in known:
            passwd += f"{name}:x:{number}:{number}::{home}:/usr/sbin/nologin\n"
            group += f"{name}:x:{number}:\n"
    (directory / "passwd").write_text(passwd)
    (directory / "group").write_text(group)
    return directory


def user_in(etc: Path, name: str) -> tuple[int, int]:
    """The uid and gid of a user in the ``passwd`` that :func:`with_users` wrote."""
    for line in (etc / "passwd").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split(":")[2]), int(line.split(":")[3])
    raise LookupError(name)


class ServerProcess:
    """One running server, its output going to *log*."""

    def __init__(self, command: Sequence[str], log: Path,
                 environment: Mapping[str, str] | None = None) -> None:
        self._log = log
        self._group = None
        if _GROUPS is not None:
            self._group = _GROUPS / f"mailsvc-bench-{os.getpid()}-{next(_numbers)}"
            self._group.mkdir()
        with log.open("ab") as output:
            self._keeper = subprocess.Popen(
                [sys.executable, "-S", "-E", keeper.__file__, str(self._group or "-"), *command],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                env={**os.environ, **(environment or {})})

    def wait_for(self, address: tuple[str, int], greeting: bytes) -> None:
        """Return when a connection to *address* is greeted.

        :raises ServerFailed: when the server ends or is not there in time; with its last words.
        """
        until = time.monotonic() + START_TIMEOUT
        problem = "did not listen"
        while time.monotonic() < until:
            if self._keeper.poll() is not None:
                problem = "ended at once"
                break
            try:
                with socket.create_connection(address, timeout=5) as sock:
                    said = sock.recv(1024)
                if said.startswith(greeting):
                    return
                problem = f"greeted with {said!r}"
            except OSError:
                pass
            time.sleep(0.05)
        last_words = self._log.read_text(errors="replace").strip()[-600:]
        raise ServerFailed(f"it {problem}; {self._log} ends: {last_words or '(empty)'}")

    def cpu(self) -> float:
        """CPU seconds so far, of all processes, living and ended."""
        if self._group is not None:
            usage = (self._group / "cpu.stat").read_text().split()
            return int(usage[usage.index("usage_usec") + 1]) / 1e6
        seconds = _ended_children(self._keeper.pid)
        for pid in keeper.descendants(self._keeper.pid):
            try:
                seconds += _own_time(pid) + _ended_children(pid)
            except OSError:
                continue  # it ended meanwhile; the next reading finds it in its parent's
        return seconds

    def memory(self) -> int:
        """Octets of PSS of the living processes."""
        total = 0
        for pid in keeper.descendants(self._keeper.pid):
            try:
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1]) * 1024
            except OSError:
                continue
        return total

    def stop(self) -> None:
        """End the server and all its processes; returns when they have gone."""
        if self._keeper.poll() is None:
            self._keeper.send_signal(signal.SIGTERM)
        self._keeper.wait()


def _stat(pid: int) -> list[bytes]:
    """The fields of ``/proc/PID/stat`` behind the name (proc(5)): number 3 is the first here."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()


def _ended_children(pid: int) -> float:
    """CPU seconds of all the descendants that a process has waited for."""
    fields = _stat(pid)
    return (int(fields[13]) + int(fields[14])) / _TICKS


def _own_time(pid: int) -> float:
    """CPU seconds of a process itself, all threads.

    ``stat`` cuts to hundredths, which a hundred processes that do a little each would lose; the
    scheduler's nanoseconds lack the threads that have ended.  The larger one is the truer one.
    """
    fields = _stat(pid)
    running = sum(int(file.read_bytes().split()[0])
                  for file in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return max((int(fields[11]) + int(fields[12])) / _TICKS, running / 1e9)
