"""Deleted mail had back: what is kept of an account, and putting it into the mailbox again.

What comes back has its old unique-id: a client that still remembers it does not download it again
by itself.  The service may be running; where we are root, all is done as the user whom the mail
belongs to.  Everything here blocks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from email import policy
from email.parser import BytesHeaderParser
from pathlib import Path

from mailsvc.mail import Account
from mailsvc.ownership import acting_as_owner_of
from mailsvc.store import deleted, filenames
from mailsvc.store.deposit import Deposit

_HEAD = 65_536
_BLOCK = 256 * 1024
_INFO = re.compile(rb"2,([A-Za-z]*)")


@dataclass(frozen=True, slots=True)
class Deleted:
    """A message that can be had back.

    :ivar day: when it was deleted, in ISO 8601.
    :ivar message_id: without angle brackets.
    """

    day: str
    path: bytes
    name: bytes
    unique_id: str
    octets: int
    sender: str
    subject: str
    message_id: str

    def plain(self) -> dict[str, str | int]:
        """As JSON has it."""
        return {"deleted": self.day, "unique_id": self.unique_id, "octets": self.octets,
                "from": self.sender, "subject": self.subject, "message_id": self.message_id}


class DeletedMail:
    """The deleted mail of *account*, whose maildir is below *root*."""

    def __init__(self, root: Path, account: Account, hostname: str) -> None:
        self._root = root
        self._home = os.fsencode(root / account.domain / account.local_part)
        self._deposit = Deposit(root, account, hostname)

    def messages(self, since: str = "", wanted: Collection[str] = ()) -> list[Deleted]:
        """What is kept and is not in the mailbox, each once, the newest first.

        :param since: the oldest day that counts, as ``YYYYMMDD``.
        :param wanted: unique-ids and Message-IDs, to which it is held; empty for all.
        :raises OSError: it cannot be read.
        """
        with acting_as_owner_of(self._root):
            seen = {id.decode("ascii") for id in self._deposit.unique_ids()}
            messages = []
            names = {text.strip("<>") for text in wanted}
            for kept in deleted.kept(self._home):
                if kept.day < since:
                    break
                unique_id = filenames.unique_id(kept.name).decode("ascii")
                if unique_id in seen:
                    continue
                message = _read(kept, unique_id)
                if message is not None and (
                        not wanted or unique_id in wanted or message.message_id in names):
                    seen.add(unique_id)
                    messages.append(message)
        return messages

    def put_back(self, messages: Iterable[Deleted]) -> None:
        """Have *messages* in the mailbox again.

        :raises OSError: some are not.
        """
        back = []
        try:
            for each in messages:
                info = _INFO.fullmatch(each.name.partition(b":")[2])
                with acting_as_owner_of(self._root):
                    file = open(each.path, "rb")  # noqa: SIM115 - the next line closes it
                with file:
                    self._deposit.put(
                        iter(lambda: file.read(_BLOCK), b""),  # noqa: B023 - read before the next
                        when=os.fstat(file.fileno()).st_mtime, seconds=filenames.seconds(each.name),
                        unique_id=each.unique_id.encode("ascii"),
                        flags=info[1].decode("ascii") if info else "")
                back.append(each.path)
        finally:
            self._deposit.settle()
            with acting_as_owner_of(self._root):
                for path in back:
                    os.unlink(path)


def _read(kept: deleted.Kept, unique_id: str) -> Deleted | None:
    try:
        with open(kept.path, "rb") as file:
            octets, head = os.fstat(file.fileno()).st_size, file.read(_HEAD)
    except FileNotFoundError:
        return None  # swept
    fields = BytesHeaderParser(policy=policy.compat32).parsebytes(head)
    sender, subject, message_id = (
        " ".join("".join(c if c.isprintable() else " " for c in str(fields.get(name, ""))).split())
        for name in ("From", "Subject", "Message-ID"))
    day = f"{kept.day[:4]}-{kept.day[4:6]}-{kept.day[6:]}"
    return Deleted(day, kept.path, kept.name, unique_id, octets, sender, subject,
                   message_id.strip("<>"))
