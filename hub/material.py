"""What there is to stage, read from a folder in timm's layout or made of a network in memory; and its base."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

import timm_devnet
from timm_devnet.delta import Base, digest, fetch, first_tensors, subtract
from training.networks import UNREADABLE_WEIGHTS

from .layout import WEIGHTS
from .markdown import one_line
from .metadata import hub_id_of, license_of
from .record import Record, public_options

STORAGES = {torch.float32: 'float32', torch.bfloat16: 'bfloat16'}
# What timm and torch raise at a description of a network that cannot be.
IMPOSSIBLE = (RuntimeError, ValueError, TypeError, KeyError, AttributeError, AssertionError, OSError)


@dataclass(frozen=True)
class Material:
    """What is to be staged, wherever it comes from."""

    config: dict[str, Any]
    """timm's config.json."""
    network: Any
    """Built from it, on the meta device."""
    tensors: Mapping[str, Tensor]
    options: str | None = None
    """The training configuration as JSON."""
    record: Record | None = None
    base: Base | None = None
    base_license: str | None = None

    @property
    def classifier(self) -> Any:
        """Name or names of the classifier's modules."""
        return self.network.pretrained_cfg['classifier']


def read_material(path: Path, record: Record | None) -> Material:
    """Read a folder in timm's layout; its tensors stay mapped to the file.

    Raises:
        ValueError: Something in it is broken or does not fit together.
    """
    config, network = read_config(path)
    try:
        tensors = load_file(path / WEIGHTS)
        with safe_open(path / WEIGHTS, 'pt') as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f'{path / WEIGHTS} cannot be read: {error}') from error
    base = record.base if record else None
    material = Material(
        config,
        network,
        tensors,
        options=public_options(record.config) if record else shared_options(header.get('config')),
        record=record,
        base=base,
        base_license=record.base_license if record and record.knows_license else find_license(base),
    )
    check_tensors(material, str(path))
    return material


def read_config(path: Path) -> tuple[dict[str, Any], Any]:
    """Read config.json, and build the network that it describes on the meta device.

    Raises:
        ValueError: It describes none, or is that of a staged folder.
    """
    try:
        config = json.loads((path / 'config.json').read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path / "config.json"} is not JSON: {error}') from error
    if isinstance(config, dict) and 'timm_devnet' in config:
        raise ValueError(f'{path} is staged already: publish it as it is, or stage the run that it came from')
    try:
        network: Any = timm.create_model(f'local-dir:{path}', pretrained=False, device='meta')
    except IMPOSSIBLE as error:
        raise ValueError(
            f'{path / "config.json"} describes no network that timm can build, so nobody could load it: {error}'
        ) from error
    if not config['num_classes']:
        raise ValueError(f'{path}: the network has no classifier, and what is published classifies: give it one')
    return config, network


def check_tensors(material: Material, place: str) -> None:
    """Refuse tensors that are not the network's.

    Raises:
        ValueError: Names some.
    """
    wanted, given = material.network.state_dict(), material.tensors
    problems = {
        'lacks': wanted.keys() - given.keys(),
        'has besides': given.keys() - wanted.keys(),
        'has in other shapes': {
            name for name in wanted.keys() & given.keys() if wanted[name].shape != given[name].shape
        },
    }
    found = [f'it {what} {sorted(names)[:3]} ({len(names)} in all)' for what, names in problems.items() if names]
    if found:
        architecture = material.config['architecture']
        raise ValueError(f'{place}: the weights are not those of {architecture}, as timm builds it: {"; ".join(found)}')
    storage_of(material.tensors)


def storage_of(tensors: Mapping[str, Tensor]) -> str:
    """Name the type of the floating-point tensors.

    Raises:
        ValueError: They are of several, or of one that is not published.
    """
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(kinds) != 1 or not kinds <= STORAGES.keys():
        names = ', '.join(sorted(str(kind).removeprefix('torch.') for kind in kinds))
        raise ValueError(
            f'weights are published in float32 or bfloat16, all in one; these are in {names}: convert them'
        )
    return STORAGES[kinds.pop()]


