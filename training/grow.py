"""Growing in a run: the network gets new units before the first epoch, or after some, and all that learns goes on."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from timm.utils import ModelEmaV3
from torch import nn

import timm_devnet
from timm_devnet.growing import check_growth
from timm_devnet.grown import Grown

from . import sharding
from .config import Config
from .schedule import create_groups


class Growing:
    """Which growths of --grow have come.

    All that is added within a run is new until the run ends, so regimes mean the same layers after a growth as before
    it. A checkpoint needs no record of it: which growths have come follows from the number of whole epochs.

    Args:
        config: Says what is added, and when.
        network: As `grow_first` left it.
        optimizer: Holds the groups of --regime; new parameters join those named new.
        ema: Moving average of the network's weights, if one is kept.
    """

    def __init__(
        self, config: Config, network: nn.Module, optimizer: AcceleratedOptimizer, ema: ModelEmaV3 | None = None
    ):
        self.config, self.network, self.optimizer, self.ema = config, network, optimizer, ema
        self.passed = len(config.first_growths())
        """How many growths of --grow have come; the network was built with the first."""
        self.settled = network.settled if isinstance(network, Grown) else 0

    def due(self, epoch: int) -> list[str]:
        """List the growths that come now, after this many finished epochs."""
        return [growth for growth, after in self.config.growths()[self.passed :] if after <= epoch]

    def grow(self, epoch: int, regime: str, memory_format: torch.memory_format) -> None:
        """Grow by what is due; the network must be unwrapped, and prepared again afterwards.

        New units depend on --seed alone: every process gets the same ones, and dropout goes on as if nothing had grown.

        Args:
            epoch: Finished epochs.
            regime: That the run is in, which says what is frozen.
            memory_format: Of weights.
        """
        for growth in self.due(epoch):
            options = growth_options(self.config, self.network)
            with torch.random.fork_rng():
                torch.manual_seed(self.config.seed)
                timm_devnet.grow(self.network, growth, **options, optimizer=self.optimizer, ema=self.ema)
            self.passed += 1
            for network in [self.network] if self.ema is None else [self.network, self.ema.module]:
                assert isinstance(network, Grown)
                network.settle(self.settled)
                network.to(memory_format=memory_format)
            create_groups(self.config, self.network, regime)  # freezes; the optimizer has its groups


def grow_first(config: Config, network: Any, starts_afresh: bool) -> None:
    """Let a network that was just built grow by what comes before the first epoch.

    It is then as if it had been built with that growth. What its weights already had of a growth is old, even if no
    epoch of a run has grown it: only what starts afresh is new.

    Args:
        config: Of the run.
        network: As timm made it, with its starting weights.
        starts_afresh: Whether its classifier is random although its weights are not: then the columns of new units are
            random too, and not zero.

    Raises:
        ValueError: It cannot grow so.
    """
    growths = config.first_growths()
    if not growths:
        return
    settled = max(network.held, network.settled) if isinstance(network, Grown) else 0
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        for growth in growths:
            timm_devnet.grow(network, growth, **growth_options(config, network))
        if starts_afresh:
            network.init_classifier()
    network.settle(settled)


def growth_options(config: Config, network: nn.Module) -> dict[str, Any]:
    """How the new units of --grow meet what is there: as the network's earlier ones do, else as the options say."""
    if isinstance(network, Grown):
        return {'scale_init': network.options.scale_init, 'new_init': config.new_init or network.options.new_init}
    options: dict[str, Any] = {}
    if config.scale_init is not None:
        options['scale_init'] = None if config.scale_init == 'off' else config.scale_init
    if config.new_init is not None:
        options['new_init'] = config.new_init
    return options


def check_growths(config: Config, network: Any, accelerator: Accelerator) -> None:
    """Refuse, before anything is trained, growths that the network cannot take, or that could not be loaded again.

    Raises:
        ValueError: Says which, and why.
    """
    growths = [growth for growth, after in config.growths() if after]
    if not growths:
        return
    if sharding.is_spread(accelerator):
        raise ValueError(
            f'--grow cannot add to a network and an optimizer that are sharded ({accelerator.distributed_type.value}): '
            'leave it out, or train without sharding'
        )
    for growth in growths:  # each by itself first, so that the message names the one that is wrong
        check_growth(network, growth, **growth_options(config, network))
    check_growth(network, '_'.join(growths), **growth_options(config, network))
