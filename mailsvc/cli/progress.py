"""How far long work has come: a bar on standard error, where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

Tell = Callable[[int, int], None]


@contextmanager
def progress(what: str) -> Iterator[Tell]:
    """What is to be told how many of how many are done, in whatever unit; it may be called often.

    :param what: stands before the bar.
    """
    if not sys.stderr.isatty():
        yield lambda done, of: None
        return
    with Progress(TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
                  TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, of: bars.update(task, completed=done, total=of)
