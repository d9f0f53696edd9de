"""mailsvc.succession, `mailsvc upgrade`: one program takes over from another, under load."""

from __future__ import annotations

import json
import os
import poplib
import re
import signal
import smtplib
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import pytest_twisted
from click.testing import CliRunner
from cryptography import x509
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol

from mailsvc import control, live, succession
from mailsvc.cli import main
from mailsvc.control import UpgradeRefused
from mailsvc.directory import SqliteDirectory
from mailsvc.listeners import KINDS, Listener
from mailsvc.localsocket import NoService
from mailsvc.names import parse_address
from mailsvc.passwords import PasswordHasher, PasswordSettings
from mailsvc.succession import VARIABLE, NotReady, Origin, Predecessor, Successor, command
from tests.authority import Authority
from tests.exchanger import Exchanger
from tests.hashing import CHEAP
from tests.service import PATIENCE, Dialogue
from tests.test_workers import alive, until
from tests.twistd import ENVIRONMENT, add_account

AUTHORITY = Authority()
FIRST, RENEWED = (AUTHORITY.issue("mx.example.org") for _ in range(2))
KEPT, FETCHED = "kept@example.org", ("one@example.org", "two@example.org")
VERIFIER = PasswordHasher(PasswordSettings(**CHEAP), None).hash(b"secret")
MESSAGE = b"Subject: hello\r\n\r\nHello.\r\n"

# ---- a service whose program can be changed -----------------------------------------------------

_PROGRAM = """\
#!{python}
import mailsvc
mailsvc.__version__ = "{version}"
{more}
from twisted.scripts.twistd import run
run()
"""

_CONFIGURATION = """\
[service]
data = "{data}"
hostname = "mx.example.org"
workers = {workers}
grace_seconds = 2
[passwords]
memory_kib = 64
passes = 1
[tls]
certificates = ["{certificate}"]
[listeners]
smtp = ["tcp:0:interface=127.0.0.1"]
pop3 = ["tcp:0:interface=127.0.0.1"]
pop3s = ["tcp:0:interface=127.0.0.1"]
"""


