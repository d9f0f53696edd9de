"""The TLSA records of an exchanger, found by a way that is secure from the domain on (RFC 7672 §2).

Each step has to be one that the resolver vouches for, or the records prove nothing: the domain's MX
records, the exchanger's address, and the TLSA records themselves, or that there are none.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol

from mailsvc.queue.security.dane import TLSA, strongest
from mailsvc.queue.security.lookup import Found, LookupFailed


@dataclass(frozen=True, slots=True)
class Binding:
    """What binds an exchanger.

    :ivar base: the name that has the records; to be asked for in SNI (§8.1).
    :ivar names: whom a certificate under a trust anchor may be for (§3.2.2).
    :ivar records: those that count; none if no record can be used, and TLS is mandatory all the
        same (§2.2).
    :ivar published: all of them.
    """

    base: str
    names: tuple[str, ...]
    records: tuple[TLSA, ...]
    published: tuple[TLSA, ...]


class Finds(Protocol):
    """As :class:`mailsvc.queue.security.lookup.Lookup`."""

    def find(self, name: str, kind: str) -> Awaitable[Found]: ...


class Bindings:
    """Finds what binds exchangers at *port*."""

    def __init__(self, lookup: Finds, port: int) -> None:
        self._lookup = lookup
        self._port = port

    async def find(self, domain: str, host: str) -> Binding | None:
        """What binds *host* as an exchanger of *domain*; None if nothing does.

        :raises LookupFailed: nobody can tell now, or somebody lies: *host* must not be used.
        """
        exchangers = await self._lookup.find(domain, "MX")
        if not exchangers.secure:
            return None
        named = {each.exchange.to_text(omit_final_dot=True).lower()
                 for each in exchangers.records} or {domain}
        if host not in named:
            raise LookupFailed(f"{host} is no longer an exchanger of {domain}")
        for base in await self._bases(host):
            found = await self._lookup.find(f"_{self._port}._tcp.{base}", "TLSA")
            if found.secure and found.records:
                published = tuple(TLSA(each.usage, each.selector, each.mtype, each.cert)
                                  for each in found.records)
                # In this order, and each once.
                names = tuple(dict.fromkeys((base, host, domain, exchangers.name)))
                return Binding(base, names, tuple(strongest(published)), published)
        return None

    async def _bases(self, host: str) -> list[str]:
        """The names that may have the records of *host*, the best first (§2.2.2, RFC 7671 §7)."""
        for kind in "A", "AAAA":
            address = await self._lookup.find(host, kind)
            if address.records:
                break
        if address.secure:
            return list(dict.fromkeys((address.name, host)))
        if address.name != host and (await self._lookup.find(host, "CNAME")).secure:
            return [host]
        # An unsigned zone: its TLSA records would prove nothing, and some servers choke on them.
        return []
