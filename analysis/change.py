"""What fine-tuning changed: the page, pictures and numbers."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from timm_devnet.grown import Grown
from training.page import show_numbers
from training.report_parts import table, text, unfolding

from .figures import COLORS, HEIGHT, MARKS, WIDTH, house_style, new_figure
from .folder import AnalysisFolder
from .layer_changes import CLASSIFIER, EARLIER, KINDS, NEW, OLD, Change, LayerChange, find_change
from .movement import Movement
from .subject import Reading, Subject, open_subject

MOST_TICKS = 12


def change(run: str, output: Path | None = None) -> Path:
    """Tell how far every layer of a run's best weights moved from what they were before the first update.

    Old units are compared with the base's; new units and the classifier with their first values, which the run's seed
    gives again. `layers.csv` has a row for each tensor, `units.csv` for each unit, `norms.csv` for each batch norm.

    Args:
        run: A run folder of train.py, or its best/ or last/.
        output: Folder to write to (None: analysis/change in the run folder).

    Returns:
        The page.

    Raises:
        ValueError: It is no run, or its base cannot be had or is another than the run's.
    """
    subject = open_subject(run, Reading())
    if subject.run is None:
        raise ValueError(f'{run} is no run folder, so nothing tells what it began with: give a run of train.py')
    start = subject.start()
    found = find_change(start, subject.network)
    folder = AnalysisFolder.of(subject, 'change', output)
    write_tables(folder, found)
    sections = {
        'Layers': show_layers(folder, found),
        'Old and new units': show_kinds(found),
        'Batch norms': show_norms(folder, found),
        'How it was found': show_method(subject),
    }
    growth = f' grown by {subject.network.growth}' if isinstance(subject.network, Grown) else ''
    subtitle = f'What fine-tuning changed in {text(subject.config.model)}{text(growth)}'
    return folder.write_page(subject.name, subtitle, show_headline(found), sections)


def write_tables(folder: AnalysisFolder, found: Change) -> None:
    """Write everything that was measured."""
    columns = ('norm_before', 'norm_after', 'moved', 'relative', 'cosine')

    def cells(moved: Movement) -> tuple[object, ...]:
        return moved.before, moved.after, moved.moved, moved.relative, moved.cosine

    folder.write_table(
        'layers',
        ('tensor', 'kind', 'shape', *columns, 'unit_p10', 'unit_median', 'unit_p90'),
        (
            (
                layer.tensor,
                layer.kind,
                'x'.join(map(str, layer.shape)),
                *cells(layer.whole),
                *(layer.quantile(share) for share in (0.1, 0.5, 0.9)),
            )
            for layer in found.layers
        ),
        'one row for each tensor that learns',
    )
    folder.write_table(
        'units',
        ('tensor', 'kind', 'unit', *columns),
        (
            (layer.tensor, layer.kind, number, *cells(unit))
            for layer in found.layers
            for number, unit in enumerate(layer.units)
        ),
        'one row for each unit of each layer',
    )
    folder.write_table(
        'norms',
        ('batch_norm', 'kind', 'channels', 'mean_shift', 'greatest_shift', 'variance_ratio', 'spread_change'),
        ((name, kind, *vars(norm).values()) for name, kind, norm in found.norms),
        'one row for each batch norm',
    )


def weights_of(found: Change, kind: str) -> list[LayerChange]:
    """Layers' weights of one kind; biases, norms and scales are left out."""
    return [layer for layer in found.layers if layer.kind == kind and layer.units]


