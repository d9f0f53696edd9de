"""``twistd mailsvc``: its options, its log, in the foreground and as a daemon."""

from __future__ import annotations

import json
import os
import poplib
import signal
import smtplib
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mailsvc import tap
from tests.service import PATIENCE, Dialogue
from tests.twistd import ACCOUNT, ANY, TWISTD, Twistd, add_account


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    add_account(tmp_path)
    path = tmp_path / "mailsvc.toml"
    path.write_text(f"""\
service = {{ data = "{tmp_path}", hostname = "mx.example.org" }}
passwords = {{ memory_kib = 64, passes = 1 }}
[listeners]
smtp = ["{ANY}"]
pop3 = ["{ANY}"]
""")
    return path


def twistd(*arguments: object, directory: Path | None = None) -> Twistd:
    return Twistd([*TWISTD, "--nodaemon", "--pidfile=", *map(str, arguments)], directory=directory)


def test_twistd_lists_the_plugin() -> None:
    with Twistd([*TWISTD, "--help"]) as process:
        assert process.wait() == 0
        assert "\n    mailsvc          SMTP and POP3" in process.output


def test_twistd_explains_the_options() -> None:
    with twistd("mailsvc", "--help") as process:
        assert process.wait() == 0
        for option in "--config=", "--smtp=", "--pop3=", "--auth=", "--set=":
            assert option in process.output


def test_twistd_serves_a_configuration_file(configuration: Path) -> None:
    with twistd("mailsvc", "--config", configuration) as process:
        with smtplib.SMTP("127.0.0.1", process.port("smtp")) as sender:
            sender.sendmail("bob@example.net", [ACCOUNT], "Subject: hello\r\n\r\nHello.\r\n")
        session = poplib.POP3("127.0.0.1", process.port("pop3"))
        session.user(ACCOUNT)
        session.pass_("secret")
        assert session.retr(1)[1][-1] == b"Hello."
        session.quit()
        assert process.stop() in {0, -signal.SIGTERM}
        assert "stopped" in process.output.splitlines()[-1]
        assert "secret" not in process.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_sent_again_is_the_same(configuration: Path, number: signal.Signals) -> None:
    with twistd("mailsvc", "--config", configuration) as process:
        process.port("smtp")
        for _ in range(5):
            # As a terminal does: to all processes.
            os.killpg(process.process.pid, number)
            time.sleep(0.01)
        assert process.wait() in {0, -number}
    assert "Traceback" not in process.output, process.output
    assert "Unhandled" not in process.output
    assert "stopped" in process.output.splitlines()[-1]


def test_an_impatient_interrupt_does_not_wait(configuration: Path) -> None:
    with twistd("mailsvc", "--config", configuration) as process, \
            smtplib.SMTP("127.0.0.1", process.port("smtp")) as sender:
        sender.ehlo()
        sender.mail("bob@example.net")
        sender.rcpt(ACCOUNT)
        assert sender.docmd("DATA")[0] == 354
        process.process.send_signal(signal.SIGTERM)
        process.wait_for("stopping; 1 connections")
        deadline = time.monotonic() + PATIENCE / 3
        while process.process.poll() is None:
            assert time.monotonic() < deadline
            process.process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        assert process.wait() in {0, -signal.SIGTERM}
        sender.close()
    assert "stopping at once" in process.output
    assert "Traceback" not in process.output


def test_twistd_logs_json_when_configured(configuration: Path) -> None:
    with twistd("mailsvc", "-c", configuration, "--set", "log.format=json") as process:
        smtp = process.port("smtp")
        hello = b"x\x1b[2J\xc2\x85\xe2\x80\xa8\xff"
        with Dialogue(("127.0.0.1", smtp)) as client:
            client.reply()
            client.say(b"HELO " + hello)
            client.say(b"HELO client.example")
            client.say(b"MAIL FROM:<bob@example.net>")
            client.say(b"RCPT TO:<no\x1b[31m@example.org>")
            client.say(b"RCPT TO:<nobody@example.org>")
        process.stop()
        entries = [json.loads(line) for line in process.output.splitlines()]
        assert all(line.isascii() and line.isprintable() for line in process.output.splitlines())
        (refused,) = [entry for entry in entries if "recipient" in entry]
        assert refused["recipient"] == "nobody@example.org"


def test_twistd_options_replace_the_listeners(configuration: Path) -> None:
    with twistd("mailsvc", "-c", configuration, "--smtp", ANY, "--smtp", ANY) as process:
        process.wait_for("pop3 listens on")
        assert len(process.wait_for("smtp listens on")) == 2
        process.stop()


