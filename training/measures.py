"""What is measured of a network, and what it is called in lines, columns and charts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# All but the loss are in percent.
WORDS = {
    'loss': 'loss',
    'top1': 'top-1',
    'top5': 'top-5',
    'mean_class_top1': 'mean of the classes',
    'map': 'mAP',
}


@dataclass(frozen=True)
class Measure:
    """What epochs are compared by, the higher the better, and the loss that goes with it."""

    name: str
    """Of its columns: train_NAME and val_NAME."""
    title: str
    loss: str

    @property
    def column(self) -> str:
        """The column by which the best epoch is chosen."""
        return f'val_{self.name}'


TOP1 = Measure('top1', 'Top-1', 'cross-entropy')
# timm's word too.
MAP = Measure('map', 'mAP', 'binary cross-entropy')


def measure_of(columns: Iterable[str]) -> Measure:
    """Tell what the epochs of a history are compared by, from the columns that it has."""
    return MAP if MAP.column in columns else TOP1


def phrase(values: Mapping[str, float | None], digits: int = 2) -> str:
    """Write measured values as one reads them, in their order; those that were not measured are left out.

    Args:
        values: By the names that `WORDS` has; others are left out.
        digits: Of a percentage; the loss has two more.

    Example:
        >>> phrase({'loss': 0.5, 'top1': 87.512, 'top5': None})
        'loss 0.5000, top-1 87.51 %'
    """
    told = ((name, value) for name, value in values.items() if name in WORDS and value is not None)
    return ', '.join(
        f'{WORDS[name]} {value:.{digits + 2}f}' if name == 'loss' else f'{WORDS[name]} {value:.{digits}f} %'
        for name, value in told
    )


def interval(share: float, count: int) -> tuple[float, float]:
    """Compute Wilson's 95 % interval of a share.

    Args:
        share: Of right answers, 0 to 1.
        count: Answers.

    Returns:
        Its ends in percent.

    Source:
        Probable inference, the law of succession, and statistical inference (Wilson, 1927).

    Example:
        >>> [round(end, 1) for end in interval(0.9, 100)]
        [82.6, 94.5]
    """
    z = 1.959964
    middle, denominator = share + z * z / (2 * count), 1 + z * z / count
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return 100 * (middle - half) / denominator, 100 * (middle + half) / denominator
