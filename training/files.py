"""Files and folders that are on the disk whole or not at all. Nothing here needs torch."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


def sync(path: Path) -> None:
    """Make the system put a file or folder on the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Replace a file at one stroke: whoever opens it, even after a crash, finds the old one or the new one, whole.

    Args:
        path: The file.
        write: Writes its new contents to the path it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'.{path.name}.unfinished')
    try:
        write(unfinished)
        sync(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    if os.name == 'posix':
        sync(path.parent)


def replace_text(path: Path, text: str) -> None:
    """Replace a text file at one stroke."""

    def write(unfinished: Path) -> None:
        unfinished.write_bytes(text.encode())

    replace_file(path, write)


def sha256(path: Path) -> str:
    """Compute a file's checksum."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def refuse_taken(folder: Path) -> None:
    """Refuse to make a folder where something is.

    Raises:
        ValueError: It exists and is not an empty folder.
    """
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f'{folder} exists and is not an empty folder: name a new one, or remove it')


@contextlib.contextmanager
def made_whole(folder: Path) -> Iterator[Path]:
    """Make a folder of files that appears under its name when it is whole; after an error there is nothing of it.

    Args:
        folder: The new folder, or an empty one that it replaces.

    Yields:
        The folder to write in, which lies beside it.
    """
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f'.{folder.name}.unfinished')
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir()
    try:
        yield unfinished
        for path in unfinished.iterdir():
            sync(path)
        if folder.exists():
            folder.rmdir()  # not every system replaces an empty one
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    if os.name == 'posix':
        sync(folder.parent)
