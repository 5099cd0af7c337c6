"""growth.png: which old and new blocks of a network read which, drawn from the library's own plan; and in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.textpath import TextPath

from timm_devnet.growing import old_levels
from timm_devnet.growth import Growth, parse
from timm_devnet.plan import Layer, Plan

Place = tuple[float, float]
Colours = tuple[str, str]

CLASSIFIER = 'classifier'
# Edge and face of each kind of box. After Okabe and Ito: the colour-blind tell blue from orange; outlines differ too.
OLD: Colours = ('#0072B2', '#DCEBF5')
NEW: Colours = ('#B85000', '#FFE3C2')
POOLED: Colours = ('#666666', '#FFFFFF')
# Of the units of each step of a growth; further steps begin again.
STEPS: tuple[Colours, ...] = (NEW, ('#00734F', '#D3F0E4'), ('#8B3A78', '#F6DFEF'), ('#6B5900', '#F4EDB8'))
INK = '#222222'
PAPER = '#FFFFFF'  # opaque, so that it can be read on a dark page too
WIDTH, HEIGHT = 0.8, 0.46  # of a box; columns and levels are 1 apart

# Of the picture, in inches; at 800 pixels of width an inch is 100 of them.
PICTURE_WIDTH = 8.0
LEVEL_HEIGHT, LEGEND_HEIGHT, TITLE_HEIGHT = 0.78, 0.32, 0.45
WIDEST_COLUMN = 1.5
SMALLEST_FONT = 6.5


def write_picture(network: Any, path: Path) -> None:
    """Draw how a network has grown, as a PNG of 1600 pixels of width.

    Args:
        network: A grown network, on any device.
        path: The new file.
    """
    with rc_context({'font.family': 'DejaVu Sans'}):
        draw_growth(network).savefig(path, format='png', dpi=200, metadata={'Software': None})


def draw_growth(network: Any) -> Figure:
    """Draw one network with its levels' names, its units and a legend."""
    growth = parse(network.growth)
    levels = shown_levels(network)
    places = place(list(levels), network.plan)
    left, right = min(x for x, _ in places.values()) - 0.7, max(x for x, _ in places.values()) + 0.7
    top = max(y for _, y in places.values())
    column = min(WIDEST_COLUMN, PICTURE_WIDTH / (right - left))
    is_reconciled = any(layer.kind == 'scaled' for layer in network.plan.layers)
    legend_height = LEGEND_HEIGHT * (len(growth.steps) + 1 + is_reconciled) + 0.1
    drawing_height = LEVEL_HEIGHT * (top + 1.85)
    height = TITLE_HEIGHT + drawing_height + legend_height
    figure = Figure(figsize=(PICTURE_WIDTH, height), facecolor=PAPER)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, legend_height / height, 1, drawing_height / height))
    half = PICTURE_WIDTH / column / 2
    axes.set_xlim((left + right) / 2 - half, (left + right) / 2 + half)
    axes.set_ylim(-1.25, top + 0.6)
    axes.axis('off')
    draw_network(axes, levels, network.plan, describe_box, WIDTH * column)
    draw_arrow(axes, (0, -1 + 0.16 - HEIGHT / 2), places[next(reversed(levels))], OLD)
    is_whole = len(levels) == len(old_levels(network))
    below = 'image' if is_whole else 'lower layers'
    axes.text(0, -1, below, ha='center', va='center', fontsize=10, color=INK)
    axes.set_title(
        f'{network.base_name} grown by {network.growth}',
        fontsize=13,
        fontweight='bold',
        color=INK,
        pad=0,
        parse_math=False,
    )
    legend = figure.add_axes((0, 0, 1, legend_height / height))
    draw_legend(legend, growth, network.settled, is_reconciled)
    return figure


def shown_levels(network: Any) -> dict[str, str]:
    """The old levels down to the lowest that something new reads, from the top down, and what stands in their boxes."""
    levels = old_levels(network)
    touched = {name for layer in network.plan.layers for name in (*layer.reads, layer.level)}
    lowest = max((number for number, level in enumerate(levels) if level.name in touched), default=0)
    count = max(lowest, 1) + 1
    return {level.name: f'{level.name}\n{level.width} channels' for level in levels[:count]}


def describe_box(layer: Layer) -> str:
    """What stands in the box of a new layer."""
    if layer.kind == 'pass':
        return f'pooled\n{layer.reads[0]}'
    return f'{layer.width} units\n{layer.name}'


def describe_growth(network: Any) -> str:
    """Say in words what the picture shows."""
    parts = [f'The layers of {network.base_name} read only each other, as before']
    for layer in network.plan.layers:
        reads = join_words([source_of(network.plan, read) for read in layer.reads])
        task = '' if len(parse(network.growth).steps) == 1 else f' (step {layer.step + 1})'
        if layer.kind == 'pass':
            parts.append(f'{layer.name}{task} hands on {reads}, pooled')
        elif layer.kind == 'units':
            place = 'on top of the network' if layer.level == layer.name else f'beside {layer.level}'
            parts.append(f'{layer.name}{task} has {layer.width} new units {place} that read {reads}')
    is_reconciled = any(layer.kind == 'scaled' for layer in network.plan.layers)
    each = ', each' if len(network.plan.blocks) > 1 else ','
    how = f'{each} divided by its L2 norm and times a learnt scale' if is_reconciled else ''
    parts.append(f'the classifier reads {join_words(list(network.plan.blocks))}{how}')
    return '; '.join(parts) + '.'


def source_of(planned: Plan, name: str) -> str:
    """The block behind a value, which may be the block reconciled."""
    return next((layer.reads[0] for layer in planned.layers if layer.name == name and layer.kind == 'scaled'), name)


