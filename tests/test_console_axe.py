"""Every page of the console in Chromium, looked at by axe: light and dark, wide and narrow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.chromium import Chromium, chromium_of_service
from tests.conftest import absent
from tests.console_pages import UNFOLD, every_page, furnished_service
from tests.service import Service

AXE = Path(sys.prefix, "node_modules", "axe-core", "axe.min.js")


service = pytest.fixture(furnished_service, scope="module")
chromium = pytest.fixture(chromium_of_service, scope="module")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_every_page_is_accessible(service: Service, chromium: Chromium, scheme: str,
                                  width: int) -> None:
    """axe finds nothing."""
    if not AXE.exists():
        absent("axe-core is not installed; make axe does it")
    axe = AXE.read_text()
    chromium.like(width=width, scheme=scheme)
    try:
        found = {page: violations for page in every_page(chromium)
                 if (violations := by_axe(chromium.driver, axe))}
        assert found == {}
    finally:
        chromium.like()


def by_axe(driver: Any, axe: str) -> list[tuple[str, list[str]]]:
    driver.execute_script(UNFOLD)
    driver.execute_script(axe)
    found = driver.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "axe.run(document, {iframes: false, runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa',"
        " 'wcag22aa', 'best-practice']}).then(done)")
    return [(each["id"], [node["html"][:200] for node in each["nodes"][:3]])
            for each in found["violations"]]
