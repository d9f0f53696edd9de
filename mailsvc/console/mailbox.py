"""One's own mailbox: a list, the messages to read, their sources and parts, and deletion.

Reading takes no lock and changes nothing: a POP3 session that is open sees nothing of it, and
whoever reads sees the messages as they are at that moment.  Deletion is POP3's: it opens the
maildrop, with its lock, removes the message and closes it.  While another session has it, nothing
is deleted.
"""

from __future__ import annotations

import re
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import implementer

from mailsvc.console import letters
from mailsvc.console.call import Answer, Call, Content, Page, Problem, Redirect
from mailsvc.console.deleted import kept_days
from mailsvc.errors import MaildropInUse, MessageVanished
from mailsvc.interfaces import IView
from mailsvc.tracing.events import message_of

_log = Logger("mailsvc.console")

#: How many messages stand on a page.
PAGE = 50
#: How many headers are read in one turn of the reactor.
_TURN = 5
#: Most octets of a source that are shown on a page; the rest can be downloaded.
SOURCE_OCTETS = 262_144

#: The frame in which HTML of others stands: an origin of its own, that runs and fetches nothing.
#: It may be shown by our own pages, and links in it open elsewhere.
FRAME_POLICY = ("default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; "
                "base-uri 'none'; frame-ancestors 'self'; "
                "sandbox allow-popups allow-popups-to-escape-sandbox")
#: What a download may do, should a browser show it after all.
DOWNLOAD_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"


@implementer(IConsumer)
class _Gathered:
    """Gathers a message, one block in each turn of the reactor.

    :param most: octets that are kept of it.
    """

    def __init__(self, most: int, clock: IReactorTime) -> None:
        self.data = bytearray()
        self._most = most
        self._clock = clock
        self._producer: Any = None

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self._producer = producer
        self._go_on()

    def unregisterProducer(self) -> None:
        self._producer = None

    def write(self, data: bytes) -> None:
        self.data += data[:max(0, self._most - len(self.data))]
        if self._producer is not None:
            self._clock.callLater(0, self._go_on)

    def _go_on(self) -> None:
        if self._producer is not None:
            self._producer.resumeProducing()


async def _view(call: Call) -> IView:
    if not call.user.receives:
        raise Problem("This account only sends mail.", 403)
    return await call.backend.store.view(call.user)


async def _found(call: Call) -> tuple[IView, int]:
    """The mailbox, and the number in it of the message that is meant."""
    view, wanted = await _view(call), call.words["id"].encode()
    try:
        return view, await call.backend.threads.run(_number_of, view, wanted)
    except ValueError:
        raise Problem("The message is gone: it was deleted, here or by a mail program.",
                      404) from None


def _number_of(view: IView, wanted: bytes) -> int:
    """The number of the message with that unique-id; raises ValueError.  It looks at all."""
    uidls: list[bytes] = view.uidls(1, len(view.sizes) + 1)
    return uidls.index(wanted) + 1


async def _whole(call: Call) -> bytes:
    view, number = await _found(call)
    if view.sizes[number - 1] > letters.MESSAGE_OCTETS:
        raise Problem("The message is too large to be shown here; fetch it by POP3.", 413)
    try:
        gathered = _Gathered(letters.MESSAGE_OCTETS, call.backend.reactor)
        await view.read(number, gathered)
    except MessageVanished:
        raise Problem("The message is gone: it was deleted, here or by a mail program.",
                      404) from None
    return bytes(gathered.data)


async def show_list(call: Call) -> Answer:
    """The messages, the newest first."""
    view = await _view(call)
    count, asked = len(view.sizes), call.query["page"]
    last = max(1, -(-count // PAGE))
    page = min(last, max(1, int(asked))) if re.fullmatch("[0-9]{1,9}", asked) else 1
    newest = count - PAGE * (page - 1)
    numbers = range(newest, max(0, newest - PAGE), -1)
    headers = []
    for number in numbers:
        headers.append(await _header(call, view, number))
        if len(headers) % _TURN == 0:
            await deferLater(call.backend.reactor, 0)

    def read() -> list[letters.Heading]:
        return [letters.heading(each) for each in headers]

    headings = await call.backend.threads.run(read)
    return Page("mailbox.html", {
        "rows": [(view.uidl(number).decode(), view.sizes[number - 1], each)
                 for number, each in zip(numbers, headings, strict=True)],
        "count": count, "octets": view.octets, "page": page, "last": last,
        "quota": call.user.quota_octets, "kept_days": kept_days(call)})


def _header(call: Call, view: IView, number: int) -> Deferred[bytes]:
    """A message's header; that of one that has gone meanwhile is empty."""
    gathered = _Gathered(65_536, call.backend.reactor)
    read: Deferred[Any] = view.read(number, gathered, 0)
    read.addErrback(lambda failure: failure.trap(MessageVanished))
    return read.addCallback(lambda _: bytes(gathered.data))


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
    view, number = await _found(call)
    header = await _header(call, view, number)
    return Page("delete-message.html", {"id": call.words["id"], "kept_days": kept_days(call),
                                        "heading": letters.heading(header)})


async def delete(call: Call) -> Answer:
    """Delete it."""
    if not call.user.receives:
        raise Problem("This account only sends mail.", 403)
    wanted = call.words["id"].encode()
    try:
        maildrop = await call.backend.store.open_maildrop(call.user)
    except MaildropInUse:
        raise Problem("A mail program is fetching from this mailbox at this moment, so that "
                      "nothing can be deleted.  Try again in a minute.", 409) from None
    try:
        number = await call.backend.threads.run(_number_of, maildrop, wanted)
        await maildrop.update({number})
    except ValueError:
        raise Problem("The message is gone: it was deleted, here or by a mail program.",
                      404) from None
    finally:
        maildrop.release()
    _log.info("{id} deleted user={user} unique_id={unique_id} client={client}",
              id=message_of(wanted), unique_id=call.words["id"], user=call.user.name,
              client=call.client)
    return Redirect("/mailbox", "deleted")
