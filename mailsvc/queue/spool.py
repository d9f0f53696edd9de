"""The queue on disk: one file for each message, one for what became of it.

::

    queue/incoming/   files that are being written
    queue/message/ID  the envelope, one line of JSON; then the message, octet by octet
    queue/state/ID    what became of each recipient, one line of JSON; not there before an attempt
    queue/journal/    what was put into message/ and removed from it lately (mailsvc.journal)
    queue/receipts/   what next hosts took, until the state says so (mailsvc.queue.receipts)
    queue/unreadable/ files that another program, or a broken disk, spoilt

The file protocol, with what is true after each step if the power fails there:

1. create ``incoming/ID``, write envelope and message;    nothing is queued: swept later,
2. append the same to the journal, and flush it, for all  queued: it is written again at the next
   messages that have come meanwhile;                     start (mailsvc.queue.recovery),
3. rename the file to ``message/ID``; say 250;            queued, or not, and then written again,
4. after each attempt write ``incoming/ID.state``, sync
   it, rename it to ``state/ID``, sync ``state``;         the attempt counts, or is made again,
5. when nothing is left to do unlink ``message/ID``;      gone, or still there with what step 4
                                                          said, as if the attempt had not been made,
6. append to the journal that it is gone, flush it;       gone: removed again at the next start,
7. unlink ``state/ID``.                                   the same.

A kill -9 leaves what the steps until then have done, and nothing is written again.  In the
background the journal's files are made durable, those that are there yet, and ``message`` with
them; what they said is forgotten then.  Where there is no journal, as when it fails or the message
is a large one, step 2 is to sync the file and behind step 3 ``message``, and step 6 to sync that.

So a message is never lost.  A recipient gets it twice only if the power fails between the next
host's 250 and step 4 or 6, or we end before we have read it.  ``state/ID`` has the time of the next
attempt for its time of modification, so that a start need not read a hundred thousand files.

**Processes.**  Any may add messages.  Which message is worked on, and by which of them, is for the
one to say that has the queue, and whoever works on a message has claimed it
(:mod:`mailsvc.queue.claims`).

Everything here blocks, and is for threads.
"""

from __future__ import annotations

import errno
import io
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

from twisted.logger import Logger

from mailsvc.journal import write_at
from mailsvc.queue.claims import Claims
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
from mailsvc.queue.receipts import Receipts
from mailsvc.store.checkpoint import checkpoint_directory
from mailsvc.store.tree import sync_directory

_FILE_MODE = 0o600
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW

#: The time of a held message's state: the year 2100, which no schedule reaches.
_NEVER = 4_102_444_800.0

#: How long the times of files may stay the same although something changes, seconds; no clock of a
#: kernel is so coarse.
_TICK = 2.0

#: How much of a file is read before it is asked how long it is, octets: nearly always all of it.
_FIRST = 32_768

#: The longest envelope that is read, in octets.
_MOST_ENVELOPE = 64 << 20


@dataclass(slots=True)
class Draft:
    """A message on its way into the queue.

    :ivar blocks: what is in memory of it, its envelope in front: all, or what follows what is in
        the file.
    :ivar octets: how many it has, so far.
    :ivar path: its file in ``incoming``, or None; *fd*, while it is open.
    :ivar written: how many octets are there of it.
    :ivar targets: its file in ``message``, once it is complete.
    """

    message: QueuedMessage
    blocks: list[bytes] = field(default_factory=list)
    octets: int = 0
    path: bytes | None = None
    fd: int | None = None
    written: int = 0
    homes: tuple[bytes, ...] = ()
    targets: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        self.add(envelope_line(self.message))

    @property
    def id(self) -> str:
        """The message's."""
        return self.message.id

    def add(self, block: bytes) -> None:
        """Append *block*, in memory."""
        self.octets += len(block)
        self.blocks.append(block)

    def take(self) -> bytes:
        """What is in memory, which is handed over."""
        blocks, self.blocks = self.blocks, []
        return b"".join(blocks)


#: Makes it durable that *places* are gone from *homes*, as ``GroupCommitter.removed`` does.
Removed = Callable[[Collection[bytes], Sequence[bytes], Callable[[bool], object]], object]


