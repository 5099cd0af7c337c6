"""Where a run stands, and how it tells."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from .metrics import Tally


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
    """Seconds spent on the finished epochs."""

    def finish_epoch(
        self, train: dict[str, float], val: dict[str, float], images: int, further: dict[str, float] | None = None
    ) -> dict[str, Any]:
        """Go on to the next epoch.

        Args:
            train: Means over the epoch: loss, and top1 in percent.
            val: Of the evaluation: loss, top1 and perhaps top5 in percent; empty if there was none.
            images: Trained on in the epoch.
            further: Columns to add: learning rates, norms of blocks, their scales.

        Returns:
            The epoch's row of metrics.csv; None stands for what was not measured.
        """
        self.epoch, self.update = self.epoch + 1, 0
        self.elapsed_s += self.epoch_s
        row = {
            'epoch': self.epoch,
            'train_loss': train['loss'],
            'train_top1': train['top1'],
            'val_loss': val.get('loss'),
            'val_top1': val.get('top1'),
            'val_top5': val.get('top5'),
            'images_per_s': round(images / self.train_s, 1),
            'elapsed_s': round(self.elapsed_s, 1),
            **(further or {}),
        }
        self.epoch_s = self.train_s = 0.0
        self.history.append(row)
        return row

    def best(self) -> dict[str, Any] | None:
        """Find the evaluated epoch with the highest validation top-1, the first of equals."""
        evaluated = [row for row in self.history if row['val_top1'] is not None]
        return max(evaluated, key=lambda row: row['val_top1'], default=None)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class LiveLine:
    """The line that moves on a terminal: epoch, step, loss, top-1, images/s, time left.

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

    def show(self, epoch: int, update: int, tally: Tally) -> None:
        """Renew the numbers; this waits for the device, so it is called now and then only."""
        if not self.bar.disable:
            metrics = tally.read()
            self.bar.set_description(f'epoch {epoch + 1}/{self.epochs}', refresh=False)
            self.bar.set_postfix_str(
                f'step {update}/{self.updates}, loss {metrics["loss"]:.3f}, top-1 {metrics["top1"]:.1f} %'
            )

    def write(self, text: str) -> None:
        """Print above the line, on the main process."""
        self.bar.clear()
        print(text, flush=True)
        self.bar.refresh()

    def close(self) -> None:
        self.bar.close()


def describe_epoch(row: dict[str, Any], epochs: int) -> str:
    """Write one epoch's metrics as a line."""
    line = (
        f'epoch {row["epoch"]}/{epochs}: loss {row["train_loss"]:.4f}, top-1 {row["train_top1"]:.2f} % '
        f'at {row["images_per_s"]:.0f} images/s'
    )
    if row['val_top1'] is not None:
        line += f'; validation loss {row["val_loss"]:.4f}, top-1 {row["val_top1"]:.2f} %'
        line += f', top-5 {row["val_top5"]:.2f} %' if row['val_top5'] is not None else ''
    return line
