"""The front of the service: its listeners bound, announced and closed together.

:class:`Front` is what ``twistd`` and ``mailsvc dev`` start and stop, be there one process behind it
(:class:`mailsvc.service.MailService`) or several (:class:`mailsvc.workers.Supervisor`).
"""

from __future__ import annotations

import resource
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twisted.application.service import IServiceCollection, MultiService
from twisted.cred.checkers import ICredentialsChecker
from twisted.internet.defer import Deferred, DeferredList, fail, gatherResults
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized

from mailsvc.acme.files import Files
from mailsvc.config import ConfigurationError, Settings
from mailsvc.control import Control, ReloadRefused
from mailsvc.gathering import Gathering
from mailsvc.history import History
from mailsvc.listeners import KINDS, CannotStart, Listener
from mailsvc.monitor import Monitor
from mailsvc.systemd import NotifyService

_log = Logger("mailsvc")

#: What is read anew: the settings, and who checks passwords.
Configuration = tuple[Settings, tuple[ICredentialsChecker, ...]]


def listeners_of(settings: Settings, reactor: Any, optional: Sequence[str] = ()) -> list[Listener]:
    """The listeners that *settings* name.

    :param optional: the kinds of listeners that are left out when their port is taken.
    :raises CannotStart: when an endpoint cannot be understood, or there is none.
    """
    listeners = [
        Listener(kind, description, reactor, optional=kind.name in optional)
        for kind in KINDS.values()
        for description in getattr(settings.listeners, kind.name)]
    if not any(listener.for_mail for listener in listeners):
        raise CannotStart("nothing to do: give an endpoint to listeners.smtp or listeners.pop3")
    return listeners


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
    """

    bound: Deferred[CannotStart | None] | None = None

    def __init__(self, reactor: Any, listeners: list[Listener], notify: NotifyService) -> None:
        super().__init__()
        self.reactor = reactor
        self.listeners = listeners
        self.notify = notify
        notify.setServiceParent(self)
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

    def privilegedStartService(self) -> None:
        """Bind every listener.

        :raises CannotStart: when it is known at once that one cannot be bound.
        """
        super().privilegedStartService()
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
        return CannotStart("mailsvc cannot listen:\n" + "\n".join(problems))

    def close_listeners(self, *, last: bool = True) -> Deferred[Any]:
        """Give back every port.

        :param last: those too that tell how the service is.
        """
        return gatherResults([listener.close() for listener in self.listeners
                              if last or listener.kind.name != "http"])

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
        Monitor(gathering, of_kind["http"], data, history, self.reactor).setServiceParent(self)
        Control(self, data, self.reactor).setServiceParent(self)
        if of_kind["acme"]:
            from mailsvc.acme.page import challenges  # noqa: PLC0415 - it takes a while, and memory

            for each in of_kind["acme"]:
                each.open(challenges(Files(data), self.reactor))

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
            self.ready.errback(problem)
            return
        if aloud:
            for listener in self.listeners:
                _log.info("{kind} listens on {address}", kind=listener.kind.name,
                          address=listener.address, endpoint=listener.description)
            self.notify.ready("serving " + ", ".join(map(str, self.listeners)))
        self.ready.callback(self.listeners)


def _raise_descriptor_limit() -> None:
    """Allow as many open files as the system lets us: a connection is one, a delivery two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
