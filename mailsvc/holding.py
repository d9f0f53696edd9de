"""The data directory, held by one service alone.

A service holds the file ``{data}/lock`` by flock(2) for as long as it runs, and its pid stands
there.  The kernel lets go of it with the last process that has it, however that ends: what was
killed is in nobody's way.  Workers do not have it, nor do commands: these work beside a service.

Such a lock belongs to an open file, not to a process.  So it outlives the fork by which a program
becomes a daemon, and a program that takes over from another (:mod:`mailsvc.succession`) inherits
the descriptor: both hold it until the one that took over serves.
"""

from __future__ import annotations

import fcntl
import os
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
        self._descriptor = -1

    def fileno(self) -> int:
        """The descriptor that a successor inherits, or -1."""
        return self._descriptor

    def take(self, inherited: int = -1) -> None:
        """Hold the directory from now on; may be called again.

        :param inherited: the descriptor by which the program before holds it.  It is used if it is
            of this directory, and closed otherwise.
        :raises InUse: another service does.
        :raises OSError: it is not there, or may not be used.
        """
        if self._descriptor >= 0:
            return
        directory = os.open(self._data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # As its owner, whose the file shall be, where we are root yet.
            with acting_as_owner_of(self._data):
                descriptor = os.open(
                    NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600,
                    dir_fd=directory)
        finally:
            os.close(directory)
        if inherited >= 0:
            if os.path.sameopenfile(inherited, descriptor):
                descriptor, inherited = inherited, descriptor
            os.close(inherited)
        try:
            # Once more by the same open file, it changes nothing.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _pid_in(descriptor)
            os.close(descriptor)
            raise InUse(pid) from None
        except OSError:
            os.close(descriptor)
            raise
        if inherited < 0:
            # Whoever stood there has ended.
            with suppress(OSError):
                os.truncate(descriptor, 0)
        self._descriptor = descriptor

    def sign(self) -> None:
        """Let the file say that it is this process that holds it."""
        # It is for people: a disk that is full does not keep the service from starting.
        with suppress(OSError):
            os.truncate(self._descriptor, 0)
            os.pwrite(self._descriptor, b"%d\n" % os.getpid(), 0)

    def close(self) -> None:
        """Let go of it, unless a successor holds it as well; may be called again."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _pid_in(descriptor: int) -> int:
    try:
        return int(os.pread(descriptor, 20, 0))
    except (OSError, ValueError):
        return 0
