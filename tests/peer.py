"""An SMTP server that says what a test wants: polite to all but what the test has for a verb."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol

from mailsvc.client import Client, Timeouts

QUICK = Timeouts(**dict.fromkeys(Timeouts.__dataclass_fields__, 1.0))

#: What a line of the client's is answered: octets, None to hang up, or "" for silence.
Answer = Callable[["Peer", bytes], bytes | None]


class Peer(Protocol):
    """A server that says what a test wants."""

    transport: Any

    def __init__(self, answer: Answer, greeting: bytes) -> None:
        self.answer = answer
        self.greeting = greeting
        self.lines: list[bytes] = []
        self.message = b""
        self.in_data = False
        self.chunk = 0
        self.verb = b""
        self._input = b""
        self.gone = False

    def connectionMade(self) -> None:
        self.transport.write(self.greeting)

    def dataReceived(self, data: bytes) -> None:
        self._input += data
        while self._input and not self.gone:
            if self.chunk:
                taken, self._input = self._input[:self.chunk], self._input[self.chunk:]
                self.message += taken
                self.chunk -= len(taken)
                if self.chunk == 0:
                    self.say(self.lines[-1])
                continue
            line, end, rest = self._input.partition(b"\r\n")
            if not end:
                return
            self._input = rest
            if self.in_data:
                self.message += line + b"\r\n"
                if line == b".":
                    self.in_data = False
                    self.say(b".")
                continue
            self.lines.append(line)
            if line.startswith(b"BDAT ") and int(line.split()[1]):
                self.chunk = int(line.split()[1])
            else:
                self.say(line)

    def say(self, line: bytes) -> None:
        reply = self.answer(self, line)
        if reply is None:
            self.gone = True
            self.transport.loseConnection()
        else:
            self.in_data = self.in_data or reply.startswith(b"354")
            self.transport.write(reply)


def polite(*extensions: str, **answers: bytes | None) -> Answer:
    """A server that takes everything, but for what *answers* has for a verb; ``end`` is the dot."""
    offered = b"".join(b"250-%s\r\n" % each.encode() for each in extensions)

    def answer(peer: Peer, line: bytes) -> bytes | None:
        verb = re.split(rb"[ :]", line)[0].decode().lower()
        verb = {".": "end"}.get(verb, verb)
        if verb in answers:
            found = answers[verb]
            return found.pop(0) if isinstance(found, list) else found  # type: ignore[unreachable]
        if verb in ("ehlo", "lhlo"):
            return offered + b"250 OK\r\n" if not extensions else (
                b"250-peer.example\r\n" + offered + b"250 HELP\r\n")
        return {"data": b"354 go\r\n", "quit": b"221 bye\r\n"}.get(verb, b"250 2.0.0 ok\r\n")

    return answer


class Listening:
    """*answer* on a port, for a ``with`` block."""

    def __init__(self, answer: Answer, greeting: bytes = b"220 peer.example ESMTP\r\n") -> None:
        self.peers: list[Peer] = []

        class Peers(Factory):
            noisy = False

            def buildProtocol(factory, addr: Any) -> Peer:
                self.peers.append(Peer(answer, greeting))
                return self.peers[-1]

        self._factory = Peers()

    async def __aenter__(self) -> Listening:
        self._port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(
            self._factory)
        self.port = self._port.getHost().port
        return self

    async def __aexit__(self, *_: object) -> None:
        for peer in self.peers:
            peer.transport.abortConnection()
        await self._port.stopListening()

    def dial(self, **options: Any) -> Deferred[Client]:
        options.setdefault("timeouts", QUICK)
        return Client.dial("127.0.0.1", self.port, hello="client.example", **options)
