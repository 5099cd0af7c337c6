"""How fast the network learns, update by update."""

from __future__ import annotations

from typing import Any

from timm.optim import create_optimizer_v2, get_optimizer_class
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch.optim import SGD, Adam, AdamW, Optimizer

from .config import Config


def create_optimizer(config: Config, groups: list[dict]) -> Optimizer:
    """Make timm's optimizer for parameter groups that were made before anything wraps the network.

    Where torch can update all parameters in one kernel, it does: on a CPU, too, that is faster.
    """
    is_torch = get_optimizer_class(config.opt, bind_defaults=False) in (SGD, Adam, AdamW)
    options: dict[str, Any] = {'fused': True} if is_torch else {}
    return create_optimizer_v2(
        groups, config.opt, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum, **options
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
