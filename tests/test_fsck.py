"""What is wrong with files, found and mended."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mailsvc.cli import main
from mailsvc.journal import Journal
from mailsvc.store import maildirsize
from mailsvc.store.deposit import Deposit
from mailsvc.store.listing import Listing, SizeCache
from tests.command_line import CommandLine, fresh_command_line
from tests.service import Service, fetch, login, submit
from tests.stores import ALICE, files

MESSAGE = b"Subject: test\r\n\r\nbody\r\n"
NAME = "alice@example.org"
QUOTA = maildirsize.Amount(1000, 0)


@pytest.fixture
def mailsvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """One for a service with an account that has two messages and a quota."""
    it = fresh_command_line(tmp_path, monkeypatch)
    it("domain", "add", "example.org")
    it("account", "add", "--password-stdin", "--quota-octets", "1000", NAME,
       stdin="secret pass phrase\n")
    (it.dir / "mail").mkdir(mode=0o700)
    into = Deposit(it.dir / "mail", ALICE, "host")
    for number in range(2):
        into.put([MESSAGE], when=1_500_000_000 + number)
    maildirsize.recalculate(os.fsencode(home(it)), QUOTA)
    return it


def home(mailsvc: CommandLine) -> Path:
    return mailsvc.dir / "mail/example.org/alice"


def run(mailsvc: CommandLine, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    result = mailsvc.runner.invoke(main, ["--dir", str(mailsvc.dir), "fsck", "--json", *arguments])
    assert "Traceback" not in result.output, result.output
    return result.exit_code, json.loads(result.stdout)


def uidls(mailsvc: CommandLine) -> list[bytes]:
    listing = Listing(os.fsencode(home(mailsvc)), SizeCache())
    return listing.uidls(1, len(listing) + 1)


def first(mailsvc: CommandLine) -> Path:
    return min(files(home(mailsvc)), key=lambda path: path.name)


def test_a_sound_service_has_no_findings(mailsvc: CommandLine) -> None:
    first(mailsvc).chmod(0o644)  # as other programs leave files
    assert run(mailsvc, "--read") == (0, [])
    assert mailsvc("fsck") == "0 problems, 0 repaired, 0 that do no harm\n"


def _twin(mailsvc: CommandLine) -> None:
    path = first(mailsvc)
    shutil.copy2(path, home(mailsvc) / "cur" / (path.name + ":2,S"))


def _wrong_w(mailsvc: CommandLine) -> None:
    path = first(mailsvc)
    path.rename(path.with_name(path.name.replace(f"W={len(MESSAGE)}", f"W={len(MESSAGE) + 2}")))


def _abandoned(mailsvc: CommandLine) -> None:
    path = home(mailsvc) / "tmp/old"
    path.touch(mode=0o600)
    os.utime(path, (1, 1))


#: What is done to it: what is said, whether it does harm, whether --read is needed.
DAMAGE: dict[str, tuple[Callable[[CommandLine], Any], str, bool, bool]] = {
    "cut short": (lambda it: os.truncate(first(it), 5),
                  "has 5 octets, and its name says 23", True, False),
    "emptied": (lambda it: os.truncate(first(it), 0), "has 0 octets", True, False),
    "another size sent": (_wrong_w, "is sent as 23 octets, and its name says 25", True, True),
    "a directory missing": (lambda it: (home(it) / "cur").rmdir(), "is missing", True, False),
    "a file for nobody to read": (lambda it: first(it).chmod(0), "has mode 0000", True, False),
    "a directory for all to enter": (lambda it: home(it).chmod(0o755), "has mode 0755", True,
                                     False),
    "there twice": (_twin, "is there as", True, False),
    "a quota file of nonsense": (lambda it: (home(it) / "maildirsize").write_text("x\n"),
                                 "is malformed", False, False),
    "a quota file that drifted": (
        lambda it: maildirsize.record(os.fsencode(home(it)), 5, 1),
        "says 51 octets in 3 messages, and there are 46 in 2", False, False),
    "a quota file of another quota": (
        lambda it: maildirsize.recalculate(os.fsencode(home(it)), QUOTA._replace(octets=7)),
        "is for another quota, 7 octets", False, False),
    "an abandoned delivery": (_abandoned, "given up", False, False),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_told_and_mended(mailsvc: CommandLine, damage: str) -> None:
    spoil, text, harmful, read = DAMAGE[damage]
    before = uidls(mailsvc)
    spoil(mailsvc)
    options = ["--read"] if read else []
    there = sorted((path, path.stat().st_mode) for path in mailsvc.dir.rglob("*"))
    status, found = run(mailsvc, *options)
    # What changes a mailbox without keeping the sums shows there too.
    [told] = [each for each in found if text in each["text"]]
    assert [each for each in found if each != told and not each["harmless"]] == []
    assert (status, told["harmless"]) == (int(harmful), not harmful)
    assert sorted((path, path.stat().st_mode) for path in mailsvc.dir.rglob("*")) == there
    if read:
        assert run(mailsvc) == (0, [])
    status, found = run(mailsvc, "--repair", *options)
    assert status == 0
    assert all(each["repaired"] for each in found)
    assert run(mailsvc, "--read") == (0, [])
    assert uidls(mailsvc) == before


def test_only_root_gives_files_back(mailsvc: CommandLine) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        shutil.copytree(mailsvc.dir, Path(directory) / "data")
        mailsvc.dir = Path(directory) / "data"
        for path in (mailsvc.dir, *mailsvc.dir.rglob("*")):
            os.chown(path, 65_534, 65_534)
        os.chown(first(mailsvc), 0, 0)
        (home(mailsvc) / "new/link").symlink_to("/etc/hostname")
        os.truncate(first(mailsvc), 5)
        status, found = run(mailsvc, "--repair")
        assert status == 0
        assert {each["text"][:10]: each["repaired"] for each in found} == {
            "belongs to": True, "has 5 octe": True, "is no file": False}
        assert {path.lstat().st_uid for path in files(home(mailsvc))
                if not path.is_symlink()} == {65_534}
        assert os.stat("/etc/hostname").st_uid == 0
        assert (home(mailsvc) / "mailsvc.lock").stat().st_uid == 65_534


@pytest.mark.parametrize(("folder", "harm"), [("", False), (".Sent", True)])
def test_two_messages_of_one_name_are_both_kept(
    mailsvc: CommandLine, folder: str, harm: bool
) -> None:
    box = home(mailsvc) / folder
    path = box / "new" / first(mailsvc).name
    if folder:
        for part in ("", "tmp", "new", "cur"):
            (box / part).mkdir(mode=0o700)
        path.write_bytes(MESSAGE)
        path.chmod(0o600)
    (box / "cur" / (path.name + ":2,S")).write_bytes(MESSAGE.replace(b"body", b"else"))
    (box / "cur" / (path.name + ":2,S")).chmod(0o600)
    (home(mailsvc) / "maildirsize").unlink()
    status, [found] = run(mailsvc, "--repair")
    assert status == harm
    assert "is another message" in found["text"]
    assert (found["harmless"], found["repaired"]) == (not harm, False)
    assert len(files(box)) == (2 if folder else 3)


def test_a_mailbox_in_use_is_left_alone(mailsvc: CommandLine) -> None:
    os.truncate(first(mailsvc), 5)
    with (home(mailsvc) / "mailsvc.lock").open("w") as lock:
        (home(mailsvc) / "mailsvc.lock").chmod(0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, [found] = run(mailsvc, "--repair")
    assert status == 1
    assert found["problem"] == "a POP3 session has the mailbox; try again later"
    assert run(mailsvc, "--repair")[0] == 0


def test_unreadable_mail_is_told(mailsvc: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = first(mailsvc)
    real = os.open

    def opened(path: Any, *arguments: Any, **options: Any) -> int:
        if path == os.fsencode(bad):
            raise OSError(5, "Input/output error")
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", opened)
    status, [found] = run(mailsvc, "--read", "--repair")
    assert status == 1
    assert "cannot be read: Input/output error" in found["text"]


def test_what_does_no_harm(mailsvc: CommandLine) -> None:
    mailsvc("account", "add", "--password-stdin", "bob@example.org", stdin="secret pass phrase\n")
    stranger = mailsvc.dir / "mail/example.org/carol"
    for part in ("tmp", "new", "cur"):
        (stranger / part).mkdir(parents=True, mode=0o700)
    stranger.chmod(0o700)
    one = home(mailsvc) / "new/1700000000.M1.host,S=23"
    for path in (one, one.with_name("1700000000.M1.host,S=23,W=23")):
        path.write_bytes(MESSAGE)
        path.chmod(0o600)
    (home(mailsvc) / "maildirsize").unlink()
    (home(mailsvc) / "new/folder").mkdir()
    status, found = run(mailsvc)
    assert status == 0
    texts = " ".join(each["text"] for each in found)
    for text in ("no maildir yet", "an account that there is not", "is no file",
                 "2 messages have the unique-id 1700000000.M1.host"):
        assert text in texts
    assert mailsvc("fsck") == "0 problems, 0 repaired, 4 that do no harm\n"
    assert "no maildir yet" in mailsvc("fsck", "--verbose")


def test_queue_files_that_do_not_parse(mailsvc: CommandLine) -> None:
    queue = mailsvc.dir / "queue"
    for part in ("message", "state", "incoming", "unreadable"):
        (queue / part).mkdir(parents=True)
    (queue / "message/0A").write_bytes(b"no envelope")
    status, [found] = run(mailsvc)
    assert (status, found["repairable"]) == (1, True)
    assert run(mailsvc, "--repair")[0] == 0
    assert (queue / "unreadable/0A").read_bytes() == b"no envelope"
    status, [found] = run(mailsvc)
    assert (status, found["harmless"]) == (0, True)


@pytest.mark.parametrize("name", ["accounts.sqlite", "state.sqlite"])
def test_a_damaged_sqlite_file(mailsvc: CommandLine, name: str) -> None:
    mailsvc("ban", "add", "192.0.2.0/24")
    path = mailsvc.dir / name
    content = bytearray(path.read_bytes())
    content[4096:8192] = b"\xff" * 4096
    path.write_bytes(content)
    status, found = run(mailsvc, "--repair")
    assert status == 1
    assert any(each["place"] == str(path) and "damaged" in each["text"] for each in found)


def test_a_journal_that_nobody_has_replayed(mailsvc: CommandLine) -> None:
    journal = Journal(os.fsencode(mailsvc.dir) + b"/mail/.journal", boot=b"another boot    ")
    journal.open(lambda orphans: None)
    journal.append([b"record"])
    status, [found] = run(mailsvc, "--repair")
    assert status == 1
    assert "start it, and look again" in found["text"]
    journal.close()


def test_a_running_service_has_no_findings_either(tmp_path: Path) -> None:
    with Service(tmp_path / "data", (f"{NAME}:secret",)) as service:
        mailsvc = CommandLine(service.directory)
        for _ in range(3):
            for _ in range(5):
                submit(service, MESSAGE, (NAME,))
            assert run(mailsvc, "--read") == (0, [])
            with login(service, NAME):
                assert run(mailsvc, "--read", "--repair") == (0, [])
            fetch(service, NAME)
