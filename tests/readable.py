"""Waiting for a descriptor, of any number: select(2) knows none above 1023."""

from __future__ import annotations

import select
from typing import IO


def readable(stream: IO[bytes] | int, seconds: float) -> bool:
    """Whether *stream* can be read, or is at its end, within *seconds*."""
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    return bool(poll.poll(1000 * max(0.0, seconds)))
