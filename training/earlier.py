"""Earlier tasks of a network that keeps their heads: what is recorded of them, and how much of them is forgotten."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .measures import WORDS


@dataclass(frozen=True)
class EarlierTask:
    """A task that a network learnt before, as run.json records it."""

    head: str
    """Name of its head."""
    measure: str = 'top1'
    """What it is measured by, in percent: top1 or map."""
    data: dict[str, Any] | None = None
    """The options that find its images; None where nobody recorded them."""
    input: dict[str, Any] | None = None
    """The input format that it was learnt with."""
    history: tuple[float | None, ...] = ()
    """What was measured right after it was learnt, and after each run since; None where it could not be. The last was
    measured before this run."""
    after: float | None = None
    """What was measured at the end of this run."""
    images: int | None = None
    """How many images measured it."""
    remark: str | None = None
    """Why it was not measured."""

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> EarlierTask:
        """Read what run.json says."""
        return cls(**{**given, 'history': tuple(given['history'])})

    def to_dict(self) -> dict[str, Any]:
        """Plain data for run.json."""
        return {**dataclasses.asdict(self), 'history': list(self.history)}

    @property
    def before(self) -> float | None:
        """What was measured before this run."""
        return self.history[-1] if self.history else None

    @property
    def change(self) -> float | None:
        """How much this run has changed it, in points."""
        return None if self.after is None or self.before is None else self.after - self.before

    @property
    def transfer(self) -> float | None:
        """How much all runs since it was learnt have changed it, in points."""
        first = self.history[0] if self.history else None
        return None if self.after is None or first is None else self.after - first

    @property
    def forgotten(self) -> float | None:
        """How far it is below the best that it ever was, in points; negative where it has become better."""
        known = [value for value in self.history if value is not None]
        return None if self.after is None or not known else max(known) - self.after


def backward_transfer(tasks: Sequence[EarlierTask]) -> float | None:
    """Average what all learning since has changed of the earlier tasks, in points; negative where it has hurt them.

    Returns:
        The mean over tasks measured both when they were learnt and now; None if there are none.

    Source:
        Gradient Episodic Memory for Continual Learning (Lopez-Paz, Ranzato, 2017), BWT.

    Example:
        >>> backward_transfer([EarlierTask('a', history=(90.0, 80.0), after=70.0)])
        -20.0
    """
    return _mean([task.transfer for task in tasks])


def forgetting(tasks: Sequence[EarlierTask]) -> float | None:
    """Average how far the earlier tasks are below the best that they ever were, in points.

    Returns:
        The mean over tasks measured before and now; None if there are none.

    Source:
        Riemannian Walk for Incremental Learning (Chaudhry, Dokania, Ajanthan, Torr, 2018), forgetting measure.

    Example:
        >>> forgetting([EarlierTask('a', history=(80.0, 85.0), after=82.0)])
        3.0
    """
    return _mean([task.forgotten for task in tasks])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


COLUMNS = ('task', 'measure', 'learnt', 'before', 'after', 'change', 'images', 'remark')


def rows(tasks: Sequence[EarlierTask]) -> list[dict[str, Any]]:
    """Make a row of `COLUMNS` for each task."""
    return [
        {
            'task': task.head,
            'measure': task.measure,
            'learnt': task.history[0] if task.history else None,
            'before': task.before,
            'after': task.after,
            'change': task.change,
            'images': task.images,
            'remark': task.remark,
        }
        for task in tasks
    ]


def to_csv(tasks: Sequence[EarlierTask]) -> str:
    """Write earlier.csv."""
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS)
    writer.writeheader()
    writer.writerows(rows(tasks))
    return table.getvalue()


def describe(tasks: Sequence[EarlierTask]) -> str:
    """Write the table as one reads it, with the figures under it.

    Example:
        >>> print(describe([EarlierTask('digits', history=(91.0,), after=88.5, images=1000)]))
        earlier task                         before    after   change
        digits, top-1                       91.00 %  88.50 %    -2.50
        backward transfer -2.50, forgetting 2.50 points
    """
    lines = [f'{"earlier task":<34} {"before":>8} {"after":>8} {"change":>8}']
    for task in tasks:
        name = f'{task.head}, {WORDS[task.measure]}'
        before, after = (f'{value:.2f} %' if value is not None else '-' for value in (task.before, task.after))
        change = f'{task.change:+.2f}' if task.change is not None else '-'
        remark = f'  {task.remark}' if task.remark else ''
        lines.append(f'{name:<34} {before:>8} {after:>8} {change:>8}{remark}')
    transfer, forgotten = backward_transfer(tasks), forgetting(tasks)
    if transfer is not None and forgotten is not None:
        lines.append(f'backward transfer {transfer:+.2f}, forgetting {forgotten:.2f} points')
    return '\n'.join(lines)


def summary(tasks: Sequence[EarlierTask]) -> dict[str, Any]:
    """What the result of a run says of its earlier tasks."""
    return {
        'earlier': rows(tasks),
        'backward_transfer': backward_transfer(tasks),
        'forgetting': forgetting(tasks),
    }
