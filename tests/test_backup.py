"""Snapshots of a service that runs, and what is restored from them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mailsvc.backup import manifest, restore, snapshot
from mailsvc.backup.manifest import Damaged
from mailsvc.backup.snapshot import Origin
from mailsvc.cli import main
from mailsvc.journal import Journal
from mailsvc.queue.spool import Spool
from mailsvc.store import contents, filenames, maildirsize
from tests.command_line import CommandLine, fresh_command_line
from tests.service import Service, fetch, login, submit
from tests.stores import files

ALICE, BOB = "alice@example.org", "bob@example.org"
ACCOUNTS = (f"{ALICE}:secret", f"{BOB}:secret")


def message(number: int) -> bytes:
    return (b"Subject: %d\r\nMessage-ID: <%d@example.net>\r\n\r\n" % (number, number)
            + b"line\r\n" * (number % 50))


def uidls(service: Service, account: str = ALICE) -> list[bytes]:
    with login(service, account) as pop3:
        pop3.ask(b"UIDL")
        found = [line.split()[1] for line in pop3.multiline()]
        pop3.ask(b"QUIT")
    return found


@pytest.fixture
def mailsvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    return fresh_command_line(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("backup") / "data", ACCOUNTS) as service:
        yield service


@pytest.fixture
def service(running: Service, mailsvc: CommandLine) -> Service:
    """A running service without mail, which the command line is about."""
    for account in (ALICE, BOB):
        fetch(running, account)
    mailsvc.dir = running.directory
    return running


# ---- taking --------------------------------------------------------------------------------------


class Load:
    """Clients that deliver and delete, and a program that flags, until stopped.

    :ivar accepted: the numbers of messages that were acknowledged, each with when.
    :ivar deleted: unique-ids, each with when its deletion was acknowledged.
    """

    def __init__(self, service: Service) -> None:
        self.accepted: dict[int, float] = {}
        self.deleted: dict[bytes, float] = {}
        self.failures: list[BaseException] = []
        self._service = service
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._guarded, args=(work,))
                         for work in (self._deliver, self._deliver, self._delete, self._flag)]
        self._numbers = iter(range(1_000_000))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        assert not self.failures

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            while not self._over.is_set():
                work()
        except BaseException as error:
            self.failures.append(error)

    def _deliver(self) -> None:
        number = next(self._numbers)
        time.sleep(0.01)
        submit(self._service, message(number), (ALICE, BOB))
        self.accepted[number] = time.time()

    def _delete(self) -> None:
        time.sleep(0.02)
        with login(self._service, ALICE) as pop3:
            pop3.ask(b"UIDL")
            there = [line.split() for line in pop3.multiline()][:5]
            for number, _ in there:
                pop3.ask(b"DELE " + number)
            pop3.ask(b"QUIT")
        self.deleted.update((unique_id, time.time()) for _, unique_id in there)

    def go_on(self) -> None:
        """Wait until more was delivered and deleted."""
        accepted, deleted = len(self.accepted), len(self.deleted)
        deadline = time.monotonic() + 30
        while len(self.accepted) < accepted + 10 or len(self.deleted) < deleted + 5:
            assert not self.failures
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def _flag(self) -> None:
        for path in files(self._service.maildir(BOB))[-20:]:
            name = path.name.partition(":")[0]
            flags = ":2,S" if not path.name.endswith("S") else ":2,"
            path.rename(path.parent.parent / "cur" / (name + flags))


def subjects(service: Service, account: str) -> dict[int, int]:
    """How often each number is in the mailbox."""
    found: dict[int, int] = {}
    for text in fetch(service, account, delete=False):
        number = int(text.partition(b"Subject: ")[2].split(b"\r\n")[0])
        found[number] = found.get(number, 0) + 1
    return found


def test_a_backup_under_load_is_restored_elsewhere(
    service: Service, mailsvc: CommandLine, tmp_path: Path
) -> None:
    place = tmp_path / "backup"
    with Load(service) as load:
        load.go_on()
        mailsvc("backup", "make", str(place))
        load.go_on()
        began = time.time()
        made = mailsvc.json("backup", "make", str(place))
        load.go_on()
    assert made["linked"] > 0 < made["copied"]
    assert mailsvc("backup", "verify", str(place), "--all").count("is whole") == 2
    names = {account: {path.name.partition(":")[0] for path in files(
        Path(made["snapshot"]) / "mail/example.org" / account[:-12])} for account in (ALICE, BOB)}

    mailsvc.dir = tmp_path / "elsewhere"
    mailsvc("restore", str(place), "--everything")
    with Service(mailsvc.dir) as restored:
        restored.passwords = service.passwords
        for account in (ALICE, BOB):
            listed = uidls(restored, account)
            assert set(listed) == {filenames.unique_id(os.fsencode(name))
                                   for name in names[account]}
            assert len(listed) == len(set(listed))
        # What was acknowledged before is there, once, unless it was deleted before the end.
        at_bobs = subjects(restored, BOB)
        before = {number for number, when in load.accepted.items() if when < began}
        assert before
        assert before <= set(at_bobs)
        assert set(at_bobs.values()) == {1}
        assert set(at_bobs) <= set(load.accepted)
        gone = {id for id, when in load.deleted.items() if when < began}
        assert gone
        assert not gone & set(uidls(restored, ALICE))
        submit(restored, message(0), (ALICE,))


def test_what_was_there_before_takes_no_room(
    service: Service, mailsvc: CommandLine, tmp_path: Path
) -> None:
    submit(service, message(1), (ALICE,))
    first = mailsvc.json("backup", "make", str(tmp_path / "b"))
    submit(service, message(2), (ALICE,))
    old = next(iter(files(service.maildir(ALICE))))
    flagged = old.rename(old.parent.parent / "cur" / (old.name + ":2,S"))
    second = mailsvc.json("backup", "make", str(tmp_path / "b"))
    assert (second["linked"], second["copied"]) == (1, 1)
    assert {path.stat().st_nlink for path in files(Path(second["snapshot"]))} == {1, 2}
    kept = Path(second["snapshot"]) / "mail/example.org/alice/cur" / flagged.name
    assert kept.read_bytes() == flagged.read_bytes()
    assert kept.stat().st_mtime_ns == flagged.stat().st_mtime_ns
    modes = {path.stat().st_mode & 0o777 for path in Path(first["snapshot"]).rglob("*")}
    assert modes == {0o700, 0o600}
    assert Path(first["snapshot"]).stat().st_mode & 0o777 == 0o700
    removed = mailsvc.json("backup", "make", str(tmp_path / "b"), "--keep", "1")["removed"]
    assert removed == [first["snapshot"], second["snapshot"]]
    [left] = mailsvc.json("backup", "list", str(tmp_path / "b"))
    assert left["damaged"] is None
    assert "is whole" in mailsvc("backup", "verify", str(tmp_path / "b"), "--all")


def test_another_file_of_the_same_name_is_copied(
    service: Service, mailsvc: CommandLine, tmp_path: Path
) -> None:
    path = service.maildir(ALICE) / "new/1700000000.M1P1.host"
    path.write_bytes(b"Subject: one\n\n")
    mailsvc("backup", "make", str(tmp_path / "b"))
    path.write_bytes(b"Subject: two\n\n")
    os.utime(path, (1, 1))
    made = mailsvc.json("backup", "make", str(tmp_path / "b"))
    assert (made["linked"], made["copied"]) == (0, 1)
    assert files(Path(made["snapshot"]))[0].read_bytes() == b"Subject: two\n\n"


def test_two_messages_of_one_name_are_both_in_it_and_come_back(
    service: Service, mailsvc: CommandLine, tmp_path: Path
) -> None:
    maildir = service.maildir(ALICE)
    one, other = maildir / "new/1700000000.M1P1.host", maildir / "cur/1700000000.M1P1.host:2,S"
    one.write_bytes(b"Subject: one\r\n\r\n")
    other.write_bytes(b"Subject: two\r\n\r\n")
    # Neither time nor size tells them apart.
    for path in (one, other):
        os.utime(path, (1, 1))
    for _ in range(2):
        made = mailsvc.json("backup", "make", str(tmp_path / "b"))
        assert (made["linked"], made["copied"]) == (0, 2)
        assert {path.read_bytes() for path in files(Path(made["snapshot"]))} == {
            one.read_bytes(), other.read_bytes()}
    texts = sorted(fetch(service, ALICE))
    for restored, there in ((2, 0), (0, 2)):
        [result] = mailsvc.json("restore", str(tmp_path / "b"), "--account", ALICE)
        assert (result["restored"], result["there"]) == (restored, there)
    assert sorted(fetch(service, ALICE)) == texts


def test_one_that_was_killed_is_none(service: Service, mailsvc: CommandLine,
                                     tmp_path: Path) -> None:
    place = tmp_path / "b"
    stuck = subprocess.Popen(
        [sys.executable, "-c",
         "import os, time, sys\n"
         "from mailsvc.backup import snapshot\n"
         "snapshot.sync_tree = lambda draft: (print('here', flush=True), time.sleep(60))\n"
         "from mailsvc.cli import main; main()",
         "--dir", str(service.directory), "backup", "make", str(place)],
        stdout=subprocess.PIPE)
    assert stuck.stdout is not None
    with stuck:
        assert stuck.stdout.readline() == b"here\n"
        assert "under way" in mailsvc.fails("backup", "make", str(place))
        stuck.send_signal(signal.SIGKILL)
    assert "no whole snapshot" in mailsvc.fails("backup", "verify", str(place))
    assert "no whole snapshot" in mailsvc.fails("restore", str(place), "--account", ALICE)
    assert [path.name[:9] for path in place.iterdir() if path.is_dir()] == [".partial-"]
    assert mailsvc.json("backup", "list", str(place)) == []
    mailsvc("backup", "make", str(place))
    assert not list(place.glob(".partial-*"))


@pytest.mark.parametrize("failing", ["sync_tree", "_is_sqlite"])
def test_one_that_fails_leaves_nothing(
    service: Service, mailsvc: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    failing: str
) -> None:
    def full(path: Any) -> None:
        raise OSError(28, "No space left on device", "/backup/x")

    monkeypatch.setattr(snapshot, failing, full)
    assert mailsvc.fails("backup", "make", str(tmp_path / "b")) == (
        "/backup/x: No space left on device")
    assert [path.name for path in (tmp_path / "b").iterdir()] == [".lock"]


def test_mail_that_the_disk_does_not_give_back_is_told(
    service: Service, mailsvc: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        submit(service, message(number), (ALICE,))
    bad = files(service.maildir(ALICE))[1]
    real = os.read

    def read(fd: int, octets: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{fd}") == str(bad):
            raise OSError(5, "Input/output error")
        return real(fd, octets)

    monkeypatch.setattr(os, "read", read)
    result = mailsvc.runner.invoke(
        main,
        ["--dir", str(mailsvc.dir), "backup", "make", str(tmp_path / "b")])
    assert result.exit_code == 1
    assert f"*** {bad} cannot be read" in result.stderr
    assert "2 messages copied" in result.stdout
    monkeypatch.undo()
    assert "is whole" in mailsvc("backup", "verify", str(tmp_path / "b"))


def test_a_damaged_sqlite_file_is_named(mailsvc: CommandLine, tmp_path: Path) -> None:
    mailsvc("domain", "add", "example.org")
    path = mailsvc.dir / "accounts.sqlite"
    content = bytearray(path.read_bytes())
    content[4096:8192] = b"\xff" * 4096
    path.write_bytes(content)
    assert f"{path} cannot be copied" in mailsvc.fails("backup", "make", str(tmp_path / "b"))
    assert [each.name for each in (tmp_path / "b").iterdir()] == [".lock"]


def test_where_no_backup_is_taken(service: Service, mailsvc: CommandLine, tmp_path: Path) -> None:
    assert "which is what is to be copied" in mailsvc.fails(
        "backup", "make", str(service.directory / "backup"))
    assert "no directory" in CommandLine(tmp_path / "none").fails(
        "backup", "make", str(tmp_path / "b"))
    assert not (tmp_path / "b").exists()


def test_mail_that_a_power_loss_may_have_spoilt_is_not_copied(tmp_path: Path) -> None:
    mail = tmp_path / "data/mail"
    mail.mkdir(parents=True)
    journal = Journal(os.fsencode(mail) + b"/.journal", boot=b"another boot    ")
    journal.open(lambda orphans: None)
    assert not Journal(journal.directory).awaits_recovery()
    journal.append([b"record"])
    origin = Origin("host", tmp_path / "data", tmp_path / "data/accounts.sqlite", mail)
    assert Journal(journal.directory).awaits_recovery()
    with pytest.raises(snapshot.Refused, match="start the service"):
        snapshot.take(origin, tmp_path / "b")
    journal.close()
    # Where it is of this boot, the kernel has all that was written.
    assert not Journal(journal.directory, boot=journal.boot).awaits_recovery()


def test_the_queue_is_in_it(mailsvc: CommandLine, tmp_path: Path) -> None:
    root = mailsvc.dir / "queue"
    mailsvc("domain", "add", "example.org")
    for part in ("message", "state", "incoming", "unreadable"):
        (root / part).mkdir(parents=True)
    (root / "message/0A").write_bytes(b"envelope\nmessage")
    (root / "state/0A").write_bytes(b"{}")
    (root / "state/0B").write_bytes(b"left over")
    (root / "incoming/0C").write_bytes(b"half")
    (root / "unreadable/0D").write_bytes(b"?")
    made = mailsvc.json("backup", "make", str(tmp_path / "b"))
    assert made["queued"] == 1
    queue = Path(made["snapshot"]) / "data/queue"
    assert sorted(str(path.relative_to(queue)) for path in queue.rglob("*/*")) == [
        "message/0A", "state/0A", "unreadable/0D"]
    assert Spool(root).ids() == {"0A"}


def test_the_configuration_and_its_certificates_are_in_it(
    mailsvc: CommandLine, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    mailsvc("domain", "add", "example.org")
    (tmp_path / "live").mkdir()
    (tmp_path / "pair.pem").write_text("certificate and key")
    (tmp_path / "live/mail.pem").symlink_to(tmp_path / "pair.pem")
    toml = tmp_path / "mailsvc.toml"
    toml.write_text(f'[service]\ndata = "{data}"\n'
                    f'[tls]\ncertificates = ["{tmp_path}/live/mail.pem"]\n')
    result = mailsvc.runner.invoke(main, ["--config", str(toml), "backup", "make", "--json",
                                          str(tmp_path / "b")])
    assert result.exit_code == 0, result.output
    etc = Path(json.loads(result.stdout)["snapshot"]) / "etc"
    assert (etc / "mailsvc.toml").read_text() == toml.read_text()
    [pair] = (etc / "tls").iterdir()
    assert pair.read_text() == "certificate and key"
    mailsvc.dir = tmp_path / "new"
    assert str(etc / "mailsvc.toml") in mailsvc("restore", str(tmp_path / "b"), "--everything")


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
