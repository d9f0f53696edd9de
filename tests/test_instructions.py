"""What a message costs in processor instructions, so that nobody makes it dearer unseen.

A change that does so on purpose, or makes it cheaper, moves the figure here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from twisted.logger import LogLevel

from mailsvc.mail import new_id
from mailsvc.tracing.archive import Writer
from mailsvc.tracing.events import entry_of
from mailsvc.tracing.limits import TraceSettings
from tests.instructions import count, yardstick
from tests.maildrops import FakeMaildrop, message
from tests.pop3 import Client
from tests.postoffice import Line
from tests.relaying import Relaying

__all__ = ["pop3", "relay", "smtp", "trace", "yardstick"]

#: In units of the yardstick.
EXPECTED = {"smtp": 23.2, "pop3": 4.4, "relay": 52.0, "trace": 3.4}
#: By how much it may be off: another interpreter weighs things otherwise.
TOLERANCE = 0.15

TEXT = message(4096)


def smtp(times: int) -> None:
    """Messages of 4 KiB to one recipient, without network and disk; each command by itself."""
    client = Line()
    client.say(b"EHLO client.example\r\n")
    for _ in range(times):
        for each in (b"MAIL FROM:<a@example.net>\r\n", b"RCPT TO:<alice@example.org>\r\n",
                     b"DATA\r\n", TEXT + b".\r\n"):
            client.say(each)
    assert len(client.store.mail) == times


def pop3(times: int) -> None:
    """Messages of 4 KiB fetched one by one, without network and disk."""
    maildrop = FakeMaildrop([TEXT])
    maildrop.way = "at hand"
    client = Client(maildrop).log_in()
    for _ in range(times):
        client.say(b"RETR 1\r\n")


def relay(times: int) -> None:
    """Messages of 4 KiB relayed over 20 connections, without network."""
    with tempfile.TemporaryDirectory() as directory:
        relaying = Relaying(Path(directory))
        for _ in range(times):
            relaying.put(TEXT)
        assert relaying.run() == times


def trace(times: int) -> None:
    """Events kept of messages that were taken, all at once."""
    account = ["alice@example.org"]
    kept = [entry_of({
        "id": new_id(), "connection": new_id(), "client": "192.0.2.7", "hello": "client.example",
        "sender": "a@example.net", "recipients": account, "accounts": account, "queued": [],
        "message_id": f"<{number}.17@client.example>", "size": 4096, "user": "", "tls": "",
        "arriving": 1200, "checks": 200, "storing": 6100, "event": "message.received",
        "log_namespace": "mailsvc.smtp", "log_level": LogLevel.info, "log_format": "{id} accepted",
        "log_time": 1_700_000_000 + number / 1000, "log_logger": None, "log_source": None,
    }) for number in range(times)]
    with tempfile.TemporaryDirectory() as directory:
        writer = Writer(Path(directory), TraceSettings())
        writer.write(kept)
        writer.close()


@pytest.mark.slow
def test_instructions_for_a_message(program: Callable[[str], str]) -> None:
    counted = count(program("valgrind"), "tests.test_instructions",
                    ["yardstick", *EXPECTED], 50, 150)
    relative = {work: counted[work] / counted["yardstick"] for work in EXPECTED}
    assert relative == pytest.approx(EXPECTED, rel=TOLERANCE), relative
