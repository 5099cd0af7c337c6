"""The blocks of a grown network, old and new, seen from outside: what they are, how large, and what each says alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

import timm_devnet
from timm_devnet.layers import Scaled


@dataclass(frozen=True)
class Block:
    """A block that the classifier reads."""

    name: str
    units: int
    kind: str
    """old (the pretrained network's), grown earlier (in a former task), or new."""


def describe_blocks(network: Any) -> list[Block]:
    """List the blocks that the classifier reads; none where a network has not grown."""
    names = timm_devnet.block_names(network)
    added = dict(network.added()) if names else {}

    def kind(name: str) -> str:
        if name not in added:
            return 'old'
        return 'new' if added[name].step >= network.settled else 'grown earlier'

    widths = [width for _, width in network.plan.top] if names else []
    return [Block(name, width, kind(name)) for name, width in zip(names, widths, strict=True)]


def block_scales(network: nn.Module) -> dict[str, float]:
    """Measure the scale of every reconciled block: the root mean square over its channels."""
    return {
        layer.reads[0]: layer.reconcile.scale.detach().double().square().mean().sqrt().item()
        for layer in network.modules()
        if isinstance(layer, Scaled)
    }


class BlockNorms:
    """Measures, while it is entered, the L2 norm of each block's activations for every image that the network sees.

    It is the norm that reconciliation divides by, so it tells how far apart old and new units would be without it.
    Where blocks are not reconciled it is the norm of what the classifier reads. Of a map it is the mean over positions.

    Args:
        network: As timm made it. A plain one has no blocks; and a compiled one may leave out what is asked here.
    """

    def __init__(self, network: Any):
        self.network = network
        self.names: list[str] = []
        self.found: dict[str, Tensor] = {}
        self.handles: list[RemovableHandle] = []

    def __enter__(self) -> BlockNorms:
        scaled = [layer for layer in self.network.modules() if isinstance(layer, Scaled)]
        if scaled:
            self.names = [layer.reads[0] for layer in scaled]
            # Not on the layer around it, which a network split at its frozen part does without.
            self.handles = [
                layer.reconcile.register_forward_pre_hook(self._note_value(layer.reads[0])) for layer in scaled
            ]
        elif timm_devnet.block_names(self.network):
            self.names = timm_devnet.block_names(self.network)
            self.handles = [self.network.get_classifier().register_forward_pre_hook(self._note_parts)]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def take(self) -> Tensor | None:
        """Give the norms of the last batch, shape (N, blocks) in the order of `names`; None if there are none."""
        found, self.found = self.found, {}
        return torch.stack([found[name] for name in self.names], 1) if found else None

    def _note_value(self, name: str) -> Callable[[nn.Module, Any], None]:
        def note(layer: nn.Module, inputs: Any) -> None:
            self._note(name, inputs[0])

        return note

    def _note_parts(self, classifier: nn.Module, inputs: Any) -> None:
        widths = [width for _, width in self.network.plan.top]
        for name, part in zip(self.names, inputs[0].split(widths, 1), strict=True):
            self._note(name, part)

    def _note(self, name: str, block: Tensor) -> None:
        norms = torch.linalg.vector_norm(block.detach().float(), dim=1)
        self.found[name] = norms.reshape(len(norms), -1).mean(1)


class BlockVoices:
    """Hears, while it is entered, what each block of a grown network says alone of every batch that the network sees.

    It costs one small matrix product a batch, since the classifier's input is at hand.

    Args:
        network: As timm made it. One of fewer than two blocks has none to hear; a compiled one may leave out what
            is asked here.
    """

    def __init__(self, network: Any):
        self.network = network
        names = timm_devnet.block_names(network)
        self.names = names if len(names) > 1 else []
        self.found: list[Tensor] = []
        self.handles: list[RemovableHandle] = []

    def __enter__(self) -> BlockVoices:
        if self.names:
            self.handles = [self.network.get_classifier().register_forward_pre_hook(self._note)]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def take(self) -> list[Tensor]:
        """Give the blocks' logits for the last batch, (N, classes) each in the order of `names`; none if unheard."""
        found, self.found = self.found, []
        return found

    def _note(self, classifier: nn.Module, inputs: Any) -> None:
        self.found = [logits.float() for logits in timm_devnet.block_logits(self.network, inputs[0].detach())]
