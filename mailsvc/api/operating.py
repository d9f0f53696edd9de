"""What administrators look after: the queue, traces, bans, figures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice

from twisted.logger import Logger

from mailsvc import plain
from mailsvc.api.call import Answer, Call, part
from mailsvc.api.problems import Problem
from mailsvc.bans import BanTable
from mailsvc.console.configuration import without_secrets
from mailsvc.localsocket import NoService
from mailsvc.monitor import ask
from mailsvc.queue import control
from mailsvc.queue.filter import parse
from mailsvc.queue.message import QueuedMessage, Unreadable
from mailsvc.queue.spool import Spool
from mailsvc.state import State
from mailsvc.tracing.archive import Reader
from mailsvc.tracing.search import stories

_log = Logger("mailsvc.api")

#: Most messages of the queue that are looked at: one of millions is for the command, which prints
#: as it reads.
_MOST = 100_000


# ---- queue ----


def _plain(message: QueuedMessage) -> plain.Plain:
    return {**plain.queued(message), "route": without_secrets(message.route)}


async def list_queue(call: Call) -> Answer:
    """List the mail that waits to leave, the oldest first."""
    def read() -> Answer:
        meant, now, spool = parse(call.query["filter"].split()), time.time(), _spool(call)
        messages = [] if not spool.root.exists() else [
            each for each in islice(spool.messages(), _MOST) if meant(each, now)]
        return part(call, messages, _plain)

    return await call.backend.threads.run(read)


def _spool(call: Call) -> Spool:
    return Spool(call.backend.data / "queue")


async def show_queued(call: Call) -> Answer:
    """Tell of one message, and what became of each recipient."""
    def read() -> QueuedMessage:
        with _spool(call).open(_id(call)) as (message, stream):
            here = stream.tell()
            message.size = stream.seek(0, 2) - here
            return message

    try:
        return Answer(_plain(await call.backend.threads.run(read)))
    except FileNotFoundError:
        raise _not_there() from None
    except Unreadable as error:
        raise Problem(409, f"It cannot be read: {error}") from None


def _id(call: Call) -> str:
    """The id of a message as the path has it; it becomes the name of a file."""
    id = call.words["id"].upper()
    if not (id.isascii() and id.isalnum()) or len(id) > 64:
        raise _not_there()
    return id


def _not_there() -> Problem:
    return Problem(404, "There is no such message in the queue.")


async def drop_queued(call: Call) -> Answer:
    """Remove a message from the queue.  Its sender is not told."""
    changed = await _act(call, "drop", [f"id:{_id(call)}"])
    if not (changed["ids"] or changed["busy"]):
        raise _not_there()
    return Answer(changed)


async def act(call: Call) -> Answer:
    """Hold, release, retry, reroute or drop messages: all that the filter means."""
    value = call.value
    if (value["action"] == "reroute") != ("route" in value):
        raise Problem(409, "A route belongs to the action reroute, and to no other.")
    return Answer(await _act(call, value["action"], value["filter"].split(),
                             value.get("route", "")))


async def _act(call: Call, action: str, words: Sequence[str], route: str = "") -> plain.Plain:
    root = _spool(call).root

    def do() -> tuple[list[str], list[str]]:
        return control.request(root, action, list(words), route, time.time())

    try:
        ids, busy = await call.backend.threads.run(do)
    except ValueError as error:
        raise Problem(409, str(error)) from None
    except OSError as error:
        raise Problem(503, f"The queue cannot be changed now: {error.strerror or error}") from None
    _log.info("queue {action} messages={messages} user={user} client={client}", action=action,
              messages=len(ids), user=call.caller.name, client=call.caller.client)
    return {"ids": ids, "busy": busy}


# ---- traces ----


async def trace(call: Call) -> Answer:
    """Tell what happened to messages, those that came last first."""
    query = call.query
    since = time.time() - query["seconds"] if query["seconds"] else 0.0

    def read() -> list[plain.Plain]:
        with Reader(call.backend.data / "trace") as reader:
            return list(map(plain.story, stories(reader, query["of"], since, query["limit"])))

    return Answer({"items": await call.backend.threads.run(read)})


# ---- bans ----


async def list_bans(call: Call) -> Answer:
    """List the networks that may not connect now, the newest ban first."""
    def read() -> Answer:
        state = State(call.backend.data / "state.sqlite")
        try:
            return part(call, BanTable(state).active(time.time()), plain.ban)
        finally:
            state.close()

    return await call.backend.threads.run(read)


# ---- figures ----


async def health(call: Call) -> Answer:
    """Tell whether the service can be given work."""
    told = await _told(call)
    return Answer({"ready": told["ready"], "unready": told["unready"]})


async def figures(call: Call) -> Answer:
    """Tell what the service has counted since it was started, over all its processes."""
    return Answer(await _told(call))


async def _told(call: Call) -> plain.Plain:
    try:
        return await call.backend.threads.run(ask, call.backend.data)
    except NoService as problem:
        raise Problem(503, str(problem)) from None
