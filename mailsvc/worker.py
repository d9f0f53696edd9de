"""One worker process: how a fork of the supervisor becomes a service of its own.

The fork has everything that the supervisor has, and must let go of what is not its: signal
handlers, the other workers' sockets, and the reactor, in whose place it puts a new one of the same
kind.  Then it resumes the listeners, says that it is ready, takes connections, at once or when the
supervisor lets it begin, and serves until it is told otherwise:

* SIGTERM: stop, as :meth:`mailsvc.service.MailService.stopService` does;
* SIGUSR2: take no more connections, and end with the last session;
* SIGUSR1: open the log file again;
* SIGINT and SIGHUP, which terminals send to all, are for the supervisor, which tells its workers;
* the end of the supervisor, however it comes, is the worker's end.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from twisted.cred.checkers import ICredentialsChecker
from twisted.internet.main import installReactor
from twisted.internet.process import reapAllProcesses
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from mailsvc import log
from mailsvc.config import Settings
from mailsvc.holding import Holding
from mailsvc.listeners import CannotStart, Listener
from mailsvc.places import Place
from mailsvc.service import MailService

_log = Logger("mailsvc.workers")

#: What a worker says when it could serve, and what it is told when it shall.
READY = BEGIN = b"+"
#: The signal for the last sessions.
DRAIN = signal.SIGUSR2
#: How often, in seconds, it shows that its reactor runs.
BEAT = 1.0

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
            signal.SIGCHLD)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker is to do.

    :ivar for_good: as :class:`mailsvc.front.Front` has it.
    :ivar log_file: what is logged to, if the supervisor rotates it.
    :ivar waits: whether it takes no connection before it is let begin.
    :ivar stderr: what standard error is to be, if it is something else now, or -1.
    """

    settings: Settings
    checkers: tuple[ICredentialsChecker, ...]
    listeners: list[Listener]
    place: Place
    for_good: bool
    log_file: log.SharedLogFile | None
    waits: bool = False
    stderr: int = -1


def fork(task: Task, reactor: Any, strangers: Iterable[Holding | socket.socket]
         ) -> tuple[int, socket.socket]:
    """Start a worker from a process without threads; its pid, and a socket to it.

    There the worker says :data:`READY`, or why it cannot serve; its end is the worker's end.

    :param reactor: the reactor of this process, which may run.
    :param strangers: what the worker shall not have.
    :raises OSError: there can be no more processes or files.
    """
    for stream in sys.stdout, sys.stderr:
        stream.flush()
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    # No handler of ours may run in the worker, not even between the next two lines.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        pid = os.fork()
        if not pid:
            _become(task, reactor, parent, theirs, [ours, *strangers])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return pid, ours


def _become(task: Task, reactor: Any, parent: int, control: socket.socket,
            strangers: Sequence[Holding | socket.socket]) -> NoReturn:
    status = 1
    try:
        if task.stderr >= 0:
            os.dup2(task.stderr, 2)
        _cut_off(parent, strangers)
        _serve(task, _new_reactor(reactor), control)
        status = 0
    except CannotStart as problem:
        control.sendall(str(problem).encode())
    except BaseException as error:
        _log.failure("a worker failed")
        control.sendall(f"{type(error).__name__}: {error}".encode())
    finally:
        # Nothing of the supervisor's may be done again: neither its stack nor its exit handlers.
        log.pass_on()
        os._exit(status)


def _cut_off(parent: int, strangers: Sequence[Holding | socket.socket]) -> None:
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    for number in signal.SIGINT, signal.SIGHUP, signal.SIGUSR1:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    for stranger in strangers:
        stranger.close()


def _new_reactor(old: Any) -> Any:
    """A reactor like *old*, installed in its place."""
    arguments = []
    if hasattr(old, "_asyncioEventloop"):
        import asyncio  # noqa: PLC0415 - for whoever chose that reactor

        arguments.append(asyncio.new_event_loop())
    sys.modules.pop("twisted.internet.reactor", None)
    reactor = type(old)(*arguments)
    installReactor(reactor)
    return reactor


def _serve(task: Task, reactor: Any, control: socket.socket) -> None:
    crew, row = task.place.crew, task.place.row
    for listener in task.listeners:
        listener.resume(reactor, functools.partial(crew.leads, row))
        if task.waits:
            listener.hold()
    service = MailService(task.settings, reactor, task.listeners, task.checkers, task.place)
    service.for_good = task.for_good

    def ready(_: object) -> None:
        log.pass_on()
        control.sendall(READY)

    service.ready.addCallback(ready)
    begun: list[bool] = []

    def begin() -> None:
        if not (begun or stopping or draining):
            begun.append(True)
            service.begin()

    stopping: list[bool] = []
    draining: list[bool] = []
    service.privilegedStartService()
    service.startService()
    if not task.waits:
        begin()
    reactor.addSystemEventTrigger("before", "shutdown", service.stopService)
    control.setblocking(False)
    reactor.adoptStreamConnection(
        control.fileno(), socket.AF_UNIX, Factory.forProtocol(lambda: _Tether(begin)))
    beat = LoopingCall(crew.beat, row)
    beat.clock = reactor
    beat.start(BEAT)

    def on(number: int, act: Callable[[], object]) -> None:
        signal.signal(number, lambda *_: reactor.callFromThread(act))

    def stop(_: object = None) -> None:
        # It may be asked to more than once: whoever signals a process group does.
        if not stopping:
            stopping.append(True)
            reactor.stop()

    def drain() -> None:
        draining.append(True)
        if beat.running:
            beat.stop()
            crew.rest(row)
            service.drain().addCallback(stop)

    on(signal.SIGTERM, stop)
    on(DRAIN, drain)
    # Nor its handler for processes that we started.
    on(signal.SIGCHLD, reapAllProcesses)
    file = task.log_file
    if file is not None:
        on(signal.SIGUSR1, file.reopen)
    # Twisted's own handlers would take the place of these.
    reactor.run(installSignalHandlers=False)


class _Tether(Protocol):
    """The supervisor says when to begin, and no more; when it is gone, so are we."""

    def __init__(self, begin: Callable[[], object]) -> None:
        self._begin = begin

    def dataReceived(self, data: bytes) -> None:
        self._begin()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        log.pass_on()
        os._exit(1)
