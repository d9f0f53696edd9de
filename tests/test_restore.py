"""Damaged snapshots, and what is restored from whole ones."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mailsvc.backup import manifest, restore
from mailsvc.backup.manifest import Damaged
from mailsvc.cli import main
from mailsvc.store import contents, maildirsize
from tests import backups
from tests.backups import ACCOUNTS, ALICE, BOB, message, subjects, uidls
from tests.command_line import CommandLine
from tests.service import Service, fetch, login, submit
from tests.stores import files

mailsvc = backups.mailsvc
running = backups.running
service = backups.service

# ---- damage --------------------------------------------------------------------------------------


@pytest.fixture
def taken(service: Service, mailsvc: CommandLine, tmp_path: Path) -> Path:
    """A snapshot with three messages of Alice's, and one of Bob's."""
    for number in range(3):
        submit(service, message(number), (ALICE,))
    submit(service, message(3), (BOB,))
    return Path(mailsvc.json("backup", "make", str(tmp_path / "b"))["snapshot"])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a message changed": lambda path: _flip(files(path)[0]),
    "a message cut short": lambda path: os.truncate(files(path)[0], 5),
    "a message missing": lambda path: files(path)[0].unlink(),
    "a message replaced by a link": lambda path: _link(files(path)[0]),
    "a further file": lambda path: (path / "data/further").write_text("x"),
    "the accounts changed": lambda path: _flip(path / "accounts.sqlite"),
    "the manifest changed": lambda path: _flip(path / "manifest"),
    "the manifest cut short": lambda path: os.truncate(path / "manifest", 500),
    "the manifest empty": lambda path: os.truncate(path / "manifest", 0),
    "the manifest without its end": lambda path: (path / "manifest").write_text(
        "".join((path / "manifest").read_text().splitlines(keepends=True)[:-1])),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_and_nothing_restored(
    service: Service, mailsvc: CommandLine, tmp_path: Path, taken: Path, damage: str
) -> None:
    DAMAGE[damage](taken)
    result = mailsvc.runner.invoke(main, ["backup", "verify", str(taken)])
    assert result.exit_code == 1
    assert re.search(f"{re.escape(str(taken))}.*(damaged|missing|not in|cannot be read)",
                     result.output)
    mailsvc.dir = tmp_path / "elsewhere"
    mailsvc.fails("restore", str(taken), "--everything")
    assert not mailsvc.dir.exists()


def test_a_damaged_message_is_put_nowhere_nor_are_the_others(
    service: Service, mailsvc: CommandLine, taken: Path
) -> None:
    fetch(service, ALICE)
    _flip(files(taken / "mail/example.org/alice")[2])
    assert "damaged" in mailsvc.fails("restore", str(taken), "--account", ALICE)
    assert files(service.maildir(ALICE)) == []
    # Bob's are whole.
    fetch(service, BOB)
    mailsvc("restore", str(taken), "--account", BOB)
    assert len(files(service.maildir(BOB))) == 1


@pytest.mark.parametrize("path", ["../x", "/etc/x", "mail/../../x", "data//x", "data/./x", ""])
def test_a_manifest_that_leads_elsewhere_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "s").mkdir()
    writer = manifest.Writer(tmp_path / "s/manifest", {"made": 0})
    writer.add(manifest.Entry(path, 0, 0, ""))
    writer.end()
    manifest.about(tmp_path / "s")
    with pytest.raises(Damaged, match="elsewhere"):
        restore.everything(tmp_path / "s", tmp_path / "d", tmp_path / "m", tmp_path / "a")
    assert [each.name for each in tmp_path.iterdir()] == ["s"]


# ---- restoring mail into a service that runs ----------------------------------------------------


def test_a_mailbox_comes_back_as_it_was(
    service: Service, mailsvc: CommandLine, taken: Path
) -> None:
    before, texts = uidls(service), fetch(service, ALICE)
    assert uidls(service) == []
    submit(service, message(7), (ALICE,))
    [newer] = uidls(service)
    [result] = mailsvc.json("restore", str(taken.parent), "--account", ALICE)
    assert (result["restored"], result["there"]) == (3, 0)
    assert sorted(result["unique_ids"]) == [id.decode() for id in sorted(before)]
    assert [id for id in uidls(service) if id != newer] == before
    assert sorted(fetch(service, ALICE, delete=False))[:3] == sorted(texts)
    # Once more changes nothing.
    [result] = mailsvc.json("restore", str(taken), "--domain", "example.org")[:1]
    assert (result["restored"], result["there"]) == (0, 3)
    assert len(uidls(service)) == 4


def test_it_can_be_deleted_backed_up_and_restored_again(
    service: Service, mailsvc: CommandLine, taken: Path
) -> None:
    before = uidls(service)
    for _ in range(2):
        fetch(service, ALICE)
        mailsvc("restore", str(taken.parent), "--account", ALICE)
        assert uidls(service) == before
        mailsvc("backup", "make", str(taken.parent))


def test_an_open_session_is_not_upset(
    service: Service, mailsvc: CommandLine, taken: Path
) -> None:
    with login(service, ALICE) as pop3:
        pop3.ask(b"DELE 2")
        pop3.ask(b"QUIT")
    with login(service, ALICE) as pop3:
        assert pop3.ask(b"STAT").split()[1] == b"2"
        mailsvc("restore", str(taken), "--account", ALICE)
        assert pop3.ask(b"STAT").split()[1] == b"2"
        pop3.ask(b"RETR 2")
        assert b"Subject: 2" in list(pop3.multiline())
        pop3.ask(b"DELE 1")
        pop3.ask(b"QUIT")
    assert subjects(service, ALICE) == {1: 1, 2: 1}


@pytest.mark.parametrize("which", ["unique-id", "message-id", "message-id without brackets"])
def test_one_message(
    service: Service, mailsvc: CommandLine, taken: Path, which: str
) -> None:
    wanted = {"unique-id": uidls(service)[1].decode(), "message-id": "<1@example.net>",
              "message-id without brackets": "1@example.net"}[which]
    fetch(service, ALICE)
    arguments = ("restore", str(taken), "--account", ALICE, "--message", wanted)
    [told] = mailsvc.json(*arguments, "--dry-run")
    assert told["restored"] == 1
    assert uidls(service) == []
    mailsvc(*arguments)
    assert subjects(service, ALICE) == {1: 1}
    assert "has no message <9@example.net>" in mailsvc.fails(*arguments[:-1], "<9@example.net>")


def test_flags_folders_and_the_quota(
    service: Service, mailsvc: CommandLine, tmp_path: Path
) -> None:
    directory = service.maildir(ALICE)
    (directory / ".Sent/cur").mkdir(parents=True)
    sent = directory / ".Sent/cur/1700000001.M1P1.host,S=3:2,S"
    sent.write_bytes(b"a\r\n")
    flagged = directory / "cur/1700000002.M1P1.host,S=3,W=3:2,RS"
    flagged.write_bytes(b"b\r\n")
    os.utime(flagged, (1_600_000_000, 1_600_000_000))
    mailsvc("backup", "make", str(tmp_path / "b"))
    sent.unlink()
    flagged.unlink()
    quota = maildirsize.Amount(10_000, 10)
    home = os.fsencode(directory)
    assert maildirsize.recalculate(home, quota) == (0, 0)
    assert mailsvc.json("restore", str(tmp_path / "b"), "--account", ALICE)[0]["restored"] == 2
    assert sent.read_bytes() == b"a\r\n"
    [back] = (directory / "cur").iterdir()
    assert back.name.endswith(":2,RS")
    assert back.stat().st_mtime == 1_600_000_000
    assert uidls(service) == [b"1700000002.M1P1.host"]
    assert not maildirsize.has_room(home, quota._replace(messages=2), 1)
    assert maildirsize._read(home).usage == (6, 2)  # type: ignore[union-attr]
    assert mailsvc.json("restore", str(tmp_path / "b"), "--account", ALICE)[0]["there"] == 2
    for path in files(directory):
        path.unlink()


def test_what_cannot_be_meant(service: Service, mailsvc: CommandLine, taken: Path,
                              tmp_path: Path) -> None:
    assert "either" in mailsvc.misused("restore", str(taken))
    assert "either" in mailsvc.misused("restore", str(taken), "--everything", "--account", ALICE)
    assert "whose" in mailsvc.misused("restore", str(taken), "--domain", "example.org",
                                      "--message", "x")
    assert "first add each" in mailsvc.fails("restore", str(taken), "--account", "x@example.org")
    assert "not empty" in mailsvc.fails("restore", str(taken), "--everything")
    assert "no whole snapshot" in mailsvc.fails("restore", str(tmp_path), "--account", ALICE)


def test_accounts_that_are_not_there_are_named(
    mailsvc: CommandLine, taken: Path, tmp_path: Path
) -> None:
    mailsvc.dir = tmp_path / "other"
    mailsvc("domain", "add", "example.org")
    mailsvc("account", "add", "--password-stdin", BOB, stdin="secret pass phrase\n")
    (mailsvc.dir / "mail").mkdir()
    text = mailsvc.fails("restore", str(taken), "--domain", "example.org")
    assert "these accounts are not there: alice@example.org; " in text
    assert "--with-accounts" in text and "mailsvc account add alice@example.org" in text
    mailsvc("account", "remove", "--yes", BOB)
    mailsvc("account", "add", "--password-stdin", "Bob@example.org", stdin="secret pass phrase\n")
    mailsvc("restore", str(taken), "--account", BOB)
    assert (mailsvc.dir / "mail/example.org/Bob").is_dir()
    assert len(contents.homes(os.fsencode(mailsvc.dir / "mail"))) == 1


def test_an_account_comes_back_as_it_was(mailsvc: CommandLine, tmp_path: Path) -> None:
    with Service(tmp_path / "data", ACCOUNTS) as service:
        mailsvc.dir = service.directory
        submit(service, message(1), (ALICE,))
        mailsvc("account", "quota", ALICE, "--messages", "7")
        app = mailsvc("account", "app-password", "add", ALICE, "phone").strip()
        before = mailsvc.json("account", "show", ALICE)
        mailsvc("backup", "make", str(tmp_path / "b"))
        (kept,) = uidls(service)
        mailsvc("account", "remove", "--yes", ALICE)
        shutil.rmtree(service.maildir(ALICE))
        restored = ("restore", str(tmp_path / "b"), "--account", ALICE)
        assert "--with-accounts" in mailsvc.fails(*restored)
        again = (*restored, "--with-accounts")
        (told,) = mailsvc.json(*again, "--dry-run")
        assert (told["made"], told["restored"]) == (True, 1)
        assert "no account" in mailsvc.fails("account", "show", ALICE)
        (told,) = mailsvc.json(*again)
        assert (told["made"], told["restored"]) == (True, 1)
        after = mailsvc.json("account", "show", ALICE)
        # An administrator is made by an administrator.
        assert (before.pop("administrator"), after.pop("administrator")) == (True, False)
        assert {**after, "made": 0} == {**before, "made": 0}
        # Both passwords are good again, and the program finds what it knows.
        assert uidls(service) == [kept]
        service.passwords[ALICE] = app
        assert uidls(service) == [kept]
        (told,) = mailsvc.json(*again)
        assert (told["made"], told["restored"], told["there"]) == (False, 0, 1)
    # In another accounts file app passwords are good for nothing.
    mailsvc.dir = tmp_path / "other"
    mailsvc("domain", "add", "example.com")
    (mailsvc.dir / "mail").mkdir()
    mailsvc(*again)
    assert "have to be made anew: phone." in mailsvc.notes
    assert mailsvc.json("account", "app-password", "list", ALICE) == []
    assert "x@example.org" in mailsvc.fails(
        "restore", str(tmp_path / "b"), "--account", "x@example.org", "--with-accounts")
    assert "leave out" in mailsvc.misused("restore", str(tmp_path), "--everything",
                                          "--with-accounts")
