"""What an image is asked about: which one class it shows, or which of several labels. Chosen once for a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from timm.data.target_transforms import MultiLabelTarget
from torch import Tensor

from .augmentation import greatest_part
from .blocks import Block
from .data import UNREADABLE, is_readable
from .label_predictions import LabelPredictions
from .metrics import MeanLoss, Tally, cross_entropy
from .multi_label import AveragePrecisions, binary_cross_entropy
from .predictions import Predictions, answer
from .sources import Target


class Task(Protocol):
    """What targets are, what training lowers, what is measured, and what is kept of a network's answers."""

    multi_label: bool
    """timm's word."""
    measured: tuple[str, ...]
    """What an evaluation gives, by the names of its columns."""
    results: tuple[str, ...]
    """Those of them that the result of a run has."""
    blank: Target
    """A target that any data set may have."""
    unreadable: int | Tensor
    """Stands in the place of an encoded target."""

    def encode(self, target: Target) -> int | Tensor:
        """Make what goes into batches of what a source tells of an image."""

    def loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Average the loss over the readable images; 0 where there are none. Targets may be mixed ones."""

    def training_tally(self, device: torch.device) -> MeanLoss:
        """Make what adds up a training epoch."""

    def evaluation_tally(self, device: torch.device) -> MeanLoss:
        """Make what adds up an evaluation; it is given all images, each once."""

    def before_mixing(self, targets: Tensor, further: int) -> Tensor:
        """Make targets that timm mixes, with one class more, numbered `further`, for unreadable images."""

    def after_mixing(self, parts: Tensor) -> Tensor:
        """Take that class out of mixed targets, shape (N, classes + 1)."""

    def countable(self, targets: Tensor) -> Tensor:
        """Make of perhaps mixed targets those that the training tally counts."""

    def answer(self, logits: Tensor, blocks: list[Tensor], targets: Tensor, indices: Tensor) -> tuple[Tensor, ...]:
        """Reduce a batch's logits to what is kept of them: tensors of N rows, the first begins with the indices."""

    def predictions(
        self, answers: Sequence[Tensor], classes: list[str], blocks: list[Block]
    ) -> Predictions | LabelPredictions:
        """Put together the answers about all images.

        Args:
            answers: What `answer` gave, of all images, in the order of their indices.
            classes: Name of each output of the network.
            blocks: Those that answered alone.
        """


class SingleLabel:
    """An image shows one class: cross-entropy, top-1 and top-5."""

    multi_label = False
    measured: tuple[str, ...] = ('loss', 'top1', 'top5')
    results: tuple[str, ...] = ('top1', 'top5', 'loss')
    blank: Target = 0
    unreadable: int | Tensor = UNREADABLE

    def encode(self, target: Target) -> int | Tensor:
        assert isinstance(target, int), 'sources of several labels an image are for the other task'
        return target

    def loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        return cross_entropy(logits, targets, smoothing)

    def training_tally(self, device: torch.device) -> MeanLoss:
        return Tally(device)

    def evaluation_tally(self, device: torch.device) -> MeanLoss:
        return Tally(device)

    def before_mixing(self, targets: Tensor, further: int) -> Tensor:
        return torch.where(targets == UNREADABLE, further, targets)

    def after_mixing(self, parts: Tensor) -> Tensor:
        """A row of zeros stands for an image with an unreadable one in it."""
        return parts[:, :-1] * (parts[:, -1:] == 0)

    def countable(self, targets: Tensor) -> Tensor:
        return greatest_part(targets)

    def answer(self, logits: Tensor, blocks: list[Tensor], targets: Tensor, indices: Tensor) -> tuple[Tensor, ...]:
        return answer(logits, blocks, targets, indices)

    def predictions(self, answers: Sequence[Tensor], classes: list[str], blocks: list[Block]) -> Predictions:
        whole, real = answers
        return Predictions.of_answers(whole, real, classes, blocks)


class MultiLabel:
    """An image shows any number of classes, each by itself: binary cross-entropy, mean average precision.

    In batches a target has a 1 for each label that an image has and a 0 for the others, shape (N, outputs).

    Args:
        outputs: Of the network.
    """

    multi_label = True
    measured: tuple[str, ...] = ('loss', 'map')
    results: tuple[str, ...] = ('map', 'loss')
    blank: Target = ()

    def __init__(self, outputs: int):
        self.to_dense = MultiLabelTarget(outputs)
        self.unreadable: int | Tensor = torch.full((outputs,), float(UNREADABLE))

    def encode(self, target: Target) -> int | Tensor:
        return self.to_dense(target)

    def loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        return binary_cross_entropy(logits, targets, smoothing)

    def training_tally(self, device: torch.device) -> MeanLoss:
        return MeanLoss(device)

    def evaluation_tally(self, device: torch.device) -> MeanLoss:
        return AveragePrecisions(device)

    def before_mixing(self, targets: Tensor, further: int) -> Tensor:
        return torch.cat([targets.clamp(min=0), (~is_readable(targets))[:, None].to(targets.dtype)], 1)

    def after_mixing(self, parts: Tensor) -> Tensor:
        """An image with an unreadable one in it is unreadable too."""
        return torch.where(parts[:, -1:] == 0, parts[:, :-1], UNREADABLE)

    def countable(self, targets: Tensor) -> Tensor:
        return targets

    def answer(self, logits: Tensor, blocks: list[Tensor], targets: Tensor, indices: Tensor) -> tuple[Tensor, ...]:
        return indices[:, None], targets.to(torch.int8), logits.float(), *(block.float() for block in blocks)

    def predictions(self, answers: Sequence[Tensor], classes: list[str], blocks: list[Block]) -> LabelPredictions:
        indices, targets, logits, *alone = answers
        blocks_alone = list(zip(blocks, alone, strict=True))
        return LabelPredictions.of_logits(indices[:, 0].numpy(), targets, logits, classes, blocks_alone)


def choose_task(multi_label: bool, outputs: int) -> Task:
    """Choose what images are asked about.

    Args:
        multi_label: Whether an image shows any number of classes.
        outputs: Of the network.
    """
    return MultiLabel(outputs) if multi_label else SingleLabel()
