"""mailsvc.figures, mailsvc.gathering, mailsvc.observer: what is counted, added up and measured."""

from __future__ import annotations

import os
import signal
import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from mailsvc import figures
from mailsvc.authentication import _NEEDS
from mailsvc.errors import (
    EnhancedStatus,
    MailboxFull,
    MailboxMoved,
    MailFailure,
    PermanentFailure,
    RelayDenied,
    RoutingLoop,
    StorageFull,
    TemporaryFailure,
    UnknownMailbox,
)
from mailsvc.figures import FIGURES, Figure, Figures, Reading, Share, Spreading, Value
from mailsvc.gathering import Gathering, Process
from mailsvc.mail import new_id, time_of
from mailsvc.observer import Observer
from mailsvc.smtp.replies import from_failure
from mailsvc.smtp.tally import Tally

ROWS = 3


def everything(reading: Reading) -> dict[tuple[str, tuple[str, ...]], Value]:
    return {(figure.name, values): reading.total(figure, *values)
            for figure in FIGURES for values in figure.values}


# ---- one process --------------------------------------------------------------------------------


def test_every_figure_has_a_name_of_its_own_by_the_conventions_of_prometheus() -> None:
    assert len({figure.name for figure in FIGURES}) == len(FIGURES)
    for figure in FIGURES:
        assert (figure.kind == "counter") == figure.name.endswith("_total"), figure.name
        assert figure.kind != "histogram" or figure.name.endswith("_seconds")
        assert all(len(values) == len(figure.labels) for values in figure.values)
        assert len(set(figure.values)) == len(figure.values)
        assert list(figure.bounds) == sorted(set(figure.bounds))
        assert figure.sentence.endswith(".")


def test_no_cell_belongs_to_two_series() -> None:
    """Each series is set to a number of its own; all are found again."""
    memory = Figures(2)
    share, number, expected = Share(memory, 1), 0, {}
    for figure in FIGURES:
        for values in figure.values:
            number += 1
            if figure.kind == "histogram":
                for _ in range(number):
                    share.spread(figure, *values).observe(10**16)
                expected[figure.name, values] = Spreading(
                    figure.bounds, (*[0] * len(figure.bounds), number), number * 1e7)
                continue
            (share.count if figure.kind == "counter" else share.level)(figure, *values).add(number)
            expected[figure.name, values] = number / figure.unit
    assert everything(memory.read()) == expected


def test_what_has_no_series_of_its_own_counts_as_other() -> None:
    memory = Figures(1)
    share = Share(memory)
    share.count(figures.LOGINS, "pop3", "X-NEW", "failed").add()
    share.count(figures.REFUSED_RECIPIENTS, "lmtp", "599", "5.9").add(2)
    share.count(figures.REFUSED_RECIPIENTS, "lmtp", "550", "4.2").add()
    reading = memory.read()
    assert reading.total(figures.LOGINS, "pop3", "other", "failed") == 1
    assert reading.total(figures.REFUSED_RECIPIENTS, "lmtp", "other", "other") == 3
    for figure, labels in ((figures.SESSIONS, ("imap",)), (figures.FETCHED, ("pop3",)),
                           (figures.LOGINS, ("imap", "PLAIN", "failed"))):
        with pytest.raises((KeyError, ValueError)):
            share.count(figure, *labels)


@given(st.lists(st.integers(0, 20 * 10**9)))
def test_a_histogram_counts_what_is_up_to_each_bound(times: list[int]) -> None:
    memory = Figures(1)
    spread = Share(memory).spread(figures.COMMIT)
    for each in times:
        spread.observe(each)
    found = memory.read().total(figures.COMMIT)
    assert isinstance(found, Spreading)
    bounds = [round(1e9 * bound) for bound in figures.COMMIT.bounds]
    expected = Counter(bisect_left(bounds, each) for each in times)
    assert found.counts == tuple(expected[number] for number in range(len(bounds) + 1))
    assert found.sum == pytest.approx(sum(times) / 1e9, abs=1e-6 * len(times))
    # By the definition of le: what is as large as the bound is in the bucket.
    assert sum(found.counts[:3]) == sum(each <= bounds[2] for each in times)


def test_every_mechanism_has_a_series() -> None:
    known = {"SCRAM" if name.startswith("SCRAM") else name for name in _NEEDS}
    assert known <= set(figures.MECHANISMS)


@pytest.mark.parametrize("failure", [
    UnknownMailbox("x"), MailboxMoved("x", "a@b"), RelayDenied("x"), RoutingLoop("x"),
    MailboxFull("x"), StorageFull("x"), TemporaryFailure("x"), PermanentFailure("x"),
    PermanentFailure("x", EnhancedStatus(5, 2, 1)), TemporaryFailure("x", EnhancedStatus(4, 7, 1)),
    TemporaryFailure("x", EnhancedStatus(4, 2, 1)), PermanentFailure("x", EnhancedStatus(5, 2, 2)),
], ids=lambda failure: f"{type(failure).__name__} {failure.status}")
def test_what_recipients_are_refused_for_has_a_series(failure: MailFailure) -> None:
    memory = Figures(1)
    Tally(Share(memory), "smtp").refused(from_failure(failure, rcpt=True))
    reading = memory.read()
    assert reading.total(figures.REFUSED_RECIPIENTS, "smtp", "other", "other") == 0
    assert sum(float(reading.total(figures.REFUSED_RECIPIENTS, *values))  # type: ignore[arg-type]
               for values in figures.REFUSED_RECIPIENTS.values) == 1


