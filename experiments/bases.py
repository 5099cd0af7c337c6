"""What the tables must know of a base network: its regimes, its usual sizes of growths, and a hidden layer to match."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
from torch.nn.modules.batchnorm import _BatchNorm

import timm_devnet
from timm_devnet.growth import CONTROLS, PAPER_UNITS

# The paper's names of regimes, and the place of each among those that a network offers.
REGIMES = ('New', 'FC7-New', 'FC6-New', 'All')


@dataclass(frozen=True)
class Base:
    """A plain network to grow from."""

    name: str
    """timm's, with or without the tag of its weights."""
    regimes: Mapping[str, str]
    """Its own name of each of the paper's regimes that it has."""
    units: Mapping[str, int]
    """Usual number of units of each kind of growth that it takes."""
    growths: frozenset[str]
    """Kinds of growth that it takes, norm and skip among them."""
    hidden: int
    """Units of a hidden layer without reconciliation that learns as many parameters as the usual wa."""
    has_batch_norm: bool = False
    """Whether there are statistics to freeze."""

    def scaled(self, kind: str, units: int) -> str:
        """Name a growth that has on AlexNet so many units; other networks have fewer, in proportion to their usual wa.

        Example:
            >>> Base('x', {}, {'wa': 512}, frozenset(), 0).scaled('wwa', 1024)
            'wwa256'
        """
        wanted = units * self.units['wa'] // PAPER_UNITS['wa']
        return f'{kind}{max(2, wanted + wanted % 2)}'

    def grown(self, growth: str) -> str:
        """Name the network that has grown, or the plain one for an empty growth.

        Example:
            >>> Base('vgg16.tv_in1k', {}, {}, frozenset(), 0).grown('wa64')
            'vgg16_wa64.tv_in1k'
        """
        plain, dot, tag = self.name.partition('.')
        return f'{plain}_{growth}{dot}{tag}' if growth else self.name


def describe_base(name: str, num_classes: int) -> Base:
    """Find out what the tables must know; nothing is computed but shapes.

    Args:
        name: Of a plain network.
        num_classes: Outputs of its classifier.

    Raises:
        ValueError: It is none of timm's, has grown already, or cannot be widened.

    Example:
        >>> base = describe_base('alexnet', 397)
        >>> base.regimes['FC7-New'], base.units['da'], base.hidden
        ('fc7-new', 6144, 2411)
    """
    plain, _, _ = name.partition('.')
    found = timm_devnet.list_growable(plain).get(plain)
    if found is None:
        raise ValueError(f'--model {name} is no plain network of timm: give one without a growth, such as alexnet')
    kinds = [re.fullmatch(r'([a-z]+)(\d*)', growth) for growth in found.growths]
    units = {kind[1]: int(kind[2]) for kind in kinds if kind and kind[2]}
    lacking = {kind: reason for kind, reason in found.refused.items() if kind in ('wa', 'da', *CONTROLS)}
    if lacking:
        raise ValueError(f'--model {name} cannot take what every table has: {lacking}')
    model: Any = timm.create_model(plain, device='meta', num_classes=num_classes)
    offered = timm_devnet.regimes(model)
    below = dict(zip(REGIMES[1:3], offered[1:-1], strict=False))
    growths = frozenset(kind[1] for kind in kinds if kind)
    return Base(
        name,
        {'New': offered[0], **below, 'All': offered[-1]},
        units,
        growths,
        match_hidden(plain, f'wa{units["wa"]}', num_classes),
        any(isinstance(module, _BatchNorm) for module in model.modules()),
    )


def match_hidden(base: str, growth: str, num_classes: int) -> int:
    """Find the units of a hidden layer below the classifier that learn as many parameters as a growth's.

    The number of parameters is linear in that of units, so that two networks tell it.

    Args:
        base: Name of the plain network.
        growth: What it is compared with.
        num_classes: Outputs of the classifier.
    """
    few, more = (count_new(f'{base}_da{units}', num_classes, scale_init=0.0) for units in (1, 2))
    wanted = count_new(f'{base}_{growth}', num_classes)
    return max(1, round(1 + (wanted - few) / (more - few)))


def count_new(name: str, num_classes: int, **options: Any) -> int:
    """Count the parameters that regime new trains."""
    registered, arguments = timm_devnet.resolve_name(name)
    model: Any = timm.create_model(registered, device='meta', num_classes=num_classes, **arguments, **options)
    groups = timm_devnet.parameter_groups(model, 'new', lr=1.0, weight_decay=0.0)
    return sum(parameter.numel() for group in groups for parameter in group['params'])
