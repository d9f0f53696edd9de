"""mailsvc.logindelay, through the realm that asks it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import Clock

from mailsvc.accounts import MailRealm
from mailsvc.directory import SqliteDirectory
from mailsvc.errors import LoginTooSoon, MaildropInUse
from mailsvc.interfaces import IMaildrop
from mailsvc.logindelay import LoginDelay
from mailsvc.mail import Account
from mailsvc.names import parse_address
from mailsvc.state import State


class Maildrop:
    def __init__(self, account: Account, released: list[str]) -> None:
        self.release = lambda: released.append(account.name)


class Store:
    """Opens maildrops, or fails."""

    def __init__(self) -> None:
        self.released: list[str] = []
        self.failure: Exception | None = None

    def open_maildrop(self, account: Account) -> Deferred[Any]:
        return fail(self.failure) if self.failure else succeed(Maildrop(account, self.released))


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[SqliteDirectory]:
    with SqliteDirectory(tmp_path / "accounts.sqlite") as made:
        made.add_domain("example.org")
        for name in "Bob", "alice", "closed":
            made.add_account(parse_address(f"{name}@example.org"))
        yield made


def realm_of(store: Store, directory: SqliteDirectory, delay: LoginDelay) -> MailRealm:
    return MailRealm(store, directory, delay)  # type: ignore[arg-type]


def delay_of(path: Path, clock: Clock, seconds: float = 30) -> LoginDelay:
    return LoginDelay(path / "state.sqlite", seconds, clock.seconds, maybeDeferred)


@pytest_twisted.ensureDeferred
async def test_login_delay(store: Store, directory: SqliteDirectory, tmp_path: Path) -> None:
    clock = Clock()
    # Each login may come to another process.
    realms = itertools.cycle([realm_of(store, directory, delay_of(tmp_path, clock))
                              for _ in range(2)])

    async def login(name: str) -> None:
        _, _, logout = await next(realms).requestAvatar(name, None, IMaildrop)
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
    assert remembered(tmp_path) == ["Bob@example.org", "alice@example.org"]
    clock.advance(30)
    await login("closed@example.org")
    assert remembered(tmp_path) == ["closed@example.org"]


def remembered(path: Path) -> list[str]:
    with contextlib.closing(State(path / "state.sqlite")) as state:
        return [row[0] for row in state.rows("SELECT account FROM last_logins ORDER BY account")]


@pytest_twisted.ensureDeferred
async def test_of_two_logins_at_once_one_is_too_soon(
    store: Store, directory: SqliteDirectory, tmp_path: Path
) -> None:
    delay = delay_of(tmp_path, Clock())
    await delay.check("bob@example.org")
    await delay.check("bob@example.org")
    await delay.note("bob@example.org")
    with pytest.raises(LoginTooSoon):
        await delay.note("bob@example.org")


@pytest_twisted.ensureDeferred
async def test_a_maildrop_that_was_opened_too_soon_is_released(
    store: Store, directory: SqliteDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delay = delay_of(tmp_path, Clock())
    realm = realm_of(store, directory, delay)
    await delay.note("Bob@example.org")

    async def late(account: str) -> None:
        """Another process was quicker after this."""

    monkeypatch.setattr(delay, "check", late)
    with pytest.raises(LoginTooSoon):
        await realm.requestAvatar("bob@example.org", None, IMaildrop)
    assert store.released == ["Bob@example.org"]


@pytest_twisted.ensureDeferred
async def test_a_login_delay_that_cannot_be_kept_holds_nobody_up(
    store: Store, directory: SqliteDirectory, tmp_path: Path
) -> None:
    (tmp_path / "state.sqlite").write_bytes(b"no database")
    realm = realm_of(store, directory, delay_of(tmp_path, Clock()))
    for _ in range(2):
        await realm.requestAvatar("bob@example.org", None, IMaildrop)
