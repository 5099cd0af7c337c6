"""Measuring without training: any network on any validation images, its classes matched with theirs by name."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from accelerate import Accelerator
from PIL import Image
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_data_config
from torch import nn

import timm_devnet

from . import networks
from .config import Config
from .data import Images, InputFormat, Normalize, create_loader
from .devices import create_accelerator, describe
from .image_cache import open_cache
from .label_predictions import LabelPredictions
from .predictions import Predictions, name_outputs, predict
from .report import write_report
from .run_folder import RunFolder
from .sources import Source, fingerprint, load_sources, load_validation, renumber
from .tasks import choose_task
from .tuning import LAYOUTS


@dataclass(frozen=True)
class OwnFormat(InputFormat):
    """What a network expects to see, cropped as its own configuration says."""

    crop_pct: float
    crop_mode: str

    def timm_config(self) -> dict:
        return {**super().timm_config(), 'crop_pct': self.crop_pct, 'crop_mode': self.crop_mode}


class Renumbered:
    """A split whose classes are numbered as a network numbers its outputs."""

    def __init__(self, source: Source, outputs: Sequence[int], classes: list[str]):
        self.source, self.classes = source, classes
        self.targets = [renumber(target, outputs) for target in source.targets]

    def name(self, index: int) -> str:
        return self.source.name(index)

    def size(self, index: int) -> int:
        return self.source.size(index)

    def read(self, index: int) -> Image.Image:
        return self.source.read(index)


def evaluate_only(config: Config) -> dict[str, Any]:
    """Measure the network that --model names on the validation images.

    Without --data-dir and --dataset, a run folder is measured on its own images. Then, and wherever the images are
    those of the run, its report.html and predictions.csv are written anew, unless --no-report was given.

    Returns:
        model, weights, top1, top5, mean_class_top1 (in their place map, with --multi-label), loss, images, unreadable,
        data_classes, outputs, seconds and report (None if none was written).

    Raises:
        ValueError: Network or data cannot be had, or their classes do not match.
    """
    start = time.monotonic()
    refuse_training_options(config)
    folder = find_run(config.model)
    model, img_size = config.model, config.img_size
    config = with_data_of(config, folder).resolved()
    config.validate()
    accelerator = create_accelerator(config)
    accelerator.print(describe(accelerator))
    source = load_validation(config, open_cache(config, accelerator.print))
    network, origin = load_network(config)
    outputs, classes, how = match_classes(network, source.classes)
    accelerator.print(f'{model}, weights from {origin}; {how}')
    renumbered = Renumbered(source, outputs, classes)
    input_format = own_format(network, img_size)
    networks.check_img_size(network, input_format.img_size)
    memory_format = LAYOUTS[config.memory_format or 'channels_last']
    normalize = Normalize(input_format.mean, input_format.std, memory_format).to(accelerator.device)
    network = network.to(accelerator.device).to(memory_format=memory_format)
    predictions = predict_on(config, accelerator, network, classes, renumbered, input_format, normalize)
    refuse_unreadable(config, predictions, source)
    report = None
    if folder is not None and config.report and is_own_data(config, folder):
        report = str(folder.path / 'report.html')
        if accelerator.is_main_process:
            folder.write_predictions(predictions.to_csv(renumbered))
            write_report(folder, predictions, renumbered)
    accelerator.wait_for_everyone()
    return {
        'model': model,
        'weights': origin,
        **predictions.metrics(),
        'unreadable': len(predictions.unreadable),
        'data_classes': len(source.classes),
        'outputs': len(classes),
        'seconds': round(time.monotonic() - start, 3),
        'report': report,
    }


def predict_best(
    config: Config,
    accelerator: Accelerator,
    folder: RunFolder,
    source: Source,
    input_format: InputFormat,
    normalize: Normalize,
) -> Predictions | LabelPredictions:
    """Ask the best weights of a run, as they lie on the disk, about the validation images."""
    network: Any = timm.create_model(f'local-dir:{folder.path / "best"}', pretrained=True)
    classes = network.pretrained_cfg['label_names']
    network = network.to(accelerator.device).to(memory_format=normalize.memory_format)
    return predict_on(config, accelerator, network, classes, source, input_format, normalize)


def predict_on(
    config: Config,
    accelerator: Accelerator,
    network: Any,
    classes: Sequence[str],
    source: Source,
    input_format: InputFormat,
    normalize: Normalize,
) -> Predictions | LabelPredictions:
    """Ask a network about every image of a split, in their order."""
    task = choose_task(config.multi_label, network.num_classes)
    images = Images(source, input_format.eval_transform(), config.seed, task)
    loader = create_loader(config, images, [(0, index) for index in range(len(images))])
    return predict(accelerator, network, accelerator.prepare(loader), classes, normalize, task)


def refuse_training_options(config: Config) -> None:
    """Refuse what has no meaning where nothing is trained.

    Raises:
        ValueError: Names the option.
    """
    if config.resume is not None:
        raise ValueError(
            f'--eval-only goes on with no run: for its best weights leave out --resume {config.resume} and give '
            '--model RUN_FOLDER'
        )
    if config.num_classes is not None:
        raise ValueError(
            f'--num-classes {config.num_classes} would put a new classifier in the place of the trained one: leave it '
            'out with --eval-only'
        )


def find_run(model: str) -> RunFolder | None:
    """Find the run folder that --model may name."""
    path = Path(model)
    return RunFolder(path) if (path / 'run.json').is_file() and (path / 'best').is_dir() else None


def with_data_of(config: Config, folder: RunFolder | None) -> Config:
    """Take the data options of a run where no data is given, but for those that are given all the same.

    Raises:
        ValueError: Its images have one class each, and the wish is for several labels.
    """
    if folder is None or config.data_dir is not None or config.dataset is not None:
        return config
    saved = json.loads((folder.path / 'run.json').read_text())['config']
    wishes = [f'--{name.replace("_", "-")}' for name in ('multi_label', 'labels') if getattr(config, name)]
    if wishes and not saved.get('multi_label'):
        raise ValueError(
            f'{" ".join(wishes)}: {folder.path} was trained on images of one class each: leave it out, or give '
            '--data-dir FOLDER with a list of labels'
        )
    names = ('data_dir', 'dataset', 'train_split', 'val_split', 'class_map', 'input_key', 'target_key', 'multi_label')
    given = {field.name for field in dataclasses.fields(config) if getattr(config, field.name) != field.default}
    wanted = [name for name in (*names, 'labels') if name in saved and name not in given]
    return dataclasses.replace(config, **{name: saved[name] for name in wanted})


def is_own_data(config: Config, folder: RunFolder) -> bool:
    """Tell whether the images are those that a run was trained and measured with."""
    saved = json.loads((folder.path / 'run.json').read_text())['data']
    try:
        return fingerprint(*load_sources(config, open_cache(config)).values()) == saved['fingerprint']
    except ValueError:  # there are validation images only
        return False


def load_network(config: Config) -> tuple[nn.Module, str]:
    """Load a network with the classifier that it was trained with.

    Returns:
        The network, and where its weights come from.

    Raises:
        ValueError: It cannot be had.
    """
    source, _, place = config.model.partition(':')
    if source == 'local-dir' and not (Path(place) / 'config.json').is_file():
        raise ValueError(f"--model {config.model} is no folder in timm's layout: {place} has no config.json")
    if config.pretrained_path is not None:
        return load_file(config)
    network, origin = networks.build_network(config, None)
    return network, config.model if place else origin


def load_file(config: Config) -> tuple[nn.Module, str]:
    """Load a network from a file of its weights, with as many outputs as these have."""
    networks.find_weights(config)  # refuses what is no file, and another network's
    name, growth = timm_devnet.resolve_name(config.model)
    blank: Any = timm.create_model(name, device='meta', **growth)
    try:
        weights = timm.models.load_state_dict(str(config.pretrained_path))
        weights = timm_devnet.to_own_layout(weights, blank)
        outputs = weights[f'{blank.pretrained_cfg["classifier"]}.bias'].shape[0]
        network = timm.create_model(name, num_classes=outputs, **growth)
        network.load_state_dict(weights)
    except networks.UNREADABLE_WEIGHTS as error:
        raise ValueError(f'{config.pretrained_path} is not a file of plain weights, so it was not opened') from error
    except (RuntimeError, KeyError) as error:
        raise ValueError(f'{config.pretrained_path} is not a checkpoint of {config.model}: {error}') from error
    return network, str(config.pretrained_path)


def own_format(network: nn.Module, img_size: int | None) -> OwnFormat:
    """Take the input format that a network's configuration states, at another size if one is given."""
    own = resolve_data_config({}, model=network)
    size = img_size or own['input_size'][-1]
    mean, std = tuple(own['mean']), tuple(own['std'])
    return OwnFormat(size, mean, std, own['interpolation'], own['crop_pct'], own['crop_mode'])


