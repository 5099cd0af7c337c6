"""What is looked into: a trained network, what it began as, and the images to show it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import set_seed
from safetensors import SafetensorError
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

import timm_devnet
from timm_devnet import delta
from timm_devnet.grown import Grown
from timm_devnet.growth import Growth, parse
from training import devices, evaluation, networks
from training.config import Config
from training.data import Images, InputFormat, Normalize, create_loader, is_readable
from training.evaluation import Renumbered, find_run, match_classes, own_format
from training.grow import growth_options
from training.image_cache import open_cache
from training.run_folder import RunFolder
from training.sources import Source, load_sources, load_validation
from training.start import begin_network
from training.tasks import choose_task

Split = Literal['train', 'val']
UNREADABLE_RUN = (SafetensorError, OSError, RuntimeError, TypeError, KeyError)


@dataclass(frozen=True)
class Reading:
    """How images are read."""

    batch_size: int = 64
    """Images shown at once."""
    workers: int | None = None
    """Processes that read images."""
    threads: int | None = None
    """CPU threads (None: all cores)."""

    def applied(self, config: Config) -> Config:
        """A run's configuration with these wishes, for evaluation in full precision."""
        if self.batch_size < 1:
            raise ValueError(f'--batch-size {self.batch_size} is out of range: it must be at least 1')
        how: dict[str, Any] = {'batch_size': self.batch_size, 'workers': self.workers, 'threads': self.threads}
        return dataclasses.replace(config, mixed_precision='no', torchcompile=None, **how)


@dataclass(frozen=True)
class Where(Reading):
    """Which images are shown, and how they are read; what is not given is as the run has it."""

    data_dir: str | None = None
    """Folder of the images, if not the run's: it has moved, or others are meant."""
    dataset: str | None = None
    """Name of the data set, if not the run's."""
    split: Split = 'val'
    """Which of the images."""

    def applied(self, config: Config) -> Config:
        config = super().applied(config)
        if self.data_dir is None and self.dataset is None:
            return config
        return dataclasses.replace(config, data_dir=self.data_dir, dataset=self.dataset)


@dataclass(frozen=True)
class Subject:
    """A trained network that is looked into."""

    name: str
    """What pages call it."""
    network: Any
    """In evaluation, on the device."""
    config: Config
    """The run's, or for a network without one what is needed to find images; as `Where.applied` gives it."""
    run: RunFolder | None
    device: torch.device

    @cached_property
    def input_format(self) -> InputFormat:
        """What the network expects to see, as its own configuration says."""
        return own_format(self.network, None)

    @property
    def classifier(self) -> nn.Linear:
        """Raises ValueError where the network has none that is linear."""
        classifier = self.network.get_classifier()
        if not isinstance(classifier, nn.Linear):
            raise ValueError(f'{self.name} has no linear classifier, so units cannot be told apart by it')
        return classifier

    def start(self) -> Any:
        """What a run began with: see `rebuild_start`."""
        return rebuild_start(self).to(self.device).eval()


def open_subject(what: str, where: Reading) -> Subject:
    """Load a trained network.

    Args:
        what: A run folder of train.py, its best/ or last/, another folder in timm's layout, local-dir:FOLDER,
            hf-hub:ID or a name that timm knows.
        where: Says which images it will be shown; a run brings its own.

    Raises:
        ValueError: It cannot be had.
    """
    run, weights = find_weights(what)
    config = where.applied(saved_config(run) if run else Config(model=what).resolved())
    devices.share_cores(config.threads)
    devices.keep_freed_memory()
    try:
        network, _ = evaluation.load_network(
            dataclasses.replace(config, model=f'local-dir:{weights}', pretrained=True, **AS_SAVED) if run else config
        )
    except UNREADABLE_RUN as error:
        raise ValueError(f'{what} cannot be loaded: {error}') from error
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    name = run.path.resolve().name if run else what.rpartition(':')[2].rstrip('/')
    if run is not None and weights.name != 'best':
        name = f'{name}/{weights.name}'
    return Subject(name, network.to(device).eval(), config, run, device)


# Options that a saved network has in itself.
AS_SAVED: dict[str, Any] = {
    **dict.fromkeys(('pretrained_path', 'img_size', 'drop', 'scale_init', 'new_init', 'block_loss', 'num_classes')),
    'grow': (),
    'grad_checkpointing': False,
}


def find_weights(what: str) -> tuple[RunFolder | None, Path]:
    """Find the run folder that is meant, and the folder of its weights."""
    path = Path(what)
    for folder, weights in ((path, path / 'best'), (path.parent, path)):
        run = find_run(str(folder))
        if run is not None and (weights / 'config.json').is_file():
            return run, weights
    return None, path


def saved_config(run: RunFolder) -> Config:
    """Read the options of a run.

    Raises:
        ValueError: Another version wrote them.
    """
    return Config.from_json(json.dumps(run.read_run()['config']))


# What a run began with ------------------------------------------------------------------------------------------------


