"""A worker, as its supervisor sees it: a process that it forked, and a socket to that."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from socket import socket
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from mailsvc.holding import Holding
from mailsvc.listeners import CannotStart
from mailsvc.worker import BEGIN, READY, Task, fork

#: How soon, in seconds, to look again for a child that has let go of its sockets and not ended yet.
_LOOK_AGAIN = 0.01


@implementer(IReadDescriptor)
class Child:
    """A worker from the fork until it was waited for.

    :param reactor: the supervisor's, which may run.
    :param strangers: what the worker shall not have of the supervisor's.
    :ivar place: where it stands among the others.
    :ivar since: when it began to serve, by time.monotonic(), or None.
    :ivar leaving: whether it shall end.
    :ivar cause: once it has ended, why.
    :ivar spent: and how much processor time it took, in seconds.
    :raises OSError: there can be no more processes or files.
    """

    since: float | None = None
    leaving = False
    cause = ""
    spent = 0.0
    _said = b""
    _serves: Callable[[Child], None]
    _ended: Callable[[Child], None]

    def __init__(self, task: Task, reactor: Any, strangers: Iterable[Holding | socket]) -> None:
        self._reactor = reactor
        self.place = task.place
        self.pid, self.control = fork(task, reactor, strangers)

    def wait(self) -> None:
        """Wait, without the reactor, until it serves.

        :raises CannotStart: it does not.
        """
        while not self._said.startswith(READY):
            data = self.control.recv(65_536)
            if not data:
                raise CannotStart(self._problem or "mailsvc cannot start: a worker died")
            self._said += data
        self.since = time.monotonic()

    def watch(self, serves: Callable[[Child], None], ended: Callable[[Child], None]) -> None:
        """From now on call *serves* when it does, if it did not yet, and *ended* when it has."""
        self._serves, self._ended = serves, ended
        self.control.setblocking(False)
        self._reactor.addReader(self)

    def begin(self) -> None:
        """Let it take connections."""
        with suppress(OSError):  # it has just ended
            self.control.send(BEGIN)

    def tell(self, number: int) -> None:
        """Send it the signal of that *number*."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it now, and wait for that; it is not watched."""
        self.control.close()
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    @property
    def _problem(self) -> str:
        """What kept it from serving, in its own words."""
        return self._said.removeprefix(READY).decode("utf-8", "replace")

    def _reap(self) -> None:
        try:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            self.spent = usage.ru_utime + usage.ru_stime
        except ChildProcessError:
            # Whoever started us ignores SIGCHLD, and so do we: nobody is to be waited for.
            pid, status = self.pid, 0
        if not pid:
            # Its sockets are closed a moment before it can be waited for.
            self._reactor.callLater(_LOOK_AGAIN, self._reap)
            return
        code = os.waitstatus_to_exitcode(status)
        self.cause = self._problem or (f"signal {-code}" if code < 0 else f"status {code}")
        self._ended(self)

    # ---- IReadDescriptor ----

    def fileno(self) -> int:
        return self.control.fileno()

    def logPrefix(self) -> str:
        return f"worker {self.pid}"

    def doRead(self) -> None:
        try:
            data = self.control.recv(65_536)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        self._said += data
        if not data:
            self._reactor.removeReader(self)
            self.control.close()
            self._reap()
        elif self.since is None and self._said.startswith(READY):
            self.since = time.monotonic()
            self._serves(self)

    def connectionLost(self, reason: Failure) -> None:
        pass
