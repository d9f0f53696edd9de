"""Measures, in each process that serves, what nobody comes by when it happens.

Once a second: how late the reactor is.  Every :data:`OFTEN` seconds: queue, bans, journal,
certificates, descriptors; and in a thread, since a disk may not answer, how much room there is and
whether a file can be written where mail is kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailsvc import figures
from mailsvc.figures import Share
from mailsvc.gathering import open_descriptors

_log = Logger("mailsvc")

#: How often is measured what changes slowly, seconds.
OFTEN = 5.0
_TICK = 1.0

#: Sets figures to what is so now.
Look = Callable[[], object]


class Observer(Service):
    """Measures for *share*.

    :param looks: what else is looked at every :data:`OFTEN` seconds, in the reactor's thread.
    :param mail: where mail is kept, or None when that is in memory.
    :param data: where everything else is.
    """

    def __init__(self, share: Share, reactor: Any, looks: Iterable[Look], mail: Path | None,
                 data: Path) -> None:
        self._reactor = reactor
        self._looks = (*looks, self._count_descriptors)
        self._mail = mail
        self._lag = share.spread(figures.LAG)
        self._descriptors = share.level(figures.DESCRIPTORS)
        self._written = share.level(figures.WRITTEN)
        self._places = [
            (path, [share.level(figure, name)
                    for figure in (figures.DISK_FREE, figures.DISK_SIZE, figures.DISK_FILES)])
            for name, path in (("mail", mail), ("data", data)) if path is not None]
        self._due = self._next = 0.0
        self._timer: IDelayedCall | None = None
        self._asking = self._failing = False

    def startService(self) -> None:
        """Measure everything once, and go on."""
        super().startService()
        self._ask()
        self._look()
        self._wait()

    def stopService(self) -> None:
        super().stopService()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    def _wait(self) -> None:
        # Not a LoopingCall, which leaves out what it is too late for.
        self._due = time.monotonic() + _TICK
        self._timer = self._reactor.callLater(_TICK, self._tick)

    def _tick(self) -> None:
        now = time.monotonic()
        self._lag.observe(max(0, round(1e9 * (now - self._due))))
        if now >= self._next:
            self._look()
            if not self._asking:
                # Whoever still waits for the disk has not been answered: no second one shall wait.
                self._asking = True
                asked: Deferred[None] = deferToThreadPool(
                    self._reactor, self._reactor.getThreadPool(), self._ask)
                asked.addErrback(self._bug).addBoth(self._asked)
        if self.running:
            self._wait()

    def _asked(self, _: object) -> None:
        self._asking = False

    def _bug(self, failure: Failure) -> None:
        _log.failure("the disk cannot be looked at", failure)

    def _look(self) -> None:
        self._next = time.monotonic() + OFTEN - _TICK / 2
        for look in self._looks:
            try:
                look()
            except Exception:
                # A failure would end all measuring.
                _log.failure("something cannot be measured")

    def _count_descriptors(self) -> None:
        self._descriptors.set(open_descriptors())

    # ---- in a thread ----

    def _ask(self) -> None:
        for path, (free, size, files) in self._places:
            with suppress(OSError):
                system = os.statvfs(path)
                # 0 would be a figure that is not known, and an alert on a full disk would end.
                free.set(max(1, system.f_bavail * system.f_frsize))
                size.set(system.f_blocks * system.f_frsize)
                # Some file systems, such as Btrfs, know no limit, and tell 0 of both.
                files.set(max(1, system.f_favail) if system.f_files else 0)
        try:
            if self._mail is not None:
                _try_writing(self._mail)
        except OSError as error:
            if not self._failing:
                _log.error("nothing can be written in {path}: {reason}; the service is not ready",
                           path=str(self._mail), reason=error.strerror)
            self._failing = True
            self._written.set(0)
        else:
            if self._failing:
                _log.info("{path} can be written again", path=str(self._mail))
            self._failing = False
            self._written.set(round(figures.MICRO * time.monotonic()))


def _try_writing(directory: Path) -> None:
    """Write and remove a file there; raises OSError."""
    path = directory / f".trial.{os.getpid()}"
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        os.write(file, bytes(4096))
    finally:
        os.close(file)
        os.unlink(path)
