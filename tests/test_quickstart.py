"""``mailsvc quickstart``: what it makes works, and what it finds it leaves alone."""

from __future__ import annotations

import grp
import os
import poplib
import pwd
import re
import shutil
import smtplib
import ssl
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mailsvc import installation
from mailsvc.cli import main
from mailsvc.cli import quickstart as command
from mailsvc.config import KEYS, Settings, load, reference
from mailsvc.dkim import Keys
from mailsvc.installation import Impossible, Made, There
from mailsvc.mail import Address
from mailsvc.reach import ports, receives
from tests.conftest import absent
from tests.twistd import ANY, TWISTD, Twistd

ROOT = os.geteuid() == 0
ME = pwd.getpwuid(os.geteuid()).pw_name
ALICE = "alice@example.org"
LOOPBACK = [word for kind in ("smtp", "submission", "submissions", "pop3", "pop3s")
            for word in ("--set", f'listeners.{kind}=["{ANY}"]')]
CHEAP = ["--set", "passwords.memory_kib=64", "--set", "passwords.passes=1"]


def quickstart(*arguments: str | Path, stdin: str = "") -> str:
    """What it printed."""
    done = subprocess.run(
        [sys.executable, "-c", "from mailsvc.cli import main; main(prog_name='mailsvc')",
         "quickstart", *map(str, arguments)],
        input=stdin, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def refused(*arguments: str | Path, status: int = 1) -> str:
    """What it says when it refuses; in this process, for it comes to no reactor."""
    done = CliRunner().invoke(main, ["quickstart", *map(str, arguments), "--offline"],
                              prog_name="mailsvc")
    assert done.exit_code == status and isinstance(done.exception, SystemExit), done.output
    return done.stderr


def pieces(output: str) -> list[str]:
    """The lines about pieces, down to the records."""
    return [line for line in output.partition("\n\n")[0].splitlines()
            if line.startswith(("made ", "already there "))]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and path.name != "quickstart.log"}


def test_from_nothing_to_mail(tmp_path: Path) -> None:
    data = tmp_path / "data"
    output = quickstart(ALICE, "--dir", data, "--hostname", "mx.example.org", "--offline",
                        "--address", "192.0.2.7", *LOOPBACK, *CHEAP)
    assert all(line.startswith("made ") for line in pieces(output))
    (password,) = re.findall(rf"password of {ALICE} is (\S+),", output)
    before = contents(data)

    # Again: nothing changes, and it says so.
    again = quickstart(ALICE, "--dir", data, "--offline", "--address", "192.0.2.7")
    assert len(pieces(again)) == len(pieces(output)) == 7
    assert all(line.startswith("already there ") for line in pieces(again))
    assert "password of" not in again
    assert contents(data) == before

    log = (data / "quickstart.log").read_text()
    assert password not in log and "What to do next" in log and "192.0.2.7" in log
    assert (data / "quickstart.log").stat().st_mode & 0o777 == 0o600
    assert data.stat().st_mode & 0o777 == 0o700

    # What it wrote starts, as it says, and takes and gives mail.
    (line,) = re.findall(r"^ +\S*twistd (.*)$", output, re.MULTILINE)
    with Twistd([*TWISTD, *line.split()]) as process:
        with smtplib.SMTP("127.0.0.1", process.port("smtp")) as sender:
            sender.sendmail("bob@example.net", [ALICE], "Subject: hello\r\n\r\nHello.\r\n")
        context = ssl.create_default_context(cafile=data / "tls" / "self-signed.pem")
        context.check_hostname = False
        session = poplib.POP3_SSL("127.0.0.1", process.port("pop3s"), context=context)
        session.user(ALICE)
        session.pass_(password)
        assert session.retr(1)[1][-1] == b"Hello."
        session.quit()
        # While it runs, it is looked at too.
        assert "runs and is ready" in quickstart(ALICE, "--dir", data, "--offline")
        process.stop()
        assert "Traceback" not in process.output


