"""The data sets of Growing a Brain (2017) by name, each from its unpacked official archive and its own split files.

Nothing is downloaded: most of these archives ask for consent to their terms, and some official links are dead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torchvision.datasets import Flowers102

from .demonstrations import require
from .source import FileSource, Source


@dataclass(frozen=True)
class Listing:
    """What the split files of a data set say of one split."""

    root: Path
    """Folder below which the images lie."""
    images: list[tuple[str, int]]
    """Path below the root, and class index."""
    classes: list[str]
    files: list[Path]
    """The split files that this was read from."""


@dataclass(frozen=True)
class NamedSet:
    """An official data set: where it is found, what its splits are and how they are read."""

    title: str
    read: Callable[[Path, str], Listing]
    """Reads one split below a folder."""
    splits: dict[str, int]
    """Names of its official splits, and how many images each has."""
    layout: str
    """What an unpacked archive has in it."""
    source: str
    """Where to get it."""
    md5: dict[str, str] = field(default_factory=dict)
    """Checksums of split files, where they are known."""


def load_named(dataset: str, data_dir: str | None, split: str) -> FileSource:
    """Load a split of a data set of the paper.

    Args:
        dataset: One of `NAMED`.
        data_dir: Where its archives were unpacked.
        split: An official name, several joined by '+', or val, which is the test images where a set has no other.

    Raises:
        ValueError: A file is missing, differs from the official one, or lists images that are not there.
    """
    named = NAMED[dataset]
    if data_dir is None:
        raise ValueError(f'--dataset {dataset} needs --data-dir: the folder with {named.layout}. {named.source}')
    names = ['test' if name == 'val' and 'val' not in named.splits else name for name in split.split('+')]
    unknown = [name for name in names if name not in named.splits]
    if unknown or len({*names}) < len(names):
        raise ValueError(f'{named.title} has the splits {", ".join(named.splits)}, which + joins, and not {split}')
    listings = []
    for name in names:
        try:
            listing = named.read(Path(data_dir), name)
        except (OSError, KeyError, IndexError) as error:
            raise ValueError(
                f'--dataset {dataset}: --data-dir {data_dir} is not {named.title}: {error}. It must have in it '
                f'{named.layout}. {named.source}'
            ) from error
        if len(listing.images) != named.splits[name]:
            raise ValueError(
                f'{named.title}, {name}: the split files list {len(listing.images)} images and the official ones '
                f'{named.splits[name]}: get them anew. {named.source}'
            )
        listings.append(listing)
    return make_source(named, listings)


def make_source(named: NamedSet, listings: list[Listing]) -> FileSource:
    """Put together what was listed, after a look at whether all of it is there.

    Raises:
        ValueError: An image is missing, or a split file differs from the official one.
    """
    root, classes = listings[0].root, listings[0].classes
    images = [image for listing in listings for image in listing.images]
    missing = [path for path, _ in images if not (root / path).is_file()]
    if missing:
        raise ValueError(
            f'{named.title}: {len(missing)} of {len(images)} images are not in {root}, such as {missing[:3]}: unpack '
            f'its archive again. {named.source}'
        )
    source = FileSource(root, [str(root / path) for path, _ in images], [label for _, label in images], classes)
    for path in sorted({path for listing in listings for path in listing.files}):
        found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        known = named.md5.get(path.name)
        if known not in (None, found):
            raise ValueError(
                f'{path} is not the official file of {named.title}: its md5 is {found} and should be {known}: get it '
                f'anew. {named.source}'
            )
        source.split_files[path.name] = {'md5': found, 'compared': 'as published' if known else 'none is published'}
    return source


def describe_split_files(*sources: Source) -> str:
    """Say which official lists the images come from; nothing if they come from none."""
    files = {file: facts for source in sources for file, facts in getattr(source, 'split_files', {}).items()}
    told = [f'{file} (md5 {facts["md5"]}, {facts["compared"]})' for file, facts in sorted(files.items())]
    return f'; split files: {", ".join(told)}' if told else ''


def find(name: str, *folders: Path) -> Path:
    """Find a file or folder.

    Raises:
        FileNotFoundError: It is in none of the folders.
    """
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f'no {name} in {", ".join(str(folder) for folder in folders)}')


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file that say something."""
    return [line.strip() for line in path.read_text(encoding='utf-8-sig').splitlines() if line.strip()]


def read_sun397(root: Path, split: str) -> Listing:
    """Read a split such as train_01; train and test are the first of the ten official partitions."""
    kind, _, number = split.partition('_')
    file = f'{"Training" if kind == "train" else "Testing"}_{number or "01"}.txt'
    images = find('SUN397', root, root.parent) if root.name != 'SUN397' else root
    lists = find(file, root, root / 'Partitions', images, images / 'Partitions', images.parent / 'Partitions')
    names = find('ClassName.txt', images, lists.parent)
    folders = read_lines(names)  # as in /a/abbey
    numbers = {folder: index for index, folder in enumerate(folders)}
    rows = [(line.lstrip('/'), numbers[line.rpartition('/')[0]]) for line in read_lines(lists)]
    return Listing(images, rows, [folder[3:] for folder in folders], [names, lists])


