"""The queue and several worker processes: one sends, all take mail in, and another goes on."""

from __future__ import annotations

import json
import os
import signal
import smtplib
import time
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import CommandLine
from tests.daemons import free_port
from tests.exchanger import Exchanger
from tests.nameserver import NameServer
from tests.relay import MESSAGE, QUICK, mail, queued, relaying, submit, until
from tests.service import PATIENCE, Service
from tests.test_workers import (
    banner,
    children,
    configuration,  # noqa: F401 - a fixture
    twistd,
    workers_of,
    write,
)


def together(directory: Path, workers: int, *settings: str, options: tuple[str, ...] = ()
             ) -> Service:
    return relaying(directory, *settings, options=("--workers", str(workers), *options))


def owner_of(service: Service) -> int:
    """The process that sends: the one that has the queue's lock."""
    inode = (service.directory / "queue" / "lock").stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5].split(":")[-1] == str(inode):
            return int(fields[4])
    return 0


def sent_to(exchanger: Exchanger) -> list[str]:
    """The recipients of what *exchanger* took."""
    return [line.split("<")[1].split(">")[0]
            for _, lines, _, _ in exchanger.messages for line in lines]


@pytest.mark.parametrize("workers", [2, 4])
def test_whichever_worker_takes_it_one_sends_it(tmp_path: Path, workers: int) -> None:
    port = free_port()
    zone = {"far.example": ["MX 10 mx.far.example"], "mx.far.example": ["A 127.0.0.1"]}
    with NameServer(zone) as names, Exchanger("127.0.0.1", port, "") as there, \
            Exchanger("127.0.0.1", 0, "") as smart, together(
                tmp_path / "a", workers, f'relay.dns=["{names.address}"]', f"relay.port={port}",
                f"relay.routes={{\"smart.example\"=\"127.0.0.1:{smart.port}\"}}", *QUICK[:2],
                options=("--alias", "fwd@a.example=fwd@far.example,alice@a.example")) as here:
        assert len(workers_of(here)) == workers and owner_of(here) in workers_of(here)
        for number in range(20):
            submit(here, [f"s{number}@far.example", f"s{number}@smart.example"])
            with smtplib.SMTP(*here.smtp, timeout=PATIENCE) as smtp:
                smtp.sendmail("x@sender.example", ["fwd@a.example"], MESSAGE)
        until(lambda: not queued(here), here)
        assert sorted(sent_to(smart)) == sorted(f"s{n}@smart.example" for n in range(20))
        assert sorted(sent_to(there)) == sorted(
            [f"s{n}@far.example" for n in range(20)] + 20 * ["fwd@far.example"])
        assert len(mail(here)) == 20


def test_when_the_one_that_sends_is_killed_another_goes_on_at_once(tmp_path: Path) -> None:
    with Exchanger("127.0.0.1", 0, "") as there, together(
            tmp_path / "a", 3, f"relay.smarthost=127.0.0.1:{there.port}") as here:
        for number in range(6):
            owner = owner_of(here)
            assert owner in workers_of(here)
            os.kill(owner, signal.SIGKILL)
            # Half as long as it would take if nobody noticed.
            until(lambda former=owner: owner_of(here) not in (0, former), here, 15)
            submit(here, [f"m{number}@far.example"])
            until(lambda count=number + 1: len(there.messages) == count, here, 15)
        assert sent_to(there) == [f"m{n}@far.example" for n in range(6)]
        until(lambda: not queued(here), here)


def test_what_the_killed_one_was_sending_is_sent_by_another(tmp_path: Path) -> None:
    with Exchanger("127.0.0.1", 0, "hang=content", "") as there, together(
            tmp_path / "a", 2, f"relay.smarthost=127.0.0.1:{there.port}") as here:
        submit(here, ["m@far.example"])
        until(lambda: "DATA" in there.lines, here)
        os.kill(owner_of(here), signal.SIGKILL)
        until(lambda: len(there.messages) == 1 and not queued(here), here)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_graceful_stop_leaves_what_hangs_to_the_next_start(tmp_path: Path, workers: int) -> None:
    """What is amid an attempt when the service stops is tried at once by the next one."""
    with Exchanger("127.0.0.1", 0, "hang=rcpt", "") as there:
        settings = (f"relay.smarthost=127.0.0.1:{there.port}", "service.grace_seconds=1")
        here = together(tmp_path / "a", workers, *settings)
        try:
            submit(here, ["m@far.example"])
            until(lambda: any(line.startswith("RCPT") for line in there.lines), here)
        finally:
            assert here.stop() == 0
        log = here.log.read_text()
        assert "Traceback" not in log and "did not end and are killed" not in log
        assert len(queued(here)) == 1
        with together(tmp_path / "a", workers, *settings) as here:
            until(lambda: len(there.messages) == 1 and not queued(here), here)