def test_what_is_made(tmp_path: Path) -> None:
    data = tmp_path / "data"
    output = quickstart(ALICE, "--dir", data, "--config", tmp_path / "m.toml", "--offline",
                        "--password-stdin", "--set", "smtp.recipients=7", *CHEAP, stdin="secret\n")
    assert "password of" not in output and "secret" not in output
    settings = load(tmp_path / "m.toml")
    assert settings.service.data == str(data)
    assert settings.smtp.recipients == 7
    # The rest is explained in the file, and as it is by default.
    text = (tmp_path / "m.toml").read_text()
    assert set(settings.given) == {
        "service.hostname", "service.data", "smtp.recipients", "passwords.memory_kib",
        "passwords.passes", *(f"listeners.{kind}" for kind in (
            "smtp", "submission", "submissions", "pop3", "pop3s"))}
    assert text.count("\n#") > len(KEYS)
    assert (tmp_path / "m.toml").stat().st_mode & 0o777 == 0o644
    keys = Keys(data / "dkim").of("example.org")
    assert sorted((key.algorithm, key.active) for key in keys) == [
        ("ed25519", True), ("rsa", True)]
    zone = (data / "dns" / "example.org.zone").read_text()
    assert all(key.public[:200] in zone for key in keys) and zone in output
    assert receives(settings.listeners) == ROOT
    assert f"mailsvc --config {tmp_path / 'm.toml'} doctor example.org" in output
    assert re.search(r"^verdict: ", output, re.MULTILINE)


def test_what_was_interrupted_goes_on(tmp_path: Path) -> None:
    data = tmp_path / "data"
    first = quickstart(ALICE, "--dir", data, "--offline", *LOOPBACK, *CHEAP)
    shutil.rmtree(data / "dkim")
    shutil.rmtree(data / "tls")
    second = quickstart("bob@example.org", "--dir", data, "--offline")
    assert [line.split()[:2] for line in pieces(second)] == [
        ["already", "there"], ["already", "there"], ["already", "there"], ["made", "account"],
        ["made", "DKIM"], ["made", "self-signed"], ["made", "DNS"]]
    assert pieces(first) != pieces(second)


@pytest.mark.parametrize(("arguments", "text"), [
    (("alice",), "has no domain"),
    ((ALICE, "--set", "smtp.recipient=1"), "smtp.recipient"),
    ((ALICE, "--set", "service.data=/x"), "--dir"),
    ((ALICE, "--set", "service.hostname=mx"), "--hostname"),
    ((ALICE, "--hostname", "a b"), "not a domain name"),
    ((ALICE, "--address", "mx"), "no IP address"),
    ((ALICE, "--units", "/nowhere"), "--units needs --user"),
    ((ALICE, "--password-file", "/nowhere"), "/nowhere"),
], ids=["address", "set", "data", "name", "hostname", "ip", "units", "password"])
def test_what_is_misused(tmp_path: Path, arguments: tuple[str, ...], text: str) -> None:
    assert text in refused(*arguments, "--dir", tmp_path / "data", status=2)


def test_a_configuration_that_is_there_rules(tmp_path: Path) -> None:
    config = tmp_path / "m.toml"
    here = ("--dir", tmp_path / "data", "--config", config)
    config.write_text('[service]\nhostname = "mx.example.net"\ndata = "/srv/elsewhere"\n')
    said = refused(ALICE, *here)
    assert said.startswith(f"Error: {config} is there, and says that the data are in /srv/else")
    config.write_text(f'[service]\nhostname = "mx.example.net"\ndata = "{tmp_path / "data"}"\n')
    said = refused(ALICE, *here, "--hostname", "mx.example.org")
    assert "stays as it is" in said and "(it says mx.example.net)" in said
    config.write_text("[smtp]\nnonsense = 1\n")
    said = refused(ALICE, *here)
    assert "has mistakes" in said and "m.toml:2" in said
    assert not (tmp_path / "data").exists()


def test_places_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = refused(ALICE, "--dir", tmp_path / "file" / "data")
    assert said.startswith(f"Error: cannot make {tmp_path / 'file' / 'data'}: ")
    said = refused(ALICE, "--dir", tmp_path / "a", "--config", tmp_path / "b" / "c.toml")
    assert f"there is no directory {tmp_path / 'b'}" in said
    # What went wrong is in the log, too.
    data = tmp_path / "c"
    data.mkdir(0o700)
    (data / "dkim").write_text("")
    said = refused(ALICE, "--dir", data, *CHEAP)
    assert str(data / "dkim") in said
    assert said.rstrip() in (data / "quickstart.log").read_text()
    # The log leads nowhere else, whoever owns the directory.
    data = tmp_path / "data"
    data.mkdir()
    (data / "quickstart.log").symlink_to(tmp_path / "target")
    said = refused(ALICE, "--dir", data)
    assert "cannot write the log" in said and not (tmp_path / "target").exists()