def test_twistd_takes_other_checkers(configuration: Path, tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text(f"{ACCOUNT}:other\n")
    with twistd("mailsvc", "-c", configuration, "--auth", f"file:{passwords}") as process:
        session = poplib.POP3("127.0.0.1", process.port("pop3"))
        session.user(ACCOUNT)
        session.pass_("other")
        session.quit()
        process.stop()


def test_twistd_lists_the_mistakes_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("smtp.recipients = 0\nx = 1\n")
    with twistd("mailsvc", "-c", path, "--pop3", "tcp:x") as process:
        assert process.wait() == 1
        assert "the configuration has mistakes:" in process.output
        assert f"{path}:1: smtp.recipients = 0: expected 1 or more" in process.output
        assert f"{path}:2: x = 1: no such key" in process.output
        assert '--set: listeners.pop3 = ["tcp:x"]: expected' in process.output
        assert "Usage:" not in process.output


def test_twistd_refuses_passwords_that_cannot_be_read(tmp_path: Path) -> None:
    with twistd("mailsvc", "--set", f"service.data={tmp_path}",
                "--auth", f"file:{tmp_path}/none") as process:
        assert process.wait() == 1
        assert f"--auth: {tmp_path}/none cannot be read by user " in process.output


def test_twistd_fails_on_a_port_in_use(configuration: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
        with twistd("mailsvc", "-c", configuration, "--smtp", endpoint) as process:
            assert process.wait() == 1
            assert "EADDRINUSE" in process.output
            assert "Traceback" not in process.output


def test_twistd_fails_when_a_listener_fails_late(configuration: Path) -> None:
    script = """
from twisted.internet import defer, reactor
import mailsvc.listeners
class Endpoint:
    def listen(self, factory):
        outcome = defer.Deferred()
        reactor.callLater(0.1, outcome.errback, RuntimeError("no onions today"))
        return outcome
mailsvc.listeners.serverFromString = lambda *_: Endpoint()
from twisted.scripts.twistd import run
run()
"""
    with Twistd([TWISTD[0], "-c", script, "--nodaemon", "--pidfile=", "mailsvc", "-c",
                 str(configuration)]) as process:
        assert process.wait() == 1
        assert "no onions today" in process.output


def test_twistd_writes_the_log_file(configuration: Path, tmp_path: Path) -> None:
    log = tmp_path / "twistd.log"
    with twistd("--logfile", log, "mailsvc", "-c", configuration) as process:
        wait_for_text(log, "pop3 listens on")
        process.process.send_signal(signal.SIGUSR1)
        wait_until(Path(f"{log}.1").exists)
        process.stop()
    assert log.read_text().endswith("stopped\n")


def test_twistd_as_a_daemon(configuration: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [*TWISTD, "mailsvc", "--config", str(configuration)], cwd=tmp_path, timeout=60, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}, capture_output=True)
    assert done.stdout == done.stderr == b""
    pid = int((tmp_path / "twistd.pid").read_text())
    try:
        wait_for_text(tmp_path / "twistd.log", "pop3 listens on")
        smtp = int((tmp_path / "twistd.log").read_text().split("smtp listens on 127.0.0.1:")[1]
                   .split()[0])
        with smtplib.SMTP("127.0.0.1", smtp) as sender:
            sender.sendmail("bob@example.net", [ACCOUNT], "Subject: hello\r\n\r\nHello.\r\n")
        assert len(list((tmp_path / "mail" / "example.org" / "alice" / "new").iterdir())) == 1
    finally:
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not (tmp_path / "twistd.pid").exists())


def test_the_log_of_a_daemon_is_its_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, owners = tmp_path / "log", []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", lambda *arguments: owners.append(arguments))
    file = tap._log_file({"logfile": str(path), "uid": 4321, "gid": 4322, "nodaemon": False})
    assert file is not None
    assert owners == [(str(path), 4321, 4322)]
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_daemon_that_cannot_start_says_so(configuration: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, Twistd(
            [*TWISTD, "mailsvc", "-c", str(configuration), "--smtp",
             f"tcp:{taken.getsockname()[1]}:interface=127.0.0.1"], directory=tmp_path) as process:
        assert process.wait() == 1
        assert "CannotStart" in process.output
    wait_until(lambda: not (tmp_path / "twistd.pid").exists())
    wait_for_text(tmp_path / "twistd.log", "EADDRINUSE")


@pytest.mark.parametrize("workers", [1, 2])
def test_in_the_foreground_signals_of_daemons_change_nothing(
    configuration: Path, workers: int
) -> None:
    """There is no log file to begin anew, and nobody would learn of another process."""
    with twistd("mailsvc", "--config", configuration, "--set",
                f"service.workers={workers}") as process:
        port = process.port("smtp")
        process.wait_for("pop3 listens on")
        for number, said in ((signal.SIGUSR1, "this log goes to none, so nothing is done"),
                             (signal.SIGUSR2, "this program goes on serving, for no other can")):
            process.process.send_signal(number)
            process.wait_for(said)
        with Dialogue(("127.0.0.1", port)) as smtp:
            assert smtp.reply().startswith(b"220")
        assert process.stop() in {0, -signal.SIGTERM}


def test_the_pid_file_that_twistd_makes_unasked_is_read_by_nobody(
    configuration: Path, tmp_path: Path
) -> None:
    place = tmp_path / "here"
    place.mkdir()
    with Twistd([*TWISTD, "--nodaemon", "mailsvc", "--config", str(configuration)],
                directory=place) as process:
        process.wait_for("pop3 listens on")
        assert (place / "twistd.pid").read_text() == str(process.process.pid)
        try:
            process.process.send_signal(signal.SIGUSR2)
            process.wait_for("nobody would learn of the new process")
            assert process.stop() in {0, -signal.SIGTERM}
        finally:
            with suppress(ProcessLookupError):  # what has taken over all the same
                os.killpg(process.process.pid, signal.SIGKILL)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_text(path: Path, text: str) -> None:
    wait_until(lambda: path.exists() and text in path.read_text())
