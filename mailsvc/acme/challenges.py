"""What the authority asks to see that a name is ours, and what it is shown.

HTTP-01 (RFC 8555 §8.3) certbot's library knows, and it takes nothing but our thumbprint.
TLS-ALPN-01 (RFC 8737) it knows no more; there the token is in a certificate made for the occasion.
"""

from __future__ import annotations

import datetime
import hashlib
from typing import Any

import josepy
from acme import challenges, messages
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

#: RFC 8737 §6.1: id-pe-acmeIdentifier.
ACME_IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
#: In DER, what stands before a string of 32 octets.
_OCTET_STRING = b"\x04\x20"
#: What the clocks of authorities may differ by, and how long the certificate is good for.
_ASIDE, _VALID = datetime.timedelta(hours=1), datetime.timedelta(days=1)


class _TLSALPN01Response(challenges.KeyAuthorizationChallengeResponse):
    typ = "tls-alpn-01"


@challenges.Challenge.register
class _TLSALPN01(challenges.KeyAuthorizationChallenge):
    response_cls = _TLSALPN01Response
    typ = _TLSALPN01Response.typ

    def validation(self, account_key: josepy.JWK, **_: Any) -> bytes:
        return hashlib.sha256(self.key_authorization(account_key).encode("ascii")).digest()


def offered(authorization: messages.AuthorizationResource, kind: str
            ) -> messages.ChallengeBody | None:
    """The challenge of *kind*, as acme.challenge calls it; None if the authority has none."""
    for challenge in authorization.body.challenges:
        if challenge.chall.typ == kind:
            return challenge
    return None


def certificate_for(name: str, digest: bytes) -> bytes:
    """A self-signed certificate and its key, PEM, that answer TLS-ALPN-01 (RFC 8737 §3).

    :param digest: SHA-256 of the key authorization.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    # ub-common-name of RFC 5280 is 64 characters; it is the alternative name that counts.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject)
        .public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - _ASIDE).not_valid_after(now + _VALID)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.UnrecognizedExtension(ACME_IDENTIFIER, _OCTET_STRING + digest),
                       critical=True)
        .sign(key, hashes.SHA256()))
    return certificate.public_bytes(Encoding.PEM) + key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
