"""When a message is tried again, warned of and given up: times in, times out.

After the *n*-th attempt a message waits ``first * factor ** (n - 1)`` seconds, at most ``most``, a
share more or less by chance.  One attempt is made when its sender is to be warned of the delay, and
the last when its lifetime ends, not before: a message is given up only by an attempt that fails
then (RFC 5321 §4.5.4.1).
"""

from __future__ import annotations

import random
from collections.abc import Callable

from mailsvc.mail import NULL_PATH
from mailsvc.queue.limits import QueueSettings
from mailsvc.queue.message import QueuedMessage


class Schedule:
    """The schedule of [queue].

    :param chance: a number from 0 up to 1, another each time.
    """

    def __init__(self, settings: QueueSettings,
                 chance: Callable[[], float] = random.random) -> None:
        self._settings = settings
        self._chance = chance

    def next_attempt(self, message: QueuedMessage, now: float) -> float | None:
        """When *message* is tried again, whose latest attempt failed *now*; None to give it up.

        ``message.attempts`` counts that attempt.
        """
        settings, end = self._settings, self.end(message)
        if now >= end:
            return None
        # The power alone would overflow for a message that was tried a thousand times.
        steps = min(message.attempts - 1, 1000)
        try:
            wait = min(settings.retry_first_seconds * settings.retry_factor ** max(steps, 0),
                       settings.retry_most_seconds)
        except OverflowError:
            wait = settings.retry_most_seconds
        wait *= 1 + settings.retry_jitter * (2 * self._chance() - 1)
        warning = self._warning(message)
        if warning is not None and not message.warned:
            # The warning is due when it is due, not at the attempt after that.
            end = min(end, max(warning, now + 1))
        return min(now + wait, end)

    def end(self, message: QueuedMessage) -> float:
        """When *message* is given up, seconds since the epoch."""
        settings = self._settings
        end = message.began + (
            settings.report_lifetime_seconds if message.reverse_path == NULL_PATH
            else settings.lifetime_seconds)
        return end if message.returns_by is None else min(end, message.returns_by)

    def warns(self, message: QueuedMessage, now: float) -> bool:
        """Whether its sender is to be told now that it is delayed: once."""
        warning = self._warning(message)
        return warning is not None and not message.warned and now >= warning

    def expired(self, message: QueuedMessage, now: float) -> bool:
        """Whether *message* is to be returned, not tried (RFC 2852 §4.1)."""
        # A clock that is a moment early must not make an attempt after all.
        return message.returns_by is not None and now >= message.returns_by - 0.001

    def _warning(self, message: QueuedMessage) -> float | None:
        """When its sender is told that it is delayed; None for never."""
        by, seconds = message.by, self._settings.warning_seconds
        if by is not None and by.mode == "N":
            # RFC 2852 §4.1: of a time that was over when it came, a host before us has told.
            return message.deadline if by.seconds >= 0 else None
        return message.began + seconds if seconds else None
