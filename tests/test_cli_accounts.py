"""The command account, and how commands work; as people and programs run them."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import argon2
import click
import click.testing
import pytest

from mailsvc.cli import COMMANDS, main, place
from mailsvc.cli.arguments import OCTETS, octets_text
from mailsvc.directory import SqliteDirectory
from mailsvc.names import parse_address
from mailsvc.passwords import PasswordSettings, derive_scram, scram_salt
from tests.command_line import CommandLine, fresh_command_line, populated

at = parse_address

fresh = pytest.fixture(fresh_command_line)
run = pytest.fixture(populated)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the runner's streams say that they are a terminal."""
    monkeypatch.setattr(click.testing._NamedTextIOWrapper, "isatty", lambda _: True)


# ---- from nothing --------------------------------------------------------------------------------


def test_a_first_walk(fresh: CommandLine) -> None:
    assert fresh.fails("account", "list") == (
        f"there is no {fresh.dir}/accounts.sqlite yet; begin with `mailsvc domain add DOMAIN`, or "
        "name the right place: service.data of the configuration, or `mailsvc --dir DIR`")
    assert not fresh.dir.exists()
    assert fresh("domain", "add", "Example.org") == (
        "Added domain example.org; make an account in it with: mailsvc account add "
        "NAME@example.org\n")
    assert fresh("account", "add", "Bob@example.org", "--password-stdin", stdin="secret\n") == (
        f"Made account Bob@example.org; its mail will be in {fresh.dir}/mail/example.org/Bob\n")
    assert fresh("account", "list") == ("NAME             ROLE  QUOTA  MESSAGES  LOGIN\n"
                                        "Bob@example.org  both  -      -         password\n")
    verifier, secret = fresh.login("bob@example.org")
    assert verifier and argon2.PasswordHasher().verify(verifier, "secret")
    assert secret is None
    with pytest.raises(argon2.exceptions.VerifyMismatchError):
        argon2.PasswordHasher().verify(verifier, "secret\n")


