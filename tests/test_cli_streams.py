"""mailsvc.cli.streams: what goes wrong with a command beside its work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.command_line import CommandLine
from tests.service import PATIENCE, Dialogue, Service, fetch

MAILSVC = [sys.executable, "-m", "mailsvc"]
KOREAN = "홍길동@example.org"
#: Commands that print something, with the service of the fixture.
PRINTING = {
    "help": ("--help",),
    "table": ("account", "list"),
    "json": ("queue", "list", "--json"),
    "reference": ("config", "reference"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("streams") / "data"
    run = CommandLine(data)
    run("domain", "add", "example.org")
    run("account", "add", KOREAN, "--password-stdin", stdin="s3cret words")
    return data


def shell(script: str, data: Path, *arguments: str, **environment: str
          ) -> subprocess.CompletedProcess[bytes]:
    """*script*, in which "$@" is mailsvc with *arguments*."""
    return subprocess.run(["/bin/bash", "-c", script, "bash", *MAILSVC, "--dir", str(data),
                           *arguments], capture_output=True, timeout=PATIENCE, check=False,
                          env={**os.environ, **environment})


@pytest.mark.parametrize("name", PRINTING)
@pytest.mark.parametrize(("script", "reason"), [
    ('"$@" > /dev/full', "No space left on device"),
    ('"$@" >&-', "Bad file descriptor"),
], ids=["full", "closed"])
def test_what_cannot_be_written(name: str, script: str, reason: str, data: Path) -> None:
    done = shell(script, data, *PRINTING[name])
    assert (done.returncode, done.stderr.decode()) == (
        1, f"Error: cannot write to standard output: {reason}\n")


def test_no_app_password_is_left_that_nobody_was_shown(data: Path) -> None:
    command = ("account", "app-password", "add", KOREAN, "phone")
    assert shell('"$@" > /dev/full', data, *command).returncode == 1
    assert CommandLine(data).json("account", "app-password", "list", KOREAN) == []


@pytest.mark.parametrize("name", PRINTING)
def test_nobody_reads(name: str, data: Path) -> None:
    """As programs end by SIGPIPE, without a word."""
    done = shell('"$@" | exec 0<&-; exit ${PIPESTATUS[0]}', data, *PRINTING[name])
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_what_is_closed_is_not_taken_by_a_file(data: Path) -> None:
    """The next file that is opened would get its number, and be written to."""
    done = shell('"$@" 2>&-', data, "account", "show", "nobody@example.org")
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")
    done = shell('"$@" <&-', data, "account", "add", "new@example.org", "--password-stdin")
    assert (done.returncode, done.stderr) == (
        1, b"Error: the password is empty; expected at least one character\n")
    done = shell('"$@" <&- >&- 2>&-', data, "account", "list")
    assert done.returncode == 1
    assert KOREAN in CommandLine(data)("account", "list")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "euc-kr", "utf-8"])
def test_an_encoding_that_does_not_have_it(encoding: str, data: Path) -> None:
    done = shell('"$@"', data, "account", "list", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    assert KOREAN.encode(encoding, "backslashreplace") in done.stdout
    done = shell('"$@"', data, "account", "list", "--json", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    (account,) = json.loads(done.stdout.decode(encoding))
    assert account["name"] == KOREAN


def test_no_locale(data: Path) -> None:
    done = shell('"$@"', data, "account", "list", LC_ALL="C", LANG="")
    assert (done.returncode, done.stderr) == (0, b"")
    assert KOREAN.encode() in done.stdout


@pytest.mark.parametrize(("script", "status", "said"), [
    ('"$@" | exec 0<&-; exit ${PIPESTATUS[0]}', 128 + signal.SIGPIPE, b""),
    ('"$@" > /dev/full', 1,
     b"Error: cannot write to standard output: No space left on device\n"),
], ids=["unread", "full"])
def test_commands_that_talk_to_servers(script: str, status: int, said: bytes,
                                       tmp_path: Path) -> None:
    """What they print is printed in the middle of a dialogue."""
    password = tmp_path / "password"
    password.write_text("secret\n")
    with Service(tmp_path / "data", ("bob@example.org:secret",)) as service:
        (smtp_host, smtp_port), (host, port) = service.smtp, service.pop3
        for arguments in (
                ("send", "--server", f"{smtp_host}:{smtp_port}", "--to", "bob@example.org"),
                ("fetch", "--server", f"{host}:{port}", "--tls", "no", "--user",
                 "bob@example.org", "--password-file", str(password), "--into", "-")):
            done = shell(script, service.directory, *arguments)
            assert (done.returncode, done.stderr) == (status, said), arguments
            # It was sent all the same, and what was not stored stays.
            assert len(fetch(service, "bob@example.org", delete=False)) == 1


def test_watching_for_nobody(tmp_path: Path) -> None:
    with Service(tmp_path / "data") as service, subprocess.Popen(
            [*MAILSVC, "--dir", str(service.directory), "watch", "--address", "127.0.0.1"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE) as watch:
        assert watch.stdout is not None and watch.stderr is not None
        assert watch.stderr.readline().startswith(b"watching for")
        watch.stdout.close()
        with Dialogue(service.smtp) as smtp:
            smtp.reply()
        assert watch.wait(PATIENCE) == 128 + signal.SIGPIPE
        assert watch.stderr.read() == b""


# ---- files that may not be used -----------------------------------------------------------------


#: Becomes nobody, once everything is imported from where nobody may look, and runs commands.
_NOBODY = """
import importlib, json, os, sys
from click.testing import CliRunner
from mailsvc.cli import COMMANDS, main
for module in COMMANDS.values():
    importlib.import_module(module)
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
told = []
for command in json.loads(sys.argv[2]):
    done = CliRunner().invoke(main, ["--dir", sys.argv[1], *command.split()], prog_name="mailsvc")
    told.append([command, done.exit_code, done.stdout, done.stderr])
