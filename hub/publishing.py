"""The commands: from a run to the Hub, and from the Hub to a network that one can rely on."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from timm_devnet.delta import complete, fetch
from training.files import made_whole, refuse_taken, replace_text
from training.tensor_files import write_tensors

from .card import PLACEHOLDER, name_repository
from .checks import Facts, check_folder, find_problems
from .faults import Say, printable
from .layout import CARD, CONFIG, FILES, WEIGHTS, format_bytes
from .material import read_base_file
from .pulling import copy_to, download
from .pushing import Pushed, plan_push, push_folder
from .staging import stage
from .strict_json import parse

Dtype = Literal['bf16']


@dataclass(frozen=True)
class Pulled:
    """A network that was fetched and checked."""

    path: Path
    """Its folder: `timm.create_model(f'local-dir:{path}', pretrained=True)` loads it."""
    facts: Facts


def push(
    run: str | Path,
    repo_id: str,
    *,
    delta: bool = False,
    dtype: Dtype | None = None,
    license: str | None = None,
    base_file: str | Path | None = None,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    replaces: str | None = None,
    dry_run: bool = False,
    say: Say = print,
    token: str | None = None,
) -> Pushed | None:
    """Stage a run's best weights, check what was staged, and put it on the Hub as one commit.

    Args:
        run: A run folder of train.py, another folder in timm's layout, or one that `hub.staging.stage` has made, which
            is published as it is.
        repo_id: ORG/NAME; made if it does not exist.
        delta: Publish only what differs from the base.
        dtype: 'bf16' stores floating-point tensors in half the bytes, and measures accuracy again with them.
        license: Of the weights; None for that of the base.
        base_file: Where the base's weights are, for a delta; None for where they came from in the run, or the Hub.
        private: Make the repository visible to its owners only.
        revision: Branch, the main one by default; made if it does not exist.
        create_pr: Propose the commit as a pull request instead of making it.
        message: Title of the commit.
        replaces: The last commit of what is overwritten, at least 7 digits of it.
        dry_run: Change nothing on the Hub: tell file by file what would happen, and show the card.
        say: Told what happens, line by line.
        token: Instead of that of huggingface_hub's login or environment.

    Returns:
        Where it is; None after a dry run.

    Raises:
        ValueError: The run cannot be published so, the repository holds something that `replaces` does not name, or
            the Hub refuses or cannot be reached. Nothing has changed on the Hub then.
    """
    run = Path(run)
    storing: dict[str, Any] = {'delta': delta, 'dtype': dtype, 'license': license, 'base_file': base_file}
    place: dict[str, Any] = {'private': private, 'revision': revision, 'create_pr': create_pr, 'replaces': replaces}
    with tempfile.TemporaryDirectory() as empty:
        folder = Path(empty) / 'staged'
        if is_staged(run):
            given = [f'--{name.replace("_", "-")}' for name, value in storing.items() if value]
            if given:
                raise ValueError(f'{run} is staged already, and published as it is: leave out {", ".join(given)}')
            check_folder(run)
            folder = name_in_card(run, folder, repo_id)
        else:
            stage(run, folder, **storing, repo_id=repo_id, say=say)
            check_folder(folder)
        if dry_run:
            plan_push(folder, repo_id, **place, say=say, token=token)
            return None
        return push_folder(folder, repo_id, **place, message=message, say=say, token=token)


def is_staged(path: Path) -> bool:
    """Tell a staged folder from a run."""
    return (path / CONFIG).is_file() and (path / CARD).is_file() and not (path / 'run.json').exists()


def name_in_card(run: Path, folder: Path, repo_id: str) -> Path:
    """Put the repository's name into the card of a folder that was staged without it, which itself is left alone."""
    card = (run / CARD).read_text(encoding='utf-8')
    if PLACEHOLDER not in card:
        return run
    folder.mkdir()
    for name in FILES:
        if (run / name).exists():
            try:
                os.link(run / name, folder / name)
            except OSError:  # another disk, or one without links
                shutil.copyfile(run / name, folder / name)
    replace_text(folder / CARD, name_repository(card, repo_id))
    return folder


