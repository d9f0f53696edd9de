"""The service: everything wired together, started in order, and stopped without losing anything.

:func:`build` is the only place that knows all the parts.  What it returns goes through these steps,
so that ``twistd`` may turn into a daemon and change user in between:

1. ``build`` reads the endpoints; it opens nothing.
2. ``privilegedStartService`` raises the limit of open files and binds every listener, as root where
   that is needed.  No connection is accepted yet.
3. ``startService`` opens the directory and the store as the final user, and begins to serve.
4. ``ready`` fires, and systemd is told, when all of that is done.
5. ``stopService`` closes the listeners, lets transactions and sessions end for
   ``service.grace_seconds``, then ends the store and the hashing threads once what they have begun
   is done.  Nothing that was acknowledged waits anywhere by then.

What keeps it from starting is a :class:`CannotStart`, whose text says what to do.
"""

from __future__ import annotations

import os
import pwd
import resource
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from twisted.application.internet import TimerService
from twisted.application.service import IServiceCollection, MultiService
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernameHashedPassword, IUsernamePassword
from twisted.cred.portal import Portal
from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.logger import ILogObserver, Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.components import Componentized

from mailsvc.accounts import DirectoryChecker, Keyring, MailRealm
from mailsvc.authentication import Authenticator
from mailsvc.brakes import Brakes
from mailsvc.checkers.inturn import InTurn, in_turn
from mailsvc.config import Settings
from mailsvc.connections import Connections
from mailsvc.directory import SqliteDirectory
from mailsvc.dkim import Keys, Signer
from mailsvc.listeners import KINDS, CannotStart, Listener
from mailsvc.names import DirectoryError
from mailsvc.passwords import PasswordHasher
from mailsvc.pop3.server import POP3Factory
from mailsvc.proxy import ProxiedFactory
from mailsvc.queue.carrier import Carrier
from mailsvc.queue.exchangers import Exchangers
from mailsvc.queue.reports import Reports
from mailsvc.queue.routes import Routes
from mailsvc.queue.runner import Runner
from mailsvc.queue.schedule import Schedule
from mailsvc.queue.service import Queue
from mailsvc.queue.spool import Spool
from mailsvc.rates import Rates
from mailsvc.routing import Router
from mailsvc.smtp.mode import LMTP, SUBMISSION, TRANSPORT
from mailsvc.smtp.server import SMTPFactory
from mailsvc.store import Store, StoreUnusable, open_store
from mailsvc.store.threads import Threads
from mailsvc.submission.agent import SubmissionAgent
from mailsvc.systemd import NotifyService
from mailsvc.tls import ServerTLS, TLSUnusable

_log = Logger("mailsvc")


def build(
    settings: Settings, reactor: Any, *, checkers: Iterable[ICredentialsChecker] = (),
    optional: Collection[str] = (),
) -> MailService:
    """The service that *settings* describe.

    :param checkers: who checks passwords, instead of the directory, or tokens; those for the same
        credentials are asked in turn.
    :param optional: the kinds of listeners that are left out when their port is taken.
    :raises CannotStart: when an endpoint cannot be understood, or there is none.
    """
    listeners = [
        Listener(kind, description, reactor, optional=kind.name in optional)
        for kind in KINDS.values()
        for description in getattr(settings.listeners, kind.name)]
    if not listeners:
        raise CannotStart("nothing to do: give an endpoint to listeners.smtp or listeners.pop3")
    return MailService(settings, reactor, listeners, tuple(checkers))


