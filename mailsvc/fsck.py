"""Looks for what is wrong with the files of the service, and mends what can be mended.

The service may run: what comes, goes or is renamed meanwhile is no finding.  Nothing is changed but
by :meth:`Finding.repair`, which

* loses no mail: no message is removed unless an equal one stays;
* takes a maildrop's lock where it renames a message, so that no POP3 session is upset; the
  unique-id stays, since sizes are no part of it;
* gives files to the owner of the directory that mail lies in, which only root can, and does all
  else as that owner: links that the service's user may have laid lead root nowhere.

Symbolic links are told of and not followed.  Everything here blocks.
"""

from __future__ import annotations

import contextlib
import fcntl
import filecmp
import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from mailsvc import database
from mailsvc.journal import Journal
from mailsvc.mail import Account
from mailsvc.names import DirectoryError
from mailsvc.ownership import acting_as_owner_of
from mailsvc.queue.message import Unreadable
from mailsvc.queue.spool import Spool
from mailsvc.store import contents, filenames, maildirsize
from mailsvc.store.contents import Home
from mailsvc.store.text import CanonicalText
from mailsvc.store.tree import sync_directory

_PARTS = (b"tmp", b"new", b"cur")
_BLOCK = 256 * 1024

#: What becomes of messages that have one unique-id (:mod:`mailsvc.store.namesakes`).
_RENAMED = "all but the eldest are renamed when the mailbox is opened next"


class NotRepaired(Exception):
    """It could not be done; the text says why."""


@dataclass(slots=True)
class Finding:
    """Something that is not as it should be.

    :ivar place: the path.
    :ivar text: what is wrong, and what can be done about it where that is not :attr:`repair`.
    :ivar harmless: whether it does no harm.
    :ivar mend: does what can be done; None where nobody but the operator can.
    """

    place: str
    text: str
    harmless: bool = False
    mend: Callable[[], None] | None = None
    repaired: bool = False

    def repair(self) -> None:
        """Do what can be done, if that is anything.

        :raises NotRepaired: it failed.
        """
        if self.mend is not None:
            try:
                self.mend()
            except FileNotFoundError:
                pass  # it went by itself
            except OSError as error:
                raise NotRepaired(error.strerror or str(error)) from error
            self.repaired = True


@dataclass(frozen=True, slots=True)
class Examined:
    """What is to be looked at.

    :ivar mail: the root of the maildirs; None when mail is kept in another way.
    :ivar accounts: those there are; None when their file cannot be read.
    :ivar sweep_hours: after which a file in tmp/ is taken for abandoned.
    :ivar read: whether to read every message.
    """

    data: Path
    database: Path
    mail: Path | None
    accounts: Collection[Account] | None
    sweep_hours: float = 36
    read: bool = False


def examine(what: Examined, progress: Callable[[int, int], None] = lambda done, of: None
            ) -> Iterator[Finding]:
    """Each finding as it is made.

    :param progress: is told how many of how many maildirs are done.
    """
    yield from _databases(what)
    yield from _queue(what.data / "queue", what.sweep_hours)
    if what.mail is None or not what.mail.is_dir():
        return
    root = os.fsencode(what.mail)
    if Journal(root + b"/.journal").awaits_recovery():
        yield Finding(os.fsdecode(root) + "/.journal", "the machine was restarted, and the service "
                      "has not been started since; start it, and look again")
    homes = contents.homes(root)
    accounts = None if what.accounts is None else {
        (os.fsencode(account.domain), os.fsencode(account.local_part)): account
        for account in what.accounts}
    for number, home in enumerate(homes, 1):
        account = (accounts or {}).get((home.domain, home.local_part))
        yield from _Maildir(home, account, what).findings()
        progress(number, len(homes))
    if accounts is not None:
        yield from _unmatched(homes, accounts)


# ---- files that hold tables, and the queue -------------------------------------------------------


def _databases(what: Examined) -> Iterator[Finding]:
    for path in dict.fromkeys((what.database, what.data / "state.sqlite")):
        try:
            problem = database.damage(path) if path.exists() else ""
        except DirectoryError as refused:
            yield Finding(str(path), f"cannot be looked at: {refused}")
            continue
        if problem:
            yield Finding(str(path), f"damaged: {problem}; stop the service, and put the copy of a "
                          "backup in its place")


def _queue(root: Path, sweep_hours: float) -> Iterator[Finding]:
    if not (root / "message").is_dir():
        return
    spool = Spool(root)
    for id in sorted(spool.ids()):
        try:
            spool.load(id)
        except FileNotFoundError:
            continue
        except (Unreadable, OSError) as error:
            yield Finding(str(root / "message" / id), f"cannot be read: {error}; --repair moves it "
                          "to queue/unreadable", mend=_as_owner(root, _setting_aside(spool, id)))
    with contextlib.suppress(FileNotFoundError):
        aside = len(list((root / "unreadable").iterdir()))
        if aside:
            yield Finding(str(root / "unreadable"), f"{aside} files that cannot be read were moved "
                          "here", harmless=True)
    before = time.time() - 3600 * sweep_hours
    with contextlib.suppress(FileNotFoundError), os.scandir(root / "incoming") as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if entry.stat(follow_symlinks=False).st_ctime < before:
                    yield Finding(entry.path, "a delivery that was given up", harmless=True,
                                  mend=_as_owner(root, _removal(os.fsencode(entry.path))))


