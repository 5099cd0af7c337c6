"""From a run folder, or a network in memory, to the folder that would be published, and nothing else in it.

The folder appears under its name when it is whole. Nothing of it is a pickle, and nothing tells of the machine: file
lists, predictions and reports stay behind, and absolute paths in options are shortened to their last part.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from accelerate.utils import extract_model_from_parallel
from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import timm_devnet
from timm_devnet.delta import Base, digest, fetch, first_tensors, subtract
from training import evaluation
from training.checkpoints import sha256
from training.config import Config
from training.image_cache import open_cache
from training.networks import UNREADABLE_WEIGHTS
from training.run_folder import installed_version, sync, write_config
from training.sources import fingerprint, load_sources

from .card import HUB, Subject, license_of, one_line, write_card
from .picture import write_picture
from .record import WEIGHTS, Record, find_record, public_options
from .weights import write_weights

FORMAT = 1
STORAGES = {torch.float32: 'float32', torch.bfloat16: 'bfloat16'}
# What timm and torch raise at a description of a network that cannot be.
IMPOSSIBLE = (RuntimeError, ValueError, TypeError, KeyError, AttributeError, AssertionError, OSError)


@dataclass(frozen=True)
class Staged:
    """A staged folder."""

    path: Path
    files: dict[str, int]
    """Bytes of each file by its name."""
    config: dict[str, Any]
    """What config.json says; its section timm_devnet is this project's."""
    card: str
    """README.md."""


@dataclass(frozen=True)
class Material:
    """What is to be staged, wherever it comes from."""

    config: dict[str, Any]
    """timm's config.json."""
    network: Any
    """Built from it, on the meta device."""
    tensors: Mapping[str, Tensor]
    options: str | None = None
    """The training configuration as JSON."""
    record: Record | None = None
    base: Base | None = None
    base_license: str | None = None

    @property
    def classifier(self) -> Any:
        """Name or names of the classifier's modules."""
        return self.network.pretrained_cfg['classifier']


def stage(
    run: str | Path,
    folder: str | Path,
    *,
    delta: bool = False,
    dtype: str | None = None,
    license: str | None = None,
    base_file: str | Path | None = None,
    repo_id: str | None = None,
    say: Callable[[str], None] = print,
) -> Staged:
    """Stage a run's best weights.

    Args:
        run: A run folder of train.py; its best/ or last/; or another folder with config.json and model.safetensors in
            timm's layout, of which nothing more is known.
        folder: The new folder; it may exist if it is empty.
        delta: Store only what differs from the base.
        dtype: 'bf16' stores floating-point tensors in half the bytes; accuracy is then measured again with them, on the
            run's own validation images.
        license: Of the weights; None for that of the base.
        base_file: Where the base's weights are, for a delta; None for where they came from in the run, or the Hub.
        repo_id: ORG/NAME that the card speaks of; None to name it later by `hub.card.name_repository`.
        say: Takes lines that tell what happens.

    Returns:
        What was staged.

    Raises:
        ValueError: Run, base, licence or data cannot be had or do not fit; no folder is left then.
    """
    if dtype not in (None, 'bf16'):
        raise ValueError(f"dtype {dtype!r} is not known: it must be 'bf16', or None for the weights as they are")
    run, folder = Path(run), Path(folder)
    refuse_taken(folder)
    record = find_record(run)
    if dtype and record is None:
        raise ValueError(f'{run} is no run, so there are no images to measure weights in {dtype} on: leave out dtype')
    material = read_material(run if record is None else record.weights, record)
    rounded = torch.bfloat16 if dtype else None
    if rounded is not None:
        evaluation_of(material.record)  # refuses before anything is written
    return write_staged(material, folder, delta, rounded, license, as_path(base_file), repo_id, say)


def stage_model(
    model: nn.Module,
    folder: str | Path,
    *,
    classes: Sequence[str] | None = None,
    license: str | None = None,
    base: Base | None = None,
    delta: bool = False,
    base_file: str | Path | None = None,
    repo_id: str | None = None,
    say: Callable[[str], None] = print,
) -> Staged:
    """Stage a network in memory, of which no run tells.

    Args:
        model: A timm network in float32 or bfloat16, in any memory format; compiled or wrapped for several processes,
            too.
        folder: The new folder; it may exist if it is empty.
        classes: Names of its outputs, in their order; None for those that it knows itself.
        license: Of the weights; None for that of the base.
        base: What it began with, as `timm_devnet.delta.base_of` names it.
        delta: Store only what differs from the base.
        base_file: Where the base's weights are; None for the Hub.
        repo_id: ORG/NAME that the card speaks of; None to name it later.
        say: Takes lines that tell what happens.

    Returns:
        What was staged.

    Raises:
        ValueError: The network, its base or its licence cannot be published so; no folder is left then.
    """
    folder = Path(folder)
    refuse_taken(folder)
    network: Any = extract_model_from_parallel(model, keep_fp32_wrapper=False, keep_torch_compile=False)
    known = getattr(network, 'pretrained_cfg', None)
    if not known or not known.get('architecture'):
        raise ValueError(f'{type(network).__name__} is not a network that timm made: it has no pretrained_cfg')
    names = list(known.get('label_names') or () if classes is None else classes)
    if len(names) > network.num_classes:
        raise ValueError(f'{len(names)} names of classes were given, but the network has {network.num_classes} outputs')
    with tempfile.TemporaryDirectory() as place:
        write_config(Path(place) / 'config.json', network, names, {})
        config, blank = read_config(Path(place))
    base_license = None if base is None else find_license(base, None)
    material = Material(config, blank, network.state_dict(), base=base, base_license=base_license)
    check_tensors(material, known['architecture'])
    return write_staged(material, folder, delta, None, license, as_path(base_file), repo_id, say)


