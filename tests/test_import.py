"""Mail imported from files: each message once, whatever happens on the way."""

from __future__ import annotations

import fcntl
import json
import mailbox
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailsvc import mailfile
from mailsvc.cli import main
from mailsvc.importing import job
from mailsvc.importing.job import Brought, bring
from mailsvc.importing.ledger import Ledger
from mailsvc.importing.mbox import Mbox
from mailsvc.importing.source import Offer, SourceFailure, arrival, keyed
from mailsvc.mail import Account
from mailsvc.store.deposit import Deposit
from mailsvc.store.listing import Listing, SizeCache
from tests.command_line import CommandLine, fresh_command_line
from tests.service import PATIENCE
from tests.stores import files

ALICE = Account("alice", "example.org")
NAME = "alice@example.org"


@pytest.fixture
def mailsvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """One for a service with an account, whose mailbox is empty."""
    it = fresh_command_line(tmp_path, monkeypatch)
    it("domain", "add", "example.org")
    it("account", "add", "--password-stdin", "--quota-octets", "10", NAME,
       stdin="secret pass phrase\n")
    (it.dir / "mail").mkdir()
    return it


def texts(root: Path) -> list[bytes]:
    """All messages, in the order in which POP3 lists them."""
    listing = _listing(root)
    return [Path(os.fsdecode(listing.path(number))).read_bytes()
            for number in range(1, len(listing) + 1)]


def uidls(root: Path) -> list[bytes]:
    listing = _listing(root)
    return listing.uidls(1, len(listing) + 1)


def _listing(root: Path) -> Listing:
    return Listing(os.fsencode(root / "example.org/alice"), SizeCache())


# ---- mbox ----------------------------------------------------------------------------------------

MBOX = b"""\
From alice@example.net Sat Jan  3 01:05:34 1996
Subject: first
Status: RO
X-Status: AF

From here on
>From a quotation
>>From two
From us: no separator

From MAILER-DAEMON Fri Jul  8 12:08:34 +0200 2011
Subject: DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA

This text is part of the internal format of your mail folder.

From "a b"@example.net Fri Jul  8 12:08:34 2011 +0200
Subject: second

last line without an end"""


@pytest.fixture
def mbox(tmp_path: Path) -> Path:
    path = tmp_path / "box"
    path.write_bytes(MBOX)
    return path


def test_an_mbox(mailsvc: CommandLine, mbox: Path) -> None:
    assert mailsvc("import", NAME, f"mbox:{mbox}") == (
        "left out: a message in which another program keeps its own data\n"
        "2 messages imported, 0 were there\n")
    assert texts(mailsvc.dir / "mail") == [
        b"Subject: first\r\nStatus: RO\r\nX-Status: AF\r\n\r\nFrom here on\r\nFrom a quotation\r\n"
        b">From two\r\nFrom us: no separator\r\n",
        b"Subject: second\r\n\r\nlast line without an end\r\n"]
    first, second = sorted(files(mailsvc.dir / "mail"), key=lambda path: path.name)
    assert first.name.endswith(":2,FRS")
    assert first.stat().st_mtime == 820_631_134
    assert second.parent.name == "new"
    assert second.stat().st_mtime == 1_310_119_714
    assert mailsvc("import", NAME, str(mbox)).endswith("0 messages imported, 2 were there\n")


def test_an_mbox_that_grows_and_shrinks(mailsvc: CommandLine, mbox: Path) -> None:
    mailsvc("import", NAME, str(mbox))
    second = MBOX[MBOX.index(b'From "a b"'):]
    mbox.write_bytes(second + b"\n\nFrom x@example.net Sat Jan  3 01:05:34 2015\nSubject: 3\n\n3\n")
    told = mailsvc.json("import", NAME, str(mbox))
    assert (told["imported"], told["before"]) == (1, 1)
    assert texts(mailsvc.dir / "mail")[-1] == b"Subject: 3\r\n\r\n3\r\n"


