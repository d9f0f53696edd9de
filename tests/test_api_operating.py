"""mailsvc.api: what administrators look after, as programs do it: configuration, bans, webhooks."""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mailsvc import plain
from mailsvc.config import KEYS, load
from mailsvc.console.configuration import entries
from mailsvc.webhooks.signing import new_secret
from tests.api import ROOT, Api, serving
from tests.command_line import CommandLine
from tests.console import ALICE, BOB
from tests.daemons import free_port
from tests.receiver import Receiver
from tests.service import PATIENCE, Service, login, submit

SECRET = new_secret()


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)


@contextlib.contextmanager
def telling(directory: Path, receiver: Receiver, closed: str, *events: str) -> Iterator[Service]:
    """A service with secrets, that tells its *events*."""
    (directory / "secret").write_text(SECRET)
    urls = json.dumps([receiver.url("/hook?token=hunter3x"), closed])
    with serving(directory, *(word for each in (
            "relay.smarthost=smtp://user:hunter2x@127.0.0.1:9", f"webhooks.urls={urls}",
            f"webhooks.secret=file:{directory}/secret", "webhooks.retry_first_seconds=3600",
            "webhooks.retry_most_seconds=3600", f"webhooks.events={json.dumps(events)}")
            for word in ("--set", each))) as service:
        yield service


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def closed() -> str:
    """A URL where nobody answers."""
    return f"http://127.0.0.1:{free_port()}/closed?token=hunter4x"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver, closed: str
            ) -> Iterator[Service]:
    with telling(tmp_path_factory.mktemp("api"), receiver, closed) as running:
        yield running
        log = running.log.read_text()
        assert "Traceback" not in log
        assert not [secret for secret in ("hunter", SECRET) if secret in log]


@pytest.fixture(scope="module")
def alice(service: Service) -> Api:
    return Api(service, ALICE)


def get(caller: Api, path: str) -> Any:
    """What is there, and no secret in it."""
    told = caller.ask("GET", path)
    assert told.status == 200, told
    assert not [secret for secret in ("hunter", SECRET) if secret in told.content.decode()]
    return told.value


# ---- configuration ----


def test_every_key_is_told_with_its_reason_and_no_secret(alice: Api) -> None:
    found: list[Any] = []
    next = f"{ROOT}/configuration?limit=100"
    while next is not None and len(found) < 10 * len(KEYS):
        told = get(alice, next.removeprefix(ROOT))
        assert told["total"] == len(KEYS)
        found += told["items"]
        next = told["next"]
    assert [each["key"] for each in found] == list(KEYS)
    for each in found:
        key = KEYS[each["key"]]
        assert (each["meaning"], each["expected"], each["unit"], each["default"]) == (
            key.sentence, key.type, key.unit, key.default)
        assert get(alice, f"/configuration/{key}") == each


def test_one_key_is_told_as_the_command_tells(service: Service, alice: Api,
                                              receiver: Receiver, closed: str) -> None:
    told = get(alice, "/configuration/relay.smarthost")
    assert (told["value"], told["where"], told["default"]) == (
        "smtp://user:…@127.0.0.1:9", "--set", "")
    told = get(alice, "/configuration/webhooks.urls")
    assert told["value"] == [receiver.url("/"), closed.partition("closed")[0]]
    told = get(alice, "/configuration/service.data")
    assert told["value"] == str(service.directory)
    told = get(alice, "/configuration/smtp.recipients")
    assert told["where"] is None
    assert told == CommandLine(service.directory).json("config", "why", "smtp.recipients")


def test_a_line_of_a_file_is_told(tmp_path: Path) -> None:
    file = tmp_path / "mailsvc.toml"
    file.write_text("[smtp]\n\nrecipients = 77\n")
    (entry,) = entries(load(file), given=True)
    told = plain.setting(*entry)
    assert (told["key"], told["value"], told["where"], told["default"]) == (
        "smtp.recipients", 77, f"{file}:3", KEYS["smtp.recipients"].default)


