"""What the signals that stop a process do: once, however often they are sent.

Whoever ends a program often says so several times at once: a terminal signals all processes of the
group, ``timeout`` the one that it started and then its group, people press Ctrl-C twice.  So the
first signal stops, and what follows it within :data:`SAME` seconds is taken for the same wish.
After that another SIGINT is somebody's who does not want to wait for ``service.grace_seconds``, and
cuts them short; no other signal does.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

from twisted.logger import Logger

_log = Logger("mailsvc")

#: For so many seconds a signal is the one before it once more.
SAME = 1.0


class StopSignals:
    """What SIGINT, SIGTERM and *others* do to this process once :meth:`serve` was called.

    By ``with`` they belong to it before that too: the first raises KeyboardInterrupt in the main
    thread.  When the block ends after one of them came, they do nothing any more, not even while
    the interpreter ends; otherwise they do what they did before.

    One that is ignored already stays so, as in what ``nohup`` started; but never SIGTERM.

    :ivar hurried: whether somebody did not want to wait.
    """

    def __init__(self, *others: signal.Signals) -> None:
        self._numbers = (signal.SIGINT, signal.SIGTERM, *others)
        self._since: float | None = None
        self._starting = False
        self._reactor: Any = None
        self._hurry: Callable[[], object] | None = None
        self._before: dict[signal.Signals, Any] = {}
        self.hurried = False

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in self._numbers}
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        told = self._since is not None
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if told else handler)

    def _take(self) -> None:
        for number in self._numbers:
            if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._told)

    def serve(self, reactor: Any, hurry: Callable[[], object]) -> None:
        """From now on the first signal stops *reactor*, be it that it does not run yet.

        :param hurry: called, in the reactor, to cut short what its end waits for.
        """
        self._starting = True
        # Not first when the reactor runs: workers may serve before it does.
        self._take()
        # Twisted's own handlers, which these replace, are there only then.
        reactor.callWhenRunning(self._serve, reactor, hurry)
        # It may have been stopped by something else.
        reactor.addSystemEventTrigger("before", "shutdown", self._begin)

    def _serve(self, reactor: Any, hurry: Callable[[], object]) -> None:
        self._reactor, self._hurry = reactor, hurry
        self._take()
        if self._since is not None:
            reactor.stop()

    def _begin(self) -> None:
        if self._since is None:
            self._since = time.monotonic()

    def _told(self, number: int, frame: FrameType | None) -> None:
        first = self._since is None
        self._begin()
        assert self._since is not None
        if not first and (number != signal.SIGINT or time.monotonic() - self._since < SAME):
            return
        reactor = self._reactor
        if reactor is None:
            if not (self._starting and first):
                raise KeyboardInterrupt
        elif first:
            # These also keep, for twistd, by which signal to end.
            stop = reactor.sigInt if number == signal.SIGINT else reactor.sigTerm
            stop(number, frame)
        elif reactor.running and not self.hurried:
            self.hurried = True
            reactor.callFromThread(self._stop_at_once)

    def _stop_at_once(self) -> None:
        assert self._hurry is not None
        _log.warn("interrupted again: stopping at once")
        self._hurry()