def _setting_aside(spool: Spool, id: str) -> Callable[[], None]:
    def mend() -> None:
        if not spool.claims.take(id):
            raise NotRepaired("the service is working on it")
        try:
            spool.set_aside(id)
        finally:
            spool.claims.give_back(id)

    return mend


def _unmatched(homes: list[Home], accounts: dict[tuple[bytes, bytes], Account]
               ) -> Iterator[Finding]:
    there = {(home.domain, home.local_part) for home in homes}
    for home in homes:
        if (home.domain, home.local_part) not in accounts:
            yield Finding(os.fsdecode(home.path), "mail of an account that there is not; add the "
                          "account to export it, or move it away", harmless=True)
    for key, account in accounts.items():
        if key not in there:
            yield Finding(account.name, "no maildir yet; it is made with the first message",
                          harmless=True)


# ---- maildirs ------------------------------------------------------------------------------------


class _Maildir:
    def __init__(self, home: Home, account: Account | None, what: Examined) -> None:
        assert what.mail is not None
        self._home = home.path
        self._what = what
        self._root = what.mail
        status = what.mail.stat()
        self._owner = status.st_uid, status.st_gid
        self._account = account

    def findings(self) -> Iterator[Finding]:
        for folder in (b"", *contents.folders(self._home)):
            box = os.path.join(self._home, folder).rstrip(b"/")
            yield from self._rights(box, 0o700)
            for part in _PARTS:
                path = box + b"/" + part
                if os.path.lexists(path):
                    yield from self._rights(path, 0o700)
                else:
                    yield Finding(os.fsdecode(path), "is missing; --repair makes it",
                                  mend=self._as_owner(self._making(path)))
            yield from self._abandoned(box)
            yield from self._messages(box)
        yield from self._unique_ids()
        yield from self._quota()

    def _rights(self, path: bytes, least: int) -> Iterator[Finding]:
        """Whether the service may use *path*, and no stranger enter it.

        Files may have any mode beyond that: strangers do not get to them.
        """
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid != self._owner[0]:
            yield Finding(os.fsdecode(path), f"belongs to user {status.st_uid}, not "
                          f"{self._owner[0]} as {self._what.mail} does; --repair as root gives it "
                          "to them", mend=lambda: self._give(path))
        if mode & least != least or (stat.S_ISDIR(status.st_mode) and mode & 0o007):
            yield Finding(os.fsdecode(path), f"has mode {mode:04o}; --repair makes it "
                          f"{mode & 0o770 | least:04o}",
                          mend=self._as_owner(
                              lambda: os.chmod(path, mode & 0o770 | least)))

    def _abandoned(self, box: bytes) -> Iterator[Finding]:
        before = time.time() - 3600 * self._what.sweep_hours
        with contextlib.suppress(FileNotFoundError), os.scandir(box + b"/tmp") as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if max(status.st_mtime, status.st_atime) < before:
                        yield Finding(os.fsdecode(entry.path), "a delivery that was given up; the "
                                      "service sweeps it too", harmless=True,
                                      mend=self._as_owner(_removal(entry.path)))

    def _messages(self, box: bytes) -> Iterator[Finding]:
        places: dict[bytes, bytes] = {}
        for part in (b"new", b"cur"):
            with contextlib.suppress(FileNotFoundError), os.scandir(box + b"/" + part) as entries:
                for entry in entries:
                    if entry.name.startswith(b"."):
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        if not entry.is_file(follow_symlinks=False):
                            yield Finding(os.fsdecode(entry.path), "is no file, and is no message",
                                          harmless=True)
                            continue
                        yield from self._rights(entry.path, 0o600)
                        yield from self._sizes(entry.path)
                        base = filenames.base(entry.name)
                        if base in places:
                            yield from self._twice(places[base], entry.path)
                        places[base] = entry.path

    def _sizes(self, path: bytes) -> Iterator[Finding]:
        name = os.path.basename(path)
        said, sent = filenames.stored_octets(name), filenames.sent_octets(name)
        size = os.lstat(path).st_size
        problem = ""
        if said is not None and said != size:
            problem = f"has {size} octets, and its name says {said}"
        elif self._what.read:
            try:
                counted = _count(path)
            except FileNotFoundError:
                return
            except OSError as error:
                yield Finding(os.fsdecode(path), f"cannot be read: {error.strerror}; look to the "
                              "disk, and restore it from a backup")
                return
            if sent is not None and sent != counted:
                problem = f"is sent as {counted} octets, and its name says {sent}"
        if problem:
            yield Finding(os.fsdecode(path), f"{problem}; --repair takes the sizes out of the "
                          "name.  If a backup has it whole, remove it here, and then: mailsvc "
                          "restore", mend=self._as_owner(self._without_sizes(path)))

    def _twice(self, one: bytes, other: bytes) -> Iterator[Finding]:
        """Two files with one base name: a rename of another program that came to the disk by half,
        or somebody's copy; or two messages."""
        try:
            same = os.path.samefile(one, other) or filecmp.cmp(one, other, shallow=False)
        except FileNotFoundError:
            return  # a message on its way from new/ to cur/
        except OSError as error:
            yield Finding(os.fsdecode(one), f"cannot be compared with {os.fsdecode(other)}: "
                          f"{error.strerror}")
            return
        text = f"is there as {os.fsdecode(other)} too"
        if same:
            yield Finding(os.fsdecode(one), f"{text}; --repair removes this one",
                          mend=self._as_owner(lambda: self._remove_twin(one, other)))
        elif os.path.dirname(os.path.dirname(one)) == self._home:
            yield Finding(os.fsdecode(one), f"has the name of {os.fsdecode(other)}, and is another "
                          f"message; {_RENAMED}", harmless=True)
        else:
            yield Finding(os.fsdecode(one), f"has the name of {os.fsdecode(other)}, and is another "
                          "message; rename one of them")

    def _unique_ids(self) -> Iterator[Finding]:
        names = [filenames.base(name) for part in (b"/new", b"/cur")
                 for name in _names(self._home + part)]
        ids = Counter(map(filenames.unique_id, set(names)))
        for id, number in sorted(ids.items()):
            if number > 1:
                yield Finding(os.fsdecode(self._home), f"{number} messages have the unique-id "
                              f"{os.fsdecode(id)}; {_RENAMED}", harmless=True)

    def _quota(self) -> Iterator[Finding]:
        account = self._account
        path = self._home + b"/maildirsize"
        if account is None or not os.path.lexists(path):
            return
        problem = maildirsize.problem(
            self._home, maildirsize.Amount(account.quota_octets, account.quota_messages))
        if problem:
            yield Finding(os.fsdecode(path), f"{problem}; --repair removes it, and it is made anew",
                          harmless=True, mend=self._as_owner(_removal(path)))

    # ---- repairs ----

    def _as_owner(self, mend: Callable[[], None]) -> Callable[[], None]:
        return _as_owner(self._root, mend)

    def _give(self, path: bytes) -> None:
        """Give *path* to the owner of the mail; no part of the way to it may be a link."""
        flags = os.O_PATH | os.O_NOFOLLOW
        root = os.fsencode(self._root)
        fd = os.open(root, flags | os.O_DIRECTORY)
        try:
            *above, name = os.path.relpath(path, root).split(b"/")
            for part in above:
                outer = fd
                fd = os.open(part, flags | os.O_DIRECTORY, dir_fd=outer)
                os.close(outer)
            os.chown(name, *self._owner, dir_fd=fd, follow_symlinks=False)
        finally:
            os.close(fd)

    def _making(self, path: bytes) -> Callable[[], None]:
        def mend() -> None:
            os.mkdir(path, 0o700)
            sync_directory(os.path.dirname(path))

        return mend

    def _without_sizes(self, path: bytes) -> Callable[[], None]:
        def mend() -> None:
            with _maildrop(self._home):
                directory, name = os.path.split(path)
                info = name[len(filenames.base(name)):]
                # link(2), as rename(2) would replace what is there.
                os.link(path, directory + b"/" + filenames.without_sizes(name) + info)
                os.unlink(path)
                sync_directory(directory)
                self._forget_sums()

        return mend

    def _remove_twin(self, one: bytes, other: bytes) -> None:
        with _maildrop(self._home):
            if filecmp.cmp(one, other, shallow=False):
                os.unlink(one)
                sync_directory(os.path.dirname(one))
                self._forget_sums()

    def _forget_sums(self) -> None:
        # Made anew when it is needed (Maildir++).
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._home + b"/maildirsize")


@contextlib.contextmanager
def _maildrop(home: bytes) -> Iterator[None]:
    """The lock of the maildrop, as a POP3 session takes it."""
    fd = os.open(home + b"/mailsvc.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise NotRepaired("a POP3 session has the mailbox; try again later") from None
    finally:
        os.close(fd)


def _as_owner(folder: Path, mend: Callable[[], None]) -> Callable[[], None]:
    def act() -> None:
        with acting_as_owner_of(folder):
            mend()

    return act


def _removal(path: bytes) -> Callable[[], None]:
    return lambda: os.unlink(path)


def _names(directory: bytes) -> Iterator[bytes]:
    with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
        for entry in entries:
            if not entry.name.startswith(b".") and entry.is_file(follow_symlinks=False):
                yield entry.name


def _count(path: bytes) -> int:
    """The octets that RETR sends."""
    text = CanonicalText()
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        while block := file.read(_BLOCK):
            text.feed(block)
    text.end()
    return text.octets
