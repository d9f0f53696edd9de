"""Captures of the wire: by whichever door a message comes, what leaves holds no CR or LF alone.

A message comes into a service by each door, and goes on to an exchanger through a tap.  Each text
either arrives as one message whose every line ends with CR LF, or whoever gave it is told that it
is not taken.  PITFALLS of SMTP: a stray line end that one server takes for an end of the data and
another does not.
"""

from __future__ import annotations

import os
import re
import smtplib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.exchanger import Exchanger
from tests.relay import unverified
from tests.service import PATIENCE, Service
from tests.tap import Tap

ALICE, BOB = "alice@a.example", "bob@b.example"
HEADER = b"From: <alice@a.example>\r\nTo: <bob@b.example>\r\nSubject: door\r\n\r\n"
#: What a message holds where its second line ends.
STRAY = {
    "lf": b"\n", "cr": b"\r", "lf-dot-lf": b"\n.\n", "cr-dot-cr": b"\r.\r",
    "lf-dot-crlf": b"\n.\r\n", "crlf-dot-lf": b"\r\n.\n", "crlf-dot-cr": b"\r\n.\r",
    "cr-crlf": b"\r\r\n", "crlf-lf": b"\r\n\n", "dot-line": b"\r\n.\r\n", "clean": b"\r\n",
}
#: Of a message: what makes a second one of its end, were the end believed.
SMUGGLED = b"MAIL FROM:<eve@a.example>\r\nRCPT TO:<eve@b.example>\r\nDATA\r\nSubject: evil\r\n\r\n"


#: Who gives a text to a service; whether the service took it, or an error was told.
Door = Callable[["Way", bytes], bool]


@dataclass
class Way:
    """From the doors to the wire.

    :ivar service: relays whatever is for others to *tap*.
    :ivar tap: records what is said to *exchanger*.
    :ivar socket: the submission socket of *service*.
    """

    service: Service
    tap: Tap
    exchanger: Exchanger
    socket: str

    def program(self, code: str, *arguments: str, text: bytes = b"") -> bool:
        """Whether a Python program in a process of its own ends well; it may end with an error
        that it tells, and with no other."""
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], input=text, capture_output=True, check=False,
            timeout=PATIENCE, env={**os.environ, "MAILSVC_SOCKET": self.socket})
        assert done.returncode in (0, os.EX_DATAERR, os.EX_USAGE), (done.stdout, done.stderr)
        return done.returncode == 0


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    # The path of a socket must be short.
    with (tempfile.TemporaryDirectory(prefix="ms-") as place,
          Exchanger("127.0.0.1", 0) as exchanger,
          Tap(("127.0.0.1", exchanger.port)) as tap,
          Service(tmp_path_factory.mktemp("doors") / "data", (f"{ALICE}:secret",), (
              "--submission", f"unix:{place}/s", "--submissions", "127.0.0.1:0",
              "--alias", f"list@a.example={BOB}",
              "--set", f"relay.smarthost=smtp+plain://127.0.0.1:{tap.address[1]}")) as service):
        yield Way(service, tap, exchanger, f"{place}/s")


# ---- the doors -----------------------------------------------------------------------------------


def submission(way: Way, text: bytes) -> bool:
    """A program that sends the octets it has, whatever they are."""
    with _logged_in(way) as smtp:
        return _by_data(smtp, BOB, text)


def chunks(way: Way, text: bytes) -> bool:
    """The same by BDAT, which knows neither dots nor the ends of lines."""
    with _logged_in(way) as smtp:
        smtp.mail(ALICE)
        smtp.rcpt(BOB)
        smtp.send(b"BDAT %d LAST\r\n" % len(text) + text)
        return _taken(smtp)


def exploded(way: Way, text: bytes) -> bool:
    """From outside, to an address here that leads elsewhere."""
    with smtplib.SMTP(*way.service.smtp, timeout=PATIENCE) as smtp:
        return _by_data(smtp, "list@a.example", text)


