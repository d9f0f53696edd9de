"""What the disk allows, beside the servers: a loop in C (``disk.c``) without a protocol.

It creates, writes, syncs and renames a file for each message, and syncs the directory, as a server
must that acknowledges one message at a time; eight threads do so, each in a maildir of its own.  A
server that groups the commits of several messages can get past it.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.bench.peers import Peer, Server, Site, said_by
from tests.bench.process import ServerFailed
from tests.bench.scenario import Bed, Measurement

#: How many messages are on their way at once.
THREADS = 8

_SOURCE = Path(__file__).with_suffix(".c")


class Loop:
    """In the place of a server's process: a program that runs while it is measured."""

    def __init__(self, program: Path) -> None:
        self.program = program

    def stop(self) -> None:
        """It has ended by itself."""

    def memory(self) -> float:
        """It holds none between measurements."""
        return 0.0

    def cpu(self) -> float:
        """CPU seconds of all the children of this process."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime


@dataclass
class Disk(Peer):
    """The loop in C."""

    name: str = "disk"
    receives: bool = False
    limit: bool = True

    def missing(self) -> str:
        return "" if shutil.which("cc") else "needs a C compiler (cc)"

    def version(self) -> str:
        return said_by(["cc", "--version"])

    def start(self, site: Site) -> Server:
        site.make_maildirs(None)
        program = site.directory / "disk"
        done = subprocess.run(["cc", "-O2", "-pthread", "-o", str(program), str(_SOURCE)],
                              capture_output=True, text=True, check=False)
        if done.returncode:
            raise ServerFailed(f"disk.c was not compiled: {done.stderr.strip()[-600:]}")
        return Server(Loop(program), site)


def store(bed: Bed, octets: int) -> Measurement:
    """Store messages of *octets* as fast as the disk takes them."""
    loop, scale = bed.server.process, bed.scale
    assert isinstance(loop, Loop)
    folders = [bed.maildir(number) for number in range(min(THREADS, scale.clients))]
    before = loop.cpu()
    done = subprocess.run(
        [str(loop.program), str(scale.seconds), str(octets), str(scale.messages),
         *map(str, folders)],
        capture_output=True, text=True, check=False, timeout=60 + 10 * scale.seconds)
    cpu = loop.cpu() - before
    if done.returncode:
        return Measurement(problem=done.stderr.strip()[-300:] or f"status {done.returncode}")
    stored = [(int(count), float(took)) for count, took in
              (line.split() for line in done.stdout.splitlines())]
    for folder, (count, _) in zip(folders, stored, strict=True):
        found = sum(1 for _ in (folder / "new").iterdir())
        if found != count:
            return Measurement(problem=f"{folder}: {found} messages instead of {count}")
    total = sum(count for count, _ in stored)
    return Measurement(sum(count / took for count, took in stored), 1000 * cpu / max(1, total))
