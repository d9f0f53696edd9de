"""The connections that there are now, and what is said on some of them; for administrators.

Every process of the service is asked (:mod:`mailsvc.live`), so that each worker shows the same.
What is watched is a page that is written while it goes on, as that of a message that is sent.
Messages are never shown here, only their size.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import AsyncIterator
from typing import Any

from twisted.internet.defer import DeferredQueue
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from mailsvc.console.call import Answer, Call, Page, Problem, Redirect, Stream
from mailsvc.live import Follower, sessions
from mailsvc.live import end as end_session
from mailsvc.localsocket import NoService
from mailsvc.watching import Watch

_log = Logger("mailsvc.console")

#: Most connections of a page, and most lines and minutes of a watch.
MOST, _LINES, _MINUTES = 500, 5000, 60

#: By what connections are chosen.
CHOICES = {"address": "Client's address", "account": "Account that logs in",
           "recipient": "Recipient of mail"}

#: Why a watch is over, as :mod:`mailsvc.live` has it, in the words of the pages.
ENDINGS = {
    "time is up": "The time is up.",
    "the service is stopping": "The service is stopping.",
    "no service runs any more": "The service does not answer any more.",
    "enough": "So many lines are enough for a page; begin anew to see more.",
}


async def show(call: Call) -> Answer:
    """All connections, or those of a filter; and the form to watch some."""
    try:
        found = await call.backend.threads.run(sessions, call.backend.data)
    except NoService as problem:
        return Page("problem.html", {"problem": str(problem)}, 503)
    wanted = call.query.text("filter").strip()
    meant = chosen(found, wanted)
    return Page("sessions.html", {
        "sessions": meant[:MOST], "count": len(meant), "most": MOST, "filter": wanted,
        "now": time.time(), "choices": CHOICES, "minutes": _MINUTES,
        "by": call.query.text("by") or "address", "value": call.query.text("value")})


def chosen(found: list[dict[str, Any]], wanted: str) -> list[dict[str, Any]]:
    """Those of the connections *found* in which *wanted* stands; for the API, too."""
    return [each for each in found if any(
        wanted.lower() in str(each[key]).lower()
        for key in ("id", "protocol", "client", "login", "state", "listener"))]


async def end(call: Call) -> Answer:
    """End one, after what is under way."""
    id = call.form["id"]
    try:
        ended = await call.backend.threads.run(end_session, call.backend.data, id)
    except NoService as problem:
        return Page("problem.html", {"problem": str(problem)}, 503)
    if not ended:
        raise Problem("There is no such connection any more.", 404)
    _log.info("session {connection} ended user={user} client={client}", connection=id,
              user=call.user.name, client=call.client)
    return Redirect("/sessions", "session-ended")


async def watch(call: Call) -> Answer:
    """Show what is said, until time is up or the reader leaves."""
    by, value, protocol = call.form["by"], call.form.text("value").strip(), call.form["protocol"]
    minutes = call.form["minutes"]
    if by not in CHOICES or not value:
        raise Problem("Say whose connections are to be watched.")
    if not (minutes.isascii() and minutes.isdigit() and 0 < int(minutes[:5]) <= _MINUTES):
        raise Problem("Between 1 and {most} minutes can be watched.", most=_MINUTES)
    whom: dict[str, Any] = {by: value, "protocol": protocol}
    try:
        Watch(lambda id, mark, line: None, **whom)
    except ValueError as problem:
        raise Problem("{reason}", reason=problem) from problem
    watched = _Watched(call, whom, 60 * int(minutes))
    return Stream(Page("watched.html", {"by": CHOICES[by], "value": value,
                                        "minutes": int(minutes)}), watched.pieces(), watched)


@implementer(IPushProducer)
class _Watched:
    """A watch as a page shows it: what the browser does not take is left out."""

    def __init__(self, call: Call, chosen: dict[str, Any], seconds: float) -> None:
        self._call = call
        self._pieces: DeferredQueue[Page | None] = DeferredQueue()
        self._full = False
        self._dropped = self._lines = 0
        self._follower = Follower(call.backend.data, chosen, seconds, self._heard,
                                  call.backend.reactor, by=call.user.name)

    async def pieces(self) -> AsyncIterator[Page]:
        """The lines, as they come."""
        self._follower.over.addCallbacks(self._over, self._failed)
        try:
            self._follower.start()
        except NoService as problem:
            self._follower.fail(problem)
        while (piece := await self._pieces.get()) is not None:
            yield piece

    def _heard(self, told: dict[str, Any]) -> None:
        if "mark" not in told:
            return
        if self._full:
            self._dropped += 1
            return
        self._say(told["mark"], told["line"], told["id"], told["at"])
        if self._lines >= _LINES:
            self._follower.stop("enough")

    def _say(self, mark: str, line: str, id: str = "", at: float | None = None) -> None:
        self._lines += 1
        kind = {"C": "client", "S": "server"}.get(mark, "note")
        if kind == "server" and (line[:1] in "45" or line.startswith("-ERR")):
            kind = "refused"
        when = datetime.datetime.fromtimestamp(at if at is not None else time.time())
        self._pieces.put(Page("_watched.html", {
            "kind": kind, "line": line, "id": id, "when": when.strftime("%H:%M:%S")}))

    def _over(self, why: str) -> None:
        self._say("*", self._call.translate(ENDINGS.get(why, why)))
        self._pieces.put(None)

    def _failed(self, failure: Failure) -> None:
        failure.trap(NoService)
        self._over(failure.getErrorMessage())

    def pauseProducing(self) -> None:
        """The browser does not take what was written."""
        self._full = True

    def resumeProducing(self) -> None:
        """It does again."""
        self._full = False
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self._say("*", self._call.translate(
                "{count} lines left out: they came faster than they were taken.", count=dropped))

    def stopProducing(self) -> None:
        """The browser is gone."""
        self._full = True
        self._follower.stop("left")
