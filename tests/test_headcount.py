"""mailsvc.headcount: counts of one process and of several."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from mailsvc.headcount import Counting, Counts, Crew, Headcount
from mailsvc.pace import Pace

SOURCES = ["", "192.0.2.1", "192.0.2.2", "2001:db8::/64"]


@pytest.fixture(params=["one", "shared"])
def counts(request: pytest.FixtureRequest) -> Counting:
    return Counts() if request.param == "one" else Headcount(3).share(1)


def test_connections_are_counted_in_all_and_by_source(counts: Counting) -> None:
    assert counts.enter("192.0.2.1") == (1, 1)
    assert counts.enter("192.0.2.2") == (2, 1)
    assert counts.enter("192.0.2.1") == (3, 2)
    assert counts.enter("") == (4, 0)
    counts.leave("192.0.2.1")
    counts.leave("")
    assert counts.enter("192.0.2.1") == (3, 2)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(SOURCES), st.booleans())))
def test_several_see_what_one_would(steps: list[tuple[int, str, bool]]) -> None:
    headcount, there = Headcount(4), Counter[tuple[int, str]]()
    shares = [headcount.share(row) for row in range(4)]
    for row, source, comes in steps:
        if comes:
            there[row, source] += 1
            found = shares[row].enter(source)
            assert found == (there.total(), sum(
                number for (_, other), number in there.items() if other == source and source))
        elif there[row, source]:
            there[row, source] -= 1
            shares[row].leave(source)
    headcount.clear(2)
    left = {key: number for key, number in there.items() if key[0] != 2}
    assert headcount.total() == sum(left.values())
    for source in SOURCES[1:]:
        of_source = sum(number for (_, other), number in left.items() if other == source)
        assert shares[0].enter(source)[1] == of_source + 1
        shares[0].leave(source)


def test_addresses_rarely_share_a_count() -> None:
    counts = Headcount(2).share(0)
    for number in range(1000):
        counts.enter(f"198.51.{number // 250}.{number % 250}")
    wrong = 0
    for number in range(1000):
        wrong += counts.enter(f"203.0.{number // 250}.{number % 250}")[1] > 1
        counts.leave(f"203.0.{number // 250}.{number % 250}")
    assert wrong < 50  # some 4 are to be expected


def test_processes_count_together() -> None:
    """Each of four forks counts in a row of its own."""
    headcount = Headcount(4)
    in_forks(4, lambda row: [headcount.share(row).enter("192.0.2.1") for _ in range(25)] and 0)
    assert headcount.share(0).enter("192.0.2.1") == (101, 101)


def test_processes_keep_one_pace() -> None:
    headcount, clock = Headcount(4), Clock()

    def served(row: int) -> int:
        pace = Pace(100, clock, headcount.share(row).connections)
        return sum(not pace.exceeds("192.0.2.1") for _ in range(200))

    assert sum(in_forks(4, served)) == 100


def in_forks(number: int, act: Callable[[int], int]) -> list[int]:
    """What *act* answers, below 256, for 0, 1, … in a process for each."""
    children = []
    for row in range(number):
        pid = os.fork()
        if not pid:
            os._exit(act(row))
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def test_who_leads_a_crew(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    crew = Crew(8)
    smtp, pop3 = ([crew.counts[name].share(row) for row in range(8)] for name in ("smtp", "pop3"))
    assert not crew.leads(0), "nobody else is there"
    for row in 0, 1, 2:
        crew.beat(row)
    for _ in range(3):
        smtp[0].enter("")
    pop3[1].enter("")
    assert [crew.leads(row) for row in (0, 1, 2)] == [True, True, False]
    pop3[2].enter("")
    assert [crew.leads(row) for row in (0, 1, 2)] == [True, False, False]
    smtp[1].enter("")
    smtp[1].enter("")
    assert crew.leads(0)
    crew.rest(2)
    assert not crew.leads(0), "who drains is no measure"
    for _ in range(5):
        smtp[0].enter("")
        smtp[1].enter("")
    smtp[0].enter("")
    smtp[0].enter("")
    assert not crew.leads(0), "10 and 8 are as good as even"
    smtp[0].enter("")
    assert crew.leads(0)
    now[0] += 10
    crew.beat(0)
    assert not crew.leads(0), "who does not answer is none either"
    assert [crew.silence(row) for row in (0, 1, 2)] == [0, 10, 0]
    crew.clear(0)
    assert crew.counts["smtp"].total() == 7
