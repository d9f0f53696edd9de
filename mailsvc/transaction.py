"""One message over an open connection: what :meth:`mailsvc.client.Client.send` does.

All of MAIL, RCPT and DATA are queued at once; the session lets them out in one packet where the
server offers PIPELINING, and does not say what has become senseless.  Where CHUNKING is offered, a
small message goes out as one BDAT with its envelope, in one round trip for everything; a large one
follows when a recipient has been accepted, chunk after chunk without waiting for replies.

Recipients that the server has no room for in this transaction (452, RFC 5321 §4.5.3.1.10; LIMITS
RCPTMAX, RFC 9422) get one of their own, where the message can be read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.python.failure import Failure

from mailsvc.errors import EnhancedStatus
from mailsvc.mail import Address
from mailsvc.smtp import writing
from mailsvc.smtp.failures import BadArgument, BadMessage, SendingFailure, Stage
from mailsvc.smtp.outcome import Outcome, Recipient
from mailsvc.smtp.outgoing import Outgoing
from mailsvc.smtp.requests import Parameters
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
        if not path.local_part:
            raise BadArgument("a recipient cannot be empty")
        # What is wrong with the parameters must not come up when half of it is sent.
        writing.rcpt(path, smtputf8=True, notify=given.notify, orcpt=given.orcpt)
        found.append(Recipient(path, tuple(given.notify), given.orcpt))
    if not found:
        raise BadArgument("no recipients; name at least one")
    return found


async def send(
    client: Any, out: Outgoing, reverse_path: Address | str,
    recipients: Sequence[Address | str | Recipient],
    message: Message, parameters: Parameters, *, normalize: bool, chunk: bool,
) -> tuple[Outcome, ...]:
    """Send *message* over *client*; an outcome for each recipient, in order.

    :raises BadArgument: something cannot be said.
    """
    wanted = resolved(recipients)
    sender = writing.address(reverse_path)
    writing.mail(sender, replace(parameters, smtputf8=True))
    source = Source(message, normalize=normalize)
    form = source.look()
    outcomes: dict[int, Outcome] = {}
    try:
        if form is not None and form.stray:
            raise BadMessage("bare CR or LF in the message; end every line with CRLF",
                             Stage.CONTENT, EnhancedStatus(5, 6, 11))
        await out.ready()
    except SendingFailure as failure:
        return tuple(_failed(each, failure) for each in wanted)
    left = list(range(len(wanted)))
    while left:
        most = _most_recipients(client.extension("LIMITS")) or len(left)
        batch = left[:most] if source.repeatable else left
        found = await _transaction(client, out, sender, [wanted[n] for n in batch], source, form,
                                   parameters, chunk)
        outcomes.update(zip(batch, found, strict=True))
        # Whoever is told to come again gets another transaction, as long as that helps.
        full = [n for n in batch if _no_room(outcomes[n])]
        again = full if source.repeatable and any(each.accepted for each in found) else []
        left = [*again, *left[len(batch):]]
        if out.closed is not None:
            break
    for n, each in enumerate(wanted):
        if n not in outcomes:
            assert out.closed is not None
            outcomes[n] = _failed(each, out.closed)
    return tuple(outcomes[n] for n in range(len(wanted)))


async def _transaction(
    client: Any, out: Outgoing, sender: Address, recipients: list[Recipient], source: Source,
    form: Form | None, parameters: Parameters, chunk: bool,
) -> tuple[Outcome, ...]:
    utf8 = _smtputf8(client, sender, recipients, form, parameters)
    begun = client.mail(
        sender, size=parameters.size or (form.size if form else 0),
        body=parameters.body or ("" if form is None else "8BITMIME" if form.eight_bit else "7BIT"),
        smtputf8=utf8, ret=parameters.ret, envid=parameters.envid,
        requiretls=parameters.requiretls, auth=parameters.auth, by=parameters.by,
        priority=parameters.priority, hold_for=parameters.hold_for)
    if is_failed(begun):
        # Nothing was sent.
        try:
            await begun
        except SendingFailure as failure:
            return tuple(_failed(each, failure) for each in recipients)
    sent: list[Deferred[Any]] = [begun]
    for each in recipients:
        sent.append(client.rcpt(each.forward_path, notify=each.notify, orcpt=each.orcpt))
    chunked = chunk and client.extension("CHUNKING") is not None
    if not chunked:
        sent.append(client.content(source))
    elif form is not None and form.size <= _SMALL:
        async for block, last in source.whole_lines(form.size):
            sent.append(client.bdat(block, last))
    await _all(sent)
    if chunked and not (form is not None and form.size <= _SMALL) and out.tally.accepted:
        await _chunks(client, out, source)
    if out.closed is not None:
        # Between two chunks no command was open that could fail.
        out.tally.given_up(out.closed)
    outcomes: tuple[Outcome, ...] = client.outcomes
    if out.closed is None and out.tally.unfinished:
        await _all([client.reset()])
    return outcomes


async def _chunks(client: Any, out: Outgoing, source: Source) -> None:
    """A large message by BDAT; its failures are in the outcomes."""
    sent: list[Deferred[Any]] = []
    out.hold_back(True)
    try:
        async for block, last in source.whole_lines(_CHUNK):
            if out.closed is not None or any(map(is_failed, sent)):
                break
            sent.append(client.bdat(block, last))
            await out.wait_for_room()
    except Exception as error:
        out.give_up(error)
        await _all(sent)
        return
    finally:
        out.hold_back(False)
    await _all(sent)


def is_failed(each: Deferred[Any]) -> bool:
    """Whether *each* has failed already, and nobody has looked at it."""
    return each.called and isinstance(each.result, Failure)


async def _all(sent: list[Deferred[Any]]) -> None:
    """Wait for all of *sent*, whatever becomes of them: the outcomes tell."""
    await DeferredList(sent, consumeErrors=True)


def _smtputf8(client: Any, sender: Address, recipients: list[Recipient], form: Form | None,
              parameters: Parameters) -> bool:
    """Whether the transaction is one of RFC 6531.

    A recipient that alone would need it does not fail the others where it is not offered.
    """
    if parameters.smtputf8 is not None:
        return parameters.smtputf8
    if writing.needs_smtputf8(sender) or (form is not None and form.utf8_header):
        return True
    return client.extension("SMTPUTF8") is not None and any(
        writing.needs_smtputf8(writing.address(each.forward_path)) for each in recipients)


def _failed(recipient: Recipient, failure: SendingFailure) -> Outcome:
    return Outcome(writing.address(recipient.forward_path), failure.reply, failure)


def _no_room(outcome: Outcome) -> bool:
    failure = outcome.failure
    return (failure is not None and failure.stage is Stage.RCPT and failure.reply is not None
            and failure.reply.code == 452
            and failure.status[1:] in ((5, 3), (3, 1)))


def _most_recipients(limits: str | None) -> int:
    """RCPTMAX of RFC 9422, or 0."""
    for word in (limits or "").split():
        name, _, value = word.partition("=")
        if name.upper() == "RCPTMAX" and value.isdecimal():
            return int(value[:9])
    return 0

