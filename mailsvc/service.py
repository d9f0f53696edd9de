"""The service: everything wired together, started in order, and stopped without losing anything.

:func:`build` is the only place that knows all the parts; those that send to other hosts are in
:mod:`mailsvc.relaying`.  What it returns goes through these steps, so that ``twistd`` may turn into
a daemon and change user in between:

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

import dataclasses
import functools
import os
import resource
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.application.internet import TimerService
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernameHashedPassword, IUsernamePassword
from twisted.cred.portal import Portal
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import Interface

from mailsvc.accounts import DirectoryChecker, Keyring, MailRealm
from mailsvc.acme.alpn import Answers
from mailsvc.acme.files import Files
from mailsvc.acme.renewal import Renewal
from mailsvc.authentication import Authenticator
from mailsvc.brakes import Brakes
from mailsvc.checkers.inturn import in_turn
from mailsvc.config import SECTIONS, ConfigurationError, Settings
from mailsvc.connections import Connections
from mailsvc.directory import SqliteDirectory
from mailsvc.errors import EnhancedStatus, MailFailure, TemporaryFailure
from mailsvc.figures import (
    BANS,
    CERTIFICATE,
    CERTIFICATES,
    JOURNAL_BYTES,
    JOURNAL_SEGMENTS,
    MICRO,
    Figures,
    Share,
)
from mailsvc.front import Front, explained, listeners_of
from mailsvc.gathering import Gathering, Process
from mailsvc.holding import Holding
from mailsvc.listeners import CannotStart, Listener
from mailsvc.live import Live
from mailsvc.logindelay import LoginDelay
from mailsvc.names import DirectoryError
from mailsvc.observer import Observer
from mailsvc.passwords import PasswordHasher
from mailsvc.places import Place
from mailsvc.pop3.server import POP3Factory
from mailsvc.prerequisites import (
    make_mail_directory,
    refuse_root,
    refuse_unanswered,
    refuse_unreadable,
    refuse_unusable,
)
from mailsvc.proxy import ProxiedFactory
from mailsvc.queue.service import Queue
from mailsvc.relaying import open_queue
from mailsvc.routing import Router
from mailsvc.smtp.mode import LMTP, ODMR, SUBMISSION, TRANSPORT
from mailsvc.smtp.server import SMTPFactory
from mailsvc.store import MaildirStore, Store, StoreUnusable, open_store
from mailsvc.submission.agent import SubmissionAgent
from mailsvc.submission.rates import Rates
from mailsvc.succession import Predecessor
from mailsvc.systemd import NotifyService
from mailsvc.tls import ServerTLS, TLSUnusable, certificate_places
from mailsvc.tracing.archive import Writer
from mailsvc.tracing.recorder import Recorder
from mailsvc.trust import Untrusted
from mailsvc.webhooks import spool
from mailsvc.webhooks.delivery import Webhooks
from mailsvc.webhooks.posting import Poster
from mailsvc.webhooks.signing import SecretUnusable

if TYPE_CHECKING:
    from mailsvc.console.service import Console

_log = Logger("mailsvc")

#: How many open files are kept for other things than connections: mail, databases, log, libraries.
_SPARE_DESCRIPTORS = 256


def build(
    settings: Settings, reactor: Any, *, checkers: Iterable[ICredentialsChecker] = (),
    optional: Sequence[str] = (), predecessor: Predecessor | None = None,
) -> MailService:
    """The service that *settings* describe, in this process.

    :param checkers: who checks passwords, instead of the directory, or tokens; those for the same
        credentials are asked in turn.
    :param optional: the kinds of listeners that are left out when their port is taken.
    :param predecessor: the program that serves until this one is ready.
    :raises CannotStart: when an endpoint cannot be understood, or there is none.
    """
    return MailService(settings, reactor, listeners_of(settings, reactor, optional, predecessor),
                       tuple(checkers), predecessor=predecessor)


class MailService(Front):
    """SMTP and POP3 over one store and one directory, in one process.

    :param place: of a worker; a supervisor speaks for it then.
    """

    _directory: SqliteDirectory | None = None
    _store: Store | None = None
    _brakes: Brakes | None = None
    _queue: Queue | None = None
    _recorder: Recorder | None = None
    _console: Console | None = None
    _live: Live | None = None
    #: How many connections this process has descriptors for.
    _room = 0

    def __init__(
        self, settings: Settings, reactor: Any, listeners: list[Listener],
        checkers: tuple[ICredentialsChecker, ...], place: Place | None = None,
        predecessor: Predecessor | None = None,
    ) -> None:
        super().__init__(reactor, listeners,
                         NotifyService(reactor) if place is None else NotifyService(reactor, {}),
                         Holding(Path(settings.service.data)) if place is None else None,
                         predecessor)
        self._settings = settings
        self._checkers = checkers
        self._place = place
        files = Files(Path(settings.service.data))
        self._tls = ServerTLS(settings.tls, os.path.join(settings.service.data, "tls"),
                              settings.service.hostname, reactor,
                              str(files.certificate) if settings.acme.names else "",
                              Answers(files).choose if settings.acme.names
                              and settings.acme.challenge == "tls-alpn-01" else None)
        self._connections: list[Connections] = []
        self._figures = Figures(1) if place is None else place.figures
        self._share = Share(self._figures, 0 if place is None else place.row)
        self._hasher = PasswordHasher(settings.passwords, reactor)
        for part in self._hasher, self._tls:
            part.setServiceParent(self)
        if place is None or place.first:
            if settings.acme.names:
                Renewal(settings.acme, files, reactor).setServiceParent(self.alone)
            sweep = TimerService(3600 * settings.service.sweep_every_hours, self._sweep)
            sweep.clock = reactor
            sweep.setServiceParent(self.alone)

    # ---- starting ----

    @explained
    def startService(self) -> None:
        """Open what the listeners lead to, and begin to serve.

        :raises CannotStart: when the directory or the store cannot be used.
        """
        if self.bound is None:
            self.privilegedStartService()
        if self.for_good:
            refuse_root(self._settings)
        try:
            self._open()
        except (DirectoryError, StoreUnusable, TLSUnusable, OSError) as error:
            self.close_listeners()
            self.let_go()
            problem = str(error) if not isinstance(error, TLSUnusable) else "\n".join(
                f"{self._settings.where(key)}: {key}: {problem}" for key, problem in error.problems)
            raise CannotStart(f"mailsvc cannot start: {problem}") from error
        if self._place is None:
            self.watch(Gathering(self._figures, self))
            if self.predecessor is None:
                self.begin()
        super().startService()
        assert self.bound is not None
        # Not before the reactor runs, and with it the handlers of the signals that stop it.
        self.bound.addCallback(lambda problem: self.reactor.callWhenRunning(
            functools.partial(self.announce, problem, aloud=self._place is None)))

    def begin(self) -> None:
        """See :class:`Front`; a worker does so when the supervisor says so."""
        assert self._queue is not None
        self.alone.setServiceParent(self)
        self._queue.join()
        for listener in self.listeners:
            listener.admit()

    def _open(self) -> None:
        settings, reactor = self._settings, self.reactor
        refuse_unreadable(self._checkers)
        refuse_unanswered(settings)
        refuse_unusable(settings)
        hostname, domain = settings.service.hostname, settings.routing.default_domain
        make_mail_directory(settings)
        self._open_webhooks()
        self._tls.load(aloud=self._place is None or self._place.first)
        store = self._store = open_store(
            settings.service.store, settings.maildir, hostname, reactor)
        store.start()
        database = settings.accounts.database
        directory = self._directory = SqliteDirectory(
            database, create=os.path.isdir(os.path.dirname(database)))
        state = Path(settings.service.data) / "state.sqlite"
        delay = settings.pop3.login_delay_seconds
        realm = MailRealm(
            store, directory, LoginDelay(
                state, delay, reactor.seconds,
                functools.partial(deferToThreadPool, reactor, reactor.getThreadPool()))
            if delay else None, default_domain=domain, clock=reactor)
        own = DirectoryChecker(directory, self._hasher, domain)
        portal = Portal(realm, in_turn(self._checkers))
        if interfaces := _own(self._checkers, own):
            portal.registerChecker(own, *interfaces)
        router = Router(directory, hostname, settings.routing)
        brakes = self._brakes = Brakes(settings.brakes, state, reactor)
        brakes.start()
        rates = Rates(state, settings.submission, reactor)
        rates.setServiceParent(self)
        # Keys of passwords that are kept elsewhere are not here.
        keyring = None if _passwords_elsewhere(self._checkers) else Keyring(
            directory, settings.passwords.scram_iterations, domain)
        authenticator = Authenticator(
            portal, directory, settings.auth, hostname=hostname, keyring=keyring, brakes=brakes,
            default_domain=domain, share=self._share)
        # What is over a limit is told so; what has no descriptor is not, nor could mail be written.
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._room = descriptors - min(descriptors // 2, _SPARE_DESCRIPTORS)
        counts = {} if self._place is None else {
            name: each.share(self._place.row) for name, each in self._place.crew.counts.items()}
        smtp, pop3 = (
            Connections(section.connections, section.connections_per_address,
                        section.exempt_networks, reactor, section.connections_per_minute,
                        self._admit, section.commands_per_minute, counts.get(protocol))
            for protocol, section in (("smtp", settings.smtp), ("pop3", settings.pop3)))
        self._connections = [smtp, pop3]
        queue = self._queue = self._open_queue(router, store)
        factories: dict[str, Any] = {"pop3": POP3Factory(
            authenticator, settings.pop3, hostname, reactor,
            self._tls if settings.pop3.stls else None, pop3, self._share)}
        for mode in TRANSPORT, LMTP:
            factories[mode.name] = SMTPFactory(
                store, router, settings.smtp, hostname, reactor,
                self._tls if settings.smtp.starttls else None, mode, smtp, queue=queue,
                share=self._share)
        agent = SubmissionAgent(settings.submission, router, rates, hostname)
        for mode in SUBMISSION, ODMR:
            factories[mode.name] = SMTPFactory(
                store, router, settings.smtp, hostname, reactor, self._tls, mode, smtp,
                authenticator, agent if mode.submission else None, queue,
                self._share)
        if any(listener.kind.protocol == "console" for listener in self.listeners):
            from mailsvc.api.site import Api  # noqa: PLC0415 - it takes a while
            from mailsvc.console.service import Console  # noqa: PLC0415

            self._console = Console(
                settings, store, directory, authenticator, realm, self._hasher,
                lambda login: SMTPFactory(
                    store, router, dataclasses.replace(
                        settings.smtp, allow_cleartext_auth="yes", xclient_networks=[]),
                    hostname, reactor, None, SUBMISSION, smtp, login, agent, queue, self._share),
                self._admit, self.listeners, Api, reactor,
                elsewhere=_passwords_elsewhere(self._checkers))
            self._console.setServiceParent(self)
            self._connections.append(self._console.connections)
        for kind, plain in ("submissions", "submission"), ("pop3s", "pop3"):
            factories[kind] = TLSMemoryBIOFactory(self._tls, False, factories[plain], reactor)
        self._tell_of([smtp, pop3])
        self._observe(store, brakes, queue)
        self._open_trace()
        for listener in self.listeners:
            if not listener.for_mail:
                continue
            factory = (self._console.factory(listener, self._tls)
                       if self._console is not None and listener.kind.protocol == "console"
                       else factories[listener.kind.name])
            listener.open(ProxiedFactory(factory, settings.proxy, reactor)
                          if settings.proxy.networks else factory)

    def _open_trace(self) -> None:
        settings = self._settings
        if settings.trace.enabled:
            recorder = self._recorder = Recorder(functools.partial(
                Writer, Path(settings.service.data) / "trace", settings.trace), self.reactor,
                self._share)
            recorder.start()

    def _tell_of(self, connections: list[Connections]) -> None:
        """Let commands and pages ask for these, and what is said on them."""
        self._live = Live(connections, Path(self._settings.service.data), self.reactor)
        self._live.setServiceParent(self)

    def _observe(self, store: Store, brakes: Brakes, queue: Queue) -> None:
        share = self._share
        bans, octets, segments = map(share.level, (BANS, JOURNAL_BYTES, JOURNAL_SEGMENTS))
        ends = [share.level(CERTIFICATE, str(number)) for number in range(CERTIFICATES)]

        def look() -> None:
            queue.look()
            bans.set(brakes.bans)
            for level, end in zip(ends, self._tls.ends, strict=False):
                level.set(round(MICRO * max(0.0, end)))
            if isinstance(store, MaildirStore):
                for level, value in zip((octets, segments), store.backlog, strict=True):
                    level.set(value)

        Observer(share, self.reactor, [look],
                 store.root if isinstance(store, MaildirStore) else None,
                 Path(self._settings.service.data)).setServiceParent(self)

    # ---- another configuration ----

    @property
    def settings(self) -> Settings:
        return self._settings

    @property
    def fixed(self) -> tuple[str, ...]:
        return tuple(SECTIONS)

    def reload(self) -> Deferred[int]:
        """Say what a restart would bring: there is nobody else to serve meanwhile."""
        try:
            self.read()
        except (ConfigurationError, CannotStart) as error:
            _log.error("the configuration has mistakes now: {problem}", problem=str(error))
            return self.refusal(error)
        problem = "one worker serves: a changed configuration counts from the next start"
        _log.warn("{problem}", problem=problem)
        return self.refusal(CannotStart(problem))

    # ---- for those who watch ----

    def processes(self) -> list[Process]:
        """This one."""
        return [Process("worker-0", os.getpid(), 0, serves=not self.stopping)]

    def certificates(self) -> list[str]:
        """What the certificates are called."""
        return certificate_names(self._settings)

    # ---- further parts ----

    def _admit(self, client: str) -> MailFailure | None:
        """Why a client may not connect: there is no room for it, or it is banned."""
        assert self._brakes is not None
        if sum(map(len, self._connections)) >= self._room:
            return TemporaryFailure("Too many connections; try again later",
                                    EnhancedStatus(4, 3, 2))
        return self._brakes.admit(client)

    def _open_queue(self, router: Router, store: Store) -> Queue:
        listening = {place for listener in self.listeners
                     if listener.kind.name == "smtp" and (place := listener.host_and_port)}
        queue = open_queue(self._settings, router, store, listening,
                           1 if self._place is None else self._place.workers, self._share,
                           self.reactor)
        queue.setServiceParent(self)
        return queue

    def _open_webhooks(self) -> None:
        """What tells others of what is logged from here on."""
        settings, path = self._settings.webhooks, Path(self._settings.service.data) / spool.NAME
        if not settings.urls:
            return
        try:
            poster = Poster(settings, self.reactor)
        except SecretUnusable as problem:
            raise CannotStart(f"mailsvc cannot start: {self._settings.where('webhooks.secret')}: "
                              f"webhooks.secret: {problem}") from problem
        except Untrusted as problem:
            raise CannotStart(
                f"mailsvc cannot start: {self._settings.where('webhooks.authorities')}: "
                f"webhooks.authorities: {problem}") from problem
        spool.Spool(path).close()
        webhooks = Webhooks(settings, path, poster, self._share, self.reactor)
        webhooks.observe()
        webhooks.setServiceParent(self)

    def _sweep(self) -> Deferred[None]:
        assert self._store is not None

        def log(removed: int) -> None:
            if removed:
                _log.info("removed {removed} leftovers of abandoned deliveries",
                               removed=removed)

        return self._store.sweep().addCallback(log)

    # ---- stopping ----

    def drain(self) -> Deferred[Any]:
        """As :class:`Front`; what waits in the queue is another process's to send from now on."""
        if self.alone.parent is not None:
            maybeDeferred(self.alone.disownServiceParent).addErrback(
                lambda failure: _log.failure("cannot end what another does now", failure))
        if self._queue is not None:
            self._queue.hand_over()
        if self._console is not None:
            self._console.connections.shut_down(self._settings.service.grace_seconds)
        return self.close_listeners().addCallback(
            lambda _: gatherResults([each.emptied() for each in self._connections]))

    def sessions(self) -> int:
        """How many connections there are."""
        return sum(map(len, self._connections))

    def stopService(self) -> Deferred[None]:
        """End all connections and all work; fires when there is none left."""
        return Deferred.fromCoroutine(self._stop())

    def hurry(self) -> None:
        if self.predecessor is not None:
            self.predecessor.ask("hurry")
        for each in self._connections:
            each.abort()
        if self._queue is not None:
            self._queue.cut_off()

    async def _stop(self) -> None:
        seconds = self._settings.service.grace_seconds
        connections = self.sessions()
        _log.info("stopping; {connections} connections have {seconds:g} seconds to end",
                       connections=connections, seconds=seconds)
        self.notify.stopping(f"stopping: waiting for {connections} connections")
        self.stopping = True
        if self._live is not None:
            # A page that shows one would be waited for.
            self._live.end_watches()
        await self.close_listeners(last=False)
        if self._queue is not None:
            self._queue.let_go()
        await gatherResults([each.shut_down(seconds) for each in self._connections]
                            + [Deferred.fromCoroutine(self.stop_others())])
        await super().stopService()
        if self._brakes is not None:
            await self._brakes.stop()
        # A client that left does not stop the commit of what it sent.
        if self._store is not None:
            await self._store.stop()
        if self._directory is not None:
            self._directory.close()
        if self._recorder is not None:
            await self._recorder.stop()
        self.let_go()
        _log.info("stopped")


def certificate_names(settings: Settings) -> list[str]:
    """What the certificates of the service that *settings* describe are called in its figures."""
    places = certificate_places(settings.tls)
    return [place.partition(":")[0] for place in places] or [
        "acme" if settings.acme.names else "self-signed"]


_PASSWORDS = {IUsernamePassword, IUsernameHashedPassword}


def _passwords_elsewhere(checkers: Iterable[ICredentialsChecker]) -> bool:
    """Whether some of *checkers* check passwords, so that the directory's do not count."""
    return any(not _PASSWORDS.isdisjoint(checker.credentialInterfaces) for checker in checkers)


def _own(checkers: Iterable[ICredentialsChecker], own: DirectoryChecker) -> list[type[Interface]]:
    """What *own* is asked about beside *checkers*: passwords only if none of those checks any."""
    elsewhere = {interface for checker in checkers for interface in checker.credentialInterfaces}
    if _passwords_elsewhere(checkers):
        elsewhere |= _PASSWORDS
    return [interface for interface in own.credentialInterfaces if interface not in elsewhere]
