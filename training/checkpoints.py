"""Checkpoints: all that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import sharding
from .metrics import Tally
from .progress import Progress
from .run_folder import sync

if TYPE_CHECKING:  # to import it takes as long as to import timm
    from torch.distributed.checkpoint.stateful import Stateful


def random_state() -> dict[str, Tensor]:
    """Take the state of this process's generators. Images draw from none of them, dropout does."""
    state = {'cpu': torch.get_rng_state()}
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def save_checkpoint(
    folder: Path,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Stateful,
    progress: Progress,
    tally: Tally,
    further: Mapping[str, Stateful],
) -> None:
    """Save a checkpoint and remove the ones before it. Every process calls this; the main one writes.

    It is written under another name and renamed when it is whole and on the disk, so a name of the form
    epoch-E-step-S is always a whole checkpoint.

    Args:
        folder: Holds the run's checkpoints.
        accelerator: Joins the processes.
        model: The network, unwrapped.
        optimizer: Has the state of its optimizer.
        progress: The place of the run.
        tally: Sums of the epoch under way.
        further: What else has a state, by name.
    """
    random_states = gather_object([random_state()])
    sums = accelerator.reduce(tally.sums, 'sum')
    weights, optimizer_state = sharding.whole(model.state_dict()), sharding.whole(optimizer.state_dict())
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f'epoch-{progress.epoch:05d}-step-{progress.update:07d}'
        unfinished = folder / f'.{target.name}.unfinished'
        for leftover in folder.glob('.*.unfinished'):
            shutil.rmtree(leftover)
        unfinished.mkdir()
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in weights.items()}
        save_file(tensors, unfinished / 'model.safetensors')
        scaler = None if accelerator.scaler is None else accelerator.scaler.state_dict()
        others = {'optimizer': optimizer_state, 'scaler': scaler, 'random': random_states, 'sums': sums.cpu()}
        others['further'] = {name: stateful.state_dict() for name, stateful in further.items()}
        torch.save(others, unfinished / 'optimizer.pt')
        (unfinished / 'progress.json').write_text(json.dumps(progress.to_dict()))
        for path in (*unfinished.iterdir(), unfinished):
            sync(path)
        if target.exists():  # saved before and asked for again: the same place has the same contents
            shutil.rmtree(target)
        os.rename(unfinished, target)
        sync(folder)
        for older in checkpoints(folder):
            if older != target:
                shutil.rmtree(older)
    accelerator.wait_for_everyone()


def checkpoints(folder: Path) -> list[Path]:
    """List whole checkpoints, oldest first."""
    return sorted(folder.glob('epoch-*-step-*'))


def load_checkpoint(
    folder: Path,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Stateful,
    tally: Tally,
    further: Mapping[str, Stateful],
) -> Progress:
    """Load the newest checkpoint into what was prepared.

    Args:
        folder: Holds the run's checkpoints.
        accelerator: Joins the processes.
        model: The network, unwrapped.
        optimizer: Has the state of its optimizer.
        tally: Takes the sums of the epoch under way.
        further: What else has a state, by name.

    Returns:
        The place of the run.

    Raises:
        ValueError: There is none, or it was saved by another number of processes.
    """
    found = checkpoints(folder)
    if not found:
        raise ValueError(f'{folder} holds no whole checkpoint: start a new run')
    newest = found[-1]
    # Tensors and plain containers only: a checkpoint is never given the chance to run code.
    others: dict[str, Any] = torch.load(newest / 'optimizer.pt', map_location='cpu', weights_only=True)
    if len(others['random']) != accelerator.num_processes:
        raise ValueError(
            f'{newest} was saved by {len(others["random"])} processes and this run has {accelerator.num_processes}: '
            'start as many again'
        )
    model.load_state_dict(sharding.spread_weights(load_file(newest / 'model.safetensors'), model))
    for name, stateful in further.items():
        stateful.load_state_dict(others['further'][name])
    optimizer.load_state_dict(others['optimizer'])
    if accelerator.scaler is not None and others['scaler'] is not None:
        accelerator.scaler.load_state_dict(others['scaler'])
    if accelerator.is_main_process:  # sums are added up over processes
        tally.sums.copy_(others['sums'])
    state = others['random'][accelerator.process_index]
    torch.set_rng_state(state['cpu'])
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'])
    return Progress(**json.loads((newest / 'progress.json').read_text()))
