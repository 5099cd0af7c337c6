"""What report.html says of answers where each image shows one class."""

from __future__ import annotations

import numpy as np

from .measures import interval
from .predictions import Predictions
from .report_parts import EXAMPLES, SHOWN_CLASSES, Entry, bar, gallery, percent, scrolling, table, text, unfolding
from .sources import Source

# Up to so many classes the whole confusion matrix can be read; beyond it only the pairs that are confused most.
MATRIX_CLASSES = 20
CONFUSED_PAIRS = 12


def headline(predictions: Predictions) -> list[Entry]:
    """The numbers that one looks for first."""
    metrics = predictions.metrics()
    count = metrics['images']
    low, high = interval(metrics['top1'] / 100, count)
    largest = 100 * float(np.bincount(predictions.targets).max()) / count
    entries = [
        ('Top-1', percent(metrics['top1']), f'95 % interval {low:.1f} to {high:.1f}, {count} images'),
        ('Mean of the classes', percent(metrics['mean_class_top1']), 'every class counted alike'),
        ('Largest class', percent(largest), 'what always answering with it would reach'),
        ('Cross-entropy', f'{metrics["loss"]:.4f}', 'validation'),
    ]
    if metrics['top5'] is not None:
        entries.insert(1, ('Top-5', percent(metrics['top5']), 'true class among the first five'))
    return entries


def sections(predictions: Predictions, source: Source) -> dict[str, str]:
    """The parts of the page by their headings."""
    return {
        'Classes': show_classes(predictions),
        'Confusions': show_confusions(predictions),
        'Worst examples': show_worst(predictions, source),
        'Best examples': show_best(predictions, source),
    }


def show_classes(predictions: Predictions) -> str:
    """Accuracy of each class, the worst first."""
    found = sorted(predictions.per_class(), key=lambda item: (item[2], predictions.classes[item[0]]))
    rows = [[text(predictions.classes[number]), str(count), bar(top1)] for number, count, top1 in found]
    head = ['class', 'images', 'top-1']
    captions = (
        'Top-1 of each class, the lowest first',
        f'The {SHOWN_CLASSES} classes of the lowest top-1, of {len(rows)}',
    )
    return unfolding(captions, head, rows, (1, 2))


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
        true = text(predictions.classes[target])
        verdict = f'<p><span class="right">✓ {true}</span>, {100 * predictions.probability[place]:.1f} %</p>'
        if said != target:
            verdict = (
                f'<p><span class="wrong">✗ {text(predictions.classes[said])}</span>, '
                f'{100 * predictions.probability[place]:.1f} %</p>'
                f'<p>in truth {true}, {100 * predictions.true_probability[place]:.1f} %</p>'
            )
        items.append((index, true, verdict))
    return gallery(items, source)
