"""Where a run stands, and how it tells."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tqdm import tqdm

from .measures import measure_of, phrase
from .metrics import MeanLoss

Row = TypeVar('Row', bound=Mapping[str, Any])


@dataclass
class Progress:
    """The place of a run and its results so far; part of every checkpoint."""

    epoch: int = 0
    """Epochs finished."""
    update: int = 0
    """Updates finished in the epoch under way."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One row of metrics for each finished epoch."""
    epoch_s: float = 0.0
    """Seconds spent on the epoch under way, over all sessions."""
    train_s: float = 0.0
    """Those of them that were spent on training: reading the images included, evaluating and saving not."""
    elapsed_s: float = 0.0
    """Seconds spent on the finished epochs, and on computing features before them."""
    skipped: int = 0
    """Updates of the epoch under way that were left out because a loss or gradient was not finite."""

    def start_clock(self) -> None:
        """Count the seconds from now as training."""
        self.started_s = time.monotonic()

    def stop_clock(self) -> None:
        """Count the seconds since `start_clock`."""
        passed_s = time.monotonic() - self.started_s
        self.train_s, self.epoch_s = self.train_s + passed_s, self.epoch_s + passed_s

    def finish_epoch(
        self,
        train: Mapping[str, float | None],
        val: Mapping[str, float | None],
        images: int,
        further: Mapping[str, float] | None = None,
    ) -> dict[str, Any]:
        """Go on to the next epoch.

        Args:
            train: Means over the epoch, by name.
            val: Of the evaluation; None for what was not measured.
            images: Trained on in the epoch.
            further: Columns to add: learning rates, norms of blocks, what each reaches alone, their scales.

        Returns:
            The epoch's row of metrics.csv; None stands for what was not measured.
        """
        self.epoch, self.update = self.epoch + 1, 0
        self.elapsed_s += self.epoch_s
        row = {
            'epoch': self.epoch,
            **{f'train_{name}': value for name, value in train.items()},
            **{f'val_{name}': value for name, value in val.items()},
            'images_per_s': round(images / self.train_s, 1),
            'elapsed_s': round(self.elapsed_s, 1),
            'skipped_updates': self.skipped,
            **(further or {}),
        }
        self.epoch_s = self.train_s = 0.0
        self.skipped = 0
        self.history.append(row)
        return row

    def best(self) -> dict[str, Any] | None:
        """Find the best evaluated epoch by what its task compares them by, the first of equals."""
        return best_row(self.history)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def best_row(history: Sequence[Row]) -> Row | None:
    """Find the epoch whose weights are the best ones: the highest validation top-1 or mAP, the first of equals."""
    evaluated = [(row[measure_of(row).column], row) for row in history]
    measured = [(value, row) for value, row in evaluated if value is not None]
    return max(measured, key=lambda pair: pair[0], default=(None, None))[1]


class LiveLine:
    """The line that moves on a terminal: epoch, step, loss, top-1 where there is one, images/s, time left.

    Where nobody looks (other processes, or no terminal) it shows nothing.
    """

    def __init__(self, is_shown: bool, epochs: int, updates: int, update_size: int, progress: Progress):
        self.epochs, self.updates, self.update_size = epochs, updates, update_size
        done = progress.epoch * updates + progress.update
        self.bar = tqdm(
            total=epochs * updates * update_size,
            initial=done * update_size,
            unit='img',
            unit_scale=True,
            dynamic_ncols=True,
            disable=not (is_shown and sys.stderr.isatty()),
        )

    def advance(self) -> None:
        self.bar.update(self.update_size)

    def show(self, epoch: int, update: int, tally: MeanLoss) -> None:
        """Renew the numbers; this waits for the device, so it is called now and then only."""
        if not self.bar.disable:
            metrics = tally.read()
            self.bar.set_description(f'epoch {epoch + 1}/{self.epochs}', refresh=False)
            told = phrase({name: metrics[name] for name in tally.told}, digits=1)
            self.bar.set_postfix_str(f'step {update}/{self.updates}, {told}')

    def write(self, text: str) -> None:
        """Print above the line, on the main process."""
        self.bar.clear()
        print(text, flush=True)
        self.bar.refresh()

    def close(self) -> None:
        self.bar.close()


def describe_epoch(row: dict[str, Any], epochs: int) -> str:
    """Write one epoch's metrics as a line."""
    train, val = (
        phrase({name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)})
        for prefix in ('train_', 'val_')
    )
    line = f'epoch {row["epoch"]}/{epochs}: {train} at {row["images_per_s"]:.0f} images/s'
    line += f'; validation {val}' if val else ''
    if row['skipped_updates']:
        line += f'; {row["skipped_updates"]} updates skipped, their loss or gradient was not finite'
    return line
