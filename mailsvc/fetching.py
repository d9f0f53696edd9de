"""A POP3 client on Twisted.

::

    client = await Fetcher.dial("mail.example.org", tls="implicit")
    await client.log_in("bob@example.org", "...")
    for number, unique_id in await client.unique_ids():
        await client.retrieve(number, file.write)
        await client.delete(number)
    await client.quit()

Methods that ask the server something return Deferreds, whose failures are ``FetchFailure``.  As
with :mod:`mailsvc.client`, whoever does not wait lets commands go out together where the server
offers PIPELINING.  Nothing is deleted before QUIT has been answered.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, fail

from mailsvc.dialing import Line, NoConnection, dial
from mailsvc.pop3.fetching import (
    Answer,
    Answered,
    BadCommand,
    Block,
    Event,
    FetchFailure,
    FetchingSession,
    Request,
    Unanswered,
)
from mailsvc.sasl.client import Abandoned, ClientExchange, Login, choose
from mailsvc.trust import Secured, Trust, Untrusted

_STAMP = re.compile(r"<[!-;=?-~]+@[!-;=?-~]*>")


class Fetcher:
    """One connection to a POP3 server.

    :ivar closed: why the connection has ended; None while it has not.
    :ivar greeting: what the server said first.
    """

    def __init__(self, line: Line, *, seconds: float = 600.0,
                 transcript: Callable[[bool, str], None] | None = None) -> None:
        self.closed: FetchFailure | None = None
        self.greeting = ""
        self._line = line
        self._seconds = seconds
        self._session = FetchingSession(transcript)
        self._open: dict[Request, Deferred[Answer]] = {}
        self._sinks: dict[Request, Callable[[bytes], object]] = {}
        self._broken_sinks: dict[Request, BaseException] = {}
        self._advancing = False
        self._greeted: Deferred[Answer] = Deferred()
        self._open[self._session.opening] = self._greeted
        line.attach(self)
        line.set_deadline(seconds)  # for the greeting
        self._advance()

    @classmethod
    def dial(
        cls, host: str, port: int = 0, *, tls: str = "implicit", trust: Trust | None = None,
        bind: str = "", seconds: float = 600.0,
        transcript: Callable[[bool, str], None] | None = None, reactor: Any = None,
    ) -> Deferred[Fetcher]:
        """Connect, read the greeting and the capabilities, and start TLS.

        :param port: 0 for 995 with "implicit", else 110.
        :param tls: "implicit", "starttls" (STLS, or fail), or "no".
        :param trust: what the certificate has to prove; by default that it is *host*'s.
        :param seconds: how long each answer may take.
        :raises FetchFailure: (in the Deferred)
        """
        if reactor is None:
            from twisted.internet import reactor  # noqa: PLC0415 - importing it installs it

        async def connect() -> Fetcher:
            try:
                line = await dial(reactor, host, port or (995 if tls == "implicit" else 110),
                                  seconds=min(seconds, 60.0), bind=bind)
                if tls == "implicit":
                    line.set_deadline(seconds)
                    await line.start_tls(trust or Trust())
            except NoConnection as problem:
                raise FetchFailure(problem.text, "connect") from None
            except Untrusted as problem:
                raise FetchFailure(problem.text, "tls", reason=problem.reason) from None
            client = cls(line, seconds=seconds, transcript=transcript)
            try:
                client.greeting = (await client._greeted).text
                await client.look()
                if tls == "starttls":
                    await client.start_tls(trust or Trust())
            except BaseException:
                client.close()
                raise
            return client

        return Deferred.fromCoroutine(connect())

    @property
    def secured(self) -> Secured | None:
        """What was agreed in TLS, or None in the clear."""
        return self._line.secured

    @property
    def capabilities(self) -> dict[str, str]:
        """What CAPA said last, by keyword in capitals."""
        return dict(self._session.capabilities)

    # ---- commands ----

    async def look(self) -> None:
        """Ask what the server can (RFC 2449); one that does not know CAPA can nothing."""
        try:
            answer = await self.say("CAPA", lines=True, ends_group=True)
        except FetchFailure as failure:
            if failure.kind != "refused":
                raise
            self._session.capabilities = {}
            return
        found = {}
        for line in answer.body.decode("ascii", "replace").splitlines():
            keyword, _, parameters = line.partition(" ")
            found[keyword.upper()] = parameters
        self._session.capabilities = found

    async def start_tls(self, trust: Trust) -> Secured:
        """STLS (RFC 2595), verify, and CAPA again.

        :raises FetchFailure: TLS could not be had; the connection is over.
        """
        if "STLS" not in self._session.capabilities:
            raise FetchFailure("the server does not offer STLS", "tls")
        await self.say("STLS", ends_group=True)
        if self._session.clear_in_buffer():
            failure = FetchFailure("the server sent something in the clear behind its answer to "
                                   "STLS", "tls")
            self._session.end(failure)
            self._advance()
            raise failure
        try:
            secured = await self._line.start_tls(trust)
        except Untrusted as problem:
            failure = FetchFailure(problem.text, "tls", reason=problem.reason)
            self._session.end(failure)
            self._advance()
            raise failure from None
        self._session.capabilities = {}
        await self.look()
        return secured

    async def log_in(self, name: str, password: str = "", *, mechanism: str = "",
                     token: str = "", cleartext: bool = False) -> None:
        """Log in by SASL, by APOP in the clear, or by USER and PASS; then CAPA again.

        :param mechanism: a SASL mechanism, "USER" or "APOP"; by default the best there is.
        :param cleartext: whether the password may cross the network unencrypted; to this machine
            itself it may.
        :raises FetchFailure: kind "login".
        """
        private = cleartext or self._line.local or self._line.secured is not None
        wanted = mechanism.upper()
        offered = self._session.capabilities.get("SASL", "").split()
        try:
            if wanted == "APOP" or (not wanted and not private and self._stamp):
                await self._apop(name, password)
            elif wanted != "USER" and (wanted or offered):
                await self._sasl(name, password, token, wanted, offered, private)
            else:
                await self._user(name, password, private)
        except FetchFailure as failure:
            if failure.kind != "refused":
                raise
            raise FetchFailure(f"login refused: {failure.text}", "login",
                               temporary=failure.temporary) from None
        except (Abandoned, ValueError) as problem:
            raise FetchFailure(str(problem), "login", temporary=False) from None
        await self.look()

    @property
    def _stamp(self) -> str:
        match = _STAMP.search(self.greeting)
        return match[0] if match else ""

    async def _apop(self, name: str, password: str) -> None:
        if not self._stamp:
            raise Abandoned("the server does not offer APOP")
        digest = hashlib.md5((self._stamp + password).encode()).hexdigest()
        await self.say(f"APOP {name} {digest}", shown=f"APOP {name} ********", ends_group=True)

    async def _user(self, name: str, password: str, private: bool) -> None:
        if not private:
            raise Abandoned("PASS would send the password unencrypted; use TLS")
        await self.say(f"USER {name}", ends_group=True)
        await self.say(f"PASS {password}", shown="PASS ********", ends_group=True)

    async def _sasl(self, name: str, password: str, token: str, wanted: str, offered: list[str],
                    private: bool) -> None:
        secured = self._line.secured
        login = Login(name=name, password=password, token=token, host=self._line.host,
                      channel_bindings=secured.channel_bindings if secured is not None else {})
        chosen = choose(offered, login, private=private, wanted=wanted)
        await self._issue(lambda session: session.authenticate(
            ClientExchange(chosen, login, offered)))

    async def sizes(self) -> dict[int, int]:
        """LIST: octets by message number."""
        answer = await self.say("LIST", lines=True)
        return {number: int(size) for number, size in self._listing(answer)
                if size.partition(" ")[0].isdecimal()}

    async def unique_ids(self) -> list[tuple[int, str]]:
        """UIDL: number and unique-id of each message."""
        return self._listing(await self.say("UIDL", lines=True))

    def _listing(self, answer: Answer) -> list[tuple[int, str]]:
        found = []
        for line in answer.body.decode("ascii", "replace").splitlines():
            number, _, value = line.strip().partition(" ")
            if not number.isdecimal() or len(number) > 9 or not value.strip():
                raise FetchFailure(f"the server's list has a line {line[:60]!r}", "protocol")
            found.append((int(number), value.strip().split(" ")[0]))
        return found

    def retrieve(self, number: int, sink: Callable[[bytes], object]) -> Deferred[Answer]:
        """RETR: *sink* gets the message in blocks, its lines ending in CRLF.

        What *sink* raises is the failure, when the message has passed.
        """
        def make(session: FetchingSession) -> Request:
            request = session.say(f"RETR {number:d}", lines="stream")
            self._sinks[request] = sink
            return request

        return self._issue(make)

    def delete(self, number: int) -> Deferred[Answer]:
        """DELE: it goes when QUIT is answered."""
        return self.say(f"DELE {number:d}")

    async def quit(self) -> None:
        """QUIT.

        :raises FetchFailure: the server did not remove everything that was deleted.
        """
        try:
            await self.say("QUIT", ends_group=True)
        finally:
            self._session.end(FetchFailure("we closed the connection", "lost"))
            self._advance()

    def close(self) -> None:
        """Close at once: nothing is deleted.  May be called again."""
        self._session.end(FetchFailure("we closed the connection", "lost"))
        self._advance()
        self._line.abort()

    def say(self, line: str, *, shown: str = "", lines: bool = False,
            ends_group: bool = False) -> Deferred[Answer]:
        """Any command; -ERR is a FetchFailure."""
        return self._issue(lambda session: session.say(line, shown=shown, lines=lines,
                                                       ends_group=ends_group))

    # ---- the loop ----

    def _issue(self, make: Callable[[FetchingSession], Request]) -> Deferred[Answer]:
        try:
            request = make(self._session)
        except BadCommand:
            return fail()
        answered = self._open[request] = Deferred()
        self._advance()
        return answered

    def received(self, data: bytes) -> None:
        """For the line."""
        self._line.set_deadline(self._seconds)
        self._session.receive(data)
        self._advance()

    def lost(self, why: str) -> None:
        """For the line."""
        self._session.end(FetchFailure(why, "lost"))
        self._advance()

    def overdue(self) -> None:
        """For the line."""
        self._session.end(FetchFailure("the server took too long to answer", "time"))
        self._advance()

    def _advance(self) -> None:
        if self._advancing:
            return
        self._advancing = True
        try:
            while (event := self._session.next_event()) is not None:
                self._handle(event)
        finally:
            self._advancing = False
        data = self._session.data_to_send()
        if data:
            self._line.write(data)
            self._line.set_deadline(self._seconds)
        elif self._session.awaiting is None and self.closed is None:
            self._line.set_deadline(None)

    def _handle(self, event: Event) -> None:
        if isinstance(event, Block):
            self._pour(event)
        elif isinstance(event, Answered):
            answer, request = event.answer, event.request
            self._sinks.pop(request, None)
            error = self._broken_sinks.pop(request, None)
            done = self._open.pop(request)
            if error is not None:
                done.errback(error)
            elif answer.ok:
                done.callback(answer)
            else:
                code = f"[{answer.code}] " if answer.code else ""
                done.errback(FetchFailure(
                    f"{code}{answer.text}" or "-ERR", "refused",
                    temporary=answer.code in ("IN-USE", "SYS/TEMP", "LOGIN-DELAY")))
        elif isinstance(event, Unanswered):
            self._sinks.pop(event.request, None)
            self._open.pop(event.request).errback(event.failure)
        else:
            self.closed = event.failure
            self._line.hang_up()

    def _pour(self, event: Block) -> None:
        if event.request in self._broken_sinks:
            return
        try:
            self._sinks[event.request](event.data)
        except Exception as error:
            self._broken_sinks[event.request] = error
