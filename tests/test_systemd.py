"""systemd: notification, socket activation, and the unit files."""

from __future__ import annotations

import os
import poplib
import re
import shlex
import shutil
import signal
import smtplib
import socket
import ssl
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from mailsvc.accounts import PasswordHasher
from mailsvc.config import Settings
from mailsvc.directory import SqliteDirectory
from mailsvc.names import parse_address
from mailsvc.systemd import NotifyService
from tests.conftest import absent
from tests.service import PATIENCE
from tests.twistd import IPV6, TWISTD, Twistd

ETC = Path(__file__).parent.parent / "etc"

# ---- notification -------------------------------------------------------------------------------


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket such as systemd listens on, and its name as NOTIFY_SOCKET has it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@mailsvc-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + name[1:] if name[0] == "@" else name)
        receiver.setblocking(False)
        yield receiver, name


def received(receiver: socket.socket) -> list[bytes]:
    datagrams = []
    for _ in range(100):
        try:
            datagrams.append(receiver.recv(4096))
        except BlockingIOError:
            break
    return datagrams


def test_states_are_told(manager: tuple[socket.socket, str]) -> None:
    receiver, name = manager
    service = NotifyService(Clock(), {"NOTIFY_SOCKET": name})
    service.startService()
    assert received(receiver) == []
    service.ready("smtp on 25")
    service.status("busy\nREADY=0")
    service.stopping("finishing 2 sessions")
    service.stopService()
    assert received(receiver) == [
        b"READY=1\nSTATUS=smtp on 25", b"STATUS=busy READY=0",
        b"STOPPING=1\nSTATUS=finishing 2 sessions"]


def test_nothing_is_said_any_more_when_another_process_is_the_main_one(
    manager: tuple[socket.socket, str]
) -> None:
    receiver, name = manager
    clock = Clock()
    service = NotifyService(clock, {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "6000000"})
    service.startService()
    service.hand_over(4321, "another takes over")
    service.stopping("bye")
    clock.pump([1] * 9)
    assert received(receiver) == [
        b"WATCHDOG=1", b"WATCHDOG=1\nMAINPID=4321\nSTATUS=another takes over"]
    service.stopService()


def test_the_watchdog_is_fed_twice_per_period(manager: tuple[socket.socket, str]) -> None:
    receiver, name = manager
    clock = Clock()
    service = NotifyService(clock, {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "6000000",
                                    "WATCHDOG_PID": str(os.getpid())})
    service.startService()
    clock.pump([1] * 9)
    assert received(receiver) == [b"WATCHDOG=1"] * 4
    service.stopService()
    clock.advance(60)
    assert received(receiver) == []
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("watchdog", [
    {}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "-1"},
    {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}])
def test_no_watchdog(tmp_path: Path, watchdog: dict[str, str]) -> None:
    clock = Clock()
    service = NotifyService(clock, {"NOTIFY_SOCKET": str(tmp_path / "s"), **watchdog})
    service.startService()
    assert clock.getDelayedCalls() == []
    service.stopService()


def test_without_systemd_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    service = NotifyService(clock, {"WATCHDOG_USEC": "1000000"})
    monkeypatch.setattr(socket, "socket", pytest.fail)
    service.startService()
    service.ready("up")
    service.stopping("down")
    service.stopService()
    assert clock.getDelayedCalls() == []


def test_a_socket_that_is_gone_is_logged(tmp_path: Path) -> None:
    events: list[dict[str, object]] = []
    globalLogPublisher.addObserver(events.append)
    try:
        NotifyService(Clock(), {"NOTIFY_SOCKET": str(tmp_path / "none")}).ready("up")
    finally:
        globalLogPublisher.removeObserver(events.append)
    (event,) = events
    assert event["assignments"] == "READY=1 STATUS=up"
    assert isinstance(event["error"], FileNotFoundError)


# ---- the unit files -----------------------------------------------------------------------------


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        absent("systemd-analyze is not installed; it is in the package systemd")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True,
                          timeout=60, check=False)


@pytest.mark.parametrize("unit", ["mailsvc.service", "mailsvc.socket"])
def test_verify_finds_nothing(unit: str) -> None:
    done = analyze("verify", str(ETC / unit))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_service_is_hardly_exposed() -> None:
    done = analyze("security", "--offline=true", str(ETC / "mailsvc.service"))
    level = re.search(r"Overall exposure level for mailsvc\.service: ([\d.]+)", done.stdout)
    assert level, done.stdout + done.stderr
    assert float(level[1]) <= 1.5


def directive(unit: str, name: str) -> list[str]:
    text = (ETC / unit).read_text().replace("\\\n", " ")
    return re.findall(rf"(?m)^{name}=(.*)$", text)


def test_the_stop_time_exceeds_the_grace_time() -> None:
    assert int(directive("mailsvc.service", "TimeoutStopSec")[0]) > (
        Settings.from_mapping({}).service.grace_seconds + 10)


def test_each_socket_has_its_endpoint() -> None:
    (start,) = directive("mailsvc.service", "ExecStart")
    listeners = re.findall(r"--(\w+) systemd:domain=INET6:index=(\d+)", start)
    ports = {"smtp": "25", "pop3": "110", "submissions": "465", "submission": "587", "pop3s": "995"}
    assert [ports[name] for name, _ in listeners] == directive("mailsvc.socket", "ListenStream")
    assert [index for _, index in listeners] == [str(n) for n in range(len(listeners))]


