"""mailsvc.queue.security.terms: what each kind of host has to prove."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import pytest_twisted

from mailsvc.queue.exchangers import Place
from mailsvc.queue.routes import Hop, parse_route
from mailsvc.queue.security.policies import Finding
from mailsvc.queue.security.sts import Policy
from mailsvc.queue.security.terms import Security, Terms
from mailsvc.queue.security.tlsa import Bindings
from mailsvc.smtp.failures import TLSFailed
from tests.test_queue_tlsa import RECORD, Answers, Zone

#: A host that a route names, and its records at two ports.
HOST: Zone = {("host.example.net", "A"): ("host.example.net", ["192.0.2.1"], True),
              ("_25._tcp.host.example.net", "TLSA"): ("x", [RECORD], True),
              ("_465._tcp.host.example.net", "TLSA"): ("x", [RECORD], True)}
UNUSABLE: Zone = {**HOST, ("_25._tcp.host.example.net", "TLSA"): ("x", ["1" + RECORD[1:]], True)}
SILENT: Zone = {**HOST, ("_25._tcp.host.example.net", "TLSA"): None,
                ("_465._tcp.host.example.net", "TLSA"): None}
ENFORCED = Policy("enforce", ("host.example.net",), 86_400)


def terms(hop: Hop, zone: Zone, policy: Policy | None = None) -> Terms:
    nothing: Any = None
    found = Terms(Security(nothing, None, None, Bindings(Answers(zone)), None, None, "", 25,
                           nothing, nothing), hop)
    found.finding = Finding(policy)
    return found


BY_RECORD = "a certificate that its TLSA records name"
BY_NAME = "a certificate for its name"
#: route, what is in the DNS, its policy; and what is demanded: how TLS is used, and of whom.
ROUTES: list[tuple[str, Zone, Policy | None, str, str]] = [
    ("smtp://host.example.net", HOST, None, "starttls", BY_RECORD),
    ("smtp://HOST.example.net.", HOST, ENFORCED, "starttls", BY_RECORD),
    ("smtp+starttls://host.example.net:25", HOST, None, "starttls", BY_RECORD),
    ("smtps://host.example.net", HOST, None, "implicit", BY_RECORD),
    ("smtp://host.example.net:26", HOST, None, "opportunistic", "any certificate"),
    ("smtp://host.example.net:26", HOST, ENFORCED, "starttls", BY_NAME),
    ("smtp://host.example.net", UNUSABLE, None, "starttls", "any certificate"),
    # A password goes to nobody who proves nothing.
    ("smtp://a:b@host.example.net", UNUSABLE, None, "starttls", BY_NAME),
    ("smtp+starttls://host.example.net:25", UNUSABLE, None, "starttls", BY_NAME),
    ("smtps://host.example.net", SILENT, None, "implicit", BY_NAME),
    ("smtp+plain://host.example.net", HOST, ENFORCED, "no", "no TLS"),
    ("lmtp://host.example.net", HOST, ENFORCED, "no", "no TLS"),
    ("smtp://192.0.2.1", HOST, ENFORCED, "opportunistic", "any certificate"),
]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(("route", "zone", "policy", "tls", "proof"), ROUTES)
async def test_a_host_that_a_route_names(
        route: str, zone: Zone, policy: Policy | None, tls: str, proof: str) -> None:
    hop = parse_route(route)
    demand = await terms(hop, zone, policy).demand(Place(hop.host, "192.0.2.1"))
    assert demand.tls == tls and proof in str(demand), str(demand)


@pytest_twisted.ensureDeferred
async def test_records_that_nobody_can_tell_of_shut_a_host_out() -> None:
    with pytest.raises(TLSFailed, match="cannot be told"):
        await terms(parse_route("host.example.net"), SILENT).demand(
            Place("host.example.net", "192.0.2.1"))


#: The same for a message with REQUIRETLS (RFC 8689 §4.2.1): how TLS is used, or with which status
#: it is refused.
REQUIRED: list[tuple[str, Zone, str]] = [
    ("smtp://host.example.net", HOST, "starttls"),
    ("smtp://host.example.net:26", HOST, "starttls"),
    ("smtp://192.0.2.1", {}, "starttls"),
    ("smtps://host.example.net", SILENT, "implicit"),
    ("smtp+plain://host.example.net", HOST, "5.7.10"),
    ("lmtp://192.0.2.1", {}, "5.7.10"),
    ("smtp://host.example.net", SILENT, "4.7.5"),
    # It stays on this machine.
    ("lmtp:/run/dovecot/lmtp", {}, "no"),
]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(("route", "zone", "end"), REQUIRED)
async def test_a_message_that_requires_tls(route: str, zone: Zone, end: str) -> None:
    hop = replace(parse_route(route), wish="require")
    try:
        demand = await terms(hop, zone).demand(Place(hop.host, "192.0.2.1"))
    except TLSFailed as failure:
        assert str(failure.status) == end
    else:
        assert demand.tls == end
        assert end == "no" or (demand.trust is not None and demand.trust.verify)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize(("exchangers", "status"), [
    (("b.example", ["10 host.example.net."], True), None),
    (("b.example", ["10 host.example.net."], False), "5.7.10"),
    (("b.example", ["10 other.example.net."], True), "4.7.5"), (None, "4.7.5")])
async def test_an_exchanger_is_one_for_certain(
        exchangers: tuple[str, list[str], bool] | None, status: str | None) -> None:
    hop = Hop("b.example", exchangers=True, wish="require")
    found = terms(hop, {**HOST, ("b.example", "MX"): exchangers})
    place = Place("host.example.net", "192.0.2.1")
    if status is None:
        assert (await found.demand(place)).trust is not None
        return
    with pytest.raises(TLSFailed) as raised:
        await found.demand(place)
    assert str(raised.value.status) == status