@pytest.mark.parametrize(("query", "some", "others"), [
    ("q=SMARTHOST", {"relay.smarthost"}, {"smtp.recipients"}),
    ("q=hunter", set(), {"relay.smarthost", "webhooks.urls"}),
    ("which=given", {"relay.smarthost", "webhooks.urls"}, {"smtp.recipients"}),
    ("which=given&q=recipients", set(), {"smtp.recipients"}),
    ("which=all&q=message_octets", {"smtp.message_octets"}, {"relay.smarthost"}),
])
def test_keys_are_chosen(alice: Api, query: str, some: set[str], others: set[str]) -> None:
    keys = {each["key"] for each in get(alice, f"/configuration?{query}&limit=200")["items"]}
    assert some <= keys
    assert not others & keys


@pytest.mark.parametrize(("key", "said"), [
    ("smtp.mesage_octets", "did you mean smtp.message_octets?"), ("smtp", "no such key"),
    ("relay.smarthost%2F..", "no such key"), ("x" * 5000, "There is no such key."),
    ("%00", "no such key"), ("%FF", "no such key"),
])
def test_a_key_that_there_is_not(alice: Api, key: str, said: str) -> None:
    told = alice.ask("GET", f"/configuration/{key}")
    assert (told.status, said in told.problem) == (404, True), told
    assert len(told.content) < 1000


def test_the_configuration_is_only_read(alice: Api) -> None:
    for method in "PUT", "PATCH", "POST", "DELETE":
        told = alice.ask(method, "/configuration/smtp.recipients", {"value": 1})
        assert (told.status, told.headers["allow"]) == (405, "GET, HEAD"), told
    assert "all, given" in alice.ask("GET", "/configuration?which=some").problem


# ---- bans ----


def path_of(network: str) -> str:
    return f"/bans/{urllib.parse.quote(network, safe='')}"


def test_a_ban_from_its_making_to_its_end(service: Service, alice: Api) -> None:
    command = CommandLine(service.directory)
    made = alice.ask("PUT", path_of("198.51.100.9/24"), {"seconds": 7200, "reason": "guesses"})
    assert made.status == 201, made
    assert (made.value["network"], made.value["origin"], made.value["reason"]) == (
        "198.51.100.0/24", "manual", "guesses")
    assert lasts(made.value) == 7200
    assert made.value in command.json("ban", "list")
    changed = alice.ask("PUT", path_of("198.51.100.0/24"), {})
    assert changed.status == 200
    assert 3600 <= lasts(changed.value) <= 3600 + PATIENCE, "since it was first made"
    inside = "198.51.100.7/32"
    assert alice.ask("DELETE", path_of(inside)).problem == (
        "It is banned only as a part of 198.51.100.0/24; lift that.")
    assert alice.ask("PUT", path_of("198.51.100.7"), {}).value["network"] == inside
    assert get(alice, "/bans?limit=1")["items"][0]["network"] == inside
    lifted = alice.ask("DELETE", path_of("198.51.100.0/24"))
    assert set(lifted.value["lifted"]) == {"198.51.100.0/24", inside}
    assert alice.ask("DELETE", path_of(inside)).status == 404
    assert command.json("ban", "list") == get(alice, "/bans")["items"] == []
    log = service.log.read_text()
    assert f"network banned network=198.51.100.0/24 seconds=7200 user={ALICE}" in log
    assert "bans lifted count=2" in log


def lasts(ban: dict[str, Any]) -> float:
    until, since = (datetime.datetime.fromisoformat(ban[key]) for key in ("until", "since"))
    return round((until - since).total_seconds())


def test_all_bans_are_lifted(service: Service, alice: Api) -> None:
    command = CommandLine(service.directory)
    command("ban", "add", "192.0.2.7")
    # As the documentation has it.
    made = json.loads(command("api", "PUT", "/bans/2001:db8::%2F32", "--data", "-", stdin="{}"))
    assert made["network"] == "2001:db8::/32"
    assert set(alice.ask("DELETE", "/bans").value["lifted"]) == {"192.0.2.7/32", "2001:db8::/32"}
    assert alice.ask("DELETE", "/bans").value == {"lifted": []}


