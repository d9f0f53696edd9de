"""Making many messages durable by one flush: the group commit.

One thread takes all messages that have arrived, and for them together:

1. writes each to a file in tmp/, without a sync;                       nothing is visible,
2. appends them to the journal: one write, one flush;                   nothing is visible,
3. links each to new/ in every account's maildir, and unlinks tmp/NAME; each has it or has not,
4. has the reactor told, once.

While the disk flushes, the next batch gathers; so the slower the disk, the larger the batches.
What a power loss takes from maildirs comes back from the journal (:mod:`mailsvc.store.recovery`),
and what it takes from the queue likewise (:mod:`mailsvc.queue.recovery`); what kill -9 interrupts
needs no replay, because the kernel has all that was acknowledged.

In the background a *checkpoint* makes durable what a full segment of the journal speaks of, or one
that is ``checkpoint_seconds`` old, and frees the segment; in order.  One that tells of removals
waits until the segments that other processes had in use by then are settled or free: a delivery may
stand in them, and must not be replayed without its removal.  A segment that waits, be it behind
another, is *settled*: what it delivers is durable, and nobody needs to wait for it.

Messages that went to a file as they arrived are synced one by one, as ``durability = "fsync"`` does
it; so are all while the journal fails or every segment waits: slower, and no less durable.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailsvc.errors import StorageFull
from mailsvc.journal import Journal, Orphan, Segment
from mailsvc.store import entries
from mailsvc.turn import at_end_of_turn

#: How much goes into one flush.
_BATCH = 2 * 1024 * 1024
#: How long a segment is waited for before messages are synced one by one, and how long the journal
#: is left alone after a failure.
_PATIENCE = 5.0
_REST = 10.0
#: How long until a checkpoint that failed, or that must wait for others, is tried again.
_AGAIN = 1.0
#: How often whoever waits for the committing thread looks whether it lives.
_LOOK = 1.0
#: So many places fit one record.
_PLACES = 10_000


class Message(Protocol):
    """A message on its way: of a maildir's store, or of the queue.

    :ivar blocks: what is in memory of it: all, or what follows what is in the file.
    :ivar octets: how many it has.
    :ivar path: its file, as long as that is not where it belongs; or None.
    :ivar homes: the directories that it is for.
    :ivar targets: its paths there, known when it has been prepared.
    """

    blocks: list[bytes]
    octets: int
    path: bytes | None
    homes: tuple[bytes, ...]
    targets: tuple[bytes, ...]

    def take(self) -> bytes:
        """What is in memory, which is handed over."""


class Files(Protocol):
    """Where messages go, step by step and without a sync; blocks, and raises OSError."""

    def prepare(self, message: Any) -> None:
        """Write it where nobody looks."""

    def place(self, message: Any) -> None:
        """Make it visible at all its targets, or nowhere."""

    def remove(self, message: Any) -> None:
        """Forget what has been prepared."""

    def checkpoint(self, homes: Collection[bytes], paths: Collection[bytes]) -> None:
        """Make durable what was put at *paths*, and what was removed from *homes*."""


class Each(Protocol):
    """What makes messages durable one by one."""

    def spool(self, message: Any) -> Deferred[None]:
        """Move what is in memory to the file."""

    def commit(self, message: Any) -> Deferred[None]:
        """Put it where it belongs, durably."""

    def discard(self, message: Any) -> Deferred[None]:
        """Remove the file, if there is one; never fails."""

    def sync_removals(self, directory: bytes, names: Collection[bytes]) -> None:
        """Make it durable that *names* are gone from *directory*; blocks."""


@dataclass(eq=False, slots=True)
class _Delivery:
    """A message that waits, and who waits for it."""

    message: Message
    outcome: Deferred[None]
    data: bytes = b""


@dataclass(eq=False, slots=True)
class _Removal:
    """Files that are gone, and who is told whether that has become durable."""

    homes: Collection[bytes]
    places: Sequence[bytes]
    told: Callable[[bool], object]
    recorded: bool = False


@dataclass(eq=False, slots=True)
class _Covered:
    """What a segment speaks of."""

    segment: Segment
    since: float
    homes: set[bytes] = field(default_factory=set)
    paths: list[bytes] = field(default_factory=list)
    removes: bool = False
    synced: bool = False
    settled: bool = False
    others: set[tuple[bytes, bytes]] = field(default_factory=set)


class GroupCommitter:
    """Commits messages below *root*, with a journal for all processes.

    :param each: does it one by one.
    :param files: does it without a sync.
    :param backlog: how many octets may wait.
    :param seconds: between checkpoints.
    """

    log = Logger()

    def __init__(
        self, root: Path, each: Each, files: Files, reactor: IReactorFromThreads,
        journal: Journal, *, backlog: int, seconds: float,
    ) -> None:
        self._root = os.fsencode(root)
        self._each = each
        self._reactor = reactor
        self._journal = journal
        self._most = backlog
        self._seconds = seconds
        self._files = files
        self._backlog = 0
        self._arrived: list[_Delivery] = []
        self._queue: SimpleQueue[_Delivery | _Removal | None] = SimpleQueue()
        self._covered: _Covered | None = None
        self._withdrawn: list[bytes] = []
        self._rest_until = 0.0
        self._full: SimpleQueue[_Covered | None] = SimpleQueue()
        self._committing = threading.Thread(target=self._run, name="commit", daemon=True)
        self._checkpointing = threading.Thread(
            target=self._checkpoints, name="checkpoint", daemon=True)
        self._open = False

    @property
    def backlog(self) -> tuple[int, int]:
        """Octets that wait for the journal, and how many of its segments are in use."""
        return self._backlog, self._journal.in_use

    def start(self, replay: Callable[[Sequence[Orphan]], object]) -> None:
        """Have *replay* do what is left of processes that are gone, and begin to work.

        :raises OSError: when that cannot be done, or there can be no journal.
        """
        self._journal.open(replay)
        self._open = True
        self._committing.start()
        self._checkpointing.start()

    def stop(self) -> Deferred[None]:
        """End; fires when all that was given is durable without the journal."""
        stopped: Deferred[None] = Deferred()
        if not self._open:
            stopped.callback(None)
            return stopped
        self._open = False
        self._hand_over()

        def end() -> None:
            self._queue.put(None)
            self._committing.join()
            self._full.put(None)
            self._checkpointing.join()
            self._journal.close()
            self._reactor.callFromThread(stopped.callback, None)

        threading.Thread(target=end, name="commit end", daemon=True).start()
        return stopped

    def spool(self, message: Message) -> Deferred[None]:
        """As ``Committer.spool``."""
        return self._each.spool(message)

    def discard(self, message: Message) -> Deferred[None]:
        """As ``Committer.discard``."""
        return self._each.discard(message)

    def commit(self, message: Message) -> Deferred[None]:
        """As ``Committer.commit``; fails with StorageFull when too much waits."""
        if (message.path is not None or message.octets > _BATCH or len(message.homes) > _PLACES
                or not self._open):
            return self._each.commit(message)
        if self._backlog + message.octets > self._most and self._backlog:
            return fail(StorageFull("Too much mail is being written; try again later."))
        self._backlog += message.octets
        # What one turn of the reactor brings is handed over together, and so is more for one flush.
        if not self._arrived:
            at_end_of_turn(self._reactor, self._hand_over)
        outcome: Deferred[None] = Deferred()
        self._arrived.append(_Delivery(message, outcome))
        return outcome

    def _hand_over(self) -> None:
        """Give the committing thread what has arrived."""
        arrived, self._arrived = self._arrived, []
        for each in arrived:
            self._queue.put(each)

    def removed(self, homes: Collection[bytes], places: Sequence[bytes],
                told: Callable[[bool], object]) -> None:
        """Make it durable that *places* are gone from *homes*.  Does not block.

        :param told: is told, in whichever thread, whether it is; if not, it is for the caller.
        """
        removal = _Removal(homes, places, told)
        if self._open:
            self._queue.put(removal)
        else:
            told(False)

    def sync_removals(self, directory: bytes, names: Collection[bytes]) -> None:
        """As ``Committer.sync_removals``."""
        home = os.path.dirname(directory)
        new = os.path.relpath(home, self._root) + b"/new/"
        places = [new + name.partition(b":")[0] for name in names]
        answers: SimpleQueue[bool] = SimpleQueue()
        parts = [places[at : at + _PLACES] for at in range(0, len(places), _PLACES)]
        for part in parts:
            self.removed((home,), part, answers.put)
        recorded = [self._answer(answers) for _ in parts]
        if not all(recorded):
            self._each.sync_removals(directory, names)

    def _answer(self, answers: SimpleQueue[bool]) -> bool:
        """The next of *answers*; False if nobody is left to give it."""
        while True:
            try:
                return answers.get(timeout=_LOOK)
            except Empty:
                if not self._committing.is_alive():
                    return False

    # ---- the committing thread ----

    def _run(self) -> None:
        going = True
        while going:
            batch, going = self._gather()
            if batch:
                try:
                    self._commit(batch)
                except BaseException:
                    # A bug: nobody may wait for ever.
                    self.log.failure("the group commit failed")
                    self._sync_each([each for each in batch if isinstance(each, _Delivery)])
                    self._release([each for each in batch if isinstance(each, _Removal)])
            covered = self._covered
            if covered is not None and (
                    not going or time.monotonic() - covered.since >= self._seconds):
                self._end_segment()

    def _gather(self) -> tuple[list[_Delivery | _Removal], bool]:
        """All that waits, or the first to come; and whether there may be more some day."""
        batch: list[_Delivery | _Removal] = []
        octets = 0
        covered = self._covered
        timeout = None if covered is None else max(
            0.0, covered.since + self._seconds - time.monotonic())
        try:
            each = self._queue.get(timeout=timeout)
            while each is not None:
                batch.append(each)
                if isinstance(each, _Delivery):
                    octets += each.message.octets
                if octets >= _BATCH:
                    return batch, True
                each = self._queue.get_nowait()
        except Empty:
            return batch, True
        return batch, False

    def _commit(self, batch: Sequence[_Delivery | _Removal]) -> None:
        told: list[tuple[_Delivery, Failure | None]] = []
        ready: list[_Delivery] = []
        removals: list[_Removal] = []
        withdrawn = len(self._withdrawn)
        records = list(self._withdrawn)
        start = len(self._root) + 1
        for each in batch:
            if isinstance(each, _Removal):
                records.append(entries.removed(each.places))
                removals.append(each)
                continue
            message = each.message
            try:
                each.data = message.take()
                message.blocks.append(each.data)
                self._files.prepare(message)
            except Exception:
                told.append((each, Failure()))
                continue
            ready.append(each)
            records.append(entries.delivered(
                [target[start:] for target in message.targets], each.data))
        if self._append(records, ready, removals):
            del self._withdrawn[:withdrawn]
        else:
            self._sync_each(ready)
            ready = []
        for each in ready:
            try:
                self._files.place(each.message)
            except Exception:
                told.append((each, Failure()))
                # The journal must not bring it back; that the client tries again is bad enough.
                self._withdrawn.append(entries.removed(
                    [target[start:] for target in each.message.targets]))
            else:
                told.append((each, None))
        self._release(removals)
        if told:
            self._reactor.callFromThread(self._tell, told)

    def _append(
        self, records: list[bytes], ready: list[_Delivery], removals: list[_Removal]
    ) -> bool:
        """Whether all of it is durable in the journal."""
        if not records:
            return True
        if time.monotonic() < self._rest_until:
            return False
        if not self._journal.fits(sum(map(len, records)) + 16 * len(records)):
            self._end_segment()
        try:
            if self._covered is None and not self._journal.wait(_PATIENCE):
                self.log.warn("every segment of the journal waits for its checkpoint; messages are "
                              "synced one by one meanwhile")
                self._rest_until = time.monotonic() + _REST
                return False
            segment = self._journal.append(records)
        except OSError as error:
            self.log.error(
                "the journal fails: {error} ({path}); messages are synced one by one for "
                "{seconds:g} seconds", error=error.strerror, seconds=_REST,
                path=os.fsdecode(error.filename or b""))
            self._rest_until = time.monotonic() + _REST
            self._end_segment()
            return False
        if self._rest_until:
            self._rest_until = 0.0
            self.log.info("the journal works again")
        if self._covered is None:
            self._covered = _Covered(segment, time.monotonic())
        for each in ready:
            self._covered.homes.update(each.message.homes)
            self._covered.paths += each.message.targets
        for removal in removals:
            removal.recorded = self._covered.removes = True
            self._covered.homes.update(removal.homes)
        return True

    def _sync_each(self, deliveries: Sequence[_Delivery]) -> None:
        """Have each synced by itself, from the beginning."""
        for each in deliveries:
            self._files.remove(each.message)
            if each.data:
                each.message.blocks = [each.data]
        self._reactor.callFromThread(self._instead, deliveries)

    def _end_segment(self) -> None:
        segment, covered = self._journal.end(), self._covered
        self._covered = None
        if segment is not None:
            self._full.put(covered or _Covered(segment, time.monotonic()))

    def _release(self, removals: Sequence[_Removal]) -> None:
        for each in removals:
            try:
                each.told(each.recorded)
            except Exception:
                self.log.failure("what was removed may be there again after a power loss")

    # ---- the reactor's thread ----

    def _tell(self, told: Sequence[tuple[_Delivery, Failure | None]]) -> None:
        for each, failure in told:
            self._backlog -= each.message.octets
            if failure is None:
                each.outcome.callback(None)
            else:
                each.outcome.errback(failure)

    def _instead(self, deliveries: Sequence[_Delivery]) -> None:
        """Sync each message."""
        for each in deliveries:
            self._each.commit(each.message).addBoth(self._done, each)

    def _done(self, result: Any, each: _Delivery) -> None:
        self._tell([(each, result if isinstance(result, Failure) else None)])

    # ---- the checkpointing thread ----

    def _checkpoints(self) -> None:
        pending: list[_Covered] = []
        going = True
        while going:
            try:
                covered = self._full.get(timeout=_AGAIN if pending else None)
            except Empty:
                pass
            else:
                going = covered is not None
                if covered is not None:
                    pending.append(covered)
            try:
                self._advance(pending)
            except OSError as error:
                self.log.error("cannot make durable what the journal holds: {error} ({path}); it "
                               "will be tried again", error=error.strerror,
                               path=os.fsdecode(error.filename or b""))

    def _advance(self, pending: list[_Covered]) -> None:
        """Do for the segments *pending* what can be done now, and forget those that are free.

        At the end, what cannot be freed is left to whoever starts next.
        """
        for each in pending:
            if not each.synced:
                self._files.checkpoint(each.homes, each.paths)
                if each.removes:
                    each.others = self._journal.others()
                each.synced = True
        # In order: a removal may be one of what an earlier segment delivers.
        while pending:
            first = pending[0]
            if first.others:
                first.others &= self._journal.others()
            if first.others:
                break
            self._journal.free(first.segment)
            del pending[0]
        # Whatever its own turn waits for: two processes may wait for each other's segments.
        for each in pending:
            if not each.settled:
                self._journal.settle(each.segment)
                each.settled = True
