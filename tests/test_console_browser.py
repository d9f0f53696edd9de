"""The console in a real Chromium: pages from end to end, by keyboard too, and mail of strangers."""

from __future__ import annotations

from collections.abc import Iterator
from email.header import Header
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.chromium import Chromium, chromium_of_service
from tests.console import ALICE, BOB, PASSWORD, serving
from tests.service import Service, fetch, login, submit
from tests.test_console_letters import CORPUS


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    # Mail for other hosts waits: nobody answers there.
    with serving(tmp_path_factory.mktemp("console"), "--set",
                 'relay.smarthost="smtp://127.0.0.1:9"') as running:
        yield running


chromium = pytest.fixture(chromium_of_service, scope="module")


# ---- each page from end to end ----


def test_logging_in_and_out_by_keyboard(chromium: Chromium) -> None:
    chromium.driver.delete_all_cookies()
    chromium.open("")
    keys = webdriver.ActionChains(chromium.driver)
    keys.send_keys(ALICE, Keys.TAB, "wrong", Keys.ENTER).perform()
    chromium.until_text("Name or password is wrong")
    assert chromium.driver.switch_to.active_element.get_attribute("id") == "password"
    webdriver.ActionChains(chromium.driver).send_keys(PASSWORD, Keys.ENTER).perform()
    chromium.until_text("Messages accepted")
    webdriver.ActionChains(chromium.driver).send_keys(Keys.TAB).perform()
    assert chromium.driver.switch_to.active_element.text == "Skip to the content"
    webdriver.ActionChains(chromium.driver).send_keys(Keys.ENTER).perform()
    assert chromium.driver.switch_to.active_element.get_attribute("id") == "main"
    chromium.find(".who button").send_keys(Keys.ENTER)
    chromium.until_text("You are logged out")
    chromium.open("mailbox")
    assert chromium.driver.current_url.endswith("/login")


def test_a_message_with_attachments_is_sent_and_read(service: Service, chromium: Chromium,
                                                     tmp_path: Path) -> None:
    fetch(service, BOB)
    (tmp_path / "메모.bin").write_bytes(bytes(range(256)) * 5)
    chromium.log_in().press("a[href='/send']")
    chromium.fill(to=f"{BOB}, nobody@example.org", subject="With a file", body="Hello.\nThere.")
    chromium.find("#attachment").send_keys(str(tmp_path / "메모.bin"))
    chromium.press("main button.main")
    chromium.until_text("Copy as swaks")
    # textContent: what is scrolled out of view has no text for selenium.
    said = [str(each.get_attribute("textContent")) for each in chromium.driver.find_elements(
        By.CSS_SELECTOR, ".said.client .words")]
    assert said[0].startswith("EHLO ")
    assert said[1] == "AUTH PLAIN ********"
    assert "There is no such mailbox: check the part before the @." in chromium.text
    assert chromium.find(".good").text == "accepted"
    chromium.press("summary")
    assert "--attach '@메모.bin'" in chromium.find("#swaks").text
    assert chromium.find("[data-copy=swaks]").is_displayed()

    chromium.log_in(BOB)
    chromium.press(".messages a")
    assert chromium.find("h1").text == "With a file"
    assert chromium.find(".text").text == "Hello.\nThere."
    assert "1.25 KiB" in chromium.text
    chromium.press("a[href$='/source']")
    assert "Content-Disposition: attachment" in chromium.find("pre").text
    chromium.press(".back a")
    chromium.press("a[href$='/delete']")
    chromium.press("main button.danger")
    chromium.until_text("The message was deleted.")
    assert "No mail here." in chromium.text
    assert fetch(service, BOB) == []


def test_the_queue_is_acted_on(chromium: Chromium) -> None:
    chromium.log_in().open("send")
    chromium.fill(to="somebody@example.net", subject="to wait")
    chromium.press("main button.main")
    chromium.until_text("Copy as swaks")
    chromium.until(lambda: chromium.open("queue?filter=status:deferred") or (
        "somebody@example.net" in chromium.driver.page_source))
    chromium.press("input[name=id]")
    chromium.press("button[value=hold]")
    chromium.until_text("Held: 1 message.")
    chromium.fill(filter="status:held to:@example.net")
    chromium.find("#filter").send_keys(Keys.ENTER)
    chromium.until(lambda: "filter=status" in chromium.driver.current_url)
    chromium.press("tbody a")
    assert "somebody@example.net" in chromium.text
    chromium.press("button[value=drop]")
    chromium.driver.switch_to.alert.dismiss()
    assert "somebody@example.net" in chromium.text
    chromium.press("button[value=drop]")
    chromium.driver.switch_to.alert.accept()
    chromium.until_text("Dropped: 1 message.")
    assert "Nothing waits" in chromium.text


