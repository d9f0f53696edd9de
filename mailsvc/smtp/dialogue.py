"""A receiving session as its parts see it: where it stands, what is known, what may be said.

The commands, the login and the mail transactions of a session work on a :class:`Dialogue`, and know
nothing of how its octets come and go; :class:`mailsvc.smtp.session.Session` is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from mailsvc.sasl.context import Context
from mailsvc.smtp.events import Event
from mailsvc.smtp.limits import SMTPSettings
from mailsvc.smtp.mode import Mode
from mailsvc.smtp.replies import Reply

# Where a session is, by what it has been told (RFC 5321 §4.1.4).  A phase says which commands are
# legal and nothing else: whether a message is arriving, or an answer awaited, is kept apart.  RSET,
# HELO and EHLO lead from READY and all behind it to READY; QUIT leads to CLOSED from anywhere.
GREETING = "greeting"  # the 220 is not out yet
START = "start"  # no HELO or EHLO yet
READY = "ready"  # no transaction
MAIL = "mail"  # a sender, no recipient
RCPT = "rcpt"  # a sender and one recipient or more
CHUNKS = "chunks"  # one BDAT or more, none of them LAST
CLOSED = "closed"

PHASES = (GREETING, START, READY, MAIL, RCPT, CHUNKS, CLOSED)


class Dialogue(Protocol):
    """What the parts of a session may know of it and do with it.

    :ivar extended: whether the client said EHLO.
    :ivar authenticated: the name of the account that has logged in, or empty.
    :ivar sasl: describes the connection as it is now; None where nobody can log in.
    """

    phase: str
    mode: Mode
    limits: SMTPSettings
    extended: bool
    authenticated: str
    tls_active: bool
    sasl: Callable[[], Context] | None

    def ask(self, question: Event) -> None:
        """Hand a question to the owner."""

    def tell(self, event: Event) -> None:
        """Hand an event to the owner that is no question."""

    def retract(self) -> bool:
        """Take back what has not been handed out yet, a question included; whether there was any.
        """

    def say(self, answer: Reply) -> None:
        """Send a reply."""

    def send(self, octets: bytes) -> None:
        """Send what is no reply."""

    def refuse(self, answer: Reply) -> None:
        """Send a negative reply; too many of them end the session."""

    def forgive(self) -> None:
        """A message was accepted: what did not bring one is no longer held against the client."""

    def close(self, answer: Reply) -> None:
        """Say *answer* and end the session, dropping what is under way."""