def test_who_is_not_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    alice = Address("alice", "example.org")
    with pytest.raises(click.ClickException, match=r"sudo.*quickstart alice@example.org --dir"):
        command._plan(alice, None, None, None, None)
    with pytest.raises(click.ClickException, match="another user"):
        command._plan(alice, None, "try", "mailsvc", None)
    plan = command._plan(alice, None, str(tmp_path / "try"), None, None)
    assert (plan.config, plan.owner, plan.unit_folder) == (
        tmp_path / "try" / "mailsvc.toml", "", None)
    settings = Settings.from_mapping({"listeners": command._listeners()})
    assert not any(ports(settings.listeners).values()) and not receives(settings.listeners)
    steps = "\n".join(command._steps(plan, settings, tmp_path / "zone"))
    assert "127.0.0.1" in steps and "ports 2995 and 2465" in steps and "reverse DNS" not in steps


def test_who_is_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    plan = command._plan(Address("alice", "example.org"), None, None, None, None)
    assert (str(plan.config), str(plan.data), plan.owner, plan.command) == (
        "/etc/mailsvc.toml", "/var/lib/mailsvc", "mailsvc", "mailsvc")
    settings = Settings.from_mapping({"listeners": command._listeners()})
    assert receives(settings.listeners)
    assert sorted(port for each in ports(settings.listeners).values() for port in each) == [
        110, 465, 587, 995]


