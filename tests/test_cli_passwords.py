"""The commands ``mailsvc account app-password``, as people and programs run them."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

import pytest

from mailsvc.cli import passwords
from mailsvc.names import parse_address
from mailsvc.passwords import PasswordSettings, app_verifier, derive_scram, scram_salt
from tests.command_line import CommandLine, fresh_command_line

fresh = pytest.fixture(fresh_command_line)

BOB = "bob@example.org"
ADD = ("account", "app-password", "add")
LIST = ("account", "app-password", "list")
REMOVE = ("account", "app-password", "remove")

#: Noon of 1 June 2026, UTC.
NOW = 1_780_315_200


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)


@pytest.fixture
def run(fresh: CommandLine) -> CommandLine:
    """example.org with the account Bob, who has a password."""
    fresh("domain", "add", "example.org")
    with fresh.directory() as directory:
        directory.add_account(parse_address("Bob@example.org"), verifier="$old")
    return fresh


def test_one_is_made_and_shown_once(run: CommandLine) -> None:
    said = run(*ADD, BOB, "phone")
    assert re.fullmatch("[a-z]{4}(-[a-z]{4}){5}\n", said), "nothing else, for a pipe"
    assert run.notes == ("Made app password 'phone' of Bob@example.org; it is not shown again. Log "
                         "in with the account's name and it.\n")
    password = said.strip().encode()
    with run.directory() as directory:
        found = directory.credentials(BOB)
        assert found and found.verifier == "$old"
        (phone,) = found.app_passwords
        assert phone.verifier == app_verifier(directory, password)
        assert phone.scram == derive_scram(password, scram_salt(directory, BOB),
                                           PasswordSettings().scram_iterations)
        assert phone.secret is None
    for file in run.dir.iterdir():
        assert password not in file.read_bytes()
    assert run(*ADD, BOB, "other") != said


def test_it_is_kept_readable_when_that_is_asked_for(run: CommandLine) -> None:
    password = run(*ADD, BOB, "old phone", "--apop").strip()
    with run.directory() as directory:
        found = directory.credentials(BOB)
        assert found and found.app_passwords[0].secret == password
    assert run.json(*LIST, BOB)[0]["apop"] is True


def test_listing(run: CommandLine) -> None:
    run(*ADD, BOB, "office printer", "--protocol", "submission", "--network", "192.0.2.0/24",
        "--network", "2001:db8::1", "--expires", "90d")
    run(*ADD, BOB, "phone", "--protocol", "submission", "--protocol", "pop3")
    with run.directory() as directory:
        found = directory.credentials(BOB)
        assert found
        directory.record_uses([(found.app_passwords[1].id, NOW + 61, "198.51.100.7")])
    assert run.json(*LIST, "BOB@example.org") == [
        {"label": "office printer", "protocols": ["submission"],
         "networks": ["192.0.2.0/24", "2001:db8::1/128"], "expires": "2026-08-30T12:00:00Z",
         "made": "2026-06-01T12:00:00Z", "used": None, "used_from": None, "expired": False,
         "apop": False},
        {"label": "phone", "protocols": ["pop3", "submission"], "networks": [], "expires": None,
         "made": "2026-06-01T12:00:00Z", "used": "2026-06-01T12:01:01Z",
         "used_from": "198.51.100.7", "expired": False, "apop": False}]
    assert [re.split("  +", line) for line in run(*LIST, BOB).splitlines()] == [
        ["LABEL", "PROTOCOLS", "NETWORKS", "EXPIRES", "LAST USED", "FROM"],
        ["office printer", "submission", "192.0.2.0/24, 2001:db8::1/128", "2026-08-30 12:00", "-",
         "-"],
        ["phone", "pop3, submission", "all", "-", "2026-06-01 12:01", "198.51.100.7"]]


def test_what_has_expired_is_said_so(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    run(*ADD, BOB, "guest", "--expires", "2026-06-01")
    assert run.json(*LIST, BOB)[0]["expires"] == "2026-06-01T23:59:59Z"
    monkeypatch.setattr(time, "time", lambda: NOW + 86_400)
    assert run.json(*LIST, BOB)[0]["expired"] is True
    assert re.split("  +", run(*LIST, BOB).splitlines()[1])[3] == "expired"


def test_nothing_to_list(run: CommandLine) -> None:
    assert run(*LIST, BOB) == "LABEL  PROTOCOLS  NETWORKS  EXPIRES  LAST USED  FROM\n"
    assert run.json(*LIST, BOB) == []


def test_removal(run: CommandLine) -> None:
    run(*ADD, BOB, "Phone")
    run(*ADD, BOB, "printer")
    assert run(*REMOVE, BOB, "phone") == "Removed app password 'Phone' of Bob@example.org\n"
    assert [each["label"] for each in run.json(*LIST, BOB)] == ["printer"]
    assert run.fails(*REMOVE, BOB, "phone") == (
        "Bob@example.org has no app password 'phone'; see: mailsvc account app-password list "
        "Bob@example.org")
    for hostile in ("", "%", "' OR '1'='1", "*", "printer'--"):
        assert "has no app password" in run.fails(*REMOVE, BOB, hostile)
    assert run.login(BOB) == ("$old", None)


def test_accounts_show_how_many_there_are(run: CommandLine) -> None:
    assert run.json("account", "show", BOB)["app_passwords"] == 0
    run(*ADD, BOB, "phone")
    assert run("account", "list").splitlines()[1].endswith("  password, 1 app password")
    run(*ADD, BOB, "printer")
    assert [each["app_passwords"] for each in run.json("account", "list")] == [2]
    assert "Login:    password, 2 app passwords\n" in run("account", "show", BOB)
    with run.directory() as directory:
        directory.set_password(parse_address(BOB), None)
    assert "Login:    2 app passwords\n" in run("account", "show", BOB)


def test_another_main_password_leaves_them(run: CommandLine) -> None:
    run("account", "passwd", BOB, "--password-stdin", stdin="new\n")
    assert run.notes == ""
    run(*ADD, BOB, "phone")
    run("account", "passwd", BOB, "--password-stdin", stdin="newer\n")
    assert run.notes == ("Note: its app passwords are as before; see: mailsvc account app-password "
                         "list Bob@example.org\n")
    assert run.json("account", "show", BOB)["app_passwords"] == 1


@pytest.mark.parametrize(("options", "text"), [
    (["--network", "192.0.2.1/24"], "192.0.2.1/24 is an address in a network; expected the "
                                    "network, 192.0.2.0/24, or the address alone"),
    (["--network", "home"], "'home' is not a network; expected an address such as 192.0.2.7, or a "
                            "network such as 192.0.2.0/24 or 2001:db8::/32"),
])
def test_what_no_app_password_can_be(run: CommandLine, options: list[str], text: str) -> None:
    assert run.fails(*ADD, BOB, "phone", *options) == text
    assert run.json(*LIST, BOB) == []


@pytest.mark.parametrize("label", ["", " ", "a\nb", "a\rb", "\x1b[31m", "a\0"])
def test_labels_that_cannot_be(run: CommandLine, label: str) -> None:
    said = run.fails(*ADD, BOB, label)
    assert "cannot name an app password; expected a word or two" in said and said.isprintable()


def test_a_label_is_taken_once(run: CommandLine) -> None:
    run(*ADD, BOB, "Phone")
    assert run.fails(*ADD, BOB, "PHONE").startswith(
        "Bob@example.org has an app password 'Phone' already; choose another label, or first")


@pytest.mark.parametrize("text", ["", "0d", "90", "-1d", "soon", "2026-05-31", "2027-02-30",
                                  "1.5d", "٣d", "9999999d", "9999-12-31", "31.1.2027", "1d\n"])
def test_what_is_no_time_to_come(run: CommandLine, text: str) -> None:
    said = run.misused(*ADD, BOB, "phone", f"--expires={text}")
    assert said.isprintable()
    assert ("is no time; expected days such as 90d" in said
            or "is over; expected a time to come" in said)


@pytest.mark.parametrize(("text", "until"), [
    ("90d", datetime(2026, 8, 30, 12, tzinfo=UTC)),
    ("1d", datetime(2026, 6, 2, 12, tzinfo=UTC)),
    ("2026-06-01", datetime(2026, 6, 1, 23, 59, 59, tzinfo=UTC)),
    ("2027-01-31", datetime(2027, 1, 31, 23, 59, 59, tzinfo=UTC))])
def test_times_to_come(text: str, until: datetime) -> None:
    assert passwords._Expiry().convert(text, None, None) == until.timestamp()


def test_other_protocols_are_refused(run: CommandLine) -> None:
    assert "'imap' is not one of 'pop3', 'submission'" in run.misused(
        *ADD, BOB, "x", "--protocol", "imap")


@pytest.mark.parametrize("arguments", [(*ADD, "x@example.org", "phone"), (*LIST, "x@example.org"),
                                       (*REMOVE, "x@example.org", "phone")])
def test_accounts_there_are_not(run: CommandLine, arguments: tuple[str, ...]) -> None:
    assert run.fails(*arguments) == "there is no account x@example.org; see `mailsvc account list`"
