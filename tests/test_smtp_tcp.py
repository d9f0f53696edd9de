"""SMTP over real sockets, where sockets are the point: resets, half-closes, full buffers, TLS."""

from __future__ import annotations

import datetime
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_twisted
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ServerEndpoint
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import LogLevel, capturedLogs

from mailsvc.smtp.limits import SMTPSettings
from mailsvc.smtp.server import SMTPFactory, SMTPProtocol
from tests.postoffice import HOSTNAME, Answers, FakeRouter, FakeStore

HELO = b"HELO client.example.net\r\n"
ENVELOPE = b"MAIL FROM:<a@example.net>\r\nRCPT TO:<alice@example.org>\r\n"
MESSAGE = b"DATA\r\nSubject: x\r\n\r\ntext\r\n.\r\n"
PATIENCE = 20.0


class Office:
    """A listening service; ``port`` is where."""

    def __init__(self, settings: dict[str, Any], tls: Any) -> None:
        self.answers = Answers()
        self.store = FakeStore(self.answers)
        self.factory = SMTPFactory(self.store, FakeRouter(self.answers), SMTPSettings(**settings),
                                   HOSTNAME, reactor, tls)
        self.port = 0

    @property
    def protocols(self) -> list[SMTPProtocol]:
        """Those of the open connections."""
        return list(self.factory.connections._open)  # type: ignore[arg-type]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for *condition*; the reactor goes on meanwhile."""
        for _ in range(2000):
            if condition():
                return
            await deferLater(reactor, 0.005)
        raise AssertionError("it does not come to pass")

    async def empty(self) -> None:
        """Wait until every connection is gone."""
        await self.until(lambda: not len(self.factory.connections))


@asynccontextmanager
async def office(*, tls: Any = None, buffers: int = 0, endpoint: Any = TCP4ServerEndpoint,
                 **settings: Any) -> AsyncIterator[Office]:
    """A service on a free port; in the end nothing may be left of it, and no error in the log."""
    one = Office(settings, tls)
    with capturedLogs() as events:
        where = (reactor, 0) if endpoint is TCP4ServerEndpoint else (reactor, 0, tls)
        port = await endpoint(*where, interface="127.0.0.1").listen(one.factory)
        one.port = port.getHost().port
        shrink(port.socket, buffers)
        try:
            yield one
        finally:
            await port.stopListening()
            await one.factory.connections.shut_down(2)
    assert [e for e in events if e["log_level"] > LogLevel.warn or "log_failure" in e] == []


def shrink(one: socket.socket, octets: int) -> None:
    """Make the kernel's buffers small; those of a listening socket are inherited."""
    if octets:
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            one.setsockopt(socket.SOL_SOCKET, option, octets)


