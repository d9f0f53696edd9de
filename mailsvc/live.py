"""The connections that there are now, and what is said on them, for commands and pages that ask.

:class:`Live` is part of each process that serves.  It answers at a socket of its own in the data
directory, ``live-PID`` (:mod:`mailsvc.localsocket`), so that no process speaks for another, not
even for one of the program before: whoever wants to know of all asks each.  A request is one line,
a JSON object whose ``action`` is

``list``
    Answered by ``sessions``, each with ``id``; ``protocol`` (smtp, submission, lmtp, odmr or pop3);
    ``listener``, where it came in; ``client`` and ``port``, of the peer; ``since``, seconds since
    the epoch; ``login``, the account that has logged in, or ""; ``tls``, version and cipher, or "";
    ``state``; ``messages``, accepted from the client or fetched by it; ``received`` and ``sent``,
    octets of TCP, and ``idle``, seconds since the last came in, null on a Unix socket.  SMTP has
    ``hello``, ``from`` (null outside a transaction) and ``recipients``, how many; POP3 ``deleted``.

``end``
    Ends the connection ``id``: after what is under way, or with ``now`` at once.  Answered by
    ``ended``, whether there was one.

``watch``
    Tells what is said, for ``seconds``, on the connections that ``address``, ``account`` or
    ``recipient`` chooses, of ``protocol``, with ``text`` or not (:mod:`mailsvc.watching`).
    Answered by ``{"watching": PID}``, and then by an object for each line: ``at``, seconds since
    the epoch; ``id``, of the connection; ``mark``, "C", "S" or "*" for a note; ``line``.  The last
    one is ``{"over": WHY}``.

What cannot be answered gets ``error``.

Nothing waits for somebody who watches and does not keep up: while a socket's buffer is full lines
are dropped, and a note says how many.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import ClientFactory, Factory, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from mailsvc.connections import Connections
from mailsvc.localsocket import LocalSocket, NoService, ask, out_of_reach
from mailsvc.watching import Watch, Watches

_log = Logger("mailsvc")

#: What the sockets are called.
_NAME = re.compile(r"live-[0-9]+")
#: The longest that may be watched, seconds.
MOST_SECONDS = 86_400
#: How many connections are looked at before others have their turn.
_AT_ONCE = 100
#: How often it is seen whether there are more processes, seconds, and how long to look for one.
_LOOK, _LOST = 1.0, 10.0


class Live(LocalSocket):
    """Answers for one process.

    :param connections: those that are told of.
    """

    def __init__(self, connections: Iterable[Connections], data: Path, reactor: Any) -> None:
        self.connections = list(connections)
        self.watches = Watches(self.connections)
        self.clock = reactor
        self.asked: set[_Asked] = set()
        super().__init__(data, f"live-{os.getpid()}", _Answering(self), "mailsvc sessions", reactor)

    def startService(self) -> None:
        # Who was killed has left its name.
        with suppress(OSError):
            for name in os.listdir(self._data):
                if _NAME.fullmatch(name) and not _lives(int(name.removeprefix("live-"))):
                    os.unlink(self._data / name)
        super().startService()

    def end_watches(self) -> None:
        """The service is stopping: who watches is told."""
        for each in list(self.asked):
            each.end("the service is stopping")

    def stopService(self) -> Deferred[Any]:
        self.end_watches()
        return super().stopService()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


class _Answering(Factory):
    noisy = False

    def __init__(self, live: Live) -> None:
        self._live = live

    def buildProtocol(self, addr: Any) -> _Asked:
        return _Asked(self._live)


@implementer(IPushProducer)
class _Asked(LineOnlyReceiver):
    """Somebody who asks."""

    delimiter = b"\n"
    MAX_LENGTH = 1 << 16
    transport: Any
    _watch: Watch | None = None
    #: Who watches.
    _by = ""
    _timer: Any = None
    #: Whether no line may be told now, and how many were not.
    _full = False
    _dropped = 0

    def __init__(self, live: Live) -> None:
        self._live = live

    def lineReceived(self, line: bytes) -> None:
        if self._watch is not None:
            return
        try:
            request = json.loads(line)
            action = request.pop("action")
            if action == "list":
                self._do(self._list())
            elif action == "end":
                self._answer({"ended": self._end(request["id"], now=bool(request.get("now")))})
            elif action == "watch":
                self._begin(**request)
            else:
                raise ValueError("no such action; the command is of another version than the "
                                 "service")
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            self._answer({"error": str(problem)})
        except Exception:
            self._bug(Failure())

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        Deferred.fromCoroutine(work).addErrback(self._bug)

    def _bug(self, failure: Failure) -> None:
        _log.failure("a request could not be answered", failure)
        self._answer({"error": "internal error; see the log of the service"})

    async def _slices(self) -> AsyncIterator[list[Any]]:
        """All connections, some at a time: there may be thousands, and mail does not wait."""
        for connections in self._live.connections:
            every = list(connections)
            for start in range(0, len(every), _AT_ONCE):
                if start:
                    await deferLater(self._live.clock, 0)
                yield [each for each in every[start:start + _AT_ONCE] if each in connections]

    async def _list(self) -> None:
        self.transport.write(b'{"sessions": [')
        comma = b""
        async for slice in self._slices():
            if slice:
                self.transport.write(comma + b", ".join(
                    json.dumps(each.described()).encode("ascii") for each in slice))
                comma = b", "
        self.transport.write(b"]}\n")
        self.transport.loseConnection()

    async def _look_over(self, watch: Watch) -> None:
        """Those that are open already may be meant, too."""
        async for slice in self._slices():
            for each in slice:
                if self._watch is watch:
                    self._live.watches.look(each)

    def _answer(self, answer: dict[str, Any]) -> None:
        self._tell(answer)
        self.transport.loseConnection()

    def _tell(self, told: dict[str, Any]) -> None:
        self.sendLine(json.dumps(told).encode("ascii"))

    def _end(self, id: str, *, now: bool) -> bool:
        every: Iterable[Any] = itertools.chain.from_iterable(self._live.connections)
        for each in every:
            if each.id == id:
                _log.info("{connection} is ended by an administrator", connection=id)
                each.abort() if now else each.finish()
                return True
        return False

    # ---- watching ----

    def _begin(self, seconds: float, by: str = "", **chosen: Any) -> None:
        if not 0 < seconds <= MOST_SECONDS:
            raise ValueError(f"watch for some seconds, {MOST_SECONDS} at most")
        watch = Watch(self._line, **chosen)
        self._by = by or "mailsvc watch"
        self._tell({"watching": os.getpid()})
        self.transport.registerProducer(self, True)
        self._watch = watch
        self._live.asked.add(self)
        self._timer = self._live.clock.callLater(seconds, self.end, "time is up")
        # Whoever may read what others say leaves a trace.
        _log.info("sessions are watched for {seconds:.0f} seconds by={by} {chosen}",
                  seconds=seconds, by=self._by,
                  chosen=" ".join(f"{key}={value}" for key, value in chosen.items() if value))
        try:
            self._live.watches.begin(watch)
        except ValueError as problem:
            self._leave(str(problem))
            self.transport.unregisterProducer()
            raise
        self._do(self._look_over(watch))

    def _line(self, id: str, mark: str, line: str) -> None:
        if self._full:
            self._dropped += 1
        else:
            self._tell({"at": self._live.clock.seconds(), "id": id, "mark": mark,
                        "line": line})

    def pauseProducing(self) -> None:
        """The buffer is full."""
        self._full = True

    def resumeProducing(self) -> None:
        """The buffer has room again."""
        self._full = False
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self._line("", "*", f"{dropped} lines dropped: they came faster than they were taken")

    def stopProducing(self) -> None:
        """Whoever asked is gone; connectionLost follows."""

    def end(self, why: str) -> None:
        """Watch no more."""
        if self._watch is not None:
            self._leave(why)
            self.transport.unregisterProducer()
            self._tell({"over": why})
            self.transport.loseConnection()

    def _leave(self, why: str) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            self._live.watches.end(watch)
            self._live.asked.discard(self)
            if self._timer.active():
                self._timer.cancel()
            _log.info("sessions are watched no more by={by}: {why}", by=self._by, why=why)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._leave("whoever watched has left")


# ---- for who asks -------------------------------------------------------------------------------


def sessions(data: Path) -> list[dict[str, Any]]:
    """Every connection of the service that runs with the directory *data*, the oldest first.

    :raises NoService: there is none, or it does not answer.
    """
    told = [each for answer in _each(data, {"action": "list"}) for each in answer["sessions"]]
    return sorted(told, key=lambda each: (each["since"], each["id"]))


def end(data: Path, id: str, *, now: bool = False) -> bool:
    """End a connection of that service; whether there was one.

    :param now: at once, and not after the transaction that is under way.
    :raises NoService: there is none, or it does not answer.
    """
    answers = _each(data, {"action": "end", "id": id, "now": now})
    return any(answer["ended"] for answer in answers)


def _each(data: Path, request: dict[str, Any]) -> list[dict[str, Any]]:
    """What every process answers."""
    answers, problem = [], None
    for name in _sockets(data):
        try:
            answer = ask(data, name, request)
        except NoService as found:
            # One that has ended, and was killed, leaves its socket.
            problem = found
            continue
        if "error" in answer:
            raise NoService(answer["error"])
        answers.append(answer)
    if not answers:
        raise problem or NoService(f"no service runs with the data in {data}: start it, or name "
                                   "the right place with --dir or --config")
    return answers


def _sockets(data: Path | int) -> list[str]:
    try:
        return sorted(name for name in os.listdir(data) if _NAME.fullmatch(name))
    except OSError as error:
        raise out_of_reach(data, error) from error


class Follower:
    """Watches in every process of a service, also in those that begin later.

    :param data: its data directory.
    :param chosen: ``address``, ``account`` or ``recipient``, ``protocol`` and ``text``.
    :param seconds: for how long.
    :param heard: is told each line, as in the module's text.
    :param by: who wants to know, for the log.
    :ivar over: fires with why it is over, when it is; fails with :class:`NoService`.
    """

    def __init__(self, data: Path, chosen: dict[str, Any], seconds: float,
                 heard: Callable[[dict[str, Any]], None], reactor: Any, by: str = "") -> None:
        self._data, self._chosen, self._by = data, chosen, by
        self._heard, self._reactor = heard, reactor
        self._deadline = reactor.seconds() + seconds
        self._ending: Any = None
        self._looking: Any = None
        self._directory = -1
        self._open: dict[str, Any] = {}
        #: When a process was last there, and why the last one is not any more.
        self._seen = 0.0
        self._why = ""
        self.over: Deferred[str] = Deferred()

    def start(self) -> None:
        """Begin.

        :raises NoService: no service runs there, or it may not be asked.
        """
        sockets = _sockets(self._data)
        if not sockets:
            raise NoService(f"no service runs with the data in {self._data}: start it, or name "
                            "the right place with --dir or --config")
        if not os.access(self._data, os.W_OK | os.X_OK):
            raise NoService(f"the service with the data in {self._data} may not be asked: run this "
                            "as root or as the user that runs mailsvc")
        self._directory = os.open(self._data, os.O_RDONLY | os.O_DIRECTORY)
        self._seen = self._reactor.seconds()
        self._ending = self._reactor.callLater(
            self._deadline - self._seen, self.stop, "time is up")
        self._look()

    def stop(self, why: str = "stopped") -> None:
        """End, for the reason *why*."""
        self._finish()
        if not self.over.called:
            self.over.callback(why)

    def fail(self, problem: NoService) -> None:
        """End, since it cannot be done."""
        self._finish()
        if not self.over.called:
            self.over.errback(problem)

    def _finish(self) -> None:
        for timer in self._ending, self._looking:
            if timer is not None and timer.active():
                timer.cancel()
        for each in list(self._open.values()):
            if each.transport is not None:
                each.transport.abortConnection()
        self._open.clear()
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def _look(self) -> None:
        """Ask whoever has not been asked yet."""
        now = self._reactor.seconds()
        if self._open:
            self._seen = now
        elif now - self._seen > _LOST:
            self.stop("no service runs any more")
            return
        if self._looking is not None and self._looking.active():
            self._looking.cancel()
        with suppress(NoService):
            for name in _sockets(self._directory):
                if name not in self._open:
                    following = self._open[name] = _Following(self, name)
                    self._reactor.connectUNIX(
                        f"/proc/self/fd/{self._directory}/{name}", _Dialled(following))
        if self._why and not self._open:
            self.stop(self._why)
        else:
            self._why = ""
            self._looking = self._reactor.callLater(_LOOK, self._look)

    def request(self) -> dict[str, Any]:
        """What a process is asked now."""
        return {"action": "watch", "by": self._by, **self._chosen,
                "seconds": max(0.001, self._deadline - self._reactor.seconds())}

    def told(self, told: dict[str, Any]) -> None:
        """A process says something."""
        if "error" in told:
            self.fail(NoService(told["error"]))
        elif "over" not in told:
            self._heard(told)

    def lost(self, name: str, last: dict[str, Any]) -> None:
        """A process says no more."""
        self._open.pop(name, None)
        if "over" in last and not self._open and self._directory >= 0:
            # A reload may have put others in their place.
            self._why = last["over"]
            self._look()


class _Following(LineOnlyReceiver):
    delimiter = b"\n"
    MAX_LENGTH = 1 << 20
    transport: Any = None

    def __init__(self, follower: Follower, name: str) -> None:
        self._follower, self._name = follower, name
        self._last: dict[str, Any] = {}

    def connectionMade(self) -> None:
        self.sendLine(json.dumps(self._follower.request()).encode("ascii"))

    def lineReceived(self, line: bytes) -> None:
        self._last = json.loads(line)
        self._follower.told(self._last)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._follower.lost(self._name, self._last)


class _Dialled(ClientFactory):
    """For one connection, which may not come to be."""

    noisy = False

    def __init__(self, following: _Following) -> None:
        self._following = following

    def buildProtocol(self, addr: Any) -> _Following:
        return self._following

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        """Its process was killed, and nobody has taken its place yet."""
        self._following.connectionLost(reason)
