"""What an operator acts upon while it is being tried: what has not begun to be sent is withdrawn,
and only of what is being sent is said that it is busy."""

from __future__ import annotations

import json
import smtplib
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from mailsvc.client import Client
from mailsvc.errors import TemporaryFailure
from mailsvc.mail import Address
from mailsvc.queue.carrier import Carrier
from mailsvc.queue.content import Content
from mailsvc.queue.job import Job
from mailsvc.queue.limits import QueueSettings
from mailsvc.queue.local import Local
from mailsvc.queue.message import WAITING, QueuedMessage, QueuedRecipient
from mailsvc.queue.routes import RelaySettings, parse_route
from mailsvc.smtp.failures import CannotConnect
from tests.command_line import CommandLine
from tests.exchanger import Exchanger
from tests.queue_clock import World
from tests.relay import MESSAGE, queued, relaying, submit, until, unverified
from tests.relaying import Relaying
from tests.service import PATIENCE, Service
from tests.undecided import begun, nothing, taken, unclaimed, undecided, unreachable

#: Messages, all to one host.
MESSAGES = 60

Acted = tuple[list[str], list[str]]


def text(number: int) -> bytes:
    return b"Subject: x\r\nX-Number: %d\r\n\r\nbody\r\n" % number


def number_of(message: bytes) -> int:
    return int(message.split(b"X-Number: ")[1].split(b"\r\n")[0])


class Silent(Relaying):
    """A queue whose connections come to be when the test says so.

    :ivar dialled: those that are being made.
    """

    def __init__(self, directory: Path, messages: int = MESSAGES, **settings: Any) -> None:
        super().__init__(directory, retry_jitter=0, **settings)
        self.dialled: deque[Deferred[None]] = deque()
        for number in range(messages):
            self.put(text(number))
        #: By id, the number of each.
        self.numbers = {id: number_of((self.spool.root / "message" / id).read_bytes())
                        for id in self.spool.ids()}
        self.runner.start()

    def dial(self, host: str, port: int, **options: Any) -> Deferred[Client]:
        made: Deferred[Any] = Deferred()
        self.dialled.append(made)
        dial = super().dial
        return made.addCallback(lambda _: dial(host, port, **options))

    def go(self, turns: int = 400, seconds: float = 0.0) -> None:
        """Let so much happen."""
        for _ in range(turns):
            self.clock.advance(seconds)
            self.threads.turn()
            for sink in self.sinks:
                sink.answer()

    def connect(self) -> None:
        """All that are being made are there."""
        while self.dialled:
            self.dialled.popleft().callback(None)

    def ask(self, action: str, words: str = "", route: str = "") -> list[Acted]:
        """Ask for *action*; the answer, when it is there."""
        answer: list[Acted] = []
        Deferred.fromCoroutine(self.runner.act(action, [words], route)).addCallback(answer.append)
        return answer

    def act(self, action: str, words: str = "", route: str = "") -> Acted:
        """The same while no host says anything."""
        answer = self.ask(action, words, route)
        for _ in range(20):
            self.threads.turn()
            self.clock.advance(0)
        return answer[0]

    @property
    def active(self) -> int:
        return self.runner.standing(0)[0]

    @property
    def arrived(self) -> Counter[int]:
        """How often each message was taken."""
        return Counter(number_of(message) for sink in self.sinks for message in sink.taken)


