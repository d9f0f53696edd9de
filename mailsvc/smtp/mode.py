"""What an SMTP listener is for; one session serves all modes, and asks where they differ."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mode:
    """One use of the protocol.

    :ivar name: as in the configuration.
    :ivar submission: for users who log in and send (RFC 6409), not for other servers.
    :ivar lmtp: LMTP (RFC 2033): LHLO, and a reply for each recipient after the message.
    :ivar odmr: On-Demand Mail Relay (RFC 2645): users log in and fetch, by ATRN, and send nothing.
    """

    name: str
    submission: bool = False
    lmtp: bool = False
    odmr: bool = False

    @property
    def logs_in(self) -> bool:
        """Whether users log in."""
        return self.submission or self.odmr

    @property
    def protocol(self) -> str:
        """What the greeting calls it."""
        return "LMTP" if self.lmtp else "ESMTP"


#: Mail from other servers, for the domains here (RFC 5321).
TRANSPORT = Mode("smtp")
#: Mail from users who log in (RFC 6409; with TLS from the first octet, RFC 8314).
SUBMISSION = Mode("submission", submission=True)
#: Mail for servers that fetch it, because they are not always there (RFC 2645).
ODMR = Mode("odmr", odmr=True)
#: Mail from a server beside this one, for its own users (RFC 2033).
LMTP = Mode("lmtp", lmtp=True)
