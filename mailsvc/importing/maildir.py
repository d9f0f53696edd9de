"""Messages out of a maildir.

Their dates are those of the files, their flags stay, and their unique-ids are those that mailsvc
would give them; of messages that would have the same none gets it, for which of them had it is not
known.  A message's key is that in its box, and its folder's name.  Maildir++ folders (``.Sent``)
are brought, into the mailbox itself, where they are asked for: POP3 shows no folders.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from mailsvc.importing.source import Offer, SourceFailure
from mailsvc.store import contents, filenames
from mailsvc.store.contents import Box

_BLOCK = 256 * 1024
_INFO = re.compile(rb"2,([A-Za-z]*)")


class Maildir:
    """The maildir *path*; of its folders those in *folders*, ``Sent`` say.

    :raises SourceFailure: it is none, or has no such folder.
    """

    def __init__(self, path: Path, folders: Sequence[str] = ()) -> None:
        self.name = f"maildir:{path.resolve()}"
        self.notes: list[str] = []
        self._path = os.fsencode(path)
        if not contents.is_maildir(self._path):
            raise SourceFailure(f"{path} is no maildir: there is no new/ or cur/ in it")
        wanted = {b"." + os.fsencode(name).removeprefix(b".") for name in folders}
        there = contents.folders(self._path)
        if missing := wanted - set(there):
            raise SourceFailure(f"{path} has no folder {os.fsdecode(min(missing))[1:]}; it has "
                                + (", ".join(os.fsdecode(name)[1:] for name in there) or "none"))
        self._boxes = {name: Box(b"/".join(filter(None, (self._path, name))))
                       for name in (b"", *sorted(wanted))}
        for name in there:
            if name not in wanted and (left := len(Box(self._path + b"/" + name))):
                text = os.fsdecode(name)[1:]
                self.notes.append(f"left out: folder {text} with {left} messages; --folder "
                                  f"{text} brings them into the mailbox")

    def offers(self) -> Sequence[Offer]:
        found = []
        for folder, box in self._boxes.items():
            keys = list(box)
            ids = filenames.unique_ids(keys) if not folder else [None] * len(keys)
            for key, id in zip(keys, ids, strict=True):
                info = _INFO.fullmatch(box.place(key).partition(b":")[2])
                found.append(Offer(
                    os.fsdecode(b"/".join(filter(None, (folder, key)))),
                    filenames.stored_octets(key) or 0, None,
                    info[1].decode("ascii") if info else "", id, (folder, key)))
        return found

    def fetch(self, offers: Iterable[Offer]) -> Iterator[tuple[Offer, Iterable[bytes] | None]]:
        for offer in offers:
            folder, key = offer.place
            fd = self._boxes[folder].open(key)
            if fd is None:
                yield offer, None
                continue
            with open(fd, "rb", buffering=0) as file:
                yield replace(offer, when=os.fstat(fd).st_mtime), iter(
                    partial(file.read, _BLOCK), b"")

    def close(self) -> None:
        pass
