"""The parent of one server under test: it outlives every process that the server starts.

Run as ``python -S -E keeper.py GROUP COMMAND ARGUMENT...``.  It starts the command in the control
group whose directory is GROUP (``-`` for none; removed at the end), adopts whatever the
command's own children leave behind (``PR_SET_CHILD_SUBREAPER``) and reaps it, so that the CPU time
of each short-lived process is counted in the keeper's own ``cutime`` and ``cstime``.  SIGTERM goes
on to the command; what is still alive some seconds later is killed.  The keeper goes when its last
descendant has gone, with exit status 0, or when the benchmark that started it dies.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

#: Seconds that a server has to end by itself.
PATIENCE = 10


def parents() -> dict[int, int]:
    """Every process of this host and its parent."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    found[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError):
                continue  # it ended meanwhile
    return found


def descendants(ancestor: int) -> list[int]:
    """The living descendants of a process, without itself."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents().items():
        children.setdefault(parent, []).append(pid)
    found = list(children.get(ancestor, ()))
    for pid in found:  # grows while it is walked
        found.extend(children.get(pid, ()))
    return found


def start(group: str, command: list[str]) -> int:
    """Start *command* in the control group *group*: its process id."""
    pid = os.fork()
    if pid == 0:
        try:
            if group != "-":
                with open(f"{group}/cgroup.procs", "w") as file:
                    file.write("0")
            os.execvp(command[0], command)
        except OSError as problem:
            os.write(2, f"{command[0]}: {problem}\n".encode())
        os._exit(127)
    return pid


def main(group: str, command: list[str]) -> None:
    """Start *command* and stay until all of its processes have ended."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    server = start(group, command)

    def end(*_: object) -> None:
        signal.alarm(PATIENCE)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if server in descendants(os.getpid()):
            os.kill(server, signal.SIGTERM)
        else:
            end_all(signal.SIGTERM)

    def end_all(number: int, *_: object) -> None:
        for pid in descendants(os.getpid()):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGALRM, lambda *_: end_all(signal.SIGKILL))
    while True:
        try:
            pid, _ = os.wait()
        except ChildProcessError:
            break
        if pid == server:  # what it left behind has no master any more
            signal.alarm(PATIENCE)
            end_all(signal.SIGTERM)
    if group != "-":
        os.rmdir(group)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
