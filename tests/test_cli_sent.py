"""The command ``sent``, which stands among those of ``mailsvc account``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import pytest

from mailsvc.cli import place
from mailsvc.cli.sent import sent
from mailsvc.directory import SqliteDirectory
from mailsvc.mail import Account
from mailsvc.names import parse_address
from mailsvc.state import State
from mailsvc.submission.limits import SubmissionSettings
from mailsvc.submission.rates import Ledger

BOB, ALICE = Account("Bob", "example.org"), Account("alice", "example.org")

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs it over a service with Bob, who sent two messages to five, and alice, who sent none."""
    monkeypatch.setattr(place, "SYSTEM_CONFIGURATION", tmp_path / "none.toml")
    with SqliteDirectory(tmp_path / "accounts.sqlite") as directory:
        directory.add_domain("example.org")
        for account in (BOB, ALICE):
            directory.add_account(parse_address(account.name))
    ledger = Ledger(State(tmp_path / "state.sqlite"), SubmissionSettings())
    ledger.count(BOB, 2)
    ledger.count(BOB, 3)
    ledger.close()

    def run(*arguments: str, status: int = 0) -> str:
        result = click.testing.CliRunner().invoke(sent, ["--dir", str(tmp_path), *arguments])
        assert result.exit_code == status, result.output
        return result.stderr if status else result.stdout

    return run


def counts(messages: int, recipients: int, name: str) -> dict[str, Any]:
    return {"name": name, "messages": dict.fromkeys(("minute", "hour", "day"), messages),
            "recipients": dict.fromkeys(("minute", "hour", "day"), recipients)}


def test_a_table(run: Run) -> None:
    assert [line.split() for line in run().splitlines()] == [
        ["ACCOUNT", "SENT", "MINUTE", "HOUR", "DAY"],
        ["bob@example.org", "messages", "2", "2", "2"],
        ["bob@example.org", "recipients", "5", "5", "5"]]
    assert run("ALICE@example.org").splitlines()[1].split() == [
        "alice@example.org", "messages", "0", "0", "0"]


def test_json(run: Run) -> None:
    assert json.loads(run("--json")) == [counts(2, 5, "bob@example.org")]
    assert json.loads(run("alice@example.org", "--json")) == [counts(0, 0, "alice@example.org")]


def test_reset(run: Run) -> None:
    assert json.loads(run("alice@example.org", "--reset", "--json"))
    assert json.loads(run("bob@example.org", "--json")) == [counts(2, 5, "bob@example.org")]
    assert json.loads(run("bob@example.org", "--reset", "--json")) == [
        counts(0, 0, "bob@example.org")]
    assert json.loads(run("--json")) == []


def test_whose_counts_to_reset_must_be_said(run: Run) -> None:
    assert "Say whose counts" in run("--reset", status=2)


def test_an_unknown_account(run: Run) -> None:
    assert run("eve@example.org", status=1) == (
        "Error: there is no account eve@example.org; see `mailsvc account list`\n")


def test_a_file_that_cannot_be_used(run: Run, tmp_path: Path) -> None:
    for name in ("state.sqlite", "state.sqlite-wal", "state.sqlite-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "state.sqlite").write_text("no database")
    text = run(status=1)
    assert text.startswith("Error: ") and text.count("\n") == 1 and "state.sqlite" in text
