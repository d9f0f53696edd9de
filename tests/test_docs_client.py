"""The programs of docs/client.rst run, against a service."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from mailsvc import client
from tests.service import Service

PAGE = (Path(__file__).parent.parent / "docs" / "client.rst").read_text()
PROGRAMS = {name: dedent(text) for name, text in re.findall(
    r"\.\. code-block:: python\n   :name: (\w+)\n\n((?:   .*\n|\n)+)", PAGE)}


@pytest.mark.parametrize(("name", "printed"), [
    ("blocking", "bob@example.org True 2.0.0\n"), ("steps", "52428800\n"),
    ("async", "[True, False]\n" * 3)])
def test_an_example(name: str, printed: str, tmp_path: Path) -> None:
    with Service(tmp_path / "data", ("bob@example.org:secret",)) as service:
        host, port = service.smtp
        program = f"HOST, PORT = {host!r}, {port}\n{PROGRAMS[name]}"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                              timeout=60, check=False)
    assert (done.stdout, done.stderr) == (printed, "")


def test_there_are_no_others() -> None:
    assert set(PROGRAMS) == {"blocking", "steps", "async"} and PAGE.count("code-block") == 3


def test_the_failures_are_where_the_page_says() -> None:
    table = re.search(r"(?m)^=+ =+\n(.*?)^=+ =+$", PAGE, re.DOTALL)
    assert table is not None
    names = re.findall(r"(?m)^``(\w+)``", table[1])
    assert len(names) > 9
    for name in (*names, "SendingFailure", "NotSent", "Outcome"):
        assert name in client.__all__
        failure = getattr(client, name)
        if name in names[:-1]:
            assert issubclass(failure, client.SendingFailure)
