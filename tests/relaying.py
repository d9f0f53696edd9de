"""A queue that runs empty without network, disk or threads: what relaying costs a processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from mailsvc.client import Client
from mailsvc.dialing import Line
from mailsvc.mail import Address, new_id
from mailsvc.queue.attempts import Attempts
from mailsvc.queue.carrier import Carrier
from mailsvc.queue.exchangers import Place
from mailsvc.queue.limits import QueueSettings
from mailsvc.queue.message import QueuedMessage, QueuedRecipient
from mailsvc.queue.routes import RelaySettings, Routes
from mailsvc.queue.runner import Runner
from mailsvc.queue.schedule import Schedule
from mailsvc.queue.spool import Draft, Spool
from mailsvc.srs import SRS
from tests.queue_clock import Told

HELLO = b"250-sink.example\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE\r\n"
ACCEPTED = b"250 2.1.5 Ok\r\n"
TAKEN = b"250 2.0.0 Ok\r\n"


class Sink:
    """The transport of a connection to a host that takes everything, and answers when asked.

    :ivar taken: the messages, which *end* answers: a reply, or nothing for the end of the
        connection.
    :ivar said: what was said in one go, again and again.
    """

    def __init__(self, end: Callable[[bytes], bytes] = lambda message: TAKEN,
                 hello: bytes = HELLO, rcpt: Callable[[bytes], bytes] = lambda line: ACCEPTED
                 ) -> None:
        self._end, self._hello, self._rcpt = end, hello, rcpt
        self.taken: list[bytes] = []
        self.said: list[bytes] = []
        self.written: list[bytes] = [b"EHLO"]
        self.line: Any = None
        self.messages = 0
        #: Whether a message comes next.
        self._amid = self._over = False
        self._accepted = 0

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def answer(self) -> bool:
        """Answer what was written; whether there was anything."""
        if not self.written:
            return False
        said, self.written = b"".join(self.written), []
        self.said.append(said)
        if said.startswith(b"EHLO"):
            self.line.dataReceived(b"220 sink.example\r\n" if said == b"EHLO" else self._hello)
            return True
        answers = b""
        if self._amid:
            message, end, said = said.partition(b"\r\n.\r\n")
            assert end, message
            self._amid = False
            answer = self._end(message)
            if answer.startswith(b"2"):
                self.messages += 1
                self.taken.append(message)
            if not answer.startswith((b"2", b"4", b"5")) or answer.startswith(b"421"):
                said, self._over = b"", True
            answers += answer
        while said and not said.startswith(b"QUIT"):
            line, _, said = said.partition(b"\r\n")
            if line == b"DATA" and not self._accepted:
                answers += b"554 5.5.1 No valid recipients\r\n"
            elif line == b"DATA":
                assert not said
                self._amid = True
                answers += b"354 End data with <CR><LF>.<CR><LF>\r\n"
            elif line.startswith(b"RCPT"):
                answer = self._rcpt(line)
                self._accepted += answer.startswith(b"2")
                answers += answer
            else:
                assert line.startswith((b"MAIL", b"RSET")), line
                self._accepted = 0
                answers += b"250 2.1.0 Ok\r\n"
        if said:
            answers += b"221 2.0.0 Bye\r\n"
        if answers:
            self.line.dataReceived(answers)
        if self._over:
            self.hang_up()
        return True

    def hang_up(self) -> None:
        """The connection has ended."""
        self.written.clear()
        self.line.connectionLost(Failure(ConnectionDone()))

    def loseConnection(self) -> None:
        pass

    abortConnection = unregisterProducer = loseConnection

    def registerProducer(self, producer: object, streaming: bool) -> None:
        pass

    def getPeer(self) -> Any:
        return SimpleNamespace(host="127.0.0.1")

    getHost = getPeer


class _Terms:
    """Asks for nothing."""

    async def demand(self, place: Place) -> Any:
        return SimpleNamespace(tls="no", trust=None)

    def reached(self, *_: object) -> None:
        pass

    async def seals(self, *_: object) -> bool:
        return False


class _Anybody:
    """Knows one address, and asks for nothing: exchangers and security in one."""

    async def addresses(self, host: str) -> Sequence[Place]:
        return (Place(host, "127.0.0.1"),)

    async def terms(self, hop: object) -> _Terms:
        return _Terms()

    def start(self, *, leading: bool) -> None:
        pass

    def stop(self) -> None:
        pass


class Turns:
    """Runs what is meant for threads when the turn comes, which is after all that came with it."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Deferred[Any], Any, Any]] = []
        self._due: list[Callable[[], object]] = []

    def run(self, function: Any, *args: Any, unwanted: object = None) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self._waiting.append((done, function, args))
        return done

    def after_this(self, function: Callable[[], object]) -> None:
        self._due.append(function)

    def turn(self) -> bool:
        """Do what there is to do; whether there was anything."""
        due, self._due = self._due, []
        for each in due:
            each()
        waiting, self._waiting = self._waiting, []
        for done, function, args in waiting:
            try:
                result = function(*args)
            except Exception:
                result = Failure()
            done.callback(result)
        return bool(waiting)


