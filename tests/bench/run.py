"""Rounds of measurements: in each, every scenario on every server, one after the other.

In a round all servers run at once, each from fresh directories, and only one is under load; so the
machine is the same for all, and a change of its mood meets all alike.  The order of servers turns
from round to round.  Nothing is deleted until the end of the run: ext4 does not reuse the inodes of
the last minutes, and creating files among them is slower.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.bench import fetching, maildirs, receiving
from tests.bench.messages import TINY
from tests.bench.peers import Peer, Site, mail_owner
from tests.bench.process import ServerFailed
from tests.bench.scenario import Bed, Measurement, Scale, Scenario

#: Called with each measurement as it is made: scenario, name of the server, measurement.
Sink = Callable[[Scenario, str, Measurement], None]

#: What an idle connection costs: measured once, after the rounds.
IDLE = (
    Scenario("idlesmtp", "Idle SMTP connection, of {scale.idle:,}", "KiB", "",
             lambda bed, key: _idle(bed, bed.server.smtp, b"220", bed.scale.idle),
             lower_is_better=True),
    Scenario("idlepop3", "Idle POP3 connection, of {scale.idle:,}", "KiB", "",
             lambda bed, key: _idle(bed, bed.server.pop3, b"+OK", bed.scale.idle),
             lower_is_better=True),
    Scenario("idlesmtc", "Idle SMTP connection, of {scale.idle_crowd:,}", "KiB", "",
             lambda bed, key: _idle(bed, bed.server.smtp, b"220", bed.scale.idle_crowd),
             lower_is_better=True),
    Scenario("idlepopc", "Idle POP3 connection, of {scale.idle_crowd:,}", "KiB", "",
             lambda bed, key: _idle(bed, bed.server.pop3, b"+OK", bed.scale.idle_crowd),
             lower_is_better=True),
)

SCENARIOS = (*receiving.RECEIVING, *fetching.FETCHING, *IDLE)


def takes_part(peer: Peer, scenario: Scenario) -> bool:
    """Whether *scenario* can be asked of *peer*."""
    if peer.limit:
        return scenario.key == "kept"
    if scenario in (receiving.HELD, *IDLE[2:]) and not peer.crowds:
        return False
    if scenario in receiving.RECEIVING or scenario in IDLE[::2]:
        return peer.receives and (peer.copies or not scenario.copies)
    return peer.fetched


def run(peers: Sequence[Peer], scale: Scale, work: Path, sink: Sink) -> None:
    """Measure *peers*, which are all there, in the empty directory *work*."""
    source = work / "source"
    owner = mail_owner() if os.geteuid() == 0 else None
    maildirs.make(source, owner)
    maildirs.fill(source, fetching.source_idents(scale.listing), TINY, owner, part="cur")
    for number in range(scale.rounds):
        turned = [*peers[number % len(peers):], *peers[:number % len(peers)]]
        directory = work / f"r{number + 1}"
        _measure(receiving.RECEIVING, turned, scale, directory / "in", source, sink)
        _measure(fetching.FETCHING, turned, scale, directory / "out", source, sink)
    for scenario, peer in itertools.product(IDLE, peers):
        _measure((scenario,), [peer], scale, work / "idle" / scenario.key, source, sink)


def _measure(scenarios: Sequence[Scenario], peers: Sequence[Peer], scale: Scale, directory: Path,
             source: Path, sink: Sink) -> None:
    """Start the peers that take part, measure each scenario on each in turn, stop them."""
    with ExitStack() as running:
        beds: dict[str, Bed | str] = {}
        accounts = scale.local_parts() if scenarios[0] not in IDLE else ("u00",)
        for peer in peers:
            if any(takes_part(peer, scenario) for scenario in scenarios):
                beds[peer.name] = _make_bed(peer, scale, accounts, directory / peer.name, source,
                                            running)
                if scenarios is receiving.RECEIVING:
                    beds[peer.name] = _prepare(beds[peer.name], receiving.warm_up)
                elif scenarios is fetching.FETCHING:
                    beds[peer.name] = _prepare(beds[peer.name], fetching.fill_and_warm_up)
        for scenario, peer in itertools.product(scenarios, peers):
            if takes_part(peer, scenario):
                bed = beds[peer.name]
                sink(scenario, peer.name, Measurement(problem=bed) if isinstance(bed, str)
                     else scenario.measure(bed, scenario.key))


def _make_bed(peer: Peer, scale: Scale, local_parts: tuple[str, ...], directory: Path,
              source: Path, running: ExitStack) -> Bed | str:
    """Start *peer* until *running* is closed; or why that failed."""
    directory.mkdir(parents=True)
    try:
        server = peer.start(Site(directory, local_parts))
    except ServerFailed as failure:
        return f"{peer.name} did not start: {failure}"
    running.callback(server.process.stop)
    return Bed(server, scale, source)


def _prepare(bed: Bed | str, prepare: Callable[[Bed], Measurement]) -> Bed | str:
    """Do what is not measured; a problem in it takes the place of the bed."""
    if isinstance(bed, str):
        return bed
    problem = prepare(bed).problem
    return f"while warming up: {problem}" if problem else bed


def _idle(bed: Bed, address: tuple[str, int] | None, greeting: bytes, number: int
          ) -> Measurement:
    """KiB of memory that each of many greeted, silent connections adds."""
    assert address is not None
    before = bed.server.process.memory()
    with ExitStack() as connections:
        for nth in range(number):
            try:
                sock = connections.enter_context(socket.create_connection(address, timeout=10))
                said = sock.recv(1024)
            except OSError as problem:
                return Measurement(problem=f"connection {nth + 1}: {problem}")
            if not said.startswith(greeting):
                return Measurement(problem=f"connection {nth + 1} was greeted with {said!r}")
        time.sleep(0.5)
        after = bed.server.process.memory()
    return Measurement((after - before) / number / 1024)

