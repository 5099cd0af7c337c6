"""How an optimizer, and a moving average of the weights, go on with a network that grows in the middle of a run.

The old parameters stay the same objects, so an optimizer keeps what it knows of them. Two things must be told it: the
classifier is a new and wider layer, and there are new parameters. An average is a network of its own, which grows too.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from .grown import Grown
from .outline import classifiers_of

__all__ = ['Before', 'average_of', 'carry_average', 'carry_optimizer', 'inner_optimizer']

# Groups of timm_devnet.parameter_groups, by whether weights in them are decayed; and how much faster they learn, unless
# told otherwise there.
NEW_GROUPS = {True: 'new', False: 'new, not decayed'}
NEW_LR_MULT = 10.0


class Before:
    """What a network was before it grew, as far as an optimizer or an average must be told.

    Args:
        model: The network, plain or grown.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = dict(model.named_parameters())
        self.names = frozenset(model.state_dict())
        self.classifier = dict(classifiers_of(model)[0].named_parameters())


def inner_optimizer(optimizer: Any, model: nn.Module) -> Optimizer:
    """The optimizer that holds the state: what accelerate's AcceleratedOptimizer, or timm's Lookahead, goes around.

    Args:
        optimizer: Any of these.
        model: The network that it trains.

    Raises:
        ValueError: If it is no optimizer of torch's kind, or trains another network.
    """
    for name in ('optimizer', '_base_optimizer'):
        optimizer = getattr(optimizer, name, optimizer)
    if not isinstance(optimizer, Optimizer):
        raise ValueError(
            f'optimizer is a torch.optim.Optimizer, or one that accelerate has prepared; {type(optimizer).__name__} is '
            'neither: grow before the optimizer is made.'
        )
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group['params']):
        raise ValueError(
            f'The optimizer trains no parameter of this {type(model).__name__}: give the optimizer of this network.'
        )
    return optimizer


def average_of(ema: Any, model: nn.Module) -> nn.Module:
    """The network inside a moving average, such as timm's ModelEmaV3.

    Raises:
        ValueError: If there is none, or it is not a copy of the network.
    """
    module = getattr(ema, 'module', None)
    if not isinstance(module, nn.Module):
        raise ValueError(f'ema has the averaged network in `.module`, as timm.utils.ModelEmaV3; {ema!r:.100} has none.')
    shapes = [{name: tensor.shape for name, tensor in part.state_dict().items()} for part in (module, model)]
    if type(module) is not type(model) or shapes[0] != shapes[1]:
        raise ValueError(
            f'ema averages a {type(module).__name__} that is no copy of this {type(model).__name__}: give the average '
            'of this network, which has grown as it has.'
        )
    return module


def carry_average(average: nn.Module, model: nn.Module, before: Before) -> None:
    """Let the new layers of an average begin with the network's own values; what was there goes on.

    Copies of old units would else be copies of averaged ones. A classifier that is new has the same values by its seed.

    Args:
        average: The averaged network, grown as the network has.
        model: The network.
        before: What the network was.
    """
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in average.state_dict().items():
            if name not in before.names:
                tensor.copy_(own[name])


def carry_optimizer(optimizer: Optimizer, model: Grown, before: Before, keeps_columns: bool) -> None:
    """Tell an optimizer of a network's growth.

    Args:
        optimizer: As `inner_optimizer` gives it.
        model: The network, grown.
        before: What it was.
        keeps_columns: Whether the classifier goes on with its columns; else its state starts anew.
    """
    started = _replace_classifier(optimizer, model, before, keeps_columns)
    old = {id(parameter) for parameter in before.parameters.values()}
    grouped = {id(parameter) for group in optimizer.param_groups for parameter in group['params']}
    new = {name: value for name, value in model.named_parameters() if id(value) not in old | grouped}
    # Told for both before a group is added, so that neither is taken for one of the run's.
    settings = {is_decayed: _settings_for(optimizer, model, is_decayed) for is_decayed in NEW_GROUPS}
    for is_decayed, label in NEW_GROUPS.items():
        chosen = {name: parameter for name, parameter in new.items() if (parameter.ndim > 1) == is_decayed}
        group = next((group for group in optimizer.param_groups if group.get('name') == label), None)
        if chosen and group is None:
            is_named = any('param_names' in group for group in optimizer.param_groups)  # torch wants all or none
            params: list[Any] = list(chosen.items()) if is_named else list(chosen.values())
            optimizer.add_param_group({**settings[is_decayed], 'params': params, 'name': label})
        elif group is not None:
            group['params'] += chosen.values()
            if 'param_names' in group:
                group['param_names'] += chosen
    _start_momenta(optimizer, [*started, *new.values()])


