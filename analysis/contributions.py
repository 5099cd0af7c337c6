"""What each unit adds to the logits, exactly: the classifier is linear, so a logit is a sum over the units it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .activations import Activations


@dataclass(frozen=True)
class Contributions:
    """Of every unit that the classifier reads, block after block; each has shape (units,)."""

    to_true: Tensor
    """Mean over the images of what the unit adds to the logit of the image's own class. With the bias these sum to the
    mean logit of the own class."""
    size: Tensor
    """Mean over images and classes of the absolute value of what the unit adds to a class's logit."""
    per_class: Tensor
    """Shape (classes, units): mean over a class's images of what the unit adds to the logit of that class; not a number
    for classes without images."""
    is_dead: Tensor
    """Whether the unit says the same of every image, as a unit does that its nonlinearity always cuts off."""


class ContributionTally:
    """Adds up contributions over any number of images, in memory that does not depend on how many there are.

    Args:
        classifier: A linear layer.
    """

    def __init__(self, classifier: nn.Linear):
        self.weight = classifier.weight.detach().double()
        options: Any = dict(dtype=torch.float64, device=self.weight.device)
        self.sums = torch.zeros(self.weight.shape, **options)
        self.sizes = torch.zeros(self.weight.shape[1], **options)
        self.counts = torch.zeros(self.weight.shape[0], **options)
        self.low = torch.full((self.weight.shape[1],), float('inf'), **options)
        self.high = -self.low

    def add(self, seen: Activations, targets: Tensor) -> None:
        """Add a batch."""
        read, values = seen.read.double(), torch.cat(seen.blocks, 1).double()
        self.sums.index_add_(0, targets, read)
        self.counts += torch.bincount(targets, minlength=len(self.counts))
        self.sizes += read.abs().sum(0)
        self.low = torch.minimum(self.low, values.amin(0))
        self.high = torch.maximum(self.high, values.amax(0))

    def read(self) -> Contributions:
        """Average over the images so far.

        Raises:
            ValueError: There was none.
        """
        count = self.counts.sum()
        if not count:
            raise ValueError('no image could be read, so nothing is known of the units: give others')
        given = self.weight * self.sums
        return Contributions(
            to_true=(given.sum(0) / count).cpu(),
            size=(self.sizes / count * self.weight.abs().mean(0)).cpu(),
            per_class=(given / self.counts[:, None]).cpu(),
            is_dead=(self.low == self.high).cpu(),
        )