def test_two_equal_messages_are_two(mailsvc: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "box").write_bytes(b"From a@b Sat Jan  3 01:05:34 2015\n\nsame\n\n" * 3)
    for imported, before in ((3, 0), (0, 3)):
        told = mailsvc.json("import", NAME, str(tmp_path / "box"))
        assert (told["imported"], told["before"]) == (imported, before)


@pytest.mark.parametrize(("content", "error"), [
    (b"Subject: a\n\n", "is no mbox: it begins with b'Subject: a"),
    (b"From me to you\n\n", "is no mbox"),
    (b"\n\n", "is no mbox")])
def test_what_is_no_mbox(mailsvc: CommandLine, tmp_path: Path, content: bytes,
                         error: str) -> None:
    (tmp_path / "box").write_bytes(content)
    told = mailsvc.runner.invoke(
        main,
        ["--dir", str(mailsvc.dir), "import", NAME, str(tmp_path / "box")])
    assert told.exit_code == 1
    assert error in told.stderr


def test_an_empty_mbox_and_one_in_use(mailsvc: CommandLine, mbox: Path) -> None:
    with mbox.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SourceFailure, match="in use"):
            Mbox(mbox)
    mbox.write_bytes(b"")
    assert mailsvc.json("import", NAME, str(mbox))["imported"] == 0


@settings(max_examples=25)
@given(st.lists(st.binary(max_size=60).map(
    lambda text: text.replace(b"\r", b"").replace(b"\0", b"F")), min_size=1, max_size=5))
def test_what_our_own_mbox_writer_wrote_is_read(bodies: list[bytes]) -> None:
    # hypothesis and tmp_path do not go together.
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "box"
        sent = []
        for body in bodies:
            message = b"Subject: x\r\n\r\n" + b"".join(
                line + b"\r\n" for line in [b"From a Sat Jan  3 01:05:34 2015", *body.split(b"\n")])
            sent.append(message)
            with mailfile.Mbox(path).message() as write:
                write(message)
        source = Mbox(path)
        got = [b"".join(blocks).replace(b"\n", b"\r\n")
               for _, blocks in source.fetch(source.offers())]
        source.close()
        assert got == sent


# ---- maildir -------------------------------------------------------------------------------------


def test_a_maildir(mailsvc: CommandLine, tmp_path: Path) -> None:
    old = mailbox.Maildir(tmp_path / "old")
    sent = old.add_folder("Sent")
    message = mailbox.MaildirMessage(b"Subject: in\n\nin\n")
    message.set_flags("RS")
    message.set_subdir("cur")
    message.set_date(1_500_000_000)
    name = old.add(message)
    sent.add(b"Subject: sent\n\nsent\n")
    text = mailsvc("import", NAME, f"maildir:{tmp_path / 'old'}")
    assert "left out: folder Sent with 1 messages; --folder Sent brings them" in text
    assert texts(mailsvc.dir / "mail") == [b"Subject: in\r\n\r\nin\r\n"]
    [path] = files(mailsvc.dir / "mail")
    assert path.name.endswith(":2,RS")
    assert path.stat().st_mtime == 1_500_000_000
    assert uidls(mailsvc.dir / "mail") == [name.encode()]
    told = mailsvc.json("import", NAME, str(tmp_path / "old"), "--folder", "Sent")
    assert (told["imported"], told["before"]) == (1, 1)
    assert "has no folder Trash; it has Sent" in mailsvc.runner.invoke(
        main,
        ["--dir", str(mailsvc.dir), "import", NAME, str(tmp_path / "old"), "--folder", "Trash"]
    ).stderr


