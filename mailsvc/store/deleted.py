"""Deleted mail, kept for a time: in the maildir, ``deleted/YYYYMMDD/NAME``, by the day (UTC).

What POP3 deletes there goes in these steps, where ``maildir.keep_deleted_days`` is set:

1. link ``new/NAME`` to ``deleted/DAY/NAME``, and sync the file; of each message;
2. sync ``deleted/DAY`` and, the first time, the directories above it;
3. unlink ``new/NAME``, and make that durable as ever: the messages are gone.

So a message is kept for good before it goes.  A journal's record of the removal is about ``new``
and ``cur`` alone, and a recovery needs to know nothing of this.  What stops between 1 and 3 leaves
a message both there and kept: it was not deleted, and is not counted as such.

The directory's name does not begin with a dot, so no program takes it for a folder, and nothing in
it counts for the quota.  It is swept with tmp/.  What other programs delete is not kept.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from mailsvc.store.committer import NO_LINK
from mailsvc.store.tree import sync_directory

DIRECTORY = b"deleted"
_DAY = re.compile(r"[0-9]{8}")
_SECONDS = 86_400

#: How many directories are remembered as durable; to forget one only costs syncing it again.
_REMEMBERED = 10_000


class Kept(NamedTuple):
    """A message that was deleted: on which day, its path, and the name it had."""

    day: str
    path: bytes
    name: bytes


def day_of(seconds: float) -> str:
    """The day, in UTC, as the directories are named."""
    return time.strftime("%Y%m%d", time.gmtime(seconds))


def first_kept(days: int, now: float) -> str:
    """The oldest day that is kept, when messages are kept for so many full days."""
    return day_of(now - days * _SECONDS)


def is_day(name: str) -> bool:
    """Whether a directory of that name is one of ours."""
    return _DAY.fullmatch(name) is not None


class Shelf:
    """Makes the directories; knows which of them this process has made durable.

    :param sync: whether they, and what goes into them, are made durable.
    """

    def __init__(self, *, sync: bool = True) -> None:
        self.sync = sync
        self._durable: set[bytes] = set()

    def prepare(self, home: bytes, now: float) -> bytes:
        """Make today's directory in the maildir *home*; return its path.

        :raises OSError: it cannot be made.
        """
        above = home + b"/" + DIRECTORY
        path = above + b"/" + day_of(now).encode()
        for directory in (above, path):
            with suppress(FileExistsError):
                os.mkdir(directory, 0o700)
        # Also what was there: whoever made it may not have got as far as this.
        if self.sync and path not in self._durable:
            sync_directory(above)
            sync_directory(home)
            if len(self._durable) >= _REMEMBERED:
                self._durable.clear()
            self._durable.add(path)
        return path


def keep(source: bytes, target: bytes) -> None:
    """Give the file *source* the further name *target*, or copy it where that cannot be.

    :raises FileNotFoundError: there is no *source*.
    :raises OSError: it cannot be kept.
    """
    try:
        # There already: of a removal that did not come to its end.
        with suppress(FileExistsError):
            os.link(source, target)
    except OSError as error:
        if error.errno not in NO_LINK:
            raise
        # Never a name for half a file.
        draft = os.path.dirname(target) + b"/.draft"
        with open(source, "rb") as there, open(draft, "wb", opener=_private) as here:
            shutil.copyfileobj(there, here)
            here.flush()
            os.fsync(here.fileno())
        os.rename(draft, target)


def _private(path: Any, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def kept(home: bytes) -> Iterator[Kept]:
    """What is kept in the maildir *home*, the newest day first."""
    above = home + b"/" + DIRECTORY
    with suppress(FileNotFoundError, NotADirectoryError):
        for day in sorted(filter(is_day, map(os.fsdecode, os.listdir(above))), reverse=True):
            path = above + b"/" + day.encode()
            with suppress(FileNotFoundError), os.scandir(path) as entries:
                for name in sorted(entry.name for entry in entries
                                   if not entry.name.startswith(b".")
                                   and entry.is_file(follow_symlinks=False)):
                    yield Kept(day, path + b"/" + name, name)
