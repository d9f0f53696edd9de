"""mailsvc.passwords: preparing, making, hashing and checking them."""

from __future__ import annotations

import threading
from typing import Any

import argon2
import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.task import Clock
from twisted.logger import LogLevel

from mailsvc.errors import TemporaryFailure
from mailsvc.names import DirectoryError
from mailsvc.passwords import (
    PASSWORD_OCTETS,
    PasswordHasher,
    PasswordSettings,
    check_password,
    prepare_password,
)
from tests.hashing import CHEAP, cheap_hasher, count, hasher_of, logged_events

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
