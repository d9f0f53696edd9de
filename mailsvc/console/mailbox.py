"""One's own mailbox: a list, the messages to read, their sources and parts, and deletion."""

from __future__ import annotations

import re

from twisted.logger import Logger

from mailsvc.console import letters
from mailsvc.console.call import Answer, Call, Content, Page, Problem, Redirect
from mailsvc.console.deleted import kept_days
from mailsvc.errors import MaildropInUse, MessageVanished
from mailsvc.mailbox import Mailbox
from mailsvc.tracing.events import message_of

_log = Logger("mailsvc.console")

#: How many messages stand on a page.
PAGE = 50
#: Most octets of a source that are shown on a page; the rest can be downloaded.
SOURCE_OCTETS = 262_144

#: The frame in which HTML of others stands: an origin of its own, that runs and fetches nothing.
#: It may be shown by our own pages, and links in it open elsewhere.
FRAME_POLICY = ("default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; "
                "base-uri 'none'; frame-ancestors 'self'; "
                "sandbox allow-popups allow-popups-to-escape-sandbox")
#: What a download may do, should a browser show it after all.
DOWNLOAD_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"


def _mailbox(call: Call) -> Mailbox:
    if not call.user.receives:
        raise Problem("This account only sends mail.", 403)
    return call.backend.mailbox(call.user)


def _gone() -> Problem:
    return Problem("The message is gone: it was deleted, here or by a mail program.", 404)


async def _whole(call: Call) -> bytes:
    mailbox = _mailbox(call)
    try:
        view, number = await mailbox.find(call.words["id"])
        if view.sizes[number - 1] > letters.MESSAGE_OCTETS:
            raise Problem("The message is too large to be shown here; fetch it by POP3.", 413)
        return await mailbox.whole(view, number, letters.MESSAGE_OCTETS)
    except MessageVanished:
        raise _gone() from None


async def show_list(call: Call) -> Answer:
    """The messages, the newest first."""
    mailbox = _mailbox(call)
    view = await mailbox.view()
    count, asked = len(view.sizes), call.query["page"]
    last = max(1, -(-count // PAGE))
    page = min(last, max(1, int(asked))) if re.fullmatch("[0-9]{1,9}", asked) else 1
    newest = count - PAGE * (page - 1)
    numbers = range(newest, max(0, newest - PAGE), -1)
    headers = await mailbox.headers(view, numbers)

    def read() -> list[letters.Heading]:
        return [letters.heading(each) for each in headers]

    headings = await call.backend.threads.run(read)
    return Page("mailbox.html", {
        "rows": [(view.uidl(number).decode(), view.sizes[number - 1], each)
                 for number, each in zip(numbers, headings, strict=True)],
        "count": count, "octets": view.octets, "page": page, "last": last,
        "quota": call.user.quota_octets, "kept_days": kept_days(call)})


async def show(call: Call) -> Answer:
    """One message to read."""
    data, id = await _whole(call), call.words["id"]
    shown = {"id": id, "trace": message_of(id), "size": len(data)}
    try:
        letter = await call.backend.threads.run(letters.letter, data)
    except letters.TooStrange as problem:
        return Page("message.html", {**shown, "letter": None, "strange": str(problem),
                                     "heading": letters.heading(data)})
    return Page("message.html", {**shown, "letter": letter, "strange": "",
                                 "heading": letter.heading})


async def show_html(call: Call) -> Answer:
    """The HTML of a message, for the frame on its page."""
    data = await _whole(call)
    try:
        letter = await call.backend.threads.run(letters.letter, data)
    except letters.TooStrange:
        letter = None
    if letter is None or letter.html is None:
        raise Problem("The message has no HTML.", 404)
    page = ('<!DOCTYPE html><html><head><meta charset="utf-8"><title></title><style>'
            "html{color-scheme:light;background:#fff;color:#1b1f24}"
            "body{margin:1rem;font:1rem/1.5 system-ui,sans-serif;overflow-wrap:anywhere}"
            f"img{{max-width:100%;height:auto}}</style></head><body>{letter.html}</body></html>")
    return Content(page.encode("utf-8", "replace"), "text/html; charset=utf-8",
                   policy=FRAME_POLICY)


async def show_source(call: Call) -> Answer:
    """A message as it is, for the eye."""
    data = await _whole(call)
    text = data[:SOURCE_OCTETS].decode("utf-8", "replace").replace("\r\n", "\n")
    return Page("source.html", {"id": call.words["id"], "text": text, "size": len(data),
                                "cut": len(data) > SOURCE_OCTETS,
                                "heading": letters.heading(data)})


async def download(call: Call) -> Answer:
    """A message as it is, as a file."""
    data = await _whole(call)
    name = letters.heading(data).subject[:60] or "message"
    return Content(data, "message/rfc822", f"{name}.eml", DOWNLOAD_POLICY)


async def download_part(call: Call) -> Answer:
    """A part of a message, as a file."""
    data, wanted = await _whole(call), call.words["number"]

    def take() -> tuple[bytes, str]:
        for number, part in letters.parts(letters.parsed(data)):
            if str(number) == wanted:
                return letters.content(part), letters.name_of(part, number)
        raise Problem("The message has no such part.", 404)

    try:
        octets, name = await call.backend.threads.run(take)
    except letters.TooStrange as problem:
        raise Problem("{reason}", reason=problem) from problem
    # Never the type that a stranger chose for it: a download is a download.
    return Content(octets, "application/octet-stream", name, DOWNLOAD_POLICY)


async def ask(call: Call) -> Answer:
    """Whether the message is to be deleted."""
    mailbox = _mailbox(call)
    try:
        header = await mailbox.header(*await mailbox.find(call.words["id"]))
    except MessageVanished:
        raise _gone() from None
    return Page("delete-message.html", {"id": call.words["id"], "kept_days": kept_days(call),
                                        "heading": letters.heading(header)})


async def delete(call: Call) -> Answer:
    """Delete it."""
    try:
        await _mailbox(call).delete(call.words["id"])
    except MaildropInUse:
        raise Problem("A mail program is fetching from this mailbox at this moment, so that "
                      "nothing can be deleted.  Try again in a minute.", 409) from None
    except MessageVanished:
        raise _gone() from None
    _log.info("{id} deleted user={user} unique_id={unique_id} client={client}",
              id=message_of(call.words["id"]), unique_id=call.words["id"], user=call.user.name,
              client=call.client)
    return Redirect("/mailbox", "deleted")
