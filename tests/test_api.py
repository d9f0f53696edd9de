"""mailsvc.api: what each resource does, as programs use it."""

from __future__ import annotations

import base64
import contextlib
import email
import json
import os
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from mailsvc.tracing.events import message_of
from tests.api import ROOT, Api, serving
from tests.command_line import CommandLine
from tests.console import ALICE, BOB, PASSWORD
from tests.service import PATIENCE, Service, fetch, login, submit


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("api"), "--submission", "127.0.0.1:0",
                 "--set", "relay.smarthost=\"127.0.0.1:9\"") as running:
        yield running


@pytest.fixture(scope="module")
def local(service: Service) -> Api:
    return Api(service, local=True)


@pytest.fixture(scope="module")
def bob(service: Service) -> Api:
    return Api(service, BOB)


def messages(caller: Api, account: str = "me", query: str = "") -> list[Any]:
    found: list[Any] = caller.get(f"/accounts/{account}/messages{query}")["items"]
    return found


# ---- accounts and logins ----


def test_an_account_from_its_making_to_its_end(service: Service, local: Api) -> None:
    name = "dora@example.org"
    made = local.ask("POST", "/accounts", {"name": "Dora@Example.ORG", "password": "first",
                                           "quota_octets": 1000, "role": "both"})
    assert (made.status, made.headers["location"]) == (201, f"{ROOT}/accounts/Dora@example.org")
    assert made.value["quota_octets"] == 1000
    assert local.ask("POST", "/accounts", {"name": name}).status == 409
    dora = Api(service, name, "first")
    assert dora.get("/accounts/me") == local.get(f"/accounts/{name}")
    changed = local.ask("PATCH", f"/accounts/{name}", {"quota_octets": 0, "quota_messages": 5})
    assert (changed.value["quota_octets"], changed.value["quota_messages"]) == (0, 5)
    assert dora.ask("PUT", "/accounts/me/password", {"password": "second"}).status == 204
    assert dora.ask("GET", "/accounts/me").status == 401
    assert Api(service, name, "second").get("/accounts/me")["role"] == "both"
    assert local.ask("PUT", f"/accounts/{name}/password", {"password": "third"}).status == 204
    assert Api(service, name, "third").ask("GET", "/accounts/me").status == 200
    assert local.ask("DELETE", f"/accounts/{name}").status == 204
    assert Api(service, name, "third").ask("GET", "/accounts/me").status == 401
    assert local.ask("GET", f"/accounts/{name}").status == 404
    log = service.log.read_text()
    assert "account made account=Dora@example.org user=(local)" in log
    assert not [word for word in ("first", "second", "third") if f"={word}" in log]


def test_an_administrator_keeps_the_role_and_the_account(service: Service) -> None:
    alice = Api(service, ALICE)
    assert alice.ask("PATCH", "/accounts/me", {"administrator": False}).status == 409
    assert alice.ask("DELETE", f"/accounts/{ALICE.upper()}").status == 409
    assert alice.get("/accounts/me")["administrator"]


def test_app_passwords(service: Service, bob: Api) -> None:
    path = "/accounts/me/app-passwords"
    made = bob.ask("POST", path, {"label": "my phone", "expires_days": 30})
    assert (made.status, made.headers["location"]) == (
        201, f"{ROOT}/accounts/{BOB}/app-passwords/my%20phone")
    phone = Api(service, BOB, made.value["secret"])
    assert phone.get("/accounts/me")["app_passwords"] == 1
    # It opens the mailbox, but does not take the account over.
    assert phone.ask("GET", "/accounts/me/messages").status == 200
    for method, where, value in (("PUT", "/accounts/me/password", {"password": "x"}),
                                 ("POST", path, {"label": "another"}),
                                 ("DELETE", f"{path}/my%20phone", None)):
        assert "main password" in phone.ask(method, where, value).problem
    (listed,) = bob.get(path)["items"]
    assert "secret" not in listed
    assert listed["label"] == "my phone"
    held = bob.ask("POST", path, {"label": "pop", "protocols": ["pop3"]}).value["secret"]
    assert Api(service, BOB, held).ask("GET", "/accounts/me").status == 401
    for label in ("my%20phone", "pop"):
        assert bob.ask("DELETE", f"{path}/{label}").status == 204
        assert bob.ask("DELETE", f"{path}/{label}").status == 404
    assert phone.ask("GET", "/accounts/me").status == 401


