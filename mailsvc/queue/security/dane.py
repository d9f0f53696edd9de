"""DANE for SMTP (RFC 7672, 7671): what TLSA records ask of a chain.  Records in, verdict out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from OpenSSL.crypto import (
    X509,
    X509Store,
    X509StoreContext,
    X509StoreContextError,
    X509StoreFlags,
)
from OpenSSL.crypto import Error as OpenSSLError
from service_identity import CertificateError, VerificationError
from service_identity.cryptography import verify_certificate_hostname

TRUST_ANCHOR, END_ENTITY = 2, 3  # DANE-TA, DANE-EE

_HASHES: dict[int, Callable[[bytes], bytes]] = {
    0: lambda octets: octets,
    1: lambda octets: hashlib.sha256(octets).digest(),
    2: lambda octets: hashlib.sha512(octets).digest(),
}
_LENGTHS = {1: 32, 2: 64}


@dataclass(frozen=True, slots=True)
class TLSA:
    """One record.

    :ivar usage: 2 (DANE-TA) or 3 (DANE-EE); others mean nothing for SMTP.
    :ivar selector: 0 for the whole certificate, 1 for its key.
    :ivar matching: 0 for the octets themselves, 1 for their SHA-256, 2 for their SHA-512.
    """

    usage: int
    selector: int
    matching: int
    data: bytes

    @property
    def usable(self) -> bool:
        """Whether it says something that we understand (RFC 7672 §3.1, RFC 7671 §4)."""
        return (self.usage in (TRUST_ANCHOR, END_ENTITY) and self.selector in (0, 1)
                and self.matching in _HASHES
                and len(self.data) == _LENGTHS.get(self.matching, len(self.data))
                and bool(self.data))

    def matches(self, certificate: x509.Certificate) -> bool:
        """Whether it is about *certificate*."""
        try:
            octets = (certificate.public_bytes(Encoding.DER) if self.selector == 0
                      else certificate.public_key().public_bytes(
                          Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
        except (ValueError, UnsupportedAlgorithm):
            return False  # a key that our library does not know
        return _HASHES[self.matching](octets) == self.data

    def __str__(self) -> str:
        """As in a zone, and in the policy-string of a report (RFC 8460 §4.4)."""
        return f"{self.usage} {self.selector} {self.matching} {self.data.hex()}"


def strongest(records: Collection[TLSA]) -> list[TLSA]:
    """The usable records that count.

    Where the same usage and selector has several digests only the strongest counts, for each whole
    (RFC 7671 §9): what breaks a digest must not help against the better one beside it.
    """
    usable = [each for each in records if each.usable]
    best = {(each.usage, each.selector): max(
        other.matching for other in usable
        if (other.usage, other.selector) == (each.usage, each.selector)) for each in usable}
    return [each for each in usable
            if each.matching in (0, best[each.usage, each.selector])]


def examine(records: Collection[TLSA], names: Sequence[str],
            chain: Sequence[x509.Certificate]) -> str | None:
    """What is wrong with *chain*, or None: one record has to hold.

    :param records: those of :func:`strongest`, at least one.
    :param names: whom a certificate under a trust anchor has to be for, one of them: the name that
        has the records, and the domain that mail is for (RFC 7672 §3.2.2).
    :param chain: as the server showed it, its own certificate first.
    """
    if not chain:
        return "the server shows no certificate"
    # RFC 7672 §3.1.1: the record alone says who it is; neither names nor dates count.
    if any(each.usage == END_ENTITY and each.matches(chain[0]) for each in records):
        return None
    anchors = [certificate for each in records if each.usage == TRUST_ANCHOR
               for certificate in (*chain[1:], *_inside(each)) if each.matches(certificate)]
    if not anchors:
        return "no certificate of the server matches its TLSA records"
    problem = _verified(chain, anchors)
    if problem is not None:
        return f"the chain does not lead to the authority of the TLSA records: {problem}"
    if not any(_is_for(chain[0], name) for name in names):
        return f"the certificate is not for {' or '.join(names)}"
    return None


def _inside(record: TLSA) -> list[x509.Certificate]:
    """The certificate that is in the record whole, which the server need not show."""
    if (record.selector, record.matching) != (0, 0):
        return []
    try:
        return [x509.load_der_x509_certificate(record.data)]
    except ValueError:
        return []


def _verified(chain: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate]
              ) -> str | None:
    store = X509Store()
    store.set_flags(X509StoreFlags.PARTIAL_CHAIN)  # the anchor may be one between
    try:
        for anchor in anchors:
            store.add_cert(X509.from_cryptography(anchor))
        X509StoreContext(store, X509.from_cryptography(chain[0]),
                         [X509.from_cryptography(each) for each in chain[1:]]
                         ).verify_certificate()
    except X509StoreContextError as error:
        return str(error)
    except OpenSSLError as error:
        return f"it cannot be read ({error})"
    return None


def _is_for(certificate: x509.Certificate, name: str) -> bool:
    try:
        verify_certificate_hostname(certificate, name)
    except (VerificationError, CertificateError, ValueError):
        return False
    return True
