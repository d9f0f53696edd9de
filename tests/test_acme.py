"""Certificates by ACME: from a real authority, and what may go wrong on the way."""

from __future__ import annotations

import datetime
import json
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from acme import errors
from cryptography import x509
from twisted.internet.task import Clock

from mailsvc import installation
from mailsvc.acme import order
from mailsvc.acme.files import Files
from mailsvc.acme.limits import ACMESettings
from mailsvc.acme.renewal import Renewal
from mailsvc.config import ConfigurationError, Settings
from mailsvc.listeners import CannotStart
from mailsvc.prerequisites import refuse_unanswered
from mailsvc.service import build
from tests.authority import Authority
from tests.command_line import fresh_command_line
from tests.daemons import free_port
from tests.nameserver import NameServer
from tests.pebble import Pebble
from tests.service import PATIENCE, Service
from tests.twistd import TWISTD, Twistd

NAMES = ["mx.example.org", "mail.example.org"]
HERE = {name: ["A 127.0.0.1"] for name in NAMES}


@contextmanager
def authority(program: Callable[[str], str], folder: Path, zone: dict[str, list[str]],
              kind: str = "acme", **more: str) -> Iterator[tuple[Pebble, int, tuple[str, ...]]]:
    """A running authority, the port that it looks at, and what a service is to be told of both.

    :param kind: of the listener that answers.
    :param more: of [acme].
    """
    folder.mkdir()
    port = free_port()
    with NameServer(zone) as dns, Pebble(program, folder, port, dns.address) as pebble:
        acme = {"names": NAMES, "agreed": True, "directory": pebble.url,
                "authorities": str(pebble.root), **more}
        yield pebble, port, (
            "--pop3s", "0", "--submissions", "0",
            "--set", f'listeners.{kind}=["tcp:{port}:interface=127.0.0.1"]',
            *(word for key, value in acme.items()
              for word in ("--set", f"acme.{key}={json.dumps(value)}")))


def shown(address: tuple[str, int]) -> x509.Certificate:
    """The certificate that clients get."""
    context = ssl._create_unverified_context()
    with socket.create_connection(address, PATIENCE) as connection, context.wrap_socket(
            connection, server_hostname=NAMES[0]) as tls:
        certificate = tls.getpeercert(binary_form=True)
    assert certificate
    return x509.load_der_x509_certificate(certificate)


def eventually(what: Callable[[], Any]) -> Any:
    until = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < until
        time.sleep(0.1)
    return found


def issued(certificate: x509.Certificate) -> bool:
    return "Pebble" in certificate.issuer.rfc4514_string()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_service_gets_a_certificate(program: Callable[[str], str], tmp_path: Path,
                                      workers: int) -> None:
    data = tmp_path / "data"
    with authority(program, tmp_path / "ca", HERE) as (pebble, port, options):
        with Service(data, ("alice@example.org:secret",),
                     (*options, "--workers", str(workers))) as service:
            places = [service.listeners[kind] for kind in ("pop3s", "submissions")]
            first = [eventually(lambda place=place: issued(found := shown(place)) and found)
                     for place in places]
            assert first[0] == first[1]
            names = first[0].extensions.get_extension_for_class(x509.SubjectAlternativeName)
            assert sorted(names.value.get_values_for_type(x509.DNSName)) == sorted(NAMES)
            assert (data / "acme" / "certificate.pem").stat().st_mode & 0o777 == 0o600
            # The program has yet to end when its certificate is there.
            assert eventually(lambda: "got a certificate for mx.example.org, mail.example.org"
                              in service.log.read_text())
        assert pebble.log.count("Issued certificate") == 1
        # What there is will do; nothing is asked for again.
        with Service(data, (), (*options, "--workers", str(workers))) as service:
            assert shown(service.listeners["pop3s"]) == first[0]
            configuration = tmp_path / "mailsvc.toml"
            configuration.write_text(
                f'[service]\ndata = "{data}"\n[listeners]\nacme = ["tcp:{port}"]\n[acme]\n'
                f'names = {json.dumps(NAMES)}\nagreed = true\ndirectory = "{pebble.url}"\n'
                f'authorities = "{pebble.root}"\n')
            told = json.loads(_ran("--config", str(configuration), "acme", "show", "--json"))
            assert told["certificate"]["until"] == first[0].not_valid_after_utc.timestamp()
            assert told["names"] == NAMES
            text = _ran("--config", str(configuration), "acme", "renew")
            assert "got a certificate until" in text
            assert pebble.log.count("Issued certificate") == 2
            second = eventually(
                lambda: (found := shown(service.listeners["pop3s"])) != first[0] and found)
            assert issued(second)
            assert second.public_key() == first[0].public_key(), "acme.keep_key"


