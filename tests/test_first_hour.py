"""The first hour goes as the documentation shows it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import absent

ROOT = Path(__file__).parent.parent
#: What differs each time.
CHANGING = re.compile(r"localhost:[0-9]+|trace [0-9A-Z]{16}")


def typed(transcript: str) -> list[str]:
    """The commands of *transcript*."""
    return [CHANGING.sub("...", line) for line in transcript.splitlines() if line.startswith("$ ")]


@pytest.mark.slow
def test_as_documented(program: Callable[[str], str]) -> None:
    for name in ("unshare", "ip", "pebble", "postfix"):
        program(name)
    if os.geteuid() != 0:
        absent("root, who may make networks")
    done = subprocess.run([sys.executable, "-m", "tests.first_hour"], cwd=ROOT, text=True,
                          capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert typed(done.stdout) == typed((ROOT / "docs" / "first-hour.txt").read_text())
    # Nothing fails once the records are published, and a certificate that everybody trusts is used.
    _, _, afterwards = done.stdout.partition("# The records are in the DNS now.")
    assert not re.search(r"^FAIL", afterwards, re.MULTILINE), afterwards
    assert re.search(r"^ok +certificate .*trusted for mail\.example\.org$", afterwards,
                     re.MULTILINE), afterwards
    # What Bob wrote came over TLS and was fetched.
    assert "with ESMTPS id " in afterwards and "\nDoes it work?\n1 fetched" in afterwards
    (seconds,) = re.findall(r"^# All of this took ([0-9]+) seconds", afterwards, re.MULTILINE)
    assert int(seconds) < 300
