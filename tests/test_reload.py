"""mailsvc.control, `mailsvc reload`, `mailsvc config diff`: beside whole services."""

from __future__ import annotations

import json
import re
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mailsvc import control
from mailsvc.cli import main
from mailsvc.cli.diff import _changes
from mailsvc.config import load
from mailsvc.control import ReloadRefused
from mailsvc.localsocket import NoService
from mailsvc.tracing.archive import Reader
from mailsvc.tracing.events import Entry
from tests.service import PATIENCE, Dialogue, Service
from tests.test_workers import children, until
from tests.twistd import TWISTD, Twistd, add_account

#: What `config diff --json` says where nothing differs.
UNCHANGED = {"reload": True, "changes": [], "envelopes": None}

BASE = """
[service]
data = "{data}"
hostname = "{hostname}"
workers = {workers}
[listeners]
smtp = ["tcp:0:interface=127.0.0.1"]
pop3 = ["tcp:0:interface=127.0.0.1"]
"""


def write(path: Path, more: str = "", *, hostname: str = "mx.example.org",
          workers: int = 2) -> None:
    path.write_text(BASE.format(data=path.parent / "data", hostname=hostname, workers=workers)
                    + more)


def made(directory: Path) -> Path:
    """The configuration of a service with its data below *directory*."""
    (directory / "data").mkdir()
    add_account(directory / "data")
    path = directory / "mailsvc.toml"
    write(path)
    return path


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    return made(tmp_path)


@pytest.fixture(scope="module")
def _serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Twistd]]:
    path = made(tmp_path_factory.mktemp("serving"))
    with twistd(path) as process:
        process.wait_for("pop3 listens on")
        yield path, process


@pytest.fixture
def serving(_serving: tuple[Path, Twistd]) -> Iterator[tuple[Path, Twistd]]:
    """One service for all that change nothing of it."""
    path, process = _serving
    write(path)
    yield path, process
    assert "Traceback" not in process.output
    write(path)
    assert diff(path) == UNCHANGED
    assert banner(process).startswith(b"220 mx.example.org")


def twistd(configuration: Path, *options: str) -> Twistd:
    return Twistd([*TWISTD, "--nodaemon", "--pidfile=", "mailsvc", "--config", str(configuration),
                   *options])


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments], prog_name="mailsvc")


def diff(configuration: Path, *arguments: object, status: int = 0) -> Any:
    done = run("config", "diff", "--json", "--config", configuration, *arguments)
    assert done.exit_code == status, done.stderr
    return json.loads(done.stdout)


def banner(process: Twistd) -> bytes:
    with Dialogue(("127.0.0.1", process.port("smtp"))) as smtp:
        return smtp.reply()


# ---- config diff --------------------------------------------------------------------------------


def test_what_a_reload_would_change(serving: tuple[Path, Twistd]) -> None:
    configuration, _ = serving
    done = run("config", "diff", "--config", configuration)
    assert (done.exit_code, done.stdout) == (0, f"nothing would change by {configuration}\n")
    assert diff(configuration) == UNCHANGED
    write(configuration, "[smtp]\nrecipients = 7\n", hostname="other.example.org")
    found = diff(configuration, status=1)
    assert found["envelopes"]["changes"] == []
    assert (found["reload"], found["changes"]) == (True, [
        {"key": "service.hostname", "now": "mx.example.org", "then": "other.example.org",
         "where": f"{configuration}:4", "needs": "reload"},
        {"key": "smtp.recipients", "now": 1000, "then": 7, "where": f"{configuration}:10",
         "needs": "reload"}])
    done = run("config", "diff", "--config", configuration)
    assert done.exit_code == 1
    assert [line.split() for line in done.stdout.splitlines()[:3]] == [
        ["KEY", "NOW", "THEN", "FROM", "NEEDS"],
        ["service.hostname", '"mx.example.org"', '"other.example.org"', f"{configuration}:4",
         "reload"],
        ["smtp.recipients", "1000", "7", f"{configuration}:10", "reload"]]
    assert "\n`mailsvc reload` changes it without dropping a session.\n" in done.stdout


def test_what_needs_a_restart(serving: tuple[Path, Twistd], tmp_path: Path) -> None:
    configuration, _ = serving
    other = tmp_path / "other.toml"
    other.write_text(configuration.read_text().replace(
        'pop3 = ["tcp:0', 'pop3 = ["tcp:1').replace("/data", "/elsewhere")
        + '[log]\nlevel = "debug"\n')
    found = diff(configuration, other, status=1)
    assert not found["reload"]
    needs = {each["key"]: each["needs"] for each in found["changes"]}
    assert needs == {"service.data": "restart", "listeners.pop3": "restart", "log.level": "restart",
                     # What lies in the directory goes with it.
                     "service.store": "reload", "accounts.database": "reload"}
    assert "would be refused: restart" in run(
        "config", "diff", other, "--config", configuration).stdout


