"""What a :class:`mailsvc.pop3.session.Session` tells and asks its owner.

A *question* must be answered, by the methods of the session that it names, before the next event is
asked for.  Those of AUTH are in :mod:`mailsvc.sasl.steps`: Lookup is answered by ``keys``, LogIn
like Login.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from mailsvc.sasl.steps import Guessed, LogIn, Lookup


@dataclass(frozen=True, slots=True)
class Login:
    """Question: USER and PASS.  Answer ``logged_in``, ``login_refused`` or ``login_failed``.

    :ivar user: NFC.
    :ivar password: as sent; valid UTF-8 (RFC 6856 §2.2).
    """

    user: str
    password: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ApopLogin:
    """Question: APOP.  Answered like Login.

    :ivar challenge: the timestamp of the banner, angle brackets included.
    :ivar digest: 32 lower-case hexadecimal digits.
    """

    user: str
    challenge: bytes
    digest: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Retrieve:
    """Question: RETR of what is not at hand, or TOP when *lines* is not None.

    Hand the message over by ``message_block``, then answer ``retrieved`` or ``retrieve_failed``.
    """

    number: int
    lines: int | None


@dataclass(frozen=True, slots=True)
class Listing:
    """Question: a long answer to LIST or UIDL.

    Send ``data_to_send``, then each of *blocks* as the peer takes them, then answer ``listed``.
    """

    blocks: Iterator[bytes] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Update:
    """Question: QUIT.  Remove the messages *deleted*, then answer ``updated``."""

    deleted: frozenset[int]


@dataclass(frozen=True, slots=True)
class StartTLS:
    """Question: STLS.  Send ``data_to_send``, start TLS, then answer ``tls_started``."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """Enough is owed to the peer: send it before the next event is asked for."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The session is over: send what is owed and close the connection.

    :ivar reason: for the log.
    :ivar asked: whether the client wished it (QUIT).
    """

    reason: str
    asked: bool


Event = (
    Login | ApopLogin | Lookup | LogIn | Guessed | Retrieve | Listing | Update | StartTLS | Gathered
    | Closed
)