def test_every_command_explains_itself_with_an_example(fresh: CommandLine) -> None:
    def walk(command: click.Command, name: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if isinstance(command, click.Group):
            context = click.Context(command)
            for each in command.list_commands(context):
                found = command.get_command(context, each)
                assert found
                yield from walk(found, (*name, each))
        else:
            yield name

    ours = [name for each in ("account", "alias", "domain")
            for name in walk(main.get_command(click.Context(main), each) or main, (each,))]
    assert len(ours) == 20
    for name in ours:
        text = fresh(*name, "--help")
        assert "Example:\n    mailsvc " + " ".join(name) in text, name
        assert "--dir" in text and "--config" in text
    assert "Example:" in fresh("--help")
    for each in ("account", "alias", "domain"):
        assert each in COMMANDS
        assert fresh(each, "--help")


def test_the_version_and_what_there_is_not(fresh: CommandLine) -> None:
    from mailsvc import __version__  # noqa: PLC0415

    assert fresh("--version") == f"mailsvc, version {__version__}\n"
    assert "No such command 'acount'. Did you mean 'account'?" in fresh.misused("acount")
    assert "Did you mean" not in fresh.misused("xyzzy")


# ---- the place -----------------------------------------------------------------------------------


def test_dir_and_config_stand_anywhere(run: CommandLine, tmp_path: Path) -> None:
    config = tmp_path / "mailsvc.toml"
    config.write_text(f'[accounts]\ndatabase = "{run.dir}/accounts.sqlite"\n'
                      '[service]\nstore = "memory:"\n')
    for arguments in (["--config", str(config), "account", "list"],
                      ["account", "list", "--config", str(config)],
                      ["account", "list", "--dir", str(run.dir)]):
        result = run.runner.invoke(main, arguments)
        assert result.exit_code == 0 and "Bob@example.org" in result.stdout
    # Where the mail of another store is, it knows by its name only.
    result = run.runner.invoke(
        main, ["--config", str(config), "account", "show", "bob@example.org"])
    assert "Mail:     the store memory:\n" in result.stdout
    assert run.misused("account", "list", "--config", str(config)).startswith(
        "Give either --dir or --config, not both.")
    assert run.misused("account", "list", "--config", "a\nb").endswith(
        r"'a\nb' holds control characters; leave them out")


def test_the_configuration_of_the_system(run: CommandLine, tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "system.toml"
    config.write_text(f'[service]\ndata = "{run.dir}"\n')
    monkeypatch.setattr(place, "SYSTEM_CONFIGURATION", config)
    result = run.runner.invoke(main, ["domain", "list"])
    assert result.exit_code == 0 and "example.org" in result.stdout


def test_without_any_configuration_the_defaults(run: CommandLine,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def opening(path: str, *, create: bool) -> SqliteDirectory:
        opened.append((path, create))
        return run.directory()

    monkeypatch.setattr(place, "SqliteDirectory", opening)
    assert run.runner.invoke(main, ["domain", "list"]).exit_code == 0
    assert opened == [("/var/lib/mailsvc/accounts.sqlite", False)]


def test_a_configuration_that_is_wrong(run: CommandLine, tmp_path: Path) -> None:
    config = tmp_path / "mailsvc.toml"
    config.write_text("[accounts]\ndatabase = 7\n")
    result = run.runner.invoke(main, ["--config", str(config), "domain", "list"])
    assert result.exit_code == 1
    assert f"{config}:2" in result.stderr and "accounts.database" in result.stderr
    result = run.runner.invoke(main, ["--config", str(tmp_path / "no.toml"), "domain", "list"])
    assert result.exit_code == 1
    assert "no.toml" in result.stderr


def test_the_wrong_user_is_told_whom_to_be(run: CommandLine,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: (
        Path(path).name != "accounts.sqlite" and real(path, mode)))
    text = run.fails("account", "list")
    assert text.startswith(f"permission denied on {run.dir}/accounts.sqlite; "
                           "run as the user who owns it: sudo -u ")


def test_a_directory_that_breaks_meanwhile(run: CommandLine) -> None:
    with run.directory() as directory, directory.transaction():
        directory._change("DROP TABLE target")
    assert run.fails("alias", "list") == "The directory of accounts cannot be read now"


# ---- accounts ------------------------------------------------------------------------------------


def test_accounts_in_full(run: CommandLine) -> None:
    run("account", "add", "carol@example.org", "--password-stdin", "--quota-octets", "1G",
        "--quota-messages", "500", "--apop", stdin="pässword\n")
    run("alias", "add", "sales@example.org", "carol@example.org", "bob@example.org")
    run("alias", "add", "all@example.org", "alice@example.org", "CAROL@example.org")
    assert run.json("account", "list") == [
        {"name": "Bob@example.org", "role": "both", "administrator": False,
         "quota_octets": 0, "quota_messages": 0,
         "password": True, "apop": True, "app_passwords": 0},
        {"name": "alice@example.org", "role": "both", "administrator": False,
         "quota_octets": 0, "quota_messages": 0,
         "password": False, "apop": False, "app_passwords": 0},
        {"name": "carol@example.org", "role": "both", "administrator": False,
         "quota_octets": 1 << 30, "quota_messages": 500,
         "password": True, "apop": True, "app_passwords": 0}]
    assert run("account", "list").splitlines()[1:] == [
        "Bob@example.org    both  -      -         password, APOP",
        "alice@example.org  both  -      -         no",
        "carol@example.org  both  1G     500       password, APOP"]
    assert run.json("account", "show", "Carol@example.org") == {
        "name": "carol@example.org", "role": "both", "administrator": False,
        "quota_octets": 1 << 30, "quota_messages": 500, "password": True, "apop": True,
        "app_passwords": 0, "held_octets": 0, "held_messages": 0,
        "mail": f"{run.dir}/mail/example.org/carol",
        "aliases": ["sales@example.org", "all@example.org"]}
    assert run("account", "show", "carol@example.org") == (
        "Name:     carol@example.org\n"
        "Role:     receives and sends\n"
        "Octets:   0 of 1G\n"
        "Messages: 0 of 500\n"
        "Login:    password, APOP\n"
        f"Mail:     {run.dir}/mail/example.org/carol\n"
        "Aliases:  sales@example.org, all@example.org\n")
    assert run("account", "show", "alice@example.org").splitlines()[2:5] == [
        "Octets:   0, no limit", "Messages: 0, no limit", "Login:    no"]
    assert run.login("carol@example.org")[1] == "pässword"


def test_what_an_account_holds(run: CommandLine) -> None:
    new = run.dir / "mail" / "example.org" / "alice" / "new"
    new.mkdir(parents=True)
    (new / "1.a.host,S=700").write_bytes(b"7 octets")
    (new / "2.b.host").write_bytes(b"8 octets")
    run("account", "quota", "alice@example.org", "--quota-octets", "1M", "--messages", "9")
    shown = run.json("account", "show", "alice@example.org")
    assert (shown["held_octets"], shown["held_messages"]) == (708, 2)
    assert run("account", "show", "alice@example.org").splitlines()[2:4] == [
        "Octets:   708 of 1M", "Messages: 2 of 9"]
    assert not (new.parent / "maildirsize").exists()


def test_what_an_account_holds_elsewhere(run: CommandLine) -> None:
    configuration = run.dir / "memory.toml"
    configuration.write_text(f'[service]\ndata = "{run.dir}"\nstore = "memory:"\n')
    done = run.runner.invoke(main, ["account", "show", "alice@example.org",
                                    "--config", str(configuration)])
    assert done.stdout.splitlines()[2:4] == [
        "Octets:   unknown, no limit", "Messages: unknown, no limit"]
    assert "Mail:     the store memory:" in done.stdout


def test_nothing_to_list(fresh: CommandLine) -> None:
    fresh("domain", "add", "example.org")
    assert fresh("account", "list") == "NAME  ROLE  QUOTA  MESSAGES  LOGIN\n"
    assert fresh.json("account", "list") == fresh.json("alias", "list") == []


@pytest.mark.parametrize("stdin", ["new\n", "new\r\n", "new", b"new\n"])
def test_passwords_from_a_pipe(run: CommandLine, stdin: str | bytes) -> None:
    assert run("account", "passwd", "bob@example.org", "--password-stdin", stdin=stdin) == (
        "Changed the password of Bob@example.org\n")
    verifier, secret = run.login("bob@example.org")
    assert verifier and argon2.PasswordHasher().verify(verifier, "new")
    assert secret == "new"  # APOP stays as it was


def test_a_password_from_a_file(run: CommandLine, tmp_path: Path) -> None:
    place = tmp_path / "password"
    place.write_text("new\n")
    assert run("account", "passwd", "bob@example.org", "--password-file", str(place)) == (
        "Changed the password of Bob@example.org\n")
    assert run.login("bob@example.org")[1] == "new"
    run("account", "passwd", "bob@example.org", "--password-file", "-", stdin="newer\n")
    assert run.login("bob@example.org")[1] == "newer"
    # What some editors put before it is no part of it.
    place.write_text("newest\n", "utf-8-sig")
    run("account", "passwd", "bob@example.org", "--password-file", str(place))
    assert run.login("bob@example.org")[1] == "newest"
    run("account", "passwd", "bob@example.org", "--password-stdin", stdin="\ufefflast\n")
    assert run.login("bob@example.org")[1] == "last"
    place.unlink()
    assert f"--password-file {place}: No such file" in run.misused(
        "account", "passwd", "bob@example.org", "--password-file", str(place))


@pytest.mark.parametrize(("options", "name", "secret"), [
    ([], "bob", "new"), (["--no-apop"], "bob", None), ([], "alice", None),
    (["--apop"], "alice", "new")])
def test_apop_is_kept_or_changed(run: CommandLine, options: list[str], name: str,
                                 secret: str | None) -> None:
    run("account", "passwd", f"{name}@example.org", "--password-stdin", *options, stdin="new")
    assert run.login(f"{name}@example.org")[1] == secret


@pytest.mark.parametrize(("stdin", "text"), [
    (b"", "the password is empty"), (b"\n", "the password is empty"),
    (b"hunter2\n\n", "the password holds control characters"),
    (b"hunter2\nhunter2\n", "the password holds control characters"),
    (b"hunter2\0", "the password holds control characters"),
    (b"hunter2\xff\n", "the password holds control characters or is not UTF-8"),
    (b"hunter2" * 1_000_000, "the password is too long"),
])
def test_passwords_that_cannot_be(run: CommandLine, stdin: bytes, text: str) -> None:
    before = run.login("bob@example.org")
    for arguments in (("account", "passwd", "bob@example.org"),
                      ("account", "add", "new@example.org")):
        said = run.fails(*arguments, "--password-stdin", stdin=stdin)
        assert said.startswith(text) and "hunter2" not in said
    assert run.login("bob@example.org") == before
    assert len(run.json("account", "list")) == 2


@pytest.mark.parametrize("arguments", [("account", "add", "new@example.org"),
                                       ("account", "passwd", "bob@example.org")])
def test_no_password_and_no_terminal(run: CommandLine, arguments: tuple[str, ...]) -> None:
    assert run.fails(*arguments) == ("no password, and no terminal to ask for one; "
                                     "pipe it in and add --password-stdin")


@pytest.mark.usefixtures("terminal")
def test_passwords_are_asked_for_twice(run: CommandLine) -> None:
    said = run("account", "passwd", "bob@example.org", stdin="one\ntwo\nnew pass\nnew pass\n")
    assert said.count("Password: ") == said.count("Repeat for confirmation: ") == 2
    assert "one" not in said and "new" not in said
    verifier, _ = run.login("bob@example.org")
    assert verifier and argon2.PasswordHasher().verify(verifier, "new pass")


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize(("name", "text"), [
    ("BOB@example.org", "account Bob@example.org exists already; change its password with: mailsvc "
                        "account passwd Bob@example.org"),
    ("x@example.net", "domain 'example.net' is not served here; add it with: mailsvc domain add "
                      "example.net"),
    ("a/b@example.org", "'a/b' cannot name a mail directory"),
])
def test_nobody_types_a_password_in_vain(run: CommandLine, name: str, text: str) -> None:
    assert run.fails("account", "add", name, stdin="never read\n").startswith(text)


def test_quotas(run: CommandLine) -> None:
    assert run("account", "quota", "BOB@example.org", "--octets", "20m") == (
        "Quota of Bob@example.org: octets 20M, messages -\n")
    assert run("account", "quota", "bob@example.org", "--messages", "7", "--octets", "1000") == (
        "Quota of Bob@example.org: octets 1000, messages 7\n")
    assert run("account", "quota", "bob@example.org", "--messages", "0") == (
        "Quota of Bob@example.org: octets 1000, messages -\n")
    assert run.misused("account", "quota", "bob@example.org") == (
        "Give --octets, --messages or both.")
    assert run.fails("account", "quota", "x@example.org", "--octets", "1") == (
        "there is no account x@example.org; see `mailsvc account list`")
    assert run.fails("account", "quota", "bob@example.org", "--octets", "9" * 18 + "T").startswith(
        "a quota of ")


@pytest.mark.parametrize(("text", "octets"), [
    ("0", 0), ("1", 1), ("500K", 512_000), ("20m", 20 << 20), ("1G", 1 << 30), ("3t", 3 << 40)])
def test_octets(text: str, octets: int) -> None:
    assert OCTETS.convert(text, None, None) == octets
    assert octets_text(octets) == text.upper()


@pytest.mark.parametrize("text", ["", "-1", "1.5G", "G", "1 G", "1GB", "1P", "٣", "1e9", "9" * 19])
def test_what_is_no_size(run: CommandLine, text: str) -> None:
    assert "is not a size; expected octets such as 500000, 500K, 20M or 1G" in run.misused(
        "account", "quota", "bob@example.org", f"--octets={text}")


def test_removal(run: CommandLine) -> None:
    assert run.fails("account", "remove", "bob@example.org") == (
        "no terminal to ask whether to remove it; add --yes")
    assert run("account", "remove", "bob@example.org", "--yes") == (
        "Removed account Bob@example.org. Its mail stays in "
        f"{run.dir}/mail/example.org/Bob: remove it there, or a new account of that name will have "
        "it.\n")
    assert [each["name"] for each in run.json("account", "list")] == ["alice@example.org"]
    assert run.fails("account", "remove", "bob@example.org", "--yes") == (
        "there is no account bob@example.org; see `mailsvc account list`")


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize(("answer", "status", "left"), [("n\n", 1, 2), ("\n", 1, 2), ("y\n", 0, 1)])
def test_removal_is_asked_about(run: CommandLine, answer: str, status: int, left: int) -> None:
    result = run.runner.invoke(
        main, ["--dir", str(run.dir), "account", "remove", "bob@example.org"], input=answer)
    assert result.exit_code == status
    assert "Remove account Bob@example.org? [y/N]" in result.stdout
    assert len(run.json("account", "list")) == left


def test_roles(run: CommandLine) -> None:
    run("alias", "add", "team@example.org", "alice@example.org", "bob@example.org")
    assert run("account", "role", "ALICE@example.org", "send") == (
        "Role of alice@example.org: sends only\n")
    assert run.notes == ("Note: these lead to it, and mail for them goes without it now, or is "
                         "refused: team@example.org\n")
    assert run("account", "role", "bob@example.org", "receive") == (
        "Role of Bob@example.org: receives only\n")
    assert run.notes == ""
    assert run("account", "add", "printer@example.org", "--password-stdin", "--role", "send",
               stdin="x\n") == "Made account printer@example.org; it gets no mail\n"
    assert {each["name"]: each["role"] for each in run.json("account", "list")} == {
        "Bob@example.org": "receive", "alice@example.org": "send", "printer@example.org": "send"}
    assert run("account", "list").splitlines()[2] == (
        "alice@example.org    send     -      -         no")
    assert "Role:     sends only\n" in run("account", "show", "alice@example.org")
    assert run("account", "role", "alice@example.org", "both") == (
        "Role of alice@example.org: receives and sends\n")
    assert "'admin' is not one of 'both', 'receive', 'send'" in run.misused(
        "account", "role", "alice@example.org", "admin")
    assert run.fails("account", "role", "x@example.org", "send") == (
        "there is no account x@example.org; see `mailsvc account list`")


def test_scram_keys_are_made_with_the_password(run: CommandLine) -> None:
    def scram(name: str) -> str | None:
        with run.directory() as directory:
            found = directory.credentials(name)
            assert found and found.main
            return found.main.scram

    run("account", "add", "Carol@example.org", "--password-stdin", stdin="one\n")
    run("account", "passwd", "bob@example.org", "--password-stdin", stdin="two\n")
    with run.directory() as directory:
        for name, password in (("carol@example.org", b"one"), ("bob@example.org", b"two")):
            assert scram(name) == derive_scram(
                password, scram_salt(directory, name), PasswordSettings().scram_iterations)


@pytest.mark.parametrize("command", ["show", "passwd", "remove"])
def test_accounts_there_are_not(run: CommandLine, command: str) -> None:
    assert run.fails("account", command, "x@example.org") == (
        "there is no account x@example.org; see `mailsvc account list`")


@pytest.mark.parametrize("arguments", [
    ("account", "add"), ("account", "show"), ("account", "passwd"), ("account", "remove"),
    ("account", "quota"), ("account", "role"), ("account", "app-password", "add"),
    ("account", "app-password", "list"), ("account", "app-password", "remove"),
    ("alias", "add"), ("alias", "remove"), ("domain", "add"),
    ("domain", "remove"), ("domain", "catch-all")])
@pytest.mark.parametrize("bad", [
    "a\nb@example.org", "a\rb@example.org", "a\0b@example.org", "a\x1b[31m@example.org", "a@b\nc",
    "a@b c", "a@", "@b", "", "a\u202eb@c", "a@exam\rple.org", "[127.0.0.1]"])
def test_no_argument_holds_line_ends_or_controls(run: CommandLine, arguments: tuple[str, ...],
                                                 bad: str) -> None:
    said = run.misused(*arguments, bad)
    assert said.isprintable()
    assert "Invalid value for " in said


# ---- what it looks like --------------------------------------------------------------------------


@pytest.mark.usefixtures("terminal")
def test_a_terminal_gets_a_table(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    with run.directory() as directory:
        directory.add_account(at("[red]x@example.org"))
    monkeypatch.setenv("COLUMNS", "100")
    said = run("account", "list")
    assert "┏━" in said and "[red]x@example.org" in said
    monkeypatch.setenv("COLUMNS", "30")
    assert "…" not in run("account", "list")
    assert json.loads(run("account", "list", "--json"))  # no table when it is for programs


@pytest.mark.usefixtures("terminal")
def test_a_window_too_narrow_for_a_table_gets_lines(
    run: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns without width would show nothing, and those of a letter cannot be read."""
    monkeypatch.setenv("COLUMNS", "39")
    assert "\n".join(run("account", "list").splitlines()[:7]) == (
        "name:     Bob@example.org\nrole:     both\nquota:    -\nmessages: -\n"
        "login:    password, APOP\n\nname:     alice@example.org")
    assert run("alias", "list").count("┏") == 1
    monkeypatch.setenv("COLUMNS", "15")
    assert run("alias", "list") == "name, targets, moved: none\n"


def test_wide_characters_are_aligned(run: CommandLine) -> None:
    with run.directory() as directory:
        directory.add_account(at("漢字@example.org"))
    lines = run("account", "list").splitlines()
    assert lines[1] == "Bob@example.org    both  -      -         password, APOP"
    assert lines[3] == "漢字@example.org   both  -      -         no"
    assert "漢字" in run("account", "list", "--json")


# ---- as a process --------------------------------------------------------------------------------

COMMAND = [sys.executable, "-c", "from mailsvc.cli import main; main(prog_name='mailsvc')"]


def test_a_running_reader_sees_changes_at_once(run: CommandLine) -> None:
    with run.directory() as reader:
        def elsewhere(*arguments: str, stdin: str = "") -> None:
            subprocess.run([*COMMAND, "--dir", str(run.dir), *arguments], input=stdin, text=True,
                           check=True, timeout=60)

        elsewhere("account", "add", "new@example.org", "--password-stdin", stdin="pw\n")
        assert reader.account("new", "example.org")
        elsewhere("account", "remove", "new@example.org", "--yes")
        assert not reader.account("new", "example.org")
        elsewhere("alias", "add", "team@example.org", "bob@example.org")
        assert reader.alias("team", "example.org")


def test_exit_status(run: CommandLine) -> None:
    def status(*arguments: str) -> int:
        return subprocess.run([*COMMAND, "--dir", str(run.dir), *arguments], check=False,
                              stdin=subprocess.DEVNULL, capture_output=True,
                              timeout=60).returncode

    assert status("account", "list") == 0
    assert status("account", "show", "x@example.org") == 1
    assert status("account", "show", "x") == 2


def at_a_terminal(arguments: list[str],
                  answers: Callable[[bytes], bytes | None]) -> tuple[int, str]:
    """Run the command at a pseudo-terminal; *answers* says what to type after what was shown."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs,
                               start_new_session=True)
    os.close(theirs)
    shown, answered = b"", 0
    try:
        while True:
            try:
                block = os.read(ours, 4096)
            except OSError:  # EIO: the other side is closed
                break
            shown += block
            typed = answers(shown[answered:])
            if typed is not None:
                answered = len(shown)
                os.write(ours, typed)
    finally:
        os.close(ours)
    return process.wait(60), shown.decode()


def test_typed_passwords_are_not_shown(run: CommandLine) -> None:
    def answers(shown: bytes) -> bytes | None:
        return b"correct horse\n" if shown.endswith(b": ") else None

    status, shown = at_a_terminal(
        ["--dir", str(run.dir), "account", "add", "carol@example.org"], answers)
    assert status == 0, shown
    assert "Password: " in shown and "Made account carol@example.org" in shown
    assert "correct" not in shown
    verifier, _ = run.login("carol@example.org")
    assert verifier and argon2.PasswordHasher().verify(verifier, "correct horse")
    status, shown = at_a_terminal(["--dir", str(run.dir), "account", "list"], lambda _: None)
    assert status == 0 and "┏━" in shown and "carol@example.org" in shown
