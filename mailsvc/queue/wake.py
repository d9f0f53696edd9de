"""How the process that sends and the others work together, and hear of each other's end.

Each of the others keeps a connection to the Unix socket ``queue/wake``.  The kernel closes it when
either process ends, in whatever way: the others try for the queue's lock at once, and the one that
sends looks into the directory for what the other had no time to tell of, and has tried again what
it had given to it.  A process that goes on while another takes over, as after a reload, closes them
itself.

Lines go over it.  Those to the one that sends:

* ``ID``: a message is new in the queue;
* ``ready to try``: the other helps to send, if there is much to do;
* ``no more``: it does not any more, but ends what it has begun;
* ``tried ID WHEN HELD PRIORITY``: an attempt is over, with what
  :class:`mailsvc.queue.attempts.After` says, ``-`` for None;
* ``sending ID``: it cannot be withdrawn, for it is being sent.

And from it to one that helps:

* ``try ID``;
* ``withdraw ID``: to end the attempt if nothing of it has been sent yet, which is then over;
* ``stop``: to begin nothing more.

Who helps stops at once when the connection is lost, for the next one that sends begins anew; what
cannot stop at once is still claimed (:class:`mailsvc.queue.claims.Claims`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from mailsvc.queue.attempts import After, Attempts
from mailsvc.queue.runner import Runner

_log = Logger("mailsvc.queue")

_READY, _NO_MORE, _STOP = b"ready to try", b"no more", b"stop"


class Teller:
    """Tells the process that sends, and helps it.

    :param lost: called when that process, with which there was a connection, is gone.
    :ivar make_attempts: makes what tries messages here; None where this process does not help.
    """

    def __init__(self, reactor: Any, lost: Callable[[], None]) -> None:
        self._reactor = reactor
        self._lost = lost
        self._transport: Any = None
        #: What nobody has been told of yet.
        self._untold: list[str] = []
        self.make_attempts: Callable[[], Attempts] | None = None
        self._attempts: Attempts | None = None

    @property
    def connected(self) -> bool:
        """Whether there is somebody to tell."""
        return self._transport is not None

    def tell(self, id: str) -> None:
        """Tell of the message *id*, as soon as somebody hears."""
        if self._transport is not None:
            self._say(id.encode("ascii"))
        else:
            self._untold.append(id)

    def connect(self, path: str) -> None:
        """Look for somebody at *path*."""
        endpoint = UNIXClientEndpoint(self._reactor, path, timeout=5)
        endpoint.connect(Factory.forProtocol(lambda: _Telling(self))).addErrback(
            lambda _: None)

    def forget(self) -> None:
        """Nobody need be told any more of what there was to tell."""
        self._untold.clear()

    def leave(self) -> Attempts | None:
        """Help no more; what is under way yet, to be stopped."""
        if self.make_attempts is not None and self._transport is not None:
            self._say(_NO_MORE)
        self.make_attempts = None
        return self._attempts

    def close(self) -> None:
        """Tell nobody any more; what was told still arrives."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.loseConnection()
        self._abandon()

    # ---- for the connection ----

    def made(self, transport: Any) -> None:
        """It is there."""
        if self._transport is not None:
            transport.loseConnection()
            return
        self._transport = transport
        untold, self._untold = self._untold, []
        for id in untold:
            self.tell(id)
        if self.make_attempts is not None:
            self._say(_READY)

    def heard(self, transport: Any, line: bytes) -> None:
        """A line came."""
        if transport is not self._transport:
            return
        verb, _, id = line.partition(b" ")
        if verb == b"try":
            self._try(id.decode("ascii"))
        elif verb == b"withdraw" and self._attempts is not None:
            # If that attempt is over already, so has been said.
            self._attempts.withdraw(id.decode("ascii"), partial(self._say, b"sending " + id))
        elif line == _STOP and self._attempts is not None:
            self._attempts.stop()

    def ended(self, transport: Any) -> None:
        """It is lost."""
        if transport is self._transport:
            self._transport = None
            self._abandon()
            self._lost()

    def _try(self, id: str) -> None:
        if self._attempts is None:
            self._attempts = self._begun()
        if self._attempts is None:
            # It has not heard yet that this process helps no more.
            self._tried(After(self._reactor.seconds()), id, self._transport)
            return
        self._attempts.begin(id).addCallback(self._tried, id, self._transport)

    def _begun(self) -> Attempts | None:
        try:
            attempts = self.make_attempts() if self.make_attempts is not None else None
        except Exception:
            _log.failure("this process cannot help to send")
            self.leave()
            return None
        if attempts is not None:
            attempts.start(leading=False)
        return attempts

    def _tried(self, after: After, id: str, transport: Any) -> None:
        if transport is self._transport:
            when = "-" if after.when is None else repr(after.when)
            self._say(f"tried {id} {when} {after.held:d} {after.priority:d}".encode("ascii"))

    def _abandon(self) -> None:
        attempts, self._attempts = self._attempts, None
        if attempts is not None:
            attempts.abort()

    def _say(self, line: bytes) -> None:
        self._transport.write(line + b"\n")


