"""Images to test on: three colours, so that a small network learns them at once."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Make a folder with 8 training and 3 validation images in each of three classes."""
    random = np.random.default_rng(0)
    root = tmp_path / 'colours'
    for split, count in (('train', 8), ('val', 3)):
        for channel, name in enumerate(('blue', 'green', 'red')):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 120, (40, 48, 3), dtype=np.uint8)
                pixels[..., 2 - channel] += 130
                Image.fromarray(pixels).save(folder / f'{index}.png')
    return root
