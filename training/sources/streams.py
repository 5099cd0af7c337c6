"""Data sets that can only be read from their beginning to their end: hfids/NAME, wds/NAME, tfds/NAME.

They are read once, in their order, into the image cache; from there they are sources like any other. The readers get
no part of a stream each, as they do in timm, so nothing depends on how many processes or workers there are.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from timm.data import create_dataset
from timm.data.readers._hfds import get_class_labels
from timm.data.readers.targets import get_field

from ..config import Config
from .demonstrations import require
from .folders import names_in_order
from .source import Source
from .splits import label_list

STREAMED = ('hfids', 'wds', 'tfds')


@dataclass(frozen=True)
class StreamedImage:
    """One image of a stream."""

    name: str
    label: int | str | tuple[int | str, ...]
    """One, or a tuple of any number where images have several."""
    decode: Callable[[], Image.Image]
    """Raises whatever its decoder raises."""


@dataclass(frozen=True)
class Stream:
    """One split that can only be read in its order."""

    what: str
    """Names it in messages."""
    identity: str
    """Text that changes when the data does."""
    names: list[str] | None
    """Of the classes in the order of the labels' numbers, where the data set tells them."""
    images: Callable[[], Iterator[StreamedImage]]
    multi_label: bool = False
    """Whether an image has any number of labels."""


class StreamKeeper(Protocol):
    """What turns a stream into a source: the image cache."""

    def keep_stream(self, stream: Stream) -> Source:
        """Read a stream to its end, unless that was done before."""


def is_streamed(dataset: str | None) -> bool:
    """Tell whether --dataset names a stream."""
    return dataset is not None and dataset.partition('/')[0].lower() in STREAMED


def open_stream(config: Config, split: str) -> Stream:
    """Open a split of --dataset hfids/NAME, wds/NAME or tfds/NAME, without reading an image of it.

    Raises:
        ValueError: The package that reads it is not installed.
    """
    assert config.dataset is not None
    kind, _, name = config.dataset.partition('/')
    opener = {'hfids': open_hfids, 'wds': open_wds, 'tfds': open_tfds}[kind.lower()]
    return opener(config, name, split)


def open_hfids(config: Config, name: str, split: str) -> Stream:
    """Open a Hugging Face data set to be streamed; --data-dir is its cache, as in timm."""
    require('datasets', f'hfids/{name}')
    import datasets

    what = f'hfids/{name}, split {split}'
    builder = datasets.load_dataset_builder(name, cache_dir=config.data_dir)
    # Read here and not by timm's reader, which stops at the first image that cannot be decoded.
    key, target_key = config.input_key or 'image', config.target_key or 'label'
    stream = builder.as_streaming_dataset(split=split)
    features = stream.features or {}
    for column in (key, target_key):
        if features and column.partition('/')[0] not in features:
            raise ValueError(f'it has no column {column!r} but {sorted(features)}: give --input-key and --target-key')
    stream = stream.cast_column(key, datasets.Image(decode=False))
    decoder = datasets.Image()

    def images() -> Iterator[StreamedImage]:
        for number, row in enumerate(stream):
            encoded = row[key]
            path = Path(encoded.get('path') or f'image {number}')
            label = get_field(row, target_key)
            if config.multi_label:
                label = label_list(label, what)
            yield StreamedImage('/'.join(path.parts[-2:]), label, partial(decoder.decode_example, encoded))

    names = list(get_class_labels(stream, target_key)) or None
    identity = f'{builder.hash} {split}{" multi-label" if config.multi_label else ""}'
    return Stream(what, identity, names, images, config.multi_label)


def open_wds(config: Config, name: str, split: str) -> Stream:
    """Open the shards of a webdataset below --data-dir; timm finds them, by _info.json or by a pattern as the split."""
    require('webdataset', f'wds/{name}')
    import webdataset

    reader: Any = create_dataset(f'wds/{name}', root=config.data_dir or '.', split=split).reader
    key, target_key = config.input_key or 'jpg;png;webp', config.target_key or reader.split_info.alt_label
    shards = [os.path.join(reader.root, file) for file in reader.split_info.filenames]

    def images() -> Iterator[StreamedImage]:
        # timm's reader leaves out images that it cannot decode.
        for sample in webdataset.DataPipeline(webdataset.SimpleShardList(shards), webdataset.tarfile_to_samples()):
            encoded = next((sample[kind] for kind in key.split(';') if kind in sample), b'')
            label = get_field(json.loads(sample['json']), target_key) if target_key else int(sample['cls'])
            if isinstance(label, int) and label < 0:
                continue  # timm takes a negative label for none
            yield StreamedImage(sample['__key__'], label, partial(Image.open, io.BytesIO(encoded)))

    files = [Path(shard).stat() if Path(shard).is_file() else None for shard in shards]
    stamps = [(shard, file and (file.st_size, file.st_mtime_ns)) for shard, file in zip(shards, files, strict=True)]
    return Stream(f'wds/{name}, split {split}', f'{stamps}', None, images)


def open_tfds(config: Config, name: str, split: str) -> Stream:
    """Open a data set of tensorflow_datasets that lies prepared in --data-dir."""
    require('tensorflow-datasets', f'tfds/{name}', module='tensorflow_datasets')
    keys: dict[str, Any] = {'input_key': config.input_key, 'target_key': config.target_key}
    reader: Any = create_dataset(f'tfds/{name}', root=config.data_dir, split=split, **keys).reader
    # One process reads all of it, however many there are.
    reader.dist_rank, reader.dist_num_replicas = 0, 1

    def images() -> Iterator[StreamedImage]:
        for number, (image, label) in enumerate(reader):
            yield StreamedImage(f'image {number}', label.item(), image.copy)

    identity = f'{reader.builder.info.full_name} {os.path.abspath(reader.builder.data_dir)} {split}'
    names = names_in_order(reader.class_to_idx) or None
    return Stream(f'tfds/{name}, split {split}', identity, names, images)
