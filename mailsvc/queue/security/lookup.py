"""DNS records together with whether the resolver vouches for them (DNSSEC, RFC 4035 §3.2.3).

:mod:`mailsvc.queue.exchangers` finds where mail goes; this finds what a domain says of security:
TXT and TLSA records, and for DANE once more the records that led to an exchanger, with the AD bit.
That bit counts only where the resolver and the way to it are trusted: by ``relay.dane``.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dns.exception
import dns.flags
import dns.name
import dns.resolver
from dns.nameserver import Do53Nameserver
from twisted.internet.defer import Deferred

from mailsvc.queue.routes import server
from mailsvc.store.threads import Threads

#: How long an answer is waited for in all, seconds.
_PATIENCE = 10.0

#: How many questions are open at once.
_AT_ONCE = 32

#: How long an answer is kept at most, with records and without, seconds.
_KEPT = 300.0
_KEPT_NONE = 60.0

#: RFC 9715: what arrives without fragments.
_PAYLOAD = 1232


@dataclass(frozen=True, slots=True)
class Found:
    """An answer, which may be that there is nothing.

    :ivar name: what the records belong to in the end, behind aliases; without a final dot.
    :ivar records: as dnspython has them.
    :ivar secure: whether a resolver that we trust has validated all of it.
    """

    name: str
    records: tuple[Any, ...]
    secure: bool


class LookupFailed(Exception):
    """No answer, or one that does not validate; the text says which."""


class Lookup:
    """Asks the name servers *servers*, or those of /etc/resolv.conf.

    :param trusted: whether they validate and may be believed; None if they are if all of them are
        at loopback addresses.
    :param threads: where is waited for them, which somebody else starts and stops; by default some
        of its own.
    """

    def __init__(self, servers: Sequence[str], trusted: bool | None, reactor: Any,
                 threads: Threads | None = None) -> None:
        self._servers = servers
        self._trusted = trusted
        self._own = threads is None
        self._threads = threads or Threads(reactor, _AT_ONCE, "dns")
        if self._own:
            self._threads.start()
        self._resolver: dns.resolver.Resolver | None = None

    @property
    def trusted(self) -> bool:
        """Whether the name servers validate and may be believed; known from an answer on."""
        return bool(self._trusted)

    def stop(self) -> None:
        """Ask nothing more."""
        if self._own:
            self._threads.stop()

    def find(self, name: str, kind: str) -> Deferred[Found]:
        """The records of type *kind* at *name*.

        :raises LookupFailed: (in the Deferred) nobody can tell now.
        """
        return self._threads.run(self._find, name, kind)

    async def texts(self, name: str) -> list[str]:
        """The TXT records at *name*, each with its strings joined; raises as :meth:`find`."""
        found = await self.find(name, "TXT")
        return [b"".join(each.strings).decode("ascii", "replace") for each in found.records]

    def _find(self, name: str, kind: str) -> Found:
        try:
            resolver = self._resolver = self._resolver or self._made()
            full = dns.name.from_text(name if name.endswith(".") else name + ".")
            answer = resolver.resolve(full, kind, raise_on_no_answer=False, search=False)
        except dns.resolver.NXDOMAIN as absent:
            response = absent.response(full)
            return Found(name, (), self._vouched(response.flags))
        except dns.resolver.NoNameservers:
            # SERVFAIL is also what a resolver says of records that do not validate.
            raise LookupFailed(f"the name servers cannot tell the {kind} records of {name}, or "
                               "they do not validate") from None
        except (dns.exception.DNSException, OSError, ValueError) as problem:
            raise LookupFailed(f"no answer from the name servers about the {kind} records of "
                               f"{name} ({type(problem).__name__})") from None
        return Found(answer.canonical_name.to_text(omit_final_dot=True).lower(),
                     tuple(answer.rrset or ()), self._vouched(answer.response.flags))

    def _vouched(self, flags: int) -> bool:
        return bool(self._trusted) and bool(flags & dns.flags.AD)

    def _made(self) -> dns.resolver.Resolver:
        resolver = dns.resolver.Resolver(configure=not self._servers)
        if self._servers:
            resolver.nameservers = [
                Do53Nameserver(*server(each)) for each in self._servers]
        if self._trusted is None:
            self._trusted = all(
                ipaddress.ip_address(
                    each if isinstance(each, str) else each.answer_nameserver()).is_loopback
                for each in resolver.nameservers)
        resolver.lifetime = _PATIENCE
        # RFC 6840 §5.7: AD in a question asks for AD in the answer.
        resolver.flags = dns.flags.RD | dns.flags.AD
        resolver.use_edns(0, 0, _PAYLOAD)
        resolver.cache = _Cache(10_000)
        return resolver


class _Cache(dns.resolver.LRUCache):
    """Keeps nothing for long: an answer without SOA would be kept for years."""

    def put(self, key: Any, value: dns.resolver.Answer) -> None:
        kept = _KEPT if value.rrset is not None else _KEPT_NONE
        value.expiration = min(value.expiration, time.time() + kept)
        super().put(key, value)
