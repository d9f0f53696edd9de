"""What is told of a TLS handshake: the client's names, channel bindings, the Received clause."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL
from twisted.internet.testing import StringTransport
from twisted.logger import LogLevel

from mailsvc import handshake
from mailsvc.handshake import ServerConnection, describe
from mailsvc.tls import ServerTLS, TLSUnusable
from tests import tls_talk
from tests.authority import Authority, Issued, pem, self_issued
from tests.tls_talk import (
    CLIENTS,
    MX,
    OTHER,
    Session,
    World,
    careless,
    pyopenssl_session,
    resumed,
    trusting,
)

world = tls_talk.world
live = tls_talk.live

# ---- client certificates ------------------------------------------------------------------------


@pytest.fixture
def with_clients(world: World, live: Path, tmp_path: Path) -> ServerTLS:
    (tmp_path / "ca.pem").write_bytes(pem(CLIENTS.root))
    return world.start(live, client_ca=str(tmp_path / "ca.pem"))


VERSIONS = [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION]


def names_of(server: ServerTLS, identity: Issued | None, version: int = SSL.TLS1_3_VERSION) -> Any:
    _, echo = pyopenssl_session(server, identity=identity, version=version)
    assert echo.state is not None
    return echo.state.client_names


@pytest.mark.parametrize("version", VERSIONS)
def test_the_names_of_a_client(with_clients: ServerTLS, version: int) -> None:
    alice = CLIENTS.issue(subject="Alice", client=True,
                          addresses=("alice@example.org", "a@example.net"))
    assert names_of(with_clients, alice, version) == ("alice@example.org", "a@example.net")
    assert names_of(with_clients, None, version) == ()


@pytest.mark.parametrize(("subject", "addresses", "names"), [
    ("bob@example.org", (), ("bob@example.org",)),
    ("bob@example.org", ("alice@example.org",), ("alice@example.org",)),
    ("Bob", (), ()), ("bob@example.org\r\nx", (), ()), ("a b@example.org", (), ()),
    ("@", (), ()), ("bob@x@example.org", (), ()),
])
def test_a_common_name_that_is_an_address(
    with_clients: ServerTLS, subject: str, addresses: tuple[str, ...], names: tuple[str, ...]
) -> None:
    identity = CLIENTS.issue(subject=subject, addresses=addresses, client=True)
    assert names_of(with_clients, identity) == names


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("identity", [
    Authority("clients").issue(addresses=["alice@example.org"], client=True),
    CLIENTS.issue(addresses=["alice@example.org"], client=True, since=-9, days=-1),
    CLIENTS.issue(addresses=["alice@example.org"], client=True, since=1),
    CLIENTS.issue(addresses=["alice@example.org"], client=False),
], ids=["another authority of that name", "expired", "not yet valid", "a server's"])
def test_a_client_that_is_not_known_gets_its_session_but_no_name(
    with_clients: ServerTLS, identity: Issued, version: int
) -> None:
    client, echo = pyopenssl_session(with_clients, identity=identity, version=version)
    assert client.get_cipher_name() is not None
    assert echo.state is not None
    assert echo.state.client_names == ()
    assert not echo.lost


def test_a_self_signed_client_has_no_name(with_clients: ServerTLS) -> None:
    key = CLIENTS.issue().key
    mine = Issued(self_issued(key, "alice@example.org"), CLIENTS.between, key)
    assert names_of(with_clients, mine) == ()


def test_a_certificate_is_asked_for_with_the_authorities_names(with_clients: ServerTLS) -> None:
    client, _ = pyopenssl_session(with_clients)
    assert client.get_client_ca_list(as_cryptography=True) == [CLIENTS.root.subject]


def test_without_authorities_no_certificate_is_asked_for(world: World, live: Path) -> None:
    server = world.start(live)
    alice = CLIENTS.issue(addresses=["alice@example.org"], client=True)
    _, echo = pyopenssl_session(server, identity=alice)
    assert echo.state is not None
    assert echo.state.client_names == ()
    handle: Any = echo.transport.getHandle()  # type: ignore[union-attr]
    assert handle.get_peer_certificate() is None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_nothing_is_resumed_where_clients_have_certificates(
    with_clients: ServerTLS, version: ssl.TLSVersion
) -> None:
    _, second = resumed(with_clients, version)
    assert not second.client.session_reused
    assert second.talks()


def test_authorities_are_watched(
    world: World, with_clients: ServerTLS, tmp_path: Path
) -> None:
    others = Authority("others")
    bob = others.issue(addresses=["bob@example.org"], client=True)
    alice = CLIENTS.issue(addresses=["alice@example.org"], client=True)
    (tmp_path / "ca.pem").write_bytes(b"")
    world.pass_time(5)
    assert len(world.said(LogLevel.error)) == 1
    assert names_of(with_clients, alice) == ("alice@example.org",)
    (tmp_path / "ca.pem").write_bytes(pem(others.root))
    world.pass_time(1)
    assert names_of(with_clients, alice) == ()
    assert names_of(with_clients, bob) == ("bob@example.org",)


# ---- revocation ----------------------------------------------------------------------------------


def with_list(world: World, live: Path, tmp_path: Path, content: bytes) -> ServerTLS:
    (tmp_path / "ca.pem").write_bytes(pem(CLIENTS.root))
    (tmp_path / "crl.pem").write_bytes(content)
    return world.start(live, client_ca=str(tmp_path / "ca.pem"),
                       client_crl=str(tmp_path / "crl.pem"))


@pytest.mark.parametrize("version", VERSIONS)
def test_who_is_revoked_has_no_name(
    world: World, live: Path, tmp_path: Path, version: int
) -> None:
    alice, bob = (CLIENTS.issue(addresses=[name], client=True)
                  for name in ("alice@example.org", "bob@example.org"))
    server = with_list(world, live, tmp_path, CLIENTS.revoked(bob))
    assert names_of(server, alice, version) == ("alice@example.org",)
    assert names_of(server, bob, version) == ()
    assert names_of(server, None, version) == ()


def test_a_new_list_is_picked_up(world: World, live: Path, tmp_path: Path) -> None:
    alice = CLIENTS.issue(addresses=["alice@example.org"], client=True)
    server = with_list(world, live, tmp_path, CLIENTS.revoked())
    assert names_of(server, alice) == ("alice@example.org",)
    (tmp_path / "crl.pem").write_bytes(b"half a fi")
    world.pass_time(5)
    assert len(world.said(LogLevel.error)) == 1
    assert names_of(server, alice) == ("alice@example.org",)
    (tmp_path / "crl.pem").write_bytes(CLIENTS.revoked(alice))
    world.pass_time(1)
    assert "new client revocations from" in world.said(LogLevel.info)[-1]
    assert names_of(server, alice) == ()


def test_without_a_list_that_is_valid_nobody_has_a_name(
    world: World, live: Path, tmp_path: Path
) -> None:
    alice = CLIENTS.issue(addresses=["alice@example.org"], client=True)
    server = with_list(world, live, tmp_path, CLIENTS.revoked(days=-0.5))
    (said,) = world.said(LogLevel.error)
    assert "was valid until" in said
    assert names_of(server, alice) == ()
    (tmp_path / "crl.pem").write_bytes(Authority("others").revoked())
    world.pass_time(1)
    assert names_of(server, alice) == ()
    (tmp_path / "crl.pem").write_bytes(Authority("clients").revoked())  # signed by another key
    world.pass_time(1)
    assert names_of(server, alice) == ()


def test_a_list_that_is_none_keeps_the_service_from_starting(
    world: World, live: Path, tmp_path: Path
) -> None:
    with pytest.raises(TLSUnusable, match=r"tls\.client_crl: .*no revocation list in PEM"):
        with_list(world, live, tmp_path, pem(CLIENTS.root))


def test_a_certificate_that_cannot_be_understood_names_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Connection:
        client_verified = True

        def get_peer_certificate(self, as_cryptography: bool) -> Any:
            class Certificate:
                @property
                def extensions(self) -> Any:
                    raise ValueError("garbage")
            return Certificate()

    assert handshake._client_names(Connection()) == ()  # type: ignore[arg-type]
    assert "garbage" in world.said(LogLevel.warn)[0]


# ---- what is told -------------------------------------------------------------------------------


def test_before_the_handshake_there_is_nothing_to_tell(world: World, live: Path) -> None:
    session = Session(world.start(live))
    assert session.echo.early is None
    assert session.echo.state is not None
    assert describe(StringTransport()) is None
    assert describe(object()) is None


def test_the_clause_for_received(world: World, live: Path) -> None:
    context = trusting(version=ssl.TLSVersion.TLSv1_2)
    context.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
    context.set_ecdh_curve("prime256v1")
    server = world.start(live)
    state = Session(server, context).state
    assert state.clause == (
        "tls TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 group secp256r1 (TLSv1.2)")
    assert state.bits == 128
    # RFC 8314 §4.3: names as IANA registered them.
    assert Session(server).state.clause in {
        "tls TLS_AES_256_GCM_SHA384 group x25519 (TLSv1.3)",
        "tls TLS_AES_256_GCM_SHA384 group X25519MLKEM768 (TLSv1.3)"}


def test_the_clause_without_a_group(
    world: World, live: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: object) -> str:
        raise NotImplementedError

    monkeypatch.setattr(SSL.Connection, "get_group_name", missing)
    assert Session(world.start(live)).state.clause == "tls TLS_AES_256_GCM_SHA384 (TLSv1.3)"


def test_tls_exporter_is_the_same_on_both_sides(world: World, live: Path) -> None:
    client, echo = pyopenssl_session(world.start(live))
    assert echo.state is not None
    bindings = echo.state.channel_bindings
    assert set(bindings) == {"tls-exporter", "tls-server-end-point"}
    # RFC 9266 §2.
    assert bindings["tls-exporter"] == client.export_keying_material(
        b"EXPORTER-Channel-Binding", 32, b"")
    assert len(bindings["tls-exporter"]) == 32


def test_tls_unique_is_the_same_on_both_sides(world: World, live: Path) -> None:
    first, second = resumed(world.start(live), ssl.TLSVersion.TLSv1_2)
    assert not first.client.session_reused
    assert second.client.session_reused, "where the server's Finished is the first"
    for session in (first, second):
        bindings = session.state.channel_bindings
        assert set(bindings) == {"tls-unique", "tls-server-end-point"}
        assert bindings["tls-unique"] == session.client.get_channel_binding("tls-unique")
        assert len(bindings["tls-unique"]) == 12


def test_tls_server_end_point(world: World, tmp_path: Path) -> None:
    server = world.start(MX.write(tmp_path / "mx"), OTHER.write(tmp_path / "other"))
    session = Session(server, name="mail.example.net")
    # RFC 5929 §4.1, for a certificate that is signed with SHA-256.
    assert session.state.channel_bindings["tls-server-end-point"] == hashlib.sha256(
        session.client.getpeercert(binary_form=True) or b"").digest()


def test_no_tls_server_end_point_for_ed25519(world: World, tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    (tmp_path / "x.pem").write_bytes(pem(self_issued(key), key))
    session = Session(world.start(tmp_path / "x.pem"), careless())
    assert set(session.state.channel_bindings) == {"tls-exporter"}


@pytest.mark.parametrize(("algorithm", "used"), [
    ("MD5", "sha256"), ("SHA1", "sha256"), ("SHA256", "sha256"), ("SHA384", "sha384"),
    ("SHA512", "sha512")])
def test_the_hash_of_tls_server_end_point(
    world: World, live: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str, used: str
) -> None:
    class Certificate:
        signature_hash_algorithm = getattr(handshake.hashes, algorithm)()
        fingerprint = MX.certificate.fingerprint

    monkeypatch.setattr(ServerConnection, "get_certificate", lambda *_, **__: Certificate())
    binding = Session(world.start(live)).state.channel_bindings["tls-server-end-point"]
    assert binding == hashlib.new(used, MX.certificate.public_bytes(Encoding.DER)).digest()


