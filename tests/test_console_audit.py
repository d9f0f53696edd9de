"""Every page of the console in a real Chromium, audited for what Lighthouse looks at: as wide as a
desk and as a phone, in English and Korean; and by keyboard.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.chromium import Chromium, chromium_of_service
from tests.console_pages import PAGES, UNFOLD, every_page, furnished_service
from tests.service import Service

#: The page with every key of the configuration is one of a kind.
LONG = ("configuration",)

#: What Lighthouse looks at in a page, beside what axe does; and what is wrong with it, if anything.
AUDIT = """
const wrong = [];
const want = (right, text) => right || wrong.push(text);
const shown = (each) => each.checkVisibility({visibilityProperty: true});
const name = (each) => each.outerHTML.slice(0, 120);
want(document.doctype && document.doctype.name === 'html' && document.compatMode === 'CSS1Compat',
     'doctype');
want(document.characterSet === 'UTF-8', 'charset');
const viewport = document.querySelector('meta[name=viewport]');
want(viewport && /width=device-width/.test(viewport.content), 'viewport');
want(viewport && !/user-scalable|maximum-scale/.test(viewport.content), 'zoom');
want(document.title.trim(), 'title');
want((document.querySelector('meta[name=description]') || {content: ''}).content, 'description');
want(['en', 'ko'].includes(document.documentElement.lang), 'lang');
want(document.querySelectorAll('h1').length === 1, 'one h1');
want(document.querySelectorAll('script').length === 1, 'scripts');
want(document.querySelectorAll('style, [style], img, object, embed').length === 0, 'inline');
for (const each of document.querySelectorAll('*')) {
  for (const {name: attribute} of each.attributes) {
    want(!attribute.startsWith('on'), 'handler: ' + name(each));
  }
}
for (const each of document.querySelectorAll('button, .button, nav a, input, select, summary')) {
  const {width, height} = each.getBoundingClientRect();
  want(!shown(each) || each.closest('label.tick') || each.classList.contains('unseen')
       || each.type === 'checkbox' || (width >= 24 && height >= 24), 'tap target: ' + name(each));
}
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node; (node = walker.nextNode());) {
  const parent = node.parentElement;
  want(!node.data.trim() || !shown(parent) || parseFloat(getComputedStyle(parent).fontSize) >= 12,
       'small: ' + node.data.slice(0, 60));
}
for (const each of document.querySelectorAll('a[target=_blank]')) {
  want(/noopener/.test(each.rel), 'opener: ' + name(each));
}
for (const each of document.querySelectorAll('input[type=password]')) {
  want(each.autocomplete, 'autocomplete: ' + name(each));
}
want(document.documentElement.scrollWidth <= document.documentElement.clientWidth, 'too wide');
let shift = 0;
for (const each of arguments[0]) { shift += each; }
want(shift < 0.1, 'shift');
return wrong;
"""
#: How far what is seen was pushed about while the page was made.
SHIFTS = """
const done = arguments[arguments.length - 1];
const found = [];
new PerformanceObserver((list) => found.push(...list.getEntries().map((each) => each.value)))
    .observe({type: 'layout-shift', buffered: true});
