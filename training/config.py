"""The training configuration: every option of `train.py`, in one frozen dataclass of plain data."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from accelerate.utils import DynamoBackend
from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform
from timm.optim import get_optimizer_info, list_optimizers

import timm_devnet
from timm_devnet.grown import ANY
from timm_devnet.models.devnet import GROWTH

# torch's own names.
MemoryFormat = Literal['channels_last', 'contiguous_format']
DIGITS = 'digits'
ELPV = 'elpv'
# How timm names a folder in its layout.
LOCAL = 'local-dir:'

# Of --checkpoint-every: a number, s if it counts seconds; or epoch.
CHECKPOINT_EVERY = re.compile(r'0*([1-9]\d*)(s?)|epoch')

# What may differ between a run and its continuation: where things lie, how long it lasts, how many hands do the work.
# The data may have moved: the fingerprint in run.json tells whether it is still the same data.
# The image cache does not change what is computed.
# How an update is split into batches is free as well; its checkpoint tells how many images it has in all.
FREE_ON_RESUME = frozenset(
    {
        *('data_dir', 'labels', 'output', 'experiment', 'resume', 'epochs', 'eval_every', 'workers', 'threads', 'tune'),
        *('tracker', 'tracker_project', 'report', 'eval_only', 'head', 'json', 'cache_images', 'cache_dir'),
        *('batch_size', 'grad_accum_steps', 'bad_images', 'nonfinite', 'checkpoint_every', 'keep_checkpoints'),
        *('allow_changed_data', 'allow_changed_batch'),
    }
)


@dataclass(frozen=True)
class Config:
    """Options of one training run; the defaults are the recipe of Growing a Brain (2017) where it states one."""

    # Data
    data_dir: str | None = None
    """Folder with one folder a split and in it one folder a class: DIR/train/CLASS/*.jpg, DIR/val/CLASS/*.jpg; or a tar
    file with that in it; or where the archives of a named --dataset were unpacked."""
    dataset: str | None = None
    """digits (5,000 handwritten digits), elpv (solar cells), a set of the paper (sun397, mit67, flowers102, cub200,
    stanford40), or a reader of timm: torch/NAME, hfds/NAME, hfids/NAME, wds/NAME, tfds/NAME. With neither this nor
    --data-dir: digits."""
    train_split: str = 'train'
    """Folder, or the reader's name, of the training images."""
    val_split: str = 'val'
    """Folder, or the reader's name, of the images that measure; or a number such as 0.1: that part of the training
    images of each class, always the same ones."""
    multi_label: bool = False
    """Images show any number of classes, or none: train by binary cross-entropy and measure mean average precision. For
    a folder with a list of labels (see --labels), hfds/ and hfids/."""
    labels: str | None = None
    """With --multi-label: file in the folder of each split with a line IMAGE,LABEL,LABEL,... for each image (None:
    labels.csv)."""
    class_map: str | None = None
    """File that numbers the classes, as in timm: .txt with a class a line, or .pkl with a dictionary."""
    input_key: str | None = None
    """Column of the images in hfds/, hfids/ and tfds/; file endings of the images in wds/ and in folders, such as
    '.jpg;.png'."""
    target_key: str | None = None
    """Column of the labels in hfds/, hfids/ and tfds/; field of the json files in wds/."""
    balanced: bool = False
    """Train on every class equally often, however many images it has."""
    labels_per_class: int | None = None
    """Train on this many images of each class, chosen by --seed (None: on all of them)."""
    label_share: float | None = None
    """Train on this part of the images of each class, at least one of each, chosen by --seed (None: on all of them)."""
    bad_images: Literal['stop', 'skip'] = 'stop'
    """At an unreadable image: stop with its name, or skip it and list it in the run folder's bad_images.txt."""
    cache_images: bool = False
    """Decode and resize every image once, and keep it in a file that all processes and later runs share."""
    cache_dir: str | None = None
    """Folder of those files (None: timm_devnet/images in $XDG_CACHE_HOME or ~/.cache)."""
    img_size: int | None = None
    """Side of the network's input in pixels (None: what the model was pretrained at, 64 for the digits)."""

    # Augmentation of training images
    no_aug: bool = False
    """Transform training images exactly as in evaluation: nothing about them is random."""
    train_crop_mode: Literal['squash', 'rrc', 'rkrc', 'rkrr'] = 'squash'
    """squash: both sides resized to 8/7 of --img-size, then a random crop, as in the paper. timm's: rrc crops a random
    part and resizes it; rkrc and rkrr resize by a random factor, then crop or pad in the middle or at random."""
    scale: tuple[float, float] | None = None
    """Least and greatest part of the area that timm's crop modes keep (None: 0.08 1 for rrc, 0.8 1 for the others)."""
    ratio: tuple[float, float] | None = None
    """Least and greatest change of the aspect ratio of timm's crop modes (None: 3/4 4/3 for rrc, 0.9 1/0.9 else)."""
    hflip: float | None = None
    """Probability of a horizontal flip (None: 0.5, and 0 for the digits and with --no-aug)."""
    vflip: float = 0.0
    """Probability of a vertical flip."""
    color_jitter: float = 0.0
    """Greatest change of brightness, contrast and saturation, as a part of what they are."""
    aa: str | None = None
    """timm's AutoAugment, RandAugment, AugMix or 3-Augment by name, such as rand-m9-mstd0.5, original or 3a."""
    reprob: float = 0.0
    """Probability that a rectangle of an image is erased."""
    remode: Literal['pixel', 'const', 'rand'] = 'pixel'
    """What is put where --reprob erases: noise, the mean colour, or one random colour."""
    recount: int = 1
    """Greatest number of rectangles erased in an image."""
    mixup: float = 0.0
    """Alpha of mixup, which blends two images and their targets (0: none). Under mixup and cutmix the top-1 of training
    is measured against the greater part of each image, so it is no accuracy; that of validation is."""
    cutmix: float = 0.0
    """Alpha of cutmix, which puts a rectangle of one image into another (0: none)."""
    mixup_prob: float = 1.0
    """Probability of mixup or cutmix."""
    mixup_switch_prob: float = 0.5
    """Probability of cutmix where both are on."""
    mixup_mode: Literal['batch', 'pair', 'elem'] = 'batch'
    """What mixup and cutmix draw anew for: each batch, each pair of images, or each image."""
    mixup_off_epoch: int = 0
    """Epochs after which mixup and cutmix end (0: never)."""

    # Model
    model: str = 'tf_efficientnet_lite0_mwa512'
    """Any of timm's names or timm_devnet's grown ones; or the run folder, or a folder in timm's layout, to start
    from."""
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
    freeze_bn_stats: bool = False
    """Old BatchNorms go on normalising by the running statistics that they came with, in training too; their scales and
    shifts learn as --regime says."""
    thaw: str | None = None
    """Regimes that follow --regime and the number of epochs after which each does: fc7-new@5,all@10."""
    grow: tuple[str, ...] = ()
    """Growths: wa512 before the first epoch, wa256@3 after three of them. What is added counts as new until the run
    ends."""
    keep_heads: bool = False
    """Keep the classifier that --model brings, and those that it keeps already, each for its task, beside a new one;
    measure every earlier task whose images can be found, before the run and at its end."""
    lwf: float = 0.0
    """With --keep-heads: weight of learning without forgetting, which holds what earlier heads say of the new images to
    what the network that the run starts from says (0: off)."""
    lora: int | None = None
    """LoRA: the old layers that --regime trains learn through adapters of this rank beside them and are frozen
    themselves (None: they learn themselves). For convolutions without groups and linear layers; needs the package
    peft."""
    lora_alpha: float | None = None
    """What adapters give is multiplied by this over their rank (None: by 1)."""
    lr: float = 0.01
    """Learning rate of pretrained layers, or of the adapters beside them."""
    new_lr_mult: float = 10.0
    """New units, their scales and the classifier learn at this multiple of --lr."""
    layer_decay: float | None = None
    """Factor of the rate from one pretrained layer to the next below, as timm tells layers apart (None: one rate)."""
    opt: str = 'momentum'
    """timm's name of the optimizer; momentum is classical SGD, sgd is Nesterov's."""
    momentum: float = 0.9
    """Momentum, for optimizers that have one."""
    opt_eps: float | None = None
    """Epsilon of the optimizer (None: its own)."""
    opt_betas: tuple[float, ...] | None = None
    """Betas of the optimizer (None: its own)."""
    weight_decay: float = 5e-4
    """Weight decay."""
    l2_sp: float | None = None
    """L2-SP: pull all pretrained parameters that learn to where they started, with this weight, and do not decay them;
    --weight-decay is for what is new (None: it is for both)."""
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
    block_loss: float | None = None
    """Weight of the mean loss of each block of a grown network answering alone (None: 1 where new units on top read
    lower levels, as in mwa and xwa, else 0)."""
    model_ema: bool = False
    """Keep a moving average of the weights; it is what is evaluated, and what best/ and last/ hold."""
    model_ema_decay: float = 0.9998
    """Part of the average that each update keeps: the average spans about 1 / (1 - decay) updates."""
    model_ema_warmup: bool = False
    """Let that part rise to --model-ema-decay from 0, so that the average soon forgets the first weights."""

    # Machine
    mixed_precision: Literal['no', 'bf16', 'fp16'] | None = None
    """Precision of the arithmetic (None: what accelerate's launcher says, else fp32)."""
    memory_format: MemoryFormat | None = None
    """How activations lie in memory; channels_last is often the faster for convolutions (None: see --tune)."""
    tune: bool = True
    """Without --memory-format, measure which is faster here, once for each network and machine; else: channels_last."""
    torchcompile: str | None = None
    """Compile the network by this backend of torch.compile, as a rule inductor; pays where many epochs follow."""
    grad_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them, where the network offers it."""
    cache_features: int | None = None
    """With a regime that freezes lower layers: compute their outputs once, for so many augmented views of every image,
    and train from those; epochs take the views in turn."""
    cache_dtype: Literal['fp32', 'bf16'] | None = None
    """How cached features are kept (None: as computed)."""
    workers: int | None = None
    """Processes that read images, for each training process; 0 reads in the training process itself (None: 4 with a
    GPU, else 0: they would only take the cores that compute)."""
    threads: int | None = None
    """CPU threads of each process (None: all cores, shared among this machine's processes; a launcher's own
    OMP_NUM_THREADS=1 is not taken for your wish, so say 1 here if you mean 1)."""
    seed: int = 42
    """Of the new weights, the order of the images, their augmentation, dropout, and which images --labels-per-class or
    --label-share choose."""

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
    """Save inside epochs, after so many updates (500) or seconds (600s); epoch: only at the end of each. Ends of epochs
    are saved in any case; but with seconds, saving them takes no more than a twentieth of the time, so not every end of
    epochs that are very short."""
    keep_checkpoints: int = 2
    """The newest so many checkpoints remain; an older one is used when a newer one is broken."""
    eval_every: int = 1
    """Epochs from one evaluation to the next; the last epoch is always evaluated."""
    tracker: str | None = None
    """tensorboard, trackio, wandb or another that accelerate knows, several with commas between, or none (None:
    tensorboard where it is installed). metrics.csv is always written."""
    tracker_project: str = 'timm_devnet'
    """Name under which the tracker keeps this run and those to compare it with."""
    report: bool = True
    """At the end, evaluate the best weights once more and write report.html and predictions.csv."""
    eval_only: bool = False
    """Train nothing: measure --model (a run folder, local-dir:FOLDER, hf-hub:ID or a name) on the validation images."""
    head: str | None = None
    """With --eval-only: measure by the head of this name that the network keeps, on the images of its task."""
    json: bool = False
    """Print the result as one JSON object on stdout, and everything else on stderr."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, list):  # JSON knows no tuples
                object.__setattr__(self, name, tuple(value))

    def resolved(self) -> Config:
        """Fill in what depends on the data set, so that the saved configuration says what was really done."""
        dataset = self.dataset if self.dataset or self.data_dir else DIGITS
        is_digits = dataset == DIGITS
        model = named_folder(self.model)
        # The digits have 28 pixels a side, so 224 would only cost time; and a mirrored digit is no digit.
        return dataclasses.replace(
            self,
            model=model,
            dataset=dataset,
            img_size=self.img_size or (64 if is_digits else None),
            epochs=self.epochs if self.epochs is not None else (3 if is_digits else 20),
            hflip=self.hflip if self.hflip is not None else (0.0 if is_digits or self.no_aug else 0.5),
            block_loss=self.block_loss if self.block_loss is not None else measured_block_loss(model, self.grow),
        )

    def validate(self) -> None:
        """Refuse values that no run can have.

        Raises:
            ValueError: Names the option, the value given and the values allowed.
        """
        at_least_one = (
            'cache_features batch_size grad_accum_steps eval_every epochs img_size labels_per_class threads num_classes'
        )
        for name in (*at_least_one.split(), 'recount', 'keep_checkpoints', 'lora'):
            self._require(name, lambda value: value >= 1, 'at least 1')
        for name in ('lr', 'new_lr_mult', 'decay_rate', 'decay_epochs', 'clip_grad', 'lora_alpha'):
            self._require(name, lambda value: value > 0, 'above 0')
        at_least_zero = (
            'weight_decay l2_sp min_lr warmup_epochs block_loss workers seed color_jitter mixup cutmix opt_eps'
        )
        for name in (*at_least_zero.split(), 'mixup_off_epoch', 'lwf'):
            self._require(name, lambda value: value >= 0, 'at least 0')
        for name in ('momentum', 'smoothing', 'drop', 'model_ema_decay'):
            self._require(name, lambda value: 0 <= value < 1, 'at least 0 and below 1')
        for name in ('hflip', 'vflip', 'reprob', 'mixup_prob', 'mixup_switch_prob'):
            self._require(name, lambda value: 0 <= value <= 1, 'between 0 and 1')
        for name in ('scale', 'ratio'):
            self._require(name, lambda value: 0 < value[0] <= value[1], 'two numbers above 0, the lesser first')
        for name in ('layer_decay', 'label_share'):
            self._require(name, lambda value: 0 < value <= 1, 'above 0 and at most 1')
        self._require('checkpoint_every', CHECKPOINT_EVERY.fullmatch, 'updates (500), seconds (600s), or epoch')
        self._require('scale_init', lambda value: value == 'off' or value > 0, 'above 0, or off')
        if self.val_share is not None and not 0 < self.val_share < 1:
            raise ValueError(f'--val-split {self.val_split} is out of range: a number must be above 0 and below 1')
        if self.dataset in (DIGITS, ELPV) and self.data_dir is not None:
            raise ValueError(f'--dataset {self.dataset} brings its own images: leave out --data-dir {self.data_dir}')
        if self.pretrained_path is not None and not self.pretrained:
            raise ValueError('--pretrained-path gives weights and --no-pretrained refuses them: leave out one of them')
        backends = [backend.value.lower() for backend in DynamoBackend]
        if self.torchcompile is not None and self.torchcompile not in backends:
            raise ValueError(f'--torchcompile {self.torchcompile} is not known; it is one of {", ".join(backends)}')
        if self.cache_dtype is not None and self.cache_features is None:
            raise ValueError(f'--cache-dtype {self.cache_dtype} needs --cache-features')
        varying = [name for name in ('mixup', 'cutmix', 'reprob', 'thaw', 'model_ema') if getattr(self, name)]
        varying += ['grow'] if any(epoch for _, epoch in self.growths()) else []
        if self.cache_features and varying:
            flags = ', '.join(f'--{name.replace("_", "-")}' for name in varying)
            raise ValueError(f'--cache-features keeps what frozen layers give for whole images: leave out {flags}')
        if self.cache_features and self.regime == 'all':
            raise ValueError('--cache-features keeps what frozen layers give, and in regime all none is frozen')
        if self.opt not in list_optimizers():
            known = [str(name) for name in list_optimizers()]
            near = difflib.get_close_matches(self.opt, known) or ['momentum', 'sgd', 'adamw']
            raise ValueError(f'--opt {self.opt} is not an optimizer of timm; near it: {", ".join(near)}')
        self._validate_task()
        self._validate_heads()
        self._validate_old_layers()
        self._validate_optimizer()
        self._validate_augmentation()
        self._validate_thaws()
        self._validate_growths()

    def _validate_task(self) -> None:
        """Refuse what has no meaning where images have several labels, or one."""
        if self.labels is not None and (not self.multi_label or self.dataset):
            raise ValueError(
                f'--labels {self.labels} is the list of labels of a folder: give --multi-label and --data-dir, or '
                'leave it out'
            )
        if self.labels_per_class is not None and self.label_share is not None:
            raise ValueError(
                f'--labels-per-class {self.labels_per_class} and --label-share {self.label_share} both choose images: '
                'give one of them'
            )
        if not self.multi_label:
            return
        if self.dataset and self.dataset.partition('/')[0].lower() not in ('hfds', 'hfids'):
            raise ValueError(
                f'--multi-label: --dataset {self.dataset} gives each image one class; give --data-dir FOLDER with a '
                'list of labels, hfds/NAME or hfids/NAME'
            )
        given = [name for name in ('balanced', 'labels_per_class', 'label_share') if getattr(self, name)]
        if given:
            flags = ', '.join(f'--{name.replace("_", "-")}' for name in given)
            raise ValueError(f'--multi-label: images belong to no single class, so leave out {flags}')

    def _validate_heads(self) -> None:
        """Refuse what has no effect on the heads of earlier tasks, or cannot have it."""
        if self.head is not None and not self.eval_only:
            raise ValueError(f'--head {self.head} says by which head --eval-only measures: leave it out')
        if self.keep_heads and not self.pretrained:
            raise ValueError('--keep-heads keeps what a network has learnt: leave out --no-pretrained')
        if not self.lwf:
            return
        if not self.keep_heads:
            raise ValueError(f'--lwf {self.lwf} holds the answers of kept heads: give --keep-heads')
        if self.cache_features:
            raise ValueError(f'--lwf {self.lwf} asks two networks about every image: leave out --cache-features')
        if self.regime == 'new' and not self.thaw:
            raise ValueError(f'--lwf {self.lwf}: in regime new nothing learns that earlier heads read: leave it out')

    def _validate_old_layers(self) -> None:
        """Refuse what is said of old layers that do not learn, or learn in another way."""
        if self.freeze_bn_stats and not self.pretrained:
            raise ValueError('--freeze-bn-stats keeps what BatchNorms have counted: leave out --no-pretrained')
        if self.l2_sp is not None and not self.pretrained:
            raise ValueError(
                f'--l2-sp {self.l2_sp} pulls to pretrained weights and --no-pretrained leaves none: drop one'
            )
        if self.l2_sp is not None and self.regime == 'new' and not self.thaw:
            raise ValueError(f'--l2-sp {self.l2_sp}: in regime new no pretrained layer learns: leave it out')
        if self.lora_alpha is not None and self.lora is None:
            raise ValueError(f'--lora-alpha {self.lora_alpha} needs --lora')
        if self.lora is None:
            return
        if self.regime == 'new':
            raise ValueError(
                f'--lora {self.lora}: in regime new no old layer learns: give the regime of those that shall have '
                'adapters, such as all'
            )
        others = ('thaw', 'grow', 'keep_heads', 'layer_decay', 'l2_sp', 'freeze_bn_stats', 'cache_features')
        given = [f'--{name.replace("_", "-")}' for name in others if getattr(self, name) not in (None, (), False)]
        if given:
            raise ValueError(
                f'--lora {self.lora} freezes old layers and puts adapters beside them: leave out {", ".join(given)}'
            )

    def _validate_optimizer(self) -> None:
        """Refuse arguments that the optimizer does not take."""
        info = get_optimizer_info(self.opt)
        if self.opt_eps is not None and not info.has_eps:
            raise ValueError(f'--opt {self.opt} has no epsilon: leave out --opt-eps {self.opt_eps}')
        betas = info.num_betas if info.has_betas else 0
        if self.opt_betas is not None and len(self.opt_betas) != betas:
            raise ValueError(f'--opt {self.opt} has {betas} betas, not {len(self.opt_betas)}: correct --opt-betas')

    def _validate_augmentation(self) -> None:
        """Refuse augmentations that would be left out without a word."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        randomness = ('vflip', 'color_jitter', 'aa', 'reprob', 'mixup', 'cutmix', 'train_crop_mode')
        given = [name for name in randomness if getattr(self, name) != defaults[name]]
        if self.hflip:
            given.insert(0, 'hflip')
        if self.no_aug and given:
            flags = ', '.join(f'--{name.replace("_", "-")}' for name in given)
            raise ValueError(f'--no-aug leaves training images as in evaluation: leave out {flags}')
        if self.train_crop_mode == 'squash' and (self.scale or self.ratio):
            raise ValueError('--scale and --ratio are for crop modes of timm: give --train-crop-mode rrc, or leave out')
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError(f'--mixup and --cutmix mix pairs of images: --batch-size {self.batch_size} must be even')
        if self.aa is not None:
            if self.color_jitter and '3a' not in self.aa:
                raise ValueError(f'timm jitters no colours beside --aa {self.aa}: leave out --color-jitter')
            check_auto_augment(self.aa)

    def _validate_thaws(self) -> None:
        """Refuse a --thaw that never happens; its regimes are checked when the network is known."""
        epochs = [epoch for _, epoch in self.thaws()]
        if any(later <= earlier for earlier, later in itertools.pairwise(epochs)):
            raise ValueError(f'--thaw {self.thaw} must name epochs in rising order')
        if self.epochs is not None and epochs and not 1 <= min(epochs) <= max(epochs) < self.epochs:
            raise ValueError(
                f'--thaw {self.thaw} is out of range: epochs must be at least 1 and below --epochs {self.epochs}'
            )

    def thaws(self) -> list[tuple[str, int]]:
        """Read --thaw.

        Returns:
            Regimes, and the number of finished epochs from which on each holds.

        Raises:
            ValueError: It is not of the form REGIME@EPOCHS,REGIME@EPOCHS.
        """
        parts = [re.fullmatch(r'([^@]+)@(\d+)', part.strip()) for part in self.thaw.split(',')] if self.thaw else []
        if not all(parts):
            raise ValueError(f'--thaw {self.thaw} is not understood: write REGIME@EPOCHS, as in fc7-new@5,all@10')
        return [(part[1], int(part[2])) for part in parts if part]

    def _validate_growths(self) -> None:
        """Refuse a --grow that never happens; its growths are checked when the network is known."""
        epochs, given = [epoch for _, epoch in self.growths()], ' '.join(self.grow)
        if any(later < earlier or later == earlier > 0 for earlier, later in itertools.pairwise(epochs)):
            raise ValueError(
                f'--grow {given} must name epochs in rising order, and first what comes before all of them'
            )
        epochs = [int(growth.rpartition('@')[2]) for growth in self.grow if '@' in growth]
        if self.epochs is not None and epochs and not 1 <= min(epochs) <= max(epochs) < self.epochs:
            raise ValueError(
                f'--grow {given} is out of range: epochs must be at least 1 and below --epochs {self.epochs}'
            )

    def growths(self) -> list[tuple[str, int]]:
        """Read --grow.

        Returns:
            Growths, and the number of finished epochs after which each comes; 0 for those before the first.

        Raises:
            ValueError: It is not of the form GROWTH GROWTH@EPOCHS GROWTH@EPOCHS.
        """
        parts = [re.fullmatch(r'([^@]+)(?:@(\d+))?', part) for part in self.grow]
        if not all(parts):
            raise ValueError(
                f'--grow {" ".join(self.grow)} is not understood: write GROWTH, or GROWTH@EPOCHS as in wa512@3'
            )
        return [(part[1], int(part[2] or 0)) for part in parts if part]

    def first_growths(self) -> list[str]:
        """List the growths that come before the first epoch."""
        return [growth for growth, epoch in self.growths() if epoch == 0]

    @property
    def val_share(self) -> float | None:
        """Part of the training images that measures, if --val-split is a number and not a name."""
        is_number = re.fullmatch(r'-?\d*\.\d+|-?\d+\.', self.val_split) is not None
        return float(self.val_split) if is_number else None

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


def named_folder(model: str) -> str:
    """Name a run folder, or a folder in timm's layout, as timm does; other names pass unchanged.

    Args:
        model: A name, or a path. Of a run folder it means best/.
    """
    for folder in (Path(model) / 'best', Path(model)):
        if (folder / 'config.json').is_file():
            return f'{LOCAL}{folder}'
    return model


def measured_block_loss(model: str, grow: Sequence[str] = ()) -> float:
    """Tell the weight of the block loss that measured best (docs/growth.md).

    Args:
        model: Name of the network.
        grow: Growths of --grow; only those before the first epoch count.

    Example:
        >>> [measured_block_loss(f'tf_efficientnet_lite0{growth}') for growth in ('_mwa512', '_wa512', '_skip', '')]
        [1.0, 0.0, 0.0, 0.0]
        >>> measured_block_loss('tf_efficientnet_lite0', ('mwa512',))
        1.0
    """
    for word in [*growths_of(model), *(growth for growth in grow if '@' not in growth)]:
        with contextlib.suppress(ValueError):  # a part of the base's name
            blocks = itertools.chain(*timm_devnet.parse_growth(word).steps)
            if any(block.units and block.level == 0 and min(block.reads) > 1 for block in blocks):
                return 1.0
    return 0.0


def growths_of(model: str) -> list[str]:
    """List the words that may name a network's growths: its configuration's where there is one, else its name's."""
    if model.startswith(LOCAL):
        with contextlib.suppress(OSError, ValueError):  # what is wrong with it is told when the network is built
            arguments = json.loads((Path(model.removeprefix(LOCAL)) / 'config.json').read_text()).get('model_args', {})
            return [arguments['growth']] if 'growth' in arguments else []
    name = model.partition('.')[0]
    return [GROWTH] if name == ANY else name.split('_')


def check_auto_augment(name: str) -> None:
    """Refuse a name that timm does not know; sections without a number it would leave out without a word.

    Raises:
        ValueError: Gives examples of names.
    """
    create = {'rand': rand_augment_transform, 'augmix': augment_and_mix_transform}
    first, *sections = name.split('-')
    try:
        create.get(first, auto_augment_transform)(name, {})
        is_known = all(re.fullmatch(r't(weights|3aw?)|(?!t)[a-z]+[\d.]+', section) for section in sections)
    except (AssertionError, ValueError):
        is_known = False
    if not is_known:
        raise ValueError(f'--aa {name} is none of timm: it has rand-m9-mstd0.5, augmix-m5-w4-d2, original, v0, 3a, ...')