class Client:
    """A blocking client; to be used in a thread."""

    def __init__(self, port: int, buffers: int = 0) -> None:
        self.socket: socket.socket = socket.socket()
        shrink(self.socket, buffers)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(("127.0.0.1", port))

    def say(self, data: bytes) -> None:
        self.socket.sendall(data)

    def hear(self, lines: int) -> list[bytes]:
        """So many lines, or fewer when the server closes."""
        data = b""
        while lines > 0 and (more := self.socket.recv(65_536)):
            data += more
            lines -= more.count(b"\n")
        return data.split(b"\r\n")[:-1]

    def hear_all(self) -> list[bytes]:
        """All lines up to the end."""
        return self.hear(10**9)

    def reset(self) -> None:
        """Close with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def in_thread(function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
    return deferToThread(function, *arguments)


#: What was said, how many lines that brings, and what then becomes of the message.
STATES = {
    "greeting": (b"", 1, ""),
    "introduced": (HELO, 2, ""),
    "half a command": (HELO + b"MAIL FR", 2, ""),
    "in a transaction": (HELO + ENVELOPE, 4, ""),
    "amid the data": (HELO + ENVELOPE + b"DATA\r\ntext\r\n", 5, "aborted"),
    "amid a chunk": (HELO + ENVELOPE + b"BDAT 99\r\ntext\r\n", 4, "aborted"),
    "between chunks": (HELO + ENVELOPE + b"BDAT 1\r\nx", 5, "aborted"),
    "after a message": (HELO + ENVELOPE + MESSAGE, 6, "committed"),
    "after QUIT": (HELO + b"QUIT\r\n", 3, ""),
    "after 421": (b"WHAT\r\n" * 3, 5, ""),
}


@pytest.mark.parametrize(("said", "lines", "outcome"), STATES.values(), ids=STATES)
@pytest_twisted.ensureDeferred
async def test_a_reset_is_no_traceback(said: bytes, lines: int, outcome: str) -> None:
    # PITFALLS, SMTP row 21.
    async with office(errors=3) as one:
        def client() -> None:
            peer = Client(one.port)
            peer.say(said)
            assert len(peer.hear(lines)) == lines
            peer.reset()

        await in_thread(client)
        await one.empty()
        assert [delivery.outcome for delivery in one.store.deliveries] == [outcome] * bool(outcome)


@pytest.mark.parametrize(("kind", "said", "outcome"), [
    ("route", HELO + ENVELOPE, ""), ("commit", HELO + ENVELOPE + MESSAGE, "committed")])
@pytest_twisted.ensureDeferred
async def test_a_reset_amid_a_question_is_no_traceback(kind: str, said: bytes,
                                                       outcome: str) -> None:
    async with office() as one:
        one.answers.late = {kind}
        peer = await in_thread(Client, one.port)
        await in_thread(peer.say, said)
        await one.until(lambda: one.answers.held == [kind])
        await in_thread(peer.reset)
        await one.empty()
        one.answers.release()
        assert [delivery.outcome for delivery in one.store.deliveries] == [outcome] * bool(outcome)


@pytest.mark.parametrize("kind", ["route", "commit", "write"])
@pytest_twisted.ensureDeferred
async def test_a_reset_while_nothing_is_read_is_noticed_later(kind: str) -> None:
    async with office() as one:
        one.answers.late = {kind}
        peer = await in_thread(Client, one.port)
        await in_thread(peer.say, HELO + ENVELOPE + MESSAGE + b"NOOP\r\n" * 10)
        await one.until(lambda: one.answers.held == [kind])
        # So that the server has nothing to write, either.
        await in_thread(peer.hear, {"route": 3, "commit": 5, "write": 5}[kind])
        await in_thread(peer.reset)
        await deferLater(reactor, 0.02)
        assert len(one.factory.connections) == 1
        one.answers.late.clear()
        one.answers.release()
        await one.empty()
        # All of it had come, and is answered though nobody hears it (RFC 1047).
        assert [delivery.outcome for delivery in one.store.deliveries] == ["committed"]


@pytest.mark.parametrize("late", ["", "route", "commit", "write"])
@pytest.mark.parametrize("words", [b"QUIT\r\n", b""], ids=["QUIT", "without a word"])
@pytest_twisted.ensureDeferred
async def test_a_client_that_says_all_and_closes_its_half_gets_all_replies(late: str,
                                                                           words: bytes) -> None:
    async with office() as one:
        one.answers.late = {late}

        def client() -> list[bytes]:
            peer = Client(one.port)
            peer.say(HELO + ENVELOPE + MESSAGE + words)
            peer.socket.shutdown(socket.SHUT_WR)
            return peer.hear_all()

        replies = in_thread(client)
        if late:
            await one.until(lambda: bool(one.answers.held))
            await deferLater(reactor, 0.05)
            one.answers.late.clear()
            one.answers.release()
        assert [line[:3] for line in await replies] == [
            b"220", b"250", b"250", b"250", b"354", b"250"] + [b"221"] * bool(words)
        assert len(one.store.mail) == 1
        await one.empty()


@pytest_twisted.ensureDeferred
async def test_the_last_reply_is_not_overtaken_by_a_reset() -> None:
    # The client goes on for megabytes before it looks at an answer.
    async with office(errors=2) as one:
        def client() -> list[bytes]:
            peer = Client(one.port)
            peer.say(b"WHAT\r\n" * 500_000)
            heard = peer.hear_all()
            peer.socket.close()
            return heard

        heard = await in_thread(client)
        assert [line[:3] for line in heard] == [b"220", b"500", b"500", b"421"]
        await one.empty()


@pytest_twisted.ensureDeferred
async def test_a_flood_stays_with_a_client_that_does_not_read() -> None:
    flood = b"NOOP\r\n" * 200_000
    async with office(buffers=4096, idle_commands=10**9) as one:
        def pour() -> tuple[Client, int]:
            peer = Client(one.port, buffers=4096)
            peer.socket.settimeout(0.5)
            sent = 0
            try:
                while sent < len(flood):
                    sent += peer.socket.send(flood[sent : sent + 65_536])
            except TimeoutError:
                peer.socket.settimeout(PATIENCE)
            return peer, sent

        peer, sent = await in_thread(pour)
        # Both kernels' buffers are full, ours is not: the server has stopped reading.
        assert sent < len(flood)
        (protocol,) = one.protocols
        assert not protocol._reading
        transport = protocol.transport
        # One received chunk, and the replies to another, at most.
        assert protocol.session.buffered <= 65_536
        assert len(transport.dataBuffer) + transport._tempDataLen < 65_536 + 65_536 // 6 * 26

        def read() -> int:
            whole = sent // 6
            heard = peer.hear(1 + whole)
            peer.reset()
            return len(heard) - 1 - whole

        # Nor is anything lost.
        assert await in_thread(read) == 0
        await one.empty()


def certificate() -> CertificateOptions:
    """A context with a new self-signed certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOSTNAME)])
    now = datetime.datetime.now(datetime.UTC)
    made = (x509.CertificateBuilder().subject_name(name).issuer_name(name)
            .public_key(key.public_key()).serial_number(1)
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1)).sign(key, hashes.SHA256()))
    # Annotated for pyOpenSSL's own classes, whose use pyOpenSSL advises against.
    return CertificateOptions(privateKey=key, certificate=made)  # type: ignore[arg-type]