class MailService(MultiService):
    """SMTP and POP3 over one store and one directory.

    :ivar ready: fires with the listeners when all are bound and the service is at work; fails with
        :class:`CannotStart`.
    :ivar for_good: whether this is not a throwaway service, and its files shall stay usable for the
        user that they belong to.
    :ivar log_observer: what ``twistd`` shall log to, or None to leave that to its options.
    """

    _bound: Deferred[Any] | None = None
    _directory: SqliteDirectory | None = None
    _store: Store | None = None
    _brakes: Brakes | None = None

    def __init__(
        self, settings: Settings, reactor: Any, listeners: list[Listener],
        checkers: tuple[ICredentialsChecker, ...],
    ) -> None:
        super().__init__()
        self._settings = settings
        self._reactor = reactor
        self._listeners = listeners
        self._checkers = checkers
        self._tls = ServerTLS(settings.tls, os.path.join(settings.service.data, "tls"),
                              settings.service.hostname, reactor)
        self._connections: list[Connections] = []
        self._hasher = PasswordHasher(settings.passwords, reactor)
        self._notify = NotifyService(reactor)
        sweep = TimerService(3600 * settings.service.sweep_every_hours, self._sweep)
        sweep.clock = reactor
        for part in self._hasher, self._tls, self._notify, sweep:
            part.setServiceParent(self)
        self.for_good = False
        self.log_observer: ILogObserver | None = None
        self.ready: Deferred[list[Listener]] = Deferred()

    def setServiceParent(self, parent: IServiceCollection) -> None:
        # twistd asks the application for an observer after it has made the service, and uses it
        # unless it was told another one.
        if self.log_observer is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self.log_observer)
        super().setServiceParent(parent)

    # ---- starting ----

    def privilegedStartService(self) -> None:
        """Bind every listener.

        :raises CannotStart: when it is known at once that one cannot be bound.
        """
        super().privilegedStartService()
        _raise_descriptor_limit()
        self._bound = DeferredList(
            [listener.bind() for listener in self._listeners], consumeErrors=True)
        self._bound.addCallback(self._problem)
        if self._bound.called and isinstance(self._bound.result, CannotStart):
            raise self._bound.result

    def _problem(self, outcomes: list[tuple[bool, Any]]) -> CannotStart | None:
        problems = [str(failure.value) for done, failure in outcomes if not done]
        if not problems:
            return None
        self._close_listeners()
        return CannotStart("mailsvc cannot listen:\n" + "\n".join(problems))

    def startService(self) -> None:
        """Open what the listeners lead to, and begin to serve.

        :raises CannotStart: when the directory or the store cannot be used.
        """
        if self._bound is None:
            self.privilegedStartService()
        if self.for_good:
            _refuse_root(self._settings)
        try:
            self._open()
        except (DirectoryError, StoreUnusable, TLSUnusable, OSError) as error:
            self._close_listeners()
            raise CannotStart(f"mailsvc cannot start: {error}") from error
        super().startService()
        assert self._bound is not None
        # Not before the reactor runs, and with it the handlers of the signals that stop it.
        self._bound.addCallback(
            lambda problem: self._reactor.callWhenRunning(self._announce, problem))

    def _open(self) -> None:
        settings, reactor = self._settings, self._reactor
        _refuse_unreadable(self._checkers)
        hostname, domain = settings.service.hostname, settings.routing.default_domain
        _make_mail_directory(settings)
        self._tls.load()
        store = self._store = open_store(
            settings.service.store, settings.maildir, hostname, reactor)
        store.start()
        database = settings.accounts.database
        directory = self._directory = SqliteDirectory(
            database, create=os.path.isdir(os.path.dirname(database)))
        realm = MailRealm(store, directory, settings.pop3.login_delay_seconds,
                          default_domain=domain, clock=reactor)
        own = DirectoryChecker(directory, self._hasher, domain)
        portal = Portal(realm, [*in_turn(self._checkers), *_own(self._checkers, own)])
        router = Router(directory, hostname, settings.routing)
        state = Path(settings.service.data) / "state.sqlite"
        brakes = self._brakes = Brakes(settings.brakes, state, reactor)
        brakes.start()
        rates = Rates(state, settings.submission, reactor)
        rates.setServiceParent(self)
        # Keys of passwords that are kept elsewhere are not here.
        keyring = None if _passwords_elsewhere(self._checkers) else Keyring(
            directory, settings.passwords.scram_iterations, domain)
        authenticator = Authenticator(
            portal, directory, settings.auth, hostname=hostname, keyring=keyring, brakes=brakes,
            default_domain=domain)
        smtp, pop3 = (
            Connections(section.connections, section.connections_per_address,
                        section.exempt_networks, reactor, section.connections_per_minute,
                        brakes.admit, section.commands_per_minute)
            for section in (settings.smtp, settings.pop3))
        self._connections = [smtp, pop3]
        queue = self._open_queue(router, store)
        factories: dict[str, Any] = {"pop3": POP3Factory(
            authenticator, settings.pop3, hostname, reactor,
            self._tls if settings.pop3.stls else None, pop3)}
        for mode in TRANSPORT, LMTP:
            factories[mode.name] = SMTPFactory(
                store, router, settings.smtp, hostname, reactor,
                self._tls if settings.smtp.starttls else None, mode, smtp, queue=queue)
        factories[SUBMISSION.name] = SMTPFactory(
            store, router, settings.smtp, hostname, reactor, self._tls, SUBMISSION, smtp,
            authenticator, SubmissionAgent(settings.submission, router, rates, hostname), queue)
        for kind, plain in ("submissions", "submission"), ("pop3s", "pop3"):
            factories[kind] = TLSMemoryBIOFactory(self._tls, False, factories[plain], reactor)
        for listener in self._listeners:
            factory = factories[listener.kind.name]
            listener.open(ProxiedFactory(factory, settings.proxy, reactor)
                          if settings.proxy.networks else factory)

    def _open_queue(self, router: Router, store: Store) -> Queue:
        """The queue, and in it what sends when this process is the one that may."""
        settings, reactor = self._settings, self._reactor
        hostname = settings.service.hostname
        threads = Threads(reactor, 16, "queue")
        queue = Queue(Spool(Path(settings.service.data) / "queue"), threads, reactor,
                      min(5, settings.service.grace_seconds))
        listening = {place for listener in self._listeners
                     if listener.kind.name == "smtp" and (place := listener.host_and_port)}

        def runner() -> Runner:
            exchangers = Exchangers(settings.relay, hostname, listening, reactor)
            carrier = Carrier(settings.relay, settings.queue, exchangers, hostname, reactor)
            return Runner(queue.spool, threads, carrier, Routes(settings.relay),
                          Schedule(settings.queue), reports, router.srs, reactor,
                          Signer(Keys(Path(settings.service.data) / "dkim")).sign)

        queue.reports = reports = Reports(
            router, store, queue, hostname, settings.queue.language, reactor.seconds)
        queue.make_runner = runner
        queue.setServiceParent(self)
        return queue

    def _announce(self, problem: CannotStart | None) -> None:
        if not self.running:
            return
        if problem is not None:
            self.ready.errback(problem)
            return
        self._listeners = [listener for listener in self._listeners if listener.bound]
        for listener in self._listeners:
            _log.info("{kind} listens on {address}", kind=listener.kind.name,
                      address=listener.address, endpoint=listener.description)
        self._notify.ready("serving " + ", ".join(map(str, self._listeners)))
        self.ready.callback(self._listeners)

    def _sweep(self) -> Deferred[None]:
        assert self._store is not None

        def log(removed: int) -> None:
            if removed:
                _log.info("removed {removed} leftovers of abandoned deliveries",
                               removed=removed)

        return self._store.sweep().addCallback(log)

    # ---- stopping ----

    def stopService(self) -> Deferred[None]:
        """End all connections and all work; fires when there is none left."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        seconds = self._settings.service.grace_seconds
        connections = sum(map(len, self._connections))
        _log.info("stopping; {connections} connections have {seconds:g} seconds to end",
                       connections=connections, seconds=seconds)
        self._notify.stopping(f"stopping: waiting for {connections} connections")
        await self._close_listeners()
        await gatherResults([each.shut_down(seconds) for each in self._connections])
        await super().stopService()
        if self._brakes is not None:
            await self._brakes.stop()
        # A client that left does not stop the commit of what it sent.
        if self._store is not None:
            await self._store.stop()
        if self._directory is not None:
            self._directory.close()
        _log.info("stopped")

    def _close_listeners(self) -> Deferred[Any]:
        return gatherResults([listener.close() for listener in self._listeners])


def _refuse_root(settings: Settings) -> None:
    """Do not serve as root what belongs to somebody else, who could not use it afterwards."""
    try:
        owner = os.stat(settings.service.data).st_uid
    except OSError:
        return  # opening what lies there tells better what is wrong
    if os.geteuid() == 0 and owner != 0:
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = str(owner)
        raise CannotStart(
            f"mailsvc cannot start: {settings.service.data} belongs to {name}, and what root made "
            f"there {name} could not use; give twistd --uid {name} --gid {name}, or run it as "
            f"{name}: sudo -u {name} …")


def _refuse_unreadable(checkers: Iterable[ICredentialsChecker]) -> None:
    """Do not serve with a file of passwords that would refuse everybody; Twisted only warns."""
    for checker in checkers:
        path = getattr(checker, "filename", None)
        if isinstance(path, str) and not os.access(path, os.R_OK):
            raise CannotStart(f"mailsvc cannot start: --auth: {path} cannot be read by user "
                              f"{os.geteuid()}; name a file that the user who runs the service may "
                              "read")


_PASSWORDS = {IUsernamePassword, IUsernameHashedPassword}


def _passwords_elsewhere(checkers: Iterable[ICredentialsChecker]) -> bool:
    """Whether some of *checkers* check passwords, so that the directory's do not count."""
    return any(not _PASSWORDS.isdisjoint(checker.credentialInterfaces) for checker in checkers)


