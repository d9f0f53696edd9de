"""Several workers: who gets connections, what holds over all, and what becomes of the dead."""

from __future__ import annotations

import contextlib
import os
import poplib
import random
import re
import signal
import smtplib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from mailsvc.backoff import ATTEMPTS
from tests.service import PATIENCE, Dialogue, Service, login, submit
from tests.test_kill import DRAINED, KEPT, Ledger, Load, Maildirs, check
from tests.twistd import TWISTD, Twistd

ACCOUNT = "alice@example.org"
MESSAGE = b"Subject: hello\r\n\r\nHello.\r\n"
#: Rounds of the test that kills; `python -m tests.test_workers 100` does more.
ROUNDS = 10

_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@contextlib.contextmanager
def service_of(path: Path, *settings: str, workers: int = 2) -> Iterator[Service]:
    options = ["--workers", str(workers)]
    for setting in settings:
        options += ["--set", setting]
    with Service(path / "data", (f"{ACCOUNT}:secret",), tuple(options)) as service:
        yield service


def workers_of(service: Service) -> set[int]:
    return set(service.pids()) - {service.pid}


def worker_behind(reply: bytes) -> int:
    """The pid that is in the id of the message that this reply took (see ``mail.new_id``)."""
    found = re.search(rb"\b[0-9A-Z]{11}([0-9A-Z]{5})\b", reply)
    assert found, reply
    pid = 0
    for digit in found[1].decode():
        pid = pid * 32 + _DIGITS.index(digit)
    return pid


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def greeted(service: Service) -> Dialogue:
    smtp = Dialogue(service.smtp)
    assert smtp.reply().startswith(b"220"), "refused"
    return smtp


# ---- together -----------------------------------------------------------------------------------


def test_every_worker_gets_connections(tmp_path: Path) -> None:
    with service_of(tmp_path) as service:
        workers = workers_of(service)
        deadline = time.monotonic() + PATIENCE
        behind: set[int] = set()
        while behind != workers:
            behind.add(worker_behind(submit(service, MESSAGE, (ACCOUNT,))))
            assert behind <= workers
            assert time.monotonic() < deadline, "one worker has had all"


def test_connections_at_once_are_shared_out(tmp_path: Path) -> None:
    with service_of(tmp_path) as service, ExitStack() as stack:
        dialogues = [stack.enter_context(Dialogue(service.smtp)) for _ in range(40)]
        behind = []
        for smtp in dialogues:
            smtp.reply()
            for line in b"EHLO client.example", b"MAIL FROM:<>", b"RCPT TO:<alice@example.org>":
                assert smtp.say(line).startswith(b"250")
            assert smtp.say(b"DATA").startswith(b"354")
            behind.append(worker_behind(smtp.say(b".")))
        assert min(behind.count(pid) for pid in workers_of(service)) >= 4


def test_a_maildrop_is_locked_for_all(tmp_path: Path) -> None:
    with service_of(tmp_path) as service, login(service, ACCOUNT):
        for _ in range(10):
            with Dialogue(service.pop3) as pop3:
                pop3.line()
                pop3.ask(b"USER " + ACCOUNT.encode())
                pop3.send(b"PASS secret\r\n")
                assert pop3.line().startswith(b"-ERR [IN-USE]")


def test_connections_are_limited_in_all(tmp_path: Path) -> None:
    with service_of(tmp_path, "smtp.connections=6") as service, ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(greeted(service))
        for _ in range(8):
            with Dialogue(service.smtp) as smtp:
                assert smtp.reply().startswith(b"421")
        assert len(workers_of(service)) == 2


def test_connections_of_an_address_are_limited_in_all(tmp_path: Path) -> None:
    with service_of(tmp_path, "smtp.connections_per_address=4",
                    "smtp.exempt_networks=[]") as service:
        with ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(greeted(service))
            for _ in range(6):
                with Dialogue(service.smtp) as smtp:
                    assert smtp.reply().startswith(b"421")
        until(lambda: _is_greeted(service))


