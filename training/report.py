"""report.html: one page, whole in itself, that says how good a run's best weights are and how they came about."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from . import report_multi_label, report_single_label
from .charts import line_chart
from .config import Config
from .earlier import EarlierTask, backward_transfer, forgetting
from .label_predictions import LabelPredictions
from .measures import WORDS, measure_of
from .page import fill_page, show_numbers
from .predictions import Predictions, printable
from .progress import best_row
from .report_parts import bar, percent, table, text
from .run_folder import RunFolder
from .sources import Source

Row = dict[str, float | None]


def write_report(folder: RunFolder, predictions: Predictions | LabelPredictions, source: Source) -> None:
    """Write a run's report.html from its folder and what its best weights say of the validation images.

    Args:
        folder: With run.json and metrics.csv.
        predictions: Of the best weights.
        source: The images, for thumbnails and names.
    """
    facts, history = folder.read_run(), folder.read_metrics()
    answers = report_multi_label if isinstance(predictions, LabelPredictions) else report_single_label
    sections = {
        'Curves': show_curves(history),
        'Earlier tasks': show_earlier([EarlierTask.from_dict(task) for task in facts.get('earlier', ())]),
        'Old and new units': show_blocks(predictions, best_row(history) or {}),
        **answers.sections(predictions, source),
        'How it was made': show_origin(facts, predictions),
    }
    headline = show_headline(predictions, history, answers)
    title = folder.path.resolve().name
    folder.write_report(fill_page(title, show_subtitle(facts), headline, sections, writer='train.py'))


def show_subtitle(facts: dict[str, Any]) -> str:
    config, data = facts['config'], facts['data']
    where = config['data_dir'] or config['dataset']
    return (
        f'{text(config["model"])}, regime {text(config["regime"])}, on {text(where)}: {data["train_images"]} training '
        f'and {data["val_images"]} validation images of {len(data["classes"])} classes'
    )


def show_headline(predictions: Predictions | LabelPredictions, history: list[Row], answers: ModuleType) -> str:
    """The numbers that one looks for first."""
    if not len(predictions.indices):
        return '<p class="wrong">No validation image could be read, so nothing was measured.</p>'
    best, last = best_row(history), history[-1]
    assert best is not None, 'the last epoch is always evaluated'
    speeds = [row['images_per_s'] for row in history if row['images_per_s'] is not None]
    entries = [
        *answers.headline(predictions),
        ('Best epoch', f'{best["epoch"]:g}', f'of {last["epoch"]:g}'),
        (
            'Time',
            duration(last['elapsed_s'] or 0.0),
            f'{np.median(speeds):.0f} images/s in training, the median',
        ),
    ]
    if len(predictions.unreadable):
        entries.append(('Unreadable', str(len(predictions.unreadable)), 'images left out'))
    return show_numbers('Results of the best weights', entries)


def duration(seconds: float) -> str:
    """Write a time as one reads it.

    Example:
        >>> duration(75), duration(7260)
        ('1 min 15 s', '2 h 1 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours} h {minutes} min' if hours else f'{minutes} min {rest} s' if minutes else f'{seconds:.1f} s'


def show_curves(history: list[Row]) -> str:
    """Charts of metrics.csv, and it as a table."""

    def line(name: str) -> list[tuple[float, float]]:
        found = ((row['epoch'], row.get(name)) for row in history)
        return [(x, y) for x, y in found if x is not None and y is not None]

    def lines(prefix: str) -> dict[str, list[tuple[float, float]]]:
        names = dict.fromkeys(name for row in history for name in row if name.startswith(prefix))
        return {printable(name.removeprefix(prefix)): line(name) for name in names}

    measure = measure_of(history[-1])
    charts = [
        line_chart('Loss', measure.loss, {'training': line('train_loss'), 'validation': line('val_loss')}),
        line_chart(
            measure.title,
            '%',
            {'training': line(f'train_{measure.name}'), 'validation': line(measure.column)},
        ),
        line_chart('Learning rate', 'of each group', lines('lr_'), is_log=True),
        line_chart(f'{measure.title} of each block alone', '%, validation', lines(f'{measure.name}_')),
        line_chart('Norms of blocks', 'mean L2 norm of activations before reconciliation', lines('norm_')),
        line_chart('Scales of blocks', 'root mean square over channels', lines('scale_')),
        line_chart('Speed', 'images/s in training, reading included', {'training': line('images_per_s')}),
    ]
    columns = list(dict.fromkeys(name for row in history for name in row))
    rows = [['' if (value := row.get(name)) is None else f'{value:.6g}' for name in columns] for row in history]
    numbers = table('metrics.csv', [text(name) for name in columns], rows, range(len(columns)))
    return (
        f'<div class="charts">{"".join(charts)}</div><details><summary>The numbers behind the curves</summary>{numbers}'
        '</details>'
    )


def show_blocks(predictions: Predictions | LabelPredictions, row: Row) -> str:
    """Each block answering alone, beside the whole network; nothing for a network of one block."""
    if not predictions.blocks or not len(predictions.indices):
        return ''

    def measured(kind: str, name: str) -> str:
        value = row.get(f'{kind}_{name}')
        return '' if value is None else f'{value:.4g}'

    results = predictions.block_results()
    units = sum(block.units for block, _ in results)
    whole = bar(predictions.metrics()[predictions.measure.name])
    rows = [[f'whole network <small>{units} units</small>', whole, '', '']]
    for block, result in results:
        numbers = (measured('norm', block.name), measured('scale', block.name))
        rows.append([f'{text(block.name)} <small>{block.units} {block.kind} units</small>', bar(result), *numbers])
    head = ['block', WORDS[predictions.measure.name], 'norm', 'scale']
    caption = 'Each block answering alone: its own columns of the classifier, and the bias'
    return table(caption, head, rows, (1, 2, 3)) + (
        '<p class="soft">Norm: mean L2 norm of the activations before reconciliation. Scale: root mean square of what '
        'they are multiplied by after it. Both in the best epoch.</p>'
    )


def show_earlier(tasks: list[EarlierTask]) -> str:
    """What became of the tasks that the network had learnt before; nothing where there are none."""
    if not tasks:
        return ''

    def points(value: float | None) -> str:
        return '' if value is None else f'{value:+.2f}'

    lines = [
        [
            f'{text(task.head)} <small>{WORDS[task.measure]}{f", {task.images} images" if task.images else ""}</small>',
            percent(task.before),
            percent(task.after),
            points(task.change),
            text(task.remark or ''),
        ]
        for task in tasks
    ]
    head = ['task', 'before', 'after', 'change', 'remark']
    transfer, forgotten = backward_transfer(tasks), forgetting(tasks)
    figures = (
        f'<p>Backward transfer {transfer:+.2f} points, forgetting {forgotten:.2f} points.</p>'
        if transfer is not None and forgotten is not None
        else ''
    )
    return (
        table('Each earlier task by its own head, before this run and by its best weights', head, lines, (1, 2, 3))
        + figures
        + '<p class="soft">Backward transfer: the mean of what has changed since each was learnt. Forgetting: how far '
        'each is, in the mean, below the best that it ever was.</p>'
    )


def show_origin(facts: dict[str, Any], predictions: Predictions | LabelPredictions) -> str:
    """Everything one must know to make it again."""
    config, data = facts['config'], facts['data']
    defaults = vars(Config())
    given = {name: value for name, value in config.items() if name not in defaults or value != defaults[name]}
    others = {name: value for name, value in config.items() if name not in given}

    def pairs(caption: str, values: dict[str, Any]) -> str:
        return table(caption, ['name', 'value'], [[text(name), text(value)] for name, value in values.items()])

    machine = {'machine': facts.get('machine'), 'python': facts['python'], **facts['versions']}
    numbers = {
        'images from': config['data_dir'] or config['dataset'],
        **{name: value for name, value in data.items() if name != 'classes'},
        'classes': len(data['classes']),
    }
    unreadable = (
        f'<p>{len(predictions.unreadable)} validation images could not be read.</p>'
        if len(predictions.unreadable)
        else ''
    )
    return (
        f'<h3>Command</h3><pre><code>{text(facts["command"])}</code></pre>{unreadable}'
        + f'<div class="side">{pairs("Options that differ from their defaults", given)}'
        + pairs('Machine and versions', {name: value for name, value in machine.items() if value is not None})
        + f'{pairs("Data", numbers)}</div>'
        + f'<details><summary>All other options</summary>{pairs("Options at their defaults", others)}</details>'
    )