def class_names(network: Any) -> list[str] | None:
    """Find the names of a network's outputs: those saved with it, else ImageNet's synsets; None if it knows none."""
    saved = networks.saved_names(network)
    if saved:
        return saved
    subset = infer_imagenet_subset(network)
    return None if subset is None else list(ImageNetInfo(subset).label_names())


def match_classes(network: Any, classes: Sequence[str]) -> tuple[list[int], list[str], str]:
    """Find the output that stands for each class of the data.

    Args:
        network: As timm made it.
        classes: Names of the data's classes.

    Returns:
        The output of each class, the name of each output, and how they were matched, in words.

    Raises:
        ValueError: A class of the data is none of the network's, or the network does not name its classes and has
            more or fewer than the data.
    """
    names, count = class_names(network), network.num_classes
    is_saved = bool(network.pretrained_cfg.get('label_names'))
    if names is not None and (is_saved or {*names} & {*classes}):
        lacking = [name for name in classes if names.count(name) != 1]
        if lacking:
            raise ValueError(
                f'{len(lacking)} of the {len(classes)} classes of the data are not among the {count} that the network '
                f'knows by name: {lacking[:5]}; it knows {names[:5]} and so on: rename the folders, or evaluate on the '
                'data it was trained for'
            )
        outputs = [names.index(name) for name in classes]
        return outputs, name_outputs(names, count), f'{len(classes)} of its {count} classes, matched by name'
    if count != len(classes):
        raise ValueError(
            f'the network has {count} outputs without names that the data uses, and the data has {len(classes)} '
            'classes, so which is which cannot be told: give a network trained for these classes (a run folder of '
            'theirs), or name the folders as the network names its classes'
        )
    return list(range(count)), list(classes), 'it names no classes of the data: its outputs are taken in their order'


def refuse_unreadable(config: Config, predictions: Predictions | LabelPredictions, source: Source) -> None:
    """Stop at images that could not be read, unless they may be skipped.

    Raises:
        ValueError: There were some, or no readable one.
    """
    names = [source.name(index) for index in predictions.unreadable.tolist()]
    if names and (config.bad_images == 'stop' or len(names) == len(source.targets)):
        raise ValueError(
            f'cannot read {len(names)} of {len(source.targets)} images ({", ".join(names[:5])}): repair or remove '
            'them, or give --bad-images skip to measure on the others'
        )
