"""The order of the images in an epoch: any image as often as another, or any class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Sampler

from .config import Config
from .sources import Source, Target, choose_per_class, choose_share, describe_split_files

if TYPE_CHECKING:
    from .data import InputFormat


class EpochOrder(Sampler[tuple[int, int]]):
    """The order of the images in an epoch: a shuffle that depends on seed and epoch only, from any place in it.

    Args:
        indices: The images to train on.
        seed: Of the shuffle.
        update_size: Images in one update, over all batches and processes. An epoch holds whole updates; which images
            are left over changes with the epoch.
    """

    def __init__(self, indices: np.ndarray, seed: int, update_size: int):
        self.indices, self.seed, self.update_size = indices, seed, update_size
        self.updates = len(indices) // update_size
        self.epoch = self.start = 0
        if not self.updates:
            raise ValueError(
                f'{len(indices)} training images do not fill one update of {update_size} (--batch-size x '
                '--grad-accum-steps x processes): lower --batch-size'
            )

    def seek(self, epoch: int, updates_done: int) -> None:
        """Begin the next pass in this epoch, after the updates done in it already."""
        self.epoch, self.start = epoch, updates_done * self.update_size

    def describe(self, sources: dict[str, Source], input_format: InputFormat) -> str:
        """Say in a line what is trained on, and in which order the classes are numbered."""
        classes = sources['train'].classes
        shown = ', '.join(classes[:12]) + (f', ... ({len(classes)})' if len(classes) > 12 else '')
        return (
            f'{len(self.indices)} training and {len(sources["val"].targets)} validation images at '
            f'{input_format.img_size} px, {self.updates} updates of {self.update_size} an epoch; classes: {shown}'
            f'{describe_split_files(*sources.values())}'
        )

    def __len__(self) -> int:
        return self.updates * self.update_size - self.start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.keys()[self.start :])

    def keys(self) -> list[tuple[int, int]]:
        """List the whole epoch as (epoch, index)."""
        shuffled = np.random.default_rng((self.seed, self.epoch)).permutation(self.indices)
        return [(self.epoch, index) for index in shuffled[: self.updates * self.update_size].tolist()]


class BalancedOrder(EpochOrder):
    """Every class equally often in an epoch, which has as many images as without this.

    Small classes come up several times, each image of a class as often as another to within one, and cropped and
    flipped anew each time: its key then tells another epoch. Of large classes each epoch takes other images.

    Args:
        targets: Class index of every image, of those also that are not trained on.
        turn_step: Added to the epoch in the key each time an image comes up again; more than any run has epochs.
    """

    def __init__(
        self, indices: np.ndarray, seed: int, update_size: int, targets: Sequence[Target], turn_step: int = 1 << 32
    ):
        super().__init__(indices, seed, update_size)
        self.turn_step = turn_step
        labels = np.asarray(targets)[indices]
        self.members = [indices[labels == label] for label in np.unique(labels)]

    def keys(self) -> list[tuple[int, int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        share, left = divmod(self.updates * self.update_size, len(self.members))
        counts = np.full(len(self.members), share)
        counts[random.permutation(len(self.members))[:left]] += 1  # who has one more changes with the epoch
        keys = [
            (self.epoch + turn * self.turn_step, index)
            for members, count in zip(self.members, counts.tolist(), strict=True)
            for turn in range(-(-count // len(members)))
            for index in random.permutation(members)[: count - turn * len(members)].tolist()
        ]
        return [keys[place] for place in random.permutation(len(keys)).tolist()]


def create_order(config: Config, sources: dict[str, Source], processes: int) -> EpochOrder:
    """Make the order in which all processes together train on the images."""
    update_size = config.batch_size * config.grad_accum_steps * processes
    if config.label_share is not None:
        chosen = choose_share(sources['train'], config.label_share, config.seed)
    else:
        chosen = choose_per_class(sources['train'], config.labels_per_class, config.seed)
    if config.balanced:
        # Cached features have the views of some epochs only; a batch must be of one view.
        turn_step = (config.cache_features or 1) << 32
        return BalancedOrder(chosen, config.seed, update_size, sources['train'].targets, turn_step)
    return EpochOrder(chosen, config.seed, update_size)
