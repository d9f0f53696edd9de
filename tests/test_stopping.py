"""mailsvc.stopping: signals that stop a service, from its first moment on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mailsvc.stopping import StopSignals


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The handlers of pytest and of its reactor are there again afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Starting:
    """A reactor that does not run yet."""

    running = False

    def __init__(self) -> None:
        self.then: list[Callable[[], object]] = []
        self.stopped = 0

    def callWhenRunning(self, act: Callable[..., object], *args: Any) -> None:
        self.then.append(lambda: act(*args))

    def addSystemEventTrigger(self, *_: object) -> None:
        pass

    def stop(self) -> None:
        self.stopped += 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_that_comes_before_the_reactor_runs_stops_it(number: signal.Signals) -> None:
    """Workers serve then already, so that somebody may have seen the service at work."""
    reactor = Starting()
    signal.signal(number, signal.SIG_DFL)
    StopSignals().serve(reactor, lambda: None)
    os.kill(os.getpid(), number)
    assert not reactor.stopped
    for act in reactor.then:
        act()
    assert reactor.stopped == 1
