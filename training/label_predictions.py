"""What a network says of each image, where an image has any number of labels."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from .blocks import Block
from .data import UNREADABLE
from .measures import MAP, Measure
from .multi_label import average_precisions, image_losses, mean_average_precision
from .predictions import printable
from .sources import Source

# A label is said of an image from this probability on.
THRESHOLD = 0.5


@dataclass(frozen=True)
class LabelCounts:
    """How often one label is there and is said."""

    number: int
    images: int
    """That have it."""
    average_precision: float
    """In percent."""
    hits: int
    """Images that have it and of which it is said."""
    said: int
    """Images of which it is said, rightly or not."""


@dataclass(frozen=True)
class LabelPredictions:
    """Answers for the readable images of a split, in the order of the split."""

    classes: list[str]
    """Name of each output of the network."""
    indices: np.ndarray
    is_true: np.ndarray
    """Which images have which label, shape (N, classes)."""
    probability: np.ndarray
    """Of each label, shape (N, classes)."""
    loss: np.ndarray
    """Binary cross-entropy, the mean over the classes, shape (N,)."""
    average_precision: np.ndarray
    """Of each class in percent, shape (classes,); not a number where no image has it."""
    blocks: list[tuple[Block, float]]
    """Each block of a network of several, and its mean average precision when it answers alone."""
    unreadable: np.ndarray
    """Indices of images left out because they could not be read."""

    measure: ClassVar[Measure] = MAP

    @classmethod
    def of_logits(
        cls,
        indices: np.ndarray,
        targets: Tensor,
        logits: Tensor,
        classes: list[str],
        blocks: Sequence[tuple[Block, Tensor]],
    ) -> LabelPredictions:
        """Measure a network's answers.

        Args:
            indices: Of the images, shape (N,).
            targets: 1, 0 or `UNREADABLE`, shape (N, classes).
            logits: Of the whole network, shape (N, classes).
            classes: Their names.
            blocks: Each block and its own logits.
        """
        is_known = (targets != UNREADABLE).all(1)
        logits, is_true = logits[is_known], targets[is_known] == 1
        return cls(
            classes=classes,
            indices=indices[is_known.numpy()],
            is_true=is_true.numpy(),
            probability=logits.sigmoid().numpy(),
            loss=image_losses(logits, is_true.float()).numpy(),
            # Of logits: probabilities near 0 and 1 are rounded to the same number.
            average_precision=average_precisions(logits, is_true),
            blocks=[
                (block, mean_average_precision(average_precisions(alone[is_known], is_true))) for block, alone in blocks
            ],
            unreadable=indices[~is_known.numpy()],
        )

    @property
    def is_said(self) -> np.ndarray:
        """Which labels are said of which images, shape (N, classes)."""
        return self.probability >= THRESHOLD

    @property
    def is_right(self) -> np.ndarray:
        """Of which images every label is told right, shape (N,)."""
        return (self.is_said == self.is_true).all(1)

    def block_results(self) -> list[tuple[Block, float]]:
        """List each block and the mean average precision of its own answers, in percent."""
        return self.blocks

    def per_class(self) -> list[LabelCounts]:
        """List each class that has images or is said of one."""
        images, said = self.is_true.sum(0), self.is_said.sum(0)
        hits = (self.is_true & self.is_said).sum(0)
        return [
            LabelCounts(i, int(images[i]), float(self.average_precision[i]), int(hits[i]), int(said[i]))
            for i in np.flatnonzero(images + said).tolist()
        ]

    def metrics(self) -> dict[str, Any]:
        """Average: map in percent, over the classes that have images, and the loss."""
        if not len(self.is_true):
            return {'map': None, 'loss': None, 'images': 0}
        return {
            'map': mean_average_precision(self.average_precision),
            'loss': float(self.loss.mean()),
            'images': len(self.is_true),
        }

    def confusions(self) -> list[tuple[int, int, int]]:
        """List a label that is missed and one that is wrongly said of the same image, most often first.

        Returns:
            Missed label, label said, how many images.
        """
        missed, invented = self.is_true & ~self.is_said, self.is_said & ~self.is_true
        rows, columns = np.flatnonzero(missed.any(0)), np.flatnonzero(invented.any(0))
        counts = missed[:, rows].T.astype(np.float32) @ invented[:, columns].astype(np.float32)
        found = [
            (int(rows[row]), int(columns[column]), int(counts[row, column])) for row, column in np.argwhere(counts > 0)
        ]
        return sorted(found, key=lambda pair: -pair[2])

    def worst(self, count: int) -> list[int]:
        """Choose the images of the highest loss of which not every label is told right, as places in the arrays."""
        return [int(i) for i in np.argsort(-self.loss, kind='stable') if not self.is_right[i]][:count]

    def best(self, count: int) -> list[int]:
        """Choose the surest right answers with a label, of as many sets of labels as there are before a second."""
        seen: dict[bytes, int] = {}
        ranked: list[tuple[int, int, int]] = []
        is_shown = self.is_right & self.is_true.any(1)
        for place in np.argsort(self.loss, kind='stable').tolist():
            if is_shown[place]:
                labels = self.is_true[place].tobytes()
                seen[labels] = seen.get(labels, 0) + 1
                ranked.append((seen[labels], len(ranked), place))
        return [place for _, _, place in sorted(ranked)[:count]]

    def names(self, is_chosen: np.ndarray) -> list[str]:
        """List the chosen labels of one image."""
        return [self.classes[number] for number in np.flatnonzero(is_chosen)]

    def to_csv(self, source: Source) -> str:
        """Write one line an image: file, its labels, those said of it, and the probability of each."""
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(('file', 'labels', 'predicted', *(f'probability {printable(name)}' for name in self.classes)))
        for index, is_true, is_said, probability in zip(
            self.indices.tolist(), self.is_true, self.is_said, self.probability, strict=True
        ):
            told = (as_cell(self.names(is_true)), as_cell(self.names(is_said)))
            writer.writerow((printable(source.name(index)), *told, *(f'{value:.4f}' for value in probability)))
        return table.getvalue()


def as_cell(labels: Iterable[str]) -> str:
    """Write labels into one cell, in the form of a line of a list of labels.

    Example:
        >>> as_cell(['sea', 'sky, cloudy'])
        'sea,"sky, cloudy"'
    """
    cell = io.StringIO()
    csv.writer(cell, lineterminator='').writerow([printable(label) for label in labels])
    return cell.getvalue()
