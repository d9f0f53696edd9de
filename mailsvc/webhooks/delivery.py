"""Tells events to other programs: from the log to the spool, and from there to each URL.

:class:`Webhooks` is part of every process that serves.  It observes the log, and writes what has to
be told to the spool, in a thread, as soon as the disk allows; so no mail waits for it.  Each
process also takes from the spool what is due, a few requests at once for each URL, and puts off
what was not taken.

**Promises.**  What is in the spool is told at least once, or given up after
``webhooks.lifetime_seconds`` with a line in the log, whatever dies meanwhile.  An event is in the
spool some milliseconds after the line of log that it is told by; what a process that is killed had
not written by then is lost, and so is what happens while the disk takes nothing for long.  The
order is not kept.
"""

from __future__ import annotations

import random
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, DeferredList
from twisted.internet.task import LoopingCall
from twisted.logger import ILogObserver, LogEvent, Logger, LogPublisher, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from mailsvc import figures
from mailsvc.figures import Share
from mailsvc.store.threads import Threads
from mailsvc.webhooks.events import EVENTS, WebhookSettings, body, shown
from mailsvc.webhooks.posting import NotTold, Poster
from mailsvc.webhooks.spool import Event, Spool, Waiting

_log = Logger("mailsvc.webhooks")

#: Requests at once to one URL, from one process.
AT_ONCE = 4
#: How often is looked for what is due, seconds.
OFTEN = 1.0
#: Events that wait in memory for the disk, at most.
_MEMORY = 10_000
#: How much longer a claim holds than a request can take, seconds.
_MARGIN = 45.0
#: How many times longer each pause is than the one before; and by which share it is made longer or
#: shorter by chance, so that what failed together is not tried together.
_FACTOR, _JITTER = 3.0, 0.2
#: How often what is too old is dropped, what waits is counted, and the same is complained of,
#: seconds.
_SWEEP_EVERY, _COUNT_EVERY, _COMPLAIN_EVERY = 3600.0, 5.0, 60.0

Result = TypeVar("Result")
#: Type, time and fields of an event.
_Heard = tuple[str, float, dict[str, Any]]


def pause(settings: WebhookSettings, attempts: int, chance: float) -> float:
    """How long to wait after so many *attempts*, seconds.

    :param chance: from 0 to 1.
    """
    wait = min(settings.retry_first_seconds * _FACTOR ** min(attempts - 1, 32),
               settings.retry_most_seconds)
    return wait * (1 + _JITTER * (2 * chance - 1))


