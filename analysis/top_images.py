"""The images that most activate each unit, of all units at once, in memory that does not depend on how many images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Selectivity:
    """Whether a unit's images are of one class; each has shape (units,)."""

    share: Tensor
    """Part of the unit's images that its commonest class has; 0 for a unit without images."""
    commonest: Tensor
    """That class; of several as common, the lowest number."""


class TopImages:
    """A running list of each unit's images, those of the highest values first.

    Of equal values the image that came first stands first, so the list depends on nothing but the order of the images.

    Args:
        units: How many.
        count: Images to keep of each.
        device: Where values are.
    """

    def __init__(self, units: int, count: int, device: torch.device | None = None):
        self.values = torch.full((units, count), -torch.inf, device=device)
        self.indices = torch.full((units, count), -1, dtype=torch.int64, device=device)
        """-1 where there were fewer images than places."""
        self.targets = torch.full((units, count), -1, dtype=torch.int64, device=device)

    def add(self, values: Tensor, indices: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            values: What the units say, shape (N, units).
            indices: Of the images, shape (N,).
            targets: Their classes, shape (N,).
        """
        count = self.values.shape[1]
        joined = torch.cat([self.values, values.T], 1)
        order = joined.sort(dim=1, descending=True, stable=True).indices[:, :count]
        self.values = joined.gather(1, order)
        self.indices = _extend(self.indices, indices).gather(1, order)
        self.targets = _extend(self.targets, targets).gather(1, order)

    def selectivity(self, classes: int) -> Selectivity:
        """Tell what share of each unit's images belongs to one class."""
        counts = torch.zeros(len(self.targets), classes + 1, dtype=torch.int64, device=self.targets.device)
        counts.scatter_add_(1, self.targets + 1, torch.ones_like(self.targets))  # column 0 takes the empty places
        most, commonest = counts[:, 1:].max(1)
        known = counts[:, 1:].sum(1).clamp(min=1)
        return Selectivity((most / known).cpu(), commonest.cpu())

    def of(self, unit: int) -> list[tuple[int, int, float]]:
        """List a unit's images: index, class, value."""
        rows = zip(self.indices[unit].tolist(), self.targets[unit].tolist(), self.values[unit].tolist(), strict=True)
        return [row for row in rows if row[0] >= 0]


def _extend(kept: Tensor, batch: Tensor) -> Tensor:
    """Every unit's kept numbers, and those of a batch that is the same for all units."""
    return torch.cat([kept, batch.to(kept.device).expand(len(kept), -1)], 1)


def chance(targets: Sequence[int], count: int, classes: int, seed: int = 0, draws: int = 2000) -> float:
    """The mean selectivity of units that do not see what an image shows: of `count` images drawn by lot.

    Args:
        targets: Classes of all images.
        count: Images of a unit.
        classes: How many there are.
        seed: Of the lots.
        draws: Units to draw.
    """
    all_targets = torch.as_tensor(targets)
    generator = torch.Generator().manual_seed(seed)
    picked = all_targets[torch.randint(len(all_targets), (draws, count), generator=generator)]
    counts = torch.zeros(draws, classes, dtype=torch.int64).scatter_add_(1, picked, torch.ones_like(picked))
    return (counts.max(1).values / count).mean().item()
