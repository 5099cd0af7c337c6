"""From a run folder, or a network in memory, to the folder that would be published, and nothing else in it.

The folder appears under its name when it is whole. Nothing of it is a pickle, and nothing tells of the machine: file
lists, predictions and reports stay behind, and absolute paths in options are shortened to their last part.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn

import timm_devnet
from timm_devnet.delta import Base
from training.files import made_whole, refuse_taken, sha256
from training.run_folder import installed_version, write_config
from training.tensor_files import write_tensors

from .card import write_card
from .layout import CARD, CONFIG, WEIGHTS, format_bytes
from .material import (
    STORAGES,
    Material,
    check_tensors,
    choose_license,
    find_difference,
    find_license,
    read_config,
    read_material,
    storage_of,
)
from .measuring import evaluation_of, measure_stored
from .metadata import Subject
from .picture import write_picture
from .record import find_record

FORMAT = 1


@dataclass(frozen=True)
class Order:
    """How it is to be staged; the fields are the arguments of `stage`."""

    delta: bool
    rounded: torch.dtype | None
    license: str | None
    base_file: Path | None
    repo_id: str | None
    say: Callable[[str], None]


@dataclass(frozen=True)
class Staged:
    """A staged folder."""

    path: Path
    files: dict[str, int]
    """Bytes of each file by its name."""
    config: dict[str, Any]
    """What config.json says; its section timm_devnet is this project's."""
    card: str
    """README.md."""


def stage(
    run: str | Path,
    folder: str | Path,
    *,
    delta: bool = False,
    dtype: str | None = None,
    license: str | None = None,
    base_file: str | Path | None = None,
    repo_id: str | None = None,
    say: Callable[[str], None] = print,
) -> Staged:
    """Stage a run's best weights.

    Args:
        run: A run folder of train.py; its best/ or last/; or another folder with config.json and model.safetensors in
            timm's layout, of which nothing more is known.
        folder: The new folder; it may exist if it is empty.
        delta: Store only what differs from the base.
        dtype: 'bf16' stores floating-point tensors in half the bytes; accuracy is then measured again with them, on the
            run's own validation images.
        license: Of the weights; None for that of the base.
        base_file: Where the base's weights are, for a delta; None for where they came from in the run, or the Hub.
        repo_id: ORG/NAME that the card speaks of; None to name it later by `hub.card.name_repository`.
        say: Takes lines that tell what happens.

    Returns:
        What was staged.

    Raises:
        ValueError: Run, base, licence or data cannot be had or do not fit; no folder is left then.
    """
    if dtype not in (None, 'bf16'):
        raise ValueError(f"dtype {dtype!r} is not known: it must be 'bf16', or None for the weights as they are")
    run, folder = Path(run), Path(folder)
    refuse_taken(folder)
    record = find_record(run)
    if dtype and record is None:
        raise ValueError(f'{run} is no run, so there are no images to measure weights in {dtype} on: leave out dtype')
    material = read_material(run if record is None else record.weights, record)
    rounded = torch.bfloat16 if dtype else None
    if rounded is not None:
        evaluation_of(material.record)  # refuses before anything is written
    order = Order(delta, rounded, license, None if base_file is None else Path(base_file), repo_id, say)
    return write_staged(material, folder, order)


def stage_model(
    model: nn.Module,
    folder: str | Path,
    *,
    classes: Sequence[str] | None = None,
    license: str | None = None,
    base: Base | None = None,
    delta: bool = False,
    base_file: str | Path | None = None,
    repo_id: str | None = None,
    say: Callable[[str], None] = print,
) -> Staged:
    """Stage a network in memory, of which no run tells.

    Args:
        model: A timm network in float32 or bfloat16, in any memory format; compiled or wrapped for several processes,
            too.
        folder: The new folder; it may exist if it is empty.
        classes: Names of its outputs, in their order; None for those that it knows itself.
        license: Of the weights; None for that of the base.
        base: What it began with, as `timm_devnet.delta.base_of` names it.
        delta: Store only what differs from the base.
        base_file: Where the base's weights are; None for the Hub.
        repo_id: ORG/NAME that the card speaks of; None to name it later.
        say: Takes lines that tell what happens.

    Returns:
        What was staged.

    Raises:
        ValueError: The network, its base or its licence cannot be published so; no folder is left then.
    """
    folder = Path(folder)
    refuse_taken(folder)
    network: Any = extract_model_from_parallel(model, keep_fp32_wrapper=False, keep_torch_compile=False)
    known = getattr(network, 'pretrained_cfg', None)
    if not known or not known.get('architecture'):
        raise ValueError(f'{type(network).__name__} is not a network that timm made: it has no pretrained_cfg')
    names = list(known.get('label_names') or () if classes is None else classes)
    if len(names) > network.num_classes:
        raise ValueError(f'{len(names)} names of classes were given, but the network has {network.num_classes} outputs')
    with tempfile.TemporaryDirectory() as place:
        write_config(Path(place) / CONFIG, network, {'label_names': names})
        config, blank = read_config(Path(place))
    material = Material(config, blank, network.state_dict(), base=base, base_license=find_license(base))
    check_tensors(material, known['architecture'])
    order = Order(delta, None, license, None if base_file is None else Path(base_file), repo_id, say)
    return write_staged(material, folder, order)


