"""The queue on disk: one file for each message, one for what became of it.

::

    queue/incoming/   files that are being written
    queue/message/ID  the envelope, one line of JSON; then the message, octet by octet
    queue/state/ID    what became of each recipient, one line of JSON; not there before an attempt
    queue/unreadable/ files that another program, or a broken disk, spoilt

The file protocol, with what is true after each step if the power fails there:

1. create ``incoming/ID``, write envelope and message;    nothing is queued: swept later,
2. sync the file, rename it to ``message/ID``;            queued, or not,
3. sync the directory ``message``;                        queued; now 250 may be said,
4. after each attempt write ``incoming/ID.state``, sync
   it, rename it to ``state/ID``, sync ``state``;         the attempt counts, or is made again,
5. when nothing is left to do unlink ``message/ID``,
   then ``state/ID``; sync ``message``.                   gone, or step 4's state, with nothing
                                                          left to do: removed at the next start.

So a message is never lost.  A recipient gets it twice only if we ended between the next host's 250
and step 4.  ``state/ID`` has the time of the next attempt for its time of modification, so that a
start need not read a hundred thousand files.

**Processes.**  Any may add messages.  Which message is worked on, and by which of them, is for the
one to say that holds the lock (:class:`Ownership`), an flock(2), which the kernel takes back
however that process ends.  Whoever works on a message has claimed it (:class:`Claims`).

Everything here blocks, and is for threads.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from twisted.logger import Logger

from mailsvc.queue.content import SMALL
from mailsvc.queue.message import (
    HEAD_OCTETS,
    QueuedMessage,
    Unreadable,
    envelope_line,
    parse,
    priority_of,
    state_line,
)
from mailsvc.store.tree import sync_directory

_FILE_MODE = 0o600
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW

#: The time of a held message's state: the year 2100, which no schedule reaches.
_NEVER = 4_102_444_800.0

#: The longest envelope that is read, in octets.
_MOST_ENVELOPE = 64 << 20


@dataclass(slots=True)
class Draft:
    """A message on its way into the queue.

    :ivar blocks: what is in memory of it: all, or what follows what is in the file.
    :ivar path: its file in ``incoming``, or None; *fd*, while it is open.
    """

    message: QueuedMessage
    blocks: list[bytes] = field(default_factory=list)
    path: bytes | None = None
    fd: int | None = None

    @property
    def id(self) -> str:
        """The message's."""
        return self.message.id

    def add(self, block: bytes) -> None:
        """Append *block*, in memory."""
        self.blocks.append(block)

    def take(self) -> bytes:
        """What is in memory, which is handed over."""
        blocks, self.blocks = self.blocks, []
        return b"".join(blocks)