def sendmail(way: Way, text: bytes) -> bool:
    """mailsvc sendmail, by the submission socket."""
    return way.program("from mailsvc.sendmail import main; main()", "-i", BOB, text=text)


def send(way: Way, text: bytes) -> bool:
    """mailsvc send, the message from its standard input."""
    return way.program(CLI, *TO_BOB, "--data", "-", text=text)


def send_body(way: Way, text: bytes) -> bool:
    """mailsvc send, the text as an argument: it makes a message."""
    return way.program(CLI, *TO_BOB, "--subject", "door", "--body", text.decode())


def send_attachment(way: Way, text: bytes) -> bool:
    """mailsvc send, the text as a file."""
    with tempfile.NamedTemporaryFile(suffix=".eml") as file:
        file.write(text)
        file.flush()
        return way.program(CLI, *TO_BOB, "--attach", file.name)


def send_across(way: Way, text: bytes) -> bool:
    """mailsvc send without a service: our client is on the wire."""
    return way.program(CLI, *TO_BOB, "--server", "{}:{}".format(*way.tap.address), "--data", "-",
                       text=text)


def library(way: Way, text: bytes) -> bool:
    """The client library, likewise."""
    return way.program(LIBRARY, *map(str, way.tap.address), text=text)


CLI = "from mailsvc.cli import main; main()"
TO_BOB = ("send", "--from", ALICE, "--to", BOB)
LIBRARY = """
import os, sys
from mailsvc.blocking import send_mail
from mailsvc.client import NotSent
try:
    send_mail(sys.argv[1], "alice@a.example", ["bob@b.example"], sys.stdin.buffer.read(),
              port=int(sys.argv[2]))
except NotSent as error:
    print(error)
    sys.exit(os.EX_DATAERR)
"""

DOORS: list[Door] = [submission, chunks, exploded, sendmail, send, send_body, send_attachment,
                     send_across, library]


def _logged_in(way: Way) -> smtplib.SMTP:
    smtp = smtplib.SMTP_SSL(*way.service.listeners["submissions"], timeout=PATIENCE,
                            context=unverified())
    smtp.login(ALICE, "secret")
    return smtp


def _by_data(smtp: smtplib.SMTP, recipient: str, text: bytes) -> bool:
    """Dots doubled where CR LF is before them, as a client does that knows no other line end."""
    smtp.ehlo_or_helo_if_needed()
    smtp.mail(ALICE if "a.example" not in recipient else "carol@c.example")
    assert smtp.rcpt(recipient)[0] == 250
    assert smtp.docmd("DATA")[0] == 354
    smtp.send(b"\r\n".join(b"." + line if line.startswith(b".") else line
                           for line in text.split(b"\r\n")) + b"\r\n.\r\n")
    return _taken(smtp)


def _taken(smtp: smtplib.SMTP) -> bool:
    code, words = smtp.getreply()
    assert code == 250 or words.startswith(b"5.6.11 "), (code, words)
    return code == 250


# ---- the wire ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stray", STRAY)
@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_no_stray_line_end_leaves(way: Way, door: Door, stray: str) -> None:
    before = len(way.exchanger.messages)
    taken = door(way, HEADER + b"first" + STRAY[stray] + SMUGGLED)
    if stray in ("clean", "dot-line"):
        assert taken
    deadline = time.monotonic() + PATIENCE
    while len(way.exchanger.messages) < before + taken:
        assert time.monotonic() < deadline, way.service.log.read_text()[-3000:]
        time.sleep(0.02)
    spoken = b"".join(map(bytes, way.tap.spoken))
    assert re.search(rb"(?<!\r)\n|\r(?!\n)", spoken) is None
    # What looks like commands amid the text has stayed text.
    assert len(way.exchanger.messages) == before + taken
    assert not any(b"eve@" in line for line in way.tap.commands())
    for sender, recipients, text, _ in way.exchanger.messages[before:]:
        assert "eve@" not in sender and recipients == [f"RCPT TO:<{BOB}>"]
        assert b"eve@b.example" in text or door is send_attachment
