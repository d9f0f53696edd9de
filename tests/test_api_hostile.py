"""mailsvc.api.exchange: what is wrong, odd or hostile gets the right refusal, and harms nobody."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator

import pytest

from mailsvc.api.routes import MEDIUM, ROUTES, SMALL
from tests.api import ROOT, Api, Told, serving
from tests.console import ALICE, BOB, PASSWORD
from tests.service import PATIENCE, Service

JSON = "application/json"
NEST = SMALL // 4

#: What is no body of ``POST /accounts``: its octets, its type, and what is answered.
BODIES: dict[str, tuple[bytes, str, int]] = {
    "nothing": (b"", JSON, 400),
    "no JSON": (b"{", JSON, 400),
    "rubbish": (bytes(range(256)), JSON, 400),
    "two values": (b'{"name": "a@b"} {}', JSON, 400),
    "a comma too many": (b'{"name": "a@b",}', JSON, 400),
    "a member twice": (b'{"name": "a@b", "name": "c@d"}', JSON, 400),
    "NaN": (b'{"name": "a@b", "quota_octets": NaN}', JSON, 400),
    "infinity": (b'{"name": "a@b", "quota_octets": 1e999}', JSON, 422),
    "a number of many digits": (b'{"name": "a@b", "quota_octets": ' + b"9" * 20_000 + b"}", JSON,
                                400),
    "arrays in arrays": (b"[" * NEST + b"]" * NEST, JSON, 400),
    "objects in objects": (b'{"a":' * (NEST // 2) + b"0" + b"}" * (NEST // 2), JSON, 400),
    "arrays without end": (b"[" * NEST, JSON, 400),
    "a lone surrogate": (b'{"name": "\\ud800@example.org"}', JSON, 400),
    "Latin-1": ('{"name": "ü@example.org"}'.encode("latin-1"), JSON, 400),
    "UTF-16": ('{"name": "a@example.org"}'.encode("utf-16"), JSON, 400),
    "UTF-32": ('{"name": "a@example.org"}'.encode("utf-32-be"), JSON, 400),
    "a byte order mark": (b'\xef\xbb\xbf{"name": "a@example.org"}', JSON, 400),
    "overlong UTF-8": (b'{"name": "a\xc0\xaf@example.org"}', JSON, 400),
    "NUL itself": (b'{"name": "a\x00@example.org"}', JSON, 400),
    "NUL in a name": (b'{"name": "a\\u0000@example.org"}', JSON, 422),
    "NUL in a password": (b'{"name": "a@example.org", "password": "a\\u0000b"}', JSON, 409),
    "a line end in a name": (b'{"name": "a\\r\\nb@example.org"}', JSON, 422),
    "a path for a name": (b'{"name": "../../x@example.org"}', JSON, 409),
    "an array": (b"[]", JSON, 422),
    "null": (b"null", JSON, 422),
    "a string": (b'"name"', JSON, 422),
    "no name": (b"{}", JSON, 422),
    "a name that is none": (b'{"name": 7}', JSON, 422),
    "a member that is not known": (b'{"name": "a@example.org", "admin": true}', JSON, 422),
    "__proto__": (b'{"name": "a@example.org", "__proto__": {"administrator": true}}', JSON, 422),
    "a role that there is not": (b'{"name": "a@example.org", "role": "root"}', JSON, 422),
    "true as text": (b'{"name": "a@example.org", "administrator": "true"}', JSON, 422),
    "a quota below nothing": (b'{"name": "a@example.org", "quota_octets": -1}', JSON, 422),
    "half an octet": (b'{"name": "a@example.org", "quota_octets": 0.5}', JSON, 422),
    "a huge quota": (b'{"name": "a@example.org", "quota_octets": 1e30}', JSON, 422),
    "a long name": (b'{"name": "' + b"a" * 30_000 + b'@example.org"}', JSON, 422),
    "too large": (b'{"name": "' + b"a" * SMALL + b'"}', JSON, 413),
    "much too large": (b" " * (3 * MEDIUM), JSON, 413),
    "no type": (b'{"name": "a@example.org"}', "", 415),
    "a form": (b"name=a@example.org", "application/x-www-form-urlencoded", 415),
    "a form with a file": (b"--x\r\n\r\n\r\n--x--\r\n", "multipart/form-data; boundary=x", 415),
    "text": (b'{"name": "a@example.org"}', "text/plain", 415),
    "JSON of another kind": (b"{}", "application/merge-patch+json", 415),
    "JSON in another encoding": (b"{}", "application/json; charset=utf-16", 415),
    "a type that is two": (b"{}", "application/json, text/plain", 415),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("api"), workers=1) as running:
        yield running
        log = running.log.read_text()
        assert "Traceback" not in log
        assert "Unhandled" not in log


@pytest.fixture(scope="module")
def alice(service: Service) -> Api:
    return Api(service, ALICE)


@pytest.mark.parametrize("name", BODIES)
def test_bodies(service: Service, alice: Api, name: str) -> None:
    body, kind, status = BODIES[name]
    headers = {"Content_Type": kind} if kind else {}
    before = alice.get("/accounts")
    told = alice.ask("POST", "/accounts", body=body, **headers)
    assert told.status == status, told
    assert told.problem
    assert len(told.content) < 2000, "what came is not repeated at length"
    assert alice.get("/accounts") == before
    # Who is not known hears nothing of what is wrong with it; nor who may not.
    assert Api(service).ask("POST", "/accounts", body=body, **headers).status == 401
    assert Api(service, BOB).ask("POST", "/accounts", body=body, **headers).status == 403


def test_what_has_too_many_parts_is_not_looked_at_one_by_one(alice: Api) -> None:
    many = ["a@b"] * 100_000
    for method, path, value in (
            ("PUT", "/aliases/many@example.org", {"targets": many}),
            ("POST", "/accounts/me/submissions", {"to": many}),
            ("POST", "/accounts/me/submissions", {"to": [BOB], "text": many})):
        told = alice.ask(method, path, value)
        assert told.status == 422, told
        assert told.value["pointer"] in ("/targets", "/to", "/text")


def test_nothing_is_outside_of_its_path(service: Service) -> None:
    connection = Api(service, local=True).connection()
    for path in ("/accounts", "/", "/api/v1", "/api/v2/accounts", "/api/v1x/accounts", "*"):
        connection.request("GET", path)
        answer = connection.getresponse()
        assert (answer.status, bool(answer.read())) == (404, True), path
    connection.close()


def test_a_refusal_names_the_part_that_is_wrong(alice: Api) -> None:
    told = alice.ask("POST", "/accounts/me/submissions", {
        "to": [BOB, "bob"], "text": "secret words"})
    assert (told.status, told.value["pointer"]) == (422, "/to/1")
    assert "secret words" not in told.problem


@pytest.mark.parametrize(("value", "status"), [
    ({"to": []}, 422), ({"to": [BOB] * 101}, 422), ({"to": BOB}, 422), ({}, 422),
    ({"to": [f"{BOB}\r\nRCPT TO:<x@example.net>"]}, 422), ({"to": [f"<{BOB}>"]}, 422),
    ({"to": [f"{BOB}\n"]}, 422), ({"to": ["a@b\u0000"]}, 422),
    ({"to": [BOB], "subject": "x\r\nBcc: eve@example.net"}, 422),
    ({"to": [BOB], "subject": "x\n"}, 422), ({"to": [BOB], "text": "\u0000"}, 422),
    ({"to": [BOB], "from": "a@b\r\n"}, 422),
    ({"to": [BOB], "attachments": [{"name": "x", "content": "%%"}]}, 422),
    ({"to": [BOB], "attachments": [{"name": "x\r\ny: z", "content": ""}]}, 422),
    ({"to": [BOB], "attachments": [{"name": "x", "content": ""}] * 21}, 422),
    ({"to": [BOB], "text": "x" * MEDIUM}, 413),
], ids=str)
def test_what_is_no_message_is_not_sent(
        alice: Api, value: dict[str, object], status: int) -> None:
    before = len(Api(alice._service, BOB).get("/accounts/me/messages")["items"])
    told = alice.ask("POST", "/accounts/me/submissions", value)
    assert told.status == status, told
    assert len(Api(alice._service, BOB).get("/accounts/me/messages")["items"]) == before


@pytest.mark.parametrize(("path", "status"), [
    ("", 404), ("/", 404), ("//accounts", 404), ("/accounts/", 404), ("/../console", 404),
    ("/accounts/..%2f..%2fetc%2fpasswd", 404), ("/accounts/%00", 404), ("/accounts/%ff@x", 404),
    ("/queue/..%2f..%2fstate.sqlite", 404), ("/queue/%00", 404), ("/queue/" + "A" * 9000, 404),
    ("/accounts/me/messages/..%2fnew", 404), ("/accounts/me/messages/%0d%0a", 404),
    ("/accounts?limit=0", 422), ("/accounts?limit=201", 422), ("/accounts?limit=1e1", 422),
    ("/accounts?limit=%31%30", 200), ("/accounts?limit=", 422), ("/accounts?limit=1&limit=2", 422),
    ("/accounts?limit=%d9%a1", 422), ("/accounts?offset=-1", 422),
    ("/accounts?offset=" + "9" * 100, 422), ("/accounts?offset=999999999", 200),
    ("/accounts?nothing=1", 422), ("/accounts?q=%00", 422), ("/accounts?q=%ff%fe", 200),
    ("/accounts?q=%27%20OR%201=1", 200), ("/accounts?" + "q=1&" * 300, 422),
    ("/queue?filter=nonsense:", 422), ("/queue?filter=age%3E" + "9" * 40 + "h", 422),
    ("/queue?filter=age%3E999999999999999w", 200), ("/queue?filter=to:@x%00", 422),
    ("/trace", 422), ("/trace?of=", 422), ("/trace?of=%3C%3E", 200),
    ("/trace?of=%27;%20DROP%20TABLE%20names", 200), ("/health?x", 422),
])
def test_odd_paths(alice: Api, path: str, status: int) -> None:
    told = alice.ask("GET", path)
    assert told.status == status, told
    assert status == 200 or told.problem


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_other_methods_are_told_which_there_are(service: Service, alice: Api, route: object
                                                ) -> None:
    path = re.sub(r"\{\w+\}", "nothing", route.path)  # type: ignore[attr-defined]
    allowed = set(route.allowed.split(", "))  # type: ignore[attr-defined]
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "OPTIONS", "PROPFIND"):
        if method not in allowed:
            for caller in alice, Api(service):
                told = caller.ask(method, path)
                assert told.status == 405, method
                assert set(told.headers["allow"].split(", ")) == allowed


@pytest.mark.parametrize("value", [
    "", "Basic", "Basic ", "Basic =", "Basic !!!!", "Basic YWJj", "Basic OnNlY3JldA==",
    "Basic YWxpY2VAZXhhbXBsZS5vcmc6", "Digest username=alice", "Bearer", "Bearer x y",
    "Bearer \xff", "Bearer abc", "Basic " + "A" * 9000,
    "basic YWxpY2VAZXhhbXBsZS5vcmcAOnNlY3JldA=="])
def test_what_is_no_login(service: Service, value: str) -> None:
    told = Api(service).ask("GET", "/accounts/me", Authorization=value)
    assert told.status == 401, told
    assert told.headers["www-authenticate"].startswith("Basic ")


def raw(service: Service, request: bytes, *, most: int = 1 << 20) -> bytes:
    """What is answered to these octets, until the connection ends."""
    with socket.create_connection(service.listeners["console"], PATIENCE) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(request)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while len(answer) < most and (block := client.recv(65_536)):
                answer += block
        return answer


LOGIN = b"Authorization: Basic YWxpY2VAZXhhbXBsZS5vcmc6c2VjcmV0\r\n"


def test_two_logins_are_none(service: Service) -> None:
    request = b"GET %s/accounts/me HTTP/1.0\r\nHost: x\r\n" % ROOT.encode()
    assert raw(service, request + LOGIN + b"\r\n").startswith(b"HTTP/1.0 200 ")
    assert raw(service, request + LOGIN + LOGIN + b"\r\n").startswith(b"HTTP/1.0 401 ")


def test_a_body_in_chunks(service: Service) -> None:
    head = (b"POST %s/accounts/me/submissions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
            % ROOT.encode()) + LOGIN + b"\r\n"
    body = json.dumps({"to": [BOB], "text": "in chunks"}).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % each for each in body) + b"0\r\n\r\n"
    assert raw(service, head + chunks).startswith(b"HTTP/1.1 200 ")
    large = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    assert raw(service, head + large * 40 + b"0\r\n\r\n").startswith(b"HTTP/1.1 413 ")


def test_what_is_sent_without_end_is_cut_off(service: Service) -> None:
    for login in b"", LOGIN:
        with socket.create_connection(service.listeners["console"], PATIENCE) as client:
            client.sendall(b"POST %s/accounts HTTP/1.1\r\nHost: x\r\n%s"
                           b"Content-Length: 1000000000000\r\n\r\n" % (ROOT.encode(), login))
            sent = 0
            with contextlib.suppress(ConnectionError):
                while sent < 1 << 30:
                    client.sendall(bytes(1 << 20))
                    sent += 1 << 20
            assert sent < 1 << 30


def test_a_stranger_is_not_read_on(service: Service) -> None:
    """Of a message whose sender has not logged in yet, little is taken; then it is thrown away."""
    body = b"x" * 2_000_000
    told = Api(service, ALICE, "wrong").ask(
        "POST", f"/accounts/me/submissions/raw?to={BOB}", body=body, Content_Type="message/rfc822")
    assert told.status == 401


def test_who_leaves_does_no_harm(service: Service, alice: Api) -> None:
    length = 2_000_000
    requests = [
        b"GET %s/accounts HTTP/1.1\r\nHost: x\r\n%s\r\n" % (ROOT.encode(), LOGIN),
        b"GET %s/figures HTTP/1.1\r\nHost: x\r\n%s\r\n" % (ROOT.encode(), LOGIN),
        b"POST %s/accounts/me/submissions/raw?to=%s HTTP/1.1\r\nHost: x\r\n%s"
        b"Content-Type: message/rfc822\r\nContent-Length: %d\r\n\r\n"
        % (ROOT.encode(), BOB.encode(), LOGIN, length) + b"x" * (length // 2)]
    for request in requests:
        with socket.create_connection(service.listeners["console"], PATIENCE) as client:
            client.sendall(request)
    large = alice.ask("POST", f"/accounts/me/submissions/raw?to={ALICE}",
                      body=b"Subject: large\r\n\r\n" + b"0123456789abcde\r\n" * 300_000,
                      Content_Type="message/rfc822")
    assert large.value["recipients"][0]["accepted"]
    id = alice.get("/accounts/me/messages")["items"][0]["id"]
    with socket.create_connection(service.listeners["console"], PATIENCE) as client:
        client.sendall(b"GET %s/accounts/me/messages/%s HTTP/1.1\r\nHost: x\r\n%s\r\n"
                       % (ROOT.encode(), id.encode(), LOGIN))
        assert client.recv(100).startswith(b"HTTP/1.1 200")
    deadline = time.monotonic() + PATIENCE
    while alice.ask("DELETE", f"/accounts/me/messages/{id}").status != 204:
        assert time.monotonic() < deadline
    told: Told = alice.ask("GET", "/accounts/me")
    assert told.value["name"] == ALICE
    assert PASSWORD.encode() not in told.content
