"""mailsvc.accounts: the checker, the keyring, the realm."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import argon2
import pytest
import pytest_twisted
from twisted.cred.checkers import (
    ANONYMOUS,
    AllowAnonymousAccess,
    ICredentialsChecker,
    InMemoryUsernamePasswordDatabaseDontUse,
)
from twisted.cred.credentials import (
    Anonymous,
    IUsernameHashedPassword,
    UsernamePassword,
)
from twisted.cred.error import UnauthorizedLogin
from twisted.cred.portal import IRealm, Portal
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock, deferLater
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mailsvc.accounts import DirectoryChecker, MailRealm, login_name
from mailsvc.directory import SqliteDirectory
from mailsvc.errors import LoginTooSoon, MaildropInUse, TemporaryFailure
from mailsvc.interfaces import IDelivery, IMaildrop
from mailsvc.mail import Account
from mailsvc.names import parse_address
from mailsvc.passwords import PasswordHasher, prepare_password
from tests.hashing import cheap_hasher, count, hasher_of, logged_events

hasher = pytest.fixture(cheap_hasher)
logged = pytest.fixture(logged_events)

at = parse_address

PASSWORD = "päss word"


# ---- the checker ---------------------------------------------------------------------------------


@implementer(IUsernameHashedPassword)
class Apop:
    """RFC 1939 §7: the digest of a timestamp and the secret."""

    def __init__(self, username: bytes, secret: bytes) -> None:
        self.username = username
        self.digest = hashlib.md5(b"<1@mx>" + secret).digest()
        self.asked: list[bytes] = []

    def checkPassword(self, password: bytes) -> bool:
        self.asked.append(password)
        return hashlib.md5(b"<1@mx>" + password).digest() == self.digest


class Late(Apop):
    def checkPassword(self, password: bytes) -> Deferred[bool]:  # type: ignore[override]
        return succeed(super().checkPassword(password))


@pytest.fixture
def directory(tmp_path: Path, hasher: PasswordHasher) -> Iterator[SqliteDirectory]:
    with SqliteDirectory(tmp_path / "accounts.sqlite") as directory:
        directory.add_domain("example.org")
        verifier = hasher.hash(prepare_password(PASSWORD))
        directory.add_account(at("Bob@example.org"), verifier=verifier, secret=PASSWORD)
        directory.add_account(at("alice@example.org"), verifier=verifier)
        directory.add_account(at("closed@example.org"))
        directory.add_account(at("jürgen@example.org"), verifier=verifier)
        directory.add_alias(at("robert@example.org"), [at("bob@example.org")])
        yield directory


@pytest.fixture
def checker(directory: SqliteDirectory, hasher: PasswordHasher) -> DirectoryChecker:
    return DirectoryChecker(directory, hasher)


def test_the_checker_keeps_the_interface(checker: DirectoryChecker) -> None:
    verifyObject(ICredentialsChecker, checker)


@pytest.mark.parametrize(("username", "avatar_id"), [
    (b"bob@example.org", "Bob@example.org"),
    (b"BOB@EXAMPLE.ORG", "Bob@example.org"),
    (b"bob", "Bob@example.org"),
    ("jürgen".encode(), "jürgen@example.org"),
    ("JU\u0308RGEN@example.org".encode(), "jürgen@example.org"),
    ("alice@example.org", "alice@example.org"),
])
@pytest_twisted.ensureDeferred
async def test_passwords_that_are_right(checker: DirectoryChecker, username: bytes,
                                        avatar_id: str) -> None:
    for password in (PASSWORD.encode(), "pa\u0308ss\u00a0word".encode(), PASSWORD):
        credentials = UsernamePassword(username, password)  # type: ignore[arg-type]
        assert await checker.requestAvatarId(credentials) == avatar_id.encode()


#: Credentials that are wrong, each in its own way.
WRONG = {
    "password": (b"bob@example.org", b"pass word"),
    "case of the password": (b"bob@example.org", PASSWORD.upper().encode()),
    "trimmed": (b"bob@example.org", PASSWORD.encode() + b" "),
    "empty": (b"bob@example.org", b""),
    "not UTF-8": (b"bob@example.org", b"\xff"),
    "long": (b"bob@example.org", b"x" * 10_000),
    "account without a password": (b"closed@example.org", PASSWORD.encode()),
    "the same, empty": (b"closed@example.org", b""),
    "unknown account": (b"nobody@example.org", PASSWORD.encode()),
    "unknown domain": (b"bob@example.net", PASSWORD.encode()),
    "bare unknown name": (b"nobody", PASSWORD.encode()),
    "alias": (b"robert@example.org", PASSWORD.encode()),
    "subaddress": (b"bob+x@example.org", PASSWORD.encode()),
    "no name": (b"", PASSWORD.encode()),
    "no local-part": (b"@example.org", PASSWORD.encode()),
    "name not UTF-8": (b"b\xffb@example.org", PASSWORD.encode()),
    "SQL": (b"bob' OR '1'='1@example.org", PASSWORD.encode()),
    "NUL": (b"bob\0@example.org", PASSWORD.encode()),
}


@pytest.mark.parametrize("why", WRONG)
@pytest_twisted.ensureDeferred
async def test_whatever_is_wrong_looks_and_costs_the_same(checker: DirectoryChecker,
                                                          hasher: PasswordHasher, why: str) -> None:
    for times in (1, 2):  # nothing is remembered of a failure
        with pytest.raises(UnauthorizedLogin) as caught:
            await checker.requestAvatarId(UsernamePassword(*WRONG[why]))
        assert caught.value.args == ("Authentication failed",)
        assert len(count(hasher)) == times
    cost = argon2.extract_parameters(hasher._nobody)
    assert all(argon2.extract_parameters(verifier) == cost for verifier in count(hasher))


@pytest.mark.parametrize("kind", [Apop, Late])
@pytest_twisted.ensureDeferred
async def test_apop(checker: DirectoryChecker, hasher: PasswordHasher, kind: type[Apop]) -> None:
    secret = PASSWORD.encode()
    assert await checker.requestAvatarId(kind(b"bob", secret)) == b"Bob@example.org"
    for username, known in ((b"bob", b"wrong"), (b"alice", secret), (b"closed", b""),
                            (b"nobody", secret), (b"nobody", b""), (b"", b"")):
        credentials = kind(username, known)
        with pytest.raises(UnauthorizedLogin, match="Authentication failed"):
            await checker.requestAvatarId(credentials)
        assert len(credentials.asked) == 1  # one digest, whoever it is
        assert (credentials.asked == [secret]) == (username == b"bob")
    assert not count(hasher)


@pytest_twisted.ensureDeferred
async def test_even_a_digest_of_nothing_known_is_no_login(checker: DirectoryChecker) -> None:
    class Lying(Apop):
        def checkPassword(self, password: bytes) -> bool:
            return True

    for username in (b"alice", b"nobody"):
        with pytest.raises(UnauthorizedLogin):
            await checker.requestAvatarId(Lying(username, b""))


@pytest_twisted.ensureDeferred
async def test_bare_names(directory: SqliteDirectory, hasher: PasswordHasher) -> None:
    checker = DirectoryChecker(directory, hasher)
    directory.add_domain("example.net")
    bare = UsernamePassword(b"bob", PASSWORD.encode())
    with pytest.raises(UnauthorizedLogin):
        await checker.requestAvatarId(bare)
    checker = DirectoryChecker(directory, hasher, "example.org")
    assert await checker.requestAvatarId(bare) == b"Bob@example.org"
    assert login_name(directory, "bob", "d.example") == "bob@d.example"
    assert login_name(directory, "bob") == "bob@"
    assert login_name(directory, b"bob@x") == "bob@x"


@pytest_twisted.ensureDeferred
async def test_a_changed_password_counts_at_once(checker: DirectoryChecker,
                                                 directory: SqliteDirectory,
                                                 hasher: PasswordHasher) -> None:
    login = UsernamePassword(b"bob", PASSWORD.encode())
    assert await checker.requestAvatarId(login)
    directory.set_password(at("bob@example.org"), hasher.hash(b"new"))
    with pytest.raises(UnauthorizedLogin):
        await checker.requestAvatarId(login)
    assert await checker.requestAvatarId(UsernamePassword(b"bob", b"new"))


@pytest_twisted.ensureDeferred
async def test_old_parameters_are_renewed_at_login(directory: SqliteDirectory) -> None:
    hasher, _ = hasher_of(passes=2)
    checker = DirectoryChecker(directory, hasher)
    before = directory.credentials("bob@example.org")
    with pytest.raises(UnauthorizedLogin):
        await checker.requestAvatarId(UsernamePassword(b"bob", b"wrong"))
    assert directory.credentials("bob@example.org") == before
    assert await checker.requestAvatarId(UsernamePassword(b"bob", PASSWORD.encode()))
    await hasher.stopService()  # ends what was begun
    after = directory.credentials("bob@example.org")
    assert before and after and after.verifier and after.secret == before.secret
    assert before.main and not before.main.scram
    assert argon2.extract_parameters(after.verifier).time_cost == 2
    assert hasher._verify(after.verifier, PASSWORD.encode())


@pytest_twisted.ensureDeferred
async def test_a_renewal_that_fails_is_no_failed_login(
        directory: SqliteDirectory, logged: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise TemporaryFailure("The directory of accounts cannot be changed now")

    monkeypatch.setattr(directory, "renew_password", broken)
    hasher, _ = hasher_of(passes=2)
    checker = DirectoryChecker(directory, hasher)
    assert await checker.requestAvatarId(UsernamePassword(b"bob", PASSWORD.encode()))
    for _ in range(1000):
        if not hasher._jobs:
            break
        await deferLater(reactor, 0.01)
    await hasher.stopService()
    (event,) = [each for each in logged if "Nothing could be changed" in (each["log_format"] or "")]
    assert "log_failure" in event
    assert PASSWORD not in repr(event)


@pytest_twisted.ensureDeferred
async def test_a_directory_that_cannot_be_read_is_no_wrong_password(
        checker: DirectoryChecker, directory: SqliteDirectory) -> None:
    directory.close()
    with pytest.raises(TemporaryFailure):
        await checker.requestAvatarId(UsernamePassword(b"bob@example.org", b"x"))


# ---- the realm -----------------------------------------------------------------------------------


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
async def test_login_delay(store: Store, directory: SqliteDirectory) -> None:
    clock = Clock()
    realm = realm_of(store, directory, 30, clock=clock)

    async def login(name: str) -> None:
        _, _, logout = await realm.requestAvatar(name, None, IMaildrop)
        logout()

    store.failure = MaildropInUse("busy")
    with pytest.raises(MaildropInUse):
        await login("bob@example.org")
    store.failure = None  # a login that failed does not count
    await login("bob@example.org")
    clock.advance(29)
    with pytest.raises(LoginTooSoon, match="Wait 30 seconds between logins"):
        await login("BOB@example.org")
    await login("alice@example.org")
    clock.advance(1)
    await login("bob@example.org")
    with pytest.raises(LoginTooSoon):
        await login("alice@example.org")
    clock.advance(29)
    await login("alice@example.org")
    assert list(realm._logins) == ["Bob@example.org", "alice@example.org"]
    clock.advance(30)
    await login("closed@example.org")
    assert list(realm._logins) == ["closed@example.org"]


@pytest_twisted.ensureDeferred
async def test_without_a_login_delay_nothing_is_kept(store: Store,
                                                     directory: SqliteDirectory) -> None:
    realm = realm_of(store, directory)
    for _ in range(3):
        await realm.requestAvatar("bob@example.org", None, IMaildrop)
    assert not realm._logins


@pytest_twisted.ensureDeferred
async def test_a_login_through_the_portal(store: Store, directory: SqliteDirectory,
                                          checker: DirectoryChecker) -> None:
    portal: Any = Portal(realm_of(store, directory), [checker])
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
