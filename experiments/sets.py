"""Sets of images to measure growths on, made of what comes with packages; every one is the same each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from training.sources.demonstrations import load_digits, load_elpv
from training.sources.source import labels_of

Example = tuple[str, str, Image.Image]
"""Split, class and image."""

# Patches are cut from the left part of a photograph to train on and from the right part to measure on.
PHOTOGRAPHS = ('astronaut', 'camera', 'chelsea', 'coffee', 'rocket', 'china', 'flower')
MATERIALS = ('brick', 'grass', 'gravel', 'hubble_deep_field', 'immunohistochemistry', 'moon', 'coins', 'page', 'text')
PATCHES = {'train': 60, 'val': 50}
PATCH_SIDE = 96
SCENE_SIDE = 64


def make_set(name: str, folder: Path) -> Path:
    """Write a set as folders of images, unless it is there.

    Args:
        name: One of `SETS`.
        folder: Takes it.

    Returns:
        The folder with train/ and val/ in it.
    """
    root = folder / name
    if root.exists():
        return root
    unfinished = folder / f'.{name}'
    for number, (split, label, image) in enumerate(SETS[name]()):
        place = unfinished / split / label
        place.mkdir(parents=True, exist_ok=True)
        image.convert('RGB').save(place / f'{number:05}.png', compress_level=1)
    unfinished.rename(root)
    return root


def patches(names: tuple[str, ...], is_grey: bool, seed: int) -> Iterator[Example]:
    """Cut patches of photographs, of many sizes, turned, blurred, darker or lighter; which photograph is the class."""
    random = np.random.default_rng(seed)
    for name in names:
        photograph = read_photograph(name)
        if photograph.width < photograph.height:
            photograph = photograph.rotate(90, expand=True)
        for split, count in PATCHES.items():
            part = (0, 0.48) if split == 'train' else (0.52, 1)
            left, right = (int(share * photograph.width) for share in part)
            for _ in range(count):
                yield split, name, disturb(cut(photograph, left, right, random), is_grey, random)


def read_photograph(name: str) -> Image.Image:
    """Read one that comes with scikit-image or scikit-learn."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    pixels = load_sample_image(f'{name}.jpg') if name in ('china', 'flower') else getattr(skimage.data, name)()
    return Image.fromarray(np.asarray(pixels)).convert('RGB')


def cut(photograph: Image.Image, left: int, right: int, random: np.random.Generator) -> Image.Image:
    """Cut a square between two columns, a quarter to half as high as the photograph."""
    side = int(min(random.uniform(0.23, 0.55) * min(photograph.height, right - left), right - left))
    x = int(random.integers(left, right - side + 1))
    y = int(random.integers(0, photograph.height - side + 1))
    square = photograph.crop((x, y, x + side, y + side)).resize((PATCH_SIDE, PATCH_SIDE), Image.Resampling.BICUBIC)
    return square.rotate(90 * int(random.integers(4)))


def disturb(image: Image.Image, is_grey: bool, random: np.random.Generator) -> Image.Image:
    """Take away what would tell photographs apart too easily: colour, sharpness, brightness, contrast."""
    if is_grey or random.random() < 0.5:
        image = ImageOps.grayscale(image)
    if random.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(float(random.uniform(0.3, 1.5))))
    image = ImageEnhance.Brightness(image).enhance(float(random.uniform(0.5, 1.5)))
    return ImageEnhance.Contrast(image).enhance(float(random.uniform(0.5, 1.4)))


def cells() -> Iterator[Example]:
    """Solar cells in four classes: mono- or polycrystalline, defective or not."""
    mono = monocrystalline()
    for split, source in load_elpv().items():
        for index, target in enumerate(source.targets):
            kind = 'mono' if source.name(index) in mono else 'poly'
            [label] = labels_of(target)
            yield split, f'{kind}-{source.classes[label]}', source.read(index)


def monocrystalline() -> frozenset[str]:
    """Names of the photographs of monocrystalline cells."""
    import elpv_dataset

    table = Path(elpv_dataset.__file__).parent / 'data' / 'labels.csv'
    rows = [line.split() for line in table.read_text().splitlines() if line.strip()]
    return frozenset(path for path, _, kind in rows if kind == 'mono')


def small_digits() -> Iterator[Example]:
    """The 1,797 digits of scikit-learn, 8 pixels a side: the first thousand to train on, other writers' to measure."""
    from sklearn.datasets import load_digits as load_small_digits

    bunch = load_small_digits()
    for index, (pixels, label) in enumerate(zip(bunch.images, bunch.target, strict=True)):
        image = Image.fromarray((pixels * 15.9).astype(np.uint8))
        side = (SCENE_SIDE, SCENE_SIDE)
        yield 'train' if index < 1000 else 'val', str(label), image.resize(side, Image.Resampling.BICUBIC)


def scenes() -> Iterator[Example]:
    """Handwritten digits in any colour, turned and shifted, on patches of photographs."""
    random = np.random.default_rng(7)
    photographs = [read_photograph(name) for name in (*PHOTOGRAPHS, 'brick', 'grass', 'gravel')]
    for split, source in load_digits().items():
        for index, target in enumerate(source.targets):
            background = cut(photographs[int(random.integers(len(photographs)))], 0, 400, random)
            side = int(random.integers(40, 60))
            digit = source.read(index).convert('L').resize((side, side), Image.Resampling.BICUBIC)
            mask = Image.new('L', (SCENE_SIDE, SCENE_SIDE))
            place = (int(random.integers(SCENE_SIDE - side + 1)), int(random.integers(SCENE_SIDE - side + 1)))
            mask.paste(digit.rotate(float(random.uniform(-40, 40)), Image.Resampling.BICUBIC), place)
            colour = tuple(int(value) for value in random.integers(0, 256, 3))
            ink = Image.new('RGB', mask.size, colour)
            [label] = labels_of(target)
            yield split, source.classes[label], Image.composite(ink, background.resize(mask.size), mask)


SETS: dict[str, Callable[[], Iterator[Example]]] = {
    'photographs': lambda: patches(PHOTOGRAPHS, is_grey=False, seed=1),
    'materials': lambda: patches(MATERIALS, is_grey=True, seed=2),
    'cells': cells,
    'small-digits': small_digits,
    'scenes': scenes,
}
"""What each name makes."""

SIZES = {
    'photographs': (len(PHOTOGRAPHS), len(PHOTOGRAPHS) * PATCHES['val']),
    'materials': (len(MATERIALS), len(MATERIALS) * PATCHES['val']),
    'cells': (4, 525),
    'small-digits': (10, 797),
    'scenes': (10, 1000),
}
"""Classes and validation images of each, known before it is made."""
