"""TLS over sockets, and as the system sees it."""

from __future__ import annotations

import os
import pwd
import socket
import ssl
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from cryptography import x509
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.task import Clock, deferLater
from twisted.internet.threads import deferToThread
from twisted.protocols.tls import TLSMemoryBIOFactory

from mailsvc.handshake import describe
from mailsvc.tls import ServerTLS, TLSSettings, TLSUnusable
from tests import tls_talk
from tests.authority import pem
from tests.tls_talk import (
    AUTHORITY,
    HOSTNAME,
    MX,
    RENEWED,
    Echo,
    EchoFactory,
    trusting,
)

live = tls_talk.live

# ---- over sockets -------------------------------------------------------------------------------


class Upgrading(Echo):
    """Says hello, and begins TLS when told to."""

    def connectionMade(self) -> None:
        super().connectionMade()
        assert self.transport is not None
        self.transport.write(b"hello\r\n")

    def dataReceived(self, data: bytes) -> None:
        transport: Any = self.transport
        if data == b"STARTTLS\r\n":
            transport.write(b"go\r\n")
            transport.startTLS(self.factory.tls)
        else:
            super().dataReceived(data)


@asynccontextmanager
async def listening(server: ServerTLS, implicit: bool) -> AsyncIterator[tuple[EchoFactory, int]]:
    factory = EchoFactory()
    factory.protocol = Upgrading
    factory.tls = server
    endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    port = await endpoint.listen(
        TLSMemoryBIOFactory(server, False, factory) if implicit else factory)
    try:
        yield factory, port.getHost().port
    finally:
        await port.stopListening()
        server.stopService()


def s_client(program: str, port: int, root: Path, *options: str) -> str:
    """What openssl s_client writes, given two lines of input."""
    with subprocess.Popen(
        [program, "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", str(root),
         "-verify_return_error", "-servername", HOSTNAME, "-verify_hostname", HOSTNAME, *options],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(20, process.kill)
        timer.start()
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("hello"):
                process.stdin.write("round trip\n")
                process.stdin.flush()
            if line.startswith("round trip"):
                process.stdin.close()
        timer.cancel()
    return "".join(lines)


def real(tmp_path: Path, live: Path, **settings: Any) -> ServerTLS:
    server = ServerTLS(TLSSettings(certificates=[str(live)], **settings), str(tmp_path), HOSTNAME,
                       reactor)
    server.load()
    server.startService()
    return server


@pytest_twisted.ensureDeferred
async def test_openssl_over_implicit_tls(
    tmp_path: Path, live: Path, program: Callable[[str], str]
) -> None:
    (tmp_path / "root.pem").write_bytes(pem(AUTHORITY.root))
    async with listening(real(tmp_path, live), implicit=True) as (factory, port):
        for option, version in (("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")):
            text = await deferToThread(s_client, program("openssl"), port, tmp_path / "root.pem",
                                       option)
            assert "Verify return code: 0 (ok)" in text
            assert "round trip" in text
            state = factory.built[-1].state
            assert state is not None
            assert state.version == version


@pytest_twisted.ensureDeferred
async def test_starttls_and_a_renewal_within_a_second(tmp_path: Path, live: Path) -> None:
    def connect(port: int) -> ssl.SSLSocket:
        raw = socket.create_connection(("127.0.0.1", port), timeout=20)
        assert raw.recv(100) == b"hello\r\n"
        raw.sendall(b"STARTTLS\r\n")
        assert raw.recv(100) == b"go\r\n"
        return trusting().wrap_socket(raw, server_hostname=HOSTNAME)

    def serial(client: ssl.SSLSocket) -> int:
        shown = client.getpeercert(binary_form=True)
        assert shown is not None
        return x509.load_der_x509_certificate(shown).serial_number

    def talk(client: ssl.SSLSocket) -> bytes:
        client.sendall(b"still here")
        return client.recv(100)

    server = real(tmp_path, live)
    async with listening(server, implicit=False) as (factory, port):
        clients = [await deferToThread(connect, port) for _ in range(100)]
        assert {serial(client) for client in clients} == {MX.serial}
        assert ISSLTransport.providedBy(factory.built[0].transport)
        state = describe(factory.built[0].transport)
        assert state is not None
        assert state.server_name == HOSTNAME
        RENEWED.write(live)
        await deferLater(reactor, 0.9)
        late = await deferToThread(connect, port)
        assert serial(late) == RENEWED.serial
        for client in [*clients, late]:
            assert await deferToThread(talk, client) == b"still here"
            client.close()
        for _ in range(500):
            if all(echo.lost for echo in factory.built):
                break
            await deferLater(reactor, 0.01)


@contextmanager
def as_nobody_special() -> Iterator[None]:
    """Not as root, who may read everything."""
    user = os.geteuid()
    os.seteuid(user or 1)
    try:
        yield
    finally:
        os.seteuid(user)


def test_files_that_another_user_may_not_read() -> None:
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        live = MX.write(Path(name) / "live")
        user = pwd.getpwuid(os.geteuid() or 1).pw_name
        for closed, named in ((live / "privkey.pem", "privkey.pem"), (live, "fullchain.pem")):
            closed.chmod(0)
            server = ServerTLS(TLSSettings(certificates=[str(live)]), name, HOSTNAME, Clock())
            with as_nobody_special(), pytest.raises(TLSUnusable) as caught:
                server.load()
            closed.chmod(0o755)
            assert f"{live}/{named}: permission denied for user {user}" in str(caught.value)
