"""Unix sockets in the data directory, by which commands ask the service that runs.

A :class:`LocalSocket` belongs to the service's user, and nobody else but root may connect.  The
service, whichever process speaks for it, answers in JSON and hangs up; :func:`ask` is the command's
side.  The path of a Unix socket has at most 107 octets, so both go by way of a descriptor of the
directory.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver

_log = Logger("mailsvc")

#: How long an answer is waited for, seconds, unless told otherwise.
PATIENCE = 10.0


class LocalSocket(Service):
    """The socket *name* in *data*, while the service runs.

    :param factory: of those who answer.
    :param command: what will not work without, for the log.
    """

    def __init__(self, data: Path, name: str, factory: Factory, command: str, reactor: Any) -> None:
        self._data = data
        self._name = name
        self._factory = factory
        self._command = command
        self._reactor = reactor
        self._directory = -1
        self._port: Any = None

    def startService(self) -> None:
        """Listen; what keeps it from that is logged."""
        super().startService()
        try:
            self._directory = os.open(self._data, os.O_RDONLY | os.O_DIRECTORY)
            path = f"/proc/self/fd/{self._directory}/{self._name}"
            with suppress(FileNotFoundError):
                os.unlink(path)
            self._port = self._reactor.listenUNIX(path, self._factory, mode=0o600)
        except (OSError, CannotListenError) as error:
            _log.warn("`{command}` will not work: no socket can be made in {data}: {reason}",
                      command=self._command, data=str(self._data), reason=str(error))

    def stopService(self) -> Deferred[Any]:
        """End; fires when nothing listens any more."""
        super().stopService()
        port, self._port = self._port, None

        def closed(_: object) -> None:
            if self._directory >= 0:
                os.close(self._directory)
                self._directory = -1

        return maybeDeferred(port.stopListening if port is not None else lambda: None
                             ).addCallback(closed)


class Answers(Factory):
    """Answers each request, a line, by *answer*, and hangs up.

    :param answer: from the line to what is said, as JSON can hold it.
    """

    noisy = False

    def __init__(self, answer: Callable[[bytes], Coroutine[Any, Any, dict[str, Any]]]) -> None:
        self.answer = answer

    def buildProtocol(self, addr: Any) -> _Answering:
        return _Answering(self.answer)


class _Answering(LineOnlyReceiver):
    delimiter = b"\n"
    MAX_LENGTH = 1 << 20

    def __init__(self, answer: Callable[[bytes], Coroutine[Any, Any, dict[str, Any]]]) -> None:
        self._answer = answer

    def lineReceived(self, line: bytes) -> None:
        answered = Deferred.fromCoroutine(self._answer(line))
        answered.addErrback(self._bug)
        answered.addCallback(self._say)

    def _bug(self, failure: Any) -> dict[str, Any]:
        _log.failure("a request could not be answered", failure)
        return {"error": "internal error; see the log of the service"}

    def _say(self, answer: dict[str, Any]) -> None:
        self.sendLine(json.dumps(answer).encode("ascii"))
        assert self.transport is not None
        self.transport.loseConnection()


class NoService(Exception):
    """No service answers; the text says why, and what to do."""


def out_of_reach(data: Path | int, error: OSError) -> NoService:
    """What to say when *error* is why the data directory cannot be looked into."""
    if isinstance(error, PermissionError):
        return NoService(f"whether a service runs with the data in {data} cannot be seen: "
                         f"{error.strerror}; run this as root or as the user that runs mailsvc")
    return NoService(f"no service runs with the data in {data}: {error.strerror}; name the right "
                     "place with --dir or --config")


def ask(data: Path, name: str, request: dict[str, Any] | None = None,
        patience: float | None = None) -> dict[str, Any]:
    """What the service that runs with the directory *data* answers at its socket *name*.

    :param request: what to ask, as one line; without, it is told by itself.
    :param patience: how long an answer is waited for, seconds.
    :raises NoService: there is none, or it does not answer.
    """
    patience = PATIENCE if patience is None else patience
    try:
        directory = os.open(data, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise out_of_reach(data, error) from error
    blocks = []
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(patience)
            connection.connect(f"/proc/self/fd/{directory}/{name}")
            if request is not None:
                connection.sendall(json.dumps(request).encode("ascii") + b"\n")
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
                        f"{patience:g} seconds; see its log") from error
    except (OSError, ValueError) as error:
        raise NoService(f"the service with the data in {data} ended before it answered; try "
                        "again") from error
    finally:
        os.close(directory)
    return told
