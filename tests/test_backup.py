"""Snapshots of a service that runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mailsvc.backup import snapshot
from mailsvc.backup.snapshot import Origin
from mailsvc.cli import main
from mailsvc.journal import Journal
from mailsvc.queue.spool import Spool
from mailsvc.store import filenames
from tests import backups
from tests.backups import ALICE, BOB, message, subjects, uidls
from tests.command_line import CommandLine
from tests.service import Service, fetch, login, submit
from tests.stores import files

mailsvc = backups.mailsvc
running = backups.running
service = backups.service


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