def _is_greeted(service: Service) -> bool:
    with Dialogue(service.smtp) as smtp:
        return smtp.reply().startswith(b"220")


def test_the_rate_of_connections_is_limited_in_all(tmp_path: Path) -> None:
    with service_of(tmp_path, "pop3.connections_per_minute=5",
                    "pop3.exempt_networks=[]") as service:
        answers = []
        for _ in range(12):
            with Dialogue(service.pop3) as pop3:
                answers.append(pop3.line().startswith(b"+OK"))
        assert answers == [True] * 5 + [False] * 7


def test_the_login_delay_holds_over_all(tmp_path: Path) -> None:
    with service_of(tmp_path, "pop3.login_delay_seconds=600") as service:
        with login(service, ACCOUNT) as pop3:
            pop3.ask(b"QUIT")
        for _ in range(8):
            with Dialogue(service.pop3) as pop3:
                pop3.line()
                pop3.ask(b"USER " + ACCOUNT.encode())
                pop3.send(b"PASS secret\r\n")
                assert pop3.line().startswith(b"-ERR [LOGIN-DELAY]")


@pytest.mark.parametrize("workers", [1, 2])
def test_without_descriptors_clients_are_told_to_come_later(tmp_path: Path, workers: int) -> None:
    with Service(tmp_path / "data", (f"{ACCOUNT}:secret",), ("--workers", str(workers)),
                 descriptors=256) as service:
        with ExitStack() as stack:
            clients = [stack.enter_context(Dialogue(service.smtp)) for _ in range(400)]
            codes = Counter(client.reply()[:3] for client in clients)
            assert codes == {b"220": 128 * workers, b"421": 400 - 128 * workers}
            # There is enough left for the mail of those who were let in.
            for client in clients[:5]:
                for line in b"EHLO client.example", b"MAIL FROM:<>", b"RCPT TO:<alice@example.org>":
                    assert client.say(line).startswith(b"250")
                assert client.say(b"DATA").startswith(b"354")
                assert client.say(b".").startswith(b"250")
        until(lambda: _is_greeted(service))
        assert "Too many connections" in service.log.read_text()


# ---- deaths -------------------------------------------------------------------------------------


def test_a_dead_worker_takes_its_own_along_and_no_more(tmp_path: Path) -> None:
    limits = ("smtp.connections=6", "pop3.connections=4")
    with service_of(tmp_path, *limits) as service, ExitStack() as stack:
        before = workers_of(service)
        dialogues = [stack.enter_context(greeted(service)) for _ in range(6)]
        pop3 = stack.enter_context(login(service, ACCOUNT))
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        # Whatever worker had the maildrop, it is free; and there is room for as many as before.
        until(lambda: len(workers_of(service)) == 2 and not workers_of(service) & before)
        for dialogue in (*dialogues, pop3):
            assert dialogue.file.read() == b""
        for _ in range(6):
            stack.enter_context(greeted(service))
        with login(service, ACCOUNT) as pop3:
            pop3.ask(b"QUIT")
        assert service.log.read_text().count("another takes its place") == 2


def test_the_others_go_on(tmp_path: Path) -> None:
    with service_of(tmp_path) as service, ExitStack() as stack:
        dialogues = []
        for _ in range(20):
            smtp = stack.enter_context(greeted(service))
            for line in b"EHLO client.example", b"MAIL FROM:<>", b"RCPT TO:<alice@example.org>":
                smtp.say(line)
            smtp.say(b"DATA")
            dialogues.append((smtp, worker_behind(smtp.say(b"."))))
        victim = dialogues[0][1]
        os.kill(victim, signal.SIGKILL)
        for smtp, pid in dialogues:
            if pid != victim:
                assert smtp.say(b"NOOP").startswith(b"250")


