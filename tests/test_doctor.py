"""``mailsvc doctor``: each fact, from a DNS server and services that say what the test wants."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from cryptography import x509
from twisted.internet import reactor, task
from twisted.internet.defer import Deferred

from mailsvc.config import ListenerSettings, Settings
from mailsvc.dkim import Key
from mailsvc.doctor import host
from mailsvc.doctor.facts import Check, Fact, Verdict, examine, in_thread, ok, warn
from mailsvc.doctor.listening import is_proxied, judged
from mailsvc.doctor.published import Published
from mailsvc.queue.security.https import HTTPFailure
from mailsvc.queue.security.lookup import Lookup
from mailsvc.reach import ports
from mailsvc.trust import Secured
from mailsvc.zone import Zone
from tests.authority import Authority, pem
from tests.command_line import CommandLine
from tests.nameserver import NameServer
from tests.policyhost import PolicyHost
from tests.service import Service
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


# ---- how checks are run -------------------------------------------------------------------------


def test_checks_run_side_by_side_each_bounded_and_are_told_in_order() -> None:
    clock = task.Clock()
    slow: Deferred[list[Fact]] = Deferred()
    told: list[Fact] = []
    waited: list[str] = []

    async def first() -> list[Fact]:
        return await slow

    async def second() -> list[Fact]:
        return [warn("second", "a\x1b\nb", "do")]

    async def never() -> list[Fact]:
        return await Deferred()

    async def broken() -> list[Fact]:
        raise ValueError("oh")

    checks = [Check("first", first), Check("second", second), Check("never", never),
              Check("broken", broken)]
    done = Deferred.fromCoroutine(examine(checks, 5, clock, told.append, waited.append))
    assert (told, waited) == ([], ["first"])
    slow.callback([ok("first", "x")])
    assert [each.what for each in told] == ["first", "second"] and waited == ["first", "never"]
    clock.advance(5)
    facts: list[Fact] = []
    done.addCallback(facts.extend)
    assert facts == told
    assert [(each.what, str(each.verdict)) for each in facts] == [
        ("first", "ok"), ("second", "warn"), ("never", "FAIL"), ("broken", "FAIL")]
    assert "within 5 seconds" in facts[2].detail
    assert "ValueError: oh" in facts[3].detail


def test_no_more_checks_run_at_once_than_may() -> None:
    clock = task.Clock()
    waiting: list[Deferred[list[Fact]]] = []

    async def find() -> list[Fact]:
        waiting.append(Deferred())
        return await waiting[-1]

    done = Deferred.fromCoroutine(
        examine([Check(str(n), find) for n in range(5)], 5, clock, lambda _: None, at_once=2))
    assert len(waiting) == 2
    clock.advance(4)
    waiting[0].callback([])
    assert len(waiting) == 3
    clock.advance(4)  # the second has had its time, the third has not
    assert len(waiting) == 4 and not waiting[2].called
    for each in waiting[2:]:
        each.callback([])
    waiting[-1].callback([])
    assert [each.what for each in getattr(done, "result", [])] == ["1"]


def test_a_fact_is_one_line_whatever_a_peer_said() -> None:
    text = str(warn("a", "x\ny\x1b[31m\r\n\x9bz\u202e", "do\nthis"))
    assert text == "warn  " + "a".ljust(30) + "  x y?[31m ?z? — do this"


@pytest_twisted.ensureDeferred
async def test_a_thread_that_hangs_is_left_behind() -> None:
    import threading  # noqa: PLC0415

    release = threading.Event()
    try:
        hanging = Check("disk", lambda: in_thread(reactor, release.wait))  # type: ignore[arg-type]
        (fact,) = await examine([hanging], 0.05, reactor, lambda _: None)
        assert "could not be told within" in fact.detail
    finally:
        release.set()


# ---- the host -----------------------------------------------------------------------------------


def settings(data: Path) -> Settings:
    return Settings.from_mapping({"service": {"data": str(data)}})


def test_the_data_directory(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (fact,) = host.data_directory(settings(data))
    assert fact.verdict is Verdict.FAIL and "there is no" in fact.detail
    data.mkdir(0o700)
    (data / "mail").mkdir()
    assert [each.verdict for each in host.data_directory(settings(data))] == [Verdict.OK]
    if os.geteuid() == 0:
        os.chown(data / "mail", 12345, -1)
        (fact,) = host.data_directory(settings(data))
        assert fact.verdict is Verdict.FAIL and "chown -R" in fact.remedy
        assert str(data / "mail") in fact.detail
    data.chmod(0o755)
    (fact,) = host.data_directory(settings(data))
    assert (fact.verdict, fact.remedy) == (Verdict.WARN, f"chmod 700 {data}")


@pytest.mark.parametrize(("free", "files", "verdict"), [
    (50, 50, "ok"), (5, 50, "warn"), (0.1, 50, "FAIL"), (50, 5, "warn"), (50, 1, "FAIL"),
], ids=["room", "little", "nothing", "few files", "no files"])
def test_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, files: int,
              verdict: str) -> None:
    blocks, most = 25_000_000, 1_000_000  # 100 GB
    status = os.statvfs_result((4096, 4096, blocks, 0, int(blocks * free / 100), most, 0,
                                most * files // 100, 0, 255))
    monkeypatch.setattr(host.os, "statvfs", lambda _: status)
    assert [str(each.verdict) for each in host.room(settings(tmp_path))] == [verdict]


def test_nobody_to_get_mail(tmp_path: Path) -> None:
    data = CommandLine(tmp_path)
    (fact,) = host.accounts(settings(tmp_path))
    assert fact.verdict is Verdict.FAIL
    data("domain", "add", "example.org")
    (fact,) = host.accounts(settings(tmp_path))
    assert fact.remedy == "mailsvc account add NAME@DOMAIN"
    data("account", "add", "alice@example.org", "--password-stdin", stdin="secret")
    (fact,) = host.accounts(settings(tmp_path))
    assert fact == ok("accounts", "1 account in 1 domain")


def test_the_clock() -> None:
    # What it says depends on the machine.
    (fact,) = host.clock()
    assert fact.what == "clock" and fact.verdict is not Verdict.FAIL


NOW = datetime.datetime(2026, 11, 27, tzinfo=datetime.UTC)


@pytest.mark.parametrize(("days", "flaw", "reason", "verdict", "text"), [
    (90, "", "", "ok", "trusted for mx.example.org"),
    (5, "", "", "warn", "5 days left"),
    (-1, "certificate has expired", "certificate-expired", "FAIL", "it has ended"),
    (90, "self-signed certificate", "certificate-not-trusted", "warn", "nobody else trusts it"),
    (90, "the certificate is not for a but for b", "certificate-host-mismatch", "FAIL", "for b"),
], ids=["good", "soon", "ended", "self-signed", "other name"])
def test_certificates(days: int, flaw: str, reason: str, verdict: str, text: str) -> None:
    secured = Secured("TLSv1.3", "x", 256, verified=not flaw, flaw=flaw, reason=reason,
                      subject="CN=x", not_after=NOW + datetime.timedelta(days=days))
    fact = judged(secured, "mx.example.org", NOW)
    assert str(fact.verdict) == verdict and text in fact.detail


# ---- all of it ----------------------------------------------------------------------------------


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from mailsvc.cli import main; main()", "doctor", *arguments],
        capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_service_that_is_well(tmp_path: Path) -> None:
    authority = Authority()
    issued = authority.issue("mx.example.org")
    (tmp_path / "cert.pem").write_bytes(issued.chain)
    (tmp_path / "key.pem").write_bytes(pem(issued.key))
    (tmp_path / "ca.pem").write_bytes(pem(authority.root))
    (tmp_path / "web.pem").write_bytes(authority.issue("mta-sts.example.org").combined)
    data = tmp_path / "data"
    web = PolicyHost(tmp_path / "web.pem")
    web.answers["mta-sts.example.org"] = 200, "text/plain", POLICY
    with web, NameServer({**RIGHT}) as names, Service(
            data, ("alice@example.org:secret",), (
                "--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"),
                *(word for kind in ("submission", "submissions", "pop3s", "lmtp", "http")
                  for word in (f"--{kind}", "127.0.0.1:0")),
                *(word for kind in ("acme", "console", "odmr") for word in (
                    "--set", f'listeners.{kind}=["tcp:0:interface=127.0.0.1"]')),
                "--workers", "2")) as service:
        CommandLine(data)("dkim", "add", "example.org", "--algorithm", "ed25519", "--selector",
                          "e1", "--use")
        (line,) = CommandLine(data)("dkim", "records", "example.org").splitlines()
        names.zone["e1._domainkey.example.org"] = ["TXT " + line.split('"')[1]]
        names.zone["example.net"] = ["MX 10 mx.example.org"]
        names.zone["mta-sts.example.org"] = ["A 127.0.0.1"]
        config = tmp_path / "mailsvc.toml"
        config.write_text(f"""
