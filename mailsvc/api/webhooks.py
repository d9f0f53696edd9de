"""Webhooks: who is told of events, what waits to be told, and a trial.

Of a URL no more is shown than where it leads: the rest may be what lets one in there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from mailsvc import plain
from mailsvc.api.call import Answer, Call, paged, part
from mailsvc.api.problems import Problem
from mailsvc.trust import Untrusted
from mailsvc.webhooks.events import shown
from mailsvc.webhooks.posting import Poster, tried
from mailsvc.webhooks.signing import SecretUnusable
from mailsvc.webhooks.spool import NAME, Spool

_log = Logger("mailsvc.api")

Result = TypeVar("Result")


def _in_spool(call: Call, read: Callable[[Spool], Result]) -> Deferred[Result | None]:
    """What *read* finds, in a thread; None when no event has waited yet."""
    path = call.backend.data / NAME

    def do() -> Result | None:
        if not path.exists():
            return None
        with closing(Spool(path, create=False)) as spool:
            return read(spool)

    return call.backend.threads.run(do)


async def list_receivers(call: Call) -> Answer:
    """List the URLs that are told of events, and how many events wait for each."""
    urls = call.backend.settings.webhooks.urls
    found = await _in_spool(call, lambda spool: list(map(spool.waiting_for, urls)))
    return part(call, [plain.receiver(shown(url), *state) for url, state in zip(
        urls, found or [(0, None, "")] * len(urls), strict=True)])


async def list_waiting(call: Call) -> Answer:
    """List the events that wait to be told, the oldest first."""
    offset, limit = call.query["offset"], call.query["limit"]
    found, total = await _in_spool(
        call, lambda spool: (spool.waiting(limit, offset), spool.count())) or ([], 0)
    return paged(call, [{**plain.waiting(each), "url": shown(each.url)} for each in found], total)


async def test(call: Call) -> Answer:
    """Send a test event to each URL, at once and once, and tell what it answers."""
    backend = call.backend
    settings = backend.settings.webhooks
    if not settings.urls:
        raise Problem(409, "webhooks.urls names none; set it in the configuration, and reload.")
    try:
        poster = await backend.threads.run(Poster, settings, backend.reactor)
    except SecretUnusable as problem:
        raise Problem(409, f"webhooks.secret: {problem}") from None
    except Untrusted as problem:
        raise Problem(409, f"webhooks.authorities: {problem}") from None
    _log.info("webhooks are tested user={user} client={client}", user=call.caller.name,
              client=call.caller.client)
    return Answer({"items": [{**each._asdict(), "url": shown(each.url)} for each in await tried(
        poster, settings.urls, "the API of mailsvc")]})
