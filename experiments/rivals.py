"""Other ways to fine-tune that stand beside growing, as methods of the tables."""

from __future__ import annotations

from typing import Any

import timm

import timm_devnet
from training.lora import rank_for_budget

from .bases import Base, count_new
from .methods import Method

# A common value for the factor from layer to layer; from the middle of those that the paper of L2-SP tries for alpha.
LAYER_DECAY = 0.75
L2_SP = 0.01
# Without it LoRA, which leaves BatchNorm as it is, does not learn at the recipe's rate (docs/recipes.md).
LORA_CLIP = 1.0


def rivals_of(base: Base, num_classes: int) -> dict[str, Method]:
    """List the rivals by the names that --methods takes, each with the regimes that it has a meaning in.

    A linear probe is plain fine-tuning in the regime New, so it is among the methods of every table already.

    Args:
        base: The network.
        num_classes: Outputs of its classifier, which every method trains besides.
    """
    plain, _, _ = base.name.partition('.')
    levels = timm_devnet.all_levels(timm.create_model(plain, device='meta'))
    matched = next(f'{kind}{base.units[kind]}' for kind in ('mwa', 'wa') if kind in base.units)
    rank = match_lora(plain, matched, num_classes)
    return {
        'levels': Method('all levels, linear', levels, regimes=('New',)),
        'layer-decay': Method(f'layer decay {LAYER_DECAY}', options={'layer_decay': LAYER_DECAY}, regimes=('All',)),
        'l2-sp': Method(f'L2-SP {L2_SP}', options={'l2_sp': L2_SP}, regimes=('All',)),
        'lora': Method(
            f'LoRA of rank {rank}, parameters as {matched}',
            options={'lora': rank, 'clip_grad': LORA_CLIP},
            regimes=('All',),
        ),
    }


def match_lora(base: str, growth: str, num_classes: int) -> int:
    """Find the rank whose adapters have about as many parameters as what a growth adds and trains.

    Args:
        base: Name of the plain network.
        growth: What it is compared with.
        num_classes: Outputs of the classifier.
    """
    network: Any = timm.create_model(base, device='meta', num_classes=num_classes)
    return rank_for_budget(network, count_new(f'{base}_{growth}', num_classes) - count_new(base, num_classes))
