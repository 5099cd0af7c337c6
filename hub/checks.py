"""Is a folder what it says it is? Hostile until proven otherwise: nothing in it is run, sizes come before contents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

import timm_devnet
from timm_devnet.delta import Base
from timm_devnet.grown import Grown

from .configuration import check_config, read_config
from .files import check_checksums, find_files
from .header import Header, read_header
from .layout import CARD, CONFIG, WEIGHTS
from .strict_json import escaped, parse, shown
from .tensors import build_on_meta, check_tensors, check_values, storage

__all__ = ['Facts', 'check_folder', 'find_problems']


@dataclass(frozen=True)
class Facts:
    """What a checked folder is.

    Attributes:
        architecture: timm's name.
        growth: What was added to the old network, every number of units filled in; None for a plain network.
        num_classes: Number of classes.
        label_names: Their names, None if the folder does not tell.
        heads: Names of the heads that it keeps of earlier tasks, each with its number of classes.
        parameters: Of the whole network, also where the file holds only what differs from the base.
        bytes: Size of model.safetensors.
        base: What the network stands on; None if random numbers or not told.
        is_delta: Whether the file holds only what differs from the base.
        storage: Types of the floating-point tensors in the file, such as 'float32'.
        dataset: What it was trained on, None if not told.
        regime: What learnt, None if not told.
        metrics: What was measured, None if nothing or not told.
        license: None if not told.
        remarks: What one should know besides.
    """

    architecture: str
    growth: str | None
    num_classes: int
    label_names: tuple[str, ...] | None
    heads: dict[str, int]
    parameters: int
    bytes: int
    base: Base | None
    is_delta: bool
    storage: str
    dataset: str | None
    regime: str | None
    metrics: dict[str, float | None] | None
    license: str | None
    remarks: tuple[str, ...]


def check_folder(path: str | Path, in_cache: bool = False) -> Facts:
    """Check a staged folder, a run's best/, or another folder in timm's layout.

    Args:
        path: The folder.
        in_cache: Whether it is a snapshot in the Hub's cache, whose files are links to the repository's blobs there.

    Returns:
        What it is.

    Raises:
        ValueError: Something is wrong with it; `find_problems` lists all that is.
    """
    problems, facts = _examine(Path(path), in_cache)
    if facts is None:
        raise ValueError(f'{path}: {problems[0]}')
    return facts


def find_problems(path: str | Path, in_cache: bool = False) -> list[str]:
    """List all that is wrong with a folder.

    Where config.json or the header of the weights is wrong, what depends on it is not looked at.

    Args:
        path: The folder.
        in_cache: As for `check_folder`.

    Returns:
        A sentence for every problem; none if the folder is what it says.
    """
    return _examine(Path(path), in_cache)[0]


def _examine(folder: Path, in_cache: bool) -> tuple[list[str], Facts | None]:
    """Find all problems, and the facts if there are none."""
    problems: list[str] = []
    facts = None
    try:
        facts = _look(folder, in_cache, problems)
    except OSError as error:
        problems.append(f'cannot be read: {error}')
    return list(map(escaped, problems)), None if problems else facts


def _look(folder: Path, in_cache: bool, problems: list[str]) -> Facts | None:
    """Go through a folder, from what is cheap to what stands on it; adds to `problems`."""
    found = find_files(folder, in_cache, problems)
    config = header = network = None
    try:
        config = read_config(folder / CONFIG) if CONFIG in found else None
    except ValueError as error:
        problems.append(str(error))
    try:
        header = read_header(folder / WEIGHTS) if WEIGHTS in found else None
    except ValueError as error:
        problems.append(str(error))
    if config is None:
        return None
    wrong = list(check_config(config))
    problems += wrong
    if wrong or header is None:
        return None
    section, args = config.get('timm_devnet'), config.get('model_args', {})
    if section is not None:
        problems += [f'{CARD} is missing'] if CARD not in found and not (folder / CARD).exists() else []
        problems += check_checksums(folder, found, section['sha256'])
    try:
        network = build_on_meta(config)
    except ValueError as error:
        problems.append(str(error))
        return None
    base = Base.from_dict(args['delta_of']) if 'delta_of' in args else None
    is_delta = section['delta'] if section else base is not None and _lacks(header, network)
    problems += check_tensors(header, network, base if is_delta else None)
    problems += _check_claims(config, header, network)
    problems += check_values(folder / WEIGHTS, header)
    return _gather(config, header, network, is_delta, (folder / WEIGHTS).stat().st_size)


def _lacks(header: Header, network: nn.Module) -> bool:
    return not network.state_dict().keys() <= header.tensors.keys()


def _growth_of(network: nn.Module) -> str | None:
    return network.growth if isinstance(network, Grown) else None


def _check_claims(config: dict[str, Any], header: Header, network: Any) -> Iterator[str]:
    """Compare what config.json and the metadata of the weights tell of the network with the network, and each other."""
    if config.get('num_features', network.num_features) != network.num_features:
        yield f'config.json: num_features is {config["num_features"]:,}, but the network has {network.num_features:,}'
    section, growth = config.get('timm_devnet'), _growth_of(network)
    called = config['pretrained_cfg'].get('classifier')
    if isinstance(network, Grown) and called not in (None, network.classifier_name):
        name = network.classifier_name
        yield f'config.json: pretrained_cfg.classifier is {shown(called)}, but the network has {name}'
    if header.metadata.get('growth', growth or '') != (growth or ''):
        yield f'the metadata of {WEIGHTS} tells of another growth, {shown(header.metadata["growth"])}'
    if section is None:
        return
    claimed = section['growth']
    if claimed is not None and isinstance(network, Grown):
        claimed = str(timm_devnet.parse_growth(claimed, network.units_for(network)))
    if claimed != growth:
        yield f'config.json: timm_devnet.growth is {shown(section["growth"])}, but the network has {shown(growth)}'
    if storage(header) != section['storage']:
        yield f'config.json: timm_devnet.storage is {section["storage"]}, but the file has {storage(header)}'
    yield from _check_base_of_weights(header, section['base'])


def _check_base_of_weights(header: Header, base: dict[str, Any] | None) -> Iterator[str]:
    if 'base' not in header.metadata:
        return
    try:
        told = parse(header.metadata['base'].encode(), f'base in the metadata of {WEIGHTS}')
    except ValueError as error:
        yield str(error)
        return
    if told != base:
        yield f'the metadata of {WEIGHTS} names another base than config.json'


def _gather(config: dict[str, Any], header: Header, network: nn.Module, is_delta: bool, size: int) -> Facts:
    section, labels = config.get('timm_devnet'), config.get('label_names')
    told = section or {}
    base = told.get('base') or config.get('model_args', {}).get('delta_of')
    remarks = []
    if section is None:
        remarks.append(
            'config.json has no section timm_devnet: not told are checksums, licence, data and what it was made from'
        )
    if is_delta:
        remarks.append(f'a delta: what it does not hold comes from {base["model"]}, which was not looked at')
    if labels is None:
        remarks.append('the classes have no names')
    return Facts(
        architecture=config['architecture'],
        growth=_growth_of(network),
        num_classes=config['num_classes'],
        label_names=None if labels is None else tuple(labels),
        heads={name: head.num_classes for name, head in network.kept.items()} if isinstance(network, Grown) else {},
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        bytes=size,
        base=Base.from_dict(base) if base else None,
        is_delta=is_delta,
        storage=storage(header),
        dataset=told.get('dataset'),
        regime=told.get('regime'),
        metrics=told.get('metrics'),
        license=told.get('license') or config['pretrained_cfg'].get('license'),
        remarks=tuple(remarks),
    )
