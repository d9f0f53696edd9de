"""``mailsvc ban``: what it prints, what it refuses, and that running processes obey."""

from __future__ import annotations

import datetime
import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click.testing
import pytest
from twisted.internet.defer import maybeDeferred
from twisted.internet.task import Clock

from mailsvc.brakes import Brakes, BrakeSettings
from mailsvc.cli import main


class CommandLine:
    """Runs ``mailsvc ban``."""

    def __init__(self, data: Path) -> None:
        self.data = data

    def __call__(self, *arguments: str, status: int = 0) -> str:
        """What it printed on standard output, or on standard error when it fails."""
        result = click.testing.CliRunner().invoke(
            main, ["--dir", str(self.data), "ban", *arguments], prog_name="mailsvc")
        assert result.exit_code == status, result.output
        if status:
            assert result.stdout == ""
            return result.stderr.rpartition("Error: ")[2].rstrip("\n")
        return result.stdout

    def listed(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self("list", "--json"))
        return found


@pytest.fixture
def run(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.advance(time.time())
    return clock


@pytest.fixture
def brakes(tmp_path: Path, clock: Clock) -> Iterator[Brakes]:
    """Those of a running process."""
    brakes = Brakes(BrakeSettings(), tmp_path / "state.sqlite", clock, maybeDeferred)
    brakes.start()
    yield brakes
    brakes.stop()


def test_without_bans(run: CommandLine) -> None:
    assert run("list") == "NETWORK  UNTIL  TIMES  ORIGIN  REASON\n"
    assert run.listed() == []
    assert run("remove", "all") == "Nothing is banned\n"
    assert not (run.data / "state.sqlite").exists(), "looking makes nothing"


def test_a_walk(run: CommandLine) -> None:
    now = time.time()
    assert run("add", "192.0.2.7", "--for", "2h", "--reason", "[red] guesses").startswith(
        "Banned 192.0.2.7/32 until 20")
    run("add", "2001:db8::5/32", "--for", "90s")
    first, second = sorted(run.listed(), key=lambda ban: len(ban["network"]))
    assert {key: first[key] for key in ("network", "times", "origin", "reason")} == {
        "network": "192.0.2.7/32", "times": 1, "origin": "manual", "reason": "[red] guesses"}
    since, until = (datetime.datetime.fromisoformat(first[key]).timestamp()
                    for key in ("since", "until"))
    assert now - 1 <= since <= now + 60
    assert until - since == 7200
    assert (second["network"], second["reason"]) == ("2001:db8::/32", "")
    lines = run("list").splitlines()
    assert len(lines) == 3
    assert any(line.startswith("192.0.2.7/32") and line.endswith("manual  [red] guesses")
               for line in lines)
    assert run("remove", "192.0.2.7") == "Lifted the ban of 192.0.2.7/32\n"
    assert run("remove", "all") == "Lifted the ban of 2001:db8::/32\n"
    assert run.listed() == []


def test_a_network_is_removed_with_what_is_in_it(run: CommandLine) -> None:
    for network in ("192.0.2.7", "192.0.2.0/25", "192.0.3.1", "2001:db8::1"):
        run("add", network)
    assert sorted(run("remove", "192.0.2.0/24").splitlines()) == [
        "Lifted the ban of 192.0.2.0/25", "Lifted the ban of 192.0.2.7/32"]
    assert {ban["network"] for ban in run.listed()} == {"192.0.3.1/32", "2001:db8::1/128"}


@pytest.mark.parametrize(("arguments", "said"), [
    (("add", "example.org"), "'example.org' is not a network; expected an address such as"),
    (("add", "192.0.2.0/33"), "'192.0.2.0/33' is not a network"),
    (("add", "all"), "'all' is not a network"),
    (("add", "0.0.0.0/0"), "0.0.0.0/0 is everybody; stop the service to take no connections"),
    (("add", "::/0"), "::/0 is everybody"),
    (("add", "192.0.2.1", "--for", "1"), "'1' is not a time; expected seconds, minutes"),
    (("add", "192.0.2.1", "--for", "0s"), "'0s' is not a time"),
    (("add", "192.0.2.1", "--for", "-1h"), "'-1h' is not a time"),
    (("add", "192.0.2.1", "--for", "9999999999w"), "'9999999999w' is not a time"),
    (("add", "192.0.2.1", "--for", "١h"), "'١h' is not a time"),
    (("add", "192.0.2.1", "--reason", "a\nb"), "it holds control characters"),
    (("remove", "everything"), "'everything' is not a network"),
])
def test_a_wrong_command_line(run: CommandLine, arguments: tuple[str, ...], said: str) -> None:
    assert said in run(*arguments, status=2)
    assert not (run.data / "state.sqlite").exists()


def test_what_is_not_banned_cannot_be_lifted(run: CommandLine) -> None:
    run("add", "192.0.2.0/24")
    assert run("remove", "198.51.100.1", status=1) == (
        "198.51.100.1/32 is not banned; see `mailsvc ban list`")
    assert run("remove", "192.0.2.1", status=1) == (
        "192.0.2.1/32 is banned only as a part of 192.0.2.0/24; lift that: mailsvc ban remove "
        "192.0.2.0/24")


def test_a_wrong_place_is_not_made(tmp_path: Path) -> None:
    run = CommandLine(tmp_path / "tpyo")
    for arguments in (("list",), ("add", "192.0.2.1"), ("remove", "all")):
        assert run(*arguments, status=1).startswith(
            f"there is no mailsvc data in {tmp_path}/tpyo: no such directory; ")
    assert not (tmp_path / "tpyo").exists()


def test_a_file_of_somebody_else_is_refused(run: CommandLine) -> None:
    with sqlite3.connect(run.data / "state.sqlite") as db:
        db.execute("CREATE TABLE x (y)")
    assert "not a file of mailsvc" in run("list", status=1)


def test_a_running_process_obeys_within_a_second(run: CommandLine, brakes: Brakes,
                                                 clock: Clock) -> None:
    run("add", "192.0.2.0/24", "--for", "10m")
    clock.advance(1)
    assert brakes.admit("192.0.2.7") is not None
    run("remove", "all")
    clock.advance(1)
    assert brakes.admit("192.0.2.7") is None


def test_bans_for_failures_are_listed_and_lifted(run: CommandLine, brakes: Brakes,
                                                 clock: Clock) -> None:
    for _ in range(30):
        brakes.failed("192.0.2.7", "bob@example.org")
    for _ in range(8):
        brakes.failed("198.51.100.1", "alice@example.org")
    clock.advance(0.5)
    (ban,) = run.listed()
    assert (ban["network"], ban["origin"], ban["times"]) == ("192.0.2.7/32", "address", 1)
    assert ban["reason"] == "20 failed logins"
    run("remove", "192.0.2.7")
    clock.advance(0.5)
    clock.advance(0.5)
    assert brakes.admit("192.0.2.7") is None
    assert brakes.delay("192.0.2.7", "carol@example.org") == 0, "the failures are forgiven"
    assert brakes.delay("198.51.100.1", "carol@example.org") == 4, "those of others are not"
    run("remove", "all")
    clock.advance(1)
    clock.advance(1)
    assert brakes.delay("198.51.100.1", "carol@example.org") == 0
