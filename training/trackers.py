"""Curves for TensorBoard, trackio, wandb and the others that accelerate speaks to; metrics.csv needs none of them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType
from timm.scheduler.scheduler import Scheduler
from torch import Tensor

from .config import Config
from .metrics import MeanLoss
from .run_folder import RunFolder

KNOWN = tuple(str(kind) for kind in LoggerType if kind != LoggerType.ALL)


def choose_trackers(wish: str | None) -> list[str]:
    """Tell which trackers a run has.

    Args:
        wish: Names with commas between, or none; None is TensorBoard where it is installed.

    Raises:
        ValueError: One is not known, or its package is not installed.
    """
    installed = {str(kind) for kind in get_available_trackers()}
    if wish is None:
        return [name for name in ('tensorboard',) if name in installed]
    names = [] if wish == 'none' else list(dict.fromkeys(name.strip() for name in wish.split(',')))
    for name in names:
        if name not in KNOWN:
            raise ValueError(f'--tracker {wish}: {name!r} is not known; it is none, or of {", ".join(KNOWN)}')
        if name not in installed:
            raise ValueError(f'--tracker {wish} needs the package {name}: pip install {name}, or leave it out')
    return names


@contextlib.contextmanager
def tracked(accelerator: Accelerator, config: Config, folder: RunFolder, step: int) -> Iterator[None]:
    """Start the trackers that the accelerator was made for, and close them at the end, however it comes.

    A run that goes on continues its curves: what an earlier session wrote after the checkpoint is written again, so
    TensorBoard is told to forget it, and wandb and trackio are given the run's old name.

    Args:
        accelerator: Made with `log_with`.
        config: Saved with the curves of a new run.
        folder: The run's; TensorBoard writes into it, the others call the run after it.
        step: Updates done in earlier sessions.
    """
    name = folder.path.name
    # The folder's place tells runs of the same name apart, and is the same whenever the run goes on.
    identity = hashlib.sha256(str(folder.path.resolve()).encode()).hexdigest()[:16]
    accelerator.project_configuration.logging_dir = str(folder.path / 'tensorboard')
    options: dict[str, dict[str, Any]] = {
        'tensorboard': {'purge_step': step + 1} if step else {},
        'trackio': {'name': name, 'group': run_group(config), 'resume': 'allow', 'embed': False},
        'wandb': {'name': name, 'group': run_group(config), 'id': identity, 'resume': 'allow', 'dir': str(folder.path)},
    }
    if accelerator.log_with:
        described = {key: str(value) for key, value in dataclasses.asdict(config).items() if value is not None}
        accelerator.init_trackers(config.tracker_project, None if step else described, options)
    try:
        yield
    finally:
        # accelerate's end_training would also part the processes, which have the report before them.
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.trackers.clear()


def run_group(config: Config) -> str:
    """Name what runs are compared within: their model."""
    return config.model.rpartition('/')[2]


def group_rates(schedule: Scheduler, step: int) -> dict[str, float]:
    """Find the learning rate that an update was made with, for each group by its name.

    A schedule is a function of the step, so it can be asked about the step before and be set back.

    Args:
        schedule: Of the run.
        step: Updates done; the rate is that of the last of them.
    """
    schedule.step_update(max(step - 1, 0))
    # What is decayed and what is not learns at the same rate.
    rates = {str(group['name']).partition(',')[0]: group['lr'] for group in schedule.optimizer.param_groups}
    schedule.step_update(step)
    return rates


class Curves:
    """What a run sends to its trackers; nothing where it has none.

    Args:
        accelerator: Sends, on the main process.
        update_size: Images in one update.
    """

    def __init__(self, accelerator: Accelerator, update_size: int):
        self.accelerator, self.update_size = accelerator, update_size
        self.sums: Tensor | None = None
        self.since = time.monotonic()
        self.step = 0

    def begin_epoch(self, step: int, tally: MeanLoss) -> None:
        """Count from here on: evaluation and saving before it are no part of the images per second."""
        self.sums, self.since, self.step = tally.sums.clone(), time.monotonic(), step

    def add_step(self, step: int, tally: MeanLoss, rates: dict[str, float]) -> None:
        """Send loss, top-1 where there is one, images/s and rates, for the main process's images since the last time.

        This waits for the device, so it is called now and then only.

        Args:
            step: Updates done.
            tally: Sums of the epoch under way.
            rates: Learning rate of each group.
        """
        if not self.accelerator.trackers:
            return
        assert self.sums is not None, 'an epoch has begun'
        metrics, now = tally.since(self.sums).read(), time.monotonic()
        values = {f'step/{name}': metrics[name] for name in tally.told}
        values['step/images_per_s'] = (step - self.step) * self.update_size / max(now - self.since, 1e-9)
        self.accelerator.log({**values, **{f'lr/{name}': rate for name, rate in rates.items()}}, step=step)
        self.sums, self.since, self.step = tally.sums.clone(), now, step

    def add_epoch(self, step: int, row: dict[str, Any]) -> None:
        """Send a row of metrics.csv, under names that trackers group by their first part.

        Learning rates were sent with the epoch's last update.
        """
        values: dict[str, float] = {}
        for column, value in row.items():
            kind, _, name = column.partition('_')
            if value is not None and kind != 'lr':
                values[f'{kind}/{name}' if kind in ('train', 'val', 'norm', 'scale') else f'epoch/{column}'] = value
        self.accelerator.log(values, step=step)
