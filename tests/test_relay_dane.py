"""Mail that leaves by DANE: mailsvc dev, DNS, a policy host and exchangers on loopback."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.authority import Authority, Issued
from tests.net import Net, returned
from tests.relay import queued, submit, until


def octets(certificate: x509.Certificate, selector: int) -> bytes:
    return certificate.public_bytes(Encoding.DER) if selector == 0 else (
        certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def tlsa(usage: int, selector: int, matching: int, certificate: x509.Certificate) -> str:
    """The record for *certificate*."""
    data = octets(certificate, selector)
    digest = {0: data, 1: hashlib.sha256(data).digest(), 2: hashlib.sha512(data).digest()}
    return f"TLSA {usage} {selector} {matching} {digest[matching].hex()}"


STRANGER = Authority("stranger").issue("stranger.example").certificate


def records(kind: str, issued: Issued) -> list[str]:
    """The TLSA records of a kind: "EE", "TA", "wrong", "unusable", or none."""
    return {
        "EE": [tlsa(3, 1, 1, STRANGER), tlsa(3, 1, 1, issued.certificate)],
        "TA": [tlsa(2, 0, 1, issued.between)],
        "wrong": [tlsa(3, 1, 1, STRANGER)],
        "unusable": [tlsa(1, 1, 1, issued.certificate), "TLSA 3 1 9 00"],
        "none": [],
    }[kind]


#: domain -> TLSA records; how the exchanger is certified, as in Net, "-" for no TLS; what is
#: amiss in the DNS; an MTA-STS policy; and whether the message arrives, by TLS, or why not.
CASES: dict[str, tuple[str, str, str, str, bool | str]] = {
    "ee": ("EE", "elsewhere.example", "", "", True),
    "ee-no-tls": ("EE", "-", "", "", "does not offer STARTTLS; TLS is required by the TLSA "
                  "records of mx.ee-no-tls.example"),
    "wrong": ("wrong", "", "", "", "no certificate of the server matches its TLSA records"),
    "ta": ("TA", "", "", "", True),
    "ta-domain": ("TA", "ta-domain.example", "", "", True),
    "ta-name": ("TA", "elsewhere.example", "", "",
                "the certificate is not for mx.ta-name.example or ta-name.example"),
    "unusable": ("unusable", "elsewhere.example", "", "", True),
    "unusable-no-tls": ("unusable", "-", "", "", "does not offer STARTTLS"),
    "denied": ("none", "-", "", "", False),
    "bogus": ("none", "", "tlsa", "", "whether mx.bogus.example has TLSA records cannot be told"),
    "bogus-silent": ("none", "-", "silent", "", "has TLSA records cannot be told"),
    # Without security on the way the records prove nothing.
    "insecure-mx": ("wrong", "-", "mx", "", False),
    "insecure-address": ("wrong", "-", "address", "", False),
    "insecure-tlsa": ("wrong", "-", "insecure", "", False),
    # DANE goes before MTA-STS, whichever of them is content.
    "over-sts": ("EE", "elsewhere.example", "", "enforce mx.elsewhere.example", True),
    "not-by-sts": ("wrong", "", "", "enforce mx.not-by-sts.example", "matches its TLSA records"),
    "sts-instead": ("none", "elsewhere.example", "", "enforce mx.sts-instead.example",
                    "the MTA-STS policy of sts-instead.example"),
    "alias": ("EE", "elsewhere.example", "alias", "", True),
}


@pytest.mark.slow
def test_tlsa_records_are_obeyed(tmp_path: Path) -> None:
    with ExitStack() as stack:
        net = Net(stack, tmp_path)
        net.host_policies(*(f"{name}.example" for name in CASES))
        for name, (kind, certified, amiss, policy, _) in CASES.items():
            domain, host = f"{name}.example", f"mx.{name}.example"
            net.domain(domain, host, policy=policy)
            net.exchanger(host, certified=None if certified == "-" else certified)
            issued = net.issued.get(host) or net.authority.issue(host)
            if amiss == "alias":
                net.zone[f"real.{domain}"] = [*net.zone[host], "SECURE"]
                net.zone[host] = [f"CNAME real.{domain}"]
            base = f"_{net.port}._tcp." + (f"real.{domain}" if amiss == "alias" else host)
            if amiss in ("tlsa", "silent"):
                net.zone[base] = ["SERVFAIL" if amiss == "tlsa" else "SILENCE"]
            elif kind != "none":
                net.zone[base] = [*records(kind, issued), "SECURE"]
            for place, which in (domain, "mx"), (host, "address"), (base, "insecure"):
                if place in net.zone and amiss != which:
                    net.zone[place].append("SECURE")
            if amiss == "insecure":
                net.zone[base].remove("SECURE")
        service = net.service()
        for name in CASES:
            submit(service, [f"bob@{name}.example"])
        until(lambda: not queued(service), service, 90)
        log, told = service.log.read_text(), returned(service)
        for name, (*_, end) in CASES.items():
            taken = [each[3] for each in net.exchangers[f"mx.{name}.example"].messages]
            if isinstance(end, str):
                status, text = told.pop(f"bob@{name}.example", ("", ""))
                assert (name, taken, status) == (name, [], "4.4.7"), log
                assert end in text, text
            else:
                assert (name, taken) == (name, [end]), log
        assert told == {}


#: name -> scheme of the route to host.NAME.example; TLSA records; how it is certified, as above;
#: what is amiss; its MTA-STS policy; and the end.
SMARTHOSTS: dict[str, tuple[str, str, str, str, str, bool | str]] = {
    "ee": ("smtp", "EE", "elsewhere.example", "", "", True),
    "ee-no-tls": ("smtp", "EE", "-", "", "", "TLS is required by the TLSA records of "
                  "host.ee-no-tls.example"),
    "ta": ("smtp", "TA", "", "", "", True),
    "ta-name": ("smtp", "TA", "elsewhere.example", "", "", "is not for host.ta-name.example"),
    "unusable": ("smtp", "unusable", "-", "", "", "does not offer STARTTLS"),
    "bogus": ("smtp", "none", "", "tlsa", "", "has TLSA records cannot be told"),
    "insecure": ("smtp", "wrong", "-", "insecure", "", False),
    # What the route asks for is proven by a record, or else as it says.
    "proven": ("smtp+starttls", "EE", "elsewhere.example", "", "", True),
    "wrong": ("smtp+starttls", "wrong", "", "", "", "matches its TLSA records"),
    "unusable-named": ("smtp+starttls", "unusable", "", "", "", True),
    "unusable-unnamed": ("smtp+starttls", "unusable", "x.example", "", "", "is not for host."),
    "bogus-named": ("smtp+starttls", "none", "", "tlsa", "", True),
    "plain": ("smtp+plain", "wrong", "", "", "enforce mx.x.example", False),
    # RFC 8461 §3.4: its name is the policy's domain, and its only exchanger.
    "sts": ("smtp", "none", "", "", "enforce host.sts.example", True),
    "sts-name": ("smtp", "none", "x.example", "", "enforce host.sts-name.example",
                 "required by the MTA-STS policy of host.sts-name.example"),
    "sts-other": ("smtp", "none", "", "", "enforce mx.x.example", "is not among the exchangers"),
    "over-sts": ("smtp", "EE", "x.example", "", "enforce host.over-sts.example", True),
}


@pytest.mark.slow
def test_hosts_that_a_route_names(tmp_path: Path) -> None:
    with ExitStack() as stack:
        net = Net(stack, tmp_path)
        net.host_policies(*(f"host.{name}.example" for name in SMARTHOSTS))
        routes = []
        for name, (scheme, kind, certified, amiss, policy, _) in SMARTHOSTS.items():
            host = f"host.{name}.example"
            net.exchanger(host, certified=None if certified == "-" else certified)
            net.zone[host].append("SECURE")
            issued = net.issued.get(host) or net.authority.issue(host)
            if kind != "none" or amiss == "tlsa":
                net.zone[f"_{net.port}._tcp.{host}"] = ["SERVFAIL"] if amiss == "tlsa" else [
                    *records(kind, issued), *([] if amiss == "insecure" else ["SECURE"])]
            if policy:
                net.publish(host, policy)
            routes.append(f'"{name}.example"="{scheme}://{host}:{net.port}"')
        service = net.service(f"relay.routes={{{', '.join(routes)}}}")
        for name in SMARTHOSTS:
            submit(service, [f"bob@{name}.example"])
        until(lambda: not queued(service), service, 90)
        log, told = service.log.read_text(), returned(service)
        for name, (*_, end) in SMARTHOSTS.items():
            taken = [each[3] for each in net.exchangers[f"host.{name}.example"].messages]
            if isinstance(end, str):
                status, text = told.pop(f"bob@{name}.example", ("", ""))
                assert (name, taken, status) == (name, [], "4.4.7"), log
                assert end in text, text
            else:
                assert (name, taken) == (name, [end]), log
        assert told == {}
