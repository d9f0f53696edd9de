"""Stores without a disk, for trying things out and for tests.

:class:`MemoryStore` keeps the contract of ``mailsvc.interfaces`` except for what its name says:
the mail is gone with the process, nothing is locked against other processes, and a whole message is
held in memory.

:class:`FailingStore` is a MemoryStore that fails at a chosen point, so that what is built on a
store can be shown every failure.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IConsumer
from zope.interface import implementer

from mailsvc.errors import MaildropInUse, MailFailure, MessageVanished, SomeNotRemoved
from mailsvc.interfaces import IDelivery, IMailboxStore, IMaildrop, IView
from mailsvc.mail import Account
from mailsvc.store.maildirsize import Amount, fits
from mailsvc.store.quota import quota_of, refusal
from mailsvc.store.retrieval import AT_ONCE, MemoryBlocks, Retrieval
from mailsvc.store.text import CanonicalText, canonical


@dataclass(slots=True)
class Mailbox:
    """What is kept for an account.

    :ivar messages: unique-id -> message, in order of delivery.
    :ivar locked: whether a maildrop is open.
    :ivar delivered: how many messages there ever were.
    """

    messages: dict[bytes, bytes] = field(default_factory=dict)
    locked: bool = False
    delivered: int = 0


@implementer(IMailboxStore)
class MemoryStore:
    """Mail in memory.

    :ivar mailboxes: account name -> :class:`Mailbox`.
    """

    def __init__(self) -> None:
        self.mailboxes: defaultdict[str, Mailbox] = defaultdict(Mailbox)

    def start(self) -> None:
        """Nothing is needed."""

    def stop(self) -> Deferred[None]:
        """Nothing is under way, ever."""
        return succeed(None)

    def begin(self, accounts: tuple[Account, ...], id: str, size_hint: int = 0,
              within_quota: bool = True) -> MemoryDelivery:
        """As ``IMailboxStore.begin``."""
        def check(octets: int) -> None:
            for account in accounts:
                self.room(account, octets)

        mailboxes = [self.mailboxes[account.name] for account in accounts]
        return MemoryDelivery(mailboxes, id, *([check] if within_quota else []))

    def room(self, account: Account, octets: int) -> Deferred[None] | None:
        """As ``IMailboxStore.room``; always answers at once."""
        quota = quota_of(account)
        if any(quota):
            messages = self.mailboxes[account.name].messages
            used = Amount(sum(map(len, messages.values())), len(messages))
            if not fits(used, quota, octets):
                raise refusal(quota, octets)
        return None

    def open_maildrop(self, account: Account) -> Deferred[MemoryMaildrop]:
        """As ``IMailboxStore.open_maildrop``."""
        mailbox = self.mailboxes[account.name]
        if mailbox.locked:
            return fail(MaildropInUse("The maildrop is in use by another session."))
        mailbox.locked = True
        return succeed(MemoryMaildrop(mailbox))

    def view(self, account: Account) -> Deferred[MemoryView]:
        """As ``IMailboxStore.view``."""
        return succeed(MemoryView(self.mailboxes[account.name]))

    def sweep(self) -> Deferred[int]:
        """As ``IMailboxStore.sweep``: nothing is ever left behind."""
        return succeed(0)


@implementer(IDelivery)
class MemoryDelivery:
    """One message on its way to *mailboxes*.

    :param check: raises a MailFailure if a message of so many octets does not fit there.
    """

    def __init__(self, mailboxes: list[Mailbox], id: str,
                 check: Callable[[int], object] = lambda octets: None) -> None:
        self._mailboxes = mailboxes
        self._id = id
        self._check = check
        self._blocks: list[bytes] = []
        self._over = False

    def write(self, block: bytes) -> Deferred[None] | None:
        """As ``IDelivery.write``."""
        self._blocks.append(block)
        return None

    def commit(self) -> Deferred[None]:
        """As ``IDelivery.commit``."""
        if self._over:
            raise RuntimeError("this delivery is over")
        self._over = True
        message = b"".join(self._blocks)
        try:
            self._check(len(message))
        except MailFailure:
            return fail()
        for mailbox in self._mailboxes:
            mailbox.delivered += 1
            mailbox.messages[f"{self._id}.{mailbox.delivered}".encode()] = message
        return succeed(None)

    def abort(self) -> None:
        """As ``IDelivery.abort``."""
        self._over = True
        self._blocks.clear()


@implementer(IView)
class MemoryView:
    """What was in a mailbox at one moment."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._ids = list(mailbox.messages)
        self.sizes = array("Q", map(_sent_octets, mailbox.messages.values()))
        self.octets = sum(self.sizes)

    def uidl(self, number: int) -> bytes:
        """As ``IView.uidl``; raises IndexError where there is no such message."""
        if number < 1:
            raise IndexError(number)
        return self._ids[number - 1]

    def uidls(self, first: int, end: int) -> list[bytes]:
        """As ``IView.uidls``."""
        return self._ids[first - 1 : end - 1]

    def text(self, number: int) -> bytes | None:
        """As ``IView.text``."""
        message = self._mailbox.messages.get(self.uidl(number))
        return None if message is None or len(message) > AT_ONCE else canonical(message)

    def read(self, number: int, consumer: IConsumer, lines: int | None = None) -> Deferred[None]:
        """As ``IView.read``."""
        message = self._mailbox.messages.get(self.uidl(number))
        if message is None:
            return fail(MessageVanished("The message is gone: another program removed it."))
        return Retrieval(MemoryBlocks(message), consumer, lines).start()


