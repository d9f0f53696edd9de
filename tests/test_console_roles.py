"""mailsvc.console.routes: every path by every role, and what holds for all answers."""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import sqlite3
import struct
import time
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

import pytest

from mailsvc.console.call import ADMINISTRATOR, ANYBODY, ROLES, USER
from mailsvc.console.routes import ROUTES, Route, find
from tests.console import ALICE, BOB, Browser, Shown, multipart, serving
from tests.service import PATIENCE, Service, fetch, submit

METHODS = ("GET", "HEAD", "POST", "DELETE")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("console")) as running:
        yield running


@pytest.fixture(scope="module")
def browsers(service: Service) -> dict[str, Browser]:
    return {ANYBODY: Browser(service), USER: Browser(service).log_in(BOB),
            ADMINISTRATOR: Browser(service).log_in(ALICE)}


def path_of(route: Route) -> str:
    """A path of that route that leads to nothing there is."""
    return re.sub(r"\{\w+\}", "nothing", route.path)


def ask(browser: Browser, route: Route, method: str) -> Shown:
    if method == "POST":
        return browser.post(path_of(route))
    return browser.ask(path_of(route), method)


@pytest.mark.parametrize(
    ("route", "role"), list(itertools.product(ROUTES, ROLES)),
    ids=[f"{route.path} {role}" for route, role in itertools.product(ROUTES, ROLES)])
def test_routes_by_roles(browsers: dict[str, Browser], route: Route, role: str) -> None:
    """Whoever may not is sent to log in, or refused; whoever may gets an answer of the page."""
    if route.path == "/logout" and role != ANYBODY:
        return  # it would log out for the others; test_console_login does it
    browser = browsers[role]
    for method in METHODS:
        shown = ask(browser, route, method)
        allowed = "GET" if method == "HEAD" else method
        if allowed not in route.methods:
            assert shown.status == 405, method
            assert set(shown.headers["allow"].split(", ")) == set(route.allowed)
        elif ROLES.index(role) >= ROLES.index(route.role):
            assert shown.status in (200, 303, 400, 403, 404), (method, shown.status)
            assert "This page is for administrators" not in shown.text
        elif role == ANYBODY:
            assert (shown.status, shown.where) == (303, "/login"), method
        else:
            assert shown.status == 403, method
            assert method == "HEAD" or "This page is for administrators" in shown.text
        if method == "HEAD":
            assert shown.content == b""


@pytest.mark.parametrize("route", [route for route in ROUTES if "POST" in route.methods],
                         ids=lambda route: route.path)
def test_nothing_is_done_without_the_token_of_a_form(
        browsers: dict[str, Browser], route: Route) -> None:
    role = ADMINISTRATOR if route.role != ANYBODY else ANYBODY
    browser, others = browsers[role], browsers[USER].token
    for token in ("", "0" * 64, others, "ü"):
        shown = browser.post(path_of(route), token=token)
        assert shown.status == 403
        assert "This form is too old" in shown.text


@pytest.mark.parametrize("site", ["cross-site", "same-site", "nonsense"])
def test_another_site_cannot_make_a_browser_do_anything(
        browsers: dict[str, Browser], site: str) -> None:
    shown = browsers[ADMINISTRATOR].post("/queue", {"action": "drop", "which": "all"},
                                         Sec_Fetch_Site=site)
    assert (shown.status, "Another site" in shown.text) == (403, True)