def test_the_service_obeys(service: Service) -> None:
    # Nobody else here comes from this address; who is exempt is banned by hand, too.
    address, local = "127.0.0.2", Api(service, local=True)
    assert local.ask("PUT", path_of(address), {"reason": "test"}).status == 201

    def greeted() -> bool:
        with socket.create_connection(service.smtp, PATIENCE, (address, 0)) as connection:
            return connection.recv(4) == b"220 "

    until(lambda: not greeted())
    assert local.ask("DELETE", path_of(address)).value == {"lifted": [f"{address}/32"]}
    until(greeted)


@pytest.mark.parametrize(("network", "value", "status", "said"), [
    ("example.org", {}, 404, "'example.org' is not a network; expected an address such as"),
    ("192.0.2.0/33", {}, 404, "'192.0.2.0/33' is not a network"),
    ("all", {}, 404, "'all' is not a network"), ("x" * 5000, {}, 404, "is not a network"),
    ("\r\n", {}, 404, "is not a network"), ("0.0.0.0/0", {}, 404, "is everybody"),
    ("::/0", {}, 404, "is everybody"), ("127.0.0.1", {}, 409, "You ask from that network"),
    ("127.0.0.0/8", {}, 409, "You ask from that network"),
    ("fe80::1%eth0", {}, 404, "is not a network"),
    ("192.0.2.1", {"seconds": 0}, 422, "/seconds: minimum is 1"),
    ("192.0.2.1", {"seconds": 1e12}, 422, "/seconds: maximum is"),
    ("192.0.2.1", {"seconds": "1h"}, 422, "/seconds: expected integer"),
    ("192.0.2.1", {"reason": "a\nb"}, 422, "/reason: expected: One line for who reads"),
    ("192.0.2.1", {"reason": "a\u202eb"}, 409, "control characters"),
    ("192.0.2.1", {"origin": "address"}, 422, "not known; known are seconds, reason"),
    ("192.0.2.1", None, 415, "application/json"),
])
def test_what_is_no_ban(alice: Api, network: str, value: object, status: int, said: str) -> None:
    told = alice.ask("PUT", path_of(network), value)
    assert (told.status, said in told.problem) == (status, True), told
    assert len(told.content) < 1000
    assert get(alice, "/bans")["items"] == []


# ---- sessions, traces, records ----


def test_sessions_are_told_and_ended(service: Service, alice: Api) -> None:
    command = CommandLine(service.directory)
    with login(service, BOB) as client:
        (found,) = get(alice, f"/sessions?q={BOB.upper()}")["items"]
        (same,) = command.json("sessions", "--account", BOB)
        # All but what grows meanwhile.
        for each in found, same:
            del each["idle"], each["sent"], each["received"]
        assert found == same
        assert (found["protocol"], found["deleted"], "hello" in found) == ("pop3", 0, False)
        assert alice.ask("DELETE", f"/sessions/{found['id'].lower()}").status == 204
        assert client.line().startswith(b"-ERR [SYS/TEMP]")
    until(lambda: alice.ask("DELETE", f"/sessions/{found['id']}?when=now").status == 404)
    with socket.create_connection(service.smtp, PATIENCE) as connection:
        connection.recv(1000)
        port = connection.getsockname()[1]
        (found,) = [each for each in get(alice, "/sessions?q=smtp")["items"]
                    if each["port"] == port]
        assert (found["protocol"], found["from"], found["recipients"]) == ("smtp", None, 0)
        assert alice.ask("DELETE", f"/sessions/{found['id']}?when=now").status == 204
        assert not connection.recv(1000).startswith(b"2")
    for id in "x" * 5000, "%00", "%FF":
        assert alice.ask("DELETE", f"/sessions/{id}").status == 404
    log = service.log.read_text()
    assert f"session {found['id']} ended user={ALICE}" in log


def test_an_account_is_told_its_own_traces_alone(service: Service, alice: Api) -> None:
    bob = Api(service, BOB)
    id = submit(service, b"Subject: traced\r\n\r\nHello.\r\n", (BOB, ALICE)).split()[-1].decode()

    def known(path: str) -> list[Any]:
        found: list[Any] = get(bob, path)["items"]
        return found

    until(lambda: bool(known(f"/accounts/me/trace?of={id}")))
    for path in f"/accounts/me/trace?of={id}", "/accounts/me/trace?limit=1":
        (story,) = known(path)
        assert story["id"] == id
        assert BOB in json.dumps(story)
        assert ALICE not in json.dumps(story)
    assert known(f"/accounts/me/trace?of={ALICE}") == []
    assert alice.ask("GET", f"/accounts/{BOB}/trace").status == 403
    assert ALICE in json.dumps(get(alice, f"/trace?of={id}"))


