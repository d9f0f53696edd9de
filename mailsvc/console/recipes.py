"""The same message sent from elsewhere: as a swaks command, and as a Python program."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mailsvc.composing import Attachment
from mailsvc.config import Settings


class Letter(Protocol):
    """What was sent."""

    @property
    def sender(self) -> str:
        """The reverse-path."""

    @property
    def recipients(self) -> Sequence[str]:
        """The forward-paths."""

    @property
    def subject(self) -> str:
        """As typed."""

    @property
    def body(self) -> str:
        """As typed, lines ending in LF."""

    @property
    def attachments(self) -> Sequence[Attachment]:
        """Of which the names stand in a recipe; the files are one's own."""


#: How much of a text stands in a recipe; who has more puts it into a file.
_CHARACTERS = 2000


def _body(letter: Letter) -> str:
    return letter.body if len(letter.body) <= _CHARACTERS else letter.body[:_CHARACTERS] + " …"


@dataclass(frozen=True, slots=True)
class Server:
    """Where to.

    :ivar tls: as for ``Client.dial``.
    :ivar user: who logs in, or "".
    """

    host: str
    port: int
    tls: str
    user: str


def own_server(settings: Settings, user: str) -> Server:
    """How programs elsewhere submit to the service here."""
    for endpoints, port, tls in ((settings.listeners.submissions, 465, "implicit"),
                                 (settings.listeners.submission, 587, "starttls")):
        for endpoint in endpoints:
            match = re.match(r"(?:tcp|tcp6):(?:port=)?([0-9]+)", endpoint)
            if match:
                return Server(settings.service.hostname, int(match[1]) or port, tls, user)
    return Server(settings.service.hostname, 587, "starttls", user)


def swaks(server: Server, letter: Letter) -> str:
    """A command line for a POSIX shell."""
    lines = [["swaks", "--server", server.host, "--port", str(server.port)]]
    lines[0] += {"implicit": ["--tls-on-connect"], "starttls": ["--tls"],
                 "opportunistic": ["--tls-optional"]}.get(server.tls, [])
    if server.user:
        lines.append(["--auth-user", server.user])  # it asks for the password
    lines.append(["--from", letter.sender or "<>"])
    lines.append(["--to", ",".join(letter.recipients)])
    lines.append(["--header", f"Subject: {letter.subject}"])
    lines.append(["--body", _body(letter)])
    lines += [["--attach", f"@{each.name}"] for each in letter.attachments]
    return " \\\n    ".join(shlex.join(line) for line in lines)


def python(server: Server, letter: Letter) -> str:
    """A program for Python's standard library."""
    kind = "SMTP_SSL" if server.tls == "implicit" else "SMTP"
    lines = [
        "import smtplib", "from email.message import EmailMessage",
        *(["from getpass import getpass"] if server.user else []), "",
        "message = EmailMessage()", f"message['From'] = {letter.sender!r}",
        f"message['To'] = {', '.join(letter.recipients)!r}",
        f"message['Subject'] = {letter.subject!r}", f"message.set_content({_body(letter)!r})"]
    for each in letter.attachments:
        main, sub = each.type
        lines += [f"with open({each.name!r}, 'rb') as file:",
                  f"    message.add_attachment(file.read(), maintype={main!r}, subtype={sub!r}, "
                  f"filename={each.name!r})"]
    lines += ["", f"with smtplib.{kind}({server.host!r}, {server.port}) as server:"]
    if server.tls in ("starttls", "opportunistic"):
        lines.append("    server.starttls()")
    if server.user:
        lines.append(f"    server.login({server.user!r}, getpass())")
    lines.append(f"    server.send_message(message, {letter.sender!r}, "
                 f"{list(letter.recipients)!r})")
    return "\n".join(lines) + "\n"
