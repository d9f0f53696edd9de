"""``mailsvc stats``: the figures of the service that runs, for people or as JSON."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mailsvc.cli.listing import json_option, print_json, print_rows
from mailsvc.cli.place import place_options, settings
from mailsvc.gathering import PREFIX
from mailsvc.localsocket import NoService
from mailsvc.monitor import ask


@click.command()
@click.option("--all", "everything", is_flag=True, help="Show what is 0 as well.")
@json_option
@place_options
def stats(everything: bool, as_json: bool) -> None:
    """Show what the running service has counted.

    It counts from its start on, over all its processes.  They are the figures of /metrics, which
    docs/operating.rst explains; they are asked for by a socket in the data directory, so that no
    listener is needed.  The status is 1 when no service runs, or it does not answer.

    The keys in JSON are ready, unready (why not, or null), listeners, each with kind and address,
    figures, each with name, type, help and samples; these have labels, and value or count, sum and
    buckets; and history, with curves, each of them how much was counted in the last minutes, every
    so many seconds.

    \b
    Example:
      mailsvc stats
      mailsvc stats --json
    """
    try:
        told = ask(Path(settings().service.data))
    except NoService as problem:
        raise click.ClickException(str(problem)) from problem
    if as_json:
        print_json(told)
        return
    click.echo("ready" if told["ready"] else f"not ready: {told['unready']}")
    rows = []
    for figure in told["figures"]:
        name = figure["name"].removeprefix(PREFIX)
        shown = [each for each in figure["samples"]
                 if everything or each.get("value", each.get("count"))]
        rows += [[name, ", ".join(each["labels"].values()) or "-", _text(name, each)]
                 for each in shown]
    print_rows(["figure", "of", "value"], rows)


def _text(name: str, sample: dict[str, Any]) -> str:
    """The value of a sample, by the unit that is in the figure's name."""
    if "count" in sample:
        count = sample["count"]
        if not count:
            return "0"
        return (f"{count}; mean {_duration(sample['sum'] / count)}, half {_within(sample, 0.5)}, "
                f"99 % {_within(sample, 0.99)}")
    value = sample["value"]
    if "time_seconds" in name or "timestamp_seconds" in name:
        return datetime.datetime.fromtimestamp(value).astimezone().isoformat(timespec="seconds")
    if "_seconds" in name:
        return _duration(value)
    return _octets(value) if "_bytes" in name else f"{value:g}" if value != int(value) else str(
        int(value))


def _within(sample: dict[str, Any], share: float) -> str:
    """Below which bound so large a share of a histogram lies."""
    buckets: Sequence[tuple[float | None, int]] = sample["buckets"]
    bound = next(bound for bound, count in buckets if count >= share * sample["count"])
    return f"over {_duration(buckets[-2][0] or 0)}" if bound is None else (
        f"within {_duration(bound)}")


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _octets(octets: float) -> str:
    for unit, size in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if octets >= size:
            return f"{octets / size:.3g} {unit}"
    return f"{octets:.0f}"
