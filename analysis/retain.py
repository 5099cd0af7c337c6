"""What a network still knows of its source task: with the old classifier, and with one fitted anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training import networks
from training.config import Config
from training.data import InputFormat
from training.evaluation import Renumbered, match_classes, own_format
from training.image_cache import open_cache
from training.measures import interval
from training.page import show_numbers
from training.report_parts import bar, table, text
from training.sources import Source, load_sources, load_validation

from .activations import Watcher
from .figures import COLORS, WIDTH, house_style, new_figure
from .folder import AnalysisFolder
from .linear_head import fit_head
from .subject import Reading, Subject, open_subject, rebuild_base, show

Reader = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Retained:
    """Top-1 on the source task, in percent."""

    reads: str
    """base, old units or all units."""
    units: int
    old_head: float | None
    """With the base's own classifier; None where that does not read these units."""
    fitted_head: float | None
    """With one fitted anew on training images of the source task; None if that was not asked for."""


@dataclass(frozen=True)
class SourceTask:
    """The images of the task that the base was trained for."""

    config: Config
    input_format: InputFormat
    val: Source
    train: Source | None
    """None if no classifier is fitted anew."""


def tuned_base(base: Any, subject: Subject) -> Any:
    """The base with what fine-tuning made of its own layers; it keeps its classifier.

    Args:
        base: As `rebuild_base` gives it; it is changed itself.
        subject: What it became.
    """
    heads = base.pretrained_cfg['classifier']
    heads = (heads,) if isinstance(heads, str) else heads
    tuned, own = subject.network.state_dict(), base.state_dict()
    kept = {name: tuned[name] for name in own if not name.startswith(tuple(f'{head}.' for head in heads))}
    base.load_state_dict({**own, **kept})
    return base


def read_by(network: Any) -> Reader:
    """What a network's classifier reads of images."""
    watch = Watcher(network)
    return lambda images: watch(images).read


def gather(read: Reader, source: Source, task: SourceTask, device: torch.device) -> tuple[Tensor, Tensor]:
    """What is read of all images of a source, and their classes."""
    kept, targets = [], []
    for images, true, _ in show(source, task.config, task.input_format, device):
        kept.append(read(images).float())
        targets.append(true)
    return torch.cat(kept), torch.cat(targets)


@torch.no_grad()
def top1(head: nn.Module, features: Tensor, targets: Tensor) -> float:
    """How often a classifier is right, in percent."""
    return 100 * float((head(features).argmax(1) == targets).double().mean())


def find_retained(subject: Subject, base: Any, task: SourceTask) -> list[Retained]:
    """Measure the base, the base after fine-tuning, and the whole network on the source task.

    Args:
        subject: The network now.
        base: As `rebuild_base` gives it; it is changed on the way.
        task: Its classes are numbered as the base's outputs.
    """
    found = []
    classes = base.get_classifier().out_features

    def measure(name: str, network: Any, head: nn.Module | None) -> None:
        read = read_by(network)
        features, targets = gather(read, task.val, task, subject.device)
        old = None if head is None else top1(head, features, targets)
        fitted = None
        if task.train is not None:
            fitted = top1(fit_head(*gather(read, task.train, task, subject.device), classes), features, targets)
        found.append(Retained(name, features.shape[1], old, fitted))

    measure('base', base, base.get_classifier())
    tuned = tuned_base(base, subject)
    measure('old units, fine-tuned', tuned, tuned.get_classifier())
    if subject.network.state_dict().keys() - tuned.state_dict().keys():
        measure('all units', subject.network, None)
    return found


def retain(
    run: str,
    source_dir: str | None = None,
    source_dataset: str | None = None,
    refit: bool = True,
    img_size: int | None = None,
    reading: Reading | None = None,
    output: Path | None = None,
) -> Path:
    """Tell what a network still knows of the task that its base was trained for.

    The old head is the base's own classifier, on the old units as fine-tuning left them. The fitted head is a
    classifier fitted anew (by LBFGS, to the one optimum) to what is read of the source task's training images, which
    tells what is still there to be read. The images are seen as the base sees them.

    Args:
        run: As `open_subject` takes it; it must have begun with pretrained weights.
        source_dir: Folder of the source task's images, with train/ and val/ (only val/ without `refit`).
        source_dataset: Its name, in place of a folder.
        refit: Whether to fit a classifier anew.
        img_size: Side of the images (None: the base's own).
        reading: How images are read.
        output: Folder to write to (None: analysis/retain in the run folder).

    Returns:
        The page.

    Raises:
        ValueError: The base or the images cannot be had, or the base does not know the images' classes.

    Source:
        Growing a Brain (Wang, Ramanan, Hebert, 2017), table 4; there the whole network was trained on the source task
        again.
    """
    subject = open_subject(run, reading or Reading())
    base = rebuild_base(subject)
    task = find_task(subject, base, source_dir, source_dataset, refit, img_size)
    found = find_retained(subject, base, task)
    folder = AnalysisFolder.of(subject, 'retain', output)
    folder.write_table(
        'retained',
        ('reads', 'units', 'top1_old_head', 'top1_fitted_head'),
        (dataclasses.astuple(row) for row in found),
        'top-1 on the source task, in percent',
    )
    count = len(task.val.targets)
    sections = {'Source task': show_retained(folder, found), 'How it was measured': show_method(task)}
    subtitle = f'What {text(subject.config.model)} still knows of its source task: {count} images'
    return folder.write_page(subject.name, subtitle, show_headline(found, count), sections)


