"""Sending a message from a page, with the dialogue as it goes on.

The answer to the form is a page that is written while the server answers: each line appears when
it was said, without a script.  A message goes to the service itself, and there by the rules of any
submission; an administrator may name another server instead (:mod:`mailsvc.console.abroad`).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from email.utils import getaddresses
from typing import Any

from twisted.internet.defer import Deferred, DeferredQueue
from twisted.logger import Logger

from mailsvc.client import (
    TLS,
    UNVERIFIED,
    BadArgument,
    Client,
    Outcome,
    Said,
    SendingFailure,
    Trust,
)
from mailsvc.composing import Attachment, BadPart, compose
from mailsvc.console import abroad, recipes
from mailsvc.console.call import ADMINISTRATOR, Answer, Call, Page, Problem, Stream
from mailsvc.console.inside import PATIENCE, submit
from mailsvc.console.meanings import meaning
from mailsvc.tracing.events import is_id

_log = Logger("mailsvc.console")

#: Most recipients of one message, and most messages that a process sends at once.
RECIPIENTS, _AT_ONCE = 100, 20

#: How TLS may be used with another server.
TLS_CHOICES: dict[TLS, str] = {
    "opportunistic": "if it is offered (STARTTLS)", "starttls": "required (STARTTLS)",
    "implicit": "from the beginning", "no": "not at all"}

_under_way = 0


@dataclass(frozen=True, slots=True)
class Letter:
    """What was filled in.

    :ivar host: the other server, or "" for the service here.
    """

    sender: str
    recipients: tuple[str, ...]
    to: str
    subject: str
    body: str
    attachments: tuple[Attachment, ...]
    host: str = ""
    port: int = 0
    tls: TLS = "no"


async def show(call: Call) -> Answer:
    """The form."""
    return _form(call)


def _form(call: Call, wrong: str = "", status: int = 200) -> Page:
    if not call.user.sends:
        raise Problem("This account only receives mail.", 403)
    form, query = call.form, call.query
    filled = {name: form.text(name) or query.text(name)
              for name in ("to", "subject", "body", "server")}
    filled["from"] = form["from"] or call.user.name
    filled["tls"] = form["tls"] or "opportunistic"
    return Page("send.html", {"filled": filled, "wrong": wrong, "tls_choices": TLS_CHOICES,
                              "most": call.backend.settings.console.message_octets}, status)


def _filled_in(call: Call) -> Letter:
    """What is to be sent; raises Problem."""
    form = call.form
    to = re.sub(r"[\r\n;]+", ",", form.text("to"))
    recipients = tuple(dict.fromkeys(
        address for _, address in getaddresses([to]) if address))
    if not recipients:
        raise Problem("Name a recipient, such as bob@example.org.")
    if len(recipients) > RECIPIENTS:
        raise Problem("Name at most {most} recipients.", most=RECIPIENTS)
    attachments = tuple(
        Attachment("".join(filter(str.isprintable, each.name)) or "attachment", each.content)
        for each in form.files.get("attachment", []))
    host, port, tls = form["server"], 0, form["tls"] or "opportunistic"
    if host:
        if call.role != ADMINISTRATOR:
            raise Problem("Only administrators may name another server.", 403)
        if tls not in TLS_CHOICES:
            raise Problem("Choose how TLS is used.")
        host, port = abroad.place(host, 465 if tls == "implicit" else 25)
    sender = form["from"]
    if not host and not sender:
        sender = call.user.name
    return Letter(sender, recipients, ", ".join(recipients), form["subject"], form.text("body"),
                  attachments, host, port, tls)  # type: ignore[arg-type]


async def send(call: Call) -> Answer:
    """Send it, and show how that goes."""
    global _under_way  # noqa: PLW0603 - of the process, as what it bounds is
    if not call.user.sends:
        raise Problem("This account only receives mail.", 403)
    try:
        letter = _filled_in(call)
        way = None if not letter.host else await abroad.endpoint(
            letter.host, letter.port, call.backend.settings.console, call.backend.reactor)
        message = await call.backend.threads.run(_composed, letter)
    except Problem as problem:
        if problem.status == 403:
            raise
        return _form(call, call.translate(problem.text, **problem.values), 400)
    if _under_way >= _AT_ONCE:
        raise Problem("The service is busy; try again in a moment.", 503)
    sending = _Sending(call, letter, message, way)
    _under_way += 1
    Deferred.fromCoroutine(sending.run()).addBoth(_over)
    return Stream(Page("sent.html", {"letter": letter, "octets": len(message)}), sending.pieces())


def _over(_: object) -> None:
    global _under_way  # noqa: PLW0603
    _under_way -= 1


def _composed(letter: Letter) -> bytes:
    ascii_only = all(map(str.isascii, [letter.sender, *letter.recipients]))
    try:
        return compose(sender=letter.sender, to=letter.recipients, subject=letter.subject,
                       body=letter.body, attachments=letter.attachments, utf8=not ascii_only)
    except BadPart as problem:
        raise Problem("{reason}", reason=problem) from problem


class _Sending:
    """One message on its way, and what is told of it meanwhile."""

    def __init__(self, call: Call, letter: Letter, message: bytes,
                 way: abroad.Abroad | None) -> None:
        self._call = call
        self._letter = letter
        self._message = message
        self._way = way
        self._told: DeferredQueue[Page | None] = DeferredQueue()
        self._asked = 0.0

    async def pieces(self) -> AsyncIterator[Page]:
        """What is to be shown, as it comes."""
        while (piece := await self._told.get()) is not None:
            yield piece

    async def run(self) -> None:
        """Send it."""
        outcomes: tuple[Outcome, ...] = ()
        failure: SendingFailure | str | None = None
        try:
            outcomes = await self._send()
        except SendingFailure as problem:
            failure = problem
        except BadArgument as problem:
            failure = str(problem)
        except Exception:
            _log.failure("a message could not be sent from a page")
            failure = self._call.translate("By a fault of ours; see the log of the service.")
        self._told.put(Page("_outcome.html", {
            "outcomes": outcomes, "failure": failure, "meaning": meaning,
            "id": self._id(outcomes),
            "swaks": recipes.swaks(self._server(), self._letter),
            "python": recipes.python(self._server(), self._letter)}))
        self._told.put(None)

    def _id(self, outcomes: Iterable[Outcome]) -> str:
        """What the message is called here; "" for one that is not here."""
        replies = [each.reply for each in outcomes if each.accepted and each.reply is not None]
        words = [word for reply in replies for line in reply.lines for word in line.split()]
        return next(filter(is_id, words), "") if self._way is None else ""

    def _server(self) -> recipes.Server:
        letter, settings = self._letter, self._call.backend.settings
        if letter.host:
            return recipes.Server(letter.host, letter.port, letter.tls, "")
        return recipes.own_server(settings, self._call.user.name)

    async def _send(self) -> tuple[Outcome, ...]:
        letter, backend = self._letter, self._call.backend
        if self._way is None:
            return await submit(backend, self._call.user.name, self._call.client, letter.sender,
                                letter.recipients, self._message, transcript=self._heard)
        client = await Client.dial(
            letter.host, letter.port, endpoint=self._way, tls=letter.tls,
            trust=UNVERIFIED if letter.tls == "opportunistic" else Trust(),
            hello=backend.settings.service.hostname, timeouts=PATIENCE, transcript=self._heard,
            reactor=backend.reactor)
        try:
            if client.tls_failure is not None:
                self._note(client.tls_failure.text)
            if client.secured is not None:
                secured = client.secured
                self._note(f"TLS: {secured.version}, {secured.cipher}"
                           + (f", {secured.flaw}" if secured.flaw else ""))
            outcomes = await client.send(letter.sender, letter.recipients, self._message)
            await client.quit()
        finally:
            client.close()
        return outcomes

    def _note(self, text: str) -> None:
        self._told.put(Page("_line.html", {"kind": "note", "line": text, "seconds": None,
                                           "took": None, "meaning": "", "tls": False}))

    def _heard(self, said: Said) -> None:
        values: dict[str, Any] = {"kind": "client", "line": said.line, "seconds": said.seconds,
                                  "took": None, "meaning": "", "tls": said.tls}
        if said.sent:
            self._asked = said.seconds
        else:
            values["kind"] = "server" if said.line[:1] in "23" else "refused"
            if said.line[3:4] != "-":
                values.update(meaning=meaning(said.line), took=said.seconds - self._asked)
        self._told.put(Page("_line.html", values))