def rebuild_start(subject: Subject) -> Any:
    """Build what a run began with: pretrained old units, new units and classifier at their first values.

    New units and a fresh classifier depend on the seed and on their names alone, so the run's seed gives them again,
    also those of --grow. That the old units are those of the run is checked by the checksum in run.json.
    Of a network without a run, it is what its name or its base's name gives.

    Returns:
        A network with every tensor that the trained one has.

    Raises:
        ValueError: The base cannot be had, or is another than the run began with.
    """
    if subject.run is None:
        return rebuild_base(subject)
    config = subject.config
    set_seed(config.seed)
    tuned = subject.network
    start, origin = networks.build_network(config, None if config.keep_heads else tuned.num_classes)
    check_base(subject, start, origin)
    begin_network(config, start, networks.saved_names(tuned), tuned.num_classes)
    if isinstance(tuned, Grown):
        steps = parse(tuned.growth).steps
        had = parse(start.growth).steps if isinstance(start, Grown) else ()
        if len(steps) > len(had):  # by --grow, in the middle of the run
            options = growth_options(config, start)
            torch.manual_seed(config.seed)
            timm_devnet.grow(start, str(Growth(steps[len(had) :])), **options)
    lacking = sorted(tuned.state_dict().keys() - start.state_dict().keys())
    if lacking:
        raise ValueError(f'{subject.name} has tensors that what it began with lacks: {lacking[:3]} ({len(lacking)})')
    return start


def check_base(subject: Subject, start: nn.Module, origin: str) -> None:
    """Refuse another base than the one that run.json describes.

    Raises:
        ValueError: The checksums differ.
    """
    assert subject.run is not None
    saved = subject.run.read_run().get('base')
    tensors = delta.digest(delta.first_tensors(start), ())
    if saved is not None and saved['tensors'] != tensors:
        raise ValueError(
            f'{subject.name} began with weights from {saved["origin"]} of checksum {saved["tensors"][:12]}, and '
            f'{subject.config.model} from {origin} has {tensors[:12]}: restore what it began with'
        )


def rebuild_base(subject: Subject) -> Any:
    """Build the network that a trained one grew from, whole, with the classifier that its weights have.

    For a run that began with a folder or a network of the Hub it is that; else the pretrained network of the base's
    name.

    Raises:
        ValueError: The network began with random numbers, or its base cannot be had.
    """
    config = dataclasses.replace(subject.config, grow=(), num_classes=None, drop=None, block_loss=None)
    if not config.pretrained:
        raise ValueError(f'{subject.name} began with random numbers: there is no base to look at')
    network, began_elsewhere = subject.network, ':' in config.model or Path(config.model).is_dir()
    if subject.run is None or (isinstance(network, Grown) and not began_elsewhere):
        cfg = network.pretrained_cfg
        name = str(getattr(network, 'base_name', None) or cfg['architecture'])
        known = get_pretrained_cfg(name)
        if cfg.get('tag') and (known is None or known.tag != cfg['tag']):  # packages have weights of names without one
            name = f'{name}.{cfg["tag"]}'
        config = dataclasses.replace(config, model=name, scale_init=None, new_init=None)
    base, origin = networks.build_network(config, None)
    if subject.run is not None:
        check_base(subject, base, origin)
    return base.to(subject.device).eval()


# What is shown --------------------------------------------------------------------------------------------------------


def find_images(subject: Subject, split: Split) -> Source:
    """Find a subject's images; their classes are numbered as its outputs.

    Raises:
        ValueError: There are none, images show several labels each, or a class is none of the network's.
    """
    config = subject.config
    if config.multi_label:
        raise ValueError(
            f'{subject.name} tells several labels an image: this looks at networks that tell one class; '
            '`analyze.py change` works on any'
        )
    if subject.run is None and config.data_dir is None and config.dataset is None:
        raise ValueError(f'{subject.name} is no run folder, so say which images: --data-dir FOLDER or --dataset NAME')
    cache = open_cache(config)
    source = load_validation(config, cache) if split == 'val' else load_sources(config, cache)['train']
    outputs, classes, _ = match_classes(subject.network, source.classes)
    return Renumbered(source, outputs, classes)


def show(
    source: Source,
    config: Config,
    input_format: InputFormat,
    device: torch.device,
    indices: Sequence[int] | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Read images, a batch at a time, as a network expects them; memory does not depend on how many there are.

    Args:
        source: The images.
        config: Says how they are read, and what to do about those that cannot be.
        input_format: What the network expects.
        device: Where the network is.
        indices: Which of them, in this order (None: all).

    Yields:
        Images (N, 3, H, W), their targets (N,) and indices (N,).

    Raises:
        ValueError: One could not be read, and --bad-images of the run does not say skip.
    """
    images = Images(source, input_format.eval_transform(), config.seed, choose_task(False, len(source.classes)))
    normalize = Normalize(input_format.mean, input_format.std, torch.channels_last).to(device)
    keys = [(0, index) for index in (range(len(images)) if indices is None else indices)]
    for pixels, targets, numbers in create_loader(config, images, keys):
        is_whole = is_readable(targets)
        if config.bad_images == 'stop' and not is_whole.all():
            names = [source.name(index) for index in numbers[~is_whole].tolist()]
            raise ValueError(f'cannot read {", ".join(names[:5])}: repair or remove it')
        pixels, targets, numbers = pixels[is_whole], targets[is_whole], numbers[is_whole]
        if len(targets):
            yield normalize(pixels.to(device)), targets.to(device), numbers
