"""mailsvc.succession, `mailsvc upgrade`: one program takes over from another."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol

from mailsvc import control, live, succession
from mailsvc.control import UpgradeRefused
from mailsvc.listeners import KINDS, Listener
from mailsvc.localsocket import NoService
from mailsvc.succession import VARIABLE, NotReady, Origin, Predecessor, Successor, command
from tests.service import PATIENCE, Dialogue
from tests.test_workers import alive, until
from tests.upgrading import KEPT, Program, begin, run, talking

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
    with open(os.devnull) as lock:
        successor = Successor(Origin(words, "/"), [], [lock.fileno()], reactor, lambda _: None, 0.2)
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
