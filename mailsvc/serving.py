"""One process or several: the service that settings describe, in as many as they say.

In one, it is a :class:`mailsvc.service.MailService`; in several, a
:class:`mailsvc.workers.Supervisor`, which starts such services and serves nobody itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.logger import Logger

from mailsvc.config import Settings
from mailsvc.front import Configuration, listeners_of
from mailsvc.listeners import Listener
from mailsvc.log import SharedLogFile
from mailsvc.service import MailService, build
from mailsvc.succession import Predecessor
from mailsvc.workers import Supervisor, count, freeze

_log = Logger("mailsvc.workers")


def serve(
    settings: Settings, reactor: Any, *, checkers: Iterable[ICredentialsChecker] = (),
    optional: Sequence[str] = (), read_again: Callable[[], Configuration] | None = None,
    log_file: SharedLogFile | None = None, predecessor: Predecessor | None = None,
) -> MailService | Supervisor:
    """The service that *settings* describe, in as many processes as they say.

    :param read_again: what SIGHUP asks for the configuration; without, SIGHUP is left alone.
    :param log_file: what all processes log to, if it is to be rotated.
    :param predecessor: the program that serves until this one is ready.
    :raises CannotStart: as :func:`mailsvc.service.build`.
    """
    service: MailService | Supervisor
    if count(settings) == 1:
        if settings.service.workers > 1:
            _log.warn("one worker serves: a store in memory is of one process")
        service = build(settings, reactor, checkers=checkers, optional=optional,
                        predecessor=predecessor)
        service.ready.addCallback(_frozen)
    else:
        service = Supervisor(settings, reactor,
                             listeners_of(settings, reactor, optional, predecessor),
                             tuple(checkers), log_file, predecessor)
    service.read_again = read_again
    return service


def _frozen(listeners: list[Listener]) -> list[Listener]:
    """A callback: the service is ready, and what there is by now stays."""
    freeze()
    return listeners
