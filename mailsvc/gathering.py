"""All figures of a service at one moment, over all its processes; and whether it is ready.

A :class:`Gathering` is with whoever watches the others: the supervisor, or the only process there
is.  It adds up the rows of :class:`mailsvc.figures.Figures` and asks the kernel how much its
processes use.  It waits for nobody: a worker that is stuck has its figures in memory, and its
silence is one of them.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import twisted
from mailsvc import __version__, figures
from mailsvc.figures import Figures, Reading, Value

#: What the name of every figure begins with for others.
PREFIX = "mailsvc_"
#: A worker that showed no sign of life for so many seconds does not serve.
_SILENT = 10.0
#: How old, in seconds, the last trial of writing a file may be.
_WRITTEN = 20.0


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the service.

    :ivar name: "supervisor", or "worker-" and its row.
    :ivar row: its row in the figures.
    :ivar serves: whether it takes connections.
    :ivar silence: for how many seconds its reactor has shown no sign of life.
    """

    name: str
    pid: int
    row: int
    serves: bool
    silence: float = 0.0


class Watched(Protocol):
    """What is asked of a service.

    :ivar stopping: whether it is on its way down.
    """

    stopping: bool

    def processes(self) -> list[Process]:
        """Those there are now."""

    def unbound(self) -> list[str]:
        """The listeners that have no port."""

    def listening(self) -> list[tuple[str, str]]:
        """Kind and address of those that have one."""

    def certificates(self) -> Sequence[str]:
        """What the certificates are called, in the order of their figures."""


@dataclass(frozen=True, slots=True)
class Family:
    """All series of one figure.

    :ivar kind: "counter", "gauge" or "histogram".
    :ivar series: the values of its labels, and its own.
    """

    name: str
    kind: str
    sentence: str
    labels: tuple[str, ...] = ()
    series: list[tuple[tuple[str, ...], Value]] = field(default_factory=list)


class Gathering:
    """The figures of *service*, kept in *memory*.

    :ivar memory: where they are counted.
    """

    def __init__(self, memory: Figures, service: Watched) -> None:
        self.memory = memory
        self._service = service
        self._began = time.time()
        #: The processor time of each process that has ended, or had its name before, in seconds;
        #: and the most that was told of each name.
        self._spent: dict[str, float] = {}
        self._told: dict[str, float] = {}

    def ended(self, name: str, seconds: float) -> None:
        """The process *name* has ended, and had so much processor time."""
        self._spent[name] = self._spent.get(name, 0.0) + seconds

    def unready(self) -> str | None:
        """Why the service should not be given work now, in a line; None when it should."""
        service = self._service
        if service.stopping:
            return "the service is stopping"
        unbound = service.unbound()
        if unbound:
            return "not listening: " + ", ".join(unbound)
        rows = [each.row for each in service.processes()
                if each.serves and each.silence < _SILENT]
        if not rows:
            return "no worker serves"
        written = self.memory.read().total(figures.WRITTEN, rows=rows)
        assert isinstance(written, float)
        if time.monotonic() - written > _WRITTEN or not written:
            return "the store cannot be written"
        return None

    def listening(self) -> list[tuple[str, str]]:
        """Kind and address of each listener that is bound."""
        return self._service.listening()

    def families(self) -> list[Family]:
        """Every figure."""
        processes = self._service.processes()
        reading = self.memory.read()
        return [*self._whole(processes),
                *(self._family(figure, reading, processes) for figure in figures.FIGURES),
                *self._of_processes(processes)]

    def _whole(self, processes: list[Process]) -> Iterator[Family]:
        yield Family("build_info", "gauge", "What runs here.", ("version", "python", "twisted"),
                     [((__version__, platform.python_version(), twisted.__version__), 1)])
        yield Family("start_time_seconds", "gauge",
                     "When the service was started, seconds since the epoch.", (),
                     [((), self._began)])
        yield Family("ready", "gauge", "1 if the service is ready, as /readyz tells it.", (),
                     [((), int(self.unready() is None))])
        yield Family("workers", "gauge", "Workers that take connections.", (),
                     [((), sum(each.serves for each in processes))])

    def _family(self, figure: figures.Figure, reading: Reading,
                processes: list[Process]) -> Family:
        kind = "gauge" if figure.kind == "age" else figure.kind
        family = Family(figure.name, kind, figure.sentence, figure.labels)
        if figure is figures.DESCRIPTORS:
            # Only the process itself can always tell: not after a change of user.
            return Family(figure.name, kind, figure.sentence, ("process",), [
                ((each.name,), open_descriptors() if each.pid == os.getpid()
                 else reading.total(figure, rows=[each.row])) for each in processes])
        if figure is figures.CERTIFICATE:
            # Workers of an earlier configuration may have others.
            rows = [each.row for each in processes if each.serves]
            for number, name in enumerate(self._service.certificates()[:figures.CERTIFICATES]):
                end = reading.total(figure, str(number), rows=rows)
                # One file may be named with several keys.
                if end and all(name != known for (known,), _ in family.series):
                    family.series.append(((name,), end))
            return family
        for values in figure.values:
            value = reading.total(figure, *values)
            if figure.kind == "age" or figure.total == "min":
                if not value:
                    continue
                if figure.kind == "age":
                    assert isinstance(value, float)
                    value = max(0.0, time.monotonic() - value)
            family.series.append((values, value))
        return family

    def _of_processes(self, processes: list[Process]) -> Iterator[Family]:
        used = {each.name: usage for each in processes
                if (usage := _usage(each.pid)) is not None}
        spent = dict(self._spent)
        for name, (seconds, _) in used.items():
            spent[name] = spent.get(name, 0.0) + seconds
        for name, seconds in spent.items():
            self._told[name] = max(seconds, self._told.get(name, 0.0))
        yield Family(
            "process_cpu_seconds_total", "counter",
            "Processor time, with that of earlier processes of the name.", ("process",),
            [((name,), seconds) for name, seconds in sorted(self._told.items())])
        yield Family("process_resident_memory_bytes", "gauge", "Resident memory, shared pages too.",
                     ("process",), [((name,), octets) for name, (_, octets) in used.items()])
        yield Family("process_silence_seconds", "gauge",
                     "Time since a worker's reactor last showed that it turns.", ("process",),
                     [((each.name,), each.silence) for each in processes])


def open_descriptors() -> int:
    """How many files this process has open."""
    # The directory's size since Linux 6.2; to list it takes as long as there are many.
    return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))


_TICK, _PAGE = os.sysconf("SC_CLK_TCK"), resource.getpagesize()


def _usage(pid: int) -> tuple[float, int] | None:
    """Processor time in seconds and resident octets of a process; None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # Behind the name, which may hold anything (proc_pid_stat(5)): from the third field on.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / _TICK, int(fields[21]) * _PAGE
