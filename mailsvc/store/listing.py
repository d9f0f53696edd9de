"""What lies in a maildir: its messages, numbered, with sizes and unique-ids.

Reading a listing costs one pass over new/ and cur/, no look at a file whose name tells its size.  A
file without ``,W=`` in its name is read once and counted; :class:`SizeCache` remembers the result
for the next login.  In memory a listing is one list of names and one array of sizes, about 130
octets a message.  Work is cut so that the interpreter lock is never held for more than a few
milliseconds: the reactor's thread goes on meanwhile.  Names as deliveries here and elsewhere make
them are taken many at a time; one that is different costs its listing the longer way.

:class:`ListingCache` keeps listings for the next login, which is most of what clients do who look
every minute: new/ and cur/ whose times have not changed have not changed either, if they were not
young when they were read.

Other programs rename the files as they like while this goes on: from new/ to cur/, and within cur/
to change flags.  So:

* new/ is read before cur/, and a file seen in both is one message: what moves is not missed.  Of
  two files that would have one unique-id the later is renamed (:mod:`mailsvc.store.namesakes`), or
  left out where that cannot be;
* a rename within cur/ can hide a file from somebody reading the directory; when cur/ changed while
  it was read or shortly before, it is read once more, and what was seen either time counts;
* a file that is not where it was is looked for by its base name, in one pass for all of them.

Names are kept marked (:mod:`mailsvc.store.marked`).
"""

from __future__ import annotations

import errno
import os
import threading
import time
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby

from twisted.logger import Logger

from mailsvc.store import filenames, namesakes
from mailsvc.store.deleted import keep
from mailsvc.store.marked import (
    comes_with_id,
    head_of,
    holds,
    mark,
    merged,
    of_one_id,
    runs_of,
    unmark,
    usual_sizes,
)
from mailsvc.store.text import CanonicalText

_log = Logger()

#: A directory changed less than this before being read may have changed again in the same tick of
#: the file system's clock: 2 s on the coarsest.
_YOUNG_NS = 2_000_000_000

_READ = 256 * 1024

#: When new/ and cur/ were changed, in nanoseconds since 1970; None when not known for sure.
_Stamp = tuple[int | None, int | None]

#: ``Namesakes.part``, for the maildir that is named first.
Part = Callable[[bytes, Collection[Sequence[namesakes.Message]]], bool]

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


class ListingCache:
    """The listings of the maildirs that were opened last, with *most* messages in all.

    Whoever opens a maildir has its lock, so a listing is used by one session at a time; of those
    who look into it without the lock several may use one, for they only read, and a file that was
    renamed is found for all of them.  May be used from any thread.

    :param part: as for :class:`Listing`.
    """

    def __init__(self, sizes: SizeCache, most: int, part: Part | None = None) -> None:
        self._sizes = sizes
        self._most = most
        self._part = part
        self._kept: OrderedDict[bytes, Listing] = OrderedDict()
        self._messages = 0
        self._lock = threading.Lock()

    def __contains__(self, home: bytes) -> bool:
        return home in self._kept

    def known(self, home: bytes) -> Listing | None:
        """The listing of *home*, if it is known and the maildir has not changed; quick.

        :raises OSError: when new/ or cur/ cannot be looked at.
        """
        with self._lock:
            listing = self._kept.get(home)
            if listing is not None:
                self._kept.move_to_end(home)
        if listing is not None and not listing.current:
            self._forget(home)
            return None
        return listing

    def read(self, home: bytes) -> Listing:
        """The listing of *home*, read anew; raises as :class:`Listing`."""
        listing = Listing(home, self._sizes, self._part)
        self._forget(home)
        with self._lock:
            self._kept[home] = listing
            self._messages += len(listing)
            while self._messages > self._most:
                self._messages -= len(self._kept.popitem(last=False)[1])
        return listing

    def _forget(self, home: bytes) -> None:
        with self._lock:
            listing = self._kept.pop(home, None)
            if listing is not None:
                self._messages -= len(listing)


