"""The results as bars: one SVG picture for each table, one panel for each scenario.

Written by hand, for no library is needed to draw rectangles.  A bar is the median of the rounds,
the thin line on it their range.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from tests.bench.report import TABLES, Report, Summary, number
from tests.bench.scenario import Scenario

_WIDTH = 760
_COLUMNS = 2
_MARGIN = 16
_NAMES = 92        # room for the servers' names
_FIGURES = 74      # room for the figures behind the bars
_BAR, _STEP = 14, 20
_HEADING = 40

_OURS, _OTHERS, _RANGE = "#2f6f9f", "#b9c4cc", "#4a5560"

_STYLE = """\
text { font: 12px system-ui, sans-serif; fill: #222 }
.title { font-weight: 600 } .unit { fill: #666; font-size: 11px }
.ours { font-weight: 600 } .figure { font-variant-numeric: tabular-nums }"""


def write(report: Report, directory: Path) -> None:
    """Write ``receiving.svg`` and ``pop3.svg`` into *directory*."""
    for name, scenarios in TABLES:
        panels = [(scenario, bars) for scenario in scenarios
                  if (bars := _bars(report, scenario))]
        (directory / f"{name}.svg").write_text(_picture(report, panels))


def _bars(report: Report, scenario: Scenario) -> list[tuple[str, Summary]]:
    """The servers with a median in a scenario, best first."""
    bars = [(peer, summary) for (key, peer), summary in report.summaries.items()
            if key == scenario.key and not summary.failed]
    return sorted(bars, key=lambda bar: bar[1].median or 0.0,
                  reverse=not scenario.lower_is_better)


def _picture(report: Report, panels: Sequence[tuple[Scenario, list[tuple[str, Summary]]]]) -> str:
    width = (_WIDTH - _MARGIN * (_COLUMNS + 1)) // _COLUMNS
    rows = [panels[first:first + _COLUMNS] for first in range(0, len(panels), _COLUMNS)]
    parts = []
    top = _MARGIN
    for row in rows:
        for column, (scenario, bars) in enumerate(row):
            parts += _panel(scenario, scenario.title.format(scale=report.scale), bars,
                            _MARGIN + column * (width + _MARGIN), top, width)
        top += _HEADING + _STEP * max(len(bars) for _, bars in row) + _MARGIN
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" '
        f'width="{_WIDTH}" height="{top}" role="img">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{_WIDTH}" height="{top}" fill="#fff"/>',
        *parts, "</svg>", ""])


def _panel(scenario: Scenario, title: str, bars: Sequence[tuple[str, Summary]], left: int,
           top: int, width: int) -> list[str]:
    """One scenario: its title and a bar for each server."""
    longest = max(max(summary.values) for _, summary in bars) or 1.0
    scale = (width - _NAMES - _FIGURES) / longest
    better = "lower is better" if scenario.lower_is_better else "higher is better"
    parts = [f'<text class="title" x="{left}" y="{top + 12}">{escape(title)}</text>',
             f'<text class="unit" x="{left}" y="{top + 27}">{escape(scenario.unit)}, {better}'
             f'</text>']
    for position, (peer, summary) in enumerate(bars):
        y = top + _HEADING + position * _STEP
        middle = y + _BAR / 2
        start = left + _NAMES
        ours = peer.startswith("mailsvc")
        length = max(1.0, (summary.median or 0.0) * scale)
        low, high = start + min(summary.values) * scale, start + max(summary.values) * scale
        style = ' class="ours"' if ours else ""
        parts += [
            f'<text{style} x="{start - 6}" y="{middle + 4:.1f}" text-anchor="end">'
            f'{escape(peer)}</text>',
            f'<rect x="{start}" y="{y}" width="{length:.1f}" height="{_BAR}" rx="2" '
            f'fill="{_OURS if ours else _OTHERS}"/>',
            f'<path d="M{low:.1f} {middle:.1f}H{high:.1f}" stroke="{_RANGE}" '
            f'stroke-width="1.5"/>' if high - low >= 1 else "",
            f'<text class="figure" x="{max(start + length, high) + 6:.1f}" y="{middle + 4:.1f}">'
            f'{number(summary.median or 0.0)}</text>']
    return [part for part in parts if part]
