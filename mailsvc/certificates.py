"""Certificates and their keys in files: read, checked, watched, and made where there is none.

**Places.**  A certificate is named by a place, in one of three forms:

- a directory that holds ``fullchain.pem`` and ``privkey.pem``, as certbot lays them out, or
  ``tls.crt`` and ``tls.key``, as Kubernetes mounts them;
- two files, as ``CHAIN.pem:KEY.pem``;
- one file with the certificate, its chain and its key.

All are PEM.  The server's own certificate stands first, its issuers follow; the key is not
encrypted.  RSA, elliptic curve, Ed25519 and Ed448 keys will do.

**Watching.**  :meth:`Watched.look` costs one stat(2) for each file as long as nothing changes.  It
sees a file that is overwritten in place, renamed over, or led to by a link anywhere in its path
that was moved elsewhere.  A file that changed less than two seconds before it was read is read
again at each look until it is older: so no change hides behind a file system that tells time in
whole seconds.

**A pair of our own**, for a service that is given none: :func:`self_signed` makes a P-256 key and a
certificate of ten years for the host's name, ``localhost``, 127.0.0.1 and ::1, in one file of mode
0600 that appears whole or not at all.  It is made anew when the host gets another name, and a month
before it ends.

What is wrong with a place is a :class:`CertificateProblem`, whose text names the file, the reason
and the remedy.  Whether somebody out there trusts a certificate is not looked at.
"""

from __future__ import annotations

import datetime
import errno
import ipaddress
import os
import pwd
import re
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mailsvc.ownership import make_folder, write_private

#: The most octets that are read of one file.
MOST_OCTETS = 1 << 20
#: How old, in seconds, a change must be for the next one to show in the file's times for certain.
SETTLED = 2.0
#: What a self-signed certificate is valid for, and how long before its end it is made anew.
OWN_VALIDITY, OWN_RENEWAL = datetime.timedelta(days=3652), datetime.timedelta(days=30)

_DIRECTORY_FORMS = (("fullchain.pem", "privkey.pem"), ("tls.crt", "tls.key"))
_KEY_TYPES: dict[type, str] = {
    rsa.RSAPrivateKey: "RSA", ec.EllipticCurvePrivateKey: "ECDSA",
    ed25519.Ed25519PrivateKey: "Ed25519", ed448.Ed448PrivateKey: "Ed448"}
_KEY_BLOCK = re.compile(
    rb"-----BEGIN ((?:[A-Z]+ )*PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL)

_CRL_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)

T = TypeVar("T")


class CertificateProblem(Exception):
    """A certificate that cannot be used; the text names the file, the reason and the remedy.

    :ivar hidden: whether another user might be able to read the file.
    """

    def __init__(self, text: str, *, hidden: bool = False) -> None:
        super().__init__(text)
        self.hidden = hidden


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate with its chain and its key.

    :ivar path: the file that the certificate was read from.
    :ivar chain: the certificate, then its issuers.
    :ivar names: the domain names that it is for, in lower case; ``*.example.org`` is one.
    """

    path: str = field(compare=False)
    chain: tuple[x509.Certificate, ...]
    # The same certificate has the same key.
    key: Any = field(compare=False, repr=False)
    names: tuple[str, ...] = field(compare=False)

    def __str__(self) -> str:
        names = ", ".join(self.names) or self.chain[0].subject.rfc4514_string()
        return f"{self.path} ({names}; until {self.not_after:%Y-%m-%d})"

    @property
    def not_before(self) -> datetime.datetime:
        return self.chain[0].not_valid_before_utc

    @property
    def not_after(self) -> datetime.datetime:
        return self.chain[0].not_valid_after_utc

    @property
    def kind(self) -> str:
        """The kind of its key, of which a client can do one and not another."""
        return next(name for kind, name in _KEY_TYPES.items() if isinstance(self.key, kind))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the certificate, as programs show it that ask whether to trust it."""
        return self.chain[0].fingerprint(hashes.SHA256()).hex(":").upper()

    def is_valid(self, now: datetime.datetime) -> bool:
        """Whether *now* lies within its time."""
        return self.not_before <= now <= self.not_after


# ---- files that are watched ---------------------------------------------------------------------