def test_options_of_the_service_count_and_passwords_are_not_shown(configuration: Path) -> None:
    def relay(password: str, host: str) -> str:
        return ("[smtp]\nrecipients = 7\n"
                f'[relay]\nsmarthost = "smtps://carol:{password}@{host}.example.net"\n')

    write(configuration, relay("first", "a"))
    with twistd(configuration, "--set", "smtp.recipients=3", "--pop3s", "tcp:0:interface=127.0.0.1"
                ) as process:
        process.wait_for("pop3 listens on")
        for host, expected in (("a", "another"), ("b", "...")):
            write(configuration, relay("second", host))
            (change,) = diff(configuration, status=1)["changes"]
            assert (change["now"], change["then"]) == (
                "smtps://carol:...@a.example.net", f"smtps://carol:{expected}@{host}.example.net")


def test_envelopes_are_played_through_what_would_come(configuration: Path) -> None:
    submits = ("[submission]\n" 'trusted_networks = ["127.0.0.1/32"]\n')
    write(configuration, submits + '[routing]\nrelay_domains = ["backup.example"]\n')
    with twistd(configuration, "--submission", "tcp:0:interface=127.0.0.1") as process:
        process.wait_for("pop3 listens on")
        for name, recipients in (("smtp", ["alice@example.org", "x@backup.example", "x@far.example",
                                           "x@backup.example"]),
                                 ("submission", ["y@far.example"])):
            with Dialogue(("127.0.0.1", process.port(name))) as smtp:
                assert smtp.reply().startswith(b"220")
                assert smtp.say(b"EHLO [127.0.0.1]").startswith(b"250")
                assert smtp.say(b"MAIL FROM:<a@example.org>").startswith(b"250")
                for recipient in recipients:
                    smtp.say(b"RCPT TO:<%b>" % recipient.encode())
                assert smtp.say(b"DATA").startswith(b"354")
                assert smtp.say(b"Subject: x\r\n\r\n.").startswith(b"250")
        directory = configuration.parent / "data" / "trace"
        until(lambda: len(events(directory)) == 3)
        write(configuration, submits + """
            [relay.routes]
            "far.example" = "smtp://smart.example.net"
        """)
        found = diff(configuration, status=1)["envelopes"]
        assert (found["came"], found["unlike"], found["replayed"]) == (5, 4, 4)
        mine = {"client": "127.0.0.1", "sender": "a@example.org"}
        assert [{key: value for key, value in each.items() if key not in ("now", "then", "user")}
                for each in found["changes"]] == [
            {"times": 2, "recipient": "x@backup.example", **mine},
            {"times": 1, "recipient": "y@far.example", **mine}]
        relayed, submitted = found["changes"]
        assert relayed["now"]["reply"].startswith("250 2.1.5 ")
        assert relayed["then"]["reply"].startswith("550 5.7.1 ")
        assert (relayed["user"], bool(submitted["user"])) == ("", True)
        assert submitted["now"]["reply"] == submitted["then"]["reply"]
        assert submitted["now"]["onward"] == [{"address": "y@far.example", "hop": "far.example"}]
        assert submitted["then"]["onward"] == [
            {"address": "y@far.example", "hop": "smart.example.net:25"}]
        text = run("config", "diff", "--config", configuration).stdout
        assert re.search(r"^Of 5 envelopes since \S+, 3 would be answered otherwise\.$", text,
                         re.MULTILINE)
        assert "a@example.org -> x@backup.example" in text
        for options in (("--no-replay",), ("--replay", "1s")):
            until(lambda options=options: not (diff(configuration, *options, status=1)["envelopes"]
                                               or {"came": 0})["came"])
        # Nobody has noticed.
        assert len(events(directory)) == 3


def events(directory: Path) -> list[Entry]:
    """What is kept of envelopes that were offered."""
    with Reader(directory) as reader:
        return [each for each in reader.everything(0.0)
                if each.kind.namespace == "mailsvc.smtp" and "sender" in each.kind.fields]


def test_what_cannot_be_compared(serving: tuple[Path, Twistd], tmp_path: Path) -> None:
    done = run("config", "diff", "--dir", tmp_path)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "no service runs with the data in" in done.stderr
    bad = tmp_path / "bad.toml"
    bad.write_text("[smtp]\nrecipients = 'many'\nhops = -\n")
    for arguments in ((bad, "--config", serving[0]), ("--config", bad)):
        done = run("config", "diff", *arguments)
        assert (done.exit_code, done.stdout) == (2, "")
        assert f"{bad}:2: " in done.stderr
        assert f"{bad}:3:" in done.stderr


def test_a_service_of_another_version_has_other_keys(
    serving: tuple[Path, Twistd]
) -> None:
    configuration, _ = serving
    told = control.running(configuration.parent / "data")
    del told["values"]["smtp.hops"]
    told["values"]["smtp.gone"] = 1
    assert [(each["key"], each["now"], each["then"], each["needs"])
            for each in _changes(told, load(configuration))] == [
        ("smtp.hops", None, 100, "restart"), ("smtp.gone", 1, None, "restart")]


# ---- reload -------------------------------------------------------------------------------------


@pytest.fixture
def service(configuration: Path) -> Iterator[Twistd]:
    """One to be changed."""
    with twistd(configuration) as process:
        process.wait_for("pop3 listens on")
        yield process


