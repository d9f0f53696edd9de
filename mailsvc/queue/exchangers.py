"""The hosts that take a domain's mail (RFC 5321 §5.1), found in the DNS.

* MX records, the most preferred first, those of one preference in any order;
* no MX record: the domain's own addresses (implicit MX);
* one MX record for ".": the domain takes no mail (RFC 7505), 5.1.10;
* no such domain: 5.1.2; a domain, or exchangers, without any address: 5.4.4;
* an answer that could not be had: 4.4.3, to be asked for again;
* where we are an exchanger ourselves, only those before us count; if none is, 5.4.6: it would come
  back;
* an address literal: that address.

Aliases (CNAME) are followed; where they lead round in a circle, it is 5.4.4.  Of each exchanger's
addresses IPv6 and IPv4 take turns, as :mod:`mailsvc.queue.race` wants them.
"""

from __future__ import annotations

import ipaddress
import random
import re
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from twisted.internet.defer import Deferred, TimeoutError, gatherResults
from twisted.names import dns, error, hosts
from twisted.names.cache import CacheResolver
from twisted.names.client import Resolver
from twisted.names.resolve import ResolverChain

from mailsvc.errors import EnhancedStatus
from mailsvc.queue.routes import RelaySettings, server

#: Most exchangers that are asked for their addresses, and most addresses that are tried.
_EXCHANGERS = 10
_ADDRESSES = 10
#: How many aliases in a row are asked about, each of which may stand for a chain in one answer.
_ALIASES = 8

#: How long an answer is waited for, from each server in turn, seconds.
_PATIENCE = (2, 4, 8)


@dataclass(frozen=True, slots=True)
class Place:
    """One address to connect to.

    :ivar name: the exchanger that has it, which its certificate would be for.
    """

    name: str
    address: str


class Unroutable(Exception):
    """There is no way to a domain's exchangers, now (4yz) or ever (5yz).

    :ivar status: which.
    """

    def __init__(self, text: str, *status: int) -> None:
        super().__init__(text)
        self.text = text
        self.status = EnhancedStatus(*status)


