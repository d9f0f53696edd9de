"""The journal: what it gives back after its process is gone, and what it does not."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from mailsvc.journal import BLOCK, Journal, JournalFull, Orphan

BOOT, LATER = b"one boot        ", b"the next one    "


def journal(directory: Path, boot: bytes = BOOT, **more: int) -> Journal:
    return Journal(os.fsencode(directory / "journal"), boot=boot, **more)


def nothing(orphans: Sequence[Orphan]) -> None:
    raise AssertionError(orphans)


def left(directory: Path, boot: bytes = BOOT) -> list[Orphan]:
    """What the next start finds; it is free afterwards."""
    found: list[Orphan] = []
    it = journal(directory, boot)
    it.open(found.extend)
    it.close()
    return found


@pytest.mark.parametrize("payloads", [
    [b""], [b"a"], [b"a", b"", b"b" * BLOCK, b"c"], [b"x" * (BLOCK - 16)], [b"y" * (BLOCK - 17)],
    [b"z" * 3_000_000]], ids=["empty", "one", "several", "a block", "nearly", "large"])
def test_what_was_appended_is_given_back_in_order(tmp_path: Path, payloads: list[bytes]) -> None:
    it = journal(tmp_path)
    it.open(nothing)
    it.append(payloads)
    it.append(payloads)
    it.close()
    [orphan] = left(tmp_path, LATER)
    assert list(orphan.payloads) == payloads + payloads
    assert orphan.rebooted
    assert not orphan.settled
    assert left(tmp_path) == []


def test_the_same_boot_is_told(tmp_path: Path) -> None:
    it = journal(tmp_path)
    it.open(nothing)
    it.append([b"a"])
    it.close()
    [orphan] = left(tmp_path)
    assert not orphan.rebooted


def test_what_was_freed_is_not_given_back(tmp_path: Path) -> None:
    it = journal(tmp_path)
    it.open(nothing)
    segment = it.append([b"a"])
    assert it.end() is segment
    it.append([b"b"])
    it.free(segment)
    it.close()
    assert [orphan.payloads for orphan in left(tmp_path)] == [(b"b",)]


def test_what_an_earlier_use_left_is_not_given_back(tmp_path: Path) -> None:
    it = journal(tmp_path, segments=1)
    it.open(nothing)
    for _ in range(3):
        segment = it.append([b"old"])
    it.end()
    it.free(segment)
    it.append([b"new"])
    it.close()
    assert [orphan.payloads for orphan in left(tmp_path)] == [(b"new",)]


def test_a_torn_batch_is_left_out(tmp_path: Path) -> None:
    it = journal(tmp_path)
    it.open(nothing)
    segment = it.append([b"whole"])
    at = segment.at
    it.append([b"x" * 2000, b"y" * 2000])
    os.pwrite(segment.fd, b"?", at + 100)
    it.close()
    assert [orphan.payloads for orphan in left(tmp_path)] == [(b"whole",)]


def test_a_block_that_is_durable_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = journal(tmp_path)
    it.open(nothing)
    ends = [0]
    real = os.pwrite

    def pwrite(fd: int, data: bytes, at: int) -> int:
        assert at % BLOCK == len(data) % BLOCK == 0
        assert at >= ends[-1]
        return real(fd, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    for octets in (1, 4000, 5000, 1):
        ends.append(it.append([b"x" * octets]).at)
    it.close()


def test_when_every_segment_is_in_use(tmp_path: Path) -> None:
    it = journal(tmp_path, segments=2)
    it.open(nothing)
    segment = it.append([b"a"])
    it.end()
    it.append([b"b"])
    it.end()
    with pytest.raises(JournalFull):
        it.append([b"c"])
    assert not it.wait(0)
    it.free(segment)
    assert it.wait(0)
    it.append([b"c"])
    it.close()
    assert {orphan.payloads for orphan in left(tmp_path)} == {(b"b",), (b"c",)}


def test_slots_of_processes_that_live_are_left_alone(tmp_path: Path) -> None:
    first, second = journal(tmp_path), journal(tmp_path)
    first.open(nothing)
    first.append([b"first"])
    second.open(nothing)
    second.append([b"second"])
    assert [path for path, _ in first.others()] == [second.directory + b"/1.0"]
    first.close()
    assert [orphan.payloads for orphan in left(tmp_path)] == [(b"first",)]
    second.close()
    assert [orphan.payloads for orphan in left(tmp_path)] == [(b"second",)]


def test_a_settled_segment_blocks_no_other_and_says_so(tmp_path: Path) -> None:
    first, second = journal(tmp_path), journal(tmp_path)
    first.open(nothing)
    second.open(nothing)
    segment = first.append([b"a"])
    assert second.others()
    first.end()
    first.settle(segment)
    assert not second.others()
    first.close()
    second.close()
    [orphan] = left(tmp_path)
    assert orphan.settled
    assert orphan.payloads == (b"a",)


def test_a_replay_that_fails_keeps_the_orphans(tmp_path: Path) -> None:
    it = journal(tmp_path)
    it.open(nothing)
    it.append([b"a"])
    it.close()

    def fail(orphans: Sequence[Orphan]) -> None:
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        journal(tmp_path).open(fail)
    assert [orphan.payloads for orphan in left(tmp_path)] == [(b"a",)]


def test_after_a_flush_that_failed_the_next_segment_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it = journal(tmp_path)
    it.open(nothing)
    it.append([b"before"])
    with monkeypatch.context() as patch:
        def fail(fd: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError, match="Input/output"):
            it.append([b"in doubt"])
    it.end()
    it.append([b"after"])
    it.close()
    payloads = [orphan.payloads for orphan in left(tmp_path)]
    assert payloads[0][0] == b"before"
    assert payloads[1] == (b"after",)


@pytest.mark.parametrize("done", range(4))
def test_a_power_loss_amid_the_freeing_of_orphans_forgets_no_removal_before_its_delivery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    """Either all are there yet, or none of those that are delivers anything."""
    processes = [journal(tmp_path), journal(tmp_path)]
    for it, payload in zip(processes, (b"its removal", b"a delivery"), strict=True):
        it.open(nothing)
        it.append([payload])
    for it in processes:
        it.close()
    calls: list[int] = []
    real = os.pwrite

    def pwrite(fd: int, data: bytes, at: int) -> int:
        if len(calls) == done:
            raise OSError(5, "the power is gone")
        calls.append(fd)
        return real(fd, data, at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with pytest.raises(OSError, match="the power is gone"):
            journal(tmp_path).open(lambda orphans: None)
    found = left(tmp_path)
    assert len(found) == 2 or all(orphan.settled for orphan in found)
