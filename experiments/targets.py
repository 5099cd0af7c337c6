"""The tasks of a table: which images, and how many labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config import DIGITS, ELPV, Config
from training.image_cache import open_cache
from training.sources import load_sources
from training.sources.named import NAMED

from .sets import SETS, SIZES

# Labels of each class in the small tables, about a hundred in all. A mirrored digit is no digit.
SMALL_LABELS = {'small-digits': 10, 'photographs': 15, 'materials': 10, 'cells': 25, 'scenes': 10}


@dataclass(frozen=True)
class Target:
    """A task to learn."""

    name: str
    """As tables show it: a named data set, or the name of a folder."""
    options: Mapping[str, Any]
    """Of train.py, by field of its `Config`: which images."""
    classes: int
    train_images: int
    val_images: int


def small_target(name: str, sets: Path) -> Target:
    """Describe a task of the small tables; its images need not be there yet.

    Args:
        name: One of `SMALL_LABELS`.
        sets: Folder of the sets that are made of packages' images.

    Raises:
        ValueError: There is no such set.
    """
    if name not in SMALL_LABELS:
        raise ValueError(f'{name} is no set of the small tables: they have {", ".join(SMALL_LABELS)}')
    classes, val_images = SIZES[name]
    labels = SMALL_LABELS[name]
    options: dict[str, Any] = {'data_dir': str(sets / name), 'labels_per_class': labels}
    if 'digits' in name or name == 'scenes':
        options['hflip'] = 0.0
    return Target(name, options, classes, labels * classes, val_images)


def read_target(text: str) -> Target:
    """Find a task that is given on the command line, and count its images.

    Args:
        text: A folder of images, a data set that train.py knows without a folder, or DATASET=FOLDER.

    Raises:
        ValueError: There are no such images, in train.py's words.
    """
    dataset, equals, folder = text.rpartition('=')
    options: dict[str, Any] = {'data_dir': folder}
    if equals:
        options['dataset'] = dataset
    elif text in (DIGITS, ELPV) or ('/' in text and not Path(text).exists()):
        options = {'dataset': text}
    elif text in NAMED and not Path(text).is_dir():
        raise ValueError(f'{text} needs the folder where its archives were unpacked: give {text}=FOLDER')
    elif text in SETS and not Path(text).is_dir():
        raise ValueError(f'{text} is a set of the small tables: give --small, or a folder')
    config = Config(**options).resolved()
    sources = load_sources(config, open_cache(config))
    train, val = sources['train'], sources['val']
    name = (dataset or options.get('dataset') or Path(folder).resolve().name).rpartition('/')[2].lower()
    return Target(name, options, len(train.classes), len(train.targets), len(val.targets))
