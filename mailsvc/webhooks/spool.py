"""Events that wait to be told, in an SQLite file that all processes share.

An event waits once for each URL.  Whoever tells it *claims* it first, by putting off when it is
due; who dies with a claim has told nobody, and it is due again when the claim has run out.  So an
event is told at least once, and an event that was told while the process died is told again, under
the same id.

A :class:`Spool` belongs to the thread that opened it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from mailsvc.database import Database

#: The file's name in the data directory.
NAME = "webhooks.sqlite"

_SCHEMA = """CREATE TABLE waiting (
    number INTEGER PRIMARY KEY, url TEXT NOT NULL, id TEXT NOT NULL, kind TEXT NOT NULL,
    body BLOB NOT NULL, since REAL NOT NULL, due REAL NOT NULL, attempts INTEGER NOT NULL,
    problem TEXT NOT NULL);
CREATE INDEX waiting_due ON waiting (url, due)"""
_VERSION = 1


class Event(NamedTuple):
    """What is told.

    :ivar id: the value of ``webhook-id``, by which a receiver knows what it was told before.
    :ivar since: when it happened, seconds since the epoch.
    """

    id: str
    kind: str
    body: bytes
    since: float


class Waiting(NamedTuple):
    """An event that waits for one URL.

    :ivar due: when it is tried next, seconds since the epoch; in a claim, when that runs out.
    :ivar attempts: how often it was tried.
    :ivar problem: why it was not told the last time.
    """

    number: int
    url: str
    event: Event
    due: float
    attempts: int
    problem: str


_COLUMNS = "number, url, id, kind, body, since, due, attempts, problem"


def _row(row: tuple[int, str, str, str, bytes, float, float, int, str]) -> Waiting:
    number, url, id, kind, body, since, due, attempts, problem = row
    return Waiting(number, url, Event(id, kind, body, since), due, attempts, problem)


class Spool(Database):
    """The file *path*, made when it is missing unless *create* is false.

    :raises DirectoryError: it cannot be used; so does every method, or TemporaryFailure.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        super().__init__(path, _SCHEMA, _VERSION, create=create)
        # What is forgotten with the power is that something was told: it is told again.
        self.change("PRAGMA synchronous = NORMAL")

    def add(self, events: Sequence[Event], urls: Collection[str], most: int) -> int:
        """Let each of *events* wait for each of *urls*; durable when it returns.

        :param most: how many may wait for one.
        :returns: how many of the oldest were dropped for that.
        """
        dropped = 0
        self.change("PRAGMA synchronous = FULL")
        with self.transaction():
            for url in urls:
                for event in events:
                    self.change("INSERT INTO waiting (url, id, kind, body, since, due, attempts, "
                                "problem) VALUES (?, ?, ?, ?, ?, ?, 0, '')", url, event.id,
                                event.kind, event.body, event.since, event.since)
                ((count,),) = self.rows("SELECT count(*) FROM waiting WHERE url = ?", url)
                if count > most:
                    dropped += count - most
                    self.change("DELETE FROM waiting WHERE number IN (SELECT number FROM waiting "
                                "WHERE url = ? ORDER BY number LIMIT ?)", url, count - most)
        self.change("PRAGMA synchronous = NORMAL")
        return dropped

    def claim(self, url: str, now: float, until: float, most: int) -> list[Waiting]:
        """Up to *most* events that are due for *url*, which are nobody else's *until* then."""
        if not self.rows("SELECT 1 FROM waiting WHERE url = ? AND due <= ? LIMIT 1", url, now):
            return []
        with self.transaction():
            return [_row(row) for row in self.rows(
                "UPDATE waiting SET due = ? WHERE number IN (SELECT number FROM waiting WHERE "
                f"url = ? AND due <= ? ORDER BY due LIMIT ?) RETURNING {_COLUMNS}",
                until, url, now, most)]

    def done(self, number: int) -> None:
        """It was told, or is given up."""
        with self.transaction():
            self.change("DELETE FROM waiting WHERE number = ?", number)

    def put_off(self, number: int, due: float, attempts: int, problem: str) -> None:
        """It could not be told, because of *problem*."""
        with self.transaction():
            self.change("UPDATE waiting SET due = ?, attempts = ?, problem = ? WHERE number = ?",
                        due, attempts, problem, number)

    def sweep(self, before: float) -> int:
        """Drop what happened *before* then, as for URLs that are told of nothing any more."""
        with self.transaction():
            return len(self.rows("DELETE FROM waiting WHERE since < ? RETURNING 1", before))

    def count(self) -> int:
        """How many wait."""
        ((count,),) = self.rows("SELECT count(*) FROM waiting")
        return int(count)

    def waiting(self, most: int = -1, offset: int = 0) -> list[Waiting]:
        """What waits, the oldest first: all, or *most* of them from *offset* on."""
        return [_row(row) for row in self.rows(
            f"SELECT {_COLUMNS} FROM waiting ORDER BY since, number LIMIT ? OFFSET ?",
            most, offset)]

    def waiting_for(self, url: str) -> tuple[int, float | None, str]:
        """How many wait for *url*, since when the oldest, and why the last that was tried was not
        told, or ""."""
        ((count, since),) = self.rows("SELECT count(*), min(since) FROM waiting WHERE url = ?", url)
        tried = self.rows("SELECT problem FROM waiting WHERE url = ? AND problem <> '' "
                          "ORDER BY due DESC LIMIT 1", url)
        return count, since, tried[0][0] if tried else ""
