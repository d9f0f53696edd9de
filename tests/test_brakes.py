"""Failed logins: what they delay, whom they ban, who is spared, and what it all costs."""

from __future__ import annotations

import sqlite3
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, ensureDeferred, maybeDeferred
from twisted.internet.defer import fail as fail_with
from twisted.logger import LogLevel, capturedLogs

from mailsvc import ledger as ledger_module
from mailsvc.brakes import _folded
from mailsvc.errors import TemporaryFailure
from tests.brakes import BOB, World, fail, refused


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "state.sqlite")
    yield world
    for brakes in list(world.brakes):
        world.stop(brakes)
    assert world.clock.getDelayedCalls() == []


# ---- the address ----


def test_the_first_failures_are_free_and_then_each_waits_twice_as_long(world: World) -> None:
    brakes = world.process(ban_failures=0)
    delays = []
    for _ in range(12):
        delays.append(brakes.delay("192.0.2.1", BOB))
        brakes.failed("192.0.2.1", BOB)
    assert delays == [0, 0, 0, 0, 0, 0.5, 1, 2, 4, 8, 8, 8]
    assert brakes.delay("192.0.2.2", BOB) == 0
    assert brakes.delay("192.0.2.1", "alice@example.org") == 8


def test_an_address_is_banned(world: World) -> None:
    brakes = world.process()
    fail(brakes, "192.0.2.1", 19)
    assert not refused(brakes, "192.0.2.1")
    fail(brakes, "192.0.2.1")
    refusal = brakes.admit("192.0.2.1")
    assert isinstance(refusal, TemporaryFailure)
    assert str(refusal.status) == "4.7.0"
    assert "Too many failed logins" in refusal.text
    assert not refused(brakes, "192.0.2.2")
    world.wait(599)
    assert refused(brakes, "192.0.2.1")
    world.wait(1)
    assert not refused(brakes, "192.0.2.1")


def test_a_ban_is_logged_once(world: World) -> None:
    brakes = world.process()
    with capturedLogs() as logs:
        fail(brakes, "192.0.2.1", 25)
    (entry,) = [entry for entry in logs if entry["log_level"] is LogLevel.warn]
    assert (entry["network"], entry["seconds"], entry["times"]) == ("192.0.2.1/32", 600, 1)


def test_failures_are_forgotten_one_by_one(world: World) -> None:
    brakes = world.process()
    fail(brakes, "192.0.2.1", 8)
    assert brakes.delay("192.0.2.1", BOB) == 4
    world.wait(600)
    assert brakes.delay("192.0.2.1", BOB) == 2
    world.wait(1200)
    assert brakes.delay("192.0.2.1", BOB) == 0.5
    world.wait(600)
    assert brakes.delay("192.0.2.1", BOB) == 0


def test_one_wrong_password_in_ten_minutes_is_never_banned(world: World) -> None:
    brakes = world.process()
    for _ in range(100):
        fail(brakes, "192.0.2.1")
        assert brakes.delay("192.0.2.1", BOB) == 0
        world.wait(600)
    assert not refused(brakes, "192.0.2.1")


def test_a_repeater_is_banned_longer_each_time(world: World) -> None:
    brakes = world.process(most_ban_seconds=3000)
    lengths = []
    for _ in range(5):
        fail(brakes, "192.0.2.1", 20)
        began = world.clock.seconds()
        while refused(brakes, "192.0.2.1"):
            world.wait(60)
        lengths.append(world.clock.seconds() - began)
    assert lengths == [600, 1200, 2400, 3000, 3000]
    world.wait(3001)
    fail(brakes, "192.0.2.1", 20)
    world.wait(600)
    assert not refused(brakes, "192.0.2.1"), "what is long ago counts no more"


def test_a_64_is_one_address(world: World) -> None:
    brakes = world.process()
    for number in range(20):
        fail(brakes, f"2001:db8:1:2::{number:x}")
    assert refused(brakes, "2001:db8:1:2:ffff::1")
    assert not refused(brakes, "2001:db8:1:3::1")


def test_bans_can_be_off(world: World) -> None:
    brakes = world.process(ban_failures=0, network_ban_failures=0)
    fail(brakes, "192.0.2.1", 500)
    assert not refused(brakes, "192.0.2.1")