[service]
hostname = "mx.example.org"
data = "{data}"
[relay]
dns = ["{names.address}"]
loopback = true
policy_port = {web.port}
port = {service.smtp[1]}
authorities = "{tmp_path / 'ca.pem'}"
""")
        done = doctor("--config", str(config), "--address", "127.0.0.1", "--reach", "example.net")
        lines = done.stdout.splitlines()
        assert done.stderr == ""
        assert not [line for line in lines if line.startswith("FAIL")], done.stdout
        # That depends on the machine.
        warned = [line for line in lines if line.startswith("warn") and " clock " not in line]
        assert warned == []
        assert lines[-1].startswith("verdict: ")
        clock_is_right = any(line.startswith("ok    clock") for line in lines)
        assert done.returncode == (0 if clock_is_right or "note  clock" in done.stdout else 1)
        for kind, (place, port) in service.listeners.items():
            (line,) = [line for line in lines if f" {kind} {place}:{port} " in line]
            assert ("TLSv1.3" in line) == (
                kind not in ("lmtp", "http", "acme", "console")), line
        for text in ("runs and is ready", "trusted for mx.example.org", "e1 is published",
                     "127.0.0.1 may send", "open: mx.example.org [127.0.0.1] says 220 ",
                     "0 messages wait to leave", "mode enforce"):
            assert text in done.stdout


def test_a_service_that_is_not(tmp_path: Path, silent: int) -> None:
    data = tmp_path / "data"
    CommandLine(data)("domain", "add", "example.org")
    config = tmp_path / "mailsvc.toml"
    with NameServer({"example.net": ["MX 5 mx.example.net"], "mx.example.net": ["A 127.0.0.1"],
                     "example.org": ["SILENCE"]}) as names:
        config.write_text(f"""