def pull(
    repo_id: str,
    *,
    revision: str | None = None,
    local_dir: str | Path | None = None,
    base_file: str | Path | None = None,
    cache_dir: str | Path | None = None,
    say: Say = print,
    token: str | None = None,
) -> Pulled:
    """Fetch a published network and check it: names, sizes, checksums, header of the weights, configuration.

    Args:
        repo_id: ORG/NAME.
        revision: Branch, tag or commit; the main branch by default.
        local_dir: New folder that gets a copy, always a whole network: a delta is completed from its base.
        base_file: Where the base's weights are, for a delta; None for where timm finds them.
        cache_dir: Instead of huggingface_hub's own.
        say: Told what there is to wait for.
        token: Instead of that of huggingface_hub's login or environment.

    Raises:
        ValueError: It cannot be had, is not what it says it is, or cannot be completed. Nothing of it is loaded then.
    """
    if local_dir is not None:
        refuse_taken(Path(local_dir))
    if base_file is not None and local_dir is None:
        raise ValueError(f'--base-file {base_file} completes a copy: give --local-dir too')
    path = download(repo_id, revision=revision, cache_dir=cache_dir, say=say, token=token)
    facts = check_folder(path, in_cache=True)
    if local_dir is None:
        return Pulled(path, facts)
    if not facts.is_delta:
        return Pulled(copy_to(path, local_dir), facts)
    complete_to(path, facts, Path(local_dir), None if base_file is None else Path(base_file), cache_dir)
    return Pulled(Path(local_dir), check_folder(local_dir))


def complete_to(path: Path, facts: Facts, folder: Path, base_file: Path | None, cache_dir: str | Path | None) -> None:
    """Make a whole network of a checked delta, in float32.

    Raises:
        ValueError: The base cannot be had, or is another one.
    """
    assert facts.base is not None, 'a delta stands on something'
    config = parse((path / CONFIG).read_bytes(), CONFIG)
    base = fetch(facts.base, cache_dir) if base_file is None else read_base_file(config, facts.base, base_file)
    with safe_open(path / WEIGHTS, 'pt') as file:
        metadata = file.metadata()
    config['model_args'].pop('delta_of', None)
    section = config['timm_devnet']
    with made_whole(folder) as place:
        for name in FILES:
            if (path / name).exists() and name not in (CONFIG, WEIGHTS):
                shutil.copyfile(path / name, place / name)
        whole = complete(load_file(path / WEIGHTS), base)
        checksum = write_tensors(place / WEIGHTS, whole, metadata, torch.float32)
        section |= {'delta': False, 'storage': 'float32', 'sha256': {**section['sha256'], WEIGHTS: checksum}}
        (place / CONFIG).write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')


def verify(what: str | Path, *, revision: str | None = None, say: Say = print) -> list[str]:
    """Look for all that is wrong with a folder or a repository.

    Args:
        what: A staged folder, a run folder, whose best/ is meant, another folder in timm's layout, or ORG/NAME.
        revision: Of a repository: branch, tag or commit.
        say: Told what there is to wait for.

    Returns:
        A sentence for every problem; none if it is what it says.

    Raises:
        ValueError: It is neither a folder nor a repository that can be had.
    """
    if Path(what).exists():
        if revision is not None:
            raise ValueError(f'--revision {revision} is for repositories, and {what} is a folder: leave it out')
        return find_problems(Path(what) / 'best' if (Path(what) / 'run.json').exists() else what)
    return find_problems(download(str(what), revision=revision, say=say), in_cache=True)


def describe(facts: Facts) -> list[str]:
    """Write what a network is, line by line, for a terminal."""
    metrics = facts.metrics or {}
    names = {'top1': 'top-1', 'top5': 'top-5', 'map': 'mean average precision'}
    measured = [
        f'{text} {metrics[name]:.2f} %{stored_text(metrics.get(f"{name}_stored"))}'
        for name, text in names.items()
        if metrics.get(name) is not None
    ]
    kept = ', '.join(f'{name} ({count} classes)' for name, count in facts.heads.items())
    what = f'{format_bytes(facts.bytes)} in {facts.storage}{", a delta" if facts.is_delta else ""}'
    rows = {
        'network': f'{facts.architecture}, {facts.num_classes} classes, {facts.parameters / 1e6:.2f} M parameters',
        'growth': facts.growth or 'none',
        **({'heads': kept} if facts.heads else {}),
        'base': 'random numbers' if facts.base is None else str(facts.base),
        'trained on': 'not told' if facts.dataset is None else f'{facts.dataset}, regime {facts.regime}',
        'measured': ', '.join(measured) or 'nothing',
        'weights': what,
        'licence': facts.license or 'not told',
    }
    return [f'{name:10}  {printable(text)}' for name, text in rows.items()] + [
        f'{"remark":10}  {printable(remark, 400)}' for remark in facts.remarks
    ]


def stored_text(stored: float | None) -> str:
    return '' if stored is None else f' ({stored:.2f} % as stored)'
