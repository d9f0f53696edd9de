"""What was imported into a mailbox from one source, so that nothing comes twice.

A file of JSON lines, only appended to::

    ["source", "pop3:bob@example.org@mail.example.org"]
    ["begin", KEY, ID]      the message KEY will be put there, ID in the name of its file
    ["done", KEY, …]        these are there for good

A line is durable before what it announces is done.  So a message that was begun and not done may be
there or not; whoever goes on looks whether the mailbox has a file with ID.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from mailsvc.ownership import acting_as_owner_of
from mailsvc.store.tree import sync_directory


class Ledger:
    """The ledger in the file *path*, made with the first line, for the source *name*.

    :ivar done: the keys of what is there, or was.
    :ivar begun: key -> id of what may be there.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.done: set[str] = set()
        self.begun: dict[str, str] = {}
        self._path = path
        self._name = name
        if path.exists():
            for line in path.read_bytes().splitlines():
                self._take(line)

    def begin(self, messages: Iterable[tuple[str, str]]) -> None:
        """Note that messages, key and id of each, are about to be put there."""
        new = not self._path.exists()
        lines: list[list[str]] = [["source", self._name]] if new else []
        for key, id in messages:
            self.begun[key] = id
            lines.append(["begin", key, id])
        self._append(lines)
        if new:
            sync_directory(os.fsencode(self._path.parent))

    def settle(self, keys: Collection[str]) -> None:
        """Note that these are there."""
        if keys:
            self._append([["done", *keys]])
            self.done.update(keys)
            for key in keys:
                self.begun.pop(key, None)

    def _take(self, line: bytes) -> None:
        try:
            what, *rest = json.loads(line)
        except ValueError:
            return  # cut short with the power; what it announced was not done
        if what == "begin":
            self.begun[rest[0]] = rest[1]
        elif what == "done":
            self.done.update(rest)
            for key in rest:
                self.begun.pop(key, None)

    def _append(self, lines: list[list[str]]) -> None:
        # Behind an empty line: the one before may have been cut short.
        data = memoryview(b"\n" + b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        with acting_as_owner_of(self._path.parent):
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            while data:
                data = data[os.write(fd, data) :]
            os.fsync(fd)
        finally:
            os.close(fd)