def median(values: Iterable[float | None]) -> float | None:
    """The median of what is defined; None if nothing is."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def show_share(value: float | None) -> str:
    """A part as one reads it: in percent up to its double, else as a factor."""
    if value is None:
        return 'not defined'
    if value == 0:
        return '0'
    return f'{100 * value:.3g} %' if value < 2 else f'{value:.3g} times'


def show_headline(found: Change) -> str:
    entries = []
    for kind, words in (
        (OLD, 'Old layers'),
        (EARLIER, 'Grown earlier'),
        (NEW, 'New layers'),
        (CLASSIFIER, 'Classifier'),
    ):
        layers = weights_of(found, kind)
        if layers:
            middle = median(layer.whole.relative for layer in layers)
            note = f'median of {len(layers)} weights: moved, as a part of their norm'
            entries.append((words, show_share(middle), note))
    if found.norms:
        shift = median(norm.mean_shift for _, kind, norm in found.norms if kind == OLD)
        if shift is not None:
            entries.append(('Batch norms', f'{shift:.3g}', 'standard deviations that old running means moved, median'))
    total = len(found.layers)
    entries.append(('Unchanged', str(len(found.unchanged)), f'tensors, bit for bit; {total} tensors learn'))
    return show_numbers('What moved how far', entries)


def show_layers(folder: AnalysisFolder, found: Change) -> str:
    shown = [layer for layer in found.layers if layer.units]
    figure = draw_layers(shown)
    ranked = sorted(shown, key=lambda layer: -(layer.whole.relative or 0.0))
    spoken = 'Relative movement of each layer from the bottom to the top. Most: ' + ', '.join(
        f'{layer.tensor} {show_share(layer.whole.relative)}' for layer in ranked[:3]
    )
    picture = folder.write_figure('layers', figure, 'How far each layer moved', spoken)
    head = ['weights', 'moved', 'cosine', 'units: median', '90 %']
    rows = [
        [
            f'{text(layer.tensor)} <small>{layer.kind}</small>',
            show_share(layer.whole.relative),
            '' if layer.whole.cosine is None else f'{layer.whole.cosine:.4f}',
            show_share(layer.quantile(0.5)),
            show_share(layer.quantile(0.9)),
        ]
        for layer in ranked
    ]
    captions = ('Weights by how far they moved', f'The 20 weights that moved most, of {len(rows)}')
    return (
        '<p class="soft">Movement: the L2 norm of the difference, as a part of the norm before. Lines reach from 10 to '
        '90 % of a layer&#x27;s units.</p>'
        + f'<div class="charts large">{picture}</div>'
        + unfolding(captions, head, rows, (1, 2, 3, 4), 'weights')
    )


def draw_layers(layers: Sequence[LayerChange]) -> Figure:
    """Relative movement over depth, each kind by its own colour and mark."""
    with house_style():
        figure, axes = new_figure(WIDTH, HEIGHT + 0.4)
        for number, kind in enumerate(KINDS):
            points = [layer for layer in layers if layer.kind == kind and layer.whole.relative]
            if not points:
                continue
            across = [layer.place + 0.8 * (number > 0) for layer in points]
            middle = [layer.whole.relative or 0.0 for layer in points]
            ends = [
                (layer.quantile(0.1) or value, layer.quantile(0.9) or value)
                for layer, value in zip(points, middle, strict=True)
            ]
            axes.vlines(across, *zip(*ends, strict=True), color=COLORS[number], alpha=0.35, linewidth=1.4)
            axes.plot(across, middle, MARKS[number], color=COLORS[number], markersize=4.5, label=kind, linestyle='none')
        axes.set_yscale('log')
        axes.grid(True, axis='y')
        axes.set_ylabel('moved, as a part of the norm')
        mark_depth(axes, layers)
        if axes.has_data():
            figure.legend(loc='outside upper left', ncols=4, handletextpad=0.1, columnspacing=1.0)
    return figure


def mark_depth(axes: Any, layers: Sequence[LayerChange]) -> None:
    """Name stages along the depth, not more than can be read."""
    first: dict[str, int] = {}
    for layer in layers:
        parts = layer.tensor.split('.')
        stage = '.'.join(parts[:2]) if len(parts) > 2 and parts[1].isdigit() else parts[0]
        if layer.kind == OLD:
            first.setdefault(stage, layer.place)
    least = max(first.values(), default=0) / MOST_TICKS
    shown: dict[str, int] = {}
    for name, place in first.items():
        if not shown or place - max(shown.values()) >= least:
            shown[name] = place
    axes.set_xticks(list(shown.values()), list(shown), rotation=40, ha='right', rotation_mode='anchor')


def show_kinds(found: Change) -> str:
    """Old beside new, over all their units."""
    rows = []
    for kind in KINDS:
        layers = weights_of(found, kind)
        units = [unit for layer in layers for unit in layer.units]
        if not units:
            continue
        cosine = median(unit.cosine for unit in units)
        still = sum(unit.moved == 0 for unit in units)
        rows.append(
            [
                f'{kind} <small>{len(layers)} layer{"s" * (len(layers) != 1)}, {len(units)} units</small>',
                show_share(median(unit.relative for unit in units)),
                '' if cosine is None else f'{cosine:.4f}',
                str(still),
            ]
        )
    head = ['units', 'moved, median', 'cosine, median', 'not moved at all']
    return table('Units of each kind: the weights by which they read', head, rows, (1, 2, 3)) if rows else ''


def show_norms(folder: AnalysisFolder, found: Change) -> str:
    if not found.norms:
        return '<p>The network has no batch norm.</p>'
    ranked = sorted(found.norms, key=lambda item: -item[2].mean_shift)
    spoken = 'How far running means moved. Most: ' + ', '.join(
        f'{name} {norm.mean_shift:.2g}' for name, _, norm in ranked[:3]
    )
    picture = folder.write_figure('norms', draw_norms(found), 'Statistics of batch norms', spoken)
    rows = [
        [
            f'{text(name)} <small>{kind}</small>',
            f'{norm.mean_shift:.3g}',
            f'{norm.greatest_shift:.3g}',
            f'{norm.variance_ratio:.3g}',
            f'{norm.spread_change:.3g}',
        ]
        for name, kind, norm in ranked
    ]
    head = ['batch norm', 'mean moved', 'most', 'variance', 'by a factor of']
    captions = ('Batch norms by how far their means moved', f'The 20 batch norms that moved most, of {len(rows)}')
    return (
        '<p class="soft">Mean moved: of the running mean, in standard deviations of before, the mean over channels, '
        'and the most of any. Variance: now as a multiple of before, the geometric mean over channels; and by what '
        'factor it changed, up or down. New batch norms began at mean 0 and variance 1.</p>'
        + f'<div class="charts large">{picture}</div>'
        + unfolding(captions, head, rows, (1, 2, 3, 4), 'batch norms')
    )


def draw_norms(found: Change) -> Figure:
    with house_style():
        figure = Figure(figsize=(WIDTH, HEIGHT + 0.8), layout='constrained')
        upper, lower = figure.subplots(2, 1, sharex=True)
        for number, kind in enumerate(KINDS[:3]):
            points = [(place, norm) for place, (_, found_kind, norm) in enumerate(found.norms) if found_kind == kind]
            for axes, values in (
                (upper, [norm.mean_shift for _, norm in points]),
                (lower, [norm.spread_change for _, norm in points]),
            ):
                mark = dict(marker=MARKS[number], color=COLORS[number], markersize=4.5, linestyle='none')
                if points:
                    axes.plot([place for place, _ in points], values, **mark, label=kind)
        upper.set_ylabel('mean moved (sd)')
        lower.set_ylabel('variance changed by')
        lower.set_xlabel('batch norm, from the bottom up; new ones last')
        for axes in (upper, lower):
            axes.set_yscale('log')
            axes.grid(True, axis='y')
        handles, labels = upper.get_legend_handles_labels()
        figure.legend(handles, labels, loc='outside upper left', ncols=3, handletextpad=0.1)
    return figure


def show_method(subject: Subject) -> str:
    """Say what the comparison stands on, and what could not be checked."""
    assert subject.run is not None, 'others are refused'
    facts = subject.run.read_run()
    base, then, now = facts.get('base'), facts['versions'].get('torch'), torch.__version__
    origin = (
        f'<p>Old units began as {text(base["model"] or subject.config.model)} from {text(base["origin"])}; their '
        'checksum is the one in run.json.</p>'
        if base
        else '<p>run.json names no base, so nothing tells whether the old units began as they are rebuilt here.</p>'
    )
    same = then == now
    return origin + (
        f'<p>New units and the classifier: their first values are drawn again with the run&#x27;s seed, '
        f'{subject.config.seed}. '
        + (
            f'The run had the same torch, {text(now)}, so they are exact.</p>'
            if same
            else f'The run had torch {text(then)} and this is {text(now)}; they are exact if both draw the same '
            'numbers, which nothing here can check.</p>'
        )
    )
