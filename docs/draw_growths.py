"""Draw the picture of the growths, docs/growths.svg and docs/growths.png: `python -m docs.draw_growths`.

Every panel is drawn from the library's own plan of who reads whom.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hub.picture import INK, NEW, OLD, draw_box, draw_mark, draw_network, write
from timm_devnet.growth import parse
from timm_devnet.plan import Layer, Level, Phase, plan

PANELS = {
    '': 'the pretrained base',
    'da': 'da: deeper',
    'wa': 'wa: wider',
    'dwa': 'dwa: deeper and wider',
    'wwa': 'wwa: wider at two levels',
    'mwa': 'mwa, xwa: read lower levels',
    'skip': 'skip: levels, no units',
    'norm': 'norm: no units',
}
# VGG's levels, from the top down; their widths do not matter here.
LEVELS = [
    Level('FC7', 1, Phase.HEAD, ()),
    Level('FC6', 1, Phase.HEAD, ()),
    Level('pool5', 1, Phase.TRUNK, ()),
    Level('conv4', 1, Phase.TRUNK, ()),
]
TITLES = {level.name: level.name for level in LEVELS}
BOX_INCHES = 0.68  # of the panels' boxes, which are 0.8 of 3.2 units of 2.72 inches


def draw() -> Figure:
    """Draw all panels and the legend."""
    figure = Figure(figsize=(11, 8.4), facecolor='white')
    for number, (growth, title) in enumerate(PANELS.items()):
        column, row = number % 4, number // 4
        levels = 6 - row  # what is put on top of the network is in the first row
        axes = figure.add_axes((0.005 + 0.2475 * column, 0.52 - 0.42 * row, 0.2475, 0.073 * levels))
        places = draw_network(
            *(axes, TITLES, plan(LEVELS, 'pool5', parse(growth)) if growth else None),
            *(label, BOX_INCHES),
        )
        middle = max(x for x, _ in places.values()) / 2
        axes.set_xlim(middle - 1.6, middle + 1.6)
        axes.set_ylim(-0.4, levels - 0.6)
        axes.axis('off')
        axes.set_title(title, fontsize=12, fontweight='bold', color=INK, pad=4)
    legend = figure.add_axes((0.005, 0.0, 0.99, 0.07))
    legend.set_xlim(0, 12.8)
    legend.set_ylim(0, 1)
    legend.axis('off')
    draw_legend(legend)
    return figure


def label(layer: Layer) -> str:
    """What is written in the box of a new layer."""
    if layer.kind == 'pass':
        return 'pooled'
    return 'FCa' if layer.level == layer.name else f'{layer.level}+'


def draw_legend(axes: Axes) -> None:
    """Say what boxes and marks mean."""
    for x, name, colours, meaning in (
        (0.6, 'old', OLD, 'pretrained; reads only old units'),
        (4.35, 'new', NEW, 'learnt for the new task'),
    ):
        draw_box(axes, (x, 0.5), name, colours, BOX_INCHES)
        write(axes, (x + 0.5, 0.49), meaning)
    draw_mark(axes, (7.25, 0.5))
    write(axes, (7.45, 0.49), 'reconciled: divided by its L2 norm, times a learnt scale')


def main() -> None:
    """Write both files beside this one."""
    with rc_context({'font.family': 'DejaVu Sans', 'svg.hashsalt': 'growths'}):
        figure = draw()
        folder = Path(__file__).parent
        figure.savefig(folder / 'growths.png', dpi=110)
        figure.savefig(folder / 'growths.svg', metadata={'Date': None})


if __name__ == '__main__':
    main()
