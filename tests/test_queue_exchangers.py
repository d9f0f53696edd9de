"""mailsvc.queue.exchangers and mailsvc.queue.routes: where mail goes, by a scripted DNS server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from mailsvc.mail import NULL_PATH, Address
from mailsvc.queue.exchangers import Exchangers, Unroutable
from mailsvc.queue.message import QueuedMessage
from mailsvc.queue.routes import Hop, RelaySettings, Routes, parse_route, server
from tests.nameserver import NameServer

ZONE = {
    "two.example": ["MX 20 second.example", "MX 10 first.example"],
    "first.example": ["A 192.0.2.1", "AAAA 2001:db8::1"],
    "second.example": ["A 192.0.2.2"],
    "implicit.example": ["A 192.0.2.3"],
    "alias.example": ["CNAME two.example"],
    "unfollowed.example": ["ALIAS alias.example"],
    "circle.example": ["ALIAS round.example"],
    "round.example": ["ALIAS circle.example"],
    "null.example": ["MX 0 ."],
    "empty.example": ["TXT nothing"],
    "lame.example": ["SERVFAIL"],
    "half.example": ["MX 10 gone.example", "MX 20 second.example"],
    "dead.example": ["MX 10 gone.example"],
    "slow.example": ["MX 10 lame.example"],
    "backup.example": ["MX 10 first.example", "MX 20 mx.here.example", "MX 30 second.example"],
    "ours.example": ["MX 10 mx.here.example", "MX 30 second.example"],
    "byaddress.example": ["MX 10 other-name.example"],
    "other-name.example": ["A 127.0.0.1"],
    "mapped.example": ["AAAA ::ffff:127.0.0.1"],
    "mapped-else.example": ["AAAA ::ffff:192.0.2.8"],
    "many.example": [f"MX 10 m{n}.example" for n in range(10)],
    **{f"m{n}.example": [f"A 192.0.2.{100 + n}"] for n in range(10)},
}


@pytest.fixture(scope="module")
def names() -> Iterator[NameServer]:
    with NameServer(ZONE) as server:
        yield server


def exchangers(names: NameServer, **settings: Any) -> Exchangers:
    return Exchangers(RelaySettings(dns=[names.address], **settings), "mx.here.example",
                      {("192.0.2.77", 25), ("127.0.0.9", 25)}, reactor,
                      shuffle=lambda places: places.sort())


#: domain -> the addresses to try, in order, or the status.
FOUND = {
    "two.example": "2001:db8::1 192.0.2.1 192.0.2.2",
    "implicit.example": "192.0.2.3",
    "alias.example": "2001:db8::1 192.0.2.1 192.0.2.2",
    "[192.0.2.9]": "192.0.2.9",
    "[IPv6:2001:db8::9]": "2001:db8::9",
    "[ipv6:2001:DB8::9]": "2001:db8::9",
    "[ipv6:2001::db8::9]": "5.1.2",
    # RFC 4291 §2.5.5.2: a connection to these is one to the IPv4 address.
    "[IPv6:::ffff:192.0.2.9]": "192.0.2.9",
    "[IPv6:::ffff:127.0.0.1]": "5.4.6",
    "mapped.example": "5.4.6",
    "mapped-else.example": "192.0.2.8",
    "half.example": "192.0.2.2",
    "backup.example": "2001:db8::1 192.0.2.1",
    "unfollowed.example": "2001:db8::1 192.0.2.1 192.0.2.2",
    "circle.example": "5.4.4",
    "null.example": "5.1.10",
    "nowhere.example": "5.1.2",
    "empty.example": "5.4.4",
    "lame.example": "4.4.3",
    "dead.example": "5.4.4",
    "slow.example": "4.4.3",
    "ours.example": "5.4.6",
    "byaddress.example": "5.4.6",
    "[127.0.0.1]": "5.4.6",
    "[192.0.2.77]": "5.4.6",
}


@pytest.mark.parametrize("domain", FOUND)
@pytest_twisted.ensureDeferred
async def test_where_mail_goes(names: NameServer, domain: str) -> None:
    try:
        found = " ".join(place.address for place in await exchangers(names).find(domain))
    except Unroutable as failure:
        found = str(failure.status)
    assert found == FOUND[domain]


@pytest_twisted.ensureDeferred
async def test_families_and_loopback_by_configuration(names: NameServer) -> None:
    for protocols, expected in (("ipv4", "192.0.2.1 192.0.2.2"), ("ipv6", "2001:db8::1")):
        places = await exchangers(names, protocols=protocols).find("two.example")
        assert " ".join(place.address for place in places) == expected
    places = await exchangers(names, loopback=True).find("byaddress.example")
    assert [place.address for place in places] == ["127.0.0.1"]
    # Policies and reports are not asked for or handed in there either.
    assert [place.address for place in await exchangers(names).addresses("mapped.example")] == [
        "127.0.0.1"]
    # But never our own listener.
    with pytest.raises(Unroutable, match="come back"):
        await exchangers(names, loopback=True).find("[127.0.0.9]")


@pytest_twisted.ensureDeferred
async def test_equals_are_shuffled(names: NameServer) -> None:
    looking = Exchangers(RelaySettings(dns=[names.address]), "mx.here.example", set(), reactor,
                         shuffle=lambda places: places.sort(reverse=True))
    places = await looking.find("many.example")
    assert [place.address for place in places] == [f"192.0.2.{109 - n}" for n in range(10)]


@pytest_twisted.ensureDeferred
async def test_a_server_that_says_nothing_is_waited_for_and_no_longer(
    names: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mailsvc.queue.exchangers._PATIENCE", (0.1,))
    monkeypatch.setitem(names.zone, "silent.example", ["SILENCE"])
    with pytest.raises(Unroutable) as failure:
        await exchangers(names).find("silent.example")
    assert str(failure.value.status) == "4.4.3"


# ---- routes ----

@pytest.mark.parametrize(("text", "hop"), [
    ("smart.example", Hop("smart.example", port=25)),
    ("smart.example:26", Hop("smart.example", port=26)),
    ("127.0.0.1:2525", Hop("127.0.0.1", port=2525)),
    ("[::1]:2525", Hop("::1", port=2525)),
    ("smtp+starttls://a%40b:p%3Aw@smart.example", Hop(
        "smart.example", port=587, tls="starttls", user="a@b", password="p:w")),
    ("smtps://smart.example", Hop("smart.example", port=465, tls="implicit")),
    ("lmtp://127.0.0.1", Hop("127.0.0.1", port=24, tls="no", lmtp=True)),
    ("lmtp:/run/x/lmtp", Hop("/run/x/lmtp", tls="no", lmtp=True)),
    ("pipe:/usr/bin/x -f '{sender}' \"a b\" {recipient}", Hop(
        "", tls="no", command=("/usr/bin/x", "-f", "{sender}", "a b", "{recipient}"))),
    ("mx", Hop("", exchangers=True)),
])
def test_routes_as_text(text: str, hop: Hop) -> None:
    assert parse_route(text) == hop
    assert "p:w" not in str(hop) or not hop.password


@pytest.mark.parametrize("text", [
    "", "http://a.example", "smtp://", "a.example:port", "a.example:70000", "a b", "smtp://a/b",
    "smtp://a.example/?x", "a..example", "smtp://x:%0d%0a@a.example",
    "pipe:", "pipe:program", "pipe:/bin/x {user}", "pipe:/bin/x 'unclosed"])
def test_what_is_no_route(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_route(text)


def test_the_most_particular_route_counts() -> None:
    routes = Routes(RelaySettings(smarthost="all.example", routes={
        "b.example": "b-host.example", ".b.example": "below.example",
        "from:c.example": "sender-domain.example", "from:Alice@c.example": "alice.example",
        "account:Bob@ours.example": "bob.example", "direct.example": "mx"}))

    def hop(to: str, sender: str = "x@y.example", account: str = "") -> str:
        path = Address(*sender.split("@")) if sender else NULL_PATH
        message = QueuedMessage("ID", 0, path, [], account=account)
        return routes.hop(message, Address("someone", to)).host

    assert hop("b.example") == "b-host.example"
    assert hop("B.Example") == "b-host.example"
    assert hop("x.b.example") == hop("y.x.b.example") == "below.example"
    assert hop("xb.example") == hop("b.example.com") == "all.example"
    assert hop("b.example", "z@c.example") == "sender-domain.example"
    assert hop("b.example", "ALICE@c.example") == "alice.example"
    assert hop("b.example", "alice@c.example", "bob@ours.example") == "bob.example"
    assert hop("direct.example") == "direct.example"
    assert hop("b.example", "") == "b-host.example"
    override = QueuedMessage("ID", 0, NULL_PATH, [], route="other.example:26")
    assert routes.hop(override, Address("x", "b.example")) == Hop("other.example", port=26)


def test_without_routes_it_is_the_exchangers() -> None:
    message = QueuedMessage("ID", 0, NULL_PATH, [])
    keeping = Routes(RelaySettings(smarthost="all.example", routes={"far.example": "x.example"}),
                     {"far.example"})
    assert keeping.hop(message, Address("x", "FAR.example")) == Hop("far.example", kept=True)
    assert keeping.hop(message, Address("x", "sub.far.example")).host == "all.example"
    assert Routes(RelaySettings()).hop(message, Address("x", "bücher.example")) == Hop(
        "xn--bcher-kva.example", exchangers=True)
    assert Routes(RelaySettings()).hop(message, Address("x", "[192.0.2.1]")).host == "[192.0.2.1]"


@pytest_twisted.ensureDeferred
async def test_a_literal_of_ipv6_is_found_as_routes_have_it(names: NameServer) -> None:
    hop = Routes(RelaySettings()).hop(
        QueuedMessage("ID", 0, NULL_PATH, []), Address("x", "[IPv6:2001:db8::9]"))
    place, = await exchangers(names).find(hop.host)
    assert (place.name, place.address) == ("[IPv6:2001:db8::9]", "2001:db8::9")


@pytest.mark.parametrize(("text", "place"), [
    ("192.0.2.53", ("192.0.2.53", 53)), ("127.0.0.1:5353", ("127.0.0.1", 5353)),
    ("[::1]:5353", ("::1", 5353)), ("2001:db8::53", ("2001:db8::53", 53))])
def test_name_servers(text: str, place: tuple[str, int]) -> None:
    assert server(text) == place
