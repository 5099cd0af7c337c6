"""What a source of images is, and the simple ones: files, an array, a part of another source."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

# What an image shows: the index of its class, or in a data set of several labels an image those of its labels, rising.
Target = int | tuple[int, ...]


class Source(Protocol):
    """One split: images that are read one at a time, and what is known of them without reading.

    A source may have two members more. `stamp(index)` is text that changes when the image does, for the image cache:
    name and size alone do not always tell. `split_files` has what is known of the lists that a named data set's split
    was read from.
    """

    classes: list[str]

    @property
    def targets(self) -> Sequence[Target]:
        """What each image shows."""

    def name(self, index: int) -> str:
        """What errors, lists and the fingerprint call an image."""

    def size(self, index: int) -> int:
        """Bytes of an image as it is stored; 0 when that cannot be told without reading it."""

    def read(self, index: int) -> Image.Image:
        """Decode one image to RGB; raises whatever its decoder raises. Several threads may do so at once."""


class FileSource:
    """Images in files below one folder."""

    def __init__(self, root: Path, paths: Sequence[str], targets: Iterable[Target], classes: list[str]):
        self.root, self.paths, self.classes = root, list(paths), classes
        self.targets: Sequence[Target] = list(targets)
        self.split_files: dict[str, dict[str, str]] = {}

    def name(self, index: int) -> str:
        return Path(self.paths[index]).relative_to(self.root).as_posix()

    def size(self, index: int) -> int:
        return Path(self.paths[index]).stat().st_size

    def stamp(self, index: int) -> str:
        return str(Path(self.paths[index]).stat().st_mtime_ns)

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

    def stamp(self, index: int) -> str:
        return str(zlib.crc32(self.images[index].tobytes()))

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index]).convert('RGB')


class PartSource:
    """Some images of another source, perhaps under other class numbers.

    Args:
        source: The other source.
        indices: Which of its images; None takes all.
        numbers: New class index of each old one; None keeps them.
        classes: Names in the order of the new indices; None keeps them.
    """

    def __init__(
        self,
        source: Source,
        indices: Sequence[int] | None = None,
        numbers: Mapping[int, int] | None = None,
        classes: list[str] | None = None,
    ):
        self.source = source
        self.indices = range(len(source.targets)) if indices is None else [int(index) for index in indices]
        targets = [source.targets[index] for index in self.indices]
        self.targets = targets if numbers is None else [renumber(target, numbers) for target in targets]
        self.classes = source.classes if classes is None else classes
        self.split_files = getattr(source, 'split_files', {})

    def name(self, index: int) -> str:
        return self.source.name(self.indices[index])

    def size(self, index: int) -> int:
        return self.source.size(self.indices[index])

    def stamp(self, index: int) -> str:
        return stamp_of(self.source, self.indices[index])

    def read(self, index: int) -> Image.Image:
        return self.source.read(self.indices[index])


def labels_of(target: Target) -> tuple[int, ...]:
    """List the classes of an image: one, or as many as it has labels."""
    return target if isinstance(target, tuple) else (target,)


def renumber(target: Target, numbers: Mapping[int, int] | Sequence[int]) -> Target:
    """Put new class indices in the place of the old ones.

    Example:
        >>> renumber(1, [5, 4]), renumber((0, 1), [5, 4])
        (4, (4, 5))
    """
    if isinstance(target, tuple):
        return tuple(sorted(numbers[label] for label in target))
    return numbers[target]


def stamp_of(source: Source, index: int) -> str:
    """Text that changes when the image does; empty for a source that has none."""
    stamp = getattr(source, 'stamp', None)
    return '' if stamp is None else stamp(index)


def fingerprint(*sources: Source) -> str:
    """Hash names, sizes and classes of all images, to tell whether a run goes on with the data it began with."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(repr(source.classes).encode())
        for index, target in enumerate(source.targets):
            digest.update(f'{source.name(index)}\t{source.size(index)}\t{target}\n'.encode())
    return digest.hexdigest()[:16]
