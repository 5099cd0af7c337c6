"""Generated images to measure on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 10
VAL_IMAGES = 32


def make_folder(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """Make a folder of JPEG images as smooth as photographs, and some to evaluate on, unless it is there.

    Args:
        folder: Takes it.
        count: Training images.
        size: Width and height in pixels.

    Returns:
        The folder with train/ and val/ in it.
    """
    root = folder / f'images-{count}-{size[0]}x{size[1]}'
    if root.exists():
        return root
    random = np.random.default_rng(0)
    for split, wanted in (('train', count), ('val', VAL_IMAGES)):
        for number in range(CLASSES):
            (root / split / f'class{number}').mkdir(parents=True)
        for index in range(wanted):
            coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
            image.save(root / split / f'class{index % CLASSES}' / f'{index}.jpg', quality=90)
    return root
