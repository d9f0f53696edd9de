"""Ctrl-C amid imports, which take longer than people's patience; imports next to nothing itself."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ends_quietly() -> Iterator[None]:
    """Meanwhile SIGINT ends this process as it ends programs, without a word.

    Python's own handler would raise an exception, in the middle of whatever is being imported.
    Where SIGINT does something else, or there are other threads that could wait for it, it stays.
    """
    if (threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGINT) is not signal.default_int_handler):
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
