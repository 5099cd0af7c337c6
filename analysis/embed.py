"""How classes lie in what the classifier reads: t-SNE of base, fine-tuned and grown, of old and new units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from timm_devnet.grown import Grown
from training.page import show_numbers
from training.report_parts import bar, table, text
from training.sources import Source

from .activations import Activations, Watcher
from .embedding import NEIGHBOURS, flatten, neighbour_accuracy, require_packages, silhouette
from .figures import CARD, HEIGHT, INK, SOFT, WIDTH, house_style, kind_of
from .folder import AnalysisFolder
from .subject import Subject, Where, find_images, open_subject, show
from .units import BASE, FINE_TUNED, matching_images, own_label

POINTS = 10_000
# So many classes have a colour and mark of their own; the others are grey.
SHOWN_CLASSES = 20


@dataclass(frozen=True)
class Space:
    """Features of all images in one network, or in a part of it."""

    name: str
    features: np.ndarray
    """Shape (images, units)."""
    points: np.ndarray
    """Where t-SNE puts them, shape (images, 2)."""
    neighbours: float
    """See `neighbour_accuracy`."""
    silhouette: float | None


def find_features(
    subject: Subject, network: Any, source: Source, indices: Sequence[int], is_start: bool = False
) -> dict[str, np.ndarray]:
    """Show images to a network and keep what its classifier reads, as a whole and of old and new blocks.

    Args:
        subject: Says how images are read.
        network: The subject's own, or what it began as.
        source: The images.
        indices: Which of them.
        is_start: Whether it is the start, of which only the old units count, as the base's classifier read them.
    """
    watch = Watcher(network)
    is_new = [block.kind == 'new' for block in watch.blocks]
    kept: dict[str, list[torch.Tensor]] = {}
    for batch, _, _ in show(source, subject.config, subject.input_format, subject.device, indices):
        for name, part in parts_of(watch(batch), watch.widths, is_new, network, is_start).items():
            kept.setdefault(name, []).append(part.float().cpu())
    return {name: torch.cat(parts).numpy() for name, parts in kept.items()}


def parts_of(
    seen: Activations, widths: list[int], is_new: list[bool], network: Any, is_start: bool
) -> dict[str, torch.Tensor]:
    """Tell apart what the classifier reads of a batch."""
    parts = list(seen.read.split(widths, 1))
    if is_start:
        # A plain base's classifier read its units as they are; one that had grown before read them reconciled.
        base = parts if isinstance(network, Grown) and network.settled else seen.blocks
        return {BASE: torch.cat([part for part, new in zip(base, is_new, strict=True) if not new], 1)}
    found = {'whole': seen.read}
    if any(is_new) and not all(is_new):
        for name, wanted in (('old units', False), ('new units', True)):
            found[name] = torch.cat([part for part, new in zip(parts, is_new, strict=True) if new == wanted], 1)
    return found


def embed(
    run: str,
    beside: str | None = None,
    points: int = POINTS,
    seed: int = 0,
    where: Where | None = None,
    output: Path | None = None,
) -> Path:
    """Lay out in a plane what the classifier reads, coloured by class: before, after, and in old and new units alone.

    `points.csv` has every image's place in every picture, `spaces.csv` how well classes lie apart: leave-one-out
    accuracy of the 10 nearest neighbours, and the silhouette, both in all directions and by Euclidean distances.

    Args:
        run: As `open_subject` takes it.
        beside: The same of a network that was fine-tuned without growing.
        points: Images at most; of more, so many are drawn by lot.
        seed: Of the lots, and of t-SNE.
        where: Which images.
        output: Folder to write to (None: analysis/embed in the run folder).

    Returns:
        The page.

    Raises:
        ValueError: A package is missing, or a network or the images cannot be had.

    Source:
        Growing a Brain (Wang, Ramanan, Hebert, 2017), figure 3.
    """
    require_packages()
    where = where or Where()
    subject = open_subject(run, where)
    source = find_images(subject, where.split)
    indices = draw(len(source.targets), points, seed)
    found = find_features(subject, subject.start(), source, indices, is_start=True)
    if beside is not None:
        other = open_subject(beside, where)
        theirs = matching_images(other, source, where)
        found[FINE_TUNED] = find_features(other, other.network, theirs, indices)['whole']
    own = find_features(subject, subject.network, source, indices)
    found |= {own_label(subject) if name == 'whole' else name: features for name, features in own.items()}
    targets = np.array([source.targets[index] for index in indices])
    if any(len(features) != len(targets) for features in found.values()):
        raise ValueError('some images could not be read, so points cannot be told apart: repair or remove them')
    spaces = [measure(name, features, targets, seed) for name, features in found.items()]
    folder = AnalysisFolder.of(subject, 'embed', output)
    write_tables(folder, spaces, targets, source, indices)
    sections = {'Pictures': show_pictures(folder, spaces, targets, source.classes), 'Numbers': show_spaces(spaces)}
    subtitle = (
        f'What the classifier of {text(subject.config.model)} reads, t-SNE of {len(indices)} images ({where.split})'
    )
    return folder.write_page(subject.name, subtitle, show_headline(spaces), sections)


def draw(count: int, most: int, seed: int) -> list[int]:
    """Draw images by lot if there are more than wanted; in their order.

    Raises:
        ValueError: None is wanted.
    """
    if most < 5:
        raise ValueError(f'--points {most} is out of range: t-SNE needs at least 5')
    if count <= most:
        return list(range(count))
    return sorted(np.random.default_rng(seed).choice(count, most, replace=False).tolist())


def measure(name: str, features: np.ndarray, targets: np.ndarray, seed: int) -> Space:
    """Lay out one space and measure how well its classes lie apart."""
    return Space(
        name,
        features,
        flatten(features, seed, torch.get_num_threads()),
        neighbour_accuracy(features, targets),
        silhouette(features, targets),
    )


def write_tables(
    folder: AnalysisFolder, spaces: list[Space], targets: np.ndarray, source: Source, indices: list[int]
) -> None:
    """Write every point and every number."""
    folder.write_table(
        'spaces',
        ('space', 'units', 'images', 'neighbour_accuracy', 'silhouette'),
        (
            (space.name, space.features.shape[1], len(space.features), space.neighbours, space.silhouette)
            for space in spaces
        ),
        'one row for each picture',
    )
    places = np.concatenate([space.points for space in spaces], 1).tolist()
    folder.write_table(
        'points',
        ('file', 'class', *(f'{space.name} {axis}' for space in spaces for axis in 'xy')),
        (
            (source.name(index), source.classes[target], *row)
            for index, target, row in zip(indices, targets.tolist(), places, strict=True)
        ),
        'where each image lies in each picture',
    )


def show_headline(spaces: list[Space]) -> str:
    entries = [
        (
            space.name,
            f'{space.neighbours:.2f} %',
            f'by {NEIGHBOURS} nearest neighbours; {space.features.shape[1]} units',
        )
        for space in spaces
    ]
    return show_numbers('Accuracy of nearest neighbours', entries)


def show_pictures(folder: AnalysisFolder, spaces: list[Space], targets: np.ndarray, classes: list[str]) -> str:
    shown = shown_classes(targets)
    pictures = []
    for space in spaces:
        title = f'{space.name}: {space.features.shape[1]} units'
        spoken = (
            f't-SNE of {len(targets)} images of {len(np.unique(targets))} classes; of the nearest neighbours '
            f'{space.neighbours:.1f} % are right'
        )
        name = space.name.replace(' ', '_')
        pictures.append(folder.write_figure(name, draw_space(space, targets, classes, shown), title, spoken))
    folder.write_figure(
        'all', draw_all(spaces, targets, classes, shown), 'All of these', 'The same pictures side by side'
    )
    rest = len(np.unique(targets)) - len(shown)
    said = f' The {len(shown)} classes of the most images have colours; the other {rest} are grey.' if rest > 0 else ''
    return (
        '<p class="soft">Each point is an image. Near points are images that the classifier reads alike; how far apart '
        f'groups are, and how large, says nothing.{said}</p><div class="charts large">{"".join(pictures)}</div>'
    )


def shown_classes(targets: np.ndarray) -> list[int]:
    """The classes of the most images, by their numbers."""
    counts = np.bincount(targets)
    order = [int(number) for number in np.argsort(-counts, kind='stable') if counts[number]]
    return sorted(order[:SHOWN_CLASSES])


def draw_space(space: Space, targets: np.ndarray, classes: list[str], shown: list[int]) -> Figure:
    """One picture, its classes named in their midst and in a legend."""
    with house_style():
        figure = Figure(figsize=(WIDTH, WIDTH + 0.2 * -(-len(shown) // 5)), layout='constrained')
        scatter(figure.subplots(), space, targets, classes, shown)
        add_legend(figure)
        spread_names(figure)
    return figure


def draw_all(spaces: list[Space], targets: np.ndarray, classes: list[str], shown: list[int]) -> Figure:
    """All pictures side by side, with one legend."""
    with house_style():
        figure = Figure(figsize=(HEIGHT * len(spaces) * 0.8, HEIGHT), layout='constrained')
        figure.set_layout_engine(
            'constrained', wspace=0.08
        )  # else the groups of one picture lie beside those of the next
        for axes, space in zip(np.atleast_1d(figure.subplots(1, len(spaces))), spaces, strict=True):
            scatter(axes, space, targets, classes, shown)
            axes.set_title(f'{space.name}, {space.neighbours:.1f} %')
        add_legend(figure)
        spread_names(figure)
    return figure


def add_legend(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    columns = min(len(labels), 5 * max(1, len(figure.axes)))
    figure.legend(
        handles,
        labels,
        loc='outside lower center',
        ncols=columns,
        handletextpad=0.1,
        columnspacing=0.9,
        markerscale=1.6,
    )


def spread_names(figure: Figure) -> None:
    """Move the names in the pictures up, from the lowest on, as far as none hides another."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()  # which lays the figure out
    figure.set_layout_engine('none')
    for axes in figure.axes:
        to_data, placed = axes.transData.inverted(), list[Bbox]()
        for name in sorted(axes.texts, key=lambda name: name.get_position()[1]):
            box = name.get_window_extent(renderer)
            while hidden := [other for other in placed if other.overlaps(box)]:
                box = box.translated(0, max(other.y1 for other in hidden) - box.y0 + 1)
            placed.append(box)
            x, _ = name.get_position()
            name.set_position((x, to_data.transform(((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2))[1]))


def scatter(axes: Axes, space: Space, targets: np.ndarray, classes: list[str], shown: list[int]) -> None:
    """Draw the points, each class by its own colour and mark, and name the classes."""
    size = float(np.clip(9000 / len(targets), 3, 14))
    options: dict[str, Any] = dict(s=size, linewidths=0, alpha=0.75, rasterized=True)
    others = ~np.isin(targets, shown)
    if others.any():
        axes.scatter(*space.points[others].T, color=SOFT, marker='.', label='others', **{**options, 'alpha': 0.3})
    for number, target in enumerate(shown):
        color, mark = kind_of(number)
        own = space.points[targets == target]
        axes.scatter(*own.T, color=color, marker=mark, label=shorten(classes[target]), **options)
    for target in shown:
        x, y = np.median(space.points[targets == target], axis=0)
        name = axes.text(
            x, y, shorten(classes[target]), color=INK, fontsize=8.5, weight='bold', ha='center', va='center'
        )
        name.set_path_effects([withStroke(linewidth=2.2, foreground=CARD)])
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def shorten(name: str) -> str:
    """A name that does not hide what is behind it."""
    return name if len(name) <= 18 else f'{name[:17]}…'


def show_spaces(spaces: list[Space]) -> str:
    """How well classes lie apart."""
    rows = [
        [
            f'{space.name} <small>{space.features.shape[1]} units</small>',
            bar(space.neighbours),
            'not defined' if space.silhouette is None else f'{space.silhouette:+.3f}',
        ]
        for space in spaces
    ]
    head = ['what is read', f'{NEIGHBOURS} nearest neighbours', 'silhouette']
    return table('How well classes lie apart, in all directions', head, rows, (1, 2)) + (
        '<p class="soft">Nearest neighbours: how often the votes of the nearest other images of this very set name an '
        'image&#x27;s class (leave-one-out). Silhouette: how much nearer images lie to their own class than to the '
        'nearest other, from -1 to 1. Both by Euclidean distances between what the classifier reads.</p>'
    )
