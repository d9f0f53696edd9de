"""mailsvc.directory: what is found, what may be changed, and who sees it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from zope.interface.verify import verifyObject

from mailsvc.directory import SqliteDirectory
from mailsvc.errors import TemporaryFailure
from mailsvc.interfaces import IDirectory
from mailsvc.logins import Credentials, StoredPassword
from mailsvc.mail import Account, Address, Domain
from mailsvc.names import DirectoryError
from tests.directories import (
    ALICE,
    BOB,
    HOSTILE,
    NOW,
    TEAM,
    TEAM_ADDRESS,
    at,
    logins,
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


def test_it_keeps_the_interface(directory: SqliteDirectory) -> None:
    verifyObject(IDirectory, directory)


# ---- look-ups ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("local_part", "domain"), [
    ("Bob", "example.org"), ("bob", "EXAMPLE.org"), ("BOB", "example.org."),
    ("bob", "ｅxample.org")])
def test_case_does_not_matter(directory: SqliteDirectory, local_part: str, domain: str) -> None:
    assert directory.account(local_part, domain) == BOB
    assert directory.credentials(f"{local_part}@{domain}") == logins(BOB, "$v", "s")
    assert directory.alias("TEAM", domain) == TEAM
    assert directory.domain(domain) == Domain("example.org")


@pytest.mark.parametrize(("local_part", "domain"), [
    ("bob", "example.net"), ("bob", ""), ("", ""), ("bob", "[127.0.0.1]"), ("bob", "a..ü"),
    ("bob", "example"), ("bob", "org"), ("bob", "xexample.org"), ("team", "example.org"),
    *((hostile, "example.org") for hostile in HOSTILE), *(("bob", hostile) for hostile in HOSTILE)])
def test_what_there_is_not(directory: SqliteDirectory, local_part: str, domain: str) -> None:
    assert directory.account(local_part, domain) is None
    assert directory.credentials(f"{local_part}@{domain}") is None
    if local_part != "team":
        assert directory.alias(local_part, domain) is None
    assert domain in {"example.org", "example.net"} or directory.domain(domain) is None


def test_names_in_other_scripts(directory: SqliteDirectory) -> None:
    directory.add_domain("Bücher.example")
    made = directory.add_account(Address("Jose\u0301", "bücher.example"))
    assert made == Account("José", "xn--bcher-kva.example")
    assert directory.account("jose\u0301", "BÜCHER.example") == made
    assert directory.account("JOSÉ", "xn--bcher-kva.example") == made
    assert refused(directory.add_account, Address("josé", "xn--bcher-kva.example")).startswith(
        "account José@xn--bcher-kva.example exists already")


def test_credentials_do_not_show(directory: SqliteDirectory) -> None:
    found = directory.credentials("bob@example.org")
    assert found and found.verifier == "$v" and found.secret == "s"
    assert "$v" not in repr(found) and "'s'" not in repr(found)
    assert directory.credentials("alice@example.org") == Credentials(ALICE)
    assert directory.credentials("alice") is None


def test_listings_begin_with_the_oldest(directory: SqliteDirectory) -> None:
    directory.add_account(at("zoe@example.net"))
    directory.add_account(at("adam@example.net"))
    directory.add_alias(at("also@example.net"), [at("adam@example.net")])
    assert [each.name for each in directory.domains()] == ["example.org", "example.net"]
    assert [each.name for each in directory.domains(1)] == ["example.org"]
    assert [each.local_part for each in directory.accounts()] == ["Bob", "alice", "zoe", "adam"]
    assert [each.name for each in directory.aliases()] == ["team@example.org", "also@example.net"]
    assert next(iter(directory.aliases())) == TEAM
    assert directory.oldest_account("EXAMPLE.net") == Account("zoe", "example.net")
    assert directory.oldest_account("example.com") is None


def test_a_directory_that_cannot_be_read(directory: SqliteDirectory) -> None:
    directory.close()
    for look_up in (lambda: directory.domain("example.org"), lambda: directory.account("bob", "d"),
                    lambda: directory.alias("bob", "d"), lambda: directory.credentials("bob@d"),
                    directory.domains, lambda: directory.oldest_account("d")):
        with pytest.raises(TemporaryFailure):
            look_up()


def test_no_look_up_reads_a_table_through(directory: SqliteDirectory) -> None:
    asked: list[str] = []
    directory._db._db.set_trace_callback(asked.append)
    for look_up in (lambda: directory.domain("example.org"),
                    lambda: directory.account("bob", "example.org"),
                    lambda: directory.account("nobody", "example.org"),
                    lambda: directory.alias("team", "example.org"),
                    lambda: directory.credentials("bob@example.org"),
                    lambda: directory.oldest_account("example.org")):
        look_up()
    directory._db._db.set_trace_callback(None)
    assert len(asked) >= 6
    for query in asked:
        plan = [row[3] for row in directory._rows(f"EXPLAIN QUERY PLAN {query}")]
        assert plan, query
        # What a subquery found may be scanned, a table not.
        assert any(step.startswith("SEARCH") for step in plan), (query, plan)
        scanned = [step for step in plan if step.startswith("SCAN ")
                   and not step.startswith(("SCAN (subquery", "SCAN CONSTANT ROW"))]
        assert scanned == [], query


# ---- domains -------------------------------------------------------------------------------------


def test_domains_come_and_go(directory: SqliteDirectory) -> None:
    assert directory.add_domain("Example.COM", separators="") == Domain("example.com", None, "")
    assert directory.domain("example.com") == Domain("example.com", None, "")
    assert refused(directory.add_domain, "example.com.") == (
        "domain example.com exists already; there is nothing to do")
    assert refused(directory.add_domain, "a b").startswith("'a b' is not a domain name; expected ")
    assert refused(directory.add_domain, "d.example", separators="+@").startswith(
        "'+@' cannot part a subaddress; expected characters out of !")
    assert directory.remove_domain("EXAMPLE.com").name == "example.com"
    assert directory.domain("example.com") is None
    assert refused(directory.remove_domain, "example.com") == (
        "domain 'example.com' is not served here; see `mailsvc domain list`")


def test_a_domain_in_use_stays(directory: SqliteDirectory) -> None:
    assert refused(directory.remove_domain, "example.org") == (
        "example.org still has the account Bob@example.org, alice@example.org and the alias "
        "team@example.org; first remove each with: mailsvc account remove NAME, mailsvc alias "
        "remove NAME")
    directory.add_account(at("zoe@example.net"))
    directory.add_alias(at("z@example.net"), [at("zoe+x@example.net")])
    directory.remove_account(at("zoe@example.net"))
    assert refused(directory.remove_domain, "example.net") == (
        "example.net still has the alias z@example.net; "
        "first remove each with: mailsvc alias remove NAME")
    directory.add_alias(at("y@example.org"), [at("z+1@example.net")])
    directory.remove_alias(at("z@example.net"))
    assert refused(directory.remove_domain, "example.net").startswith(
        "example.net still gets the mail of y@example.org; first give that to another")
    directory.remove_alias(at("y@example.org"))
    directory.add_alias(at("moved@example.org"), [at("z@example.net")], moved=True)
    directory.remove_domain("example.net")


def test_catch_all(directory: SqliteDirectory) -> None:
    assert directory.set_catch_all("Example.net", at("bob@example.org")) == Domain(
        "example.net", at("bob@example.org"), "-")
    assert directory.domain("example.net") == Domain("example.net", at("bob@example.org"), "-")
    assert refused(directory.remove_account, at("bob@example.org")).startswith(
        "Bob@example.org still gets the mail of team@example.org, *@example.net; first")
    directory.set_catch_all("example.net", at("team@example.org"))
    assert refused(directory.remove_alias, at("team@example.org")).startswith(
        "team@example.org still gets the mail of *@example.net; first")
    directory.set_catch_all("example.net", None)
    assert directory.domain("example.net") == Domain("example.net", None, "-")
    assert refused(directory.set_catch_all, "example.net", at("zoe@example.net")) == (
        "there is no account or alias zoe@example.net; "
        "first add it with: mailsvc account add zoe@example.net")
    assert "is not served here" in refused(directory.set_catch_all, "a.example", None)


def test_a_catch_all_elsewhere_keeps_a_domain(directory: SqliteDirectory) -> None:
    directory.add_account(at("zoe@example.net"))
    directory.set_catch_all("example.org", at("zoe@example.net"))
    directory._change("DELETE FROM mailbox WHERE domain = 'example.net'")
    assert refused(directory.remove_domain, "example.net").startswith(
        "example.net still gets the mail of *@example.org; first")
    # Its own does not count.
    directory.set_catch_all("example.org", None)
    directory._change("UPDATE domain SET catch_all_local_part = 'zoe', "
                      "catch_all_domain = 'example.net' WHERE name = 'example.net'")
    directory.remove_domain("example.net")


# ---- accounts ------------------------------------------------------------------------------------


def test_accounts_come_and_go(directory: SqliteDirectory) -> None:
    assert directory.add_account(at("carol@example.org")) == Account("carol", "example.org")
    assert directory.remove_account(at("CAROL@example.org")) == Account("carol", "example.org")
    assert directory.account("carol", "example.org") is None
    assert refused(directory.remove_account, at("carol@example.org")) == (
        "there is no account carol@example.org; see `mailsvc account list`")


@pytest.mark.parametrize(("name", "text"), [
    ("BOB@example.org", "account Bob@example.org exists already; change its password with: "
                        "mailsvc account passwd Bob@example.org"),
    ("bob@example.com", "domain 'example.com' is not served here; add it with: "
                        "mailsvc domain add example.com"),
    ("Team@example.org", "alias Team@example.org would take the mail of this account; first remove "
                         "it with: mailsvc alias remove Team@example.org"),
    ("../bob@example.org", "'../bob' cannot name a mail directory; choose a name without '/' and "
                           "outer spaces that does not begin with '.' or '-'"),
])
def test_accounts_that_cannot_be(directory: SqliteDirectory, name: str, text: str) -> None:
    before = list(directory.accounts())
    assert refused(directory.add_account, at(name)) == text
    assert refused(directory.check_new_account, at(name)) == text
    assert list(directory.accounts()) == before


@pytest.mark.parametrize("local_part", HOSTILE)
def test_hostile_names_make_nothing_hostile(directory: SqliteDirectory, local_part: str) -> None:
    try:
        made = directory.add_account(Address(local_part, "example.org"))
    except DirectoryError:
        assert len(list(directory.accounts())) == 2
    else:
        assert "/" not in made.local_part and made.local_part.isprintable()
        assert [each.local_part for each in directory.accounts()] == ["Bob", "alice", local_part]


def test_passwords(directory: SqliteDirectory) -> None:
    directory.set_password(at("bob@example.org"), "$new")
    assert directory.credentials("bob@example.org") == logins(BOB, "$new")
    directory.set_password(at("bob@example.org"), None, "secret")
    assert directory.credentials("bob@example.org") == logins(BOB, None, "secret")
    assert "there is no account" in refused(directory.set_password, at("x@example.org"), "$new")


def test_a_password_can_be_taken_away(directory: SqliteDirectory) -> None:
    directory.set_password(at("bob@example.org"), None)
    assert directory.credentials("bob@example.org") == Credentials(BOB)


def test_scram_keys_go_with_their_password(directory: SqliteDirectory) -> None:
    carol = directory.add_account(at("carol@example.org"), verifier="$v", scram="keys")
    found = directory.credentials("carol@example.org")
    assert found and found.main and found.main.scram == "keys"
    assert "keys" not in repr(found)
    directory.set_password(at("carol@example.org"), "$w")
    assert directory.credentials("carol@example.org") == logins(carol, "$w")


def test_a_verifier_is_renewed_only_while_it_is_the_one(directory: SqliteDirectory) -> None:
    found = directory.credentials("bob@example.org")
    assert found and found.main
    directory.renew_password(found.main, "$w", "keys")
    expected = StoredPassword("", "$w", "keys", "s", made=NOW)
    assert directory.credentials("bob@example.org") == Credentials(BOB, (expected,))
    directory.renew_password(found.main, "$x", None)
    assert directory.credentials("bob@example.org") == Credentials(BOB, (expected,))


def test_what_comes_late_about_a_removed_password_is_not_noted_of_another(
        directory: SqliteDirectory) -> None:
    found = directory.credentials("bob@example.org")
    assert found and found.main
    directory.set_password(at("bob@example.org"), "$v")
    directory.renew_password(found.main, "$late", "keys")
    directory.record_uses([(found.main.id, NOW, "192.0.2.1")])
    assert directory.credentials("bob@example.org") == logins(BOB, "$v")


# ---- app passwords -------------------------------------------------------------------------------


def app(label: str, **limits: Any) -> StoredPassword:
    return StoredPassword(label, "$app", **limits)


def test_app_passwords_come_and_go(directory: SqliteDirectory) -> None:
    made = directory.passwords.add(BOB, app(
        "Phone", protocols=frozenset({"submission", "pop3"}), expires=NOW + 60,
        networks=("192.0.2.0/24", "2001:db8::1", "10.1.2.3/32")))
    assert made == app("Phone", protocols=frozenset({"submission", "pop3"}), expires=NOW + 60,
                       made=NOW, networks=("192.0.2.0/24", "2001:db8::1/128", "10.1.2.3/32"))
    printer = directory.passwords.add(BOB, app("office printer"))
    found = directory.credentials("bob@example.org")
    assert found and found.main and found.main.verifier == "$v"
    assert found.app_passwords == (made, printer)
    assert refused(directory.passwords.add, BOB, app("PHONE")) == (
        "Bob@example.org has an app password 'Phone' already; choose another label, or first "
        "remove that with: mailsvc account app-password remove Bob@example.org LABEL")
    assert directory.passwords.remove(BOB, "phone") == made
    assert refused(directory.passwords.remove, BOB, "phone") == (
        "Bob@example.org has no app password 'phone'; see: mailsvc account app-password list "
        "Bob@example.org")
    # Neither the main password nor another account's is removed so.
    assert "has no app password ''" in refused(directory.passwords.remove, BOB, "")
    assert "has no app password" in refused(directory.passwords.remove, ALICE, "office printer")
    found = directory.credentials("bob@example.org")
    assert found and found.app_passwords == (printer,) and found.verifier == "$v"
    directory.set_password(at("bob@example.org"), "$new")
    found = directory.credentials("bob@example.org")
    assert found and found.app_passwords == (printer,) and found.verifier == "$new"


def test_passwords_go_with_their_account(directory: SqliteDirectory) -> None:
    directory.passwords.add(ALICE, app("phone"))
    directory.add_alias(TEAM_ADDRESS, [at("bob@example.org")], replace=True)
    directory.remove_account(at("alice@example.org"))
    directory.add_account(at("alice@example.org"))
    assert directory.credentials("alice@example.org") == Credentials(ALICE)


@pytest.mark.parametrize(("label", "limits", "text"), [
    ("", {}, "'' cannot name an app password; expected a word or two, such as 'phone' or"),
    (" x", {}, "' x' cannot name"), ("a\nb", {}, r"'a\nb' cannot name"),
    ("a\x1b[0m", {}, r"'a\x1b[0m' cannot name"), ("\udc80", {}, r"'\udc80' cannot name"),
    ("x" * 65, {}, "the label is too long; expected at most 64 characters"),
    ("x", {"protocols": frozenset({"imap"})}, "a password cannot be for 'imap'; expected pop3 or "
                                              "submission"),
    ("x", {"networks": ("192.0.2.1/24",)}, "192.0.2.1/24 is an address in a network; expected the "
                                           "network, 192.0.2.0/24, or the address alone"),
    ("x", {"networks": ("192.0.2",)}, "'192.0.2' is not a network; expected an address such as"),
    ("x", {"networks": ("a b",)}, "'a b' is not a network"),
    ("x", {"networks": ("",)}, "'' is not a network"),
    ("x", {"expires": NOW}, "the password would have expired already; choose a day to come"),
])
def test_app_passwords_that_cannot_be(directory: SqliteDirectory, label: str,
                                      limits: dict[str, Any], text: str) -> None:
    assert refused(directory.passwords.add, BOB, app(label, **limits)).startswith(text)
    found = directory.credentials("bob@example.org")
    assert found and not found.app_passwords


def test_an_account_has_so_many_app_passwords_and_no_more(directory: SqliteDirectory) -> None:
    with directory.transaction():
        for number in range(100):
            directory.passwords.add(BOB, app(str(number)))
    assert refused(directory.passwords.add, BOB, app("x")).startswith(
        "Bob@example.org has 100 app passwords already; remove those that are not used any more")


@pytest.mark.parametrize(("limits", "protocol", "client", "admitted"), [
    ({}, "", "", True),
    ({}, "pop3", "192.0.2.1", True),
    ({"protocols": frozenset({"pop3"})}, "pop3", "", True),
    ({"protocols": frozenset({"pop3"})}, "submission", "", False),
    ({"protocols": frozenset({"pop3"})}, "", "", False),
    ({"networks": ("192.0.2.0/24",)}, "pop3", "192.0.2.255", True),
    ({"networks": ("192.0.2.0/24",)}, "pop3", "192.0.3.0", False),
    ({"networks": ("192.0.2.0/24",)}, "pop3", "::ffff:192.0.2.7", True),
    ({"networks": ("192.0.2.0/24",)}, "pop3", "2001:db8::1", False),
    ({"networks": ("192.0.2.0/24", "2001:db8::/32")}, "pop3", "2001:db8:1::1", True),
    ({"networks": ("fe80::/10",)}, "pop3", "fe80::1%eth0", True),
    ({"networks": ("0.0.0.0/0",)}, "pop3", "", False),
    ({"networks": ("0.0.0.0/0",)}, "pop3", "mx.example.org", False),
    ({"expires": NOW}, "", "", True),
    ({"expires": NOW - 1}, "", "", False),
])
def test_what_a_password_is_good_for(limits: dict[str, Any], protocol: str, client: str,
                                     admitted: bool) -> None:
    assert app("x", **limits).admits(protocol, client, NOW) is admitted


def test_uses_are_recorded(directory: SqliteDirectory) -> None:
    ids = [each.id for each in (directory.passwords.add(BOB, app("a")),
                                directory.passwords.add(BOB, app("b")))]
    directory.record_uses([(ids[0], NOW, "192.0.2.1"), (ids[1], NOW + 1, ""), (999, NOW, "")])
    directory.record_uses([])
    found = directory.credentials("bob@example.org")
    assert found and [(each.used, each.used_from) for each in found.passwords] == [
        (None, ""), (NOW, "192.0.2.1"), (NOW + 1, "")]


# ---- roles and keys ------------------------------------------------------------------------------


def test_roles(directory: SqliteDirectory) -> None:
    bob = at("bob@example.org")
    assert (BOB.receives, BOB.sends) == (True, True)
    changed = directory.set_role(bob, "send")
    assert changed == Account("Bob", "example.org", 10, 2, "send")
    assert changed == directory.account("bob", "example.org")
    assert (changed.receives, changed.sends) == (False, True)
    assert directory.oldest_account("example.org") == ALICE
    assert directory.set_quota(bob, octets=7).role == "send"
    directory.set_role(bob, "receive")
    assert directory.oldest_account("example.org") == Account("Bob", "example.org", 7, 2, "receive")
    made = directory.add_account(at("printer@example.net"), role="send")
    assert made == directory.account("printer", "example.net")
    assert directory.oldest_account("example.net") is None
    for change in (directory.set_role, lambda *_: directory.add_account(at("x@example.net"),
                                                                       role="admin")):
        assert refused(change, bob, "admin") == (
            "there is no role 'admin'; expected both, receive, send")
    assert "there is no account" in refused(directory.set_role, at("x@example.org"), "both")


def test_who_leads_to_an_account(directory: SqliteDirectory) -> None:
    directory.set_catch_all("example.net", at("bob@example.org"))
    assert directory.users_of(BOB) == ["team@example.org", "*@example.net"]
    assert directory.users_of(ALICE) == ["team@example.org"]


def test_the_files_own_key(directory: SqliteDirectory, tmp_path: Path) -> None:
    value = directory.keyed("salt", b"bob")
    assert len(value) == 32
    assert value == SqliteDirectory(tmp_path / "accounts.sqlite").keyed("salt", b"bob")
    assert value != directory.keyed("salt", b"bo") != directory.keyed("salt\0b", b"o")
    with SqliteDirectory(tmp_path / "other.sqlite") as other:
        assert value != other.keyed("salt", b"bob")


def test_quotas(directory: SqliteDirectory) -> None:
    bob = at("bob@example.org")
    assert directory.set_quota(bob, octets=99) == Account("Bob", "example.org", 99, 2)
    assert directory.set_quota(bob, messages=0) == Account("Bob", "example.org", 99, 0)
    assert directory.account("bob", "example.org") == Account("Bob", "example.org", 99, 0)
    assert refused(directory.set_quota, bob, octets=-1) == (
        "a quota of -1 octets is not possible; expected a positive number, or 0 for no limit")
    assert "a quota of 9223372036854775808 messages" in refused(
        directory.add_account, at("c@example.org"), quota_messages=1 << 63)
    assert "there is no account" in refused(directory.set_quota, at("x@example.org"), octets=1)


# ---- several processes ---------------------------------------------------------------------------


def test_changes_of_another_process_are_seen_at_once(directory: SqliteDirectory) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", f"""
import sys
from mailsvc.directory import SqliteDirectory
from mailsvc.names import parse_address as at
directory = SqliteDirectory({str(directory._db.path)!r})
for line in sys.stdin:
    eval(line)
    print("done", flush=True)
"""], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def elsewhere(change: str) -> None:
        assert child.stdin and child.stdout
        child.stdin.write(f"directory.{change}\n")
        child.stdin.flush()
        assert child.stdout.readline() == "done\n"

    for number in range(50):
        elsewhere(f"add_account(at('n{number}@example.org'), verifier='a')")
        assert directory.account(f"n{number}", "example.org")
        elsewhere(f"set_password(at('n{number}@example.org'), 'b')")
        found = directory.credentials(f"n{number}@example.org")
        assert found and found.verifier == "b"
        directory.set_quota(at(f"n{number}@example.org"), octets=number)  # and the other way round
        elsewhere(f"set_quota(at('n{number}@example.org'), messages=1)")
        assert directory.account(f"n{number}", "example.org") == Account(
            f"n{number}", "example.org", number, 1)
        elsewhere(f"remove_account(at('n{number}@example.org'))")
        assert not directory.account(f"n{number}", "example.org")
    child.communicate(timeout=60)
    assert child.returncode == 0
