"""What next hosts have taken of messages whose state is not on disk yet: nobody gets those twice.

Between the 250 of a next host and the end of a message on disk other files are written, reports
sent, slower hosts waited for.  Should the process be killed then, at least that much has been
noted, in the moment in which it was heard: a line of JSON, by one system call, in a file of the
process's own::

    queue/receipts/PID-RANDOM   {"id": ID, "taken": [[recipient, status, reply, host, time,
                                reported], …]}

*Recipient* is its place in the envelope; the rest is as in ``state/ID``.  The kernel keeps the line
whatever becomes of the process.  Nothing is synced: a power loss may take it, and the message is
sent again.  Once the state is on disk a line is of no use; the file is emptied now and then.

Who takes over from a process that is gone makes use of what it left (:meth:`Receipts.left`,
:func:`mailsvc.queue.recovery.settle`) before anything is begun with.  A line that was of no use
any more does no harm then: what it says stays true.

Each file is locked (flock(2)) by its process, so that others see when that is gone.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from twisted.logger import Logger

from mailsvc.queue.message import RELAYED, WAITING, QueuedMessage, QueuedRecipient

_log = Logger("mailsvc.queue")

#: From which length on a file is emptied when nothing of it is of use, in octets; and from which it
#: is written anew with what is.
_EMPTIED, _RENEWED = 1 << 16, 1 << 22

#: How often it is looked whether a process that seems to be gone is, in seconds.
_PAUSE = 0.02


class Receipts:
    """Those of this process, and what others left, in the queue at *root*.

    For the reactor's thread, except for what says that it is for any.

    :ivar directory: where the files are; it has to be there.
    """

    def __init__(self, root: bytes) -> None:
        self.directory = root + b"/receipts"
        self._incoming = root + b"/incoming"
        self._path = b""
        self._fd: int | None = None
        self._octets = 0
        #: The lines that are of use, by message.
        self._lines: dict[str, bytes] = {}

    def note(self, message: QueuedMessage, taken: Sequence[QueuedRecipient]) -> None:
        """Next hosts have taken *message* for *taken*, of its recipients.

        Where that cannot be written, as on a full disk, it is logged.
        """
        place = {id(each): number for number, each in enumerate(message.recipients)}
        line = json.dumps({"id": message.id, "taken": [
            [place[id(each)], each.status, each.reply, each.host, each.tried, each.reported]
            for each in taken]}, separators=(",", ":")).encode("ascii") + b"\n"
        self._lines[message.id] = self._lines.get(message.id, b"") + line
        try:
            if self._fd is None:
                self._renew()
            else:
                _append(self._fd, line, self._octets)
                self._octets += len(line)
        except OSError as problem:
            _log.error("{id} was taken by the next host, and would be sent again were the service "
                       "killed now: cannot write to {directory}: {problem}", id=message.id,
                       directory=os.fsdecode(self.directory), problem=problem)

    def settled(self, id: str) -> None:
        """The state of the message *id* is on disk, or the message is gone.  May be called again.
        """
        if self._lines.pop(id, None) is None or self._octets < _EMPTIED:
            return
        with suppress(OSError):
            if not self._lines and self._fd is not None:
                os.ftruncate(self._fd, 0)
                self._octets = 0
            elif self._octets >= _RENEWED:
                self._renew()

    def recall(self, message: QueuedMessage) -> None:
        """Have *message* say what this process noted of it, and could not write into its state.
        For any thread.
        """
        recall(message, _said(self._lines.get(message.id, b"")).get(message.id, ()))

    def close(self) -> None:
        """Nothing is noted any more.  The file stays if it is of use."""
        fd, self._fd = self._fd, None
        if fd is not None:
            if not self._lines:
                with suppress(OSError):
                    os.unlink(self._path)
            os.close(fd)

    @contextmanager
    def left(self, patience: float = 0) -> Iterator[dict[str, list[Any]]]:
        """What processes have left that are gone, for :func:`recall`, by message.  At the end of
        the ``with`` block their files are removed.  For any thread.

        :param patience: for how long to wait for those to be gone that are there yet, in seconds.
        """
        deadline = time.monotonic() + patience
        found: dict[str, list[Any]] = {}
        gone: list[tuple[bytes, int]] = []
        try:
            with suppress(FileNotFoundError):
                for name in sorted(os.listdir(self.directory)):
                    path = self.directory + b"/" + name
                    fd = _if_gone(path, deadline) if path != self._path else None
                    if fd is not None:
                        gone.append((path, fd))
                        with open(fd, "rb", closefd=False) as file:
                            for id, taken in _said(file.read()).items():
                                found.setdefault(id, []).extend(taken)
            yield found
            for path, _ in gone:
                with suppress(FileNotFoundError):
                    os.unlink(path)
        finally:
            for _, fd in gone:
                os.close(fd)

    def _renew(self) -> None:
        """Begin a new file, with what is of use."""
        name = f"{os.getpid()}-{secrets.token_hex(4)}".encode("ascii")
        # Nobody sees it before it is locked, and whole.
        hidden, path = self._incoming + b"/receipts-" + name, self.directory + b"/" + name
        fd = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW,
                     0o600)
        lines = b"".join(self._lines.values())
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            _append(fd, lines, 0)
            os.rename(hidden, path)
        except BaseException:
            os.close(fd)
            with suppress(OSError):
                os.unlink(hidden)
            raise
        former, self._fd = self._fd, fd
        before, self._path = self._path, path
        self._octets = len(lines)
        if former is not None:
            with suppress(OSError):
                os.unlink(before)
            os.close(former)


def recall(message: QueuedMessage, taken: Sequence[Any]) -> bool:
    """Have *message* say that hosts have taken it; whether it did not know."""
    new = False
    of_place = dict(enumerate(message.recipients))
    for place, status, reply, host, tried, reported in taken:
        each = of_place.get(place)
        if each is not None and each.state == WAITING:
            each.state, each.status, each.reply, each.host = RELAYED, status, reply, host
            each.tried, each.reported, each.kept = tried, reported, False
            new = True
    return new


def _append(fd: int, data: bytes, octets: int) -> None:
    """Append *data* to a file of so many *octets*, or nothing."""
    if os.write(fd, data) < len(data):
        # What follows a part of a line could not be read either.
        os.ftruncate(fd, octets)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _if_gone(path: bytes, deadline: float) -> int | None:
    """The file *path*, open and locked; None if its process is there, also at *deadline*."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(fd)
                return None
            time.sleep(_PAUSE)


def _said(lines: bytes) -> dict[str, list[Any]]:
    """What whole *lines* say of each message."""
    found: dict[str, list[Any]] = {}
    for line in lines.splitlines():
        # A full disk, or a power loss, leaves any octets.
        with suppress(ValueError, TypeError, KeyError):
            said = json.loads(line)
            found.setdefault(said["id"], []).extend(
                (int(place), str(status), str(reply), str(host), float(tried), bool(reported))
                for place, status, reply, host, tried, reported in said["taken"])
    return found
