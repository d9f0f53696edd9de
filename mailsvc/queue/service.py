"""The queue of one process: takes messages in, and sends if no other process does.

Any number of processes may share the directory.  The one that holds its lock sends; the others
tell it of new messages and help it over a connection (:mod:`mailsvc.queue.wake`), and when that
breaks, because it has ended, in whatever way, they try for the lock, and one of them goes on.
Nothing depends on that: the lock is tried for every few seconds too, and the directory looked into.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from zope.interface import implementer

from mailsvc import figures
from mailsvc.figures import Share
from mailsvc.interfaces import IQueue
from mailsvc.journal import Journal
from mailsvc.mail import Envelope
from mailsvc.queue import control, turns
from mailsvc.queue.attempts import Attempts
from mailsvc.queue.claims import Ownership
from mailsvc.queue.control import answers
from mailsvc.queue.message import queued
from mailsvc.queue.recovery import recover
from mailsvc.queue.reports import Reports
from mailsvc.queue.runner import Runner
from mailsvc.queue.spool import Draft, Spool
from mailsvc.queue.turns import Turns
from mailsvc.queue.wake import Teller, WakeFactory
from mailsvc.store.delivery import Buffers, Delivery
from mailsvc.store.group import GroupCommitter
from mailsvc.store.threads import Threads
from mailsvc.store.tree import sync_directory

_log = Logger("mailsvc.queue")

#: How often the same is warned of, seconds.
_WARN_EVERY = 86_400
#: How often the lock is tried for while another process has it and hears us, seconds; and while
#: nobody does.
_LOOK_EVERY, _SEEK_EVERY = 30.0, 0.1
#: How often who sends looks into the directory, seconds: soon after it began, when others may have
#: told of a message to the one before it, and ever less often.
_COUNT_FIRST, _COUNT_EVERY = 0.5, 60.0
#: How often what waits for a domain is tried because somebody asks, seconds.
_HURRY_EVERY = 60.0
#: How long what is being sent may take to end when another generation of processes takes over.
_HAND_OVER = 30.0

#: How much of one message, and of all, is kept in memory on its way in, octets.
_SMALL_OCTETS, _MEMORY_OCTETS = 131_072, 67_108_864
#: How long what happened to messages is kept in the journal as well, seconds.
_CHECKPOINT_EVERY = 5.0


@implementer(IQueue)
class Queue(Service):
    """The queue in *spool*.

    :ivar make_runner: makes the part that sends, when this process may.
    :ivar make_attempts: makes what tries messages for another process that sends; None where this
        one does not help.
    :ivar joined: whether it takes part, besides taking messages in; else :meth:`join` is to come.
    :param threads: where its files are written and read; it stops them.
    :param grace_seconds: how long what is being sent may take to end when the service stops.
    :param share: where is told what the queue holds.
    :param old_seconds: from which age on a message that waits is warned of; 0 for never.
    """

    def __init__(self, spool: Spool, threads: Threads, reactor: Any,
                 grace_seconds: float = 5, share: Share | None = None,
                 old_seconds: float = 0) -> None:
        self.spool = spool
        self.threads = threads
        self._reactor = reactor
        self._grace = grace_seconds
        self._old_seconds = old_seconds
        #: When the next warning of what is old may come.
        self._next_warning = 0.0
        self._committer = GroupCommitter(
            spool.root, Writer(spool, threads), spool, reactor, Journal(spool.journal),
            backlog=_MEMORY_OCTETS, seconds=_CHECKPOINT_EVERY)
        self._buffers = Buffers(_SMALL_OCTETS, _MEMORY_OCTETS)
        self._ownership = Ownership(spool.root)
        self.make_runner: Callable[[], Runner] | None = None
        self.make_attempts: Callable[[], Attempts] | None = None
        self.runner: Runner | None = None
        self.reports: Reports | None = None
        self._ports: list[Any] = []
        self._directory = -1
        self._look: IDelayedCall | None = None
        self._teller = Teller(reactor, self._lost)
        self._wake: WakeFactory | None = None
        self._turns: Turns | None = None
        self._pause = _COUNT_FIRST
        #: When what waits for a domain was last asked for.
        self._hurried: dict[str, float] = {}
        share = share or Share()
        self._levels = [*(share.level(figures.QUEUE, state)
                          for (state,) in figures.QUEUE.values), share.level(figures.QUEUE_AGE)]
        #: Whether the runner knows what was there when it began.
        self._has_begun = False
        #: Whether this process sends when it may.
        self._willing = True
        self.joined = True

    # ---- into the queue ----

    def begin(self, envelope: Envelope) -> QueueDelivery:
        """As ``IQueue.begin``."""
        draft = Draft(queued(envelope, self._reactor.seconds()))
        return QueueDelivery(draft, self._committer, self._buffers, self._arrived)

    def delivered(self, envelope: Envelope, header: bytes) -> Deferred[None]:
        """As ``IQueue.delivered``."""
        assert self.reports is not None
        told = Deferred.fromCoroutine(self.reports.delivered(envelope, header))
        return told.addErrback(lambda failure: _log.error(
            "{id}: its sender cannot be told of the delivery: {reason}", id=envelope.id,
            reason=failure.getErrorMessage()))

    def hurry(self, domain: str) -> None:
        """As ``IQueue.hurry``: once a minute for each domain, as it reads the whole queue."""
        now = self._reactor.seconds()
        if now < self._hurried.get(domain, 0) + _HURRY_EVERY:
            return
        self._hurried[domain] = now
        self.threads.run(
            control.request, self.spool.root, "retry", [f"to:@{domain}"], "", now).addErrback(
                lambda failure: _log.error("what waits for {domain} cannot be sent now: {reason}",
                                           domain=domain, reason=failure.getErrorMessage()))

    def turn(self, domains: Collection[str], connection: str, account: str,
             protocol: Protocol) -> Deferred[None]:
        """As ``IQueue.turn``."""
        return turns.ask(self._reactor, self._socket("turn"), domains, connection, account,
                         protocol)

    def let_go(self) -> None:
        """The service is stopping: who fetches mail gets no further message."""
        if self._turns is not None:
            self._turns.stop()

    def _socket(self, name: str) -> str:
        # By way of a descriptor: the path of a Unix socket has at most 107 octets.
        return f"/proc/self/fd/{self._directory}/{name}"

    def _arrived(self, id: str) -> None:
        if self.runner is not None:
            self.runner.take([id])
        else:
            self._teller.tell(id)

    def look(self) -> None:
        """Tell the figures what the queue holds, if it is this process that knows."""
        standing: tuple[int, int, int, float] = (0, 0, 0, 0.0)
        if self.runner is not None:
            now = self._reactor.seconds()
            standing = self.runner.standing(now)
            self._warn_of_age(self.runner.oldest(now), now)
        *counts, age = standing
        for level, value in zip(self._levels, (*counts, round(figures.MICRO * age)), strict=True):
            level.set(value)

    def _warn_of_age(self, oldest: tuple[str, float] | None, now: float) -> None:
        if not self._old_seconds or oldest is None or oldest[1] < self._old_seconds:
            self._next_warning = 0.0
        elif now >= self._next_warning:
            self._next_warning = now + _WARN_EVERY
            id, age = oldest
            _log.warn("{id} has waited for {hours:.1f} hours, longer than all else in the queue; "
                      "`mailsvc queue list` shows why", event="queue.old", id=id,
                      seconds=round(age), hours=age / 3600)

    # ---- who sends ----

    def startService(self) -> None:
        """Make the directories, have there what a power loss took, and send if nobody else does.

        :raises OSError: the directory cannot be used.
        """
        self.spool.make()
        self._committer.start(partial(recover, self.spool))
        self.spool.removed = self._committer.removed
        self.threads.start()
        self._directory = os.open(self.spool.root, os.O_RDONLY | os.O_DIRECTORY)
        self._teller.make_attempts = self.make_attempts
        super().startService()
        self._try()

    def join(self) -> None:
        """Send, or help whoever does, from now on."""
        if not self.joined:
            self.joined = True
            self._try()

    def _try(self) -> None:
        self._look = None
        if not (self.running and self.joined):
            return
        pause = _LOOK_EVERY if self._teller.connected else _SEEK_EVERY
        if self.runner is not None:
            self._count()
            pause = self._pause = min(2 * self._pause, _COUNT_EVERY)
        elif self._willing and self._ownership.acquire():
            self._own()
            pause = self._pause = _COUNT_FIRST
        elif not self._teller.connected:
            self._teller.connect(self._socket("wake"))
        self._look = self._reactor.callLater(pause, self._try)

    def _lost(self) -> None:
        """The process that sent is gone."""
        if self._look is not None and self._look.active():
            self._look.cancel()
        self._try()

    def _count(self) -> None:
        """Look for messages that nobody told of."""
        runner = self.runner
        if runner is None or not (self.running and self._has_begun):
            return

        def compare() -> tuple[list[str], list[str]] | None:
            ids = self.spool.ids_if_changed()
            return None if ids is None else runner.compare(ids)

        def compared(found: tuple[list[str], list[str]] | None) -> None:
            if found is not None and runner is self.runner:
                runner.missed(*found)

        self.threads.run(compare).addCallbacks(compared, lambda _: None)

    def _own(self) -> None:
        assert self.make_runner is not None
        runner = self.runner = self.make_runner()
        self._teller.close()
        self._teller.forget()  # it is in the directory
        wake, control, turn = map(self._socket, ("wake", "control", "turn"))
        for path in wake, control, turn:
            with suppress(FileNotFoundError):
                os.unlink(path)
        self._turns = Turns(runner, self.spool, self.threads, self._reactor)
        self._wake = WakeFactory(runner, self._count, self._reactor)
        self._ports = [
            self._reactor.listenUNIX(wake, self._wake, mode=0o600),
            self._reactor.listenUNIX(control, answers(runner), mode=0o600),
            self._reactor.listenUNIX(turn, self._turns, mode=0o600)]
        self._has_begun = False
        runner.start().addErrback(
            lambda failure: _log.failure("cannot read the queue", failure)).addCallback(
                self._begun).addErrback(
                    lambda failure: _log.failure("cannot sweep the queue", failure))

    def _begun(self, _: object) -> Deferred[int]:
        self._has_begun = True
        return self.threads.run(self.spool.sweep)

    def hand_over(self) -> None:
        """Take messages, but send no more: leave that to another process."""
        self._willing = False
        helping = self._teller.leave()
        if self.runner is not None:
            self._ended(self.runner, _HAND_OVER).addBoth(lambda _: self._let_go()).addBoth(
                lambda _: self._lost())
        elif helping is not None:
            self._ended(helping, _HAND_OVER)

    def stopService(self) -> Deferred[Any]:
        """End; fires when what was under way is on disk, and the lock is another's to take."""
        super().stopService()
        if self._look is not None and self._look.active():
            self._look.cancel()
        helping = self._teller.leave()
        sending = self.runner if helping is None else helping
        ended = succeed(None) if sending is None else self._ended(sending, self._grace)
        ended.addBoth(lambda _: self._teller.close())
        ended.addBoth(lambda _: self.spool.receipts.close())
        # Before the threads, which have to do what the journal could not.
        ended.addBoth(lambda _: self._committer.stop())
        ended.addBoth(lambda _: self.threads.stop())
        return ended.addBoth(lambda _: self._let_go(last=True))

    def cut_off(self) -> None:
        """Let no connection finish any more, be it that :meth:`stopService` waits or will."""
        self._grace = 0
        if self.runner is not None:
            self.runner.abort()

    def _ended(self, sending: Runner | Attempts, grace: float) -> Deferred[Any]:
        """Fires when *sending* has ended: what does not by itself is cut off after *grace*."""
        self.let_go()
        ended = sending.stop()
        # Its state is on disk, should even that not help.
        ended.addTimeout(grace + 1, self._reactor)
        cut = self._reactor.callLater(grace, sending.abort)

        def over(result: object) -> object:
            if cut.active():
                cut.cancel()
            return result

        return ended.addBoth(over)

    def _let_go(self, *, last: bool = False) -> Deferred[Any]:
        """Let another process send."""
        self.runner = self._turns = None
        self.look()
        ports, self._ports = self._ports, []
        closing = [maybeDeferred(port.stopListening) for port in ports]

        def release(_: object) -> None:
            if self._wake is not None:
                # They look for whoever sends next, who finds on disk what they told of until here.
                self._wake.hang_up()
            self._ownership.release()
            if last and self._directory >= 0:
                os.close(self._directory)
                self._directory = -1

        return DeferredList(closing, consumeErrors=True).addCallback(release)


