"""Which images go where: validation images carved out, fewer labels, the numbers of the classes."""

from __future__ import annotations

import hashlib
import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from timm.data.readers.class_map import load_class_map
from timm.utils.misc import natural_key

from .source import PartSource, Source, labels_of


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


def carve_out(source: Source, share: float) -> tuple[PartSource, PartSource]:
    """Take validation images out of the training images: this part of each class, at least one of each.

    An image's name alone decides its turn, so the split depends neither on the run's seed nor on the order of the
    images, and hardly changes when images are added. An image of several labels stands with those that share its
    rarest; one that stands alone is trained on, and so is the last image of a label that had no other left.

    Returns:
        Training and validation images.

    Raises:
        ValueError: A class has one image only, which cannot be in both; with several labels an image, no image at all
            could be spared.
    """
    turns = [hashlib.sha256(source.name(index).encode()).digest() for index in range(len(source.targets))]
    strata = np.array(rarest_labels(source))
    is_val = np.zeros(len(strata), dtype=bool)
    for label in np.unique(strata).tolist():
        members = sorted(np.flatnonzero(strata == label).tolist(), key=lambda index: turns[index])
        if len(members) == 1 and isinstance(source.targets[members[0]], int):
            name = source.classes[label]
            raise ValueError(f'--val-split {share}: class {name!r} has one image only: give it more, or leave it out')
        is_val[members[: min(max(1, round(share * len(members))), len(members) - 1)]] = True
    shown_val, shown_train = (
        {label for index in np.flatnonzero(part).tolist() for label in labels_of(source.targets[index])}
        for part in (is_val, ~is_val)
    )
    for label in sorted(shown_val - shown_train):
        having = [index for index, target in enumerate(source.targets) if label in labels_of(target)]
        if is_val[having].all():
            is_val[max(having, key=lambda index: turns[index])] = False
    if not is_val.any():
        raise ValueError(f'--val-split {share}: no two images share their rarest label: give a validation split')
    return PartSource(source, np.flatnonzero(~is_val).tolist()), PartSource(source, np.flatnonzero(is_val).tolist())


def rarest_labels(source: Source) -> list[int]:
    """Find the label of each image that the fewest images have: its class, where it has one; -1 where it has none."""
    counts = Counter(label for target in source.targets for label in labels_of(target))
    return [min(labels_of(target), key=lambda label: (counts[label], label), default=-1) for target in source.targets]


def choose_per_class(source: Source, count: int | None, seed: int) -> np.ndarray:
    """Choose the images to train on.

    Args:
        source: The training images.
        count: How many of each class; None chooses all.
        seed: Chooses which; the same for every count, so that fewer are a part of more.

    Raises:
        ValueError: A class has fewer.
    """
    if count is None:
        return np.arange(len(source.targets))
    classes = shuffled_classes(source, seed)
    for name, members in zip(source.classes, classes, strict=True):
        if len(members) < count:
            raise ValueError(f'--labels-per-class {count}: class {name!r} has only {len(members)} training images')
    return np.sort(np.concatenate([members[:count] for members in classes]))


def choose_share(source: Source, share: float, seed: int) -> np.ndarray:
    """Choose a part of the images of each class to train on, at least one of each that has any.

    Args:
        source: The training images.
        share: Above 0, at most 1.
        seed: Chooses which; the same for every share, so that less is a part of more.
    """
    classes = shuffled_classes(source, seed)
    return np.sort(np.concatenate([members[: max(1, round(share * len(members)))] for members in classes]))


def shuffled_classes(source: Source, seed: int) -> list[np.ndarray]:
    """List the images of each class in the order in which they are chosen."""
    targets = np.asarray(source.targets)
    return [
        np.random.default_rng((seed, label)).permutation(np.flatnonzero(targets == label))
        for label in range(len(source.classes))
    ]


def number_targets(labels: list, names: list[str] | None, what: str) -> tuple[list[int], list[str]]:
    """Number the classes of a data set's labels.

    Args:
        labels: Of each image, a number or a name.
        names: Of the classes, where the data set tells them; labels are then indices into it.
        what: The data set, for errors.

    Returns:
        Class index of each image, and the classes' names. Without names these are the labels that occur, in natural
        order.

    Raises:
        ValueError: There are fewer than two classes, a label that is none of them, or several labels an image.
    """
    several = next((label for label in labels if isinstance(label, (list, tuple, dict))), None)
    if several is not None:
        raise ValueError(f'{what} has not one label an image but {several!r}: give --multi-label, or another column')
    targets, classes = number_labels(labels, names, what)
    if len(classes) < 2:
        raise ValueError(f'{what} has {len(classes)} classes: at least two are needed')
    return targets, classes


