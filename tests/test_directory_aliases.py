"""mailsvc.directory: aliases, and what they lead to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailsvc.directory import SqliteDirectory
from mailsvc.mail import Alias
from mailsvc.names import DirectoryError
from tests.directories import (
    NOW,
    TEAM,
    TEAM_ADDRESS,
    at,
    refused,
    some_directory,
)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[SqliteDirectory]:
    with some_directory(tmp_path / "accounts.sqlite") as directory:
        yield directory


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)


def test_aliases_come_and_go(directory: SqliteDirectory) -> None:
    made = directory.add_alias(at("Sales@example.net"), [
        at("bob+sales@example.org"), TEAM_ADDRESS, at("BOB+sales@example.org")])
    assert made == Alias("Sales", "example.net", (at("BOB+sales@example.org"), TEAM_ADDRESS))
    assert directory.alias("sales", "example.net") == made
    assert made.name == "Sales@example.net"
    assert refused(directory.add_alias, at("sales@example.net"), [at("bob@example.org")]) == (
        "alias Sales@example.net exists already and leads to BOB+sales@example.org, "
        "team@example.org; to change it, give all its targets and --replace")
    directory.add_alias(at("sales@example.net"), [at("bob@example.org")], replace=True)
    assert directory.remove_alias(at("SALES@example.net")).targets == (at("bob@example.org"),)
    assert directory.alias("sales", "example.net") is None
    assert refused(directory.remove_alias, at("sales@example.net")) == (
        "there is no alias sales@example.net; see `mailsvc alias list`")
    assert directory._rows("SELECT count(*) FROM target") == [(2,)]


@pytest.mark.parametrize(("name", "targets", "text"), [
    ("x@example.com", ["bob@example.org"], "domain 'example.com' is not served here; add it"),
    ("x@example.org", [], "alias x@example.org leads nowhere; expected a target"),
    ("x@example.org", ["bob@example.org", "zoe@example.org"],
     "there is no account or alias zoe@example.org; first add it with: "
     "mailsvc account add zoe@example.org"),
    ("x@example.org", ["zoe+bob@example.org"], "there is no account or alias zoe+bob@example.org;"),
    ("x@example.org", ["x@example.org"], "there is no account or alias x@example.org;"),
    ("x@example.org", ["x+tag@example.org"], "there is no account or alias x+tag@example.org;"),
])
def test_aliases_that_cannot_be(directory: SqliteDirectory, name: str, targets: list[str],
                                text: str) -> None:
    assert refused(directory.add_alias, at(name), list(map(at, targets))).startswith(text)
    assert list(directory.aliases()) == [TEAM]


def test_a_refused_replacement_changes_nothing(directory: SqliteDirectory) -> None:
    refused(directory.add_alias, at("team@example.org"), [at("no@example.org")], replace=True)
    assert list(directory.aliases()) == [TEAM]


def test_loops_are_named(directory: SqliteDirectory) -> None:
    directory.add_alias(at("all@example.org"), [at("alice@example.org"), at("team@example.org")])
    directory.add_alias(at("both@example.org"), [at("all@example.org"), at("team@example.org")])
    assert refused(directory.add_alias, at("Team@example.org"),
                   [at("alice@example.org"), at("both@example.org")], replace=True) == (
        "the alias would lead back to itself: Team@example.org -> both@example.org -> "
        "team@example.org; choose another target")
    assert refused(directory.add_alias, at("team@example.org"), [at("all@example.org")],
                   replace=True).startswith(
        "the alias would lead back to itself: team@example.org -> all@example.org -> "
        "team@example.org;")
    # A moved mailbox delivers nothing, so it leads nowhere.
    directory.add_alias(at("gone@example.org"), [at("team@example.org")], moved=True)
    directory.add_alias(at("team@example.org"), [at("gone@example.org")], replace=True)


def test_a_long_chain(directory: SqliteDirectory) -> None:
    directory.add_alias(at("a0@example.org"), [at("bob@example.org")])
    with directory.transaction():  # not by add_alias, which follows the whole chain each time
        for number in range(1, 1500):
            id = directory._change("INSERT INTO alias (domain, key, local_part, moved) "
                                   "VALUES ('example.org', ?1, ?1, 0)", f"a{number}")
            directory._change("INSERT INTO target (alias, position, domain, key, local_part) "
                              "VALUES (?1, 0, 'example.org', ?2, ?2)", id, f"a{number - 1}")
    assert "back to itself: a0@example.org -> a1499@example.org -> " in refused(
        directory.add_alias, at("a0@example.org"), [at("a1499@example.org")], replace=True)


def test_an_alias_beside_its_account(directory: SqliteDirectory) -> None:
    bob, alice = at("bob@example.org"), at("alice@example.org")
    directory.add_alias(bob, [bob, alice])
    # To itself it means the account; to the team it is Bob by itself.
    assert refused(directory.remove_account, bob).startswith(
        "Bob@example.org still gets the mail of bob@example.org; first")
    directory.remove_alias(bob)
    directory.add_alias(bob, [alice])
    directory.remove_account(bob)
    assert refused(directory.remove_alias, bob).startswith(
        "bob@example.org still gets the mail of team@example.org; first")


def test_moved_mailboxes(directory: SqliteDirectory) -> None:
    made = directory.add_alias(at("carol@example.org"), [at("c@elsewhere.example")], moved=True)
    assert made == directory.alias("carol", "example.org")
    assert made.moved and not TEAM.moved
    assert refused(directory.add_alias, at("d@example.org"), [at("a@x.example"), at("b@x.example")],
                   moved=True) == "a moved mailbox has one new address; expected one target, not 2"
    for name in ("Postmaster@example.org", "abuse@example.org"):
        assert refused(directory.add_alias, at(name), [at("a@x.example")], moved=True) == (
            f"{name} must stay reachable (RFC 5321 §4.5.1); choose a target here, without --moved")


def test_long_lists_are_cut_in_messages(directory: SqliteDirectory) -> None:
    for number in range(7):
        directory.add_alias(at(f"a{number}@example.org"), [at("team@example.org")])
    assert "a3@example.org, a4@example.org and 2 more; first" in refused(
        directory.remove_alias, at("team@example.org"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.lists(st.integers(0, 7), min_size=1, max_size=3)),
                max_size=12))
def test_no_order_of_additions_makes_a_loop(tmp_path_factory: pytest.TempPathFactory,
                                            links: list[tuple[int, list[int]]]) -> None:
    with SqliteDirectory(tmp_path_factory.mktemp("graph") / "accounts.sqlite") as directory:
        directory.add_domain("d.example")
        for number in range(0, 8, 2):
            directory.add_account(at(f"n{number}@d.example"))
        accepted: dict[str, list[str]] = {}
        for name, targets in links:
            try:
                made = directory.add_alias(at(f"n{name}@d.example"),
                                           [at(f"n{each}@d.example") for each in targets],
                                           replace=True)
            except DirectoryError:
                continue
            accepted[made.name] = [str(each) for each in made.targets if str(each) != made.name]
        # Kahn: with no loop, aliases that lead to no other alias can be taken away one by one.
        while accepted:
            ends = [name for name, targets in accepted.items() if not set(targets) & set(accepted)]
            assert ends, accepted
            for end in ends:
                del accepted[end]