# ---- the network ----


@pytest.mark.parametrize(("pattern", "beside"), [
    ("192.0.2.{}", "192.0.3.1"), ("2001:db8:1:{}::1", "2001:db8:2::1")])
def test_a_network_is_banned_but_for_whom_we_know(world: World, pattern: str,
                                                  beside: str) -> None:
    brakes = world.process()
    owner = pattern.format("200")
    brakes.succeeded(owner, BOB)
    for number in range(99):
        fail(brakes, pattern.format(number), name=f"{number}@example.org")
    assert not refused(brakes, pattern.format(150))
    fail(brakes, pattern.format(99))
    assert refused(brakes, pattern.format(150))
    assert refused(brakes, pattern.format(1))
    assert not refused(brakes, owner)
    assert not refused(brakes, beside)
    # Known or not, an address of its own is banned for its own failures.
    fail(brakes, owner, 20)
    assert refused(brakes, owner)


def test_one_repeater_does_not_get_his_neighbours_banned(world: World) -> None:
    brakes = world.process(most_ban_seconds=600)
    for _ in range(50):
        fail(brakes, "192.0.2.1", 20)
        world.wait(600)
        assert not refused(brakes, "192.0.2.2")


def test_using_one_neighbour_after_the_other_gets_all_banned(world: World) -> None:
    brakes = world.process()
    guesses = 0
    for number in range(256):
        while not refused(brakes, f"192.0.2.{number}"):
            fail(brakes, f"192.0.2.{number}")
            guesses += 1
    assert guesses < 500


# ---- the account ----


def test_an_account_under_attack_is_slow_for_strangers_alone(world: World) -> None:
    brakes = world.process()
    brakes.succeeded("198.51.100.7", BOB)
    for number in range(60):
        fail(brakes, f"203.0.{number}.1")
    assert brakes.delay("192.0.2.1", BOB) == 8
    assert brakes.delay("192.0.2.1", "alice@example.org") == 0
    assert brakes.delay("198.51.100.7", BOB) == 0
    assert brakes.delay("198.51.100.8", BOB) == 0, "his address changes within his network"
    assert brakes.admit("192.0.2.1") is None, "nobody is banned from an account"


def test_an_account_that_does_not_exist_is_treated_alike(world: World) -> None:
    brakes = world.process()
    for number in range(60):
        for name in (BOB, "nobody@example.org"):
            fail(brakes, f"203.0.{number}.1", name=name)
    assert brakes.delay("192.0.2.1", BOB) == brakes.delay("192.0.2.1", "nobody@example.org") == 8


def test_the_owners_mistakes_slow_nobody_else(world: World) -> None:
    brakes = world.process(ban_failures=0, network_ban_failures=0)
    brakes.succeeded("198.51.100.7", BOB)
    fail(brakes, "198.51.100.7", 60)
    assert brakes.delay("192.0.2.1", BOB) == 0


def test_spellings_of_a_name_are_one(world: World) -> None:
    brakes = world.process()
    for number in range(40):
        fail(brakes, f"203.0.{number}.1", name=("Bob@Example.org", BOB)[number % 2])
    assert brakes.delay("192.0.2.1", b"BOB@example.ORG") == 8


def test_an_owner_is_known_after_a_restart(world: World) -> None:
    brakes = world.process()
    brakes.succeeded("198.51.100.7", BOB)
    for number in range(60):
        fail(brakes, f"203.0.{number}.1")
    world.stop(brakes)
    brakes = world.process()
    assert brakes.delay("198.51.100.7", BOB) == 0
    assert brakes.delay("192.0.2.1", BOB) == 8


def test_an_owner_is_forgotten_in_the_end(world: World) -> None:
    brakes = world.process(remember_days=1)
    brakes.succeeded("198.51.100.7", BOB)
    world.wait(1)
    assert world.rows("SELECT name, host, around FROM known_addresses") == [
        (BOB, "198.51.100.7/32", "198.51.100.0/24")]
    world.clock.advance(86_401)
    for number in range(60):
        fail(brakes, f"203.0.{number}.1")
    assert brakes.delay("198.51.100.7", BOB) == 8
    world.wait(2)
    assert world.rows("SELECT * FROM known_addresses") == []


