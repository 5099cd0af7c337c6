"""What units look for: the images that most activate them, in the base, the fine-tuned and the grown network."""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.blocks import Block
from training.page import show_numbers
from training.report_parts import table, text
from training.sources import Source

from .activations import Over, Watcher
from .contact_sheet import Sheet, Strip, Thumbnails, draw_sheets, show_sheets
from .contributions import Contributions, ContributionTally
from .cooperate import favourite_classes, unit_names
from .folder import AnalysisFolder
from .subject import Subject, Where, find_images, open_subject, show
from .top_images import Selectivity, TopImages, chance

BASE, FINE_TUNED, UNTRAINED = 'base', 'fine-tuned', 'untrained'
# Units of old and of new blocks that are shown unless the user names some.
SHOWN = 6
Unit = tuple[str, int]


@dataclass(frozen=True)
class Gallery:
    """The images of every unit of one network."""

    network: str
    blocks: list[Block]
    top: TopImages
    selectivity: Selectivity
    contributions: Contributions | None
    """Of the network that has the classifier of these classes."""

    def label(self, block: Block) -> str:
        """What the network is called where a block's units are told of: the base has none of the new ones."""
        return UNTRAINED if self.network == BASE and block.kind == 'new' else self.network

    def place(self, unit: Unit) -> int | None:
        """Where a unit stands among all; None if the network has no such unit."""
        before = 0
        for block in self.blocks:
            if block.name == unit[0] and unit[1] < block.units:
                return before + unit[1]
            before += block.units
        return None


def find_gallery(
    label: str, subject: Subject, network: Any, source: Source, count: int, over: Over, contributes: bool = True
) -> Gallery:
    """Show all images to a network, once, and keep each unit's best.

    Args:
        label: What the network is called.
        subject: Says how images are read.
        network: The subject's own, or what it began as.
        source: The images.
        count: Images to keep of each unit.
        over: See `Watcher`.
        contributes: Whether the network's classifier tells these classes apart.
    """
    watch = Watcher(network, over)
    top = TopImages(sum(watch.widths), count, subject.device)
    tally = ContributionTally(network.get_classifier()) if contributes else None
    for batch, targets, indices in show(source, subject.config, subject.input_format, subject.device):
        seen = watch(batch)
        top.add(torch.cat(seen.blocks, 1), indices, targets)
        if tally is not None:
            tally.add(seen, targets)
    selectivity = top.selectivity(len(source.classes))
    return Gallery(label, watch.blocks, top, selectivity, None if tally is None else tally.read())


def units(
    run: str,
    beside: str | None = None,
    names: Sequence[str] = (),
    count: int = 9,
    over: Over = 'mean',
    where: Where | None = None,
    output: Path | None = None,
) -> Path:
    """Show the images that most activate units: the same old unit before and after, and new units.

    A unit's activation is its value after the nonlinearity, over all positions, before reconciliation. Unless units are
    named, those old and those new ones are shown that add most to the logit of a class on that class's images, of as
    many classes as there are. `units.csv` has every unit of every network, `images.csv` the images of those shown.

    Args:
        run: As `open_subject` takes it.
        beside: The same of a network that was fine-tuned without growing, to stand between base and grown.
        names: Units to show, each as BLOCK:NUMBER (conv_head:17).
        count: Images of each unit.
        over: What is taken over the positions of a map.
        where: Which images.
        output: Folder to write to (None: analysis/units in the run folder).

    Returns:
        The page.

    Raises:
        ValueError: There is no such unit, or a network or the images cannot be had.

    Source:
        Growing a Brain (Wang, Ramanan, Hebert, 2017), figures 4, 5 and 7.
    """
    where = where or Where()
    if count < 1:
        raise ValueError(f'--count {count} is out of range: it must be at least 1')
    subject = open_subject(run, where)
    source = find_images(subject, where.split)
    own = find_gallery(own_label(subject), subject, subject.network, source, count, over)
    chosen = [read_unit(name, own) for name in names] or choose_units(own, SHOWN)
    galleries = [find_gallery(BASE, subject, subject.start(), source, count, over, contributes=False)]
    if beside is not None:
        other = open_subject(beside, where)
        theirs = matching_images(other, source, where)
        galleries.append(find_gallery(FINE_TUNED, other, other.network, theirs, count, over))
    galleries.append(own)
    folder = AnalysisFolder.of(subject, 'units', output)
    write_tables(folder, galleries, chosen, source)
    lots = chance([int(target) for target in source.targets], count, len(source.classes))  # type: ignore[arg-type]
    sections = {**show_sections(folder, galleries, chosen, source), 'Selectivity': show_selectivity(galleries, count)}
    subtitle = (
        f'The {count} images, of {len(source.targets)} ({where.split}), that most activate units of '
        f'{text(subject.config.model)}'
    )
    return folder.write_page(subject.name, subtitle, show_headline(galleries, count, lots), sections)


