"""The end of a reactor's turn: all that has come has been handled, and nothing new is asked for.

What wakes somebody up, another thread or the peer of a connection, is best done then, and once:
whoever wakes takes the processor, or the interpreter's lock, from the one that has more to read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

_log = Logger()

#: What is to be done when this turn is over.
_due: list[Callable[[], object]] = []


def at_end_of_turn(reactor: Any, act: Callable[[], object], *, first: bool = False) -> None:
    """Do *act* when the present turn of *reactor* is over; in the reactor's thread alone.

    :param first: before whatever else is to be done then.
    """
    if not _due:
        reactor.callLater(0, _end)
    _due.insert(0 if first else len(_due), act)


def _end() -> None:
    acts = _due.copy()
    _due.clear()
    for act in acts:
        try:
            act()
        except Exception:  # as the reactor has it: a fault of one is not to be felt by the others
            _log.failure("something was not done at the end of a turn")


# A worker is forked amid a turn of its supervisor, of which nothing is the worker's: with any of it
# left here, no end of a turn would be asked for, ever.
os.register_at_fork(after_in_child=_due.clear)