def test_an_account_is_known_by_a_bounded_number_of_addresses(world: World) -> None:
    brakes = world.process()
    for number in range(120):
        brakes.succeeded(f"203.0.{number}.1", BOB)
        world.wait(0.5)
    hosts = {host for (host,) in world.rows("SELECT host FROM known_addresses")}
    assert hosts == {f"203.0.{number}.1/32" for number in range(70, 120)}


def test_a_client_that_polls_writes_once_a_day(world: World) -> None:
    brakes = world.process()
    writes: list[object] = []

    def noted(job: Callable[..., Any], *rest: Any) -> Deferred[Any]:
        writes.append(job)
        return maybeDeferred(job, *rest)

    world.in_thread = noted
    for _ in range(100):
        brakes.succeeded("198.51.100.7", BOB)
        world.wait(5)
    assert len(writes) == 1
    world.clock.advance(86_400)
    brakes.succeeded("198.51.100.7", BOB)
    world.wait(1)
    assert len(writes) == 3, "it, and the sweep"


# ---- forgiveness ----


def test_typing_it_right_in_the_end_is_forgiven(world: World) -> None:
    brakes = world.process()
    fail(brakes, "192.0.2.1", 9)
    assert brakes.delay("192.0.2.1", BOB) == 8
    brakes.succeeded("192.0.2.1", BOB)
    assert brakes.delay("192.0.2.1", BOB) == 0
    world.wait(5)
    assert brakes.delay("192.0.2.1", BOB) == 0, "in the file as well"


def test_an_account_of_his_own_does_not_wash_a_guesser_clean(world: World) -> None:
    brakes = world.process()
    for _ in range(10):
        fail(brakes, "192.0.2.1", 2, "victim@example.org")
        brakes.succeeded("192.0.2.1", "guesser@example.org")
    assert refused(brakes, "192.0.2.1")


# ---- who is not counted ----


@pytest.mark.parametrize("client", ["", "192.0.2.1", "2001:db8::1", "not an address"])
def test_exempt_networks_and_unix_sockets_are_not_counted(world: World, client: str) -> None:
    brakes = world.process(exempt_networks=["192.0.2.0/24", "2001:db8::1"])
    fail(brakes, client, 200)
    brakes.succeeded(client, BOB)
    assert brakes.admit(client) is None
    assert brakes.delay(client, BOB) == 0
    world.wait(1)
    assert world.rows("SELECT * FROM failed_logins") == []


def test_a_network_that_is_banned_spares_the_exempt_in_it(world: World) -> None:
    brakes = world.process(exempt_networks=["192.0.2.7"])
    for number in range(20, 220):
        fail(brakes, f"192.0.2.{number}")
    assert refused(brakes, "192.0.2.6")
    assert not refused(brakes, "192.0.2.7")


def test_nothing_is_exempt_by_default(world: World) -> None:
    brakes = world.process()
    fail(brakes, "127.0.0.1", 20)
    fail(brakes, "::1", 20)
    assert refused(brakes, "127.0.0.1")
    assert refused(brakes, "::1")


# ---- permit ----


def test_permit_waits_and_then_permits(world: World) -> None:
    brakes = world.process()
    fired: list[object] = []
    ensureDeferred(brakes.permit("192.0.2.1", BOB)).addBoth(fired.append)
    assert fired == [None]
    fail(brakes, "192.0.2.1", 6)
    ensureDeferred(brakes.permit("192.0.2.1", BOB)).addBoth(fired.append)
    world.clock.advance(0.9)
    assert fired == [None]
    world.clock.advance(0.2)
    assert fired == [None, None]


def test_permit_refuses_whom_a_ban_meets_while_he_waits(world: World) -> None:
    brakes = world.process()
    fail(brakes, "192.0.2.1", 19)
    fired: list[Any] = []
    ensureDeferred(brakes.permit("192.0.2.1", BOB)).addBoth(fired.append)
    fail(brakes, "192.0.2.1")
    ensureDeferred(brakes.permit("192.0.2.1", BOB)).addBoth(fired.append)
    assert len(fired) == 1, "who is banned already need not wait"
    world.clock.advance(8)
    assert [failure.check(TemporaryFailure) for failure in fired] == [TemporaryFailure] * 2


