"""Snapshots: copies of the whole service, taken while it runs.

In a directory of snapshots there is one directory for each, named by the time in UTC at which it
was begun, and whole from the moment it has that name::

    20261127T215000Z/
      manifest            every file and its checksum (mailsvc.backup.manifest)
      mail/DOMAIN/NAME/   the maildirs: new/, cur/, .FOLDER/new/ and so on
      data/               the data directory: queue, DKIM keys, what is kept in state.sqlite
      accounts.sqlite
      etc/                the configuration and the certificates and keys that it names
    .partial-20261128T…   one that is being made, or was given up

What a snapshot holds:

* every message that was acknowledged before it was begun and not deleted before it was done, whole.
  A file in a maildir never changes: one that goes meanwhile is not in it, one that is renamed is
  found again.  What comes meanwhile may be in it;
* of the queue each message with its envelope, and then what became of it: as :mod:`mailsvc.queue
  .spool` replaces and never changes files, both are whole.  The queue is copied before the mail:
  what goes from there to a mailbox meanwhile is in the snapshot twice, never not at all;
* each SQLite file as it was at one moment.

It does not hold files in tmp/, journals (what they speak of is in the maildirs), sockets, and what
``mailsvc trace`` knows, which would fill it.

A message that the snapshot before it has already, under the same base name, of the same size and
age, is a hard link to that: it takes no room and is not read.  Each snapshot is complete by itself;
any may be removed.  Directories have mode 0700 and files 0600.

Everything is on disk when the snapshot gets its name.  Nothing of the service waits for any of it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mailsvc import __version__, database
from mailsvc.backup import manifest
from mailsvc.backup.manifest import Damaged, Entry
from mailsvc.journal import Journal
from mailsvc.store import contents, filenames
from mailsvc.store.checkpoint import sync_tree
from mailsvc.store.committer import write_all
from mailsvc.store.contents import Box, Home
from mailsvc.store.tree import sync_directory

_PARTIAL = ".partial-"
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_READ_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_BLOCK = 256 * 1024

#: Files of a maildir that are made anew, or mean nothing elsewhere.
_NOT_KEPT = {b"maildirsize", b"mailsvc.lock"}

#: The name of a file in the data directory that belongs to a SQLite file beside it.
_OF_SQLITE = ("-wal", "-shm", "-journal")


class Refused(Exception):
    """No snapshot can be taken; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What is to be copied.

    :ivar mail: the root of the maildirs; None when mail is kept in another way.
    :ivar configuration: name below etc/ -> file.
    """

    host: str
    data: Path
    accounts: Path
    mail: Path | None
    configuration: Mapping[str, Path] = field(default_factory=dict)


@dataclass(slots=True)
class Taken:
    """What was done.

    :ivar linked: messages that the snapshot before had already; *copied*, those it had not.
    :ivar gone: messages that went while they were to be copied.
    :ivar copied_octets: of all files that were copied.
    :ivar unreadable: messages that the disk does not give back (EIO), which are not in it.
    """

    path: Path
    seconds: float = 0.0
    files: int = 0
    octets: int = 0
    maildirs: int = 0
    linked: int = 0
    copied: int = 0
    gone: int = 0
    queued: int = 0
    copied_octets: int = 0
    unreadable: list[str] = field(default_factory=list)


def take(origin: Origin, into: Path, *,
         progress: Callable[[int, int], None] = lambda done, of: None) -> Taken:
    """Take a snapshot of *origin* in the directory *into*, which is made if need be.

    :param progress: is told how many of how many maildirs are done.
    :raises Refused: it cannot be taken.
    :raises OSError: or sqlite3.Error: it was given up, and nothing is left of it.
    """
    _check(origin, into)
    into.mkdir(mode=0o700, parents=True, exist_ok=True)
    began = time.monotonic()
    with _alone(into):
        for left in into.glob(f"{_PARTIAL}*"):
            shutil.rmtree(left)
        last = latest(into)
        name = _free_name(into)
        draft = into / f"{_PARTIAL}{name}"
        draft.mkdir(mode=0o700)
        try:
            taking = _Taking(origin, draft, last, progress)
            taking.copy()
            sync_tree(os.fsencode(draft))
            taking.manifest.end()
            sync_directory(os.fsencode(draft))
            os.rename(draft, into / name)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        sync_directory(os.fsencode(into))
    done = taking.done
    done.path, done.seconds = into / name, time.monotonic() - began
    done.files, done.octets = taking.manifest.files, taking.manifest.octets
    return done


def snapshots(place: Path) -> list[Path]:
    """The snapshots in the directory *place*, the oldest first; *place* itself if it is one."""
    if (place / manifest.NAME).is_file():
        return [] if place.name.startswith(_PARTIAL) else [place]
    return sorted(path.parent for path in place.glob(f"*/{manifest.NAME}")
                  if not path.parent.name.startswith("."))


def latest(place: Path) -> Path | None:
    """The newest of :func:`snapshots`."""
    found = snapshots(place)
    return found[-1] if found else None


def keep(place: Path, number: int) -> list[Path]:
    """Remove all snapshots in the directory *place* but the newest *number*; which ones."""
    with _alone(place):
        old = snapshots(place)[:-number]
        for path in old:
            draft = place / f"{_PARTIAL}{path.name}"
            os.rename(path, draft)  # from here on it is none
            shutil.rmtree(draft)
    return old


def verify(snapshot: Path, progress: Callable[[int, int], None] = lambda done, of: None
           ) -> list[str]:
    """What is wrong with a snapshot, a line each: every file is read and its checksum compared.

    :param progress: is told how many of how many octets are done.
    :raises Damaged: it has no whole manifest, so that nothing can be said of the rest.
    """
    about = manifest.about(snapshot)
    problems, known, octets = [], set(), 0
    for entry in manifest.entries(snapshot):
        known.add(os.fsencode(entry.path))
        try:
            with open(snapshot / entry.path, "rb", opener=_no_follow) as file:
                for block in manifest.checked(file, entry):
                    octets += len(block)
                    progress(octets, about["octets"])
        except FileNotFoundError:
            problems.append(f"{entry.path} is missing")
            continue
        except Damaged as problem:
            problems.append(str(problem))
            continue
        except OSError as error:
            problems.append(f"{entry.path} cannot be read: {error.strerror}")
            continue
        if entry.path.endswith(".sqlite"):
            problems += _sqlite_problems(snapshot, entry.path)
    for path in _files(os.fsencode(snapshot)):
        if path not in known and path != os.fsencode(manifest.NAME):
            problems.append(f"{os.fsdecode(path)} is not in the manifest")
    return problems


def _sqlite_problems(snapshot: Path, path: str) -> list[str]:
    try:
        # immutable: nothing is written beside it.
        db = sqlite3.connect(f"{(snapshot / path).absolute().as_uri()}?mode=ro&immutable=1",
                             uri=True)
        try:
            problem = database.unsoundness(db)
        finally:
            db.close()
    except sqlite3.Error as error:
        problem = str(error)
    return [f"{path} is damaged: {problem}"] if problem else []


class _Taking:
    def __init__(self, origin: Origin, draft: Path, last: Path | None,
                 progress: Callable[[int, int], None]) -> None:
        self.done = Taken(draft)
        self.manifest = manifest.Writer(draft / manifest.NAME, {
            "made": time.time(), "host": origin.host, "version": __version__})
        self._origin = origin
        self._draft = os.fsencode(draft)
        self._previous = _Previous(last)
        self._progress = progress
        self._made: set[bytes] = set()

    def copy(self) -> None:
        try:
            self._data()
            if self._origin.mail is not None:
                every = contents.homes(os.fsencode(self._origin.mail))
                for number, home in enumerate(every, 1):
                    self._maildir(home)
                    self._progress(number, len(every))
            # Last: all mail has its account, or it was removed meanwhile.
            self._sqlite(self._origin.accounts, b"accounts.sqlite")
            for name, path in self._origin.configuration.items():
                # Certificates are links as a rule.
                self._file(os.fsencode(path.resolve()), b"etc/" + os.fsencode(name))
        except BaseException:
            self.manifest.close()
            raise

    # ---- mail ----

    def _maildir(self, home: Home) -> None:
        self.done.maildirs += 1
        below = b"/".join((b"mail", home.domain, home.local_part))
        had = self._previous.messages(below)
        boxes = [b"", *(b"/" + name for name in contents.folders(home.path))]
        for folder in boxes:
            self._folder(b"/new", below + folder)
            self._folder(b"/cur", below + folder)
            self._box(home.path + folder, below + folder, had)
            with suppress(FileNotFoundError), os.scandir(home.path + folder) as entries:
                # What other programs keep there.
                for name in sorted(entry.name for entry in entries
                                   if entry.is_file(follow_symlinks=False)):
                    if name not in _NOT_KEPT:
                        self._file(b"/".join((home.path + folder, name)),
                                   b"/".join((below + folder, name)))

    def _box(self, path: bytes, below: bytes, had: dict[tuple[bytes, bytes], Entry]) -> None:
        box = Box(path)
        for key in box:
            fd = box.open(key)
            if fd is None:
                self.done.gone += 1
                continue
            try:
                target = below + b"/" + box.place(key)
                status = os.fstat(fd)
                old = had.get((below, key))
                if old is not None and self._link(old, status, target):
                    self.done.linked += 1
                    continue
                self._copy(fd, status, target)
                self.done.copied += 1
            except OSError as error:
                if error.errno != errno.EIO or error.filename is not None:
                    raise
                self.done.unreadable.append(os.fsdecode(path + b"/" + box.place(key)))
                with suppress(FileNotFoundError):
                    os.unlink(self._draft + b"/" + target)
            finally:
                os.close(fd)

    def _link(self, old: Entry, status: os.stat_result, target: bytes) -> bool:
        if (old.octets, old.modified) != (status.st_size, status.st_mtime_ns):
            return False
        try:
            source = os.fsencode(self._previous.path / old.path)
            if os.lstat(source).st_size != old.octets:
                return False
            os.link(source, self._draft + b"/" + target)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EMLINK, errno.EPERM, errno.EXDEV):
                return False
            raise
        self.manifest.add(Entry(os.fsdecode(target), old.octets, old.modified, old.sha256))
        return True

    # ---- the data directory ----

    def _data(self) -> None:
        root = os.fsencode(self._origin.data.resolve())
        left_out = {os.fsencode(self._origin.accounts.resolve())}
        if self._origin.mail is not None:
            left_out.add(os.fsencode(self._origin.mail.resolve()))
        self._queue(root + b"/queue")
        for path in _files(root, left_out | {root + b"/" + each for each in _NOT_COPIED}):
            if not path.endswith(tuple(map(os.fsencode, _OF_SQLITE))):
                source, target = root + b"/" + path, b"data/" + path
                if _is_sqlite(source):
                    self._sqlite(Path(os.fsdecode(source)), target)
                else:
                    self._file(source, target)

    def _queue(self, root: bytes) -> None:
        queued = set()
        for part in (b"/message", b"/state", b"/unreadable"):
            with suppress(FileNotFoundError), os.scandir(root + part) as entries:
                names = sorted(entry.name for entry in entries)
                for name in names:
                    # A state without its message says nothing.
                    if part == b"/state" and name not in queued:
                        continue
                    if self._file(root + part + b"/" + name, b"data/queue" + part + b"/" + name):
                        queued.add(name)
            if part == b"/message":
                self.done.queued = len(queued)

    def _sqlite(self, path: Path, target: bytes) -> None:
        if not path.exists():
            return
        self._folder(b"", os.path.dirname(target))
        copied = self._draft + b"/" + target
        database.copy(path, Path(os.fsdecode(copied)))
        status = os.stat(copied)
        with open(copied, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.done.copied_octets += status.st_size
        self.manifest.add(Entry(os.fsdecode(target), status.st_size, status.st_mtime_ns, digest))

    def _file(self, path: bytes, target: bytes) -> bool:
        """Copy an ordinary file; whether it was there, and one."""
        try:
            fd = os.open(path, _READ_FILE)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
                return False
            error.filename = path
            raise
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                return False
            self._folder(b"", os.path.dirname(target))
            self._copy(fd, status, target)
            return True
        finally:
            os.close(fd)

    def _copy(self, source: int, status: os.stat_result, target: bytes) -> None:
        digest, octets = hashlib.sha256(), 0
        fd = os.open(self._draft + b"/" + target, _NEW_FILE, 0o600)
        try:
            while block := os.read(source, _BLOCK):
                digest.update(block)
                octets += len(block)
                write_all(fd, block, self._draft + b"/" + target)
            os.utime(fd, ns=(status.st_mtime_ns, status.st_mtime_ns))
        finally:
            os.close(fd)
        self.done.copied_octets += octets
        self.manifest.add(Entry(os.fsdecode(target), octets, status.st_mtime_ns,
                                digest.hexdigest()))

    def _folder(self, name: bytes, below: bytes) -> None:
        path = below + name
        if path and path not in self._made:
            self._folder(b"", os.path.dirname(path))
            os.mkdir(self._draft + b"/" + path, 0o700)
            self._made.add(path)


class _Previous:
    """What the snapshot *path* has, maildir by maildir; in memory is one at a time."""

    def __init__(self, path: Path | None) -> None:
        self.path = path or Path()
        self._entries: Iterator[Entry] = iter(())
        if path is not None:
            with suppress(Damaged):
                manifest.about(path)
                self._entries = (entry for entry in manifest.entries(path)
                                 if entry.path.startswith("mail/"))
        self._next = next(self._entries, None)

    def messages(self, below: bytes) -> dict[tuple[bytes, bytes], Entry]:
        """Folder and base name -> message of the maildir *below*; to be asked in sorted order."""
        found: dict[tuple[bytes, bytes], Entry] = {}
        shared = set()
        while self._next is not None:
            parts = os.fsencode(self._next.path).split(b"/")
            home = parts[1:3]
            if home > below.split(b"/")[1:3]:
                break
            if home == below.split(b"/")[1:3] and len(parts) > 4:
                key = b"/".join(parts[:-2]), filenames.base(parts[-1])
                if key in found:
                    shared.add(key)
                found[key] = self._next
            self._next = next(self._entries, None)
        # Which of several of one name is meant is not known.
        return {key: entry for key, entry in found.items() if key not in shared}


def _check(origin: Origin, into: Path) -> None:
    place = into.resolve()
    for source in filter(None, (origin.data, origin.mail)):
        if place.is_relative_to(source.resolve()):
            raise Refused(f"{into} lies in {source}, which is what is to be copied; name a "
                          "directory outside of it, best on another disk")
    if not origin.data.is_dir():
        raise Refused(f"there is no directory {origin.data}; name the right service with --config "
                      "or --dir")
    journals = [origin.data / "queue" / "journal"]
    if origin.mail is not None:
        journals.append(origin.mail / ".journal")
    if any(Journal(os.fsencode(each)).awaits_recovery() for each in journals):
        raise Refused("the machine was restarted, and the service has not been started since: "
                      "mail may lie in its journal alone; start the service, and try again")


def _free_name(into: Path) -> str:
    while True:
        name = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        for variant in (name, *(f"{name}-{number}" for number in range(1, 10))):
            if not (into / variant).exists():
                return variant
        time.sleep(0.1)


#: Of the data directory: what is copied otherwise, what is but a log, and what is a process's.
_NOT_COPIED = (b"queue", b"trace", b"lock")


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    fd = os.open(place / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"another backup into {place} is under way; try again "
                          "when it has ended") from None
        yield
    finally:
        os.close(fd)


def _files(root: bytes, left_out: set[bytes] | frozenset[bytes] = frozenset()) -> Iterator[bytes]:
    """Every file below *root* but links, sorted within each directory, as a path below it."""
    waiting = [b""]
    while waiting:
        below = waiting.pop()
        with suppress(FileNotFoundError), os.scandir(root + b"/" + below) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = below + entry.name
                if root + b"/" + path in left_out:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path + b"/")
                elif entry.is_file(follow_symlinks=False):
                    yield path


def _is_sqlite(path: bytes) -> bool:
    with suppress(OSError), open(path, "rb", opener=_no_follow) as file:
        return file.read(16) == b"SQLite format 3\0"
    return False


def _no_follow(path: Any, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