class Spool:
    """The queue in the directory *root*."""

    log = Logger()

    def __init__(self, root: Path) -> None:
        self.root = root
        self._root = os.fsencode(root)
        self.claims = Claims(self._root + b"/claims")
        self._incoming, self._message, self._state, self._unreadable = (
            self._root + name for name in (b"/incoming", b"/message", b"/state", b"/unreadable"))

    def make(self) -> None:
        """Make the directories that are missing, durably.  May be called again."""
        for path in (self._root, self._incoming, self._message, self._state, self._unreadable):
            with suppress(FileExistsError):
                os.mkdir(path, 0o700)
        for path in (self._root, os.path.dirname(self._root)):
            sync_directory(path)

    # ---- into the queue ----

    def write(self, draft: Draft, data: bytes) -> None:
        """Step 1, or a part of it.  An OSError leaves no file behind."""
        try:
            if draft.fd is None:
                draft.path = self._incoming + b"/" + draft.message.id.encode("ascii")
                draft.fd = os.open(draft.path, _NEW_FILE, _FILE_MODE)
                data = envelope_line(draft.message) + data
            _write(draft.fd, data)
        except BaseException:
            self.discard(draft)
            raise

    def commit(self, draft: Draft) -> None:
        """Steps 1 to 3, or what is left of them.  An OSError leaves nothing behind."""
        self.write(draft, draft.take())
        try:
            fd, draft.fd = draft.fd, None
            assert fd is not None and draft.path is not None
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            placed = self._path(draft.message.id)
            os.rename(draft.path, placed)
            draft.path = placed
            sync_directory(self._message)
        except BaseException:
            self.discard(draft)
            raise

    def discard(self, draft: Draft) -> None:
        """Remove what is there of it; never raises."""
        fd, draft.fd = draft.fd, None
        path, draft.path = draft.path, None
        draft.blocks.clear()
        with suppress(OSError):
            if fd is not None:
                os.close(fd)
        with suppress(OSError):
            if path is not None:
                os.unlink(path)

    # ---- what is queued ----

    def ids(self) -> set[str]:
        """Every message in the queue."""
        return {name for name in os.listdir(os.fsdecode(self._message)) if _is_id(name)}

    def due(self) -> dict[str, float]:
        """When each message is tried next, seconds since the epoch; 0 for at once."""
        times = dict.fromkeys(self.ids(), 0.0)
        with os.scandir(os.fsdecode(self._state)) as entries:
            for entry in entries:
                if entry.name in times:
                    with suppress(FileNotFoundError):
                        times[entry.name] = entry.stat(follow_symlinks=False).st_mtime
        return times

    def priorities(self, ids: Collection[str]) -> dict[str, int]:
        """Of those of *ids* that have one other than 0, the priority."""
        found = {}
        for id in ids:
            with suppress(FileNotFoundError):
                fd = os.open(self._path(id), os.O_RDONLY)
                try:
                    priority = priority_of(os.read(fd, HEAD_OCTETS))
                finally:
                    os.close(fd)
                if priority:
                    found[id] = priority
        return found

    def load(self, id: str) -> QueuedMessage:
        """The message *id* as it is now.

        :raises FileNotFoundError: it is not in the queue.
        :raises Unreadable: its files are spoilt.
        """
        with self.open(id) as (message, stream):
            message.size = -stream.tell() + stream.seek(0, os.SEEK_END)
            return message

    def open(self, id: str) -> _Opened:
        """The message *id* and its file, which stands where the message itself begins.

        Use it with ``with``, or close the file yourself; raises as :meth:`load`.
        """
        stream = _opened(self._path(id))
        try:
            line = stream.readline(_MOST_ENVELOPE)
            return _Opened(parse(line, self._read_state(id)), stream)
        except BaseException:
            stream.close()
            raise

    def messages(self) -> Iterator[QueuedMessage]:
        """Every message that can be read, the oldest first."""
        for id in sorted(self.ids()):
            with suppress(FileNotFoundError, Unreadable):
                yield self.load(id)

    def save(self, *messages: QueuedMessage) -> None:
        """Step 4, of several messages at once."""
        for message in messages:
            name = message.id.encode("ascii")
            path = self._incoming + b"/" + name + b".state"
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, _FILE_MODE)
            try:
                _write(fd, state_line(message))
                due = _NEVER if message.held else message.due
                os.utime(fd, (due, due))
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(path, self._state + b"/" + name)
        sync_directory(self._state)

    def remove(self, *ids: str) -> None:
        """Step 5, of several messages at once.  May be called again."""
        self.unlink(*ids)
        self.sync_removals()

    def unlink(self, *ids: str) -> None:
        """The first part of step 5: they are gone unless the power fails."""
        for id in ids:
            for directory in (self._message, self._state):
                with suppress(FileNotFoundError):
                    os.unlink(directory + b"/" + id.encode("ascii"))

    def sync_removals(self) -> None:
        """The last part of step 5."""
        sync_directory(self._message)

    def set_aside(self, id: str) -> Path:
        """Move a message that cannot be read out of the way; where it is now."""
        name = id.encode("ascii")
        for directory, suffix in ((self._state, b".state"), (self._message, b"")):
            with suppress(FileNotFoundError):
                os.rename(directory + b"/" + name, self._unreadable + b"/" + name + suffix)
        return Path(os.fsdecode(self._unreadable + b"/" + name))

    def sweep(self, hours: float = 36) -> int:
        """Remove what abandoned deliveries and removals left behind; how many files.

        For the holder of the lock alone.
        """
        removed = 0
        before = time.time() - 3600 * hours
        queued = self.ids()
        with os.scandir(os.fsdecode(self._incoming)) as entries:
            old = [entry.path for entry in entries
                   if entry.stat(follow_symlinks=False).st_ctime < before]
        with os.scandir(os.fsdecode(self._state)) as entries:
            old += [entry.path for entry in entries if entry.name not in queued]
        for path in old:
            with suppress(FileNotFoundError):
                os.unlink(path)
                removed += 1
        return removed

    def _path(self, id: str) -> bytes:
        if not _is_id(id):
            raise FileNotFoundError(f"not a message id: {id!r}")
        return self._message + b"/" + id.encode("ascii")

    def _read_state(self, id: str) -> bytes | None:
        try:
            fd = os.open(self._state + b"/" + id.encode("ascii"), os.O_RDONLY)
        except FileNotFoundError:
            return None
        with open(fd, "rb") as file:
            return file.read()


class _Opened(tuple[QueuedMessage, BinaryIO]):
    """A message and its file; a context manager that closes the file."""

    def __new__(cls, message: QueuedMessage, stream: BinaryIO) -> _Opened:
        return super().__new__(cls, (message, stream))

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self[1].close()


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

    Each stands for one octet of the file *path*, which is empty: whoever works on the message has
    that octet locked (fcntl(2)).  The kernel unlocks it when that process ends, in whatever way.
    """

    def __init__(self, path: bytes) -> None:
        self._path = path
        self._fd = -1
        self._taken: set[str] = set()

    def take(self, id: str) -> bool:
        """Claim the message *id*; whether nobody has."""
        if id in self._taken:
            return False
        if self._fd < 0:
            # Never closed: with any descriptor of a file all locks on it go.
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, _FILE_MODE)
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _octet_of(id))
        except (BlockingIOError, PermissionError):
            return False
        self._taken.add(id)
        return True

    def give_back(self, id: str) -> None:
        """Let others have it."""
        self._taken.discard(id)
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, _octet_of(id))


def _octet_of(id: str) -> int:
    # Should two messages have the same, one waits for the other.
    return int.from_bytes(hashlib.blake2b(id.encode(), digest_size=8).digest()) >> 2


def _is_id(name: str) -> bool:
    return name.isascii() and name.isalnum()


def _opened(path: bytes) -> BinaryIO:
    """The file *path*: a small one has been read, in as few system calls as can be."""
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        if size > SMALL:
            return open(fd, "rb")
        data = os.read(fd, size)
        if len(data) < size:
            raise OSError(errno.EIO, "the file could not be read whole", os.fsdecode(path))
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return io.BytesIO(data)


def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest):]
