"""TLS-ALPN-01 (RFC 8737): certificates got over port 443 alone, and who gets no answer there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from acme import messages
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet.error import ConnectionAborted
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from mailsvc.acme import order
from mailsvc.acme.alpn import answering
from mailsvc.acme.challenges import ACME_IDENTIFIER, certificate_for, offered
from mailsvc.acme.files import Files
from mailsvc.cli import quickstart
from mailsvc.mail import Address
from mailsvc.prerequisites import refuse_unanswered
from tests.daemons import free_port
from tests.pebble import Pebble
from tests.service import PATIENCE, Service
from tests.test_acme import HERE, NAMES, _ran, authority, eventually, issued, refusal, shown

PROTOCOL = "acme-tls/1"
#: OpenSSL's names of alerts (RFC 8446 §6.2).
HANDSHAKE_FAILURE, PROTOCOL_VERSION = "handshake failure", "protocol version"
NO_APPLICATION_PROTOCOL = "no application protocol"


@pytest.mark.parametrize(("kind", "workers"), [
    ("acme", 1), ("acme", 2), ("console", 2), ("api", 1)])
def test_a_certificate_and_a_renewal(program: Callable[[str], str], tmp_path: Path, kind: str,
                                     workers: int) -> None:
    """By a listener of its own, or by one that people use besides."""
    data = tmp_path / "data"
    with authority(program, tmp_path / "ca", HERE, kind, challenge="tls-alpn-01") as (
            pebble, port, told):
        options = (*told, "--workers", str(workers), "--set", "console.cleartext=no")
        with Service(data, ("alice@example.org:secret",), options) as service:
            pop3s = service.listeners["pop3s"]
            first = eventually(lambda: issued(found := shown(pop3s)) and found)
            assert not list((data / "acme" / "answers").iterdir())
            configuration = tmp_path / "mailsvc.toml"
            configuration.write_text(
                f'[service]\ndata = "{data}"\n[acme]\nchallenge = "tls-alpn-01"\n'
                f'names = {json.dumps(NAMES)}\nagreed = true\ndirectory = "{pebble.url}"\n'
                f'authorities = "{pebble.root}"\n')
            doctor = subprocess.run(
                [sys.executable, "-c", "from mailsvc.cli import main; main()", "--config",
                 str(configuration), "doctor", "--offline"], capture_output=True, text=True,
                timeout=60, check=False).stdout
            assert ("by TLS-ALPN-01 the authority has to reach it on port 443" in doctor) == (
                kind == "acme"), doctor
            text = _ran("--config", str(configuration), "acme", "renew")
            assert all(f"answering for {name} on port 443" in text for name in NAMES)
            second = eventually(lambda: (found := shown(pop3s)) != first and found)
            assert issued(second)
            if kind != "acme":
                assert issued(shown(("127.0.0.1", port))), "people get that one"
        # Pebble finds fault with a nonce now and then, and an order is made anew for that.
        assert _looked(pebble) >= 2 * len(NAMES)
        assert pebble.log.count("Issued certificate") >= 2
        assert "Traceback" not in service.log.read_text()


def _looked(pebble: Pebble) -> int:
    """How many times the authority has looked by TLS-ALPN-01."""
    return sum("authz" in line and "set VALID" in line and "by completed challenge" in line
               for line in pebble.log.splitlines())


def test_the_wrong_challenge(program: Callable[[str], str], tmp_path: Path) -> None:
    """The authority looks by TLS, and nobody answers in it."""
    with (authority(program, tmp_path / "ca", HERE, challenge="tls-alpn-01") as (_, port, options),
          socket.create_server(("127.0.0.1", 0)) as other,
          Service(tmp_path / "data", (), tuple(
              each.replace(f"tcp:{port}:", "tcp:0:") for each in options)) as service):
        del other
        assert eventually(lambda: "port 443 to listeners.acme or listeners.console"
                          in service.log.read_text())
        assert not list((tmp_path / "data" / "acme" / "answers").iterdir())


# ---- what the listeners answer -------------------------------------------------------------------


@contextmanager
def knock(address: tuple[str, int], name: str | None, protocols: Sequence[str] = (PROTOCOL,),
          **context: Any) -> Iterator[ssl.SSLSocket]:
    """A connection, as the authority makes it."""
    tls = ssl._create_unverified_context()
    if protocols:
        tls.set_alpn_protocols(list(protocols))
    for key, value in context.items():
        setattr(tls, key, value)
    with socket.create_connection(address, PATIENCE) as connection, tls.wrap_socket(
            connection, server_hostname=name) as secured:
        yield secured


def alert(*arguments: Any, **context: Any) -> str | None:
    """The alert that such a connection is refused by."""
    try:
        with knock(*arguments, **context):
            return None
    except ssl.SSLError as error:
        found = re.search(r"alert ([a-z ]*[a-z])", str(error))
        assert found, error
        return found[1]


def shown_to(*arguments: Any, **context: Any) -> x509.Certificate:
    """The certificate that the authority sees, and after which there is nothing more."""
    with knock(*arguments, **context) as tls:
        assert tls.selected_alpn_protocol() == PROTOCOL
        certificate = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
        assert tls.recv(1) == b""
    return certificate


@pytest.fixture(params=["acme", "console", "pop3s"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Any, Files]]:
    """A kind of listener, where it is, and the files that it answers by; nobody asks anything."""
    chosen = {"names": NAMES, "agreed": True, "challenge": "tls-alpn-01",
              "directory": "https://127.0.0.1:9/"}
    data = tmp_path / "data"
    kinds = {"acme", request.param} - {"pop3s"}
    with Service(data, (), (
            "--pop3s", "0", "--set", "console.cleartext=no",
            *(word for each in kinds
              for word in ("--set", f'listeners.{each}=["tcp:0:interface=127.0.0.1"]')),
            *(word for key, value in chosen.items()
              for word in ("--set", f"acme.{key}={json.dumps(value)}")))) as service:
        files = Files(data)
        # What it has asked in vain at its start is over: that would remove what the test puts.
        eventually(lambda: "there is no new certificate" in service.log.read_text())
        yield request.param, service.listeners[request.param], files
    assert "Traceback" not in service.log.read_text()


def test_who_is_answered(place: tuple[str, Any, Files]) -> None:
    kind, address, files = place
    name, digest = NAMES[0], hashlib.sha256(b"token.thumbprint").digest()
    assert alert(address, name) == NO_APPLICATION_PROTOCOL, "nobody asks yet"
    files.keep_answer(name, certificate_for(name, digest))

    certificate = shown_to(address, name)
    extension = certificate.extensions.get_extension_for_oid(ACME_IDENTIFIER)
    assert extension.critical
    assert isinstance(extension.value, x509.UnrecognizedExtension)
    assert extension.value.value == b"\x04\x20" + digest
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.DNSName(name)]
    assert shown_to(address, name.upper()) == certificate

    for other in (NAMES[1], "example.com", "a/b.example", "localhost", None):
        assert alert(address, other) == NO_APPLICATION_PROTOCOL, other
    assert alert(address, name, maximum_version=ssl.TLSVersion.TLSv1_2) == (
        PROTOCOL_VERSION if kind == "acme" else NO_APPLICATION_PROTOCOL)
    for protocols in [], ["h2", "http/1.1"], [PROTOCOL, "h2"]:
        # Whoever is not the authority has the listener as it always is.
        assert alert(address, name, protocols) == (
            HANDSHAKE_FAILURE if kind == "acme" else None), protocols

    path = files.answer(name)
    assert path is not None
    os.utime(path, (time.time() - 3600,) * 2)
    assert alert(address, name) == NO_APPLICATION_PROTOCOL, "nobody has asked for an hour"
    os.utime(path)
    assert shown_to(address, name) == certificate
    files.drop_answers()
    assert alert(address, name) == NO_APPLICATION_PROTOCOL


@pytest.mark.parametrize("place", ["pop3s"], indirect=True)
def test_a_client_that_has_to_begin_anew(program: Callable[[str], str],
                                         place: tuple[str, Any, Files]) -> None:
    """It guesses the group wrong, and gets a HelloRetryRequest, which is a ServerHello too."""
    _, (host, port), files = place
    files.keep_answer(NAMES[0], certificate_for(NAMES[0], bytes(32)))
    said = subprocess.run(
        [program("openssl"), "s_client", "-connect", f"{host}:{port}", "-servername", NAMES[0],
         "-alpn", PROTOCOL, "-groups", "secp521r1:prime256v1", "-msg"], input="",
        capture_output=True, text=True, timeout=20, check=False).stdout
    assert said.count(", ServerHello") == 2
    assert f"ALPN protocol: {PROTOCOL}" in said
    assert shown_to((host, port), NAMES[0]).public_bytes(Encoding.PEM).decode() in said


def test_few_and_not_for_long(tmp_path: Path) -> None:
    clock = Clock()
    factory = answering(Files(tmp_path), clock)
    there = []
    while (protocol := factory.buildProtocol(None)) is not None and len(there) < 1000:
        protocol.makeConnection(StringTransport())
        there.append(protocol)
    assert len(there) == 50
    clock.advance(29)
    assert not any(each.transport.disconnected for each in there)
    clock.advance(1)
    assert all(each.transport.disconnected for each in there)
    for each in there:
        each.connectionLost(Failure(ConnectionAborted()))
    assert factory.buildProtocol(None) is not None
    assert not clock.getDelayedCalls()


@pytest.mark.parametrize(("chosen", "listeners", "port"), [
    ([], ["tcp:80"], 80),
    (["acme.challenge=tls-alpn-01"], ["tcp:443"], 443),
    (["acme.challenge=tls-alpn-01", 'listeners.acme=["tcp:8443"]'], ["tcp:8443"], 443),
    (["acme.challenge=tls-alpn-01", "listeners.acme=[]", 'listeners.console=["tcp:443"]'], [], 0)])
def test_quickstart(tmp_path: Path, chosen: list[str], listeners: list[str], port: int) -> None:
    """What it writes, and the port that its units open for the authority alone."""
    plan = quickstart.Plan(Address("alice", "example.org"), tmp_path / "mailsvc.toml", tmp_path,
                           "", None, acme=True)
    settings, given = quickstart._settings(plan, NAMES[0], chosen)
    assert settings.listeners.acme == given["listeners.acme"] == listeners
    assert quickstart._port_for_authority(settings) == port
    refuse_unanswered(settings)


@pytest.mark.parametrize("name", ["", ".", "..", "a", "../x.example", "a/b.example", ".example.org",
                                  "a..example", "a.example/", "A.example", "a.example\n",
                                  "a\0.example", "a." * 126 + "example"])
def test_names_that_are_no_files(tmp_path: Path, name: str) -> None:
    files = Files(tmp_path)
    files.keep_answer("a.example", b"")
    assert files.answer("a.example") is not None
    assert files.answer(name) is None
    with pytest.raises(ValueError, match="is no host name"):
        files.keep_answer(name, b"")


def test_what_a_killed_order_left_is_swept(tmp_path: Path) -> None:
    """Whoever asks next does so first, whatever comes of that."""
    files = Files(tmp_path)
    files.keep_answer("a.example", b"")
    left = tmp_path / "acme" / "answers" / ".a.example.pem-half"
    left.write_bytes(b"")
    with files.locked():
        assert "somebody else asks" in refusal(tmp_path)
        assert left.exists(), "they are somebody's"
    url = f"https://localhost:{free_port()}/dir"
    assert "cannot be reached" in refusal(tmp_path, directory=url, challenge="tls-alpn-01")
    assert not list(left.parent.iterdir())


def test_an_authority_that_does_not_offer_it(tmp_path: Path) -> None:
    name = messages.Identifier(typ=messages.IDENTIFIER_FQDN, value=NAMES[0])
    authorization = messages.AuthorizationResource(uri="", body=messages.Authorization.from_json({
        "identifier": name.to_json(), "status": "pending", "challenges": [
            {"type": kind, "url": "https://ca.example/1", "status": "pending", "token": "A" * 43}
            for kind in ("dns-01", "http-01", "of-next-year-01")]}))
    found = offered(authorization, "http-01")
    assert found is not None and found.chall.typ == "http-01"
    with pytest.raises(order.Refused, match=r'does not offer TLS-ALPN-01 .* to "http-01"'):
        order._answer(cast(Any, None), cast(Any, None), authorization, "tls-alpn-01",
                      Files(tmp_path), print)


def test_openssl_takes_it_for_what_it_is(program: Callable[[str], str], tmp_path: Path) -> None:
    path = tmp_path / "answer.pem"
    path.write_bytes(certificate_for(NAMES[0], bytes(range(32))))
    text = subprocess.run([program("openssl"), "x509", "-in", str(path), "-noout", "-text"],
                          capture_output=True, text=True, timeout=20, check=True).stdout
    assert "1.3.6.1.5.5.7.1.31: critical" in text or "acmeIdentifier: critical" in text
    assert f"DNS:{NAMES[0]}\n" in text
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    certificate.verify_directly_issued_by(certificate)
    assert isinstance(certificate.signature_hash_algorithm, hashes.SHA256)