def test_two_messages_of_one_name_are_both_brought(mailsvc: CommandLine, tmp_path: Path) -> None:
    for part in ("tmp", "new", "cur"):
        (tmp_path / "old" / part).mkdir(parents=True)
    names = ["new/1.M1P1.h,S=2", "cur/1.M1P1.h,S=2:2,S", "cur/2.M1P1.h,S=2,W=3:2,",
             "cur/2.M1P1.h,S=2:2,S", "new/3.M1P1.h,S=2"]
    for number, name in enumerate(names):
        (tmp_path / "old" / name).write_bytes(b"%d\n" % number)
    told = mailsvc.json("import", NAME, f"maildir:{tmp_path / 'old'}")
    assert (told["imported"], told["before"], told["renamed"]) == (5, 0, 0)
    assert sorted(texts(mailsvc.dir / "mail")) == [b"%d\r\n" % n for n in range(5)]
    ids = uidls(mailsvc.dir / "mail")
    assert [id for id in ids if not id.startswith(b".")] == [b"3.M1P1.h"]
    # A program flags one of them.
    (tmp_path / "old" / names[1]).rename(tmp_path / "old/cur/1.M1P1.h,S=2:2,RS")
    told = mailsvc.json("import", NAME, f"maildir:{tmp_path / 'old'}")
    assert (told["imported"], told["before"]) == (0, 5)


def test_files_as_root_belong_to_the_owner_of_the_mail(
    mailsvc: CommandLine, mbox: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    # Below tmp_path, which is root's alone, nobody could do anything.
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        shutil.copytree(mailsvc.dir, Path(directory) / "data")
        mailsvc.dir = Path(directory) / "data"
        for path in (mailsvc.dir, *mailsvc.dir.rglob("*")):
            os.chown(path, 65_534, 65_534)
        mailsvc("import", NAME, str(mbox))
        assert len(files(mailsvc.dir / "mail")) == 2
        assert {path.stat().st_uid for path in mailsvc.dir.rglob("*")} == {65_534}
        mailsvc("backup", "make", directory + "/backup")
        for path in files(mailsvc.dir / "mail"):
            path.unlink()
        mailsvc("restore", directory + "/backup", "--account", NAME)
        assert len(files(mailsvc.dir / "mail")) == 2
        assert {path.stat().st_uid for path in mailsvc.dir.rglob("*")} == {65_534}
    assert os.geteuid() == 0


# ---- once ----------------------------------------------------------------------------------------


class Source:
    """Messages, of which one may fail.

    :ivar failing: the number of the message that fails.
    """

    name = "test:source"

    def __init__(self, number: int, *, ids: bool = False, prefix: str = "") -> None:
        self.notes: list[str] = []
        self.failing = -1
        self.asked: list[int] = []
        self._offers = [Offer(f"{prefix}{n}", 10, 1e9 + n, "", b"id%d" % n if ids else None, n)
                        for n in range(number)]

    def offers(self) -> list[Offer]:
        return self._offers

    def fetch(self, offers: Iterable[Offer]) -> Iterator[tuple[Offer, Iterable[bytes] | None]]:
        ahead = list(offers)  # as far ahead as can be
        for offer in ahead:
            self.asked.append(offer.place)
            if offer.place == self.failing:
                raise SourceFailure("the line went dead")
            yield offer, [b"Subject: %d\n" % offer.place, b"\nbody\n"]

    def close(self) -> None:
        pass


def run(root: Path, source: Source, **options: Any) -> Brought:
    brought = Brought()
    (root / "mail").mkdir(exist_ok=True)
    bring(source, Deposit(root / "mail", ALICE, "host"), Ledger(root / "ledger", source.name),
          brought, **options)
    return brought


def numbers(root: Path) -> list[int]:
    return [int(text.split()[1]) for text in texts(root / "mail")]


@pytest.mark.parametrize("ids", [False, True], ids=["without unique-ids", "with unique-ids"])
@pytest.mark.parametrize("failing", [0, 1, 9, 10, 11, 24])
def test_one_that_broke_off_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int, ids: bool
) -> None:
    monkeypatch.setattr(job, "_TOGETHER", 10)
    source = Source(25, ids=ids)
    source.failing = failing
    with pytest.raises(SourceFailure):
        run(tmp_path, source)
    again = Source(25, ids=ids)
    done = run(tmp_path, again)
    assert again.asked == list(range(failing, 25))
    assert (done.imported, done.before) == (25 - failing, failing)
    assert numbers(tmp_path) == list(range(25))
    if ids:
        assert uidls(tmp_path / "mail") == [b"id%d" % n for n in range(25)]


