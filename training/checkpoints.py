"""Checkpoints: all that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_file
from torch import Tensor, nn

from . import sharding
from .config import CHECKPOINT_EVERY, Config
from .faults import Fault, shared_writing
from .files import sha256, sync
from .metrics import MeanLoss
from .order import EpochOrder
from .progress import Progress
from .run_folder import checkpoints
from .tensor_files import write_tensors

FILES = ('model.safetensors', 'optimizer.pt', 'progress.json')
MANIFEST = 'manifest.json'


class Stateful(Protocol):
    """Anything with a state of tensors, numbers, strings and plain containers of them."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


@dataclass
class RunState:
    """What a checkpoint holds of a run, besides the random numbers of each process."""

    network: nn.Module
    """The network, unwrapped."""
    optimizer: Stateful
    """As prepared, or what stands for it."""
    order: EpochOrder
    """Of the training images; a checkpoint's place in it counts whole updates."""
    progress: Progress
    tally: MeanLoss
    """Sums of the epoch under way."""
    further: Mapping[str, Stateful] = field(default_factory=dict)
    """Whatever else has a state, by name. What a checkpoint does not hold yet starts anew."""


# Ends of epochs are saved for no more than this part of the time: a kill costs twenty times what saving takes.
SAVING_SHARE = 1 / 20


class CheckpointPace:
    """When the next checkpoint is due.

    Inside an epoch it is after as many updates or seconds as --checkpoint-every says. The end of an epoch is saved too;
    but where seconds count, and epochs are so short that saving would take more than `SAVING_SHARE` of the time, not
    every one.
    """

    def __init__(self, every: str):
        match = CHECKPOINT_EVERY.fullmatch(every)
        assert match is not None, 'the configuration is validated'
        self.updates = int(match[1]) if match[1] and not match[2] else None
        self.interval_s = int(match[1]) if match[2] else None
        self.saved_at_s = time.monotonic()
        self.save_s = 0.0

    def restart(self, save_s: float | None = None) -> None:
        """Count the seconds from now.

        Args:
            save_s: How long saving took (None: nothing was saved).
        """
        self.saved_at_s = time.monotonic()
        self.save_s = self.save_s if save_s is None else save_s

    def is_due_after_epoch(self) -> bool:
        """Tell whether to save at the end of an epoch; several processes must do so alike, by the main one's clock."""
        if self.interval_s is None:
            return True
        elapsed_s = time.monotonic() - self.saved_at_s
        return bool(broadcast_object_list([self.save_s <= SAVING_SHARE * elapsed_s])[0])

    def is_due(self, accelerator: Accelerator, updates: int, may_wait: bool) -> bool:
        """Tell whether to save now; several processes must do so after the same step, by the main one's clock.

        Args:
            accelerator: Joins the processes.
            updates: Done since the run began.
            may_wait: Whether this is a step at which processes may wait for each other.
        """
        if self.updates is not None:
            return updates % self.updates == 0
        if self.interval_s is None or not may_wait:
            return False
        is_due = time.monotonic() - self.saved_at_s >= self.interval_s
        return bool(broadcast_object_list([is_due])[0])


