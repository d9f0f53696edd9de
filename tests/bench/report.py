"""Medians and ranges of the measurements: a table to read, JSON, and tables for the docs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench import fetching, receiving
from tests.bench.machine import Machine
from tests.bench.peers import Peer
from tests.bench.process import CPU_SOURCE
from tests.bench.run import IDLE, SCENARIOS, takes_part
from tests.bench.scenario import Measurement, Scale, Scenario

#: The tables, and the scenarios that are their columns.
TABLES = (("receiving", (*receiving.RECEIVING, *IDLE[::2])),
          ("pop3", (*fetching.FETCHING, *IDLE[1::2])))


@dataclass
class Summary:
    """All rounds of one scenario on one server."""

    values: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    client_cpu: list[float] = field(default_factory=list)
    lag: list[float] = field(default_factory=list)
    lost: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, measurement: Measurement) -> None:
        """One more round."""
        self.lost += measurement.lost
        if measurement.value is None:
            self.problems.append(measurement.problem)
            return
        self.values.append(measurement.value)
        self.cpu.append(measurement.cpu)
        self.client_cpu.append(measurement.client_cpu)
        self.lag.append(measurement.lag)

    @property
    def median(self) -> float | None:
        """Of the rounds that succeeded."""
        return statistics.median(self.values) if self.values else None

    @property
    def failed(self) -> bool:
        """Whether no figure can be given: a round that failed spoils the others."""
        return bool(self.problems) or not self.values

    def spread(self) -> str:
        """Lowest and highest; empty when there was one round only."""
        return f"{number(min(self.values))}–{number(max(self.values))}" if self.values[1:] else ""

    def cell(self, scenario: Scenario) -> str:
        """Median, range and CPU seconds, as a cell of a table in the docs."""
        if self.failed:
            return "failed"
        spread = f" ({self.spread()})" if self.spread() else ""
        lines = [f"{number(self.median or 0.0)}{spread}"]
        if scenario.costs:
            lines.append(f"CPU {number(statistics.median(self.cpu))}")
        return "\n".join(lines)


@dataclass
class Report:
    """A run: the machine, the servers, the settings, the results.

    :ivar machine: what it ran on.
    :ivar peers: the servers asked for, in the order of the tables.
    :ivar missing: why some of them did not take part, by name.
    :ivar versions: of the others, by name.
    :ivar summaries: by key of the scenario and name of the server.
    """

    scale: Scale
    machine: Machine
    peers: Sequence[Peer]
    missing: dict[str, str]
    versions: dict[str, str]
    summaries: dict[tuple[str, str], Summary] = field(default_factory=dict)
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    def add(self, scenario: Scenario, peer: str, measurement: Measurement) -> None:
        """One more measurement."""
        self.summaries.setdefault((scenario.key, peer), Summary()).add(measurement)

    def servers(self) -> str:
        """Names and versions of those that took part."""
        return ", ".join(dict.fromkeys(self.versions.values()))

    @property
    def problems(self) -> list[str]:
        """Everything that failed, a line each."""
        return [f"{scenario.key}, {peer}: {problem}" for scenario in SCENARIOS
                for (key, peer), summary in self.summaries.items() if key == scenario.key
                for problem in summary.problems]

    def shown(self, scenarios: Sequence[Scenario]) -> list[tuple[Scenario, dict[str, Summary]]]:
        """The scenarios that were measured, each with its servers in their usual order."""
        shown = [(scenario, {peer: self.summaries[scenario.key, peer] for peer in self.versions
                             if (scenario.key, peer) in self.summaries})
                 for scenario in scenarios]
        return [(scenario, summaries) for scenario, summaries in shown if summaries]

    def text(self) -> str:
        """Everything, to be read in a terminal: a block for each scenario, a line for a server."""
        lines = []
        for scenario, summaries in self.shown(SCENARIOS):
            columns = ("median", "range", "CPU s", "clients'") if scenario.costs else (
                "median", "range", "", "")
            lines += ["", f"{scenario.title.format(scale=self.scale)}, {scenario.unit}"
                      + (f"; CPU s per 1,000 {scenario.costs}" if scenario.costs else ""),
                      _line("", *columns)]
            for peer, summary in summaries.items():
                if summary.failed:
                    lines.append(_line(peer, "failed"))
                    continue
                cpu = [number(statistics.median(each)) if scenario.costs else ""
                       for each in (summary.cpu, summary.client_cpu)]
                lines.append(_line(peer, number(summary.median or 0.0), summary.spread(), *cpu))
            lines += [_line(peer.name, "missing") for peer in self.peers
                      if peer.name in self.missing and takes_part(peer, scenario)]
        return "\n".join([*lines, "", *self.beside(), *self.notes(), *self.problems])

    def beside(self) -> list[str]:
        """What mailsvc costs beside itself with something else, a line for each such.

        Single figures of a machine that others use differ by more than what is looked for; all of
        a round together do so by less: the geometric mean of the ratios of its scenarios.
        """
        lines = []
        for peer in self.versions:
            shown = [(scenario, summaries["mailsvc"], summaries[peer])
                     for scenario, summaries in self.shown(SCENARIOS)
                     if scenario.costs and peer.startswith("mailsvc-")
                     and all(name in summaries and not summaries[name].failed
                             and min(summaries[name].cpu) > 0 for name in ("mailsvc", peer))]
            if not shown:
                continue
            costs = [[ours / theirs for ours, theirs in zip(mine.cpu, other.cpu, strict=True)]
                     for _, mine, other in shown]
            rates = [[theirs / ours if scenario.lower_is_better else ours / theirs
                      for ours, theirs in zip(mine.values, other.values, strict=True)]
                     for scenario, mine, other in shown]
            lines.append(f"mailsvc beside {peer}, {len(shown)} scenarios, round by round: CPU "
                         f"{_change(costs)}; speed {_change(rates)}.")
        return lines

    def list_table(self, scenarios: Sequence[Scenario]) -> str:
        """A ``list-table`` directive: a row for each scenario, a column for each server."""
        shown = self.shown(scenarios)
        peers = [peer for peer in self.peers
                 if any(takes_part(peer, scenario) for scenario, _ in shown)]
        rows = [["", *(peer.name for peer in peers)]]
        for scenario, summaries in shown:
            heading = f"{scenario.title.format(scale=self.scale)}\n{scenario.unit}"
            if scenario.costs:
                heading += f"; CPU s per 1,000 {scenario.costs}"
            rows.append([heading, *(
                "–" if not takes_part(peer, scenario) else "missing" if peer.name in self.missing
                else summaries[peer.name].cell(scenario) for peer in peers)])
        lines = [".. list-table::", "   :header-rows: 1", "   :stub-columns: 1", ""]
        for row in rows:
            for position, cell in enumerate(row):
                bullet = "* -" if position == 0 else "  -"
                # A line block keeps the lines of a cell apart.
                block = "\n       ".join(f"| {line}" for line in cell.split("\n") if line)
                lines.append(f"   {bullet} {block}".rstrip())
        return "\n".join(lines) + "\n"

    def notes(self) -> list[str]:
        """What a reader of the tables must know besides: absent servers, delays, odd events."""
        lines = [f"{peer}: not measured, {reason}." for peer, reason in self.missing.items()]
        if self.machine.busy:
            lines.insert(0, f"The machine was not idle: its load average was "
                            f"{self.machine.load:.1f} when the run began. Measure again.")
        for scenario, summaries in self.shown(SCENARIOS):
            title = scenario.title.format(scale=self.scale)
            for peer, summary in summaries.items():
                if summary.lag and (lag := statistics.median(summary.lag)) > 0.5:
                    lines.append(f"{title}, {peer}: the last message was in its maildir "
                                 f"{lag:.1f} s after the last 250.")
                if summary.lost:
                    lines.append(f"{title}, {peer}: connections that were never greeted, and were "
                                 f"made again: {summary.lost}.")
        return lines

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        titles = {scenario.key: scenario for scenario in SCENARIOS}
        return {
            "began": self.began.isoformat(timespec="seconds"),
            "machine": asdict(self.machine),
            "settings": {**asdict(self.scale), "cpu_seconds_from": CPU_SOURCE},
            "servers": self.versions,
            "missing": self.missing,
            "results": [{
                "scenario": key,
                "title": titles[key].title.format(scale=self.scale),
                "server": peer,
                "unit": titles[key].unit,
                "median": summary.median,
                **asdict(summary),
            } for (key, peer), summary in self.summaries.items()],
        }

    def write(self, directory: Path) -> None:
        """Write ``results.json`` and a table for each group into *directory*."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "results.json").write_text(
            json.dumps(self.as_json(), indent=1, ensure_ascii=False) + "\n")
        for name, scenarios in TABLES:
            (directory / f"{name}.inc").write_text(self.list_table(scenarios))
        facts = (f"Measured on {self.began:%-d %B %Y} on {self.machine}; "
                 f"{self.scale.rounds} round{'s' * (self.scale.rounds > 1)}, "
                 f"{self.scale.seconds:g} s of load each, "
                 f"{self.scale.clients} clients.  Servers: {self.servers()}.")
        (directory / "run.inc").write_text("\n".join(
            [facts, "", *(f"* {line}" for line in (*self.notes(), *self.problems)), ""]))


def _change(ratios: list[list[float]]) -> str:
    """The *ratios* of each scenario's rounds in one: the median of the rounds, and their range."""
    rounds = sorted(100 * (statistics.geometric_mean(each) - 1)
                    for each in zip(*ratios, strict=True))
    return f"{statistics.median(rounds):+.1f} % ({rounds[0]:+.1f} to {rounds[-1]:+.1f})"


def _line(name: str, *cells: str) -> str:
    """A line of the text table."""
    widths = (10, 20, 10, 10)
    return f"  {name:14}" + "".join(f"{cell:>{width}}" for cell, width
                                    in zip(cells, widths, strict=False))


def number(value: float) -> str:
    """Two or three significant digits, with thousands separated."""
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.2g}"
