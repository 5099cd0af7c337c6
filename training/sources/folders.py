"""Images in folders and in tar files: the folder of an image is its class."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image
from timm.data import create_dataset
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from timm.utils.misc import natural_key

from .source import FileSource


@dataclass(frozen=True)
class TarMember:
    """Where an image lies in a tar file."""

    name: str
    tar: str
    offset: int
    size: int


class TarSource:
    """Images in tar files, read in place.

    timm keeps the tar files open between reads, and so processes that are forked afterwards share one place in the
    file and read each other's bytes. Here every read opens the file for itself.
    """

    def __init__(self, members: Sequence[TarMember], targets: list[int], classes: list[str]):
        self.members, self.targets, self.classes = list(members), targets, classes

    def name(self, index: int) -> str:
        return self.members[index].name

    def size(self, index: int) -> int:
        return self.members[index].size

    def stamp(self, index: int) -> str:
        member = self.members[index]
        return f'{Path(member.tar).stat().st_mtime_ns} {member.offset}'

    def read(self, index: int) -> Image.Image:
        member = self.members[index]
        with open(member.tar, 'rb') as tar:
            tar.seek(member.offset)
            with Image.open(io.BytesIO(tar.read(member.size))) as image:
                return image.convert('RGB')


def load_folders(data_dir: str | None, split: str, extensions: str | None = None) -> FileSource | TarSource:
    """Find a split's images: in DIR/SPLIT, in tar files there, in DIR/SPLIT.tar, or in SPLIT/ of one tar file.

    Args:
        data_dir: DIR, or a tar file.
        split: Name of the folder.
        extensions: Of the image files, as in '.jpg;.png'; None takes all that Pillow reads.

    Raises:
        ValueError: The split or its images are missing.
    """
    root = Path(data_dir or '.')
    if root.is_file() and root.suffix == '.tar':
        return load_tar(root, split)
    if (root / f'{split}.tar').is_file() and not (root / split).exists():
        return load_tar(root / f'{split}.tar')
    folder = split_folder(data_dir, split)
    has_tars = any(folder.glob('*.tar'))
    return load_tar(folder) if has_tars else load_folder(folder, extensions)


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
        raise ValueError(
            f'{root} has no folder {split!r} (it has {found}): make it, or name the split by its flag; to take the '
            'validation images from the training images: --val-split 0.1, and also --train-split . if the classes lie '
            'directly in this folder'
        )
    return root / split


def load_folder(root: Path, extensions: str | None = None) -> FileSource:
    """Find the images of ROOT/CLASS/*; classes are numbered in natural order of their names.

    Raises:
        ValueError: There is no image, a class without any, or one class only.
    """
    empty = [path.name for path in sorted(root.iterdir()) if path.is_dir() and not any(path.rglob('*.*'))]
    if empty:
        raise ValueError(f'{root} has classes without images: {empty[:5]}; fill or remove their folders')
    try:
        reader = create_dataset('', root=str(root), search_split=False, input_key=extensions).reader
    except RuntimeError as error:
        raise ValueError(f'{root} has no images: {error}') from error
    names = names_in_order(reader.class_to_idx)
    classes = order_classes(names, root)
    order = [classes.index(name) for name in names]
    paths, targets = zip(*reader.samples, strict=True)
    return FileSource(root, paths, (order[target] for target in targets), classes)


def load_tar(path: Path, inside: str | None = None) -> TarSource:
    """Find the images of a tar file, or of all tar files of a folder, as timm does.

    The folder of an image is its class; images that lie directly in a tar file of a folder have that file's name.

    Args:
        path: Of the file or the folder.
        inside: Folder of the tar file to look in; '.' or None looks everywhere.

    Raises:
        ValueError: There is no image there, or one class only.
    """
    try:
        # A cache of the list beside the file might be another file's; and users' folders are theirs.
        reader = ReaderImageInTar(str(path), cache_tarinfo=False)
    except (AssertionError, ValueError, OSError, tarfile.TarError) as error:
        raise ValueError(f'{path} has no images in it, or is not a plain tar file: {error}') from error
    members, labels = [], []
    for info, parent, child in reader.samples:
        # timm takes the class of './0.png' in red.tar to be '.'.
        outer = [PurePosixPath(tar).with_suffix('') for tar in (parent, child and child.path) if tar]
        place = PurePosixPath(*outer, info.path)
        if inside not in (None, '.') and inside not in place.parts[:-2]:
            continue
        tar = os.path.join(path, parent) if parent else str(path)
        offset = info.offset_data + (child.offset_data if child is not None else 0)
        members.append(TarMember(str(place), tar, offset, info.size))
        labels.append(place.parent.name)
    if not members:
        tops = sorted({PurePosixPath(info.path).parts[0] for info, _, _ in reader.samples})[:8]
        raise ValueError(
            f'{path} has no folder {inside!r} with CLASS/*.jpg in it (it has {tops}): name the split by its flag, or '
            'take the validation images from the training images: --train-split . --val-split 0.1'
        )
    classes = order_classes({*labels}, path)
    numbers = {name: number for number, name in enumerate(classes)}
    # timm leaves the order of images of one name in several tar files to chance.
    order = sorted(range(len(members)), key=lambda index: (natural_key(members[index].name), members[index].name))
    return TarSource([members[index] for index in order], [numbers[labels[index]] for index in order], classes)


def names_in_order(class_to_idx: dict[str, int]) -> list[str]:
    """List classes by their numbers."""
    return [name for name, _ in sorted(class_to_idx.items(), key=lambda item: item[1])]


def order_classes(names: set[str] | list[str], where: Path) -> list[str]:
    """Put classes into natural order; timm does so without regard to case and leaves 'a' and 'A' to chance.

    Raises:
        ValueError: There is one only.
    """
    classes = sorted(names, key=lambda name: (natural_key(name), name))
    if len(classes) < 2:
        raise ValueError(f'{where} has one class only ({classes[0]!r}): give at least two folders CLASS/*.jpg')
    return classes
