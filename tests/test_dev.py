"""``mailsvc dev``: its flags and what it prints are a contract with the tools that drive it."""

from __future__ import annotations

import os
import re
import shlex
import smtplib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mailsvc.cli.dev import ACCOUNT, ALIAS, CHEAP_PASSWORDS, NewAccount, _hints, dev
from mailsvc.cli.listeners import PLACE, PORTS, Place, UnixPlace
from mailsvc.directory import SqliteDirectory
from mailsvc.mail import Address
from tests.service import PATIENCE, Service, fetch, login, submit
from tests.twistd import IPV6, ROOT, Twistd

MESSAGE = b"Subject: hello\r\n\r\nHello.\r\n"
ANY_PORT = ("--smtp", "0", "--pop3", "0")
DEV = (sys.executable, "-c", "from mailsvc.cli.dev import dev; dev()")


def command(*arguments: object) -> Twistd:
    """``mailsvc dev`` with exactly these arguments, its log beside its output."""
    return Twistd([*DEV, *map(str, arguments)])


def refused(*arguments: object) -> tuple[int, str]:
    """The status and what is said of arguments with which nothing is started."""
    done = CliRunner().invoke(dev, [str(argument) for argument in arguments])
    assert done.stdout == ""
    return done.exit_code, " ".join(done.stderr.split())


# ---- what it prints -----------------------------------------------------------------------------


def test_a_line_for_each_listener_and_then_ready(tmp_path: Path) -> None:
    with Service(tmp_path / "data", ("alice@example.org:secret",)) as service:
        assert service.greeting == (
            f"smtp 127.0.0.1:{service.smtp[1]}\npop3 127.0.0.1:{service.pop3[1]}\nready\n")
        assert service.stop() == 0
    log = service.log.read_text()
    assert "smtp listens on" in log
    assert log.splitlines()[-1].endswith("stopped")


def test_the_demonstration_account(tmp_path: Path) -> None:
    printed = []
    for _ in range(2):
        with Service(tmp_path / "data") as service:
            line, *rest = service.greeting.splitlines()
            assert len(rest) == 3
            word, name, password = line.split(" ")
            assert (word, name) == ("account", "demo@localhost")
            service.passwords[name] = password
            submit(service, MESSAGE, (name,))
            assert fetch(service, name)[0].endswith(MESSAGE)
            printed.append(password)
    assert printed[0] == printed[1]
    assert len(printed[0]) >= 12


def test_the_demonstration_account_of_a_domain(tmp_path: Path) -> None:
    with Service(tmp_path / "data", (), ("--domain", "example.org")) as service:
        assert service.greeting.startswith("account demo@example.org ")


def test_no_demonstration_beside_other_accounts(tmp_path: Path) -> None:
    with Service(tmp_path / "data", ("alice@example.org:secret",)) as service:
        assert "account" not in service.greeting
    with Service(tmp_path / "data") as service:
        assert service.greeting.startswith("smtp ")


def test_the_readme_shows_what_is_printed() -> None:
    text = (ROOT / "README.rst").read_text()
    block = re.search(r"\n    account demo@localhost \S+\n(.*?)\n    ready\n\n(.*?)\n\n\(If", text,
                      re.DOTALL)
    assert block is not None
    assert [line.strip() for line in block[1].splitlines()] == [
        f"{kind} 127.0.0.1:{port}" for kind, port in PORTS.items() if port]
    listeners: Any = [SimpleNamespace(kind=SimpleNamespace(name=kind), address=f"127.0.0.1:{port}")
                      for kind, port in PORTS.items() if port]
    _, *hints = _hints(listeners, None)
    shown = [line.strip().partition("…")[0].strip() for line in block[2].splitlines()]
    assert len(shown) == len(hints)
    for line, hint in zip(shown, hints, strict=True):
        assert hint.startswith(line)


def test_hints_work(tmp_path: Path, program: Callable[[str], str]) -> None:
    program("curl")
    password = "it's \"$HOME\" and `more`!"
    for account, secret in ("o'hara@example.org", password), ("bob@example.org", "secret"):
        options = ("--hints", "--account", f"{account}:{secret}")
        with Service(tmp_path / account, (), options) as service:
            assert service.process.stdout is not None
            text = service.greeting
            while "mail program:" not in text:
                text += os.read(service.process.stdout.fileno(), 65_536).decode()
            _, blank, *hints = text[text.index("ready\n"):].splitlines()
            assert blank == ""
            assert len(hints) == 3
            for hint, label in zip(hints[:2], ("send:   ", "fetch:  "), strict=True):
                shell = hint.removeprefix(label).replace(
                    "python3", shlex.quote(sys.executable), 1)
                done = subprocess.run(["/bin/bash", "-c", shell], capture_output=True, text=True,
                                      timeout=PATIENCE, check=False)
                assert (done.returncode, done.stderr) == (0, ""), hint
            assert done.stdout.splitlines()[-3:] == ["Subject: hello", "", "It works."]
            assert f"user {account}, password {secret}" in hints[2]


