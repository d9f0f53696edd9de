"""Sends TLS reports (RFC 8460): once a day, for the days that are over.

Some hours after midnight UTC, at another time after each start, so that not all the world reports
at once (§5.6 of RFC 8460 has the same in mind).  What could not be sent is tried again each hour
for two days.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from mailsvc.errors import MailFailure
from mailsvc.mail import Address, Envelope, new_id
from mailsvc.queue.security.https import HTTPS, HTTPFailure
from mailsvc.queue.security.lookup import Lookup, LookupFailed
from mailsvc.queue.security.report import KIND, TLSReport, destinations, mailbox
from mailsvc.queue.security.results import Results
from mailsvc.store.threads import Threads

_log = Logger("mailsvc.queue")

_DAY = 86_400.0
_TRY_EVERY = 3600.0
#: How long after midnight reports are sent at the latest, seconds.
_SPREAD = 4 * 3600.0
#: For how many days it is tried.
_PATIENCE = 2

#: Queues a message, as :meth:`mailsvc.queue.reports.Reports.post`.
Post = Callable[[Envelope, Address, bytes], Awaitable[None]]


class Reporter:
    """Sends the reports of *results*.

    :param contact: the address that they come from.
    :param post: sends one by mail.
    """

    def __init__(self, results: Results, lookup: Lookup, web: HTTPS, post: Post, contact: str,
                 threads: Threads, clock: Any,
                 chance: Callable[[], float] = random.random) -> None:
        self._results = results
        self._lookup = lookup
        self._web = web
        self._post = post
        self._contact = contact
        self._threads = threads
        self._clock = clock
        self._delay = chance() * _SPREAD
        self._sending = LoopingCall(lambda: Deferred.fromCoroutine(self.send()))
        self._sending.clock = clock

    def start(self) -> None:
        """Send when it is time."""
        self._results.start()
        self._sending.start(_TRY_EVERY)

    def stop(self) -> None:
        """Send nothing more."""
        self._results.stop()
        if self._sending.running:
            self._sending.stop()

    async def send(self) -> None:
        """Send what is due."""
        now = self._clock.seconds()
        # The day counts as over when its time to be reported has come.
        today = _day(now - self._delay)
        try:
            await self._results.write()
            for day, domain in self._results.before(today):
                if await self._report(day, domain, now) or day < _day(now - _PATIENCE * _DAY):
                    await self._threads.run(self._results.remove, day, domain)
        except (MailFailure, OSError) as failure:
            _log.error("TLS reports cannot be sent now: {reason}", reason=str(failure))

    async def _report(self, day: str, domain: str, now: float) -> bool:
        """Report on *domain*; whether that is done with."""
        try:
            places = destinations(await self._lookup.texts(f"_smtp._tls.{domain}"))
        except LookupFailed as failure:
            _log.info("no TLS report to {domain} yet: {reason}", domain=domain,
                      reason=str(failure))
            return False
        report = TLSReport(day, domain, self._results.of(day, domain),
                           self._contact.rpartition("@")[2], self._contact, new_id())
        sent = [await self._sent(report, place, now) for place in places]
        # Whoever has got it should not get it twice because another did not.
        return any(sent) or not sent

    async def _sent(self, report: TLSReport, place: str, now: float) -> bool:
        try:
            if place.startswith("mailto:"):
                to = mailbox(place)
                text = report.mail(to, now)
                # As if the contact had submitted it, so that it is signed (§5.3).
                await self._post(
                    Envelope(report.id, _address(self._contact), size=len(text), body="7BIT",
                             account=self._contact), _address(to), text)
            else:
                await self._web.post(place, KIND, report.compressed)
        except (HTTPFailure, MailFailure) as failure:
            _log.warn("TLS report {id} about {domain} not sent to {place}: {reason}",
                      id=report.id, domain=report.domain, place=place, reason=failure.text)
            return False
        _log.info("TLS report {id} about {domain} on {day} sent to {place}", id=report.id,
                  domain=report.domain, day=report.day, place=place)
        return True


def _address(text: str) -> Address:
    local_part, _, domain = text.rpartition("@")
    return Address(local_part, domain)


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