def test_a_stop_waits_for_what_is_about_to_be_taken(tmp_path: Path) -> None:
    with Exchanger("127.0.0.1", 0, "slow=end") as there:
        here = together(tmp_path / "a", 2, f"relay.smarthost=127.0.0.1:{there.port}")
        try:
            for number in range(30):
                submit(here, [f"m{number}@far.example"])
            until(lambda: there.lines.count("DATA") >= 5, here)
        finally:
            here.stop()
        assert "Traceback" not in here.log.read_text()
        left = {path.name for path in queued(here)}
        # None was taken and is still there to be sent again.
        assert len(there.messages) + len(left) == 30
        with together(tmp_path / "a", 2, f"relay.smarthost=127.0.0.1:{there.port}") as here:
            until(lambda: not queued(here), here)
        assert sorted(sent_to(there)) == sorted(f"m{n}@far.example" for n in range(30))


def test_acting_on_the_queue_of_several_workers(tmp_path: Path) -> None:
    closed = free_port()
    run = CommandLine(tmp_path / "a")
    with Exchanger("127.0.0.1", 0, "") as there, together(
            tmp_path / "a", 2, f"relay.smarthost=127.0.0.1:{closed}") as here:

        def listed() -> list[Any]:
            return list(json.loads(run("queue", "list", "--json")))

        for name in "one", "two", "three":
            submit(here, [f"{name}@far.example"])
        until(lambda: [each["attempts"] for each in listed()] == [1, 1, 1], here)
        assert run("queue", "hold", "to:one@far.example") == "Held 1 message\n"
        os.kill(owner_of(here), signal.SIGKILL)
        # At any moment of the change: who sends answers, whoever that is.
        route = f"127.0.0.1:{there.port}"
        assert run("queue", "reroute", route, "--all") == "Rerouted 3 messages\n"
        until(lambda: sorted(sent_to(there)) == ["three@far.example", "two@far.example"], here)
        until(lambda: [each["status"] for each in listed()] == ["held"], here)
        assert json.loads(run("queue", "stats", "--json"))["messages"] == 1
        assert "one@far.example" in run("queue", "show", listed()[0]["id"])
        assert run("queue", "release", "--all") == "Released 1 message\n"
        until(lambda: len(there.messages) == 3 and not queued(here), here)
        submit(here, ["four@far.example"])
        until(lambda: [each["attempts"] for each in listed()] == [1], here)
        assert run("queue", "retry", "--all") == "Retrying 1 message\n"
        until(lambda: [each["attempts"] for each in listed()] == [2], here)
        assert run("queue", "drop", "--all") == "Dropped 1 message\n"
        assert not queued(here)


def test_after_a_reload_mail_goes_by_the_new_configuration(configuration: Path) -> None:  # noqa: F811
    """Even while a session of the former generation, which had the queue, goes on."""
    run = CommandLine(configuration.parent)
    run("alias", "add", "fwd@example.org", "carol@far.example")
    with Exchanger("127.0.0.1", 0, "") as first, Exchanger("127.0.0.1", 0, "") as second:

        def relay(exchanger: Exchanger, hostname: str) -> None:
            write(configuration, hostname,
                  f'[relay]\nsmarthost = "127.0.0.1:{exchanger.port}"')

        relay(first, "mx.example.org")
        with twistd(configuration) as process:
            port = process.port("smtp")
            with smtplib.SMTP("127.0.0.1", port) as stays:
                def sent(exchanger: Exchanger, count: int) -> None:
                    deadline = time.monotonic() + PATIENCE
                    while len(exchanger.messages) < count:
                        assert time.monotonic() < deadline, process.output
                        time.sleep(0.05)

                def sent_to_either(count: int) -> None:
                    deadline = time.monotonic() + PATIENCE
                    while len(first.messages) + len(second.messages) < count:
                        assert time.monotonic() < deadline, process.output
                        time.sleep(0.05)

                stays.sendmail("x@sender.example", ["fwd@example.org"], MESSAGE)
                sent(first, 1)
                former = set(children(process.process.pid))
                relay(second, "other.example.org")
                process.process.send_signal(signal.SIGHUP)
                process.wait_for("the configuration was read again")
                deadline = time.monotonic() + PATIENCE
                while b"220 other" not in banner(port):
                    assert time.monotonic() < deadline
                # One that comes in the moment of change may still go the former way.
                for already in range(1, 11):
                    with smtplib.SMTP("127.0.0.1", port) as smtp:
                        smtp.sendmail("x@sender.example", ["fwd@example.org"], MESSAGE)
                    sent_to_either(already + 1)
                    if second.messages:
                        break
                assert len(second.messages) == 1
                # What the former generation still takes, the new one sends.
                stays.sendmail("x@sender.example", ["fwd@example.org"], MESSAGE)
                sent(second, 2)
                assert former & set(children(process.process.pid))
            assert len(first.messages) == already
            process.stop()
            assert "Traceback" not in process.output
