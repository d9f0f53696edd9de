"""``mailsvc dev``: how it ends, and what it leaves behind: nothing."""

from __future__ import annotations

import array
import contextlib
import fcntl
import functools
import os
import re
import signal
import socket
import termios
import time
from pathlib import Path

import pytest

from mailsvc.stopping import SAME
from tests.service import PATIENCE, Dialogue, Service
from tests.test_dev import ANY_PORT, DEV, command
from tests.test_workers import until
from tests.twistd import Twistd


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_it_well(tmp_path: Path, number: signal.Signals) -> None:
    with Service(tmp_path / "data") as service:
        pids = service.pids()
        assert service.pid in pids
        service.process.send_signal(number)
        assert service.process.wait(PATIENCE) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_signals_of_daemons_change_nothing(tmp_path: Path, workers: str) -> None:
    with Service(tmp_path / "data", (), ("--workers", workers)) as service:
        for number, said in ((signal.SIGUSR1, "this log goes to none, so nothing is done"),
                             (signal.SIGUSR2, "started from flags alone (mailsvc dev)")):
            service.process.send_signal(number)
            until(functools.partial(_says, service, said))
        with Dialogue(service.smtp) as smtp:
            assert smtp.reply().startswith(b"220")
        assert service.stop() == 0


def _says(service: Service, text: str) -> bool:
    return text in service.log.read_text()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_sent_again_is_the_same(
    tmp_path: Path, number: signal.Signals, workers: int
) -> None:
    # As timeout(1) does: the process, then its group.
    for gap in 0.002, 0.02:
        with Twistd([*DEV, *ANY_PORT, "--workers", str(workers)],
                    variables={"TMPDIR": str(tmp_path)}) as process:
            process.wait_for("^ready$")
            process.process.send_signal(number)
            time.sleep(gap)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.process.pid, number)
            assert process.wait() == 0, gap
        assert list(tmp_path.iterdir()) == [], gap
        assert "Traceback" not in process.output, process.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_it_starts(tmp_path: Path, number: signal.Signals) -> None:
    # It waits for the end of the list of accounts.
    read, write = os.pipe()
    with open(write, "wb", buffering=0) as accounts, Twistd(
            [*DEV, *ANY_PORT, "--accounts", f"/proc/{os.getpid()}/fd/{read}"],
            variables={"TMPDIR": str(tmp_path)}) as process:
        accounts.write(b"alice@example.org:secret\n")
        deadline = time.monotonic() + PATIENCE
        while not (catches(process.process.pid, signal.SIGTERM) and emptied(read)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert list(tmp_path.glob("mailsvc-*"))
        process.process.send_signal(number)
        os.killpg(process.process.pid, number)
        assert process.wait() == 1
    os.close(read)
    assert process.output.splitlines()[-1] == "Aborted!"
    assert "Traceback" not in process.output
    assert list(tmp_path.iterdir()) == []


def emptied(pipe: int) -> bool:
    waiting = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, waiting)
    return waiting[0] == 0


def catches(pid: int, number: int) -> bool:
    caught = re.findall(r"^SigCgt:\s*([0-9a-f]+)", Path(f"/proc/{pid}/status").read_text(),
                        re.MULTILINE)
    return bool(int(caught[0], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_impatient_interrupt_does_not_wait(tmp_path: Path, workers: int) -> None:
    command = [*DEV, *ANY_PORT, "--account", "alice@example.org:secret", "--workers", str(workers)]
    with Twistd(command, variables={"TMPDIR": str(tmp_path)}) as process:
        (port,) = process.wait_for(r"^smtp 127\.0\.0\.1:(\d+)$")
        process.wait_for("^ready$")
        with Dialogue(("127.0.0.1", int(port))) as smtp:
            smtp.reply()
            for line in (b"EHLO client.example", b"MAIL FROM:<bob@example.net>",
                         b"RCPT TO:<alice@example.org>"):
                assert smtp.say(line).startswith(b"250")
            assert smtp.say(b"DATA").startswith(b"354")
            process.process.send_signal(signal.SIGINT)
            process.wait_for("stopping; 1 connections")
            began = time.monotonic()
            while process.process.poll() is None:
                # Those that come at once do not count.
                assert time.monotonic() < began + PATIENCE / 3
                process.process.send_signal(signal.SIGINT)
                time.sleep(0.1)
            assert process.wait() == -signal.SIGINT
            assert time.monotonic() - began > SAME / 2
    assert "stopping at once" in process.output
    assert "Traceback" not in process.output
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_directory_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with Twistd([*DEV, *ANY_PORT], variables={"TMPDIR": str(tmp_path)}) as process:
        process.wait_for("^ready$")
        (folder,) = tmp_path.iterdir()
        assert {"mail", "accounts.sqlite"} <= {path.name for path in folder.iterdir()}
        assert folder.stat().st_mode & 0o77 == 0
        assert process.stop() == 0
    assert list(tmp_path.iterdir()) == []


def test_keys_that_cannot_be_used_are_told_of_at_the_start(tmp_path: Path) -> None:
    key = tmp_path / "dkim" / "example.org" / "e1.pem"
    key.parent.mkdir(parents=True)
    key.write_text("nothing")
    with command("--dir", tmp_path, "--domain", "example.org", *ANY_PORT) as process:
        process.wait_for("^ready$")
        assert process.stop() == 0
    assert f"what users send waits, since it cannot be signed: {key} holds no" in process.output


def test_a_port_in_use_ends_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with command("--dir", tmp_path, "--smtp", port, "--pop3", "0") as process:
            assert process.wait() == 1
    assert f"smtp on 127.0.0.1:{port}: EADDRINUSE" in process.output
    assert "Traceback" not in process.output
    assert "\nready\n" not in process.output