# ---- under systemd's conditions -----------------------------------------------------------------

ACCOUNT = "alice@example.org"


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    """A configuration file for a service with one account and no listeners of its own."""
    path = tmp_path / "mailsvc.toml"
    path.write_text(f"""\
[service]
data = "{tmp_path}"
hostname = "mx.example.org"
[listeners]
smtp = []
pop3 = []
[passwords]
memory_kib = 64
passes = 1
""")
    hasher = PasswordHasher(Settings().passwords, None)
    with SqliteDirectory(tmp_path / "accounts.sqlite") as directory:
        directory.add_domain("example.org")
        directory.add_account(parse_address(ACCOUNT), verifier=hasher.hash(b"secret"))
    return path


@pytest.fixture(params=["INET6", "INET"] if IPV6 else ["INET"])
def sockets(request: pytest.FixtureRequest) -> Iterator[list[socket.socket]]:
    """The unit's listening sockets, of either family: systemd makes INET ones without IPv6."""
    family, host = ((socket.AF_INET6, "::1") if request.param == "INET6"
                    else (socket.AF_INET, "127.0.0.1"))
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_server((host, 0), family=family))
               for _ in directive("mailsvc.socket", "ListenStream")]


def exec_start(configuration: Path) -> list[str]:
    """The unit's own command line, with another configuration file."""
    (line,) = directive("mailsvc.service", "ExecStart")
    command = shlex.split(line)
    assert command.count("/etc/mailsvc.toml") == 1
    return [word.replace("/etc/mailsvc.toml", str(configuration)) for word in command]


def exchange(smtp: socket.socket, pop3: socket.socket, *others: socket.socket) -> None:
    """Send a message to one socket, and fetch it from another; the others answer too."""
    submissions, submission, pop3s = (each.getsockname()[:2] for each in others)
    with smtplib.SMTP(*smtp.getsockname()[:2], timeout=PATIENCE) as sender:
        sender.sendmail("bob@example.net", [ACCOUNT], "Subject: hello\r\n\r\nHello.\r\n")
    unverified = ssl._create_unverified_context()
    with smtplib.SMTP_SSL(*submissions, context=unverified, timeout=PATIENCE) as login:
        login.login(ACCOUNT, "secret")
    with smtplib.SMTP(*submission, timeout=PATIENCE) as login:
        login.starttls(context=unverified)
        login.login(ACCOUNT, "secret")
    poplib.POP3_SSL(*pop3s, context=unverified, timeout=PATIENCE).quit()
    session = poplib.POP3(*pop3.getsockname()[:2], timeout=PATIENCE)
    session.user(ACCOUNT)
    session.pass_("secret")
    assert session.retr(1)[1][-1] == b"Hello."
    session.quit()


def test_the_unit_serves_on_inherited_sockets(
    configuration: Path, sockets: list[socket.socket], tmp_path: Path
) -> None:
    with Twistd(exec_start(configuration), sockets=sockets, directory=tmp_path) as process:
        # A connection made before the service runs waits for it.
        exchange(*sockets)
        assert process.stop() in {0, -signal.SIGTERM}
        assert "stopped" in process.output
    # It left the sockets open, and nothing in its working directory.
    socket.create_connection(sockets[0].getsockname()[:2]).close()
    assert not list(tmp_path.glob("twistd*"))


def test_the_unit_is_restarted_on_the_same_sockets(
    configuration: Path, sockets: list[socket.socket]
) -> None:
    for _ in range(2):
        with Twistd(exec_start(configuration), sockets=sockets) as process:
            process.wait_for("pop3 listens on")
            exchange(*sockets)
            process.stop()


def test_the_manager_is_told(
    configuration: Path, sockets: list[socket.socket],
    manager: tuple[socket.socket, str],
) -> None:
    receiver, name = manager
    receiver.settimeout(30)
    variables = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "200000"}
    with Twistd(exec_start(configuration), sockets=sockets, variables=variables) as process:
        told = [receiver.recv(4096)]
        while not told[-1].startswith(b"READY=1\nSTATUS=serving smtp "):
            told.append(receiver.recv(4096))
            assert told[-1] == b"WATCHDOG=1" or told[-1].startswith(b"READY=1")
        assert [receiver.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        process.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 30
        while not told[-1].startswith(b"STOPPING=1\nSTATUS="):
            assert time.monotonic() < deadline
            told.append(receiver.recv(4096))
        process.wait()


def test_without_sockets_the_unit_says_what_is_missing(configuration: Path) -> None:
    with Twistd(exec_start(configuration)) as process:
        assert process.wait() == 1
        assert "systemctl start mailsvc.socket" in process.output
        assert "Traceback" not in process.output


def test_a_configured_listener_needs_no_systemd(configuration: Path) -> None:
    command = [*TWISTD, "--nodaemon", "--pidfile=", "mailsvc", "--config", str(configuration),
               "--smtp", "tcp:0:interface=127.0.0.1"]
    with Twistd(command) as process, smtplib.SMTP("127.0.0.1", process.port("smtp")) as client:
        assert client.noop()[0] == 250
