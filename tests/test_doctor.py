"""``mailsvc doctor``: each fact, from a DNS server and services that say what the test wants."""

from __future__ import annotations

import datetime
import json
import os
import pty
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor, task
from twisted.internet.defer import Deferred

from mailsvc.config import Settings
from mailsvc.doctor import host
from mailsvc.doctor.facts import Check, Fact, Verdict, examine, in_thread, ok, warn
from mailsvc.doctor.listening import is_proxied, judged
from mailsvc.trust import Secured
from tests.authority import Authority, pem
from tests.command_line import CommandLine
from tests.nameserver import NameServer
from tests.policyhost import PolicyHost
from tests.service import Service
from tests.test_doctor_published import POLICY, RIGHT

# ---- how checks are run -------------------------------------------------------------------------


def test_checks_run_side_by_side_each_bounded_and_are_told_in_order() -> None:
    clock = task.Clock()
    slow: Deferred[list[Fact]] = Deferred()
    told: list[Fact] = []
    waited: list[str] = []

    async def first() -> list[Fact]:
        return await slow

    async def second() -> list[Fact]:
        return [warn("second", "a\x1b\nb", "do")]

    async def never() -> list[Fact]:
        return await Deferred()

    async def broken() -> list[Fact]:
        raise ValueError("oh")

    checks = [Check("first", first), Check("second", second), Check("never", never),
              Check("broken", broken)]
    done = Deferred.fromCoroutine(examine(checks, 5, clock, told.append, waited.append))
    assert (told, waited) == ([], ["first"])
    slow.callback([ok("first", "x")])
    assert [each.what for each in told] == ["first", "second"] and waited == ["first", "never"]
    clock.advance(5)
    facts: list[Fact] = []
    done.addCallback(facts.extend)
    assert facts == told
    assert [(each.what, str(each.verdict)) for each in facts] == [
        ("first", "ok"), ("second", "warn"), ("never", "FAIL"), ("broken", "FAIL")]
    assert "within 5 seconds" in facts[2].detail
    assert "ValueError: oh" in facts[3].detail


def test_no_more_checks_run_at_once_than_may() -> None:
    clock = task.Clock()
    waiting: list[Deferred[list[Fact]]] = []

    async def find() -> list[Fact]:
        waiting.append(Deferred())
        return await waiting[-1]

    done = Deferred.fromCoroutine(
        examine([Check(str(n), find) for n in range(5)], 5, clock, lambda _: None, at_once=2))
    assert len(waiting) == 2
    clock.advance(4)
    waiting[0].callback([])
    assert len(waiting) == 3
    clock.advance(4)  # the second has had its time, the third has not
    assert len(waiting) == 4 and not waiting[2].called
    for each in waiting[2:]:
        each.callback([])
    waiting[-1].callback([])
    assert [each.what for each in getattr(done, "result", [])] == ["1"]


def test_a_fact_is_one_line_whatever_a_peer_said() -> None:
    text = str(warn("a", "x\ny\x1b[31m\r\n\x9bz\u202e", "do\nthis"))
    assert text == "warn  " + "a".ljust(30) + "  x y?[31m ?z? — do this"


@pytest_twisted.ensureDeferred
async def test_a_thread_that_hangs_is_left_behind() -> None:
    import threading  # noqa: PLC0415

    release = threading.Event()
    try:
        hanging = Check("disk", lambda: in_thread(reactor, release.wait))  # type: ignore[arg-type]
        (fact,) = await examine([hanging], 0.05, reactor, lambda _: None)
        assert "could not be told within" in fact.detail
    finally:
        release.set()


# ---- the host -----------------------------------------------------------------------------------


def settings(data: Path) -> Settings:
    return Settings.from_mapping({"service": {"data": str(data)}})


