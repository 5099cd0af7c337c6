"""Keeping the heads of earlier tasks through a run, and measuring by each of them, before the run and at its end."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
from accelerate import Accelerator
from torch import nn

import timm_devnet
from timm_devnet.grown import Grown
from timm_devnet.heads import check_name
from timm_devnet.keeping import CopiedHead, attach_head, copy_head

from . import evaluation, networks
from .config import LOCAL, Config
from .data import InputFormat, Normalize
from .earlier import EarlierTask
from .image_cache import open_cache
from .run_folder import RunFolder
from .sources import load_validation
from .tuning import LAYOUTS

# The options that find images.
DATA = (
    *('data_dir', 'dataset', 'train_split', 'val_split', 'class_map', 'input_key', 'target_key'),
    *('multi_label', 'labels'),
)
PATHS = ('data_dir', 'class_map')


@dataclasses.dataclass(frozen=True)
class Kept:
    """What a network that was just built brings along of earlier tasks."""

    copied: CopiedHead
    """Its classifier."""
    tasks: list[EarlierTask]
    """All its earlier tasks, the one of its classifier last; not measured yet."""


def copy_heads(config: Config, network: Any) -> Kept | None:
    """Copy the classifier of a network that was just built, and find out about all tasks that it has learnt.

    Args:
        config: Of the run.
        network: As timm made it, with the classifier of its weights.

    Returns:
        None without --keep-heads.

    Raises:
        ValueError: It has no trained classifier, or none that can be kept.
    """
    if not config.keep_heads:
        return None
    if not config.pretrained:
        raise ValueError('--keep-heads keeps what a network has learnt, and --no-pretrained starts one that has not')
    folder = starting_run(config)
    facts = folder.read_run() if folder is not None else {}
    kept: dict[str, Any] = network.kept if isinstance(network, Grown) else {}
    recorded = {task['head']: EarlierTask.from_dict(task) for task in facts.get('earlier', ())}
    tasks = []
    for name, head in kept.items():
        task = recorded.get(name, EarlierTask(name, 'map' if head.multi_label else 'top1'))
        tasks.append(dataclasses.replace(task, after=None, remark=None))
    saved = facts.get('config', {})
    multi_label = bool(saved.get('multi_label'))
    copied = copy_head(network, unique_name(task_name(config, saved, network), kept), multi_label)
    names = evaluation.class_names(network)
    if names is not None and len(names) == copied.head.num_classes:
        head = dataclasses.replace(copied.head, label_names=tuple(names))
        copied = dataclasses.replace(copied, head=head)
    data = {name: at_last(name, saved[name]) for name in DATA if name in saved} or None
    input_format = dataclasses.asdict(networks.input_format(network, saved.get('img_size')))
    tasks.append(EarlierTask(copied.name, 'map' if multi_label else 'top1', data, input_format))
    return Kept(copied, tasks)


def attach_heads(kept: Kept | None, network: nn.Module) -> None:
    """Let the network that goes on keep the classifier that it began with.

    Raises:
        ValueError: It has not grown.
    """
    if kept is None:
        return
    if not isinstance(network, Grown):
        raise ValueError(
            '--keep-heads: a plain network has no place for heads: let it grow, as by --grow wa512, or by --grow norm '
            'without new units'
        )
    attach_head(network, kept.copied)


def starting_run(config: Config) -> RunFolder | None:
    """Find the run whose weights --model names."""
    if not config.model.startswith(LOCAL):
        return None
    folder = RunFolder(Path(config.model.removeprefix(LOCAL)).parent)
    return folder if (folder.path / 'run.json').is_file() else None


def task_name(config: Config, saved: dict[str, Any], network: Any) -> str:
    """Name the task that a network was trained for: by the run's data, else by the weights' tag or the network."""
    data = saved.get('dataset') or (Path(saved['data_dir']).resolve().name if saved.get('data_dir') else None)
    name = data or network.pretrained_cfg.get('tag') or config.model
    name = re.sub(r'[^A-Za-z0-9_-]+', '-', name.rstrip('/').rpartition('/')[2])[:50].strip('-_').lower() or 'task'
    try:
        check_name(name)
    except ValueError:  # a word of torch
        return f'task-{name}'
    return name


def unique_name(name: str, taken: Sequence[str] | dict[str, Any]) -> str:
    """Give a name that is not taken: NAME, NAME-2, NAME-3, ...

    Example:
        >>> unique_name('digits', ['digits', 'digits-2'])
        'digits-3'
    """
    number = 1
    while (name if number == 1 else f'{name}-{number}') in taken:
        number += 1
    return name if number == 1 else f'{name}-{number}'


def at_last(name: str, value: Any) -> Any:
    """Make the path of images one that holds from elsewhere too."""
    return os.path.abspath(value) if name in PATHS and value is not None else value


def measure_before(config: Config, accelerator: Accelerator, kept: Kept, start: Any) -> list[EarlierTask]:
    """Measure every earlier task with the network that the run starts from.

    Args:
        config: Of the run.
        accelerator: Joins the processes.
        kept: What the run keeps of the network.
        start: The network, with the classifier of its weights.
    """

    def network_for(head: str) -> nn.Module:
        return start if head == kept.copied.name else timm_devnet.recall_head(start, head)

    names = list(kept.copied.head.label_names)
    start.pretrained_cfg['label_names'] = names or None
    measured = measure(config, accelerator, kept.tasks, network_for)
    return [
        dataclasses.replace(task, history=(*task.history, value), images=images, remark=remark)
        for task, (value, images, remark) in zip(kept.tasks, measured, strict=True)
    ]


def measure_after(
    config: Config, accelerator: Accelerator, tasks: Sequence[EarlierTask], weights: Path
) -> list[EarlierTask]:
    """Measure every earlier task with the best weights of the run.

    Args:
        config: Of the run.
        accelerator: Joins the processes.
        tasks: As `measure_before` gave them.
        weights: The folder of the best weights.
    """
    best = timm.create_model(f'{LOCAL}{weights}', pretrained=True)
    measured = measure(config, accelerator, tasks, lambda head: timm_devnet.recall_head(best, head))
    return [
        dataclasses.replace(task, after=value, images=images or task.images, remark=remark)
        for task, (value, images, remark) in zip(tasks, measured, strict=True)
    ]


Measured = tuple[float | None, int | None, str | None]  # in percent, of so many images; or why not


def measure(
    config: Config,
    accelerator: Accelerator,
    tasks: Sequence[EarlierTask],
    network_for: Callable[[str], nn.Module],
) -> list[Measured]:
    """Measure tasks by their own images, in their own input format; every process calls this.

    Args:
        config: Of the run, for how images are loaded.
        accelerator: Joins the processes.
        tasks: Each with what finds its images.
        network_for: Gives the network for a head.
    """
    found: list[Measured] = []
    for task in tasks:
        network = network_for(task.head)
        try:
            found.append(measure_task(config, accelerator, task, network))
        except (ValueError, OSError) as error:  # images that are gone end no run
            found.append((None, None, f'not measured: {" ".join(str(error).split())}'))
    return found


def measure_task(config: Config, accelerator: Accelerator, task: EarlierTask, network: Any) -> Measured:
    """Measure one task.

    Raises:
        ValueError: Its images cannot be had.
    """
    if task.data is None or task.input is None:
        raise ValueError('where its images are is not recorded')
    own = dataclasses.replace(config, **{**task.data, 'bad_images': 'skip'})
    source = load_validation(own, open_cache(own))
    outputs, classes, _ = evaluation.match_classes(network, source.classes)
    renumbered = evaluation.Renumbered(source, outputs, classes)
    input_format = InputFormat(**{**task.input, 'mean': tuple(task.input['mean']), 'std': tuple(task.input['std'])})
    memory_format = LAYOUTS[config.memory_format or 'channels_last']
    normalize = Normalize(input_format.mean, input_format.std, memory_format).to(accelerator.device)
    network = network.to(accelerator.device).to(memory_format=memory_format)
    predictions = evaluation.predict_on(own, accelerator, network, classes, renumbered, input_format, normalize)
    metrics = predictions.metrics()
    return metrics[task.measure], int(metrics['images']), None
