"""mailsvc.endpoints, mailsvc.contradictions: what cannot start is told before it is tried."""

from __future__ import annotations

import itertools
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory

from mailsvc.cli import main
from mailsvc.config import ConfigurationError, Settings, load
from mailsvc.contradictions import refuse
from mailsvc.endpoints import collisions, places
from tests.twistd import IPV6, TWISTD, Twistd

# ---- places -------------------------------------------------------------------------------------

#: Of the port of a test; ``unix:`` in its directory.
ENDPOINTS = ["tcp:{port}", "tcp:{port}:interface=127.0.0.1", "tcp:{port}:interface=127.0.0.2",
             "haproxy:tcp:{port}", "tcp:{other}", "unix:{path}", "unix:{path}:mode=660",
             *(["tcp6:{port}", r"tcp6:{port}:interface=\:\:1",
                r"tcp:{port}:interface=\:\:ffff\:127.0.0.1"] if IPV6 else [])]


@pytest.mark.parametrize(("one", "two"), list(
    itertools.combinations_with_replacement(ENDPOINTS, 2)))
def test_as_the_kernel_has_it(one: str, two: str, tmp_path: Path) -> None:
    """Of two endpoints, the second is said to collide if it cannot be bound beside the first."""
    with socket.create_server(("", 0)) as free, socket.create_server(("", 0)) as another:
        words = {"port": free.getsockname()[1], "other": another.getsockname()[1],
                 "path": tmp_path / "socket"}
    bound: list[Any] = []
    refused: list[object] = []
    for each in one, two:
        serverFromString(reactor, each.format(**words)).listen(Factory()).addCallbacks(
            bound.append, refused.append)
    for port in bound:
        port.stopListening()
    assert len(bound) + len(refused) == 2
    told = list(collisions([("first", one.format(**words)), ("second", two.format(**words))]))
    assert [(second, first) for (second, _), (first, _) in told] == [
        ("second", "first")] * len(refused)


@pytest.mark.parametrize(("endpoint", "problem"), [
    ("tcp:99999", "there is no port 99999"),
    ("tcp:65536", "there is no port 65536"),
    ("tcp:-1", "there is no port -1"),
    (r"tcp6:65536:interface=\:\:1", "there is no port 65536"),
    ("haproxy:tcp:70000", "there is no port 70000"),
    ("tcp:smtp", "smtp"),
    ("tcp", "port"),
    ("quic:25", "quic"),
])
def test_no_endpoint(endpoint: str, problem: str) -> None:
    with pytest.raises(Exception, match=problem):
        places(endpoint)
    with pytest.raises(ConfigurationError, match=f"expected Twisted endpoint.*{problem}"):
        Settings.from_mapping({"listeners": {"smtp": [endpoint]}})


@pytest.mark.parametrize("endpoint", ["tcp:0", "tcp:65535", "systemd:domain=INET6:index=0"])
def test_an_endpoint(endpoint: str) -> None:
    assert not list(collisions([("a", endpoint), ("b", endpoint)])) or endpoint == "tcp:65535"


# ---- what the command and the service say -------------------------------------------------------

