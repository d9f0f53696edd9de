"""Rates of submission: a limit holds in every window, over processes and restarts."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import gatherResults

from mailsvc import database
from mailsvc.errors import TemporaryFailure
from mailsvc.mail import Account
from mailsvc.state import State
from mailsvc.submission.limits import SubmissionSettings
from mailsvc.submission.rates import PERIODS, Ledger, Rates, Sent, TooMuchSent

BOB, ALICE = Account("Bob", "example.org"), Account("alice", "example.org")

#: A time at which a slot of every period begins: midnight of some day.
START = 86_400 * 20_000


class Time:
    """A clock to set."""

    def __init__(self) -> None:
        self.now: float = START

    def __call__(self) -> float:
        return self.now


def limits(**given: int) -> SubmissionSettings:
    """No limits but these."""
    none = {f"{kind}_per_{period}": 0 for kind in ("messages", "recipients") for period in PERIODS}
    return SubmissionSettings(**{**none, **given})  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.sqlite"


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def opened() -> Iterator[list[Ledger]]:
    opened: list[Ledger] = []
    yield opened
    for ledger in opened:
        ledger.close()


@pytest.fixture
def make(path: Path, clock: Time, opened: list[Ledger]):  # type: ignore[no-untyped-def]
    def make(**given: int) -> Ledger:
        ledger = Ledger(State(path), limits(**given), clock)
        opened.append(ledger)
        return ledger

    return make


# --- One limit ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("period", "seconds", "told"), [
    ("minute", 65, "65 seconds"), ("hour", 3900, "65 minutes"), ("day", 93_600, "26 hours")])
def test_messages_in_a_period(make, clock: Time, period: str, seconds: int, told: str) -> None:
    ledger = make(**{f"messages_per_{period}": 3})
    for _ in range(3):
        ledger.check(BOB)
        ledger.count(BOB, 7)
    with pytest.raises(TooMuchSent) as refused:
        ledger.check(BOB)
    # At the very beginning of a slot, which is the longest wait there is, and rounded up.
    assert refused.value.seconds == seconds + 1
    assert str(refused.value.status) == "4.7.1"
    assert refused.value.text.startswith(
        f"You may send 3 messages per {period}; try again in ")
    clock.now += 1
    with pytest.raises(TooMuchSent, match=f"try again in {told}$"):
        ledger.count(BOB, 1)
    ledger.count(ALICE, 1)  # an account of its own
    clock.now = START + seconds - 0.001
    with pytest.raises(TooMuchSent, match=r"try again in 1 second$"):
        ledger.count(BOB, 1)
    clock.now = START + seconds
    ledger.count(BOB, 1)


def test_recipients_are_counted_in_one_message(make) -> None:  # type: ignore[no-untyped-def]
    ledger = make(recipients_per_hour=10)
    ledger.count(BOB, 4)
    ledger.check(BOB, 6)
    with pytest.raises(TooMuchSent, match="may send to 10 recipients per hour; try again in "):
        ledger.check(BOB, 7)
    ledger.count(BOB, 6)
    with pytest.raises(TooMuchSent):
        ledger.check(BOB)


def test_more_recipients_than_ever_allowed(make) -> None:  # type: ignore[no-untyped-def]
    ledger = make(recipients_per_minute=10)
    with pytest.raises(TooMuchSent) as refused:
        ledger.check(BOB, 11)
    assert refused.value.seconds == 61
    ledger.count(BOB, 10)
    with pytest.raises(TooMuchSent) as refused:
        ledger.check(BOB, 11)
    assert refused.value.seconds == 61


def test_a_refused_message_is_not_counted(make, clock: Time) -> None:
    ledger = make(messages_per_minute=1, recipients_per_day=5)
    with pytest.raises(TooMuchSent):
        ledger.count(BOB, 6)
    assert ledger.sent(BOB)[0].messages["day"] == 0
    ledger.count(BOB, 5)
    clock.now += 70
    with pytest.raises(TooMuchSent, match="per day"):
        ledger.count(BOB, 1)
    assert ledger.sent(BOB)[0].recipients["day"] == 5


def test_the_longest_wait_is_told(make) -> None:  # type: ignore[no-untyped-def]
    ledger = make(messages_per_minute=1, messages_per_hour=1, recipients_per_minute=1)
    ledger.count(BOB, 1)
    with pytest.raises(TooMuchSent, match="1 messages per hour"):
        ledger.check(BOB)


def test_only_as_much_is_waited_for_as_is_needed(make, clock: Time) -> None:
    ledger = make(messages_per_minute=3)
    for _ in range(3):
        ledger.count(BOB, 1)
        clock.now += 10
    with pytest.raises(TooMuchSent) as refused:
        ledger.check(BOB)
    assert refused.value.seconds == 36  # the first leaves at START + 65
    clock.now = START + 65
    ledger.count(BOB, 1)
    with pytest.raises(TooMuchSent):
        ledger.count(BOB, 1)


def test_without_limits_nothing_is_counted(make) -> None:  # type: ignore[no-untyped-def]
    ledger = make()
    for _ in range(3):
        ledger.check(BOB, 10**6)
        ledger.count(BOB, 10**6)
    assert ledger.sent() == []


def test_spellings_of_an_account_are_one(make) -> None:  # type: ignore[no-untyped-def]
    ledger = make(messages_per_day=1)
    ledger.count(BOB, 1)
    with pytest.raises(TooMuchSent):
        ledger.check(Account("bOB", "example.org"))


@settings(max_examples=60, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.floats(0, 40), st.integers(1, 4)), min_size=1, max_size=40),
       offset=st.floats(0, 5))
def test_no_window_holds_more_than_allowed(
        tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[float, int]],
        offset: float) -> None:
    clock = Time()
    clock.now += offset
    ledger = Ledger(State(tmp_path_factory.mktemp("rates") / "state.sqlite"),
                    limits(messages_per_minute=4, recipients_per_minute=7), clock)
    accepted: list[tuple[float, int]] = []
    for wait, recipients in steps:
        clock.now += wait
        try:
            ledger.count(BOB, recipients)
        except TooMuchSent as refused:
            # It was right to refuse: in a little more than a minute there would be too many.
            recent = [entry for entry in accepted if entry[0] > clock.now - 65]
            assert len(recent) + 1 > 4 or sum(n for _, n in recent) + recipients > 7
            # And right about when to come back.
            clock.now += refused.seconds
            ledger.check(BOB, recipients)
            clock.now -= refused.seconds
        else:
            accepted.append((clock.now, recipients))
    for end, _ in accepted:
        window = [n for at, n in accepted if end - 60 < at <= end]
        assert len(window) <= 4 and sum(window) <= 7
    ledger.close()


# --- Restart, processes, space --------------------------------------------------------------------


def test_counts_survive_a_restart(make, opened: list[Ledger], clock: Time) -> None:
    make(messages_per_day=2).count(BOB, 1)
    opened.pop().close()
    make(messages_per_day=2).count(BOB, 1)
    opened.pop().close()
    clock.now += 3600
    with pytest.raises(TooMuchSent):
        make(messages_per_day=2).count(BOB, 1)


COUNTING = """
import sys
from pathlib import Path
from mailsvc.mail import Account
from mailsvc.submission.rates import Ledger, TooMuchSent
from mailsvc.state import State
from mailsvc.submission.limits import SubmissionSettings
ledger = Ledger(State(Path(sys.argv[1])), SubmissionSettings(
    messages_per_minute=0, messages_per_hour=0, messages_per_day=100, recipients_per_minute=0,
    recipients_per_hour=0, recipients_per_day=0))
