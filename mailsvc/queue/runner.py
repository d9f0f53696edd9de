"""The one process's worth of queue that sends: what is due when, and who tries it.

Of a message that waits only its id and time are in memory.  When it is due it is tried
(:mod:`mailsvc.queue.attempts`): in this process, and when there is much to do in others that help
as well, who tell what came of it (:mod:`mailsvc.queue.wake`).
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from mailsvc.mail import time_of
from mailsvc.queue import filter
from mailsvc.queue.attempts import After, Attempts, Fetching
from mailsvc.queue.message import Unreadable
from mailsvc.queue.spool import Spool
from mailsvc.store.threads import Threads

_log = Logger("mailsvc.queue")

#: How many messages are worked on at once; each has a file open.
_ACTIVE = 500
#: How many more of those that are more urgent than most.
_RESERVE = 50

#: How many this process has to be at work on before others help: what is little goes over the
#: connections that are open already.
_ALONE = 20


class Helper(Protocol):
    """Another process that tries messages for this one: what of Attempts is needed for that."""

    def __len__(self) -> int: ...

    def begin(self, id: str) -> Deferred[After]: ...

    def stop(self) -> object: ...

    def abort(self) -> None: ...


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
        #: The priorities that are known, but for 0.
        self._priorities: dict[str, int] = {}
        self._active: set[str] = set()
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
        def begin(due: dict[str, float]) -> None:
            for id, when in due.items():
                if id not in self._due and id not in self._active:
                    self._wait(id, when)
            self._look_for_urgent(due)
            if due:
                _log.info("the queue holds {messages} messages", messages=len(due))
            self._advance()

        self.attempts.start(leading=True)
        return self._threads.run(self._spool.due).addCallback(begin)

    def take(self, ids: Collection[str]) -> None:
        """Messages are new in the spool, or have changed there: look at them now."""
        now = self._clock.seconds()
        for id in ids:
            if id in self._active:
                self._again.add(id)
            else:
                self._wait(id, min(now, self._due.get(id, now)))
        self._look_for_urgent(ids)
        self._advance()

    def _look_for_urgent(self, ids: Collection[str]) -> None:
        """Find out which of *ids* are to overtake others, where there is not room for all."""
        if len(self._active) + len(ids) > self._room():
            self._threads.run(self._spool.priorities, ids).addCallbacks(
                self._prefer, lambda failure: _log.failure("cannot look for urgent mail", failure))

    def _prefer(self, priorities: dict[str, int]) -> None:
        for id, priority in priorities.items():
            if id in self._due:
                self._priorities[id] = priority
                self._wait(id, self._due[id])
        self._advance()

    def missed(self, ids: Collection[str]) -> None:
        """These are in the spool: take those that nobody told of."""
        self._held.intersection_update(ids)
        self.take(set(ids) - self._due.keys() - self._active - self._held)

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
        self._active.add(id)
        self._ended(await self.attempts.begin(id, fetching), id)
        return True

    def is_active(self, id: str) -> bool:
        """Whether the message is being tried now."""
        return id in self._active

    async def act(self, action: str, words: Sequence[str], route: str
                  ) -> tuple[list[str], list[str]]:
        """Do what ``mailsvc queue`` asks for (:mod:`mailsvc.queue.filter`).

        :returns: the messages changed, and those that are being worked on.
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
        for id in await self._threads.run(matching):
            if id in self._active:
                busy.append(id)
                continue
            if not self._spool.claims.take(id):
                # One who helped the process that sent before has not ended yet.
                busy.append(id)
                continue
            # Nobody else works on it meanwhile.
            self._due.pop(id, None)
            self._active.add(id)
            when: float | None = None
            try:
                when = await self._threads.run(change, id)
                changed.append(id)
                _log.debug("{id} changed by mailsvc queue {action}", id=id, action=action)
            except (FileNotFoundError, Unreadable):
                pass
            finally:
                self._spool.claims.give_back(id)
                self._ended(After(when), id)
        return changed, busy

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
            heapq.heappop(self._heap)
        while self._ready and len(self._active) < self._room(self._ready[0][0] < 0):
            _, when, id = heapq.heappop(self._ready)
            if self._is_current(id, when):
                self._begin(id)
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
        self._active.add(id)
        who: Helper = self.attempts
        if len(who) >= _ALONE:
            who = min(who, *self._helping(), key=len) if self._helping() else who
        who.begin(id).addCallback(self._ended, id)

    def _ended(self, after: After, id: str) -> None:
        """An attempt is over, or a change by an operator."""
        self._active.discard(id)
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
        if not self._active:
            idle, self._idle = self._idle, []
            for each in idle:
                if not each.called:
                    each.callback(None)
        self._advance()
