"""One message on its way to several places at once: maildirs here, and the queue."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from zope.interface import implementer

from mailsvc.interfaces import IDelivery, IMailboxStore, IQueue
from mailsvc.mail import NULL_PATH, Envelope


def begin(store: IMailboxStore, queue: IQueue | None, envelope: Envelope) -> IDelivery:
    """Open a delivery of one message to all that *envelope* is for, as ``IMailboxStore.begin``.

    What is held for later is for the queue alone.
    """
    accounts, remotes = envelope.accounts(), envelope.remotes()
    if envelope.release:
        assert queue is not None, "a message is to be held without a queue"
        return queue.begin(envelope)
    # A mailbox that has become full must not keep a message from others; and of a report nobody
    # could be told that it did not arrive.
    within_quota = len(accounts) == 1 and not remotes and envelope.reverse_path != NULL_PATH
    if not remotes:
        return store.begin(accounts, envelope.id, envelope.size, within_quota)
    assert queue is not None, "a remote recipient was accepted without a queue"
    if not accounts:
        return queue.begin(envelope)
    return _Fanout(store.begin(accounts, envelope.id, envelope.size, within_quota),
                   queue.begin(envelope))


@implementer(IDelivery)
class _Fanout:
    """A delivery to the store and one to the queue, as one."""

    def __init__(self, local: Any, remote: Any) -> None:
        self._local = local
        self._remote = remote

    def write(self, block: bytes) -> Deferred[Any] | None:
        """As ``IDelivery.write``."""
        pauses = [pause for pause in (self._local.write(block), self._remote.write(block))
                  if pause is not None]
        return gatherResults(pauses, consumeErrors=True) if pauses else None

    def commit(self) -> Deferred[None]:
        """As ``IDelivery.commit``.

        Here first, for the queue is the less likely to fail: what it takes is on its way at once.
        If it does, the client sends again, and who has a maildir gets a copy (RFC 1047).
        """
        return self._local.commit().addCallbacks(lambda _: self._remote.commit(), self._failed)

    def _failed(self, failure: Any) -> Any:
        self._remote.abort()
        return failure

    def abort(self) -> None:
        """As ``IDelivery.abort``."""
        self._local.abort()
        self._remote.abort()