@pytest.mark.parametrize("action", ["hold", "release", "retry", "reroute", "drop"])
def test_what_waits_for_a_connection_is_acted_upon(tmp_path: Path, action: str) -> None:
    relaying = Silent(tmp_path)
    relaying.go(20)
    ids = relaying.spool.ids()
    assert relaying.active == MESSAGES and len(relaying.dialled) == 20
    due = {id: relaying.spool.load(id).due for id in ids}
    changed, busy = relaying.act(action, route="127.0.0.2:25" if action == "reroute" else "")
    assert (set(changed), busy) == (ids, [])
    if action == "drop":
        assert relaying.spool.ids() == set() and relaying.active == 0
        assert unclaimed(relaying.spool, ids)
    else:
        messages = [relaying.spool.load(id) for id in ids]
        assert {each.attempts for each in messages} == {0}
        assert {each.held for each in messages} == {action == "hold"}
        assert {each.id: each.due for each in messages} == due
        assert relaying.active == (0 if action == "hold" else MESSAGES)
    if action == "hold":
        assert unclaimed(relaying.spool, ids)
        assert relaying.act("release") == (changed, [])
    # They wait for the connections that were being made, unless they go elsewhere.
    assert len(relaying.dialled) == (40 if action == "reroute" else 20)
    relaying.connect()
    relaying.go()
    assert relaying.arrived == (Counter() if action == "drop" else Counter(range(MESSAGES)))
    assert relaying.spool.ids() == set() and relaying.told.reports == []


def test_a_connection_that_was_made_for_it_is_for_the_next(tmp_path: Path) -> None:
    relaying = Silent(tmp_path, 3, connections_per_destination=1)
    relaying.go(20)
    first, second, third = sorted(relaying.spool.ids())
    assert relaying.act("hold", f"id:{first}") == ([first], [])
    assert relaying.act("drop", f"id:{second}") == ([second], [])
    assert len(relaying.dialled) == 1
    relaying.connect()
    relaying.go()
    assert relaying.arrived == Counter([relaying.numbers[third]])
    assert len(relaying.sinks) == 1 and relaying.spool.ids() == {first}


def test_a_connection_that_nobody_needs_any_more_is_kept_for_a_moment(tmp_path: Path) -> None:
    relaying = Silent(tmp_path, 1)
    relaying.go(20)
    relaying.act("hold")
    relaying.connect()
    relaying.go(20)
    relaying.act("release")
    relaying.go()
    assert relaying.arrived == Counter([0]) and len(relaying.sinks) == 1


def test_a_host_that_is_not_there_puts_off_the_rest(tmp_path: Path) -> None:
    relaying = Silent(tmp_path, 3, connections_per_destination=1)
    relaying.go(20)
    first, *rest = sorted(relaying.spool.ids())
    relaying.act("hold", f"id:{first}")
    relaying.dialled.popleft().errback(CannotConnect("nobody is there"))
    relaying.go(20)
    assert [relaying.spool.load(id).attempts for id in (first, *rest)] == [0, 1, 1]
    assert relaying.active == 0 and unclaimed(relaying.spool, relaying.spool.ids())


@pytest.mark.parametrize("action", ["hold", "drop"])
def test_what_is_read_yet_is_withdrawn(tmp_path: Path, action: str) -> None:
    relaying = Silent(tmp_path, 5)
    relaying.threads.turn()
    assert relaying.active == 5  # and in this turn they are read
    changed, busy = relaying.act(action)
    assert sorted(relaying.numbers) == changed and busy == []
    assert relaying.active == 0 and not relaying.dialled
    assert unclaimed(relaying.spool, relaying.numbers)
    assert len(relaying.spool.ids()) == (5 if action == "hold" else 0)


def test_what_is_about_to_be_put_off_is_waited_for(tmp_path: Path) -> None:
    relaying = Silent(tmp_path, 5, connections_per_destination=1)
    relaying.go(20)
    relaying.dialled.popleft().errback(CannotConnect("nobody is there"))
    assert relaying.active == 5  # for as long as that is being written
    changed, busy = relaying.act("hold")
    assert sorted(relaying.numbers) == changed and busy == []
    for id in changed:
        message = relaying.spool.load(id)
        assert message.held and message.attempts == 1 and message.waiting[0].reply


