"""Which network a checkpoint belongs to, told from its keys, and how it enters a grown one."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .growth import Growth, parse

if TYPE_CHECKING:
    from .grown import Grown

__all__ = ['adapt', 'filter_checkpoint', 'is_of_old_network', 'lacks_old_network', 'may_be_lacking']

_logger = logging.getLogger(__name__)
_ADDED = 'grown.'  # what a growth adds has names that begin with this
_OPTIONAL = '.num_batches_tracked'  # old checkpoints lack these counters


def adapt(state_dict: Mapping[str, Any], model: Grown, new_classes: bool = False) -> tuple[dict[str, Tensor], int]:
    """Complete a checkpoint of a grown network, of its base, or of a growth in between.

    Args:
        state_dict: The checkpoint, in timm's names or in another layout that the family knows. model: The grown
        network. What the checkpoint lacks because it had not grown yet is filled with the network's own
            tensors; a classifier is widened with zeros where it goes on reading what it read.
        new_classes: Whether the network was asked for other classes than its checkpoint's, so that it keeps its own
            classifier where the numbers differ.

    Returns:
        The completed state dict and the number of the network's growths that the checkpoint holds.

    Raises:
        ValueError: If the checkpoint is none of these, or has another number of classes than the network.
    """
    given = _in_own_layout(state_dict, model)
    own, head = model.state_dict(), _heads(model)
    steps = parse(model.growth).steps
    added = [_keys_of_growths(model, count) for count in range(len(steps) + 1)]
    held = next((n for n in reversed(range(len(added))) if _added_keys(given) == added[n]), None)
    wanted = {key for key in own if not key.startswith((_ADDED, *head))} | (added[held] if held is not None else set())
    first_convs = _first_convs(model)  # their channels are timm's to adapt
    problems = {
        'lacks': [key for key in wanted - given.keys() if not key.endswith(_OPTIONAL)],
        'has besides': [key for key in given.keys() - wanted if not key.startswith(head)],
        'has in other shapes': [
            key for key in wanted & given.keys() if given[key].shape != own[key].shape and key not in first_convs
        ],
    }
    if held is None or any(problems.values()):
        found = '; '.join(f'it {what} {_some(keys)}' for what, keys in problems.items() if keys)
        raise ValueError(
            f'The checkpoint fits neither {type(model).__name__} grown by {model.growth} (keys {_some(own)}) nor the '
            f'network before it grew (the same without {_ADDED}*). Given: {_some(state_dict)}; {found}.'
        )
    classifier = _fit_classifier(given, model, Growth(steps[:held]), new_classes)
    return {**own, **{key: given[key] for key in wanted & given.keys()}, **classifier}, held


def is_of_old_network(key: str) -> bool:
    """Whether a key belongs to the network before it grew, and no checkpoint of it may lack the key."""
    return not key.startswith(_ADDED) and not key.endswith(_OPTIONAL)


def may_be_lacking(key: str) -> bool:
    """Whether checkpoints may lack a key: old ones have no counters, but none of a grown network is that old."""
    return key.endswith(_OPTIONAL) and not key.startswith(_ADDED)


def lacks_old_network(state_dict: Mapping[str, Any], model: Grown) -> bool:
    """Whether a checkpoint lacks part of the old network, so that it can only be the delta of another."""
    head, given = _heads(model), _in_own_layout(state_dict, model)
    return any(is_of_old_network(key) for key in model.state_dict().keys() - given.keys() if not key.startswith(head))


def _in_own_layout(state_dict: Mapping[str, Any], model: Grown) -> dict[str, Tensor]:
    given = {key: value for key, value in state_dict.items() if isinstance(value, Tensor)}
    with suppress(RuntimeError, ValueError, IndexError, TypeError):  # a layout that only begins like a known one
        return model.to_own_layout(given)
    return given


def filter_checkpoint(state_dict: Mapping[str, Any], model: Grown) -> dict[str, Tensor]:
    """`adapt` as the filter of timm's `load_pretrained`, for a network under construction.

    timm drops the classifier of a checkpoint, and with it all strictness, whenever the number of classes differs from
    the pretrained cfg's, even if the checkpoint has just the classifier that was asked for. So the classifier is set
    here.
    """
    new_classes = model.num_classes != model.pretrained_cfg.get('num_classes')
    adapted, held = adapt(state_dict, model, new_classes)
    model.held = held
    if held < len(parse(model.growth).steps):
        model.settled = held
    own = model.state_dict()
    for key, value in adapted.items():  # counters that an old checkpoint lacks
        if value.is_meta and key.endswith(_OPTIONAL):
            adapted[key] = torch.zeros_like(value, device='cpu')
    # A copy, not the memory map that safetensors gives: whoever overwrites the file must not change or kill the
    # network.
    copied = {
        key: value if value.is_meta else value.to(own[key].dtype, copy=True, memory_format=torch.contiguous_format)
        for key, value in adapted.items()
    }
    classifier = model.get_classifier()
    if isinstance(classifier, nn.Linear):
        prefix = model.classifier_name + '.'
        classifier.load_state_dict({name: copied[prefix + name] for name in classifier.state_dict()}, assign=True)
    return copied


def _fit_classifier(given: Mapping[str, Tensor], model: Grown, held: Growth, new_classes: bool) -> dict[str, Tensor]:
    """The classifier's entries: the checkpoint's, widened where the network has grown since; none for a fresh one."""
    prefix, classifier = model.classifier_name + '.', model.get_classifier()
    weight, bias = given.get(prefix + 'weight'), given.get(prefix + 'bias')
    if weight is None or bias is None or not isinstance(classifier, nn.Linear):
        return {}
    if weight.ndim == 4 and weight.shape[2:] == (1, 1):  # of an old network that classifies with a 1x1 convolution
        weight = weight.flatten(1)
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        shapes = f'{tuple(weight.shape)} and {tuple(bias.shape)}'
        raise ValueError(f'The checkpoint has a classifier whose weight and bias are of shapes {shapes}: none has.')
    if len(weight) != classifier.out_features:
        if new_classes:
            _logger.info(
                f'The checkpoint has {len(weight)} classes, the network {classifier.out_features}: new classifier.'
            )
            return {}
        raise ValueError(
            f'The checkpoint has a classifier for {len(weight)} classes, the network for {classifier.out_features}: '
            f'build the network with num_classes={len(weight)} to keep it, or with your own number for a new one.'
        )
    if weight.shape == classifier.weight.shape:
        return {prefix + 'weight': weight, prefix + 'bias': bias}
    widths = {model.levels_of(model)[0].width * model.pool_mult(model)}
    for count in range(1, len(held.steps) + 1):
        widths.add(sum(width for _, width in model.plan_for(model, Growth(held.steps[:count]), model.options).top))
    if weight.shape[1] not in widths:
        raise ValueError(
            f'The checkpoint has a classifier of {weight.shape[1]} inputs, which fits none of {sorted(widths)}: '
            'was it trained with another global_pool?'
        )
    before = model.plan_for(model, held, model.options) if held.steps else None
    blocks = before.blocks if before else (model.levels_of(model)[0].name,)
    if model.plan.blocks[: len(blocks)] != blocks:
        return {}  # the classifier reads a new layer on top, nothing of what it read
    wide = weight.new_zeros(classifier.weight.shape)
    wide[:, : weight.shape[1]] = weight
    return {prefix + 'weight': wide, prefix + 'bias': bias}


def _keys_of_growths(model: Grown, count: int) -> set[str]:
    return {f'{_ADDED}{n}.{key}' for n, m in model.added() if m.step < count for key in m.state_dict()}


def _added_keys(keys: Collection[str]) -> set[str]:
    return {key for key in keys if key.startswith(_ADDED)}


def _heads(model: Grown) -> tuple[str, ...]:
    """How the keys begin that a base's checkpoint may have in the classifier's place."""
    return tuple(f'{name}.' for name in (model.classifier_name, *model.replaced))


def _first_convs(model: Grown) -> set[str]:
    names = model.pretrained_cfg.get('first_conv') or ()
    return {f'{name}.weight' for name in ((names,) if isinstance(names, str) else names)}


def _some(keys: Collection[str], count: int = 3) -> str:
    shown = sorted(map(str, keys))
    return ', '.join(shown[:count]) + (f' and {len(shown) - count} more' if len(shown) > count else '') or 'nothing'
