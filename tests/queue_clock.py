"""A queue over a real spool, on a clock that the test turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from mailsvc.errors import EnhancedStatus
from mailsvc.mail import NULL_PATH, Address
from mailsvc.queue.attempts import Attempts
from mailsvc.queue.job import Job, Result
from mailsvc.queue.limits import QueueSettings
from mailsvc.queue.message import QueuedMessage, QueuedRecipient
from mailsvc.queue.routes import Hop, RelaySettings, Routes
from mailsvc.queue.runner import Runner
from mailsvc.queue.schedule import Schedule
from mailsvc.queue.spool import Draft, Spool
from mailsvc.srs import SRS

START = 1_700_000_000.0
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0


class Here:
    """Runs what is meant for threads at once."""

    def run(self, function: Any, *args: Any, unwanted: object = None) -> Deferred[Any]:
        try:
            return succeed(function(*args))
        except Exception:
            return fail(Failure())

    def after_this(self, function: Callable[[], object]) -> None:
        function()


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
