"""An account's mail: to be listed, read, deleted, had back, and sent.

Only its owner has it, and who is root here anyway; an administrator reads nobody's.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
from collections.abc import Sequence
from contextlib import suppress

from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import IConsumer
from twisted.logger import Logger

from mailsvc import plain
from mailsvc.api.call import NOTHING, Answer, Call, paged
from mailsvc.api.problems import Problem
from mailsvc.client import BadArgument, Outcome, SendingFailure
from mailsvc.composing import Attachment, BadPart, compose
from mailsvc.console import letters
from mailsvc.console.inside import submit
from mailsvc.errors import MaildropInUse, MessageVanished
from mailsvc.mail import Account
from mailsvc.mailbox import Mailbox
from mailsvc.smtp.failures import said
from mailsvc.store.undeletion import Undeletion
from mailsvc.tracing.events import message_of

_log = Logger("mailsvc.api")

#: How many messages a process sends at once; further ones wait.
_AT_ONCE = DeferredSemaphore(20)

_GONE = "The message is gone: it was deleted, here or by a mail program."


async def _mailbox(call: Call) -> Mailbox:
    return call.backend.mailbox(await _receiver(call))


async def _receiver(call: Call) -> Account:
    account = await call.account()
    if not account.receives:
        raise Problem(409, "This account only sends mail.")
    return account


async def list_all(call: Call) -> Answer:
    """List the messages of an account, the newest first."""
    mailbox = await _mailbox(call)
    view = await mailbox.view()
    newest = len(view.sizes) - call.query["offset"]
    numbers = range(newest, max(0, newest - call.query["limit"]), -1)
    headers = await mailbox.headers(view, numbers)

    def read() -> list[letters.Heading]:
        return [letters.heading(each) for each in headers]

    headings = await call.backend.threads.run(read)
    return paged(call, [{
        "id": view.uidl(number).decode("ascii"), "octets": view.sizes[number - 1],
        "from": each.sender, "subject": each.subject, "date": _utc(each.date)}
        for number, each in zip(numbers, headings, strict=True)], len(view.sizes))


def _utc(seconds: float | None) -> str | None:
    try:
        return None if seconds is None else datetime.datetime.fromtimestamp(
            seconds, datetime.UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):  # no year of ours
        return None


async def read(call: Call) -> Answer:
    """Read a message as it is.  It never changes, so that a client may keep it."""
    mailbox, id = await _mailbox(call), call.words["message"]
    # Not the unique-id itself: it may hold quotation marks (RFC 9110 §8.8.3).
    tag = f'"{hashlib.sha256(id.encode()).hexdigest()[:32]}"'
    try:
        view, number = await mailbox.find(id)
    except MessageVanished:
        raise Problem(404, _GONE) from None
    # What a mail program takes for its own must not be run by a browser.
    headers = {"ETag": tag, "Cache-Control": "private, no-cache",
               "Content-Security-Policy": "default-src 'none'; sandbox",
               "Content-Disposition": "attachment"}
    if tag in call.known or "*" in call.known:
        return Answer(status=304, headers=headers)

    async def write(consumer: IConsumer) -> None:
        try:
            await view.read(number, consumer)
        except MessageVanished:
            raise Problem(404, _GONE) from None

    return Answer(headers=headers, write=write, type="message/rfc822",
                  length=view.sizes[number - 1])


async def delete(call: Call) -> Answer:
    """Delete a message."""
    mailbox, id = await _mailbox(call), call.words["message"]
    try:
        await mailbox.delete(id)
    except MessageVanished:
        raise Problem(404, _GONE) from None
    except MaildropInUse:
        raise Problem(409, "A mail program is fetching from this mailbox at this moment, so that "
                      "nothing can be deleted.  Try again in a minute.") from None
    # Of the mailbox of *user*, as those of POP3 and of the console: so traces tell of it.
    _log.info("{id} deleted user={user} unique_id={unique_id} by={by} client={client}",
              id=message_of(id), unique_id=id, user=call.words["account"], by=call.caller.name,
              client=call.caller.client)
    return NOTHING


# ---- deleted mail ----


async def _deleted(call: Call) -> tuple[Account, Undeletion]:
    account, root = await _receiver(call), call.backend.maildirs
    if root is None:
        raise Problem(409, "Mail is not kept in maildirs here, so that none can be had back.")
    return account, Undeletion(root, account, call.backend.settings.service.hostname)


async def list_deleted(call: Call) -> Answer:
    """List the deleted messages that can be had back, the newest first."""
    _, undeletion = await _deleted(call)
    offset, limit = call.query["offset"], call.query["limit"]

    def read() -> Answer:
        messages, told = list(undeletion.messages()), []
        for each in messages[offset:offset + limit]:
            with suppress(FileNotFoundError):  # its time was over
                told.append(plain.deleted(each))
        return paged(call, told, len(messages))

    return await call.backend.threads.run(read)


async def undelete(call: Call) -> Answer:
    """Put a deleted message back into the mailbox, with its unique-id."""
    (account, undeletion), id = await _deleted(call), call.words["message"]
    try:
        restored = await call.backend.mailbox(account).put_back(undeletion, [id])
    except MaildropInUse:
        raise Problem(409, "A mail program is fetching from this mailbox at this moment, so that "
                      "nothing can be put back.  Try again in a minute.") from None
    except OSError as error:
        raise Problem(503, f"It cannot be put back now: {error.strerror or error}") from error
    if not restored:
        raise Problem(404, "No such message is kept.")
    _log.info("{id} restored user={user} unique_id={unique_id} by={by} client={client}",
              id=message_of(id), unique_id=id, user=account.name, by=call.caller.name,
              client=call.caller.client)
    return NOTHING


# ---- sending ----


async def _sender(call: Call) -> Account:
    account = await call.account()
    if not account.sends:
        raise Problem(409, "This account only receives mail.")
    return account


async def send(call: Call) -> Answer:
    """Send a message made of these parts, by the rules of any submission."""
    account, value = await _sender(call), call.value
    sender, recipients = value.get("from", account.name), value["to"]

    def made() -> bytes:
        try:
            attachments = [
                Attachment(each["name"], base64.b64decode(each["content"], validate=True))
                for each in value.get("attachments", ())]
            return compose(sender=sender, to=recipients, subject=value.get("subject", ""),
                           body=value.get("text", ""), attachments=attachments,
                           utf8=not sender.isascii())
        except binascii.Error:
            raise Problem(422, "The content of an attachment is not in base64.") from None
        except BadPart as problem:
            raise Problem(422, f"This cannot be a message: {problem}") from None

    return await _sent(call, account, sender, recipients, await call.backend.threads.run(made))


async def send_raw(call: Call) -> Answer:
    """Send a message as it is, by the rules of any submission."""
    account = await _sender(call)
    return await _sent(call, account, call.query["from"] or account.name, call.query["to"],
                       call.value)


async def _sent(call: Call, account: Account, sender: str, recipients: Sequence[str],
                message: bytes) -> Answer:
    try:
        outcomes: tuple[Outcome, ...] = await _AT_ONCE.run(lambda: Deferred.fromCoroutine(submit(
            call.backend, account.name, call.caller.client, sender, recipients, message)))
    except BadArgument as problem:
        raise Problem(409, f"It was not sent: {problem}") from None
    except SendingFailure as problem:
        status = 503 if problem.temporary else 409
        raise Problem(status, f"It was not sent: {problem}") from None
    return Answer({"recipients": [
        {"address": str(each.recipient), "accepted": each.accepted, "reply": _reply(each)}
        for each in outcomes]})


def _reply(outcome: Outcome) -> str:
    if outcome.failure is not None:
        return outcome.failure.text
    assert outcome.reply is not None
    return said(outcome.reply)
