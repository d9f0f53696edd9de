"""How long a client waits (RFC 5321 §4.5.3.2)."""

from __future__ import annotations

from dataclasses import dataclass

from mailsvc.smtp.failures import Stage


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each step may take, in seconds: the least of RFC 5321 §4.5.3.2 where it has one.

    Slow drips buy no time: each limit holds for the whole reply.
    """

    connect: float = 60.0
    tls: float = 60.0
    greeting: float = 300.0
    hello: float = 300.0
    auth: float = 180.0
    mail: float = 300.0
    rcpt: float = 300.0
    data: float = 120.0
    #: The server takes no octet of the message for so long.
    block: float = 180.0
    #: The final reply.
    end: float = 600.0
    #: RSET, NOOP, VRFY, EXPN.
    other: float = 300.0
    quit: float = 10.0

    def of(self, stage: Stage) -> float:
        """How long the server may take to answer at *stage*."""
        if stage is Stage.CONTENT:
            return self.block
        seconds: float = getattr(self, stage.value, self.other)
        return seconds
