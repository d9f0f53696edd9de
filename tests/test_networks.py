"""mailsvc.networks, and that whatever compares addresses does so by it."""

from __future__ import annotations

import ipaddress
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import maybeDeferred
from twisted.internet.task import Clock

from mailsvc import proxy
from mailsvc.brakes import Brakes, BrakeSettings
from mailsvc.connections import Connections
from mailsvc.directory import SqliteDirectory
from mailsvc.logins import StoredPassword
from mailsvc.names import parse_address
from mailsvc.networks import address_of, network_of
from mailsvc.smtp.xclient import parse
from mailsvc.watching import Watch
from tests.command_line import CommandLine


@pytest.mark.parametrize(("text", "network"), [
    ("::ffff:127.0.0.1", "127.0.0.1/32"),
    ("::ffff:192.0.2.7/120", "192.0.2.0/24"),
    ("::FFFF:c000:207", "192.0.2.7/32"),
    ("::ffff:0:0/96", "0.0.0.0/0"),
    ("::ffff:0:0/95", "::fffe:0:0/95"),
    ("192.0.2.7/24", "192.0.2.0/24"),
    ("2001:db8::7/32", "2001:db8::/32"),
    ("::1", "::1/128"),
])
def test_networks(text: str, network: str) -> None:
    assert network_of(text) == ipaddress.ip_network(network)


@given(st.ip_addresses(v=4), st.integers(0, 32))
def test_a_mapped_address_is_in_what_the_other_is_in(address: Any, length: int) -> None:
    for text in str(address), f"::ffff:{address}":
        for network in f"{address}/{length}", f"::ffff:{address}/{96 + length}":
            assert address_of(text) in network_of(network)


@given(st.ip_addresses(v=6))
def test_others_are_what_they_are(address: Any) -> None:
    if address.ipv4_mapped is None:
        assert address_of(str(address)) == address == address_of(address.packed)


@pytest.mark.parametrize("text", ["", "x", "192.0.2", "192.0.2.7/33", "::ffff:192.0.2.7/129"])
def test_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"does not appear|permitted|Expected"):
        network_of(text)


# ---- who compares -------------------------------------------------------------------------------


def test_a_ban_binds(tmp_path: Path) -> None:
    clock = Clock()
    run = CommandLine(tmp_path)
    assert run("ban", "add", "::ffff:127.0.0.1").startswith("Banned 127.0.0.1/32 until ")
    clock.advance(time.time())
    brakes = Brakes(BrakeSettings(), tmp_path / "state.sqlite", clock, maybeDeferred)
    brakes.start()
    assert brakes.admit("127.0.0.1") is not None
    assert brakes.admit("127.0.0.2") is None
    brakes.stop()
    run("ban", "remove", "::ffff:127.0.0.1")
    assert run.json("ban", "list") == []


def test_connections_that_are_exempt() -> None:
    connections = Connections(9, 1, ["::ffff:192.0.2.0/120"], Clock())
    assert connections._source("192.0.2.7") == ""
    assert connections._source("198.51.100.7") == "198.51.100.7"


def test_an_app_password(tmp_path: Path) -> None:
    with SqliteDirectory(tmp_path / "accounts.sqlite") as directory:
        directory.add_domain("example.org")
        directory.add_account(parse_address("alice@example.org"))
        account = directory.account("alice", "example.org")
        assert account is not None
        made = directory.passwords.add(account, StoredPassword(
            "phone", "$x", None, None, frozenset(), ("::ffff:192.0.2.0/120",), None))
    assert made.networks == ("192.0.2.0/24",)


def test_a_proxy_that_says_it_so() -> None:
    assert parse(b"ADDR=IPV6:::ffff:192.0.2.7").addr == "192.0.2.7"
    mapped = ipaddress.ip_address("::ffff:192.0.2.7").packed
    for text in (b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:192.0.2.1 4711 25\r\n",
                 b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24" + 2 * mapped + b"\x12\x67\0\x19"):
        header = proxy.parse(text)
        assert header is not None
        assert header.client == ("192.0.2.7", 4711)


def test_who_is_watched() -> None:
    watch = Watch(lambda *_: None, address="::ffff:192.0.2.0/120")
    assert watch._network == ipaddress.ip_network("192.0.2.0/24")
