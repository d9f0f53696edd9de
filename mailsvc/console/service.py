"""The console of one process: what it shares among its pages, started and stopped."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.web.http import Request

from mailsvc.authentication import Authenticator
from mailsvc.config import Settings
from mailsvc.connections import Connections
from mailsvc.console.call import Backend
from mailsvc.console.channel import Exchange, WebFactory
from mailsvc.console.sessions import Sessions
from mailsvc.console.site import ConsoleFactory
from mailsvc.directory import SqliteDirectory
from mailsvc.errors import MailFailure
from mailsvc.interfaces import IMailboxStore
from mailsvc.listeners import Listener
from mailsvc.passwords import PasswordHasher
from mailsvc.smtp.server import SMTPFactory
from mailsvc.store.threads import Threads

#: How much may be done at once that takes its time.
_THREADS = 8


class Api(Protocol):
    """The API, as it is served beside the pages."""

    def below_its_path(self, request: Request) -> Exchange | None:
        """Who answers a request to the console; None when it is for a page."""

    def factory(self, connections: Connections) -> WebFactory:
        """What serves it alone."""


class Console(Service):
    """Serves the pages.

    :param submission: makes a server for submission that lets in whom its authenticator does.
    :param admit: why a client may not connect, or None.
    :param listeners: all of the service.
    :param api: makes the API.
    :param elsewhere: whether passwords are kept elsewhere than in *directory*.
    :ivar connections: those of browsers.
    :raises DirectoryError: what the processes share cannot be used.
    """

    def __init__(
        self, settings: Settings, store: IMailboxStore, directory: SqliteDirectory,
        authenticator: Authenticator, realm: Any, hasher: PasswordHasher,
        submission: Callable[[Authenticator], SMTPFactory],
        admit: Callable[[str], MailFailure | None], listeners: list[Listener],
        api: Callable[[Backend], Api], reactor: Any, *,
        elsewhere: bool,
    ) -> None:
        self._settings = settings.console
        self._reactor = reactor
        self._threads = Threads(reactor, _THREADS, "console")
        self._lookups = Threads(reactor, _THREADS, "console-dns")
        self._sessions = Sessions(
            Path(settings.service.data) / "state.sqlite", settings.console)
        self.connections = Connections(
            settings.console.connections, settings.console.connections_per_address, (), reactor,
            admit=admit)

        def listening() -> list[tuple[str, str]]:
            return [(each.kind.name, each.address) for each in listeners if each.bound]

        backend = Backend(
            settings, store, directory, authenticator, self._sessions, self._threads, submission,
            realm, hasher.verify, reactor, self._lookups, listening, elsewhere)
        programs = api(backend)
        self._factories: dict[str, WebFactory] = {
            "console": ConsoleFactory(backend, self.connections, programs.below_its_path),
            "api": programs.factory(self.connections)}

    def factory(self, listener: Listener, tls: Any) -> Any:
        """What *listener* leads to: with TLS from the first octet, unless it may be without."""
        factory = self._factories[listener.kind.name]
        # An endpoint such as ssl: brings its own.
        bare = listener.description.startswith("ssl:") or {
            "no": False, "yes": True, "loopback": _is_here(listener),
        }[self._settings.cleartext]
        return factory if bare else TLSMemoryBIOFactory(tls, False, factory, self._reactor)

    def startService(self) -> None:
        super().startService()
        self._threads.start()
        self._lookups.start()

    def stopService(self) -> Deferred[None]:
        """End; fires when what was begun is done."""
        super().stopService()
        ended = gatherResults([self._threads.stop(), self._lookups.stop()])
        return ended.addCallback(lambda _: self._sessions.close())


def _is_here(listener: Listener) -> bool:
    """Whether only this machine reaches it."""
    place = listener.host_and_port
    return place is None or ipaddress.ip_address(place[0]).is_loopback
