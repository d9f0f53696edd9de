"""Every page of the console in turn, with something on each of them, for tests in Chromium."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By

from tests.chromium import Chromium
from tests.command_line import CommandLine
from tests.console import ALICE, BOB, serving
from tests.nameserver import NameServer
from tests.service import Service, fetch, submit

#: Every page that there is without a message that was chosen.
PAGES = ("overview", "mailbox", "deleted", "send", "trace", "queue", "accounts", "account",
         "aliases", "domains", "domains/example.org", "configuration", "sessions",
         f"accounts/{BOB}", f"accounts/{BOB}/remove", f"trace?q={BOB}", "nowhere")

#: Show all that can be folded out.
UNFOLD = "document.querySelectorAll('details').forEach((each) => { each.open = true; })"


@contextlib.contextmanager
def furnished(path: Path) -> Iterator[Service]:
    """A service with an alias, mail, and mail that was deleted."""
    # Mail for other hosts waits: nobody answers there.
    with NameServer({"example.org": ["MX 10 mx.example.org"]}) as names, serving(
            path, "--set", 'relay.smarthost="smtp://127.0.0.1:9"',
            "--set", "maildir.keep_deleted_days=3",
            "--set", f'relay.dns=["{names.address}"]') as running:
        CommandLine(running.directory)("alias", "add", "sales@example.org", BOB, "x@example.net")
        submit(running, b"Subject: deleted\r\n\r\nx\r\n", (ALICE,))
        fetch(running, ALICE)
        submit(running, b"Subject: hello\r\nFrom: Bob <bob@example.net>\r\nContent-Type: text/html"
               b"\r\n\r\n<p>Hi</p>\r\n", (ALICE, BOB))
        yield running


def furnished_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The same, made a fixture of a module by the tests that need it."""
    with furnished(tmp_path_factory.mktemp("console")) as running:
        yield running


def send(chromium: Chromium) -> None:
    chromium.open("send")
    chromium.fill(to=f"{BOB}, nobody@example.org, x@example.net", subject="x" * 200)
    chromium.press("main button.main")
    chromium.until(lambda: chromium.driver.find_elements(By.ID, "swaks"))


def every_page(chromium: Chromium) -> Iterator[str]:
    """Open each page in turn; the name of it."""
    chromium.log_out()
    chromium.open("login")
    yield "login"
    chromium.log_in()
    send(chromium)
    yield "sent"
    for page in PAGES:
        chromium.open(page)
        yield page
    for start, selector, page in (
            ("mailbox", ".messages a", "message"), ("queue", "tbody a", "queued"),
            ("aliases", "tbody a.button", "change an alias")):
        chromium.open(start)
        chromium.press(selector)
        yield page
    chromium.open("domains/example.org")
    chromium.press("form[action$='/check'] button")
    chromium.until(lambda: chromium.driver.find_elements(By.CSS_SELECTOR, ".actions .button")
                   and chromium.driver.find_elements(By.CSS_SELECTOR, "footer"))
    yield "checked"