requestAnimationFrame(() => requestAnimationFrame(() => done(found)));
"""


service = pytest.fixture(furnished_service, scope="module")
chromium = pytest.fixture(chromium_of_service, scope="module")


@pytest.mark.parametrize(("language", "width"), [("en", 1280), ("ko", 360)])
def test_every_page_is_sound(service: Service, chromium: Chromium, language: str,
                             width: int) -> None:
    """What Lighthouse looks at is as it shall be; nothing is asked of other hosts, and nothing
    complained of; a page has few octets and elements."""
    chromium.like(width=width)
    try:
        chromium.log_in()
        chromium.press(f"button[value={language}]")
        chromium.complaints()
        chromium.requested()
        wrong: dict[str, list[str]] = {}
        for page in every_page(chromium):
            driver = chromium.driver
            shifts = driver.execute_async_script(SHIFTS)
            driver.execute_script(UNFOLD)
            found = driver.execute_script(AUDIT, shifts)
            elements = driver.execute_script("return document.querySelectorAll('*').length")
            if elements > 1400 and page not in LONG:  # as many as Lighthouse puts up with
                found.append(f"{elements} elements")
            octets = driver.execute_script(
                "return performance.getEntries().map((each) => each.decodedBodySize || 0)")
            if sum(octets) > (250_000 if page in LONG else 90_000):
                found.append(f"{sum(octets)} octets")
            if driver.find_element(By.TAG_NAME, "html").get_attribute("lang") != language:
                found.append("language")
            if found:
                wrong[page] = found
        assert wrong == {}
        # The frame of a message has an address of its own here, and no other host's.
        assert [url for url in chromium.requested() if not url.startswith(chromium.url)] == []
        assert [each for each in chromium.complaints() if "404" not in each] == []
    finally:
        chromium.driver.delete_all_cookies()
        chromium.like()


@pytest.mark.parametrize("width", [1280, 360])
def test_rows_that_come_later_move_none(chromium: Chromium, width: int) -> None:
    """What the world sees comes row by row, as fast as name servers answer: the columns stand
    where they stood without any row."""
    chromium.like(width=width)
    try:
        chromium.log_in()
        chromium.open("domains/example.org")
        chromium.press("form[action$='/check'] button")
        chromium.until(lambda: chromium.driver.find_elements(By.CSS_SELECTOR, "footer"))
        edges = ("[...document.querySelectorAll('.top, .facts th')].map((each) => {"
                 " const {left, top, width} = each.getBoundingClientRect();"
                 " return [left, top, width]; })")
        full, empty = chromium.driver.execute_script(
            f"const full = {edges};"
            f"document.querySelectorAll('.facts tbody tr').forEach((each) => each.remove());"
            f"return [full, {edges}];")
        assert len(full) == 4
        assert full == empty
    finally:
        chromium.like()


def test_pages_are_light(chromium: Chromium) -> None:
    """No page asks for more than a style sheet, a script and an icon, of few octets."""
    chromium.log_in()
    chromium.requested()
    for page in PAGES:
        chromium.open(page)
        urls = [url for url in chromium.requested() if url.startswith(chromium.url)]
        names = {url.removeprefix(chromium.url).partition("?")[0] for url in urls}
        assert names <= {f"/{page.partition('?')[0]}", "/static/console.css",
                         "/static/console.js", "/static/icon.svg", "/favicon.ico"}, page
    sizes = chromium.driver.execute_script(
        "return performance.getEntriesByType('resource').map((each) => each.decodedBodySize)")
    assert sum(sizes) < 40_000
    assert list(itertools.filterfalse(bool, [chromium.driver.title])) == []


FOCUSABLE = ("a[href], button, input:not([type=hidden]), select, textarea, summary, "
             "[tabindex='0'], iframe")


@pytest.mark.parametrize("page", ["trace", "deleted", "aliases", "domains/example.org", "send",
                                  "overview"])
def test_the_keyboard_gets_everywhere_and_sees_where_it_is(chromium: Chromium, page: str) -> None:
    """By the tabulator each control is reached, in the order in which they stand there, and each
    is outlined when it is."""
    chromium.log_in().open(page)
    driver = chromium.driver
    wanted = driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])].filter((each) => each.tabIndex >= 0"
        " && each.checkVisibility() && !each.disabled).map((each, number) => {"
        "   each.dataset.stop = number; return String(number); })", FOCUSABLE)
    # Of radio buttons of one name one is a stop.
    assert len(wanted) >= 8
    reached: list[str] = []
    for _ in range(len(wanted) + 5):
        ActionChains(driver).send_keys(Keys.TAB).perform()
        stop, outlined = driver.execute_script(
            "const each = document.activeElement;"
            "return [each.dataset.stop, getComputedStyle(each).outlineStyle !== 'none'"
            "        || each.tagName === 'IFRAME']")
        if stop is None or stop in reached:
            break
        assert outlined, driver.execute_script("return document.activeElement.outerHTML")[:200]
        reached.append(stop)
    assert reached == sorted(reached, key=int)
    assert set(wanted) == set(reached)


def test_the_style_sheet_and_the_script_name_no_other_host() -> None:
    static = Path(__file__).parents[1] / "mailsvc" / "console" / "static"
    for path in static.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(?:https?:)?//[\w-]+\.|@import|url\(", text), path