print(json.dumps(told))
"""


def test_files_of_somebody_else() -> None:
    commands = [
        "ban list", "ban add 192.0.2.8", "ban remove all", "queue list", "queue stats",
        "queue hold --all", "queue tls list", "queue tls forget example.org", "dkim list",
        "webhook list", "account list", "account sent", "domain list", "alias list",
        "trace x@example.org", "stats", "sessions", "undelete a@example.org", "fsck"]
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is hidden from others altogether
        data = Path(folder) / "data"
        run = CommandLine(data)
        run("domain", "add", "example.org")
        run("ban", "add", "192.0.2.7")
        (data / "queue").mkdir()
        Path(folder).chmod(0o755)
        data.chmod(0o700 if os.geteuid() == 0 else 0)
        try:
            done = subprocess.run(
                [sys.executable, "-c", _NOBODY, str(data), json.dumps(commands)],
                capture_output=True, text=True, timeout=PATIENCE, check=True)
        finally:
            data.chmod(0o700)
    told = json.loads(done.stdout)
    assert [command for command, *_ in told] == commands
    for command, status, stdout, stderr in told:
        assert (status, stdout) == (1, ""), command
        assert stderr.startswith("Error: ") and stderr.count("\n") == 1, (command, stderr)
        assert "as the user" in stderr or "ermission" in stderr, (command, stderr)


def test_what_may_not_be_looked_at_is_not_damaged() -> None:
    """Whoever may read and not write is not told to put a backup in its place."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        CommandLine(data)("domain", "add", "example.org")
        for place in folder, data:
            Path(place).chmod(0o755)
        (data / "accounts.sqlite").chmod(0o644)
        if os.geteuid() != 0:
            data.chmod(0o555)
        done = subprocess.run([sys.executable, "-c", _NOBODY, str(data), '["fsck"]'],
                              capture_output=True, text=True, timeout=PATIENCE, check=True)
        data.chmod(0o755)
    [[_, status, stdout, _]] = json.loads(done.stdout)
    assert status == 1
    assert "cannot be looked at: permission denied on " in stdout
    assert "damaged" not in stdout
