"""One program taking over from another, so that there is no moment in which nobody serves.

The program that serves, the *former* one, starts what is on disk now by the command that it was
started by itself.  This *successor* inherits the listening sockets, the locks on the data directory
(:mod:`mailsvc.holding`) and a socket to the former one, the *link*; where they are says
:data:`VARIABLE` in its environment.

::

    former program                                 successor

    starts it, goes on serving                     reads the configuration, opens everything,
                                                   takes no connection yet
                                  <- here: PID
                                  <- ready: VERSION
    gives up what one program alone may
    have; tells systemd the new PID
                                  go ->
                                                   takes connections, and what the former one
                                                   gave up
                                  <- serves: true
    takes no more connections; its                 tells systemd how the former one is
    sessions end by themselves
                                  left: COUNT ->
    ends                                           serves

Until "ready" nothing of the former one has changed.  If the successor ends or is late, the former
one goes on, and says why: what the successor said last (``problem``), or wrote to standard error,
which is kept for that until the successor serves.  The
kernel keeps connections that nobody accepts yet, as long as one of the two has the socket.  When
the successor is to stop it says ``stop`` (or ``hurry``) to the former one, and waits for its end.

Each message is a line, a JSON object with one member.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from mailsvc import __version__

_log = Logger("mailsvc")

#: What a successor finds in its environment: where its link and the sockets are.
VARIABLE = "MAILSVC_INHERITED"
#: How long a successor may take to get ready, seconds: it may have much to recover.
PATIENCE = 120.0
#: How long it may take to end, when it is not wanted, before it is killed.
_TO_END = 10.0
#: How often it is looked whether it has ended; how long it is left alone with that, seconds.
_LOOK, _BY_ITSELF = 0.05, 2.0
#: How much of what it wrote to standard error is told, octets.
_MOST_WORDS = 4000
#: What is of one process alone, in the environment that systemd made for it.
_OWN = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID")


class NotReady(Exception):
    """The successor does not take over; the text says why."""


@dataclass(frozen=True, slots=True)
class Origin:
    """How this program was started, and can be once more.

    :ivar command: its words.
    :ivar directory: where.
    :ivar pidfile: the file with its pid, or "".
    :ivar let_go: to be called when the pid file, and whatever else of twistd, is the successor's.
    :ivar watched: whether anybody reads the pid file.
    """

    command: tuple[str, ...]
    directory: str
    pidfile: str = ""
    let_go: Callable[[], object] = lambda: None
    watched: bool = True

    def unknown(self, environ: Mapping[str, str] = os.environ) -> str | None:
        """Why a successor would not be known to whoever watches this process, or None."""
        if os.getpid() == 1:
            return ("this process is the first of its container, which would end with it; start "
                    "the container anew")
        if not (self.pidfile and self.watched) and not environ.get("NOTIFY_SOCKET"):
            return ("nobody would learn of the new process: that needs systemd (Type=notify), or "
                    "twistd with a pid file (--pidfile); restart the service instead")
        return None

    @property
    def _aside(self) -> str:
        return self.pidfile + ".former"

    def step_aside(self) -> None:
        """Have no pid file in the way of the successor, which would take it for a rival's.

        :raises OSError: it cannot be moved.
        """
        if self.pidfile:
            with suppress(FileNotFoundError):
                os.rename(self.pidfile, self._aside)

    def step_back(self) -> None:
        """The successor is gone."""
        if self.pidfile:
            with suppress(OSError):
                os.rename(self._aside, self.pidfile)

    def hand_over(self) -> None:
        """The successor serves."""
        if self.pidfile:
            with suppress(OSError):
                os.unlink(self._aside)
        self.let_go()


def command(words: list[str] = sys.orig_argv, interpreter: str = sys.executable) -> tuple[str, ...]:
    """The command to start this program once more.

    A script goes by itself: its first line says which Python it is for, and that may be another
    now, where a symbolic link leads to one installation or the next.
    """
    with suppress(OSError, IndexError):
        script = Path(words[1])
        if os.access(script, os.X_OK) and script.read_bytes()[:2] == b"#!":
            return tuple(words[1:])
    return (interpreter, *words[1:])


class _Link(LineOnlyReceiver):
    """One end of the link.

    :param heard: called with each message.
    :param lost: called when the other program is gone, or has hung up.
    """

    delimiter = b"\n"

    def __init__(self, heard: Callable[[dict[str, Any]], object],
                 lost: Callable[[], object]) -> None:
        self._heard = heard
        self._lost = lost

    def lineReceived(self, line: bytes) -> None:
        self._heard(json.loads(line))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost()

    def say(self, message: dict[str, Any]) -> None:
        """Say *message*, if there is anybody yet."""
        if self.transport is not None and self.connected:
            self.sendLine(json.dumps(message).encode("ascii"))

    def close(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()


def _linked(end: socket.socket, reactor: Any, heard: Callable[[dict[str, Any]], object],
            lost: Callable[[], object]) -> _Link:
    link = _Link(heard, lost)
    end.setblocking(False)
    reactor.adoptStreamConnection(end.fileno(), socket.AF_UNIX, Factory.forProtocol(lambda: link))
    end.close()
    return link


class Successor:
    """The program that shall take over from this one.

    :param sockets: the listening sockets: kind, endpoint and descriptor of each.
    :param holding: the descriptors by which this program holds the data directory.
    :param asked: called with "stop" or "hurry" when it wants this program to end, later.
    """

    def __init__(self, origin: Origin, sockets: Iterable[tuple[str, str, int]],
                 holding: Iterable[int], reactor: Any, asked: Callable[[str], object],
                 patience: float = PATIENCE) -> None:
        self._origin = origin
        self._sockets = list(sockets)
        self._holding = list(holding)
        self._reactor = reactor
        self._asked = asked
        self._patience = patience
        self._process: subprocess.Popen[bytes] | None = None
        self._link: _Link | None = None
        self._words = -1
        self._outcome: Deferred[str] = Deferred()
        #: Whether it was told to go, and has.
        self._goes = False
        self._serves: Deferred[None] = Deferred()
        self._hung_up = False
        self.pid = 0
        #: What keeps it from serving, in its own words.
        self._problem = ""
        #: Fires when :meth:`start` is over.
        self.over: Deferred[None] = Deferred()

    async def start(self) -> str:
        """Start it, and wait until it is ready; its version.

        :raises NotReady: it has ended since, if it had begun.
        """
        try:
            return await self._started()
        finally:
            self.over.callback(None)

    async def _started(self) -> str:
        try:
            self._start()
        except OSError as error:
            self._origin.step_back()
            raise NotReady(f"it cannot be started: {error.strerror or error}"
                           + (f" ({error.filename})" if error.filename else "")) from error
        late = self._reactor.callLater(self._patience, self.abandon,
                                       f"it was not ready within {self._patience:g} seconds")
        try:
            return await self._outcome
        except NotReady as problem:
            await self._end()
            raise NotReady(self._explained(str(problem))) from problem
        finally:
            if late.active():
                late.cancel()
            os.close(self._words)

    def _start(self) -> None:
        self._words = os.memfd_create("stderr")
        ours, theirs = socket.socketpair()
        stderr = os.dup(2)
        try:
            self._origin.step_aside()
            self._process = subprocess.Popen(
                self._origin.command, cwd=self._origin.directory, stderr=self._words,
                pass_fds=[theirs.fileno(), stderr, *self._holding,
                          *(fd for _, _, fd in self._sockets)],
                env={**{name: value for name, value in os.environ.items() if name not in _OWN},
                     VARIABLE: json.dumps({"link": theirs.fileno(), "stderr": stderr,
                                           "holding": self._holding, "sockets": self._sockets})})
            self.pid = self._process.pid
        except BaseException:
            ours.close()
            os.close(self._words)
            raise
        finally:
            theirs.close()
            os.close(stderr)
        self._link = _linked(ours, self._reactor, self._heard, self._lost)

    def _heard(self, message: dict[str, Any]) -> None:
        match message:
            case {"here": int(pid)}:
                # Of a daemon, which is not the process that was started.
                self.pid = pid
            case {"ready": str(version)} if not self._outcome.called:
                self._outcome.callback(version)
            case {"problem": str(problem)}:
                self._problem = problem
            case {"serves": True} if not self._serves.called:
                self._serves.callback(None)
            case {"ask": str(what)}:
                self._asked(what)

    def _lost(self) -> None:
        self.abandon("it ended before it was ready")
        self._hung_up = True
        if self._goes and not self._serves.called:
            self._serves.errback(NotReady("it ended as it took over"))

    def abandon(self, problem: str) -> None:
        """It shall not take over, because of *problem*, if it has not yet."""
        if not self._outcome.called:
            self._outcome.errback(NotReady(problem))

    def go(self) -> Deferred[None]:
        """It shall take over; fires when it has, and fails with :class:`NotReady` when it ended."""
        self._goes = True
        if self._hung_up:
            return fail(NotReady("it ended as it took over"))
        if self._link is not None:
            self._link.say({"go": True})
        return self._serves

    def left(self, sessions: int) -> None:
        """Tell it how many sessions this program has left."""
        if self._link is not None:
            self._link.say({"left": sessions})

    async def end(self) -> None:
        """It was ready, and shall end all the same."""
        if not self._goes:
            await self._end()

    async def _end(self) -> None:
        if self._link is not None:
            self._link.close()
        for look in range(int((_BY_ITSELF + _TO_END) / _LOOK)):
            if self._gone():
                break
            if look == int(_BY_ITSELF / _LOOK):
                self._kill(signal.SIGTERM)
            await deferLater(self._reactor, _LOOK)
        else:
            self._kill(signal.SIGKILL)
            if self._process is not None:
                self._process.wait()
        self._origin.step_back()

    def _kill(self, number: int) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(number)
        if self.pid != self._process.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _gone(self) -> bool:
        assert self._process is not None
        if self._process.poll() is None:
            return False
        if self.pid == self._process.pid:
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def _explained(self, problem: str) -> str:
        """*problem*, and what it wrote itself."""
        size = os.fstat(self._words).st_size
        words = os.pread(self._words, _MOST_WORDS, max(0, size - _MOST_WORDS)).decode(
            "utf-8", "replace").strip()
        words = self._problem or words
        if not words:
            status = self._process.poll() if self._process is not None else None
            return problem + (f" (status {status})" if status else "") + "; see the log"
        if "Traceback (most recent call last)" in words:
            _log.error("the new program wrote: {words}", words=words)
            words = words.splitlines()[-1]
        return f"{problem}: {words}"


class Predecessor:
    """The program from which this one takes over; see the module.

    :ivar left: how many sessions it has left, or None when that is not known yet.
    :ivar holding: the descriptors by which it holds the data directory.
    """

    def __init__(self, link: socket.socket, stderr: int,
                 sockets: Iterable[tuple[str, str, int]], holding: Iterable[int] = ()) -> None:
        self._end = link
        self.stderr = stderr
        self.holding = list(holding)
        self._sockets: dict[tuple[str, str], list[int]] = {}
        for kind, description, fd in sockets:
            self._sockets.setdefault((kind, description), []).append(fd)
        self._link: _Link | None = None
        self._go: Deferred[None] = Deferred()
        self._waiting: list[Deferred[None]] = []
        self._changed: Callable[[], object] = lambda: None
        self._alone: Callable[[], object] = lambda: None
        self._gone = False
        self.left: int | None = None

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str] = os.environ) -> Self | None:
        """The one that started this program, if another did; it is asked for once."""
        told = environ.pop(VARIABLE, None)
        if told is None:
            return None
        inherited = json.loads(told)
        # Versions of old hold nothing, or the file alone.
        holding = inherited.get("holding", [])
        if isinstance(holding, int):
            holding = [holding]
        for fd in inherited["link"], inherited["stderr"], *holding:
            os.set_inheritable(fd, False)
        return cls(socket.socket(fileno=inherited["link"]), inherited["stderr"],
                   [tuple(each) for each in inherited["sockets"]], holding)

    def socket_for(self, kind: str, description: str) -> int | None:
        """The descriptor of its listener of that *kind* on that endpoint, or None; each once."""
        found = self._sockets.get((kind, description))
        return found.pop(0) if found else None

    def close_others(self) -> None:
        """Close the sockets of listeners that there are no more."""
        for descriptors in self._sockets.values():
            while descriptors:
                os.close(descriptors.pop())

    def meet(self, reactor: Any, changed: Callable[[], object],
             alone: Callable[[], object]) -> None:
        """Begin to hear it.

        :param changed: called when *left* has changed, or it is gone after it said "go".
        :param alone: called when it is gone before that, and this program shall not serve.
        """
        self._changed, self._alone = changed, alone
        self._end.sendall(json.dumps({"here": os.getpid()}).encode("ascii") + b"\n")
        self._link = _linked(self._end, reactor, self._heard, self._lost)

    def ready(self) -> Deferred[None]:
        """Say that this program could serve; fires when it shall."""
        assert self._link is not None
        self._link.say({"ready": __version__})
        return self._go

    def refuse(self, problem: str) -> None:
        """Say what keeps this program from serving; its reactor need not run."""
        said = json.dumps({"problem": problem}).encode("ascii") + b"\n"
        transport: Any = self._link.transport if self._link is not None else None
        with suppress(OSError):
            (self._end if transport is None else transport.socket).send(said)

    def serves(self) -> None:
        """Say that this program serves now."""
        if self._link is not None:
            self._link.say({"serves": True})

    def ask(self, what: str) -> None:
        """Ask it to "stop", or to "hurry" with that."""
        if self._link is not None:
            self._link.say({"ask": what})

    @property
    def went(self) -> bool:
        """Whether it has said that this program shall serve."""
        return self._go.called

    @property
    def gone(self) -> bool:
        """Whether it has ended."""
        return self._gone

    def ended(self) -> Deferred[None]:
        """Fires when it has ended."""
        if self._gone:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        return waiting

    def _heard(self, message: dict[str, Any]) -> None:
        match message:
            case {"go": True} if not self._go.called:
                self._own_words()
                self._go.callback(None)
            case {"left": int(sessions)}:
                self.left = sessions
                self._changed()

    def _own_words(self) -> None:
        """What is written to standard error goes where it always went."""
        stderr, self.stderr = self.stderr, -1
        os.dup2(stderr, 2)
        os.close(stderr)

    def _lost(self) -> None:
        self._gone, self.left = True, 0
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)
        (self._changed if self._go.called else self._alone)()
