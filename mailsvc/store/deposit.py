"""Putting messages into a maildir from beside the service: what import and restore do.

The service may run or not; POP3 sessions that are open see nothing of it.  The file protocol is
that of :mod:`mailsvc.store.committer`, with one sync of the directories for many messages:

1. create ``tmp/NAME`` exclusively, write the message, set its time, sync the file;  not visible,
2. link it to ``new/NAME,…``, or to ``cur/NAME,…:2,FLAGS`` if it has flags; unlink
   ``tmp/NAME``;                                                  visible, whole, perhaps not for
                                                                  good,
3. :meth:`Deposit.settle`: sync the directories.                  for good.

A name is always a new one, whatever the message was called before, and the unique-id goes into a
field of it (:mod:`mailsvc.store.filenames`).  That is what keeps a message that was deleted and is
put back safe from the journal: a record of the removal, replayed after a power loss, is about the
old name.

Where we are root, all is done as the user whom the mail belongs to.  Everything here blocks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from mailsvc.mail import Account, new_id
from mailsvc.ownership import acting_as_owner_of
from mailsvc.store import filenames, maildirsize
from mailsvc.store.contents import Box
from mailsvc.store.listing import Listing, SizeCache
from mailsvc.store.text import CanonicalText
from mailsvc.store.tree import MailTree, sync_directory

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


class Deposit:
    """The maildir of *account* below *root*, made if need be with the first message.

    :ivar messages: how many were put there, with how many *octets*.
    """

    def __init__(self, root: Path, account: Account, hostname: str) -> None:
        self.messages = self.octets = 0
        self._root = root
        self._tree = MailTree(root)
        self._home = self._tree.home(account)
        self._host = filenames.host_part(hostname)
        self._unsynced: set[bytes] = set()
        self._unrecorded = [0, 0]
        self._boxes: dict[bytes, Box] = {}

    def unique_ids(self) -> dict[bytes, bytes]:
        """The unique-id of every message that is there, and the path of its file."""
        try:
            listing = Listing(self._home, SizeCache())
        except FileNotFoundError:
            return {}
        return {listing.uidl(number): listing.path(number)
                for number in range(1, len(listing) + 1)}

    def put(self, blocks: Iterable[bytes], *, when: float, seconds: int | None = None,
            unique_id: bytes | None = None, flags: str = "", id: str = "") -> bytes:
        """Put a message there; return its path, which holds for good after :meth:`settle`.

        :param blocks: its octets, stored as they are.  What iterating raises is raised here, and
            nothing is left.
        :param when: when it arrived, in seconds since 1970.
        :param seconds: the same for its place among the others, where that is to be another.
        :param flags: those of a maildir, such as "RS".
        :param id: of :func:`mailsvc.mail.new_id`, never used before; by default one is made.
        :raises OSError: nothing is left of it.
        """
        id = id or new_id()

        def path(stored: int, sent: int) -> bytes:
            at = int(min(max(when if seconds is None else seconds, 0), filenames.LATEST))
            name = self._name(at, id, stored, sent, unique_id)
            return b"/cur/" + name + b":2," + _sorted(flags) if flags else b"/new/" + name

        return self._put(b"", id, blocks, when, path)

    def has(self, folder: bytes, name: bytes) -> bool:
        """Whether the Maildir++ folder *folder* has the message *name*, whatever its flags."""
        if folder not in self._boxes:
            self._boxes[folder] = Box(self._home + b"/" + folder)
        return filenames.base(name) in self._boxes[folder]

    def put_back(self, blocks: Iterable[bytes], folder: bytes, name: bytes, *,
                 when: float) -> bytes:
        """As :meth:`put`, but into *folder*, under the very *name* that it had there."""
        with acting_as_owner_of(self._root):
            self._tree.within(self._home, self._make_folder, self._home + b"/" + folder)
        part = b"/cur/" if b":" in name else b"/new/"
        return self._put(b"/" + folder, new_id(), blocks, when, lambda stored, sent: part + name)

    def _put(self, folder: bytes, id: str, blocks: Iterable[bytes], when: float,
             name: Callable[[int, int], bytes]) -> bytes:
        box = self._home + folder
        temporary = box + b"/tmp/" + next(
            filenames.unique_parts(int(time.time()), id, self._host))
        with acting_as_owner_of(self._root):
            fd = self._tree.within(self._home, os.open, temporary, _NEW_FILE, 0o600)
            try:
                stored, sent = _written(fd, blocks, when)
                path = box + name(stored, sent)
                os.link(temporary, path)
            finally:
                os.unlink(temporary)
        self._unsynced.add(os.path.dirname(path))
        self.messages += 1
        self.octets += stored
        self._unrecorded[0] += stored
        self._unrecorded[1] += 1
        return path

    def _make_folder(self, path: bytes) -> None:
        for directory in (path, path + b"/tmp", path + b"/new", path + b"/cur"):
            with suppress(FileExistsError):
                os.mkdir(directory, 0o700)
                # As Maildir++ says: mail programs tell folders by it.
                if directory == path:
                    os.close(os.open(path + b"/maildirfolder", _NEW_FILE, 0o600))
        self._unsynced |= {path, self._home}

    def settle(self) -> None:
        """Make durable what was put there, and count it for the quota.

        :raises OSError: it may be lost with the power; this may be tried again.
        """
        with acting_as_owner_of(self._root):
            for directory in self._unsynced:
                sync_directory(directory)
            self._unsynced.clear()
            octets, messages = self._unrecorded
            if messages:
                maildirsize.record(self._home, octets, messages)
            self._unrecorded = [0, 0]

    def _name(self, seconds: int, id: str, stored: int, sent: int,
              unique_id: bytes | None) -> bytes:
        if unique_id is not None:
            return filenames.with_unique_id(seconds, id, self._host, stored, sent, unique_id)
        unique = next(filenames.unique_parts(seconds, id, self._host))
        return filenames.with_sizes(unique, stored, sent)


def _written(fd: int, blocks: Iterable[bytes], when: float) -> tuple[int, int]:
    """Write *blocks*, durably, and close *fd*; how many octets they have, and RETR sends."""
    text = CanonicalText()
    stored = 0
    try:
        for block in blocks:
            text.feed(block)
            stored += len(block)
            rest = memoryview(block)
            while rest:
                rest = rest[os.write(fd, rest) :]
        text.end()
        with suppress(OverflowError):
            os.utime(fd, (when, when))
        os.fsync(fd)
    finally:
        os.close(fd)
    return stored, text.octets


def _sorted(flags: str) -> bytes:
    """*flags* as a file name has them; other than the known ones are left out."""
    return "".join(sorted(set(flags) & set("DFPRST"))).encode()

