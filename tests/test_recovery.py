"""What a journal says, and what is made of it when its process is gone."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import formatEvent, globalLogPublisher

from mailsvc.journal import Orphan
from mailsvc.store import entries, recovery
from mailsvc.store.recovery import Recovery
from mailsvc.store.tree import MailTree
from tests.stores import ALICE, BOB, files, home, put

MESSAGE = b"Subject: test\r\n\r\nbody\r\n"
PLACE = b"example.org/alice/new/1.ID.host,S=23,W=23"

places = st.lists(st.binary(max_size=50), max_size=5)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What is logged meanwhile."""
    lines: list[str] = []

    def note(event: dict[str, Any]) -> None:
        lines.append(formatEvent(event))

    globalLogPublisher.addObserver(note)
    yield lines
    globalLogPublisher.removeObserver(note)


# ---- entries -------------------------------------------------------------------------------------


@given(places, st.none() | st.binary(max_size=100))
def test_an_entry_says_what_was_written(where: list[bytes], message: bytes | None) -> None:
    record = entries.removed(where) if message is None else entries.delivered(where, message)
    assert entries.parse(record) == (tuple(where), message)


@pytest.mark.parametrize("record", [
    b"", b"D", b"D\1", b"D\1\0", b"D\1\0\5", b"D\1\0\5\0abc", b"D\2\0\1\0a", b"X\0\0", b"\0\0\0",
    b"d\1\0\1\0a", b"R\1\0\xff\xffa"])
def test_what_is_no_entry(record: bytes) -> None:
    with pytest.raises(ValueError, match="entry"):
        entries.parse(record)


@given(st.binary(max_size=40))
def test_no_octets_are_read_beyond_their_end(record: bytes) -> None:
    try:
        entry = entries.parse(record)
    except ValueError:
        return
    again = (entries.removed(entry.places) if entry.message is None
             else entries.delivered(entry.places, entry.message))
    # Behind the places of a removal there is nothing of interest.
    assert again == record[:len(again)]


def test_more_places_than_an_entry_has_room_for() -> None:
    with pytest.raises(struct.error):
        entries.removed([b""] * 65_536)


# ---- replaying -----------------------------------------------------------------------------------


def replay(root: Path, *records: bytes, rebooted: bool = True, settled: bool = False) -> Recovery:
    it = Recovery(os.fsencode(root), MailTree(root, sync=False))
    it.replay([Orphan(b"JOURNAL/0.0", rebooted, settled, records)])
    return it


def found(it: Recovery) -> tuple[int, int, int, int]:
    return it.whole, it.restored, it.repaired, it.removed


def contents(root: Path) -> list[tuple[str, bytes]]:
    return [(f"{path.parent.parent.name}/{path.parent.name}/{path.name.partition(':')[0]}",
             path.read_bytes()) for path in files(root)]


@pytest.mark.parametrize(("there", "expected"), [
    ((), (0, 1, 0, 0)),
    ((("new/1.ID.host,S=23,W=23", MESSAGE),), (1, 0, 0, 0)),
    ((("new/1.ID.host,S=23,W=23", b""),), (0, 0, 1, 0)),
    ((("cur/1.ID.host,S=23,W=23:2,S", MESSAGE),), (1, 0, 0, 0)),
    ((("cur/1.ID.host,S=23,W=23:2,S", MESSAGE[:9] + bytes(14)),), (0, 0, 1, 0)),
    # A rename of another program that came to the disk by half.
    ((("new/1.ID.host,S=23,W=23", MESSAGE), ("cur/1.ID.host,S=23,W=23:2,S", MESSAGE)),
     (1, 0, 0, 0)),
    ((("new/1.ID.host,S=23,W=23", b""), ("cur/1.ID.host,S=23,W=23:2,S", MESSAGE)), (1, 0, 0, 0)),
    ((("new/1.ID.host,S=23,W=23", b"x"), ("cur/1.ID.host,S=23,W=23:2,S", b"y")), (0, 0, 1, 0)),
])
def test_a_message_is_there_once_and_whole(
    tmp_path: Path, there: Sequence[tuple[str, bytes]], expected: tuple[int, ...]
) -> None:
    directory = home(tmp_path)
    put(directory / "new", "1.OTHER.host", b"another\r\n")
    for name, content in there:
        (directory / name).write_bytes(content)
    it = replay(tmp_path, entries.delivered([PLACE], MESSAGE))
    assert found(it) == expected
    assert [content for name, content in contents(tmp_path) if "1.ID" in name] == [MESSAGE]
    assert len(files(tmp_path)) == 2
    # To do it again changes nothing.
    assert found(replay(tmp_path, entries.delivered([PLACE], MESSAGE))) == (1, 0, 0, 0)
    assert not list(tmp_path.rglob("tmp/*"))


