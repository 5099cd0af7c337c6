"""Data sets with random access that timm opens: torch/NAME and hfds/NAME."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .folders import names_in_order
from .source import Target
from .splits import number_label_lists, number_targets


class ReaderSource:
    """Images that a data set of timm or torchvision reads.

    Args:
        dataset: As timm made it.
        targets: What each image shows.
        classes: Their names.
        what: Names the data set and where it lies.
    """

    def __init__(self, dataset: Any, targets: Sequence[Target], classes: list[str], what: str = ''):
        self.dataset, self.targets, self.classes = dataset, targets, classes
        self.identity = f'{what} {identify(dataset)}'

    def name(self, index: int) -> str:
        reader = getattr(self.dataset, 'reader', None)
        return f'image {index}' if reader is None else str(reader.filename(index) or f'image {index}')

    def size(self, index: int) -> int:
        return 0

    def stamp(self, index: int) -> str:
        samples = getattr(getattr(self.dataset, 'reader', self.dataset), 'samples', None)
        return self.identity if samples is None else f'{self.identity} {Path(samples[index][0]).stat().st_mtime_ns}'

    def read(self, index: int) -> Image.Image:
        # timm's ImageDataset would silently give the next image in place of a broken one; its reader does not.
        reader = getattr(self.dataset, 'reader', None)
        if reader is None:
            return self.dataset[index][0].convert('RGB')
        with reader[index][0] as file, Image.open(file) as image:
            return image.convert('RGB')


def identify(dataset: Any) -> str:
    """Text that changes when a data set's contents do, as far as they can be told without reading every image."""
    table = getattr(getattr(dataset, 'reader', None), 'dataset', None)
    if table is not None:
        return str(getattr(table, '_fingerprint', ''))  # of a Hugging Face data set
    pixels = getattr(dataset, 'data', None)
    return '' if pixels is None else str(zlib.crc32(np.asarray(pixels).tobytes()))


def wrap_dataset(dataset: Any, what: str, multi_label: bool = False) -> ReaderSource:
    """Find targets and class names of a data set that timm made.

    Args:
        dataset: As timm made it.
        what: Names it in errors.
        multi_label: Whether an image has any number of labels.

    Raises:
        ValueError: It does not tell them, or has one class only.
    """
    reader = getattr(dataset, 'reader', None)
    if hasattr(dataset, 'targets'):
        labels = list(dataset.targets)
    elif reader is not None and hasattr(reader, 'iter_targets'):
        labels = list(reader.iter_targets())
    else:
        raise ValueError(f'{what}: its classes cannot be told without reading every image; store it as a folder')
    names = getattr(dataset, 'classes', None) or names_in_order(getattr(reader, 'class_to_idx', {})) or None
    labels = [label if isinstance(label, (str, list, dict)) else int(label) for label in labels]
    number: Any = number_label_lists if multi_label else number_targets
    targets, classes = number(labels, names, what)
    return ReaderSource(dataset, targets, classes, what)
