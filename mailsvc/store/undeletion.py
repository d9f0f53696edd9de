"""Putting deleted mail that was kept (:mod:`~mailsvc.store.deleted`) back into its mailbox.

What comes back has its old unique-id, and a new file name (:mod:`~mailsvc.store.deposit`).  What is
in the mailbox all the same, of a removal that did not come to its end, is not offered.  Everything
here blocks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from mailsvc.mail import Account
from mailsvc.ownership import acting_as_owner_of
from mailsvc.store import deleted, filenames
from mailsvc.store.deposit import Deposit

_BLOCK = 256 * 1024
_INFO = re.compile(rb"2,([A-Za-z]*)")


class Deleted(NamedTuple):
    """A message that can be had back: the day (UTC) in ISO 8601, and what it is called."""

    day: str
    path: bytes
    name: bytes
    unique_id: str

    def head(self, octets: int) -> tuple[int, float, bytes]:
        """Its size, when it was deleted, and its first *octets*.

        :raises FileNotFoundError: it is kept no longer.
        """
        with open(self.path, "rb") as file:
            found = os.fstat(file.fileno())
            # Its last change was that it lost its name in the mailbox.
            return found.st_size, found.st_ctime, file.read(octets)


class Undeletion:
    """What was deleted from the mailbox of *account*, below *root*."""

    def __init__(self, root: Path, account: Account, hostname: str) -> None:
        self._root = root
        self._home = os.fsencode(root / account.domain / account.local_part)
        self._deposit = Deposit(root, account, hostname)

    def messages(self, since: str = "") -> Iterator[Deleted]:
        """What can be had back, each once, the newest day first.

        :param since: the first day (ISO 8601, UTC) of those that are meant.
        """
        with acting_as_owner_of(self._root):
            seen = {id.decode("ascii") for id in self._deposit.unique_ids()}
            kept = list(deleted.kept(self._home))
        for each in kept:
            day = f"{each.day[:4]}-{each.day[4:6]}-{each.day[6:]}"
            if day < since:
                break
            unique_id = filenames.unique_id(each.name).decode("ascii")
            if unique_id not in seen:
                seen.add(unique_id)
                yield Deleted(day, each.path, each.name, unique_id)

    def put_back(self, messages: Iterable[Deleted]) -> int:
        """Put *messages* back; how many of them there still were.

        :raises OSError: those before it are back.
        """
        back = []
        try:
            for each in messages:
                info = _INFO.fullmatch(each.name.partition(b":")[2])
                try:
                    with acting_as_owner_of(self._root):
                        file = open(each.path, "rb")  # noqa: SIM115 - the next line closes it
                except FileNotFoundError:
                    continue  # its time was over
                with file:
                    self._deposit.put(
                        iter(lambda: file.read(_BLOCK), b""),  # noqa: B023 - read before the next
                        when=os.fstat(file.fileno()).st_mtime,
                        seconds=filenames.seconds(each.name),
                        unique_id=each.unique_id.encode("ascii"),
                        flags=info[1].decode("ascii") if info else "")
                back.append(each.path)
        finally:
            self._deposit.settle()
            with acting_as_owner_of(self._root):
                for path in back:
                    os.unlink(path)
        return len(back)
