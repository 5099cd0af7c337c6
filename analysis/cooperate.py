"""How old and new units work together: what each block reaches alone, and what each unit adds to the logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

import timm_devnet
from training.blocks import Block
from training.charts import Points, line_chart
from training.measures import interval
from training.page import show_numbers
from training.report_parts import bar, table, text
from training.sources import Source

from .activations import Watcher
from .contributions import Contributions, ContributionTally
from .figures import COLORS, MARKS, house_style, new_figure
from .folder import AnalysisFolder
from .subject import Subject, Where, find_images, open_subject, show

WHOLE = 'whole network'
DASHES = ('-', '--', ':', '-.')


@dataclass(frozen=True)
class Cooperation:
    """How the blocks of a network answer, and what their units add."""

    blocks: list[Block]
    images: int
    whole: float
    """Top-1 of the network, in percent, as the others."""
    alone: list[float]
    """Of each block: its columns of the classifier, and the bias."""
    without: list[float]
    """Of all blocks but this one."""
    contributions: Contributions

    def parts(self, values: Tensor) -> list[Tensor]:
        """Tell units' values apart by block."""
        return list(values.split([block.units for block in self.blocks], -1))


def find_cooperation(subject: Subject, source: Source) -> Cooperation:
    """Show all images of a source to a network, once, and add up what its blocks and units say."""
    watch, classifier = Watcher(subject.network), subject.classifier
    tally = ContributionTally(classifier)
    hits = torch.zeros(1 + 2 * len(watch.blocks), dtype=torch.int64, device=subject.device)
    images = 0
    for batch, targets, _ in show(source, subject.config, subject.input_format, subject.device):
        seen = watch(batch)
        alone = block_answers(subject, seen.read, seen.logits)
        bias = 0 if classifier.bias is None else classifier.bias
        without = [seen.logits - block + bias for block in alone]
        answers = torch.stack([seen.logits, *alone, *without]).argmax(2)
        hits += (answers == targets).sum(1)
        tally.add(seen, targets)
        images += len(targets)
    found = tally.read()
    whole, *others = (100 * hits.double() / images).tolist()
    half = len(watch.blocks)
    return Cooperation(watch.blocks, images, whole, others[:half], others[half:], found)


def block_answers(subject: Subject, read: Tensor, logits: Tensor) -> list[Tensor]:
    """Each block's own logits; a plain network's one block gives the network's."""
    if timm_devnet.block_names(subject.network):
        with torch.no_grad():
            return timm_devnet.block_logits(subject.network, read)
    return [logits]


def cooperate(run: str, where: Where | None = None, output: Path | None = None) -> Path:
    """Tell how old and new units of a network work together.

    `curves.csv` has what each block alone and the whole reached in every epoch, from the run's metrics.csv;
    `blocks.csv` has a row for each block and `units.csv` one for each unit, over all images.

    Args:
        run: As `open_subject` takes it; without a run folder there are no curves.
        where: Which images.
        output: Folder to write to (None: analysis/cooperate in the run folder).

    Returns:
        The page.

    Raises:
        ValueError: The network or its images cannot be had.

    Source:
        Growing a Brain (Wang, Ramanan, Hebert, 2017), figure 6.
    """
    where = where or Where()
    subject = open_subject(run, where)
    source = find_images(subject, where.split)
    found = find_cooperation(subject, source)
    folder = AnalysisFolder.of(subject, 'cooperate', output)
    write_tables(folder, found, source.classes)
    sections = {
        'Over training': show_curves(folder, subject),
        'Blocks': show_blocks(found),
        'Units': show_units(folder, found, source.classes),
    }
    subtitle = f'How the units of {text(subject.config.model)} work together, on {found.images} images ({where.split})'
    return folder.write_page(subject.name, subtitle, show_headline(found), sections)


