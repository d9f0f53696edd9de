"""Making a message durable in the maildirs of its accounts.

The file protocol, with what is true after each step if the power fails there:

1. create ``tmp/NAME`` in the first account's maildir, exclusively;   nothing is visible,
2. write the message, sync the file, close it;                        nothing is visible,
3. link it to ``new/NAME,S=…,W=…`` in every account's maildir;        each has it or has not,
4. unlink ``tmp/NAME``;                                               as before,
5. sync every new/;                                                   all have it, for good.

Only then is the message acknowledged.  So a message is in new/ whole or not at all; an acknowledged
one survives; one that was not acknowledged may still be found: a retry may duplicate, never lose
(RFC 1047).  When a step fails, what was linked is withdrawn.

There is one file and one sync of it for a message, however many accounts it is for.  Where a hard
link cannot be made (another file system, a limit on links, a file system without them), the file is
copied to that account's tmp/, synced, and renamed to new/.

:mod:`mailsvc.store.group` does it for many messages with one sync, with the steps of this one.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from mailsvc.store import filenames, maildirsize
from mailsvc.store.checkpoint import checkpoint
from mailsvc.store.text import CanonicalText
from mailsvc.store.threads import Threads
from mailsvc.store.tree import MailTree, sync_directory

#: link(2) fails so where a copy will do.
NO_LINK = {errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}

_FILE_MODE = 0o600
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_COPY = 256 * 1024


@dataclass(slots=True)
class Message:
    """A message on its way.

    :ivar homes: the maildirs it is for, each once.
    :ivar blocks: what is in memory of it: all, or what follows what is in the file.
    :ivar octets: how many it has, so far.
    :ivar text: counts how many RETR will send.
    :ivar path: its file in tmp/, or None.
    :ivar fd: that file, while it is open.
    :ivar targets: what it will be called in the new/ of each, once it is complete.
    """

    id: str
    homes: tuple[bytes, ...]
    blocks: list[bytes] = field(default_factory=list)
    octets: int = 0
    text: CanonicalText = field(default_factory=CanonicalText)
    path: bytes | None = None
    fd: int | None = None
    targets: tuple[bytes, ...] = ()

    def add(self, block: bytes) -> None:
        """Append *block*, in memory."""
        self.text.feed(block)
        self.octets += len(block)
        self.blocks.append(block)

    def take(self) -> bytes:
        """What is in memory, which is handed over."""
        blocks, self.blocks = self.blocks, []
        return b"".join(blocks)


class Committer:
    """Writes messages to disk, in threads.

    :param sync: whether to make durable what is written.
    """

    log = Logger()

    def __init__(
        self, tree: MailTree, threads: Threads, hostname: str, *, sync: bool = True
    ) -> None:
        self._tree = tree
        self._threads = threads
        self._host = filenames.host_part(hostname)
        self._sync = sync

    def stop(self) -> Deferred[None]:
        """End; the threads have ended."""
        return succeed(None)

    def spool(self, message: Message) -> Deferred[None]:
        """Move what is in memory to the file; fails with OSError, the file then being gone."""
        return self._threads.run(self._spool, message, message.take())

    def commit(self, message: Message) -> Deferred[None]:
        """Steps 1 to 5, or what is left of them; fails with OSError, the message then withdrawn."""
        return self._threads.run(self._commit, message)

    def discard(self, message: Message) -> Deferred[None]:
        """Remove the file, if there is one; never fails."""
        return succeed(None) if message.path is None else self._threads.run(self.remove, message)

    def _spool(self, message: Message, data: bytes) -> None:
        try:
            if message.fd is None:
                message.path, message.fd = self._create(message.homes[0], message.id)
            write_all(message.fd, data, message.path)
        except BaseException:
            self.remove(message)
            raise

    def sync_removals(self, directory: bytes, names: Collection[bytes]) -> None:
        """Make it durable that *names* are gone from *directory*; blocks, and raises OSError."""
        if self._sync:
            sync_directory(directory)

    def _commit(self, message: Message) -> None:
        self.prepare(message)
        self.place(message)

    # ---- blocking, for any thread ----

    def prepare(self, message: Message) -> None:
        """Steps 1 and 2: nothing is visible; raises OSError, the file then being gone."""
        try:
            self._spool(message, message.take())
            self._close(message)
            if not message.targets:
                message.text.end()
                message.targets = tuple(self._target(message, home) for home in message.homes)
        except BaseException:
            self.remove(message)
            raise

    def place(self, message: Message) -> None:
        """Steps 3 to 5; raises OSError, the message then withdrawn."""
        placed: list[bytes] = []
        try:
            for home, path in zip(message.homes, message.targets, strict=True):
                self._tree.within(home, self._link, message, home, path)
                placed.append(path)
            self.remove(message)
            if self._sync:
                for path in placed:
                    sync_directory(os.path.dirname(path))
        except BaseException:
            self.remove(message)
            for path in placed:
                self._unlink(path)
            raise
        for home in message.homes:
            maildirsize.record(home, message.octets, 1)

    def checkpoint(self, homes: Collection[bytes], paths: Collection[bytes]) -> None:
        """Make durable what was done without a sync to the maildirs *homes*."""
        checkpoint(homes, paths)

    def remove(self, message: Message) -> None:
        """Close and unlink the file, as far as that is still to be done."""
        fd, message.fd = message.fd, None
        path, message.path = message.path, None
        if fd is not None:
            with suppress(OSError):
                os.close(fd)
        if path is not None:
            self._unlink(path)

    def _create(self, home: bytes, id: str) -> tuple[bytes, int]:
        """Create a file in tmp/."""
        for name in filenames.unique_parts(int(time.time()), id, self._host):
            path = home + b"/tmp/" + name
            with suppress(FileExistsError):
                return path, self._tree.within(home, os.open, path, _NEW_FILE, _FILE_MODE)
        raise _taken(path)

    def _target(self, message: Message, home: bytes) -> bytes:
        """A name in new/ that is not taken."""
        for name in filenames.unique_parts(int(time.time()), message.id, self._host):
            path = home + b"/new/" + filenames.with_sizes(
                name, message.octets, message.text.octets)
            if not os.path.lexists(path):
                return path
        raise _taken(path)

    def _link(self, message: Message, home: bytes, path: bytes) -> None:
        assert message.path is not None
        try:
            os.link(message.path, path)
        except OSError as error:
            if error.errno not in NO_LINK:
                raise
            self._copy(message.path, home, message.id, path)

    def _copy(self, source: bytes, home: bytes, id: str, path: bytes) -> None:
        # rename(2) would replace what is there, where link(2) refuses.
        if os.path.lexists(path):
            raise _taken(path)
        copy = Message(id, (home,))
        try:
            copy.path, copy.fd = self._create(home, id)
            _write_from(source, copy.fd, copy.path)
            self._close(copy)
            os.rename(copy.path, path)
        except BaseException:
            self.remove(copy)
            raise

    def _close(self, message: Message) -> None:
        """Sync and close the file."""
        fd, message.fd = message.fd, None
        assert fd is not None
        try:
            if self._sync:
                os.fsync(fd)
        except OSError as error:
            error.filename = message.path
            raise
        finally:
            os.close(fd)

    def _unlink(self, path: bytes) -> None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            self.log.warn("cannot remove {path!r}: {error}", path=path, error=error)


def write_all(fd: int, data: bytes, path: bytes | None) -> None:
    """Write *data* to *fd*, an open file; an OSError tells of *path*."""
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[os.write(fd, rest) :]
    except OSError as error:
        error.filename = path
        raise


def _write_from(source: bytes, fd: int, path: bytes) -> None:
    reading = os.open(source, os.O_RDONLY)
    try:
        while block := os.read(reading, _COPY):
            write_all(fd, block, path)
    finally:
        os.close(reading)


def _taken(path: bytes) -> FileExistsError:
    return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
