"""The mail that waits to leave, for administrators: the filter and the actions of
``mailsvc queue``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

from twisted.logger import Logger

from mailsvc.console.call import Answer, Call, Page, Problem
from mailsvc.console.configuration import without_secrets
from mailsvc.queue import control
from mailsvc.queue.filter import ACTIONS, FilterError, parse, status, summary
from mailsvc.queue.message import QueuedMessage, Unreadable
from mailsvc.queue.routes import parse_route
from mailsvc.queue.spool import Spool

_log = Logger("mailsvc.console")

#: Most messages that are shown.
MOST = 200
#: Most octets of a message's text that are shown.
TEXT_OCTETS = 65_536


async def show_list(call: Call) -> Answer:
    """What waits, the oldest first, as far as the filter means it."""
    return await _list(call, call.query["filter"])


async def _list(call: Call, words: str, done: dict[str, Any] | None = None) -> Page:
    wrong, messages, now = "", [], time.time()
    try:
        messages = await call.backend.threads.run(_messages, call, words, now)
    except FilterError as error:
        wrong = str(error)
    return Page("queue.html", {
        "filter": words, "wrong": wrong, "messages": messages[:MOST], "count": len(messages),
        "most": MOST, "summary": summary(messages), "now": now, "status": status,
        "actions": ACTIONS, "done": done}, 400 if wrong else 200)


def _messages(call: Call, words: str, now: float) -> list[QueuedMessage]:
    meant, spool = parse(words.split()), Spool(call.backend.data / "queue")
    if not spool.root.exists():
        return []
    # A queue of millions is for the command, which prints as it reads.
    return [each for each in islice(spool.messages(), 100_000) if meant(each, now)]


async def act(call: Call) -> Answer:
    """Hold, release, retry, reroute or drop: the messages that are ticked, or all of the filter."""
    form = call.form
    action, words, route = form["action"], form["filter"], form["route"]
    ticked = form.fields.get("id", [])
    if action not in ACTIONS:
        raise Problem("Choose what is to be done.")
    if action == "reroute" and not route:
        raise Problem("Say by which host the messages are to be sent.")
    if route:
        try:
            parse_route(route)
        except ValueError as error:
            raise Problem("{route}: expected {expected}", route=without_secrets(route),
                          expected=error) from error
    if not ticked and form["which"] != "all":
        raise Problem("Tick the messages that are meant.")
    wanted: Sequence[list[str]] = [[f"id:{id}"] for id in ticked[:MOST]] or [words.split()]

    def do() -> tuple[list[str], list[str]]:
        ids: list[str] = []
        busy: list[str] = []
        for filter in wanted:
            changed, sending = control.request(
                call.backend.data / "queue", action, filter, route, time.time())
            ids += changed
            busy += sending
        return ids, busy

    try:
        ids, busy = await call.backend.threads.run(do)
    except ValueError as error:
        raise Problem("{reason}", reason=error) from error
    except OSError as error:
        raise Problem("The queue cannot be changed now: {reason}", 503,
                      reason=error.strerror or error) from error
    _log.info("queue {action} messages={messages} user={user} client={client}", action=action,
              messages=len(ids), user=call.user.name, client=call.client)
    return await _list(call, words, {"action": action, "count": len(ids), "busy": busy})


async def show(call: Call) -> Answer:
    """One message: its envelope, its recipients, and the beginning of its text."""
    id = call.words["id"].upper()
    if not (id.isascii() and id.isalnum()):
        raise Problem("There is no such message in the queue.", 404)

    def read() -> tuple[QueuedMessage, bytes]:
        with Spool(call.backend.data / "queue").open(id) as (message, stream):
            here = stream.tell()
            message.size = stream.seek(0, 2) - here
            stream.seek(here)
            return message, stream.read(TEXT_OCTETS)

    try:
        message, text = await call.backend.threads.run(read)
    except FileNotFoundError:
        raise Problem("There is no such message in the queue.", 404) from None
    except Unreadable as error:
        raise Problem("{reason}", reason=error) from error
    return Page("queued.html", {
        "message": message, "status": status(message), "route": without_secrets(message.route),
        "now": time.time(), "actions": ACTIONS,
        "text": text.decode("utf-8", "replace"), "cut": message.size > len(text)})
