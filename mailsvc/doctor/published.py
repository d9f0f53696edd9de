"""What the DNS says of the host and of a domain, compared with what it has to say.

What that is, :mod:`mailsvc.zone` knows.  Everything is asked of the resolver that the relay uses.
DNSSEC is judged only where that resolver may be believed (``relay.dane``): else its word is worth
nothing.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from cryptography import x509
from twisted.internet.threads import blockingCallFromThread

from mailsvc.doctor.facts import Fact, fail, in_thread, note, ok, warn
from mailsvc.doctor.spf import evaluate
from mailsvc.queue.exchangers import is_local
from mailsvc.queue.security.dane import TLSA, strongest
from mailsvc.queue.security.dane import examine as misfit
from mailsvc.queue.security.https import HTTPFailure
from mailsvc.queue.security.lookup import Found, Lookup, LookupFailed
from mailsvc.queue.security.sts import POLICY_OCTETS, Unusable, parse_policy, parse_record
from mailsvc.reach import is_public, own_addresses
from mailsvc.zone import POLICY_PATH, Record, Zone

_PUBLISH = "publish the record: mailsvc domain records"

#: What to do when the name servers cannot tell.
_RESOLVER = ("see to the name servers (/etc/resolv.conf, relay.dns), and with DNSSEC to the "
             "signatures of the zone")


class Published:
    """Compares *zone* with what the DNS says now.

    :param addresses: those that mail leaves from, as others see them; empty for those of the host's
        name.
    :param chains: the certificates that the service shows, each with its issuers; none if they
        cannot be read here.
    :param get: fetches by HTTPS: host, path, media type, most octets.
    :param seconds: how long the judgement of SPF may take.
    """

    def __init__(self, zone: Zone, addresses: Sequence[str],
                 chains: Sequence[Sequence[x509.Certificate]], lookup: Lookup,
                 get: Callable[[str, str, str, int], Awaitable[bytes]], seconds: float,
                 reactor: Any) -> None:
        self._zone = zone
        self._addresses = addresses
        self._chains = chains
        self._lookup = lookup
        self._get = get
        self._seconds = seconds
        self._reactor = reactor

    # ---- the host ----

    async def host(self) -> list[Fact]:
        """Whether the host's name leads here."""
        what, name = "host name", self._zone.hostname
        if "." not in name:
            return [fail(what, f"{name} is no name that others find", "set service.hostname to "
                         "this host's full name, such as mail.example.org")]
        try:
            found = await self._host_addresses()
        except LookupFailed as failure:
            return [fail(what, str(failure), _RESOLVER)]
        if not found:
            return [fail(what, f"{name} has no address", f"{_PUBLISH}, or set service.hostname")]
        text = f"{name} is {', '.join(found)}"
        ours = {*self._addresses, *(each for each in found if is_local(each))}
        away = [each for each in found if each not in ours]
        if not away:
            return [ok(what, text)]
        if len(away) == len(found) and not any(map(is_public, own_addresses())):
            return [note(what, f"{text}; whether that leads here cannot be told: this machine has "
                         "private addresses alone", "name its address: --address")]
        return [fail(what, f"{text}, of which {', '.join(away)} is not this machine's",
                     "mend the A and AAAA records; or if a router leads it here, add --address")]

    async def reverse(self) -> list[Fact]:
        """Whether each address that mail leaves from has a name that leads back to it."""
        what = "reverse DNS"
        try:
            addresses = self._addresses or await self._host_addresses()
            return [await self._reverse(address) for address in addresses] or [
                note(what, "no address to ask about", "name it: --address")]
        except LookupFailed as failure:
            return [fail(what, str(failure), _RESOLVER)]

    async def _reverse(self, address: str) -> Fact:
        what, hostname = "reverse DNS", self._zone.hostname
        found = await self._lookup.find(ipaddress.ip_address(address).reverse_pointer, "PTR")
        names = [each.target.to_text(omit_final_dot=True).lower() for each in found.records]
        remedy = (f"have whoever gave you {address} call it {hostname}: many hosts take no mail "
                  "from addresses without a name")
        if not names:
            return fail(what, f"{address} has no name", remedy)
        for name in sorted(names, key=lambda each: each != hostname)[:5]:
            if address in await self._addresses_of(name):
                if name == hostname:
                    return ok(what, f"{address} is {name}, and that is {address}")
                return warn(what, f"{address} is {name}, though this host calls itself {hostname}",
                            remedy + "; or set service.hostname to that name")
        return fail(what, f"{address} is {', '.join(names)}, which does not lead back to it",
                    remedy)

    async def signed_host(self) -> list[Fact]:
        """Whether the host's name is signed, and TLSA records fit our certificate."""
        hostname = self._zone.hostname
        facts = [await self._signed(hostname, "A")]
        try:
            found = await self._lookup.find(f"_25._tcp.{hostname}", "TLSA")
        except LookupFailed as failure:
            return [*facts, fail("DANE", str(failure), _RESOLVER)]
        return [*facts, self._dane(found)] if found.records else facts

    async def signed_domain(self) -> list[Fact]:
        """Whether the domain's MX records are signed."""
        return [await self._signed(self._zone.domain, "MX")]

    async def _signed(self, name: str, kind: str) -> Fact:
        what = f"DNSSEC {name}"
        try:
            found = await self._lookup.find(name, kind)
        except LookupFailed as failure:
            return fail(what, str(failure), _RESOLVER)
        if not self._lookup.trusted:
            return note(what, "not looked at: the resolver is on another machine, or relay.dane is "
                        "off, so its word counts for nothing",
                        "run a resolver here that validates, such as unbound; DANE needs one too")
        if not found.secure:
            return note(what, "not signed, or the resolver does not validate")
        return ok(what, "signed, and validated")

    def _dane(self, found: Found) -> Fact:
        what = "DANE"
        records = [TLSA(each.usage, each.selector, each.mtype, each.cert)
                   for each in found.records]
        if not found.secure:
            return note(what, "there are TLSA records, which nobody obeys: they are not signed")
        if not self._chains:
            return note(what, f"{len(records)} TLSA records; our certificate cannot be read here",
                        "run this as root, or as the user that runs the service")
        counting = strongest(records)
        if not counting:
            return fail(what, "no TLSA record can be used: who obeys them wants TLS, and no more",
                        "publish those of `mailsvc domain records --tlsa`")
        # A client gets any of the certificates, by the kinds of keys that it knows.
        names = (self._zone.hostname, self._zone.domain)
        problems = [problem for chain in self._chains
                    if (problem := misfit(counting, names, chain)) is not None]
        if problems:
            return fail(what, f"{problems[0]}: who obeys them cannot deliver here",
                        "publish those of `mailsvc domain records --tlsa`, at once")
        return ok(what, f"{', '.join(map(str, counting))} fits")

    # ---- the domain ----

    async def exchangers(self) -> list[Fact]:
        """Whether mail for the domain is sent here."""
        what, zone = f"MX {self._zone.domain}", self._zone
        try:
            found = await self._lookup.find(zone.domain, "MX")
            alias = (await self._lookup.find(zone.hostname, "A")).name != zone.hostname
        except LookupFailed as failure:
            return [fail(what, str(failure), _RESOLVER)]
        hosts = sorted((each.preference, each.exchange.to_text().rstrip(".").lower())
                       for each in found.records)
        text = ", ".join(f"{preference} {name or '.'}" for preference, name in hosts)
        if not hosts:
            return [fail(what, "no MX record", f"{_PUBLISH} {zone.domain}")]
        if hosts == [(0, "")]:
            return [fail(what, "says that the domain takes no mail (RFC 7505)",
                         f"{_PUBLISH} {zone.domain}")]
        if zone.hostname not in (name for _, name in hosts):
            return [fail(what, f"leads elsewhere: {text}", f"{_PUBLISH} {zone.domain}, or set "
                         "service.hostname to the name that it leads to")]
        if alias:
            # RFC 2181 §10.3, RFC 5321 §5.1.
            return [warn(what, f"{text}; {zone.hostname} is an alias (CNAME), which an exchanger "
                         "must not be", "give it A and AAAA records of its own")]
        return [ok(what, text)]

    async def spf(self) -> list[Fact]:
        """Whether SPF lets our addresses send as the domain."""
        what, zone = f"SPF {self._zone.domain}", self._zone
        if zone.smarthost:
            return await self._spf_by_smarthost(what)
        try:
            addresses = self._addresses or await self._host_addresses()
        except LookupFailed as failure:
            return [fail(what, str(failure), _RESOLVER)]
        facts = []
        for address in addresses:
            result, text = await in_thread(
                self._reactor, evaluate, address, zone.domain, zone.hostname, self._seconds,
                self._find_blocking)
            facts.append(_spf_fact(what, address, result, text, zone))
        return facts or [note(what, "no address to judge", "name it: --address")]

    async def _spf_by_smarthost(self, what: str) -> list[Fact]:
        try:
            texts = await self._lookup.texts(self._zone.domain)
        except LookupFailed as failure:
            return [fail(what, str(failure), _RESOLVER)]
        there = [each for each in texts if re.match(r"v=spf1( |$)", each, re.IGNORECASE)]
        if len(there) != 1:
            return [fail(what, f"{len(there)} SPF records, expected one",
                         f"publish what the provider of {self._zone.smarthost} says")]
        return [note(what, f"{there[0]}; mail leaves by {self._zone.smarthost}, whose addresses "
                     "are not known here")]

    def _find_blocking(self, name: str, kind: str) -> Found:
        asking: Any = self._lookup.find
        found: Found = blockingCallFromThread(self._reactor, asking, name, kind)
        return found

    async def dkim(self) -> list[Fact]:
        """Whether the record of each key says what the key is."""
        what, zone = f"DKIM {self._zone.domain}", self._zone
        if not zone.keys:
            return [warn(what, "no key signs what is sent", f"mailsvc dkim add {zone.domain}")]
        facts = []
        for key in zone.keys:
            try:
                texts = await self._lookup.texts(key.name)
            except LookupFailed as failure:
                facts.append(fail(what, str(failure), _RESOLVER))
                continue
            # RFC 6376 §3.6.2.2: with several records the outcome is undefined.
            if len(texts) == 1 and _tags(texts[0]).get("p") == key.public \
                    and _tags(texts[0]).get("k", "rsa") == key.algorithm:
                facts.append(ok(what, f"{key.selector} is published, and signs") if key.active else
                             warn(what, f"{key.selector} is published, and does not sign",
                                  f"mailsvc dkim use {zone.domain}"))
                continue
            problem = ("is not published" if not texts else f"has {len(texts)} records"
                       if len(texts) > 1 else "is published with another key")
            judge = fail if key.active else warn
            facts.append(judge(what, f"{key.selector} {problem}"
                               + (", though it signs" if key.active else ""),
                               f"publish its record: mailsvc dkim records {zone.domain}"))
        if not any(key.active for key in zone.keys):
            facts.append(warn(what, "no key signs what is sent",
                              f"mailsvc dkim use {zone.domain}"))
        return facts

    async def dmarc(self) -> list[Fact]:
        """Whether there is a DMARC record, and what it asks for."""
        what, zone = f"DMARC {self._zone.domain}", self._zone
        try:
            texts = await self._lookup.texts(f"_dmarc.{zone.domain}")
        except LookupFailed as failure:
            return [fail(what, str(failure), _RESOLVER)]
        # RFC 7489 §6.6.3: others do not count, and of several none does.
        there = [each for each in texts if re.match(r"v=DMARC1[ \t]*(;|$)", each)]
        if not there:
            return [warn(what, "no record: anybody can send in the name of the domain",
                         f"{_PUBLISH} {zone.domain}")]
        if len(there) > 1:
            return [fail(what, f"{len(there)} records, of which none counts", "keep one")]
        tags = _tags(there[0])
        policy = tags.get("p", "")
        if policy not in ("none", "quarantine", "reject"):
            return [fail(what, f"{there[0]}: p={policy}, expected none, quarantine or reject",
                         f"{_PUBLISH} {zone.domain}")]
        if policy == "none":
            return [note(what, f"{there[0]}: forged mail is let through",
                         "p=quarantine, once reports show that your own mail passes")]
        return [ok(what, there[0])]

    async def mta_sts(self) -> list[Fact]:
        """Whether there is an MTA-STS policy that holds for this host."""
        what, zone = f"MTA-STS {self._zone.domain}", self._zone
        remedy = f"see `mailsvc domain records {zone.domain}`"
        try:
            identity = parse_record(await self._lookup.texts(f"_mta-sts.{zone.domain}"))
            if identity is None:
                return [note(what, "none", f"to have other servers insist on TLS, {remedy}")]
            policy = parse_policy(await self._get(
                zone.policy_host, POLICY_PATH, "text/plain", POLICY_OCTETS))
        except LookupFailed as failure:
            return [fail(what, str(failure), _RESOLVER)]
        except Unusable as problem:
            return [fail(what, str(problem), remedy)]
        except HTTPFailure as failure:
            # RFC 8461 §3.3: then others deliver as though there were none.
            return [warn(what, f"there is a record, and no policy: {failure.text}",
                         f"{remedy}, or take the record out of the DNS")]
        if policy.mode == "none":
            return [note(what, "mode none: nobody obeys it")]
        text = f"mode {policy.mode}, mx {' '.join(policy.patterns)}"
        if not policy.matches(zone.hostname):
            return [fail(what, f"{text}: {zone.hostname} is not among them",
                         f"{remedy}; change the id with it")]
        if policy.mode == "testing":
            return [note(what, text, "once the certificate is trusted: mode: enforce")]
        return [ok(what, text)]

    async def tls_reports(self) -> list[Fact]:
        """Whether anybody is told how others fare with TLS to here (RFC 8460)."""
        what, zone = f"TLS-RPT {self._zone.domain}", self._zone
        try:
            texts = await self._lookup.texts(f"_smtp._tls.{zone.domain}")
        except LookupFailed as failure:
            return [fail(what, str(failure), _RESOLVER)]
        there = [each for each in texts if re.match(r"v=TLSRPTv1[ \t]*;", each)]
        if not there:
            return [note(what, "none", f"see `mailsvc domain records {zone.domain}`")]
        if len(there) > 1 or not re.match(r"(mailto:|https://)", _tags(there[0]).get("rua", "")):
            return [warn(what, f"{' and '.join(there)}: expected one record with "
                         "rua=mailto:… or https://…", f"{_PUBLISH} {zone.domain}")]
        return [ok(what, there[0])]

    async def programs(self) -> list[Fact]:
        """Whether mail programs are led to the ports that are open (RFC 6186)."""
        what, zone = f"SRV {self._zone.domain}", self._zone
        wanted = [each for each in zone.of_programs() if not each.value.endswith(" .")]
        wrong, absent = [], []
        try:
            for name in dict.fromkeys(each.name for each in wanted):
                found = {each.to_text().lower() for each in
                         (await self._lookup.find(name, "SRV")).records}
                if not found:
                    absent.append(name)
                elif not _same_ports(found, [each for each in wanted if each.name == name]):
                    wrong.append(f"{name} says {', '.join(sorted(found))}")
        except LookupFailed as failure:
            return [fail(what, str(failure), _RESOLVER)]
        remedy = f"see `mailsvc domain records {zone.domain}`"
        if wrong:
            return [warn(what, f"mail programs are led astray: {'; '.join(wrong)}", remedy)]
        if absent or not wanted:
            return [note(what, f"none for {', '.join(absent)}" if absent else "nothing to find",
                         remedy)]
        return [ok(what, f"{len(wanted)} records lead mail programs here")]

    # ---- asking ----

    async def _host_addresses(self) -> list[str]:
        return await self._addresses_of(self._zone.hostname)

    async def _addresses_of(self, name: str) -> list[str]:
        return [each.address for kind in ("A", "AAAA")
                for each in (await self._lookup.find(name, kind)).records]


def _tags(text: str) -> dict[str, str]:
    """The tags of a record such as ``v=DKIM1; p=…``; white space does not count."""
    pairs = (each.partition("=") for each in text.split(";"))
    return {name.strip(): re.sub(r"\s", "", value) for name, _, value in pairs if name.strip()}


def _same_ports(found: set[str], wanted: Sequence[Record]) -> bool:
    """Whether SRV records lead to the same ports and hosts; priorities may be others."""
    return {tuple(each.split()[2:]) for each in found} == {
        tuple(each.value.lower().split()[2:]) for each in wanted}


def _spf_fact(what: str, address: str, result: str, text: str, zone: Zone) -> Fact:
    told = f"{address} {result}: {text}"
    match result:
        case "pass":
            return ok(what, f"{address} may send")
        case "none":
            return warn(what, "no record", f"{_PUBLISH} {zone.domain}")
        case "softfail" | "neutral":
            return warn(what, told, f"name {address} in it; `mailsvc domain records "
                        f"{zone.domain}` has one that does")
        case "temperror":
            return fail(what, told, _RESOLVER)
    return fail(what, told, f"mend the record; see `mailsvc domain records {zone.domain}`")
