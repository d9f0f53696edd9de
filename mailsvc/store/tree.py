"""The directories: ROOT/<domain>/<local-part>/{tmp,new,cur}, made on demand with mode 0700.

Names come from the directory of accounts, which has checked them; they are checked here once more,
because a wrong one would lead out of the root.  A maildir, once :meth:`MailTree.within` has run
something in it, exists durably: its entries in the directories above it have been synced by this
process, whoever made them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from twisted.logger import Logger

from mailsvc.errors import PermanentFailure
from mailsvc.mail import Account

Result = TypeVar("Result")

MODE = 0o700

#: How many maildirs are remembered as durable; to forget one only costs syncing it again.
_REMEMBERED = 10_000

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


def sync_directory(path: bytes) -> None:
    """Make the entries of the directory *path* durable."""
    fd = os.open(path, _OPEN_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def problem_with(root: Path) -> str | None:
    """What keeps a store from working in *root*, and the remedy; None when it will do."""
    if not root.exists():
        return (f"{root} does not exist; make it (mkdir -p {root}) and give it to the user that "
                f"runs mailsvc (chown USER {root})")
    if not root.is_dir():
        return f"{root} is not a directory; name a directory for the mail to lie in"
    if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        return (f"user {os.geteuid()} may not write in {root}, which belongs to user "
                f"{root.stat().st_uid}; run as the user that owns it, or chown it")
    return None


def _component(name: str) -> bytes:
    try:
        component = name.encode()
    except UnicodeEncodeError:
        component = b""
    if component in (b"", b".", b"..") or len(component) > 255 or not {0, 47}.isdisjoint(component):
        raise PermanentFailure("That name cannot be that of a mailbox.")
    return component


class MailTree:
    """Every maildir under *root*.  Its methods may be called from any thread.

    :param sync: whether maildirs that are made are made durable here.
    """

    log = Logger()

    def __init__(self, root: Path, *, sync: bool = True) -> None:
        self._root = os.fsencode(root)
        self._sync = sync
        self._durable: set[bytes] = set()

    def home(self, account: Account) -> bytes:
        """The path of *account*'s maildir; no I/O.

        :raises PermanentFailure: when its name is not fit for a directory.
        """
        return b"/".join((self._root, _component(account.domain), _component(account.local_part)))

    def within(self, home: bytes, act: Callable[..., Result], *args: Any) -> Result:
        """Call *act* when the maildir *home* is there; once more if it turns out to have gone."""
        if home in self._durable:
            try:
                return act(*args)
            except FileNotFoundError:
                self._durable.discard(home)
        self._make(home)
        return act(*args)

    def _make(self, home: bytes) -> None:
        domain = os.path.dirname(home)
        for path in (domain, home, home + b"/tmp", home + b"/new", home + b"/cur"):
            with suppress(FileExistsError):
                os.mkdir(path, MODE)
        # Also what was there: whoever made it may not have got as far as this.
        if self._sync:
            for path in (home, domain, self._root):
                sync_directory(path)
        if len(self._durable) >= _REMEMBERED:
            self._durable.clear()
        self._durable.add(home)

    def sweep(self, before: float, first_kept: str = "") -> int:
        """Remove files in every tmp/ that nobody has touched since *before* (seconds since 1970).

        Of deleted mail that is kept (:mod:`mailsvc.store.deleted`), that of the days before
        *first_kept* goes too.

        Follows no symbolic link.  What cannot be read or removed is logged and left.

        :returns: how many were removed.
        """
        removed = 0
        with self._noting(self._root), _opened(self._root) as root:
            for domain in self._directories(root):
                for home in self._directories(domain):
                    removed += self._sweep(home, before)
                    removed += self._sweep_deleted(home, first_kept)
        return removed

    def _sweep(self, home: int, before: float) -> int:
        removed = 0
        with self._noting("tmp", home), _opened("tmp", home) as tmp:
            for entry in _entries(tmp):
                with self._noting(entry.name, tmp):
                    status = entry.stat(follow_symlinks=False)
                    # The maildir rule goes by the time of access, which many file systems do not
                    # keep well; hence both.
                    if (stat.S_ISREG(status.st_mode)
                            and max(status.st_atime, status.st_mtime) < before):
                        os.unlink(entry.name, dir_fd=tmp)
                        removed += 1
        return removed

    def _sweep_deleted(self, home: int, first_kept: str) -> int:
        removed = 0
        with self._noting("deleted", home), _opened("deleted", home) as above:
            for day in sorted(entry.name for entry in _entries(above)):
                if day.isdigit() and day < first_kept:
                    with self._noting(day, above):
                        with _opened(day, above) as directory:
                            for entry in _entries(directory):
                                os.unlink(entry.name, dir_fd=directory)
                                removed += 1
                        os.rmdir(day, dir_fd=above)
        return removed

    def _directories(self, fd: int) -> Iterator[int]:
        for name in [e.name for e in _entries(fd) if e.is_dir(follow_symlinks=False)]:
            with self._noting(name, fd), _opened(name, fd) as directory:
                yield directory

    @contextmanager
    def _noting(self, name: bytes | str, within: int | None = None) -> Iterator[None]:
        """Log what cannot be done to *name*, unless that is because it has gone."""
        try:
            yield
        except FileNotFoundError:
            pass
        except OSError as error:
            place = "" if within is None else os.readlink(f"/proc/self/fd/{within}") + "/"
            self.log.warn("cannot sweep {path}: {error}",
                          path=place + os.fsdecode(name), error=os.strerror(error.errno or 0))


@contextmanager
def _opened(path: bytes | str, within: int | None = None) -> Iterator[int]:
    fd = os.open(path, _OPEN_DIRECTORY | (0 if within is None else os.O_NOFOLLOW), dir_fd=within)
    try:
        yield fd
    finally:
        os.close(fd)


def _entries(fd: int) -> list[os.DirEntry[str]]:
    with os.scandir(fd) as entries:
        return list(entries)