def test_an_account_is_made_and_looks_after_itself(service: Service, chromium: Chromium) -> None:
    name = "erin@example.org"
    chromium.log_in().press("a[href='/accounts']")
    chromium.press("summary")
    chromium.fill(name=name, password="first", octets="5M")
    chromium.press("details button.main")
    chromium.until_text("The account was made.")
    assert chromium.find("#octets").get_attribute("value") == str(5 << 20)

    chromium.log_in(name, "first").open("account")
    assert "/queue" not in chromium.driver.page_source
    chromium.press("summary")
    chromium.fill(label="phone", current_app="first")
    chromium.press("details button.main")
    chromium.until_text("It is not shown again")
    made = chromium.find("#made").text
    service.passwords[name] = made
    login(service, name).close()
    chromium.fill(current="first", new="second", again="second")
    chromium.press("form[action='/account/password'] button")
    chromium.until_text("The password was changed.")
    chromium.press("form[action='/account/app-passwords/remove'] button")
    chromium.until_text("The app password was removed.")
    with pytest.raises(AssertionError):
        login(service, name)
    chromium.log_in(name, "second")

    chromium.log_in().open(f"accounts/{name}")
    chromium.press("main a.danger")
    chromium.press("main button.danger")
    chromium.until_text("The account was removed.")


def test_the_language_is_changed_and_stays(chromium: Chromium) -> None:
    chromium.log_in().open("queue")
    chromium.press("button[value=ko]")
    chromium.until_text("대기열")
    assert chromium.driver.current_url.endswith("/queue")
    chromium.open("accounts")
    assert chromium.find("html").get_attribute("lang") == "ko"
    chromium.press("button[value=en]")
    chromium.until_text("Make an account")


# ---- what strangers write ----


def test_what_strangers_write_does_nothing(service: Service, chromium: Chromium) -> None:
    """The corpus in subjects, names and bodies: nothing runs, and nothing is fetched."""
    fetch(service, BOB)
    corpus = CORPUS[::4]
    for page in corpus:
        text = Header(page, "utf-8", maxlinelen=200).encode(linesep="\r\n")
        submit(service, (f"From: {text}\r\nSubject: {text}\r\nContent-Type: text/html\r\n\r\n"
                         f"{page}\r\n").encode(), (BOB,))
    chromium.log_in(BOB)
    chromium.requested()
    chromium.complaints()
    chromium.open("mailbox")
    links = [each.get_attribute("href")
             for each in chromium.driver.find_elements(By.CSS_SELECTOR, ".messages a")]
    assert len(links) == len(corpus)
    for number, link in enumerate(links):
        chromium.driver.get(f"{link}/html")
        assert chromium.driver.title != "XSS", corpus[-1 - number]
        if number % 8 == 0:
            chromium.driver.get(link)
            assert chromium.driver.title.endswith("· mailsvc")
            assert chromium.find("iframe").is_displayed()
    strangers = [url for url in chromium.requested() if not url.startswith(
        (chromium.url, "data:image/", "about:"))]
    assert strangers == []
    # An image that could not be decoded is all there may be to complain of.
    assert [each for each in chromium.complaints() if "Security Policy" in each] == []
    fetch(service, BOB)


def test_the_overview_and_the_configuration(chromium: Chromium) -> None:
    chromium.log_in().open("overview")
    assert chromium.find(".good").text == "ready"
    # Two rows are taken within twenty seconds of the start.
    chromium.until(lambda: chromium.open("overview") or (
        "each point is ten seconds" in chromium.driver.page_source))
    assert len(chromium.driver.find_elements(By.CSS_SELECTOR, "figure svg path.line")) == 9
    chromium.press("a[href='/configuration']")
    chromium.fill(q="message_octets")
    chromium.find("#q").send_keys(Keys.ENTER)
    chromium.until(lambda: "q=message_octets" in chromium.driver.current_url)
    assert "Largest message" in chromium.text
