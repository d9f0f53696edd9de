"""Files that have served a message, and serve another: to make one anew costs more.

ext4 does not give an inode out again for minutes after its file was removed, and looks at each of
these before it finds one for a new file: with some thousand messages a minute a file costs a
millisecond, most of what it takes to accept a message.  To rename one costs a twentieth of that.

A file is written again only when it is known to be durable that its message is gone: what a power
loss leaves under the name of one must not be another.  Who knows that is the process that ended the
message, so each has its own spares; the others sweep those of one that is gone.

Everything here blocks, and may be called from any thread.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress

#: How many there are at most, and of how many octets each.
MOST, OCTETS = 500, 65_536


class Spares:
    """The spares of one process, in *directory*.

    :ivar most: how many there may be.
    """

    def __init__(self, directory: bytes) -> None:
        self.directory = directory
        self.most = 0
        #: Those to give out, and those of which it is not yet known that they may be.
        self._ready: deque[bytes] = deque()
        self._pending: set[bytes] = set()

    def put(self, path: bytes, octets: int) -> None:
        """Remove the file *path*, or make it a spare, which is not given out before :meth:`ready`.
        """
        with suppress(FileNotFoundError):
            if octets > OCTETS or len(self._ready) + len(self._pending) >= self.most:
                os.unlink(path)
            else:
                spare = self._place(path)
                os.rename(path, spare)
                self._pending.add(spare)

    def ready(self, path: bytes) -> None:
        """It is durable that there is no file *path* any more: what it was may be given out."""
        spare = self._place(path)
        if spare in self._pending:
            self._pending.remove(spare)
            self._ready.append(spare)

    def take(self, path: bytes) -> int | None:
        """Have a spare be the file *path*, with whatever is in it; a descriptor to write it.

        None if there is none.
        """
        while True:
            try:
                os.rename(self._ready.popleft(), path)
            except IndexError:
                return None
            except FileNotFoundError:
                continue  # it was swept
            return os.open(path, os.O_WRONLY | os.O_NOFOLLOW)

    def _place(self, path: bytes) -> bytes:
        return self.directory + b"/" + os.path.basename(path)
