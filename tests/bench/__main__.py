"""``python -m tests.bench``: measure mailsvc beside the mail servers that are installed."""

from __future__ import annotations

import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import click

from tests.bench import plot
from tests.bench import run as bench
from tests.bench.disk import Disk
from tests.bench.dovecot import Dovecot
from tests.bench.exim import Exim
from tests.bench.fetch import UNPACKED
from tests.bench.machine import this_machine
from tests.bench.opensmtpd import OpenSmtpd
from tests.bench.peers import Aiosmtpd, Mailsvc, Peer
from tests.bench.postfix import Postfix
from tests.bench.report import Report, number
from tests.bench.scenario import QUICK, Measurement, Scale, Scenario

#: GiB that a full run may need at its widest, most of it for messages of 5 MiB.
DISK_NEEDED = 20


#: Us, with something else: these are measured only when --peers names them.
VARIANTS = {
    "mailsvc-one": ("--workers=1",),
    "mailsvc-untraced": ("--set=trace.enabled=false",),
    "mailsvc-blind": ("--set=trace.enabled=false",),
}
#: Of those, what is another program: it counts nothing.
PROGRAMS = {
    "mailsvc-blind": (
        "from mailsvc import figures\n"
        "figures.Count.add = figures.Spread.observe = lambda *_: None\n"
        "from mailsvc.cli import main\n"
        "main()"),
}


def all_peers(unpacked: Path, command: str, options: str) -> list[Peer]:
    """Every server known, mailsvc first, but for :data:`VARIANTS`."""
    return [_ours(command, options), Postfix(unpacked=unpacked), Dovecot(unpacked=unpacked),
            Dovecot(unpacked=unpacked, performance=True), OpenSmtpd(unpacked=unpacked),
            Exim(unpacked=unpacked), Aiosmtpd(unpacked=unpacked), Disk()]


def _ours(command: str, options: str, name: str = "mailsvc", *more: str) -> Mailsvc:
    ours = Mailsvc(name=name, options=(*shlex.split(options), *more))
    if command:
        ours.command = tuple(shlex.split(command))
    if name in PROGRAMS:
        ours.command = (sys.executable, "-c", PROGRAMS[name])
    return ours


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--quick", is_flag=True, help="One short round, to see that everything works.")
@click.option("--rounds", type=click.IntRange(1, 100), help="How often to measure.  [default: 3]")
@click.option("--seconds", type=click.FloatRange(0.1, 60),
              help="Load of one measurement.  [default: 2]")
@click.option("--peers", metavar="A,B", help="Only these servers; also "
              "mailsvc-one, with one process, mailsvc-untraced, which keeps no trace, and "
              "mailsvc-blind, which counts nothing either.  [default: all that are there but "
              "these three]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path),
              default=Path("docs/performance"), help="Where results, tables and plots go; a quick "
              "run writes them only if this is given.")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default=Path("/var/tmp"),
              help="Where maildirs and queues are made, on the file system to be measured.")
@click.option("--unpacked", type=click.Path(file_okay=False, path_type=Path),
              default=UNPACKED, envvar="BENCH_PEERS", show_envvar=True,
              help="Servers unpacked rather than installed, by `make peers`.")
@click.option("--mailsvc", "command", envvar="MAILSVC", show_envvar=True, default="",
              help="The command to measure.  [default: this checkout's]")
@click.option("--mailsvc-options", "options", default="", help="Further options of `mailsvc dev`.")
@click.option("--keep", is_flag=True, help="Leave maildirs, queues and logs where they are.")
@click.pass_context
def main(context: click.Context, quick: bool, rounds: int | None, seconds: float | None,
         peers: str | None, out: Path, work: Path, unpacked: Path, command: str,
         options: str, keep: bool) -> None:
    """Measure mailsvc beside Postfix, Dovecot, OpenSMTPD, Exim and aiosmtpd.

    All servers are started from private directories on loopback and stopped at the end.  Most of
    them need root to start.  docs/performance.rst says what is measured and how to read it.
    """
    unpacked = unpacked.expanduser().absolute()
    known = all_peers(unpacked, command, options)
    variants: list[Peer] = [_ours(command, options, name, *more)
                            for name, more in VARIANTS.items()]
    chosen = known if peers is None else _choose(known + variants, peers)
    scale = QUICK if quick else Scale()
    scale = replace(scale, rounds=rounds or scale.rounds, seconds=seconds or scale.seconds)
    missing = {peer.name: reason for peer in chosen if (reason := peer.missing())}
    present = [peer for peer in chosen if peer.name not in missing]
    if not present:
        raise click.ClickException("none of the servers is there: " + "; ".join(
            f"{name}: {reason}" for name, reason in missing.items()))
    work.mkdir(parents=True, exist_ok=True)
    if not quick and (free := shutil.disk_usage(work).free / 2 ** 30) < DISK_NEEDED:
        raise click.ClickException(f"{work} has {free:.0f} GiB free and up to {DISK_NEEDED} are "
                                   f"needed; choose another place with --work, or --quick")
    _allow_many_files()
    report = Report(scale, this_machine(work), chosen, missing,
                    {peer.name: peer.version() for peer in present})
    for line in (str(report.machine), report.servers(), *report.notes()):
        click.echo(line)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=work))
    directory.chmod(0o755)  # servers that give up root must reach their maildirs
    try:
        bench.run(present, scale, directory, Progress(report))
    finally:
        if keep:
            click.echo(f"left in {directory}")
        else:
            click.echo(f"removing {directory}")
            subprocess.run(["rm", "-rf", directory], check=False)  # a million files
    click.echo(report.text())
    given = context.get_parameter_source("out") is not click.core.ParameterSource.DEFAULT
    if given or not quick:
        report.write(out)
        plot.write(report, out)
        click.echo(f"written to {out}")
    sys.exit(1 if report.problems else 0)


class Progress:
    """Prints a line for each measurement as it is made, and puts it into the report."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._began = time.monotonic()
        self._done = 0

    def __call__(self, scenario: Scenario, peer: str, measurement: Measurement) -> None:
        self._done += 1
        self._report.add(scenario, peer, measurement)
        if measurement.value is None:
            result = f"FAILED: {measurement.problem[:300]}"
        else:
            result = f"{number(measurement.value)} {scenario.unit}"
            if scenario.costs:
                result += f", CPU {number(measurement.cpu)} s per 1,000 {scenario.costs}"
        click.echo(f"{time.monotonic() - self._began:4.0f} s  {self._done:3}  "
                   f"{scenario.title.format(scale=self._report.scale)}: {peer} {result}")


def _choose(known: list[Peer], names: str) -> list[Peer]:
    chosen = names.split(",")
    unknown = set(chosen) - {peer.name for peer in known}
    if unknown:
        raise click.ClickException(f"--peers: {', '.join(sorted(unknown))} unknown; there are "
                                   f"{', '.join(peer.name for peer in known)}")
    return [peer for peer in known if peer.name in chosen]


def _allow_many_files() -> None:
    """Thousands of connections need as many descriptors, here and in the servers."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
