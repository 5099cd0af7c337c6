"""Images decoded and resized once, then read from a file that all processes and later runs share."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import sys
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from filelock import FileLock, Timeout
from PIL import Image
from timm.data.transforms import str_to_interp_mode
from torchvision.transforms.functional import resize
from tqdm import tqdm

from . import networks
from .config import Config
from .devices import cache_folder
from .files import sync
from .sources import Source, Stream, StreamedImage, Target, is_streamed, stamp_of
from .sources.splits import number_label_lists, number_targets

FORMAT = 2
PIXELS, INDEX, FACTS = 'pixels.bin', 'index.npz', 'facts.json'
# Images that each thread decodes before what they did is written.
CHUNK_PER_THREAD = 16
# What a damaged index or facts file raises when it is read.
DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


class KeptImages:
    """One finished folder of the cache: pixels of shape (N, side, side, 3) as bytes, and what is known of them.

    The pixels are mapped into memory when a process first needs them, and each image is checked against its checksum
    when a process first reads it.

    Raises:
        OSError, ValueError, KeyError, EOFError or BadZipFile: It is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        self.side = int(json.loads((path / FACTS).read_text())['side'])
        with np.load(path / INDEX, allow_pickle=False) as index:
            self.readable, self.checksums = index['readable'], index['checksums']
            self.names = index['names']
            self._labels, self._ends = index['labels'], index['label_counts'].cumsum()
        expected, found = len(self.readable) * self.image_bytes, (path / PIXELS).stat().st_size
        if found != expected:
            raise ValueError(f'{path / PIXELS} has {found} bytes and should have {expected}')
        self._pixels: np.ndarray | None = None
        self._checked: np.ndarray | None = None

    @property
    def image_bytes(self) -> int:
        return self.side * self.side * 3

    def __len__(self) -> int:
        return len(self.readable)

    def label_lists(self) -> list[list[int | str]]:
        """List the labels of each image as the stream gave them."""
        labels = self._labels.tolist()
        starts = [0, *self._ends.tolist()]
        return [labels[start:end] for start, end in itertools.pairwise(starts)]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_pixels': None, '_checked': None}

    def read(self, index: int) -> Image.Image | None:
        """Read one image; None if it could not be decoded when the cache was made, or was damaged since."""
        if self._pixels is None or self._checked is None:
            shape = (len(self), self.side, self.side, 3)
            self._pixels = np.memmap(self.path / PIXELS, np.uint8, 'r', shape=shape)
            self._checked = np.zeros(len(self), dtype=bool)
        pixels = self._pixels[index]
        if not self._checked[index]:
            if not self.readable[index] or zlib.crc32(pixels) != self.checksums[index]:
                return None
            self._checked[index] = True
        return Image.fromarray(pixels)


class CachedSource:
    """A source whose images are read from the cache, resized to the side that the network's transforms resize to.

    What the cache does not have is read from the source itself, so a broken image raises its own error, and one that
    was repaired or only for a moment out of reach is no longer broken.
    """

    def __init__(self, source: Source, kept: KeptImages, interpolation: str):
        self.source, self.kept, self.interpolation = source, kept, interpolation
        self.classes, self.targets = source.classes, source.targets
        self.split_files = getattr(source, 'split_files', {})

    def name(self, index: int) -> str:
        return self.source.name(index)

    def size(self, index: int) -> int:
        return self.source.size(index)

    def stamp(self, index: int) -> str:
        return stamp_of(self.source, index)

    def read(self, index: int) -> Image.Image:
        kept = self.kept.read(index)
        return kept if kept is not None else shrink(self.source.read(index), self.kept.side, self.interpolation)


class StreamedSource:
    """The images of a stream, all of them in the cache."""

    def __init__(self, kept: KeptImages, stream: Stream):
        self.kept = kept
        self.targets: Sequence[Target]
        lists = kept.label_lists()
        if stream.multi_label:
            self.targets, self.classes = number_label_lists(lists, stream.names, stream.what)
        else:
            self.targets, self.classes = number_targets([label for [label] in lists], stream.names, stream.what)

    def name(self, index: int) -> str:
        return str(self.kept.names[index])

    def size(self, index: int) -> int:
        return 0

    def stamp(self, index: int) -> str:
        return str(self.kept.checksums[index])

    def read(self, index: int) -> Image.Image:
        kept = self.kept.read(index)
        if kept is None:
            raise OSError(f'{self.name(index)} was unreadable in the stream, or is damaged in {self.kept.path}')
        return kept