# ---- listeners ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "place"), [
    ("2525", Place("127.0.0.1", 2525)),
    ("0", Place("127.0.0.1", 0)),
    ("192.0.2.7:25", Place("192.0.2.7", 25)),
    ("0.0.0.0:65535", Place("0.0.0.0", 65_535)),
    ("localhost:25", Place("127.0.0.1", 25)),
    ("[::1]:25", Place("::1", 25)),
    ("[2001:db8::1]:0", Place("2001:db8::1", 0)),
    ("unix:/run/x y.sock", UnixPlace("/run/x y.sock")),
    ("off", None),
])
def test_places(text: str, place: Place | UnixPlace | None) -> None:
    assert PLACE.convert(text, None, None) == place


@pytest.mark.parametrize("text", [
    "", ":", "x", "-1", "65536", "１２", "25 ", "1.2.3.4", "1.2.3.4:", "1.2.3:25", "mx.example:25",
    "[::1]", "[::1:25", "unix:", "unix:relative", "unix:/a\nb", "on", "1.2.3.4:99999"])
def test_not_places(text: str) -> None:
    status, said = refused("--smtp", text)
    assert status == 2
    assert ("expected PORT, ADDRESS:PORT such as 127.0.0.1:2525 or [::1]:2525, unix:/PATH, or off"
            in said)


def test_a_unix_socket(tmp_path: Path) -> None:
    # Such a path has little room, and pytest's may be long.
    with tempfile.TemporaryDirectory(prefix="ms:=") as folder:
        path = f"{folder}/a b"
        with command("--dir", tmp_path, *ANY_PORT, "--submission", f"unix:{path}",
                     "--hints") as process:
            process.wait_for("mail program:")
            assert f"\nsubmission {path}\n" in process.output
            assert os.stat(path).st_mode & 0o777 == 0o666
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
                assert client.recv(100).startswith(b"220 ")
            assert process.stop() == 0
        assert not os.path.lexists(path)


def test_the_default_ports_are_memorable() -> None:
    assert {option.name: option.default for option in dev.params if option.name in {
        "smtp", "pop3"}} == {"smtp": "127.0.0.1:2525", "pop3": "127.0.0.1:2110"}


def test_a_listener_may_be_off(tmp_path: Path) -> None:
    with command("--dir", tmp_path, "--smtp", "0", "--pop3", "off", "--hints") as process:
        process.wait_for("^mail program: outgoing to the accounts here alone: SMTP at .*no login$")
        assert "pop3" not in process.output
        assert process.stop() == 0
    status, said = refused("--smtp", "off", "--pop3", "off")
    assert status == 2
    assert "every listener is off" in said


def test_another_address(tmp_path: Path) -> None:
    host = "[::1]" if IPV6 else "127.0.0.2"
    with command("--dir", tmp_path, "--smtp", f"{host}:0", "--pop3", "off") as process:
        (port,) = process.wait_for(rf"^smtp {re.escape(host)}:(\d+)$")
        process.wait_for("^ready$")
        with smtplib.SMTP(host.strip("[]"), int(port)) as client:
            assert client.noop()[0] == 250
        assert process.stop() == 0


# ---- accounts, domains, aliases -----------------------------------------------------------------


@pytest.mark.parametrize(("text", "local_part", "domain", "password"), [
    ("a@b.example:secret", "a", "b.example", "secret"),
    ("a@b.example:se:cr:et:", "a", "b.example", "se:cr:et:"),
    ("a@b.example: x ", "a", "b.example", " x "),
    ("a@b.example:p@ss", "a", "b.example", "p@ss"),
    ('"a:b@c"@b.example:x', "a:b@c", "b.example", "x"),
    ('"a\\"b"@b.example:"', 'a"b', "b.example", '"'),
    ("ä@B.Example:ü", "ä", "b.example", "ü"),
])
def test_accounts(text: str, local_part: str, domain: str, password: str) -> None:
    assert ACCOUNT.convert(text, None, None) == NewAccount(Address(local_part, domain), password)


