"""mailsvc.queue.schedule, and five days of it on a clock that the test turns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from mailsvc.errors import EnhancedStatus
from mailsvc.mail import NULL_PATH, Address, DeliverBy
from mailsvc.queue.attempts import Attempts
from mailsvc.queue.carrier import Job, Result
from mailsvc.queue.limits import QueueSettings
from mailsvc.queue.message import FAILED, RELAYED, WAITING, QueuedMessage, QueuedRecipient
from mailsvc.queue.routes import Hop, RelaySettings, Routes
from mailsvc.queue.runner import Runner
from mailsvc.queue.schedule import Schedule
from mailsvc.queue.spool import Draft, Spool
from mailsvc.srs import SRS

START = 1_700_000_000.0
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0

#: The default schedule without chance: waits of 5, 10, 20, 40, 80 minutes and then the warning at
#: 4 hours; 4 hours each from there; the last at the end of five days.
EXPECTED = [0.0, 5 * MINUTE, 15 * MINUTE, 35 * MINUTE, 75 * MINUTE, 155 * MINUTE, 4 * HOUR,
            *(4 * HOUR + n * 4 * HOUR for n in range(1, 29)), 5 * DAY]


class Here:
    """Runs what is meant for threads at once."""

    def run(self, function: Any, *args: Any, unwanted: object = None) -> Deferred[Any]:
        try:
            return succeed(function(*args))
        except Exception:
            return fail(Failure())


class Carrying:
    """Answers every job as it is told, and notes when.

    :ivar answers: by address, the states to answer with, in turn; the last for ever.
    """

    def __init__(self, clock: Clock, **answers: Sequence[tuple[str, str]]) -> None:
        self.clock = clock
        self.times: list[float] = []
        self.jobs: list[tuple[Hop, Address, list[str]]] = []
        self.answers = {name: list(states) for name, states in answers.items()}

    def carry(self, hop: Hop, job: Job) -> Deferred[list[Result]]:
        self.times.append(self.clock.seconds() - START)
        self.jobs.append((hop, job.reverse_path, [str(each.address) for each in job.recipients]))
        results = []
        for each in job.recipients:
            states = self.answers[each.address.local_part]
            state, status = states.pop(0) if len(states) > 1 else states[0]
            results.append(Result(each, state, EnhancedStatus(*map(int, status.split("."))),
                                  "as told", "mx.example.net"))
        return succeed(results)

    def start(self, *, leading: bool) -> None:
        pass

    def stop(self) -> None:
        pass

    abort = stop


class Told:
    """Notes the reports."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.reports: list[tuple[float, str, list[str]]] = []

    async def send(self, action: str, message: QueuedMessage,
                   recipients: Sequence[QueuedRecipient], original: bytes,
                   until: float = 0.0) -> None:
        if recipients and message.reverse_path != NULL_PATH:
            assert original.startswith(b"Subject: x\r\n")
            self.reports.append((self.clock.seconds() - START, action,
                                 [str(each.address) for each in recipients]))


