"""What a run's folder records of it: what was trained from what, on what, and how good it became."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from timm_devnet.delta import Base
from training.predictions import printable
from training.run_folder import RunFolder

from .layout import CONFIG, WEIGHTS

HUB = 'hf-hub:'
Row = dict[str, float | None]

# Where a path begins that is not relative: at the start of a value, or after what stands before paths in options.
ABSOLUTE = re.compile(
    r'(?P<before>^|[:=,;\s]|^hfi?ds/|^torch/)(?:~[^\\/:=,;\s]*|[A-Za-z]:)?[\\/](?:.*[\\/])?', re.DOTALL
)


@dataclass(frozen=True)
class Record:
    """A run, and which of its weights are meant."""

    folder: RunFolder
    weights: Path
    """best/ or last/."""
    facts: dict[str, Any]
    """run.json."""
    history: list[Row]
    """metrics.csv."""

    @property
    def config(self) -> dict[str, Any]:
        """The run's options."""
        return self.facts['config']

    @property
    def name(self) -> str:
        """Of the run's folder."""
        return self.folder.path.resolve().name

    @property
    def dataset(self) -> str:
        """The data set's name, without the folder that it lies in."""
        data = self.config.get('dataset') or Path(self.config.get('data_dir') or '').name
        return without_folders(printable(data)) or 'images'

    @property
    def hub_dataset(self) -> str | None:
        """The data set's id on the Hub, if it was read from there."""
        prefix, _, name = (self.config.get('dataset') or '').partition('/')
        try:
            validate_repo_id(name)
        except HFValidationError:
            return None
        return name if prefix.lower() in ('hfds', 'hfids') and not Path(name).exists() else None

    @property
    def base(self) -> Base | None:
        """What it began with; None for random numbers, and for what nobody else can get by a name."""
        found = self.facts.get('base')
        return (
            None
            if not found or found['model'] is None
            else Base(*(found[key] for key in ('model', 'revision', 'tensors')))
        )

    @property
    def began_in_file(self) -> bool:
        """Whether the starting weights came from a file, so that only their checksum tells what they are."""
        return self.config.get('pretrained_path') is not None

    @property
    def knows_license(self) -> bool:
        """Whether the run recorded what is known of its base's licence; of others the card on the Hub may tell more."""
        found = self.facts.get('base')
        return found is not None and bool(found['license'] or self.began_in_file)

    @property
    def base_license(self) -> str | None:
        """Of the base, as the run recorded it."""
        name = (self.facts.get('base') or {}).get('license')
        return None if name == 'unknown' else name

    @property
    def row(self) -> Row | None:
        """The epoch of these weights in metrics.csv; None if it was not evaluated."""
        if self.weights.name == 'last':
            row = self.history[-1]
            return row if score_of(row) is not None else None
        evaluated = [row for row in self.history if score_of(row) is not None]
        return max(evaluated, key=lambda row: score_of(row) or 0.0, default=None)

    @property
    def val_images(self) -> int:
        """How many validation images were read."""
        listed = self.folder.path / 'bad_images.txt'
        unreadable = listed.read_text().splitlines() if listed.exists() else []
        return self.facts['data']['val_images'] - sum(name.startswith('val/') for name in unreadable)

    def metrics(self) -> dict[str, Any] | None:
        """What was measured of these weights: top1 and top5, or map, in percent; loss, images, epoch."""
        row = self.row
        if row is None:
            return None
        scores = {'map': row['val_map']} if 'val_map' in row else {'top1': row['val_top1'], 'top5': row['val_top5']}
        numbers = {**scores, 'loss': row['val_loss']}
        finite = {
            name: number if number is not None and math.isfinite(number) else None for name, number in numbers.items()
        }
        return {**finite, 'images': self.val_images, 'epoch': int(row['epoch'] or 0)}

    def command(self) -> str:
        """The command, every absolute path in it replaced by its last part."""
        return shlex.join(without_folders(word) for word in shlex.split(printable(self.facts['command'])))


def score_of(row: Row) -> float | None:
    """What epochs are compared by."""
    return row['val_map'] if 'val_map' in row else row['val_top1']


def without_folders(value: str) -> str:
    """Replace absolute paths in an option's value by their last part.

    Example:
        >>> without_folders('/home/me/data/SUN397/'), without_folders('--model=local-dir:~me/best')
        ('SUN397', '--model=local-dir:best')
    """
    return ABSOLUTE.sub(lambda match: match['before'], value.rstrip('\\/'))


def public_options(options: Mapping[str, Any]) -> str:
    """Write a run's options as JSON, without folders, which tell of the machine and its user."""
    shown = {
        name: without_folders(printable(value)) if isinstance(value, str) else value for name, value in options.items()
    }
    return json.dumps(shown, indent=2)


def find_record(path: Path) -> Record | None:
    """Find the run that a folder is, or whose best/ or last/ it is.

    Returns:
        The run; None for a folder in timm's layout that belongs to no run.

    Raises:
        ValueError: It is neither, or the run has no weights yet.
    """
    place = path.resolve()
    if (place / 'run.json').is_file():
        return read_record(path, path / 'best')
    if place.name in ('best', 'last') and (place.parent / 'run.json').is_file():
        return read_record(place.parent, path)
    if not path.is_dir():
        raise ValueError(
            f'{path} is not a folder: give a run folder of train.py, or one with config.json and {WEIGHTS}'
        )
    refuse_unsafe(path)
    return None


def read_record(path: Path, weights: Path) -> Record:
    """Read a run's files.

    Raises:
        ValueError: The run has not finished its first epoch.
    """
    needed = (weights / CONFIG, weights / WEIGHTS, path / 'metrics.csv', path / 'curves.png')
    lacking = [file for file in needed if not file.is_file()]
    if lacking:
        raise ValueError(
            f'{path} is a run without a finished epoch (it lacks {lacking[0].relative_to(path)}): go on with '
            f'train.py --resume {path}'
        )
    folder = RunFolder(path)
    return Record(folder, weights, folder.read_run(), folder.read_metrics())


def refuse_unsafe(path: Path) -> None:
    """Refuse a folder that has no weights, or only such as could run code when they are read.

    Raises:
        ValueError: Says what it lacks.
    """
    if (path / CONFIG).is_file() and (path / WEIGHTS).is_file():
        return
    pickles = sorted(
        file.name for file in path.iterdir() if file.suffix in ('.bin', '.pt', '.pth', '.tar', '.pkl', '.ckpt')
    )
    found = f'; it has {pickles[0]}, which is not read, since opening it could run code' if pickles else ''
    raise ValueError(
        f"{path} is neither a run folder (no run.json) nor in timm's layout (config.json and {WEIGHTS}){found}"
    )