def own_label(subject: Subject) -> str:
    """What the network itself is called."""
    return 'grown' if hasattr(subject.network, 'growth') else FINE_TUNED


def matching_images(other: Subject, source: Source, where: Where) -> Source:
    """The images of another network, which must be the same ones.

    Raises:
        ValueError: They are others, or are numbered otherwise.
    """
    theirs = find_images(other, where.split)
    count = len(source.targets)
    same = len(theirs.targets) == count and all(
        source.name(index) == theirs.name(index) and source.targets[index] == theirs.targets[index]
        for index in range(count)
    )
    if not same or theirs.classes != source.classes:
        raise ValueError(
            f'--beside {other.name} has other images or classes ({len(theirs.targets)} images, these are {count}): '
            'give a run on the same data'
        )
    return theirs


def read_unit(name: str, own: Gallery) -> Unit:
    """Find the unit that the user names.

    Raises:
        ValueError: There is none of that name.
    """
    match = re.fullmatch(r'(.+):(\d+)', name)
    unit = (match[1], int(match[2])) if match else ('', 0)
    if match is None or own.place(unit) is None:
        known = ', '.join(f'{block.name}:0 to {block.name}:{block.units - 1}' for block in own.blocks)
        raise ValueError(f'--names {name} is no unit of the network: it has {known}')
    return unit


def is_old(unit: Unit, own: Gallery) -> bool:
    """Whether a unit is the pretrained network's."""
    return any(block.name == unit[0] and block.kind == 'old' for block in own.blocks)


def choose_units(own: Gallery, count: int) -> list[Unit]:
    """Choose old and new units: for one class after the other the one that adds most to it, then the second ones."""
    assert own.contributions is not None, 'it is of the network whose classes these are'
    names = unit_names(own.blocks)
    most, favourites = favourite_classes(own.contributions)
    dead = own.contributions.is_dead.tolist()
    chosen = []
    for wants_old in (True, False):
        places = [place for place, name in enumerate(names) if is_old(name, own) == wants_old and not dead[place]]
        ranks: dict[int, itertools.count] = {}
        order = []
        for place in sorted(places, key=lambda place: -most[place]):
            rank = next(ranks.setdefault(favourites[place], itertools.count()))
            order.append((rank, -most[place], place))
        chosen += [names[place] for _, _, place in sorted(order)[:count]]
    return chosen


def make_sheet(unit: Unit, galleries: Sequence[Gallery], source: Source) -> Sheet:
    """Gather a unit's images in every network that has it."""
    strips = []
    for gallery in galleries:
        place = gallery.place(unit)
        if place is None:
            continue
        images = [(index, source.classes[target], value) for index, target, value in gallery.top.of(place)]
        share, number = gallery.selectivity.share[place].item(), int(gallery.selectivity.commonest[place])
        label = gallery.label(next(block for block in gallery.blocks if block.name == unit[0]))
        strips.append(Strip(label, images, f'{100 * share:.0f} % are {text(source.classes[number])}'))
    own = galleries[-1]
    place = own.place(unit)
    assert place is not None and own.contributions is not None, 'units are chosen from its own'
    most, favourites = favourite_classes(own.contributions)
    kind = next(block.kind for block in own.blocks if block.name == unit[0])
    favourite = text(source.classes[favourites[place]])
    note = f'{kind} unit; adds {most[place]:+.3f} to the logit of {favourite} on images of it'
    return Sheet(f'{text(unit[0])} {unit[1]}', note, strips)


