"""From the configuration to the training and the validation images."""

from __future__ import annotations

from typing import Any, Protocol

from timm.data import create_dataset

from ..config import DIGITS, ELPV, Config
from .demonstrations import load_digits, load_elpv
from .folders import load_folders
from .label_list import load_listed
from .named import NAMED, load_named
from .readers import wrap_dataset
from .source import Source
from .splits import carve_out, map_classes, read_class_map
from .streams import Stream, is_streamed, open_stream

# What the libraries behind data sets raise when they do not find something.
NOT_FOUND = (AssertionError, RuntimeError, ImportError, TypeError, KeyError, OSError, ValueError)


class Cache(Protocol):
    """What keeps images for later: the image cache."""

    def keep(self, source: Source, label: str) -> Source:
        """Keep a source's images."""

    def keep_stream(self, stream: Stream) -> Source:
        """Read a stream to its end, and keep its images."""


def load_sources(config: Config, cache: Cache | None = None) -> dict[str, Source]:
    """Find the training and the validation images.

    Args:
        config: Names the data.
        cache: Keeps the images of all sources if --cache-images asks for it, and those of streams in any case.

    Raises:
        ValueError: A split is missing, empty, has fewer than two classes or other classes than the other split. With
            several labels an image, the validation images need not show every class.
    """
    share = config.val_share
    if config.dataset in (DIGITS, ELPV):
        if share is not None:
            raise ValueError(f'--dataset {config.dataset} brings its validation images: leave out --val-split {share}')
        sources = load_digits() if config.dataset == DIGITS else load_elpv()
        train, val = (keep(config, source, split, cache) for split, source in sources.items())
    elif share is not None:
        train, val = carve_out(load_split(config, config.train_split, cache), share)
    else:
        train, val = (load_split(config, split, cache) for split in (config.train_split, config.val_split))
    if config.class_map is not None:
        classes = read_class_map(config.class_map)
        train, val = (map_classes(source, classes, config.class_map) for source in (train, val))
    if config.multi_label:
        val = share_classes(config, train, val)
    if train.classes != val.classes:
        only_train = sorted({*train.classes} - {*val.classes})[:5]
        only_val = sorted({*val.classes} - {*train.classes})[:5]
        raise ValueError(
            f'{config.train_split} and {config.val_split} must have the same classes, but only {config.train_split} '
            f'has {only_train} and only {config.val_split} has {only_val}'
        )
    return {'train': train, 'val': val}


def share_classes(config: Config, train: Source, val: Source) -> Source:
    """Number the validation images' labels as the training images' are, of which they may lack some.

    Raises:
        ValueError: There is nothing to tell apart, nothing to measure, or a label that no training image has.
    """
    if len(train.classes) < 2:
        raise ValueError(f'{config.train_split} has one class only or none ({train.classes}): give at least two labels')
    lacking = sorted({*val.classes} - {*train.classes})
    if lacking:
        raise ValueError(
            f'only {config.val_split} has the labels {lacking[:5]}, so they cannot be learnt: give '
            f'{config.train_split} images with them, or take them away from {config.val_split}'
        )
    if not any(val.targets):
        raise ValueError(f'no image of {config.val_split} has a label, so nothing can be measured: give some')
    return val if val.classes == train.classes else map_classes(val, train.classes, '')


def load_validation(config: Config, cache: Cache | None = None) -> Source:
    """Find the validation images alone, for which nothing else needs to be there, unless they are carved out.

    Raises:
        ValueError: They are missing, empty or of fewer than two classes.
    """
    if config.dataset in (DIGITS, ELPV) or config.val_share is not None:
        return load_sources(config, cache)['val']
    source = load_split(config, config.val_split, cache)
    if config.class_map is not None:
        return map_classes(source, read_class_map(config.class_map), config.class_map)
    return source


def keep(config: Config, source: Source, split: str, cache: Cache | None) -> Source:
    """Keep a source's images if that was asked for."""
    return cache.keep(source, split) if config.cache_images and cache is not None else source


def load_split(config: Config, split: str, cache: Cache | None) -> Source:
    """Find one split's images: in its folder, by a named data set's lists, or through a reader."""
    dataset = config.dataset or ''
    prefix, _, name = dataset.partition('/')
    prefix = prefix.lower()
    if dataset in NAMED:
        refuse_keys(config, 'input_key', 'target_key')
        return keep(config, load_named(dataset, config.data_dir, split), split, cache)
    if config.multi_label and not dataset:
        refuse_keys(config, 'input_key', 'target_key')
        return keep(config, load_listed(config.data_dir, split, config.labels), split, cache)
    if not dataset or (prefix == 'torch' and name.lower() in ('image_folder', 'folder')):
        refuse_keys(config, 'target_key')
        return keep(config, load_folders(config.data_dir, split, config.input_key), split, cache)
    if is_streamed(dataset):
        return load_stream(config, split, cache)
    if prefix not in ('torch', 'hfds'):
        raise ValueError(
            f'--dataset {dataset} is not known: it must be {DIGITS}, {ELPV}, {", ".join(NAMED)}, or torch/NAME, '
            'hfds/NAME, hfids/NAME, wds/NAME or tfds/NAME; for a folder of images leave it out and give --data-dir'
        )
    if prefix == 'torch':
        refuse_keys(config, 'input_key', 'target_key')
    what = f'--dataset {dataset}, split {split}'
    keys: dict[str, Any] = {'input_key': config.input_key, 'target_key': config.target_key}
    try:
        opened = create_dataset(dataset, root=config.data_dir, split=split, **keys)
    except NOT_FOUND as error:
        raise ValueError(f'{what}: timm cannot open it: {error}') from error
    return keep(config, wrap_dataset(opened, f'{what}, {config.data_dir}', config.multi_label), split, cache)


def load_stream(config: Config, split: str, cache: Cache | None) -> Source:
    """Read a split that can only be read in its order into the cache."""
    assert cache is not None, 'there is always a cache where there are streams'
    try:
        stream = open_stream(config, split)
    except NOT_FOUND as error:
        raise ValueError(f'--dataset {config.dataset}, split {split}: cannot open it: {error}') from error
    return cache.keep_stream(stream)


def refuse_keys(config: Config, *names: str) -> None:
    """Refuse options that nothing would read.

    Raises:
        ValueError: Names the option.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None:
            raise ValueError(f'--{name.replace("_", "-")} {value} has no meaning for these images: leave it out')
