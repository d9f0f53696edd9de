"""What a journal whose process is gone says is done once more, as far as it was lost.

* The machine is still the one that ran then: whatever was written is there, and what is not there
  has been removed by somebody.  Nothing is replayed.
* It was started anew since, so that anything unsynced may be lost or half there.  A message that
  was delivered and not removed is looked for in new/ and cur/ by its base name, whatever its flags;
  it is put into new/ if it is not there, and replaced if it is not whole.  A message that was
  removed is removed.

To be stopped in the middle and done again changes nothing.

What cannot be told from a loss: another program removed the message, or moved it to another
folder, within the seconds before the power went that the journal covers.  It is there again.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from twisted.logger import Logger

from mailsvc.journal import Orphan
from mailsvc.store import filenames
from mailsvc.store.checkpoint import checkpoint
from mailsvc.store.committer import write_all
from mailsvc.store.replay import content_of, read
from mailsvc.store.tree import MailTree

_log = Logger()

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW


@dataclass(slots=True)
class Recovery:
    """One recovery of the maildirs under *root*.

    :ivar whole: how many messages were there.
    :ivar restored: how many were not.
    :ivar repaired: how many were there in part.
    :ivar removed: how many were there again after their removal.
    """

    root: bytes
    tree: MailTree
    whole: int = 0
    restored: int = 0
    repaired: int = 0
    removed: int = 0

    def replay(self, orphans: Sequence[Orphan]) -> None:
        """Do it, make it durable, and log what was done.

        :raises OSError: when it could not all be done.
        """
        found = read(orphans, self._home)
        lost: dict[bytes, dict[bytes, bytes | None]] = {}
        for place, message in found.lost.items():
            lost.setdefault(self._home(place), {})[os.path.basename(place)] = message
        for home, messages in lost.items():
            self.tree.within(home, self._restore, home, messages)
        checkpoint(set(map(self._home, found.places)),
                   [os.path.join(self.root, place) for place in found.delivered])
        _log.info(
            "recovered {entries} entries of {journals} segments of the journal after {event}: "
            "messages whole {whole}, restored {restored}, repaired {repaired}, removed again "
            "{removed}",
            entries=found.entries, journals=len(orphans),
            event="the machine was restarted" if found.rebooted else "a process was killed",
            whole=self.whole, restored=self.restored, repaired=self.repaired, removed=self.removed)

    def _home(self, place: bytes) -> bytes:
        parts = place.split(b"/")
        if len(parts) != 4 or parts[2] != b"new" or {b"", b".", b".."} & set(parts):
            raise ValueError(f"not a place in a maildir: {place!r}")
        return b"/".join((self.root, *parts[:2]))

    def _restore(self, home: bytes, messages: dict[bytes, bytes | None]) -> None:
        """*messages*: base name -> content, or None for what was removed."""
        there: dict[bytes, list[bytes]] = {}
        for directory in (home + b"/new", home + b"/cur"):
            for name in os.listdir(directory):
                there.setdefault(filenames.base(name), []).append(directory + b"/" + name)
        changed = False
        for name, message in messages.items():
            found = there.get(name, [])
            if message is None:
                for path in found:
                    os.unlink(path)
                self.removed += bool(found)
                changed |= bool(found)
                continue
            # A rename that another program did may have come to the disk by half: one is enough.
            whole = [path for path in found if content_of(path) == message]
            keep = (whole or found or [home + b"/new/" + name])[-1]
            if whole:
                self.whole += 1
            else:
                self._write(home, name, message, keep)
                changed = True
                if found:
                    self.repaired += 1
                else:
                    self.restored += 1
            for path in found:
                if path != keep:
                    os.unlink(path)
                    changed = True
        if changed:
            # Made anew when it is needed (Maildir++).
            with suppress(FileNotFoundError):
                os.unlink(home + b"/maildirsize")

    def _write(self, home: bytes, name: bytes, message: bytes, path: bytes) -> None:
        temporary = home + b"/tmp/" + filenames.unique_part(name) + b".recovered"
        fd = os.open(temporary, _NEW_FILE, 0o600)
        try:
            write_all(fd, message, temporary)
            # Other programs may look before all is done: never a name for half a file, not even
            # through another power loss.
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
