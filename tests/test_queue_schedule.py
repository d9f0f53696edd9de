"""mailsvc.queue.schedule, and five days of it on a clock that the test turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from mailsvc.mail import Address, DeliverBy
from mailsvc.queue.job import Job, Result
from mailsvc.queue.limits import QueueSettings
from mailsvc.queue.message import FAILED, RELAYED, WAITING, QueuedMessage, QueuedRecipient
from mailsvc.queue.routes import Hop
from mailsvc.queue.schedule import Schedule
from mailsvc.queue.spool import Draft
from tests.queue_clock import DAY, HOUR, MINUTE, START, World

#: The default schedule without chance: waits of 5, 10, 20, 40, 80 minutes and then the warning at
#: 4 hours; 4 hours each from there; the last at the end of five days.
EXPECTED = [0.0, 5 * MINUTE, 15 * MINUTE, 35 * MINUTE, 75 * MINUTE, 155 * MINUTE, 4 * HOUR,
            *(4 * HOUR + n * 4 * HOUR for n in range(1, 29)), 5 * DAY]


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


def test_no_attempt_begins_while_one_way_of_another_is_under_way(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own disk fails when one host has taken the message and another is about to."""
    world = World(tmp_path, bob=[(RELAYED, "2.0.0")], carol=[(RELAYED, "2.0.0")])
    slow: Deferred[None] = Deferred()
    carry = world.carrying.carry

    def carry_slowly(hop: Hop, job: Job) -> Deferred[list[Result]]:
        done = carry(hop, job)
        return slow.addCallback(lambda _: done) if hop.host == "slow.example" else done

    def full(*messages: QueuedMessage) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(world.carrying, "carry", carry_slowly)
    monkeypatch.setattr(world.spool, "save", full)
    world.put("bob@quick.example", "carol@slow.example")
    world.turn(5 * MINUTE)
    both = ["quick.example", "slow.example"]
    assert [hop.host for hop, *_ in world.carrying.jobs] == both
    monkeypatch.undo()
    slow.callback(None)
    world.turn(5 * MINUTE)
    # What the first took is kept with what the second did.
    assert [hop.host for hop, *_ in world.carrying.jobs] == both
    assert not world.spool.ids()


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
