"""A file system that keeps a log of what happens to it, for any process: FUSE, over a directory.

:class:`LyingMount` mounts it, from a process of its own, and has the log in the end; what a power
loss leaves of it is :meth:`tests.disk_log.DiskLog.crash`'s to say.  It needs root, /dev/fuse and
libfuse (Debian's ``fuse3``); ``lying_files.py`` is that process.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.disk_log import DiskLog
from tests.service import PATIENCE

#: The extended attribute to set for a mark.
MARK = "user.mark"
_MNT_DETACH = 2


class LyingMount:
    """The file system, mounted while the ``with`` block lasts.

    :param directory: where its files, its mount point and its log are to be.
    :ivar mount: where it is mounted.
    :ivar disk: what happened, when it is over.
    """

    def __init__(self, directory: Path) -> None:
        self.mount = directory / "mount"
        self.disk = DiskLog()
        self._log = directory / "log"
        files = directory / "files"
        for path in files, self.mount:
            path.mkdir(parents=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.lying_files", files, self.mount, self._log],
            cwd=Path(__file__).parent.parent)

    def __enter__(self) -> LyingMount:
        deadline = time.monotonic() + PATIENCE
        while not self.mount.is_mount():
            assert self._process.poll() is None, "it cannot be mounted"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(self.mount), _MNT_DETACH):
            self._process.kill()
            raise OSError(ctypes.get_errno(), "it cannot be unmounted")
        try:
            assert self._process.wait(PATIENCE) == 0
        finally:
            self._process.kill()
        self.disk = pickle.loads(self._log.read_bytes())

    def mark(self, data: Any) -> None:
        """As ``DiskLog.mark``: it stands in the log when this returns."""
        os.setxattr(self.mount, MARK, pickle.dumps(data))