def test_what_is_being_sent_is_busy_and_so_is_what_was_sent_ahead(tmp_path: Path) -> None:
    relaying = Silent(tmp_path, 12, connections_per_destination=1)
    relaying.go(3)
    relaying.connect()
    relaying.go_ahead()
    before = relaying.arrived
    changed, busy = relaying.act("drop")
    assert len(busy) == 2 and set(busy) == relaying.spool.ids() and len(changed) >= 8
    relaying.go()
    assert relaying.arrived == before + Counter(relaying.numbers[id] for id in busy)
    assert relaying.spool.ids() == set() and relaying.told.reports == []


@pytest.mark.parametrize("moment", range(0, 40, 2))
@pytest.mark.parametrize("action", ["hold", "retry", "drop"])
def test_at_whatever_moment_none_is_lost_and_none_comes_twice(
    tmp_path: Path, action: str, moment: int
) -> None:
    relaying = Silent(tmp_path, 12, connections_per_destination=2)
    answers: list[list[Acted]] = []
    for turn in range(60):
        if turn in (moment, moment + 1, moment + 5):
            answers.append(relaying.ask(action))
        if turn % 7 == 6:
            relaying.connect()
        relaying.go(1, 0.01)
    relaying.go(20)
    assert all(answers) and relaying.active == 0
    dropped = {id for [(changed, _)] in answers for id in changed if action == "drop"}
    assert unclaimed(relaying.spool, relaying.numbers)
    if action == "hold":
        assert all(each.held and not each.attempts for each in relaying.spool.messages())
        relaying.act("release")
        relaying.go(20)
        relaying.connect()
        relaying.go()
    assert relaying.arrived == Counter(
        number for id, number in relaying.numbers.items() if id not in dropped)
    assert relaying.spool.ids() == set() and relaying.told.reports == []


def test_of_what_waits_for_its_time_nothing_is_left(tmp_path: Path) -> None:
    world = World(tmp_path, bob=[(WAITING, "4.4.1")])
    first, second = (world.put("bob@example.net") for _ in range(2))
    answers: list[Acted] = []
    dropping = world.runner.act("drop", [f"id:{first}"], "")
    Deferred.fromCoroutine(dropping).addCallback(answers.append)
    assert answers == [([first], [])] and world.runner.standing(0)[:3] == (0, 1, 0)
    world.turn(300)
    assert world.spool.load(second).attempts == 2 and len(world.carrying.times) == 3


# ---- several ways --------------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "is_withdrawn"), [
    (nothing, True), (unreachable, True), (begun, False), (taken, False)])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_with_several_ways_none_may_have_begun(
    tmp_path: Path, one: Callable[[Job], None], is_withdrawn: bool, which: int
) -> None:
    world, pending = undecided(tmp_path)
    id = world.put("a@a.example", "b@b.example", "c@c.example")
    due = world.spool.load(id).due
    world.clock.advance(10)
    one(pending.pending[which])
    answers: list[Acted] = []
    Deferred.fromCoroutine(world.runner.act("hold", [], "")).addCallback(answers.append)
    assert answers == [([id], []) if is_withdrawn else ([], [id])]
    message = world.spool.load(id)
    assert message.held is is_withdrawn and message.due == due
    assert unclaimed(world.spool, [id]) is is_withdrawn
    if is_withdrawn:
        assert message.attempts == 0 and world.runner.standing(0)[:3] == (0, 0, 1)
        assert all(job.done.called for job in pending.pending)
        Deferred.fromCoroutine(world.runner.act("release", [], ""))
        assert world.spool.load(id).attempts == 0 and len(pending.pending) == 6
    for job in pending.pending:
        if not job.done.called:
            taken(job)
    assert world.spool.ids() == set() and world.told.reports == []


def test_what_a_host_took_and_the_disk_did_not_is_known_after_a_withdrawal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, pending = undecided(tmp_path)
    world.put("a@a.example", "b@b.example")

    def full(*messages: QueuedMessage) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(world.spool, "save", full)
        for job in pending.pending[:2]:
            taken(job) if "a.example" in str(job.recipients[0].address) else unreachable(job)
    world.turn(60)
    [_, _, job] = pending.pending
    assert [str(each.address) for each in job.recipients] == ["b@b.example"]
    Deferred.fromCoroutine(world.runner.act("retry", [], ""))
    [*_, job] = pending.pending
    assert len(pending.pending) == 4
    assert [str(each.address) for each in job.recipients] == ["b@b.example"]
    taken(job)
    assert world.spool.ids() == set()


