"""The files of a ``LyingMount``: ``python -m tests.lying_files DIRECTORY MOUNT LOG``.

What happens to them passes through to the directory, and is noted.  Nothing is cached that is to be
seen: every write(2) is in the log when it returns.  Locks are the kernel's, and what is mapped is
written when the kernel does so.
"""

from __future__ import annotations

import errno
import os
import pickle
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mfusepy

from tests.disk_log import DiskLog
from tests.lying_mount import MARK


class _Files(mfusepy.Operations):
    """The files in the directory *root*."""

    use_ns = True

    def __init__(self, root: str, log: DiskLog) -> None:
        self._root = root
        self._log = log
        self._open: dict[int, int | None] = {}  # descriptor -> file

    def _at(self, path: str) -> str:
        return self._root + path

    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:
        if name != MARK:
            raise OSError(errno.ENOTSUP, name)
        self._log.mark(pickle.loads(value))
        return 0

    # ---- files ----

    def create(self, path: str, mode: int, flags: Any = None) -> int:
        fd = os.open(self._at(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        self._open[fd] = self._log.created(path[1:])
        return fd

    def open(self, path: str, flags: int) -> int:
        fd = os.open(self._at(path), os.O_RDWR)
        file = self._open[fd] = self._log.file(path[1:])
        if flags & os.O_TRUNC and file is not None:
            os.ftruncate(fd, 0)
            self._log.truncated(file, 0)
        return fd

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        del self._open[fh]
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        written = os.pwrite(fh, data, offset)
        file = self._open[fh]
        assert file is not None, path
        self._log.written(file, offset, bytes(data[:written]))
        return written

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        os.truncate(self._at(path), length)
        file = self._log.file(path[1:])
        assert file is not None, path
        self._log.truncated(file, length)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        file = self._open[fh]
        assert file is not None, path
        self._log.synced(file)
        return 0

    # ---- names ----

    def link(self, target: str, source: str) -> int:
        os.link(self._at(source), self._at(target))
        self._log.linked(source[1:], target[1:])
        return 0

    def unlink(self, path: str) -> int:
        os.unlink(self._at(path))
        self._log.unlinked(path[1:])
        return 0

    def rename(self, old: str, new: str) -> int:
        os.rename(self._at(old), self._at(new))
        self._log.renamed(old[1:], new[1:])
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        os.mkdir(self._at(path), mode)
        self._log.made(path[1:])
        return 0

    def rmdir(self, path: str) -> int:
        os.rmdir(self._at(path))
        self._log.removed(path[1:])
        return 0

    def mknod(self, path: str, mode: int, dev: int) -> int:
        # A socket; nobody asks for it after a power loss.
        os.mknod(self._at(path), mode, dev)
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        self._log.synced_directory(path[1:])
        return 0

    def readdir(self, path: str, fh: int) -> Iterator[tuple[str, dict[str, int], int]]:
        # Without an inode's number an entry counts as one that is deleted.
        for name in [".", "..", *os.listdir(self._at(path))]:
            found = os.lstat(f"{self._at(path)}/{name}")
            yield name, {"st_mode": found.st_mode, "st_ino": found.st_ino}, 0

    # ---- what is known of them ----

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        found = os.lstat(self._at(path)) if fh is None else os.fstat(fh)
        known = {name: getattr(found, name) for name in (
            "st_mode", "st_ino", "st_dev", "st_nlink", "st_uid", "st_gid", "st_size",
            "st_blocks", "st_blksize")}
        for name in "atime", "mtime", "ctime":
            known[f"st_{name}"] = getattr(found, f"st_{name}_ns")
        return known

    def chmod(self, path: str, mode: int) -> int:
        os.chmod(self._at(path), stat.S_IMODE(mode))
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        os.chown(self._at(path), uid, gid)
        return 0

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        os.utime(self._at(path), ns=times)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self._at(path))
        return {name: getattr(found, name) for name in (
            "f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree",
            "f_favail", "f_namemax")}


def main() -> None:
    files, mount, log = sys.argv[1:]
    disk = DiskLog()
    mfusepy.FUSE(_Files(files, disk), mount, foreground=True, nothreads=True, use_ino=True,
                 hard_remove=True, attr_timeout=0, entry_timeout=0, negative_timeout=0,
                 default_permissions=True, allow_other=True)
    Path(log).write_bytes(pickle.dumps(disk))


if __name__ == "__main__":
    main()
