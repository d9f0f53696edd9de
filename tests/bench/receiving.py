"""The SMTP scenarios: what comes back with 250 is counted, and all of it is read back from disk."""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack

from tests.bench import disk, load
from tests.bench.messages import LARGE, SMALL, Template, ident
from tests.bench.scenario import Bed, Measurement, Scenario, measured
from tests.bench.smtp_load import Sending

#: Seconds within which a queueing server must have delivered everything it acknowledged.
DELIVERY_TIMEOUT = 60.0

_MIB = 2 ** 20


def _receive(bed: Bed, key: str, *, template: Template = SMALL, most: int | None = None,
             everyone: bool = False, per_connection: bool = False, weight: float = 1.0,
             clients: int | None = None) -> Measurement:
    """Send, wait for delivery, read back.  A unit, a message, counts *weight*."""
    server, scale = bed.server, bed.scale
    assert server.smtp is not None
    clients = clients or scale.clients
    accounts = len(server.site.local_parts)
    recipients = [range(scale.recipients) if everyone else (client % accounts,)
                  for client in range(clients)]
    plan = Sending(key, tuple(tuple(bed.address(n).encode() for n in each) for each in recipients),
                   template, lmtp=server.lmtp, per_connection=per_connection, pipelined=everyone,
                   seconds=scale.seconds, most=scale.messages if most is None else most)
    os.sync()  # so that nobody pays for what another left to be written
    outcome = load.run(plan.play, clients, server.smtp, server.process.cpu)
    expected = {bed.maildir(n): set[bytes]() for n in range(accounts)}
    for tally in outcome.tallies:
        idents = {ident(key, tally.client, n) for n in range(tally.units)}
        for number in recipients[tally.client]:
            expected[bed.maildir(number)] |= idents
    due = sum(len(idents) for idents in expected.values())
    until = time.monotonic() + DELIVERY_TIMEOUT
    while bed.audit.arrived(expected) < due and time.monotonic() < until:
        time.sleep(0.1)
    lag = max(0.0, time.monotonic() - outcome.began - outcome.seconds)
    cpu = server.process.cpu() - outcome.metered
    verdict = bed.audit.read_back(expected, template)
    # A copy that only waits in a queue is none yet; a message that does has been taken over.
    rate = outcome.units / (outcome.seconds + lag) if everyone and outcome.units else outcome.rate
    measurement = measured(outcome, rate * weight, cpu, verdict.complaint, weight)
    measurement.lag = lag
    return measurement


def warm_up(bed: Bed) -> Measurement:
    """Two messages by each client: processes started, files opened, nothing measured."""
    if bed.server.smtp is None:
        return Measurement()
    return _receive(bed, "warm", most=2)


def connections(bed: Bed, key: str) -> Measurement:
    """4 KiB messages, a connection for each."""
    return _receive(bed, key, per_connection=True)


def kept(bed: Bed, key: str) -> Measurement:
    """4 KiB messages, one connection for each client, reply by reply; or what the disk allows."""
    if bed.server.smtp is None:
        return disk.store(bed, SMALL.size)
    return _receive(bed, key)


def crowded(bed: Bed, key: str) -> Measurement:
    """As :func:`kept`, by many more clients at once."""
    return _receive(bed, key, clients=bed.scale.crowd)


def besides_idle(bed: Bed, key: str) -> Measurement:
    """As :func:`kept`, while many more connections are held that say nothing."""
    assert bed.server.smtp is not None
    with ExitStack() as held:
        for _ in range(bed.scale.idle):
            sock = held.enter_context(socket.create_connection(bed.server.smtp, timeout=10))
            if not sock.recv(1024).startswith(b"220"):
                return Measurement(problem="a connection that was to be held was not greeted")
        return _receive(bed, key)


def many_recipients(bed: Bed, key: str) -> Measurement:
    """4 KiB messages to many recipients each: the rate of copies that reach their maildirs."""
    return _receive(bed, key, most=bed.scale.many_messages, everyone=True,
                    weight=bed.scale.recipients)


def large(bed: Bed, key: str) -> Measurement:
    """5 MiB messages, kept connections."""
    return _receive(bed, key, template=LARGE, most=bed.scale.large_messages,
                    weight=LARGE.size / _MIB)


HELD = Scenario("held", "4 KiB, kept connections, and {scale.idle:,} that are idle", "messages/s",
                "messages", besides_idle)

RECEIVING = (
    Scenario("connect", "4 KiB, a connection each", "messages/s", "messages", connections),
    Scenario("kept", "4 KiB, kept connections", "messages/s", "messages", kept),
    Scenario("crowd", "4 KiB, {scale.crowd} kept connections", "messages/s", "messages", crowded),
    HELD,
    Scenario("fifty", "4 KiB to {scale.recipients} recipients", "deliveries/s", "deliveries",
             many_recipients, copies=True),
    Scenario("large", "5 MiB, kept connections", "MiB/s", "MiB", large),
)
