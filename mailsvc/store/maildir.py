"""A store of maildirs: ``maildir:ROOT``, mail of an account in ROOT/<domain>/<local-part>/.

What it promises:

* a message is in new/ whole or not at all, and is acknowledged when it would survive a power loss
  (:mod:`mailsvc.store.committer`); the octets on disk are those that were written;
* other programs may deliver into the same maildirs, read them, move and flag messages at any time;
  what they wrote, with LF or CRLF, is listed with exact sizes (:mod:`mailsvc.store.listing`);
* delivered files are never changed; renamed only when two would have one unique-id
  (:mod:`mailsvc.store.namesakes`); and only QUIT removes them;
* a maildrop is locked by flock(2) on ``mailsvc.lock`` in it: across processes, and gone with the
  process or session that held it.  Other programs know nothing of this lock;
* quotas are soft, kept in ``maildirsize`` as Maildir++ does (:mod:`mailsvc.store.quota`).

What it does not: mail in Maildir++ folders (``.Name/``) is not shown, only counted.  Directories
have mode 0700 and files 0600, so programs that share them run as the same user.  On NFS flock and
link are as good as the server makes them.

All blocking work is done in a pool of threads, except opening a file to be read and reading what
the kernel has in its cache.  Memory for a message on its way is bounded: what is larger than
``small_message_octets`` goes to its file in tmp/ as it arrives, and so does every one when
``memory_octets`` are in use (:mod:`mailsvc.store.delivery`).
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IConsumer, IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mailsvc.errors import (
    MaildropInUse,
    MailFailure,
    MessageVanished,
    SomeNotRemoved,
    TemporaryFailure,
)
from mailsvc.interfaces import IMailboxStore, IMaildrop, IView
from mailsvc.journal import Journal
from mailsvc.mail import Account
from mailsvc.settings import OneOf, at_least, setting
from mailsvc.store import maildirsize
from mailsvc.store.committer import Committer, Message
from mailsvc.store.deleted import Shelf, first_kept
from mailsvc.store.delivery import Buffers, Delivery
from mailsvc.store.failures import explain
from mailsvc.store.group import GroupCommitter
from mailsvc.store.listing import Listing, ListingCache, SizeCache
from mailsvc.store.namesakes import Message as Namesake
from mailsvc.store.namesakes import Namesakes
from mailsvc.store.quota import Quotas, Reservation, quota_of
from mailsvc.store.recovery import Recovery
from mailsvc.store.retrieval import AT_ONCE, FileBlocks, Retrieval, at_once
from mailsvc.store.text import canonical
from mailsvc.store.threads import Threads
from mailsvc.store.tree import MailTree, sync_directory

# Python opens every file so that the programs it starts do not inherit it (PEP 446): a lock that a
# child held as well would outlive us.
_LOCK_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW


@dataclass(frozen=True, slots=True)
class MaildirSettings:
    """``[maildir]``."""

    small_message_octets: int = setting(
        131_072, "Messages up to this size are kept in memory until they are complete; larger ones "
        "go to their file as they arrive.", unit="octets", check=at_least(1))
    memory_octets: int = setting(
        134_217_728, "How much of such messages a process keeps in memory at once; past it, each "
        "goes to its file whatever its size.", unit="octets", check=at_least(0))
    threads: int = setting(
        16, "How many threads write and read maildirs; so many flushes to disk are under way at "
        "once.", check=at_least(1))
    listing_cache_messages: int = setting(
        200_000, "How many messages' names are remembered after POP3 sessions, so that a maildir "
        "that has not changed need not be read again; each takes some 130 octets of memory.",
        unit="messages", check=at_least(0))
    durability: str = setting(
        "journal", "When mail is acknowledged: \"journal\", once it is in a journal that many "
        "messages are flushed to disk by together; \"fsync\", once its file has been flushed; "
        "\"none\", when the kernel has it: a power loss takes the last half minute.",
        check=OneOf("journal", "fsync", "none"))
    backlog_octets: int = setting(
        67_108_864, "How much mail may wait for the journal before more is told to try again "
        "later.", unit="octets", check=at_least(1))
    checkpoint_seconds: float = setting(
        5, "How long mail is kept in the journal as well as in its maildir.", unit="seconds",
        check=at_least(0.1))
    sweep_hours: float = setting(
        36, "How long an abandoned file in tmp/ is left there.", unit="hours", check=at_least(1))
    keep_deleted_days: int = setting(
        0, "How long mail that POP3 clients deleted can be had back by `mailsvc undelete`; 0 for "
        "not at all.  It does not count for quotas.", unit="days", check=at_least(0))


@implementer(IMailboxStore)
class MaildirStore:
    """The maildirs under *root*."""

    log = Logger()

    def __init__(
        self, root: Path, settings: MaildirSettings, hostname: str, reactor: IReactorFromThreads
    ) -> None:
        self._root = root
        self._buffers = Buffers(settings.small_message_octets, settings.memory_octets)
        self._settings = settings
        self._tree = MailTree(root, sync=settings.durability != "none")
        self._threads = Threads(reactor, settings.threads, "maildir")
        self._quotas = Quotas(self._threads)
        each = Committer(
            self._tree, self._threads, hostname, sync=settings.durability != "none")
        self._journal = Journal(os.fsencode(root) + b"/.journal")
        self._committer: Committer | GroupCommitter = each
        if settings.durability == "journal":
            unsynced = Committer(MailTree(root, sync=False), self._threads, hostname, sync=False)
            self._committer = GroupCommitter(
                root, each, unsynced, reactor, self._journal,
                backlog=settings.backlog_octets, seconds=settings.checkpoint_seconds)
        self._shelf = (Shelf(sync=settings.durability != "none")
                       if settings.keep_deleted_days else None)
        self._namesakes = Namesakes(hostname, sync=settings.durability != "none")
        sizes = SizeCache()
        self._listings = ListingCache(sizes, settings.listing_cache_messages,
                                      lambda _, shared: self._namesakes.part(shared))
        # Apart from those of sessions, each of which belongs to who has the lock.
        self._views = ListingCache(sizes, settings.listing_cache_messages // 10, self._part)

    @property
    def root(self) -> Path:
        """The directory of all maildirs."""
        return self._root

    @property
    def backlog(self) -> tuple[int, int]:
        """Octets that wait for the journal, and how many of its segments are in use."""
        committer = self._committer
        return committer.backlog if isinstance(committer, GroupCommitter) else (0, 0)

    def start(self) -> None:
        """Begin to work, once what a power loss took is there again; blocks meanwhile.

        :raises OSError: when that cannot be done.
        """
        if isinstance(self._committer, GroupCommitter):
            self._committer.start(
                Recovery(os.fsencode(self._root), MailTree(self._root, sync=False)).replay)
        elif os.path.isdir(self._journal.directory):
            # What an earlier process acknowledged by its journal is still owed.
            self._journal.open(Recovery(os.fsencode(self._root), self._tree).replay)
            self._journal.close()
        self._threads.start()

    def stop(self) -> Deferred[None]:
        """End; fires when all that was begun has been done."""
        return self._committer.stop().addCallback(lambda _: self._threads.stop())

    def begin(self, accounts: tuple[Account, ...], id: str, size_hint: int = 0,
              within_quota: bool = True) -> Delivery:
        """As ``IMailboxStore.begin``.

        :raises PermanentFailure: when the name of an account cannot be that of a directory.
        """
        if not (id.isascii() and id.isalnum()):
            raise ValueError(f"not a message id: {id!r}")
        homes = tuple(self._tree.home(account) for account in accounts)
        quotas = {home: quota for home, quota in zip(homes, map(quota_of, accounts), strict=True)
                  if any(quota)}
        return Delivery(Message(id, homes), self._committer, self._buffers,
                        Reservation(self._quotas, quotas, within_quota) if quotas else None)

    def room(self, account: Account, octets: int) -> Deferred[None] | None:
        """As ``IMailboxStore.room``; raises as :meth:`begin` does."""
        home, quota = self._tree.home(account), quota_of(account)
        return self._quotas.check({home: quota}, octets) if any(quota) else None

    def open_maildrop(self, account: Account) -> Deferred[Maildrop]:
        """As ``IMailboxStore.open_maildrop``."""
        try:
            home = self._tree.home(account)
            # Where somebody looked before, the kernel has all that it takes to see whether anything
            # has changed: nothing that is worth a thread.
            unchanged = self._open_unchanged(home) if home in self._listings else None
        except MailFailure:
            return fail()
        except OSError:
            unchanged = None  # it will be found again, and explained
        if unchanged is not None:
            return succeed(unchanged)
        opened = self._threads.run(
            self._tree.within, home, self._open, home, unwanted=Maildrop.release)
        return opened.addErrback(explain, "open a maildrop", account=account.name)

    def _open_unchanged(self, home: bytes) -> Maildrop | None:
        lock = _locked(home)
        try:
            listing = self._listings.known(home)
        except BaseException:
            os.close(lock)
            raise
        if listing is None:
            os.close(lock)
            return None
        return self._maildrop(home, lock, listing)

    def _maildrop(self, home: bytes, lock: int, listing: Listing) -> Maildrop:
        return Maildrop(home, lock, listing, self._threads, self._committer.sync_removals,
                        self._shelf)

    def _open(self, home: bytes) -> Maildrop:
        lock = _locked(home)
        try:
            return self._maildrop(home, lock, self._listings.read(home))
        except BaseException:
            os.close(lock)
            raise

    def view(self, account: Account) -> Deferred[View]:
        """As ``IMailboxStore.view``."""
        try:
            home = self._tree.home(account)
        except MailFailure:
            return fail()
        viewed = self._threads.run(self._tree.within, home, self._view, home)
        return viewed.addErrback(explain, "look into a maildrop", account=account.name)

    def _view(self, home: bytes) -> View:
        return View(home, self._views.known(home) or self._views.read(home), self._threads)

    def _part(self, home: bytes, shared: Collection[Sequence[Namesake]]) -> bool:
        """As ``Namesakes.part``, for who has not the lock: nothing when it is not to be had."""
        try:
            lock = _locked(home)
        except (MaildropInUse, OSError):
            return False
        try:
            return self._namesakes.part(shared)
        finally:
            os.close(lock)

    def sweep(self) -> Deferred[int]:
        """As ``IMailboxStore.sweep``."""
        now = time.time()
        swept = self._threads.run(
            self._tree.sweep, now - 3600 * self._settings.sweep_hours,
            first_kept(self._settings.keep_deleted_days, now))

        def stopped(failure: Failure) -> int:
            failure.trap(TemporaryFailure)
            return 0

        return swept.addErrback(stopped)


@implementer(IView)
class View:
    """What *listing* lists of the maildir *home*."""

    log = Logger()

    def __init__(self, home: bytes, listing: Listing, threads: Threads) -> None:
        self.sizes = listing.sizes
        self.octets = listing.octets
        self._home = home
        self._listing = listing
        self._threads = threads

    def uidl(self, number: int) -> bytes:
        """As ``IView.uidl``; raises IndexError where there is no such message."""
        return self._listing.uidl(number)

    def uidls(self, first: int, end: int) -> list[bytes]:
        """As ``IView.uidls``."""
        return self._listing.uidls(first, end)

    def text(self, number: int) -> bytes | None:
        """As ``IView.text``."""
        if number < 1:
            raise IndexError(number)
        octets = self.sizes[number - 1]
        if octets > AT_ONCE:
            return None
        try:
            fd = self._listing.open(number)
        except OSError:
            return None  # read() will look elsewhere, or tell
        try:
            stored = at_once(fd, octets)
        finally:
            os.close(fd)
        if stored is None:
            return None
        # Most are sent as they are stored.
        unchanged = len(stored) == octets
        if unchanged or len(stored) == self._listing.stored(number):
            return canonical(stored, unchanged)
        return None

    def read(self, number: int, consumer: IConsumer, lines: int | None = None) -> Deferred[None]:
        """As ``IView.read``."""
        try:
            sent = self._send(self._listing.open(number), number, consumer, lines)
        except FileNotFoundError:
            relocated = self._threads.run(self._listing.relocate, number, unwanted=os.close)
            sent = relocated.addCallback(self._send, number, consumer, lines)
        except OSError:
            sent = fail()
        return sent.addErrback(self._not_sent, number)

    def _not_sent(self, failure: Failure, number: int) -> Failure:
        if failure.check(FileNotFoundError):
            raise MessageVanished("The message is gone: another program removed it.")
        return explain(failure, "read a message", maildir=self._home, number=number)

    def _send(self, fd: int, number: int, consumer: IConsumer,
              lines: int | None) -> Deferred[None]:
        blocks = FileBlocks(fd, self._threads)
        return Retrieval(blocks, consumer, lines, self.sizes[number - 1]).start()


@implementer(IMaildrop)
class Maildrop(View):
    """The locked maildir *home*; *lock* is the descriptor of its lock file.

    *sync_removals* makes durable that names are gone from a directory; it blocks.

    :param shelf: where what is deleted is kept for a time; None where it is not.
    """

    def __init__(self, home: bytes, lock: int, listing: Listing, threads: Threads,
                 sync_removals: Callable[[bytes, Collection[bytes]], None],
                 shelf: Shelf | None = None) -> None:
        super().__init__(home, listing, threads)
        self.lost: Deferred[None] = Deferred()  # flock(2) is not lost while we live
        self._lock: int | None = lock
        self._sync_removals = sync_removals
        self._shelf = shelf
        self._updating = False

    def update(self, deleted: Collection[int]) -> Deferred[None]:
        """As ``IMaildrop.update``; removes nothing when the lock has been given back already."""
        numbers = tuple(sorted(set(deleted)))
        for number in numbers:
            self.uidl(number)
        if not numbers:
            self.release()
            return succeed(None)
        if self._lock is None or self._updating:
            return fail(_some_not_removed(numbers))
        # Without a canceller: what QUIT began is done.
        outcome: Deferred[None] = Deferred()

        def updated(result: tuple[int, ...] | Failure) -> None:
            self._updating = False
            self.release()
            if isinstance(result, Failure):
                outcome.errback(result)
            elif result:
                outcome.errback(_some_not_removed(result))
            else:
                outcome.callback(None)

        self._updating = True
        self._threads.run(self._remove, numbers).addBoth(updated)
        return outcome

    def _remove(self, numbers: tuple[int, ...]) -> tuple[int, ...]:
        """Remove these messages for good; return the numbers of those that may remain."""
        remaining: list[int] = []
        removed: dict[bytes, dict[bytes, int]] = {}
        octets = messages = 0
        for number in self._kept(self._shelf, numbers, remaining) if self._shelf else numbers:
            try:
                directory, name, size = self._listing.remove(number)
            except FileNotFoundError:
                continue  # another program was faster
            except OSError as error:
                self._note(error)
                remaining.append(number)
                continue
            removed.setdefault(directory, {})[name] = number
            octets += size
            messages += 1
        for directory, gone in removed.items():
            try:
                self._sync_removals(directory, gone)
            except OSError as error:
                self._note(error)
                remaining += gone.values()
        if messages:
            maildirsize.record(self._home, -octets, -messages)
        return tuple(sorted(remaining))

    def _kept(self, shelf: Shelf, numbers: tuple[int, ...], remaining: list[int]) -> list[int]:
        """Keep these messages before they go; return those that may go now.

        What cannot be kept is added to *remaining*, and stays.
        """
        kept = []
        try:
            directory = shelf.prepare(self._home, time.time())
            for number in numbers:
                try:
                    self._listing.keep(number, directory, shelf.sync)
                except FileNotFoundError:
                    continue  # another program was faster
                except OSError as error:
                    self._note(error)
                    remaining.append(number)
                    continue
                kept.append(number)
            if shelf.sync:
                sync_directory(directory)
        except OSError as error:
            self._note(error)
            remaining[:] = numbers
            return []
        return kept

    def _note(self, error: OSError) -> None:
        self.log.error("cannot remove a message: {error} ({path!r})",
                       error=os.strerror(error.errno or 0), path=error.filename)

    def release(self) -> None:
        """As ``IMaildrop.release``; while :meth:`update` is at work, left to its end."""
        if self._lock is not None and not self._updating:
            lock, self._lock = self._lock, None
            with suppress(OSError):
                os.close(lock)


def _locked(home: bytes) -> int:
    """The descriptor of the lock of the maildir *home*, which is taken."""
    lock = os.open(home + b"/mailsvc.lock", _LOCK_FILE, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise MaildropInUse("The maildrop is in use by another session.") from None
    except BaseException:
        os.close(lock)
        raise
    return lock


def _some_not_removed(numbers: tuple[int, ...]) -> SomeNotRemoved:
    return SomeNotRemoved("Some deleted messages were not removed.", numbers)