class Relaying:
    """A queue in *directory*, its runner, and the sinks that its connections lead to.

    :param make_sink: makes each of these.
    :param settings: of ``[queue]``.
    """

    def __init__(self, directory: Path, make_sink: Callable[[], Sink] = Sink,
                 **settings: Any) -> None:
        self._make_sink = make_sink
        self.clock: Any = Clock()
        self.clock.rightNow = 1_700_000_000.0
        self.spool = Spool(directory / "queue")
        self.spool.make()
        self.sinks: list[Sink] = []
        queue = QueueSettings(**{"connections_per_destination": 20, **settings})
        threads = Turns()
        self.threads = threads
        carrier = Carrier(RelaySettings(smarthost="smtp+plain://127.0.0.1:25"), queue,
                          _Anybody(), _Anybody(),  # type: ignore[arg-type]
                          "mail.example.org", self.clock, self.dial)
        self.told = Told(self.clock)
        self.runner = Runner(self.spool, threads, Attempts(  # type: ignore[arg-type]
            self.spool, threads, carrier,  # type: ignore[arg-type]
            Routes(RelaySettings(smarthost="smtp+plain://127.0.0.1:25")), Schedule(queue),
            self.told,  # type: ignore[arg-type]
            SRS(lambda value: value.ljust(8, b".")), self.clock), self.clock)

    def dial(self, host: str, port: int, **options: Any) -> Deferred[Client]:
        """Connect to a sink."""
        sink, line = self._make_sink(), Line(host, self.clock)
        sink.line = line
        self.sinks.append(sink)
        line.makeConnection(sink)
        return Client.over(line, hello="mail.example.org", timeouts=options["timeouts"],
                           clock=self.clock)

    def put(self, text: bytes, *names: str) -> None:
        """Queue a message for *names*."""
        to = [Address(name, "far.example") for name in names or ("bob",)]
        draft = Draft(QueuedMessage(new_id(), self.clock.rightNow, Address("alice", "a.example"),
                                    [QueuedRecipient(each, each) for each in to],
                                    due=self.clock.rightNow))
        draft.add(text)
        self.spool.commit(draft)

    def run(self) -> int:
        """Send all there is; how many messages arrived."""
        self.runner.start()
        self.clock.advance(0)
        while any([self.threads.turn(), *[sink.answer() for sink in self.sinks]]):
            self.clock.advance(0)
        # The connections are closed after a while.
        while self.clock.calls:
            self.clock.advance(600)
            for sink in self.sinks:
                sink.answer()
        return sum(sink.messages for sink in self.sinks)

    def go_ahead(self) -> None:
        """Send until a message is begun behind another that is not answered."""
        for _ in range(200):
            self.clock.advance(0)
            self.threads.turn()
            if self.sinks and any(b"\r\n.\r\nMAIL" in each for each in self.sinks[0].written):
                return
            for sink in self.sinks:
                sink.answer()
        pytest.fail("nothing was sent ahead")
