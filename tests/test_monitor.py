"""mailsvc.monitor, mailsvc.pages, `mailsvc stats`: the figures of whole services, over loopback."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import smtplib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families as families

from mailsvc import localsocket, monitor
from tests.service import PATIENCE, Dialogue, Service, fetch, login, submit

ALICE, BOB = "alice@example.org", "bob@example.org"
ACCOUNTS = (f"{ALICE}:secret", f"{BOB}:secret")
MESSAGE = b"Subject: hello\r\n\r\nHello.\r\n"

#: A series: its name, and its labels in order.
Series = tuple[str, frozenset[tuple[str, str]]]


@contextlib.contextmanager
def serving(path: Path, *options: str, workers: int = 2) -> Iterator[Service]:
    with Service(path / "data", ACCOUNTS,
                 ("--http", "127.0.0.1:0", "--workers", str(workers), *options)) as service:
        yield service


def ask(service: Service, path: str, method: str = "GET", body: bytes | None = None,
        **headers: str) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection(*service.listeners["http"], timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer, answer.read()


def scrape(service: Service) -> dict[Series, float]:
    answer, text = ask(service, "/metrics")
    assert answer.status == 200
    return {(sample.name.removeprefix("mailsvc_"), frozenset(sample.labels.items())): sample.value
            for family in families(text.decode()) for sample in family.samples}


def read(figures: dict[Series, float], name: str, **labels: str) -> float:
    """The sum of the series of that name that have these labels."""
    found = [value for (known, there), value in figures.items()
             if known == name and labels.items() <= set(there)]
    assert found, f"there is no {name} {labels}"
    return sum(found)


def counters(figures: dict[Series, float]) -> dict[Series, float]:
    return {series: value for series, value in figures.items()
            if re.search("_(total|count|sum|bucket)$", series[0])}


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)


def workers_of(service: Service) -> list[int]:
    return [pid for pid in service.pids() if pid != service.pid]


# ---- counts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_sent_and_fetched_is_counted_exactly(tmp_path: Path, workers: int) -> None:
    with serving(tmp_path, "--submission", "127.0.0.1:0", "--set",
                 "smtp.allow_cleartext_auth=yes", workers=workers) as service:
        for number in range(20):
            submit(service, MESSAGE * (number + 1), (ALICE, BOB)[: 1 + number % 2])
        with Dialogue(service.smtp) as smtp:
            smtp.reply()
            smtp.say(b"EHLO client.example.net")
            smtp.say(b"MAIL FROM:<x@example.net>")
            assert smtp.say(b"RCPT TO:<nobody@example.org>").startswith(b"550 5.1.1")
            assert smtp.say(b"RCPT TO:<x@example.com>").startswith(b"550 5.7.1")
            smtp.say(b"RCPT TO:<alice@example.org>")
            smtp.say(b"DATA")
            smtp.send(b"Subject: bare\nLF\r\n.\r\n")
            assert smtp.reply().startswith(b"550 5.6.11")
        with smtplib.SMTP(*service.listeners["submission"]) as sender:
            with pytest.raises(smtplib.SMTPAuthenticationError):
                sender.login(ALICE, "wrong", initial_response_ok=True)
            sender.login(ALICE, "secret")
            sender.sendmail(ALICE, [BOB], MESSAGE)
        with pytest.raises(AssertionError):
            service.passwords[ALICE] = "wrong"
            login(service, ALICE)
        service.passwords[ALICE] = "secret"
        messages = fetch(service, ALICE)
        kept = fetch(service, BOB, delete=False)
        assert (len(messages), len(kept)) == (20, 11)
        with login(service, BOB) as first, pytest.raises(AssertionError, match="IN-USE"):
            login(service, BOB)
        first.close()
        until(lambda: not read(scrape(service), "connections"))
        found = scrape(service)
    exact: list[tuple[float, str, dict[str, str]]] = [
        (20, "messages_accepted_total", {"protocol": "smtp"}),
        (210 * len(MESSAGE), "accepted_bytes_total", {"protocol": "smtp"}),
        (30, "recipients_accepted_total", {"protocol": "smtp"}),
        (1, "messages_accepted_total", {"protocol": "submission"}),
        (0, "messages_accepted_total", {"protocol": "lmtp"}),
        (2, "recipients_refused_total", {}),
        (1, "recipients_refused_total", {"protocol": "smtp", "code": "550", "status": "5.1"}),
        (1, "recipients_refused_total", {"protocol": "smtp", "code": "550", "status": "5.7"}),
        (1, "messages_not_accepted_total", {}),
        (1, "messages_not_accepted_total", {"protocol": "smtp", "reason": "dropped"}),
        (21, "commit_seconds_count", {}),
        (21, "commit_seconds_bucket", {"le": "+Inf"}),
        (21, "sessions_total", {"protocol": "smtp"}),
        (1, "sessions_total", {"protocol": "submission"}),
        (5, "sessions_total", {"protocol": "pop3"}),
        (31, "messages_fetched_total", {}),
        (sum(map(len, [*messages, *kept])), "fetched_bytes_total", {}),
        (20, "messages_deleted_total", {}),
        (3, "logins_total", {"protocol": "pop3", "outcome": "succeeded"}),
        (1, "logins_total", {"protocol": "pop3", "outcome": "failed"}),
        (1, "logins_total", {"protocol": "pop3", "outcome": "refused"}),
        (5, "logins_total", {"mechanism": "USER"}),
        (1, "logins_total", {"protocol": "submission", "outcome": "succeeded"}),
        (3, "login_seconds_count", {"protocol": "pop3"}),
        (3, "pop3_session_seconds_count", {}),
        (workers, "workers", {}),
        (1, "ready", {}),
        (0, "worker_restarts_total", {}),
    ]
    assert [(read(found, name, **labels), name, labels) for _, name, labels in exact] == exact
    assert read(found, "logins_total", protocol="submission", outcome="failed") >= 1
    assert 0 < read(found, "commit_seconds_sum") < 21 * PATIENCE
    assert read(found, "disk_free_bytes", place="mail") > 0
    assert read(found, "certificate_expiry_timestamp_seconds",
                certificate="self-signed") > time.time()
    for process in [f"worker-{number}" for number in range(workers)] + (
            ["supervisor"] if workers > 1 else []):
        assert read(found, "process_resident_memory_bytes", process=process) > 1 << 20
        assert read(found, "process_open_fds", process=process) > 10
        assert read(found, "process_cpu_seconds_total", process=process) >= 0


def test_what_waits_in_the_queue_is_counted(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        relay = f"relay.smarthost=127.0.0.1:{nobody.getsockname()[1]}"
        with serving(tmp_path, "--set", relay, "--alias",
                     "away@example.org=someone@example.com") as service:
            submit(service, MESSAGE, ("away@example.org",))
            until(lambda: read(scrape(service), "deliveries_total", outcome="deferred") == 1)
            until(lambda: read(scrape(service), "queue_messages", state="waiting") == 1)
            found = scrape(service)
            assert read(found, "queue_messages") == 1
            assert 0 < read(found, "queue_oldest_age_seconds") < PATIENCE
            assert read(found, "delivery_delay_seconds_count") == 0
            done = stats(service.directory, "queue", "drop", "--all")
            assert done.returncode == 0, done.stderr
            until(lambda: read(scrape(service), "queue_messages") == 0)


# ---- workers that die, or hang ------------------------------------------------------------------


def test_counters_do_not_go_back_when_workers_are_killed(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        before = counters(scrape(service))
        for round in range(1, 4):
            for _ in range(5):
                submit(service, MESSAGE, (ALICE,))
            fetch(service, ALICE)
            until(lambda: read(scrape(service), "connections") == 0)
            found = scrape(service)
            assert read(found, "messages_accepted_total") == 5 * round
            workers = workers_of(service)
            for pid in workers if round == 2 else workers[:1]:
                os.kill(pid, signal.SIGKILL)
            # At no moment does any of them go back.
            before = counters(found)
            deadline = time.monotonic() + PATIENCE
            while len(set(workers_of(service)) - set(workers)) < (2 if round == 2 else 1) or read(
                    scrape(service), "workers") < 2:
                assert time.monotonic() < deadline
                after = counters(scrape(service))
                assert not [series for series, value in before.items() if after[series] < value]
                before = after
        found = scrape(service)
        assert read(found, "worker_restarts_total") == 4
        assert read(found, "messages_accepted_total") == 15
        assert read(found, "messages_fetched_total") == 15
        assert read(found, "messages_deleted_total") == 15
        assert {dict(labels)["process"] for name, labels in found if name == "process_open_fds"
                } == {"supervisor", "worker-0", "worker-1"}


def test_open_connections_of_a_killed_worker_are_not_counted_on(tmp_path: Path) -> None:
    with serving(tmp_path) as service, contextlib.ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(Dialogue(service.smtp)).reply()
        assert read(scrape(service), "connections", protocol="smtp") == 6
        for pid in workers_of(service):
            os.kill(pid, signal.SIGKILL)
        until(lambda: read(scrape(service), "connections", protocol="smtp") == 0)
        assert read(scrape(service), "sessions_total", protocol="smtp") == 6


def test_stuck_workers_hold_up_no_scrape(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        submit(service, MESSAGE, (ALICE,))
        workers = workers_of(service)
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        try:
            until(lambda: read(scrape(service), "process_silence_seconds", process="worker-0") > 2)
            assert read(scrape(service), "messages_accepted_total") == 1
            assert ask(service, "/healthz")[0].status == 200
        finally:
            for pid in workers:
                os.kill(pid, signal.SIGCONT)
        until(lambda: read(scrape(service), "process_silence_seconds", process="worker-0") < 2)


def test_a_worker_that_is_started_later_has_no_connection_of_ours(tmp_path: Path) -> None:
    """A scraper that stays must not be held by workers when the supervisor lets it go."""
    with serving(tmp_path) as service:
        scraper = HTTPConnection(*service.listeners["http"], timeout=PATIENCE)
        with contextlib.closing(scraper):
            scraper.request("GET", "/healthz")
            scraper.getresponse().read()
            assert scraper.sock is not None
            ours = inodes(service.listeners["http"][1])
            assert len(ours) >= 2  # what listens, and the connection
            assert ours <= sockets(service.pid)
            workers = workers_of(service)
            os.kill(workers[0], signal.SIGKILL)
            until(lambda: set(workers_of(service)) - set(workers))
            until(lambda: read(scrape(service), "workers") == 2)
            (new,) = set(workers_of(service)) - set(workers)
            assert not sockets(new) & ours
            # Nor the socket of `mailsvc stats`.
            assert not sockets(new) & unix_inodes("/figures")
            scraper.request("GET", "/healthz")
            assert scraper.getresponse().read() == b"ok\n"


def sockets(pid: int) -> set[str]:
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if (match := re.fullmatch(r"socket:\[(\d+)\]", str(entry.readlink()))):
                found.add(match[1])
    return found


def inodes(port: int) -> set[str]:
    """Of the sockets bound to that port of IPv4."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return {fields[9] for line in lines
            if (fields := line.split())[1].endswith(f":{port:04X}") and fields[9] != "0"}


