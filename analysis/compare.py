"""Several runs side by side: curves, classes won and lost, and the images that one tells right and another wrong."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.charts import Points, line_chart
from training.image_cache import open_cache
from training.measures import interval
from training.page import show_numbers
from training.predictions import printable
from training.progress import best_row
from training.report_parts import bar, gallery, table, text, unfolding
from training.run_folder import RunFolder
from training.sources import Source, load_validation

from .figures import COLORS, HEIGHT, MARKS, WIDTH, house_style
from .folder import AnalysisFolder
from .subject import Where, find_weights, saved_config

EXAMPLES = 12
# So many classes are drawn: those that changed most.
DRAWN_CLASSES = 30


@dataclass(frozen=True)
class Answer:
    """What a run's best weights say of an image, as predictions.csv has it."""

    target: str
    predicted: str
    probability: float

    @property
    def is_right(self) -> bool:
        return self.target == self.predicted


@dataclass(frozen=True)
class Answers:
    """One run's answers about the images that all runs have in common, in their order."""

    name: str
    run: RunFolder
    facts: dict[str, Any]
    history: list[dict[str, float | None]]
    given: dict[str, Answer]
    """By the image's name."""

    @property
    def is_right(self) -> np.ndarray:
        return np.array([answer.is_right for answer in self.given.values()])