@implementer(ILogObserver)
class Webhooks(Service):
    """Tells what is logged by *publisher*.

    :param path: the file of the spool.
    :param share: where attempts are counted.
    """

    def __init__(self, settings: WebhookSettings, path: Path, poster: Poster, share: Share,
                 reactor: Any, publisher: LogPublisher = globalLogPublisher) -> None:
        self._settings = settings
        self._wanted = frozenset(settings.events)
        self._path = path
        self._poster = poster
        self._reactor = reactor
        self._publisher = publisher
        self._threads = Threads(reactor, 1, "webhooks")
        self._heard: list[_Heard] = []
        #: Those that there was no memory for.
        self._lost = 0
        self._writing: Deferred[None] | None = None
        self._telling: Counter[str] = Counter()
        self._claiming: set[str] = set()
        self._requests: dict[int, Deferred[None]] = {}
        self._failing: set[str] = set()
        self._rounds = LoopingCall(self._round)
        self._rounds.clock = reactor
        self._swept = self._counted = self._complained = 0.0
        self._told, self._put_off, self._given_up = (
            share.count(figures.WEBHOOK_ATTEMPTS, outcome)
            for (outcome,) in figures.WEBHOOK_ATTEMPTS.values)
        self._waiting = share.level(figures.WEBHOOK_WAITING)

    def observe(self) -> None:
        """Hear what is logged from now on; before it is started, too."""
        self._publisher.addObserver(self)

    def startService(self) -> None:
        """Take up what waits."""
        super().startService()
        self._threads.start()
        self._rounds.start(OFTEN)

    def stopService(self) -> Deferred[Any]:
        """Write what was heard, and let go of what is being told; fires when that is done."""
        super().stopService()
        self._publisher.removeObserver(self)
        self._rounds.stop()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._writing is not None:
            await self._writing
        if self._heard:
            await self._write()
        requests = list(self._requests.values())
        for request in requests:
            request.cancel()
        await DeferredList(requests)
        await self._threads.stop()
        await self._poster.close()

    def _in_spool(self, act: Callable[[Spool], Result]) -> Deferred[Result]:
        """*act* on the spool, in the thread for that."""
        def done() -> Result:
            with closing(Spool(self._path)) as spool:
                return act(spool)

        return self._threads.run(done)

    def _bug(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return  # the service stops, and the thread does what it was given
        now = self._reactor.seconds()
        if now >= self._complained + _COMPLAIN_EVERY:
            self._complained = now
            _log.error("what webhooks have to tell cannot be kept: {reason}",
                       reason=failure.getErrorMessage())

    # ---- from the log into the spool ----

    def __call__(self, event: LogEvent) -> None:
        """As an observer of the log, in the reactor's thread."""
        kind = event.get("event")
        if kind not in self._wanted:
            return
        if len(self._heard) >= _MEMORY:
            self._lost += 1
            return
        assert isinstance(kind, str)
        self._heard.append((kind, event["log_time"], {
            name: event[name] for name in EVENTS[kind] if name in event}))
        if self._writing is None:
            self._writing = Deferred.fromCoroutine(self._write())

    async def _write(self) -> None:
        try:
            while self._heard:
                heard = self._heard.copy()
                dropped = await self._in_spool(partial(self._add, heard))
                del self._heard[:len(heard)]
                lost, self._lost = self._lost, 0
                if dropped or lost:
                    _log.error("{count} events were dropped, for more wait than "
                               "webhooks.most_waiting, or the disk took none for too long",
                               count=dropped + lost)
        except Exception:
            # They are kept, and the next round tries again.
            self._bug(Failure())
        finally:
            self._writing = None
        self._tell()

    def _add(self, heard: Sequence[_Heard], spool: Spool) -> int:
        return spool.add([Event(f"msg_{secrets.token_hex(16)}", kind, body(kind, moment, fields),
                                moment) for kind, moment, fields in heard],
                         self._settings.urls, self._settings.most_waiting)

    # ---- from the spool to the URLs ----

    def _round(self) -> None:
        if self._heard and self._writing is None:
            self._writing = Deferred.fromCoroutine(self._write())
        now = self._reactor.seconds()
        if now >= self._swept + _SWEEP_EVERY:
            self._swept = now
            # Twice, for what is given up in time says so.
            before = now - 2 * self._settings.lifetime_seconds
            self._in_spool(lambda spool: spool.sweep(before)).addErrback(self._bug)
        if now >= self._counted + _COUNT_EVERY:
            self._counted = now
            self._in_spool(Spool.count).addCallback(self._waiting.set).addErrback(self._bug)
        self._tell()

    def _tell(self) -> None:
        if not self.running:
            return
        for url in self._settings.urls:
            if url not in self._claiming and self._telling[url] < AT_ONCE:
                self._claiming.add(url)
                self._claim(url)

    def _claim(self, url: str) -> None:
        now, most = self._reactor.seconds(), AT_ONCE - self._telling[url]
        until = now + self._settings.timeout_seconds + _MARGIN

        def begin(claimed: list[Waiting]) -> None:
            # Those that come too late are somebody's when the claim has run out.
            for waiting in claimed if self.running else ():
                self._requests[waiting.number] = Deferred.fromCoroutine(
                    self._post(waiting)).addErrback(self._bug)

        claiming = self._in_spool(lambda spool: spool.claim(url, now, until, most))
        claiming.addCallback(begin).addErrback(self._bug)
        claiming.addBoth(lambda _: self._claiming.discard(url))

    async def _post(self, waiting: Waiting) -> None:
        url = waiting.url
        self._telling[url] += 1
        try:
            await self._poster.post(url, waiting.event)
        except NotTold as failure:
            if self.running:
                await self._failed(waiting, str(failure), failure.gone)
            else:
                # We cut it off ourselves: whoever comes next tells it at once.
                now = self._reactor.seconds()
                await self._in_spool(lambda spool: spool.put_off(
                    waiting.number, now, waiting.attempts, waiting.problem))
        else:
            self._told.add()
            if url in self._failing:
                self._failing.discard(url)
                _log.info("{url} takes events again", url=shown(url))
            await self._in_spool(lambda spool: spool.done(waiting.number))
        finally:
            self._telling[url] -= 1
            del self._requests[waiting.number]
        self._tell()

    async def _failed(self, waiting: Waiting, problem: str, gone: bool) -> None:
        url, event, attempts = waiting.url, waiting.event, waiting.attempts + 1
        due = self._reactor.seconds() + pause(self._settings, attempts, random.random())
        if gone or due > event.since + self._settings.lifetime_seconds:
            self._given_up.add()
            _log.error("{id} given up type={type} url={url} attempts={attempts}: {reason}",
                       id=event.id, type=event.kind, url=shown(url), attempts=attempts,
                       reason=problem)
            await self._in_spool(lambda spool: spool.done(waiting.number))
            return
        self._put_off.add()
        if url not in self._failing:
            # Once, for each of its events would say the same.
            self._failing.add(url)
            _log.warn("{url} takes no events; they wait, and are tried again: {reason}",
                      url=shown(url), reason=problem)
        await self._in_spool(lambda spool: spool.put_off(waiting.number, due, attempts, problem))