def unix_inodes(name: str) -> set[str]:
    found = {line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines()
             if line.endswith(name)}
    assert found
    return found


# ---- the pages ----------------------------------------------------------------------------------


def test_pages(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        for path, kind, content in (
                ("/", "text/html; charset=utf-8", b"/readyz"),
                ("/metrics", "text/plain; version=0.0.4; charset=utf-8", b"mailsvc_build_info"),
                ("/healthz", "text/plain; charset=utf-8", b"ok\n"),
                ("/readyz", "text/plain; charset=utf-8", b"ok\n")):
            answer, text = ask(service, path)
            assert (answer.status, answer.getheader("content-type")) == (200, kind)
            assert content in text
            answer, text = ask(service, path, "HEAD")
            assert (answer.status, text) == (200, b"")
            for method in "POST", "PUT", "DELETE", "OPTIONS", "BREW":
                answer, _ = ask(service, path, method, b"x" * 100)
                assert answer.status == 405
        for path in ("/metrics/", "/metrics/x", "/favicon.ico", "//", "/../etc/passwd", "/%00"):
            answer, text = ask(service, path)
            assert answer.status == 404, path
            assert b"Traceback" not in text


def test_openmetrics_for_those_who_accept_it(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        submit(service, MESSAGE, (ALICE,))
        answer, text = ask(service, "/metrics", Accept="application/openmetrics-text; "
                           "version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3")
        assert (answer.getheader("content-type") or "").startswith("application/openmetrics-text")
        found = {sample.name for family in openmetrics_families(text.decode())
                 for sample in family.samples}
        assert "mailsvc_messages_accepted_total" in found


def test_prometheus_has_no_complaint(tmp_path: Path, program: Callable[[str], str]) -> None:
    promtool = program("promtool")
    with serving(tmp_path) as service:
        submit(service, MESSAGE, (ALICE,))
        _, text = ask(service, "/metrics")
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True,
                          timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_nothing_names_users_or_clients(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        submit(service, MESSAGE, (ALICE,), "carol@example.com")
        fetch(service, ALICE)
        for path in "/metrics", "/readyz", "/":
            _, text = ask(service, path)
            for secret in b"alice", b"carol", b"127.0.0.1", b"secret":
                assert secret not in text


def test_a_flood_is_not_kept_and_many_clients_leave_others_alone(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        ask(service, "/metrics")
        before = read(scrape(service), "process_resident_memory_bytes", process="supervisor")
        connection = socket.create_connection(service.listeners["http"], PATIENCE)
        with contextlib.closing(connection):
            connection.sendall(b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 67108864\r\n"
                               b"\r\n")
            for _ in range(1024):
                connection.sendall(bytes(65_536))
            assert b" 405 " in connection.makefile("rb").readline()
        after = read(scrape(service), "process_resident_memory_bytes", process="supervisor")
        assert after - before < 16 << 20
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(contextlib.closing(socket.create_connection(
                service.listeners["http"], PATIENCE))) for _ in range(80)]
            # Those beyond a limit are closed at once; mail goes on.
            until(lambda: sum(closed(each) for each in clients) >= 30)
            submit(service, MESSAGE, (ALICE,))
        until(lambda: answers(service))


def closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def answers(service: Service) -> bool:
    try:
        return ask(service, "/healthz")[0].status == 200
    except OSError:
        return False


def refuses(address: tuple[str, int]) -> bool:
    """Whether nobody listens at *address*."""
    try:
        socket.create_connection(address).close()
    except ConnectionRefusedError:
        return True
    return False


def test_not_ready_while_stopping(tmp_path: Path) -> None:
    with serving(tmp_path) as service, Dialogue(service.smtp) as smtp:
        smtp.reply()
        for line in b"EHLO x.example", b"MAIL FROM:<>", b"RCPT TO:<alice@example.org>", b"DATA":
            assert smtp.say(line)[:1] in b"23"
        assert ask(service, "/readyz")[0].status == 200
        service.process.send_signal(signal.SIGTERM)
        until(lambda: ask(service, "/readyz")[0].status == 503)
        assert ask(service, "/readyz")[1] == b"the service is stopping\n"
        assert ask(service, "/healthz")[0].status == 200
        # The workers are told by the process that answers here.
        until(lambda: refuses(service.smtp))
        assert smtp.say(b"Subject: last\r\n\r\n.").startswith(b"250")
        assert service.process.wait(PATIENCE) == 0
        assert not (service.directory / "figures").exists()
        assert "Traceback" not in service.log.read_text()


@pytest.mark.slow
def test_not_ready_while_nothing_can_be_written(tmp_path: Path) -> None:
    with serving(tmp_path) as service:
        mail = service.directory / "mail"
        mail.rename(service.directory / "elsewhere")
        until(lambda: ask(service, "/readyz")[0].status == 503)
        assert ask(service, "/readyz")[1] == b"the store cannot be written\n"
        assert read(scrape(service), "ready") == 0
        assert "nothing can be written in" in service.log.read_text()
        (service.directory / "elsewhere").rename(mail)
        until(lambda: ask(service, "/readyz")[0].status == 200)


# ---- mailsvc stats ------------------------------------------------------------------------------


def stats(directory: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from mailsvc.cli import main; main()", *(command or ("stats",)),
         "--dir", str(directory)], capture_output=True, text=True, timeout=PATIENCE, check=False)


@pytest.mark.parametrize("workers", [1, 2])
def test_stats_without_a_listener(tmp_path: Path, workers: int) -> None:
    # A path that is too long for a Unix socket.
    place = tmp_path / ("long" * 20)
    place.mkdir()
    with Service(place / "data", ACCOUNTS, ("--workers", str(workers))) as service:
        assert "http" not in service.listeners
        for _ in range(3):
            submit(service, MESSAGE, (ALICE,))
        done = stats(service.directory)
        assert (done.returncode, done.stderr) == (0, "")
        lines = [line.split() for line in done.stdout.splitlines()]
        assert lines[0] == ["ready"]
        assert lines[1] == ["FIGURE", "OF", "VALUE"]
        assert ["messages_accepted_total", "smtp", "3"] in lines
        assert not [line for line in lines if line[:2] == ["messages_accepted_total", "lmtp"]]
        assert [line for line in lines if line[:4] == ["commit_seconds", "-", "3;", "mean"]]
        everything = stats(service.directory, "stats", "--all").stdout
        assert re.search(r"^messages_accepted_total +lmtp +0$", everything, re.MULTILINE)
        told = json.loads(stats(service.directory, "stats", "--json").stdout)
        assert (told["ready"], told["unready"]) == (True, None)
        assert sample(told, "mailsvc_messages_accepted_total", protocol="smtp")["value"] == 3
        commit = sample(told, "mailsvc_commit_seconds")
        assert commit["count"] == commit["buckets"][-1][1] == 3
        assert commit["buckets"][-1][0] is None
        mode = (service.directory / "figures").stat().st_mode
        assert mode & 0o777 == 0o600
    done = stats(service.directory)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"no service runs with the data in {service.directory}" in done.stderr


def sample(told: dict[str, Any], name: str, **labels: str) -> dict[str, Any]:
    (figure,) = [each for each in told["figures"] if each["name"] == name]
    (found,) = [each for each in figure["samples"] if each["labels"] == labels]
    return dict(found)


def test_stats_of_a_service_that_was_killed_or_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localsocket, "PATIENCE", 0.3)
    with Service(tmp_path / "data", ACCOUNTS) as service:
        service.process.send_signal(signal.SIGSTOP)
        with pytest.raises(localsocket.NoService, match="does not answer within"):
            monitor.ask(service.directory)
        service.kill()
        assert (service.directory / "figures").exists()
        with pytest.raises(localsocket.NoService, match="no service runs"):
            monitor.ask(service.directory)
    with Service(tmp_path / "data", ACCOUNTS) as service:
        assert monitor.ask(service.directory)["ready"]


def test_a_data_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(localsocket.NoService, match="no service runs"):
        monitor.ask(tmp_path / "nowhere")
