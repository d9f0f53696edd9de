"""The manifest of a snapshot: every file in it, with its size and checksum.

One JSON object a line: what the snapshot is, the files sorted as they were copied, and at last how
many there are and a checksum of all the lines before::

    {"mailsvc": "snapshot", "format": 1, "made": 1763683200.5, "host": "mail.example.org", …}
    {"path": "mail/example.org/alice/new/1763…,S=4096,W=4096", "octets": 4096,
     "modified": 1763683200000000000, "sha256": "9f86d0…"}
    …
    {"files": 1204, "octets": 48210394, "sha256": "60303a…"}

Paths that are not UTF-8 are written as Python's ``os.fsdecode`` has them.  A manifest without its
last line, or with another checksum, is none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

NAME = "manifest"
FORMAT = 1
_READ = 256 * 1024


class Damaged(Exception):
    """A snapshot that cannot be trusted; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file.

    :ivar path: below the snapshot's directory.
    :ivar modified: when, in nanoseconds since 1970.
    :ivar sha256: in hexadecimal.
    """

    path: str
    octets: int
    modified: int
    sha256: str


class Writer:
    """Writes a manifest line by line."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.files = self.octets = 0
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        self._digest = hashlib.sha256()
        self._line({"mailsvc": "snapshot", "format": FORMAT, **about})

    def add(self, entry: Entry) -> None:
        self._line(asdict(entry))
        self.files += 1
        self.octets += entry.octets

    def end(self) -> None:
        """Write the last line; durable when this returns."""
        self._line({"files": self.files, "octets": self.octets,
                    "sha256": self._digest.hexdigest()})
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        """Give up; may be called again, and after :meth:`end`."""
        self._file.close()

    def _line(self, value: dict[str, Any]) -> None:
        line = json.dumps(value).encode() + b"\n"
        self._digest.update(line)
        self._file.write(line)


def about(snapshot: Path) -> dict[str, Any]:
    """The first and the last line in one: made, host, version, files, octets.

    :raises Damaged: the manifest is not whole.
    """
    path = snapshot / NAME
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            first = last = file.readline()
            for line in file:
                digest.update(last)
                size += 1
                last = line
        found: dict[str, Any] = {**json.loads(first), **json.loads(last)}
        if found["mailsvc"] != "snapshot" or found["files"] != size - 1:
            raise ValueError
        if found["sha256"] != digest.hexdigest():
            raise Damaged(f"{path} is damaged: its checksum is another")
    except FileNotFoundError:
        raise Damaged(f"{snapshot} is no snapshot: there is no manifest in it") from None
    except (ValueError, KeyError, TypeError):
        raise Damaged(f"{path} is damaged: it is no whole manifest") from None
    if found["format"] != FORMAT:
        raise Damaged(f"{path} has format {found['format']}, not {FORMAT}: upgrade mailsvc")
    return found


def entries(snapshot: Path) -> Iterator[Entry]:
    """The files of a snapshot whose manifest :func:`about` has found whole.

    :raises Damaged: one would lie elsewhere.
    """
    with (snapshot / NAME).open("rb") as file:
        file.readline()
        for line in file:
            if b'"path"' in line:
                entry = Entry(**json.loads(line))
                if {"", ".", ".."} & set(entry.path.split("/")) or "\0" in entry.path:
                    raise Damaged(f"{snapshot / NAME} names a file elsewhere: {entry.path!r}")
                yield entry


def checked(file: BinaryIO, entry: Entry) -> Iterator[bytes]:
    """The blocks of the open *file*.

    :raises Damaged: after the last, when they are not those that *entry* tells of.
    """
    digest, octets = hashlib.sha256(), 0
    while block := file.read(_READ):
        digest.update(block)
        octets += len(block)
        yield block
    if octets != entry.octets or digest.hexdigest() != entry.sha256:
        raise Damaged(f"{entry.path} is damaged: its checksum is another")
