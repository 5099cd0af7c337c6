"""Losses that are not finite: noticed without waiting for the device, told with the images they come from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from .data import UNREADABLE
from .sharding import own_part
from .sources import Source

# After so many updates skipped in a row a run stops all the same: the fault is not in a few images then.
MOST_SKIPPED_IN_A_ROW = 20


@dataclass
class NotedBatch:
    """A batch that was trained on, and what it gave; its tensors are on the device."""

    epoch: int
    update: int
    loss: Tensor
    indices: Tensor


class LossWatch:
    """Notes each batch's loss, and tells at a look which were not finite.

    Args:
        network: Unwrapped. When updates are skipped, its buffers are put back as well: a forward pass has changed the
            running statistics of batch norms before its loss is known.
        source: Of the training images, for their names.
        skips: Whether updates are skipped. The host then waits for the device at every update; otherwise only when it
            looks.
    """

    def __init__(self, network: nn.Module, source: Source, skips: bool):
        self.network, self.source, self.skips = network, source, skips
        self.noted: list[NotedBatch] = []
        """Since the last look."""
        self.update_batches: list[NotedBatch] = []
        """Of the newest update."""
        self.is_complete = True
        self.buffers: list[Tensor] = []
        self.found: list[tuple[int, int, str]] = []
        """Epoch, update and description of this process's batches whose loss was not finite."""
        self.skipped_in_a_row = 0

    def begin_batch(self) -> None:
        """Keep what must be put back if the update that begins here is skipped."""
        if self.is_complete:
            self.update_batches, self.is_complete = [], False
            if self.skips:
                self.buffers = [buffer.clone() for buffer in self.network.buffers()]

    def note(self, epoch: int, update: int, loss: Tensor, indices: Tensor) -> None:
        """Note a batch of the update under way, by the numbers of the epoch and of the update in it, from 1."""
        batch = NotedBatch(epoch, update, loss.detach(), indices)
        self.noted.append(batch)
        self.update_batches.append(batch)

    def leaves_out(self, accelerator: Accelerator) -> bool:
        """Tell whether to leave out the update whose gradients are ready, in all processes alike."""
        self.is_complete = True
        if not self.skips:
            return False
        losses = torch.stack([batch.loss.float() for batch in self.update_batches])
        gradients = losses[:0]
        if accelerator.scaler is None:  # a scaler for fp16 meets infinite gradients as it should, by itself
            # One infinite gradient would poison the weights, and every loss after it. A sum shows it in one pass.
            learnt = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
            gradients = torch.stack([own_part(gradient).sum().float() for gradient in learnt])
        is_bad = torch.stack([~numbers.isfinite().all() for numbers in (losses, gradients)]).float()
        bad_losses, bad_gradients = accelerator.reduce(is_bad, 'sum').tolist()
        if not bad_losses and not bad_gradients:
            self.noted, self.skipped_in_a_row = [], 0
            return False
        with torch.no_grad():
            for buffer, kept in zip(self.network.buffers(), self.buffers, strict=True):
                buffer.copy_(kept)
        self.find(accelerator, 'gradient not finite, ' if not bad_losses else '')
        self.skipped_in_a_row += 1
        return True

    def counted(self, loss: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Take a batch that is skipped because of its loss out of the training's metrics."""
        if not self.skips:
            return loss, targets
        is_finite = loss.detach().isfinite()
        return torch.where(is_finite, loss.detach(), 0.0), torch.where(is_finite, targets, UNREADABLE)

    def is_hopeless(self) -> bool:
        """Tell whether skipping does not help."""
        return not self.skips or self.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW

    def look(self, accelerator: Accelerator) -> list[str]:
        """Describe the batches since the last look, of all processes, whose loss was not finite; usually none.

        Every process calls this, and waits for its device and the others.
        """
        self.find(accelerator)
        found, self.found = self.found, []
        if not accelerator.reduce(torch.tensor(len(found), device=accelerator.device), 'sum').item():
            return []
        everywhere = sorted(gather_object(found))
        if not self.skips:  # what came after the first was poisoned by it
            everywhere = [batch for batch in everywhere if batch[:2] == everywhere[0][:2]]
        return [text for _, _, text in everywhere]

    def find(self, accelerator: Accelerator, fault: str = '') -> None:
        """Describe the noted batches whose loss is not finite; all of them, if another fault is given."""
        if self.noted:
            is_finite = torch.stack([batch.loss.float() for batch in self.noted]).isfinite().tolist()
            bad = [batch for batch, finite in zip(self.noted, is_finite, strict=True) if fault or not finite]
            self.found += [(batch.epoch, batch.update, self.describe(batch, accelerator, fault)) for batch in bad]
        self.noted = []

    def look_at_weights(self, accelerator: Accelerator) -> list[str]:
        """Describe the batches of the newest update if a weight or buffer is not finite after it."""
        tensors = [own_part(tensor) for tensor in self.network.state_dict().values() if tensor.is_floating_point()]
        # A sum shows it without a copy of the tensor; one that is too large for its type is looked at again.
        sums_are_finite = torch.stack([tensor.sum().isfinite() for tensor in tensors]).tolist()
        suspects = [tensor for tensor, is_finite in zip(tensors, sums_are_finite, strict=True) if not is_finite]
        is_bad = torch.tensor(float(any(not tensor.isfinite().all() for tensor in suspects)), device=accelerator.device)
        if not accelerator.reduce(is_bad, 'sum').item():
            return []
        return gather_object([self.describe(b, accelerator, 'weights not finite, ') for b in self.update_batches])

    def describe(self, batch: NotedBatch, accelerator: Accelerator, fault: str = '') -> str:
        """Write a batch as lines for nonfinite.txt: where it was, then its images."""
        place = f'epoch {batch.epoch}, update {batch.update}, process {accelerator.process_index}'
        names = (self.source.name(index) for index in batch.indices.tolist())
        return f'{place}: {fault}loss {batch.loss.item()}\n' + ''.join(f'  train/{name}\n' for name in names)
