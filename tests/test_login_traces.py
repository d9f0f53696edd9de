"""What a login leaves behind: hashes brought up to date, and when passwords were used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import argon2
import bcrypt
import pytest
import pytest_twisted
from twisted.cred.credentials import (
    UsernamePassword,
)
from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater

from mailsvc.accounts import DirectoryChecker
from mailsvc.credentials import Attempt, Password, ProvenName
from mailsvc.directory import SqliteDirectory
from mailsvc.logins import StoredPassword
from mailsvc.passwords import (
    PasswordHasher,
    derive_scram,
    scram_salt,
)
from tests.accounts import APP, PASSWORD, POP3, add_app, at, refused, some_accounts
from tests.hashing import cheap_hasher, hasher_of, logged_events, stop_hashers

stopped = pytest.fixture(autouse=True)(stop_hashers)
hasher = pytest.fixture(cheap_hasher)
logged = pytest.fixture(logged_events)


@pytest.fixture
def directory(tmp_path: Path, hasher: PasswordHasher) -> Iterator[SqliteDirectory]:
    with some_accounts(tmp_path / "accounts.sqlite", hasher) as directory:
        yield directory


@pytest.fixture
def checker(directory: SqliteDirectory, hasher: PasswordHasher) -> DirectoryChecker:
    return DirectoryChecker(directory, hasher)


@pytest_twisted.ensureDeferred
async def test_hashes_are_brought_up_to_date_at_login(directory: SqliteDirectory) -> None:
    hasher, _ = hasher_of()
    checker = DirectoryChecker(directory, hasher)
    bcrypted = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    directory.set_password(at("alice@example.org"), bcrypted, "readable")
    add_app(directory, name="alice@example.org")
    await refused(checker, Password(b"alice", b"wrong", POP3))
    for shown in (PASSWORD.encode(), APP.upper().replace("-", "").encode()):
        assert await checker.requestAvatarId(Password(b"alice", shown, POP3))
        while hasher._jobs:
            await deferLater(reactor, 0.01)
    found = directory.credentials("alice@example.org")
    assert found and found.main
    phone, = found.app_passwords
    assert argon2.extract_parameters(str(found.verifier)).memory_cost == 64
    assert found.secret == "readable"
    salt = scram_salt(directory, "alice@example.org")
    assert found.main.scram == derive_scram(PASSWORD.encode(), salt, 4096)
    # SCRAM's clients send nothing that could be tidied: it is the password as it was shown.
    assert phone.scram == derive_scram(APP.encode(), salt, 4096)
    # And that was all there was to do.
    for shown in (PASSWORD.encode(), APP.encode()):
        assert await checker.requestAvatarId(Password(b"alice", shown, POP3))
        assert hasher._jobs == 0
    assert directory.credentials("alice@example.org") == found
    await hasher.stopService()


@pytest_twisted.ensureDeferred
async def test_many_logins_at_once_renew_a_password_once(
        directory: SqliteDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    hasher, _ = hasher_of(threads=4)
    checker = DirectoryChecker(directory, hasher)
    renewed: list[Any] = []
    monkeypatch.setattr(directory, "renew_password", lambda *each: renewed.append(each))
    login = Password(b"bob", PASSWORD.encode(), POP3)
    await checker.requestAvatarId(login)
    await gatherResults([checker.requestAvatarId(login) for _ in range(20)])
    await hasher.stopService()
    assert len(renewed) == 1


@pytest_twisted.ensureDeferred
async def test_uses_are_recorded_at_most_once_a_minute(
        directory: SqliteDirectory, hasher: PasswordHasher,
        monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_800_000_000.5
    jobs: list[Any] = []
    written: list[Any] = []
    record = directory.record_uses

    def recorded(uses: Any) -> None:
        written.append(uses)
        record(uses)

    monkeypatch.setattr(hasher, "after", lambda seconds, job: jobs.append((seconds, job)))
    monkeypatch.setattr(directory, "record_uses", recorded)
    checker = DirectoryChecker(directory, hasher, now=lambda: now)
    add_app(directory)

    async def login(shown: str, client: str = "192.0.2.7") -> None:
        await checker.requestAvatarId(Password(b"bob", shown.encode(), Attempt("pop3", client)))

    def used() -> list[tuple[int | None, str]]:
        found = directory.credentials("bob@example.org")
        assert found
        return [(each.used, each.used_from) for each in found.passwords]

    await login(APP)
    await login(APP, "192.0.2.8")
    await login(PASSWORD, "2001:db8::1")
    await refused(checker, Password(b"bob", b"wrong", POP3))
    assert {seconds for seconds, _ in jobs} == {10} and not written
    jobs[0][1]()
    assert used() == [(1_800_000_000, "2001:db8::1"), (1_800_000_000, "192.0.2.7")]
    assert len(written) == 1, "in one go"
    for _, job in jobs:  # nothing more is due
        job()
    now += 59
    jobs.clear()
    await login(APP, "192.0.2.9")
    assert not jobs and len(written) == 1
    now += 1
    await login(APP, "192.0.2.9")
    jobs[0][1]()
    assert used() == [(1_800_000_000, "2001:db8::1"), (1_800_000_060, "192.0.2.9")]
    # Credentials of twisted.cred do not say where from.
    now += 60
    await checker.requestAvatarId(UsernamePassword(b"bob", APP.encode()))
    jobs[1][1]()
    assert used()[1] == (1_800_000_120, "")


@pytest_twisted.ensureDeferred
async def test_uses_are_recorded_before_the_end(directory: SqliteDirectory) -> None:
    hasher, _ = hasher_of()
    checker = DirectoryChecker(directory, hasher)
    await checker.requestAvatarId(Password(b"bob", PASSWORD.encode(), POP3))
    await hasher.stopService()
    found = directory.credentials("bob@example.org")
    assert found and found.main and found.main.used_from == "192.0.2.7"


@pytest_twisted.ensureDeferred
async def test_scram_uses_are_recorded_when_there_is_no_doubt(
        directory: SqliteDirectory) -> None:
    hasher, _ = hasher_of()
    checker = DirectoryChecker(directory, hasher)
    scram = Attempt("pop3", "192.0.2.7", "SCRAM-SHA-256")
    add_app(directory, name="alice@example.org")
    directory.set_password(at("alice@example.org"), "$v", scram="keys")
    directory.set_password(at("bob@example.org"), "$v", scram="keys")
    found = directory.credentials("bob@example.org")
    assert found
    directory.passwords.add(found.account, StoredPassword("phone", "$app", "keys"))
    for name in (b"alice", b"bob"):
        await checker.requestAvatarId(ProvenName(name, scram))
    await hasher.stopService()
    alice, bob = (directory.credentials(f"{name}@example.org") for name in ("alice", "bob"))
    assert alice and [each.used_from for each in alice.passwords] == ["", "192.0.2.7"]
    assert bob and [each.used_from for each in bob.passwords] == ["", ""]
