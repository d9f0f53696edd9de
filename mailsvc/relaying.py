"""What sends mail to other hosts, wired together: the queue of one process and all behind it.

:func:`open_queue` joins the parts of :mod:`mailsvc.queue` to each other and to the rest of the
service, :func:`open_security` those that know what other hosts have to prove.  What is opened here
sends nothing yet: :class:`mailsvc.queue.service.Queue` says when this process does.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from mailsvc.config import Settings
from mailsvc.dkim import Keys, Signer
from mailsvc.figures import Share
from mailsvc.names import DirectoryError
from mailsvc.ownership import name_of
from mailsvc.queue.attempts import Attempts
from mailsvc.queue.carrier import Carrier
from mailsvc.queue.exchangers import Exchangers
from mailsvc.queue.local import Local
from mailsvc.queue.reports import Reports
from mailsvc.queue.routes import Routes
from mailsvc.queue.runner import Runner
from mailsvc.queue.schedule import Schedule
from mailsvc.queue.security.https import HTTPS
from mailsvc.queue.security.levels import Levels
from mailsvc.queue.security.lookup import Lookup
from mailsvc.queue.security.policies import Policies, Shelf
from mailsvc.queue.security.reporter import Post, Reporter
from mailsvc.queue.security.results import Results
from mailsvc.queue.security.terms import Security
from mailsvc.queue.security.tlsa import Bindings
from mailsvc.queue.service import Queue
from mailsvc.queue.spool import Spool
from mailsvc.routing import Router
from mailsvc.state import State
from mailsvc.store import Store
from mailsvc.store.threads import Threads

_log = Logger("mailsvc")


def open_queue(
    settings: Settings, router: Router, store: Store, listening: Collection[tuple[str, int]],
    workers: int, share: Share, reactor: Any,
) -> Queue:
    """The queue, and in it what sends when this process is the one that may.

    :param listening: where the service takes mail by SMTP itself, as :class:`Exchangers` has it.
    :param workers: how many processes serve at once.
    """
    hostname = settings.service.hostname
    threads = Threads(reactor, 16, "queue")
    signer = Signer(Keys(Path(settings.service.data) / "dkim"))
    _try_keys(signer)
    queue = Queue(Spool(Path(settings.service.data) / "queue"), threads, reactor,
                  min(5, settings.service.grace_seconds), share, settings.queue.old_seconds)
    senders = settings.queue.senders(workers)

    def attempts() -> Attempts:
        exchangers = Exchangers(settings.relay, hostname, listening, reactor)
        carrier = Carrier(settings.relay, settings.queue.share(senders), exchangers,
                          open_security(settings, exchangers, threads, reports.post, reactor),
                          hostname, reactor)
        return Attempts(queue.spool, threads, carrier, Routes(settings.relay, router.kept),
                        Schedule(settings.queue), reports, router.srs, reactor,
                        signer.at_once, Local(router, store, queue), share)

    queue.reports = reports = Reports(
        router, store, queue, hostname, settings.queue.language, reactor.seconds,
        functools.partial(threads.run, signer.sign))
    queue.make_runner = lambda: Runner(queue.spool, threads, attempts(), reactor, senders)
    queue.make_attempts = attempts if senders > 1 else None
    queue.joined = False
    return queue


def open_security(settings: Settings, exchangers: Exchangers, threads: Threads, post: Post,
                  reactor: Any) -> Security:
    """What the hosts that mail goes to have to prove.

    :param post: sends TLS reports by mail.
    :raises DirectoryError: what is known of them cannot be used.
    """
    relay = settings.relay
    state = State(Path(settings.service.data) / "state.sqlite")
    lookup = Lookup(relay.dns, {"auto": None, "on": True, "off": False}[relay.dane], reactor)
    web = HTTPS(exchangers.addresses, relay.authorities, relay.loopback, reactor)
    policies = Policies(Shelf(state), lookup, web, threads, reactor, relay.policy_port)
    results = Results(state, threads, reactor) if relay.tls_reports else None
    reporter = Reporter(results, lookup, web, post, relay.tls_reports, threads,
                        reactor) if results is not None else None
    return Security(lookup, policies if relay.mta_sts else None,
                    Levels(state) if relay.remember_tls else None,
                    Bindings(lookup) if relay.dane != "off" else None,
                    results, reporter, relay.authorities, relay.port, threads, reactor)


def _try_keys(signer: Signer) -> None:
    """Tell at once of keys that cannot be used, and not when the first message waits for them."""
    try:
        signer.has_keys()
    except (OSError, DirectoryError) as error:
        _log.error("what users send waits, since it cannot be signed: {error}; the keys have to be "
                   "readable for {user}", error=error, user=name_of(os.geteuid()))