def _killed(root: Path, after: int, *, ids: bool) -> bool:
    """Import in a process that is killed before its call number *after*; whether it came to that.
    """
    child = os.fork()
    if child == 0:
        calls = 0

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls > after:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)
            return call

        for name in ("open", "link", "unlink", "write", "fsync", "mkdir"):
            setattr(os, name, counted(getattr(os, name)))
        try:
            run(root, Source(2, ids=ids))
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("ids", [False, True], ids=["without unique-ids", "with unique-ids"])
def test_one_that_was_killed_anywhere_goes_on(tmp_path: Path, ids: bool) -> None:
    after = 0
    while True:
        root = tmp_path / str(after)
        root.mkdir()
        killed = _killed(root, after, ids=ids)
        run(root, Source(2, ids=ids))
        assert numbers(root) == [0, 1], after
        assert run(root, Source(2, ids=ids)).imported == 0
        if not killed:
            break
        after += 1
    assert after > 15


def test_what_was_deleted_since_does_not_come_again(tmp_path: Path) -> None:
    run(tmp_path, Source(3, ids=True))
    for path in files(tmp_path / "mail"):
        path.unlink()
    assert run(tmp_path, Source(5, ids=True)).imported == 2
    assert numbers(tmp_path) == [3, 4]


def test_another_message_with_the_same_unique_id_is_no_loss(tmp_path: Path) -> None:
    run(tmp_path, Source(3, ids=True))
    (tmp_path / "ledger").rename(tmp_path / "old")
    # The same messages, of which nobody knows any more that they were imported.
    done = run(tmp_path, Source(3, ids=True))
    assert (done.imported, done.before) == (0, 3)
    (tmp_path / "ledger").unlink()
    for path in files(tmp_path / "mail"):
        path.write_bytes(path.read_bytes().replace(b"body", b"else"))
    done = run(tmp_path, Source(3, ids=True))
    assert (done.imported, done.before, done.renamed) == (3, 0, 3)
    assert len(set(uidls(tmp_path / "mail"))) == 6
    assert {b"id0", b"id1", b"id2"} <= set(uidls(tmp_path / "mail"))
    assert run(tmp_path, Source(3, ids=True)).imported == 0


def test_a_ledger_that_was_cut_short_is_read(tmp_path: Path) -> None:
    run(tmp_path, Source(3))
    ledger = tmp_path / "ledger"
    ledger.write_bytes(ledger.read_bytes() + b'["begin", "3", "X')
    assert run(tmp_path, Source(5)).imported == 2
    assert numbers(tmp_path) == [0, 1, 2, 3, 4]
    assert run(tmp_path, Source(5)).imported == 0


def test_a_dry_run_changes_nothing(mailsvc: CommandLine, mbox: Path) -> None:
    told = mailsvc.json("import", NAME, str(mbox), "--dry-run")
    assert (told["imported"], told["before"]) == (2, 0)
    assert not list((mailsvc.dir / "mail").rglob("new/*"))
    assert mailsvc.json("import", NAME, str(mbox))["imported"] == 2


def test_keys_of_equal_ids_differ() -> None:
    assert list(keyed(["a", "b", "a", "a"])) == [
        ("a", True), ("b", True), ("a #2", False), ("a #3", False)]


@pytest.mark.parametrize(("head", "when"), [
    (b"Received: from a\r\n by b; Sat, 21 Nov 2026 09:30:00 +0100\r\n"
     b"Date: Fri, 20 Nov 2026 09:30:00 +0000\r\n\r\n", 1_795_249_800),
    (b"Date: Fri, 20 Nov 2026 09:30:00 +0000\n\n", 1_795_167_000),
    (b"Received: nonsense\r\nDate: Fri, 20 Nov 2026 09:30:00 +0000\r\n\r\n", 1_795_167_000),
])
def test_when_a_message_arrived(head: bytes, when: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_900_000_000.0)
    assert arrival(head) == when