def _ran(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", "from mailsvc.cli import main; main()",
                           *arguments], input="secret\n", capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_name_that_leads_elsewhere(program: Callable[[str], str], tmp_path: Path) -> None:
    zone = {NAMES[0]: ["A 127.0.0.1"]}
    with (authority(program, tmp_path / "ca", zone) as (_, _, options),
          Service(tmp_path / "data", (), options) as service):
        line = eventually(lambda: re.search(
            "there is no new certificate for .*", service.log.read_text()))[0]
        assert "could not see that mail.example.org is this host" in line
        assert "tried again in" in line
        assert not issued(shown(service.listeners["pop3s"])), "meanwhile its own"


def test_quickstart(program: Callable[[str], str], tmp_path: Path) -> None:
    """From nothing to a certificate that an authority vouches for."""
    data = tmp_path / "data"
    with authority(program, tmp_path / "ca", HERE) as (pebble, port, _):
        chosen = {"acme.directory": pebble.url, "acme.authorities": str(pebble.root),
                  "listeners.acme": [f"tcp:{port}:interface=127.0.0.1"],
                  "passwords.memory_kib": 64,
                  **{f"listeners.{kind}": ["tcp:0:interface=127.0.0.1"]
                     for kind in ("smtp", "submission", "submissions", "pop3", "pop3s")}}
        output = _ran("quickstart", "alice@example.org", "--dir", str(data), "--acme",
                      "--hostname", NAMES[0], "--offline", "--password-stdin",
                      *(word for key, value in chosen.items()
                        for word in ("--set", f"{key}={json.dumps(value)}")))
        assert f"--config {data}/mailsvc.toml acme show" in output
        with Twistd([*TWISTD, "-n", "--pidfile=", "mailsvc", "--config",
                     str(data / "mailsvc.toml")]) as process:
            place = ("127.0.0.1", process.port("pop3s"))
            assert eventually(lambda: issued(shown(place)))
            process.stop()


@pytest.mark.parametrize("port", [80, 443])
def test_units_that_answer(port: int) -> None:
    plain, more = (installation.unit_texts(
        Path("/etc/mailsvc.toml"), Path("/var/lib/mailsvc"), "root", Path("/opt/mailsvc/bin"),
        acme=acme) for acme in (0, port))
    ports = re.findall(r"(?m)^ListenStream=(\d+)$", more["mailsvc.socket"])
    assert [*re.findall(r"(?m)^ListenStream=(\d+)$", plain["mailsvc.socket"]), str(port)] == ports
    indices = dict(re.findall(r"--(\w+) systemd:domain=INET6:index=(\d+)", more["mailsvc.service"]))
    assert {kind: ports[int(index)] for kind, index in indices.items()} == {
        "smtp": "25", "pop3": "110", "submissions": "465", "submission": "587", "pop3s": "995",
        "acme": str(port)}


# ---- what keeps a service from starting ----------------------------------------------------------


