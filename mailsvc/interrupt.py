"""What Ctrl-C does to a program: at most times it ends it, without a word.

Python's own handler raises KeyboardInterrupt wherever the program happens to be.  That is good for
what a command does, which may have something to put right, and is prepared.  It is not while
modules are imported, which takes longer than people's patience, nor before and after the command:
nobody is there to catch it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any


def ends_quietly() -> AbstractContextManager[None]:
    """Meanwhile SIGINT ends this process as it ends programs, where it raised KeyboardInterrupt."""
    return _instead(signal.default_int_handler, signal.SIG_DFL)


def is_raised() -> AbstractContextManager[None]:
    """Meanwhile SIGINT raises KeyboardInterrupt, where it ended this process."""
    return _instead(signal.SIG_DFL, signal.default_int_handler)


@contextmanager
def _instead(usual: Any, meanwhile: Any) -> Iterator[None]:
    # Where SIGINT does something else, or there are other threads that could wait for it, it stays.
    if (threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGINT) is not usual):
        yield
        return
    signal.signal(signal.SIGINT, meanwhile)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is meanwhile:
            signal.signal(signal.SIGINT, usual)