# ---- names ----


def test_domains_and_aliases(service: Service, local: Api) -> None:
    assert local.ask("POST", "/domains", {"name": "Second.Example"}).value["name"] == (
        "second.example")
    alias = "/aliases/team@second.example"
    put = [local.ask("PUT", alias, {"targets": targets}) for targets in ([BOB], [BOB], [ALICE])]
    assert [each.status for each in put] == [201, 200, 200]
    assert local.get(alias) == {"name": "team@second.example", "targets": [ALICE], "moved": False}
    changed = local.ask("PATCH", "/domains/second.example", {"catch_all": "team@second.example"})
    assert changed.value["catch_all"] == "team@second.example"
    assert "catch-all" in local.ask("DELETE", alias).problem
    assert local.ask("PATCH", "/domains/second.example", {"catch_all": None}).status == 200
    assert "team@second.example" in local.ask("DELETE", "/domains/second.example").problem
    for path in (alias, "/domains/second.example"):
        assert [local.ask("DELETE", path).status for _ in range(2)] == [204, 404]


def test_lists_come_in_parts(local: Api) -> None:
    names = [f"part-{number}@example.org" for number in range(7)]
    for name in names:
        assert local.ask("PUT", f"/aliases/{name}", {"targets": [BOB]}).status == 201
    total = local.get("/aliases")["total"]
    found, next = [], f"{ROOT}/aliases?limit=3"
    while next is not None and len(found) < 100:
        told = local.get(next.removeprefix(ROOT))
        assert told["total"] == total
        assert len(told["items"]) <= 3
        found += [each["name"] for each in told["items"]]
        next = told["next"]
    assert found == [each["name"] for each in local.get("/aliases")["items"]]
    assert set(names) <= set(found)
    for name in names:
        local.ask("DELETE", f"/aliases/{name}")
    told = local.get("/accounts?q=BOB&limit=1")
    assert ([each["name"] for each in told["items"]], told["next"]) == ([BOB], None)


# ---- mail ----


def test_a_message_is_read_as_it_lies_there(service: Service, bob: Api) -> None:
    content = b"Subject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\r\n\r\n" + bytes(range(1, 10)) + b"\r\n"
    submit(service, content.replace(b"\r", b"").replace(b"\n", b"\r\n"), (BOB,))
    submit(service, b"Subject: large\r\n\r\n" + b"0123456789abcde\r\n" * 200_000, (BOB,))
    newest, other = messages(bob, query="?limit=2")
    assert (newest["subject"], other["subject"]) == ("large", "grüße")
    by_pop3 = fetch(service, BOB, delete=False)
    for each, expected in zip((other, newest), by_pop3[-2:], strict=True):
        path = f"/accounts/me/messages/{urllib.parse.quote(each['id'])}"
        told = bob.ask("GET", path)
        assert told.content == expected
        assert told.headers["content-type"] == "message/rfc822"
        assert int(told.headers["content-length"]) == each["octets"] == len(expected)
        head = bob.ask("HEAD", path)
        assert (head.content, head.headers["content-length"]) == (b"", str(len(expected)))
        again = bob.ask("GET", path, If_None_Match=told.headers["etag"])
        assert (again.status, again.content) == (304, b"")
        assert bob.ask("GET", path, If_None_Match='"other"').status == 200