def test_the_supervisor_leaves_nobody_behind(tmp_path: Path) -> None:
    with service_of(tmp_path) as service:
        workers = workers_of(service)
        with greeted(service):
            os.kill(service.pid, signal.SIGKILL)
            service.process.wait(PATIENCE)
            until(lambda: not any(map(alive, workers)))
        # A thread may take a moment longer than the process that it was of.
        until(lambda: can_be_bound(service.smtp) and can_be_bound(service.pop3))


def can_be_bound(address: tuple[str, int]) -> bool:
    try:
        socket.create_server(address).close()
    except OSError:
        return False
    return True


def kill_rounds(path: Path, rounds: int) -> None:
    """Kill a worker, all of them or the supervisor under load; nothing acknowledged is lost."""
    accounts = tuple(f"{account}:secret" for account in (*KEPT, DRAINED))
    ledger = Ledger()
    service = Service(path / "data", accounts, ("--workers", "2"))
    maildirs = None
    try:
        for number in range(rounds):
            if service.process.poll() is not None:
                service = Service(path / "data", accounts, ("--workers", "2"))
            for account in (*KEPT, DRAINED):
                with login(service, account) as pop3:
                    pop3.ask(b"QUIT")
            load = Load(service, ledger, str(number))
            time.sleep(random.uniform(0.05, 0.4))
            load.killing.set()
            kill_some(service, number)
            end(load, service)
            maildirs = maildirs or Maildirs(service)
            check(maildirs, ledger)
    finally:
        service.kill()
    assert len(ledger.kept) > 5 * rounds, "the service was loaded"
    assert ledger.deleted, "and drained"


def kill_some(service: Service, number: int) -> None:
    """The supervisor, or all workers, or one."""
    workers = workers_of(service)
    if number % 3 == 0:
        os.kill(service.pid, signal.SIGKILL)
        service.process.wait(PATIENCE)
        until(lambda: not any(map(alive, workers)))
        service.kill()
        return
    for pid in workers if number % 3 == 1 else {min(workers)}:
        kill(pid)
    until(lambda: len(workers_of(service) - {min(workers)}) == 2)


def end(load: Load, service: Service) -> None:
    """Kill workers until no client is left: who was between two connections would go on."""
    deadline = time.monotonic() + PATIENCE
    while any(client.is_alive() for client in load.clients):
        assert time.monotonic() < deadline
        for pid in workers_of(service):
            kill(pid)
        # Workers that never get as far as to serve would end the service.
        time.sleep(0.4)
    load.join()


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_what_was_acknowledged_survives_kill_9_of_workers(tmp_path: Path) -> None:
    kill_rounds(tmp_path, ROUNDS)


# ---- stopping -----------------------------------------------------------------------------------


def test_transactions_in_flight_end_before_a_stop(tmp_path: Path) -> None:
    with service_of(tmp_path) as service, ExitStack() as stack:
        dialogues = [stack.enter_context(greeted(service)) for _ in range(12)]
        for smtp in dialogues:
            for line in b"EHLO client.example", b"MAIL FROM:<>", b"RCPT TO:<alice@example.org>":
                assert smtp.say(line).startswith(b"250")
            assert smtp.say(b"DATA").startswith(b"354")
        service.process.send_signal(signal.SIGTERM)
        until(lambda: service.log.read_text().count("stopping; ") == 2)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(service.smtp).close()
        for smtp in dialogues:
            assert smtp.say(b"Subject: last\r\n\r\n.").startswith(b"250")
        assert service.process.wait(PATIENCE) == 0
        assert len(list((service.maildir(ACCOUNT) / "new").iterdir())) == 12


def test_a_signal_to_the_whole_group_stops_it_well(tmp_path: Path) -> None:
    with service_of(tmp_path) as service:
        os.killpg(service.pid, signal.SIGTERM)
        assert service.process.wait(PATIENCE) == 0
        assert "Traceback" not in service.log.read_text()


