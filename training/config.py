"""The training configuration: every option of `train.py`, in one frozen dataclass of plain data."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from timm.optim import list_optimizers

DIGITS = 'digits'
ELPV = 'elpv'

# Of --checkpoint-every: a number, s if it counts seconds; or epoch.
CHECKPOINT_EVERY = re.compile(r'0*([1-9]\d*)(s?)|epoch')

# What may differ between a run and its continuation: where things lie, how long it lasts, how many hands do the work.
# The data may have moved: the fingerprint in run.json tells whether it is still the same data.
# How an update is split into batches is free as well; its checkpoint tells how many images it has in all.
FREE_ON_RESUME = frozenset(
    {'data_dir', 'output', 'experiment', 'resume', 'epochs', 'eval_every', 'workers', 'threads'}
    | {'batch_size', 'grad_accum_steps', 'bad_images', 'nonfinite', 'checkpoint_every', 'keep_checkpoints'}
    | {'allow_changed_data', 'allow_changed_batch'}
)


@dataclass(frozen=True)
class Config:
    """Options of one training run; the defaults are the recipe of Growing a Brain (2017) where it states one."""

    # Data
    data_dir: str | None = None
    """Folder with one folder a split and in it one folder a class: DIR/train/CLASS/*.jpg, DIR/val/CLASS/*.jpg."""
    dataset: str | None = None
    """digits (5,000 handwritten digits), elpv (solar cells), or a timm reader such as torch/cifar10 or hfds/NAME.
    With neither this nor --data-dir: digits."""
    train_split: str = 'train'
    """Folder, or the reader's name, of the training images."""
    val_split: str = 'val'
    """Folder, or the reader's name, of the images that measure."""
    labels_per_class: int | None = None
    """Train on this many images of each class, chosen by --seed (None: on all of them)."""
    bad_images: Literal['stop', 'skip'] = 'stop'
    """At an unreadable image: stop with its name, or skip it and list it in the run folder's bad_images.txt."""
    img_size: int | None = None
    """Side of the network's input in pixels (None: what the model was pretrained at, 64 for the digits)."""
    hflip: float | None = None
    """Probability of a horizontal flip in training (None: 0.5, and 0 for the digits)."""

    # Model
    model: str = 'tf_efficientnet_lite0_mwa512'
    """Any of timm's names or timm_devnet's grown ones."""
    pretrained: bool = True
    """Start from the base's pretrained weights."""
    pretrained_path: str | None = None
    """File with the weights to start from, of the base or of a grown network, instead of the published ones."""
    num_classes: int | None = None
    """Outputs of the classifier (None: counted from the data)."""
    drop: float | None = None
    """Dropout rate before the classifier (None: the model's own)."""
    scale_init: float | Literal['off'] | None = None
    """Where the scale of each reconciled block starts (None: the library's default; off: no reconciliation)."""
    new_init: Literal['random', 'copy'] | None = None
    """How new units start (None: the library's default)."""

    # What learns, and how
    regime: str = 'all'
    """What learns, from least to most: new, then the layers below it by name (see timm_devnet.regimes), up to all."""
    lr: float = 0.01
    """Learning rate of pretrained layers."""
    new_lr_mult: float = 10.0
    """New units, their scales and the classifier learn at this multiple of --lr."""
    opt: str = 'momentum'
    """timm's name of the optimizer; momentum is classical SGD, sgd is Nesterov's."""
    momentum: float = 0.9
    """Momentum, for optimizers that have one."""
    weight_decay: float = 5e-4
    """Weight decay."""
    sched: Literal['step', 'cosine', 'tanh', 'none'] = 'step'
    """How the rate falls over the run; it follows updates, not epochs. none: it does not, after the warm-up."""
    decay_epochs: float | None = None
    """Epochs between two falls of step (None: 40 % of the run, so that it falls twice)."""
    decay_rate: float = 0.1
    """Factor of each fall of step."""
    min_lr: float = 0.0
    """Rate at which cosine and tanh end."""
    warmup_epochs: float = 0.5
    """Epochs in which the rate rises from a hundredth of --lr."""
    epochs: int | None = None
    """Passes over the training images (None: 20, and 3 for the digits)."""
    batch_size: int = 32
    """Images in a batch of each process."""
    grad_accum_steps: int = 1
    """Batches whose gradients make up one update."""
    clip_grad: float | None = None
    """Largest L2 norm of the gradient (None: not clipped)."""
    smoothing: float = 0.0
    """Label smoothing."""
    nonfinite: Literal['stop', 'skip'] = 'stop'
    """At a loss that is not finite: stop before anything is saved, or skip the update; its images are listed in the
    run folder's nonfinite.txt. skip also skips gradients that are not finite; it makes the host wait for the device
    at every update."""
    block_loss: float = 0.0
    """Weight of the mean loss of each block of a grown network answering alone."""

    # Machine
    mixed_precision: Literal['no', 'bf16', 'fp16'] | None = None
    """Precision of the arithmetic (None: what accelerate's launcher says, else fp32)."""
    channels_last: bool = True
    """Keep activations with channels innermost, the faster layout for convolutions."""
    workers: int | None = None
    """Processes that read images, for each training process; 0 reads in the training process itself (None: 4 with a
    GPU, else 0: they would only take the cores that compute)."""
    threads: int | None = None
    """CPU threads of each process (None: all cores, shared among this machine's processes; a launcher's own
    OMP_NUM_THREADS=1 is not taken for your wish, so say 1 here if you mean 1)."""
    seed: int = 42
    """Of the new weights, the order of the images, their crops and flips, dropout and --labels-per-class."""

    # Run
    output: str = 'output/train'
    """Where run folders are made."""
    experiment: str | None = None
    """Name of the run folder (None: MODEL-DATASET)."""
    resume: str | None = None
    """auto: go on with the newest run of this name, if there is one. Or the run folder to go on with."""
    allow_changed_data: bool = False
    """Let a resumed run go on with other images of the same classes than it began with."""
    allow_changed_batch: bool = False
    """Let a resumed run go on with more or fewer images in an update than it began with."""
    checkpoint_every: str = '600s'
    """Save inside epochs, after so many updates (500) or seconds (600s); epoch: only at the end of each, where it is
    saved in any case."""
    keep_checkpoints: int = 2
    """The newest so many checkpoints remain; an older one is used when a newer one is broken."""
    eval_every: int = 1
    """Epochs from one evaluation to the next; the last epoch is always evaluated."""

    def resolved(self) -> Config:
        """Fill in what depends on the data set, so that the saved configuration says what was really done."""
        dataset = self.dataset if self.dataset or self.data_dir else DIGITS
        is_digits = dataset == DIGITS
        # The digits have 28 pixels a side, so 224 would only cost time; and a mirrored digit is no digit.
        return dataclasses.replace(
            self,
            dataset=dataset,
            img_size=self.img_size or (64 if is_digits else None),
            epochs=self.epochs if self.epochs is not None else (3 if is_digits else 20),
            hflip=self.hflip if self.hflip is not None else (0.0 if is_digits else 0.5),
        )

    def validate(self) -> None:
        """Refuse values that no run can have.

        Raises:
            ValueError: Names the option, the value given and the values allowed.
        """
        at_least_one = 'batch_size grad_accum_steps eval_every epochs img_size labels_per_class threads num_classes'
        for name in (*at_least_one.split(), 'keep_checkpoints'):
            self._require(name, lambda value: value >= 1, 'at least 1')
        for name in ('lr', 'new_lr_mult', 'decay_rate', 'decay_epochs', 'clip_grad'):
            self._require(name, lambda value: value > 0, 'above 0')
        for name in ('weight_decay', 'min_lr', 'warmup_epochs', 'block_loss', 'workers', 'seed'):
            self._require(name, lambda value: value >= 0, 'at least 0')
        for name in ('momentum', 'smoothing', 'drop'):
            self._require(name, lambda value: 0 <= value < 1, 'at least 0 and below 1')
        self._require('checkpoint_every', CHECKPOINT_EVERY.fullmatch, 'updates (500), seconds (600s), or epoch')
        self._require('hflip', lambda value: 0 <= value <= 1, 'between 0 and 1')
        self._require('scale_init', lambda value: value == 'off' or value > 0, 'above 0, or off')
        if self.dataset in (DIGITS, ELPV) and self.data_dir is not None:
            raise ValueError(f'--dataset {self.dataset} brings its own images: leave out --data-dir {self.data_dir}')
        if self.pretrained_path is not None and not self.pretrained:
            raise ValueError('--pretrained-path gives weights and --no-pretrained refuses them: leave out one of them')
        if self.opt not in list_optimizers():
            known = [str(name) for name in list_optimizers()]
            near = difflib.get_close_matches(self.opt, known) or ['momentum', 'sgd', 'adamw']
            raise ValueError(f'--opt {self.opt} is not an optimizer of timm; near it: {", ".join(near)}')

    def _require(self, name: str, holds: Any, allowed: str) -> None:
        value = getattr(self, name)
        if value is not None and not holds(value):
            raise ValueError(f'--{name.replace("_", "-")} {value} is out of range: it must be {allowed}')

    def to_json(self) -> str:
        """Write every option as JSON; `from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Read what `to_json` wrote.

        Raises:
            ValueError: An option is not known here.
        """
        values = json.loads(text)
        unknown = sorted(values.keys() - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f'unknown options {unknown}: this configuration was written by another version')
        return cls(**values)

    def refuse_changes(self, saved: Config) -> None:
        """Refuse to go on with a run under other options than it was started with.

        Raises:
            ValueError: Names each option that differs, its saved and its new value.
        """
        before, now = dataclasses.asdict(saved), dataclasses.asdict(self)
        changed = [name for name in now if name not in FREE_ON_RESUME and now[name] != before[name]]
        if changed:
            changes = ', '.join(f'--{name.replace("_", "-")} was {before[name]}, is {now[name]}' for name in changed)
            raise ValueError(f'a resumed run keeps its options ({changes}): give the old ones, or start a new run')
