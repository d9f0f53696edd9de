"""Many connections in a few client processes, over epoll.

A *dialogue* is a generator that plays one client.  It yields bytes to send, ``CONNECT`` for a new
connection (closing the one it has), or None, and is resumed with the next bytes received, ``b""``
when the server closed the connection.  Once it yields ``READY`` and is resumed, with ``b""``, when
all clients of the measurement are: what comes before is not measured.  It returns its
:class:`Tally`.  So a dialogue is read top to bottom, and costs a few microseconds a step: the
client must not be what limits the server.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import select
import socket
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

#: A dialogue: yields what to send, receives what came, returns its tally.
Dialogue = Generator["bytes | object | None", bytes, "Tally"]

#: Yielded for a new connection; the dialogue is resumed with the first bytes of the greeting.
CONNECT = object()

#: Yielded once, when the dialogue has come to what is measured.
READY = object()

#: Octets taken from a socket at once.
_CHUNK = 262_144

#: Seconds without any event after which a measurement is given up.
SILENCE = 30.0

#: Seconds after which a connection that was not greeted is given up and made again.  When a backlog
#: overflows, Linux may answer a SYN and forget it: the client waits for a greeting for ever.
GREETING = 3.0


class Unexpected(Exception):
    """A server said or did what it should not."""


@dataclass
class Tally:
    """What one client did.

    :ivar units: messages, sessions or whatever is counted: acknowledged, or received and compared.
    :ivar ended: when the last of them was done, by ``time.monotonic``.
    :ivar durations: seconds each took, where that is asked for.
    """

    client: int
    units: int = 0
    ended: float = 0.0
    durations: list[float] = field(default_factory=list)

    def add(self, units: int = 1) -> None:
        """Count *units* as done now."""
        if units:
            self.units += units
            self.ended = time.monotonic()


@dataclass
class Outcome:
    """What all clients did: the sum of a measurement.

    :ivar began: when the load began, all clients being ready, by ``time.monotonic``.
    :ivar metered: what the meter showed then.
    :ivar client_cpu: CPU seconds of the client processes.
    :ivar failures: what servers said or did wrong; one each.
    :ivar lost: connections that a server never greeted, and that were made again.
    """

    tallies: list[Tally]
    began: float
    metered: float
    client_cpu: float
    failures: list[str]
    lost: int = 0

    @property
    def units(self) -> int:
        """Of all clients."""
        return sum(tally.units for tally in self.tallies)

    @property
    def seconds(self) -> float:
        """From the start to the last unit of all."""
        return max((tally.ended for tally in self.tallies), default=self.began) - self.began

    @property
    def rate(self) -> float:
        """Units a second under load: the sum of the clients' own rates, each to its last unit.

        So a client that waits for a lost connection while the others go on does not count as if
        all had waited.
        """
        return sum(tally.units / (tally.ended - self.began)
                   for tally in self.tallies if tally.units)


class _Client:
    """One dialogue and its connection."""

    def __init__(self, dialogue: Dialogue, address: tuple[str, int], poll: select.epoll,
                 owners: dict[int, _Client]) -> None:
        self._dialogue = dialogue
        self._address = address
        self._poll = poll
        self._owners = owners
        self._sock: socket.socket | None = None
        self._owed = memoryview(b"")
        self._connecting = 0.0
        self.waiting = False
        self.tally: Tally | None = None

    def go_on(self, received: bytes | None) -> None:
        """Give the dialogue what came (None to begin it) and do its wish; raises its faults."""
        self.waiting = False
        try:
            wish = self._dialogue.send(received)  # type: ignore[arg-type]
            if wish is CONNECT:
                self._connect()
            elif wish is READY:
                self.waiting = True
            elif wish:
                assert isinstance(wish, bytes)
                self._send(wish)
        except StopIteration as stop:
            self.tally = stop.value
            self.close()

    def ready(self, events: int) -> None:
        """Go on with the dialogue as far as the socket has something for it."""
        assert self._sock is not None
        if events & select.EPOLLOUT:
            self._flush()
        if events & ~select.EPOLLOUT:
            try:
                received = self._sock.recv(_CHUNK)
            except BlockingIOError:
                return
            self._connecting = 0.0
            self.go_on(received)

    def connect_again(self) -> bool:
        """Whether the greeting was overdue; then another connection is under way."""
        overdue = 0 < self._connecting < time.monotonic() - GREETING
        if overdue:
            self._connect()
        return overdue

    def close(self) -> None:
        if self._sock is not None:
            del self._owners[self._sock.fileno()]
            self._sock.close()
            self._sock = None

    def _connect(self) -> None:
        self.close()
        self._sock = sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect_ex(self._address)  # a refusal shows as an error of the first recv
        self._connecting = time.monotonic()
        self._owners[sock.fileno()] = self
        self._poll.register(sock.fileno(), select.EPOLLIN)

    def _send(self, data: bytes) -> None:
        assert self._sock is not None
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._owed = memoryview(bytes(self._owed) + data[sent:])
            self._poll.modify(self._sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _flush(self) -> None:
        assert self._sock is not None
        if self._owed:
            self._owed = self._owed[self._sock.send(self._owed):]
        if not self._owed:
            self._poll.modify(self._sock.fileno(), select.EPOLLIN)


@dataclass
class _Report:
    """What one client process did."""

    tallies: list[Tally] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    lost: int = 0
    cpu: float = 0.0


def drive(dialogues: Sequence[Dialogue], address: tuple[str, int],
          all_ready: Callable[[], object] = lambda: None) -> _Report:
    """Play all *dialogues* to their ends in this process; *all_ready* is called when they are."""
    report = _Report()
    owners: dict[int, _Client] = {}

    def step(client: _Client, move: Callable[[Any], None], argument: Any) -> None:
        try:
            move(argument)
        except (Unexpected, OSError) as problem:
            report.failures.append(str(problem))
            client.close()
            client.waiting = False

    def play_until(done: Callable[[], bool]) -> None:
        looked = heard = time.monotonic()
        while owners and not done():
            events = poll.poll(0.5)
            for descriptor, mask in events:
                client = owners[descriptor]
                step(client, client.ready, mask)
            now = time.monotonic()
            if events:
                heard = now
            elif now - heard > SILENCE:
                report.failures.append(f"{len(owners)} clients heard nothing for {SILENCE:.0f} s")
                return
            if now - looked > 0.5:
                looked = now
                report.lost += sum(client.connect_again() for client in clients)

    with select.epoll() as poll:
        clients = [_Client(dialogue, address, poll, owners) for dialogue in dialogues]
        for client in clients:
            step(client, client.go_on, None)
        play_until(lambda: all(client.waiting for client in owners.values()))
        all_ready()
        before = resource.getrusage(resource.RUSAGE_SELF)
        for client in clients:
            if client.waiting:
                step(client, client.go_on, b"")
        play_until(lambda: False)
        after = resource.getrusage(resource.RUSAGE_SELF)
        for client in list(owners.values()):
            client.close()
    report.tallies = [client.tally for client in clients if client.tally is not None]
    report.cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return report


def run(play: Callable[[int], Dialogue], clients: int, address: tuple[str, int],
        meter: Callable[[], float] = lambda: 0.0, processes: int = 2) -> Outcome:
    """Play ``play(0)`` … ``play(clients - 1)`` at once, spread over client *processes*.

    *meter* is read when all clients are ready and none has begun.
    """
    context = multiprocessing.get_context("fork")
    processes = min(processes, clients)
    ready, start = context.Barrier(processes + 1), context.Barrier(processes + 1)
    pipes = []
    children = []
    for process in range(processes):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_client_process, daemon=True, args=(
            play, range(process, clients, processes), address, (ready, start), sender))
        child.start()
        sender.close()
        pipes.append(receiver)
        children.append(child)
    ready.wait(2 * SILENCE)
    metered = meter()
    began = time.monotonic()
    start.wait()
    total = _Report()
    for receiver in pipes:
        try:
            report = receiver.recv()
        except EOFError:
            report = _Report(failures=["a client process died"])
        total.tallies += report.tallies
        total.failures += report.failures
        total.lost += report.lost
        total.cpu += report.cpu
    for child in children:
        child.join()
    return Outcome(total.tallies, began, metered, total.cpu, total.failures, total.lost)


def _client_process(play: Callable[[int], Dialogue], numbers: range, address: tuple[str, int],
                    barriers: Sequence[Any], sender: Any) -> None:
    def all_ready() -> None:
        for barrier in barriers:
            barrier.wait()

    sender.send(drive([play(number) for number in numbers], address, all_ready))
    sender.close()
    os._exit(0)  # nothing of the parent's to flush or to finish
