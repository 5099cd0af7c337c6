"""The methods that the tables compare: what each adds to a network, and how it trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from training.config import Config

from .bases import REGIMES, Base

# The best of five recipes for plain fine-tuning with all layers learning in the mean of three small tasks; train.py's
# is better on one of them (docs/growth.md).
ADAMW: Mapping[str, Any] = {'opt': 'adamw', 'lr': 0.0003, 'new_lr_mult': 10.0, 'weight_decay': 0.05}


@dataclass(frozen=True)
class Method:
    """A way to learn a new task: a row of a table."""

    label: str
    """As tables show it."""
    growth: str = ''
    """What is added to the base, every number of units given; '' for nothing."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further options of train.py, by field of its `Config`."""
    rate: float = 1.0
    """Factor of the recipe's learning rate, where the options give none."""
    published: str = ''
    """The paper's name of it; '' for what the paper does not have."""
    regimes: tuple[str, ...] = REGIMES
    """Those that it has a meaning in, by the paper's names."""

    def training(self, recipe: Config) -> dict[str, Any]:
        """Tell the options that it has instead of the recipe's."""
        return {'lr': recipe.lr * self.rate, **self.options}


def methods_of(base: Base) -> dict[str, Method]:
    """List the methods for a network by the names that --methods takes; those that it cannot take are left out.

    Every table has the controls that the paper lacks: the norm alone, the lower levels without units (skip), a hidden
    layer that learns as many parameters as wa, and fine-tuning by other recipes, which suit it better on some tasks
    (docs/growth.md): at a lower rate, and where all layers learn by AdamW with frozen BatchNorm statistics.

    Args:
        base: The network.

    Example:
        >>> from experiments.bases import Base
        >>> base = Base('alexnet', {}, {'da': 6144, 'wa': 2048}, frozenset({'da', 'wa', 'norm', 'skip'}), 2222)
        >>> [(name, method.growth) for name, method in methods_of(base).items()][-4:]
        [('skip', 'skip'), ('hidden', 'da2222'), ('da', 'da6144'), ('wa', 'wa2048')]
    """
    adamw = {**ADAMW, 'freeze_bn_stats': base.has_batch_norm}
    known = {
        'ft': Method('fine-tuning', published='fine-tuning'),
        'ft-slow': Method('fine-tuning, 0.3 of the rate', rate=0.3),
        'ft-adamw': Method('fine-tuning, AdamW', options=adamw, regimes=('All',)),
        'norm': Method('norm', 'norm'),
        'skip': Method('skip', 'skip'),
        'hidden': Method('hidden layer, parameters as wa', f'da{base.hidden}', {'scale_init': 'off'}),
    }
    for kind, units in base.units.items():
        growth = f'{kind}{units}'
        known[kind] = Method(growth, growth, published=kind.upper() if kind in ('da', 'wa', 'dwa', 'wwa') else '')
    known.pop('xwa', None)  # made for frozen trunks alone
    return known


def describe_adamw(base: Base) -> str:
    """Say what is different in the row of fine-tuning by AdamW."""
    frozen = ', BatchNorm statistics frozen' if base.has_batch_norm else ''
    return (
        f'Fine-tuning, AdamW has rate {ADAMW["lr"]:g} and {ADAMW["new_lr_mult"]:g} times that for the classifier, '
        f'weight decay {ADAMW["weight_decay"]:g}{frozen}.'
    )


def configure(method: Method, base: Base, recipe: Config) -> Config:
    """Say how train.py runs a method from the base's pretrained weights.

    Args:
        method: What is added and how it trains.
        base: The network that it is added to.
        recipe: Options that all methods share.
    """
    return dataclasses.replace(recipe, model=base.grown(method.growth), **method.training(recipe))


def configure_from(method: Method, model: str, recipe: Config) -> Config:
    """Say how train.py runs a method from a network that grows before the first epoch.

    Args:
        method: What is added and how it trains.
        model: The network as --model takes it.
        recipe: Options that all methods share.
    """
    growth = (method.growth,) if method.growth else ()
    return dataclasses.replace(recipe, model=model, grow=growth, **method.training(recipe))