def test_a_python_in_a_home_is_refused_before_anything_is_made(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    plan = command._plan(Address("alice", "example.org"), str(tmp_path / "m.toml"),
                         str(tmp_path / "data"), ME, str(tmp_path))
    monkeypatch.undo()
    monkeypatch.setattr(sys, "base_prefix", "/home/alice/python")
    with pytest.raises(Impossible, match="its unit hides home"):
        command._install(plan, command.Report(), None, (), None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("own", "name"), [
    ("mx.example.net", "mx.example.net"), ("vm", "mail.example.org"),
    ("localhost.localdomain", "mail.example.org"), ("vm.internal", "mail.example.org")])
def test_host_names(own: str, name: str) -> None:
    assert command._host_name(own, "example.org") == name


def test_passwords_that_are_typed(monkeypatch: pytest.MonkeyPatch,
                                  capsys: pytest.CaptureFixture[str]) -> None:
    plan = command._plan(Address("alice", "example.org"), None, "/srv/try", None, None)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    typed = iter(["one", "two", "secret", "secret", ""])
    monkeypatch.setattr(click, "prompt", lambda *_, **__: next(typed))
    assert command._password(plan, None) == "secret"
    assert "two different passwords" in capsys.readouterr().err
    made = command._password(plan, None)
    assert len(made) == 29
    said = capsys.readouterr().out
    assert made in said and f"mailsvc --config {plan.config} account passwd {ALICE}" in said


# ---- users and units ----------------------------------------------------------------------------


def test_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert installation.user(ME, tmp_path) == There(f"user {ME}")
    program = tmp_path / "useradd"
    program.write_text(f"""#!/bin/sh
echo "$@" > {tmp_path}/asked
case "$*" in *mailsvc-test) ;; *) echo "no room" >&2; exit 1 ;; esac
""")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    home = Path("/var/lib/mailsvc")
    words = "--system --home-dir /var/lib/mailsvc --no-create-home --shell /usr/sbin/nologin"
    assert installation.user("mailsvc-test", home) == Made("user mailsvc-test")
    assert (tmp_path / "asked").read_text() == f"{words} mailsvc-test\n"
    with pytest.raises(Impossible, match="could not make the user mailsvc-other: no room"):
        installation.user("mailsvc-other", home)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(Impossible, match="no `useradd` to make one"):
        installation.user("mailsvc-other", home)


@pytest.mark.skipif(not ROOT, reason="only root can give files to others")
def test_everything_belongs_to_the_user_of_the_service(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    data = tmp_path / "data"
    output = quickstart(ALICE, "--dir", data, "--user", "nobody", "--offline", *CHEAP)
    nobody = pwd.getpwnam("nobody").pw_uid
    assert [path for path in (data, *data.rglob("*")) if path.lstat().st_uid != nobody] == []
    assert f"{data} belongs to nobody\n" in output
    group = grp.getgrgid(pwd.getpwnam("nobody").pw_gid).gr_name
    assert f" --uid nobody --gid {group} mailsvc" in output
    other = refused(ALICE, "--dir", data, "--user", "daemon")
    assert "belongs to user id" in other and "chown -R daemon" in other
    # Before anything is made, it is seen that the unit could not work.
    home = refused(ALICE, "--dir", "/home/nobody-here/data", "--user", "nobody", "--units",
                   tmp_path)
    assert "hides home directories" in home and not Path("/home/nobody-here").exists()


def test_units(tmp_path: Path) -> None:
    stock = {name: (Path(__file__).parent.parent / "etc" / name).read_text()
             for name in installation.UNITS}
    usual = installation.unit_texts(Path("/etc/mailsvc.toml"), Path("/var/lib/mailsvc"), ME,
                                    Path("/opt/mailsvc/bin"))
    group = re.search("Group=(.*)", usual["mailsvc.service"])
    assert group
    assert {name: text.replace(f"User={ME}\nGroup={group[1]}", "User=mailsvc\nGroup=mailsvc")
            for name, text in usual.items()} == stock
    # Elsewhere: systemd finds nothing wrong with it.
    texts = installation.unit_texts(Path("/etc/m.toml"), Path("/srv/mail"), ME, Path("/opt/m/bin"))
    service = texts["mailsvc.service"]
    for line in ("ReadWritePaths=/srv/mail", "WorkingDirectory=/srv/mail", f"User={ME}",
                 "Environment=PATH=/opt/m/bin:/usr/local/bin:/usr/bin:/bin"):
        assert f"\n{line}\n" in service
    assert "--config /etc/m.toml " in service and "StateDirectory" not in service
    made = installation.units(tmp_path, texts)
    assert made == [Made(f"unit {tmp_path / name}") for name in texts]
    assert installation.units(tmp_path, texts) == [There(f"unit {tmp_path / name}")
                                                   for name in texts]
    (tmp_path / "mailsvc.service").write_text("[Unit]\n")
    assert installation.units(tmp_path, texts)[0] == There(
        f"unit {tmp_path / 'mailsvc.service'}, other than this version's")
    assert (tmp_path / "mailsvc.service").read_text() == "[Unit]\n"


def test_units_of_a_package_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged, own = tmp_path / "packaged", tmp_path / "own"
    packaged.mkdir()
    own.mkdir()
    monkeypatch.setattr(installation, "PACKAGED", packaged)
    texts = {"mailsvc.service": "[Service]\n", "mailsvc.socket": "[Socket]\n"}
    for name, text in texts.items():
        (packaged / name).write_text(text)
    assert installation.units(own, texts) == [There(f"unit {packaged / name}") for name in texts]
    # With another way to start it, it needs a unit of its own.
    changed = {**texts, "mailsvc.socket": "[Socket]\nListenStream=80\n"}
    assert installation.units(own, changed) == [
        There(f"unit {packaged / 'mailsvc.service'}"), Made(f"unit {own / 'mailsvc.socket'}")]


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        absent("systemd-analyze is not installed; it is in the package systemd")
    installation.units(tmp_path, installation.unit_texts(
        Path("/etc/m.toml"), Path("/srv/mail"), ME, Path("/opt/m/bin")))
    done = subprocess.run(["systemd-analyze", "verify", str(tmp_path / "mailsvc.service")],
                          capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("config", "data", "text"), [
    ("/etc/my mail.toml", "/var/lib/mailsvc", "quotation marks"),
    ("/etc/mailsvc.toml", "/srv/100%", "quotation marks"),
    ("/etc/mailsvc.toml", "/home/alice/mail", "hides home directories"),
], ids=["space", "percent", "home"])
def test_places_that_a_unit_could_not_use(config: str, data: str, text: str) -> None:
    with pytest.raises(Impossible, match=text):
        installation.unit_texts(Path(config), Path(data), ME, Path("/opt/mailsvc/bin"))


def test_the_reference_with_keys_set() -> None:
    given = {"service.hostname": "mx.example.org", "smtp.recipients": 7, "relay.dns": ["::1"]}
    text = reference(given)
    assert [line for line in reference().splitlines() if line not in text.splitlines()] == [
        '#hostname = ""', next(line for line in reference().splitlines()
                               if line.startswith("#recipients = ")), "#dns = []"]
    assert 'hostname = "mx.example.org"\n' in text


def test_records_are_written_anew_when_they_change(tmp_path: Path) -> None:
    settings = Settings.from_mapping({"service": {"data": str(tmp_path)}})
    place, piece = installation.records(settings, "example.org", "a\n")
    assert isinstance(piece, Made) and place.read_text() == "a\n"
    assert isinstance(installation.records(settings, "example.org", "a\n")[1], There)
    assert isinstance(installation.records(settings, "example.org", "b\n")[1], Made)
    assert place.read_text() == "b\n" and list(place.parent.iterdir()) == [place]