def test_refusals_hold_on_to_nothing(world: World) -> None:
    brakes = world.process()
    fail(brakes, "192.0.2.1", 20)
    for _ in range(2):
        with pytest.raises(TemporaryFailure) as refusal:
            brakes.permit("192.0.2.1", BOB).send(None)
        assert len(refusal.traceback) == 2
    assert brakes.admit("192.0.2.1") is not brakes.admit("192.0.2.1")


# ---- what it costs ----


def test_ten_thousand_wrong_logins_from_200_addresses(world: World) -> None:
    """Show 5: attackers are cut off, memory is flat, and the owner next door is served."""
    brakes = world.process()
    brakes.succeeded("127.0.0.250", BOB)
    guesses = 0
    tracemalloc.start()
    try:
        before = 0
        for attempt in range(50):
            for number in range(200):
                client = f"127.0.0.{number}"
                if not refused(brakes, client):
                    fail(brakes, client, name=f"user{attempt}@example.org")
                    guesses += 1
                assert not refused(brakes, "127.0.0.250")
                assert brakes.delay("127.0.0.250", BOB) == 0
            world.wait(0.5)
            if attempt == 10:
                before = tracemalloc.get_traced_memory()[0]
        # What coverage gathers meanwhile is memory too.
        if sys.gettrace() is None:
            assert tracemalloc.get_traced_memory()[0] - before < 100_000
    finally:
        tracemalloc.stop()
    assert guesses == 100


def test_a_million_addresses_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # A hundredth of it, with limits a hundredth as high.
    monkeypatch.setattr(ledger_module, "ENTRIES", 100)
    brakes = world.process(counters=1000, network_ban_failures=0)
    for number in range(10_000):
        network = f"2001:{number >> 8:x}:{number & 255:x}:1::1"
        assert brakes.admit(network) is None
        brakes.delay(network, f"user{number}@example.org")
        fail(brakes, network, name=f"user{number}@example.org")
        if number % 50 == 0:
            world.wait(0.5)
    ledger = brakes._ledger
    assert len(ledger._counts) <= 110
    assert len(ledger._known) <= 110
    assert len(ledger._pending.counts) <= 400
    world.wait(1)
    ((rows,),) = world.rows("SELECT count(*) FROM failed_logins")
    assert rows <= 1000 + 400


def test_what_cannot_be_written_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "ENTRIES", 100)
    brakes = world.process()

    world.in_thread = lambda *_: fail_with(TemporaryFailure("the disk is full"))
    for number in range(2000):
        fail(brakes, f"203.{number >> 8}.{number & 255}.1", name=f"user{number}@example.org")
        if number % 20 == 0:
            world.wait(0.5)
    assert len(brakes._ledger._pending.counts) <= 100 + 4 * 20
    world.in_thread = maybeDeferred


def test_the_tables_are_swept(world: World) -> None:
    brakes = world.process()
    fail(brakes, "192.0.2.1", 3)
    world.wait(1)
    assert len(world.rows("SELECT * FROM failed_logins")) == 4
    world.clock.advance(3601)
    world.wait(1)
    assert world.rows("SELECT * FROM failed_logins") == []


def test_admitting_asks_the_file_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    brakes = world.process()
    for number in range(200):
        fail(brakes, f"10.{number}.0.1", 20)
    clients = [f"10.{number % 250}.0.{number % 3}" for number in range(5000)]
    asked: list[str] = []
    monkeypatch.setattr(brakes._ledger, "_rows", lambda query, *_: asked.append(query))
    refused = [client for client in clients if brakes.admit(client) is not None]
    assert asked == []
    assert refused


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300) | st.binary(max_size=300))
def test_any_name_is_fit_for_the_file(name: str | bytes) -> None:
    folded = _folded(name)
    assert len(folded.encode()) < 6000
    with sqlite3.connect(":memory:") as db:
        assert db.execute("SELECT ?", (folded,)).fetchone() == (folded,)
