"""The fetching dialogues: POP3 (RFC 1939), every octet that comes compared with what must come.

Maildrops hold messages of one :class:`~tests.bench.messages.Template` and nothing else, so STAT and
LIST are known in advance; UIDL must be without doubles and the same in each session; a message may
have any number, but keeps it, and each comes under one number only.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator
from dataclasses import dataclass

from tests.bench.load import CONNECT, READY, Dialogue, Tally, Unexpected
from tests.bench.messages import IDENT_LENGTH, NAMED_AFTER, Template

#: Commands that a pipelining client sends ahead.
WINDOW = 100

_Step = Generator["bytes | object | None", bytes, bytes]


@dataclass(frozen=True)
class Fetching:
    """Whose maildrops the clients open, and what lies there.

    :ivar logins: name and password for each client.
    :ivar idents: the messages in each client's maildrop.
    :ivar seconds: no session or command is begun later than this, where time limits the work.
    :ivar sessions: and at most so many sessions by one client.
    """

    logins: tuple[tuple[bytes, bytes], ...]
    idents: tuple[Collection[bytes], ...]
    template: Template
    seconds: float = 2.0
    sessions: int = 1_000_000

    def look(self, client: int) -> Dialogue:
        """Sessions of CAPA, USER, PASS, STAT, UIDL, LIST, QUIT, until time is up."""
        return _look(self, client, (b"CAPA\r\n",), (b"UIDL\r\n", b"LIST\r\n"))

    def check(self, client: int) -> Dialogue:
        """Sessions of USER, PASS, STAT, UIDL, QUIT: what a program does that leaves mail there."""
        return _look(self, client, (), (b"UIDL\r\n",))

    def retrieve(self, client: int) -> Dialogue:
        """After login: RETR of all messages over and over, one by one, until time is up."""
        return _retrieve(self, client, 1)

    def retrieve_pipelined(self, client: int) -> Dialogue:
        """The same with up to WINDOW commands sent ahead."""
        return _retrieve(self, client, WINDOW)

    def drain(self, client: int) -> Dialogue:
        """After login: LIST, RETR all, DELE all, QUIT, pipelined."""
        return _drain(self, client)


def _look(plan: Fetching, client: int, greetings: tuple[bytes, ...],
          listings: tuple[bytes, ...]) -> Dialogue:
    tally = Tally(client)
    number = len(plan.idents[client])
    stat = b"+OK %d %d" % (number, number * plan.template.size)
    sizes = b"".join(b"%d %d\r\n" % (n, plan.template.size) for n in range(1, number + 1))
    unique_ids = None
    yield READY
    until = time.monotonic() + plan.seconds
    while tally.units < plan.sessions and (tally.units == 0 or time.monotonic() < until):
        began = time.monotonic()
        yield from _line(CONNECT)
        for greeting in greetings:
            yield from _listing(greeting)
        yield from _login(plan, client)
        _expect(stat, (yield from _line(b"STAT\r\n")))
        for listing in listings:
            said = yield from _listing(listing)
            if listing == b"LIST\r\n":
                if said != sizes:
                    raise Unexpected("LIST differs from the sizes of the messages")
            elif unique_ids is None:
                _check_unique_ids(said, number)
                unique_ids = said
            elif said != unique_ids:
                raise Unexpected("UIDL differs from the session before")
        yield from _line(b"QUIT\r\n")
        tally.add()
        tally.durations.append(time.monotonic() - began)
    return tally


def _check_unique_ids(listing: bytes, number: int) -> None:
    rows = [line.split(b" ") for line in listing.split(b"\r\n")[:-1]]
    if [row[0] for row in rows] != [b"%d" % n for n in range(1, number + 1)]:
        raise Unexpected(f"UIDL lists {len(rows)} messages, not 1 to {number}")
    if len({row[1] for row in rows}) != number:
        raise Unexpected("UIDL has the same unique-id twice")


def _retrieve(plan: Fetching, client: int, window: int) -> Dialogue:
    tally = Tally(client)
    reader = MessageReader(plan.template, plan.idents[client])
    number = len(plan.idents[client])
    yield from _line(CONNECT)
    yield from _login(plan, client)
    yield READY
    until = time.monotonic() + plan.seconds
    asked = 0

    def ask() -> bytes:
        """Commands that fill the window, or none when time is up or half of it is open."""
        nonlocal asked
        if asked - tally.units > window // 2 or (asked and time.monotonic() > until):
            return b""
        numbers = range(asked, tally.units + window)
        asked = tally.units + window
        return b"".join(b"RETR %d\r\n" % (n % number + 1) for n in numbers)

    wish: bytes | None = ask()
    while tally.units < asked:
        chunk = yield wish
        tally.add(reader.take(_open(chunk)))
        wish = ask() or None
    yield from _line(b"QUIT\r\n")
    return tally


def _drain(plan: Fetching, client: int) -> Dialogue:
    tally = Tally(client)
    number = len(plan.idents[client])
    reader = MessageReader(plan.template, plan.idents[client])
    yield from _line(CONNECT)
    yield from _login(plan, client)
    yield READY
    yield from _listing(b"LIST\r\n")
    asked = received = 0
    while received < number:
        wish = None
        if asked < number and asked - received <= WINDOW // 2:
            numbers = range(asked, min(number, received + WINDOW))
            asked = numbers.stop
            wish = b"".join(b"RETR %d\r\n" % (n + 1) for n in numbers)
        received += reader.take(_open((yield wish)))
    for first in range(0, number, WINDOW):
        numbers = range(first, min(number, first + WINDOW))
        wish = b"".join(b"DELE %d\r\n" % (n + 1) for n in numbers)
        deleted = 0
        rest = b""
        while deleted < len(numbers):
            *lines, rest = (rest + _open((yield wish))).split(b"\r\n")
            wish = None
            for line in lines:
                _expect(b"+OK", line)
            deleted += len(lines)
    yield from _line(b"QUIT\r\n")
    tally.add(received)
    return tally


class MessageReader:
    """Compares the replies to RETR 1, RETR 2, …, over and over, with the messages that must come.

    :ivar template: what the messages look like.
    :ivar idents: who they are; in which order is learned in the first pass over all.
    """

    def __init__(self, template: Template, idents: Collection[bytes]) -> None:
        self._template = template
        self._missing = set(idents)
        self._number = len(idents)
        self._order: list[bytes] = []
        self._turn = 0
        self._rest = b""
        self._expected: bytes | None = None
        self._offset = 0

    def take(self, chunk: bytes) -> int:
        """Compare the next bytes: how many messages they complete.

        :raises Unexpected: at the first octet that differs.
        """
        data = self._rest + chunk if self._rest else chunk
        position = complete = 0
        while position < len(data):
            if self._expected is None:
                end = data.find(b"\r\n", position) + 2
                if end < 2 or len(data) < end + NAMED_AFTER:
                    break  # the status line or the name is not all here
                _expect(b"+OK", data[position:end - 2])
                position = end
                name = data[end + NAMED_AFTER - IDENT_LENGTH:end + NAMED_AFTER]
                self._expected = self._template.wire(self._recognise(name))
                self._offset = 0
            length = min(len(self._expected) - self._offset, len(data) - position)
            if data[position:position + length] != self._expected[
                    self._offset:self._offset + length]:
                raise Unexpected(f"message {self._turn} differs from what was put there")
            position += length
            self._offset += length
            if self._offset == len(self._expected):
                self._expected = None
                complete += 1
        self._rest = data[position:]
        return complete

    def _recognise(self, name: bytes) -> bytes:
        turn = self._turn % self._number
        self._turn += 1
        if turn == len(self._order):
            if name not in self._missing:
                raise Unexpected(f"{name.decode('ascii', 'replace')!r} is not in this maildrop, "
                                 f"or came under another number before")
            self._missing.remove(name)
            self._order.append(name)
        elif name != self._order[turn]:
            raise Unexpected(f"message {turn + 1} was another one before")
        return name


def _login(plan: Fetching, client: int) -> Generator[bytes | object | None, bytes, None]:
    name, password = plan.logins[client]
    yield from _line(b"USER %b\r\n" % name)
    yield from _line(b"PASS %b\r\n" % password)


def _line(wish: bytes | object) -> _Step:
    """Send *wish* and take a reply of one line, which must be ``+OK``."""
    received = yield wish
    while not _open(received).endswith(b"\r\n"):
        received += _open((yield None))
    _expect(b"+OK", received)
    return received[:-2]


def _listing(wish: bytes) -> _Step:
    """Send *wish* and take a multi-line reply: its lines, without the status and the terminator."""
    received = [_open((yield wish))]
    tail = received[0]
    while not tail.endswith(b"\r\n.\r\n"):
        received.append(_open((yield None)))
        tail = tail[-4:] + received[-1]
        if received[0].startswith(b"-ERR"):
            break
    status, _, listing = b"".join(received).partition(b"\r\n")
    _expect(b"+OK", status)
    return listing[:-3]


def _open(received: bytes) -> bytes:
    if not received:
        raise Unexpected("the server closed the connection too early")
    return received


def _expect(beginning: bytes, line: bytes) -> None:
    if not line.startswith(beginning):
        raise Unexpected(f"{line[:120].decode('ascii', 'replace')!r} "
                         f"instead of {beginning.decode()!r}")
