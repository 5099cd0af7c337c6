"""Learning without forgetting: the heads of earlier tasks go on saying of new images what they said at the start.

Source:
    Learning without Forgetting (Li, Hoiem, 2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import timm_devnet
from timm_devnet.grown import Grown
from timm_devnet.heads import Head

from .config import LOCAL

TEMPERATURE = 2.0  # section 3 of the paper


class Teacher:
    """The network that a run started from, frozen, without dropout, as its folder keeps it.

    Where a BatchNorm of the network that learns goes by the statistics of a batch, so does this one's, which counts
    none. Both then say the same at the start of the run, and what is held is not the difference between training and
    evaluation: on images unlike those of the earlier task that would be larger than anything else. (The paper's
    networks have no BatchNorm.)

    Args:
        folder: Where it is, in timm's layout.
        own_name: Under which its own classifier is kept.
        learner: The network that learns, as timm made it.
        accelerator: Says where it computes, and how precisely.
        memory_format: Of its weights.

    Raises:
        ValueError: It is gone.
    """

    def __init__(
        self,
        folder: Path,
        own_name: str,
        learner: nn.Module,
        accelerator: Accelerator,
        memory_format: torch.memory_format,
    ):
        if not (folder / 'config.json').is_file():
            raise ValueError(
                f'{folder} is gone, the network that this run started from, without which --lwf cannot go on: restore '
                'it, or start a new run'
            )
        network = timm.create_model(f'{LOCAL}{folder}', pretrained=True)
        self.network = network.eval().requires_grad_(False).to(accelerator.device).to(memory_format=memory_format)
        self.own_name, self.accelerator = own_name, accelerator
        modules = dict(learner.named_modules())
        self.norms = [
            (modules[name], norm) for name, norm in self.network.named_modules() if isinstance(norm, _BatchNorm)
        ]
        for _, norm in self.norms:
            norm.momentum = 0.0  # so that the statistics that it has stay

    @torch.no_grad()
    def answer(self, images: Tensor) -> dict[str, Tensor]:
        """What it says by every head, of images as a network sees them: logits (N, classes) by the head's name."""
        for ours, norm in self.norms:
            norm.training = ours.training
        with self.accelerator.autocast():
            if not isinstance(self.network, Grown):
                return {self.own_name: self.network(images)}
            return {name or self.own_name: logits for name, logits in self.forward_heads(images).items()}

    def forward_heads(self, images: Tensor) -> dict[str | None, Tensor]:
        return timm_devnet.forward_heads(self.network, images)


def distil(
    answers: Mapping[str, Tensor], wanted: Mapping[str, Tensor], heads: Mapping[str, Head], is_readable: Tensor
) -> Tensor:
    """Compute how far answers are from those of the starting network: 0 where they are the same.

    Of each image and head it is the divergence (Kullback-Leibler) between both distributions over the classes, softened
    by the temperature; its gradients are those of the paper's cross-entropy. Where images have any number of a head's
    classes, each by itself, it is the mean of the divergences over the classes.

    Args:
        answers: Logits (N, classes) by the head's name.
        wanted: The starting network's.
        heads: What the heads are.
        is_readable: Which images count, shape (N,).

    Returns:
        The sum over the heads of the mean over the readable images.
    """
    total = is_readable.new_zeros((), dtype=torch.float32)
    for name, logits in answers.items():
        ours, theirs = logits.float() / TEMPERATURE, wanted[name].float() / TEMPERATURE
        if heads[name].multi_label:
            entropy = F.binary_cross_entropy_with_logits(theirs, theirs.sigmoid(), reduction='none')
            crossed = F.binary_cross_entropy_with_logits(ours, theirs.sigmoid(), reduction='none')
            divergence = (crossed - entropy).mean(1)
        else:
            divergence = F.kl_div(ours.log_softmax(1), theirs.log_softmax(1), reduction='none', log_target=True).sum(1)
        total = total + (divergence * is_readable).sum() / is_readable.sum().clamp(min=1)
    return total


def heads_of(network: Any) -> dict[str, Head]:
    """What the heads are that a network keeps."""
    return network.kept if isinstance(network, Grown) else {}
