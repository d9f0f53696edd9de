"""HTML: the templates, and what all of them are given."""

from __future__ import annotations

import datetime
import secrets
import urllib.parse
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mailsvc import __version__
from mailsvc.console import static
from mailsvc.console.call import ADMINISTRATOR, Call, Page
from mailsvc.console.texts import LANGUAGES

#: What is told after something was done, by the word in the address.
NOTICES = {
    "deleted": "The message was deleted.",
    "restored": "Back in the mailbox.",
    "password": "The password was changed.  Whoever else was logged in with it is not any more.",
    "app-password-removed": "The app password was removed.",
    "account-added": "The account was made.",
    "account-changed": "The account was changed.",
    "account-removed": "The account was removed.  Its mail stays on disk.",
    "alias-set": "The alias was set.",
    "alias-set-for-account": "The alias was set.  The account of that name gets no mail now; to "
    "keep a copy there, name it among the targets.",
    "alias-removed": "The alias was removed.",
    "domain-added": "The domain was added.  Publish what follows in its DNS.",
    "domain-changed": "The domain was changed.",
    "domain-removed": "The domain was given up: mail for it is refused now.",
    "session-ended": "The connection is being ended.",
    "logged-out": "You are logged out.",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the navigation."""

    where: str
    name: str


def navigation(call: Call) -> list[Entry]:
    """What the reader may go to."""
    account = call.account
    if account is None:
        return []
    entries = [Entry("/overview", "Overview")] if call.role == ADMINISTRATOR else []
    if account.receives:
        entries.append(Entry("/mailbox", "Mailbox"))
    if account.sends:
        entries.append(Entry("/send", "Send"))
    entries.append(Entry("/trace", "Trace"))
    if call.role == ADMINISTRATOR:
        entries += [Entry("/sessions", "Sessions"), Entry("/queue", "Queue"),
                    Entry("/accounts", "Accounts"),
                    Entry("/aliases", "Aliases"), Entry("/domains", "Domains"),
                    Entry("/configuration", "Configuration")]
    return entries


class Pages:
    """Makes pages from the templates."""

    def __init__(self) -> None:
        self._environment = environment = Environment(
            loader=PackageLoader("mailsvc.console"), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True)
        environment.filters.update(octets=octets, duration=duration, moment=moment,
                                   second=second, elapsed=elapsed, iso=iso, segment=segment)
        environment.globals.update(static=static.address, version=__version__, languages=LANGUAGES)

    def render(self, call: Call, page: Page) -> str:
        """The page as *call* gets it."""
        return self._environment.get_template(page.template).render(
            {"call": call, "_": call.translate, "navigation": navigation(call),
             "administrator": call.role == ADMINISTRATOR, "token": call.session.form_token,
             "notice": NOTICES.get(call.query["notice"], ""), **page.values})

    def halves(self, call: Call, page: Page) -> tuple[str, str]:
        """The page before and behind the place of what is written while something goes on."""
        mark = secrets.token_hex(16)
        before, _, after = self.render(
            call, Page(page.template, {**page.values, "stream": mark})).partition(mark)
        return before, after


# ---- filters ------------------------------------------------------------------------------------


def octets(value: float) -> str:
    """A size as people read it: 3.1 MiB."""
    for unit, size in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float) -> str:
    """45 s, 12 min, 3 h, 4 d; likewise below zero."""
    sign, seconds = ("−" if seconds < 0 else ""), abs(seconds)
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{sign}{seconds // size:.0f} {unit}"
    return f"{sign}{seconds:.0f} s"


def moment(seconds: float) -> str:
    """A time as this machine's clocks show it."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M")


def second(seconds: float) -> str:
    """The same to the millisecond."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(
        " ", timespec="milliseconds").partition("+")[0]


def elapsed(seconds: float) -> str:
    """How much later: 0.035 s, 4 min."""
    return f"{seconds:.3f} s" if seconds < 100 else duration(seconds)


def iso(seconds: float) -> str:
    """The same for programs."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def segment(text: Any) -> str:
    """*text* as one segment of a path."""
    return urllib.parse.quote(str(text), safe="")
