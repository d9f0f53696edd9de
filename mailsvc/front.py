"""The front of the service: its listeners bound, announced and closed together.

:class:`Front` is what ``twistd`` and ``mailsvc dev`` start and stop, be there one process behind it
(:class:`mailsvc.service.MailService`) or several (:class:`mailsvc.workers.Supervisor`).
"""

from __future__ import annotations

import functools
import resource
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from twisted.application.service import IServiceCollection, MultiService
from twisted.cred.checkers import ICredentialsChecker
from twisted.internet.defer import Deferred, DeferredList, fail, gatherResults, maybeDeferred
from twisted.internet.task import LoopingCall
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure

from mailsvc import contradictions
from mailsvc.acme.files import Files
from mailsvc.config import ConfigurationError, Settings
from mailsvc.control import Control, ReloadRefused, UpgradeFailed, UpgradeRefused
from mailsvc.gathering import Gathering
from mailsvc.history import History
from mailsvc.holding import Holding
from mailsvc.listeners import KINDS, CannotStart, Listener
from mailsvc.monitor import Monitor
from mailsvc.prerequisites import hold_data
from mailsvc.succession import NotReady, Origin, Predecessor, Successor
from mailsvc.systemd import NotifyService

_log = Logger("mailsvc")

#: What is read anew: the settings, and who checks passwords.
Configuration = tuple[Settings, tuple[ICredentialsChecker, ...]]

_Front = TypeVar("_Front", bound="Front")

#: How long a predecessor that is to stop may take beyond its ``service.grace_seconds``, seconds.
_TO_END = 15.0
#: How often a successor is told how many sessions are left, seconds.
_TELL_EVERY = 1.0


def listeners_of(settings: Settings, reactor: Any, optional: Sequence[str] = (),
                 predecessor: Predecessor | None = None) -> list[Listener]:
    """The listeners that *settings* name.

    :param optional: the kinds of listeners that are left out when their port is taken.
    :param predecessor: whose sockets they take over; they take no connections then.
    :raises CannotStart: when an endpoint cannot be understood, or the settings contradict each
        other.
    """
    listeners = [
        Listener(kind, description, reactor, optional=kind.name in optional,
                 inherited=predecessor.socket_for(kind.name, description) if predecessor else None)
        for kind in KINDS.values()
        for description in getattr(settings.listeners, kind.name)]
    if predecessor is not None:
        predecessor.close_others()
        for listener in listeners:
            listener.hold()
    try:
        contradictions.refuse(settings)
    except ConfigurationError as error:
        raise CannotStart(f"mailsvc cannot start: {error}") from error
    return listeners


def explained(start: Callable[[_Front], None]) -> Callable[[_Front], None]:
    """A step of a start; what it fails with is told to the predecessor, too."""
    @functools.wraps(start)
    def step(front: _Front) -> None:
        try:
            start(front)
        except BaseException as error:
            if front.predecessor is not None:
                front.predecessor.refuse(str(error) or type(error).__name__)
            raise

    return step


