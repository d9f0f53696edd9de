"""Small graphs in SVG: the numbers as a path in a box, to be drawn by a template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: The box, in units of the drawing.
WIDTH, HEIGHT = 240, 48


@dataclass(frozen=True, slots=True)
class Graph:
    """One curve.

    :ivar line: the path of its line, and *area* that of what is below it; "" without two values.
    :ivar most: its highest value, and *last* its last one; *total* is the sum.
    """

    line: str
    area: str
    most: float
    last: float
    total: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Graph:
        """The graph of *values*, the oldest first."""
        most = max(values, default=0.0)
        last = values[-1] if values else 0.0
        if len(values) < 2:
            return cls("", "", most, last, sum(values))
        step, scale = WIDTH / (len(values) - 1), (HEIGHT - 4) / (most or 1)
        points = " L".join(f"{place * step:.1f},{HEIGHT - 2 - value * scale:.1f}"
                           for place, value in enumerate(values))
        return cls(f"M{points}", f"M0,{HEIGHT} L{points} L{WIDTH},{HEIGHT} Z", most, last,
                   sum(values))
