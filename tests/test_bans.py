"""``mailsvc.bans``: bans made by hand, and the list that a process knows."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailsvc import bans as bans_module
from mailsvc.bans import ADDRESS, NETWORK, Ban, BanList, BanTable
from mailsvc.state import State
from tests.brakes import BOB, NOW, World, fail, refused


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "state.sqlite")
    yield world
    for brakes in list(world.brakes):
        world.stop(brakes)
    assert world.clock.getDelayedCalls() == []


@pytest.fixture
def table(world: World) -> Iterator[BanTable]:
    state = State(world.path)
    yield BanTable(state)
    state.close()


def manual(text: str, until: float = NOW + 3600) -> Ban:
    return Ban(ipaddress.ip_network(text), NOW, until, reason="by hand")


def test_a_ban_by_hand_binds_the_known_and_the_exempt(world: World, table: BanTable) -> None:
    brakes = world.process(exempt_networks=["192.0.2.0/24"])
    brakes.succeeded("198.51.100.1", BOB)
    table.put(manual("192.0.2.1"))
    table.put(manual("198.51.0.0/16"))
    table.put(manual("2001:db8::/33"))
    world.wait(1)
    bound = ["192.0.2.1", "198.51.100.1", "198.51.0.0", "2001:db8:7fff::1"]
    free = ["192.0.2.2", "198.52.0.0", "2001:db8:8000::1", "198.50.255.255"]
    assert [refused(brakes, client) for client in bound + free] == [True] * 4 + [False] * 4
    world.wait(3600)
    assert not any(refused(brakes, client) for client in bound)


def test_a_ban_that_is_lifted_counts_for_nothing(world: World, table: BanTable) -> None:
    brakes = world.process()
    fail(brakes, "192.0.2.1", 20)
    world.wait(1)
    (ban,) = table.active(world.clock.seconds())
    assert (ban.origin, ban.times, ban.reason) == (ADDRESS, 1, "20 failed logins")
    table.lift(ban)
    world.wait(1)
    assert not refused(brakes, "192.0.2.1")
    fail(brakes, "192.0.2.1", 20)
    world.wait(1)
    (ban,) = table.active(world.clock.seconds())
    assert ban.times == 1


def test_a_ban_of_ours_does_not_weaken_one_by_hand(world: World, table: BanTable) -> None:
    table.put(manual("192.0.2.1", NOW + 86_400))
    table.put(Ban(ipaddress.ip_network("192.0.2.1"), NOW, NOW + 600, 1, ADDRESS, "failures"))
    assert table.active(NOW) == [manual("192.0.2.1", NOW + 86_400)]
    table.put(manual("192.0.2.1", NOW + 60))
    assert table.active(NOW) == [manual("192.0.2.1", NOW + 60)], "a hand may"


def test_the_sweep_keeps_what_still_counts(world: World, table: BanTable) -> None:
    for number, until in enumerate((NOW - 100, NOW - 10, NOW + 10)):
        table.put(Ban(ipaddress.ip_network(f"192.0.2.{number}"), NOW - 700, until, 1, ADDRESS))
    number, changes = table.changes(0)
    assert len(changes) == 3
    table.sweep(NOW - 50)
    assert [str(ban.network) for ban in table.changes(0)[1]] == ["192.0.2.1/32", "192.0.2.2/32"]
    table.sweep(NOW + 1000)
    table.put(manual("192.0.2.9"))
    assert [str(ban.network) for ban in table.changes(number)[1]] == ["192.0.2.9/32"]


def test_too_many_bans_lose_the_oldest_of_ours(world: World, table: BanTable,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bans_module, "MOST", 5)
    everything = [manual("198.51.100.1")] + [
        Ban(ipaddress.ip_network(f"192.0.2.{number}"), NOW + number, NOW + 600, 1, NETWORK)
        for number in range(12)]
    known = BanList()
    for ban in everything:
        table.put(ban)
        known.put(ban)
    assert len(known) == 13
    table.sweep(NOW)
    known.sweep(NOW)
    kept = {f"192.0.2.{number}/32" for number in range(7, 12)} | {"198.51.100.1/32"}
    assert {str(ban.network) for ban in table.active(NOW)} == kept
    assert len(known) == 6
    assert all(known.known(ipaddress.ip_network(network)) for network in kept)
    assert known.known(ipaddress.ip_network("192.0.2.6")) is None
