"""Which service a command is about: data that are not there, and what has not run yet."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mailsvc.cli import main
from tests.command_line import CommandLine, fresh_command_line

fresh = pytest.fixture(fresh_command_line)

BOB = "bob@example.org"
#: Commands that look at what a service has kept, and what they say of nothing.
LOOKING = {
    ("queue", "list"): "ID  AGE  SIZE  STATUS  NEXT  FROM  TO  REASON\n",
    ("queue", "stats"): None,
    ("queue", "hold", "--all"): "Held 0 messages\n",
    ("queue", "tls", "list"): "DOMAIN  SINCE  LATEST  VERIFIED  HOST  POLICY\n",
    ("ban", "list"): "NETWORK  UNTIL  TIMES  ORIGIN  REASON\n",
    ("ban", "remove", "all"): "Nothing is banned\n",
    ("dkim", "list"): "DOMAIN  SELECTOR  ALGORITHM  SIGNS\n",
    ("webhook", "list"): "ID  TYPE  TO  SINCE  DUE  ATTEMPTS  PROBLEM\n",
    ("account", "sent"): "ACCOUNT  SENT  MINUTE  HOUR  DAY\n",
}
IDS = [" ".join(command) for command in LOOKING]


@pytest.mark.parametrize("command", LOOKING, ids=IDS)
@pytest.mark.parametrize(("make", "problem"), [
    (lambda data: None, "no such directory"),
    (lambda data: data.write_text(""), "it is no directory"),
    (lambda data: (data / "etc").mkdir(parents=True), "it holds other things"),
], ids=["nothing", "file", "other"])
def test_data_that_are_not_there(command: tuple[str, ...], make: Callable[[Path], object],
                                 problem: str, fresh: CommandLine) -> None:
    make(fresh.dir)
    before = sorted(fresh.dir.parent.rglob("*"))
    for arguments in command, (*command, "--json"):
        if arguments[-2:] == ("all", "--json"):
            continue
        assert fresh.fails(*arguments) == (
            f"there is no mailsvc data in {fresh.dir}: {problem}; name the right place with --dir "
            "or --config (service.data)")
    assert sorted(fresh.dir.parent.rglob("*")) == before, "looking makes nothing"


@pytest.mark.parametrize("command", LOOKING, ids=IDS)
@pytest.mark.parametrize("accounts", [False, True], ids=["empty", "accounts"])
def test_a_service_that_has_kept_nothing(command: tuple[str, ...], accounts: bool,
                                         fresh: CommandLine) -> None:
    if accounts:
        fresh("domain", "add", "example.org")
    else:
        fresh.dir.mkdir()
    said = fresh(*command)
    assert LOOKING[command] in (None, said)


def test_accounts_that_lie_elsewhere(tmp_path: Path, fresh: CommandLine) -> None:
    (tmp_path / "odd" / "things").mkdir(parents=True)
    fresh("domain", "add", "example.org")
    config = tmp_path / "x.toml"
    config.write_text(f"service.data = '{tmp_path / 'odd'}'\n"
                      f"accounts.database = '{fresh.dir / 'accounts.sqlite'}'\n")
    result = fresh.runner.invoke(main, ["--config", str(config), "queue", "list"])
    assert result.exit_code == 0, result.output


# ---- before the first start ---------------------------------------------------------------------


@pytest.fixture
def before_the_first_start(fresh: CommandLine) -> CommandLine:
    fresh("domain", "add", "example.org")
    fresh("account", "add", BOB, "--password-stdin", stdin="secret words")
    return fresh


def test_mail_is_imported(before_the_first_start: CommandLine, tmp_path: Path) -> None:
    run, mbox = before_the_first_start, tmp_path / "mbox"
    mbox.write_text("From a@b Thu Jan  1 00:00:00 2026\nSubject: x\n\nHello.\n")
    assert run("import", BOB, f"mbox:{mbox}", "--dry-run") == "1 messages to import, 0 were there\n"
    assert not (run.dir / "mail").exists()
    assert run("import", BOB, f"mbox:{mbox}") == "1 messages imported, 0 were there\n"
    (message,) = (run.dir / "mail" / "example.org" / "bob").glob("[nc]*/*")
    assert message.read_bytes().endswith(b"Hello.\r\n")
    assert (run.dir / "mail").stat().st_mode & 0o777 == 0o700


def test_nothing_was_deleted(before_the_first_start: CommandLine) -> None:
    assert before_the_first_start("undelete", BOB) == "0 messages are back\n"
    assert before_the_first_start.json("undelete", BOB, "--list") == []
    assert not (before_the_first_start.dir / "mail").exists()


@pytest.mark.parametrize("command", [
    ("stats",), ("reload",), ("sessions",), ("watch", "--address", "192.0.2.7")], ids=" ".join)
def test_a_service_that_this_user_cannot_see(
    command: tuple[str, ...], fresh: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root can see all, so this has to be played."""
    def hidden(call: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(path: Any = ".", *arguments: Any, **options: Any) -> Any:
            if path == fresh.dir:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return call(path, *arguments, **options)

        return refuse

    for name in ("open", "listdir"):
        monkeypatch.setattr(os, name, hidden(getattr(os, name)))
    assert fresh.fails(*command) == (
        f"whether a service runs with the data in {fresh.dir} cannot be seen: Permission denied; "
        "run this as root or as the user that runs mailsvc")


@pytest.mark.parametrize("command", [
    ("dev", "--dir", ""), ("quickstart", BOB, "--dir", ""), ("quickstart", BOB, "--config", ""),
    ("account", "list", "--dir", ""), ("account", "list", "--config", ""), ("backup", "make", "")],
    ids=" ".join)
def test_an_empty_name_is_no_place(
    command: tuple[str, ...], fresh: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As "$DATA" is in a script that has not set it."""
    monkeypatch.chdir(tmp_path)
    assert "it is empty; name a place" in fresh.misused(*command)
    assert not list(tmp_path.iterdir())