class World:
    """A runner over a real spool, with a clock of its own."""

    def __init__(self, directory: Path, settings: QueueSettings | None = None,
                 routes: dict[str, str] | None = None,
                 **answers: Sequence[tuple[str, str]]) -> None:
        self.clock = Clock()
        self.clock.rightNow = START
        self.spool = Spool(directory / "queue")
        self.spool.make()
        self.carrying = Carrying(self.clock, **answers)
        self.told = Told(self.clock)
        self.settings = settings or QueueSettings(retry_jitter=0)
        self.routes = RelaySettings(routes=routes or {})
        self.begin()

    def begin(self) -> None:
        """Start a runner, as after a restart."""
        self.runner = Runner(self.spool, Here(), Attempts(  # type: ignore[arg-type]
            self.spool, Here(), self.carrying, Routes(self.routes),  # type: ignore[arg-type]
            Schedule(self.settings), self.told,  # type: ignore[arg-type]
            SRS(lambda value: value.ljust(8, b".")), self.clock), self.clock)
        self.runner.start()

    def put(self, *recipients: str, sender: str = "alice@example.org", **fields: Any) -> str:
        id = f"M{len(self.spool.ids())}"
        path = Address(*sender.split("@")) if sender else NULL_PATH
        message = QueuedMessage(
            id, self.clock.seconds(), path,
            [QueuedRecipient(to, to) for to in (Address(*each.split("@")) for each in recipients)],
            due=self.clock.seconds(), **fields)
        draft = Draft(message)
        draft.add(b"Subject: x\r\n\r\nbody\r\n")
        self.spool.commit(draft)
        self.runner.take([id])
        return id

    def turn(self, seconds: float) -> None:
        """Let time pass, in steps at which something happens."""
        end = self.clock.seconds() + seconds
        while (calls := self.clock.getDelayedCalls()) and (
                next := min(call.getTime() for call in calls)) <= end:
            self.clock.advance(max(0.0, next - self.clock.seconds()))
        self.clock.advance(max(0.0, end - self.clock.seconds()))


def test_five_days(tmp_path: Path) -> None:
    world = World(tmp_path, bob=[(WAITING, "4.4.1")])
    world.put("bob@example.net")
    world.turn(6 * DAY)
    assert world.carrying.times == EXPECTED
    assert world.told.reports == [(4 * HOUR, "delayed", ["bob@example.net"]),
                                  (5 * DAY, "failed", ["bob@example.net"])]
    assert world.spool.ids() == set()


def test_a_restart_changes_nothing_of_it(tmp_path: Path) -> None:
    world = World(tmp_path, bob=[(WAITING, "4.4.1")])
    world.put("bob@example.net")
    for _ in range(12):
        world.turn(DAY / 2)
        world.runner.stop()
        world.begin()
    assert [round(time) for time in world.carrying.times] == EXPECTED
    assert [report[1] for report in world.told.reports] == ["delayed", "failed"]


def test_what_was_tried_a_thousand_times_is_tried_on() -> None:
    """The power of the factor alone is more than a float holds."""
    settings = QueueSettings(retry_factor=10.0, retry_jitter=0, warning_seconds=0,
                             retry_most_seconds=3600)
    message = QueuedMessage("M", START, Address("a", "example.org"), [], attempts=5000)
    assert Schedule(settings).next_attempt(message, START + 10) == START + 10 + 3600
    # With nothing counted, as of a state that was lost, the wait is the first.
    message.attempts = 0
    assert Schedule(settings).next_attempt(message, START + 10) == START + 10 + 300


@pytest.mark.parametrize(("by", "warned_at"), [
    (None, 4 * 3600), (DeliverBy(60, "R"), 4 * 3600), (DeliverBy(60, "N"), 60),
    (DeliverBy(0, "N"), 0), (DeliverBy(-60, "N"), None)])
def test_when_a_delay_is_told(by: DeliverBy | None, warned_at: int | None) -> None:
    """RFC 2852 §4.1: at its deadline; of one that was over when it came, a host before has told."""
    message = QueuedMessage("M", START, Address("a", "example.org"), [], by=by)
    schedule = Schedule(QueueSettings(warning_seconds=4 * 3600))
    times = [seconds for seconds in (0, 59, 60, 4 * 3600 - 1, 4 * 3600)
             if schedule.warns(message, START + seconds)]
    assert times[:1] == ([] if warned_at is None else [warned_at])
    message.warned = True
    assert not schedule.warns(message, START + 5 * 3600)
    assert schedule.expired(message, START + 60) == (by == DeliverBy(60, "R"))


def test_chance_moves_each_wait_by_its_share() -> None:
    message = QueuedMessage("ID", START, Address("a", "b"), [], attempts=1, warned=True)
    for chance, expected in ((0.0, 240.0), (0.5, 300.0), (1.0, 360.0)):
        schedule = Schedule(QueueSettings(), lambda chance=chance: chance)
        assert schedule.next_attempt(message, START) == START + expected
    message.attempts = 100_000
    assert Schedule(QueueSettings(), lambda: 0.5).next_attempt(message, START) == START + 4 * HOUR


