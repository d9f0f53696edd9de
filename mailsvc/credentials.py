"""What a client shows to log in: the credentials that cred checkers are asked about.

POP3's USER and PASS, APOP, and every SASL mechanism of either protocol end in one of these; the
portal finds a checker for the interface it provides.  A name is bytes, in UTF-8, because that is
what the checkers of ``twisted.cred.strcred`` compare.  Each carries its :class:`Attempt`, so that a
checker can hold a password to the protocols and networks it was made for.

None of them shows a secret in its ``repr``, hence in no log.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field

from twisted.cred.credentials import ICredentials, IUsernameHashedPassword, IUsernamePassword
from zope.interface import Attribute, implementer


@dataclass(frozen=True, slots=True)
class Attempt:
    """Where and for what somebody tries to log in.

    :ivar protocol: "pop3" to fetch, "submission" to send, "console" for the pages.
    :ivar client: the peer's IP address, or "" on a Unix socket.
    :ivar mechanism: the SASL mechanism, or USER, APOP or FORM.
    """

    protocol: str
    client: str = ""
    mechanism: str = ""


class IProvenName(ICredentials):
    """A name that a mechanism has proven already: by SCRAM, a certificate, Kerberos."""

    username = Attribute("The login name: bytes, UTF-8.")
    attempt = Attribute("The :class:`Attempt`.")


class IToken(ICredentials):
    """An OAuth 2.0 bearer token (RFC 7628)."""

    username = Attribute("The login name that the client wants to be: bytes, UTF-8; may be empty.")
    token = Attribute("The token, str, without its type.")
    attempt = Attribute("The :class:`Attempt`.")


@implementer(IUsernamePassword)
@dataclass(frozen=True, slots=True)
class Password:
    """A name and its password, as sent (PLAIN, LOGIN, USER and PASS)."""

    username: bytes
    password: bytes = field(repr=False)
    attempt: Attempt

    def checkPassword(self, password: str | bytes) -> bool:
        """Whether *password* is the one that was sent; takes the same time for each answer."""
        expected = password.encode() if isinstance(password, str) else password
        return hmac.compare_digest(self.password, expected)


@implementer(IUsernameHashedPassword)
@dataclass(frozen=True, slots=True)
class Digest:
    """A name, and a digest that the password itself is needed to check (APOP, CRAM-MD5).

    :ivar digest_of: what a client that knows a given password would have sent.
    """

    username: bytes
    digest: bytes = field(repr=False)
    digest_of: Callable[[bytes], bytes] = field(repr=False)
    attempt: Attempt

    def checkPassword(self, password: str | bytes) -> bool:
        """Whether the digest was made with *password*."""
        secret = password.encode() if isinstance(password, str) else password
        return hmac.compare_digest(self.digest, self.digest_of(secret))


@implementer(IProvenName)
@dataclass(frozen=True, slots=True)
class ProvenName:
    """See :class:`IProvenName`."""

    username: bytes
    attempt: Attempt


@implementer(IToken)
@dataclass(frozen=True, slots=True)
class Token:
    """See :class:`IToken`."""

    username: bytes
    token: str = field(repr=False)
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class ScramKeys:
    """What the server keeps to check SCRAM-SHA-256 (RFC 5802 §3, RFC 7677); not the password.

    :ivar others: the keys of the account's other passwords, which have the same iterations and
        salt: a client that proves any of them is right.
    """

    iterations: int
    salt: bytes
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)
    others: tuple[ScramKeys, ...] = field(default=(), repr=False)
