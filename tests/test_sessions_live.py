"""mailsvc.live and `mailsvc sessions`: the connections of a whole service, told and ended."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mailsvc import live
from mailsvc.cli import main
from mailsvc.localsocket import NoService
from tests.service import PATIENCE, Dialogue, Service, login

ALICE, BOB = "alice@example.org", "bob@example.org"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("sessions") / "data",
                 (f"{ALICE}:secret", f"{BOB}:secret"),
                 ("--workers", "2", "--pop3s", "127.0.0.1:0", "--submission", "127.0.0.1:0",
                  "--lmtp", "127.0.0.1:0")) as running:
        yield running
    assert list(running.directory.glob("live-*")) == []


def run(service: Service | Path, *arguments: str) -> Result:
    place = service.directory if isinstance(service, Service) else service
    return CliRunner().invoke(main, ["sessions", *arguments, "--dir", str(place)],
                              prog_name="mailsvc")


def told(service: Service, *arguments: str) -> list[dict[str, Any]]:
    done = run(service, "--json", *arguments)
    assert done.exit_code == 0, done.output
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def begun(service: Service, kind: str, *said: bytes) -> Dialogue:
    """A client that has said so much, with its answers."""
    dialogue = Dialogue(service.listeners[kind])
    dialogue.reply()
    for each in said:
        if kind == "pop3":
            dialogue.send(each + b"\r\n")
            dialogue.line()
        else:
            dialogue.say(each)
    return dialogue


MAIL = (b"EHLO me", b"MAIL FROM:<x@example.net>")

#: What a client says, and what is told of it then.
STATES: dict[str, tuple[str, tuple[bytes, ...], dict[str, object]]] = {
    "start": ("smtp", (), {"state": "start", "hello": "", "from": None, "recipients": 0}),
    "ready": ("smtp", (b"EHLO me",), {"state": "ready", "hello": "me"}),
    "mail": ("smtp", MAIL, {"state": "mail", "from": "x@example.net"}),
    "rcpt": ("smtp", (*MAIL, b"RCPT TO:<alice@example.org>"), {"state": "rcpt", "recipients": 1}),
    "message": ("smtp", (*MAIL, b"RCPT TO:<alice@example.org>", b"DATA"), {"state": "message"}),
    "accepted": ("smtp", (*MAIL, b"RCPT TO:<alice@example.org>", b"DATA", b"hi\r\n."),
                 {"state": "ready", "messages": 1, "from": None}),
    "auth": ("pop3", (b"AUTH LOGIN",), {"state": "auth", "login": ""}),
    "lmtp": ("lmtp", (b"LHLO me",), {"state": "ready", "protocol": "lmtp"}),
    "authorization": ("pop3", (b"USER alice@example.org",),
                      {"state": "authorization", "login": "", "messages": 0}),
    "transaction": ("pop3", (b"USER bob@example.org", b"PASS secret"),
                    {"state": "transaction", "login": BOB, "deleted": 0}),
}


@pytest.mark.parametrize("name", STATES)
def test_how_far_a_connection_is(service: Service, name: str) -> None:
    kind, said, expected = STATES[name]
    with begun(service, kind, *said):
        one, = told(service)
        assert {key: one[key] for key in expected} == expected
        assert one["protocol"] == kind and one["client"] == "127.0.0.1"
        assert one["listener"] == "{}:{}".format(*service.listeners[kind])
        assert one["received"] == sum(len(each) + 2 for each in said) and one["sent"] > 0
        assert one["tls"] == "" and 0 <= one["idle"] < PATIENCE
    until(lambda: not told(service))


def test_tls_is_told(service: Service) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with begun_tls(service, context):
        one, = told(service)
        assert one["protocol"] == "pop3" and one["tls"].startswith("TLSv1.")
    until(lambda: not told(service))


def begun_tls(service: Service, context: ssl.SSLContext) -> Dialogue:
    dialogue = Dialogue(service.listeners["pop3s"])
    dialogue.socket = context.wrap_socket(dialogue.socket)
    dialogue.file = dialogue.socket.makefile("rb")
    dialogue.reply()
    return dialogue


def test_those_of_all_workers_the_oldest_first_and_chosen(service: Service) -> None:
    with ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(begun(service, "smtp"))
        stack.enter_context(login(service, BOB))
        every = told(service)
        assert len(every) == 17
        assert [each["since"] for each in every] == sorted(each["since"] for each in every)
        # An id ends with the process that made it.
        assert len({each["id"][11:] for each in every}) == 2, "by chance 1 in 30,000"
        for arguments, count in ((("--protocol", "smtp"), 16), (("--protocol", "pop3"), 1),
                                 (("--account", BOB.upper()), 1), (("--account", ALICE), 0),
                                 (("--address", "127.0.0.0/8"), 17), (("--address", "::1"), 0)):
            assert len(told(service, *arguments)) == count, arguments
        rows = run(service).stdout.splitlines()
        assert rows[0].split() == ["ID", "PROTOCOL", "CLIENT", "AGE", "LOGIN", "TLS", "STATE",
                                   "MESSAGES", "IN", "OUT", "IDLE"]
        assert [each["id"] for each in every] == [row.split()[0] for row in rows[1:]]
    until(lambda: not told(service))


@pytest.mark.parametrize(("kind", "word"), [("smtp", b"421 4.3.2 "), ("pop3", b"-ERR [SYS/TEMP]")])
def test_one_is_ended_with_a_word_and_no_other(service: Service, kind: str, word: bytes) -> None:
    with begun(service, kind) as one, begun(service, kind) as other:
        first, _ = told(service)
        done = run(service, "end", first["id"].lower())
        assert (done.exit_code, done.stdout) == (0, f"{first['id']} is being ended\n")
        assert one.line().startswith(word)
        other.say(b"NOOP")
        until(lambda: len(told(service)) == 1)
        again = run(service, "end", first["id"])
        assert again.exit_code == 1 and "there is no connection" in again.stderr
    until(lambda: not told(service))


def test_a_message_under_way_may_end_or_not(service: Service) -> None:
    said = (*MAIL, b"RCPT TO:<alice@example.org>", b"DATA")
    with begun(service, "smtp", *said) as smtp:
        one, = told(service)
        assert run(service, "end", one["id"]).exit_code == 0
        assert told(service)[0]["state"] == "message"
        assert smtp.say(b"hi\r\n.").startswith(b"250 ")
        assert smtp.line().startswith(b"421 ")
    until(lambda: not told(service))
    with begun(service, "smtp", *said) as smtp:
        one, = told(service)
        assert run(service, "end", one["id"], "--now").exit_code == 0
        assert smtp.line().startswith(b"421 ")
    until(lambda: not told(service))


def test_a_socket_that_a_killed_process_left_is_no_answer(service: Service) -> None:
    left = service.directory / "live-99"
    with socket.socket(socket.AF_UNIX) as forgotten:
        forgotten.bind(str(left))
    with begun(service, "smtp"):
        assert len(told(service)) == 1
    left.unlink()
    until(lambda: not told(service))


def test_nobody_else_may_ask(service: Service) -> None:
    sockets = sorted(service.directory.glob("live-*"))
    assert len(sockets) == 2, "one of each worker"
    assert {each.stat().st_mode & 0o777 for each in sockets} == {0o600}


def test_without_a_service(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.exit_code == 1 and "start it, or name the right place" in done.stderr
    with pytest.raises(NoService, match="name the right place"):
        live.sessions(tmp_path / "nowhere")
    done = run(tmp_path, "--address", "example.org")
    assert done.exit_code == 2 and "is not a network" in done.stderr