# ---- twistd -------------------------------------------------------------------------------------


@pytest.fixture
def configuration(tmp_path: Path) -> Path:
    with Service(tmp_path, (f"{ACCOUNT}:secret",)):
        pass
    path = tmp_path / "mailsvc.toml"
    write(path, "mx.example.org")
    return path


def write(path: Path, hostname: str, more: str = "") -> None:
    path.write_text(f"""
[service]
data = "{path.parent}"
hostname = "{hostname}"
workers = 2
[listeners]
smtp = ["tcp:0:interface=127.0.0.1"]
pop3 = ["tcp:0:interface=127.0.0.1"]
[pop3]
allow_cleartext_auth = "yes"
{more}
""")


def twistd(configuration: Path, *options: str, **more: object) -> Twistd:
    return Twistd([*TWISTD, *(options or ("--nodaemon", "--pidfile=")), "mailsvc", "--config",
                   str(configuration)], **more)  # type: ignore[arg-type]


def banner(port: int) -> bytes:
    with Dialogue(("127.0.0.1", port)) as smtp:
        return smtp.reply()


def test_a_reload_loses_no_session(configuration: Path) -> None:
    with twistd(configuration) as process, ExitStack() as stack:
        port = process.port("smtp")
        sessions = [stack.enter_context(smtplib.SMTP("127.0.0.1", port)) for _ in range(8)]
        for session in sessions:
            assert session.ehlo()[1].startswith(b"mx.example.org")
        write(configuration, "other.example.org")
        process.process.send_signal(signal.SIGHUP)
        process.wait_for("the configuration was read again")
        # The former workers are told, and hear it a moment later.
        until(lambda: all(b"220 other.example.org" in banner(port) for _ in range(4)))
        for session in sessions:
            assert session.sendmail("bob@example.net", [ACCOUNT], MESSAGE) == {}
            session.quit()
        # With its last session the former generation is gone.
        until(lambda: len(children(process.process.pid)) == 2)
        pop3 = poplib.POP3("127.0.0.1", process.port("pop3"))
        pop3.user(ACCOUNT)
        pop3.pass_("secret")
        assert pop3.stat()[0] == 8
        pop3.quit()
        assert process.stop() in {0, -signal.SIGTERM}
        assert "Traceback" not in process.output


def test_reloads_under_load_are_not_noticed(configuration: Path) -> None:
    """One client that stays, two that come anew for each message, through three generations."""
    with twistd(configuration) as process:
        port, over = process.port("smtp"), threading.Event()
        accepted: list[int] = []
        problems: list[BaseException] = []

        def load(stays: bool) -> None:
            try:
                sender = smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE)
                while not over.is_set():
                    if not stays:
                        sender.quit()
                        sender = smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE)
                    sender.sendmail("bob@example.net", [ACCOUNT], MESSAGE)
                    accepted.append(1)
                sender.quit()
            except BaseException as error:
                problems.append(error)

        clients = [threading.Thread(target=load, args=(stays,)) for stays in (True, False, False)]
        for client in clients:
            client.start()
        for generation in range(1, 4):
            process.process.send_signal(signal.SIGHUP)
            process.wait_for(rf"(?s)(?:the configuration was read again.*){{{generation}}}")
        over.set()
        for client in clients:
            client.join(PATIENCE)
        assert problems == []
        assert len(list((configuration.parent / "mail/example.org/alice/new").iterdir())) == len(
            accepted) > 3
        until(lambda: len(children(process.process.pid)) == 2)


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [child for child in map(int, text.split()) if alive(child)]


