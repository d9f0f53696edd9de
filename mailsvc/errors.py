"""Failures with an enhanced mail system status code (RFC 3463), knowing no protocol.

A store, directory or policy raises :class:`TemporaryFailure` (try again later: 4yz, ``[SYS/TEMP]``)
or :class:`PermanentFailure` (do not: 5yz, ``[SYS/PERM]``).  ``smtp/replies.py`` and
``pop3/session.py`` turn them into replies, one function each.  Any other exception is a bug.
"""

from __future__ import annotations

from typing import NamedTuple


class EnhancedStatus(NamedTuple):
    """An enhanced status code, ``class.subject.detail`` (RFC 3463 §2)."""

    class_: int
    subject: int
    detail: int

    def __str__(self) -> str:
        return f"{self.class_}.{self.subject}.{self.detail}"


class MailFailure(Exception):
    """A mail operation that could not be done, for a reason a peer may be told.

    :ivar status: the enhanced status code; its class agrees with the exception's class.
    :ivar text: one line for the peer: what happened and what to do, without secrets or paths.
    """

    #: The class digit of the subclass, and its default subject and detail.
    default = EnhancedStatus(4, 3, 0)

    def __init__(self, text: str, status: EnhancedStatus | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.status = self.default if status is None else status


class TemporaryFailure(MailFailure):
    """It may work later."""

    default = EnhancedStatus(4, 3, 0)


class PermanentFailure(MailFailure):
    """It will not work by trying again."""

    default = EnhancedStatus(5, 3, 0)


class StorageFull(TemporaryFailure):
    """The disk, not the mailbox, has no room (ENOSPC, EDQUOT)."""

    default = EnhancedStatus(4, 3, 1)


class MailboxFull(TemporaryFailure):
    """An account's quota would be exceeded."""

    default = EnhancedStatus(4, 2, 2)


class MessageTooLarge(PermanentFailure):
    """The message would exceed an account's quota even if nothing else were there."""

    default = EnhancedStatus(5, 2, 3)


class MaildropInUse(TemporaryFailure):
    """Another session holds the maildrop's exclusive lock (RFC 1939 §8, RFC 2449 ``[IN-USE]``)."""

    default = EnhancedStatus(4, 2, 1)


class NothingWaits(TemporaryFailure):
    """No mail waits for the domains that were asked for (ATRN: 453, RFC 2645 §7)."""

    default = EnhancedStatus(4, 0, 0)


class TurnInUse(TemporaryFailure):
    """Another connection fetches the mail of these domains (ATRN: 450, RFC 2645 §7)."""

    default = EnhancedStatus(4, 7, 0)


class LoginTooSoon(TemporaryFailure):
    """The account logged in less than LOGIN-DELAY seconds ago (RFC 2449 §6.5)."""

    default = EnhancedStatus(4, 7, 0)


class MessageVanished(PermanentFailure):
    """A message of an open maildrop is no longer in the store: another program removed it."""

    default = EnhancedStatus(5, 2, 0)


class SomeNotRemoved(TemporaryFailure):
    """QUIT could not remove every message marked as deleted (RFC 1939 §6).

    :ivar numbers: the message numbers that remain.
    """

    default = EnhancedStatus(4, 2, 0)

    def __init__(self, text: str, numbers: tuple[int, ...]) -> None:
        super().__init__(text)
        self.numbers = numbers


class UnknownMailbox(PermanentFailure):
    """The domain is ours and the local-part is not."""

    default = EnhancedStatus(5, 1, 1)


class MailboxMoved(PermanentFailure):
    """The mailbox is elsewhere now (551, RFC 5321 §3.4).

    :ivar forward_path: where it is, without angle brackets.
    """

    default = EnhancedStatus(5, 1, 6)

    def __init__(self, text: str, forward_path: str) -> None:
        super().__init__(text)
        self.forward_path = forward_path


class RelayDenied(PermanentFailure):
    """The domain is not ours, and the client may not send through us."""

    default = EnhancedStatus(5, 7, 1)


class RoutingLoop(PermanentFailure):
    """Aliases that lead back to themselves, or too deep (RFC 5321 §6.3)."""

    default = EnhancedStatus(5, 4, 6)
