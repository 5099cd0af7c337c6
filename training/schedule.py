"""How fast the network learns, update by update."""

from __future__ import annotations

from typing import Any

from timm.optim import create_optimizer_v2, get_optimizer_class, param_groups_layer_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import SGD, Adam, AdamW, Optimizer

import timm_devnet

from .config import Config


def create_groups(config: Config, network: nn.Module, regime: str) -> list[dict[str, Any]]:
    """Make a network ready for a regime, and its parameter groups, before anything wraps it.

    Under --layer-decay there is a group for each rate of old layers; timm tells the layers apart. Under --l2-sp old
    layers are pulled to their start and not decayed (see `l2_sp.py`).

    Raises:
        ValueError: The network does not offer the regime, or has no statistics to freeze.
    """
    if config.freeze_bn_stats and not any(isinstance(module, _BatchNorm) for module in network.modules()):
        raise ValueError(f'--freeze-bn-stats: {config.model} has no BatchNorm: leave it out')
    groups = timm_devnet.parameter_groups(
        network,
        regime,
        config.lr,
        config.weight_decay,
        config.new_lr_mult,
        heads_learn=config.lwf > 0,
        freeze_bn_stats=config.freeze_bn_stats,
    )
    if config.l2_sp is not None:
        for group in old_groups(groups):
            group['weight_decay'] = 0.0
    if config.layer_decay is None:
        return groups
    layers = param_groups_layer_decay(network, layer_decay=config.layer_decay)
    scales = {id(parameter): layer['lr_scale'] for layer in layers for parameter in layer['params']}
    split: dict[tuple[str, float], dict[str, Any]] = {}
    for group in groups:
        for parameter in group['params']:
            # What is new is in the top layer, whose factor is 1.
            factor = scales[id(parameter)]
            name = group['name'] if factor == 1 else f'{group["name"]}, x {factor:.6g}'
            part = {**group, 'params': [], 'lr_scale': group['lr_scale'] * factor, 'name': name}
            split.setdefault((group['name'], factor), part)['params'].append(parameter)
    return list(split.values())


def old_groups(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tell the groups of old layers, those that `create_groups` made and those of --thaw, from what is new."""
    return [group for group in groups if group['name'].startswith('old')]


def create_optimizer(
    config: Config, groups: list[dict], is_spread: bool = False, has_scaler: bool = False
) -> Optimizer:
    """Make timm's optimizer for parameter groups that were made before anything wraps the network.

    Where torch can update all parameters in one kernel, it does: on a CPU, too, that is faster.

    Args:
        config: Of the run.
        groups: What learns.
        is_spread: Whether parameters will be spread over processes, for which torch has not all of these kernels.
        has_scaler: Whether gradients are scaled, as for fp16. If its first gradients are infinite, which is usual then,
            torch's fused SGD skips the step and goes on with a momentum that it has given no value.
    """
    kind = get_optimizer_class(config.opt, bind_defaults=False)
    can_fuse = not is_spread and (kind in (Adam, AdamW) or (kind is SGD and not has_scaler))
    options = {'fused': True if can_fuse else None, 'eps': config.opt_eps, 'betas': config.opt_betas}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    return create_optimizer_v2(
        groups, config.opt, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum, **given
    )


def create_schedule(config: Config, optimizer: Optimizer, updates_per_epoch: int) -> Scheduler:
    """Make timm's schedule, on updates.

    Only timm's schedules honour the groups' lr_scale, so a rate that never falls is a schedule too.
    """
    assert config.epochs is not None, 'the configuration is resolved'
    never_falls = config.sched == 'none'
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched='step' if never_falls else config.sched,
        num_epochs=config.epochs,
        decay_epochs=config.decay_epochs or 0.4 * config.epochs,
        decay_rate=1.0 if never_falls else config.decay_rate,
        min_lr=config.min_lr,
        warmup_lr=0.01 * config.lr,
        warmup_epochs=config.warmup_epochs,  # type: ignore[arg-type]  # half an epoch is a number of updates
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )
    return schedule
