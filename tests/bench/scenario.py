"""What a measurement is made of: how much (Scale), on what (Bed), with what result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.load import Outcome
from tests.bench.maildirs import Audit
from tests.bench.peers import DOMAIN, PASSWORD, Server


@dataclass(frozen=True)
class Scale:
    """How much of everything; each loop of a run is bounded by one of these.

    :ivar rounds: how often every scenario is measured on every server.
    :ivar seconds: how long the load of one measurement lasts, where time limits it.
    :ivar clients: concurrent connections.
    :ivar recipients: of one message to many.
    :ivar messages: most messages by one client.
    :ivar many_messages: most messages to many recipients by one client.
    :ivar large_messages: most messages of 5 MiB by one client.
    :ivar drain: messages in a maildrop that is emptied.
    :ivar crowd: concurrent connections where there are many.
    :ivar listing: messages in a maildrop that is only looked at.
    :ivar shorter: messages in another.
    :ivar looks: how often it is, after the first time.
    :ivar idle: connections that do nothing.
    :ivar idle_crowd: the same, for servers that hold so many.
    """

    rounds: int = 3
    seconds: float = 2.0
    clients: int = 20
    crowd: int = 200
    recipients: int = 50
    messages: int = 1000
    many_messages: int = 10
    large_messages: int = 5
    drain: int = 1000
    listing: int = 100_000
    shorter: int = 10_000
    looks: int = 5
    idle: int = 2000
    idle_crowd: int = 10_000

    def local_parts(self) -> tuple[str, ...]:
        """Accounts for every scenario: each client's own, one for each to drain, and a few more."""
        return tuple(f"u{n:02}" for n in range(max(self.recipients, 2 * self.clients + 4)))


#: To see that everything works; its figures mean little.
QUICK = Scale(rounds=1, seconds=0.5, many_messages=2, large_messages=1, drain=100, listing=5_000,
              shorter=500, idle=200, idle_crowd=400)

#: For the tests: a handful of everything.
HANDFUL = Scale(rounds=1, seconds=0.1, clients=3, recipients=4, messages=3, many_messages=2,
                crowd=5, large_messages=1, drain=5, listing=10, shorter=4, looks=1, idle=3,
                idle_crowd=4)


@dataclass
class Measurement:
    """One scenario on one server, once.

    :ivar value: in the scenario's unit; None when it failed.
    :ivar cpu: the server's CPU seconds per 1,000 of what the scenario counts.
    :ivar client_cpu: the clients' CPU seconds per 1,000.
    :ivar lag: seconds from the last acknowledgement until all was in the maildirs.
    :ivar lost: connections that were never greeted, and were made again.
    :ivar problem: why it failed; empty when it did not.
    """

    value: float | None = None
    cpu: float = 0.0
    client_cpu: float = 0.0
    lag: float = 0.0
    lost: int = 0
    problem: str = ""


def measured(outcome: Outcome, value: float, cpu: float, problem: str, weight: float = 1.0
             ) -> Measurement:
    """The measurement of an outcome whose units count *weight* each."""
    problem = "; ".join(text for text in (*outcome.failures[:1], problem) if text)
    thousands = max(1, outcome.units) * weight / 1000
    return Measurement(None if problem else value, cpu / thousands,
                       outcome.client_cpu / thousands, lost=outcome.lost, problem=problem)


@dataclass
class Bed:
    """A running server, and what must be remembered of it from one scenario to the next.

    :ivar source: a maildir with as many messages as ``scale.listing`` says, to be cloned.
    """

    server: Server
    scale: Scale
    source: Path
    audit: Audit = field(default_factory=Audit)

    def address(self, number: int) -> str:
        """An account's address."""
        return f"{self.server.site.local_parts[number]}@{DOMAIN}"

    def login(self, number: int) -> tuple[bytes, bytes]:
        """An account's name and password."""
        return self.address(number).encode(), PASSWORD.encode()

    def maildir(self, number: int) -> Path:
        """Where mail to an account is found."""
        return self.server.maildir(self.server.site.local_parts[number])


@dataclass(frozen=True)
class Scenario:
    """One row of the plan, one column of a table.

    :ivar key: names it in the results, and in the idents of its messages: 8 characters or less.
    :ivar title: for people; a format of ``scale``.
    :ivar unit: of the value.
    :ivar costs: what CPU seconds are given per 1,000 of; empty where the table leaves them out.
    :ivar measure: does it.
    :ivar lower_is_better: whether the value is a time.
    :ivar copies: whether the server must deliver a copy to each recipient.
    """

    key: str
    title: str
    unit: str
    costs: str
    measure: Callable[[Bed, str], Measurement]
    lower_is_better: bool = False
    copies: bool = False
