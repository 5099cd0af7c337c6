"""From images to batches: transforms, their randomness, loaders."""

from __future__ import annotations

import contextlib
import math
import random
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import str_to_interp_mode
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from .config import Config
from .order import EpochOrder
from .sources import Source

if TYPE_CHECKING:
    from .tasks import Task

# Target, or every entry of the target, of an image that could not be read: neither trained on nor counted. It is not
# raised where it happens, since one process that leaves would keep the others waiting for it.
UNREADABLE = -1
# Images are resized to 256x256 for a crop of 224, and in that proportion for other sizes.
CROP_PCT = 224 / 256


@dataclass(frozen=True)
class InputFormat:
    """What the network expects to see."""

    img_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str

    @property
    def resized_side(self) -> int:
        """Pixels of the side that images are resized to, before they are cropped."""
        return math.floor(self.img_size / CROP_PCT)

    def eval_transform(self) -> Callable[[Image.Image], Tensor]:
        """Make timm's own transform for evaluation from what `timm_config` saves; it leaves normalising to others."""
        return create_transform(**self.timm_config(), normalize=False)

    def train_transform(self, config: Config) -> Callable[[Image.Image], Tensor]:
        """Make the transform for training: by default the paper's (both sides resized, random crop, random flip).

        What it draws comes from torch's, numpy's and Python's global generators; see `seeded`.
        """
        if config.no_aug:
            return self.eval_transform()
        assert config.hflip is not None, 'the configuration is resolved'
        crop_and_flips, colours, to_tensor = create_transform(
            self.img_size,
            is_training=True,
            train_crop_mode=None if config.train_crop_mode == 'squash' else config.train_crop_mode,
            scale=config.scale,
            ratio=config.ratio,
            hflip=config.hflip,
            vflip=config.vflip,
            color_jitter=config.color_jitter or None,  # type: ignore[arg-type]  # timm's word for none
            auto_augment=config.aa,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            normalize=False,
            separate=True,
        )
        crop, flips = crop_and_flips.transforms[:1], crop_and_flips.transforms[1:]
        if config.train_crop_mode == 'squash':
            side = (self.resized_side, self.resized_side)
            crop = [
                transforms.Resize(side, interpolation=str_to_interp_mode(self.interpolation)),
                transforms.RandomCrop(self.img_size),
            ]
        return transforms.Compose([*crop, *flips, *colours.transforms, *to_tensor.transforms])

    def timm_config(self) -> dict:
        """Describe it in the words of timm's pretrained_cfg, so that others see the same pixels as we do."""
        return {
            'input_size': (3, self.img_size, self.img_size),
            'mean': self.mean,
            'std': self.std,
            'interpolation': self.interpolation,
            'crop_pct': CROP_PCT,
            'crop_mode': 'squash',
        }


class Normalize(nn.Module):
    """From pixels to what the network sees, a batch at a time and where the network is.

    Images travel as bytes, a quarter of what floats take. The arithmetic is that of torchvision's ToTensor and
    Normalize, so the result is theirs bit for bit.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], memory_format: torch.memory_format):
        super().__init__()
        self.memory_format = memory_format
        self.register_buffer('mean', torch.tensor(mean)[:, None, None])
        self.register_buffer('std', torch.tensor(std)[:, None, None])

    def forward(self, pixels: Tensor) -> Tensor:
        """Images (N, 3, H, W) of pixels (N, H, W, 3), bytes."""
        images = pixels.movedim(-1, 1).to(memory_format=self.memory_format, dtype=torch.float32)
        return images.div_(255).sub_(self.mean).div_(self.std)


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Draw all random numbers inside from this key alone, and leave the global generators as they were."""
    state, numpy_state = random.getstate(), np.random.get_state()
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.random.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)


def is_readable(targets: Tensor) -> Tensor:
    """Tell which images of a batch could be read, shape (N,), from targets of shape (N,) or (N, classes)."""
    return (targets != UNREADABLE).reshape(len(targets), -1).all(1)


class Images(Dataset):
    """Images as the network sees them, found by (epoch, index).

    What is random about an image depends on seed, epoch and index only: not on the worker that reads it, nor on what
    was read before. That is what lets a run go on inside an epoch exactly as if it had never stopped.
    """

    def __init__(self, source: Source, transform: Callable[[Image.Image], Tensor], seed: int, task: Task):
        self.source, self.transform, self.seed, self.task = source, transform, seed, task

    def __len__(self) -> int:
        return len(self.source.targets)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int | Tensor, int]:
        """Read one image.

        Returns:
            Pixels as bytes of shape (H, W, 3), what the task makes of its target, index of the image.
        """
        epoch, index = key
        target = self.task.encode(self.source.targets[index])
        try:
            image = self.source.read(index)
        except Exception:  # decoders raise errors of every kind on broken files; the target tells of it
            image, target = Image.new('RGB', (8, 8)), self.task.unreadable
        with seeded(self.seed, epoch, index):
            return self.transform(image).movedim(0, -1), target, index


def leave_signals_to_parent(worker: int) -> None:
    """Let a reading process live on through SIGINT and SIGTERM, which clusters send to every process of a job.

    Its parent finishes the step and then ends it. A second SIGTERM ends it at once: that is how Python gets rid of
    workers at exit, and it would wait for ever for one that ignores it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def count_workers(config: Config) -> int:
    """Tell how many processes read images."""
    return config.workers if config.workers is not None else 4 * torch.cuda.is_available()


def create_images(
    config: Config, sources: dict[str, Source], input_format: InputFormat, task: Task
) -> dict[str, Images]:
    """Make the images of both splits as the network sees them."""
    transforms_of = {'train': input_format.train_transform(config), 'val': input_format.eval_transform()}
    return {split: Images(sources[split], transforms_of[split], config.seed, task) for split in transforms_of}


def create_loaders(config: Config, datasets: Mapping[str, Dataset], order: EpochOrder) -> dict[str, DataLoader]:
    """Make the training and validation loaders, not yet shared among processes.

    Args:
        config: Of the run.
        datasets: For train and val, what gives images by (epoch, index), one at a time or a batch at once.
        order: Of the training images.
    """
    val_keys = [(0, index) for index in range(len(datasets['val']))]  # type: ignore[arg-type]  # all of ours have one
    return {
        split: create_loader(config, datasets[split], keys) for split, keys in (('train', order), ('val', val_keys))
    }


def create_loader(config: Config, dataset: Dataset, keys: EpochOrder | list[tuple[int, int]]) -> DataLoader:
    """Make one loader; a data set that gives whole batches needs no processes to read them."""
    gives_batches = hasattr(dataset, '__getitems__')
    workers = 0 if gives_batches else count_workers(config)
    return DataLoader(
        dataset,
        batch_size=config.batch_size,
        sampler=keys,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=leave_signals_to_parent,
        collate_fn=as_batch if gives_batches else None,
        pin_memory=torch.cuda.is_available(),
        # Without its own generator a loader draws from the global one, which dropout uses.
        generator=torch.Generator().manual_seed(config.seed),
    )


def as_batch(batch: Any) -> Any:
    """Hand on what was given as a batch."""
    return batch
