"""The pipe: route: a program gets the message, and its exit status decides."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import reactor

from mailsvc.queue import pipe
from tests.relay import MESSAGE, QUICK, below_trace, mail, queued, relaying, statuses, submit
from tests.relay import until as until_of
from tests.test_queue_workers import together

#: Notes what it was given; ends as the recipient's local-part says: exit-75, say-5.2.2-67, …
PROGRAM = """#!{python} -I
import json, os, sys
text = sys.stdin.buffer.read()
with open({notes!r}, "a") as notes:
    notes.write(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd(), text.decode(),
                            os.geteuid()]) + "\\n")
local = os.environ["RECIPIENT"].split("@")[0]
if local.startswith("exit-"):
    print("as" + 2000 * " you", "wish")
    sys.exit(int(local.split("-")[1]))
if local == "full":
    print("5.2.2 mailbox full", file=sys.stderr)
    sys.exit(77)
"""


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


@pytest.fixture
def route(tmp_path: Path, notes: Path) -> str:
    program = tmp_path / "program"
    program.write_text(PROGRAM.format(python=sys.executable, notes=str(notes)))
    program.chmod(0o755)
    command = f"pipe:{program} -f {{sender}} '{{local_part}} at {{domain}}' -- {{recipient}}"
    return f"relay.routes={{\"far.example\"={json.dumps(command)}}}"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_program_gets_the_message(
    tmp_path: Path, notes: Path, route: str, workers: int
) -> None:
    with together(tmp_path / "a", workers, route) as here:
        submit(here, ["bob@far.example", "`id`$HOME|{sender}@far.example"])
        until_of(lambda: not queued(here), here)
    given = sorted((json.loads(line) for line in notes.read_text().splitlines()),
                   key=lambda each: str(each[0]))
    for (arguments, environment, directory, text, user), name in zip(
            given, ("`id`$HOME|{sender}", "bob"), strict=True):
        assert arguments == ["-f", "alice@a.example", f"{name} at far.example", "--",
                             f"{name}@far.example"]
        environment.pop("LC_CTYPE", None)  # which Python itself adds
        assert environment == {
            "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8",
            "SENDER": "alice@a.example", "RECIPIENT": f"{name}@far.example",
            "ORIGINAL_RECIPIENT": f"{name}@far.example"}
        assert (directory, user) == ("/", os.geteuid())
        assert text.startswith("Return-Path: <alice@a.example>\nReceived: ")
        assert "\r" not in text
        assert below_trace(text.replace("\n", "\r\n").encode()) == MESSAGE


def test_its_exit_status_decides(tmp_path: Path, route: str) -> None:
    ends = {"exit-67": "5.1.1", "exit-77": "5.7.0", "exit-65": "5.6.0", "exit-75": "4.4.7",
            "exit-1": "4.4.7", "exit-78": "4.4.7", "full": "5.2.2", "-option": "5.1.3"}
    with relaying(tmp_path / "a", route, *QUICK[:2], "queue.lifetime_seconds=2") as here:
        for name in ends:
            submit(here, [f"{name}@far.example"])
        until_of(lambda: not queued(here), here)
        found = {recipient.split("@")[0]: status for report in mail(here)
                 for recipient, action, status in statuses(report) if action == "failed"}
        assert found == ends
        # What it says is given as the reason, and no more of it than is good for anybody.
        report, = (each for each in mail(here) if b"exit-67" in each)
        assert b"as you you" in report and len(report) < 6000


async def run(*words: str, message: bytes = b"x\r\n", seconds: float = 10) -> tuple[str, str]:
    status, text = await pipe.run(reactor, words, {}, iter([message]), seconds)
    return str(status), text


@pytest_twisted.ensureDeferred
async def test_what_cannot_be_run_or_does_not_end_is_put_off() -> None:
    status, text = await run("/nowhere/program")
    assert status == "4.3.0"
    status, text = await run("/bin/sleep", "60", seconds=0.2)
    assert (status, "0.2 seconds" in text) == ("4.3.0", True)
    status, text = await run("/bin/sh", "-c", "kill -TERM $$")
    assert (status, text) == ("4.3.0", "the program was ended by signal 15")


@pytest_twisted.ensureDeferred
async def test_one_that_reads_nothing_or_leaves_somebody_behind_holds_nothing_up() -> None:
    assert await run("/bin/true", message=b"x" * 5_000_000) == (
        "2.0.0", "the program ended with status 0")
    assert (await run("/bin/sh", "-c", "sleep 60 & echo done", seconds=5))[0] == "2.0.0"


@pytest_twisted.ensureDeferred
async def test_a_line_end_between_two_blocks() -> None:
    status, text = await pipe.run(
        reactor, ["/bin/sh", "-c", "od -An -c; exit 65"], {},
        iter([b"a\r", b"\nb\r\n", b"", b"c\r", b"d\r"]), 10)
    assert (str(status), text) == ("5.6.0", r"a \n b \n c \r d \r")
