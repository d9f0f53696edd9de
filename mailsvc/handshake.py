"""One TLS handshake of the server's: the certificate chosen in it, and what was agreed.

:class:`ServerConnection` is pyOpenSSL's connection with what that does not keep of a handshake;
:func:`describe` tells of a finished one what a session and a login need: version and cipher, who
the client has shown to be, and what binds a login to this very session.

**Channel bindings.**  TLS 1.3 has tls-exporter (RFC 9266), TLS 1.2 tls-unique (RFC 5929); both have
tls-server-end-point (RFC 5929), unless the certificate is signed by an algorithm without a hash of
its own.  In TLS 1.2 tls-exporter would need the extended master secret (RFC 9266 §4.2), of which
pyOpenSSL tells nothing.

**Client certificates.**  Their rfc822Name entries are the client's names; without any, its common
name if that is an address.  A certificate that was not verified has none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.logger import Logger

#: OpenSSL's names of the TLS 1.2 ciphers that we agree to, in order, and IANA's.
TLS_1_2_CIPHERS = {
    "ECDHE-ECDSA-AES128-GCM-SHA256": "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256": "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384": "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384": "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305": "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "ECDHE-RSA-CHACHA20-POLY1305": "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
}
#: Those of TLS 1.3, in order.
TLS_1_3_CIPHERS = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384",
                   "TLS_CHACHA20_POLY1305_SHA256")

_MAIL_ADDRESS = re.compile(r"[^@\s\x00-\x1f\x7f]+@[^@\s\x00-\x1f\x7f]+")

_log = Logger("mailsvc.tls")


@dataclass(frozen=True, slots=True)
class Contexts:
    """An OpenSSL context for each certificate, and which of them a server name means."""

    default: SSL.Context
    by_name: dict[str, SSL.Context]

    def named(self, name: str) -> SSL.Context:
        found = self.by_name.get(name)
        if found is None:
            # RFC 9525 §6.3: a wildcard is all of the leftmost label, and of no other.
            found = self.by_name.get("*." + name.partition(".")[2])
        return found or self.default


class ServerConnection(SSL.Connection):
    """One session's TLS, with what pyOpenSSL does not keep of the handshake.

    :ivar contexts: those to choose from.
    :ivar is_over: whether the connection is, once the handshake is.
    :ivar client_verified: whether the client's certificate was verified; None if it showed none.
    :ivar first_finished: the first Finished message, tls-unique of RFC 5929 §3.1.
    """

    is_over = False
    client_verified: bool | None = None
    first_finished = b""

    def __init__(self, contexts: Contexts) -> None:
        super().__init__(contexts.default, None)
        # OpenSSL calls back into them until the handshake is over, also when there are newer ones.
        self.contexts = contexts

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        finally:
            # A full handshake ends with both in one step, the client's first.  When a session is
            # resumed, ours goes out a step before.
            self.first_finished = (
                self.first_finished or self.get_peer_finished() or self.get_finished() or b"")
        if self.is_over:
            self.shutdown()
            # In the form of OpenSSL's own; Twisted closes the connection.
            raise SSL.Error([("", "", "the handshake was all that it was for")])


def choose_context(connection: Any) -> None:
    """A server name callback: go on with the certificate that the client asks for."""
    name = server_name(connection)
    # After a HelloRetryRequest it is called again, and what was chosen by more than the name stays.
    if name and not connection.is_over:
        connection.set_context(connection.contexts.named(name))


def note_verification(connection: Any, _certificate: Any, _error: int, _depth: int,
                      verified: int) -> bool:
    """A verify callback, called for each certificate of the client's chain and each flaw: go on."""
    connection.client_verified = connection.client_verified is not False and bool(verified)
    return True