class ImageCache:
    """A folder in which images are kept.

    Args:
        root: The folder.
        side: Pixels of both sides of a kept image.
        interpolation: How it is resized, in timm's words.
        say: Prints a line for the user.
    """

    def __init__(self, root: Path, side: int, interpolation: str, say: Callable[[str], None] = print):
        self.root, self.side, self.interpolation, self.say = root, side, interpolation, say

    def keep(self, source: Source, label: str) -> CachedSource:
        """Give a source whose images are in the cache; put them there first if they are not.

        Args:
            source: Any source.
            label: Makes the folder's name readable.

        Raises:
            ValueError: The disk has no room for them.
        """
        count = len(source.targets)
        known = (f'{source.name(i)}\t{source.size(i)}\t{stamp_of(source, i)}\n' for i in range(count))

        def images() -> Iterator[StreamedImage]:
            for index in range(count):
                yield StreamedImage('', 0, partial(source.read, index))

        return CachedSource(source, self.find_or_make(label, known, images, count), self.interpolation)

    def keep_stream(self, stream: Stream) -> StreamedSource:
        """Read a stream to its end, in its order, unless that was done before.

        Raises:
            ValueError: The disk has no room for it, or the stream has no images or fewer than two classes.
        """
        kept = self.find_or_make(stream.what, [stream.what, stream.identity], stream.images, None)
        return StreamedSource(kept, stream)

    def find_or_make(
        self, label: str, known: Iterable[str], images: Callable[[], Iterable[StreamedImage]], count: int | None
    ) -> KeptImages:
        """Open the folder of these images, after making it if there is none that is whole.

        Processes and runs that need the same folder wait for the first of them at a file's lock, which the system opens
        when its holder dies. Waiting for a collective operation instead would run into that one's time limit.

        Args:
            label: Makes the folder's name readable.
            known: What tells these images from others.
            images: Gives them, in their order.
            count: How many there are; None if that is not known before.
        """
        digest = hashlib.sha256(repr((FORMAT, self.side, self.interpolation, PIL.__version__)).encode())
        for part in known:
            digest.update(part.encode())
        readable_label = re.sub(r'[^\w.+-]+', '_', label)[-40:]
        path = self.root / f'{readable_label}-{self.side}px-{digest.hexdigest()[:16]}'
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f'the image cache cannot be in {self.root}: {error}; give another --cache-dir') from error
        with self.locked(path):
            kept = self.find(path)
            if kept is None:
                self.make(path, label, images, count)
                kept = KeptImages(path)
        self.say(f'{len(kept)} images of {label} come from the cache {path}')
        return kept

    @contextlib.contextmanager
    def locked(self, path: Path) -> Iterator[None]:
        """Hold the lock of a folder of the cache."""
        lock = FileLock(path.with_name(f'.{path.name}.lock'))
        try:
            lock.acquire(timeout=2)
        except Timeout:
            self.say(f'waiting for the process that makes {path}')
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def find(self, path: Path) -> KeptImages | None:
        """Open a folder of the cache if it is there; one that is damaged is removed."""
        if not path.exists():
            return None
        try:
            return KeptImages(path)
        except DAMAGED as error:
            self.say(f'the image cache {path} is damaged ({error}) and made anew')
            shutil.rmtree(path)
            return None

    def make(self, path: Path, label: str, images: Callable[[], Iterable[StreamedImage]], count: int | None) -> None:
        """Write a folder of the cache under a name of its own, then give it its name at one stroke.

        Raises:
            ValueError: The disk has no room.
        """
        host = re.sub(r'\W+', '_', socket.gethostname())
        for left in self.root.glob(f'.{path.name}.*.{host}.unfinished'):
            shutil.rmtree(left)  # whoever wrote it is dead, for the lock is ours
        needed = (count or 0) * self.side**2 * 3
        free = shutil.disk_usage(self.root).free
        advice = f'give another --cache-dir{"" if count is None else ", or leave out --cache-images"}'
        if needed > free:
            raise ValueError(
                f'the image cache needs {needed / 1e9:.1f} GB for {label} and {self.root} has only {free / 1e9:.1f}: '
                f'{advice}'
            )
        unfinished = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}.{host}.unfinished')
        try:
            unfinished.mkdir()
            self.write(unfinished, label, images(), count)
            with contextlib.suppress(FileExistsError):
                publish(unfinished, path)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ValueError(f'{self.root} is full, so the image cache of {label} cannot be there: {advice}') from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def write(self, folder: Path, label: str, images: Iterable[StreamedImage], count: int | None) -> None:
        """Decode, resize and write images, several at once."""
        threads = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
        blank = bytes(self.side**2 * 3)
        readable: list[bool] = []
        checksums: list[int] = []
        names: list[str] = []
        labels: list[int | str] = []
        label_counts: list[int] = []
        left = iter(images)
        with (
            open(folder / PIXELS, 'wb') as file,
            ThreadPoolExecutor(threads) as pool,
            tqdm(total=count, desc=f'caching {label}', unit='img', disable=not sys.stderr.isatty()) as bar,
        ):
            while chunk := list(islice(left, CHUNK_PER_THREAD * threads)):
                for image, pixels in zip(chunk, pool.map(self.decode, chunk), strict=True):
                    if not isinstance(image.label, (int, str, tuple)):
                        raise ValueError(
                            f'{label}: an image needs one label, or with --multi-label a list, but {image.name} has '
                            f'{image.label!r}'
                        )
                    file.write(blank if pixels is None else pixels)
                    readable.append(pixels is not None)
                    checksums.append(zlib.crc32(blank if pixels is None else pixels))
                    names.append(image.name)
                    several = image.label if isinstance(image.label, tuple) else (image.label,)
                    labels += several
                    label_counts.append(len(several))
                bar.update(len(chunk))
        if not readable:
            raise ValueError(f'{label} has no images')
        np.savez(
            folder / INDEX,
            readable=np.array(readable),
            checksums=np.array(checksums, dtype=np.uint32),
            names=np.array(names),
            labels=np.array(labels),
            label_counts=np.array(label_counts, dtype=np.int64),
        )
        facts = {'format': FORMAT, 'side': self.side, 'interpolation': self.interpolation, 'images': len(readable)}
        (folder / FACTS).write_text(json.dumps({**facts, 'of': label, 'pillow': PIL.__version__}, indent=2) + '\n')

    def decode(self, image: StreamedImage) -> bytes | None:
        """Decode and resize an image; None if that is not possible."""
        try:
            return shrink(image.decode().convert('RGB'), self.side, self.interpolation).tobytes()
        except Exception:  # decoders raise errors of every kind on broken files; the cache tells of it
            return None