def test_what_a_program_has_got_has_begun(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    clock: Any = Clock()
    clock.spawnProcess = lambda *_, **__: None
    carrier = Carrier(RelaySettings(), QueueSettings(connections_per_destination=1),
                      None, None, "here.example", clock)  # type: ignore[arg-type]
    jobs = []
    for name in "a", "b":
        to = Address(name, "example.net")
        message = QueuedMessage(name, 0.0, to, [QueuedRecipient(to, to)])
        jobs.append(Job(message, message.recipients, to,
                        Content((tmp_path / "empty").open("rb"))))
        carrier.carry(parse_route("pipe:/bin/cat"), jobs[-1])
    assert [job.begun for job in jobs] == [True, False]
    jobs[1].withdraw()
    assert jobs[1].done.called and not jobs[0].done.called
    for job in jobs:
        job.content.close()


def test_what_is_being_delivered_here_has_begun(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    routed: Deferred[Any] = Deferred()

    class Slow:
        def route(self, address: Address) -> Deferred[Any]:
            return routed

    to = Address("carol", "example.org")
    message = QueuedMessage("1A", 0.0, to, [QueuedRecipient(to, to, local=True)])
    job = Job(message, message.recipients, to, Content((tmp_path / "empty").open("rb")))
    Deferred.fromCoroutine(Local(Slow(), None, None).deliver(job))  # type: ignore[arg-type]
    assert job.begun and not job.done.called
    routed.errback(TemporaryFailure("the directory cannot be read"))
    assert job.done.called and [each.state for each in job.results] == [WAITING]
    job.content.close()


# ---- the whole service ---------------------------------------------------------------------------


def claims_of(service: Service) -> Counter[int]:
    """How many messages each process works on."""
    inodes = {str(path.stat().st_ino) for path in (service.directory / "queue").glob("claimed.*")}
    claims: Counter[int] = Counter()
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1] == "POSIX" and fields[5].split(":")[-1] in inodes:
            claims[int(fields[4])] += 1
    return claims


def test_all_can_be_dropped_that_a_host_lets_wait(tmp_path: Path) -> None:
    """It accepts connections and never says a word; two workers send."""
    run = CommandLine(tmp_path / "a")
    with Exchanger("127.0.0.1", 0, "hang=greet") as silent, Exchanger(
            "127.0.0.1", 0, "") as there, relaying(
            tmp_path / "a", f"relay.smarthost=127.0.0.1:{silent.port}",
            f"relay.routes={{\"there.example\"=\"127.0.0.1:{there.port}\"}}",
            options=("--workers", "2")) as here:
        with smtplib.SMTP(*here.listeners["submission"], timeout=PATIENCE) as smtp:
            smtp.starttls(context=unverified())
            smtp.login("alice@a.example", "secret")
            for number in range(MESSAGES):
                smtp.sendmail("alice@a.example", [f"m{number}@far.example"], MESSAGE)
        until(lambda: len(claims_of(here)) == 2 and claims_of(here).total() == MESSAGES, here)
        until(lambda: silent.connections == 10, here)
        assert run("queue", "hold", "to:m0@far.example") == "Held 1 message\n"
        dropped = json.loads(run("queue", "drop", "--all", "--json"))
        assert len(dropped["ids"]) == MESSAGES and dropped["busy"] == []
        assert not queued(here) and claims_of(here) == Counter()
        assert silent.lines == []
        submit(here, ["bob@there.example"])
        until(lambda: len(there.messages) == 1 and not queued(here), here)
        assert "Traceback" not in here.log.read_text()