def random_state() -> dict[str, Any]:
    """Take the state of this process's generators. Images draw from none of them, dropout does."""
    name, keys, *rest = np.random.get_state(legacy=True)
    state = {
        'python': random.getstate(),
        'numpy': (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        'cpu': torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put this process's generators into a saved state."""
    random.setstate(state['python'])
    name, keys, *rest = state['numpy']
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state['cpu'])
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'])


def seed_new_process(*key: int) -> None:
    """Seed the generators of a process that the checkpoint does not know."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def save_checkpoint(folder: Path, accelerator: Accelerator, state: RunState, keep: int) -> None:
    """Save a checkpoint and remove all but the newest. Every process calls this; the main one writes.

    Args:
        folder: Holds the run's checkpoints.
        accelerator: Joins the processes.
        state: What to save.
        keep: How many checkpoints remain.

    Raises:
        Fault: It could not be written; the checkpoints before it are as they were.
    """
    processes = gather_object([{'random': random_state(), 'sums': state.tally.sums.cpu()}])
    # Every process has a part of what is spread over them.
    weights, optimizer = sharding.whole(state.network.state_dict()), sharding.whole(state.optimizer.state_dict())
    with shared_writing(accelerator, f'the checkpoints in {folder} are as before'):
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob('.epoch-*'):
                shutil.rmtree(leftover)
            target = folder / f'epoch-{state.progress.epoch:05d}-step-{state.progress.update:07d}'
            if not target.exists():  # the same place has the same contents
                scaler = None if accelerator.scaler is None else accelerator.scaler.state_dict()
                others = {'optimizer': optimizer, 'scaler': scaler, 'processes': processes}
                write_checkpoint(target, state, weights, others)
            for older in checkpoints(folder)[:-keep]:
                removed = older.with_name(f'.{older.name}.removed')
                os.rename(older, removed)
                shutil.rmtree(removed)


def write_checkpoint(target: Path, state: RunState, weights: dict[str, Tensor], others: dict[str, Any]) -> None:
    """Write a checkpoint under another name, and rename it when it is whole and on the disk.

    So a name of the form epoch-E-step-S always was a whole checkpoint once; the manifest tells whether it still is.
    """
    unfinished = target.with_name(f'.{target.name}.unfinished')
    unfinished.mkdir()
    try:
        sums = {'model.safetensors': write_tensors(unfinished / 'model.safetensors', weights)}
        further = {name: stateful.state_dict() for name, stateful in state.further.items()}
        others = {
            **others,
            'update_size': state.order.update_size,
            'further': further,
        }
        with open(unfinished / 'optimizer.pt', 'wb') as file:  # opened here, so that a full disk is an OSError
            torch.save(others, file)
        (unfinished / 'progress.json').write_text(json.dumps(state.progress.to_dict()))
        sums |= {name: sha256(unfinished / name) for name in FILES if name not in sums}
        (unfinished / MANIFEST).write_text(json.dumps({'sha256': sums}, indent=2) + '\n')
        for path in (*unfinished.iterdir(), unfinished):
            sync(path)
        os.rename(unfinished, target)
        sync(target.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def find_damage(checkpoint: Path) -> str | None:
    """Tell what is wrong with a checkpoint's files; None if they are as they were written."""
    try:
        sums = json.loads((checkpoint / MANIFEST).read_bytes())['sha256']
        expected = {name: sums[name] for name in FILES}
    except FileNotFoundError:
        return f'{MANIFEST} is missing'
    except (OSError, ValueError, KeyError, TypeError):
        return f'{MANIFEST} cannot be read'
    for name, checksum in expected.items():
        try:
            if sha256(checkpoint / name) != checksum:
                return f'{name} is not as it was written (its checksum differs)'
        except FileNotFoundError:
            return f'{name} is missing'
        except OSError as error:
            return f'{name} cannot be read ({error.strerror})'
    return None


def newest_whole(folder: Path, accelerator: Accelerator) -> Path:
    """Find the newest checkpoint whose files are as they were written; name the broken ones and move them aside.

    They are moved aside so that the run can save at the same place again, and removed at its next save.

    Raises:
        Fault: There is none.
    """
    whole, damages = None, []
    if accelerator.is_main_process:
        broken = []
        for path in reversed(checkpoints(folder)):
            damage = find_damage(path)
            if damage is None:
                whole = path
                break
            broken.append(path)
            damages.append(f'{path} is broken: {damage}')
        for path in broken if whole else ():
            os.rename(path, path.with_name(f'.{path.name}.broken'))
    whole, damages = broadcast_object_list([whole, damages])
    if whole is None:
        raise Fault(f'{folder} holds no whole checkpoint{"".join(f"; {d}" for d in damages)}: start a new run')
    for damage in damages:
        accelerator.print(f'{damage}; it is not used, the one before it is')
    return whole


def load_checkpoint(
    folder: Path,
    accelerator: Accelerator,
    state: RunState,
    config: Config,
    grow_for: Callable[[int], object] | None = None,
) -> Progress:
    """Load the newest whole checkpoint into what was prepared.

    Args:
        folder: Holds the run's checkpoints.
        accelerator: Joins the processes.
        state: Takes what was saved.
        config: Says whether the size of an update may have changed, and how to seed a new process.
        grow_for: Lets the network grow, before it is loaded, as it had after a number of whole epochs.

    Returns:
        The place of the run.

    Raises:
        Fault: There is none.
        ValueError: It was saved with another size of an update.
    """
    newest = newest_whole(folder, accelerator)
    # Tensors and plain containers only: a checkpoint is never given the chance to run code.
    others: dict[str, Any] = torch.load(newest / 'optimizer.pt', map_location='cpu', weights_only=True)
    progress = Progress(**json.loads((newest / 'progress.json').read_text()))
    processes = others['processes']
    place, remark = find_place(progress.update, others['update_size'], state.order, config)
    if len(processes) != accelerator.num_processes:
        remark += f'; saved by {len(processes)} processes, now {accelerator.num_processes}'
    if grow_for is not None:
        grow_for(progress.epoch)
    weights = load_file(newest / 'model.safetensors')
    state.network.load_state_dict(sharding.spread_weights(weights, state.network))
    state.optimizer.load_state_dict(others['optimizer'])
    if accelerator.scaler is not None and others['scaler'] is not None:
        accelerator.scaler.load_state_dict(others['scaler'])
    for name, stateful in state.further.items():
        if name in others['further']:
            stateful.load_state_dict(others['further'][name])
    index = accelerator.process_index
    if len(processes) == accelerator.num_processes:
        state.tally.sums.copy_(processes[index]['sums'])
    elif accelerator.is_main_process:  # sums are added up over processes
        state.tally.sums.copy_(torch.stack([process['sums'] for process in processes]).sum(0))
    if index < len(processes):
        set_random_state(processes[index]['random'])
    else:
        seed_new_process(config.seed, index, progress.epoch, progress.update)
    accelerator.print(f'going on after epoch {progress.epoch} and {place} updates of the next{remark}')
    return dataclasses.replace(progress, update=place)


def find_place(updates: int, saved_size: int, order: EpochOrder, config: Config) -> tuple[int, str]:
    """Find the place in an epoch that was begun with updates of perhaps another size.

    Updates of the same size hold the same images, however they are split among processes and batches.

    Args:
        updates: Done in the epoch, of the saved size.
        saved_size: Images in an update when the checkpoint was saved.
        order: Of this run.
        config: Says whether the size may have changed.

    Returns:
        The updates of this run's size that count as done, and what the user should know.

    Raises:
        ValueError: The size differs and was not allowed to.
    """
    size = order.update_size
    if size == saved_size:
        return min(updates, order.updates), ''  # fewer where the data was allowed to change
    if not config.allow_changed_batch:
        raise ValueError(
            f'an update of this run has {saved_size} images, now {size} (--batch-size x --grad-accum-steps x '
            f'processes): choose them so that the product is {saved_size}, or give --allow-changed-batch'
        )
    done = updates * saved_size
    place = min(done // size, order.updates)
    remark = f'; updates have {size} images, no longer {saved_size}'
    again = done - place * size
    if again > 0 and place < order.updates:
        remark += f', and {again} images come twice in this epoch'
    return place, remark
