"""A real Chromium with the console, for tests and for the pictures in ``docs/console``."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.console import ALICE, PASSWORD
from tests.service import PATIENCE, Service


class Chromium:
    """A browser that reaches this machine alone, and tells what it asked for."""

    def __init__(self, service: Service, driver: Any) -> None:
        self.driver = driver
        self.url = "http://{}:{}".format(*service.listeners["console"])

    def open(self, path: str) -> None:
        self.driver.get(f"{self.url}/{path.lstrip('/')}")

    def log_in(self, name: str = ALICE, password: str = PASSWORD) -> Chromium:
        self.log_out()
        self.open("login")
        self.fill(name=name, password=password)
        self.press("main button")
        self.until(lambda: self.driver.find_elements(By.CLASS_NAME, "who"))
        return self

    def log_out(self) -> None:
        """Forget the login, and not the language."""
        self.driver.delete_cookie("mailsvc")

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


@contextlib.contextmanager
def browsing(service: Service, program: Callable[[str], str], profile: Path, *,
             waits: bool = True) -> Iterator[Chromium]:
    """A browser for the console of *service*.

    :param program: finds a program, as the fixture of that name.
    :param profile: a directory of its own.
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


def chromium_of_service(service: Service, program: Callable[[str], str],
                        tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """One for the fixture *service*; made a fixture of a module by the tests that need it."""
    with browsing(service, program, tmp_path_factory.mktemp("profile")) as running:
        yield running
