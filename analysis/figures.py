"""Pictures: one drawing gives the PNG and the SVG on the disk, and the SVG in the page in its light or dark colours."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The page's own colours in light, by the names of its style sheet; told apart by the colour-blind, with marks besides.
INK, SOFT, RULE, CARD = '#1b1d21', '#5b616b', '#dcdee2', '#ffffff'
COLORS = ('#1d5fbf', '#c2500b', '#1a7f4b', '#8a3ab9', '#8a6a00', '#b3266a')
# Of points that are drawn as pixels, which the page cannot recolour: told from a light and from a dark ground.
POINT_COLORS = ('#3b82e0', '#e0701f', '#2ca86a', '#a860d8', '#b8900a', '#d84a8c')
PAGE_COLORS = {
    **{INK: '--ink', SOFT: '--soft', RULE: '--rule', CARD: '--card'},
    **{color: f'--c{number}' for number, color in enumerate(COLORS)},
}
MARKS = ('o', '^', 's', 'D', 'v', 'P', 'X', '*')
STYLE: Any = {
    'svg.fonttype': 'none',
    'font.family': 'sans-serif',
    'font.size': 9.0,
    'text.color': INK,
    'axes.labelcolor': SOFT,
    'axes.edgecolor': SOFT,
    'axes.facecolor': 'none',
    'axes.axisbelow': True,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.titlesize': 9.5,
    'axes.titlelocation': 'left',
    'grid.color': RULE,
    'grid.linewidth': 0.7,
    'xtick.color': SOFT,
    'ytick.color': SOFT,
    'legend.frameon': False,
    'legend.fontsize': 8.5,
    'figure.facecolor': CARD,
}
# Inches: the page is read on telephones too, where a picture must not shrink to nothing.
WIDTH, HEIGHT = 4.2, 2.9
DPI = 160


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the page's manner."""
    with rc_context(STYLE):
        yield


def new_figure(width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """A figure of one pair of axes; to be used within `house_style`."""
    figure = Figure(figsize=(width, height), layout='constrained')
    return figure, figure.subplots()


def kind_of(number: int) -> tuple[str, str]:
    """The colour and the mark of the number-th of several kinds: no two of the first 48 have both in common."""
    return POINT_COLORS[number % len(POINT_COLORS)], MARKS[number // len(POINT_COLORS) % len(MARKS)]


def to_png(figure: Figure) -> bytes:
    """Write a figure as PNG."""
    file = io.BytesIO()
    with house_style():
        figure.savefig(file, format='png', dpi=DPI)
    return file.getvalue()


def to_svg(figure: Figure, name: str) -> str:
    """Write a figure as SVG, the same figure always as the same text.

    Args:
        figure: The figure.
        name: Keeps the names inside apart from those of other pictures of a page.
    """
    file = io.StringIO()
    with house_style(), rc_context({'svg.hashsalt': name}):
        figure.savefig(file, format='svg', dpi=DPI, metadata={'Date': None})
    return file.getvalue()


def for_page(svg: str, title: str, spoken: str) -> str:
    """Make a figure element of an SVG, in the page's colours, which are others in the dark.

    Args:
        svg: As `to_svg` gave it.
        title: Stands above it.
        spoken: What it shows, for those who do not see it.
    """
    drawing = svg[svg.index('<svg') :]
    drawing = re.sub(r'<metadata>.*?</metadata>', '', drawing, flags=re.DOTALL)
    drawing = re.sub(r'<g id="[^"]*">', '<g>', drawing)  # figure_1 and the like, in every picture again
    drawing = re.sub(
        r'#[0-9a-f]{6}', lambda found: f'var({PAGE_COLORS[found[0]]})' if found[0] in PAGE_COLORS else found[0], drawing
    )
    size = re.search(r'viewBox="[^"]*"', drawing)
    assert size is not None, 'matplotlib writes one'
    label = escape(spoken, quote=True)
    drawing = re.sub(r'<svg [^>]*>', f'<svg {size[0]} role="img" aria-label="{label}">', drawing, count=1)
    return f'<figure class="chart drawn"><figcaption><h3>{escape(title)}</h3></figcaption>{drawing}</figure>'
