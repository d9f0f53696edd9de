"""Counts processor instructions of Python code, by valgrind's callgrind: the same each time.

What is counted is said in units of :func:`yardstick`, a piece of plain Python, so that figures of
one interpreter mean something to another, and nothing depends on the machine and its load.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_COLLECTED = re.compile(r"==(\d+)== Collected : (\d+)")


def yardstick(times: int) -> None:
    """What takes some microseconds each time: calls, attributes, strings, dictionaries."""
    found: dict[str, int] = {}
    text = "the quick brown fox jumps over the lazy dog"
    for number in range(times):
        for word in text.split():
            found[word] = found.get(word, 0) + len(word.upper()) + number
        sorted(found.items())


def count(valgrind: str, module: str, works: list[str], few: int, many: int) -> dict[str, float]:
    """Of each of *works*, functions of *module* that do something so many times: the instructions
    that one time takes.

    All are counted in one process and its children: to import *module* takes most of the time.
    """
    arguments = [f"{work}:{times}" for work in works for times in (few, many)]
    done = subprocess.run(
        [valgrind, "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable,
         "-m", "tests.instructions", module, *arguments],
        cwd=Path(__file__).parent.parent, env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True, text=True, timeout=300, check=True)
    collected = dict(_COLLECTED.findall(done.stderr))
    counted = [int(collected[pid]) for pid in done.stdout.split()]
    return {work: (counted[2 * n + 1] - counted[2 * n]) / (many - few)
            for n, work in enumerate(works)}


def main() -> None:
    module, *works = sys.argv[1:]
    namespace = vars(__import__(module, fromlist=["*"]))
    for each in works:
        name, times = each.split(":")
        work: Callable[[int], None] = namespace[name]
        work(2)  # what is made once
        child = os.fork()
        if child == 0:
            work(int(times))
            os._exit(0)
        os.waitpid(child, 0)
        print(child, flush=True)


if __name__ == "__main__":
    main()
