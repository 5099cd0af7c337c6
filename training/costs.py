"""What a network costs: the multiply-adds of one image."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from timm_devnet.outline import run_on_meta


def multiply_adds(model: nn.Module, img_size: int) -> float:
    """Multiply-adds of the forward pass of one image, counted on the meta device.

    Backward takes about twice as many; torch's counter is wrong there for grouped convolutions, so it is not asked.

    Source:
        torch.utils.flop_counter counts a multiply-add as two operations, and matrix products and convolutions only.
    """
    channels = getattr(model, 'in_chans', 3)
    was_training = model.training
    model.eval()
    with FlopCounterMode(display=False) as counter:
        run_on_meta(model, torch.empty(1, channels, img_size, img_size, device='meta'))
    model.train(was_training)
    return counter.get_total_flops() / 2
