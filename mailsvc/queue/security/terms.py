"""On which terms each host is sent to: what TLS has to prove first.

In this order, the first that there is (RFC 7672 §2.1, RFC 8461 §2, RFC 7435):

* DANE: TLSA records that a resolver vouches for;
* MTA-STS: the domain's policy, unless its mode is "none"; in mode "testing" what fails is only
  reported;
* what was seen before: a domain that was reached by TLS is not sent to in the clear;
* TLS where it is offered.

A host that the configuration names in the place of exchangers is the domain then (RFC 7672 §2.2.2,
RFC 8461 §3.4), but for what was seen before: its route says what it has to do.  Where that is to
prove its name, TLSA records are another way to do so, and a policy adds nothing.

A message with REQUIRETLS (RFC 8689) goes to nobody who does not prove a name that is an exchanger's
for certain.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, replace
from typing import Any

from twisted.logger import Logger

from mailsvc.client import Client
from mailsvc.errors import EnhancedStatus, MailFailure
from mailsvc.queue.exchangers import Place
from mailsvc.queue.routes import Hop
from mailsvc.queue.security.dane import examine
from mailsvc.queue.security.levels import RENEW, Levels, Seen
from mailsvc.queue.security.lookup import Lookup, LookupFailed
from mailsvc.queue.security.policies import Finding, Policies
from mailsvc.queue.security.reporter import Reporter
from mailsvc.queue.security.results import Applied, Detail, Results
from mailsvc.queue.security.tlsa import Bindings
from mailsvc.smtp.failures import TLSFailed
from mailsvc.store.threads import Threads
from mailsvc.trust import Trust

_log = Logger("mailsvc.queue")

#: RFC 8689 §4.2.1: what a message with REQUIRETLS is returned with; and what people are told.
_NEEDED = EnhancedStatus(5, 7, 10)
_REQUIRED = "the message may only go where that is proven (REQUIRETLS)"
#: What will be the same tomorrow, of the result types of RFC 8460 §4.3.
_LASTING = ("starttls-not-supported", "certificate-host-mismatch", "certificate-expired",
            "certificate-not-trusted", "tlsa-invalid")


@dataclass(frozen=True, slots=True)
class Demand:
    """What a connection to one place has to prove.

    :ivar tls: as ``mailsvc.client.TLS``; *trust* goes with it.
    :ivar why: what makes TLS mandatory, for people; empty if it is not.
    :ivar kind: the policy-type of RFC 8460 §4.4: "tlsa", "sts" or "no-policy-found".
    :ivar records: the TLSA records, for reports.
    :ivar flaw: what is wrong with the place itself, where that is only to be reported.
    """

    tls: str
    trust: Trust | None = None
    why: str = ""
    kind: str = "no-policy-found"
    records: tuple[str, ...] = ()
    flaw: TLSFailed | None = None

    def __str__(self) -> str:
        """For people."""
        if self.tls in ("no", "opportunistic"):
            return "no TLS" if self.tls == "no" else "TLS if it is offered, any certificate"
        trust = self.trust
        proof = ("any certificate" if trust is None or not trust.verify else
                 "a certificate for its name" if trust.check is None else
                 "a certificate that its TLSA records name")
        return f"TLS, {proof}; required by {self.why}" if self.why else f"TLS, {proof}"


class Security:
    """The terms of all destinations.

    :param lookup: asks the DNS; stopped with this.
    :param policies: where MTA-STS is obeyed; else None.
    :param levels: where it is remembered who was reached by TLS; else None.
    :param bindings: where DANE is obeyed; else None.
    :param reporter: sends reports of *results*; else None.
    :param authorities: a PEM file of those who may vouch for a host; empty for the system's.
    :param port: of exchangers.
    """

    def __init__(self, lookup: Lookup, policies: Policies | None, levels: Levels | None,
                 bindings: Bindings | None, results: Results | None, reporter: Reporter | None,
                 authorities: str, port: int, threads: Threads, clock: Any) -> None:
        self.levels = levels
        self.bindings = bindings
        self.results = results
        self.authorities = authorities
        self.port = port
        self._lookup = lookup
        self._policies = policies
        self._reporter = reporter
        self._threads = threads
        self._clock = clock

    def start(self, *, leading: bool) -> None:
        """Begin with what is done beside sending.

        :param leading: whether what one process does for all is done here.
        """
        if not leading:
            if self.results is not None:
                self.results.start()
            return
        if self._policies is not None:
            self._policies.start()
        if self._reporter is not None:
            self._reporter.start()

    def stop(self) -> None:
        """Begin nothing more."""
        if self._policies is not None:
            self._policies.stop()
        if self._reporter is not None:
            self._reporter.stop()
        self._lookup.stop()

    async def terms(self, hop: Hop) -> Terms:
        """The terms of *hop* now; never fails."""
        terms = Terms(self, hop)
        if terms.weighed:
            if self._policies is not None and hop.tls == "opportunistic":
                finding = terms.finding = await self._policies.find(hop.host)
                if finding.reason:
                    terms.note("sts", (), Detail(finding.reason, text=finding.text))
            terms.seen = self._seen(hop.host) if hop.exchangers else None
        return terms

    def _seen(self, domain: str) -> Seen | None:
        try:
            return self.levels.get(domain) if self.levels is not None else None
        except MailFailure as failure:
            _log.error("what {domain} was reached by cannot be read: {reason}", domain=domain,
                       reason=failure.text)
            return None

    def reached(self, terms: Terms, place: Place, client: Client) -> None:
        """There is TLS with *place*."""
        now, seen, secured = self._clock.seconds(), terms.seen, client.secured
        if secured is None or self.levels is None or (
                seen is not None and seen.latest > now - RENEW
                and seen.verified >= secured.verified):
            return
        terms.seen = Seen(terms.hop.host, seen.since if seen is not None else now, now,
                          secured.verified, secured.version, place.name)
        self._threads.run(self.levels.note, terms.seen).addErrback(lambda failure: _log.error(
            "what {domain} was reached by cannot be kept: {reason}", domain=terms.hop.host,
            reason=failure.getErrorMessage()))


class Terms:
    """The terms of one hop, for the time of one attempt.

    :ivar finding: what its MTA-STS policy is.
    :ivar seen: how it was reached before.
    """

    def __init__(self, security: Security, hop: Hop) -> None:
        self.hop = hop
        self.finding = Finding()
        self.seen: Seen | None = None
        self._security = security

    @property
    def weighed(self) -> bool:
        """Whether what the other side publishes counts: unless the message asks for nothing
        (TLS-Required: No, RFC 8689 §4.2.2), or the route for no TLS."""
        hop = self.hop
        return hop.named and hop.wish != "ignore" and hop.tls != "no"

    async def demand(self, place: Place) -> Demand:
        """What a connection to *place* has to prove.

        :raises TLSFailed: it may not be used at all.
        """
        authorities, hop = self._security.authorities, self.hop
        verified = Trust(authorities=authorities)
        # What the route says.
        demand = Demand(hop.tls, None if hop.tls == "no" else verified)
        if hop.tls == "opportunistic":
            demand = Demand(hop.tls, Trust(authorities=authorities, verify=False))
        if self.weighed:
            bound = await self._by_dane(place, verified)
            if bound is not None:
                demand = bound
            elif hop.tls == "opportunistic":
                demand = self._by_policy(place, demand, verified)
        # What goes to a socket stays on this machine.
        if hop.wish == "require" and "/" not in hop.host:
            return await self._stricter(place, demand, verified)
        return demand

    async def _stricter(self, place: Place, demand: Demand, verified: Trust) -> Demand:
        """*demand* as REQUIRETLS has it (RFC 8689 §4.2.1): verified, or not at all."""
        if demand.tls == "no":
            raise TLSFailed(f"{place.name} is reached without TLS, as its route says; {_REQUIRED}",
                            status=_NEEDED)
        try:
            assured = await self._assured(place)
        except LookupFailed as problem:
            raise TLSFailed(f"whether {place.name} is an exchanger of {self.hop.host} cannot be "
                            f"told: {problem}; {_REQUIRED}", "dnssec-invalid") from None
        if not assured:
            # The policy that could say so may be there later.
            raise TLSFailed(
                f"neither DNSSEC nor an MTA-STS policy proves that {place.name} is an exchanger of "
                f"{self.hop.host}; {_REQUIRED}",
                status=None if self.finding.reason else _NEEDED)
        if demand.trust is None or not demand.trust.verify:
            return Demand("starttls", verified, "the message (REQUIRETLS)")
        return demand

    async def _assured(self, place: Place) -> bool:
        """Whether *place* is the right one for certain (RFC 8689 §2): we or the domain itself named
        it, or its policy, or MX records that the resolver vouches for.

        :raises LookupFailed: nobody can tell now.
        """
        hop, policy, bindings = self.hop, self.finding.policy, self._security.bindings
        if not hop.exchangers or not hop.named or place.name == hop.host:
            return True
        if policy is not None and policy.mode != "none" and policy.matches(place.name):
            return True
        return bindings is not None and await bindings.vouched(hop.host, place.name)

    async def seals(self, place: Place, client: Client) -> bool:
        """Whether REQUIRETLS may be said over the connection to *place* that *client* is."""
        secured = client.secured
        try:
            return (secured is not None and secured.verified
                    and client.extension("REQUIRETLS") is not None and await self._assured(place))
        except LookupFailed:
            return False

    async def _by_dane(self, place: Place, verified: Trust) -> Demand | None:
        """What the TLSA records of *place* demand, if there are any."""
        bindings, hop, insists = self._security.bindings, self.hop, self.hop.tls != "opportunistic"
        if bindings is None:
            return None
        port = hop.port or self._security.port
        try:
            binding = await (bindings.exchanger(hop.host, place.name, port) if hop.exchangers
                             else bindings.host(place.name, port))
        except LookupFailed as problem:
            if insists:
                return None  # The name is to be proven all the same.
            # RFC 7672 §2.1.2: whoever can suppress an answer must not gain by it.
            failure = TLSFailed(f"whether {place.name} has TLSA records cannot be told: {problem}",
                                "dnssec-invalid")
            self.note("tlsa", (), _detail(failure, place))
            raise failure from None
        if binding is None:
            return None
        if binding.records:
            trust = Trust(server_name=binding.base, check=functools.partial(
                examine, binding.records, binding.names))
        elif insists:
            return None
        else:
            # A name and password are for nobody who proves nothing.
            trust = verified if hop.user else Trust(verify=False, server_name=binding.base)
        return Demand(hop.tls if insists else "starttls", trust,
                      f"the TLSA records of {binding.base}", "tlsa",
                      tuple(map(str, binding.published)))

    def _by_policy(self, place: Place, offered: Demand, verified: Trust) -> Demand:
        """What the domain's policy demands, or else what it did before; or just *offered*."""
        policy, domain, flaw = self.finding.policy, self.hop.host, None
        if policy is not None and policy.mode != "none":
            why = f"the MTA-STS policy of {domain}"
            if not policy.matches(place.name):
                flaw = TLSFailed(
                    f"{place.name} is not among the exchangers that {why} names "
                    f"({', '.join(policy.patterns[:5])})", "validation-failure",
                    status=_NEEDED if self.hop.wish == "require" else None)
            if policy.mode == "enforce":
                if flaw is not None:
                    self.note("sts", (), _detail(flaw, place))
                    raise flaw
                return Demand("starttls", verified, why, "sts")
            return replace(offered, kind="sts", flaw=flaw)
        if self.seen is not None:
            since = time.strftime("%Y-%m-%d", time.gmtime(self.seen.since))
            return Demand("starttls", offered.trust,
                          f"what {domain} had from {since} on (an operator may let it go: mailsvc "
                          f"queue tls forget {domain})")
        return offered

    def reached(self, place: Place, demand: Demand, client: Client) -> None:
        """A connection to *place* has met *demand*."""
        if not self.weighed:
            return
        if self.hop.exchangers:
            self._security.reached(self, place, client)
        secured, failure = client.secured, demand.flaw
        if failure is None and secured is None:
            failure = client.tls_failure or TLSFailed(
                f"{place.name} does not offer STARTTLS", "starttls-not-supported")
        elif failure is None and demand.kind == "sts" and secured is not None and secured.flaw:
            failure = TLSFailed(secured.flaw, secured.reason)
        self.note(demand.kind, demand.records,
                  _detail(failure, place) if failure is not None else None)

    def missed(self, place: Place, demand: Demand, failure: TLSFailed) -> TLSFailed:
        """A connection to *place* has not: the failure with its reason."""
        if self.weighed:
            self.note(demand.kind, demand.records, _detail(failure, place))
        reply = failure.reply
        if self.hop.wish == "require" and failure.reason in _LASTING and (
                reply is None or reply.code >= 500):
            # RFC 8689 §4.2.1: its sender is told at once.
            failure = TLSFailed(failure.text, failure.reason, failure.stage, _NEEDED, reply=reply)
        if not demand.why:
            return failure
        return TLSFailed(f"{place.name}: {failure.text}; TLS is required by {demand.why}",
                         failure.reason, failure.stage, failure.status, reply=reply)

    def note(self, kind: str, records: tuple[str, ...], detail: Detail | None) -> None:
        """Count a session for the report."""
        results, policy = self._security.results, self.finding.policy
        if results is None:
            return
        applied = Applied(kind, records)
        if kind == "sts" and policy is not None:
            applied = Applied(kind, tuple(policy.text.splitlines()), policy.patterns)
        results.note(self.hop.host, applied, detail)


def _detail(failure: TLSFailed, place: Place) -> Detail:
    return Detail(failure.reason, place.name, place.address, failure.text)