def _own(checkers: Iterable[ICredentialsChecker],
         own: DirectoryChecker) -> list[ICredentialsChecker]:
    """What *own* is asked about beside *checkers*: passwords only if none of those checks any."""
    elsewhere = {interface for checker in checkers for interface in checker.credentialInterfaces}
    if _passwords_elsewhere(checkers):
        elsewhere |= _PASSWORDS
    return [InTurn(interface, [own]) for interface in own.credentialInterfaces
            if interface not in elsewhere]


def _make_mail_directory(settings: Settings) -> None:
    """Make the directory that mail lies in, in a data directory that must be there.

    A data directory that is missing is a wrong name or a file system that is not mounted.
    """
    scheme, _, place = settings.service.store.partition(":")
    data = settings.service.data
    if scheme == "maildir" and os.path.dirname(os.path.abspath(place)) == data:
        try:
            os.mkdir(place, 0o700)
        except FileExistsError:
            pass
        except FileNotFoundError:
            raise CannotStart(
                f"mailsvc cannot start: there is no directory {data} (service.data); make it for "
                f"the user that runs mailsvc: install -d -o USER -g USER -m 700 {data}") from None
        except PermissionError:
            user = pwd.getpwuid(os.geteuid()).pw_name
            raise CannotStart(
                f"mailsvc cannot start: {user} may not write in {data} (service.data); give it to "
                f"the user that runs mailsvc: chown -R {user} {data}") from None


def _raise_descriptor_limit() -> None:
    """Allow as many open files as the system lets us: a connection is one, a delivery two."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
