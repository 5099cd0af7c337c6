"""What learns, and how fast: the regimes of fine-tuning, as optimizer groups."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .growing import old_levels
from .grown import Grown
from .outline import classifiers_of

__all__ = ['parameter_groups', 'regimes']


def regimes(model: nn.Module) -> list[str]:
    """The regimes that a network offers, from the one that trains least to the one that trains all.

    `new` trains only what was added, the scales and the classifier; `fc7-new` also the old top layer (named as the
    network names it), `fc6-new` also the layer below; `all` everything. In a plain network, `new` is the classifier.

    Args:
        model: A network that can grow, grown or not.

    Returns:
        Names for `parameter_groups`.

    Source:
        Growing a Brain (Wang, Ramanan, Hebert, 2017), section 4: New, FC7-New, FC6-New, All.

    Example:
        >>> import timm, timm_devnet
        >>> regimes(timm.create_model('alexnet_wa2048', device='meta'))
        ['new', 'fc7-new', 'fc6-new', 'all']
    """
    return ['new', *(f'{level}-new' for level in _trainable_levels(model)), 'all']


def parameter_groups(
    model: nn.Module,
    regime: str,
    lr: float,
    weight_decay: float,
    new_lr_mult: float = 10.0,
    heads_learn: bool = False,
    freeze_bn_stats: bool = False,
) -> list[dict[str, Any]]:
    """Make a network ready for a regime: freeze what it leaves alone, group the rest for the optimizer.

    What is frozen has no gradient and no optimizer state; its BatchNorm and dropout are in evaluation, and stay so
    through `model.train()`, until this function is called again.

    The groups carry timm's `lr_scale`, which timm's schedulers apply and others ignore: train with one of timm's.
    Biases, norms and scales (all parameters of one dimension) are not decayed.

    Args:
        model: A network that can grow, grown or not, before it is wrapped or compiled.
        regime: One of `regimes(model)`.
        lr: Learning rate of old layers.
        weight_decay: Weight decay of weights.
        new_lr_mult: How many times faster new units, scales and the classifier learn.
        heads_learn: Whether heads kept of earlier tasks learn too, at the pace of old layers, in every regime but
            `new`; there must be a loss on their answers then. Otherwise they are frozen.
        freeze_bn_stats: Whether every old BatchNorm normalises by the running statistics that it has, in training too;
            its scale and shift learn as the regime says.

    Returns:
        Groups of `params`, `lr`, `lr_scale`, `weight_decay` and `name`; every parameter that trains is in exactly one.

    Raises:
        ValueError: If the network does not offer the regime.

    Example:
        >>> import timm, timm_devnet
        >>> model = timm.create_model('tf_efficientnet_lite0_norm', num_classes=10)
        >>> groups = parameter_groups(model, 'new', lr=0.01, weight_decay=5e-4)
        >>> [(group['name'], group['lr_scale'], len(group['params'])) for group in groups]
        [('new', 10.0, 1), ('new, not decayed', 10.0, 2)]
    """
    known = regimes(model)
    if regime not in known:
        raise ValueError(f'Unknown regime {regime!r} for {type(model).__name__}; it offers {", ".join(known)}.')
    levels = _trainable_levels(model)
    trained = set(levels[: known.index(regime)])
    groups: dict[str, dict[str, Any]] = {}
    kept = {id(parameter) for parameter in getattr(model, 'heads', nn.ModuleDict()).parameters()}
    for parameter, is_new, level in _told_apart(model):
        learns = is_new or regime == 'all' or level in trained
        if isinstance(model, Grown) and model.kept and id(parameter) in kept:
            learns = heads_learn and regime != 'new'
        parameter.requires_grad_(learns)
        if parameter.requires_grad:
            decayed = parameter.ndim > 1
            label = ('new' if is_new else 'old') + ('' if decayed else ', not decayed')
            group = dict(
                params=[],
                lr=lr,
                lr_scale=new_lr_mult if is_new else 1.0,
                weight_decay=weight_decay * decayed,
                name=label,
            )
            groups.setdefault(label, group)['params'].append(parameter)
    _keep_frozen_in_eval(model, {*_old_batch_norms(model)} if freeze_bn_stats else set())
    return list(groups.values())


def _trainable_levels(model: nn.Module) -> list[str]:
    """The top level and the one below, and above them those that earlier growths have made, from the top down."""
    earlier = []
    if isinstance(model, Grown):
        steps = {name: added.step for name, added in model.added()}
        earlier = [name for name in reversed(model.plan.levels) if steps[name] < model.settled]
    return [*earlier, *(level.name for level in old_levels(model)[:2])]


def _told_apart(model: nn.Module) -> Iterator[tuple[nn.Parameter, bool, str | None]]:
    """Every parameter, whether it is new, and the level that it belongs to, if any."""
    classifier = {id(parameter) for module in classifiers_of(model) for parameter in module.parameters()}
    added = dict(model.added()) if isinstance(model, Grown) else {}
    places = {module + '.': level.name for level in old_levels(model) for module in level.modules}
    for name, parameter in model.named_parameters():
        if id(parameter) in classifier:
            yield parameter, True, None
        elif isinstance(model, Grown) and name.startswith('grown.'):
            layer = added[name.split('.')[1]]
            yield parameter, layer.step >= model.settled, layer.level
        else:
            level = next((level for place, level in places.items() if name.startswith(place)), None)
            yield parameter, False, level


def _old_batch_norms(model: nn.Module) -> Iterator[nn.Module]:
    """Every BatchNorm that was there before the growth that is new."""
    new: set[nn.Module] = set()
    if isinstance(model, Grown):
        new.update(module for _, layer in model.added() if layer.step >= model.settled for module in layer.modules())
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module not in new:
            yield module


def _keep_frozen_in_eval(model: nn.Module, batch_norms: set[nn.Module]) -> None:
    """Put wholly frozen modules and these in evaluation for good; let all others follow `train()` again."""
    for module in model.modules():
        if 'train' in vars(module):
            del module.train
            module.training = model.training
    frozen: set[nn.Module] = set()
    for module in model.modules():
        if module is not model and module not in frozen:
            parameters = list(module.parameters())
            is_frozen = parameters and not any(parameter.requires_grad for parameter in parameters)
            if is_frozen or module in batch_norms:
                frozen.update(module.modules())
                module.eval()
                module.train = partial(_stay_in_eval, module)  # type: ignore[method-assign]


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    return type(module).train(module, False)
