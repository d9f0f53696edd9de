"""mailsvc.accounts: passwords, the checker, the realm."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import argon2
import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
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
from twisted.internet.defer import Deferred, fail, gatherResults, succeed
from twisted.internet.task import Clock, deferLater
from twisted.logger import LogLevel, globalLogPublisher
from zope.interface import implementer
from zope.interface.verify import verifyObject

from mailsvc.accounts import (
    PASSWORD_OCTETS,
    DirectoryChecker,
    MailRealm,
    PasswordHasher,
    PasswordSettings,
    check_password,
    login_name,
    prepare_password,
)
from mailsvc.directory import SqliteDirectory
from mailsvc.errors import LoginTooSoon, MaildropInUse, TemporaryFailure
from mailsvc.interfaces import IDelivery, IMaildrop
from mailsvc.mail import Account
from mailsvc.names import DirectoryError, parse_address

at = parse_address

#: As cheap as Argon2 gets.
CHEAP = {"memory_kib": 64, "passes": 1}
PASSWORD = "päss word"


# ---- passwords -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("given_", "prepared"), [
    ("secret", b"secret"),
    (b"secret", b"secret"),
    ("a\u0308", "ä".encode()),
    ("a\u0308".encode(), "ä".encode()),
    ("a\u00a0b\u3000c", b"a b c"),  # no-break and ideographic space
    (" Two  Words ", b" Two  Words "),
    ("ſ", "ſ".encode()),  # NFC, not NFKC, and no case folding
    (b"\xff\xfe caf\xe9", b"\xff\xfe caf\xe9"),
    ("\udc80", b"\xed\xb2\x80"),
    ("", b""),
])
def test_prepared_passwords(given_: str | bytes, prepared: bytes) -> None:
    assert prepare_password(given_) == prepared == prepare_password(prepared)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_preparing_is_idempotent_and_the_same_for_octets(text: str) -> None:
    prepared = prepare_password(text)
    assert prepare_password(prepared) == prepared == prepare_password(text.encode())


@pytest.mark.parametrize(("password", "problem"), [
    ("", "the password is empty; expected at least one character"),
    ("hunter2\r", "the password holds control characters or is not UTF-8; expected one line of"),
    ("hunter2\nhunter2", "the password holds control characters"),
    ("hunter2\0", "the password holds control characters"),
    ("hunter2\t", "the password holds control characters"),
    ("hunter2\udcff", "the password holds control characters or is not UTF-8"),
    ("hunter2\ufdd0", "the password holds control characters"),
    ("h" * 249, "the password is too long; expected at most 248 octets of UTF-8"),
    ("ä" * 125, "the password is too long"),
])
def test_new_passwords_that_cannot_be(password: str, problem: str) -> None:
    with pytest.raises(DirectoryError) as caught:
        check_password(password)
    assert str(caught.value).startswith(problem)
    assert "hunter2" not in str(caught.value)


def test_new_passwords_that_can_be() -> None:
    for password in ("x", " ", PASSWORD, "h" * 248, "p" * PASSWORD_OCTETS, "👍", '"\'\\$(x)`;'):
        assert check_password(password) == prepare_password(password)
        # A PASS command holds it (RFC 2449 §4).
        assert len(b"PASS " + check_password(password) + b"\r\n") <= 255


def test_settings_are_what_owasp_recommends() -> None:
    made = PasswordHasher(PasswordSettings(), reactor).hash(b"x")
    assert made.startswith("$argon2id$v=19$m=19456,t=2,p=1$")


@pytest.mark.parametrize(("key", "good", "bad"), [
    ("memory_kib", 64, 63), ("passes", 1, 0), ("lanes", 8, 9), ("lanes", 1, 0), ("threads", 1, 0),
    ("waiting", 1, 0), ("cache_seconds", 0, -1), ("cache_entries", 0, -1)])
def test_settings_are_checked(key: str, good: int, bad: int) -> None:
    check = PasswordSettings.__dataclass_fields__[key].metadata["check"]
    assert check(good) is None
    assert check(bad)


def test_every_setting_that_passes_can_hash() -> None:
    hasher = PasswordHasher(PasswordSettings(memory_kib=64, passes=1, lanes=8), reactor)
    assert not hasher.is_outdated(hasher.hash(b"x"))
    assert argon2.extract_parameters(hasher._nobody) == argon2.extract_parameters(hasher.hash(b"x"))


# ---- the hasher ----------------------------------------------------------------------------------


class Counting:
    """Stands before the hasher's Argon2, counting what is asked of it and in which thread."""

    def __init__(self, hasher: PasswordHasher) -> None:
        self.real = hasher._argon2
        self.verified: list[str] = []
        self.threads: set[str] = set()
        self.hold: threading.Event | None = None

    def verify(self, verifier: str, password: bytes) -> bool:
        self.verified.append(verifier)
        self.threads.add(threading.current_thread().name)
        if self.hold is not None:
            assert self.hold.wait(30)
        return self.real.verify(verifier, password)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def hasher_of(**options: Any) -> tuple[PasswordHasher, Counting]:
    hasher = PasswordHasher(PasswordSettings(**{**CHEAP, **options}), reactor)
    counting = Counting(hasher)
    hasher._argon2 = counting  # type: ignore[assignment]
    hasher.startService()
    return hasher, counting


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """What is logged meanwhile."""
    events: list[Any] = []
    observer: Any = events.append
    globalLogPublisher.addObserver(observer)
    yield events
    globalLogPublisher.removeObserver(observer)


