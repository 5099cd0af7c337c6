"""What is random about whole batches, on the device: mixup, cutmix and erasing, by timm's own functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from .config import Config
from .data import UNREADABLE, seeded

if TYPE_CHECKING:
    from .tasks import Task

# Last part of the key of a batch's randomness, so that it is none of the keys of images. numpy takes keys that differ
# only in zeros at their end for the same, so it is not zero.
OF_BATCHES = 1


class BatchAugmentation:
    """Mix and erase normalised images, as the configuration says; by default it leaves them alone.

    What is random depends on seed, epoch, batch and process only, so that a run that goes on inside an epoch draws what
    it would have drawn had it never stopped. All of it is drawn on the CPU, whatever the device.

    Args:
        config: Says what is done.
        num_classes: Outputs of the network.
        process: Index of this process.
        task: Says what targets are.
    """

    def __init__(self, config: Config, num_classes: int, process: int, task: Task):
        self.config, self.process, self.task = config, process, task
        self.mixup = self.erasing = None
        if config.mixup or config.cutmix:
            self.mixup = Mixup(
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                prob=config.mixup_prob,
                switch_prob=config.mixup_switch_prob,
                mode=config.mixup_mode,
                label_smoothing=0.0,  # the loss smooths mixed targets as it does others
                num_classes=num_classes + 1,  # the last stands for unreadable images
                multi_label=task.multi_label,
            )
        if config.reprob:
            self.erasing = RandomErasing(config.reprob, mode=config.remode, max_count=config.recount, device='cpu')

    def __call__(
        self, inputs: tuple[Tensor, ...], targets: Tensor, epoch: int, batch: int
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Augment one batch, in place.

        Args:
            inputs: What the network reads: images (N, 3, H, W), or else what nothing is done to.
            targets: As the task encodes them.
            epoch: Epochs finished.
            batch: Batches that this process has finished in the epoch.

        Returns:
            The inputs, and their targets: as they were, or under mixup and cutmix the part that each class has, shape
            (N, num_classes). The task says then how an image with an unreadable one in it is marked.
        """
        off = self.config.mixup_off_epoch
        is_mixed = self.mixup is not None and not (off and epoch >= off)
        if not is_mixed and self.erasing is None:
            return inputs, targets
        [images] = inputs
        with seeded(self.config.seed, epoch, batch, self.process, OF_BATCHES):
            if is_mixed:
                assert self.mixup is not None
                images, parts = self.mixup(images, self.task.before_mixing(targets, self.mixup.num_classes - 1))
                targets = self.task.after_mixing(parts)
            if self.erasing is not None:
                images = self.erasing(images)
        return (images,), targets


def greatest_part(targets: Tensor) -> Tensor:
    """Name one class for each image: its own, or that of the greatest part of a mixed one.

    Args:
        targets: Class indices (N,), or the part that each class has (N, num_classes).

    Returns:
        Class indices or `UNREADABLE`, shape (N,).
    """
    if targets.ndim == 1:
        return targets
    return torch.where(targets.sum(1) > 0, targets.argmax(1), UNREADABLE)
