"""mailsvc.interrupt: Ctrl-C ends a command without a word, whatever it is amid."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.command_line import CommandLine
from tests.service import PATIENCE

ROOT = Path(__file__).parent.parent
#: As the shell tells it, if the command did not put it into its own words.
INTERRUPTED = (-signal.SIGINT, 128 + signal.SIGINT)

#: As an installation makes them of what setup.cfg names.
SCRIPTS = {"mailsvc": "main", "mailsvc-sendmail": "sendmail"}
#: Commands that wait for standard input, once they have come so far.
WAITING = {
    "mailsvc": ("account", "add", "c@example.org", "--password-stdin"),
    "mailsvc-sendmail": ("--socket", "/nowhere", "c@example.org")}
#: What they say in the end when nothing comes.
ENDS = {"mailsvc": "Error: the password is empty;", "mailsvc-sendmail": "sendmail: /nowhere: "}

#: Python runs it before the script.  It counts the events that Python tells, from the first import
#: of mailsvc.__main__ on, which is the first thing there that takes any time; tells by the
#: descriptor TELL that this has come; and interrupts itself AT an event.
_BEFORE = """
import os, signal, sys

begun, number = False, -1
tell, at = int(os.environ["TELL"]), int(os.environ["AT"])

def hook(event, arguments):
    global begun, number
    if number >= 0:
        number += 1
    elif begun and event == "import":
        number = 0
        if tell >= 0:
            os.write(tell, b"!")
    elif event == "exec" and arguments[0].co_filename.endswith("/mailsvc/__main__.py"):
        begun = True
    if number == at:
        os.kill(os.getpid(), signal.SIGINT)

sys.addaudithook(hook)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("interrupt") / "data"
    CommandLine(data)("domain", "add", "example.org")
    return data


@contextmanager
def started(script: str, data: Path, *, stdin: int, tell: int = -1, at: int = sys.maxsize
            ) -> Iterator[subprocess.Popen[str]]:
    """The command of that name, waiting; TELL and AT are those of :data:`_BEFORE`."""
    place = data.parent / "before"
    if not place.exists():
        place.mkdir()
        (place / "sitecustomize.py").write_text(_BEFORE)
        for name, function in SCRIPTS.items():
            (place / name).write_text(f"import sys\nfrom mailsvc.__main__ import {function}\n"
                                      f"sys.exit({function}())\n")
    words = () if script == "mailsvc-sendmail" else ("--dir", str(data))
    with subprocess.Popen(
            [sys.executable, place / script, *words, *WAITING[script]], text=True, stdin=stdin,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=[tell] * (tell >= 0),
            env={**os.environ, "PYTHONPATH": f"{place}{os.pathsep}{ROOT}", "TELL": str(tell),
                 "AT": str(at)}) as process:
        yield process


@pytest.mark.parametrize("script", SCRIPTS)
def test_at_any_time(script: str, data: Path) -> None:
    for milliseconds in [*range(0, 30, 3), *range(30, 300, 30), 400, 600, 800]:
        here, there = os.pipe()
        with started(script, data, stdin=subprocess.PIPE, tell=there) as process:
            os.close(there)
            assert os.read(here, 1) == b"!"
            os.close(here)
            time.sleep(milliseconds / 1000)
            process.send_signal(signal.SIGINT)
            # Not yet from communicate(), which ends what it reads.
            process.wait(PATIENCE)
            said = process.communicate(timeout=PATIENCE)
        assert (process.returncode in INTERRUPTED, *said) == (True, "", ""), milliseconds


@pytest.mark.parametrize("script", SCRIPTS)
def test_at_any_event(script: str, data: Path) -> None:
    number, interrupted = 0, 0
    for _ in range(200):
        with started(script, data, stdin=subprocess.DEVNULL, at=number) as process:
            out, said = process.communicate(timeout=PATIENCE)
        if process.returncode not in INTERRUPTED:
            # There were not that many.
            assert said.startswith(ENDS[script])
            break
        assert out == "" and re.fullmatch(f"({ENDS[script]}.*\n)?", said), number
        interrupted += 1
        number += 1 + number // 8
    assert 20 < interrupted < 200


#: Interrupts itself as it imports *module*, and so at a moment that is always the same.
_AMID_IMPORTS = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
sys.argv = ["mailsvc", *sys.argv[1:]]
from mailsvc.__main__ import main
main()
"""


@pytest.mark.parametrize(("module", "command"), [
    ("click", ["account", "list"]),
    ("mailsvc.config", ["account", "list"]),
    ("mailsvc.cli.accounts", ["account", "list"]),
    ("mailsvc.cli.dev", ["dev", "--smtp", "0", "--pop3", "0"]),
    ("twisted.internet.reactor", ["dev", "--smtp", "0", "--pop3", "0"]),
])
def test_an_interrupt_amid_imports(module: str, command: list[str], data: Path,
                                   tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _AMID_IMPORTS.format(module=module), "--dir",
         str(tmp_path / "data" if command[0] == "dev" else data), *command],
        capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode in INTERRUPTED, done.stderr) == (True, "")


def test_an_interrupt_of_what_waits(data: Path) -> None:
    with subprocess.Popen([sys.executable, "-m", "mailsvc", "--dir", str(data),
                           *WAITING["mailsvc"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        # It waits for the password once it reads standard input.
        for _ in range(10 * int(PATIENCE)):
            waits = Path(f"/proc/{process.pid}/wchan").read_text()
            if "pipe" in waits:
                break
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode in INTERRUPTED, said) == (True, "")
