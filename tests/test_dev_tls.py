"""``mailsvc dev``: --tls-cert and --tls-key."""

from __future__ import annotations

import datetime
import poplib
import smtplib
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.service import Service
from tests.test_dev import MESSAGE, refused


def certificate(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey,
                issuer_key: ec.EllipticCurvePrivateKey, *, ca: bool) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
             for name in (subject, issuer)]
    return (x509.CertificateBuilder().subject_name(names[0]).issuer_name(names[1])
            .public_key(key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(subject)]), critical=False)
            .sign(issuer_key, hashes.SHA256()))


def pem(thing: x509.Certificate | ec.EllipticCurvePrivateKey, password: bytes = b"") -> bytes:
    if isinstance(thing, x509.Certificate):
        return thing.public_bytes(serialization.Encoding.PEM)
    return thing.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password) if password
        else serialization.NoEncryption())


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files: a root, a certificate of mx.example.org with the one between them, and keys."""
    folder = tmp_path_factory.mktemp("tls")
    root, middle, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    between = certificate("middle", "root", middle, root, ca=True)
    contents = {
        "root": pem(certificate("root", "root", root, root, ca=True)),
        "chain": pem(certificate("mx.example.org", "middle", own, middle, ca=False)) + pem(between),
        "key": pem(own),
        "other": pem(middle),
        "locked": pem(own, b"passphrase"),
        "empty": b"",
    }
    files = {name: folder / f"{name}.pem" for name in contents}
    for name, content in contents.items():
        files[name].write_bytes(content)
    return files


def test_starttls_and_stls(tmp_path: Path, identity: dict[str, Path]) -> None:
    options = ("--tls-cert", str(identity["chain"]), "--tls-key", str(identity["key"]))
    trusting = ssl.create_default_context(cafile=identity["root"])
    with Service(tmp_path / "data", ("alice@example.org:secret",), options) as service:
        with smtplib.SMTP(*service.smtp) as client:
            # The name of the certificate, which the client holds against what it asked for.
            client._host = "mx.example.org"  # type: ignore[attr-defined]
            assert client.starttls(context=trusting)[0] == 220
            assert client.sock.version() in {"TLSv1.2", "TLSv1.3"}  # type: ignore[union-attr]
            client.sendmail("bob@example.net", ["alice@example.org"], MESSAGE)
        session = poplib.POP3(*service.pop3)
        session.host = "mx.example.org"
        session.stls(context=trusting)
        session.user("alice@example.org")
        session.pass_("secret")
        assert session.retr(1)[1][-1] == b"Hello."
        session.quit()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_nothing_older_than_tls_1_2(tmp_path: Path, identity: dict[str, Path]) -> None:
    options = ("--tls-cert", str(identity["chain"]), "--tls-key", str(identity["key"]))
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with Service(tmp_path / "data", ("alice@example.org:secret",), options) as service:
        client = smtplib.SMTP(*service.smtp)
        with pytest.raises(ssl.SSLError):
            client.starttls(context=old)
        client.close()


def test_without_a_certificate_there_is_a_self_signed_one(tmp_path: Path) -> None:
    with Service(tmp_path / "data", options=("--submission", "0")) as service:
        with smtplib.SMTP(*service.smtp) as client:
            client.ehlo()
            # Programs that use what is offered would refuse it.
            assert not client.has_extn("starttls")
        assert "STLS" not in poplib.POP3(*service.pop3).capa()
        with smtplib.SMTP(*service.listeners["submission"]) as client:
            client.ehlo()
            trusting = ssl.create_default_context(cafile=tmp_path / "data/tls/self-signed.pem")
            client._host = "mx.example.org"  # type: ignore[attr-defined]
            assert client.starttls(context=trusting)[0] == 220
        assert "no certificate is set: clients get a self-signed one" in service.log.read_text()


@pytest.mark.parametrize(("files", "said"), [
    (("chain", None), "give both or neither"),
    ((None, "key"), "give both or neither"),
    (("chain", "other"), "chain.pem: the key belongs to another certificate"),
    (("chain", "locked"), "locked.pem: the private key is encrypted"),
    (("chain", "chain"), "chain.pem: no private key in PEM"),
    (("key", "key"), "key.pem: no certificate in PEM"),
    (("empty", "key"), "empty.pem: no certificate in PEM"),
    (("none", "key"), "/none.pem: no such file; put it there, or name another place"),
])
def test_wrong_certificates(identity: dict[str, Path], files: tuple[str | None, str | None],
                            said: str) -> None:
    arguments = [part for flag, name in zip(("--tls-cert", "--tls-key"), files, strict=True)
                 if name for part in (flag, identity.get(name, Path("/none.pem")))]
    status, text = refused(*arguments)
    assert status == 2
    assert said in text
