"""What a client asks of a server, and what comes of it: the values of a SendingSession."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mailsvc.errors import EnhancedStatus
from mailsvc.mail import Address, DeliverBy
from mailsvc.smtp.failures import BadMessage, NotOffered, SendingFailure, Stage
from mailsvc.smtp.replies import Reply
from mailsvc.wire import ChunkReader, LineProof


class Parameters(NamedTuple):
    """What MAIL is to say beside the reverse-path; as the arguments of ``Client.send``."""

    size: int = 0
    body: str = ""
    smtputf8: bool | None = None
    ret: str = ""
    envid: str = ""
    requiretls: bool = False
    auth: Address | None = None
    by: DeliverBy | None = None
    priority: int | None = None
    hold_for: int = 0


@dataclass(slots=True, eq=False)
class Transaction:
    """One mail transaction, seen from the client.

    :ivar sender_reply: MAIL's; None before it came.
    :ivar accepted: how many recipients were.
    :ivar refused: the last refusal of a recipient.
    :ivar confused: whether the server took a recipient of a sender that it had refused.
    :ivar due: how many replies to the message are still to come.
    :ivar eight_bit: whether the message may hold more than ASCII.
    :ivar smtputf8: whether addresses and header may.
    """

    eight_bit: bool
    smtputf8: bool
    sender_reply: Reply | None = None
    accepted: int = 0
    refused: Reply | None = None
    due: int = 0
    confused: bool = False
    proof: LineProof = field(default_factory=LineProof)
    cut: ChunkReader = field(default_factory=ChunkReader)

    @property
    def obstacle(self) -> Reply | None:
        """Why no message can follow, as things stand."""
        if self.sender_reply is not None and not self.sender_reply.positive:
            return self.sender_reply
        return self.refused if not self.accepted else None

    def check(self, block: bytes, last: bool = False) -> bytes:
        """Prove a block of the message; return it, cut anew between lines' CR and LF."""
        block = self.cut.feed(block)
        if last:
            block += self.cut.finish()
        self.check_whole(block, proven=False)
        return block

    def check_whole(self, block: bytes, proven: bool) -> None:
        """Prove a block that begins and ends with lines; of one that is *proven*, only that it can
        be sent here."""
        if not proven:
            self.proof.feed(block)
            if self.proof.stray:
                raise BadMessage(
                    "bare CR or LF in the message; end every line with CRLF", Stage.CONTENT,
                    EnhancedStatus(5, 6, 11))
        if not self.eight_bit and not block.isascii():
            raise NotOffered(
                "the message has octets beyond ASCII, and the server does not offer 8BITMIME",
                Stage.CONTENT, EnhancedStatus(5, 6, 3))


@dataclass(slots=True, eq=False)
class Command:
    """One command, from its queueing to its last reply.

    :ivar stage: how far the client has come when its reply is due.
    :ivar shown: what a log may show of it.
    :ivar ends_group: whether nothing may be sent behind it before it is answered (RFC 2920 §3.1).
    :ivar in_flight: whether the whole message may have reached the server.
    """

    stage: Stage
    wire: bytes
    shown: str = ""
    ends_group: bool = False
    transaction: Transaction | None = None
    in_flight: bool = False
    last_chunk: bool = False
    act: Callable[[Any, Command, Reply], None] | None = field(default=None, repr=False)


class Replied(NamedTuple):
    """*reply* to *command*; ``more``: another will follow (LMTP, one for each recipient)."""

    command: Command
    reply: Reply
    more: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """*command* got no reply of its own, and will not."""

    command: Command
    failure: SendingFailure


@dataclass(frozen=True, slots=True)
class ContentWanted:
    """354: send the message by ``content`` and ``finish``."""

    command: Command


@dataclass(frozen=True, slots=True)
class TLSWanted:
    """The server waits for the handshake; call ``tls_started``."""

    command: Command


@dataclass(frozen=True, slots=True)
class Ended:
    """The connection is of no use any more: hang up."""

    failure: SendingFailure


Event = Replied | Failed | ContentWanted | TLSWanted | Ended
