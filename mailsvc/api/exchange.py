"""One request to the API on HTTP, from its header to the answer.

* Whoever asks logs in with each request: by a password or a token, checked as on any listener, with
  the brakes for those who guess; or by who they are, on the Unix socket.  There are no cookies, so
  that no site can make a browser do anything here.
* What comes is refused in this order: a path that is not there (404), a method (405), a login
  (401), a caller who may not (403), a body (413, 415, 400), its shape and the query's (422).
* A body is small until its sender is known: the rest of it is not read before.  What a process
  holds of all of them is bounded.

A bug is told as such (500), with its traceback in the log.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import urllib.parse
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from twisted.cred.error import LoginFailed
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request, datetimeToString
from twisted.web.http_headers import Headers

from mailsvc.api import shapes
from mailsvc.api.call import ROOT, Answer, Call, Caller
from mailsvc.api.description import description
from mailsvc.api.problems import MEDIA_TYPE, Problem
from mailsvc.api.routes import SMALL, Operation, find
from mailsvc.authentication import Who
from mailsvc.console.call import Backend
from mailsvc.console.channel import THROWN, Channel
from mailsvc.credentials import Attempt, IToken, Password, Token
from mailsvc.errors import MailFailure, PermanentFailure
from mailsvc.interfaces import IAccountHolder
from mailsvc.mail import new_id
from mailsvc.names import DirectoryError

_log = Logger("mailsvc.api")

#: How much of bodies a process holds at once, octets.
_ALL = 134_217_728
#: Most fields of a query.
_FIELDS = 200
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
_BASIC, _BEARER = b'Basic realm="mailsvc", charset="UTF-8"', b'Bearer realm="mailsvc"'


@dataclass
class Held:
    """How many octets of bodies a process holds now."""

    octets: int = 0


class Exchange:
    """What becomes of *request*.

    :param local: whether it comes from the machine's own administrator, by a Unix socket.
    """

    def __init__(self, request: Request, backend: Backend, held: Held, *, local: bool) -> None:
        channel = request.channel
        assert isinstance(channel, Channel)
        self._request: Any = request
        self._channel: Any = channel
        self._backend = backend
        self._all = held
        self._local = local
        self._client = channel.client
        self._method = channel.method.decode("ascii", "replace")
        path, _, self._query = channel.path.decode("ascii", "replace").partition("?")
        self._path = path.removeprefix(ROOT) if path.startswith(f"{ROOT}/") else ""
        self._operation: Operation | None = None
        self._words: dict[str, str] = {}
        self._body = bytearray()
        self._thrown = 0
        #: What is wrong with it, found before it had come whole.
        self._wrong: Problem | None = None
        self._login: Deferred[None] | None = None
        self._caller: Caller | None = None
        self._waits = False
        self._gone = False

    # ---- as it comes ----

    def begin(self, length: int | None) -> None:
        request = self._request
        # Under this name Twisted would take the body apart.
        self._kinds = request.requestHeaders.getRawHeaders(b"content-type") or []
        request.requestHeaders.removeHeader(b"content-type")
        try:
            self._operation = self._find()
        except Problem as problem:
            self._wrong = problem
            return
        self._login = Deferred.fromCoroutine(self._log_in())
        self._login.addErrback(self._fail)
        self._login.addCallback(self._go_on)
        if length is not None and length > self._most:
            self._too_large()

    def _find(self) -> Operation | None:
        """The operation that is meant; None for the description."""
        if self._path == "/openapi.json":
            allowed, operation = "GET, HEAD", None
            known = self._method in ("GET", "HEAD")
        else:
            found = find(self._path)
            if found is None:
                raise Problem(404, f"There is no such path; {ROOT}/openapi.json tells of those "
                              "that there are.")
            route, self._words = found
            allowed = route.allowed
            operation = route.operations.get("GET" if self._method == "HEAD" else self._method)
            known = operation is not None
        if not known:
            raise Problem(405, f"What is there can be asked for by {allowed}.", {"Allow": allowed})
        return operation

    @property
    def _most(self) -> int:
        """How large the body may be."""
        if self._operation is None or self._operation.takes is None:
            return SMALL
        return self._operation.octets or self._backend.settings.console.message_octets

    def feed(self, data: bytes) -> None:
        if self._wrong is not None:
            self._thrown += len(data)
            if self._thrown > THROWN:
                self._channel.abort()
            return
        self._body += data
        self._all.octets += len(data)
        if len(self._body) > self._most:
            self._too_large()
        elif self._all.octets > _ALL:
            self._refuse(Problem(503, "The service is busy; try again in a moment."))
        elif len(self._body) > SMALL and self._login is not None and not self._login.called:
            self._waits = True
            self._channel.transport.pauseProducing()

    def _go_on(self, _: object) -> None:
        if self._waits and not self._gone:
            self._waits = False
            self._channel.transport.resumeProducing()

    def _fail(self, failure: Failure) -> None:
        """Nobody has logged in."""
        problem = failure.value
        if isinstance(problem, MailFailure):
            problem = _of_mail(problem)
        if not isinstance(problem, Problem):
            _log.failure("a request cannot be answered", failure)
            problem = _bug()
        # What is wrong with it otherwise is not for strangers.
        self._wrong = None
        self._refuse(problem)

    def _too_large(self) -> None:
        self._refuse(Problem(413, f"The body is too large: at most {self._most} octets can be sent "
                             "here."))
        # What else comes is thrown away; and the connection with it.
        self._channel.persistent = False

    def _refuse(self, problem: Problem) -> None:
        self._wrong = self._wrong or problem
        self._let_go()

    def _let_go(self) -> None:
        self._all.octets -= len(self._body)
        self._body = bytearray()

    def lost(self) -> None:
        self._gone = True
        # What was begun goes on, be there somebody who waits for it or not.
        self._let_go()

    # ---- who it is ----

    async def _log_in(self) -> None:
        operation = self._operation
        if operation is None:
            return
        self._caller = caller = await self._find_caller()
        if self._words.get("account") == "me" and caller.account is not None:
            self._words["account"] = caller.account.name
        else:
            self._fold_account()
        if not operation.who.admits(caller, self._words):
            raise Problem(403, f"This is for {operation.who.value}.")
        if self._request.getHeader(b"sec-fetch-site") not in (None, b"same-origin", b"none"):
            raise Problem(403, "Another site asked your browser to do this; it was not done.")

    def _fold_account(self) -> None:
        """Have the account's name in the path as it is spelled, where there is one."""
        local_part, _, domain = self._words.get("account", "").rpartition("@")
        found = self._backend.directory.account(local_part, domain) if domain else None
        if found is not None:
            self._words["account"] = found.name

    async def _find_caller(self) -> Caller:
        shown = self._request.requestHeaders.getRawHeaders(b"authorization") or []
        if not shown and self._local:
            return Caller(None, True, self._client)
        scheme, _, rest = (shown[0] if len(shown) == 1 else b"").partition(b" ")
        credentials: Password | Token
        password: bytes | None = None
        match scheme.lower():
            case b"basic":
                name, password = _basic(rest.strip())
                credentials = Password(name, password, Attempt("console", self._client, "FORM"))
            case b"bearer" if token := _token(rest.strip()):
                credentials = Token(b"", token, Attempt("console", self._client, "OAUTHBEARER"))
            case _:
                raise _unknown()
        backend = self._backend
        try:
            holder, log_out = await backend.authenticator.log_in(
                credentials, IAccountHolder, Who(new_id(), _log))
        except (LoginFailed, PermanentFailure):
            raise _unknown() from None
        log_out()  # it holds nothing
        return Caller(holder.account, backend.directory.administers(holder.account), self._client,
                      password)

    # ---- the answer ----

    def end(self) -> None:
        answered = Deferred.fromCoroutine(self._answer())
        answered.addErrback(self._failed)
        answered.addBoth(lambda _: self._let_go())

    def _failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError):  # that is a message nobody reads any more
            _log.failure("a request cannot be answered", failure)
        if self._gone:
            return
        if self._request.startedWriting:
            self._channel.abort()
        else:
            self._refused(_bug())

    async def _answer(self) -> None:
        if self._login is not None:
            await self._login
        try:
            if self._wrong is not None:
                raise self._wrong
            answer = await self._answered()
            if not self._gone:
                await self._send(answer)
        except Problem as problem:
            self._refused(problem)
        except DirectoryError as error:
            self._refused(Problem(409, str(error)))
        except MailFailure as failure:
            self._refused(_of_mail(failure))

    async def _answered(self) -> Answer:
        operation = self._operation
        if operation is None:
            return Answer(description())
        assert self._caller is not None
        query = self._asked(operation)
        value: Any = None
        taken, body = operation.takes, bytes(self._body)
        if taken is not None:
            self._check_type(taken)
            value = body if isinstance(taken, str) else await self._backend.threads.run(
                _read, taken, body)
        elif body:
            raise Problem(422, "Nothing may be sent with this.")
        tags = self._request.getHeader(b"if-none-match") or b""
        known = [each.strip().removeprefix("W/")
                 for each in tags.decode("ascii", "replace").split(",")]
        return await operation.handle(Call(
            self._backend, self._caller, self._path, self._words, query, value, known))

    def _check_type(self, taken: object) -> None:
        expected = taken if isinstance(taken, str) else "application/json"
        kind, _, parameters = (self._kinds[0] if len(self._kinds) == 1 else b"").partition(b";")
        charset = parameters.strip().lower()
        if kind.strip().lower() != expected.encode() or (
                expected == "application/json" and charset not in (b"", b"charset=utf-8")):
            raise Problem(415, f"The body has to be {expected}, and its Content-Type has to say "
                          "so.", {"Accept": expected})

    def _asked(self, operation: Operation) -> dict[str, Any]:
        """What stands behind "?"."""
        try:
            pairs = urllib.parse.parse_qsl(self._query, keep_blank_values=True,
                                           max_num_fields=_FIELDS)
        except ValueError:
            raise Problem(422, "The query has too many fields.") from None
        given: dict[str, list[str]] = {}
        for name, text in pairs:
            given.setdefault(name, []).append(text)
        for name in given.keys() - operation.query.keys():
            known = ", ".join(operation.query) or "none"
            raise Problem(422, f"The query has a field {name[:50]!r}; known are {known}.")
        return {name: _field(name, given.get(name), schema)
                for name, schema in operation.query.items()}

    def _refused(self, problem: Problem) -> None:
        if self._gone:
            return
        if self._request.startedWriting:
            self._channel.abort()  # it cannot be taken back
            return
        body = json.dumps(problem.plain()).encode("ascii")
        headers = dict(problem.headers)
        if problem.status == 503:
            headers["Retry-After"] = "10"
        self._head(problem.status, MEDIA_TYPE, len(body), headers)
        if problem.status == 401:
            known = self._backend.authenticator.portal.listCredentialsInterfaces()
            self._request.responseHeaders.setRawHeaders(
                b"www-authenticate", [_BASIC, _BEARER] if IToken in known else [_BASIC])
        self._request.write(body)
        self._request.finish()

    def _head(self, status: int, kind: str, length: int, headers: dict[str, str]) -> None:
        request = self._request
        request.responseHeaders = Headers()
        request.setResponseCode(status, HTTPStatus(status).phrase.encode())
        request.setHeader(b"date", datetimeToString())
        for name, value in {**_HEADERS, **headers}.items():
            request.setHeader(name.lower().encode(), value.encode())
        if status not in (204, 304):
            request.setHeader(b"content-type", kind.encode())
            request.setHeader(b"content-length", str(length).encode())

    async def _send(self, answer: Answer) -> None:
        request, headers = self._request, dict(answer.headers)
        if answer.write is not None and self._method != "HEAD":
            self._head(answer.status, answer.type, answer.length, headers)
            await answer.write(request)
            if not self._gone:
                request.finish()
            return
        body = b"" if answer.write is not None or answer.status in (204, 304) else json.dumps(
            answer.value, ensure_ascii=False).encode("utf-8", "replace")
        self._head(answer.status, answer.type, answer.length or len(body), headers)
        request.write(body)
        request.finish()


