"""Whether the tensors of a file are those of the network that config.json describes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from timm_devnet.checkpoint import is_of_old_network, may_be_lacking
from timm_devnet.delta import Base

from .header import FLOATS, Entry, Header
from .strict_json import shown

__all__ = ['build_on_meta', 'check_tensors', 'check_values', 'storage']

_HUB = 'hf-hub:'
_COUNTER = '.num_batches_tracked'  # of BatchNorm: old checkpoints lack it, and torch starts it at 0
# All bits of the exponent set: infinite, or not a number.
_EXPONENTS = {'F32': ('<u4', 0x7F800000), 'BF16': ('<u2', 0x7F80), 'F16': ('<u2', 0x7C00)}
_CHUNK = 1 << 22  # bytes
_OTHERS = {
    torch.int64: 'I64',
    torch.int32: 'I32',
    torch.int16: 'I16',
    torch.int8: 'I8',
    torch.uint8: 'U8',
    torch.bool: 'BOOL',
}


def build_on_meta(config: Mapping[str, Any]) -> nn.Module:
    """Build the network that a checked config.json describes, without memory for its tensors.

    Args:
        config: Without problems, as `configuration.check_config` finds them.

    Returns:
        The network on the meta device, with the arguments that timm would give it.

    Raises:
        ValueError: There is no such network.
    """
    args = {**config.get('model_args', {}), 'num_classes': config['num_classes']}
    args.pop('delta_of', None)  # of interest to what is loaded later, which is nothing here
    cfg = {**config['pretrained_cfg'], 'num_classes': config['num_classes']}
    try:
        return timm.create_model(config['architecture'], pretrained_cfg=cfg, device='meta', **args)
    except Exception as error:  # constructors of timm's models raise what they like
        reason = ' '.join(str(error).split())[:300]
        raise ValueError(
            f'config.json describes no network: {config["architecture"]} cannot be built ({reason})'
        ) from error


def check_tensors(header: Header, network: nn.Module, delta_of: Base | None) -> Iterator[str]:
    """Compare the file's tensors with the network's by name, shape and type.

    Args:
        header: Of the file.
        network: As config.json describes it.
        delta_of: The base, if the file holds only what differs from it.

    Yields:
        A sentence for every kind of difference.
    """
    wanted, given = dict(network.state_dict()), header.tensors
    numbers = sum(tensor.numel() for name, tensor in wanted.items() if not may_be_lacking(name))
    if numbers > header.numbers and delta_of is None:
        yield f'config.json describes a network of {numbers:,} numbers, model.safetensors holds {header.numbers:,}'
    unknown = given.keys() - wanted.keys()
    if unknown:
        yield f'model.safetensors has tensors that the network has not: {_some(unknown)}'
    missing = {name for name in wanted.keys() - given.keys() if not may_be_lacking(name)}
    if delta_of is not None:
        yield from _check_completion(missing, wanted, network, delta_of)
    elif missing:
        yield f'model.safetensors lacks tensors of the network: {_some(missing)}'
    common = sorted(given.keys() & wanted.keys())
    shapes = [
        f'{name} {list(given[name].shape)}, not {list(wanted[name].shape)}'
        for name in common
        if given[name].shape != wanted[name].shape
    ]
    if shapes:
        yield f'model.safetensors has tensors in other shapes than the network: {_some(shapes)}'
    types = [f'{name} {given[name].dtype}' for name in common if not _fits(given[name], wanted[name])]
    if types:
        yield f'model.safetensors has tensors in other types than the network: {_some(types)}'


def _fits(entry: Entry, tensor: Tensor) -> bool:
    return entry.dtype in (FLOATS if tensor.is_floating_point() else (_OTHERS.get(tensor.dtype),))


def _check_completion(
    missing: Collection[str], wanted: Mapping[str, Tensor], network: Any, base: Base
) -> Iterator[str]:
    """Find tensors that neither a delta checkpoint nor its base can have."""
    own = tuple(f'{name}.' for name in _names(network.pretrained_cfg.get('classifier')))
    head = [name for name in missing if own and name.startswith(own)]
    if head:
        yield f'model.safetensors lacks the classifier, which every delta checkpoint holds: {_some(head)}'
    if base.model.startswith(_HUB):  # it may have grown, and how is known to its own repository alone
        return
    architecture = base.model.partition('.')[0]
    theirs: dict[str, Tensor] = timm.create_model(architecture, device='meta').state_dict()
    absent = {name for name in missing if name not in theirs or theirs[name].shape != wanted[name].shape} - {*head}
    if absent:
        yield f'model.safetensors lacks tensors that its base {base.model} does not have either: {_some(absent)}'
    foreign = [name for name in theirs.keys() - wanted.keys() if is_of_old_network(name)]
    if foreign:
        yield f'{base.model} is not the base of this network, which has no {_some(foreign)}'


def _names(given: Any) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given or ())


def check_values(path: Path, header: Header) -> Iterator[str]:
    """Find tensors with numbers that are infinite or none: a network that holds some answers nothing.

    The file is read in pieces.
    """
    broken = []
    with open(path, 'rb') as file:
        for name, entry in header.tensors.items():
            if entry.dtype in _EXPONENTS and not _are_finite(file, entry):
                broken.append(name)
    if broken:
        yield f'model.safetensors has numbers that are infinite or not a number in {_some(broken)}'


def _are_finite(file: Any, entry: Entry) -> bool:
    kind, exponent = _EXPONENTS[entry.dtype]
    file.seek(entry.start)
    for start in range(entry.start, entry.stop, _CHUNK):
        bits = np.frombuffer(file.read(min(_CHUNK, entry.stop - start)), kind)
        if (bits & exponent == exponent).any():
            return False
    return True


def storage(header: Header) -> str:
    """The types of the floating-point tensors in a file, by torch's names."""
    kinds = dict.fromkeys(FLOATS[entry.dtype] for entry in header.tensors.values() if entry.dtype in FLOATS)
    return ', '.join(sorted(kinds))


def _some(names: Collection[str], count: int = 3) -> str:
    first = ', '.join(shown(name, 200)[1:-1] for name in sorted(names)[:count])
    return first + (f' and {len(names) - count} more' if len(names) > count else '')
