"""``mailsvc.pop3.server`` over TCP: poplib, curl, TLS, slow and rude clients."""

from __future__ import annotations

import datetime
import poplib
import socket
import ssl as standard_ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import pytest_twisted
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.internet import reactor, ssl
from twisted.internet.task import Clock, deferLater
from twisted.internet.threads import deferToThread

from mailsvc.mail import Account
from mailsvc.pop3.commands import State
from mailsvc.pop3.server import POP3Factory
from mailsvc.store.memory import MemoryStore
from tests.maildrops import FakeMaildrop, message
from tests.pop3 import HOSTNAME, LONG, SECRET, USER, Realm, authenticator, portal, settings


@contextmanager
def listening(factory: POP3Factory) -> Iterator[int]:
    """The port where *factory* listens meanwhile."""
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")  # type: ignore[attr-defined]
    try:
        yield port.getHost().port
    finally:
        port.stopListening()


def over_tcp(maildrop: Any, tls: Any = None, **chosen: Any) -> POP3Factory:
    return POP3Factory(authenticator(portal(Realm(maildrop))), settings(**chosen), HOSTNAME,
                       reactor, tls)  # type: ignore[arg-type]


@pytest_twisted.inlineCallbacks
def test_poplib() -> Iterator[Any]:
    texts = [message(120, 1), b".dot\r\n\r\n.\r\n..\r\n", LONG]
    maildrop = FakeMaildrop(texts)
    maildrop.way = "pull"
    factory = over_tcp(maildrop, apop=True)

    def drive(port: int) -> None:
        pop = poplib.POP3("127.0.0.1", port, timeout=10)
        assert pop.getwelcome().startswith(b"+OK dbc.mtview.ca.us")
        assert pop.capa()["UTF8"] == ["USER"]
        pop.utf8()
        with pytest.raises(poplib.error_proto, match="AUTH"):
            pop.apop(USER, "wrong")
        pop.apop(USER, SECRET)
        assert pop.stat() == (3, sum(map(len, texts)))
        assert pop.list()[1] == [b"%d %d" % (n, len(t)) for n, t in enumerate(texts, 1)]
        assert pop.uidl()[1] == [b"1 uid-1", b"2 uid-2", b"3 uid-3"]
        assert pop.uidl(2) == b"+OK 2 uid-2"
        for number, text in enumerate(texts, 1):
            assert b"".join(line + b"\r\n" for line in pop.retr(number)[1]) == text
        assert pop.top(2, 1)[1] == [b".dot", b"", b"."]
        pop.dele(1)
        pop.rset()
        pop.noop()
        pop.dele(3)
        with pytest.raises(poplib.error_proto):
            pop.retr(3)
        with pytest.raises(poplib.error_proto):
            pop.rpop(USER)
        assert pop.quit().startswith(b"+OK")
        again = poplib.POP3("127.0.0.1", port, timeout=10)
        again.user(USER)
        assert again.pass_(SECRET) == b"+OK 3 messages (300135 octets)"
        again.close()

    with listening(factory) as port:
        yield deferToThread(drive, port)
        yield factory.connections.shut_down(5)
    assert ("update", {3}) in maildrop.happened
    assert factory.authenticator.portal.realm.open == 0  # type: ignore[attr-defined]


@pytest_twisted.inlineCallbacks
def test_curl(program: Callable[[str], str]) -> Iterator[Any]:
    maildrop = FakeMaildrop([message(120, 1), LONG])
    curl = program("curl")

    def get(*arguments: str) -> bytes:
        done = subprocess.run([curl, "--silent", "--show-error", "--max-time", "10", *arguments],
                              capture_output=True, check=True)
        return done.stdout

    def drive(port: int) -> None:
        place = f"pop3://{USER}:{SECRET}@127.0.0.1:{port}/"
        assert get(place) == b"1 120\r\n2 300000\r\n"
        assert get(place + "1") == message(120, 1)
        assert get(place + "2") == LONG
        get(place + "1", "--request", "DELE", "--list-only")
        assert get(place, "--request", "UIDL") == b"1 uid-1\r\n2 uid-2\r\n"

    factory = over_tcp(maildrop)
    with listening(factory) as port:
        yield deferToThread(drive, port)
        yield factory.connections.shut_down(5)
    assert ("update", {1}) in maildrop.happened


@pytest_twisted.inlineCallbacks
def test_the_memory_store() -> Iterator[Any]:
    store = MemoryStore()
    account = Account("mrose", "example.org")
    texts = [message(120, 1), LONG]
    for number, text in enumerate(texts):
        delivery = store.begin((account,), f"ID{number}")
        delivery.write(text)
        yield delivery.commit()
    maildrop = yield store.open_maildrop(account)
    factory = over_tcp(maildrop)

    def drive(port: int) -> None:
        pop = poplib.POP3("127.0.0.1", port, timeout=10)
        pop.user(USER)
        pop.pass_(SECRET)
        for number, text in enumerate(texts, 1):
            assert b"".join(line + b"\r\n" for line in pop.retr(number)[1]) == text
        pop.dele(1)
        pop.quit()

    with listening(factory) as port:
        yield deferToThread(drive, port)
    assert list(store.mailboxes[account.name].messages.values()) == [LONG]


