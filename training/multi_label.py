"""Loss and average precision where an image has any number of labels, by timm's own functions."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator
from timm.loss import BinaryCrossEntropy
from timm.task.evaluator import MultiLabelClassificationEvaluator
from torch import Tensor

from .data import is_readable
from .metrics import MeanLoss


def binary_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Average the binary cross-entropy over the classes, then over the readable images; 0 where there are none.

    Args:
        logits: Shape (N, classes).
        targets: 0 to 1 for each class, or `UNREADABLE` in a whole row, shape (N, classes).
        smoothing: Label smoothing: how far targets move towards 1/2, as in timm.
    """
    total = (image_losses(logits, targets, smoothing) * is_readable(targets)).sum()
    return total / is_readable(targets).sum().clamp(min=1)


def image_losses(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Average the binary cross-entropy over the classes; of each image, shape (N,)."""
    criterion = BinaryCrossEntropy(smoothing, reduction='none', smooth_dense=True)
    return criterion(logits.float(), targets.clamp(min=0).float()).mean(1)


def average_precisions(scores: Tensor, is_true: Tensor) -> np.ndarray:
    """Compute the average precision of each class, without interpolation; images of equal scores count as one step.

    timm's evaluator counts classes that no image has as 0; asked about one class at a time it says nothing of them.

    Args:
        scores: Shape (N, classes).
        is_true: Which images have which class, of that shape.

    Returns:
        Percent, shape (classes,); not a number for a class that no image has.
    """
    found = np.full(scores.shape[1], np.nan)
    columns = scores.float().T.contiguous()
    for number in is_true.any(0).nonzero().flatten().tolist():
        evaluator = MultiLabelClassificationEvaluator()
        evaluator.update(columns[number, :, None], is_true[:, number, None])
        found[number] = evaluator.compute()['map']
    return found


def mean_average_precision(precisions: np.ndarray) -> float:
    """Average over the classes that have images; not a number if none has."""
    measured = precisions[~np.isnan(precisions)]
    return float(measured.mean()) if len(measured) else float('nan')


class AveragePrecisions(MeanLoss):
    """Running sums of the loss, and the scores of all images, from which the mean average precision is computed.

    They stay on the device, 5 bytes for each image and class, until they are read.
    """

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.scores: list[Tensor] = []
        self.targets: list[Tensor] = []

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add one batch of images from all processes."""
        super().add(loss, logits, targets)
        self.scores.append(logits.detach())
        self.targets.append(targets.to(torch.int8))

    def read(self, accelerator: Accelerator | None = None) -> dict[str, float]:
        """Average: loss, and map in percent over the classes that a readable image has."""
        scores, targets = torch.cat(self.scores).cpu(), torch.cat(self.targets).cpu()
        is_known = is_readable(targets)
        found = average_precisions(scores[is_known], targets[is_known] == 1)
        return {**super().read(accelerator), 'map': mean_average_precision(found)}