def read_answers(run: str) -> Answers:
    """Read what a run says of its validation images.

    Raises:
        ValueError: It is no run folder, has no predictions, or tells several labels an image.
    """
    folder, _ = find_weights(run)
    if folder is None:
        raise ValueError(f'{run} is not a run folder of train.py: it has no run.json beside best/')
    path = folder.path / 'predictions.csv'
    if not path.exists():
        raise ValueError(f'{run} has no predictions.csv: train.py --eval-only --model {run} writes it')
    with open(path, newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    if rows and not {'file', 'target', 'predicted', 'probability'} <= rows[0].keys():
        raise ValueError(f'{run} tells several labels an image: compare runs that tell one class')
    given = {row['file']: Answer(row['target'], row['predicted'], float(row['probability'])) for row in rows}
    return Answers(folder.path.resolve().name, folder, folder.read_run(), folder.read_metrics(), given)


def in_common(runs: Sequence[Answers]) -> list[Answers]:
    """Keep the images that all runs have answered about.

    Raises:
        ValueError: There is none, or runs call an image's class otherwise.
    """
    first = runs[0].given
    names = [name for name in first if all(name in run.given for run in runs)]
    if not names:
        raise ValueError(
            f'{", ".join(run.name for run in runs)} have no validation image in common: compare runs on the same data'
        )
    for run in runs[1:]:
        differing = [name for name in names if run.given[name].target != first[name].target]
        if differing:
            raise ValueError(
                f'{run.name} says that {differing[0]} is of class {run.given[differing[0]].target}, {runs[0].name} '
                f'that it is of {first[differing[0]].target}: compare runs on the same data'
            )
    return [
        Answers(run.name, run.run, run.facts, run.history, {name: run.given[name] for name in names}) for run in runs
    ]


def sign_test(won: int, lost: int) -> float:
    """The chance of a difference at least as large if both runs were equally good: exact, two-sided.

    Args:
        won: Images that only the one run tells right.
        lost: Images that only the other does.

    Source:
        Note on the sampling error of the difference between correlated proportions (McNemar, 1947).

    Example:
        >>> sign_test(8, 0), sign_test(5, 5)
        (0.0078125, 1.0)
    """
    count, least = won + lost, min(won, lost)
    return min(1.0, 2 * sum(math.comb(count, number) for number in range(least + 1)) / 2**count)


def compare(
    runs: Sequence[str], data_dir: str | None = None, dataset: str | None = None, output: Path | None = None
) -> Path:
    """Put two or more runs on the same data side by side; the first is what the others are measured against.

    `classes.csv` has the top-1 of each class in each run, `images.csv` the images that runs answer differently.

    Args:
        runs: Run folders of train.py.
        data_dir: Folder of the images, if they are not where the first run found them.
        dataset: Name of the data set, likewise.
        output: Folder to write to (None: analysis/compare-with-OTHERS in the first run's folder).

    Returns:
        The page.

    Raises:
        ValueError: There are fewer than two, or they have no image in common.
    """
    if len(runs) < 2:
        raise ValueError(f'compare needs at least two runs, given {len(runs)}')
    answers = in_common([read_answers(run) for run in runs])
    names = unique_names(answers)
    config = Where(data_dir=data_dir, dataset=dataset).applied(saved_config(answers[0].run))
    source = load_validation(config, open_cache(config))
    first = answers[0].run.path
    folder = AnalysisFolder(output or first / 'analysis' / f'compare-with-{"-".join(names[1:])}')
    write_tables(folder, answers, names)
    sections = {
        'Curves': show_curves(folder, answers, names),
        'Classes': show_classes(folder, answers, names),
        **{
            f'{text(name)} against the first': show_examples(answers[0], other, source)
            for name, other in zip(names[1:], answers[1:], strict=True)
        },
        'Runs': show_runs(answers, names),
    }
    subtitle = f'{len(answers)} runs on {len(answers[0].given)} images that all of them have answered about'
    return folder.write_page(' and '.join(names), subtitle, show_headline(answers, names), sections)


def unique_names(answers: Sequence[Answers]) -> list[str]:
    """Name the runs by their folders: with the one above where two have one name, without an ending that all have."""
    names = [run.name for run in answers]
    if len({*names}) < len(names):
        return [f'{run.run.path.resolve().parent.name}-{run.name}' for run in answers]
    ends = {name.rpartition('-')[2] for name in names if '-' in name}
    is_shared = len(ends) == 1 and all('-' in name for name in names)
    return [name.rpartition('-')[0] for name in names] if is_shared else names


def write_tables(folder: AnalysisFolder, answers: Sequence[Answers], names: Sequence[str]) -> None:
    """Write classes, and the images that are told apart."""
    folder.write_table('classes', ('class', 'images', *names), per_class(answers), 'top-1 of each class, in percent')
    rows = []
    for file in answers[0].given:
        given = [run.given[file] for run in answers]
        if len({answer.predicted for answer in given}) > 1:
            rows.append(
                (file, given[0].target, *(cell for answer in given for cell in (answer.predicted, answer.probability)))
            )
    columns = [column for name in names for column in (name, f'{name} probability')]
    folder.write_table('images', ('file', 'target', *columns), rows, 'images that runs answer differently')


def per_class(answers: Sequence[Answers]) -> list[tuple[Any, ...]]:
    """Each class, how many images, and the top-1 of each run in percent."""
    targets = np.array([answer.target for answer in answers[0].given.values()])
    rights = [run.is_right for run in answers]
    return [
        (name, int((targets == name).sum()), *(100 * float(right[targets == name].mean()) for right in rights))
        for name in sorted({*targets.tolist()})
    ]


def show_headline(answers: Sequence[Answers], names: Sequence[str]) -> str:
    count = len(answers[0].given)
    entries = []
    for name, run in zip(names, answers, strict=True):
        share = float(run.is_right.mean())
        low, high = interval(share, count)
        entries.append((text(name), f'{100 * share:.2f} %', f'top-1; 95 % interval {low:.1f} to {high:.1f}'))
    for name, run in zip(names[1:], answers[1:], strict=True):
        won, lost = (len(images) for images in contested(answers[0], run))
        entries.append(
            (
                f'{text(name)} against the first',
                f'{100 * (won - lost) / count:+.2f}',
                f'points: {won} images won, {lost} lost; by chance with p = {sign_test(won, lost):.2g}',
            )
        )
    return show_numbers('Top-1', entries)


def contested(first: Answers, other: Answers) -> tuple[list[str], list[str]]:
    """The images that only the other tells right, and those that only the first does; the surest answers first."""
    won = [name for name, answer in other.given.items() if answer.is_right and not first.given[name].is_right]
    lost = [name for name, answer in first.given.items() if answer.is_right and not other.given[name].is_right]
    won.sort(key=lambda name: -other.given[name].probability)
    lost.sort(key=lambda name: -first.given[name].probability)
    return won, lost


def show_curves(folder: AnalysisFolder, answers: Sequence[Answers], names: Sequence[str]) -> str:
    def lines(column: str) -> dict[str, Points]:
        found: dict[str, Points] = {}
        for name, run in zip(names, answers, strict=True):
            pairs = ((row['epoch'], row.get(column)) for row in run.history)
            found[name] = [(epoch, value) for epoch, value in pairs if epoch is not None and value is not None]
        return found

    panels = {
        'Validation top-1': ('%', lines('val_top1')),
        'Validation loss': ('cross-entropy', lines('val_loss')),
        'Training loss': ('cross-entropy', lines('train_loss')),
    }
    figure = draw_curves({title: drawn for title, (_, drawn) in panels.items()})
    folder.write_figure('curves', figure, 'Curves', 'Validation top-1, validation loss and training loss of the runs')
    return f'<div class="charts">{"".join(line_chart(title, *panel) for title, panel in panels.items())}</div>'


def draw_curves(panels: dict[str, dict[str, Points]]) -> Figure:
    """The same as a picture for elsewhere."""
    with house_style():
        figure = Figure(figsize=(WIDTH * len(panels) * 0.8, HEIGHT), layout='constrained')
        for axes, (title, lines) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
            for number, (name, points) in enumerate(lines.items()):
                style: dict[str, Any] = dict(
                    color=COLORS[number % len(COLORS)], marker=MARKS[number % len(MARKS)], markersize=3.5
                )
                axes.plot([x for x, _ in points], [y for _, y in points], label=name, **style)
            axes.set_title(title)
            axes.set_xlabel('epoch')
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(True, axis='y')
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc='outside lower center', ncols=len(labels))
    return figure