class Watched(Generic[T]):
    """What some files mean together, and whether it may mean something else by now.

    :param place: names the files, for people.
    :param find: the paths of the files, now.
    :param parse: from the paths and what is in the files to what they mean.

    Both may raise :class:`CertificateProblem`.
    """

    def __init__(
        self, place: str, find: Callable[[str], tuple[str, ...]],
        parse: Callable[[tuple[str, ...], tuple[bytes, ...]], T],
    ) -> None:
        self.place = place
        self._find = find
        self._parse = parse
        self._paths: tuple[str, ...] = ()
        self._marks: object = None
        self._settled = False
        self._contents: tuple[bytes, ...] | str | None = None
        self._hidden = False

    def look(self) -> bool:
        """Read the files if they may have changed; return whether they hold anything else now."""
        problem = ""
        try:
            paths = self._find(self.place)
        except CertificateProblem as error:
            paths, problem = (), str(error)
        # Marked before they are read: what changes meanwhile is seen at the next look.
        marks = [problem, *(_mark(path) for path in paths)]
        if marks == self._marks and self._settled:
            return False
        self._marks, self._paths = marks, paths
        self._settled = all(_is_settled(path) for path in paths)
        before, self._hidden = self._contents, False
        try:
            self._contents = problem or tuple(_read(path) for path in paths)
        except CertificateProblem as error:
            self._contents, self._hidden = str(error), error.hidden
        return self._contents != before

    def load(self) -> T:
        """What the files meant at the last look.

        :raises CertificateProblem: when they cannot be read, or mean nothing.
        """
        if self._contents is None:
            self.look()
        if isinstance(self._contents, str):
            raise CertificateProblem(self._contents, hidden=self._hidden)
        assert self._contents is not None
        return self._parse(self._paths, self._contents)


def certificate_at(place: str) -> Watched[Certificate]:
    """The certificate at *place*, which has one of the three forms."""
    return Watched(place, files_at, _parse_certificate)


def certificate_until(place: str, own: str) -> Watched[Certificate]:
    """The certificate in the file *place*, or in *own* as long as there is no such file."""
    return Watched(place, lambda place: (place if os.path.exists(place) else own,),
                   _parse_certificate)


def authorities_in(path: str) -> Watched[tuple[x509.Certificate, ...]]:
    """The certificates of authorities in one PEM file."""
    return Watched(path, lambda place: (place,),
                   lambda paths, contents: _parse_chain(paths[0], contents[0]))


def revocations_in(path: str) -> Watched[tuple[x509.CertificateRevocationList, ...]]:
    """The revocation lists in one PEM file (RFC 5280 §5)."""
    return Watched(path, lambda place: (place,),
                   lambda paths, contents: _parse_revocations(paths[0], contents[0]))