@pytest.mark.parametrize("head", [
    b"", b"Date: \xff\xfe\r\n\r\n", b"Date: Fri, 99 Nov 2026 09:30:00\r\n\r\n",
    b"Date: Fri, 20 Nov 99999 09:30:00 +0000\r\n", b"Date: Thu, 1 Jan 1925 00:00:00 +0000\r\n",
    b"Date: Fri, 20 Nov 2050 09:30:00 +9999\r\n", b"Received: ;;;;\r\n", b"\0" * 100])
def test_who_lies_about_the_time_arrived_now(
    head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_900_000_000.0)
    assert arrival(head) == 1_900_000_000


@given(st.binary(max_size=200))
def test_any_octets_have_a_time(head: bytes) -> None:
    assert arrival(b"Date: " + head) > 0


# ---- command line --------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "error"), [
    (["pop3s://old.example.net"], "add --user NAME"),
    (["imaps://bob@"], "names no host"),
    (["pop3s://bob@old.example.net", "--folder", "x"], "POP3 has no folders"),
    (["nowhere"], "there is no nowhere; expected mbox:FILE, maildir:DIR, or pop3s://HOST"),
    (["imap://bob@old.example.net", "--tls", "no", "--password-stdin"], "unencrypted"),
])
def test_what_cannot_be_meant(mailsvc: CommandLine, arguments: list[str], error: str) -> None:
    assert error in mailsvc.misused("import", NAME, *arguments)


def test_options_of_servers_and_accounts_that_are_not_there(
    mailsvc: CommandLine, mbox: Path
) -> None:
    assert "--user is for servers" in mailsvc.misused("import", NAME, str(mbox), "--user", "x")
    assert "an mbox has no folders" in mailsvc.misused("import", NAME, str(mbox), "--folder", "x")
    assert "first add it" in mailsvc.fails("import", "bob@example.org", str(mbox))


def test_a_server_that_is_not_there(mailsvc: CommandLine) -> None:
    for scheme in ("imap", "imaps"):
        result = mailsvc.runner.invoke(
            main,
            ["--dir", str(mailsvc.dir), "import", NAME, f"{scheme}://bob@127.0.0.1:1", "--json",
             "--password-stdin"], input="secret\n")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["error"]
        assert "Traceback" not in result.output


@pytest.mark.parametrize("host", ["old..example", f"{'x' * 64}.example"], ids=["empty", "long"])
def test_a_name_that_no_host_has(mailsvc: CommandLine, host: str) -> None:
    result = mailsvc.runner.invoke(
        main, ["--dir", str(mailsvc.dir), "import", NAME, f"imaps://bob@{host}",
               "--password-stdin"], input="secret\n")
    assert result.exit_code == 1 and "host" in result.stderr, result.output
    assert isinstance(result.exception, SystemExit)


def test_a_password_that_login_cannot_take(mailsvc: CommandLine) -> None:
    def serve(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        connection.settimeout(PATIENCE)
        with connection, connection.makefile("rwb", buffering=0) as stream:
            stream.write(b"* OK here\r\n")
            tag = stream.readline().split()[0]
            stream.write(b"* CAPABILITY IMAP4rev1\r\n" + tag + b" OK done\r\n")
            stream.readline()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(PATIENCE)
        server = threading.Thread(target=serve, args=(listening,))
        server.start()
        port = listening.getsockname()[1]
        result = mailsvc.runner.invoke(
            main, ["--dir", str(mailsvc.dir), "import", NAME, f"imap://bob@127.0.0.1:{port}",
                   "--tls", "no", "--password-stdin"], input="gehe\u00efm\n")
        server.join(PATIENCE)
    assert result.exit_code == 1 and "ASCII alone" in result.stderr, result.output
