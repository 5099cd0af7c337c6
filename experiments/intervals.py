"""How sure a difference is: paired over seeds, with its 95 % interval by Student's law."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

Seed = TypeVar('Seed', str, int)

# Of Student's law, two-sided 95 %, for 2, 3, ... 10 seeds.
STUDENT_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
MOST_SEEDS = len(STUDENT_T) + 1


@dataclass(frozen=True)
class Difference:
    """How far one method is above another with the same seeds."""

    mean: float
    half_width: float | None
    """Of the 95 % interval; None for one seed, which tells none."""

    def __str__(self) -> str:
        return f'{self.mean:+.2f}' + ('' if self.half_width is None else f' ± {self.half_width:.2f}')

    @property
    def is_clear(self) -> bool:
        """Whether the interval lies wholly on one side of zero."""
        return self.half_width is not None and abs(self.mean) > self.half_width


def difference(by_seed: Mapping[Seed, float], control: Mapping[Seed, float]) -> Difference | None:
    """Compare over the seeds that both have.

    Args:
        by_seed: Results of a method.
        control: Of what it is compared with.

    Returns:
        The mean difference with its interval; None without a common seed.

    Example:
        >>> print(difference({0: 2.0, 1: 4.0, 2: 6.0}, {0: 1.0, 1: 2.0, 2: 3.0}))
        +2.00 ± 2.48
    """
    differences = [value - control[seed] for seed, value in by_seed.items() if seed in control]
    if not differences:
        return None
    half_width = None
    if len(differences) > 1:
        half_width = STUDENT_T[len(differences) - 2] * statistics.stdev(differences) / len(differences) ** 0.5
    return Difference(statistics.mean(differences), half_width)
