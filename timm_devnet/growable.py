"""Which of timm's networks can grow, and by what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from timm.models import list_models, model_entrypoint

from .growing import family_of
from .grown import Options
from .growth import CONTROLS, KINDS, parse
from .registration import is_grown_name

__all__ = ['Growable', 'list_growable', 'list_plain']


@dataclass(frozen=True)
class Growable:
    """What a network can grow by.

    Attributes:
        growths: Kinds of growth, each with the usual number of units: 'da1024', 'wa512', 'norm', ...
        refused: The other kinds, each with the reason.
    """

    growths: tuple[str, ...]
    refused: Mapping[str, str]


def list_plain(filter: str | Sequence[str] = '') -> list[str]:
    """List timm's architectures that have not grown, by the filter of timm's `list_models`."""
    return [name for name in list_models(filter or '*') if not is_grown_name(name)]


def list_growable(filter: str | Sequence[str] = '') -> dict[str, Growable]:
    """Say of timm's architectures by what they can grow, and why not by the rest.

    Each is built on the meta device, without weights, and run once for its shapes: about a third of a second each, and
    some minutes for all.

    Args:
        filter: As of timm's `list_models`: 'resnet*', or several such; '' for all.

    Returns:
        The architectures by name, those that cannot grow at all included.

    Example:
        >>> import timm_devnet
        >>> timm_devnet.list_growable('resnet18')['resnet18'].growths
        ('da256', 'wa128', 'dwa128', 'wwa128', 'mwa128', 'xwa128', 'norm', 'skip')
    """
    return {name: _tell(name) for name in list_plain(filter)}


def _tell(name: str) -> Growable:
    kinds = (*KINDS, *CONTROLS)
    try:
        model: Any = model_entrypoint(name)(pretrained=False, device='meta')
        family, growths = family_of(model), {}
        units = family.units_for(model)
    except (ValueError, TypeError) as error:  # TypeError: the network cannot be built on a device
        return Growable((), dict.fromkeys(kinds, str(error)))
    refused = {}
    for kind in kinds:
        try:
            growth = parse(kind, units)
            family.plan_for(model, growth, Options())
            growths[kind] = str(growth)
        except ValueError as error:
            refused[kind] = str(error)
    return Growable(tuple(growths.values()), refused)
