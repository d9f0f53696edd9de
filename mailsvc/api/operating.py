"""What administrators look after: the queue, traces, bans, figures."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import islice
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mailsvc import plain
from mailsvc.api.call import Answer, Call, part
from mailsvc.api.problems import Problem
from mailsvc.bans import MANUAL, Ban, BanTable, Network, parse_network
from mailsvc.console.configuration import without_secrets
from mailsvc.ledger import lift
from mailsvc.localsocket import NoService
from mailsvc.monitor import ask
from mailsvc.queue import control
from mailsvc.queue.filter import parse
from mailsvc.queue.message import QueuedMessage, Unreadable
from mailsvc.queue.spool import Spool
from mailsvc.state import State
from mailsvc.tracing.archive import Reader
from mailsvc.tracing.search import OwnReader, stories

_log = Logger("mailsvc.api")

Result = TypeVar("Result")

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
    return await _stories(call, lambda: Reader(call.backend.data / "trace"), call.query["of"])


async def trace_own(call: Call) -> Answer:
    """Tell what happened to messages, as far as it concerns the account."""
    name = (await call.account()).name
    return await _stories(call, lambda: OwnReader(call.backend.data / "trace", name),
                          call.query["of"] or name)


async def _stories(call: Call, opened: Callable[[], Reader], of: str) -> Answer:
    query = call.query
    since = time.time() - query["seconds"] if query["seconds"] else 0.0

    def read() -> list[plain.Plain]:
        with opened() as reader:
            return list(map(plain.story, stories(reader, of, since, query["limit"])))

    return Answer({"items": await call.backend.threads.run(read)})


# ---- bans ----


def _in_state(call: Call, act: Callable[[State], Result]) -> Deferred[Result]:
    def do() -> Result:
        with closing(State(call.backend.data / "state.sqlite")) as state:
            return act(state)

    return call.backend.threads.run(do)


def _network(call: Call) -> Network:
    try:
        return parse_network(call.words["network"])
    except ValueError as error:
        raise Problem(404, str(error)) from None


async def list_bans(call: Call) -> Answer:
    """List the networks that may not connect now, the newest ban first."""
    return await _in_state(call, lambda state: part(
        call, BanTable(state).active(time.time()), plain.ban))


async def put_ban(call: Call) -> Answer:
    """Ban a network, or change how long it is banned, from now on."""
    network, caller, now = _network(call), call.caller, time.time()
    seconds, reason = call.value.get("seconds", 3600), call.value.get("reason", "")
    if not reason.isprintable():
        raise Problem(409, "The reason holds control characters; leave them out.")
    if caller.client and ipaddress.ip_address(caller.client) in network:
        raise Problem(409, "You ask from that network yourself, and would be kept out; ask from "
                      "elsewhere, or use `mailsvc ban add`.")

    def put(state: State) -> tuple[bool, Ban]:
        table = BanTable(state)
        with state.transaction():
            new = table.binding(network, now) is None
            table.put(Ban(network, now, now + seconds, origin=MANUAL, reason=reason))
            made = table.binding(network, now)
        assert made is not None
        return new, made

    new, made = await _in_state(call, put)
    _log.info("network banned network={network} seconds={seconds} user={user} client={client}",
              network=str(network), seconds=seconds, user=caller.name, client=caller.client)
    return Answer(plain.ban(made), 201 if new else 200)


async def lift_ban(call: Call) -> Answer:
    """Lift the ban of a network and of those inside it, and forgive what led to them."""
    network, now = _network(call), time.time()
    lifted = await _in_state(call, lambda state: lift(state, network, now))
    if not lifted:
        around = await _in_state(call, lambda state: BanTable(state).around(network, now))
        if around is None:
            raise Problem(404, "That network is not banned.")
        raise Problem(409, f"It is banned only as a part of {around.network}; lift that.")
    return _lifted(call, lifted)


async def lift_bans(call: Call) -> Answer:
    """Lift all bans, and forgive what led to them."""
    return _lifted(call, await _in_state(call, lambda state: lift(state, None, time.time())))


def _lifted(call: Call, bans: list[Ban]) -> Answer:
    networks = [str(each.network) for each in bans]
    _log.info("bans lifted count={count} networks={networks} user={user} client={client}",
              count=len(networks), networks=" ".join(networks[:20]), user=call.caller.name,
              client=call.caller.client)
    return Answer({"lifted": networks})


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
