"""The POP3 scenarios: every octet that comes is compared with what must come."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable

from tests.bench import load, maildirs
from tests.bench.load import Dialogue
from tests.bench.messages import LARGE, SMALL, TINY, Template, ident
from tests.bench.pop3_load import Fetching
from tests.bench.scenario import Bed, Measurement, Scenario, measured

#: Messages in a maildrop that a program looks into every few minutes.
FEW = 20

#: Sessions on a long maildrop while it is empty.
_WARM_UPS = 16

#: Maildrops with messages of 5 MiB, and how many each has.
LARGE_DROPS, LARGE_EACH = 2, 2


def fill(bed: Bed) -> None:
    """Put mail into the maildrops.

    The first accounts, one for each client, get FEW messages; the next as many to drain; the next
    some large ones; and two are clones of ``bed.source``, one of them of its beginning.
    """
    for first, number, key, template, messages in _layout(bed):
        for account in range(first, first + number):
            maildirs.fill(bed.maildir(account), _idents(key, account, messages), template,
                          bed.server.owner)
    for messages in (bed.scale.listing, bed.scale.shorter):
        maildirs.clone(bed.source, bed.maildir(_listed(bed, messages)), bed.server.owner, messages)


def source_idents(messages: int) -> list[bytes]:
    """The messages of the maildir that is cloned for the long listing."""
    return _idents("list", 0, messages)


def _layout(bed: Bed) -> tuple[tuple[int, int, str, Template, int], ...]:
    """First account, number of accounts, key of idents, template, messages in each."""
    clients = bed.scale.clients
    return ((0, clients, "few", SMALL, FEW),
            (clients, clients, "drain", SMALL, bed.scale.drain),
            (2 * clients, LARGE_DROPS, "large", LARGE, LARGE_EACH))


def _listed(bed: Bed, messages: int) -> int:
    """The account with so many to be listed."""
    return 2 * bed.scale.clients + LARGE_DROPS + (messages != bed.scale.listing)


def _idents(key: str, account: int, messages: int) -> list[bytes]:
    return [ident(key, account, n) for n in range(messages)]


def _fetching(bed: Bed, which: int, sessions: int = 1_000_000) -> Fetching:
    """What there is to fetch from the maildrops of a row of the layout."""
    first, number, key, template, messages = _layout(bed)[which]
    accounts = range(first, first + number)
    return Fetching(tuple(bed.login(account) for account in accounts),
                    tuple(_idents(key, account, messages) for account in accounts), template,
                    seconds=bed.scale.seconds, sessions=sessions)


def _run(bed: Bed, plan: Fetching, play: Callable[[int], Dialogue]) -> tuple[load.Outcome, float]:
    """Play for every maildrop of the plan: the outcome, and the server's CPU seconds."""
    assert bed.server.pop3 is not None
    outcome = load.run(play, len(plan.logins), bed.server.pop3, bed.server.process.cpu)
    return outcome, bed.server.process.cpu() - outcome.metered


def fill_and_warm_up(bed: Bed) -> Measurement:
    """Fill; and sessions for each maildrop, so that passwords are known.

    The long ones are looked into while they are empty: nobody knows yet what they will hold.
    """
    long = [_listed(bed, messages) for messages in (bed.scale.listing, bed.scale.shorter)]
    # Often enough for each process of a server to have seen each password.
    empty = Fetching(tuple(bed.login(account) for account in long), ((), ()), TINY,
                     sessions=_WARM_UPS)
    problems = _run(bed, empty, empty.check)[0].failures
    fill(bed)
    for which in range(len(_layout(bed))):
        plan = _fetching(bed, which, sessions=1)
        problems += _run(bed, plan, plan.look)[0].failures
    return Measurement(problem="; ".join(problems[:1]))


def sessions(bed: Bed, key: str) -> Measurement:
    """CAPA, USER, PASS, STAT, UIDL, LIST, QUIT on a few messages; passwords checked just before."""
    once, plan = _fetching(bed, 0, sessions=1), _fetching(bed, 0)
    before, _ = _run(bed, once, once.look)
    outcome, cpu = _run(bed, plan, plan.look)
    return measured(outcome, outcome.rate, cpu, "; ".join(before.failures[:1]))


