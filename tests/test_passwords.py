"""mailsvc.passwords: preparing, making, hashing and checking them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import argon2
import bcrypt
import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.logger import LogLevel

from mailsvc.directory import SqliteDirectory
from mailsvc.errors import TemporaryFailure
from mailsvc.names import DirectoryError
from mailsvc.passwords import (
    PASSWORD_OCTETS,
    PasswordHasher,
    PasswordSettings,
    as_app_password,
    check_password,
    derive_scram,
    new_app_password,
    prepare_password,
    read_scram,
    scram_salt,
)
from tests.hashing import CHEAP, cheap_hasher, count, hasher_of, logged_events, stop_hashers

stopped = pytest.fixture(autouse=True)(stop_hashers)
hasher = pytest.fixture(cheap_hasher)
logged = pytest.fixture(logged_events)

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


@pytest_twisted.ensureDeferred
async def test_hashing_stands_behind_the_reactor() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    hasher = PasswordHasher(PasswordSettings(), reactor)
    hasher.startService()
    try:
        assert await hasher._in_thread(niceness) == max(10, niceness())
    finally:
        await hasher.stopService()


def test_settings_are_what_owasp_recommends() -> None:
    made = PasswordHasher(PasswordSettings(), reactor).hash(b"x")
    assert made.startswith("$argon2id$v=19$m=19456,t=2,p=1$")


@pytest.mark.parametrize(("key", "good", "bad"), [
    ("scram_iterations", 0, 1), ("scram_iterations", 4096, 4095),
    ("scram_iterations", 4096, 1 << 31),
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


# ---- app passwords -------------------------------------------------------------------------------


def test_app_passwords_are_long_and_easy_to_type() -> None:
    made = {new_app_password() for _ in range(200)}
    assert len(made) == 200
    for each in made:
        assert re.fullmatch("[a-hj-km-np-z]{4}(-[a-hj-km-np-z]{4}){5}", each)
        assert check_password(each) == each.encode()
    letters = set("".join(made)) - {"-"}
    assert len(letters) == 23
    assert 24 * math.log2(len(letters)) > 100


@pytest.mark.parametrize("typed", [
    "abcd-efgh-jkmn-pqrs-tuvw-xyza", "abcdefghjkmnpqrstuvwxyza", "ABCD EFGH JKMN PQRS TUVW XYZA",
    " abcd-efgh-jkmn-pqrs-tuvw-xyza "])
def test_app_passwords_however_typed(typed: str) -> None:
    assert as_app_password(typed.encode()) == b"abcd-efgh-jkmn-pqrs-tuvw-xyza"


@pytest.mark.parametrize("other", [
    b"", b"-", b"abcd-efgh-jkmn-pqrs-tuvw-xyz", b"abcd-efgh-jkmn-pqrs-tuvw-xyzaa",
    b"abcd-efgh-jkmn-pqrs-tuvw-xyzi", b"abcd-efgh-jkmn-pqrs-tuvw-xyz1",
    b"abcd-efgh-jkmn-pqrs-tuvw-xyza\n", b"abcdefghjkmnpqrstuvwxyz\xe9", PASSWORD.encode()])
def test_what_is_no_app_password(other: bytes) -> None:
    assert as_app_password(other) == b""


# ---- SCRAM ---------------------------------------------------------------------------------------


def test_scram_keys_are_those_of_rfc_7677() -> None:
    # §3: user "user", password "pencil"; what client and server said there.
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    text = derive_scram(b"pencil", salt, 4096)
    keys = read_scram(text)
    assert keys and (keys.iterations, keys.salt) == (4096, salt)
    nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    said = (f"n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,"
            f"c=biws,r={nonce}").encode()
    proof = base64.b64decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    signature = hmac.digest(keys.stored_key, said, "sha256")
    client_key = bytes(a ^ b for a, b in zip(proof, signature, strict=True))
    assert hashlib.sha256(client_key).digest() == keys.stored_key
    assert base64.b64encode(hmac.digest(keys.server_key, said, "sha256")) == (
        b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")


def test_scram_keys_are_written_as_postgresql_writes_them() -> None:
    # CREATE ROLE … PASSWORD 'pencil' with that salt, from PostgreSQL's own form:
    # SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>, all base64.
    assert re.fullmatch(r"SCRAM-SHA-256\$4096:[A-Za-z0-9+/]{22}==\$[A-Za-z0-9+/]{43}=:"
                        r"[A-Za-z0-9+/]{43}=", derive_scram(b"x", bytes(16), 4096))
    assert "pencil" not in derive_scram(b"pencil", bytes(16), 4096)


@pytest.mark.parametrize("broken", [
    None, "", "x", "SCRAM-SHA-256$4096:AAAA$AAAA:AAAA", "SCRAM-SHA-1$4096:AAAA$" + "A" * 44 + ":",
    f"SCRAM-SHA-256$0:AAAA${'A' * 43}=:{'A' * 43}=", f"SCRAM-SHA-256$1:AAAA${'!' * 44}:{'A' * 44}",
    f"SCRAM-SHA-256$4096:A${'A' * 43}=:{'A' * 43}="])
def test_broken_scram_keys_are_none(broken: str | None) -> None:
    assert read_scram(broken) is None


def test_which_scram_keys_are_outdated() -> None:
    salt = bytes(16)
    hasher = PasswordHasher(PasswordSettings(**CHEAP), reactor)
    keys = hasher.derive_scram(b"x", salt)
    assert keys == derive_scram(b"x", salt, 4096)
    assert not hasher.is_scram_outdated(keys, salt)
    for scram, other in ((None, salt), ("broken", salt), (keys, bytes(15)),
                         (derive_scram(b"x", salt, 4097), salt)):
        assert hasher.is_scram_outdated(scram, other)
    without = PasswordHasher(PasswordSettings(scram_iterations=0), reactor)
    assert without.derive_scram(b"x", salt) is None
    assert without.is_scram_outdated(keys, salt) and not without.is_scram_outdated(None, salt)


def test_the_salt_is_of_the_name(tmp_path: Path) -> None:
    with SqliteDirectory(tmp_path / "accounts.sqlite") as directory:
        salt = scram_salt(directory, "Bob@Example.org")
        assert len(salt) == 16
        assert salt == scram_salt(directory, "bob@example.org.")
        others = ("bob@example.net", "bo@bexample.org", "nobody@example.org", "bob", "", "\udc80@x")
        assert len({salt, *(scram_salt(directory, name) for name in others)}) == 7


# ---- the hasher ----------------------------------------------------------------------------------


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


def test_what_is_remembered_is_the_latest() -> None:
    clock = Clock()
    hasher = PasswordHasher(PasswordSettings(cache_seconds=60, cache_entries=3, **CHEAP), clock)
    marks = [bytes([number]) for number in range(5)]
    for mark in (*marks[:4], marks[1], marks[4]):
        hasher._remember(mark)
        clock.advance(40)
    assert hasher._successes == {marks[3]: 180, marks[1]: 220, marks[4]: 260}
    assert list(hasher._successes) == [marks[3], marks[1], marks[4]]


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
async def test_who_logged_in_before_does_not_queue_behind_those_who_never_did(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    hasher, counting = hasher_of(threads=1, waiting=2, cache_seconds=60)
    verifier = counting.real.hash(b"right")
    assert await hasher.verify("bob@d", verifier, b"right")
    later = reactor.seconds() + 61
    monkeypatch.setattr(reactor, "seconds", lambda: later)
    counting.hold = threading.Event()
    order: list[str] = []

    def log_in(name: str, password: bytes) -> Deferred[Any]:
        outcome = hasher.verify(name, verifier, password)
        return outcome.addBoth(lambda result: order.append(f"{name} {result}"))

    guesses = [log_in(f"guess{number}@d", b"wrong") for number in range(3)]
    refused = log_in("guess3@d", b"wrong")
    assert refused.called
    bob = log_in("bob@d", b"right")
    assert not bob.called
    monkeypatch.undo()
    counting.hold.set()
    await gatherResults([*guesses, bob])
    assert order[1:] == ["guess0@d False", "bob@d True", "guess1@d False", "guess2@d False"]


@pytest_twisted.ensureDeferred
async def test_what_waits_is_done_when_the_service_stops() -> None:
    hasher, counting = hasher_of(threads=1, waiting=5)
    verifier = counting.real.hash(b"right")
    waiting = [hasher.verify(f"n{number}@d", verifier, b"right") for number in range(4)]
    await hasher.stopService()
    assert await gatherResults(waiting) == [True] * 4


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


# ---- bcrypt --------------------------------------------------------------------------------------

#: Of PASSWORD, in the least time that bcrypt can take.
BCRYPT = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()


@pytest.mark.parametrize("version", ["2a", "2b", "2y"])
@pytest_twisted.ensureDeferred
async def test_bcrypt_can_be_checked(hasher: PasswordHasher, logged: list[Any],
                                     version: str) -> None:
    verifier = BCRYPT.replace("2b", version, 1)
    assert await hasher.verify("bob@d", verifier, PASSWORD.encode())
    for wrong in (b"wrong", b"", b"\xff\0", b"x" * 248):
        assert not await hasher.verify("bob@d", verifier, wrong)
    assert hasher.is_outdated(verifier)
    assert not count(hasher) and not logged


@pytest_twisted.ensureDeferred
async def test_bcrypt_sees_72_octets(hasher: PasswordHasher) -> None:
    verifier = bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4)).decode()
    assert await hasher.verify("bob@d", verifier, b"x" * 100)
    assert not await hasher.verify("bob@d", verifier, b"x" * 71)


@pytest_twisted.ensureDeferred
async def test_without_the_package_bcrypt(hasher: PasswordHasher, logged: list[Any],
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bcrypt", None)
    assert not await hasher.verify("bob@d", BCRYPT, PASSWORD.encode())
    assert count(hasher) == [hasher._nobody]
    (event,) = logged
    assert "pip install mailsvc[bcrypt]" in event["log_format"]


def test_bcrypt_is_not_imported_until_it_is_needed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, mailsvc.accounts; print('bcrypt' in sys.modules)"],
        capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"


# ---- jobs beside the logins ----------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_other_jobs_give_way_to_logins() -> None:
    hasher, counting = hasher_of(threads=1, waiting=2)
    done: list[str] = []
    await hasher.soon(lambda: done.append(threading.current_thread().name))
    assert len(done) == 1 and "passwords" in done[0]
    counting.hold = threading.Event()
    waiting = hasher.verify("bob@d", None, b"x")
    await hasher.soon(lambda: done.append("while a login needs the thread"))
    counting.hold.set()
    await waiting
    assert len(done) == 1
    await hasher.stopService()
    await hasher.soon(lambda: done.append("after the end"))
    assert len(done) == 1


@pytest_twisted.ensureDeferred
async def test_a_job_for_later_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    hasher = PasswordHasher(PasswordSettings(**CHEAP), clock)
    done, event = [], threading.Event()

    def job() -> None:
        done.append(threading.current_thread().name)
        event.set()

    hasher.after(5, job)  # not at work: nothing to do it with
    assert not clock.getDelayedCalls()
    hasher.startService()
    hasher.after(5, job)
    clock.advance(3)
    hasher.after(5, job)
    assert len(clock.getDelayedCalls()) == 1 and not done
    clock.advance(2)
    assert event.wait(30)
    assert len(done) == 1 and "passwords" in done[0]
    hasher.after(5, job)
    monkeypatch.setattr(hasher, "_reactor", reactor)
    await hasher.stopService()
    assert len(done) == 2, "it is done when the service stops, at the latest"
    assert not clock.getDelayedCalls()


@pytest_twisted.ensureDeferred
async def test_a_job_that_fails_is_logged(hasher: PasswordHasher, logged: list[Any]) -> None:
    def broken() -> None:
        raise TemporaryFailure("The directory of accounts cannot be changed now")

    await hasher.soon(broken)
    hasher.after(100, broken)
    await hasher.stopService()
    assert len(logged) == 2
    assert all("Nothing could be changed" in event["log_format"] for event in logged)
