"""``mailsvc.pace``: how much a source may do in a minute."""

from __future__ import annotations

import gc
import os

import pytest
from twisted.internet.task import Clock

from mailsvc.pace import Levels, Pace


@pytest.fixture(params=["one", "shared"])
def levels(request: pytest.FixtureRequest) -> Levels | None:
    """Where the buckets are: in one process, or for several."""
    return Levels() if request.param == "shared" else None


def test_as_much_at_once_and_then_as_time_gives_it_back(levels: Levels | None) -> None:
    clock = Clock()
    pace = Pace(60, clock, levels)
    assert not pace.exceeds("one", 60)
    assert pace.exceeds("one")
    assert not pace.exceeds("other")
    clock.advance(1)
    assert [pace.exceeds("one") for _ in range(2)] == [False, True]


def test_what_is_too_much_does_not_count(levels: Levels | None) -> None:
    pace = Pace(10, Clock(), levels)
    assert not pace.exceeds("one", 5)
    assert pace.exceeds("one", 6)
    assert not pace.exceeds("one", 5)
    assert pace.exceeds("one", 1)


def test_no_limit() -> None:
    pace = Pace(0, Clock())
    assert not any(pace.exceeds("one", 10**9) for _ in range(5))


def test_a_clock_that_goes_back_gives_nothing_away(levels: Levels | None) -> None:
    clock = Clock()
    clock.advance(1000)
    pace = Pace(1, clock, levels)
    assert not pace.exceeds("one")
    clock.rightNow = 0
    assert pace.exceeds("one")


def test_a_clock_that_goes_back_keeps_nobody_out(levels: Levels | None) -> None:
    clock = Clock()
    clock.advance(1_000_000)
    pace = Pace(6, clock, levels)
    assert not pace.exceeds("one", 6)
    clock.rightNow = 1000
    assert pace.exceeds("one")
    clock.advance(11)
    assert not pace.exceeds("one")


def test_a_million_sources_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mailsvc.pace.SOURCES", 100)
    pace = Pace(1, Clock())
    for number in range(10_000):
        assert not pace.exceeds(str(number))
    assert len(pace._levels) == 100
    assert pace.exceeds("9999"), "the last to come are known"
    assert not pace.exceeds("0")


def test_levels_leave_no_file_open() -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        Levels().exceeds("one", 1, 60, 0.0)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
