"""Whether a message may come into mailboxes that have quotas.

It is asked at RCPT, of the size that the client has declared, if any; and again when the message is
whole, of the size that it has, unless it is for others as well (:func:`mailsvc.fanout.begin`).  In
between a mailbox may fill up, and a client may be wrong.  From then on the message counts as if it
were there (:class:`Reservation`): of many that are whole at the same moment no more are taken than
there is room for.

That holds within a process.  Messages that several processes, or other programs, take at the same
moment can go past a quota (:mod:`mailsvc.store.maildirsize`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from twisted.internet.defer import Deferred, succeed

from mailsvc.errors import MailboxFull, MailFailure, MessageTooLarge
from mailsvc.mail import Account
from mailsvc.store import maildirsize
from mailsvc.store.failures import explain
from mailsvc.store.maildirsize import NOTHING, Amount
from mailsvc.store.threads import Threads

Result = TypeVar("Result")


def quota_of(account: Account) -> Amount:
    """What the mailbox of *account* may hold."""
    return Amount(account.quota_octets, account.quota_messages)


def refusal(quota: Amount, octets: int) -> MailFailure:
    """Why a message of *octets* does not fit where there is *quota*."""
    if quota.octets and octets > quota.octets:
        # RFC 3463 §3.3: not X.2.2, for which deleting mail would help.
        return MessageTooLarge("The message is larger than the mailbox may become.")
    return MailboxFull("The mailbox is full; try again later.")


class Quotas:
    """Looks at maildirs, in *threads*.

    :ivar coming: what is on its way into each maildir that has a quota.
    """

    def __init__(self, threads: Threads) -> None:
        self.coming: dict[bytes, Amount] = {}
        self._threads = threads

    def check(self, quotas: Mapping[bytes, Amount], octets: int, own: Amount = NOTHING
              ) -> Deferred[None]:
        """Whether a message of *octets* (0 when unknown) fits beside what is there and coming.

        :param quotas: those of the maildirs that it is for.
        :param own: what of that is coming is the message itself.
        :returns: fails with MailboxFull, MessageTooLarge, or TemporaryFailure when it cannot be
            told.
        """
        coming = {home: Amount(*(all - part for all, part in zip(
            self.coming.get(home, NOTHING), own, strict=True))) for home in quotas}
        checked = self._threads.run(_check, quotas, octets, coming)
        return checked.addErrback(explain, "check a quota", maildirs=list(quotas))


class Reservation:
    """Room for one message in maildirs with *quotas*, of which *keeper* knows what is coming.

    :param strict: whether it is not taken where there is none.
    """

    def __init__(self, keeper: Quotas, quotas: Mapping[bytes, Amount], strict: bool = True) -> None:
        self._keeper = keeper
        self._quotas = quotas
        self._strict = strict
        self._taken = NOTHING

    def take(self, octets: int) -> Deferred[None]:
        """Take room for *octets*; fails as :meth:`Quotas.check`, with nothing taken."""
        checked = self._check(octets, alone=not any(map(self._keeper.coming.get, self._quotas)))
        # Before the answer: who asks next is to know.
        self._count(Amount(octets, 1))
        return checked.addErrback(self.give_back)

    def _check(self, octets: int, *, alone: bool) -> Deferred[None]:
        if not self._strict:
            return succeed(None)
        checked = self._keeper.check(self._quotas, octets, self._taken)
        if alone:
            return checked
        # What was coming may have come while the disk was looked at, and have counted twice.
        return checked.addErrback(
            lambda _: self._keeper.check(self._quotas, octets, self._taken))

    def give_back(self, result: Result) -> Result:
        """The message is there and counted, or will not be.  Passes *result* on."""
        self._count(NOTHING)
        return result

    def _count(self, amount: Amount) -> None:
        coming = self._keeper.coming
        for home in self._quotas:
            before = coming.pop(home, NOTHING)
            after = Amount(*(was - old + new for was, old, new in zip(
                before, self._taken, amount, strict=True)))
            if any(after):
                coming[home] = after
        self._taken = amount


def _check(quotas: Mapping[bytes, Amount], octets: int, coming: Mapping[bytes, Amount]) -> None:
    for home, quota in quotas.items():
        if not maildirsize.has_room(home, quota, octets, coming[home]):
            raise refusal(quota, octets)
