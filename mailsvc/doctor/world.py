"""What the world sees of domains whose mail is here: the checks of
:mod:`~mailsvc.doctor.published`, by the resolver and the web client that the relay uses.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from cryptography import x509

from mailsvc.certificates import CertificateProblem
from mailsvc.config import Settings
from mailsvc.doctor.facts import Check
from mailsvc.doctor.published import Published
from mailsvc.queue.exchangers import Exchangers
from mailsvc.queue.security.https import HTTPS
from mailsvc.queue.security.lookup import Lookup
from mailsvc.reach import is_public, own_addresses
from mailsvc.records import chains
from mailsvc.store.threads import Threads
from mailsvc.zone import Zone


def shown_by(settings: Settings) -> list[tuple[x509.Certificate, ...]]:
    """The certificates that the service shows, each with its issuers; none if they cannot be read.
    """
    with contextlib.suppress(CertificateProblem):  # a fact of its own tells why
        return chains(settings)
    return []


class World:
    """Asks for *seconds* each at most; to be stopped in the end.

    :param settings: of the service, with the listeners that are bound.
    :param addresses: those that mail leaves from, as others see them; empty for those that can be
        told from here.
    :param shown: the certificates that the service shows, as :func:`shown_by` finds them.
    :param threads: as for :class:`~mailsvc.queue.security.lookup.Lookup`.
    :ivar exchangers: of other hosts.
    """

    def __init__(self, settings: Settings, addresses: Sequence[str],
                 shown: Sequence[tuple[x509.Certificate, ...]], seconds: float,
                 reactor: Any, threads: Threads | None = None) -> None:
        self.addresses = list(addresses or settings.relay.bind or filter(
            is_public, own_addresses()))
        relay = settings.relay
        self.exchangers = Exchangers(relay, settings.service.hostname, (), reactor)
        self._web = HTTPS(self.exchangers.addresses, relay.authorities, relay.loopback, reactor)
        self._port = "" if relay.policy_port == 443 else f":{relay.policy_port}"
        self._lookup = Lookup(
            relay.dns, {"auto": None, "on": True, "off": False}[relay.dane], reactor, threads)
        self._chains = shown
        self._seconds = seconds
        self._reactor = reactor

    def stop(self) -> None:
        """End."""
        self._lookup.stop()

    def of_host(self, zone: Zone) -> Iterator[Check]:
        """The checks of the host that *zone* names."""
        found = self._published(zone)
        yield Check("host name", found.host)
        yield Check("reverse DNS", found.reverse)
        yield Check(f"DNSSEC {zone.hostname}", found.signed_host)

    def of_domain(self, zone: Zone) -> Iterator[Check]:
        """Those of its domain."""
        found = self._published(zone)
        for what, find in (
                ("MX", found.exchangers), ("SPF", found.spf), ("DKIM", found.dkim),
                ("DMARC", found.dmarc), ("MTA-STS", found.mta_sts), ("TLS-RPT", found.tls_reports),
                ("SRV", found.programs), ("DNSSEC", found.signed_domain)):
            yield Check(f"{what} {zone.domain}", find)

    def _published(self, zone: Zone) -> Published:
        return Published(zone, self.addresses, self._chains, self._lookup, self._get,
                         self._seconds / 2, self._reactor)

    async def _get(self, host: str, path: str, kind: str, most: int) -> bytes:
        return await self._web.get(f"https://{host}{self._port}{path}", kind, most)
