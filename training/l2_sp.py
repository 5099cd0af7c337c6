"""L2-SP: what is pretrained is pulled to where it started, and not to zero."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from .schedule import old_groups


class StartingPoint:
    """Where old parameters began to learn, and the pull towards it.

    The loss has weight / 2 times the squared distance of all old parameters that learn, biases and norms too, from
    their start, in the place of their weight decay; what is new is decayed as ever. The penalty's gradient, weight
    times the distance, is added to the loss's once an update, when that is whole: so it costs no backward pass, counts
    once however an update is split among batches and processes, and is clipped with the rest. The loss that is shown
    does not have it.

    A parameter that thaws within the run has not moved before, so its start is where it is then.

    Args:
        weight: Of the penalty; alpha in the paper.
        network: Unwrapped, on its device, before its first update.
        optimizer: Holds the groups of what learns.

    Source:
        Explicit Inductive Bias for Transfer Learning with Convolutional Networks (Li, Grandvalet, Davoine, 2018),
        equation 3, where beta is the weight decay of what is new.
    """

    def __init__(self, weight: float, network: nn.Module, optimizer: AcceleratedOptimizer):
        self.weight, self.network, self.optimizer = weight, network, optimizer
        self.starts: dict[str, Tensor] = {}
        """By the parameters' names."""
        self.old: dict[str, nn.Parameter] = {}
        """Those that learn."""
        self.follow()

    def follow(self) -> None:
        """Take up what has begun to learn."""
        learning = {id(parameter) for group in old_groups(self.optimizer.param_groups) for parameter in group['params']}
        named = self.network.named_parameters()
        self.old = {name: parameter for name, parameter in named if id(parameter) in learning}
        for name, parameter in self.old.items():
            if name not in self.starts:
                self.starts[name] = parameter.detach().clone()

    @torch.no_grad()
    def pull(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """Add the penalty's gradient to the loss's.

        Args:
            scaler: By which gradients are scaled at this point, as for fp16.
        """
        weight = self.weight if scaler is None else self.weight * scaler.get_scale()
        for name, parameter in self.old.items():
            if parameter.grad is not None:  # what the loss does not reach has never left its start
                parameter.grad.add_(parameter - self.starts[name], alpha=weight)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.starts)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the starts of a checkpoint: the file of the pretrained weights may be another by now."""
        self.starts = {}
        self.follow()
        for name, start in state_dict.items():
            self.starts[name].copy_(start)
