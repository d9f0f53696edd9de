"""Runs the command ``mailsvc``, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click.testing
import pytest

from mailsvc.cli import main, place
from mailsvc.directory import SqliteDirectory
from mailsvc.names import parse_address


class CommandLine:
    """Runs ``mailsvc`` with ``--dir`` set."""

    def __init__(self, directory: Path) -> None:
        self.dir = directory
        self.runner = click.testing.CliRunner()

    def __call__(self, *arguments: str, stdin: str | bytes | None = None,
                 status: int = 0) -> str:
        """What it printed on standard output, or on standard error when it fails."""
        result = self.runner.invoke(main, ["--dir", str(self.dir), *arguments], input=stdin,
                                    prog_name="mailsvc")
        assert result.exit_code == status, result.output
        if status:
            assert result.stdout == "", "nothing is printed by a command that fails"
            return result.stderr
        self.notes = result.stderr
        return result.stdout

    def fails(self, *arguments: str, stdin: str | bytes | None = None) -> str:
        """The one line that a failing command says, without its ``Error:``."""
        text = self(*arguments, stdin=stdin, status=1)
        assert text.startswith("Error: ") and text.count("\n") == 1
        return text.removeprefix("Error: ").rstrip("\n")

    def misused(self, *arguments: str) -> str:
        """What it says of a wrong command line."""
        text = self(*arguments, status=2)
        assert text.startswith("Usage: mailsvc")
        return text.rpartition("Error: ")[2].rstrip("\n")

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))

    def directory(self) -> SqliteDirectory:
        return SqliteDirectory(self.dir / "accounts.sqlite", create=False)

    def login(self, name: str) -> tuple[str | None, str | None]:
        with self.directory() as directory:
            found = directory.credentials(name)
            assert found
            return found.verifier, found.secret


def fresh_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """One for a service that there is not yet; made a fixture by the tests that need it."""
    monkeypatch.setattr(place, "SYSTEM_CONFIGURATION", tmp_path / "none.toml")
    return CommandLine(tmp_path / "data")


def populated(fresh: CommandLine) -> CommandLine:
    """example.org with the accounts Bob and alice; likewise, beside the fixture *fresh*."""
    fresh("domain", "add", "example.org")
    with fresh.directory() as directory:
        directory.add_account(parse_address("Bob@example.org"), verifier="$old", secret="old")
        directory.add_account(parse_address("alice@example.org"))
    return fresh
