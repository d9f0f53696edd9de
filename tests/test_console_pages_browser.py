"""Traces, deleted mail, aliases, domains and the live dialogue, from end to end in Chromium."""

from __future__ import annotations

import email
import email.policy
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.chromium import Chromium, browsing
from tests.command_line import CommandLine
from tests.console import ALICE, BOB, serving
from tests.daemons import Postfix, gid, own, uid
from tests.nameserver import NameServer
from tests.service import PATIENCE, Service, fetch, submit

EVERY_OCTET = bytes(range(256)) * 300 + b"\r\n.\r\n\n\r\0\xff"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with NameServer({"example.org": ["MX 10 mx.example.org"]}) as names, serving(
            tmp_path_factory.mktemp("console"), "--set",
            'relay.smarthost="smtp://127.0.0.1:9"', "--set", "maildir.keep_deleted_days=3",
            "--set", f'relay.dns=["{names.address}"]') as running:
        yield running


@pytest.fixture(scope="module")
def chromium(service: Service, program: Callable[[str], str],
             tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with browsing(service, program, tmp_path_factory.mktemp("profile")) as running:
        yield running


def until_known(chromium: Chromium, path: str, text: str) -> None:
    """Open *path* until *text* is there: what is logged is kept within a second or so."""
    chromium.until(lambda: chromium.open(path) or text in chromium.driver.page_source)  # type: ignore[func-returns-value]


# ---- sending ----


def test_each_line_appears_as_it_is_said(chromium: Chromium) -> None:
    """A server that takes its time: the page shows what it has said, and waits for the rest."""
    go_on = threading.Event()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as file:
            for reply, wait in ((b"220 slow", False), (b"250 slow", True), (b"250 2.1.0 Ok", False),
                                (b"550 5.1.1 No such person", False), (b"221 2.0.0 Bye", False)):
                if wait:
                    go_on.wait(PATIENCE)
                connection.sendall(reply + b"\r\n")
                if not file.readline():
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        chromium.log_in().open("send")
        chromium.fill(server=f"127.0.0.1:{listener.getsockname()[1]}", to="x@example.net")
        chromium.find("#tls option[value=no]").click()
        # In a window beside this one: of one whose page has not come whole nothing can be asked.
        chromium.driver.execute_script(
            "window.beside = window.open('', 'beside');"
            "document.querySelector('main form').target = 'beside';"
            "document.querySelector('main button.main').click()")
        chromium.until(lambda: "EHLO" in so_far(chromium))
        shown = so_far(chromium)
        assert "220 slow" in shown
        assert "The server is there and ready." in shown
        assert "550" not in shown
        assert "Copy as" not in shown
        assert not go_on.is_set()
        go_on.set()
        chromium.until(lambda: "Copy as swaks" in so_far(chromium))
        thread.join(PATIENCE)
    shown = so_far(chromium)
    assert "There is no such mailbox: check the part before the @." in shown
    assert "x@example.net\trefused\t550 5.1.1 No such person" in shown
    chromium.driver.execute_script("window.beside.close()")


def so_far(chromium: Chromium) -> str:
    """What is on the page beside."""
    return str(chromium.driver.execute_script(
        "const body = window.beside.document.body; return body ? body.innerText : ''"))


def dialogue(chromium: Chromium) -> str:
    return str(chromium.driver.execute_script(
        "const log = document.querySelector('.dialogue'); return log ? log.textContent : ''"))


def send(chromium: Chromium, tmp_path: Path, *recipients: str, server: str = "") -> None:
    (tmp_path / "메모.bin").write_bytes(EVERY_OCTET)
    chromium.log_in().open("send")
    if server:
        chromium.fill(server=server)
    chromium.fill(to=", ".join(recipients), subject="회의 자료", body="Hello.\n.\n")
    chromium.find("#attachment").send_keys(str(tmp_path / "메모.bin"))
    chromium.press("main button.main")
    chromium.until(lambda: chromium.driver.find_elements(By.ID, "swaks"))


def outcomes(chromium: Chromium) -> dict[str, list[str]]:
    """Of each recipient: the outcome, and what was said with what it means."""
    return {row[0]: row[1:] for row in chromium.driver.execute_script(
        "return [...document.querySelectorAll('section tbody tr')].map("
        "(row) => [...row.cells].map((cell) => cell.textContent))")}


def attached(raw: bytes) -> tuple[str | None, object]:
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert message["Subject"] == "회의 자료"
    (part,) = message.iter_attachments()
    return part.get_filename(), part.get_payload(decode=True)


def test_an_attachment_arrives_octet_for_octet_here(service: Service, chromium: Chromium,
                                                    tmp_path: Path) -> None:
    fetch(service, BOB)
    send(chromium, tmp_path, BOB, "nobody@example.org")
    found = outcomes(chromium)
    assert found[BOB][0] == "accepted"
    assert found["nobody@example.org"][0] == "refused"
    assert "550 5.1.1" in found["nobody@example.org"][1]
    assert "There is no such mailbox" in found["nobody@example.org"][1]
    (raw,) = fetch(service, BOB)
    assert attached(raw) == ("메모.bin", EVERY_OCTET)
    id = chromium.find("section p a code").text
    until_known(chromium, f"trace?q={id}", "fetched")
    assert "no such mailbox" not in chromium.text
    assert "550 5.1.1" in chromium.text


def test_the_same_by_way_of_postfix(chromium: Chromium, program: Callable[[str], str],
                                    tmp_path: Path) -> None:
    """Another server's words are shown and explained, and it gets the same octets."""
    with Postfix(program, smtpd_relay_restrictions="reject_unauth_destination",
                 virtual_mailbox_domains="example.net",
                 virtual_mailbox_maps="inline:{{bob@example.net=box/}}",
                 virtual_minimum_uid="1", virtual_uid_maps=f"static:{uid()}",
                 virtual_gid_maps=f"static:{gid()}",
                 virtual_mailbox_base="{directory}/mail") as postfix:
        mail = postfix.directory / "mail"
        mail.mkdir()
        own(mail)
        send(chromium, tmp_path, "bob@example.net", "nobody@example.net", "x@elsewhere.example",
             server="{}:{}".format(*postfix.address))
        said = dialogue(chromium)
        assert "220 upstream.example.net ESMTP Postfix" in said
        assert "RCPT TO:<bob@example.net>" in said
        assert "AUTH" not in re.sub("250[- ].*", "", said)
        found = outcomes(chromium)
        assert found["bob@example.net"][0] == "accepted"
        assert "queued as" in found["bob@example.net"][1]
        assert found["nobody@example.net"][0] == "refused"
        assert "User unknown" in found["nobody@example.net"][1]
        assert "There is no such mailbox" in found["nobody@example.net"][1]
        assert found["x@elsewhere.example"][0] == "refused"
        assert "Relay access denied" in found["x@elsewhere.example"][1]
        assert "This is not allowed: relaying" in found["x@elsewhere.example"][1]
        assert not chromium.driver.find_elements(By.CSS_SELECTOR, "section a[href^='/trace']")
        postfix.until_sent(1)
        (delivered,) = (mail / "box" / "new").iterdir()
        assert attached(delivered.read_bytes()) == ("메모.bin", EVERY_OCTET)


# ---- traces, deleted mail ----


@pytest.mark.parametrize("width", [1280, 360])
def test_a_message_is_deleted_found_in_its_trace_and_put_back_by_keyboard(
        service: Service, chromium: Chromium, width: int) -> None:
    fetch(service, BOB)
    subject = f"by keyboard at {width}"
    submit(service, f"Subject: {subject}\r\n\r\nx\r\n".encode(), (BOB,))
    chromium.like(width=width)
    try:
        chromium.log_in(BOB).open("mailbox")
        chromium.find(".messages a").send_keys(Keys.ENTER)
        chromium.until(lambda: chromium.find("h1").text == subject)
        id = str(chromium.find("a[href^='/trace?q=']").get_attribute("href")).rpartition("=")[2]
        chromium.find("a[href$='/delete']").send_keys(Keys.ENTER)
        chromium.until_text("for 3 days it can be restored")
        chromium.find("main button.danger").send_keys(Keys.ENTER)
        chromium.until_text("The message was deleted.")
        until_known(chromium, f"trace?q={id}", "in the console")
        assert chromium.find(".steps li:last-child .phase").text == "deleted"
        assert chromium.find("details.story").get_attribute("open")
        chromium.open("mailbox")
        chromium.find("a[href='/deleted']").send_keys(Keys.ENTER)
        chromium.until_text("console 127.0.0.1")
        chromium.find(f"input[aria-label='{subject}']").send_keys(Keys.SPACE)
        chromium.find(".actions button.main").send_keys(Keys.ENTER)
        chromium.until_text("Back in the mailbox.")
        assert chromium.find(".messages .subject").text == subject
        until_known(chromium, f"trace?q={id}", "restored")
    finally:
        chromium.like()
    (raw,) = fetch(service, BOB)
    assert subject.encode() in raw


def test_a_search_is_made_by_keyboard(service: Service, chromium: Chromium) -> None:
    answer = submit(service, b"Subject: x\r\n\r\nx\r\n", (BOB,), "seeker@example.net").decode()
    id = answer.rpartition(" ")[2]
    until_known(chromium.log_in(), f"trace?q={id}", "seeker@example.net")
    chromium.open("trace")
    chromium.fill(q="seeker@example.net")
    chromium.find("#q").send_keys(Keys.ENTER)
    chromium.until(lambda: "q=seeker" in chromium.driver.current_url)
    chromium.until_text(f"into the mailbox of {BOB}")
    fetch(service, BOB)


# ---- aliases, domains ----


def test_an_alias_is_made_changed_and_removed(service: Service, chromium: Chromium) -> None:
    mailsvc = CommandLine(service.directory)
    chromium.log_in().press("a[href='/aliases']")
    chromium.press("summary")
    chromium.fill(name="sales@example.org", targets="nobody@example.org")
    chromium.press("details button.main")
    chromium.until_text("there is no account or alias nobody@example.org")
    chromium.fill(targets=f"{ALICE}\n{BOB}")
    chromium.press("details button.main")
    chromium.until_text("The alias was set.")
    assert mailsvc.json("alias", "list")[0]["targets"] == [ALICE, BOB]
    chromium.press("tbody a.button")
    chromium.fill(targets=BOB)
    chromium.press("details button.main")
    chromium.until(lambda: mailsvc.json("alias", "list")[0]["targets"] == [BOB])
    chromium.open("aliases")
    chromium.press("tbody button.danger")
    chromium.driver.switch_to.alert.dismiss()
    assert len(mailsvc.json("alias", "list")) == 1
    chromium.press("tbody button.danger")
    chromium.driver.switch_to.alert.accept()
    chromium.until_text("The alias was removed.")
    assert mailsvc.json("alias", "list") == []


def test_records_are_copied_and_looked_at(chromium: Chromium) -> None:
    chromium.driver.execute_cdp_cmd("Browser.grantPermissions", {
        "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]})
    chromium.log_in().press("a[href='/domains']")
    chromium.press("tbody a")
    chromium.fill(address="192.0.2.7")
    chromium.find("#address").send_keys(Keys.ENTER)
    chromium.until(lambda: "address=192.0.2.7" in chromium.driver.current_url)
    buttons = chromium.driver.find_elements(By.CSS_SELECTOR, ".record button")
    assert len(buttons) >= 12
    for button in buttons[:6]:
        chromium.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()
        chromium.until(lambda button=button: button.get_attribute("data-done") == "✓")  # type: ignore[misc]
        wanted = chromium.find(f"#{button.get_attribute('data-copy')}").text
        assert chromium.driver.execute_async_script(
            "navigator.clipboard.readText().then(arguments[arguments.length - 1])") == wanted
    chromium.press("form[action$='/check'] button")
    chromium.until_text("10 mx.example.org")
    chromium.until(lambda: chromium.driver.find_elements(By.CSS_SELECTOR, ".actions a.button"))
    rows = {row.find_elements(By.TAG_NAME, "td")[1].text: row.find_element(By.TAG_NAME, "span").text
            for row in chromium.driver.find_elements(By.CSS_SELECTOR, ".facts tbody tr")}
    assert rows["MX example.org"] == "right"
    assert rows["DMARC example.org"] == "warning"
    chromium.press(".actions a.button")
    chromium.until_text("DNS records")
