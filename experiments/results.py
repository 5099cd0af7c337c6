"""What finished cells have come to, as their run folders say."""

from __future__ import annotations

import csv
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config import FREE_ON_RESUME, Config

from .grids import Cell
from .worker import USAGE

# A table is of one number of epochs, although a run may be made longer.
FREE = FREE_ON_RESUME - {'epochs', 'data_dir', 'batch_size', 'grad_accum_steps', 'bad_images', 'nonfinite'}


@dataclass(frozen=True)
class Result:
    """Of a finished cell."""

    top1: float
    """In %, of the last epoch."""
    loss: float
    """Cross-entropy on the validation images."""
    trained_parameters: int
    seconds: float
    """Training and evaluating; not starting."""
    peak_memory_bytes: int


def folder_of(cell: Cell) -> Path:
    """Tell a cell's run folder."""
    return Path(cell.config.output) / cell.name


def read_result(cell: Cell) -> Result | None:
    """Read what a cell has come to; None if it is not finished."""
    folder = folder_of(cell)
    if cell.config.eval_only:
        return read_measured(folder)
    try:
        with open(folder / 'metrics.csv', newline='') as file:
            last = list(csv.DictReader(file))[-1]
        usage = json.loads((folder / USAGE).read_text())
        facts = json.loads((folder / 'run.json').read_text())
    except (FileNotFoundError, IndexError):
        return None
    if int(last['epoch']) != cell.config.epochs:
        return None
    return Result(
        top1=float(last['val_top1']),
        loss=float(last['val_loss']),
        trained_parameters=facts['parameters']['learning'],
        seconds=float(last['elapsed_s']),
        peak_memory_bytes=usage['peak_memory_bytes'],
    )


def read_measured(folder: Path) -> Result | None:
    """Read what a cell that trains nothing has measured; None if it is not finished."""
    try:
        usage = json.loads((folder / USAGE).read_text())
    except FileNotFoundError:
        return None
    measured = usage['measured']
    return Result(measured['top1'], measured['loss'], 0, measured['seconds'], usage['peak_memory_bytes'])


def refuse_changes(cells: tuple[Cell, ...]) -> None:
    """Refuse to go on with a table under other options than some of its cells were run with.

    Raises:
        ValueError: Names the first such cell, and what differs.
    """
    changed = []
    for cell in cells:
        path = folder_of(cell) / 'run.json'
        if path.exists():
            changes = changes_between(json.loads(path.read_text())['config'], cell.config)
            changed += [f'{cell.name} ({", ".join(changes)})'] if changes else []
    if changed:
        raise ValueError(
            f'{len(changed)} cells in {cells[0].config.output} were run with other options, such as {changed[0]}: give '
            'the old ones, another --output, or remove their folders'
        )


def changes_between(saved: dict[str, Any], config: Config) -> list[str]:
    """List the options that differ; what a configuration leaves to train.py is not compared.

    Args:
        saved: As run.json has it, with everything filled in; options that have come since are at their defaults.
        config: As the table has it now.
    """
    now = dataclasses.asdict(config)
    filled = {**dataclasses.asdict(Config()), **saved}
    before = {name: tuple(value) if isinstance(value, list) else value for name, value in filled.items()}
    return [
        f'--{name.replace("_", "-")} was {before.get(name)}, is {value}'
        for name, value in now.items()
        if name not in FREE and value is not None and before.get(name) != value
    ]
