"""Takes the pictures of the console for the documentation: ``python -m tests.console_pictures
docs/console``.

Chromium and its driver are Debian's ``chromium`` and ``chromium-driver``.
"""

from __future__ import annotations

import contextlib
import shutil
import smtplib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from pathlib import Path

from selenium.webdriver.common.by import By

from tests.chromium import Chromium, browsing
from tests.command_line import CommandLine
from tests.console import ALICE, BOB, serving
from tests.nameserver import NameServer
from tests.service import Service, fetch

LETTERS = (
    ("Clara Weiss <clara@example.net>", "The figures for October",
     "Dear Alice,\n\nthe figures are attached.  Tell me if a column is missing.\n\nClara\n"),
    ("Build <build@example.com>", "nightly: passed in 21 minutes", "All 14,000 tests passed.\n"),
    ("김민준 <minjun@example.net>", "다음 주 회의", "안녕하세요, 화요일 오전은 어떠세요?\n"),
    ("Newsletter <news@example.com>", "Ten years of plain maildirs", "Have a look inside.\n"),
    ("Bob <bob@example.org>", "Lunch?", "At noon, as always?\n"))

#: How long mail comes and goes before the graphs are drawn, seconds.
BUSY = 90


def letter(sender: str, subject: str, text: str, to: str = ALICE) -> EmailMessage:
    """A message of somebody."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, to, subject
    message["Date"] = format_datetime(datetime.now(UTC))
    message["Message-ID"] = make_msgid(domain="example.net")
    message.set_content(text)
    if "attached" in text:
        message.add_attachment("month,messages\nOctober,4096\n", subtype="csv",
                               filename="october.csv")
    return message


def say(service: Service, message: EmailMessage) -> None:
    """Deliver *message* as another server does."""
    with smtplib.SMTP(*service.smtp) as smtp:
        smtp.ehlo("mx.example.net")
        smtp.send_message(message)


@contextlib.contextmanager
def furnished(path: Path) -> Iterator[Service]:
    """A service whose days are busy."""
    records = {"example.org": ["MX 10 mx.example.org", "TXT v=spf1 mx -all"],
               "mx.example.org": ["A 192.0.2.1"], "1.2.0.192.in-addr.arpa": ["PTR mx.example.org"],
               "_dmarc.example.org": ["TXT v=DMARC1; p=reject"]}
    with NameServer(records) as names, serving(
            path, "--set", 'relay.smarthost="smtp://127.0.0.1:9"',
            "--set", "maildir.keep_deleted_days=30",
            "--set", f'relay.dns=["{names.address}"]') as running:
        CommandLine(running.directory)("dkim", "add", "example.org", "--use")
        CommandLine(running.directory)("alias", "add", "sales@example.org", BOB, ALICE)
        say(running, letter(*LETTERS[3]))
        fetch(running, ALICE)
        for each in LETTERS:
            say(running, letter(*each))
        yield running


def busy(service: Service, seconds: float) -> None:
    """Have mail come, be fetched and refused for so long."""
    end = time.monotonic() + seconds
    for number in range(100_000):
        if time.monotonic() > end:
            return
        for _ in range(number % 7):
            say(service, letter(*LETTERS[1], to=BOB))
        if number % 3 == 0:
            fetch(service, BOB)
        with contextlib.suppress(smtplib.SMTPRecipientsRefused):
            say(service, letter(*LETTERS[4], to="nobody@example.org"))
        time.sleep(0.3)


def sent(chromium: Chromium) -> None:
    chromium.open("send")
    chromium.fill(to=f"{BOB}, nobody@example.org", subject="Lunch", body="At noon?")
    chromium.press("main button.main")
    chromium.until(lambda: chromium.driver.find_elements(By.ID, "swaks"))


def phone(chromium: Chromium) -> None:
    chromium.open("mailbox")
    chromium.press("footer [value=ko]")
    chromium.open("send")


def traced(chromium: Chromium) -> None:
    """A message that has been fetched: what is logged is kept within a second or so."""
    def found() -> str | None:
        chromium.open(f"trace?q={BOB}")
        id: str | None = chromium.driver.execute_script(
            "const story = [...document.querySelectorAll('details.story')].find("
            "(each) => each.textContent.includes('fetched')"
            "    && each.textContent.includes('delivered'));"
            "return story ? story.querySelector('summary code').textContent : null")
        if id is not None:
            chromium.open(f"trace?q={id}")
        return id

    chromium.until(found)


def checked(chromium: Chromium) -> None:
    chromium.open("domains/example.org")
    chromium.press("form[action$='/check'] button")
    chromium.until(lambda: chromium.driver.find_elements(By.CSS_SELECTOR, "footer"))


#: File name, how one comes to what it shows, width of the screen, and the scheme.
PICTURES: tuple[tuple[str, Callable[[Chromium], object], int, str], ...] = (
    ("mailbox", lambda chromium: chromium.open("mailbox"), 1280, "light"),
    ("dialogue", sent, 1280, "light"),
    ("trace", traced, 1280, "light"),
    ("deleted", lambda chromium: chromium.open("deleted"), 1280, "light"),
    ("sessions", lambda chromium: chromium.open("sessions"), 1280, "dark"),
    ("domains", checked, 1280, "light"),
    ("overview", lambda chromium: chromium.open("overview"), 1280, "dark"),
    ("phone", phone, 400, "light"))


def program(name: str) -> str:
    """Where the program *name* is."""
    found = shutil.which(name)
    if found is None:
        sys.exit(f"there is no {name}; install Debian's chromium and chromium-driver")
    return found


def main() -> None:
    """Write the pictures into the directory that the argument names."""
    out = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as name, furnished(Path(name)) as service:
        busy(service, BUSY)
        (Path(name) / "profile").mkdir()
        with (browsing(service, program, Path(name) / "profile") as chromium,
              smtplib.SMTP(*service.smtp) as waiting, smtplib.SMTP(*service.smtp) as other):
            waiting.ehlo("mx.example.net")
            other.ehlo("mail.example.com")
            other.mail("clara@example.net")
            chromium.log_in()
            for picture, come_to, width, scheme in PICTURES:
                chromium.like(width=width, scheme=scheme)
                come_to(chromium)
                chromium.driver.save_screenshot(str(out / f"{picture}.png"))
                print(picture, flush=True)


if __name__ == "__main__":
    main()
