"""Deleted mail that is kept for a time (``maildir.keep_deleted_days``), and put back from a page.

It is put back as it was deleted, with the maildrop's lock held (:mod:`mailsvc.mailbox`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from twisted.logger import Logger

from mailsvc.console import letters
from mailsvc.console.call import Answer, Call, Page, Problem, Redirect
from mailsvc.errors import MaildropInUse
from mailsvc.store.undeletion import Deleted, Undeletion
from mailsvc.tracing.archive import Reader
from mailsvc.tracing.events import message_of
from mailsvc.tracing.search import OwnReader

_log = Logger("mailsvc.console")

#: How many messages stand on a page, and how many are put back at once at most.
PAGE, _AT_ONCE = 50, 200
#: Most octets of a header that are looked at.
_HEAD = 65_536
#: What else than POP3 deletes, by where it logs.
_BESIDE = {"mailsvc.console": "console", "mailsvc.api": "API"}


@dataclass(frozen=True, slots=True)
class Row:
    """One message.

    :ivar when: when it was deleted, in seconds since the epoch.
    :ivar by: by whom and from where, as the trace tells; "" when it does not know.
    """

    id: str
    octets: int
    when: float
    by: str
    heading: letters.Heading


def kept_days(call: Call) -> int:
    """For how many days deleted mail is kept; 0 where none is."""
    settings = call.backend.settings
    return settings.maildir.keep_deleted_days if call.backend.maildirs is not None else 0


def _undeletion(call: Call) -> Undeletion:
    root = call.backend.maildirs
    if not call.user.receives:
        raise Problem("This account only sends mail.", 403)
    if root is None:
        raise Problem("Deleted mail is not kept in this store.", 404)
    return Undeletion(root, call.user, call.backend.settings.service.hostname)


async def show_list(call: Call) -> Answer:
    """What can be had back, the newest day first."""
    undeletion, asked = _undeletion(call), call.query["page"]

    def read() -> tuple[list[Row], int, int, int]:
        messages = list(undeletion.messages())
        last = max(1, -(-len(messages) // PAGE))
        page = min(last, max(1, int(asked))) if re.fullmatch("[0-9]{1,9}", asked) else 1
        rows = []
        with OwnReader(call.backend.data / "trace", call.user.name) as reader:
            for each in messages[PAGE * (page - 1):PAGE * page]:
                try:
                    rows.append(_row(each, reader))
                except FileNotFoundError:
                    continue  # its time was over
        return rows, len(messages), page, last

    rows, count, page, last = await call.backend.threads.run(read)
    return Page("deleted.html", {"rows": rows, "count": count, "page": page, "last": last,
                                 "days": kept_days(call)})


def _row(each: Deleted, reader: Reader) -> Row:
    octets, when, head = each.head(_HEAD)
    by, id = "", message_of(each.unique_id)
    for entry in reader.newest(id) if id else ():
        if entry.kind.namespace in _BESIDE and " deleted " in entry.kind.format:
            by = _BESIDE[entry.kind.namespace]
        elif entry.kind.namespace == "mailsvc.pop3" and " removed " in entry.kind.format:
            by = "POP3"
        else:
            continue
        when, by = entry.time, f"{by} {entry.fields.get('client', '')}".rstrip()
        break
    return Row(each.unique_id, octets, when, by, letters.heading(head))


async def restore(call: Call) -> Answer:
    """Put one back, or those that are ticked."""
    undeletion, form = _undeletion(call), call.form
    wanted = set(form.fields.get("one") or form.fields.get("id", [])[:_AT_ONCE])
    if not wanted:
        raise Problem("Tick the messages that are meant.")

    try:
        restored = await call.backend.mailbox(call.user).put_back(undeletion, wanted)
    except MaildropInUse:
        raise Problem("A mail program is fetching from this mailbox at this moment, so that "
                      "nothing can be restored.  Try again in a minute.", 409) from None
    except OSError as error:
        raise Problem("The mail cannot be restored now: {reason}", 503,
                      reason=error.strerror or error) from error
    for id in restored:
        _log.info("{id} restored user={user} unique_id={unique_id} client={client}",
                  id=message_of(id), unique_id=id, user=call.user.name, client=call.client)
    if not restored:
        raise Problem("The message cannot be had back: its time is over, or it is back already.",
                      404)
    return Redirect("/mailbox", "restored")