def write_staged(material: Material, folder: Path, order: Order) -> Staged:
    """Write the folder, whole or not at all."""
    license = choose_license(material, order.license)
    stored = find_difference(material, order.base_file, order.say) if order.delta else material.tensors
    is_delta = len(stored) < len(material.tensors)
    with made_whole(folder) as place, ThreadPoolExecutor(1) as pool:
        # Hashing and copying half a gigabyte leave the interpreter free for drawing and writing.
        written = pool.submit(write_tensors, place / WEIGHTS, stored, describe_weights(material), order.rounded)
        sums = {name: sha256(place / name) for name in add_pictures(material, place)}
        storage = STORAGES[order.rounded] if order.rounded else storage_of(material.tensors)
        config = describe(material, is_delta, storage, license)
        if order.rounded is not None:
            written.result()
            order.say('measuring the weights as they are stored')
            measured = measure_stored(material, stored, config, order.rounded, place)
            config['timm_devnet']['metrics'].update(measured)
        subject = Subject(config, material.network, material.record, material.base_license)
        card = write_card(subject, order.repo_id)
        config['timm_devnet']['sha256'] = {WEIGHTS: written.result(), **sums}
        (place / CONFIG).write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')
        (place / CARD).write_text(card, encoding='utf-8', newline='\n')
        files = {path.name: path.stat().st_size for path in sorted(place.iterdir())}
    order.say(f'staged in {folder}: ' + ', '.join(f'{name} {format_bytes(size)}' for name, size in files.items()))
    return Staged(folder, files, config, card)


def describe_weights(material: Material) -> dict[str, str]:
    """The metadata of model.safetensors."""
    growth = getattr(material.network, 'growth', None)
    return {
        'format': 'pt',
        **({'config': material.options} if material.options else {}),
        **({'growth': growth} if growth else {}),
        'base': json.dumps(None if material.base is None else material.base.to_dict()),
    }


def describe(material: Material, is_delta: bool, storage: str, license: str) -> dict[str, Any]:
    """config.json: timm's, and the section timm_devnet, in which the checksums are still to come."""
    record, base = material.record, material.base
    arguments = {name: value for name, value in material.config.get('model_args', {}).items() if name != 'delta_of'}
    if is_delta and base is not None:
        arguments['delta_of'] = base.to_dict()
    section = {
        'format': FORMAT,
        'version': installed_version('timm-devnet') or 'unknown',
        'growth': getattr(material.network, 'growth', None),
        'base': None if base is None else base.to_dict(),
        'delta': is_delta,
        'storage': storage,
        'license': license,
        'dataset': record.dataset if record else None,
        'regime': record.config['regime'] if record else None,
        'metrics': record.metrics() if record else None,
    }
    cfg = {**material.config['pretrained_cfg'], 'license': license}  # timm copies it from a base, whatever began there
    return {**material.config, 'model_args': arguments, 'pretrained_cfg': cfg, 'timm_devnet': section}


def add_pictures(material: Material, place: Path) -> list[str]:
    """Draw the growth, and copy what the run has that is published; returns the names."""
    names = []
    if material.record is not None:
        for name in ('metrics.csv', 'curves.png'):
            shutil.copyfile(material.record.folder.path / name, place / name)
            names.append(name)
    if timm_devnet.block_names(material.network):
        write_picture(material.network, place / 'growth.png')
        names.append('growth.png')
    return names