class Front(MultiService):
    """Listeners, and what is behind them.

    :ivar ready: fires with the listeners when all are bound and the service is at work; fails with
        :class:`CannotStart`.
    :ivar broken: fails with :class:`CannotStart` when the service cannot go on later.
    :ivar for_good: whether this is not a throwaway service, and its files shall stay usable for the
        user that they belong to.
    :ivar read_again: what is asked for the configuration when it is to be read again, or None when
        there is nothing to read.
    :ivar log_observer: what ``twistd`` shall log to, or None to leave that to its options.
    :ivar stopping: whether it is on its way down.
    :ivar alone: what only one process, of one program, may have or do; part of this service once
        that is this one.
    :ivar holding: the data directory, which it holds while it runs; None in a worker, for which the
        supervisor does.
    :ivar origin: how this program can be started once more, or None when it cannot.
    :ivar predecessor: the program from which this one takes over, or None.
    :ivar successor: the one that shall take over, or has, or None.
    """

    bound: Deferred[CannotStart | None] | None = None
    origin: Origin | None = None
    successor: Successor | None = None
    #: Whether the successor serves.
    handed_over = False

    def __init__(self, reactor: Any, listeners: list[Listener], notify: NotifyService,
                 holding: Holding | None, predecessor: Predecessor | None = None) -> None:
        super().__init__()
        self.reactor = reactor
        self.listeners = listeners
        self.holding = holding
        self.notify = notify
        notify.quiet = predecessor is not None
        notify.setServiceParent(self)
        self.alone = MultiService()
        self.predecessor = predecessor
        self.for_good = self.stopping = False
        self.read_again: Callable[[], Configuration] | None = None
        self.log_observer: ILogObserver | None = None
        self.ready: Deferred[list[Listener]] = Deferred()
        self.broken: Deferred[None] = Deferred()

    def setServiceParent(self, parent: IServiceCollection) -> None:
        # twistd asks the application for an observer after it has made the service, and uses it
        # unless it was told another one.
        if self.log_observer is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self.log_observer)
        super().setServiceParent(parent)

    @explained
    def privilegedStartService(self) -> None:
        """Hold the data directory, and bind every listener.

        :raises CannotStart: when another service holds it, or it is known at once that a listener
            cannot be bound.
        """
        super().privilegedStartService()
        if self.predecessor is not None:
            self.predecessor.meet(self.reactor, self._tell_status, self._end)
        if self.holding is not None:
            hold_data(self.settings, self.holding,
                      () if self.predecessor is None else self.predecessor.holding)
            if self.predecessor is None:
                self.holding.sign()
        _raise_descriptor_limit()
        self.bound = DeferredList(
            [listener.bind() for listener in self.listeners], consumeErrors=True
        ).addCallback(self._problem)
        result = getattr(self.bound, "result", None)
        if isinstance(result, CannotStart):
            raise result

    def _problem(self, outcomes: list[tuple[bool, Any]]) -> CannotStart | None:
        problems = [str(failure.value) for done, failure in outcomes if not done]
        if not problems:
            self.listeners = [listener for listener in self.listeners if listener.bound]
            return None
        self.close_listeners()
        self.let_go()
        return CannotStart("mailsvc cannot listen:\n" + "\n".join(problems))

    def close_listeners(self, *, last: bool = True) -> Deferred[Any]:
        """Give back every port.

        :param last: those too that tell how the service is.
        """
        return gatherResults([listener.close() for listener in self.listeners
                              if last or listener.kind.name != "http"])

    def let_go(self) -> None:
        """Hold the data directory no more; may be called again."""
        if self.holding is not None:
            self.holding.close()

    def unbound(self) -> list[str]:
        """The listeners that have no port."""
        return [f"{each.kind.name} on {each.description}" for each in self.listeners
                if not each.bound]

    def listening(self) -> list[tuple[str, str]]:
        """Kind and address of those that have one."""
        return [(each.kind.name, each.address) for each in self.listeners if each.bound]

    def watch(self, gathering: Gathering) -> None:
        """Serve what is not for mail, before it is started: commands that ask, whoever wants the
        figures of *gathering*, and whoever gives certificates.
        """
        data = Path(self.settings.service.data)
        of_kind = {name: [each for each in self.listeners if each.kind.name == name]
                   for name in ("http", "acme")}
        history = History(gathering.memory, self.reactor)
        history.setServiceParent(self)
        Monitor(gathering, of_kind["http"], data, history,
                self.reactor).setServiceParent(self.alone)
        Control(self, data, self.reactor).setServiceParent(self.alone)
        if of_kind["acme"]:
            from mailsvc.acme import alpn, page  # noqa: PLC0415 - it takes a while, and memory

            answering = (page.challenges if self.settings.acme.challenge == "http-01"
                         else alpn.answering)
            for each in of_kind["acme"]:
                each.open(answering(Files(data), self.reactor))

    @property
    @abstractmethod
    def settings(self) -> Settings:
        """Those in effect."""

    @property
    @abstractmethod
    def fixed(self) -> tuple[str, ...]:
        """The sections and keys of the configuration that only a restart changes."""

    @abstractmethod
    def reload(self) -> Deferred[int]:
        """Read the configuration again, and serve by it if there is no mistake.

        :returns: fires with how many workers do, once they are at work and the former ones take no
            more connections; fails with :class:`mailsvc.control.ReloadRefused`, which was logged.
        """

    def hang_up(self) -> None:
        """The same, for SIGHUP."""
        self.reload().addErrback(lambda failure: failure.trap(ReloadRefused))

    def read(self) -> Configuration:
        """The configuration as it is now.

        :raises ConfigurationError: with every mistake.
        :raises CannotStart: when it cannot be read for another reason.
        """
        if self.stopping:
            raise CannotStart("the service is stopping; start it again, and it reads all")
        if self.read_again is None:
            raise CannotStart("there is nothing to read again: this service was started from flags "
                              "alone (mailsvc dev); end it, and start it with others")
        return self.read_again()

    @staticmethod
    def refusal(error: ConfigurationError | CannotStart) -> Deferred[int]:
        """What :meth:`reload` returns because of *error*."""
        return fail(ReloadRefused(*(
            error.problems if isinstance(error, ConfigurationError) else [str(error)])))

    @abstractmethod
    def hurry(self) -> None:
        """End now whatever :meth:`stopService` still waits for."""

    def announce(self, problem: CannotStart | None, *, aloud: bool = True) -> None:
        """Say that the service is at work, or what keeps it from that.

        :param aloud: tell the log and systemd, too.
        """
        if not self.running:
            return
        if problem is not None:
            if self.predecessor is not None:
                self.predecessor.refuse(str(problem))
            self.ready.errback(problem)
        elif self.predecessor is not None:
            self.predecessor.ready().addCallback(self._take_over).addErrback(self._fail)
        else:
            self._announce(aloud=aloud)

    def _announce(self, *, aloud: bool = True) -> None:
        if aloud:
            for listener in self.listeners:
                _log.info("{kind} listens on {address}", kind=listener.kind.name,
                          address=listener.address, endpoint=listener.description)
            self.notify.ready(self.status())
        self.ready.callback(self.listeners)

    def status(self) -> str:
        """What ``systemctl status`` shows of a service that serves."""
        former = self.predecessor
        return "serving " + ", ".join(map(str, self.listeners)) + (
            "" if former is None or former.gone else
            f"; the former program ends with its last {former.left} sessions"
            if former.left is not None else "; the former program ends with its last session")

    # ---- one program after another ----

    @abstractmethod
    def begin(self) -> None:
        """Take connections, and do what one process alone may do."""

    @abstractmethod
    def drain(self) -> Deferred[Any]:
        """Take no more connections; fires when those that there are have ended by themselves."""

    @abstractmethod
    def sessions(self) -> int:
        """How many sessions there are, of mail."""

    def cannot_upgrade(self) -> str | None:
        """Why no other program may take over now, or None."""
        if self.stopping:
            return "the service is stopping"
        if self.handed_over:
            return "this program ends with its last session, and another serves; ask that one"
        if self.successor is not None:
            return "the new program is starting already"
        if self.origin is None:
            return "this service was started from flags alone (mailsvc dev); start it anew"
        if self.settings.service.store.partition(":")[0] == "memory":
            return "the mail in memory is of this process"
        return self.origin.unknown()

    def upgrade(self) -> Deferred[tuple[int, str]]:
        """Start the program that is on disk now, and let it take over when it is ready.

        :returns: fires with its pid and version when it has; this process ends with its last
            session.  Fails with :class:`mailsvc.control.UpgradeRefused`, which was logged, and then
            it is as if nothing had been asked; or with :class:`mailsvc.control.UpgradeFailed`, and
            the service ends.
        """
        return Deferred.fromCoroutine(self._upgrade())

    def upgrade_by_signal(self) -> None:
        """The same, for SIGUSR2."""
        self.upgrade().addErrback(lambda failure: failure.trap(UpgradeRefused, UpgradeFailed))

    async def _upgrade(self) -> tuple[int, str]:
        try:
            if (problem := self.cannot_upgrade()) is not None:
                raise NotReady(problem)
            assert self.origin is not None
            assert self.holding is not None
            _log.info("the program on disk is started, to take over")
            self.notify.status(self.status() + "; a new program is starting")
            successor = self.successor = Successor(
                self.origin, [(each.kind.name, each.description, each.socket.fileno())
                              for each in self.listeners if each.socket is not None],
                self.holding.filenos(), self.reactor, self._asked)
            try:
                version = await successor.start()
                if self.stopping:
                    await successor.end()
                    raise NotReady("the service is stopping")
            except BaseException:
                self.successor = None
                self._tell_status()
                raise
        except NotReady as problem:
            _log.error("this program goes on serving, for no other can take over: {problem}",
                       problem=str(problem))
            raise UpgradeRefused(str(problem)) from problem
        self.handed_over = True
        for listener in self.listeners:
            listener.share()
        # What is served by names of files, and must be free for the other.
        await DeferredList([maybeDeferred(self.alone.disownServiceParent)], consumeErrors=True)
        if self.stopping:
            await successor.end()
            raise UpgradeRefused("the service is stopping")
        self.notify.hand_over(successor.pid, f"mailsvc {version} takes over")
        self.origin.hand_over()
        try:
            await successor.go()
        except NotReady as problem:
            # Too late to go on here: systemd has another main process, or will see this one fail.
            if not self.stopping:
                self._fail(Failure())
            raise UpgradeFailed(
                f"the new program failed: {problem}; the service ends, to be started again"
            ) from problem
        # What is left here ends with its sessions, and is in nobody's way until then.
        self.let_go()
        _log.info("mailsvc {version}, process {pid}, has taken over; {sessions} sessions end here",
                  version=version, pid=successor.pid, sessions=self.sessions())
        Deferred.fromCoroutine(self._leave(successor)).addErrback(
            lambda failure: _log.failure("cannot end", failure))
        return successor.pid, version

    async def _leave(self, successor: Successor) -> None:
        """End with the last session here, and of the program before."""
        former = self.predecessor
        telling = LoopingCall(lambda: successor.left(
            self.sessions() + (former.left or 0 if former is not None else 0)))
        telling.clock = self.reactor
        telling.start(_TELL_EVERY)
        limit = self.reactor.callLater(self.settings.service.drain_seconds, self._end_late)
        await self.drain()
        if former is not None:
            await former.ended()
        telling.stop()
        if limit.active():
            limit.cancel()
        self._end()

    def _end_late(self) -> None:
        _log.warn("{sessions} sessions are still there after service.drain_seconds, and are ended",
                  sessions=self.sessions())
        self._end()

    def _end(self) -> None:
        if not self.stopping and self.reactor.running:
            self.stopping = True
            self.reactor.stop()

    def _asked(self, what: str) -> None:
        """The successor wants an end of it."""
        if not self.handed_over:
            # It is stopped before it has begun.
            return
        if what == "hurry":
            self.hurry()
        else:
            self._end()

    def _take_over(self, _: None) -> None:
        if self.stopping:
            return
        for listener in self.listeners:
            listener.own()
        if self.holding is not None:
            self.holding.sign()
        self.notify.quiet = False
        self.begin()
        self._announce()
        assert self.predecessor is not None
        self.predecessor.serves()

    def _fail(self, failure: Failure) -> None:
        _log.failure("cannot take over", failure)
        if not self.broken.called:
            self.broken.errback(CannotStart(
                f"mailsvc cannot go on: {failure.getErrorMessage()}"))

    def _tell_status(self) -> None:
        if not self.stopping and self.ready.called:
            self.notify.status(self.status())

    async def stop_others(self) -> None:
        """Let a successor that does not serve yet, and the predecessor, end first."""
        if self.successor is not None and not self.handed_over:
            self.successor.abandon("the service is stopping")
            await self.successor.over
        former = self.predecessor
        if former is not None and former.went and not former.gone:
            former.ask("stop")
            await former.ended().addTimeout(
                self.settings.service.grace_seconds + _TO_END, self.reactor).addErrback(
                    lambda _: _log.error("the former program does not end"))


def _raise_descriptor_limit() -> None:
    """Allow as many open files as the system lets us: a connection is one, a delivery two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
