"""What a receiving SMTP session tells its owner, and asks.

Some events are questions, as their docstrings say: ``Session.reply`` answers them.  Those of AUTH
are in :mod:`mailsvc.sasl.steps`: ``Session.keys`` answers Lookup, ``logged_in`` or
``login_refused`` LogIn, and ``login_failed`` either when it cannot be found out.

Nobody changes an event.  They are not frozen because to make one would take several times as long,
and each command makes one.
"""

from __future__ import annotations

from dataclasses import dataclass

from mailsvc.mail import Address, Envelope
from mailsvc.sasl.steps import Guessed, LogIn, Lookup
from mailsvc.smtp.xclient import XClient


@dataclass(slots=True)
class Connected:
    """Question: the connection is new.  Answer 220 (``Session.greeting``) or refuse it."""


@dataclass(slots=True)
class Hello:
    """Question: HELO or EHLO, of a client that calls itself *name*.

    Answer ``Session.hello_reply`` or a refusal.
    """

    name: str
    extended: bool


@dataclass(slots=True)
class Proxied:
    """Question: XCLIENT, from a client that may.  A positive reply begins the session anew.

    Where one may log in, ``client.login`` has, if the reply is positive.
    """

    client: XClient


@dataclass(slots=True)
class MailFrom:
    """Question: MAIL.  A positive reply makes *envelope* the session's."""

    envelope: Envelope


@dataclass(slots=True)
class RcptTo:
    """Question: RCPT.  Before a positive reply, add its Recipient to the session's envelope.

    :ivar notify: as :attr:`mailsvc.mail.Recipient.notify`; and ``orcpt`` likewise.
    """

    forward_path: Address
    notify: tuple[str, ...] = ()
    orcpt: str = ""


@dataclass(slots=True)
class Verify:
    """Question: VRFY.  An empty domain means that none was given."""

    mailbox: Address


@dataclass(slots=True)
class Expand:
    """Question: EXPN."""

    mailbox: Address


@dataclass(slots=True)
class QueueRun:
    """Question: ETRN: may what waits for *domain* be sent now?"""

    domain: str


@dataclass(slots=True)
class Turn:
    """Question: ATRN, of who has logged in: may the roles turn, to send what waits for *domains*?

    None are all those that the login has.  A positive reply makes Turned follow.
    """

    domains: tuple[str, ...]


@dataclass(slots=True)
class Turned:
    """The 250 is in ``data_to_send``: send it.  The session is over, and the connection goes on.

    :ivar data: what has come behind ATRN.
    """

    data: bytes


@dataclass(slots=True)
class DataBegins:
    """Question: DATA, or the first BDAT: may the message come?  Answer 354 or a refusal."""


@dataclass(slots=True)
class MessageBlock:
    """A part of the message: CRLF lines, dots unstuffed, no CRLF cut in two."""

    data: bytes


@dataclass(slots=True)
class MessageEnds:
    """Question: the message is whole and well formed, *size* octets.  Take it (250) or refuse."""

    size: int


@dataclass(slots=True)
class Aborted:
    """The message that had begun will not end: drop it.

    :ivar reason: the text of the reply that ended it, or the command that did.
    """

    reason: str


@dataclass(slots=True)
class TLSBegins:
    """The 220 is in ``data_to_send``: send it, start TLS, then call ``Session.tls_started``."""


@dataclass(slots=True)
class Closed:
    """The session is over: send what is owed and close the connection.

    :ivar asked: whether the client wished it (QUIT).
    """

    asked: bool


Event = (
    Connected
    | Hello
    | Proxied
    | MailFrom
    | RcptTo
    | Verify
    | Expand
    | QueueRun
    | Turn
    | Turned
    | DataBegins
    | MessageBlock
    | MessageEnds
    | Aborted
    | TLSBegins
    | Guessed
    | Lookup
    | LogIn
    | Closed
)