def test_a_message_is_deleted_and_had_back(service: Service, bob: Api, local: Api) -> None:
    submit(service, b"Subject: to and fro\r\n\r\nHello.\r\n", (BOB,))
    id = messages(bob)[0]["id"]
    path = f"/accounts/me/messages/{urllib.parse.quote(id)}"
    with login(service, BOB):
        assert "mail program" in bob.ask("DELETE", path).problem
    _until(lambda: bob.ask("DELETE", path).status == 204)
    assert [bob.ask(method, path).status for method in ("GET", "DELETE")] == [404, 404]
    kept = bob.get("/accounts/me/deleted")["items"]
    assert (kept[0]["unique_id"], kept[0]["subject"]) == (id, "to and fro")
    restore = f"/accounts/me/deleted/{urllib.parse.quote(id)}/restore"
    assert [bob.ask("POST", restore).status for _ in range(2)] == [204, 404]
    assert id in [each["id"] for each in messages(bob)]
    assert bob.ask("GET", path).status == 200
    with login(service, BOB):
        assert "mail program" in bob.ask("POST", restore).problem
    _until(lambda: local.ask("DELETE", path.replace("/me/", f"/{BOB}/")).status == 204)
    ways = [("deleted", f"by {BOB} from 127.0.0.1 by the API"),
            ("restored", f"by {BOB} from 127.0.0.1 by the API"),
            ("deleted", "by (local) from this machine by the API")]

    def known() -> bool:
        return [(step["phase"], step["text"])
                for story in local.get(f"/trace?of={message_of(id)}")["items"]
                for step in story["steps"]][-3:] == ways

    _until(known)


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_message_is_sent(service: Service, bob: Api) -> None:
    content = bytes(range(256))
    told = bob.ask("POST", "/accounts/me/submissions", {
        "to": [ALICE, "nobody@example.org"], "subject": "안녕", "text": "Hello.\n",
        "attachments": [{"name": "a.bin", "content": base64.b64encode(content).decode()}]})
    outcomes = told.value["recipients"]
    assert [(each["address"], each["accepted"]) for each in outcomes] == [
        (ALICE, True), ("nobody@example.org", False)]
    assert outcomes[0]["reply"].startswith("250 ")
    assert outcomes[1]["reply"].startswith("550 5.1.1 ")
    message = email.message_from_bytes(fetch(service, ALICE)[-1])
    assert message["From"] == BOB
    assert [part.get_payload(decode=True) for part in message.walk()
            if part.get_filename()] == [content]


def test_a_message_is_sent_as_it_is(service: Service, bob: Api) -> None:
    text = b"Subject: as it is\r\n\r\n" + b"x" * 70 + b"\r\n"
    large = text + b"0123456789abcde\r\n" * 150_000
    for body in (text, text.replace(b"\r", b""), large):
        told = bob.ask("POST", f"/accounts/me/submissions/raw?to={ALICE}", body=body,
                       Content_Type="message/rfc822")
        assert told.value["recipients"][0]["accepted"], told
        expected = text if len(body) <= len(text) else large
        assert fetch(service, ALICE)[-1].endswith(expected[expected.index(b"\r\n\r\n"):])


def test_nobody_sends_as_another(service: Service, bob: Api) -> None:
    told = bob.ask("POST", "/accounts/me/submissions", {"from": ALICE, "to": [BOB]})
    assert not told.value["recipients"][0]["accepted"]
    assert told.value["recipients"][0]["reply"].startswith("5")


def test_a_role_binds_here_too(service: Service, local: Api) -> None:
    for role, path, allowed in (("send", "messages", "submissions"),
                                ("receive", "submissions", "messages")):
        name = f"only-{role}@example.org"
        local.ask("POST", "/accounts", {"name": name, "password": PASSWORD, "role": role})
        caller = Api(service, name)
        value = {"to": [ALICE]}
        for each, status in (path, 409), (allowed, 200):
            told = (caller.ask("POST", f"/accounts/me/{each}", value) if each == "submissions"
                    else caller.ask("GET", f"/accounts/me/{each}"))
            assert told.status == status, told


# ---- operating ----


def test_the_queue_and_the_trace(service: Service, bob: Api, local: Api) -> None:
    told = bob.ask("POST", "/accounts/me/submissions", {"to": ["x@elsewhere.example"]})
    id = told.value["recipients"][0]["reply"].split()[-1]
    found = local.get("/queue?filter=" + urllib.parse.quote("to:@elsewhere.example"))["items"]
    assert id in [each["id"] for each in found]

    def held() -> bool:
        done = local.ask("POST", "/queue", {"action": "hold", "filter": f"id:{id}"}).value
        return id in done["ids"]

    _until(held)
    queued = local.get(f"/queue/{id.lower()}")
    assert (queued["status"], queued["account"]) == ("held", BOB)
    assert CommandLine(service.directory).json("queue", "show", id) == queued
    assert local.ask("DELETE", f"/queue/{id}").value == {"ids": [id], "busy": []}
    assert local.ask("DELETE", f"/queue/{id}").status == 404
    _until(lambda: bool(local.get(f"/trace?of={id}")["items"]))
    (story,) = local.get(f"/trace?of={id}")["items"]
    assert (story["id"], story["facts"]["user"]) == (id, BOB)