def start_tls(peer: Client) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    peer.socket = context.wrap_socket(peer.socket)


@pytest.mark.parametrize("injected", [b"", b"NOOP\r\n", b"MAIL FROM:<evil@example.net>\r\nRCPT"])
@pytest_twisted.ensureDeferred
async def test_starttls(injected: bytes) -> None:
    # PITFALLS, SMTP row 3.
    async with office(tls=certificate()) as one:
        def client() -> None:
            peer = Client(one.port)
            peer.say(b"EHLO evil.example\r\n" + ENVELOPE)
            assert b"250-STARTTLS" in peer.hear(1 + 10 + 2)
            peer.say(b"STARTTLS\r\n" + injected)
            assert peer.hear(1) == [b"220 2.0.0 Ready to start TLS"]
            start_tls(peer)
            peer.say(b" TO:<alice@example.org>\r\nRCPT TO:<bob@example.org>\r\n")
            assert [line[:9] for line in peer.hear(2)] == [b"500 5.5.1", b"503 5.5.1"]
            peer.say(b"EHLO client.example.net\r\n")
            assert b"250-STARTTLS" not in peer.hear(9)
            peer.say(ENVELOPE + MESSAGE + b"QUIT\r\n")
            assert [line[:3] for line in peer.hear_all()] == [
                b"250", b"250", b"354", b"250", b"221"]
            peer.socket.close()

        await in_thread(client)
        (delivery,) = one.store.mail
        assert b"Received: from client.example.net ([127.0.0.1])\r\n" in delivery.message
        assert b" with ESMTPS id " in delivery.message
        await one.empty()


@pytest_twisted.ensureDeferred
async def test_an_error_that_ends_a_session_is_told_inside_tls() -> None:
    async with office(tls=certificate(), errors=3) as one:
        def client() -> None:
            peer = Client(one.port)
            peer.say(b"STARTTLS\r\n")
            peer.hear(2)
            start_tls(peer)
            peer.say(b"WHAT\r\n" * 3)
            assert [line[:3] for line in peer.hear_all()] == [b"500", b"500", b"500", b"421"]
            peer.socket.close()

        await in_thread(client)
        await one.empty()


@pytest_twisted.ensureDeferred
async def test_tls_from_the_first_octet() -> None:
    # An endpoint may bring TLS along: "ssl:465:…".
    async with office(tls=certificate(), endpoint=SSL4ServerEndpoint, errors=2) as one:
        def client() -> None:
            peer = Client(one.port)
            start_tls(peer)
            peer.say(b"EHLO client.example.net\r\n" + ENVELOPE + MESSAGE + b"STARTTLS\r\n")
            heard = peer.hear(1 + 9 + 4 + 1)
            assert b"250-STARTTLS" not in heard
            assert heard[-1] == b"503 5.5.1 TLS is active already"
            peer.say(b"WHAT\r\n")
            assert [line[:3] for line in peer.hear_all()] == [b"500", b"421"]
            peer.socket.close()

        await in_thread(client)
        assert b" with ESMTPS id " in one.store.mail[0].message
        await one.empty()


@pytest.mark.parametrize("data", [b"", b"NOOP\r\nEHLO x\r\n", b"\x16\x03\x01\x00\x05hello"])
@pytest_twisted.ensureDeferred
async def test_what_is_no_tls_where_tls_should_begin_is_no_traceback(data: bytes) -> None:
    async with office(tls=certificate()) as one:
        def client() -> None:
            peer = Client(one.port)
            peer.say(b"STARTTLS\r\n")
            assert len(peer.hear(2)) == 2
            peer.say(data)
            peer.socket.shutdown(socket.SHUT_WR)
            assert not any(line.startswith(b"250") for line in peer.hear_all())
            peer.socket.close()

        await in_thread(client)
        await one.empty()


@pytest_twisted.ensureDeferred
async def test_a_connection_too_many_is_told_so() -> None:
    async with office(connections=1) as one:
        first = await in_thread(Client, one.port)
        assert (await in_thread(first.hear, 1))[0].startswith(b"220")

        def client() -> list[bytes]:
            peer = Client(one.port)
            peer.say(HELO + ENVELOPE + MESSAGE)
            heard = peer.hear_all()
            peer.socket.close()
            return heard

        heard = await in_thread(client)
        assert heard == [b"421 4.3.2 mx.example.org Too many connections; try again later"]
        await in_thread(first.reset)
        await one.empty()
