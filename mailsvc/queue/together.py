"""File work that comes piece by piece, and is done for all that has come meanwhile at once.

Handing work to a thread and back costs more than reading a small file, and the sync of a directory
as much for one entry as for a hundred.  So what comes in one turn of the reactor is done in one
go, and while some is being done the rest gathers for the next: in ever larger groups when there is
much to do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from mailsvc.store.threads import Threads

Piece = TypeVar("Piece")
Result = TypeVar("Result")

#: Pieces in one go, at most.
_MOST = 64


class Together(Generic[Piece, Result]):
    """Work of one kind.

    :param do_all: does it for several pieces, in a thread; the result of each, which may be an
        exception.  What it raises counts for all of them.
    :param goes: how many may be under way.
    """

    def __init__(self, threads: Threads,
                 do_all: Callable[[Sequence[Piece]], Sequence[Result | Exception]],
                 goes: int = 1) -> None:
        self._threads = threads
        self._do_all = do_all
        self._goes = goes
        self._running = 0
        self._is_due = False
        self._waiting: deque[tuple[Piece, Deferred[Result]]] = deque()

    def do(self, piece: Piece) -> Deferred[Result]:
        """Do *piece* in the next go."""
        done: Deferred[Result] = Deferred()
        self._waiting.append((piece, done))
        if not self._is_due:
            self._is_due = True
            self._threads.after_this(self._begin)
        return done

    def _begin(self) -> None:
        self._is_due = False
        while self._waiting and self._running < self._goes:
            group = [self._waiting.popleft() for _ in range(min(_MOST, len(self._waiting)))]
            self._running += 1
            self._threads.run(self._do_all, [piece for piece, _ in group]).addBoth(
                self._done, group)

    def _done(self, results: Any, group: list[tuple[Piece, Deferred[Result]]]) -> None:
        self._running -= 1
        if isinstance(results, Failure):
            results = [results.value] * len(group)
        for (_, done), result in zip(group, results, strict=True):
            if isinstance(result, Exception):
                done.errback(result)
            else:
                done.callback(result)
        self._begin()