def retrieve(bed: Bed, key: str) -> Measurement:
    """RETR of 4 KiB messages, each asked for when the one before has come."""
    plan = _fetching(bed, 1)
    outcome, cpu = _run(bed, plan, plan.retrieve)
    return measured(outcome, outcome.rate, cpu, "")


def retrieve_pipelined(bed: Bed, key: str) -> Measurement:
    """RETR of 4 KiB messages, asked for ahead."""
    plan = _fetching(bed, 1)
    outcome, cpu = _run(bed, plan, plan.retrieve_pipelined)
    return measured(outcome, outcome.rate, cpu, "")


def retrieve_large(bed: Bed, key: str) -> Measurement:
    """RETR of 5 MiB messages, one by one."""
    plan = _fetching(bed, 2)
    outcome, cpu = _run(bed, plan, plan.retrieve)
    mebibytes = LARGE.size / 2 ** 20
    return measured(outcome, outcome.rate * mebibytes, cpu, "", mebibytes)


def drain(bed: Bed, key: str) -> Measurement:
    """LIST, RETR all, DELE all, QUIT: all messages over the time until the last has gone."""
    plan = _fetching(bed, 1)
    first, number, *_ = _layout(bed)[1]
    os.sync()
    outcome, cpu = _run(bed, plan, plan.drain)
    left = maildirs.count(bed.maildir(account) for account in range(first, first + number))
    return measured(outcome, outcome.units / max(outcome.seconds, 1e-9), cpu,
                    f"{left} messages still there after DELE and QUIT" if left else "")


def _look(bed: Bed, messages: int, times: int) -> Measurement:
    """USER, PASS, STAT, UIDL, QUIT on very many messages: milliseconds for each session."""
    plan = Fetching((bed.login(_listed(bed, messages)),), (source_idents(messages),), TINY,
                    seconds=60.0, sessions=times)
    outcome, cpu = _run(bed, plan, plan.check)
    durations = [1000 * seconds for tally in outcome.tallies for seconds in tally.durations]
    return measured(outcome, statistics.median(durations) if durations else 0.0, cpu, "")


def first_look(bed: Bed, key: str) -> Measurement:
    """The first session on this maildrop since mail came; passwords checked before."""
    return _look(bed, bed.scale.listing, 1)


def next_looks(bed: Bed, key: str) -> Measurement:
    """The sessions after it."""
    return _look(bed, bed.scale.listing, bed.scale.looks)


def first_shorter_look(bed: Bed, key: str) -> Measurement:
    """As :func:`first_look`, at fewer messages."""
    return _look(bed, bed.scale.shorter, 1)


def next_shorter_looks(bed: Bed, key: str) -> Measurement:
    """As :func:`next_looks`, at fewer messages."""
    return _look(bed, bed.scale.shorter, bed.scale.looks)


FETCHING = (
    Scenario("sessions", "Sessions on 20 messages", "sessions/s", "sessions", sessions),
    Scenario("retr", "RETR 4 KiB, one by one", "messages/s", "messages", retrieve),
    Scenario("retrpipe", "RETR 4 KiB, pipelined", "messages/s", "messages", retrieve_pipelined),
    Scenario("retrbig", "RETR 5 MiB", "MiB/s", "MiB", retrieve_large),
    Scenario("drain", "Drain of {scale.drain:,} messages", "messages/s", "messages", drain),
    Scenario("coldten", "{scale.shorter:,} messages, first session", "ms", "", first_shorter_look,
             lower_is_better=True),
    Scenario("warmten", "{scale.shorter:,} messages, next sessions", "ms", "", next_shorter_looks,
             lower_is_better=True),
    Scenario("cold", "{scale.listing:,} messages, first session", "ms", "", first_look,
             lower_is_better=True),
    Scenario("warm", "{scale.listing:,} messages, next sessions", "ms", "", next_looks,
             lower_is_better=True),
)
