"""Who has the queue, and who works on which of its messages: locks, which end with a process."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import weakref
from pathlib import Path

_FILE_MODE = 0o600

#: How many files the claims are spread over.
_FILES = 16


class Ownership:
    """The lock that makes one process the one that has the queue.

    The kernel gives it back when the process ends, in whatever way.
    """

    def __init__(self, root: Path) -> None:
        self._path = root / "lock"
        self._fd: int | None = None

    def acquire(self) -> bool:
        """Take it, unless another process has it; whether we have it now."""
        if self._fd is None:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, _FILE_MODE)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return False
            self._fd = fd
        return True

    def release(self) -> None:
        """Give it back.  May be called again."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


class Claims:
    """Which messages are being worked on, that no two processes do so with the same one.

    Each stands for one octet of one of the files *path*.0, *path*.1, …, which are empty: whoever
    works on the message has that octet locked (fcntl(2)).  The kernel unlocks it when that process
    ends, in whatever way.  It looks through all locks on a file to find one; hence several files.

    For any thread; but for one message only one at a time.
    """

    def __init__(self, path: bytes) -> None:
        self._path = path
        self._files: dict[int, _File] = {}
        self._taken: set[str] = set()

    def take(self, id: str) -> bool:
        """Claim the message *id*; whether nobody has."""
        if id in self._taken:
            return False
        file, octet = self._place(id)
        if not file.lock(octet):
            return False
        self._taken.add(id)
        return True

    def give_back(self, id: str) -> None:
        """Let others have it.  May be called again."""
        if id in self._taken:
            file, octet = self._place(id)
            file.unlock(octet)
            self._taken.discard(id)

    def _place(self, id: str) -> tuple[_File, int]:
        """Its file, and which octet there."""
        # Should two messages have the same, one waits for the other.
        octet = int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest()) >> 2
        number = octet % _FILES
        if number not in self._files:
            self._files[number] = _file(b"%b.%d" % (self._path, number))
        return self._files[number], octet


class _File:
    """A file to lock octets of, which is open as long as somebody has this."""

    def __init__(self, path: bytes) -> None:
        self._fd = -1
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, _FILE_MODE)

    def __del__(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def identity(self) -> tuple[int, int]:
        """Its device and inode."""
        status = os.fstat(self._fd)
        return status.st_dev, status.st_ino

    def lock(self, octet: int) -> bool:
        """Lock *octet*, unless another process has; whether it is locked now."""
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, octet)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def unlock(self, octet: int) -> None:
        """Let others lock *octet*."""
        if self._fd >= 0:  # closed it may be where all that has it is collected as garbage
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, octet)


#: Those that are open in this process, by device and inode: with any descriptor of a file that a
#: process closes, all its locks on it go, so it may have but one.
_files: weakref.WeakValueDictionary[tuple[int, int], _File] = weakref.WeakValueDictionary()
_opening = threading.Lock()


def _file(path: bytes) -> _File:
    with _opening:
        try:
            status = os.lstat(path)
            found = _files.get((status.st_dev, status.st_ino))
        except FileNotFoundError:
            found = None
        if found is None:
            found = _File(path)
            _files[found.identity()] = found
        return found