def as_path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


# What there is to stage -----------------------------------------------------------------------------------------------


def read_material(path: Path, record: Record | None) -> Material:
    """Read a folder in timm's layout; its tensors stay mapped to the file.

    Raises:
        ValueError: Something in it is broken or does not fit together.
    """
    config, network = read_config(path)
    try:
        tensors = load_file(path / WEIGHTS)
        with safe_open(path / WEIGHTS, 'pt') as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f'{path / WEIGHTS} cannot be read: {error}') from error
    recorded = record.base if record else None
    base = None if recorded is None else Base(*(recorded[name] for name in ('model', 'revision', 'tensors')))
    material = Material(
        config,
        network,
        tensors,
        options=public_options(record.config) if record else shared_options(header.get('config')),
        record=record,
        base=base,
        base_license=None if base is None or recorded is None else find_license(base, recorded.get('license')),
    )
    check_tensors(material, str(path))
    return material


def read_config(path: Path) -> tuple[dict[str, Any], Any]:
    """Read config.json, and build the network that it describes on the meta device.

    Raises:
        ValueError: It describes none, or is that of a staged folder.
    """
    try:
        config = json.loads((path / 'config.json').read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path / "config.json"} is not JSON: {error}') from error
    if isinstance(config, dict) and 'timm_devnet' in config:
        raise ValueError(f'{path} is staged already: publish it as it is, or stage the run that it came from')
    try:
        network: Any = timm.create_model(f'local-dir:{path}', pretrained=False, device='meta')
    except IMPOSSIBLE as error:
        raise ValueError(
            f'{path / "config.json"} describes no network that timm can build, so nobody could load it: {error}'
        ) from error
    if not config['num_classes']:
        raise ValueError(f'{path}: the network has no classifier, and what is published classifies: give it one')
    return config, network


def check_tensors(material: Material, place: str) -> None:
    """Refuse tensors that are not the network's.

    Raises:
        ValueError: Names some.
    """
    wanted, given = material.network.state_dict(), material.tensors
    problems = {
        'lacks': wanted.keys() - given.keys(),
        'has besides': given.keys() - wanted.keys(),
        'has in other shapes': {
            name for name in wanted.keys() & given.keys() if wanted[name].shape != given[name].shape
        },
    }
    found = [f'it {what} {sorted(names)[:3]} ({len(names)} in all)' for what, names in problems.items() if names]
    if found:
        architecture = material.config['architecture']
        raise ValueError(f'{place}: the weights are not those of {architecture}, as timm builds it: {"; ".join(found)}')
    material_storage(material.tensors)


def material_storage(tensors: Mapping[str, Tensor]) -> str:
    """Name the type of the floating-point tensors.

    Raises:
        ValueError: They are of several, or of one that is not published.
    """
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(kinds) != 1 or not kinds <= STORAGES.keys():
        names = ', '.join(sorted(str(kind).removeprefix('torch.') for kind in kinds))
        raise ValueError(
            f'weights are published in float32 or bfloat16, all in one; these are in {names}: convert them'
        )
    return STORAGES[kinds.pop()]


def shared_options(text: str | None) -> str | None:
    """The training configuration in a header, if there is one that can be read."""
    with contextlib.suppress(ValueError):
        options = json.loads(text or '')
        return public_options(options) if isinstance(options, dict) else None
    return None


def find_license(base: Base, recorded: str | None) -> str | None:
    """Find the licence of a base: what the run recorded, what timm knows, or what its repository's card says."""
    if recorded and recorded != 'unknown':
        return recorded
    if not base.model.startswith(HUB):
        return license_of(base.model)
    try:
        path = hf_hub_download(base.model.removeprefix(HUB), 'README.md', revision=base.revision)
        data = ModelCard.load(path).data
    except (HfHubHTTPError, OSError, ValueError, yaml.YAMLError):
        return None
    name = data.license_name if data.license == 'other' else data.license
    return name if isinstance(name, str) and name != 'unknown' else None


