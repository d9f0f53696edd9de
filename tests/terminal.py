"""A program on a pseudo-terminal, for those that will not run without one."""

from __future__ import annotations

import os
import pty
import subprocess
import time
from pathlib import Path

from tests.readable import readable


class Terminal:
    """Runs *command* on a terminal of 80 by 24; what it shows is read and kept in ``shown``."""

    def __init__(self, *command: str, home: Path) -> None:
        self._master, slave = pty.openpty()
        self.shown = b""
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, cwd=home, start_new_session=True,
            env={**os.environ, "HOME": str(home), "TERM": "vt100", "LC_ALL": "C.UTF-8",
                 "LINES": "24", "COLUMNS": "80"})
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)

    def wait(self, seconds: float = 30.0) -> None:
        """Return when it has ended with status 0; fails when it has not in time."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.shown
            if readable(self._master, 0.05):
                try:
                    self.shown += os.read(self._master, 65536)
                except OSError:  # the program has closed the terminal
                    time.sleep(0.05)
        assert self.process.returncode == 0, self.shown