def test_reload_waits_until_all_serve_by_it(configuration: Path, service: Twistd) -> None:
    with Dialogue(("127.0.0.1", service.port("smtp"))) as smtp:
        assert smtp.reply().startswith(b"220 mx.example.org")
        write(configuration, hostname="other.example.org", workers=3)
        done = run("reload", "--config", configuration)
        assert (done.exit_code, done.output) == (
            0, "reloaded: 3 workers serve by the configuration as it is now\n")
        assert diff(configuration) == UNCHANGED
        # The session that there was goes on.
        assert smtp.say(b"EHLO x.example").startswith(b"250")
        done = run("reload", "--json", "--config", configuration)
        assert json.loads(done.stdout) == {"workers": 3, "refused": []}


@pytest.mark.parametrize(("more", "complaints"), [
    ("[smtp]\nrecipients = 'many'\n[pop3]\nerrors = -1\n",
     ['mailsvc.toml:10: smtp.recipients = "many": expected an integer',
      "mailsvc.toml:12: pop3.errors = -1: expected"]),
    ("[log]\nlevel = 'debug'", ["a change of [log] needs a restart"]),
    ("[tls]\ncertificates = ['/nowhere']", ["workers cannot start by it: ", "/nowhere"]),
], ids=["mistakes", "restart", "workers"])
def test_a_reload_that_is_refused_tells_everything_and_changes_nothing(
    serving: tuple[Path, Twistd], more: str, complaints: list[str]
) -> None:
    configuration, _ = serving
    write(configuration, more, hostname="other.example.org")
    done = run("reload", "--dir", configuration.parent / "data")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: refused; the configuration stays as it was:\n")
    for complaint in complaints:
        assert complaint in done.stderr
    done = run("reload", "--json", "--dir", configuration.parent / "data")
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert told["workers"] is None
    assert complaints[0] in "\n".join(told["refused"])


def test_the_data_directory_needs_a_restart(serving: tuple[Path, Twistd]) -> None:
    configuration, _ = serving
    data = configuration.parent / "data"
    configuration.write_text(configuration.read_text().replace("/data", "/elsewhere"))
    with pytest.raises(ReloadRefused, match=r"a change of service\.data needs a restart"):
        control.reload(data)


def test_a_reload_amid_another_is_refused_and_leaves_that_one_alone(
    configuration: Path, service: Twistd
) -> None:
    data = configuration.parent / "data"
    served: list[int] = []
    with closing(sqlite3.connect(data / "accounts.sqlite", isolation_level=None)) as database:
        # Workers cannot start while they wait for the accounts.
        database.execute("BEGIN EXCLUSIVE")
        write(configuration, hostname="first.example.org")
        first = threading.Thread(target=lambda: served.append(control.reload(data)))
        first.start()
        until(lambda: len(children(service.process.pid)) == 4)
        write(configuration, hostname="second.example.org")
        with pytest.raises(ReloadRefused, match="still starting; try again"):
            control.reload(data)
        database.execute("ROLLBACK")
        first.join(PATIENCE)
    assert served == [2]
    assert control.running(data)["values"]["service.hostname"] == "first.example.org"


def test_one_process_cannot_take_up_another_configuration(configuration: Path) -> None:
    write(configuration, workers=1)
    with twistd(configuration) as process:
        process.wait_for("smtp listens on")
        done = run("reload", "--config", configuration)
        assert done.exit_code == 1
        assert "one worker serves: a changed configuration counts from the" in done.stderr
        write(configuration, "[smtp]\nhops = 5\n", workers=1)
        assert diff(configuration, status=1)["changes"][0]["needs"] == "restart"


def test_a_service_from_flags_has_nothing_to_read_again(whole: Service) -> None:
    with pytest.raises(ReloadRefused, match="started from flags"):
        control.reload(whole.directory)
    done = run("config", "diff", "--dir", whole.directory)
    assert done.exit_code == 2
    assert "reads no configuration file" in done.stderr


def test_without_a_service(tmp_path: Path) -> None:
    with pytest.raises(NoService, match="no service runs"):
        control.reload(tmp_path)
    done = run("reload", "--dir", tmp_path)
    assert done.exit_code == 1
    assert "no service runs with the data in" in done.stderr


@pytest.mark.parametrize("request_", [b"\n", b"{}\n", b"[]\n", b"\xff\n", b'{"action": "fly"}\n',
                                      b'{"action": ["reload"]}\n', b"x" * 100_000 + b"\n"],
                         ids=["empty", "none", "array", "octets", "unknown", "list", "endless"])
def test_what_is_no_request_does_no_harm(
    whole: Service, request_: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(whole.directory / "control"))
        connection.sendall(request_)
        answer = b""
        with suppress(ConnectionResetError):
            answer = connection.makefile("rb").read()
    assert not answer or "error" in json.loads(answer)
    assert control.running(whole.directory)["values"]
    assert "Traceback" not in whole.log.read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("s") / "data", ("a@example.org:b",), ("--workers", "2")
                 ) as service:
        assert (service.directory / "control").stat().st_mode & 0o777 == 0o600
        yield service