def join_words(words: list[str]) -> str:
    """Write a list as one reads it.

    Example:
        >>> join_words(['a', 'b', 'c'])
        'a, b and c'
    """
    return ' and '.join([', '.join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def colours_of(step: int) -> Colours:
    """Edge and face of the units that a step of a growth adds."""
    return STEPS[step % len(STEPS)]


def draw_network(
    axes: Axes,
    levels: Mapping[str, str],
    planned: Plan | None,
    label: Callable[[Layer], str],
    box_inches: float,
) -> dict[str, Place]:
    """Draw one network: old layers in the left column, what is new beside and above, the classifier on top.

    Args:
        axes: Where; columns and levels are 1 apart.
        levels: Names of the old levels, from the top down, and what stands in their boxes.
        planned: What a growth adds; None for the old network.
        label: Gives what stands in the box of a new layer.
        box_inches: How wide a box is drawn, for the size of its text.

    Returns:
        Where the middle of each box is.
    """
    names = list(levels)
    layers = {layer.name: layer for layer in planned.layers} if planned else {}
    shown = [layer for layer in layers.values() if layer.kind != 'scaled']
    places = place(names, planned)
    for above, below in zip(names, names[1:], strict=False):
        draw_arrow(axes, places[below], places[above], OLD)
    latest = colours_of(max((layer.step for layer in layers.values()), default=0)) if planned else OLD
    readers = {layer.name: layer.reads for layer in shown}
    readers[CLASSIFIER] = tuple(name for name, _ in planned.top) if planned else (names[0],)
    for reader, reads in readers.items():
        colours = colours_of(layers[reader].step) if reader in layers else latest
        for read in reads:
            is_scaled = read in layers and layers[read].kind == 'scaled'
            source = layers[read].reads[0] if is_scaled else read
            is_beside = reader in layers and layers[reader].level in levels and places[source][0] == 0
            draw_arrow(axes, places[source], places[reader], colours, is_scaled, is_beside)
    for name, text in levels.items():
        draw_box(axes, places[name], text, OLD, box_inches)
    for layer in shown:
        draw_box(
            *(axes, places[layer.name], label(layer)),
            POOLED if layer.kind == 'pass' else colours_of(layer.step),
            box_inches,
        )
    draw_box(axes, places[CLASSIFIER], CLASSIFIER, latest, box_inches)
    return places


def place(levels: list[str], planned: Plan | None) -> dict[str, Place]:
    """Where the middle of each box is."""
    places: dict[str, Place] = {name: (0, len(levels) - 1 - i) for i, name in enumerate(levels)}
    for layer in planned.layers if planned else ():
        if layer.kind == 'scaled':
            continue
        if layer.level in places:
            beside = [x for x, y in places.values() if y == places[layer.level][1]]
            places[layer.name] = (max(beside) + 1, places[layer.level][1])
        else:
            top = max(y for _, y in places.values())
            below = [x for x, y in places.values() if y == top]
            places[layer.name] = (sum(below) / len(below), top + 1)
    read = [places[block][0] for block in (planned.blocks if planned else levels[:1])]
    places[CLASSIFIER] = (sum(read) / len(read), max(y for _, y in places.values()) + 1)
    return places


def draw_box(axes: Axes, middle: Place, text: str, colours: Colours, inches: float) -> None:
    """Draw a box with its label: old ones solid, new ones dashed.

    Args:
        axes: Where.
        middle: Of the box.
        text: Its label. A second line is smaller, and left out where it would be too small to read.
        colours: Of its edge and face.
        inches: How wide it is drawn.
    """
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
    first, _, second = text.partition('\n')
    size = fitting_font(second, inches, 8.5)
    is_second = bool(second) and size >= SMALLEST_FONT
    lines = [(first, 0.22 * HEIGHT if is_second else -0.01, max(SMALLEST_FONT, fitting_font(first, inches, 10)))]
    lines += [(second, -0.24 * HEIGHT, size)] if is_second else []
    for line, above, font in lines:
        axes.text(x, y + above, line, ha='center', va='center', fontsize=font, color=INK, zorder=4, parse_math=False)


def fitting_font(text: str, inches: float, largest: float) -> float:
    """The size in points at which a text fits into a width."""
    em = TextPath((0, 0), text, size=1).get_extents().width if text else 0.0
    return min(largest, 72 * 0.92 * inches / em) if em else largest


def draw_arrow(
    axes: Axes,
    start: Place,
    end: Place,
    colours: Colours,
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


def draw_legend(axes: Axes, growth: Growth, settled: int, is_reconciled: bool) -> None:
    """Say what the boxes and marks of one network mean, a line each."""
    entries = [(OLD, 'old units, which read only old units')]
    for step, blocks in enumerate(growth.steps):
        earlier = ', for an earlier task' if step < settled else ''
        verb = 'added by' if blocks else 'no units:'
        has_units = not blocks or any(block.units for block in blocks)
        entries.append((colours_of(step) if has_units else POOLED, f'{verb} {Growth((blocks,))}{earlier}'))
    lines = len(entries) + is_reconciled
    axes.set_xlim(0, PICTURE_WIDTH / LEGEND_HEIGHT)
    axes.set_ylim(-0.3, lines)
    axes.axis('off')
    for line, (colours, meaning) in enumerate(entries, 1):
        draw_box(axes, (7.6, lines - line + 0.5), '', colours, 1.0)
        write(axes, (8.3, lines - line + 0.5), meaning)
    if is_reconciled:
        draw_mark(axes, (7.6, 0.5))
        write(axes, (8.3, 0.5), 'reconciled: divided by its L2 norm, times a learnt scale')


def write(axes: Axes, start: Place, text: str) -> None:
    """Write a line from a place on."""
    axes.text(*start, text, va='center', fontsize=10.5, color=INK, parse_math=False)