def _basic(text: bytes) -> tuple[bytes, bytes]:
    """Name and password (RFC 7617)."""
    try:
        name, colon, password = base64.b64decode(text, validate=True).partition(b":")
    except binascii.Error:
        raise _unknown() from None
    if not (name and colon):
        raise _unknown()
    return name, password


def _token(text: bytes) -> str:
    """A token (RFC 6750 §2.1); "" if it has another form."""
    return text.decode("ascii") if re.fullmatch(rb"[A-Za-z0-9._~+/-]+=*", text) else ""


def _unknown() -> Problem:
    return Problem(401, "Log in by the name of an account and its password, or an app password "
                   "that is not held to a protocol.")


def _of_mail(failure: MailFailure) -> Problem:
    return Problem(409 if isinstance(failure, PermanentFailure) else 503, failure.text)


def _bug() -> Problem:
    return Problem(500, "This cannot be done now, by a fault of ours; see the log of the service.")


def _read(shape: shapes.Schema, body: bytes) -> object:
    """What *body* says; raises Problem."""
    value = shapes.read(body)
    shapes.check(shape, value, "The body")
    return value


def _field(name: str, texts: list[str] | None, schema: shapes.Schema) -> Any:
    """The value of a field of the query; raises Problem."""
    if texts is None:
        if "default" not in schema:
            raise Problem(422, f"The query lacks the field {name}.")
        return schema["default"]
    value: Any = texts
    if schema.get("type") != "array":
        if len(texts) > 1:
            raise Problem(422, f"The field {name} of the query is there more than once.")
        value = texts[0]
        if schema.get("type") == "integer" and re.fullmatch("-?[0-9]{1,15}", value, re.ASCII):
            value = int(value)
    shapes.check(schema, value, f"The field {name} of the query")
    return value
