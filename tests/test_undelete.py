"""Mail that POP3 clients deleted, kept for a time and put back."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_twisted

from mailsvc.errors import SomeNotRemoved
from mailsvc.store import deleted, maildirsize
from mailsvc.store.maildir import MaildirStore
from tests.command_line import CommandLine, fresh_command_line
from tests.service import Service, fetch, login, submit
from tests.stores import ALICE, contents, deliver, files, home, maildir_store
from tests.system_calls import SystemCalls

MESSAGE = b"From: a@example.net\r\nSubject: test\r\nMessage-ID: <1@example.net>\r\n\r\nbody\r\n"
NAME = "alice@example.org"


@pytest_twisted.async_yield_fixture(params=["journal", "fsync", "none"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MaildirStore]:
    """A store that keeps what is deleted."""
    it = maildir_store(tmp_path, keep_deleted_days=2, durability=request.param)
    it.start()
    yield it
    await it.stop()


async def delete(store: MaildirStore, *numbers: int) -> None:
    maildrop = await store.open_maildrop(ALICE)
    await maildrop.update(numbers)


def kept(root: Path) -> list[tuple[str, bytes]]:
    return [(each.day, Path(os.fsdecode(each.path)).read_bytes())
            for each in deleted.kept(os.fsencode(home(root)))]


@pytest_twisted.ensureDeferred
async def test_what_is_deleted_is_kept_and_not_there(store: MaildirStore, tmp_path: Path) -> None:
    for number in range(3):
        await deliver(store, b"%d\r\n" % number)
    flagged = files(tmp_path)[1]
    maildrop = await store.open_maildrop(ALICE)
    flagged.rename(flagged.parent.parent / "cur" / (flagged.name + ":2,S"))
    await maildrop.update([1, 2])
    assert await contents(store) == [b"2\r\n"]
    today = deleted.day_of(time.time())
    assert kept(tmp_path) == [(today, b"0\r\n"), (today, b"1\r\n")]
    assert maildirsize.count(os.fsencode(home(tmp_path))) == (3, 1)
    directory = home(tmp_path) / "deleted"
    assert {path.stat().st_mode & 0o777 for path in (directory, *directory.iterdir())} == {0o700}


@pytest_twisted.ensureDeferred
async def test_it_is_swept_after_its_time(store: MaildirStore, tmp_path: Path) -> None:
    await deliver(store, MESSAGE)
    await delete(store, 1)
    directory = home(tmp_path) / "deleted"
    [today] = directory.iterdir()
    now = time.time()
    for days in range(1, 5):
        day = directory / deleted.day_of(now - days * 86_400)
        day.mkdir()
        (day / f"{days}.a.host").write_bytes(b"x")
    (directory / "notes").mkdir()
    (directory / "notes/x").touch()
    assert await store.sweep() == 2
    assert {path.name for path in directory.iterdir()} == {
        today.name, "notes", *(deleted.day_of(now - days * 86_400) for days in (1, 2))}
    assert (directory / "notes/x").exists()



@pytest.mark.parametrize("call", ["link", "fsync", "mkdir"])
@pytest_twisted.ensureDeferred
async def test_what_cannot_be_kept_stays(
    tmp_path: Path, calls: SystemCalls, call: str
) -> None:
    store = maildir_store(tmp_path, keep_deleted_days=2)
    store.start()
    await deliver(store, MESSAGE)
    calls.fault = lambda index, made: (
        errno.ENOSPC if made.name == call and "deleted" in made.path else None)
    with pytest.raises(SomeNotRemoved):
        await delete(store, 1)
    calls.fault = lambda index, made: None
    assert await contents(store) == [MESSAGE]
    await delete(store, 1)
    assert await contents(store) == []
    assert [content for _, content in kept(tmp_path)] == [MESSAGE]
    await store.stop()


@pytest_twisted.ensureDeferred
async def test_without_hard_links_it_is_copied(
    store: MaildirStore, tmp_path: Path, calls: SystemCalls
) -> None:
    await deliver(store, MESSAGE)
    calls.fault = lambda index, made: (
        errno.EPERM if made.name == "link" and "/deleted/" in made.path else None)
    await delete(store, 1)
    assert [content for _, content in kept(tmp_path)] == [MESSAGE]
    assert await contents(store) == []


@pytest_twisted.ensureDeferred
async def test_it_costs_nothing_when_it_is_off(tmp_path: Path, calls: SystemCalls) -> None:
    store = maildir_store(tmp_path)
    store.start()
    for _ in range(3):
        await deliver(store, MESSAGE)
    maildrop = await store.open_maildrop(ALICE)
    start = len(calls.calls)
    await maildrop.update([1, 2, 3])
    made = [call.name for call in calls.calls[start:] if "journal" not in call.path]
    assert made.count("unlink") == 3
    assert not {"link", "mkdir", "fsync"} & set(made)
    assert not (home(tmp_path) / "deleted").exists()
    await store.stop()


# ---- mailsvc undelete ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> object:
    with Service(tmp_path_factory.mktemp("undelete") / "data", (f"{NAME}:secret",),
                 ("--set", "maildir.keep_deleted_days=7")) as service:
        yield service


@pytest.fixture
def service(running: Service) -> Service:
    """A running service that keeps what is deleted, in which there is nothing yet."""
    fetch(running, NAME)
    for path in running.maildir(NAME).glob("deleted/*/*"):
        path.unlink()
    return running


@pytest.fixture
def mailsvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: Service) -> CommandLine:
    it = fresh_command_line(tmp_path, monkeypatch)
    it.dir = service.directory
    return it


def uidls(service: Service) -> list[bytes]:
    with login(service, NAME) as pop3:
        pop3.ask(b"UIDL")
        return [line.split()[1] for line in pop3.multiline()]


def test_deleted_mail_comes_back(service: Service, mailsvc: CommandLine) -> None:
    submit(service, MESSAGE, (NAME,))
    submit(service, MESSAGE.replace(b"<1@", b"<2@"), (NAME,))
    before = uidls(service)
    texts = fetch(service, NAME)
    listed = mailsvc.json("undelete", NAME, "--list")
    assert {each["unique_id"].encode() for each in listed} == set(before)
    assert {(each["from"], each["subject"]) for each in listed} == {("a@example.net", "test")}
    assert uidls(service) == []
    assert mailsvc("undelete", NAME, "--message", "<2@example.net>") == "1 messages are back\n"
    assert uidls(service) == [before[1]]
    assert "no message <2@example.net> is kept" in mailsvc.fails(
        "undelete", NAME, "--message", "<2@example.net>")
    mailsvc("undelete", NAME, "--since", time.strftime("%Y-%m-%d", time.gmtime()))
    assert sorted(uidls(service)) == sorted(before)
    assert sorted(fetch(service, NAME, delete=False)) == sorted(texts)
    assert mailsvc.json("undelete", NAME) == []
    # And again.
    fetch(service, NAME)
    assert len(mailsvc.json("undelete", NAME)) == 2
    assert sorted(uidls(service)) == sorted(before)


def test_only_what_was_deleted_since(service: Service, mailsvc: CommandLine) -> None:
    submit(service, MESSAGE, (NAME,))
    fetch(service, NAME)
    [today] = (service.maildir(NAME) / "deleted").iterdir()
    today.rename(today.with_name("20260101"))
    assert mailsvc.json("undelete", NAME, "--list", "--since", "2026-01-02") == []
    [old] = mailsvc.json("undelete", NAME, "--list", "--since", "2026-01-01")
    assert old["deleted"] == "2026-01-01"
    assert "2026-01-01" in mailsvc("undelete", NAME, "--list")


def test_a_removal_that_was_broken_off_gives_nothing_back(
    service: Service, mailsvc: CommandLine
) -> None:
    submit(service, MESSAGE, (NAME,))
    [path] = files(service.maildir(NAME))
    directory = Path(os.fsdecode(deleted.Shelf().prepare(
        os.fsencode(service.maildir(NAME)), time.time())))
    os.link(path, directory / path.name)
    assert mailsvc.json("undelete", NAME) == []
    assert len(uidls(service)) == 1


def test_where_nothing_is_kept_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mailsvc = fresh_command_line(tmp_path, monkeypatch)
    mailsvc("domain", "add", "example.org")
    mailsvc("account", "add", "--password-stdin", NAME, stdin="secret pass phrase\n")
    (mailsvc.dir / "mail").mkdir()
    assert mailsvc("undelete", NAME) == "0 messages are back\n"
    assert "keep_deleted_days is 0" in mailsvc.notes
    assert "no account" in mailsvc.fails("undelete", "x@example.org")