def _mark(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(path)
    except OSError as error:
        return (error.errno or 0,)
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _is_settled(path: str) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return True
    return max(status.st_mtime, status.st_ctime) + SETTLED < time.time()


def files_at(place: str) -> tuple[str, ...]:
    """The files that *place* means; raises :class:`CertificateProblem` where it means none."""
    if os.path.isdir(place):
        for form in _DIRECTORY_FORMS:
            paths = tuple(os.path.join(place, name) for name in form)
            try:
                for path in paths:
                    os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError:
                pass  # reading it tells better what is wrong
            return paths
        raise CertificateProblem(
            f"{place}: this directory holds neither fullchain.pem and privkey.pem nor tls.crt and "
            "tls.key, or they are links that lead nowhere; name the files, as CHAIN.pem:KEY.pem")
    chain, colon, key = place.partition(":")
    return (chain, key) if colon and not os.path.exists(place) else (place,)


def _read(path: str) -> bytes:
    try:
        # Opening a pipe would wait for its other end.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise CertificateProblem(f"{path}: not a regular file; name a PEM file")
        with open(path, "rb") as file:
            data = file.read(MOST_OCTETS + 1)
    except OSError as error:
        raise CertificateProblem(f"{path}: {_explain(error)}",
                                 hidden=isinstance(error, PermissionError)) from error
    if len(data) > MOST_OCTETS:
        raise CertificateProblem(f"{path}: longer than {MOST_OCTETS} octets; name a PEM file")
    return data


def _explain(error: OSError) -> str:
    if error.errno == errno.EACCES:
        user = os.geteuid()
        try:
            name = f"user {pwd.getpwuid(user).pw_name}"
        except KeyError:
            name = f"user id {user}"
        return (f"permission denied for {name}, which mailsvc runs as; let it read the file and "
                "enter the directories above it (`namei -l` with that path shows which one refuses)"
                ", or have your ACME client copy the files to where it can")
    if error.errno == errno.ENOENT:
        return "no such file; put it there, or name another place"
    return f"{os.strerror(error.errno or 0)}; name a PEM file that can be read"


# ---- what is in them ----------------------------------------------------------------------------


def _parse_certificate(paths: tuple[str, ...], contents: tuple[bytes, ...]) -> Certificate:
    path, key_path = paths[0], paths[-1]
    chain = _parse_chain(path, contents[0])
    key = _parse_key(key_path, contents[-1])
    try:
        public = key.public_key()
        owners = [certificate for certificate in chain if certificate.public_key() == public]
        names = _names(chain[0])
    except Exception as error:  # whatever the library finds in a certificate
        raise CertificateProblem(f"{path}: not a certificate for TLS ({error}); get it issued "
                                 "again") from error
    if not owners:
        raise CertificateProblem(
            f"{key_path}: this key does not belong to the certificate in {path} "
            f"({chain[0].subject.rfc4514_string()}); put the two of one issue there")
    if owners[0] != chain[0]:
        raise CertificateProblem(
            f"{path}: the key belongs to another certificate in this file than the first; put the "
            f"server's own certificate ({owners[0].subject.rfc4514_string()}) before its issuers")
    return Certificate(path, chain, key, names)


def _parse_chain(path: str, data: bytes) -> tuple[x509.Certificate, ...]:
    if b"-----BEGIN CERTIFICATE-----" not in data:
        remedy = (f"it looks like DER: openssl x509 -inform der -in {path} -out NEW.pem"
                  if data.startswith(b"\x30") else
                  "it needs a block that begins with -----BEGIN CERTIFICATE-----")
        raise CertificateProblem(f"{path}: no certificate in PEM; {remedy}")
    try:
        return tuple(x509.load_pem_x509_certificates(data))
    except Exception as error:  # ValueError, and others for what is valid only in part
        raise CertificateProblem(f"{path}: a certificate in it cannot be read ({error}); copy the "
                                 "whole file again") from error


def _parse_revocations(path: str, data: bytes) -> tuple[x509.CertificateRevocationList, ...]:
    blocks = _CRL_BLOCK.findall(data)
    if not blocks:
        remedy = (f"it looks like DER: openssl crl -inform der -in {path} -out NEW.pem"
                  if data.startswith(b"\x30") else
                  "it needs a block that begins with -----BEGIN X509 CRL-----")
        raise CertificateProblem(f"{path}: no revocation list in PEM; {remedy}")
    try:
        return tuple(x509.load_pem_x509_crl(block) for block in blocks)
    except Exception as error:  # ValueError, and others for what is valid only in part
        raise CertificateProblem(f"{path}: a revocation list in it cannot be read ({error}); fetch "
                                 "it again") from error


def _parse_key(path: str, data: bytes) -> Any:
    block = _KEY_BLOCK.search(data)
    if block is None:
        raise CertificateProblem(
            f"{path}: no private key in PEM; it needs a whole block from -----BEGIN PRIVATE "
            "KEY----- to its end")
    try:
        # The validation is of the primes, takes 0.2 seconds for 4096 bits, and would stop all
        # sessions; the key is compared with the certificate.
        key = load_pem_private_key(block[0], None, unsafe_skip_rsa_key_validation=True)
    except TypeError as error:
        raise CertificateProblem(
            f"{path}: the private key is encrypted, and nobody is there to type its password; "
            f"take it off: openssl pkey -in {path} -out NEW.pem") from error
    except Exception as error:  # ValueError, UnsupportedAlgorithm
        raise CertificateProblem(f"{path}: the private key cannot be read ({error}); copy the "
                                 "whole file again") from error
    if not isinstance(key, tuple(_KEY_TYPES)):
        raise CertificateProblem(f"{path}: a kind of key that TLS does not use; make an elliptic "
                                 "curve (P-256) or RSA (2048 bits) key and get a certificate for "
                                 "it")
    return key


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    return tuple(name.lower() for name in names.value.get_values_for_type(x509.DNSName))


# ---- one of our own -----------------------------------------------------------------------------


def self_signed(directory: str, hostname: str) -> str:
    """The file in *directory* with a self-signed certificate for *hostname*, made if need be.

    The directory is made too, in one that must be there; if root makes them, they belong to that
    one's owner.

    :raises CertificateProblem: when it can neither be read nor made.
    """
    path = os.path.join(directory, "self-signed.pem")
    if os.path.lexists(path):
        try:
            there = certificate_at(path).load()
        except CertificateProblem as problem:
            raise CertificateProblem(
                f"{problem}; or delete it, and mailsvc makes a new one") from problem
        ends = there.not_after - datetime.datetime.now(datetime.UTC)
        if ends > OWN_RENEWAL and _alternative(hostname) in _alternatives(there.chain[0]):
            return path
    try:
        make_folder(Path(directory))
        write_private(Path(path), _own_pem(hostname))
    except OSError as error:
        raise CertificateProblem(
            f"{path}: a self-signed certificate cannot be made there ({error.strerror}); "
            "let mailsvc write to that directory, or name a certificate in tls.certificates"
        ) from error
    return path


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name.lower())


def _alternatives(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        return list(certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def _own_pem(hostname: str) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    # ub-common-name of RFC 5280 is 64 characters; nobody compares it any more (RFC 9525 §2).
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hostname[:64])])
    alternatives = dict.fromkeys(
        _alternative(name) for name in (hostname, "localhost", "127.0.0.1", "::1"))
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name)
        .public_key(key.public_key()).serial_number(x509.random_serial_number())
        # Clients whose clocks are slow may be among the first.
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + OWN_VALIDITY)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256()))
    return (certificate.public_bytes(Encoding.PEM)
            + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
