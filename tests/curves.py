"""Lines of figures over counts that grow, for the documentation."""

from __future__ import annotations

from collections.abc import Sequence

_WIDTH, _HEIGHT, _LEFT, _TOP = 360, 200, 60, 40


def plot(panels: Sequence[tuple[str, Sequence[int], Sequence[tuple[float, float, float]]]]) -> str:
    """An image in SVG: beside each other, for each heading and its counts, the figures as a line
    with ranges.  They stand at equal distances, as counts that grow by a factor do.

    :param panels: a figure is the median, the least and the most.
    """
    top = 1.2 * max(most for _, _, figures in panels for _, _, most in figures)
    parts = []
    for column, (heading, counts, figures) in enumerate(panels):
        left = _LEFT + column * (_WIDTH + _LEFT)
        width = _WIDTH / max(1, len(counts) - 1)
        points = [(left + n * width, _TOP + _HEIGHT * (1 - median / top))
                  for n, (median, _, _) in enumerate(figures)]
        parts += [f'<text class="title" x="{left}" y="20">{heading}</text>',
                  f'<path class="axis" d="M{left},{_TOP} v{_HEIGHT} h{_WIDTH}"/>',
                  '<path class="line" d="M' + " L".join(f"{x:.0f},{y:.0f}" for x, y in points)
                  + '"/>']
        for (x, y), count, (median, least, most) in zip(points, counts, figures, strict=True):
            high, low = (_TOP + _HEIGHT * (1 - value / top) for value in (most, least))
            parts += [f'<path class="range" d="M{x:.0f},{high:.0f} V{low:.0f}"/>',
                      f'<text x="{x:.0f}" y="{_TOP + _HEIGHT + 18}" text-anchor="middle">{count:,}'
                      '</text>',
                      f'<text x="{x:.0f}" y="{y - 14:.0f}" text-anchor="middle">{median:.0f}'
                      '</text>']
    width, height = _LEFT + len(panels) * (_WIDTH + _LEFT), _TOP + _HEIGHT + 30
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">',
        "<style>text { font: 12px system-ui, sans-serif; fill: #222 } .title { font-weight: 600 }",
        ".axis, .range { stroke: #4a5560; fill: none } "
        ".line { stroke: #2f6f9f; stroke-width: 2; fill: none }</style>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>', *parts, "</svg>", ""])
