"""mailsvc.holding: a data directory has one service."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailsvc import control
from mailsvc.config import Settings
from mailsvc.holding import NAME, Holding, InUse
from mailsvc.listeners import CannotStart
from mailsvc.prerequisites import hold_data
from mailsvc.succession import VARIABLE, Predecessor
from tests.command_line import CommandLine
from tests.service import PATIENCE, Service
from tests.test_workers import alive, until
from tests.twistd import ANY, TWISTD, Twistd, add_account
from tests.upgrading import Program, talking

# ---- the lock itself ----------------------------------------------------------------------------


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Holding]:
    holding = Holding(tmp_path)
    holding.take()
    holding.sign()
    yield holding
    holding.close()


def free(data: Path) -> bool:
    holding = Holding(data)
    try:
        holding.take()
    except InUse:
        return False
    holding.close()
    return True


def test_another_is_told_the_pid(held: Holding, tmp_path: Path) -> None:
    with pytest.raises(InUse, match=f"process {os.getpid()}$") as caught:
        Holding(tmp_path).take()
    assert caught.value.pid == os.getpid()
    held.take()
    held.close()
    held.close()
    assert free(tmp_path)


def test_a_pid_that_cannot_be_told(held: Holding, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("")
    with pytest.raises(InUse, match="another process") as caught:
        Holding(tmp_path).take()
    assert caught.value.pid == 0


def test_only_its_owner_may_use_the_file(held: Holding, tmp_path: Path) -> None:
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
    assert not any(map(os.get_inheritable, held.filenos()))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_root_makes_belongs_to_the_owner_of_the_directory(tmp_path: Path) -> None:
    os.chown(tmp_path, 12_345, 12_346)
    holding = Holding(tmp_path)
    holding.take()
    made = (tmp_path / NAME).stat()
    holding.close()
    assert (made.st_uid, made.st_gid) == (12_345, 12_346)


def test_nobody_is_told_the_pid_of_one_that_has_ended(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("1\n")
    holding = Holding(tmp_path)
    holding.take()
    with pytest.raises(InUse, match="another process"):
        Holding(tmp_path).take()
    holding.close()


def test_what_is_in_the_place_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    settings = Settings.from_mapping({"service": {"data": str(tmp_path)}})
    with pytest.raises(CannotStart, match=f"{NAME} cannot be used: Is a directory; move it"):
        hold_data(settings, Holding(tmp_path))


def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        Holding(tmp_path).take()


def test_without_its_file_it_is_held_yet(held: Holding, tmp_path: Path) -> None:
    # As a stale lock, it seems.
    for _ in range(2):
        (tmp_path / NAME).unlink()
        assert not free(tmp_path)
    assert not free(tmp_path)
    held.close()
    assert free(tmp_path)


@pytest.mark.parametrize("number", [errno.EBADF, errno.ENOLCK], ids=errno.errorcode.get)
def test_where_directories_cannot_be_locked_the_file_is(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        locked(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    holding = Holding(tmp_path)
    holding.take()
    holding.sign()
    with pytest.raises(InUse, match=f"process {os.getpid()}$"):
        Holding(tmp_path).take()
    holding.close()
    assert free(tmp_path)


@pytest.mark.parametrize("only", ["the directory", "its file"])
def test_one_of_the_two_is_enough_to_be_refused(only: str, tmp_path: Path) -> None:
    # A version of old holds the file alone.  Whose pid is in a file that nobody holds?
    place = tmp_path if only == "the directory" else tmp_path / NAME
    (tmp_path / NAME).write_text("4711\n")
    descriptor = os.open(place, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    before = open_files()
    with pytest.raises(InUse) as caught:
        Holding(tmp_path).take()
    assert caught.value.pid == (0 if place == tmp_path else 4711)
    assert open_files() == before
    os.close(descriptor)
    assert free(tmp_path)


def open_files() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def inherited_from(holding: Holding) -> list[int]:
    return [os.dup(each) for each in holding.filenos()]


def test_what_inherits_it_holds_it_as_well(held: Holding, tmp_path: Path) -> None:
    before = open_files()
    successor = Holding(tmp_path)
    successor.take(inherited_from(held))
    assert len(open_files()) == len(before) + len(held.filenos())
    assert not any(map(os.get_inheritable, successor.filenos()))
    held.close()
    assert not free(tmp_path)
    (tmp_path / NAME).unlink()
    assert not free(tmp_path)
    successor.close()
    assert free(tmp_path)


def test_what_inherits_it_without_its_file_makes_one(held: Holding, tmp_path: Path) -> None:
    (tmp_path / NAME).unlink()
    successor = Holding(tmp_path)
    successor.take(inherited_from(held))
    held.close()
    successor.sign()
    with pytest.raises(InUse, match=f"process {os.getpid()}$"):
        Holding(tmp_path).take()
    successor.close()


def test_a_version_of_old_hands_over_the_file_alone(tmp_path: Path) -> None:
    old = os.open(tmp_path / NAME, os.O_RDWR | os.O_CREAT)
    fcntl.flock(old, fcntl.LOCK_EX)
    link, stderr = socket.socketpair()
    with link:
        predecessor = Predecessor.from_environment({VARIABLE: json.dumps({
            "link": os.dup(link.fileno()), "stderr": stderr.detach(), "holding": os.dup(old),
            "sockets": []})})
    assert predecessor is not None
    successor = Holding(tmp_path)
    successor.take(predecessor.holding)
    os.close(old)
    (tmp_path / NAME).unlink()
    assert not free(tmp_path)
    successor.close()
    assert free(tmp_path)
    os.close(predecessor.stderr)


def test_what_is_of_another_directory_is_closed(held: Holding, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    inherited = inherited_from(held)
    successor = Holding(other)
    successor.take(inherited)
    for each in inherited:
        with pytest.raises(OSError, match="Bad file descriptor"):
            fcntl.fcntl(each, fcntl.F_GETFD)
    assert not free(other)
    successor.close()


# ---- services -----------------------------------------------------------------------------------


def dev(data: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from mailsvc.cli import main; main()", "dev", "--dir", str(data),
         "--smtp", "0", "--pop3", "0", *options], text=True, capture_output=True, timeout=PATIENCE,
        check=False)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_second_service_is_refused(tmp_path: Path, workers: str) -> None:
    data = tmp_path / "data"
    with Service(data, ("bob@example.org:secret",), ("--workers", workers)) as service:
        inode = (data / control.NAME).stat().st_ino
        second = dev(data, "--account", "eve@example.org:secret")
        assert (second.returncode, second.stdout) == (1, "")
        (line,) = second.stderr.splitlines()
        assert line == (
            f"mailsvc cannot start: process {service.pid} serves the data in {data} already; stop "
            f"that first (systemctl stop mailsvc, or kill {service.pid}), or give this one a data "
            "directory of its own (service.data)")
        with Twistd([*TWISTD, "--nodaemon", "--pidfile=", "mailsvc", "--set",
                     f"service.data={data}", "--smtp", ANY, "--pop3", ANY]) as third:
            assert third.wait() == 1
            assert line in third.output
            assert "Traceback" not in third.output
        # Nor can one without the file that names the process.
        (data / NAME).unlink()
        assert dev(data).stderr.startswith(
            f"mailsvc cannot start: another process serves the data in {data} already; stop "
            f"that first (systemctl stop mailsvc, or `fuser -v {data}` names it)")
        assert (data / control.NAME).stat().st_ino == inode
        assert control.running(data)["values"]["service.data"] == str(data)
        # It had no hand in the accounts, and commands work beside.
        assert "eve" not in CommandLine(data)("account", "list")
        assert CommandLine(data)("queue", "list").count("\n") == 1
        assert service.stop() == 0
    with Service(data, (), ("--workers", workers)):
        pass


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_was_killed_is_in_nobodys_way(tmp_path: Path, workers: str) -> None:
    data = tmp_path / "data"
    for _ in range(3):
        service = Service(data, ("bob@example.org:secret",), ("--workers", workers))
        # Its workers need a moment to be gone, and the next start none.
        os.kill(service.pid, signal.SIGKILL)
        service.process.wait(PATIENCE)
        assert free(data)
        service.stop()


def test_a_daemon_holds_it_and_a_second_one_fails(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    add_account(data)

    def daemon(name: str) -> Twistd:
        return Twistd([*TWISTD, "--pidfile", str(tmp_path / f"{name}.pid"), "--logfile",
                       str(tmp_path / f"{name}.log"), "mailsvc", "--set", f"service.data={data}",
                       "--set", "service.workers=2", "--smtp", ANY, "--pop3", ANY])

    with daemon("first") as first:
        assert first.wait() == 0, first.output
        pid = int((tmp_path / "first.pid").read_text())
        try:
            with daemon("second") as second:
                assert second.wait() == 1
                until(lambda: f"process {pid} serves the data in {data} already" in
                      (tmp_path / "second.log").read_text())
            until(lambda: "workers serve" in (tmp_path / "first.log").read_text())
        finally:
            os.kill(pid, signal.SIGTERM)
        until(lambda: not alive(pid))
    assert free(data)


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_it_goes_from_one_program_to_the_next(tmp_path: Path, kill: bool) -> None:
    with Program(tmp_path, 2) as service:
        def holder() -> int:
            with pytest.raises(InUse) as caught:
                Holding(service.data).take()
            return caught.value.pid

        assert holder() == service.main
        # What does not start leaves it as it was.
        service.install("1.5", "raise SystemExit(3)")
        with pytest.raises(control.UpgradeRefused):
            control.upgrade(service.data)
        assert holder() == service.main
        # The next makes the file once more; until then nobody else can start, either.
        (service.data / NAME).unlink()
        assert holder() == 0
        with talking(service.address("smtp")):
            former = service.upgrade("2.0")
            assert service.main != former
            until(lambda: holder() == service.main)
            assert re.search("serves the data in .* already", dev(service.data).stderr)
            assert alive(former)
            if kill:
                main = service.main
                os.kill(main, signal.SIGKILL)
                until(lambda: not alive(main))
                assert alive(former), "it has a session yet, and is in nobody's way"
                assert free(service.data)
                return
        until(lambda: not alive(former))
        assert holder() == service.main
        service.stop()
        assert free(service.data)


def test_workers_do_not_have_it(tmp_path: Path) -> None:
    data = tmp_path / "data"

    def has(pid: int) -> set[Path]:
        # They have the directory open for their sockets, but not as it is held.
        fds = Path(f"/proc/{pid}/fd")
        return {data, data / NAME} & {
            each.readlink() for each in fds.iterdir()
            if "FLOCK" in (fds.with_name("fdinfo") / each.name).read_text()}

    with Service(data, (), ("--workers", "2")) as service:
        assert {pid: has(pid) for pid in service.pids()} == {
            pid: {data, data / NAME} if pid == service.pid else set() for pid in service.pids()}
