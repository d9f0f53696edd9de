"""mailsvc.doctor.published: each fact, from a DNS server that says what the test wants."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from cryptography import x509
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from mailsvc.config import ListenerSettings
from mailsvc.dkim import Key
from mailsvc.doctor.facts import Fact, Verdict, ok
from mailsvc.doctor.published import Published
from mailsvc.queue.security.https import HTTPFailure
from mailsvc.queue.security.lookup import Lookup
from mailsvc.reach import ports
from mailsvc.zone import Zone
from tests.authority import Authority
from tests.nameserver import NameServer
from tests.unbound import Unbound

KEY = Key("example.org", "r1", "rsa", "TUlJQkk=", active=True)
ZONE = Zone("example.org", "mx.example.org", ("127.0.0.1",), keys=(KEY,), reachable=ports(
    ListenerSettings(pop3s=["tcp:995"], submissions=["tcp:465"], pop3=[])))
POLICY = b"version: STSv1\nmode: enforce\nmx: *.example.org\nmax_age: 86400\n"

#: All as it shall be.
RIGHT = {
    "example.org": ["MX 10 mx.example.org", "TXT v=spf1 mx -all", "TXT other", "SECURE"],
    "mx.example.org": ["A 127.0.0.1", "TXT v=spf1 a -all", "SECURE"],
    "1.0.0.127.in-addr.arpa": ["PTR mx.example.org"],
    "r1._domainkey.example.org": ["TXT v=DKIM1; k=rsa; p=TUlJ Qkk="],
    "_dmarc.example.org": ["TXT v=DMARC1; p=quarantine"],
    "_mta-sts.example.org": ["TXT v=STSv1; id=1"],
    "_smtp._tls.example.org": ["TXT v=TLSRPTv1; rua=mailto:postmaster@example.org"],
    "_pop3s._tcp.example.org": ["SRV 5 1 995 mx.example.org"],
    "_submissions._tcp.example.org": ["SRV 0 1 465 MX.example.org"],
}


def facts_of(find: Callable[[Published], Coroutine[Any, Any, list[Fact]]],
             records: dict[str, list[str]], zone: Zone = ZONE, *, trusted: bool | None = None,
             policy: bytes | Exception = POLICY,
             addresses: tuple[str, ...] = ("127.0.0.1",),
             chains: Sequence[Sequence[x509.Certificate]] = ()) -> Deferred[list[Fact]]:
    """What one check finds where the DNS says *records*."""
    async def get(host: str, path: str, kind: str, most: int) -> bytes:
        assert (host, path) == ("mta-sts.example.org", "/.well-known/mta-sts.txt")
        if isinstance(policy, Exception):
            raise policy
        return policy

    async def found() -> list[Fact]:
        with NameServer(records) as names:
            lookup = Lookup([names.address], trusted, reactor)
            try:
                return await find(Published(zone, addresses, chains, lookup, get, 5, reactor))
            finally:
                await Deferred.fromCoroutine(_stopped(lookup))

    return Deferred.fromCoroutine(found())


async def _stopped(lookup: Lookup) -> None:
    lookup.stop()


def changed(**records: list[str] | None) -> dict[str, list[str]]:
    """RIGHT with other records at some names: ``mx`` is mx.example.org, ``_`` the domain."""
    zone: dict[str, list[str]] = dict(RIGHT)
    for key, lines in records.items():
        name = {"_": "example.org", "ptr": "1.0.0.127.in-addr.arpa"}.get(
            key, f"{key}.example.org")
        if lines is None:
            del zone[name]
        else:
            zone[name] = lines
    return zone


DKIM, DMARC, STS = "r1._domainkey", "_dmarc", "_mta-sts"
SRV_POP3S = "_pop3s._tcp"
MAIL, SPF = "MX 10 mx.example.org", "TXT v=spf1 mx -all"

#: id -> check, records, verdict of each fact, what a fact says.
CASES: dict[str, tuple[str, dict[str, list[str]], str, str]] = {
    "host": ("host", RIGHT, "ok", "mx.example.org is 127.0.0.1"),
    "host none": ("host", changed(mx=None), "FAIL", "has no address — publish"),
    "host silent": ("host", changed(mx=["SERVFAIL"]), "FAIL", "cannot tell"),
    "reverse": ("reverse", RIGHT, "ok", "127.0.0.1 is mx.example.org, and that is 127.0.0.1"),
    "reverse none": ("reverse", changed(ptr=None), "FAIL", "127.0.0.1 has no name — have whoever"),
    "reverse astray": ("reverse", changed(ptr=["PTR a.example.net"]), "FAIL",
                       "a.example.net, which does not lead back"),
    "reverse other": ("reverse", {**changed(ptr=["PTR vps.example.net"]),
                                  "vps.example.net": ["A 127.0.0.1"]}, "warn",
                      "though this host calls itself mx.example.org"),
    "MX": ("exchangers", RIGHT, "ok", "10 mx.example.org"),
    "MX none": ("exchangers", changed(_=[SPF]), "FAIL", "no MX record"),
    "MX null": ("exchangers", changed(_=["MX 0 ."]), "FAIL", "takes no mail (RFC 7505)"),
    "MX elsewhere": ("exchangers", changed(_=["MX 5 mx.example.net"]), "FAIL",
                     "leads elsewhere: 5 mx.example.net"),
    "MX two": ("exchangers", changed(_=["MX 5 mx.example.net", MAIL]), "ok",
               "5 mx.example.net, 10 mx.example.org"),
    "MX alias": ("exchangers", {**changed(mx=["CNAME a.example.net"]),
                                "a.example.net": ["A 127.0.0.1"]}, "warn", "is an alias (CNAME)"),
    "SPF": ("spf", RIGHT, "ok", "127.0.0.1 may send"),
    "SPF none": ("spf", changed(_=[MAIL]), "warn", "no record"),
    "SPF fail": ("spf", changed(_=[MAIL, "TXT v=spf1 ip4:192.0.2.1 -all"]), "FAIL", "127.0.0.1 "),
    "SPF softfail": ("spf", changed(_=[MAIL, "TXT v=spf1 ~all"]), "warn", "softfail"),
    "SPF two": ("spf", changed(_=[SPF, "TXT v=spf1 -all"]), "FAIL", "permerror"),
    "SPF void": ("spf", changed(_=["TXT v=spf1 a:a.x a:b.x a:c.x a:mx.example.org -all"]), "FAIL",
                 "permerror"),
    "SPF include": ("spf", {**changed(_=["TXT v=spf1 include:_spf.example.net -all"]),
                            "_spf.example.net": ["TXT v=spf1 ip4:127.0.0.0/8 -all"]}, "ok", ""),
    "SPF silent": ("spf", changed(_=["SERVFAIL"]), "FAIL", "temperror"),
    "DKIM": ("dkim", RIGHT, "ok", "r1 is published, and signs"),
    "DKIM none": ("dkim", changed(**{DKIM: None}), "FAIL", "is not published, though it signs"),
    "DKIM other": ("dkim", changed(**{DKIM: ["TXT v=DKIM1; k=rsa; p=AAAA"]}), "FAIL",
                   "published with another key"),
    "DKIM two": ("dkim", changed(**{DKIM: [*RIGHT[f"{DKIM}.example.org"], "TXT p=AAAA"]}), "FAIL",
                 "has 2 records"),
    "DKIM silent": ("dkim", changed(**{DKIM: ["SERVFAIL"]}), "FAIL", "cannot tell"),
    "DMARC": ("dmarc", RIGHT, "ok", "p=quarantine"),
    "DMARC none": ("dmarc", changed(**{DMARC: None}), "warn", "no record"),
    "DMARC lax": ("dmarc", changed(**{DMARC: ["TXT v=DMARC1;p=none"]}), "note", "let through"),
    "DMARC wrong": ("dmarc", changed(**{DMARC: ["TXT v=DMARC1; p=strict"]}), "FAIL", "p=strict"),
    "DMARC two": ("dmarc", changed(**{DMARC: ["TXT v=DMARC1; p=none", "TXT v=DMARC1; p=reject"]}),
                  "FAIL", "2 records, of which none counts"),
    "STS": ("mta_sts", RIGHT, "ok", "mode enforce, mx *.example.org"),
    "STS none": ("mta_sts", changed(**{STS: None}), "note", "none"),
    "STS wrong": ("mta_sts", changed(**{STS: ["TXT v=STSv1; id=-"]}), "FAIL", "letters and digits"),
    "TLS-RPT": ("tls_reports", RIGHT, "ok", "mailto:postmaster@example.org"),
    "TLS-RPT none": ("tls_reports", changed(**{"_smtp._tls": None}), "note", "none"),
    "TLS-RPT wrong": ("tls_reports", changed(**{"_smtp._tls": ["TXT v=TLSRPTv1; rua=x"]}), "warn",
                      "expected one record"),
    "SRV": ("programs", RIGHT, "ok", "2 records lead"),
    "SRV none": ("programs", changed(**{SRV_POP3S: None}), "note", "none for _pop3s._tcp"),
    "SRV astray": ("programs", changed(**{SRV_POP3S: ["SRV 0 1 995 old.example.org"]}), "warn",
                   "_pop3s._tcp.example.org says 0 1 995 old.example.org."),
    "DNSSEC": ("signed_domain", RIGHT, "ok", "validated"),
    "DNSSEC none": ("signed_domain", changed(_=[MAIL]), "note", "not signed"),
    "DNSSEC bogus": ("signed_domain", changed(_=["SERVFAIL"]), "FAIL", "do not validate"),
    "host signed": ("signed_host", RIGHT, "ok", "validated"),
}


@pytest.mark.parametrize("name", CASES)
@pytest_twisted.ensureDeferred
async def test_what_the_dns_says(name: str) -> None:
    check, records, verdicts, text = CASES[name]
    facts = await facts_of(lambda published: getattr(published, check)(), records)
    assert " ".join(str(each.verdict) for each in facts) == verdicts, facts
    assert text in str(facts[0])
    assert (facts[0].verdict <= Verdict.NOTE) or facts[0].remedy


@pytest.mark.parametrize(("policy", "verdict", "text"), [
    (POLICY.replace(b"enforce", b"testing"), "note", "mode testing"),
    (POLICY.replace(b"enforce", b"none"), "note", "nobody obeys it"),
    (POLICY.replace(b"*.example.org", b"mx.example.net"), "FAIL",
     "mx.example.org is not among them"),
    (b"mode: enforce", "FAIL", "no version"),
    (HTTPFailure("the answer is 404, expected 200"), "warn", "a record, and no policy: the answer"),
], ids=["testing", "none", "other", "broken", "absent"])
@pytest_twisted.ensureDeferred
async def test_policies(policy: bytes | Exception, verdict: str, text: str) -> None:
    (fact,) = await facts_of(Published.mta_sts, RIGHT, policy=policy)
    assert str(fact.verdict) == verdict and text in str(fact)


@pytest_twisted.ensureDeferred
async def test_keys_that_do_not_sign() -> None:
    (fact,) = await facts_of(Published.dkim, RIGHT, replace(ZONE, keys=()))
    assert "mailsvc dkim add example.org" in str(fact) and fact.verdict is Verdict.WARN
    idle = replace(ZONE, keys=(replace(KEY, active=False),))
    facts = await facts_of(Published.dkim, RIGHT, idle)
    assert [each.verdict for each in facts] == [Verdict.WARN] * 2
    assert all(each.remedy == "mailsvc dkim use example.org" for each in facts)
    facts = await facts_of(Published.dkim, changed(**{DKIM: None}), idle)
    assert "is not published" in facts[0].detail and facts[0].verdict is Verdict.WARN


@pytest_twisted.ensureDeferred
async def test_a_resolver_that_is_not_trusted_proves_nothing() -> None:
    (fact,) = await facts_of(Published.signed_domain, RIGHT, trusted=False)
    assert fact.verdict is Verdict.NOTE and "not looked at" in fact.detail


@pytest_twisted.ensureDeferred
async def test_a_resolver_that_validates(program: Callable[[str], str], tmp_path: Path) -> None:
    lines = ["@ MX 10 mx", "mx A 127.0.0.1", '@ TXT "v=spf1 mx -all"']
    verdicts = {"signed.example": "ok", "plain.example": "note", "forged.example": "FAIL"}
    with Unbound(program, tmp_path / "unbound", dict.fromkeys(verdicts, lines),
                 signed=["signed.example"], forged=["forged.example"]) as resolver:
        lookup = Lookup([resolver.address], None, reactor)
        for domain, verdict in verdicts.items():
            published = Published(Zone(domain, f"mx.{domain}"), ["127.0.0.1"], (), lookup, nothing,
                                  5, reactor)
            for find in published.signed_domain, published.signed_host:
                (*_, fact) = await find()
                assert str(fact.verdict) == verdict, fact
            # Records that do not validate are none.
            (fact,) = await published.spf()
            assert str(fact.verdict) == ("FAIL" if verdict == "FAIL" else "ok"), fact
        lookup.stop()


async def nothing(host: str, path: str, kind: str, most: int) -> bytes:
    """Nothing can be fetched."""
    raise HTTPFailure("nobody is there")


@pytest_twisted.ensureDeferred
async def test_dane() -> None:
    authority = Authority()
    issued, other = (authority.issue("mx.example.org") for _ in range(2))
    zone = replace(ZONE, certificates=(issued.certificate, issued.between))
    record, authoritys = [each.value for each in zone.of_transport() if each.kind == "TLSA"]
    authoritys = "2" + authoritys.removeprefix("3")
    chain, second = (issued.certificate, issued.between), (other.certificate, other.between)
    name = "_25._tcp.mx.example.org"
    for published, secure, chains, expected, text in (
            (record, ["SECURE"], [chain], Verdict.OK, "fits"),
            (authoritys, ["SECURE"], [chain, second], Verdict.OK, "fits"),
            (record, ["SECURE"], [chain, second], Verdict.FAIL, "cannot deliver here"),
            (f"3 1 1 {'ab' * 32}", ["SECURE"], [chain], Verdict.FAIL, "cannot deliver here"),
            (f"1 1 1 {'ab' * 32}", ["SECURE"], [chain], Verdict.FAIL, "can be used"),
            (record, [], [chain], Verdict.NOTE, "nobody obeys")):
        facts = await facts_of(Published.signed_host,
                               {**RIGHT, name: [f"TLSA {published}", *secure]}, chains=chains)
        assert facts[1].what == "DANE" and facts[1].verdict is expected, facts
        assert text in facts[1].detail
    facts = await facts_of(Published.signed_host, {**RIGHT, name: [f"TLSA {record}", "SECURE"]})
    assert facts[1].verdict is Verdict.NOTE


@pytest_twisted.ensureDeferred
async def test_addresses_that_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    away = changed(mx=["A 192.0.2.77"])
    monkeypatch.setattr("mailsvc.doctor.published.own_addresses", lambda: ["9.9.9.9"])
    (fact,) = await facts_of(Published.host, away)
    assert fact.verdict is Verdict.FAIL and "192.0.2.77 is not this machine's" in fact.detail
    (fact,) = await facts_of(Published.host, away, addresses=("192.0.2.77",))
    assert fact.verdict is Verdict.OK
    monkeypatch.setattr("mailsvc.doctor.published.own_addresses", lambda: ["10.0.0.9"])
    (fact,) = await facts_of(Published.host, away)
    assert fact.verdict is Verdict.NOTE and "--address" in fact.remedy
    # Without an address to judge, it is those of the host's name.
    facts = await facts_of(Published.spf, away, addresses=())
    assert facts == [ok("SPF example.org", "192.0.2.77 may send")]