def label_list(label: object, what: str) -> tuple[int | str, ...]:
    """Take what a data set tells of an image for a list of labels.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(label, (list, tuple)) or not all(isinstance(one, (int, str)) for one in label):
        raise ValueError(
            f'{what} has no list of labels an image, of numbers or names, but {label!r}: leave out --multi-label, or '
            'give another column'
        )
    return tuple(label)


def number_label_lists(
    labels: Sequence[object], names: list[str] | None, what: str
) -> tuple[list[tuple[int, ...]], list[str]]:
    """Number the classes of a data set with several labels an image.

    Args:
        labels: Of each image, a list of numbers or names, which may be empty or name one twice.
        names: As for `number_targets`.
        what: The data set, for errors.

    Returns:
        Class indices of each image, rising, and the classes' names. A split need not have images of every class.

    Raises:
        ValueError: An image has no list, a label is no class, or the lists seem to tell yes or no for every class.
    """
    lists = [label_list(label, what) for label in labels]
    flat = [label for several in lists for label in several]
    lengths = {len(several) for several in lists}
    if len(lengths) == 1 and min(lengths) > 2 and {*flat} <= {0, 1}:
        raise ValueError(
            f'{what} seems to tell 0 or 1 for every class, as in {list(lists[0])}: it must list the numbers or names '
            'of those that an image shows'
        )
    numbers, classes = number_labels(flat, names, what)
    left = iter(numbers)
    return [tuple(sorted({next(left) for _ in several})) for several in lists], classes


def number_labels(labels: list, names: list[str] | None, what: str) -> tuple[list[int], list[str]]:
    """Number labels as `number_targets` does, however many classes there are."""
    if names is None:
        found = sorted({str(label) for label in labels}, key=lambda name: (natural_key(name), name))
        numbers = {name: number for number, name in enumerate(found)}
        targets, classes = [numbers[str(label)] for label in labels], found
    else:
        targets, classes = [int(label) for label in labels], [str(name) for name in names]
    wrong = sorted({target for target in targets if not 0 <= target < len(classes)})
    if wrong:
        raise ValueError(f'{what} has labels {wrong[:5]}, but its classes are numbered 0 to {len(classes) - 1}')
    return targets, classes


def read_class_map(path: str) -> list[str]:
    """Read the classes in the order of their numbers, from a file in one of timm's two formats.

    Raises:
        ValueError: The file is missing, of another kind, or does not number classes from 0, each once.
    """
    if not Path(path).is_file() or Path(path).suffix.lower() not in ('.txt', '.pkl'):
        raise ValueError(f'--class-map {path} must be a file: .txt with a class a line, or .pkl with a dictionary')
    try:
        numbers = load_class_map(path)  # timm opens the pickle without letting it run code
    except (pickle.UnpicklingError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f'--class-map {path} cannot be read: {error}') from error
    if '' in numbers or sorted(numbers.values()) != list(range(len(numbers))) or len(numbers) < 2:
        raise ValueError(f'--class-map {path} must number its classes 0, 1, 2, ..., each once and without empty lines')
    return [str(name) for name, _ in sorted(numbers.items(), key=lambda item: item[1])]


def map_classes(source: Source, classes: list[str], path: str) -> PartSource:
    """Number the classes of a source as a class map does.

    Args:
        source: Its classes are told by their names.
        classes: In the order of their new numbers; some may have no image.
        path: The map's, for errors.

    Raises:
        ValueError: A class that has images is not in the map; timm would drop those images without a word.
    """
    places = {name: number for number, name in enumerate(classes)}
    shown = {label for target in source.targets for label in labels_of(target)}
    unknown = sorted({source.classes[label] for label in shown} - places.keys())
    if unknown:
        raise ValueError(
            f'--class-map {path} lacks {len(unknown)} of the classes that have images, such as {unknown[:5]}: add them '
            'to it, or take their images away'
        )
    numbers = {old: places[name] for old, name in enumerate(source.classes) if name in places}
    return PartSource(source, numbers=numbers, classes=classes)
