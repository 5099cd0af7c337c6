"""How fast consolidated networks are beside the grown ones they were made from."""

from __future__ import annotations

import itertools
import statistics

import timm
import torch
from torch import nn

import timm_devnet
from training import devices

from .timing import interleave
from .train_speed import describe

TOLERANCE = 1e-5


def consolidate(
    models: tuple[str, ...] = ('alexnet_wa2048', 'vgg16_wa2048', 'tf_efficientnet_lite0_mwa512'),
    batch_sizes: tuple[int, ...] = (1, 8, 32),
    img_size: int = 224,
    repeats: int = 11,
    limit: float = 1.0,
) -> int:
    """Time consolidated networks against the grown ones in evaluation, and compare their logits.

    Args:
        models: Names of grown networks, with random weights.
        batch_sizes: Images in a batch.
        img_size: Side of the images in pixels.
        repeats: How often each network is run, in turn with the other.
        limit: Largest allowed ratio of times.

    Returns:
        Exit code: 1 if the median of a ratio is above the limit, or logits differ by more than 1e-5 of the largest.
    """
    devices.keep_freed_memory()  # as train.py does: page faults would be most of what varies
    is_good = True
    print(f'evaluation at {img_size} px, {torch.get_num_threads()} threads, median of {repeats} rounds (range)\n')
    print('| network | batch | grown, ms | consolidated, ms | ratio | largest difference |')
    print('| --- | --- | --- | --- | --- | --- |')
    for name, batch_size in itertools.product(models, batch_sizes):
        torch.manual_seed(0)
        grown = timm.create_model(name).eval()
        row = measure(grown, timm_devnet.consolidate(grown), torch.randn(batch_size, 3, img_size, img_size), repeats)
        grown_ms, consolidated_ms, ratios, difference = row
        times = f'{describe(grown_ms, 1)} | {describe(consolidated_ms, 1)} | {describe(ratios, 2)}'
        print(f'| `{name}` | {batch_size} | {times} | {difference:.1e} |', flush=True)
        is_good = is_good and statistics.median(ratios) <= limit and difference <= TOLERANCE
    return int(not is_good)


@torch.inference_mode()
def measure(
    grown: nn.Module, consolidated: nn.Module, images: torch.Tensor, repeats: int
) -> tuple[list[float], list[float], list[float], float]:
    """Milliseconds of every round, their ratios, and the largest difference of logits over the largest logit."""
    wanted = grown(images)
    difference = ((consolidated(images) - wanted).abs().max() / wanted.abs().max()).item()
    before, after = interleave([lambda: grown(images), lambda: consolidated(images)], repeats)
    ratios = [after_s / before_s for before_s, after_s in zip(before, after, strict=True)]
    return [1000 * s for s in before], [1000 * s for s in after], ratios, difference
