"""The commands alias and domain, as people and programs run them."""

from __future__ import annotations

import pytest

from tests.command_line import CommandLine, fresh_command_line, populated

fresh = pytest.fixture(fresh_command_line)
run = pytest.fixture(populated)

# ---- aliases -------------------------------------------------------------------------------------


def test_aliases(run: CommandLine) -> None:
    assert run("alias", "add", "Team@example.org", "bob@example.org", "alice+x@example.org") == (
        "Team@example.org -> bob@example.org, alice+x@example.org\n")
    assert run.notes == ""
    assert run("alias", "add", "--moved", "carol@example.org", "c@elsewhere.example") == (
        "carol@example.org -> c@elsewhere.example (moved)\n")
    assert run("alias", "list") == (
        "NAME               TARGETS                               MOVED\n"
        "Team@example.org   bob@example.org, alice+x@example.org  -\n"
        "carol@example.org  c@elsewhere.example                   yes\n")
    assert run.json("alias", "list") == [
        {"name": "Team@example.org", "targets": ["bob@example.org", "alice+x@example.org"],
         "moved": False},
        {"name": "carol@example.org", "targets": ["c@elsewhere.example"], "moved": True}]
    assert run.fails("alias", "add", "team@example.org", "bob@example.org") == (
        "alias Team@example.org exists already and leads to bob@example.org, alice+x@example.org; "
        "to change it, give all its targets and --replace")
    assert run("alias", "add", "--replace", "team@example.org", "alice@example.org") == (
        "team@example.org -> alice@example.org\n")
    assert run.fails("account", "remove", "alice@example.org", "--yes").startswith(
        "alice@example.org still gets the mail of team@example.org; first give that to another")
    assert run("alias", "remove", "TEAM@example.org") == (
        "Removed alias team@example.org, which led to alice@example.org\n")
    assert run.fails("alias", "remove", "team@example.org") == (
        "there is no alias team@example.org; see `mailsvc alias list`")
    assert run("alias", "add", "x@example.org", "bob@elsewhere.example") == (
        "x@example.org -> bob@elsewhere.example\n")
    assert "Missing argument 'TARGET...'" in run.misused("alias", "add", "x@example.org")


def test_loops_are_named(run: CommandLine) -> None:
    run("alias", "add", "a@example.org", "bob@example.org")
    run("alias", "add", "b@example.org", "a@example.org")
    assert run.fails("alias", "add", "--replace", "a@example.org", "b@example.org") == (
        "the alias would lead back to itself: a@example.org -> b@example.org -> a@example.org; "
        "choose another target")


def test_an_alias_that_takes_an_accounts_mail_is_noted(run: CommandLine) -> None:
    run("alias", "add", "bob@example.org", "alice@example.org")
    assert run.notes == ("Note: account Bob@example.org gets no mail now; to keep a copy there, "
                         "name it among the targets\n")
    run("alias", "add", "--replace", "bob@example.org", "alice@example.org", "BOB@example.org")
    assert run.notes == ""


# ---- domains -------------------------------------------------------------------------------------


def test_domains(run: CommandLine) -> None:
    run("domain", "add", "bücher.example", "--separators", "+-")
    run("domain", "add", "plain.example", "--separators", "")
    assert run("domain", "catch-all", "BÜCHER.example", "bob@example.org") == (
        "Mail for unknown names of xn--bcher-kva.example goes to bob@example.org\n")
    assert run("domain", "list") == (
        "DOMAIN                 CATCH-ALL        SEPARATORS\n"
        "example.org            -                + (default)\n"
        "xn--bcher-kva.example  bob@example.org  +-\n"
        "plain.example          -                none\n").replace("DOMAIN", "NAME  ")
    assert run.json("domain", "list") == [
        {"name": "example.org", "catch_all": None, "separators": None},
        {"name": "xn--bcher-kva.example", "catch_all": "bob@example.org", "separators": "+-"},
        {"name": "plain.example", "catch_all": None, "separators": ""}]
    assert run("domain", "catch-all", "bücher.example", "--none") == (
        "Mail for unknown names of xn--bcher-kva.example is refused\n")
    for wrong in ([], ["--none", "bob@example.org"]):
        assert run.misused("domain", "catch-all", "example.org", *wrong) == (
            "Give either TARGET or --none.")
    assert run("domain", "remove", "bücher.example") == (
        "Removed domain xn--bcher-kva.example; mail for it is refused now\n")
    assert run.fails("domain", "remove", "example.org") == (
        "example.org still has the account Bob@example.org, alice@example.org; first remove each "
        "with: mailsvc account remove NAME")
    assert run.fails("domain", "add", "example.org") == (
        "domain example.org exists already; there is nothing to do")
    assert run.fails("domain", "add", "d.example", "--separators", "\n").startswith(
        r"'\n' cannot part a subaddress; expected characters out of ")
