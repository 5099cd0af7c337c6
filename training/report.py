"""report.html: one page, whole in itself, that says how good a run's best weights are and how they came about.

Names of classes, files and options come from outside, so whatever is put into the page goes through `escape`.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from .charts import line_chart
from .config import Config
from .predictions import Predictions, printable
from .run_folder import RunFolder
from .sources import Source

PAGE = Path(__file__).with_name('report_page.html')
# Up to so many classes the whole confusion matrix can be read; beyond it only the pairs that are confused most.
MATRIX_CLASSES = 20
CONFUSED_PAIRS = 12
# So many classes are shown at once; the others unfold.
SHOWN_CLASSES = 20
EXAMPLES = 12
THUMBNAIL_SIDE = 160
Row = dict[str, float | None]


def write_report(folder: RunFolder, predictions: Predictions, source: Source) -> None:
    """Write a run's report.html from its folder and what its best weights say of the validation images.

    Args:
        folder: With run.json and metrics.csv.
        predictions: Of the best weights.
        source: The images, for thumbnails and names.
    """
    facts, history = folder.read_run(), folder.read_metrics()
    sections = {
        'Curves': show_curves(history),
        'Old and new units': show_blocks(predictions, best_row(history)),
        'Classes': show_classes(predictions),
        'Confusions': show_confusions(predictions),
        'Worst examples': show_worst(predictions, source),
        'Best examples': show_best(predictions, source),
        'How it was made': show_origin(facts, predictions),
    }
    sections = {name: body for name, body in sections.items() if body}
    places = {name: name.lower().replace(' ', '-') for name in sections}
    folder.write_report(
        Template(PAGE.read_text(encoding='utf-8')).substitute(
            title=text(folder.path.resolve().name),
            subtitle=show_subtitle(facts),
            links=''.join(f'<li><a href="#{places[name]}">{name}</a></li>' for name in sections),
            body=show_headline(predictions, history)
            + ''.join(
                f'<section aria-labelledby="{places[name]}"><h2 id="{places[name]}">{name}</h2>{body}</section>\n'
                for name, body in sections.items()
            ),
        )
    )


def text(value: object) -> str:
    """Make any value safe to stand in the page, between tags or inside an attribute."""
    return escape(printable(str(value)))


def percent(value: float | None) -> str:
    return 'not measured' if value is None else f'{value:.2f} %'


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """Make a table whose cells are safe already; the first of each row is its heading.

    Args:
        caption: Says what it shows.
        head: Headings of the columns.
        rows: Cells.
        numeric: Columns set to the right.
    """
    kinds = [' class="n"' if column in numeric else ' class="v"' for column in range(len(head))]
    heads = ''.join(f'<th scope="col"{kind}>{name}</th>' for name, kind in zip(head, kinds, strict=True))
    body = ''.join(
        f'<tr><th scope="row">{cells[0]}</th>'
        + ''.join(f'<td{kind}>{cell}</td>' for cell, kind in zip(cells[1:], kinds[1:], strict=True))
        + '</tr>'
        for cells in rows
    )
    return scrolling(
        caption, f'<table><caption>{caption}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
    )


def scrolling(label: str, contents: str) -> str:
    """Let wide contents scroll in themselves, by keyboard too, so that the page never does."""
    return f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">{contents}</div>'


def best_row(history: list[Row]) -> Row:
    """Find the epoch whose weights are the best ones: the highest validation top-1, the first of equals."""
    return max((row for row in history if row['val_top1'] is not None), key=lambda row: row['val_top1'] or 0.0)


def show_subtitle(facts: dict[str, Any]) -> str:
    config, data = facts['config'], facts['data']
    where = config['data_dir'] or config['dataset']
    return (
        f'{text(config["model"])}, regime {text(config["regime"])}, on {text(where)}: {data["train_images"]} training '
        f'and {data["val_images"]} validation images of {len(data["classes"])} classes'
    )


def interval(share: float, count: int) -> tuple[float, float]:
    """Compute Wilson's 95 % interval of a share.

    Args:
        share: Of right answers, 0 to 1.
        count: Answers.

    Returns:
        Its ends in percent.

    Source:
        Probable inference, the law of succession, and statistical inference (Wilson, 1927).

    Example:
        >>> [round(end, 1) for end in interval(0.9, 100)]
        [82.6, 94.5]
    """
    z = 1.959964
    middle, denominator = share + z * z / (2 * count), 1 + z * z / count
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return 100 * (middle - half) / denominator, 100 * (middle + half) / denominator


def show_headline(predictions: Predictions, history: list[Row]) -> str:
    """The numbers that one looks for first."""
    metrics, best, last = predictions.metrics(), best_row(history), history[-1]
    count = metrics['images']
    if not count:
        return '<p class="wrong">No validation image could be read, so nothing was measured.</p>'
    low, high = interval(metrics['top1'] / 100, count)
    largest = 100 * float(np.bincount(predictions.targets).max()) / count
    speeds = [row['images_per_s'] for row in history if row['images_per_s'] is not None]
    entries = [
        ('Top-1', percent(metrics['top1']), f'95 % interval {low:.1f} to {high:.1f}, {count} images'),
        ('Mean of the classes', percent(metrics['mean_class_top1']), 'every class counted alike'),
        ('Largest class', percent(largest), 'what always answering with it would reach'),
        ('Cross-entropy', f'{metrics["loss"]:.4f}', 'validation'),
        ('Best epoch', f'{best["epoch"]:g}', f'of {last["epoch"]:g}'),
        (
            'Time',
            duration(last['elapsed_s'] or 0.0),
            f'{np.median(speeds):.0f} images/s in training, the median',
        ),
    ]
    if metrics['top5'] is not None:
        entries.insert(1, ('Top-5', percent(metrics['top5']), 'true class among the first five'))
    if len(predictions.unreadable):
        entries.append(('Unreadable', str(len(predictions.unreadable)), 'images left out'))
    cells = ''.join(f'<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>' for name, value, note in entries)
    return f'<section aria-label="Results of the best weights"><dl class="numbers">{cells}</dl></section>\n'


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

    charts = [
        line_chart('Loss', 'cross-entropy', {'training': line('train_loss'), 'validation': line('val_loss')}),
        line_chart('Top-1', '%', {'training': line('train_top1'), 'validation': line('val_top1')}),
        line_chart('Learning rate', 'of each group', lines('lr_'), is_log=True),
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


def show_blocks(predictions: Predictions, row: Row) -> str:
    """Each block answering alone, beside the whole network; nothing for a network of one block."""
    if not predictions.blocks or not len(predictions.targets):
        return ''

    def measured(kind: str, name: str) -> str:
        value = row.get(f'{kind}_{name}')
        return '' if value is None else f'{value:.4g}'

    units = sum(block.units for block, _ in predictions.blocks)
    whole = bar(100 * float(predictions.is_right.mean()))
    rows = [[f'whole network <small>{units} units</small>', whole, '', '']]
    for block, predicted in predictions.blocks:
        top1 = 100 * float((predicted == predictions.targets).mean())
        numbers = (measured('norm', block.name), measured('scale', block.name))
        rows.append([f'{text(block.name)} <small>{block.units} {block.kind} units</small>', bar(top1), *numbers])
    head = ['block', 'top-1', 'norm', 'scale']
    caption = 'Each block answering alone: its own columns of the classifier, and the bias'
    return table(caption, head, rows, (1, 2, 3)) + (
        '<p class="soft">Norm: mean L2 norm of the activations before reconciliation. Scale: root mean square of what '
        'they are multiplied by after it. Both in the best epoch.</p>'
    )


def bar(value: float) -> str:
    """A percentage and its bar."""
    number = f'{value:.2f}'
    return f'<meter min="0" max="100" value="{number}" aria-hidden="true"></meter><span class="value">{number} %</span>'


def show_classes(predictions: Predictions) -> str:
    """Accuracy of each class, the worst first."""
    found = sorted(predictions.per_class(), key=lambda item: (item[2], predictions.classes[item[0]]))
    rows = [[text(predictions.classes[number]), str(count), bar(top1)] for number, count, top1 in found]
    head = ['class', 'images', 'top-1']
    if len(rows) <= SHOWN_CLASSES + 5:
        return table('Top-1 of each class, the lowest first', head, rows, (1, 2)) if rows else ''
    rest = table('The other classes', head, rows[SHOWN_CLASSES:], (1, 2))
    return (
        table(f'The {SHOWN_CLASSES} classes of the lowest top-1, of {len(rows)}', head, rows[:SHOWN_CLASSES], (1, 2))
        + f'<details><summary>The other {len(rows) - SHOWN_CLASSES} classes</summary>{rest}</details>'
    )


def show_confusions(predictions: Predictions) -> str:
    """The confusion matrix where it can be read, and the classes taken for one another most often."""
    if not len(predictions.targets):
        return ''
    pairs = predictions.confusions()
    classes = predictions.classes
    totals = np.bincount(predictions.targets, minlength=len(classes))
    matrix = show_matrix(predictions) if len(classes) <= MATRIX_CLASSES else ''
    if not pairs:
        return matrix + '<p>No image was taken for another class.</p>'
    rows = [
        [text(classes[true]), text(classes[said]), f'{count} ({100 * count / totals[true]:.1f} %)']
        for true, said, count in pairs[:CONFUSED_PAIRS]
    ]
    more = f', of {len(pairs)} pairs' if len(pairs) > CONFUSED_PAIRS else ''
    head = ['images of', 'taken for', 'so many']
    most = table(f'Classes taken for one another most often{more}', head, rows, (2,))
    return f'<div class="side">{matrix}{most}</div>'


def show_matrix(predictions: Predictions) -> str:
    """Every true class against every predicted one."""
    classes, size = predictions.classes, len(predictions.classes)
    counts = np.bincount(predictions.targets * size + predictions.predicted, minlength=size * size).reshape(size, size)
    totals = counts.sum(1, keepdims=True).clip(min=1)
    heads = ''.join(
        f'<th scope="col" class="turned" title="{text(name)}"><span>{text(name)}</span></th>' for name in classes
    )
    rows = []
    for true, name in enumerate(classes):
        cells = []
        for said in range(size):
            strength = 0.75 * counts[true, said] / totals[true, 0]
            style = f' style="background: rgba(var(--heat), {strength:.2f})"' if counts[true, said] else ''
            own = ' class="own"' if said == true else ''
            cells.append(f'<td{own}{style}>{counts[true, said] or "·"}</td>')
        rows.append(f'<tr><th scope="row" title="{text(name)}"><span>{text(name)}</span></th>{"".join(cells)}</tr>')
    caption = 'Images by true class (rows) and predicted class (columns)'
    return scrolling(
        caption,
        f'<table class="confusion"><caption>{caption}</caption><thead><tr><td></td>{heads}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table>',
    )


def show_worst(predictions: Predictions, source: Source) -> str:
    places = predictions.worst(EXAMPLES)
    if not places:
        return '<p>Every image was told right.</p>' if len(predictions.targets) else ''
    return '<p class="soft">Wrong answers that give the true class the least probability.</p>' + pictures(
        places, predictions, source
    )


def show_best(predictions: Predictions, source: Source) -> str:
    places = predictions.best(EXAMPLES)
    if not places:
        return ''
    return '<p class="soft">The surest right answers, of as many classes as possible.</p>' + pictures(
        places, predictions, source
    )


def pictures(places: list[int], predictions: Predictions, source: Source) -> str:
    """Thumbnails with what is true and what was said."""
    items = []
    for place in places:
        index, target, said = (
            int(of[place]) for of in (predictions.indices, predictions.targets, predictions.predicted)
        )
        true, name = text(predictions.classes[target]), text(source.name(index))
        verdict = f'<span class="right">✓ {true}</span>, {100 * predictions.probability[place]:.1f} %'
        if said != target:
            verdict = (
                f'<span class="wrong">✗ {text(predictions.classes[said])}</span>, '
                f'{100 * predictions.probability[place]:.1f} %</p>'
                f'<p>in truth {true}, {100 * predictions.true_probability[place]:.1f} %'
            )
        items.append(f'<li>{thumbnail(source, index, true)}<p>{verdict}</p><p class="soft">{name}</p></li>')
    return f'<ul class="pictures">{"".join(items)}</ul>'


def thumbnail(source: Source, index: int, described: str) -> str:
    """A small picture inside the page; what has become unreadable since leaves its place."""
    try:
        picture = source.read(index)
    except Exception:  # decoders raise errors of every kind on broken files
        return '<div class="lost">cannot be read</div>'
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, 'JPEG', quality=80)
    encoded = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{encoded}" alt="an image of {described}">'


def show_origin(facts: dict[str, Any], predictions: Predictions) -> str:
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