def shared_options(text: str | None) -> str | None:
    """The training configuration in a header, if there is one that can be read."""
    with contextlib.suppress(ValueError):
        options = json.loads(text or '')
        return public_options(options) if isinstance(options, dict) else None
    return None


def find_license(base: Base | None) -> str | None:
    """Find the licence of a base: what timm knows, or what its repository's card says; None if neither does."""
    if base is None:
        return None
    known, repo_id = license_of(base.model), hub_id_of(base.model)
    if known or repo_id is None:
        return known
    try:
        path = hf_hub_download(repo_id, 'README.md', revision=base.revision)
        data = ModelCard.load(path).data
    except (HfHubHTTPError, OSError, ValueError, yaml.YAMLError):
        return None
    name = data.license_name if data.license == 'other' else data.license
    return name if isinstance(name, str) and name != 'unknown' else None


def choose_license(material: Material, license: str | None) -> str:
    """Take the user's licence, or the base's.

    Raises:
        ValueError: There is neither.
    """
    if license is not None:
        if not 0 < len(license.strip()) <= 100 or one_line(license) != license:
            raise ValueError(f'license {license[:100]!r} is no name of one: give one such as apache-2.0, or its title')
        return license.strip()
    if material.base_license:
        return material.base_license
    base = 'no base is recorded' if material.base is None else f'that of the base {material.base} is not known'
    raise ValueError(f'the licence of these weights is not known: {base}; give it, as in --license apache-2.0')


def find_difference(material: Material, base_file: Path | None, say: Callable[[str], None]) -> Mapping[str, Tensor]:
    """Find what differs from the base.

    Raises:
        ValueError: There is no base, or it cannot be had.
    """
    if material.base is None:
        raise ValueError(
            'a delta stands on a base that others can get, and none is recorded for these weights: publish them whole'
        )
    if not timm_devnet.block_names(material.network):
        raise ValueError(
            f'{material.config["architecture"]} has not grown, and only grown networks complete a delta when they are '
            'loaded: publish it whole'
        )
    changed = subtract(material.tensors, load_base(material, base_file), material.classifier)
    if len(changed) == len(material.tensors):
        say(f'nothing of {material.base} stayed as it was, so a delta would save nothing: the weights are staged whole')
    return changed


def load_base(material: Material, base_file: Path | None) -> dict[str, Tensor]:
    """Get the base's tensors: from the file given, from the file that the run began with, or as others will.

    Raises:
        ValueError: They are not those that the run began with, or cannot be had.
    """
    base = material.base
    assert base is not None, 'a base is recorded'
    if base_file is not None:
        return read_base_file(material.config, base, base_file)
    began = (material.record.config.get('pretrained_path') if material.record else None) or ''
    if began and Path(began).is_file():
        with contextlib.suppress(ValueError):  # it may have been replaced since
            return read_base_file(material.config, base, Path(began))
    return fetch(base)


def read_base_file(config: dict[str, Any], base: Base, path: Path) -> dict[str, Tensor]:
    """Read a base's tensors as timm does, in whatever layout: build the network from the file, and take what it gave.

    Args:
        config: config.json of the network that stands on it.
        base: What the file must hold.
        path: The file.

    Raises:
        ValueError: The file holds something else.
    """
    if not path.is_file():
        raise ValueError(f'the base file {path} is not a file')
    options = {**config.get('model_args', {}), 'num_classes': 0}
    for name in ('delta_of', 'heads'):  # of the network, not of what it began with
        options.pop(name, None)
    try:
        network: Any = timm.create_model(
            config['architecture'],
            pretrained=True,
            pretrained_cfg_overlay={'file': str(path)},
            **options,
        )
    except (RuntimeError, ValueError, *UNREADABLE_WEIGHTS) as error:
        raise ValueError(f'{path} is not the base of {config["architecture"]}: {error}') from error
    state = first_tensors(network)
    found = digest(state, network.pretrained_cfg['classifier'])
    if found != base.tensors:
        raise ValueError(
            f'{path} is not the base {base} that the network began with: its tensors have checksum {found}, and should '
            f'have {base.tensors}; give the right file, or none to fetch it'
        )
    return state