class Spool:
    """The queue in the directory *root*.

    It is the ``Files`` of a :class:`mailsvc.store.group.GroupCommitter`.

    :ivar journal: the directory of the journal.
    :ivar removed: writes into the journal that messages are gone; None where there is none.
    """

    log = Logger()

    def __init__(self, root: Path) -> None:
        self.root = root
        self.removed: Removed | None = None
        self._root = os.fsencode(root)
        self.journal = self._root + b"/journal"
        self.claims = Claims(self._root + b"/claimed")
        self.receipts = Receipts(self._root)
        #: When a message last came or went, before all were listed.
        self._listed: float | None = None
        self._incoming, self._message, self._state, self._unreadable = (
            self._root + name for name in (b"/incoming", b"/message", b"/state", b"/unreadable"))

    def make(self) -> None:
        """Make the directories that are missing, durably.  May be called again."""
        for path in (self._root, self._incoming, self._message, self._state, self._unreadable,
                     self.receipts.directory):
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
            write_at(draft.fd, data, draft.written)
            draft.written += len(data)
        except BaseException:
            self.discard(draft)
            raise

    def commit(self, draft: Draft) -> None:
        """All steps until the 250, without the journal.  An OSError leaves nothing behind."""
        self.prepare(draft, sync=True)
        self.place(draft, sync=True)

    def prepare(self, draft: Draft, *, sync: bool = False) -> None:
        """Step 1, or what is left of it.  An OSError leaves nothing behind."""
        self.write(draft, draft.take())
        try:
            fd, draft.fd = draft.fd, None
            assert fd is not None
            try:
                if sync:
                    os.fsync(fd)
            finally:
                os.close(fd)
            draft.targets = (self._path(draft.message.id),)
        except BaseException:
            self.discard(draft)
            raise

    def place(self, draft: Draft, *, sync: bool = False) -> None:
        """The first part of step 3.  An OSError leaves nothing behind."""
        try:
            assert draft.path is not None
            [placed] = draft.targets
            os.rename(draft.path, placed)
            draft.path = placed
            if sync:
                sync_directory(self._message)
        except BaseException:
            self.discard(draft)
            raise

    def remove(self, draft: Draft) -> None:
        """As :meth:`discard`."""
        self.discard(draft)

    def checkpoint(self, homes: Collection[bytes], paths: Collection[bytes]) -> None:
        """Make durable what the journal says: of the messages at *paths*, and of removals."""
        checkpoint_directory(self._message, paths)

    def restore(self, path: bytes, content: bytes) -> None:
        """Write the message at *path* once more."""
        temporary = self._incoming + b"/" + os.path.basename(path)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, _FILE_MODE)
        try:
            write_at(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)

    def discard(self, draft: Draft) -> None:
        """Remove what is there of it; never raises."""
        fd, draft.fd = draft.fd, None
        path, draft.path = draft.path, None
        draft.written = 0
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

    def ids_if_changed(self) -> set[str] | None:
        """As :meth:`ids`; None if none has come or gone since that was last listed."""
        now, changed = time.time(), os.stat(self._message).st_mtime
        if changed == self._listed:
            return None
        # What changes within the same tick of the clock has the same time.
        self._listed = changed if changed < now - _TICK else None
        return self.ids()

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
            message = parse(line, self._read_state(id))
            if message.id != id:
                # It has ended since, and the file is another's.
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), id)
            return _Opened(message, stream)
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
            message.saved = True
            name = message.id.encode("ascii")
            path = self._incoming + b"/" + name + b".state"
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, _FILE_MODE)
            try:
                write_at(fd, state_line(message))
                due = _NEVER if message.held else message.due
                os.utime(fd, (due, due))
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(path, self._state + b"/" + name)
        sync_directory(self._state)

    def end(self, *messages: QueuedMessage) -> None:
        """Steps 5 to 7, of several messages at once; does not wait for 6 where there is a journal.
        May be called again.
        """
        for each in messages:
            self.unlink(self._path(each.id))
        if self.removed is None:
            self._ended(messages, False)
        else:
            self.removed((self._root,), [b"message/" + each.id.encode("ascii")
                                         for each in messages], partial(self._ended, messages))

    def _ended(self, messages: Sequence[QueuedMessage], recorded: bool) -> None:
        if not recorded:
            sync_directory(self._message)
        # Not sooner: a message that came back without it would be as good as new.
        for each in messages:
            if each.saved:
                self.unlink(self._state + b"/" + each.id.encode("ascii"))

    def unlink(self, path: bytes) -> bool:
        """Remove the file *path*; whether it was there."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            return False
        return True

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

    def path(self, place: bytes) -> bytes:
        """The path of *place*, ``message/ID``.

        :raises ValueError: it is none.
        """
        directory, _, id = place.partition(b"/")
        if directory != b"message" or not _is_id(id.decode("latin-1")):
            raise ValueError(f"not a place in the queue: {place!r}")
        return self._root + b"/" + place

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


def _is_id(name: str) -> bool:
    return name.isascii() and name.isalnum()


def _opened(path: bytes) -> BinaryIO:
    """The file *path*: a small one has been read, in as few system calls as can be."""
    fd = os.open(path, os.O_RDONLY)
    try:
        data = os.read(fd, _FIRST)
        if len(data) == _FIRST:
            size = os.fstat(fd).st_size
            if size > SMALL:
                os.lseek(fd, 0, os.SEEK_SET)
                return open(fd, "rb")
            data += os.read(fd, size)
            if len(data) < size:
                raise OSError(errno.EIO, "the file could not be read whole", os.fsdecode(path))
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return io.BytesIO(data)
