"""Line charts as SVG inside a page: no script, no file, colours from the page's style sheet in light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from matplotlib.ticker import MaxNLocator

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 34
# The style sheet has as many colours and dashes.
KINDS = 6


def line_chart(title: str, unit: str, lines: Mapping[str, Points], is_log: bool = False) -> str:
    """Draw lines over the epochs.

    Args:
        title: Stands above it.
        unit: Of the vertical axis.
        lines: Points (epoch, value) of each line by its name; values that are not finite are left out.
        is_log: Powers of ten are evenly spaced; values that are not above 0 are left out.

    Returns:
        A figure element; empty if there is no point.
    """
    scale = math.log10 if is_log else float
    kept = {
        name: [(x, scale(y), y) for x, y in points if math.isfinite(y) and (y > 0 or not is_log)]
        for name, points in lines.items()
    }
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return ''
    across = Axis([x for points in kept.values() for x, _, _ in points], LEFT, WIDTH - RIGHT, is_whole=True)
    up = Axis([y for points in kept.values() for _, y, _ in points], HEIGHT - BOTTOM, TOP, is_whole=is_log)
    drawn = ''.join(draw_line(points, across, up, number % KINDS) for number, points in enumerate(kept.values()))
    legend = ''.join(
        f'<li><svg viewBox="0 0 24 8" aria-hidden="true"><path class="line k{number % KINDS}" d="M0 4H24"/></svg>'
        f'{escape(name)} <b>{points[-1][2]:.4g}</b></li>'
        for number, (name, points) in enumerate(kept.items())
    )
    spoken = f'{title}: ' + '; '.join(
        f'{name} from {points[0][2]:.4g} to {points[-1][2]:.4g}' for name, points in kept.items()
    )
    return (
        f'<figure class="chart"><figcaption><h3>{escape(title)}</h3> <span>{escape(unit)}</span></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(spoken)}">'
        f'{draw_axes(across, up, is_log)}{drawn}</svg><ul class="legend">{legend}</ul></figure>'
    )


class Axis:
    """Where values lie on the drawing, and the round numbers to mark.

    Args:
        values: That must be on it.
        start, end: Its ends on the drawing.
        is_whole: Mark whole numbers only.
    """

    def __init__(self, values: Sequence[float], start: float, end: float, is_whole: bool):
        low, high = min(values), max(values)
        if high - low < 1e-3 * max(abs(high), 1e-9):  # so that rounding does not look like a curve
            margin = 0.5 if is_whole else max(0.05 * abs(high), 1e-9)
            low, high = low - margin, high + margin
        ticks = MaxNLocator(nbins=4, steps=[1, 2, 5, 10], integer=is_whole).tick_values(low, high)
        if not is_whole:
            low, high = min(low, ticks[0]), max(high, ticks[-1])
        self.low, self.high, self.start, self.end = low, high, start, end
        self.ticks = [float(tick) for tick in ticks if low - 1e-12 <= tick <= high + 1e-12]

    def place(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def draw_axes(across: Axis, up: Axis, is_log: bool) -> str:
    parts = []
    for tick in up.ticks:
        y = up.place(tick)
        label = f'1e{tick:.0f}' if is_log and not -3 < tick < 4 else f'{10**tick if is_log else tick:g}'
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for tick in across.ticks:
        x = across.place(tick)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">epoch</text>')
    return ''.join(parts)


def draw_line(points: Sequence[tuple[float, float, float]], across: Axis, up: Axis, kind: int) -> str:
    places = [(across.place(x), up.place(y)) for x, y, _ in points]
    path = 'M' + 'L'.join(f'{x:.1f} {y:.1f}' for x, y in places)
    dots = ''
    if len(points) <= 60:  # beyond that they hide the line
        dots = ''.join(
            f'<circle class="dot k{kind}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"><title>epoch {epoch:g}: {value:.4g}'
            '</title></circle>'
            for (x, y), (epoch, _, value) in zip(places, points, strict=True)
        )
    return f'<path class="line k{kind}" d="{path}"/>{dots}'