@pytest.fixture
def hasher() -> Iterator[PasswordHasher]:
    hasher, _ = hasher_of()
    yield hasher
    pytest_twisted.blockon(hasher.stopService())


def count(hasher: PasswordHasher) -> list[str]:
    """The verifiers that were checked so far."""
    return hasher._argon2.verified  # type: ignore[attr-defined]


@pytest_twisted.ensureDeferred
async def test_right_and_wrong(hasher: PasswordHasher) -> None:
    verifier = hasher.hash(b"right")
    assert await hasher.verify("bob@d", verifier, b"right") is True
    assert await hasher.verify("bob@d", verifier, b"wrong") is False
    assert await hasher.verify("bob@d", verifier, b"") is False
    assert await hasher.verify("bob@d", None, b"right") is False
    assert len(count(hasher)) == 4


@pytest_twisted.ensureDeferred
async def test_hashing_stays_out_of_the_reactors_thread(hasher: PasswordHasher) -> None:
    verifier = hasher.hash(b"right")
    assert await gatherResults([hasher.verify(f"n{number}@d", verifier, b"right")
                                for number in range(12)]) == [True] * 12
    names = hasher._argon2.threads  # type: ignore[attr-defined]
    assert 1 <= len(names) <= 2
    assert all("passwords" in name for name in names)
    assert threading.current_thread().name not in names


@pytest_twisted.ensureDeferred
async def test_a_success_is_remembered_until_the_password_changes(hasher: PasswordHasher) -> None:
    verifier = hasher.hash(b"right")
    for _ in range(3):
        assert await hasher.verify("bob@d", verifier, b"right")
    assert len(count(hasher)) == 1
    # Nothing but all three together is remembered; a failure is not.
    assert await hasher.verify("alice@d", verifier, b"right")
    assert not await hasher.verify("bob@d", verifier, b"wrong")
    assert not await hasher.verify("bob@d", verifier, b"wrong")
    changed = hasher.hash(b"new")
    assert not await hasher.verify("bob@d", changed, b"right")
    assert len(count(hasher)) == 5
    # Nor does it help to move the borders between them.
    assert hasher._mark("a", "b", b"cd") != hasher._mark("a", "bc", b"d")
    assert hasher._mark("ab", "c", b"d") != hasher._mark("a", "bc", b"d")
    assert hasher._mark("a", "b", b"c") != PasswordHasher(PasswordSettings(**CHEAP), reactor)._mark(
        "a", "b", b"c")
    assert len(hasher._mark("\udc80", None, b"")) == 32


