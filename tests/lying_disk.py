"""A disk that lies in wait: what is written without a sync may be lost, in any combination.

:class:`LyingDisk` watches the system calls of ``mailsvc.store`` and ``mailsvc.journal`` while they
work on real files, and keeps a log of them.  :meth:`LyingDisk.crash` then makes, in another
directory, what a power loss behind any one of them could have left, by what POSIX promises and no
more:

* of a file, what was written since its last sync is there, not there, or there for some of its
  blocks, with zeros between them; it may be shorter;
* of a directory, each link, unlink and creation since its last sync is there or not, in whatever
  order they were made; a rename may have made the new name and kept the old one;
* a directory whose own creation was lost takes all that is in it along.

It models a file system rather than being one (FUSE), so that one run of a workload gives every
crash point, and thousands of schedules take seconds.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mailsvc.store import checkpoint

_BLOCK = 512


class Op(NamedTuple):
    """One entry of the log.

    ``create``, ``link``, ``unlink``, ``mkdir`` in *directory*; ``rename`` to *directory*/*name*
    from *source*; ``write``, ``truncate``, ``sync`` of *file*; ``sync directory``; ``sync all``;
    and ``mark``, which the test makes, of *data*.
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
    """What is durable of a file, and what may be."""

    content: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes]] = field(default_factory=list)

    def settle(self) -> None:
        for at, data in self.pending:
            _put(self.content, at, data)
        self.pending.clear()

    def lost(self, chance: random.Random, keep: float) -> bytes:
        """What a power loss may leave."""
        content = bytearray(self.content)
        for at, data in self.pending:
            if at < 0:
                if chance.random() < keep:
                    content.clear()
                continue
            whole = chance.random() < keep
            for start in range(0, len(data), _BLOCK):
                if whole or chance.random() < keep / 2:
                    _put(content, at + start, data[start : start + _BLOCK])
        return bytes(content)


def _put(content: bytearray, at: int, data: bytes) -> None:
    if at < 0:
        content.clear()
        return
    content.extend(bytes(max(0, at - len(content))))
    content[at : at + len(data)] = data


class LyingDisk:
    """The log of what happens below *root*.

    :param syncfs: whether the disk has syncfs(2) that can be relied on.
    :ivar log: what happened, in order.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path, *, syncfs: bool) -> None:
        self.log: list[Op] = []
        self._root = str(root)
        self._lock = threading.RLock()
        self._files: dict[str, int] = {}  # path -> file
        self._descriptors: dict[int, int | str] = {}  # descriptor -> file, or path of directory
        self._next = 1
        for name in ("open", "close", "write", "pwrite", "fsync", "fdatasync", "link", "unlink",
                     "rename", "mkdir"):
            monkeypatch.setattr(
                os, name, self._watched(getattr(os, name), getattr(self, f"_{name}")))

        def sync_file_system(path: bytes) -> bool:
            with self._lock:
                if syncfs:
                    self.log.append(Op("sync all"))
                return syncfs

        monkeypatch.setattr(checkpoint, "_sync_file_system", sync_file_system)

    def adopt(self) -> None:
        """Log what is there already, as durable."""
        for directory, directories, names in os.walk(self._root):
            for name in directories:
                self._note("mkdir", self._relative(f"{directory}/{name}"))
            for name in names:
                path = self._relative(f"{directory}/{name}")
                self._files[path] = self._next
                self._note("create", path, file=self._next)
                self.log.append(Op("write", self._next, at=0,
                                   data=Path(directory, name).read_bytes()))
                self._next += 1
        self.log.append(Op("sync all"))

    def mark(self, data: Any) -> None:
        """Log that something is known by now."""
        with self._lock:
            self.log.append(Op("mark", data=data))

    def foreign_rename(self, source: Path, target: Path) -> None:
        """What another program does."""
        with self._lock:
            os.rename(source, target)
            self._rename(None, source, target)

    def _watched(self, real: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
        def called(*args: Any, **keywords: Any) -> Any:
            caller = sys._getframe(1).f_globals["__name__"]
            if not caller.startswith(("mailsvc.store", "mailsvc.journal")):
                return real(*args, **keywords)
            with self._lock:
                result = real(*args, **keywords)
                note(result, *args)
                return result

        return called

    def _relative(self, path: str | bytes | Path) -> str:
        return os.path.relpath(os.fsdecode(path), self._root)

    # ---- notes ----

    def _note(self, kind: str, path: str, **more: Any) -> None:
        directory, name = os.path.split(path)
        self.log.append(Op(kind, directory=directory, name=name, **more))

    def _open(self, fd: int, where: bytes, flags: int, mode: int = 0) -> None:
        path = self._relative(where)
        if flags & os.O_DIRECTORY or os.path.isdir(f"{self._root}/{path}"):
            self._descriptors[fd] = path
            return
        if path not in self._files:
            self._files[path] = self._next
            self._note("create", path, file=self._next)
            self._next += 1
        elif flags & os.O_TRUNC:
            self.log.append(Op("truncate", self._files[path]))
        self._descriptors[fd] = self._files[path]

    def _close(self, _: Any, fd: int) -> None:
        self._descriptors.pop(fd, None)

    def _write(self, written: int, fd: int, data: Any) -> None:
        file = self._descriptors[fd]
        assert isinstance(file, int)
        self.log.append(Op("write", file, at=-1, data=bytes(data[:written])))

    def _pwrite(self, written: int, fd: int, data: Any, at: int) -> None:
        file = self._descriptors[fd]
        assert isinstance(file, int)
        self.log.append(Op("write", file, at=at, data=bytes(data[:written])))

    def _fsync(self, _: None, fd: int) -> None:
        file = self._descriptors.get(fd)
        if isinstance(file, str):
            self.log.append(Op("sync directory", directory="" if file == "." else file))
        elif file is not None:
            self.log.append(Op("sync", file))

    _fdatasync = _fsync

    def _link(self, _: None, source: bytes, target: bytes) -> None:
        file = self._files[self._relative(target)] = self._files[self._relative(source)]
        self._note("link", self._relative(target), file=file)

    def _unlink(self, _: None, path: bytes) -> None:
        self._files.pop(self._relative(path), None)
        self._note("unlink", self._relative(path))

    def _rename(self, _: None, source: Any, target: Any) -> None:
        file = self._files[self._relative(target)] = self._files.pop(self._relative(source))
        self._note("rename", self._relative(target), file=file, source=self._relative(source))

    def _mkdir(self, _: None, path: bytes, mode: int = 0) -> None:
        self._note("mkdir", self._relative(path))

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
                sizes[op.file] = 0
                files.setdefault(op.file, _File()).pending.append((-1, b""))
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
    if op.kind == "unlink":
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