def test_ids_tell_when_they_were_made() -> None:
    before = time.time()
    assert before - 0.001 <= time_of(new_id()) <= time.time() + 0.001
    with pytest.raises(ValueError):
        time_of("u-turn")


# ---- several ------------------------------------------------------------------------------------

_COUNTERS = [(figure, values) for figure in FIGURES if figure.kind == "counter"
             for values in figure.values][:12]
_GAUGES = [(figures.CONNECTIONS, ("smtp",)), (figures.QUEUE, ("held",)), (figures.BANS, ())]

_STEPS = st.lists(st.one_of(
    st.tuples(st.just("count"), st.integers(0, ROWS - 1), st.integers(0, len(_COUNTERS) - 1),
              st.integers(0, 2**40)),
    st.tuples(st.just("set"), st.integers(0, ROWS - 1), st.integers(0, len(_GAUGES) - 1),
              st.integers(0, 2**40)),
    st.tuples(st.just("observe"), st.integers(0, ROWS - 1), st.just(0), st.integers(0, 10**11)),
    st.tuples(st.just("die"), st.integers(0, ROWS - 1), st.just(0), st.just(0)),
))


@given(_STEPS)
def test_sums_over_workers_that_die_and_are_replaced(
    steps: list[tuple[str, int, int, int]]
) -> None:
    """Against a model that knows of no rows; and no counter ever goes back."""
    memory = Figures(ROWS)
    shares = [Share(memory, row) for row in range(ROWS)]
    counted: Counter[int] = Counter()
    levels: dict[tuple[int, int], int] = {}
    observed: list[int] = []
    for what, row, number, value in steps:
        if what == "count":
            figure, values = _COUNTERS[number]
            shares[row].count(figure, *values).add(value)
            counted[number] += value
        elif what == "set":
            figure, values = _GAUGES[number]
            shares[row].level(figure, *values).set(value)
            levels[row, number] = value
        elif what == "observe":
            shares[row].spread(figures.LAG).observe(value)
            observed.append(value)
        else:
            memory.clear(row)
            shares[row] = Share(memory, row)
            levels = {key: level for key, level in levels.items() if key[0] != row}
        reading = memory.read()
        for counter, (figure, values) in enumerate(_COUNTERS):
            assert reading.total(figure, *values) == counted[counter]
        for counter, (figure, values) in enumerate(_GAUGES):
            there = [level for (_, gauge), level in levels.items() if gauge == counter]
            assert reading.total(figure, *values) == (
                max(there, default=0) if figure is figures.BANS else sum(there))
        spreading = reading.total(figures.LAG)
        assert isinstance(spreading, Spreading)
        assert sum(spreading.counts) == len(observed)
        assert spreading.sum == pytest.approx(sum(observed) / 1e9, abs=1e-6 * len(observed))