#: A configuration, and what is said of it, "LINE: KEY = VALUE: ..."; twice for two mistakes.
CONTRADICTIONS = {
    "none": ("[listeners]\nsmtp = []\npop3 = []\n", [
        r'2: listeners\.smtp = \[\]: expected an endpoint here or in another key .* \["tcp:25']),
    "figures": ('[listeners]\nhttp = ["tcp:2080"]\nsmtp = []\npop3 = []\n', [
        r"3: listeners\.smtp = \[\]: expected an endpoint"]),
    "twice": ('[listeners]\nsmtp = ["tcp:2525"]\npop3 = ["tcp:2110", "tcp:2525"]\n', [
        r'3: listeners\.pop3 = "tcp:2525": expected another port than that of listeners\.smtp = '
        r'"tcp:2525" \(.*:2\), which has it already']),
    "wildcard": ('[listeners]\nsmtp = ["tcp:2525:interface=127.0.0.1", "tcp:2525"]\n', [
        r'2: listeners\.smtp = "tcp:2525": expected another port than that of listeners\.smtp = '
        r'"tcp:2525:interface=127.0.0.1"']),
    "default": ('[listeners]\nsubmission = ["tcp:110"]\n', [
        r'2: listeners\.submission = "tcp:110": expected another .*\(the default\)']),
    "acme": ('[listeners]\nacme = ["tcp:80"]\n[acme]\nnames = ["mx.example.org"]\n', [
        r'4: acme\.names = \["mx\.example\.org"\]: expected acme\.agreed = true beside it']),
    "certificates": (
        '[listeners]\nacme = ["tcp:80"]\n[acme]\nnames = ["mx.example.org"]\nagreed = true\n'
        '[tls]\ncertificates = ["/nowhere"]\n', [
            r'7: tls\.certificates = \["/nowhere"\]: expected no acme\.names beside it',
            r"7: tls\.certificates: /nowhere: no such file"]),
    "port": ('[listeners]\nsmtp = ["tcp:99999"]\n', [
        r'2: listeners\.smtp = \["tcp:99999"\]: expected Twisted endpoint strings .*'
        r"'tcp:99999': there is no port 99999; they end with 65535"]),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_config_check(name: str, tmp_path: Path) -> None:
    text, expected = CONTRADICTIONS[name]
    path = tmp_path / "x.toml"
    path.write_text(f"{text}[service]\ndata = '{tmp_path}'\n")
    done = CliRunner().invoke(main, ["config", "check", str(path)])
    assert (done.exit_code, done.stdout) == (1, "")
    lines = done.stderr.removeprefix("Error: ").splitlines()
    assert len(lines) == len(expected), done.stderr
    for line, pattern in zip(lines, expected, strict=True):
        assert re.match(re.escape(f"{path}:") + pattern, line), line


@pytest.mark.parametrize("name", ["none", "twice", "acme", "port"])
def test_the_service_says_the_same(name: str, tmp_path: Path) -> None:
    text, _ = CONTRADICTIONS[name]
    path = tmp_path / "x.toml"
    path.write_text(f"{text}[service]\ndata = '{tmp_path}'\n")
    (line,) = CliRunner().invoke(main, ["config", "check", str(path)]).stderr.splitlines()
    with Twistd([*TWISTD, "--nodaemon", "--pidfile=", "mailsvc", "--config", str(path)]) as process:
        assert process.wait() == 1
        assert line.removeprefix("Error: ") in process.output
        assert "Traceback" not in process.output


def test_the_service_says_the_same_of_files(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(f'[listeners]\nsmtp = ["tcp:0:interface=127.0.0.1"]\npop3 = []\n[tls]\n'
                    f"certificates = ['/nowhere']\n[service]\nworkers = 1\ndata = '{tmp_path}'\n")
    (line,) = CliRunner().invoke(main, ["config", "check", str(path)]).stderr.splitlines()
    assert line == (f"Error: {path}:5: tls.certificates: /nowhere: no such file; put it there, or "
                    "name another place")
    with Twistd([*TWISTD, "--nodaemon", "--pidfile=", "mailsvc", "--config", str(path)]) as process:
        assert process.wait() == 1
        assert line.removeprefix("Error: ") in process.output


def test_what_the_command_line_mends_is_no_contradiction(tmp_path: Path) -> None:
    """Nor are the commands that start nothing kept from their work by one."""
    path = tmp_path / "x.toml"
    path.write_text(f"{CONTRADICTIONS['none'][0]}[service]\ndata = '{tmp_path}'\n")
    refuse(load(path, ['listeners.smtp=["tcp:0"]']))
    done = CliRunner().invoke(main, ["--config", str(path), "domain", "add", "example.org"])
    assert done.exit_code == 0, done.output


def test_who_answers_the_authority_may_be_named_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(f"acme.names = ['mx.example.org']\nacme.agreed = true\n"
                    f"service.data = '{tmp_path}'\n")
    done = CliRunner().invoke(main, ["config", "check", str(path)])
    assert (done.exit_code, done.stdout) == (0, f"{path}: ok\n")
    assert re.match(
        rf'Note: {re.escape(str(path))}:1: acme\.names = \["mx\.example\.org"\]: the authority '
        r"would find nobody .* unless `twistd mailsvc` is given --acme$", done.stderr)


@pytest.mark.parametrize(("flags", "problem"), [
    (("--smtp", "2525", "--pop3", "2525"), "expected another port"),
    (("--smtp", "0", "--set", 'listeners.lmtp=["tcp:99999"]'), "there is no port 99999"),
], ids=["twice", "99999"])
def test_mailsvc_dev_says_so_too(flags: tuple[str, ...], problem: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["dev", "--dir", str(tmp_path / "data"), *flags])
    assert done.exit_code == 2
    assert problem in done.stderr
