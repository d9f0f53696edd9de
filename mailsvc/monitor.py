"""Where the figures can be had: by HTTP for Prometheus, and by a Unix socket for ``mailsvc stats``.

:class:`Monitor` is part of the supervisor, or of the only process there is; it lives a little
longer than the listeners for mail, so that ``/readyz`` can say that the service is stopping.  The
pages are in :mod:`mailsvc.pages`, which is imported when there is a listener for them.

The socket is ``{data}/figures`` (:mod:`mailsvc.localsocket`).  Whoever connects gets one JSON
object: ``ready``, ``unready`` (why not, or null), ``listeners``, each with ``kind`` and ``address``
(``127.0.0.1:25``, ``[::]:25`` or a path), ``history`` (the last minutes of a few figures,
:mod:`mailsvc.history`), and ``figures``, each with ``name``, ``type``,
``help`` and ``samples``; these have ``labels`` and either ``value`` or, of a histogram, ``count``,
``sum`` and ``buckets``, pairs of an upper bound (null for none) and how many did not exceed it.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger

from mailsvc import localsocket
from mailsvc.figures import Spreading, Value
from mailsvc.gathering import PREFIX, Family, Gathering
from mailsvc.history import History
from mailsvc.listeners import Listener
from mailsvc.localsocket import LocalSocket

_log = Logger("mailsvc")

#: The socket's name in the data directory.
NAME = "figures"


class Monitor(MultiService):
    """Shows the figures of *gathering*.

    :param listeners: those of the kind ``http``.
    :param data: the directory for the socket.
    """

    def __init__(self, gathering: Gathering, listeners: list[Listener], data: Path,
                 history: History, reactor: Any) -> None:
        super().__init__()
        self._gathering = gathering
        self._listeners = listeners
        self._reactor = reactor
        LocalSocket(data, NAME, _Telling(gathering, history), "mailsvc stats",
                    reactor).setServiceParent(self)

    def startService(self) -> None:
        if self._listeners:
            from mailsvc.pages import site  # noqa: PLC0415 - it takes a while, and memory

            for listener in self._listeners:
                listener.open(site(self._gathering, self._reactor))
        super().startService()

    def stopService(self) -> Deferred[Any]:
        """End; fires when nothing listens any more."""
        return DeferredList([maybeDeferred(super().stopService),
                             *(maybeDeferred(each.close) for each in self._listeners)],
                            consumeErrors=True)


class _Telling(Factory):
    noisy = False

    def __init__(self, gathering: Gathering, history: History) -> None:
        self._gathering = gathering
        self._history = history

    def buildProtocol(self, addr: Any) -> Protocol:
        return _Told(self._gathering, self._history)


class _Told(Protocol):
    def __init__(self, gathering: Gathering, history: History) -> None:
        self._gathering = gathering
        self._history = history

    def connectionMade(self) -> None:
        assert self.transport is not None
        try:
            self.transport.write(json.dumps(
                described(self._gathering, self._history)).encode("ascii"))
        except Exception:
            _log.failure("the figures cannot be told")
        self.transport.loseConnection()


def described(gathering: Gathering, history: History) -> dict[str, Any]:
    """All figures as JSON can hold them; see the module."""
    reason = gathering.unready()
    return {"ready": reason is None, "unready": reason,
            "listeners": [{"kind": kind, "address": address}
                          for kind, address in gathering.listening()],
            "history": history.described(),
            "figures": [_family(each) for each in gathering.families()]}


def _family(family: Family) -> dict[str, Any]:
    return {"name": PREFIX + family.name, "type": family.kind, "help": family.sentence,
            "samples": [{"labels": dict(zip(family.labels, values, strict=True)), **_value(value)}
                        for values, value in family.series]}


def _value(value: Value) -> dict[str, Any]:
    if not isinstance(value, Spreading):
        return {"value": value}
    return {"count": sum(value.counts), "sum": value.sum,
            "buckets": list(zip((*value.bounds, None), itertools.accumulate(value.counts),
                                strict=True))}


def ask(data: Path) -> dict[str, Any]:
    """The figures of the service that runs with the directory *data*; see the module.

    :raises NoService: there is none, or it does not answer.
    """
    return localsocket.ask(data, NAME)
