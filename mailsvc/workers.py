"""Several processes that serve together: a supervisor, and workers that it forks.

The :class:`Supervisor` binds the listeners, forks ``service.workers`` processes, and then only
watches.  Each worker is a whole :class:`mailsvc.service.MailService` on a reactor of its own; they
share the sockets, and all else that they must agree on they share through files: maildrops are
locked with flock(2), accounts, brakes, bans, rates and LOGIN-DELAY are in SQLite.  Only the counts
of connections are in memory that they share (:mod:`mailsvc.headcount`).

**Why fork.**  What was imported and read is there at once and once: a worker takes some 50 ms to
start, where a new interpreter takes a second, and its pages are the supervisor's until it writes
to them.  No secret travels over a command line or a pipe.  The supervisor may fork whenever it
likes, because it starts no thread and opens no database.

**Promises.**

* The service is ready when every worker is.  What keeps the first ones from starting is what keeps
  the service from starting.
* A worker that dies is replaced, at once if it had lived for a while; its locks and connections are
  gone with it, the sockets are not.  Workers that do not even start are tried again ever more
  slowly, and after :data:`mailsvc.backoff.ATTEMPTS` in a row the service ends.
* The supervisor never leaves a worker behind: killed with kill -9, it takes them along.
* SIGTERM stops all, gracefully for ``service.grace_seconds``; what is left is killed.
* SIGHUP reads the configuration again.  When that has no mistake, a second generation of workers is
  started, and once it serves the first one takes no more connections and ends with its last
  session.  When it has, or they do not start, it is as if nothing had been asked.
* An upgrade starts the program anew from disk (:mod:`mailsvc.succession`).  When that is ready, all
  workers of this one end with their last sessions, and then the supervisor.
* A worker whose reactor is stuck for as long as systemd's watchdog waits is killed and replaced.

**Limits.**  Needs Linux.  Sessions of TLS are resumed only by the worker that began them, logins
that succeeded a moment ago are known only where they did.  Listeners are not changed by SIGHUP.  An
upgrade counts connections anew.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from mailsvc.backoff import ATTEMPTS, LONGEST_PAUSE, Backoff
from mailsvc.child import Child
from mailsvc.config import SECTIONS, ConfigurationError, Settings
from mailsvc.control import ReloadRefused
from mailsvc.figures import RELOADS, RESTARTS, Share
from mailsvc.front import Configuration, Front, explained
from mailsvc.gathering import Gathering, Process
from mailsvc.holding import Holding
from mailsvc.listeners import CannotStart, Listener
from mailsvc.log import SharedLogFile
from mailsvc.places import Places
from mailsvc.service import certificate_names
from mailsvc.succession import Predecessor
from mailsvc.systemd import NotifyService
from mailsvc.worker import DRAIN, Task

_log = Logger("mailsvc.workers")

#: The sections and keys that the supervisor itself goes by: the sockets that it bound, the log that
#: all write to, and the directory where it answers.
FIXED = ("listeners", "log", "service.data", "acme.challenge")

#: How long, in seconds, a worker may take to end after its connections have.
_TO_END = 10.0
#: How many processes there may be for each worker: it, its successor, and those that drain.
_GENERATIONS = 4
#: How often, in seconds, it is seen to the log file, and whether workers are stuck.
_ROUND = 5.0


def count(settings: Settings) -> int:
    """How many processes shall serve."""
    if settings.service.store.partition(":")[0] == "memory":
        return 1
    return settings.service.workers or _cores()


def _cores() -> int:
    """How many cores this process may use, in its share of the machine (cgroup v2) too."""
    cores = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            return max(1, min(cores, round(int(quota) / int(period))))
    return cores


def freeze() -> None:
    """What there is by now stays, and the collector of cycles need not look at it again.

    Nor often at what comes, of which few are cycles: it would take a twentieth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