def show_classes(folder: AnalysisFolder, answers: Sequence[Answers], names: Sequence[str]) -> str:
    rows = sorted(per_class(answers), key=lambda row: row[2] - row[3])  # what the second won most stands first
    spoken = 'Points of top-1 that classes won or lost against the first run. Most won: ' + ', '.join(
        f'{row[0]} {row[3] - row[2]:+.1f}' for row in rows[:3]
    )
    picture = folder.write_figure('classes', draw_classes(rows, names), 'Won and lost, class by class', spoken)
    cells = [
        [
            f'{text(name)} <small>{count} images</small>',
            bar(first),
            *(f'{value:.2f} % <small>{value - first:+.2f}</small>' for value in others),
        ]
        for name, count, first, *others in rows
    ]
    head = ['class', *map(text, names)]
    captions = (
        'Top-1 of each class, and points against the first run',
        f'The 20 classes that {text(names[1])} won most, of {len(rows)}',
    )
    return f'<div class="charts large">{picture}</div>' + unfolding(captions, head, cells, range(1, len(head)))


def draw_classes(rows: Sequence[tuple[Any, ...]], names: Sequence[str]) -> Figure:
    """Differences to the first run, a line for each class; of many those that changed most."""
    changed = sorted(rows, key=lambda row: -max(abs(value - row[2]) for value in row[3:]))[:DRAWN_CLASSES]
    shown = [row for row in rows if row in changed][::-1]
    with house_style():
        figure = Figure(figsize=(WIDTH, 0.8 + 0.2 * len(shown)), layout='constrained')
        axes = figure.subplots()
        heights = range(len(shown))
        axes.axvline(0, color=COLORS[0], linewidth=1, label=names[0])
        for number, name in enumerate(names[1:], 1):
            found = [row[2 + number] - row[2] for row in shown]
            color, mark = COLORS[number % len(COLORS)], MARKS[number % len(MARKS)]
            axes.hlines(heights, 0, found, color=color, alpha=0.35, linewidth=2)
            axes.plot(found, heights, mark, color=color, markersize=5, label=name, linestyle='none')
        axes.set_yticks(heights, [row[0] for row in shown])
        axes.set_xlabel('points of top-1 against the first run')
        axes.grid(True, axis='x')
        figure.legend(loc='outside upper left', ncols=1)
    return figure


def show_examples(first: Answers, other: Answers, source: Source) -> str:
    """Images won and lost."""
    places = {printable(source.name(index)): index for index in range(len(source.targets))}
    won, lost = contested(first, other)

    def pictures(names: list[str], right: Answers, wrong: Answers) -> str:
        lacking = [name for name in names if name not in places]
        if lacking:
            raise ValueError(
                f'the images do not have {lacking[0]}, about which the runs have answered: give --data-dir FOLDER, '
                'where they lie now'
            )
        items = []
        for name in names:
            good, bad = right.given[name], wrong.given[name]
            said = (
                f'<p><span class="right">✓ {text(good.predicted)}</span>, {100 * good.probability:.1f} %</p>'
                f'<p><span class="wrong">✗ {text(bad.predicted)}</span>, {100 * bad.probability:.1f} %</p>'
            )
            items.append((places[name], text(good.target), said))
        return gallery(items, source)

    parts = []
    for title, names, right, wrong in (('Won', won, other, first), ('Lost', lost, first, other)):
        shown = pictures(names[:EXAMPLES], right, wrong) if names else '<p>None.</p>'
        more = f', the {EXAMPLES} surest' if len(names) > EXAMPLES else ''
        parts.append(
            f'<p><b>{title}</b>: {len(names)} images that only {text(right.name)} tells right{more}.</p>{shown}'
        )
    return ''.join(parts)


def show_runs(answers: Sequence[Answers], names: Sequence[str]) -> str:
    """What the runs are: the options in which they differ, and how long they took."""
    configs = [run.facts['config'] for run in answers]
    keys = [
        key
        for key in configs[0]
        if key not in ('output', 'experiment', 'resume') and len({repr(config.get(key)) for config in configs}) > 1
    ]
    rows = [[text(key), *(text(config.get(key)) for config in configs)] for key in keys]
    epochs = [best_row(run.history) for run in answers]
    rows.append(['best epoch', *(f'{row["epoch"]:g}' if row else '' for row in epochs)])
    rows.append(['seconds', *(f'{run.history[-1]["elapsed_s"]:.0f}' for run in answers)])
    return table('Options in which the runs differ', ['option', *map(text, names)], rows)
