"""What lies below the root of the mail: maildirs, their folders, their messages, as files.

For programs beside the service (backup, restore, export, fsck), which want the files themselves
where :mod:`mailsvc.store.listing` numbers what POP3 shows.  The service, and programs that read
mail, go on meanwhile: what is there all the time is seen, what comes or goes may be.

Symbolic links are not followed.  Everything here blocks.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from mailsvc.store import filenames

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK

#: How often a file that other programs rename is looked for.
_PATIENCE = 100


class Home(NamedTuple):
    """A maildir: whose, and its path."""

    domain: bytes
    local_part: bytes
    path: bytes


def homes(root: bytes) -> list[Home]:
    """Every maildir below *root*, sorted."""
    return [Home(domain, local_part, b"/".join((root, domain, local_part)))
            for domain in _directories(root) if not domain.startswith(b".")
            for local_part in _directories(root + b"/" + domain)
            if is_maildir(b"/".join((root, domain, local_part)))]


def is_maildir(path: bytes) -> bool:
    """Whether there is a new/ or a cur/ in *path*."""
    return any(os.path.isdir(path + part) and not os.path.islink(path + part)
               for part in (b"/new", b"/cur"))


def folders(home: bytes) -> list[bytes]:
    """The names of the Maildir++ folders in *home*, ``.Sent`` say, sorted."""
    return [name for name in _directories(home)
            if name.startswith(b".") and is_maildir(home + b"/" + name)]


def _directories(path: bytes) -> list[bytes]:
    with suppress(FileNotFoundError), os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    return []


class Box:
    """The messages of the maildir or folder *path* as they were at one moment, by base name."""

    def __init__(self, path: bytes) -> None:
        self._path = path
        self._places = self._scan()

    def __iter__(self) -> Iterator[bytes]:
        """The base names, sorted."""
        return iter(sorted(self._places))

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, base: bytes) -> bool:
        return base in self._places

    def place(self, base: bytes) -> bytes:
        """Where the message was seen last: ``new/NAME`` or ``cur/NAME``, below the path."""
        return self._places[base]

    def open(self, base: bytes) -> int | None:
        """A descriptor of the message's file, however it was renamed; None when it has gone.

        :raises OSError: when it cannot be opened.
        """
        for _ in range(_PATIENCE):
            place = self._places.get(base)
            if place is None:
                return None
            try:
                fd = os.open(self._path + b"/" + place, _OPEN)
            except FileNotFoundError:
                # One look is good for all that went meanwhile.
                self._places = self._scan()
                continue
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return fd
            os.close(fd)
            return None
        raise FileNotFoundError(errno.ENOENT, "renamed again and again", self._path)

    def _scan(self) -> dict[bytes, bytes]:
        # new/ before cur/: what moves is not missed.  A rename within cur/ can hide a file from who
        # reads the directory; so it is read until it was at rest.
        found = dict(_names(self._path, b"new"))
        for _ in range(_PATIENCE):
            before = _changed(self._path + b"/cur")
            found.update(_names(self._path, b"cur"))
            if before == _changed(self._path + b"/cur"):
                break
        return found


def _names(path: bytes, part: bytes) -> Iterator[tuple[bytes, bytes]]:
    with suppress(FileNotFoundError), os.scandir(path + b"/" + part) as entries:
        for entry in entries:
            if not entry.name.startswith(b".") and entry.is_file(follow_symlinks=False):
                yield filenames.base(entry.name), part + b"/" + entry.name


def _changed(path: bytes) -> int:
    with suppress(FileNotFoundError):
        return os.stat(path).st_mtime_ns
    return 0