def shrink(image: Image.Image, side: int, interpolation: str) -> Image.Image:
    """Resize as the network's transforms do, for which doing so once more then changes nothing."""
    return resize(image, [side, side], str_to_interp_mode(interpolation))


def publish(unfinished: Path, path: Path) -> None:
    """Give a finished folder its name, after all of it is on the disk.

    Raises:
        FileExistsError: There is one of that name: a process that could not see our lock was faster.
    """
    for file in unfinished.iterdir():
        sync(file)
    try:
        unfinished.rename(path)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise FileExistsError(path) from error
        raise
    if os.name == 'posix':
        sync(path.parent)


def open_cache(config: Config, say: Callable[[str], None] = print) -> ImageCache | None:
    """Open the image cache if this run needs it: --cache-images asks for it, and streams cannot do without.

    Raises:
        ValueError: The run crops images before it resizes them.
    """
    if not (config.cache_images or is_streamed(config.dataset)):
        return None
    if config.train_crop_mode != 'squash':
        raise ValueError(
            f'--train-crop-mode {config.train_crop_mode} crops whole images, and the image cache keeps them resized: '
            f'leave out one of them{"" if config.cache_images else " (a stream is read through the cache)"}'
        )
    expected = networks.expected_input(config)
    root = Path(config.cache_dir) if config.cache_dir else cache_folder() / 'images'
    return ImageCache(root, expected.resized_side, expected.interpolation, say)
