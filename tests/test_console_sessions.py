"""mailsvc.console.live: the connections there are, and what is said on them, in a browser."""

from __future__ import annotations

import socket
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from twisted.internet.task import Clock

from mailsvc.console import live, texts
from tests.chromium import Chromium, browsing
from tests.conftest import absent
from tests.console import ALICE, BOB, PASSWORD, Browser, serving
from tests.service import PATIENCE, Dialogue, Service, fetch, login, submit
from tests.test_console_axe import AXE, by_axe

MESSAGE = b"Subject: hello\r\n\r\nwhat only Bob may read\r\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("console")) as running:
        yield running


@pytest.fixture(scope="module")
def administrator(service: Service) -> Browser:
    return Browser(service).log_in()


@pytest.fixture(scope="module")
def chromium(service: Service, program: Callable[[str], str],
             tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    profile = tmp_path_factory.mktemp("profile")
    with browsing(service, program, profile, waits=False) as running:
        yield running


def test_the_connections_and_a_filter(service: Service, administrator: Browser) -> None:
    assert "Nobody is connected now." in administrator.ask("/sessions").text
    with login(service, BOB), Dialogue(service.smtp) as smtp:
        smtp.reply()
        page = administrator.ask("/sessions").text
        assert BOB in page and "transaction" in page and "start" in page
        page = administrator.ask("/sessions?filter=BOB").text
        assert "transaction" in page and ">start<" not in page
        assert "No such connection" in administrator.ask("/sessions?filter=192.0.2.7").text


@pytest.mark.parametrize(("fields", "problem"), [
    ({}, "Say whose connections"),
    ({"by": "colour", "value": "red", "minutes": "1"}, "Say whose connections"),
    ({"by": "address", "value": "red", "minutes": "1"}, "is no IP address"),
    ({"by": "address", "value": "192.0.2.7", "minutes": "61"}, "Between 1 and 60"),
    ({"by": "address", "value": "192.0.2.7", "minutes": "x"}, "Between 1 and 60"),
    ({"by": "account", "value": BOB, "minutes": "1", "protocol": "imap"}, "is no protocol here"),
], ids=["nothing", "by colour", "no address", "too long", "no number", "IMAP"])
def test_what_cannot_be_watched(administrator: Browser, fields: dict[str, str],
                                problem: str) -> None:
    shown = administrator.post("/sessions/watch", fields)
    assert shown.status == 400 and problem in shown.text


def test_who_leaves_watches_no_more(service: Service, administrator: Browser) -> None:
    connection = socket.create_connection(administrator.address, PATIENCE)
    body = urllib.parse.urlencode({
        "token": administrator.token, "by": "address", "value": "127.0.0.1", "minutes": "1",
        "protocol": ""}).encode()
    connection.sendall(
        b"POST /sessions/watch HTTP/1.1\r\nHost: here\r\nCookie: mailsvc="
        + administrator.cookies["mailsvc"].encode()
        + b"\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: "
        + str(len(body)).encode() + b"\r\n\r\n" + body)
    until_logged(service, f"by={ALICE} address=127.0.0.1", 2)  # by two workers
    assert connection.recv(15) == b"HTTP/1.1 200 OK"
    connection.close()
    # Seen when something is said, or by itself.
    submit(service, MESSAGE, (BOB,))
    until_logged(service, f"watched no more by={ALICE}", 2)
    assert len(fetch(service, BOB)) == 1


def until_logged(service: Service, words: str, times: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while service.log.read_text().count(words) < times:
        assert time.monotonic() < deadline, words
        time.sleep(0.05)


class Reader:
    """A browser's part of a watch: it takes what is written, or not."""

    def __init__(self, path: Path) -> None:
        backend = SimpleNamespace(data=path, reactor=Clock())
        call: Any = SimpleNamespace(backend=backend, user=SimpleNamespace(name=ALICE),
                                    translate=texts.translator("en"))
        self.watched = live._Watched(call, {"address": "192.0.2.7"}, 60)
        self.watched._follower.over.addCallback(self.watched._over)
        self.tell = self.watched._heard

    @property
    def lines(self) -> list[str]:
        """What was written since this was asked last; "." at the end."""
        pending, self.watched._pieces.pending[:] = list(self.watched._pieces.pending), []
        return ["." if page is None else str(page.values["line"]) for page in pending]


def said(number: int) -> dict[str, Any]:
    return {"at": 0.0, "id": "ID", "mark": "C", "line": f"NOOP {number}"}


def test_what_a_browser_does_not_take_is_left_out(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    reader.tell({"watching": 1})
    reader.tell(said(1))
    assert reader.lines == ["NOOP 1"]
    reader.watched.pauseProducing()
    for number in range(1000):
        reader.tell(said(number))
    assert reader.lines == []
    reader.watched.resumeProducing()
    reader.tell(said(2))
    assert reader.lines == ["1000 lines left out: they came faster than they were taken.",
                            "NOOP 2"]
    reader.watched.stopProducing()
    reader.watched.stopProducing()
    assert reader.lines == ["left", "."]


def test_a_page_does_not_grow_for_ever(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    for number in range(live._LINES):
        reader.tell(said(number))
    assert reader.lines[-2:] == [live.ENDINGS["enough"], "."]


def begin(chromium: Chromium, by: str, value: str) -> None:
    """Watch; the page is there when its first part is."""
    chromium.open(f"sessions?by={by}&value={value}")
    chromium.until(lambda: chromium.driver.find_elements(By.CSS_SELECTOR, "#watch button.main"))
    chromium.press("#watch button.main")
    chromium.until(lambda: chromium.driver.find_elements(By.CSS_SELECTOR, "div.dialogue"))


def log_in(chromium: Chromium) -> None:
    chromium.driver.delete_all_cookies()
    chromium.open("login")
    chromium.until(lambda: chromium.driver.find_elements(By.CSS_SELECTOR, "#password"))
    chromium.fill(name=ALICE, password=PASSWORD)
    chromium.press("main button")
    chromium.until_text("Messages accepted")


def test_lines_appear_in_the_browser_as_they_are_said(
        service: Service, chromium: Chromium) -> None:
    if not AXE.exists():
        absent("axe-core is not installed; make axe does it")
    log_in(chromium)
    watches = service.log.read_text().count("sessions are watched")
    begin(chromium, "account", BOB)
    chromium.until(lambda: service.log.read_text().count("sessions are watched") >= watches + 2)
    submit(service, MESSAGE, (BOB,))
    with login(service, BOB) as pop3:
        pop3.ask(b"RETR 1")
        list(pop3.multiline())
        chromium.until_text("octets of a message")
        text = chromium.text
        assert f"{BOB} logs in" in text and "RETR 1" in text
        assert PASSWORD not in text and "only Bob may read" not in text
        assert by_axe(chromium.driver, AXE.read_text()) == []
        chromium.like(width=390, scheme="dark")
        assert by_axe(chromium.driver, AXE.read_text()) == []
        chromium.like()
    chromium.until_text("closed")
    chromium.press(".heading a.button")
    chromium.until_text("Refresh every five seconds")
    assert chromium.complaints() == []


def test_the_list_refreshes_and_one_is_ended(service: Service, chromium: Chromium) -> None:
    log_in(chromium)
    chromium.open("sessions")
    chromium.until_text("Nobody is connected now.")
    with login(service, BOB) as pop3:
        chromium.until_text("transaction")
        chromium.press("#now td button")
        chromium.driver.switch_to.alert.accept()
        assert pop3.line().startswith(b"-ERR [SYS/TEMP]")
    chromium.until_text("The connection is being ended.")
