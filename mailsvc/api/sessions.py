"""The connections that there are now: those of mail, over all processes."""

from __future__ import annotations

from twisted.logger import Logger

from mailsvc import live, plain
from mailsvc.api.call import NOTHING, Answer, Call, part
from mailsvc.api.problems import Problem
from mailsvc.console.live import chosen
from mailsvc.localsocket import NoService

_log = Logger("mailsvc.api")


async def list_all(call: Call) -> Answer:
    """List the connections of SMTP, LMTP and POP3 that there are now, the oldest first."""
    try:
        found = await call.backend.threads.run(live.sessions, call.backend.data)
    except NoService as problem:
        raise Problem(503, str(problem)) from None
    return part(call, chosen(found, call.query["q"]), plain.session)


async def end(call: Call) -> Answer:
    """End a connection: after the transaction that is under way, or at once."""
    backend, id, now = call.backend, call.words["session"].upper(), call.query["when"] == "now"
    known = id.isascii() and id.isalnum() and len(id) <= 64
    try:
        ended = known and await backend.threads.run(lambda: live.end(backend.data, id, now=now))
    except NoService as problem:
        raise Problem(503, str(problem)) from None
    if not ended:
        raise Problem(404, "There is no such connection any more.")
    _log.info("session {connection} ended user={user} client={client}", connection=id,
              user=call.caller.name, client=call.caller.client)
    return NOTHING
