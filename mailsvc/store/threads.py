"""Where blocking file work is done: a bounded pool of threads that a store owns.

A thread pool of its own, rather than the reactor's, so that slow look-ups elsewhere cannot hold up
deliveries, and so that stopping the store waits for exactly its own work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from mailsvc.errors import TemporaryFailure

Result = TypeVar("Result")


class Threads:
    """At most *most* threads; work beyond that waits in order.  Work may be given before start."""

    log = Logger()

    def __init__(self, reactor: Any, most: int, name: str) -> None:
        self._reactor = reactor
        self._pool = ThreadPool(0, most, name)
        self._running = 0
        self._stopped = False
        self._waiting: list[Deferred[None]] = []

    def start(self) -> None:
        """Begin to work."""
        self._pool.start()

    def stop(self) -> Deferred[None]:
        """End; fires when everything given so far has been done, and what that led to.

        Work given before :meth:`start` is waited for as well: start first.
        """
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        self._settle()
        return waiting

    def run(
        self,
        function: Callable[..., Result],
        *args: Any,
        unwanted: Callable[[Result], object] | None = None,
    ) -> Deferred[Result]:
        """Call *function* in a thread.

        Cancelling the Deferred abandons the result, not the call: *unwanted* gets the result then,
        in the reactor's thread, to free what it holds.
        """
        if self._stopped:
            return fail(TemporaryFailure("The service is stopping; try again later."))
        outcome: Deferred[Result] = Deferred(lambda _: None)

        def finish(success: bool, result: Any) -> None:
            if not outcome.called:
                (outcome.callback if success else outcome.errback)(result)
            elif not success:
                self.log.failure("abandoned work failed", failure=result)
            elif unwanted is not None:
                unwanted(result)
            # Only now: what waits for this result may have given more work.
            self._running -= 1
            self._settle()

        self._running += 1
        self._pool.callInThreadWithCallback(
            lambda success, result: self._reactor.callFromThread(finish, success, result),
            function, *args)
        return outcome

    def after_this(self, function: Callable[[], object]) -> None:
        """Call *function*, which gives work, in the reactor's thread at the end of its turn."""
        self._running += 1

        def call() -> None:
            self._running -= 1
            function()
            self._settle()

        self._reactor.callLater(0, call)

    def _settle(self) -> None:
        if self._running or not self._waiting:
            return
        if not self._stopped:
            self._stopped = True
            self._pool.stop()
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)