def test_the_data_directory(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (fact,) = host.data_directory(settings(data))
    assert fact.verdict is Verdict.FAIL and "there is no" in fact.detail
    data.mkdir(0o700)
    (data / "mail").mkdir()
    assert [each.verdict for each in host.data_directory(settings(data))] == [Verdict.OK]
    if os.geteuid() == 0:
        os.chown(data / "mail", 12345, -1)
        (fact,) = host.data_directory(settings(data))
        assert fact.verdict is Verdict.FAIL and "chown -R" in fact.remedy
        assert str(data / "mail") in fact.detail
    data.chmod(0o755)
    (fact,) = host.data_directory(settings(data))
    assert (fact.verdict, fact.remedy) == (Verdict.WARN, f"chmod 700 {data}")


@pytest.mark.parametrize(("free", "files", "verdict"), [
    (50, 50, "ok"), (5, 50, "warn"), (0.1, 50, "FAIL"), (50, 5, "warn"), (50, 1, "FAIL"),
], ids=["room", "little", "nothing", "few files", "no files"])
def test_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, files: int,
              verdict: str) -> None:
    blocks, most = 25_000_000, 1_000_000  # 100 GB
    status = os.statvfs_result((4096, 4096, blocks, 0, int(blocks * free / 100), most, 0,
                                most * files // 100, 0, 255))
    monkeypatch.setattr(host.os, "statvfs", lambda _: status)
    assert [str(each.verdict) for each in host.room(settings(tmp_path))] == [verdict]


def test_nobody_to_get_mail(tmp_path: Path) -> None:
    data = CommandLine(tmp_path)
    (fact,) = host.accounts(settings(tmp_path))
    assert fact.verdict is Verdict.FAIL
    data("domain", "add", "example.org")
    (fact,) = host.accounts(settings(tmp_path))
    assert fact.remedy == "mailsvc account add NAME@DOMAIN"
    data("account", "add", "alice@example.org", "--password-stdin", stdin="secret")
    (fact,) = host.accounts(settings(tmp_path))
    assert fact == ok("accounts", "1 account in 1 domain")


def test_the_clock() -> None:
    # What it says depends on the machine.
    (fact,) = host.clock()
    assert fact.what == "clock" and fact.verdict is not Verdict.FAIL


NOW = datetime.datetime(2026, 11, 27, tzinfo=datetime.UTC)


@pytest.mark.parametrize(("days", "flaw", "reason", "verdict", "text"), [
    (90, "", "", "ok", "trusted for mx.example.org"),
    (5, "", "", "warn", "5 days left"),
    (-1, "certificate has expired", "certificate-expired", "FAIL", "it has ended"),
    (90, "self-signed certificate", "certificate-not-trusted", "warn", "nobody else trusts it"),
    (90, "the certificate is not for a but for b", "certificate-host-mismatch", "FAIL", "for b"),
], ids=["good", "soon", "ended", "self-signed", "other name"])
def test_certificates(days: int, flaw: str, reason: str, verdict: str, text: str) -> None:
    secured = Secured("TLSv1.3", "x", 256, verified=not flaw, flaw=flaw, reason=reason,
                      subject="CN=x", not_after=NOW + datetime.timedelta(days=days))
    fact = judged(secured, "mx.example.org", NOW)
    assert str(fact.verdict) == verdict and text in fact.detail


# ---- all of it ----------------------------------------------------------------------------------


def doctor(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from mailsvc.cli import main; main()", "doctor", *arguments],
        capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_service_that_is_well(tmp_path: Path) -> None:
    authority = Authority()
    issued = authority.issue("mx.example.org")
    (tmp_path / "cert.pem").write_bytes(issued.chain)
    (tmp_path / "key.pem").write_bytes(pem(issued.key))
    (tmp_path / "ca.pem").write_bytes(pem(authority.root))
    (tmp_path / "web.pem").write_bytes(authority.issue("mta-sts.example.org").combined)
    data = tmp_path / "data"
    web = PolicyHost(tmp_path / "web.pem")
    web.answers["mta-sts.example.org"] = 200, "text/plain", POLICY
    with web, NameServer({**RIGHT}) as names, Service(
            data, ("alice@example.org:secret",), (
                "--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"),
                *(word for kind in ("submission", "submissions", "pop3s", "lmtp", "http")
                  for word in (f"--{kind}", "127.0.0.1:0")),
                *(word for kind in ("acme", "console", "odmr") for word in (
                    "--set", f'listeners.{kind}=["tcp:0:interface=127.0.0.1"]')),
                "--workers", "2")) as service:
        CommandLine(data)("dkim", "add", "example.org", "--algorithm", "ed25519", "--selector",
                          "e1", "--use")
        (line,) = CommandLine(data)("dkim", "records", "example.org").splitlines()
        names.zone["e1._domainkey.example.org"] = ["TXT " + line.split('"')[1]]
        names.zone["example.net"] = ["MX 10 mx.example.org"]
        names.zone["mta-sts.example.org"] = ["A 127.0.0.1"]
        config = tmp_path / "mailsvc.toml"
        config.write_text(f"""
[service]
hostname = "mx.example.org"
data = "{data}"
[relay]
dns = ["{names.address}"]
loopback = true
policy_port = {web.port}
port = {service.smtp[1]}
authorities = "{tmp_path / 'ca.pem'}"
""")
        done = doctor("--config", str(config), "--address", "127.0.0.1", "--reach", "example.net")
        lines = done.stdout.splitlines()
        assert done.stderr == ""
        assert not [line for line in lines if line.startswith("FAIL")], done.stdout
        # That depends on the machine.
        warned = [line for line in lines if line.startswith("warn") and " clock " not in line]
        assert warned == []
        assert lines[-1].startswith("verdict: ")
        clock_is_right = any(line.startswith("ok    clock") for line in lines)
        assert done.returncode == (0 if clock_is_right or "note  clock" in done.stdout else 1)
        for kind, (place, port) in service.listeners.items():
            (line,) = [line for line in lines if f" {kind} {place}:{port} " in line]
            assert ("TLSv1.3" in line) == (
                kind not in ("lmtp", "http", "acme", "console")), line
        for text in ("runs and is ready", "trusted for mx.example.org", "e1 is published",
                     "127.0.0.1 may send", "open: mx.example.org [127.0.0.1] says 220 ",
                     "0 messages wait to leave", "mode enforce"):
            assert text in done.stdout


def test_a_service_from_flags_alone(tmp_path: Path) -> None:
    """What it goes by only itself can tell, and nobody is to find it in the DNS."""
    with Service(tmp_path / "data", (), ("--pop3s", "127.0.0.1:0")):
        done = doctor("--dir", str(tmp_path / "data"))
        assert done.stderr == ""
        assert "FAIL" not in done.stdout, done.stdout
        assert "note  DNS " in done.stdout
        assert done.returncode < 2
        # Unless it is asked for.
        with_domain = doctor("--dir", str(tmp_path / "data"), "example.org", "--timeout", "2")
        assert " example.org " in with_domain.stdout and "note  DNS " not in with_domain.stdout


def test_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, and not where somebody wants none (no-color.org)."""
    command = [sys.executable, "-m", "mailsvc", "--dir", str(tmp_path / "none"), "doctor",
               "--offline"]
    for wanted, value in (True, None), (True, ""), (False, "1"):
        if value is None:
            monkeypatch.delenv("NO_COLOR", raising=False)
        else:
            monkeypatch.setenv("NO_COLOR", value)
        ours, theirs = pty.openpty()
        process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        said = b""
        with suppress(OSError):  # EIO is a terminal's end
            while block := os.read(ours, 65_536):
                said += block
        os.close(ours)
        assert process.wait(60) == 2
        assert b"FAIL" in said
        assert (b"\x1b[31m" in said) == wanted, said


def test_a_service_that_is_not(tmp_path: Path, silent: int) -> None:
    data = tmp_path / "data"
    CommandLine(data)("domain", "add", "example.org")
    config = tmp_path / "mailsvc.toml"
    with NameServer({"example.net": ["MX 5 mx.example.net"], "mx.example.net": ["A 127.0.0.1"],
                     "example.org": ["SILENCE"]}) as names:
        config.write_text(f"""
[service]
hostname = "mx.example.org"
data = "{data}"
[tls]
certificates = ["{tmp_path / 'none.pem'}"]
[relay]
dns = ["{names.address}"]
loopback = true
port = {silent}
""")
        done = doctor("--config", str(config), "--reach", "example.net", "--timeout", "2",
                      "--json")
    assert (done.returncode, done.stderr) == (2, "")
    told = json.loads(done.stdout)
    assert told["verdict"] == "fail"
    failed = {each["what"]: each["detail"] for each in told["facts"]
              if each["verdict"] == "fail"}
    assert "none.pem" in failed["configuration"]
    assert "0 accounts" in failed["accounts"]
    assert "no service runs" in failed["service"]
    assert "nobody of example.net answers" in failed[f"outgoing port {silent}"]
    assert failed["MX example.org"] == "could not be told within 2 seconds"
    assert all(each["remedy"] for each in told["facts"] if each["verdict"] in ("warn", "fail"))


def test_a_configuration_with_mistakes_is_facts_too(tmp_path: Path) -> None:
    config = tmp_path / "mailsvc.toml"
    config.write_text("[smtp]\nrecipients = 'many'\nnonsense = 1\n")
    done = doctor("--config", str(config))
    assert (done.returncode, done.stderr) == (2, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and all(line.startswith("FAIL  configuration") for line in lines[:2])
    assert lines[2] == "verdict: FAIL (2 FAIL)"


def test_offline_asks_nobody(tmp_path: Path) -> None:
    data = tmp_path / "data"
    CommandLine(data)("domain", "add", "example.org")
    with NameServer({}) as names:
        config = tmp_path / "mailsvc.toml"
        config.write_text(f'[service]\ndata = "{data}"\n[relay]\ndns = ["{names.address}"]\n')
        done = doctor("--config", str(config), "--offline")
        assert done.returncode == 2 and names.asked == []
        assert "example.org" not in done.stdout


#: Becomes a user who may look at little, once everything is imported from where it lies.
_NOBODY = """
import encodings.idna, encodings.utf_8_sig, importlib, os, pkgutil, sys
import dns.rdtypes.ANY, dns.rdtypes.IN
import mailsvc.cli, mailsvc.cli.doctor
for package in dns.rdtypes.ANY, dns.rdtypes.IN:
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
from twisted.internet import reactor
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
sys.argv = ["mailsvc", *sys.argv[1:]]
mailsvc.cli.main()
"""


def test_who_may_not_look_is_told_so() -> None:
    place = Path(tempfile.mkdtemp())  # tmp_path is hidden from others
    try:
        place.chmod(0o755)
        CommandLine(place / "data")("domain", "add", "example.org")
        (place / "data").chmod(0o700 if os.geteuid() == 0 else 0)
        with NameServer({}) as names:
            (place / "m.toml").write_text(f'service.data = "{place}/data"\n'
                                          f'relay.dns = ["{names.address}"]\n')
            done = subprocess.run(
                [sys.executable, "-c", _NOBODY, "--config", str(place / "m.toml"), "doctor",
                 "example.org", "--json"],
                capture_output=True, text=True, timeout=60, check=False)
        assert done.stderr == ""
        found = {each["what"]: each for each in json.loads(done.stdout)["facts"]}
        for what in ("data directory", "accounts", "service"):
            assert found[what]["verdict"] == "note", found[what]
            assert found[what]["remedy"].startswith("run this as root")
        assert found["DKIM example.org"]["verdict"] == "fail"
        assert "run as the user who owns it" in found["DKIM example.org"]["detail"]
    finally:
        (place / "data").chmod(0o700)
        shutil.rmtree(place)


def test_behind_a_proxy_nobody_is_asked(tmp_path: Path) -> None:
    behind = Settings.from_mapping({"proxy": {"networks": ["127.0.0.0/8"]}})
    assert is_proxied(behind) and not is_proxied(settings(tmp_path))
    with Service(tmp_path / "data", ("alice@example.org:secret",),
                 ("--set", 'proxy.networks=["127.0.0.0/8"]')) as service:
        config = tmp_path / "mailsvc.toml"
        config.write_text(f'proxy.networks = ["127.0.0.0/8"]\n'
                          f'service.data = "{service.directory}"\n')
        done = doctor("--config", str(config), "--offline", "--deep")
        lines = [line for line in done.stdout.splitlines() if "PROXY header" in line]
        assert len(lines) == 3 and all(line.startswith("note") for line in lines), done.stdout


def test_many_domains_are_not_all_looked_at(tmp_path: Path) -> None:
    data = CommandLine(tmp_path / "data")
    for number in range(22):
        data("domain", "add", f"d{number:02}.example")
    with NameServer({}) as names:
        config = tmp_path / "mailsvc.toml"
        config.write_text(f'service.data = "{data.dir}"\nrelay.dns = ["{names.address}"]\n')
        done = doctor("--config", str(config))
    assert "2 of 22 not looked at" in done.stdout
    assert "d19.example" in done.stdout and "d20.example" not in done.stdout


def test_what_speaks_http_is_not_asked_in_smtp(tmp_path: Path) -> None:
    with Service(tmp_path / "data", (), (
            "--console", "127.0.0.1:0", "--api", f"unix:{tmp_path}/api", "--workers", "1")
            ) as service:
        config = tmp_path / "mailsvc.toml"
        config.write_text(f'service.data = "{service.directory}"\n')
        told = doctor("--config", str(config), "--offline").stdout.splitlines()
        for kind in "console", "api":
            (line,) = [line for line in told if f"{kind} " in line and "connections" in line]
            assert line.startswith("ok"), line
