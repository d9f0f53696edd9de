"""What a message costs as mail and accounts grow: ``python -m tests.scaling``.

Server CPU time for a message of 4 KiB, sent over 20 kept connections to one process, with so many
messages in a hundred maildirs, and with so many accounts; several rounds in turn, and their
medians.  Prints tables in reStructuredText and, with a directory as its argument, writes a plot.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from mailsvc.directory import SqliteDirectory
from mailsvc.mail import Address, new_id
from tests.bench.load import run
from tests.bench.messages import Template
from tests.bench.smtp_load import Sending
from tests.curves import plot
from tests.queue_load import cpu
from tests.service import Service

DOMAIN = "a.example"
STORED = (10, 1_000, 10_000, 100_000, 1_000_000)
ACCOUNTS = (10, 1_000, 10_000, 100_000)
#: Accounts that have the stored mail, and clients that send to them.
MAILDIRS, CLIENTS = 100, 20
ROUNDS, SECONDS = 3, 2.0
_TEXT = b"Subject: stored\r\n\r\n" + b"x" * 70 + b"\r\n"


def fill(directory: Path, stored: int, accounts: int) -> None:
    """Make the data of a service with so much in it."""
    directory.mkdir()
    with SqliteDirectory(directory / "accounts.sqlite") as people, people.transaction():
        people.add_domain(DOMAIN)
        for number in range(accounts):
            people.add_account(Address(f"u{number}", DOMAIN))
    maildirs = [directory / "mail" / DOMAIN / f"u{number}"
                for number in range(min(MAILDIRS, accounts))]
    for maildir in maildirs:
        for name in "tmp", "new", "cur":
            (maildir / name).mkdir(parents=True)
    for number in range(stored):
        name = f"1763683200.{new_id()}.mx.example.org,S={len(_TEXT)},W={len(_TEXT)}"
        (maildirs[number % len(maildirs)] / "new" / name).write_bytes(_TEXT)


def cost(service: Service, round_: int, accounts: int) -> float:
    """CPU microseconds for a message."""
    step = max(1, min(MAILDIRS, accounts) // CLIENTS)
    plan = Sending(f"r{round_}", tuple((f"u{n * step % accounts}@{DOMAIN}".encode(),)
                                       for n in range(CLIENTS)), Template(4096), seconds=SECONDS)
    outcome = run(plan.play, CLIENTS, service.smtp, lambda: cpu(service.pids()))
    assert not outcome.failures, outcome.failures
    return (cpu(service.pids()) - outcome.metered) / outcome.units * 1e6


def measured(place: Path, cases: Sequence[tuple[int, int]]) -> Iterator[tuple[float, float, float]]:
    """For each case, stored messages and accounts: median, least and most of the rounds."""
    services = []
    try:
        for number, (stored, accounts) in enumerate(cases):
            directory = place / f"{len(cases)}-{number}"
            fill(directory, stored, accounts)
            services.append(Service(directory, (), ("--workers", "1")))
        costs = [[cost(service, round_, accounts)
                  for service, (_, accounts) in zip(services, cases, strict=True)]
                 for round_ in range(ROUNDS)]
    finally:
        for service in services:
            service.stop()
    for values in zip(*costs, strict=True):
        yield statistics.median(values), min(values), max(values)


def table(heading: str, counts: Sequence[int],
          figures: Sequence[tuple[float, float, float]]) -> str:
    """Rows in reStructuredText."""
    rows = [f"   * - {count:,}\n     - {median:.0f}\n     - {least:.0f}-{most:.0f}"
            for count, (median, least, most) in zip(counts, figures, strict=True)]
    return "\n".join([".. list-table::", "   :header-rows: 1", "   :widths: 40 30 30", "",
                      f"   * - {heading}", "     - CPU, µs a message", "     - range", *rows, ""])


def main() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        place = Path(name)
        stored = list(measured(place, [(count, MAILDIRS) for count in STORED]))
        accounts = list(measured(place, [(0, count) for count in ACCOUNTS]))
    panels = [("messages stored", STORED, stored), ("accounts", ACCOUNTS, accounts)]
    text = "\n".join(table(*panel) for panel in panels)
    print(text)
    if len(sys.argv) > 1:
        directory = Path(sys.argv[1])
        (directory / "scaling.inc").write_text(text)
        (directory / "scaling.svg").write_text(plot(
            [(f"CPU, µs a message, by {heading}", counts, figures)
             for heading, counts, figures in panels]))


if __name__ == "__main__":
    main()
