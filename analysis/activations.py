"""What the units say of an image: each block's values, what the classifier reads, and the logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from timm_devnet.growing import old_levels
from timm_devnet.grown import Grown
from timm_devnet.layers import Scaled
from training.blocks import Block, describe_blocks

Over = Literal['mean', 'max']


@dataclass(frozen=True)
class Activations:
    """Of a batch of N images."""

    blocks: list[Tensor]
    """Of each block, shape (N, units): after the nonlinearity, over all positions, before reconciliation."""
    read: Tensor
    """What the classifier reads, shape (N, units of all blocks)."""
    logits: Tensor
    """Shape (N, classes)."""


def blocks_of(network: Any) -> list[Block]:
    """List the blocks that a network's classifier reads; a plain network has one, its top level."""
    blocks = describe_blocks(network)
    return blocks or [Block(top_name(network), network.get_classifier().in_features, 'old')]


def top_name(network: nn.Module) -> str:
    """The name of a plain network's top level; as in a grown one, where it can grow."""
    try:
        return old_levels(network)[0].name
    except ValueError:
        return 'top'


class Watcher:
    """Shows images to a network and tells what its units said.

    Args:
        network: As timm made it, in evaluation, with a linear classifier.
        over: What is taken over the positions of a map: their mean, as the pooled network does, or the greatest value.
            A map that the network brings to another size is taken after that.

    Raises:
        ValueError: A block is no map, so it has no positions to take the maximum over.
    """

    def __init__(self, network: Any, over: Over = 'mean'):
        self.network, self.over, self.blocks = network, over, blocks_of(network)
        self.widths = [block.units for block in self.blocks]
        if over == 'max':
            vectors = [block.name for block in self.blocks if block.name not in self._maps()]
            if vectors:
                raise ValueError(f'--over max needs maps, and {", ".join(vectors)} has no positions: use --over mean')

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Activations:
        """Show a batch of shape (N, 3, H, W)."""
        found: dict[str, Tensor] = {}
        handles = [
            layer.reconcile.register_forward_pre_hook(_noting(found, name)) for name, layer in self._scaled().items()
        ]
        try:
            features = self.network.forward_features(images)
            read = self.network.forward_head(features, pre_logits=True)
        finally:
            for handle in handles:
                handle.remove()
        names = [block.name for block in self.blocks]
        blocks = {**dict(zip(names, read.split(self.widths, 1), strict=True)), **found}
        if self.over == 'max':
            parts = features.split(list(self._features().values()), 1)
            blocks |= {name: part.amax((2, 3)) for name, part in zip(self._features(), parts, strict=True)}
        return Activations([blocks[name].float() for name in names], read, self.network.get_classifier()(read))

    def _scaled(self) -> dict[str, Scaled]:
        """The layers that reconcile what the classifier reads, by the name of their block."""
        if not isinstance(self.network, Grown):
            return {}
        added = dict(self.network.added())
        tops = ((name, added.get(top)) for name, (top, _) in self._top())
        return {name: layer for name, layer in tops if isinstance(layer, Scaled)}

    def _top(self) -> list[tuple[str, tuple[str, int]]]:
        plan = self.network.plan
        return list(zip(plan.blocks, plan.top, strict=True))

    def _features(self) -> dict[str, int]:
        """The parts of `forward_features` along its channels, and their widths."""
        if isinstance(self.network, Grown):
            return dict(zip(self.network.feature_names, self.network.feature_widths, strict=True))
        return {self.blocks[0].name: self.network.num_features}

    def _maps(self) -> list[str]:
        """The blocks that are maps with channels first, pooled and then read as they are."""
        parameter = next(self.network.parameters())
        side = self.network.pretrained_cfg['input_size'][-1]
        with torch.no_grad():
            features = self.network.forward_features(torch.zeros(1, 3, side, side).to(parameter))
        if features.ndim != 4 or features.shape[1] != sum(self._features().values()):
            return []
        widths = {block.name: block.units for block in self.blocks}
        return [name for name, width in self._features().items() if widths.get(name) == width]


def _noting(found: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any], None]:
    def note(layer: nn.Module, inputs: Any) -> None:
        found[name] = inputs[0]

    return note