def write_tables(folder: AnalysisFolder, found: Cooperation, classes: list[str]) -> None:
    """Write everything that was measured; curves are written where they are drawn."""
    given = found.contributions
    sizes = [part.sum().item() for part in found.parts(given.size)]
    folder.write_table(
        'blocks',
        ('block', 'kind', 'units', 'dead', 'top1_alone', 'top1_without', 'to_true', 'size'),
        (
            (block.name, block.kind, block.units, int(dead.sum()), alone, without, to_true.sum().item(), size)
            for block, dead, alone, without, to_true, size in zip(
                found.blocks,
                found.parts(given.is_dead),
                found.alone,
                found.without,
                found.parts(given.to_true),
                sizes,
                strict=True,
            )
        ),
        'one row for each block',
    )
    best, favourites = favourite_classes(given)
    rows = zip(
        unit_names(found.blocks),
        given.to_true.tolist(),
        given.size.tolist(),
        favourites,
        best,
        given.is_dead.tolist(),
        strict=True,
    )
    folder.write_table(
        'units',
        ('block', 'unit', 'to_true', 'size', 'favourite_class', 'to_favourite', 'dead'),
        ((*name, true, size, classes[number], most, int(dead)) for name, true, size, number, most, dead in rows),
        'one row for each unit that the classifier reads',
    )


def favourite_classes(given: Contributions) -> tuple[list[float], list[int]]:
    """For each unit the class whose own images it adds most to, and how much; classes without images do not count."""
    most, classes = given.per_class.nan_to_num(nan=-torch.inf).max(0)
    return most.tolist(), classes.tolist()


def unit_names(blocks: list[Block]) -> list[tuple[str, int]]:
    """Name every unit by its block and its number there."""
    return [(block.name, number) for block in blocks for number in range(block.units)]


def show_headline(found: Cooperation) -> str:
    low, high = interval(found.whole / 100, found.images)
    entries = [('Whole', f'{found.whole:.2f} %', f'top-1; 95 % interval {low:.1f} to {high:.1f}')]
    if len(found.blocks) > 1:
        entries += [
            (text(block.name), f'{alone:.2f} %', f'{block.units} {block.kind} units alone')
            for block, alone in zip(found.blocks, found.alone, strict=True)
        ]
    dead = int(found.contributions.is_dead.sum())
    entries.append(('Dead units', str(dead), f'of {len(found.contributions.is_dead)}: the same for every image'))
    return show_numbers('What blocks reach', entries)


def curves_of(subject: Subject) -> dict[str, Points]:
    """Top-1 over the epochs, of the whole and of each block alone; empty without a run that measured it."""
    if subject.run is None:
        return {}
    history = subject.run.read_metrics()
    columns = dict.fromkeys(name for row in history for name in row if name.startswith('top1_'))
    found: dict[str, Points] = {}
    for name, label in (
        {'val_top1': WHOLE} | {name: f'{name.removeprefix("top1_")} alone' for name in columns}
    ).items():
        pairs = ((row['epoch'], row.get(name)) for row in history)
        found[label] = [(epoch, value) for epoch, value in pairs if epoch is not None and value is not None]
    return found if columns else {}


def show_curves(folder: AnalysisFolder, subject: Subject) -> str:
    curves = curves_of(subject)
    if not curves:
        return (
            '<p class="soft">There are no curves: they come from the metrics.csv of a run of a network of several '
            'blocks, if the run is not older than its columns top1_BLOCK.</p>'
        )
    epochs = sorted({epoch for points in curves.values() for epoch, _ in points})
    by_epoch = [dict(points) for points in curves.values()]
    folder.write_table(
        'curves',
        ('epoch', *curves),
        ((int(epoch), *(values.get(epoch) for values in by_epoch)) for epoch in epochs),
        'top-1 in every epoch, in percent',
    )
    title = 'Top-1 of each block alone, and of the whole'
    spoken = '; '.join(f'{name} ends at {points[-1][1]:.1f} %' for name, points in curves.items() if points)
    folder.write_figure('curves', draw_curves(curves), title, spoken)
    chart = line_chart(title, '%, validation', curves)
    return (
        '<p class="soft">A block alone: its own columns of the classifier, and the bias; the others say nothing.</p>'
        f'<div class="charts large">{chart}</div>'
    )