def _replace_classifier(optimizer: Optimizer, model: Grown, before: Before, keeps_columns: bool) -> list[nn.Parameter]:
    """Put the wide classifier in the place of the old one; gives its parameters that start without a state."""
    wide = dict(model.get_classifier().named_parameters())
    replaced = {id(old): wide[name] for name, old in before.classifier.items() if name in wide}
    started = []
    for group in optimizer.param_groups:
        for place, old in enumerate(group['params']):
            if id(old) in replaced:
                new = group['params'][place] = replaced[id(old)]
                state = _widen(optimizer.state.pop(old, {}), old, new) if keeps_columns else {}
                if state:
                    optimizer.state[new] = state
                else:
                    optimizer.state.pop(old, None)
                    started.append(new)
        _forget(optimizer, group, before, model)
    return started


def _forget(optimizer: Optimizer, group: dict[str, Any], before: Before, model: nn.Module) -> None:
    """Drop parameters that went with the old classifier: a second one, or a norm that was part of it."""
    gone = {id(parameter) for parameter in before.parameters.values()} - {id(each) for each in model.parameters()}
    for place in reversed(range(len(group['params']))):
        if id(group['params'][place]) in gone:
            optimizer.state.pop(group['params'].pop(place), None)
            if 'param_names' in group:
                del group['param_names'][place]


def _widen(state: Mapping[str, Any], old: Tensor, new: Tensor) -> dict[str, Any]:
    """A parameter's state for one with more columns, new ones at zero; empty if a part of it has no such columns."""
    if old.shape == new.shape:
        return dict(state)
    wide: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, Tensor) and value.shape == old.shape:
            wide[name] = torch.zeros(new.shape, dtype=value.dtype, device=value.device)
            wide[name][:, : old.shape[1]] = value.reshape(len(value), -1)
        elif value is None or isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1):
            wide[name] = value  # a count of steps
        else:
            return {}
    return wide


def _settings_for(optimizer: Optimizer, model: Grown, is_decayed: bool) -> dict[str, Any]:
    """Settings of a group of new parameters, for an optimizer that has none."""
    group, faster = _pattern_of(optimizer, model, is_decayed)
    # Not what an optimizer counts in its groups.
    known = {name: deepcopy(value) for name, value in group.items() if name in optimizer.defaults}
    settings = {**known, 'lr_scale': faster * group.get('lr_scale', 1.0)}
    if not is_decayed:
        settings['weight_decay'] = 0.0
    if 'initial_lr' in group:  # there is a schedule, and the present rate has its scale in it
        settings |= {'initial_lr': group['initial_lr'], 'lr': faster * group['lr']}
    return settings


def _pattern_of(optimizer: Optimizer, model: Grown, is_decayed: bool) -> tuple[dict[str, Any], float]:
    """The group that new parameters are grouped like, and how much faster than it they learn."""
    sibling = next((group for group in optimizer.param_groups if group.get('name') == NEW_GROUPS[not is_decayed]), None)
    if sibling is not None:
        return sibling, 1.0
    top = [parameter for place in model.levels_of(model)[0].modules for parameter in _parameters_at(model, place)]
    for parameters, faster in ((top, NEW_LR_MULT), (list(model.get_classifier().parameters()), 1.0)):
        wanted = sorted(parameters, key=lambda parameter: (parameter.ndim > 1) != is_decayed)
        for parameter in wanted:
            for group in optimizer.param_groups:
                if any(parameter is member for member in group['params']):
                    return group, faster
    return optimizer.param_groups[0], 1.0


def _parameters_at(model: nn.Module, place: str) -> list[nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if name.startswith(f'{place}.')]


def _start_momenta(optimizer: Optimizer, started: list[nn.Parameter]) -> None:
    """Let new parameters beside others with a momentum begin with one at rest, which is what torch's SGD begins with.

    Its fused kernel takes a group's momenta all together, and does not see that some have no value yet.
    """
    new = {id(parameter) for parameter in started}
    for group in optimizer.param_groups if isinstance(optimizer, SGD) else ():
        has_momenta = any(optimizer.state.get(p, {}).get('momentum_buffer') is not None for p in group['params'])
        for parameter in group['params'] if has_momenta else ():
            if id(parameter) in new:
                optimizer.state[parameter]['momentum_buffer'] = torch.zeros_like(parameter)
