"""Where the figures can be had: by HTTP for Prometheus, and by a Unix socket for ``mailsvc stats``.

:class:`Monitor` is part of the supervisor, or of the only process there is; it lives a little
longer than the listeners for mail, so that ``/readyz`` can say that the service is stopping.  The
pages are in :mod:`mailsvc.pages`, which is imported when there is a listener for them.

The socket is ``{data}/figures``, and belongs to the service's user.  Whoever connects gets one JSON
object: ``ready``, ``unready`` (why not, or null), ``history`` (the last minutes of a few figures,
:mod:`mailsvc.history`), and ``figures``, each with ``name``, ``type``,
``help`` and ``samples``; these have ``labels`` and either ``value`` or, of a histogram, ``count``,
``sum`` and ``buckets``, pairs of an upper bound (null for none) and how many did not exceed it.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import Logger

from mailsvc.figures import Spreading, Value
from mailsvc.gathering import PREFIX, Family, Gathering
from mailsvc.history import History
from mailsvc.listeners import Listener

_log = Logger("mailsvc")

#: The socket's name in the data directory.
NAME = "figures"
#: How long an answer is waited for, seconds.
_PATIENCE = 10.0


class Monitor(Service):
    """Shows the figures of *gathering*.

    :param listeners: those of the kind ``http``.
    :param data: the directory for the socket.
    """

    def __init__(self, gathering: Gathering, listeners: list[Listener], data: Path,
                 history: History, reactor: Any) -> None:
        self._gathering = gathering
        self._history = history
        self._listeners = listeners
        self._data = data
        self._reactor = reactor
        self._directory = -1
        self._port: Any = None

    def startService(self) -> None:
        super().startService()
        if self._listeners:
            from mailsvc.pages import site  # noqa: PLC0415 - it takes a while, and memory

            for listener in self._listeners:
                listener.open(site(self._gathering, self._reactor))
        try:
            # By way of a descriptor: the path of a Unix socket has at most 107 octets.
            self._directory = os.open(self._data, os.O_RDONLY | os.O_DIRECTORY)
            path = f"/proc/self/fd/{self._directory}/{NAME}"
            with suppress(FileNotFoundError):
                os.unlink(path)
            self._port = self._reactor.listenUNIX(
                path, _Telling(self._gathering, self._history), mode=0o600)
        except (OSError, CannotListenError) as error:
            _log.warn("`mailsvc stats` will not work: no socket can be made in {data}: {reason}",
                      data=str(self._data), reason=str(error))

    def stopService(self) -> Deferred[Any]:
        """End; fires when nothing listens any more."""
        super().stopService()
        closing = [maybeDeferred(each.close) for each in self._listeners]
        port, self._port = self._port, None
        if port is not None:
            closing.append(maybeDeferred(port.stopListening))

        def closed(_: object) -> None:
            if self._directory >= 0:
                os.close(self._directory)
                self._directory = -1

        return DeferredList(closing, consumeErrors=True).addCallback(closed)


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
    return {"ready": reason is None, "unready": reason, "history": history.described(),
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


class NoService(Exception):
    """No service answers; the text says why, and what to do."""


def ask(data: Path) -> dict[str, Any]:
    """The figures of the service that runs with the directory *data*; see the module.

    :raises NoService: there is none, or it does not answer.
    """
    try:
        directory = os.open(data, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise NoService(f"no service runs with the data in {data}: {error.strerror}; name the "
                        "right place with --dir or --config") from error
    blocks = []
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_PATIENCE)
            connection.connect(f"/proc/self/fd/{directory}/{NAME}")
            while block := connection.recv(1 << 20):
                blocks.append(block)
        told: dict[str, Any] = json.loads(b"".join(blocks))
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise NoService(f"no service runs with the data in {data}: start it, or name the right "
                        "place with --dir or --config") from error
    except PermissionError as error:
        raise NoService(f"the service with the data in {data} may not be asked: run this as the "
                        "user that runs mailsvc") from error
    except TimeoutError as error:
        raise NoService(f"the service with the data in {data} does not answer within "
                        f"{_PATIENCE:g} seconds; see its log") from error
    except (OSError, ValueError) as error:
        raise NoService(f"the service with the data in {data} ended before it answered; try "
                        "again") from error
    finally:
        os.close(directory)
    return told
