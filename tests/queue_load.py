"""Measures the queue: ``python -m tests.queue_load``.

* A hundred thousand messages to a thousand domains that wait: how soon the service is ready with
  them, how much memory its processes have, and how much CPU time it takes to let them wait, for
  queues of several sizes.
* How fast smtp-source fills a queue over 20 connections, and how fast it runs empty into smtp-sink,
  beside Postfix's, in turns.

Nothing is deleted before the end, but by the queues themselves: ext4 searches past inodes that were
freed a short while ago, which would slow whatever comes next.

Postfix and smtp-sink are Debian's ``postfix``.  What is printed is a table in reStructuredText.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from mailsvc.mail import Address, new_id
from mailsvc.queue.claims import Ownership
from mailsvc.queue.message import QueuedMessage, QueuedRecipient, envelope_line, state_line
from mailsvc.queue.spool import Spool
from tests.curves import plot
from tests.daemons import Postfix, free_port, wait_for
from tests.service import Service

MESSAGE = b"Subject: load\r\n\r\n" + (b"x" * 70 + b"\r\n") * 55
#: Connections to the sink, and messages over each: the same for both.
CONNECTIONS = 20
#: How often what it costs to wait is looked at.
LOOKS = 5


def fill(directory: Path, messages: int, domains: int, wait: float) -> None:
    """Put *messages* into the queue of *directory*, unsynced, to be tried in *wait* seconds."""
    spool = Spool(directory / "queue")
    directory.mkdir(exist_ok=True)
    spool.make()
    now = time.time()
    for number in range(messages):
        to = Address(f"user{number}", f"d{number % domains}.example")
        message = QueuedMessage(new_id(), now, Address("alice", "a.example"),
                                [QueuedRecipient(to, to)], account="alice@a.example")
        (spool.root / "message" / message.id).write_bytes(envelope_line(message) + MESSAGE)
        if wait:
            message.attempts, message.due = 1, now + wait
            state = spool.root / "state" / message.id
            state.write_bytes(state_line(message))
            os.utime(state, (message.due, message.due))


def cpu(pids: list[int]) -> float:
    """User and system time of *pids* so far, in seconds."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def cpu_of_family(parent: int) -> float:
    """The same of *parent* and its children, those included that have ended."""
    for _ in range(100):
        fields = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        ended = (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
        # One that has ended meanwhile is counted by its parent at the next look.
        with suppress(FileNotFoundError):
            return ended + cpu([parent, *map(int, children)])
    raise RuntimeError(f"the children of {parent} end too fast to be counted")


def resident(pids: list[int]) -> float:
    """Memory that *pids* have, shared pages counted once, in MiB."""
    octets = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                octets += int(line.split()[1]) * 1024
    return octets / 2**20


def running(pids: list[int]) -> float:
    """How long the threads of *pids* that there are have run so far, in milliseconds, exactly."""
    return sum(int(path.read_text().split()[0]) for pid in pids
               for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e6


def waiting(place: Path, messages: int, seconds: float) -> tuple[float, float, list[float]]:
    """With *messages* that wait: seconds until they are known, MiB, and CPU milliseconds a second
    in each of some looks.
    """
    directory = place / f"waiting-{messages}"
    fill(directory, messages, 1000, 3600)
    begun = time.monotonic()
    with Service(directory, (), ("--workers", "1", "--set", "relay.smarthost=127.0.0.1:1")
                 ) as service:
        while messages and "the queue holds" not in service.log.read_text():
            assert time.monotonic() < begun + 60
            time.sleep(0.01)
        known = time.monotonic() - begun
        # Then what was left behind is looked for, once.
        for _ in range(60):
            before = cpu(service.pids())
            time.sleep(1)
            if cpu(service.pids()) - before < 0.1:
                break
        used = []
        for _ in range(LOOKS):
            before = running(service.pids())
            time.sleep(seconds)
            used.append((running(service.pids()) - before) / seconds)
        memory = resident(service.pids())
    return known, memory, sorted(used)


@contextmanager
def sink() -> Iterator[int]:
    """smtp-sink; its port."""
    port = free_port()
    program = shutil.which("smtp-sink") or "/usr/sbin/smtp-sink"
    process = subprocess.Popen([program, *(["-u", "nobody"] if os.geteuid() == 0 else []),
                                f"127.0.0.1:{port}", "1000"])
    try:
        wait_for(("127.0.0.1", port))
        yield port
    finally:
        process.terminate()
        process.wait()


def ours(place: Path, messages: int, workers: int) -> tuple[float, float]:
    """How long our queue takes to run empty, and CPU time for it, seconds."""
    directory = place / f"ours-{time.monotonic_ns()}"
    fill(directory, messages, 100, 0)
    with sink() as port, Service(directory, (), (
            "--workers", str(workers), "--set", f"relay.smarthost=smtp+plain://127.0.0.1:{port}",
            "--set", f"queue.connections_per_destination={CONNECTIONS}")) as service:
        begun, before = time.monotonic(), cpu(service.pids())
        first = len(os.listdir(directory / "queue" / "message"))
        while os.listdir(directory / "queue" / "message"):
            time.sleep(0.02)
        # What was gone before the service was ready does not count.
        share = messages / first
        return (time.monotonic() - begun) * share, (cpu(service.pids()) - before) * share


def source(messages: int, address: tuple[str, int]) -> None:
    """Send so many messages from smtp-source."""
    subprocess.run(
        [shutil.which("smtp-source") or "/usr/sbin/smtp-source", "-s", str(CONNECTIONS), "-d", "-m",
         str(messages), "-l", str(len(MESSAGE)), "-f", "alice@a.example", "-t",
         "bob@far.example", "{}:{}".format(*address)], check=True)


def accepting(place: Path, messages: int, workers: int) -> tuple[float, float]:
    """How long our queue takes to fill, while nobody sends, and CPU time for it, seconds."""
    directory = place / f"accepting-{time.monotonic_ns()}"
    fill(directory, 0, 1, 0)
    ownership = Ownership(directory / "queue")
    assert ownership.acquire()
    with Service(directory, ("alice@a.example:secret",), (
            "--workers", str(workers), "--submission", "127.0.0.1:0",
            "--set", 'submission.trusted_networks=["127.0.0.0/8"]',
            "--set", "submission.messages_per_hour=0",
            "--set", "submission.recipients_per_hour=0")) as service:
        begun, before = time.monotonic(), cpu(service.pids())
        source(messages, service.listeners["submission"])
        took = time.monotonic() - begun, cpu(service.pids()) - before
        assert len(os.listdir(directory / "queue" / "message")) == messages
    ownership.release()
    return took


def postfix(messages: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """How long Postfix's takes to fill and to run empty, and CPU time for it, seconds."""
    with sink() as port, Postfix(
            lambda name: shutil.which(name) or f"/usr/sbin/{name}", relayhost=f"[127.0.0.1]:{port}",
            mynetworks="127.0.0.0/8", defer_transports="smtp", qmgr_message_active_limit="100000",
            smtp_destination_concurrency_limit=str(CONNECTIONS),
            initial_destination_concurrency=str(CONNECTIONS),
            smtpd_client_connection_count_limit="0", default_process_limit="200") as there:
        spool = there.directory / "spool"
        master = int((spool / "pid" / "master.pid").read_text())
        begun, before = time.monotonic(), cpu_of_family(master)
        source(messages, there.address)
        filled = time.monotonic() - begun, cpu_of_family(master) - before

        def left() -> int:
            return sum(len(files) for name in ("incoming", "active", "deferred", "maildrop")
                       for _, _, files in os.walk(spool / name))

        while len(list((spool / "deferred").rglob("*"))) < messages:
            time.sleep(0.1)
        main = there.configuration / "main.cf"
        main.write_text(main.read_text().replace("defer_transports = smtp\n", ""))
        subprocess.run(["postfix", "-c", str(there.configuration), "reload"], check=True,
                       capture_output=True)
        begun, before = time.monotonic(), cpu_of_family(master)
        subprocess.run(["postqueue", "-c", str(there.configuration), "-f"], check=True)
        while left():
            time.sleep(0.02)
        return filled, (time.monotonic() - begun, cpu_of_family(master) - before)


def both(place: Path, messages: int, workers: int
         ) -> tuple[tuple[float, float], tuple[float, float]]:
    """How long our queue takes to fill and to run empty, and CPU time for it, seconds."""
    return accepting(place, messages, workers), ours(place, messages, workers)


def main() -> None:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m tests.queue_load", description=__doc__)
    parser.add_argument("--sizes", default="1000,3000,10000,30000,100000",
                        help="of queues that wait")
    parser.add_argument("--seconds", type=float, default=5, help="how long is each look at them")
    parser.add_argument("--plot", type=Path, help="draw there, in SVG, what it costs to wait")
    parser.add_argument("--messages", type=int, default=5000, help="in queues that run empty")
    parser.add_argument("--rounds", type=int, default=3, help="of those")
    parser.add_argument("--alone", action="store_true", help="without Postfix")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mailsvc-load-") as name:
        place = Path(name)
        if given.sizes:
            table("messages that wait", "known after, s", "memory, MiB", "CPU, ms a second")
            sizes = [int(size) for size in given.sizes.split(",")]
            looks: list[tuple[float, float, float]] = []
            for size in sizes:
                known, memory, used = waiting(place, size, given.seconds)
                row(f"{size:,}", f"{known:.2f}", f"{memory:.0f}",
                    f"{statistics.median(used):.2f} ({used[0]:.2f}-{used[-1]:.2f})")
                looks.append((1000 * statistics.median(used), 1000 * used[0], 1000 * used[-1]))
            if given.plot:
                given.plot.write_text(plot([
                    ("CPU, µs a second, by messages that wait", sizes, looks)]))
        servers: dict[str, Callable[[], tuple[tuple[float, float], tuple[float, float]]]] = {
            f"mailsvc, {name}": partial(both, place, given.messages, workers)
            for workers, name in ((1, "1 process"), (2, "2 processes"))}
        if not given.alone:
            servers["Postfix"] = lambda: postfix(given.messages)
        found: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for number in range(given.rounds):
            # Each is first in turn, so that none always follows the one that deletes the most.
            order = list(servers.items())
            for server, measure in order[number % len(order):] + order[:number % len(order)]:
                # What the one before it left to be written is not its work.
                os.sync()
                for what, took in zip(("accepting from smtp-source", "relaying to smtp-sink"),
                                      measure(), strict=True):
                    found.setdefault(what, {}).setdefault(server, []).append(took)
        for what, by_server in found.items():
            table(what, "messages/s", "range", "CPU, ms a message")
            for server, rounds in by_server.items():
                rates = [given.messages / seconds for seconds, _ in rounds]
                costs = [used / given.messages * 1000 for _, used in rounds]
                row(server, f"{statistics.median(rates):,.0f}",
                    f"{min(rates):,.0f}-{max(rates):,.0f}", f"{statistics.median(costs):.2f}")
    sys.stdout.flush()


def table(*heads: str) -> None:
    """Begin a table."""
    print("\n.. list-table::\n   :header-rows: 1\n   :widths: 31 23 23 23\n")
    row(*heads)


def row(*cells: str) -> None:
    """A row of it."""
    print("\n".join(f"   {'* -' if number == 0 else '  -'} {cell}".rstrip()
                    for number, cell in enumerate(cells)), flush=True)


if __name__ == "__main__":
    main()