def write_tables(folder: AnalysisFolder, galleries: Sequence[Gallery], chosen: Sequence[Unit], source: Source) -> None:
    """Write every unit's selectivity, and the images of those that are shown."""
    classes = source.classes
    folder.write_table(
        'units',
        ('network', 'block', 'unit', 'selectivity', 'commonest_class', 'greatest_value'),
        (
            (labels[name[0]], *name, share, classes[number], value)
            for gallery in galleries
            for labels in [{block.name: gallery.label(block) for block in gallery.blocks}]
            for name, share, number, value in zip(
                unit_names(gallery.blocks),
                gallery.selectivity.share.tolist(),
                gallery.selectivity.commonest.tolist(),
                gallery.top.values[:, 0].tolist(),
                strict=True,
            )
        ),
        'one row for each unit of each network',
    )
    folder.write_table(
        'images',
        ('network', 'block', 'unit', 'rank', 'file', 'class', 'value'),
        (
            (labels[unit[0]], *unit, rank, source.name(index), classes[target], value)
            for unit in chosen
            for gallery in galleries
            for labels in [{block.name: gallery.label(block) for block in gallery.blocks}]
            if (place := gallery.place(unit)) is not None
            for rank, (index, target, value) in enumerate(gallery.top.of(place), 1)
        ),
        'the images of the units that are shown',
    )


def show_sections(
    folder: AnalysisFolder, galleries: Sequence[Gallery], chosen: Sequence[Unit], source: Source
) -> dict[str, str]:
    """Contact sheets of old and of new units."""
    thumbnails, own = Thumbnails(source), galleries[-1]
    parts: dict[str, list[Sheet]] = {'old': [], 'new': []}
    for unit in chosen:
        parts['old' if is_old(unit, own) else 'new'].append(make_sheet(unit, galleries, source))
    return {f'{kind.title()} units': show_part(folder, kind, sheets, thumbnails) for kind, sheets in parts.items()}


def show_part(folder: AnalysisFolder, kind: str, sheets: list[Sheet], thumbnails: Thumbnails) -> str:
    """Contact sheets of old or new units."""
    if not sheets:
        return ''
    figure = draw_sheets(sheets, thumbnails, html.unescape)
    folder.write_figure(f'{kind}_units', figure, f'Images of {kind} units', f'The images of {len(sheets)} units')
    said = {
        'old': 'The same unit in each network: what it looked for before and after. ',
        'new': 'Units that the base does not have, untrained as the seed made them, and as they are now. ',
    }[kind]
    return (
        f'<p class="soft">{said}Images from the left: those of which the unit says most. Beside each network&#x27;s '
        'name: the commonest class and its share of these images.</p>' + show_sheets(sheets, thumbnails)
    )


def mean_selectivity(gallery: Gallery) -> list[tuple[Block, float]]:
    """The mean over the units of each block."""
    parts = gallery.selectivity.share.split([block.units for block in gallery.blocks])
    return [(block, part.mean().item()) for block, part in zip(gallery.blocks, parts, strict=True)]


def show_headline(galleries: Sequence[Gallery], count: int, lots: float) -> str:
    entries = [
        (f'{gallery.label(block)}, {block.kind} units', f'{100 * share:.1f} %', f'{text(block.name)}: mean selectivity')
        for gallery in galleries
        for block, share in mean_selectivity(gallery)
    ]
    entries.append(('By lot', f'{100 * lots:.1f} %', f'selectivity of {count} images drawn blindly'))
    return show_numbers('Selectivity', entries)


def show_selectivity(galleries: Sequence[Gallery], count: int) -> str:
    """How selective the units of each network are."""
    rows = []
    for gallery in galleries:
        parts = gallery.selectivity.share.split([block.units for block in gallery.blocks])
        for block, part in zip(gallery.blocks, parts, strict=True):
            rows.append(
                [
                    f'{gallery.label(block)}, {text(block.name)} <small>{block.units} {block.kind} units</small>',
                    f'{100 * part.mean().item():.1f} %',
                    f'{100 * part.median().item():.1f} %',
                    f'{100 * (part == 1).double().mean().item():.1f} %',
                ]
            )
    head = ['units', 'mean', 'median', 'all of one class']
    return table(f'Share of the {count} images that the commonest class has', head, rows, (1, 2, 3)) + (
        '<p class="soft">A unit is selective if most of the images that activate it show one class. The last column: '
        'units whose images are all of one class.</p>'
    )