@pytest.mark.parametrize(("acme", "listeners", "tls", "expected"), [
    ({"names": NAMES}, {"acme": ["tcp:0"]}, {}, "expected acme.agreed = true beside it, when you "
     "have read the terms of service of https://acme-v02.api.letsencrypt.org/directory"),
    ({"names": NAMES, "agreed": True}, {}, {}, 'give listeners.acme an endpoint, as ["tcp:80"]'),
    ({"names": NAMES, "agreed": True, "challenge": "tls-alpn-01"}, {}, {},
     'give listeners.acme an endpoint, as ["tcp:443"]'),
    ({"names": NAMES, "agreed": True}, {"acme": ["tcp:0"]}, {"certificates": ["/nowhere"]},
     "tls.certificates = [\"/nowhere\"]: expected no acme.names beside it, which is set as well; "
     "take one of them out"),
])
def test_refused(tmp_path: Path, acme: dict[str, Any], listeners: dict[str, Any],
                 tls: dict[str, Any], expected: str) -> None:
    settings = Settings.from_mapping({
        "service": {"data": str(tmp_path), "hostname": NAMES[0]}, "acme": acme, "tls": tls,
        "listeners": {"smtp": ["tcp:0:interface=127.0.0.1"], "pop3": [], **listeners}})
    with pytest.raises(CannotStart) as refused:
        service = build(settings, Clock())
        service.bound = SimpleNamespace()  # nothing is bound
        service.startService()
    assert expected in str(refused.value)


@pytest.mark.parametrize("kind", ["console", "api", "acme"])
def test_any_listener_on_port_443_will_do(tmp_path: Path, kind: str) -> None:
    refuse_unanswered(Settings.from_mapping({
        "acme": {"names": NAMES, "agreed": True, "challenge": "tls-alpn-01"},
        "listeners": {kind: ["tcp:443"]}}))


