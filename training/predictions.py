"""What a network says of each image, kept to be looked at: accuracies, confusions, examples, predictions.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from .blocks import Block, describe_blocks
from .data import UNREADABLE, Normalize
from .measures import TOP1, Measure
from .metrics import split_output
from .networks import BlockAnswers
from .sources import Source

if TYPE_CHECKING:
    from .label_predictions import LabelPredictions
    from .tasks import Task


@dataclass(frozen=True)
class Predictions:
    """Answers for the readable images of a split, in the order of the split; every array has one entry an image."""

    classes: list[str]
    """Name of each output of the network."""
    indices: np.ndarray
    targets: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray
    """Of the predicted class."""
    true_probability: np.ndarray
    """Of the image's own class."""
    loss: np.ndarray
    is_in_top5: np.ndarray
    blocks: list[tuple[Block, np.ndarray]]
    """Each block of a network of several, and the class that it predicts alone."""
    unreadable: np.ndarray
    """Indices of images left out because they could not be read."""

    measure: ClassVar[Measure] = TOP1

    @classmethod
    def of_answers(cls, whole: Tensor, real: Tensor, classes: list[str], blocks: list[Block]) -> Predictions:
        """Put together what `answer` kept of all images.

        Args:
            whole, real: As there.
            classes: Name of each output.
            blocks: Those that answered alone.
        """
        numbers, shares = whole.numpy(), real.numpy()
        is_known = numbers[:, 1] != UNREADABLE
        indices, targets, predicted, in_top5, *alone = numbers[is_known].T
        return cls(
            classes=classes,
            indices=indices,
            targets=targets,
            predicted=predicted,
            probability=shares[is_known, 0],
            true_probability=shares[is_known, 1],
            loss=shares[is_known, 2],
            is_in_top5=in_top5.astype(bool),
            blocks=list(zip(blocks, alone, strict=True)),
            unreadable=numbers[~is_known, 0],
        )

    @property
    def is_right(self) -> np.ndarray:
        return self.predicted == self.targets

    def block_results(self) -> list[tuple[Block, float]]:
        """List each block and the top-1 of its own answers, in percent."""
        return [(block, 100 * float((predicted == self.targets).mean())) for block, predicted in self.blocks]

    def per_class(self) -> list[tuple[int, int, float]]:
        """List each class that has images: its number, how many images, top-1 in percent."""
        counts = np.bincount(self.targets, minlength=len(self.classes))
        hits = np.bincount(self.targets[self.is_right], minlength=len(self.classes))
        return [(int(i), int(counts[i]), 100 * float(hits[i] / counts[i])) for i in np.flatnonzero(counts)]

    def metrics(self) -> dict[str, Any]:
        """Average: top1, top5 (None below five outputs) and the mean of the classes' top1 in percent, and the loss."""
        if not len(self.targets):
            return {'top1': None, 'top5': None, 'mean_class_top1': None, 'loss': None, 'images': 0}
        return {
            'top1': 100 * int(self.is_right.sum()) / len(self.targets),
            'top5': 100 * int(self.is_in_top5.sum()) / len(self.targets) if len(self.classes) >= 5 else None,
            'mean_class_top1': float(np.mean([top1 for _, _, top1 in self.per_class()])),
            'loss': float(self.loss.mean()),
            'images': len(self.targets),
        }

    def confusions(self) -> list[tuple[int, int, int]]:
        """List the classes taken for one another, most often first: true class, predicted class, how many images."""
        wrong = ~self.is_right
        pairs = self.targets[wrong] * len(self.classes) + self.predicted[wrong]
        found, counts = np.unique(pairs, return_counts=True)
        order = np.argsort(-counts, kind='stable')
        return [(*divmod(int(found[i]), len(self.classes)), int(counts[i])) for i in order]

    def worst(self, count: int) -> list[int]:
        """Choose the wrong answers that give the true class least, as places in the arrays."""
        return [int(i) for i in np.argsort(self.true_probability, kind='stable') if not self.is_right[i]][:count]

    def best(self, count: int) -> list[int]:
        """Choose the surest right answers, of as many classes as there are before a second of any."""
        seen = np.zeros(len(self.classes), dtype=int)
        ranked: list[tuple[int, int, int]] = []
        for place in np.argsort(-self.probability, kind='stable'):
            if self.is_right[place]:
                ranked.append((int(seen[self.targets[place]]), len(ranked), int(place)))
                seen[self.targets[place]] += 1
        return [place for _, _, place in sorted(ranked)[:count]]

    def to_csv(self, source: Source) -> str:
        """Write one line an image: file, target, predicted, probability."""
        table = io.StringIO()
        writer = csv.writer(table)
        writer.writerow(('file', 'target', 'predicted', 'probability'))
        for index, target, predicted, probability in zip(
            self.indices.tolist(),
            self.targets.tolist(),
            self.predicted.tolist(),
            self.probability.tolist(),
            strict=True,
        ):
            names = (source.name(index), self.classes[target], self.classes[predicted])
            writer.writerow((*map(printable, names), f'{probability:.4f}'))
        return table.getvalue()


