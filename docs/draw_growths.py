"""Draw the picture of the growths, docs/growths.svg and docs/growths.png: `python docs/draw_growths.py`.

Every panel is drawn from the library's own plan of who reads whom.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from timm_devnet.growth import parse
from timm_devnet.plan import Layer, Level, Phase, Plan, plan

PANELS = {
    '': 'the pretrained base',
    'da': 'da: deeper',
    'wa': 'wa: wider',
    'dwa': 'dwa: deeper and wider',
    'wwa': 'wwa: wider at two levels',
    'mwa': 'mwa: reads lower levels',
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
LEVEL_NAMES = [level.name for level in LEVELS]
CLASSIFIER = 'classifier'
# Edge and face of each kind of box. After Okabe and Ito: the colour-blind tell blue from orange; outlines differ too.
OLD, NEW, POOLED = ('#0072B2', '#DCEBF5'), ('#B85000', '#FFE3C2'), ('#666666', '#FFFFFF')
INK = '#222222'
WIDTH, HEIGHT = 0.8, 0.46  # of a box; columns and levels are 1 apart

Place = tuple[float, float]


def draw() -> Figure:
    """Draw all panels and the legend."""
    figure = Figure(figsize=(11, 8.4), facecolor='white')
    for number, (growth, title) in enumerate(PANELS.items()):
        column, row = number % 4, number // 4
        levels = 6 - row  # what is put on top of the network is in the first row
        axes = figure.add_axes((0.005 + 0.2475 * column, 0.52 - 0.42 * row, 0.2475, 0.073 * levels))
        places = draw_network(axes, plan(LEVELS, 'pool5', parse(growth)) if growth else None)
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


def draw_network(axes: Axes, planned: Plan | None) -> dict[str, Place]:
    """Draw one network: old layers in the left column, what is new beside and above, the classifier on top.

    Returns:
        Where the middle of each box is.
    """
    layers = {layer.name: layer for layer in planned.layers} if planned else {}
    shown = [layer for layer in layers.values() if layer.kind != 'scaled']
    places = place(shown, planned.blocks if planned else ('FC7',))
    for above, below in zip(LEVELS, LEVELS[1:], strict=False):
        draw_arrow(axes, places[below.name], places[above.name], OLD)
    readers = {layer.name: layer.reads for layer in shown}
    readers[CLASSIFIER] = tuple(name for name, _ in planned.top) if planned else ('FC7',)
    for reader, reads in readers.items():
        for read in reads:
            is_scaled = read in layers and layers[read].kind == 'scaled'
            source = layers[read].reads[0] if is_scaled else read
            colours = NEW if planned else OLD
            is_beside = reader in layers and layers[reader].level in LEVEL_NAMES and places[source][0] == 0
            draw_arrow(axes, places[source], places[reader], colours, is_scaled, is_beside)
    for name in LEVEL_NAMES:
        draw_box(axes, places[name], name, OLD)
    for layer in shown:
        draw_box(axes, places[layer.name], label(layer), POOLED if layer.kind == 'pass' else NEW)
    draw_box(axes, places[CLASSIFIER], CLASSIFIER, NEW if planned else OLD)
    return places


def place(shown: list[Layer], blocks: tuple[str, ...]) -> dict[str, Place]:
    """Where the middle of each box is."""
    places: dict[str, Place] = {level.name: (0, len(LEVELS) - 1 - i) for i, level in enumerate(LEVELS)}
    for layer in shown:
        if layer.level in places:
            beside = [x for x, y in places.values() if y == places[layer.level][1]]
            places[layer.name] = (max(beside) + 1, places[layer.level][1])
        else:
            top = max(y for _, y in places.values())
            below = [x for x, y in places.values() if y == top]
            places[layer.name] = (sum(below) / len(below), top + 1)
    read = [places[block][0] for block in blocks]
    places[CLASSIFIER] = (sum(read) / len(read), max(y for _, y in places.values()) + 1)
    return places


def label(layer: Layer) -> str:
    """What is written in the box of a new layer."""
    if layer.kind == 'pass':
        return 'pooled'
    return 'FCa' if layer.level == layer.name else f'{layer.level}+'


def draw_box(axes: Axes, middle: Place, text: str, colours: tuple[str, str]) -> None:
    """Draw a box with its label: old ones solid, new ones dashed."""
    edge, face = colours
    x, y = middle
    axes.add_patch(
        FancyBboxPatch(
            (x - WIDTH / 2, y - HEIGHT / 2),
            WIDTH,
            HEIGHT,
            boxstyle='round,pad=0,rounding_size=0.08',
            edgecolor=edge,
            facecolor=face,
            linewidth=1.8,
            linestyle='-' if colours == OLD else (0, (4, 1.5)),
            zorder=3,
        )
    )
    axes.text(x, y - 0.01, text, ha='center', va='center', fontsize=10, color=INK, zorder=4)


def draw_arrow(
    axes: Axes,
    start: Place,
    end: Place,
    colours: tuple[str, str],
    is_scaled: bool = False,
    is_beside: bool = False,
) -> None:
    """Draw an arrow to the lower edge of a box, with a mark where values are reconciled.

    Args:
        axes: The panel.
        start: Middle of the box that is read.
        end: Middle of the box that reads.
        colours: Of what reads.
        is_scaled: Whether it reads the values reconciled.
        is_beside: Whether the reader stands in another column, so that the arrow leaves on the right.
    """
    (x0, y0), (x1, y1) = start, end
    start, end = (x0, y0 + HEIGHT / 2), (x1 - 0.12 * (x1 - x0), y1 - HEIGHT / 2 - 0.03)
    if is_beside:
        start = (x0 + 0.35 * WIDTH, start[1]) if y1 - y0 == 1 else (x0 + WIDTH / 2, y0 + 0.05)
    arrow = FancyArrowPatch(
        start, end, color=colours[0], arrowstyle='-|>', mutation_scale=11, shrinkA=0, shrinkB=0, linewidth=1.5, zorder=2
    )
    axes.add_patch(arrow)
    if is_scaled:
        draw_mark(axes, ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 - 0.04))


def draw_mark(axes: Axes, middle: Place) -> None:
    """Draw the mark of reconciliation."""
    axes.plot(*middle, marker='o', markersize=11, color='white', markeredgecolor=NEW[0], markeredgewidth=1.5, zorder=5)
    axes.text(
        middle[0],
        middle[1] - 0.005,
        'N',
        ha='center',
        va='center',
        fontsize=7.5,
        fontweight='bold',
        color=INK,
        zorder=6,
    )


def draw_legend(axes: Axes) -> None:
    """Say what boxes and marks mean."""
    for x, name, colours, meaning in (
        (0.6, 'old', OLD, 'pretrained; reads only old units'),
        (4.35, 'new', NEW, 'learnt for the new task'),
    ):
        draw_box(axes, (x, 0.5), name, colours)
        write(axes, x + 0.5, meaning)
    draw_mark(axes, (7.25, 0.5))
    write(axes, 7.45, 'reconciled: divided by its L2 norm, times a learnt scale')


def write(axes: Axes, x: float, text: str) -> None:
    axes.text(x, 0.49, text, va='center', fontsize=10.5, color=INK)


def main() -> None:
    """Write both files beside this one."""
    with rc_context({'font.family': 'DejaVu Sans', 'svg.hashsalt': 'growths'}):
        figure = draw()
        folder = Path(__file__).parent
        figure.savefig(folder / 'growths.png', dpi=110)
        figure.savefig(folder / 'growths.svg', metadata={'Date': None})


if __name__ == '__main__':
    main()
