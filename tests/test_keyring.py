"""mailsvc.accounts: the keyring, and who may act for whom."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from zope.interface.verify import verifyObject

from mailsvc.accounts import Keyring, same_account
from mailsvc.credentials import ScramKeys
from mailsvc.directory import SqliteDirectory
from mailsvc.errors import TemporaryFailure
from mailsvc.interfaces import IKeyring
from mailsvc.logins import StoredPassword
from mailsvc.mail import Account
from mailsvc.passwords import (
    PasswordHasher,
    derive_scram,
    read_scram,
    scram_salt,
)
from tests.accounts import PASSWORD, POP3, SUBMISSION, at, some_accounts
from tests.hashing import cheap_hasher, logged_events, stop_hashers

stopped = pytest.fixture(autouse=True)(stop_hashers)
hasher = pytest.fixture(cheap_hasher)
logged = pytest.fixture(logged_events)


@pytest.fixture
def directory(tmp_path: Path, hasher: PasswordHasher) -> Iterator[SqliteDirectory]:
    with some_accounts(tmp_path / "accounts.sqlite", hasher) as directory:
        yield directory


def proves(keys: ScramKeys, password: str) -> bool:
    """Whether a client that knows *password* has a proof that fits."""
    return read_scram(derive_scram(password.encode(), keys.salt, keys.iterations)) == (
        dataclasses.replace(keys, others=()))


@pytest.fixture
def keyed(directory: SqliteDirectory) -> SqliteDirectory:
    """Alice has SCRAM keys of her main password, and of two app passwords."""
    salt = scram_salt(directory, "alice@example.org")
    directory.set_password(at("alice@example.org"), "$v",
                           scram=derive_scram(PASSWORD.encode(), salt, 4096))
    alice = Account("alice", "example.org")
    for label, protocols in (("phone", frozenset[str]()), ("printer", frozenset({"submission"}))):
        directory.passwords.add(alice, StoredPassword(
            label, "$app", derive_scram(label.encode(), salt, 4096), protocols=protocols))
    return directory


def test_the_keys_of_an_account(keyed: SqliteDirectory) -> None:
    keyring = Keyring(keyed, 5000)
    verifyObject(IKeyring, keyring)
    for name in (b"alice", b"ALICE@Example.org"):
        keys = keyring.scram_keys(name, SUBMISSION)
        assert keys.iterations == 4096
        assert proves(keys, PASSWORD)
        assert [proves(other, label) for other, label in zip(
            keys.others, ("phone", "printer"), strict=True)] == [True, True]
    # Those that are no good for the attempt are not among them.
    keys = keyring.scram_keys(b"alice", POP3)
    assert proves(keys, PASSWORD) and len(keys.others) == 1 and proves(keys.others[0], "phone")
    keyed.set_password(at("alice@example.org"), None)
    assert proves(keyring.scram_keys(b"alice", POP3), "phone")


def test_keys_of_another_salt_cannot_be_offered_beside(keyed: SqliteDirectory) -> None:
    keyed.set_password(at("alice@example.org"), "$v",
                       scram=derive_scram(b"imported", b"another salt", 4096))
    keys = Keyring(keyed, 4096).scram_keys(b"alice", SUBMISSION)
    assert proves(keys, "imported") and not keys.others


@pytest.mark.parametrize("name", [
    "closed", "bob", "nobody", "robert", "bob+x", "x@elsewhere.example", "", "\x00", "alice"])
def test_the_keys_of_everybody_else_are_made_up(keyed: SqliteDirectory, name: str) -> None:
    keyed.set_role(at("alice@example.org"), "receive")
    keyring = Keyring(keyed, 5000)
    keys = keyring.scram_keys(name.encode(), SUBMISSION)
    assert keys.iterations == 5000
    assert len(keys.salt) == 16 and len(keys.stored_key) == len(keys.server_key) == 32
    assert keys.stored_key != keys.server_key and not keys.others
    for password in (PASSWORD, "", "phone", "printer"):
        assert not proves(keys, password)
    # They are the same each time, in any spelling, and other files have others.
    assert keys == Keyring(keyed, 5000).scram_keys(name.upper().encode(), SUBMISSION)
    assert keys != keyring.scram_keys(b"another", SUBMISSION)


def test_made_up_keys_look_like_real_ones(keyed: SqliteDirectory) -> None:
    real = Keyring(keyed, 4096).scram_keys(b"alice", POP3)
    # What a client is told, it is told again when the account has lost its keys, or is gone.
    keyed.set_password(at("alice@example.org"), "$w")
    for label in ("phone", "printer"):
        keyed.passwords.remove(Account("alice", "example.org"), label)
    without = Keyring(keyed, 4096).scram_keys(b"alice", POP3)
    keyed.remove_account(at("alice@example.org"))
    gone = Keyring(keyed, 4096).scram_keys(b"alice", POP3)
    assert without == gone
    assert (gone.salt, gone.iterations) == (real.salt, real.iterations)
    assert gone.stored_key != real.stored_key


def test_no_scram_keys_at_all(keyed: SqliteDirectory) -> None:
    keys = Keyring(keyed, 0).scram_keys(b"alice", POP3)
    assert keys.iterations == 4096 and not proves(keys, PASSWORD)


def test_broken_keys_are_none(keyed: SqliteDirectory) -> None:
    keyed.set_password(at("alice@example.org"), "$v", scram="SCRAM-SHA-256$x")
    assert proves(Keyring(keyed, 4096).scram_keys(b"alice", POP3), "phone")


def test_a_keyring_that_cannot_be_read(keyed: SqliteDirectory) -> None:
    keyed.close()
    with pytest.raises(TemporaryFailure):
        Keyring(keyed, 4096).scram_keys(b"alice", POP3)


@pytest.mark.parametrize(("name", "other", "same"), [
    ("bob@example.org", "BOB@Example.org", True), ("bob", "bob@example.org", True),
    (b"bob", "Bob", True), ("bob", "", True), ("bob", b"", True), ("nobody", "NOBODY", True),
    ("bob", "alice", False), ("bob", "robert@example.org", False), ("bob", "bob+x", False),
    ("bob", "bob@example.net", False), ("nobody", "bob", False), (b"\xff", b"\xfe", False)])
def test_who_may_act_for_whom(directory: SqliteDirectory, name: str, other: str,
                              same: bool) -> None:
    assert same_account(directory, name, other) is same


def test_who_may_act_for_whom_by_default(directory: SqliteDirectory) -> None:
    directory.add_domain("example.net")
    assert not same_account(directory, "bob", "bob@example.org")
    assert same_account(directory, "bob", "bob@example.org", "example.org")
