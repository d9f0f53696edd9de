"""mailsvc.queue.security.tlsa: by which ways records are found, and count."""

from __future__ import annotations

import dns.rdata
import pytest
import pytest_twisted

from mailsvc.queue.security.lookup import Found, LookupFailed
from mailsvc.queue.security.tlsa import Bindings

RECORD = "3 1 1 " + "ab" * 32
#: (name, type) -> end of its aliases, records, whether it validates; or None for no answer.
Zone = dict[tuple[str, str], tuple[str, list[str], bool] | None]

#: A domain, its exchanger, its records, all signed.
SIGNED: Zone = {
    ("b.example", "MX"): ("b.example", ["10 mx.b.example.", "20 mx2.b.example."], True),
    ("mx.b.example", "A"): ("mx.b.example", ["192.0.2.1"], True),
    ("_25._tcp.mx.b.example", "TLSA"): ("_25._tcp.mx.b.example", [RECORD], True),
}
NO_TLSA: Zone = {**SIGNED, ("_25._tcp.mx.b.example", "TLSA"): ("x", [], True)}
ALIAS: Zone = {
    **NO_TLSA, ("mx.b.example", "A"): ("real.host.example", ["192.0.2.1"], True),
    ("_25._tcp.real.host.example", "TLSA"): ("x", [RECORD], True)}


class Answers:
    """A resolver that knows *zone*, and that all else does not exist."""

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.asked: list[tuple[str, str]] = []

    async def find(self, name: str, kind: str) -> Found:
        self.asked.append((name, kind))
        answer = self.zone.get((name, kind), (name, [], True))
        if answer is None:
            raise LookupFailed("no answer")
        end, records, secure = answer
        return Found(end, tuple(dns.rdata.from_text("IN", kind, each) for each in records), secure)


#: zone -> the name that has the records, None if there are none, or "fails".
CASES: dict[str, tuple[Zone, str | None]] = {
    "signed": (SIGNED, "mx.b.example"),
    "none": (NO_TLSA, None),
    "insecure domain": ({**SIGNED, ("b.example", "MX"): ("b.example", ["10 mx.b.example."], False)},
                        None),
    "insecure address": ({**SIGNED, ("mx.b.example", "A"): ("mx.b.example", ["192.0.2.1"], False)},
                         None),
    "insecure records": ({**SIGNED, ("_25._tcp.mx.b.example", "TLSA"): ("x", [RECORD], False)},
                         None),
    "no answer about the domain": ({**SIGNED, ("b.example", "MX"): None}, "fails"),
    "no answer about the address": ({**SIGNED, ("mx.b.example", "A"): None}, "fails"),
    "no answer about the records": ({**SIGNED, ("_25._tcp.mx.b.example", "TLSA"): None}, "fails"),
    "no exchanger any more": ({**SIGNED, ("b.example", "MX"): ("x", ["10 other.example."], True)},
                              "fails"),
    "IPv6 alone": ({**SIGNED, ("mx.b.example", "A"): ("mx.b.example", [], True),
                    ("mx.b.example", "AAAA"): ("mx.b.example", ["2001:db8::1"], True)},
                   "mx.b.example"),
    "alias": (ALIAS, "real.host.example"),
    "alias, records at the first name": (
        {**SIGNED, ("mx.b.example", "A"): ("real.host.example", ["192.0.2.1"], True)},
        "mx.b.example"),
    "alias into an unsigned zone": (
        {**SIGNED, ("mx.b.example", "A"): ("real.host.example", ["192.0.2.1"], False),
         ("mx.b.example", "CNAME"): ("x", ["real.host.example."], True)}, "mx.b.example"),
    "unsigned alias": (
        {**SIGNED, ("mx.b.example", "A"): ("real.host.example", ["192.0.2.1"], False),
         ("mx.b.example", "CNAME"): ("x", ["real.host.example."], False)}, None),
}


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("name", CASES)
async def test_ways(name: str) -> None:
    zone, base = CASES[name]
    bindings = Bindings(Answers(zone))
    if base == "fails":
        with pytest.raises(LookupFailed):
            await bindings.exchanger("b.example", "mx.b.example", 25)
        return
    found = await bindings.exchanger("b.example", "mx.b.example", 25)
    assert (found and found.base) == base
    assert found is None or [str(each) for each in found.records] == [RECORD]


@pytest_twisted.ensureDeferred
async def test_whom_a_certificate_may_be_for() -> None:
    zone: Zone = {**ALIAS, ("b.example", "MX"): ("c.example", ["10 mx.b.example."], True)}
    found = await Bindings(Answers(zone)).exchanger("b.example", "mx.b.example", 25)
    assert found is not None
    assert found.names == ("real.host.example", "mx.b.example", "b.example", "c.example")


@pytest_twisted.ensureDeferred
async def test_a_domain_without_exchangers_is_its_own() -> None:
    zone: Zone = {("b.example", "A"): ("b.example", ["192.0.2.1"], True),
                  ("_25._tcp.b.example", "TLSA"): ("x", [RECORD], True)}
    found = await Bindings(Answers(zone)).exchanger("b.example", "b.example", 25)
    assert found is not None and found.names == ("b.example",)


@pytest_twisted.ensureDeferred
async def test_records_that_cannot_be_used_bind_all_the_same() -> None:
    zone: Zone = {**SIGNED, ("_25._tcp.mx.b.example", "TLSA"): ("x", ["1 1 1 " + "ab" * 32], True)}
    found = await Bindings(Answers(zone)).exchanger("b.example", "mx.b.example", 25)
    assert found is not None and found.records == () and len(found.published) == 1


@pytest_twisted.ensureDeferred
async def test_an_unsigned_domain_costs_one_question() -> None:
    answers = Answers({("b.example", "MX"): ("b.example", ["10 mx.b.example."], False)})
    assert await Bindings(answers).exchanger("b.example", "mx.b.example", 25) is None
    assert answers.asked == [("b.example", "MX")]