sys.stdin.readline()
counted = 0
for _ in range(60):
    try:
        ledger.count(Account("bob", "example.org"), 1)
        counted += 1
    except TooMuchSent:
        pass
print(counted)
"""


def test_processes_hold_a_limit_together(path: Path) -> None:
    running = [subprocess.Popen([sys.executable, "-c", COUNTING, str(path)],
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
               for _ in range(3)]
    for process in running:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    counted = [int(process.communicate(timeout=60)[0]) for process in running]
    assert sum(counted) == 100
    ledger = Ledger(State(path), limits(messages_per_day=100))
    assert ledger.sent()[0].messages["day"] == 100
    ledger.close()


def rows(path: Path) -> int:
    state = State(path)
    (count,), = state.rows("SELECT count(*) FROM sent")
    state.close()
    return int(count)


def test_an_account_has_few_rows(make, path: Path, clock: Time) -> None:
    ledger = make(messages_per_day=10**9)
    most = 0
    for wait in [7000] * 20 + [290] * 20 + [4.7] * 20:
        ledger.count(BOB, 1)
        clock.now += wait
        most = max(most, rows(path))
    assert 30 < most <= 39
    clock.now += 200_000
    ledger.count(BOB, 1)
    assert rows(path) == 3


def test_what_silent_accounts_left_is_swept(make, path: Path, clock: Time) -> None:
    ledger = make(messages_per_day=10)
    for number in range(20):
        ledger.count(Account(f"user{number}", "example.org"), 1)
    assert rows(path) == 60
    clock.now += 2 * 86_400
    ledger.count(BOB, 1)
    assert rows(path) == 3


def test_a_clock_that_was_set_back(make, path: Path, clock: Time) -> None:
    ledger = make(messages_per_minute=1, messages_per_day=5)
    clock.now += 10 * 86_400
    ledger.count(BOB, 1)
    clock.now = START + 0.5
    ledger.count(BOB, 1)  # what is ten days ahead is no reason to wait for ten days
    assert rows(path) == 3
    clock.now -= 20
    with pytest.raises(TooMuchSent):  # what is seconds ahead still counts
        ledger.count(BOB, 1)


# --- For the CLI ----------------------------------------------------------------------------------


def test_what_was_sent(make, clock: Time) -> None:
    ledger = make(messages_per_day=100)
    assert ledger.sent() == []
    assert ledger.sent(BOB) == [Sent("bob@example.org", dict.fromkeys(PERIODS, 0),
                                     dict.fromkeys(PERIODS, 0))]
    ledger.count(BOB, 2)
    ledger.count(ALICE, 1)
    clock.now += 120
    ledger.count(BOB, 3)
    alice, bob = ledger.sent()
    assert alice == Sent("alice@example.org", {"minute": 0, "hour": 1, "day": 1},
                         {"minute": 0, "hour": 1, "day": 1})
    assert bob == Sent("bob@example.org", {"minute": 1, "hour": 2, "day": 2},
                       {"minute": 3, "hour": 5, "day": 5})
    assert ledger.sent(BOB) == [bob]


def test_reset_lets_an_account_send_again(make) -> None:  # type: ignore[no-untyped-def]
    ledger = make(messages_per_day=1)
    ledger.count(BOB, 1)
    ledger.count(ALICE, 1)
    ledger.reset(Account("BOB", "example.org"))
    ledger.count(BOB, 1)
    with pytest.raises(TooMuchSent):
        ledger.count(ALICE, 1)


# --- For the reactor ------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_counted_in_a_thread(path: Path, clock: Time) -> None:
    rates = Rates(path, limits(messages_per_day=3), reactor, clock)
    rates.startService()
    reactor_thread = threading.get_ident()
    threads: set[int] = set()
    counting = Ledger.count

    def noticing(ledger: Ledger, account: Account, recipients: int) -> None:
        threads.add(threading.get_ident())
        counting(ledger, account, recipients)

    Ledger.count = noticing  # type: ignore[method-assign]
    try:
        rates.check(BOB, 5)
        await gatherResults([rates.count(BOB, 1) for _ in range(3)])
        with pytest.raises(TooMuchSent):
            rates.check(BOB)  # seen at once in the reactor's thread
        with pytest.raises(TooMuchSent):
            await rates.count(BOB, 1)
    finally:
        Ledger.count = counting  # type: ignore[method-assign]
        await rates.stopService()
    assert threads and reactor_thread not in threads


@pytest_twisted.ensureDeferred
async def test_what_was_given_before_a_stop_is_counted(path: Path) -> None:
    rates = Rates(path, limits(messages_per_day=100), reactor)
    rates.startService()
    given = [rates.count(BOB, 1) for _ in range(20)]
    await rates.stopService()
    assert all(each.called for each in given)
    with pytest.raises(TemporaryFailure, match="stopping"):
        await rates.count(BOB, 1)
    with pytest.raises(TemporaryFailure, match="stopping"):
        rates.check(BOB)
    await rates.stopService()
    rates.startService()  # again
    await rates.count(BOB, 1)
    await rates.stopService()
    ledger = Ledger(State(path), limits(messages_per_day=100))
    assert ledger.sent()[0].messages["day"] == 21
    ledger.close()


@pytest_twisted.ensureDeferred
async def test_while_another_process_writes_the_reactor_goes_on(
        path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "CHANGE_TIMEOUT", 0.3)
    rates = Rates(path, limits(messages_per_day=100), reactor)
    rates.startService()
    other = State(path)
    with other.transaction():
        waiting = rates.count(BOB, 1)
        rates.check(BOB)  # waits for nobody
        with pytest.raises(TemporaryFailure, match="records cannot be used"):
            await waiting
    await rates.count(BOB, 1)
    other.close()
    await rates.stopService()


def test_others_than_accounts_are_counted_by_name(tmp_path: Path) -> None:
    ledger = Ledger(State(tmp_path / "state.sqlite"), SubmissionSettings(messages_per_hour=1),
                    Time())
    for name in "client:192.0.2.1", "client:2001:db8::1", "local:Carol", "local:carol":
        ledger.check(name)
        ledger.count(name, 1)
        with pytest.raises(TooMuchSent):
            ledger.check(name)
    ledger.count("Bob@Example.org", 1)  # as the account of that name
    with pytest.raises(TooMuchSent):
        ledger.check(BOB)
    assert {"client:192.0.2.1", "local:Carol", "bob@example.org"} < {
        each.account for each in ledger.sent()}
    ledger.close()
