"""mailsvc.queue.security.dane: TLSA records against chains."""

from __future__ import annotations

import itertools

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from mailsvc.queue.security.dane import TLSA, examine, strongest
from tests.authority import Authority, self_issued
from tests.test_relay_dane import tlsa

AUTHORITY = Authority()
ISSUED = AUTHORITY.issue("mx.b.example")
CHAIN = [ISSUED.certificate, ISSUED.between]
EXPIRED = AUTHORITY.issue("mx.b.example", since=-10, days=-1).certificate
OTHER = Authority("other")
SELF = self_issued(ec.generate_private_key(ec.SECP256R1()), "mx.b.example")
NAMES = ("mx.b.example", "b.example")


def record(usage: int, selector: int, matching: int, certificate: x509.Certificate) -> TLSA:
    """The record for *certificate*."""
    *numbers, data = tlsa(usage, selector, matching, certificate).split(" ")[1:]
    return TLSA(*map(int, numbers), bytes.fromhex(data))


@pytest.mark.parametrize(("selector", "matching"), list(itertools.product((0, 1), (0, 1, 2))))
def test_each_selector_and_digest(selector: int, matching: int) -> None:
    for usage, certificate in (3, ISSUED.certificate), (2, ISSUED.between):
        right = record(usage, selector, matching, certificate)
        wrong = record(usage, selector, matching, OTHER.between)
        assert examine([right], NAMES, CHAIN) is None
        assert examine([wrong, right], NAMES, CHAIN) is None
        assert examine([wrong], NAMES, CHAIN) is not None


CASES: dict[str, tuple[list[TLSA], list[x509.Certificate], str | None]] = {
    "end entity, expired": ([record(3, 1, 1, EXPIRED)], [EXPIRED], None),
    "end entity, self-signed": ([record(3, 0, 2, SELF)], [SELF], None),
    "end entity is the authority's": ([record(3, 1, 1, ISSUED.between)], CHAIN, "no certificate"),
    "anchor is the leaf": ([record(2, 1, 1, ISSUED.certificate)], CHAIN, "no certificate"),
    "anchor is the root": ([record(2, 0, 1, AUTHORITY.root)], [*CHAIN, AUTHORITY.root], None),
    "anchor is not shown": ([record(2, 0, 1, AUTHORITY.root)], CHAIN, "no certificate"),
    "anchor is in the record": ([record(2, 0, 0, AUTHORITY.root)], CHAIN, None),
    "the one between is missing": (
        [record(2, 0, 1, AUTHORITY.root)], [CHAIN[0], AUTHORITY.root], "does not lead"),
    "anchor, expired": ([record(2, 0, 1, ISSUED.between)], [EXPIRED, ISSUED.between],
                        "does not lead to the authority of the TLSA records: certificate has "
                        "expired"),
    "anchor of others in the chain": (
        [record(2, 1, 1, OTHER.between)], [*CHAIN, OTHER.between], "does not lead"),
    "anchor, other name": (
        [record(2, 0, 1, ISSUED.between)],
        [AUTHORITY.issue("elsewhere.example").certificate, ISSUED.between],
        "the certificate is not for mx.b.example or b.example"),
    "anchor, the domain's name": (
        [record(2, 0, 1, ISSUED.between)],
        [AUTHORITY.issue("b.example").certificate, ISSUED.between], None),
    "anchor, wildcard": (
        [record(2, 0, 1, ISSUED.between)],
        [AUTHORITY.issue("*.b.example").certificate, ISSUED.between], None),
    "nothing shown": ([record(3, 1, 1, SELF)], [], "shows no certificate"),
}


@pytest.mark.parametrize("name", CASES)
def test_chains(name: str) -> None:
    records, chain, problem = CASES[name]
    found = examine(records, NAMES, chain)
    assert (found is None) is (problem is None), found
    assert problem is None or problem in str(found)


SHA256, SHA512 = bytes(32), bytes(64)
STRONGEST: list[tuple[list[TLSA], list[TLSA]]] = [
    ([], []),
    ([TLSA(0, 1, 1, SHA256), TLSA(1, 0, 1, SHA256), TLSA(4, 1, 1, SHA256)], []),
    ([TLSA(3, 2, 1, SHA256), TLSA(3, 1, 3, SHA256), TLSA(3, 1, 1, b"short"), TLSA(3, 1, 0, b"")],
     []),
    ([TLSA(3, 1, 1, SHA256), TLSA(3, 1, 2, SHA512)], [TLSA(3, 1, 2, SHA512)]),
    ([TLSA(3, 1, 1, SHA256), TLSA(2, 1, 2, SHA512), TLSA(3, 0, 2, SHA512)],
     [TLSA(3, 1, 1, SHA256), TLSA(2, 1, 2, SHA512), TLSA(3, 0, 2, SHA512)]),
    ([TLSA(3, 1, 0, b"key"), TLSA(3, 1, 2, SHA512)],
     [TLSA(3, 1, 0, b"key"), TLSA(3, 1, 2, SHA512)]),
]


@pytest.mark.parametrize(("records", "left"), STRONGEST)
def test_only_the_strongest_digest_counts(records: list[TLSA], left: list[TLSA]) -> None:
    assert strongest(records) == left


@given(st.lists(st.builds(TLSA, st.integers(0, 255), st.integers(0, 255), st.integers(0, 255),
                          st.binary(max_size=80))))
def test_whatever_is_published_proves_nothing_by_itself(records: list[TLSA]) -> None:
    usable = strongest(records)
    assert not usable or examine(usable, NAMES, CHAIN) is not None
