"""Where events are kept: SQLite files in one directory, which all processes write to.

The files are numbered and begun one after the other, each when the one before it has a sixteenth of
all room or of all time.  So what is too old goes by removing a file: no row is ever deleted, which
would cost as much as to insert it, and a damaged file takes no more with it than its sixteenth.

**Promises.**  What was written survives the end of the process, however it comes, and a restart of
the service; a power loss may take the last of it, as nothing waits for the disk here.  All of a
batch is there or nothing.  A file that is damaged, or of another version, is left as it is, and the
next one is begun.  Reading disturbs no writer.

**Limits.**  As of :mod:`mailsvc.database`.  All methods block; an object belongs to one thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

import orjson
from twisted.logger import Logger

from mailsvc.database import Database, OtherVersion
from mailsvc.errors import TemporaryFailure
from mailsvc.log import plain
from mailsvc.names import DirectoryError
from mailsvc.tracing.events import Entry, Kind, number_of, numbers_of
from mailsvc.tracing.limits import TraceSettings

_log = Logger("mailsvc.tracing")

_VERSION = 2

# Events that came together are one row, a block: a row for each, and in the index one for each of
# its names, would take three times as long to write.  A block's events are JSON: of each the time,
# the kind, and the values of the fields that the kind names.  Of names the index has numbers, a
# tenth as long; ids of nearly the same time, which are most of a busy block's names, share one.
# Which events of a block are meant is found out when it is read.
_SCHEMA = """
CREATE TABLE kinds (kind INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE TABLE blocks (block INTEGER PRIMARY KEY, began INTEGER NOT NULL, ended INTEGER NOT NULL,
                     events TEXT NOT NULL);
CREATE TABLE names (name INTEGER NOT NULL, block INTEGER NOT NULL, PRIMARY KEY (name, block))
    WITHOUT ROWID
"""

#: How many events are written at once, at most, and how many are a block.  The number of a block
#: among those written at once has so many bits.
BATCH, _BLOCK, _BITS = 512, 64, 3
#: How many blocks are looked up at once, and how many of a file are remembered.
_PAGE, _REMEMBERED = 20, 200

#: Into how many files the room and the time are parted.
_PARTS = 16
_DAY = 86_400.0
#: Times are kept in microseconds: a number that is not whole takes ten times as long to be written.
_MICRO = 1_000_000
_SWEEP_EVERY = 3600.0
_NAME = re.compile(r"([0-9]{8})\.sqlite")


class Segment(Database):
    """One of the files.

    :raises DirectoryError: it cannot be used.
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        super().__init__(path, _SCHEMA, _VERSION, create=create)
        try:
            self.change("PRAGMA synchronous = NORMAL")
            # Pages of the index are written to again and again: let that be copied less often.
            self.change("PRAGMA wal_autocheckpoint = 4000")
            self.change("PRAGMA cache_size = -8192")
        except sqlite3.Error as error:
            self.close()
            raise self._unusable(error) from error
        self._kinds: dict[Kind, int] = {}
        self._known: dict[int, Kind] = {}
        self._remembered: OrderedDict[int, list[Entry]] = OrderedDict()

    @property
    def octets(self) -> int:
        """How much of the disk it has."""
        return _octets(self.path)

    @property
    def began(self) -> float | None:
        """The time of its first event; None while it has none."""
        rows = self.rows("SELECT began FROM blocks ORDER BY block LIMIT 1")
        return rows[0][0] / _MICRO if rows else None

    def add(self, entries: Sequence[Entry]) -> None:
        """Keep *entries*, :data:`BATCH` at most; all or, if it raises DirectoryError, none."""
        blocks = [entries[start:start + _BLOCK] for start in range(0, len(entries), _BLOCK)]
        # In order, so that pages are gone through once.
        names = sorted([number << _BITS | place for place, block in enumerate(blocks)
                        for number in numbers_of(block)])
        try:
            with self.transaction():
                first = self.rows("SELECT coalesce(max(block), 0) + 1 FROM blocks")[0][0]
                self.change_all("INSERT INTO blocks VALUES (?, ?, ?, ?)", [
                    self._row(number, block) for number, block in enumerate(blocks, first)])
                # One statement for all of them: it runs without the interpreter's lock, and one
                # for each would ask for it as often, against a reactor that is busy.
                self.change(f"INSERT INTO names SELECT value >> {_BITS}, "
                            f"? + (value & {(1 << _BITS) - 1}) FROM json_each(?)",
                            first, _json(names))
        except BaseException:
            self._kinds.clear()  # what was taken back is not there
            raise

    def _row(self, number: int, block: Sequence[Entry]) -> tuple[int, int, int, str]:
        told = [(round(_MICRO * seconds), self._kind(kind), values)
                for seconds, kind, values in block]
        times = [when for when, _, _ in told]
        return number, min(times), max(times), _json(told)

    def _kind(self, kind: Kind) -> int:
        if kind not in self._kinds:
            text = _json([kind.namespace, kind.level, kind.format, *kind.fields])
            self.change("INSERT OR IGNORE INTO kinds (text) VALUES (?)", text)
            ((self._kinds[kind],),) = self.rows("SELECT kind FROM kinds WHERE text = ?", text)
        return self._kinds[kind]

    def find(self, name: str, since: float) -> Iterator[Entry]:
        """As :meth:`Reader.newest`."""
        number, before = number_of(name), 1 << 62
        while True:
            blocks = [block for block, in self.rows(
                "SELECT block FROM names JOIN blocks USING (block) "
                "WHERE name = ? AND block < ? AND ended >= ? ORDER BY block DESC LIMIT ?",
                number, before, round(_MICRO * since), _PAGE)]
            for before in blocks:
                for entry in reversed(self._read(before)):
                    if entry.time >= since and entry.is_found_by(name):
                        yield entry
            if len(blocks) < _PAGE:
                return

    def everything(self, since: float) -> Iterator[Entry]:
        """As :meth:`Reader.everything`."""
        for block, in self.rows("SELECT block FROM blocks WHERE ended >= ? ORDER BY block DESC",
                                round(_MICRO * since)):
            for entry in reversed(self._read(block)):
                if entry.time >= since:
                    yield entry

    def _read(self, block: int) -> list[Entry]:
        """The entries of *block*."""
        if block in self._remembered:
            self._remembered.move_to_end(block)
            return self._remembered[block]
        ((events,),) = self.rows("SELECT events FROM blocks WHERE block = ?", block)
        self._remembered[block] = found = [
            Entry(microseconds / _MICRO, self._kind_of(kind), values)
            for microseconds, kind, values in _read_json(events)]
        if len(self._remembered) > _REMEMBERED:
            self._remembered.popitem(last=False)
        return found

    def _kind_of(self, number: int) -> Kind:
        if number not in self._known:
            ((text,),) = self.rows("SELECT text FROM kinds WHERE kind = ?", number)
            namespace, level, form, *fields = json.loads(text)
            self._known[number] = Kind(namespace, level, form, fields)
        return self._known[number]


def _json(value: Any) -> str:
    """*value* as JSON.

    :raises ValueError: it has no form there.
    """
    try:
        return orjson.dumps(value, default=plain).decode()  # in a tenth of the time
    except TypeError:  # a lone surrogate, a number of more than 64 bits
        return json.dumps(value, separators=(",", ":"), default=plain, allow_nan=False)


def _read_json(text: str) -> Any:
    """What :func:`_json` wrote."""
    try:
        return orjson.loads(text)
    except ValueError:  # as above; or it is damaged
        return json.loads(text)


class Writer:
    """Keeps events in *directory*, as many of them and as long as *settings* say.

    :param now: the time, in seconds since the epoch.
    """

    def __init__(self, directory: Path, settings: TraceSettings,
                 now: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._part = settings.octets // _PARTS
        self._octets = settings.octets
        self._seconds = settings.days * _DAY
        self._now = now
        self._segment: Segment | None = None
        self._sweep_at = 0.0

    def write(self, entries: Sequence[Entry]) -> None:
        """Keep *entries*, :data:`BATCH` at most; when it raises, none of them is kept.

        :raises DirectoryError: that is not possible now; says why and what to do.
        :raises ValueError: one of them has no form in JSON.
        """
        number = max(_numbers(self._directory), default=1)
        if self._segment is None or self._segment.path.name != _name(number):
            self._open(number)
        assert self._segment is not None
        if self._is_full(self._segment):
            self._open(number + 1)
        try:
            self._segment.add(entries)
        except DirectoryError as error:
            if not _is_damage(error):
                raise
            self._tell_of_damage(error)
            self._open(number + 1)
            self._segment.add(entries)
        if self._now() >= self._sweep_at:
            self.sweep()

    def close(self) -> None:
        """Let go of the file; may be called again."""
        segment, self._segment = self._segment, None
        if segment is not None:
            segment.close()

    def sweep(self) -> None:
        """Remove what is too old or too much, but never the newest file."""
        self._sweep_at = self._now() + _SWEEP_EVERY
        paths = [self._directory / _name(number) for number in sorted(_numbers(self._directory))]
        octets = sum(map(_octets, paths))
        for path in paths[:-1]:
            with contextlib.suppress(OSError):  # another process was as quick
                if octets > self._octets or path.stat().st_mtime < self._now() - self._seconds:
                    octets -= _octets(path)
                    for each in _files(path):
                        each.unlink(missing_ok=True)

    def _open(self, number: int) -> None:
        self.close()
        path = self._directory / _name(number)
        new = not path.exists()
        try:
            self._segment = Segment(path, create=True)
        except DirectoryError as error:
            if not (_is_damage(error) or isinstance(error, OtherVersion)):
                raise
            self._tell_of_damage(error)
            self._segment = Segment(self._directory / _name(number + 1), create=True)
        if new:
            self._sweep_at = 0.0

    def _is_full(self, segment: Segment) -> bool:
        if segment.octets >= self._part:
            return True
        try:
            began = segment.began
        except TemporaryFailure:
            return False  # it will be seen when it is written to
        return began is not None and began < self._now() - self._seconds / _PARTS

    def _tell_of_damage(self, error: DirectoryError) -> None:
        _log.error("a part of the trace of messages cannot be used: {reason}; the next part is "
                   "begun, and the file may be deleted", reason=error.problem)


class Reader:
    """Finds events in *directory*, whose files it opens as it needs them.

    :ivar problems: the files that could not be read, and why.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._segments: dict[int, Segment | None] = {}
        self.problems: list[str] = []

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files; may be called again."""
        for segment in self._segments.values():
            if segment is not None:
                segment.close()
        self._segments.clear()

    def newest(self, name: str, since: float = 0.0) -> Iterator[Entry]:
        """The entries that are found by *name* and are not older than *since*, those that were
        written last first.
        """
        return self._from_each(lambda segment: segment.find(name, since))

    def everything(self, since: float) -> Iterator[Entry]:
        """The entries that are not older than *since*, those that were written last first."""
        return self._from_each(lambda segment: segment.everything(since))

    def _from_each(self, entries: Callable[[Segment], Iterator[Entry]]) -> Iterator[Entry]:
        for segment in self._open():
            try:
                yield from entries(segment)
            except (TemporaryFailure, ValueError, LookupError) as error:
                self._cannot_read(segment, error)

    def find(self, name: str, limit: int = 10_000) -> list[Entry]:
        """The last *limit* of these, in order of time."""
        found = list(islice(self.newest(name), limit))
        found.reverse()  # of those at one time, what was written first is first
        return sorted(found, key=attrgetter("time"))

    def began(self) -> float | None:
        """The time of the oldest event; None when there is none."""
        times: list[float] = []
        for segment in self._open():
            try:
                if (began := segment.began) is not None:
                    times.append(began)
            except TemporaryFailure as error:
                self._cannot_read(segment, error)
        return min(times, default=None)

    def _open(self) -> Iterator[Segment]:
        """The files, the newest first."""
        for number in sorted(_numbers(self._directory), reverse=True):
            if number not in self._segments:
                path = self._directory / _name(number)
                try:
                    self._segments[number] = Segment(path, create=False)
                except DirectoryError as error:
                    # It may just have been removed, and then nothing is wrong.
                    self._segments[number] = None
                    if path.exists():
                        self.problems.append(str(error))
            segment = self._segments[number]
            if segment is not None:
                yield segment

    def _cannot_read(self, segment: Segment, error: Exception) -> None:
        problem = f"{segment.path} cannot be read ({error.__cause__ or error})"
        if problem not in self.problems:
            self.problems.append(problem)


def _numbers(directory: Path) -> Iterable[int]:
    """The numbers of the files that there are.

    :raises DirectoryError: the directory may not be looked into.
    """
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        raise DirectoryError(f"{directory} is not a directory", "move it away") from None
    except OSError as error:
        raise DirectoryError(f"{directory} cannot be read ({error.strerror})",
                             "run as the user that runs the service") from error
    return [int(match[1]) for match in map(_NAME.fullmatch, names) if match]


def _name(number: int) -> str:
    return f"{number:08}.sqlite"


def _files(path: Path) -> list[Path]:
    """The file *path* and those that SQLite keeps beside it."""
    return [path, *(path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))]


def _octets(path: Path) -> int:
    total = 0
    for each in _files(path):
        with contextlib.suppress(OSError):
            total += each.stat().st_size
    return total


def _is_damage(error: DirectoryError) -> bool:
    """Whether the file is not what it was, and will not be again."""
    cause = error.__cause__
    # A disk that is full and a file that is locked are OperationalErrors.
    return isinstance(cause, sqlite3.DatabaseError) and not isinstance(
        cause, sqlite3.OperationalError)