def test_figures_health_and_bans(service: Service, bob: Api, local: Api) -> None:
    assert bob.get("/health") == {"ready": True, "unready": None}
    assert "mailsvc_messages_accepted_total" in [
        each["name"] for each in local.get("/figures")["figures"]]
    CommandLine(service.directory)("ban", "add", "192.0.2.7", "--reason", "test")
    (ban,) = local.get("/bans")["items"]
    assert (ban["network"], ban["origin"], ban["reason"]) == ("192.0.2.7/32", "manual", "test")


def test_whoever_guesses_is_told_of_in_the_log(service: Service) -> None:
    assert Api(service, BOB, "guess").ask("GET", "/accounts/me").status == 401
    line = next(line for line in service.log.read_text().splitlines()
                if f"login failed user={BOB}" in line)
    assert "protocol=console" in line
    assert "guess" not in line


def test_whoever_guesses_on_is_banned(tmp_path: Path) -> None:
    with serving(tmp_path, "--set", "brakes.exempt_networks=[]", "--set", "brakes.ban_failures=3",
                 "--set", "brakes.free_failures=3", workers=1) as service:
        for _ in range(3):
            assert Api(service, BOB, "guess").ask("GET", "/accounts/me").status == 401
        with contextlib.suppress(ConnectionError, HTTPException):
            assert Api(service, BOB).ask("GET", "/accounts/me").status == 503
        assert Api(service, local=True).ask("GET", f"/accounts/{BOB}").status == 200


# ---- listeners ----


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_other_users_of_the_machine_have_to_log_in_on_the_socket(
        tmp_path: Path, program: Callable[[str], str]) -> None:
    with tempfile.TemporaryDirectory() as reachable:
        Path(reachable).chmod(0o755)
        with serving(tmp_path, "--api", f"unix:{reachable}/api", workers=1):
            for user, status in (0, b"200"), (65_534, b"401"):
                ran = subprocess.run(
                    [program("curl"), "-sS", "--max-time", str(int(PATIENCE)), "-o", "/dev/null",
                     "-w", "%{http_code}", "--unix-socket", f"{reachable}/api",
                     f"http://localhost{ROOT}/accounts"],
                    capture_output=True, check=False, timeout=2 * PATIENCE, user=user)
                assert (ran.stdout, ran.stderr) == (status, b""), user


def test_curl_as_the_documentation_has_it(
        service: Service, program: Callable[[str], str]) -> None:
    curl = [program("curl"), "-sS", "--fail-with-body", "--max-time", str(int(PATIENCE))]
    socket_path = str(service.directory.parent / "api")
    host, port = service.listeners["console"]
    login_options = ["--user", f"{BOB}:{PASSWORD}"]
    for command in (
            [*curl, "--unix-socket", socket_path, f"http://localhost{ROOT}/accounts"],
            [*curl, *login_options, f"http://{host}:{port}{ROOT}/accounts/me"],
            [*curl, *login_options, "--json", f'{{"to": ["{ALICE}"], "subject": "hello"}}',
             f"http://{host}:{port}{ROOT}/accounts/me/submissions"]):
        ran = subprocess.run(command, capture_output=True, check=False, timeout=2 * PATIENCE)
        assert (ran.returncode, ran.stderr) == (0, b""), ran
        assert json.loads(ran.stdout)


# ---- mailsvc api ----


def test_the_command_asks_the_service(service: Service, local: Api) -> None:
    command = CommandLine(service.directory)
    assert json.loads(command("api", "GET", "/accounts")) == local.get("/accounts")
    made = json.loads(command("api", "post", "/api/v1/accounts", "--data", "-",
                              stdin='{"name": "by-command@example.org"}'))
    assert made == local.get("/accounts/by-command@example.org")
    assert command("api", "DELETE", "/accounts/by-command@example.org") == ""
    assert "404 There is no such account." in command.fails(
        "api", "DELETE", "/accounts/by-command@example.org")
    submit(service, b"Subject: by command\r\n\r\nHello.\r\n", (BOB,))
    id = messages(local, BOB)[0]["id"]
    assert "Subject: by command" in command("api", "GET", f"/accounts/{BOB}/messages/{id}")


def test_the_command_says_what_it_lacks(tmp_path: Path) -> None:
    assert "start it" in CommandLine(tmp_path).fails("api", "GET", "/accounts")
    with Service(tmp_path / "data", (), ("--workers", "1")) as service:
        problem = CommandLine(service.directory).fails("api", "GET", "/accounts")
        assert "listeners.api" in problem