[service]
hostname = "mx.example.org"
data = "{data}"
[tls]
certificates = ["{tmp_path / 'none.pem'}"]
[relay]
dns = ["{names.address}"]
loopback = true
port = {silent}
""")
        done = doctor("--config", str(config), "--reach", "example.net", "--timeout", "2",
                      "--json")
    assert (done.returncode, done.stderr) == (2, "")
    told = json.loads(done.stdout)
    assert told["verdict"] == "fail"
    failed = {each["what"]: each["detail"] for each in told["facts"]
              if each["verdict"] == "fail"}
    assert "none.pem" in failed["configuration"]
    assert "0 accounts" in failed["accounts"]
    assert "no service runs" in failed["service"]
    assert "nobody of example.net answers" in failed[f"outgoing port {silent}"]
    assert failed["MX example.org"] == "could not be told within 2 seconds"
    assert all(each["remedy"] for each in told["facts"] if each["verdict"] in ("warn", "fail"))


def test_a_configuration_with_mistakes_is_facts_too(tmp_path: Path) -> None:
    config = tmp_path / "mailsvc.toml"
    config.write_text("[smtp]\nrecipients = 'many'\nnonsense = 1\n")
    done = doctor("--config", str(config))
    assert (done.returncode, done.stderr) == (2, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all(line.startswith("FAIL  configuration") for line in lines[:2])
    assert lines[2] == "verdict: FAIL (2 FAIL)"


def test_offline_asks_nobody(tmp_path: Path) -> None:
    data = tmp_path / "data"
    CommandLine(data)("domain", "add", "example.org")
    with NameServer({}) as names:
        config = tmp_path / "mailsvc.toml"
        config.write_text(f'[service]\ndata = "{data}"\n[relay]\ndns = ["{names.address}"]\n')
        done = doctor("--config", str(config), "--offline")
        assert done.returncode == 2 and names.asked == []
        assert "example.org" not in done.stdout


#: Becomes a user who may look at little, once everything is imported from where it lies.
_NOBODY = """
import encodings.idna, encodings.utf_8_sig, importlib, os, pkgutil, sys
import dns.rdtypes.ANY, dns.rdtypes.IN
import mailsvc.cli, mailsvc.cli.doctor
for package in dns.rdtypes.ANY, dns.rdtypes.IN:
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
from twisted.internet import reactor
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
sys.argv = ["mailsvc", *sys.argv[1:]]
mailsvc.cli.main()
"""


def test_who_may_not_look_is_told_so() -> None:
    place = Path(tempfile.mkdtemp())  # tmp_path is hidden from others
    try:
        place.chmod(0o755)
        CommandLine(place / "data")("domain", "add", "example.org")
        (place / "data").chmod(0o700 if os.geteuid() == 0 else 0)
        with NameServer({}) as names:
            (place / "m.toml").write_text(f'service.data = "{place}/data"\n'
                                          f'relay.dns = ["{names.address}"]\n')
            done = subprocess.run(
                [sys.executable, "-c", _NOBODY, "--config", str(place / "m.toml"), "doctor",
                 "example.org", "--json"],
                capture_output=True, text=True, timeout=60, check=False)
        assert done.stderr == ""
        found = {each["what"]: each for each in json.loads(done.stdout)["facts"]}
        for what in ("data directory", "accounts", "service"):
            assert found[what]["verdict"] == "note", found[what]
            assert found[what]["remedy"].startswith("run this as root")
        assert found["DKIM example.org"]["verdict"] == "fail"
        assert "run as the user who owns it" in found["DKIM example.org"]["detail"]
    finally:
        (place / "data").chmod(0o700)
        shutil.rmtree(place)


def test_behind_a_proxy_nobody_is_asked(tmp_path: Path) -> None:
    behind = Settings.from_mapping({"proxy": {"networks": ["127.0.0.0/8"]}})
    assert is_proxied(behind) and not is_proxied(settings(tmp_path))
    with Service(tmp_path / "data", ("alice@example.org:secret",),
                 ("--set", 'proxy.networks=["127.0.0.0/8"]')) as service:
        config = tmp_path / "mailsvc.toml"
        config.write_text(f'proxy.networks = ["127.0.0.0/8"]\n'
                          f'service.data = "{service.directory}"\n')
        done = doctor("--config", str(config), "--offline", "--deep")
        lines = [line for line in done.stdout.splitlines() if "PROXY header" in line]
        assert len(lines) == 3 and all(line.startswith("note") for line in lines), done.stdout


def test_many_domains_are_not_all_looked_at(tmp_path: Path) -> None:
    data = CommandLine(tmp_path / "data")
    for number in range(22):
        data("domain", "add", f"d{number:02}.example")
    with NameServer({}) as names:
        config = tmp_path / "mailsvc.toml"
        config.write_text(f'service.data = "{data.dir}"\nrelay.dns = ["{names.address}"]\n')
        done = doctor("--config", str(config))
    assert "2 of 22 not looked at" in done.stdout
    assert "d19.example" in done.stdout and "d20.example" not in done.stdout


def test_what_speaks_http_is_not_asked_in_smtp(tmp_path: Path) -> None:
    with Service(tmp_path / "data", (), (
            "--console", "127.0.0.1:0", "--api", f"unix:{tmp_path}/api", "--workers", "1")
            ) as service:
        config = tmp_path / "mailsvc.toml"
        config.write_text(f'service.data = "{service.directory}"\n')
        told = doctor("--config", str(config), "--offline").stdout.splitlines()
        for kind in "console", "api":
            (line,) = [line for line in told if f"{kind} " in line and "connections" in line]
            assert line.startswith("ok"), line
