"""What the frozen part of a network gives for every image: computed once, kept, and not again in every epoch."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from timm_devnet import split_frozen

from .config import Config
from .data import Images, Normalize, count_workers, leave_signals_to_parent
from .files import sync
from .metrics import split_output

# numpy has no bfloat16: its bits are kept as another type of two bytes.
STORED_AS = {torch.bfloat16: torch.int16}
Key = tuple[int, int]


class FeatureViews(Dataset):
    """What the frozen trunk gives for some views of every image, found by (epoch, index) like the images themselves.

    View v is the image as epoch v shows it, so the first epochs see what they would see without the cache; later ones
    see the views in turn again. Each view is a folder of memory-mapped arrays with a row for each image, and bears its
    name only once it is whole.

    Args:
        images: The images as the network sees them.
        indices: Which of them are wanted.
        views: Number of views.
        name: What the folders are called.
        dtype: How floating-point features are kept; None: as the trunk computes them.
    """

    def __init__(self, images: Images, indices: np.ndarray, views: int, name: str, dtype: torch.dtype | None = None):
        self.images, self.indices, self.views, self.name, self.dtype = images, indices, views, name, dtype
        self.rows = torch.full((len(images),), -1)
        self.rows[torch.from_numpy(indices)] = torch.arange(len(indices))
        self.arrays: list[list[Tensor]] = []

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, keys: Sequence[Key]) -> tuple[list[Tensor], Tensor, Tensor]:
        """Read a batch: features, each of shape (N, ...), targets (N, ...), indices of the images (N,)."""
        view = keys[0][0] % self.views
        if any(epoch % self.views != view for epoch, _ in keys):
            raise ValueError(f'a batch is of one epoch; given {sorted({epoch for epoch, _ in keys})}')
        indices = torch.tensor([index for _, index in keys])
        rows = self.rows[indices]
        *features, targets = (array.index_select(0, rows) for array in self.arrays[view])
        return features, targets, indices

    def path(self, root: Path, view: int) -> Path:
        return root / f'{self.name}-{view:03d}'

    def open(self, root: Path, dtypes: Sequence[torch.dtype]) -> None:
        """Map the files of all views."""
        self.arrays = []
        for view in range(self.views):
            files = [self.path(root, view) / f'{place}.npy' for place in range(len(dtypes))]
            # Mapped copy-on-write, which torch can use; nothing is ever written.
            arrays = [torch.from_numpy(np.load(file, mmap_mode='c')) for file in files]
            self.arrays.append([array.view(dtype) for array, dtype in zip(arrays, dtypes, strict=True)])

    def kept_dtype(self, value: Tensor) -> torch.dtype:
        """How a feature is kept."""
        return self.dtype if self.dtype and value.is_floating_point() else value.dtype


@dataclass
class Features:
    """The frozen part of a network, and what it gives for the images of both splits."""

    trunk: nn.Module
    """Gives a tuple of tensors (N, ...) for images (N, C, H, W)."""
    normalize: Normalize
    """Makes those images of pixels."""
    accelerator: Accelerator
    """Its processes share the work; its precision is used."""
    views: dict[str, FeatureViews]
    """Of each split."""
    batch_size: int
    """Images in a batch: that of training, so that the same arithmetic is done."""
    workers: int
    """Processes that read images."""

    @classmethod
    def create(
        cls,
        config: Config,
        learner: nn.Module,
        images: dict[str, Images],
        indices: np.ndarray,
        normalize: Normalize,
        accelerator: Accelerator,
    ) -> tuple[Features, nn.Module]:
        """Split a network; returns its frozen part with the views that are wanted, and the part that learns.

        Raises:
            ValueError: The network has no frozen part, the processes are on several machines, or the two parts do not
                give together what the whole network gives.
        """
        assert config.cache_features is not None
        if accelerator.num_processes > int(os.environ.get('LOCAL_WORLD_SIZE', 1)):
            raise ValueError('--cache-features keeps its files on one machine: leave it out on several')
        dtype = {'fp32': torch.float32, 'bf16': torch.bfloat16, None: None}[config.cache_dtype]
        val_indices = np.arange(len(images['val']))
        views = {
            'train': FeatureViews(images['train'], indices, config.cache_features, 'train', dtype),
            'val': FeatureViews(images['val'], val_indices, 1, 'val', dtype),
        }
        pixels = torch.stack([images['val'][0, 0][0]] * 2).to(accelerator.device)
        trunk, head = split_frozen(learner, normalize(pixels))
        features = cls(trunk, normalize, accelerator, views, config.batch_size, count_workers(config))
        features.check(learner, head, pixels)
        return features, head

    @torch.no_grad()
    def check(self, learner: nn.Module, head: nn.Module, pixels: Tensor) -> None:
        """Compare the two parts with the whole, on two images."""
        modes = [(module, module.training) for module in (*learner.modules(), *head.modules())]
        learner.eval()
        head.eval()
        with self.accelerator.autocast():
            ours, whole = split_output(head(*self(pixels)))[0], split_output(learner(self.normalize(pixels)))[0]
        for module, mode in modes:
            module.training = mode
        if not torch.equal(ours, whole):
            raise ValueError('the frozen part of this network cannot be told apart: leave out --cache-features')

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Features of pixels (N, H, W, 3)."""
        with self.accelerator.autocast():
            return self.trunk(self.normalize(pixels.to(self.accelerator.device)))

    def arrange(self, features: list[Tensor]) -> tuple[Tensor, ...]:
        """Give maps (N, C, H, W) the layout in memory that the network has."""
        layout = self.normalize.memory_format
        return tuple(value.to(memory_format=layout) if value.ndim == 4 else value for value in features)

    def sample(self, views: FeatureViews) -> list[Tensor]:
        """What one image's row looks like: its features and its target, each (1, ...)."""
        pixels, target, _ = views.images[0, int(views.indices[0])]
        features = [value.to(views.kept_dtype(value)) for value in self(pixels.expand(2, *pixels.shape))]
        return [*(value[:1].cpu() for value in features), torch.as_tensor(target)[None]]

    def fill(self, root: Path, stop: Callable[[], bool]) -> bool:
        """Compute what is not there yet. Every process calls this and computes its share.

        Args:
            root: Folder of the files.
            stop: Asked after every batch whether to leave off, for which processes need not agree.

        Returns:
            Whether everything is there; not if it was asked to leave off.

        Raises:
            ValueError: The disk has not the space.
        """
        root.mkdir(parents=True, exist_ok=True)
        all_views = self.views.values()
        missing = [
            (views, view) for views in all_views for view in range(views.views) if not views.path(root, view).exists()
        ]
        rows = {views.name: self.sample(views) for views in all_views}
        self.accelerator.print(self.describe(rows))
        self.check_space(root, sum(row_bytes(rows[views.name]) * len(views.indices) for views, _ in missing))
        count = sum(len(views.indices) for views, _ in missing)
        is_shown = self.accelerator.is_main_process and bool(missing)
        with tqdm(total=count, unit='img', desc='features', disable=None if is_shown else True) as bar:
            for views, view in missing:
                if not self.fill_view(root, views, view, rows[views.name], bar, stop):
                    return False
        for views in all_views:
            views.open(root, [value.dtype for value in rows[views.name]])
        return True

    def describe(self, rows: dict[str, list[Tensor]]) -> str:
        """Say what is kept, and how much of it."""
        total = sum(row_bytes(rows[name]) * len(views.indices) * views.views for name, views in self.views.items())
        views = self.views['train']
        shapes = ', '.join(f'{"x".join(map(str, value.shape[1:]))} {value.dtype}' for value in rows['train'][:-1])
        return (
            f'features of the frozen part, {views.views} views of {len(views.indices)} training images: '
            f'{shapes.replace("torch.", "")}; {total / 1e6:.0f} MB on disk'
        )

    def check_space(self, root: Path, needed: int) -> None:
        free = shutil.disk_usage(root).free
        if needed > 0.95 * free:
            raise ValueError(
                f'the features need {needed / 1e9:.2f} GB and {root} has {free / 1e9:.2f} GB free: lower '
                '--cache-features, give --cache-dtype bf16, or choose another --output'
            )

    def fill_view(
        self,
        root: Path,
        views: FeatureViews,
        view: int,
        row: list[Tensor],
        bar: tqdm,
        stop: Callable[[], bool],
    ) -> bool:
        """Compute one view; returns whether it is whole."""
        accelerator = self.accelerator
        unfinished = root / f'.{views.name}-{view:03d}.unfinished'
        if accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            for place, value in enumerate(row):
                create_array(unfinished / f'{place}.npy', (len(views.indices), *value.shape[1:]), value.dtype)
        accelerator.wait_for_everyone()
        files = [np.load(unfinished / f'{place}.npy', mmap_mode='r+') for place in range(len(row))]
        arrays = [torch.from_numpy(file).view(value.dtype) for file, value in zip(files, row, strict=True)]
        is_whole = True
        for rows, values in self.batches(views, view):
            for array, value in zip(arrays, values, strict=True):
                array[rows] = value[: len(rows)].to(array.dtype).cpu()
            bar.update(len(rows) * accelerator.num_processes)
            if stop():
                is_whole = False
                break
        for file in files:
            file.flush()
        everyone = torch.tensor(int(is_whole), device=accelerator.device)
        is_whole = int(accelerator.reduce(everyone, 'sum')) == accelerator.num_processes
        if is_whole and accelerator.is_main_process:
            for path in (*unfinished.iterdir(), unfinished):
                sync(path)
            unfinished.rename(views.path(root, view))
            sync(root)
        accelerator.wait_for_everyone()
        return is_whole

    def batches(self, views: FeatureViews, view: int) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """This process's batches of one view: their rows, and their features and targets.

        All batches are of one size, the last one filled up, so that the same arithmetic is done for every image.
        """
        size, processes = self.batch_size, self.accelerator.num_processes
        count = math.ceil(len(views.indices) / size)
        mine = [np.arange(size * batch, size * (batch + 1)) for batch in range(count)][
            self.accelerator.process_index :: processes
        ]
        keys = [[(view, int(views.indices[row % len(views.indices)])) for row in rows] for rows in mine]
        loader = DataLoader(
            views.images,
            batch_sampler=keys,
            num_workers=self.workers,
            worker_init_fn=leave_signals_to_parent,
            generator=torch.Generator(),
        )
        for rows, (pixels, targets, _) in zip(mine, loader, strict=True):
            yield torch.from_numpy(rows[rows < len(views.indices)]), [*self(pixels), targets]


def create_array(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Create a file for an array, in numpy's own format."""
    stored = torch.empty(0, dtype=STORED_AS.get(dtype, dtype)).numpy().dtype
    np.lib.format.open_memmap(path, mode='w+', dtype=stored, shape=shape).flush()


def row_bytes(row: list[Tensor]) -> int:
    """Bytes of one image's row."""
    return sum(value.nbytes for value in row)