def read_mit67(root: Path, split: str) -> Listing:
    """Read the list of training or test images; some of their names have spaces in them."""
    places = (root, root / 'indoorCVPR_09', root.parent)
    lists = {kind: find(f'{kind.title()}Images.txt', *places) for kind in ('train', 'test')}
    classes = sorted({line.partition('/')[0] for line in read_lines(lists['train'])})
    numbers = {name: index for index, name in enumerate(classes)}
    rows = [(line, numbers[line.partition('/')[0]]) for line in read_lines(lists[split])]
    return Listing(find('Images', *places), rows, classes, [lists['train'], lists[split]])


def read_flowers102(root: Path, split: str) -> Listing:
    """Read the split and the labels from MATLAB's files; the names of the classes are torchvision's."""
    require('scipy', 'flowers102')
    from scipy.io import loadmat

    places = (root, root / 'flowers-102')
    images, sets, labels = (find(name, *places) for name in ('jpg', 'setid.mat', 'imagelabels.mat'))
    ids = loadmat(sets, squeeze_me=True)[{'train': 'trnid', 'val': 'valid', 'test': 'tstid'}[split]]
    classes = loadmat(labels, squeeze_me=True)['labels']
    rows = [(f'image_{number:05d}.jpg', int(classes[number - 1]) - 1) for number in ids.tolist()]
    return Listing(images, rows, list(Flowers102.classes), [sets, labels])


def read_cub200(root: Path, split: str) -> Listing:
    """Read the split and the classes from the lists of the archive, which are tables by number of image or class."""
    places = (root, root / 'CUB_200_2011')
    files = [
        find(name, *places) for name in ('images.txt', 'image_class_labels.txt', 'train_test_split.txt', 'classes.txt')
    ]
    paths, labels, is_training, names = (dict(line.split(maxsplit=1) for line in read_lines(file)) for file in files)
    numbers = {number: index for index, number in enumerate(names)}
    wanted = {'train': '1', 'test': '0'}[split]
    rows = [(path, numbers[labels[image]]) for image, path in paths.items() if is_training[image] == wanted]
    return Listing(find('images', *places), rows, list(names.values()), files)


def read_stanford40(root: Path, split: str) -> Listing:
    """Read the list of training or test images, whose names begin with their class."""
    places = (root, root / 'Stanford40')
    folder = find('ImageSplits', *places)
    lists = {kind: find(f'{kind}.txt', folder) for kind in ('train', 'test')}
    classes = sorted({line.rpartition('_')[0] for line in read_lines(lists['train'])})
    numbers = {name: index for index, name in enumerate(classes)}
    rows = [(line, numbers[line.rpartition('_')[0]]) for line in read_lines(lists[split])]
    return Listing(find('JPEGImages', *places), rows, classes, [lists['train'], lists[split]])


# The checksums of Flowers-102 are torchvision's. Those of MIT-67 were found alike in three places independent of each
# other. For the split files of the others none is known.
NAMED = {
    'sun397': NamedSet(
        'SUN-397',
        read_sun397,
        {
            **{'train': 19850, 'test': 19850},
            **{f'{kind}_{number:02d}': 19850 for number in range(1, 11) for kind in ('train', 'test')},
        },
        'SUN397/ClassName.txt, SUN397/a/abbey/*.jpg and so on, and Training_01.txt and Testing_01.txt',
        'Images and Partitions.zip: https://vision.princeton.edu/projects/2010/SUN/ (torchvision fetches SUN397.tar.gz '
        'from a link that is dead; the md5 of that archive is 8ca2778205c41d23104230ba66911c7a)',
    ),
    'mit67': NamedSet(
        'MIT-67',
        read_mit67,
        {'train': 5360, 'test': 1340},
        'Images/airport_inside/*.jpg and so on, TrainImages.txt and TestImages.txt',
        'indoorCVPR_09.tar and the two lists: https://web.mit.edu/torralba/www/indoor.html',
        {'TrainImages.txt': 'fd987513d0f623c424252770fac3f354', 'TestImages.txt': 'f00bef137f39d51e4894303a7bf4c2d4'},
    ),
    'flowers102': NamedSet(
        'Oxford Flowers-102',
        read_flowers102,
        {'train': 1020, 'val': 1020, 'test': 6149},
        'jpg/image_00001.jpg and so on, setid.mat and imagelabels.mat',
        '102flowers.tgz and the two files: https://www.robots.ox.ac.uk/~vgg/data/flowers/102/',
        {'setid.mat': 'a5357ecc9cb78c4bef273ce3793fc85c', 'imagelabels.mat': 'e0620be6f572b9609742df49c70aed4d'},
    ),
    'cub200': NamedSet(
        'CUB-200-2011',
        read_cub200,
        {'train': 5994, 'test': 5794},
        'CUB_200_2011/images/001.Black_footed_Albatross/*.jpg and so on, and in the same folder images.txt, '
        'classes.txt, image_class_labels.txt and train_test_split.txt',
        'CUB_200_2011.tgz: https://data.caltech.edu/records/65de6-vp158 (its md5 is 97eceeb196236b17998738112f37df78)',
    ),
    'stanford40': NamedSet(
        'Stanford-40',
        read_stanford40,
        {'train': 4000, 'test': 5532},
        'JPEGImages/applauding_001.jpg and so on, ImageSplits/train.txt and ImageSplits/test.txt',
        'Stanford40_JPEGImages.zip and Stanford40_ImageSplits.zip: http://vision.stanford.edu/Datasets/40actions.html',
    ),
}