class Supervisor(Front):
    """See the module.  The parameters are those of :func:`mailsvc.serving.serve`."""

    def __init__(
        self, settings: Settings, reactor: Any, listeners: list[Listener],
        checkers: tuple[ICredentialsChecker, ...],
        log_file: SharedLogFile | None = None, predecessor: Predecessor | None = None,
    ) -> None:
        super().__init__(reactor, listeners, NotifyService(reactor),
                         Holding(Path(settings.service.data)), predecessor)
        self._configuration: Configuration = settings, checkers
        self._log_file = log_file
        self._log_octets = 0
        if log_file is not None:
            # The processes write to one file: how long it is must be asked, and one rotates it.
            self._log_octets, log_file.rotateLength = log_file.rotateLength or 0, None
        self._workers: list[Child] = []
        #: The next generation while it starts, and what it is made with.
        self._successors: list[Child] = []
        self._next: Configuration = self._configuration
        #: Fires with how many serve by it, or with why they cannot.
        self._reloaded: Deferred[int] = Deferred()
        self._pauses: list[IDelayedCall] = []
        self._backoff = Backoff()
        self._ended: Deferred[None] = Deferred()
        #: Whether workers shall take connections; and whether all end with their last.
        self._serving = predecessor is None
        self._leaving = False
        rows = _GENERATIONS * count(settings)
        self._places = Places(rows)
        self._crew, self._figures = self._places.crew, self._places.figures
        self._gathering = Gathering(self._figures, self)
        # The last row is our own.
        share = Share(self._figures, rows)
        self._restarts = share.count(RESTARTS)
        self._reloads, self._failed_reloads = (
            share.count(RELOADS, outcome) for (outcome,) in RELOADS.values)
        self._rounds = LoopingCall(self._look_after)
        self._rounds.clock = reactor

    # ---- starting ----

    @explained
    def startService(self) -> None:
        """Start the workers.

        :raises CannotStart: when one cannot.
        """
        if self.bound is None:
            self.privilegedStartService()
        assert self.bound is not None
        if self.bound.called:
            self._begin()
        else:
            self.bound.addCallback(self._begin_late)
        self.watch(self._gathering)
        if self.predecessor is None:
            self.alone.setServiceParent(self)
        super().startService()
        # Not before the reactor runs, and with it the handlers of the signals that stop it.
        self.bound.addCallback(
            lambda problem: self.reactor.callWhenRunning(self.announce, problem))

    def _begin_late(self, problem: CannotStart | None) -> CannotStart | None:
        try:
            if problem is None:
                self._begin()
        except CannotStart as error:
            return error
        return problem

    def _begin(self) -> None:
        for listener in self._for_mail():
            listener.pause()
        # To collect it would write to pages that are shared.
        freeze()
        settings, _ = self._configuration
        try:
            # The first makes what is missing; no other shall make it as well.
            self._start_first()
            for _ in range(count(settings) - 1):
                self._workers.append(self._fork(self._configuration))
            for worker in self._workers[1:]:
                worker.wait()
        except BaseException as error:
            # Interrupted, too: what the workers write to may be removed next.
            self._kill_all()
            self.close_listeners()
            self.let_go()
            if isinstance(error, OSError):
                raise CannotStart(f"mailsvc cannot start: no worker: {error.strerror}; see how "
                                  "many processes and descriptors it may have (ulimit -a)"
                                  ) from error
            raise
        for worker in self._workers:
            self._watch(worker)
        self._rounds.start(_ROUND, now=False)
        if self.read_again is not None and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
            signal.signal(signal.SIGHUP, lambda *_: self.reactor.callFromThread(self.hang_up))
        _log.info("{workers} workers serve", workers=len(self._workers),
                  pids=[worker.pid for worker in self._workers])

    def begin(self) -> None:
        """See :class:`Front`."""
        self.alone.setServiceParent(self)
        for listener in self.listeners:
            if not listener.for_mail:
                listener.admit()
        self._serving = True
        for worker in self._workers:
            if worker.since is not None:
                worker.begin()

    def _start_first(self) -> None:
        worker = self._fork(self._configuration, first=True)
        self._workers.append(worker)
        worker.wait()

    def _fork(self, configuration: Configuration, *, first: bool = False,
              waits: bool = False) -> Child:
        settings, checkers = configuration
        place = self._places.take(first, count(settings))
        task = Task(settings, checkers, self._for_mail(), place, self.for_good, self._log_file,
                    waits or not self._serving,
                    self.predecessor.stderr if self.predecessor is not None else -1)
        assert self.holding is not None
        try:
            return Child(
                task, self.reactor,
                [self.holding, *(worker.control for worker in (*self._workers, *self._successors)),
                 *self._sockets()])
        except OSError:
            self._places.free(place)
            raise

    def _for_mail(self) -> list[Listener]:
        return [listener for listener in self.listeners if listener.for_mail]

    def _sockets(self) -> Iterator[socket.socket]:
        """Those by which we tell how the service is, and talk to other programs."""
        for listener in self.listeners:
            if not listener.for_mail and listener.socket is not None:
                yield listener.socket
        for each in {*self.reactor.getReaders(), *self.reactor.getWriters()}:
            if isinstance(getattr(each, "socket", None), socket.socket):
                yield each.socket

    def _kill_all(self) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers.clear()

    # ---- watching ----

    def _watch(self, worker: Child) -> None:
        worker.watch(self._serves, self._died)

    def _serves(self, worker: Child) -> None:
        self._backoff.served()
        if self._serving and worker not in self._successors:
            worker.begin()
        self._switch()

    def _died(self, worker: Child) -> None:
        self._places.free(worker.place)
        self._gathering.ended(_name(worker), worker.spent)
        if worker in self._successors:
            self._successors.remove(worker)
            self._give_up_successors(worker.cause)
        else:
            self._workers.remove(worker)
            if not worker.leaving:
                self._replace(worker)
        if (self.stopping or self._leaving) and not (
                self._workers or self._successors or self._ended.called):
            self._ended.callback(None)

    def _replace(self, worker: Child) -> None:
        pause = self._backoff.died(worker.since, time.monotonic())
        if pause is None:
            self._break(worker.cause)
            return
        self._restarts.add()
        _log.error("worker {pid} ended ({cause}); another takes its place{when}", pid=worker.pid,
                   cause=worker.cause, when=f" in {pause:g} seconds" if pause else "")
        self._pauses = [each for each in self._pauses if each.active()]
        self._pauses.append(self.reactor.callLater(pause, self._add_worker, worker.place.first))

    def _add_worker(self, first: bool) -> None:
        try:
            worker = self._fork(self._configuration, first=first)
        except OSError as error:
            _log.error("no worker can be started now ({reason}); trying again in {pause:g} seconds",
                       reason=error.strerror, pause=LONGEST_PAUSE)
            self._pauses.append(
                self.reactor.callLater(LONGEST_PAUSE, self._add_worker, first))
            return
        self._workers.append(worker)
        self._watch(worker)

    def _break(self, cause: str) -> None:
        """End: no worker can be started any more."""
        if not self.broken.called:
            self.notify.status(f"failed: {cause}")
            self.broken.errback(CannotStart(
                f"mailsvc cannot go on: {ATTEMPTS} workers in a row could not start, the last "
                f"because of: {cause}"))

    def _look_after(self) -> None:
        """See to the log file, and to workers whose reactor is stuck."""
        file = self._log_file
        with suppress(FileNotFoundError):
            if file is not None and 0 < self._log_octets <= os.path.getsize(file.path):
                self.rotate_log()
        patience = self.notify.watchdog_seconds
        for worker in self._workers:
            if patience and self._crew.silence(worker.place.row) > patience:
                _log.error("worker {pid} has been stuck for {patience:g} seconds and is killed",
                           pid=worker.pid, patience=patience)
                worker.tell(signal.SIGKILL)

    def rotate_log(self) -> None:
        """Begin a new log file, in all processes."""
        if self._log_file is not None:
            self._log_file.rotate()
            self._tell(signal.SIGUSR1, [*self._workers, *self._successors])

    @staticmethod
    def _tell(number: int, workers: Iterable[Child]) -> None:
        for worker in workers:
            worker.tell(number)

    # ---- another generation ----

    @property
    def settings(self) -> Settings:
        return self._configuration[0]

    @property
    def fixed(self) -> tuple[str, ...]:
        return FIXED if self.read_again is not None else tuple(SECTIONS)

    def reload(self) -> Deferred[int]:
        """Read the configuration again, and let new workers serve by it, if there is no mistake."""
        try:
            configuration = self.read()
            self._check(configuration[0])
        except (ConfigurationError, CannotStart) as error:
            self._failed_reloads.add()
            _log.error("the configuration stays as it was, for it cannot be changed to what is "
                       "there now: {problem}", problem=str(error))
            return self.refusal(error)
        self._next = configuration
        reloaded = self._reloaded = Deferred()
        self.notify.status("starting workers with another configuration")
        try:
            for number in range(count(configuration[0])):
                worker = self._fork(configuration, first=number == 0, waits=True)
                self._successors.append(worker)
                self._watch(worker)
        except OSError as error:
            self._give_up_successors(str(error))
        return reloaded

    def _check(self, new: Settings) -> None:
        old = self.settings
        fixed = [name if "." in name else f"[{name}]" for name in FIXED
                 if attrgetter(name)(old) != attrgetter(name)(new)]
        if fixed:
            raise CannotStart("a change of " + " and of ".join(fixed) + " needs a restart")
        if self._successors:
            raise CannotStart("workers for the last change are still starting; try again")
        if self.successor is not None:
            raise CannotStart("a new program is starting, which reads the configuration by itself; "
                              "wait for it")
        if count(new) > len(self._places):
            leaving = [worker for worker in self._workers if worker.leaving]
            self._tell(signal.SIGTERM, leaving)
            raise CannotStart(
                f"{len(leaving)} workers of earlier configurations are ended first; try again "
                "soon" if leaving else "so many workers need a restart")

    def _switch(self) -> None:
        """Once all successors serve, let the others end with their last sessions."""
        if not self._successors or any(worker.since is None for worker in self._successors):
            return
        for pause in self._pauses:
            if pause.active():
                pause.cancel()
        former = [worker for worker in self._workers if not worker.leaving]
        for worker in former:
            worker.leaving = True
        for worker in self._successors:
            worker.begin()
        self._tell(DRAIN, former)
        self._workers += self._successors
        self._successors = []
        self._configuration = self._next
        self._reloads.add()
        _log.info("the configuration was read again; {workers} workers serve by it",
                  workers=count(self.settings))
        self.notify.status(self.status())
        self._reloaded.callback(count(self.settings))

    def _give_up_successors(self, cause: str) -> None:
        if not self.stopping:
            self._failed_reloads.add()
            _log.error("the configuration stays as it was: workers cannot start with what is there "
                       "now: {problem}", problem=cause)
            self.notify.status(self.status())
        for worker in self._successors:
            worker.leaving = True
        self._tell(DRAIN, self._successors)
        self._workers += self._successors
        self._successors = []
        self._reloaded.errback(ReloadRefused(
            "the service is stopping" if self.stopping else f"workers cannot start by it: {cause}"))

    # ---- for those who watch ----

    def processes(self) -> list[Process]:
        """The supervisor, and its workers in the order of their rows."""
        workers = sorted((*self._workers, *self._successors), key=lambda each: each.place.row)
        return [Process("supervisor", os.getpid(), self._figures.rows - 1, serves=False), *(
            Process(_name(each), each.pid, each.place.row,
                    serves=each.since is not None and not each.leaving
                    and each not in self._successors,
                    silence=self._crew.silence(each.place.row)) for each in workers)]

    def certificates(self) -> list[str]:
        """What the certificates of the workers are called."""
        return certificate_names(self.settings)

    # ---- another program ----

    def cannot_upgrade(self) -> str | None:
        """As :class:`Front`; a reload has to be over."""
        return super().cannot_upgrade() or (
            "workers for a changed configuration are starting; try again" if self._successors
            else None)

    def drain(self) -> Deferred[Any]:
        """As :class:`Front`."""
        for pause in self._pauses:
            if pause.active():
                pause.cancel()
        self._leaving = True
        # It is another's to rotate.
        self._log_octets = 0
        for worker in self._workers:
            worker.leaving = True
        self._tell(DRAIN, self._workers)
        if not (self._workers or self._ended.called):
            self._ended.callback(None)
        return gatherResults([self.close_listeners(), self._ended])

    def sessions(self) -> int:
        """Those of all workers."""
        return sum(each.total() for each in self._crew.counts.values())

    # ---- stopping ----

    def stopService(self) -> Deferred[None]:
        """Stop every worker; fires when there is none left."""
        return Deferred.fromCoroutine(self._stop())

    def hurry(self) -> None:
        if self.predecessor is not None:
            self.predecessor.ask("hurry")
        self._tell(signal.SIGKILL, [*self._workers, *self._successors])

    async def _stop(self) -> None:
        self.stopping = True
        for pause in self._pauses:
            if pause.active():
                pause.cancel()
        if self._rounds.running:
            self._rounds.stop()
        workers = [*self._workers, *self._successors]
        self.notify.stopping(f"stopping: waiting for {len(workers)} workers")
        closed = self.close_listeners(last=False)
        for worker in workers:
            worker.leaving = True
        self._tell(signal.SIGTERM, workers)
        others = Deferred.fromCoroutine(self.stop_others())
        if workers:
            patience = self.settings.service.grace_seconds + _TO_END
            killing = self.reactor.callLater(patience, self._kill)
            await self._ended
            if killing.active():
                killing.cancel()
        await closed
        await others
        await super().stopService()
        self.let_go()
        _log.info("stopped")

    def _kill(self) -> None:
        left = [*self._workers, *self._successors]
        _log.error("{workers} workers did not end and are killed", workers=len(left))
        self._tell(signal.SIGKILL, left)


def _name(worker: Child) -> str:
    return f"worker-{worker.place.row}"
