"""Mail that is held, that has a time, that is urgent: the queue on a clock that the test turns."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from mailsvc.errors import TemporaryFailure
from mailsvc.mail import NULL_PATH, Account, Address, DeliverBy, Envelope, Recipient, Remote
from mailsvc.queue import runner
from mailsvc.queue.attempts import Attempts
from mailsvc.queue.carrier import Carrier
from mailsvc.queue.connection import Connection
from mailsvc.queue.content import Content
from mailsvc.queue.dsn import Report
from mailsvc.queue.exchangers import Place
from mailsvc.queue.job import Job, Result, line_up
from mailsvc.queue.limits import QueueSettings
from mailsvc.queue.local import Local
from mailsvc.queue.message import (
    FAILED,
    RELAYED,
    WAITING,
    QueuedMessage,
    QueuedRecipient,
    envelope_line,
    parse,
    priority_of,
    queued,
    state_line,
)
from mailsvc.queue.routes import Hop, RelaySettings, Routes
from mailsvc.queue.runner import Runner
from mailsvc.queue.schedule import Schedule
from mailsvc.queue.security.terms import Demand
from mailsvc.queue.slots import Slots
from mailsvc.queue.spool import Draft
from mailsvc.smtp import replies
from mailsvc.smtp.outcome import Outcome
from mailsvc.srs import SRS
from tests.postoffice import Answers, FakeRouter, FakeStore
from tests.queue_clock import DAY, HOUR, MINUTE, START, Carrying, Here, Told, World

BOB = Address("bob", "example.net")


class Telling(Told):
    """Notes the statuses as well."""

    async def send(self, action: str, message: QueuedMessage,
                   recipients: Sequence[QueuedRecipient], original: bytes,
                   until: float = 0.0) -> None:
        await super().send(action, message, recipients, original, until)
        self.statuses += [each.status for each in recipients]

    statuses: list[str]


class Office(World):
    """A world with mailboxes of its own.

    :ivar timely: whether the next hosts offer DELIVERBY.
    """

    def __init__(self, directory: Path, *, timely: bool = False, **answers: Any) -> None:
        self.answers = Answers()
        self.store = FakeStore(self.answers)
        self.timely = timely
        super().__init__(directory, QueueSettings(retry_jitter=0), **answers)

    def begin(self) -> None:
        self.told = Telling(self.clock)
        self.told.statuses = []
        carrying, timely = self.carrying, self.timely

        class Timely(Carrying):
            def carry(self, hop: Hop, job: Job) -> Deferred[list[Result]]:
                return carrying.carry(hop, job).addCallback(
                    lambda results: [each._replace(timely=timely) for each in results])

        local = Local(FakeRouter(self.answers), self.store, None)  # type: ignore[arg-type]
        self.runner = Runner(self.spool, Here(), Attempts(  # type: ignore[arg-type]
            self.spool, Here(), Timely(self.clock), Routes(self.routes),  # type: ignore[arg-type]
            Schedule(self.settings), self.told,  # type: ignore[arg-type]
            SRS(lambda value: value.ljust(8, b".")), self.clock, None, local), self.clock)
        self.runner.start()

    def accept(self, *recipients: Recipient, **fields: Any) -> str:
        """Queue what a session took."""
        id = f"M{len(self.spool.ids())}"
        draft = Draft(queued(Envelope(
            id, Address("alice", "example.org"), recipients=list(recipients), **fields),
            self.clock.seconds()))
        draft.add(b"Subject: x\r\n\r\nbody\r\n")
        self.spool.commit(draft)
        self.runner.take([id])
        return id


def there(notify: tuple[str, ...] = ()) -> Recipient:
    return Recipient(BOB, (), (Remote(BOB),), notify)


def here(name: str, notify: tuple[str, ...] = ()) -> Recipient:
    return Recipient(Address(name, "example.org"), (Account(name, "example.org"),), (), notify)


# ---- FUTURERELEASE -------------------------------------------------------------------------------


def test_it_is_held_until_its_release_and_its_time_counts_from_there(tmp_path: Path) -> None:
    world = Office(tmp_path, bob=[(WAITING, "4.4.1")])
    id = world.accept(there(), release=START + 30 * DAY)
    assert world.spool.load(id).scheduled
    for _ in range(3):  # also when another process takes over
        world.turn(9 * DAY)
        world.runner.stop()
        world.begin()
    assert world.carrying.times == [] and world.spool.load(id).scheduled
    world.turn(40 * DAY)
    assert world.carrying.times[0] == 30 * DAY
    assert world.carrying.times[1] == 30 * DAY + 5 * MINUTE
    assert world.told.reports == [(30 * DAY + 4 * HOUR, "delayed", ["bob@example.net"]),
                                  (35 * DAY, "failed", ["bob@example.net"])]


def test_who_is_here_gets_it_then_too_and_not_before(tmp_path: Path) -> None:
    world = Office(tmp_path, bob=[(RELAYED, "2.0.0")])
    world.accept(here("carol", ("SUCCESS",)), here("alice"), there(), release=START + DAY)
    world.turn(DAY - 1)
    assert world.store.deliveries == [] and world.carrying.times == []
    world.turn(1)
    assert [(each.accounts[0].name, each.message) for each in world.store.mail] == [
        (name, b"Return-Path: <alice@example.org>\r\nSubject: x\r\n\r\nbody\r\n")
        for name in ("carol@example.org", "alice@example.org")]
    assert world.carrying.times == [DAY] and world.spool.ids() == set()
    assert world.told.reports == [(DAY, "delivered", ["carol@example.org"])]


def test_a_mailbox_that_is_gone_or_full_by_then(tmp_path: Path) -> None:
    world = Office(tmp_path)
    world.accept(here("nobody"), here("full"), release=START + DAY)
    world.turn(DAY)
    assert world.told.reports == [(DAY, "failed", ["nobody@example.org"])]
    assert isinstance(world.told, Telling) and world.told.statuses == ["5.1.1"]
    world.store.mailboxes["full@example.org"].messages.clear()
    world.turn(HOUR)
    assert [each.accounts[0].name for each in world.store.mail] == ["full@example.org"]
    assert world.spool.ids() == set()


@pytest.mark.parametrize("spoilt", ["route", "room", "begin", "write", "commit"])
def test_a_store_or_directory_that_fails_is_asked_again(tmp_path: Path, spoilt: str) -> None:
    world = Office(tmp_path)
    world.answers.spoilt[spoilt] = TemporaryFailure("The disk is on fire")
    world.accept(here("carol"), release=START + DAY)
    world.turn(DAY)
    assert world.store.mail == [] and len(world.spool.ids()) == 1
    assert all(each.outcome != "open" for each in world.store.deliveries)
    world.answers.spoilt.clear()
    world.turn(HOUR)
    assert len(world.store.mail) == 1 and world.spool.ids() == set()


@pytest.mark.parametrize("action", ["release", "retry"])
def test_an_operator_lets_it_go_early(tmp_path: Path, action: str) -> None:
    world = Office(tmp_path, bob=[(WAITING, "4.4.1")])
    id = world.accept(there(), here("carol"), release=START + 30 * DAY)
    world.turn(8 * DAY)
    act(world, "reroute", "status:scheduled", "mx")
    assert world.carrying.times == [] and world.spool.load(id).scheduled
    act(world, action, "status:scheduled")
    assert world.carrying.times == [8 * DAY] and len(world.store.mail) == 1
    assert not world.spool.load(id).scheduled
    world.turn(30 * DAY)
    # It has five days all the same, and no more.
    assert world.told.reports[-1] == (13 * DAY, "failed", ["bob@example.net"])


def test_an_operator_drops_it(tmp_path: Path) -> None:
    world = Office(tmp_path)
    world.accept(here("carol"), release=START + DAY)
    act(world, "drop", "status:scheduled")
    world.turn(2 * DAY)
    assert world.store.deliveries == [] and world.spool.ids() == set()


def act(world: World, action: str, words: str, route: str = "") -> None:
    Deferred.fromCoroutine(world.runner.act(action, [words], route))


def test_of_success_it_is_told_once() -> None:
    """A list is "expanded" when it is taken; what is in one mailbox is "delivered" later."""
    both = Recipient(Address("team", "example.org"), (Account("carol", "example.org"),),
                     (Remote(BOB),), ("SUCCESS", "FAILURE"))
    one = here("alice", ("SUCCESS",))
    message = queued(Envelope("ID", BOB, recipients=[both, one], release=9.0), 5.0)
    assert [(str(each.address), each.local, each.notify) for each in message.recipients] == [
        ("bob@example.net", False, ("FAILURE",)), ("carol@example.org", True, ("FAILURE",)),
        ("alice@example.org", True, ("SUCCESS",))]
    assert (message.due, message.release) == (9.0, 9.0)


# ---- DELIVERBY -----------------------------------------------------------------------------------


def test_r_is_returned_when_its_time_is_over(tmp_path: Path) -> None:
    world = Office(tmp_path, bob=[(WAITING, "4.4.1")])
    world.accept(there(), by=DeliverBy(600, "R"))
    world.turn(DAY)
    assert world.carrying.times == [0.0, 5 * MINUTE]
    assert world.told.reports == [(10 * MINUTE, "failed", ["bob@example.net"])]
    assert isinstance(world.told, Telling) and world.told.statuses == ["5.4.7"]
    assert world.spool.ids() == set()


def test_r_that_comes_too_late_is_not_tried(tmp_path: Path) -> None:
    world = Office(tmp_path, bob=[(RELAYED, "2.0.0")])
    world.runner.stop()
    world.accept(there(), by=DeliverBy(60, "R"))
    world.clock.advance(61)
    world.begin()
    assert world.carrying.times == []
    assert world.told.reports == [(61, "failed", ["bob@example.net"])]


def test_r_of_days_ends_with_the_lifetime_of_mail(tmp_path: Path) -> None:
    world = Office(tmp_path, bob=[(WAITING, "4.4.1")])
    world.accept(there(), by=DeliverBy(int(30 * DAY), "R"))
    world.turn(31 * DAY)
    assert world.told.reports[-1] == (5 * DAY, "failed", ["bob@example.net"])


@pytest.mark.parametrize(("seconds", "told"), [(1200, [20 * MINUTE]), (0, [0.0]), (-5, []),
                                               (int(2 * DAY), [2 * DAY])])
def test_n_is_told_of_when_its_time_is_over_and_goes_on(
    tmp_path: Path, seconds: int, told: list[float]
) -> None:
    world = Office(tmp_path, bob=[(WAITING, "4.2.2")])
    world.accept(there(), by=DeliverBy(seconds, "N"))
    world.turn(6 * DAY)
    assert [each for each in world.told.reports if each[1] == "delayed"] == [
        (when, "delayed", ["bob@example.net"]) for when in told]
    assert isinstance(world.told, Telling)
    assert world.told.statuses[:len(told)] == ["4.4.7"] * len(told)
    assert world.told.reports[-1] == (5 * DAY, "failed", ["bob@example.net"])


def test_n_without_delay_in_notify_is_not_told_of(tmp_path: Path) -> None:
    world = Office(tmp_path, bob=[(WAITING, "4.2.2"), (WAITING, "4.2.2"), (RELAYED, "2.0.0")],
                   timely=True)
    world.accept(there(("FAILURE",)), by=DeliverBy(60, "N"))
    world.turn(DAY)
    assert world.told.reports == [] and world.spool.ids() == set()


@pytest.mark.parametrize(("by", "timely", "notify", "told"), [
    (DeliverBy(60, "N"), False, (), True),
    (DeliverBy(60, "N"), False, ("FAILURE",), True),
    (DeliverBy(60, "N"), False, ("NEVER",), False),
    (DeliverBy(60, "N"), True, (), False),
    # Its time was over before: a host before us has told of that (RFC 2852 §4.1.4.2).
    (DeliverBy(-60, "N"), False, (), False),
    (DeliverBy(-60, "N", True), False, (), True),
    (DeliverBy(60, "N", True), True, (), True),
    (DeliverBy(60, "R", True), True, (), True),
    (DeliverBy(60, "R", True), True, ("NEVER",), False),
    (DeliverBy(60, "R"), True, (), False)])
def test_of_what_is_handed_on_its_sender_is_told(
    tmp_path: Path, by: DeliverBy, timely: bool, notify: tuple[str, ...], told: bool
) -> None:
    world = Office(tmp_path, timely=timely, bob=[(RELAYED, "2.0.0")])
    world.accept(there(notify), by=by)
    assert world.told.reports == ([(0.0, "relayed", ["bob@example.net"])] if told else [])
    assert world.spool.ids() == set()


# ---- MT-PRIORITY ---------------------------------------------------------------------------------


class Stuck(Carrying):
    """Lets a test say when each job ends."""

    def carry(self, hop: Hop, job: Job) -> Deferred[list[Result]]:
        self.jobs.append((hop, job.reverse_path, [str(each.address) for each in job.recipients]))
        self.waiting.append(job)
        return job.done

    def end(self) -> None:
        """The oldest job is done."""
        job = self.waiting.popleft()
        succeed(None).addCallback(lambda _: job.done.callback(
            [Result(each, RELAYED, (2, 0, 0), "ok") for each in job.recipients]))  # type: ignore[arg-type]

    waiting: deque[Job]


@pytest.mark.parametrize("restarted", [False, True])
def test_the_urgent_overtake_what_waits_for_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    monkeypatch.setattr(runner, "_ACTIVE", 2)
    monkeypatch.setattr(runner, "_RESERVE", 1)
    world = World(tmp_path)
    stuck = world.carrying = Stuck(world.clock)
    stuck.waiting = deque()
    world.runner.stop()
    if not restarted:
        world.begin()
    for name, priority in ("a", 0), ("b", 0), ("c", 0), ("low", -4), ("d", 0), ("high", 6), (
            "higher", 9):
        world.put(f"{name}@{name}.example", priority=priority)
        world.clock.advance(1)
    if restarted:
        world.begin()
    while stuck.waiting:
        stuck.end()
    order = [job[2][0].split("@")[0] for job in stuck.jobs]
    # What is begun is begun, and one that is urgent has room at once; of the rest they are first.
    assert order == ["a", "b", *(["higher", "high"] if restarted else ["high", "higher"]),
                     "c", "d", "low"]
    assert world.spool.ids() == set()


def test_only_of_what_is_due_and_has_no_room_is_read_how_urgent_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_ACTIVE", 1)
    monkeypatch.setattr(runner, "_READ", 2)
    world = World(tmp_path)
    stuck = world.carrying = Stuck(world.clock)
    stuck.waiting = deque()
    world.runner.stop()
    ids = [world.put(f"{name}@{name}.example") for name in "abcdef"]
    for id in ids[:2]:
        message = world.spool.load(id)
        message.attempts, message.due = 1, START + HOUR
        world.spool.save(message)
    read: list[list[str]] = []

    def priorities(ids: Collection[str]) -> dict[str, int]:
        read.append(list(ids))
        return {}

    monkeypatch.setattr(world.spool, "priorities", priorities)
    world.begin()
    # One is being sent, two wait for their time.
    assert len(read[0]) == 1 and len(read[1]) == 2
    assert sorted(chain(*read)) == ids[3:]
    while stuck.waiting:
        stuck.end()
    world.clock.advance(2 * HOUR)
    assert sorted(chain(*read)) == ids[1:2] + ids[3:]


def test_what_nobody_told_of_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path)
    stuck = world.carrying = Stuck(world.clock)
    stuck.waiting = deque()
    world.runner.stop()
    world.begin()
    sending = world.put("a@a.example")
    world.runner._held |= {"HELD", "GONE"}
    world.runner._due["LATER"] = START + HOUR
    found = world.runner.compare({sending, "HELD", "LATER", "NEW", "TAKEN"})
    assert (sorted(found[0]), found[1]) == (["NEW", "TAKEN"], ["GONE"])
    world.runner._active["TAKEN"] = world.runner.attempts  # between that and this
    taken: list[str] = []
    monkeypatch.setattr(world.runner, "take", taken.extend)
    world.runner.missed(*found)
    assert taken == ["NEW"] and world.runner._held == {"HELD"}


def test_jobs_for_one_destination_line_up_by_priority() -> None:
    jobs: deque[Job] = deque()
    for name, priority in ("a", 0), ("b", 4), ("c", 0), ("d", -9), ("e", 4), ("f", 9):
        line_up(jobs, Job(QueuedMessage(name, 0.0, BOB, [], priority=priority), [], BOB,
                           None))  # type: ignore[arg-type]
    assert "".join(job.message.id for job in jobs) == "fbeacd"


def test_slots_go_to_the_most_urgent() -> None:
    slots, got = Slots(2), ""
    urgency = {"c": 0, "d": 4, "e": 0, "f": 4}

    def took(name: str) -> Any:
        def note(_: object) -> None:
            nonlocal got
            got += name
        return note

    for name in "abcdef":
        slots.acquire(lambda name=name: urgency[name]).addCallback(took(name))
    assert got == "ab"
    assert slots.wanted_by_more_than(3) and not slots.wanted_by_more_than(4)
    slots.release()
    urgency["e"] = 9
    for _ in range(3):
        slots.release()
    assert got == "abdefc"
    for _ in range(2):
        slots.release()
    assert not slots.wanted_by_more_than(-10)
    assert slots.acquire(lambda: 0).called and slots.acquire(lambda: 0).called
    assert not slots.acquire(lambda: 0).called


class Host:
    """A client of a host that offers nothing, and answers when the test says so."""

    closed, host, lmtp, tls_active, transactions = None, "mx", False, False, 0
    exhausted = False
    extensions: ClassVar[dict[str, str]] = {}

    def __init__(self, sent: list[tuple[str, Deferred[Any]]]) -> None:
        self._sent = sent

    def ready(self) -> Deferred[None]:
        return succeed(None)

    def extension(self, name: str) -> None:
        return None

    def send(self, sender: Address, recipients: Sequence[Any], *_: Any, **__: Any) -> Any:
        answer: Deferred[Any] = Deferred()
        self._sent.append((str(recipients[0].forward_path), answer))
        return answer

    def quit(self) -> None:
        pass


class Addresses:
    async def addresses(self, host: str) -> Sequence[Place]:
        return (Place(host, "192.0.2.1"),)


class Anything:
    """The terms of every hop: it need not prove anything."""

    async def terms(self, hop: Hop) -> Any:
        return self

    async def demand(self, place: Place) -> Demand:
        return Demand("opportunistic")

    def reached(self, place: Place, demand: Demand, client: Host) -> None:
        pass

    async def seals(self, place: Place, client: Host) -> bool:
        return False


def test_a_destination_lets_another_go_first_that_has_what_is_urgent(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    sent: list[tuple[str, Deferred[Any]]] = []
    clock = Clock()
    carrier = Carrier(
        RelaySettings(), QueueSettings(connections=1), Addresses(), Anything(),  # type: ignore[arg-type]
        "here.example", clock, dial=lambda *_, **__: succeed(Host(sent)))
    for name, host, priority in ("a", "one", 0), ("b", "one", 0), ("c", "two", 0), (
            "d", "three", 4), ("e", "one", 4):
        to = Address(name, "example.net")
        message = QueuedMessage(name, 0.0, BOB, [QueuedRecipient(to, to)], priority=priority)
        carrier.carry(Hop(host, port=25), Job(message, message.recipients, BOB,
                                              Content((tmp_path / "empty").open("rb"))))
    for place in range(5):
        to, answer = sent[place]
        answer.callback((Outcome(Address(*to.split("@")), replies.accepted("X")),))
    # "one" goes on with its own "e", as urgent as "d", and then makes way.
    assert "".join(to[0] for to, _ in sent) == "aedbc"


@pytest.mark.parametrize("priority", range(-9, 10))
def test_the_priority_stands_where_it_is_looked_for(tmp_path: Path, priority: int) -> None:
    message = QueuedMessage("A" * 16, 1e9, Address('","priority":9,"', "x"), [], priority=priority)
    assert priority_of(envelope_line(message)[:64]) == priority
    assert priority_of(b"") == priority_of(b'{"version":1,"id":"x"}') == 0
    world = World(tmp_path)
    world.runner.stop()
    id = world.put("bob@example.net", priority=priority)
    assert world.spool.priorities([id, "GONE"]) == ({id: priority} if priority else {})


@pytest.mark.parametrize(("sender", "inward", "lacks"), [
    (BOB, False, True), (NULL_PATH, False, False), (BOB, True, False)])
def test_whom_requiretls_keeps_from_a_host_that_lacks_it(
        tmp_path: Path, sender: Address, inward: bool, lacks: bool) -> None:
    """RFC 8689 §4.2.1, §5: reports go, and what stays on this machine."""
    (tmp_path / "empty").touch()
    message = QueuedMessage("1A", 0.0, sender, [QueuedRecipient(BOB, BOB)], requiretls=True)
    job = Job(message, message.recipients, sender, Content((tmp_path / "empty").open("rb")))
    connection = Connection(Host([]), Clock())  # type: ignore[arg-type]
    connection.inward = inward
    assert (connection.lacking(job) is not None) == lacks


def test_no_time_is_longer_over_than_can_be_said() -> None:
    """RFC 2852 §4: nine digits, also when it has waited here since."""
    message = QueuedMessage("1A", START, BOB, [QueuedRecipient(BOB, BOB)],
                            by=DeliverBy(-999_999_999, "N"))
    clock = Clock()
    clock.advance(START + HOUR)
    by = Connection(Host([]), clock)._by(message)  # type: ignore[arg-type]
    assert by == DeliverBy(-999_999_999, "N")


# ---- on disk, in reports -------------------------------------------------------------------------


def test_files_of_before_are_read() -> None:
    message = QueuedMessage("1A", 1000.0, BOB, [QueuedRecipient(BOB, BOB)], due=1000.0)
    envelope, state = envelope_line(message), state_line(message)
    for new in b'"priority":0,', b'"release":0.0,', b'"hold":"",', b'"by":null,', b',"local":false':
        assert new in envelope
        envelope = envelope.replace(new, b"")
    state = state.replace(b'"released":0.0,', b"")
    assert parse(envelope, state) == message


def test_a_report_tells_by_when(tmp_path: Path) -> None:
    recipient = QueuedRecipient(BOB, BOB, state=FAILED, status="5.4.7", reply="over")
    message = QueuedMessage("1A", START, BOB, [recipient], by=DeliverBy(60, "R"), ret="FULL",
                            release=START + 30, hold="for;30")
    text = Report("failed", message, [recipient], "here.example", START + 60).write("ID", b"x")
    assert b"\r\nDeliver-By-Date: Tue, 14 Nov 2023 22:14:20 +0000\r\n" in text
    assert b"\r\nFuture-Release-Request: for;30\r\n" in text
    assert b"\r\nStatus: 5.4.7\r\n" in text


def test_what_was_to_travel_by_tls_is_not_returned_whole() -> None:
    """RFC 8689 §5."""
    recipient = QueuedRecipient(BOB, BOB, state=FAILED, status="5.7.30", reply="no")
    message = QueuedMessage("1A", START, BOB, [recipient], ret="FULL", requiretls=True)
    text = Report("failed", message, [recipient], "here.example", START).write(
        "ID", b"Subject: x\r\n\r\nsecret\r\n")
    assert b"text/rfc822-headers" in text and b"secret" not in text


def test_one_that_cannot_be_read_or_put_away_keeps_no_other_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, bob=[(RELAYED, "2.0.0")])
    attempts = world.runner.attempts
    world.runner.stop()
    spoilt, good, taken = (world.put("bob@example.net") for _ in range(3))
    (world.spool.root / "message" / spoilt).write_bytes(b"{}\n")

    def fail(id: str) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(world.spool, "set_aside", fail)
    assert world.spool.claims.take(taken)
    found = attempts._open_all([spoilt, "GONE", taken, good])
    assert [type(each).__name__ for each in found] == [
        "OSError", "FileNotFoundError", "_Taken", "tuple"]
    # Whoever opened it has it now, and whoever had claimed one has it still.
    assert {id: world.spool.claims.take(id) for id in (spoilt, "GONE", taken, good)} == {
        spoilt: True, "GONE": True, taken: False, good: False}
