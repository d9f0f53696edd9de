"""Messages of a maildir that would have one unique-id: all but the eldest get names of their own.

A unique-id is made of a name (:mod:`mailsvc.store.filenames`), and two files can have names that
give the same: ``new/1.a.h`` and ``cur/1.a.h:2,S``, when a backup was copied over a maildir in use;
``1.a.h,S=5`` and ``1.a.h,S=6``; two that came with one ``,UIDL=``.  Whatever were made of the names
alone, the id of one message would depend on whether the other is still there, and it must not
(RFC 1939 §7).  So the later ones are renamed, once and for good.

What has one inode is one message: a file that another program renames while the maildir is read is
seen under two names, and a move by link(2) and unlink(2) that was cut short leaves two.

Other programs rename and remove files as they like meanwhile.  What has gone from where it was seen
is left alone; a rename replaces nothing; and one that met another file than was meant is undone.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import NamedTuple

from twisted.logger import Logger

from mailsvc.mail import new_id
from mailsvc.store import filenames
from mailsvc.store.tree import sync_directory

_log = Logger()

#: renameat2(2), where the C library has it.
_renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1

#: statx(2), which tells what os.stat() does not: the length of its struct, and of a part the bit
#: that asks for it and tells that it is there, and the place.
_statx = getattr(ctypes.CDLL(None, use_errno=True), "statx", None)
_AT_SYMLINK_NOFOLLOW = 0x100
_STATX_OCTETS = 256
_STATX_BTIME, _STATX_BTIME_AT = 0x800, 80


class File(NamedTuple):
    """A file of a message: where it was found, and its status then."""

    directory: bytes
    name: bytes
    status: os.stat_result

    @property
    def path(self) -> bytes:
        """The two together."""
        return b"/".join((self.directory, self.name))

    @property
    def inode(self) -> tuple[int, int]:
        """What tells it from every other file."""
        return self.status.st_dev, self.status.st_ino

    def found(self, path: bytes) -> bool:
        """Whether *path* is this file; raises FileNotFoundError when nothing is there."""
        status = os.lstat(path)
        return (status.st_dev, status.st_ino) == self.inode

    def remove(self) -> None:
        """Remove it for good, if it is where it was found; raises OSError."""
        with suppress(FileNotFoundError):
            if self.found(self.path):
                os.unlink(self.path)
                sync_directory(self.directory)


#: All the files of one message: they have one inode.
Message = list[File]


def messages(directories: Collection[bytes], names: Collection[bytes]) -> list[Message]:
    """The messages that have *names* in *directories*, the eldest first.

    By the time at which their inodes were made: what was copied here has a later one than what lay
    here, and no renaming changes it.  Of the same moment, the last of *names* is the eldest.

    :raises OSError: when a file cannot be looked at.
    """
    found: dict[tuple[int, int], Message] = {}
    for name in reversed(list(dict.fromkeys(names))):
        for directory in directories:
            try:
                status = os.lstat(b"/".join((directory, name)))
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode):
                file = File(directory, name, status)
                found.setdefault(file.inode, []).append(file)
    return sorted(found.values(), key=lambda message: _made(message[0]))


def _made(file: File) -> int:
    """When its inode was made, in nanoseconds since the epoch; when it was changed last, where the
    kernel, the file system or the C library does not tell, or it has gone.
    """
    if _statx is not None:
        found = ctypes.create_string_buffer(_STATX_OCTETS)
        if _statx(_AT_FDCWD, file.path, _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, found) == 0:
            mask, = struct.unpack_from("I", found)
            seconds, nanoseconds = struct.unpack_from("qI", found, _STATX_BTIME_AT)
            if mask & _STATX_BTIME:
                return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return file.status.st_ctime_ns


class Namesakes:
    """Gives names that begin with the time and end in *hostname*.

    :param sync: whether to make them durable.
    """

    def __init__(self, hostname: str, *, sync: bool = True) -> None:
        self._host = filenames.host_part(hostname)
        self._sync = sync

    def part(self, shared: Collection[Sequence[Message]]) -> bool:
        """Of messages that have one unique-id rename all but the first; return whether one was.

        Durable when this returns, so before anybody hears of the new unique-ids.  Blocks.  For who
        has the lock of the maildir: a session knows its messages by their names.  What cannot be
        renamed is logged, and stays as it is.

        :param shared: those of one maildir that have one unique-id, together.
        :raises OSError: they may have their old names again after a power loss.
        """
        changed: dict[bytes, int] = {}
        failures: list[OSError] = []
        for message in (message for those in shared for message in those[1:]):
            id = new_id()
            for file in message:
                try:
                    self._rename(file, self._name(file, id))
                except FileNotFoundError:
                    continue  # it is seen the next time where it is then
                except OSError as error:
                    failures.append(error)
                    continue
                changed[file.directory] = changed.get(file.directory, 0) + 1
        if failures:
            first = failures[0]
            _log.warn("{number} messages have the unique-ids of others, and POP3 does not show "
                      "them, for they cannot be renamed, as {path!r}: {error}",
                      number=len(failures), path=first.filename,
                      error=os.strerror(first.errno or 0))
        for directory, number in changed.items():
            _log.info("{number} messages in {directory!r} had the unique-ids of others, and have "
                      "names of their own now", number=number, directory=directory)
            if self._sync:
                sync_directory(directory)
        return bool(changed)

    def _name(self, file: File, id: str) -> bytes:
        seconds = filenames.seconds(file.name)
        if seconds is None:
            seconds = min(max(int(file.status.st_mtime), 0), filenames.LATEST)
        return filenames.renamed(file.name, seconds, id, self._host)

    def _rename(self, file: File, name: bytes) -> None:
        path = b"/".join((file.directory, name))
        rename_new(file.path, path)
        with suppress(OSError):
            if not file.found(path):
                # It was renamed or removed in that moment, and another got its name.
                rename_new(path, file.path)


def rename_new(source: bytes, target: bytes) -> None:
    """Rename *source* to *target*, where nothing is.

    In one step, where link(2) and unlink(2) are two: a program that renames *source* between them
    would leave the message under two names.

    :raises FileExistsError: there is something.
    :raises OSError: it cannot be done.
    """
    if _renameat2 is not None:
        if _renameat2(_AT_FDCWD, source, _AT_FDCWD, target, _RENAME_NOREPLACE) == 0:
            return
        error = ctypes.get_errno()
        if error not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(error, os.strerror(error), source, None, target)
    # A file system that cannot promise it.  No two processes think of the same new name.
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), source, None, target)
    os.rename(source, target)