def choose_license(material: Material, license: str | None) -> str:
    """Take the user's licence, or the base's.

    Raises:
        ValueError: There is neither.
    """
    if license is not None:
        if not 0 < len(license.strip()) <= 100 or one_line(license) != license:
            raise ValueError(f'license {license[:100]!r} is no name of one: give one such as apache-2.0, or its title')
        return license.strip()
    if material.base_license:
        return material.base_license
    base = 'no base is recorded' if material.base is None else f'that of the base {material.base} is not known'
    raise ValueError(f'the licence of these weights is not known: {base}; give it, as in --license apache-2.0')


# The base of a delta --------------------------------------------------------------------------------------------------


def find_difference(material: Material, base_file: Path | None, say: Callable[[str], None]) -> Mapping[str, Tensor]:
    """Find what differs from the base.

    Raises:
        ValueError: There is no base, or it cannot be had.
    """
    if material.base is None:
        raise ValueError(
            'a delta stands on a base that others can get, and none is recorded for these weights: publish them whole'
        )
    if not timm_devnet.block_names(material.network):
        raise ValueError(
            f'{material.config["architecture"]} has not grown, and only grown networks complete a delta when they are '
            'loaded: publish it whole'
        )
    changed = subtract(material.tensors, load_base(material, base_file), material.classifier)
    if len(changed) == len(material.tensors):
        say(f'nothing of {material.base} stayed as it was, so a delta would save nothing: the weights are staged whole')
    return changed


def load_base(material: Material, base_file: Path | None) -> dict[str, Tensor]:
    """Get the base's tensors: from the file given, from the file that the run began with, or as others will.

    Raises:
        ValueError: They are not those that the run began with, or cannot be had.
    """
    base = material.base
    assert base is not None, 'a base is recorded'
    if base_file is not None:
        state = read_base_file(material, base_file)
        found = digest(state, material.classifier)
        if found != base.tensors:
            raise ValueError(
                f'{base_file} is not the base {base} that the run began with: its tensors have checksum {found}, and '
                f'run.json says {base.tensors}; give the right file, or none to fetch it'
            )
        return state
    began = (material.record.config.get('pretrained_path') if material.record else None) or ''
    if began and Path(began).is_file():
        with contextlib.suppress(ValueError):  # it may have been replaced since
            state = read_base_file(material, Path(began))
            if digest(state, material.classifier) == base.tensors:
                return state
    return fetch(base)


def read_base_file(material: Material, path: Path) -> dict[str, Tensor]:
    """Read a base as timm does, in whatever layout: build the network from it, and take what it gave.

    Raises:
        ValueError: The file is another network's.
    """
    if not path.is_file():
        raise ValueError(f'the base file {path} is not a file')
    options = {**material.config.get('model_args', {}), 'num_classes': 0}
    options.pop('delta_of', None)
    try:
        network = timm.create_model(
            material.config['architecture'],
            pretrained=True,
            pretrained_cfg_overlay={'file': str(path)},
            **options,
        )
    except (RuntimeError, ValueError, *UNREADABLE_WEIGHTS) as error:
        raise ValueError(f'{path} is not the base of {material.config["architecture"]}: {error}') from error
    return first_tensors(network)


# Writing --------------------------------------------------------------------------------------------------------------


def write_staged(
    material: Material,
    folder: Path,
    delta: bool,
    rounded: torch.dtype | None,
    license: str | None,
    base_file: Path | None,
    repo_id: str | None,
    say: Callable[[str], None],
) -> Staged:
    """Write the folder, whole or not at all."""
    license = choose_license(material, license)
    stored = find_difference(material, base_file, say) if delta else material.tensors
    is_delta = len(stored) < len(material.tensors)
    config = {**material.config, 'model_args': dict(material.config.get('model_args', {}))}
    config['model_args'].pop('delta_of', None)  # of what the run began with
    if is_delta:
        assert material.base is not None
        config['model_args']['delta_of'] = material.base.to_dict()
    with made_whole(folder) as place:
        sums = {WEIGHTS: write_weights(place / WEIGHTS, stored, describe_weights(material), rounded)}
        for name in copy_pictures(material, place):
            sums[name] = sha256(place / name)
        metrics = material.record.metrics() if material.record else None
        storage = STORAGES[rounded] if rounded else material_storage(material.tensors)
        config['timm_devnet'] = describe(material, is_delta, storage, license, metrics, sums)
        if rounded is not None and material.record is not None and metrics is not None:
            say('measuring the weights as they are stored')
            metrics.update(measure_stored(material, stored, config, rounded, place))
        subject = Subject(config, material.network, material.record, material.base_license)
        card = write_card(subject, repo_id)
        (place / 'config.json').write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')
        (place / 'README.md').write_text(card, encoding='utf-8', newline='\n')
        files = {path.name: path.stat().st_size for path in sorted(place.iterdir())}
    say(f'staged in {folder}: ' + ', '.join(f'{name} {format_bytes(size)}' for name, size in files.items()))
    return Staged(folder, files, config, card)