def test_a_removal_counts_wherever_it_stands(tmp_path: Path) -> None:
    put(home(tmp_path) / "cur", "1.ID.host,S=23,W=23:2,S", MESSAGE)
    bobs = PLACE.replace(b"alice", b"bob")
    it = replay(tmp_path, entries.removed([PLACE]), entries.delivered([PLACE, bobs], MESSAGE))
    assert found(it) == (0, 1, 0, 1)
    assert contents(tmp_path) == [("bob/new/1.ID.host,S=23,W=23", MESSAGE)]
    assert files(home(tmp_path)) == [] != files(home(tmp_path, BOB))


def test_sizes_are_counted_anew_where_something_changed(tmp_path: Path) -> None:
    for account, changed in (ALICE, True), (BOB, False):
        directory = home(tmp_path, account)
        (directory / "maildirsize").write_bytes(b"1000S\n")
        place = PLACE.replace(b"alice", account.local_part.encode())
        if not changed:
            put(directory / "new", place.rpartition(b"/")[2], MESSAGE)
        replay(tmp_path, entries.delivered([place], MESSAGE))
        assert (directory / "maildirsize").exists() != changed


def test_without_a_restart_of_the_machine_what_is_gone_was_deleted(tmp_path: Path) -> None:
    home(tmp_path)
    it = replay(tmp_path, entries.delivered([PLACE], MESSAGE), rebooted=False)
    assert found(it) == (0, 0, 0, 0)
    assert files(tmp_path) == []


def test_of_what_is_settled_only_removals_count(tmp_path: Path) -> None:
    put(home(tmp_path) / "new", "2.ID.host", MESSAGE)
    it = replay(tmp_path, entries.delivered([PLACE], MESSAGE),
                entries.removed([b"example.org/alice/new/2.ID.host"]), settled=True)
    assert found(it) == (0, 0, 0, 1)
    assert files(tmp_path) == []


@pytest.mark.parametrize("record", [
    b"", b"X\0\0", *(entries.delivered([place], MESSAGE) for place in (
        b"../../etc/new/passwd", b"example.org/../new/x", b"example.org/alice/cur/x", b"/a/new/x",
        b"example.org/alice/new/..", b"example.org/alice/new/", b"example.org/alice/new/a/b",
        b""))])
def test_what_is_no_entry_of_ours_is_left_out_and_told(
    tmp_path: Path, logged: list[str], record: bytes
) -> None:
    """And the rest is replayed."""
    it = replay(tmp_path, record, entries.delivered([PLACE], MESSAGE))
    assert contents(tmp_path) == [("alice/new/1.ID.host,S=23,W=23", MESSAGE)]
    assert found(it) == (0, 1, 0, 0)
    assert logged[0].startswith("b'JOURNAL/0.0' has an entry that is left out: ")
    assert logged[1].startswith("recovered 1 entries of 1 segments of the journal after the")


def test_what_vanishes_while_it_is_looked_at_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(home(tmp_path) / "new", PLACE.rpartition(b"/")[2], MESSAGE)
    real = recovery.content_of

    def content(name: bytes) -> bytes | None:
        path.unlink(missing_ok=True)
        return real(name)

    monkeypatch.setattr(recovery, "content_of", content)
    assert found(replay(tmp_path, entries.delivered([PLACE], MESSAGE))) == (0, 0, 1, 0)
    assert contents(tmp_path) == [("alice/new/1.ID.host,S=23,W=23", MESSAGE)]