class Exchangers:
    """Looks exchangers up.

    :param hostname: our own name.
    :param listening: where we take mail ourselves: addresses, ``0.0.0.0`` and ``::`` for all, and
        ports.
    :param resolver: a Twisted resolver; by default the one that *settings* describe.
    """

    def __init__(self, settings: RelaySettings, hostname: str,
                 listening: Collection[tuple[str, int]], reactor: Any, resolver: Any = None,
                 shuffle: Callable[[list[Any]], None] = random.shuffle) -> None:
        self._settings = settings
        self._hostname = hostname.lower()
        self._own = {address for address, port in listening if port == settings.port}
        self._shuffle = shuffle
        self._resolver = resolver or _resolver(settings.dns, reactor)

    def find(self, domain: str) -> Deferred[list[Place]]:
        """The places to try for *domain*, in order, at least one; fails with Unroutable."""
        return Deferred.fromCoroutine(self._find(domain))

    def addresses(self, host: str) -> Deferred[list[Place]]:
        """The places of the host *host* itself, a name or an IP address."""
        return Deferred.fromCoroutine(self._addresses(host))

    async def _find(self, domain: str) -> list[Place]:
        if domain.startswith("["):
            return self._allowed([_literal(domain)], domain)
        exchangers = await self._exchangers(domain)
        implicit = not exchangers
        if exchangers == [(0, "")]:
            raise Unroutable(f"{domain} takes no mail, as its null MX says", 5, 1, 10)
        self._shuffle(exchangers)
        exchangers = sorted(exchangers, key=lambda each: each[0]) or [(0, domain)]
        own = [preference for preference, name in exchangers if self._is_own_name(name)]
        # RFC 5321 §5.1: those that come behind us would send it to us.
        exchangers = [each for each in exchangers if not own or each[0] < min(own)]
        if not exchangers:
            raise _loop(domain)
        found = await gatherResults([
            Deferred.fromCoroutine(self._outcome(name))
            for _, name in exchangers[:_EXCHANGERS]])
        return self._gathered(domain, exchangers, found, implicit)

    def _gathered(self, domain: str, exchangers: list[tuple[int, str]],
                  found: list[list[Place] | Unroutable], implicit: bool) -> list[Place]:
        """The addresses that were *found* of the *exchangers*, up to those that are ourselves."""
        places: list[Place] = []
        failures: list[Unroutable] = []
        limit: int | None = None
        for (preference, _), each in zip(exchangers, found, strict=False):
            if limit is not None and preference >= limit:
                break
            if isinstance(each, Unroutable):
                failures.append(each)
            elif any(map(self._is_own_place, each)):
                limit = preference
                places = [place for place in places if place.name in {
                    name for earlier, name in exchangers if earlier < preference}]
            else:
                places += each
        if not places:
            if limit is not None:
                raise _loop(domain)
            later = next((each for each in failures if each.status.class_ == 4), None)
            if later is not None:
                raise later
            raise Unroutable(f"{domain} has no address to send mail to" if implicit
                             else f"no exchanger of {domain} has an address", 5, 4, 4)
        return self._allowed(places, domain)[:_ADDRESSES]

    async def _outcome(self, name: str) -> list[Place] | Unroutable:
        try:
            return await self._addresses(name)
        except Unroutable as failure:
            return failure

    async def _exchangers(self, domain: str) -> list[tuple[int, str]]:
        """Preference and name of each MX record; none when there is no such record."""
        answers = await self._ask(self._resolver.lookupMailExchange, domain)
        return [(each.payload.preference, str(each.payload.name).lower().rstrip("."))
                for each in answers if each.type == dns.MX]

    async def _addresses(self, host: str) -> list[Place]:
        try:
            return [Place(host, _plain(host))]
        except ValueError:
            pass
        asked: list[tuple[int, Any]] = []
        if self._settings.protocols != "ipv4":
            asked.append((dns.AAAA, self._resolver.lookupIPV6Address))
        if self._settings.protocols != "ipv6":
            asked.append((dns.A, self._resolver.lookupAddress))
        families: list[list[str]] = []
        failure: Unroutable | None = None
        for kind, lookup in asked:
            try:
                answers = await self._ask(lookup, host)
            except Unroutable as problem:
                failure = problem
                continue
            families.append([
                _plain(socket.inet_ntop(socket.AF_INET6 if kind == dns.AAAA else socket.AF_INET,
                                        each.payload.address))
                for each in answers if each.type == kind])
        places = [Place(host, address) for address in chain.from_iterable(zip_longest(*families))
                  if address]
        if not places:
            raise failure or Unroutable(f"{host} has no address", 5, 4, 4)
        return places

    async def _ask(self, lookup: Any, name: str) -> list[Any]:
        """The records that *lookup* finds at *name*; none when the name has none of that type.

        Where the answer ends in an alias, what that stands for is asked for.
        """
        asked = {name}
        while True:
            answers = await self._answer(lookup, name)
            aliases = {str(each.name).lower(): str(each.payload.name).lower().rstrip(".")
                       for each in answers if each.type == dns.CNAME}
            end = name.lower()
            while end in aliases:
                end = aliases.pop(end)
            if end == name.lower() or any(each.type != dns.CNAME for each in answers):
                return answers
            if end in asked or len(asked) > _ALIASES:
                raise Unroutable(f"the aliases (CNAME) of {name} lead round in a circle", 5, 4, 4)
            asked.add(end)
            name = end

    async def _answer(self, lookup: Any, name: str) -> list[Any]:
        try:
            answers, _, _ = await lookup(name, timeout=_PATIENCE)
        except error.DNSNameError:
            raise Unroutable(f"there is no domain {name}", 5, 1, 2) from None
        except (error.DNSQueryRefusedError, error.DNSServerError, error.DNSFormatError,
                error.DNSNotImplementedError, error.DNSUnknownError):
            raise Unroutable(f"the name servers cannot tell about {name}", 4, 4, 3) from None
        except error.AuthoritativeDomainError:
            return []
        except (error.DomainError, error.ResolverError, OSError, TimeoutError):
            raise Unroutable(f"no answer from the name servers about {name}", 4, 4, 3) from None
        except Exception as problem:
            # The resolver gives up in more ways than it says; whatever it is, later may be better.
            raise Unroutable(f"looking up {name} failed: {type(problem).__name__}",
                             4, 4, 3) from None
        return list(answers)

    # ---- ourselves ----

    def _is_own_name(self, name: str) -> bool:
        return name == self._hostname and bool(self._own)

    def _is_own_place(self, place: Place) -> bool:
        address = ipaddress.ip_address(place.address)
        if (address.is_loopback or address.is_unspecified) and not self._settings.loopback:
            return True
        return place.address in self._own or (
            not self._own.isdisjoint(("0.0.0.0", "::")) and is_local(place.address))

    def _allowed(self, places: list[Place], domain: str) -> list[Place]:
        """Those of *places* that are not ourselves.

        :raises Unroutable: there are none.
        """
        allowed = [place for place in places if not self._is_own_place(place)]
        if not allowed:
            raise _loop(domain)
        return allowed


def _resolver(servers: list[str], reactor: Any) -> Any:
    """Asks *servers*, or those of this host, whose /etc/hosts counts then too."""
    if servers:
        return Resolver(servers=[server(each) for each in servers], timeout=_PATIENCE,
                        reactor=reactor)
    return ResolverChain([hosts.Resolver(), CacheResolver(reactor=reactor),
                          Resolver(resolv="/etc/resolv.conf", timeout=_PATIENCE, reactor=reactor)])


def _literal(domain: str) -> Place:
    """The address literal *domain* (RFC 5321 §4.1.3)."""
    try:
        address = _plain(re.sub(r"\A\[(IPv6:)?|\]\Z", "", domain, flags=re.IGNORECASE))
    except ValueError:
        raise Unroutable(f"{domain} is no address", 5, 1, 2) from None
    return Place(f"[IPv6:{address}]" if ":" in address else f"[{address}]", address)


def _plain(address: str) -> str:
    """*address*; one of IPv4 that is dressed as IPv6 (RFC 4291 §2.5.5.2) without the dress.

    It leads to the same place, so that it may not look like another.

    :raises ValueError: it is none.
    """
    parsed = ipaddress.ip_address(address)
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def _loop(domain: str) -> Unroutable:
    return Unroutable(f"mail for {domain} would come back to this host; add the domain here, or "
                      "correct its MX records", 5, 4, 6)


def is_local(address: str) -> bool:
    """Whether *address* is one of this host's: only these can be bound."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as trial:
            trial.bind((address, 0))
    except OSError:
        return False
    return True
