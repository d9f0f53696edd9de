"""The TLSA records of a host, found by a way that is secure from its beginning on (RFC 7672 §2).

Each step has to be one that the resolver vouches for, or the records prove nothing: the MX records
of the domain that mail is for, unless the host was named by ourselves; the host's address; and the
TLSA records, or that there are none.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol

from mailsvc.queue.security.dane import TLSA, strongest
from mailsvc.queue.security.lookup import Found, LookupFailed


@dataclass(frozen=True, slots=True)
class Binding:
    """What binds a host.

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
    """Finds what binds hosts."""

    def __init__(self, lookup: Finds) -> None:
        self._lookup = lookup

    async def exchanger(self, domain: str, host: str, port: int) -> Binding | None:
        """What binds *host* at *port* as an exchanger of *domain*; None if nothing does.

        :raises LookupFailed: nobody can tell now, or somebody lies: *host* must not be used.
        """
        exchangers = await self._exchangers(domain, host)
        if exchangers is None:
            return None
        return await self._binding(host, port, (domain, exchangers.name))

    async def host(self, host: str, port: int) -> Binding | None:
        """What binds *host* at *port*, which our configuration names (§2.2.2); as above."""
        return await self._binding(host, port, ())

    async def vouched(self, domain: str, host: str) -> bool:
        """Whether *host* is among MX records of *domain* that validate; raises as above."""
        return await self._exchangers(domain, host) is not None

    async def _exchangers(self, domain: str, host: str) -> Found | None:
        """The MX records of *domain*, *host* among them; None if nobody vouches for them."""
        found = await self._lookup.find(domain, "MX")
        if not found.secure:
            return None
        named = {each.exchange.to_text(omit_final_dot=True).lower()
                 for each in found.records} or {domain}
        if host not in named:
            raise LookupFailed(f"{host} is no longer an exchanger of {domain}")
        return found

    async def _binding(self, host: str, port: int, names: tuple[str, ...]) -> Binding | None:
        for base in await self._bases(host):
            found = await self._lookup.find(f"_{port}._tcp.{base}", "TLSA")
            if found.secure and found.records:
                published = tuple(TLSA(each.usage, each.selector, each.mtype, each.cert)
                                  for each in found.records)
                # In this order, and each once.
                names = tuple(dict.fromkeys((base, host, *names)))
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
