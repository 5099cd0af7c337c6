"""Look inside a trained network: each command writes one page, its pictures and its numbers; `--help` lists options."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import OmitArgPrefixes, Positional

import analysis
import timm_devnet  # noqa: F401  registers the grown architectures with timm
from analysis.activations import Over
from analysis.embed import POINTS
from analysis.subject import Reading, Where

EXIT_USER_ERROR = 2
Images = Annotated[Where, tyro.conf.arg(name='')]


def change(run: Positional[str], output: Path | None = None) -> Path:
    """Tell how far every layer, unit and batch norm moved from what it was before the first update.

    Args:
        run: A run folder of train.py, or its best/ or last/.
        output: Folder to write to (None: analysis/change in the run folder).
    """
    return analysis.change(run, output=output)


def units(
    run: Positional[str],
    where: Images,
    beside: str | None = None,
    names: tuple[str, ...] = (),
    count: int = 9,
    over: Over = 'mean',
    output: Path | None = None,
) -> Path:
    """Show the images that most activate units: the same old unit before and after, and new units.

    Args:
        run: A run folder of train.py, its best/ or last/, a folder in timm's layout, hf-hub:ID or a name.
        where: Which images.
        beside: A run that was fine-tuned without growing, to stand between base and grown.
        names: Units to show, each as BLOCK:NUMBER (None: those that add most to a class).
        count: Images of each unit.
        over: What is taken over the positions of a map.
        output: Folder to write to (None: analysis/units in the run folder).
    """
    return analysis.units(run, beside, names, count, over, where, output)


def embed(
    run: Positional[str],
    where: Images,
    beside: str | None = None,
    points: int = POINTS,
    seed: int = 0,
    output: Path | None = None,
) -> Path:
    """Lay out what the classifier reads by t-SNE: before, after, and in old and new units alone.

    Args:
        run: A run folder of train.py, its best/ or last/, a folder in timm's layout, hf-hub:ID or a name.
        where: Which images.
        beside: A run that was fine-tuned without growing.
        points: Images at most; of more, so many are drawn by lot.
        seed: Of the lots, and of t-SNE.
        output: Folder to write to (None: analysis/embed in the run folder).
    """
    return analysis.embed(run, beside, points, seed, where, output)


def cooperate(run: Positional[str], where: Images, output: Path | None = None) -> Path:
    """Tell what old and new units reach alone, over training, and what each unit adds to the logits.

    Args:
        run: A run folder of train.py, its best/ or last/, a folder in timm's layout, hf-hub:ID or a name.
        where: Which images.
        output: Folder to write to (None: analysis/cooperate in the run folder).
    """
    return analysis.cooperate(run, where, output)


def retain(
    run: Positional[str],
    reading: Annotated[Reading, tyro.conf.arg(name='')],
    source_dir: str | None = None,
    source_dataset: str | None = None,
    refit: bool = True,
    img_size: int | None = None,
    output: Path | None = None,
) -> Path:
    """Tell what a network still knows of its source task, with the old classifier and with one fitted anew.

    Args:
        run: A run folder of train.py, its best/ or last/.
        reading: How images are read.
        source_dir: Folder of the source task's images, with train/ and val/.
        source_dataset: Its name, in place of a folder.
        refit: Fit a classifier anew on the training images.
        img_size: Side of the images (None: the base's own).
        output: Folder to write to (None: analysis/retain in the run folder).
    """
    return analysis.retain(run, source_dir, source_dataset, refit, img_size, reading, output)


def compare(
    runs: Positional[tuple[str, ...]],
    data_dir: str | None = None,
    dataset: str | None = None,
    output: Path | None = None,
) -> Path:
    """Put two or more runs side by side; the first is what the others are measured against.

    Args:
        runs: Run folders of train.py, on the same data.
        data_dir: Folder of the images, if they are not where the first run found them.
        dataset: Name of the data set, likewise.
        output: Folder to write to (None: in the first run's folder).
    """
    return analysis.compare(runs, data_dir, dataset, output)


COMMANDS: dict[str, Callable[..., Any]] = {
    'change': change,
    'units': units,
    'embed': embed,
    'cooperate': cooperate,
    'retain': retain,
    'compare': compare,
}


def main(argv: list[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        Exit code: 0 or `EXIT_USER_ERROR`.
    """
    try:
        page = tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog='analyze.py', description=__doc__, args=argv, config=(OmitArgPrefixes,)
        )
    except (ValueError, OSError) as error:
        print(f'analyze.py: error: {" ".join(str(error).split())}', file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print('analyze.py: stopped', file=sys.stderr)
        return 130
    print(f'written to {page}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
