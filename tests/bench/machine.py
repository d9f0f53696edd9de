"""What the figures depend on: the machine, its system, the file system under the maildirs."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    """The facts; ``str`` makes a phrase of them.

    :ivar load: how many programs ran or wanted to run, in the minute before.
    """

    cores: int
    processor: str
    memory_gib: float
    system: str
    kernel: str
    file_system: str
    python: str
    load: float

    @property
    def busy(self) -> bool:
        """Whether other programs took part in what was measured."""
        return self.load > self.cores / 2

    def __str__(self) -> str:
        return (f"{self.cores} cores ({self.processor}), {self.memory_gib:.0f} GiB of memory, "
                f"{self.system}, Linux {self.kernel}, {self.file_system}, Python {self.python}")


def this_machine(work: Path) -> Machine:
    """The machine this runs on, with the file system of *work*."""
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        processor=_field("/proc/cpuinfo", "model name", platform.machine()),
        memory_gib=int(_field("/proc/meminfo", "MemTotal", "0").split()[0]) / 2 ** 20,
        system=platform.freedesktop_os_release().get("PRETTY_NAME", "an unnamed system"),
        kernel=platform.release(),
        file_system=_file_system(work.resolve()),
        python=platform.python_version(),
        load=os.getloadavg()[0])


def _field(path: str, name: str, default: str) -> str:
    """The first ``name : value`` of a file in /proc."""
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return default


def _file_system(path: Path) -> str:
    """The type of the file system that *path* lies on."""
    best, kind = Path("/"), "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, found, *_ = line.split()
        if path.is_relative_to(target) and Path(target).is_relative_to(best):
            best, kind = Path(target), found
    return kind
