"""Which files a published folder holds, and whether they are the ones whose checksums it states."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path

from training.files import sha256

from .layout import CARD, CONFIG, FILES, MAX_BYTES, WEIGHTS
from .strict_json import shown

__all__ = ['check_checksums', 'find_files']

ATTRIBUTES = '.gitattributes'  # git's own, which the Hub adds
MAX_WEIGHTS_BYTES = 10**12
_WITHOUT_CHECKSUM = (CONFIG, CARD, ATTRIBUTES)  # people edit cards
_PICKLES = ('.bin', '.pt', '.pth', '.tar', '.pkl', '.pickle', '.ckpt', '.joblib')
_PNG = b'\x89PNG\r\n\x1a\n'


def find_files(folder: Path, in_cache: bool, problems: list[str]) -> set[str]:
    """Look through a folder without opening anything but pictures.

    Args:
        folder: The folder.
        in_cache: Whether its files may be links to the blobs of the same repository in the Hub's cache.
        problems: Whatever is wrong is added here.

    Returns:
        The files that may be read.
    """
    if not folder.is_dir():
        problems.append('is no folder: give one with config.json and model.safetensors')
        return set()
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in islice(entries, 1000))
    found = set()
    for name in names:
        problem = _check_file(folder, name, in_cache)
        if problem:
            problems.append(problem)
        else:
            found.add(name)
    problems += [f'{name} is missing' for name in (CONFIG, WEIGHTS) if name not in names]
    return found


def _check_file(folder: Path, name: str, in_cache: bool) -> str | None:
    """Say what is wrong with a file."""
    path = folder / name
    if name not in (*FILES, ATTRIBUTES):
        if name.lower().endswith(_PICKLES):
            return f'{shown(name)} is a pickle, which can run code when it is opened: remove it'
        return f'{shown(name)} does not belong here; a published folder holds {", ".join(FILES)}'
    if path.is_symlink():
        if not in_cache:
            return f'{name} is a link: put the file itself there'
        if not _is_blob(path):
            return f'{name} is a link that leads out of the blobs of its repository in the cache'
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        return f'{name} is no file'
    limit = MAX_WEIGHTS_BYTES if name == WEIGHTS else MAX_BYTES
    if not 0 < status.st_size <= limit:
        return f'{name} has 1 to {limit:,} bytes; found {status.st_size:,}'
    if not os.access(path, os.R_OK):
        return f'{name} cannot be read: permission denied'
    if name.endswith('.png'):
        with open(path, 'rb') as file:
            if file.read(len(_PNG)) != _PNG:
                return f'{name} is no picture in PNG format'
    return None


def _is_blob(path: Path) -> bool:
    """Whether a link of snapshots/COMMIT in the Hub's cache leads to a blob of the same repository."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):  # it leads nowhere, or in a ring
        return False
    return target.parent == path.parent.resolve().parent.parent / 'blobs'


def check_checksums(folder: Path, found: Collection[str], stated: Mapping[str, str]) -> Iterator[str]:
    """Compare files with the checksums that config.json states: of every file but itself and the card.

    Yields:
        A sentence for every file without a checksum, checksum without a file, and file with another one.
    """
    wanted = {name for name in found if name not in _WITHOUT_CHECKSUM}
    for name in sorted(wanted - stated.keys()):
        yield f'config.json: timm_devnet.sha256 lacks {name}'
    for name in sorted(stated.keys() - wanted):
        yield f'config.json: timm_devnet.sha256 lists {shown(name)}, no file here that needs one'
    for name in sorted(wanted & stated.keys()):
        actual = sha256(folder / name)
        if actual != stated[name]:
            yield f'{name} is not what was published: its SHA-256 is {actual}, but config.json states {stated[name]}'