@pytest.mark.parametrize(("key", "value", "expected"), [
    ("challenge", "dns-01", "http-01, tls-alpn-01"),
    ("names", ["*.example.org"], 'full host names in ASCII such as "mail.example.org", without *'),
    ("names", ["mail"], "full host names"),
    ("names", ["mail.example.org/x"], "full host names"),
    ("directory", "http://ca.example", "a URL that begins with https://"),
    ("directory", "ca.example", "a URL that begins with https://"),
])
def test_settings(key: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Settings.from_mapping({"acme": {key: value}})
    assert expected in str(refused.value)


def test_nobody_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fresh_command_line(tmp_path, monkeypatch)
    assert "give acme.names the host names" in run.fails("acme", "show")
    assert "give acme.names the host names" in run.fails("acme", "renew")


# ---- orders that fail ----------------------------------------------------------------------------


def refusal(folder: Path, **settings: Any) -> str:
    with pytest.raises(order.Refused) as refused:
        order.renew(ACMESettings(names=NAMES, agreed=True, **settings), Files(folder))
    return str(refused.value)


def test_an_authority_that_is_not_there(tmp_path: Path) -> None:
    url = f"https://localhost:{free_port()}/dir"
    assert refusal(tmp_path, directory=url).startswith(f"{url} cannot be reached; see whether")


def test_an_authority_nobody_vouches_for(program: Callable[[str], str], tmp_path: Path) -> None:
    with authority(program, tmp_path / "ca", HERE) as (pebble, _, _):
        assert refusal(tmp_path, directory=pebble.url).startswith(
            f"{pebble.url} cannot be verified; name whoever vouches for it in acme.authorities")
        # What it answers there is no directory.
        there = pebble.url.replace("/dir", "/")
        assert "see whether it is the directory of an ACME authority" in refusal(
            tmp_path, directory=there, authorities=str(pebble.root))


def test_an_account_is_kept(program: Callable[[str], str], tmp_path: Path) -> None:
    """Also when the authority knew it, and we did not get to write that down."""
    files = Files(tmp_path)
    with authority(program, tmp_path / "ca", {}) as (pebble, _, _):
        settings = {"directory": pebble.url, "authorities": str(pebble.root)}
        assert "could not see that" in refusal(tmp_path, **settings)
        account = json.loads(files.account.read_bytes())
        assert account["url"].startswith(pebble.url.removesuffix("dir"))
        files.account.write_text(json.dumps({**account, "url": ""}))
        assert "could not see that" in refusal(tmp_path, **settings)
        assert json.loads(files.account.read_bytes()) == account
        with files.locked():
            assert "somebody else asks" in refusal(tmp_path, **settings)


# ---- when ----------------------------------------------------------------------------------------

DAY = datetime.timedelta(days=1)


@pytest.mark.parametrize(("told", "expected"), [
    (None, 60), (10, 10), (85, 81), (-3, -3), (errors.ARIError, 60)])
def test_when(tmp_path: Path, told: Any, expected: int) -> None:
    """A certificate of 90 days: after two thirds, or when it is said, but before the end."""
    now = datetime.datetime.now(datetime.UTC)
    path = tmp_path / "certificate.pem"
    path.write_bytes(Authority().issue(*NAMES, since=0, days=90).combined)
    present = order._present(Files(tmp_path / "nothing"))
    assert present is None
    certificate = order.certificate_at(str(path)).load()

    def renewal_time(pem: bytes) -> tuple[datetime.datetime | None, datetime.datetime]:
        assert x509.load_pem_x509_certificate(pem) == certificate.chain[0]
        if told is errors.ARIError:
            raise errors.ARIError("no", now + DAY / 4)
        return (None if told is None else now + told * DAY), now + DAY / 4

    client: Any = SimpleNamespace(renewal_time=renewal_time)
    due, look = order._when(client, certificate)
    assert abs(due - (now + expected * DAY)) < DAY / 24
    assert abs(look - (now + DAY / 4)) < DAY / 24


class Spawning(Clock):
    """A clock that starts no program: what it would have said is up to the test."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[Any] = []

    def spawnProcess(self, protocol: Any, *arguments: Any) -> None:
        self.started.append(protocol)

    def said(self, outcome: bytes) -> None:
        """The program has said *outcome*, and ended."""
        protocol = self.started.pop()
        protocol.outReceived(outcome)
        protocol.processEnded(SimpleNamespace(value="status 1"))


def test_tries_again_ever_later(tmp_path: Path) -> None:
    clock = Spawning()
    renewal = Renewal(ACMESettings(names=NAMES), Files(tmp_path), clock)
    renewal.startService()
    clock.advance(0)
    for minutes in 5, 10, 20, 40, 80, 160, 320, 640, 720, 720:
        clock.said(b'{"refused": "no"}')
        clock.advance(minutes * 60 * 0.89)
        assert not clock.started
        clock.advance(minutes * 60 * 0.22)
        assert len(clock.started) == 1
    clock.said(b'{"got": true, "until": 1e9, "again": 7200}')
    clock.advance(7199)
    assert not clock.started
    clock.advance(1)
    clock.said(b"")
    clock.advance(300 * 0.89)
    assert not clock.started, "begins anew"
    renewal.stopService()
    assert not clock.getDelayedCalls()


def test_stops_while_it_asks(tmp_path: Path) -> None:
    clock = Spawning()
    renewal = Renewal(ACMESettings(names=NAMES), Files(tmp_path), clock)
    renewal.startService()
    clock.advance(0)
    killed: list[int] = []
    clock.started[0].transport = SimpleNamespace(signalProcess=killed.append)
    stopped = renewal.stopService()
    assert stopped is not None and not stopped.called and killed
    clock.said(b"")
    assert stopped.called
    assert not clock.getDelayedCalls()


# ---- the page ------------------------------------------------------------------------------------


def test_what_the_authority_fetches(tmp_path: Path) -> None:
    port = free_port()
    options = ("--set", f'listeners.acme=["tcp:{port}:interface=127.0.0.1"]')
    token = "LoqXcYV8q5ONbJQxbmR7SCTNo3tiAXDfowyjxAjEuX0"

    def ask(path: str, method: str = "GET") -> tuple[int, bytes]:
        with ExitStack() as closing:
            connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            closing.callback(connection.close)
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read()

    with Service(tmp_path / "data", (), options):
        there = "/.well-known/acme-challenge/"
        assert ask(there + token)[0] == 404, "there is no account"
        (tmp_path / "data" / "acme").mkdir()
        thumbprint = "9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI"
        (tmp_path / "data" / "acme" / "thumbprint").write_text(thumbprint)
        assert ask(there + token) == (200, f"{token}.{thumbprint}".encode())
        assert ask(there + token, "POST")[0] == 405
        for path in ("/", "/metrics", "/.well-known/", there, there + "short", there + token + "/",
                     there + token + "/x", there + token[:-3] + "%2e", there + "<script>" + token,
                     there + "A" * 257):
            assert ask(path)[0] == 404, path