def test_records_of_a_domain(service: Service, alice: Api) -> None:
    told = get(alice, "/domains/example.org/records?address=192.0.2.7&address=2001:DB8::7")
    values = {(each["type"], each["value"]) for each in told["records"]}
    assert {("A", "192.0.2.7"), ("AAAA", "2001:db8::7")} <= values
    assert all(each["meaning"] for each in told["records"])
    assert alice.ask("GET", "/domains/nowhere.example/records").status == 404
    for query, said in (("address=example.org", "expected an IP address such as"),
                        ("&".join(9 * ["address=192.0.2.7"]), "maxItems is 8"),
                        ("hostname=x", "known are address")):
        told = alice.ask("GET", f"/domains/example.org/records?{query}")
        assert (told.status, said in told.problem) == (422, True), told


# ---- webhooks ----


def test_what_webhooks_have_to_tell(tmp_path: Path, receiver: Receiver, closed: str) -> None:
    with telling(tmp_path, receiver, closed, "message.received") as service:
        told_and_waiting(service, receiver, closed)


def told_and_waiting(service: Service, receiver: Receiver, closed: str) -> None:
    alice = Api(service, ALICE)
    urls = [receiver.url("/"), closed.partition("closed")[0]]
    assert get(alice, "/webhooks")["items"] == [
        {"url": url, "waiting": 0, "since": None, "problem": ""} for url in urls]
    assert get(alice, "/webhooks/waiting") == {"items": [], "total": 0, "next": None}
    for _ in range(3):
        submit(service, b"Subject: told\r\n\r\nHello.\r\n", (BOB,))
    until(lambda: len(receiver.taken(SECRET, "message.received")) == 3)
    until(lambda: [each["attempts"] for each in get(alice, "/webhooks/waiting")["items"]]
          == [1, 1, 1])
    open, refused = get(alice, "/webhooks")["items"]
    assert open == {"url": urls[0], "waiting": 0, "since": None, "problem": ""}
    assert (refused["url"], refused["waiting"]) == (urls[1], 3)
    assert "refused" in refused["problem"]
    first, second = (get(alice, f"/webhooks/waiting?{query}")
                     for query in ("limit=2", "limit=2&offset=2"))
    assert (first["total"], first["next"]) == (3, f"{ROOT}/webhooks/waiting?offset=2&limit=2")
    items = first["items"] + second["items"]
    assert refused["since"] == items[0]["since"]
    assert [{**each, "url": closed} for each in items] == CommandLine(
        service.directory).json("webhook", "list")
    assert {(each["type"], each["url"]) for each in items} == {("message.received", urls[1])}
    assert "refused" in items[0]["problem"]
    assert items[0]["event"]["data"]["recipients"] == [BOB]


def test_webhooks_are_tried(service: Service, alice: Api, receiver: Receiver) -> None:
    told = alice.ask("POST", "/webhooks/test")
    assert told.status == 200, told
    assert "hunter" not in told.content.decode()
    taken, refused = told.value["items"]
    assert (taken["url"], taken["code"], taken["problem"]) == (receiver.url("/"), 204, None)
    assert (refused["code"], "refused" in refused["problem"]) == (None, True)
    (event,) = receiver.taken(SECRET, "test")
    assert event["data"] == {"text": "sent by the API of mailsvc"}
    assert f"webhooks are tested user={ALICE}" in service.log.read_text()


def test_a_trial_without_its_secret(service: Service, alice: Api) -> None:
    file = service.directory.parent / "secret"
    file.write_text("hunter5x")
    told = alice.ask("POST", "/webhooks/test")
    file.write_text(SECRET)
    assert (told.status, "webhooks.secret: " in told.problem) == (409, True)
    assert "hunter" not in told.problem
