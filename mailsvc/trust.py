"""Whom a client trusts: TLS on connections that we open.

A :class:`Trust` says what a server's certificate has to prove.  The handshake itself lets every
certificate pass and notes what is wrong with it; :meth:`Trust.examine` judges when it is over, and
before anything is said inside.  So each failure has a reason that can be reported (RFC 8460 §4.3),
and the same handshake serves PKIX (RFC 9525), DANE (RFC 7672) and no proof at all (RFC 7435).
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import idna
from cryptography import x509
from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL
from service_identity import CertificateError, VerificationError
from service_identity.pyopenssl import verify_hostname, verify_ip_address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from zope.interface import implementer

from mailsvc.handshake import TLS_1_2_CIPHERS, channel_bindings

_VERSIONS = {"TLSv1": SSL.TLS1_VERSION, "TLSv1.2": SSL.TLS1_2_VERSION,
             "TLSv1.3": SSL.TLS1_3_VERSION}
#: X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED.
_DATES = (9, 10)


class Untrusted(Exception):
    """The server has not proven what it has to.

    :ivar reason: a result type of RFC 8460 §4.3.
    """

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.text = text
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Secured:
    """TLS as it was agreed.

    :ivar version: such as "TLSv1.3".
    :ivar cipher: by its IANA name.
    :ivar verified: whether the server has proven who it is.
    :ivar flaw: what its certificate lacks, where that did not matter; *reason* as in Untrusted.
    :ivar subject: of its certificate, which ends at *not_after*.
    :ivar channel_bindings: by type, for SASL.
    """

    version: str
    cipher: str
    bits: int
    verified: bool
    flaw: str = ""
    reason: str = ""
    subject: str = ""
    not_after: datetime.datetime | None = field(default=None, compare=False)
    channel_bindings: Mapping[str, bytes] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Trust:
    """What a server's certificate has to prove.

    :ivar names: the server must be one of these (RFC 9525: subjectAltName only); DNS names or IP
        addresses.  Empty: the name that was dialled.
    :ivar authorities: a PEM file of those who may vouch for it; empty for the system's.
    :ivar verify: False for none of this: encryption alone (opportunistic, RFC 7435).
    :ivar check: in the place of names and authorities, such as DANE (RFC 7672): gets the chain that
        the server showed, its own certificate first, and answers None or what is wrong with it.
    :ivar check_reason: the result type of RFC 8460 §4.3 when *check* complains.
    :ivar certificate: ours, for AUTH EXTERNAL: a PEM file with chain and key.
    :ivar minimum: the least version of TLS: "TLSv1", "TLSv1.2" or "TLSv1.3".
    :ivar server_name: what to ask for in SNI; empty for the name that was dialled.
    """

    names: tuple[str, ...] = ()
    authorities: str = ""
    verify: bool = True
    check: Callable[[Sequence[x509.Certificate]], str | None] | None = None
    check_reason: str = "tlsa-invalid"
    certificate: str = ""
    minimum: str = "TLSv1.2"
    server_name: str = ""

    def connections(self, host: str) -> _Connections:
        """What ``transport.startTLS`` takes, for a connection to *host*.

        :raises Untrusted: a file cannot be used.
        """
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_min_proto_version(_VERSIONS[self.minimum])
        context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
        context.set_verify(SSL.VERIFY_PEER, _note)
        self._load(context)
        return _Connections(context, self.server_name or host)

    def _load(self, context: SSL.Context) -> None:
        place, expected = self.authorities, "certificates"
        try:
            if self.authorities:
                context.load_verify_locations(self.authorities)
            else:
                context.set_default_verify_paths()
            if self.certificate:
                place, expected = self.certificate, "a chain and its key"
                context.use_certificate_chain_file(self.certificate)
                context.use_privatekey_file(self.certificate)
        except (SSL.Error, OSError) as error:
            raise Untrusted(f"{place}: expected a PEM file with {expected}, which it is not or "
                            f"cannot be read ({_text(error)})", "validation-failure") from None

    def examine(self, transport: Any, host: str) -> Secured:
        """Judge the finished handshake of a connection to *host*.

        :raises Untrusted: the server must not be told anything.
        """
        connection = transport.getHandle()
        assert isinstance(connection, ClientConnection)
        failure: Untrusted | None = None
        try:
            self._examine(connection, host)
        except Untrusted as found:
            if self.verify:
                raise
            failure = found
        version = connection.get_protocol_version_name()
        cipher = connection.get_cipher_name() or ""
        certificate = connection.get_peer_certificate(as_cryptography=True)
        return Secured(
            version=version, cipher=TLS_1_2_CIPHERS.get(cipher, cipher),
            bits=connection.get_cipher_bits() or 0, verified=failure is None,
            flaw=failure.text if failure is not None else "",
            reason=failure.reason if failure is not None else "",
            subject=_subject(certificate), not_after=_not_after(certificate),
            # In a full handshake the client's Finished comes first (RFC 5929 §3.1).
            channel_bindings=channel_bindings(connection, version, certificate,
                                              connection.get_finished() or b""))

    def _examine(self, connection: ClientConnection, host: str) -> None:
        if self.check is not None:
            problem = self.check(connection.get_peer_cert_chain(as_cryptography=True) or [])
            if problem is not None:
                raise Untrusted(problem, self.check_reason)
            return
        if connection.flaws:
            number, depth = connection.flaws[0]
            where = "the certificate" if depth == 0 else f"the chain's certificate {depth}"
            raise Untrusted(f"{where} cannot be trusted: {_verification_text(number)}",
                            "certificate-expired" if number in _DATES
                            else "certificate-not-trusted")
        names = self.names or (host,)
        for name in names:
            try:
                _verify_name(connection, name)
            except (VerificationError, CertificateError, ValueError):
                continue
            return
        raise Untrusted(f"the certificate is not for {' or '.join(names)} but for "
                        f"{_names_in(connection) or 'nobody'}", "certificate-host-mismatch")


#: Encryption without proof of who is there.
UNVERIFIED = Trust(verify=False, minimum="TLSv1.2")


class ClientConnection(SSL.Connection):
    """One session's TLS.

    :ivar flaws: of the certificate's chain: OpenSSL's number and the depth.
    """

    def __init__(self, context: SSL.Context) -> None:
        super().__init__(context, None)
        self.flaws: list[tuple[int, int]] = []


def _note(connection: Any, _certificate: Any, number: int, depth: int, verified: int) -> bool:
    """A verify callback: go on, and judge later."""
    if not verified:
        connection.flaws.append((number, depth))
    return True


@implementer(IOpenSSLClientConnectionCreator)
class _Connections:
    """Makes the TLS of one connection to *server_name*."""

    def __init__(self, context: SSL.Context, server_name: str) -> None:
        self._context = context
        self._server_name = server_name

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        connection = ClientConnection(self._context)
        # RFC 6066 §3: names only.
        if "." in self._server_name and not _is_address(self._server_name):
            connection.set_tlsext_host_name(_ascii(self._server_name).encode())
        return connection


def _verify_name(connection: SSL.Connection, name: str) -> None:
    if _is_address(name):
        verify_ip_address(connection, name.strip("[]").removeprefix("IPv6:"))
    else:
        verify_hostname(connection, _ascii(name))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]").removeprefix("IPv6:"))
    except ValueError:
        return False
    return True


def _ascii(name: str) -> str:
    name = name.rstrip(".").lower()
    try:
        return name if name.isascii() else idna.encode(name, uts46=True).decode()
    except idna.IDNAError as error:
        raise ValueError(str(error)) from None


def _names_in(connection: SSL.Connection) -> str:
    certificate = connection.get_peer_certificate(as_cryptography=True)
    try:
        assert certificate is not None
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = [*names.get_values_for_type(x509.DNSName),
                 *map(str, names.get_values_for_type(x509.IPAddress))]
    except (AssertionError, ValueError, x509.ExtensionNotFound):
        return ""
    return ", ".join(found[:5]) + (" and others" if len(found) > 5 else "")


def _subject(certificate: x509.Certificate | None) -> str:
    try:
        return certificate.subject.rfc4514_string() if certificate is not None else ""
    except ValueError:
        return ""


def _not_after(certificate: x509.Certificate | None) -> datetime.datetime | None:
    try:
        return certificate.not_valid_after_utc if certificate is not None else None
    except ValueError:
        return None


def _verification_text(number: int) -> str:
    binding = Binding()
    text: bytes = binding.ffi.string(binding.lib.X509_verify_cert_error_string(number))
    return text.decode("ascii", "replace")


def _text(error: Exception) -> str:
    return tls_text(error) or str(error)


def tls_text(error: BaseException | None) -> str:
    """What OpenSSL's *error* says, for people; "" if it is none or says nothing."""
    if isinstance(error, SSL.Error) and error.args and isinstance(error.args[0], list):
        return "; ".join(str(each[-1]) for each in error.args[0] if each)
    return ""