class _Lines(LineOnlyReceiver):
    delimiter = b"\n"
    MAX_LENGTH = 100
    transport: Any


class _Telling(_Lines):
    def __init__(self, teller: Teller) -> None:
        self._teller = teller

    def connectionMade(self) -> None:
        self._teller.made(self.transport)

    def lineReceived(self, line: bytes) -> None:
        self._teller.heard(self.transport, line)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._teller.ended(self.transport)


class WakeFactory(Factory):
    """Hears the others.

    :param runner: told of new messages, and of those that help.
    :param gone: called when one of them has ended.
    """

    noisy = False

    def __init__(self, runner: Runner, gone: Callable[[], None], clock: Any) -> None:
        self.runner = runner
        self.gone = gone
        self.clock = clock
        self.heard: set[_Hearing] = set()

    def buildProtocol(self, addr: Any) -> _Hearing:
        return _Hearing(self)

    def hang_up(self) -> None:
        """Hear nobody any more: this process goes on, but another sends from now on."""
        for each in tuple(self.heard):
            each.transport.loseConnection()


class _Hearing(_Lines):
    """One of the others: a Helper of the runner, if it is ready to try."""

    def __init__(self, wake: WakeFactory) -> None:
        self._wake = wake
        self._trying: dict[str, Deferred[After]] = {}
        #: Whom to tell that it cannot be withdrawn.
        self._refused: dict[str, Callable[[], object]] = {}

    def connectionMade(self) -> None:
        self._wake.heard.add(self)

    def lineReceived(self, line: bytes) -> None:
        words = line.decode("ascii", "replace").split(" ")
        if line == _READY:
            self._wake.runner.helped_by(self)
        elif line == _NO_MORE:
            self._wake.runner.left_by(self)
        elif words[0] == "tried":
            self._tried(*words[1:])
        elif words[0] == "sending":
            self._refused.pop(words[1], lambda: None)()
        elif line.isalnum() and len(words) == 1:
            self._wake.runner.take(words)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._wake.heard.discard(self)
        self._wake.runner.left_by(self)
        if self._trying:
            # What it has sent is not to be sent again.
            self._wake.runner.abandoned().addBoth(lambda _: self._end())
        self._wake.gone()

    def _end(self) -> None:
        """What it tried may be tried by others."""
        trying, self._trying = self._trying, {}
        for done in trying.values():
            done.callback(After(self._wake.clock.seconds()))

    def _tried(self, id: str, when: str, held: str, priority: str) -> None:
        self._refused.pop(id, None)
        self._trying.pop(id).callback(
            After(None if when == "-" else float(when), held == "1", int(priority)))

    # ---- as a Helper ----

    def __len__(self) -> int:
        return len(self._trying)

    def begin(self, id: str) -> Deferred[After]:
        done = self._trying[id] = Deferred()
        self.transport.write(b"try " + id.encode("ascii") + b"\n")
        return done

    def withdraw(self, id: str, refused: Callable[[], object]) -> None:
        self._refused[id] = refused
        self.transport.write(b"withdraw " + id.encode("ascii") + b"\n")

    def stop(self) -> None:
        self.transport.write(_STOP + b"\n")

    def abort(self) -> None:
        self.transport.abortConnection()