def find_task(
    subject: Subject, base: Any, source_dir: str | None, source_dataset: str | None, refit: bool, img_size: int | None
) -> SourceTask:
    """Find the source task's images; their classes are numbered as the base's outputs.

    Raises:
        ValueError: They cannot be had, or the base does not know their classes.
    """
    if (source_dir is None) == (source_dataset is None):
        raise ValueError(
            'give the images of the source task: --source-dir FOLDER or --source-dataset NAME, one of them'
        )
    own = subject.config
    config = Config(
        data_dir=source_dir,
        dataset=source_dataset,
        model=own.model,
        batch_size=own.batch_size,
        workers=own.workers,
        threads=own.threads,
    )
    cache = open_cache(config)
    if refit:
        sources = load_sources(config, cache)
        val, train = sources['val'], sources['train']
    else:
        val, train = load_validation(config, cache), None
    outputs, _, _ = match_classes(base, val.classes)
    names = [''] * base.get_classifier().out_features
    for output, name in zip(outputs, val.classes, strict=True):
        names[output] = name
    input_format = own_format(base, img_size)
    networks.check_img_size(base, input_format.img_size)
    return SourceTask(
        config,
        input_format,
        Renumbered(val, outputs, names),
        None if train is None else Renumbered(train, outputs, names),
    )


def show_headline(found: list[Retained], count: int) -> str:
    entries = []
    for row in found:
        for what, value in (('old head', row.old_head), ('fitted head', row.fitted_head)):
            if value is not None:
                low, high = interval(value / 100, count)
                note = f'{what}; 95 % interval {low:.1f} to {high:.1f}'
                entries.append((row.reads, f'{value:.2f} %', note))
    return show_numbers('Top-1 on the source task', entries)


def show_retained(folder: AnalysisFolder, found: list[Retained]) -> str:
    spoken = '; '.join(
        f'{row.reads}: {what} {value:.1f} %'
        for row in found
        for what, value in (('old head', row.old_head), ('fitted head', row.fitted_head))
        if value is not None
    )
    picture = folder.write_figure('retained', draw_retained(found), 'Top-1 on the source task', spoken)
    rows = [
        [
            f'{row.reads} <small>{row.units} units</small>',
            'has none for these' if row.old_head is None else bar(row.old_head),
            'not asked for' if row.fitted_head is None else bar(row.fitted_head),
        ]
        for row in found
    ]
    return f'<div class="charts large">{picture}</div>' + table(
        'Top-1 on the source task', ['what is read', 'old head', 'fitted head'], rows, (1, 2)
    )


def draw_retained(found: list[Retained]) -> Any:
    """Bars: the old head and the fitted one, side by side."""
    with house_style():
        figure, axes = new_figure(WIDTH, 0.9 + 0.55 * len(found))
        places = np.arange(len(found))[::-1]
        for number, (what, values) in enumerate(
            (('old head', [row.old_head for row in found]), ('fitted head', [row.fitted_head for row in found]))
        ):
            shown = [(place, value) for place, value in zip(places, values, strict=True) if value is not None]
            if shown:
                heights = [place + 0.18 - 0.36 * number for place, _ in shown]
                style: dict[str, Any] = dict(color=COLORS[number], hatch=('', '//')[number], edgecolor='none')
                drawn = axes.barh(heights, [value for _, value in shown], 0.32, label=what, **style)
                axes.bar_label(drawn, fmt='%.1f', padding=2, fontsize=8)
        axes.set_yticks(places, [row.reads for row in found])
        axes.set_xlim(0, 109)
        axes.set_xlabel('top-1 on the source task (%)')
        figure.legend(loc='outside upper left', ncols=2)
    return figure


def show_method(task: SourceTask) -> str:
    where = text(task.config.data_dir or task.config.dataset)
    fitted = (
        f' The fitted head: {len(task.train.targets)} training images, multinomial logistic regression on features '
        'brought to mean 0 and standard deviation 1, with half the squared weights as a penalty.'
        if task.train is not None
        else ''
    )
    side = task.input_format.img_size
    return (
        f'<p>{len(task.val.targets)} images of {where}, at {side} px as the base sees them. The old head: the '
        f'base&#x27;s own classifier, on the base&#x27;s layers as fine-tuning left them.{fitted}</p>'
    )
