"""The console in a real Chromium: each page from end to end, by keyboard, on a phone, by axe."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.header import Header
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.conftest import absent
from tests.console import ALICE, BOB, PASSWORD, serving
from tests.service import PATIENCE, Service, fetch, login, submit
from tests.test_console_letters import CORPUS

#: Every page that there is without a message or an account that was chosen.
PAGES = ("overview", "mailbox", "send", "queue", "accounts", "account", "configuration", "sessions",
         f"accounts/{BOB}", f"accounts/{BOB}/remove", "nowhere")
AXE = Path(sys.prefix, "node_modules", "axe-core", "axe.min.js")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    # Mail for other hosts waits: nobody answers there.
    with serving(tmp_path_factory.mktemp("console"), "--set",
                 'relay.smarthost="smtp://127.0.0.1:9"') as running:
        yield running


class Chromium:
    """A browser that reaches this machine alone, and tells what it asked for."""

    def __init__(self, service: Service, driver: Any) -> None:
        self.driver = driver
        self.url = "http://{}:{}".format(*service.listeners["console"])

    def open(self, path: str) -> None:
        self.driver.get(f"{self.url}/{path.lstrip('/')}")

    def log_in(self, name: str = ALICE, password: str = PASSWORD) -> Chromium:
        self.driver.delete_all_cookies()
        self.open("login")
        self.fill(name=name, password=password)
        self.press("main button")
        self.until(lambda: not self.driver.current_url.endswith("/login"))
        return self

    def find(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def press(self, selector: str) -> None:
        element = self.find(selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def fill(self, **fields: str) -> None:
        for name, value in fields.items():
            element = self.find(f"#{name.replace('_', '-')}")
            element.clear()
            element.send_keys(value)

    def until(self, condition: Callable[[], object]) -> None:
        WebDriverWait(self.driver, PATIENCE, poll_frequency=0.05).until(lambda _: condition())

    def until_text(self, text: str) -> None:
        self.until(lambda: text in self.text)

    @property
    def text(self) -> str:
        # In one go: the page may be another before a second question is answered.
        found: str = self.driver.execute_script(
            "return document.body ? document.body.innerText : ''")
        return found

    def requested(self) -> list[str]:
        """What was asked for since this was called last."""
        told = [json.loads(each["message"])["message"]
                for each in self.driver.get_log("performance")]
        return [each["params"]["request"]["url"] for each in told
                if each["method"] == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """What the console of the developer tools warns of, such as broken policies."""
        return [each["message"] for each in self.driver.get_log("browser")
                if each["level"] in ("SEVERE", "WARNING")]

    def like(self, *, width: int = 1280, scheme: str = "light") -> None:
        """Become a screen of that width, and a reader who prefers that scheme."""
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600})
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {
            "features": [{"name": "prefers-color-scheme", "value": scheme}]})


@pytest.fixture(scope="module")
def chromium(service: Service, program: Callable[[str], str],
             tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with browsing(service, program, tmp_path_factory.mktemp("profile")) as running:
        yield running


@contextmanager
def browsing(service: Service, program: Callable[[str], str], profile: Path, *,
             waits: bool = True) -> Iterator[Chromium]:
    """A Chromium of its own.

    :param waits: whether it waits for pages to be complete; those that are written while something
        goes on are not before that is over.
    """
    options = webdriver.ChromeOptions()
    options.page_load_strategy = "normal" if waits else "none"
    options.binary_location = program("chromium")
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
                 "disable-background-networking", "disable-component-update", "disable-sync",
                 "disable-dev-shm-usage", "window-size=1280,800", "lang=en",
                 "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
                 f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.add_experimental_option("prefs", {"intl.accept_languages": "en"})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(
        options, webdriver.ChromeService(program("chromedriver"), log_output=os.devnull))
    try:
        yield Chromium(service, driver)
    finally:
        driver.quit()


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
    chromium.until_text("Held: 1 messages.")
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
    chromium.until_text("Dropped: 1 messages.")
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


# ---- for everybody ----


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_every_page_is_accessible(service: Service, chromium: Chromium, scheme: str,
                                  width: int) -> None:
    """axe finds nothing; nothing sticks out of a phone; and no page breaks its own policy."""
    if not AXE.exists():
        absent("axe-core is not installed; make axe does it")
    submit(service, b"Subject: hello\r\nFrom: Bob <bob@example.net>\r\nContent-Type: text/html\r\n"
           b"\r\n<p>Hi</p>\r\n", (ALICE,))
    axe = AXE.read_text()
    chromium.like(width=width, scheme=scheme)
    try:
        chromium.driver.delete_all_cookies()
        chromium.open("login")
        check(chromium, axe, "login")
        chromium.log_in()
        chromium.complaints()
        chromium.open("send")
        chromium.fill(to=f"{BOB}, nobody@example.org, x@example.net", subject="x" * 200)
        chromium.press("main button.main")
        chromium.until_text("Copy as swaks")
        check(chromium, axe, "sent")
        chromium.open("mailbox")
        chromium.press(".messages a")
        check(chromium, axe, "message")
        for page in PAGES:
            chromium.open(page)
            for closed in chromium.driver.find_elements(By.CSS_SELECTOR, "details:not([open])"):
                chromium.driver.execute_script("arguments[0].open = true", closed)
            check(chromium, axe, page)
        chromium.open("queue")
        chromium.press("tbody a")
        check(chromium, axe, "queued")
        complaints = [each for each in chromium.complaints() if "404" not in each]
        assert complaints == []
    finally:
        chromium.like()
        fetch(service, ALICE)


def check(chromium: Chromium, axe: str, page: str) -> None:
    driver = chromium.driver
    driver.execute_script(axe)
    found = driver.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "axe.run(document, {iframes: false, runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa',"
        " 'wcag22aa', 'best-practice']}).then(done)")
    assert [(page, each["id"], [node["html"][:200] for node in each["nodes"][:3]])
            for each in found["violations"]] == []
    wider = driver.execute_script(
        "return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wider <= 0, f"{page} is {wider} pixels wider than the screen"


def test_pages_are_light(chromium: Chromium) -> None:
    """No page asks for more than a style sheet, a script and an icon, of few octets."""
    chromium.log_in()
    chromium.requested()
    for page in PAGES[:7]:
        chromium.open(page)
        urls = [url for url in chromium.requested() if url.startswith(chromium.url)]
        names = {url.removeprefix(chromium.url).partition("?")[0] for url in urls}
        assert names <= {f"/{page}", "/static/console.css", "/static/console.js",
                         "/static/icon.svg", "/favicon.ico"}, page
    sizes = chromium.driver.execute_script(
        "return performance.getEntriesByType('resource').map((each) => each.decodedBodySize)")
    assert sum(sizes) < 40_000
    assert list(itertools.filterfalse(bool, [chromium.driver.title])) == []


def test_the_overview_and_the_configuration(chromium: Chromium) -> None:
    chromium.log_in().open("overview")
    assert chromium.find(".good").text == "ready"
    # Two rows are taken within twenty seconds of the start.
    chromium.until(lambda: chromium.open("overview") or (
        "each point is ten seconds" in chromium.driver.page_source))
    assert len(chromium.driver.find_elements(By.CSS_SELECTOR, "figure svg path.line")) == 7
    chromium.press("a[href='/configuration']")
    chromium.fill(q="message_octets")
    chromium.find("#q").send_keys(Keys.ENTER)
    chromium.until(lambda: "q=message_octets" in chromium.driver.current_url)
    assert "Largest message" in chromium.text
