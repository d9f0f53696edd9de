"""One message on its way in, by DATA or BDAT: what it is found to be, and how it must end.

Whatever a message contains is swallowed to its true end and then refused once; so nothing behind a
fault can be taken for a command.
"""

from __future__ import annotations

from mailsvc.smtp import replies
from mailsvc.smtp.limits import SMTPSettings
from mailsvc.smtp.replies import Reply
from mailsvc.trace import HopCount
from mailsvc.wire import ChunkReader, DotReader, LineProof


class Intake:
    """The message that is arriving.

    :ivar size: octets accepted so far, dots unstuffed.
    :ivar refusal: the reply owed at its end, whatever else it contains; or None.
    :ivar announced: octets of all the chunks so far, the present one whole.
    :ivar chunk: octets of the present BDAT chunk still to come; None for DATA.
    :ivar last: whether the present chunk is the last.
    """

    __slots__ = (
        "_chunks", "_dots", "_hops", "_limits", "_proof", "announced", "chunk", "last",
        "refusal", "size",
    )  # fmt: skip

    def __init__(self, limits: SMTPSettings, *, chunked: bool) -> None:
        self._limits = limits
        self._proof = LineProof(limits.text_line_octets)
        self._hops = HopCount()
        self._dots = DotReader()
        self._chunks = ChunkReader()
        self.size = 0
        self.announced = 0
        self.refusal: Reply | None = None
        self.chunk: int | None = 0 if chunked else None
        self.last = False

    def expect(self, octets: int, last: bool) -> None:
        """A chunk of *octets* is announced."""
        self.chunk, self.last = octets, last
        self.announced += octets
        if 0 < self._limits.message_octets < self.announced and not self.refusal:
            self.refusal = replies.MESSAGE_TOO_BIG

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take input; return a block of the message, and what lay behind its end or its chunk's."""
        if self.chunk is None:
            block = self._keep(self._dots.feed(data))
            return block, self._dots.rest or b""
        octets, rest = data[: self.chunk], data[self.chunk :]
        self.chunk -= len(octets)
        return self._keep(self._chunks.feed(octets)), rest

    @property
    def dots_ended(self) -> bool:
        """Whether the end of DATA has come."""
        return self._dots.rest is not None

    def finish(self) -> bytes:
        """The last chunk has ended: what was held back, and the CRLF that the message may lack."""
        held = self._keep(self._chunks.finish())
        # Without BINARYMIME (RFC 3030 §3) a message is made of lines, so its last one is ended.
        return held if self._proof.ends_in_crlf else held + self._keep(b"\r\n")

    def _keep(self, block: bytes) -> bytes:
        """Examine a block; return what of it is to be kept: nothing once the message is refused."""
        if self.refusal:
            return b""
        self.size += len(block)
        self._proof.feed(block)
        self._hops.feed(block)
        if 0 < self._limits.message_octets < self.size:
            self.refusal = replies.MESSAGE_TOO_BIG
        elif self._proof.stray:
            self.refusal = replies.STRAY_LINE_END
        elif self._proof.too_long:
            self.refusal = replies.TEXT_LINE_TOO_LONG
        elif self._hops.hops >= self._limits.hops:
            self.refusal = replies.LOOP
        return b"" if self.refusal else block