def test_what_holds_for_every_answer(browsers: dict[str, Browser]) -> None:
    browser = browsers[ADMINISTRATOR]
    for path in ("/login", "/overview", "/mailbox", "/send", "/queue", "/accounts", "/account",
                 "/configuration", "/trace", "/deleted", "/aliases", "/domains",
                 "/domains/example.org", "/nowhere", "/static/console.css", "/mailbox/x/html", "/"):
        headers = browser.ask(path).headers
        policy = dict(each.split(maxsplit=1) for each in
                      headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-frame-options"] == "DENY"
        assert "server" not in headers
        if not path.startswith("/static"):
            assert headers["cache-control"] == "no-store"


def test_no_page_has_a_script_or_style_of_its_own(
        browsers: dict[str, Browser]) -> None:
    browser = browsers[ADMINISTRATOR]
    for path in ("/login", "/overview", "/mailbox", "/send", "/queue", "/accounts", "/account",
                 "/configuration", "/trace", "/deleted", "/aliases", "/domains",
                 "/domains/example.org", f"/accounts/{BOB}", f"/accounts/{BOB}/remove"):
        content = browser.ask(path).content.decode()
        assert browser.ask(path).status in (200, 303)
        assert not re.search(r"\son\w+=|\sstyle=|<style|javascript:", content), path
        assert all("src=" in tag for tag in re.findall("<script[^>]*>", content)), path


def test_a_user_reaches_nothing_of_another(service: Service, browsers: dict[str, Browser]) -> None:
    submit(service, b"Subject: for Alice alone\r\n\r\nHello.\r\n", (ALICE,))
    found = re.search(r'href="/mailbox/([^"]+)"', browsers[ADMINISTRATOR].ask("/mailbox").text)
    assert found
    id = found[1]
    assert "for Alice alone" in browsers[ADMINISTRATOR].ask(f"/mailbox/{id}").text
    for rest in ("", "/html", "/source", "/download", "/part/0", "/delete"):
        assert browsers[USER].ask(f"/mailbox/{id}{rest}").status == 404, rest
    assert browsers[USER].post(f"/mailbox/{id}/delete").status == 404
    assert browsers[ADMINISTRATOR].ask(f"/mailbox/{id}").status == 200
    # Nor does an administrator read what is somebody else's.
    submit(service, b"Subject: for Bob alone\r\n\r\nHello.\r\n", (BOB,))
    assert "for Bob alone" not in browsers[ADMINISTRATOR].ask("/mailbox").text


@pytest.mark.parametrize("path", [
    "/../etc/passwd", "/static/../limits.py", "/static/..%2flimits.py", "/static/%2e%2e/x",
    "/mailbox/..%2f..%2fx", "/mailbox/%00", "/mailbox/%ff%fe", "//login", "/mailbox//html",
    "/queue/..%2f..%2fstate.sqlite", "/queue/%00", "/accounts/%ff@x", "/%", "/mailbox?page=-1",
    "/accounts?page=" + "9" * 50, "/mailbox?page=%C3%BC", "/configuration?q=%00%ff",
    "/queue?filter=%00", "/trace?q=%00", "/trace?q=" + "9" * 5000, "/deleted?page=-1",
    "/domains/%00", "/domains/..%2f..%2fx", "/domains/example.org?address=%00",
    "/aliases?change=%00", "/aliases?change=@", "/aliases?page=0",
    "/queue?filter=age%3E" + "9" * 40, "/" + "a" * 8000, "/mailbox?" + "a=1&" * 1000,
])
def test_odd_paths_get_an_answer(browsers: dict[str, Browser], path: str) -> None:
    assert browsers[ADMINISTRATOR].ask(path).status in (200, 400, 404), path


def test_routes_are_found() -> None:
    assert find("/mailbox/a%2Fb/part/7")[1] == {"id": "a/b", "number": "7"}  # type: ignore[index]
    assert find("/mailbox/") is None
    assert find("mailbox") is None
    assert len({route.path for route in ROUTES}) == len(ROUTES)


# ---- connections ----


def kept_alive(service: Service) -> socket.socket:
    """A connection that has had an answer, and waits for another request."""
    client = socket.create_connection(service.listeners["console"], PATIENCE)
    client.sendall(b"GET /login HTTP/1.1\r\nHost: x\r\n\r\n")
    page = b""
    while b"</html>" not in page:
        page += client.recv(65_536)
    return client


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_waits_for_no_browser(tmp_path: Path, workers: int) -> None:
    with serving(tmp_path, workers=workers) as service, kept_alive(service), kept_alive(service):
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < 10


def test_there_are_only_so_many_browsers(tmp_path: Path) -> None:
    with serving(tmp_path, "--set", "console.connections_per_address=3", workers=1) as service:
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(kept_alive(service))
            with contextlib.suppress(ConnectionError):
                fourth = stack.enter_context(
                    socket.create_connection(service.listeners["console"], PATIENCE))
                fourth.sendall(b"GET /login HTTP/1.1\r\nHost: x\r\n\r\n")
                assert fourth.recv(100) == b""
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(ConnectionError, HTTPException):
                assert Browser(service).ask("/login").status == 200
                break
            assert time.monotonic() < deadline, "there is room again when they have left"


def test_what_is_sent_without_end_is_cut_off(service: Service) -> None:
    with socket.create_connection(service.listeners["console"], PATIENCE) as client:
        client.sendall(b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 1 << 30:
                client.sendall(bytes(1 << 20))
                sent += 1 << 20
        assert sent < 1 << 30


def test_a_browser_that_leaves_does_no_harm(service: Service, browsers: dict[str, Browser]) -> None:
    browser = browsers[ADMINISTRATOR]
    for path in ("/overview", "/configuration", "/mailbox"):
        with socket.create_connection(browser.address, PATIENCE) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall((f"GET {path} HTTP/1.1\r\nHost: x\r\n"
                            f"Cookie: mailsvc={browser.cookies['mailsvc']}\r\n\r\n").encode())
    body, kind = multipart({"token": browser.token, "from": ALICE, "to": BOB, "subject": "left"})
    fetch(service, BOB)
    with socket.create_connection(browser.address, PATIENCE) as client:
        client.sendall((f"POST /send HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
                        f"Cookie: mailsvc={browser.cookies['mailsvc']}\r\n"
                        f"Content-Length: {len(body)}\r\n\r\n").encode() + body)
        client.recv(10)
    deadline = time.monotonic() + PATIENCE
    while not fetch(service, BOB):
        assert time.monotonic() < deadline, "what was begun is sent"
    log = service.log.read_text()
    assert "Traceback" not in log
    assert "Unhandled" not in log


def test_a_directory_that_cannot_be_read_is_told_as_that(tmp_path: Path) -> None:
    with serving(tmp_path, workers=1) as service:
        browser = Browser(service).log_in(ALICE)
        for table in ("password", "mailbox"):
            with contextlib.closing(sqlite3.connect(service.directory / "accounts.sqlite")) as db:
                db.execute(f"ALTER TABLE {table} RENAME TO gone_{table}")
        shown = browser.ask("/mailbox")
        assert (shown.status, "cannot be read now" in shown.text) == (503, True)
        assert "Traceback" not in service.log.read_text()
        with contextlib.closing(sqlite3.connect(service.directory / "accounts.sqlite")) as db:
            db.execute("ALTER TABLE gone_mailbox RENAME TO mailbox")
            db.execute("ALTER TABLE gone_password RENAME TO password")
        assert browser.ask("/mailbox").status == 200
