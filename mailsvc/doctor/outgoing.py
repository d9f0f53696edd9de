"""Whether mail gets out: hosts that it goes to are connected to, up to their greeting."""

from __future__ import annotations

from typing import Any

from mailsvc.client import Client
from mailsvc.config import Settings
from mailsvc.doctor.facts import Fact, fail, ok
from mailsvc.doctor.listening import said
from mailsvc.queue.exchangers import Exchangers, Place, Unroutable
from mailsvc.queue.routes import parse_route
from mailsvc.smtp.failures import SendingFailure
from mailsvc.smtp.timeouts import Timeouts
from mailsvc.trust import Trust

#: How many addresses of a domain's exchangers are tried.
_TRIED = 4


class Outgoing:
    """Connects as the relay of *settings* does.

    :param seconds: how long each step may take.
    """

    def __init__(self, settings: Settings, exchangers: Exchangers, seconds: float,
                 reactor: Any) -> None:
        self._settings = settings
        self._exchangers = exchangers
        self._reactor = reactor
        self._timeouts = Timeouts(connect=seconds, tls=seconds, greeting=seconds, hello=seconds,
                                  other=seconds, quit=seconds)

    async def exchangers_of(self, domain: str) -> list[Fact]:
        """Whether any exchanger of *domain* answers."""
        port = self._settings.relay.port
        what = f"outgoing port {port}"
        try:
            places = (await self._exchangers.find(domain))[:_TRIED]
        except Unroutable as failure:
            return [fail(what, f"no exchanger of {domain} is known: {failure.text}",
                         "see to the name servers (/etc/resolv.conf, relay.dns), or name another "
                         "domain")]
        problems = []
        for place in places:
            try:
                greeting = await self._greeting(place, port)
            except SendingFailure as failure:
                problems.append(f"{place.name} [{place.address}]: {failure.text}")
            else:
                return [ok(what, f"open: {place.name} [{place.address}] says {greeting}")]
        return [fail(what, f"nobody of {domain} answers: {'; '.join(problems)}",
                     "many hosting providers close port 25 until they are asked: ask yours, or "
                     "send by a smarthost (relay.smarthost)")]

    async def smarthost(self) -> list[Fact]:
        """Whether the smarthost answers, as it has to prove itself."""
        hop = parse_route(self._settings.relay.smarthost)
        what = "smarthost"
        try:
            client = await Client.dial(
                hop.host, hop.port, tls=hop.tls, lmtp=hop.lmtp,  # type: ignore[arg-type]
                trust=Trust(authorities=self._settings.relay.authorities,
                            verify=hop.tls != "opportunistic"),
                timeouts=self._timeouts, reactor=self._reactor)
        except SendingFailure as failure:
            return [fail(what, f"{hop}: {failure.text}", "see relay.smarthost, and whether that "
                         "host is up")]
        text = f"{hop} says {said(client)}"
        await client.quit()
        return [ok(what, text)]

    async def _greeting(self, place: Place, port: int) -> str:
        bind = next((each for each in self._settings.relay.bind
                     if (":" in each) == (":" in place.address)), "")
        client = await Client.dial(place.address, port, bind=bind, timeouts=self._timeouts,
                                   reactor=self._reactor)
        text = said(client)
        await client.quit()
        return text