def _certificate() -> ssl.PrivateCertificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOSTNAME)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1)).sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return ssl.PrivateCertificate.loadPEM(certificate.public_bytes(pem) + key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))


@pytest_twisted.inlineCallbacks
def test_stls() -> Iterator[Any]:
    maildrop = FakeMaildrop([LONG])
    maildrop.way = "pull"
    factory = over_tcp(maildrop, tls=_certificate().options())

    def drive(port: int) -> None:
        pop = poplib.POP3("127.0.0.1", port, timeout=10)
        assert "STLS" in pop.capa()
        context = standard_ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, standard_ssl.CERT_NONE
        pop.stls(context)
        assert "STLS" not in pop.capa()
        pop.user(USER)
        pop.pass_(SECRET)
        assert b"".join(line + b"\r\n" for line in pop.retr(1)[1]) == LONG
        assert pop.quit().startswith(b"+OK")

    with listening(factory) as port:
        yield deferToThread(drive, port)
        yield factory.connections.shut_down(5)


@pytest_twisted.inlineCallbacks
def test_tls_from_the_first_octet() -> Iterator[Any]:
    certificate = _certificate().options()
    factory = over_tcp(FakeMaildrop([LONG]), tls=certificate, errors=1)
    context = standard_ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, standard_ssl.CERT_NONE

    def drive(port: int) -> None:
        pop = poplib.POP3_SSL("127.0.0.1", port, timeout=10, context=context)
        assert "STLS" not in pop.capa()
        pop.user(USER)
        pop.pass_(SECRET)
        assert b"".join(line + b"\r\n" for line in pop.retr(1)[1]) == LONG
        # Half a close would end the TCP connection below TLS, and lose the answer.
        with pytest.raises(poplib.error_proto, match="Too many malformed commands"):
            pop._shortcmd("XYZZY")
        assert pop.file.read() == b""
        pop.close()

    port = reactor.listenSSL(0, factory, certificate, interface="127.0.0.1")
    yield deferToThread(drive, port.getHost().port)
    yield factory.connections.shut_down(5)
    yield port.stopListening()


def pause(seconds: float = 0.05) -> Any:
    return deferLater(reactor, seconds, lambda: None)  # type: ignore[arg-type]


@pytest_twisted.inlineCallbacks
def test_a_slow_reader_over_tcp() -> Iterator[Any]:
    """A client that takes little keeps its session; when it takes nothing it loses it."""
    clock = Clock()
    maildrop = FakeMaildrop([message(4_000_000)])
    maildrop.way = "pull"
    factory = POP3Factory(authenticator(portal(Realm(maildrop))), settings(), HOSTNAME, clock)
    with listening(factory) as port, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        yield deferToThread(client.connect, ("127.0.0.1", port))
        client.settimeout(10)
        client.sendall(f"USER {USER}\r\nPASS {SECRET}\r\nRETR 1\r\nQUIT\r\n".encode())
        protocol = None
        for _ in range(200):
            yield pause()
            protocol = next(iter(factory.connections._open), None)
            if protocol is not None and not protocol.writable:
                break
        assert protocol is not None
        taken = 0
        for _ in range(12):
            taken += len((yield deferToThread(client.recv, 30_000)))
            yield pause(0.02)
            clock.advance(600)
            assert protocol._connected
        assert taken < 1_000_000
        # The kernels go on between themselves for a moment.
        for _ in range(100):
            if protocol._connected:
                clock.advance(600)
                yield pause()
        assert not protocol._connected
        assert factory.authenticator.portal.realm.open == 0  # type: ignore[attr-defined]
        with pytest.raises(ConnectionResetError):
            while (yield deferToThread(client.recv, 1_000_000)):
                pass
    assert maildrop.happened == [("read", 1, None)]
    assert protocol.session.state is State.TRANSACTION


@pytest_twisted.inlineCallbacks
def test_the_last_answer_is_not_overtaken_by_a_reset() -> Iterator[Any]:
    factory = over_tcp(FakeMaildrop(), errors=5)

    def drive(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.sendall(b"junk\r\n" * 100_000)
            client.shutdown(socket.SHUT_WR)
            heard = b""
            while data := client.recv(65_536):
                heard += data
            return heard

    with listening(factory) as port:
        heard = yield deferToThread(drive, port)
        yield factory.connections.shut_down(5)
    assert heard.endswith(b"-ERR Too many malformed commands; connect again\r\n")
