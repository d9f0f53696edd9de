"""How soon a worker that died is replaced, and when there is no point in it any more."""

from __future__ import annotations

#: Workers that died before they served, in a row, until the service gives up.
ATTEMPTS = 10
#: The longest pause before a worker takes the place of one that never served, in seconds.
LONGEST_PAUSE = 5.0
#: … and of one that did.
_LONGEST_PAUSE_SERVED = 1.0
#: A worker that served for so many seconds is replaced at once, and so is the first that did not;
#: the next ones after pauses that double, up to the longest.  After some calm it begins anew.
_WELL, _CALM = 1.0, 30.0
_FIRST_PAUSE = 0.05


class Backoff:
    """What is remembered of the deaths of workers.  All times by time.monotonic()."""

    def __init__(self) -> None:
        #: Deaths soon after one another, and when they are forgotten.
        self._deaths = 0
        self._calm = 0.0
        self._failed_starts = 0

    def served(self) -> None:
        """A worker has begun to serve."""
        self._failed_starts = 0

    def died(self, since: float | None, now: float) -> float | None:
        """A worker has died: how long to wait before another starts, in seconds; None is for ever.

        :param since: when it began to serve, or None if it never did.
        """
        served = since is not None
        self._failed_starts = 0 if served else self._failed_starts + 1
        if self._failed_starts >= ATTEMPTS:
            return None
        if (since is not None and now - since >= _WELL) or now > self._calm:
            self._deaths = 0
        pause = min(_FIRST_PAUSE * (2**self._deaths - 1),
                    _LONGEST_PAUSE_SERVED if served else LONGEST_PAUSE)
        self._deaths += 1
        self._calm = now + _CALM
        return pause
