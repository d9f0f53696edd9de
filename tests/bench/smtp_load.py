"""The sending dialogues: SMTP (RFC 5321) and LMTP (RFC 2033).

A message counts when its last reply is 250 (LMTP: the 250 of each recipient).  Any other reply than
the one due ends the measurement with that reply as its result.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass

from tests.bench.load import CONNECT, READY, Dialogue, Tally, Unexpected
from tests.bench.messages import Template, ident


@dataclass(frozen=True)
class Sending:
    """What each client sends, and how.

    :ivar tag: names the measurement in each message's ident.
    :ivar recipients: forward-paths for each client; it sends every message to all of its own.
    :ivar lmtp: speak LMTP instead of SMTP.
    :ivar per_connection: one message per connection, else one connection for all.
    :ivar pipelined: MAIL, every RCPT and DATA in one write where the server offers it (RFC 2920).
    :ivar seconds: no message is begun later than this.
    :ivar most: nor any beyond this many by one client.
    """

    tag: str
    recipients: tuple[tuple[bytes, ...], ...]
    template: Template
    lmtp: bool = False
    per_connection: bool = False
    pipelined: bool = False
    seconds: float = 2.0
    most: int = 1_000_000

    def play(self, client: int) -> Dialogue:
        """The dialogue of one client."""
        return _send(self, client)


def _send(plan: Sending, client: int) -> Dialogue:
    tally = Tally(client)
    hello = b"LHLO client.test\r\n" if plan.lmtp else b"EHLO client.test\r\n"
    recipients = [b"RCPT TO:<%b>\r\n" % path for path in plan.recipients[client]]
    mail = b"MAIL FROM:<load@client.test>\r\n"
    answers = len(recipients) if plan.lmtp else 1
    offers = b""
    if not plan.per_connection:
        yield from _replies(CONNECT, b"220")
        offers = yield from _replies(hello, b"250")
    yield READY
    until = time.monotonic() + plan.seconds
    while tally.units < plan.most and (tally.units == 0 or time.monotonic() < until):
        if plan.per_connection:
            yield from _replies(CONNECT, b"220")
            offers = yield from _replies(hello, b"250")
        if plan.pipelined and b"PIPELINING" in offers:
            envelope = b"".join((mail, *recipients, b"DATA\r\n"))
            yield from _replies(envelope, *[b"250"] * (1 + len(recipients)), b"354")
        else:
            yield from _replies(mail, b"250")
            for recipient in recipients:
                yield from _replies(recipient, b"250")
            yield from _replies(b"DATA\r\n", b"354")
        yield from _replies(plan.template.wire(ident(plan.tag, client, tally.units)),
                            *[b"250"] * answers)
        tally.add()
        if plan.per_connection:
            yield from _replies(b"QUIT\r\n", b"221")
    if not plan.per_connection:
        yield from _replies(b"QUIT\r\n", b"221")
    return tally


def _replies(wish: bytes | object, *codes: bytes) -> Generator[bytes | object | None, bytes, bytes]:
    """Send *wish* and take one whole reply per code, each with that code: all that came."""
    received = b""
    while True:
        chunk = yield wish
        wish = None
        if not chunk:
            raise Unexpected(f"the server closed the connection instead of {codes[-1].decode()}")
        received += chunk
        if not received.endswith(b"\r\n"):
            continue
        # The last line of each reply has a space behind the code (RFC 5321 §4.2).
        lines = [line for line in received[:-2].split(b"\r\n") if line[3:4] != b"-"]
        for line, code in zip(lines, codes, strict=False):
            if not line.startswith(code):
                raise Unexpected(f"{line.decode('ascii', 'replace')!r} instead of {code.decode()}")
        if len(lines) > len(codes):
            raise Unexpected(f"{lines[-1].decode('ascii', 'replace')!r}, unasked")
        if len(lines) == len(codes):
            return received
