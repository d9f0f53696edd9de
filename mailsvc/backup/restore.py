"""Mail, or everything, put back from a snapshot.

*Everything* goes into a data directory that is empty or not there yet (:func:`everything`): a
service can be started over it at once, here or on another machine.

*Mail* of some accounts, or single messages, are added to a service that may be running
(:func:`mail`).  What is there is left alone: a message whose unique-id the mailbox has is there,
and is skipped, so a restore may be broken off and begun again.  Each message that is put back has
its unique-id, its time and its flags, in a file with a new name (:mod:`mailsvc.store.deposit` says
why).  Messages in Maildir++ folders, which have no unique-ids, keep their names.

Either way nothing is put anywhere before the checksums of all that is wanted were compared; and
they are compared once more as it is copied.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from email import policy
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import BinaryIO

from mailsvc import database
from mailsvc.backup import manifest
from mailsvc.backup.former import ACCOUNTS
from mailsvc.backup.manifest import Damaged, Entry
from mailsvc.backup.snapshot import verify
from mailsvc.mail import Account
from mailsvc.names import fold_domain, fold_local_part
from mailsvc.ownership import acting_as_owner_of, give_to_owner_of, make_folders
from mailsvc.store import filenames
from mailsvc.store.checkpoint import sync_tree
from mailsvc.store.deposit import Deposit
from mailsvc.store.tree import sync_directory

Progress = Callable[[int, int], None]

_INFO = re.compile(rb"2,([A-Za-z]*)")


class Refused(Exception):
    """Nothing was restored; the text says why, and what to do."""


@dataclass(slots=True)
class Restored:
    """What was put into one mailbox.

    :ivar there: messages that it had.
    :ivar octets: of those *restored*.
    """

    account: str
    restored: int = 0
    there: int = 0
    octets: int = 0
    unique_ids: list[str] = field(default_factory=list)


# ---- some mail -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kept:
    """A message in a snapshot.

    :ivar folder: ``.Sent`` say; empty for the mailbox that POP3 shows.
    :ivar name: of its file.
    :ivar unique_id: empty in a folder.
    """

    entry: Entry
    folder: bytes
    name: bytes
    unique_id: bytes


def mailboxes(snapshot: Path) -> Iterator[tuple[tuple[str, str], list[Kept]]]:
    """Each mailbox, as (domain, local-part), with its messages."""
    current: tuple[bytes, ...] = ()
    found: list[Entry] = []
    for entry in manifest.entries(snapshot):
        parts = tuple(os.fsencode(entry.path).split(b"/"))
        if parts[0] != b"mail" or len(parts) not in (5, 6) or parts[-2] not in (b"new", b"cur"):
            continue
        if parts[1:3] != current:
            if current:
                yield _name(current), _kept(found)
            current, found = parts[1:3], []
        found.append(entry)
    if current:
        yield _name(current), _kept(found)


def mail(snapshot: Path, root: Path, host: str, accounts: Collection[Account], *,
         wanted: Collection[str] = (), dry_run: bool = False,
         progress: Progress = lambda done, of: None) -> list[Restored]:
    """Put the mail of *accounts* back into the maildirs below *root*.

    :param wanted: unique-ids or Message-IDs; of all the messages only these.
    :param progress: is told how many of how many octets were compared, and then copied.
    :raises Damaged: the snapshot, or a message that is wanted, is not what it was.
    :raises Refused: there is no such message.
    :raises OSError: what was restored by then stays.
    """
    manifest.about(snapshot)
    by_name = {_folded(account.domain, account.local_part): account for account in accounts}
    jobs = [(by_name[key], _chosen(snapshot, messages, wanted))
            for name, messages in mailboxes(snapshot) if (key := _folded(*name)) in by_name]
    _refuse_missing(snapshot, jobs, by_name, wanted)
    results, missing = [], []
    for account, messages in jobs:
        result, absent = _missing(Deposit(root, account, host), root, account, messages)
        results.append(result)
        missing.append(absent)
    octets = sum(each.entry.octets for absent in missing for each in absent)
    done = 0
    for each in (each for absent in missing for each in absent):
        with _opened(snapshot, each.entry) as file:
            for block in manifest.checked(file, each.entry):
                done += len(block)
                progress(done, 2 * octets)
    for (account, _), result, absent in zip(jobs, results, missing, strict=True):
        result.restored, result.octets = len(absent), sum(each.entry.octets for each in absent)
        result.unique_ids = [each.unique_id.decode("ascii") for each in absent if each.unique_id]
        if not dry_run:
            deposit = Deposit(root, account, host)
            try:
                for each in absent:
                    _put(snapshot, deposit, each)
                    done += each.entry.octets
                    progress(done, 2 * octets)
            finally:
                deposit.settle()
    return results


def _folded(domain: str, local_part: str) -> tuple[str, str]:
    # An account that was made anew may be spelled in another way.
    return fold_domain(domain), fold_local_part(local_part)


def _name(parts: tuple[bytes, ...]) -> tuple[str, str]:
    return os.fsdecode(parts[0]), os.fsdecode(parts[1])


def _kept(entries: list[Entry]) -> list[Kept]:
    """The messages of a mailbox with the unique-ids that a listing of it would give.

    Of messages that would have the same none gets it, for which of them had it is not known.
    """
    messages = []
    for entry in entries:
        *_, folder, _, name = os.fsencode(entry.path).split(b"/")
        in_folder = entry.path.count("/") == 5
        messages.append((entry, folder if in_folder else b"", name))
    ids = iter(filenames.unique_ids([name for _, folder, name in messages if not folder]))
    return [Kept(entry, folder, name, b"" if folder else next(ids))
            for entry, folder, name in messages]


def _chosen(snapshot: Path, messages: list[Kept], wanted: Collection[str]) -> list[Kept]:
    if not wanted:
        return messages
    names = {text.strip("<>") for text in wanted}
    return [each for each in messages
            if each.unique_id.decode("ascii") in wanted or _message_id(snapshot, each) in names]


def _message_id(snapshot: Path, message: Kept) -> str | None:
    with _opened(snapshot, message.entry) as file:
        head = file.read(65_536)
    found = BytesHeaderParser(policy=policy.compat32).parsebytes(head)["Message-ID"]
    return None if found is None else str(found).strip().strip("<>")


def _refuse_missing(snapshot: Path, jobs: list[tuple[Account, list[Kept]]],
                    by_name: dict[tuple[str, str], Account], wanted: Collection[str]) -> None:
    if wanted and not any(messages for _, messages in jobs):
        raise Refused(f"{snapshot} has no message {', '.join(wanted)} of "
                      + ", ".join(account.name for account in by_name.values())
                      + f"; look in another: mailsvc backup list {snapshot.parent}")
    if not jobs:
        raise Refused(f"{snapshot} has no mail of "
                      + ", ".join(account.name for account in by_name.values())
                      + f"; look in another: mailsvc backup list {snapshot.parent}")


def _missing(deposit: Deposit, root: Path, account: Account,
             messages: list[Kept]) -> tuple[Restored, list[Kept]]:
    """Those of *messages* that the mailbox has not."""
    with acting_as_owner_of(root):
        there: Collection[bytes] = deposit.unique_ids()
        absent = [each for each in messages
                  if (not deposit.has(each.folder, each.name) if each.folder
                      else each.unique_id not in there)]
    return Restored(account.name, there=len(messages) - len(absent)), absent


def _put(snapshot: Path, deposit: Deposit, message: Kept) -> None:
    when = message.entry.modified / 1e9
    with _opened(snapshot, message.entry) as file:
        blocks = manifest.checked(file, message.entry)
        if message.folder:
            deposit.put_back(blocks, message.folder, message.name, when=when)
        else:
            info = _INFO.fullmatch(message.name.partition(b":")[2])
            deposit.put(blocks, when=when, seconds=filenames.seconds(message.name),
                        unique_id=message.unique_id,
                        flags=info[1].decode("ascii") if info else "")


def _opened(snapshot: Path, entry: Entry) -> BinaryIO:
    try:
        return (snapshot / entry.path).open("rb")
    except FileNotFoundError:
        raise Damaged(f"{entry.path} is missing") from None


# ---- everything ----------------------------------------------------------------------------------


def everything(snapshot: Path, data: Path, mail: Path, accounts: Path, *, dry_run: bool = False,
               progress: Progress = lambda done, of: None) -> list[Path]:
    """Make the service's files of a snapshot, where there are none.

    :param data: the data directory; *mail*, the root of the maildirs, and *accounts*, the SQLite
        file, may lie in it.
    :param progress: is told how many of how many octets were compared, and then copied.
    :returns: the files of the configuration, in the snapshot, which are left to the operator.
    :raises Damaged: the snapshot is not what it was; nothing was made.
    :raises Refused: there is something already.
    :raises OSError: or sqlite3.Error: what was made by then is removed.
    """
    about = manifest.about(snapshot)
    for place in (data, mail):
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise Refused(f"{place} is not empty; everything is restored into an empty data "
                          "directory (mail is added to a running service with --account or "
                          "--domain)")
    if accounts.exists():
        raise Refused(f"{accounts} is there already; move it away first")
    problems = verify(snapshot, lambda done, of: progress(done, 2 * of))
    if problems:
        raise Damaged("; ".join(problems[:5]) + (
            f" and {len(problems) - 5} more" if len(problems) > 5 else ""))
    configuration = [snapshot / entry.path for entry in manifest.entries(snapshot)
                     if entry.path.startswith("etc/")]
    if dry_run:
        return configuration
    places = {"data": data, "mail": mail}
    there = [place for place in (data, mail) if place.exists()]
    try:
        for place in (data, mail, accounts.parent):
            make_folders(place)
        done = about["octets"]
        for entry in manifest.entries(snapshot):
            top, _, below = entry.path.partition("/")
            target = accounts if entry.path == ACCOUNTS else (
                places[top] / below if top in places else None)
            if target is not None:
                _make(snapshot, entry, target)
            done += entry.octets
            progress(done, 2 * about["octets"])
        for place in (mail, data):
            _give(place)
        if accounts.exists():
            give_to_owner_of(accounts.parent, accounts)
        for place in (mail, data):
            sync_tree(os.fsencode(place))
            sync_directory(os.fsencode(place.parent))
        sync_directory(os.fsencode(accounts.parent))  # SQLite has synced the file
    except BaseException:
        accounts.unlink(missing_ok=True)
        for place in (mail, data):
            for path in place.iterdir() if place in there else [place]:
                shutil.rmtree(path, ignore_errors=True)
        raise
    return configuration


def _make(snapshot: Path, entry: Entry, target: Path) -> None:
    make_folders(target.parent)
    if target.suffix == ".sqlite":
        database.restored(snapshot / entry.path, target)
        return
    with _opened(snapshot, entry) as file, open(os.open(
            target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as made:
        for block in manifest.checked(file, entry):
            made.write(block)
        made.flush()
        os.utime(made.fileno(), ns=(entry.modified, entry.modified))


def _give(place: Path) -> None:
    """Give all below *place* to its owner."""
    for folder, _, names in os.walk(place):
        for name in (".", *names):
            give_to_owner_of(place, Path(folder) / name)