def describe_weights(material: Material) -> dict[str, str]:
    """The metadata of model.safetensors."""
    growth = getattr(material.network, 'growth', None)
    return {
        'format': 'pt',
        **({'config': material.options} if material.options else {}),
        **({'growth': growth} if growth else {}),
        'base': json.dumps(None if material.base is None else material.base.to_dict()),
    }


def describe(
    material: Material,
    is_delta: bool,
    storage: str,
    license: str,
    metrics: dict[str, Any] | None,
    sums: dict[str, str],
) -> dict[str, Any]:
    """The section timm_devnet of config.json."""
    record = material.record
    return {
        'format': FORMAT,
        'version': installed_version('timm-devnet') or 'unknown',
        'growth': getattr(material.network, 'growth', None),
        'base': None if material.base is None else material.base.to_dict(),
        'delta': is_delta,
        'storage': storage,
        'license': license,
        'dataset': record.dataset if record else None,
        'regime': record.config['regime'] if record else None,
        'metrics': metrics,
        'sha256': sums,
    }


def copy_pictures(material: Material, place: Path) -> list[str]:
    """Draw the growth, and copy what the run has that is published; returns the names."""
    names = []
    if material.record is not None:
        for name in ('metrics.csv', 'curves.png'):
            shutil.copyfile(material.record.folder.path / name, place / name)
            names.append(name)
    if timm_devnet.block_names(material.network):
        write_picture(material.network, place / 'growth.png')
        names.append('growth.png')
    return names


def evaluation_of(record: Record | None) -> Config:
    """Configure an evaluation on the run's own validation images.

    Raises:
        ValueError: They cannot be had, or are others now.
    """
    assert record is not None, 'only runs are measured'
    what = f'weights in bf16 are measured again on the images of {record.folder.path}'
    kept = {name: record.config[name] for name in ('batch_size', 'bad_images', 'img_size')}
    config = Config(model=str(record.folder.path), eval_only=True, report=False, tracker='none', **kept)
    config = evaluation.with_data_of(config, record.folder)
    try:
        sources = load_sources(config.resolved(), open_cache(config.resolved()))
    except ValueError as error:
        raise ValueError(f'{what}, which cannot be had: {error}') from error
    if fingerprint(*sources.values()) != record.facts['data']['fingerprint']:
        raise ValueError(f'{what}, which are not the same any more: restore them, or leave out dtype')
    if record.metrics() is None:
        raise ValueError(f'{what}, but the run never was: leave out dtype')
    return config


def measure_stored(
    material: Material, stored: Mapping[str, Tensor], config: dict[str, Any], rounded: torch.dtype, place: Path
) -> dict[str, float]:
    """Measure the weights as they are stored.

    Args:
        material: What is staged.
        stored: The tensors that are written.
        config: config.json.
        rounded: What floating-point tensors are written in.
        place: Where they lie.

    Returns:
        top1_stored or map_stored, in percent.
    """
    asked = evaluation_of(material.record)
    with contextlib.ExitStack() as stack:
        if len(stored) < len(material.tensors):  # a delta: what is not stored comes from the base, as it is
            whole = {
                name: tensor.to(rounded) if name in stored and tensor.is_floating_point() else tensor
                for name, tensor in material.tensors.items()
            }
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=place)))
            write_weights(place / WEIGHTS, whole, {'format': 'pt'})
        (place / 'config.json').write_text(json.dumps(config), encoding='utf-8')
        with contextlib.redirect_stdout(io.StringIO()):
            result = evaluation.evaluate_only(dataclasses.replace(asked, model=str(place)))
    return {f'{name}_stored': result[name] for name in ('top1', 'map') if result.get(name) is not None}


def refuse_taken(folder: Path) -> None:
    """Refuse a folder that has something in it.

    Raises:
        ValueError: It has.
    """
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise ValueError(f'{folder} exists and is not an empty folder: name a new one, or remove it')


@contextlib.contextmanager
def made_whole(folder: Path) -> Iterator[Path]:
    """Make a folder that appears under its name when it is whole; after an error there is nothing of it.

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
            folder.rmdir()
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    if os.name == 'posix':
        sync(folder.parent)


def format_bytes(size: int) -> str:
    """Write a size as one reads it.

    Example:
        >>> format_bytes(532), format_bytes(37_900_000)
        ('532 B', '37.9 MB')
    """
    for unit, of in (('GB', 1e9), ('MB', 1e6), ('kB', 1e3)):
        if size >= of:
            return f'{size / of:.1f} {unit}'
    return f'{size} B'
