"""The queue of one process: takes messages in, and sends if no other process does.

Any number of processes may share the directory.  The one that holds its lock sends; the others
tell it of new messages by a datagram, and try for the lock every few seconds, so that when it ends,
in whatever way, another goes on.  A datagram that is lost costs some seconds: the sender looks into
the directory as well.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger
from zope.interface import implementer

from mailsvc.interfaces import IQueue
from mailsvc.mail import Envelope
from mailsvc.queue.control import ControlFactory
from mailsvc.queue.message import queued
from mailsvc.queue.reports import Reports
from mailsvc.queue.runner import Runner
from mailsvc.queue.spool import Draft, Ownership, Spool
from mailsvc.store.maildir import MaildirDelivery
from mailsvc.store.threads import Threads

_log = Logger("mailsvc.queue")

#: How often the lock is tried for, and the directory looked into, seconds.
_LOOK_EVERY = 5.0

_SMALL_OCTETS = 131_072


@implementer(IQueue)
class Queue(Service):
    """The queue in *spool*.

    :param make_runner: makes the part that sends, when this process may.
    :param threads: where its files are written and read; it stops them.
    :param grace_seconds: how long what is being sent may take to end when the service stops.
    """

    def __init__(self, spool: Spool, threads: Threads, reactor: Any,
                 grace_seconds: float = 5) -> None:
        self.spool = spool
        self.threads = threads
        self._reactor = reactor
        self._grace = grace_seconds
        self._writer = _Writer(spool, threads)
        self._ownership = Ownership(spool.root)
        self.make_runner: Callable[[], Runner] | None = None
        self.runner: Runner | None = None
        self.reports: Reports | None = None
        self._ports: list[Any] = []
        self._directory = -1
        self._look: IDelayedCall | None = None

    # ---- into the queue ----

    def begin(self, envelope: Envelope) -> QueueDelivery:
        """As ``IQueue.begin``."""
        draft = Draft(queued(envelope, self._reactor.seconds()))
        return QueueDelivery(draft, self._writer, _SMALL_OCTETS, self._arrived)

    def delivered(self, envelope: Envelope, header: bytes) -> Deferred[None]:
        """As ``IQueue.delivered``."""
        assert self.reports is not None
        told = Deferred.fromCoroutine(self.reports.delivered(envelope, header))
        return told.addErrback(lambda failure: _log.error(
            "{id}: its sender cannot be told of the delivery: {reason}", id=envelope.id,
            reason=failure.getErrorMessage()))

    def _arrived(self, id: str) -> None:
        if self.runner is not None:
            self.runner.take([id])
        else:
            self._tell(id)

    def _tell(self, id: str) -> None:
        """Wake the process that sends, if it hears."""
        # A path of the process's own is short enough for any directory (unix(7): 108 octets).
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wake:
            wake.setblocking(False)
            wake.sendto(id.encode("ascii"), f"/proc/self/fd/{self._directory}/wake")

    # ---- who sends ----

    def startService(self) -> None:
        """Make the directories, and send if nobody else does.

        :raises OSError: the directory cannot be used.
        """
        self.spool.make()
        self.threads.start()
        self._directory = os.open(self.spool.root, os.O_RDONLY | os.O_DIRECTORY)
        super().startService()
        self._try()

    def _try(self) -> None:
        self._look = None
        if not self.running:
            return
        if self.runner is None and self._ownership.acquire():
            self._own()
        elif self.runner is not None:
            self.threads.run(self.spool.ids).addCallbacks(self.runner.missed, lambda _: None)
        self._look = self._reactor.callLater(_LOOK_EVERY, self._try)

    def _own(self) -> None:
        assert self.make_runner is not None
        self.runner = self.make_runner()
        path = f"/proc/self/fd/{self._directory}/wake"
        with suppress(FileNotFoundError):
            os.unlink(path)
        control = f"/proc/self/fd/{self._directory}/control"
        with suppress(FileNotFoundError):
            os.unlink(control)
        self._ports = [
            self._reactor.listenUNIXDatagram(path, _Wake(self.runner), mode=0o600),
            self._reactor.listenUNIX(control, ControlFactory(self.runner), mode=0o600)]
        self.threads.run(self.spool.sweep).addErrback(
            lambda failure: _log.failure("cannot sweep the queue", failure))
        self.runner.start().addErrback(
            lambda failure: _log.failure("cannot read the queue", failure))

    def stopService(self) -> Deferred[Any]:
        """End; fires when what was under way is on disk, and the lock is another's to take."""
        super().stopService()
        if self._look is not None and self._look.active():
            self._look.cancel()
        if self.runner is None:
            return self._stopped()
        ended = self.runner.stop()
        # What does not end by itself is cut off, and then left: its state is on disk.
        ended.addTimeout(self._grace + 1, self._reactor)
        cut = self._reactor.callLater(self._grace, self.runner.abort)

        def over(_: object) -> Deferred[Any]:
            if cut.active():
                cut.cancel()
            return self._stopped()

        return ended.addBoth(over)

    def _stopped(self) -> Deferred[Any]:
        self.runner = None
        ports, self._ports = self._ports, []
        closing = [maybeDeferred(port.stopListening) for port in ports]
        closing.append(self.threads.stop())

        def release(_: object) -> None:
            self._ownership.release()
            if self._directory >= 0:
                os.close(self._directory)
                self._directory = -1

        return DeferredList(closing, consumeErrors=True).addCallback(release)


class _Wake(DatagramProtocol):
    """Hears of new messages."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        id = datagram.decode("ascii", "replace")
        if id.isalnum():
            self._runner.take([id])


class _Writer:
    """What a delivery writes its message to disk with, in threads."""

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


class QueueDelivery(MaildirDelivery):
    """One message on its way into the queue.

    Its first block is our trace header.  Of that Return-Path is left out: it is for the host that
    delivers in the end (RFC 5321 §4.4).
    """

    def __init__(self, draft: Draft, writer: _Writer, most: int,
                 arrived: Callable[[str], None]) -> None:
        super().__init__(draft, writer, most)
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
