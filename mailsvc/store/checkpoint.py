"""Making durable at leisure what was written to maildirs without a flush.

syncfs(2) does it at once for a whole file system, some seventy times as fast as a sync of each file
(3,000 files of 4 KiB on ext4: 35 ms for 2.5 s).  It is relied on where it is known to reach the
disk and to tell of errors: from Linux 5.8 on, on the file systems named here.  Elsewhere, as on
FUSE where the kernel does not pass it on, every file and directory is synced.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Collection, Iterator
from contextlib import suppress

from mailsvc.store import filenames
from mailsvc.store.tree import sync_directory

#: ext2 to ext4, XFS, btrfs, F2FS, tmpfs: ``f_type`` of statfs(2).
_TRUSTED = {0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0x01021994}
#: As many files are synced one by one rather than with all that others have written.
_FEW = 50
_LIBC = ctypes.CDLL(None, use_errno=True)
_RELEASE = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])


def checkpoint(homes: Collection[bytes], paths: Collection[bytes]) -> None:
    """Make the maildirs *homes* durable, and the messages that were put at *paths* in new/.

    What has been removed since, or moved to cur/, is no error.

    :raises OSError: when that failed; what was written since the last success may be lost then.
    """
    synced: dict[int, bool] = {}
    slow = set()
    for home in homes:
        with suppress(FileNotFoundError):
            device = os.stat(home + b"/new").st_dev
            if device not in synced:
                synced[device] = sync_file_system(home + b"/new")
            if not synced[device]:
                slow.add(home)
    if slow:
        _sync_each(slow, [path for path in paths if _home(path) in slow])


def sync_tree(top: bytes) -> None:
    """Make everything below the directory *top* durable, in whatever way.

    :raises OSError: when that failed.
    """
    if sync_file_system(top):
        return
    for directory, _, names in os.walk(top):
        for name in names:
            _sync(directory + b"/" + name)
        sync_directory(directory)


def checkpoint_directory(directory: bytes, paths: Collection[bytes]) -> None:
    """Make durable what is in *directory* and what is not any more, and its files *paths*.

    Of these most may be gone by now, which is no error.

    :raises OSError: as :func:`checkpoint`.
    """
    there = [path for path in paths if os.path.lexists(path)]
    if len(there) > _FEW and sync_file_system(directory):
        return
    for path in there:
        with suppress(FileNotFoundError):
            _sync(path)
    sync_directory(directory)


def _sync_each(homes: Collection[bytes], paths: Collection[bytes]) -> None:
    moved: dict[bytes, set[bytes]] = {}
    for path in paths:
        try:
            _sync(path)
        except FileNotFoundError:
            moved.setdefault(_home(path), set()).add(os.path.basename(path))
    for home, names in moved.items():
        for name in _names(home + b"/cur"):
            if filenames.base(name) in names:
                with suppress(FileNotFoundError):
                    _sync(home + b"/cur/" + name)
    directories = set()
    for home in homes:
        domain = os.path.dirname(home)
        directories |= {home + b"/new", home + b"/cur", home, domain, os.path.dirname(domain)}
    for directory in directories:
        with suppress(FileNotFoundError):
            sync_directory(directory)


def _home(path: bytes) -> bytes:
    return os.path.dirname(os.path.dirname(path))


def _names(directory: bytes) -> Iterator[bytes]:
    with suppress(FileNotFoundError):
        yield from os.listdir(directory)


def _sync(path: bytes) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def sync_file_system(path: bytes) -> bool:
    """syncfs(2) on the file system of *path*; whether that will do there.

    :raises OSError: when it failed.
    """
    # f_type is the first field, a long everywhere but on s390x, and there it is the upper half.
    buffer = ctypes.create_string_buffer(256)
    if _RELEASE < (5, 8) or _LIBC.statfs(path, buffer) != 0:
        return False
    if ctypes.c_uint32.from_buffer(buffer).value not in _TRUSTED:
        return False
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _LIBC.syncfs(fd) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), path)
    finally:
        os.close(fd)
    return True
