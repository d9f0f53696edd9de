"""One import: from a source into a mailbox, each message once, however often it is begun again.

Past limits, quotas and filters, and without a Received field: the messages are those of old.  They
are stored octet for octet but for line ends, which become CRLF, with their dates, their flags, and
the unique-ids that POP3 clients know them by.

Where the mailbox has a message with that unique-id already, and it is the same, nothing is
brought.  If it is another (two old accounts become one, whose servers both counted "1", "2", "3"),
the new one gets a unique-id of ours: it is downloaded once more, which is better than never.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import IO

from mailsvc.importing.ledger import Ledger
from mailsvc.importing.source import HEAD, Offer, Source, arrival
from mailsvc.mail import new_id
from mailsvc.store import filenames
from mailsvc.store.deposit import Deposit
from mailsvc.store.text import CanonicalText

#: So many messages are made durable together.
_TOGETHER = 100
_BLOCK = 256 * 1024
_SMALL = 1024 * 1024


@dataclass(slots=True)
class Brought:
    """What an import did.

    :ivar imported: messages, of so many *octets*.
    :ivar before: messages that an import before brought, or the mailbox had.
    :ivar renamed: of those imported, how many could not have their unique-id.
    :ivar gone: messages that went from the source meanwhile.
    :ivar notes: what the source left out.
    """

    imported: int = 0
    octets: int = 0
    before: int = 0
    renamed: int = 0
    gone: int = 0
    notes: list[str] = field(default_factory=list)


def bring(source: Source, deposit: Deposit, ledger: Ledger, brought: Brought, *,
          progress: Callable[[int, int], None] = lambda done, of: None,
          dry_run: bool = False) -> None:
    """Bring what is new in *source*; *brought* tells what was done, also if that fails amid it.

    :param progress: is told how many of how many messages were looked at.
    :raises SourceFailure: or OSError: what was brought by then stays, and counts.
    """
    offers = source.offers()
    brought.notes += source.notes
    there = deposit.unique_ids()
    ids = {filenames.message_id(os.path.basename(path)) for path in there.values()}
    settled = [key for key, id in ledger.begun.items() if id in ids]
    known = ledger.done.union(settled)
    wanted = [offer for offer in offers if offer.key not in known]
    brought.before = number = len(offers) - len(wanted)
    if dry_run:
        brought.imported = len(wanted)
        brought.octets = sum(offer.octets for offer in wanted)
        return
    ledger.settle(settled)
    put: list[str] = []
    try:
        for offer, blocks in source.fetch(_announced(wanted, ledger)):
            if blocks is None:
                brought.gone += 1
            else:
                _put(offer, blocks, ledger.begun[offer.key], deposit, there, brought)
                put.append(offer.key)
            if len(put) == _TOGETHER:
                _settle(deposit, ledger, put)
            number += 1
            progress(number, len(offers))
    finally:
        _settle(deposit, ledger, put)


def _announced(offers: Iterable[Offer], ledger: Ledger) -> Iterator[Offer]:
    """The *offers*, each noted as begun before it is asked for."""
    rest = iter(offers)
    while some := list(islice(rest, _TOGETHER)):
        ledger.begin((offer.key, new_id()) for offer in some)
        yield from some


def _settle(deposit: Deposit, ledger: Ledger, put: list[str]) -> None:
    deposit.settle()
    ledger.settle(put)
    put.clear()


def _put(offer: Offer, blocks: Iterable[bytes], id: str, deposit: Deposit,
         there: dict[bytes, bytes], brought: Brought) -> None:
    text = _canonical(blocks)
    unique_id = offer.unique_id
    with ExitStack() as stack:
        if unique_id is not None and unique_id in there:
            file = stack.enter_context(tempfile.SpooledTemporaryFile(_SMALL))
            if _digest(_copied(text, file)) == _digest(_stored(there[unique_id])):
                brought.before += 1
                return
            unique_id = None
            brought.renamed += 1
            file.seek(0)
            text = iter(lambda: file.read(_BLOCK), b"")
        head, text = _head(text)
        octets = deposit.octets
        path = deposit.put(text, when=arrival(head) if offer.when is None else offer.when,
                           unique_id=unique_id, flags=offer.flags, id=id)
    if unique_id is not None:
        there[unique_id] = path
    brought.imported += 1
    brought.octets += deposit.octets - octets


def _canonical(blocks: Iterable[bytes]) -> Iterator[bytes]:
    lines = CanonicalText()
    yield from (lines.feed(block) for block in blocks)
    yield lines.end()


def _head(text: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The beginning of *text*, with the header as a rule; and all of it."""
    blocks: list[bytes] = []
    octets = 0
    for block in text:
        blocks.append(block)
        octets += len(block)
        if octets >= HEAD or b"\r\n\r\n" in block:
            break
    return b"".join(blocks)[:HEAD], chain(blocks, text)


def _copied(blocks: Iterable[bytes], file: IO[bytes]) -> Iterator[bytes]:
    for block in blocks:
        file.write(block)
        yield block


def _stored(path: bytes) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            yield from _canonical(iter(lambda: file.read(_BLOCK), b""))
    except FileNotFoundError:
        return  # it went, or was renamed: not known to be the same


def _digest(blocks: Iterable[bytes]) -> bytes:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.digest()
