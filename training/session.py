"""What one process holds while it trains: how it is made, taken up again, looked at and saved."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import set_seed
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from . import devices, networks, sharding, trackers
from .augmentation import BatchAugmentation
from .checkpoints import CheckpointPace, RunState, load_checkpoint, save_checkpoint
from .config import Config
from .data import InputFormat, Normalize, create_images, create_loaders
from .distillation import Teacher
from .earlier import EarlierTask
from .faults import Fault, shared_writing
from .features import Features
from .grow import Growing, check_growths
from .image_cache import open_cache
from .keep_heads import Kept, measure_before
from .l2_sp import StartingPoint
from .lora import create_adapters, merged_weights
from .metrics import BadImages, MeanLoss, kept_answers, objective
from .nonfinite import LossWatch
from .order import EpochOrder, create_order
from .progress import Progress
from .run_folder import RunFolder, describe_run
from .schedule import create_groups, create_optimizer, create_schedule
from .sources import Source, load_sources
from .start import begin_network
from .tasks import Task, choose_task
from .thaw import Thawing, check_thaws
from .tuning import LAYOUTS, choose_memory_format


@dataclass
class Session:
    """What one process holds while it trains."""

    config: Config
    accelerator: Accelerator
    sources: dict[str, Source]
    task: Task
    input_format: InputFormat
    network: nn.Module
    """As timm made it."""
    base: dict[str, Any]
    """What run.json says of the network's beginning; empty where that is not known."""
    model: nn.Module
    """The same as prepared: perhaps wrapped by `BlockAnswers` or `HeadAnswers`, and DDP."""
    optimizer: AcceleratedOptimizer
    schedule: Scheduler
    loaders: dict[str, DataLoader]
    order: EpochOrder
    epochs: int
    bad_images: dict[str, BadImages]
    tally: MeanLoss
    progress: Progress
    normalize: Normalize
    features: Features | None
    """What the frozen part gives, if it is computed once only."""
    augment: BatchAugmentation
    thawing: Thawing
    growing: Growing
    ema: ModelEmaV3 | None
    """Moving average of the network's weights."""
    start: StartingPoint | None
    """What --l2-sp pulls old layers to."""
    curves: trackers.Curves
    watch: LossWatch
    pace: CheckpointPace
    kept: Kept | None
    """What --keep-heads keeps."""
    earlier: list[EarlierTask]
    """The earlier tasks, measured before the run."""
    teacher: Teacher | None
    """What the earlier heads are held to by --lwf."""

    @property
    def evaluated(self) -> nn.Module:
        """What is measured and kept: the network as timm made it, or its moving average."""
        return self.network if self.ema is None else self.ema.module

    @property
    def state(self) -> RunState:
        """What a checkpoint holds."""
        further = {'ema': self.ema, 'start': self.start}
        kept = {name: stateful for name, stateful in further.items() if stateful is not None}
        return RunState(self.network, self.thawing, self.order, self.progress, self.tally, kept)

    def inputs(self, batch: Any) -> tuple[Tensor, ...]:
        """Make what `model` reads of what a loader gives: pixels (N, H, W, 3), or a list of features."""
        if self.features is None:
            return (self.normalize(batch),)
        return self.features.arrange(batch)

    @property
    def step(self) -> int:
        """Updates made since the run began."""
        return self.progress.epoch * self.order.updates + self.progress.update


