"""What a SASL exchange sends, asks its owner, and ends in.

A mechanism is a generator.  It yields *steps* and is sent their answers:

==============  ===========================================================  =====================
step            meaning                                                      answer
==============  ===========================================================  =====================
``Challenge``   octets for the client                                        its response, decoded
``Lookup``      which SCRAM keys has this name?                              ``ScramKeys``
``LogIn``       are these credentials right, and may they act as this one?   ``bool``
==============  ===========================================================  =====================

It returns when the login succeeded and raises :class:`Refused` when it did not.  ``LogIn`` is the
last step of every mechanism that succeeds: once it was answered with True, nothing can fail.  So a
maildrop that the login locked is never left behind by a client that cancels.  (SCRAM sends its
server-final-message before: the client's proof has been checked by then, and what the account may
do is not SASL's to say, RFC 4422 §3.6.)

:class:`mailsvc.sasl.exchange.Exchange` hands the same steps on to a protocol session, then
``Succeeded`` or ``Failed``.
"""

from __future__ import annotations

import base64
import enum
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from mailsvc.credentials import Digest, Password, ProvenName, Token


class Kind(enum.Enum):
    """Why an exchange failed.  The sessions own the texts; these are the codes to give them.

    ================== ================== ===================================================
    kind               SMTP (RFC 4954 §6) POP3 (RFC 5034 §4, RFC 3206)
    ================== ================== ===================================================
    UNSUPPORTED        504 5.5.4          -ERR
    ENCRYPTION_NEEDED  538 5.7.11         -ERR
    MALFORMED          501 5.5.2          -ERR
    TOO_LONG           500 5.5.6          -ERR
    CANCELLED          501 5.0.0          -ERR
    WRONG              535 5.7.8          -ERR [AUTH]
    ================== ================== ===================================================

    Whatever else ends a login is not known here but where ``LogIn`` or ``Lookup`` is answered.  The
    session then replies by itself and drops the exchange: a temporary failure with 454 4.7.0 or
    ``-ERR [SYS/TEMP]``, a mechanism too weak for this account with 534 5.7.9, an account that must
    log in by PLAIN once with 432 4.7.12, a maildrop in use with ``-ERR [IN-USE]``.
    """

    UNSUPPORTED = "mechanism not supported"
    ENCRYPTION_NEEDED = "encryption needed"
    MALFORMED = "malformed"
    TOO_LONG = "too long"
    CANCELLED = "cancelled"
    WRONG = "wrong credentials"


class Refused(Exception):
    """Raised in a mechanism: the exchange ends as :class:`Failed` with the same attributes."""

    def __init__(self, kind: Kind, reason: str, username: bytes = b"") -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.username = username


@dataclass(frozen=True, slots=True)
class Challenge:
    """Send this to the client: ``334`` or ``+``, a space, ``line``, CRLF."""

    data: bytes

    @property
    def line(self) -> bytes:
        """The challenge in base64, without a line end; may be empty."""
        return base64.b64encode(self.data)


@dataclass(frozen=True, slots=True)
class Lookup:
    """Question: which SCRAM keys has *name* (UTF-8, as sent)?

    A name that has none gets ``mailsvc.sasl.scram.decoy_keys``, so that nobody learns which names
    there are.
    """

    name: bytes


@dataclass(frozen=True, slots=True)
class LogIn:
    """Question: does this login succeed?  False means that the credentials are wrong.

    :ivar authorize_as: another name to act as, if the client asked for one; what it may be is the
        owner's to decide.
    """

    credentials: Password | Digest | ProvenName | Token
    authorize_as: bytes | None = None


@dataclass(frozen=True, slots=True)
class Guessed:
    """Not of an exchange, but what a session makes of one that failed by a wrong proof.

    Question: count a failed login as *username*, then answer as for a ``LogIn`` that is wrong.
    """

    username: bytes


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The exchange is over and the client logged in: 235 2.7.0 or ``+OK``."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The exchange is over and the client not logged in.

    :ivar reason: for the log; quotes nothing that the client sent.
    :ivar username: whose password was guessed wrongly, when only the exchange can know (SCRAM):
        count it as a failed login.  Otherwise empty: whoever answered ``LogIn`` with False has
        counted it already.
    """

    kind: Kind
    reason: str
    username: bytes = b""


Question = Challenge | Lookup | LogIn
Step = Question | Succeeded | Failed
#: A mechanism at work.
Conversation = Generator[Question, Any, None]


def opening(first: bytes | None) -> Generator[Question, bytes, bytes]:
    """The client's first message: *first* if AUTH brought it, or else asked for (RFC 4422 §5)."""
    return (yield Challenge(b"")) if first is None else first


def log_in(
    credentials: Password | Digest | ProvenName | Token, authorize_as: bytes = b""
) -> Generator[Question, bool, None]:
    """Ask for the login, the last step.  Empty, or the same name: nobody else is meant."""
    other = authorize_as if authorize_as not in (b"", credentials.username) else None
    if not (yield LogIn(credentials, other)):
        raise Refused(Kind.WRONG, "wrong credentials")
