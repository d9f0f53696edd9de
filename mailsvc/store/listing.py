"""What lies in a maildir: its messages, numbered, with sizes and unique-ids.

Reading a listing costs one pass over new/ and cur/, no look at a file whose name tells its size.  A
file without ``,W=`` in its name is read once and counted; :class:`SizeCache` remembers the result
for the next login.  In memory a listing is one list of names and one array of sizes, about 130
octets a message.  Work is cut so that the interpreter lock is never held for more than a few
milliseconds: the reactor's thread goes on meanwhile.

Other programs rename the files as they like while this goes on: from new/ to cur/, and within cur/
to change flags.  So:

* new/ is read before cur/, and a file seen in both is one message: what moves is not missed;
* a rename within cur/ can hide a file from somebody reading the directory; when cur/ changed while
  it was read or shortly before, it is read once more, and what was seen either time counts;
* a file that is not where it was is looked for by its base name, in one pass for all of them.

Names are kept *marked*: with a NUL, which no file name has, behind their unique part.  Sorted like
this, all names with one unique part stand together, whatever fields and flags follow.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from heapq import merge
from itertools import groupby, islice

from twisted.logger import Logger

from mailsvc.store import filenames
from mailsvc.store.text import CanonicalText

_log = Logger()

#: How many names are sorted at a time.
_RUN = 4096

#: A directory changed less than this before being read may have changed again in the same tick of
#: the file system's clock: 2 s on the coarsest.
_YOUNG_NS = 2_000_000_000

_READ = 256 * 1024

#: When new/ and cur/ were changed, in nanoseconds since 1970; None when not known for sure.
_Stamp = tuple[int | None, int | None]

# Whatever has been put in the place of a file since it was listed: no link is followed, no FIFO
# waited for.
_OPEN_MESSAGE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


class SizeCache:
    """The counted sizes of files whose names do not tell; shared by all maildrops of a store.

    A table of fixed size in which a newcomer takes the place of whoever has it, so it needs 2 MiB
    and no upkeep.  May be used from any thread.
    """

    def __init__(self, places: int = 1 << 17) -> None:
        self._keys = array("Q", bytes(8 * places))
        self._sizes = array("Q", bytes(8 * places))
        self._lock = threading.Lock()

    def get(self, name: bytes, status: os.stat_result) -> int | None:
        """The size that file *name* with this *status* was found to have."""
        key = self._key(name, status)
        place = key % len(self._keys)
        with self._lock:
            return self._sizes[place] if self._keys[place] == key else None

    def put(self, name: bytes, status: os.stat_result, size: int) -> None:
        """Remember *size*."""
        key = self._key(name, status)
        place = key % len(self._keys)
        with self._lock:
            self._keys[place] = key
            self._sizes[place] = size

    @staticmethod
    def _key(name: bytes, status: os.stat_result) -> int:
        what = (filenames.base(name), status.st_ino, status.st_mtime_ns, status.st_size)
        return hash(what) % (1 << 64) or 1  # 0 is an empty place


class Listing:
    """The messages of the maildir *home* as it was at one moment, numbered from 1 by name.

    The constructor, :meth:`relocate` and :meth:`remove` do blocking I/O; :meth:`open` opens a file.

    :ivar sizes: octets as RETR sends them; message n is ``sizes[n - 1]``.
    :raises OSError: when new/ or cur/ cannot be read.
    """

    def __init__(self, home: bytes, cache: SizeCache) -> None:
        self._home = home
        self._cache = cache
        self._stamp: _Stamp = (None, None)
        # A file that goes while it is counted was removed, or renamed: look once more.
        if not self._read():
            self._read()

    def _read(self) -> bool:
        """Read the maildir; return whether every message seen was there to the end."""
        self._names: list[bytes] = []
        self._ambiguous: set[bytes] = set()
        self.sizes = array("Q")
        complete = True
        for same in _grouped(self._scan()):
            if len(same) > 1:
                plain = Counter(filenames.plain_id(_unmark(marked)) for marked in same)
                self._ambiguous.update(marked for marked in map(filenames.base, same)
                                       if plain[filenames.plain_id(_unmark(marked))] > 1)
            for marked in same:
                size = filenames.sent_octets(marked)
                if size is None:
                    size = self._count(_unmark(marked))
                if size is None:
                    complete = False
                else:
                    self._names.append(marked)
                    self.sizes.append(size)
        return complete

    def uidl(self, number: int) -> bytes:
        """The unique-id of message *number*."""
        marked = self._marked(number)
        return filenames.unique_id(_unmark(marked), filenames.base(marked) in self._ambiguous)

    def open(self, number: int) -> int:
        """A descriptor of the file of message *number*, for reading.

        :raises FileNotFoundError: when it is neither where it was seen last nor just moved from
            new/ to cur/; :meth:`relocate` may find it.
        """
        return _open(self._places(_unmark(self._marked(number))))

    def relocate(self, number: int) -> int:
        """As :meth:`open`, but looks for a renamed file first (and for all the others with it).

        :raises FileNotFoundError: when it has gone for good.
        """
        self._find_renamed()
        return self.open(number)

    def remove(self, number: int) -> tuple[bytes, int]:
        """Unlink the file of message *number*, renamed or not.

        :returns: its path, and its size in octets; both as they were.
        :raises FileNotFoundError: when it has gone already.
        """
        try:
            return self._unlink(number)
        except FileNotFoundError:
            self._find_renamed()
            return self._unlink(number)

    def _unlink(self, number: int) -> tuple[bytes, int]:
        name = _unmark(self._marked(number))
        for path in self._places(name):
            with suppress(FileNotFoundError):
                size = filenames.stored_octets(name)
                if size is None:
                    size = os.lstat(path).st_size
                os.unlink(path)
                return path, size
        raise _gone(name)

    def _marked(self, number: int) -> bytes:
        if number < 1:
            raise IndexError(number)
        return self._names[number - 1]

    def _places(self, name: bytes) -> Iterator[bytes]:
        """Where the file *name* may be, the likelier place first."""
        for directory in (b"cur", b"new") if b":" in name else (b"new", b"cur"):
            yield b"/".join((self._home, directory, name))

    def _scan(self) -> Iterator[bytes]:
        """The marked names in new/ and cur/, sorted; a renamed file may come more than once."""
        self._stamp = self._changes()
        runs = [*_runs(self._home + b"/new"), *_runs(self._home + b"/cur")]
        cur = self._stamp[1]
        if cur is None or cur != self._changes()[1]:
            seen = list(merge(*runs))
            runs = [seen]
            runs += ([name for name in run if not _holds(seen, name)]
                     for run in _runs(self._home + b"/cur"))
        return merge(*runs)

    def _changes(self) -> _Stamp:
        """When new/ and cur/ were changed last; None for what is too recent to rely on."""
        new, cur = (os.stat(self._home + name).st_mtime_ns for name in (b"/new", b"/cur"))
        reliable = time.time_ns() - _YOUNG_NS
        return (new if new < reliable else None, cur if cur < reliable else None)

    def _find_renamed(self) -> None:
        """Bring the names of all messages up to date."""
        if None not in self._stamp and self._stamp == self._changes():
            return
        for same in _grouped(self._scan()):
            present = {filenames.base(marked): marked for marked in same}
            head = _head(same[0]) + b"\0"
            for place in range(bisect_left(self._names, head), len(self._names)):
                known = self._names[place]
                if not known.startswith(head):
                    break
                self._names[place] = present.get(filenames.base(known), known)

    def _count(self, name: bytes) -> int | None:
        """The size of a message whose file name does not tell it; None when it has gone."""
        for path in self._places(name):
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                continue
            size = self._cache.get(name, status)
            if size is None:
                try:
                    size = _count_octets(path)
                except OSError as error:
                    # Nothing better is known, and the other messages can be read.
                    _log.warn("cannot read {path!r}: {error}", path=path, error=error)
                    return status.st_size
                self._cache.put(name, status, size)
            return size
        return None


def _count_octets(path: bytes) -> int:
    fd = _open([path])
    try:
        text = CanonicalText()
        while block := os.read(fd, _READ):
            text.feed(block)
        text.end()
        return text.octets
    finally:
        os.close(fd)


def _open(paths: Iterable[bytes]) -> int:
    for path in paths:
        with suppress(FileNotFoundError):
            return os.open(path, _OPEN_MESSAGE)
    raise _gone(path)


def _gone(path: bytes) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def _mark(name: bytes) -> bytes:
    cut = len(filenames.unique_part(name))
    return name[:cut] + b"\0" + name[cut:]


def _unmark(marked: bytes) -> bytes:
    return marked.replace(b"\0", b"")


def _head(marked: bytes) -> bytes:
    return marked.partition(b"\0")[0]


def _runs(directory: bytes) -> Iterator[list[bytes]]:
    """The marked names of the messages in *directory*, in sorted lists of bounded length."""
    with os.scandir(directory) as entries:
        marked = (_mark(entry.name) for entry in entries
                  if not entry.name.startswith(b".") and entry.is_file(follow_symlinks=False))
        while run := sorted(islice(marked, _RUN)):
            yield run


def _holds(run: list[bytes], name: bytes) -> bool:
    place = bisect_left(run, name)
    return place < len(run) and run[place] == name


def _grouped(scan: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The marked names, those with one unique part together, each base name once."""
    for _, group in groupby(scan, _head):
        same = list(group)
        if len(same) > 1:
            # Of a file seen under two names keep the later: the one with flags is in cur/.
            same = list({filenames.base(marked): marked for marked in same}.values())
        yield same