@pytest.mark.parametrize("text", ["", "a", "a@b.example", "a@b.example:", "a:b@c.example",
                                  "@b.example:x", "a@:x", "a@b..example:x", "a@b.example:x\ny"])
def test_not_accounts(text: str) -> None:
    assert refused("--account", text)[0] == 2


def test_a_password_is_not_repeated() -> None:
    assert "correct horse" not in refused("--account", "a@b..example:correct horse")[1]
    assert "correct horse" not in refused("--account", "correct horse")[1]


names = st.text("abcdefgh0123456789.-_+=", min_size=1).filter(
    lambda name: name[0] not in ".-" and name[-1] != "." and ".." not in name and len(name) < 60)


@given(names, st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1,
                      max_size=50))
def test_any_account_is_taken_apart(name: str, password: str) -> None:
    assert ACCOUNT.convert(f"{name}@b.example:{password}", None, None) == NewAccount(
        Address(name, "b.example"), password)


@given(names, st.lists(names, min_size=1, max_size=3))
def test_any_alias_is_taken_apart(name: str, targets: list[str]) -> None:
    text = f"{name}@a.example=" + ",".join(f"{target}@b.example" for target in targets)
    assert ALIAS.convert(text, None, None) == (
        Address(name, "a.example"), [Address(target, "b.example") for target in targets])


@pytest.mark.parametrize("text", ["", "a@b.example", "a@b.example=", "a=b", "=a@b.example",
                                  "a@b.example=c@d.example,"])
def test_not_aliases(text: str) -> None:
    assert refused("--alias", text)[0] == 2


def test_accounts_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "accounts"
    path.write_bytes("# people\n\n  # indented\r\nalice@example.org:se:cret\r\n"
                     " \tbob@example.net: ü \n".encode())
    with Service(tmp_path / "data", ("carol@example.com:x",), ("--accounts", str(path))) as service:
        for name, password in (("alice@example.org", "se:cret"), ("bob@example.net", " ü "),
                               ("carol@example.com", "x")):
            with SqliteDirectory(tmp_path / "data" / "accounts.sqlite", create=False) as directory:
                assert directory.account(*name.split("@"))
            service.passwords[name] = password
            with login(service, name) as session:
                session.ask(b"QUIT")


def test_a_wrong_line_of_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "accounts"
    path.write_text("alice@example.org:secret\nbob correct-horse\n")
    status, said = refused("--accounts", path)
    assert status == 2
    assert "--accounts, line 2: " in said
    assert "correct-horse" not in said


def test_again_with_the_same_directory(tmp_path: Path) -> None:
    alice = "alice@example.org"
    with Service(tmp_path / "data", (f"{alice}:one",),
                 ("--alias", f"all@example.org={alice}")) as service:
        submit(service, MESSAGE, ("all@example.org",))
    with Service(tmp_path / "data", (f"{alice}:two", "bob@example.org:three"),
                 ("--alias", f"all@example.org={alice},bob@example.org",
                  "--domain", "example.org")) as service:
        submit(service, MESSAGE, ("all@example.org",))
        assert len(fetch(service, alice)) == 2
        assert len(fetch(service, "bob@example.org")) == 1
        service.passwords[alice] = "one"
        with pytest.raises(AssertionError, match="-ERR"):
            login(service, alice)
        assert len(list(service.maildir(alice).iterdir())) >= 3


def test_an_alias_that_leads_nowhere(tmp_path: Path) -> None:
    status, said = refused("--dir", tmp_path, "--alias", "a@example.org=b@example.org")
    assert status == 2
    assert ("--alias a@example.org: there is no account or alias b@example.org; its targets are to "
            "be made by --account") in said
    with SqliteDirectory(tmp_path / "accounts.sqlite", create=False) as directory:
        assert list(directory.domains()) == []


def test_thousands_of_accounts_are_hashed_cheaply(tmp_path: Path) -> None:
    path = tmp_path / "accounts"
    path.write_text("".join(f"user{n}@example.org:pass{n}\n" for n in range(2000)))
    with Service(tmp_path / "data", (), ("--accounts", str(path))) as service:
        service.passwords["user1999@example.org"] = "pass1999"
        with login(service, "user1999@example.org") as session:
            session.ask(b"QUIT")
    with SqliteDirectory(tmp_path / "data" / "accounts.sqlite", create=False) as directory:
        assert len(list(directory.accounts())) == 2000
        found = directory.credentials("user7@example.org")
        assert found is not None
        assert "m=64,t=1,p=1" in str(found.verifier)
        assert found.secret is None
        assert found.main and found.main.scram is None  # until it logs in
    assert CHEAP_PASSWORDS == ("passwords.memory_kib=64", "passwords.passes=1",
                               "passwords.scram_iterations=4096")