def test_reports_are_given_up_sooner_and_nobody_is_told(tmp_path: Path) -> None:
    world = World(tmp_path, bob=[(WAITING, "4.4.1")])
    world.put("bob@example.net", sender="")
    world.turn(6 * DAY)
    assert world.carrying.times[-1] == DAY
    assert world.told.reports == [] and world.spool.ids() == set()


def test_each_recipient_has_a_state_of_its_own(tmp_path: Path) -> None:
    world = World(tmp_path, yes=[(RELAYED, "2.0.0")], no=[(FAILED, "5.1.1")],
                  later=[(WAITING, "4.2.2"), (RELAYED, "2.0.0")])
    id = world.put("yes@example.net", "no@example.net", "later@example.net")
    assert [each.state for each in world.spool.load(id).recipients] == [RELAYED, FAILED, WAITING]
    assert world.told.reports == [(0.0, "failed", ["no@example.net"])]
    world.turn(HOUR)
    assert [job[2] for job in world.carrying.jobs] == [
        ["yes@example.net", "no@example.net", "later@example.net"], ["later@example.net"]]
    assert world.spool.ids() == set() and len(world.told.reports) == 1


def test_recipients_of_several_domains_go_their_own_ways(tmp_path: Path) -> None:
    world = World(tmp_path, routes={"b.example": "smart.example:2525"},
                  x=[(RELAYED, "2.0.0")], y=[(RELAYED, "2.0.0")])
    world.put("x@a.example", "y@b.example")
    assert [(str(hop), to) for hop, _, to in world.carrying.jobs] == [
        ("a.example", ["x@a.example"]), ("smart.example:2525", ["y@b.example"])]


def test_what_its_sender_does_not_want_to_hear_is_not_told(tmp_path: Path) -> None:
    world = World(tmp_path, no=[(FAILED, "5.1.1")])
    message = QueuedMessage("N1", START, Address("alice", "example.org"), [QueuedRecipient(
        Address("no", "example.net"), Address("no", "example.net"), notify=("NEVER",))], due=START)
    draft = Draft(message)
    draft.add(b"Subject: x\r\n\r\n")
    world.spool.commit(draft)
    world.runner.take(["N1"])
    assert world.told.reports == [] and world.spool.ids() == set()


def test_a_held_message_is_not_tried(tmp_path: Path) -> None:
    world = World(tmp_path, bob=[(RELAYED, "2.0.0")])
    world.runner.stop()
    id = world.put("bob@example.net")
    message = world.spool.load(id)
    message.held = True
    world.spool.save(message)
    world.begin()
    world.turn(6 * DAY)
    assert world.carrying.times == [] and world.spool.ids() == {id}


@pytest.mark.parametrize("fault", ["rename", "fsync"])
def test_a_disk_that_fails_puts_it_off_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    world = World(tmp_path, bob=[(WAITING, "4.4.1"), (RELAYED, "2.0.0")])

    def broken(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    world.runner.stop()
    id = world.put("bob@example.net")
    with monkeypatch.context() as patch:
        patch.setattr(f"mailsvc.queue.spool.os.{fault}", broken)
        world.begin()
        assert world.spool.ids() == {id}
    world.turn(HOUR)
    assert world.spool.ids() == set()


def test_what_another_process_has_not_ended_is_looked_at_again(tmp_path: Path) -> None:
    world = World(tmp_path, bob=[(RELAYED, "2.0.0")])
    world.spool.claims.take("M0")
    world.put("bob@example.net")
    world.turn(10)
    assert world.carrying.times == [] and world.spool.ids() == {"M0"}
    world.spool.claims.give_back("M0")
    world.turn(10)
    assert len(world.carrying.times) == 1 and world.spool.ids() == set()
    assert world.spool.claims.take("M0")