def prepare(config: Config, accelerator: Accelerator) -> Session:
    """Make data, network, optimizer and schedule, and hand them to accelerate."""
    sources = load_sources(config, open_cache(config, accelerator.print))
    set_seed(config.seed)
    num_classes = networks.count_classes(config, sources['train'].classes)
    task = choose_task(config.multi_label, num_classes)
    network, origin = networks.build_network(config, None if config.keep_heads else num_classes)
    base = {'base': networks.describe_base(config, network, origin)} if accelerator.is_main_process else {}
    kept = begin_network(config, network, sources['train'].classes, num_classes)
    input_format = networks.input_format(network, config.img_size)
    networks.check_img_size(network, input_format.img_size)
    check_thaws(config, network, accelerator)
    check_growths(config, network, accelerator)
    groups = create_groups(config, network, config.regime)
    if config.lora is not None:
        groups = create_adapters(config, network, groups, input_format.img_size)
    learner = networks.wrap_answers(config, network)
    config = dataclasses.replace(
        config, memory_format=choose_memory_format(config, learner, input_format.img_size, accelerator)
    )
    assert config.memory_format is not None
    memory_format = LAYOUTS[config.memory_format]
    network = network.to(accelerator.device).to(memory_format=sharding.weights_format(accelerator, memory_format))
    normalize = Normalize(input_format.mean, input_format.std, memory_format).to(accelerator.device)
    images = create_images(config, sources, input_format, task)
    order = create_order(config, sources, accelerator.num_processes)
    has_scaler = accelerator.scaler is not None
    optimizer = create_optimizer(config, groups, sharding.is_spread(accelerator), has_scaler)
    accelerator.print(f'{networks.describe(config, network, config.regime)}, weights from {origin}')
    accelerator.print(order.describe(sources, input_format))
    features = None
    if config.cache_features:
        features, learner = Features.create(config, learner, images, order.indices, normalize, accelerator)
    loaders = create_loaders(config, features.views if features else images, order)
    ema = ModelEmaV3(network, config.model_ema_decay, use_warmup=config.model_ema_warmup) if config.model_ema else None
    set_seed(config.seed, device_specific=True)  # from here on each process has its own dropout
    model, prepared_optimizer, loaders['train'], loaders['val'] = accelerator.prepare(
        sharding.autocast(accelerator, learner), optimizer, loaders['train'], loaders['val']
    )
    sharding.check_prepared(accelerator, network, config)
    sharding.share_buffers(accelerator, model)
    assert config.epochs is not None, 'the configuration is resolved'
    session = Session(
        config=config,
        accelerator=accelerator,
        sources=sources,
        task=task,
        input_format=input_format,
        network=network,
        base=base,
        model=model,
        optimizer=prepared_optimizer,
        # Made of what was prepared: DeepSpeed may put an optimizer of its own in the place of ours.
        schedule=create_schedule(config, prepared_optimizer, order.updates),
        loaders=loaders,
        order=order,
        epochs=config.epochs,
        bad_images={split: BadImages(split, source, accelerator.device) for split, source in sources.items()},
        tally=task.training_tally(accelerator.device),
        progress=Progress(),
        normalize=normalize,
        features=features,
        augment=BatchAugmentation(config, num_classes, accelerator.process_index, task),
        thawing=Thawing(config, network, prepared_optimizer),
        growing=Growing(config, network, prepared_optimizer, ema),
        ema=ema,
        start=None if config.l2_sp is None else StartingPoint(config.l2_sp, network, prepared_optimizer),
        curves=trackers.Curves(accelerator, order.update_size),
        watch=LossWatch(network, sources['train'], skips=config.nonfinite == 'skip'),
        pace=CheckpointPace(config.checkpoint_every),
        kept=kept,
        earlier=[],
        teacher=None,
    )
    settle(session)
    return session


def settle(session: Session) -> None:
    """Let several processes add up in the same order from the first update on."""
    device, side = session.accelerator.device, session.input_format.img_size
    pixels = torch.zeros(2, side, side, 3, dtype=torch.uint8, device=device)
    task = session.task
    targets = default_collate([task.encode(task.blank)] * 2).to(device)

    def make_inputs() -> tuple[Tensor, ...]:
        return (session.normalize(pixels),) if session.features is None else session.features(pixels)

    def loss_of(output: Any) -> Tensor:
        kept = kept_answers(output).values()
        return objective(output, targets, 0.0, 1.0, task) + sum(logits.float().square().mean() for logits in kept)

    devices.settle_gradient_buckets(session.accelerator, session.model, make_inputs, loss_of)


def resume(session: Session, folder: RunFolder) -> None:
    """Go on with a run, under the same options and on the same data, from its newest checkpoint."""
    folder.refuse_changes(describe_run(session.config, session.sources, len(session.order.indices)))
    facts = folder.read_run()
    session.base = {name: value for name, value in facts.items() if name in ('base', 'earlier')}  # it began with that
    session.earlier = [EarlierTask.from_dict(task) for task in facts.get('earlier', ())]
    session.progress = load_checkpoint(
        folder.state, session.accelerator, session.state, session.config, lambda epoch: grow(session, epoch)
    )
    if session.growing.passed or session.thawing.passed:
        follow_changes(session, is_bare=session.growing.passed > 0)


def begin(session: Session, folder: RunFolder) -> None:
    """Do what comes before the first epoch of a run that is not resumed: measure its earlier tasks, keep its start."""
    config, accelerator, kept = session.config, session.accelerator, session.kept
    if kept is None:
        return
    with torch.random.fork_rng():  # networks are built
        start = networks.build_network(config, None)[0]
        if config.lwf:
            with shared_writing(accelerator, 'the run has not begun'):
                if accelerator.is_main_process:
                    folder.write_start(start)
        session.earlier = measure_before(config, accelerator, kept, start)
    session.base['earlier'] = [task.to_dict() for task in session.earlier]