@pytest.mark.parametrize(("hostname", "more", "complaint"), [
    ("a_b", "[smtp]\nrecipients = 'many'", r"smtp\.recipients = \"many\": expected an integer"),
    ("mx.example.org", "[log]\nlevel = 'debug'", r"a change of \[log\] needs a restart"),
    ("mx.example.org", "[tls]\ncertificates = ['/nowhere']", "workers cannot start with what"),
])
def test_a_reload_with_a_mistake_changes_nothing(
    configuration: Path, hostname: str, more: str, complaint: str
) -> None:
    with twistd(configuration) as process:
        port = process.port("smtp")
        before = children(process.process.pid)
        write(configuration, hostname, more)
        process.process.send_signal(signal.SIGHUP)
        process.wait_for(complaint)
        assert b"220 mx.example.org" in banner(port)
        until(lambda: children(process.process.pid) == before)
        write(configuration, "other.example.org")
        process.process.send_signal(signal.SIGHUP)
        process.wait_for("the configuration was read again")


def test_what_keeps_workers_from_starting_is_told(configuration: Path) -> None:
    write(configuration, "mx.example.org", "[tls]\ncertificates = ['/nowhere']")
    with twistd(configuration) as process:
        assert process.wait() == 1
        assert "/nowhere" in process.output
        assert "Traceback" not in process.output


@pytest.mark.slow
def test_workers_that_cannot_start_any_more_end_the_service(
    configuration: Path, tmp_path: Path
) -> None:
    with twistd(configuration) as process:
        process.wait_for("pop3 listens on")
        (tmp_path / "accounts.sqlite").write_bytes(b"no database")
        kill(children(process.process.pid)[0])
        assert process.wait() == 1
        assert process.output.count("another takes its place") == ATTEMPTS
        assert "10 workers in a row could not start, the last because" in process.output
        assert "Traceback" not in process.output


def test_sighup_does_not_end_a_single_process(configuration: Path) -> None:
    write(configuration, "mx.example.org")
    configuration.write_text(configuration.read_text().replace("workers = 2", "workers = 1"))
    with twistd(configuration) as process:
        port = process.port("smtp")
        process.process.send_signal(signal.SIGHUP)
        process.wait_for("one worker serves: a changed configuration counts from the next start")
        configuration.write_text("[smtp")
        process.process.send_signal(signal.SIGHUP)
        process.wait_for("the configuration has mistakes now: .*mailsvc.toml")
        assert banner(port).startswith(b"220")


def test_a_daemon_rotates_the_log_of_all(configuration: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with twistd(configuration, "--logfile", str(log), "--pidfile", str(tmp_path / "pid")
                ) as process:
        assert process.wait() == 0
    pid = int((tmp_path / "pid").read_text())
    try:
        until(lambda: log.exists() and "pop3 listens on" in log.read_text())
        port = int(log.read_text().split("smtp listens on 127.0.0.1:")[1].split()[0])
        os.kill(pid, signal.SIGUSR1)
        until((tmp_path / "log.1").exists)
        time.sleep(0.3)
        for _ in range(10):
            with smtplib.SMTP("127.0.0.1", port) as sender:
                sender.sendmail("bob@example.net", [ACCOUNT], MESSAGE)
        until(lambda: log.read_text().count("mailsvc.smtp") >= 10)
        assert "mailsvc.smtp" not in (tmp_path / "log.1").read_text()
    finally:
        os.kill(pid, signal.SIGTERM)
    until(lambda: not (tmp_path / "pid").exists())
    assert all(re.match(r"\d{4}-|    ", line) for line in log.read_text().splitlines())


def test_a_stuck_worker_is_replaced(configuration: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        variables = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "4000000"}
        with twistd(configuration, variables=variables) as process:
            process.wait_for("smtp listens on")
            stuck = children(process.process.pid)[0]
            os.kill(stuck, signal.SIGSTOP)
            process.wait_for(f"worker {stuck} has been stuck for 4 seconds and is killed")
            process.wait_for("another takes its place")
            until(lambda: len(children(process.process.pid)) == 2)


if __name__ == "__main__":
    import sys
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        kill_rounds(Path(made), int(sys.argv[1]) if len(sys.argv) > 1 else 100)
        print("nothing was lost")
