"""How much may go on at once, how much may wait, and how long anybody waits for an answer.

:class:`Turns` is for work that does not block, :class:`Threads` for work that does.  Both answer
in time or fail with :class:`mailsvc.errors.TemporaryFailure`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, DeferredSemaphore, fail
from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from mailsvc.errors import TemporaryFailure

T = TypeVar("T")


def _busy() -> TemporaryFailure:
    return TemporaryFailure("Too many logins at once; try again later")


class Turns:
    """Lets so many coroutines run at a time.

    :param at_once: how many run.
    :param waiting: how many more may wait.
    :param seconds: how long each may take, the wait for its turn counted.
    """

    def __init__(self, at_once: int, waiting: int, seconds: float) -> None:
        self._semaphore = DeferredSemaphore(at_once)
        self._most = at_once + waiting
        self._seconds = seconds
        self._held = 0

    def run(self, work: Callable[[], Coroutine[Deferred[Any], Any, T]]) -> Deferred[T]:
        """What *work* returns, when it is its turn; it is cancelled when that is too late."""
        from twisted.internet import reactor  # noqa: PLC0415 - see Threads

        if self._held >= self._most:
            return fail(_busy())
        self._held += 1

        def release(result: Any) -> Any:
            self._held -= 1
            return result

        answer = self._semaphore.run(lambda: Deferred.fromCoroutine(work()))
        answer.addBoth(release)
        return answer.addTimeout(self._seconds, reactor, _late)


class Threads:
    """A pool of threads, begun when it is first needed and ended with the reactor.

    :param name: what the threads are called.
    :param threads: how many there are.
    :param waiting: how many jobs more may wait.
    :param seconds: how long an answer may take, the wait for a thread counted.  A job that takes
        longer goes on and is counted, for a thread cannot be ended; one that did not begin by then
        never will.
    :param end: called in the end, when no job runs.
    """

    log = Logger()

    def __init__(self, name: str, threads: int, waiting: int, seconds: float,
                 end: Callable[[], None] = lambda: None) -> None:
        self._name = name
        self._threads = threads
        self._most = threads + waiting
        self._seconds = seconds
        self._end = end
        self._jobs = 0
        self._pool: ThreadPool | None = None

    def run(self, job: Callable[..., T], *arguments: Any) -> Deferred[T]:
        """What *job* returns, or raises, in a thread."""
        # twistd may yet have to choose one, or to become a daemon without its threads, when a
        # checker is made.
        from twisted.internet import reactor  # noqa: PLC0415

        if self._jobs >= self._most:
            return fail(_busy())
        if self._pool is None:
            self._begin(reactor)
        assert self._pool is not None
        self._jobs += 1
        answer: Deferred[T] = Deferred()

        def unless_late() -> T | None:
            return None if answer.called else job(*arguments)

        def finished(result: Any) -> None:
            self._jobs -= 1
            if not answer.called:
                answer.callback(result)

        self._pool.callInThreadWithCallback(
            lambda _, result: reactor.callFromThread(finished, result),  # type: ignore[attr-defined]
            unless_late)
        return answer.addTimeout(self._seconds, reactor, _late)

    def stop(self) -> None:
        """End the threads once their jobs are done; blocks until then."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop()
            self._end()

    def _begin(self, reactor: Any) -> None:
        self._pool = ThreadPool(0, self._threads, self._name)
        self._pool.start()
        reactor.addSystemEventTrigger("during", "shutdown", self.stop)


def _late(result: Any, seconds: float) -> Any:
    raise TemporaryFailure("Logins cannot be checked now; try again later")