@implementer(IMaildrop)
class MemoryMaildrop(MemoryView):
    """An open mailbox."""

    def __init__(self, mailbox: Mailbox) -> None:
        super().__init__(mailbox)
        self._open = True
        self.lost: Deferred[None] = Deferred()

    def update(self, deleted: Collection[int]) -> Deferred[None]:
        """As ``IMaildrop.update``; removes nothing when the lock has been given back already."""
        gone = {number: self.uidl(number) for number in sorted(set(deleted))}
        if gone and not self._open:
            return fail(SomeNotRemoved("Some deleted messages were not removed.", tuple(gone)))
        for uidl in gone.values():
            self._mailbox.messages.pop(uidl, None)
        self.release()
        return succeed(None)

    def release(self) -> None:
        """As ``IMaildrop.release``."""
        if self._open:
            self._open = False
            self._mailbox.locked = False


def _sent_octets(message: bytes) -> int:
    text = CanonicalText()
    text.feed(message)
    text.end()
    return text.octets


#: Where a FailingStore can fail.
POINTS = ("room", "begin", "write", "commit", "open", "read", "update")


class FailingStore(MemoryStore):
    """Fails with *failure* at *point*, one of :data:`POINTS`; until then it works.

    At "room", "begin" and "write" it raises; at the others the Deferred fails, as does that of
    commit after a failed write.  A maildrop whose update fails has removed nothing and is released.
    """

    def __init__(self, failure: Exception, point: str) -> None:
        if point not in POINTS:
            raise ValueError(f"no such point: {point!r}")
        super().__init__()
        self.failure = failure
        self.point = point

    def room(self, account: Account, octets: int) -> Deferred[None] | None:
        if self.point == "room":
            raise self.failure
        return super().room(account, octets)

    def begin(self, accounts: tuple[Account, ...], id: str, size_hint: int = 0,
              within_quota: bool = True) -> MemoryDelivery:
        if self.point == "begin":
            raise self.failure
        return _FailingDelivery(self, [self.mailboxes[account.name] for account in accounts], id)

    def open_maildrop(self, account: Account) -> Deferred[MemoryMaildrop]:
        if self.point == "open":
            return fail(self.failure)
        return super().open_maildrop(account).addCallback(
            lambda maildrop: _FailingMaildrop(self, maildrop._mailbox))


class _FailingDelivery(MemoryDelivery):
    def __init__(self, store: FailingStore, mailboxes: list[Mailbox], id: str) -> None:
        super().__init__(mailboxes, id)
        self._store = store
        self._failed = store.point == "commit"

    def write(self, block: bytes) -> Deferred[None] | None:
        if self._store.point == "write":
            self._failed = True
            raise self._store.failure
        return super().write(block)

    def commit(self) -> Deferred[None]:
        return fail(self._store.failure) if self._failed else super().commit()


class _FailingMaildrop(MemoryMaildrop):
    def __init__(self, store: FailingStore, mailbox: Mailbox) -> None:
        super().__init__(mailbox)
        self._store = store

    def text(self, number: int) -> bytes | None:
        return None if self._store.point == "read" else super().text(number)

    def read(self, number: int, consumer: IConsumer, lines: int | None = None) -> Deferred[None]:
        if self._store.point == "read":
            return fail(self._store.failure)
        return super().read(number, consumer, lines)

    def update(self, deleted: Collection[int]) -> Deferred[None]:
        if self._store.point == "update":
            self.release()
            return fail(self._store.failure)
        return super().update(deleted)
