"""Images in a folder with a list of what each of them shows: any number of labels an image."""

from __future__ import annotations

import csv
from pathlib import Path, PurePosixPath

from timm.data.readers.reader_image_folder import find_images_and_targets

from .folders import split_folder
from .source import FileSource
from .splits import number_label_lists

LABELS = 'labels.csv'


def load_listed(data_dir: str | None, split: str, labels: str | None = None) -> FileSource:
    """Find the images below DIR/SPLIT, and their labels in a list.

    The list is CSV in UTF-8 without headings: on each line an image's path below the folder, then its labels, of which
    there may be none. Classes are the labels that occur, numbered in natural order.

    Args:
        data_dir: DIR.
        split: Name of the folder.
        labels: The list's name below the folder, or its whole path; None is labels.csv.

    Raises:
        ValueError: The split or its list is missing; the list is empty or not CSV, names a file twice or one that is no
            image here, or leaves out an image.
    """
    folder = split_folder(data_dir, split)
    path = folder / (labels or LABELS)
    rows = read_label_list(path)
    # timm's: sorted by name, so the order of the list does not matter.
    files = [file for file, _ in find_images_and_targets(str(folder))[0]]
    names = [Path(file).relative_to(folder).as_posix() for file in files]
    known = {*names}
    unknown = [f'line {line} ({name!r})' for name, (line, _) in rows.items() if name not in known]
    if unknown:
        raise ValueError(
            f'{path}: {len(unknown)} of {len(rows)} lines name no image below {folder}, such as '
            f'{", ".join(unknown[:3])}: a line begins with the path of an image below it, and none has headings'
        )
    missing = [name for name in names if name not in rows]
    if missing:
        raise ValueError(
            f'{path} has no line for {len(missing)} of {len(names)} images, such as {missing[:3]}: add them, an image '
            'that shows none of the classes with its path alone'
        )
    targets, classes = number_label_lists([rows[name][1] for name in names], None, str(path))
    return FileSource(folder, files, targets, classes)


def read_label_list(path: Path) -> dict[str, tuple[int, list[str]]]:
    """Read a list of images and their labels.

    Spaces around labels are left out, and so are empty cells, with which spreadsheets fill up lines.

    Returns:
        For each image, its path with forward slashes, the number of its line and its labels.

    Raises:
        ValueError: The list is missing, empty, not CSV in UTF-8, or names an image twice.
    """
    if not path.is_file():
        raise ValueError(f'{path} is not a file: --multi-label needs in it a line IMAGE,LABEL,LABEL,... for each image')
    rows: dict[str, tuple[int, list[str]]] = {}
    try:
        with open(path, encoding='utf-8-sig', newline='') as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                name, *labels = (cell.strip() for cell in row or [''])
                if not name and not any(labels):
                    continue
                name = str(PurePosixPath(name))
                if name in rows:
                    raise ValueError(f'{path}: lines {rows[name][0]} and {reader.line_num} are both about {name!r}')
                rows[name] = (reader.line_num, [label for label in labels if label])
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f'{path} is no CSV in UTF-8: {error}') from error
    if not rows:
        raise ValueError(f'{path} is empty: it must have a line IMAGE,LABEL,LABEL,... for each image')
    return rows
