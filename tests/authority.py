"""A certificate authority of the tests', and the files that it issues."""

from __future__ import annotations

import datetime
import functools
import ipaddress
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


def common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@functools.cache
def rsa_key(bits: int) -> rsa.RSAPrivateKey:
    """An RSA key, made once: it takes its time."""
    return rsa.generate_private_key(65537, bits)


def pem(*things: Any, password: bytes = b"") -> bytes:
    """Certificates and keys in PEM, in that order."""
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return b"".join(
        thing.public_bytes(Encoding.PEM) if isinstance(thing, x509.Certificate)
        else thing.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
        for thing in things)


class Issued:
    """A certificate, the one between it and the root, and its key.

    :ivar serial: what tells it from all others.
    """

    def __init__(self, certificate: x509.Certificate, between: x509.Certificate, key: Any) -> None:
        self.certificate = certificate
        self.between = between
        self.key = key
        self.serial = certificate.serial_number

    @property
    def chain(self) -> bytes:
        return pem(self.certificate, self.between)

    @property
    def combined(self) -> bytes:
        return pem(self.certificate, self.between, self.key)

    def write(self, directory: Path, chain: str = "fullchain.pem",
              key: str = "privkey.pem") -> Path:
        """Put chain and key into *directory*, as certbot does; return it."""
        directory.mkdir(exist_ok=True)
        (directory / key).write_bytes(pem(self.key))
        (directory / chain).write_bytes(self.chain)
        return directory


class Authority:
    """A root, one authority between, and what it issues."""

    def __init__(self, name: str = "root") -> None:
        self._root_key, self._key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        self._name = common_name(f"{name}'s middle")
        self.root = self._build(common_name(name), common_name(name), self._root_key,
                                self._root_key, authority=True)
        self.between = self._build(self._name, common_name(name), self._key, self._root_key,
                                   authority=True)

    def issue(
        self, *names: str, key: Any = None, days: float = 90, since: float = -1, subject: str = "",
        addresses: Iterable[str] = (), client: bool = False,
    ) -> Issued:
        """A certificate for *names*, valid from *since* days from now until *days* from now."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        alternatives += [x509.RFC822Name(address) for address in addresses]
        certificate = self._build(
            common_name(subject or (names[0] if names else "somebody")), self._name, key,
            self._key, alternatives=alternatives, since=since, days=days,
            usage=ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH)
        return Issued(certificate, self.between, key)

    def revoked(self, *issued: Issued, days: float = 7) -> bytes:
        """The list of what was revoked, in PEM; valid from yesterday until *days* from now."""
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateRevocationListBuilder().issuer_name(self._name)
            .last_update(now - datetime.timedelta(days=1))
            .next_update(now + datetime.timedelta(days=days)))
        for each in issued:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder().serial_number(each.serial)
                .revocation_date(now - datetime.timedelta(days=1)).build())
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    @staticmethod
    def _build(
        subject: x509.Name, issuer: x509.Name, key: Any, issuer_key: Any, *,
        authority: bool = False, alternatives: Iterable[x509.GeneralName] = (),
        since: float = -1, days: float = 90, usage: Any = None,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
            .public_key(key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=since))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(authority, None), critical=True))
        if alternatives := list(alternatives):
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), False)
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), False)
        return builder.sign(issuer_key, hashes.SHA256())


def self_issued(key: Any, name: str = "mx.example.org") -> x509.Certificate:
    """A self-signed certificate for any key, Ed25519's too."""
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder().subject_name(common_name(name)).issuer_name(common_name(name))
        .public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=90))
        .add_extension(x509.SubjectAlternativeName(
            [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()))
