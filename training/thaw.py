"""Thawing: a run that begins in one regime goes on in the next ones, with what it has learnt."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

import timm_devnet

from . import sharding
from .config import Config
from .schedule import create_groups


class Thawing:
    """Which regime a run is in; stands for the optimizer in a checkpoint.

    A regime trains all that the one before it trained. So the optimizer keeps its groups, with their momenta, and takes
    up further ones for what has thawed; these start afresh.

    Args:
        config: Says which regimes follow, and when.
        network: As timm made it, prepared for --regime.
        optimizer: Holds the groups of --regime.
    """

    def __init__(self, config: Config, network: nn.Module, optimizer: AcceleratedOptimizer):
        self.config, self.network, self.optimizer = config, network, optimizer
        self.passed = 0
        """How many regimes of --thaw have come."""

    @property
    def regime(self) -> str:
        """The regime that the network is in."""
        return [self.config.regime, *(regime for regime, _ in self.config.thaws())][self.passed]

    def thaw(self, epoch: int) -> bool:
        """Go on to the regimes that hold after this many finished epochs.

        Returns:
            Whether anything has thawed. Then the schedule, and what wraps the network, must be made again.
        """
        due = sum(after <= epoch for _, after in self.config.thaws())
        before = self.passed
        while self.passed < due:
            self._next()
        return self.passed > before

    def _next(self) -> None:
        self.passed += 1
        learning = {id(parameter) for group in self.optimizer.param_groups for parameter in group['params']}
        for group in create_groups(self.config, self.network, self.regime):
            thawed = [parameter for parameter in group['params'] if id(parameter) not in learning]
            if thawed:
                name = f'{group["name"]}, since {self.regime}'
                self.optimizer.add_param_group({**group, 'params': thawed, 'name': name})

    def state_dict(self) -> dict[str, Any]:
        return {'passed': self.passed, 'optimizer': self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on to the regime of a checkpoint, and load the optimizer's state, which fits then."""
        while self.passed < state_dict['passed']:
            self._next()
        self.optimizer.load_state_dict(sharding.spread_optimizer_state(state_dict['optimizer'], self.optimizer))


def check_thaws(config: Config, network: nn.Module, accelerator: Accelerator) -> None:
    """Refuse regimes that the network does not offer, that do not go upwards, or that nothing can follow.

    Raises:
        ValueError: Names them.
    """
    known = timm_devnet.regimes(network)
    names = [config.regime, *(regime for regime, _ in config.thaws())]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f'unknown regime {unknown[0]!r} for {config.model}; it offers {", ".join(known)}')
    places = [known.index(name) for name in names]
    if sorted({*places}) != places:
        raise ValueError(
            f'--thaw {config.thaw} after --regime {config.regime} must go upwards in {", ".join(known)}: each regime '
            'trains what the one before it trained, and more'
        )
    if len(names) > 1 and sharding.is_spread(accelerator):
        raise ValueError(f'--thaw cannot add to an optimizer that is sharded ({accelerator.distributed_type.value})')
