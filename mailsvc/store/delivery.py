"""A message on its way to disk: into maildirs, or into the queue.

Small ones are kept in memory until they are complete, and are written with others; larger ones go
to their file as they arrive.  So do all while too much is in memory: what thousands of slow clients
have sent of their messages must not add up to more than the process may have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure
from zope.interface import implementer

from mailsvc.interfaces import IDelivery
from mailsvc.store.failures import explain
from mailsvc.store.quota import Reservation

#: What is not worth a file yet, however much is in memory, in octets.
_LEAST = 4096


@dataclass(slots=True)
class Buffers:
    """What is in memory of all the messages on their way.

    :ivar each: how many octets may be of one message.
    :ivar most: how many may be of all, before more goes to files.
    :ivar octets: how many are.
    """

    each: int
    most: int
    octets: int = 0

    def hold(self, unwritten: int) -> bool:
        """Whether a message of which so much is in memory may stay there."""
        return unwritten <= (self.each if self.octets <= self.most else min(self.each, _LEAST))


@implementer(IDelivery)
class Delivery:
    """One message; at most twice *buffers.each* octets of it are in memory.

    :param message: what gathers its blocks, and *committer* what writes them to disk: the store's,
        or the queue's.
    :param reservation: takes room for it in mailboxes that have quotas, when it is whole.
    """

    def __init__(self, message: Any, committer: Any, buffers: Buffers,
                 reservation: Reservation | None = None) -> None:
        self._message = message
        self._committer = committer
        self._buffers = buffers
        self._reservation = reservation
        self._unwritten = 0
        self._held = 0  # of *buffers*: what is unwritten, and what is being written
        self._spooling = False  # a thread is writing
        self._room: Deferred[None] | None = None  # what write() told the sender to wait for
        self._failure: BaseException | None = None
        self._over = False  # commit or abort was called
        self._when_spooled: Callable[[], object] | None = None

    def write(self, block: bytes) -> Deferred[None] | None:
        """As ``IDelivery.write``."""
        if self._over or self._failure is not None:
            return None
        self._message.add(block)
        octets = len(block)
        self._unwritten += octets
        self._held += octets
        self._buffers.octets += octets
        if self._buffers.hold(self._unwritten):
            return None
        if not self._spooling:
            self._spool()
            return None
        if self._room is None:
            self._room = Deferred()
        return self._room

    def commit(self) -> Deferred[None]:
        """As ``IDelivery.commit``."""
        if self._over:
            raise RuntimeError("this delivery is over")
        self._over = True
        if not self._spooling:
            return self._commit()
        outcome: Deferred[None] = Deferred()
        self._when_spooled = lambda: self._commit().addCallbacks(outcome.callback, outcome.errback)
        return outcome

    def _commit(self) -> Deferred[None]:
        if self._failure is not None:
            return fail(self._failure)
        if self._reservation is None:
            return self._put()
        room = self._reservation.take(self._message.octets)
        return room.addCallbacks(self._put_reserved, self._refused)

    def _put_reserved(self, _: None) -> Deferred[None]:
        assert self._reservation is not None
        put = self._put()
        put.addBoth(self._reservation.give_back)
        return put

    def _refused(self, failure: Failure) -> Failure:
        self._forget()
        self._discard()
        return failure

    def _put(self) -> Deferred[None]:
        self._unwritten = 0
        committed: Deferred[None] = self._committer.commit(self._message)
        return committed.addCallbacks(self._let_go, self._not_committed)

    def _not_committed(self, failure: Failure) -> Failure:
        return explain(self._let_go(failure), "deliver a message", id=self._message.id)

    def abort(self) -> None:
        """As ``IDelivery.abort``."""
        if not self._over:
            self._over = True
            self._forget()
            if self._spooling:
                self._when_spooled = self._discard
            else:
                self._discard()

    def _discard(self) -> None:
        # What a stopping store leaves in tmp/ is swept.
        self._committer.discard(self._message).addErrback(lambda _: None)

    def _spool(self) -> None:
        self._spooling = True
        self._unwritten = 0
        spooled = self._committer.spool(self._message)
        spooled.addErrback(explain, "write a message", id=self._message.id)
        spooled.addErrback(self._failed)
        spooled.addCallback(self._spooled)

    def _failed(self, failure: Failure) -> None:
        self._failure = failure.value
        self._forget()

    def _spooled(self, _: None) -> None:
        self._spooling = False
        self._let_go(None)
        room, self._room = self._room, None
        if self._when_spooled is not None:
            self._when_spooled()
        elif room is not None and self._failure is None:
            self._spool()
        if room is not None:
            if self._failure is None:
                room.callback(None)
            else:
                room.errback(self._failure)

    def _forget(self) -> None:
        """Drop what is unwritten."""
        self._message.blocks.clear()
        self._buffers.octets -= self._unwritten
        self._held -= self._unwritten
        self._unwritten = 0

    def _let_go(self, result: Any) -> Any:
        """What was being written is in memory no more; pass *result* on."""
        self._buffers.octets -= self._held - self._unwritten
        self._held = self._unwritten
        return result
