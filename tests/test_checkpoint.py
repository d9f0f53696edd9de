"""Making maildirs durable at leisure: what is synced, by syncfs(2) or each file; and failures."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mailsvc.store import checkpoint as module
from mailsvc.store.checkpoint import checkpoint
from tests.stores import ALICE, BOB, home, put
from tests.system_calls import SystemCalls


class Kernel:
    """The C library as it is asked here.

    :ivar kind: the file system's ``f_type``.
    :ivar error: what syncfs(2) fails with.
    :ivar synced: how often it was called.
    """

    def __init__(self) -> None:
        self.kind = 0xEF53
        self.known = True
        self.error = 0
        self.synced = 0

    def statfs(self, path: bytes, buffer: object) -> int:
        buffer[:4] = self.kind.to_bytes(4, "little")  # type: ignore[index]
        return 0 if self.known else -1

    def syncfs(self, fd: int) -> int:
        self.synced += 1
        if self.error:
            module.ctypes.set_errno(self.error)
        return -1 if self.error else 0


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    it = Kernel()
    monkeypatch.setattr(module, "_LIBC", it)
    monkeypatch.setattr(module, "_RELEASE", (6, 1))
    return it


def maildirs(root: Path) -> tuple[list[bytes], list[bytes]]:
    """Two maildirs with a message each, as ``checkpoint`` takes them."""
    homes = [home(root, account) for account in (ALICE, BOB)]
    paths = [put(each / "new", f"1.{each.name}.host,S=4", b"body") for each in homes]
    return [os.fsencode(each) for each in homes], [os.fsencode(path) for path in paths]


def test_one_file_system_is_synced_once(
    tmp_path: Path, calls: SystemCalls, kernel: Kernel
) -> None:
    checkpoint(*maildirs(tmp_path))
    assert kernel.synced == 1
    assert calls.of("fsync") == []


def refuse_kind(kernel: Kernel, patch: pytest.MonkeyPatch) -> None:
    kernel.kind = 0x65735546  # FUSE


def refuse_statfs(kernel: Kernel, patch: pytest.MonkeyPatch) -> None:
    kernel.known = False


def refuse_release(kernel: Kernel, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "_RELEASE", (5, 7))


@pytest.mark.parametrize("refuse", [refuse_kind, refuse_statfs, refuse_release])
def test_elsewhere_each_file_and_directory_is_synced(
    tmp_path: Path, calls: SystemCalls, kernel: Kernel, monkeypatch: pytest.MonkeyPatch,
    refuse: Callable[[Kernel, pytest.MonkeyPatch], None]
) -> None:
    refuse(kernel, monkeypatch)
    homes, paths = maildirs(tmp_path)
    checkpoint(homes, paths)
    assert kernel.synced == 0
    domain = os.fsencode(tmp_path / "example.org")
    assert sorted(calls.of("fsync")) == sorted(os.fsdecode(path) for path in [
        *paths, *homes, *(each + b"/" + name for each in homes for name in (b"new", b"cur")),
        domain, os.path.dirname(domain)])


def test_what_was_moved_is_found_and_what_is_gone_is_no_error(
    tmp_path: Path, calls: SystemCalls, kernel: Kernel
) -> None:
    kernel.kind = 0
    homes, (moved, gone) = maildirs(tmp_path)
    where = moved.replace(b"/new/", b"/cur/") + b":2,S"
    os.rename(moved, where)
    os.unlink(gone)
    put(home(tmp_path) / "cur", "2.another.host:2,", b"not ours")
    checkpoint([*homes, os.fsencode(tmp_path / "example.net" / "nobody")], [moved, gone])
    assert os.fsdecode(where) in calls.of("fsync")
    assert not any("another" in path or "nobody" in path for path in calls.of("fsync"))


def test_a_maildir_without_cur_has_nothing_moved(
    tmp_path: Path, calls: SystemCalls, kernel: Kernel
) -> None:
    kernel.kind = 0
    homes, [path, _] = maildirs(tmp_path)
    os.unlink(path)
    os.rmdir(homes[0] + b"/cur")
    checkpoint(homes[:1], [path])
    assert os.fsdecode(homes[0]) + "/new" in calls.of("fsync")


def test_a_sync_that_fails_is_told_with_its_file(
    tmp_path: Path, calls: SystemCalls, kernel: Kernel
) -> None:
    kernel.kind = 0
    homes, paths = maildirs(tmp_path)
    calls.fault = lambda _, call: errno.EIO if (
        call.name == "fsync" and call.path == os.fsdecode(paths[1])) else None
    with pytest.raises(OSError, match="Input/output") as caught:
        checkpoint(homes, paths)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, paths[1])


def test_a_file_system_that_cannot_be_synced_is_told(
    tmp_path: Path, kernel: Kernel
) -> None:
    kernel.error = errno.ENOSPC
    homes, paths = maildirs(tmp_path)
    with pytest.raises(OSError, match="No space left") as caught:
        checkpoint(homes, paths)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, homes[0] + b"/new")


def test_here_it_works(tmp_path: Path) -> None:
    """Whichever way this machine's file system is synced."""
    checkpoint(*maildirs(tmp_path))
