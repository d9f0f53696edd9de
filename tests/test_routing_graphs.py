"""mailsvc.routing over any graph of aliases, also ones that a directory would refuse: each ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mailsvc.errors import PermanentFailure, RoutingLoop, TemporaryFailure, UnknownMailbox
from mailsvc.interfaces import IDirectory
from mailsvc.logins import Credentials, StoredPassword
from mailsvc.mail import Account, Address, Alias, Domain, Remote
from mailsvc.names import fold_domain, fold_local_part, parse_address
from mailsvc.routing import Router, RoutingSettings

at = parse_address

#: RFC 5321 §4.1.1.3: without a domain.
POSTMASTER = Address("postmaster", "")


@implementer(IDirectory)
@dataclass
class Graph:
    """A directory in memory that checks nothing."""

    known: dict[str, Domain]
    boxes: set[tuple[str, str]] = field(default_factory=set)
    leads: dict[tuple[str, str], Alias] = field(default_factory=dict)
    asked: int = 0

    def version(self) -> object:
        return object()

    def domain(self, name: str) -> Domain | None:
        return self.known.get(fold_domain(name))

    def account(self, local_part: str, domain: str) -> Account | None:
        self.asked += 1
        key = (fold_local_part(local_part), fold_domain(domain))
        return Account(*key) if key in self.boxes else None

    def alias(self, local_part: str, domain: str) -> Alias | None:
        self.asked += 1
        return self.leads.get((fold_local_part(local_part), fold_domain(domain)))

    def credentials(self, name: str) -> Credentials | None:
        return None

    def domains(self, most: int = -1) -> Iterator[Domain]:
        return iter(list(self.known.values())[:None if most < 0 else most])

    def oldest_account(self, domain: str) -> Account | None:
        return next((Account(*box) for box in sorted(self.boxes) if box[1] == domain), None)

    def keyed(self, purpose: str, value: bytes) -> bytes:
        raise AssertionError("routing knows no secrets")

    def renew_password(self, password: StoredPassword, verifier: str | None,
                       scram: str | None) -> None:
        raise AssertionError("routing changes nothing")

    def record_uses(self, uses: Iterable[tuple[int, int, str]]) -> None:
        raise AssertionError("routing changes nothing")

    def lead(self, name: str, *targets: str, moved: bool = False) -> None:
        alias = Alias(*_parts(name), tuple(map(at, targets)), moved)
        self.leads[(alias.local_part, alias.domain)] = alias


def _parts(name: str) -> tuple[str, str]:
    address = at(name)
    return address.local_part, address.domain


def graph() -> Graph:
    found = Graph({"d.example": Domain("d.example")})
    found.boxes.add(("bob", "d.example"))
    return found


def test_graph_keeps_the_interface() -> None:
    verifyObject(IDirectory, graph())


@pytest.mark.parametrize("links", [
    {"a": ["b"], "b": ["a"]},
    {"a": ["bob", "b"], "b": ["c"], "c": ["a"]},
    {"a": ["a+x"]},
    {"a": ["bob", "a+x"]},
])
def test_loops_are_refused(links: dict[str, list[str]]) -> None:
    directory = graph()
    for name, targets in links.items():
        directory.lead(f"{name}@d.example", *(f"{target}@d.example" for target in targets))
    with pytest.raises(RoutingLoop, match="back to itself") as caught:
        Router(directory, "").route(at("a@d.example"))
    assert str(caught.value.status) == "5.4.6"


def test_a_loop_by_way_of_a_catch_all() -> None:
    directory = graph()
    directory.known["d.example"] = Domain("d.example", at("a@d.example"))
    directory.lead("a@d.example", "unknown@d.example")
    with pytest.raises(RoutingLoop):
        Router(directory, "").route(at("other@d.example"))


def test_a_catch_all_that_leads_nowhere() -> None:
    directory = graph()
    directory.known["d.example"] = Domain("d.example", at("gone@d.example"))
    with pytest.raises(UnknownMailbox):
        Router(directory, "").route(at("other@d.example"))


def test_a_target_in_a_domain_that_was_ours() -> None:
    directory = graph()
    directory.lead("a@d.example", "x@old.example")
    forwarded = Remote(at("x@old.example"), at("a@d.example"))
    assert Router(directory, "").route(at("a@d.example")) == (forwarded,)
    directory.lead("a@d.example", "x@old.example", "bob@d.example")
    assert Router(directory, "").route(at("a@d.example")) == (
        forwarded, Account("bob", "d.example"))


def test_itself_without_an_account() -> None:
    directory = graph()
    directory.lead("a@d.example", "A@d.example")
    with pytest.raises(UnknownMailbox):
        Router(directory, "").route(at("a@d.example"))


@pytest.mark.parametrize("links", [["a@d.example"], ["carol@d.example"],
                                   ["postmaster+x@d.example"]])
def test_postmaster_is_reached_whatever_its_alias_is(links: list[str]) -> None:
    directory = graph()
    directory.lead("a@d.example", "b@d.example")
    directory.lead("b@d.example", "a@d.example")
    directory.lead("carol@d.example", "c@new.example", moved=True)
    directory.lead("postmaster@d.example", *links)
    router = Router(directory, "")
    for each in at("postmaster@d.example"), at("Abuse@d.example"), POSTMASTER:
        assert router.route(each) == (Account("bob", "d.example"),)
    directory.boxes.clear()
    with pytest.raises(TemporaryFailure):
        router.route(POSTMASTER)


def test_the_depth_is_limited() -> None:
    directory = graph()
    for number in range(20):
        directory.lead(f"a{number}@d.example", f"a{number + 1}@d.example")
    directory.boxes.add(("a20", "d.example"))
    assert len(Router(directory, "").route(at("a0@d.example"))) == 1
    shallow = Router(directory, "", RoutingSettings(alias_depth=19))
    assert len(shallow.route(at("a1@d.example"))) == 1
    with pytest.raises(RoutingLoop, match="over too many others"):
        shallow.route(at("a0@d.example"))


def test_the_width_is_limited() -> None:
    directory = graph()
    directory.boxes |= {(f"n{number}", "d.example") for number in range(5)}
    directory.lead("a@d.example", *(f"n{number}@d.example" for number in range(5)))
    assert len(Router(directory, "", RoutingSettings(alias_accounts=5)).route(
        at("a@d.example"))) == 5
    with pytest.raises(RoutingLoop, match="too many mailboxes"):
        Router(directory, "", RoutingSettings(alias_accounts=4)).route(at("a@d.example"))


def test_diamonds_are_followed_once() -> None:
    directory = graph()
    for number in range(19):  # each leads twice to the next: 2**19 ways
        for side in "lr":
            directory.lead(f"{side}{number}@d.example",
                           f"l{number + 1}@d.example", f"r{number + 1}@d.example")
    directory.boxes |= {("l19", "d.example"), ("r19", "d.example")}
    assert [each.local_part for each in Router(directory, "").route(at("l0@d.example"))] == [
        "l19", "r19"]
    assert directory.asked < 500


NAMES = [f"{name}{tag}@{domain}" for name in ("a", "b", "c", "postmaster")
         for tag in ("", "+t") for domain in ("d.example", "e.example")]


@settings(max_examples=300, deadline=None)
@given(links=st.dictionaries(st.sampled_from(NAMES),
                             st.lists(st.sampled_from(NAMES), min_size=1, max_size=4)),
       boxes=st.sets(st.sampled_from(NAMES)), moved=st.sets(st.sampled_from(NAMES), max_size=2),
       catch_all=st.none() | st.sampled_from(NAMES), start=st.sampled_from([*NAMES, "x@d.example"]))
def test_every_graph_ends(links: dict[str, list[str]], boxes: set[str], moved: set[str],
                          catch_all: str | None, start: str) -> None:
    directory = Graph({"d.example": Domain("d.example", at(catch_all) if catch_all else None),
                       "e.example": Domain("e.example")})
    directory.boxes = {_parts(box) for box in boxes}
    for name, targets in links.items():
        directory.lead(name, *targets, moved=name in moved)
    router = Router(directory, "d.example")
    try:
        accounts = router.route(at(start))
    except TemporaryFailure:
        assert not boxes
    except PermanentFailure:
        assert at(start).local_part != "postmaster"
    else:
        assert accounts and len(set(accounts)) == len(accounts)
        assert all((each.local_part, each.domain) in directory.boxes for each in accounts)
    assert directory.asked < 500
