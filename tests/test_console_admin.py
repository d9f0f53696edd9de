"""The pages for administrators: queue, accounts, overview and configuration."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator

import pytest

from mailsvc import figures
from mailsvc.config import KEYS
from mailsvc.console.configuration import without_secrets
from mailsvc.console.graphs import HEIGHT, WIDTH, Graph
from mailsvc.console.pages import duration, octets
from mailsvc.figures import Figures, Share
from mailsvc.history import CURVES, ROWS, History
from tests.command_line import CommandLine
from tests.console import ALICE, BOB, PASSWORD, Browser, Shown, serving
from tests.service import PATIENCE, Service, login, submit


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # A smarthost that nobody answers at: what is sent waits.
        port = listener.getsockname()[1]
        listener.close()
        with serving(tmp_path_factory.mktemp("console"), "--set",
                     f'relay.smarthost="smtp://user:hunter2x@127.0.0.1:{port}"') as running:
            yield running


@pytest.fixture
def browser(service: Service) -> Browser:
    return Browser(service).log_in(ALICE)


# ---- queue ----


def queue_up(browser: Browser, *recipients: str) -> None:
    shown = browser.upload("/send", {"from": ALICE, "to": ",".join(recipients),
                                     "subject": "to the queue", "body": "<b>x</b>"})
    assert "accepted" in shown.text


def ids(shown: Shown) -> list[str]:
    return re.findall(r'<a href="/queue/([0-9A-Z]{16})">', shown.content.decode())


def test_the_queue_is_shown_filtered_and_acted_on(service: Service, browser: Browser) -> None:
    assert "Nothing waits" in browser.ask("/queue").text
    queue_up(browser, "one@example.net")
    queue_up(browser, "two@example.com")
    deadline = time.monotonic() + PATIENCE
    while browser.ask("/queue?filter=status:deferred").text.count("/queue/1") < 2:
        assert time.monotonic() < deadline, browser.ask("/queue").text
    assert len(ids(browser.ask("/queue"))) == 2
    (one,) = ids(browser.ask("/queue?filter=to:@example.net"))
    assert "No message in the queue is meant" in browser.ask("/queue?filter=age%3E9d").text
    shown = browser.ask("/queue?filter=nonsense:x")
    assert (shown.status, "means nothing; expected to:" in shown.text) == (400, True)

    page = browser.ask(f"/queue/{one}")
    assert "one@example.net" in page.text
    assert "&lt;b&gt;x&lt;/b&gt;" in page.content.decode()
    assert "hunter2x" not in page.text
    assert browser.ask("/queue/1K16KWV2DBF00EP5").status == 404

    shown = browser.post("/queue", {"action": "hold", "id": [one], "filter": ""})
    assert "Held: 1 message." in shown.text
    assert ids(browser.ask("/queue?filter=status:held")) == [one]
    shown = browser.post("/queue", {"action": "retry", "which": "all",
                                    "filter": "to:@example.com"})
    assert "Tried now: 1 message." in shown.text or "Being sent at this moment" in shown.text
    assert "Released: 1 message." in browser.post("/queue", {
        "action": "release", "which": "all", "filter": "status:held"}).text
    for fields, problem in (
            ({"action": "hold"}, "Tick the messages"), ({"action": "burn", "id": [one]}, "Choose"),
            ({"action": "reroute", "id": [one]}, "by which host"),
            ({"action": "reroute", "id": [one], "route": "a b c"}, "expected"),
            ({"action": "hold", "which": "all", "filter": "what:x"}, "means nothing"),
            ({"action": "drop", "id": ["x y:z"]}, "means nothing")):
        shown = browser.post("/queue", fields)  # type: ignore[arg-type]
        assert (shown.status, problem in shown.text) == (400, True), (fields, shown.text)
    deadline = time.monotonic() + PATIENCE
    while ids(browser.ask("/queue")):
        browser.post("/queue", {"action": "drop", "which": "all", "filter": ""})
        assert time.monotonic() < deadline
    assert CommandLine(service.directory).json("queue", "list") == []
    assert "queue drop messages=" in service.log.read_text()


# ---- accounts ----


def test_an_account_is_made_changed_and_removed(service: Service, browser: Browser) -> None:
    name = "carol+x&y@example.org"
    path = "/accounts/carol%2Bx%26y%40example.org"
    new = {"name": name, "password": "päss", "role": "both", "octets": "2M", "messages": "7"}
    shown = browser.post("/accounts", new)
    assert shown.where == f"{path}?notice=account-added"
    assert "The account was made" in browser.ask(shown.where).text
    service.passwords[name] = "päss"
    login(service, name).close()
    mailsvc = CommandLine(service.directory)
    described = mailsvc.json("account", "show", name)
    assert (described["quota_octets"], described["quota_messages"],
            described["administrator"]) == (2 << 20, 7, False)

    for odd, problem in (
            ({"name": name}, "exists already"), ({"name": "x"}, ""), ({"name": "x@nowhere"}, "not"),
            ({"name": "d@example.org", "password": ""}, "empty"),
            ({"name": "d@example.org", "octets": "much"}, "A size such as"),
            ({"name": "d@example.org", "messages": "-1"}, "A number of messages"),
            ({"name": "d@example.org", "role": "king"}, "no role"),
            ({"name": "../x@example.org"}, "")):
        shown = browser.post("/accounts", {**new, **odd})
        assert (shown.status, problem in shown.text) == (400, True), (odd, shown.text)
        assert "päss" not in shown.text

    shown = browser.post(path, {"role": "send", "octets": "", "messages": "",
                                "administrator": "on"})
    assert shown.where == f"{path}?notice=account-changed"
    described = mailsvc.json("account", "show", name)
    assert (described["role"], described["quota_octets"], described["administrator"]) == (
        "send", 0, True)
    other = Browser(service).log_in(name, "päss")
    assert other.ask("/queue").status == 200
    browser.post(path, {"role": "send"})
    assert other.ask("/queue").status == 403, "at once"

    assert browser.post(f"{path}/password", {"password": "new one"}).status == 303
    assert other.ask("/account").status == 303, "the session ended with the password"
    Browser(service).log_in(name, "new one")
    assert "Remove carol" in browser.ask(f"{path}/remove").text
    assert browser.post(f"{path}/remove").where == "/accounts?notice=account-removed"
    assert browser.ask(path).status == 404
    assert name not in browser.ask("/accounts").text


def test_nobody_saws_off_the_branch_that_they_sit_on(browser: Browser) -> None:
    for path, fields in (("", {"role": "both"}), ("/remove", {}), ("/password", {"password": "x"})):
        assert browser.post(f"/accounts/{ALICE}{path}", fields).status == 400, path
    assert browser.ask("/queue").status == 200


def test_what_is_used_is_not_removed(service: Service, browser: Browser) -> None:
    CommandLine(service.directory)("alias", "add", "robert@example.org", BOB)
    assert "robert@example.org" in browser.ask(f"/accounts/{BOB}").text
    shown = browser.post(f"/accounts/{BOB}/remove")
    assert (shown.status, "robert@example.org" in shown.text) == (400, True)
    assert browser.ask(f"/accounts/{BOB}").status == 200


def test_accounts_are_looked_for(browser: Browser) -> None:
    shown = browser.ask("/accounts?q=BOB")
    assert BOB in shown.text
    assert f"/accounts/{ALICE.replace('@', '%40')}" not in shown.content.decode()
    assert "There is no such account" in browser.ask("/accounts?q=zzz").text
    assert browser.ask("/accounts/nobody@example.org").status == 404


# ---- overview and configuration ----


def test_the_overview_tells_what_the_service_does(service: Service, browser: Browser) -> None:
    submit(service, b"Subject: counted\r\n\r\nx\r\n", (BOB,))
    shown = browser.ask("/overview")
    assert '<span class="good">ready</span>' in shown.text
    accepted = re.search(r"<dt>Messages accepted</dt><dd>(\d+)</dd>", shown.text)
    assert accepted
    assert int(accepted[1]) >= 1
    host, port = service.smtp
    assert f"{host}:{port}" in shown.text
    assert "2 workers" in shown.text
    assert "self-signed" in shown.text


def test_every_key_is_shown_with_its_reason_and_no_secret(service: Service,
                                                          browser: Browser) -> None:
    shown = browser.ask("/configuration")
    for key in KEYS.values():
        assert f"<code>{key.name} = " in shown.text, key
    assert "smtp://user:…@127.0.0.1" in shown.text
    assert "hunter2x" not in shown.text
    shown = browser.ask("/configuration?q=smarthost")
    assert "[relay]" in shown.text
    assert "[smtp]" not in shown.text
    shown = browser.ask("/configuration?changed=on")
    assert "smarthost" in shown.text
    assert "command_seconds" not in shown.text
    assert "No key is like that" in browser.ask("/configuration?q=zzzz").text


@pytest.mark.parametrize(("value", "shown"), [
    ("smtps://u:p@h:465", "smtps://u:…@h:465"), ("smtp://u:p@ss@h", "smtp://u:…@h"),
    ("mx", "mx"), ("https://x/y", "https://x/y"), ("smtp://u@h", "smtp://u@h"), (7, 7),
    ({"a": "smtp://u:p@h", "b": ["smtp://u:p@h"]}, {"a": "smtp://u:…@h", "b": ["smtp://u:…@h"]}),
])
def test_secrets_are_masked(value: object, shown: object) -> None:
    assert without_secrets(value) == shown


def test_the_last_minutes_are_kept() -> None:
    memory, times = Figures(2), iter(range(1000, 100_000, 10))
    accepted = [Share(memory, row).count(figures.ACCEPTED, "smtp") for row in (0, 1)]
    open_now = Share(memory, 0).level(figures.CONNECTIONS, "pop3")
    failed = Share(memory, 1).count(figures.LOGINS, "console", "FORM", "failed")
    succeeded = Share(memory, 1).count(figures.LOGINS, "console", "FORM", "succeeded")
    accepted[0].add(5)
    history = History(memory, None, lambda: next(times))
    history.take()
    assert history.described()["curves"]["accepted"] == [], "what was before is not of now"
    accepted[0].add(2)
    accepted[1].add(1)
    open_now.set(4)
    failed.add(3)
    succeeded.add(9)
    history.take()
    open_now.set(1)
    history.take()
    told = history.described()
    assert told["curves"]["accepted"] == [3, 0]
    assert told["curves"]["connections"] == [4, 1]
    assert told["curves"]["logins_failed"] == [3, 0]
    assert told["taken"] == 1020
    for _ in range(ROWS + 5):
        history.take()
    assert {len(history.described()["curves"][curve.name]) for curve in CURVES} == {ROWS}


@pytest.mark.parametrize("values", [[], [0], [0, 0], [1, 2, 3], [5, 0, 5], [0.5] * 90, [1e12, 0]])
def test_a_graph_stays_in_its_box(values: list[float]) -> None:
    graph = Graph.of(values)
    assert (graph.line == "") == (len(values) < 2)
    assert graph.most == max(values, default=0)
    for x, y in re.findall(r"([-\d.]+),([-\d.]+)", graph.line + graph.area):
        assert 0 <= float(x) <= WIDTH
        assert 0 <= float(y) <= HEIGHT


def test_numbers_for_people() -> None:
    assert [octets(value) for value in (0, 1023, 1024, 5 << 20, 3 << 30, 2 << 40)] == [
        "0 B", "1023 B", "1 KiB", "5 MiB", "3 GiB", "2 TiB"]
    assert [duration(value) for value in (0, 119, 120, 7200, 172_800, -90)] == [
        "0 s", "119 s", "2 min", "2 h", "2 d", "−90 s"]


def test_nothing_of_the_pages_names_a_password(service: Service) -> None:
    log = service.log.read_text()
    assert PASSWORD not in log
    assert "päss" not in log
