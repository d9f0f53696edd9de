"""What the carrier is given, and what comes of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from twisted.internet.defer import Deferred

from mailsvc.errors import EnhancedStatus
from mailsvc.mail import Address
from mailsvc.queue.content import Content
from mailsvc.queue.message import FAILED, RELAYED, WAITING, QueuedMessage, QueuedRecipient


class Result(NamedTuple):
    """What became of one recipient in one attempt.

    :ivar state: RELAYED, FAILED, or WAITING when it is to be tried again.
    :ivar reply: what was said, for people.
    :ivar host: who said it; empty when nobody did.
    :ivar reports: whether the next host has taken over to report of success (DSN).
    :ivar timely: whether it minds within how much time the message is to be delivered (DELIVERBY).
    :ivar kept: whether nothing was tried, because it is for the next host to fetch it.
    """

    recipient: QueuedRecipient
    state: str
    status: EnhancedStatus
    reply: str
    host: str = ""
    reports: bool = False
    timely: bool = False
    kept: bool = False


@dataclass(slots=True, eq=False)
class Job:
    """One message for some recipients, all by one hop.

    :ivar reverse_path: the one to use, rewritten for mail that is forwarded.
    :ivar content: the message.
    :ivar prefix: what is sent before it: fields that were added on the way out.
    :ivar heard: told of what next hosts take, in the moment in which they say so.
    :ivar done: fires with a result for each recipient that was tried.
    :ivar in_flight: whether a host was sent it and has not said whether it took it.
    :ivar begun: whether any of it was sent, to whomever, ever: from MAIL on.
    :ivar line: where it stands, or stood, until there is a connection for it.
    """

    message: QueuedMessage
    recipients: list[QueuedRecipient]
    reverse_path: Address
    content: Content
    prefix: bytes = b""
    heard: Callable[[Sequence[Result]], object] | None = None
    done: Deferred[list[Result]] = field(default_factory=Deferred)
    results: list[Result] = field(default_factory=list)
    in_flight: bool = False
    begun: bool = False
    line: deque[Job] | None = None

    @property
    def left(self) -> list[QueuedRecipient]:
        """The recipients that no host has decided about yet."""
        decided = {id(each.recipient) for each in self.results if each.state != WAITING}
        return [each for each in self.recipients if id(each) not in decided]

    def conclude(self, results: Sequence[Result]) -> None:
        """The next host has said what became of some."""
        self.results += results
        taken = [each for each in results if each.state == RELAYED]
        if taken and self.heard is not None:
            self.heard(taken)

    def give_up(self) -> None:
        """Every host was asked: what they lack they will lack tomorrow."""
        self.results = [each._replace(state=FAILED) if each.status.class_ == 5 else each
                        for each in self.results]

    def forget_waiting(self) -> None:
        """Drop what was said of those that are to be tried again: they are, now."""
        self.results = [each for each in self.results if each.state != WAITING]

    def finish(self, text: str = "", status: EnhancedStatus | None = None, host: str = "") -> None:
        """Give out the results; *status* is that of the recipients that have none.

        May be called again.
        """
        if self.done.called:
            return
        known = {id(each.recipient) for each in self.results}
        for recipient in self.recipients:
            if id(recipient) not in known:
                said = status or EnhancedStatus(4, 4, 1)
                self.results.append(Result(
                    recipient, FAILED if said.class_ == 5 else WAITING, said, text, host))
        self.done.callback(self.results)

    def interrupt(self) -> None:
        """Give out what was decided: it was ourselves who put the rest off.

        May be called again.
        """
        if not self.done.called:
            self.forget_waiting()
            self.done.callback(self.results)

    def withdraw(self) -> None:
        """Do not send it, which has not begun.  What is being done to get a connection for it is
        done for the next one in line.
        """
        assert not self.begun
        if self.line is not None and self in self.line:
            self.line.remove(self)
        self.interrupt()


def line_up(jobs: deque[Job], job: Job) -> None:
    """Put *job* behind all that are as urgent as it is, or more so (RFC 6710)."""
    place = len(jobs)
    while place and jobs[place - 1].message.priority < job.message.priority:
        place -= 1
    jobs.insert(place, job)
    job.line = jobs
