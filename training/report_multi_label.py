"""What report.html says of answers where each image shows any number of classes."""

from __future__ import annotations

import numpy as np

from .label_predictions import THRESHOLD, LabelPredictions
from .report_parts import EXAMPLES, SHOWN_CLASSES, Entry, bar, gallery, percent, table, text, unfolding
from .sources import Source

# Lines of each table of mistakes.
MISTAKES = 12
# Labels told of a picture; an early network may say all of a thousand.
TOLD_LABELS = 5


def headline(predictions: LabelPredictions) -> list[Entry]:
    """The numbers that one looks for first."""
    metrics = predictions.metrics()
    shares = predictions.is_true.mean(0)
    hits = int((predictions.is_true & predictions.is_said).sum())
    answers = int(predictions.is_true.sum() + predictions.is_said.sum())
    measured = int((shares > 0).sum())
    return [
        ('mAP', percent(metrics['map']), f'mean of {measured} classes, {metrics["images"]} images'),
        ('By chance', percent(100 * float(shares[shares > 0].mean())), 'about the mAP of random scores'),
        ('F1', percent(200 * hits / max(answers, 1)), f'over all labels, said from {100 * THRESHOLD:.0f} % on'),
        ('All labels right', percent(100 * float(predictions.is_right.mean())), 'images without a mistake'),
        ('Labels', f'{predictions.is_true.sum(1).mean():.2f}', 'an image, on average'),
        ('Binary cross-entropy', f'{metrics["loss"]:.4f}', 'validation'),
    ]


def sections(predictions: LabelPredictions, source: Source) -> dict[str, str]:
    """The parts of the page by their headings."""
    return {
        'Classes': show_classes(predictions),
        'Mistakes': show_mistakes(predictions),
        'Worst examples': show_worst(predictions, source),
        'Best examples': show_best(predictions, source),
    }


def show_classes(predictions: LabelPredictions) -> str:
    """Average precision of each class, the lowest first."""
    measured = [counts for counts in predictions.per_class() if counts.images]
    measured.sort(key=lambda counts: (counts.average_precision, predictions.classes[counts.number]))
    rows = [
        [
            text(predictions.classes[counts.number]),
            str(counts.images),
            bar(counts.average_precision),
            share(counts.hits, counts.images),
            share(counts.hits, counts.said),
        ]
        for counts in measured
    ]
    captions = (
        'Average precision of each class, the lowest first',
        f'The {SHOWN_CLASSES} classes of the lowest average precision, of {len(rows)}',
    )
    head = ['class', 'images', 'AP', 'recall', 'precision']
    shown = unfolding(captions, head, rows, (1, 2, 3, 4))
    return shown and shown + (
        '<p class="soft">AP, average precision: images are put in the order of their scores, and the precision is '
        'averaged over the places of those that have the label; no threshold is needed. Recall: the part of those that '
        f'gets {threshold()}. Precision: of the images that get it, the part that has the label. Classes that no image '
        'has are left out.</p>'
    )


def share(part: int, whole: int) -> str:
    """Write a share as a percentage; nothing of nothing."""
    return f'{100 * part / whole:.1f} %' if whole else '–'


def threshold() -> str:
    return f'{100 * THRESHOLD:.0f} % or more'


def show_mistakes(predictions: LabelPredictions) -> str:
    """The labels that are missed, those that are wrongly said, and those that come in the place of others."""
    if not len(predictions.indices):
        return ''
    classes, counts = predictions.classes, predictions.per_class()
    missed = sorted((c for c in counts if c.hits < c.images), key=lambda c: c.hits - c.images)
    invented = sorted((c for c in counts if c.hits < c.said), key=lambda c: c.hits - c.said)
    if not missed and not invented:
        return f'<p>Every label of every image got {threshold()}, and no other did.</p>'
    pairs = predictions.confusions()
    tables = [
        (
            'Labels missed most often',
            ['label', 'missed', 'of images'],
            [[text(classes[c.number]), str(c.images - c.hits), str(c.images)] for c in missed],
        ),
        (
            'Labels said most often where they are not',
            ['label', 'wrongly', 'of said'],
            [[text(classes[c.number]), str(c.said - c.hits), str(c.said)] for c in invented],
        ),
        (
            'Missed and wrongly said of the same image',
            ['missed', 'said', 'images'],
            [[text(classes[missing]), text(classes[said]), str(count)] for missing, said, count in pairs],
        ),
    ]
    shown = ''.join(
        table(f'{caption}{f", of {len(rows)}" if len(rows) > MISTAKES else ""}', head, rows[:MISTAKES], numeric)
        for (caption, head, rows), numeric in zip(tables, ((1, 2), (1, 2), (2,)), strict=True)
        if rows
    )
    return f'<div class="side">{shown}</div><p class="soft">A label is said of an image that gets {threshold()}.</p>'


def show_worst(predictions: LabelPredictions, source: Source) -> str:
    places = predictions.worst(EXAMPLES)
    if not places:
        return '<p>Every image was told right.</p>' if len(predictions.indices) else ''
    return (
        '<p class="soft">Images of the highest loss. ✗ wrongly said, – missed, ✓ right, each with its probability.</p>'
        + pictures(places, predictions, source)
    )


def show_best(predictions: LabelPredictions, source: Source) -> str:
    places = predictions.best(EXAMPLES)
    if not places:
        return ''
    return (
        '<p class="soft">The surest images of which every label was told right, of as many sets of labels as possible.'
        '</p>' + pictures(places, predictions, source)
    )


def pictures(places: list[int], predictions: LabelPredictions, source: Source) -> str:
    """Thumbnails with what is true and what was said."""
    items = []
    for place in places:
        true = ', '.join(text(name) for name in predictions.names(predictions.is_true[place])) or 'none of the classes'
        items.append((int(predictions.indices[place]), true, verdicts(predictions, place)))
    return gallery(items, source)


def verdicts(predictions: LabelPredictions, place: int) -> str:
    """What was said of one image: wrong labels first, then missed, then right ones; the surest mistakes first."""
    is_true, is_said, probability = (
        of[place] for of in (predictions.is_true, predictions.is_said, predictions.probability)
    )
    told = [
        (is_said & ~is_true, -probability, 'wrong', '✗'),
        (is_true & ~is_said, probability, 'wrong', '–'),
        (is_true & is_said, -probability, 'right', '✓'),
    ]
    lines = [
        f'<p><span class="{kind}">{mark} {text(predictions.classes[number])}</span>, {100 * probability[number]:.1f}'
        '\N{NO-BREAK SPACE}%</p>'
        for is_shown, order, kind, mark in told
        for number in sorted(np.flatnonzero(is_shown).tolist(), key=lambda number: float(order[number]))
    ]
    if not lines:
        return '<p><span class="right">✓</span> none of the classes</p>'
    more = len(lines) - TOLD_LABELS
    return ''.join(lines[:TOLD_LABELS]) + (f'<p>and {more} more</p>' if more > 0 else '')
