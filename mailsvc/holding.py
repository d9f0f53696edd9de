"""The data directory, held by one service alone.

A service holds two things by flock(2) for as long as it runs: the directory itself, and the file
``{data}/lock`` in it, where its pid stands.  The file can be removed, and another one made and
held; the directory cannot, as long as its data are in it.  But on NFS only files are locked for all
hosts: of a directory other hosts do not hear, and it may not be locked at all.

The kernel lets go of both with the last process that has them, however that ends: what was killed
is in nobody's way.  Workers do not have them, nor do commands: these work beside a service.

Such a lock belongs to an open file, not to a process.  So it outlives the fork by which a program
becomes a daemon, and a program that takes over from another (:mod:`mailsvc.succession`) inherits
the descriptors: both hold the directory until the one that took over serves.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from mailsvc.ownership import acting_as_owner_of

#: The file in the data directory.
NAME = "lock"


class InUse(Exception):
    """Another service holds the directory.

    :ivar pid: its process, or 0 when that cannot be told.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        super().__init__(f"process {pid}" if pid else "another process")


class Holding:
    """What one service has of the directory *data*: nothing before :meth:`take`."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._directory = self._file = -1

    def filenos(self) -> tuple[int, ...]:
        """The descriptors that a successor inherits."""
        return (self._directory, self._file) if self._file >= 0 else ()

    def take(self, inherited: Collection[int] = ()) -> None:
        """Hold the directory from now on; may be called again.

        :param inherited: the descriptors by which the program before holds it.  Those that are of
            this directory are used, and all are closed.
        :raises InUse: another service does.
        :raises OSError: it is not there, or may not be used.
        """
        if self._file >= 0:
            return
        self._directory = os.open(self._data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # As its owner, whose the file shall be, where we are root yet.
            with acting_as_owner_of(self._data):
                self._file = os.open(
                    NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600,
                    dir_fd=self._directory)
            for theirs in inherited:
                for ours in self._directory, self._file:
                    if os.path.sameopenfile(theirs, ours):
                        os.dup2(theirs, ours, inheritable=False)
                os.close(theirs)
            self._lock()
        except BaseException:
            self.close()
            raise
        if not inherited:
            # Whoever stood there has ended.
            with suppress(OSError):
                os.truncate(self._file, 0)

    def _lock(self) -> None:
        # Once more by the same open file, it changes nothing.
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(_pid_in(self._file)) from None
        try:
            fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # The file is another one now: whatever pid stands there is not that of the service.
            raise InUse(0) from None
        except OSError:
            pass  # EBADF, ENOLCK: a file system like NFS, where the file alone has to do

    def sign(self) -> None:
        """Let the file say that it is this process that holds it."""
        # It is for people: a disk that is full does not keep the service from starting.
        with suppress(OSError):
            os.truncate(self._file, 0)
            os.pwrite(self._file, b"%d\n" % os.getpid(), 0)

    def close(self) -> None:
        """Let go of it, unless a successor holds it as well; may be called again."""
        held = self._directory, self._file
        self._directory = self._file = -1
        for each in held:
            if each >= 0:
                os.close(each)


def _pid_in(descriptor: int) -> int:
    try:
        return int(os.pread(descriptor, 20, 0))
    except (OSError, ValueError):
        return 0
