"""What happened to a directory tree, and what a power loss behind any of it could have left.

:meth:`DiskLog.crash` makes that, in another directory, by what POSIX promises and no more:

* of a file, what was written since its last sync is there, not there, or there for some of its
  blocks, with zeros between them; it may be shorter;
* of a directory, each link, unlink and creation since its last sync is there or not, in whatever
  order they were made; a rename may have made the new name and kept the old one;
* a directory whose own creation was lost takes all that is in it along.

``lying_disk.py`` fills it from the system calls of the process at hand, ``lying_mount.py`` is a
file system that does so for any process.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

_BLOCK = 512


class Op(NamedTuple):
    """One entry of the log.

    ``create``, ``link``, ``unlink``, ``mkdir``, ``rmdir`` in *directory*; ``rename`` to
    *directory*/*name* from *source*; ``write``, ``truncate`` to *at*, ``sync`` of *file*; ``sync
    directory``; ``sync all``; and ``mark``, which the test makes, of *data*.
    """

    kind: str
    file: int = 0
    directory: str = ""
    name: str = ""
    source: str = ""
    at: int = 0
    data: Any = b""


@dataclass
class _File:
    """What is durable of a file, and what may be: writes, and with None cuts, at places."""

    content: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def settle(self) -> None:
        for at, data in self.pending:
            _put(self.content, at, data)
        self.pending.clear()

    def lost(self, chance: random.Random, keep: float) -> bytes:
        """What a power loss may leave."""
        content = bytearray(self.content)
        for at, data in self.pending:
            whole = chance.random() < keep
            if data is None:
                if whole:
                    _put(content, at, None)
                continue
            for start in range(0, len(data), _BLOCK):
                if whole or chance.random() < keep / 2:
                    _put(content, at + start, data[start : start + _BLOCK])
        return bytes(content)


def _put(content: bytearray, at: int, data: bytes | None) -> None:
    content.extend(bytes(max(0, at - len(content))))
    if data is None:
        del content[at:]
    else:
        content[at : at + len(data)] = data


class DiskLog:
    """A log that begins with an empty directory; paths are relative to it.

    :ivar log: what happened, in order.
    """

    def __init__(self) -> None:
        self.log: list[Op] = []
        self._files: dict[str, int] = {}
        self._next = 1

    # ---- what happens ----

    def adopt(self, root: Path) -> None:
        """Note what is in *root* already, as durable."""
        for directory, directories, names in os.walk(root):
            inside = os.path.relpath(directory, root)
            for name in directories:
                self.made(os.path.normpath(f"{inside}/{name}"))
            for name in names:
                file = self.created(os.path.normpath(f"{inside}/{name}"))
                self.written(file, 0, Path(directory, name).read_bytes())
        self.log.append(Op("sync all"))

    def mark(self, data: Any) -> None:
        """Note that something is known by now."""
        self.log.append(Op("mark", data=data))

    def file(self, path: str) -> int | None:
        """The number of the file at *path*; None if none is known there."""
        return self._files.get(path)

    def created(self, path: str) -> int:
        """A new file is at *path*; its number."""
        file = self._files[path] = self._next
        self._next += 1
        self._note("create", path, file=file)
        return file

    def written(self, file: int, at: int, data: bytes) -> None:
        """*data* was written at *at*, or with -1 at the end."""
        self.log.append(Op("write", file, at=at, data=data))

    def truncated(self, file: int, octets: int) -> None:
        """The file has just so many octets."""
        self.log.append(Op("truncate", file, at=octets))

    def synced(self, file: int) -> None:
        """A file was."""
        self.log.append(Op("sync", file))

    def synced_directory(self, path: str) -> None:
        """A directory was; "" or "." is the root."""
        self.log.append(Op("sync directory", directory="" if path == "." else path))

    def synced_all(self) -> None:
        """The whole file system was."""
        self.log.append(Op("sync all"))

    def linked(self, source: str, target: str) -> None:
        """The file at *source* is at *target* too."""
        self._files[target] = self._files[source]
        self._note("link", target, file=self._files[target])

    def renamed(self, source: str, target: str) -> None:
        """A file moved."""
        self._files[target] = self._files.pop(source)
        self._note("rename", target, file=self._files[target], source=source)

    def unlinked(self, path: str) -> None:
        """A name of a file is gone."""
        self._files.pop(path, None)
        self._note("unlink", path)

    def made(self, path: str) -> None:
        """A directory."""
        self._note("mkdir", path)

    def removed(self, path: str) -> None:
        """A directory is gone."""
        self._note("rmdir", path)

    def _note(self, kind: str, path: str, **more: Any) -> None:
        directory, name = os.path.split(path)
        self.log.append(Op(kind, directory=directory, name=name, **more))

    # ---- the crash ----

    def crash(self, point: int, target: Path, chance: random.Random, keep: float) -> list[Any]:
        """Make in *target* what a power loss behind the first *point* operations leaves.

        :param keep: how likely it is that something unsynced is kept.
        :returns: the marks made by then.
        """
        files: dict[int, _File] = {}
        names: dict[str, dict[str, int]] = {"": {}}  # directory -> name -> file, 0: a directory
        pending: list[Op] = []
        marks = []

        def settle(which: Callable[[Op], bool]) -> None:
            for op in [op for op in pending if which(op)]:
                _apply(names, op)
                pending.remove(op)

        sizes: dict[int, int] = {}
        for op in self.log[:point]:
            if op.kind == "mark":
                marks.append(op.data)
            elif op.kind == "write":
                at = sizes.get(op.file, 0) if op.at < 0 else op.at
                sizes[op.file] = max(sizes.get(op.file, 0), at + len(op.data))
                files.setdefault(op.file, _File()).pending.append((at, op.data))
            elif op.kind == "truncate":
                sizes[op.file] = op.at
                files.setdefault(op.file, _File()).pending.append((op.at, None))
            elif op.kind == "sync":
                files.setdefault(op.file, _File()).settle()
            elif op.kind == "sync directory":
                settle(lambda each, where=op.directory: each.directory == where)
            elif op.kind == "sync all":
                settle(lambda each: True)
                for file in files.values():
                    file.settle()
            else:
                pending.append(op)
        for op in pending:
            if chance.random() < keep:
                _apply(names, op, half=keep < 1 and chance.random() < 0.3)
        for path, file_number in _walk(names, ""):
            place = target / path
            if file_number:
                file = files.get(file_number, _File())
                place.write_bytes(file.lost(chance, keep))
            else:
                place.mkdir(exist_ok=True)
        return marks


def _apply(names: dict[str, dict[str, int]], op: Op, *, half: bool = False) -> None:
    directory = names.setdefault(op.directory, {})
    if op.kind in ("unlink", "rmdir"):
        directory.pop(op.name, None)
    elif op.kind == "mkdir":
        directory[op.name] = 0
    else:
        directory[op.name] = op.file
        if op.kind == "rename" and not half:
            source, name = os.path.split(op.source)
            names.setdefault(source, {}).pop(name, None)


def _walk(names: dict[str, dict[str, int]], directory: str) -> Iterator[tuple[str, int]]:
    """Every name that can be reached, a directory before what is in it."""
    for name, file in names.get(directory, {}).items():
        path = os.path.join(directory, name)
        yield path, file
        if not file:
            yield from _walk(names, path)
