"""mailsvc.routing: the decision table as data."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zope.interface.verify import verifyObject

from mailsvc.config import KEYS
from mailsvc.directory import SqliteDirectory
from mailsvc.errors import (
    MailboxMoved,
    MailFailure,
    PermanentFailure,
    RelayDenied,
    TemporaryFailure,
    UnknownMailbox,
)
from mailsvc.interfaces import IRouter
from mailsvc.mail import Account, Address, Remote
from mailsvc.names import parse_address
from mailsvc.routing import Router, RoutingSettings
from mailsvc.smtp.replies import from_failure
from mailsvc.srs import DAYS, SRS

at = parse_address


def path(text: str) -> Address:
    """A forward-path as the grammar hands it over; literals and <postmaster> included."""
    local_part, _, domain = text.rpartition("@") if "@" in text else (text, "", "")
    return Address(local_part, domain.lower())


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqliteDirectory]:
    with SqliteDirectory(tmp_path_factory.mktemp("routing") / "accounts.sqlite") as directory:
        directory.add_domain("one.example")
        directory.add_domain("two.example")
        directory.add_domain("all.example")
        directory.add_domain("dash.example", separators="-=")
        directory.add_domain("plain.example", separators="")
        directory.add_domain("empty.example")
        for name in ("Bob@one.example", "alice@one.example", "bob+lists@one.example",
                     "copy@one.example", "zoe@two.example", "Postmaster@two.example",
                     "anna@all.example", "bob@dash.example", "bob@plain.example",
                     "a.b+c@one.example", "redirected@one.example"):
            directory.add_account(at(name))
        for name, *targets in (
                ("team@one.example", "bob@one.example", "alice@one.example", "BOB@one.example"),
                ("all@one.example", "team@one.example", "zoe@two.example", "alice@one.example"),
                ("tagged@one.example", "bob+news@one.example"),
                ("sales+eu@one.example", "zoe@two.example"),
                ("copy@one.example", "copy@one.example", "bob@one.example"),
                ("redirected@one.example", "alice@one.example"),
                ("abuse@all.example", "zoe@two.example")):
            directory.add_alias(at(name), list(map(at, targets)))
        directory.add_alias(at("carol@one.example"), [at("c@new.example")], moved=True)
        directory.add_alias(at("half@one.example"), list(map(at, ("carol@one.example",
                                                                  "bob@one.example"))))
        directory.add_alias(at("gone@one.example"), [at("carol@one.example")])
        directory.set_catch_all("all.example", at("anna@all.example"))
        yield directory


@pytest.fixture(scope="module")
def router(directory: SqliteDirectory) -> Router:
    return Router(directory, "mx.example")


NO_MAILBOX = (UnknownMailbox, "5.1.1")
RELAY = (RelayDenied, "5.7.1")

#: forward-path -> the accounts, or the failure with its status.
ROUTES: dict[str, str | tuple[type[MailFailure], str]] = {
    # 1. exactly
    "bob@one.example": "Bob@one.example",
    "BOB@ONE.example": "Bob@one.example",
    "team@one.example": "Bob@one.example alice@one.example",
    "Team@one.example": "Bob@one.example alice@one.example",
    "all@one.example": "Bob@one.example alice@one.example zoe@two.example",
    "tagged@one.example": "Bob@one.example",
    "copy@one.example": "copy@one.example Bob@one.example",
    "redirected@one.example": "alice@one.example",
    # 2. subaddresses
    "bob+news@one.example": "Bob@one.example",
    "bob+@one.example": "Bob@one.example",
    "bob+a+b@one.example": "Bob@one.example",
    "Bob+Lists@one.example": "bob+lists@one.example",
    "bob+lists+x@one.example": "bob+lists@one.example",
    "bob++lists@one.example": "Bob@one.example",
    "a.b+c+d@one.example": "a.b+c@one.example",
    "a.b+d@one.example": NO_MAILBOX,
    "team+x@one.example": "Bob@one.example alice@one.example",
    "sales+eu@one.example": "zoe@two.example",
    "sales+eu+x@one.example": "zoe@two.example",
    "sales+us@one.example": NO_MAILBOX,
    "bob-news@one.example": NO_MAILBOX,
    "+bob@one.example": NO_MAILBOX,
    "+@one.example": NO_MAILBOX,
    "bob-x@dash.example": "bob@dash.example",
    "bob=x-y@dash.example": "bob@dash.example",
    "bob+x@dash.example": NO_MAILBOX,
    "bob+x@plain.example": NO_MAILBOX,
    "bob+" + "x" * 60 + "@one.example": "Bob@one.example",
    "bob+" + "x" * 61 + "@one.example": NO_MAILBOX,
    "+" * 64 + "@one.example": NO_MAILBOX,
    # 3. postmaster and abuse
    "postmaster@two.example": "Postmaster@two.example",
    "abuse@two.example": "Postmaster@two.example",
    "ABUSE@two.example": "Postmaster@two.example",
    "postmaster+x@two.example": "Postmaster@two.example",
    "postmaster@one.example": "Bob@one.example",
    "PostMaster@dash.example": "bob@dash.example",
    "abuse@one.example": "Bob@one.example",
    "postmaster@empty.example": "Bob@one.example",
    "postmaster@all.example": "anna@all.example",
    "abuse@all.example": "zoe@two.example",
    "postmaster": "Bob@one.example",
    "PostMaster": "Bob@one.example",
    "abuse": "Bob@one.example",
    "postmaster@[127.0.0.1]": "Bob@one.example",
    "Abuse@[IPv6:::1]": "Bob@one.example",
    "postmaster@[ipv6:0:0:0:0:0:0:0:1]": "Bob@one.example",
    "bob@[127.0.0.1]": NO_MAILBOX,
    "bob": NO_MAILBOX,
    "postmaster@[127.0.0.2]": RELAY,
    "bob@[192.0.2.1]": RELAY,
    "postmaster@[x400:c=de]": RELAY,
    # 4. catch-all
    "anybody@all.example": "anna@all.example",
    "anna@all.example": "anna@all.example",
    "anna+x@all.example": "anna@all.example",
    "\udc80@all.example": "anna@all.example",
    "x" * 300 + "@all.example": "anna@all.example",
    # 5. unknown
    "nobody@one.example": NO_MAILBOX,
    "bob@two.example": NO_MAILBOX,
    "@one.example": NO_MAILBOX,
    "bob@empty.example": NO_MAILBOX,
    # moved
    "carol@one.example": (MailboxMoved, "5.1.6"),
    "carol+x@one.example": (MailboxMoved, "5.1.6"),
    "gone@one.example": (MailboxMoved, "5.1.6"),
    "half@one.example": "Bob@one.example",
    # elsewhere, and never by way of us
    "bob@elsewhere.example": RELAY,
    "postmaster@elsewhere.example": RELAY,
    "bob@sub.one.example": RELAY,
    "bob@one.example.evil.example": RELAY,
    "bob%elsewhere.example@one.example": NO_MAILBOX,
    "elsewhere.example!bob@one.example": NO_MAILBOX,
    "bob%one.example@elsewhere.example": RELAY,
    "bob@elsewhere.example@one.example": NO_MAILBOX,
    "@elsewhere.example:bob@one.example": NO_MAILBOX,
    "bob'--@one.example": NO_MAILBOX,
    "b\u043eb@one.example": NO_MAILBOX,
}


@pytest.mark.parametrize("forward_path", ROUTES, ids=lambda text: ascii(text)[:60])
def test_routes(router: Router, forward_path: str) -> None:
    expected = ROUTES[forward_path]
    if isinstance(expected, str):
        accounts = router.route(path(forward_path))
        assert isinstance(accounts, tuple)
        assert [account.name for account in accounts] == expected.split()
    else:
        with pytest.raises(expected[0]) as caught:
            router.route(path(forward_path))
        assert type(caught.value) is expected[0]
        assert str(caught.value.status) == expected[1]
        assert caught.value.text.isascii() and caught.value.text.isprintable()


def test_it_keeps_the_interface(router: Router) -> None:
    verifyObject(IRouter, router)


def test_where_a_mailbox_moved_to(router: Router) -> None:
    with pytest.raises(MailboxMoved) as caught:
        router.route(at("carol@one.example"))
    assert caught.value.forward_path == "c@new.example"


def test_who_may_send_through_us_reaches_every_host(router: Router) -> None:
    for text in ("bob@elsewhere.example", "bob@[192.0.2.1]", "postmaster@elsewhere.example"):
        with pytest.raises(RelayDenied):
            router.route(path(text))
        assert router.route(path(text), relay=True) == (Remote(path(text)),)
    # What is ours stays here, and what is not there is not sent on.
    assert router.route(at("bob@one.example"), relay=True) == (Account("Bob", "one.example"),)
    with pytest.raises(UnknownMailbox):
        router.route(at("nobody@one.example"), relay=True)
    with pytest.raises(UnknownMailbox):
        router.route(path("nobody"), relay=True)


def test_a_rewritten_sender_leads_back(router: Router) -> None:
    sender = at("alice@sender.example")
    rewritten = router.srs.forward(sender, "one.example")
    assert router.route(rewritten) == (Remote(sender),)
    forged = Address(rewritten.local_part.replace("alice", "mallory"), "one.example")
    with pytest.raises(UnknownMailbox):
        router.route(forged)


@given(st.text(max_size=70), st.sampled_from(["one.example", "ONE.example", "[127.0.0.1]", ""])
       | st.text(max_size=30))
def test_no_text_is_trouble(router: Router, local_part: str, domain: str) -> None:
    try:
        router.route(Address(local_part, domain))
    except PermanentFailure as failure:
        assert isinstance(failure, UnknownMailbox | RelayDenied | MailboxMoved)


def test_own_literals_are_compared_as_addresses(directory: SqliteDirectory) -> None:
    every = RoutingSettings(literals=[str(ipaddress.ip_address(1 << 100))])
    assert Router(directory, "", every).route(path("postmaster@[IPv6:0:10:0:0:0:0:0:0]"))


# ---- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hostname", "options", "forward_path", "accounts"), [
    ("two.example", {}, "postmaster", "Postmaster@two.example"),
    ("two.example", {"default_domain": "dash.example"}, "postmaster", "bob@dash.example"),
    ("two.example", {"default_domain": "gone.example"}, "postmaster", "Postmaster@two.example"),
    ("Two.example", {}, "abuse@[127.0.0.1]", "Postmaster@two.example"),
    # Who reads a greeting or a report knows the host's name alone.
    ("MX.elsewhere.example", {}, "postmaster@mx.elsewhere.example", "Bob@one.example"),
    ("mx.elsewhere.example", {"postmaster": "zoe@two.example"},
     "MAILER-DAEMON@mx.Elsewhere.example", "zoe@two.example"),
    ("mx", {}, "mailer-daemon@two.example", "Postmaster@two.example"),
    ("mx", {"postmaster": "zoe+root@two.example"}, "postmaster@one.example", "zoe@two.example"),
    ("mx", {"postmaster": "zoe@two.example"}, "abuse@empty.example", "zoe@two.example"),
    ("mx", {"postmaster": "zoe@two.example"}, "postmaster@two.example", "Postmaster@two.example"),
    ("mx", {"postmaster": "team@one.example"}, "postmaster", "Bob@one.example alice@one.example"),
    # A setting that leads nowhere is no reason to refuse.
    ("mx", {"postmaster": "no@two.example"}, "postmaster@one.example", "Bob@one.example"),
    ("mx", {"postmaster": "no@no.example"}, "postmaster@one.example", "Bob@one.example"),
    ("mx", {"postmaster": "carol@one.example"}, "postmaster@one.example", "Bob@one.example"),
    ("mx", {"postmaster": "postmaster@one.example"}, "abuse@empty.example", "Bob@one.example"),
    ("mx", {"separators": ""}, "postmaster@one.example", "Bob@one.example"),
    ("mx", {"separators": "-"}, "bob-x@one.example", "Bob@one.example"),
    ("mx", {"separators": "-+"}, "bob-x+y@one.example", "Bob@one.example"),
    ("mx", {"literals": ["192.0.2.1"]}, "postmaster@[192.0.2.1]", "Bob@one.example"),
    ("mx", {"literals": ["2001:db8::1"]}, "postmaster@[IPv6:2001:DB8:0::1]", "Bob@one.example"),
])
def test_settings(directory: SqliteDirectory, hostname: str, options: dict[str, Any],
                  forward_path: str, accounts: str) -> None:
    router = Router(directory, hostname, RoutingSettings(**options))
    assert [each.name for each in router.route(path(forward_path))] == accounts.split()


@pytest.mark.parametrize(("key", "good", "bad", "expected"), [
    ("default_domain", ["", "example.org", "bücher.example"], ["a b", "[127.0.0.1]"],
     "letters, digits and hyphens between dots"),
    ("separators", ["", "+", "+-="], ["+@", "a", " ", "\n"], "characters out of !#"),
    ("postmaster", ["", "root@example.org"], ["root"], "local-part@domain"),
    ("literals", [[], ["127.0.0.1", "::1"]], [["[127.0.0.1]"], ["127.0.0.1", "x"]],
     "IPv4 and IPv6 addresses, without brackets"),
    ("alias_depth", [1, 50], [0], "1 or more"),
    ("alias_accounts", [1, 50], [0], "1 or more"),
])
def test_settings_are_checked(key: str, good: list[object], bad: list[object],
                              expected: str) -> None:
    field = RoutingSettings.__dataclass_fields__[key]
    check = field.metadata["check"]
    assert [check(value) for value in good] == [None] * len(good)
    for value in bad:
        assert check(value).startswith(expected)
    assert field.metadata["sentence"]


def test_before_anything_is_set_up(tmp_path: Path) -> None:
    with SqliteDirectory(tmp_path / "accounts.sqlite") as directory:
        router = Router(directory, "mx.example")
        for forward_path in ("postmaster", "abuse@[127.0.0.1]"):
            with pytest.raises(TemporaryFailure, match="No domain is set up") as caught:
                router.route(path(forward_path))
            assert str(caught.value.status) == "4.3.5"
        directory.add_domain("one.example")
        for forward_path in ("postmaster", "postmaster@one.example", "abuse@one.example"):
            with pytest.raises(TemporaryFailure, match="No account is set up") as caught:
                router.route(path(forward_path))
            assert str(caught.value.status) == "4.3.5"
        directory.add_account(at("bob@one.example"))
        assert router.route(path("postmaster"))[0].name == "bob@one.example"


# ---- VRFY and EXPN -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "means"), [
    ("bob@one.example", "Bob@one.example"),
    ("BOB", "Bob@one.example"),
    ("team@one.example", "team@one.example"),
    ("Team", "team@one.example"),
    ("bob+x@one.example", "bob+x@one.example"),
    ("anybody@all.example", "anybody@all.example"),
    ("postmaster", "postmaster@one.example"),
    ("abuse@two.example", "abuse@two.example"),
    ("postmaster@[127.0.0.1]", "postmaster@[127.0.0.1]"),
])
def test_verify(router: Router, name: str, means: str) -> None:
    assert str(router.verify(path(name))) == means


@pytest.mark.parametrize(("name", "failure"), [
    ("nobody", UnknownMailbox), ("nobody@one.example", UnknownMailbox),
    ("bob@elsewhere.example", RelayDenied), ("carol", MailboxMoved),
    ("bob@[127.0.0.1]", UnknownMailbox)])
def test_names_that_verify_and_expand_to_nothing(router: Router, name: str,
                                                 failure: type[MailFailure]) -> None:
    for look_up in (router.verify, router.expand):
        with pytest.raises(failure):
            look_up(path(name))


@pytest.mark.parametrize(("name", "members"), [
    ("team", "Bob@one.example alice@one.example"),
    ("ALL@one.example", "Bob@one.example alice@one.example zoe@two.example"),
    ("copy@one.example", "copy@one.example Bob@one.example"),
])
def test_expand(router: Router, name: str, members: str) -> None:
    assert [str(each) for each in router.expand(path(name))] == members.split()


@pytest.mark.parametrize("name", ["bob", "bob@one.example", "anybody@all.example", "postmaster"])
def test_only_aliases_expand(router: Router, name: str) -> None:
    with pytest.raises(UnknownMailbox, match="That is a user name, not a mailing list"):
        router.expand(path(name))


# ---- what is remembered --------------------------------------------------------------------------


class Counting:
    """*directory*, counting its look-ups of names."""

    def __init__(self, directory: SqliteDirectory) -> None:
        self._directory = directory
        self.asked = 0

    def account(self, local_part: str, domain: str) -> Account | None:
        self.asked += 1
        return self._directory.account(local_part, domain)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._directory, name)


def test_nothing_is_looked_up_twice_until_something_changes(tmp_path: Path) -> None:
    file = tmp_path / "accounts.sqlite"
    with SqliteDirectory(file) as own, SqliteDirectory(file) as others:
        own.add_domain("one.example")
        own.add_account(at("bob@one.example"))
        counting: Any = Counting(own)
        router = Router(counting, "mx.example.org")

        def leads(asks: bool) -> list[str]:
            before = counting.asked
            found = [[each.name for each in router.route(path("bob@one.example"))]
                     for _ in range(2)]
            assert found[0] == found[1]
            assert counting.asked - before == asks
            return found[0]

        assert leads(True) == ["bob@one.example"]
        assert leads(False) == ["bob@one.example"]
        others.add_account(at("alice@one.example"))
        assert leads(True) == ["bob@one.example"]
        others.set_quota(at("bob@one.example"), octets=1000)
        assert leads(True) == ["bob@one.example"]
        assert [each.quota_octets for each in router.route(path("bob@one.example"))
                if isinstance(each, Account)] == [1000]
        own.add_alias(at("bob@one.example"), [at("alice@one.example")])
        assert leads(True) == ["alice@one.example"]
        others.remove_alias(at("bob@one.example"))
        assert leads(True) == ["bob@one.example"]
        own.remove_account(at("bob@one.example"))
        with pytest.raises(UnknownMailbox):
            router.route(path("bob@one.example"))


def test_where_an_address_of_srs_leads_is_not_remembered(tmp_path: Path) -> None:
    now = 1_800_000_000.0
    with SqliteDirectory(tmp_path / "accounts.sqlite") as directory:
        directory.add_domain("one.example")
        router = Router(directory, "mx.example.org")
        router.srs = SRS(lambda value: directory.keyed("srs", value), lambda: now)
        ours = router.srs.forward(at("ann@far.example"), "one.example")
        assert router.route(ours) == (Remote(at("ann@far.example")),)
        now += 86_400 * (DAYS + 1)
        with pytest.raises(UnknownMailbox):
            router.route(ours)


# ---- accounts that only send ---------------------------------------------------------------------


def disabled(ask: Callable[[Address], object], name: str) -> None:
    with pytest.raises(PermanentFailure) as caught:
        ask(at(name))
    assert (str(caught.value.status), caught.value.text) == (
        "5.2.1", "The mailbox only sends; it takes no mail")
    assert from_failure(caught.value, rcpt=True).code == 550


def test_an_account_that_only_sends_gets_no_mail(tmp_path: Path) -> None:
    with SqliteDirectory(tmp_path / "accounts.sqlite") as directory:
        directory.add_domain("example.org")
        directory.add_account(at("printer@example.org"), role="send")
        directory.add_account(at("postmaster@example.org"), role="send")
        router = Router(directory, "")
        with pytest.raises(TemporaryFailure):  # there is nobody else yet
            router.route(at("abuse@example.org"))
        bob = directory.add_account(at("bob@example.org"), role="receive")
        directory.add_alias(at("scans@example.org"), [at("printer@example.org")])
        directory.add_alias(at("all@example.org"), [at("printer@example.org"),
                                                    at("bob@example.org")])
        for name in ("printer@example.org", "PRINTER+x@example.org", "scans@example.org"):
            disabled(router.route, name)
        disabled(router.verify, "printer@example.org")
        disabled(router.expand, "scans@example.org")
        # Whoever else is meant gets it, and postmaster is never refused.
        for name in ("all@example.org", "bob@example.org", "postmaster@example.org",
                     "abuse@example.org"):
            assert router.route(at(name)) == (bob,)
        directory.set_catch_all("example.org", at("printer@example.org"))
        disabled(router.route, "unknown@example.org")
        directory.set_role(at("printer@example.org"), "receive")
        assert [each.local_part for each in router.route(at("all@example.org"))] == [
            "printer", "bob"]


# ---- mail that is fetched ----


def test_who_may_fetch_which_domains(tmp_path: Path) -> None:
    with SqliteDirectory(str(tmp_path / "accounts.sqlite"), create=True) as directory:
        directory.add_domain("d.example")
        router = Router(directory, "", RoutingSettings(
            relay_domains=["both.example"], atrn_domains={
                "Carol@D.example": "Far.example  bücher.example both.example",
                "dave@d.example": "far.example"}))
        assert router.turns("carol@d.example") == (
            "far.example", "xn--bcher-kva.example", "both.example")
        assert router.turns("dave@d.example") == ("far.example",)
        assert router.turns("eve@d.example") == router.turns("") == ()
        assert router.fetched and not Router(directory, "").fetched
        # Taken from anybody; sent on only where an exchanger is known.
        assert router.kept == {"far.example", "xn--bcher-kva.example"}
        for domain, runs in (("FAR.example", False), ("both.example", True)):
            to = Address("x", domain)
            assert router.route(to) == (Remote(to),)
            assert router.relays(domain) and router.runs(domain) is runs
        with pytest.raises(RelayDenied):
            router.route(Address("x", "sub.far.example"))


@pytest.mark.parametrize(("value", "said"), [
    ({"carol": "far.example"}, "an account, such as carol@example.org, for each key, not 'carol'"),
    ({"carol@d.example": ""}, "for 'carol@d.example': domains, with spaces between"),
    ({"carol@d.example": "far.example, b.example"},
     "for 'carol@d.example': domains, with spaces between"),
    ({"carol@d.example": "192.0.2.1"}, "for 'carol@d.example': domains, with spaces between")])
def test_a_table_of_who_fetches_that_means_nothing(value: dict[str, str], said: str) -> None:
    assert KEYS["routing.atrn_domains"].expected(value) == said
