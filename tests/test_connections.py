"""``mailsvc.connections``: how many there may be, from where, and how they end together."""

from __future__ import annotations

import tracemalloc

import pytest
from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock
from zope.interface import implementer

from mailsvc.connections import Connections, client_address
from mailsvc.errors import TemporaryFailure


class Connection:
    """A connection that records what it is asked; each request may end it at once."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.ends_at: str | None = None
        self.among: Connections | None = None

    def finish(self) -> None:
        self._ask("finish")

    def abort(self) -> None:
        self._ask("abort")

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if what == self.ends_at and self.among is not None:
            self.among.remove(self)


def connections(most: int = 100, per_address: int = 100, exempt: tuple[str, ...] = (),
                clock: Clock | None = None) -> Connections:
    return Connections(most, per_address, exempt, clock or Clock())


def refusal(among: Connections, client: str) -> str | None:
    """Add a connection from *client*: None, or the status it is refused with."""
    try:
        among.add(Connection(), client)
    except TemporaryFailure as failure:
        return str(failure.status)
    return None


# ---- whose connection it is ----


@pytest.mark.parametrize(("peer", "client"), [
    (IPv4Address("TCP", "192.0.2.1", 25), "192.0.2.1"),
    (IPv6Address("TCP", "2001:db8::1", 25), "2001:db8::1"),
    (IPv6Address("TCP", "fe80::1%eth0", 25), "fe80::1"),
    (IPv6Address("TCP", "::ffff:192.0.2.1", 25), "192.0.2.1"),
    (IPv6Address("TCP", "::FFFF:192.0.2.1", 25), "192.0.2.1"),
    (IPv6Address("TCP", "::1", 25), "::1"),
    (UNIXAddress(b"/run/mail"), ""),
    (UNIXAddress(None), ""),
])
def test_the_address_of_a_client(peer: IAddress, client: str) -> None:
    assert client_address(peer) == client


@implementer(IAddress)
class Peer:
    """An address of some other kind of transport."""

    def __init__(self, host: object) -> None:
        self.host = host


def test_a_host_that_is_no_text_is_no_address() -> None:
    assert client_address(HostnameAddress(b"client.example", 25)) == ""
    assert client_address(Peer(b"192.0.2.1")) == ""
    assert client_address(Peer(None)) == ""


# ---- how many ----


def test_the_limit_in_all() -> None:
    among = connections(most=2)
    assert [refusal(among, f"192.0.2.{n}") for n in range(3)] == [None, None, "4.3.2"]
    assert len(among) == 3


def test_a_connection_that_ends_makes_room() -> None:
    among = connections(most=1)
    first, second = Connection(), Connection()
    among.add(first, "192.0.2.1")
    with pytest.raises(TemporaryFailure):
        among.add(second, "192.0.2.2")
    assert len(among) == 2
    among.remove(second)
    assert refusal(among, "192.0.2.3") == "4.3.2"
    among = connections(most=1)
    among.add(first, "192.0.2.1")
    among.remove(first)
    assert refusal(among, "192.0.2.1") is None


def test_the_limit_of_one_address() -> None:
    among = connections(per_address=2)
    assert [refusal(among, "192.0.2.1") for _ in range(4)] == [None, None, "4.7.0", "4.7.0"]
    assert refusal(among, "192.0.2.2") is None


def test_refused_connections_count_until_they_are_removed() -> None:
    among = connections(per_address=1)
    kept, refused = Connection(), Connection()
    among.add(kept, "192.0.2.1")
    with pytest.raises(TemporaryFailure, match="your address; try again later"):
        among.add(refused, "192.0.2.1")
    among.remove(kept)
    assert refusal(among, "192.0.2.1") == "4.7.0"
    assert len(among) == 2
    among.remove(refused)
    among.remove(refused)
    assert len(among) == 1


def test_removing_twice_or_a_stranger_changes_no_count() -> None:
    among = connections(per_address=2)
    one, other = Connection(), Connection()
    among.add(one, "192.0.2.1")
    among.add(other, "192.0.2.1")
    among.remove(one)
    among.remove(one)
    among.remove(Connection())
    assert len(among) == 1
    assert [refusal(among, "192.0.2.1") for _ in range(2)] == [None, "4.7.0"]


def test_an_address_that_left_is_forgotten() -> None:
    among, connection = connections(), Connection()

    def come_and_go(network: str) -> None:
        for number in range(20_000):
            client = f"{network}.{number >> 8}.{number & 255}"
            among.add(connection, client)
            among.remove(connection)

    come_and_go("192.0")
    tracemalloc.start()
    try:
        come_and_go("192.1")
        # One number per address would be ten times as much.
        assert tracemalloc.get_traced_memory()[0] < 200_000
    finally:
        tracemalloc.stop()


def test_the_addresses_of_one_64_are_one() -> None:
    among = connections(per_address=2)
    assert refusal(among, "2001:db8:1:2::1") is None
    assert refusal(among, "2001:db8:1:2:ffff:ffff:ffff:ffff") is None
    assert refusal(among, "2001:db8:1:2:8000::") == "4.7.0"
    assert refusal(among, "2001:db8:1:3::1") is None
    assert refusal(among, "2001:db8:1:1:ffff:ffff:ffff:ffff") is None


def test_an_ipv4_client_is_one_through_either_socket() -> None:
    among = connections(per_address=1)
    mapped = client_address(IPv6Address("TCP", "::ffff:192.0.2.1", 25))
    assert refusal(among, "192.0.2.1") is None
    assert refusal(among, mapped) == "4.7.0"
    assert refusal(among, "192.0.2.2") is None


@pytest.mark.parametrize("client", ["127.0.0.1", "127.255.255.254", "::1", "2001:db8:7::9", ""])
def test_exempt_networks_and_unix_sockets_know_only_the_limit_in_all(client: str) -> None:
    # 2001:db8:7::5/48 has host bits set, as people write it.
    among = connections(5, per_address=1, exempt=("127.0.0.0/8", "::1/128", "2001:db8:7::5/48"))
    assert [refusal(among, client) for _ in range(6)] == [None] * 5 + ["4.3.2"]


@pytest.mark.parametrize("client", ["128.0.0.1", "126.255.255.255", "::2", "2001:db8:8::1"])
def test_what_is_beside_an_exempt_network_is_not_exempt(client: str) -> None:
    among = connections(per_address=1, exempt=("127.0.0.0/8", "::1/128", "2001:db8:7::/48"))
    assert [refusal(among, client) for _ in range(2)] == [None, "4.7.0"]


# ---- how fast ----


def rated(per_minute: int, clock: Clock, *exempt: str) -> Connections:
    return Connections(10**6, 10**6, exempt, clock, per_minute)


def test_the_rate_of_one_address() -> None:
    clock = Clock()
    among = rated(6, clock)
    assert [refusal(among, "192.0.2.1") for _ in range(8)] == [None] * 6 + ["4.7.0"] * 2
    assert refusal(among, "192.0.2.2") is None
    clock.advance(9.9)
    assert refusal(among, "192.0.2.1") == "4.7.0"
    clock.advance(0.1)
    assert [refusal(among, "192.0.2.1") for _ in range(2)] == [None, "4.7.0"]
    clock.advance(600)
    assert [refusal(among, "192.0.2.1") for _ in range(7)] == [None] * 6 + ["4.7.0"]


def test_a_steady_client_within_its_rate_is_never_refused() -> None:
    clock = Clock()
    among = rated(7, clock)
    for _ in range(500):
        assert refusal(among, "192.0.2.1") is None
        clock.advance(60 / 7)


def test_the_rate_of_a_64_is_one() -> None:
    among = rated(2, Clock())
    assert [refusal(among, f"2001:db8:1:2::{number}") for number in range(3)] == [
        None, None, "4.7.0"]
    assert refusal(among, "2001:db8:1:3::1") is None


@pytest.mark.parametrize("client", ["127.0.0.1", "::1", ""])
def test_exempt_networks_and_unix_sockets_have_no_rate(client: str) -> None:
    among = rated(1, Clock(), "127.0.0.0/8", "::1")
    assert [refusal(among, client) for _ in range(5)] == [None] * 5


def test_what_is_refused_as_one_too_many_does_not_count_for_the_rate() -> None:
    among, first = Connections(10**6, 1, (), Clock(), 2), Connection()
    among.add(first, "192.0.2.1")
    assert [refusal(among, "192.0.2.1") for _ in range(5)] == ["4.7.0"] * 5
    assert among._pace._levels["192.0.2.1"] == (1.0, 0.0)


def test_commands_have_a_pace_of_their_own_over_all_connections() -> None:
    clock = Clock()
    among = Connections(10**6, 10**6, ("127.0.0.0/8",), clock, commands_per_minute=60)
    among.count_commands("192.0.2.1", 40)
    among.count_commands("192.0.2.2", 60)
    among.count_commands("192.0.2.1", 20)
    assert refusal(among, "192.0.2.1") is None
    with pytest.raises(TemporaryFailure) as refused:
        among.count_commands("192.0.2.1", 1)
    assert str(refused.value.status) == "4.7.0"
    clock.advance(1)
    among.count_commands("192.0.2.1", 1)
    among.count_commands("2001:db8::1", 60)
    with pytest.raises(TemporaryFailure):
        among.count_commands("2001:db8::2", 1)


def test_who_is_exempt() -> None:
    among = connections(exempt=("127.0.0.0/8", "2001:db8:7::/48"))
    assert [among.exempts(client) for client in ("127.3.2.1", "2001:db8:7::9", "")] == [True] * 3
    assert not among.exempts("192.0.2.1")


# ---- how they end ----


def test_without_connections_shutting_down_is_done() -> None:
    clock = Clock()
    fired: list[None] = []
    connections(clock=clock).shut_down(30).addCallback(fired.append)
    assert fired == [None]
    assert clock.getDelayedCalls() == []


def test_connections_may_finish() -> None:
    clock = Clock()
    among = connections(clock=clock)
    one, other = Connection(), Connection()
    for connection in (one, other):
        among.add(connection, "192.0.2.1")
    fired: list[None] = []
    among.shut_down(30).addCallback(fired.append)
    assert (one.asked, other.asked, fired) == (["finish"], ["finish"], [])
    among.remove(one)
    clock.advance(29)
    assert fired == []
    among.remove(other)
    assert fired == [None]
    assert clock.getDelayedCalls() == []
    assert other.asked == ["finish"]


def test_what_is_left_is_aborted() -> None:
    clock = Clock()
    among = connections(clock=clock)
    quick, slow, late = Connection(), Connection(), Connection()
    for connection in (quick, slow):
        among.add(connection, "192.0.2.1")
        connection.among = among
    quick.ends_at, slow.ends_at = "finish", "abort"
    fired: list[None] = []
    among.shut_down(30).addCallback(fired.append)
    assert len(among) == 1
    # One that was accepted amid all this does not hold the service up either.
    among.add(late, "192.0.2.9")
    late.among, late.ends_at = among, "abort"
    clock.advance(29.9)
    assert slow.asked == ["finish"]
    clock.advance(0.1)
    assert (quick.asked, slow.asked, late.asked) == (["finish"], ["finish", "abort"], ["abort"])
    assert fired == [None]
    assert len(among) == 0


def test_aborted_connections_may_take_their_time() -> None:
    clock = Clock()
    among = connections(clock=clock)
    connection = Connection()
    among.add(connection, "")
    fired: list[None] = []
    among.shut_down(0).addCallback(fired.append)
    clock.advance(0)
    assert (connection.asked, fired) == (["finish", "abort"], [])
    among.remove(connection)
    among.remove(connection)
    assert fired == [None]


def test_all_connections_may_end_as_soon_as_they_are_asked() -> None:
    clock = Clock()
    among = connections(clock=clock)
    for _ in range(3):
        connection = Connection()
        among.add(connection, "192.0.2.1")
        connection.among, connection.ends_at = among, "finish"
    fired: list[None] = []
    among.shut_down(30).addCallback(fired.append)
    assert fired == [None]
    assert clock.getDelayedCalls() == []