def test_what_is_remembered_ends() -> None:
    clock = Clock()
    hasher = PasswordHasher(PasswordSettings(cache_seconds=60, cache_entries=3, **CHEAP), clock)
    marks = [bytes([number]) for number in range(5)]
    for mark in marks[:2]:
        hasher._remember(mark)
        clock.advance(40)
    assert list(hasher._successes) == marks[:2]
    hasher._remember(marks[2])  # the first is 80 seconds old
    assert list(hasher._successes) == marks[1:3]
    for mark in (marks[3], marks[1], marks[4]):
        hasher._remember(mark)
    assert list(hasher._successes) == [marks[3], marks[1], marks[4]]
    clock.advance(60)
    hasher._remember(marks[0])
    assert list(hasher._successes) == marks[:1]


@pytest.mark.parametrize("options", [{"cache_seconds": 0}, {"cache_entries": 0}])
@pytest_twisted.ensureDeferred
async def test_nothing_needs_to_be_remembered(options: dict[str, int]) -> None:
    hasher, counting = hasher_of(**options)
    verifier = hasher.hash(b"right")
    for _ in range(2):
        assert await hasher.verify("bob@d", verifier, b"right")
    assert len(counting.verified) == 2
    assert not hasher._successes
    await hasher.stopService()


@pytest_twisted.ensureDeferred
async def test_a_success_counts_no_longer_than_set(hasher: PasswordHasher,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = hasher.hash(b"right")
    assert await hasher.verify("bob@d", verifier, b"right")
    now = reactor.seconds()
    for passed, hashed in ((58, 1), (62, 2)):
        with monkeypatch.context() as patch:
            patch.setattr(reactor, "seconds", lambda seconds=now + passed: seconds)
            waiting = hasher.verify("bob@d", verifier, b"right")
        assert await waiting
        assert len(count(hasher)) == hashed


@pytest_twisted.ensureDeferred
async def test_too_many_logins_at_once() -> None:
    hasher, counting = hasher_of(threads=1, waiting=2)
    counting.hold = threading.Event()
    verifier = counting.real.hash(b"right")
    waiting = [hasher.verify(f"n{number}@d", verifier, b"right") for number in range(3)]
    with pytest.raises(TemporaryFailure, match="Too many logins at once; try again later"):
        await hasher.verify("bob@d", verifier, b"right")
    counting.hold.set()
    assert await gatherResults(waiting) == [True] * 3
    assert await hasher.verify("bob@d", verifier, b"right")
    await hasher.stopService()
    with pytest.raises(TemporaryFailure):
        await hasher.verify("bob@d", verifier, b"other")
    await hasher.stopService()


@pytest.mark.parametrize("verifier", ["", "x", "$2b$12$abc", "$argon2id$v=19$m=64,t=1,p=1$AA$AA",
                                      "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHQ$"])
@pytest_twisted.ensureDeferred
async def test_broken_verifiers_let_nobody_in(hasher: PasswordHasher, logged: list[Any],
                                              verifier: str) -> None:
    assert await hasher.verify("bob@d", verifier, b"x") is False
    assert count(hasher)[-1] == hasher._nobody
    levels = [event["log_level"] for event in logged]
    assert LogLevel.error in levels or not verifier


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
    assert argon2.extract_parameters(after.verifier).time_cost == 2
    assert hasher._verify(after.verifier, PASSWORD.encode())


@pytest_twisted.ensureDeferred
async def test_a_renewal_that_fails_is_no_failed_login(
        directory: SqliteDirectory, logged: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise TemporaryFailure("The directory of accounts cannot be changed now")

    monkeypatch.setattr(directory, "replace_verifier", broken)
    hasher, _ = hasher_of(passes=2)
    checker = DirectoryChecker(directory, hasher)
    assert await checker.requestAvatarId(UsernamePassword(b"bob", PASSWORD.encode()))
    for _ in range(1000):
        if not hasher._jobs:
            break
        await deferLater(reactor, 0.01)
    await hasher.stopService()
    (event,) = [each for each in logged if "not renewed" in (each["log_format"] or "")]
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
