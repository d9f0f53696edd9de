"""What the service counts: each figure declared once, and memory for all of them.

A :class:`Figures` is memory that a supervisor makes before its workers: a row for each process, in
it a cell of 64 bits for each series.  A process writes its own row alone (:class:`Share`), so no
lock is needed; whoever reads adds the rows up.  The row of a process that dies keeps its counts,
and the next one that has it counts on: while the service runs, no counter goes back and nothing
that was counted is lost, kill -9 included.  Only what was true of the dead process is cleared.

**Cost.**  To count is an addition to memory, and takes less than half a microsecond; to observe a
time, less than one.  No message is sent and no file written: pages of a file that are written to by
way of a mapping wait for the disk now and then, and with them the reactor.

**Why not prometheus_client's own** multiprocess mode: it keeps a file for each process and kind,
named by pid, which stays for every worker that ever was, as its counts would go with it; and its
counters take a lock and cost ten times as much.

Labels are bounded: every series there can be is in :data:`FIGURES`, and what has no series of its
own counts as "other" where there is one.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

#: The protocols that messages come in by, and all.
ACCEPTING = ("smtp", "submission", "lmtp")
PROTOCOLS = (*ACCEPTING, "odmr", "pop3")

OTHER = "other"
#: How somebody logs in; SCRAM in all its forms is one.
MECHANISMS = ("USER", "APOP", "PLAIN", "LOGIN", "SCRAM", "CRAM-MD5", "EXTERNAL", "GSSAPI",
              "OAUTHBEARER", "XOAUTH2", "XCLIENT", "FORM", OTHER)
#: Reply codes of refused recipients, with the class and subject of their enhanced status.
REFUSALS = (("450", "4.2"), ("450", "4.7"), ("451", "4.3"), ("452", "4.2"), ("452", "4.3"),
            ("550", "5.1"), ("550", "5.2"), ("550", "5.3"), ("550", "5.4"), ("550", "5.7"),
            ("551", "5.1"), ("552", "5.2"), (OTHER, OTHER))
#: So many certificates can be told of.
CERTIFICATES = 64

#: Seconds, from a fast disk to one that hangs.
_QUICK = (.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1., 2.5, 5., 10.)
#: Seconds, from a program that looks for mail to a long download.
_SESSION = (.005, .01, .025, .05, .1, .25, .5, 1., 5., 15., 60., 300., 1800.)
#: Seconds, from at once to the end of a queue's patience.
_DAYS = (.1, .5, 1., 5., 15., 60., 300., 900., 3600., 14_400., 43_200., 86_400., 432_000.)

#: Seconds are kept in microseconds: in nanoseconds, a cell would be full when 40,000 messages had
#: been five days in the queue.
MICRO = 1_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Figure:
    """One thing that is counted or measured.

    :ivar name: without the prefix ``mailsvc_``; in seconds if that is its unit, which are kept in
        microseconds.
    :ivar kind: "counter", "gauge", "histogram", or "age" for the time since something was.
    :ivar labels: the names of its labels.
    :ivar values: those of each series.
    :ivar total: what rows are to each other: "sum", "max", or "min" of those that are not 0.
    :ivar bounds: of a histogram's buckets, in seconds.
    """

    name: str
    kind: str
    sentence: str
    labels: tuple[str, ...] = ()
    values: tuple[tuple[str, ...], ...] = ((),)
    total: str = "sum"
    bounds: tuple[float, ...] = ()

    @property
    def cells(self) -> int:
        """How many cells a series has: of a histogram a count for each bucket, and the sum."""
        return len(self.bounds) + 2 if self.kind == "histogram" else 1

    @property
    def unit(self) -> int:
        """How many in a cell are one."""
        return MICRO if "_seconds" in self.name else 1


def _each(*names: str) -> tuple[tuple[str, ...], ...]:
    return tuple((name,) for name in names)


SESSIONS = Figure(
    "sessions_total", "counter", "Connections that were served.", ("protocol",), _each(*PROTOCOLS))
CONNECTIONS = Figure(
    "connections", "gauge", "Connections that are open.", ("protocol",), _each(*PROTOCOLS))
TURNED_AWAY = Figure(
    "connections_refused_total", "counter",
    "Connections that were turned away: over a limit, or banned.", ("protocol",),
    _each(*PROTOCOLS))
ACCEPTED = Figure(
    "messages_accepted_total", "counter", "Messages that were taken and acknowledged.",
    ("protocol",), _each(*ACCEPTING))
ACCEPTED_BYTES = Figure(
    "accepted_bytes_total", "counter", "Octets of the messages that were accepted.", ("protocol",),
    _each(*ACCEPTING))
ACCEPTED_RECIPIENTS = Figure(
    "recipients_accepted_total", "counter", "Recipients of the messages that were accepted.",
    ("protocol",), _each(*ACCEPTING))
REFUSED_RECIPIENTS = Figure(
    "recipients_refused_total", "counter",
    "Recipients that were turned down, by the code of the reply and the class and subject of its "
    "enhanced status.", ("protocol", "code", "status"),
    tuple((protocol, *refusal) for protocol, refusal in product(ACCEPTING, REFUSALS)))
NOT_ACCEPTED = Figure(
    "messages_not_accepted_total", "counter",
    "Messages that came to nothing: their sender was refused, they were given up or refused before "
    "their end (dropped), or could not be stored.", ("protocol", "reason"),
    tuple(product(ACCEPTING, ("sender", "dropped", "not stored"))))
TRACE_DROPPED = Figure(
    "trace_events_dropped_total", "counter",
    "Events that `mailsvc trace` will not know of: the disk did not keep up, or they could not be "
    "written.")
COMMIT = Figure(
    "commit_seconds", "histogram",
    "Time from the end of a message until it would survive a power loss.", bounds=_QUICK)
LOGINS = Figure(
    "logins_total", "counter",
    "Logins: succeeded, failed (wrong name or password), refused (banned, maildrop in use, an "
    "error of ours).", ("protocol", "mechanism", "outcome"),
    tuple(product(("pop3", "submission", "console"), MECHANISMS,
                  ("succeeded", "failed", "refused"))))
LOGIN = Figure(
    "login_seconds", "histogram",
    "Time that logins took which succeeded, with the wait that the brakes imposed.", ("protocol",),
    _each("pop3", "submission", "console"), bounds=_QUICK)
POP3_SESSION = Figure(
    "pop3_session_seconds", "histogram", "Time from a login on POP3 to its end.", bounds=_SESSION)
FETCHED = Figure(
    "messages_fetched_total", "counter", "Messages that were sent whole by POP3.")
FETCHED_BYTES = Figure(
    "fetched_bytes_total", "counter",
    "Octets of the messages that were fetched, as LIST tells them.")
DELETED = Figure(
    "messages_deleted_total", "counter", "Messages that were removed by POP3.")
QUEUE = Figure(
    "queue_messages", "gauge",
    "Messages in the queue: being sent, waiting for their time, held.", ("state",),
    _each("active", "waiting", "held"))
QUEUE_AGE = Figure(
    "queue_oldest_age_seconds", "gauge", "Age of the oldest message in the queue.")
DELIVERIES = Figure(
    "deliveries_total", "counter",
    "Attempts of the queue at a recipient: taken by the next host (relayed) or into a mailbox here "
    "(delivered), to be tried again (deferred), failed for good.", ("outcome",),
    _each("relayed", "delivered", "deferred", "failed"))
DELIVERY_DELAY = Figure(
    "delivery_delay_seconds", "histogram",
    "Time in the queue of recipients that were relayed or delivered.", bounds=_DAYS)
WEBHOOK_ATTEMPTS = Figure(
    "webhook_attempts_total", "counter",
    "Attempts to tell a receiver of an event: it took it (told), is to be tried again (put off), "
    "or was given up.", ("outcome",), _each("told", "put off", "given up"))
WEBHOOK_WAITING = Figure(
    "webhook_events_waiting", "gauge", "Events that wait to be told.", total="max")
BANS = Figure("bans", "gauge", "Networks that are banned now.", total="max")
JOURNAL_BYTES = Figure(
    "journal_backlog_bytes", "gauge", "Octets that wait to be written to the journal.")
JOURNAL_SEGMENTS = Figure(
    "journal_segments", "gauge", "Segments of the journal in use, up to four for each worker.")
CERTIFICATE = Figure(
    "certificate_expiry_timestamp_seconds", "gauge",
    "When a certificate ends, seconds since the epoch.",
    ("certificate",), _each(*map(str, range(CERTIFICATES))), total="min")
DISK_FREE = Figure(
    "disk_free_bytes", "gauge", "Room on the file system for the service's user.", ("place",),
    _each("mail", "data"), total="min")
DISK_SIZE = Figure(
    "disk_size_bytes", "gauge", "Size of the file system.", ("place",), _each("mail", "data"),
    total="min")
DISK_FILES = Figure(
    "disk_free_files", "gauge", "Files that can still be made on the file system (inodes).",
    ("place",), _each("mail", "data"), total="min")
WRITTEN = Figure(
    "store_write_age_seconds", "age",
    "Time since a file was last written, for trial, where mail is kept.")
LAG = Figure(
    "reactor_lag_seconds", "histogram",
    "How late a timer was that fires once a second: what everything else had to wait for.",
    bounds=_QUICK)
DESCRIPTORS = Figure(
    "process_open_fds", "gauge", "Open file descriptors.")
RESTARTS = Figure(
    "worker_restarts_total", "counter", "Workers that died and were replaced.")
RELOADS = Figure(
    "reloads_total", "counter", "Times that the configuration was read again.", ("outcome",),
    _each("done", "failed"))

#: All of them, in the order in which they are shown.
FIGURES = tuple(each for each in globals().values() if isinstance(each, Figure))

#: Where the first cell of each figure is in a row, and in a series of it by labels.
_STARTS: dict[Figure, int] = {}
_SERIES: dict[Figure, dict[tuple[str, ...], int]] = {}
_CELLS = 0
for _figure in FIGURES:
    _STARTS[_figure] = _CELLS
    _SERIES[_figure] = {values: _CELLS + number * _figure.cells
                        for number, values in enumerate(_figure.values)}
    _CELLS += len(_figure.values) * _figure.cells

#: The cells of what is true of a process only while it lives.
_PASSING = [cell for figure in FIGURES if figure.kind in ("gauge", "age")
            for cell in _SERIES[figure].values()]


class Count:
    """A counter of this process."""

    __slots__ = ("_cell", "_row")

    def __init__(self, row: memoryview, cell: int) -> None:
        self._row = row
        self._cell = cell

    def add(self, more: int = 1) -> None:
        """Count *more*."""
        self._row[self._cell] += more


class Level(Count):
    """A gauge of this process; goes down by a negative :meth:`add`."""

    __slots__ = ()

    def set(self, value: int) -> None:
        """It is *value* now, 0 or more."""
        self._row[self._cell] = value


class Spread:
    """A histogram of this process."""

    __slots__ = ("_bounds", "_cell", "_row", "_sum")

    def __init__(self, row: memoryview, cell: int, bounds: Sequence[float]) -> None:
        self._row = row
        self._cell = cell
        self._bounds = [round(1e9 * bound) for bound in bounds]
        self._sum = cell + len(bounds) + 1

    def observe(self, nanoseconds: int) -> None:
        """Something took so long."""
        row = self._row
        row[self._cell + bisect_left(self._bounds, nanoseconds)] += 1
        row[self._sum] += nanoseconds // 1000


class Share:
    """What one process writes: the row *row* of *figures*, for a process alone one of its own."""

    def __init__(self, figures: Figures | None = None, row: int = 0) -> None:
        self._row = (figures or Figures(1)).row(row)

    def count(self, figure: Figure, *labels: str) -> Count:
        """The series of a counter that has these labels."""
        assert figure.kind == "counter"
        return Count(self._row, _series(figure, labels))

    def level(self, figure: Figure, *labels: str) -> Level:
        """The same of a gauge; of an age, to be set to the microseconds of time.monotonic()."""
        assert figure.kind in ("gauge", "age")
        return Level(self._row, _series(figure, labels))

    def spread(self, figure: Figure, *labels: str) -> Spread:
        """The same of a histogram."""
        assert figure.kind == "histogram"
        return Spread(self._row, _series(figure, labels), figure.bounds)


def _series(figure: Figure, labels: tuple[str, ...]) -> int:
    """The first cell of a series; of what has none, that of the one that is for all others."""
    series = _SERIES[figure]
    found = series.get(labels)
    if found is None:
        # The labels that come first say where, those behind them what.
        found = next((cell for values, cell in series.items() if OTHER in values and all(
            value in (label, OTHER) for value, label in zip(values, labels, strict=True))), None)
    if found is None:
        raise KeyError(f"{figure.name} has no series {labels}")
    return found


@dataclass(frozen=True, slots=True)
class Spreading:
    """A histogram as it was read.

    :ivar counts: how many there were in each bucket, the last of which has no bound.
    :ivar sum: in seconds.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float


