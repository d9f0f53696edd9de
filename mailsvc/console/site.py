"""The console on HTTP: requests in, answers out, and what holds for all of them.

* Who may what is looked up in :mod:`mailsvc.console.routes` before a page has a say.  A method that
  changes something (POST) needs the token of a form that this session was shown, and must not come
  from another site (Fetch Metadata, where the browser tells).
* Every answer has a strict Content-Security-Policy: no script and no style but the files served
  here, nothing from elsewhere, no frame around it.  Cookies are HttpOnly and SameSite=Strict, and
  Secure under TLS.
* A body is taken apart as it arrives (:mod:`mailsvc.console.forms`).  Who is not logged in may send
  a small one, and what a process holds of all of them is bounded.

A bug is told as such, with its traceback in the log.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable
from io import BytesIO
from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request, datetimeToString

from mailsvc.connections import Connections
from mailsvc.console import texts
from mailsvc.console.call import (
    ROLES,
    Answer,
    Backend,
    Call,
    Content,
    Page,
    Problem,
    Redirect,
    Stream,
)
from mailsvc.console.channel import THROWN, Channel, Exchange, WebFactory
from mailsvc.console.forms import BadForm, Form, MultiPart, UrlEncoded
from mailsvc.console.pages import Pages
from mailsvc.console.routes import find
from mailsvc.console.sessions import Session, stranger
from mailsvc.errors import MailFailure, TemporaryFailure
from mailsvc.names import DirectoryError

_log = Logger("mailsvc.console")

#: Largest body of who is not logged in, and how much of bodies a process holds at once, octets.
_SMALL, _ALL = 65_536, 134_217_728

#: What pages may do.
POLICY = ("default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
          "connect-src 'self'; frame-src 'self'; form-action 'self'; frame-ancestors 'none'; "
          "base-uri 'none'")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}


class ConsoleFactory(WebFactory):
    """Serves the pages over *backend*.

    :param connections: how many browsers there may be.
    :param elsewhere: answers what is no page, by its path: the API.
    """

    def __init__(self, backend: Backend, connections: Connections,
                 elsewhere: Callable[[Request], Exchange | None]) -> None:
        super().__init__(_Request, connections, backend.reactor)
        self.backend = backend
        self.pages = Pages()
        self.elsewhere = elsewhere


class _Request(Request):
    """One request, from its header on."""

    channel: Channel
    _body: UrlEncoded | MultiPart | None = None
    _held = _thrown = 0
    _most = _SMALL
    #: What is wrong with it, found before it had come whole.
    _wrong: Problem | None = None
    _gone = False
    #: Who answers it instead.
    _exchange: Exchange | None = None
    #: What is told that the reader is gone.
    _flow: IPushProducer | None = None

    def __init__(self, channel: Channel, queued: object = None) -> None:
        super().__init__(channel)
        # The channel is gone when the request is over.
        self._console = cast(ConsoleFactory, channel.factory)

    def gotLength(self, length: int | None) -> None:
        self.content = BytesIO()
        self._exchange = self._console.elsewhere(self)
        if self._exchange is not None:
            self._exchange.begin(length)
            return
        # Under this name Twisted would take it apart as well.
        kinds = self.requestHeaders.getRawHeaders(b"content-type") or [b""]
        self.requestHeaders.removeHeader(b"content-type")
        if length == 0:
            return
        settings = self._console.backend.settings.console
        try:
            if self._find_session().account:
                # Attachments and the text around them.
                self._most = settings.message_octets + _SMALL
            self._body = (MultiPart(kinds[0]) if kinds[0].startswith(b"multipart/form-data")
                          else UrlEncoded())
        except BadForm as problem:
            self._wrong = Problem(str(problem))
        except TemporaryFailure as failure:
            self._wrong = Problem(failure.text, 503)
        if length is not None and length > self._most:
            self._too_large()

    def handleContentChunk(self, data: bytes) -> None:
        if self._exchange is not None:
            self._exchange.feed(data)
            return
        if self._wrong is not None or self._body is None:
            self._thrown += len(data)
            if self._thrown > THROWN:
                self.channel.abort()
            return
        factory = self._console
        self._held += len(data)
        factory.held += len(data)
        if self._held > self._most:
            self._too_large()
        elif factory.held > _ALL:
            self._wrong = Problem("The service is busy; try again in a moment.", 503)
        else:
            try:
                self._body.feed(data)
            except BadForm as problem:
                self._wrong = Problem(str(problem))
        if self._wrong is not None:
            self._let_go()

    def _too_large(self) -> None:
        self._wrong = Problem("That is too large: at most {octets} octets can be sent here.", 413,
                              octets=self._most - _SMALL if self._most > _SMALL else _SMALL)
        # What else comes is thrown away; and the connection with it.
        self.channel.persistent = False

    def _let_go(self) -> None:
        self._console.held -= self._held
        self._held, self._body = 0, None

    def connectionLost(self, reason: Failure) -> None:
        self._gone = True
        self._let_go()
        if self._exchange is not None:
            self._exchange.lost()
        if self._flow is not None:
            self._flow.stopProducing()
        super().connectionLost(reason)

    # ---- answering ----

    def process(self) -> None:
        if self._exchange is not None:
            self._exchange.end()
            return
        answered = Deferred.fromCoroutine(self._answer())
        answered.addErrback(self._bug)
        answered.addBoth(lambda _: self._let_go())

    def _bug(self, failure: Failure) -> None:
        _log.failure("a page could not be shown", failure)
        if self._gone:
            return
        if self.startedWriting:
            self.channel.abort()
        else:
            self._say(500, "This cannot be done now, by a fault of ours; see the log of the "
                      "service.")

    def _say(self, status: int, text: str) -> None:
        """Answer without a page."""
        self.setResponseCode(status)
        self._set_headers(POLICY)
        self.setHeader(b"content-type", b"text/plain; charset=utf-8")
        self.write(text.encode() + b"\n")
        self.finish()

    async def _answer(self) -> None:
        try:
            call = self._call()
        except TemporaryFailure as failure:
            # Nobody knows who asks, hence neither whether there may be a page.
            self._say(503, failure.text)
            return
        try:
            answer = await self._routed(call)
        except Problem as problem:
            answer = Page("problem.html", {"problem": call.translate(
                problem.text, **problem.values)}, problem.status)
        except DirectoryError as error:
            answer = Page("problem.html", {"problem": str(error)}, 400)
        except MailFailure as failure:
            answer = Page("problem.html", {"problem": failure.text},
                          503 if isinstance(failure, TemporaryFailure) else 400)
        if call.session.secret != self._cookie(self._session_name()) and (
                not isinstance(answer, Content)):
            call.cookies[self._session_name()] = call.session.secret
        if not self._gone:
            for name, value in call.cookies.items():
                self._set_cookie(name, value)
        # What goes on while a page is written does so, be there somebody who looks or not.
        if not self._gone or isinstance(answer, Stream):
            await self._send(self._console.pages, call, answer)

    async def _routed(self, call: Call) -> Answer:
        found = find(call.path)
        if found is None:
            raise Problem("There is no such page.", 404)
        route, call.words = found
        if self._wrong is not None:
            raise self._wrong
        handle = route.methods.get("GET" if call.method == "HEAD" else call.method)
        if handle is None:
            self.setHeader(b"allow", ", ".join(route.allowed).encode())
            raise Problem("This page cannot be asked for in that way.", 405)
        self._require_same_site(call)
        if ROLES.index(call.role) < ROLES.index(route.role):
            if call.account is None:
                return Redirect("/login")
            raise Problem("This page is for administrators.", 403)
        if call.method == "POST" and not call.session.sent(call.form["token"]):
            raise Problem("This form is too old: your login has ended meanwhile.  Go back, reload "
                          "the page and send it again.", 403)
        session = call.session
        if session.account and call.backend.sessions.is_stale(session):
            await call.backend.threads.run(call.backend.sessions.note_use, session)
        return await handle(call)

    def _require_same_site(self, call: Call) -> None:
        """Refuse what another site makes a browser do (Fetch Metadata)."""
        site = self._header(b"sec-fetch-site")
        if call.method == "POST" and site not in ("", "same-origin", "none"):
            raise Problem("Another site asked your browser to do this; it was not done.", 403)

    def _call(self) -> Call:
        backend = self._console.backend
        path, _, query = self.uri.partition(b"?")
        session, account = self._find_session(), None
        if session.account:
            found = backend.directory.credentials(session.account)
            if found is not None and session.passwords <= {each.id for each in found.passwords}:
                account = found.account
        if account is None:
            session = stranger(session.secret if not session.account else "")
        form = Form()
        if self._body is not None and self._wrong is None:
            try:
                form = self._body.end()
            except BadForm as problem:
                self._wrong = Problem(str(problem))
        reading = UrlEncoded()
        try:
            reading.feed(query)
            asked = reading.end()
        except BadForm:
            asked = Form()
        language = texts.choose(self._header(b"accept-language"), self._cookie("language"))
        return Call(
            backend, self.method.decode("ascii", "replace"), path.decode("ascii", "replace"), {},
            asked, form, session, account,
            account is not None and backend.directory.administers(account), self.channel.client,
            language, texts.translator(language), self._is_secure())

    def _find_session(self) -> Session:
        cookie = self._cookie(self._session_name())
        return (cookie and self._console.backend.sessions.find(cookie)) or stranger(cookie)

    def _header(self, name: bytes) -> str:
        values = self.requestHeaders.getRawHeaders(name) or [b""]
        return values[0].decode("ascii", "replace")

    # ---- cookies ----

    def _is_secure(self) -> bool:
        # Whoever lies about this to us only makes a cookie of theirs useless.
        return self.isSecure() or self._header(b"x-forwarded-proto") == "https"

    def _session_name(self) -> str:
        # RFC 6265bis §4.1.3.2: no other host can set that, nor anybody in clear.
        return "__Host-mailsvc" if self._is_secure() else "mailsvc"

    def _cookie(self, name: str) -> str:
        value = self.getCookie(name.encode())
        return value.decode("ascii", "replace") if value else ""

    def _set_cookie(self, name: str, value: str) -> None:
        rest = "; Path=/; HttpOnly; SameSite=Strict" + ("; Secure" if self._is_secure() else "")
        if not value:
            rest += "; Max-Age=0"
        elif name == "language":
            rest += "; Max-Age=31536000"
        self.responseHeaders.addRawHeader(b"set-cookie", f"{name}={value}{rest}".encode("ascii"))

    # ---- sending ----

    def _set_headers(self, policy: str, *, lasting: bool = False) -> None:
        self.setHeader(b"date", datetimeToString())
        self.setHeader(b"content-security-policy", policy.encode())
        self.setHeader(b"cache-control", b"private, max-age=31536000, immutable" if lasting
                       else b"no-store")
        for name, value in _HEADERS.items():
            self.setHeader(name.lower().encode(), value.encode())
        if "frame-ancestors 'none'" in policy:
            self.setHeader(b"x-frame-options", b"DENY")

    async def _send(self, pages: Pages, call: Call, answer: Answer) -> None:
        if isinstance(answer, Stream):
            await self._send_stream(pages, call, answer)
            return
        if isinstance(answer, Redirect):
            where = answer.where + (f"?notice={answer.notice}" if answer.notice else "")
            self.setResponseCode(303)
            self._set_headers(POLICY)
            self.setHeader(b"location", where.encode("ascii"))
            body, kind = b"", "text/plain; charset=utf-8"
        elif isinstance(answer, Content):
            body, kind = answer.content, answer.type
            self._set_headers(answer.policy or POLICY, lasting=answer.lasting)
            if answer.name:
                self.setHeader(b"content-disposition", _saved_as(answer.name))
        else:
            # In a thread: a page of some hundred rows takes its time.
            page = await call.backend.threads.run(pages.render, call, answer)
            if self._gone:
                return
            body, kind = page.encode("utf-8", "replace"), "text/html; charset=utf-8"
            self.setResponseCode(answer.status)
            self._set_headers(answer.policy or POLICY)
        self.setHeader(b"content-type", kind.encode())
        self.setHeader(b"content-length", str(len(body)).encode())
        self.write(body)
        self.finish()

    async def _send_stream(self, pages: Pages, call: Call, answer: Stream) -> None:
        before, after = pages.halves(call, answer.page)
        if answer.flow is not None and self._gone:
            answer.flow.stopProducing()
        elif answer.flow is not None:
            self._flow = answer.flow
            self.registerProducer(answer.flow, True)
        if not self._gone:
            self._set_headers(POLICY)
            self.setHeader(b"content-type", b"text/html; charset=utf-8")
            # For a proxy in front (nginx): what is written is to be seen.
            self.setHeader(b"x-accel-buffering", b"no")
            self.write(before.encode())
        async for piece in answer.pieces:
            if not self._gone:
                self.write(pages.render(call, piece).encode())
        if not self._gone:
            self.write(after.encode())
            if self._flow is not None:
                self.unregisterProducer()
            self.finish()


def _saved_as(name: str) -> bytes:
    """Content-Disposition (RFC 6266) for a download under *name*."""
    plain = "".join(each if each.isascii() and (each.isalnum() or each in "-_. ") else "_"
                    for each in name)[:100]
    quoted = urllib.parse.quote(name[:100], safe="")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quoted}".encode("ascii")
