"""A disk that lies in wait: what is written without a sync may be lost, in any combination.

:class:`LyingDisk` watches the system calls of ``mailsvc.store``, ``mailsvc.journal`` and
``mailsvc.queue`` while they work on real files.  It models a file system rather than being one
(``lying_mount.py``), so that one run of a workload gives every crash point, and thousands of
schedules take seconds.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mailsvc.store import checkpoint
from tests.disk_log import DiskLog


class LyingDisk(DiskLog):
    """The log of what happens below *root*.

    :param syncfs: whether the disk has syncfs(2) that can be relied on.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path, *, syncfs: bool) -> None:
        super().__init__()
        self._root = str(root)
        self._lock = threading.RLock()
        self._descriptors: dict[int, int | str] = {}  # descriptor -> file, or path of directory
        for name in ("open", "close", "write", "pwrite", "ftruncate", "fsync", "fdatasync", "link",
                     "unlink", "rename", "mkdir"):
            monkeypatch.setattr(
                os, name, self._watched(getattr(os, name), getattr(self, f"_{name}")))

        def sync_file_system(path: bytes) -> bool:
            with self._lock:
                if syncfs:
                    self.synced_all()
                return syncfs

        monkeypatch.setattr(checkpoint, "sync_file_system", sync_file_system)

    def mark(self, data: Any) -> None:
        with self._lock:
            super().mark(data)

    def foreign_rename(self, source: Path, target: Path) -> None:
        """What another program does."""
        with self._lock:
            os.rename(source, target)
            self._rename(None, source, target)

    def _watched(self, real: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
        def called(*args: Any, **keywords: Any) -> Any:
            caller = sys._getframe(1).f_globals["__name__"]
            if not caller.startswith(("mailsvc.store", "mailsvc.journal", "mailsvc.queue")):
                return real(*args, **keywords)
            with self._lock:
                result = real(*args, **keywords)
                note(result, *args)
                return result

        return called

    def _relative(self, path: str | bytes | Path) -> str:
        return os.path.relpath(os.fsdecode(path), self._root)

    def _open(self, fd: int, where: bytes, flags: int, mode: int = 0) -> None:
        path = self._relative(where)
        if flags & os.O_DIRECTORY or os.path.isdir(f"{self._root}/{path}"):
            self._descriptors[fd] = path
            return
        file = self.file(path)
        if file is None:
            file = self.created(path)
        elif flags & os.O_TRUNC:
            self.truncated(file, 0)
        self._descriptors[fd] = file

    def _close(self, _: Any, fd: int) -> None:
        self._descriptors.pop(fd, None)

    def _write(self, written: int, fd: int, data: Any) -> None:
        self._pwrite(written, fd, data, -1)

    def _pwrite(self, written: int, fd: int, data: Any, at: int) -> None:
        file = self._descriptors[fd]
        assert isinstance(file, int)
        self.written(file, at, bytes(data[:written]))

    def _ftruncate(self, _: None, fd: int, octets: int) -> None:
        file = self._descriptors[fd]
        assert isinstance(file, int)
        self.truncated(file, octets)

    def _fsync(self, _: None, fd: int) -> None:
        file = self._descriptors.get(fd)
        if isinstance(file, str):
            self.synced_directory(file)
        elif file is not None:
            self.synced(file)

    _fdatasync = _fsync

    def _link(self, _: None, source: bytes, target: bytes) -> None:
        self.linked(self._relative(source), self._relative(target))

    def _unlink(self, _: None, path: bytes) -> None:
        self.unlinked(self._relative(path))

    def _rename(self, _: None, source: Any, target: Any) -> None:
        self.renamed(self._relative(source), self._relative(target))

    def _mkdir(self, _: None, path: bytes, mode: int = 0) -> None:
        self.made(self._relative(path))
