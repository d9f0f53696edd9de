"""Attempts of the queue whose end the test decides: what has begun, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from mailsvc.errors import EnhancedStatus
from mailsvc.queue.job import Job, Result
from mailsvc.queue.message import RELAYED
from mailsvc.queue.routes import Hop
from mailsvc.queue.spool import Spool
from tests.queue_clock import Carrying, World


class Pending(Carrying):
    """Has a test say what becomes of each job."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.pending: list[Job] = []

    def carry(self, hop: Hop, job: Job) -> Deferred[list[Result]]:
        self.pending.append(job)
        return job.done

    def abort(self) -> None:
        for job in self.pending:
            job.interrupt()


def taken(job: Job) -> None:
    """The next host takes it."""
    job.begun = True
    job.conclude([Result(each, RELAYED, EnhancedStatus(2, 0, 0), "ok", "mx")
                  for each in job.recipients])
    job.finish()


def begun(job: Job) -> None:
    job.begun = True


def unreachable(job: Job) -> None:
    job.finish("no way to that host")


def nothing(job: Job) -> None:
    pass


def undecided(directory: Path) -> tuple[World, Pending]:
    """A queue, and what it carries from now on."""
    world = World(directory)
    world.runner.stop()
    pending = Pending(world.clock)
    world.carrying = pending
    world.begin()
    return world, pending


def unclaimed(spool: Spool, ids: Any) -> bool:
    """Whether nobody works on *ids*."""
    free = [id for id in ids if spool.claims.take(id)]
    for id in free:
        spool.claims.give_back(id)
    return sorted(free) == sorted(ids)
