"""The kinds of verifiers that other programs keep, checked in the calling thread.

Argon2 (``$argon2id$…``), bcrypt (``$2b$…``, with the package bcrypt) and SCRAM-SHA-256 keys as
PostgreSQL writes them (``SCRAM-SHA-256$…``).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets

import argon2
from argon2.exceptions import Argon2Error, InvalidHashError, VerifyMismatchError

from mailsvc.accounts import prepare_password

_ARGON2 = re.compile(
    r"(\$argon2(?:id|i|d)\$v=19\$m=\d+,t=\d+,p=\d+\$)[A-Za-z0-9+/]+\$[A-Za-z0-9+/]+")
_BCRYPT = re.compile(r"(\$2[aby]\$\d\d\$)[./A-Za-z0-9]{53}")
_SCRAM = re.compile(r"(SCRAM-SHA-256\$(\d{1,10}):)([^:$]+)(\$([^:$]{44}):[^:$]{44})", re.ASCII)

#: What OWASP's Password Storage Cheat Sheet recommends.
_USUAL = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$c29tZSBkaWdlc3Qgb2YgMzIgb2N0ZXRz"


class UnknownVerifier(Exception):
    """A verifier that nothing can be checked against; the text says why, not what it is."""


def matches(verifier: str, password: bytes) -> bool:
    """Whether *verifier* was made of *password*.

    :raises UnknownVerifier: it is of no known kind.
    """
    prepared = prepare_password(password)
    if _ARGON2.fullmatch(verifier):
        try:
            return argon2.PasswordHasher().verify(verifier, prepared)
        except VerifyMismatchError:
            return False
        except (Argon2Error, InvalidHashError) as error:
            raise UnknownVerifier(f"Argon2: {error}") from error
    if _BCRYPT.fullmatch(verifier):
        return _is_bcrypt(verifier, prepared)
    match = _SCRAM.fullmatch(verifier)
    if match is None:
        raise UnknownVerifier("expected $argon2id$…, $2b$… or SCRAM-SHA-256$…")
    return _is_scram(int(match[2]), match[3], match[5], prepared)


def decoy(like: str = "") -> str:
    """The verifier of no password that is as much work as *like*."""
    if (match := _ARGON2.fullmatch(like)) is not None:
        return match[1] + _random(16).rstrip("=") + "$" + _random(32).rstrip("=")
    if (match := _BCRYPT.fullmatch(like)) is not None:
        # Its last character has but two bits of the digest; any octets will do for the others.
        return match[1] + "." * 22 + secrets.token_hex(15) + "."
    if (match := _SCRAM.fullmatch(like)) is not None:
        return match[1] + _random(16) + "$" + _random(32) + ":" + _random(32)
    return _USUAL


def _random(octets: int) -> str:
    return base64.b64encode(secrets.token_bytes(octets)).decode()


def _is_bcrypt(verifier: str, password: bytes) -> bool:
    try:
        import bcrypt  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UnknownVerifier(
            "bcrypt's, which takes the package bcrypt: pip install bcrypt") from error
    # Octets beyond these never counted; the package refuses them.
    return bcrypt.checkpw(password[:72], verifier.encode())


def _is_scram(iterations: int, salt: str, stored_key: str, password: bytes) -> bool:
    # RFC 5802 §3.
    try:
        octets, expected = (base64.b64decode(part, validate=True) for part in (salt, stored_key))
    except ValueError as error:
        raise UnknownVerifier(f"SCRAM: {error}") from error
    if not 0 < iterations < 1 << 31:
        raise UnknownVerifier("SCRAM: a number of iterations out of range")
    salted = hashlib.pbkdf2_hmac("sha256", password, octets, iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    return hmac.compare_digest(hashlib.sha256(client_key).digest(), expected)
