"""What the listeners of a running service answer, and which certificate it shows.

Each is connected to as its clients do, from this machine: by SMTP, LMTP or POP3, with TLS where it
belongs.  Nobody logs in, and no mail is sent.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from dataclasses import dataclass
from typing import Any

from mailsvc.acme.limits import CHALLENGES
from mailsvc.client import Client
from mailsvc.config import Settings
from mailsvc.dialing import NoConnection, dial
from mailsvc.doctor.facts import Fact, fail, note, ok, warn
from mailsvc.fetching import Fetcher
from mailsvc.pop3.fetching import FetchFailure
from mailsvc.smtp.failures import SendingFailure
from mailsvc.smtp.timeouts import Timeouts
from mailsvc.trust import Secured, Trust

#: How many days before its end a certificate should have been renewed.
_RENEWED = 14

#: Those whose certificate is looked at, the likeliest first.
SECURED = ("submissions", "pop3s", "submission", "pop3", "smtp")

_IMPLICIT = ("submissions", "pop3s")
#: Those that HTTP is spoken on.
_WEB = ("http", "acme", "console", "api")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a listener showed.

    :ivar greeting: its first line.
    :ivar secured: TLS as it was agreed; None in the clear.
    """

    greeting: str
    secured: Secured | None


class Refused(Exception):
    """A listener does not answer as it should; the text says how."""


class Listening:
    """The listeners of the service of *settings*.

    :param seconds: how long each step may take.
    """

    def __init__(self, settings: Settings, seconds: float, reactor: Any) -> None:
        self._settings = settings
        self._seconds = seconds
        self._reactor = reactor
        hostname = settings.service.hostname
        self._trust = Trust(names=(hostname,), server_name=hostname, verify=False,
                            authorities=settings.relay.authorities)

    async def examine(self, kind: str, address: str) -> list[Fact]:
        """What the listener of *kind* at *address* answers."""
        what = f"{kind} {address}"
        if is_proxied(self._settings):
            return [note(what, "not looked at: connections from this machine have to begin with a "
                         "PROXY header (proxy.networks)")]
        if kind in _WEB:
            return [await self._connects(kind, address)]
        try:
            answer = await self.ask(kind, address)
        except Refused as problem:
            return [fail(what, str(problem), "see the log of the service; what else listens there, "
                         "`ss -ltnp` names")]
        if answer.secured is not None:
            return [ok(what, f"answers, {answer.secured.version}")]
        if kind == "lmtp" or (kind == "pop3" and not self._settings.pop3.stls):
            return [ok(what, "answers")]
        return [warn(what, "answers, without TLS", "set smtp.starttls and pop3.stls to true")]

    async def certificate(self, listening: list[tuple[str, str]]) -> list[Fact]:
        """Which certificate they show, and who would take it."""
        what = "certificate"
        there = sorted((SECURED.index(kind), kind, address) for kind, address in listening
                       if kind in SECURED and not address.startswith("/"))
        if not there or is_proxied(self._settings):
            return [note(what, "no listener to ask for it")]
        try:
            _, kind, address = there[0]
            secured = (await self.ask(kind, address)).secured
        except Refused as problem:
            return [fail(what, str(problem), "see the log of the service")]
        if secured is None:
            return [note(what, f"{kind} {address} has no TLS")]
        return [judged(secured, self._settings.service.hostname,
                       datetime.datetime.now(datetime.UTC))]

    async def ask(self, kind: str, address: str) -> Answer:
        """Connect to a listener as its clients do.

        :raises Refused: it does not answer as it should.
        """
        host, port = place_of(address)
        tls = "implicit" if kind in _IMPLICIT else "starttls"
        if kind == "lmtp" or (kind == "smtp" and not self._settings.smtp.starttls) or (
                kind == "pop3" and not self._settings.pop3.stls):
            tls = "no"
        if host.startswith("/"):
            tls = "no"  # nobody speaks TLS to a Unix socket
        try:
            if kind in ("pop3", "pop3s"):
                return await self._fetcher(host, port, tls)
            return await self._client(host, port, tls, kind == "lmtp")
        except (SendingFailure, FetchFailure) as failure:
            raise Refused(str(failure)) from failure

    async def _client(self, host: str, port: int, tls: Any, lmtp: bool) -> Answer:
        seconds = self._seconds
        client = await Client.dial(
            host, port, tls=tls, trust=self._trust, lmtp=lmtp, reactor=self._reactor,
            timeouts=Timeouts(connect=seconds, tls=seconds, greeting=seconds, hello=seconds,
                              other=seconds, quit=seconds))
        try:
            await client.ready()
            return Answer(said(client), client.secured)
        finally:
            await client.quit()

    async def _fetcher(self, host: str, port: int, tls: str) -> Answer:
        fetcher = await Fetcher.dial(host, port, tls=tls, trust=self._trust,
                                     seconds=self._seconds, reactor=self._reactor)
        try:
            answer = Answer(fetcher.greeting, fetcher.secured)
            await fetcher.quit()
            return answer
        finally:
            fetcher.close()

    async def _connects(self, kind: str, address: str) -> Fact:
        what = f"{kind} {address}"
        host, port = place_of(address)
        try:
            line = await dial(self._reactor, host, port, seconds=self._seconds)
        except NoConnection as problem:
            return fail(what, problem.text, "see the log of the service")
        line.abort()
        acme = self._settings.acme
        whose = "" if kind != "acme" or not acme.names else (
            f"; by {acme.challenge.upper()} the authority has to reach it on port "
            f"{CHALLENGES[acme.challenge]}")
        return ok(what, f"takes connections{whose}")


def is_proxied(settings: Settings) -> bool:
    """Whether connections from this machine have to begin with a PROXY header."""
    loopback = ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")
    return any(address in ipaddress.ip_network(network) for address in loopback
               for network in settings.proxy.networks)


def said(client: Client) -> str:
    """The greeting, in a line."""
    greeting = client.greeting
    return f"{greeting.code} {greeting.lines[0]}" if greeting is not None else "nothing"


def place_of(address: str) -> tuple[str, int]:
    """Where to connect to, to reach a listener on *address* from here."""
    if address.startswith("/"):
        return address, 0
    match = re.fullmatch(r"\[?([^\]]*)\]?:([0-9]+)", address)
    if match is None:
        raise Refused(f"{address} cannot be connected to from here")
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(match[1], match[1]), int(match[2])


def judged(secured: Secured, hostname: str, now: datetime.datetime) -> Fact:
    """What the certificate of a connection is worth to mail programs and other servers."""
    what, subject = "certificate", secured.subject or "without a name"
    text = f"{subject}, {secured.version}"
    renew = "get one for that name and name it in tls.certificates (docs/operating.rst, " \
            "\"Certificates\")"
    left = None
    if secured.not_after is not None:
        left = (secured.not_after - now).days
        text += f", until {secured.not_after:%Y-%m-%d}"
    if left is not None and secured.not_after is not None and secured.not_after < now:
        return fail(what, f"{text}: it has ended", "renew it; the service picks it up by itself")
    if secured.reason == "certificate-host-mismatch":
        return fail(what, f"{text}: {secured.flaw}", renew)
    if secured.flaw:
        return warn(what, f"{text}: nobody else trusts it ({secured.flaw}); mail programs will "
                    f"complain, and MTA-STS cannot hold for {hostname}", renew)
    if left is not None and left < _RENEWED:
        return warn(what, f"{text}: {left} days left", "see why it is not renewed; the service "
                    "picks a new one up by itself")
    return ok(what, f"{text}, trusted for {hostname}")