def printable(name: str) -> str:
    """Write a name so that it can be encoded: file names may hold bytes that are no text."""
    return name.encode('utf-8', 'backslashreplace').decode()


def name_outputs(classes: Sequence[str], outputs: int) -> list[str]:
    """Name every output of a classifier that may have more than there are classes."""
    return [*classes, *(f'output {number}' for number in range(len(classes), outputs))]


@torch.no_grad()
def predict(
    accelerator: Accelerator,
    network: Any,
    loader: DataLoader,
    classes: Sequence[str],
    normalize: Normalize,
    task: Task,
) -> Predictions | LabelPredictions:
    """Ask a network about every image of a split; every process calls this, and each gets all answers.

    Args:
        accelerator: Joins the processes; the precision is its.
        network: As timm made it, on the accelerator's device.
        loader: Gives images, targets and indices, shared among the processes.
        classes: Their names.
        normalize: Makes what the network reads of pixels.
        task: Says what is kept of the answers.
    """
    network.eval()
    blocks = describe_blocks(network)
    model = BlockAnswers(network) if len(blocks) > 1 else network
    # They stay on the device until the end, so that no batch waits for another.
    kept: list[tuple[Tensor, ...]] = []
    for pixels, targets, indices in loader:
        with accelerator.autocast():
            output = model(normalize(pixels))
        kept.append(accelerator.gather_for_metrics(task.answer(*split_output(output), targets, indices)))
    answers = [torch.cat(parts).cpu() for parts in zip(*kept, strict=True)]
    order = answers[0][:, 0].argsort(stable=True)
    names = name_outputs(classes, network.num_classes)
    return task.predictions([part[order] for part in answers], names, blocks if len(blocks) > 1 else [])


def answer(logits: Tensor, block_logits: list[Tensor], targets: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Reduce a batch's logits to what is kept.

    Returns:
        Whole numbers of shape (N, 4 + blocks): index, target, predicted class, whether the target is among the first
        five, what each block predicts; and real ones of shape (N, 3): probability of the predicted and of the true
        class, loss.
    """
    logits = logits.float()
    first = logits.topk(min(5, logits.shape[1]), dim=1).indices
    probabilities = logits.softmax(1)
    known = targets.clamp(min=0)
    whole = [indices, targets, first[:, 0], first.eq(targets[:, None]).any(1), *(b.argmax(1) for b in block_logits)]
    real = [
        probabilities.gather(1, first[:, :1])[:, 0],
        probabilities.gather(1, known[:, None])[:, 0],
        F.cross_entropy(logits, known, reduction='none'),
    ]
    return torch.stack([number.long() for number in whole], 1), torch.stack(real, 1)
