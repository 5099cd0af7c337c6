"""How far every layer, unit and batch norm of a network is from what it began as."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import timm_devnet
from timm_devnet.delta import subtract
from timm_devnet.grown import Grown

from .movement import Movement, NormMovement, movement, norm_movement, unit_movements

OLD, EARLIER, NEW, CLASSIFIER, HEAD = 'old', 'grown earlier', 'new', 'classifier', "earlier tasks' head"
KINDS = (OLD, EARLIER, NEW, CLASSIFIER, HEAD)


@dataclass(frozen=True)
class LayerChange:
    """How far one tensor moved; of the classifier, its columns on one block."""

    tensor: str
    kind: str
    shape: tuple[int, ...]
    whole: Movement
    units: list[Movement]
    """Of each output channel, where the tensor is a layer's weights; else none."""
    place: int
    """Where it stands among the old layers, from the bottom up."""

    def quantile(self, share: float) -> float | None:
        """A quantile of the units' relative movement; None if there are none."""
        found = sorted(unit.relative for unit in self.units if unit.relative is not None)
        return found[round(share * (len(found) - 1))] if found else None


@dataclass(frozen=True)
class Change:
    """What a fine-tuning changed."""

    layers: list[LayerChange]
    """Every tensor that learns, in the order of the network."""
    norms: list[tuple[str, str, NormMovement]]
    """Name and kind of each batch norm, and how its statistics moved."""
    unchanged: list[str]
    """Tensors of the start that are as they were, bit for bit."""


def find_change(start: Any, tuned: Any) -> Change:
    """Compare a network with what it began as.

    Args:
        start: With every tensor that the other has.
        tuned: The network now.

    Raises:
        ValueError: The one is not what the other began as.
    """
    before, after = start.state_dict(), tuned.state_dict()
    changed = subtract(after, before, None)
    misfits = [name for name in after if before[name].shape != after[name].shape]
    if misfits:
        raise ValueError(f'what it began as has other shapes: {misfits[:3]} ({len(misfits)} in all)')
    trained = [name for name, _ in tuned.named_parameters()]
    places = _places(tuned, trained)
    layers = [layer for name in trained for layer in _changes(tuned, name, before[name], after[name], places[name])]
    stems = [name.removesuffix('.running_mean') for name in after if name.endswith('.running_mean')]
    norms = [(stem, kind_of(tuned, stem), _norm_change(tuned, stem, before, after)) for stem in stems]
    return Change(layers, norms, [name for name in after if name not in changed])


def kind_of(network: Any, name: str) -> str:
    """Whether a tensor is old, grown in an earlier run, new, the classifier's, or of a head kept of an earlier task."""
    heads = network.pretrained_cfg.get('classifier') or ()
    if name.startswith(tuple(f'{head}.' for head in ((heads,) if isinstance(heads, str) else heads))):
        return CLASSIFIER
    if isinstance(network, Grown) and network.kept and name.startswith('heads.'):
        return HEAD
    if not isinstance(network, Grown) or not name.startswith('grown.'):
        return OLD
    step = dict(network.added())[name.split('.')[1]].step
    return NEW if step >= network.settled else EARLIER


def _places(network: Any, trained: Sequence[str]) -> dict[str, int]:
    """Where each tensor stands among the old ones; new units stand at the level that they were put beside."""
    old = [name for name in trained if kind_of(network, name) == OLD]
    places = {name: place for place, name in enumerate(old)}
    levels = {}
    if isinstance(network, Grown):
        for level in timm_devnet.growing.old_levels(network):
            prefixes = tuple(f'{module}.' for module in level.modules)
            levels[level.name] = max((places[name] for name in old if name.startswith(prefixes)), default=len(old))
    added = dict(network.added()) if isinstance(network, Grown) else {}
    for name in trained:
        if name not in places:
            beside = added[name.split('.')[1]].level if name.startswith('grown.') else ''
            places[name] = levels.get(beside, len(old))
    return places


def _changes(network: Any, name: str, before: Tensor, after: Tensor, place: int) -> list[LayerChange]:
    """A tensor's movement; the classifier's columns are told apart by the block that they read."""
    kind = kind_of(network, name)
    parts = [(name, before, after)]
    if kind == CLASSIFIER and isinstance(network, Grown) and before.ndim == 2:
        widths = [width for _, width in network.plan.top]
        names = [f'{name}[{block}]' for block in network.plan.blocks]
        parts = list(zip(names, before.split(widths, 1), after.split(widths, 1), strict=True))
    return [
        LayerChange(
            part,
            kind,
            tuple(was.shape),
            movement(was, now),
            unit_movements(was, now) if was.ndim > 1 else [],
            place,
        )
        for part, was, now in parts
    ]


def _norm_change(network: Any, stem: str, before: dict[str, Tensor], after: dict[str, Tensor]) -> NormMovement:
    keys = ('running_mean', 'running_var')
    old, now = ({key: state[f'{stem}.{key}'] for key in keys} for state in (before, after))
    return norm_movement(old, now, eps=network.get_submodule(stem).eps)