# ---- what was agreed ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TLSState:
    """What a finished handshake agreed on.

    :ivar version: such as "TLSv1.3".
    :ivar cipher: the cipher suite by its IANA name.
    :ivar bits: of the cipher's key.
    :ivar group: the key exchange's group by its IANA name, or "" where it is not known.
    :ivar server_name: what the client asked for, in lower case, or "".
    :ivar client_names: the mail addresses in the client's certificate, if it was verified.
    :ivar channel_bindings: what binds a login to this session, by type: tls-exporter (RFC 9266) in
        TLS 1.3, tls-unique in TLS 1.2 and tls-server-end-point (RFC 5929).
    """

    version: str
    cipher: str
    bits: int
    group: str
    server_name: str
    client_names: tuple[str, ...]
    channel_bindings: Mapping[str, bytes]

    @property
    def clause(self) -> str:
        """The Received field's clause of RFC 8314 §4.3, with the version as a comment.

        As an Additional-Registered-Clause it stands behind all others (RFC 5321 §4.4).
        """
        group = f" group {self.group}" if self.group else ""
        return f"tls {self.cipher}{group} ({self.version})"


def describe(transport: Any) -> TLSState | None:
    """What was agreed on *transport*; None without TLS of ours, or before the handshake's end."""
    get_handle = getattr(transport, "getHandle", None)
    connection = get_handle() if get_handle is not None else None
    if not isinstance(connection, ServerConnection) or connection.get_peer_finished() is None:
        return None
    version = connection.get_protocol_version_name()
    cipher = connection.get_cipher_name() or ""
    return TLSState(
        version=version, cipher=TLS_1_2_CIPHERS.get(cipher, cipher),
        bits=connection.get_cipher_bits() or 0, group=_group(connection),
        server_name=server_name(connection), client_names=_client_names(connection),
        channel_bindings=channel_bindings(
            connection, version, connection.get_certificate(as_cryptography=True),
            connection.first_finished))


def _group(connection: ServerConnection) -> str:
    # Not in older releases of pyOpenSSL, and not with OpenSSL before 3.2.
    try:
        name = connection.get_group_name() or ""
    except (AttributeError, NotImplementedError):
        return ""
    # OpenSSL has its own name for P-256, and writes x25519 sometimes in capitals.
    return {"prime256v1": "secp256r1", "X25519": "x25519"}.get(name, name)


def server_name(connection: SSL.Connection) -> str:
    """What the client asks for (SNI), in lower case, or ""."""
    name = connection.get_servername() or b""
    return name.decode("ascii", "replace").lower().rstrip(".")


def _client_names(connection: ServerConnection) -> tuple[str, ...]:
    if not connection.client_verified:
        return ()
    certificate = connection.get_peer_certificate(as_cryptography=True)
    try:
        if certificate is None:
            return ()
        try:
            names = certificate.extensions.get_extension_for_class(
                x509.SubjectAlternativeName).value.get_values_for_type(x509.RFC822Name)
        except x509.ExtensionNotFound:
            names = []
        if not names:
            names = [str(name.value) for name in
                     certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except Exception as error:  # whatever the library finds in a certificate
        _log.warn("a client certificate cannot be understood: {error}", error=error)
        return ()
    return tuple(name for name in names if _MAIL_ADDRESS.fullmatch(name))


def channel_bindings(
    connection: SSL.Connection, version: str, certificate: x509.Certificate | None,
    first_finished: bytes,
) -> dict[str, bytes]:
    """What binds a login to this session, by type.

    :param certificate: the server's.
    :param first_finished: the first Finished message of the handshake.
    """
    bindings = {}
    if version == "TLSv1.3":
        bindings["tls-exporter"] = connection.export_keying_material(
            b"EXPORTER-Channel-Binding", 32, b"")
    else:
        # TLS 1.3 has none (RFC 8446 §C.5).
        bindings["tls-unique"] = first_finished
    # RFC 5929 §4.1: undefined for a signature without a hash of its own, as Ed25519's.
    algorithm = certificate.signature_hash_algorithm if certificate is not None else None
    if certificate is not None and algorithm is not None:
        if isinstance(algorithm, hashes.MD5 | hashes.SHA1):
            algorithm = hashes.SHA256()
        bindings["tls-server-end-point"] = certificate.fingerprint(algorithm)
    return bindings
