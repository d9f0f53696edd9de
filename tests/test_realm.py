"""mailsvc.accounts: the realm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.cred.checkers import (
    ANONYMOUS,
    AllowAnonymousAccess,
    InMemoryUsernamePasswordDatabaseDontUse,
)
from twisted.cred.credentials import (
    Anonymous,
    UsernamePassword,
)
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.portal import IRealm, Portal
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from mailsvc.accounts import DirectoryChecker, MailRealm
from mailsvc.credentials import Password, ProvenName
from mailsvc.directory import SqliteDirectory
from mailsvc.errors import MaildropInUse
from mailsvc.interfaces import IDelivery, IMaildrop, ISubmitter
from mailsvc.mail import Account
from mailsvc.passwords import (
    PasswordHasher,
)
from tests.accounts import PASSWORD, POP3, Apop, at, some_accounts
from tests.hashing import cheap_hasher, logged_events, stop_hashers

stopped = pytest.fixture(autouse=True)(stop_hashers)
hasher = pytest.fixture(cheap_hasher)
logged = pytest.fixture(logged_events)


@pytest.fixture
def directory(tmp_path: Path, hasher: PasswordHasher) -> Iterator[SqliteDirectory]:
    with some_accounts(tmp_path / "accounts.sqlite", hasher) as directory:
        yield directory


class Maildrop:
    """Knows whose it is, and that it was released."""

    def __init__(self, account: Account, released: list[str]) -> None:
        self.account = account
        self.release = lambda: released.append(account.name)


class Store:
    """Opens maildrops, or fails."""

    def __init__(self) -> None:
        self.released: list[str] = []
        self.failure: Exception | None = None

    def open_maildrop(self, account: Account) -> Deferred[Any]:
        if self.failure:
            return fail(self.failure)
        return succeed(Maildrop(account, self.released))


@pytest.fixture
def checker(directory: SqliteDirectory, hasher: PasswordHasher) -> DirectoryChecker:
    return DirectoryChecker(directory, hasher)


@pytest.fixture
def store() -> Store:
    return Store()


def realm_of(store: Store, directory: SqliteDirectory, *options: Any, **more: Any) -> MailRealm:
    return MailRealm(store, directory, *options, **more)  # type: ignore[arg-type]


@pytest_twisted.ensureDeferred
async def test_the_avatar_is_the_maildrop(store: Store, directory: SqliteDirectory) -> None:
    realm = realm_of(store, directory)
    verifyObject(IRealm, realm)
    for avatar_id in ("bob@example.org", b"BOB@example.org", "bob", b"bob"):
        interface, maildrop, logout = await realm.requestAvatar(
            avatar_id, None, IDelivery, IMaildrop)
        assert interface is IMaildrop
        assert maildrop.account == Account("Bob", "example.org")
        assert store.released == []
        logout()
        assert store.released == ["Bob@example.org"]
        store.released.clear()


@pytest.mark.parametrize("avatar_id", [
    "nobody", b"nobody@example.org", ANONYMOUS, "", b"\xff", "robert@example.org",
    "bob+x@example.org", "../bob", "bob\0"])
@pytest_twisted.ensureDeferred
async def test_other_checkers_know_people_we_do_not(store: Store, directory: SqliteDirectory,
                                                    avatar_id: Any) -> None:
    with pytest.raises(UnauthorizedLogin, match="Authentication failed"):
        await realm_of(store, directory).requestAvatar(avatar_id, None, IMaildrop)


@pytest_twisted.ensureDeferred
async def test_names_of_other_checkers_have_a_default_domain(store: Store,
                                                             directory: SqliteDirectory) -> None:
    directory.add_domain("example.net")
    with pytest.raises(UnauthorizedLogin):
        await realm_of(store, directory).requestAvatar("bob", None, IMaildrop)
    realm = realm_of(store, directory, default_domain="example.org")
    assert await realm.requestAvatar("bob", None, IMaildrop)


@pytest_twisted.ensureDeferred
async def test_there_is_no_other_avatar(store: Store, directory: SqliteDirectory) -> None:
    with pytest.raises(TypeError, match="no other avatar"):
        await realm_of(store, directory).requestAvatar("bob@example.org", None, IDelivery)


@pytest_twisted.ensureDeferred
async def test_the_avatar_that_submits(store: Store, directory: SqliteDirectory) -> None:
    realm = realm_of(store, directory, object())
    for _ in range(2):  # LOGIN-DELAY is POP3's
        interface, submitter, logout = await realm.requestAvatar("BOB", None, ISubmitter)
        assert interface is ISubmitter
        verifyObject(ISubmitter, submitter)
        assert submitter.account == Account("Bob", "example.org")
        logout()
        logout()
    assert not store.released
    for stranger in ("nobody", "robert@example.org", "", ANONYMOUS):
        with pytest.raises(UnauthorizedLogin, match="Authentication failed"):
            await realm.requestAvatar(stranger, None, ISubmitter)


@pytest.mark.parametrize(("role", "allowed", "denied"), [
    ("receive", IMaildrop, ISubmitter), ("send", ISubmitter, IMaildrop)])
@pytest_twisted.ensureDeferred
async def test_roles_hold_whoever_checked_the_password(
        store: Store, directory: SqliteDirectory, role: str, allowed: Any, denied: Any) -> None:
    directory.set_role(at("bob@example.org"), role)
    others: Any = InMemoryUsernamePasswordDatabaseDontUse(bob=b"x")
    portal: Any = Portal(realm_of(store, directory), [others])
    interface, _, _ = await portal.login(UsernamePassword(b"bob", b"x"), None, allowed)
    assert interface is allowed
    with pytest.raises(UnauthorizedLogin, match="Authentication failed"):
        await portal.login(UsernamePassword(b"bob", b"x"), None, denied)


def test_a_maildrop_in_use_is_waited_for(store: Store, directory: SqliteDirectory) -> None:
    clock = Clock()
    realm = realm_of(store, directory, clock=clock)
    store.failure = MaildropInUse("In use")
    waited = realm.requestAvatar("bob", None, IMaildrop)
    clock.pump([0.1] * 9)
    store.failure = None
    assert not waited.called
    clock.advance(0.1)
    assert waited.result[1].account.name == "Bob@example.org"
    store.failure = MaildropInUse("In use")
    refused: list[Any] = []
    realm.requestAvatar("bob", None, IMaildrop).addErrback(refused.append)
    clock.pump([0.1] * 9)
    assert not refused
    clock.advance(0.1)
    assert refused[0].check(MaildropInUse) and not clock.getDelayedCalls()
    realm_of(store, directory).requestAvatar("bob", None, IMaildrop).addErrback(refused.append)
    assert refused[1].check(MaildropInUse)


@pytest_twisted.ensureDeferred
async def test_a_login_through_the_portal(store: Store, directory: SqliteDirectory,
                                          checker: DirectoryChecker) -> None:
    portal: Any = Portal(realm_of(store, directory), [checker])
    for credentials in (Password(b"bob", PASSWORD.encode(), POP3), ProvenName(b"bob", POP3)):
        for wanted in (IMaildrop, ISubmitter):
            interface, avatar, logout = await portal.login(credentials, None, wanted)
            assert interface is wanted and avatar.account.name == "Bob@example.org"
            logout()
    for kind in (UsernamePassword, Apop):
        interface, maildrop, logout = await portal.login(
            kind(b"bob", PASSWORD.encode()), None, IMaildrop)
        assert interface is IMaildrop and maildrop.account.name == "Bob@example.org"
        logout()
    with pytest.raises(UnauthorizedLogin, match="Authentication failed"):
        await portal.login(UsernamePassword(b"bob", b"x"), None, IMaildrop)


@pytest_twisted.ensureDeferred
async def test_other_checkers_through_the_portal(store: Store, directory: SqliteDirectory) -> None:
    others = InMemoryUsernamePasswordDatabaseDontUse(bob=b"x", stranger=b"y")
    portal: Any = Portal(realm_of(store, directory), [others, AllowAnonymousAccess()])
    _, maildrop, _ = await portal.login(UsernamePassword(b"bob", b"x"), None, IMaildrop)
    assert maildrop.account.name == "Bob@example.org"
    for credentials in (UsernamePassword(b"stranger", b"y"), Anonymous()):
        with pytest.raises(UnauthorizedLogin):
            await portal.login(credentials, None, IMaildrop)
