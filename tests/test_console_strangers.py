"""What strangers write, wherever the console shows it, in Chromium: it is text, and does nothing.

Strings that would run something stand in subjects, names, addresses, file names, aliases, replies
of other servers, logins that failed, records of the DNS, and in whatever can be typed into a page.
"""

from __future__ import annotations

import json
import re
import socketserver
import urllib.parse
from collections.abc import Callable, Iterator
from email.header import Header

import pytest
from selenium.webdriver.common.by import By

from tests.chromium import Chromium, browsing
from tests.command_line import CommandLine
from tests.console import ALICE, BOB, Browser, serving
from tests.loopback import Served
from tests.nameserver import NameServer
from tests.service import Dialogue, Service, fetch, submit
from tests.test_console_letters import CORPUS

#: Beside the corpus: ways out of attributes, of text fields, of titles, of templates.
BREAKERS = (
    "\"><img src=x onerror=document.title='XSS'>", "'><svg/onload=document.title='XSS'>",
    "\" autofocus onfocus=document.title='XSS' x=\"",
    "</textarea><script>document.title='XSS'</script>",
    "</title><script>document.title='XSS'</script>", "--><script>document.title='XSS'</script>",
    "javascript:document.title='XSS'", "{{7*7}}${7*7}", "<base href=http://evil.example/>",
    "</pre></code><iframe src=//evil.example>", "\u202egnp.exe<b>\x7f",
)
#: Short enough for a local-part, which has 64 octets, with its quotes and backslashes.
STRINGS = tuple(each for each in (*BREAKERS, *CORPUS[::3]) if each.isascii() and each.isprintable()
                and len(json.dumps(each)) <= 60)
#: Such as somebody can try to log in by.
NAMES = [each for each in STRINGS if " " not in each and len(each) <= 40][:2]


def escaped(text: str) -> str:
    """*text* as it stands in a quoted local-part, without the quotes (RFC 5321 §4.1.2)."""
    return re.sub(r'(["\\])', r"\\\1", text)


def quoted(text: str) -> str:
    """*text* as a local-part."""
    return f'"{escaped(text)}"'


class Rude(Served):
    """A host that takes no mail, and says why in ways of its own."""

    def __init__(self) -> None:
        turns = iter(range(1_000_000))

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.wfile.write(b"220 rude\r\n")
                for line in self.rfile:
                    verb = line[:4].upper()
                    word = STRINGS[next(turns) % len(STRINGS)].encode()
                    self.wfile.write(b"450 4.2.1 " + word + b"\r\n" if verb == b"RCPT"
                                     else b"250 2.0.0 Ok\r\n")
                    if verb == b"QUIT":
                        return

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = daemon_threads = True

        super().__init__(Server(("127.0.0.1", 0), Handler))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    zone = {"example.org": [f"TXT v=spf1 {STRINGS[0]}"],
            "_dmarc.example.org": [f"TXT v=DMARC1; p={STRINGS[1]}"]}
    with Rude() as rude, NameServer(zone) as names, serving(
            tmp_path_factory.mktemp("console"),
            "--set", f'relay.smarthost="smtp://127.0.0.1:{rude.port}"',
            "--set", "maildir.keep_deleted_days=3",
            "--set", f'relay.dns=["{names.address}"]') as running:
        mailsvc = CommandLine(running.directory)
        mailsvc("alias", "add", "far@example.org", *(
            f"{quoted(each)}@example.net" for each in STRINGS))
        for each in STRINGS[:5]:
            mailsvc("alias", "add", f"{quoted(each)}@example.org", ALICE)
        for each in STRINGS:
            submit(running, letter(each), (ALICE, BOB), f"{quoted(each)}@example.net")
        fetch(running, BOB)
        submit(running, letter("far"), ("far@example.org",), f"{quoted(STRINGS[0])}@example.net")
        with Dialogue(running.smtp) as smtp:
            smtp.reply()
            smtp.say(b"EHLO x.example.net")
            smtp.say(f"MAIL FROM:<{quoted(STRINGS[1])}@example.net>".encode())
            for each in STRINGS[:10]:
                refused = smtp.say(f"RCPT TO:<{quoted('no' + each[2:])}@example.org>".encode())
                assert refused.startswith(b"550"), refused
        for each in NAMES:
            with Dialogue(running.pop3) as pop3:
                pop3.line()
                pop3.ask(f"USER {each}".encode())
                pop3.send(b"PASS x\r\n")
                assert pop3.line().startswith(b"-ERR")
        browser = Browser(running).log_in(BOB)
        for each in STRINGS[:8]:
            assert browser.post("/account/app-passwords", {
                "label": each, "days": "30", "current": "secret"}).status == 200
        yield running


