"""Keeps events of the log while the service runs: an observer, and a thread that writes.

The observer looks at each event and puts it aside, which takes about a microsecond; a thread writes
what has gathered each second.  So mail never waits for it.  When the disk does not keep up, or
nothing can be written, up to :data:`CAPACITY` events wait; those beyond are dropped and counted,
and the log says so once, and once more when it works again.

kill -9 takes the events of the last second, and what waited.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.logger import ILogObserver, LogEvent, Logger, globalLogPublisher
from zope.interface import implementer

from mailsvc import figures
from mailsvc.figures import Share
from mailsvc.names import DirectoryError
from mailsvc.tracing.archive import BATCH, Writer
from mailsvc.tracing.events import entry_of, is_kept

_log = Logger("mailsvc.tracing")

#: How many events wait at most; of one to ten KiB each.
CAPACITY = 10_000
#: How long events gather, and how long nothing is tried after it failed, seconds.
_GATHER, _PAUSE = 1.0, 5.0
#: How long the end of the service waits for the last of them, seconds.
_LAST = 5.0


@implementer(ILogObserver)
class Recorder:
    """Keeps the events of one process.

    :param make_writer: called in the thread, whose own the writer is.
    :param share: where is counted what is dropped.
    """

    def __init__(self, make_writer: Callable[[], Writer], reactor: Any,
                 share: Share | None = None) -> None:
        self._make_writer = make_writer
        self._reactor = reactor
        self._dropped = (share or Share()).count(figures.TRACE_DROPPED)
        self._lost = 0
        self._waiting: deque[LogEvent] = deque()
        self._something = threading.Event()
        self._stopping = threading.Event()
        # What hangs in a system call shall not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="trace", daemon=True)

    def __call__(self, event: LogEvent) -> None:
        # In whatever thread that logs something, so nothing here may need a lock.
        if not is_kept(event):
            return
        waiting = self._waiting
        if len(waiting) >= CAPACITY:
            self._lost += 1
            self._dropped.add()
            return
        waiting.append(event)
        if not self._something.is_set():
            self._something.set()

    def start(self) -> None:
        """Begin to keep what is logged from now on."""
        self._thread.start()
        globalLogPublisher.addObserver(self)

    def stop(self) -> Deferred[None]:
        """Keep nothing more; fires when what there is has been written, or cannot be."""
        if not self._thread.is_alive():
            return succeed(None)
        globalLogPublisher.removeObserver(self)
        ended: Deferred[None] = Deferred()

        def wait() -> None:
            self._thread.join(_LAST)
            self._reactor.callFromThread(ended.callback, None)

        self._stopping.set()
        self._something.set()
        threading.Thread(target=wait, name="trace-end", daemon=True).start()
        return ended

    # ---- in the thread ----

    def _work(self) -> None:
        writer, failing = self._make_writer(), False
        while True:
            self._something.wait()
            self._stopping.wait(_GATHER)
            self._something.clear()
            try:
                self._write_all(writer)
                if failing:
                    _log.info("messages are traced again")
                failing = False
            except DirectoryError as error:
                if not failing:
                    _log.warn("messages cannot be traced now, and are taken all the same: "
                              "{reason}; or set trace.enabled = false", reason=str(error))
                failing = True
                self._something.set()
                self._stopping.wait(_PAUSE)
            if self._stopping.is_set() and (failing or not self._waiting):
                break
        writer.close()

    def _write_all(self, writer: Writer) -> None:
        waiting = self._waiting
        while waiting:
            events = list(islice(waiting.copy(), BATCH))
            try:
                writer.write([entry_of(event) for event in events])
            except DirectoryError:
                raise  # they may wait
            except Exception:
                # One that is strange must not keep all others waiting for ever.
                _log.failure("{count} events cannot be traced", count=len(events))
                self._dropped.add(len(events))
            for _ in events:
                waiting.popleft()
            if self._lost and len(waiting) < CAPACITY // 2:
                _log.warn("{lost} events were not traced, since they could not be written as fast",
                          lost=self._lost)
                self._lost = 0
