"""The one process's worth of queue that sends: what is due when, and who tries it.

Of a message that waits only its id and time are in memory.  When it is due it is tried
(:mod:`mailsvc.queue.attempts`): in this process, and when there is much to do in others that help
as well, who tell what came of it (:mod:`mailsvc.queue.wake`).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from twisted.internet.defer import Deferred, DeferredList, DeferredLock, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailsvc.mail import time_of
from mailsvc.queue import filter
from mailsvc.queue.attempts import After, Attempts, Fetching
from mailsvc.queue.message import Unreadable
from mailsvc.queue.recovery import settle
from mailsvc.queue.spool import Spool
from mailsvc.store.threads import Threads

_log = Logger("mailsvc.queue")

#: How many messages are worked on at once; each has a file open.
_ACTIVE = 500
#: How many more of those that are more urgent than most.
_RESERVE = 50

#: Of how many messages at once is read how urgent they are.
_READ = 1000

#: How long a process that does not speak any more may take to end, in seconds.
_DYING = 0.5

#: How many messages are changed at once by what an operator asks for, and how long is waited for
#: whoever tries them to let go, in seconds.
_CHANGED, _PATIENCE = 100, 5.0

#: How many this process has to be at work on before others help: what is little goes over the
#: connections that are open already.
_ALONE = 20


class Helper(Protocol):
    """Another process that tries messages for this one: what of Attempts is needed for that."""

    def __len__(self) -> int: ...

    def begin(self, id: str) -> Deferred[After]: ...

    def withdraw(self, id: str, refused: Callable[[], object]) -> None: ...

    def stop(self) -> object: ...

    def abort(self) -> None: ...


@dataclass(slots=True)
class _Found:
    """What is in a spool.

    :ivar due: when each message is to be tried next; *heap*, the same by time.
    :ivar ids: their ids; *oldest*, the first of them in time, or "".
    """

    due: dict[str, float]
    heap: list[tuple[float, str]]
    ids: set[str]
    oldest: str


def _found(spool: Spool) -> _Found:
    """Look into *spool*: for a thread."""
    _settle(spool)
    due = spool.due()
    heap: list[tuple[float, str]] = []
    # Step by step: to sort them would keep all other threads from running for as long as it takes.
    for id, when in due.items():
        heapq.heappush(heap, (when, id))
    return _Found(due, heap, set(due), min(due, default=""))


def _settle(spool: Spool, patience: float = 0) -> None:
    """What processes have noted that are gone: for a thread."""
    try:
        settle(spool, patience)
    except OSError as problem:
        _log.error("what processes that are gone had sent may be sent again: {problem}",
                   problem=problem)


class Runner:
    """Sends what is in *spool*.

    :param attempts: of this process.
    :param senders: how many processes may send at once, this one counted.
    """

    def __init__(self, spool: Spool, threads: Threads, attempts: Attempts, clock: Any,
                 senders: int = 1) -> None:
        self._spool = spool
        self._threads = threads
        self.attempts = attempts
        self._clock = clock
        self._most_helpers = senders - 1
        self._helpers: list[Helper] = []
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        #: What is due and waits for room: the most urgent first, and of these the oldest.
        self._ready: list[tuple[int, float, str]] = []
        #: The priorities that are known, but for 0; and of which messages it is not known yet: all
        #: of these, and of them those that are ready.
        self._priorities: dict[str, int] = {}
        self._unread: set[str] = set()
        self._unread_ready: list[str] = []
        self._is_reading = False
        #: Who works on what; and what is to be changed as soon as they have let go of it.
        self._active: dict[str, Helper] = {}
        self._wanted: dict[str, Deferred[After | None]] = {}
        self._acting = DeferredLock()
        self._again: set[str] = set()
        self._held: set[str] = set()
        #: The first in time of those that are sent or wait, when it was last looked for.
        self._oldest = ""
        #: When to look again, and what does.
        self._following: float | None = None
        self._call: IDelayedCall | None = None
        self._stopped = False
        self._idle: list[Deferred[None]] = []

    def standing(self, now: float) -> tuple[int, int, int, float]:
        """How many messages are being sent, wait, and are held; and the age of the oldest."""
        first = min((each for each in (self._first(), min(self._held, default="")) if each),
                    default="")
        try:
            oldest = time_of(first) if first else now
        except ValueError:
            oldest = now  # its file was named by somebody else
        return len(self._active), len(self._due), len(self._held), max(0.0, now - oldest)

    def oldest(self, now: float) -> tuple[str, float] | None:
        """The id and age of the message that has been on its way for longest, if there is one."""
        id = self._first()
        try:
            return (id, now - time_of(id)) if id else None
        except ValueError:
            return None

    def _first(self) -> str:
        """The least id of those that are sent or wait, or ""; ids rise with time."""
        # Not looked for each time: of a hundred thousand that takes too long.
        if self._oldest not in self._active and self._oldest not in self._due:
            self._oldest = min((min(group) for group in (self._active, self._due) if group),
                               default="")
        return self._oldest

    def __len__(self) -> int:
        """How many messages are known."""
        return len(self._due) + len(self._active)

    # ---- what is due ----

    def start(self) -> Deferred[None]:
        """Take up what is in the spool."""
        self.attempts.start(leading=True)
        return self._threads.run(_found, self._spool).addCallback(self._take_up)

    def _take_up(self, found: _Found) -> None:
        # It may be a hundred thousand: what came meanwhile is added to it, not it to that.
        known = len(found.due)
        for id in self._active:
            found.due.pop(id, None)
            found.ids.discard(id)
        found.due.update(self._due)
        for entry in self._heap:
            heapq.heappush(found.heap, entry)
        self._due, self._heap = found.due, found.heap
        self._unread |= found.ids
        self._oldest = min(self._oldest or found.oldest, found.oldest)
        if known:
            _log.info("the queue holds {messages} messages", messages=known)
        self._advance()

    def take(self, ids: Collection[str]) -> None:
        """Messages are new in the spool, or have changed there: look at them now."""
        now = self._clock.seconds()
        for id in ids:
            if id in self._active:
                self._again.add(id)
            else:
                self._unread.add(id)
                self._wait(id, min(now, self._due.get(id, now)))
        self._advance()

    def _look_for_urgent(self) -> None:
        """Find out which are to overtake others, of what is due and has no room."""
        if not self._ready:
            self._unread_ready.clear()
        elif self._unread_ready and not self._is_reading:
            self._is_reading = True
            # The oldest first, and so many that what is found counts soon.
            some, self._unread_ready = self._unread_ready[:_READ], self._unread_ready[_READ:]
            self._threads.run(self._spool.priorities, [
                id for id in some if id in self._due]).addBoth(self._prefer)

    def _prefer(self, priorities: dict[str, int] | Failure) -> None:
        self._is_reading = False
        if isinstance(priorities, Failure):
            _log.failure("cannot look for urgent mail", priorities)
            return
        for id, priority in priorities.items():
            if id in self._due:
                self._priorities[id] = priority
                self._wait(id, self._due[id])
        self._advance()

    def compare(self, ids: Collection[str]) -> tuple[list[str], list[str]]:
        """Which of *ids*, all that are in the spool, are not known; and which of those that are
        held are not among them.

        For a thread, since it takes long: what changes meanwhile may be wrong.
        """
        return [id for id in ids if not self._knows(id)], [
            id for id in tuple(self._held) if id not in ids]

    def missed(self, ids: Collection[str], gone: Collection[str] = ()) -> None:
        """Take those of *ids* that nobody told of, and forget what is held and *gone*."""
        self._held.difference_update(gone)
        self.take([id for id in ids if not self._knows(id)])

    def _knows(self, id: str) -> bool:
        return id in self._due or id in self._active or id in self._held

    def idle(self) -> Deferred[None]:
        """Fires when nothing is being worked on."""
        if not self._active:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._idle.append(waiting)
        return waiting

    async def fetch(self, id: str, fetching: Fetching) -> bool:
        """Hand *id* over now, to its recipients whose mail is being fetched.

        Nothing is done with one that is held, or is to be sent later.

        :returns: False, and nothing is done, when it is being worked on.
        """
        if id in self._active:
            return False
        self._due.pop(id, None)
        self._active[id] = self.attempts
        self._tried(await self.attempts.begin(id, fetching), id)
        return True

    def is_active(self, id: str) -> bool:
        """Whether the message is being tried now."""
        return id in self._active

    async def act(self, action: str, words: Sequence[str], route: str
                  ) -> tuple[list[str], list[str]]:
        """Do what ``mailsvc queue`` asks for (:mod:`mailsvc.queue.filter`).

        What is being tried and has not begun to be sent is withdrawn: it waits for a connection,
        perhaps to a host that is not there.

        :returns: the messages changed, and those that are being sent.
        :raises FilterError: *words* mean nothing.
        """
        now, meant = self._clock.seconds(), filter.parse(words)

        def matching() -> list[str]:
            return [each.id for each in self._spool.messages() if meant(each, now)]

        def change(id: str) -> float | None:
            """When to look at it next, or None."""
            message = self._spool.load(id)
            if not filter.act(message, action, route, now):
                self._spool.end(message)
                return None
            self._spool.save(message)
            return message.due  # a held one is found to be so then

        changed, busy = [], []
        await self._acting.acquire()
        try:
            found = await self._threads.run(matching)
            for start in range(0, len(found), _CHANGED):
                group = found[start : start + _CHANGED]
                results: Any = await DeferredList(
                    [Deferred.fromCoroutine(self._change(id, change)) for id in group],
                    consumeErrors=True)
                for id, (succeeded, result) in zip(group, results, strict=True):
                    if not succeeded:
                        result.raiseException()
                    elif result is None:
                        busy.append(id)
                    elif result:
                        changed.append(id)
                        _log.debug("{id} changed by mailsvc queue {action}", id=id, action=action)
        finally:
            self._acting.release()
        return changed, busy

    async def _change(self, id: str, change: Callable[[str], float | None]) -> bool | None:
        """Do *change* with *id*, in a thread; None if others work on it, False if it is gone."""
        after = await self._withdrawn(id)
        if after is None:
            return None
        try:
            if not self._spool.claims.take(id):
                # One who helped the process that sent before has not ended yet.
                return None
            try:
                after = After(await self._threads.run(change, id))
            finally:
                self._spool.claims.give_back(id)
        except (FileNotFoundError, Unreadable):
            after = After(None)
            return False
        finally:
            self._ended(after, id)
        return True

    async def _withdrawn(self, id: str) -> After | None:
        """Have nobody work on *id* until :meth:`_ended`, and what is known of it; None, and nothing
        is done, if it is being sent.
        """
        if id not in self._active:
            self._active[id] = self.attempts
            return After(self._due.pop(id, None), id in self._held)
        wanted = self._wanted[id] = Deferred()
        self._active[id].withdraw(id, partial(self._not_withdrawn, id))
        return await wanted.addTimeout(_PATIENCE, self._clock,
                                       lambda *_: self._not_withdrawn(id))

    def _not_withdrawn(self, id: str) -> None:
        """It is being sent, or whoever tries it does not answer."""
        wanted = self._wanted.pop(id, None)
        if wanted is not None and not wanted.called:
            wanted.callback(None)

    def stop(self) -> Deferred[None]:
        """Begin nothing more; fires when what was under way has come to its end."""
        self._stopped = True
        if self._call is not None and self._call.active():
            self._call.cancel()
        for each in (self.attempts, *self._helpers):
            each.stop()
        return self.idle()

    def abort(self) -> None:
        """Close every connection at once."""
        for each in (self.attempts, *self._helpers):
            each.abort()

    def helped_by(self, helper: Helper) -> None:
        """From now on *helper* tries messages as well."""
        self._helpers.append(helper)
        if self._stopped:
            helper.stop()
        else:
            self._advance()

    def abandoned(self) -> Deferred[None]:
        """A helper is gone that was at work.  Fires when all is on disk that it has sent; does not
        fail."""
        if self._stopped:
            return succeed(None)
        return self._threads.run(_settle, self._spool, _DYING)

    def left_by(self, helper: Helper) -> None:
        """*helper* begins nothing more.  May be called again."""
        if helper in self._helpers:
            self._helpers.remove(helper)

    def _wait(self, id: str, when: float) -> None:
        self._due[id] = when
        self._oldest = min(self._oldest, id)
        heapq.heappush(self._heap, (when, id))

    def _advance(self) -> None:
        """Begin what is due, and come back when the next is."""
        if self._stopped:
            return
        now = self._clock.seconds()
        while self._heap:
            when, id = self._heap[0]
            if self._is_current(id, when):
                if when > now:
                    break
                heapq.heappush(self._ready, (-self._priorities.get(id, 0), when, id))
                if id in self._unread:
                    self._unread.discard(id)
                    self._unread_ready.append(id)
            heapq.heappop(self._heap)
        while self._ready and len(self._active) < self._room(self._ready[0][0] < 0):
            urgency, when, id = heapq.heappop(self._ready)
            # One of which has been read how urgent it is stands there twice.
            if self._is_current(id, when) and urgency == -self._priorities.get(id, 0):
                self._begin(id)
        self._look_for_urgent()
        following = self._heap[0][0] if self._heap else None
        if following == self._following:
            return
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call, self._following = None, following
        if following is not None:
            self._call = self._clock.callLater(max(0.0, following - now), self._come_back)

    def _come_back(self) -> None:
        self._following = None
        self._advance()

    def _is_current(self, id: str, when: float) -> bool:
        """Whether *id* is still due at *when*: it may have been put off, have begun or be gone."""
        return self._due.get(id) == when and id not in self._active

    def _room(self, urgent: bool = False) -> int:
        """How many messages may be worked on at once."""
        return _ACTIVE * (1 + len(self._helping())) + _RESERVE * urgent

    def _helping(self) -> list[Helper]:
        return self._helpers[:self._most_helpers]

    def _begin(self, id: str) -> None:
        del self._due[id]
        who: Helper = self.attempts
        if len(who) >= _ALONE:
            who = min(who, *self._helping(), key=len) if self._helping() else who
        self._active[id] = who
        who.begin(id).addCallback(self._tried, id)

    def _tried(self, after: After, id: str) -> None:
        """An attempt is over."""
        wanted = self._wanted.pop(id, None)
        if wanted is None:
            self._ended(after, id)
        else:
            # It is not to be begun with before it has been changed.
            wanted.callback(after)

    def _ended(self, after: After, id: str) -> None:
        """An attempt is over, or a change by an operator."""
        del self._active[id]
        when = after.when
        if id in self._again:
            self._again.discard(id)
            when = self._clock.seconds()
        if after.held:
            self._held.add(id)
        else:
            self._held.discard(id)
        if after.priority:
            self._priorities[id] = after.priority
        if when is not None:
            self._wait(id, when)
        else:
            self._priorities.pop(id, None)
            self._unread.discard(id)
        if not self._active:
            idle, self._idle = self._idle, []
            for each in idle:
                if not each.called:
                    each.callback(None)
        self._advance()
