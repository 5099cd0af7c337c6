"""What a table will take: time from a few steps on this machine or from the cells already run, disk from parameters."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

import timm_devnet
from training.config import Config
from training.networks import input_format

from .bases import Base
from .grids import Cell, Grid
from .results import Result, read_result
from .targets import Target

STEPS = 3
# Starting a cell, building its network and loading weights, in seconds of one core of this project's machine.
START_S = 3.0
FLOAT_BYTES = 4
# While it runs, a cell has last/, best/ and two checkpoints of weights and momenta.
COPIES_WHILE_RUNNING = 6


@dataclass(frozen=True)
class Pace:
    """How fast this machine is with the base network."""

    train_s: float
    """Forward and backward, of an image."""
    forward_s: float
    """Of an image."""


@dataclass(frozen=True)
class Estimate:
    """Of one cell."""

    seconds: float
    kept_bytes: int
    """What remains of it."""
    running_bytes: int
    """What it has while it runs."""
    is_finished: bool


def measure_pace(name: str, img_size: int | None, threads: int | None, batch_size: int = 8) -> Pace:
    """Time a few steps of a network with random weights, on the GPU if there is one.

    Args:
        name: Of the network.
        img_size: Side of its images (None: its own).
        threads: CPU threads (None: as they are).
        batch_size: Images in a step.
    """
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        model: Any = timm.create_model(name).to(device).to(memory_format=torch.channels_last)
        side = input_format(model, img_size).img_size
        images = torch.randn(batch_size, 3, side, side, device=device).to(memory_format=torch.channels_last)
        return Pace(*(time_steps(model, images, is_training) / batch_size for is_training in (True, False)))
    finally:
        torch.set_num_threads(before)


def time_steps(model: nn.Module, images: torch.Tensor, is_training: bool) -> float:
    """Time forward, and backward if it trains: the fastest of a few steps, in seconds."""
    model.train(is_training)
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        with torch.set_grad_enabled(is_training):
            loss = model(images).square().mean()
            if is_training:
                loss.backward()
            loss.item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def estimate(grid: Grid, base: Base, targets: Sequence[Target], pace: Pace, keeps_weights: bool) -> list[Estimate]:
    """Say what every cell takes, in the order of the grid.

    Args:
        grid: The table.
        base: Its network.
        targets: All tasks in it.
        pace: Of this machine.
        keeps_weights: Whether cells keep weights that no other cell begins with.
    """
    results = {cell.name: result for cell in grid.cells if (result := read_result(cell))}
    begun_with = {cell.start for cell in grid.cells}
    images = {place_of(target.options): target for target in targets}
    estimates = []
    for cell in grid.cells:
        target = images[place_of(vars(cell.config))]
        size = FLOAT_BYTES * count_parameters(network_of(cell, base))
        kept = size if keeps_weights or cell.name in begun_with else 0
        running = COPIES_WHILE_RUNNING * size
        is_finished = cell.name in results
        seconds = 0.0 if is_finished else expect_seconds(cell, grid, results, target, pace)
        if cell.config.eval_only:
            kept = running = 0
        estimates.append(Estimate(seconds, kept, running, is_finished))
    return estimates


def place_of(options: Any) -> tuple[Any, Any]:
    """Tell where images are, by the options of train.py."""
    return options.get('dataset'), options.get('data_dir')


def expect_seconds(cell: Cell, grid: Grid, results: dict[str, Result], target: Target, pace: Pace) -> float:
    """Tell how long a cell takes: as the same with other seeds did, else by the pace."""
    same = [other for other in grid.cells if (other.row, other.column) == (cell.row, cell.column)]
    known = [results[other.name].seconds for other in same if other.name in results]
    if known:
        return START_S + statistics.median(known)
    config, measuring_s = cell.config, START_S + target.val_images * pace.forward_s
    if config.eval_only:
        return measuring_s
    assert config.epochs is not None, 'recipes state their epochs'
    step_s = pace.train_s if config.regime == 'all' else pace.forward_s
    seen = count_train_images(config, target) * (config.cache_features or config.epochs)
    return measuring_s + seen * step_s


def count_train_images(config: Config, target: Target) -> int:
    """Count the images that a cell is trained on."""
    if config.labels_per_class is not None:
        return config.labels_per_class * target.classes
    return round(target.train_images * (config.label_share or 1.0))


def network_of(cell: Cell, base: Base) -> str:
    """Name a network of about a cell's size; what it grew by in earlier cells is left out."""
    if not cell.config.eval_only and ':' not in cell.config.model and not cell.config.grow:
        return cell.config.model
    return base.grown('_'.join(cell.config.grow))


@functools.cache
def count_parameters(name: str) -> int:
    """Count a network's parameters, with its usual number of classes."""
    registered, growth = timm_devnet.resolve_name(name)
    model: Any = timm.create_model(registered, device='meta', **growth)
    return sum(parameter.numel() for parameter in model.parameters())


def describe_estimate(grid: Grid, estimates: Sequence[Estimate], processes: int) -> str:
    """Say in a line what is left to do."""
    left = [found for found in estimates if not found.is_finished]
    minutes = sum(found.seconds for found in left) / processes / 60
    kept = sum(found.kept_bytes for found in estimates)
    running = processes * max((found.running_bytes for found in left), default=0)
    return (
        f'{grid.title}: {len(grid.cells)} cells, {len(estimates) - len(left)} of them finished; about '
        f'{minutes:.0f} minutes with {processes} at a time, {kept / 1e9:.1f} GB of disk in the end and '
        f'{running / 1e9:.1f} GB more while it runs'
    )


def list_cells(grid: Grid, estimates: Sequence[Estimate]) -> str:
    """List every cell with its estimate."""
    lines = [f'{"cell":44} {"seconds":>8} {"MB kept":>8}  state']
    for cell, found in zip(grid.cells, estimates, strict=True):
        state = 'finished' if found.is_finished else f'after {cell.start}' if cell.start else ''
        lines.append(f'{cell.name:44} {found.seconds:8.0f} {found.kept_bytes / 1e6:8.0f}  {state}'.rstrip())
    return '\n'.join(lines)
