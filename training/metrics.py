"""Loss and accuracy, every sample counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from .blocks import BlockNorms, BlockVoices
from .data import UNREADABLE, is_readable
from .sources import Source

if TYPE_CHECKING:
    from .tasks import Task

Output = Tensor | tuple[Tensor, list[Tensor]] | tuple[Tensor, list[Tensor], dict[str, Tensor]]


def split_output(output: Output) -> tuple[Tensor, list[Tensor]]:
    """Separate the whole network's logits from those of its blocks, of which there may be none."""
    return (output[0], output[1]) if isinstance(output, tuple) else (output, [])


def kept_answers(output: Output) -> dict[str, Tensor]:
    """Find the logits of the heads of earlier tasks, by name; none where they were not asked for."""
    return output[2] if isinstance(output, tuple) and len(output) == 3 else {}


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Average the cross-entropy over the readable images; 0 where there are none.

    Args:
        logits: Shape (N, classes).
        targets: Class indices or `UNREADABLE`, shape (N,); or the part that each class has, shape (N, classes), where a
            row of zeros stands for an unreadable image.
        smoothing: Label smoothing.
    """
    logits = logits.float()
    if targets.ndim == 1:
        is_readable = targets != UNREADABLE
        total = F.cross_entropy(logits, targets, ignore_index=UNREADABLE, label_smoothing=smoothing, reduction='sum')
    else:
        is_readable = targets.sum(1) > 0
        total = (F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction='none') * is_readable).sum()
    return total / is_readable.sum().clamp(min=1)


def objective(output: Output, targets: Tensor, smoothing: float, block_loss: float, task: Task) -> Tensor:
    """Compute what training lowers: the network's loss, and `block_loss` times the mean loss of its blocks."""
    logits, blocks = split_output(output)
    loss = task.loss(logits, targets, smoothing)
    if blocks:
        loss = loss + block_loss * torch.stack([task.loss(block, targets, smoothing) for block in blocks]).mean()
    return loss


class MeanLoss:
    """Running sums of the loss. They stay on the device: reading them is what waits for it."""

    columns: tuple[str, ...] = ('loss', 'count')
    """The sums; the last is of readable images."""
    told: tuple[str, ...] = ('loss',)
    """What is told of training."""

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(len(self.columns), dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add one batch; `loss` is its mean over the readable images."""
        count = is_readable(targets).sum()
        self.sums += torch.stack([loss.detach() * count, count]).double()

    def read(self, accelerator: Accelerator | None = None) -> dict[str, float]:
        """Average; over all processes when their accelerator is given."""
        loss, count = self.total(accelerator)
        return {'loss': loss / max(count, 1.0)}

    def total(self, accelerator: Accelerator | None = None) -> list[float]:
        """List the sums; over all processes when their accelerator is given."""
        return (self.sums if accelerator is None else accelerator.reduce(self.sums, 'sum')).tolist()

    def since(self, sums: Tensor) -> MeanLoss:
        """What was added since the sums were these."""
        later = type(self)(self.sums.device)
        later.sums = self.sums - sums
        return later


class Tally(MeanLoss):
    """Running sums of loss and hits, where an image has one class."""

    columns = ('loss', 'top1', 'top5', 'count')
    told = ('loss', 'top1')

    @torch.no_grad()
    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add one batch; `loss` is its mean over the readable images."""
        readable = targets != UNREADABLE
        ranks = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = ranks.eq(targets[:, None]) & readable[:, None]
        count = readable.sum()
        self.sums += torch.stack([loss.detach() * count, hits[:, 0].sum(), hits.sum(), count]).double()

    def read(self, accelerator: Accelerator | None = None) -> dict[str, float]:
        """Average: loss, top1 and top5 in percent; over all processes when their accelerator is given."""
        loss, top1, top5, count = self.total(accelerator)
        count = max(count, 1.0)
        return {'loss': loss / count, 'top1': 100 * top1 / count, 'top5': 100 * top5 / count}


class BadImages:
    """Which images of a split could not be read, noted without waiting for the device."""

    def __init__(self, split: str, source: Source, device: torch.device):
        self.split, self.source = split, source
        self.flags = torch.zeros(len(source.targets), dtype=torch.int32, device=device)

    def add(self, targets: Tensor, indices: Tensor) -> None:
        self.flags[indices] |= (~is_readable(targets)).int()

    def names(self, accelerator: Accelerator) -> list[str]:
        """List their names, over all processes; this waits for the device."""
        if not accelerator.reduce(self.flags.sum(), 'sum'):
            return []
        found = accelerator.reduce(self.flags, 'sum').nonzero().flatten().tolist()
        return [f'{self.split}/{self.source.name(index)}' for index in found]

    def refuse(self, accelerator: Accelerator) -> None:
        """Stop, in all processes at once, if there was one.

        Raises:
            ValueError: Names them.
        """
        names = self.names(accelerator)
        if names:
            raise ValueError(f'cannot read {", ".join(names[:5])}: repair or remove it, or give --bad-images skip')


@torch.no_grad()
def evaluate(
    accelerator: Accelerator,
    model: nn.Module,
    batches: Iterable[tuple[Any, Tensor, Tensor]],
    bad_images: BadImages,
    inputs_of: Callable[[Any], tuple[Tensor, ...]],
    block_norms: BlockNorms,
    block_voices: BlockVoices,
    task: Task,
) -> dict[str, float]:
    """Measure a network over all readable images.

    Args:
        accelerator: Joins the processes.
        model: The network, as prepared.
        batches: Of images, with their targets and image indices.
        bad_images: Takes note of unreadable ones.
        inputs_of: Makes what the network reads of a batch.
        block_norms: Sees the blocks' activations.
        block_voices: Hears what each block says alone.
        task: Says what is measured.

    Returns:
        What the task measures, as in `Task.measured`; norm_NAME for each block whose activations `block_norms` saw;
        and for each block that `block_voices` heard, what it would reach alone: top1_NAME or map_NAME.
    """
    model.eval()
    tally, *alone = (task.evaluation_tally(accelerator.device) for _ in range(1 + len(block_voices.names)))
    norm_sums = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    for batch, targets, indices in batches:
        with accelerator.autocast():  # a moving average of the weights is no prepared network
            logits, _ = split_output(model(*inputs_of(batch)))
        norms, voices = block_norms.take(), block_voices.take()
        # Processes pad the last batch by repeating images; this drops the repetitions.
        logits, targets, indices, *found = accelerator.gather_for_metrics(
            (logits.float(), targets, indices, *voices, *([] if norms is None else [norms]))
        )
        bad_images.add(targets, indices)
        tally.add(task.loss(logits, targets), logits, targets)
        for block, logits in zip(alone, found[: len(voices)], strict=False):
            block.add(task.loss(logits, targets), logits, targets)
        for norms in found[len(voices) :]:
            norm_sums = norm_sums + (norms.double() * is_readable(targets)[:, None]).sum(0)
    count = tally.sums[-1].clamp(min=1)
    means = (norm_sums / count).tolist() if norm_sums.ndim else []
    reached = {
        name: block.read()[task.results[0]]
        for name, block in zip(block_voices.names, alone, strict=True)
        if block.sums[-1]
    }
    return {
        **tally.read(),
        **{f'norm_{name}': mean for name, mean in zip(block_norms.names, means, strict=False)},
        **{f'{task.results[0]}_{name}': value for name, value in reached.items()},
    }