# ---- other flags --------------------------------------------------------------------------------


def test_settings(tmp_path: Path) -> None:
    options = ("--set", "smtp.message_octets=100000", "--set", "passwords.memory_kib=128",
               "--set", "log.format=json", "--hostname", "mail.example.org")
    with Service(tmp_path / "data", ("alice@example.org:secret",), options) as service:
        with smtplib.SMTP(*service.smtp) as client:
            client.ehlo()
            assert client.esmtp_features["size"] == "100000"
            assert client.ehlo_resp is not None
            assert client.ehlo_resp.startswith(b"mail.example.org")
        assert '"message": "smtp listens on' in service.log.read_text()
    with SqliteDirectory(tmp_path / "data" / "accounts.sqlite", create=False) as directory:
        found = directory.credentials("alice@example.org")
        assert found is not None
        assert "m=128," in str(found.verifier)
        assert found.main and str(found.main.scram).startswith("SCRAM-SHA-256$4096:")


def test_a_wrong_setting() -> None:
    status, said = refused("--set", "smtp.recipients=0", "--set", "x")
    assert status == 2
    assert "--set: smtp.recipients = 0: expected 1 or more" in said
    assert "--set: x: expected KEY=VALUE" in said


def test_a_wrong_host_name() -> None:
    status, said = refused("--hostname", "a_b")
    assert status == 2
    assert "--hostname': 'a_b': expected a domain name" in said


def test_no_worker_is_too_few() -> None:
    assert refused("--workers", "0")[0] == 2


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_say_the_same_as_one(tmp_path: Path, workers: int) -> None:
    with Service(tmp_path / "data", ("alice@example.org:secret",),
                 ("--workers", str(workers))) as service:
        assert service.greeting == (
            f"smtp 127.0.0.1:{service.smtp[1]}\npop3 127.0.0.1:{service.pop3[1]}\nready\n")
        assert len(service.pids()) == (workers + 1 if workers > 1 else 1)
        submit(service, MESSAGE, ("alice@example.org",))
        assert fetch(service, "alice@example.org")[0].endswith(MESSAGE)
        assert service.stop() == 0
        assert service.pids() == []


def test_a_store_in_memory_has_one_worker(tmp_path: Path) -> None:
    with Service(tmp_path / "data", (), ("--workers", "2", "--set", "service.store=memory:")
                 ) as service:
        assert service.pids() == [service.pid]
        assert "one worker serves: a store in memory is of one process" in service.log.read_text()


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, said = refused("--dir", tmp_path / "file" / "data")
    assert status == 1
    assert f"cannot make {tmp_path}/file/data: Not a directory; name a directory" in said


def test_new_directories_are_private(tmp_path: Path) -> None:
    with Service(tmp_path / "data", ("alice@example.org:secret",)) as service:
        submit(service, MESSAGE, ("alice@example.org",))
        for path in (service.directory, service.directory / "mail",
                     service.maildir("alice@example.org")):
            assert path.stat().st_mode & 0o77 == 0
        (message,) = (service.maildir("alice@example.org") / "new").iterdir()
        assert message.read_bytes().endswith(MESSAGE)


def test_the_help_names_every_flag() -> None:
    text = CliRunner().invoke(dev, ["--help"]).stdout
    for flag in ("--dir", "--domain", "--hostname", "--account", "--accounts", "--alias", "--smtp",
                 "--submission", "--submissions", "--lmtp", "--odmr", "--pop3", "--pop3s",
                 "--tls-cert", "--tls-key", "--workers", "--set", "--hints"):
        assert re.search(rf"(?m)^  {flag}\b", text)


def test_it_is_a_command_of_mailsvc(tmp_path: Path) -> None:
    run = (sys.executable, "-c", "from mailsvc.cli import main; main()")
    with Twistd([*run, "--dir", str(tmp_path / "data"), "dev", *ANY_PORT]) as process:
        process.wait_for("^ready$")
        assert (tmp_path / "data" / "accounts.sqlite").exists()
        assert process.stop() == 0
    with Twistd([*run, "--config", "x.toml", "dev", *ANY_PORT]) as process:
        assert process.wait() == 2
        assert "no configuration file is read here" in process.output