class Listing:
    """The messages of the maildir *home* as it was at one moment, numbered from 1 by name.

    The constructor, :meth:`relocate` and :meth:`remove` do blocking I/O; :meth:`open` opens a file.

    :param part: what is done with messages that would have one unique-id; without it all but the
        eldest are left out.
    :ivar sizes: octets as RETR sends them; message n is ``sizes[n - 1]``.
    :ivar octets: their sum.
    :raises OSError: when new/ or cur/ cannot be read.
    """

    def __init__(self, home: bytes, cache: SizeCache, part: Part | None = None) -> None:
        self._home = home
        self._new, self._cur = home + b"/new", home + b"/cur"
        self._cache = cache
        self._part = part
        self._stamp: _Stamp = (None, None)
        # A file that goes while it is counted was removed, or renamed: look once more.  So, too,
        # when some were renamed here.
        _ = self._read() or self._read() or self._read()
        self.octets = sum(self.sizes)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def current(self) -> bool:
        """Whether the maildir is known not to have changed since."""
        return None not in self._stamp and self._stamp == self._changes()

    def _read(self) -> bool:
        """Read the maildir; return whether every message seen was there to the end."""
        names = self._scan()
        #: The further files of messages that have several: base name -> those.
        self._further: dict[bytes, list[namesakes.File]] = {}
        sizes = usual_sizes(names)
        given = any(map(comes_with_id, names))
        #: Whether the unique-id of each message is the unique part of its name.
        self._usual = sizes is not None and not given
        complete = True
        if not self._usual and (shared := of_one_id(names, given)):
            names, complete = self._apart(names, shared)
            sizes = None
        if sizes is not None:
            self._names, self.sizes = names, sizes
            return True
        self._names = []
        self.sizes = array("Q")
        for marked in names:
            size = filenames.sent_octets(marked)
            if size is None:
                size = self._count(unmark(marked))
            if size is None:
                complete = False
            else:
                self._names.append(marked)
                self.sizes.append(size)
        return complete

    def _apart(self, names: list[bytes], shared: list[list[bytes]]) -> tuple[list[bytes], bool]:
        """Those of the marked *names* that are listed, and whether all are as they were.

        :param shared: those that make one unique-id, together.
        """
        some, eldest, several = set[bytes](), [], []
        for same in shared:
            some.update(same)
            those = namesakes.messages((self._new, self._cur), list(map(unmark, same)))
            if not those:
                eldest.append(same[-1])  # it is looked for when it is wanted
                continue
            name = those[0][0].name
            eldest.append(mark(name))
            if len(those[0]) > 1:
                self._further[filenames.base(name)] = those[0][1:]
            if len(those) > 1:
                several.append(those)
        rest = [marked for marked in names if marked not in some]
        listed = merged([rest, sorted(eldest)])
        if not several:
            return listed, True
        self._stamp = (None, None)  # some are left out, until they can be renamed
        return listed, self._part is None or not self._part(self._home, several)

    def uidl(self, number: int) -> bytes:
        """The unique-id of message *number*."""
        marked = self._marked(number)
        if self._usual:
            return head_of(marked)
        return filenames.unique_id(unmark(marked))

    def uidls(self, first: int, end: int) -> list[bytes]:
        """The unique-ids of messages from *first* up to before *end*."""
        if self._usual:
            return [marked.partition(b"\0")[0] for marked in self._names[first - 1 : end - 1]]
        return list(map(self.uidl, range(first, end)))

    def path(self, number: int) -> bytes:
        """Where the file of message *number* was seen last."""
        name = unmark(self._marked(number))
        return b"/".join((self._directories(name)[0], name))

    def open(self, number: int) -> int:
        """A descriptor of the file of message *number*, for reading.

        :raises FileNotFoundError: when it is neither where it was seen last nor just moved from
            new/ to cur/; :meth:`relocate` may find it.
        """
        try:
            return os.open(self.path(number), _OPEN_MESSAGE)
        except FileNotFoundError:
            return _open(self._places(unmark(self._marked(number))))

    def stored(self, number: int) -> int | None:
        """The size of the file of message *number* as its name tells it, if it does."""
        return filenames.stored_octets(unmark(self._marked(number)))

    def relocate(self, number: int) -> int:
        """As :meth:`open`, but looks for a renamed file first (and for all the others with it).

        :raises FileNotFoundError: when it has gone for good.
        """
        self._find_renamed()
        return self.open(number)

    def remove(self, number: int) -> tuple[bytes, bytes, int]:
        """Unlink the file of message *number*, renamed or not.

        :returns: its directory, its name, and its size in octets; as they were.
        :raises FileNotFoundError: when it has gone already.
        """
        if self._further:
            for file in self._further.get(filenames.base(unmark(self._marked(number))), ()):
                file.remove()
        try:
            return self._unlink(number)
        except FileNotFoundError:
            self._find_renamed()
            return self._unlink(number)

    def keep(self, number: int, directory: bytes, sync: bool) -> None:
        """Link the file of message *number*, renamed or not, into *directory* too.

        :param sync: whether to make its content durable.
        :raises FileNotFoundError: when it has gone.
        """
        fd = self._opened(number)
        try:
            name = unmark(self._marked(number))
            for path in self._places(name):
                with suppress(FileNotFoundError):
                    keep(path, directory + b"/" + name)
                    break
            else:
                raise _gone(name)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)

    def _opened(self, number: int) -> int:
        try:
            return self.open(number)
        except FileNotFoundError:
            return self.relocate(number)

    def _unlink(self, number: int) -> tuple[bytes, bytes, int]:
        name = unmark(self._marked(number))
        size = filenames.stored_octets(name)
        for directory in self._directories(name):
            path = b"/".join((directory, name))
            try:
                octets = os.lstat(path).st_size if size is None else size
                os.unlink(path)
            except FileNotFoundError:
                continue
            return directory, name, octets
        raise _gone(name)

    def _marked(self, number: int) -> bytes:
        if number < 1:
            raise IndexError(number)
        return self._names[number - 1]

    def _directories(self, name: bytes) -> tuple[bytes, bytes]:
        """Where the file *name* may be, the likelier place first."""
        return (self._cur, self._new) if b":" in name else (self._new, self._cur)

    def _places(self, name: bytes) -> Iterator[bytes]:
        """Its paths there."""
        for directory in self._directories(name):
            yield b"/".join((directory, name))

    def _scan(self) -> list[bytes]:
        """The marked names in new/ and cur/, sorted; a renamed file may come more than once."""
        self._stamp = self._changes()
        seen = merged([*runs_of(self._new), *runs_of(self._cur)])
        cur = self._stamp[1]
        if cur is None or cur != self._changes()[1]:
            seen = merged([seen, *([name for name in run if not holds(seen, name)]
                                   for run in runs_of(self._cur))])
        return seen

    def _changes(self) -> _Stamp:
        """When new/ and cur/ were changed last; None for what is too recent to rely on."""
        new, cur = (os.stat(path).st_mtime_ns for path in (self._new, self._cur))
        reliable = time.time_ns() - _YOUNG_NS
        return (new if new < reliable else None, cur if cur < reliable else None)

    def _find_renamed(self) -> None:
        """Bring the names of all messages up to date."""
        if self.current:
            return
        for head, group in groupby(self._scan(), head_of):
            same = list(group)
            # Of a file seen under two names take the later: the one with flags is in cur/.
            present = {filenames.base(marked): marked for marked in same}
            first = head + b"\0"
            for place in range(bisect_left(self._names, first), len(self._names)):
                known = self._names[place]
                if not known.startswith(first):
                    break
                if known not in same:
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