def test_counts_of_a_killed_process_stay() -> None:
    memory = Figures(2)
    for _ in range(3):
        pid = os.fork()
        if not pid:
            share = Share(memory, 1)
            share.level(figures.CONNECTIONS, "pop3").add(7)
            for _ in range(1000):
                share.count(figures.FETCHED).add()
            os.kill(os.getpid(), signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        assert memory.read().total(figures.CONNECTIONS, "pop3") == 7
        memory.clear(1)
    assert memory.read().total(figures.FETCHED) == 3000
    assert memory.read().total(figures.CONNECTIONS, "pop3") == 0


@pytest.mark.parametrize(("figure", "values", "expected"), [
    (figures.QUEUE_AGE, (0, 3 * 10**6, 10**6), 4.0),
    (figures.BANS, (4, 6, 5), 6),
    (figures.DISK_FILES, (0, 900, 800), 800),
    (figures.DISK_FILES, (0, 0, 0), 0),
    (figures.WRITTEN, (10**6, 3 * 10**6, 0), 3.0),
])
def test_how_rows_become_one(figure: Figure, values: tuple[int, ...], expected: float) -> None:
    memory = Figures(ROWS)
    for row, value in enumerate(values):
        Share(memory, row).level(figure, *figure.values[0]).set(value)
    assert memory.read().total(figure, *figure.values[0]) == expected


# ---- a whole service ----------------------------------------------------------------------------


@dataclass
class Watched:
    """A service that says of itself what the test wants."""

    stopping: bool = False
    there: list[Process] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def processes(self) -> list[Process]:
        return self.there

    def unbound(self) -> list[str]:
        return self.missing

    def listening(self) -> list[tuple[str, str]]:
        return []

    def certificates(self) -> list[str]:
        return self.names


def of(gathering: Gathering, name: str) -> dict[tuple[str, ...], Value]:
    return dict(next(each for each in gathering.families() if each.name == name).series)


def test_why_a_service_is_not_ready() -> None:
    memory, watched = Figures(ROWS), Watched()
    gathering = Gathering(memory, watched)
    assert gathering.unready() == "no worker serves"
    watched.there = [Process("supervisor", os.getpid(), 2, serves=False),
                     Process("worker-0", os.getpid(), 0, serves=False)]
    assert gathering.unready() == "no worker serves"
    watched.there = [Process("worker-0", os.getpid(), 0, serves=True, silence=60)]
    assert gathering.unready() == "no worker serves"
    watched.there = [Process("worker-0", os.getpid(), 0, serves=True, silence=1)]
    assert gathering.unready() == "the store cannot be written"
    # That another one, which does not serve any more, could write says nothing.
    written = [Share(memory, row).level(figures.WRITTEN) for row in range(ROWS)]
    written[1].set(time.monotonic_ns() // 1000)
    assert gathering.unready() == "the store cannot be written"
    written[0].set(time.monotonic_ns() // 1000)
    assert gathering.unready() is None
    written[0].set(time.monotonic_ns() // 1000 - 60 * 10**6)
    assert gathering.unready() == "the store cannot be written"
    written[0].set(time.monotonic_ns() // 1000)
    watched.missing = ["smtp on tcp:25"]
    assert gathering.unready() == "not listening: smtp on tcp:25"
    watched.stopping = True
    assert gathering.unready() == "the service is stopping"
    assert of(gathering, "ready") == {(): 0}


def test_certificates_are_those_of_workers_that_serve() -> None:
    memory = Figures(ROWS)
    watched = Watched(names=["/etc/a.pem", "/etc/b.pem", "/etc/a.pem", "/etc/c.pem"], there=[
        Process("worker-0", os.getpid(), 0, serves=True),
        Process("worker-1", os.getpid(), 1, serves=False)])
    for row, ends in enumerate(([3000, 2000, 3000], [1000, 0, 0, 5000])):
        for number, end in enumerate(ends):
            Share(memory, row).level(figures.CERTIFICATE, str(number)).set(end * 10**6)
    gathering = Gathering(memory, watched)
    assert of(gathering, "certificate_expiry_timestamp_seconds") == {
        ("/etc/a.pem",): 3000, ("/etc/b.pem",): 2000}


def test_processor_time_does_not_go_back_when_a_process_ends() -> None:
    watched = Watched(there=[Process("worker-0", os.getpid(), 0, serves=True)])
    gathering = Gathering(Figures(1), watched)
    before = of(gathering, "process_cpu_seconds_total")[("worker-0",)]
    assert isinstance(before, float | int)
    assert before > 0
    watched.there = []
    assert of(gathering, "process_cpu_seconds_total") == {("worker-0",): before}
    gathering.ended("worker-0", before + 1)
    assert of(gathering, "process_cpu_seconds_total") == {("worker-0",): before + 1}
    watched.there = [Process("worker-0", os.getpid(), 0, serves=True)]
    after = of(gathering, "process_cpu_seconds_total")[("worker-0",)]
    assert isinstance(after, float | int)
    assert after >= 2 * before + 1
    assert of(gathering, "process_open_fds")[("worker-0",)]


# ---- measuring ----------------------------------------------------------------------------------


def test_an_observer_measures_at_once(tmp_path: Path) -> None:
    memory, looked = Figures(1), []
    observer = Observer(Share(memory), Clock(), [lambda: looked.append(1)], tmp_path, tmp_path)
    observer.startService()
    reading = memory.read()
    assert looked == [1]
    for figure in figures.DISK_FREE, figures.DISK_SIZE:
        assert reading.total(figure, "mail") == reading.total(figure, "data")
        assert float(reading.total(figure, "mail")) > 1 << 20  # type: ignore[arg-type]
    assert reading.total(figures.WRITTEN)
    assert reading.total(figures.DESCRIPTORS)
    assert list(tmp_path.iterdir()) == []
    observer.stopService()


def test_what_cannot_be_measured_does_not_end_the_measuring(tmp_path: Path) -> None:
    memory = Figures(1)

    def fail() -> None:
        raise RuntimeError

    clock = Clock()
    observer = Observer(Share(memory), clock, [fail], tmp_path / "gone", tmp_path)
    observer.startService()
    clock.advance(1)
    clock.advance(1)
    observer.stopService()
    assert not clock.getDelayedCalls()
    reading = memory.read()
    lag = reading.total(figures.LAG)
    assert isinstance(lag, Spreading)
    assert sum(lag.counts) == 2
    assert not reading.total(figures.WRITTEN)
    assert reading.total(figures.DISK_FREE, "mail") == 0
    assert reading.total(figures.DESCRIPTORS)