def find_teacher(session: Session, folder: RunFolder) -> None:
    """Load what the earlier heads are held to, from the run's own folder: what it started from may have changed."""
    config = session.config
    if config.lwf:
        assert session.kept is not None and config.memory_format is not None
        name, memory_format = session.kept.copied.name, LAYOUTS[config.memory_format]
        with torch.random.fork_rng():  # so that the run's dropout does not know of it
            session.teacher = Teacher(folder.start, name, session.network, session.accelerator, memory_format)


def change(session: Session) -> bool:
    """Let the network grow and thaw as is due after the epochs that are finished; tells whether it has changed."""
    grows = grow(session, session.progress.epoch)
    if not session.thawing.thaw(session.progress.epoch) and not grows:
        return False
    follow_changes(session, is_bare=grows)
    return True


def grow(session: Session, epoch: int) -> bool:
    """Let the network grow by what is due; then it is unwrapped, and must be prepared again."""
    if not session.growing.due(epoch):
        return False
    unwrap(session)
    assert session.config.memory_format is not None
    session.growing.grow(epoch, session.thawing.regime, LAYOUTS[session.config.memory_format])
    return True


def unwrap(session: Session) -> None:
    """Take away what accelerate has put around the network."""
    session.model = session.accelerator.unwrap_model(session.model, keep_fp32_wrapper=False, keep_torch_compile=False)


def follow_changes(session: Session, is_bare: bool) -> None:
    """Let the schedule, and what wraps the network, know of what has grown or thawed.

    Args:
        session: Of this process.
        is_bare: Whether the network is unwrapped.
    """
    accelerator = session.accelerator
    if is_bare or accelerator.num_processes > 1:  # DDP has noted what it averages
        unwrap(session)
        accelerator.free_memory()  # else the earlier DDP would average too
        session.model, *_ = accelerator.prepare(session.model, session.optimizer, *session.loaders.values())
    if session.start is not None:
        session.start.follow()
    settle(session)
    session.schedule = create_schedule(session.config, session.optimizer.optimizer, session.order.updates)
    session.schedule.step_update(session.step)


def plain_weights(session: Session) -> dict[str, Tensor]:
    """Give what is measured and kept as the state dict of a network as timm makes it; every process must call this.

    Where the network is spread over the processes, it is empty on all but the main one.
    """
    if session.config.lora is not None:
        return merged_weights(session.evaluated)
    if session.ema is not None:
        return session.ema.module.state_dict()
    return sharding.whole_weights(session.accelerator, session.model, session.network)


def refuse_faults(session: Session, folder: RunFolder, is_saving: bool = False) -> None:
    """Look whether losses were finite and images readable; this waits for the device.

    Args:
        session: Of this process.
        folder: Takes the list of images whose loss was not finite.
        is_saving: Whether what would be saved must be finite too.

    Raises:
        Fault: A loss or what would be saved is not finite.
        ValueError: An image could not be read.
    """
    accelerator, watch = session.accelerator, session.watch
    found = watch.look(accelerator)
    poisoned = watch.look_at_weights(accelerator) if is_saving else []
    if found or poisoned:
        with shared_writing(accelerator, 'and a loss is not finite'):
            if accelerator.is_main_process:
                folder.add_nonfinite([*found, *poisoned])
        if poisoned or watch.is_hopeless():
            place = (found or poisoned)[0].splitlines()[0]
            raise Fault(folder.describe_nonfinite(place, is_skipping=watch.skips))
    if session.config.bad_images == 'stop':
        session.bad_images['train'].refuse(accelerator)


def save(session: Session, folder: RunFolder, is_due: bool = True) -> None:
    """Save a checkpoint, unless what would be saved is broken, or would not hold the whole run.

    Args:
        session: Of this process.
        folder: Of the run.
        is_due: Whether there shall be one; what is broken is refused in any case, and unreadable images are listed.
    """
    start = time.monotonic()
    refuse_faults(session, folder, is_saving=True)
    save_bad_images(session, folder)
    if not is_due:
        return
    if sharding.can_be_resumed(session.accelerator):
        save_checkpoint(folder.state, session.accelerator, session.state, session.config.keep_checkpoints)
    session.pace.restart(time.monotonic() - start)


def save_bad_images(session: Session, folder: RunFolder) -> None:
    """List the images that could not be read, if there were any."""
    found = [name for bad in session.bad_images.values() for name in bad.names(session.accelerator)]
    if found and session.accelerator.is_main_process:
        folder.add_bad_images(found)
