"""How far tensors moved: each against what it was, as a whole and unit by unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Below this a norm counts as none: there is nothing to be relative to.
NOTHING = 1e-12


@dataclass(frozen=True)
class Movement:
    """Of a tensor, or of one unit's part of it; all are None where they are not defined."""

    before: float
    """L2 norm of what it was."""
    after: float
    moved: float
    """L2 norm of the difference."""
    relative: float | None
    """`moved` as a part of `before`; None if that is nothing."""
    cosine: float | None
    """Of the angle between what it was and what it is; None if either is nothing."""


def movement(before: Tensor, after: Tensor) -> Movement:
    """Measure how far a tensor moved, in float64.

    Args:
        before, after: Of one shape.

    Example:
        >>> found = movement(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.0]) * 1.5)
        >>> found.relative, found.cosine
        (0.5, 1.0)
    """
    [found] = unit_movements(before.flatten()[None], after.flatten()[None])
    return found


def unit_movements(before: Tensor, after: Tensor) -> list[Movement]:
    """Measure each unit's movement: of its own row, the weights by which it reads.

    Args:
        before, after: Of one shape (units, ...).
    """
    was, now = (tensor.detach().cpu().double().flatten(1) for tensor in (before, after))
    norms = [torch.linalg.vector_norm(rows, dim=1).tolist() for rows in (was, now, now - was)]
    products = (was * now).sum(1).tolist()
    return [
        Movement(
            first,
            last,
            moved,
            moved / first if first > NOTHING else None,
            max(-1.0, min(1.0, product / (first * last))) if min(first, last) > NOTHING else None,
        )
        for first, last, moved, product in zip(*norms, products, strict=True)
    ]


@dataclass(frozen=True)
class NormMovement:
    """How far the statistics of a batch norm moved, over its channels."""

    channels: int
    mean_shift: float
    """Mean over channels of how far the running mean went, in standard deviations of before."""
    greatest_shift: float
    variance_ratio: float
    """Geometric mean over channels of the variance now, as a multiple of before."""
    spread_change: float
    """Mean over channels of by what factor the variance changed, up or down: 1 if it did not."""


def norm_movement(before: Mapping[str, Tensor], after: Mapping[str, Tensor], eps: float = 1e-5) -> NormMovement:
    """Measure a batch norm's statistics.

    Args:
        before, after: With running_mean and running_var, shape (channels,).
        eps: Added to variances, as the norm does; channels that never vary stay finite.

    Example:
        >>> before = {'running_mean': torch.zeros(2), 'running_var': torch.ones(2)}
        >>> after = {'running_mean': torch.tensor([1.0, -2.0]), 'running_var': torch.tensor([4.0, 0.25])}
        >>> found = norm_movement(before, after, eps=0.0)
        >>> found.mean_shift, found.greatest_shift, found.variance_ratio, found.spread_change
        (1.5, 2.0, 1.0, 4.0)
    """
    mean, last_mean = (state['running_mean'].detach().cpu().double() for state in (before, after))
    variance, last_variance = (state['running_var'].detach().cpu().double() + eps for state in (before, after))
    shifts = (last_mean - mean).abs() / variance.sqrt()
    logs = (last_variance / variance).log()
    return NormMovement(
        len(mean),
        shifts.mean().item(),
        shifts.max().item(),
        logs.mean().exp().item(),
        logs.abs().mean().exp().item(),
    )