def draw_curves(curves: Mapping[str, Points]) -> Figure:
    """The same as a picture for elsewhere."""
    with house_style():
        figure, axes = new_figure()
        for number, (name, points) in enumerate(curves.items()):
            mark = MARKS[number % len(MARKS)] if len(points) <= 60 else None
            style: dict[str, Any] = dict(color=COLORS[number % len(COLORS)], linestyle=DASHES[number % len(DASHES)])
            axes.plot(*zip(*points, strict=True), label=name, marker=mark, markersize=4, **style)
        axes.set_xlabel('epoch')
        axes.set_ylabel('validation top-1 (%)')
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(True, axis='y')
        figure.legend(loc='outside upper left', ncols=2)
    return figure


def show_blocks(found: Cooperation) -> str:
    given = found.contributions
    total = given.size.sum().item()
    rows = []
    for number, block in enumerate(found.blocks):
        dead, size, true = (found.parts(values)[number] for values in (given.is_dead, given.size, given.to_true))
        rows.append(
            [
                f'{text(block.name)} <small>{block.units} {block.kind} units</small>',
                bar(found.alone[number]),
                bar(found.without[number]),
                f'{100 * size.sum().item() / total:.1f} %' if total else '',
                f'{true.sum().item():+.3f}',
                str(int(dead.sum())),
            ]
        )
    head = ['block', 'alone', 'all but it', 'share of size', 'to the true logit', 'dead']
    return table('Each block: top-1 alone and of all the others, and what it adds', head, rows, (1, 2, 3, 4, 5)) + (
        '<p class="soft">What a unit adds to a logit is its value times its weight in the classifier, so '
        'contributions and the bias sum to the logits. To the true logit: the mean over images, for the image&#x27;s '
        'own class. Size: the mean of the absolute value over images and classes, here as a part of that of all '
        'units.</p>'
    )


def show_units(folder: AnalysisFolder, found: Cooperation, classes: list[str]) -> str:
    given = found.contributions
    order = given.to_true.argsort(descending=True, stable=True).tolist()
    names = unit_names(found.blocks)
    most, favourites = favourite_classes(given)
    kinds = {block.name: block.kind for block in found.blocks}

    def row(place: int) -> list[str]:
        block, number = names[place]
        return [
            f'{text(block)} {number} <small>{kinds[block]}</small>',
            f'{given.to_true[place].item():+.4f}',
            f'{given.size[place].item():.4f}',
            f'{text(classes[favourites[place]])} <small>{most[place]:+.3f}</small>',
        ]

    head = ['unit', 'to the true logit', 'size', 'adds most to class']
    half = half_carriers(given.size)
    spoken = f'Size of contributions, units sorted: {half} of {len(names)} units carry half of it'
    picture = folder.write_figure('contributions', draw_contributions(found), 'How contributions are spread', spoken)
    lowest = table('The 10 that add least, or take away', head, map(row, reversed(order[-10:])), (1, 2))
    return (
        f'<p>{half} of {len(names)} units carry half of the size of all contributions.</p>'
        f'<div class="charts large">{picture}</div>'
        + table('The 20 units that add most to the true logit', head, map(row, order[:20]), (1, 2))
        + f'<details><summary>The units that add least</summary>{lowest}</details>'
    )


def half_carriers(sizes: Tensor) -> int:
    """How few units carry half of the sum.

    Example:
        >>> half_carriers(torch.tensor([1.0, 6.0, 1.0, 2.0]))
        1
    """
    ranked = sizes.sort(descending=True).values.cumsum(0)
    return int((ranked < ranked[-1] / 2).sum()) + 1


def draw_contributions(found: Cooperation) -> Figure:
    """Each block's units from the greatest to the least, of one height: their share of the block's units across."""
    with house_style():
        figure, axes = new_figure()
        for number, (block, sizes) in enumerate(zip(found.blocks, found.parts(found.contributions.size), strict=True)):
            ranked = sizes.sort(descending=True).values.tolist()
            style: dict[str, Any] = dict(color=COLORS[number % len(COLORS)], linestyle=DASHES[number % len(DASHES)])
            axes.plot(range(1, len(ranked) + 1), ranked, label=f'{block.name} ({block.kind})', **style)
        axes.set_xlabel('units, the greatest first')
        axes.set_ylabel('size of contribution')
        axes.set_xscale('log')
        axes.grid(True, axis='y')
        axes.set_ylim(bottom=0)
        figure.legend(loc='outside upper left', ncols=2)
    return figure
