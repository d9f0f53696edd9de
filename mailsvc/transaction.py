"""One message over an open connection: what :meth:`mailsvc.client.Client.send` does.

All of MAIL, RCPT and DATA are queued at once; the session lets them out in one packet where the
server offers PIPELINING, and does not say what has become senseless.  Where CHUNKING is offered, a
small message goes out as one BDAT with its envelope, in one round trip for everything; a large one
follows when a recipient has been accepted, chunk after chunk without waiting for replies.

Recipients that the server has no room for in this transaction (452, or 552 as RFC 821 had it, RFC
5321 §4.5.3.1.10; LIMITS RCPTMAX, RFC 9422) get one of their own, where the message can be read
again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred, DeferredList, fail
from twisted.python.failure import Failure

from mailsvc.errors import EnhancedStatus
from mailsvc.mail import NULL_PATH, Address
from mailsvc.smtp import writing
from mailsvc.smtp.failures import BadArgument, BadMessage, SendingFailure, Stage
from mailsvc.smtp.offers import most
from mailsvc.smtp.outcome import Outcome, Recipient
from mailsvc.smtp.outgoing import Outgoing
from mailsvc.smtp.requests import Parameters
from mailsvc.smtp.sending import SendingSession
from mailsvc.smtp.source import Form, Message, Source

#: Up to here a message goes out with its envelope; and the size of chunks beyond.
_SMALL = 65_536
_CHUNK = 262_144


def resolved(recipients: Sequence[Address | str | Recipient]) -> list[Recipient]:
    """*recipients* as such, their addresses checked.

    :raises BadArgument: one cannot be said, or there is none.
    """
    found = []
    for each in recipients:
        given = each if isinstance(each, Recipient) else Recipient(each)
        path = writing.address(given.forward_path)
        if path == NULL_PATH:
            raise BadArgument("a recipient cannot be empty")
        if given.notify or given.orcpt:
            # What is wrong with the parameters must not come up when half of it is sent.
            writing.rcpt(path, smtputf8=True, notify=given.notify, orcpt=given.orcpt)
        found.append(Recipient(path, tuple(given.notify), given.orcpt))
    if not found:
        raise BadArgument("no recipients; name at least one")
    return found


async def send(
    out: Outgoing, reverse_path: Address | str, recipients: Sequence[Address | str | Recipient],
    message: Message, parameters: Parameters, *, normalize: bool, chunk: bool,
    sent: Callable[[], object] | None = None,
) -> tuple[Outcome, ...]:
    """Send *message* over *out*; an outcome for each recipient, in order.

    :param sent: as of :meth:`mailsvc.client.Client.send`.
    :raises BadArgument: something cannot be said.
    """
    wanted = resolved(recipients)
    sender = writing.address(reverse_path)
    known = out.session.extended is not None
    if not known:
        writing.mail(sender, parameters._replace(smtputf8=True))
    source = Source(message, normalize=normalize)
    form = source.look()
    outcomes: dict[int, Outcome] = {}
    try:
        if form is not None and form.stray:
            raise BadMessage("bare CR or LF in the message; end every line with CRLF",
                             Stage.CONTENT, EnhancedStatus(5, 6, 11))
        if not known or out.closed is not None:
            await out.ready()
    except SendingFailure as failure:
        return tuple(_failed(each, failure) for each in wanted)
    left = list(range(len(wanted)))
    while left:
        at_once = most(out.session.extensions, "RCPTMAX") or len(left)
        batch = left[:at_once] if source.repeatable else left
        found = await _transaction(out, sender, [wanted[n] for n in batch], source, form,
                                   parameters, chunk, sent if len(batch) == len(wanted) else None)
        outcomes.update(zip(batch, found, strict=True))
        # Whoever is told to come again gets another transaction, as long as that helps.
        full = [n for n in batch if _no_room(outcomes[n])]
        again = full if source.repeatable and any(each.accepted for each in found) else []
        left = [*again, *left[len(batch):]]
        if out.closed is not None or out.session.exhausted:
            break
    for n, each in enumerate(wanted):
        if n not in outcomes:
            outcomes[n] = _failed(each, out.closed or SendingFailure(
                "the server takes no more messages over this connection", Stage.MAIL,
                EnhancedStatus(4, 5, 3)))
    return tuple(outcomes[n] for n in range(len(wanted)))


async def _transaction(
    out: Outgoing, sender: Address, recipients: list[Recipient], source: Source,
    form: Form | None, parameters: Parameters, chunk: bool, sent: Callable[[], object] | None,
) -> tuple[Outcome, ...]:
    session = out.session
    transfer = out.begin(sent)
    tally = transfer.tally
    try:
        declared = _declared(session, sender, recipients, form, parameters)
        transfer.tell(session.mail(sender, declared))
    except SendingFailure as failure:
        # Nothing was sent.
        return tuple(_failed(each, failure) for each in recipients)
    chunked = chunk and "CHUNKING" in session.extensions
    small = form is not None and form.size <= _SMALL
    # What cannot be said is in the tally, or has the transaction ended unfinished.
    for each in recipients:
        with suppress(SendingFailure):
            transfer.tell(out.recipient(each.forward_path, each.notify, each.orcpt))
    if not chunked:
        transfer.tell(out.content(source))
    elif form is not None and small:
        async for block, last in source.whole_lines(form.size):
            with suppress(SendingFailure):
                transfer.tell(session.bdat(block, last))
    await transfer.heard()
    if chunked and not small and tally.accepted:
        await _chunks(out, source)
    if out.closed is not None:
        # Between two chunks no command was open that could fail.
        tally.given_up(out.closed)
    outcomes = tally.outcomes
    if out.closed is None and tally.unfinished:
        transfer.tell(session.reset())
        await transfer.heard()
    return outcomes


def _declared(session: SendingSession, sender: Address, recipients: list[Recipient],
              form: Form | None, parameters: Parameters) -> Parameters:
    """*parameters*, and what the message itself tells where they do not."""
    size, body = parameters.size, parameters.body
    if form is not None:
        size, body = size or form.size, body or ("8BITMIME" if form.eight_bit else "7BIT")
    return parameters._replace(size=size, body=body, smtputf8=_smtputf8(
        session, sender, recipients, form, parameters))


async def _chunks(out: Outgoing, source: Source) -> None:
    """A large message by BDAT; its failures are in the outcomes."""
    sent: list[Deferred[Any]] = []
    out.hold_back(True)
    try:
        async for block, last in source.whole_lines(_CHUNK):
            if out.closed is not None or any(map(is_failed, sent)):
                break
            sent.append(_chunk(out, block, last))
            await out.wait_for_room()
    except Exception as error:
        out.give_up(error)
        await _all(sent)
        return
    finally:
        out.hold_back(False)
    await _all(sent)


def _chunk(out: Outgoing, block: bytes, last: bool) -> Deferred[Any]:
    try:
        return out.issue(lambda session: session.bdat(block, last))
    except SendingFailure:
        return fail()


def is_failed(each: Deferred[Any]) -> bool:
    """Whether *each* has failed already, and nobody has looked at it."""
    return each.called and isinstance(each.result, Failure)


async def _all(sent: list[Deferred[Any]]) -> None:
    """Wait for all of *sent*, whatever becomes of them: the outcomes tell."""
    await DeferredList(sent, consumeErrors=True)


def _smtputf8(session: SendingSession, sender: Address, recipients: list[Recipient],
              form: Form | None, parameters: Parameters) -> bool:
    """Whether the transaction is one of RFC 6531.

    A recipient that alone would need it does not fail the others where it is not offered.
    """
    if parameters.smtputf8 is not None:
        return parameters.smtputf8
    if writing.needs_smtputf8(sender) or (form is not None and form.utf8_header):
        return True
    return "SMTPUTF8" in session.extensions and any(
        writing.needs_smtputf8(writing.address(each.forward_path)) for each in recipients)


def _failed(recipient: Recipient, failure: SendingFailure) -> Outcome:
    return Outcome(writing.address(recipient.forward_path), failure.reply, failure)


def _no_room(outcome: Outcome) -> bool:
    failure = outcome.failure
    if failure is None or failure.stage is not Stage.RCPT or failure.reply is None:
        return False
    reply = failure.reply
    if reply.code == 552:
        # What RFC 821 had for too many recipients; else it is about the mailbox.
        return reply.status is None or reply.status[1:] == (5, 3)
    return reply.code == 452 and failure.status[1:] in ((5, 3), (3, 1))