class Writer:
    """Writes messages to disk one by one, in threads."""

    def __init__(self, spool: Spool, threads: Threads) -> None:
        self._spool = spool
        self._threads = threads

    def spool(self, draft: Draft) -> Deferred[None]:
        return self._threads.run(self._spool.write, draft, draft.take())

    def commit(self, draft: Draft) -> Deferred[None]:
        return self._threads.run(self._spool.commit, draft)

    def discard(self, draft: Draft) -> Deferred[None]:
        if draft.path is None:
            return succeed(None)
        return self._threads.run(self._spool.discard, draft)

    def sync_removals(self, directory: bytes, names: Collection[bytes]) -> None:
        sync_directory(directory)


class QueueDelivery(Delivery):
    """One message on its way into the queue.

    Its first block is our trace header.  Of that Return-Path is left out: it is for the host that
    delivers in the end (RFC 5321 §4.4).
    """

    def __init__(self, draft: Draft, committer: GroupCommitter, buffers: Buffers,
                 arrived: Callable[[str], None]) -> None:
        super().__init__(draft, committer, buffers)
        self._first = True
        self._arrived = arrived

    def write(self, block: bytes) -> Deferred[None] | None:
        """As ``IDelivery.write``."""
        if self._first:
            self._first = False
            if block.startswith(b"Return-Path:"):
                block = block[block.index(b"\r\n") + 2:]
        return super().write(block) if block else None

    def commit(self) -> Deferred[None]:
        """As ``IDelivery.commit``."""
        id = self._message.id

        def arrived(_: None) -> None:
            self._arrived(id)

        return super().commit().addCallback(arrived)
