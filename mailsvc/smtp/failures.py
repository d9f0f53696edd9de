"""How sending mail can fail, seen from the client.

Every failure tells at which *stage* it happened, whether it is worth trying again, and an enhanced
status code (RFC 3463) for a report, whether the server gave one or not.

:attr:`SendingFailure.in_flight` is what a queue has to know most: the whole message had been handed
to the network, and the server's answer was not seen.  It may have taken the message, so that trying
again can make a duplicate (RFC 5321 §6.1, RFC 1047).  Where it is False the server has not taken
responsibility.
"""

from __future__ import annotations

from enum import StrEnum

from mailsvc.errors import EnhancedStatus
from mailsvc.smtp.replies import Reply


class Stage(StrEnum):
    """How far a client has come."""

    CONNECT = "connect"
    TLS = "tls"
    GREETING = "greeting"
    HELLO = "hello"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"  # the DATA command itself
    CONTENT = "content"  # the message is being sent
    END = "end"  # all was sent; the final reply is due
    IDLE = "idle"  # between transactions: RSET, NOOP, VRFY, EXPN
    QUIT = "quit"


class SendingFailure(Exception):
    """Mail could not be sent.

    :ivar stage: how far it had come.
    :ivar status: the enhanced status code, of the server or our own.
    :ivar temporary: whether it may work later.
    :ivar reply: the server's reply that decided, or None.
    :ivar in_flight: whether the server may have taken the message all the same.
    """

    default = EnhancedStatus(4, 4, 2)

    def __init__(self, text: str, stage: Stage = Stage.CONNECT,
                 status: EnhancedStatus | None = None, *, reply: Reply | None = None,
                 in_flight: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.stage = stage
        self.status = self.default if status is None else status
        self.reply = reply
        self.in_flight = in_flight

    @property
    def temporary(self) -> bool:
        """Whether trying again later, or another server, may help."""
        return self.status.class_ == 4


class Refused(SendingFailure):
    """The server answered in the negative; ``reply`` is never None."""


class NotOffered(SendingFailure):
    """The message needs an extension that the server does not offer; nothing was sent.

    Status 5.6.3 for 8BITMIME, 5.6.7 for SMTPUTF8 (RFC 6531 §3.5), 5.7.30 for REQUIRETLS (RFC 8689
    §4.2.1), 5.3.4 when it is larger than the server takes (RFC 1870 §6), 5.3.3 for DELIVERBY and
    FUTURERELEASE, 5.4.7 when the server promises too long a time (RFC 2852).
    """

    default = EnhancedStatus(5, 3, 3)


class BadMessage(SendingFailure):
    """The message itself cannot be sent, to whatever server: a bare CR or LF in it, say."""

    default = EnhancedStatus(5, 6, 0)


class BadReply(SendingFailure):
    """What the server says is no SMTP, or not what the protocol has in this place; we hung up."""

    default = EnhancedStatus(4, 5, 0)


class Disconnected(SendingFailure):
    """The connection ended before the answer came."""

    default = EnhancedStatus(4, 4, 2)


class TimedOut(SendingFailure):
    """The server took longer than it may (RFC 5321 §4.5.3.2); we hung up."""

    default = EnhancedStatus(4, 4, 2)


class CannotConnect(SendingFailure):
    """There is nobody at that address, or no way to it."""

    default = EnhancedStatus(4, 4, 1)


class TLSFailed(SendingFailure):
    """TLS was wanted and could not be had, or the server is not who it should be.

    :ivar reason: a result type of RFC 8460 §4.3, such as "starttls-not-supported",
        "certificate-host-mismatch", "certificate-expired", "certificate-not-trusted",
        "validation-failure".
    """

    default = EnhancedStatus(4, 7, 5)

    def __init__(self, text: str, reason: str = "validation-failure",
                 stage: Stage = Stage.TLS, status: EnhancedStatus | None = None, *,
                 reply: Reply | None = None) -> None:
        super().__init__(text, stage, status, reply=reply)
        self.reason = reason


class LoginRefused(Refused):
    """The server does not take this name and secret (RFC 4954 §6)."""


class CannotLogIn(SendingFailure):
    """No mechanism that the server offers can be used here; nothing secret was sent."""

    default = EnhancedStatus(5, 7, 4)


class BadArgument(ValueError):
    """An argument that cannot be put on the wire: CR, LF, NUL, or another form than expected."""


class NotSent(Exception):
    """No recipient was accepted.

    :ivar outcomes: what became of each.
    """

    def __init__(self, outcomes: tuple[object, ...]) -> None:
        super().__init__("; ".join(map(str, outcomes)))
        self.outcomes = outcomes


# ---- replies as failures -------------------------------------------------------------------------


def said(reply: Reply) -> str:
    """*reply* in one line, for people."""
    status = f"{reply.status} " if reply.status else ""
    return f"{reply.code} {status}{' '.join(filter(None, map(str.strip, reply.lines)))}"[:1000]


#: What codes without an enhanced status mean (RFC 5248, RFC 3463 §3).
_MEANING = {421: (3, 2), 450: (2, 0), 451: (3, 0), 452: (3, 1), 454: (7, 0), 500: (5, 2),
            501: (5, 4), 502: (5, 1), 503: (5, 1), 504: (5, 4), 530: (7, 0), 534: (7, 9),
            535: (7, 8), 538: (7, 11), 550: (0, 0), 551: (1, 6), 552: (2, 2), 553: (1, 3),
            554: (0, 0), 555: (5, 4), 556: (1, 10), 521: (3, 2)}


def status_of(reply: Reply) -> EnhancedStatus:
    """The enhanced status of *reply*, or what its code amounts to."""
    return reply.status or EnhancedStatus(reply.code // 100,
                                          *_MEANING.get(reply.code, (0, 0)))


def refusal(reply: Reply, stage: Stage) -> Refused:
    """The failure that a negative *reply* is."""
    return Refused(said(reply), stage, status_of(reply), reply=reply)
