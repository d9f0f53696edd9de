"""mailsvc.console.deleted: mail that was deleted, listed and put back from a page."""

from __future__ import annotations

import html
import re
import shutil
import time
from collections.abc import Iterator

import pytest

from mailsvc.console import deleted
from tests.command_line import CommandLine
from tests.console import ACCOUNTS, ALICE, BOB, PASSWORD, Browser, Shown, serving
from tests.service import PATIENCE, Service, fetch, login, submit
from tests.test_console_mailbox import ids, message, subjects

SENDS = "sends@example.org"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("console"), "--set", "maildir.keep_deleted_days=3",
                 accounts=(*ACCOUNTS, f"{SENDS}:{PASSWORD}")) as running:
        CommandLine(running.directory)("account", "role", SENDS, "send")
        yield running


@pytest.fixture
def browser(service: Service) -> Iterator[Browser]:
    """Alice's, with an empty mailbox, and nothing that was deleted."""
    def clear() -> None:
        fetch(service, ALICE)
        shutil.rmtree(service.maildir(ALICE) / "deleted", ignore_errors=True)

    clear()
    yield Browser(service).log_in(ALICE)
    clear()


def offered(shown: Shown) -> dict[str, str]:
    """The unique-ids of what can be had back, by the subjects."""
    found = re.findall(r'name="id" value="([^"]+)" aria-label="([^"]+)"', shown.content.decode())
    return {html.unescape(subject): id for id, subject in found}


def until(browser: Browser, *texts: str) -> Shown:
    deadline = time.monotonic() + PATIENCE
    while not all(text in (shown := browser.ask("/deleted")).text for text in texts):
        assert time.monotonic() < deadline, shown.text
        time.sleep(0.1)
    return shown


def test_what_was_deleted_is_listed_with_when_and_by_what_and_put_back(
        service: Service, browser: Browser) -> None:
    submit(service, message("by a mail program"), (ALICE,))
    (before,) = ids(browser.ask("/mailbox"))
    (original,) = fetch(service, ALICE)
    submit(service, message("in the console"), (ALICE,))
    (id,) = ids(browser.ask("/mailbox"))
    assert "for 3 days it can be restored" in browser.ask(f"/mailbox/{id}/delete").text
    browser.post(f"/mailbox/{id}/delete")
    assert 'href="/deleted"' in browser.ask("/mailbox").text

    shown = until(browser, "POP3 127.0.0.1", "console 127.0.0.1", "kept for 3 days")
    assert offered(shown) == {"by a mail program": before, "in the console": id}
    assert time.strftime("%Y-%m-%d") in shown.text
    assert BOB in shown.text, "whom it was from"

    shown = browser.post("/deleted", {"one": before, "id": id})
    assert shown.where == "/mailbox?notice=restored"
    assert subjects(browser.ask(shown.where)) == ["by a mail program"], "the one alone"
    assert ids(browser.ask("/mailbox")) == [before], "under the same name"
    assert fetch(service, ALICE, delete=False) == [original]
    assert browser.post("/deleted", {"id": [id, before]}).status == 303
    assert sorted(subjects(browser.ask("/mailbox"))) == ["by a mail program", "in the console"]
    assert "No deleted mail is kept." in browser.ask("/deleted").text
    shown = browser.post("/deleted", {"id": id})
    assert (shown.status, "back already" in shown.text) == (404, True)

    deadline = time.monotonic() + PATIENCE
    mine = browser.ask(f"/mailbox/{id}").content.decode()
    trace = re.search(r'href="(/trace\?q=[0-9A-Z]{16})"', mine)
    assert trace
    while "in the console" not in (page := browser.ask(trace[1]).text) or (
            '<span class="phase good">restored</span>' not in page):
        assert time.monotonic() < deadline, page
        time.sleep(0.1)


def test_nothing_is_put_back_while_a_mail_program_fetches(service: Service,
                                                          browser: Browser) -> None:
    submit(service, message("wanted back"), (ALICE,))
    fetch(service, ALICE)
    (id,) = offered(browser.ask("/deleted")).values()
    with login(service, ALICE) as pop3:
        shown = browser.post("/deleted", {"id": id})
        assert (shown.status, "nothing can be restored" in shown.text) == (409, True)
        pop3.ask(b"QUIT")
    assert browser.post("/deleted", {"id": id}).status == 303


def test_nobody_gets_what_another_deleted(service: Service, browser: Browser) -> None:
    submit(service, message("Alice's own"), (ALICE,))
    fetch(service, ALICE)
    (id,) = offered(browser.ask("/deleted")).values()
    bob = Browser(service).log_in(BOB)
    assert offered(bob.ask("/deleted")) == {}
    assert bob.post("/deleted", {"id": id}).status == 404
    assert "Alice's own" in offered(browser.ask("/deleted"))
    for wrong in ("../../bob/deleted", "", "x", "\0"):
        assert browser.post("/deleted", {"id": wrong}).status == 404
    shown = browser.post("/deleted")
    assert (shown.status, "Tick the messages" in shown.text) == (400, True)


def test_who_only_sends_has_none(service: Service) -> None:
    browser = Browser(service).log_in(SENDS)
    assert browser.ask("/deleted").status == 403
    assert browser.post("/deleted", {"id": "x"}).status == 403


def test_pages_of_it(service: Service, browser: Browser) -> None:
    for number in range(deleted.PAGE + 2):
        submit(service, message(f"number {number}"), (ALICE,))
    fetch(service, ALICE)
    first, second = browser.ask("/deleted"), browser.ask("/deleted?page=2")
    assert (len(offered(first)), len(offered(second))) == (deleted.PAGE, 2)
    assert not set(offered(first)) & set(offered(second))
    assert 'rel="next"' in first.text
    assert 'rel="next"' not in second.text
    assert offered(browser.ask("/deleted?page=99")) == offered(second)


def test_where_nothing_is_kept_the_page_says_so(
        tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("console"), workers=1) as service:
        browser = Browser(service).log_in(ALICE)
        submit(service, message("gone"), (ALICE,))
        assert 'href="/deleted"' not in browser.ask("/mailbox").text
        (id,) = ids(browser.ask("/mailbox"))
        assert "gone for good" in browser.ask(f"/mailbox/{id}/delete").text
        browser.post(f"/mailbox/{id}/delete")
        shown = browser.ask("/deleted")
        assert "maildir.keep_deleted_days of the configuration is 0" in shown.text
        assert "No deleted mail is kept." in shown.text
