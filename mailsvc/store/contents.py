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
    """The messages of the maildir or folder *path* as they were at one moment.

    Each has a key, which stays as long as the box: its base name; where several have one, that
    with ":" and the number of its inode.
    """

    def __init__(self, path: bytes) -> None:
        self._path = path
        #: The base names that several messages have.
        self._shared: set[bytes] = set()
        self._places = self._scan(first=True)

    def __iter__(self) -> Iterator[bytes]:
        """The keys, sorted."""
        return iter(sorted(self._places))

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, base: bytes) -> bool:
        """Whether a message has that base name."""
        return base in self._places or base in self._shared

    def place(self, key: bytes) -> bytes:
        """Where the message was seen last: ``new/NAME`` or ``cur/NAME``, below the path."""
        return self._places[key]

    def open(self, key: bytes) -> int | None:
        """A descriptor of the message's file, however it was renamed; None when it has gone.

        :raises OSError: when it cannot be opened.
        """
        for _ in range(_PATIENCE):
            place = self._places.get(key)
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

    def _scan(self, first: bool = False) -> dict[bytes, bytes]:
        # new/ before cur/: what moves is not missed.  A rename within cur/ can hide a file from who
        # reads the directory; so it is read until it was at rest.
        seen: dict[bytes, list[bytes]] = {}
        _see(self._path, b"new", seen)
        for _ in range(_PATIENCE):
            before = _changed(self._path + b"/cur")
            _see(self._path, b"cur", seen)
            if before == _changed(self._path + b"/cur"):
                break
        found: dict[bytes, bytes] = {}
        for base, places in seen.items():
            if base in self._shared or (first and len(places) > 1):
                inodes = self._inodes(places)
                if len(inodes) > 1 or base in self._shared:
                    self._shared.add(base)
                    found.update((b"%b:%d" % (base, inode), place)
                                 for inode, place in inodes.items())
                    continue
            found[base] = places[-1]
        return found

    def _inodes(self, places: list[bytes]) -> dict[int, bytes]:
        """Of *places* those where a file is, each file once, by its inode."""
        found: dict[int, bytes] = {}
        for place in places:
            with suppress(FileNotFoundError):
                found[os.lstat(self._path + b"/" + place).st_ino] = place
        return found


def _see(path: bytes, part: bytes, seen: dict[bytes, list[bytes]]) -> None:
    """Add to *seen*, by base name, where messages are."""
    with suppress(FileNotFoundError), os.scandir(path + b"/" + part) as entries:
        for entry in entries:
            if not entry.name.startswith(b".") and entry.is_file(follow_symlinks=False):
                places = seen.setdefault(filenames.base(entry.name), [])
                place = part + b"/" + entry.name
                if place not in places:
                    places.append(place)


def _changed(path: bytes) -> int:
    with suppress(FileNotFoundError):
        return os.stat(path).st_mtime_ns
    return 0
