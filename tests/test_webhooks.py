"""mailsvc.webhooks, `mailsvc webhook`: against receivers that fail, hang, and come back."""

from __future__ import annotations

import base64
import datetime
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
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from mailsvc import monitor
from mailsvc.cli import main
from mailsvc.config import KEYS
from mailsvc.webhooks.delivery import pause
from mailsvc.webhooks.events import EVENTS, WebhookSettings, body, shown
from mailsvc.webhooks.signing import SecretUnusable, new_secret, secrets_at, signature
from mailsvc.webhooks.spool import NAME, Event, Spool
from tests.authority import Authority, pem
from tests.daemons import free_port
from tests.exchanger import Exchanger
from tests.receiver import Receiver
from tests.service import PATIENCE, Service, fetch, submit

ALICE, BOB = "alice@example.org", "bob@example.org"
ACCOUNTS = (f"{ALICE}:secret", f"{BOB}:secret")
MESSAGE = b"Subject: hello\r\n\r\nHello.\r\n"
SECRET = new_secret()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


# ---- signatures ---------------------------------------------------------------------------------


def test_others_verify_what_is_signed() -> None:
    other, now = new_secret(), int(time.time())
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(now), "webhook-signature": signature(
        [base64.b64decode(each.removeprefix("whsec_")) for each in (SECRET, other)], "msg_1", now,
        b'{"a": 1}')}
    for secret in SECRET, other:
        assert Webhook(secret).verify(b'{"a": 1}', headers) == {"a": 1}
    for wrong in ({**headers, "webhook-id": "msg_2"},
                  {**headers, "webhook-timestamp": str(now + 1)}):
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRET).verify(b'{"a": 1}', wrong)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(b'{"a": 2}', headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(b'{"a": 1}', headers)


def test_the_vector_of_the_specification() -> None:
    # Standard Webhooks' own libraries test with this one.
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    id, content = "msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}'
    assert signature([key], id, 1614265330, content) == (
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=")


def test_secrets_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, file = new_secret(), tmp_path / "secret"
    keys = [base64.b64decode(each[6:]) for each in (SECRET, other)]
    file.write_text(f"# since May\n{SECRET}\n\n{other}\n")
    assert secrets_at(f"file:{file}") == keys
    monkeypatch.setenv("HOOK", SECRET)
    assert secrets_at("env:HOOK") == keys[:1]
    file.write_text(SECRET.removeprefix("whsec_"))
    assert secrets_at(f"file:{file}") == keys[:1]


@pytest.mark.parametrize("text", ["", "# nothing\n", "hunter2", "whsec_" + "A" * 20, "whsec_",
                                  f"{SECRET}\nhunter2\n", "whsec_" + "A" * 100, "\udcff"],
                         ids=["empty", "comment", "password", "short", "bare", "second", "long",
                              "octets"])
def test_what_is_no_secret_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    file = tmp_path / "secret"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SecretUnusable, match="expected whsec_ and base64") as caught:
        secrets_at(f"file:{file}")
    assert "hunter2" not in str(caught.value)


def test_no_secret() -> None:
    for place, complaint in (("", "no secret is set"), ("env:NONE_SUCH", "no NONE_SUCH in the"),
                             ("file:/nowhere/secret", "cannot be read")):
        with pytest.raises(SecretUnusable, match=complaint):
            secrets_at(place)


# ---- what is told, and where --------------------------------------------------------------------


@pytest.mark.parametrize(("key", "value", "good"), [
    ("urls", ["https://hooks.example.org/mail?token=a"], True),
    ("urls", ["https://192.168.0.7:8443/", "http://127.0.0.1:80/", "http://[::1]/x"], True),
    ("urls", ["http://localhost/"], True),
    ("urls", ["http://hooks.example.org/"], False),
    ("urls", ["https://user:word@hooks.example.org/"], False),
    ("urls", ["https://hooks.example.org/#x"], False),
    ("urls", ["https://hooks.example.org:99999/"], False),
    ("urls", ["https://"], False), ("urls", ["ftp://127.0.0.1/"], False),
    ("urls", ["https://hooks.example.org/\r\nX: y"], False), ("urls", ["https://[::1/"], False),
    ("urls", ["https://h\xf6oks.example.org/"], False),
    ("events", ["message.received", "queue.old"], True), ("events", ["message.eaten"], False),
    ("secret", "file:/etc/secret", True), ("secret", "env:HOOK", True), ("secret", "", True),
    ("secret", "whsec_abc", False), ("secret", "file:", False),
], ids=str)
def test_settings(key: str, value: Any, good: bool) -> None:
    assert (KEYS[f"webhooks.{key}"].expected(value) is None) is good


@given(st.text() | st.text(alphabet="htps:/[]@#.1%?").map("https://".__add__))
def test_no_text_breaks_the_look_at_a_url(text: str) -> None:
    if KEYS["webhooks.urls"].expected([text]) is None:
        assert text.startswith(("https://", "http://", "HTTP"))
        assert shown(text).isprintable()


def test_a_body() -> None:
    fields = {"id": "1", "sender": "", "recipients": ["a@b"], "log_level": 1, "other": 2}
    assert json.loads(body("message.received", 1.5, fields)) == {
        "type": "message.received", "timestamp": "1970-01-01T00:00:01.500Z",
        "data": {"id": "1", "sender": "", "recipients": ["a@b"]}}
    assert shown("https://h.example:8443/token?x=y") == "https://h.example:8443/"


def test_every_event_is_documented_with_all_that_is_told() -> None:
    manual = (Path(__file__).parent.parent / "docs" / "operating.rst").read_text()
    for kind, fields in EVENTS.items():
        (told,) = re.findall(rf"\* - ``{re.escape(kind)}``\n(.*?)(?=\n   \* - |\n\n)", manual,
                             re.DOTALL)
        assert set(re.findall(r"\*(\w+)\*", told)) == set(fields), kind


# ---- when ---------------------------------------------------------------------------------------


def test_pauses_grow_up_to_the_longest_by_some_chance() -> None:
    settings = WebhookSettings()
    middle = [pause(settings, attempts, 0.5) for attempts in range(1, 12)]
    assert middle == [5, 15, 45, 135, 405, 1215, 3645, 10_935, 14_400, 14_400, 14_400]
    assert (pause(settings, 1, 0), pause(settings, 1, 1)) == (4, 6)
    assert pause(settings, 10**9, 0.5) == 14_400


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    with closing(Spool(tmp_path / NAME)) as made:
        yield made


def events(*numbers: int) -> list[Event]:
    return [Event(f"msg_{number}", "test", b"{}", float(number)) for number in numbers]


def test_an_event_is_claimed_by_one_alone_until_the_claim_has_run_out(
    spool: Spool, tmp_path: Path
) -> None:
    assert spool.add(events(1, 2, 3), ["a", "b"], 10) == 0
    with closing(Spool(tmp_path / NAME)) as other:
        first = spool.claim("a", 10, 60, 2)
        assert [each.event.id for each in first] == ["msg_1", "msg_2"]
        assert [each.event.id for each in other.claim("a", 10, 60, 9)] == ["msg_3"]
        assert other.claim("a", 59, 120, 9) == []
        assert [each.event.id for each in other.claim("a", 60, 120, 9)] == ["msg_1", "msg_2",
                                                                             "msg_3"]
        assert len(other.claim("b", 10, 60, 9)) == 3
    spool.done(first[0].number)
    spool.put_off(first[1].number, 500, 1, "no")
    assert [(each.event.id, each.due, each.attempts, each.problem) for each in spool.waiting()
            if each.url == "a"] == [("msg_2", 500, 1, "no"), ("msg_3", 120, 0, "")]
    assert spool.claim("a", 499, 600, 9)[0].event.id == "msg_3"
    assert spool.claim("a", 500, 600, 9)[0].event.id == "msg_2"


def test_the_oldest_give_way(spool: Spool) -> None:
    assert spool.add(events(*range(7)), ["a", "b"], 5) == 4
    assert spool.add(events(7), ["a"], 5) == 1
    assert [each.event.id for each in spool.waiting() if each.url == "a"] == [
        f"msg_{number}" for number in range(3, 8)]
    assert spool.sweep(5) == 5
    assert {each.event.since for each in spool.waiting()} == {5, 6, 7}


# ---- whole services -----------------------------------------------------------------------------


def options(directory: Path, *urls: str, **more: object) -> tuple[str, ...]:
    secret = directory / "webhook.secret"
    secret.write_text(SECRET + "\n")
    settings = {"urls": json.dumps(urls), "secret": f"file:{secret}", "retry_first_seconds": 0.2,
                "retry_most_seconds": 0.5, **more}
    return ("--workers", "2", *(word for name, value in settings.items()
                                for word in ("--set", f"webhooks.{name}={value}")))


def waiting(directory: Path) -> list[Any]:
    with closing(Spool(directory / NAME, create=False)) as spool:
        return spool.waiting()


class Told:
    """What a receiver was told, its signatures verified."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def __call__(self, kind: str, **data: object) -> list[dict[str, Any]]:
        """The data of the events of that kind which have these, once there are any."""
        found: list[dict[str, Any]] = []
        deadline = time.monotonic() + PATIENCE
        while not found:
            assert time.monotonic() < deadline, f"no {kind} was told"
            time.sleep(0.02)
            found = [each["data"] for each in self._receiver.taken(SECRET, kind)
                     if data.items() <= each["data"].items()]
        return found


def test_what_becomes_of_messages_is_told(tmp_path: Path) -> None:
    """Each event, with exactly these data, signed, and each once."""
    port = free_port()
    with Receiver() as receiver, Exchanger(
            "127.0.0.1", port, "rcpt=450_4.2.1_later", "", "rcpt=550_5.1.1_no_such_user"), Service(
            tmp_path / "data", ACCOUNTS, (
                *options(tmp_path, receiver.url(), events=json.dumps(list(EVENTS))),
                "--submission", "127.0.0.1:0", "--set", "smtp.allow_cleartext_auth=yes",
                "--alias", "away@example.org=x@example.com", "--set", "queue.idle_seconds=0",
                "--set", f"relay.smarthost=127.0.0.1:{port}",
                "--set", "queue.retry_first_seconds=0.2")) as service:
        told = Told(receiver)
        submit(service, MESSAGE, (ALICE, BOB))
        (received,) = told("message.received")
        assert re.fullmatch(r"[0-9A-Z]{16}", received["id"])
        assert received == {
            "id": received["id"], "sender": "sender@example.net", "recipients": [ALICE, BOB],
            "accounts": [ALICE, BOB], "queued": [], "size": len(MESSAGE), "user": "",
            "client": "127.0.0.1", "hello": "client.example.net",
            "connection": received["connection"]}
        fetch(service, ALICE)
        (fetched,) = told("mailbox.fetched")
        assert fetched == {"user": ALICE, "retrieved": 1, "deleted": 1, "client": "127.0.0.1",
                           "connection": fetched["connection"]}
        submit(service, MESSAGE, ("away@example.org",))
        (relayed,) = told("message.relayed")
        about = {"id": relayed["id"], "sender": relayed["sender"], "recipient": "x@example.com",
                 "host": "mx.test"}
        deferred = told("message.deferred")
        assert relayed == {**about, "attempt": len(deferred) + 1, "reply": relayed["reply"]}
        assert deferred[0] == {**about, "attempt": 1, "reply": "450 4.2.1 later"}
        assert told("message.received", id=relayed["id"])[0]["queued"] == ["x@example.com"]
        submit(service, MESSAGE, ("away@example.org",))
        (bounced,) = told("message.bounced", recipient="x@example.com")
        assert bounced == {"id": bounced["id"], "sender": bounced["sender"],
                           "recipient": "x@example.com", "host": "mx.test", "status": "5.1.1",
                           "reply": "550 5.1.1 no such user"}
        with smtplib.SMTP(*service.listeners["submission"]) as sender:
            sender.login(ALICE, "secret")
            sender.sendmail(ALICE, [BOB], MESSAGE, ["HOLDFOR=1"])
        (delivered,) = told("message.delivered")
        assert delivered == {"id": delivered["id"], "sender": ALICE, "recipient": BOB, "attempt": 1}
        (held,) = told("message.received", id=delivered["id"])
        assert (held["user"], held["accounts"], held["queued"]) == (ALICE, [BOB], [])
        assert held["held_until"]
        ids = [each.id for each in receiver.requests]
        assert len(set(ids)) == len(ids)
        assert "Traceback" not in service.log.read_text()
        assert SECRET not in service.log.read_text()


def test_what_an_operator_should_know_is_told(tmp_path: Path) -> None:
    old = Authority().issue("mx.example.org", days=5).write(tmp_path)
    with Receiver() as receiver, Service(tmp_path / "data", ACCOUNTS, (
            *options(tmp_path, receiver.url()), "--alias", "away@example.org=x@example.com",
            "--tls-cert", str(old / "fullchain.pem"), "--tls-key", str(old / "privkey.pem"),
            "--set", "brakes.ban_failures=2", "--set", "queue.old_seconds=0.001",
            "--set", f"relay.smarthost=127.0.0.1:{free_port()}")) as service:
        told = Told(receiver)
        submit(service, MESSAGE, ("away@example.org",))
        guess(service, 3)
        # Two workers may come to it at the same moment.
        assert told("login.abuse")[0] == {
            "network": "127.0.0.9/32", "seconds": 600, "times": 1, "failures": 2}
        # Once, and not by each worker.
        (certificate,) = told("certificate.old")
        assert certificate["days"] == 4
        assert "fullchain.pem" in certificate["certificate"]
        (waits,) = told("queue.old")
        assert told("message.received", id=waits["id"])[0]["queued"] == ["x@example.com"]
        assert waits["seconds"] >= 0


def guess(service: Service, times: int) -> None:
    for _ in range(times):
        connection = socket.create_connection(service.pop3, PATIENCE, ("127.0.0.9", 0))
        with connection, connection.makefile("rb") as answers:
            if not answers.readline().startswith(b"+OK"):
                return
            connection.sendall(b"USER " + ALICE.encode() + b"\r\nPASS wrong\r\nQUIT\r\n")
            answers.read()


def test_a_receiver_that_fails_in_every_way_and_comes_back(tmp_path: Path) -> None:
    with Receiver() as receiver, Service(tmp_path / "data", ACCOUNTS, options(
            tmp_path, receiver.url(), events='["message.received"]', timeout_seconds=0.5)
            ) as service:
        expected = set()
        for answer in 500, 302, 0, -1, 429, 404:
            receiver.answer = answer
            before = len(receiver.requests)
            began = time.monotonic()
            expected.add(re.findall(rb"\b[0-9A-Z]{16}\b", submit(service, MESSAGE, (ALICE,)))[0])
            # Mail waits for none of it.
            assert time.monotonic() - began < PATIENCE / 3
            until(lambda before=before: len(receiver.requests) > before)
        until(lambda: [each.attempts > 0 for each in waiting(service.directory)] == 6 * [True])
        assert "the answer is 404, expected 2xx: this is 404" in {
            each.problem for each in waiting(service.directory)}
        there = ["--dir", str(service.directory)]
        listed = json.loads(CliRunner().invoke(main, ["webhook", "list", "--json", *there]).stdout)
        assert len(listed) == 6
        assert {each["event"]["data"]["id"].encode() for each in listed} == expected
        assert all(each["attempts"] and each["type"] == "message.received" for each in listed)
        text = CliRunner().invoke(main, ["webhook", "list", *there]).stdout
        assert text.splitlines()[0].split()[:3] == ["ID", "TYPE", "TO"]
        assert "token" not in text
        receiver.answer = 204
        until(lambda: len(receiver.taken(SECRET)) == 6)
        until(lambda: attempts(service) == {
            "told": 6, "put off": len(receiver.requests) - 6, "given up": 0, "waiting": 0})
        assert {each["data"]["id"].encode() for each in receiver.taken(SECRET)} == expected
        until(lambda: not waiting(service.directory))
        # A redirection is not followed, and an event keeps its id from attempt to attempt.
        assert {each.path for each in receiver.requests} == {"/hook?token=abc"}
        assert len({each.id for each in receiver.requests}) == 6
        log = service.log.read_text()
        assert "takes no events; they wait, and are tried again: the answer is 500" in log
        assert "takes events again" in log
        assert "token" not in log
        assert "Traceback" not in log


def attempts(service: Service) -> dict[str, int]:
    """What the figures say."""
    found = {each["name"].removeprefix("mailsvc_"): each["samples"]
             for each in monitor.ask(service.directory)["figures"]}
    return {"waiting": found["webhook_events_waiting"][0]["value"], **{
        each["labels"]["outcome"]: each["value"] for each in found["webhook_attempts_total"]}}


def test_kill_9_loses_nothing_that_is_in_the_spool(tmp_path: Path) -> None:
    with Receiver() as receiver:
        flags = options(tmp_path, receiver.url(), events='["message.received"]')
        receiver.answer = 0  # half of it is amid a request when the end comes
        with Service(tmp_path / "data", ACCOUNTS, flags) as service:
            for _ in range(20):
                submit(service, MESSAGE, (ALICE,))
            until(lambda: len(waiting(service.directory)) == 20 and len(receiver.requests) > 4)
            ids = {each.event.id for each in waiting(service.directory)}
            for worker in set(service.pids()) - {service.pid}:
                os.kill(worker, signal.SIGKILL)
            until(lambda: service.log.read_text().count("another takes its place") == 2)
            submit(service, MESSAGE, (ALICE,))
            until(lambda: len(waiting(service.directory)) == 21)
            ids |= {each.event.id for each in waiting(service.directory)}
            service.kill()
        receiver.answer = 204
        # What was claimed is due when the claim has run out.
        with closing(Spool(tmp_path / "data" / NAME, create=False)) as spool:
            assert any(each.due > time.time() for each in spool.waiting())
            with spool.transaction():
                spool.change("UPDATE waiting SET due = min(due, ?)", time.time() + 1)
        with Service(tmp_path / "data", ACCOUNTS, flags) as service:
            until(lambda: not waiting(service.directory))
        receiver.taken(SECRET)
        assert {each.id for each in receiver.requests if each.answer == 204} == ids


def test_a_stop_puts_back_what_it_was_telling(tmp_path: Path) -> None:
    with Receiver() as receiver:
        receiver.answer = 0
        with Service(tmp_path / "data", ACCOUNTS, options(
                tmp_path, receiver.url(), events='["message.received"]')) as service:
            submit(service, MESSAGE, (ALICE,))
            until(lambda: receiver.requests)
            began = time.time()
            assert service.stop() == 0
            # And what is logged last is not lost.
            assert "Traceback" not in service.log.read_text()
        (left,) = waiting(service.directory)
        assert (left.attempts, left.event.id) == (0, receiver.requests[0].id)
        assert left.due < began + 10


def test_many_events_over_two_workers_to_two_receivers(tmp_path: Path) -> None:
    """None twice, for nothing dies; and one receiver that hangs holds up nothing of the other."""
    with Receiver() as receiver, Receiver() as hanging:
        hanging.answer = 0
        with Service(tmp_path / "data", ACCOUNTS, options(
                tmp_path, receiver.url(), hanging.url(), events='["message.received"]',
                most_waiting=30)) as service:
            for _ in range(40):
                submit(service, MESSAGE, (ALICE,))
            until(lambda: len(receiver.requests) == 40)
            assert len({each.id for each in receiver.requests}) == 40
            until(lambda: len(waiting(service.directory)) == 30)
            assert {each.url for each in waiting(service.directory)} == {hanging.url()}
            until(lambda: "events were dropped, for more wait" in service.log.read_text())


def test_what_is_given_up(tmp_path: Path) -> None:
    with Receiver() as receiver, Receiver() as gone:
        receiver.answer, gone.answer = 503, 410
        with Service(tmp_path / "data", ACCOUNTS, options(
                tmp_path, receiver.url(), gone.url(), events='["message.received"]',
                lifetime_seconds=1)) as service:
            submit(service, MESSAGE, (ALICE,))
            until(lambda: not waiting(service.directory) and len(receiver.requests) > 1)
            log = service.log.read_text()
            assert len(gone.requests) == 1
            for url, code in (receiver.url(), 503), (gone.url(), 410):
                assert re.search(rf"msg_\w+ given up type=message.received url={shown(url)} "
                                 rf"attempts=\d+: the answer is {code}, expected 2xx", log)


def test_without_a_secret_it_does_not_start(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_text("hunter2")
    with pytest.raises(RuntimeError, match="expected whsec_") as caught:
        Service(tmp_path / "data", ACCOUNTS, ("--set", 'webhooks.urls=["https://h.example/"]',
                                              "--set", f"webhooks.secret=file:{bad}"))
    assert "hunter2" not in str(caught.value)
    assert "webhooks.secret: " in str(caught.value)
    configuration = tmp_path / "mailsvc.toml"
    for secret, complaint in ("", "no secret is set"), (f"file:{bad}", "expected whsec_ and base"):
        configuration.write_text(f'[service]\ndata = "{tmp_path}"\n[webhooks]\nurls = ['
                                 f'"https://h.example/"]\nsecret = "{secret}"\n')
        done = CliRunner().invoke(main, ["config", "check", str(configuration)])
        assert done.exit_code == 1
        assert f"{configuration}:5: webhooks.secret: " in done.stderr
        assert complaint in done.stderr


def test_the_command_that_tests(tmp_path: Path) -> None:
    """A certificate has to be good for the host's name and come from a known authority."""
    authority = Authority()
    (tmp_path / "root.pem").write_bytes(pem(authority.root))
    combined = tmp_path / "combined.pem"
    combined.write_bytes(authority.issue("localhost").combined)
    (tmp_path / "secret").write_text(SECRET)
    configuration = tmp_path / "mailsvc.toml"

    def tested(*urls: str, more: str = "") -> subprocess.CompletedProcess[str]:
        configuration.write_text(f'[webhooks]\nurls = {json.dumps(urls)}\n'
                                 f'secret = "file:{tmp_path}/secret"\n{more}')
        return subprocess.run(
            [sys.executable, "-c", "from mailsvc.cli import main; main()", "webhook", "test",
             "--config", str(configuration)], capture_output=True, text=True, timeout=PATIENCE,
            check=False)

    with Receiver(certificate=combined) as receiver, Receiver() as other:
        receiver.answer, other.answer = 200, 403
        url = receiver.url("/x", "localhost")
        done = tested(url, receiver.url("/x"), other.url("/y"), f"http://127.0.0.1:{free_port()}/",
                      more=f'authorities = "{tmp_path}/root.pem"\n')
        assert (done.returncode, done.stderr) == (1, "")
        lines = done.stdout.splitlines()
        assert re.fullmatch(rf"{re.escape(url)}: 200 this is 200 \(\d+ ms\)", lines[0])
        assert "the certificate is not for this host" in lines[1]
        assert "the answer is 403, expected 2xx: this is 403" in lines[2]
        assert "refused" in lines[3]
        (told,) = receiver.taken(SECRET)
        assert (told["type"], told["data"]) == ("test", {"text": "sent by `mailsvc webhook test`"})
        assert abs(datetime.datetime.fromisoformat(told["timestamp"]).timestamp() - time.time()
                   ) < PATIENCE
        assert receiver.requests[0].headers["content-type"] == "application/json"
        done = tested(url)
        assert (done.returncode, "TLS failed: " in done.stdout) == (1, True)
        assert len(receiver.requests) == 1


def test_commands(tmp_path: Path) -> None:
    def run(*command: str) -> Result:
        return CliRunner().invoke(main, ["webhook", *command])

    done = run("test", "http://elsewhere.example/")
    assert done.exit_code == 2
    assert "expected URLs that begin with https://" in done.stderr
    done = run("test", "--dir", str(tmp_path))
    assert (done.exit_code, "webhooks.urls names none" in done.stderr) == (1, True)
    assert run("list", "--json", "--dir", str(tmp_path)).stdout == "[]\n"
    first, second = (run("secret").stdout.strip() for _ in range(2))
    assert first != second
    assert len(base64.b64decode(first.removeprefix("whsec_"))) == 32
    Webhook(first)