class Program:
    """twistd as a program in *directory*, watched as systemd would; ended with the block.

    :ivar told: what a NOTIFY_SOCKET has heard: the process that said it, and what.
    """

    def __init__(self, directory: Path, workers: int, more: str = "", *,
                 options: tuple[str, ...] = ("--nodaemon", "--pidfile=")) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.log = directory / "log"
        self.workers = workers
        self.configuration = directory / "mailsvc.toml"
        self.data.mkdir()
        add_account(self.data, KEPT)
        with SqliteDirectory(self.data / "accounts.sqlite") as accounts:
            for account in FETCHED:
                accounts.add_account(parse_address(account), verifier=VERIFIER)
        (directory / "certificate").mkdir()
        FIRST.write(directory / "certificate")
        self.write(more)
        self.install("1.0")
        self.told: list[tuple[int, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(f"\0{directory}")
        self._hearing = threading.Thread(target=self._hear)
        self._hearing.start()
        self.process = subprocess.Popen(
            [directory / "twistd", "--logfile", self.log, *options, "mailsvc", "--config",
             self.configuration], cwd=directory, start_new_session=True, stdin=subprocess.DEVNULL,
            env={**ENVIRONMENT, "NOTIFY_SOCKET": f"@{directory}"})

    def __enter__(self) -> Program:
        try:
            until(lambda: any("READY=1" in text for _, text in self.told))
        except AssertionError:
            print(self.text())
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(PATIENCE)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", f"\0{self.directory}")
        self._hearing.join(PATIENCE)
        self._socket.close()

    def _hear(self) -> None:
        while True:
            data, ancillary, _, _ = self._socket.recvmsg(4096, 100)
            if not data:
                return
            pid = int.from_bytes(ancillary[0][2][:4], sys.byteorder)
            self.told.append((pid, data.decode()))

    def install(self, version: str, more: str = "") -> None:
        """What is on disk from now on."""
        new = self.directory / "twistd.new"
        new.write_text(_PROGRAM.format(python=sys.executable, version=version, more=more))
        new.chmod(0o755)
        new.rename(self.directory / "twistd")

    def write(self, more: str = "") -> None:
        """The configuration from now on."""
        self.configuration.write_text(_CONFIGURATION.format(
            data=self.data, workers=self.workers, certificate=self.directory / "certificate")
            + more)

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def address(self, kind: str) -> tuple[str, int]:
        found = re.search(rf"\b{kind} listens on 127\.0\.0\.1:(\d+)", self.text())
        assert found, self.text()
        return "127.0.0.1", int(found[1])

    @property
    def main(self) -> int:
        """Which process systemd would take for the main one."""
        pid = self.process.pid
        for sender, text in list(self.told):
            # As NotifyAccess=main has it.
            if sender == pid and (found := re.search(r"^MAINPID=(\d+)$", text, re.MULTILINE)):
                pid = int(found[1])
        return pid

    @property
    def status(self) -> str:
        """What `systemctl status` would show."""
        pid, shown = self.process.pid, ""
        for sender, text in list(self.told):
            assert sender == pid, f"{sender} may not say {text!r}"
            for line in text.splitlines():
                name, _, value = line.partition("=")
                if name == "STATUS":
                    shown = value
                elif name == "MAINPID":
                    pid = int(value)
        return shown

    def processes(self) -> list[int]:
        """All processes of the service, those that are about to end left out."""
        found = []
        for entry in os.listdir("/proc"):
            with suppress(FileNotFoundError, ProcessLookupError):
                if (entry.isdigit() and str(self.configuration).encode()
                        in Path(f"/proc/{entry}/cmdline").read_bytes() and alive(int(entry))):
                    found.append(int(entry))
        return sorted(found)

    def upgrade(self, version: str) -> int:
        """Install *version* and upgrade to it; the pid of the program that served until then."""
        former = self.main
        self.install(version)
        done = run("upgrade", "--json", "--config", self.configuration)
        assert done.exit_code == 0, done.output
        told = json.loads(done.stdout)
        assert told["version"] == version
        until(lambda: self.main == told["pid"])
        assert self.main != former
        return former

    def stop(self) -> None:
        """SIGTERM to the main process; all are to end."""
        os.kill(self.main, signal.SIGTERM)
        until(lambda: not self.processes())

    def messages(self, account: str) -> list[bytes]:
        local_part, domain = account.split("@")
        return [path.read_bytes()
                for path in (self.data / "mail" / domain / local_part / "new").iterdir()]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, [str(each) for each in arguments], prog_name="mailsvc")


def talking(address: tuple[str, int]) -> Dialogue:
    """An SMTP session before its first message."""
    smtp = Dialogue(address)
    assert smtp.reply().startswith(b"220 mx.example.org")
    assert smtp.say(b"EHLO client.example").startswith(b"250")
    return smtp


def begin(smtp: Dialogue, recipient: str = KEPT) -> None:
    """Begin a message, up to its first octets."""
    assert smtp.say(b"MAIL FROM:<s@example.net>").startswith(b"250")
    assert smtp.say(b"RCPT TO:<%s>" % recipient.encode()).startswith(b"250")
    assert smtp.say(b"DATA").startswith(b"354")
    smtp.send(b"Message-Id: <held@client.example>\r\n")


def logged_in(address: tuple[str, int], account: str) -> poplib.POP3:
    pop3 = poplib.POP3(*address, timeout=PATIENCE)
    pop3.user(account)
    pop3.pass_("secret")
    return pop3


# ---- under load ---------------------------------------------------------------------------------


class Load:
    """Clients that run until told to stop: what each thread does fails the test when it raises.

    :ivar sent: how many messages smtp-source has had acknowledged, by recipient.
    :ivar fetched: how many POP3 sessions have been.
    """

    def __init__(self, program: Program, smtp_source: str) -> None:
        self.sent: Counter[str] = Counter()
        self.fetched = 0
        self.problems: list[BaseException] = []
        self._over = threading.Event()
        smtp, pop3, pop3s = map(program.address, ("smtp", "pop3", "pop3s"))
        self._threads = [threading.Thread(target=self._run, args=each) for each in (
            # Sessions of many messages, a session for each message, and what is relayed.
            (self._send, smtp_source, smtp, KEPT, "-d", "-m", "60", "-l", "3000"),
            (self._send, smtp_source, smtp, KEPT, "-m", "25"),
            (self._send, smtp_source, smtp, "forwarded@example.org", "-m", "5"),
            (self._fetch, poplib.POP3, pop3, FETCHED[0]),
            (self._fetch, _unverified, pop3s, FETCHED[1]))]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        assert not self.problems, self.problems

    def goes_on(self) -> None:
        """Wait until every kind of client has done something more."""
        kept, relayed, fetched = self.sent[KEPT], self.sent.total(), self.fetched
        until(lambda: bool(self.problems) or (
            self.sent[KEPT] >= kept + 85 and self.sent.total() > relayed + 85
            and self.fetched >= fetched + 10))
        assert not self.problems, self.problems

    def _run(self, act: Callable[..., None], *arguments: Any) -> None:
        try:
            while not self._over.is_set():
                act(*arguments)
        except BaseException as problem:
            self.problems.append(problem)

    def _send(self, smtp_source: str, address: tuple[str, int], recipient: str,
              *options: str) -> None:
        done = subprocess.run(
            [smtp_source, "-s", "3", *options, "-f", "s@example.net", "-t", recipient,
             "{}:{}".format(*address)], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done
        self.sent[recipient] += int(options[options.index("-m") + 1])

    def _fetch(self, connect: Callable[..., poplib.POP3], address: tuple[str, int],
               account: str) -> None:
        pop3 = connect(*address, timeout=PATIENCE)
        pop3.user(account)
        pop3.pass_("secret")
        assert pop3.stat()[0] == 1
        assert pop3.retr(1)[1][-1] == b"Hello."
        pop3.quit()
        self.fetched += 1


def _unverified(host: str, port: int, timeout: float) -> poplib.POP3:
    return poplib.POP3_SSL(host, port, timeout=timeout, context=ssl._create_unverified_context())


def serial(address: tuple[str, int]) -> int:
    """The serial number of the certificate that is shown."""
    with closing(_unverified(*address, timeout=PATIENCE)) as pop3:
        assert isinstance(pop3.sock, ssl.SSLSocket)
        shown = pop3.sock.getpeercert(binary_form=True)
        assert shown is not None
        return x509.load_der_x509_certificate(shown).serial_number


@pytest.mark.parametrize("workers", [1, 2])
def test_reload_renewal_and_upgrades_under_load(
    tmp_path: Path, program: Callable[[str], str], workers: int
) -> None:
    smtp_source = program("smtp-source")
    with Exchanger("127.0.0.1", 0, "") as there, ExitStack() as stack:
        service = stack.enter_context(Program(
            tmp_path, workers, f'[relay]\nsmarthost = "127.0.0.1:{there.port}"\n'
            "[smtp]\nconnections_per_minute = 0\n[pop3]\nconnections_per_minute = 0\n"))
        with SqliteDirectory(service.data / "accounts.sqlite") as directory:
            directory.add_alias(parse_address("forwarded@example.org"),
                                [parse_address("them@far.example")])
        smtp, pop3, pop3s = map(service.address, ("smtp", "pop3", "pop3s"))
        for account in FETCHED:
            with smtplib.SMTP(*smtp, timeout=PATIENCE) as sender:
                sender.sendmail("s@example.net", [account], MESSAGE)
        load = stack.enter_context(Load(service, smtp_source))
        load.goes_on()
        held = stack.enter_context(talking(smtp))
        begin(held)
        # It sees what was there when it began, whoever serves when it ends.
        reading = logged_in(pop3, KEPT)
        marked = reading.retr(1)[1]
        reading.dele(1)
        reading.noop()

        if workers > 1:
            assert control.reload(service.data) == workers
            load.goes_on()

        assert serial(pop3s) == FIRST.serial
        RENEWED.write(tmp_path / "certificate")
        until(lambda: serial(pop3s) == RENEWED.serial)
        load.goes_on()

        former = [service.upgrade("2.0")]
        until(lambda: re.search(r"its last \d+ sessions$", service.status) is not None)
        load.goes_on()
        former.append(service.upgrade("3.0"))
        load.goes_on()
        assert serial(pop3s) == RENEWED.serial
        # Both wait for the sessions that the first has.
        assert all(map(alive, former))

        held.send(b"\r\nHello.\r\n.\r\n")
        assert held.reply().startswith(b"250")
        assert held.say(b"QUIT").startswith(b"221")
        assert reading.quit().startswith(b"+OK")
        until(lambda: not any(map(alive, former)))
        until(lambda: service.status.startswith("serving")
              and "former" not in service.status)
        assert len(service.processes()) == (1 if workers == 1 else 1 + workers)
        load.goes_on()
        load.__exit__()

        kept = [_id(message) for message in service.messages(KEPT)]
        # One came by the held session, and one was deleted.
        assert len(set(kept)) == len(kept) == load.sent[KEPT] + 1 - 1
        assert b"<held@client.example>" in kept
        assert _id(b"\r\n".join(marked)) not in kept
        until(lambda: not list((service.data / "queue" / "message").iterdir()))
        relayed = [_id(text) for _, _, text, _ in there.messages]
        assert len(set(relayed)) == len(relayed) == load.sent["forwarded@example.org"]
        service.stop()
        assert "Traceback" not in service.text()


def _id(message: bytes) -> bytes:
    found = re.search(rb"^Message-Id: (<[^>\r\n]+>)", message, re.MULTILINE)
    assert found, message
    return found[1]


# ---- what keeps a program from taking over ------------------------------------------------------


@pytest.fixture(scope="module")
def _serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with Program(tmp_path_factory.mktemp("serving"), 2) as service:
        yield service
        service.stop()


@pytest.mark.parametrize(("program_", "configuration", "reason"), [
    ("raise RuntimeError('no such luck')", "", "RuntimeError: no such luck"),
    ("raise SystemExit(3)", "", r"it ended before it was ready \(status 3\)"),
    ("", "[smtp]\nrecipients = 'many'\n", r"smtp\.recipients = \"many\": expected an integer"),
    ("", "[tls.more]\n", r"the configuration has mistakes"),
    ("", '[webhooks]\nurls = ["https://h.example"]\n', r"webhooks\.secret: no secret is set"),
], ids=["exception", "status", "mistake", "section", "workers"])
def test_a_program_that_does_not_start_leaves_the_other_one_serving(
    _serving: Program, program_: str, configuration: str, reason: str
) -> None:
    service = _serving
    before, status, main = service.processes(), service.status, service.main
    with talking(service.address("smtp")) as smtp:
        begin(smtp)
        service.install("2.0", program_)
        service.write(configuration)
        done = run("upgrade", "--dir", service.data)
        if done.exit_code != 1 or not re.search(reason, done.stderr):
            pytest.fail(done.output)
        assert done.stderr.startswith("Error: refused; the program that ran goes on serving:\n")
        until(lambda: (service.processes(), service.status, service.main)
              == (before, status, main))
        assert [each["state"] for each in live.sessions(service.data)] == ["message"]
        smtp.send(b"\r\nHello.\r\n.\r\n")
        assert smtp.reply().startswith(b"250")
        assert smtp.say(b"QUIT").startswith(b"221")
    service.write()
    with talking(service.address("smtp")) as smtp:
        assert smtp.say(b"QUIT").startswith(b"221")
    assert control.running(service.data)["version"] == "1.0"


@pytest.mark.parametrize(("origin", "environ", "reason"), [
    (Origin(("x",), "/"), {}, "nobody would learn of the new process"),
    (Origin(("x",), "/"), {"NOTIFY_SOCKET": "@x"}, None),
    (Origin(("x",), "/", "/run/pid"), {}, None),
], ids=["nobody", "systemd", "pidfile"])
def test_somebody_has_to_learn_of_the_new_process(
    origin: Origin, environ: dict[str, str], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (origin.unknown(environ) or "").startswith(reason or "")
    assert (origin.unknown(environ) is None) == (reason is None)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert "first of its container" in (origin.unknown(environ) or "")


def test_without_a_service(tmp_path: Path) -> None:
    with pytest.raises(NoService, match="no service runs"):
        control.upgrade(tmp_path)
    done = run("upgrade", "--dir", tmp_path)
    assert done.exit_code == 1
    assert "no service runs with the data in" in done.stderr


def test_a_program_that_ends_as_it_takes_over_ends_the_service_with_a_status(
    tmp_path: Path
) -> None:
    with Program(tmp_path, 1) as service:
        service.install("2.0", "import os; from mailsvc.front import Front\n"
                        "Front._take_over = lambda *_: os._exit(7)")
        done = run("upgrade", "--dir", service.data)
        assert done.exit_code == 1
        assert "it ended as it took over; the service ends" in done.stderr
        assert service.process.wait(PATIENCE) == 1
        assert not service.processes()


# ---- stopping meanwhile -------------------------------------------------------------------------


def test_a_stop_while_the_new_program_starts_stops_both(tmp_path: Path) -> None:
    with Program(tmp_path, 2) as service:
        before = service.processes()
        refused: list[Exception] = []

        def upgrade() -> None:
            try:
                control.upgrade(service.data)
            except (UpgradeRefused, NoService) as problem:
                refused.append(problem)

        service.install("2.0", "import time; time.sleep(60)")
        asking = threading.Thread(target=upgrade)
        asking.start()
        until(lambda: len(service.processes()) == len(before) + 1)
        until(lambda: "; a new program is starting" in service.status)
        with pytest.raises(UpgradeRefused, match="is starting already"):
            control.upgrade(service.data)
        service.stop()
        asking.join(PATIENCE)
        assert len(refused) == 1
        assert service.main == service.process.pid
        assert "Traceback" not in service.text()


def test_a_stop_while_the_former_program_drains_stops_both(tmp_path: Path) -> None:
    with Program(tmp_path, 1) as service, talking(service.address("smtp")) as smtp:
        begin(smtp)
        former = [service.upgrade("2.0"), service.upgrade("3.0")]
        assert all(map(alive, former))
        # Each tells of its own, also when another has begun since.
        assert [each["state"] for each in live.sessions(service.data)] == ["message"]
        os.kill(service.main, signal.SIGTERM)
        # What was begun may end; the main process waits for that, else systemd would kill the rest.
        until(lambda: service.status.startswith("stopping"))
        smtp.send(b"\r\nHello.\r\n.\r\n")
        assert smtp.reply().startswith(b"250")
        until(lambda: not service.processes())
        assert len(service.messages(KEPT)) == 1
        assert not list(service.data.glob("live-*"))
        assert "Traceback" not in service.text()


def test_sessions_of_the_former_program_end_at_last(tmp_path: Path) -> None:
    with Program(tmp_path, 1) as service, talking(service.address("smtp")) as smtp:
        service.write()
        service.configuration.write_text(service.configuration.read_text().replace(
            "grace_seconds", "drain_seconds = 0.5\ngrace_seconds"))
        # These go by what they have read.
        first = service.upgrade("2.0")
        assert smtp.say(b"NOOP").startswith(b"250")
        with talking(service.address("smtp")) as later:
            second = service.upgrade("3.0")
            for each in later, smtp:
                assert each.reply().startswith(b"421")
        until(lambda: not (alive(first) or alive(second)))
        service.stop()


# ---- other surroundings -------------------------------------------------------------------------


def test_a_daemon_and_its_pid_file(tmp_path: Path) -> None:
    """And SIGUSR2, and listeners that come and go."""
    pidfile = tmp_path / "pid"
    where, gone, new = (tmp_path / name for name in ("lmtp", "gone", "new"))

    def listening(*more: str) -> str:
        return f'lmtp = ["unix:{where}:mode=600"{"".join(more)}]\n'

    with Program(tmp_path, 2, listening(f', "unix:{gone}"'), options=("--pidfile", str(pidfile))
                 ) as service:
        # Nobody watches the process that was started; what became of it is.
        service.process.wait(PATIENCE)
        first = int(pidfile.read_text())
        assert first in service.processes()
        with Dialogue(service.address("smtp")) as smtp:
            assert smtp.reply().startswith(b"220")
            service.install("2.0", "raise RuntimeError('no such luck')")
            os.kill(first, signal.SIGUSR2)
            until(lambda: "RuntimeError: no such luck" in service.text())
            until(pidfile.exists)
            assert int(pidfile.read_text()) == first

            service.install("3.0")
            service.write(listening(f', "unix:{new}:mode=660"'))
            os.kill(first, signal.SIGUSR2)
            until(lambda: "mailsvc 3.0, process" in service.text())
            second = int(pidfile.read_text())
            assert second != first
            for path, mode in (where, 0o600), (new, 0o660):
                assert stat.S_IMODE(path.stat().st_mode) == mode
                assert os.readlink(f"{path}.lock") == str(second)
                with socket.socket(socket.AF_UNIX) as lmtp:
                    lmtp.settimeout(PATIENCE)
                    lmtp.connect(str(path))
                    assert lmtp.recv(100).startswith(b"220")
            assert smtp.say(b"QUIT").startswith(b"221")
        until(lambda: not alive(first))
        assert int(pidfile.read_text()) == second
        os.kill(second, signal.SIGTERM)
        until(lambda: not service.processes())
        assert not list(tmp_path.glob("pid*")) and not where.exists() and not new.exists()


def test_the_program_is_started_as_its_script_says(tmp_path: Path) -> None:
    script, module = tmp_path / "twistd", tmp_path / "module.py"
    script.write_text("#!/usr/bin/python3\n")
    script.chmod(0o755)
    module.write_text("run()\n")
    for words, expected in (
            (["python", str(script), "-n"], (str(script), "-n")),
            (["python", str(module), "-n"], ("/venv/python", str(module), "-n")),
            (["python", "-c", "run()"], ("/venv/python", "-c", "run()")),
            (["python", "-m", "twisted", "x"], ("/venv/python", "-m", "twisted", "x")),
            (["python"], ("/venv/python",))):
        assert command(words, "/venv/python") == expected


def test_the_pid_file_steps_aside_and_back(tmp_path: Path) -> None:
    path, let_go = tmp_path / "pid", []
    origin = Origin(("x",), "/", str(path), lambda: let_go.append(True))
    path.write_text("1")
    origin.step_aside()
    assert not path.exists()
    path.write_text("2")
    origin.step_back()
    assert path.read_text() == "1"
    origin.step_aside()
    path.write_text("2")
    origin.hand_over()
    assert (path.read_text(), let_go, len(list(tmp_path.iterdir()))) == ("2", [True], 1)


# ---- both ends of the link ----------------------------------------------------------------------


@pytest.mark.parametrize(("words", "reason"), [
    (("sleep", "60"), "it was not ready within 0.2 seconds"),
    (("sh", "-c", "echo wrong >&2; exec sleep 60"), "within 0.2 seconds: wrong"),
    (("sh", "-c", "trap '' TERM; exec sleep 60"), "within 0.2 seconds"),
    (("false",), r"it ended before it was ready \(status 1\); see the log"),
    (("/nowhere/twistd",), r"it cannot be started: No such file or directory \(/nowhere/twistd\)"),
], ids=["late", "words", "stubborn", "ended", "nothing"])
@pytest_twisted.ensureDeferred
async def test_what_is_not_ready_is_ended(
    words: tuple[str, ...], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(succession, "_BY_ITSELF", 0.1)
    monkeypatch.setattr(succession, "_TO_END", 0.2)
    successor = Successor(Origin(words, "/"), [], reactor, lambda _: None, 0.2)
    with pytest.raises(NotReady, match=reason):
        await successor.start()
    assert not (successor.pid and alive(successor.pid))


def test_what_is_not_inherited_is_closed() -> None:
    link, other = socket.socketpair()
    fds = [os.dup(0) for _ in range(4)]
    environ = {VARIABLE: json.dumps({"link": link.detach(), "stderr": fds[0], "sockets": [
        ["smtp", "tcp:25", fds[1]], ["smtp", "tcp:25", fds[2]], ["pop3", "x", fds[3]]]})}
    predecessor = Predecessor.from_environment(environ)
    assert predecessor is not None and not environ
    assert [predecessor.socket_for("smtp", "tcp:25") for _ in range(3)] == [*fds[1:3], None]
    assert predecessor.socket_for("pop3", "tcp:25") is None
    predecessor.close_others()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fds[3])
    assert Predecessor.from_environment(environ) is None
    predecessor._end.close()
    other.close()
    for fd in fds[:3]:
        os.close(fd)


class _Greeting(Protocol):
    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(b"hello")
        self.transport.loseConnection()


@pytest.mark.parametrize("description", [
    "tcp:25:interface=127.0.0.1", "systemd:domain=INET:index=0", "systemd:index=3:domain=INET",
    "haproxy:tcp:25", "haproxy:systemd:domain=INET:name=smtp"])
@pytest_twisted.ensureDeferred
async def test_any_endpoint_takes_over_a_socket(description: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        bound.setblocking(False)
        address = bound.getsockname()
        listener = Listener(KINDS["smtp"], description, reactor, inherited=os.dup(bound.fileno()))
        listener.hold()
        await listener.bind()
        listener.open(Factory.forProtocol(_Greeting))
        assert listener.host_and_port == address
        with socket.create_connection(address) as client:
            client.settimeout(0.1)
            if description.startswith("haproxy"):
                client.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
            await _turn()
            with pytest.raises(TimeoutError):
                client.recv(100)
            listener.admit()
            client.settimeout(0)
            for _ in range(500):
                with suppress(BlockingIOError):
                    assert client.recv(100) == b"hello"
                    break
                await _turn()
            else:
                pytest.fail("nobody answered")
        await listener.close()
        # The other one still listens.
        socket.create_connection(address).close()
        bound.accept()[0].close()


def _turn() -> Deferred[None]:
    turned: Deferred[None] = Deferred()
    reactor.callLater(0.01, turned.callback, None)
    return turned
