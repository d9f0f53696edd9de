"""Messages put into maildirs from beside the service, with unique-ids of their own."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailsvc.journal import Orphan
from mailsvc.mail import Account
from mailsvc.store import entries, filenames, maildirsize
from mailsvc.store.deposit import Deposit
from mailsvc.store.listing import Listing, SizeCache
from mailsvc.store.recovery import Recovery
from mailsvc.store.tree import MailTree
from tests.stores import ALICE, files, home, put
from tests.system_calls import SystemCalls

MESSAGE = b"Subject: test\r\n\r\nbody\r\n"
HOST = "mail.example.org"

#: RFC 1939 §7 allows them all.
ODD_IDS = [b"1", b"a/b", b"a:2,S", b"x,S=1,W=2", b".", b"..", b"%", b",UIDL=eA", b"!~" * 35]


def deposit(root: Path) -> Deposit:
    return Deposit(root, ALICE, HOST)


def listed(root: Path) -> list[bytes]:
    listing = Listing(os.fsencode(home(root)), SizeCache())
    return listing.uidls(1, len(listing) + 1)


# ---- names ---------------------------------------------------------------------------------------


@given(st.binary(min_size=1, max_size=70).map(lambda text: bytes(0x21 + c % 94 for c in text)))
def test_a_name_carries_any_unique_id(unique_id: bytes) -> None:
    name = filenames.with_unique_id(9_999_999_999, "0123456789ABCDEF", b"h" * 128, 10**12,
                                    2 * 10**12, unique_id)
    assert len(name) + len(b":2,DFPRST") <= 255
    assert b"/" not in name
    assert filenames.stored_octets(name) == 10**12
    assert filenames.sent_octets(name) == 2 * 10**12
    for flagged in (name, name + b":2,S"):
        assert filenames.unique_id(flagged) == unique_id
    assert filenames.hashed_id(name) != unique_id


@pytest.mark.parametrize("field", [
    b"", b"a", b"====", b"a b", b"_w", b"IA", b"QUJDR", b"A" * 95, b"QUJD\xff", b"AAAA", b"QUJD="])
def test_what_is_no_unique_id_in_a_name_counts_as_any_other_field(field: bytes) -> None:
    name = b"1700000000.M1P1.host,UIDL=" + field + b",S=5"
    assert filenames.given_id(name) is None
    assert filenames.is_unique_id(filenames.unique_id(name))


@pytest.mark.parametrize("unique_id", [b"", b"a b", b"x" * 71, b"\xe4", b"a\n"])
def test_no_name_is_made_of_an_illegal_unique_id(unique_id: bytes) -> None:
    with pytest.raises(ValueError, match="not a unique-id"):
        filenames.with_unique_id(1, "ID", b"host", 1, 1, unique_id)


# ---- listing -------------------------------------------------------------------------------------


def test_the_unique_ids_of_old_are_listed(tmp_path: Path) -> None:
    into = deposit(tmp_path)
    for number, unique_id in enumerate(ODD_IDS):
        into.put([MESSAGE], when=1_700_000_000 + number, unique_id=unique_id)
    into.put([MESSAGE], when=1_800_000_000)
    into.settle()
    assert listed(tmp_path)[:-1] == ODD_IDS
    assert set(deposit(tmp_path).unique_ids()) == set(listed(tmp_path))
    assert [path.read_bytes() for path in files(tmp_path)] == [MESSAGE] * (len(ODD_IDS) + 1)


def test_of_two_messages_with_one_unique_id_one_is_listed(tmp_path: Path) -> None:
    """Until the service parts them (tests/test_namesakes.py)."""
    directory = home(tmp_path)
    put(directory, "new/1700000000.M1P1.host,S=24,W=24", MESSAGE)
    into = deposit(tmp_path)
    into.put([MESSAGE], when=1_600_000_000, unique_id=b"1700000000.M1P1.host")
    into.put([MESSAGE], when=1_800_000_000, unique_id=b"ours")
    assert sorted(listed(tmp_path)) == [b"1700000000.M1P1.host", b"ours"]


def test_flags_and_time_and_line_ends_stay(tmp_path: Path) -> None:
    path = Path(os.fsdecode(deposit(tmp_path).put(
        [b"A: b\n", b"\n", b"body"], when=1_234_567_890.5, flags="SRx/")))
    assert path.parent.name == "cur"
    assert path.name.startswith("1234567890.")
    assert path.name.endswith(",S=10,W=14:2,RS")
    assert path.read_bytes() == b"A: b\n\nbody"
    assert path.stat().st_mtime == 1_234_567_890.5
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("when", [-1.0, 1e11, 1e30])
def test_any_time_gives_a_name(tmp_path: Path, when: float) -> None:
    deposit(tmp_path).put([MESSAGE], when=when)
    assert len(listed(tmp_path)) == 1


def test_the_quota_counts_it(tmp_path: Path) -> None:
    directory = os.fsencode(home(tmp_path))
    quota = Account("alice", "example.org", 1000, 10)
    amount = maildirsize.Amount(quota.quota_octets, quota.quota_messages)
    assert maildirsize.has_room(directory, amount, 1)
    into = deposit(tmp_path)
    for _ in range(3):
        into.put([MESSAGE], when=1.0)
    into.settle()
    into.settle()
    assert maildirsize._read(directory).usage == (3 * len(MESSAGE), 3)  # type: ignore[union-attr]


# ---- failures ------------------------------------------------------------------------------------


def test_whatever_fails_leaves_nothing_or_all(tmp_path: Path, calls: SystemCalls) -> None:
    home(tmp_path)
    into = deposit(tmp_path)
    into.put([MESSAGE], when=1.0)
    start = len(calls.calls)
    into.put([MESSAGE], when=1.0)
    number = len(calls.calls) - start
    assert number >= 4
    for at in range(number):
        before = len(files(tmp_path))
        start = len(calls.calls)
        calls.fault = lambda index, _, bad=start + at: errno.EIO if index == bad else None
        name = calls.calls[-number + at].name if at else ""
        with pytest.raises(OSError, match="Input/output"):
            into.put([MESSAGE], when=1.0)
        calls.fault = lambda index, call: None
        there = files(tmp_path)
        assert all(path.read_bytes() == MESSAGE for path in there), name
        # An unlink that fails leaves a file in tmp/ and a whole message.
        assert len(there) == before + (at == number - 1)
        assert len(list(tmp_path.rglob("tmp/*"))) <= 1
        for path in tmp_path.rglob("tmp/*"):
            path.unlink()


def test_a_source_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def source() -> Iterator[bytes]:
        yield MESSAGE
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        deposit(tmp_path).put(source(), when=1.0)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_directories_are_synced_once_for_many(tmp_path: Path, calls: SystemCalls) -> None:
    home(tmp_path)
    into = deposit(tmp_path)
    for _ in range(5):
        into.put([MESSAGE], when=1.0)
    before = len(calls.of("fsync"))
    into.settle()
    assert calls.of("fsync")[before:] == [str(home(tmp_path) / "new")]


def test_what_is_put_back_outlives_the_record_of_its_removal(tmp_path: Path) -> None:
    directory = home(tmp_path)
    old = "1700000000.ID.host,S=24,W=24"
    into = deposit(tmp_path)
    into.put([MESSAGE], when=1_700_000_000, unique_id=filenames.unique_id(old.encode()))
    into.settle()
    removal = entries.removed([b"example.org/alice/new/" + old.encode()])
    root = os.fsencode(tmp_path)
    Recovery(root, MailTree(tmp_path)).replay(
        [Orphan(b"JOURNAL/0.0", True, False, (removal,))])
    assert listed(tmp_path) == [b"1700000000.ID.host"]
    assert len(files(directory)) == 1