#: A series as it was read.
Value = float | Spreading


class Figures:
    """Memory for the figures of so many processes (*rows*); to be made before these are forked."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._cells = memoryview(mmap.mmap(-1, 8 * _CELLS * rows)).cast("Q")

    def row(self, row: int) -> memoryview:
        """The cells of one process."""
        return self._cells[row * _CELLS:(row + 1) * _CELLS]

    def clear(self, row: int) -> None:
        """The process that had this row is gone; what it counted stays."""
        cells = self.row(row)
        for cell in _PASSING:
            cells[cell] = 0

    def read(self) -> Reading:
        """What there is now."""
        return Reading([self.row(row).tolist() for row in range(self.rows)])


class Reading:
    """All figures as they were at one moment."""

    def __init__(self, rows: list[list[int]]) -> None:
        self._rows = rows

    def total(self, figure: Figure, *labels: str, rows: Sequence[int] | None = None) -> Value:
        """A series over all *rows*, or those named.

        An age is that of the latest; of an age or a minimum of which no row tells, 0.
        """
        cell = _SERIES[figure][labels]
        chosen = self._rows if rows is None else [self._rows[row] for row in rows]
        if figure.kind == "histogram":
            *counts, microseconds = map(sum, zip(*(
                row[cell:cell + figure.cells] for row in chosen), strict=True))
            return Spreading(figure.bounds, tuple(counts), microseconds / figure.unit)
        values = [row[cell] for row in chosen]
        if figure.kind == "age" or figure.total == "max":
            total = max(values, default=0)
        elif figure.total == "min":
            total = min(filter(None, values), default=0)
        else:
            total = sum(values)
        return total if figure.unit == 1 else total / figure.unit
