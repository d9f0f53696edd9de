"""Mailboxes written to files, and imported again."""

from __future__ import annotations

import io
import mailbox
import os
import tarfile
from pathlib import Path

import pytest

from mailsvc.export import Target
from mailsvc.mail import Account
from mailsvc.store.contents import Box
from mailsvc.store.deposit import Deposit
from mailsvc.store.listing import Listing, SizeCache
from tests.command_line import CommandLine, fresh_command_line
from tests.messages import CORPUS, RAW, long_line
from tests.stores import ALICE, files

MESSAGES = [*CORPUS.values(), *RAW.values(), long_line(10_000)]
FROM, TO = "alice@example.org", "bob@example.org"


@pytest.fixture
def mailsvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """One for a service in which Alice has mail and Bob has none."""
    it = fresh_command_line(tmp_path, monkeypatch)
    it("domain", "add", "example.org")
    for account in (FROM, TO):
        it("account", "add", "--password-stdin", account, stdin="secret pass phrase\n")
    (it.dir / "mail").mkdir()
    into = Deposit(it.dir / "mail", ALICE, "host")
    for number, message in enumerate(MESSAGES):
        into.put([message], when=1_500_000_000 + number, flags="S" * (number % 2),
                 unique_id=b"id/%d" % number if number % 3 else None)
    into.put_back([b"sent\r\n"], b".Sent", b"1500000000.M1.host:2,S", when=1_500_000_000)
    return it


def seen(mailsvc: CommandLine, account: str) -> list[tuple[bytes, float, bool, bytes]]:
    """Unique-id, time, flag and text of each message."""
    home = mailsvc.dir / "mail/example.org" / account.partition("@")[0]
    listing = Listing(os.fsencode(home), SizeCache())
    paths = [Path(os.fsdecode(listing.path(number))) for number in range(1, len(listing) + 1)]
    return [(listing.uidl(number), path.stat().st_mtime, path.name.endswith("S"),
             path.read_bytes()) for number, path in enumerate(paths, 1)]


@pytest.mark.parametrize("scheme", ["maildir", "tar"])
def test_a_round_trip_changes_nothing(
    mailsvc: CommandLine, tmp_path: Path, scheme: str
) -> None:
    out = tmp_path / "out"
    told = mailsvc.json("export", FROM, f"{scheme}:{out}")
    assert told["messages"] == len(MESSAGES) + 1
    assert told["octets"] == sum(map(len, MESSAGES)) + len(b"sent\r\n")
    if scheme == "tar":
        with tarfile.open(out) as archive:
            archive.extractall(tmp_path / "x", filter="data")
        out = tmp_path / "x/alice"
    assert (out / ".Sent/cur/1500000000.M1.host:2,S").read_bytes() == b"sent\r\n"
    mailsvc("import", TO, f"maildir:{out}")
    assert seen(mailsvc, TO) == [
        (id, when, flag, text + b"\r\n" * bool(text and not text.endswith(b"\n")))
        for id, when, flag, text in seen(mailsvc, FROM)]


def test_an_mbox_keeps_texts_and_dates(mailsvc: CommandLine, tmp_path: Path) -> None:
    mailsvc("export", FROM, f"mbox:{tmp_path / 'out'}")
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600
    assert len(mailbox.mbox(tmp_path / "out")) == len(MESSAGES)
    mailsvc("import", TO, f"mbox:{tmp_path / 'out'}")
    assert [(when, text) for _, when, _, text in seen(mailsvc, TO)] == [
        (when, text) for _, when, _, text in seen(mailsvc, FROM)]


def test_a_tar_goes_to_a_pipe(mailsvc: CommandLine) -> None:
    home = mailsvc.dir / "mail/example.org/alice"
    out = io.BytesIO()
    Target(os.fsencode(home)).tar_to(out)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as archive:
        names = {name.removeprefix("alice/") for name in archive.getnames()}
    assert names == {str(path.relative_to(home)) for path in files(home)}


@pytest.mark.parametrize("scheme", ["mbox", "maildir", "tar"])
def test_what_goes_or_is_renamed_meanwhile_is_no_error(
    mailsvc: CommandLine, tmp_path: Path, scheme: str
) -> None:
    home = mailsvc.dir / "mail/example.org/alice"
    _, second, third, *_ = sorted((home / "new").iterdir())

    def progress(done: int, of: int) -> None:
        if done == 1:
            second.unlink()
            third.rename(home / "cur" / (third.name + ":2,T"))

    writing = Target(os.fsencode(home), progress)
    getattr(writing, scheme)(tmp_path / "out")
    assert writing.messages == len(MESSAGES) - 1 + (scheme != "mbox")


@pytest.mark.parametrize("scheme", ["mbox", "maildir", "tar"])
def test_one_that_fails_leaves_nothing(
    mailsvc: CommandLine, tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "into").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert "No space left" in mailsvc.fails("export", FROM, f"{scheme}:{tmp_path}/into/out")
    assert list((tmp_path / "into").iterdir()) == []
    (tmp_path / "into/out").touch()
    assert "is there already" in mailsvc.fails("export", FROM, f"{scheme}:{tmp_path}/into/out")


def test_what_cannot_be_meant(mailsvc: CommandLine) -> None:
    assert "is no target" in mailsvc.misused("export", FROM, "zip:x")
    assert "is no target" in mailsvc.misused("export", FROM, "mbox:")
    assert "standard output" in mailsvc.misused("export", FROM, "mbox:-")
    assert "no account" in mailsvc.fails("export", "x@example.org", "mbox:x")


def test_a_box_finds_what_was_renamed_and_tells_what_has_gone(tmp_path: Path) -> None:
    account = Account("alice", "example.org")
    into = Deposit(tmp_path, account, "host")
    paths = [Path(os.fsdecode(into.put([b"x\r\n"], when=number))) for number in range(3)]
    box = Box(os.fsencode(tmp_path / "example.org/alice"))
    bases = list(box)
    paths[0].rename(paths[0].parent.parent / "cur" / (paths[0].name + ":2,S"))
    paths[1].unlink()
    found = [box.open(base) for base in bases]
    assert [fd is not None for fd in found] == [True, False, True]
    for fd in found:
        if fd is not None:
            os.close(fd)