def letter(text: str) -> bytes:
    header = Header(text, "utf-8", maxlinelen=200).encode(linesep="\r\n")
    name = urllib.parse.quote(text, safe="")
    return (f"From: {header} <a@example.net>\r\nSubject: {header}\r\nMessage-ID: <{text}@x>\r\n"
            "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\n"
            f"{text}\r\n--b\r\nContent-Type: application/x-odd\r\nContent-Disposition: attachment;"
            f" filename*=UTF-8''{name}\r\n\r\n{text}\r\n--b--\r\n").encode()


@pytest.fixture(scope="module")
def chromium(service: Service, program: Callable[[str], str],
             tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with browsing(service, program, tmp_path_factory.mktemp("profile")) as running:
        yield running


#: What must not be on a page, and its text.
LOOK = """
document.querySelectorAll('details').forEach((each) => { each.open = true; });
const found = [...document.querySelectorAll(
    'img, object, embed, base, style, template, math, video, audio, frame, meta[http-equiv], '
    + 'iframe:not(.html), a[href^="javascript" i], a[href^="data" i], b, marquee')]
    .map((each) => each.outerHTML.slice(0, 100));
for (const each of document.querySelectorAll('*')) {
  for (const {name} of each.attributes) {
    if (name.startsWith('on') || name === 'style') { found.push(each.outerHTML.slice(0, 100)); }
  }
}
for (const each of document.querySelectorAll('form')) {
  const action = each.getAttribute('action');  // a button may be called action
  if (new URL(action, location).origin !== location.origin) { found.push(action); }
}
if (document.querySelectorAll('script').length !== 1) { found.push('script'); }
if (document.title === 'XSS') { found.push('title'); }
return [found, document.body.textContent + [...document.querySelectorAll('input, textarea')].map(
    (each) => each.value + each.ariaLabel).join()];
"""


def look(chromium: Chromium, *texts: str) -> None:
    """The page that is open holds *texts*, as text, and nothing that they might have made."""
    found, shown = chromium.driver.execute_script(LOOK)
    assert found == [], chromium.driver.current_url
    assert [each for each in texts if each not in shown] == [], chromium.driver.current_url


@pytest.fixture(autouse=True)
def nothing_is_asked_for_or_complained_of(chromium: Chromium) -> Iterator[None]:
    chromium.log_in()
    chromium.requested()
    chromium.complaints()
    yield
    assert [url for url in chromium.requested() if not url.startswith(
        (chromium.url, "about:"))] == []
    assert [each for each in chromium.complaints() if "Security Policy" in each] == []


def test_in_the_mailbox(chromium: Chromium) -> None:
    chromium.open("mailbox")
    look(chromium, *STRINGS)
    links = [each.get_attribute("href")
             for each in chromium.driver.find_elements(By.CSS_SELECTOR, ".messages a")]
    assert len(links) == len(STRINGS)
    for link, text in list(zip(links, reversed(STRINGS), strict=True))[::2]:
        for rest in ("", "/source", "/delete"):
            chromium.driver.get(f"{link}{rest}")
            look(chromium, text)


def test_in_mail_that_was_deleted(chromium: Chromium) -> None:
    chromium.log_in(BOB).open("deleted")
    look(chromium, *STRINGS)


def test_in_traces(service: Service, chromium: Chromium) -> None:
    chromium.until(lambda: chromium.open("trace?q=far%40example.org") or (  # type: ignore[func-returns-value]
        chromium.driver.page_source.count("attempt 1") >= len(STRINGS)))
    look(chromium, *map(escaped, STRINGS), f"450 4.2.1 {STRINGS[0]}", "<far@x>")
    chromium.open("trace")
    look(chromium, *STRINGS[-5:])
    # Who could not log in, with such a name, is found by where it was.
    chromium.open("trace?q=127.0.0.1")
    look(chromium)
    for each in NAMES:
        logged = urllib.parse.quote(each, safe="")
        chromium.open("trace?" + urllib.parse.urlencode({"q": logged}))
        look(chromium, f"login as {logged} failed")
    refused = f"{quoted('no' + STRINGS[0][2:])}@example.org"
    chromium.open("trace?" + urllib.parse.urlencode({"q": refused}))
    look(chromium, f"recipient <{refused}>")


def test_in_the_queue(chromium: Chromium) -> None:
    chromium.until(lambda: chromium.open("queue") or (  # type: ignore[func-returns-value]
        "450" in chromium.driver.page_source or "4.2.1" in chromium.driver.page_source))
    look(chromium, escaped(STRINGS[0]))
    chromium.press("tbody a")
    look(chromium, *map(escaped, STRINGS), f"4.2.1 {STRINGS[2]}")


def test_in_aliases_domains_and_accounts(chromium: Chromium) -> None:
    chromium.open("aliases")
    look(chromium, *map(escaped, STRINGS))
    for each in STRINGS[:3]:
        chromium.open("aliases?" + urllib.parse.urlencode(
            {"change": f"{quoted(each)}@example.org"}))
        look(chromium, escaped(each))
    chromium.open(f"accounts/{ALICE}")
    look(chromium, *STRINGS[:5])
    chromium.log_in(BOB).open("account")
    look(chromium, *STRINGS[:8])


def test_in_what_the_world_says(chromium: Chromium) -> None:
    chromium.open("domains/example.org")
    chromium.press("form[action$='/check'] button")
    chromium.until(lambda: chromium.driver.find_elements(By.CSS_SELECTOR, ".actions a.button"))
    look(chromium, f"p={STRINGS[1]}".split(" ")[0])


def test_in_a_dialogue_and_its_recipes(service: Service, chromium: Chromium) -> None:
    # A semicolon or comma there parts recipients.
    for each in [each for each in STRINGS if not set(each) & set(";,")][:5]:
        chromium.open("send")
        chromium.fill(to=f"{quoted('no' + each[2:])}@example.org", subject=each, body=each)
        chromium.press("main button.main")
        chromium.until(lambda: chromium.driver.find_elements(By.ID, "swaks"))
        look(chromium, f"RCPT TO:<{quoted('no' + each[2:])}@example.org>")


@pytest.mark.parametrize("page", [
    "trace?q=", "queue?filter=", "accounts?q=", "aliases?q=", "aliases?change=",
    "configuration?q=", "domains/example.org?address=", "send?to=", "send?subject=", "send?body=",
    "mailbox?page=", "mailbox?notice=", "deleted?page=", "domains/", "accounts/", "queue/",
    "mailbox/",
])
def test_in_what_is_asked_for(chromium: Chromium, page: str) -> None:
    for each in BREAKERS[0], "".join(BREAKERS):
        chromium.open(page + urllib.parse.quote(each, safe=""))
        look(chromium)


def test_in_forms_that_are_refused(service: Service, chromium: Chromium) -> None:
    for each in BREAKERS[0], BREAKERS[3]:
        for page, fields in (
                ("aliases", {"name": each, "targets": each}), ("domains", {"name": each}),
                ("domains/example.org", {"target": each}),
                ("accounts", {"name": each, "password": "x", "octets": each})):
            chromium.open(page)
            chromium.driver.execute_script(
                "document.querySelectorAll('details').forEach((each) => { each.open = true; })")
            chromium.fill(**fields)
            form = f"form[method=post][action='/{page}']"
            chromium.press(f"{form} button")
            chromium.until(lambda: chromium.driver.find_elements(By.CSS_SELECTOR, ".wrong"))
            look(chromium)
